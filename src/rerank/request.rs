//! A rerank request after decoding: every field is valid, and nobody checks it again.

use super::Truncation;
use crate::base::Ns;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One query and the candidates to order by it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model that the caller named, if any.
    pub model: Option<String>,
    /// What the candidates are judged against.
    pub query: Query,
    /// The candidates, in the caller's order; may be empty.
    pub documents: Vec<Arc<str>>,
    /// How many of the best to return; none means all. Every candidate is scored either way.
    pub top_n: Option<usize>,
    /// Whether the answer repeats the candidates' text.
    pub return_documents: bool,
    /// The scale of the returned scores.
    pub score: ScoreForm,
    /// How many tokens are read, and what is cut from a pair that has more.
    pub truncation: Truncation,
    /// The wishes that are ours and not the dialect's.
    pub options: Options,
}

impl Request {
    /// A request with every default, for callers that have only a query and candidates.
    pub fn new(query: impl Into<String>, documents: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let documents = documents.into_iter().map(|document| Arc::from(document.as_ref()));
        Self::plain(Query::Shared(query.into()), documents.collect())
    }

    /// The same from what a decoder has.
    pub fn plain(query: Query, documents: Vec<Arc<str>>) -> Self {
        Self {
            model: None,
            query,
            documents,
            top_n: None,
            return_documents: false,
            score: ScoreForm::Probability,
            truncation: Truncation::default(),
            options: Options::default(),
        }
    }
}

/// What the candidates are judged against.
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

/// The wishes that are ours and not the dialect's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The time from arrival within which the answer is of use; none means no limit.
    pub latency_budget: Option<Ns>,
    /// How the request ranks among its own tenant's.
    pub priority: Priority,
    /// Which tiers may answer; none lets the server choose.
    pub policy: Option<Policy>,
    /// At most how many candidates the primary scores in a top-k; none lets the server choose.
    pub top_k: Option<u32>,
}

/// How a request ranks among its own tenant's; tenants cannot outrank each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Somebody is waiting.
    High,
    /// The default.
    #[default]
    Normal,
    /// Nobody is waiting.
    Low,
}

/// Which tiers may answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The best that fits the budget: full, then top-k, then fallback, then a refusal. Without a budget: the primary, for
    /// which it waits; the fallback only where the primary is down or fails.
    #[default]
    Auto,
    /// The primary on every candidate, or a refusal.
    Full,
    /// The fallback on every candidate and the primary on the best.
    TopK,
    /// The fallback only.
    Fallback,
}

impl Policy {
    /// The lower-case name that bodies and headers use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Full => "full",
            Self::TopK => "topk",
            Self::Fallback => "fallback",
        }
    }
}
