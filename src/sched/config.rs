//! What the scheduler is given once: lanes, tenants and bounds.

use crate::base::{DeviceId, DeviceNs, Ns, PerTier, Tier};
use crate::forecast::predict::Measured;
use serde::{Deserialize, Serialize};

/// Everything that a scheduler is built from; with the same events it decides the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// The lanes; a [`LaneId`](super::LaneId) is a place in this list.
    pub lanes: Vec<LaneConfig>,
    /// The tenants; a [`TenantId`](crate::base::TenantId) is a place in this list. Never empty.
    pub tenants: Vec<TenantConfig>,
    /// Warm-up runs that seed each tier's predictor.
    pub seeds: PerTier<Vec<Measured>>,
    /// The bounds.
    pub limits: Limits,
}

/// One lane: a scorer with a thread of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaneConfig {
    /// Which model it runs.
    pub tier: Tier,
    /// What its time is spent on.
    pub on: DeviceId,
    /// Most tokens of a batch.
    pub batch_tokens_max: u64,
    /// Batches that it may hold at once; with 2 a GPU does not wait for the host.
    pub depth: usize,
}

/// One tenant's share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TenantConfig {
    /// Its share of device time relative to the others', at least 1.
    pub weight: u32,
    /// Device time that it may use in each second of wall time; none means no quota.
    pub quota: Option<DeviceNs>,
}

impl Default for TenantConfig {
    fn default() -> Self {
        Self { weight: 1, quota: None }
    }
}

/// The scheduler's bounds, each with its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Jobs inside at once. Bounds memory: a job is a few hundred bytes and 4 a pair.
    pub jobs_max: usize,
    /// Pairs inside at once. Bounds memory where requests are large.
    pub pairs_max: u64,
    /// Predicted wait for others past which a job without a deadline is refused, what it takes itself not counted.
    /// Nobody waits longer.
    pub wait_ns_max: Ns,
    /// Longest predicted time of a batch. Bounds how long an urgent job waits for a lane.
    pub batch_ns_max: Ns,
    /// Time kept between the scheduler's answer and the deadline, for the way back to the client.
    pub answer_ns_margin: Ns,
    /// A lane is given up after this long in a batch, or after 20 times its prediction if longer.
    pub stall_ns_min: Ns,
    /// How long a lane rests after its first fault; doubles with each further one.
    pub rest_ns_min: Ns,
    /// How long a lane rests at most.
    pub rest_ns_max: Ns,
    /// Hedges that each admitted job earns, in thousandths. Bounds the work done twice.
    pub hedges_permille: u32,
    /// Hedges that may be saved up.
    pub hedges_burst: u32,
    /// The fewest candidates for which the primary's view is worth a second pass.
    pub top_k_min: u32,
    /// How many candidates the primary scores when a caller asks for a top-k and names no number.
    pub top_k_default: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            jobs_max: 16_384,
            pairs_max: 2_000_000,
            wait_ns_max: Ns::from_millis(60_000),
            batch_ns_max: Ns::from_millis(50),
            answer_ns_margin: Ns::from_millis(3),
            stall_ns_min: Ns::from_millis(5_000),
            rest_ns_min: Ns::from_millis(100),
            rest_ns_max: Ns::from_millis(30_000),
            hedges_permille: 50,
            hedges_burst: 16,
            top_k_min: 3,
            top_k_default: 20,
        }
    }
}
