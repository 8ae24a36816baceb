//! The outcome of a request: scores with a receipt, or a refusal with its reason.

use crate::base::{DeviceNs, Nanodollars, Ns, Tier, Tokens};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use thiserror::Error;

/// An answered request.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// A logit for each document, in the caller's order, on the primary's scale. Always finite.
    pub scores: Vec<f32>,
    /// For each document, in the caller's order, whether it lost tokens to truncation.
    pub truncated: Vec<bool>,
    /// Tokens of all pairs, special tokens included.
    pub tokens: Tokens,
    /// The names of the answer's models whose prompts have no place for a request's instruction.
    pub without_instruction: Vec<Arc<str>>,
    /// The receipt.
    pub receipt: Receipt,
}

/// How an answer was made and what it cost; declared on every response.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The models that scored the request.
    pub served: Served,
    /// Why the answer is degraded; none if it is not.
    pub degraded: Option<Degradation>,
    /// The budget that applied, with the server's default.
    pub budget: Option<Ns>,
    /// The time from arrival to the answer.
    pub elapsed: Ns,
    /// The part of `elapsed` in which no lane worked on this request: receiving the body, tokenising, and waiting for a
    /// lane.
    pub queue: Ns,
    /// The part of `queue` in which the texts were tokenised, with the wait for the pool.
    pub tokenise: Ns,
    /// The part of `elapsed` in which a lane worked on this request.
    pub compute: Ns,
    /// The model that answered; the primary for full and top-k.
    pub model: Arc<str>,
    /// The version of that model: the first 12 hex digits of its weights' sha256.
    pub version: Arc<str>,
    /// The kind of that model's devices, by the name that prices use.
    pub device_kind: Arc<str>,
    /// Device time charged to the request, over both tiers.
    pub device: DeviceNs,
    /// The price of that device time; none if the devices have no price.
    pub cost: Option<Nanodollars>,
    /// The energy of that device time; none if no device reports its power.
    pub joules: Option<f64>,
    /// The tokens lost to truncation.
    pub truncated: Truncated,
}

/// Truncation over all pairs of a request. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Truncated {
    /// Documents that lost tokens.
    pub documents: u32,
    /// The most tokens that a query lost in any pair.
    pub query_tokens: u32,
}

impl Receipt {
    /// Whether the answer came within its budget; true without a budget.
    pub fn within_budget(&self) -> bool {
        self.budget.is_none_or(|budget| self.elapsed <= budget)
    }
}

/// The models that scored a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Served {
    /// The primary scored every candidate.
    Full,
    /// The fallback scored every candidate, and the primary the best `k`.
    TopK {
        /// The number of candidates that the primary scored.
        k: u32,
    },
    /// The fallback scored every candidate.
    Fallback,
}

impl Served {
    /// The lower-case name in bodies, headers and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::TopK { .. } => "topk",
            Self::Fallback => "fallback",
        }
    }

    /// The tiers whose scores are in the answer.
    pub const fn tiers(self) -> &'static [Tier] {
        match self {
            Self::Full => &[Tier::Primary],
            Self::TopK { .. } => &Tier::ALL,
            Self::Fallback => &[Tier::Fallback],
        }
    }
}

/// Why an answer is degraded: less than the best that its policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Degradation {
    /// On arrival the primary was predicted to miss the budget.
    PredictedLate,
    /// The primary was started and turned out to be late.
    PrimaryLate,
    /// The primary's lanes were down or its breaker open.
    PrimaryUnavailable,
    /// The primary failed on this request.
    PrimaryFailed,
    /// The answer came after its budget, and nothing faster was available.
    Late,
}

impl Degradation {
    /// Every reason, for metrics and documentation.
    pub const ALL: [Self; 5] =
        [Self::PredictedLate, Self::PrimaryLate, Self::PrimaryUnavailable, Self::PrimaryFailed, Self::Late];

    /// The stable name in bodies, headers and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PredictedLate => "predicted_late",
            Self::PrimaryLate => "primary_late",
            Self::PrimaryUnavailable => "primary_unavailable",
            Self::PrimaryFailed => "primary_failed",
            Self::Late => "late",
        }
    }
}

