//! A job's work in a model's queue: added, taken, removed and put back.

use super::Scheduler;
use super::event::JobId;
use super::job::{Part, Ranges};
use crate::base::{Ns, Tier};
use std::sync::Arc;

impl Scheduler {
    /// Sets a tier's part of a job to the first `pairs` positions of an order, and queues those that are not scored
    /// yet.
    pub(super) fn enqueue_all(&mut self, id: JobId, tier: Tier, order: Option<Arc<[u32]>>, pairs: u32) {
        let part = &mut self.job(id).parts[tier];
        assert!(part.queued.is_none() && part.running == 0, "a part is replaced when idle");
        let is_same_order = part.order.is_none() && order.is_none();
        let done = if is_same_order { std::mem::take(&mut part.done) } else { Ranges::new() };
        *part = Part { order, pairs, done, ..Part::default() };
        part.todo = part.not_done();
        self.requeue(id, tier);
    }

    /// Measures the remaining work of a part and queues it.
    pub(super) fn requeue(&mut self, id: JobId, tier: Tier) {
        self.leave_queue(id, tier);
        let job = self.jobs.get_mut(&id).expect("a job that is queued is inside");
        if job.parts[tier].todo.is_empty() {
            return;
        }
        let model = job.line[tier].expect("a tier that works on a job has a model");
        let model = &mut self.models[model];
        let pairs = job.parts[tier].todo.iter().cloned().flatten().map(|place| job.pair(tier, place));
        let (mut tokens, mut work) = (0, Ns::ZERO);
        for load in pairs.chain([job.prefix(tier)]) {
            tokens += load.tokens;
            work += model.predictor.marginal(&load);
        }
        let ticket = model.queue.push(self.now, (job.tenant, id), job.due, (tokens, work));
        let part = &mut job.parts[tier];
        (part.tokens, part.work, part.queued) = (tokens, work, Some(ticket));
    }

    /// Removes a part from the queue but keeps its remaining work.
    fn leave_queue(&mut self, id: JobId, tier: Tier) {
        let job = self.jobs.get_mut(&id).expect("a job that leaves a queue is inside");
        let part = &mut job.parts[tier];
        if let Some(ticket) = part.queued.take() {
            let model = job.line[tier].expect("a part that waits has a model");
            self.models[model].queue.remove(job.tenant, ticket, (part.tokens, part.work));
            (part.tokens, part.work) = (0, Ns::ZERO);
        }
    }

    /// Drops the work of a part that is not dispatched.
    pub(super) fn withdraw(&mut self, id: JobId, tier: Tier) {
        self.leave_queue(id, tier);
        self.job(id).parts[tier].todo.clear();
    }
}
