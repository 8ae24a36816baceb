//! The peers' own clients and contracts, where they are installed: `tests/clients`.

mod common;

use common::{Serving, data, root};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Virtual environments with the packages of `tests/clients/requirements*.txt`, separated as in `PATH`.
const VARIABLE: &str = "CLIENTS_VENVS";

#[test]
fn the_peers_clients_get_right_answers() {
    let Some(environments) = std::env::var_os(VARIABLE) else {
        return eprintln!(
            "skipped: the peers' clients; {VARIABLE} names no virtual environment, see tests/clients"
        );
    };
    let Some(data) = data() else { return };
    let model = data.join("models/ms-marco-MiniLM-L-12-v2");
    let serve = |pin: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("podium.toml");
        let primary =
            format!("[primary]\nmodel = '{}'\nprecision = 'f32'\nengine = 'cpu'\n", model.display());
        std::fs::write(&file, primary + pin).unwrap();
        Serving::start(&["--config", file.to_str().unwrap()])
    };
    let folder = tempfile::tempdir().unwrap();
    // Each server's checks; without a name, all that need no pin.
    let runs = [
        (serve(""), None),
        (serve("[wire.pins]\nrerank = 'vllm'\n"), Some("pinned_vllm")),
        (serve("[wire.pins]\nrerank = 'infinity'\n"), Some("pinned_infinity")),
        (serve_repository(folder.path(), &model), Some("repository_")),
    ];
    let (mut passed, mut skipped, mut failed) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
    for environment in std::env::split_paths(&environments) {
        let found = runs.iter().flat_map(|(server, name)| checks(&environment, &server.address, *name));
        for check in found {
            match check.verdict.as_str() {
                "ok" => {
                    passed.insert(check.name);
                }
                "skipped" => {
                    skipped.insert(check.name, check.why);
                }
                _ => failed.push(format!("{}: {}: {}", environment.display(), check.name, check.why)),
            }
        }
    }
    // Each environment has the packages of some checks.
    for (name, why) in skipped.iter().filter(|(name, _)| !passed.contains(*name)) {
        eprintln!("skipped: {name}: {why}");
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    assert!(!passed.is_empty(), "no check ran");
}

/// A server with a repository: `large` with two versions, and `other` with one.
fn serve_repository(folder: &Path, model: &Path) -> Serving {
    let repository = folder.join("models");
    for version in ["large/1", "large/2", "other/1"] {
        let version = repository.join(version);
        std::fs::create_dir_all(version.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(model.canonicalize().unwrap(), version).unwrap();
    }
    let models = ["large", "other"]
        .map(|name| format!("[[models]]\nname = '{name}'\nprecision = 'f32'\nengine = 'cpu'\n"));
    let server = format!(
        "model_repository = '{}'\nrepository_mode = 'explicit'\nadmin_key = 'secret-key'\n",
        repository.display()
    );
    let file = folder.join("podium.toml");
    std::fs::write(&file, server + &models.concat()).unwrap();
    Serving::start(&["--config", file.to_str().unwrap()])
}

/// A line of `run.py`.
struct Check {
    verdict: String,
    name: String,
    why: String,
}

/// The checks that `run.py` ran with an environment's packages.
fn checks(environment: &Path, address: &str, name: Option<&str>) -> Vec<Check> {
    let run = Command::new(environment.join("bin/python"))
        .arg(root().join("tests/clients/run.py"))
        .arg(format!("http://{address}"))
        .args(name)
        .output()
        .unwrap_or_else(|error| panic!("{VARIABLE}: {}: {error}", environment.display()));
    let (printed, log) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(printed.lines().last().is_some_and(|line| line.contains(" passed, ")), "{printed}\n{log}");
    let check = |line: &str| {
        let (verdict, rest) = line.split_once(' ')?;
        let (name, why) = rest.split_once(": ").unwrap_or((rest, ""));
        let check = Check { verdict: verdict.into(), name: name.trim().into(), why: why.into() };
        ["ok", "FAILED", "skipped"].contains(&verdict).then_some(check)
    };
    printed.lines().filter_map(check).collect()
}
