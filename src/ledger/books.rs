//! Who used which device for how long, and what it cost. The books always balance.
//!
//! For each tier, to the nanosecond and after every entry:
//! `charged + discarded + pending + idle == elapsed`. Charged time is on a response; discarded time
//! is on none (losers of races, clients that left, faults); pending time was worked for jobs that
//! are not settled yet, and is zero when there is none. [`Ledger::charge`] prices each answer once,
//! so rows, totals and receipts are sums of the same whole nanodollars.

use super::price::{DeviceKind, PriceBook};
use crate::base::{DeviceNs, Hour, Nanodollars, Ns, PerTier, TenantId, Tier};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The account that pays for what no tenant asked for.
pub const HOUSE: &str = "podium";

/// What a ledger has to know about the server.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// What device time costs.
    pub prices: PriceBook,
    /// The models; none where a tier is not served. All lanes of a tier use one kind of device.
    pub tiers: PerTier<Option<TierAccount>>,
    /// The tier of each lane.
    pub lanes: Vec<Tier>,
    /// The tenants' names, by [`TenantId`].
    pub tenants: Vec<Arc<str>>,
}

/// What a tier runs and on what.
#[derive(Clone, Debug)]
pub struct TierAccount {
    /// The model's name.
    pub model: Arc<str>,
    /// The model's version.
    pub version: Arc<str>,
    /// What its lanes run on.
    pub device: DeviceKind,
}

/// One answer's part in one tier.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    /// When the answer was given.
    pub hour: Hour,
    /// To whom.
    pub tenant: TenantId,
    /// Which model worked.
    pub tier: Tier,
    /// 1 in the tier that the answer is named after, 0 in the other: requests count once.
    pub requests: u64,
    /// Pairs of the answer that the tier scored.
    pub pairs: u64,
    /// For how long.
    pub device: DeviceNs,
}

/// What a row adds up; all fields only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Requests answered.
    pub requests: u64,
    /// Pairs of those requests.
    pub pairs: u64,
    /// Device time on responses.
    pub device: DeviceNs,
    /// The prices on those responses.
    pub cost: Nanodollars,
    /// Device time on no response.
    pub discarded: DeviceNs,
}

impl Sums {
    /// Adds another row's.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.pairs += other.pairs;
        self.device += other.device;
        self.cost += other.cost;
        self.discarded += other.discarded;
    }
}

/// What one tenant used of one model within an hour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowKey {
    /// When.
    pub hour: Hour,
    /// Who; [`HOUSE`] for faults.
    pub tenant: Arc<str>,
    /// The model's name.
    pub model: Arc<str>,
    /// The model's version.
    pub version: Arc<str>,
    /// The model's tier.
    pub tier: Tier,
}

/// What the lanes of one tier were there for, within an hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneSums {
    /// Time in which the lanes were ours.
    pub elapsed: DeviceNs,
    /// The part of it in which they worked.
    pub busy: DeviceNs,
    /// What the elapsed time costs.
    pub cost: Nanodollars,
}

impl LaneSums {
    /// Adds another row's.
    pub fn add(&mut self, other: &Self) {
        self.elapsed += other.elapsed;
        self.busy += other.busy;
        self.cost += other.cost;
    }
}

/// The devices of one tier within an hour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneKey {
    /// When.
    pub hour: Hour,
    /// The tier that the lanes serve.
    pub tier: Tier,
    /// The name of the kind of device.
    pub device: Arc<str>,
}

/// What was added to the books since they were last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Increments {
    /// What tenants used.
    pub rows: BTreeMap<RowKey, Sums>,
    /// What lanes did.
    pub lanes: BTreeMap<LaneKey, LaneSums>,
}

impl Increments {
    /// Adds later increments; the keys bound the size.
    pub fn merge(&mut self, later: Self) {
        for (key, sums) in later.rows {
            self.rows.entry(key).or_default().add(&sums);
        }
        for (key, sums) in later.lanes {
            self.lanes.entry(key).or_default().add(&sums);
        }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.lanes.is_empty()
    }
}

