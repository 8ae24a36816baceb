//! Routes: from the name in a request to the models that may answer it.

use super::served::{Candidates, ModelInfo, Served};
use super::{ModelSetup, StartError};
use crate::base::{ModelRef, Ns, Tier};
use crate::deployments::Served as Line;
use crate::rerank::{Policy, Refusal};
use std::sync::{Arc, PoisonError, RwLock};

/// A served name with the models behind it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteSetup {
    /// The name that requests give.
    pub name: Arc<str>,
    /// The models that may answer as the primary, the preferred one first. One without a version is the version that serves.
    pub primaries: Vec<ModelRef>,
    /// The model that may answer as the fallback.
    pub fallback: Option<ModelRef>,
    /// The budget of requests without their own; none for the server's.
    pub budget: Option<Ns>,
    /// The policy of requests without their own; none for the server's.
    pub policy: Option<Policy>,
    /// Whether it is there because its model is loaded, and ends with it.
    pub is_implicit: bool,
}

impl RouteSetup {
    /// The route of a model that no configured one names.
    pub fn implicit(model: &str, fallback: Option<ModelRef>) -> Self {
        let primaries = vec![ModelRef { name: model.to_owned(), version: None }];
        Self { name: model.into(), primaries, fallback, is_implicit: true, ..Self::default() }
    }
}

impl RouteSetup {
    /// Its models, primaries first.
    pub fn models(&self) -> impl Iterator<Item = &ModelRef> {
        self.primaries.iter().chain(&self.fallback)
    }

    /// Checks it against the models that there are.
    ///
    /// # Errors
    /// [`StartError::Route`].
    pub(super) fn check(&self, models: &[ModelSetup]) -> Result<(), StartError> {
        let wrong = |why| Err(StartError::Route { route: self.name.clone(), why });
        if self.models().next().is_none() {
            return wrong("it names no model".to_owned());
        }
        for (place, named) in self.models().enumerate() {
            if !models.iter().any(|model| is_named(named, &model.name, &model.version)) {
                let known: Vec<&str> = models.iter().map(|model| &*model.name).collect();
                return wrong(format!("there is no model `{named}`; there are {}", known.join(", ")));
            }
            let may_be_one = |earlier: &ModelRef| {
                earlier.name == named.name
                    && (earlier.version == named.version
                        || earlier.version.is_none()
                        || named.version.is_none())
            };
            if self.models().take(place).any(may_be_one) {
                return wrong(format!("it names the model `{}` twice", named.name));
            }
        }
        Ok(())
    }
}

/// Whether a model, with or without a version, is this one.
pub(super) fn is_named(named: &ModelRef, name: &str, version: &str) -> bool {
    named.name == name && named.version.as_ref().is_none_or(|other| other == version)
}

/// The routes with the models that are up: one consistent state.
#[derive(Default)]
pub(super) struct Routes {
    pub routes: Vec<RouteSetup>,
    /// Every version that serves; of the versions of a name the first answers where none is named.
    pub models: Vec<Arc<Served>>,
}

/// What a request's name means.
pub(super) struct Resolved {
    pub candidates: Candidates,
    /// The policy that the name implies.
    pub policy: Option<Policy>,
    /// The policy and the budget where the request has none.
    pub default_policy: Option<Policy>,
    pub default_budget: Option<Ns>,
}

impl Routes {
    /// The model that serves under a name.
    pub fn find(&self, named: &ModelRef) -> Option<&Arc<Served>> {
        self.models.iter().find(|model| model.is(named))
    }

    /// The versions of a route's models that serve, as they are recorded.
    pub fn line(&self, route: &RouteSetup) -> Line {
        let named = |model: &ModelRef| self.find(model).map(|model| model.named());
        Line {
            primaries: route.primaries.iter().filter_map(named).collect(),
            fallback: route.fallback.as_ref().and_then(named),
        }
    }

    /// The route of a model that none names.
    pub fn implicit(&self, name: &str) -> Option<RouteSetup> {
        if self.routes.iter().any(|route| route.models().any(|named| named.name == name)) {
            return None;
        }
        let fallback = self.models.iter().find(|model| model.setup.tier == Tier::Fallback);
        let fallback = fallback.map(|model| ModelRef { version: None, ..model.named() });
        Some(RouteSetup::implicit(name, fallback))
    }

