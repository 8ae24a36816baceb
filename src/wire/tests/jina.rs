//! Jina.

use super::{decode, encode};
use crate::wire::{Dialect, Pins, Settings};
use http::HeaderMap;
use serde_json::{Value, json};

#[test]
fn jina_gives_documents_unless_they_are_declined() {
    let pins = Pins { v1_rerank: Some(Dialect::Jina), ..Pins::default() };
    let settings = Settings { pins, ..Settings::default() };
    let body = br#"{"model": "m", "query": "q", "documents": ["a"]}"#;
    let decoded = decode("/v1/rerank", &HeaderMap::new(), body, &settings).unwrap();
    let answer: Value = serde_json::from_slice(&encode(&decoded, &[0.0]).body).unwrap();
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["results"], json!([{"index": 0, "relevance_score": 0.5, "document": {"text": "a"}}]));
    let body = br#"{"model": "m", "query": "q", "documents": []}"#;
    let (_, error) = decode("/v1/rerank", &HeaderMap::new(), body, &settings).unwrap_err();
    assert_eq!(error.full_message(), "documents: must have at least one element");
}
