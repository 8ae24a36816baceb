//! The models of a server with routes: those that are configured, and those of its repository.

use super::config::Config;
use super::pool::{self, Tokenizers};
use super::routes::RepositoryMode;
use super::specs::{ModelSpec, RouteSpec, Source as Place, Specs};
use super::tier::TierConfig;
use super::{Failure, cores, files};
use crate::base::{ModelRef, Tier};
use crate::deployments::{DeploymentError, Deployments, Live};
use crate::engine::{BooksSetup, Clock, Listed, ModelSetup, RouteSetup, Setup, Source};
use crate::model::BUNDLED;
use crate::model::repository::{Scan, VersionPolicy, scan};
use crate::rerank::Policy;
use std::collections::BTreeMap;

/// Where a running server's models come from.
pub(super) struct Shelf {
    config: Config,
    specs: Specs,
    scan: Scan,
    tokenizers: Tokenizers,
    /// The versions of models that are in no repository, which are known once they were opened.
    versions: BTreeMap<String, String>,
    /// A model that was opened to know its version.
    opened: Option<ModelSetup>,
    /// Whether a server runs, to which loading must yield.
    is_serving: bool,
}

impl Shelf {
    /// Reads the repository, and checks the configuration against it.
    ///
    /// # Errors
    /// As [`Config::specs`].
    pub fn new(config: &Config) -> Result<Self, Failure> {
        let read = |root| scan(root, &Scan::default()).map_err(|error| Failure::usage(error.to_string()));
        let scan = config.model_repository.as_deref().map(read).transpose()?.unwrap_or_default();
        let specs = config.specs(&scan)?;
        if let Some(device) = specs.devices.iter().find(|device| device.memory_bytes_max.is_some()) {
            return Err(Failure::usage(format!(
                "devices: memory_bytes_max of `{}`: no model is evicted yet, so that no bound can be held; leave it out",
                device.name
            )));
        }
        let mut config = config.clone();
        config.prices.devices = specs.devices.iter().filter_map(|device| device.price.clone()).collect();
        let (tokenizers, versions) = (Tokenizers::default(), BTreeMap::new());
        let mut shelf = Self { config, specs, scan, tokenizers, versions, opened: None, is_serving: false };
        shelf.add_scanned();
        Ok(shelf)
    }

    /// The configuration with the prices of `[[devices]]`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Opens what serves from the start, and the file of deployments; only checks that file if `check` is set, and prints what
    /// is served.
    ///
    /// # Errors
    /// A model of a route cannot be served, or the file cannot be used.
    pub fn setup(
        mut self,
        clock: Clock,
        books: BooksSetup,
        check: bool,
    ) -> Result<(Setup, (Self, Option<Deployments>)), Failure> {
        let wrong = |error: DeploymentError| Failure::usage(error.to_string());
        let deployments = match (&self.config.deployments, check) {
            (None, _) => None,
            (Some(path), true) => Deployments::check(path).map(|()| None).map_err(wrong)?,
            (Some(path), false) => Some(Deployments::open(path).map_err(wrong)?),
        };
        let (deployments, live) = files::recovered(deployments, clock)?;
        let models = self.open_first(&live)?;
        if check {
            super::print(&self.specs.describe())?;
        }
        let routes = self.routes_of(&models);
        let setup = pool::assemble(&self.config, clock, books, (models, routes))?;
        Ok((setup, (self.serving(), deployments)))
    }

    /// From now on models are opened by a thread of their own, beside those that serve.
    fn serving(self) -> Self {
        Self { is_serving: true, ..self }
    }

    /// The repository as it was read.
    pub fn scan(&self) -> &Scan {
        &self.scan
    }

    /// The repository's models, the names that they are served by, and the policies of their versions.
    pub fn names(&self) -> Vec<(String, String, VersionPolicy)> {
        let named = |spec: &ModelSpec| match &spec.source {
            Place::Repository(model) => Some((model.clone(), spec.name.clone(), spec.versions.clone())),
            Place::Bundled | Place::Given(_) => None,
        };
        self.specs.models.iter().filter_map(named).collect()
    }

    /// The routes.
    fn routes(&self) -> Vec<RouteSetup> {
        let route = |route: &RouteSpec| RouteSetup {
            name: route.name.as_str().into(),
            primaries: route.primaries.clone(),
            fallback: route.fallback.clone(),
            budget: route.budget,
            policy: route.policy,
            is_implicit: false,
        };
        self.specs.routes.iter().map(route).collect()
    }

