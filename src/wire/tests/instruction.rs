//! A request's instruction, by the fields that peers have for it and by header.

use super::{decode, decoded, oip_json, try_decode};
use crate::rerank::Refusal;
use crate::wire::{Ask, Decoded, Dialect, Settings};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

fn documents() -> Value {
    json!({"query": "q", "documents": ["a"]})
}

fn texts() -> Value {
    json!({"query": "q", "texts": ["a"]})
}

fn with(mut body: Value, field: &str, value: Value) -> Value {
    body[field] = value;
    body
}

fn by_header(path: &str, body: &Value, value: &[u8]) -> Result<Decoded, (Dialect, String)> {
    let value = HeaderValue::from_bytes(value).unwrap();
    let headers = HeaderMap::from_iter([("x-podium-instruction".parse().unwrap(), value)]);
    decode(path, &headers, &serde_json::to_vec(body).unwrap(), &Settings::default())
        .map_err(|(dialect, error)| (dialect, error.full_message()))
}

/// What a refusal of the request's instruction names.
fn refused(decoded: &Decoded) -> String {
    let refusal = Refusal::TooLong { field: "instruction".to_owned(), message: "is too long".to_owned() };
    decoded.reply.error(&refusal).full_message()
}

#[test]
fn an_instruction_is_read_by_each_name_that_clients_have_for_it() {
    let rows = [
        ("/v1/rank", documents(), &["instruction"][..], Dialect::Podium),
        ("/v1/rerank", documents(), &["instruction", "instruct"], Dialect::Vllm),
        ("/v2/rerank", documents(), &["instruction", "instruct"], Dialect::Vllm),
        ("/rerank", documents(), &["instruction", "instruct"], Dialect::Vllm),
        ("/score", json!({"text_1": "q", "text_2": "a"}), &["instruction", "instruct"], Dialect::VllmScore),
        ("/rerank", texts(), &["instruction", "instruct"], Dialect::Tei),
    ];
    for (path, body, names, dialect) in rows {
        for name in names {
            for text in ["judge \u{4e2d}", ""] {
                let decoded = decoded(path, &with(body.clone(), name, json!(text)));
                assert_eq!(decoded.request.instruction.as_deref(), Some(text), "{path} {name}");
                assert_eq!(decoded.reply.dialect(), dialect, "{path} {name}");
                assert!(decoded.warnings.is_empty(), "{path} {name}: {:?}", decoded.warnings);
                assert_eq!(refused(&decoded), format!("{name}: is too long"), "{path}");
            }
            let without = decoded(path, &with(body.clone(), name, Value::Null));
            assert_eq!(without.request.instruction, None, "{path} {name}");
            let (_, error) = try_decode(path, &with(body.clone(), name, json!(["judge"]))).unwrap_err();
            assert_eq!(error, format!("{name}: must be a string, and is a list"), "{path}");
        }
    }
}

#[test]
fn an_instruction_is_a_parameter_of_the_open_inference_protocol() {
    let path = "/v2/models/m/infer";
    let body = |value: Value| with(oip_json(), "parameters", json!({"instruction": value}));
    let decoded = decoded(path, &body(json!("judge")));
    assert_eq!(decoded.request.instruction.as_deref(), Some("judge"));
    assert!(decoded.warnings.is_empty(), "{:?}", decoded.warnings);
    assert_eq!(refused(&decoded), "parameters.instruction: is too long");
    let (_, error) = try_decode(path, &body(json!(7))).unwrap_err();
    assert_eq!(error, "parameters.instruction: must be a string");
}

#[test]
fn an_instruction_is_what_vllm_renders_a_chat_template_with() {
    let body = |values: Value| with(documents(), "chat_template_kwargs", values);
    let read = decoded("/rerank", &body(json!({"instruction": "judge"})));
    assert_eq!(read.reply.dialect(), Dialect::Vllm);
    assert_eq!(read.request.instruction.as_deref(), Some("judge"));
    assert!(read.warnings.is_empty(), "{:?}", read.warnings);
    assert_eq!(refused(&read), "chat_template_kwargs.instruction: is too long");
    let others = decoded(
        "/score",
        &json!({"text_1": "q", "text_2": "a", "chat_template_kwargs": {
            "instruction": null, "enable_thinking": false,
        }}),
    );
    assert_eq!(others.request.instruction, None);
    assert_eq!(
        others.warnings,
        ["`chat_template_kwargs.enable_thinking` was ignored: `instruction` is read"]
    );
    let both = with(body(json!({"instruction": "judge"})), "instruct", json!("weigh"));
    let both = decoded("/v2/rerank", &both);
    assert_eq!(both.request.instruction.as_deref(), Some("weigh"));
    assert_eq!(
        both.warnings,
        ["`chat_template_kwargs.instruction` was ignored: another instruction was read"]
    );
    for (values, message) in [
        (json!({"instruction": 7}), "chat_template_kwargs.instruction: must be a string"),
        (json!("judge"), "chat_template_kwargs: must be an object, and is a string"),
    ] {
        let (_, error) = try_decode("/rerank", &body(values)).unwrap_err();
        assert_eq!(error, message);
    }
}

