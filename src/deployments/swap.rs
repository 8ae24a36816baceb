//! A swap of a route's models: what is to change, by whom, and how far it has come.

use crate::base::{ModelRef, Ns};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The models of a route, each with its version where it has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Served {
    /// The primaries in their order.
    pub primaries: Vec<ModelRef>,
    /// The fallback, if the route has one.
    pub fallback: Option<ModelRef>,
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let primaries: Vec<String> = self.primaries.iter().map(ModelRef::to_string).collect();
        f.write_str(if primaries.is_empty() { "no primary" } else { "" })?;
        f.write_str(&primaries.join(", "))?;
        match &self.fallback {
            Some(fallback) => write!(f, "; fallback {fallback}"),
            None => Ok(()),
        }
    }
}

/// A change of a route that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The route.
    pub route: String,
    /// What is live now; none if the route is new.
    pub from: Option<Served>,
    /// What is to be live.
    pub to: Served,
    /// The author of the change.
    pub who: String,
    /// The author's reason.
    pub why: String,
}

/// A step of a swap, in the order in which they are made. Each is recorded before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The new models are read and placed on lanes.
    Loading,
    /// They score their golden pairs and are warmed.
    Verifying,
    /// New requests go to the new models. Once this step is recorded they are what is live, also after a kill.
    Switching,
    /// Requests that the old models have are answered.
    Draining,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 4] = [Self::Loading, Self::Verifying, Self::Switching, Self::Draining];

    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Verifying => "verifying",
            Self::Switching => "switching",
            Self::Draining => "draining",
        }
    }

    /// The step before it.
    pub(super) fn before(self) -> Option<Self> {
        Self::ALL.into_iter().take_while(|step| *step < self).last()
    }
}

/// What has become of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is at its last recorded step.
    Open,
    /// It was made.
    Switched {
        /// What was particular about it.
        note: Option<String>,
    },
    /// It was not made.
    Abandoned {
        /// Why.
        reason: String,
    },
}

/// A swap as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// Its number, which no other swap of the file has.
    pub id: i64,
    /// What was to change.
    pub intent: Intent,
    /// The steps that were recorded, with the time since 1970.
    pub steps: Vec<(Step, Ns)>,
    /// When it ended, since 1970.
    pub ended: Option<Ns>,
    /// What has become of it.
    pub outcome: Outcome,
}

impl Swap {
    /// The last recorded step.
    pub fn step(&self) -> Step {
        self.steps.last().expect("a swap begins with a step").0
    }

    /// Whether new requests go to the new models.
    pub fn has_switched(&self) -> bool {
        self.steps.iter().any(|&(step, _)| step == Step::Switching)
    }
}

/// What is live on a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// The route.
    pub route: String,
    /// Its models.
    pub served: Served,
    /// Since when, since 1970.
    pub since: Ns,
    /// The swap by which they became live.
    pub swap: i64,
}
