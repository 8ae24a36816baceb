//! The one place that the engine's facts go to: metrics, prices, ledger and journal.

use super::clock::Clock;
use crate::base::{DeviceNs, Nanodollars, Ns, PerTier, TenantId, Tier};
use crate::sched::{Config, Done, Event, Scheduler};

/// Where facts are counted, priced and kept.
#[derive(Default)]
pub struct Books {}

/// A batch that ended.
pub(super) struct BatchFacts<'a> {
    pub tier: Tier,
    pub pairs: usize,
    pub done: &'a Done,
}

impl Books {
    pub(super) fn begin(&mut self, _config: &Config) {}

    pub(super) fn event(&mut self, _now: Ns, _event: &Event) {}

    pub(super) fn batch(&mut self, _facts: &BatchFacts) {}

    pub(super) fn charge(&mut self, _tenant: TenantId, _charged: PerTier<DeviceNs>) -> Nanodollars {
        Nanodollars::ZERO
    }

    pub(super) fn discard(&mut self, _tenant: Option<TenantId>, _tier: Tier, _device: DeviceNs) {}

    pub(super) fn snapshot(&mut self, _sched: &Scheduler, _clock: &Clock) {}
}
