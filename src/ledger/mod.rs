//! Floor 2: device time, priced and charged to tenants.
//!
//! | file | what it knows |
//! |---|---|
//! | `price` | prices of device time |
//! | `books` | the books of a running server: device time and cost by tenant and model |
//! | `store` | the books on disk |
//! | `report` | usage and cost, with or without idle time |

pub mod books;
pub mod price;
pub mod report;
pub mod store;
