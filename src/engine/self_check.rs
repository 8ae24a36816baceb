//! Scores a model's golden pairs on the scorer that will serve, before its lane is ready.

use crate::backend::{ScoreError, Scorer};
use crate::base::Tier;
use crate::model::{Expected, Golden};
use crate::rerank::sigmoid;
use crate::token::{Packed, PairReader, ReadError, Tokenizer};
use std::fmt;
use std::sync::Arc;
use thiserror::Error;

/// Pairs that an error shows.
const SHOWN_MAX: usize = 3;
/// Characters of a text that an error shows.
const CHARS_MAX: usize = 40;

/// The golden pairs of a tier's model, tokenised.
#[derive(Debug)]
pub struct SelfCheck {
    /// The model's tier, name and data type.
    model: Arc<str>,
    pairs: Vec<CheckedPair>,
    /// Whether a mismatch keeps the lane from coming up; otherwise it is a warning.
    is_enforced: bool,
}

#[derive(Debug)]
struct CheckedPair {
    batch: Packed,
    /// The beginnings of both texts.
    texts: [String; 2],
    expected: Expected,
    allowed: f32,
}

/// A golden pair with another score than it must have.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// Its place in the file.
    pub place: usize,
    texts: [String; 2],
    /// What it must have.
    pub expected: Expected,
    /// What it got, in the same form.
    pub got: f32,
    allowed: f32,
}

/// Why a model failed its self-check.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum SelfCheckError {
    /// Golden pairs have other scores.
    #[error(
        "the self-check of {model} failed: {} of {of} golden pairs have other scores than they must: {}{}; the tokenizer, the \
         prompt or the weights are not those of this model, or its precision is too coarse (f32 is exact); \
         --no-self-check (self_check = false) serves all the same",
        .found.len(), shown(.found), if .found.len() > SHOWN_MAX { ", ..." } else { "" }
    )]
    Mismatch {
        /// The model's tier, name and data type.
        model: Arc<str>,
        /// Those pairs.
        found: Vec<Mismatch>,
        /// How many there are.
        of: usize,
    },
    /// A pair could not be scored.
    #[error("the self-check of {model} failed: golden pair {place} could not be scored: {why}")]
    Failed {
        /// The model's tier, name and data type.
        model: Arc<str>,
        /// Its place in the file.
        place: usize,
        /// The cause.
        why: ScoreError,
    },
}

fn shown(found: &[Mismatch]) -> String {
    found.iter().take(SHOWN_MAX).map(Mismatch::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { place, texts: [query, document], expected, got, allowed } = self;
        let (form, expected) = match expected {
            Expected::Logit(logit) => ("logit", logit),
            Expected::Probability(probability) => ("probability", probability),
        };
        write!(
            f,
            "pair {place} ({query:?}, {document:?}): {form} {expected} expected, {got} got, {allowed} allowed"
        )
    }
}

impl SelfCheck {
    /// Tokenises the golden pairs of a model that runs in this data type, for a tier; errors call it by this name.
    ///
    /// # Errors
    /// A pair that cannot be read.
    pub fn new(
        golden: &Golden,
        (tier, name): (Tier, &str),
        (tokenizer, tokens_max): (Arc<Tokenizer>, u32),
        dtype: &str,
        is_enforced: bool,
    ) -> Result<Self, ReadError> {
        let reader = PairReader::new(tokenizer, tokens_max);
        let logit = |expected: Expected| match expected {
            Expected::Logit(logit) => logit.abs(),
            Expected::Probability(_) => 0.0,
        };
        let largest = golden.pairs().iter().map(|pair| logit(pair.expected)).fold(1.0, f32::max);
        let start = |text: &str| match text.char_indices().nth(CHARS_MAX) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text.to_owned(),
        };
        let pair = |pair: &crate::model::GoldenPair| {
            let mut batch = Packed::default();
            reader.push_instructed(pair.instruction.as_deref(), [&pair.query, &pair.document], &mut batch)?;
            let rounding = match pair.expected {
                Expected::Logit(_) => rounding(dtype) * largest,
                // A sigmoid is at most a quarter as steep as its logit.
                Expected::Probability(_) => rounding(dtype),
            };
            Ok(CheckedPair {
                batch,
                texts: [&pair.query, &pair.document].map(|text| start(text)),
                expected: pair.expected,
                allowed: pair.tolerance + rounding,
            })
        };
        let pairs = golden.pairs().iter().map(pair).collect::<Result<_, ReadError>>()?;
        let model = format!("the {} {name} in {dtype}", tier.name()).into();
        Ok(Self { model, pairs, is_enforced })
    }

    /// Scores the pairs. A mismatch is logged as a warning where the check is not enforced.
    ///
    /// # Errors
    /// [`SelfCheckError`].
    pub(super) fn run(&self, scorer: &mut dyn Scorer) -> Result<(), SelfCheckError> {
        match self.score(scorer) {
            Err(error @ SelfCheckError::Mismatch { .. }) if !self.is_enforced => {
                tracing::warn!(%error, "the model is served although it failed its self-check");
                Ok(())
            }
            result => result,
        }
    }

    fn score(&self, scorer: &mut dyn Scorer) -> Result<(), SelfCheckError> {
        let mut found = Vec::new();
        for (place, pair) in self.pairs.iter().enumerate() {
            let mut logit = [f32::NAN];
            scorer.score(&pair.batch, &mut logit).map_err(|why| SelfCheckError::Failed {
                model: self.model.clone(),
                place,
                why,
            })?;
            let (got, expected) = match pair.expected {
                Expected::Logit(expected) => (logit[0], expected),
                Expected::Probability(expected) => (sigmoid(logit[0]), expected),
            };
            // NaN is a mismatch too.
            let is_near = (got - expected).abs() <= pair.allowed;
            if !is_near {
                let CheckedPair { texts, expected, allowed, .. } = pair;
                let (texts, expected, allowed) = (texts.clone(), *expected, *allowed);
                found.push(Mismatch { place, texts, expected, got, allowed });
            }
        }
        match found.is_empty() {
            true => Ok(()),
            false => Err(SelfCheckError::Mismatch { model: self.model.clone(), found, of: self.pairs.len() }),
        }
    }
}

/// How far rounding may move a logit, as a share of the largest golden logit (at least 1). Measured root mean squares on
/// 400 pairs with logits up to 11 (models/README.md) are 0.0015 in f16, 0.011 in bf16 and 0.064 in int8; these are about
/// 15 times those, because a single pair may be far from the mean and other models round worse. A wrong prompt, a wrong
/// tokenizer or a wrong head moves logits by more.
fn rounding(dtype: &str) -> f32 {
    match dtype {
        "float32" => 0.0,
        "float16" => 2e-3,
        "bfloat16" => 1.5e-2,
        // int8 and E4M3.
        _ => 1e-1,
    }
}
