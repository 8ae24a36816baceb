//! Hand-written scenarios: one primary lane at 1 ms per pair of 100 tokens, one fallback lane ten times as fast. The
//! simulation covers random ones.

use super::*;
use crate::base::PerTier;
use crate::forecast::predict::{Load, Measured};
use crate::rerank::{Policy, Priority};
use std::collections::VecDeque;
use std::sync::Arc;

pub(super) const PRIMARY: LaneId = LaneId(0);
pub(super) const FALLBACK: LaneId = LaneId(1);
/// A second lane of the teacher, where a configuration has one.
pub(super) const THIRD: LaneId = LaneId(2);
pub(super) const TEACHER: ModelId = ModelId(0);
pub(super) const STUDENT: ModelId = ModelId(1);
pub(super) const MS: u64 = 1_000_000;

pub(super) fn model_of(tier: Tier) -> ModelId {
    match tier {
        Tier::Primary => TEACHER,
        Tier::Fallback => STUDENT,
    }
}

/// A request with the pairs of each tier; a tier without lengths has no part in it.
pub(super) fn asks(lengths: PerTier<&[u32]>) -> PerTier<Option<Ask>> {
    PerTier::from_fn(|tier| {
        let ask = Ask { model: model_of(tier), prefix: 0, lengths: lengths[tier].into() };
        (!ask.lengths.is_empty()).then_some(ask)
    })
}

/// A scheduler, its clock and all of its actions so far.
pub(super) struct World {
    pub sched: Scheduler,
    pub now: Ns,
    pub actions: Vec<Action>,
}

pub(super) fn seeds(pair_ns: u64) -> Vec<Measured> {
    (0..8)
        .map(|power| {
            let load = Load::of(vec![100; 1 << power]);
            Measured { load, took: DeviceNs(pair_ns << power) }
        })
        .collect()
}

/// Warm-up runs in which a batch takes 2 ms, and half a millisecond for each pair.
pub(super) fn seeds_with_overhead() -> Vec<Measured> {
    let took = |load: &Load| DeviceNs(2 * MS + u64::from(load.pairs) * MS / 2);
    seeds(0).into_iter().map(|seed| Measured { took: took(&seed.load), ..seed }).collect()
}

pub(super) fn config() -> Config {
    let lane = |model, on| LaneConfig { model, on: DeviceId(on), batch_tokens_max: 4096, depth: 1 };
    Config {
        lanes: vec![lane(TEACHER, 0), lane(STUDENT, 1)],
        tenants: vec![TenantConfig::default(), TenantConfig::default()],
        seeds: vec![seeds(MS), seeds(MS / 10)],
        limits: Limits { batch_ns_max: Ns::from_millis(10), ..Limits::default() },
    }
}

/// A configuration in which no tier is tried that is predicted late.
pub(super) fn config_without_tries() -> Config {
    let mut config = config();
    (config.limits.hedges_burst, config.limits.hedges_permille) = (0, 0);
    config
}

impl World {
    pub fn new(config: Config) -> Self {
        let mut world = Self { sched: Scheduler::new(&config), now: Ns::ZERO, actions: Vec::new() };
        for lane in 0..config.lanes.len() as u32 {
            world.step(Event::LaneUp { lane: LaneId(lane) });
        }
        world
    }

    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.sched.step(self.now, event, &mut out);
        self.sched.check();
        self.actions.extend(out.iter().cloned());
        out
    }

    pub fn wait(&mut self, millis: u64) -> Vec<Action> {
        self.now += Ns::from_millis(millis);
        self.step(Event::Tick)
    }

    pub fn arrive(&mut self, id: u64, pairs: usize, budget_ms: Option<u64>, policy: Policy) -> Vec<Action> {
        self.arrive_of(TenantId(0), id, pairs, (budget_ms, policy))
    }

    /// A job of any tenant; a pair has 100 tokens.
    pub fn arrive_of(
        &mut self,
        tenant: TenantId,
        id: u64,
        pairs: usize,
        (budget_ms, policy): (Option<u64>, Policy),
    ) -> Vec<Action> {
        let arrival = self.arrival(pairs);
        let deadline = budget_ms.map(|budget| self.now + Ns::from_millis(budget));
        self.step(Event::Arrive(vec![Arrival { job: JobId(id), tenant, policy, deadline, ..arrival }]))
    }

    /// A request of the first tenant for both models, without a budget.
    fn arrival(&self, pairs: usize) -> Arrival {
        let lengths: Arc<[u32]> = vec![100; pairs].into();
        let ask = |model| Ask { model, prefix: 0, lengths: lengths.clone() };
        Arrival {
            job: JobId(1),
            tenant: TenantId(0),
            priority: Priority::Normal,
            policy: Policy::Auto,
            arrived: self.now,
            deadline: None,
            top_k: None,
            pairs: pairs as u32,
            primaries: [ask(TEACHER)].into(),
            fallback: Some(ask(STUDENT)),
        }
    }

    pub fn done(&mut self, lane: LaneId, batch: BatchId, result: Result<(), Fault>) -> Vec<Action> {
        self.step(Event::Done(Done { lane, batch, device: DeviceNs(5 * MS), took: Ns(5 * MS), result }))
    }

    /// Ends a lane's oldest batch after the time that was predicted for it, so that nothing is learned.
    pub fn end(&mut self, lane: LaneId) -> Vec<Action> {
        let Lane { model, running, .. } = &self.sched.lanes[lane];
        let batch = running.front().expect("a batch that ends is running");
        let (took, batch) = (self.sched.predictor(*model).predict(&batch.load), batch.id);
        self.step(Event::Done(Done { lane, batch, device: DeviceNs(took.0), took, result: Ok(()) }))
    }

    pub fn rank(&mut self, job: u64, pairs: u32) -> Vec<Action> {
        self.step(Event::Ranked { job: JobId(job), order: (0..pairs).rev().collect() })
    }

    /// Ends every batch at once until nothing more is dispatched.
    pub fn run_all(&mut self, actions: Vec<Action>) {
        let mut left = VecDeque::from(actions);
        while let Some(action) = left.pop_front() {
            if let Action::Dispatch(dispatch) = action {
                left.extend(self.done(dispatch.lane, dispatch.batch, Ok(())));
            }
        }
    }

    pub fn answers(&self) -> Vec<(u64, Served, Option<Degradation>)> {
        self.actions
            .iter()
            .filter_map(|action| match action {
                Action::Answer { job, answer } => Some((job.0, answer.served, answer.degraded)),
                _ => None,
            })
            .collect()
    }

    pub fn refusals(&self) -> Vec<(u64, Refusal)> {
        self.actions
            .iter()
            .filter_map(|action| match action {
                Action::Refuse { job, refusal } => Some((job.0, refusal.clone())),
                _ => None,
            })
            .collect()
    }
}

pub(super) fn dispatched(actions: &[Action]) -> Option<Dispatch> {
    actions.iter().find_map(|action| match action {
        Action::Dispatch(dispatch) => Some(dispatch.clone()),
        _ => None,
    })
}

