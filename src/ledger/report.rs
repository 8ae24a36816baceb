//! Who owes what: rows of the ledger, filtered, grouped, and loaded with what nobody used.

use super::books::{HOUSE, Increments, RowKey, Sums};
use crate::base::{DeviceNs, Hour, Nanodollars, Tier, shares};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

/// Which rows of the ledger, and what to tell apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// The first hour.
    pub from: Hour,
    /// The hour after the last one; none for all there are.
    pub to: Option<Hour>,
    /// Only this tenant.
    pub tenant: Option<String>,
    /// What gets rows of its own; nothing makes one row of all.
    pub group_by: Vec<GroupBy>,
}

impl Query {
    /// Refuses a span that no hour can lie in.
    ///
    /// # Errors
    /// Names both ends.
    pub fn check(self) -> Result<Self, String> {
        match self.to {
            Some(to) if to <= self.from => Err(format!("to: {to} is not after {}", self.from)),
            _ => Ok(self),
        }
    }
}

/// A column that a report can be grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupBy {
    /// The hour.
    Hour,
    /// The tenant.
    Tenant,
    /// The model with its version.
    Model,
    /// The tier.
    Tier,
}

impl GroupBy {
    /// Every column, in the order in which reports show them.
    pub const ALL: [Self; 4] = [Self::Hour, Self::Tenant, Self::Model, Self::Tier];

    /// The name that the command line and `/v1/costs` use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Tenant => "tenant",
            Self::Model => "model",
            Self::Tier => "tier",
        }
    }
}

impl FromStr for GroupBy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|column| column.name() == name);
        found.ok_or_else(|| format!("group_by: `{name}` is not hour, tenant, model or tier"))
    }
}

/// One line of a report; columns that it was not grouped by are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Group {
    /// The hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hour: Option<Hour>,
    /// The tenant's name; [`HOUSE`] for faults, and for idle time in hours without any answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Arc<str>>,
    /// The model's name; empty for idle time of nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Arc<str>>,
    /// The model's version; empty for idle time of nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Arc<str>>,
    /// The model's tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
}

/// What a group used and owes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CostRow {
    /// What the line is about.
    #[serde(flatten)]
    pub group: Group,
    /// Requests answered.
    pub requests: u64,
    /// Pairs of those requests, in each tier that scored them.
    pub pairs: u64,
    /// Device time on responses.
    pub device_ns: DeviceNs,
    /// Device time on no response.
    pub discarded_ns: DeviceNs,
    /// The prices on responses: what the work took.
    pub nanodollars: Nanodollars,
    /// The same with idle and discarded time shared out: what the devices cost.
    pub loaded_nanodollars: Nanodollars,
}

/// Adds up books of whole hours, in the order of their groups.
///
/// What a tier's devices cost in an hour is shared among the rows of that hour and tier in
/// proportion to charged device time, to the nanodollar; where nothing was charged, the house bears
/// it. So the loaded costs of all tenants add up to what the devices cost.
pub fn report(books: &Increments, query: &Query) -> Vec<CostRow> {
    let mut groups: BTreeMap<Group, CostRow> = BTreeMap::new();
    for (key, sums, loaded) in load(books) {
        let hours = query.from..query.to.unwrap_or(Hour(u64::MAX));
        if !hours.contains(&key.hour) || query.tenant.as_deref().is_some_and(|tenant| tenant != &*key.tenant)
        {
            continue;
        }
        let group = group(&key, &query.group_by);
        let row = groups.entry(group).or_default();
        row.requests += sums.requests;
        row.pairs += sums.pairs;
        row.device_ns += sums.device;
        row.discarded_ns += sums.discarded;
        row.nanodollars += sums.cost;
        row.loaded_nanodollars += loaded;
    }
    groups.into_iter().map(|(group, row)| CostRow { group, ..row }).collect()
}

/// What a tier's devices cost in an hour, and who shares it.
#[derive(Default)]
struct Pot {
    cost: Nanodollars,
    rows: Vec<(RowKey, Sums)>,
}

/// Each row with its share of what its tier's devices cost in its hour.
fn load(books: &Increments) -> Vec<(RowKey, Sums, Nanodollars)> {
    let mut pots: BTreeMap<(Hour, Tier), Pot> = BTreeMap::new();
    for (key, sums) in &books.lanes {
        pots.entry((key.hour, key.tier)).or_default().cost += sums.cost;
    }
    for (key, sums) in &books.rows {
        pots.entry((key.hour, key.tier)).or_default().rows.push((key.clone(), *sums));
    }
    let mut loaded = Vec::with_capacity(books.rows.len());
    for ((hour, tier), Pot { cost, mut rows }) in pots {
        let mut weights: Vec<u64> = rows.iter().map(|(_, sums)| sums.device.0).collect();
        if weights.iter().all(|&weight| weight == 0) && cost > Nanodollars::ZERO {
            let nobody: Arc<str> = "".into();
            let key = RowKey { hour, tenant: HOUSE.into(), model: nobody.clone(), version: nobody, tier };
            rows.push((key, Sums::default()));
            weights.push(1);
        }
        let shares = shares(cost.0, &weights);
        loaded
            .extend(rows.into_iter().zip(shares).map(|((key, sums), share)| (key, sums, Nanodollars(share))));
    }
    loaded
}

