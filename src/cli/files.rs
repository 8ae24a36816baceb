//! The files that a server writes: ledger, journal and deployments.

use super::Failure;
use super::config::Config;
use crate::base::Ns;
use crate::deployments::{DeploymentError, Deployments, Live};
use crate::engine::{BooksSetup, Clock, Journal};
use crate::ledger::store::Store;
use std::sync::Arc;

/// Ends swaps that the server before has left open, and says so. Returns what was live.
pub(super) fn recovered(
    deployments: Option<Deployments>,
    clock: Clock,
) -> Result<(Option<Deployments>, Vec<Live>), Failure> {
    let Some(mut deployments) = deployments else { return Ok((None, Vec::new())) };
    let wrong = |error: DeploymentError| Failure::usage(error.to_string());
    for swap in deployments.recover(Ns(clock.unix_ns())).map_err(wrong)? {
        let (step, to) = (swap.step().name(), &swap.intent.to);
        match swap.has_switched() {
            true => {
                tracing::warn!(route = swap.intent.route, %to, step, "a swap had switched when the server ended")
            }
            false => {
                tracing::warn!(route = swap.intent.route, %to, step, "a swap is abandoned: the server ended")
            }
        }
    }
    let live = deployments.live().map_err(wrong)?;
    Ok((Some(deployments), live))
}

/// Checks what `open_books` would open, without creating files.
pub(super) fn check(config: &Config) -> Result<(), Failure> {
    for (key, path) in [("ledger", &config.ledger), ("journal", &config.journal)] {
        let Some(path) = path else { continue };
        if path.as_os_str().is_empty() {
            return Err(Failure::usage(format!("{key}: must not be empty")));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if folder.is_some_and(|folder| !folder.is_dir()) {
            return Err(Failure::usage(format!("{key}: the folder of {} does not exist", path.display())));
        }
    }
    if let Some(path) = &config.ledger {
        Store::check(path).map_err(|error| Failure::usage(error.to_string()))?;
    }
    match config.journal.as_ref().filter(|path| path.exists()) {
        Some(path) => Err(Failure::usage(format!("journal: {} already exists", path.display()))),
        None => Ok(()),
    }
}

/// Opens the ledger and the journal, which are ours from now on.
pub(super) fn open_books(config: &Config, books: &mut BooksSetup) -> Result<(), Failure> {
    if let Some(path) = &config.ledger {
        let store = Store::open(path).map_err(|error| Failure::usage(error.to_string()))?;
        books.store = Some(Arc::new(store));
    }
    if let Some(path) = &config.journal {
        let complain = |error| Failure::usage(format!("journal: {}: {error}", path.display()));
        books.journal = Some(Journal::create(path).map_err(complain)?);
    }
    Ok(())
}
