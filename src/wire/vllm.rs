//! vLLM: `POST /rerank`, `/v1/rerank`, `/v2/rerank` and `POST /score`, `/v1/score`.

use super::ask::{Data, Score, pairs, parse, relevances};
use super::declare::Declared;
use super::error::{ApiError, Failure};
use super::fields::{Field, Fields, NO_TEXT, must_be, not_empty, shared_query, text_of, text_of_part};
use super::spec::{Read, Spec, Written};
use super::{Answered, Code, Dialect, Relevance, TextObject, Usage, truncation};
use crate::rerank::{Options, PairTokens, Priority, Query, Request, ScoreForm, Truncation};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// A dialect's own fields, followed by those that rerank and score share.
macro_rules! fields {
    ($($own:literal),*) => {
        &[
            $($own,)*
            "model",
            "user",
            "priority",
            "truncate_prompt_tokens",
            "truncation_side",
            "max_tokens_per_doc",
            "max_tokens_per_query",
            "use_activation",
            "activation",
            "instruction",
            // Not vLLM's: SGLang's and DashScope's.
            "instruct",
            // What vLLM renders a model's chat template with.
            "chat_template_kwargs",
        ]
    };
}

pub(super) const RERANK: Spec = Spec {
    name: "vllm",
    paths: &["/rerank", "/v1/rerank", "/v2/rerank"],
    // vLLM has no `return_documents`; LiteLLM's client of vLLM sends it.
    fields: fields!["query", "documents", "top_n", "return_documents"],
    names: NAMES,
    documents_max: usize::MAX,
    needs_model: false,
    read: Read::Fields(read_rerank),
    write: write_rerank,
    error,
    status: Code::status,
    ask: |ask| ask.plain(),
    scores: relevances,
};

pub(super) const SCORE: Spec = Spec {
    name: "vllm_score",
    paths: &["/score", "/v1/score"],
    fields: fields!["text_1", "text_2", "queries", "documents", "items", "data_1", "data_2"],
    read: Read::Fields(read_score),
    write: write_score,
    ask: |ask| json!({"text_1": ask.query, "text_2": ask.documents}),
    scores: |body| Ok(pairs(parse::<Data<Score>>(body)?.data)),
    ..RERANK
};

const NAMES: &[(&str, &str)] = &[
    ("pair_tokens_max", "truncate_prompt_tokens"),
    ("document_tokens_max", "max_tokens_per_doc"),
    ("query_tokens_max", "max_tokens_per_query"),
];

/// The names of a score's two sides, the newest first.
const SIDES: [(&str, &str); 4] =
    [("queries", "items"), ("queries", "documents"), ("data_1", "data_2"), ("text_1", "text_2")];

fn read_rerank(fields: &mut Fields) -> Result<Request, ApiError> {
    let query = match fields.take("query") {
        Some(Field::Text(text)) => text,
        Some(Field::Object(object)) => text_of(&object).ok_or_else(|| ApiError::invalid("query", NO_TEXT))?,
        Some(other) => return Err(must_be("query", "a string or an object with a `text`", &other)),
        None => return Err(ApiError::invalid("query", "is missing")),
    };
    let query = shared_query("query", &query)?;
    // Infinity's documents are a list of strings, and its `top_n` is at least 1.
    let plain = fields.is_list_of_texts("documents");
    let documents = one_or_many(fields, "documents")?;
    // A number below 1 means all.
    let top_n = fields.integer("top_n")?;
    let shared = fields.shared.contains(&Dialect::Infinity) && plain && top_n.is_none_or(|top_n| top_n > 0);
    let wanted = fields.bool("return_documents")?;
    // vLLM returns documents as objects and Infinity as strings; the clients of both accept an answer without them.
    let return_documents = wanted.unwrap_or(true) && !shared;
    if wanted == Some(true) && shared {
        let warning = "documents are left out: vLLM's and Infinity's clients read them in different shapes; \
                       wire.pins.rerank says which";
        fields.warnings.push(warning.to_owned());
    }
    let top_n = top_n.and_then(|top_n| usize::try_from(top_n).ok()).filter(|&top_n| top_n > 0);
    Ok(Request { top_n, return_documents, ..common(fields, query, documents)? })
}

/// Reads one text against one or many, or two lists of the same length.
fn read_score(fields: &mut Fields) -> Result<Request, ApiError> {
    let there = |name: &str| fields.has(name);
    let both = SIDES.into_iter().find(|(ours, theirs)| there(ours) && there(theirs));
    let either = || SIDES.into_iter().rev().find(|(ours, theirs)| there(ours) || there(theirs));
    let (ours, theirs) = both.or_else(either).unwrap_or(("text_1", "text_2"));
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
    for name in SIDES.into_iter().flat_map(|(ours, theirs)| [ours, theirs]) {
        if fields.take(name).is_some() {
            fields.warnings.push(format!("`{name}` was ignored: `{ours}` and `{theirs}` were read"));
        }
    }
    fields.names.extend([("query", ours), ("documents", theirs)]);
    common(fields, query, documents)
}

