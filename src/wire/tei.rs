//! Text Embeddings Inference: `POST /rerank` with `texts`; the answer is a bare list.

use super::ask::{Score, pairs, parse};
use super::error::{ApiError, Failure, unprocessable};
use super::fields::Fields;
use super::spec::{Read, Spec, Written};
use super::{Answered, Code};
use crate::base::Side;
use crate::rerank::{Overflow, Ranked, Request, Truncation};
use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

pub(super) const SPEC: Spec = Spec {
    name: "tei",
    paths: &["/rerank"],
    fields: &["query", "texts", "truncate", "truncation_direction", "raw_scores", "return_text"],
    names: &[("documents", "texts")],
    documents_max: usize::MAX,
    needs_model: false,
    read: Read::Fields(read),
    write,
    error,
    status,
    ask: |ask| json!({"query": ask.query, "texts": ask.documents, "truncate": true}),
    scores: |body| Ok(pairs(parse::<Vec<Score>>(body)?)),
};

const DIRECTIONS: &[(&str, Side)] =
    &[("Right", Side::Right), ("right", Side::Right), ("Left", Side::Left), ("left", Side::Left)];

fn read(fields: &mut Fields) -> Result<Request, ApiError> {
    let policy = match fields.bool("truncate")? {
        Some(true) => Overflow::LongestFirst,
        Some(false) | None => Overflow::Refuse,
    };
    let side = fields.word("truncation_direction", DIRECTIONS)?;
    Ok(Request {
        return_documents: fields.bool("return_text")?.unwrap_or(false),
        score: fields.raw_scores()?,
        truncation: Truncation { side, ..Truncation::by(policy) },
        ..Request::plain(fields.query()?, fields.texts("texts")?)
    })
}

#[derive(Serialize)]
struct Rank<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    score: f32,
}

fn write(answer: &Answered) -> Written {
    let rank = |&ranked: &Ranked| Rank {
        index: ranked.index,
        text: answer.text_if_wanted(ranked),
        score: ranked.score,
    };
    Written::json(&answer.ranked.iter().map(rank).collect::<Vec<_>>())
}

fn status(code: Code) -> StatusCode {
    match code {
        Code::ModelFailed => StatusCode::FAILED_DEPENDENCY,
        other => unprocessable(other),
    }
}

fn error(failure: &Failure) -> Value {
    let kind = match failure.error.code {
        Code::Overloaded | Code::QuotaExceeded | Code::BudgetTooShort | Code::BudgetSpent => "Overloaded",
        Code::ModelFailed => "Backend",
        Code::Unavailable => "Unhealthy",
        Code::InvalidRequest
        | Code::Unauthorized
        | Code::Forbidden
        | Code::NotFound
        | Code::MethodNotAllowed
        | Code::TooLarge
        | Code::UnsupportedMedia
        | Code::Timeout
        | Code::UnknownModel => "Validation",
    };
    json!({"error": failure.message, "error_type": kind})
}
