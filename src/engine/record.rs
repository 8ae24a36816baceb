//! The record of what is live on each route, and of the swaps that made it so, for the pool.

use super::clock::Clock;
use super::pool::{Author, PoolError};
use super::router::{RouteSetup, Routes};
use crate::base::{ModelRef, Ns};
use crate::deployments::{DeploymentError, Deployments, Intent, Served as Line, Step};

/// The record, if one is kept.
pub(super) struct Record {
    deployments: Option<Deployments>,
    clock: Clock,
}

/// The numbers of swaps that are recorded, one for each route that changes.
pub(super) struct Swaps(Vec<i64>);

impl Record {
    pub fn new(deployments: Option<Deployments>, clock: Clock) -> Self {
        Self { deployments, clock }
    }

    /// Records what the configuration has made live, where that is something else than before.
    pub fn start(&mut self, routes: &Routes) -> Result<(), PoolError> {
        let author = Author { who: "podium serve".to_owned(), why: "as configured".to_owned() };
        let lines = routes.routes.iter().map(|route| (route.name.to_string(), routes.line(route)));
        let swaps = self.begin_all(lines.collect(), &author)?;
        for step in [Step::Verifying, Step::Switching, Step::Draining] {
            self.step(&swaps, step)?;
        }
        self.finish(&swaps)
    }

    /// What was live on a route before.
    pub fn before(&self, route: &str) -> Result<Line, PoolError> {
        let none = "no history is kept; start the server with --deployments FILE";
        let deployments = self.deployments.as_ref().ok_or_else(|| PoolError::NotFound(none.to_owned()))?;
        deployments.rollback_target(route).map(|(_, before)| before).map_err(failed)
    }

    /// Records that the routes begin to change on which versions take the place of others.
    pub fn begin(
        &mut self,
        before: &Routes,
        models: &[ModelRef],
        author: &Author,
    ) -> Result<Swaps, PoolError> {
        let mut changes = Vec::new();
        for route in &before.routes {
            let from = before.line(route);
            let to = replaced(&from, route, models);
            changes.push((route.name.to_string(), to));
        }
        for model in models {
            if let Some(route) = before.implicit(&model.name) {
                let to = Line { primaries: vec![model.clone()], ..before.line(&route) };
                changes.push((route.name.to_string(), to));
            }
        }
        self.begin_all(changes, author)
    }

    /// Records that routes begin to have no models.
    pub fn begin_end(&mut self, routes: &[RouteSetup], author: &Author) -> Result<Swaps, PoolError> {
        let none = Line { primaries: Vec::new(), fallback: None };
        self.begin_all(routes.iter().map(|route| (route.name.to_string(), none.clone())).collect(), author)
    }

    fn begin_all(&mut self, changes: Vec<(String, Line)>, author: &Author) -> Result<Swaps, PoolError> {
        let now = self.now();
        let mut swaps = Swaps(Vec::new());
        let Some(deployments) = &mut self.deployments else { return Ok(swaps) };
        let live = deployments.live().map_err(failed)?;
        for (route, to) in changes {
            let from = live.iter().find(|live| live.route == route).map(|live| live.served.clone());
            if from.as_ref() == Some(&to) {
                continue;
            }
            let Author { who, why } = author.clone();
            match deployments.begin(&Intent { route, from, to, who, why }, now) {
                Ok(id) => swaps.0.push(id),
                Err(error) => return Err(self.abandon(&swaps, failed(error))),
            }
        }
        Ok(swaps)
    }

    /// Records a step before it is made.
    pub fn step(&mut self, swaps: &Swaps, step: Step) -> Result<(), PoolError> {
        let now = self.now();
        let Some(deployments) = &mut self.deployments else { return Ok(()) };
        swaps.0.iter().try_for_each(|&id| deployments.step(id, step, now)).map_err(failed)
    }

    /// Records that swaps are complete.
    pub fn finish(&mut self, swaps: &Swaps) -> Result<(), PoolError> {
        let now = self.now();
        let Some(deployments) = &mut self.deployments else { return Ok(()) };
        swaps.0.iter().try_for_each(|&id| deployments.finish(id, now)).map_err(failed)
    }

    /// Records that swaps are not made, and returns the reason.
    pub fn abandon(&mut self, swaps: &Swaps, why: PoolError) -> PoolError {
        let now = self.now();
        let Some(deployments) = &mut self.deployments else { return why };
        for &id in &swaps.0 {
            if let Err(error) = deployments.abandon(id, &why.to_string(), now) {
                tracing::error!(%error, "a deployment that was not made is not recorded so");
            }
        }
        why
    }

    fn now(&self) -> Ns {
        Ns(self.clock.unix_ns())
    }
}

/// A route's versions once those of `models` serve under their plain names.
fn replaced(line: &Line, route: &RouteSetup, models: &[ModelRef]) -> Line {
    let plain = |name: &str| route.models().any(|named| named.name == name && named.version.is_none());
    let next = |old: &ModelRef| {
        let new = models.iter().find(|new| new.name == old.name && plain(&new.name));
        new.unwrap_or(old).clone()
    };
    Line { primaries: line.primaries.iter().map(next).collect(), fallback: line.fallback.as_ref().map(next) }
}

fn failed(error: DeploymentError) -> PoolError {
    match error {
        DeploymentError::NoRoute { .. } | DeploymentError::NothingBefore { .. } => {
            PoolError::NotFound(error.to_string())
        }
        DeploymentError::InProgress { .. } | DeploymentError::Moved { .. } => {
            PoolError::Conflict(error.to_string())
        }
        _ => PoolError::Failed(error.to_string()),
    }
}
