//! vLLM: `POST /rerank`, `/v1/rerank`, `/v2/rerank` and `POST /score`, `/v1/score`.

use super::declare::Declared;
use super::fields::{Field, Fields, Item, not_empty, shared_query};
use super::{Answered, ApiError, TextObject, Usage};
use crate::rerank::{Options, PairTokens, Query, Ranked, Request, ScoreForm, Truncation, sigmoid};
use serde::Serialize;
use std::sync::Arc;

pub(super) const KNOWN_RERANK: &[&str] =
    &["model", "query", "documents", "top_n", "truncate_prompt_tokens", "user"];
pub(super) const KNOWN_SCORE: &[&str] =
    &["model", "queries", "documents", "text_1", "text_2", "truncate_prompt_tokens", "user"];

pub(super) fn rerank_request(fields: &mut Fields) -> Result<Request, ApiError> {
    let query = fields.query()?;
    let documents = fields.documents("documents")?;
    not_empty("documents", &documents)?;
    // 0 means all.
    let top_n = fields.count("top_n", 0)?.filter(|&top_n| top_n > 0).map(|top_n| top_n as usize);
    Ok(Request { top_n, return_documents: true, ..common(fields, query, documents)? })
}

/// One text against one, one against many, or as many against as many.
pub(super) fn score_request(fields: &mut Fields) -> Result<Request, ApiError> {
    let (ours, theirs) = match fields.has("text_1") || fields.has("text_2") {
        true => ("text_1", "text_2"),
        false => ("queries", "documents"),
    };
    let queries = one_or_many(fields, ours)?;
    let documents = one_or_many(fields, theirs)?;
    let query = match queries.as_slice() {
        [one] => shared_query(ours, one)?,
        many if many.len() == documents.len() => {
            if let Some(place) = many.iter().position(|text| text.is_empty()) {
                return Err(ApiError::invalid(format!("{ours}[{place}]"), "must not be empty"));
            }
            Query::PerDocument(many.iter().map(|text| text.as_ref().to_owned()).collect())
        }
        many => {
            let (queries, documents) = (many.len(), documents.len());
            let message = format!("has {queries} texts, and {theirs} has {documents}: give one, or as many");
            return Err(ApiError::invalid(ours, message));
        }
    };
    common(fields, query, documents)
}

fn one_or_many(fields: &mut Fields, name: &str) -> Result<Vec<Arc<str>>, ApiError> {
    match fields.take(name) {
        None => Err(ApiError::invalid(name, "is missing")),
        Some(Field::Text(text)) => Ok(vec![text]),
        Some(Field::List(items)) => {
            not_empty(name, &items)?;
            let text = |(place, item): (usize, Item)| item.text(name, place);
            items.into_iter().enumerate().map(text).collect()
        }
        Some(Field::Null | Field::Bool(_) | Field::Number(_) | Field::Object(_)) => {
            Err(ApiError::invalid(name, "must be a string or a list of strings"))
        }
    }
}

fn common(fields: &mut Fields, query: Query, documents: Vec<Arc<str>>) -> Result<Request, ApiError> {
    fields.text("user")?;
    Ok(Request {
        model: fields.text("model")?,
        query,
        documents,
        top_n: None,
        return_documents: false,
        score: ScoreForm::Probability,
        truncation: Truncation {
            pair_tokens: fields
                .count("truncate_prompt_tokens", 1)?
                .map_or(PairTokens::Model, PairTokens::AtMost),
            ..Truncation::default()
        },
        options: Options::default(),
    })
}

#[derive(Serialize)]
pub(super) struct RerankBody<'a> {
    id: String,
    model: &'a str,
    usage: Usage,
    results: Vec<Result1<'a>>,
    podium: Declared<'a>,
}

#[derive(Serialize)]
struct Result1<'a> {
    index: usize,
    document: TextObject<'a>,
    relevance_score: f32,
}

#[derive(Serialize)]
pub(super) struct ScoreBody<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    data: Vec<Datum>,
    usage: Usage,
    podium: Declared<'a>,
}

#[derive(Serialize)]
struct Datum {
    index: usize,
    object: &'static str,
    score: f32,
}

pub(super) fn rerank_body<'a>(answer: &'a Answered) -> RerankBody<'a> {
    let result = |&ranked: &Ranked| Result1 {
        index: ranked.index,
        document: TextObject { text: answer.text(ranked) },
        relevance_score: ranked.score,
    };
    RerankBody {
        id: format!("rerank-{}", answer.stamp.id),
        model: answer.model(),
        usage: Usage::of(answer),
        results: answer.ranked.iter().map(result).collect(),
        podium: Declared::of(&answer.outcome.receipt),
    }
}

/// In the caller's order: a score belongs to its pair.
pub(super) fn score_body<'a>(answer: &'a Answered) -> ScoreBody<'a> {
    let datum = |(index, &logit): (usize, &f32)| Datum { index, object: "score", score: sigmoid(logit) };
    ScoreBody {
        id: format!("score-{}", answer.stamp.id),
        object: "list",
        created: answer.stamp.created_unix,
        model: answer.model(),
        data: answer.outcome.scores.iter().enumerate().map(datum).collect(),
        usage: Usage::of(answer),
        podium: Declared::of(&answer.outcome.receipt),
    }
}