/// Why a request was not answered with scores.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
pub enum Refusal {
    /// The queues are full, or the predicted wait exceeds its bound.
    #[error("the server is at capacity; retry in {} ms", .retry_after.0.div_ceil(1_000_000))]
    Overloaded {
        /// When the backlog is predicted to be empty.
        retry_after: Ns,
    },
    /// No tier can answer within the budget, given the present work.
    #[error("no tier can answer within the latency budget; retry in {} ms", .retry_after.0.div_ceil(1_000_000))]
    BudgetTooShortNow {
        /// When the backlog is predicted to be empty.
        retry_after: Ns,
    },
    /// No tier that the policy allows is fast enough even on an idle server.
    #[error(
        "the latency budget is too short for these candidates, whatever the load; about {} ms are needed",
        .needed.0.div_ceil(1_000_000)
    )]
    BudgetTooShort {
        /// The predicted time of the fastest allowed tier.
        needed: Ns,
    },
    /// The budget minus the answer's margin (`limits.answer_ns_margin`) was spent before the request could be
    /// scheduled.
    #[error(
        "the latency budget was spent before any model could begin; about {} ms are needed",
        .needed.0.div_ceil(1_000_000)
    )]
    BudgetSpent {
        /// The shortest sufficient budget: the time spent, the predicted time of the fastest allowed tier on an idle
        /// server, and the margin.
        needed: Ns,
    },
    /// The tenant has used up its quota of device time.
    #[error("the tenant has used up its quota of device time; retry in {} ms", .retry_after.0.div_ceil(1_000_000))]
    QuotaExceeded {
        /// When the quota is next available.
        retry_after: Ns,
    },
    /// The input cannot be scored. The message has the field and the limit.
    #[error("{field}: {message}")]
    Invalid {
        /// Our name of the field (`query`, `documents[3]`); dialects translate it.
        field: String,
        /// The problem, with the limit.
        message: String,
    },
    /// A text or a pair is too long, and the request forbids truncation.
    #[error("{field}: {message}")]
    TooLong {
        /// Our name of the field; dialects translate it.
        field: String,
        /// The tokens and the limit.
        message: String,
    },
    /// The request names a model that is not served.
    #[error("model: {name} is not served here")]
    UnknownModel {
        /// The model in the request.
        name: String,
    },
    /// Every tier that the policy allows failed on this request.
    #[error("the model failed on this request")]
    ModelFailed,
    /// Every tier that the policy allows is down.
    #[error("no model that the policy allows is available")]
    Unavailable,
    /// The server is shutting down.
    #[error("the server is draining")]
    Draining,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rerank::{Policy, Priority};

    #[test]
    fn a_budget_is_met_up_to_its_last_nanosecond() {
        let met = |budget: Option<u64>, elapsed: u64| {
            let receipt = Receipt {
                served: Served::Full,
                degraded: None,
                budget: budget.map(Ns),
                elapsed: Ns(elapsed),
                queue: Ns::ZERO,
                tokenise: Ns::ZERO,
                compute: Ns::ZERO,
                model: "m".into(),
                version: "v".into(),
                device_kind: "cpu".into(),
                device: DeviceNs(0),
                cost: Some(Nanodollars(0)),
                joules: None,
                truncated: Truncated::default(),
            };
            receipt.within_budget()
        };
        assert_eq!([met(None, u64::MAX), met(Some(7), 7), met(Some(7), 8)], [true, true, false]);
    }

    #[test]
    fn times_in_messages_are_rounded_up() {
        for (nanos, expected) in [(0, " 0 ms"), (1, " 1 ms"), (5_000_000, " 5 ms"), (5_000_001, " 6 ms")] {
            let (retry_after, needed) = (Ns(nanos), Ns(nanos));
            for refusal in [
                Refusal::Overloaded { retry_after },
                Refusal::BudgetTooShortNow { retry_after },
                Refusal::BudgetTooShort { needed },
                Refusal::BudgetSpent { needed },
                Refusal::QuotaExceeded { retry_after },
            ] {
                assert!(refusal.to_string().contains(expected), "{refusal}");
            }
        }
    }

    #[test]
    fn names_are_those_of_the_wire_and_distinct() {
        let wire = |value: serde_json::Value| value.as_str().map(str::to_owned);
        let policies = [Policy::Auto, Policy::Full, Policy::TopK, Policy::Fallback];
        for policy in policies {
            assert_eq!(wire(serde_json::to_value(policy).unwrap()).as_deref(), Some(policy.name()));
        }
        for reason in Degradation::ALL {
            assert_eq!(wire(serde_json::to_value(reason).unwrap()).as_deref(), Some(reason.name()));
        }
        assert_eq!(
            [Served::Full, Served::TopK { k: 1 }, Served::Fallback].map(Served::name),
            ["full", "topk", "fallback"]
        );
        assert!(Priority::High < Priority::Normal && Priority::Normal < Priority::Low);
    }
}
