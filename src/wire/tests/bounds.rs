//! The smallest and largest values that are accepted, and what holds where a field is absent.

use super::{decode, decoded, encode, oip_json, pins, try_decode};
use crate::base::Ns;
use crate::rerank::Priority;
use crate::wire::{Dialect, Settings};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

fn documents(count: usize) -> Value {
    json!({"query": "q", "documents": vec!["a"; count]})
}

fn header(name: &'static str, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
}

#[test]
fn a_count_is_at_least_one() {
    let texts = json!({"query": "q", "texts": ["a"]});
    let pair = json!({"text_1": "q", "text_2": "a"});
    let passages = json!({"query": "q", "passages": ["a"]});
    let rows: [(&str, Value, &[&str]); 7] = [
        ("/v1/rank", documents(1), &["top_n", "top_k", "query_tokens_max", "document_tokens_max"]),
        ("/v1/rank", documents(1), &["pair_tokens_max"]),
        ("/v1/rerank", documents(1), &["top_n", "max_chunks_per_doc", "max_tokens_per_doc", "top_k"]),
        ("/v2/rerank", documents(1), &["top_n", "max_tokens_per_doc"]),
        ("/rerank", texts, &["top_n", "top_k"]),
        ("/score", pair, &["truncate_prompt_tokens", "max_tokens_per_query", "max_tokens_per_doc"]),
        ("/v1/ranking", passages, &["top_k"]),
    ];
    for (path, mut body, names) in rows {
        for name in names {
            let absent = body.clone();
            body[*name] = json!(1);
            assert!(try_decode(path, &body).is_ok(), "{path} {name}");
            body[*name] = json!(0);
            let (_, error) = try_decode(path, &body).unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")), "{path} {name}: {error}");
            assert!(error.contains("a whole number of at least 1"), "{path} {name}: {error}");
            body = absent;
        }
    }
    let mut body = oip_json();
    body["parameters"] = json!({"top_k": 1});
    assert_eq!(decoded("/v2/models/m/infer", &body).request.options.top_k, Some(1));
    for wrong in [json!(0), json!(-1), json!("1")] {
        body["parameters"] = json!({"top_k": wrong});
        let (_, error) = try_decode("/v2/models/m/infer", &body).unwrap_err();
        assert_eq!(error, "top_k: must be a whole number of at least 1");
    }
}

#[test]
fn a_count_in_a_header_has_a_digit() {
    let bytes = serde_json::to_vec(&documents(1)).unwrap();
    for name in ["x-podium-top-k", "x-podium-query-tokens-max", "x-podium-document-tokens-max"] {
        assert!(decode("/v1/rank", &header(name, "1"), &bytes, &Settings::default()).is_ok(), "{name}");
        for value in ["", "0", "+1"] {
            let (_, error) =
                decode("/v1/rank", &header(name, value), &bytes, &Settings::default()).unwrap_err();
            let expected = format!("{name}: `{value}` is not a whole number of at least 1");
            assert_eq!(error.full_message(), expected);
        }
    }
}

#[test]
fn a_header_is_ascii_text() {
    let bytes = serde_json::to_vec(&documents(1)).unwrap();
    for name in ["x-podium-priority", "x-podium-policy", "x-podium-truncation", "x-podium-truncation-side"] {
        let value = HeaderValue::from_bytes(b"caf\xe9").unwrap();
        let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value)]);
        let (_, error) = decode("/v1/rank", &headers, &bytes, &Settings::default()).unwrap_err();
        assert_eq!(error.full_message(), format!("{name}: is not ASCII text"));
    }
}

#[test]
fn a_request_may_have_as_many_documents_as_the_limit() {
    for (dialect, path, field, limit) in [
        (Dialect::Infinity, "/rerank", json!({"raw_scores": true}), 2_048),
        (Dialect::Voyage, "/v1/rerank", json!({"top_k": 1}), 1_000),
        (Dialect::Podium, "/v1/rank", json!({}), 10_000),
    ] {
        let mut body = documents(limit);
        body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        assert_eq!(decoded(path, &body).reply.dialect(), dialect);
    }
}

#[test]
fn a_budget_is_from_nothing_to_an_hour() {
    for (millis, expected) in [("0", Ns::ZERO), ("0.05", Ns(50_000)), ("3600000", Ns::from_millis(3_600_000))]
    {
        let body = format!(r#"{{"query": "q", "documents": [], "latency_budget_ms": {millis}}}"#);
        let by_field = decode("/v1/rank", &HeaderMap::new(), body.as_bytes(), &Settings::default());
        assert_eq!(by_field.unwrap().request.options.latency_budget, Some(expected));
        let headers = header("x-podium-latency-budget-ms", millis);
        let bytes = serde_json::to_vec(&documents(1)).unwrap();
        let by_header = decode("/v1/rerank", &headers, &bytes, &Settings::default());
        assert_eq!(by_header.unwrap().request.options.latency_budget, Some(expected));
    }
}

#[test]
fn cohere_s_priorities_are_0_to_999() {
    for (priority, expected) in [(0, Priority::Normal), (1, Priority::Low), (999, Priority::Low)] {
        let mut body = documents(1);
        body["priority"] = json!(priority);
        assert_eq!(decoded("/v2/rerank", &body).request.options.priority, expected, "{priority}");
    }
}

#[test]
fn vllm_s_priorities_are_highest_below_0() {
    for (priority, expected) in
        [(json!(-1), Priority::High), (json!(0), Priority::Normal), (json!(1), Priority::Low)]
    {
        let body = json!({"text_1": "q", "text_2": "a", "priority": priority});
        assert_eq!(decoded("/score", &body).request.options.priority, expected, "{priority}");
    }
}

#[test]
fn documents_are_in_the_answer_only_if_asked_for() {
    let texts = json!({"query": "q", "texts": ["text of it"]});
    let one = json!({"query": "q", "documents": ["text of it"]});
    for (dialect, path, body, name) in [
        (Dialect::Podium, "/v1/rank", &one, "return_documents"),
        (Dialect::Cohere, "/v1/rerank", &one, "return_documents"),
        (Dialect::Voyage, "/v1/rerank", &one, "return_documents"),
        (Dialect::Infinity, "/rerank", &one, "return_documents"),
        (Dialect::Tei, "/rerank", &texts, "return_text"),
    ] {
        let settings = Settings { pins: pins(dialect), ..Settings::default() };
        for (asked, expected) in [(None, false), (Some(false), false), (Some(true), true)] {
            let mut body = body.clone();
            body[name] = json!(asked);
            let bytes = serde_json::to_vec(&body).unwrap();
            let decoded = decode(path, &HeaderMap::new(), &bytes, &settings).unwrap();
            assert_eq!(decoded.reply.dialect(), dialect);
            let answer = String::from_utf8(encode(&decoded, &[0.0]).body).unwrap();
            assert_eq!(answer.contains("text of it"), expected, "{} {asked:?}", dialect.name());
        }
    }
}
