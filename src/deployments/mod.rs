//! Floor 2: which versions are live on which route, and how they came to be: a SQLite file that outlives the server.
//!
//! | file | what it knows |
//! |---|---|
//! | `swap` | a swap of a route's models, step by step |
//! | `schema` | the table |
//! | `rows` | swaps as its rows |
//! | `store` | the file: one transaction for each step |
//! | `error` | why it cannot be used, or a step cannot be made |
//!
//! A server owns its file: two servers may share a ledger, but each has routes of its own.

mod error;
mod rows;
mod schema;
mod store;
mod swap;

pub use error::DeploymentError;
pub use store::Deployments;
pub use swap::{Intent, Live, Outcome, Served, Step, Swap};
