//! What has changed in a repository, once it is still.

use super::scan::{Scan, Version};
use crate::base::Ns;
use std::collections::{BTreeMap, BTreeSet};

/// A version that is there, gone or another than before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The model.
    pub model: String,
    /// The version.
    pub version: u64,
    /// What has happened.
    pub kind: ChangeKind,
}

/// What has happened to a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It was not there before.
    Added,
    /// Its folder, or the length or time of modification of a file, is another; or it can be used only now, or no more.
    Changed,
    /// It is no longer there.
    Removed,
}

impl Scan {
    /// What is different in a later scan, by model and version.
    pub fn changes(&self, later: &Self) -> Vec<Change> {
        let change = |(model, version): (String, u64)| {
            let kind = match (self.version(&model, version), later.version(&model, version)) {
                (None, None) => return None,
                (None, Some(_)) => ChangeKind::Added,
                (Some(_), None) => ChangeKind::Removed,
                (Some(before), Some(after)) if before.is_same(after) => return None,
                (Some(_), Some(_)) => ChangeKind::Changed,
            };
            Some(Change { model, version, kind })
        };
        let all: BTreeSet<_> = self.keys().chain(later.keys()).collect();
        all.into_iter().filter_map(change).collect()
    }

    fn keys(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let versions = |(name, model): (&String, &super::ScannedModel)| {
            let name = name.clone();
            model.versions.keys().map(move |&number| (name.clone(), number)).collect::<Vec<_>>()
        };
        self.models.iter().flat_map(versions)
    }
}

/// Passes changes on once they have been the same for some time, so that a version is not taken while it is copied.
#[derive(Debug)]
pub struct Watch {
    still: Ns,
    /// The versions as they were taken.
    taken: Scan,
    /// What differs from these, and since when it has been the same; none where a version is gone.
    pending: BTreeMap<(String, u64), (Option<Version>, Ns)>,
}

impl Watch {
    /// Begins with a first scan, at `now` since 1970. Versions of which no file has changed for `still` are taken at
    /// once; the others are still to be added.
    pub fn new(first: &Scan, still: Ns, now: Ns) -> Self {
        let mut watch = Self { still, taken: Scan::default(), pending: BTreeMap::new() };
        for (model, version) in first.keys() {
            let found = first.version(&model, version).expect("the keys are those of the scan");
            // A file's time may come from another machine's clock; one in the future says nothing.
            match found.changed().saturating_add(still) <= now {
                true => watch.take(&model, version, Some(found.clone())),
                false => {
                    watch.pending.insert((model, version), (Some(found.clone()), now));
                }
            }
        }
        watch
    }

    /// The versions that were taken. What has become of their files since is not in it.
    pub fn taken(&self) -> &Scan {
        &self.taken
    }

    /// Whether something differs from what was taken, and is not yet still.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes what a scan at `now` has found unchanged for long enough, and returns what that changes.
    pub fn observe(&mut self, scan: &Scan, now: Ns) -> Vec<Change> {
        let changes = self.taken.changes(scan);
        let differing: BTreeSet<_> =
            changes.iter().map(|change| (change.model.clone(), change.version)).collect();
        self.pending.retain(|key, _| differing.contains(key));
        let is_still = |change: &Change| {
            let key = (change.model.clone(), change.version);
            let seen = scan.version(&change.model, change.version);
            let is_same = |before: &Option<Version>| match (before, seen) {
                (Some(before), Some(seen)) => before.is_same(seen),
                (None, None) => true,
                _ => false,
            };
            match self.pending.get(&key) {
                Some((before, since)) if is_same(before) => now.saturating_sub(*since) >= self.still,
                _ => {
                    self.pending.insert(key, (seen.cloned(), now));
                    self.still == Ns::ZERO
                }
            }
        };
        let changes: Vec<Change> = changes.into_iter().filter(is_still).collect();
        for Change { model, version, .. } in &changes {
            self.take(model, *version, scan.version(model, *version).cloned());
        }
        changes
    }

