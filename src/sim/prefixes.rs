//! The prefixes that a simulated scorer keeps.

use crate::base::{PerTier, Tier};
use crate::forecast::predict::Load;
use crate::sched::{JobId, Slice};
use std::collections::VecDeque;
use std::sync::Arc;

/// Requests whose prefixes a scorer keeps: no more than the CPU engine keeps of a small decoder.
const KEPT_MAX: usize = 16;

/// A request's pairs in tokens, as in its [`Arrival`](crate::sched::Arrival).
pub(super) struct Pairs {
    pub prefixes: PerTier<u32>,
    pub lengths: PerTier<Arc<[u32]>>,
}

/// The requests whose prefixes a scorer has, least recently used first.
#[derive(Clone, Default)]
pub(super) struct Kept(VecDeque<JobId>);

impl Kept {
    /// Adds what the scorer computes for a slice of a request.
    pub fn run(&mut self, slice: &Slice, pairs: &Pairs, tier: Tier, load: &mut Load) {
        let prefix = pairs.prefixes[tier];
        let place = self.0.iter().position(|&kept| kept == slice.job);
        match place {
            Some(place) => drop(self.0.remove(place)),
            None => load.add_prefix(prefix),
        }
        self.0.push_back(slice.job);
        if self.0.len() > KEPT_MAX {
            self.0.pop_front();
        }
        slice.candidates().for_each(|candidate| load.add_behind(prefix, pairs.lengths[tier][candidate]));
    }
}
