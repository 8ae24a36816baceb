//! Each dialect from bytes to bytes, and what it makes of bad input.

use super::{ApiError, Ask, Code, Decoded, Dialect, Encoded, Pins, Place, Settings, Stamp};
use crate::base::{DeviceNs, Nanodollars, Ns, Side, Tokens};
use crate::rerank::{
    Degradation, Outcome, Overflow, PairTokens, Priority, Query, Receipt, Refusal, ScoreForm, Served,
    Truncated, Truncation,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// As the server does it.
fn decode(
    path: &str,
    headers: &HeaderMap,
    body: &[u8],
    settings: &Settings,
) -> Result<Decoded, (Dialect, ApiError)> {
    super::decode(&Place::of(path).expect("the path ranks"), headers, body, settings)
}

fn try_decode(path: &str, body: &Value) -> Result<Decoded, (Dialect, String)> {
    decode(path, &HeaderMap::new(), &serde_json::to_vec(body).unwrap(), &Settings::default())
        .map_err(|(dialect, error)| (dialect, error.full_message()))
}

fn decoded(path: &str, body: &Value) -> Decoded {
    try_decode(path, body).unwrap_or_else(|error| panic!("{path}: {error:?}"))
}

/// Documents with a score of 0.5 lost tokens, and so did the query then.
fn outcome(scores: &[f32]) -> Outcome {
    let truncated: Vec<bool> = scores.iter().map(|&score| score == 0.5).collect();
    Outcome {
        scores: scores.to_vec(),
        truncated: truncated.clone(),
        tokens: Tokens(21),
        receipt: Receipt {
            served: Served::TopK { k: 2 },
            degraded: Some(Degradation::PredictedLate),
            budget: Some(Ns::from_millis(50)),
            elapsed: Ns::from_millis(12),
            queue: Ns::from_millis(4),
            compute: Ns::from_millis(8),
            model: "served".into(),
            version: "0123456789ab".into(),
            device: DeviceNs(1_234),
            cost: Some(Nanodollars(56)),
            joules: Some(0.25),
            truncated: Truncated {
                documents: truncated.iter().map(|&truncated| u32::from(truncated)).sum(),
                query_tokens: 91 * u32::from(truncated.contains(&true)),
            },
        },
    }
}

fn encode(decoded: &Decoded, scores: &[f32]) -> Encoded {
    let stamp = Stamp { id: "ab12".into(), created_unix: 1_700_000_000 };
    decoded.reply.encode(&decoded.request, &outcome(scores), &stamp, &decoded.warnings)
}

fn answer(path: &str, body: &Value, scores: &[f32]) -> Value {
    let encoded = encode(&decoded(path, body), scores);
    assert_eq!(encoded.status, 200);
    serde_json::from_slice(&encoded.body).unwrap()
}

fn header<'a>(encoded: &'a Encoded, name: &str) -> Option<&'a str> {
    encoded.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_str().unwrap())
}

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
fn answers_are_described_field_by_field() {
    let document: Value = serde_json::from_slice(super::openapi()).unwrap();
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
fn cohere_v1_carries_what_jina_and_vllm_look_for() {
    let body =
        json!({"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "return_documents": true});
    let answer = answer("/v1/rerank", &body, &[0.0, 40.0]);
    let first = json!({"index": 1, "relevance_score": 1.0, "document": {"text": "b"}});
    assert_eq!(answer["results"][0], first);
    assert_eq!(answer["results"][1]["relevance_score"], 0.5);
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
fn infinity_tells_what_does_not_validate_as_fastapi_does() {
    let body = json!({"query": "q", "documents": ["a", 7], "raw_scores": true});
    let bytes = serde_json::to_vec(&body).unwrap();
    let (dialect, error) = decode("/rerank", &HeaderMap::new(), &bytes, &Settings::default()).unwrap_err();
    let stamp = Stamp { id: "7".into(), created_unix: 0 };
    let answer: Value = serde_json::from_slice(&super::encode_error(dialect, &error, &stamp).body).unwrap();
    let message = "documents[1]: must be a string, and is a number";
    let detail = json!([{"loc": ["body", "documents", 1], "msg": message, "type": "value_error"}]);
    assert_eq!(answer, json!({"detail": detail}));
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
fn jina_gives_documents_unless_they_are_declined() {
    let pins = Pins { v1_rerank: Some(Dialect::Jina), ..Pins::default() };
    let settings = Settings { pins, ..Settings::default() };
    let body = br#"{"model": "m", "query": "q", "documents": ["a"]}"#;
    let decoded = decode("/v1/rerank", &HeaderMap::new(), body, &settings).unwrap();
    let answer: Value = serde_json::from_slice(&encode(&decoded, &[0.0]).body).unwrap();
    assert_eq!(answer["results"], json!([{"index": 0, "relevance_score": 0.5, "document": {"text": "a"}}]));
}

#[test]
fn voyage_answers_with_data() {
    let body = json!({"model": "m", "query": "q", "documents": ["a", "b"], "top_k": 1, "truncation": false});
    assert_eq!(decoded("/v1/rerank", &body).request.truncation, Truncation::by(Overflow::Refuse));
    let answer = answer("/v1/rerank", &body, &[0.0, -1.0]);
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["data"], json!([{"index": 0, "relevance_score": 0.5}]));
    assert_eq!(answer["usage"], json!({"total_tokens": 21}));
}

#[test]
fn tei_answers_with_a_bare_list() {
    let body = json!({"query": "q", "texts": ["a", "b"], "raw_scores": true, "return_text": true});
    let request = &decoded("/rerank", &body).request;
    assert_eq!((request.truncation, request.score), (Truncation::default(), ScoreForm::Logit));
    let expected =
        json!([{"index": 1, "text": "b", "score": 3.25}, {"index": 0, "text": "a", "score": -1.0}]);
    assert_eq!(answer("/rerank", &body, &[-1.0, 3.25]), expected);
    let left = json!({"query": "q", "texts": ["a"], "truncate": true, "truncation_direction": "Left"});
    assert_eq!(
        decoded("/rerank", &left).request.truncation,
        Truncation { side: Some(Side::Left), ..Truncation::by(Overflow::LongestFirst) }
    );
}

#[test]
fn vllm_s_top_n_of_0_means_all() {
    let body = json!({"query": "q", "documents": ["a", "b"], "top_n": 0, "truncate_prompt_tokens": 7});
    for path in ["/rerank", "/v1/rerank", "/v2/rerank"] {
        assert_eq!(decoded(path, &body).request.truncation.pair_tokens, PairTokens::Within(7));
        let answer = answer(path, &body, &[0.0, -1.0]);
        assert_eq!(answer["results"].as_array().unwrap().len(), 2);
        assert_eq!(answer["results"][0]["document"], json!({"text": "a"}));
        assert_eq!(answer["id"], "rerank-ab12");
    }
}

#[test]
fn vllm_scores_one_to_many_and_many_to_many_in_order() {
    let one = json!({"text_1": "q", "text_2": ["a", "b"]});
    let data =
        json!([{"index": 0, "object": "score", "score": 0.5}, {"index": 1, "object": "score", "score": 1.0}]);
    assert_eq!(answer("/score", &one, &[0.0, 40.0])["data"], data);
    let many = json!({"queries": ["p", "q"], "documents": ["a", "b"]});
    let expected = Query::PerDocument(vec!["p".into(), "q".into()]);
    assert_eq!(decoded("/v1/score", &many).request.query, expected);
    let (_, error) = try_decode("/score", &json!({"text_1": ["p", "q"], "text_2": ["a"]})).unwrap_err();
    assert_eq!(error, "text_1: has 2 texts, and text_2 has 1: give one, or as many");
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

fn oip_json() -> Value {
    json!({
        "id": "mine", "inputs": [
            {"name": "QUERY", "shape": [1], "datatype": "BYTES", "data": ["q"]},
            {"name": "PASSAGE", "shape": [2, 1], "datatype": "BYTES", "data": [["a"], ["b"]]},
        ],
        "outputs": [{"name": "SCORE"}, {"name": "INDEX"}], "parameters": {"raw_scores": true},
    })
}

#[test]
fn an_open_inference_parameter_that_is_not_read_is_a_warning() {
    let mut body = oip_json();
    body["parameters"]["top_n"] = json!(1);
    assert_eq!(decoded("/v2/models/m/infer", &body).warnings.len(), 1);
    assert!(decoded("/v2/models/m/infer", &oip_json()).warnings.is_empty());
}

#[test]
fn the_open_inference_protocol_speaks_json() {
    let path = "/v2/models/owner%2Fname/versions/3/infer";
    assert_eq!(decoded(path, &oip_json()).request.model.as_deref(), Some("owner/name"));
    let answer = answer(path, &oip_json(), &[-1.5, 2.0]);
    // Whatever was asked for, the version is that of who answered.
    assert_eq!((&answer["id"], &answer["model_version"]), (&json!("mine"), &json!("0123456789ab")));
    assert_eq!(answer["parameters"]["podium_model"], "served");
    let outputs = json!([
        {"name": "SCORE", "datatype": "FP32", "shape": [2, 1], "data": [-1.5, 2.0]},
        {"name": "INDEX", "datatype": "INT64", "shape": [2], "data": [1, 0]},
    ]);
    assert_eq!(answer["outputs"], outputs);
}

fn binary_body(texts: &[u8], size: usize) -> (HeaderMap, Vec<u8>) {
    let head = json!({
        "inputs": [
            {"name": "QUERY", "shape": [1], "datatype": "BYTES", "data": ["q"]},
            {"name": "PASSAGE", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": size}},
        ],
        "outputs": [{"name": "SCORE", "parameters": {"binary_data": true}}],
    });
    let mut body = serde_json::to_vec(&head).unwrap();
    let name = HeaderName::from_static("inference-header-content-length");
    let headers = HeaderMap::from_iter([(name, HeaderValue::from(body.len()))]);
    body.extend(texts);
    (headers, body)
}

#[test]
fn the_open_inference_protocol_speaks_binary() {
    let (headers, body) = binary_body(b"\x01\0\0\0a\x02\0\0\0bc", 11);
    let decoded = decode("/v2/models/m/infer", &headers, &body, &Settings::default()).unwrap();
    assert_eq!(&*decoded.request.documents[1], "bc");
    let encoded = encode(&decoded, &[0.0, 40.0]);
    let length: usize = header(&encoded, "inference-header-content-length").unwrap().parse().unwrap();
    let (head, data) = encoded.body.split_at(length);
    let head: Value = serde_json::from_slice(head).unwrap();
    assert_eq!(head["outputs"][0]["parameters"], json!({"binary_data_size": 8}));
    assert_eq!(data, [0.5f32.to_le_bytes(), 1.0f32.to_le_bytes()].concat());
}

#[test]
fn binary_tensors_that_lie_are_named() {
    for (texts, size, expected) in [
        (&b"\x01\0\0\0a\x02\0\0\0b"[..], 10, "PASSAGE[1]: is cut short"),
        (b"\x01\0\0\0a\xff\xff\xff\xff", 9, "PASSAGE[1]: is cut short"),
        (b"\x01\0\0\0a", 99, "PASSAGE: binary_data_size is past the end of the body"),
        (b"\x01\0\0\0a", 5, "PASSAGE: has 1 elements, and its shape is [2]"),
        (b"\x01\0\0\0a\x01\0\0\0\xff", 10, "PASSAGE[1]: is not UTF-8 at byte 0"),
        (b"\x01\0\0\0a\x01\0\0\0bxx", 10, "2 bytes of tensor data are left over"),
    ] {
        let (headers, body) = binary_body(texts, size);
        let (_, error) = decode("/v2/models/m/infer", &headers, &body, &Settings::default()).unwrap_err();
        assert_eq!(error.full_message(), expected);
    }
}

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
            "documents[0]: the object has no `text`",
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
fn an_empty_list_is_fine_where_it_has_an_answer() {
    assert_eq!(answer("/v1/rank", &json!({"query": "q", "documents": []}), &[])["results"], json!([]));
}

#[test]
fn strict_servers_refuse_unknown_fields() {
    let settings = Settings { strict: true, ..Settings::default() };
    let body = br#"{"query": "q", "documents": [], "topn": 3}"#;
    let (_, error) = decode("/v1/rank", &HeaderMap::new(), body, &settings).unwrap_err();
    assert_eq!(error.code, Code::InvalidRequest);
    assert_eq!(error.full_message(), "topn: is not a field of this endpoint");
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
fn a_score_that_is_no_number_is_an_error() {
    let decoded = decoded("/v1/rank", &json!({"query": "q", "documents": ["a"]}));
    let encoded = encode(&decoded, &[f32::NAN]);
    assert_eq!((encoded.status.as_u16(), header(&encoded, "x-podium-error")), (500, Some("model_failed")));
}

#[test]
fn a_body_that_vllm_and_infinity_read_is_answered_with_what_both_clients_read() {
    // As LiteLLM sends it: to vLLM with `return_documents`, to Infinity with or without.
    let rows = [
        (json!({"model": "m", "query": "q", "documents": ["a"], "top_n": 1}), 0),
        (json!({"model": "m", "query": "q", "documents": ["a"], "return_documents": true}), 1),
        (json!({"model": "m", "query": "q", "documents": ["a"], "return_documents": false}), 0),
    ];
    for (body, warnings) in rows {
        let decoded = decoded("/rerank", &body);
        assert_eq!(decoded.warnings.len(), warnings, "{:?}", decoded.warnings);
        let answer: Value = serde_json::from_slice(&encode(&decoded, &[0.0]).body).unwrap();
        assert_eq!(answer["results"], json!([{"index": 0, "relevance_score": 0.5}]));
        assert_eq!((&answer["object"], &answer["created"]), (&json!("rerank"), &json!(1_700_000_000)));
        assert_eq!(answer["usage"], json!({"prompt_tokens": 21, "total_tokens": 21}));
    }
    // What only vLLM takes gets vLLM's answer.
    for body in [
        json!({"query": "q", "documents": ["a"], "top_n": 0}),
        json!({"query": "q", "documents": ["a"], "top_n": -1}),
        json!({"query": "q", "documents": [{"text": "a"}]}),
        json!({"query": "q", "documents": "a"}),
        json!({"query": "q", "documents": ["a"], "use_activation": true}),
        json!({"query": "q", "documents": ["a"], "max_tokens_per_doc": 9}),
    ] {
        let results = json!([{"index": 0, "relevance_score": 0.5, "document": {"text": "a"}}]);
        assert_eq!(answer("/rerank", &body, &[0.0])["results"], results, "{body}");
    }
    let pinned = |dialect| {
        let settings =
            Settings { pins: Pins { rerank: Some(dialect), ..Pins::default() }, ..Settings::default() };
        let body = br#"{"query": "q", "documents": ["a"], "return_documents": true}"#;
        let decoded = decode("/rerank", &HeaderMap::new(), body, &settings).unwrap();
        let answer: Value = serde_json::from_slice(&encode(&decoded, &[0.0]).body).unwrap();
        answer["results"][0]["document"].clone()
    };
    assert_eq!(pinned(Dialect::Vllm), json!({"text": "a"}));
    assert_eq!(pinned(Dialect::Infinity), json!("a"));
}

#[test]
fn tei_truncates_unless_that_is_declined() {
    let of = |body: Value| decoded("/rerank", &body).request.truncation.policy;
    assert_eq!(of(json!({"query": "q", "texts": ["a"]})), None);
    assert_eq!(of(json!({"query": "q", "texts": ["a"], "truncate": null})), None);
    assert_eq!(of(json!({"query": "q", "texts": ["a"], "truncate": true})), Some(Overflow::LongestFirst));
    assert_eq!(of(json!({"query": "q", "texts": ["a"], "truncate": false})), Some(Overflow::Refuse));
}

#[test]
fn tei_answers_at_its_root_and_sagemaker_s_path_and_takes_a_number() {
    let body = json!({"model": "m", "query": "q", "texts": ["a", "b", "c"], "top_n": 2});
    for path in ["/", "/invocations", "/rerank"] {
        let expected = json!([{"index": 2, "score": 1.0}, {"index": 0, "score": 0.5}]);
        assert_eq!(answer(path, &body, &[0.0, -1.0, 40.0]), expected);
        assert!(decoded(path, &body).warnings.is_empty());
    }
    let sglang = json!({"query": "q", "texts": ["a", "b"], "top_k": 1});
    assert_eq!(answer("/rerank", &sglang, &[0.0, -1.0]), json!([{"index": 0, "score": 0.5}]));
}

#[test]
fn tei_s_headers_count_and_time() {
    let encoded = encode(&decoded("/rerank", &json!({"query": "ä?", "texts": ["abc", "d"]})), &[0.0, 1.0]);
    for (name, expected) in [
        ("x-compute-characters", "8"),
        ("x-compute-tokens", "21"),
        ("x-compute-time", "12"),
        ("x-total-time", "12"),
        ("x-queue-time", "4"),
        ("x-inference-time", "8"),
    ] {
        assert_eq!(header(&encoded, name), Some(expected), "{name}");
    }
}

#[test]
fn tei_predicts_a_pair_or_many_in_order() {
    let one = json!({"inputs": ["q", "a"]});
    assert_eq!(answer("/predict", &one, &[0.0]), json!([{"score": 0.5, "label": "LABEL_0"}]));
    let many = json!({"inputs": [["p", "a"], ["q", "b"]], "raw_scores": true});
    let expected = json!([[{"score": -1.5, "label": "LABEL_0"}], [{"score": 2.0, "label": "LABEL_0"}]]);
    assert_eq!(answer("/predict", &many, &[-1.5, 2.0]), expected);
    assert_eq!(decoded("/predict", &many).request.query, Query::PerDocument(vec!["p".into(), "q".into()]));
    // A list of one is a list.
    let list = json!({"inputs": [["q", "a"]]});
    assert_eq!(answer("/predict", &list, &[0.0]), json!([[{"score": 0.5, "label": "LABEL_0"}]]));
    let pair = "must be a pair of strings: this model scores pairs";
    for (body, expected) in [
        (json!({"inputs": "alone"}), format!("inputs: {pair}")),
        (json!({"inputs": ["alone"]}), format!("inputs: {pair}")),
        (json!({"inputs": ["a", "b", "c"]}), format!("inputs: {pair}")),
        (json!({"inputs": [["a", "b"], ["alone"]]}), format!("inputs[1]: {pair}")),
        (json!({"inputs": [["a", "b"], ["a", 7]]}), format!("inputs[1]: {pair}")),
        (json!({}), format!("inputs: {pair}")),
    ] {
        assert_eq!(try_decode("/predict", &body).unwrap_err(), (Dialect::TeiPredict, expected), "{body}");
    }
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
        let encoded = super::encode_error(dialect, &error, &stamp);
        let answer: Value = serde_json::from_slice(&encoded.body).unwrap();
        let found = (encoded.status.as_u16(), answer.pointer(place).cloned());
        assert_eq!(found, (status, Some(json!(expected))), "{path} {body}: {answer}");
    }
}

#[test]
fn what_the_engine_refuses_has_the_status_that_the_peer_gives_it() {
    let long = Refusal::TooLong { field: "query".into(), message: "has 600 tokens".into() };
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
        let encoded = super::encode_error(reply.dialect(), &reply.error(refusal), &stamp);
        let answer: Value = serde_json::from_slice(&encoded.body).unwrap();
        let found = (encoded.status.as_u16(), answer.pointer(place).cloned());
        assert_eq!(found, (status, Some(json!(expected))), "{path} {body}: {answer}");
    }
}

#[test]
fn vllm_s_fields_are_honoured() {
    let body = json!({
        "query": "q", "documents": ["a"], "truncate_prompt_tokens": -1, "truncation_side": "left",
        "max_tokens_per_doc": 9, "max_tokens_per_query": 5, "use_activation": false, "priority": -3,
    });
    let expected = Truncation {
        side: Some(Side::Left),
        query_tokens_max: Some(5),
        document_tokens_max: Some(9),
        ..Truncation::default()
    };
    for path in ["/rerank", "/v1/rerank"] {
        let decoded = decoded(path, &body);
        assert!(decoded.warnings.is_empty(), "{:?}", decoded.warnings);
        let request = &decoded.request;
        assert_eq!((request.truncation, request.options.priority), (expected, Priority::High));
        assert_eq!(answer(path, &body, &[-2.5])["results"][0]["relevance_score"], -2.5);
    }
    let logits = json!({"text_1": "q", "text_2": ["a", "b"], "use_activation": false});
    let data = json!([
        {"index": 0, "object": "score", "score": -2.5}, {"index": 1, "object": "score", "score": 3.0},
    ]);
    assert_eq!(answer("/score", &logits, &[-2.5, 3.0])["data"], data);
}

#[test]
fn vllm_s_texts_come_in_many_forms() {
    let part = |text: &str| json!({"type": "text", "text": text});
    let rows = [
        json!({"text_1": "q", "text_2": ["a", "b"]}),
        json!({"queries": "q", "documents": ["a", "b"]}),
        json!({"queries": ["q"], "items": ["a", "b"]}),
        json!({"data_1": "q", "data_2": ["a", "b"]}),
        json!({"data_1": {"content": [part("q")]}, "data_2": {"content": [part("a"), part("b")]}}),
        json!({"queries": part("q"), "documents": [part("a"), {"content": [part("b")]}]}),
        json!({"queries": {"content": "q"}, "documents": [{"text": "a"}, {"content": "b"}]}),
    ];
    for body in rows {
        let request = &decoded("/score", &body).request;
        assert_eq!(request.query, Query::Shared("q".to_owned()), "{body}");
        let documents: Vec<&str> = request.documents.iter().map(|text| &**text).collect();
        assert_eq!(documents, ["a", "b"], "{body}");
    }
    let one = json!({"query": "q", "documents": "a", "truncate_prompt_tokens": 9});
    assert_eq!(&*decoded("/rerank", &one).request.documents[0], "a");
    let two = json!({"query": "q", "documents": [{"content": [part("a"), part("b")]}]});
    assert_eq!(&*decoded("/rerank", &two).request.documents[0], "a\nb");
    let image = json!({"query": "q", "documents": ["a", {"type": "image_url", "image_url": {"url": "x"}}]});
    let (_, error) = try_decode("/rerank", &image).unwrap_err();
    assert_eq!(error, "documents[1]: must have a text, or content of type text");
}

#[test]
fn the_open_inference_protocol_s_parameters_are_triton_s() {
    let of = |parameters: Value| {
        let mut body = oip_json();
        body["parameters"] = parameters;
        decoded("/v2/models/m/infer", &body).request.options
    };
    let rows = [
        (json!(0), Priority::Normal),
        (json!(1), Priority::High),
        (json!(2), Priority::Normal),
        (json!(7), Priority::Low),
        (json!("high"), Priority::High),
    ];
    for (priority, expected) in rows {
        assert_eq!(of(json!({"priority": priority})).priority, expected, "{priority}");
    }
    assert_eq!(of(json!({"timeout": 20_000})).latency_budget, Some(Ns::from_millis(20)));
    assert_eq!(of(json!({"timeout": 0})).latency_budget, None);
    let mut wrong = oip_json();
    wrong["parameters"] = json!({"priority": -1});
    assert!(try_decode("/v2/models/m/infer", &wrong).is_err());
    let mut all = oip_json();
    all.as_object_mut().unwrap().remove("outputs");
    let answer = answer("/v2/models/m/infer", &all, &[-1.5, 2.0]);
    let names: Vec<&Value> =
        answer["outputs"].as_array().unwrap().iter().map(|output| &output["name"]).collect();
    assert_eq!(names, ["SCORE", "INDEX"]);
}

#[test]
fn a_boolean_as_a_string_is_read_and_said() {
    // RAGFlow's clients write them so.
    let body = json!({"query": "q", "documents": ["a"], "return_documents": "True"});
    let decoded = decoded("/v1/rerank", &body);
    assert!(decoded.request.return_documents);
    assert_eq!(decoded.warnings, ["`return_documents` is a string, and was read as a boolean"]);
    let (_, error) =
        try_decode("/v1/rerank", &json!({"query": "q", "documents": ["a"], "return_documents": "yes"}))
            .unwrap_err();
    assert_eq!(error, "return_documents: must be a boolean, and is a string");
}

#[test]
fn a_mark_of_the_byte_order_is_left_out() {
    for (path, body) in [
        ("/v1/rank", json!({"query": "q", "documents": ["a"]})),
        ("/rerank", json!({"query": "q", "texts": ["a"]})),
        ("/v2/models/m/infer", oip_json()),
    ] {
        let bytes = [b"\xef\xbb\xbf".as_slice(), &serde_json::to_vec(&body).unwrap()].concat();
        assert!(decode(path, &HeaderMap::new(), &bytes, &Settings::default()).is_ok(), "{path}");
    }
}

#[test]
fn a_message_stands_once_in_an_error() {
    for path in ["/v1/rank", "/v1/rerank", "/v2/rerank", "/rerank", "/score", "/predict", "/v1/ranking"] {
        let (dialect, error) =
            decode(path, &HeaderMap::new(), br#"{"query": 7}"#, &Settings::default()).unwrap_err();
        let stamp = Stamp { id: "7".into(), created_unix: 0 };
        let body = String::from_utf8(super::encode_error(dialect, &error, &stamp).body).unwrap();
        assert_eq!(body.matches(&error.message).count(), 1, "{path}: {body}");
    }
}

#[test]
fn a_path_is_known_with_a_slash_below_a_base_and_by_another_name() {
    let aliases = [("/v1/reranking", "/v1/rerank"), ("/api/v1/rerank", "/v1/rerank")];
    let settings = Settings {
        base_path: "/podium".to_owned(),
        aliases: aliases.map(|(alias, path)| (alias.to_owned(), path.to_owned())).into(),
        ..Settings::default()
    };
    assert_eq!(settings.check(), Ok(()));
    for (path, expected) in [
        ("/v1/rerank", "/v1/rerank"),
        ("/v1/rerank/", "/v1/rerank"),
        ("/podium/v1/rerank", "/v1/rerank"),
        ("/podium/v1/reranking//", "/v1/rerank"),
        ("/api/v1/rerank", "/v1/rerank"),
        ("/podiumx/v1/rerank", "/podiumx/v1/rerank"),
        ("/podium", "/"),
        ("/", "/"),
    ] {
        assert_eq!(settings.canonical(path), expected, "{path}");
    }
    assert_eq!(Settings::default().canonical("/rerank/"), "/rerank");
    for (base_path, alias, expected) in [
        ("podium", "", "base_path: `podium` must begin with a slash, and not end with one"),
        ("/podium/", "", "base_path: `/podium/` must begin with a slash, and not end with one"),
        ("", "x", "aliases: `x` must begin with a slash, and `/metrics` be a path that ranks"),
        ("", "/x", "aliases: `/x` must begin with a slash, and `/metrics` be a path that ranks"),
    ] {
        let aliases =
            [(alias.to_owned(), "/metrics".to_owned())].into_iter().filter(|(alias, _)| !alias.is_empty());
        let settings =
            Settings { base_path: base_path.to_owned(), aliases: aliases.collect(), ..Settings::default() };
        assert_eq!(settings.check(), Err(expected.to_owned()));
    }
}

#[test]
fn every_dialect_s_fields_and_answer_are_described() {
    let document: Value = serde_json::from_slice(super::openapi()).unwrap();
    let schema = |dialect: Dialect, kind: &str| {
        document["components"]["schemas"][format!("{}_{kind}", dialect.name())].clone()
    };
    let names =
        |object: &Value| -> BTreeSet<String> { object.as_object().unwrap().keys().cloned().collect() };
    let documents = ["a".to_owned()];
    for dialect in Dialect::ALL.into_iter().filter(|dialect| *dialect != Dialect::Podium) {
        let known = match dialect {
            Dialect::Oip => &["id", "parameters", "inputs", "outputs"],
            _ => dialect.spec().fields,
        };
        let known: BTreeSet<String> = known.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(names(&schema(dialect, "request")["properties"]), known, "{}", dialect.name());
        // What our own client asks.
        let pin = |path| dialect.spec().paths.contains(&path).then_some(dialect);
        let pins =
            Pins { rerank: pin("/rerank"), v1_rerank: pin("/v1/rerank"), v2_rerank: pin("/v2/rerank") };
        let settings = Settings { pins, ..Settings::default() };
        let body = dialect.ask(Some("m"), Ask { query: "q", documents: &documents });
        let decoded = decode(&dialect.ask_path(Some("m")), &HeaderMap::new(), &body, &settings).unwrap();
        assert_eq!(decoded.reply.dialect(), dialect);
        let answer: Value = serde_json::from_slice(&encode(&decoded, &[0.0]).body).unwrap();
        let described = schema(dialect, "answer");
        if answer.is_object() {
            let (found, all) = (names(&answer), names(&described["properties"]));
            assert!(found.is_subset(&all), "{}: {found:?}", dialect.name());
            for required in described["required"].as_array().unwrap() {
                assert!(found.contains(required.as_str().unwrap()), "{}: {required}", dialect.name());
            }
        } else {
            assert!(described["type"] == "array" || described["oneOf"].is_array(), "{}", dialect.name());
        }
    }
}
