//! Cohere: `POST /v1/rerank` and `POST /v2/rerank`.
//!
//! The first path is shared with Jina and vLLM. Without a pin the answer has the fields of all
//! three, which do not conflict.

use super::ask::relevances;
use super::declare::Declared;
use super::error::{ApiError, Failure};
use super::fields::{Field, Fields, Item, not_empty};
use super::spec::{Read, Spec, Written};
use super::{Answered, Code, Dialect, Relevance, TextObject, Usage};
use crate::rerank::{Options, Priority, Request, Truncation};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) const V1: Spec = Spec {
    name: "cohere",
    paths: &["/v1/rerank"],
    fields: FIELDS_V1,
    names: &[],
    documents_max: usize::MAX,
    needs_model: false,
    read: Read::Fields(read_v1),
    write: write_v1,
    error: error_v1,
    status: Code::status,
    ask: |ask| ask.plain(),
    scores: relevances,
};

pub(super) const V2: Spec = Spec {
    name: "cohere_v2",
    paths: &["/v2/rerank"],
    fields: FIELDS_V2,
    needs_model: true,
    read: Read::Fields(read_v2),
    write: write_v2,
    error: error_v2,
    ..V1
};

const FIELDS_V1: &[&str] = &[
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
const FIELDS_V2: &[&str] = &[
    "model",
    "query",
    "documents",
    "top_n",
    "max_tokens_per_doc",
    "priority",
    // A field of the first version without effect here; LiteLLM sends it to both.
    "return_documents",
];

/// Cohere's own default.
const DOCUMENT_TOKENS_MAX: u32 = 4_096;
/// Documents that Cohere bills as one search.
const SEARCH_UNIT: usize = 100;

fn read_v1(fields: &mut Fields) -> Result<Request, ApiError> {
    let rank_fields = fields.take("rank_fields").map(ranked_fields).transpose()?;
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
    // Cohere splits long documents into chunks. Here each document is one chunk, cut to the model's length.
    fields.count("max_chunks_per_doc", 1)?;
    fields.text("user")?;
    Ok(Request {
        return_documents: fields.bool("return_documents")?.unwrap_or(false),
        ..common(fields, documents)?
    })
}

fn read_v2(fields: &mut Fields) -> Result<Request, ApiError> {
    let documents = fields.texts("documents")?;
    let priority = match fields.count("priority", 0)? {
        Some(priority) if priority > 999 => {
            return Err(ApiError::invalid("priority", format!("{priority} is not between 0 and 999")));
        }
        // 0 is the default and the highest, so that any other number is low.
        Some(1..) => Priority::Low,
        Some(0) | None => Priority::Normal,
    };
    let request = common(fields, documents)?;
    fields.bool("return_documents")?;
    Ok(Request { options: Options { priority, ..Options::default() }, ..request })
}

fn common(fields: &mut Fields, documents: Vec<Arc<str>>) -> Result<Request, ApiError> {
    Ok(Request {
        model: fields.text("model")?,
        top_n: fields.top("top_n")?,
        truncation: Truncation {
            document_tokens_max: Some(fields.count("max_tokens_per_doc", 1)?.unwrap_or(DOCUMENT_TOKENS_MAX)),
            ..Truncation::default()
        },
        ..Request::plain(fields.query()?, documents)
    })
}

fn ranked_fields(field: Field) -> Result<Vec<String>, ApiError> {
    let Field::List(items) = field else {
        return Err(ApiError::invalid("rank_fields", "must be a list of strings"));
    };
    let text = |(place, item): (usize, Item)| Ok(item.text("rank_fields", place)?.as_ref().to_owned());
    items.into_iter().enumerate().map(text).collect()
}

/// The named fields as YAML lines, the format that Cohere advises for models of text; none if the object has none of
/// them.
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
struct BodyV1<'a> {
    id: &'a str,
    object: &'static str,
    model: &'a str,
    results: Vec<Relevance<TextObject<'a>>>,
    /// Voyage's results; present if the body may be Voyage's.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<Relevance<&'a str>>>,
    meta: Meta<'a>,
    usage: Usage,
}

#[derive(Serialize)]
struct BodyV2<'a> {
    id: &'a str,
    results: Vec<Relevance<TextObject<'a>>>,
    meta: Meta<'a>,
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
    // Always 0. RAGFlow's and Xinference's clients add it to the input tokens.
    output_tokens: u64,
}

fn write_v1(answer: &Answered) -> Written {
    Written::json(&BodyV1 {
        id: &answer.stamp.id,
        object: "rerank",
        model: answer.model(),
        results: answer.relevances(TextObject::of),
        data: answer.reply.shared.contains(&Dialect::Voyage).then(|| answer.relevances(|text| text)),
        meta: meta(answer, "1"),
        usage: Usage::of(answer),
    })
}

fn write_v2(answer: &Answered) -> Written {
    Written::json(&BodyV2 {
        id: &answer.stamp.id,
        results: answer.relevances(TextObject::of),
        meta: meta(answer, "2"),
    })
}

/// The text is there three times, because each client of this path shows its user one field only: Cohere's `message`,
/// Jina's `detail`, and OpenAI-like clients of vLLM `error.message`. The requests of the three may be equal.
fn error_v1(failure: &Failure) -> Value {
    let Failure { message, stamp, .. } = failure;
    json!({"message": message, "id": stamp.id, "detail": message, "error": failure.openai()})
}

fn error_v2(failure: &Failure) -> Value {
    json!({"message": failure.message, "id": failure.stamp.id})
}

fn meta<'a>(answer: &'a Answered, version: &'static str) -> Meta<'a> {
    Meta {
        api_version: Version { version },
        billed_units: Billed { search_units: answer.request.documents.len().div_ceil(SEARCH_UNIT) },
        tokens: Tokens { input_tokens: answer.tokens(), output_tokens: 0 },
        warnings: answer.warnings,
        podium: Declared::of(&answer.outcome.receipt),
    }
}
