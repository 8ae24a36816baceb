//! Floor 0: types that all modules use: units, tiers, tenants, names of models, hours, files of lines.

mod calendar;
mod hex;
mod lines;
mod model_ref;
mod side;
mod split;
mod units;
mod used;

pub use calendar::{Hour, Timestamp};
pub use hex::hex;
pub use lines::{FileError, each_line, line_text};
pub use model_ref::ModelRef;
pub use side::Side;
pub use split::{shares, split};
pub use units::{DeviceId, DeviceNs, Nanodollars, Ns, PerTier, TenantId, Tier, Tokens};
pub use used::Used;
