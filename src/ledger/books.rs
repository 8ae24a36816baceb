//! Device time and cost by tenant and model. The books always balance.
//!
//! For each device, to the nanosecond and after every entry:
//! `charged + discarded + pending + idle == elapsed`. Charged time is on a response; discarded time
//! is on none (losers of races, clients that left, faults); pending time is that of batches at work
//! and of jobs that are not settled yet, and is zero when there is none.
//!
//! Elapsed time is wall time, however many lanes a device has. At each moment it is divided equally
//! among the lanes that are busy then: alone a lane pays for the whole device, as nobody else had it,
//! and two that work at once pay a half each. So a device's hour costs its price once. (The
//! alternative, lanes times time at a price divided by the lanes, would charge a lane that works alone
//! for a part of the device and call the rest idle.) A batch is charged for no more than the device
//! itself says that it took; what is left of its share is idle.
//!
//! [`Ledger::charge`] prices each answer once, so rows, totals and receipts are sums of the same whole
//! nanodollars.

use super::price::{DeviceKind, PriceBook};
use super::rows::{DeviceKey, DeviceSums, HOUSE, Increments, RowKey, Sums};
use crate::base::{
    DeviceId, DeviceNs, Hour, LaneId, ModelId, Nanodollars, Ns, PerTier, Slots, TenantId, Tier,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The server's set-up, as far as the ledger needs it.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// Prices of device time.
    pub prices: PriceBook,
    /// The devices, by [`DeviceId`].
    pub devices: Vec<DeviceAccount>,
    /// The tenants' names, by [`TenantId`].
    pub tenants: Vec<Arc<str>>,
}

/// A model and its kind of device.
#[derive(Clone, Debug)]
pub struct ModelAccount {
    /// The model's name.
    pub model: Arc<str>,
    /// The model's version.
    pub version: Arc<str>,
    /// The kind of device of its lanes.
    pub kind: DeviceKind,
}

/// A device.
#[derive(Clone, Debug)]
pub struct DeviceAccount {
    /// Its name among this machine's devices.
    pub name: Arc<str>,
    /// Its kind, by which it is priced.
    pub kind: DeviceKind,
}

/// A charge: one answer's part in one tier.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    /// The hour of the answer.
    pub hour: Hour,
    /// The tenant.
    pub tenant: TenantId,
    /// The tier.
    pub tier: Tier,
    /// Its model.
    pub model: ModelId,
    /// 1 in the tier that the answer is named after, 0 in the other: requests count once.
    pub requests: u64,
    /// Pairs of the answer that the tier scored.
    pub pairs: u64,
}

/// Where a device's time went; the first four are the fifth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// On responses.
    pub charged: DeviceNs,
    /// On no response.
    pub discarded: DeviceNs,
    /// At work now, or worked for jobs that are not settled yet.
    pub pending: DeviceNs,
    /// Idle.
    pub idle: DeviceNs,
    /// The total.
    pub elapsed: DeviceNs,
}

/// The books of a running server.
#[derive(Debug)]
pub struct Ledger {
    accounts: Accounts,
    models: Slots<ModelId, ModelAccount>,
    lanes: Slots<LaneId, Lane>,
    devices: Vec<Device>,
    costs: PerTier<Nanodollars>,
    fresh: Increments,
}

#[derive(Clone, Copy, Debug)]
struct Lane {
    model: ModelId,
    on: DeviceId,
    /// Batches that it holds; the oldest is at work.
    batches: usize,
    /// The part of the device's time that the oldest has had so far.
    share: DeviceNs,
}

/// What a model used of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// On responses.
    pub charged: DeviceNs,
    /// On no response.
    pub discarded: DeviceNs,
}

#[derive(Clone, Debug, Default)]
struct Device {
    /// Up to when its time is divided.
    at: Ns,
    elapsed: DeviceNs,
    /// Given to batches that have ended.
    worked: DeviceNs,
    idle: DeviceNs,
    used: Use,
    /// The part of `used` of each model that has an account.
    by_model: BTreeMap<ModelId, Use>,
    /// Elapsed time and its price that [`Ledger::take_increments`] has told of.
    told: (DeviceNs, Option<Nanodollars>),
}

