//! WordPiece for BERT vocabularies (Wu et al. 2016; Devlin et al. 2019), with the same ids as the `tokenizers` library
//! in a fraction of the time.
//!
//! It handles ASCII words. Any other word is passed to the library alone. That gives the same ids as within the text,
//! because cleaning, lower-casing and accent stripping never reach across a space.

use foldhash::fast::FixedState;
use std::collections::HashMap;
use tokenizers::{Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

/// Pieces that begin a word, and pieces that continue one.
type Pieces = HashMap<Box<[u8]>, u32, FixedState>;

/// A BERT vocabulary.
pub(super) struct WordPiece {
    begin: Pieces,
    go_on: Pieces,
    unknown: u32,
    /// Bytes of the longest piece.
    longest: usize,
    /// Longer words, in bytes, become the unknown token.
    word_max: usize,
    lowercase: bool,
    /// Texts that contain one of these are passed to the library.
    added: Vec<String>,
}

/// BERT's classes of ASCII characters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Word,
    Space,
    Punctuation,
    /// Removed; the characters around it are joined.
    Control,
}

const CLASSES: [Class; 128] = {
    let mut classes = [Class::Word; 128];
    let mut c = 0;
    while c < 128 {
        let byte = c as u8;
        classes[c] = match byte {
            b' ' | b'\t' | b'\n' | b'\r' => Class::Space,
            _ if byte.is_ascii_punctuation() => Class::Punctuation,
            _ if byte.is_ascii_control() => Class::Control,
            _ => Class::Word,
        };
        c += 1;
    }
    classes
};

impl WordPiece {
    /// Makes our WordPiece from a tokenizer that is BERT's in every part; none for any other.
    pub fn of(library: &tokenizers::Tokenizer) -> Option<Self> {
        let (
            Some(NormalizerWrapper::BertNormalizer(normalizer)),
            Some(PreTokenizerWrapper::BertPreTokenizer(_)),
        ) = (library.get_normalizer(), library.get_pre_tokenizer())
        else {
            return None;
        };
        let ModelWrapper::WordPiece(model) = library.get_model() else { return None };
        let prefix = model.continuing_subword_prefix.as_str();
        if !normalizer.clean_text || prefix.is_empty() {
            return None;
        }
        let decoder = library.get_added_tokens_decoder();
        let plain = |token: &tokenizers::AddedToken| {
            !token.normalized && !token.lstrip && !token.rstrip && !token.content.is_empty()
        };
        if !decoder.values().all(plain) {
            return None;
        }
        let (mut begin, mut go_on) = (Pieces::default(), Pieces::default());
        let vocabulary = model.get_vocab();
        for (piece, &id) in &vocabulary {
            // All of them, because a word may begin with any entry of the vocabulary, as in the library.
            begin.insert(piece.as_bytes().into(), id);
            if let Some(rest) = piece.strip_prefix(prefix) {
                go_on.insert(rest.as_bytes().into(), id);
            }
        }
        Some(Self {
            unknown: *vocabulary.get(&model.unk_token)?,
            longest: vocabulary.keys().map(String::len).max()?,
            begin,
            go_on,
            word_max: model.max_input_chars_per_word,
            lowercase: normalizer.lowercase,
            added: decoder.values().map(|token| token.content.clone()).collect(),
        })
    }

    /// Appends a text's ids. Parts for the library are passed to `other`.
    ///
    /// # Errors
    /// Those of `other`.
    pub fn encode<E>(
        &self,
        text: &str,
        ids: &mut Vec<u32>,
        mut other: impl FnMut(&str, &mut Vec<u32>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.added.iter().any(|token| text.contains(token)) {
            return other(text, ids);
        }
        let mut word = Vec::with_capacity(self.longest);
        for chunk in text.split([' ', '\t', '\n', '\r']) {
            match chunk.is_ascii() {
                true => self.ascii(chunk.as_bytes(), &mut word, ids),
                false => other(chunk, ids)?,
            }
        }
        Ok(())
    }

    /// Appends the ids of ASCII text; `word` is scratch memory.
    fn ascii(&self, text: &[u8], word: &mut Vec<u8>, ids: &mut Vec<u32>) {
        word.clear();
        for &byte in text {
            match CLASSES[usize::from(byte)] {
                Class::Word => word.push(if self.lowercase { byte.to_ascii_lowercase() } else { byte }),
                Class::Control => {}
                Class::Space => self.end(word, ids),
                Class::Punctuation => {
                    self.end(word, ids);
                    word.push(byte);
                    self.end(word, ids);
                }
            }
        }
        self.end(word, ids);
    }

    /// Appends the pieces of a word, if there is one: always the longest that fits, or the unknown token if none fits.
    fn end(&self, word: &mut Vec<u8>, ids: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        let known = ids.len();
        let mut start = 0;
        while start < word.len() && word.len() <= self.word_max {
            let pieces = if start == 0 { &self.begin } else { &self.go_on };
            let longest = word.len().min(start + self.longest);
            let found =
                (start + 1..=longest).rev().find_map(|end| Some((end, *pieces.get(&word[start..end])?)));
            let Some((end, id)) = found else { break };
            ids.push(id);
            start = end;
        }
        if start < word.len() {
            ids.truncate(known);
            ids.push(self.unknown);
        }
        word.clear();
    }
}
