//! The configuration of a server: flags win over `PODIUM_*` variables, and those over `podium.toml`.

use super::Failure;
use super::routes::{DeviceEntry, ModelEntry, NONE, RepositoryMode, RouteEntry};
use super::tier::TierConfig;
use crate::engine::PrepareLimits;
use crate::http::{ServerLimits, TlsFiles};
use crate::ledger::price::PriceConfig;
use crate::model::BUNDLED;
use crate::rerank::Policy;
use crate::rerank::TruncationDefaults;
use crate::sched::Limits;
use crate::telemetry::spans::OtlpConfig;
use crate::wire::{Place, Settings};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// The configuration file that is read by default, if it exists.
const FILE: &str = "podium.toml";

/// `podium.toml`. Every key may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Config {
    /// Addresses to listen on, `HOST:PORT` each. A host name stands for all of its addresses. Default `["127.0.0.1:8080"]`.
    pub listen: Vec<String>,
    /// The large model. Default: the bundled one.
    pub primary: Option<TierConfig>,
    /// The small model that answers if the primary cannot. Default: the bundled one, unless that is the primary. A
    /// model `none` disables it.
    pub fallback: Option<TierConfig>,
    /// Names under which models are served, instead of `[primary]` and `[fallback]`. Default none.
    pub routes: Vec<RouteEntry>,
    /// The models of routes. Default: those of the repository, each with default settings.
    pub models: Vec<ModelEntry>,
    /// Devices with their memory and prices. Default: those of this machine.
    pub devices: Vec<DeviceEntry>,
    /// A folder of models, each with versions: `NAME/VERSION/...`. Default none.
    pub model_repository: Option<PathBuf>,
    /// How the server follows its repository. Default `none`: it is read once, at the start.
    pub repository_mode: RepositoryMode,
    /// How often the repository is read if it is polled, in milliseconds. Default 5000.
    pub repository_poll_ms: u64,
    /// How long the files of a version must be unchanged before it is taken, in milliseconds. Default 10000.
    pub repository_still_ms: u64,
    /// The file that records which versions are live on which route. Default: a restart serves the configured ones.
    pub deployments: Option<PathBuf>,
    /// The latency budget of requests without their own, in milliseconds. Default: no limit.
    pub latency_budget_ms: Option<f64>,
    /// The policy of requests without their own. Default `auto`.
    pub default_policy: Policy,
    /// The default policy by path, which wins over `default_policy`. Default none.
    pub path_policies: BTreeMap<String, Policy>,
    /// Whether the primary answers requests for a model that is not served. Default true.
    pub any_model: bool,
    /// Whether a model with golden pairs (`golden.json`) must give them their scores before the server is ready; otherwise
    /// the file is not read. Default true.
    pub self_check: bool,
    /// The tenants. Default: no keys, and one tenant `anonymous`.
    pub tenants: Vec<TenantEntry>,
    /// Limits of the dialects.
    pub wire: Settings,
    /// Limits of connections and bodies.
    pub http: ServerLimits,
    /// Certificate and key. Default: no TLS.
    pub tls: Option<TlsFiles>,
    /// The key for `/admin/*` and `/v1/costs`. Default: both are closed.
    pub admin_key: Option<String>,
    /// Export of requests as OpenTelemetry spans. Default: none.
    pub otlp: Option<OtlpConfig>,
    /// Prices of device time.
    pub prices: PriceConfig,
    /// The file that records usage by tenant, for `podium costs`. Default: usage is only in metrics.
    pub ledger: Option<PathBuf>,
    /// A new file that records the scheduler's decisions, for `podium simulate --replay`. Default: none.
    pub journal: Option<PathBuf>,
    /// The scheduler's limits.
    pub limits: Limits,
    /// Truncation of pairs that are too long, unless a request overrides it.
    pub truncation: TruncationDefaults,
    /// The limits of tokenisation.
    pub prepare: PrepareLimits,
}

/// A tenant with its keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantEntry {
    /// Its name in metrics and the ledger.
    pub name: String,
    /// Its API keys.
    pub keys: Vec<String>,
    /// Its share of device time relative to other tenants. Default 1.
    #[serde(default = "weight")]
    pub weight: u32,
    /// Device milliseconds per second. Default: no quota.
    #[serde(default)]
    pub quota_ms_per_s: Option<u64>,
    /// The policy of its requests without their own. Default: that of their path.
    #[serde(default)]
    pub default_policy: Option<Policy>,
}

