//! The receipt and the warnings in headers.

use super::{decoded, encode, header};
use serde_json::{Value, json};

#[test]
fn many_unknown_fields_are_few_headers() {
    let mut body = json!({"query": "q", "documents": ["a"]});
    for number in 0..30_000 {
        body[format!("f{number}")] = json!(0);
    }
    let encoded = encode(&decoded("/v1/rank", &body), &[0.5]);
    let warnings = encoded.headers.iter().filter(|(name, _)| name == "x-podium-warning");
    let warnings: Vec<&str> = warnings.map(|(_, value)| value.to_str().unwrap()).collect();
    assert_eq!(warnings.len(), 9);
    assert_eq!(warnings[8], "29992 more unknown fields were ignored");
}

#[test]
fn every_answer_declares_itself_in_headers() {
    let decoded = decoded("/rerank", &json!({"query": "q", "texts": ["a", "b"], "typo\n": 1}));
    let encoded = encode(&decoded, &[0.5, 1.0]);
    for (name, expected) in [
        ("x-podium-tier", "topk"),
        ("x-podium-top-k", "2"),
        ("x-podium-degraded", "predicted_late"),
        ("x-podium-budget-ms", "50.000"),
        ("x-podium-elapsed-ms", "12.000"),
        ("x-podium-queue-ms", "4.000"),
        ("x-podium-compute-ms", "8.000"),
        ("x-podium-model", "served"),
        ("x-podium-version", "0123456789ab"),
        ("x-podium-device-ns", "1234"),
        ("x-podium-cost-nanodollars", "56"),
        ("x-podium-truncated", "1"),
        ("x-podium-truncated-query-tokens", "91"),
        ("x-podium-warning", "unknown field `typo?` was ignored"),
        ("x-podium-request-id", "ab12"),
    ] {
        assert_eq!(header(&encoded, name), Some(expected), "{name}");
    }
}

#[test]
fn what_was_not_cut_is_not_declared() {
    let encoded = encode(&decoded("/v1/rank", &json!({"query": "q", "documents": ["a"]})), &[1.0]);
    let answer: Value = serde_json::from_slice(&encoded.body).unwrap();
    assert_eq!(answer.get("truncated"), None);
    for name in ["x-podium-truncated", "x-podium-truncated-query-tokens", "x-podium-warning"] {
        assert_eq!(header(&encoded, name), None, "{name}");
    }
}

#[test]
fn eight_unknown_fields_are_named_and_the_rest_counted() {
    let mut body = json!({"query": "q", "documents": ["a"]});
    for number in 1..=9 {
        body[format!("f{number}")] = json!(0);
        let warnings = decoded("/v1/rank", &body).warnings;
        assert_eq!(warnings.len(), number);
        assert_eq!(warnings[0], "unknown field `f1` was ignored");
        assert_eq!(warnings[number - 1].contains("more"), number == 9, "{warnings:?}");
    }
    let long = json!({"query": "q", "documents": ["a"], "x".repeat(65): 0});
    let expected = format!("unknown field `{}` was ignored", "x".repeat(64));
    assert_eq!(decoded("/v1/rank", &long).warnings, [expected]);
}
