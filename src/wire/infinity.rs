//! Infinity: `POST /rerank`.

use super::ask::relevances;
use super::declare::Declared;
use super::error::{ApiError, Failure, unprocessable};
use super::fields::Fields;
use super::spec::{Read, Spec, Written};
use super::{Answered, Relevance, Usage};
use crate::rerank::Request;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

pub(super) const SPEC: Spec = Spec {
    name: "infinity",
    paths: &["/rerank"],
    fields: &["model", "query", "documents", "top_n", "return_documents", "raw_scores"],
    names: &[],
    documents_max: 2_048,
    needs_model: false,
    read: Read::Fields(read),
    write,
    error,
    status: unprocessable,
    ask: |ask| json!({"query": ask.query, "documents": ask.documents, "raw_scores": false}),
    scores: relevances,
};

fn read(fields: &mut Fields) -> Result<Request, ApiError> {
    Ok(Request {
        model: fields.text("model")?,
        top_n: fields.top("top_n")?,
        return_documents: fields.bool("return_documents")?.unwrap_or(false),
        score: fields.raw_scores()?,
        ..Request::plain(fields.query()?, fields.texts("documents")?)
    })
}

#[derive(Serialize)]
struct Body<'a> {
    object: &'static str,
    results: Vec<Relevance<&'a str>>,
    model: &'a str,
    usage: Usage,
    id: &'a str,
    created: u64,
    podium: Declared<'a>,
}

fn write(answer: &Answered) -> Written {
    Written::json(&Body {
        object: "rerank",
        results: answer.relevances(|text| text),
        model: answer.model(),
        usage: Usage::of(answer),
        id: &answer.stamp.id,
        created: answer.stamp.created_unix,
        podium: Declared::of(&answer.outcome.receipt),
    })
}

/// Validation errors have FastAPI's shape, and all others OpenAI's.
fn error(failure: &Failure) -> Value {
    if failure.status != StatusCode::UNPROCESSABLE_ENTITY {
        return json!({"error": failure.openai()});
    }
    // `documents[3]` becomes `documents` and 3.
    let place = failure.error.field.as_deref().unwrap_or_default().split(['[', ']']);
    let part = |part: &str| part.parse::<usize>().map_or(json!(part), |index| json!(index));
    let parts = place.filter(|part| !part.is_empty()).map(part);
    let place: Vec<Value> = std::iter::once(json!("body")).chain(parts).collect();
    json!({"detail": [{"loc": place, "msg": failure.message, "type": "value_error"}]})
}
