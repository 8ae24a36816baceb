//! Floor 2: metrics and traces.