/// Where a tier's device time went; the first four are the fifth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// On responses.
    pub charged: DeviceNs,
    /// On no response.
    pub discarded: DeviceNs,
    /// Worked for jobs that are not settled yet.
    pub pending: DeviceNs,
    /// Not worked.
    pub idle: DeviceNs,
    /// All there was.
    pub elapsed: DeviceNs,
}

/// The books of a running server.
#[derive(Debug)]
pub struct Ledger {
    accounts: Accounts,
    since: Ns,
    lanes: Vec<Lane>,
    books: PerTier<Book>,
    fresh: Increments,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    busy: DeviceNs,
    /// Elapsed time and its price that [`Ledger::take_dirty`] has told of.
    told: (DeviceNs, Nanodollars),
}

#[derive(Clone, Copy, Debug, Default)]
struct Book {
    busy: DeviceNs,
    charged: DeviceNs,
    discarded: DeviceNs,
    cost: Nanodollars,
}

impl Ledger {
    /// Opens the books; all lanes are ours from `now` on.
    pub fn new(accounts: Accounts, now: Ns) -> Self {
        let is_known = |tier: &Tier| accounts.tiers[*tier].is_some();
        assert!(accounts.lanes.iter().all(is_known), "a lane's tier has an account");
        Self {
            lanes: vec![Lane::default(); accounts.lanes.len()],
            accounts,
            since: now,
            books: PerTier::default(),
            fresh: Increments::default(),
        }
    }

    /// Books the end of a batch, before what is charged or discarded of it.
    pub fn busy(&mut self, hour: Hour, lane: usize, device: DeviceNs) {
        let tier = self.accounts.lanes[lane];
        self.lanes[lane].busy += device;
        self.books[tier].busy += device;
        let key = self.lane_key(hour, tier);
        self.fresh.lanes.entry(key).or_default().busy += device;
    }

    /// Charges an answer's device time in one tier, and returns its price.
    pub fn charge(&mut self, charge: &Charge) -> Nanodollars {
        let Charge { hour, tenant, tier, requests, pairs, device } = *charge;
        let cost = self.accounts.prices.price(self.account(tier).device, device);
        let book = &mut self.books[tier];
        book.charged += device;
        book.cost += cost;
        self.balance(tier);
        let sums = Sums { requests, pairs, device, cost, discarded: DeviceNs::ZERO };
        self.row(hour, Some(tenant), tier).add(&sums);
        cost
    }

    /// Books device time that is on no response; the house's where nobody asked for it.
    pub fn discard(&mut self, hour: Hour, tenant: Option<TenantId>, tier: Tier, device: DeviceNs) {
        self.books[tier].discarded += device;
        self.balance(tier);
        self.row(hour, tenant, tier).discarded += device;
    }

    /// Takes what was added since the last time, the lanes' elapsed time up to `now` included.
    pub fn take_dirty(&mut self, hour: Hour, now: Ns) -> Increments {
        for place in 0..self.lanes.len() {
            let tier = self.accounts.lanes[place];
            let elapsed = self.elapsed(place, now);
            // The price of the whole, less what was told: no rounding adds up.
            let cost = self.accounts.prices.price(self.account(tier).device, elapsed);
            let told = std::mem::replace(&mut self.lanes[place].told, (elapsed, cost));
            let more = LaneSums { elapsed: elapsed - told.0, busy: DeviceNs::ZERO, cost: cost - told.1 };
            let key = self.lane_key(hour, tier);
            self.fresh.lanes.entry(key).or_default().add(&more);
        }
        std::mem::take(&mut self.fresh)
    }

    /// How long a lane has been ours.
    ///
    /// No less than its work: a stalled batch counts from its planned start, which may lie before
    /// the end of the one before it.
    pub fn elapsed(&self, lane: usize, now: Ns) -> DeviceNs {
        let lane = &self.lanes[lane];
        DeviceNs(now.saturating_sub(self.since).0).max(lane.busy).max(lane.told.0)
    }

    /// How long a lane has not worked; a batch that runs counts once it ends.
    pub fn idle(&self, lane: usize, now: Ns) -> DeviceNs {
        self.elapsed(lane, now) - self.lanes[lane].busy
    }

