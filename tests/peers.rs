//! What clients of peers ask beside ranking, and by which paths: answered as the peers do it.

mod common;

use common::{Options, Reply, TestServer, setup};
use podium::backend::Scripted;
use podium::engine::Setup;
use podium::wire::Settings;
use serde_json::{Value, json};

fn server() -> TestServer {
    TestServer::start(setup(Scripted::default(), None), Options::default())
}

fn body() -> String {
    json!({"query": "ab", "documents": ["abc", "x y z"]}).to_string()
}

#[test]
fn a_path_is_found_with_a_slash_below_a_base_and_by_its_aliases() {
    let aliases = [("/v1/reranking".to_owned(), "/v1/rerank".to_owned())].into();
    let settings = Settings { base_path: "/podium".to_owned(), aliases, ..Settings::default() };
    let server =
        TestServer::start(setup(Scripted::default(), None), Options { settings, ..Options::default() });
    for path in ["/v1/rank", "/v1/rank/", "/podium/v1/rank", "/v1/reranking", "/podium/v1/reranking/"] {
        let reply = server.post(path, body());
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    }
    assert_eq!(server.get("/podium/health/ready/", "").status, 200);
    assert_eq!(server.post("/other/v1/rank", body()).status, 404);
}

#[test]
fn a_model_that_is_not_served_is_said_or_refused() {
    let named = |model: &str, more: &str| {
        format!(r#"{{"model": "{model}", "query": "ab", "documents": ["abc"]{more}}}"#)
    };
    let server = server();
    let reply = server.post("/v1/rerank", named("other", ""));
    let warning = "model `other` is not served: `large` answers, as any_model is true";
    assert_eq!((reply.status, reply.header("x-podium-warning")), (200, Some(warning)));
    assert_eq!(server.post("/v1/rerank", named("large", "")).header("x-podium-warning"), None);
    // However long its name is.
    assert_eq!(server.post("/v1/rerank", named(&"x".repeat(100_000), "")).status, 200);
    let setup = Setup { any_model: false, ..setup(Scripted::default(), None) };
    let closed = TestServer::start(setup, Options::default());
    for (more, status) in [("", 404), (r#", "top_k": 1"#, 400)] {
        let reply = closed.post("/v1/rerank", named("other", more));
        assert_eq!((reply.status, reply.header("x-podium-error")), (status, Some("unknown_model")));
    }
}

#[test]
fn tei_s_pages_are_there() {
    let server = server();
    let info = server.get("/info", "").json();
    // All that TEI's description of `Info` has.
    for name in [
        "auto_truncate",
        "docker_label",
        "max_batch_requests",
        "max_batch_tokens",
        "max_client_batch_size",
        "max_concurrent_requests",
        "max_input_length",
        "model_dtype",
        "model_id",
        "model_sha",
        "model_type",
        "served_model_name",
        "sha",
        "tokenization_workers",
        "version",
    ] {
        assert!(info.get(name).is_some(), "{name}: {info}");
    }
    assert_eq!((&info["auto_truncate"], &info["max_batch_tokens"]), (&json!(true), &json!(4_096)));
    assert_eq!(info["max_input_length"], 128);
    for path in ["/", "/ping", "/health"] {
        assert_eq!(server.get(path, "").status, 200, "{path}");
    }
    let long = json!({"query": "q", "texts": ["a ".repeat(300)]}).to_string();
    let reply = server.post("/rerank", &long);
    assert_eq!((reply.status, reply.header("x-podium-truncated")), (200, Some("1")), "{}", reply.text());
    for name in ["x-compute-tokens", "x-total-time", "x-tokenization-time"] {
        assert!(reply.header(name).is_some(), "{name}");
    }
    assert_eq!(reply.header("x-compute-type"), Some("cpu"));
    let refuse = json!({"query": "q", "texts": ["a ".repeat(300)], "truncate": false}).to_string();
    let reply = server.post("/rerank", refuse);
    assert_eq!((reply.status, &reply.json()["error_type"]), (413, &json!("Validation")));
}

#[test]
fn texts_become_tokens_and_texts_again() {
    let server = server();
    let ask = |path: &str, body: Value| server.post(path, body.to_string());
    let tokens = ask("/tokenize", json!({"inputs": ["ab c", "É"]})).json();
    let token = |id, text: &str, special, start: Value, stop: Value| json!({"id": id, "text": text, "special": special, "start": start, "stop": stop});
    let expected = json!([
        token(1, "[CLS]", true, Value::Null, Value::Null),
        token(3, "a", false, json!(0), json!(1)),
        token(30, "b", false, json!(1), json!(2)),
        token(5, "c", false, json!(3), json!(4)),
        token(2, "[SEP]", true, Value::Null, Value::Null),
    ]);
    assert_eq!(tokens[0], expected);
    // Places are in characters, and the text is as it was sent.
    assert_eq!(tokens[1][1], token(7, "É", false, json!(0), json!(1)));
    let plain = ask("/tokenize", json!({"inputs": "a", "add_special_tokens": false})).json();
    assert_eq!(plain, json!([[token(3, "a", false, json!(0), json!(1))]]));
    assert_eq!(ask("/decode", json!({"ids": [1, 3.0, 5, 2]})).json(), json!(["a c"]));
    let kept = ask("/decode", json!({"ids": [[1, 3], [5]], "skip_special_tokens": false})).json();
    assert_eq!(kept, json!(["[CLS] a", "c"]));
    for (path, body, status, kind, message) in [
        ("/tokenize", json!({"inputs": []}), 400, "Empty", "inputs: must have at least one element"),
        ("/tokenize", json!({}), 422, "Validation", "inputs: must be a string or a list of strings"),
        ("/decode", json!({"ids": []}), 400, "Empty", "ids: must have at least one element"),
        (
            "/decode",
            json!({"ids": ["a"]}),
            422,
            "Validation",
            "ids: must be a list of ids or a list of such lists",
        ),
        (
            "/tokenize",
            json!({"inputs": "a", "add_special_tokens": "x"}),
            422,
            "Validation",
            "add_special_tokens: must be true or false",
        ),
        (
            "/decode",
            json!({"ids": [3], "skip_special_tokens": 1}),
            422,
            "Validation",
            "skip_special_tokens: must be true or false",
        ),
        (
            "/tokenize",
            json!({"inputs": vec!["a"; 10_001]}),
            413,
            "Validation",
            "inputs: 10001 are given, and the limit is 10000",
        ),
    ] {
        let reply = ask(path, body);
        let expected = json!({"error": message, "error_type": kind});
        assert_eq!((reply.status, reply.json()), (status, expected));
    }
}

#[test]
fn infinity_s_and_vllm_s_pages_are_there() {
    let server = server();
    let models = server.get("/models", "").json();
    let model = &models["data"][0];
    assert_eq!((&model["id"], &model["owned_by"]), (&json!("large"), &json!("infinity")));
    let stats =
        json!({"queue_fraction": 0.0, "queue_absolute": 0, "results_pending": 0, "batch_size": 4_096});
    assert_eq!((&model["stats"], &model["capabilities"]), (&stats, &json!(["rerank"])));
    for accept in ["", "accept: */*\r\n", "accept: application/json\r\n"] {
        let health = server.get("/health", accept).json();
        assert!(health["unix"].as_f64().unwrap() > 1.7e9);
    }
    assert_eq!(server.get("/health", "accept: text/plain\r\n").text(), "ready");
    assert_eq!(server.get("/version", "").json(), json!({"version": env!("CARGO_PKG_VERSION")}));
}

#[test]
fn the_open_inference_protocol_answers_in_its_own_shape_on_every_path() {
    let server = server();
    let infer = json!({"inputs": [
        {"name": "QUERY", "datatype": "BYTES", "shape": [1], "data": ["ab"]},
        {"name": "PASSAGE", "datatype": "BYTES", "shape": [1], "data": ["abc"]},
    ]})
    .to_string();
    // A version is served or not, whatever is asked of it.
    for (version, status) in [("1", 200), ("0123456789ab", 200), ("2", 404)] {
        let path = format!("/v2/models/large/versions/{version}");
        for rest in ["", "/ready", "/config"] {
            assert_eq!(server.get(&format!("{path}{rest}"), "").status, status, "{path}{rest}");
        }
        let reply = server.post(&format!("{path}/infer"), &infer);
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
    }
    let ready = server.get("/v2/models/large/ready", "").json();
    assert_eq!(ready, json!({"name": "large", "ready": true}));
    assert_eq!(server.get("/v2/health/live", "").json()["live"], true);
    assert_eq!(server.get("/v2/health/ready", "").json()["ready"], true);
    let metadata = server.get("/v2/models/large", "").json();
    assert_eq!(metadata["versions"], json!(["1", "0123456789ab"]));
    let config = server.get("/v2/models/large/config", "").json();
    assert_eq!(config["input"][0], json!({"name": "QUERY", "data_type": "TYPE_STRING", "dims": [-1]}));
    let is_error = |reply: Reply, status: u16| {
        assert_eq!(reply.status, status, "{}", reply.text());
        assert!(reply.json()["error"].is_string(), "{}", reply.text());
    };
    is_error(server.get("/v2/nowhere", ""), 404);
    is_error(server.get("/v2/models/other", ""), 404);
    is_error(server.get("/v2/models/other/ready", ""), 404);
    is_error(server.get("/v2/models/large/infer", ""), 405);
    is_error(server.post("/v2/models/large", "{}"), 405);
    is_error(server.post("/v2/health/ready", "{}"), 405);
    is_error(server.post("/v2/models/large/infer", "{"), 400);
    server.handle.drain();
    is_error(server.get("/v2/health/ready", ""), 503);
    is_error(server.get("/v2/models/large/ready", ""), 503);
}
