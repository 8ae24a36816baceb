//! The one place that updates metrics, ledger and journal.

use super::clock::Clock;
use super::journal::Journal;
use super::{LaneSetup, Setup};
use crate::backend::DeviceState;
use crate::base::{Hour, Nanodollars, Ns, PerTier, TenantId, Tier};
use crate::ledger::books::{Accounts, Charge, DeviceAccount, LaneAccount, Ledger, TierAccount, Totals};
use crate::ledger::price::PriceBook;
use crate::ledger::rows::add_cost;
use crate::ledger::store::Store;
use crate::rerank::Served;
use crate::sched::{Action, Answer, Config, Done, Event, LaneId, Scheduler};
use crate::telemetry::metrics::{BatchFacts, CountFacts, DeviceFacts, Metrics, ModelLabels, TierFacts};
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
    lanes: Vec<LaneSetup>,
    /// The last reported state of each lane's device.
    devices: Vec<Option<DeviceState>>,
    /// When updates were last flushed, and whether there are newer ones.
    handed_over: Ns,
    fresh: bool,
}

impl Books {
    pub fn new(setup: &mut Setup) -> Self {
        let BooksSetup { mut prices, store, journal } = std::mem::take(&mut setup.books);
        let kinds: Vec<_> = setup.devices().map(|(name, kind)| (name.clone(), prices.kind(kind))).collect();
        let accounts = Accounts {
            tiers: PerTier::from_fn(|tier| {
                setup.tiers[tier].as_ref().map(|model| TierAccount {
                    model: model.name.clone(),
                    version: model.version.clone(),
                    kind: prices.kind(&model.device),
                })
            }),
            devices: kinds.into_iter().map(|(name, kind)| DeviceAccount { name, kind }).collect(),
            lanes: (setup.lanes.iter())
                .map(|lane| LaneAccount { tier: lane.tier, on: setup.device_of(lane) })
                .collect(),
            tenants: setup.tenants.iter().map(|(name, _)| name.clone()).collect(),
            prices,
        };
        let now = setup.clock.now();
        Self {
            clock: setup.clock,
            metrics: Arc::new(metrics(setup)),
            ledger: Ledger::new(accounts, now),
            store,
            journal,
            lanes: setup.lanes.clone(),
            devices: vec![None; setup.lanes.len()],
            handed_over: now,
            fresh: false,
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
        self.ledger.begin(lane.0 as usize, now);
    }

    /// Books that a lane is restarted, and its batches are lost.
    pub fn restart(&mut self, now: Ns, lane: LaneId) {
        self.ledger.restart(lane.0 as usize, now);
    }

    /// Books a finished batch and gives it its share of the device's time, which the scheduler then divides.
    pub fn end_batch(&mut self, now: Ns, done: &mut Done, (pairs, tokens): (usize, u64)) {
        self.fresh = true;
        let lane = &self.lanes[done.lane.0 as usize];
        done.device = self.ledger.end(self.hour(), done.lane.0 as usize, now, done.device);
        let result = done.result.map_or_else(|fault| fault.name(), |()| "ok");
        let (tier, tokens_max, device) = (lane.tier, lane.batch_tokens_max, done.device);
        self.metrics.batch(&BatchFacts { tier, result, pairs, tokens, tokens_max, device });
    }

    /// Stores the reported state of a lane's device.
    pub fn device(&mut self, lane: LaneId, state: DeviceState) {
        self.fresh = true;
        self.devices[lane.0 as usize] = Some(state);
    }

    /// The reported states of a tier's devices.
    fn devices(&self, tier: Tier) -> impl Iterator<Item = DeviceState> {
        let lanes = self.lanes.iter().zip(&self.devices);
        lanes.filter_map(move |(lane, state)| state.filter(|_| lane.tier == tier))
    }

    /// The mean power of a tier's lanes, if any reports it.
    fn watts(&self, tier: Tier) -> Option<f64> {
        let (sum, count) =
            self.devices(tier).filter_map(|state| state.watts).fold((0.0, 0), |(sum, n), w| (sum + w, n + 1));
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
            let (device, pairs) = (answer.charged.tier(tier), pairs[tier]);
            let requests = u64::from(tier == answering);
            if requests + pairs + device.0 > 0 {
                let charge = Charge { hour, tenant, tier, requests, pairs };
                let cost = self.ledger.charge(&charge, answer.charged.of(tier));
                let joules = self.watts(tier).map(|watts| watts * device.0 as f64 / 1e9);
                self.metrics.charged(tier, tenant, cost, joules);
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
            Action::GaveUp { lane } => {
                self.ledger.give_up(hour, lane.0 as usize, now);
            }
            Action::Discard { tenant, tier, on, device } => {
                self.ledger.discard(hour, *tenant, *tier, (*on, *device));
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
        for tier in Tier::ALL {
            let gauge = sched.gauge(tier);
            self.metrics.tier(
                tier,
                &TierFacts {
                    jobs: gauge.jobs,
                    tokens: gauge.tokens,
                    work: gauge.work,
                    lanes_up: gauge.lanes_up,
                    prediction_error: sched.predictor(tier).error(),
                    memory_bytes: self.devices(tier).map(|state| state.memory_bytes).sum(),
                    watts: self.watts(tier),
                },
            );
        }
        let devices: Vec<_> = self.ledger.devices().map(|(on, name)| (on, name.clone())).collect();
        for (on, name) in devices {
            let Totals { charged, discarded, idle, .. } = self.ledger.totals(on, now);
            self.metrics.device(&name, &DeviceFacts { charged, discarded, idle });
        }
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

    fn hour(&self) -> Hour {
        Hour::at(self.clock.unix_seconds())
    }
}

fn metrics(setup: &Setup) -> Metrics {
    let models = PerTier::from_fn(|tier| {
        setup.tiers[tier].as_ref().map(|model| ModelLabels {
            model: model.name.clone(),
            version: model.version.clone(),
            tier: tier.name(),
        })
    });
    let lanes = PerTier::from_fn(|tier| setup.lanes.iter().filter(|lane| lane.tier == tier).count());
    Metrics::new(models, lanes, setup.tenants.iter().map(|(name, _)| name.clone()).collect())
}
