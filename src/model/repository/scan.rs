//! Which versions of a repository can be used, and why others cannot.

use super::layout::{LaidModel, LaidVersion, Refused, layout, number, quoted};
use super::listing::{Entry, RepositoryError, Stamp, list};
use super::policy::VersionPolicy;
use crate::base::{ModelRef, Ns};
use crate::model::UnreadModel;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The models of a repository, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The models.
    pub models: BTreeMap<String, ScannedModel>,
}

/// A model of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScannedModel {
    /// Its versions by number.
    pub versions: BTreeMap<u64, Version>,
    /// Why it has no versions, or why they are those that were seen before.
    pub problem: Option<String>,
}

/// A version of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its folder, below the repository.
    pub place: String,
    /// Its files, by their paths in the folder.
    pub files: BTreeMap<String, Stamp>,
    /// What it is, or why it cannot be used.
    pub usable: Result<Facts, Refused>,
}

/// What the headers of a model's files tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The architecture's name.
    pub architecture: String,
    /// How many parameters it has.
    pub parameters: u64,
    /// How many golden pairs it has.
    pub golden_pairs: usize,
}

/// Why a name means no version that can be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Unresolved {
    /// No model has the name.
    #[error("there is no model `{name}` in the repository; it has {models}")]
    Model {
        /// The name.
        name: String,
        /// Those that are there.
        models: String,
    },
    /// The model has no such version.
    #[error("model `{name}` has no version `{version}`; it has {versions}")]
    Version {
        /// The model.
        name: String,
        /// The version.
        version: String,
        /// Those that are there.
        versions: String,
    },
    /// The version cannot be used.
    #[error("version {version} of model `{name}` cannot be used: {why}")]
    Refused {
        /// The model.
        name: String,
        /// The version.
        version: u64,
        /// The reason.
        why: Refused,
    },
    /// No version can be used.
    #[error("model `{name}` has no version that can be used: {why}")]
    Nothing {
        /// The model.
        name: String,
        /// The reason.
        why: String,
    },
}

/// Lists a repository, and reads the headers of those versions that were not read before.
///
/// # Errors
/// [`RepositoryError`] if the repository itself cannot be listed.
pub fn scan(root: &Path, before: &Scan) -> Result<Scan, RepositoryError> {
    Ok(Scan::of(&list(root)?, before, |place| facts(&root.join(place))))
}

fn facts(directory: &Path) -> Result<Facts, String> {
    let found = UnreadModel::find(directory).map_err(|error| error.to_string())?;
    let golden = found.golden().map_err(|error| error.to_string())?;
    Ok(Facts {
        architecture: found.plan.family.to_string(),
        parameters: found.plan.parameters() as u64,
        golden_pairs: golden.map_or(0, |golden| golden.pairs().len()),
    })
}

impl Scan {
    /// The models of a listing. `check` reads a version's headers by its place; where the files of a sound version are
    /// those that `before` has, it is not called again.
    pub fn of(
        listing: &BTreeMap<String, Entry>,
        before: &Self,
        mut check: impl FnMut(&str) -> Result<Facts, String>,
    ) -> Self {
        let mut model = |(name, laid): (String, LaidModel)| {
            let LaidModel { versions, problem, is_unreadable } = laid;
            let known = before.models.get(&name).map(|model| &model.versions);
            let versions = match known {
                // Nothing is known to be removed from a folder that cannot be read now.
                Some(known) if is_unreadable => known.clone(),
                _ => {
                    let version = |(number, laid): (u64, LaidVersion)| {
                        let known = known.and_then(|known| known.get(&number));
                        (number, Version::of(laid, known, &mut check))
                    };
                    versions.into_iter().map(version).collect()
                }
            };
            (name, ScannedModel { versions, problem })
        };
        Self { models: layout(listing).into_iter().map(&mut model).collect() }
    }

    /// A version of a model.
    pub fn version(&self, model: &str, number: u64) -> Option<&Version> {
        self.models.get(model)?.versions.get(&number)
    }

