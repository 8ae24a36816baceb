//! Finds a model's directory: a local path, or a hub id that is downloaded and cached.

use super::ModelError;
use super::arch::{Module, listed};
use super::directory::{
    CROSS_ENCODER_CONFIG, INDEX, MODULES, SENTENCE_CONFIG, TOKENIZER_CONFIG, WEIGHTS, shard_names,
};
use super::prompt::CHAT_TEMPLATE;
use crate::base::ModelRef;
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};
use std::path::{Path, PathBuf};

/// Optional files of a model. The card, README.md, has the licence.
const OPTIONAL: [&str; 6] =
    ["README.md", "podium.json", TOKENIZER_CONFIG, SENTENCE_CONFIG, CROSS_ENCODER_CONFIG, CHAT_TEMPLATE];

/// Where to look for hub models.
#[derive(Clone, Debug)]
pub struct Place {
    /// The hub's cache folder; none for `$HF_HOME` or its default.
    pub cache: Option<PathBuf>,
    /// Whether downloads are forbidden (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

/// Finds the directory of `spec`: a path, or a hub id as `owner/name` or `owner/name@revision`.
///
/// # Errors
/// [`ModelError::NoDirectory`] for a path that is no directory, [`ModelError::Unfetched`] for an id that is neither
/// cached nor to be fetched.
pub fn locate(spec: &str, place: &Place) -> Result<PathBuf, ModelError> {
    let path = Path::new(spec);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    let Some(repo) = hub_repo(spec).filter(|_| !path.exists()) else {
        return Err(ModelError::NoDirectory { path: path.to_owned() });
    };
    let cache = place.cache.clone().map_or_else(Cache::from_env, Cache::new);
    let in_cache = cache.repo(repo.clone());
    if let Ok(directory) = fetch(&|file| in_cache.get(file).ok_or_else(|| "is not cached".to_owned())) {
        return Ok(directory);
    }
    let unfetched = |reason: String| ModelError::Unfetched { id: spec.to_owned(), reason };
    if place.offline {
        return Err(unfetched("HF_HUB_OFFLINE is set".to_owned()));
    }
    let api = ApiBuilder::from_cache(cache)
        .with_progress(false)
        .with_retries(1)
        .build()
        .map_err(|error| unfetched(error.to_string()))?
        .repo(repo);
    fetch(&|file| api.get(file).map_err(|error| error.to_string())).map_err(unfetched)
}

/// Downloads a model's files one by one, the required and the optional ones, and returns their directory.
///
/// # Errors
/// The message names the file and the reason.
fn fetch(get: &dyn Fn(&str) -> Result<PathBuf, String>) -> Result<PathBuf, String> {
    let needed = |file: &str| get(file).map_err(|reason| format!("{file}: {reason}"));
    let config = needed("config.json")?;
    for file in OPTIONAL {
        let _ = get(file);
    }
    // A model without a tokenizer.json may have BERT's vocabulary.
    needed("tokenizer.json").or_else(|missing| get("vocab.txt").map_err(|_| missing))?;
    if let Err(missing) = needed(WEIGHTS) {
        let Ok(index) = get(INDEX) else {
            return Err(format!(
                "{missing}; if the model has only pytorch_model.bin, save it with `transformers` as safetensors, and give \
                 that directory"
            ));
        };
        let index = std::fs::read(&index).map_err(|error| format!("{INDEX}: {error}"))?;
        for shard in shard_names(&index).map_err(|reason| format!("{INDEX}: {reason}"))? {
            needed(&shard)?;
        }
    }
    if let Ok(modules) = get(MODULES) {
        let modules = std::fs::read(&modules).map_err(|error| format!("{MODULES}: {error}"))?;
        for (folder, kind) in listed(&modules).map_err(|reason| format!("{MODULES}: {reason}"))? {
            needed(&format!("{folder}/config.json"))?;
            if Module::has_weights(&kind) {
                needed(&format!("{folder}/{WEIGHTS}"))?;
            }
        }
    }
    Ok(directory_of(&config))
}

fn directory_of(file: &Path) -> PathBuf {
    file.parent().expect("a file is in a directory").to_owned()
}

/// Parses `owner/name` or `owner/name@revision`; anything else is a path.
fn hub_repo(spec: &str) -> Option<Repo> {
    let ModelRef { name: id, version } = spec.parse().ok()?;
    let revision = version.unwrap_or_else(|| "main".to_owned());
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let (owner, name) = id.split_once('/')?;
    let is_id = plain(owner) && plain(name) && plain(&revision);
    is_id.then(|| Repo::with_revision(id.clone(), RepoType::Model, revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_as_it_is() {
        let place = tempfile::tempdir().unwrap();
        let spec = place.path().to_str().unwrap();
        let offline = Place { cache: None, offline: true };
        assert_eq!(locate(spec, &offline).unwrap(), place.path());
    }

    #[test]
    fn an_id_that_cannot_be_had_says_what_to_do() {
        let cache = tempfile::tempdir().unwrap();
        let offline = Place { cache: Some(cache.path().to_owned()), offline: true };
        let error = locate("owner/name", &offline).unwrap_err().to_string();
        assert!(error.contains("give a directory with config.json"), "{error}");
    }

    #[test]
    fn a_path_that_is_no_directory_is_not_looked_for_on_the_hub() {
        let offline = Place { cache: None, offline: true };
        for spec in ["./nowhere", "../a/b", "/nowhere/at/all", "nowhere", "a/b/c", "a b/c"] {
            let error = locate(spec, &offline).unwrap_err();
            assert!(matches!(error, ModelError::NoDirectory { .. }), "{spec}");
            let error = error.to_string();
            assert!(error.starts_with(&format!("there is no directory {spec}; give a directory")), "{error}");
        }
        // A file in a folder looks like a hub id.
        let error = locate("src/lib.rs", &offline).unwrap_err().to_string();
        assert!(error.starts_with("src/lib.rs is a file, and a model is a directory; give"), "{error}");
    }

    /// A hub's cache that holds these files of `owner/name`.
    fn cached(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--owner--name");
        let snapshot = repo.join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(repo.join("refs")).unwrap();
        std::fs::write(repo.join("refs/main"), "abc").unwrap();
        for (file, content) in files {
            std::fs::write(snapshot.join(file), content).unwrap();
        }
        (cache, snapshot)
    }

    #[test]
    fn a_cached_id_is_found_without_a_network_where_it_is_whole() {
        let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        let rows: [(&[(&str, &str)], bool); 7] = [
            (&[("config.json", ""), ("tokenizer.json", ""), (WEIGHTS, "")], true),
            (&[("config.json", ""), ("vocab.txt", ""), (WEIGHTS, "")], true),
            (&[("config.json", ""), ("tokenizer.json", ""), ("pytorch_model.bin", "")], false),
            (&[("config.json", ""), (WEIGHTS, "")], false),
            (&[("tokenizer.json", ""), (WEIGHTS, "")], false),
            (
                &[
                    ("config.json", ""),
                    ("vocab.txt", ""),
                    (INDEX, index),
                    ("1.safetensors", ""),
                    ("2.safetensors", ""),
                ],
                true,
            ),
            (&[("config.json", ""), ("vocab.txt", ""), (INDEX, index), ("1.safetensors", "")], false),
        ];
        for (files, is_whole) in rows {
            let (cache, snapshot) = cached(files);
            let offline = Place { cache: Some(cache.path().to_owned()), offline: true };
            let found = locate("owner/name", &offline).ok();
            assert_eq!(found, is_whole.then_some(snapshot), "{files:?}");
        }
    }

    #[test]
    fn what_is_fetched_is_what_the_model_has_and_a_file_that_lacks_is_named() {
        use std::cell::RefCell;
        let index = r#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "1.safetensors"}}"#;
        let (_cache, snapshot) = cached(&[("config.json", ""), ("vocab.txt", ""), (INDEX, index)]);
        let asked = RefCell::new(Vec::new());
        let fetch_with = |there: &[&str]| {
            asked.borrow_mut().clear();
            fetch(&|file| {
                asked.borrow_mut().push(file.to_owned());
                there.contains(&file).then(|| snapshot.join(file)).ok_or_else(|| "404".to_owned())
            })
        };
        let all = ["config.json", "vocab.txt", SENTENCE_CONFIG, INDEX, "1.safetensors", "2.safetensors"];
        assert_eq!(fetch_with(&all), Ok(snapshot.clone()));
        let order =
            [&["config.json"][..], &OPTIONAL, &["tokenizer.json", "vocab.txt", WEIGHTS, INDEX]].concat();
        let order = [&order[..], &["1.safetensors", "2.safetensors", MODULES]].concat();
        assert_eq!(*asked.borrow(), order);
        assert_eq!(fetch_with(&all[..5]), Err("2.safetensors: 404".to_owned()));
        let error = fetch_with(&all[..2]).unwrap_err();
        assert!(
            error.starts_with("model.safetensors: 404; if the model has only pytorch_model.bin"),
            "{error}"
        );
        assert_eq!(fetch_with(&["config.json", WEIGHTS]), Err("tokenizer.json: 404".to_owned()));
        assert_eq!(fetch_with(&[]), Err("config.json: 404".to_owned()));
    }
    #[test]
    fn modules_are_fetched_with_their_weights() {
        let modules = r#"[{"idx": 0, "path": "", "type": "a.Transformer"},
            {"idx": 2, "path": "2_Dense", "type": "a.Dense"}, {"idx": 1, "path": "1_Pooling", "type": "a.Pooling"}]"#;
        let (_cache, snapshot) = cached(&[("config.json", ""), ("vocab.txt", ""), (MODULES, modules)]);
        let fetch_without = |missing: &str| {
            fetch(&|file| (file != missing).then(|| snapshot.join(file)).ok_or_else(|| "404".to_owned()))
        };
        assert_eq!(fetch_without("none"), Ok(snapshot.clone()));
        assert_eq!(fetch_without("1_Pooling/model.safetensors"), Ok(snapshot.clone()));
        for missing in ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"] {
            assert_eq!(fetch_without(missing), Err(format!("{missing}: 404")));
        }
    }
}
