//! The inputs of a simulated run: traffic, devices and faults. Plain data.

use crate::base::{DeviceId, DeviceNs, ModelId, Ns, Tier};
use crate::forecast::predict::{Load, Measured};
use crate::rerank::{Policy, Priority};
use crate::sched::{Config, LaneConfig, Limits, TenantConfig};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The period of drift.
const DRIFT_PERIOD: Ns = Ns::from_millis(10_000);

/// One simulated run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scenario {
    /// The seed of all random numbers.
    pub seed: u64,
    /// The number of requests.
    pub requests: u64,
    /// The arrival process.
    pub arrivals: Arrivals,
    /// Mean number of candidates. Geometric, from 1 to ten times the mean.
    pub candidates_mean: f64,
    /// Median tokens of a pair. Lognormal, clipped to 4 to 512.
    pub tokens_median: f64,
    /// Sigma of the logarithm of a pair's tokens.
    pub tokens_sigma: f64,
    /// Most tokens that a request's pairs have in common in the primary, from which a number is drawn. Scorers keep the
    /// prefixes of a few requests.
    #[serde(default)]
    pub prefix_tokens_max: u32,
    /// Recorded requests to draw from, each as the tokens of its pairs. If empty, the three fields above are used.
    #[serde(default)]
    pub requests_seen: Vec<Arc<[u32]>>,
    /// Budgets with their weights; `None` for requests without a budget.
    pub budgets: Vec<(f64, Option<Ns>)>,
    /// Policies with their weights.
    pub policies: Vec<(f64, Policy)>,
    /// Priorities with their weights.
    pub priorities: Vec<(f64, Priority)>,
    /// The tenants.
    pub tenants: Vec<TenantMix>,
    /// The lanes, each on a device of its own.
    pub devices: Vec<Device>,
    /// Whether all lanes share one device. Only the books depend on it, not the times of batches.
    #[serde(default)]
    pub one_device: bool,
    /// The faults.
    pub hardships: Hardships,
    /// Periods in which devices are slower.
    #[serde(default)]
    pub spells: Vec<Spell>,
    /// The scheduler's limits.
    pub limits: Limits,
}

/// The arrival process. Rates are requests per second over all tenants.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Arrivals {
    /// A Poisson process.
    Poisson {
        /// Requests per second.
        rate: f64,
    },
    /// A Poisson process that is switched on and off in cycles of `period`.
    Bursts {
        /// Mean requests per second.
        rate: f64,
        /// The length of a cycle.
        period: Ns,
        /// The fraction of a cycle in which requests arrive.
        on: f64,
    },
}

/// A tenant's part in the traffic.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct TenantMix {
    /// Its share of the requests, relative to the others'.
    pub traffic: f64,
    /// Its share of device time, relative to the others'.
    pub weight: u32,
}

/// A lane's device: T = `c0` + `c1` tokens + `c2` sum(len^2), times noise.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Device {
    /// The tier of its model.
    pub tier: Tier,
    /// The place of its model among the primaries, the preferred one first.
    #[serde(default)]
    pub place: usize,
    /// Nanoseconds per batch.
    pub c0: f64,
    /// Nanoseconds per token.
    pub c1: f64,
    /// Nanoseconds per squared token of a pair.
    pub c2: f64,
    /// Sigma of the logarithm of the noise.
    pub noise: f64,
    /// Most tokens of a batch.
    pub batch_tokens_max: u64,
    /// Batches that it may hold at once.
    pub depth: usize,
}

/// What a model is in a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Role {
    pub tier: Tier,
    /// Its place among the primaries.
    pub place: usize,
}

/// A period in which devices are slower, for example because of a noisy neighbour. If it begins at zero it also slows
/// warm-up.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Spell {
    /// When it begins.
    pub from: Ns,
    /// When it ends.
    pub until: Ns,
    /// The factor on the time of a batch.
    pub factor: f64,
    /// The lane that is slowed; none for all.
    pub lane: Option<usize>,
    /// The sizes of batches that are slowed, in tokens: at least the first, below the second.
    pub tokens: (u64, u64),
}

impl Spell {
    /// A period that slows all lanes and sizes.
    pub fn of_all(from: Ns, until: Ns, factor: f64) -> Self {
        Self { from, until, factor, lane: None, tokens: (0, u64::MAX) }
    }

