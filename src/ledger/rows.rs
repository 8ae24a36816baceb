//! Sums of one hour that the books hand on: by tenant, model and kind of device, and by device.

use crate::base::{DeviceNs, Hour, Nanodollars, Tier};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The account of device time that no tenant requested.
pub const HOUSE: &str = "podium";

/// The sums of a row; all fields only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Requests answered.
    pub requests: u64,
    /// Pairs of those requests.
    pub pairs: u64,
    /// Device time charged to responses.
    pub device: DeviceNs,
    /// The prices on those responses; none if their device has no price.
    pub cost: Option<Nanodollars>,
    /// Device time without a response.
    pub discarded: DeviceNs,
}

impl Sums {
    /// Adds another row.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.pairs += other.pairs;
        self.device += other.device;
        add_cost(&mut self.cost, other.cost);
        self.discarded += other.discarded;
    }
}

/// Adds money to a sum. None stands for no price; a sum of only nones is none.
pub fn add_cost(sum: &mut Option<Nanodollars>, cost: Option<Nanodollars>) {
    if let Some(cost) = cost {
        *sum = Some(sum.unwrap_or_default() + cost);
    }
}

/// Usage of one model on one kind of device by one tenant in one hour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowKey {
    /// The hour.
    pub hour: Hour,
    /// The tenant; [`HOUSE`] for faults.
    pub tenant: Arc<str>,
    /// The model's name.
    pub model: Arc<str>,
    /// The model's version.
    pub version: Arc<str>,
    /// The model's tier.
    pub tier: Tier,
    /// The name of the kind of device.
    pub kind: Arc<str>,
}

/// The time of one device in one hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceSums {
    /// Wall time in which the device was in use by this server.
    pub elapsed: DeviceNs,
    /// The part of it that batches got.
    pub busy: DeviceNs,
    /// The price of the elapsed time; none without a price.
    pub cost: Option<Nanodollars>,
}

impl DeviceSums {
    /// Adds another row.
    pub fn add(&mut self, other: &Self) {
        self.elapsed += other.elapsed;
        self.busy += other.busy;
        add_cost(&mut self.cost, other.cost);
    }
}

/// One device in one hour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceKey {
    /// The hour.
    pub hour: Hour,
    /// The name of its kind.
    pub kind: Arc<str>,
    /// Its own name.
    pub device: Arc<str>,
}

/// The increments since they were last taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Increments {
    /// Usage of tenants.
    pub rows: BTreeMap<RowKey, Sums>,
    /// What devices did.
    pub devices: BTreeMap<DeviceKey, DeviceSums>,
}

impl Increments {
    /// Adds later increments. The number of keys bounds the size.
    pub fn merge(&mut self, later: Self) {
        for (key, sums) in later.rows {
            self.rows.entry(key).or_default().add(&sums);
        }
        for (key, sums) in later.devices {
            self.devices.entry(key).or_default().add(&sums);
        }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.devices.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn increments_of_either_kind_are_some() {
        let device = DeviceKey { hour: Hour(1), kind: "cpu".into(), device: "cpu 0".into() };
        let (tenant, model, version, kind) = ("acme".into(), "m".into(), "v".into(), "cpu".into());
        let row = RowKey { hour: Hour(1), tenant, model, version, tier: Tier::Primary, kind };
        let rows = Increments { rows: [(row, Sums::default())].into(), ..Increments::default() };
        let devices =
            Increments { devices: [(device, DeviceSums::default())].into(), ..Increments::default() };
        assert_eq!([&Increments::default(), &rows, &devices].map(Increments::is_empty), [true, false, false]);
    }

    #[test]
    fn every_column_of_a_row_is_added() {
        let sums = |n: u64, cost| Sums {
            requests: n,
            pairs: 2 * n,
            device: DeviceNs(3 * n),
            cost,
            discarded: DeviceNs(4 * n),
        };
        let money = |n| Some(Nanodollars(n));
        for (cost, more, sum) in [
            (None, None, None),
            (None, money(2), money(2)),
            (money(1), None, money(1)),
            (money(1), money(2), money(3)),
        ] {
            let mut row = sums(1, cost);
            row.add(&sums(10, more));
            assert_eq!(row, sums(11, sum));
        }
    }
}
