//! Triton's model repository extension of the Open Inference Protocol: `POST /v2/repository/index`, and `load` and `unload`
//! below `/v2/repository/models/{model}`.

use super::Code;
use super::error::ApiError;
use super::fields::without_bom;
use crate::base::ModelRef;
use serde_json::{Map, Value, json};

/// The names by which the server's metadata declares the extension, with its optional part.
pub const EXTENSIONS: [&str; 2] = ["model_repository", "model_repository(unload_dependents)"];

/// A path of the extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepositoryPath {
    /// Lists the models.
    Index,
    /// Loads a model, or loads it again.
    Load(String),
    /// Unloads a model.
    Unload(String),
}

/// A request to list the models.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexRequest {
    /// Whether only models are wanted that can answer.
    pub ready: bool,
    /// Fields that are unknown.
    pub unknown: Vec<String>,
}

/// A request to load a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadRequest {
    /// The model, and the version if only that is to be loaded.
    pub model: ModelRef,
    /// Fields that are unknown.
    pub unknown: Vec<String>,
}

/// A request to unload a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnloadRequest {
    /// The model, and the version if only that is to be unloaded.
    pub model: ModelRef,
    /// Whether models that were loaded only for this one are unloaded too.
    pub unload_dependents: bool,
    /// Fields that are unknown.
    pub unknown: Vec<String>,
}

/// The state of a version, by Triton's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// It answers.
    Ready,
    /// It is being loaded.
    Loading,
    /// It answers what it has, and nothing new.
    Unloading,
    /// It is not loaded, or cannot be.
    Unavailable,
}

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The model.
    pub name: String,
    /// The version; none for a model that has none.
    pub version: Option<String>,
    /// Its state.
    pub state: ModelState,
    /// Why it is in that state; empty where there is nothing to say.
    pub reason: String,
}

impl RepositoryPath {
    /// Finds a path. Paths with the name of a repository are unknown: there is one, and it has no name.
    pub fn of(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/v2/repository/")?;
        if rest == "index" {
            return Some(Self::Index);
        }
        let (model, verb) = rest.strip_prefix("models/")?.rsplit_once('/')?;
        let model = || percent_encoding::percent_decode_str(model).decode_utf8_lossy().into_owned();
        match verb {
            "load" => Some(Self::Load(model())),
            "unload" => Some(Self::Unload(model())),
            _ => None,
        }
    }
}

impl IndexRequest {
    /// Reads a body, which may be empty.
    ///
    /// # Errors
    /// The body is no JSON object, or `ready` no boolean.
    pub fn read(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = object(body)?;
        let ready = flag(&mut fields, "ready", "ready")?;
        Ok(Self { ready, unknown: fields.into_iter().map(|(name, _)| name).collect() })
    }
}

impl LoadRequest {
    /// Reads a body, which may be empty, for the model of the path: `name` or `name@version`.
    ///
    /// # Errors
    /// The body is not valid, or has files or a configuration: a model's are in the repository.
    pub fn read(model: &str, body: &[u8]) -> Result<Self, ApiError> {
        let (parameters, unknown) = parameters(body)?;
        if let Some(name) = parameters.keys().find(|name| name.starts_with("file:")) {
            let message =
                "a load takes no files: copy them to a folder of the model repository, and load it then";
            return Err(ApiError::invalid(format!("parameters.{name}"), message));
        }
        if parameters.contains_key("config") {
            let message = "a load takes no configuration: a model's is config.json in its folder, and that of its lanes \
                           [[models]] in podium.toml";
            return Err(ApiError::invalid("parameters.config", message));
        }
        known(&parameters, &[])?;
        Ok(Self { model: named(model)?, unknown })
    }
}

impl UnloadRequest {
    /// Reads a body, which may be empty, for the model of the path: `name` or `name@version`.
    ///
    /// # Errors
    /// The body is not valid.
    pub fn read(model: &str, body: &[u8]) -> Result<Self, ApiError> {
        let (mut parameters, unknown) = parameters(body)?;
        let unload_dependents = flag(&mut parameters, "unload_dependents", "parameters.unload_dependents")?;
        known(&parameters, &["unload_dependents"])?;
        Ok(Self { model: named(model)?, unload_dependents, unknown })
    }
}

impl ModelState {
    /// Triton's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Loading => "LOADING",
            Self::Unloading => "UNLOADING",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// The body of the list: all entries, or those that are ready.
pub fn repository_index(entries: &[IndexEntry], asked: &IndexRequest) -> Value {
    let entry = |entry: &IndexEntry| {
        let IndexEntry { name, version, state, reason } = entry;
        let mut shown = json!({"name": name, "state": state.name(), "reason": reason});
        if let Some(version) = version {
            shown["version"] = json!(version);
        }
        shown
    };
    let wanted = entries.iter().filter(|entry| !asked.ready || entry.state == ModelState::Ready);
    Value::Array(wanted.map(entry).collect())
}

/// The fields of a body, without those that are null.
fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let body = without_bom(body);
    if body.is_empty() {
        return Ok(Map::new());
    }
    let invalid = |error| ApiError::new(Code::InvalidRequest, format!("the body is not valid: {error}"));
    let mut fields: Map<String, Value> = serde_json::from_slice(body).map_err(invalid)?;
    fields.retain(|_, value| !value.is_null());
    Ok(fields)
}

/// The parameters of a body, and the names of its other fields.
fn parameters(body: &[u8]) -> Result<(Map<String, Value>, Vec<String>), ApiError> {
    let mut fields = object(body)?;
    let mut parameters = match fields.remove("parameters") {
        None => Map::new(),
        Some(Value::Object(parameters)) => parameters,
        Some(_) => return Err(ApiError::invalid("parameters", "must be an object")),
    };
    parameters.retain(|_, value| !value.is_null());
    Ok((parameters, fields.into_iter().map(|(name, _)| name).collect()))
}

/// As Triton does, refuses parameters that have no meaning: they change what is loaded.
fn known(parameters: &Map<String, Value>, known: &[&str]) -> Result<(), ApiError> {
    let Some(name) = parameters.keys().next() else { return Ok(()) };
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(ApiError::invalid(format!("parameters.{name}"), format!("is unknown; the parameters are {known}")))
}

fn flag(fields: &mut Map<String, Value>, name: &str, field: &str) -> Result<bool, ApiError> {
    match fields.remove(name) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(flag),
        Some(_) => Err(ApiError::invalid(field, "must be true or false")),
    }
}

fn named(model: &str) -> Result<ModelRef, ApiError> {
    model.parse().map_err(|message: String| ApiError::invalid("model", message))
}
