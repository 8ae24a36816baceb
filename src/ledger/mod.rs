//! Floor 2: who used device time, and what it costs.
//!
//! | file | what it knows |
//! |---|---|
//! | `price` | what device time costs |
//! | `books` | who used which device for how long; the books of a running server |
//! | `store` | the same on disk |
//! | `report` | who owes what, idle time included or not |

pub mod books;
pub mod price;
pub mod report;
pub mod store;
