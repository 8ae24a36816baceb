//! What is served: models, routes and devices, consistent with each other and with the repository.

use super::Failure;
use super::config::Config;
use super::routes::{DeviceEntry, NONE, RepositoryMode};
use super::tier::TierConfig;
use crate::base::{ModelRef, Ns};
use crate::ledger::price::{DevicePrice, PriceBook, PriceConfig};
use crate::model::BUNDLED;
use crate::model::repository::{Scan, VersionPolicy};
use crate::rerank::Policy;
use std::fmt::Write;

/// What is served: consistent lists, in the configuration's order.
#[derive(Debug, Default)]
pub(super) struct Specs {
    /// The models that routes or requests may name.
    pub models: Vec<ModelSpec>,
    /// The routes; the first answers requests that name none.
    pub routes: Vec<RouteSpec>,
    /// The devices that are named.
    pub devices: Vec<DeviceSpec>,
}

/// A model that can be served.
#[derive(Debug)]
pub(super) struct ModelSpec {
    /// The name in routes.
    pub name: String,
    /// Where its files are.
    pub source: Source,
    /// Which versions of a repository's model are served, besides those that routes name.
    pub versions: VersionPolicy,
    /// Whether it stays loaded.
    pub pinned: bool,
    /// Its lanes.
    pub settings: TierConfig,
}

/// Where a model's files are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// In the program.
    Bundled,
    /// A directory or a hub id.
    Given(String),
    /// The repository's model of this name.
    Repository(String),
}

/// A route whose models exist.
#[derive(Debug, PartialEq)]
pub(super) struct RouteSpec {
    /// Its name.
    pub name: String,
    /// The best first, at least one.
    pub primaries: Vec<ModelRef>,
    /// The model that answers if no primary can.
    pub fallback: Option<ModelRef>,
    /// The budget of its requests without their own.
    pub budget: Option<Ns>,
    /// The policy of its requests without their own; none for that of their tenant or path.
    pub policy: Option<Policy>,
}

/// A device with its limits.
#[derive(Debug, PartialEq)]
pub(super) struct DeviceSpec {
    /// Its name.
    pub name: String,
    /// Most bytes that models may take on it.
    pub memory_bytes_max: Option<u64>,
    /// Its price.
    pub price: Option<DevicePrice>,
}

impl Config {
    /// Whether what is served is said by routes, models or a repository, and not by `[primary]` and `[fallback]`.
    pub fn has_routes(&self) -> bool {
        !self.routes.is_empty() || !self.models.is_empty() || self.model_repository.is_some()
    }

    /// What is served, by the configuration and a scan of its repository. `[primary]` and `[fallback]` are one route.
    ///
    /// # Errors
    /// The message names the key, and lists what there is.
    pub fn specs(&self, repository: &Scan) -> Result<Specs, Failure> {
        let devices = self.device_specs()?;
        let (models, routes) = match self.has_routes() {
            true => {
                let tiers = [("primary", &self.primary), ("fallback", &self.fallback)];
                if let Some((key, _)) = tiers.iter().find(|(_, tier)| tier.is_some()) {
                    return wrong(format!(
                        "{key}: not together with routes, models or model_repository; name the model in a route instead"
                    ));
                }
                let models = self.model_specs(repository)?;
                let routes = self.route_specs(&models, repository)?;
                (models, routes)
            }
            false => self.pair(),
        };
        if let (false, Some(model)) = (
            self.devices.is_empty(),
            models.iter().find(|model| {
                let named = model.settings.device.as_ref();
                named.is_some_and(|named| devices.iter().all(|device| device.name != *named))
            }),
        ) {
            let named = model.settings.device.as_deref().unwrap_or_default();
            let names = list(devices.iter().map(|device| device.name.as_str()));
            return wrong(format!(
                "device of model `{}`: there is no device `{named}`; devices are {names}",
                model.name
            ));
        }
        Ok(Specs { models, routes, devices })
    }

