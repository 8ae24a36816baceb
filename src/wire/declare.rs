//! The receipt at the wire: headers in every dialect, an object in bodies that have room.

use super::{Answered, Stamp};
use crate::rerank::{Receipt, Served};
use http::{HeaderName, HeaderValue};
use serde::Serialize;

/// The receipt as bodies carry it.
#[derive(Serialize)]
pub(super) struct Declared<'a> {
    /// `full`, `topk` or `fallback`.
    pub tier: &'static str,
    /// Candidates that the primary scored, in a top-k.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<u32>,
    /// Why the answer is less than the best, or null.
    pub degraded: Option<&'static str>,
    pub budget_ms: Option<f64>,
    pub elapsed_ms: f64,
    pub queue_ms: f64,
    pub compute_ms: f64,
    pub model: &'a str,
    pub version: &'a str,
    pub cost: Cost,
}

/// What an answer cost.
#[derive(Serialize)]
pub(super) struct Cost {
    pub device_ns: u64,
    pub nanodollars: u64,
    pub usd: f64,
}

impl<'a> Declared<'a> {
    pub fn of(receipt: &'a Receipt) -> Self {
        Self {
            tier: receipt.served.name(),
            k: k(receipt.served),
            degraded: receipt.degraded.map(|reason| reason.name()),
            budget_ms: receipt.budget.map(|budget| budget.as_millis_f64()),
            elapsed_ms: receipt.elapsed.as_millis_f64(),
            queue_ms: receipt.queue.as_millis_f64(),
            compute_ms: receipt.compute.as_millis_f64(),
            model: &receipt.model,
            version: &receipt.version,
            cost: Cost {
                device_ns: receipt.device.0,
                nanodollars: receipt.cost.0,
                usd: receipt.cost.0 as f64 / 1e9,
            },
        }
    }
}

fn k(served: Served) -> Option<u32> {
    match served {
        Served::TopK { k } => Some(k),
        Served::Full | Served::Fallback => None,
    }
}

/// The `x-podium-*` headers of an answer.
pub(super) fn headers(answer: &Answered) -> Vec<(HeaderName, HeaderValue)> {
    let receipt = &answer.outcome.receipt;
    let mut headers = vec![request_id(answer.stamp)];
    let mut put = |name: &'static str, value: String| {
        // Only a model's name could hold what a header cannot; then it goes without.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.push((HeaderName::from_static(name), value));
        }
    };
    // Whole microseconds: printing a float takes longer than all else here.
    let millis = |ns: crate::base::Ns| format!("{}.{:03}", ns.0 / 1_000_000, ns.0 / 1_000 % 1_000);
    put("x-podium-tier", receipt.served.name().to_owned());
    if let Some(k) = k(receipt.served) {
        put("x-podium-top-k", k.to_string());
    }
    if let Some(reason) = receipt.degraded {
        put("x-podium-degraded", reason.name().to_owned());
    }
    if let Some(budget) = receipt.budget {
        put("x-podium-budget-ms", millis(budget));
    }
    put("x-podium-elapsed-ms", millis(receipt.elapsed));
    put("x-podium-queue-ms", millis(receipt.queue));
    put("x-podium-compute-ms", millis(receipt.compute));
    put("x-podium-model", receipt.model.to_string());
    put("x-podium-version", receipt.version.to_string());
    put("x-podium-device-ns", receipt.device.0.to_string());
    put("x-podium-cost-nanodollars", receipt.cost.0.to_string());
    let truncated = answer.outcome.truncated.iter().filter(|&&truncated| truncated).count();
    if truncated > 0 {
        put("x-podium-truncated", truncated.to_string());
    }
    for warning in answer.warnings {
        // Names of fields may hold anything.
        let plain = warning.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
        put("x-podium-warning", plain.collect());
    }
    headers
}

/// The header by which a log line is found.
pub(super) fn request_id(stamp: &Stamp) -> (HeaderName, HeaderValue) {
    let id = HeaderValue::try_from(&stamp.id).expect("an id is hexadecimal");
    (HeaderName::from_static("x-podium-request-id"), id)
}
