//! Jina: `POST /v1/rerank` with the pin `jina`. Documents are returned unless `return_documents` is false.

use super::ask::relevances;
use super::declare::Declared;
use super::error::{ApiError, unprocessable};
use super::fields::{Fields, not_empty};
use super::spec::{Read, Spec, Written};
use super::{Answered, Relevance, TextObject, Usage};
use crate::rerank::Request;
use serde::Serialize;
use serde_json::json;

pub(super) const SPEC: Spec = Spec {
    name: "jina",
    paths: &["/v1/rerank"],
    fields: &["model", "query", "documents", "top_n", "return_documents"],
    names: &[],
    documents_max: usize::MAX,
    needs_model: false,
    read: Read::Fields(read),
    write,
    error: |failure| failure.detail(),
    status: unprocessable,
    ask: |ask| json!({"query": ask.query, "documents": ask.documents, "return_documents": false}),
    scores: relevances,
};

fn read(fields: &mut Fields) -> Result<Request, ApiError> {
    let query = fields.query()?;
    let documents = fields.documents("documents")?;
    not_empty("documents", &documents)?;
    Ok(Request {
        model: fields.text("model")?,
        top_n: fields.top("top_n")?,
        return_documents: fields.bool("return_documents")?.unwrap_or(true),
        ..Request::plain(query, documents)
    })
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    object: &'static str,
    usage: Usage,
    results: Vec<Relevance<TextObject<'a>>>,
    podium: Declared<'a>,
}

fn write(answer: &Answered) -> Written {
    Written::json(&Body {
        model: answer.model(),
        object: "list",
        usage: Usage::of(answer),
        results: answer.relevances(TextObject::of),
        podium: Declared::of(&answer.outcome.receipt),
    })
}
