//! Cohere's two versions.

use super::{answer, decoded, encode};
use crate::rerank::Priority;
use serde_json::{Value, json};

#[test]
fn cohere_v1_carries_what_jina_and_vllm_look_for() {
    let body =
        json!({"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "return_documents": true});
    let answer = answer("/v1/rerank", &body, &[0.0, 40.0]);
    let first = json!({"index": 1, "relevance_score": 1.0, "document": {"text": "b"}});
    assert_eq!(answer["results"][0], first);
    assert_eq!(answer["results"][1]["relevance_score"], 0.5);
    assert_eq!(
        (&answer["object"], &answer["meta"]["api_version"]["version"]),
        (&json!("rerank"), &json!("1"))
    );
    assert_eq!(answer["meta"]["billed_units"]["search_units"], 1);
    assert_eq!(answer["meta"]["podium"]["tier"], "topk");
    assert_eq!((&answer["model"], &answer["usage"]["total_tokens"]), (&json!("m"), &json!(21)));
    assert_eq!(answer["meta"]["tokens"], json!({"input_tokens": 21, "output_tokens": 0}));
    // Voyage's clients send the same where they are asked for all.
    assert_eq!(answer["data"][0], json!({"index": 1, "relevance_score": 1.0, "document": "b"}));
    let cohere = decoded("/v1/rerank", &json!({"query": "q", "documents": ["a"], "top_n": 1}));
    let answer: Value = serde_json::from_slice(&encode(&cohere, &[0.0]).body).unwrap();
    assert_eq!(answer.get("data"), None);
}

#[test]
fn cohere_s_rank_fields_are_read_in_their_order() {
    let body = json!({
        "query": "q", "documents": [{"title": "T", "body": "B", "year": 7}], "rank_fields": ["body", "year", "no"],
    });
    assert_eq!(&*decoded("/v1/rerank", &body).request.documents[0], "body: B\nyear: 7");
}

#[test]
fn cohere_v2_gives_no_documents_and_reads_a_priority() {
    let body =
        json!({"model": "m", "query": "q", "documents": ["a"], "priority": 5, "max_tokens_per_doc": 9});
    let decoded = decoded("/v2/rerank", &body);
    assert_eq!(decoded.request.options.priority, Priority::Low);
    assert_eq!(decoded.request.truncation.document_tokens_max, Some(9));
    let answer: Value = serde_json::from_slice(&encode(&decoded, &[0.0]).body).unwrap();
    assert_eq!(answer["results"], json!([{"index": 0, "relevance_score": 0.5}]));
    assert_eq!(answer["meta"]["api_version"]["version"], "2");
}

#[test]
fn cohere_s_empty_rank_fields_are_none() {
    let body = json!({"query": "q", "documents": ["a", {"text": "b", "title": "T"}], "rank_fields": []});
    let request = &decoded("/v1/rerank", &body).request;
    assert_eq!(request.documents.iter().map(|text| &**text).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn cohere_cuts_documents_to_its_own_limit_unless_another_is_given() {
    for path in ["/v1/rerank", "/v2/rerank"] {
        let body = json!({"query": "q", "documents": ["a"]});
        assert_eq!(decoded(path, &body).request.truncation.document_tokens_max, Some(4_096), "{path}");
    }
}

#[test]
fn cohere_bills_a_search_for_each_hundred_documents() {
    for (documents, searches) in [(1, 1), (100, 1), (101, 2)] {
        let body = json!({"query": "q", "documents": vec!["a"; documents]});
        let answer = answer("/v2/rerank", &body, &vec![0.0; documents]);
        assert_eq!(answer["meta"]["billed_units"]["search_units"], searches, "{documents}");
    }
}
