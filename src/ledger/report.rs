//! Reports of the ledger: rows filtered, grouped, and loaded with idle time.

use super::rows::{HOUSE, Increments, RowKey, Sums, add_cost};
use crate::base::{DeviceNs, Hour, Nanodollars, Tier, shares};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

/// A query: rows to select, and columns to group by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// The first hour.
    pub from: Hour,
    /// The end: the hour after the last one; none for no end.
    pub to: Option<Hour>,
    /// Only this tenant.
    pub tenant: Option<String>,
    /// The columns to group by; none gives one row.
    pub group_by: Vec<GroupBy>,
}

impl Query {
    /// Refuses an empty span.
    ///
    /// # Errors
    /// The message names both ends.
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

    /// The name in the command line and `/v1/costs`.
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

/// The group of a line; columns that are not grouped by are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Group {
    /// The hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hour: Option<Hour>,
    /// The tenant's name; [`HOUSE`] for faults, and for idle time in hours without any answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Arc<str>>,
    /// The model's name; empty for idle time that is charged to no tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Arc<str>>,
    /// The model's version; empty for idle time that is charged to no tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Arc<str>>,
    /// The model's tier; none for idle time of nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
}

/// Usage and cost of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CostRow {
    /// The group.
    #[serde(flatten)]
    pub group: Group,
    /// Requests answered.
    pub requests: u64,
    /// Pairs of those requests, in each tier that scored them.
    pub pairs: u64,
    /// Device time charged to responses.
    pub device_ns: DeviceNs,
    /// Device time without a response.
    pub discarded_ns: DeviceNs,
    /// The sum of the prices on responses. None where no device had a price.
    pub nanodollars: Option<Nanodollars>,
    /// The same with idle and discarded time divided among tenants: the cost of the devices. None where no device had a
    /// price.
    pub loaded_nanodollars: Option<Nanodollars>,
}

/// Adds up books of whole hours, in the order of their groups.
///
/// What the devices of one kind cost in an hour is shared among the rows of that hour and kind, whatever
/// their tier, in proportion to charged device time, to the nanodollar; where nothing was charged, the
/// house bears it. So the loaded costs of all tenants add up to what the devices cost.
pub fn report(books: &Increments, query: &Query) -> Vec<CostRow> {
    let mut groups: BTreeMap<Group, CostRow> = BTreeMap::new();
    for line in load(books) {
        let hours = query.from..query.to.unwrap_or(Hour(u64::MAX));
        let is_theirs = query.tenant.as_deref().is_none_or(|tenant| tenant == &*line.tenant);
        if !hours.contains(&line.hour) || !is_theirs {
            continue;
        }
        let (group, sums) = (group(&line, &query.group_by), line.sums);
        let row = groups.entry(group).or_default();
        row.requests += sums.requests;
        row.pairs += sums.pairs;
        row.device_ns += sums.device;
        row.discarded_ns += sums.discarded;
        add_cost(&mut row.nanodollars, sums.cost);
        add_cost(&mut row.loaded_nanodollars, line.loaded);
    }
    groups.into_iter().map(|(group, row)| CostRow { group, ..row }).collect()
}

/// What the devices of a kind cost in an hour, and who shares it.
#[derive(Default)]
struct Pot {
    cost: Option<Nanodollars>,
    rows: Vec<Line>,
}

/// A row of the books.
struct Line {
    hour: Hour,
    tenant: Arc<str>,
    model: Arc<str>,
    version: Arc<str>,
    /// None for devices that nobody used.
    tier: Option<Tier>,
    sums: Sums,
    /// Its share of what its kind of device cost in its hour.
    loaded: Option<Nanodollars>,
}

/// Each row with its share.
fn load(books: &Increments) -> Vec<Line> {
    let mut pots: BTreeMap<(Hour, Arc<str>), Pot> = BTreeMap::new();
    for (key, sums) in &books.devices {
        add_cost(&mut pots.entry((key.hour, key.kind.clone())).or_default().cost, sums.cost);
    }
    for (RowKey { hour, tenant, model, version, tier, kind }, &sums) in &books.rows {
        pots.entry((*hour, kind.clone())).or_default().rows.push(Line {
            hour: *hour,
            tenant: tenant.clone(),
            model: model.clone(),
            version: version.clone(),
            tier: Some(*tier),
            sums,
            loaded: None,
        });
    }
    let mut loaded = Vec::with_capacity(books.rows.len());
    for ((hour, _), Pot { cost, mut rows }) in pots {
        let mut weights: Vec<u64> = rows.iter().map(|row| row.sums.device.0).collect();
        if weights.iter().all(|&weight| weight == 0) && cost > Some(Nanodollars::ZERO) {
            let none: Arc<str> = "".into();
            let (tenant, version, sums) = (HOUSE.into(), none.clone(), Sums::default());
            rows.push(Line { hour, tenant, model: none, version, tier: None, sums, loaded: None });
            weights.push(1);
        }
        if let Some(cost) = cost {
            for (row, share) in rows.iter_mut().zip(shares(cost.0, &weights)) {
                row.loaded = Some(Nanodollars(share));
            }
        }
        loaded.extend(rows);
    }
    loaded
}

