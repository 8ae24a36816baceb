//! The scheduler's configuration: lanes, tenants and limits.

use crate::base::{DeviceId, DeviceNs, ModelId, Ns};
use crate::forecast::predict::Measured;
use serde::{Deserialize, Serialize};

/// The inputs of a scheduler. Equal inputs and events give equal decisions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// The lanes; the first [`LaneId`](super::LaneId)s are positions in this list.
    pub lanes: Vec<LaneConfig>,
    /// The tenants; a [`TenantId`](crate::base::TenantId) is a position in this list. Never empty.
    pub tenants: Vec<TenantConfig>,
    /// The models, each with the warm-up runs that seed its predictor; the first [`ModelId`]s are positions in this list.
    pub seeds: Vec<Vec<Measured>>,
    /// The limits.
    pub limits: Limits,
}

/// A lane: a scorer with its own thread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneConfig {
    /// Its model.
    pub model: ModelId,
    /// Its device.
    pub on: DeviceId,
    /// Most tokens of a batch.
    pub batch_tokens_max: u64,
    /// Most batches that it holds at once. With 2 a GPU does not wait for the host.
    pub depth: usize,
}

/// A tenant's share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TenantConfig {
    /// Its share of device time relative to the others', at least 1.
    pub weight: u32,
    /// Device time per second of wall time; none for no quota.
    pub quota: Option<DeviceNs>,
}

impl Default for TenantConfig {
    fn default() -> Self {
        Self { weight: 1, quota: None }
    }
}

/// The scheduler's limits, each with its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most jobs inside. Bounds memory: a job takes a few hundred bytes, and 4 per pair.
    pub jobs_max: usize,
    /// Most pairs inside. Bounds memory for large requests.
    pub pairs_max: u64,
    /// A job without a deadline is refused if its predicted wait for other jobs exceeds this. Its own time does not count.
    pub wait_ns_max: Ns,
    /// Longest predicted time of a batch. Bounds the wait of an urgent job for a lane.
    pub batch_ns_max: Ns,
    /// The answer is due this long before the deadline, to leave time for sending it.
    pub answer_ns_margin: Ns,
    /// A lane is given up if a batch takes this long, or 20 times its prediction if that is longer.
    pub stall_ns_min: Ns,
    /// The rest of a lane after its first fault; it doubles with each further fault.
    pub rest_ns_min: Ns,
    /// The longest rest of a lane.
    pub rest_ns_max: Ns,
    /// Hedges that each arriving job earns, in thousandths; a refused one too, else a server whose predictions make it
    /// refuse every job could not try. Bounds duplicate work.
    pub hedges_permille: u32,
    /// Most hedges that are saved up.
    pub hedges_burst: u32,
    /// The fewest candidates for which a top-k is worthwhile.
    pub top_k_min: u32,
    /// Candidates that the primary scores in a top-k if the request names no number.
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