pub(super) fn dispatched_to(actions: &[Action], lane: LaneId) -> Dispatch {
    actions
        .iter()
        .find_map(|action| match action {
            Action::Dispatch(dispatch) if dispatch.lane == lane => Some(dispatch.clone()),
            _ => None,
        })
        .unwrap_or_else(|| panic!("no dispatch to {lane:?} in {actions:?}"))
}

#[test]
fn an_idle_lane_takes_work_at_once() {
    let mut world = World::new(config());
    let dispatch = dispatched(&world.arrive(1, 4, None, Policy::Auto)).unwrap();
    assert_eq!((dispatch.lane, dispatch.slices[0].range.clone()), (PRIMARY, 0..4));
    world.done(PRIMARY, dispatch.batch, Ok(()));
    assert_eq!(world.answers(), [(1, Served::Full, None)]);
}

#[test]
fn an_empty_request_is_answered_without_a_lane() {
    let mut world = World::new(config());
    world.arrive(1, 0, Some(10), Policy::Auto);
    assert_eq!(world.answers(), [(1, Served::Full, None)]);
}

#[test]
fn a_large_request_is_split_and_answered_once() {
    let mut world = World::new(config());
    let first = world.arrive(1, 500, None, Policy::Auto);
    assert!(dispatched(&first).unwrap().slices[0].range.end <= 11);
    world.run_all(first);
    assert_eq!(world.answers(), [(1, Served::Full, None)]);
}

#[test]
fn a_prefix_is_part_of_the_first_slice_on_each_lane() {
    let mut config = config();
    config.lanes.push(LaneConfig { on: DeviceId(2), ..config.lanes[0] });
    let (mut world, other) = (World::new(config), THIRD);
    let primaries = [Ask { model: TEACHER, prefix: 70, lengths: Arc::from([100; 40]) }].into();
    let (job, tenant, priority, policy) = (JobId(1), TenantId(0), Priority::Normal, Policy::Full);
    let (arrived, deadline, top_k, pairs, fallback) = (Ns::ZERO, None, None, 40, None);
    let arrival =
        Arrival { job, tenant, priority, policy, arrived, deadline, top_k, pairs, primaries, fallback };
    let out = world.step(Event::Arrive(vec![arrival]));
    let ran = |world: &World, out: &[Action], lane: LaneId| {
        let (dispatch, batch) = (dispatched_to(out, lane), &world.sched.lanes[lane].running[0]);
        let pairs = dispatch.slices[0].range.len() as u64;
        assert_eq!((batch.id, batch.load.pairs as u64), (dispatch.batch, pairs));
        (dispatch, batch.load.tokens - 100 * pairs)
    };
    let ((first, first_prefix), (second, second_prefix)) =
        (ran(&world, &out, PRIMARY), ran(&world, &out, other));
    assert_eq!((first_prefix, second_prefix), (70, 70));
    assert_eq!(world.sched.gauge(TEACHER).tokens, 100 * (40 - second.slices[0].range.end as u64));
    // A lane that has run the job has its prefix, whatever the other one has run since.
    let out = world.done(PRIMARY, first.batch, Ok(()));
    let (third, prefix) = ran(&world, &out, PRIMARY);
    assert_eq!(prefix, 0);
    // After a fault it is computed again.
    world.done(PRIMARY, third.batch, Err(Fault::Failed));
    let out = world.done(other, second.batch, Ok(()));
    assert_eq!(ran(&world, &out, other).1, 70);
}

