//! Jina: `POST /v1/rerank`, where it is pinned. Documents come back unless that is declined.

use super::declare::Declared;
use super::fields::{Fields, not_empty};
use super::{Answered, ApiError, TextObject, Usage};
use crate::rerank::{Options, Query, Ranked, Request, ScoreForm, Truncation};
use serde::Serialize;

pub(super) const KNOWN: &[&str] = &["model", "query", "documents", "top_n", "return_documents"];

pub(super) fn request(fields: &mut Fields) -> std::result::Result<Request, ApiError> {
    let query: Query = fields.query()?;
    let documents = fields.documents("documents")?;
    not_empty("documents", &documents)?;
    Ok(Request {
        model: fields.text("model")?,
        query,
        documents,
        top_n: fields.count("top_n", 1)?.map(|top_n| top_n as usize),
        return_documents: fields.bool("return_documents")?.unwrap_or(true),
        score: ScoreForm::Probability,
        truncation: Truncation::default(),
        options: Options::default(),
    })
}

#[derive(Serialize)]
pub(super) struct Body<'a> {
    model: &'a str,
    object: &'static str,
    usage: Usage,
    results: Vec<Result<'a>>,
    podium: Declared<'a>,
}

#[derive(Serialize)]
struct Result<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<TextObject<'a>>,
    relevance_score: f32,
}

pub(super) fn body<'a>(answer: &'a Answered) -> Body<'a> {
    let result = |&ranked: &Ranked| Result {
        index: ranked.index,
        document: answer.text_if_wanted(ranked).map(|text| TextObject { text }),
        relevance_score: ranked.score,
    };
    Body {
        model: answer.model(),
        object: "list",
        usage: Usage::of(answer),
        results: answer.ranked.iter().map(result).collect(),
        podium: Declared::of(&answer.outcome.receipt),
    }
}
