//! Prices of devices, energy included, in nanodollars.

use crate::base::{DeviceNs, Nanodollars};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use thiserror::Error;

/// The `[prices]` of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PriceConfig {
    /// Dollars for a kilowatt hour, where a device names no price of its own. Default 0: the hourly
    /// price is taken to include energy.
    pub dollars_per_kwh: f64,
    /// The kinds of device that lanes run on. Default none: device time is counted and has no price.
    pub devices: Vec<DevicePrice>,
}

/// The price of one kind of device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicePrice {
    /// The name that tiers use, for example `h100`.
    pub name: String,
    /// Rent or depreciation of one device, in dollars per hour, however many lanes it has.
    pub dollars_per_hour: f64,
    /// Power drawn by one device, in watts. Default 0.
    #[serde(default)]
    pub watts: f64,
    /// Dollars for a kilowatt hour. Default: that of `[prices]`.
    #[serde(default)]
    pub dollars_per_kwh: Option<f64>,
}

/// An error in `[prices]`; the message names the key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PriceError {
    /// Not a number, negative, or so large that sums could overflow.
    #[error("{key}: must be between 0 and {max}")]
    OutOfRange {
        /// The configuration key.
        key: String,
        /// The largest value allowed.
        max: u64,
    },
    /// Two devices have the same name.
    #[error("prices.devices[{place}].name: {name} has a price already")]
    Twice {
        /// The second one's position in the list.
        place: usize,
        /// Its name.
        name: String,
    },
}

/// A kind of device in a [`PriceBook`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKind(u16);

/// Prices of device time, by kind of device.
#[derive(Clone, Debug, Default)]
pub struct PriceBook {
    kinds: Vec<Kind>,
}

#[derive(Clone, Debug)]
struct Kind {
    name: Arc<str>,
    /// None where no price is configured.
    per_hour: Option<Nanodollars>,
}

/// Far above any device for rent. The sum for a thousand devices at this price fills the store's 63 bits of nanodollars
/// after a year.
const DOLLARS_MAX: u64 = 1_000;
/// A rack rather than a device.
const WATTS_MAX: u64 = 1_000_000;
const HOUR: u128 = 3_600_000_000_000;

impl PriceBook {
    /// Checks a configuration and converts it to whole nanodollars per hour, each part rounded to nearest.
    ///
    /// # Errors
    /// [`PriceError`], which names the key.
    pub fn new(config: &PriceConfig) -> Result<Self, PriceError> {
        check("prices.dollars_per_kwh", config.dollars_per_kwh, DOLLARS_MAX)?;
        let mut book = Self::default();
        for (place, device) in config.devices.iter().enumerate() {
            let key = |field: &str| format!("prices.devices[{place}].{field}");
            check(&key("dollars_per_hour"), device.dollars_per_hour, DOLLARS_MAX)?;
            check(&key("watts"), device.watts, WATTS_MAX)?;
            let per_kwh = device.dollars_per_kwh.unwrap_or(config.dollars_per_kwh);
            check(&key("dollars_per_kwh"), per_kwh, DOLLARS_MAX)?;
            if book.kinds.iter().any(|kind| *kind.name == *device.name) {
                return Err(PriceError::Twice { place, name: device.name.clone() });
            }
            let energy = device.watts / 1000.0 * per_kwh;
            let per_hour = Some(Nanodollars(nano(device.dollars_per_hour) + nano(energy)));
            book.kinds.push(Kind { name: device.name.as_str().into(), per_hour });
        }
        Ok(book)
    }

    /// Finds the kind of that name; one without a price is added.
    pub fn kind(&mut self, name: &str) -> DeviceKind {
        let known = self.kinds.iter().position(|kind| *kind.name == *name);
        let place = known.unwrap_or_else(|| {
            self.kinds.push(Kind { name: name.into(), per_hour: None });
            self.kinds.len() - 1
        });
        DeviceKind(u16::try_from(place).expect("there are fewer kinds of device than lanes"))
    }

    /// The name of a kind.
    pub fn name(&self, kind: DeviceKind) -> &Arc<str> {
        &self.kinds[usize::from(kind.0)].name
    }

    /// What an hour of a device costs; none without a price.
    pub fn per_hour(&self, kind: DeviceKind) -> Option<Nanodollars> {
        self.kinds[usize::from(kind.0)].per_hour
    }

    /// Prices device time: `device * per_hour / 1 h`, rounded to the nearest nanodollar, halves up; none
    /// without a price.
    pub fn price(&self, kind: DeviceKind, device: DeviceNs) -> Option<Nanodollars> {
        let product = u128::from(device.0) * u128::from(self.per_hour(kind)?.0);
        Some(Nanodollars(u64::try_from((product + HOUR / 2) / HOUR).unwrap_or(u64::MAX)))
    }
}

fn check(key: &str, value: f64, max: u64) -> Result<(), PriceError> {
    if (0.0..=max as f64).contains(&value) {
        Ok(())
    } else {
        Err(PriceError::OutOfRange { key: key.to_owned(), max })
    }
}