#[test]
fn requests_share_a_batch() {
    let mut world = World::new(config());
    let first = dispatched(&world.arrive(1, 2, None, Policy::Auto)).unwrap();
    world.arrive(2, 2, None, Policy::Auto);
    world.arrive(3, 2, None, Policy::Auto);
    let second = dispatched(&world.done(PRIMARY, first.batch, Ok(()))).unwrap();
    assert_eq!(second.slices.iter().map(|slice| slice.job.0).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_spent_budget_is_refused_at_once() {
    let mut world = World::new(config());
    world.now = Ns::from_millis(50);
    world.arrive(1, 2, Some(0), Policy::Auto);
    let refusals = world.refusals();
    let [(1, Refusal::BudgetSpent { needed })] = refusals[..] else { panic!("{refusals:?}") };
    assert!(needed > Limits::default().answer_ns_margin, "{needed:?}");
}

#[test]
fn a_budget_too_short_for_the_primary_gets_a_top_k() {
    let mut world = World::new(config_without_tries());
    let first = dispatched(&world.arrive(1, 100, Some(60), Policy::Auto)).unwrap();
    assert_eq!(first.lane, FALLBACK);
    let mut actions = world.done(FALLBACK, first.batch, Ok(()));
    while !actions.contains(&Action::Rank { job: JobId(1) }) {
        let dispatch = dispatched(&actions).unwrap();
        actions = world.done(dispatch.lane, dispatch.batch, Ok(()));
    }
    let actions = world.rank(1, 100);
    assert_eq!(dispatched(&actions).unwrap().slices[0].candidates().next(), Some(99));
    world.run_all(actions);
    let [(1, Served::TopK { k }, Some(Degradation::PredictedLate))] = world.answers()[..] else {
        panic!("{:?}", world.answers());
    };
    assert!((30..60).contains(&k), "{k}");
}

#[test]
fn a_budget_too_short_for_any_tier_is_refused_with_the_drain_time() {
    let mut world = World::new(config());
    world.arrive(1, 400, None, Policy::Auto);
    world.arrive(2, 4_000, None, Policy::Fallback);
    world.arrive(3, 2, Some(4), Policy::Auto);
    let [(3, Refusal::BudgetTooShortNow { retry_after })] = &world.refusals()[..] else {
        panic!("{:?}", world.refusals());
    };
    assert!(retry_after.0 > 300 * MS, "{retry_after:?}");
}

#[test]
fn a_budget_that_no_idle_tier_meets_is_refused_with_what_is_needed() {
    for (policy, least, most) in [(Policy::Auto, 8, 100), (Policy::TopK, 8, 100), (Policy::Full, 300, 1_000)]
    {
        let mut world = World::new(config_without_tries());
        world.arrive(1, 400, Some(8), policy);
        let [(1, Refusal::BudgetTooShort { needed })] = &world.refusals()[..] else {
            panic!("{:?}", world.refusals());
        };
        assert!((least * MS..most * MS).contains(&needed.0), "{policy:?}: {needed:?}");
    }
}

#[test]
fn policies_hold() {
    let mut world = World::new(config_without_tries());
    let fallback = dispatched(&world.arrive(1, 2, None, Policy::Fallback)).unwrap();
    assert_eq!(fallback.lane, FALLBACK);
    world.done(FALLBACK, fallback.batch, Ok(()));
    world.arrive(2, 100, Some(20), Policy::Full);
    assert_eq!(world.answers(), [(1, Served::Fallback, None)]);
    assert_eq!(world.sched.stats().hedges_won, 0, "it was no race");
    assert!(matches!(world.refusals()[..], [(2, Refusal::BudgetTooShort { .. })]));
}

#[test]
fn a_top_k_without_a_budget_takes_the_default_k() {
    let mut world = World::new(config());
    let mut actions = world.arrive(1, 50, None, Policy::TopK);
    while !actions.contains(&Action::Rank { job: JobId(1) }) {
        let dispatch = dispatched(&actions).unwrap();
        actions = world.done(dispatch.lane, dispatch.batch, Ok(()));
    }
    let actions = world.rank(1, 50);
    world.run_all(actions);
    assert_eq!(world.answers(), [(1, Served::TopK { k: 20 }, None)]);
}

#[test]
fn without_a_budget_a_request_waits_for_the_primary_or_is_refused_and_gets_no_less() {
    for policy in [Policy::Auto, Policy::Full, Policy::TopK] {
        let mut config = config();
        config.limits.wait_ns_max = Ns::from_millis(100);
        let mut world = World::new(config);
        // Each takes the primary 20 ms, so that about five wait within the bound.
        let first = world.arrive(0, 20, None, Policy::Full);
        for job in 1..12 {
            world.arrive(job, 20, None, policy);
        }
        let refused: Vec<u64> = world.refusals().iter().map(|(job, _)| *job).collect();
        let overloaded = |(_, refusal): &(u64, Refusal)| matches!(refusal, Refusal::Overloaded { retry_after } if *retry_after >= Ns::from_millis(1));
        assert!(world.refusals().iter().all(overloaded), "{:?}", world.refusals());
        if policy != Policy::TopK {
            assert!((4..=8).contains(&refused.len()), "{policy:?}: {refused:?}");
            world.run_all(first);
            let full = world.answers().iter().all(|(_, served, why)| (*served, *why) == (Served::Full, None));
            assert!(full && world.answers().len() + refused.len() == 12, "{:?}", world.answers());
        }
    }
}

#[test]
fn without_a_budget_a_request_s_own_work_is_no_wait() {
    let mut config = config();
    config.limits.wait_ns_max = Ns::from_millis(100);
    let mut world = World::new(config);
    let first = world.arrive(1, 500, None, Policy::Auto);
    world.run_all(first);
    assert_eq!(world.answers(), [(1, Served::Full, None)]);
}

#[test]
fn a_top_k_without_a_budget_is_not_cut_by_the_wait() {
    let mut config = config();
    config.limits.wait_ns_max = Ns::from_millis(5);
    let mut world = World::new(config);
    let first = dispatched_to(&world.arrive(2, 300, None, Policy::TopK), FALLBACK);
    // By the time of the order the primary is busy for longer than the bound.
    let busy = world.arrive(1, 40, None, Policy::Full);
    let mut actions = world.done(FALLBACK, first.batch, Ok(()));
    while !actions.contains(&Action::Rank { job: JobId(2) }) {
        let dispatch = dispatched_to(&actions, FALLBACK);
        actions = world.done(dispatch.lane, dispatch.batch, Ok(()));
    }
    world.rank(2, 300);
    world.run_all(busy);
    assert!(world.answers().contains(&(2, Served::TopK { k: 20 }, None)), "{:?}", world.answers());
}

#[test]
fn what_the_primary_has_not_begun_is_withdrawn_when_it_turns_out_late() {
    let mut world = World::new(config());
    let stuck = dispatched(&world.arrive(1, 10, None, Policy::Auto)).unwrap();
    world.arrive(2, 10, Some(60), Policy::Auto);
    let actions = world.wait(47);
    let hedge = dispatched_to(&actions, FALLBACK);
    assert_eq!(hedge.slices[0].job, JobId(2));
    world.done(FALLBACK, hedge.batch, Ok(()));
    assert_eq!(world.answers(), [(2, Served::Fallback, Some(Degradation::PrimaryLate))]);
    assert_eq!(world.sched.stats().discarded, DeviceNs::ZERO);
    world.done(PRIMARY, stuck.batch, Ok(()));
    assert_eq!(world.answers().len(), 2);
}

#[test]
fn a_race_goes_to_the_primary_if_it_makes_the_budget_after_all() {
    let mut world = World::new(config());
    let primary = dispatched(&world.arrive(1, 10, Some(30), Policy::Auto)).unwrap();
    let hedge = dispatched_to(&world.wait(24), FALLBACK);
    world.done(FALLBACK, hedge.batch, Ok(()));
    assert!(world.answers().is_empty(), "the better answer is awaited until the last moment");
    world.done(PRIMARY, primary.batch, Ok(()));
    assert_eq!(world.answers(), [(1, Served::Full, None)]);
    assert_eq!((world.sched.stats().hedges, world.sched.stats().hedges_won), (1, 0));
}

#[test]
fn a_race_goes_to_the_fallback_at_the_last_moment() {
    let mut world = World::new(config());
    let primary = dispatched(&world.arrive(1, 10, Some(30), Policy::Auto)).unwrap();
    let hedge = dispatched_to(&world.wait(24), FALLBACK);
    world.done(FALLBACK, hedge.batch, Ok(()));
    world.wait(3);
    assert_eq!(world.answers(), [(1, Served::Fallback, Some(Degradation::PrimaryLate))]);
    assert_eq!((world.sched.stats().hedges, world.sched.stats().hedges_won), (1, 1));
    world.done(PRIMARY, primary.batch, Ok(()));
    assert_eq!(world.sched.stats().discarded, DeviceNs(5 * MS));
}

#[test]
fn hedges_are_capped() {
    let mut config = config();
    config.limits.hedges_burst = 0;
    let mut world = World::new(config);
    let primary = dispatched(&world.arrive(1, 10, Some(30), Policy::Auto)).unwrap();
    assert_eq!(world.wait(24), []);
    world.wait(20);
    world.done(PRIMARY, primary.batch, Ok(()));
    assert_eq!(world.answers(), [(1, Served::Full, Some(Degradation::Late))]);
}

#[test]
fn a_top_k_that_is_cut_short_answers_with_what_came_back() {
    let mut world = World::new(config());
    let mut actions = world.arrive(1, 40, Some(40), Policy::TopK);
    while !actions.contains(&Action::Rank { job: JobId(1) }) {
        let dispatch = dispatched(&actions).unwrap();
        actions = world.done(dispatch.lane, dispatch.batch, Ok(()));
    }
    let first = dispatched(&world.rank(1, 40)).unwrap();
    let begun = first.slices[0].range.end;
    world.done(PRIMARY, first.batch, Ok(()));
    world.wait(38);
    assert_eq!(world.answers(), [(1, Served::TopK { k: begun }, Some(Degradation::PrimaryLate))]);
}

#[test]
fn a_lane_that_returns_nan_is_restarted_and_its_work_goes_to_the_other_tier() {
    let mut world = World::new(config());
    let primary = dispatched(&world.arrive(1, 4, None, Policy::Auto)).unwrap();
    let actions = world.done(PRIMARY, primary.batch, Err(Fault::NonFinite));
    assert!(actions.contains(&Action::Restart { lane: PRIMARY, fault: Fault::NonFinite }));
    let fallback = dispatched_to(&actions, FALLBACK);
    world.done(FALLBACK, fallback.batch, Ok(()));
    assert_eq!(world.answers(), [(1, Served::Fallback, Some(Degradation::PrimaryFailed))]);
    // While the lane is down new jobs go to the fallback, with the reason declared.
    let next = world.arrive(2, 4, None, Policy::Auto);
    world.run_all(next);
    assert_eq!(world.answers()[1], (2, Served::Fallback, Some(Degradation::PrimaryUnavailable)));
}

#[test]
fn a_restarted_lane_rests_and_is_probed_with_one_batch() {
    let mut world = World::new(config());
    let primary = dispatched(&world.arrive(1, 4, None, Policy::Full)).unwrap();
    world.done(PRIMARY, primary.batch, Err(Fault::Failed));
    world.step(Event::LaneUp { lane: PRIMARY });
    assert_eq!(dispatched(&world.wait(50)), None, "it rests");
    let probe = dispatched(&world.wait(60)).unwrap();
    world.done(PRIMARY, probe.batch, Ok(()));
    assert_eq!(world.answers(), [(1, Served::Full, None)]);
}

#[test]
#[should_panic(expected = "no batch exceeds its lane")]
fn a_batch_beyond_its_lane_is_noticed_after_a_fault_too() {
    let mut world = World::new(config());
    let first = dispatched(&world.arrive(1, 10, None, Policy::Full)).unwrap();
    let again = dispatched(&world.done(PRIMARY, first.batch, Err(Fault::OutOfMemory))).unwrap();
    assert_eq!(again.slices[0].range, 0..5, "the bound is halved");
    // A scheduler that ignored the halved bound would have put all ten pairs into it.
    world.sched.lanes[PRIMARY].running[0].load.add(500);
    world.sched.check();
}

#[test]
fn work_that_fails_twice_is_refused() {
    let mut world = World::new(config());
    let first = dispatched(&world.arrive(1, 4, None, Policy::Full)).unwrap();
    world.done(PRIMARY, first.batch, Err(Fault::Failed));
    world.step(Event::LaneUp { lane: PRIMARY });
    let second = dispatched(&world.wait(150)).unwrap();
    world.done(PRIMARY, second.batch, Err(Fault::Failed));
    assert_eq!(world.refusals(), [(1, Refusal::ModelFailed)]);
}

#[test]
fn out_of_memory_halves_and_requeues() {
    let mut world = World::new(config());
    let first = dispatched(&world.arrive(1, 10, None, Policy::Auto)).unwrap();
    let second = dispatched(&world.done(PRIMARY, first.batch, Err(Fault::OutOfMemory))).unwrap();
    assert_eq!(second.slices[0].range.end, 5);
    let rest = world.done(PRIMARY, second.batch, Ok(()));
    world.run_all(rest);
    assert_eq!(world.answers(), [(1, Served::Full, None)]);
}

#[test]
fn a_lane_that_hangs_is_given_up() {
    let mut world = World::new(config());
    let stuck = dispatched(&world.arrive(1, 4, None, Policy::Auto)).unwrap();
    let actions = world.wait(6_000);
    assert!(actions.contains(&Action::Restart { lane: PRIMARY, fault: Fault::Stalled }));
    let fallback = dispatched_to(&actions, FALLBACK);
    world.done(FALLBACK, fallback.batch, Ok(()));
    assert_eq!(world.done(PRIMARY, stuck.batch, Ok(())), [], "its late result is ignored");
    assert_eq!(world.answers(), [(1, Served::Fallback, Some(Degradation::PrimaryFailed))]);
}

#[test]
fn a_client_that_leaves_frees_the_queue_and_pays_for_what_ran() {
    let mut world = World::new(config());
    let running = dispatched(&world.arrive(1, 4, None, Policy::Auto)).unwrap();
    world.arrive(2, 4, None, Policy::Auto);
    world.step(Event::Cancel { job: JobId(1) });
    world.step(Event::Cancel { job: JobId(2) });
    assert!(world.sched.is_empty());
    let actions = world.done(PRIMARY, running.batch, Ok(()));
    let tenant = Some(TenantId(0));
    assert_eq!(
        actions,
        [Action::Discard {
            tenant,
            tier: Tier::Primary,
            model: TEACHER,
            on: DeviceId(0),
            device: DeviceNs(5 * MS)
        }]
    );
}

#[test]
fn a_quota_refuses_until_it_is_earned_back() {
    let mut config = config();
    config.tenants[0].quota = Some(DeviceNs(MS));
    let mut world = World::new(config);
    let first = world.arrive(1, 4, None, Policy::Auto);
    world.run_all(first);
    world.arrive(2, 4, None, Policy::Auto);
    let [(2, Refusal::QuotaExceeded { retry_after })] = world.refusals()[..] else {
        panic!("{:?}", world.refusals());
    };
    world.now += retry_after;
    let again = world.arrive(3, 4, None, Policy::Auto);
    world.run_all(again);
    assert_eq!(world.answers().len(), 2);
}

#[test]
fn a_draining_server_finishes_what_it_has() {
    let mut world = World::new(config());
    let running = world.arrive(1, 4, None, Policy::Auto);
    world.step(Event::Drain);
    world.arrive(2, 4, None, Policy::Auto);
    world.run_all(running);
    assert_eq!(world.refusals(), [(2, Refusal::Draining)]);
    assert_eq!(world.answers(), [(1, Served::Full, None)]);
}

#[test]
fn urgent_work_overtakes_patient_work_of_the_same_tenant() {
    let mut world = World::new(config());
    let running = dispatched(&world.arrive(1, 10, None, Policy::Auto)).unwrap();
    world.arrive(2, 10, Some(5_000), Policy::Auto);
    world.arrive(3, 10, Some(100), Policy::Auto);
    let next = dispatched(&world.done(PRIMARY, running.batch, Ok(()))).unwrap();
    assert_eq!(next.slices[0].job, JobId(3));
}

/// A configuration in which the fallback is predicted to be late for twenty pairs in 30 ms, and the prediction is in
/// doubt: warm-up was 150 times slower than the device is.
fn config_of_a_doubted_fallback() -> Config {
    let mut config = config();
    config.seeds[1] = seeds(15 * MS);
    config
}

/// Job 1 (20 pairs, 30 ms) is a try of the fallback because the primary is busy. At 2 ms the primary is idle again.
fn world_with_a_tried_fallback(config: Config) -> (World, Dispatch) {
    let mut world = World::new(config);
    let busy = dispatched(&world.arrive(9, 10, None, Policy::Full)).unwrap();
    let tried = dispatched_to(&world.arrive(1, 20, Some(30), Policy::Auto), FALLBACK);
    assert_eq!(world.sched.stats().tries, 1);
    world.now += Ns::from_millis(2);
    world.done(PRIMARY, busy.batch, Ok(()));
    world.actions.clear();
    (world, tried)
}

#[test]
fn a_job_whose_tried_fallback_failed_is_answered_late_by_the_primary() {
    let (mut world, tried) = world_with_a_tried_fallback(config_of_a_doubted_fallback());
    let primary = dispatched_to(&world.done(FALLBACK, tried.batch, Err(Fault::Failed)), PRIMARY);
    world.wait(29);
    assert_eq!(world.refusals(), [], "the primary has begun, and is no try");
    let rest = world.done(PRIMARY, primary.batch, Ok(()));
    world.run_all(rest);
    assert_eq!(world.answers(), [(1, Served::Full, Some(Degradation::Late))]);
}

#[test]
fn a_try_without_insurance_is_refused_at_the_deadline() {
    let (mut world, _) = world_with_a_tried_fallback(config_of_a_doubted_fallback());
    world.wait(26);
    assert!(matches!(world.refusals()[..], [(1, Refusal::BudgetTooShort { .. })]), "{:?}", world.refusals());
}

#[test]
fn a_job_that_its_present_tier_has_not_begun_is_refused_at_the_deadline() {
    let (mut world, tried) = world_with_a_tried_fallback(config_of_a_doubted_fallback());
    dispatched_to(&world.arrive(2, 10, None, Policy::Full), PRIMARY);
    world.done(FALLBACK, tried.batch, Err(Fault::Failed));
    world.wait(26);
    let refusals = world.refusals();
    assert_eq!(refusals, [(1, Refusal::BudgetTooShortNow { retry_after: Ns(MS) })]);
}

#[test]
fn a_tried_fallback_that_ranks_a_top_k_in_time_gives_its_token_back() {
    let mut config = config_of_a_doubted_fallback();
    (config.limits.hedges_burst, config.limits.hedges_permille, config.limits.top_k_min) = (1, 0, 1);
    let (mut world, tried) = world_with_a_tried_fallback(config);
    let mut actions = world.done(FALLBACK, tried.batch, Ok(()));
    while !actions.contains(&Action::Rank { job: JobId(1) }) {
        let dispatch = dispatched_to(&actions, FALLBACK);
        actions = world.done(FALLBACK, dispatch.batch, Ok(()));
    }
    let ranked = world.rank(1, 20);
    world.run_all(ranked);
    let answers = world.answers();
    assert!(matches!(answers[..], [(1, Served::Full | Served::TopK { .. }, _)]), "{answers:?}");
    assert_eq!((world.sched.stats().tries, world.sched.stats().tries_in_time), (1, 1));
    assert!(world.sched.hedges.spend(), "the token is there again");
}

#[test]
fn a_top_k_whose_primary_went_down_meanwhile_says_so() {
    let mut world = World::new(config());
    let busy = dispatched(&world.arrive(9, 10, None, Policy::Full)).unwrap();
    let fallback = dispatched_to(&world.arrive(1, 10, None, Policy::TopK), FALLBACK);
    world.done(PRIMARY, busy.batch, Err(Fault::Failed));
    world.done(FALLBACK, fallback.batch, Ok(()));
    assert_eq!(world.answers(), [(1, Served::Fallback, Some(Degradation::PrimaryUnavailable))]);
}

#[test]
fn a_hedge_is_won_also_if_the_primary_gave_up_before_the_deadline() {
    let mut world = World::new(config());
    let primary = dispatched(&world.arrive(1, 10, Some(30), Policy::Auto)).unwrap();
    let hedge = dispatched_to(&world.wait(24), FALLBACK);
    world.done(PRIMARY, primary.batch, Err(Fault::Failed));
    world.done(FALLBACK, hedge.batch, Ok(()));
    assert_eq!(world.answers(), [(1, Served::Fallback, Some(Degradation::PrimaryFailed))]);
    assert_eq!((world.sched.stats().hedges, world.sched.stats().hedges_won), (1, 1));
}

#[test]
fn two_slices_of_a_job_in_one_lost_batch_are_one_failure() {
    let mut config = config();
    config.lanes[0].depth = 2;
    let mut world = World::new(config);
    let first = dispatched(&world.arrive(1, 10, None, Policy::Full)).unwrap();
    // The first pairs of job 2 wait behind job 1 on the lane and are lost with it: job 2 has two ranges to do.
    let behind = dispatched(&world.arrive(2, 20, None, Policy::Full)).unwrap();
    assert_eq!(behind.slices[0].job, JobId(2));
    world.step(Event::Cancel { job: JobId(1) });
    world.done(PRIMARY, first.batch, Err(Fault::Failed));
    world.step(Event::LaneUp { lane: PRIMARY });
    let probe = dispatched(&world.wait(150)).unwrap();
    let both = dispatched(&world.done(PRIMARY, probe.batch, Ok(()))).unwrap();
    assert_eq!(both.slices.iter().map(|slice| slice.job.0).collect::<Vec<_>>(), [2, 2]);
    world.done(PRIMARY, both.batch, Err(Fault::Failed));
    assert_eq!(world.refusals(), [], "it has one more attempt");
}

#[test]
fn a_tier_does_not_start_a_job_again_of_which_it_still_runs_pairs() {
    let mut config = config();
    config.lanes.push(LaneConfig { on: DeviceId(2), ..config.lanes[1].clone() });
    let second = LaneId(2);
    let mut world = World::new(config);
    // The second fallback lane failed once and is to be probed.
    let on_first = dispatched(&world.arrive(8, 1, None, Policy::Fallback)).unwrap();
    let on_second = dispatched_to(&world.arrive(9, 1, None, Policy::Fallback), second);
    world.done(second, on_second.batch, Err(Fault::Failed));
    let again = world.done(FALLBACK, on_first.batch, Ok(()));
    world.run_all(again);
    world.step(Event::LaneUp { lane: second });
    world.wait(150);
    // Job 1 goes to the fallback because the primary is busy. The probe takes some of its pairs.
    let on_primary = dispatched(&world.arrive(5, 50, Some(60), Policy::Full)).unwrap();
    let on_first = dispatched_to(&world.arrive(6, 4, None, Policy::Fallback), FALLBACK);
    let probe = dispatched_to(&world.arrive(1, 20, Some(65), Policy::Auto), second);
    assert_eq!(probe.slices[0].job, JobId(1));
    world.step(Event::Cancel { job: JobId(5) });
    world.step(Event::Cancel { job: JobId(6) });
    world.done(PRIMARY, on_primary.batch, Ok(()));
    // The first lane fails, and the probing one has no room: the primary takes over.
    let full = dispatched_to(&world.done(FALLBACK, on_first.batch, Err(Fault::Failed)), PRIMARY);
    assert_eq!(full.slices[0].job, JobId(1));
    // The first lane can be probed when the primary fails, and the second one still holds its pairs.
    world.step(Event::LaneUp { lane: FALLBACK });
    world.wait(150);
    world.done(PRIMARY, full.batch, Err(Fault::Failed));
    world.done(second, probe.batch, Ok(()));
    world.step(Event::LaneUp { lane: PRIMARY });
    let rest = world.wait(150);
    world.run_all(rest);
    assert_eq!(world.answers().last(), Some(&(1, Served::Fallback, Some(Degradation::Late))));
}

#[test]
fn a_batch_that_ran_out_of_memory_never_raises_the_bound() {
    let mut config = config();
    config.lanes[0].depth = 2;
    let mut world = World::new(config);
    let first = dispatched(&world.arrive(1, 2, None, Policy::Full)).unwrap();
    world.now += Ns::from_millis(2);
    let second = dispatched(&world.arrive(2, 10, None, Policy::Full)).unwrap();
    world.done(PRIMARY, first.batch, Err(Fault::OutOfMemory));
    world.done(PRIMARY, second.batch, Err(Fault::OutOfMemory));
    assert_eq!(world.sched.lanes[PRIMARY].tokens_max, 100);
}

#[test]
fn jobs_and_pairs_inside_are_bounded_inclusively() {
    let mut config = config();
    (config.limits.jobs_max, config.limits.pairs_max) = (2, 10);
    let mut world = World::new(config.clone());
    for (job, pairs) in [(1, 4), (2, 7), (3, 6), (4, 0)] {
        world.arrive(job, pairs, None, Policy::Full);
    }
    let refused: Vec<u64> = world.refusals().iter().map(|(job, _)| *job).collect();
    assert_eq!(refused, [2, 4], "eleven pairs, and a third job");
    assert!(matches!(world.refusals()[0].1, Refusal::Overloaded { .. }));
    world.step(Event::Cancel { job: JobId(3) });
    world.arrive(5, 6, None, Policy::Full);
    assert_eq!(world.refusals().len(), 2, "a cancelled job makes room");
}

#[test]
fn the_budget_that_is_needed_is_the_time_spent_the_fastest_tier_s_and_the_margin() {
    let mut world = World::new(config());
    world.now = Ns::from_millis(50);
    let arrived = Ns::from_millis(30);
    let load = Load::of(vec![100; 4]);
    let alone = PerTier::from_fn(|tier| world.sched.predictor(model_of(tier)).p99(&load));
    let asks = asks(PerTier::from_fn(|_| &[100; 4][..]));
    for (policy, tier) in
        [(Policy::Auto, Tier::Fallback), (Policy::Full, Tier::Primary), (Policy::TopK, Tier::Fallback)]
    {
        let arrival = Arrival {
            job: JobId(policy as u64),
            tenant: TenantId(0),
            priority: Priority::Normal,
            policy,
            arrived,
            deadline: Some(world.now + Limits::default().answer_ns_margin),
            top_k: None,
            pairs: 4,
            primaries: asks.primary.iter().cloned().collect(),
            fallback: asks.fallback.clone(),
        };
        world.step(Event::Arrive(vec![arrival]));
        let expected = Ns::from_millis(20) + alone[tier] + Limits::default().answer_ns_margin;
        let found = world.refusals().pop().unwrap().1;
        assert_eq!(found, Refusal::BudgetSpent { needed: expected }, "{policy:?}");
    }
}

#[test]
fn an_answer_is_late_only_after_the_margin_behind_its_deadline() {
    for (waits, degraded) in [(0, None), (1, Some(Degradation::Late))] {
        let mut world = World::new(config());
        let batch = dispatched(&world.arrive(1, 10, Some(30), Policy::Full)).unwrap().batch;
        world.now = Ns(30 * MS + waits);
        world.done(PRIMARY, batch, Ok(()));
        assert_eq!(world.answers(), [(1, Served::Full, degraded)]);
    }
}

#[test]
fn compute_is_the_time_in_which_a_lane_works_on_the_job() {
    let mut config = config();
    config.lanes.push(LaneConfig { on: DeviceId(2), ..config.lanes[0].clone() });
    let mut world = World::new(config);
    let blocker = dispatched_to(&world.arrive(9, 5, None, Policy::Full), PRIMARY);
    world.now += Ns::from_millis(1);
    let second = LaneId(2);
    let actions = world.arrive(1, 16, None, Policy::Full);
    let first = dispatched_to(&actions, second);
    // From 1 ms to 6 ms on the second lane, from 4 ms to 8 ms on the first one.
    world.now = Ns::from_millis(4);
    let on_first = dispatched_to(&world.done(PRIMARY, blocker.batch, Ok(())), PRIMARY);
    world.now = Ns::from_millis(6);
    let rest = world.done(second, first.batch, Ok(()));
    assert_eq!(dispatched(&rest), None, "both lanes have all of it");
    world.now = Ns::from_millis(8);
    world.done(PRIMARY, on_first.batch, Ok(()));
    let compute = world.actions.iter().find_map(|action| match action {
        Action::Answer { job: JobId(1), answer } => Some(answer.compute),
        _ => None,
    });
    assert_eq!(compute, Some(Ns::from_millis(7)));
}

#[test]
fn a_long_batch_is_given_up_after_twenty_times_its_prediction() {
    let mut config = config();
    config.limits.stall_ns_min = Ns::from_millis(100);
    let mut world = World::new(config);
    world.arrive(1, 10, None, Policy::Full);
    let given_up = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::GaveUp { .. }));
    assert!(!given_up(&world.wait(180)));
    assert!(given_up(&world.wait(40)));
}

