//! The reference scorer: candle on the CPU, in f32.

use super::{ScoreError, Scorer};
use crate::model::Forward;
use crate::token::Packed;
use std::sync::Arc;

/// Runs the reference forward. Lanes of one model share its tensors.
pub struct Reference {
    forward: Arc<Forward>,
}

impl Reference {
    /// Wraps a loaded forward.
    pub fn new(forward: Arc<Forward>) -> Self {
        Self { forward }
    }
}

impl Scorer for Reference {
    fn score(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), ScoreError> {
        let scored = self.forward.logits(batch).map_err(|error| ScoreError::Failed(error.to_string()))?;
        logits.copy_from_slice(&scored);
        Ok(())
    }
}
