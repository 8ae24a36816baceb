//! Floor 0: types that all modules use: units, tiers, tenants, names of models, values by id, hours, files of lines.

mod calendar;
mod hex;
mod lines;
mod model_ref;
mod side;
mod slots;
mod split;
mod units;
mod used;

pub use calendar::{Hour, Timestamp};
pub use hex::hex;
pub use lines::{FileError, each_line, line_text};
pub use model_ref::ModelRef;
pub use side::Side;
pub use slots::Slots;
pub use split::{shares, split};
pub use units::{DeviceId, DeviceNs, LaneId, ModelId, Nanodollars, Ns, PerTier, TenantId, Tier, Tokens};
pub use used::Used;
