//! What the scheduler is told and what it asks for. Plain data: ids, lengths and times, never text.

use crate::base::{DeviceId, DeviceNs, Ns, PerTier, TenantId, Tier, Used};
use crate::rerank::{Degradation, Policy, Priority, Refusal, Served};
use serde::{Deserialize, Serialize};
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

/// A request inside the scheduler; the driver numbers them and uses no number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

/// A lane's place in the configuration's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LaneId(pub u32);

/// A batch; numbers rise with each dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BatchId(pub u64);

/// What happened, as the driver saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// Tokenised requests ask for work. Those that come together can be batched together.
    Arrive(Vec<Arrival>),
    /// The client left; an unknown or answered job is ignored.
    Cancel {
        /// Whose client.
        job: JobId,
    },
    /// A lane finished its oldest batch; a batch that was given up is ignored.
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
        /// Which lane.
        lane: LaneId,
    },
    /// Time passed; sent when [`next_wake`](super::Scheduler::next_wake) is reached.
    Tick,
    /// No job is admitted from here on.
    Drain,
}

/// A job as the scheduler knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// Its number.
    pub job: JobId,
    /// Who pays.
    pub tenant: TenantId,
    /// How it ranks among its tenant's.
    pub priority: Priority,
    /// Which tiers may answer.
    pub policy: Policy,
    /// When its first byte was accepted.
    pub arrived: Ns,
    /// When its answer stops being of use.
    pub deadline: Option<Ns>,
    /// At most how many candidates the primary scores in a top-k.
    pub top_k: Option<u32>,
    /// Tokens of each pair, by each tier's tokenizer; the same number of pairs in both, or none
    /// for a tier that is not configured.
    pub lengths: PerTier<Arc<[u32]>>,
}

/// The end of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Where it ran.
    pub lane: LaneId,
    /// Which one.
    pub batch: BatchId,
    /// Device time that is charged for it: its share of the device, no more than it took.
    pub device: DeviceNs,
    /// How long the lane was at it, from start to finish, not overlapping its batch before: what the next one of this
    /// size is expected to take.
    pub took: Ns,
    /// Whether there are scores.
    pub result: Result<(), Fault>,
}

/// Why a batch has no scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fault {
    /// The batch did not fit; half of it may.
    OutOfMemory,
    /// A score was NaN or infinite.
    NonFinite,
    /// The scorer panicked or reported an error.
    Failed,
    /// The lane passed its stall bound; only the scheduler itself says so.
    Stalled,
}

impl Fault {
    /// The name that metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutOfMemory => "out_of_memory",
            Self::NonFinite => "non_finite",
            Self::Failed => "failed",
            Self::Stalled => "stalled",
        }
    }
}

/// What the driver has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Runs a batch on a lane.
    Dispatch(Dispatch),
    /// Orders a job's candidates by the fallback's scores and says so with [`Event::Ranked`]
    /// before any other event.
    Rank {
        /// Which job.
        job: JobId,
    },
    /// Answers a job; it is not mentioned again.
    Answer {
        /// Which job.
        job: JobId,
        /// From which scores, and what to declare.
        answer: Answer,
    },
    /// Refuses a job; it is not mentioned again.
    Refuse {
        /// Which job.
        job: JobId,
        /// Why.
        refusal: Refusal,
    },
    /// Gives up a lane's scorer and its thread, and makes new ones.
    Restart {
        /// Which lane.
        lane: LaneId,
        /// What it did.
        fault: Fault,
    },
    /// Books the device time of the lane's oldest batch, which was given up, as the house's: no [`Done`] will tell of it.
    GaveUp {
        /// Where it ran.
        lane: LaneId,
    },
    /// Books device time that no response will show: a loser of a race, a fault, a client gone.
    Discard {
        /// Whose request it was for; none for faults, which the house pays.
        tenant: Option<TenantId>,
        /// Which model worked.
        tier: Tier,
        /// On what.
        on: DeviceId,
        /// For how long.
        device: DeviceNs,
    },
}

/// Condenses actions into a number: equal actions give equal digests, on any machine of the same
/// word size and byte order.
pub fn digest(actions: &[Action]) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    actions.hash(&mut hasher);
    hasher.finish()
}

/// FNV-1a over 64 bits (Fowler, Noll, Vo), whose result no release of a library changes.
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
    /// Where.
    pub lane: LaneId,
    /// Its number, to be repeated in [`Done`].
    pub batch: BatchId,
    /// Its pairs.
    pub slices: Vec<Slice>,
}

/// Pairs of one job in a batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// Whose.
    pub job: JobId,
    /// Places in `order`, or candidates themselves where there is none.
    pub range: Range<u32>,
    /// The order by which the candidates are taken.
    pub order: Option<Arc<[u32]>>,
}

impl Slice {
    /// The candidates that the slice covers.
    pub fn candidates(&self) -> impl Iterator<Item = usize> + '_ {
        self.range.clone().map(|place| match &self.order {
            Some(order) => order[place as usize] as usize,
            None => place as usize,
        })
    }
}

/// An answer's facts; the driver has the scores.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// Which scores to use; the best `k` of a top-k are the first `k` of the order that was ranked.
    pub served: Served,
    /// Why it is less than the policy's best.
    pub degraded: Option<Degradation>,
    /// Device time charged to the job.
    pub charged: Used,
    /// Time in which a lane worked on the job.
    pub compute: Ns,
}
