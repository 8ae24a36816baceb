//! Our own dialect.

use super::{answer, decode, decoded, encode};
use crate::rerank::{Degradation, Options, Policy, Priority, ScoreForm};
use crate::wire::{Settings, openapi};
use http::HeaderMap;
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[test]
fn podium_says_everything() {
    let body = json!({
        "query": "q", "documents": ["a", {"id": "x", "text": "b"}, "c"], "top_n": 2,
        "return_documents": true, "scores": "logit", "latency_budget_ms": 50,
    });
    let expected = json!({
        "id": "ab12",
        "results": [
            {"index": 1, "id": "x", "score": 2.5, "document": "b"},
            {"index": 2, "score": 0.5, "truncated": true, "document": "c"},
        ],
        "tier": "topk", "k": 2, "degraded": "predicted_late", "budget_ms": 50.0, "elapsed_ms": 12.0,
        "queue_ms": 4.0, "compute_ms": 8.0, "model": "served", "version": "0123456789ab",
        "cost": {"device_ns": 1234, "nanodollars": 56, "usd": 5.6e-8, "joules": 0.25},
        "truncated": {"documents": 1, "query_tokens": 91},
        "usage": {"tokens": 21, "documents": 3}, "truncated": {"documents": 1, "query_tokens": 91},
    });
    assert_eq!(answer("/v1/rank", &body, &[-1.0, 2.5, 0.5]), expected);
}

#[test]
fn answers_are_described_field_by_field() {
    let document: Value = serde_json::from_slice(openapi()).unwrap();
    let names =
        |object: &Value| -> BTreeSet<String> { object.as_object().unwrap().keys().cloned().collect() };
    let body = json!({
        "query": "q", "documents": [{"id": "x", "text": "a"}, "b"], "return_documents": true, "typo": 1,
    });
    let encoded = encode(&decoded("/v1/rank", &body), &[0.5, 1.0]);
    let answer: Value = serde_json::from_slice(&encoded.body).unwrap();
    let described = &document["components"]["schemas"]["Ranked"]["properties"];
    assert_eq!(names(described), names(&answer));
    for object in ["cost", "usage"] {
        assert_eq!(names(&described[object]["properties"]), names(&answer[object]), "{object}");
    }
    // The last result has all that one may have.
    assert_eq!(names(&described["results"]["items"]["properties"]), names(&answer["results"][1]));
    let reasons: Vec<_> = Degradation::ALL.map(|reason| json!(reason.name())).into();
    assert_eq!(described["degraded"]["enum"], json!([reasons, vec![Value::Null]].concat()));
    let headers: BTreeSet<String> = encoded.headers.iter().map(|(name, _)| name.to_string()).collect();
    let ours: BTreeSet<String> = headers.into_iter().filter(|name| name.starts_with("x-podium-")).collect();
    assert_eq!(names(&document["components"]["headers"]), ours);
}

#[test]
fn an_empty_list_is_fine_where_it_has_an_answer() {
    assert_eq!(answer("/v1/rank", &json!({"query": "q", "documents": []}), &[])["results"], json!([]));
}

#[test]
fn scores_keep_every_bit_of_f32() {
    for score in [0.1f32, 1.0 / 3.0, f32::MIN_POSITIVE, 9.266_827] {
        let body = json!({"query": "q", "documents": ["a"], "scores": "logit"});
        let answer = answer("/v1/rank", &body, &[score]);
        let read: f32 = answer["results"][0]["score"].to_string().parse().unwrap();
        assert_eq!(read.to_bits(), score.to_bits());
    }
}

#[test]
fn an_id_is_returned_wherever_the_documents_are_in_the_body() {
    for body in [
        r#"{"query": "q", "documents": [{"id": "x", "text": "a"}]}"#,
        r#"{"documents": [{"id": "x", "text": "a"}], "query": "q"}"#,
    ] {
        let found = decode("/v1/rank", &HeaderMap::new(), body.as_bytes(), &Settings::default()).unwrap();
        let answer: Value = serde_json::from_slice(&encode(&found, &[0.0]).body).unwrap();
        assert_eq!(answer["results"][0]["id"], "x", "{body}");
    }
}

#[test]
fn each_word_has_its_meaning() {
    let request = |field: &str, word: &str| {
        decoded("/v1/rank", &json!({"query": "q", "documents": ["a"], field: word})).request
    };
    for (word, expected) in [
        ("auto", Policy::Auto),
        ("full", Policy::Full),
        ("topk", Policy::TopK),
        ("fallback", Policy::Fallback),
    ] {
        assert_eq!(request("policy", word).options.policy, Some(expected));
    }
    for (word, expected) in [("high", Priority::High), ("normal", Priority::Normal), ("low", Priority::Low)] {
        assert_eq!(request("priority", word).options.priority, expected);
    }
    for (word, expected) in [("probability", ScoreForm::Probability), ("logit", ScoreForm::Logit)] {
        assert_eq!(request("scores", word).score, expected);
    }
    let request = decoded("/v1/rank", &json!({"query": "q", "documents": ["a"]})).request;
    assert_eq!((request.options, request.score), (Options::default(), ScoreForm::Probability));
}
