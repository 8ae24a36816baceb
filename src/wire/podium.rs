//! Our own dialect: `POST /v1/rank`.

use super::ask::{Results, Score, pairs, parse};
use super::declare::Declared;
use super::error::{ApiError, Failure};
use super::fields::Fields;
use super::spec::{Read, Spec, Written};
use super::{Answered, Code, truncation};
use crate::rerank::{Request, ScoreForm};
use serde::Serialize;
use serde_json::{Value, json};

pub(super) const SPEC: Spec = Spec {
    name: "podium",
    paths: &["/v1/rank"],
    fields: FIELDS,
    names: &[],
    documents_max: usize::MAX,
    needs_model: false,
    read: Read::Fields(read),
    write,
    error,
    status: Code::status,
    ask: |ask| ask.plain(),
    scores: |body| Ok(pairs(parse::<Results<Score>>(body)?.results)),
};

const FIELDS: &[&str] = &[
    "model",
    "query",
    "instruction",
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

fn read(fields: &mut Fields) -> std::result::Result<Request, ApiError> {
    // Only this dialect returns ids; in others `id` is one of a document's own fields.
    fields.ids = fields.document_ids()?;
    Ok(Request {
        model: fields.text("model")?,
        query: fields.query()?,
        instruction: fields.text("instruction")?,
        documents: fields.documents("documents")?,
        top_n: fields.count("top_n", 1)?.map(|top_n| top_n as usize),
        return_documents: fields.bool("return_documents")?.unwrap_or(false),
        score: fields.word("scores", SCORES)?.unwrap_or(ScoreForm::Probability),
        truncation: truncation::fields(fields)?,
        options: fields.options()?,
    })
}

/// The body of an answer: results, receipt and usage.
#[derive(Serialize)]
struct Body<'a> {
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

fn write(answer: &Answered) -> Written {
    let results = answer.ranked.iter().map(|&ranked| Result {
        index: ranked.index,
        id: answer.reply.ids.get(ranked.index).and_then(|id| id.as_deref()),
        score: ranked.score,
        truncated: answer.outcome.truncated[ranked.index],
        document: answer.text_if_wanted(ranked),
    });
    Written::json(&Body {
        id: &answer.stamp.id,
        results: results.collect(),
        declared: Declared::of(&answer.outcome.receipt),
        usage: Usage { tokens: answer.tokens(), documents: answer.request.documents.len() },
    })
}

fn error(failure: &Failure) -> Value {
    let Failure { error, message, stamp, .. } = failure;
    json!({"error": {
        "code": error.code.name(), "field": error.field, "message": message, "id": stamp.id,
        "retry_after_ms": error.retry_after.map(|after| after.0.div_ceil(1_000_000)),
    }})
}
