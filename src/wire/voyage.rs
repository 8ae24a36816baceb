//! Voyage: `POST /v1/rerank` with `top_k` or `truncation`.

use super::declare::Declared;
use super::fields::Fields;
use super::{Answered, ApiError};
use crate::rerank::{Options, Overflow, Ranked, Request, ScoreForm, Truncation};
use serde::Serialize;

pub(super) const KNOWN: &[&str] = &["model", "query", "documents", "top_k", "return_documents", "truncation"];

pub(super) fn request(fields: &mut Fields) -> Result<Request, ApiError> {
    let truncation = match fields.bool("truncation")? {
        Some(false) => Truncation::by(Overflow::Refuse),
        Some(true) => Truncation::by(Overflow::Truncate),
        None => Truncation::default(),
    };
    Ok(Request {
        model: fields.text("model")?,
        query: fields.query()?,
        documents: fields.texts("documents")?,
        top_n: fields.count("top_k", 1)?.map(|top_k| top_k as usize),
        return_documents: fields.bool("return_documents")?.unwrap_or(false),
        score: ScoreForm::Probability,
        truncation,
        options: Options::default(),
    })
}

#[derive(Serialize)]
pub(super) struct Body<'a> {
    object: &'static str,
    data: Vec<Datum<'a>>,
    model: &'a str,
    usage: Usage,
    podium: Declared<'a>,
}

#[derive(Serialize)]
struct Datum<'a> {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<&'a str>,
}

#[derive(Serialize)]
struct Usage {
    total_tokens: u64,
}

pub(super) fn body<'a>(answer: &'a Answered) -> Body<'a> {
    let datum = |&ranked: &Ranked| Datum {
        index: ranked.index,
        relevance_score: ranked.score,
        document: answer.text_if_wanted(ranked),
    };
    Body {
        object: "list",
        data: answer.ranked.iter().map(datum).collect(),
        model: answer.model(),
        usage: Usage { total_tokens: answer.tokens() },
        podium: Declared::of(&answer.outcome.receipt),
    }
}
