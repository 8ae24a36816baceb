//! Floor 2: what can be seen from outside. Pure code returns facts; these files count them.
//!
//! | file | what it knows |
//! |---|---|
//! | `metrics` | what is counted, and how it is scraped |
//! | `table` | every metric, its name and its labels |
//! | `spans` | requests as OpenTelemetry spans |
//! | `trace` | W3C trace context, in and out |

pub mod metrics;
pub mod spans;
mod table;
pub mod trace;
