//! Checks the structure of the project: floors, packages, file sizes, and documentation that must be complete.
//! Exceptions are listed here by name, with their reason.

use podium::telemetry::metrics::METRICS;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Modules with their floors, as in src/lib.rs. A module imports only from lower floors.
const FLOORS: &[(&str, u8)] = &[
    ("base", 0),
    ("page", 0),
    ("ops", 1),
    ("rerank", 1),
    ("token", 1),
    ("deployments", 2),
    ("forecast", 2),
    ("ledger", 2),
    ("model", 2),
    ("telemetry", 2),
    ("wire", 2),
    ("sched", 3),
    ("backend", 4),
    ("engine", 5),
    ("eval", 5),
    ("sim", 5),
    ("distill", 6),
    ("http", 6),
    ("load", 6),
    ("compare", 7),
    ("cli", 8),
];

/// The scheduler may import less than its floor allows.
const SCHED_IMPORTS: &[&str] = &["base", "forecast", "rerank", "sched"];

/// Packages with the places that may use them: prefixes of paths.
const PACKAGES: &[(&str, &[&str])] = &[
    ("hyper", &["src/http/", "src/load/client.rs"]),
    ("hyper_util", &["src/http/", "src/load/client.rs"]),
    ("hdrhistogram", &["src/load/tally.rs"]),
    ("candle_core", &["src/model/forward.rs", "src/model/positions.rs", "src/distill/"]),
    ("candle_nn", &["src/model/forward.rs"]),
    // Of tokio the engine has only the one-shot reply and `Notify`, and the exporter of spans a handle of the server's
    // runtime.
    (
        "tokio",
        &[
            "src/http/",
            "src/load/",
            "src/compare/ask.rs",
            "src/cli/",
            "src/engine/",
            "src/telemetry/spans.rs",
        ],
    ),
    // Scripted scorers sleep on a channel, the ledger's thread has a queue, and a load's pacer sleeps on a channel until the
    // next send.
    (
        "crossbeam_channel",
        &["src/engine/", "src/backend/scripted.rs", "src/ledger/store.rs", "src/load/run.rs"],
    ),
    ("rusqlite", &["src/ledger/store.rs", "src/ledger/schema.rs", "src/deployments/"]),
    ("prometheus_client", &["src/telemetry/"]),
    ("opentelemetry_sdk", &["src/telemetry/spans.rs"]),
    ("cudarc", &["src/ops/cuda/"]),
    ("clap", &["src/cli/"]),
    ("indicatif", &["src/cli/"]),
    ("rayon", &["src/distill/train.rs"]),
    ("rustix", &["src/cli/cores.rs"]),
    ("minijinja", &["src/model/prompt.rs"]),
    ("minijinja_contrib", &["src/model/prompt.rs"]),
];

/// Most lines of a file without its tests.
const LINES_MAX: usize = 400;
/// Files that are longer, and why.
const LONG: &[(&str, &str)] = &[("src/wire/fields.rs", "one reader for every field that any dialect has")];

struct Source {
    /// From the project's root, with forward slashes.
    path: String,
    /// What runs in production: without comments and without tests.
    code: String,
    lines: usize,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_under(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The sources of the crate; files of tests are left out.
fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    files_under(&root().join("src"), &mut files);
    files.sort();
    assert!(files.len() > 50, "the sources were not found");
    let source = |file: PathBuf| {
        let path = file.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let plain = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
        let code = text.lines().map(plain).collect::<Vec<_>>().join("\n");
        Source { path, code, lines: text.lines().count() }
    };
    let is_test = |file: &PathBuf| file.ends_with("tests.rs") || file.parent().unwrap().ends_with("tests");
    files.into_iter().filter(|file| !is_test(file)).map(source).collect()
}

/// The module of a path below src, none for main.rs and lib.rs.
fn module(path: &str) -> Option<&str> {
    path.strip_prefix("src/")?.split_once('/').map(|(module, _)| module)
}

/// The names that follow a prefix, each up to its end.
fn names_after<'a>(code: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let end = |rest: &str| rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    code.match_indices(prefix).map(move |(place, _)| {
        let rest = &code[place + prefix.len()..];
        &rest[..end(rest)]
    })
}

#[test]
fn a_module_imports_only_from_lower_floors() {
    let floor = |module: &str| FLOORS.iter().find(|(name, _)| *name == module).map(|&(_, floor)| floor);
    for source in sources() {
        let Some(module) = module(&source.path) else { continue };
        let own = floor(module).unwrap_or_else(|| panic!("{}: `{module}` has no floor", source.path));
        for import in names_after(&source.code, "crate::").filter(|import| *import != module) {
            let below = floor(import).is_some_and(|floor| floor < own);
            assert!(below, "{}: floor {own} imports crate::{import}", source.path);
            let pure = module != "sched" || SCHED_IMPORTS.contains(&import);
            assert!(pure, "{}: the scheduler imports crate::{import}", source.path);
        }
    }
}