#[test]
fn timers_of_finished_jobs_are_removed() {
    let mut world = World::new(config());
    // A job that is not finished keeps its timers.
    world.arrive(u64::MAX, 1, None, Policy::Fallback);
    let stalls = world.sched.next_wake();
    for job in 0..3 * TIMERS_MIN as u64 {
        let actions = world.arrive(job, 1, Some(60_000), Policy::Full);
        world.run_all(actions);
        world.actions.clear();
    }
    assert!(world.sched.timers.len() <= TIMERS_MIN + 16, "{}", world.sched.timers.len());
    assert!(stalls.is_some());
    assert_eq!(world.sched.next_wake(), stalls);
}

#[test]
fn a_budget_is_met_or_too_short_to_the_nanosecond() {
    let needed = |world: &World, tier: Tier| {
        world.sched.predictor(model_of(tier)).p99(&Load::of(vec![100; 4]))
            + Limits::default().answer_ns_margin
    };
    let arrive = |world: &mut World, policy: Policy, budget: Ns, fallback: usize| {
        let deadline = Some(world.now + budget);
        let (job, tenant, priority) = (JobId(1), TenantId(0), Priority::Normal);
        let asks = asks(PerTier { primary: &[100; 4], fallback: &[100; 4][..fallback] });
        let (primaries, fallback) = (asks.primary.into_iter().collect(), asks.fallback);
        let (arrived, top_k, pairs) = (world.now, None, 4);
        let arrival =
            Arrival { job, tenant, priority, policy, arrived, deadline, top_k, pairs, primaries, fallback };
        world.step(Event::Arrive(vec![arrival]));
        world.refusals().pop().map(|(_, refusal)| refusal)
    };
    let too_short = |needed| Some(Refusal::BudgetTooShort { needed });
    // An idle server.
    let mut world = World::new(config_without_tries());
    let primary = needed(&world, Tier::Primary);
    let short = Ns(primary.0 - 1);
    assert_eq!(arrive(&mut world, Policy::Full, short, 4), too_short(primary));
    assert_eq!(arrive(&mut World::new(config_without_tries()), Policy::Full, primary, 4), None);
    // A busy one, which is late with what an idle one would just meet.
    let mut world = World::new(config_without_tries());
    world.arrive(9, 10, None, Policy::Full);
    let now = arrive(&mut world, Policy::Full, primary, 4);
    assert!(matches!(now, Some(Refusal::BudgetTooShortNow { .. })), "{now:?}");
    // A fallback that has no pairs, or is down, is not the fastest tier.
    assert_eq!(arrive(&mut World::new(config_without_tries()), Policy::Auto, short, 0), too_short(primary));
    let mut world = World::new(config_without_tries());
    let failing = dispatched(&world.arrive(9, 1, None, Policy::Fallback)).unwrap();
    world.done(FALLBACK, failing.batch, Err(Fault::Failed));
    assert_eq!(arrive(&mut world, Policy::Auto, short, 4), too_short(primary));
}

