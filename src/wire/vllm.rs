//! vLLM: `POST /rerank`, `/v1/rerank`, `/v2/rerank` and `POST /score`, `/v1/score`.

use super::ask::{Data, Score, pairs, parse, relevances};
use super::declare::Declared;
use super::error::ApiError;
use super::fields::{Field, Fields, Item, not_empty, shared_query};
use super::spec::{Read, Spec, Written};
use super::{Answered, Code, Relevance, TextObject, Usage};
use crate::rerank::{PairTokens, Query, Request, Truncation, sigmoid};
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;

pub(super) const RERANK: Spec = Spec {
    name: "vllm",
    paths: &["/rerank", "/v1/rerank", "/v2/rerank"],
    fields: &["model", "query", "documents", "top_n", "truncate_prompt_tokens", "user"],
    names: &[("pair_tokens_max", "truncate_prompt_tokens")],
    documents_max: usize::MAX,
    needs_model: false,
    read: Read::Fields(read_rerank),
    write: write_rerank,
    error: |failure| json!({"error": failure.openai()}),
    status: Code::status,
    ask: |ask| ask.plain(),
    scores: relevances,
};

pub(super) const SCORE: Spec = Spec {
    name: "vllm_score",
    paths: &["/score", "/v1/score"],
    fields: &["model", "queries", "documents", "text_1", "text_2", "truncate_prompt_tokens", "user"],
    names: &[("query", "text_1"), ("pair_tokens_max", "truncate_prompt_tokens")],
    read: Read::Fields(read_score),
    write: write_score,
    ask: |ask| json!({"text_1": ask.query, "text_2": ask.documents}),
    scores: |body| Ok(pairs(parse::<Data<Score>>(body)?.data)),
    ..RERANK
};

fn read_rerank(fields: &mut Fields) -> Result<Request, ApiError> {
    let query = fields.query()?;
    let documents = fields.documents("documents")?;
    not_empty("documents", &documents)?;
    // 0 means all.
    let top_n = fields.count("top_n", 0)?.filter(|&top_n| top_n > 0).map(|top_n| top_n as usize);
    Ok(Request { top_n, return_documents: true, ..common(fields, query, documents)? })
}

/// One text against one, one against many, or as many against as many.
fn read_score(fields: &mut Fields) -> Result<Request, ApiError> {
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
        truncation: Truncation {
            pair_tokens: fields
                .count("truncate_prompt_tokens", 1)?
                .map_or(PairTokens::Model, PairTokens::AtMost),
            ..Truncation::default()
        },
        ..Request::plain(query, documents)
    })
}

#[derive(Serialize)]
struct RerankBody<'a> {
    id: String,
    model: &'a str,
    usage: Usage,
    results: Vec<Relevance<TextObject<'a>>>,
    podium: Declared<'a>,
}

#[derive(Serialize)]
struct ScoreBody<'a> {
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

fn write_rerank(answer: &Answered) -> Written {
    Written::json(&RerankBody {
        id: format!("rerank-{}", answer.stamp.id),
        model: answer.model(),
        usage: Usage::of(answer),
        results: answer.relevances(TextObject::of),
        podium: Declared::of(&answer.outcome.receipt),
    })
}

/// In the caller's order: a score belongs to its pair.
fn write_score(answer: &Answered) -> Written {
    let datum = |(index, &logit): (usize, &f32)| Datum { index, object: "score", score: sigmoid(logit) };
    Written::json(&ScoreBody {
        id: format!("score-{}", answer.stamp.id),
        object: "list",
        created: answer.stamp.created_unix,
        model: answer.model(),
        data: answer.outcome.scores.iter().enumerate().map(datum).collect(),
        usage: Usage::of(answer),
        podium: Declared::of(&answer.outcome.receipt),
    })
}
