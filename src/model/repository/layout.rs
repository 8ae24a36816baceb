//! Which folders of a repository are models, and which are versions.

use super::listing::{Entry, Stamp};
use crate::base::ModelRef;
use std::collections::BTreeMap;
use thiserror::Error;

/// The version that a model's folder is which is a model directory itself.
const ONLY: u64 = 1;
/// Names of weights, which tell a model directory from a folder that has a config.json of another kind.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// Names that a message lists.
const SHOWN_MAX: usize = 8;

/// Why a version cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// Several folders have its number.
    #[error("{} are the same version; keep one of them", quoted(.places))]
    SameNumber {
        /// The folders, below the repository.
        places: Vec<String>,
    },
    /// Its folder has no files.
    #[error("its folder is empty")]
    Empty,
    /// There is a file instead of a folder.
    #[error("it is a file, and a version is a folder")]
    NotAFolder,
    /// Its folder cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// Its files are no model that can be served.
    #[error("{0}")]
    Model(String),
}

/// A model's folder.
#[derive(Debug, Default, PartialEq)]
pub(super) struct LaidModel {
    pub versions: BTreeMap<u64, LaidVersion>,
    /// Why it has no versions.
    pub problem: Option<String>,
    /// Whether its folder could not be read, so that nothing is known of its versions.
    pub is_unreadable: bool,
}

/// A version's folder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LaidVersion {
    /// Below the repository.
    pub place: String,
    pub files: BTreeMap<String, Stamp>,
    pub refused: Option<Refused>,
}

/// The models of a listing. Files beside them are none.
pub(super) fn layout(listing: &BTreeMap<String, Entry>) -> BTreeMap<String, LaidModel> {
    let model = |(name, entry): (&String, &Entry)| {
        let laid = match entry {
            Entry::File(_) => return None,
            Entry::Unreadable(why) => LaidModel {
                problem: Some(format!("it cannot be read: {why}")),
                is_unreadable: true,
                ..LaidModel::default()
            },
            Entry::Folder(_) if name.contains(ModelRef::SEPARATOR) => LaidModel {
                problem: Some("its name has an `@`, which separates a version; rename it".to_owned()),
                ..LaidModel::default()
            },
            Entry::Folder(entries) => folder(name, entries),
        };
        Some((name.clone(), laid))
    };
    listing.iter().filter_map(model).collect()
}

fn folder(name: &str, entries: &BTreeMap<String, Entry>) -> LaidModel {
    let mut places: BTreeMap<u64, Vec<(String, &Entry)>> = BTreeMap::new();
    for (folder, entry) in entries {
        if let Some(number) = number(folder) {
            places.entry(number).or_default().push((format!("{name}/{folder}"), entry));
        }
    }
    let whole;
    if is_model(entries) {
        // Numbered folders in it are versions of their own.
        let own = |(name, _): &(&String, &Entry)| number(name).is_none();
        let own = entries.iter().filter(own).map(|(name, entry)| (name.clone(), entry.clone()));
        whole = Entry::Folder(own.collect());
        places.entry(ONLY).or_default().push((name.to_owned(), &whole));
    }
    let versions: BTreeMap<u64, LaidVersion> =
        places.into_iter().map(|(number, places)| (number, version(&places))).collect();
    let problem = versions.is_empty().then(|| {
        let names: Vec<&String> = entries.keys().collect();
        let has = if names.is_empty() { "nothing".to_owned() } else { quoted(&names) };
        format!(
            "it has no version: neither a folder named by a number, nor config.json with model.safetensors; it has {has}"
        )
    });
    LaidModel { versions, problem, is_unreadable: false }
}

fn version(places: &[(String, &Entry)]) -> LaidVersion {
    let (place, entry) = &places[0];
    let mut files = BTreeMap::new();
    let refused = match entry {
        Entry::Folder(entries) => {
            collect("", entries, &mut files);
            files.is_empty().then_some(Refused::Empty)
        }
        Entry::File(_) => Some(Refused::NotAFolder),
        Entry::Unreadable(why) => Some(Refused::Unreadable(why.clone())),
    };
    match places.len() {
        1 => LaidVersion { place: place.clone(), files, refused },
        _ => {
            let places = places.iter().map(|(place, _)| place.clone()).collect();
            // None of them is the version, so none of their files is.
            let files = BTreeMap::new();
            LaidVersion { place: place.clone(), files, refused: Some(Refused::SameNumber { places }) }
        }
    }
}

/// The files of a folder and of those in it, by their paths.
fn collect(before: &str, entries: &BTreeMap<String, Entry>, files: &mut BTreeMap<String, Stamp>) {
    for (name, entry) in entries {
        match entry {
            Entry::File(stamp) => {
                files.insert(format!("{before}{name}"), *stamp);
            }
            Entry::Folder(entries) => collect(&format!("{before}{name}/"), entries, files),
            // Opening the model says why, if it needs the file.
            Entry::Unreadable(_) => {}
        }
    }
}

fn is_model(entries: &BTreeMap<String, Entry>) -> bool {
    entries.contains_key("config.json") && WEIGHTS.iter().any(|name| entries.contains_key(*name))
}

/// The number that a folder's name is; at most that of Triton's and TensorFlow Serving's 63 bits.
pub(super) fn number(name: &str) -> Option<u64> {
    let is_plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| name.parse().ok()).flatten().filter(|&number: &u64| number <= i64::MAX as u64)
}