    /// The version that a name means: the named one, or the newest that the policy serves.
    ///
    /// # Errors
    /// [`Unresolved`], which lists what there is.
    pub fn resolve(&self, asked: &ModelRef, policy: &VersionPolicy) -> Result<(u64, &Version), Unresolved> {
        let name = || asked.name.clone();
        let Some(model) = self.models.get(&asked.name) else {
            let models: Vec<&String> = self.models.keys().collect();
            let models = if models.is_empty() { "none".to_owned() } else { quoted(&models) };
            return Err(Unresolved::Model { name: name(), models });
        };
        let nothing =
            || model.problem.clone().unwrap_or_else(|| "the version policy selects none".to_owned());
        let chosen = match &asked.version {
            Some(version) => {
                // One spelling for each version: `01` is none.
                let canonical = number(version).filter(|number| number.to_string() == *version);
                let there = canonical.filter(|number| model.versions.contains_key(number));
                there.ok_or_else(|| Unresolved::Version {
                    name: name(),
                    version: version.clone(),
                    versions: match model.versions.is_empty() {
                        true => "none".to_owned(),
                        false => quoted(&model.versions.keys().collect::<Vec<_>>()),
                    },
                })?
            }
            None => {
                let selected = policy.select(&model.versions);
                let first = selected.take.first().or(selected.passed_over.first()).copied();
                first.ok_or_else(|| Unresolved::Nothing { name: name(), why: nothing() })?
            }
        };
        let version = &model.versions[&chosen];
        match &version.usable {
            Ok(_) => Ok((chosen, version)),
            Err(why) => Err(Unresolved::Refused { name: name(), version: chosen, why: why.clone() }),
        }
    }
}

impl Version {
    fn of(
        LaidVersion { place, files, refused }: LaidVersion,
        known: Option<&Self>,
        check: &mut impl FnMut(&str) -> Result<Facts, String>,
    ) -> Self {
        // A version that was refused is read again: a change of its permissions changes no file.
        let is_known = |known: &&Self| known.usable.is_ok() && known.place == place && known.files == files;
        let usable = match (refused, known.filter(is_known)) {
            (Some(refused), _) => Err(refused),
            (None, Some(known)) => known.usable.clone(),
            (None, None) => check(&place).map_err(Refused::Model),
        };
        Self { place, files, usable }
    }

    /// Whether another scan has found the same: by the lengths and times of modification of its files.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(one, other): ((&String, &Stamp), (&String, &Stamp))| {
            one.0 == other.0 && one.1.bytes == other.1.bytes && one.1.modified == other.1.modified
        };
        self.place == other.place
            && self.usable.is_ok() == other.usable.is_ok()
            && self.files.len() == other.files.len()
            && self.files.iter().zip(&other.files).all(same)
    }

    /// The bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|stamp| stamp.bytes).sum()
    }

    /// When one of its files was last changed, since 1970.
    pub fn changed(&self) -> Ns {
        self.files.values().map(|stamp| stamp.changed).max().unwrap_or(Ns::ZERO)
    }

    /// Its folder.
    pub fn directory(&self, root: &Path) -> PathBuf {
        root.join(&self.place)
    }
}

#[cfg(test)]
pub(super) use tests::listing;

#[cfg(test)]
mod tests {
    use super::*;

    /// A listing from paths such as `m/1/config.json`, with each file's length and time of modification.
    pub fn listing(files: &[(&str, u64, u64)]) -> BTreeMap<String, Entry> {
        let mut root = BTreeMap::new();
        for &(path, bytes, at) in files {
            let (folders, file) = path.rsplit_once('/').unwrap();
            let mut entries = &mut root;
            for folder in folders.split('/') {
                let entry =
                    entries.entry(folder.to_owned()).or_insert_with(|| Entry::Folder(BTreeMap::new()));
                let Entry::Folder(inner) = entry else { panic!("{path}") };
                entries = inner;
            }
            let stamp = Stamp { bytes, modified: Ns(at), changed: Ns(at) };
            entries.insert(file.to_owned(), Entry::File(stamp));
        }
        root
    }

