//! Virtual time, devices and clients: runs a machine through a scenario, and checks its books against its own.

use super::client::Client;
use super::models::ledger;
use super::prefixes::Kept;
use super::report::Seen;
use super::scenario::{Device, Role, Scenario};
use super::traffic::Traffic;
use super::{Machine, Report};
use crate::base::{DeviceNs, Hour, ModelId, Nanodollars, Ns, PerTier, Tier};
use crate::forecast::predict::Load;
use crate::ledger::books::{Charge, Ledger};
use crate::ledger::price::DeviceKind;
use crate::rerank::{Degradation, Policy, Refusal, Served};
use crate::sched::{Action, Answer, Arrival, Ask, BatchId, Dispatch, Done, Event, Fault, JobId, LaneId};
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, LogNormal};
use rand_pcg::Pcg64;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

/// The time in which a scorer is replaced after a fault.
const RELOAD: Ns = Ns::from_millis(200);
/// Runs a machine through a scenario until every request is answered, refused or cancelled.
///
/// # Panics
/// If an invariant is broken. The message names it, and the scenario's seed reproduces the run.
pub fn run(scenario: &Scenario, machine: &mut impl Machine) -> Report {
    let mut world = World::new(scenario);
    world.begin(machine);
    world.expect_next_client();
    while let Some(at) = world.next_time(machine) {
        world.now = world.now.max(at);
        world.jump();
        match world.next_happening() {
            Some(happening) => world.happen(machine, happening),
            None => world.step(machine, Event::Tick),
        }
    }
    world.finish()
}

/// A future event.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happening {
    Client,
    Leaves(JobId),
    Ends(BatchId),
    Loads(LaneId),
    /// Another version of a model is loaded, or the same one after an eviction.
    ModelLoads(Role),
}

/// A lane of a version of a model.
pub(super) struct Lane {
    pub model: ModelId,
    /// Its device, by position in the scenario.
    pub place: usize,
    /// When it finishes the batches that it holds.
    pub free_at: Ns,
    /// The prefixes that its scorer keeps.
    pub kept: Kept,
}

/// A batch on a device.
struct Running {
    dispatch: Dispatch,
    device: DeviceNs,
    result: Result<(), Fault>,
}

