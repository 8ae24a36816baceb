//! `podium models history` and `podium models rollback`: which versions were live on which route, from the file of
//! deployments.

use super::Failure;
use crate::base::{Ns, Timestamp};
use crate::deployments::{DeploymentError, Deployments, Intent, Live, Outcome, Swap};
use crate::engine::Clock;
use std::fmt::Write;
use std::path::Path;

/// Shows what is live on each route, and the swaps, newest first.
pub(super) fn history(file: &Path, route: Option<&str>) -> Result<(), Failure> {
    let (live, swaps) = Deployments::read(file, route).map_err(|error| Failure::input(error.to_string()))?;
    let live: Vec<Live> =
        live.into_iter().filter(|live| route.is_none_or(|route| route == live.route)).collect();
    if let Some(route) = route.filter(|_| swaps.is_empty()) {
        return Err(Failure::usage(format!("route `{route}` has no history in {}", file.display())));
    }
    super::print(&shown(&live, &swaps))
}

fn shown(live: &[Live], swaps: &[Swap]) -> String {
    let mut text = String::new();
    for Live { route, served, since, swap } in live {
        writeln!(text, "live on {route} since {}: {served} (swap {swap})", date(*since))
            .expect("a string takes all");
    }
    for swap in swaps {
        let Intent { route, from, to, who, why } = &swap.intent;
        let from = from.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
        let outcome = match &swap.outcome {
            Outcome::Open => format!("is {}", swap.step().name()),
            Outcome::Switched { note: None } => "switched".to_owned(),
            Outcome::Switched { note: Some(note) } => format!("switched ({note})"),
            Outcome::Abandoned { reason } => format!("abandoned: {reason}"),
        };
        let begun = date(swap.steps[0].1);
        writeln!(text, "{begun} {route}, swap {}: {from} -> {to}, by {who} ({why}): {outcome}", swap.id)
            .expect("a string takes all");
    }
    text
}

/// Makes live what was live before, while no server runs.
pub(super) fn roll_back(file: &Path, route: &str, who: Option<String>, why: &str) -> Result<(), Failure> {
    if !file.exists() {
        return Err(Failure::input(format!("deployments {}: there is no such file", file.display())));
    }
    let user = || std::env::var("USER").ok().filter(|user| !user.is_empty());
    let who = who.or_else(user).unwrap_or_else(|| "unknown".to_owned());
    let complain = |error: DeploymentError| match error {
        DeploymentError::NoRoute { .. } | DeploymentError::NothingBefore { .. } => {
            Failure::usage(error.to_string())
        }
        DeploymentError::Owned { .. } | DeploymentError::InProgress { .. } => {
            Failure::unavailable(error.to_string())
        }
        _ => Failure::input(error.to_string()),
    };
    let mut store = Deployments::open(file).map_err(complain)?;
    let now = Ns(Clock::start().unix_ns());
    // No server owns the file, so a swap that is open was cut off by a kill.
    for swap in store.recover(now).map_err(complain)? {
        super::print(&shown(&[], &[swap]))?;
    }
    let swap = store.roll_back(route, &who, why, now).map_err(complain)?;
    super::print(&format!("the next start serves {} on {route} (swap {})\n", swap.intent.to, swap.id))
}

fn date(at: Ns) -> Timestamp {
    Timestamp(at.0 / 1_000_000_000)
}
