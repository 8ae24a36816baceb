//! Units as types, so that durations, device time and money cannot be mixed up.

use serde::{Deserialize, Serialize};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Index, IndexMut, Sub, SubAssign};
use std::time::Duration;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Zero.
            pub const ZERO: Self = Self(0);
            /// A value larger than any that occurs: "no bound".
            pub const MAX: Self = Self(u64::MAX);

            /// Subtracts, saturating at zero.
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// Adds, saturating at the maximum.
            pub const fn saturating_add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }

        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                self.0 += other.0;
            }
        }

        impl SubAssign for $name {
            fn sub_assign(&mut self, other: Self) {
                self.0 -= other.0;
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold(Self::ZERO, Add::add)
            }
        }
    };
}

unit!(
    /// Nanoseconds of wall time: a duration, or an instant counted from the clock's origin.
    Ns
);
unit!(
    /// Nanoseconds of a device, busy or idle; the ledger divides them.
    DeviceNs
);
unit!(
    /// Model input tokens, special tokens included.
    Tokens
);
unit!(
    /// Billionths of a US dollar.
    Nanodollars
);

impl Ns {
    /// Whole milliseconds as nanoseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Milliseconds as a float, for reports.
    pub fn as_millis_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Seconds as a float, for Prometheus.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

impl From<Duration> for Ns {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<Ns> for Duration {
    fn from(ns: Ns) -> Self {
        Self::from_nanos(ns.0)
    }
}

/// A tenant's position in the configuration's list; 0 is the anonymous tenant of a server without keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(pub u32);

/// A served version of a model. Each version that is loaded gets the next number; none is used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelId(pub u32);

impl From<ModelId> for u32 {
    fn from(model: ModelId) -> Self {
        model.0
    }
}

/// A lane. Each lane that is added gets the next number; none is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LaneId(pub u32);

impl From<LaneId> for u32 {
    fn from(lane: LaneId) -> Self {
        lane.0
    }
}

/// A device of this machine, by position. It has time and memory of its own; lanes may share it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceId(pub u32);

/// The role of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The large cross-encoder.
    Primary,
    /// The small model that answers when the primary cannot.
    Fallback,
}

impl Tier {
    /// Both, primary first.
    pub const ALL: [Self; 2] = [Self::Primary, Self::Fallback];

    /// The lower-case name in labels, headers and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Fallback => "fallback",
        }
    }
}

/// One value for each tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PerTier<T> {
    /// The primary's.
    pub primary: T,
    /// The fallback's.
    pub fallback: T,
}

impl<T> PerTier<T> {
    /// Makes both values from a function of the tier.
    pub fn from_fn(mut make: impl FnMut(Tier) -> T) -> Self {
        Self { primary: make(Tier::Primary), fallback: make(Tier::Fallback) }
    }
}

impl<T> Index<Tier> for PerTier<T> {
    type Output = T;
    fn index(&self, tier: Tier) -> &T {
        match tier {
            Tier::Primary => &self.primary,
            Tier::Fallback => &self.fallback,
        }
    }
}

impl<T> IndexMut<Tier> for PerTier<T> {
    fn index_mut(&mut self, tier: Tier) -> &mut T {
        match tier {
            Tier::Primary => &mut self.primary,
            Tier::Fallback => &mut self.fallback,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_prints_people_s_numbers() {
        assert_eq!(Ns::from_millis(1500).as_millis_f64(), 1500.0);
        assert_eq!(Ns::from_millis(1500).as_secs_f64(), 1.5);
        assert_eq!(Ns::from(Duration::MAX), Ns::MAX);
    }

    #[test]
    fn each_tier_has_its_own_slot() {
        let mut both = PerTier::from_fn(Tier::name);
        both[Tier::Fallback] = "student";
        assert_eq!((both[Tier::Primary], both[Tier::Fallback]), ("primary", "student"));
    }
}