#[test]
fn time_never_runs_backwards() {
    let mut world = World::new(config());
    world.now = Ns(10 * MS);
    world.step(Event::Tick);
    world.now = Ns(5 * MS);
    world.step(Event::Tick);
    assert_eq!(world.sched.now, Ns(10 * MS));
}

#[test]
fn the_time_until_an_answer_counts_as_compute_while_a_lane_works_on_it() {
    let mut world = World::new(config());
    world.now = Ns(2 * MS);
    world.arrive(1, 10, Some(30), Policy::Auto);
    let hedge = dispatched_to(&world.wait(24), FALLBACK);
    world.done(FALLBACK, hedge.batch, Ok(()));
    world.wait(3);
    let compute = world.actions.iter().find_map(|action| match action {
        Action::Answer { answer, .. } => Some(answer.compute),
        _ => None,
    });
    assert_eq!(compute, Some(Ns(27 * MS)), "the primary has worked on it all the time");
}

#[test]
fn obsolete_timers_wake_nobody() {
    let mut world = World::new(config());
    let batch = dispatched(&world.arrive(1, 10, None, Policy::Full)).unwrap().batch;
    assert!(world.sched.next_wake().is_some(), "the batch may stall");
    world.done(PRIMARY, batch, Ok(()));
    assert_eq!(world.sched.next_wake(), None);
    // The timer of a batch that has ended is none of the next batch's.
    world.now = Ns(MS);
    let batch = dispatched(&world.arrive(3, 10, None, Policy::Full)).unwrap().batch;
    assert_eq!(world.sched.next_wake(), Some(world.now + Limits::default().stall_ns_min));
    world.done(PRIMARY, batch, Ok(()));
    // A job that has gone to the fallback is not hedged.
    world.arrive(2, 10, Some(30), Policy::Auto);
    let hedge_at = world.sched.next_wake();
    world.sched.job(JobId(2)).stage = Stage::Fallback { then_top_k: false };
    assert!(world.sched.next_wake() > hedge_at);
}

