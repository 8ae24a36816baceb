//! What is served, in the shapes that clients ask for it.

use crate::engine::{Handle, ModelInfo, State};
use crate::wire::{ModelRef, Settings};
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

/// Whether requests are taken.
pub(super) fn ready(state: State) -> Response<Full<Bytes>> {
    match state {
        State::Ready => text(StatusCode::OK, "ready"),
        State::Loading => text(StatusCode::SERVICE_UNAVAILABLE, "loading"),
        State::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining"),
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

/// TEI's description.
pub(super) fn info(handle: &Handle, settings: &Settings) -> Value {
    let model = &handle.models()[0];
    value!({
        "model_id": *model.name, "model_sha": *model.version, "model_dtype": model.dtype,
        "model_dtype_reason": *model.dtype_reason,
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_input_length": model.pair_tokens_max, "max_client_batch_size": settings.documents_max,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// The Open Inference Protocol's server metadata.
pub(super) fn oip_server() -> Value {
    value!({"name": "podium", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"]})
}

/// Its model metadata; none for a model or version that is not served.
pub(super) fn oip_model(models: &[ModelInfo], asked: &ModelRef) -> Option<Value> {
    let model = models.iter().find(|model| *model.name == asked.name)?;
    if asked.version.as_ref().is_some_and(|version| *version != *model.version) {
        return None;
    }
    Some(value!({
        "name": *model.name, "versions": [*model.version], "platform": "podium",
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
