//! Floor 2: what work takes and costs.
//!
//! | file | what it knows |
//! |---|---|
//! | `predict` | how long a device needs for a batch, learned online |
//! | `split` | how a batch's device time is divided, exactly |
//! | `price` | what device time costs |
//! | `ledger` | who used which device for how long; the books of a running server |
//! | `store` | the same on disk |
//! | `report` | who owes what, idle time included or not |

pub mod ledger;
pub mod predict;
pub mod price;
pub mod report;
pub mod split;
pub mod store;
mod window;