#[test]
fn time_that_nobody_used_is_not_discarded() {
    let mut world = World::new(config());
    let batch = dispatched(&world.arrive(1, 10, None, Policy::Full)).unwrap().batch;
    world.step(Event::Cancel { job: JobId(1) });
    let done = Done { lane: PRIMARY, batch, device: DeviceNs::ZERO, took: Ns(MS), result: Ok(()) };
    assert_eq!(world.step(Event::Done(done)), []);
}

#[test]
fn a_gauge_counts_lanes_that_are_up_and_what_waits() {
    let mut world = World::new(config());
    let batch = dispatched(&world.arrive(1, 10, None, Policy::Full)).unwrap().batch;
    world.arrive(2, 4, None, Policy::Full);
    let work = world.sched.models[TEACHER].queue.work();
    assert_eq!(world.sched.gauge(TEACHER), Gauge { jobs: 1, tokens: 400, work, lanes_up: 1 });
    world.done(PRIMARY, batch, Err(Fault::Failed));
    assert_eq!(world.sched.gauge(TEACHER).lanes_up, 0);
}

#[test]
fn one_pair_that_does_not_fit_into_memory_is_refused_after_a_second_attempt() {
    let mut world = World::new(config());
    let first = dispatched(&world.arrive(1, 1, None, Policy::Full)).unwrap();
    let second = dispatched(&world.done(PRIMARY, first.batch, Err(Fault::OutOfMemory))).unwrap();
    world.done(PRIMARY, second.batch, Err(Fault::OutOfMemory));
    assert_eq!(world.refusals(), [(1, Refusal::ModelFailed)]);
}

