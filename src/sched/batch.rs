//! Batching: which jobs a lane with room gets, and how much of each.
//!
//! An idle lane takes the waiting work at once. A busy lane that may hold a second batch waits while growth makes that
//! batch cheaper, until it is full or the lane is about to become idle, which is its latest useful start. No window is
//! configured (as in Symphony, arXiv 2308.07470).

use super::event::{Action, BatchId, Dispatch, JobId, LaneId, Slice};
use super::lane::{Batch, Health, Lane, Member};
use super::{Scheduler, Timer};
use crate::base::{Ns, TenantId, Tier};
use crate::forecast::predict::Load;

/// The lead time before a lane becomes idle: the host's share of a dispatch.
const REFILL_LEAD: Ns = Ns(500_000);
/// A batch has grown enough once its predicted time is this multiple of the fixed overhead of a batch: a ninth of it is
/// overhead then, and a larger batch only delays the answers of the jobs in it.
const OVERHEAD_MULTIPLE: u64 = 8;
/// Most tokens of a batch on a probing lane.
const PROBE_TOKENS_MAX: u64 = 512;
/// A batch past its stall bound is given up after this many times its prediction, or later.
const STALL_FACTOR: u64 = 20;

/// A batch that is being formed.
struct Draft {
    tokens_max: u64,
    load: Load,
    members: Vec<Member>,
    /// The earliest deadline of a job that ends in this batch. Growth must not pass it.
    tightest: Ns,
    /// Longest predicted time.
    ns_max: Ns,
    /// Whether a job ends in this batch.
    has_last: bool,
    /// Whether it has work of a tenant with priority over others.
    has_first: bool,
    starts: Ns,
}

impl Scheduler {
    pub(super) fn fill_lanes(&mut self, out: &mut Vec<Action>) {
        self.fill_each(out);
        // A job that one tier gave up may be work for an idle lane of the other tier.
        while self.idles() {
            self.fill_each(out);
        }
    }

    /// Whether a lane is idle and could work.
    pub(super) fn idles(&self) -> bool {
        let idles =
            |lane: &Lane| lane.running.is_empty() && lane.has_room() && self.queues[lane.tier].jobs() > 0;
        self.lanes.iter().any(idles)
    }

    fn fill_each(&mut self, out: &mut Vec<Action>) {
        for index in 0..self.lanes.len() {
            let tier = self.lanes[index].tier;
            while self.queues[tier].jobs() > 0 && self.lanes[index].has_room() && self.is_time(index) {
                if !self.fill(LaneId(index as u32), out) {
                    break;
                }
            }
        }
    }

    /// Whether a lane with room should take a batch now.
    fn is_time(&mut self, index: usize) -> bool {
        let lane = &self.lanes[index];
        let Some(running) = lane.running.back() else { return true };
        let dry = running.ends.saturating_sub(REFILL_LEAD);
        let queue = &self.queues[lane.tier];
        let grown = queue.tokens() >= lane.tokens_max || queue.work() >= self.worthwhile_ns(lane.tier);
        // Work of a tenant beyond its share waits until the last moment, which leaves room for others.
        if dry <= self.now || grown && queue.all_within_share(self.now) {
            return true;
        }
        if dry < self.refill_at {
            self.refill_at = dry;
            self.set_timer(dry, Timer::Refill);
        }
        false
    }

    /// The predicted time of a batch that has grown enough.
    fn worthwhile_ns(&self, tier: Tier) -> Ns {
        Ns(self.predictors[tier].fixed().0.saturating_mul(OVERHEAD_MULTIPLE))
    }

    /// Forms a batch and dispatches it; false when nothing was left to run.
    fn fill(&mut self, lane_id: LaneId, out: &mut Vec<Action>) -> bool {
        let lane = &self.lanes[lane_id.0 as usize];
        let (tier, probing) = (lane.tier, lane.health == Health::Probing);
        let starts = lane.free_at(self.now);
        let tokens_max = if probing { lane.tokens_max.min(PROBE_TOKENS_MAX) } else { lane.tokens_max };
        let mut draft = Draft {
            tokens_max,
            load: Load::default(),
            members: Vec::new(),
            tightest: Ns::MAX,
            // Half of it, so that a within-share tenant that arrives now waits less.
            ns_max: match self.queues[tier].disturbs(self.now) {
                true => Ns(self.limits.batch_ns_max.0 / 2),
                false => self.limits.batch_ns_max,
            },
            has_last: false,
            has_first: false,
            starts,
        };
        let worthwhile = self.worthwhile_ns(tier);
        while let Some((tenant, id)) = self.queues[tier].front(self.now) {
            let first = self.queues[tier].goes_first(self.now, tenant);
            // A tenant within its share does not wait for the pairs that a flood adds to its batch.
            if draft.has_first && !first && self.predictors[tier].predict(&draft.load) >= worthwhile {
                break;
            }
            if self.give_up_late(id, tier, (starts, draft.load), out) {
                continue;
            }
            draft.has_first |= first;
            // The jobs that end in this batch do not wait for the next pairs of one that no batch can hold.
            if draft.has_last && self.jobs[&id].parts[tier].work > self.limits.batch_ns_max {
                draft.ns_max = draft.ns_max.min(worthwhile);
            }
            if !self.take(&mut draft, tier, tenant, id) || probing {
                break;
            }
        }
        if draft.members.is_empty() {
            return false;
        }
        self.dispatch(lane_id, draft, out);
        true
    }

