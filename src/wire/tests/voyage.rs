//! Voyage.

use super::{answer, decoded};
use crate::rerank::{Overflow, Truncation};
use serde_json::json;

#[test]
fn voyage_answers_with_data() {
    let body = json!({"model": "m", "query": "q", "documents": ["a", "b"], "top_k": 1, "truncation": false});
    assert_eq!(decoded("/v1/rerank", &body).request.truncation, Truncation::by(Overflow::Refuse));
    for (truncation, expected) in
        [(json!(true), Truncation::by(Overflow::Truncate)), (json!(null), Truncation::default())]
    {
        let body = json!({"query": "q", "documents": ["a"], "top_k": 1, "truncation": truncation});
        assert_eq!(decoded("/v1/rerank", &body).request.truncation, expected, "{truncation}");
    }
    let answer = answer("/v1/rerank", &body, &[0.0, -1.0]);
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["data"], json!([{"index": 0, "relevance_score": 0.5}]));
    assert_eq!(answer["usage"], json!({"total_tokens": 21}));
}
