//! A request's pairs, as lanes score them and as the scheduler counts them.

use crate::base::{PerTier, Tokens};
use crate::token::{Pair, Template};
use std::sync::Arc;

/// A request's pairs for each tier; empty for a tier that is not configured or cannot read the request.
pub(super) type Prepared = PerTier<Pairs>;

/// One tier's pairs, in the caller's order.
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