fn one_or_many(fields: &mut Fields, name: &str) -> Result<Vec<Arc<str>>, ApiError> {
    let wrong = |message: &str| ApiError::invalid(name, message);
    match fields.take(name) {
        None => Err(wrong("is missing")),
        Some(Field::Text(text)) => Ok(vec![text]),
        Some(Field::List(items)) => {
            not_empty(name, &items)?;
            items.into_iter().enumerate().map(|(place, item)| item.text_or_object(name, place)).collect()
        }
        Some(Field::Object(object)) => match object.get("content") {
            // Each part is a text.
            Some(Value::Array(parts)) if !parts.is_empty() => {
                let texts = parts.iter().map(|part| text_of_part(part).map(Arc::from));
                texts.collect::<Option<_>>().ok_or_else(|| wrong(NO_TEXT))
            }
            _ => text_of(&object).map(|text| vec![text]).ok_or_else(|| wrong(NO_TEXT)),
        },
        Some(Field::Null | Field::Bool(_) | Field::Number(_)) => {
            Err(wrong("must be a string or a list of strings"))
        }
    }
}

fn common(fields: &mut Fields, query: Query, documents: Vec<Arc<str>>) -> Result<Request, ApiError> {
    fields.text("user")?;
    let activation = fields.bool("use_activation")?;
    let activation = activation.or(fields.bool("activation")?).unwrap_or(true);
    let priority = match fields.integer("priority")? {
        Some(..0) => Priority::High,
        Some(0) | None => Priority::Normal,
        Some(1..) => Priority::Low,
    };
    Ok(Request {
        model: fields.text("model")?,
        instruction: instruction(fields)?,
        score: if activation { ScoreForm::Probability } else { ScoreForm::Logit },
        truncation: Truncation {
            policy: None,
            side: fields.word("truncation_side", truncation::SIDES)?,
            pair_tokens: truncation::pair_tokens(fields, "truncate_prompt_tokens", PairTokens::Within)?
                .unwrap_or_default(),
            query_tokens_max: fields.count("max_tokens_per_query", 1)?,
            document_tokens_max: fields.count("max_tokens_per_doc", 1)?,
        },
        options: Options { priority, ..Options::default() },
        ..Request::plain(query, documents)
    })
}

/// Takes the instruction by a name of its own, or from what a model's chat template is rendered with.
fn instruction(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let own = fields.instruction()?;
    let values = match fields.take("chat_template_kwargs") {
        None => return Ok(own),
        Some(Field::Object(values)) => values,
        Some(other) => return Err(must_be("chat_template_kwargs", "an object", &other)),
    };
    let mut of_template = None;
    for (name, value) in values {
        match (name.as_str(), value) {
            ("instruction", Value::Null) => {}
            ("instruction", Value::String(text)) => of_template = Some(text),
            ("instruction", _) => {
                return Err(ApiError::invalid("chat_template_kwargs.instruction", "must be a string"));
            }
            _ => fields
                .warnings
                .push(format!("`chat_template_kwargs.{name}` was ignored: `instruction` is read")),
        }
    }
    match (&own, &of_template) {
        (Some(_), Some(_)) => {
            let warning = "`chat_template_kwargs.instruction` was ignored: another instruction was read";
            fields.warnings.push(warning.to_owned());
        }
        (None, Some(_)) => fields.names.push(("instruction", "chat_template_kwargs.instruction")),
        (_, None) => {}
    }
    Ok(own.or(of_template))
}

/// Clients detect a too long input by vLLM's sentence.
fn error(failure: &Failure) -> Value {
    let mut error = failure.openai();
    if failure.error.code == Code::TooLong {
        error["message"] =
            format!("{}. Please reduce the length of the input prompt.", failure.message).into();
    }
    json!({"error": error})
}

#[derive(Serialize)]
struct RerankBody<'a> {
    id: String,
    // The fields `object` and `created` are Infinity's, which shares the path.
    object: &'static str,
    created: u64,
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
        object: "rerank",
        created: answer.stamp.created_unix,
        model: answer.model(),
        usage: Usage::of(answer),
        results: answer.relevances(TextObject::of),
        podium: Declared::of(&answer.outcome.receipt),
    })
}

/// Writes the scores in the caller's order, one for each pair.
fn write_score(answer: &Answered) -> Written {
    let datum = |(index, score): (usize, f32)| Datum { index, object: "score", score };
    Written::json(&ScoreBody {
        id: format!("score-{}", answer.stamp.id),
        object: "list",
        created: answer.stamp.created_unix,
        model: answer.model(),
        data: answer.scores().enumerate().map(datum).collect(),
        usage: Usage::of(answer),
        podium: Declared::of(&answer.outcome.receipt),
    })
}