    /// The routes: those that are configured; else one for each model that serves from the start, with the bundled one as
    /// its fallback.
    fn routes_of(&self, models: &[ModelSetup]) -> Vec<RouteSetup> {
        let mut routes = self.routes();
        if routes.is_empty() {
            let bundled = ModelRef { name: BUNDLED.to_owned(), version: None };
            let others = models.iter().filter(|model| *model.name != *BUNDLED);
            for model in others {
                if !routes.iter().any(|route| route.name == model.name) {
                    routes.push(RouteSetup::implicit(&model.name, Some(bundled.clone())));
                }
            }
            let (name, fallback, policy) = (BUNDLED.into(), Some(bundled), Some(Policy::Fallback));
            routes.push(RouteSetup { name, fallback, policy, ..RouteSetup::default() });
        }
        routes
    }

    /// Opens what serves from the start. On a route that is what was live when the server before ended, where that is
    /// still there.
    ///
    /// # Errors
    /// A model of a route cannot be served. Others are left out, with a line in the log.
    fn open_first(&mut self, live: &[Live]) -> Result<Vec<ModelSetup>, Failure> {
        let mut models: Vec<ModelSetup> = Vec::new();
        for (model, is_needed) in self.first(live) {
            let is_open = |open: &ModelSetup| {
                *open.name == *model.name
                    && model.version.as_ref().is_none_or(|version| *open.version == **version)
            };
            if models.iter().any(is_open) {
                continue;
            }
            match self.resolve(&model).and_then(|model| self.open(&model)) {
                Ok(open) => models.push(open),
                Err(why) if is_needed => return Err(Failure::usage(format!("model `{model}`: {why}"))),
                Err(why) => tracing::error!(%model, why, "a model that is on no route is not served"),
            }
        }
        Ok(models)
    }

    /// The models to open, and whether a route needs them.
    fn first(&self, live: &[Live]) -> Vec<(ModelRef, bool)> {
        let mut first = Vec::new();
        if self.specs.routes.is_empty() {
            // What was loaded on request when the server ended; else the newest version that is left.
            for was in live.iter().flat_map(|live| &live.served.primaries) {
                let newest = ModelRef { version: None, ..was.clone() };
                match self.has(was) {
                    true => first.push((was.clone(), false)),
                    false if self.is_in_repository(&was.name) => {
                        tracing::warn!(%was, "what was live is not in the repository any more");
                        first.push((newest, false));
                    }
                    false => tracing::error!(%was, "what was live is not in the repository any more"),
                }
            }
        }
        for RouteSpec { name, primaries, fallback, .. } in &self.specs.routes {
            let was = live.iter().find(|live| live.route == *name).map(|live| &live.served);
            for named in primaries.iter().chain(fallback) {
                let was = was.and_then(|was| {
                    was.primaries.iter().chain(&was.fallback).find(|was| was.name == named.name)
                });
                let wanted = match (&named.version, was) {
                    (None, Some(was)) if self.has(was) => was.clone(),
                    (None, Some(was)) if self.is_in_repository(&was.name) => {
                        tracing::warn!(route = name, %was, "what was live is not in the repository any more");
                        named.clone()
                    }
                    _ => named.clone(),
                };
                first.push((wanted, true));
            }
        }
        // Those of no route: all where models are not loaded on request, else those that stay loaded.
        let is_explicit = self.config.repository_mode == RepositoryMode::Explicit;
        for ModelSpec { name, source, versions, pinned, .. } in &self.specs.models {
            let model = |version| (ModelRef { name: name.clone(), version }, false);
            match source {
                _ if is_explicit && !pinned => {}
                Place::Repository(known) => {
                    let selected = self.scan.models.get(known).map(|known| versions.select(&known.versions));
                    let numbers = selected.into_iter().flat_map(|selected| selected.take);
                    first.extend(numbers.map(|number| model(Some(number.to_string()))));
                }
                Place::Bundled | Place::Given(_) => {
                    let is_configured = self.config.models.iter().any(|entry| entry.name == *name);
                    first.extend(is_configured.then(|| model(None)));
                }
            }
        }
        if self.specs.routes.is_empty() {
            first.push((ModelRef { name: BUNDLED.to_owned(), version: None }, true));
        }
        first
    }

    /// Whether a version is in the repository, and usable.
    fn has(&self, model: &ModelRef) -> bool {
        self.spec(&model.name).is_ok_and(|spec| match &spec.source {
            Place::Repository(name) => {
                let asked = ModelRef { name: name.clone(), ..model.clone() };
                model.version.is_some() && self.scan.resolve(&asked, &spec.versions).is_ok()
            }
            Place::Bundled | Place::Given(_) => false,
        })
    }

    fn is_in_repository(&self, name: &str) -> bool {
        self.spec(name).is_ok_and(|spec| matches!(spec.source, Place::Repository(_)))
    }