    #[test]
    fn sound_versions_are_read_once() {
        let files = [("m/1/a", 1, 1), ("m/2/a", 1, 1), ("n/1/a", 1, 1)];
        let mut read = Vec::new();
        let mut scan = |files: &[(&str, u64, u64)], before: &Scan| {
            read.clear();
            let after = Scan::of(&listing(files), before, |place| {
                read.push(place.to_owned());
                if place == "m/2" { Err("truncated".to_owned()) } else { Ok(Facts::default()) }
            });
            (after, read.clone())
        };
        let (first, read) = scan(&files, &Scan::default());
        assert_eq!(read, ["m/1", "m/2", "n/1"]);
        assert_eq!(first.version("m", 2).unwrap().usable, Err(Refused::Model("truncated".to_owned())));
        // A refused one is read each time, others where a file has changed.
        let (same, read) = scan(&files, &first);
        assert_eq!((&same, read), (&first, vec!["m/2".to_owned()]));
        let (_, read) = scan(&[("m/1/a", 2, 1), ("n/1/a", 1, 2), ("n/2/a", 1, 1)], &first);
        assert_eq!(read, ["m/1", "n/1", "n/2"]);
    }

    #[test]
    fn nothing_is_removed_from_a_folder_that_cannot_be_read() {
        let sound = |_: &str| Ok(Facts::default());
        let first = Scan::of(&listing(&[("m/1/a", 1, 1), ("n/1/a", 1, 1)]), &Scan::default(), sound);
        let mut now = listing(&[("n/1/a", 1, 1)]);
        now.insert("m".to_owned(), Entry::Unreadable("Stale file handle".to_owned()));
        let second = Scan::of(&now, &first, sound);
        assert_eq!(second.models["m"].versions, first.models["m"].versions);
        assert_eq!(second.models["m"].problem.as_deref(), Some("it cannot be read: Stale file handle"));
        let third = Scan::of(&listing(&[("m/1/a", 1, 1), ("n/1/a", 1, 1)]), &second, sound);
        assert_eq!(third, first);
    }

    #[test]
    fn a_name_means_a_version_or_an_error_lists_what_there_is() {
        let files =
            [("m/1/a", 1, 1), ("m/2/a", 1, 1), ("m/3/a", 1, 1), ("broken/4/a", 1, 1), ("odd/v1/a", 1, 1)];
        let check = |place: &str| match place {
            "m/3" | "broken/4" => Err("truncated".to_owned()),
            _ => Ok(Facts::default()),
        };
        let scan = Scan::of(&listing(&files), &Scan::default(), check);
        let resolve = |name: &str| {
            let found = scan.resolve(&name.parse().unwrap(), &VersionPolicy::default());
            found.map(|(number, _)| number).map_err(|error| error.to_string())
        };
        assert_eq!(resolve("m"), Ok(2));
        assert_eq!(resolve("m@1"), Ok(1));
        for (name, expected) in [
            ("m@3", "version 3 of model `m` cannot be used: truncated"),
            ("m@7", "model `m` has no version `7`; it has `1`, `2`, `3`"),
            ("m@01", "model `m` has no version `01`; it has `1`, `2`, `3`"),
            ("m@latest", "model `m` has no version `latest`; it has `1`, `2`, `3`"),
            ("x", "there is no model `x` in the repository; it has `broken`, `m`, `odd`"),
            ("broken", "version 4 of model `broken` cannot be used: truncated"),
        ] {
            assert_eq!(resolve(name), Err(expected.to_owned()));
        }
        assert!(
            resolve("odd").unwrap_err().starts_with("model `odd` has no version that can be used: it has no")
        );
        let empty = Scan::default().resolve(&"x".parse().unwrap(), &VersionPolicy::default()).unwrap_err();
        assert_eq!(empty.to_string(), "there is no model `x` in the repository; it has none");
    }
}