    /// The factor on the time of a batch of `tokens` on a lane.
    pub(super) fn factor(&self, now: Ns, lane: usize, tokens: u64) -> f64 {
        let is_hit = (self.from..self.until).contains(&now)
            && self.lane.is_none_or(|only| only == lane)
            && (self.tokens.0..self.tokens.1).contains(&tokens);
        if is_hit { self.factor } else { 1.0 }
    }
}

/// Faults, as fractions of batches or requests.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Hardships {
    /// Batches that take 5 to 50 times as long.
    pub slow: f64,
    /// Batches that hang until the lane is given up.
    pub hang: f64,
    /// Batches at which the scorer panics.
    pub panic: f64,
    /// Batches with a score that is not finite.
    pub non_finite: f64,
    /// Batches of more than half the lane's tokens that run out of memory.
    pub out_of_memory: f64,
    /// Requests that their client cancels within the budget, or within a second if there is none.
    pub cancel: f64,
    /// The largest factor of a slow change of all devices, with a period of ten seconds; 0 for none.
    pub drift: f64,
    /// Requests at whose arrival another version of a model begins to load. It may fail to; else it takes the place of the
    /// version before it, which is retired.
    #[serde(default)]
    pub swap: f64,
    /// Requests at whose arrival a model is evicted until it is loaded again.
    #[serde(default)]
    pub evict: f64,
    /// Steps after which the clock jumps ahead by up to 100 ms, as after a pause of the machine.
    pub clock_gap: f64,
}

impl Hardships {
    /// All faults at low rates.
    pub const ALL: Self = Self {
        slow: 0.002,
        hang: 0.000_2,
        panic: 0.000_5,
        non_finite: 0.000_5,
        out_of_memory: 0.002,
        cancel: 0.03,
        drift: 1.5,
        clock_gap: 0.000_02,
        swap: 0.000_5,
        evict: 0.000_1,
    };

    /// The factor of the slow change on the time of a batch.
    pub(super) fn drift_at(&self, now: Ns) -> f64 {
        if self.drift == 0.0 {
            return 1.0;
        }
        let phase = now.0 as f64 / DRIFT_PERIOD.0 as f64 * std::f64::consts::TAU;
        1.0 + (self.drift - 1.0) * (1.0 - phase.cos()) / 2.0
    }
}

impl Scenario {
    /// A GPU primary and a CPU fallback under Poisson traffic of one tenant at a multiple of the
    /// primary's capacity, with budgets of 50 ms, 150 ms and 500 ms.
    pub fn mixed(seed: u64, requests: u64, load: f64) -> Self {
        let mut scenario = Self {
            seed,
            requests,
            arrivals: Arrivals::Poisson { rate: 1.0 },
            candidates_mean: 32.0,
            tokens_median: 90.0,
            tokens_sigma: 0.5,
            prefix_tokens_max: 0,
            requests_seen: Vec::new(),
            budgets: [50, 150, 500].map(|ms| (1.0, Some(Ns::from_millis(ms)))).to_vec(),
            policies: vec![(1.0, Policy::Auto)],
            priorities: vec![(1.0, Priority::Normal)],
            tenants: vec![TenantMix { traffic: 1.0, weight: 1 }],
            devices: vec![
                Device {
                    tier: Tier::Primary,
                    place: 0,
                    c0: 400e3,
                    c1: 1500.0,
                    c2: 1.0,
                    noise: 0.05,
                    batch_tokens_max: 16_384,
                    depth: 2,
                },
                Device {
                    tier: Tier::Fallback,
                    place: 0,
                    c0: 50e3,
                    c1: 500.0,
                    c2: 0.5,
                    noise: 0.1,
                    batch_tokens_max: 8_192,
                    depth: 1,
                },
            ],
            one_device: false,
            hardships: Hardships::default(),
            spells: Vec::new(),
            limits: Limits {
                batch_ns_max: Ns::from_millis(20),
                answer_ns_margin: Ns::from_millis(1),
                ..Limits::default()
            },
        };
        scenario.arrivals = Arrivals::Poisson { rate: load * scenario.capacity() };
        scenario
    }

    /// Requests a second that the primary's devices can score in full batches.
    pub fn capacity(&self) -> f64 {
        // The mean of a lognormal variable, and of its square.
        let mean = self.tokens_median * (self.tokens_sigma.powi(2) / 2.0).exp();
        let square = self.tokens_median.powi(2) * (2.0 * self.tokens_sigma.powi(2)).exp();
        self.devices
            .iter()
            .filter(|device| device.tier == Tier::Primary && device.place == 0)
            .map(|device| {
                let pairs = device.batch_tokens_max as f64 / mean;
                let pair = device.c0 / pairs + device.c1 * mean + device.c2 * square;
                1e9 / (pair * self.candidates_mean)
            })
            .sum()
    }