fn weight() -> u32 {
    1
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec!["127.0.0.1:8080".to_owned()],
            primary: None,
            fallback: None,
            routes: Vec::new(),
            models: Vec::new(),
            devices: Vec::new(),
            model_repository: None,
            repository_mode: RepositoryMode::None,
            repository_poll_ms: 5_000,
            repository_still_ms: 10_000,
            deployments: None,
            latency_budget_ms: None,
            default_policy: Policy::Auto,
            path_policies: BTreeMap::new(),
            any_model: true,
            self_check: true,
            tenants: Vec::new(),
            wire: Settings::default(),
            http: ServerLimits::default(),
            tls: None,
            admin_key: None,
            otlp: None,
            prices: PriceConfig::default(),
            ledger: None,
            journal: None,
            limits: Limits::default(),
            truncation: TruncationDefaults::default(),
            prepare: PrepareLimits::default(),
        }
    }
}

impl Config {
    /// Reads the given file, or `podium.toml` if it exists.
    pub fn read(file: Option<&Path>) -> Result<Self, Failure> {
        let path = file.map_or_else(|| PathBuf::from(FILE), Path::to_owned);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(_) if file.is_none() && !path.exists() => return Ok(Self::default()),
            Err(error) => return Err(Failure::usage(format!("{}: {error}", path.display()))),
        };
        toml::from_str(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
    }

    /// Sets the bundled model if none is configured, and no route.
    pub fn complete(&mut self) {
        if self.has_routes() {
            return;
        }
        let primary = self.primary.get_or_insert_with(|| TierConfig::new(BUNDLED.to_owned()));
        if self.fallback.is_none() && primary.model != BUNDLED {
            self.fallback = Some(TierConfig::new(BUNDLED.to_owned()));
        }
        self.fallback.take_if(|fallback| fallback.model == NONE);
    }

