//! Which versions of a model are served.

use super::scan::Version;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::num::NonZeroU32;

/// The versions of a model that are served. TensorFlow Serving's and Triton's policies.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionPolicy {
    /// The newest ones, as many as this.
    Latest(NonZeroU32),
    /// All.
    All,
    /// These.
    Specific(Vec<u64>),
}

/// What a policy selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// The versions to serve, newest first.
    pub take: Vec<u64>,
    /// Those that would be served if they could be used, newest first.
    pub passed_over: Vec<u64>,
    /// Those that are named and are not there.
    pub missing: Vec<u64>,
}

impl Default for VersionPolicy {
    fn default() -> Self {
        Self::Latest(NonZeroU32::MIN)
    }
}

impl VersionPolicy {
    /// Selects among a model's versions. The newest ones are counted among those that can be used, so that a broken
    /// version takes no sound one's place.
    pub fn select(&self, versions: &BTreeMap<u64, Version>) -> Selected {
        let mut selected = Selected::default();
        if let Self::Specific(named) = self {
            selected.missing =
                named.iter().copied().filter(|number| !versions.contains_key(number)).collect();
        }
        for (&number, version) in versions.iter().rev() {
            let is_wanted = match self {
                Self::Latest(count) => selected.take.len() < count.get() as usize,
                Self::All => true,
                Self::Specific(named) => named.contains(&number),
            };
            match version.usable {
                _ if !is_wanted => {}
                Ok(_) => selected.take.push(number),
                Err(_) => selected.passed_over.push(number),
            }
        }
        selected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::repository::{Facts, Refused};

    /// Versions by their numbers; those that are negative cannot be used.
    fn versions(numbers: &[i64]) -> BTreeMap<u64, Version> {
        let version = |&number: &i64| {
            let usable = if number > 0 { Ok(Facts::default()) } else { Err(Refused::Empty) };
            (number.unsigned_abs(), Version { place: String::new(), files: BTreeMap::new(), usable })
        };
        numbers.iter().map(version).collect()
    }

    #[test]
    fn a_policy_is_read_and_selects() {
        #[derive(Deserialize)]
        struct Model {
            #[serde(default)]
            version_policy: VersionPolicy,
        }
        let select = |policy: &str, numbers: &[i64]| {
            let model: Model = toml::from_str(policy).unwrap();
            let Selected { take, passed_over, missing } = model.version_policy.select(&versions(numbers));
            [take, passed_over, missing]
        };
        assert_eq!(select("", &[1, 2, 10]), [vec![10], vec![], vec![]]);
        assert_eq!(select("", &[]), [vec![], Vec::<u64>::new(), vec![]]);
        assert_eq!(select("", &[1, 2, -10]), [vec![2], vec![10], vec![]]);
        assert_eq!(select("version_policy = { latest = 2 }", &[1, -2, 3, 4]), [vec![4, 3], vec![], vec![]]);
        assert_eq!(select("version_policy = { latest = 2 }", &[1, 2, -3, 4]), [vec![4, 2], vec![3], vec![]]);
        assert_eq!(select("version_policy = 'all'", &[1, -2, 3]), [vec![3, 1], vec![2], vec![]]);
        let specific = "version_policy = { specific = [1, 2, 7] }";
        assert_eq!(select(specific, &[1, -2, 3]), [vec![1], vec![2], vec![7]]);
        for wrong in ["'newest'", "{ latest = 0 }", "{ specific = [-1] }", "{ specific = ['1'] }"] {
            assert!(toml::from_str::<Model>(&format!("version_policy = {wrong}")).is_err(), "{wrong}");
        }
    }
}