fn group(key: &RowKey, by: &[GroupBy]) -> Group {
    let is = |column| by.contains(&column);
    Group {
        hour: is(GroupBy::Hour).then_some(key.hour),
        tenant: is(GroupBy::Tenant).then(|| key.tenant.clone()),
        model: is(GroupBy::Model).then(|| key.model.clone()),
        version: is(GroupBy::Model).then(|| key.version.clone()),
        tier: is(GroupBy::Tier).then_some(key.tier),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::books::{LaneKey, LaneSums};
    use proptest::prelude::*;

    fn row(hour: u64, tenant: &str, tier: Tier, device: u64) -> (RowKey, Sums) {
        let key =
            RowKey { hour: Hour(hour), tenant: tenant.into(), model: "m".into(), version: "v".into(), tier };
        let (device, cost) = (DeviceNs(device), Nanodollars(device / 2));
        (key, Sums { requests: 1, pairs: 10, device, cost, discarded: DeviceNs(1) })
    }

    fn lane(hour: u64, tier: Tier, cost: u64) -> (LaneKey, LaneSums) {
        let key = LaneKey { hour: Hour(hour), tier, device: "cpu".into() };
        (key, LaneSums { cost: Nanodollars(cost), ..LaneSums::default() })
    }

    fn books() -> Increments {
        Increments {
            rows: [
                row(1, "acme", Tier::Primary, 300),
                row(1, "zeta", Tier::Primary, 100),
                row(2, "acme", Tier::Primary, 50),
                row(2, "acme", Tier::Fallback, 10),
            ]
            .into(),
            lanes: [
                lane(1, Tier::Primary, 1001),
                lane(2, Tier::Primary, 500),
                lane(2, Tier::Fallback, 100),
                lane(3, Tier::Primary, 77),
            ]
            .into(),
        }
    }

    #[test]
    fn idle_time_is_shared_in_proportion_to_what_was_charged() {
        let query = Query { group_by: vec![GroupBy::Tenant], ..Query::default() };
        let rows = report(&books(), &query);
        let loaded: Vec<_> = rows
            .iter()
            .map(|row| (row.group.tenant.as_deref().unwrap(), row.nanodollars.0, row.loaded_nanodollars.0))
            .collect();
        assert_eq!(loaded, [("acme", 180, 750 + 600), ("podium", 0, 77), ("zeta", 50, 251)]);
    }

    #[test]
    fn a_tenant_s_share_does_not_depend_on_who_else_is_shown() {
        let query = Query { tenant: Some("zeta".into()), ..Query::default() };
        let rows = report(&books(), &query);
        assert_eq!((rows.len(), rows[0].loaded_nanodollars), (1, Nanodollars(251)));
    }

    #[test]
    fn hours_are_from_the_first_to_before_the_last() {
        let query =
            Query { from: Hour(2), to: Some(Hour(3)), group_by: vec![GroupBy::Tier], ..Query::default() };
        let rows = report(&books(), &query);
        let tiers: Vec<_> = rows.iter().map(|row| (row.group.tier.unwrap(), row.device_ns.0)).collect();
        assert_eq!(tiers, [(Tier::Primary, 50), (Tier::Fallback, 10)]);
    }

    #[test]
    fn columns_not_grouped_by_are_not_written() {
        let rows = report(&books(), &Query { group_by: vec![GroupBy::Tier], ..Query::default() });
        let json = serde_json::to_value(&rows[0]).unwrap();
        assert_eq!(json["tier"], "primary");
        assert!(json.get("tenant").is_none() && json.get("loaded_nanodollars").is_some());
    }

    proptest! {
        #[test]
        fn loaded_costs_add_up_to_what_the_devices_cost(
            rows in prop::collection::vec((0..4_u64, 0..5_u32, any::<bool>(), 0..1_000_000_u64), 0..40),
            lanes in prop::collection::vec((0..4_u64, any::<bool>(), 0..1_000_000_u64), 0..20),
        ) {
            let tier = |primary| if primary { Tier::Primary } else { Tier::Fallback };
            let books = Increments {
                rows: rows.iter().map(|&(h, t, p, d)| row(h, &format!("t{t}"), tier(p), d)).collect(),
                lanes: lanes.iter().map(|&(h, p, c)| lane(h, tier(p), c)).collect(),
            };
            let devices: Nanodollars = books.lanes.values().map(|sums| sums.cost).sum();
            for group_by in [vec![], GroupBy::ALL.to_vec(), vec![GroupBy::Tenant]] {
                let rows = report(&books, &Query { group_by, ..Query::default() });
                prop_assert_eq!(rows.iter().map(|row| row.loaded_nanodollars).sum::<Nanodollars>(), devices);
                let charged: DeviceNs = books.rows.values().map(|sums| sums.device).sum();
                prop_assert_eq!(rows.iter().map(|row| row.device_ns).sum::<DeviceNs>(), charged);
            }
        }
    }
}
