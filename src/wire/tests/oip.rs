//! The Open Inference Protocol: JSON, binary tensors and parameters.

use super::{answer, decode, decoded, encode, header, oip_json, try_decode};
use crate::base::Ns;
use crate::rerank::{Priority, Query};
use crate::wire::Settings;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

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
    assert_eq!(answer["model_name"], "owner/name");
    let parameters = json!({
        "podium_model": "served", "podium_tier": "topk", "podium_degraded": "predicted_late",
        "podium_elapsed_ms": 12.0, "podium_device_ns": 1_234, "podium_truncated": 0,
        "podium_truncated_query_tokens": 0, "podium_budget_ms": 50.0, "podium_cost_nanodollars": 56,
    });
    assert_eq!(answer["parameters"], parameters);
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
fn a_whole_number_may_have_a_decimal_point() {
    let mut body = oip_json();
    body["inputs"][1]["shape"] = json!([2.0, 1.0]);
    body["parameters"] = json!({"top_k": 7.0, "priority": 1.0, "timeout": 0.0});
    let options = decoded("/v2/models/m/infer", &body).request.options;
    assert_eq!((options.top_k, options.priority, options.latency_budget), (Some(7), Priority::High, None));
    body["parameters"] = json!({"top_k": 1e30});
    assert_eq!(decoded("/v2/models/m/infer", &body).request.options.top_k, Some(u32::MAX));
    for wrong in [json!([2.5]), json!([-2]), json!(["2"])] {
        body["inputs"][1]["shape"] = wrong;
        let (_, error) = try_decode("/v2/models/m/infer", &body).unwrap_err();
        assert!(error.contains("a shape has whole numbers of at least 0"), "{error}");
    }
}

#[test]
fn no_query_of_the_open_inference_protocol_is_empty() {
    let mut body = oip_json();
    body["inputs"][0] = json!({"name": "QUERY", "shape": [2], "datatype": "BYTES", "data": ["q", ""]});
    let (_, error) = try_decode("/v2/models/m/infer", &body).unwrap_err();
    assert_eq!(error, "QUERY[1]: must not be empty");
}

