//! Divides a batch's device time among the owners of its pairs, to the nanosecond.

use super::DeviceNs;

/// Divides `total` in proportion to `weights`; the parts add up to `total` exactly.
///
/// Part i ends at `floor(total * (w_0 + .. + w_i) / sum(w))`, so each part is within one nanosecond of its exact share,
/// and a weight of zero gets nothing. If all weights are zero the parts are equal. Without weights there are no parts.
pub fn split(total: DeviceNs, weights: &[u64]) -> Vec<DeviceNs> {
    shares(total.0, weights).into_iter().map(DeviceNs).collect()
}

/// [`split`] for any unit.
pub fn shares(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let is_level = sum == 0;
    let sum = if is_level { weights.len() as u128 } else { sum };
    let (mut before, mut given) = (0_u128, 0_u64);
    weights
        .iter()
        .map(|&weight| {
            before += if is_level { 1 } else { u128::from(weight) };
            let end = share(total, before, sum);
            let part = end - given;
            given = end;
            part
        })
        .collect()
}

/// `floor(total * part / whole)` for `part <= whole`, without overflow.
fn share(total: u64, part: u128, whole: u128) -> u64 {
    // If the weights sum to more than 2^64, part and whole are scaled down together, so that the product fits u128.
    let shift = (u128::BITS - whole.leading_zeros()).saturating_sub(u64::BITS);
    let (part, whole) = if part == whole { (1, 1) } else { (part >> shift, whole >> shift) };
    (u128::from(total) * part / whole) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(total: u64, weights: &[u64]) -> Vec<u64> {
        split(DeviceNs(total), weights).into_iter().map(|part| part.0).collect()
    }

    #[test]
    fn a_remainder_is_given_away_and_not_lost() {
        assert_eq!(parts(10, &[1, 1, 1]), [3, 3, 4]);
        assert_eq!(parts(1, &[5, 5]), [0, 1]);
    }

    #[test]
    fn a_weight_of_zero_pays_nothing() {
        assert_eq!(parts(100, &[0, 7, 0, 3, 0]), [0, 70, 0, 30, 0]);
    }

    #[test]
    fn weights_of_only_zeros_share_equally() {
        assert_eq!(parts(7, &[0, 0]), [3, 4]);
    }

    #[test]
    fn nobody_is_charged_where_nobody_is() {
        assert!(parts(7, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn parts_add_up_exactly(total: u64, weights in prop::collection::vec(any::<u64>(), 1..40)) {
            prop_assert_eq!(split(DeviceNs(total), &weights).into_iter().sum::<DeviceNs>(), DeviceNs(total));
        }

        #[test]
        fn a_part_is_within_a_nanosecond_of_its_share(
            total in 0_u64..1_000_000_000_000,
            weights in prop::collection::vec(0_u64..1_000_000_000, 1..40),
        ) {
            let sum: u64 = weights.iter().sum();
            prop_assume!(sum > 0);
            for (part, &weight) in parts(total, &weights).into_iter().zip(&weights) {
                let share = u128::from(total) * u128::from(weight) / u128::from(sum);
                prop_assert!(u128::from(part).abs_diff(share) <= 1, "{part} of {share}");
                prop_assert!(weight > 0 || part == 0);
            }
        }
    }
}
