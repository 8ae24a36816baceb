//! Floor 2: predicted device time, learned from each batch.
//!
//! | file | what it knows |
//! |---|---|
//! | `predict` | the time of a batch and its 99th percentile, learned online |
//! | `surprise` | when batches that surprise it are a change of the device |
//! | `window` | the latest relative errors |

pub mod predict;
mod surprise;
mod window;