#[test]
fn pairs_of_a_lost_batch_are_dropped_if_the_job_has_left_the_tier() {
    let mut world = World::new(config());
    let primary = dispatched(&world.arrive(1, 10, None, Policy::Auto)).unwrap();
    world.sched.withdraw(JobId(1), Tier::Primary);
    world.sched.start(JobId(1), Stage::Fallback { then_top_k: false });
    world.done(PRIMARY, primary.batch, Err(Fault::Failed));
    assert_eq!(world.sched.models[TEACHER].queue.jobs(), 0);
}

#[test]
fn predictions_learn_from_the_time_on_the_lane_and_not_from_the_part_that_is_charged() {
    let mut world = World::new(config());
    for job in 0..50 {
        let batch = dispatched(&world.arrive(job, 1, None, Policy::Full)).unwrap().batch;
        let took = Ns(3 * MS);
        world.step(Event::Done(Done { lane: PRIMARY, batch, device: DeviceNs(MS), took, result: Ok(()) }));
    }
    assert!(world.sched.predictor(TEACHER).predict(&Load::of([100])) > Ns(2 * MS));
}

/// A batch behind another on one lane: jobs 1 and 2 of ten pairs, 1 s each.
fn world_with_two_batches() -> (World, [BatchId; 2]) {
    let mut config = config();
    config.lanes[0].depth = 2;
    config.seeds[0] = seeds(100 * MS);
    config.limits.batch_ns_max = Ns::from_millis(1_000);
    config.tenants.truncate(1);
    let mut world = World::new(config);
    let batches = [1, 2].map(|job| dispatched(&world.arrive(job, 10, None, Policy::Full)).unwrap().batch);
    (world, batches)
}

#[test]
fn a_batch_behind_another_does_not_stall_before_it_begins() {
    let given_up = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::GaveUp { .. }));
    let (mut world, [first, _]) = world_with_two_batches();
    // Both may take 20 s. The first one takes 19.
    assert!(!given_up(&world.wait(19_000)));
    world.done(PRIMARY, first, Ok(()));
    assert!(!given_up(&world.wait(19_000)), "the second one has worked for 19 s");
    assert!(given_up(&world.wait(1_000)));
}

#[test]
fn a_batch_behind_a_late_one_ends_later_and_one_behind_an_early_one_as_predicted() {
    for (first_took, is_late) in [(1, false), (19_000, true)] {
        let (mut world, [first, _]) = world_with_two_batches();
        let times = |world: &World, at: usize| {
            let batch = &world.sched.lanes[PRIMARY].running[at];
            (batch.ends, batch.ends_p99, batch.load)
        };
        let (ends, ends_p99, load) = times(&world, 1);
        world.wait(first_took);
        world.done(PRIMARY, first, Ok(()));
        let predictor = &world.sched.models[TEACHER].predictor;
        let later = (world.now + predictor.predict(&load), world.now + predictor.p99(&load));
        assert!(is_late == (later.0 > ends));
        let expected = if is_late { later } else { (ends, ends_p99) };
        assert_eq!(times(&world, 0), (expected.0, expected.1, load));
    }
}

#[test]
fn a_part_in_a_new_order_begins_anew() {
    let mut world = World::new(config());
    world.arrive(9, 10, None, Policy::Full);
    world.arrive(1, 10, None, Policy::Auto);
    let todo = |world: &mut World, order: Option<Arc<[u32]>>| {
        world.sched.withdraw(JobId(1), Tier::Primary);
        world.sched.job(JobId(1)).parts.primary.done = std::iter::once(0..2).collect();
        world.sched.enqueue_all(JobId(1), Tier::Primary, order, 5);
        world.sched.jobs[&JobId(1)].parts.primary.todo.iter().cloned().flatten().collect::<Vec<_>>()
    };
    assert_eq!(todo(&mut world, None), [2, 3, 4], "the same order: what is scored stays scored");
    assert_eq!(todo(&mut world, Some((0..10).rev().collect())), [0, 1, 2, 3, 4]);
}

