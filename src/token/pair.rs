//! A query and a document as one sequence, cut to what the model reads.

use super::{Packed, Template};
use crate::base::Side;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// A tokenised pair: both texts' ids, shared, and which part of each is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The request's instruction, in place of the prompt's own.
    instruction: Option<Arc<[u32]>>,
    query: Arc<[u32]>,
    document: Arc<[u32]>,
    query_kept: Range<u32>,
    document_kept: Range<u32>,
    /// Tokens of the template that a text which has lost its end is given back.
    query_end: u32,
    document_end: u32,
    specials: u32,
}

/// What a pair must fit into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Most tokens of the sequence, special tokens included.
    pub limit: u32,
    /// Most tokens of the query; those beyond are cut first, whatever `cut` says.
    pub query_max: Option<u32>,
    /// Most tokens of the document; those beyond are cut first, whatever `cut` says.
    pub document_max: Option<u32>,
    /// What is cut from a pair that is still longer than the limit.
    pub cut: Cut,
    /// The end at which both texts lose tokens.
    pub side: Side,
}

/// What is cut from a pair that is longer than its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The query to its share of the limit, and the document to what the query leaves.
    Share {
        /// The query's share, in thousandths of the limit; it leaves room for at least one token of the document.
        query_permille: u32,
    },
    /// The document; the query must leave room for at least one token of it.
    DocumentOnly,
    /// The longer of the two, until the pair fits.
    LongestFirst,
    /// The end of both, as if they were one text: first the document, then the query.
    End,
    /// Nothing: such a pair is an error.
    Nothing,
}

impl Fit {
    /// Fits pairs into a limit by cutting the ends of texts, which have no limits of their own.
    pub const fn new(limit: u32, cut: Cut) -> Self {
        Self { limit, query_max: None, document_max: None, cut, side: Side::Right }
    }

    /// How many tokens of a query and of a document are kept beside `specials` special tokens, of which `instruction` are
    /// those of a request's instruction.
    fn kept(
        &self,
        [query, document]: [u32; 2],
        specials: u32,
        instruction: u32,
    ) -> Result<(u32, u32), FitError> {
        let limit = self.limit;
        if limit < specials.saturating_add(2) {
            let fixed = specials - instruction;
            return Err(match limit.checked_sub(fixed.saturating_add(2)) {
                Some(limit) if instruction > 0 => FitError::InstructionTooLong { tokens: instruction, limit },
                _ => FitError::LimitTooShort { limit, specials: fixed },
            });
        }
        let room = limit - specials;
        let query = query.min(self.query_max.unwrap_or(u32::MAX));
        let document = document.min(self.document_max.unwrap_or(u32::MAX));
        if u64::from(query) + u64::from(document) <= u64::from(room) {
            return Ok((query, document));
        }
        match self.cut {
            Cut::Share { query_permille } => {
                let share = (u64::from(limit) * u64::from(query_permille) / 1_000) as u32;
                // An instruction is cut from the query's share, because it is a part of the question.
                let query = query.min(share.saturating_sub(instruction).clamp(1, room - 1));
                Ok((query, document.min(room - query)))
            }
            Cut::LongestFirst => Ok(longest_first(query, document, room)),
            Cut::End => Ok((query.min(room), document.min(room - query.min(room)))),
            Cut::DocumentOnly | Cut::Nothing if query >= room => {
                Err(FitError::QueryTooLong { tokens: query, limit: room })
            }
            Cut::DocumentOnly => Ok((query, room - query)),
            Cut::Nothing => {
                Err(FitError::PairTooLong { tokens: query + document + specials, specials, limit })
            }
        }
    }
}

/// A pair that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FitError {
    /// The query leaves no room for a document.
    #[error("the query has {tokens} tokens and must have fewer than {limit} to leave room for a document")]
    QueryTooLong {
        /// The query's tokens.
        tokens: u32,
        /// What a query and a document share.
        limit: u32,
    },
    /// The request's instruction leaves no room for a query and a document.
    #[error(
        "the instruction takes {tokens} tokens, and may take at most {limit} to leave room for a query and a document"
    )]
    InstructionTooLong {
        /// The instruction's tokens.
        tokens: u32,
        /// The most that it may have.
        limit: u32,
    },
    /// The pair is too long and nothing may be cut.
    #[error(
        "the pair has {tokens} tokens, of which {specials} stand around its texts, and the limit is {limit}"
    )]
    PairTooLong {
        /// The pair's tokens, with those around its texts.
        tokens: u32,
        /// Special tokens and those of a prompt.
        specials: u32,
        /// The limit.
        limit: u32,
    },
    /// The limit has no room for a token of each text.
    #[error(
        "{limit} tokens have no room for a query and a document beside {specials} special tokens; \
         the least is {}", specials + 2
    )]
    LimitTooShort {
        /// The limit.
        limit: u32,
        /// Special tokens of a pair.
        specials: u32,
    },
}

