//! NVIDIA NIM.

use super::{answer, decoded};
use crate::rerank::Overflow;
use serde_json::json;

#[test]
fn nim_ranks_by_logits() {
    let body = json!({"model": "m", "query": {"text": "q"}, "passages": [{"text": "a"}, {"text": "b"}]});
    let expected = json!({"rankings": [{"index": 1, "logit": 2.0}, {"index": 0, "logit": -3.5}]});
    assert_eq!(answer("/v1/ranking", &body, &[-3.5, 2.0]), expected);
    // As LiteLLM asks.
    let mut top = body;
    top["top_k"] = json!(1);
    let path = "/v1/retrieval/nvidia/some-model/reranking";
    assert_eq!(answer(path, &top, &[-3.5, 2.0]), json!({"rankings": [{"index": 1, "logit": 2.0}]}));
}

#[test]
fn nim_s_end_truncates_and_none_refuses() {
    for (word, expected) in [
        (json!("NONE"), Some(Overflow::Refuse)),
        (json!("END"), Some(Overflow::Truncate)),
        (json!(null), None),
    ] {
        let body = json!({"query": "q", "passages": ["a"], "truncate": word});
        assert_eq!(decoded("/v1/ranking", &body).request.truncation.policy, expected, "{word}");
    }
}