impl Device {
    fn give(&mut self, model: ModelId, part: Use) {
        let of_model = self.by_model.entry(model).or_default();
        for used in [&mut self.used, of_model] {
            used.charged += part.charged;
            used.discarded += part.discarded;
        }
    }
}

impl Ledger {
    /// Opens the books; all devices are ours from `now` on.
    pub fn new(accounts: Accounts, now: Ns) -> Self {
        Self {
            models: Slots::default(),
            lanes: Slots::default(),
            devices: vec![Device { at: now, ..Device::default() }; accounts.devices.len()],
            accounts,
            costs: PerTier::default(),
            fresh: Increments::default(),
        }
    }

    /// Opens the account of a model.
    pub fn add_model(&mut self, model: ModelId, account: ModelAccount) {
        self.models.insert(model, account);
    }

    /// Closes the account of a model whose jobs are settled.
    pub fn remove_model(&mut self, model: ModelId) {
        self.models.remove(model);
        for device in &mut self.devices {
            device.by_model.remove(&model);
        }
    }

    /// Adds a device, which is ours from `now` on.
    pub fn add_device(&mut self, account: DeviceAccount, now: Ns) -> DeviceId {
        self.accounts.devices.push(account);
        self.devices.push(Device { at: now, ..Device::default() });
        DeviceId(self.devices.len() as u32 - 1)
    }

    /// The kind of device of that name.
    pub fn kind(&mut self, name: &str) -> DeviceKind {
        self.accounts.prices.kind(name)
    }