#[test]
fn what_a_job_was_charged_is_discarded_if_it_ends_without_an_answer() {
    let discarded = |device| Action::Discard {
        tenant: Some(TenantId(0)),
        tier: Tier::Primary,
        model: TEACHER,
        on: DeviceId(0),
        device,
    };
    let mut world = World::new(config());
    let first = dispatched(&world.arrive(1, 30, None, Policy::Full)).unwrap();
    world.done(PRIMARY, first.batch, Ok(()));
    assert_eq!(world.step(Event::Cancel { job: JobId(1) }), [discarded(DeviceNs(5 * MS))]);
    assert_eq!(world.step(Event::Cancel { job: JobId(1) }), [], "it has left already");
    let stats = world.sched.stats();
    assert_eq!((stats.cancelled, stats.answered, stats.refused), (1, 0, 0));
    assert_eq!(stats.discarded, DeviceNs(5 * MS));
    // A refusal does the same.
    let mut world = World::new(config());
    let first = dispatched(&world.arrive(1, 30, None, Policy::Full)).unwrap();
    world.done(PRIMARY, first.batch, Ok(()));
    let mut out = Vec::new();
    world.sched.refuse(JobId(1), Refusal::ModelFailed, &mut out);
    assert_eq!(
        out,
        [discarded(DeviceNs(5 * MS)), Action::Refuse { job: JobId(1), refusal: Refusal::ModelFailed }]
    );
    assert_eq!((world.sched.stats().refused, world.sched.len()), (1, 0));
}

#[test]
fn answers_and_faults_are_counted() {
    let mut world = World::new(config());
    assert!(world.sched.is_empty());
    let first = dispatched(&world.arrive(1, 4, None, Policy::Auto)).unwrap();
    assert_eq!((world.sched.len(), world.sched.is_empty()), (1, false));
    let again = world.done(PRIMARY, first.batch, Err(Fault::OutOfMemory));
    world.run_all(again);
    let stats = world.sched.stats();
    assert_eq!((stats.arrived, stats.answered, stats.faults), (1, 1, 1));
}

#[test]
fn the_hash_of_an_id_keeps_neighbours_together_and_tells_them_apart() {
    for id in [0, 1, 2, 127, 1_000_000] {
        let mut hasher = IdHasher::default();
        hasher.write_u64(id);
        assert_eq!((hasher.finish() & ((1 << 57) - 1), hasher.finish() >> 57), (id, id & 127));
    }
}

/// Two lanes for another version of the teacher.
fn next_version() -> Event {
    let lane = |id, on| {
        let config = LaneConfig { model: NEXT, on: DeviceId(on), batch_tokens_max: 4096, depth: 1 };
        (LaneId(id), config)
    };
    Event::ModelUp { model: NEXT, seeds: seeds(MS), lanes: vec![lane(5, 0), lane(6, 2)] }
}

const NEXT: ModelId = ModelId(7);

fn released(actions: &[Action]) -> Vec<u32> {
    let released = |action: &Action| match action {
        Action::Release { lane } => Some(lane.0),
        _ => None,
    };
    actions.iter().filter_map(released).collect()
}

#[test]
fn a_model_that_comes_up_takes_work_on_all_of_its_lanes() {
    let mut world = World::new(config());
    world.step(next_version());
    let asks = |model| [Ask { model, prefix: 0, lengths: vec![100; 30].into() }].into();
    let arrival = Arrival { primaries: asks(NEXT), ..world.arrival(30) };
    let out = world.step(Event::Arrive(vec![arrival]));
    let lanes: Vec<u32> = [5, 6].map(|lane| dispatched_to(&out, LaneId(lane)).lane.0).into();
    assert_eq!(lanes, [5, 6]);
    assert_eq!(world.sched.gauge(TEACHER), Gauge { lanes_up: 1, ..Gauge::default() });
    world.run_all(out);
    let line = PerTier { primary: Some(NEXT), fallback: Some(STUDENT) };
    let answered = |action: &Action| matches!(action, Action::Answer { answer, .. } if answer.line == line);
    assert!(world.actions.iter().any(answered), "{:?}", world.actions);
}

#[test]
fn a_retired_model_ends_its_work_and_is_released_once() {
    let mut world = World::new(config());
    world.step(next_version());
    let first = dispatched(&world.arrive(1, 10, None, Policy::Full)).unwrap();
    world.arrive(2, 10, None, Policy::Full);
    assert_eq!(released(&world.step(Event::Retire { model: TEACHER })), [] as [u32; 0]);
    let second = world.done(PRIMARY, first.batch, Ok(()));
    assert_eq!(released(&second), [] as [u32; 0], "a job waits");
    let second = dispatched(&second).unwrap();
    let out = world.done(PRIMARY, second.batch, Ok(()));
    assert_eq!((released(&out), world.answers().len()), (vec![0], 2));
    // What comes late is ignored, or has no primary.
    assert_eq!(released(&world.step(Event::Retire { model: TEACHER })), [] as [u32; 0]);
    world.done(PRIMARY, second.batch, Ok(()));
    world.step(Event::LaneUp { lane: PRIMARY });
    let late = world.arrive(3, 4, None, Policy::Auto);
    world.run_all(late);
    assert_eq!(world.answers()[2], (3, Served::Fallback, Some(Degradation::PrimaryUnavailable)));
    world.arrive(4, 4, None, Policy::Full);
    assert_eq!(world.refusals(), [(4, Refusal::Unavailable)]);
}

#[test]
fn a_cancelled_job_s_batch_is_awaited_before_its_lane_is_released() {
    let mut world = World::new(config());
    let batch = dispatched(&world.arrive(1, 10, None, Policy::Full)).unwrap().batch;
    world.step(Event::Retire { model: TEACHER });
    assert_eq!(released(&world.step(Event::Cancel { job: JobId(1) })), [] as [u32; 0]);
    assert_eq!(released(&world.done(PRIMARY, batch, Ok(()))), [0]);
}

#[test]
fn a_lane_that_restarts_is_released_when_its_jobs_are_gone() {
    let mut world = World::new(config());
    let batch = dispatched(&world.arrive(1, 10, None, Policy::Auto)).unwrap().batch;
    world.step(Event::Retire { model: TEACHER });
    let out = world.done(PRIMARY, batch, Err(Fault::Failed));
    assert_eq!(released(&out), [] as [u32; 0], "the job is on the fallback, and may come back");
    let fallback = dispatched_to(&out, FALLBACK);
    assert_eq!(released(&world.done(FALLBACK, fallback.batch, Ok(()))), [0]);
}

#[test]
fn without_any_model_that_is_left_a_request_is_refused() {
    let mut world = World::new(config());
    for model in [TEACHER, STUDENT] {
        world.step(Event::Retire { model });
    }
    world.arrive(1, 3, Some(100), Policy::Auto);
    world.arrive(2, 0, None, Policy::Auto);
    assert_eq!(world.refusals(), [(1, Refusal::Unavailable)]);
    assert_eq!(world.answers(), [(2, Served::Full, None)]);
}
