//! temporary
#![allow(missing_docs)]
use crate::base::{DeviceNs, Ns};
use serde::{Deserialize, Serialize};
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load { pub tokens: u64, pub squares: u64, pub pairs: u32 }
impl Load {
    pub fn of(lengths: impl IntoIterator<Item = u32>) -> Self { let mut l = Self::default(); for x in lengths { l.add(x) } l }
    pub fn add(&mut self, len: u32) { self.tokens += u64::from(len); self.squares += u64::from(len)*u64::from(len); self.pairs += 1; }
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured { pub load: Load, pub took: DeviceNs }
#[derive(Clone, Debug)]
pub struct Predictor { per: f64 }
impl Predictor {
    pub fn new(seed: &[Measured]) -> Self { let t: u64 = seed.iter().map(|m| m.load.tokens).sum(); let n: u64 = seed.iter().map(|m| m.took.0).sum(); Self { per: if t == 0 { 1000.0 } else { n as f64 / t as f64 } } }
    pub fn predict(&self, load: &Load) -> Ns { Ns((self.per * load.tokens as f64) as u64) }
    pub fn p99(&self, load: &Load) -> Ns { Ns((1.1 * self.per * load.tokens as f64) as u64) }
    pub fn marginal(&self, len: u32) -> Ns { Ns((self.per * f64::from(len)) as u64) }
    pub fn observe(&mut self, _load: &Load, _took: Ns) {}
}
