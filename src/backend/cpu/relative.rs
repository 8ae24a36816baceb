//! The embeddings of distances that layers with relative positions read. They do not depend on the input: each layer's maps are
//! applied to them once, when a model is packed.

use super::layer::norm;
use crate::backend::layout::{Width, pad, softmax_scale, spread};
use crate::model::{Attention, Plan, Relative, RelativeMaps};
use crate::ops::{AddTo, Distances, F32, Float, Input, Linear, Operand, PAD, Simd, layer_norm, linear};

/// A model's embeddings of distances, normed.
pub(super) struct Embeddings {
    rows: Operand,
    /// For each distance, from that farthest back on, its row.
    places: Vec<usize>,
}

impl Embeddings {
    /// Those of a plan, if its layers read any.
    pub fn of<S: Simd>(simd: S, plan: &Plan) -> Option<Self> {
        let relative = plan.relative.as_ref()?;
        let hidden = Width::plain(plan.hidden());
        let table = relative.table.values();
        let mut states: Vec<f32> =
            table.chunks_exact(plan.hidden()).flat_map(|row| spread(row, hidden, 1.0)).collect();
        if let Some(gain) = &relative.norm {
            layer_norm(simd, &norm(gain), &mut states);
        }
        let mut rows = Operand::default();
        rows.fill::<S, F32>(simd, &states, hidden.padded());
        let half = distances(relative, plan.tokens_max as usize) / 2;
        let back = (1..=half).rev().map(|distance| relative.row(distance, 0));
        let places = back.chain((0..half).map(|distance| relative.row(0, distance))).collect();
        Some(Self { rows, places })
    }

    /// What they are to a layer's attention.
    pub fn of_layer<S: Simd, A: Float<S>>(&self, simd: S, attention: &Attention) -> Option<Distances> {
        let RelativeMaps { own } = attention.relative.as_ref()?;
        let Attention { heads, head_dim, query, key, .. } = attention;
        let [query, key] = own.as_ref().map_or([query, key], |[query, key]| [query, key]);
        let (hidden, width) = (Width::plain(query.inputs()), Width::heads(*heads, *head_dim));
        // Queries of the input are scaled already, and these are multiplied with its keys.
        let [as_keys, as_queries] = [(key, 1.0), (query, softmax_scale(attention))].map(|(map, scale)| {
            let map = Linear::<S, F32>::pack(&pad(map, width, hidden, scale), Input::Signed);
            let mut rows = vec![0.0; self.rows.all().count() * width.padded()];
            linear(simd, self.rows.all(), &map, AddTo::new(&mut rows, width.padded()));
            rows
        });
        Some(Distances::pack::<S, A>([&as_keys, &as_queries], &self.places, width.as_heads()))
    }
}

/// Distances that are kept: those of pairs, or up to where all farther ones have the same row, in whole blocks to each side.
pub(super) fn distances(relative: &Relative, tokens_max: usize) -> usize {
    let rows = |distance: usize| [relative.row(distance, 0), relative.row(0, distance)];
    let last = tokens_max.saturating_sub(1);
    let far = (0..tokens_max).rev().take_while(|&distance| rows(distance) == rows(last)).last().unwrap_or(0);
    2 * tokens_max.max(1).min(far + PAD).next_multiple_of(PAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Tensor;

    #[test]
    fn far_distances_are_kept_once() {
        let relative = |buckets: usize, distance_max: usize| Relative {
            table: Tensor::new("table".to_owned(), &[2 * buckets, 8]),
            norm: None,
            buckets,
            distance_max,
        };
        for (buckets, distance_max, tokens_max, expected) in [
            (256, 512, 512, 1024),
            (256, 512, 500, 1024),
            (256, 512, 100, 256),
            (256, 512, 1, 64),
            (256, 512, 544, 1088),
            (256, 512, 8192, 1088),
            (16, 64, 8192, 192),
        ] {
            let relative = relative(buckets, distance_max);
            let found = distances(&relative, tokens_max);
            assert_eq!(found, expected, "{buckets} {distance_max} {tokens_max}");
            for distance in (found / 2 - PAD..tokens_max).filter(|_| found / 2 < tokens_max) {
                assert_eq!(relative.row(distance, 0), 2 * buckets - 1);
                assert_eq!(relative.row(0, distance), 0);
            }
        }
    }
}
