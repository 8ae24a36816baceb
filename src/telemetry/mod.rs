//! Floor 2: observability. Pure code returns facts; these files record them.
//!
//! | file | what it knows |
//! |---|---|
//! | `metrics` | Prometheus metrics |
//! | `table` | every metric, with its name and labels |
//! | `spans` | requests as OpenTelemetry spans |
//! | `trace` | W3C trace context |

pub mod metrics;
pub mod spans;
mod table;
pub mod trace;
