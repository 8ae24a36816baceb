//! A model's tokenizer: token ids of a text, and the template of special tokens in a pair.

use super::wordpiece::WordPiece;
use super::{Cut, Prompt};
use std::borrow::Cow;
use std::sync::Arc;
use thiserror::Error;
use tokenizers::{Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer};

/// A tokenizer from `tokenizer.json`. Truncation and padding in it are ignored.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Our own WordPiece, if the tokenizer is BERT's.
    wordpiece: Option<WordPiece>,
    /// Around the texts of a pair, in place of the tokenizer's special tokens.
    prompt: Option<Prompt>,
    template: Arc<Template>,
}

impl std::fmt::Debug for Tokenizer {
    /// Without the vocabulary.
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { prompt, template, .. } = self;
        f.debug_struct("Tokenizer")
            .field("prompt", prompt)
            .field("template", template)
            .finish_non_exhaustive()
    }
}

/// Why a tokenizer cannot be used.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The file is not a valid `tokenizer.json`.
    #[error("tokenizer.json cannot be loaded: {reason}")]
    Load {
        /// The library's error.
        reason: String,
    },
    /// The probe pair does not follow a template of two texts.
    #[error("the tokenizer's pair template is not `specials query specials document specials`: {reason}")]
    Template {
        /// The probe's result.
        reason: String,
    },
    /// A prompt cannot be encoded in pieces.
    #[error("the prompt cannot be cut into pieces: {reason}")]
    Prompt {
        /// The texts that show it.
        reason: String,
    },
    /// A text cannot be encoded.
    #[error("the text cannot be tokenised: {reason}")]
    Encode {
        /// The library's error.
        reason: String,
    },
}

/// A token as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its id.
    pub id: u32,
    /// Its part of the text, or a special token's name.
    pub text: String,
    /// Where that begins and ends in the text, in characters; none for a special token.
    pub place: Option<(usize, usize)>,
}

/// The tokens around the two texts of a pair, each with its token type: special tokens, or those of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// Before the query.
    pub before: Vec<(u32, u8)>,
    /// Between the query and the document.
    pub between: Vec<(u32, u8)>,
    /// After the document.
    pub after: Vec<(u32, u8)>,
    /// The query's token type.
    pub query_type: u8,
    /// The document's token type.
    pub document_type: u8,
    /// The last tokens of a query's piece, which stand after the text; a query that loses its end keeps them.
    pub query_end: Arc<[u32]>,
    /// The same of a document's piece.
    pub document_end: Arc<[u32]>,
    /// What a pair loses that is too long, in place of the default policy.
    pub cut: Option<Cut>,
    /// In place of `before` if a request has an instruction; none if the prompt has no place for one.
    pub instructed: Option<InstructedIds>,
}

/// The tokens before the query in a prompt with a request's instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstructedIds {
    /// Before the instruction.
    pub before: Vec<(u32, u8)>,
    /// After it.
    pub after: Vec<(u32, u8)>,
    /// In place of both if the instruction is empty.
    pub empty: Vec<(u32, u8)>,
}

/// Tokens before an instruction, the instruction's ids, and tokens after it.
type BeforeQuery<'a> = (&'a [(u32, u8)], &'a [u32], &'a [(u32, u8)]);

impl Template {
    /// Number of tokens in a pair beside the two texts.
    pub fn specials(&self) -> u32 {
        self.specials_with(None)
    }

    /// Number of tokens in a pair beside the two texts, with a request's instruction.
    pub(super) fn specials_with(&self, instruction: Option<&[u32]>) -> u32 {
        let (before, ids, after) = self.before_query(instruction);
        (before.len() + ids.len() + after.len() + self.between.len() + self.after.len()) as u32
    }

    /// The tokens before the query: those around an instruction and the instruction's own in the middle, or the
    /// prompt's own without one.
    pub(super) fn before_query<'a>(&'a self, instruction: Option<&'a [u32]>) -> BeforeQuery<'a> {
        match (&self.instructed, instruction) {
            (Some(place), Some([])) => (&place.empty, &[], &[]),
            (Some(place), Some(ids)) => (&place.before, ids, &place.after),
            (None, _) | (_, None) => (&self.before, &[], &[]),
        }
    }
}