    fn spec(&self, name: &str) -> Result<&ModelSpec, String> {
        let known = || self.specs.models.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.specs.models.iter().find(|spec| spec.name == name);
        found.ok_or_else(|| format!("there is no model `{name}`; there are {}", known()))
    }

    /// A model is a fallback if it is one on a route and nowhere a primary.
    fn tier(&self, name: &str) -> Tier {
        if self.specs.routes.is_empty() && name == BUNDLED {
            return Tier::Fallback;
        }
        let is_primary = |route: &RouteSpec| route.primaries.iter().any(|model| model.name == name);
        let is_fallback = |route: &RouteSpec| route.fallback.as_ref().is_some_and(|model| model.name == name);
        match self.specs.routes.iter().any(is_fallback) && !self.specs.routes.iter().any(is_primary) {
            true => Tier::Fallback,
            false => Tier::Primary,
        }
    }

    /// Reads the repository again; models that are new in it can be loaded.
    fn scan_again(&mut self) -> Result<(), String> {
        let Some(root) = &self.config.model_repository else { return Ok(()) };
        self.scan = scan(root, &self.scan).map_err(|error| error.to_string())?;
        self.add_scanned();
        Ok(())
    }

    /// Every model of the repository can be loaded, by its own name where none is configured.
    fn add_scanned(&mut self) {
        for name in self.scan.models.keys() {
            let is_it =
                |spec: &ModelSpec| spec.name == *name || spec.source == Place::Repository(name.clone());
            if !self.specs.models.iter().any(is_it) {
                self.specs.models.push(ModelSpec::of_repository(name));
            }
        }
    }
}

impl Source for Shelf {
    fn list(&mut self) -> Result<Vec<Listed>, String> {
        self.scan_again()?;
        let mut listed = Vec::new();
        for spec in &self.specs.models {
            let name = || spec.name.clone();
            match &spec.source {
                Place::Repository(model) => {
                    let versions = self.scan.models.get(model).into_iter().flat_map(|model| &model.versions);
                    listed.extend(versions.map(|(number, version)| Listed {
                        name: name(),
                        version: number.to_string(),
                        problem: version.usable.as_ref().err().map(ToString::to_string),
                    }));
                }
                Place::Bundled | Place::Given(_) => {
                    let version = self.versions.get(&spec.name);
                    listed.extend(version.map(|version| Listed {
                        name: name(),
                        version: version.clone(),
                        problem: None,
                    }));
                }
            }
        }
        Ok(listed)
    }

    fn resolve(&mut self, model: &ModelRef) -> Result<ModelRef, String> {
        self.scan_again()?;
        let spec = self.spec(&model.name)?;
        if let Place::Repository(name) = &spec.source {
            let asked = ModelRef { name: name.clone(), ..model.clone() };
            let (number, _) = self.scan.resolve(&asked, &spec.versions).map_err(|error| error.to_string())?;
            return Ok(ModelRef { version: Some(number.to_string()), ..model.clone() });
        }
        if !self.versions.contains_key(&model.name) {
            self.opened = Some(self.open(&ModelRef { version: None, ..model.clone() })?);
        }
        let version = self.versions[&model.name].clone();
        match &model.version {
            Some(asked) if *asked != version => {
                Err(format!("model `{}` has the version {version} only", model.name))
            }
            _ => Ok(ModelRef { version: Some(version), ..model.clone() }),
        }
    }

    fn open(&mut self, model: &ModelRef) -> Result<ModelSetup, String> {
        if self.is_serving {
            cores::yield_to_others();
        }
        let is_it = |open: &ModelSetup| *open.name == *model.name;
        if let Some(opened) = self.opened.take_if(|open| is_it(open)) {
            return Ok(opened);
        }
        let (tier, spec) = (self.tier(&model.name), self.spec(&model.name)?);
        let mut settings = TierConfig { name: Some(spec.name.clone()), ..spec.settings.clone() };
        let mut number = None;
        if let (Place::Repository(name), Some(root)) = (&spec.source, &self.config.model_repository) {
            let asked = ModelRef { name: name.clone(), ..model.clone() };
            let found = self.scan.resolve(&asked, &spec.versions).map_err(|error| error.to_string())?;
            let directory = found.1.directory(root);
            settings.model = directory.to_str().ok_or("its path is not UTF-8")?.to_owned();
            number = Some(found.0.to_string());
        }
        let mut setup = pool::open(tier, &settings, self.config.self_check, &mut self.tokenizers)?;
        self.config.check_price(&model.name, &setup.device).map_err(|failure| failure.message)?;
        match number {
            Some(number) => setup.version = number.into(),
            None => drop(self.versions.insert(model.name.clone(), setup.version.to_string())),
        }
        Ok(setup)
    }
}