    /// What each model has used of a device.
    pub fn used(&self, on: DeviceId) -> impl Iterator<Item = (ModelId, Use)> + '_ {
        self.devices[on.0 as usize].by_model.iter().map(|(&model, &used)| (model, used))
    }

    /// Opens the account of a model's lane.
    pub fn add_lane(&mut self, lane: LaneId, model: ModelId, on: DeviceId) {
        let device = &self.accounts.devices[on.0 as usize];
        assert_eq!(self.models[model].kind, device.kind, "all lanes of a model are on one kind of device");
        self.lanes.insert(lane, Lane { model, on, batches: 0, share: DeviceNs::ZERO });
    }

    /// Closes the account of a lane that holds no batch.
    pub fn remove_lane(&mut self, lane: LaneId, now: Ns) {
        self.restart(lane, now);
        self.lanes.remove(lane);
    }

    /// Books that a lane is sent a batch.
    pub fn begin(&mut self, lane: LaneId, now: Ns) {
        self.divide(self.lanes[lane].on, now);
        self.lanes[lane].batches += 1;
    }

    /// Books the end of a lane's oldest batch, which says that it took so much of the device, and returns
    /// what of that it is given: call before that is charged or discarded.
    pub fn end(&mut self, hour: Hour, lane: LaneId, now: Ns, took: DeviceNs) -> DeviceNs {
        let on = self.lanes[lane].on;
        self.divide(on, now);
        let Lane { batches, share, .. } = &mut self.lanes[lane];
        assert!(*batches > 0, "a batch that ends was begun");
        *batches -= 1;
        let share = std::mem::take(share);
        let given = took.min(share);
        let device = &mut self.devices[on.0 as usize];
        device.worked += given;
        device.idle += share - given;
        let key = self.device_key(hour, on);
        self.fresh.devices.entry(key).or_default().busy += given;
        given
    }

    /// Books a lane's oldest batch as lost: the house pays for all that it had. Returns how much that was.
    pub fn give_up(&mut self, hour: Hour, lane: LaneId, tier: Tier, now: Ns) -> DeviceNs {
        let Lane { model, on, .. } = self.lanes[lane];
        let given = self.end(hour, lane, now, DeviceNs::MAX);
        self.discard(hour, None, (tier, model), (on, given));
        given
    }

    /// Books that a lane's scorer is made anew: what it still held has not been worked on.
    pub fn restart(&mut self, lane: LaneId, now: Ns) {
        let on = self.lanes[lane].on;
        self.divide(on, now);
        let Lane { batches, share, .. } = &mut self.lanes[lane];
        *batches = 0;
        self.devices[on.0 as usize].idle += std::mem::take(share);
    }

    /// Gives a device's time up to `now` to the lanes that were busy on it, in equal parts; where there are
    /// none it was idle.
    fn divide(&mut self, on: DeviceId, now: Ns) {
        let device = &mut self.devices[on.0 as usize];
        let passed = now.saturating_sub(device.at).0;
        device.at = device.at.max(now);
        device.elapsed += DeviceNs(passed);
        let is_at_work = |lane: &Lane| lane.on == on && lane.batches > 0;
        let busy = self.lanes.values().filter(|lane| is_at_work(lane)).count() as u64;
        if busy == 0 {
            device.idle += DeviceNs(passed);
            return;
        }
        // The i-th part ends at floor(passed * i / busy): the parts are the whole.
        let end = |i: u64| (u128::from(passed) * u128::from(i) / u128::from(busy)) as u64;
        let at_work = self.lanes.values_mut().filter(|lane| is_at_work(lane));
        for (lane, i) in at_work.zip(0..) {
            lane.share += DeviceNs(end(i + 1) - end(i));
        }
    }

    /// Charges an answer's time on each device in one tier, and returns its price, if there is one.
    pub fn charge(
        &mut self,
        charge: &Charge,
        used: impl Iterator<Item = (DeviceId, DeviceNs)>,
    ) -> Option<Nanodollars> {
        let Charge { hour, tenant, tier, model, requests, pairs } = *charge;
        let mut device = DeviceNs::ZERO;
        for (on, part) in used {
            self.devices[on.0 as usize].give(model, Use { charged: part, ..Use::default() });
            self.balance(on);
            device += part;
        }
        let cost = self.accounts.prices.price(self.models[model].kind, device);
        self.costs[tier] += cost.unwrap_or_default();
        let sums = Sums { requests, pairs, device, cost, discarded: DeviceNs::ZERO };
        self.row(hour, Some(tenant), (tier, model)).add(&sums);
        cost
    }

    /// Books device time without a response; to the house if no tenant requested it.
    pub fn discard(
        &mut self,
        hour: Hour,
        tenant: Option<TenantId>,
        (tier, model): (Tier, ModelId),
        (on, device): (DeviceId, DeviceNs),
    ) {
        self.devices[on.0 as usize].give(model, Use { discarded: device, ..Use::default() });
        self.balance(on);
        self.row(hour, tenant, (tier, model)).discarded += device;
    }

    /// Takes what was added since the last time, the devices' elapsed time up to `now` included.
    pub fn take_increments(&mut self, hour: Hour, now: Ns) -> Increments {
        for place in 0..self.devices.len() {
            let on = DeviceId(place as u32);
            self.divide(on, now);
            let elapsed = self.devices[place].elapsed;
            // The price of the total minus what was taken before, so that rounding errors do not add up.
            let cost = self.accounts.prices.price(self.accounts.devices[place].kind, elapsed);
            let told = std::mem::replace(&mut self.devices[place].told, (elapsed, cost));
            let more = DeviceSums {
                elapsed: elapsed - told.0,
                busy: DeviceNs::ZERO,
                cost: cost.map(|cost| cost - told.1.unwrap_or_default()),
            };
            let key = self.device_key(hour, on);
            self.fresh.devices.entry(key).or_default().add(&more);
        }
        std::mem::take(&mut self.fresh)
    }

    /// The devices' names, by [`DeviceId`].
    pub fn devices(&self) -> impl Iterator<Item = (DeviceId, &Arc<str>)> {
        self.accounts.devices.iter().zip(0..).map(|(device, place)| (DeviceId(place), &device.name))
    }

    /// Where a device's time went up to `now`.
    pub fn totals(&mut self, on: DeviceId, now: Ns) -> Totals {
        self.divide(on, now);
        let lanes = self.lanes.values().filter(|lane| lane.on == on);
        let at_work: DeviceNs = lanes.map(|lane| lane.share).sum();
        let Device { elapsed, worked, idle, used: Use { charged, discarded }, .. } =
            self.devices[on.0 as usize];
        let given = charged + discarded;
        let pending = worked - given + at_work;
        let name = &self.accounts.devices[on.0 as usize].name;
        assert_eq!(given + pending + idle, elapsed, "the books of {name} balance");
        Totals { charged, discarded, pending, idle, elapsed }
    }

    /// The sum of the prices of a tier's answers.
    pub fn cost(&self, tier: Tier) -> Nanodollars {
        self.costs[tier]
    }

    fn balance(&self, on: DeviceId) {
        let Device { worked, used: Use { charged, discarded }, .. } = self.devices[on.0 as usize];
        let given = charged + discarded;
        let name = &self.accounts.devices[on.0 as usize].name;
        assert!(given <= worked, "{given:?} of {worked:?} worked by {name} are given");
    }

    fn row(&mut self, hour: Hour, tenant: Option<TenantId>, (tier, model): (Tier, ModelId)) -> &mut Sums {
        let tenant = match tenant {
            Some(tenant) => self.accounts.tenants[tenant.0 as usize].clone(),
            None => HOUSE.into(),
        };
        let ModelAccount { model, version, kind } = &self.models[model];
        let kind = self.accounts.prices.name(*kind).clone();
        let key = RowKey { hour, tenant, model: model.clone(), version: version.clone(), tier, kind };
        self.fresh.rows.entry(key).or_default()
    }

    fn device_key(&self, hour: Hour, on: DeviceId) -> DeviceKey {
        let DeviceAccount { name, kind } = &self.accounts.devices[on.0 as usize];
        DeviceKey { hour, kind: self.accounts.prices.name(*kind).clone(), device: name.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::price::{DevicePrice, PriceConfig};
    use proptest::prelude::*;

    const GPU_0: DeviceId = DeviceId(0);
    const GPU_1: DeviceId = DeviceId(1);
    const CPU: DeviceId = DeviceId(2);

    const LARGE: ModelId = ModelId(0);
    const SMALL: ModelId = ModelId(1);

    fn account(model: &str, kind: DeviceKind) -> ModelAccount {
        ModelAccount { model: model.into(), version: "v1".into(), kind }
    }

    fn model(tier: Tier) -> ModelId {
        if tier == Tier::Primary { LARGE } else { SMALL }
    }

    /// Two H100s: two lanes of the primary on the first, one on the second; the fallback on the CPU.
    fn ledger() -> Ledger {
        let devices = [("h100", 2.5), ("cpu", 0.1)].map(|(name, dollars_per_hour)| DevicePrice {
            name: name.into(),
            dollars_per_hour,
            watts: 100.0,
            dollars_per_kwh: None,
        });
        let config = PriceConfig { dollars_per_kwh: 0.2, devices: devices.into() };
        let mut prices = PriceBook::new(&config).unwrap();
        let (h100, cpu) = (prices.kind("h100"), prices.kind("cpu"));
        let device = |name: &str, kind| DeviceAccount { name: name.into(), kind };
        let devices = vec![device("gpu 0", h100), device("gpu 1", h100), device("cpu", cpu)];
        let tenants = vec!["acme".into(), "zeta".into()];
        let mut ledger = Ledger::new(Accounts { prices, devices, tenants }, Ns(100));
        ledger.add_model(LARGE, account("large", h100));
        ledger.add_model(SMALL, account("small", cpu));
        let lanes = [(LARGE, GPU_0), (LARGE, GPU_0), (LARGE, GPU_1), (SMALL, CPU)];
        lanes.into_iter().zip(0..).for_each(|((model, on), lane)| ledger.add_lane(LaneId(lane), model, on));
        ledger
    }

    /// A CPU at `dollars_per_hour` with a lane of each tier, or without a price.
    fn one_cpu(dollars_per_hour: Option<f64>) -> Ledger {
        let price = |dollars_per_hour| DevicePrice {
            name: "cpu".into(),
            dollars_per_hour,
            watts: 0.0,
            dollars_per_kwh: None,
        };
        let devices = dollars_per_hour.map(price).into_iter().collect();
        let mut prices = PriceBook::new(&PriceConfig { dollars_per_kwh: 0.0, devices }).unwrap();
        let kind = prices.kind("cpu");
        let devices = vec![DeviceAccount { name: "cpu".into(), kind }];
        let mut ledger = Ledger::new(Accounts { prices, devices, tenants: vec!["acme".into()] }, Ns::ZERO);
        for (model, name) in [(LARGE, "large"), (SMALL, "small")] {
            ledger.add_model(model, account(name, kind));
            ledger.add_lane(LaneId(model.0), model, DeviceId(0));
        }
        ledger
    }

    fn charge(tenant: u32, tier: Tier) -> Charge {
        let tenant = TenantId(tenant);
        Charge { hour: Hour(1), tenant, tier, model: model(tier), requests: 1, pairs: 10 }
    }

    fn on(device: DeviceId, time: u64) -> impl Iterator<Item = (DeviceId, DeviceNs)> {
        std::iter::once((device, DeviceNs(time)))
    }

    #[test]
    fn a_charge_is_priced_and_rowed() {
        let mut ledger = ledger();
        ledger.begin(LaneId(2), Ns(100));
        ledger.end(Hour(1), LaneId(2), Ns(100 + 3_600_000), DeviceNs::MAX);
        let cost = ledger.charge(&charge(0, Tier::Primary), on(GPU_1, 3_600_000));
        assert_eq!(cost, Some(Nanodollars(2_520)));
        let fresh = ledger.take_increments(Hour(1), Ns(100 + 7_200_000));
        let (key, sums) = fresh.rows.iter().next().unwrap();
        assert_eq!(
            (&*key.tenant, &*key.model, key.tier, &*key.kind),
            ("acme", "large", Tier::Primary, "h100")
        );
        assert_eq!((sums.requests, sums.pairs, sums.cost), (1, 10, cost));
        let devices: Vec<_> = fresh.devices.iter().map(|(key, sums)| (&*key.device, sums)).collect();
        assert_eq!(
            (devices[2].0, devices[2].1.elapsed.0, devices[2].1.busy.0),
            ("gpu 1", 7_200_000, 3_600_000)
        );
        assert_eq!(devices[2].1.cost, Some(Nanodollars(2 * 2_520)));
    }

    #[test]
    fn an_hour_of_a_device_costs_its_price_once_whatever_lanes_it_has() {
        let mut ledger = one_cpu(Some(0.05));
        let hour = 3_600_000_000_000;
        ledger.begin(LaneId(0), Ns::ZERO);
        ledger.begin(LaneId(1), Ns::ZERO);
        let given = [0, 1].map(|lane| ledger.end(Hour(0), LaneId(lane), Ns(hour), DeviceNs(hour)));
        assert_eq!(given, [DeviceNs(hour / 2); 2]);
        let fresh = ledger.take_increments(Hour(1), Ns(hour));
        let costs: Vec<_> = fresh.devices.values().map(|sums| (sums.elapsed, sums.busy, sums.cost)).collect();
        assert_eq!(
            costs.iter().map(|(.., cost)| cost.unwrap_or_default()).sum::<Nanodollars>(),
            Nanodollars(50_000_000)
        );
        assert_eq!(costs.iter().map(|(elapsed, ..)| *elapsed).sum::<DeviceNs>(), DeviceNs(hour));
    }

    #[test]
    fn lanes_that_work_at_once_share_the_device_and_one_alone_has_all_of_it() {
        // Lane 0 works from 0 to 100, lane 1 from 60 to 161; alone, then together, then alone.
        let mut ledger = one_cpu(None);
        ledger.begin(LaneId(0), Ns(0));
        ledger.begin(LaneId(1), Ns(60));
        assert_eq!(ledger.end(Hour(0), LaneId(0), Ns(100), DeviceNs(100)), DeviceNs(60 + 20));
        assert_eq!(ledger.end(Hour(0), LaneId(1), Ns(161), DeviceNs(101)), DeviceNs(20 + 61));
        let totals = ledger.totals(DeviceId(0), Ns(200));
        assert_eq!((totals.pending.0, totals.idle.0, totals.elapsed.0), (161, 39, 200));
    }

    #[test]
    fn an_odd_nanosecond_is_given_to_one_of_two() {
        let mut ledger = one_cpu(None);
        ledger.begin(LaneId(0), Ns(0));
        ledger.begin(LaneId(1), Ns(0));
        let given = [0, 1].map(|lane| ledger.end(Hour(0), LaneId(lane), Ns(7), DeviceNs(7)).0);
        assert_eq!(given, [3, 4]);
    }

    #[test]
    fn a_device_that_tells_less_than_its_share_was_idle_for_the_rest() {
        let mut ledger = ledger();
        ledger.begin(LaneId(0), Ns(100));
        assert_eq!(ledger.end(Hour(0), LaneId(0), Ns(200), DeviceNs(70)), DeviceNs(70));
        let totals = ledger.totals(GPU_0, Ns(250));
        assert_eq!((totals.pending.0, totals.idle.0, totals.elapsed.0), (70, 80, 150));
    }

    #[test]
    fn a_batch_behind_another_has_the_device_once_that_has_ended() {
        let mut ledger = ledger();
        ledger.begin(LaneId(2), Ns(100));
        ledger.begin(LaneId(2), Ns(110));
        assert_eq!(ledger.end(Hour(0), LaneId(2), Ns(150), DeviceNs(50)), DeviceNs(50));
        assert_eq!(ledger.end(Hour(0), LaneId(2), Ns(180), DeviceNs(40)), DeviceNs(30));
        assert_eq!(ledger.totals(GPU_1, Ns(180)).idle, DeviceNs::ZERO);
    }

    #[test]
    fn a_batch_at_work_is_pending() {
        let mut ledger = ledger();
        ledger.begin(LaneId(3), Ns(150));
        let totals = ledger.totals(CPU, Ns(200));
        assert_eq!((totals.pending.0, totals.idle.0, totals.elapsed.0), (50, 50, 100));
    }

    #[test]
    fn what_a_hanging_batch_had_is_paid_by_the_house() {
        let mut ledger = one_cpu(Some(1.0));
        ledger.begin(LaneId(0), Ns(0));
        ledger.begin(LaneId(1), Ns(500));
        assert_eq!(ledger.give_up(Hour(1), LaneId(0), Tier::Primary, Ns(1000)), DeviceNs(750));
        ledger.restart(LaneId(0), Ns(1000));
        let (key, sums) = ledger.take_increments(Hour(1), Ns(1000)).rows.pop_first().unwrap();
        assert_eq!((&*key.tenant, key.tier, sums.discarded), (HOUSE, Tier::Primary, DeviceNs(750)));
        assert_eq!(ledger.totals(DeviceId(0), Ns(1100)).pending, DeviceNs(250 + 100));
    }

    #[test]
    fn without_a_price_time_is_counted_and_money_is_not() {
        let mut ledger = one_cpu(None);
        ledger.begin(LaneId(0), Ns(0));
        ledger.end(Hour(1), LaneId(0), Ns(50), DeviceNs(50));
        assert_eq!(ledger.charge(&charge(0, Tier::Primary), on(DeviceId(0), 50)), None);
        let fresh = ledger.take_increments(Hour(1), Ns(100));
        assert_eq!(
            fresh.rows.values().map(|sums| (sums.device.0, sums.cost)).collect::<Vec<_>>(),
            [(50, None)]
        );
        let spent: Vec<_> = fresh.devices.values().map(|sums| (sums.elapsed.0, sums.cost)).collect();
        assert_eq!(spent, [(100, None)]);
    }

    #[test]
    #[should_panic(expected = "worked by gpu 0 are given")]
    fn more_than_was_worked_cannot_be_charged() {
        let mut ledger = ledger();
        ledger.begin(LaneId(0), Ns(100));
        ledger.end(Hour(1), LaneId(0), Ns(110), DeviceNs(10));
        ledger.charge(&charge(0, Tier::Primary), on(GPU_0, 11));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin { lane: u32 },
        End { lane: u32, took: u64, given: u64, tenant: u32, fate: u8 },
        GiveUp { lane: u32 },
        Restart { lane: u32 },
        Take,
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
        let end = (0..4_u32, 0..1_000_000_u64, 0..=100_u64, 0..2_u32, 0..4_u8)
            .prop_map(|(lane, took, given, tenant, fate)| Step::End { lane, took, given, tenant, fate });
        let step = prop_oneof![
            5 => (0..4_u32).prop_map(|lane| Step::Begin { lane }),
            5 => end,
            1 => (0..4_u32).prop_map(|lane| Step::GiveUp { lane }),
            1 => (0..4_u32).prop_map(|lane| Step::Restart { lane }),
            1 => Just(Step::Take),
        ];
        prop::collection::vec((0..500_000_u64, step), 0..200)
    }

    proptest! {
        #[test]
        fn the_books_balance_and_receipts_add_up_to_rows(steps in steps()) {
            let mut ledger = ledger();
            let (mut now, mut all) = (Ns(100), Increments::default());
            let (mut receipts, mut device_total) = (Nanodollars::ZERO, DeviceNs::ZERO);
            let hour = |now: Ns| Hour(now.0 / 1_000_000);
            for (passed, step) in steps {
                now += Ns(passed);
                let has_batch = |ledger: &Ledger, lane| ledger.lanes[LaneId(lane)].batches > 0;
                match step {
                    Step::Begin { lane } => ledger.begin(LaneId(lane), now),
                    Step::End { lane, took, given, tenant, fate } if has_batch(&ledger, lane) => {
                        let Lane { model, on: device, .. } = ledger.lanes[LaneId(lane)];
                        let tier = if model == LARGE { Tier::Primary } else { Tier::Fallback };
                        let given = DeviceNs(ledger.end(hour(now), LaneId(lane), now, DeviceNs(took)).0 * given / 100);
                        match fate {
                            0 => ledger.discard(Hour(0), None, (tier, model), (device, given)),
                            1 => ledger.discard(Hour(0), Some(TenantId(tenant)), (tier, model), (device, given)),
                            _ => {
                                receipts += ledger.charge(&charge(tenant, tier), on(device, given.0)).unwrap();
                                device_total += given;
                            }
                        }
                    }
                    Step::GiveUp { lane } if has_batch(&ledger, lane) => {
                        ledger.give_up(hour(now), LaneId(lane), Tier::Primary, now);
                        ledger.restart(LaneId(lane), now);
                    }
                    Step::Restart { lane } => ledger.restart(LaneId(lane), now),
                    Step::Take => all.merge(ledger.take_increments(hour(now), now)),
                    Step::End { .. } | Step::GiveUp { .. } => {}
                }
                for device in [GPU_0, GPU_1, CPU] {
                    // It panics where the parts are not the whole.
                    prop_assert_eq!(ledger.totals(device, now).elapsed, DeviceNs(now.0 - 100));
                }
            }
            for lane in 0..4 {
                ledger.restart(LaneId(lane), now);
            }
            all.merge(ledger.take_increments(Hour(9), now));
            prop_assert_eq!(all.rows.values().filter_map(|sums| sums.cost).sum::<Nanodollars>(), receipts);
            prop_assert_eq!(all.rows.values().map(|sums| sums.device).sum::<DeviceNs>(), device_total);
            let totals = [GPU_0, GPU_1, CPU].map(|device| ledger.totals(device, now));
            let sum = |of: fn(&Totals) -> DeviceNs| totals.iter().map(of).sum::<DeviceNs>();
            let devices = |of: fn(&DeviceSums) -> DeviceNs| all.devices.values().map(of).sum::<DeviceNs>();
            prop_assert_eq!(devices(|sums| sums.elapsed), sum(|totals| totals.elapsed));
            prop_assert_eq!(devices(|sums| sums.busy) + sum(|totals| totals.idle), sum(|totals| totals.elapsed));
            let discarded = sum(|totals| totals.discarded);
            prop_assert_eq!(all.rows.values().map(|sums| sums.discarded).sum::<DeviceNs>(), discarded);
        }
    }

    #[test]
    fn a_device_s_time_does_not_run_backwards() {
        let mut ledger = ledger();
        assert_eq!(ledger.totals(CPU, Ns(200)).elapsed, DeviceNs(100));
        assert_eq!(ledger.totals(CPU, Ns(150)).elapsed, DeviceNs(100));
        assert_eq!(ledger.totals(CPU, Ns(250)).elapsed, DeviceNs(150));
    }

    #[test]
    fn rows_have_the_tenant_and_the_tier_and_costs_the_tier() {
        let mut ledger = ledger();
        ledger.begin(LaneId(2), Ns(100));
        ledger.end(Hour(1), LaneId(2), Ns(100 + 7_200_000), DeviceNs::MAX);
        let none = Charge { requests: 0, ..charge(1, Tier::Primary) };
        for charge in [charge(0, Tier::Primary), none] {
            ledger.charge(&charge, on(GPU_1, 3_000_000));
        }
        ledger.discard(Hour(1), Some(TenantId(1)), (Tier::Primary, LARGE), (GPU_1, DeviceNs(7)));
        assert_eq!(
            (ledger.cost(Tier::Primary), ledger.cost(Tier::Fallback)),
            (Nanodollars(4_200), Nanodollars::ZERO)
        );
        let rows = ledger.take_increments(Hour(1), Ns(100 + 7_200_000)).rows;
        let found: Vec<_> = rows
            .iter()
            .map(|(key, row)| (&*key.tenant, row.requests, row.pairs, row.device.0, row.discarded.0))
            .collect();
        assert_eq!(found, [("acme", 1, 10, 3_000_000, 0), ("zeta", 0, 10, 3_000_000, 7)]);
    }

    #[test]
    fn increments_of_elapsed_time_and_its_price_are_told_once() {
        let mut ledger = ledger();
        let mut told = |now| {
            let fresh = ledger.take_increments(Hour(1), Ns(100 + now));
            let cpu = fresh.devices.values().next().unwrap();
            (cpu.elapsed.0, cpu.cost.unwrap().0)
        };
        // An hour costs 0.12 dollars.
        let hour = 3_600_000_000_000;
        assert_eq!(told(hour), (hour, 120_000_000));
        assert_eq!(told(hour), (0, 0));
        assert_eq!(told(hour + hour / 2), (hour / 2, 60_000_000));
    }

    #[test]
    fn a_lane_that_is_restarted_had_its_part_until_then() {
        let mut ledger = one_cpu(None);
        ledger.begin(LaneId(0), Ns(0));
        ledger.begin(LaneId(1), Ns(0));
        ledger.restart(LaneId(0), Ns(1_000));
        assert_eq!(ledger.end(Hour(0), LaneId(1), Ns(1_000), DeviceNs(1_000)), DeviceNs(500));
        assert_eq!(ledger.totals(DeviceId(0), Ns(1_000)).idle, DeviceNs(500));
    }

    #[test]
    #[should_panic(expected = "worked by cpu are given")]
    fn more_than_was_worked_cannot_be_discarded() {
        let mut ledger = ledger();
        ledger.begin(LaneId(3), Ns(100));
        ledger.end(Hour(1), LaneId(3), Ns(110), DeviceNs(10));
        ledger.charge(&charge(0, Tier::Fallback), on(CPU, 5));
        ledger.discard(Hour(1), None, (Tier::Fallback, SMALL), (CPU, DeviceNs(6)));
    }
}
