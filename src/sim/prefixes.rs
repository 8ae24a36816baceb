//! The prefixes that a simulated scorer keeps.

use crate::forecast::predict::Load;
use crate::sched::{Ask, JobId, Slice};
use std::collections::VecDeque;

/// Requests whose prefixes a scorer keeps: no more than the CPU engine keeps of a small decoder.
const KEPT_MAX: usize = 16;

/// The requests whose prefixes a scorer has, least recently used first.
#[derive(Clone, Default)]
pub(super) struct Kept(VecDeque<JobId>);

impl Kept {
    /// Adds what the scorer computes for a slice of a request.
    pub fn run(&mut self, slice: &Slice, ask: &Ask, load: &mut Load) {
        let place = self.0.iter().position(|&kept| kept == slice.job);
        match place {
            Some(place) => drop(self.0.remove(place)),
            None => load.add_prefix(ask.prefix),
        }
        self.0.push_back(slice.job);
        if self.0.len() > KEPT_MAX {
            self.0.pop_front();
        }
        slice.candidates().for_each(|candidate| load.add_behind(ask.prefix, ask.lengths[candidate]));
    }
}
