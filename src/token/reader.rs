//! Query and document as text to a pair in a batch, for offline scoring.

use super::{Cut, Fit, FitError, Packed, Pair, Tokenizer, TokenizerError};
use std::sync::Arc;
use thiserror::Error;

/// Reads pairs as cross-encoders are trained to: the longer text is cut first.
pub struct PairReader {
    /// The model's.
    pub tokenizer: Arc<Tokenizer>,
    /// Most tokens of a pair.
    pub tokens_max: u32,
}

impl PairReader {
    /// Appends a pair to a batch.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn push(&self, query: &str, document: &str, batch: &mut Packed) -> Result<(), ReadError> {
        let fit = Fit::new(self.tokens_max, Cut::LongestFirst);
        let (query, document) = (self.tokenizer.encode(query)?, self.tokenizer.encode(document)?);
        Pair::fit(query, document, self.tokenizer.template(), &fit)?
            .push_into(batch, self.tokenizer.template());
        Ok(())
    }
}

/// Why a pair cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A text cannot be tokenised.
    #[error("a text cannot be tokenised: {0}")]
    Token(#[from] TokenizerError),
    /// A pair does not fit.
    #[error(transparent)]
    Fit(#[from] FitError),
}
