//! Floor 1: rerank requests and their outcomes, independent of dialects and engines.

mod outcome;
mod ranking;
mod request;
mod truncation;

pub use outcome::{Degradation, Outcome, Receipt, Refusal, Served, Truncated};
pub use ranking::{RankError, Ranked, merge_top_k, order, rank, sigmoid, top_k_scores};
pub use request::{Options, Policy, Priority, Query, Request, ScoreForm};
pub use truncation::{Overflow, PairTokens, Truncation, TruncationDefaults};