    /// Checks the form of `listen`.
    pub fn check_listen(&self) -> Result<(), Failure> {
        let wrong = |reason: String| Err(Failure::usage(reason));
        if self.listen.is_empty() {
            return wrong("listen: at least one address is needed".to_owned());
        }
        let is_place = |listen: &String| {
            listen
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if let Some(listen) = self.listen.iter().find(|listen| !is_place(listen)) {
            return wrong(format!("listen: `{listen}` is not HOST:PORT with a port up to 65535"));
        }
        Ok(())
    }

    /// The addresses to listen on, each with its entry of `listen`. Uses the system's resolver.
    pub fn addresses(&self) -> Result<Vec<(SocketAddr, &str)>, Failure> {
        let mut all: Vec<(SocketAddr, &str)> = Vec::new();
        for listen in &self.listen {
            let complain = |error| Failure::usage(format!("listen: `{listen}`: {error}"));
            for address in listen.to_socket_addrs().map_err(complain)? {
                if all.iter().all(|(known, _)| *known != address || address.port() == 0) {
                    all.push((address, listen));
                }
            }
        }
        Ok(all)
    }

    /// Checks the values; errors name the key.
    pub fn check(&self) -> Result<(), Failure> {
        let wrong = |message: String| Err(Failure::usage(message));
        if self.primary.as_ref().is_some_and(|primary| primary.model == NONE) {
            return wrong("primary.model: `none` serves nothing".to_owned());
        }
        self.check_listen()?;
        for (key, tier) in [("primary", &self.primary), ("fallback", &self.fallback)] {
            let Some(tier) = tier else { continue };
            tier.check(key)?;
        }
        if let Some(budget) = self.latency_budget_ms
            && !(budget > 0.0 && budget <= 3_600_000.0)
        {
            return wrong(format!("latency_budget_ms: {budget} is not between 0 (excluded) and 3600000"));
        }
        let bounds = [
            ("limits.jobs_max", self.limits.jobs_max as u64, 1),
            ("limits.pairs_max", self.limits.pairs_max, self.wire.documents_max as u64),
            ("limits.batch_ns_max", self.limits.batch_ns_max.0, 1),
            ("limits.stall_ns_min", self.limits.stall_ns_min.0, 1),
            ("limits.rest_ns_max", self.limits.rest_ns_max.0, self.limits.rest_ns_min.0),
            ("wire.documents_max", self.wire.documents_max as u64, 1),
            ("prepare.threads", self.prepare.threads as u64, 1),
            ("prepare.queued_max", self.prepare.queued_max as u64, 1),
            ("repository_poll_ms", self.repository_poll_ms, 100),
        ];
        let times = [
            ("repository_poll_ms", self.repository_poll_ms),
            ("repository_still_ms", self.repository_still_ms),
        ];
        if let Some((key, value)) = times.iter().find(|(_, value)| *value > 3_600_000) {
            return wrong(format!("{key}: {value} is more than 3600000"));
        }
        if self.deployments.is_some() && !self.has_routes() {
            return wrong("deployments: only routes have deployments, and there are none".to_owned());
        }
        if self.repository_mode != RepositoryMode::None && self.model_repository.is_none() {
            return wrong("repository_mode: there is no model_repository to follow".to_owned());
        }
        if self.prepare.threads > 256 {
            return wrong(format!("prepare.threads: {} is more than 256", self.prepare.threads));
        }
        if self.limits.hedges_permille > 1000 {
            return wrong(format!(
                "limits.hedges_permille: {} is more than 1000",
                self.limits.hedges_permille
            ));
        }
        if let Some((key, value, min)) = bounds.iter().find(|(_, value, min)| value < min) {
            return wrong(format!("{key}: {value} is less than {min}"));
        }
        self.http.check().map_err(|message| Failure::usage(format!("http.{message}")))?;
        self.truncation.check().map_err(|message| Failure::usage(format!("truncation.{message}")))?;
        self.wire.check().map_err(|message| Failure::usage(format!("wire.{message}")))?;
        if let Some(otlp) = &self.otlp {
            otlp.check().map_err(|message| Failure::usage(format!("otlp.{message}")))?;
        }
        if self.admin_key.as_ref().is_some_and(|key| key.len() < 8) {
            return wrong("admin_key: a key has at least 8 bytes".to_owned());
        }
        self.check_policies()?;
        self.check_tenants()
    }

    /// Checks that default policies belong to paths that rank, and have the tiers that they need.
    fn check_policies(&self) -> Result<(), Failure> {
        let server = [("default_policy".to_owned(), self.default_policy)];
        let mut all = Vec::from(server);
        for (path, &policy) in &self.path_policies {
            if Place::of(path).is_none_or(|place| place.path() != path) {
                let message = format!("path_policies: `{path}` is no path that ranks; README lists those");
                return Err(Failure::usage(message));
            }
            all.push((format!("path_policies.\"{path}\""), policy));
        }
        for (place, tenant) in self.tenants.iter().enumerate() {
            let key = || format!("tenants[{place}].default_policy");
            all.extend(tenant.default_policy.map(|policy| (key(), policy)));
        }
        let needs_fallback = |policy: Policy| matches!(policy, Policy::TopK | Policy::Fallback);
        // Routes have fallbacks of their own.
        let has_fallback = self.fallback.is_some() || self.has_routes();
        match all.iter().find(|(_, policy)| needs_fallback(*policy) && !has_fallback) {
            Some((key, policy)) => {
                Err(Failure::usage(format!("{key}: `{}` needs a fallback, and there is none", policy.name())))
            }
            None => Ok(()),
        }
    }

    /// Checks that a tier's device has a price, if any device has.
    pub fn check_price(&self, tier: &str, device: &str) -> Result<(), Failure> {
        let devices = &self.prices.devices;
        if devices.is_empty() || devices.iter().any(|priced| priced.name == device) {
            return Ok(());
        }
        Err(Failure::usage(format!("{tier}.device: prices.devices has no price for `{device}`")))
    }

    fn check_tenants(&self) -> Result<(), Failure> {
        let mut names = std::collections::BTreeSet::new();
        let mut keys = std::collections::BTreeSet::new();
        for (place, tenant) in self.tenants.iter().enumerate() {
            let wrong = |what: &str| Err(Failure::usage(format!("tenants[{place}].{what}")));
            if tenant.name.is_empty() || tenant.name == "podium" {
                return wrong("name: must not be empty, nor `podium`, the house's own account");
            }
            if !names.insert(&tenant.name) {
                return wrong("name: is another tenant's already");
            }
            if tenant.keys.is_empty() {
                return wrong("keys: at least one is needed");
            }
            if tenant.keys.iter().any(|key| key.len() < 8) {
                return wrong("keys: a key has at least 8 bytes");
            }
            if !tenant.keys.iter().all(|key| keys.insert(key)) {
                return wrong("keys: a key belongs to one tenant");
            }
            if !(1..=10_000).contains(&tenant.weight) {
                return wrong("weight: is not between 1 and 10000");
            }
            if tenant.quota_ms_per_s.is_some_and(|quota| !(1..=1_000_000).contains(&quota)) {
                return wrong("quota_ms_per_s: is not between 1 and 1000000");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> String {
        match toml::from_str::<Config>(text) {
            Ok(config) => config.check().map_or_else(|failure| failure.message, |()| String::new()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let example = include_str!("../../deploy/podium.toml");
        let shown: Config = toml::from_str(example).unwrap();
        let defaults = Config::default();
        let tier = |model: &str| Some(TierConfig::new(model.to_owned()));
        let defaults = Config { primary: tier(BUNDLED), ..defaults };
        assert_eq!(format!("{shown:?}"), format!("{defaults:?}"));
        // With every example enabled the file is still a valid configuration.
        let on = example.lines().map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") || rest.starts_with('[') => rest,
            _ => line,
        });
        let on = on.collect::<Vec<_>>().join("\n");
        toml::from_str::<Config>(&on).unwrap().check().unwrap();
    }

    #[test]
    fn a_place_to_listen_is_a_host_and_a_port() {
        for (listen, expected) in [
            ("127.0.0.1:8080", ""),
            ("[::1]:8080", ""),
            ("localhost:0", ""),
            ("localhost", "listen: `localhost` is not HOST:PORT"),
            (":8080", "listen: `:8080` is not HOST:PORT"),
            ("localhost:80800", "listen: `localhost:80800` is not HOST:PORT"),
        ] {
            let found = complaint(&format!("listen = ['{listen}']"));
            assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{found}");
        }
        let addresses = |text: &str| {
            let config: Config = toml::from_str(text).unwrap();
            let found = config.addresses().map_err(|failure| failure.message)?;
            Ok::<_, String>(found.into_iter().map(|(address, _)| address.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(
            addresses("listen = ['127.0.0.1:1', '[::1]:1', '127.0.0.1:1']").unwrap(),
            ["127.0.0.1:1", "[::1]:1"]
        );
        assert!(addresses("listen = ['localhost:1']").unwrap().iter().all(|address| address.ends_with(":1")));
        let error = addresses("listen = ['no-such-host.invalid:1']").unwrap_err();
        assert!(error.starts_with("listen: `no-such-host.invalid:1`: "), "{error}");
    }

    #[test]
    fn a_default_policy_is_of_a_path_that_ranks_and_has_its_tiers() {
        let fallback = "[fallback]\nmodel = 'y'\n";
        for (text, expected) in [
            ("default_policy = 'full'", ""),
            ("default_policy = 'topk'", "default_policy: `topk` needs a fallback, and there is none"),
            ("default_policy = 'best'", "unknown variant `best`"),
            ("[path_policies]\n'/v1/rerank' = 'full'\n'/v2/models/{model}/infer' = 'auto'", ""),
            ("[path_policies]\n'/v1/costs' = 'full'", "path_policies: `/v1/costs` is no path that ranks"),
            (
                "[path_policies]\n'/rerank' = 'fallback'",
                "path_policies.\"/rerank\": `fallback` needs a fallback",
            ),
            (
                "[[tenants]]\nname = 'a'\nkeys = ['12345678']\ndefault_policy = 'topk'",
                "tenants[0].default_policy: `topk` needs a fallback",
            ),
        ] {
            let found = complaint(text);
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{text}: {found}");
            if expected.contains("needs a fallback") {
                assert_eq!(complaint(&format!("{}\n{fallback}", text)), "", "{text}");
            }
        }
    }

    #[test]
    fn the_bundled_model_is_where_none_is_configured() {
        let rows = [
            ("", Some(BUNDLED), None),
            ("[primary]\nmodel = 'x'", Some("x"), Some(BUNDLED)),
            ("[primary]\nmodel = 'x'\n[fallback]\nmodel = 'y'", Some("x"), Some("y")),
            ("[primary]\nmodel = 'x'\n[fallback]\nmodel = 'none'", Some("x"), None),
            ("[fallback]\nmodel = 'y'", Some(BUNDLED), Some("y")),
        ];
        for (text, primary, fallback) in rows {
            let mut config: Config = toml::from_str(text).unwrap();
            config.complete();
            let model = |tier: &Option<TierConfig>| tier.as_ref().map(|tier| tier.model.clone());
            assert_eq!(model(&config.primary).as_deref(), primary, "{text}");
            assert_eq!(model(&config.fallback).as_deref(), fallback, "{text}");
        }
    }

    #[test]
    fn a_complaint_names_the_key() {
        let primary = "[primary]\nmodel = 'x'\n";
        let rows = [
            ("[primary]\nmodel = 'none'", "primary.model: `none` serves"),
            ("listen = []\n[primary]\nmodel = 'x'", "listen: at least one"),
            ("latency_budget_ms = -1\n[primary]\nmodel = 'x'", "latency_budget_ms: -1"),
            ("[primary]\nmodel = 'x'\nlanes = 0", "primary.lanes: 0"),
            ("[primary]\nmodel = 'x'\nbatch_tokens_max = 1", "primary.batch_tokens_max: 1"),
            ("[primary]\nmodel = 'x'\nthreads = 0", "primary.threads: 0"),
            (
                "[primary]\nmodel = 'x'\nengine = 'reference'\nprecision = 'int8'",
                "primary.precision: the reference",
            ),
            (
                "[primary]\nmodel = 'x'\nengine = 'cpu'\nprecision = 'f16'",
                "primary.precision: the cpu engine has",
            ),
            (
                "[primary]\nmodel = 'x'\nengine = 'cuda'\nprecision = 'int8'",
                "primary.precision: the cuda engine",
            ),
            ("[http]\nheaders_max = 1\n", "http.headers_max: 1 is less than 16"),
            ("[limits]\njobs_max = 0\n", "limits.jobs_max: 0 is less than 1"),
            ("[limits]\npairs_max = 9999\n", "limits.pairs_max: 9999 is less than 10000"),
            ("[prepare]\nthreads = 0\n", "prepare.threads: 0 is less than 1"),
            ("[prepare]\nthreads = 257\n", "prepare.threads: 257 is more than 256"),
            ("[limits]\nhedges_permille = 1001\n", "limits.hedges_permille: 1001 is more than 1000"),
            ("[primary]\nmodel = 'x'\nname = ''", "primary.name: must not be empty"),
            ("[wire.pins]\nrerank = 'nim'\n", "wire.pins.rerank: `nim` has no such path"),
            ("[truncation]\nquery_permille = 0\n", "truncation.query_permille: 0 is not between 1 and 999"),
            ("[truncation]\nquery_permille = 1000\n", "truncation.query_permille: 1000 is not between 1"),
            ("[otlp]\nendpoint = 'collector:4317'\n", "otlp.endpoint: `collector:4317`"),
            ("[otlp]\nendpoint = 'http://c:4318'\nsample = 2.0\n", "otlp.sample: 2"),
            ("[[tenants]]\nname = 'podium'\nkeys = []\n", "tenants[0].name"),
            ("[[tenants]]\nname = 'a'\nkeys = ['short']\n", "tenants[0].keys: a key has at least 8"),
        ];
        for (text, expected) in rows {
            let text = if text.contains("[primary]") || text.is_empty() {
                text.into()
            } else {
                format!("{text}{primary}")
            };
            let complaint = complaint(&text);
            assert!(complaint.starts_with(expected), "{complaint}");
        }
        assert!(complaint("[primary]\nmodel = 'x'\ntypo = 1").contains("typo"));
        assert_eq!(complaint(primary), "");
    }
}
