//! Pages about the server and its models, in the shapes of the dialects.

use crate::engine::{Handle, ModelInfo, State};
use crate::wire::repository::EXTENSIONS;
use crate::wire::{LABEL, ModelRef, Settings};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json as value};

/// Plain text.
pub(super) fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    page(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

/// A JSON value.
pub(super) fn json(value: &Value) -> Response<Full<Bytes>> {
    page(StatusCode::OK, "application/json", Bytes::from(value.to_string()))
}

/// Prometheus' text format, as `prometheus-client` writes it.
pub(super) fn metrics(text: String) -> Response<Full<Bytes>> {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    page(StatusCode::OK, content_type, Bytes::from(text))
}

/// JSON that never changes.
pub(super) fn bytes(bytes: &'static [u8]) -> Response<Full<Bytes>> {
    page(StatusCode::OK, "application/json", Bytes::from_static(bytes))
}

fn page(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Whether requests are accepted.
pub(super) fn ready(state: State) -> Response<Full<Bytes>> {
    match state {
        State::Ready => text(StatusCode::OK, "ready"),
        State::Loading => text(StatusCode::SERVICE_UNAVAILABLE, "loading"),
        State::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining"),
    }
}

/// The same in Infinity's JSON: the time, if requests are accepted.
pub(super) fn ready_json(state: State, unix_ns: u64) -> Response<Full<Bytes>> {
    match state {
        State::Ready => json(&value!({"unix": unix_ns as f64 / 1e9})),
        State::Loading | State::Draining => ready(state),
    }
}

/// OpenAI's list of models.
pub(super) fn models(models: &[ModelInfo]) -> Value {
    let model = |model: &ModelInfo| {
        value!({
            "id": *model.name, "object": "model", "created": model.created_unix, "owned_by": "podium",
            "tier": model.tier.name(), "version": *model.version, "max_model_len": model.pair_tokens_max,
            "licence": *model.licence,
        })
    };
    value!({"object": "list", "data": models.iter().map(model).collect::<Vec<_>>()})
}

/// Infinity's list of models. Its clients require the owner `infinity`.
pub(super) fn model_stats(handle: &Handle) -> Value {
    let (inside, capacity) = (handle.inside(), handle.capacity());
    let model = |model: &ModelInfo| {
        value!({
            "id": *model.name, "object": "model", "owned_by": "infinity", "created": model.created_unix,
            "backend": "podium", "capabilities": ["rerank"],
            "stats": {
                "queue_fraction": inside as f64 / capacity.requests_max as f64, "queue_absolute": inside,
                "results_pending": inside, "batch_size": capacity.batch_tokens_max,
            },
        })
    };
    value!({"object": "list", "data": handle.models().iter().map(model).collect::<Vec<_>>()})
}

/// vLLM's version.
pub(super) fn version() -> Value {
    value!({"version": env!("CARGO_PKG_VERSION")})
}

/// TEI's description.
pub(super) fn info(handle: &Handle, settings: &Settings) -> Value {
    let (models, capacity) = (handle.models(), handle.capacity());
    let model = &models[0];
    value!({
        "model_id": *model.name, "model_sha": *model.version, "model_dtype": model.dtype,
        "model_dtype_reason": *model.dtype_reason, "served_model_name": *model.name,
        "model_type": {"reranker": {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}}},
        "max_concurrent_requests": capacity.requests_max, "max_input_length": model.pair_tokens_max,
        "max_batch_tokens": capacity.batch_tokens_max, "max_batch_requests": null,
        "max_client_batch_size": settings.documents_max, "auto_truncate": capacity.truncates,
        "tokenization_workers": capacity.tokenizers, "version": env!("CARGO_PKG_VERSION"),
        "sha": null, "docker_label": null,
    })
}

/// The Open Inference Protocol's server metadata.
pub(super) fn oip_server() -> Value {
    let extensions = ["binary_tensor_data"].into_iter().chain(EXTENSIONS).collect::<Vec<_>>();
    value!({"name": "podium", "version": env!("CARGO_PKG_VERSION"), "extensions": extensions})
}

/// The server is alive.
pub(super) fn oip_live() -> Value {
    value!({"live": true, "ready": true})
}

/// The model is ready.
pub(super) fn oip_model_ready(asked: &ModelRef) -> Value {
    value!({"name": asked.name, "ready": true})
}

/// The model of a path, which may name a route; none for a model or version that is not served.
fn served(handle: &Handle, asked: &ModelRef) -> Option<ModelInfo> {
    let exact = asked.version.as_ref().and_then(|_| handle.answering(Some(&asked.to_string())));
    let any = || handle.answering(Some(&asked.name)).filter(|_| is_any_version(asked));
    exact.or_else(any)
}

/// Whether any version is asked for: none, or 1, which Triton's clients name where they know no other.
pub(super) fn is_any_version(asked: &ModelRef) -> bool {
    asked.version.as_ref().is_none_or(|version| version == "1")
}

/// The error for a model or version that is not served.
pub(super) fn not_served(asked: &ModelRef) -> String {
    match &asked.version {
        Some(version) => format!("version `{version}` of model `{}` is not served", asked.name),
        None => format!("model `{}` is not served", asked.name),
    }
}

/// The Open Inference Protocol's model metadata.
pub(super) fn oip_model(handle: &Handle, asked: &ModelRef) -> Option<Value> {
    let model = served(handle, asked)?;
    let mut versions = vec!["1".to_owned()];
    let serving = handle.models();
    let of_it = serving.iter().filter(|other| other.name == model.name);
    versions.extend(of_it.map(|other| other.version.to_string()).filter(|version| version != "1"));
    Some(value!({
        "name": asked.name, "versions": versions, "platform": "podium",
        "inputs": [
            {"name": "QUERY", "datatype": "BYTES", "shape": [-1]},
            {"name": "PASSAGE", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "SCORE", "datatype": "FP32", "shape": [-1]},
            {"name": "INDEX", "datatype": "INT64", "shape": [-1]},
        ],
    }))
}

/// Triton's model configuration.
pub(super) fn oip_config(handle: &Handle, asked: &ModelRef) -> Option<Value> {
    served(handle, asked)?;
    Some(value!({
        "name": asked.name, "platform": "podium", "backend": "podium", "max_batch_size": 0,
        "input": [
            {"name": "QUERY", "data_type": "TYPE_STRING", "dims": [-1]},
            {"name": "PASSAGE", "data_type": "TYPE_STRING", "dims": [-1]},
        ],
        "output": [
            {"name": "SCORE", "data_type": "TYPE_FP32", "dims": [-1]},
            {"name": "INDEX", "data_type": "TYPE_INT64", "dims": [-1]},
        ],
    }))
}