impl Tokenizer {
    /// Parses the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Load`] and [`TokenizerError::Template`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes);
        Self::new(inner.map_err(|error| TokenizerError::Load { reason: error.to_string() })?)
    }

    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| TokenizerError::Template { reason: error.to_string() })?;
        let template = Arc::new(probe(&inner)?);
        Ok(Self { wordpiece: WordPiece::of(&inner), inner, prompt: None, template })
    }

    /// The same tokenizer for pairs in a prompt.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn with_prompt(self, prompt: Prompt) -> Result<Self, TokenizerError> {
        let template = Arc::new(prompt.template(&self)?);
        Ok(Self { template, prompt: Some(prompt), ..self })
    }

    /// What is encoded for a query.
    pub fn query_piece<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.prompt.as_ref().map_or(text.into(), |prompt| prompt.query.text(text).into())
    }

    /// What is encoded for a document.
    pub fn document_piece<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.prompt.as_ref().map_or(text.into(), |prompt| prompt.document.text(text).into())
    }

    /// Whether the same text has the same ids as a query and as a document.
    pub fn reads_both_alike(&self) -> bool {
        self.prompt.as_ref().is_none_or(|prompt| prompt.query == prompt.document)
    }

    /// The ids of a query without the tokens around it.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode_query(&self, text: &str) -> Result<Arc<[u32]>, TokenizerError> {
        self.encode(&self.query_piece(text))
    }

    /// The ids of a document without the tokens around it.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode_document(&self, text: &str) -> Result<Arc<[u32]>, TokenizerError> {
        self.encode(&self.document_piece(text))
    }

    /// Whether the prompt has a place for a request's instruction.
    pub fn takes_instruction(&self) -> bool {
        self.template.instructed.is_some()
    }

    /// The ids of a request's instruction, without the tokens around it; none if the prompt has no place for one. Text
    /// that looks like a special token is read as text, so that an instruction cannot end the prompt's turn.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode_instruction(&self, text: &str) -> Result<Option<Arc<[u32]>>, TokenizerError> {
        let place = self.prompt.as_ref().and_then(|prompt| prompt.instructed.as_ref());
        place.map(|place| self.encode_plain(&place.piece(text))).transpose()
    }

    /// The ids of a text in which no special token is recognised.
    pub(super) fn encode_plain(&self, text: &str) -> Result<Arc<[u32]>, TokenizerError> {
        if text.is_empty() {
            return Ok([].into());
        }
        let failed = |error: tokenizers::Error| TokenizerError::Encode { reason: error.to_string() };
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            normalizer.normalize(&mut normalized).map_err(failed)?;
        }
        let mut parts = PreTokenizedString::from(normalized);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut parts).map_err(failed)?;
        }
        parts.tokenize(|part| self.inner.get_model().tokenize(part.get())).map_err(failed)?;
        let encoding = parts.into_encoding(None, 0, OffsetType::None).map_err(failed)?;
        // Some vocabularies list special tokens among the words, and a model that is given one whole finds it there.
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let special = |id: &u32| added.get(id).filter(|token| token.special && text.contains(&token.content));
        if let Some(token) = encoding.get_ids().iter().find_map(special) {
            let reason = format!("`{}` in it would be read as a special token", token.content);
            return Err(TokenizerError::Encode { reason });
        }
        Ok(encoding.get_ids().into())
    }

    /// The id of a token by its name in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The ids of a text without special tokens; empty for an empty text.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Arc<[u32]>, TokenizerError> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        match &self.wordpiece {
            Some(own) => own.encode(text, &mut ids, |text, ids| self.library(text, ids))?,
            None => self.library(text, &mut ids)?,
        }
        Ok(ids.into())
    }

    fn library(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|error| TokenizerError::Encode { reason: error.to_string() })?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// A text's tokens, for people: with the text of each and its place, and with the special tokens of a text alone
    /// where those are wanted.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn pieces(&self, text: &str, specials: bool) -> Result<Vec<Piece>, TokenizerError> {
        let encoding = self.inner.encode_char_offsets(text, specials);
        let encoding = encoding.map_err(|error| TokenizerError::Encode { reason: error.to_string() })?;
        let chars: Vec<char> = text.chars().collect();
        let piece = |place: usize| {
            let (id, (start, stop)) = (encoding.get_ids()[place], encoding.get_offsets()[place]);
            match encoding.get_special_tokens_mask()[place] {
                0 => Piece { id, text: chars[start..stop].iter().collect(), place: Some((start, stop)) },
                _ => Piece { id, text: encoding.get_tokens()[place].clone(), place: None },
            }
        };
        Ok((0..encoding.len()).map(piece).collect())
    }

    /// The text of ids.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn decode(&self, ids: &[u32], skip_specials: bool) -> Result<String, TokenizerError> {
        // Not every file marks the special tokens of its template as such.
        let Template { before, between, after, .. } = &*self.template;
        let special = |id: &u32| [before, between, after].into_iter().flatten().any(|(known, _)| known == id);
        let ids: Vec<u32> = ids.iter().copied().filter(|id| !(skip_specials && special(id))).collect();
        let text = self.inner.decode(&ids, skip_specials);
        text.map_err(|error| TokenizerError::Encode { reason: error.to_string() })
    }

    /// The special tokens of a pair.
    pub fn template(&self) -> &Arc<Template> {
        &self.template
    }

    /// Whether it uses our own WordPiece in place of the library.
    pub fn has_own_wordpiece(&self) -> bool {
        self.wordpiece.is_some()
    }

    /// The number of ids.
    pub fn vocabulary(&self) -> u32 {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id + 1)
    }
}

