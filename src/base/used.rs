//! Device time by tier and device: what an answer is charged.

use super::{DeviceId, DeviceNs, Tier};
use smallvec::SmallVec;

/// Device time of each tier on each device, in that order; entries are never zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Used(SmallVec<[(Tier, DeviceId, DeviceNs); 1]>);

impl Used {
    /// Adds device time that a tier took on a device.
    pub fn add(&mut self, tier: Tier, on: DeviceId, device: DeviceNs) {
        if device == DeviceNs::ZERO {
            return;
        }
        match self.0.binary_search_by_key(&(tier, on), |&(tier, on, _)| (tier, on)) {
            Ok(place) => self.0[place].2 += device,
            Err(place) => self.0.insert(place, (tier, on, device)),
        }
    }

    /// Every entry.
    pub fn iter(&self) -> impl Iterator<Item = (Tier, DeviceId, DeviceNs)> + '_ {
        self.0.iter().copied()
    }

    /// A tier's time on each device.
    pub fn of(&self, tier: Tier) -> impl Iterator<Item = (DeviceId, DeviceNs)> + '_ {
        self.iter().filter(move |entry| entry.0 == tier).map(|(_, on, device)| (on, device))
    }

    /// A tier's time on all devices.
    pub fn tier(&self, tier: Tier) -> DeviceNs {
        self.of(tier).map(|(_, device)| device).sum()
    }

    /// All of it.
    pub fn total(&self) -> DeviceNs {
        self.iter().map(|(.., device)| device).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_adds_up_by_tier_and_device() {
        let mut used = Used::default();
        for (tier, on, device) in [
            (Tier::Fallback, 0, 5),
            (Tier::Primary, 1, 3),
            (Tier::Primary, 0, 0),
            (Tier::Primary, 1, 4),
            (Tier::Primary, 0, 1),
        ] {
            used.add(tier, DeviceId(on), DeviceNs(device));
        }
        let primary: Vec<_> = used.of(Tier::Primary).collect();
        assert_eq!(primary, [(DeviceId(0), DeviceNs(1)), (DeviceId(1), DeviceNs(7))]);
        assert_eq!((used.tier(Tier::Fallback), used.total()), (DeviceNs(5), DeviceNs(13)));
        assert_eq!(used.iter().count(), 3);
    }
}
