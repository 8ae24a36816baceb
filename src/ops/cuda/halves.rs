//! The 16-bit float types.

use half::{bf16, f16};

/// The type of weights and states; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// IEEE binary16: 11 bits of precision, up to 65504.
    F16,
    /// bfloat16: 8 bits of precision, and f32's range.
    Bf16,
}

impl Half {
    /// Its name in the kernels' symbols.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Its full name, as in model files.
    pub fn dtype(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Rounds values and returns their bytes, little-endian.
    pub fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        }
    }

    /// Decodes little-endian bytes.
    pub fn floats(self, bytes: &[u8]) -> impl Iterator<Item = f32> {
        bytes.as_chunks().0.iter().map(move |&bytes: &[u8; 2]| match self {
            Self::F16 => f16::from_le_bytes(bytes).to_f32(),
            Self::Bf16 => bf16::from_le_bytes(bytes).to_f32(),
        })
    }

    /// The largest finite value.
    pub fn max(self) -> f32 {
        match self {
            Self::F16 => f16::MAX.to_f32(),
            Self::Bf16 => bf16::MAX.to_f32(),
        }
    }
}