/// Learns the template from the library's encoding of a pair.
fn probe(inner: &tokenizers::Tokenizer) -> Result<Template, TokenizerError> {
    let template_error = |reason: &str| TokenizerError::Template { reason: reason.to_owned() };
    let encoding = inner
        .encode(("a b", "c d"), true)
        .map_err(|error| TokenizerError::Template { reason: error.to_string() })?;
    let origins = encoding.get_sequence_ids();
    let tokens: Vec<(u32, u8)> = std::iter::zip(encoding.get_ids(), encoding.get_type_ids())
        .map(|(&id, &kind)| (id, u8::try_from(kind).unwrap_or(u8::MAX)))
        .collect();
    let run = |origin: usize| -> Result<std::ops::Range<usize>, TokenizerError> {
        let start = origins.iter().position(|&o| o == Some(origin));
        let start = start.ok_or_else(|| template_error("one of the texts has no tokens"))?;
        let length = origins[start..].iter().take_while(|&&o| o == Some(origin)).count();
        match origins.iter().filter(|&&o| o == Some(origin)).count() == length {
            true => Ok(start..start + length),
            false => Err(template_error("special tokens stand inside one of the texts")),
        }
    };
    let (query, document) = (run(0)?, run(1)?);
    if query.end > document.start {
        return Err(template_error("the document comes before the query"));
    }
    Ok(Template {
        before: tokens[..query.start].to_vec(),
        between: tokens[query.end..document.start].to_vec(),
        after: tokens[document.end..].to_vec(),
        query_type: tokens[query.start].1,
        document_type: tokens[document.start].1,
        ..Template::default()
    })
}