/// Names for a message, not too many.
pub(super) fn quoted<T: std::fmt::Display>(names: &[T]) -> String {
    let shown: Vec<String> = names.iter().take(SHOWN_MAX).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(SHOWN_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Ns;

    fn file() -> Entry {
        Entry::File(Stamp { bytes: 1, modified: Ns(1), changed: Ns(1) })
    }

    fn folder_of(entries: &[(&str, Entry)]) -> Entry {
        Entry::Folder(entries.iter().map(|(name, entry)| ((*name).to_owned(), entry.clone())).collect())
    }

    fn model() -> Entry {
        folder_of(&[("config.json", file()), ("model.safetensors", file())])
    }

    /// Each version with its place, or why it cannot be used; or why there is none.
    fn laid(entries: &[(&str, Entry)]) -> Vec<String> {
        let Entry::Folder(listing) = folder_of(&[("m", folder_of(entries))]) else { unreachable!() };
        let LaidModel { versions, problem, .. } = layout(&listing).remove("m").unwrap();
        let shown = |(number, version): (&u64, &LaidVersion)| match &version.refused {
            None => format!("{number}: {}", version.place),
            Some(why) => format!("{number}: {why}"),
        };
        versions.iter().map(shown).chain(problem).collect()
    }

    #[test]
    fn folders_named_by_a_number_are_versions() {
        let entries = ["1", "20261124", "0", "9223372036854775807"].map(|name| (name, model()));
        assert_eq!(
            laid(&entries),
            ["0: m/0", "1: m/1", "20261124: m/20261124", "9223372036854775807: m/9223372036854775807"]
        );
        // As in Triton and TensorFlow Serving, other names are not versions; TFS reads leading zeros.
        let others = ["v1", "1.0", "-1", "+1", "1a", " 1", "warmup", "9223372036854775808", "٣"];
        let entries: Vec<(&str, Entry)> =
            others.into_iter().chain(["00000123"]).map(|name| (name, model())).collect();
        assert_eq!(laid(&entries), ["123: m/00000123"]);
    }

    #[test]
    fn two_folders_of_one_number_are_neither_taken() {
        let entries = ["01", "1", "001", "2"].map(|name| (name, model()));
        assert_eq!(
            laid(&entries),
            ["1: `m/001`, `m/01`, `m/1` are the same version; keep one of them", "2: m/2"]
        );
    }

    #[test]
    fn a_model_directory_is_version_1() {
        let own = [("config.json", file()), ("model.safetensors", file()), ("1_Pooling", folder_of(&[]))];
        assert_eq!(laid(&own), ["1: m"]);
        let with = |more: &str| laid(&[&own[..], &[(more, model())]].concat());
        assert_eq!(with("2"), ["1: m", "2: m/2"]);
        assert_eq!(with("1"), ["1: `m/1`, `m` are the same version; keep one of them"]);
        // A config.json alone, as Triton's config.pbtxt, describes the versions beside it.
        assert_eq!(laid(&[("config.json", file()), ("1", model())]), ["1: m/1"]);
    }

    #[test]
    fn the_files_of_versions_are_no_files_of_the_model_beside_them() {
        let own = [("config.json", file()), ("model.safetensors", file())];
        let Entry::Folder(listing) = folder_of(&[("m", folder_of(&[&own[..], &[("2", model())]].concat()))])
        else {
            unreachable!()
        };
        let found = layout(&listing);
        let names: Vec<&String> = found["m"].versions[&1].files.keys().collect();
        assert_eq!(names, ["config.json", "model.safetensors"]);
    }

    #[test]
    fn a_version_that_is_no_folder_with_files_is_refused() {
        let unreadable = Entry::Unreadable("Permission denied (os error 13)".to_owned());
        let entries = [("1", folder_of(&[])), ("2", file()), ("3", unreadable), ("4", model())];
        assert_eq!(
            laid(&entries),
            [
                "1: its folder is empty",
                "2: it is a file, and a version is a folder",
                "3: it cannot be read: Permission denied (os error 13)",
                "4: m/4",
            ]
        );
    }

    #[test]
    fn a_model_without_versions_says_what_it_has() {
        let expected = "it has no version: neither a folder named by a number, nor config.json with model.safetensors; it has";
        assert_eq!(laid(&[]), [format!("{expected} nothing")]);
        assert_eq!(
            laid(&[("latest", model()), ("config.pbtxt", file())]),
            [format!("{expected} `config.pbtxt`, `latest`")]
        );
        let many: Vec<String> = (0..20).map(|number| format!("v{number:02}")).collect();
        let many: Vec<(&str, Entry)> = many.iter().map(|name| (name.as_str(), file())).collect();
        assert!(laid(&many)[0].ends_with("`v06`, `v07` and 12 more"));
    }

    #[test]
    fn only_folders_are_models_and_their_names_have_no_separator() {
        let unreadable = Entry::Unreadable("Permission denied (os error 13)".to_owned());
        let Entry::Folder(listing) = folder_of(&[
            ("README.md", file()),
            ("a@b", folder_of(&[("1", model())])),
            ("lost+found", unreadable),
        ]) else {
            unreachable!()
        };
        let found = layout(&listing);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a@b", "lost+found"]);
        assert!(found["a@b"].versions.is_empty() && !found["a@b"].is_unreadable);
        assert!(found["lost+found"].is_unreadable);
        let problem = found["lost+found"].problem.as_deref();
        assert_eq!(problem, Some("it cannot be read: Permission denied (os error 13)"));
    }
}