#[test]
fn a_client_of_ours_writes_it_where_its_dialect_has_it() {
    let documents = ["a".to_owned()];
    let ask = Ask { query: "q", documents: &documents, instruction: Some("judge") };
    for dialect in Dialect::ALL.into_iter().filter(|dialect| dialect.takes_instruction()) {
        let path = dialect.ask_path(Some("m"));
        let decoded =
            decode(&path, &HeaderMap::new(), &dialect.ask(Some("m"), ask), &Settings::default()).unwrap();
        assert_eq!(decoded.request.instruction.as_deref(), Some("judge"), "{}", dialect.name());
    }
    let without = Dialect::ALL.map(|dialect| (!dialect.takes_instruction()).then(|| dialect.name()));
    let without: Vec<&str> = without.into_iter().flatten().collect();
    assert_eq!(without, ["cohere", "cohere_v2", "jina", "voyage", "tei_predict", "infinity", "nim"]);
}

#[test]
fn an_instruction_that_is_null_is_absent_in_every_dialect() {
    let rows = [
        ("/v1/rank", with(documents(), "instruction", Value::Null)),
        ("/v1/rerank", with(documents(), "instruction", Value::Null)),
        ("/rerank", with(texts(), "instruct", Value::Null)),
        ("/score", json!({"text_1": "q", "text_2": "a", "instruct": null})),
        ("/predict", json!({"inputs": ["q", "a"], "instruction": null})),
        ("/v1/ranking", json!({"query": {"text": "q"}, "passages": [{"text": "a"}], "instruction": null})),
        ("/v2/models/m/infer", with(oip_json(), "parameters", json!({"instruction": null, "top_k": null}))),
    ];
    for (path, body) in rows {
        let decoded = decoded(path, &body);
        assert_eq!(decoded.request.instruction, None, "{path}");
        assert!(decoded.warnings.is_empty(), "{path}: {:?}", decoded.warnings);
    }
}

#[test]
fn a_header_that_is_read_once_may_not_be_there_twice() {
    for name in [
        "x-podium-instruction",
        "x-podium-latency-budget-ms",
        "x-podium-priority",
        "x-podium-policy",
        "x-podium-top-k",
        "x-podium-truncation",
        "x-podium-truncation-side",
        "x-podium-pair-tokens-max",
        "x-podium-query-tokens-max",
        "x-podium-document-tokens-max",
    ] {
        let mut headers = HeaderMap::new();
        headers.append(name, HeaderValue::from_static("1"));
        headers.append(name, HeaderValue::from_static("1"));
        let body = serde_json::to_vec(&documents()).unwrap();
        let (_, error) = decode("/v1/rank", &headers, &body, &Settings::default()).unwrap_err();
        assert_eq!(error.full_message(), format!("{name}: is there twice; send one such header"));
    }
}

#[test]
fn of_two_names_one_is_read_and_the_other_told() {
    let body = with(with(documents(), "instruct", json!("a")), "instruction", json!("b"));
    let decoded = decoded("/rerank", &body);
    assert_eq!(decoded.request.instruction.as_deref(), Some("b"));
    assert_eq!(decoded.warnings, ["`instruct` was ignored: `instruction` was read"]);
}

#[test]
fn a_dialect_without_the_field_says_that_it_ignored_it() {
    for (path, body) in [
        ("/v1/ranking", json!({"query": {"text": "q"}, "passages": [{"text": "a"}]})),
        ("/predict", json!({"inputs": ["q", "a"]})),
    ] {
        let decoded = decoded(path, &with(body, "instruction", json!("judge")));
        assert_eq!(decoded.request.instruction, None, "{path}");
        assert_eq!(decoded.warnings, ["unknown field `instruction` was ignored"], "{path}");
    }
}

#[test]
fn the_header_works_in_every_dialect_and_wins_over_the_body() {
    let rows = [
        ("/v1/rank", with(documents(), "instruction", json!("other"))),
        ("/v1/rerank", documents()),
        ("/v2/rerank", documents()),
        ("/rerank", texts()),
        ("/rerank", with(documents(), "raw_scores", json!(true))),
        ("/rerank", with(documents(), "instruct", json!("other"))),
        ("/predict", json!({"inputs": ["q", "a"]})),
        ("/score", json!({"text_1": "q", "text_2": "a"})),
        ("/v1/ranking", json!({"query": {"text": "q"}, "passages": [{"text": "a"}]})),
        ("/v2/models/m/infer", oip_json()),
    ];
    for (path, body) in rows {
        let decoded = by_header(path, &body, b"judge").unwrap();
        assert_eq!(decoded.request.instruction.as_deref(), Some("judge"), "{path}");
        assert_eq!(refused(&decoded), "x-podium-instruction: is too long", "{path}");
    }
}

#[test]
fn the_header_is_utf_8_plain_or_percent_encoded() {
    for (value, expected) in [
        (&b"judge it"[..], "judge it"),
        (b"", ""),
        ("caf\u{e9}".as_bytes(), "caf\u{e9}"),
        (b"caf%C3%A9%0Atwo lines", "caf\u{e9}\ntwo lines"),
        (b"at least 50% of it, 100%", "at least 50% of it, 100%"),
        (b"50%25", "50%"),
    ] {
        let decoded = by_header("/v1/rank", &documents(), value).unwrap();
        assert_eq!(decoded.request.instruction.as_deref(), Some(expected));
    }
    for value in [&b"caf\xe9"[..], b"caf%E9"] {
        let (_, error) = by_header("/v1/rank", &documents(), value).unwrap_err();
        assert_eq!(error, "x-podium-instruction: is not UTF-8, plain or percent-encoded");
    }
}
