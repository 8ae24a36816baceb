//! A request's pairs, as lanes score them and as the scheduler counts them.

use super::served::Served;
use crate::base::{ModelId, Tokens};
use crate::sched::Ask;
use crate::token::{Pair, Template};
use smallvec::SmallVec;
use std::sync::Arc;

/// A request's pairs for each model that may answer it and can read it.
#[derive(Clone)]
pub(super) struct Prepared {
    /// The number of candidates.
    pub candidates: usize,
    /// The preferred primary first.
    pub primaries: SmallVec<[Part; 1]>,
    pub fallback: Option<Part>,
}

/// A request as one model reads it.
#[derive(Clone)]
pub(super) struct Part {
    pub model: Arc<Served>,
    pub pairs: Pairs,
}

impl Prepared {
    /// A model's part.
    pub fn of(&self, model: ModelId) -> &Part {
        let mut parts = self.primaries.iter().chain(&self.fallback);
        parts.find(|part| part.model.id == model).expect("a job runs on the models that it asks")
    }
}

impl Part {
    /// As the scheduler sees it.
    pub fn ask(&self) -> Ask {
        let Pairs { prefix, beyond, .. } = &self.pairs;
        Ask { model: self.model.id, prefix: *prefix, lengths: beyond.clone() }
    }
}

/// One model's pairs, in the caller's order.
#[derive(Clone)]
pub(super) struct Pairs {
    pub pairs: Arc<[Pair]>,
    /// The number of tokens of each pair.
    pub lengths: Arc<[u32]>,
    /// Tokens that scorers compute once for all pairs, without those of the template, which they keep.
    pub prefix: u32,
    /// The number of other tokens of each pair that are computed.
    pub beyond: Arc<[u32]>,
}

impl Pairs {
    pub fn new(pairs: Vec<Pair>) -> Self {
        let lengths: Arc<[u32]> = pairs.iter().map(Pair::len).collect();
        Self { pairs: pairs.into(), prefix: 0, beyond: lengths.clone(), lengths }
    }

    /// Pairs for scorers that share prefixes.
    pub fn shared(pairs: Vec<Pair>, template: &Template) -> Self {
        let [fixed, prefix] = Pair::shared(&pairs, template);
        let beyond = pairs.iter().map(|pair| pair.len().saturating_sub(fixed + prefix).max(1)).collect();
        Self { prefix, beyond, ..Self::new(pairs) }
    }

    /// The tokens of all pairs.
    pub fn tokens(&self) -> Tokens {
        Tokens(self.lengths.iter().map(|&length| u64::from(length)).sum())
    }
}
