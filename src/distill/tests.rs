//! Fixtures of the tests of distilling.

use super::student::Shape;
use crate::model::{Activation, Bert, Family, Gelu, Plan};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64;

pub fn tiny() -> Shape {
    Shape { layers: 2, hidden: 16, heads: 2, intermediate: 24 }
}

/// A teacher with 40 words. Only its embeddings are used.
pub fn teacher() -> Plan {
    let shape = Bert {
        family: Family::Roberta,
        hidden: 32,
        layers: 1,
        heads: 2,
        intermediate: 8,
        vocabulary: 40,
        positions: 20,
        position_offset: 2,
        token_types: 1,
        layer_norm_eps: 1e-5,
        activation: Activation::Gelu(Gelu::Erf),
    };
    let mut random = Pcg64::seed_from_u64(5);
    let mut plan = shape.plan();
    for tensor in plan.tensors_mut().into_iter().take(3) {
        tensor.values = (0..tensor.count()).map(|_| StandardNormal.sample(&mut random)).collect();
    }
    plan
}
