//! The scheduler's events and actions. Plain data: ids, lengths and times, never text.

use super::config::LaneConfig;
use crate::base::{DeviceId, DeviceNs, LaneId, ModelId, Ns, PerTier, TenantId, Tier, Used};
use crate::forecast::predict::Measured;
use crate::rerank::{Degradation, Policy, Priority, Refusal, Served};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

/// A request in the scheduler. The driver assigns the numbers and never reuses one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

/// The models of a job, fixed when it is admitted, so that scores of two primaries never mix. A tier that has no part in
/// the job has none.
pub type Line = PerTier<Option<ModelId>>;

/// A batch; numbers increase with each dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BatchId(pub u64);

/// An event, reported by the driver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// Tokenised requests arrive. Requests of one event can be batched together.
    Arrive(Vec<Arrival>),
    /// The client disconnected. An unknown or answered job is ignored.
    Cancel {
        /// The job of the client.
        job: JobId,
    },
    /// A lane finished its oldest batch. A batch that was given up is ignored.
    Done(Done),
    /// The answer to [`Action::Rank`].
    Ranked {
        /// The job that was ranked.
        job: JobId,
        /// Its candidates from best to worst by the fallback's scores.
        order: Arc<[u32]>,
    },
    /// A lane's scorer is loaded and warm, at start or after [`Action::Restart`].
    LaneUp {
        /// The lane.
        lane: LaneId,
    },
    /// A model's lanes are loaded and warm: it takes work from now on.
    ModelUp {
        /// Its id, which is not used before or after.
        model: ModelId,
        /// Its warm-up runs, which seed its predictor.
        seeds: Vec<Measured>,
        /// Its lanes; their ids are not used before or after.
        lanes: Vec<(LaneId, LaneConfig)>,
    },
    /// No later job names the model. Its lanes are released once no job that does is inside.
    Retire {
        /// The model.
        model: ModelId,
    },
    /// Time has passed; sent at [`next_wake`](super::Scheduler::next_wake).
    Tick,
    /// No job is admitted from now on.
    Drain,
}

/// An arriving job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// Its id.
    pub job: JobId,
    /// The tenant that is charged.
    pub tenant: TenantId,
    /// Its priority within its tenant.
    pub priority: Priority,
    /// The answers that the caller accepts.
    pub policy: Policy,
    /// When its first byte was accepted.
    pub arrived: Ns,
    /// When its answer is due.
    pub deadline: Option<Ns>,
    /// Most candidates that the primary scores in a top-k.
    pub top_k: Option<u32>,
    /// Number of candidates.
    pub pairs: u32,
    /// The models that may answer as the primary, the preferred one first. One that cannot read one of the pairs is left out.
    pub primaries: SmallVec<[Ask; 1]>,
    /// The model that may answer as the fallback; none of the primaries.
    pub fallback: Option<Ask>,
}

/// A request as one model reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The model.
    pub model: ModelId,
    /// Tokens that all pairs have in common, where its scorers compute them once for a request and keep them for its next
    /// batch.
    pub prefix: u32,
    /// Tokens of each pair beyond the prefix; one for each candidate.
    pub lengths: Arc<[u32]>,
}

/// The end of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The lane.
    pub lane: LaneId,
    /// The batch.
    pub batch: BatchId,
    /// Device time to charge: its share of the device, at most `took`.
    pub device: DeviceNs,
    /// How long the batch occupied the lane, without overlap with the batch before it. Predictions learn from this.
    pub took: Ns,
    /// Success, or the fault.
    pub result: Result<(), Fault>,
}

/// Why a batch has no scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fault {
    /// The batch did not fit into memory; half of it may.
    OutOfMemory,
    /// A score was NaN or infinite.
    NonFinite,
    /// The scorer panicked or reported an error.
    Failed,
    /// The lane exceeded its stall bound. Only the scheduler itself reports this.
    Stalled,
}

impl Fault {
    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutOfMemory => "out_of_memory",
            Self::NonFinite => "non_finite",
            Self::Failed => "failed",
            Self::Stalled => "stalled",
        }
    }
}

/// An action for the driver. Actions are executed in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Runs a batch on a lane.
    Dispatch(Dispatch),
    /// Orders a job's candidates by the fallback's scores; answered with [`Event::Ranked`] before any other event.
    Rank {
        /// The job.
        job: JobId,
    },
    /// Answers a job. The job id does not occur again.
    Answer {
        /// The job.
        job: JobId,
        /// The scores to use and the facts to declare.
        answer: Answer,
    },
    /// Refuses a job. The job id does not occur again.
    Refuse {
        /// The job.
        job: JobId,
        /// The reason.
        refusal: Refusal,
    },
    /// Gives up a lane's scorer and thread, and makes new ones.
    Restart {
        /// The lane.
        lane: LaneId,
        /// The fault.
        fault: Fault,
    },
    /// Ends a lane of a retired model, which holds no batch.
    Release {
        /// The lane.
        lane: LaneId,
    },
    /// Books the device time of the lane's oldest batch, which was given up, to the house; no [`Done`] will report it.
    GaveUp {
        /// The lane.
        lane: LaneId,
        /// What its model is to the first job in the batch.
        tier: Tier,
    },
    /// Books device time that no response includes: a lost race, a fault, a cancelled job.
    Discard {
        /// The tenant of the request; none for faults, which the operator pays.
        tenant: Option<TenantId>,
        /// The tier.
        tier: Tier,
        /// Its model.
        model: ModelId,
        /// The device.
        on: DeviceId,
        /// The time.
        device: DeviceNs,
    },
}

/// A digest of actions. Equal actions give equal digests on all machines of the same word size and byte order.
pub fn digest(actions: &[Action]) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    actions.hash(&mut hasher);
    hasher.finish()
}

/// FNV-1a over 64 bits (Fowler, Noll, Vo). Unlike a library's hasher it never changes.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// A batch to run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dispatch {
    /// The lane.
    pub lane: LaneId,
    /// Its id, repeated in [`Done`].
    pub batch: BatchId,
    /// Its pairs.
    pub slices: Vec<Slice>,
}

/// Pairs of one job in a batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// The job.
    pub job: JobId,
    /// Positions in `order`; candidates themselves if there is no order.
    pub range: Range<u32>,
    /// The order in which candidates are taken.
    pub order: Option<Arc<[u32]>>,
}

impl Slice {
    /// The candidates of the slice.
    pub fn candidates(&self) -> impl Iterator<Item = usize> + '_ {
        self.range.clone().map(|place| match &self.order {
            Some(order) => order[place as usize] as usize,
            None => place as usize,
        })
    }
}

/// The facts of an answer; the driver has the scores.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// The scores to use. The best `k` of a top-k are the first `k` of the ranked order.
    pub served: Served,
    /// Why the answer is degraded, if it is.
    pub degraded: Option<Degradation>,
    /// Device time charged to the job.
    pub charged: Used,
    /// Time in which a lane worked on the job.
    pub compute: Ns,
    /// Its models.
    pub line: Line,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_fnv_1a_and_differ_with_the_actions() {
        // From the authors' test vectors.
        for (text, expected) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
            hasher.write(text.as_bytes());
            assert_eq!(hasher.finish(), expected, "{text}");
        }
        let rank = |job| Action::Rank { job: JobId(job) };
        let digests = [digest(&[]), digest(&[rank(1)]), digest(&[rank(2)]), digest(&[rank(1), rank(2)])];
        assert_eq!(digests.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        [rank(1)][..].hash(&mut hasher);
        assert_eq!(digest(&[rank(1)]), hasher.finish());
    }
}
