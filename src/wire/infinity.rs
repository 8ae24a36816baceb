//! Infinity: `POST /rerank`.

use super::declare::Declared;
use super::fields::Fields;
use super::{Answered, ApiError, Usage};
use crate::rerank::{Options, Ranked, Request, ScoreForm, Truncation};
use serde::Serialize;

pub(super) const KNOWN: &[&str] = &["model", "query", "documents", "top_n", "return_documents", "raw_scores"];

pub(super) fn request(fields: &mut Fields) -> Result<Request, ApiError> {
    Ok(Request {
        model: fields.text("model")?,
        query: fields.query()?,
        documents: fields.texts("documents")?,
        top_n: fields.count("top_n", 1)?.map(|top_n| top_n as usize),
        return_documents: fields.bool("return_documents")?.unwrap_or(false),
        score: match fields.bool("raw_scores")? {
            Some(true) => ScoreForm::Logit,
            Some(false) | None => ScoreForm::Probability,
        },
        truncation: Truncation::default(),
        options: Options::default(),
    })
}

#[derive(Serialize)]
pub(super) struct Body<'a> {
    object: &'static str,
    results: Vec<Result1<'a>>,
    model: &'a str,
    usage: Usage,
    id: &'a str,
    created: u64,
    podium: Declared<'a>,
}

#[derive(Serialize)]
struct Result1<'a> {
    relevance_score: f32,
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<&'a str>,
}

pub(super) fn body<'a>(answer: &'a Answered) -> Body<'a> {
    let result = |&ranked: &Ranked| Result1 {
        relevance_score: ranked.score,
        index: ranked.index,
        document: answer.text_if_wanted(ranked),
    };
    Body {
        object: "rerank",
        results: answer.ranked.iter().map(result).collect(),
        model: answer.model(),
        usage: Usage::of(answer),
        id: &answer.stamp.id,
        created: answer.stamp.created_unix,
        podium: Declared::of(&answer.outcome.receipt),
    }
}
