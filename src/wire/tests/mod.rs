//! Each dialect from bytes to bytes, and what it makes of bad input; one file for each.

mod bounds;
mod cohere;
mod declare;
mod error;
mod infinity;
mod instruction;
mod jina;
mod nim;
mod oip;
mod podium;
mod repository;
mod settings;
mod tei;
mod vllm;
mod voyage;

use super::{ApiError, Ask, Decoded, Dialect, Encoded, Pins, Place, Settings, Stamp};
use crate::base::{DeviceNs, Nanodollars, Ns, Tokens};
use crate::rerank::{Degradation, Outcome, Receipt, Served, Truncated};
use http::HeaderMap;
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
        without_instruction: Vec::new(),
        scores: scores.to_vec(),
        truncated: truncated.clone(),
        tokens: Tokens(21),
        receipt: Receipt {
            served: Served::TopK { k: 2 },
            degraded: Some(Degradation::PredictedLate),
            budget: Some(Ns::from_millis(50)),
            elapsed: Ns::from_millis(12),
            queue: Ns::from_millis(4),
            tokenise: Ns::from_millis(1),
            compute: Ns::from_millis(8),
            model: "served".into(),
            version: "0123456789ab".into(),
            device_kind: "cpu".into(),
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

/// Pins each path of a dialect to it.
fn pins(dialect: Dialect) -> Pins {
    let pin = |path| dialect.spec().paths.contains(&path).then_some(dialect);
    Pins { rerank: pin("/rerank"), v1_rerank: pin("/v1/rerank"), v2_rerank: pin("/v2/rerank") }
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
fn a_boolean_as_a_string_is_read_and_said() {
    // RAGFlow's clients write them so.
    let body = json!({"query": "q", "documents": ["a"], "return_documents": "True"});
    let decoded = decoded("/v1/rerank", &body);
    assert!(decoded.request.return_documents);
    assert_eq!(decoded.warnings, ["`return_documents` is a string, and was read as a boolean"]);
    let body = json!({"query": "q", "documents": ["a"], "return_documents": "FALSE"});
    assert!(!try_decode("/v1/rerank", &body).unwrap().request.return_documents);
    let (_, error) =
        try_decode("/v1/rerank", &json!({"query": "q", "documents": ["a"], "return_documents": "yes"}))
            .unwrap_err();
    assert_eq!(error, "return_documents: must be a boolean, and is a string");
}

/// Dify's plugin for OpenAI-compatible servers sends vLLM's content parts, also to `/v1/rerank`.
#[test]
fn a_document_that_may_be_an_object_may_have_content_parts() {
    let part = |text: &str| json!({"type": "text", "text": text});
    let image = json!({"type": "image_url", "image_url": {"url": "x"}});
    for (path, name) in [
        ("/v1/rank", "documents"),
        ("/v1/rerank", "documents"),
        ("/rerank", "documents"),
        ("/v1/ranking", "passages"),
    ] {
        let body = |document: Value| json!({"query": "q", name: [document]});
        for (document, expected) in [
            (json!({"content": [part("a")]}), "a"),
            (json!({"content": [part("a"), part("b")]}), "a\nb"),
            (json!({"content": "a"}), "a"),
            (json!({"content": [{"text": "a"}]}), "a"),
            (json!({"text": null, "content": "a"}), "a"),
            // Documents are objects with any other fields.
            (json!({"text": "a", "type": "news", "content": [image]}), "a"),
        ] {
            assert_eq!(&*decoded(path, &body(document)).request.documents[0], expected, "{path}");
        }
        for document in [
            json!({"content": [part("a"), image]}),
            json!({"content": [{"type": "image_url", "text": "a"}]}),
            json!({"content": []}),
            json!({"content": 7}),
            json!({"text": 7}),
            json!({}),
        ] {
            let (_, error) = try_decode(path, &body(document)).unwrap_err();
            assert_eq!(
                error,
                format!("{name}[0]: must have a `text`, or a `content` of type text"),
                "{path}"
            );
        }
    }
}

/// Documents of dialects that have objects are left out: a caller's own fields are ignored in them.
#[test]
fn a_field_of_a_wrong_type_is_refused_or_warned_of() {
    let documents = ["a".to_owned()];
    for dialect in Dialect::ALL {
        let settings = Settings { pins: pins(dialect), ..Settings::default() };
        let path = dialect.ask_path(Some("m"));
        let parameters =
            ["raw_scores", "instruction", "latency_budget_ms", "timeout", "priority", "policy", "top_k"];
        let (fields, below): (&[&str], &str) = match dialect {
            Dialect::Oip => (&parameters, "parameters"),
            _ => (dialect.spec().fields, ""),
        };
        for name in fields {
            for wrong in [json!({"no": 1}), json!([7]), json!("no such word"), json!(true), json!(1.5)] {
                let ask =
                    dialect.ask(Some("m"), Ask { query: "q", documents: &documents, instruction: None });
                let mut body: Value = serde_json::from_slice(&ask).unwrap();
                if below.is_empty() {
                    body[*name] = wrong.clone();
                } else {
                    body[below][*name] = wrong.clone();
                }
                let bytes = serde_json::to_vec(&body).unwrap();
                match decode(&path, &HeaderMap::new(), &bytes, &settings) {
                    Ok(decoded) => {
                        let warned = decoded.warnings.iter().any(|warning| warning.contains(*name));
                        assert!(warned || fits(name, &wrong), "{}: {name}: {wrong}", dialect.name());
                    }
                    Err((_, error)) => {
                        let field = error.field.expect("a field is to blame");
                        assert!(field.contains(*name), "{}: {name}: {field}", dialect.name());
                    }
                }
            }
        }
    }
}

/// Whether a value of [`a_field_of_a_wrong_type_is_refused_or_warned_of`] is of a field's type.
fn fits(name: &str, value: &Value) -> bool {
    match value {
        Value::String(_) => [
            "model",
            "query",
            "documents",
            "user",
            "text_1",
            "text_2",
            "queries",
            "items",
            "data_1",
            "data_2",
            "instruction",
            "instruct",
        ]
        .contains(&name),
        Value::Bool(_) => {
            let prefixes = ["return_", "raw_scores", "truncat", "use_activation", "activation"];
            prefixes.iter().any(|prefix| name.starts_with(prefix))
        }
        Value::Number(_) => ["latency_budget_ms", "timeout"].contains(&name),
        _ => false,
    }
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
        let settings = Settings { pins: pins(dialect), ..Settings::default() };
        let body = dialect.ask(Some("m"), Ask { query: "q", documents: &documents, instruction: None });
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