    fn take(&mut self, model: &str, version: u64, found: Option<Version>) {
        self.pending.remove(&(model.to_owned(), version));
        let versions = &mut self.taken.models.entry(model.to_owned()).or_default().versions;
        match found {
            Some(found) => versions.insert(version, found),
            None => versions.remove(&version),
        };
        self.taken.models.retain(|_, model| !model.versions.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::listing;
    use super::super::{Entry, Facts};
    use super::*;

    /// A scan in which files of no bytes make a version that cannot be used.
    fn scan(files: &[(&str, u64, u64)]) -> Scan {
        let whole = |place: &str| {
            let is_in = |path: &str| path.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'));
            let is_whole = files.iter().filter(|(path, ..)| is_in(path)).all(|(_, bytes, _)| *bytes > 0);
            if is_whole { Ok(Facts::default()) } else { Err("truncated".to_owned()) }
        };
        Scan::of(&listing(files), &Scan::default(), whole)
    }

    fn shown(changes: &[Change]) -> Vec<String> {
        changes.iter().map(|Change { model, version, kind }| format!("{kind:?} {model}@{version}")).collect()
    }

    #[test]
    fn two_scans_differ_in_versions_that_were_added_removed_or_changed() {
        let before =
            scan(&[("a/1/x", 1, 1), ("a/2/x", 1, 1), ("a/3/x", 1, 1), ("b/1/x", 1, 1), ("b/1/y", 1, 1)]);
        let after =
            scan(&[("a/1/x", 1, 1), ("a/2/x", 2, 1), ("a/3/x", 1, 2), ("b/1/x", 1, 1), ("c/1/x", 1, 1)]);
        assert_eq!(
            shown(&before.changes(&after)),
            ["Changed a@2", "Changed a@3", "Changed b@1", "Added c@1"]
        );
        assert_eq!(
            shown(&after.changes(&before)),
            ["Changed a@2", "Changed a@3", "Changed b@1", "Removed c@1"]
        );
        assert_eq!(before.changes(&before), []);
        // Another folder of the same number is another version.
        assert_eq!(shown(&scan(&[("a/1/x", 1, 1)]).changes(&scan(&[("a/01/x", 1, 1)]))), ["Changed a@1"]);
        let both = scan(&[("a/1/x", 1, 1), ("a/01/x", 1, 1)]);
        assert_eq!(shown(&scan(&[("a/1/x", 1, 1)]).changes(&both)), ["Changed a@1"]);
    }

    #[test]
    fn a_version_that_is_copied_is_taken_when_it_is_still() {
        let first = scan(&[("m/1/x", 9, 1)]);
        let mut watch = Watch::new(&first, Ns(10), Ns(100));
        let mut observe = |files: &[(&str, u64, u64)], now| shown(&watch.observe(&scan(files), Ns(now)));
        let none: [String; 0] = [];
        assert_eq!(observe(&[("m/1/x", 9, 1)], 105), none);
        // The file grows, and keeps its original's time.
        assert_eq!(observe(&[("m/1/x", 9, 1), ("m/2/x", 0, 50)], 110), none);
        assert_eq!(observe(&[("m/1/x", 9, 1), ("m/2/x", 4, 50)], 119), none);
        assert_eq!(observe(&[("m/1/x", 9, 1), ("m/2/x", 8, 50)], 128), none);
        // A second file comes; then nothing more.
        assert_eq!(observe(&[("m/1/x", 9, 1), ("m/2/x", 8, 50), ("m/2/y", 8, 50)], 137), none);
        assert_eq!(observe(&[("m/1/x", 9, 1), ("m/2/x", 8, 50), ("m/2/y", 8, 50)], 146), none);
        let both = [("m/1/x", 9, 1), ("m/2/x", 8, 50), ("m/2/y", 8, 50)];
        assert_eq!(observe(&both, 147), ["Added m@2"]);
        assert_eq!(observe(&both, 200), none);
        assert!(!watch.is_waiting());
        assert_eq!(watch.taken(), &scan(&both));
    }

    #[test]
    fn a_version_that_is_replaced_is_taken_once() {
        let mut watch = Watch::new(&scan(&[("m/1/x", 9, 1)]), Ns(10), Ns(100));
        let mut observe = |files: &[(&str, u64, u64)], now| shown(&watch.observe(&scan(files), Ns(now)));
        let none: [String; 0] = [];
        // It is gone for a moment, and there again.
        assert_eq!(observe(&[], 100), none);
        assert_eq!(observe(&[("m/1/x", 0, 2)], 105), none);
        assert_eq!(observe(&[("m/1/x", 7, 2)], 112), none);
        assert_eq!(observe(&[("m/1/x", 7, 2)], 122), ["Changed m@1"]);
        // What is back as it was is no change.
        assert_eq!(observe(&[("m/1/x", 8, 3)], 130), none);
        assert_eq!(observe(&[("m/1/x", 7, 2)], 141), none);
        assert_eq!(observe(&[("m/1/x", 7, 2)], 160), none);
        assert_eq!(observe(&[], 170), none);
        assert_eq!(observe(&[], 180), ["Removed m@1"]);
        assert_eq!(watch.taken(), &Scan::default());
    }

    #[test]
    fn a_broken_version_is_told_and_taken_when_it_is_repaired() {
        let mut watch = Watch::new(&scan(&[("m/1/x", 9, 1), ("m/2/x", 0, 1)]), Ns(10), Ns(100));
        assert!(watch.taken().version("m", 2).unwrap().usable.is_err());
        let repaired = scan(&[("m/1/x", 9, 1), ("m/2/x", 9, 105)]);
        assert_eq!(watch.observe(&repaired, Ns(110)), []);
        assert_eq!(shown(&watch.observe(&repaired, Ns(120))), ["Changed m@2"]);
        assert!(watch.taken().version("m", 2).unwrap().usable.is_ok());
    }

    #[test]
    fn at_the_start_a_version_is_still_if_no_file_has_changed_lately() {
        let first = scan(&[("old/1/x", 1, 50), ("new/1/x", 1, 95), ("ahead/1/x", 1, 1000)]);
        let mut watch = Watch::new(&first, Ns(10), Ns(100));
        assert_eq!(watch.taken().models.keys().collect::<Vec<_>>(), ["old"]);
        assert!(watch.is_waiting());
        // A clock that is ahead delays a version by no more than that.
        assert_eq!(shown(&watch.observe(&first, Ns(110))), ["Added ahead@1", "Added new@1"]);
    }

    #[test]
    fn a_folder_that_cannot_be_read_for_a_while_removes_nothing() {
        let first = scan(&[("m/1/x", 1, 1)]);
        let mut watch = Watch::new(&first, Ns(10), Ns(100));
        let broken = [("m".to_owned(), Entry::Unreadable("Stale file handle".to_owned()))].into();
        let unread = Scan::of(&broken, &first, |_| Ok(Facts::default()));
        assert_eq!((watch.observe(&unread, Ns(110)), watch.observe(&unread, Ns(200))), (vec![], vec![]));
    }

    #[test]
    fn without_a_time_to_wait_changes_are_taken_at_once() {
        let mut watch = Watch::new(&Scan::default(), Ns::ZERO, Ns(100));
        assert_eq!(shown(&watch.observe(&scan(&[("m/1/x", 1, 100)]), Ns(100))), ["Added m@1"]);
    }
}