    /// `[primary]` and `[fallback]` as a route, by the names in their tables or by their models.
    fn pair(&self) -> (Vec<ModelSpec>, Vec<RouteSpec>) {
        let spec = |tier: &TierConfig| ModelSpec {
            name: tier.name.clone().unwrap_or_else(|| tier.model.clone()),
            source: Source::of(&tier.model, &Scan::default()),
            versions: VersionPolicy::default(),
            pinned: true,
            settings: tier.clone(),
        };
        let reference = |model: &ModelSpec| ModelRef { name: model.name.clone(), version: None };
        let primary = self.primary.as_ref().map(spec);
        let fallback = self.fallback.as_ref().map(spec);
        let route = primary.as_ref().map(|primary| RouteSpec {
            name: primary.name.clone(),
            primaries: vec![reference(primary)],
            fallback: fallback.as_ref().map(reference),
            budget: self.latency_budget_ms.map(milliseconds),
            policy: None,
        });
        (primary.into_iter().chain(fallback).collect(), route.into_iter().collect())
    }

    /// The configured models, those of the repository that are served without being configured, and the bundled one.
    fn model_specs(&self, repository: &Scan) -> Result<Vec<ModelSpec>, Failure> {
        let mut specs: Vec<ModelSpec> = Vec::new();
        for (place, entry) in self.models.iter().enumerate() {
            let key = format!("models[{place}]");
            check_name(&format!("{key}.name"), &entry.name)?;
            if entry.name == BUNDLED && entry.settings.model != BUNDLED {
                return wrong(format!("{key}.name: `{BUNDLED}` is the model in the program"));
            }
            if specs.iter().any(|spec| spec.name == entry.name) {
                return wrong(format!("{key}.name: `{}` is another model's already", entry.name));
            }
            entry.settings.check(&key)?;
            let source = Source::of(&entry.settings.model, repository);
            if let Source::Given(given) = &source
                && *given == entry.name
                && !given.contains('/')
            {
                let place = match &self.model_repository {
                    None => "; set model_repository, or model to a directory or a hub id".to_owned(),
                    Some(_) => format!("; it has {}", list(repository.models.keys().map(String::as_str))),
                };
                return wrong(format!("{key}.model: there is no model `{given}` in the repository{place}"));
            }
            if !matches!(source, Source::Repository(_)) && entry.version_policy != VersionPolicy::default() {
                return wrong(format!(
                    "{key}.version_policy: only a repository's model has versions to choose from"
                ));
            }
            let (versions, pinned) = (entry.version_policy.clone(), entry.pinned);
            specs.push(ModelSpec {
                name: entry.name.clone(),
                source,
                versions,
                pinned,
                settings: entry.settings.clone(),
            });
        }
        let is_named = |name: &str| {
            let refs = self.routes.iter().flat_map(|route| route.primaries.iter().chain(&route.fallback));
            refs.into_iter().any(|named| named.name == name)
        };
        for name in repository.models.keys() {
            let is_configured = specs.iter().any(|spec| {
                spec.name == *name || matches!(&spec.source, Source::Repository(model) if model == name)
            });
            if !is_configured && (self.repository_mode != RepositoryMode::Explicit || is_named(name)) {
                specs.push(ModelSpec::of_repository(name));
            }
        }
        // A route without a fallback has this one.
        if specs.iter().all(|spec| spec.name != BUNDLED) {
            specs.push(ModelSpec {
                name: BUNDLED.to_owned(),
                source: Source::Bundled,
                versions: VersionPolicy::default(),
                pinned: false,
                settings: TierConfig::new(BUNDLED.to_owned()),
            });
        }
        Ok(specs)
    }

