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
        let (query, document) =
            (self.tokenizer.encode_query(query)?, self.tokenizer.encode_document(document)?);
        Pair::fit(query, document, self.tokenizer.template(), &self.fit)?
            .push_into(batch, self.tokenizer.template());
        Ok(())
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
