//! Text Embeddings Inference: `POST /rerank` with `texts`, whose answer is a bare list, and `POST /predict` of pairs.

use super::ask::{Rows, Score, pairs, parse};
use super::error::{ApiError, Failure, unprocessable};
use super::fields::{Field, Fields, Item, not_empty};
use super::spec::{Read, Spec, Written};
use super::{Answered, Code};
use crate::base::{Ns, Side};
use crate::rerank::{Overflow, Query, Ranked, Request, Truncation};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) const RERANK: Spec = Spec {
    name: "tei",
    // TEI's root path, and SageMaker's path.
    paths: &["/rerank", "/", "/invocations"],
    fields: &[
        "query",
        "texts",
        "truncate",
        "truncation_direction",
        "raw_scores",
        "return_text",
        // Not TEI's: fields of SGLang's and llama.cpp's clients, and of clients of several servers.
        "model",
        "top_n",
        "top_k",
        "instruction",
        "instruct",
    ],
    names: &[("documents", "texts")],
    documents_max: usize::MAX,
    needs_model: false,
    read: Read::Fields(read_rerank),
    write: write_rerank,
    error,
    status,
    ask: |ask| json!({"query": ask.query, "texts": ask.documents, "truncate": true}),
    scores: |body| Ok(pairs(parse::<Vec<Score>>(body)?)),
};

pub(super) const PREDICT: Spec = Spec {
    name: "tei_predict",
    paths: &["/predict"],
    fields: &["inputs", "truncate", "truncation_direction", "raw_scores"],
    names: &[("query", "inputs"), ("documents", "inputs")],
    read: Read::Fields(read_predict),
    write: write_predict,
    ask: |ask| {
        let inputs: Vec<[&str; 2]> = ask.documents.iter().map(|text| [ask.query, text.as_str()]).collect();
        json!({"inputs": inputs, "truncate": true})
    },
    scores: scores_predict,
    ..RERANK
};

/// The label of a reranker's single class.
pub const LABEL: &str = "LABEL_0";

const DIRECTIONS: &[(&str, Side)] =
    &[("Right", Side::Right), ("right", Side::Right), ("Left", Side::Left), ("left", Side::Left)];

fn read_rerank(fields: &mut Fields) -> Result<Request, ApiError> {
    let top_n = fields.top("top_n")?;
    let top_k = fields.top("top_k")?;
    Ok(Request {
        model: fields.text("model")?,
        top_n: top_n.or(top_k),
        instruction: fields.instruction()?,
        return_documents: fields.bool("return_text")?.unwrap_or(false),
        score: fields.raw_scores()?,
        truncation: truncation(fields)?,
        ..Request::plain(fields.query()?, fields.texts("texts")?)
    })
}

/// Reads a pair `["a", "b"]` or a list of pairs.
fn read_predict(fields: &mut Fields) -> Result<Request, ApiError> {
    let wrong = |place: Option<usize>| {
        let field = place.map_or("inputs".to_owned(), |place| format!("inputs[{place}]"));
        ApiError::invalid(field, "must be a pair of strings: this model scores pairs")
    };
    let Some(Field::List(items)) = fields.take("inputs") else { return Err(wrong(None)) };
    not_empty("inputs", &items)?;
    fields.single = items.iter().any(|item| matches!(item, Item::Text(_)));
    let list = if fields.single { vec![Item::List(items)] } else { items };
    let (mut queries, mut documents) = (Vec::new(), Vec::<Arc<str>>::new());
    for (place, item) in list.into_iter().enumerate() {
        let pair = match item {
            Item::List(pair) => <[Item; 2]>::try_from(pair).ok(),
            Item::Text(_) | Item::Object(_) | Item::Other(_) => None,
        };
        let Some([Item::Text(query), Item::Text(document)]) = pair else {
            return Err(wrong((!fields.single).then_some(place)));
        };
        queries.push(query.as_ref().to_owned());
        documents.push(document);
    }
    Ok(Request {
        score: fields.raw_scores()?,
        truncation: truncation(fields)?,
        ..Request::plain(Query::PerDocument(queries), documents)
    })
}

