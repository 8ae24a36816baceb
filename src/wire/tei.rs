//! Text Embeddings Inference: `POST /rerank` with `texts`; the answer is a bare list.

use super::fields::Fields;
use super::{Answered, ApiError};
use crate::base::Side;
use crate::rerank::{Options, Overflow, Ranked, Request, ScoreForm, Truncation};
use serde::Serialize;

pub(super) const KNOWN: &[&str] =
    &["query", "texts", "truncate", "truncation_direction", "raw_scores", "return_text"];

const DIRECTIONS: &[(&str, Side)] =
    &[("Right", Side::Right), ("right", Side::Right), ("Left", Side::Left), ("left", Side::Left)];

pub(super) fn request(fields: &mut Fields) -> Result<Request, ApiError> {
    let policy = match fields.bool("truncate")? {
        Some(true) => Overflow::LongestFirst,
        Some(false) | None => Overflow::Refuse,
    };
    let side = fields.word("truncation_direction", DIRECTIONS)?;
    Ok(Request {
        model: None,
        query: fields.query()?,
        documents: fields.texts("texts")?,
        top_n: None,
        return_documents: fields.bool("return_text")?.unwrap_or(false),
        score: match fields.bool("raw_scores")? {
            Some(true) => ScoreForm::Logit,
            Some(false) | None => ScoreForm::Probability,
        },
        truncation: Truncation { side, ..Truncation::by(policy) },
        options: Options::default(),
    })
}

#[derive(Serialize)]
pub(super) struct Rank<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    score: f32,
}

pub(super) fn body<'a>(answer: &'a Answered) -> Vec<Rank<'a>> {
    let rank = |&ranked: &Ranked| Rank {
        index: ranked.index,
        text: answer.text_if_wanted(ranked),
        score: ranked.score,
    };
    answer.ranked.iter().map(rank).collect()
}
