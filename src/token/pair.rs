//! A query and a document as one sequence, cut to what the model reads.

use super::{Packed, Template};
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// A tokenised pair: both texts' ids, shared, and which part of each is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    query: Arc<[u32]>,
    document: Arc<[u32]>,
    query_kept: Range<u32>,
    document_kept: Range<u32>,
    specials: u32,
}

/// What a pair must fit into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Most tokens of the sequence, special tokens included.
    pub limit: u32,
    /// Most tokens of the document; what is more is cut from its end first.
    pub document_max: Option<u32>,
    /// What is cut from a pair that is still longer than the limit.
    pub cut: Cut,
}

/// What is cut from a pair that is longer than its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The document's end; the query must leave room for at least one token of it.
    DocumentOnly,
    /// The ends of the longer of the two, until the pair fits.
    LongestFirst,
    /// As [`Cut::LongestFirst`], from the beginnings.
    LongestFirstLeft,
    /// Nothing: such a pair is an error.
    Nothing,
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
    /// The pair is too long and nothing may be cut.
    #[error("the pair has {tokens} tokens, and the limit is {limit}")]
    PairTooLong {
        /// The pair's tokens, special tokens included.
        tokens: u32,
        /// The limit.
        limit: u32,
    },
    /// The limit has no room but for special tokens.
    #[error("a limit of {limit} tokens leaves no room beside {specials} special tokens")]
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
        &Fit { limit, document_max, cut }: &Fit,
    ) -> Result<Self, FitError> {
        let specials = template.specials();
        if limit <= specials {
            return Err(FitError::LimitTooShort { limit, specials });
        }
        let room = limit - specials;
        let q = query.len() as u32;
        let d = (document.len() as u32).min(document_max.unwrap_or(u32::MAX));
        let (q_kept, d_kept) = match cut {
            Cut::DocumentOnly if q >= room => {
                return Err(FitError::QueryTooLong { tokens: q, limit: room });
            }
            Cut::DocumentOnly => (q, d.min(room - q)),
            Cut::Nothing if q + d > room => {
                return Err(FitError::PairTooLong { tokens: q + d + specials, limit });
            }
            Cut::Nothing => (q, d),
            Cut::LongestFirst | Cut::LongestFirstLeft => longest_first(q, d, room),
        };
        let (query_kept, document_kept) = match cut {
            Cut::LongestFirstLeft => (q - q_kept..q, d - d_kept..d),
            Cut::DocumentOnly | Cut::LongestFirst | Cut::Nothing => (0..q_kept, 0..d_kept),
        };
        Ok(Self { query, document, query_kept, document_kept, specials })
    }

    /// Tokens of the sequence, special tokens included.
    pub fn len(&self) -> u32 {
        let kept = |range: &Range<u32>| range.end - range.start;
        kept(&self.query_kept) + kept(&self.document_kept) + self.specials
    }

    /// Always false: a pair has its special tokens at least.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether either text lost tokens.
    pub fn truncated(&self) -> bool {
        self.query_kept.len() < self.query.len() || self.document_kept.len() < self.document.len()
    }

    /// Appends the sequence to a batch.
    pub fn push_into(&self, batch: &mut Packed, template: &Template) {
        fn text(batch: &mut Packed, ids: &[u32], kept: &Range<u32>, kind: u8) {
            batch.extend(&ids[kept.start as usize..kept.end as usize], kind);
        }
        fn specials(batch: &mut Packed, tokens: &[(u32, u8)]) {
            tokens.iter().for_each(|&(id, kind)| batch.extend(&[id], kind));
        }
        specials(batch, &template.before);
        text(batch, &self.query, &self.query_kept, template.query_type);
        specials(batch, &template.between);
        text(batch, &self.document, &self.document_kept, template.document_type);
        specials(batch, &template.after);
        batch.finish();
    }
}

/// How much of each text stays; the rule of Hugging Face's `tokenizers` (`LongestFirst`).
fn longest_first(query: u32, document: u32, room: u32) -> (u32, u32) {
    if query + document <= room {
        return (query, document);
    }
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
        }
    }

    fn fit(query: Arc<[u32]>, document: Arc<[u32]>, cut: Cut, limit: u32) -> Result<Pair, FitError> {
        Pair::fit(query, document, &template(), &Fit { limit, document_max: None, cut })
    }

    fn packed(pair: &Pair) -> Vec<u32> {
        let mut batch = Packed::default();
        pair.push_into(&mut batch, &template());
        assert_eq!(batch.tokens().0, u64::from(pair.len()));
        batch.ids().to_vec()
    }

    #[test]
    fn the_document_alone_is_cut() {
        let pair = fit(ids(10..13), ids(20..30), Cut::DocumentOnly, 8).unwrap();
        assert_eq!(packed(&pair), [1, 10, 11, 12, 2, 20, 21, 2]);
        assert!(pair.truncated());
    }

    #[test]
    fn a_query_that_leaves_no_room_is_an_error_with_both_numbers() {
        let error = fit(ids(10..15), ids(20..30), Cut::DocumentOnly, 8).unwrap_err();
        assert_eq!(error, FitError::QueryTooLong { tokens: 5, limit: 5 });
        assert!(fit(ids(10..14), ids(20..30), Cut::DocumentOnly, 8).is_ok());
    }

    #[test]
    fn nothing_is_cut_where_nothing_may_be() {
        let fit = |document| fit(ids(10..12), document, Cut::Nothing, 8);
        assert_eq!(fit(ids(20..24)).unwrap_err(), FitError::PairTooLong { tokens: 9, limit: 8 });
        assert!(!fit(ids(20..23)).unwrap().truncated());
    }

    #[test]
    fn empty_texts_make_a_pair_of_special_tokens() {
        let pair = fit(ids(0..0), ids(0..0), Cut::DocumentOnly, 8).unwrap();
        assert_eq!(packed(&pair), [1, 2, 2]);
    }

    #[test]
    fn a_limit_without_room_is_an_error() {
        let error = fit(ids(1..2), ids(1..2), Cut::LongestFirst, 3).unwrap_err();
        assert_eq!(error, FitError::LimitTooShort { limit: 3, specials: 3 });
    }

    #[test]
    fn a_document_is_cut_to_its_own_limit_first() {
        let limits = Fit { limit: 20, document_max: Some(2), cut: Cut::Nothing };
        let pair = Pair::fit(ids(10..12), ids(20..25), &template(), &limits).unwrap();
        assert_eq!(packed(&pair), [1, 10, 11, 2, 20, 21, 2]);
        assert!(pair.truncated());
    }
}
