//! The one place that updates metrics, ledger and journal.

use super::clock::Clock;
use super::driver::LaneFactory;
use super::journal::Journal;
use super::{ModelSetup, Setup};
use crate::backend::DeviceState;
use crate::base::{DeviceId, Hour, LaneId, ModelId, Nanodollars, Ns, PerTier, Slots, TenantId, Tier};
use crate::ledger::books::{Accounts, Charge, DeviceAccount, Ledger, ModelAccount, Totals};
use crate::ledger::price::PriceBook;
use crate::ledger::rows::add_cost;
use crate::ledger::store::Store;
use crate::rerank::Served;
use crate::sched::{Action, Answer, Config, Done, Event, Scheduler};
use crate::telemetry::metrics::{BatchFacts, CountFacts, Metrics, ModelFacts, ModelLabels};
use std::sync::Arc;

/// Updates are flushed this long after the first of them; a kill loses no more.
const HAND_OVER: Ns = Ns::from_millis(250);
/// The interval in which the idle time of an idle server is flushed.
const HAND_OVER_IDLE: Ns = Ns::from_millis(10_000);

/// Prices, ledger and journal.
#[derive(Default)]
pub struct BooksSetup {
    /// Prices of device time.
    pub prices: PriceBook,
    /// The ledger on disk.
    pub store: Option<Arc<Store>>,
    /// The record of the scheduler's decisions.
    pub journal: Option<Journal>,
}

/// The price of a request's device time, over both tiers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Price {
    /// Money; none if the devices have no price.
    pub cost: Option<Nanodollars>,
    /// Energy, if devices report their power.
    pub joules: Option<f64>,
}

/// The books of a running engine.
pub(super) struct Books {
    clock: Clock,
    metrics: Arc<Metrics>,
    ledger: Ledger,
    store: Option<Arc<Store>>,
    journal: Option<Journal>,
    models: Slots<ModelId, ModelLabels>,
    lanes: Slots<LaneId, Lane>,
    /// When updates were last flushed, and whether there are newer ones.
    handed_over: Ns,
    fresh: bool,
}

struct Lane {
    model: ModelId,
    batch_tokens_max: u64,
    /// The last reported state of its device.
    state: Option<DeviceState>,
}

impl Books {
    pub fn new(setup: &mut Setup) -> Self {
        let BooksSetup { prices, store, journal } = std::mem::take(&mut setup.books);
        let tenants: Vec<Arc<str>> = setup.tenants.iter().map(|(name, _)| name.clone()).collect();
        let now = setup.clock.now();
        let accounts = Accounts { prices, devices: Vec::new(), tenants: tenants.clone() };
        Self {
            clock: setup.clock,
            metrics: Arc::new(Metrics::new(tenants)),
            ledger: Ledger::new(accounts, now),
            store,
            journal,
            models: Slots::default(),
            lanes: Slots::default(),
            handed_over: now,
            fresh: false,
        }
    }

    /// Opens the accounts of a model and its lanes. Returns the lanes' devices.
    pub fn add_model(
        &mut self,
        now: Ns,
        (id, model): (ModelId, &ModelSetup),
        lanes: &[(LaneId, &LaneFactory, Option<DeviceState>)],
    ) -> Vec<DeviceId> {
        self.fresh = true;
        let (name, version, kind) =
            (model.name.clone(), model.version.clone(), self.ledger.kind(&model.device));
        self.ledger.add_model(id, ModelAccount { model: name.clone(), version: version.clone(), kind });
        self.models.insert(id, ModelLabels { model: name, version, tier: model.tier.name() });
        let mut devices = Vec::new();
        for &(lane, LaneFactory { device, batch_tokens_max, .. }, state) in lanes {
            let known = self.ledger.devices().find(|(_, name)| *name == device).map(|(on, _)| on);
            let account = || DeviceAccount { name: device.clone(), kind };
            let on = known.unwrap_or_else(|| self.ledger.add_device(account(), now));
            self.ledger.add_lane(lane, id, on);
            let batch_tokens_max = *batch_tokens_max;
            self.lanes.insert(lane, Lane { model: id, batch_tokens_max, state });
            devices.push(on);
        }
        devices
    }

    /// Closes the account of a lane, and that of its model with the last one.
    pub fn remove_lane(&mut self, now: Ns, lane: LaneId) {
        self.fresh = true;
        self.ledger.remove_lane(lane, now);
        let Some(Lane { model, .. }) = self.lanes.remove(lane) else { return };
        if self.lanes.values().all(|other| other.model != model) {
            self.devices_told(now);
            self.ledger.remove_model(model);
            if let Some(labels) = self.models.remove(model) {
                self.metrics.forget(&labels);
            }
        }
    }

    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    pub fn begin(&mut self, config: &Config) {
        if let Some(journal) = &mut self.journal {
            journal.begin(config);
        }
    }

    /// Whether the scheduler's steps are recorded.
    pub fn is_journaling(&self) -> bool {
        self.journal.is_some()
    }

    pub fn step(&mut self, now: Ns, event: Event, actions: &[Action]) {
        if let Some(journal) = &mut self.journal {
            journal.step(now, event, actions);
        }
    }

    /// Books that a batch is sent to a lane.
    pub fn begin_batch(&mut self, now: Ns, lane: LaneId) {
        self.ledger.begin(lane, now);
    }

    /// Books that a lane is restarted, and its batches are lost.
    pub fn restart(&mut self, now: Ns, lane: LaneId) {
        self.ledger.restart(lane, now);
    }

