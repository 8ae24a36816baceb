//! Tokenises a query and a document into a pair of a batch, for offline scoring.

use super::{Cut, Fit, FitError, Packed, Pair, Tokenizer, TokenizerError};
use std::sync::Arc;
use thiserror::Error;

/// Tokenises pairs of texts.
pub struct PairReader {
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The limits of pairs.
    pub fit: Fit,
}

impl PairReader {
    /// Reads pairs of at most `tokens_max` tokens as cross-encoders are trained to: the longer text is cut first, unless
    /// the prompt says otherwise.
    pub fn new(tokenizer: Arc<Tokenizer>, tokens_max: u32) -> Self {
        let cut = tokenizer.template().cut.unwrap_or(Cut::LongestFirst);
        Self { tokenizer, fit: Fit::new(tokens_max, cut) }
    }

    /// Appends a pair to a batch.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn push(&self, query: &str, document: &str, batch: &mut Packed) -> Result<(), ReadError> {
        self.push_instructed(None, [query, document], batch)
    }

    /// Appends a pair to a batch, with a request's instruction if the prompt has a place for one.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn push_instructed(
        &self,
        instruction: Option<&str>,
        [query, document]: [&str; 2],
        batch: &mut Packed,
    ) -> Result<(), ReadError> {
        self.read(instruction, [query, document])?.push_into(batch, self.tokenizer.template());
        Ok(())
    }

    /// Tokenises a pair, with a request's instruction if the prompt has a place for one.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, instruction: Option<&str>, [query, document]: [&str; 2]) -> Result<Pair, ReadError> {
        let tokenizer = &self.tokenizer;
        let instruction = instruction.map(|text| tokenizer.encode_instruction(text)).transpose()?.flatten();
        let texts = [tokenizer.encode_query(query)?, tokenizer.encode_document(document)?];
        Ok(Pair::instructed(instruction, texts, tokenizer.template(), &self.fit)?)
    }
}

/// Why a pair cannot be tokenised.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A text cannot be tokenised.
    #[error("a text cannot be tokenised: {0}")]
    Token(#[from] TokenizerError),
    /// A pair does not fit.
    #[error(transparent)]
    Fit(#[from] FitError),
}
