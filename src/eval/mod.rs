//! Floor 2: judged sets, and how good an order is.
//!
//! | file | what it holds |
//! |---|---|
//! | `set` | a judged set in BEIR's layout, with its first-stage run |
//! | `metrics` | nDCG, reciprocal rank, average precision, recall; Kendall's tau |
//! | `significance` | intervals, and the paired randomisation test |

mod metrics;
mod set;
mod significance;

pub use metrics::{Measure, kendall_tau, rank};
pub use set::{Candidate, Judged, SetError};
pub use significance::{Interval, mean, randomisation_p};
