//! Batching: which jobs a lane with room gets, and how much of each.
//!
//! An idle lane takes the waiting work at once. A busy lane that may hold a second batch waits while growth makes that
//! batch cheaper, until it is full or the lane is about to become idle, which is its latest useful start. No window is
//! configured (as in Symphony, arXiv 2308.07470).

use super::event::{Action, BatchId, Dispatch, JobId, Slice};
use super::lane::{Batch, Health, Member};
use super::model::Model;
use super::{Scheduler, Timer};
use crate::base::{LaneId, ModelId, Ns, TenantId};
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
        let idles = |&lane: &LaneId| self.lanes[lane].running.is_empty() && self.lanes[lane].has_room();
        self.models.values().any(|model| model.queue.jobs() > 0 && model.lanes.iter().any(idles))
    }

    fn fill_each(&mut self, out: &mut Vec<Action>) {
        for place in 0..self.models.len() {
            let model = self.models.id_at(place);
            if self.models[model].queue.jobs() == 0 {
                continue;
            }
            for nth in 0..self.models[model].lanes.len() {
                let lane = self.models[model].lanes[nth];
                while self.models[model].queue.jobs() > 0 && self.lanes[lane].has_room() && self.is_time(lane)
                {
                    if !self.fill(lane, out) {
                        break;
                    }
                }
            }
        }
    }

    /// Whether a lane with room should take a batch now.
    fn is_time(&mut self, lane: LaneId) -> bool {
        let lane = &self.lanes[lane];
        let Some(running) = lane.running.back() else { return true };
        let dry = running.ends.saturating_sub(REFILL_LEAD);
        let queue = &self.models[lane.model].queue;
        let grown = queue.tokens() >= lane.tokens_max || queue.work() >= self.worthwhile_ns(lane.model);
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
    fn worthwhile_ns(&self, model: ModelId) -> Ns {
        Ns(self.models[model].predictor.fixed().0.saturating_mul(OVERHEAD_MULTIPLE))
    }

    /// Forms a batch and dispatches it; false when nothing was left to run.
    fn fill(&mut self, lane_id: LaneId, out: &mut Vec<Action>) -> bool {
        let lane = &self.lanes[lane_id];
        let (model, probing) = (lane.model, lane.health == Health::Probing);
        let starts = lane.free_at(self.now);
        let tokens_max = if probing { lane.tokens_max.min(PROBE_TOKENS_MAX) } else { lane.tokens_max };
        let mut draft = Draft {
            tokens_max,
            load: Load::default(),
            members: Vec::new(),
            tightest: Ns::MAX,
            // Half of it, so that a within-share tenant that arrives now waits less.
            ns_max: match self.models[model].queue.disturbs(self.now) {
                true => Ns(self.limits.batch_ns_max.0 / 2),
                false => self.limits.batch_ns_max,
            },
            has_last: false,
            has_first: false,
            starts,
        };
        let worthwhile = self.worthwhile_ns(model);
        while let Some((tenant, id)) = self.models[model].queue.front(self.now) {
            let first = self.models[model].queue.goes_first(self.now, tenant);
            // A tenant within its share does not wait for the pairs that a flood adds to its batch.
            if draft.has_first && !first && self.models[model].predictor.predict(&draft.load) >= worthwhile {
                break;
            }
            let tier = self.jobs[&id].tier_of(model);
            if self.give_up_late(id, tier, (starts, draft.load), out) {
                continue;
            }
            draft.has_first |= first;
            // The jobs that end in this batch do not wait for the next pairs of one that no batch can hold.
            if draft.has_last && self.jobs[&id].parts[tier].work > self.limits.batch_ns_max {
                draft.ns_max = draft.ns_max.min(worthwhile);
            }
            if !self.take(&mut draft, lane_id, tenant, id) || probing {
                break;
            }
        }
        if draft.members.is_empty() {
            return false;
        }
        self.dispatch(lane_id, draft, out);
        true
    }

    /// Moves pairs of one job into the draft of a lane's batch. Returns false when the draft is full.
    fn take(&mut self, draft: &mut Draft, lane: LaneId, tenant: TenantId, id: JobId) -> bool {
        let Model { queue, predictor, .. } = &mut self.models[self.lanes[lane].model];
        let job = self.jobs.get_mut(&id).expect("a queued job is inside");
        let tier = job.tier_of(self.lanes[lane].model);
        let range = job.parts[tier].todo.first().cloned().expect("a queued part has something to do");
        let allowance = queue.allowance(tenant);
        // The first pairs of a job on each lane carry its prefix; the queue counts it with the first of all.
        let (queued, mut before) = (job.prefix(tier), draft.load);
        if !job.parts[tier].lanes.contains(&lane) {
            before.add_prefix(job.prefixes[tier]);
        }
        let fits = |load: &Load| {
            load.pairs == 1
                || load.tokens <= draft.tokens_max
                    && predictor.predict(load) <= draft.ns_max
                    && draft.starts.saturating_add(predictor.surely(load)) <= draft.tightest
        };
        let with = |mut load: Load, place| {
            load += job.pair(tier, place);
            load
        };
        let (mut end, mut taken, mut full) = (range.start, Ns::ZERO, false);
        let mut grown = before;
        // Usually all of it fits, which one prediction shows: predictions grow with each pair.
        let all = range.clone().fold(before, with);
        if job.parts[tier].work <= allowance && fits(&all) {
            (grown, end) = (all, range.end);
        }
        while end < range.end && taken < allowance {
            let load = with(grown, end);
            if !fits(&load) {
                full = true;
                break;
            }
            grown = load;
            taken += predictor.marginal(&job.pair(tier, end));
            if end == range.start {
                taken += predictor.marginal(&queued);
            }
            end += 1;
        }
        if end == range.start {
            return false;
        }
        draft.load = grown;
        let part = &mut job.parts[tier];
        if !part.lanes.contains(&lane) {
            part.lanes.push(lane);
        }
        let tokens = grown.tokens - before.tokens + queued.tokens;
        // The last pairs take all that is left, so that queued and taken work agree.
        let work = Ns((u128::from(part.work.0) * u128::from(tokens) / u128::from(part.tokens)) as u64);
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
        if finished {
            queue.remove(tenant, ticket, (tokens, work));
        } else {
            queue.take(tenant, ticket, (tokens, work));
        }
        queue.charge(self.now, tenant, work.0 as i64);
        let slice = Slice { job: id, range: range.start..end, order };
        draft.members.push(Member { slice, tenant, tier, work });
        !full
    }

    fn dispatch(&mut self, lane_id: LaneId, draft: Draft, out: &mut Vec<Action>) {
        self.batch_seq += 1;
        let id = BatchId(self.batch_seq);
        let lane = &mut self.lanes[lane_id];
        let predictor = &self.models[lane.model].predictor;
        let predicted = predictor.predict(&draft.load);
        let slices = draft.members.iter().map(|member| member.slice.clone()).collect();
        lane.running.push_back(Batch {
            id,
            tokens_max: lane.tokens_max,
            load: draft.load,
            members: draft.members,
            ends: draft.starts.saturating_add(predicted),
            ends_p99: draft.starts.saturating_add(predictor.p99(&draft.load)),
            stall_bound: self.limits.stall_ns_min.max(Ns(predicted.0.saturating_mul(STALL_FACTOR))),
        });
        if lane.running.len() == 1 {
            self.begins(lane_id);
        }
        out.push(Action::Dispatch(Dispatch { lane: lane_id, batch: id, slices }));
    }

    /// A lane's oldest batch begins behind another, which has ended: later than was predicted at its dispatch, it ends later.
    pub(super) fn follows(&mut self, lane_id: LaneId) {
        let lane = &mut self.lanes[lane_id];
        let predictor = &self.models[lane.model].predictor;
        if let Some(batch) = lane.running.front_mut() {
            batch.ends = batch.ends.max(self.now.saturating_add(predictor.predict(&batch.load)));
            batch.ends_p99 = batch.ends_p99.max(self.now.saturating_add(predictor.p99(&batch.load)));
        }
        self.begins(lane_id);
    }

    /// Sets the timer of a lane's oldest batch, which begins now. A batch behind it gets its timer when it begins.
    fn begins(&mut self, lane: LaneId) {
        let Some(batch) = self.lanes[lane].running.front() else { return };
        let (batch, until) = (batch.id, self.now.saturating_add(batch.stall_bound));
        self.set_timer(until, Timer::Stall(lane, batch));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rerank::Policy;
    use crate::sched::config::{Config, Limits};
    use crate::sched::event::{Event, Fault};
    use crate::sched::tests::{
        FALLBACK, MS, PRIMARY, TEACHER, World, config, config_without_tries, dispatched, dispatched_to,
        seeds_with_overhead,
    };
    use std::cmp::Reverse;

    const FULL: (Option<u64>, Policy) = (None, Policy::Full);
    const FLOOD: TenantId = TenantId(0);
    const CALM: TenantId = TenantId(1);

    /// A batch of the primary takes 2 ms and half a millisecond for each pair. It has grown enough at 16 ms.
    fn config_with_overhead(depth: usize) -> Config {
        let mut config = config();
        config.seeds[0] = seeds_with_overhead();
        config.lanes[0].depth = depth;
        config.limits = Limits::default();
        config
    }

    /// Uses up all savings of a tenant.
    fn spend(world: &mut World, tenant: TenantId) {
        world.sched.models[TEACHER].queue.charge(world.now, tenant, 2_000_000_000);
    }

    /// The jobs of a batch with their pairs.
    fn pairs(dispatch: &Dispatch) -> Vec<(u64, u32)> {
        let mut jobs: Vec<(u64, u32)> = Vec::new();
        for Slice { job, range, .. } in &dispatch.slices {
            match jobs.iter_mut().find(|(known, _)| *known == job.0) {
                Some((_, pairs)) => *pairs += range.end - range.start,
                None => jobs.push((job.0, range.end - range.start)),
            }
        }
        jobs
    }

    /// The next batch of the primary, once the present one ends as predicted.
    fn next(world: &mut World) -> Vec<(u64, u32)> {
        pairs(&dispatched_to(&world.end(PRIMARY), PRIMARY))
    }

    #[test]
    fn a_busy_lane_takes_little_work_just_before_it_is_idle() {
        let mut world = World::new(config_with_overhead(2));
        world.arrive(1, 20, None, Policy::Full);
        let ends = world.sched.lanes[PRIMARY].running[0].ends;
        for job in [2, 3] {
            assert_eq!(dispatched(&world.arrive(job, 2, None, Policy::Full)), None);
        }
        let is_refill = |Reverse((at, _, timer)): &Reverse<(Ns, u64, Timer)>| {
            *timer == Timer::Refill && *at == ends - REFILL_LEAD
        };
        assert_eq!(world.sched.timers.iter().filter(|timer| is_refill(timer)).count(), 1);
        assert_eq!(world.sched.next_wake(), Some(ends - REFILL_LEAD));
        world.now = ends - REFILL_LEAD - Ns(1);
        assert_eq!(dispatched(&world.step(Event::Tick)), None);
        world.now = ends - REFILL_LEAD;
        let behind = dispatched(&world.step(Event::Tick)).unwrap();
        assert_eq!(pairs(&behind), [(2, 2), (3, 2)]);
        // It starts when the first one ends.
        let load = Load::of([100; 4]);
        let (predicted, p99) = (
            world.sched.models[TEACHER].predictor.predict(&load),
            world.sched.models[TEACHER].predictor.p99(&load),
        );
        let batch = &world.sched.lanes[PRIMARY].running[1];
        assert_eq!((batch.ends, batch.ends_p99), (ends + predicted, ends + p99));
    }

    #[test]
    fn a_busy_lane_takes_a_batch_that_has_grown_enough() {
        // By time.
        let mut world = World::new(config_with_overhead(2));
        world.arrive(0, 20, None, Policy::Full);
        let worthwhile = world.sched.worthwhile_ns(TEACHER);
        assert!((Ns(15 * MS)..Ns(17 * MS)).contains(&worthwhile), "{worthwhile:?}");
        let marginal = world.sched.models[TEACHER].predictor.marginal(&Load::of([100]));
        let mut waiting = Ns::ZERO;
        for job in 1.. {
            waiting += marginal;
            let is_dispatched = dispatched(&world.arrive(job, 1, None, Policy::Full)).is_some();
            assert_eq!(is_dispatched, waiting >= worthwhile, "{waiting:?}");
            if is_dispatched {
                break;
            }
        }
        // By tokens.
        for (tokens_max, is_dispatched) in [(201, false), (200, true)] {
            let mut world = World::new(config_with_overhead(2));
            world.arrive(1, 1, None, Policy::Full);
            world.sched.lanes[PRIMARY].tokens_max = tokens_max;
            assert_eq!(dispatched(&world.arrive(2, 2, None, Policy::Full)).is_some(), is_dispatched);
        }
        // Not beyond the share of its tenant.
        let mut world = World::new(config_with_overhead(2));
        world.arrive(1, 20, None, Policy::Full);
        spend(&mut world, FLOOD);
        assert_eq!(dispatched(&world.arrive(2, 100, None, Policy::Full)), None);
    }

    #[test]
    fn a_flood_gets_half_a_batch_while_a_tenant_within_its_share_was_active_lately() {
        for (was_active, waits_ms, expected) in [(true, 999, 5), (true, 1_000, 10), (false, 500, 10)] {
            let mut world = World::new(config());
            world.now = Ns(MS);
            world.step(Event::Tick);
            if was_active {
                world.sched.models[TEACHER].queue.charge(world.now, CALM, 1);
            }
            world.wait(waits_ms);
            spend(&mut world, FLOOD);
            let flood = dispatched(&world.arrive(1, 100, None, Policy::Full)).unwrap();
            assert_eq!(pairs(&flood), [(1, expected)], "{was_active}, {waits_ms}");
        }
    }

    #[test]
    fn a_batch_of_a_tenant_with_priority_is_not_filled_up_by_a_flood() {
        // The second tenant's jobs take at least 16 ms together, or less.
        for (job_2, job_3, expected) in [
            (4, 30, vec![(2, 4), (3, 30)]),
            (12, 20, vec![(2, 12), (3, 20)]),
            (30, 34, vec![(2, 30), (3, 10)]),
            (2, 3, vec![(2, 2), (3, 3), (1, 20)]),
        ] {
            let mut world = World::new(config_with_overhead(1));
            world.arrive(9, 1, None, Policy::Full);
            spend(&mut world, FLOOD);
            world.arrive(1, 20, None, Policy::Full);
            world.arrive_of(CALM, 2, job_2, FULL);
            world.arrive_of(CALM, 3, job_3, FULL);
            assert_eq!(next(&mut world), expected);
        }
    }

    #[test]
    fn a_batch_in_which_a_job_ends_is_not_filled_up_by_one_that_no_batch_can_hold() {
        // 40 pairs fit, and 28 take 16 ms.
        for (jobs, expected) in [
            (vec![(1, 2), (2, 90)], vec![(1, 2), (2, 38)]),
            (vec![(1, 2), (2, 200)], vec![(1, 2), (2, 26)]),
            (vec![(2, 200)], vec![(2, 40)]),
        ] {
            let mut world = World::new(config_with_overhead(1));
            world.arrive(9, 1, None, Policy::Full);
            for (job, pairs) in jobs {
                world.arrive(job, pairs, None, Policy::Full);
            }
            assert_eq!(next(&mut world), expected);
        }
    }

    #[test]
    fn a_probe_is_one_job_s_and_small() {
        for (waiting, expected) in [(2, 2), (10, 5)] {
            let mut world = World::new(config());
            let failing = dispatched(&world.arrive(1, waiting, None, Policy::Full)).unwrap();
            world.arrive(2, waiting + 1, None, Policy::Full);
            world.done(PRIMARY, failing.batch, Err(Fault::Failed));
            world.step(Event::LaneUp { lane: PRIMARY });
            assert_eq!(pairs(&dispatched_to(&world.wait(150), PRIMARY)), [(1, expected)]);
        }
    }

    #[test]
    fn a_batch_grows_no_further_than_its_tightest_deadline_allows() {
        let surely = |world: &World, pairs: usize| {
            world.sched.models[TEACHER].predictor.surely(&Load::of(vec![100; pairs]))
        };
        // Job 1 ends in the batch and leaves time for seven pairs; job 2 has more time, or as much as it wants.
        for (limits, expected) in [
            ([None, None], vec![(1, 2), (2, 3), (3, 5)]),
            ([Some(7), None], vec![(1, 2), (2, 3), (3, 2)]),
            ([Some(7), Some(9)], vec![(1, 2), (2, 3), (3, 2)]),
            ([Some(9), Some(7)], vec![(1, 2), (2, 3), (3, 2)]),
        ] {
            let mut world = World::new(config_without_tries());
            world.arrive(9, 1, None, Policy::Full);
            for (job, pairs) in [(1, 2), (2, 3), (3, 10)] {
                world.arrive(job, pairs, None, Policy::Full);
            }
            for (job, limit) in [1, 2].into_iter().zip(limits) {
                let deadline = limit.map(|pairs| surely(&world, pairs));
                world.sched.job(JobId(job)).deadline = deadline;
            }
            assert_eq!(next(&mut world), expected, "{limits:?}");
        }
    }

    #[test]
    fn a_job_that_is_late_behind_the_others_in_its_batch_goes_to_the_fallback() {
        // The fallback's lane comes second, or first.
        for swap in [false, true] {
            let mut config = config_without_tries();
            let [mut primary, mut fallback] = [PRIMARY, FALLBACK];
            if swap {
                config.lanes.swap(0, 1);
                std::mem::swap(&mut primary, &mut fallback);
            }
            let mut world = World::new(config);
            world.arrive(9, 1, None, Policy::Full);
            world.arrive(1, 5, None, Policy::Full);
            world.arrive(2, 5, None, Policy::Auto);
            // Alone it takes 5.5 ms with the margin, and behind job 1 11 ms.
            world.sched.job(JobId(2)).deadline = Some(Ns(8 * MS));
            let actions = world.end(primary);
            assert_eq!(pairs(&dispatched_to(&actions, primary)), [(1, 5)]);
            assert_eq!(pairs(&dispatched_to(&actions, fallback)), [(2, 5)]);
        }
    }

    #[test]
    fn tenants_without_savings_take_turns_within_a_batch() {
        let mut world = World::new(config());
        world.arrive(9, 1, None, Policy::Full);
        for tenant in [FLOOD, CALM] {
            spend(&mut world, tenant);
            world.arrive_of(tenant, u64::from(tenant.0), 10, FULL);
        }
        // A turn is a quarter of a batch: 2.5 ms, of which the third pair takes more than is left.
        let batch = dispatched_to(&world.end(PRIMARY), PRIMARY);
        let turns: Vec<_> = batch.slices.iter().map(|slice| (slice.job.0, slice.range.clone())).collect();
        assert_eq!(turns, [(0, 0..3), (1, 0..3), (0, 3..5), (1, 3..5)]);
    }
}