impl Pair {
    /// Fits a query and a document into what the model reads.
    ///
    /// # Errors
    /// [`FitError`]; which one depends on what may be cut.
    pub fn fit(
        query: Arc<[u32]>,
        document: Arc<[u32]>,
        template: &Template,
        fit: &Fit,
    ) -> Result<Self, FitError> {
        Self::instructed(None, [query, document], template, fit)
    }

    /// Fits a query and a document into what the model reads, with a request's instruction in the prompt.
    ///
    /// # Errors
    /// [`FitError`]; which one depends on what may be cut. An instruction is never cut.
    pub fn instructed(
        instruction: Option<Arc<[u32]>>,
        [query, document]: [Arc<[u32]>; 2],
        template: &Template,
        fit: &Fit,
    ) -> Result<Self, FitError> {
        let specials = template.specials_with(instruction.as_deref());
        let (q, d) = (query.len() as u32, document.len() as u32);
        let (q_end, d_end) = (template.query_end.len() as u32, template.document_end.len() as u32);
        let own = |max: Option<u32>, end: u32| max.map(|max| max.saturating_add(end));
        let cut = match (fit.cut, template.cut) {
            (Cut::Share { .. }, Some(own)) => own,
            (cut, _) => cut,
        };
        let fit = Fit {
            query_max: own(fit.query_max, q_end),
            document_max: own(fit.document_max, d_end),
            cut,
            ..*fit
        };
        let (_, asked, _) = template.before_query(instruction.as_deref());
        let asked = asked.len() as u32;
        let (q_kept, d_kept) = fit.kept([q, d], specials, asked).map_err(|error| match error {
            // Texts are counted without the template's tokens in their pieces.
            FitError::QueryTooLong { tokens, limit } => FitError::QueryTooLong {
                tokens: tokens.saturating_sub(q_end),
                limit: limit.saturating_sub(q_end),
            },
            FitError::PairTooLong { tokens, specials, limit } => {
                FitError::PairTooLong { tokens, specials: specials + q_end + d_end, limit }
            }
            FitError::InstructionTooLong { .. } | FitError::LimitTooShort { .. } => error,
        })?;
        let kept = |whole: u32, kept: u32, end: u32| match fit.side {
            Side::Left => (whole - kept..whole, 0),
            // A template's tokens after a text are no part of it that may be lost.
            Side::Right if kept < whole && kept > end && cut != Cut::End => (0..kept - end, end),
            Side::Right => (0..kept, 0),
        };
        let ((query_kept, query_end), (document_kept, document_end)) =
            (kept(q, q_kept, q_end), kept(d, d_kept, d_end));
        Ok(Self {
            instruction,
            query,
            document,
            query_kept,
            document_kept,
            query_end,
            document_end,
            specials,
        })
    }

    /// Tokens of the sequence, special tokens included.
    pub fn len(&self) -> u32 {
        let kept = |range: &Range<u32>| range.end - range.start;
        kept(&self.query_kept)
            + kept(&self.document_kept)
            + self.query_end
            + self.document_end
            + self.specials
    }

    /// Tokens that all of these pairs begin with: those of the template before the query or an instruction, which pairs of
    /// other requests begin with too, and those from there to the document, if they are the same.
    pub fn shared(pairs: &[Self], template: &Template) -> [u32; 2] {
        let Some(first) = pairs.first() else { return [0; 2] };
        let (fixed, _, _) = template.before_query(first.instruction.as_deref());
        let fixed = fixed.len() as u32;
        let is_like_first = |pair: &Self| {
            pair.instruction == first.instruction
                && pair.query == first.query
                && pair.query_kept == first.query_kept
                && pair.query_end == first.query_end
        };
        let from_document = first.document_kept.len() + first.document_end as usize + template.after.len();
        let shared =
            if pairs.iter().all(is_like_first) { first.len() - from_document as u32 - fixed } else { 0 };
        [fixed, shared]
    }

    /// Always false: a pair has its special tokens at least.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many tokens the query lost.
    pub fn query_lost(&self) -> u32 {
        (self.query.len() - self.query_kept.len()) as u32 - self.query_end
    }