#[test]
fn a_flag_of_the_open_inference_protocol_is_a_boolean() {
    let refused = |body: &Value| try_decode("/v2/models/m/infer", body).unwrap_err().1;
    let mut all = oip_json();
    all["parameters"] = json!({"binary_data_output": "yes"});
    assert_eq!(refused(&all), "parameters.binary_data_output: must be true or false");
    let mut one = oip_json();
    one["outputs"][0]["parameters"] = json!({"binary_data": 1});
    assert_eq!(refused(&one), "parameters.binary_data: must be true or false");
    let mut size = oip_json();
    size["inputs"][0] =
        json!({"name": "QUERY", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": "5"}});
    assert_eq!(refused(&size), "QUERY: binary_data_size must be a number of bytes");
}

fn binary_data(size: usize) -> Value {
    json!({"binary_data_size": size})
}

#[test]
fn an_answer_is_binary_if_one_of_its_outputs_is() {
    let path = "/v2/models/m/infer";
    let length = "inference-header-content-length";
    let plain = encode(&decoded(path, &oip_json()), &[-1.5, 2.0]);
    assert_eq!((plain.content_type, header(&plain, length)), ("application/json", None));
    let (scores, order) = (
        [(-1.5f32).to_le_bytes(), 2f32.to_le_bytes()].concat(),
        [1i64.to_le_bytes(), 0i64.to_le_bytes()].concat(),
    );
    let flag = |flag: bool| json!({"binary_data": flag});
    for (outputs, all, sizes, expected) in [
        (
            json!([{"name": "SCORE", "parameters": flag(true)}, {"name": "INDEX"}]),
            false,
            [Some(8), None],
            &scores,
        ),
        (
            json!([{"name": "SCORE"}, {"name": "INDEX", "parameters": flag(true)}]),
            false,
            [None, Some(16)],
            &order,
        ),
        (
            json!([{"name": "SCORE", "parameters": flag(false)}, {"name": "INDEX"}]),
            true,
            [None, Some(16)],
            &order,
        ),
        (json!([]), true, [Some(8), Some(16)], &[scores.clone(), order.clone()].concat()),
        (Value::Null, true, [Some(8), Some(16)], &[scores.clone(), order.clone()].concat()),
    ] {
        let mut body = oip_json();
        body["outputs"] = outputs;
        body["parameters"] = json!({"raw_scores": true, "binary_data_output": all});
        let encoded = encode(&decoded(path, &body), &[-1.5, 2.0]);
        assert_eq!(encoded.content_type, "application/octet-stream", "{body}");
        let length: usize = header(&encoded, length).unwrap().parse().unwrap();
        let (head, data) = encoded.body.split_at(length);
        let head: Value = serde_json::from_slice(head).unwrap();
        for (place, size) in sizes.into_iter().enumerate() {
            let parameters = head["outputs"][place].get("parameters");
            assert_eq!(parameters, size.map(binary_data).as_ref(), "{body}");
            assert_eq!(head["outputs"][place].get("data").is_some(), size.is_none(), "{body}");
        }
        assert_eq!(data, expected, "{body}");
    }
}

#[test]
fn an_empty_list_of_outputs_is_a_request_for_all() {
    let mut body = oip_json();
    body["outputs"] = json!([]);
    let answer = answer("/v2/models/m/infer", &body, &[-1.5, 2.0]);
    let names = answer["outputs"].as_array().unwrap().iter().map(|output| &output["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["SCORE", "INDEX"]);
    body["outputs"] = json!([{"name": "score"}]);
    let (_, error) = try_decode("/v2/models/m/infer", &body).unwrap_err();
    assert_eq!(error, "outputs: `score` is not SCORE or INDEX");
}

#[test]
fn the_length_of_the_json_part_is_within_the_body() {
    let body = serde_json::to_vec(&oip_json()).unwrap();
    let name = HeaderName::from_static("inference-header-content-length");
    let with = |value: String| {
        let headers = HeaderMap::from_iter([(name.clone(), HeaderValue::try_from(value).unwrap())]);
        decode("/v2/models/m/infer", &headers, &body, &Settings::default())
    };
    assert!(with(body.len().to_string()).is_ok());
    for wrong in [(body.len() + 1).to_string(), "-1".to_owned(), "many".to_owned(), "9".repeat(40)] {
        let (_, error) = with(wrong).unwrap_err();
        let limit = body.len();
        let message = format!("must be a number of bytes of at most {limit}, the body's length");
        assert_eq!(error.full_message(), format!("inference-header-content-length: {message}"));
    }
}

#[test]
fn queries_are_one_or_as_many_as_passages() {
    for (queries, expected) in [
        (json!(["q"]), Ok(Query::Shared("q".to_owned()))),
        (json!(["p", "q"]), Ok(Query::PerDocument(vec!["p".to_owned(), "q".to_owned()]))),
        (
            json!(["p", "q", "r"]),
            Err("QUERY: has 3 texts, and PASSAGE has 2: give one, or as many".to_owned()),
        ),
        (json!([]), Err("QUERY: has 0 texts, and PASSAGE has 2: give one, or as many".to_owned())),
    ] {
        let mut body = oip_json();
        body["inputs"][0]["shape"] = json!([queries.as_array().unwrap().len()]);
        body["inputs"][0]["data"] = queries;
        let found = try_decode("/v2/models/m/infer", &body);
        let found = found.map(|decoded| decoded.request.query.clone()).map_err(|(_, error)| error);
        assert_eq!(found, expected);
    }
}

#[test]
fn an_open_inference_request_that_is_wrong_says_where() {
    let texts = |data: Value| json!({"name": "QUERY", "shape": [1], "datatype": "BYTES", "data": data});
    let passage = oip_json()["inputs"][1].clone();
    let mut both = texts(json!(["q"]));
    both["parameters"] = binary_data(5);
    for (inputs, expected) in [
        (
            json!([{"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["q"]}, passage]),
            "inputs: `TEXT` is not QUERY or PASSAGE",
        ),
        (json!([texts(json!(["q"])), texts(json!(["q"])), passage]), "QUERY: is there twice"),
        (json!([texts(json!(["q"]))]), "PASSAGE: is missing"),
        (json!([texts(json!([""])), passage]), "QUERY: must not be empty"),
        (json!([texts(json!([7])), passage]), "QUERY[0]: must be a string"),
        (json!([texts(json!("q")), passage]), "QUERY: needs a list as data, or binary_data_size"),
        (json!([texts(Value::Null), passage]), "QUERY: needs a list as data, or binary_data_size"),
        (json!([both, passage]), "QUERY: has both data and binary_data_size"),
        (json!([texts(json!(["p", "q"])), passage]), "QUERY: has 2 elements, and its shape is [1]"),
    ] {
        let mut body = oip_json();
        body["inputs"] = inputs;
        assert_eq!(try_decode("/v2/models/m/infer", &body).unwrap_err().1, expected);
    }
    let budget = "must be a number of milliseconds from 0 to 3600000";
    for (parameters, expected) in [
        (json!({"latency_budget_ms": "9"}), format!("latency_budget_ms: {budget}")),
        (json!({"timeout": -1}), format!("timeout: {budget}")),
        (json!({"priority": "urgent"}), "priority: `urgent` is not one of high, normal, low".to_owned()),
        (json!({"policy": 7}), "policy: `7` is not one of auto, full, topk, fallback".to_owned()),
    ] {
        let mut body = oip_json();
        body["parameters"] = parameters;
        assert_eq!(try_decode("/v2/models/m/infer", &body).unwrap_err().1, expected);
    }
}
