//! Floor 2: what work takes and costs.
