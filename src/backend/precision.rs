//! What models are computed in, on whatever device.

use crate::ops::cuda::Half;
use serde::Deserialize;

/// What a model's linear maps are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f16 on a GPU; on a CPU bf16 where the processor has it, else f32.
    #[default]
    Auto,
    /// As the reference does.
    F32,
    /// Half the width, summed in f32; on a GPU.
    F16,
    /// Half the width, summed in f32.
    Bf16,
    /// Bytes, with a scale for each token and each output; attention in the processor's best float.
    Int8,
}

impl Precision {
    /// Every choice.
    pub const ALL: [Self; 5] = [Self::Auto, Self::F32, Self::F16, Self::Bf16, Self::Int8];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// What it is on a GPU, if that has it.
    pub fn half(self) -> Option<Half> {
        match self {
            Self::Auto | Self::F16 => Some(Half::F16),
            Self::Bf16 => Some(Half::Bf16),
            Self::F32 | Self::Int8 => None,
        }
    }
}
