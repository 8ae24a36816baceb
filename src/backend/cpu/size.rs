//! How much memory a model takes when it is packed.

use super::Processor;
use super::relative::distances;
use crate::backend::Precision;
use crate::model::{Block, Plan, Tensor};
use crate::ops::PAD;

/// Maps of up to this size are laid end to end across layers, because the third-level cache may hold them, and a layer's last
/// map then fetches the next layer's first. Maps of larger models come from memory, and are laid end to end in each layer:
/// while they are laid together they are in memory twice.
pub(super) const TOGETHER_BYTES_MAX: usize = 64 << 20;

/// Bytes of the maps of all layers, in a data type of which a word of 32 bits holds `group` values.
pub(super) fn map_bytes(plan: &Plan, group: usize) -> usize {
    map_values(plan) * size_of::<u32>() / group
}

/// Bytes that packing takes at its peak: the maps, all else in f32, and the largest tensor as it is read.
pub(super) fn peak_bytes(plan: &Plan, precision: Precision, processor: Processor) -> u64 {
    let group = match precision {
        // `Simd::BYTES_TO_WORD`.
        Precision::Int8 if processor == Processor::Avx2 => 2,
        Precision::Int8 => 4,
        Precision::Bf16 => 2,
        Precision::Auto | Precision::Float | Precision::F32 | Precision::F16 | Precision::Fp8 => 1,
    };
    let largest = plan.tensors().into_iter().map(Tensor::count).max().unwrap_or(0);
    let others = plan.parameters() - map_values(plan);
    let in_bf16 = match precision {
        Precision::Int8 => processor.has_bf16() && processor != Processor::Portable,
        precision => precision == Precision::Bf16,
    };
    let by_distance = distance_values(plan) * size_of::<f32>() / if in_bf16 { 2 } else { 1 };
    (map_bytes(plan, group) + by_distance + (others + largest) * size_of::<f32>()) as u64
}

/// Values of the embeddings of distances, as keys and as queries of each layer.
fn distance_values(plan: &Plan) -> usize {
    let Some(relative) = &plan.relative else { return 0 };
    let of_layer = |Block { attention, .. }: &Block| match &attention.relative {
        Some(_) => 2 * attention.heads * attention.head_dim.next_multiple_of(PAD),
        None => 0,
    };
    distances(relative, plan.tokens_max as usize) * plan.blocks.iter().map(of_layer).sum::<usize>()
}

/// Weights of the maps of all layers.
pub(super) fn map_values(plan: &Plan) -> usize {
    plan.blocks.iter().flat_map(Block::maps).map(|map| map.weight.count()).sum()
}
