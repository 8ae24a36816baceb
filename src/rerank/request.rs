//! A decoded rerank request. All fields are valid and are not checked again.

use super::Truncation;
use crate::base::Ns;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A query with candidates to order.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model named by the caller, if any.
    pub model: Option<String>,
    /// The query, or a query for each candidate.
    pub query: Query,
    /// The task in words, for models that read one in their prompt; none for the model's own.
    pub instruction: Option<String>,
    /// The candidates, in the caller's order; may be empty.
    pub documents: Vec<Arc<str>>,
    /// How many of the best to return; none for all. Every candidate is scored in both cases.
    pub top_n: Option<usize>,
    /// Whether the answer includes the candidates' text.
    pub return_documents: bool,
    /// The scale of the returned scores.
    pub score: ScoreForm,
    /// Truncation: limits of tokens, and which text is cut.
    pub truncation: Truncation,
    /// Podium's own options.
    pub options: Options,
}

impl Request {
    /// A request with default options.
    pub fn new(query: impl Into<String>, documents: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let documents = documents.into_iter().map(|document| Arc::from(document.as_ref()));
        Self::plain(Query::Shared(query.into()), documents.collect())
    }

    /// A request from the parts that a decoder has.
    pub fn plain(query: Query, documents: Vec<Arc<str>>) -> Self {
        Self {
            model: None,
            query,
            instruction: None,
            documents,
            top_n: None,
            return_documents: false,
            score: ScoreForm::Probability,
            truncation: Truncation::default(),
            options: Options::default(),
        }
    }
}

/// The query of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// One query for all candidates.
    Shared(String),
    /// A query for each candidate, as many as there are candidates (vLLM's N:N score).
    PerDocument(Vec<String>),
}

/// The scale of the returned scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreForm {
    /// The sigmoid of the logit, computed in f32: between 0 and 1.
    Probability,
    /// The model's logit as it is.
    Logit,
}

/// Podium's own options, which no dialect has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The time from arrival within which the answer is needed; none for no limit.
    pub latency_budget: Option<Ns>,
    /// The priority within the tenant.
    pub priority: Priority,
    /// The answers that the caller accepts; none for the server's default.
    pub policy: Option<Policy>,
    /// Most candidates that the primary scores in a top-k; none for the server's default.
    pub top_k: Option<u32>,
}

/// The priority of a request within its tenant. It has no effect on other tenants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// For interactive requests.
    High,
    /// The default.
    #[default]
    Normal,
    /// For background requests.
    Low,
}

/// The answers that the caller accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The best answer that fits the budget: full, then top-k, then fallback, else a refusal. Without a budget the request
    /// waits for the primary; the fallback answers only if the primary is down or fails.
    #[default]
    Auto,
    /// The primary on every candidate, or a refusal.
    Full,
    /// The fallback on every candidate and the primary on the best.
    TopK,
    /// The fallback on every candidate.
    Fallback,
}

impl Policy {
    /// The lower-case name in bodies and headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Full => "full",
            Self::TopK => "topk",
            Self::Fallback => "fallback",
        }
    }
}
