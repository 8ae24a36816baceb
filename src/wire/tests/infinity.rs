//! Infinity.

use super::{answer, decode};
use crate::rerank::Refusal;
use crate::wire::{ApiError, Dialect, Settings, Stamp, encode_error};
use http::HeaderMap;
use serde_json::{Value, json};

#[test]
fn infinity_tells_what_does_not_validate_as_fastapi_does() {
    let body = json!({"query": "q", "documents": ["a", 7], "raw_scores": true});
    let bytes = serde_json::to_vec(&body).unwrap();
    let (dialect, error) = decode("/rerank", &HeaderMap::new(), &bytes, &Settings::default()).unwrap_err();
    let stamp = Stamp { id: "7".into(), created_unix: 0 };
    let answer: Value = serde_json::from_slice(&encode_error(dialect, &error, &stamp).body).unwrap();
    let message = "documents[1]: must be a string, and is a number";
    let detail = json!([{"loc": ["body", "documents", 1], "msg": message, "type": "value_error"}]);
    assert_eq!(answer, json!({"detail": detail}));
}

#[test]
fn infinity_gives_documents_as_strings() {
    let body = json!({
        "model": "m", "query": "q", "documents": ["a"], "return_documents": true, "raw_scores": false,
    });
    let answer = answer("/rerank", &body, &[0.0]);
    assert_eq!(answer["object"], "rerank");
    assert_eq!(answer["results"], json!([{"relevance_score": 0.5, "index": 0, "document": "a"}]));
}

#[test]
fn infinity_s_other_errors_are_openai_s() {
    let refusal = Refusal::UnknownModel { name: "m".into() };
    let stamp = Stamp { id: "7".into(), created_unix: 0 };
    let encoded = encode_error(Dialect::Infinity, &ApiError::from(&refusal), &stamp);
    let answer: Value = serde_json::from_slice(&encoded.body).unwrap();
    let message = "model: m is not served here";
    let expected = json!({"message": message, "type": "NotFoundError", "param": null, "code": 404});
    assert_eq!((encoded.status.as_u16(), answer), (404, json!({"error": expected})));
}