pub(super) struct World<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) now: Ns,
    /// Has its own random numbers, so that every machine sees the same traffic.
    traffic: Traffic<'a>,
    pub(super) chance: Pcg64,
    happenings: BinaryHeap<Reverse<(Ns, u64, Happening)>>,
    seq: u64,
    clients: HashMap<JobId, Client>,
    /// The version of each model that new requests get; none while it is evicted.
    pub(super) live: BTreeMap<Role, ModelId>,
    /// Models that are loading.
    pub(super) loading: BTreeSet<Role>,
    /// The numbers of the next model and of the next lane.
    pub(super) next: (u32, u32),
    pub(super) lanes: BTreeMap<LaneId, Lane>,
    running: BTreeMap<BatchId, Running>,
    pub(super) ledger: Ledger,
    /// The kinds of the tiers' devices.
    pub(super) kinds: PerTier<DeviceKind>,
    price: Nanodollars,
    pub(super) report: Report,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let (ledger, kinds) = ledger(scenario);
        Self {
            scenario,
            now: Ns::ZERO,
            traffic: Traffic::new(scenario),
            chance: Pcg64::seed_from_u64(!scenario.seed),
            happenings: BinaryHeap::new(),
            seq: 0,
            clients: HashMap::new(),
            live: BTreeMap::new(),
            loading: BTreeSet::new(),
            next: (0, 0),
            lanes: BTreeMap::new(),
            running: BTreeMap::new(),
            ledger,
            kinds,
            price: Nanodollars::ZERO,
            report: Report::new(scenario.tenants.len()),
        }
    }

    /// The time of the next event of the world or the machine; none at the end.
    fn next_time(&self, machine: &mut impl Machine) -> Option<Ns> {
        let own = self.happenings.peek().map(|Reverse((at, ..))| *at);
        // Once all clients are answered, timers of the machine do not matter.
        let wake = machine.next_wake().filter(|_| !self.clients.is_empty());
        own.into_iter().chain(wake).min()
    }

    fn next_happening(&mut self) -> Option<Happening> {
        let due = self.happenings.peek().is_some_and(|Reverse((at, ..))| *at <= self.now);
        due.then(|| self.happenings.pop().map(|Reverse((.., happening))| happening)).flatten()
    }

    pub(super) fn at(&mut self, at: Ns, happening: Happening) {
        self.seq += 1;
        self.happenings.push(Reverse((at, self.seq, happening)));
    }

    /// Sometimes moves the clock ahead, as after a pause of the machine.
    fn jump(&mut self) {
        if self.happens(self.scenario.hardships.clock_gap) {
            self.now += Ns(self.chance.random_range(0..100_000_000));
        }
    }

    pub(super) fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && self.chance.random::<f64>() < share
    }

    fn happen(&mut self, machine: &mut impl Machine, happening: Happening) {
        match happening {
            Happening::Client => {
                let arrival = self.arrival();
                self.expect_next_client();
                self.step(machine, Event::Arrive(vec![arrival]));
                self.change_models(machine);
            }
            Happening::Leaves(job) => {
                // No effect if it was answered before.
                if self.clients.remove(&job).is_some() {
                    self.report.cancelled += 1;
                    self.step(machine, Event::Cancel { job });
                }
            }
            Happening::Ends(batch) => self.end(machine, batch),
            Happening::Loads(lane) => self.step(machine, Event::LaneUp { lane }),
            Happening::ModelLoads(role) => self.model_loads(machine, role),
        }
    }

    fn expect_next_client(&mut self) {
        if let Some(at) = self.traffic.next() {
            self.at(at, Happening::Client);
        }
    }

    /// Creates the next client and its request.
    fn arrival(&mut self) -> Arrival {
        self.report.requests += 1;
        let (arrival, leaves) = self.traffic.arrival(self.now, &self.live);
        if let Some(leaves) = leaves {
            self.at(leaves, Happening::Leaves(arrival.job));
        }
        let Arrival { tenant, arrived, deadline, policy, pairs, .. } = arrival;
        let asks: Vec<Ask> = arrival.primaries.iter().chain(&arrival.fallback).cloned().collect();
        let scored = asks.iter().map(|ask| (ask.model, vec![false; pairs as usize])).collect();
        let fallback = arrival.fallback.as_ref().map(|ask| ask.model);
        let client = Client { tenant, arrived, deadline, policy, asks, fallback, scored, order: None };
        self.clients.insert(arrival.job, client);
        arrival
    }

    /// Passes an event to the machine, executes its actions, and checks its invariants.
    pub(super) fn step(&mut self, machine: &mut impl Machine, event: Event) {
        let mut actions = Vec::new();
        machine.step(self.now, event, &mut actions);
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            if let Action::Rank { job } = action {
                // The order comes before any other event.
                let order = self.order(job);
                let mut more = Vec::new();
                machine.step(self.now, Event::Ranked { job, order }, &mut more);
                actions.extend(more);
            } else {
                self.act(action);
            }
        }
        machine.check();
    }

    fn order(&mut self, job: JobId) -> Arc<[u32]> {
        let client = self.clients.get_mut(&job).expect("a job that is ranked waits");
        assert!(client.has_all(client.fallback), "what is ranked has all its scores");
        let mut order: Vec<u32> = (0..client.pairs() as u32).collect();
        let shift = self.chance.random_range(0..order.len());
        order.rotate_left(shift);
        let order: Arc<[u32]> = order.into();
        client.order = Some(order.clone());
        order
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Dispatch(dispatch) => self.dispatch(dispatch),
            Action::Answer { job, answer } => self.answer(job, &answer),
            Action::Refuse { job, refusal } => self.refused(job, &refusal),
            Action::Restart { lane, .. } => {
                // The batches of its thread are lost, one that hangs included.
                self.running.retain(|_, running| running.dispatch.lane != lane);
                self.ledger.restart(lane, self.now);
                let known = self.lanes.get_mut(&lane).expect("a lane that restarts is there");
                (known.free_at, known.kept) = (self.now, Kept::default());
                self.at(self.now + RELOAD, Happening::Loads(lane));
            }
            Action::GaveUp { lane, tier } => {
                let device = self.ledger.give_up(Hour::default(), lane, tier, self.now);
                self.report.busy[tier] += device;
                self.report.discarded += device;
            }
            Action::Discard { tenant, tier, model, on, device } => {
                self.ledger.discard(Hour::default(), tenant, (tier, model), (on, device));
                self.report.discarded += device;
            }
            Action::Release { lane } => {
                let holds = self.running.values().any(|running| running.dispatch.lane == lane);
                assert!(!holds, "a lane that is released holds no batch");
                let Lane { model, .. } = self.lanes.remove(&lane).expect("a lane is released once");
                assert!(!self.live.values().any(|&live| live == model), "a live model keeps its lanes");
                let waits = |client: &Client| client.scored.contains_key(&model) && client.needs(model);
                assert!(!self.clients.values().any(waits), "no job waits for a model that is gone");
                self.ledger.remove_lane(lane, self.now);
            }
            Action::Rank { .. } => unreachable!("a rank is answered where it is asked for"),
        }
    }

    /// Starts a batch on a device; draws its time and its result.
    fn dispatch(&mut self, dispatch: Dispatch) {
        self.ledger.begin(dispatch.lane, self.now);
        let lane = self.lanes.get_mut(&dispatch.lane).expect("a lane that gets a batch is there");
        let device: &Device = &self.scenario.devices[lane.place];
        let mut load = Load::default();
        for slice in &dispatch.slices {
            let client = &self.clients[&slice.job];
            lane.kept.run(slice, client.ask(lane.model), &mut load);
        }
        let noise = LogNormal::new(0.0, device.noise).expect("noise is a number");
        let mut took = device.mean_ns(&load) * noise.sample(&mut self.chance);
        let (begins, place) = (self.now.max(lane.free_at), lane.place);
        took *= self.scenario.slowness(begins, place, load.tokens);
        let hardships = self.scenario.hardships;
        took *= hardships.drift_at(self.now);
        let mut result = Ok(());
        let large = load.tokens * 2 > device.batch_tokens_max;
        if self.happens(hardships.slow) {
            took *= self.chance.random_range(5.0..50.0);
        } else if self.happens(hardships.hang) {
            took = 1e12;
        } else if self.happens(hardships.panic) {
            result = Err(Fault::Failed);
        } else if self.happens(hardships.non_finite) {
            result = Err(Fault::NonFinite);
        } else if large && self.happens(hardships.out_of_memory) {
            result = Err(Fault::OutOfMemory);
            took *= 0.1;
        }
        let device = DeviceNs(took as u64);
        let ends = begins + Ns(device.0);
        self.lanes.get_mut(&dispatch.lane).expect("it was just read").free_at = ends;
        self.at(ends, Happening::Ends(dispatch.batch));
        let known = self.running.insert(dispatch.batch, Running { dispatch, device, result });
        assert!(known.is_none(), "a batch has a number of its own");
    }

    fn end(&mut self, machine: &mut impl Machine, batch: BatchId) {
        // The lane was restarted meanwhile.
        let Some(Running { dispatch, device, result }) = self.running.remove(&batch) else { return };
        let Lane { model, place, .. } = self.lanes[&dispatch.lane];
        let (tier, took) = (self.scenario.devices[place].tier, Ns(device.0));
        let device = self.ledger.end(Hour::default(), dispatch.lane, self.now, device);
        self.report.busy[tier] += device;
        for slice in dispatch.slices.iter().filter(|_| result.is_ok()) {
            let Some(client) = self.clients.get_mut(&slice.job) else { continue };
            for candidate in slice.candidates() {
                let scored = client.scored.get_mut(&model).expect("a job runs on the models that it asks");
                let scored = std::mem::replace(&mut scored[candidate], true);
                assert!(!scored, "a pair is scored once by a model");
            }
        }
        self.step(machine, Event::Done(Done { lane: dispatch.lane, batch, device, took, result }));
    }

    fn answer(&mut self, job: JobId, answer: &Answer) {
        let client = self.clients.remove(&job).expect("each job is answered exactly once, if it still waits");
        let line = Tier::ALL.into_iter().filter_map(|tier| answer.line[tier]);
        let was_live = |model| client.scored.contains_key(&model);
        assert!({ line }.all(was_live), "an answer is by versions that were live when it arrived");
        let all = |tier: Tier| client.has_all(answer.line[tier]);
        let pairs = client.pairs() as u64;
        let (answering, pairs) = match answer.served {
            Served::Full => {
                assert!(all(Tier::Primary), "a full answer has the primary's scores");
                (Tier::Primary, PerTier { primary: pairs, fallback: 0 })
            }
            Served::Fallback => {
                assert!(all(Tier::Fallback), "a fallback answer has the fallback's scores");
                (Tier::Fallback, PerTier { primary: 0, fallback: pairs })
            }
            Served::TopK { k } => {
                let order = client.order.as_ref().expect("a top-k was ranked");
                let primary = &client.scored[&answer.line.primary.expect("a top-k has a primary")];
                let best = order[..k as usize].iter().all(|&place| primary[place as usize]);
                assert!(best && all(Tier::Fallback), "a top-k has the primary's scores of the best k");
                (Tier::Primary, PerTier { primary: u64::from(k), fallback: pairs })
            }
        };
        for tier in Tier::ALL {
            let Some(model) = answer.line[tier] else { continue };
            let (requests, pairs) = (u64::from(tier == answering), pairs[tier]);
            let (hour, tenant) = (Hour::default(), client.tenant);
            let charge = Charge { hour, tenant, tier, model, requests, pairs };
            let cost = self.ledger.charge(&charge, answer.charged.of(tier));
            self.price += cost.expect("simulated devices have a price");
        }
        let late = client.deadline.is_some_and(|deadline| self.now > deadline);
        let declared = answer.degraded == Some(Degradation::Late);
        assert!(!late || declared, "nothing late goes undeclared");
        let (is_declared, latency) = (answer.degraded.is_some(), self.now.saturating_sub(client.arrived));
        let preferred = client.asks.first().map(|ask| ask.model);
        let passes_over = answer.served != Served::Fallback && answer.line.primary != preferred;
        assert!(!passes_over || is_declared, "another primary than the preferred one is declared");
        let is_allowed = match (answer.served, client.policy) {
            (Served::Full, _) => !is_declared || declared || passes_over,
            (_, Policy::Auto) | (Served::Fallback, Policy::TopK) => is_declared,
            (Served::TopK { .. }, Policy::TopK) | (Served::Fallback, Policy::Fallback) => true,
            (Served::TopK { .. }, Policy::Full | Policy::Fallback) | (Served::Fallback, Policy::Full) => {
                false
            }
        };
        assert!(is_allowed, "an answer is what its policy asks for, or is declared");
        assert!(answer.compute <= latency, "no job works longer than it waits");
        let is_less = matches!(answer.degraded, Some(Degradation::PredictedLate | Degradation::PrimaryLate));
        let has_limit = client.deadline.is_some() || client.policy != Policy::Auto;
        assert!(!is_less || has_limit, "without a budget an answer is not less for its lateness");
        let (own, arrived) =
            (client.asks.first().map_or(Ns::ZERO, |ask| self.scenario.alone(&ask.lengths)), client.arrived);
        let served = Seen { job, arrived, own, latency, served: answer.served, is_late: late };
        self.report.answered(client.tenant, served, answer);
    }

    fn refused(&mut self, job: JobId, _: &Refusal) {
        let client = self.clients.remove(&job).expect("each job is refused exactly once, if it still waits");
        self.report.refused(client.tenant);
    }

    fn finish(mut self) -> Report {
        assert!(self.clients.is_empty(), "each job is answered or refused: {} wait", self.clients.len());
        assert!(self.running.is_empty(), "nothing runs when nothing happens any more");
        let devices: Vec<_> = self.ledger.devices().map(|(on, _)| on).collect();
        for on in devices {
            // Panics if charged, discarded and idle time do not add up to the elapsed time.
            let totals = self.ledger.totals(on, self.now);
            assert_eq!(totals.pending, DeviceNs::ZERO, "when all are settled, all time is given");
            assert_eq!(totals.elapsed.0, self.now.0, "a device's time passes once");
            self.report.idle += totals.idle;
        }
        let booked = Tier::ALL.map(|tier| self.ledger.cost(tier)).into_iter().sum::<Nanodollars>();
        assert_eq!(self.price, booked, "the responses' prices are the ledger's");
        self.report.finish(self.now);
        self.report
    }
}
