//! Floor 2: what work takes and costs.

pub mod predict;
pub mod split;
mod window;