    /// Moves pairs of one job into the draft. Returns false when the draft is full.
    fn take(&mut self, draft: &mut Draft, tier: Tier, tenant: TenantId, id: JobId) -> bool {
        let predictor = &self.predictors[tier];
        let job = self.jobs.get_mut(&id).expect("a queued job is inside");
        let range = job.parts[tier].todo.first().cloned().expect("a queued part has something to do");
        let allowance = self.queues[tier].allowance(tenant);
        let before = draft.load;
        let fits = |load: &Load| {
            load.pairs == 1
                || load.tokens <= draft.tokens_max
                    && predictor.predict(load) <= draft.ns_max
                    && draft.starts.saturating_add(predictor.surely(load)) <= draft.tightest
        };
        let with = |mut load: Load, place| {
            load.add(job.length(tier, place));
            load
        };
        let (mut end, mut taken, mut full) = (range.start, Ns::ZERO, false);
        // Usually all of it fits, which one prediction shows: predictions grow with each pair.
        let all = range.clone().fold(draft.load, with);
        if job.parts[tier].work <= allowance && fits(&all) {
            (draft.load, end) = (all, range.end);
        }
        while end < range.end && taken < allowance {
            let load = with(draft.load, end);
            if !fits(&load) {
                full = true;
                break;
            }
            draft.load = load;
            taken += predictor.marginal(job.length(tier, end));
            end += 1;
        }
        if end == range.start {
            return false;
        }
        let part = &mut job.parts[tier];
        let tokens = draft.load.tokens - before.tokens;
        // The last pairs take the rounding remainder, so that queued and taken work agree.
        let work = if tokens == part.tokens {
            part.work
        } else {
            Ns((u128::from(part.work.0) * u128::from(tokens) / u128::from(part.tokens)) as u64)
        };
        let ticket = part.queued.expect("a queued part has a ticket");
        part.tokens -= tokens;
        part.work -= work;
        part.running += end - range.start;
        let order = part.order.clone();
        if end < range.end {
            part.todo[0].start = end;
        } else {
            part.todo.remove(0);
        }
        let finished = part.todo.is_empty();
        if finished {
            part.queued = None;
            draft.has_last = true;
            draft.tightest = draft.tightest.min(job.deadline.unwrap_or(Ns::MAX));
        }
        job.batches += 1;
        if job.batches == 1 {
            job.busy_since = self.now;
        }
        let queue = &mut self.queues[tier];
        if finished {
            queue.remove(tenant, ticket, (tokens, work));
        } else {
            queue.take(tenant, ticket, (tokens, work));
        }
        queue.charge(self.now, tenant, work.0 as i64);
        let slice = Slice { job: id, range: range.start..end, order };
        draft.members.push(Member { slice, tenant, work });
        !full
    }

    fn dispatch(&mut self, lane_id: LaneId, draft: Draft, out: &mut Vec<Action>) {
        self.batch_seq += 1;
        let id = BatchId(self.batch_seq);
        let lane = &mut self.lanes[lane_id.0 as usize];
        let predictor = &self.predictors[lane.tier];
        let predicted = predictor.predict(&draft.load);
        let slices = draft.members.iter().map(|member| member.slice.clone()).collect();
        lane.running.push_back(Batch {
            id,
            tokens_max: lane.tokens_max,
            load: draft.load,
            members: draft.members,
            ends: draft.starts.saturating_add(predicted),
            ends_p99: draft.starts.saturating_add(predictor.p99(&draft.load)),
        });
        let bound = self.limits.stall_ns_min.max(Ns(predicted.0.saturating_mul(STALL_FACTOR)));
        self.set_timer(draft.starts.saturating_add(bound), Timer::Stall(lane_id, id));
        out.push(Action::Dispatch(Dispatch { lane: lane_id, batch: id, slices }));
    }
}
