//! Floor 2: device time, priced and charged to tenants.
//!
//! | file | what it knows |
//! |---|---|
//! | `price` | prices of device time |
//! | `books` | the books of a running server: device time and cost by tenant and model |
//! | `rows` | sums of one hour, which the books hand on |
//! | `store` | the books on disk |
//! | `schema` | its tables, and the migration from the release before |
//! | `report` | usage and cost, with or without idle time |

pub mod books;
pub mod price;
pub mod report;
pub mod rows;
mod schema;
pub mod store;
