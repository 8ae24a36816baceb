//! Text Embeddings Inference.

use super::{answer, decoded, encode, header, try_decode};
use crate::base::Side;
use crate::rerank::{Overflow, Query, ScoreForm, Truncation};
use crate::wire::Dialect;
use serde_json::{Value, json};

#[test]
fn tei_answers_with_a_bare_list() {
    let body = json!({"query": "q", "texts": ["a", "b"], "raw_scores": true, "return_text": true});
    let request = &decoded("/rerank", &body).request;
    assert_eq!((request.truncation, request.score), (Truncation::default(), ScoreForm::Logit));
    let expected =
        json!([{"index": 1, "text": "b", "score": 3.25}, {"index": 0, "text": "a", "score": -1.0}]);
    assert_eq!(answer("/rerank", &body, &[-1.0, 3.25]), expected);
    for (word, side) in
        [("Left", Side::Left), ("left", Side::Left), ("Right", Side::Right), ("right", Side::Right)]
    {
        let body = json!({"query": "q", "texts": ["a"], "truncation_direction": word});
        assert_eq!(decoded("/rerank", &body).request.truncation.side, Some(side), "{word}");
    }
    let left = json!({"query": "q", "texts": ["a"], "truncate": true, "truncation_direction": "Left"});
    assert_eq!(
        decoded("/rerank", &left).request.truncation,
        Truncation { side: Some(Side::Left), ..Truncation::by(Overflow::LongestFirst) }
    );
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
        ("x-compute-type", "cpu"),
        ("x-tokenization-time", "1"),
        ("x-queue-time", "3"),
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
    let documents = &decoded("/predict", &many).request.documents;
    assert_eq!(documents.iter().map(|text| &**text).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(decoded("/predict", &many).request.query, Query::PerDocument(vec!["p".into(), "q".into()]));
    // A list of one is a list.
    let list = json!({"inputs": [["q", "a"]]});
    assert_eq!(answer("/predict", &list, &[0.0]), json!([[{"score": 0.5, "label": "LABEL_0"}]]));
    let pair = "must be a pair of strings: this model scores pairs";
    for (body, expected) in [
        (json!({"inputs": "alone"}), format!("inputs: {pair}")),
        (json!({"inputs": ["alone"]}), format!("inputs: {pair}")),
        (json!({"inputs": ["a", "b", "c"]}), format!("inputs: {pair}")),
        (json!({"inputs": [["a", "b"], "c"]}), format!("inputs: {pair}")),
        (json!({"inputs": [["a", "b"], ["alone"]]}), format!("inputs[1]: {pair}")),
        (json!({"inputs": [["a", "b"], ["a", 7]]}), format!("inputs[1]: {pair}")),
        (json!({}), format!("inputs: {pair}")),
    ] {
        assert_eq!(try_decode("/predict", &body).unwrap_err(), (Dialect::TeiPredict, expected), "{body}");
    }
}
