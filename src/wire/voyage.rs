//! Voyage: `POST /v1/rerank` with `top_k` or `truncation`.

use super::ask;
use super::declare::Declared;
use super::error::ApiError;
use super::fields::Fields;
use super::spec::{Read, Spec, Written};
use super::{Answered, Code, Relevance};
use crate::rerank::{Overflow, Request, Truncation};
use http::StatusCode;
use serde::Serialize;
use serde_json::json;

pub(super) const SPEC: Spec = Spec {
    name: "voyage",
    paths: &["/v1/rerank"],
    fields: &["model", "query", "documents", "top_k", "return_documents", "truncation"],
    names: &[],
    documents_max: 1_000,
    needs_model: true,
    read: Read::Fields(read),
    write,
    error: |failure| failure.detail(),
    status: |code| match code {
        Code::UnknownModel => StatusCode::BAD_REQUEST,
        other => other.status(),
    },
    ask: |ask| json!({"query": ask.query, "documents": ask.documents, "truncation": true}),
    scores: |body| Ok(ask::pairs(ask::parse::<ask::Data<ask::Relevance>>(body)?.data)),
};

fn read(fields: &mut Fields) -> Result<Request, ApiError> {
    let truncation = match fields.bool("truncation")? {
        Some(false) => Truncation::by(Overflow::Refuse),
        Some(true) => Truncation::by(Overflow::Truncate),
        None => Truncation::default(),
    };
    Ok(Request {
        model: fields.text("model")?,
        top_n: fields.top("top_k")?,
        return_documents: fields.bool("return_documents")?.unwrap_or(false),
        truncation,
        ..Request::plain(fields.query()?, fields.texts("documents")?)
    })
}

#[derive(Serialize)]
struct Body<'a> {
    object: &'static str,
    data: Vec<Relevance<&'a str>>,
    model: &'a str,
    usage: Usage,
    podium: Declared<'a>,
}

#[derive(Serialize)]
struct Usage {
    total_tokens: u64,
}

fn write(answer: &Answered) -> Written {
    Written::json(&Body {
        object: "list",
        data: answer.relevances(|text| text),
        model: answer.model(),
        usage: Usage { total_tokens: answer.tokens() },
        podium: Declared::of(&answer.outcome.receipt),
    })
}
