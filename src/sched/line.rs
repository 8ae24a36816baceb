//! A job's place in a tier's line: what it has to do there, put in, taken out and put back.

use super::Scheduler;
use super::event::JobId;
use super::job::{Part, Ranges};
use crate::base::{Ns, Tier};
use std::sync::Arc;

impl Scheduler {
    /// Replaces a tier's part of a job by the first `pairs` places of an order, and queues what of that
    /// has not come back before.
    pub(super) fn enqueue_all(&mut self, id: JobId, tier: Tier, order: Option<Arc<[u32]>>, pairs: u32) {
        let part = &mut self.job(id).parts[tier];
        debug_assert!(part.queued.is_none() && part.running == 0, "a part is replaced when idle");
        let is_same_order = part.order.is_none() && order.is_none();
        let done = if is_same_order { std::mem::take(&mut part.done) } else { Ranges::new() };
        *part = Part { order, pairs, done, ..Part::default() };
        part.todo = part.not_done();
        self.requeue(id, tier);
    }

    /// Measures what a part has to do and puts it in line with that.
    pub(super) fn requeue(&mut self, id: JobId, tier: Tier) {
        self.leave_queue(id, tier);
        let job = self.jobs.get_mut(&id).expect("a job that is queued is inside");
        let (mut tokens, mut work) = (0, Ns::ZERO);
        for place in job.parts[tier].todo.iter().cloned().flatten() {
            let length = job.length(tier, place);
            tokens += u64::from(length);
            work += self.predictors[tier].marginal(length);
        }
        if tokens == 0 {
            return;
        }
        let ticket = self.queues[tier].push(self.now, (job.tenant, id), job.due, (tokens, work));
        let part = &mut job.parts[tier];
        (part.tokens, part.work, part.queued) = (tokens, work, Some(ticket));
    }

    /// Takes a part out of the line but leaves what it has to do.
    fn leave_queue(&mut self, id: JobId, tier: Tier) {
        let job = self.jobs.get_mut(&id).expect("a job that leaves a queue is inside");
        let part = &mut job.parts[tier];
        if let Some(ticket) = part.queued.take() {
            self.queues[tier].remove(job.tenant, ticket, (part.tokens, part.work));
            (part.tokens, part.work) = (0, Ns::ZERO);
        }
    }

    /// Drops what a part has not yet dispatched.
    pub(super) fn withdraw(&mut self, id: JobId, tier: Tier) {
        self.leave_queue(id, tier);
        self.job(id).parts[tier].todo.clear();
    }
}
