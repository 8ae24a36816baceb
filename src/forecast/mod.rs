//! Floor 2: how long a device will need. The scheduler asks it for each batch, and it learns from each.
//!
//! | file | what it knows |
//! |---|---|
//! | `predict` | the time of a batch and its 99th percentile, learned online |
//! | `surprise` | when batches that surprise it are a change of the device |
//! | `window` | the last relative errors |

pub mod predict;
mod surprise;
mod window;
