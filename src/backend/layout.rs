//! A model's maps, padded for the operations: widths to multiples of [`PAD`], each head by itself.

use crate::model::{Attention, Linear, Norm, Score};
use crate::ops::{Dense, Heads, PAD};
use std::f32::consts::LOG2_E;

/// How a width of values is laid out: in `count` parts of `size`, each padded to `padded`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Width {
    count: usize,
    size: usize,
    padded: usize,
    /// Whether the halves of a part are padded each by itself.
    in_halves: bool,
}

impl Width {
    /// Values in one piece.
    pub fn plain(size: usize) -> Self {
        Self { count: 1, size, padded: size.next_multiple_of(PAD), in_halves: false }
    }

    /// Values of a number of heads.
    pub fn heads(count: usize, size: usize) -> Self {
        Self { count, ..Self::plain(size) }
    }

    /// Values of a number of heads that positions rotate: the value at `i` turns with that at `size / 2 + i`, and both
    /// stand in the same lane of two vectors.
    pub fn rotated(count: usize, size: usize) -> Self {
        Self { in_halves: true, ..Self::heads(count, size) }
    }

    /// Values with their padding.
    pub fn padded(&self) -> usize {
        self.count * self.padded
    }

    /// The heads that they make.
    pub fn as_heads(&self) -> Heads {
        Heads { count: self.count, size: self.padded }
    }

    /// Where each value goes.
    fn places(self) -> impl Iterator<Item = usize> {
        let beyond = move |index| if self.in_halves && index >= self.size / 2 { 1 } else { 0 };
        let gap = (self.padded - self.size) / 2;
        let place = move |part, index| part * self.padded + index + beyond(index) * gap;
        (0..self.count).flat_map(move |part| (0..self.size).map(move |index| place(part, index)))
    }
}

/// A map with its widths padded and its values multiplied by a factor.
pub(super) fn pad(map: &Linear, outputs: Width, inputs: Width, factor: f32) -> Dense {
    let mut dense = Dense {
        outputs: outputs.padded(),
        inputs: inputs.padded(),
        weight: vec![0.0; outputs.padded() * inputs.padded()],
        bias: vec![0.0; outputs.padded()],
    };
    let bias = map.bias_values();
    let weights = map.weight.values();
    let from = weights.chunks_exact(inputs.count * inputs.size).zip(&bias);
    for (output, (weights, bias)) in outputs.places().zip(from) {
        dense.bias[output] = bias * factor;
        let row = &mut dense.weight[output * inputs.padded()..][..inputs.padded()];
        for (input, weight) in inputs.places().zip(weights) {
            row[input] = weight * factor;
        }
    }
    dense
}

/// The map that reads a norm's values before their gain and bias, and gives what the map gives after them.
pub(super) fn absorb(norm: &Norm, map: &Linear) -> Linear {
    let (gain, shifts, weights) = (norm.gain.values(), norm.bias_values(), map.weight.values());
    let rows = || weights.chunks_exact(gain.len());
    let shift = |row: &[f32]| -> f64 {
        row.iter().zip(&shifts).map(|(&weight, &bias)| f64::from(weight) * f64::from(bias)).sum()
    };
    let weight = rows().flat_map(|row| row.iter().zip(&*gain).map(|(weight, gain)| weight * gain)).collect();
    let bias = map.bias_values();
    let bias = rows().zip(&bias).map(|(row, bias)| (f64::from(*bias) + shift(row)) as f32).collect();
    let mut absorbed = Linear::new("absorbed", map.outputs(), map.inputs());
    absorbed.weight.values = weight;
    absorbed.bias.as_mut().expect("it was made with one").values = bias;
    absorbed
}

/// One part's values, laid out.
pub(super) fn spread(values: &[f32], width: Width, factor: f32) -> Vec<f32> {
    let mut spread = vec![0.0; width.padded()];
    width.places().zip(values).for_each(|(place, value)| spread[place] = value * factor);
    spread
}

