//! `[[routes]]`, `[[models]]` and `[[devices]]` as they are configured.

use super::tier::TierConfig;
use crate::base::ModelRef;
use crate::model::repository::VersionPolicy;
use crate::rerank::Policy;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// The name that disables a fallback.
pub(super) const NONE: &str = "none";

/// A route: a served name, and the models that answer it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteEntry {
    /// The name by which requests ask for it.
    pub name: String,
    /// The large models, the best first: names of models, or `name@version`.
    pub primaries: Vec<ModelRef>,
    /// The small model that answers if no primary can: a model, a route whose fallback it shares, or `none`. Default: the
    /// bundled model, unless that is a primary.
    #[serde(default)]
    pub fallback: Option<ModelRef>,
    /// The latency budget of its requests without their own, in milliseconds. Default: that of the server.
    #[serde(default)]
    pub latency_budget_ms: Option<f64>,
    /// The policy of its requests without their own. Default: that of their tenant or path.
    #[serde(default)]
    pub default_policy: Option<Policy>,
}

/// A model, with the keys of `[primary]` beside these.
#[derive(Clone, Debug)]
pub(super) struct ModelEntry {
    /// The name by which routes and requests ask for it.
    pub name: String,
    /// Whether it is loaded from the start and stays so. Default false.
    pub pinned: bool,
    /// Which versions of a repository's model are served: `{ latest = n }`, `"all"` or `{ specific = [1, 3] }`. Default the
    /// newest.
    pub version_policy: VersionPolicy,
    pub(super) settings: TierConfig,
}

/// A device, or a kind of devices.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceEntry {
    /// The name that `device` of a model uses.
    pub name: String,
    /// Most bytes that models may take on it. Default: what it has.
    #[serde(default)]
    pub memory_bytes_max: Option<u64>,
    /// Rent or depreciation of one device in dollars per hour. Default: it has no price.
    #[serde(default)]
    pub dollars_per_hour: Option<f64>,
    /// Power drawn by one device, in watts. Default 0.
    #[serde(default)]
    pub watts: f64,
    /// Its own price of energy. Default: that of `[prices]`.
    #[serde(default)]
    pub dollars_per_kwh: Option<f64>,
}

/// How a server follows its repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum RepositoryMode {
    /// It is read once, at the start.
    #[default]
    None,
    /// It is read again and again, and new versions are swapped in.
    Poll,
    /// Models are loaded and unloaded on request.
    Explicit,
}

impl<'de> Deserialize<'de> for ModelEntry {
    /// The keys of its own, then those of a tier. Without `model` it is the repository's model of that name.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut table = toml::Table::deserialize(deserializer)?;
        let name = table.get("name").and_then(toml::Value::as_str).map(str::to_owned);
        let name = name.ok_or_else(|| D::Error::missing_field("name"))?;
        let own = |key: &'static str| {
            move |error: toml::de::Error| D::Error::custom(format!("{key}: {}", error.message()))
        };
        let pinned =
            table.remove("pinned").map_or(Ok(false), toml::Value::try_into).map_err(own("pinned"))?;
        let policy =
            table.remove("version_policy").map_or(Ok(VersionPolicy::default()), toml::Value::try_into);
        let version_policy = policy.map_err(own("version_policy"))?;
        table.entry("model").or_insert_with(|| name.as_str().into());
        let settings =
            table.try_into().map_err(|error: toml::de::Error| D::Error::custom(error.message()))?;
        Ok(Self { name, pinned, version_policy, settings })
    }
}