    /// Books a finished batch and gives it its share of the device's time, which the scheduler then divides.
    pub fn end_batch(&mut self, now: Ns, done: &mut Done, (pairs, tokens): (usize, u64)) {
        self.fresh = true;
        done.device = self.ledger.end(self.hour(), done.lane, now, done.device);
        let Lane { model, batch_tokens_max: tokens_max, .. } = self.lanes[done.lane];
        let result = done.result.map_or_else(|fault| fault.name(), |()| "ok");
        let facts = BatchFacts { result, pairs, tokens, tokens_max, device: done.device };
        self.metrics.batch(&self.models[model], &facts);
    }

    /// Stores the reported state of a lane's device.
    pub fn device(&mut self, lane: LaneId, state: DeviceState) {
        self.fresh = true;
        self.lanes[lane].state = Some(state);
    }

    /// The reported states of a model's devices.
    fn states(&self, model: ModelId) -> impl Iterator<Item = DeviceState> + '_ {
        self.lanes.values().filter(move |lane| lane.model == model).filter_map(|lane| lane.state)
    }

    /// The mean power of a model's lanes, if any reports it.
    fn watts(&self, model: ModelId) -> Option<f64> {
        let reported = self.states(model).filter_map(|state| state.watts);
        let (sum, count) = reported.fold((0.0, 0), |(sum, n), watts| (sum + watts, n + 1));
        (count > 0).then(|| sum / f64::from(count))
    }

    /// Books an answered request and returns its price.
    pub fn charge(&mut self, tenant: TenantId, candidates: usize, answer: &Answer) -> Price {
        self.fresh = true;
        let hour = self.hour();
        let all = candidates as u64;
        let (answering, pairs) = match answer.served {
            Served::Full => (Tier::Primary, PerTier { primary: all, fallback: 0 }),
            Served::TopK { k } => (Tier::Primary, PerTier { primary: u64::from(k), fallback: all }),
            Served::Fallback => (Tier::Fallback, PerTier { primary: 0, fallback: all }),
        };
        let mut price = Price { cost: None, joules: None };
        for tier in Tier::ALL {
            let Some(model) = answer.line[tier] else { continue };
            let (device, pairs) = (answer.charged.tier(tier), pairs[tier]);
            let requests = u64::from(tier == answering);
            if requests + pairs + device.0 > 0 {
                let charge = Charge { hour, tenant, tier, model, requests, pairs };
                let cost = self.ledger.charge(&charge, answer.charged.of(tier));
                let joules = self.watts(model).map(|watts| watts * device.0 as f64 / 1e9);
                self.metrics.charged(&self.models[model], tenant, cost, joules);
                add_cost(&mut price.cost, cost);
                price.joules = joules.map(|joules| joules + price.joules.unwrap_or(0.0)).or(price.joules);
            }
        }
        price
    }

    /// Books device time that no response includes.
    pub fn act(&mut self, now: Ns, action: &Action) {
        let hour = self.hour();
        match action {
            Action::GaveUp { lane, tier } => {
                self.ledger.give_up(hour, *lane, *tier, now);
            }
            Action::Discard { tenant, tier, model, on, device } => {
                self.ledger.discard(hour, *tenant, (*tier, *model), (*on, *device));
            }
            _ => return,
        }
        self.fresh = true;
    }

    /// The time at which [`Books::hand_over`] is due if nothing else happens.
    pub fn due(&self) -> Ns {
        self.handed_over + if self.fresh { HAND_OVER } else { HAND_OVER_IDLE }
    }

    /// Flushes, unless that was done less than `ago` before now.
    pub fn hand_over_after(&mut self, ago: Ns, now: Ns, sched: &Scheduler) {
        if self.handed_over.saturating_add(ago) <= now {
            self.hand_over(now, sched);
        }
    }

    /// Flushes the ledger's increments to the store, and the present state to the metrics.
    pub fn hand_over(&mut self, now: Ns, sched: &Scheduler) {
        (self.handed_over, self.fresh) = (now, false);
        if let Some(journal) = &mut self.journal {
            journal.flush();
        }
        let increments = self.ledger.take_increments(self.hour(), now);
        if let Some(store) = &self.store {
            store.add(increments);
        }
        for model in sched.models() {
            let gauge = sched.gauge(model);
            let lanes = self.lanes.values().filter(|lane| lane.model == model).count();
            let facts = ModelFacts {
                jobs: gauge.jobs,
                tokens: gauge.tokens,
                work: gauge.work,
                lanes,
                lanes_up: gauge.lanes_up,
                prediction_error: sched.predictor(model).error(),
                memory_bytes: self.states(model).map(|state| state.memory_bytes).sum(),
                watts: self.watts(model),
            };
            self.metrics.model(&self.models[model], &facts);
        }
        self.devices_told(now);
        let stats = sched.stats();
        self.metrics.counts(&CountFacts {
            hedges: stats.hedges,
            hedges_won: stats.hedges_won,
            tries: stats.tries,
            tries_in_time: stats.tries_in_time,
            cancelled: stats.cancelled,
            faults: stats.faults,
        });
    }

    /// Passes the devices' time by use to the metrics.
    fn devices_told(&mut self, now: Ns) {
        let devices: Vec<_> = self.ledger.devices().map(|(on, name)| (on, name.clone())).collect();
        for (on, name) in devices {
            let Totals { idle, .. } = self.ledger.totals(on, now);
            for (model, used) in self.ledger.used(on) {
                let labels = Some(&self.models[model]);
                self.metrics.device(&name, labels, "charged", used.charged);
                self.metrics.device(&name, labels, "discarded", used.discarded);
            }
            self.metrics.device(&name, None, "idle", idle);
        }
    }

    fn hour(&self) -> Hour {
        Hour::at(self.clock.unix_seconds())
    }
}
