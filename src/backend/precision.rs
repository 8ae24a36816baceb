//! What models are computed in, on whatever device.

use crate::ops::cuda::Half;
use serde::Deserialize;

/// What a model's linear maps are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f16 on a GPU; on a CPU bf16 where that is measured to be faster than f32, else f32.
    #[default]
    Auto,
    /// As the reference does.
    F32,
    /// Half the width, summed in f32; on a GPU.
    F16,
    /// Half the width, summed in f32.
    Bf16,
    /// 8-bit floats in the maps of a GPU, where orders stay those of f16.
    Fp8,
    /// Bytes, with a scale for each token and each output; attention in the processor's best float.
    Int8,
}

impl Precision {
    /// Every choice.
    pub const ALL: [Self; 6] = [Self::Auto, Self::F32, Self::F16, Self::Bf16, Self::Fp8, Self::Int8];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
        }
    }

    /// Whether no CPU has it.
    pub fn is_for_gpus(self) -> bool {
        matches!(self, Self::F16 | Self::Fp8)
    }

    /// What states are in on a GPU, if that has the precision.
    pub fn half(self) -> Option<Half> {
        match self {
            Self::Auto | Self::F16 | Self::Fp8 => Some(Half::F16),
            Self::Bf16 => Some(Half::Bf16),
            Self::F32 | Self::Int8 => None,
        }
    }
}
