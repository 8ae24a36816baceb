//! How much memory a model takes when it is packed.

use super::Processor;
use crate::backend::Precision;
use crate::model::{Block, Plan, Tensor};

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
    (map_bytes(plan, group) + (others + largest) * size_of::<f32>()) as u64
}

/// Weights of the maps of all layers.
pub(super) fn map_values(plan: &Plan) -> usize {
    plan.blocks.iter().flat_map(Block::maps).map(|map| map.weight.count()).sum()
}
