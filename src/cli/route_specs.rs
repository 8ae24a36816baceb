//! Routes whose models exist, and whose fallbacks are no cycle.

use super::Failure;
use super::config::Config;
use super::routes::{NONE, RouteEntry};
use super::specs::{ModelSpec, RouteSpec, Source, check_name, list, milliseconds, wrong};
use crate::base::ModelRef;
use crate::model::BUNDLED;
use crate::model::repository::Scan;
use crate::rerank::Policy;
use std::collections::BTreeSet;
use std::fmt::Write;

impl Config {
    /// The routes, of these models.
    ///
    /// # Errors
    /// The message names the key, and lists what there is.
    pub(super) fn route_specs(
        &self,
        models: &[ModelSpec],
        repository: &Scan,
    ) -> Result<Vec<RouteSpec>, Failure> {
        let mut names = BTreeSet::new();
        for (place, route) in self.routes.iter().enumerate() {
            let key = format!("routes[{place}].name");
            check_name(&key, &route.name)?;
            if !names.insert(&route.name) {
                return wrong(format!("{key}: `{}` is another route's already", route.name));
            }
            if models.iter().any(|model| model.name == route.name) {
                let name = &route.name;
                return wrong(format!(
                    "{key}: `{name}` is a model's name too, so a request could mean either"
                ));
            }
        }
        let spec = |(place, route): (usize, &RouteEntry)| {
            let key = |key: &str| format!("routes[{place}].{key}");
            if route.primaries.is_empty() {
                let names = list(models.iter().map(|model| model.name.as_str()));
                return wrong(format!("{}: names no model; models are {names}", key("primaries")));
            }
            for (place, primary) in route.primaries.iter().enumerate() {
                let key = format!("{}[{place}]", key("primaries"));
                self.check_model(&key, primary, models, repository)?;
                let twin = route.primaries[..place].iter().find(|other| {
                    let may_be_one = other.version.is_none() || primary.version.is_none();
                    other.name == primary.name && (may_be_one || other.version == primary.version)
                });
                if let Some(twin) = twin {
                    return wrong(format!("{key}: `{primary}` may be the same as `{twin}` before it"));
                }
            }
            let fallback = self.fallback_of(place)?;
            if let Some(fallback) = &fallback {
                self.check_model(&key("fallback"), fallback, models, repository)?;
                if route.primaries.iter().any(|primary| primary.name == fallback.name) {
                    return wrong(format!("{}: `{fallback}` is a primary of this route", key("fallback")));
                }
            }
            if let Some(budget) =
                route.latency_budget_ms.filter(|budget| !(*budget > 0.0 && *budget <= 3_600_000.0))
            {
                let key = key("latency_budget_ms");
                return wrong(format!("{key}: {budget} is not between 0 (excluded) and 3600000"));
            }
            let policies = [
                (key("default_policy"), route.default_policy),
                ("default_policy".to_owned(), Some(self.default_policy)),
            ];
            for (key, policy) in policies {
                if let (Some(policy @ (Policy::TopK | Policy::Fallback)), None) = (policy, &fallback) {
                    let (policy, name) = (policy.name(), &route.name);
                    return wrong(format!("{key}: `{policy}` needs a fallback, and route `{name}` has none"));
                }
            }
            Ok(RouteSpec {
                name: route.name.clone(),
                primaries: route.primaries.clone(),
                fallback,
                budget: route.latency_budget_ms.or(self.latency_budget_ms).map(milliseconds),
                policy: route.default_policy,
            })
        };
        self.routes.iter().enumerate().map(spec).collect()
    }

    /// The model that is a route's fallback, also where it is that of another route.
    fn fallback_of(&self, place: usize) -> Result<Option<ModelRef>, Failure> {
        let mut route = &self.routes[place];
        let mut passed = vec![route.name.as_str()];
        loop {
            let Some(fallback) = &route.fallback else {
                let is_primary = route.primaries.iter().any(|primary| primary.name == BUNDLED);
                return Ok((!is_primary).then(|| ModelRef { name: BUNDLED.to_owned(), version: None }));
            };
            if fallback.version.is_none() && fallback.name == NONE {
                return Ok(None);
            }
            let next = self.routes.iter().find(|route| route.name == fallback.name);
            let Some(next) = next.filter(|_| fallback.version.is_none()) else {
                return Ok(Some(fallback.clone()));
            };
            let is_cycle = passed.contains(&next.name.as_str());
            passed.push(&next.name);
            if is_cycle {
                let cycle = passed.join(" -> ");
                return wrong(format!(
                    "routes[{place}].fallback: the fallbacks of routes are a cycle: {cycle}"
                ));
            }
            route = next;
        }
    }

    fn check_model(
        &self,
        key: &str,
        named: &ModelRef,
        models: &[ModelSpec],
        repository: &Scan,
    ) -> Result<(), Failure> {
        let Some(model) = models.iter().find(|model| model.name == named.name) else {
            let names = list(models.iter().map(|model| model.name.as_str()));
            let mut message = format!("{key}: there is no model `{}`; models are {names}", named.name);
            if self.routes.iter().any(|route| route.name == named.name) {
                write!(message, " (`{}` is a route)", named.name).expect("a string takes all");
            }
            return wrong(message);
        };
        match (&model.source, &named.version) {
            (Source::Repository(name), version) => {
                let asked = ModelRef { name: name.clone(), version: version.clone() };
                let resolved = repository.resolve(&asked, &model.versions);
                resolved.map(|_| ()).map_err(|error| Failure::usage(format!("{key}: {error}")))
            }
            (Source::Bundled | Source::Given(_), Some(version)) => wrong(format!(
                "{key}: only a repository's model has numbered versions; write `{}` without `@{version}`",
                named.name
            )),
            (Source::Bundled | Source::Given(_), None) => Ok(()),
        }
    }
}
