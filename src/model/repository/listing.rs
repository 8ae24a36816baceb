//! What the system says is in a repository.

use crate::base::Ns;
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Most entries of one folder. A version has some ten files; far more means that this is another folder than was meant.
const ENTRIES_MAX: usize = 10_000;
/// Folders below the repository: models, versions, and the modules of sentence-transformers in them.
const DEPTH: usize = 3;

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A file.
    File(Stamp),
    /// A folder with its entries by name, without those whose names begin with a dot.
    Folder(BTreeMap<String, Entry>),
    /// It cannot be read: the reason.
    Unreadable(String),
}

/// By what a file is known to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its length.
    pub bytes: u64,
    /// When its content was last modified, since 1970. A copy may keep the time of its original.
    pub modified: Ns,
    /// When the system last changed anything about it, since 1970. No program can set this to an earlier time.
    pub changed: Ns,
}

/// A repository that cannot be listed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("model repository {}: {reason}", .path.display())]
pub struct RepositoryError {
    /// The folder.
    pub path: PathBuf,
    /// The system's message.
    pub reason: String,
}

/// Lists a repository.
///
/// # Errors
/// [`RepositoryError`] if the folder itself cannot be read. What cannot be read in it is an [`Entry::Unreadable`].
pub fn list(root: &Path) -> Result<BTreeMap<String, Entry>, RepositoryError> {
    entries(root, DEPTH).map_err(|reason| RepositoryError { path: root.to_owned(), reason })
}

fn entries(folder: &Path, depth: usize) -> Result<BTreeMap<String, Entry>, String> {
    let message = |error: io::Error| error.to_string();
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(message)? {
        let entry = entry.map_err(message)?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if found.len() == ENTRIES_MAX {
            return Err(format!("has more than {ENTRIES_MAX} entries"));
        }
        let read = match name.to_str() {
            Some(_) => read(&entry.path(), depth),
            None => Some(Entry::Unreadable("its name is not UTF-8".to_owned())),
        };
        found.extend(read.map(|read| (name.to_string_lossy().into_owned(), read)));
    }
    Ok(found)
}

/// An entry; none if it has been removed meanwhile.
fn read(path: &Path, depth: usize) -> Option<Entry> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() && depth == 0 => Some(Entry::Folder(BTreeMap::new())),
        Ok(metadata) if metadata.is_dir() => {
            Some(entries(path, depth - 1).map_or_else(Entry::Unreadable, Entry::Folder))
        }
        Ok(metadata) if metadata.is_file() => Some(Entry::File(stamp(&metadata))),
        // Opening a pipe would wait for its writer.
        Ok(_) => Some(Entry::Unreadable("it is neither a file nor a folder".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.is_symlink() {
            true => Some(Entry::Unreadable("it is a link to nothing".to_owned())),
            false => None,
        },
        Err(error) => Some(Entry::Unreadable(error.to_string())),
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    let time = |seconds: i64, nanos: i64| Ns((seconds.max(0) as u64) * 1_000_000_000 + nanos as u64);
    Stamp {
        bytes: metadata.len(),
        modified: time(metadata.mtime(), metadata.mtime_nsec()),
        changed: time(metadata.ctime(), metadata.ctime_nsec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_listing_has_files_and_folders_and_what_cannot_be_read() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        fs::create_dir_all(root.join("m/1/2_Dense/deeper/still")).unwrap();
        fs::create_dir(root.join(".git")).unwrap();
        fs::write(root.join("m/1/config.json"), "{}").unwrap();
        fs::write(root.join("m/1/.config.json.swp"), "{").unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("m/2")).unwrap();
        std::os::unix::fs::symlink("1", root.join("m/3")).unwrap();
        std::os::unix::fs::symlink("..", root.join("m/4")).unwrap();
        fs::create_dir(root.join(OsStr::from_bytes(b"\xff"))).unwrap();
        let found = list(root).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["m", "\u{fffd}"]);
        assert_eq!(found["\u{fffd}"], Entry::Unreadable("its name is not UTF-8".to_owned()));
        let Entry::Folder(versions) = &found["m"] else { panic!("{found:?}") };
        assert_eq!(versions["2"], Entry::Unreadable("it is a link to nothing".to_owned()));
        assert_eq!(versions["3"], versions["1"]);
        // A link to a folder above it ends where folders have no more meaning.
        assert!(matches!(&versions["4"], Entry::Folder(_)));
        let Entry::Folder(files) = &versions["1"] else { panic!("{found:?}") };
        assert_eq!(files.keys().collect::<Vec<_>>(), ["2_Dense", "config.json"]);
        assert!(
            matches!(files["config.json"], Entry::File(Stamp { bytes: 2, modified, .. }) if modified > Ns(0))
        );
        assert_eq!(
            files["2_Dense"],
            Entry::Folder([("deeper".to_owned(), Entry::Folder(BTreeMap::new()))].into())
        );
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = list(Path::new("/nowhere/at/all")).unwrap_err().to_string();
        assert_eq!(error, "model repository /nowhere/at/all: No such file or directory (os error 2)");
    }

    #[test]
    fn a_folder_with_too_many_entries_is_not_a_repository() {
        let place = tempfile::tempdir().unwrap();
        let model = place.path().join("m");
        fs::create_dir(&model).unwrap();
        (0..=ENTRIES_MAX).for_each(|number| fs::write(model.join(number.to_string()), "").unwrap());
        let expected = Entry::Unreadable("has more than 10000 entries".to_owned());
        assert_eq!(list(place.path()).unwrap()["m"], expected);
        assert!(list(&model).is_err());
    }
}