    /// Where a tier's device time went.
    pub fn totals(&self, tier: Tier, now: Ns) -> Totals {
        let of_tier = || (0..self.lanes.len()).filter(|&lane| self.accounts.lanes[lane] == tier);
        let Book { busy, charged, discarded, .. } = self.books[tier];
        let totals = Totals {
            charged,
            discarded,
            pending: busy - charged - discarded,
            idle: of_tier().map(|lane| self.idle(lane, now)).sum(),
            elapsed: of_tier().map(|lane| self.elapsed(lane, now)).sum(),
        };
        let parts = totals.charged + totals.discarded + totals.pending + totals.idle;
        assert_eq!(parts, totals.elapsed, "the books of the {} balance", tier.name());
        totals
    }

    /// The sum of the prices on a tier's answers.
    pub fn cost(&self, tier: Tier) -> Nanodollars {
        self.books[tier].cost
    }

    fn balance(&self, tier: Tier) {
        let book = &self.books[tier];
        let given = book.charged + book.discarded;
        assert!(given <= book.busy, "{given:?} of {:?} worked by the {} are given", book.busy, tier.name());
    }

    fn account(&self, tier: Tier) -> &TierAccount {
        self.accounts.tiers[tier].as_ref().expect("a tier that works has an account")
    }

    fn row(&mut self, hour: Hour, tenant: Option<TenantId>, tier: Tier) -> &mut Sums {
        let tenant = match tenant {
            Some(tenant) => self.accounts.tenants[tenant.0 as usize].clone(),
            None => HOUSE.into(),
        };
        let TierAccount { model, version, .. } = self.account(tier);
        let key = RowKey { hour, tenant, model: model.clone(), version: version.clone(), tier };
        self.fresh.rows.entry(key).or_default()
    }