    /// The time of a request alone on the first primary device, in full batches and without noise.
    pub fn alone(&self, lengths: &[u32]) -> Ns {
        let device = self.devices.iter().find(|device| device.tier == Tier::Primary);
        let load = Load::of(lengths.iter().copied());
        device.map_or(Ns::ZERO, |device| {
            let batches = load.tokens.div_ceil(device.batch_tokens_max).max(1);
            Ns((device.mean_ns(&load) + (batches - 1) as f64 * device.c0) as u64)
        })
    }

    /// The scheduler's configuration, its predictors seeded by noiseless runs of the devices.
    pub fn config(&self) -> Config {
        let roles = self.roles();
        let seeds = roles.iter().map(|&role| self.seeds(role)).collect();
        let model = |lane: usize| {
            let place = roles.iter().position(|&role| self.lanes_of(role).any(|other| other == lane));
            ModelId(place.expect("every lane has its model") as u32)
        };
        Config {
            lanes: (0..self.devices.len()).map(|lane| self.lane_config(lane, model(lane))).collect(),
            tenants: self
                .tenants
                .iter()
                .map(|tenant| TenantConfig { weight: tenant.weight, quota: None })
                .collect(),
            seeds,
            limits: self.limits.clone(),
        }
    }

    /// The warm-up runs of a model.
    pub(super) fn seeds(&self, role: Role) -> Vec<Measured> {
        self.lanes_of(role).next().map_or_else(Vec::new, |lane| self.warm_up(lane))
    }

    fn warm_up(&self, lane: usize) -> Vec<Measured> {
        let device = &self.devices[lane];
        let sizes = (5..).map(|power| 1u64 << power).take_while(|&tokens| tokens <= device.batch_tokens_max);
        sizes
            .map(|tokens| {
                let pairs = tokens.div_ceil(128);
                let load = Load::of((0..pairs).map(|_| (tokens / pairs) as u32));
                let took = device.mean_ns(&load) * self.slowness(Ns::ZERO, lane, load.tokens);
                Measured { load, took: DeviceNs(took as u64) }
            })
            .collect()
    }

    /// The factor of all spells on the time of a batch of `tokens` on a lane.
    pub(super) fn slowness(&self, now: Ns, lane: usize, tokens: u64) -> f64 {
        self.spells.iter().map(|spell| spell.factor(now, lane, tokens)).product()
    }

    /// The first version of a tier's preferred model.
    pub fn model(tier: Tier) -> ModelId {
        ModelId(tier as u32)
    }

    /// The models that it has, by the number of their first versions: the preferred primary, the fallback, then the other
    /// primaries.
    pub(super) fn roles(&self) -> Vec<Role> {
        let places = self.devices.iter().map(|device| device.place).max().unwrap_or(0);
        let others = (1..=places).map(|place| Role { tier: Tier::Primary, place });
        Tier::ALL.into_iter().map(|tier| Role { tier, place: 0 }).chain(others).collect()
    }

    /// The lanes of a model, by their positions.
    pub(super) fn lanes_of(&self, role: Role) -> impl Iterator<Item = usize> + '_ {
        let is_its = move |device: &Device| (device.tier, device.place) == (role.tier, role.place);
        (0..self.devices.len()).filter(move |&lane| is_its(&self.devices[lane]))
    }

    /// A lane's configuration for a version of its model.
    pub(super) fn lane_config(&self, lane: usize, model: ModelId) -> LaneConfig {
        let Device { batch_tokens_max, depth, .. } = self.devices[lane];
        LaneConfig { model, on: self.device_of(lane), batch_tokens_max, depth }
    }

    /// The device of a lane.
    pub fn device_of(&self, lane: usize) -> DeviceId {
        DeviceId(if self.one_device { 0 } else { lane as u32 })
    }

    /// Whether a tier has a device.
    pub fn has(&self, tier: Tier) -> bool {
        self.devices.iter().any(|device| device.tier == tier)
    }
}

impl Device {
    /// Nanoseconds that a batch takes without noise.
    pub fn mean_ns(&self, load: &Load) -> f64 {
        self.c0 + self.c1 * load.tokens as f64 + self.c2 * load.squares as f64
    }
}
