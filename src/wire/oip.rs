//! The Open Inference Protocol, version 2: `POST /v2/models/{model}[/versions/{v}]/infer`, in JSON
//! and with its binary tensor data extension.
//!
//! Inputs are `QUERY` (one text, or one for each passage) and `PASSAGE`; outputs are `SCORE`
//! (FP32, in the order and shape of the passages) and `INDEX` (INT64, best first). A request that names no output gets both.

use super::ask::{Ask, Rows, parse};
use super::error::ApiError;
use super::fields::{POLICIES, PRIORITIES, budget, one_of, only, shared_query, whole, without_bom};
use super::path::Place;
use super::spec::{Read, Spec, Whole, Written};
use super::{Answered, Code};
use crate::rerank::{Options, Priority, Query, Request, ScoreForm, order};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use serde_json::{Map, Value, json};
use std::sync::Arc;

pub(super) const SPEC: Spec = Spec {
    name: "oip",
    paths: &["/v2/models/{model}/infer"],
    // `read` parses the body itself.
    fields: &[],
    names: &[("query", "QUERY"), ("documents", "PASSAGE"), ("instruction", "parameters.instruction")],
    documents_max: usize::MAX,
    needs_model: true,
    read: Read::Whole(read),
    write,
    error: |failure| json!({"error": failure.message}),
    status: Code::status,
    ask,
    scores,
};

/// The request parameters that are read.
const PARAMETERS: &[&str] = &[
    "raw_scores",
    "instruction",
    "latency_budget_ms",
    "timeout",
    "priority",
    "policy",
    "top_k",
    "binary_data_output",
];

/// The length of the JSON part of a binary body.
const JSON_LENGTH: &str = "inference-header-content-length";

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<Tensor>,
    #[serde(default)]
    outputs: Option<Vec<Output>>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    #[serde(deserialize_with = "shape")]
    shape: Vec<u64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(default)]
    data: Option<Value>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// The outputs that the caller wants.
#[derive(Debug)]
pub(super) struct Wanted {
    id: Option<String>,
    model: String,
    shape: Vec<u64>,
    /// Names and whether each is binary.
    outputs: Vec<(Name, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Score,
    Index,
}

fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    let sides = Vec::<Value>::deserialize(deserializer)?;
    let side = |side| whole(side).ok_or_else(|| D::Error::custom("a shape has whole numbers of at least 0"));
    sides.iter().map(side).collect()
}

fn read(place: &Place, headers: &HeaderMap, body: &[u8]) -> Result<Whole, ApiError> {
    // The version is checked by the caller of this function.
    let model = place.model.as_ref().map(|model| model.name.clone()).unwrap_or_default();
    let (head, mut binary) = split(headers, body)?;
    let invalid = |message: String| ApiError::new(Code::InvalidRequest, message);
    let head = without_bom(head);
    let text = std::str::from_utf8(head)
        .map_err(|error| invalid(format!("the body is not UTF-8 at byte {}", error.valid_up_to())))?;
    let mut body: Body =
        serde_json::from_str(text).map_err(|error| invalid(format!("the body is not valid: {error}")))?;
    // Null is the same as absent, as in other dialects.
    body.parameters.retain(|_, value| !value.is_null());
    let (mut queries, mut passages) = (None, None);
    for tensor in body.inputs {
        let name = tensor.name.clone();
        let slot = match name.as_str() {
            "QUERY" => &mut queries,
            "PASSAGE" => &mut passages,
            _ => return Err(ApiError::invalid("inputs", format!("`{name}` is not QUERY or PASSAGE"))),
        };
        let shape = tensor.shape.clone();
        if slot.replace((texts(tensor, &mut binary)?, shape)).is_some() {
            return Err(ApiError::invalid(name, "is there twice"));
        }
    }
    if !binary.is_empty() {
        let left = binary.len();
        return Err(invalid(format!("{left} bytes of tensor data are left over")));
    }
    let missing = |name: &str| ApiError::invalid(name, "is missing");
    let (queries, _) = queries.ok_or_else(|| missing("QUERY"))?;
    let (documents, shape) = passages.ok_or_else(|| missing("PASSAGE"))?;
    let request = Request {
        model: Some(model.clone()),
        score: match flag(&body.parameters, "raw_scores")? {
            Some(true) => ScoreForm::Logit,
            Some(false) | None => ScoreForm::Probability,
        },
        instruction: match body.parameters.get("instruction") {
            None => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(_) => return Err(ApiError::invalid("parameters.instruction", "must be a string")),
        },
        options: options(&body.parameters)?,
        ..Request::plain(query(&queries, documents.len())?, documents)
    };
    let all_binary = flag(&body.parameters, "binary_data_output")?.unwrap_or(false);
    let outputs = outputs(body.outputs, all_binary)?;
    let parameters = body.parameters.keys().filter(|name| !PARAMETERS.contains(&name.as_str()));
    let unknown = parameters.map(|name| format!("parameters.{name}"));
    let unknown = unknown.chain(body.unknown.into_iter().map(|(name, _)| name)).collect();
    Ok((request, unknown, Wanted { id: body.id, model, shape, outputs }))
}