    fn lane_key(&self, hour: Hour, tier: Tier) -> LaneKey {
        LaneKey { hour, tier, device: self.accounts.prices.name(self.account(tier).device).clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::price::{DevicePrice, PriceConfig};
    use proptest::prelude::*;

    fn ledger() -> Ledger {
        let device = |name: &str, dollars_per_hour| DevicePrice {
            name: name.into(),
            dollars_per_hour,
            watts: 100.0,
            dollars_per_kwh: None,
        };
        let devices = vec![device("h100", 2.5), device("cpu", 0.1)];
        let mut prices = PriceBook::new(&PriceConfig { dollars_per_kwh: 0.2, devices }).unwrap();
        let mut account = |model: &str, device: &str| {
            Some(TierAccount { model: model.into(), version: "v1".into(), device: prices.kind(device) })
        };
        let tiers = PerTier { primary: account("large", "h100"), fallback: account("small", "cpu") };
        let lanes = vec![Tier::Primary, Tier::Primary, Tier::Fallback];
        Ledger::new(Accounts { prices, tiers, lanes, tenants: vec!["acme".into(), "zeta".into()] }, Ns(100))
    }

    fn charge(tenant: u32, tier: Tier, device: u64) -> Charge {
        let (tenant, device) = (TenantId(tenant), DeviceNs(device));
        Charge { hour: Hour(1), tenant, tier, requests: 1, pairs: 10, device }
    }

    #[test]
    fn a_charge_is_priced_and_rowed() {
        let mut ledger = ledger();
        ledger.busy(Hour(1), 0, DeviceNs(3_600_000));
        let cost = ledger.charge(&charge(0, Tier::Primary, 3_600_000));
        assert_eq!(cost, Nanodollars(2_520));
        let dirty = ledger.take_dirty(Hour(1), Ns(100 + 7_200_000));
        let (key, sums) = dirty.rows.iter().next().unwrap();
        assert_eq!((&*key.tenant, &*key.model, key.tier), ("acme", "large", Tier::Primary));
        assert_eq!((sums.requests, sums.pairs, sums.cost), (1, 10, cost));
        let lanes: Vec<_> = dirty.lanes.values().collect();
        assert_eq!((lanes[0].elapsed, lanes[0].busy), (DeviceNs(14_400_000), DeviceNs(3_600_000)));
        assert_eq!(lanes[0].cost, Nanodollars(4 * 2_520));
    }

    #[test]
    fn a_fault_is_paid_by_the_house() {
        let mut ledger = ledger();
        ledger.busy(Hour(1), 2, DeviceNs(50));
        ledger.discard(Hour(1), None, Tier::Fallback, DeviceNs(50));
        let dirty = ledger.take_dirty(Hour(1), Ns(100));
        assert_eq!(&*dirty.rows.keys().next().unwrap().tenant, HOUSE);
    }

    #[test]
    #[should_panic(expected = "worked by the primary are given")]
    fn more_than_was_worked_cannot_be_charged() {
        let mut ledger = ledger();
        ledger.busy(Hour(1), 0, DeviceNs(10));
        ledger.charge(&charge(0, Tier::Primary, 11));
    }

    #[test]
    fn work_that_overlaps_lengthens_the_elapsed_time() {
        let mut ledger = ledger();
        ledger.busy(Hour(1), 2, DeviceNs(500));
        assert_eq!(ledger.elapsed(2, Ns(200)), DeviceNs(500));
        assert_eq!(ledger.totals(Tier::Fallback, Ns(200)).pending, DeviceNs(500));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Work { lane: usize, device: u64, given: u64, tenant: u32, fate: u8 },
        Take,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let work = (0..3_usize, 0..1_000_000_u64, 0..=100_u64, 0..2_u32, 0..4_u8).prop_map(
            |(lane, device, percent, tenant, fate)| {
                let given = device * percent / 100;
                Step::Work { lane, device, given, tenant, fate }
            },
        );
        prop::collection::vec(prop_oneof![5 => work, 1 => Just(Step::Take)], 0..200)
    }

    proptest! {
        #[test]
        fn the_books_balance_and_receipts_add_up_to_rows(steps in steps()) {
            let mut ledger = ledger();
            let (mut now, mut all) = (Ns(100), Increments::default());
            let (mut receipts, mut device_total) = (Nanodollars::ZERO, DeviceNs::ZERO);
            for step in steps {
                match step {
                    Step::Work { lane, device, given, tenant, fate } => {
                        now += Ns(device);
                        let tier = [Tier::Primary, Tier::Primary, Tier::Fallback][lane];
                        ledger.busy(Hour(now.0 / 1_000_000), lane, DeviceNs(device));
                        match fate {
                            0 => ledger.discard(Hour(0), None, tier, DeviceNs(given)),
                            1 => ledger.discard(Hour(0), Some(TenantId(tenant)), tier, DeviceNs(given)),
                            _ => {
                                receipts += ledger.charge(&charge(tenant, tier, given));
                                device_total += DeviceNs(given);
                            }
                        }
                    }
                    Step::Take => all.merge(ledger.take_dirty(Hour(now.0 / 1_000_000), now)),
                }
                for tier in Tier::ALL {
                    ledger.totals(tier, now);
                }
            }
            all.merge(ledger.take_dirty(Hour(9), now));
            prop_assert_eq!(all.rows.values().map(|sums| sums.cost).sum::<Nanodollars>(), receipts);
            prop_assert_eq!(all.rows.values().map(|sums| sums.device).sum::<DeviceNs>(), device_total);
            let totals = Tier::ALL.map(|tier| ledger.totals(tier, now));
            let elapsed: DeviceNs = totals.iter().map(|totals| totals.elapsed).sum();
            prop_assert_eq!(all.lanes.values().map(|sums| sums.elapsed).sum::<DeviceNs>(), elapsed);
            let discarded: DeviceNs = totals.iter().map(|totals| totals.discarded).sum();
            prop_assert_eq!(all.rows.values().map(|sums| sums.discarded).sum::<DeviceNs>(), discarded);
            let idle: DeviceNs = totals.iter().map(|totals| totals.idle).sum();
            let busy: DeviceNs = all.lanes.values().map(|sums| sums.busy).sum();
            prop_assert_eq!(busy + idle, elapsed);
        }
    }
}