/// Without `truncate` the server's default applies, as with TEI's `--auto-truncate`.
fn truncation(fields: &mut Fields) -> Result<Truncation, ApiError> {
    let policy = |truncate| if truncate { Overflow::LongestFirst } else { Overflow::Refuse };
    Ok(Truncation {
        policy: fields.bool("truncate")?.map(policy),
        side: fields.word("truncation_direction", DIRECTIONS)?,
        ..Truncation::default()
    })
}

#[derive(Serialize)]
struct Rank<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    score: f32,
}

fn write_rerank(answer: &Answered) -> Written {
    let rank = |&ranked: &Ranked| Rank {
        index: ranked.index,
        text: answer.text_if_wanted(ranked),
        score: ranked.score,
    };
    let body = Written::json(&answer.ranked.iter().map(rank).collect::<Vec<_>>());
    Written { headers: times(answer), ..body }
}

#[derive(Deserialize, Serialize)]
struct Prediction<T = f32, L = &'static str> {
    score: T,
    label: L,
}

/// Writes the predictions in the order of the inputs.
fn write_predict(answer: &Answered) -> Written {
    let prediction = |score| [Prediction { score, label: LABEL }];
    let predictions: Vec<[Prediction; 1]> = answer.scores().map(prediction).collect();
    let body = match predictions.as_slice() {
        [one] if answer.reply.single => Written::json(one),
        all => Written::json(&all),
    };
    Written { headers: times(answer), ..body }
}

fn scores_predict(body: &[u8]) -> Result<Rows, String> {
    let rows = parse::<Vec<[Prediction<f64, String>; 1]>>(body)?;
    Ok(rows.into_iter().map(|[prediction]| prediction.score).enumerate().collect())
}

/// TEI's own headers: times are in whole milliseconds. TEI's time in the queue begins after tokenisation.
fn times(answer: &Answered) -> Vec<(HeaderName, HeaderValue)> {
    let receipt = &answer.outcome.receipt;
    let queries = match &answer.request.query {
        Query::Shared(query) => query.chars().count() * answer.request.documents.len(),
        Query::PerDocument(queries) => queries.iter().map(|query| query.chars().count()).sum(),
    };
    let documents: usize = answer.request.documents.iter().map(|text| text.chars().count()).sum();
    let millis = |ns: Ns| HeaderValue::from(ns.0 / 1_000_000);
    let mut headers = vec![
        (HeaderName::from_static("x-compute-time"), millis(receipt.elapsed)),
        (HeaderName::from_static("x-compute-characters"), (queries + documents).into()),
        (HeaderName::from_static("x-compute-tokens"), answer.tokens().into()),
        (HeaderName::from_static("x-total-time"), millis(receipt.elapsed)),
        (HeaderName::from_static("x-tokenization-time"), millis(receipt.tokenise)),
        (HeaderName::from_static("x-queue-time"), millis(receipt.queue.saturating_sub(receipt.tokenise))),
        (HeaderName::from_static("x-inference-time"), millis(receipt.compute)),
    ];
    // The configured name of a device may hold characters that a header cannot.
    if let Ok(kind) = HeaderValue::try_from(&*receipt.device_kind) {
        headers.push((HeaderName::from_static("x-compute-type"), kind));
    }
    headers
}

fn status(code: Code) -> StatusCode {
    match code {
        Code::Empty => StatusCode::BAD_REQUEST,
        Code::TooMany | Code::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
        Code::ModelFailed => StatusCode::FAILED_DEPENDENCY,
        other => unprocessable(other),
    }
}

fn error(failure: &Failure) -> Value {
    let kind = match failure.error.code {
        Code::Overloaded | Code::QuotaExceeded | Code::BudgetTooShort | Code::BudgetSpent => "Overloaded",
        Code::ModelFailed => "Backend",
        Code::Unavailable => "Unhealthy",
        Code::Empty => "Empty",
        Code::InvalidRequest
        | Code::TooMany
        | Code::TooLong
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