fn nano(dollars: f64) -> u64 {
    (dollars * 1e9).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn book(text: &str) -> Result<PriceBook, PriceError> {
        PriceBook::new(&toml::from_str(text).unwrap())
    }

    const H100: &str =
        "dollars_per_kwh = 0.2\n[[devices]]\nname = 'h100'\ndollars_per_hour = 2.5\nwatts = 700";

    #[test]
    fn an_hour_costs_rent_and_energy() {
        let mut book = book(H100).unwrap();
        let h100 = book.kind("h100");
        assert_eq!(book.per_hour(h100), Some(Nanodollars(2_640_000_000)));
        assert_eq!(book.price(h100, DeviceNs(HOUR as u64)), Some(Nanodollars(2_640_000_000)));
        assert_eq!(book.price(h100, DeviceNs(1_000_000)), Some(Nanodollars(733)));
    }

    #[test]
    fn a_device_may_have_energy_of_its_own_price() {
        let mut book = book(&format!("{H100}\ndollars_per_kwh = 1.0")).unwrap();
        let h100 = book.kind("h100");
        assert_eq!(book.per_hour(h100), Some(Nanodollars(3_200_000_000)));
    }

    #[test]
    fn a_price_is_rounded_to_the_nearest_with_halves_up() {
        // A nanosecond costs 0.28 nanodollars, and 5400 ns exactly 1500.
        let mut book = book("[[devices]]\nname = 'x'\ndollars_per_hour = 1000").unwrap();
        let x = book.kind("x");
        assert_eq!(book.price(x, DeviceNs(1)), Some(Nanodollars(0)));
        assert_eq!(book.price(x, DeviceNs(2)), Some(Nanodollars(1)));
        assert_eq!(book.price(x, DeviceNs(3)), Some(Nanodollars(1)));
        assert_eq!(book.price(x, DeviceNs(5_400)), Some(Nanodollars(1_500)));
        assert_eq!(book.price(x, DeviceNs(9)), Some(Nanodollars(3)));
    }

    #[test]
    fn what_a_device_without_a_price_costs_is_not_known() {
        let mut book = PriceBook::default();
        let cpu = book.kind("cpu");
        assert_eq!((book.price(cpu, DeviceNs(1)), &**book.name(cpu)), (None, "cpu"));
        assert_eq!(book.kind("cpu"), cpu);
    }

    #[test]
    fn a_bad_price_names_its_key() {
        let bad = |text| book(text).unwrap_err().to_string();
        assert_eq!(
            bad("[[devices]]\nname = 'x'\ndollars_per_hour = -1"),
            "prices.devices[0].dollars_per_hour: must be between 0 and 1000"
        );
        assert_eq!(bad("dollars_per_kwh = nan"), "prices.dollars_per_kwh: must be between 0 and 1000");
        assert_eq!(
            bad("[[devices]]\nname='x'\ndollars_per_hour=1\n[[devices]]\nname='x'\ndollars_per_hour=2"),
            "prices.devices[1].name: x has a price already"
        );
        assert!(toml::from_str::<PriceConfig>("dollars = 1").is_err());
    }

    proptest! {
        #[test]
        fn a_price_is_within_half_a_nanodollar(device in 0..u64::MAX / 1000, dollars in 0.0..1000.0_f64) {
            let config = DevicePrice {
                name: "x".into(),
                dollars_per_hour: dollars,
                watts: 0.0,
                dollars_per_kwh: None,
            };
            let config = PriceConfig { dollars_per_kwh: 0.0, devices: vec![config] };
            let mut book = PriceBook::new(&config).unwrap();
            let x = book.kind("x");
            let product = u128::from(device) * u128::from(book.per_hour(x).unwrap().0);
            let back = u128::from(book.price(x, DeviceNs(device)).unwrap().0) * HOUR;
            prop_assert!(back.abs_diff(product) <= HOUR / 2);
        }
    }

    #[test]
    fn each_part_of_a_price_is_bounded_and_rounded_to_the_nearest_nanodollar() {
        let book_of = |dollars_per_hour, watts, per_kwh| {
            let device =
                DevicePrice { name: "x".into(), dollars_per_hour, watts, dollars_per_kwh: Some(per_kwh) };
            let mut book = PriceBook::new(&PriceConfig { dollars_per_kwh: 0.0, devices: vec![device] })?;
            let x = book.kind("x");
            Ok(book.per_hour(x).unwrap().0)
        };
        let out_of_range =
            |field: &str, max| Err(PriceError::OutOfRange { key: format!("prices.devices[0].{field}"), max });
        assert_eq!(book_of(1_000.0, 1e6, 1_000.0), Ok(1_001_000_000_000_000));
        assert_eq!(book_of(1_000.1, 0.0, 0.0), out_of_range("dollars_per_hour", 1_000));
        assert_eq!(book_of(0.0, 1e6 + 1.0, 0.0), out_of_range("watts", 1_000_000));
        assert_eq!(book_of(0.0, 0.0, 1_000.1), out_of_range("dollars_per_kwh", 1_000));
        assert_eq!(book_of(0.0, -1.0, 0.0), out_of_range("watts", 1_000_000));
        assert_eq!(book_of(2.4e-9, 0.0, 0.0), Ok(2));
        assert_eq!(book_of(2.6e-9, 1_000.0, 0.6e-9), Ok(4));
    }
}