    fn device_specs(&self) -> Result<Vec<DeviceSpec>, Failure> {
        let mut specs: Vec<DeviceSpec> = Vec::new();
        for (place, entry) in self.devices.iter().enumerate() {
            let DeviceEntry { name, memory_bytes_max, dollars_per_hour, watts, dollars_per_kwh } = entry;
            let key = |key: &str| format!("devices[{place}].{key}");
            if name.is_empty() {
                return wrong(format!("{}: must not be empty", key("name")));
            }
            if specs.iter().any(|spec| spec.name == *name) {
                return wrong(format!("{}: `{name}` is another device's already", key("name")));
            }
            if *memory_bytes_max == Some(0) {
                return wrong(format!("{}: 0 bytes hold no model", key("memory_bytes_max")));
            }
            let price = dollars_per_hour.map(|dollars_per_hour| {
                let (watts, dollars_per_kwh) = (*watts, *dollars_per_kwh);
                DevicePrice { name: name.clone(), dollars_per_hour, watts, dollars_per_kwh }
            });
            if price.is_some() && self.prices.devices.iter().any(|priced| priced.name == *name) {
                let key = key("dollars_per_hour");
                return wrong(format!("{key}: prices.devices has a price for `{name}` already"));
            }
            if price.is_none() && (*watts != 0.0 || dollars_per_kwh.is_some()) {
                return wrong(format!(
                    "{}: energy has a price only where dollars_per_hour is given",
                    key("watts")
                ));
            }
            let devices = price.iter().cloned().collect();
            PriceBook::new(&PriceConfig { devices, ..self.prices.clone() }).map_err(|error| {
                let message = error.to_string();
                Failure::usage(message.replace("prices.devices[0]", &format!("devices[{place}]")))
            })?;
            specs.push(DeviceSpec { name: name.clone(), memory_bytes_max: *memory_bytes_max, price });
        }
        for priced in &self.prices.devices {
            match specs.iter_mut().find(|spec| spec.name == priced.name) {
                Some(spec) => spec.price = Some(priced.clone()),
                None => {
                    let (name, price) = (priced.name.clone(), Some(priced.clone()));
                    specs.push(DeviceSpec { name, memory_bytes_max: None, price });
                }
            }
        }
        Ok(specs)
    }
}

impl ModelSpec {
    /// A repository's model that is not configured.
    pub fn of_repository(name: &str) -> Self {
        let name = name.to_owned();
        Self {
            source: Source::Repository(name.clone()),
            versions: VersionPolicy::default(),
            pinned: false,
            settings: TierConfig { name: Some(name.clone()), ..TierConfig::new(name.clone()) },
            name,
        }
    }
}

impl Source {
    fn of(model: &str, repository: &Scan) -> Self {
        match model {
            BUNDLED => Self::Bundled,
            _ if repository.models.contains_key(model) => Self::Repository(model.to_owned()),
            _ => Self::Given(model.to_owned()),
        }
    }
}

impl Specs {
    /// A line for each model, route and device.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let mut line = |kind: &str, name: &str, rest: Vec<String>| {
            writeln!(text, "{kind:<9} {name}: {}", rest.join("; ")).expect("a string takes all");
        };
        for ModelSpec { name, source, versions, pinned, settings } in &self.models {
            let source = match source {
                Source::Bundled => "in the program".to_owned(),
                Source::Given(given) => given.clone(),
                Source::Repository(model) => format!("`{model}` of the repository, {}", policy(versions)),
            };
            let device = settings.device.as_ref().map(|device| format!("on {device}"));
            line(
                "model",
                name,
                [Some(source), device, pinned.then(|| "pinned".to_owned())].into_iter().flatten().collect(),
            );
        }
        for RouteSpec { name, primaries, fallback, budget, policy } in &self.routes {
            let fallback =
                fallback.as_ref().map_or("no fallback".to_owned(), |model| format!("fallback {model}"));
            let budget = budget.map(|budget| format!("budget {} ms", budget.as_millis_f64()));
            let policy = policy.map(|policy| format!("policy {}", policy.name()));
            let primaries: Vec<String> = primaries.iter().map(ModelRef::to_string).collect();
            let rest = [Some(primaries.join(", ")), Some(fallback), budget, policy];
            line("route", name, rest.into_iter().flatten().collect());
        }
        for DeviceSpec { name, memory_bytes_max, price } in &self.devices {
            let memory = memory_bytes_max
                .map_or("all its memory".to_owned(), |bytes| format!("{bytes} bytes of memory"));
            let price = price.as_ref().map(|price| format!("{} dollars per hour", price.dollars_per_hour));
            line("device", name, [Some(memory), price].into_iter().flatten().collect());
        }
        text
    }
}

fn policy(versions: &VersionPolicy) -> String {
    match versions {
        VersionPolicy::Latest(count) if count.get() == 1 => "the newest version".to_owned(),
        VersionPolicy::Latest(count) => format!("the newest {count} versions"),
        VersionPolicy::All => "all versions".to_owned(),
        VersionPolicy::Specific(numbers) => {
            format!("versions {}", numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", "))
        }
    }
}

