//! Follows a repository: versions that appear in it take the place of those that serve.

use super::config::Config;
use super::routes::RepositoryMode;
use super::shelf::Shelf;
use crate::base::{ModelRef, Ns};
use crate::engine::{Author, Change, Clock, ModelPool, PoolError};
use crate::model::repository::{Scan, VersionPolicy, Watch, scan};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// What is needed to follow a repository.
pub(super) struct Follower {
    root: PathBuf,
    every: Duration,
    clock: Clock,
    watch: Watch,
    scan: Scan,
    /// The served names of the repository's models with their version policies; others are served by their own names.
    names: Vec<(String, String, VersionPolicy)>,
}

impl Follower {
    /// None where the repository is not polled.
    pub fn new(config: &Config, shelf: &Shelf, clock: Clock) -> Option<Self> {
        let root =
            config.model_repository.clone().filter(|_| config.repository_mode == RepositoryMode::Poll)?;
        let still = Ns::from_millis(config.repository_still_ms);
        let scan = shelf.scan().clone();
        let watch = Watch::new(&scan, still, Ns(clock.unix_ns()));
        let every = Duration::from_millis(config.repository_poll_ms);
        Some(Self { root, every, clock, watch, scan, names: shelf.names() })
    }

    /// Reads the repository again and again. Dropping the future ends it.
    pub async fn run(mut self, pool: ModelPool) {
        let mut told = None;
        loop {
            tokio::time::sleep(self.every).await;
            let (root, before) = (self.root.clone(), std::mem::take(&mut self.scan));
            let read = tokio::task::spawn_blocking(move || (scan(&root, &before), before)).await;
            match read.expect("a scan does not panic") {
                (Ok(scan), _) => {
                    (self.scan, told) = (scan, None);
                    self.take(&pool).await;
                }
                (Err(error), before) => {
                    self.scan = before;
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::error!(
                            error,
                            "the model repository cannot be read; what is live stays live"
                        );
                        told = Some(error);
                    }
                }
            }
        }
    }

    /// Loads the models whose newest version is another since the last scan.
    async fn take(&mut self, pool: &ModelPool) {
        let changes = self.watch.observe(&self.scan, Ns(self.clock.unix_ns()));
        let models: BTreeSet<&String> = changes.iter().map(|change| &change.model).collect();
        for model in models {
            for (name, policy) in self.served_as(model) {
                let asked = ModelRef { name: model.clone(), version: None };
                let number = match self.watch.taken().resolve(&asked, &policy) {
                    Ok((number, _)) => number,
                    Err(why) => {
                        tracing::error!(model, %why, "no version can be taken; what is live stays live");
                        continue;
                    }
                };
                let author =
                    Author { who: "podium serve".to_owned(), why: "it is in the repository".to_owned() };
                let load = Change::Load(ModelRef { name, version: Some(number.to_string()) });
                // The pool has told why a version is not taken.
                if let Err(PoolError::Stopped) = pool.change(load, author).await {
                    return;
                }
            }
        }
    }

    fn served_as(&self, model: &str) -> Vec<(String, VersionPolicy)> {
        let named = self.names.iter().filter(|(other, ..)| other == model);
        let named: Vec<_> = named.map(|(_, name, policy)| (name.clone(), policy.clone())).collect();
        match named.is_empty() {
            true => vec![(model.to_owned(), VersionPolicy::default())],
            false => named,
        }
    }
}
