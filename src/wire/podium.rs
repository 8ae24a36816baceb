//! Our own dialect: `POST /v1/rank`.

use super::declare::Declared;
use super::fields::Fields;
use super::{Answered, ApiError, truncation};
use crate::rerank::{Request, ScoreForm};
use serde::Serialize;

pub(super) const KNOWN: &[&str] = &[
    "model",
    "query",
    "documents",
    "top_n",
    "return_documents",
    "scores",
    "truncation",
    "truncation_side",
    "pair_tokens_max",
    "query_tokens_max",
    "document_tokens_max",
    "latency_budget_ms",
    "priority",
    "policy",
    "top_k",
];

const SCORES: &[(&str, ScoreForm)] = &[("probability", ScoreForm::Probability), ("logit", ScoreForm::Logit)];

pub(super) fn request(fields: &mut Fields) -> std::result::Result<Request, ApiError> {
    Ok(Request {
        model: fields.text("model")?,
        query: fields.query()?,
        documents: fields.documents("documents")?,
        top_n: fields.count("top_n", 1)?.map(|top_n| top_n as usize),
        return_documents: fields.bool("return_documents")?.unwrap_or(false),
        score: fields.word("scores", SCORES)?.unwrap_or(ScoreForm::Probability),
        truncation: truncation::fields(fields)?,
        options: fields.options()?,
    })
}

/// Everything that there is to say.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    id: &'a str,
    results: Vec<Result<'a>>,
    #[serde(flatten)]
    declared: Declared<'a>,
    usage: Usage,
}

#[derive(Serialize)]
struct Result<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    score: f32,
    #[serde(skip_serializing_if = "is_false")]
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<&'a str>,
}

#[derive(Serialize)]
struct Usage {
    tokens: u64,
    documents: usize,
}

fn is_false(value: &bool) -> bool {
    !value
}

pub(super) fn body<'a>(answer: &Answered<'a>, ids: &'a [Option<String>]) -> Body<'a> {
    let results = answer.ranked.iter().map(|&ranked| Result {
        index: ranked.index,
        id: ids.get(ranked.index).and_then(|id| id.as_deref()),
        score: ranked.score,
        truncated: answer.outcome.truncated[ranked.index],
        document: answer.request.return_documents.then(|| &*answer.request.documents[ranked.index]),
    });
    Body {
        id: &answer.stamp.id,
        results: results.collect(),
        declared: Declared::of(&answer.outcome.receipt),
        usage: Usage { tokens: answer.tokens(), documents: answer.request.documents.len() },
    }
}