pub(super) fn check_name(key: &str, name: &str) -> Result<(), Failure> {
    if name.is_empty() {
        return wrong(format!("{key}: must not be empty"));
    }
    if name == NONE {
        return wrong(format!("{key}: `{NONE}` is the name for no fallback"));
    }
    match name.contains(ModelRef::SEPARATOR) {
        true => wrong(format!("{key}: `{name}` has an `@`, which separates a version")),
        false => Ok(()),
    }
}

pub(super) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

pub(super) fn milliseconds(budget: f64) -> Ns {
    Ns((budget * 1e6) as u64)
}

pub(super) fn wrong<T>(message: String) -> Result<T, Failure> {
    Err(Failure::usage(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Ns;
    use crate::model::repository::{Entry, Facts, Stamp};

    /// A repository with these versions, such as `large/1`; version 9 of each model cannot be used.
    fn repository(versions: &[&str]) -> Scan {
        let mut listing = std::collections::BTreeMap::new();
        for version in versions {
            let (model, number) = version.split_once('/').unwrap();
            let file = Entry::File(Stamp { bytes: 1, modified: Ns(1), changed: Ns(1) });
            let folder = Entry::Folder([("config.json".to_owned(), file)].into());
            let model = listing.entry(model.to_owned()).or_insert_with(|| Entry::Folder([].into()));
            let Entry::Folder(entries) = model else { unreachable!() };
            entries.insert(number.to_owned(), folder);
        }
        let check = |place: &str| {
            if place.ends_with("/9") { Err("truncated".to_owned()) } else { Ok(Facts::default()) }
        };
        Scan::of(&listing, &Scan::default(), check)
    }

    const VERSIONS: [&str; 6] = ["large/1", "large/2", "mid/1", "small/3", "broken/9", "large/9"];

    fn specs(text: &str) -> Result<Specs, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().and_then(|()| config.specs(&repository(&VERSIONS))).map_err(|failure| failure.message)
    }

    fn described(text: &str) -> Vec<String> {
        specs(text).unwrap().describe().lines().map(str::to_owned).collect()
    }

    #[test]
    fn routes_name_models_of_the_repository_and_of_the_configuration() {
        let text = r#"
            model_repository = "/models"
            repository_mode = "poll"
            latency_budget_ms = 500
            [[routes]]
            name = "search"
            primaries = ["large", "mid@1"]
            fallback = "small"
            latency_budget_ms = 200
            default_policy = "topk"
            [[routes]]
            name = "offline"
            primaries = ["ours"]
            fallback = "none"
            [[routes]]
            name = "other"
            primaries = ["large@1", "large@2"]
            fallback = "search"
            [[models]]
            name = "large"
            version_policy = { latest = 2 }
            pinned = true
            device = "h100"
            threads = 2
            [[models]]
            name = "ours"
            model = "owner/name@main"
            [[models]]
            name = "idle"
            model = "./idle"
            [[devices]]
            name = "h100"
            memory_bytes_max = 80000000000
            dollars_per_hour = 2.5
            [[devices]]
            name = "cpu"
        "#;
        assert_eq!(
            described(text),
            [
                "model     large: `large` of the repository, the newest 2 versions; on h100; pinned",
                "model     ours: owner/name@main",
                "model     idle: ./idle",
                "model     broken: `broken` of the repository, the newest version",
                "model     mid: `mid` of the repository, the newest version",
                "model     small: `small` of the repository, the newest version",
                "model     bundled: in the program",
                "route     search: large, mid@1; fallback small; budget 200 ms; policy topk",
                "route     offline: ours; no fallback; budget 500 ms",
                "route     other: large@1, large@2; fallback small; budget 500 ms",
                "device    h100: 80000000000 bytes of memory; 2.5 dollars per hour",
                "device    cpu: all its memory",
            ]
        );
        let specs = specs(text).unwrap();
        assert_eq!(specs.models[0].settings.threads, Some(2));
        assert_eq!(specs.models[1].source, Source::Given("owner/name@main".to_owned()));
        assert_eq!(specs.models[4].settings.name.as_deref(), Some("mid"));
    }

    #[test]
    fn in_explicit_mode_only_models_that_are_named_are_served() {
        let text = "model_repository = '/models'\nrepository_mode = 'explicit'\n[[routes]]\nname = 'r'\nprimaries = ['mid']";
        let lines = described(text);
        assert_eq!(
            lines,
            [
                "model     mid: `mid` of the repository, the newest version",
                "model     bundled: in the program",
                "route     r: mid; fallback bundled",
            ]
        );
    }

    #[test]
    fn a_primary_and_a_fallback_are_one_route() {
        let text = "latency_budget_ms = 50\n[primary]\nmodel = './large'\nname = 'best'\n[fallback]\nmodel = 'bundled'";
        assert_eq!(
            described(text),
            [
                "model     best: ./large; pinned",
                "model     bundled: in the program; pinned",
                "route     best: best; fallback bundled; budget 50 ms"
            ]
        );
        let mut config = Config::default();
        config.complete();
        let specs = config.specs(&Scan::default()).unwrap();
        assert_eq!(specs.routes[0].primaries[0].to_string(), "bundled");
        assert_eq!((specs.routes.len(), &specs.routes[0].fallback), (1, &None));
    }

    #[test]
    fn what_is_inconsistent_is_named_with_what_there_is() {
        let all = "`broken`, `large`, `mid`, `small`, `bundled`";
        let route = |primaries: &str| {
            format!("model_repository = '/m'\n[[routes]]\nname = 'r'\nprimaries = [{primaries}]\n")
        };
        let model = |rest: &str| format!("model_repository = '/m'\n[[models]]\n{rest}\n");
        let device = |rest: &str| format!("[[devices]]\nname = 'a'\n{rest}\n");
        let rows = [
            (route(""), format!("routes[0].primaries: names no model; models are {all}")),
            (route("'x'"), format!("routes[0].primaries[0]: there is no model `x`; models are {all}")),
            (route("'r'"), format!("routes[0].primaries[0]: there is no model `r`; models are {all} (`r` is a route)")),
            (
                route("'mid', 'large@7'"),
                "routes[0].primaries[1]: model `large` has no version `7`; it has `1`, `2`, `9`".to_owned(),
            ),
            (
                route("'large@9'"),
                "routes[0].primaries[0]: version 9 of model `large` cannot be used: truncated".to_owned(),
            ),
            (route("'broken'"), "routes[0].primaries[0]: version 9 of model `broken` cannot be used: truncated".to_owned()),
            (
                route("'bundled@1'"),
                "routes[0].primaries[0]: only a repository's model has numbered versions; write `bundled` without `@1`"
                    .to_owned(),
            ),
            (route("'large', 'large@1'"), "routes[0].primaries[1]: `large@1` may be the same as `large` before it".to_owned()),
            (
                route("'large'") + "fallback = 'large@1'",
                "routes[0].fallback: `large@1` is a primary of this route".to_owned(),
            ),
            (route("'large'") + "fallback = 'x'", format!("routes[0].fallback: there is no model `x`; models are {all}")),
            (
                route("'large'") + "fallback = 'r'",
                "routes[0].fallback: the fallbacks of routes are a cycle: r -> r".to_owned(),
            ),
            (
                route("'large'") + "fallback = 's'\n[[routes]]\nname = 's'\nprimaries = ['mid']\nfallback = 'r'",
                "routes[0].fallback: the fallbacks of routes are a cycle: r -> s -> r".to_owned(),
            ),
            (
                route("'large'") + "[[routes]]\nname = 'r'\nprimaries = ['mid']",
                "routes[1].name: `r` is another route's already".to_owned(),
            ),
            (
                route("'large'") + "[[routes]]\nname = 'mid'\nprimaries = ['mid']",
                "routes[1].name: `mid` is a model's name too, so a request could mean either".to_owned(),
            ),
            (
                route("'large'") + "[[routes]]\nname = 'r@1'\nprimaries = ['mid']",
                "routes[1].name: `r@1` has an `@`, which separates a version".to_owned(),
            ),
            (
                route("'large'") + "latency_budget_ms = -1",
                "routes[0].latency_budget_ms: -1 is not between 0 (excluded) and 3600000".to_owned(),
            ),
            (
                route("'large'") + "fallback = 'none'\ndefault_policy = 'fallback'",
                "routes[0].default_policy: `fallback` needs a fallback, and route `r` has none".to_owned(),
            ),
            (
                format!("default_policy = 'topk'\n{}fallback = 'none'", route("'large'")),
                "default_policy: `topk` needs a fallback, and route `r` has none".to_owned(),
            ),
            (
                route("'large'") + "[primary]\nmodel = 'bundled'",
                "primary: not together with routes, models or model_repository; name the model in a route instead".to_owned(),
            ),
            (
                "[fallback]\nmodel = 'bundled'\n[[models]]\nname = 'large'".to_owned(),
                "fallback: not together with routes, models or model_repository; name the model in a route instead".to_owned(),
            ),
            (
                model("name = 'x'"),
                "models[0].model: there is no model `x` in the repository; it has `broken`, `large`, `mid`, `small`".to_owned(),
            ),
            (
                "[[models]]\nname = 'x'".to_owned(),
                "models[0].model: there is no model `x` in the repository; set model_repository, or model to a directory or a \
                 hub id"
                    .to_owned(),
            ),
            (model("name = ''"), "models[0].name: must not be empty".to_owned()),
            (model("name = 'none'"), "models[0].name: `none` is the name for no fallback".to_owned()),
            (model("name = 'bundled'\nmodel = './x'"), "models[0].name: `bundled` is the model in the program".to_owned()),
            (
                model("name = 'large'\n[[models]]\nname = 'large'"),
                "models[1].name: `large` is another model's already".to_owned(),
            ),
            (model("name = 'large'\nlanes = 0"), "models[0].lanes: 0 is not between 1 and 256".to_owned()),
            (
                model("name = 'y'\nmodel = './y'\nversion_policy = 'all'"),
                "models[0].version_policy: only a repository's model has versions to choose from".to_owned(),
            ),
            (
                model("name = 'large'\ndevice = 'h100'\n[[devices]]\nname = 'cpu'"),
                "device of model `large`: there is no device `h100`; devices are `cpu`".to_owned(),
            ),
            (device("[[devices]]\nname = 'a'"), "devices[1].name: `a` is another device's already".to_owned()),
            (device("memory_bytes_max = 0"), "devices[0].memory_bytes_max: 0 bytes hold no model".to_owned()),
            (device("dollars_per_hour = -1"), "devices[0].dollars_per_hour: must be between 0 and 1000".to_owned()),
            (device("watts = 30"), "devices[0].watts: energy has a price only where dollars_per_hour is given".to_owned()),
            (
                device("dollars_per_hour = 1\n[[prices.devices]]\nname = 'a'\ndollars_per_hour = 1"),
                "devices[0].dollars_per_hour: prices.devices has a price for `a` already".to_owned(),
            ),
        ];
        for (text, expected) in rows {
            assert_eq!(specs(&text).map(|specs| specs.describe()), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_key_that_is_wrong_is_named() {
        for (text, expected) in [
            ("[[models]]\nmodel = 'x'", "missing field `name`"),
            ("[[models]]\nname = 'x'\nsize = 1", "unknown field `size`"),
            ("[[models]]\nname = 'x'\npinned = 1", "pinned: "),
            ("[[models]]\nname = 'x'\nversion_policy = 'newest'", "version_policy: "),
            ("[[models]]\nname = 'x'\nthreads = 'two'", "invalid type"),
            ("[[routes]]\nname = 'r'\nprimaries = ['m@']", "`m@` has no version after the `@`"),
            ("[[routes]]\nname = 'r'", "missing field `primaries`"),
            ("[[devices]]\nname = 'cpu'\nmemory = 1", "unknown field `memory`"),
            (
                "repository_mode = 'always'",
                "unknown variant `always`, expected one of `none`, `poll`, `explicit`",
            ),
        ] {
            let error = specs(text).map(|specs| specs.describe()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_device_may_have_its_price_in_either_table() {
        let text = "[[devices]]\nname = 'cpu'\nmemory_bytes_max = 1\n[[prices.devices]]\nname = 'cpu'\ndollars_per_hour = 1\n\
                    [[prices.devices]]\nname = 'gpu'\ndollars_per_hour = 2";
        assert_eq!(
            described(text),
            [
                "device    cpu: 1 bytes of memory; 1 dollars per hour",
                "device    gpu: all its memory; 2 dollars per hour"
            ]
        );
    }
}