    /// The same with versions in the place of those of their names that served. A version that is replaced stays where a
    /// route names it.
    pub fn with(&self, current: &[ModelRef], loaded: &[Arc<Served>]) -> Self {
        let is_pinned = |model: &Served| {
            self.routes
                .iter()
                .flat_map(RouteSetup::models)
                .any(|named| named.version.is_some() && model.is(named))
        };
        let is_current = |model: &Served| current.iter().any(|named| model.is(named));
        let is_replaced = |model: &Served| current.iter().any(|named| *model.setup.name == *named.name);
        let all = || loaded.iter().chain(&self.models);
        let first = all().filter(|model| is_current(model));
        let rest = all().filter(|model| !is_current(model) && (!is_replaced(model) || is_pinned(model)));
        let models: Vec<Arc<Served>> = first.chain(rest).cloned().collect();
        let mut routes = self.routes.clone();
        // Before one that has the fallback only, which answers where nothing else serves.
        let place = routes.iter().position(|route| route.primaries.is_empty()).unwrap_or(routes.len());
        routes.splice(place..place, current.iter().filter_map(|model| self.implicit(&model.name)));
        Self { routes, models }
    }

    /// What a request's name means: a route, a model, or a version of a model; the first route if there is none.
    ///
    /// # Errors
    /// [`Refusal::UnknownModel`], unless `any_model` lets the first route answer.
    pub fn resolve(&self, name: Option<&str>, any_model: bool) -> Result<Resolved, Refusal> {
        let Some(first) = self.routes.first() else { return Err(Refusal::Unavailable) };
        let Some(name) = name else { return Ok(self.on_route(first)) };
        if let Some(route) = self.routes.iter().find(|route| *route.name == *name) {
            return Ok(self.on_route(route));
        }
        match name.parse().ok().and_then(|named| self.find(&named)) {
            Some(model) => Ok(self.on_model(model)),
            None if any_model => Ok(self.on_route(first)),
            None => Err(Refusal::UnknownModel { name: name.to_owned() }),
        }
    }

    fn on_route(&self, route: &RouteSetup) -> Resolved {
        let candidates = Candidates {
            primaries: route.primaries.iter().filter_map(|name| self.find(name).cloned()).collect(),
            fallback: route.fallback.as_ref().and_then(|name| self.find(name).cloned()),
        };
        let (default_policy, default_budget) = (route.policy, route.budget);
        Resolved { candidates, policy: None, default_policy, default_budget }
    }

    /// A model that a request names answers as what it is on the first route that has it; one on no route is a primary
    /// without a fallback.
    fn on_model(&self, model: &Arc<Served>) -> Resolved {
        let name = &*model.setup.name;
        let has = |route: &&RouteSetup| route.models().any(|other| other.name == name);
        let Some(route) = self.routes.iter().find(has) else {
            let candidates = Candidates { primaries: [model.clone()].into(), fallback: None };
            return Resolved { candidates, policy: None, default_policy: None, default_budget: None };
        };
        let resolved = self.on_route(route);
        let is_fallback = route.fallback.as_ref().is_some_and(|fallback| fallback.name == name);
        if is_fallback {
            let candidates = Candidates { fallback: Some(model.clone()), ..resolved.candidates };
            return Resolved { candidates, policy: Some(Policy::Fallback), ..resolved };
        }
        let candidates = Candidates { primaries: [model.clone()].into(), ..resolved.candidates };
        Resolved { candidates, ..resolved }
    }

    /// The models by route, primaries first, and then those that are on none.
    pub fn infos(&self) -> Arc<[ModelInfo]> {
        let on_routes = Tier::ALL.into_iter().flat_map(|tier| {
            let of = move |route: &RouteSetup| match tier {
                Tier::Primary => route.primaries.clone(),
                Tier::Fallback => route.fallback.iter().cloned().collect(),
            };
            self.routes.iter().flat_map(of)
        });
        let mut listed: Vec<&Arc<Served>> = Vec::new();
        for model in on_routes.filter_map(|name| self.find(&name)).chain(&self.models) {
            if !listed.iter().any(|other| other.id == model.id) {
                listed.push(model);
            }
        }
        listed.into_iter().map(|model| model.info.clone()).collect()
    }
}

/// The present routes, replaced as a whole.
#[derive(Default)]
pub(super) struct Router(RwLock<Published>);

#[derive(Clone, Default)]
struct Published {
    routes: Arc<Routes>,
    infos: Arc<[ModelInfo]>,
}

impl Router {
    /// The present state.
    pub fn routes(&self) -> Arc<Routes> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).routes.clone()
    }

    /// The models that serve, the first route's primary first.
    pub fn infos(&self) -> Arc<[ModelInfo]> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).infos.clone()
    }

    /// Replaces the state for all requests that come from now on.
    pub fn publish(&self, routes: Routes) {
        let published = Published { infos: routes.infos(), routes: Arc::new(routes) };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = published;
    }
}
