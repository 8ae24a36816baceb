//! The models of a simulated server: their first versions, and how others take their place.

use super::Machine;
use super::prefixes::Kept;
use super::scenario::{Hardships, Role, Scenario};
use super::world::{Happening, Lane, World};
use crate::base::{DeviceId, LaneId, ModelId, Ns, PerTier, Tier};
use crate::ledger::books::{Accounts, DeviceAccount, Ledger, ModelAccount};
use crate::ledger::price::{DeviceKind, DevicePrice, PriceBook, PriceConfig};
use crate::sched::Event;
use rand::RngExt;

/// The time in which another version of a model is loaded, and for which a model is evicted.
const LOAD: Ns = Ns::from_millis(500);
/// One in this many versions does not load.
const FAILED_LOADS: u32 = 4;

impl World<'_> {
    /// Brings the first version of each model up.
    pub(super) fn begin(&mut self, machine: &mut impl Machine) {
        for (role, number) in self.scenario.roles().into_iter().zip(0..) {
            let places: Vec<usize> = self.scenario.lanes_of(role).collect();
            self.add_model(role, ModelId(number), places.iter().map(|&place| (LaneId(place as u32), place)));
            self.next = (self.next.0.max(number + 1), self.scenario.devices.len() as u32);
            for place in places {
                self.live.insert(role, ModelId(number));
                self.step(machine, Event::LaneUp { lane: LaneId(place as u32) });
            }
        }
    }

    fn add_model(&mut self, role: Role, model: ModelId, lanes: impl Iterator<Item = (LaneId, usize)>) {
        let kind = self.kinds[role.tier];
        let (name, version) = (format!("{} {}", role.tier.name(), role.place), model.0.to_string());
        self.ledger.add_model(model, ModelAccount { model: name.into(), version: version.into(), kind });
        for (lane, place) in lanes {
            self.ledger.add_lane(lane, model, self.scenario.device_of(place));
            self.lanes.insert(lane, Lane { model, place, free_at: self.now, kept: Kept::default() });
        }
    }

    /// Sometimes begins to load another version of a model, or evicts one.
    pub(super) fn change_models(&mut self, machine: &mut impl Machine) {
        let Hardships { swap, evict, .. } = self.scenario.hardships;
        let (swaps, evicts) = (self.happens(swap), self.happens(evict));
        if !swaps && !evicts {
            return;
        }
        let place = self.chance.random_range(0..self.live.len().max(1));
        let Some((&role, &model)) = self.live.iter().nth(place) else { return };
        if !self.loading.insert(role) {
            return;
        }
        let loaded = self.now + Ns(self.chance.random_range(0..LOAD.0));
        self.at(loaded, Happening::ModelLoads(role));
        // One model stays, so that there is one to answer.
        if evicts && self.live.len() > 1 {
            self.live.remove(&role);
            self.report.evictions += 1;
            self.step(machine, Event::Retire { model });
        }
    }

    /// A version is loaded, or fails to be: then one that was evicted is tried again.
    pub(super) fn model_loads(&mut self, machine: &mut impl Machine, role: Role) {
        if self.chance.random_ratio(1, FAILED_LOADS) {
            match self.live.contains_key(&role) {
                true => drop(self.loading.remove(&role)),
                false => self.at(self.now + LOAD, Happening::ModelLoads(role)),
            }
            return;
        }
        self.loading.remove(&role);
        let (number, lane) = self.next;
        let model = ModelId(number);
        let places: Vec<usize> = self.scenario.lanes_of(role).collect();
        let lanes: Vec<_> = (lane..).map(LaneId).zip(places).collect();
        self.next = (number + 1, lane + lanes.len() as u32);
        self.add_model(role, model, lanes.iter().copied());
        let lane_config = |(lane, place)| (lane, self.scenario.lane_config(place, model));
        let lanes = lanes.into_iter().map(lane_config).collect();
        self.step(machine, Event::ModelUp { model, seeds: self.scenario.seeds(role), lanes });
        if let Some(old) = self.live.insert(role, model) {
            self.report.swaps += 1;
            self.step(machine, Event::Retire { model: old });
        }
    }
}

/// The books, and the kinds of the tiers' devices.
pub(super) fn ledger(scenario: &Scenario) -> (Ledger, PerTier<DeviceKind>) {
    let price = |tier: Tier, dollars_per_hour| DevicePrice {
        name: tier.name().to_owned(),
        dollars_per_hour,
        watts: 0.0,
        dollars_per_kwh: None,
    };
    let devices = vec![price(Tier::Primary, 2.5), price(Tier::Fallback, 0.05)];
    let mut prices =
        PriceBook::new(&PriceConfig { dollars_per_kwh: 0.0, devices }).expect("these are prices");
    let mut kind = |tier: Tier| {
        let named = if scenario.one_device { Tier::Primary } else { tier };
        prices.kind(named.name())
    };
    let kinds = PerTier { primary: kind(Tier::Primary), fallback: kind(Tier::Fallback) };
    let lanes = || {
        (scenario.devices.iter().enumerate()).map(|(lane, device)| (device.tier, scenario.device_of(lane)))
    };
    let count = if scenario.one_device { 1 } else { scenario.devices.len() };
    let device = |(tier, on): (Tier, DeviceId)| DeviceAccount {
        name: format!("device {}", on.0).into(),
        kind: kinds[tier],
    };
    let devices = lanes().take(count).map(device).collect();
    let tenants = (0..scenario.tenants.len()).map(|tenant| format!("tenant {tenant}").into()).collect();
    (Ledger::new(Accounts { prices, devices, tenants }, Ns::ZERO), kinds)
}
