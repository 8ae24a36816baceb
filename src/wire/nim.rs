//! NVIDIA NIM: `POST /v1/ranking`; scores are logits.

use super::fields::{Field, Fields, not_empty, shared_query};
use super::{Answered, ApiError};
use crate::rerank::{Options, Overflow, Ranked, Request, ScoreForm, Truncation};
use serde::Serialize;
use serde_json::Value;

pub(super) const KNOWN: &[&str] = &["model", "query", "passages", "truncate"];

const TRUNCATE: &[(&str, Overflow)] = &[("NONE", Overflow::Refuse), ("END", Overflow::Truncate)];

pub(super) fn request(fields: &mut Fields) -> Result<Request, ApiError> {
    let query = match fields.take("query") {
        None => return Err(ApiError::invalid("query", "is missing")),
        Some(Field::Text(text)) => shared_query("query", &text)?,
        Some(Field::Object(object)) => match object.get("text") {
            Some(Value::String(text)) => shared_query("query.text", text)?,
            Some(_) => return Err(ApiError::invalid("query.text", "must be a string")),
            None => return Err(ApiError::invalid("query.text", "is missing")),
        },
        Some(Field::Null | Field::Bool(_) | Field::Number(_) | Field::List(_)) => {
            return Err(ApiError::invalid("query", "must be an object with a `text`"));
        }
    };
    let documents = fields.documents("passages")?;
    not_empty("passages", &documents)?;
    Ok(Request {
        model: fields.text("model")?,
        query,
        documents,
        top_n: None,
        return_documents: false,
        score: ScoreForm::Logit,
        truncation: Truncation { policy: fields.word("truncate", TRUNCATE)?, ..Truncation::default() },
        options: Options::default(),
    })
}

#[derive(Serialize)]
pub(super) struct Body {
    rankings: Vec<Ranking>,
}

#[derive(Serialize)]
struct Ranking {
    index: usize,
    logit: f32,
}

pub(super) fn body(answer: &Answered) -> Body {
    let ranking = |&ranked: &Ranked| Ranking { index: ranked.index, logit: ranked.score };
    Body { rankings: answer.ranked.iter().map(ranking).collect() }
}