#[test]
fn the_floors_of_lib_rs_are_these() {
    let lib = read("src/lib.rs");
    for (module, floor) in FLOORS {
        assert!(lib.contains(&format!("pub mod {module};")), "src/lib.rs has no module {module}");
        let row = lib.lines().find(|line| line.contains(&format!("[`{module}`]")));
        let row = row.unwrap_or_else(|| panic!("src/lib.rs: no floor has `{module}`"));
        assert!(row.starts_with(&format!("//! | {floor} |")), "src/lib.rs: `{module}` is on floor {floor}");
    }
    assert_eq!(lib.matches("pub mod ").count(), FLOORS.len());
}

#[test]
fn packages_stay_where_they_belong() {
    for source in sources() {
        for (package, places) in PACKAGES {
            let prefix = format!("{package}::");
            let used = source.code.match_indices(&prefix).any(|(place, _)| {
                !source.code[..place].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':')
            });
            let allowed = places.iter().any(|place| source.path.starts_with(place));
            assert!(allowed || !used, "{} uses {package}", source.path);
        }
    }
}

#[test]
fn code_keeps_its_style() {
    for source in sources() {
        let Source { path, code, lines } = &source;
        for (what, why) in [
            (".unwrap()", "an `expect` says which belief broke"),
            ("super::super", "name the module from `crate`"),
            ("::*", "imports are named"),
            ("unsafe", "only ops may"),
            ("println!", "only the commands print"),
        ] {
            let may = (what == "println!" && path.starts_with("src/cli/"))
                || (what == "unsafe" && path.starts_with("src/ops/"));
            assert!(may || !code.contains(what), "{path} has `{what}`: {why}");
        }
        let long = LONG.iter().any(|(name, _)| name == path);
        assert!(*lines <= LINES_MAX || long, "{path}: {lines} lines without tests are too many");
        assert!(*lines > LINES_MAX || !long, "{path} is no longer an exception");
    }
}

#[test]
fn every_module_begins_with_what_it_is_for() {
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches"] {
        files_under(&root().join(folder), &mut files);
    }
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! ") || text.starts_with("#![doc"), "{}", file.display());
    }
}

#[test]
fn the_readme_lists_every_metric_and_no_other() {
    let readme = read("README.md");
    let listed: Vec<&str> = readme.lines().filter(|line| line.starts_with("| `podium_")).collect();
    let real: Vec<String> = METRICS.iter().map(|(name, help)| format!("| `{name}` | {help} |")).collect();
    assert_eq!(listed, real);
}

/// The public fields of a struct of the configuration.
fn fields(path: &str, name: &str) -> Vec<String> {
    let text = read(path);
    let start = text.find(&format!("struct {name} {{")).unwrap_or_else(|| panic!("{path}: no {name}"));
    let body = text[start..].split("\n}").next().unwrap().to_owned();
    let fields = body.lines().filter_map(|line| line.trim().strip_prefix("pub "));
    fields.filter_map(|field| field.split_once(':')).map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn the_example_configuration_has_every_key() {
    let example = read("deploy/podium.toml");
    let keys: BTreeSet<&str> = example
        .lines()
        .map(|line| line.trim_start_matches("# "))
        .filter_map(|line| line.split_once(" = "))
        .map(|(key, _)| key)
        .collect();
    let tables = [
        "aliases",
        "otlp",
        "primary",
        "fallback",
        "tenants",
        "wire",
        "pins",
        "http",
        "tls",
        "prices",
        "devices",
        "routes",
        "models",
        "path_policies",
    ];
    for (path, name) in [
        ("src/cli/config.rs", "Config"),
        ("src/cli/tier.rs", "TierConfig"),
        ("src/cli/config.rs", "TenantEntry"),
        ("src/cli/routes.rs", "RouteEntry"),
        ("src/cli/routes.rs", "ModelEntry"),
        ("src/cli/routes.rs", "DeviceEntry"),
        ("src/wire/settings.rs", "Settings"),
        ("src/wire/select.rs", "Pins"),
        ("src/http/server.rs", "ServerLimits"),
        ("src/http/tls.rs", "TlsFiles"),
        ("src/telemetry/spans.rs", "OtlpConfig"),
        ("src/ledger/price.rs", "PriceConfig"),
        ("src/ledger/price.rs", "DevicePrice"),
        ("src/sched/config.rs", "Limits"),
        ("src/engine/prepare.rs", "PrepareLimits"),
        ("src/rerank/truncation.rs", "TruncationDefaults"),
    ] {
        let fields = fields(path, name);
        assert!(!fields.is_empty(), "{path}: {name} has no fields");
        for field in fields {
            let table = tables.contains(&&*field) || ["limits", "prepare", "truncation"].contains(&&*field);
            assert!(table || keys.contains(&*field), "deploy/podium.toml does not show {name}.{field}");
        }
    }
}
