//! The model repository extension. The bodies are those that tritonclient 2.73.0 sends.

use crate::wire::repository::{
    IndexEntry, IndexRequest, LoadRequest, ModelState, RepositoryPath, UnloadRequest, repository_index,
};
use serde_json::json;

#[test]
fn the_client_s_paths_are_known() {
    let load = |name: &str| Some(RepositoryPath::Load(name.to_owned()));
    for (path, expected) in [
        ("/v2/repository/index", Some(RepositoryPath::Index)),
        ("/v2/repository/models/large/load", load("large")),
        ("/v2/repository/models/owner/large%403/load", load("owner/large@3")),
        ("/v2/repository/models/load/load", load("load")),
        ("/v2/repository/models/large/unload", Some(RepositoryPath::Unload("large".to_owned()))),
        ("/v2/repository/models/large", None),
        ("/v2/repository/models/large/reload", None),
        ("/v2/repository/models/load", None),
        // A repository with a name, which Triton refuses too.
        ("/v2/repository/ours/index", None),
        ("/v2/repository/ours/models/large/load", None),
        ("/v2/repository", None),
        ("/v2/models/large/load", None),
    ] {
        assert_eq!(RepositoryPath::of(path), expected, "{path}");
    }
}

#[test]
fn the_client_s_bodies_are_read() {
    assert_eq!(IndexRequest::read(b""), Ok(IndexRequest::default()));
    let load = LoadRequest::read("large", b"{}").unwrap();
    assert_eq!((load.model.to_string(), load.unknown.len()), ("large".to_owned(), 0));
    let load = LoadRequest::read("owner/large@3", b"{}").unwrap();
    assert_eq!((&*load.model.name, load.model.version.as_deref()), ("owner/large", Some("3")));
    for (body, expected) in [
        (&br#"{"parameters":{"unload_dependents":false}}"#[..], false),
        (br#"{"parameters":{"unload_dependents":true}}"#, true),
    ] {
        let unload = UnloadRequest::read("large", body).unwrap();
        assert_eq!((unload.model.to_string(), unload.unload_dependents), ("large".to_owned(), expected));
    }
}

#[test]
fn other_bodies_are_read_too() {
    let index = |body: &[u8]| IndexRequest::read(body).unwrap();
    assert!(index(b"\xef\xbb\xbf{\"ready\": true}").ready);
    assert!(!index(br#"{"ready": null}"#).ready);
    assert_eq!(index(br#"{"ready": false, "repository_name": "ours"}"#).unknown, ["repository_name"]);
    for body in [&b""[..], b"{}", br#"{"parameters": null}"#, br#"{"parameters": {}}"#] {
        assert!(LoadRequest::read("m", body).is_ok());
        assert!(!UnloadRequest::read("m", body).unwrap().unload_dependents);
    }
    assert_eq!(LoadRequest::read("m", br#"{"id": "7"}"#).unwrap().unknown, ["id"]);
}

#[test]
fn what_a_load_cannot_take_is_refused_with_what_to_do() {
    let load = |body: &[u8]| LoadRequest::read("large", body).unwrap_err().full_message();
    assert_eq!(
        load(br#"{"parameters":{"config":"{\"max_batch_size\": 8}"}}"#),
        "parameters.config: a load takes no configuration: a model's is config.json in its folder, and that of its lanes \
         [[models]] in podium.toml"
    );
    assert_eq!(
        load(br#"{"parameters":{"config":"{}","file:1/model.onnx":"YWJj"}}"#),
        "parameters.file:1/model.onnx: a load takes no files: copy them to a folder of the model repository, and load it then"
    );
    assert_eq!(
        load(br#"{"parameters":{"max_batch_size":8}}"#),
        "parameters.max_batch_size: is unknown; the parameters are none"
    );
    let unload = |body: &[u8]| UnloadRequest::read("large", body).unwrap_err().full_message();
    assert_eq!(
        unload(br#"{"parameters":{"force":true}}"#),
        "parameters.force: is unknown; the parameters are unload_dependents"
    );
    assert_eq!(
        unload(br#"{"parameters":{"unload_dependents":"true"}}"#),
        "parameters.unload_dependents: must be true or false"
    );
    assert_eq!(unload(br#"{"parameters":[]}"#), "parameters: must be an object");
    assert!(unload(b"[]").starts_with("the body is not valid: "));
    let ready = IndexRequest::read(br#"{"ready":1}"#).unwrap_err().full_message();
    assert_eq!(ready, "ready: must be true or false");
    let model = LoadRequest::read("large@", b"{}").unwrap_err().full_message();
    assert_eq!(model, "model: `large@` has no version after the `@`");
}

#[test]
fn the_list_has_a_state_and_a_reason_for_each_version() {
    let entry = |name: &str, version: Option<&str>, state, reason: &str| IndexEntry {
        name: name.to_owned(),
        version: version.map(str::to_owned),
        state,
        reason: reason.to_owned(),
    };
    let entries = [
        entry("large", Some("2"), ModelState::Ready, ""),
        entry("large", Some("3"), ModelState::Loading, "golden pairs are scored"),
        entry("mid", Some("1"), ModelState::Unloading, ""),
        entry("odd", None, ModelState::Unavailable, "it has no version"),
    ];
    let all = repository_index(&entries, &IndexRequest::default());
    assert_eq!(
        all,
        json!([
            {"name": "large", "version": "2", "state": "READY", "reason": ""},
            {"name": "large", "version": "3", "state": "LOADING", "reason": "golden pairs are scored"},
            {"name": "mid", "version": "1", "state": "UNLOADING", "reason": ""},
            {"name": "odd", "state": "UNAVAILABLE", "reason": "it has no version"},
        ])
    );
    let ready = repository_index(&entries, &IndexRequest::read(br#"{"ready":true}"#).unwrap());
    assert_eq!(ready, json!([{"name": "large", "version": "2", "state": "READY", "reason": ""}]));
    assert_eq!(repository_index(&[], &IndexRequest::default()), json!([]));
}
