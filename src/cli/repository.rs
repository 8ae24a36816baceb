//! `podium models list` and `podium models verify`: what is in a repository, and whether it can be served.

use super::config::Config;
use super::tier::TierConfig;
use super::{Failure, folder_name, pool};
use crate::engine::{BooksSetup, Clock};
use crate::model::repository::{Facts, Refused, Scan, ScannedModel, Version, VersionPolicy, scan};
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Lists the models of a repository with their versions, newest first.
pub(super) fn list(root: &Path) -> Result<(), Failure> {
    if is_model(root) {
        let root = root.display();
        return Err(Failure::usage(format!(
            "{root} is a model, and not a folder of models; `podium models inspect {root}` shows it"
        )));
    }
    super::print(&table(&read(root)?))
}

fn read(root: &Path) -> Result<Scan, Failure> {
    scan(root, &Scan::default()).map_err(|error| Failure::input(error.to_string()))
}

/// A line for each version, and for each model without any.
fn table(found: &Scan) -> String {
    let mut rows =
        vec![["MODEL", "VERSION", "STATE", "ARCHITECTURE", "PARAMETERS", "BYTES", "NOTE"].map(str::to_owned)];
    for (name, ScannedModel { versions, problem }) in &found.models {
        let newest = VersionPolicy::default().select(versions).take.first().copied();
        for (&number, version) in versions.iter().rev() {
            let state = match &version.usable {
                Ok(_) if newest == Some(number) => "newest",
                Ok(_) => "usable",
                Err(_) => "refused",
            };
            let (architecture, parameters, note) = match &version.usable {
                Ok(Facts { architecture, parameters, golden_pairs }) => {
                    (architecture.clone(), parameters.to_string(), format!("{golden_pairs} golden pairs"))
                }
                Err(why) => ("-".to_owned(), "-".to_owned(), why.to_string()),
            };
            let bytes = version.bytes().to_string();
            rows.push([
                name.clone(),
                number.to_string(),
                state.to_owned(),
                architecture,
                parameters,
                bytes,
                note,
            ]);
        }
        if let Some(problem) = problem {
            let [version, state, architecture, parameters, bytes] = ["-"; 5].map(str::to_owned);
            rows.push([name.clone(), version, state, architecture, parameters, bytes, problem.clone()]);
        }
    }
    let widths: Vec<usize> =
        (0..7).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        writeln!(text, "{}", cells.join("  ").trim_end()).expect("a string takes all");
    }
    text
}

/// Checks the weights of each version against the sha256 that its podium.json states, and scores its golden pairs on the
/// engine that would serve it.
pub(super) fn verify(path: &Path) -> Result<(), Failure> {
    let all = targets(path)?;
    let mut failed = 0;
    for (name, target) in &all {
        let result =
            target.as_ref().map_err(ToString::to_string).and_then(|directory| check(name, directory));
        failed += usize::from(result.is_err());
        let line = match result {
            Ok(checked) => format!("{name}: ok, {checked}\n"),
            Err(why) => format!("{name}: FAILED, {why}\n"),
        };
        super::print(&line)?;
    }
    match (all.len(), failed) {
        (0, _) => Err(Failure::data(format!("{}: there is no model in it", path.display()))),
        (_, 0) => Ok(()),
        (all, failed) => Err(Failure::data(format!("{failed} of {all} versions cannot be served"))),
    }
}

/// A version's name, and its directory or why it has none that can be used.
type Target = (String, Result<PathBuf, Refused>);

/// The versions of a repository, of a model in it, or a single one.
fn targets(path: &Path) -> Result<Vec<Target>, Failure> {
    if is_model(path) {
        let name = folder_name(path).unwrap_or_else(|| "model".to_owned());
        let above = path.canonicalize().ok().and_then(|path| Some(path.parent()?.to_owned()));
        let is_version = |above: &PathBuf| name.parse::<u64>().is_ok() && folder_name(above).is_some();
        let name = match above.filter(is_version).as_deref().and_then(folder_name) {
            Some(model) => format!("{model}@{name}"),
            None => name,
        };
        return Ok(vec![(name, Ok(path.to_owned()))]);
    }
    let whole =
        path.canonicalize().map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
    // A folder with versions in it is a model, which its repository lists.
    let is_numbered = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let has_versions = std::fs::read_dir(&whole)
        .map_err(|error| Failure::input(format!("{}: {error}", path.display())))?
        .filter_map(Result::ok)
        .any(|entry| is_numbered(&entry.file_name().to_string_lossy()));
    let (root, only) = match (has_versions, whole.parent()) {
        (true, Some(root)) => (root.to_owned(), folder_name(&whole)),
        _ => (whole, None),
    };
    let found = read(&root)?;
    let models = found.models.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only == *name));
    let mut all = Vec::new();
    for (name, ScannedModel { versions, problem }) in models {
        for (number, version) in versions {
            let Version { usable, .. } = version;
            let directory = usable.clone().map(|_| version.directory(&root));
            all.push((format!("{name}@{number}"), directory));
        }
        all.extend(problem.clone().map(|problem| (name.clone(), Err(Refused::Model(problem)))));
    }
    Ok(all)
}

/// What was checked of a version.
fn check(name: &str, directory: &Path) -> Result<String, String> {
    let spec = directory.to_str().ok_or("its path is not UTF-8")?;
    let golden =
        pool::find_model(spec).and_then(|found| found.golden()).map_err(|error| error.to_string())?;
    let tier = TierConfig { name: Some(name.to_owned()), ..TierConfig::new(spec.to_owned()) };
    let config = Config { primary: Some(tier), ..Config::default() };
    let setup =
        pool::setup(&config, Clock::start(), BooksSetup::default()).map_err(|failure| failure.message)?;
    let primary = setup.models.first().expect("the configuration has a primary");
    let (version, dtype) = (primary.version.clone(), primary.dtype);
    let stated = match states_sha256(directory) {
        true => "as podium.json states",
        false => "which no podium.json states",
    };
    pool::check_golden(&config, setup).map_err(|failure| failure.message)?;
    let golden = match golden {
        Some(golden) => format!("{} golden pairs in {dtype}", golden.pairs().len()),
        None => "no golden pairs".to_owned(),
    };
    Ok(format!("sha256 {version}..., {stated}; {golden}"))
}

fn states_sha256(directory: &Path) -> bool {
    let papers = std::fs::read(directory.join("podium.json")).ok();
    let papers = papers.and_then(|papers| serde_json::from_slice::<Value>(&papers).ok());
    papers.is_some_and(|papers| papers.get("sha256").is_some_and(Value::is_string))
}

fn is_model(directory: &Path) -> bool {
    directory.join("config.json").is_file()
}
