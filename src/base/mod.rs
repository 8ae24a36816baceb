//! Floor 0: words that every other module uses. Nothing here knows about Podium's business.

mod hex;
mod lines;
mod units;

pub use hex::hex;
pub use lines::{FileError, each_line, line_text};
pub use units::{DeviceNs, Nanodollars, Ns, PerTier, TenantId, Tier, Tokens};
