//! Cohere: `POST /v1/rerank` and `POST /v2/rerank`.
//!
//! The first path is shared with Jina and vLLM. Unless it is pinned the answer carries all their
//! fields, which lie side by side without contradiction.

use super::declare::Declared;
use super::fields::{Fields, Item, not_empty};
use super::{Answered, ApiError, TextObject, Usage};
use crate::rerank::{Options, Priority, Request, ScoreForm, Truncation};
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

pub(super) const KNOWN_V1: &[&str] = &[
    "model",
    "query",
    "documents",
    "top_n",
    "rank_fields",
    "return_documents",
    "max_chunks_per_doc",
    "max_tokens_per_doc",
    "user",
];
pub(super) const KNOWN_V2: &[&str] =
    &["model", "query", "documents", "top_n", "max_tokens_per_doc", "priority"];

/// Cohere's own default.
const DOCUMENT_TOKENS_MAX: u32 = 4_096;
/// Documents that Cohere bills as one search.
const SEARCH_UNIT: usize = 100;

pub(super) fn request_v1(fields: &mut Fields) -> Result<Request, ApiError> {
    let rank_fields = match fields.has("rank_fields") {
        true => fields.take("rank_fields").map(ranked_fields).transpose()?,
        false => None,
    };
    let items = fields.items("documents")?;
    not_empty("documents", &items)?;
    let names = rank_fields.filter(|names: &Vec<String>| !names.is_empty());
    let text = |(place, item): (usize, Item)| match (&names, item) {
        (Some(names), Item::Object(object)) => joined(&object, names).ok_or_else(|| {
            let message = format!("has none of rank_fields: {}", names.join(", "));
            ApiError::invalid(format!("documents[{place}]"), message)
        }),
        (_, item) => item.text_or_object("documents", place),
    };
    let documents = items.into_iter().enumerate().map(text).collect::<Result<_, _>>()?;
    // Chunks are how Cohere reads long documents; one chunk each is what fits the model.
    fields.count("max_chunks_per_doc", 1)?;
    fields.text("user")?;
    Ok(Request {
        return_documents: fields.bool("return_documents")?.unwrap_or(false),
        ..common(fields, documents)?
    })
}

pub(super) fn request_v2(fields: &mut Fields) -> Result<Request, ApiError> {
    let documents = fields.texts("documents")?;
    let priority = match fields.count("priority", 0)? {
        Some(priority) if priority > 999 => {
            return Err(ApiError::invalid("priority", format!("{priority} is not between 0 and 999")));
        }
        // 0 is the default and the highest; what is less urgent than the default is low.
        Some(1..) => Priority::Low,
        Some(0) | None => Priority::Normal,
    };
    let request = common(fields, documents)?;
    Ok(Request { options: Options { priority, ..Options::default() }, ..request })
}

fn common(fields: &mut Fields, documents: Vec<Arc<str>>) -> Result<Request, ApiError> {
    Ok(Request {
        model: fields.text("model")?,
        query: fields.query()?,
        documents,
        top_n: fields.count("top_n", 1)?.map(|top_n| top_n as usize),
        return_documents: false,
        score: ScoreForm::Probability,
        truncation: Truncation {
            document_tokens_max: Some(fields.count("max_tokens_per_doc", 1)?.unwrap_or(DOCUMENT_TOKENS_MAX)),
            ..Truncation::default()
        },
        options: Options::default(),
    })
}

fn ranked_fields(field: super::fields::Field) -> Result<Vec<String>, ApiError> {
    let super::fields::Field::List(items) = field else {
        return Err(ApiError::invalid("rank_fields", "must be a list of strings"));
    };
    let text = |(place, item): (usize, Item)| Ok(item.text("rank_fields", place)?.as_ref().to_owned());
    items.into_iter().enumerate().map(text).collect()
}

/// The fields as YAML lines, as Cohere advises to write them for a model that reads text; none where
/// the object has none of them.
fn joined(object: &serde_json::Map<String, Value>, names: &[String]) -> Option<Arc<str>> {
    let line = |name: &String| match object.get(name)? {
        Value::Null => None,
        Value::String(text) => Some(format!("{name}: {text}")),
        other => Some(format!("{name}: {other}")),
    };
    let lines: Vec<String> = names.iter().filter_map(line).collect();
    (!lines.is_empty()).then(|| lines.join("\n").into())
}

#[derive(Serialize)]
pub(super) struct BodyV1<'a> {
    id: &'a str,
    object: &'static str,
    model: &'a str,
    results: Vec<Result1<'a>>,
    meta: Meta<'a>,
    usage: Usage,
}

#[derive(Serialize)]
pub(super) struct BodyV2<'a> {
    id: &'a str,
    results: Vec<Result1<'a>>,
    meta: Meta<'a>,
}

#[derive(Serialize)]
struct Result1<'a> {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<TextObject<'a>>,
}

#[derive(Serialize)]
struct Meta<'a> {
    api_version: Version,
    billed_units: Billed,
    tokens: Tokens,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
    podium: Declared<'a>,
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

#[derive(Serialize)]
struct Billed {
    search_units: usize,
}

#[derive(Serialize)]
struct Tokens {
    input_tokens: u64,
}

pub(super) fn body_v1<'a>(answer: &'a Answered) -> BodyV1<'a> {
    BodyV1 {
        id: &answer.stamp.id,
        object: "rerank",
        model: answer.model(),
        results: results(answer),
        meta: meta(answer, "1"),
        usage: Usage::of(answer),
    }
}

pub(super) fn body_v2<'a>(answer: &'a Answered) -> BodyV2<'a> {
    BodyV2 { id: &answer.stamp.id, results: results(answer), meta: meta(answer, "2") }
}

fn results<'a>(answer: &'a Answered) -> Vec<Result1<'a>> {
    let result = |&ranked: &crate::rerank::Ranked| Result1 {
        index: ranked.index,
        relevance_score: ranked.score,
        document: answer.text_if_wanted(ranked).map(|text| TextObject { text }),
    };
    answer.ranked.iter().map(result).collect()
}

fn meta<'a>(answer: &'a Answered, version: &'static str) -> Meta<'a> {
    Meta {
        api_version: Version { version },
        billed_units: Billed { search_units: answer.request.documents.len().div_ceil(SEARCH_UNIT) },
        tokens: Tokens { input_tokens: answer.tokens() },
        warnings: answer.warnings,
        podium: Declared::of(&answer.outcome.receipt),
    }
}
