//! Scores a model's golden pairs on the scorer that will serve, before its lane is ready.

use crate::backend::{ScoreError, Scorer};
use crate::base::Tier;
use crate::model::{Expected, Golden, GoldenPair};
use crate::rerank::sigmoid;
use crate::token::{Packed, Pair, PairReader, ReadError, Template, Tokenizer};
use std::fmt;
use std::ops::Range;
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
    template: Arc<Template>,
    /// Most tokens of a batch.
    batch_tokens_max: u64,
}

#[derive(Debug)]
struct CheckedPair {
    pair: Pair,
    /// The beginnings of both texts.
    texts: [String; 2],
    expected: Expected,
    allowed: f32,
}

/// A golden pair that the model does not read as it is stated.
#[derive(Debug, Error)]
pub enum GoldenError {
    /// It cannot be tokenised.
    #[error("pair {place}: {why}")]
    Unread {
        /// Its place in the file.
        place: usize,
        /// The cause.
        why: ReadError,
    },
    /// It has an instruction that no score can depend on.
    #[error("pair {place}: instruction: the model's prompt has no place for one; remove it from the pair")]
    NoInstruction {
        /// Its place in the file.
        place: usize,
    },
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
    /// Pairs of one batch could not be scored.
    #[error("the self-check of {model} failed: {} could not be scored: {why}", named(.places))]
    Failed {
        /// The model's tier, name and data type.
        model: Arc<str>,
        /// Their places in the file.
        places: Range<usize>,
        /// The cause.
        why: ScoreError,
    },
}

fn named(places: &Range<usize>) -> String {
    match places.len() {
        1 => format!("golden pair {}", places.start),
        _ => format!("a batch of the golden pairs {} to {}", places.start, places.end - 1),
    }
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
    /// Tokenises the golden pairs of a model that runs in this data type, for a tier; errors call it by this name. The
    /// limits are most tokens of a pair and of a batch.
    ///
    /// # Errors
    /// A pair that the model does not read as it is stated.
    pub fn new(
        golden: &Golden,
        (tier, name): (Tier, &str),
        tokenizer: Arc<Tokenizer>,
        (pair_tokens_max, batch_tokens_max): (u32, u64),
        dtype: &str,
    ) -> Result<Self, GoldenError> {
        let (takes_instruction, template) = (tokenizer.takes_instruction(), tokenizer.template().clone());
        let reader = PairReader::new(tokenizer, pair_tokens_max);
        let logit = |expected: Expected| match expected {
            Expected::Logit(logit) => logit.abs(),
            Expected::Probability(_) => 0.0,
        };
        let largest = golden.pairs().iter().map(|pair| logit(pair.expected)).fold(1.0, f32::max);
        let start = |text: &str| match text.char_indices().nth(CHARS_MAX) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text.to_owned(),
        };
        let pair = |(place, golden): (usize, &GoldenPair)| {
            let GoldenPair { query, document, instruction, expected, tolerance } = golden;
            if instruction.is_some() && !takes_instruction {
                return Err(GoldenError::NoInstruction { place });
            }
            let pair = reader.read(instruction.as_deref(), [query, document]);
            let pair = pair.map_err(|why| GoldenError::Unread { place, why })?;
            let rounding = match expected {
                Expected::Logit(_) => rounding(dtype) * largest,
                // A sigmoid is at most a quarter as steep as its logit.
                Expected::Probability(_) => rounding(dtype),
            };
            let (texts, allowed) = ([query, document].map(|text| start(text)), tolerance + rounding);
            Ok(CheckedPair { pair, texts, expected: *expected, allowed })
        };
        let pairs = golden.pairs().iter().enumerate().map(pair).collect::<Result<_, GoldenError>>()?;
        let model = format!("the {} {name} in {dtype}", tier.name()).into();
        Ok(Self { model, pairs, template, batch_tokens_max })
    }

    /// Scores the pairs, in batches as large as the lane's.
    ///
    /// # Errors
    /// [`SelfCheckError`].
    pub(super) fn run(&self, scorer: &mut dyn Scorer) -> Result<(), SelfCheckError> {
        let mut logits = vec![f32::NAN; self.pairs.len()];
        let (mut start, mut tokens) = (0, 0);
        for (place, CheckedPair { pair, .. }) in self.pairs.iter().enumerate() {
            let length = u64::from(pair.len());
            if place > start && tokens + length > self.batch_tokens_max {
                self.score(scorer, start..place, &mut logits)?;
                (start, tokens) = (place, 0);
            }
            tokens += length;
        }
        self.score(scorer, start..self.pairs.len(), &mut logits)?;
        let found: Vec<Mismatch> = self
            .pairs
            .iter()
            .zip(logits)
            .enumerate()
            .filter_map(|(place, (pair, logit))| pair.mismatch(place, logit))
            .collect();
        match found.is_empty() {
            true => Ok(()),
            false => Err(SelfCheckError::Mismatch { model: self.model.clone(), found, of: self.pairs.len() }),
        }
    }

    /// Scores the pairs of these places in one batch, or in more where the device has too little memory for that.
    fn score(
        &self,
        scorer: &mut dyn Scorer,
        places: Range<usize>,
        logits: &mut [f32],
    ) -> Result<(), SelfCheckError> {
        let mut batch = Packed::default();
        self.pairs[places.clone()]
            .iter()
            .for_each(|checked| checked.pair.push_into(&mut batch, &self.template));
        match scorer.score(&batch, &mut logits[places.clone()]) {
            Ok(()) => Ok(()),
            Err(ScoreError::OutOfMemory) if places.len() > 1 => {
                let middle = places.start + places.len() / 2;
                self.score(scorer, places.start..middle, logits)?;
                self.score(scorer, middle..places.end, logits)
            }
            Err(why) => Err(SelfCheckError::Failed { model: self.model.clone(), places, why }),
        }
    }
}

impl CheckedPair {
    fn mismatch(&self, place: usize, logit: f32) -> Option<Mismatch> {
        let (got, stated) = match self.expected {
            Expected::Logit(stated) => (logit, stated),
            Expected::Probability(stated) => (sigmoid(logit), stated),
        };
        // NaN is a mismatch too.
        let is_near = (got - stated).abs() <= self.allowed;
        let Self { texts, expected, allowed, .. } = self;
        (!is_near).then(|| Mismatch {
            place,
            texts: texts.clone(),
            expected: *expected,
            got,
            allowed: *allowed,
        })
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
