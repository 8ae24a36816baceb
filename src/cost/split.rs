//! temporary
#![allow(missing_docs)]
use crate::base::DeviceNs;
pub fn split(total: DeviceNs, weights: &[u64]) -> Vec<DeviceNs> {
    let sum: u128 = weights.iter().map(|&w| u128::from(w)).sum();
    let (mut acc, mut given) = (0u128, 0u64);
    weights.iter().enumerate().map(|(i,&w)| { acc += u128::from(w); let upto = if i + 1 == weights.len() { total.0 } else { (u128::from(total.0) * acc / sum.max(1)) as u64 }; let part = upto - given; given = upto; DeviceNs(part) }).collect()
}