/// The parts of a text that are special tokens, and those between them.
pub(super) fn special_parts<'a>(tokenizer: &Tokenizer, text: &'a str) -> Vec<(&'a str, bool)> {
    let added = tokenizer.inner.get_added_tokens_decoder();
    let is_plain = |token: &tokenizers::AddedToken| {
        !(token.normalized || token.lstrip || token.rstrip || token.single_word || token.content.is_empty())
    };
    let special: Vec<&str> =
        added.values().filter(|token| is_plain(token)).map(|token| token.content.as_str()).collect();
    let (mut parts, mut rest) = (Vec::new(), text);
    // The first one, and of those the longest.
    let next = |rest: &str| {
        let found = special.iter().filter_map(|token| rest.find(token).map(|place| (place, token.len())));
        found.min_by_key(|&(place, length)| (place, usize::MAX - length))
    };
    while let Some((place, length)) = next(rest) {
        parts.push((&rest[..place], false));
        parts.push((&rest[place..place + length], true));
        rest = &rest[place + length..];
    }
    parts.push((rest, false));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Side;
    use crate::token::{Cut, Fit, FitError, InstructedText, Packed, Pair, PromptText};
    use proptest::prelude::*;
    use std::path::PathBuf;
    use tokenizers::models::wordpiece::WordPiece;
    use tokenizers::normalizers::BertNormalizer;
    use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
    use tokenizers::processors::bert::BertProcessing;
    use tokenizers::processors::template::TemplateProcessing;
    use tokenizers::{
        Encoding, PaddingParams, PaddingStrategy, TruncationDirection, TruncationParams, TruncationStrategy,
        truncate_encodings,
    };

    /// A BERT tokenizer over single letters; `[CLS]` is 1 and `[SEP]` is 2.
    fn letters() -> tokenizers::Tokenizer {
        let specials = ["[UNK]", "[CLS]", "[SEP]"].map(str::to_owned).into_iter();
        let words =
            specials.chain(('a'..='z').map(String::from)).chain(('a'..='z').map(|c| format!("##{c}")));
        let vocab: [(String, u32); 55] = words.zip(0..).collect::<Vec<_>>().try_into().unwrap();
        let model = WordPiece::builder().vocab(vocab).unk_token("[UNK]".to_owned()).build().unwrap();
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_normalizer(Some(BertNormalizer::default())).unwrap();
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        inner.with_post_processor(Some(BertProcessing::new(("[SEP]".into(), 2), ("[CLS]".into(), 1))));
        inner
    }

    #[test]
    fn the_template_is_what_the_library_puts_around_a_pair() {
        let tokenizer = Tokenizer::new(letters()).unwrap();
        let expected = Template {
            before: vec![(1, 0)],
            between: vec![(2, 0)],
            after: vec![(2, 1)],
            query_type: 0,
            document_type: 1,
            ..Template::default()
        };
        assert_eq!(**tokenizer.template(), expected);
    }

    #[test]
    fn a_template_that_is_no_pair_in_order_is_an_error() {
        let template = |pair: &str| {
            let mut inner = letters();
            let template = TemplateProcessing::builder()
                .try_single("[CLS] $A [SEP]")
                .unwrap()
                .try_pair(pair)
                .unwrap()
                .special_tokens(vec![("[CLS]", 1), ("[SEP]", 2)])
                .build()
                .unwrap();
            inner.with_post_processor(Some(template));
            Tokenizer::new(inner).map(|tokenizer| (**tokenizer.template()).clone())
        };
        let found = template("$A:3 [SEP]:4 [CLS]:5 $B:6").unwrap();
        let expected = Template {
            before: vec![],
            between: vec![(2, 4), (1, 5)],
            after: vec![],
            query_type: 3,
            document_type: 6,
            ..Template::default()
        };
        assert_eq!((found.specials(), found), (2, expected));
        for pair in ["[CLS] $B [SEP] $A", "$A [SEP] $B $A"] {
            let error = template(pair).unwrap_err().to_string();
            assert!(error.ends_with("the document comes before the query"), "{pair}: {error}");
        }
    }

    #[test]
    fn a_tokenizer_s_own_padding_and_truncation_do_not_count() {
        let strategy = PaddingStrategy::Fixed(16);
        let mut inner = letters();
        inner.with_padding(Some(PaddingParams { strategy, ..Default::default() }));
        inner.with_truncation(Some(TruncationParams { max_length: 6, ..Default::default() })).unwrap();
        let tokenizer = Tokenizer::new(inner).unwrap();
        assert_eq!(tokenizer.template(), Tokenizer::new(letters()).unwrap().template());
        for text in ["a b c d e f g h", "a b c d e f g \u{e9}"] {
            assert_eq!(tokenizer.encode(text).unwrap().len(), 8, "{text}");
        }
    }

    #[test]
    fn a_vocabulary_ends_after_its_largest_id() {
        assert_eq!(Tokenizer::new(letters()).unwrap().vocabulary(), 55);
        let mut inner = letters();
        inner.add_tokens([tokenizers::AddedToken::from("more".to_owned(), false)]).unwrap();
        assert_eq!(Tokenizer::new(inner).unwrap().vocabulary(), 56);
    }

    #[test]
    fn what_our_own_wordpiece_does_not_know_is_the_library_s() {
        use tokenizers::AddedToken;
        let added = |token: AddedToken| {
            let mut inner = pieces(true);
            inner.add_special_tokens([token]).unwrap();
            Tokenizer::new(inner).unwrap()
        };
        let mark = || AddedToken::from("[MARK]".to_owned(), true);
        for (token, is_own) in [
            (mark(), true),
            (mark().lstrip(true), false),
            (mark().rstrip(true), false),
            (mark().normalized(true), false),
        ] {
            let tokenizer = added(token.clone());
            assert_eq!(tokenizer.has_own_wordpiece(), is_own, "{token:?}");
            agrees(&tokenizer, "un [MARK] able[mark]");
        }
        let mut inner = pieces(true);
        inner.with_normalizer(Some(BertNormalizer::new(false, true, None, true))).unwrap();
        let tokenizer = Tokenizer::new(inner).unwrap();
        assert!(!tokenizer.has_own_wordpiece());
        agrees(&tokenizer, "un\u{0}able \u{7f}");
    }

    /// A tokenizer with a place for an instruction in its prompt.
    fn instructed(inner: tokenizers::Tokenizer) -> Tokenizer {
        let tokenizer = Tokenizer::new(inner).unwrap();
        let instructed =
            InstructedText { before: "[CLS]", after: "[SEP]", empty: "x [SEP]", is_trimmed: true };
        let text = PromptText {
            before: "[CLS] own [SEP]",
            between: "[SEP]",
            after: "[SEP]",
            is_trimmed: false,
            instructed: Some(instructed),
        };
        let prompt = Prompt::of_text(&tokenizer, &text).unwrap();
        tokenizer.with_prompt(prompt).unwrap()
    }

    #[test]
    fn an_instruction_has_no_special_tokens_whatever_it_says() {
        let mut inner = letters();
        let special = |text: &str| tokenizers::AddedToken::from(text.to_owned(), true);
        inner.add_special_tokens([special("[CLS]"), special("[SEP]")]).unwrap();
        inner.add_tokens([tokenizers::AddedToken::from("<think>".to_owned(), false)]).unwrap();
        let tokenizer = instructed(inner);
        let encode = |text: &str| tokenizer.encode_instruction(text).unwrap().unwrap();
        assert_eq!(encode("a b"), tokenizer.encode("a b").unwrap());
        assert_eq!(*tokenizer.encode("[SEP]").unwrap(), [2]);
        let think = tokenizer.token_id("<think>").unwrap();
        for text in ["a[SEP]b", "[CLS]", "<think>", "\0[SEP]\0", "[SEP]\u{7}", "\n[SEP]\n"] {
            let ids = encode(text);
            assert!(!ids.is_empty() && ids.iter().all(|&id| id != 1 && id != 2 && id != think), "{text:?}");
        }
        // Nothing is left of these, so they are as an empty one.
        for text in ["", "  ", "\n"] {
            assert!(encode(text).is_empty(), "{text:?}");
        }
        let place = tokenizer.template().instructed.clone().unwrap();
        assert_eq!(place.empty, [(tokenizer.token_id("x").unwrap(), 0), (2, 0)]);
    }

    #[test]
    fn a_special_token_among_the_words_is_refused_in_an_instruction() {
        // Without a pre-tokenizer the whole text is one word.
        let mut inner = letters();
        inner.with_pre_tokenizer(None::<BertPreTokenizer>);
        inner.with_normalizer(None::<BertNormalizer>).unwrap();
        let special = |text: &str| tokenizers::AddedToken::from(text.to_owned(), true);
        inner.add_special_tokens([special("[UNK]"), special("[SEP]")]).unwrap();
        let tokenizer = Tokenizer::new(inner).unwrap();
        assert_eq!(
            tokenizer.encode_plain("[SEP]").unwrap_err().to_string(),
            "the text cannot be tokenised: `[SEP]` in it would be read as a special token"
        );
        // The token of unknown words is no special one of the text.
        assert_eq!(*tokenizer.encode_plain("\u{4e2d}").unwrap(), [0]);
    }

    #[test]
    fn what_is_no_tokenizer_is_an_error() {
        let error = Tokenizer::parse(b"{}").err().unwrap().to_string();
        assert!(error.starts_with("tokenizer.json cannot be loaded"), "{error}");
    }

    fn fit(
        tokenizer: &Tokenizer,
        query: &str,
        document: &str,
        cut: Cut,
        limit: u32,
    ) -> Result<Pair, FitError> {
        let ids = |text: &str| tokenizer.encode(text).unwrap();
        Pair::fit(ids(query), ids(document), tokenizer.template(), &Fit::new(limit, cut))
    }

    fn packed(pair: &Pair, tokenizer: &Tokenizer) -> Packed {
        let mut packed = Packed::default();
        pair.push_into(&mut packed, tokenizer.template());
        packed
    }

    /// A BERT tokenizer with pieces of several letters, of either case and of accents.
    fn pieces(lowercase: bool) -> tokenizers::Tokenizer {
        let alone =
            ["[UNK]", "[CLS]", "[SEP]", "un", "able", "a", "b", "A", "The", "the", ".", "[", "]", "é", "中"];
        let words = alone.into_iter().map(str::to_owned);
        let words = words.chain(["aff", "able", "a", "b", "s", "E", "é"].map(|piece| format!("##{piece}")));
        let vocab: [(String, u32); 22] = words.zip(0..).collect::<Vec<_>>().try_into().unwrap();
        let mut model = WordPiece::builder().vocab(vocab).unk_token("[UNK]".to_owned()).build().unwrap();
        model.max_input_chars_per_word = 12;
        let mut inner = tokenizers::Tokenizer::new(model);
        let normalizer = BertNormalizer::new(true, true, None, lowercase);
        inner.with_normalizer(Some(normalizer)).unwrap();
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        inner.with_post_processor(Some(BertProcessing::new(("[SEP]".into(), 2), ("[CLS]".into(), 1))));
        let special = |content: &str| tokenizers::AddedToken::from(content.to_owned(), true);
        inner.add_special_tokens(["[CLS]", "[SEP]"].map(special)).unwrap();
        inner
    }

    /// Whether our own ids of a text equal the library's.
    fn agrees(tokenizer: &Tokenizer, text: &str) {
        let expected = tokenizer.inner.encode_fast(text, false).unwrap();
        assert_eq!(*tokenizer.encode(text).unwrap(), *expected.get_ids(), "{text:?}");
    }

    #[test]
    fn our_own_wordpiece_reads_every_character_as_the_library_does() {
        for lowercase in [true, false] {
            let tokenizer = Tokenizer::new(pieces(lowercase)).unwrap();
            assert!(tokenizer.has_own_wordpiece());
            for c in (0..=0x3_ffff).filter_map(char::from_u32) {
                agrees(&tokenizer, &format!("un{c}able {c} A{c}"));
            }
            for text in
                ["", " ", "unaffable", "a[SEP]b [sep]", "[UNK]", "aaaaaaaaaaaa", "aaaaaaaaaaaaa", "a\u{301}b"]
            {
                agrees(&tokenizer, text);
            }
        }
    }

    #[test]
    fn the_teacher_s_texts_are_read_as_the_library_reads_them() {
        let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");
        let data = std::env::var_os("PODIUM_DATA").map_or_else(|| PathBuf::from(beside), PathBuf::from);
        let path = data.join("models/ms-marco-MiniLM-L-12-v2/tokenizer.json");
        if !path.is_file() {
            return eprintln!("SKIPPED: no data at {}; set PODIUM_DATA", data.display());
        }
        let tokenizer = Tokenizer::parse(&std::fs::read(&path).unwrap()).unwrap();
        assert!(tokenizer.has_own_wordpiece());
        let passages = std::fs::read_to_string(data.join("distill/passages.tsv")).unwrap();
        passages.lines().step_by(50).for_each(|passage| agrees(&tokenizer, passage));
    }

    proptest! {
        #[test]
        fn our_own_wordpiece_reads_any_text_as_the_library_does(text in "\\PC{0,60}|[ -~\t\n]{0,60}", lowercase: bool) {
            agrees(&Tokenizer::new(pieces(lowercase)).unwrap(), &text);
        }

        #[test]
        fn our_own_wordpiece_reads_words_as_the_library_does(
            text in "([ab.A\\[\\]é中\u{301}\u{0}\u{7f}\u{a0} ]|un|aff|able|The|\\[CLS\\]){0,30}", lowercase: bool,
        ) {
            agrees(&Tokenizer::new(pieces(lowercase)).unwrap(), &text);
        }

        #[test]
        fn a_spliced_pair_equals_the_library_s(
            query in "[ a-zA-Z.,é0-9]{0,40}", document in "\\PC{0,60}",
        ) {
            let tokenizer = Tokenizer::new(letters()).unwrap();
            let pair = fit(&tokenizer, &query, &document, Cut::Nothing, 512).unwrap();
            let packed = packed(&pair, &tokenizer);
            let expected = letters().encode((query.as_str(), document.as_str()), true).unwrap();
            prop_assert_eq!(packed.ids(), expected.get_ids());
            let types: Vec<u32> = packed.types().iter().map(|&kind| u32::from(kind)).collect();
            prop_assert_eq!(&types[..], expected.get_type_ids());
        }

        #[test]
        fn each_policy_cuts_a_pair_as_the_library_does(
            query in "[a-z]{1,60}", document in "[a-z]{0,60}", limit in 5u32..60, left: bool,
        ) {
            let tokenizer = Tokenizer::new(letters()).unwrap();
            let side = if left { Side::Left } else { Side::Right };
            let direction = if left { TruncationDirection::Left } else { TruncationDirection::Right };
            let ids = |text: &str| tokenizer.encode(text).unwrap();
            let ours = |cut: Cut| {
                let fit = Fit { side, ..Fit::new(limit, cut) };
                let pair = Pair::fit(ids(&query), ids(&document), tokenizer.template(), &fit)?;
                Ok::<_, FitError>(packed(&pair, &tokenizer).ids().to_vec())
            };
            // The library's own `encode` cuts each text to the limit first, which moves odd tokens.
            let alone = |text: &str| letters().encode(text, false).unwrap();
            let room = limit as usize - 3;
            let theirs = |query: Encoding, strategy: TruncationStrategy| {
                let params = TruncationParams { max_length: room, direction, strategy, ..Default::default() };
                let (a, b) = truncate_encodings(query, Some(alone(&document)), &params).ok()?;
                Some([&[1], a.get_ids(), &[2], b.unwrap().get_ids(), &[2]].concat())
            };
            let fits = query.len() + document.len() <= room;
            let longest_first = theirs(alone(&query), TruncationStrategy::LongestFirst);
            prop_assert_eq!(ours(Cut::LongestFirst).ok(), longest_first);
            // The library refuses to cut the document to nothing, and so do we.
            let only_second = theirs(alone(&query), TruncationStrategy::OnlySecond);
            prop_assert_eq!(ours(Cut::DocumentOnly).ok(), only_second.clone());
            prop_assert_eq!(ours(Cut::Nothing).ok(), only_second.filter(|_| fits));
            // FlagEmbedding: the query is cut by itself to 3/4 of the maximum, then the pair by `only_second`. We do
            // not cut a pair that fits, and leave at least one token to the document.
            let mut first = alone(&query);
            let share = (limit as usize * 3 / 4).min(room - 1);
            if !fits {
                first.truncate(share, 0, direction);
            }
            prop_assert_eq!(ours(Cut::Share { query_permille: 750 }).ok(), theirs(first, TruncationStrategy::OnlySecond));
        }
    }
}
