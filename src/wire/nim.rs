//! NVIDIA NIM: `POST /v1/ranking`; scores are logits.

use super::ask::{pairs, parse};
use super::error::ApiError;
use super::fields::{Field, Fields, not_empty, shared_query};
use super::spec::{Read, Spec, Written};
use super::{Answered, Code};
use crate::rerank::{Overflow, Ranked, Request, ScoreForm, Truncation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(super) const SPEC: Spec = Spec {
    name: "nim",
    // The second is the path of NVIDIA's hosted service, which LiteLLM uses.
    paths: &["/v1/ranking", "/v1/retrieval/{model}/reranking"],
    fields: &["model", "query", "passages", "truncate", "top_k"],
    names: &[("query", "query.text"), ("documents", "passages")],
    documents_max: usize::MAX,
    needs_model: false,
    read: Read::Fields(read),
    write,
    error: |failure| failure.detail(),
    status: Code::status,
    ask: |ask| {
        let passages: Vec<Value> = ask.documents.iter().map(|text| json!({"text": text})).collect();
        json!({"query": {"text": ask.query}, "passages": passages, "truncate": "END"})
    },
    scores: |body| Ok(pairs(parse::<Body<f64>>(body)?.rankings)),
};

const TRUNCATE: &[(&str, Overflow)] = &[("NONE", Overflow::Refuse), ("END", Overflow::Truncate)];

fn read(fields: &mut Fields) -> Result<Request, ApiError> {
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
        top_n: fields.top("top_k")?,
        score: ScoreForm::Logit,
        truncation: Truncation { policy: fields.word("truncate", TRUNCATE)?, ..Truncation::default() },
        ..Request::plain(query, documents)
    })
}

#[derive(Deserialize, Serialize)]
struct Body<T = f32> {
    rankings: Vec<Ranking<T>>,
}

#[derive(Deserialize, Serialize)]
struct Ranking<T = f32> {
    index: usize,
    logit: T,
}

impl From<Ranking<f64>> for (usize, f64) {
    fn from(row: Ranking<f64>) -> Self {
        (row.index, row.logit)
    }
}

fn write(answer: &Answered) -> Written {
    let ranking = |&ranked: &Ranked| Ranking { index: ranked.index, logit: ranked.score };
    Written::json(&Body { rankings: answer.ranked.iter().map(ranking).collect() })
}
