//! E4M3 (OCP 8-bit floating point, 2023: one sign bit, four exponent bits, three fraction bits) and the scales of a map.

use super::{Array, Device, DeviceError};

/// The largest value.
pub const E4M3_MAX: f32 = 448.0;
/// The smallest normal value; below it values are multiples of 2^-9.
const NORMAL_MIN: f32 = 1.0 / 64.0;

/// The scales of a map in E4M3, one per tensor.
pub struct Scales<D: Device> {
    /// `[1]` f32: inputs are multiplied by it before rounding.
    pub factor: Array<D>,
    /// `[1]` f32: the inverse of `factor`, which restores inputs.
    pub input: Array<D>,
    /// `[1]` f32: restores weights.
    pub weight: Array<D>,
}

impl<D: Device> Scales<D> {
    /// Scales for inputs and weights of at most these magnitudes.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(device: &D, largest_input: f32, largest_weight: f32) -> Result<Self, DeviceError> {
        let input = scale(largest_input);
        let one = |value: f32| Array::of_floats(device, &[value]);
        Ok(Self { factor: one(1.0 / input)?, input: one(input)?, weight: one(scale(largest_weight))? })
    }
}

/// The scale that maps [`E4M3_MAX`] to `largest`; 1 if `largest` is 0.
fn scale(largest: f32) -> f32 {
    if largest > 0.0 { largest / E4M3_MAX } else { 1.0 }
}

/// Values in E4M3, divided by the scale that makes the largest one fit; and the largest magnitude.
pub fn e4m3(values: &[f32]) -> (Vec<u8>, f32) {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let factor = 1.0 / scale(largest);
    (values.iter().map(|value| round(value * factor)).collect(), largest)
}

/// Rounds to nearest, ties to even, and saturates at [`E4M3_MAX`], as the device does.
fn round(value: f32) -> u8 {
    let (sign, size) = (if value.is_sign_negative() { 0x80 } else { 0 }, value.abs());
    sign | if size >= E4M3_MAX {
        0x7e
    } else if size < NORMAL_MIN {
        (size * 512.0).round_ties_even() as u8
    } else {
        // Adds half a unit in the last place (slightly less if the kept part is even), then truncates.
        let bits = size.to_bits() - (120 << 23);
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes by the definition.
    fn value(bits: u8) -> f32 {
        let (exponent, fraction) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
        let size =
            if exponent == 0 { fraction / 512.0 } else { (1.0 + fraction / 8.0) * 2_f32.powi(exponent - 7) };
        if bits & 0x80 == 0 { size } else { -size }
    }

    #[test]
    fn every_value_rounds_to_itself_and_others_to_the_nearest() {
        for bits in (0..0x7f).chain(0x80..0xff) {
            assert_eq!(round(value(bits)), bits);
        }
        for bits in 0..0x7e {
            let (low, high) = (value(bits), value(bits + 1));
            let middle = (low + high) / 2.0;
            assert_eq!(round(middle), if bits % 2 == 0 { bits } else { bits + 1 }, "{middle}");
            assert_eq!(round(middle + (high - low) / 64.0), bits + 1);
            assert_eq!(round(middle - (high - low) / 64.0), bits);
        }
        assert_eq!((round(1e9), round(-450.0)), (0x7e, 0xfe));
    }

    #[test]
    fn the_largest_value_fits() {
        let (bits, largest) = e4m3(&[-3.0, 1.5, 0.0]);
        assert_eq!((bits, largest), (vec![0xfe, 0x76, 0], 3.0));
        assert_eq!(e4m3(&[0.0]), (vec![0], 0.0));
    }
}