fn split<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), ApiError> {
    let Some(value) = only(headers, JSON_LENGTH)? else { return Ok((body, &[])) };
    let length = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
    match length.filter(|&length| length <= body.len()) {
        Some(length) => Ok(body.split_at(length)),
        None => {
            let limit = body.len();
            let message = format!("must be a number of bytes of at most {limit}, the body's length");
            Err(ApiError::invalid(JSON_LENGTH, message))
        }
    }
}

fn query(queries: &[Arc<str>], documents: usize) -> Result<Query, ApiError> {
    match queries {
        [one] => shared_query("QUERY", one),
        many if many.len() == documents => {
            if let Some(place) = many.iter().position(|text| text.is_empty()) {
                return Err(ApiError::invalid(format!("QUERY[{place}]"), "must not be empty"));
            }
            Ok(Query::PerDocument(many.iter().map(|text| text.as_ref().to_owned()).collect()))
        }
        many => {
            let queries = many.len();
            let message = format!("has {queries} texts, and PASSAGE has {documents}: give one, or as many");
            Err(ApiError::invalid("QUERY", message))
        }
    }
}

fn texts(tensor: Tensor, binary: &mut &[u8]) -> Result<Vec<Arc<str>>, ApiError> {
    let name = &tensor.name;
    if tensor.datatype != "BYTES" {
        let message = format!("has datatype {}, and must have BYTES", tensor.datatype);
        return Err(ApiError::invalid(name, message));
    }
    let texts = match (tensor.parameters.get("binary_data_size"), tensor.data) {
        (Some(size), None) => {
            let Some(size) = whole(size) else {
                return Err(ApiError::invalid(name, "binary_data_size must be a number of bytes"));
            };
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let Some((mine, rest)) = binary.split_at_checked(size) else {
                let message = "binary_data_size is past the end of the body";
                return Err(ApiError::invalid(name, message));
            };
            *binary = rest;
            binary_texts(name, mine)?
        }
        (None, Some(Value::Array(data))) => {
            let mut texts = Vec::new();
            flatten(name, data, &mut texts)?;
            texts
        }
        (Some(_), Some(_)) => return Err(ApiError::invalid(name, "has both data and binary_data_size")),
        (None, _) => return Err(ApiError::invalid(name, "needs a list as data, or binary_data_size")),
    };
    // An empty shape is that of a scalar.
    let elements = tensor.shape.iter().try_fold(1u64, |product, &side| product.checked_mul(side));
    if elements != Some(texts.len() as u64) {
        let message = format!("has {} elements, and its shape is {:?}", texts.len(), tensor.shape);
        return Err(ApiError::invalid(name, message));
    }
    Ok(texts)
}

/// Collects the texts of row-major data, nested or flat.
fn flatten(name: &str, data: Vec<Value>, texts: &mut Vec<Arc<str>>) -> Result<(), ApiError> {
    for value in data {
        match value {
            Value::String(text) => texts.push(text.into()),
            Value::Array(inner) => flatten(name, inner, texts)?,
            _ => return Err(ApiError::invalid(format!("{name}[{}]", texts.len()), "must be a string")),
        }
    }
    Ok(())
}

/// Reads binary elements: a length of 4 bytes, little-endian, and that number of bytes.
fn binary_texts(name: &str, mut bytes: &[u8]) -> Result<Vec<Arc<str>>, ApiError> {
    let mut texts: Vec<Arc<str>> = Vec::new();
    while !bytes.is_empty() {
        let field = || format!("{name}[{}]", texts.len());
        let element = bytes
            .split_first_chunk()
            .and_then(|(length, rest)| rest.split_at_checked(u32::from_le_bytes(*length) as usize));
        let Some((text, rest)) = element else {
            return Err(ApiError::invalid(field(), "is cut short"));
        };
        let text = std::str::from_utf8(text).map_err(|error| {
            ApiError::invalid(field(), format!("is not UTF-8 at byte {}", error.valid_up_to()))
        })?;
        texts.push(text.into());
        bytes = rest;
    }
    Ok(texts)
}

fn options(parameters: &Map<String, Value>) -> Result<Options, ApiError> {
    let mut options = Options::default();
    if let Some(value) = parameters.get("latency_budget_ms") {
        options.latency_budget = Some(budget("latency_budget_ms", value.as_f64().unwrap_or(f64::NAN))?);
    }
    // Triton's parameter, in microseconds.
    if let Some(value) = parameters.get("timeout").filter(|value| whole(value) != Some(0)) {
        options.latency_budget = Some(budget("timeout", value.as_f64().unwrap_or(f64::NAN) / 1e3)?);
    }
    if let Some(value) = parameters.get("priority") {
        options.priority = match whole(value) {
            // As in Triton, 1 is the highest and 0 is the default.
            Some(1) => Priority::High,
            Some(0 | 2) => Priority::Normal,
            Some(_) => Priority::Low,
            None => word("priority", value, PRIORITIES)?,
        };
    }
    if let Some(value) = parameters.get("policy") {
        options.policy = Some(word("policy", value, POLICIES)?);
    }
    if let Some(value) = parameters.get("top_k") {
        let count = whole(value).filter(|&count| count > 0);
        let wrong = || ApiError::invalid("top_k", "must be a whole number of at least 1");
        options.top_k = Some(u32::try_from(count.ok_or_else(wrong)?).unwrap_or(u32::MAX));
    }
    Ok(options)
}

