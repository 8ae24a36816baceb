//! The precisions that models can be computed in.

use crate::ops::cuda::Half;
use serde::Deserialize;

/// The precision of a model's linear maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As `float`; but int8 on a CPU where it is measured to be faster and keeps the model's order.
    #[default]
    Auto,
    /// On a GPU f16, or bf16 if a score is not finite in f16; on a CPU bf16 if it is measured to be faster than f32, else
    /// f32.
    Float,
    /// f32, on a CPU.
    F32,
    /// f16 with f32 sums, on a GPU.
    F16,
    /// bf16 with f32 sums.
    Bf16,
    /// E4M3 with f32 sums, on a GPU. Falls back to f16 if it orders a sample differently.
    Fp8,
    /// int8 on a CPU, with a scale for each token and each output; attention in f32 or bf16.
    Int8,
}

impl Precision {
    /// Every choice.
    pub const ALL: [Self; 7] =
        [Self::Auto, Self::Float, Self::F32, Self::F16, Self::Bf16, Self::Fp8, Self::Int8];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Float => "float",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
        }
    }

    /// Whether only GPUs support it.
    pub fn is_for_gpus(self) -> bool {
        matches!(self, Self::F16 | Self::Fp8)
    }

    /// The type of states on a GPU, if GPUs support the precision.
    pub fn half(self) -> Option<Half> {
        match self {
            Self::Auto | Self::Float | Self::F16 | Self::Fp8 => Some(Half::F16),
            Self::Bf16 => Some(Half::Bf16),
            Self::F32 | Self::Int8 => None,
        }
    }
}
