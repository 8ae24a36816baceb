//! Fixtures of the tests of distilling.

use super::student::Shape;
use crate::model::{Encoder, Family, Linear, Norm, Weights};
use crate::ops::Gelu;
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64;

pub fn tiny() -> Shape {
    Shape { layers: 2, hidden: 16, heads: 2, intermediate: 24 }
}

/// A teacher with 40 words. Only its embeddings are used.
pub fn teacher() -> (Encoder, Weights) {
    let encoder = Encoder {
        family: Family::Roberta,
        hidden: 32,
        layers: 0,
        heads: 2,
        intermediate: 8,
        vocabulary: 40,
        positions: 20,
        position_offset: 2,
        token_types: 1,
        layer_norm_eps: 1e-5,
        gelu: Gelu::Erf,
    };
    let mut random = Pcg64::seed_from_u64(5);
    let mut table =
        |rows: usize| -> Vec<f32> { (0..rows * 32).map(|_| StandardNormal.sample(&mut random)).collect() };
    let none = || Linear { weight: Vec::new(), bias: Vec::new() };
    let weights = Weights {
        words: table(40),
        positions: table(20),
        token_types: table(1),
        embedding_norm: Norm { gain: Vec::new(), bias: Vec::new() },
        layers: Vec::new(),
        pooler: none(),
        classifier: none(),
    };
    (encoder, weights)
}