fn group(line: &Line, by: &[GroupBy]) -> Group {
    let is = |column| by.contains(&column);
    Group {
        hour: is(GroupBy::Hour).then_some(line.hour),
        tenant: is(GroupBy::Tenant).then(|| line.tenant.clone()),
        model: is(GroupBy::Model).then(|| line.model.clone()),
        version: is(GroupBy::Model).then(|| line.version.clone()),
        tier: line.tier.filter(|_| is(GroupBy::Tier)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::rows::{DeviceKey, DeviceSums};
    use proptest::prelude::*;

    /// The primary is on the GPU, the fallback on the CPU.
    fn row(hour: u64, tenant: &str, tier: Tier, device: u64) -> (RowKey, Sums) {
        let kind = if tier == Tier::Primary { "gpu" } else { "cpu" };
        let (model, version, kind) = ("m".into(), "v".into(), kind.into());
        let key = RowKey { hour: Hour(hour), tenant: tenant.into(), model, version, tier, kind };
        let (device, cost) = (DeviceNs(device), Some(Nanodollars(device / 2)));
        (key, Sums { requests: 1, pairs: 10, device, cost, discarded: DeviceNs(1) })
    }

    fn device(hour: u64, kind: &str, name: &str, cost: u64) -> (DeviceKey, DeviceSums) {
        let key = DeviceKey { hour: Hour(hour), kind: kind.into(), device: name.into() };
        (key, DeviceSums { cost: Some(Nanodollars(cost)), ..DeviceSums::default() })
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
            devices: [
                device(1, "gpu", "gpu 0", 501),
                device(1, "gpu", "gpu 1", 500),
                device(2, "gpu", "gpu 0", 500),
                device(2, "cpu", "cpu", 100),
                device(3, "gpu", "gpu 0", 77),
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
            .map(|row| (row.group.tenant.as_deref().unwrap(), row.nanodollars, row.loaded_nanodollars))
            .collect();
        let some = |nanodollars| Some(Nanodollars(nanodollars));
        assert_eq!(
            loaded,
            [("acme", some(180), some(750 + 600)), ("podium", None, some(77)), ("zeta", some(50), some(251))]
        );
    }

    #[test]
    fn tiers_on_one_device_share_its_cost() {
        let on_cpu = |(key, sums): (RowKey, Sums)| (RowKey { kind: "cpu".into(), ..key }, sums);
        let books = Increments {
            rows: [row(1, "acme", Tier::Primary, 300), row(1, "acme", Tier::Fallback, 100)]
                .map(on_cpu)
                .into(),
            devices: [device(1, "cpu", "cpu", 1000)].into(),
        };
        let rows = report(&books, &Query { group_by: vec![GroupBy::Tier], ..Query::default() });
        let loaded: Vec<_> =
            rows.iter().map(|row| (row.group.tier.unwrap(), row.loaded_nanodollars.unwrap().0)).collect();
        assert_eq!(loaded, [(Tier::Primary, 750), (Tier::Fallback, 250)]);
    }

    #[test]
    fn without_a_price_there_is_no_cost() {
        let (key, sums) = row(1, "acme", Tier::Primary, 300);
        let (device, spent) = device(1, "gpu", "gpu 0", 0);
        let books = Increments {
            rows: [(key, Sums { cost: None, ..sums })].into(),
            devices: [(device, DeviceSums { cost: None, ..spent })].into(),
        };
        let rows = report(&books, &Query::default());
        assert_eq!((rows[0].nanodollars, rows[0].loaded_nanodollars), (None, None));
        let json = serde_json::to_value(&rows[0]).unwrap();
        assert!(json["nanodollars"].is_null() && json["loaded_nanodollars"].is_null(), "{json}");
    }

    #[test]
    fn a_tenant_s_share_does_not_depend_on_who_else_is_shown() {
        let query = Query { tenant: Some("zeta".into()), ..Query::default() };
        let rows = report(&books(), &query);
        assert_eq!((rows.len(), rows[0].loaded_nanodollars), (1, Some(Nanodollars(251))));
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
        // The first row is idle time that belongs to no tier.
        let json = serde_json::to_value(&rows[1]).unwrap();
        assert_eq!(json["tier"], "primary");
        assert!(json.get("tenant").is_none() && json.get("loaded_nanodollars").is_some());
    }

    proptest! {
        #[test]
        fn loaded_costs_add_up_to_what_the_devices_cost(
            rows in prop::collection::vec((0..4_u64, 0..5_u32, any::<bool>(), 0..1_000_000_u64), 0..40),
            devices in prop::collection::vec((0..4_u64, any::<bool>(), 0..1_000_000_u64), 0..20),
        ) {
            let tier = |primary| if primary { Tier::Primary } else { Tier::Fallback };
            let books = Increments {
                rows: rows.iter().map(|&(h, t, p, d)| row(h, &format!("t{t}"), tier(p), d)).collect(),
                devices: devices.iter().map(|&(h, p, c)| device(h, if p { "gpu" } else { "cpu" }, "x", c)).collect(),
            };
            let devices: Nanodollars = books.devices.values().filter_map(|sums| sums.cost).sum();
            for group_by in [vec![], GroupBy::ALL.to_vec(), vec![GroupBy::Tenant]] {
                let rows = report(&books, &Query { group_by, ..Query::default() });
                prop_assert_eq!(rows.iter().filter_map(|row| row.loaded_nanodollars).sum::<Nanodollars>(), devices);
                let charged: DeviceNs = books.rows.values().map(|sums| sums.device).sum();
                prop_assert_eq!(rows.iter().map(|row| row.device_ns).sum::<DeviceNs>(), charged);
            }
        }
    }

    #[test]
    fn a_span_has_an_hour_at_least() {
        for (to, is_sound) in [(None, true), (Some(5), true), (Some(4), false), (Some(3), false)] {
            let query = Query { from: Hour(4), to: to.map(Hour), ..Query::default() };
            assert_eq!(query.check().is_ok(), is_sound, "{to:?}");
        }
    }

    #[test]
    fn every_column_of_a_group_is_the_sum_of_its_rows() {
        let query = Query { from: Hour(1), to: Some(Hour(3)), ..Query::default() };
        let [all] = &report(&books(), &query)[..] else { panic!("no column, one group") };
        assert_eq!(
            (all.requests, all.pairs, all.device_ns, all.discarded_ns),
            (4, 40, DeviceNs(460), DeviceNs(4))
        );
        assert_eq!(
            (all.nanodollars, all.loaded_nanodollars),
            (Some(Nanodollars(230)), Some(Nanodollars(1_601)))
        );
        // A group of more than one answer in a row.
        let (key, sums) = row(1, "acme", Tier::Primary, 300);
        let books =
            Increments { rows: [(key, Sums { requests: 7, ..sums })].into(), ..Increments::default() };
        assert_eq!(report(&books, &Query::default())[0].requests, 7);
    }

    #[test]
    fn a_group_has_the_columns_that_are_asked_for() {
        for column in GroupBy::ALL {
            let group = &report(
                &books(),
                &Query { from: Hour(1), to: Some(Hour(2)), group_by: vec![column], ..Query::default() },
            )[0]
            .group;
            let has = [
                (GroupBy::Hour, group.hour.is_some()),
                (GroupBy::Tenant, group.tenant.is_some()),
                (GroupBy::Model, group.model.is_some()),
                (GroupBy::Model, group.version.is_some()),
                (GroupBy::Tier, group.tier.is_some()),
            ];
            for (other, has) in has {
                assert_eq!(has, other == column, "{other:?} of {column:?}");
            }
        }
    }

    #[test]
    fn the_house_bears_what_no_answer_was_charged_for_and_only_if_it_costs_something() {
        let rows_of = |cost, charged| {
            let (key, sums) = row(1, "acme", Tier::Primary, charged);
            let books =
                Increments { rows: [(key, sums)].into(), devices: [device(1, "gpu", "gpu 0", cost)].into() };
            let rows = report(&books, &Query { group_by: vec![GroupBy::Tenant], ..Query::default() });
            rows.iter()
                .map(|row| {
                    (row.group.tenant.as_deref().unwrap().to_owned(), row.loaded_nanodollars.unwrap().0)
                })
                .collect::<Vec<_>>()
        };
        let [acme, house] = ["acme", HOUSE].map(str::to_owned);
        assert_eq!(rows_of(9, 1), [(acme.clone(), 9)]);
        assert_eq!(rows_of(9, 0), [(acme.clone(), 0), (house, 9)]);
        assert_eq!(rows_of(0, 0), [(acme, 0)]);
    }

    #[test]
    fn a_column_is_read_by_its_name() {
        for column in GroupBy::ALL {
            assert_eq!(column.name().parse(), Ok(column));
        }
        assert!("day".parse::<GroupBy>().is_err());
    }
}
