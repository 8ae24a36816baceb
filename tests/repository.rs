//! Repositories of models and the history of routes, as a user sees them from the command line.

mod common;

use common::{Serving, podium, post, root, small_model};
use podium::base::{ModelRef, Ns};
use podium::deployments::{Deployments, Intent, Served, Step};
use std::fs;
use std::path::Path;
use std::time::Duration;

fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = podium(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Copies the files of a model to a new folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A repository: a sound model with two versions, a directory that is a model itself, and everything that can be wrong.
fn repository() -> tempfile::TempDir {
    let (place, model) = (tempfile::tempdir().unwrap(), small_model());
    let version = |name: &str| {
        let folder = place.path().join(name);
        copy(model.path(), &folder);
        folder
    };
    let half = |file: &Path| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    };
    version("sound/1");
    version("sound/2");
    copy(&root().join("models/podium-student-L2-H128"), &place.path().join("student"));
    half(&version("faults/1").join("model.safetensors"));
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    fs::write(version("faults/2").join("model.safetensors"), pointer).unwrap();
    fs::remove_file(version("faults/3").join("tokenizer.json")).unwrap();
    fs::write(version("faults/4").join("podium.json"), r#"{"label": 3, "sha": "00"}"#).unwrap();
    fs::write(version("faults/5").join("golden.json"), "[]").unwrap();
    fs::create_dir(place.path().join("faults/6")).unwrap();
    fs::write(place.path().join("faults/7"), "").unwrap();
    version("faults/8");
    version("faults/08");
    std::os::unix::fs::symlink("nowhere", place.path().join("faults/9")).unwrap();
    version("unnumbered/v1");
    version(".copying/1");
    fs::write(place.path().join("README.md"), "").unwrap();
    place
}

#[test]
fn a_repository_is_listed_with_the_reasons_why_versions_are_refused() {
    let place = repository();
    let directory = place.path().to_str().unwrap();
    let (code, printed, errors) = run(&["models", "list", directory]);
    assert_eq!((code, errors.as_str()), (0, ""));
    let printed = printed.replace(directory, "DIR");
    let rows: Vec<Vec<&str>> = printed.lines().map(|line| line.splitn(7, ' ').collect()).collect();
    assert!(rows[0][0] == "MODEL", "{printed}");
    let line = |model: &str, version: &str| {
        let is_line = |line: &&str| {
            let mut words = line.split_whitespace();
            (words.next(), words.next()) == (Some(model), Some(version))
        };
        printed.lines().find(is_line).unwrap_or_else(|| panic!("{model} {version}: {printed}"))
    };
    for (version, expected) in [
        ("1", "DIR/faults/1/model.safetensors: model.safetensors is damaged or no safetensors"),
        (
            "2",
            "DIR/faults/2/model.safetensors is a pointer of Git LFS, not the file itself; run `git lfs pull`",
        ),
        ("3", "DIR/faults/3/tokenizer.json is missing"),
        ("4", "DIR/faults/4/podium.json: "),
        ("5", "DIR/faults/5/golden.json: it has no pair"),
        ("6", "its folder is empty"),
        ("7", "it is a file, and a version is a folder"),
        ("8", "`faults/08`, `faults/8` are the same version; keep one of them"),
        ("9", "it cannot be read: it is a link to nothing"),
    ] {
        let line = line("faults", version);
        assert!(line.contains(" refused ") && line.contains(expected), "{line}");
    }
    assert!(line("sound", "2").contains(" newest   bert "), "{printed}");
    assert!(line("sound", "1").contains(" usable   bert "), "{printed}");
    assert!(line("student", "1").ends_with(" 6 golden pairs"), "{printed}");
    assert!(line("unnumbered", "-").contains("it has no version: "), "{printed}");
    assert_eq!(printed.lines().count(), 14, "{printed}");
    // The newest first.
    assert!(printed.find("sound       2").unwrap() < printed.find("sound       1").unwrap(), "{printed}");
    let (code, _, errors) = run(&["models", "list", "nowhere"]);
    assert!(code == 66 && errors.contains("model repository nowhere: No such file"), "{errors}");
    let student = place.path().join("student");
    let (code, _, errors) = run(&["models", "list", student.to_str().unwrap()]);
    assert!(code == 64 && errors.contains("is a model, and not a folder of models"), "{errors}");
}

#[test]
fn versions_are_verified_by_their_weights_and_their_scores() {
    let place = repository();
    let verify = |path: &str| {
        let path = place.path().join(path);
        let (code, printed, errors) = run(&["models", "verify", path.to_str().unwrap()]);
        (code, printed.replace(place.path().to_str().unwrap(), "DIR"), errors)
    };
    let (code, printed, errors) = verify("sound");
    assert_eq!(code, 0, "{printed} {errors}");
    let lines: Vec<&str> = printed.lines().collect();
    assert!(
        lines[0].starts_with("sound@1: ok, sha256 ") && lines[1].starts_with("sound@2: ok, "),
        "{printed}"
    );
    assert!(lines[0].ends_with("..., which no podium.json states; no golden pairs"), "{printed}");
    let (code, printed, errors) = verify("student");
    assert_eq!(code, 0, "{errors}");
    assert!(
        printed.starts_with("student: ok, sha256 da5286256682..., as podium.json states; 6 golden pairs in "),
        "{printed}"
    );
    // Other weights than stated, and other scores than golden.
    fs::write(place.path().join("sound/1/podium.json"), r#"{"sha256": "00"}"#).unwrap();
    let golden = r#"[{"query": "ab", "document": "abc", "logit": 100}]"#;
    fs::write(place.path().join("sound/2/golden.json"), golden).unwrap();
    let (code, printed, errors) = verify("sound/1");
    assert!(code == 65 && errors.contains("1 of 1 versions cannot be served"), "{errors}");
    assert!(printed.starts_with("sound@1: FAILED, ") && printed.contains("and 00 is stated"), "{printed}");
    let (code, printed, errors) = verify("");
    assert!(code == 65 && errors.contains("12 of 13 versions cannot be served"), "{printed} {errors}");
    assert!(printed.contains("sound@2: FAILED, ") && printed.contains("logit 100 expected"), "{printed}");
    assert!(printed.contains("faults@6: FAILED, its folder is empty"), "{printed}");
    assert!(printed.contains("unnumbered: FAILED, it has no version"), "{printed}");
    let (code, _, errors) = verify("nothing");
    assert!(code == 66 && errors.contains("No such file"), "{errors}");
    let empty = tempfile::tempdir().unwrap();
    let (code, _, errors) = run(&["models", "verify", empty.path().to_str().unwrap()]);
    assert!(code == 65 && errors.contains("there is no model in it"), "{errors}");
}

#[test]
fn routes_are_checked_with_their_repository() {
    let place = repository();
    let file = place.path().join("podium.toml");
    let check = |text: &str| {
        fs::write(&file, format!("model_repository = '{}'\n{text}", place.path().display())).unwrap();
        let (code, printed, errors) = run(&["serve", "--check", "--config", file.to_str().unwrap()]);
        (code, printed, errors)
    };
    let route = |primaries: &str| format!("[[routes]]\nname = 'search'\nprimaries = [{primaries}]\n");
    let (code, printed, errors) = check(&route("'sound@1', 'student'"));
    assert_eq!(code, 0, "{printed} {errors}");
    assert!(printed.contains("route     search: sound@1, student; fallback bundled\n"), "{printed}");
    assert!(printed.contains("primary   sound version 1 licence"), "{printed}");
    for (primaries, expected) in [
        ("'sound@7'", "routes[0].primaries[0]: model `sound` has no version `7`; it has `1`, `2`"),
        ("'faults@6'", "version 6 of model `faults` cannot be used: its folder is empty"),
        (
            "'lost'",
            "there is no model `lost`; models are `faults`, `sound`, `student`, `unnumbered`, `bundled`",
        ),
        ("'unnumbered'", "model `unnumbered` has no version that can be used: it has no version"),
    ] {
        let (code, printed, errors) = check(&route(primaries));
        assert!(code == 64 && errors.contains(expected) && printed.is_empty(), "{printed} {errors}");
    }
    let (_, _, errors) = check(&format!("{}[primary]\nmodel = 'bundled'", route("'sound'")));
    assert!(errors.contains("primary: not together with routes"), "{errors}");
    let bounded = format!("{}[[devices]]\nname = 'cpu'\nmemory_bytes_max = 1", route("'sound'"));
    let (code, _, errors) = check(&bounded);
    assert!(code == 64 && errors.contains("memory_bytes_max of `cpu`: no model is evicted yet"), "{errors}");
    let directory = place.path().to_str().unwrap();
    let (code, _, errors) = run(&["serve", "--model-repository", directory, "--primary", "bundled"]);
    assert!(code == 64 && errors.contains("primary: not together with routes"), "{errors}");
    let (code, _, errors) = run(&["serve", "--model-repository", "nowhere"]);
    assert!(code == 64 && errors.contains("model repository nowhere: No such file"), "{errors}");
    let (code, _, errors) = run(&["serve", "--repository-mode", "poll"]);
    assert!(
        code == 64 && errors.contains("repository_mode: there is no model_repository to follow"),
        "{errors}"
    );
    let (code, _, errors) = run(&["serve", "--deployments", "x.sqlite"]);
    assert!(code == 64 && errors.contains("deployments: only routes have deployments"), "{errors}");
}

fn served(model: &str) -> Served {
    let model: ModelRef = model.parse().unwrap();
    Served { primaries: vec![model], fallback: None }
}

#[test]
fn the_history_of_a_route_is_shown_and_rolled_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deployments.sqlite");
    let file = path.to_str().unwrap();
    let models = |arguments: &[&str]| run(&[&["models"], arguments, &["--deployments", file]].concat());
    let (code, _, errors) = models(&["history"]);
    assert!(code == 66 && errors.contains("deployments.sqlite: "), "{errors}");
    let (code, _, errors) = models(&["rollback", "search", "--why", "worse"]);
    assert!(code == 66 && errors.contains("there is no such file"), "{errors}");
    assert!(!path.exists());
    let mut store = Deployments::open(&path).unwrap();
    let swap = |store: &mut Deployments, from: Option<&str>, to: &str, steps: &[Step]| {
        let (from, to) = (from.map(served), served(to));
        let (who, why) = ("ann".to_owned(), "a better model".to_owned());
        let id = store.begin(&Intent { route: "search".to_owned(), from, to, who, why }, Ns(1)).unwrap();
        steps.iter().for_each(|&step| store.step(id, step, Ns(1)).unwrap());
        id
    };
    for (from, to) in [(None, "large@1"), (Some("large@1"), "large@2")] {
        let id = swap(&mut store, from, to, &Step::ALL);
        store.finish(id, Ns(2)).unwrap();
    }
    swap(&mut store, Some("large@2"), "large@3", &[Step::Verifying]);
    // While a server runs the history can be read, and not be changed.
    let (code, printed, _) = models(&["history"]);
    assert_eq!(code, 0);
    assert_eq!(
        printed,
        "live on search since 1970-01-01T00:00:00Z: large@2 (swap 2)\n\
         1970-01-01T00:00:00Z search, swap 3: large@2 -> large@3, by ann (a better model): is verifying\n\
         1970-01-01T00:00:00Z search, swap 2: large@1 -> large@2, by ann (a better model): switched\n\
         1970-01-01T00:00:00Z search, swap 1: nothing -> large@1, by ann (a better model): switched\n"
    );
    let (code, _, errors) = models(&["rollback", "search", "--why", "worse"]);
    assert!(code == 69 && errors.contains("another process uses it"), "{errors}");
    // As after a kill: the swap that was open is abandoned, and the route goes back to what was live before.
    drop(store);
    let (code, printed, errors) = models(&["rollback", "search", "--why", "worse", "--who", "bob"]);
    assert_eq!(code, 0, "{errors}");
    assert!(printed.contains("swap 3: large@2 -> large@3"), "{printed}");
    assert!(printed.contains(": abandoned: the server ended while verifying\n"), "{printed}");
    assert!(printed.ends_with("the next start serves large@1 on search (swap 4)\n"), "{printed}");
    let (_, printed, _) = models(&["history", "search"]);
    assert!(
        printed.starts_with("live on search since 20") && printed.contains(": large@1 (swap 4)\n"),
        "{printed}"
    );
    let made = "large@2 -> large@1, by bob (worse): switched (recorded while no server ran)\n";
    assert!(printed.contains(made), "{printed}");
    let (code, _, errors) = models(&["rollback", "serach", "--why", "worse"]);
    assert!(code == 64 && errors.contains("nothing is live on it; routes are search"), "{errors}");
    let (code, _, errors) = models(&["history", "serach"]);
    assert!(code == 64 && errors.contains("route `serach` has no history"), "{errors}");
}

const ADMIN: &str = "authorization: Bearer secret-key\r\nx-podium-who: ann\r\n";

/// A repository with one version of a model, and a server of it.
fn serving(place: &Path, more: &[&str]) -> Serving {
    let live = place.join("live.sqlite");
    let models = place.join("models");
    let arguments = [
        "--model-repository",
        models.to_str().unwrap(),
        "--deployments",
        live.to_str().unwrap(),
        "--admin-key",
        "secret-key",
    ];
    Serving::start(&[&arguments, more].concat())
}

fn version(server: &Serving, model: &str) -> String {
    let body = serde_json::json!({"model": model, "query": "ab", "documents": ["abc", "x y z"]});
    let reply = server.send(&post("/v1/rank", "", body.to_string()));
    assert_eq!(reply.status, 200, "{}", reply.text());
    let model = reply.header("x-podium-model").unwrap().to_owned();
    format!("{model}@{}", reply.header("x-podium-version").unwrap())
}

#[test]
fn a_server_loads_and_unloads_and_comes_back_to_what_was_live() {
    let (place, model) = (tempfile::tempdir().unwrap(), small_model());
    let add = |path: &str| copy(model.path(), &place.path().join("models").join(path));
    add("large/1");
    let server = serving(place.path(), &["--repository-mode", "explicit"]);
    let call = |server: &Serving, path: &str, headers: &str| server.send(&post(path, headers, ""));
    let load = |server: &Serving, model: &str| {
        let reply = call(server, &format!("/v2/repository/models/{model}/load"), ADMIN);
        (reply.status, reply.text())
    };
    let closed = call(&server, "/v2/repository/models/large/load", "");
    // An error of the Open Inference Protocol is a string.
    assert!(closed.status == 401 && closed.json()["error"].is_string(), "{}", closed.text());
    assert_eq!(load(&server, "large").0, 200);
    assert_eq!(version(&server, "large"), "large@1");
    add("large/2");
    assert_eq!(load(&server, "large").0, 200);
    assert_eq!(version(&server, "large"), "large@2");
    // Neither a version that is cut short nor one that does not exist changes what is live.
    add("large/3");
    let weights = place.path().join("models/large/3/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    for (model, status, expected) in [
        ("large@3", 404, "version 3 of model `large` cannot be used"),
        ("large@9", 404, "model `large` has no version `9`"),
        ("huge", 404, "there is no model `huge`"),
    ] {
        let (found, text) = load(&server, model);
        assert!(found == status && text.contains(expected), "{model}: {found} {text}");
        assert_eq!(version(&server, "large"), "large@2");
    }
    let index = call(&server, "/v2/repository/index", "").json();
    let states: Vec<String> = index
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| format!("{} {}", entry["version"].as_str().unwrap(), entry["state"].as_str().unwrap()))
        .collect();
    assert_eq!(states[1..], ["1 UNAVAILABLE", "2 READY", "3 UNAVAILABLE"], "{index}");
    let reply = call(&server, "/admin/routes/large/rollback", ADMIN);
    assert_eq!((reply.status, reply.json()["up"][0].as_str().unwrap()), (200, "large@1"), "{}", reply.text());
    assert_eq!(version(&server, "large"), "large@1");
    // A kill; the next server serves what was live, and not the newest.
    drop(server);
    let server = serving(place.path(), &["--repository-mode", "explicit"]);
    assert_eq!(version(&server, "large"), "large@1");
    let get = |path: &str| server.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n{ADMIN}\r\n").as_bytes());
    let routes = get("/admin/routes").json();
    assert_eq!(routes["data"][0]["primaries"][0], "large@1", "{routes}");
    assert_eq!(get("/v2/models/large").json()["versions"], serde_json::json!(["1"]));
    assert_eq!(call(&server, "/v2/repository/models/large/unload", ADMIN).status, 200);
    assert_eq!(get("/v2/models/large").status, 404);
    let metrics = get("/metrics").text();
    assert!(metrics.contains(r#"podium_deployments_total{result="made"} 1"#), "{metrics}");
    assert!(!metrics.contains(r#"podium_lanes{model="large""#), "{metrics}");
    let live = place.path().join("live.sqlite");
    let (_, printed, _) = run(&["models", "history", "large", "--deployments", live.to_str().unwrap()]);
    assert!(printed.contains("large@2; fallback bundled@"), "{printed}");
    assert!(printed.contains("by ann"), "{printed}");
}

#[test]
fn a_version_that_appears_in_a_polled_repository_is_taken() {
    let (place, model) = (tempfile::tempdir().unwrap(), small_model());
    let add = |path: &str| copy(model.path(), &place.path().join("models").join(path));
    add("large/1");
    let config = place.path().join("podium.toml");
    fs::write(&config, "repository_mode = 'poll'\nrepository_poll_ms = 100\nrepository_still_ms = 200\n")
        .unwrap();
    let server = serving(place.path(), &["--config", config.to_str().unwrap()]);
    assert_eq!(version(&server, "large"), "large@1");
    add("large/4");
    let until = |expected: &str| {
        for _ in 0..600 {
            if version(&server, "large") == expected {
                return;
            }
            let _ = crossbeam_channel::never::<()>().recv_timeout(Duration::from_millis(50));
        }
        panic!("{} serves, not {expected}", version(&server, "large"));
    };
    until("large@4");
    // One that is gone from the repository is replaced by the newest that is left.
    fs::remove_dir_all(place.path().join("models/large/4")).unwrap();
    until("large@1");
}