/// Maps of the same input as one.
pub(super) fn join<const N: usize>(maps: [Dense; N]) -> Dense {
    let mut maps = maps.into_iter();
    let mut joined = maps.next().expect("there is one");
    for map in maps {
        assert_eq!(map.inputs, joined.inputs, "joined maps read the same");
        joined.outputs += map.outputs;
        joined.weight.extend(map.weight);
        joined.bias.extend(map.bias);
    }
    joined
}

/// What queries are multiplied with for a softmax in powers of two. With relative positions a score has three terms.
pub(super) fn softmax_scale(attention: &Attention) -> f32 {
    let terms = if attention.relative.is_some() { 3 } else { 1 };
    LOG2_E / ((terms * attention.head_dim) as f32).sqrt()
}

/// To queries, keys and values. Queries are scaled for a softmax in powers of two, where a norm does not follow.
pub(super) fn projections(attention: &Attention) -> [Dense; 3] {
    let Attention { heads, kv_heads, head_dim, query, key, value, .. } = attention;
    let hidden = Width::plain(query.inputs());
    let plain = |count: usize| Width::heads(count, *head_dim);
    let turned = |count: usize| match attention.rope {
        Some(_) => Width::rotated(count, *head_dim),
        None => plain(count),
    };
    let scale = if attention.query_key_norms.is_some() { 1.0 } else { softmax_scale(attention) };
    [
        pad(query, turned(*heads), hidden, scale),
        pad(key, turned(*kv_heads), hidden, 1.0),
        pad(value, plain(*kv_heads), hidden, 1.0),
    ]
}

/// What a state is multiplied with for its logit, and what is added.
pub(super) fn score_weights(score: &Score) -> (Vec<f32>, f32) {
    match score {
        Score::Linear(linear) => (linear.weight.values().into_owned(), linear.bias_values()[0]),
        Score::Tokens { yes, no } => {
            let mut weights = yes.values().into_owned();
            if let Some(no) = no {
                weights.iter_mut().zip(&*no.values()).for_each(|(yes, no)| *yes -= no);
            }
            (weights, 0.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_padded_each_by_itself() {
        let mut map = Linear::new("map", 4, 3);
        map.weight.values = (0..12).map(|value| value as f32).collect();
        map.bias.as_mut().unwrap().values = vec![1.0, 2.0, 3.0, 4.0];
        let dense = pad(&map, Width::heads(2, 2), Width::plain(3), 2.0);
        assert_eq!((dense.outputs, dense.inputs), (64, 32));
        assert_eq!(dense.bias[31..34], [0.0, 6.0, 8.0]);
        assert_eq!(dense.weight[33 * 32..33 * 32 + 4], [18.0, 20.0, 22.0, 0.0]);
    }

    #[test]
    fn halves_of_rotated_heads_are_padded_each_by_itself() {
        let places: Vec<usize> = Width::rotated(2, 6).places().collect();
        assert_eq!(places, [0, 1, 2, 16, 17, 18, 32, 33, 34, 48, 49, 50]);
        let whole: Vec<usize> = Width::rotated(1, 32).places().collect();
        assert_eq!(whole, (0..32).collect::<Vec<_>>());
        assert_eq!(
            spread(&[1.0, 2.0], Width::rotated(1, 2), 3.0)[..17],
            [[3.0].as_slice(), &[0.0; 15], &[6.0]].concat()
        );
    }

    #[test]
    fn a_map_takes_over_a_norm_s_gain_and_bias() {
        let mut norm = Norm::layer("norm", 3, 1e-5);
        norm.gain.values = vec![2.0, 0.0, -1.0];
        norm.bias.as_mut().unwrap().values = vec![0.5, 4.0, 1.0];
        let mut map = Linear::new("map", 2, 3);
        map.weight.values = vec![1.0, 2.0, 3.0, -1.0, 0.5, 0.0];
        map.bias.as_mut().unwrap().values = vec![10.0, 20.0];
        let absorbed = absorb(&norm, &map);
        assert_eq!(absorbed.weight.values, [2.0, 0.0, -3.0, -2.0, 0.0, 0.0]);
        assert_eq!(absorbed.bias_values(), [10.0 + 0.5 + 8.0 + 3.0, 20.0 - 0.5 + 2.0]);
    }
}
