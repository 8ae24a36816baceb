//! The receipt on the wire: headers in every dialect, an object in the bodies of those that allow more fields.

use super::{Answered, Stamp};
use crate::rerank::{Receipt, Served, Truncated};
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
    /// Why the answer is degraded, or null.
    pub degraded: Option<&'static str>,
    pub budget_ms: Option<f64>,
    pub elapsed_ms: f64,
    pub queue_ms: f64,
    pub compute_ms: f64,
    pub model: &'a str,
    pub version: &'a str,
    pub cost: Cost,
    /// Present if tokens were cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncated: Option<Truncated>,
}

/// The cost of an answer.
#[derive(Serialize)]
pub(super) struct Cost {
    pub device_ns: u64,
    /// Null if the devices have no price.
    pub nanodollars: Option<u64>,
    pub usd: Option<f64>,
    /// The energy, if the device reports its power.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joules: Option<f64>,
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
                nanodollars: receipt.cost.map(|cost| cost.0),
                usd: receipt.cost.map(|cost| cost.0 as f64 / 1e9),
                joules: receipt.joules,
            },
            truncated: Some(receipt.truncated).filter(|truncated| *truncated != Truncated::default()),
        }
    }
}

fn k(served: Served) -> Option<u32> {
    match served {
        Served::TopK { k } => Some(k),
        Served::Full | Served::Fallback => None,
    }
}

// Names that the compiler has checked; every answer needs them.
const TIER: HeaderName = HeaderName::from_static("x-podium-tier");
const TOP_K: HeaderName = HeaderName::from_static("x-podium-top-k");
const DEGRADED: HeaderName = HeaderName::from_static("x-podium-degraded");
const BUDGET_MS: HeaderName = HeaderName::from_static("x-podium-budget-ms");
const ELAPSED_MS: HeaderName = HeaderName::from_static("x-podium-elapsed-ms");
const QUEUE_MS: HeaderName = HeaderName::from_static("x-podium-queue-ms");
const COMPUTE_MS: HeaderName = HeaderName::from_static("x-podium-compute-ms");
const MODEL: HeaderName = HeaderName::from_static("x-podium-model");
const VERSION: HeaderName = HeaderName::from_static("x-podium-version");
const DEVICE_NS: HeaderName = HeaderName::from_static("x-podium-device-ns");
const COST: HeaderName = HeaderName::from_static("x-podium-cost-nanodollars");
const TRUNCATED: HeaderName = HeaderName::from_static("x-podium-truncated");
const TRUNCATED_QUERY_TOKENS: HeaderName = HeaderName::from_static("x-podium-truncated-query-tokens");
const WARNING: HeaderName = HeaderName::from_static("x-podium-warning");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-podium-request-id");

/// The `x-podium-*` headers of an answer.
pub(super) fn headers(answer: &Answered) -> Vec<(HeaderName, HeaderValue)> {
    let receipt = &answer.outcome.receipt;
    let mut headers = Vec::with_capacity(16);
    headers.push(request_id(answer.stamp));
    headers.push((TIER, HeaderValue::from_static(receipt.served.name())));
    if let Some(k) = k(receipt.served) {
        headers.push((TOP_K, k.into()));
    }
    if let Some(reason) = receipt.degraded {
        headers.push((DEGRADED, HeaderValue::from_static(reason.name())));
    }
    let mut put = |name: HeaderName, value: String| {
        // Only a model's name can hold characters that a header cannot; its header is left out then.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.push((name, value));
        }
    };
    // In whole microseconds, because formatting a float takes longer than the rest of this function.
    let millis = |ns: crate::base::Ns| format!("{}.{:03}", ns.0 / 1_000_000, ns.0 / 1_000 % 1_000);
    if let Some(budget) = receipt.budget {
        put(BUDGET_MS, millis(budget));
    }
    put(ELAPSED_MS, millis(receipt.elapsed));
    put(QUEUE_MS, millis(receipt.queue));
    put(COMPUTE_MS, millis(receipt.compute));
    put(MODEL, receipt.model.to_string());
    put(VERSION, receipt.version.to_string());
    for warning in answer.warnings {
        // A field's name may hold any character.
        let plain = warning.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
        put(WARNING, plain.collect());
    }
    headers.push((DEVICE_NS, receipt.device.0.into()));
    if let Some(cost) = receipt.cost {
        headers.push((COST, cost.0.into()));
    }
    for (name, count) in
        [(TRUNCATED, receipt.truncated.documents), (TRUNCATED_QUERY_TOKENS, receipt.truncated.query_tokens)]
    {
        if count > 0 {
            headers.push((name, count.into()));
        }
    }
    headers
}

/// The header with the request's id, as in the log.
pub(super) fn request_id(stamp: &Stamp) -> (HeaderName, HeaderValue) {
    let id = HeaderValue::try_from(&stamp.id).expect("an id is hexadecimal");
    (REQUEST_ID, id)
}