    /// How many tokens the document lost.
    pub fn document_lost(&self) -> u32 {
        (self.document.len() - self.document_kept.len()) as u32 - self.document_end
    }

    /// Appends the sequence to a batch.
    pub fn push_into(&self, batch: &mut Packed, template: &Template) {
        fn text(batch: &mut Packed, ids: &[u32], kept: &Range<u32>, kind: u8) {
            batch.extend(&ids[kept.start as usize..kept.end as usize], kind);
        }
        fn specials(batch: &mut Packed, tokens: &[(u32, u8)]) {
            tokens.iter().for_each(|&(id, kind)| batch.extend(&[id], kind));
        }
        let (before, instruction, after) = template.before_query(self.instruction.as_deref());
        specials(batch, before);
        batch.extend(instruction, template.query_type);
        specials(batch, after);
        text(batch, &self.query, &self.query_kept, template.query_type);
        batch.extend(&template.query_end[..self.query_end as usize], template.query_type);
        specials(batch, &template.between);
        text(batch, &self.document, &self.document_kept, template.document_type);
        batch.extend(&template.document_end[..self.document_end as usize], template.document_type);
        specials(batch, &template.after);
        batch.finish();
    }
}

/// How much of each text stays of a pair that is longer than `room`; the rule of Hugging Face's `tokenizers`
/// (`LongestFirst`).
fn longest_first(query: u32, document: u32, room: u32) -> (u32, u32) {
    let shorter = query.min(document);
    let (mut short, mut long) = (shorter, shorter.max(room.saturating_sub(shorter)));
    if short + long > room {
        (short, long) = (room / 2, room / 2 + room % 2);
    }
    if query > document { (long, short) } else { (short, long) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::InstructedIds;

    fn ids(range: Range<u32>) -> Arc<[u32]> {
        range.collect()
    }

    fn template() -> Template {
        Template {
            before: vec![(1, 0)],
            between: vec![(2, 0)],
            after: vec![(2, 1)],
            query_type: 0,
            document_type: 1,
            ..Template::default()
        }
    }

    fn fit(query: u32, document: u32, fit: Fit) -> Result<Pair, FitError> {
        Pair::fit(ids(100..100 + query), ids(200..200 + document), &template(), &fit)
    }

    /// How many tokens of each text are kept, with no limit of their own.
    fn kept(query: u32, document: u32, cut: Cut, limit: u32) -> Result<(u32, u32), FitError> {
        let pair = fit(query, document, Fit::new(limit, cut))?;
        assert_eq!(pair.query_kept.start, 0);
        assert_eq!(pair.document_kept.start, 0);
        assert_eq!(
            (pair.query_lost(), pair.document_lost()),
            (query - pair.query_kept.end, document - pair.document_kept.end)
        );
        Ok((pair.query_kept.end, pair.document_kept.end))
    }

    fn packed(pair: &Pair) -> Vec<u32> {
        let mut batch = Packed::default();
        pair.push_into(&mut batch, &template());
        assert_eq!(batch.tokens().0, u64::from(pair.len()));
        batch.ids().to_vec()
    }

    const SHARE: Cut = Cut::Share { query_permille: 750 };

    #[test]
    fn each_policy_keeps_its_own_share_of_each_text() {
        let long_query = |tokens, limit| Err(FitError::QueryTooLong { tokens, limit });
        let long_pair = |tokens, limit| Err(FitError::PairTooLong { tokens, specials: 3, limit });
        let rows = [
            // Whatever fits stays whole, a query beyond its share too.
            (SHARE, 9, 4, 16, Ok((9, 4))),
            (SHARE, 12, 1, 16, Ok((12, 1))),
            // 3/4 of 16 are 12, and of 13 tokens that leaves one.
            (SHARE, 12, 2, 16, Ok((12, 1))),
            (SHARE, 13, 9, 16, Ok((12, 1))),
            (SHARE, 3, 90, 16, Ok((3, 10))),
            // FlagEmbedding: 3/4 of 512 are 384, and the passage has the other 125.
            (SHARE, 600, 400, 512, Ok((384, 125))),
            (SHARE, 600, 20, 512, Ok((384, 20))),
            (SHARE, 385, 124, 512, Ok((385, 124))),
            (SHARE, 385, 125, 512, Ok((384, 125))),
            // Of 5 tokens a query and a document have one each, whatever the share is.
            (SHARE, 4, 4, 5, Ok((1, 1))),
            (Cut::Share { query_permille: 999 }, 40, 40, 16, Ok((12, 1))),
            (Cut::Share { query_permille: 1 }, 40, 40, 16, Ok((1, 12))),
            (Cut::DocumentOnly, 3, 10, 8, Ok((3, 2))),
            (Cut::DocumentOnly, 4, 10, 8, Ok((4, 1))),
            (Cut::DocumentOnly, 5, 0, 8, Ok((5, 0))),
            (Cut::DocumentOnly, 5, 10, 8, long_query(5, 5)),
            (Cut::LongestFirst, 3, 10, 8, Ok((2, 3))),
            (Cut::LongestFirst, 10, 3, 8, Ok((3, 2))),
            (Cut::LongestFirst, 10, 1, 8, Ok((4, 1))),
            (Cut::LongestFirst, 1, 4, 8, Ok((1, 4))),
            (Cut::End, 2, 10, 8, Ok((2, 3))),
            (Cut::End, 5, 10, 8, Ok((5, 0))),
            (Cut::End, 9, 10, 8, Ok((5, 0))),
            (Cut::End, 2, 3, 8, Ok((2, 3))),
            (Cut::Nothing, 2, 3, 8, Ok((2, 3))),
            (Cut::Nothing, 5, 0, 8, Ok((5, 0))),
            (Cut::Nothing, 2, 4, 8, long_pair(9, 8)),
            (Cut::Nothing, 4, 4, 8, long_pair(11, 8)),
            (Cut::Nothing, 5, 1, 8, long_query(5, 5)),
            (Cut::Nothing, 6, 0, 8, long_query(6, 5)),
        ];
        for (cut, query, document, limit, expected) in rows {
            assert_eq!(kept(query, document, cut, limit), expected, "{cut:?} {query} {document} {limit}");
        }
    }

    #[test]
    fn a_text_is_cut_to_its_own_limit_first_whatever_the_policy_is() {
        for (cut, query, document) in [
            (SHARE, (4, 2), (9, 3)),
            (Cut::DocumentOnly, (4, 2), (9, 3)),
            (Cut::LongestFirst, (4, 2), (9, 3)),
            (Cut::Nothing, (4, 2), (9, 3)),
        ] {
            let limits =
                Fit { query_max: Some(query.1), document_max: Some(document.1), ..Fit::new(20, cut) };
            let pair = fit(query.0, document.0, limits).unwrap();
            assert_eq!(packed(&pair), [1, 100, 101, 2, 200, 201, 202, 2], "{cut:?}");
            assert_eq!((pair.query_lost(), pair.document_lost()), (2, 6), "{cut:?}");
            let whole = fit(query.1, document.1, limits).unwrap();
            assert_eq!((whole.query_lost(), whole.document_lost()), (0, 0), "{cut:?}");
        }
        // A limit of a text's own is no more than that: the pair's holds too.
        let limits = Fit { query_max: Some(14), document_max: Some(9), ..Fit::new(16, SHARE) };
        let pair = fit(20, 20, limits).unwrap();
        assert_eq!((pair.query_lost(), pair.document_lost(), pair.len()), (8, 19, 16));
    }

    #[test]
    fn from_the_left_both_texts_keep_their_ends() {
        let left = |limit, cut| Fit { side: Side::Left, ..Fit::new(limit, cut) };
        let own = Fit { query_max: Some(1), document_max: Some(2), ..left(20, Cut::Nothing) };
        for (fitted, expected) in [
            (fit(9, 9, left(8, SHARE)), [1, 105, 106, 107, 108, 2, 208, 2].as_slice()),
            (fit(2, 9, left(8, Cut::DocumentOnly)), &[1, 100, 101, 2, 206, 207, 208, 2]),
            (fit(9, 9, left(8, Cut::LongestFirst)), &[1, 107, 108, 2, 206, 207, 208, 2]),
            (fit(9, 9, own), &[1, 108, 2, 207, 208, 2]),
        ] {
            assert_eq!(packed(&fitted.unwrap()), expected);
        }
    }

    #[test]
    fn pairs_with_the_same_query_share_what_stands_before_the_document() {
        let (short, long) = (Fit::new(20, SHARE), Fit::new(8, SHARE));
        let pair = |query, document, fitted| fit(query, document, fitted).unwrap();
        let shared = |pairs: &[Pair]| Pair::shared(pairs, &template());
        // The token before the query; the query's tokens and the one between.
        assert_eq!(shared(&[pair(5, 3, short), pair(5, 9, short), pair(5, 0, short)]), [1, 6]);
        assert_eq!(shared(&[pair(5, 3, short)]), [1, 6]);
        assert_eq!(shared(&[]), [0, 0]);
        assert_eq!(shared(&[pair(5, 3, short), pair(6, 3, short)]), [1, 0], "another query");
        let left = Fit { side: Side::Left, ..long };
        assert_eq!(shared(&[pair(9, 9, left), pair(9, 9, long)]), [1, 0], "cut elsewhere");
        assert_eq!(shared(&[pair(9, 9, long), pair(9, 8, long)]), [1, 5], "cut alike");
    }

    #[test]
    fn empty_texts_make_a_pair_of_special_tokens() {
        let pair = fit(0, 0, Fit::new(8, SHARE)).unwrap();
        assert_eq!(packed(&pair), [1, 2, 2]);
        assert!(!pair.is_empty());
    }

    #[test]
    fn a_limit_without_room_is_an_error_that_says_the_least() {
        for cut in [SHARE, Cut::DocumentOnly, Cut::LongestFirst, Cut::Nothing] {
            for limit in [0, 3, 4] {
                let error = fit(1, 1, Fit::new(limit, cut)).unwrap_err();
                assert_eq!(error, FitError::LimitTooShort { limit, specials: 3 });
                assert!(error.to_string().ends_with("special tokens; the least is 5"), "{error}");
            }
            assert_eq!(kept(1, 1, cut, 5), Ok((1, 1)));
        }
    }
    /// A template with a place for an instruction: 3 tokens of its own, 2 around an instruction, 1 for an empty one.
    fn instructed_template() -> Template {
        let tokens = |ids: &[u32]| ids.iter().map(|&id| (id, 0)).collect();
        let before = tokens(&[10, 11, 12]);
        let place = InstructedIds { before: tokens(&[10]), after: tokens(&[13]), empty: tokens(&[14]) };
        Template { before, between: vec![], after: vec![(2, 0)], instructed: Some(place), ..template() }
    }

    fn instructed(instruction: Option<&[u32]>, fit: &Fit) -> Result<Vec<u32>, FitError> {
        let template = instructed_template();
        let texts = [ids(100..108), ids(200..208)];
        let pair = Pair::instructed(instruction.map(Arc::from), texts, &template, fit)?;
        let mut batch = Packed::default();
        pair.push_into(&mut batch, &template);
        assert_eq!(batch.tokens().0, u64::from(pair.len()));
        Ok(batch.ids().to_vec())
    }

    #[test]
    fn an_instruction_stands_in_its_place_and_counts_toward_the_limit() {
        let fit = |limit| Fit::new(limit, Cut::End);
        let starts = |instruction: Option<&[u32]>, start: &[u32]| {
            let sequence = instructed(instruction, &fit(64)).unwrap();
            assert_eq!(sequence[..start.len()], *start);
            assert_eq!(sequence.len(), start.len() + 8 + 8 + 1);
        };
        starts(None, &[10, 11, 12]);
        starts(Some(&[]), &[14]);
        starts(Some(&[20, 21]), &[10, 20, 21, 13]);
        let cut = instructed(Some(&[20, 21]), &fit(10)).unwrap();
        assert_eq!(cut, [10, 20, 21, 13, 100, 101, 102, 103, 104, 2]);
    }

    #[test]
    fn an_instruction_counts_toward_the_query_s_share() {
        // Of 16 tokens the share is 8, and the instruction leaves 5 of it.
        let share = Fit::new(16, Cut::Share { query_permille: 500 });
        let with = instructed(Some(&[20, 21, 22]), &share).unwrap();
        assert_eq!(with, [10, 20, 21, 22, 13, 100, 101, 102, 103, 104, 200, 201, 202, 203, 204, 2]);
        let without = instructed(None, &share).unwrap();
        assert_eq!(without[3..11], [100, 101, 102, 103, 104, 105, 106, 107]);
        // A query keeps one token at least.
        let instruction: Vec<u32> = (20..30).collect();
        let least = instructed(Some(&instruction), &share).unwrap();
        assert_eq!(least[11..], [13, 100, 200, 201, 2]);
    }

    #[test]
    fn an_instruction_without_room_is_an_error_that_says_the_most() {
        let instruction: Vec<u32> = (20..32).collect();
        for cut in [SHARE, Cut::DocumentOnly, Cut::LongestFirst, Cut::End, Cut::Nothing] {
            let error = instructed(Some(&instruction), &Fit::new(16, cut)).unwrap_err();
            assert_eq!(error, FitError::InstructionTooLong { tokens: 12, limit: 11 });
            // The most fits, where the texts may be cut.
            if cut == Cut::LongestFirst {
                assert_eq!(instructed(Some(&instruction[..11]), &Fit::new(16, cut)).unwrap().len(), 16);
            }
            // A limit that is too short without an instruction is not blamed on it.
            let error = instructed(Some(&instruction), &Fit::new(4, cut)).unwrap_err();
            assert_eq!(error, FitError::LimitTooShort { limit: 4, specials: 3 });
        }
    }

    #[test]
    fn a_template_without_a_place_ignores_an_instruction() {
        let texts = || [ids(100..103), ids(200..203)];
        let fit = Fit::new(8, SHARE);
        let with = Pair::instructed(Some(ids(20..90)), texts(), &template(), &fit).unwrap();
        let [query, document] = texts();
        let without = Pair::fit(query, document, &template(), &fit).unwrap();
        assert_eq!((packed(&with), with.len()), (packed(&without), without.len()));
    }

    #[test]
    fn an_error_counts_the_prompt_s_tokens_apart_from_those_of_the_texts() {
        let template = Template { query_end: Arc::new([90, 91]), document_end: Arc::new([92]), ..template() };
        let said = |query: u32, document: u32| {
            let texts = [ids(100..100 + query + 2), ids(200..200 + document + 1)];
            let fit = Fit::new(16, Cut::Nothing);
            Pair::instructed(None, texts, &template, &fit).unwrap_err().to_string()
        };
        let long = "the pair has 17 tokens, of which 6 stand around its texts, and the limit is 16";
        assert_eq!(said(6, 5), long);
        let expected = "the query has 12 tokens and must have fewer than 11 to leave room for a document";
        assert_eq!(said(12, 1), expected);
    }

    #[test]
    fn a_text_that_loses_its_end_keeps_what_the_prompt_has_after_it() {
        let template = Template { query_end: Arc::new([90, 91]), document_end: Arc::new([92]), ..template() };
        // A query of 6 tokens before its end, and a document of 5.
        let query: Arc<[u32]> = ids(100..106).iter().copied().chain([90, 91]).collect();
        let document: Arc<[u32]> = ids(200..205).iter().copied().chain([92]).collect();
        let fitted = |fit: Fit, cut: Option<Cut>| {
            let template = Template { cut, ..template.clone() };
            let pair = Pair::fit(query.clone(), document.clone(), &template, &fit).unwrap();
            let mut batch = Packed::default();
            pair.push_into(&mut batch, &template);
            assert_eq!(batch.ids().len() as u32, pair.len());
            (batch.ids().to_vec(), pair.query_lost(), pair.document_lost())
        };
        let rows = [
            (
                17,
                SHARE,
                None,
                vec![1, 100, 101, 102, 103, 104, 105, 90, 91, 2, 200, 201, 202, 203, 204, 92, 2],
                (0, 0),
            ),
            (
                16,
                SHARE,
                None,
                vec![1, 100, 101, 102, 103, 104, 105, 90, 91, 2, 200, 201, 202, 203, 92, 2],
                (0, 1),
            ),
            (10, SHARE, None, vec![1, 100, 101, 102, 103, 90, 91, 2, 200, 2], (2, 5)),
            // The model's own rule, in place of the default.
            (10, SHARE, Some(Cut::End), vec![1, 100, 101, 102, 103, 104, 105, 90, 2, 2], (1, 6)),
            (12, SHARE, Some(Cut::End), vec![1, 100, 101, 102, 103, 104, 105, 90, 91, 2, 200, 2], (0, 5)),
            (
                14,
                Cut::DocumentOnly,
                Some(Cut::End),
                vec![1, 100, 101, 102, 103, 104, 105, 90, 91, 2, 200, 201, 92, 2],
                (0, 3),
            ),
        ];
        for (limit, cut, own, expected, lost) in rows {
            assert_eq!(
                fitted(Fit::new(limit, cut), own),
                (expected, lost.0, lost.1),
                "{limit} {cut:?} {own:?}"
            );
        }
        let own = Fit { query_max: Some(2), document_max: Some(1), ..Fit::new(20, Cut::Nothing) };
        assert_eq!(fitted(own, None), (vec![1, 100, 101, 90, 91, 2, 200, 92, 2], 4, 4));
    }
}
