//! vLLM: rerank and score.

use super::{answer, decode, decoded, encode, try_decode};
use crate::base::Side;
use crate::rerank::{PairTokens, Priority, Query, Truncation};
use crate::wire::{Dialect, Pins, Settings};
use http::HeaderMap;
use serde_json::{Value, json};

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
    let answer = answer("/score", &one, &[0.0, 40.0]);
    assert_eq!((&answer["object"], &answer["data"]), (&json!("list"), &data));
    assert_eq!(answer["id"], "score-ab12");
    let many = json!({"queries": ["p", "q"], "documents": ["a", "b"]});
    let expected = Query::PerDocument(vec!["p".into(), "q".into()]);
    assert_eq!(decoded("/v1/score", &many).request.query, expected);
    let (_, error) = try_decode("/score", &json!({"text_1": ["p", "q"], "text_2": ["a"]})).unwrap_err();
    assert_eq!(error, "text_1: has 2 texts, and text_2 has 1: give one, or as many");
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
    let query = json!({"query": {"content": [part("p"), part("q")]}, "documents": ["a"]});
    assert_eq!(decoded("/rerank", &query).request.query, Query::Shared("p\nq".to_owned()));
    let (_, error) = try_decode("/rerank", &json!({"query": ["q"], "documents": ["a"]})).unwrap_err();
    assert_eq!(error, "query: must be a string or an object with a `text`, and is a list");
    let image = json!({"query": "q", "documents": ["a", {"type": "image_url", "image_url": {"url": "x"}}]});
    let (_, error) = try_decode("/rerank", &image).unwrap_err();
    assert_eq!(error, "documents[1]: must have a `text`, or a `content` of type text");
}

#[test]
fn vllm_s_top_n_is_the_number_of_results() {
    for (top_n, expected) in [(1, 1), (2, 2), (3, 2), (0, 2), (-1, 2)] {
        let body = json!({"query": "q", "documents": ["a", "b"], "top_n": top_n, "use_activation": true});
        let answer = answer("/v1/rerank", &body, &[0.0, -1.0]);
        assert_eq!(answer["results"].as_array().unwrap().len(), expected, "{top_n}");
    }
}

#[test]
fn vllm_gives_documents_unless_they_are_declined() {
    for (asked, expected) in [(None, true), (Some(true), true), (Some(false), false)] {
        let body = json!({
            "query": "q", "documents": ["a"], "return_documents": asked, "truncate_prompt_tokens": 9,
        });
        let decoded = decoded("/rerank", &body);
        assert!(decoded.warnings.is_empty(), "{asked:?}: {:?}", decoded.warnings);
        assert_eq!(decoded.request.return_documents, expected, "{asked:?}");
    }
}

#[test]
fn only_a_list_of_strings_may_be_infinity_s() {
    for (documents, expected) in [
        (r#"["a"]"#, false),
        (r#"["a", {"text": "b"}]"#, true),
        (r#"[{"text": "a"}, "b"]"#, true),
        (r#""a""#, true),
    ] {
        // The order of the fields has no effect.
        for body in [
            format!(r#"{{"query": "q", "documents": {documents}}}"#),
            format!(r#"{{"documents": {documents}, "query": "q"}}"#),
        ] {
            let decoded = decode("/rerank", &HeaderMap::new(), body.as_bytes(), &Settings::default());
            assert_eq!(decoded.unwrap().request.return_documents, expected, "{body}");
        }
    }
}

#[test]
fn a_score_without_one_side_names_it() {
    for (side, expected) in [
        (json!({"queries": "q"}), "documents: is missing"),
        (json!({"documents": ["a"]}), "queries: is missing"),
        (json!({"items": ["a"]}), "queries: is missing"),
        (json!({"data_1": "q"}), "data_2: is missing"),
        (json!({"data_2": ["a"]}), "data_1: is missing"),
        (json!({"text_1": "q"}), "text_2: is missing"),
        (json!({"text_2": ["a"]}), "text_1: is missing"),
        (json!({}), "text_1: is missing"),
    ] {
        assert_eq!(try_decode("/score", &side).unwrap_err(), (Dialect::VllmScore, expected.to_owned()));
    }
}

#[test]
fn a_score_s_texts_are_there() {
    for (body, expected) in [
        (json!({"text_1": "", "text_2": "a"}), "text_1: must not be empty"),
        (json!({"text_1": ["p", ""], "text_2": ["a", "b"]}), "text_1[1]: must not be empty"),
        (json!({"text_1": [], "text_2": ["a"]}), "text_1: must have at least one element"),
        (json!({"text_1": "q", "text_2": []}), "text_2: must have at least one element"),
        (
            json!({"text_1": "q", "text_2": {"content": []}}),
            "text_2: must have a `text`, or a `content` of type text",
        ),
        (json!({"text_1": "q", "text_2": 7}), "text_2: must be a string or a list of strings"),
    ] {
        let found = try_decode("/score", &body).map(|decoded| decoded.request.documents.clone());
        assert_eq!(found, Err((Dialect::VllmScore, expected.to_owned())));
    }
    let both = json!({"text_1": "q", "text_2": ["a"], "queries": "p", "documents": ["b"]});
    let decoded = decoded("/score", &both);
    assert_eq!(decoded.request.query, Query::Shared("p".to_owned()));
    let ignored = |name| format!("`{name}` was ignored: `queries` and `documents` were read");
    assert_eq!(decoded.warnings, [ignored("text_1"), ignored("text_2")]);
}
