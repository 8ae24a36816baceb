//! From what the user wrote to a directory: one that is there, or a hub id fetched and cached.

use super::ModelError;
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};
use std::path::{Path, PathBuf};

/// The files that a model is made of; the last one is optional.
const FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

/// Where hub models are looked for.
#[derive(Clone, Debug)]
pub struct Place {
    /// The hub's cache folder; none means `$HF_HOME` or its default.
    pub cache: Option<PathBuf>,
    /// Whether the network is left alone (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

/// Finds the directory of `spec`: a path, or a hub id as `owner/name` or `owner/name@revision`.
///
/// # Errors
/// [`ModelError::Missing`] for a path that is not there, [`ModelError::Unfetched`] for an id that
/// is neither cached nor to be fetched.
pub fn locate(spec: &str, place: &Place) -> Result<PathBuf, ModelError> {
    let path = Path::new(spec);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    let Some(repo) = hub_repo(spec) else {
        return Err(ModelError::Missing { path: path.to_owned() });
    };
    let cache = place.cache.clone().map_or_else(Cache::from_env, Cache::new);
    let cached: Vec<PathBuf> = FILES.iter().filter_map(|file| cache.repo(repo.clone()).get(file)).collect();
    if cached.len() == FILES.len() {
        return Ok(directory_of(&cached[0]));
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
    // The card says the licence; a model without one is served all the same.
    let _ = api.get("README.md");
    let mut directory = PathBuf::new();
    for file in FILES {
        let fetched = api.get(file).map_err(|error| unfetched(format!("{file}: {error}")))?;
        directory = directory_of(&fetched);
    }
    Ok(directory)
}

fn directory_of(file: &Path) -> PathBuf {
    file.parent().expect("a file is in a directory").to_owned()
}

/// `owner/name` or `owner/name@revision`; anything else is a path.
fn hub_repo(spec: &str) -> Option<Repo> {
    let (id, revision) = spec.split_once('@').unwrap_or((spec, "main"));
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let (owner, name) = id.split_once('/')?;
    let is_id = plain(owner) && plain(name) && plain(revision);
    is_id.then(|| Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned()))
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
    fn a_path_that_is_not_there_is_not_looked_for_on_the_hub() {
        let offline = Place { cache: None, offline: true };
        for spec in ["./nowhere", "../a/b", "/nowhere/at/all", "nowhere", "a/b/c", "a b/c"] {
            assert!(matches!(locate(spec, &offline), Err(ModelError::Missing { .. })), "{spec}");
        }
    }

    #[test]
    fn a_cached_id_is_found_without_a_network() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--owner--name");
        let snapshot = repo.join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(repo.join("refs")).unwrap();
        std::fs::write(repo.join("refs/main"), "abc").unwrap();
        for file in FILES {
            std::fs::write(snapshot.join(file), "").unwrap();
        }
        let offline = Place { cache: Some(cache.path().to_owned()), offline: true };
        assert_eq!(locate("owner/name", &offline).unwrap(), snapshot);
    }
}
