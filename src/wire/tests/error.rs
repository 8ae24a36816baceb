//! Errors: their field, message, status and shape in each dialect.

use super::{decode, decoded, encode, header, try_decode};
use crate::base::Ns;
use crate::rerank::Refusal;
use crate::wire::{ApiError, Dialect, Settings, Stamp, encode_error};
use http::HeaderMap;
use serde_json::{Value, json};

#[test]
fn bad_input_names_the_field_in_the_dialect_that_asked() {
    let rows = [
        ("/v1/rank", json!({"documents": []}), Dialect::Podium, "query: is missing"),
        ("/v1/rank", json!({"query": "", "documents": []}), Dialect::Podium, "query: must not be empty"),
        ("/v1/rank", json!({"query": "q"}), Dialect::Podium, "documents: is missing"),
        (
            "/v1/rank",
            json!({"query": "q", "documents": [{}]}),
            Dialect::Podium,
            "documents[0]: must have a `text`, or a `content` of type text",
        ),
        (
            "/v1/rank",
            json!({"query": "q", "documents": ["a", {"id": 7, "text": "b"}]}),
            Dialect::Podium,
            "documents[1]: `id` must be a string",
        ),
        (
            "/v1/rank",
            json!({"query": "q", "documents": [], "policy": "best"}),
            Dialect::Podium,
            "policy: `best` is not one of auto, full, topk, fallback",
        ),
        (
            "/v1/rank",
            json!({"query": "q", "documents": [], "latency_budget_ms": -1}),
            Dialect::Podium,
            "latency_budget_ms: must be a number of milliseconds from 0 to 3600000",
        ),
        (
            "/v1/rerank",
            json!({"query": "q", "documents": []}),
            Dialect::Cohere,
            "documents: must have at least one element",
        ),
        (
            "/v1/rerank",
            json!({"query": "q", "documents": [{"title": "T", "note": null}], "rank_fields": ["titel", "note"]}),
            Dialect::Cohere,
            "documents[0]: has none of rank_fields: titel, note",
        ),
        (
            "/v1/rerank",
            json!({"query": "q", "documents": ["a"], "top_n": 0}),
            Dialect::Cohere,
            "top_n: 0 is not a whole number of at least 1",
        ),
        (
            "/v2/rerank",
            json!({"query": "q", "documents": ["a"], "priority": 1000}),
            Dialect::CohereV2,
            "priority: 1000 is not between 0 and 999",
        ),
        (
            "/rerank",
            json!({"query": "q", "texts": []}),
            Dialect::Tei,
            "texts: must have at least one element",
        ),
        (
            "/rerank",
            json!({"query": "q", "texts": [5]}),
            Dialect::Tei,
            "texts[0]: must be a string, and is a number",
        ),
        (
            "/rerank",
            json!({"query": "q", "documents": vec!["a"; 2049], "raw_scores": true}),
            Dialect::Infinity,
            "documents: 2049 are given, and the limit is 2048",
        ),
        (
            "/v1/rerank",
            json!({"query": "q", "documents": vec!["a"; 1001], "top_k": 1}),
            Dialect::Voyage,
            "documents: 1001 are given, and the limit is 1000",
        ),
        (
            "/v1/rank",
            json!({"query": "q", "documents": vec!["a"; 10_001]}),
            Dialect::Podium,
            "documents: 10001 are given, and the limit is 10000",
        ),
        ("/v1/ranking", json!({"query": {}, "passages": ["a"]}), Dialect::Nim, "query.text: is missing"),
        (
            "/v2/models/m/infer",
            json!({"inputs": [{"name": "PASSAGE", "shape": [1], "datatype": "FP32", "data": [1]}]}),
            Dialect::Oip,
            "PASSAGE: has datatype FP32, and must have BYTES",
        ),
        (
            "/v2/models/m/infer",
            json!({"inputs": [{"name": "PASSAGE", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}),
            Dialect::Oip,
            "QUERY: is missing",
        ),
    ];
    for (path, body, dialect, expected) in rows {
        assert_eq!(try_decode(path, &body).unwrap_err(), (dialect, expected.to_owned()));
    }
}

#[test]
fn a_score_that_is_no_number_is_an_error() {
    let decoded = decoded("/v1/rank", &json!({"query": "q", "documents": ["a"]}));
    let encoded = encode(&decoded, &[f32::NAN]);
    assert_eq!((encoded.status.as_u16(), header(&encoded, "x-podium-error")), (500, Some("model_failed")));
}

#[test]
fn an_error_has_the_status_that_the_peer_gives_it() {
    let settings = Settings { documents_max: 3, ..Settings::default() };
    let rows = [
        ("/rerank", json!({"query": "q", "texts": []}), 400, "/error_type", "Empty"),
        ("/rerank", json!({"query": "q", "texts": ["a", "b", "c", "d"]}), 413, "/error_type", "Validation"),
        ("/rerank", json!({"query": "q", "texts": "a"}), 422, "/error_type", "Validation"),
        ("/rerank", json!({"query": "q", "return_text": true}), 422, "/error", "texts: is missing"),
        ("/predict", json!({"inputs": []}), 400, "/error_type", "Empty"),
        (
            "/rerank",
            json!({"query": "q", "documents": ["a"], "raw_scores": true, "top_n": 0}),
            422,
            "/detail/0/loc/1",
            "top_n",
        ),
        (
            "/rerank",
            json!({"query": "q", "documents": ["a"], "raw_scores": true, "top_n": -1}),
            422,
            "/detail/0/loc/1",
            "top_n",
        ),
        (
            "/rerank",
            json!({"query": "q", "documents": ["a"], "truncate_prompt_tokens": -2}),
            400,
            "/error/param",
            "truncate_prompt_tokens",
        ),
        ("/score", json!({"queries": "q"}), 400, "/error/message", "documents: is missing"),
        ("/v2/models/m/infer", json!({"inputs": []}), 400, "/error", "QUERY: is missing"),
    ];
    let stamp = Stamp { id: "7".into(), created_unix: 0 };
    for (path, body, status, place, expected) in rows {
        let bytes = serde_json::to_vec(&body).unwrap();
        let (dialect, error) = decode(path, &HeaderMap::new(), &bytes, &settings).unwrap_err();
        let encoded = encode_error(dialect, &error, &stamp);
        let answer: Value = serde_json::from_slice(&encoded.body).unwrap();
        let found = (encoded.status.as_u16(), answer.pointer(place).cloned());
        assert_eq!(found, (status, Some(json!(expected))), "{path} {body}: {answer}");
    }
}

#[test]
fn what_the_engine_refuses_has_the_status_that_the_peer_gives_it() {
    let long = Refusal::TooLong { field: "query".into(), message: "has 600 tokens".into() };
    let document = Refusal::TooLong { field: "documents[0]".into(), message: "has 600 tokens".into() };
    let unknown = Refusal::UnknownModel { name: "m".into() };
    let plain = json!({"query": "q", "documents": ["a"], "truncate_prompt_tokens": 9});
    let rows = [
        ("/rerank", json!({"query": "q", "texts": ["a"]}), &long, 413, "/error", "query: has 600 tokens"),
        ("/predict", json!({"inputs": ["q", "a"]}), &long, 413, "/error", "inputs: has 600 tokens"),
        (
            "/v1/rerank",
            plain,
            &long,
            400,
            "/error/message",
            "query: has 600 tokens. Please reduce the length of the input prompt.",
        ),
        (
            "/score",
            json!({"data_1": "q", "data_2": ["a"]}),
            &long,
            400,
            "/error/message",
            "data_1: has 600 tokens. Please reduce the length of the input prompt.",
        ),
        ("/score", json!({"queries": "q", "items": ["a"]}), &document, 400, "/error/param", "items[0]"),
        (
            "/rerank",
            json!({"query": "q", "documents": ["a"], "raw_scores": true}),
            &long,
            422,
            "/detail/0/msg",
            "query: has 600 tokens",
        ),
        (
            "/v1/rerank",
            json!({"query": "q", "documents": ["a"], "top_k": 1}),
            &unknown,
            400,
            "/detail",
            "model: m is not served here",
        ),
        (
            "/v1/rerank",
            json!({"query": "q", "documents": ["a"]}),
            &unknown,
            404,
            "/message",
            "model: m is not served here",
        ),
    ];
    let stamp = Stamp { id: "7".into(), created_unix: 0 };
    for (path, body, refusal, status, place, expected) in rows {
        let reply = decoded(path, &body).reply;
        let encoded = encode_error(reply.dialect(), &reply.error(refusal), &stamp);
        let answer: Value = serde_json::from_slice(&encoded.body).unwrap();
        let found = (encoded.status.as_u16(), answer.pointer(place).cloned());
        assert_eq!(found, (status, Some(json!(expected))), "{path} {body}: {answer}");
    }
}

/// Where one path serves clients of several peers, the text is in each field that one of them shows its user: text that is
/// there three times is less bad than an error without a reason.
#[test]
fn an_error_s_text_is_in_each_field_that_a_client_reads_and_in_no_other() {
    let rows: [(&str, &[&str]); 7] = [
        ("/v1/rank", &["/error/message"]),
        ("/v1/rerank", &["/message", "/detail", "/error/message"]),
        ("/v2/rerank", &["/message"]),
        ("/rerank", &["/error/message"]),
        ("/score", &["/error/message"]),
        ("/predict", &["/error"]),
        ("/v1/ranking", &["/detail"]),
    ];
    for (path, places) in rows {
        let (dialect, error) =
            decode(path, &HeaderMap::new(), br#"{"query": 7}"#, &Settings::default()).unwrap_err();
        let stamp = Stamp { id: "7".into(), created_unix: 0 };
        let body = encode_error(dialect, &error, &stamp).body;
        let answer: Value = serde_json::from_slice(&body).unwrap();
        for place in places {
            assert_eq!(answer.pointer(place), Some(&json!(error.full_message())), "{path}{place}: {answer}");
        }
        let times = answer.to_string().matches(&error.message).count();
        assert_eq!(times, places.len(), "{path}: {answer}");
    }
}

#[test]
fn each_refusal_has_its_code_status_and_time() {
    let (retry_after, needed) = (Ns::from_millis(2_500), Ns::from_millis(9));
    let (field, message) = ("documents[1]".to_owned(), "has no words".to_owned());
    let name = "m".to_owned();
    for (refusal, code, status, retry, tei_status, tei_type) in [
        (Refusal::Overloaded { retry_after }, "overloaded", 429, Some("3"), 429, "Overloaded"),
        (Refusal::QuotaExceeded { retry_after }, "quota_exceeded", 429, Some("3"), 429, "Overloaded"),
        (Refusal::BudgetTooShortNow { retry_after }, "budget_too_short", 503, Some("3"), 503, "Overloaded"),
        (Refusal::BudgetTooShort { needed }, "budget_too_short", 503, None, 503, "Overloaded"),
        (Refusal::BudgetSpent { needed }, "budget_spent", 504, None, 504, "Overloaded"),
        (
            Refusal::Invalid { field: field.clone(), message: message.clone() },
            "invalid_request",
            400,
            None,
            422,
            "Validation",
        ),
        (Refusal::TooLong { field, message }, "invalid_request", 400, None, 413, "Validation"),
        (Refusal::UnknownModel { name }, "unknown_model", 404, None, 404, "Validation"),
        (Refusal::ModelFailed, "model_failed", 500, None, 424, "Backend"),
        (Refusal::Unavailable, "unavailable", 503, Some("1"), 503, "Unhealthy"),
        (Refusal::Draining, "unavailable", 503, Some("1"), 503, "Unhealthy"),
    ] {
        let stamp = Stamp { id: "7".into(), created_unix: 0 };
        let error = ApiError::from(&refusal);
        let encoded = encode_error(Dialect::Podium, &error, &stamp);
        assert_eq!((encoded.status.as_u16(), encoded.content_type), (status, "application/json"));
        let found = (header(&encoded, "x-podium-error"), header(&encoded, "retry-after"));
        assert_eq!(found, (Some(code), retry), "{refusal}");
        let encoded = encode_error(Dialect::Tei, &error, &stamp);
        let answer: Value = serde_json::from_slice(&encoded.body).unwrap();
        let found = (encoded.status.as_u16(), answer["error_type"].as_str().unwrap());
        assert_eq!(found, (tei_status, tei_type), "{refusal}");
        assert_eq!(answer["error"], refusal.to_string());
    }
}

/// Replaces one field of a body that is right.
#[test]
fn a_value_of_a_wrong_type_is_told_with_its_type_and_the_right_one() {
    let ours = json!({"query": "q", "documents": ["a"]});
    let vllm = json!({"query": "q", "documents": ["a"], "use_activation": true});
    let score = json!({"text_1": "q", "text_2": "a"});
    let nim = json!({"query": "q", "passages": ["a"]});
    for (path, body, field, value, expected) in [
        ("/v1/rank", &ours, "query", json!({}), "query: must be a string, and is an object"),
        ("/v1/rank", &ours, "documents", json!(true), "documents: must be a list, and is a boolean"),
        ("/v1/rank", &ours, "documents", json!("a"), "documents: must be a list, and is a string"),
        (
            "/v1/rank",
            &ours,
            "documents",
            json!(["a", ["b"]]),
            "documents[1]: must be a string or an object with a `text`, and is a list",
        ),
        (
            "/v1/rank",
            &ours,
            "documents",
            json!([null]),
            "documents[0]: must be a string or an object with a `text`, and is null",
        ),
        (
            "/v1/rank",
            &ours,
            "latency_budget_ms",
            json!("50"),
            "latency_budget_ms: must be a number, and is a string",
        ),
        ("/v1/rank", &ours, "top_n", json!([]), "top_n: must be a whole number, and is a list"),
        (
            "/v1/rank",
            &ours,
            "return_documents",
            json!(1),
            "return_documents: must be a boolean, and is a number",
        ),
        ("/v2/rerank", &ours, "documents", json!([{}]), "documents[0]: must be a string, and is an object"),
        ("/v2/rerank", &ours, "documents", json!([[]]), "documents[0]: must be a string, and is a list"),
        (
            "/v2/rerank",
            &ours,
            "documents",
            json!([false]),
            "documents[0]: must be a string, and is a boolean",
        ),
        ("/v1/rerank", &ours, "rank_fields", json!("a"), "rank_fields: must be a list of strings"),
        (
            "/v1/rerank",
            &ours,
            "rank_fields",
            json!(["a", 1]),
            "rank_fields[1]: must be a string, and is a number",
        ),
        ("/v1/rerank", &vllm, "query", Value::Null, "query: is missing"),
        ("/v1/rerank", &vllm, "query", json!(""), "query: must not be empty"),
        (
            "/v1/rerank",
            &vllm,
            "query",
            json!({"content": 7}),
            "query: must have a `text`, or a `content` of type text",
        ),
        ("/v1/rerank", &vllm, "priority", json!("high"), "priority: must be a whole number, and is a string"),
        ("/v1/rerank", &vllm, "priority", json!(0.5), "priority: 0.5 is not a whole number"),
        ("/score", &score, "text_1", json!(true), "text_1: must be a string or a list of strings"),
        ("/v1/ranking", &nim, "query", Value::Null, "query: is missing"),
        ("/v1/ranking", &nim, "query", json!(""), "query: must not be empty"),
        ("/v1/ranking", &nim, "query", json!(7), "query: must be an object with a `text`"),
        ("/v1/ranking", &nim, "query", json!({"text": ""}), "query.text: must not be empty"),
        ("/v1/ranking", &nim, "query", json!({"text": 7}), "query.text: must be a string"),
        ("/v1/ranking", &nim, "passages", json!([]), "passages: must have at least one element"),
        ("/v1/ranking", &nim, "truncate", json!("START"), "truncate: `START` is not one of NONE, END"),
        ("/predict", &json!({}), "inputs", json!([]), "inputs: must have at least one element"),
    ] {
        let mut body = body.clone();
        body[field] = value;
        assert_eq!(try_decode(path, &body).unwrap_err().1, expected, "{path} {body}");
    }
}

#[test]
fn our_own_error_has_its_code_field_and_time() {
    let stamp = Stamp { id: "7".into(), created_unix: 0 };
    let invalid = ApiError::invalid("documents[3]", "is a number, and must be a string");
    let message = "documents[3]: is a number, and must be a string";
    let busy = |nanos| ApiError::from(&Refusal::QuotaExceeded { retry_after: Ns(nanos) });
    let quota = "the tenant has used up its quota of device time; retry in";
    for (error, expected) in [
        (
            invalid,
            json!({"code": "invalid_request", "field": "documents[3]", "message": message, "retry_after_ms": null}),
        ),
        (
            busy(5_000_000),
            json!({"code": "quota_exceeded", "field": null, "message": format!("{quota} 5 ms"), "retry_after_ms": 5}),
        ),
        (
            busy(1),
            json!({"code": "quota_exceeded", "field": null, "message": format!("{quota} 1 ms"), "retry_after_ms": 1}),
        ),
    ] {
        let mut expected = json!({"error": expected});
        expected["error"]["id"] = json!("7");
        let body = encode_error(Dialect::Podium, &error, &stamp).body;
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
    }
}
