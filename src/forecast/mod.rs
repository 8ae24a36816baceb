//! Floor 2: predicted device time, learned from each batch.
//!
//! | file | contents |
//! |---|---|
//! | `load` | what the time of a batch depends on |
//! | `predict` | the time of a batch and its 99th percentile, learned online |
//! | `surprise` | when a run of unexpected batches means that the device has changed |
//! | `window` | the relative errors of the latest batches |

mod load;
pub mod predict;
mod surprise;
mod window;