fn word<T: Copy>(name: &str, value: &Value, words: &[(&str, T)]) -> Result<T, ApiError> {
    one_of(name, value.as_str().unwrap_or(&value.to_string()), words)
}

fn outputs(asked: Option<Vec<Output>>, all_binary: bool) -> Result<Vec<(Name, bool)>, ApiError> {
    let Some(asked) = asked.filter(|asked| !asked.is_empty()) else {
        return Ok(vec![(Name::Score, all_binary), (Name::Index, all_binary)]);
    };
    let output = |output: Output| {
        let name = match output.name.as_str() {
            "SCORE" => Name::Score,
            "INDEX" => Name::Index,
            other => return Err(ApiError::invalid("outputs", format!("`{other}` is not SCORE or INDEX"))),
        };
        Ok((name, flag(&output.parameters, "binary_data")?.unwrap_or(all_binary)))
    };
    asked.into_iter().map(output).collect()
}

fn flag(parameters: &Map<String, Value>, name: &str) -> Result<Option<bool>, ApiError> {
    match parameters.get(name) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(ApiError::invalid(format!("parameters.{name}"), "must be true or false")),
    }
}

fn write(answer: &Answered) -> Written {
    let wanted = answer.reply.oip.as_ref().expect("a request of this protocol says what it wants");
    let scores: Vec<f32> = answer.scores().collect();
    let mut outputs = Vec::new();
    let mut binary: Vec<u8> = Vec::new();
    for &(name, is_binary) in &wanted.outputs {
        let (mut tensor, data, bytes) = match name {
            Name::Score => {
                let bytes: Vec<u8> = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
                (json!({"name": "SCORE", "datatype": "FP32", "shape": wanted.shape}), numbers(&scores), bytes)
            }
            Name::Index => {
                let order = order(&answer.outcome.scores).expect("the scores were ranked before");
                let order: Vec<i64> = order.into_iter().map(|index| index as i64).collect();
                let bytes = order.iter().flat_map(|index| index.to_le_bytes()).collect();
                (json!({"name": "INDEX", "datatype": "INT64", "shape": [order.len()]}), json!(order), bytes)
            }
        };
        match is_binary {
            true => {
                tensor["parameters"] = json!({"binary_data_size": bytes.len()});
                binary.extend(bytes);
            }
            false => tensor["data"] = data,
        }
        outputs.push(tensor);
    }
    let receipt = &answer.outcome.receipt;
    let mut head = json!({
        "id": wanted.id.as_deref().unwrap_or(&answer.stamp.id),
        "model_name": wanted.model,
        "model_version": *receipt.version,
        "outputs": outputs,
        "parameters": {
            "podium_model": *receipt.model,
            "podium_tier": receipt.served.name(),
            "podium_degraded": receipt.degraded.map_or("", |reason| reason.name()),
            "podium_elapsed_ms": receipt.elapsed.as_millis_f64(),
            "podium_device_ns": receipt.device.0,
            "podium_truncated": receipt.truncated.documents,
            "podium_truncated_query_tokens": receipt.truncated.query_tokens,
        },
    });
    // The protocol has no null parameters.
    if let Some(budget) = receipt.budget {
        head["parameters"]["podium_budget_ms"] = json!(budget.as_millis_f64());
    }
    if let Some(cost) = receipt.cost {
        head["parameters"]["podium_cost_nanodollars"] = json!(cost.0);
    }
    let mut written = Written::json(&head);
    if wanted.outputs.iter().any(|(_, is_binary)| *is_binary) {
        written.content_type = "application/octet-stream";
        written.headers.push((HeaderName::from_static(JSON_LENGTH), HeaderValue::from(written.body.len())));
        written.body.extend(binary);
    }
    written
}

fn ask(ask: &Ask) -> Value {
    let input =
        |name, data: Value, count| json!({"name": name, "datatype": "BYTES", "shape": [count], "data": data});
    let passages = input("PASSAGE", json!(ask.documents), ask.documents.len());
    json!({"inputs": [input("QUERY", json!([ask.query]), 1), passages]})
}

fn scores(body: &[u8]) -> Result<Rows, String> {
    #[derive(Deserialize)]
    struct Outputs {
        outputs: Vec<Scores>,
    }

    #[derive(Deserialize)]
    struct Scores {
        name: String,
        data: Vec<f64>,
    }

    let found = parse::<Outputs>(body)?.outputs.into_iter().find(|output| output.name == "SCORE");
    Ok(found.ok_or("there is no output SCORE")?.data.into_iter().enumerate().collect())
}

/// Numbers with the digits of f32; converting to f64 first would add digits.
fn numbers(scores: &[f32]) -> Value {
    let number = |score: &f32| format!("{score:?}").parse().map_or(Value::Null, Value::Number);
    Value::Array(scores.iter().map(number).collect())
}
