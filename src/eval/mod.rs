//! Floor 5: judged sets, quality measures, and cached scores of a model.
//!
//! | file | what it holds |
//! |---|---|
//! | `set` | a judged set in BEIR's layout, with its first-stage run |
//! | `metrics` | nDCG, reciprocal rank, average precision, recall; Kendall's tau |
//! | `kept` | a model's scores on disk, so that no pair is scored twice |
//! | `significance` | confidence intervals, and the paired randomisation test |

mod kept;
mod metrics;
mod set;
mod significance;

pub use kept::{CacheError, CachedScorer, CachedScorerError, List};
pub use metrics::{Measure, kendall_tau, rank};
pub use set::{Candidate, Judged, SetError};
pub use significance::{Interval, mean, randomisation_p};
