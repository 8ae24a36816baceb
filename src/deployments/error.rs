//! Why the file of deployments cannot be used, or a step cannot be made.

use super::schema::VERSION;
use super::swap::{Served, Step};
use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why the file of deployments cannot be used, or a step cannot be made.
#[derive(Debug, Error)]
pub enum DeploymentError {
    /// It is damaged or not a SQLite file.
    #[error("deployments {}: not a database, or damaged", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
    },
    /// It belongs to another program, or is a ledger.
    #[error("deployments {}: a database of another kind", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It was written by a later release.
    #[error("deployments {}: has version {found}, this release knows up to {VERSION}", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// Another server uses it.
    #[error("deployments {}: another process uses it; each server needs a file of its own", .path.display())]
    Owned {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be opened, read or written now.
    #[error("deployments {}: {what}", .path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// SQLite's or the system's message.
        what: String,
    },
    /// The route is being swapped.
    #[error("route `{route}`: swap {id} to {to} is {}; a route has one swap at a time", .step.name())]
    InProgress {
        /// The route.
        route: String,
        /// The swap that is open.
        id: i64,
        /// Its models.
        to: Box<Served>,
        /// Its step.
        step: Step,
    },
    /// Something else is live than the swap is to replace.
    #[error("route `{route}`: {} is live, and the swap is to replace {}", shown(.live.as_deref()), shown(.from.as_deref()))]
    Moved {
        /// The route.
        route: String,
        /// What is live.
        live: Option<Box<Served>>,
        /// What was thought to be.
        from: Option<Box<Served>>,
    },
    /// No open swap has the number.
    #[error("swap {id}: there is no such swap, or it has ended")]
    NoSwap {
        /// The number.
        id: i64,
    },
    /// The step is not the next one.
    #[error("swap {id}: is {}, and cannot be {wanted} next", .at.name())]
    Order {
        /// The swap.
        id: i64,
        /// Its step.
        at: Step,
        /// What it was to be.
        wanted: &'static str,
    },
    /// A route has no earlier models.
    #[error("route `{route}`: nothing was live before {}, so there is nothing to roll back to", .live)]
    NothingBefore {
        /// The route.
        route: String,
        /// What is live.
        live: Box<Served>,
    },
    /// Nothing is live on a route.
    #[error("route `{route}`: nothing is live on it; routes are {}", if .routes.is_empty() { "none".to_owned() } else { .routes.join(", ") })]
    NoRoute {
        /// The route.
        route: String,
        /// The routes on which something is.
        routes: Vec<String>,
    },
}

fn shown(served: Option<&Served>) -> String {
    served.map_or_else(|| "nothing".to_owned(), Served::to_string)
}

/// Why a transaction is not committed.
pub(super) enum Refusal {
    Told(DeploymentError),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

pub(super) fn name(path: &Path, error: &rusqlite::Error) -> DeploymentError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => DeploymentError::Corrupt { path },
        _ => DeploymentError::Failed { path, what: error.to_string() },
    }
}
