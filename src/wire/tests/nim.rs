//! NVIDIA NIM.

use super::answer;
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
