//! The instruction sets that the CPU engine runs on.

#[cfg(target_arch = "x86_64")]
use crate::ops::{Amx, Avx2, Avx512, Avx512Vnni, AvxVnni};
#[cfg(target_arch = "aarch64")]
use crate::ops::{Neon, NeonBf16, NeonDot};

/// An instruction set that the operations are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// AVX-512 with VNNI, BF16, and AMX tiles that this process may use.
    Amx,
    /// AVX-512 with VNNI and BF16.
    Avx512,
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// AVX2 with FMA and AVX-VNNI.
    AvxVnni,
    /// AVX2 with FMA.
    Avx2,
    /// NEON with byte dot products and BF16.
    NeonBf16,
    /// NEON with byte dot products.
    NeonDot,
    /// NEON.
    Neon,
    /// Any.
    Portable,
    /// Any, with tiles as AMX has them in plain Rust: slow, for tests.
    Emulated,
}

impl Processor {
    /// Those that this machine is, best first.
    pub fn here() -> Vec<Self> {
        let mut here = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            here.extend(Amx::detect().map(|_| Self::Amx));
            here.extend(Avx512::detect().map(|_| Self::Avx512));
            here.extend(Avx512Vnni::detect().map(|_| Self::Avx512Vnni));
            here.extend(AvxVnni::detect().map(|_| Self::AvxVnni));
            here.extend(Avx2::detect().map(|_| Self::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            here.extend(NeonBf16::detect().map(|_| Self::NeonBf16));
            here.extend(NeonDot::detect().map(|_| Self::NeonDot));
            here.extend(Neon::detect().map(|_| Self::Neon));
        }
        here.extend([Self::Portable, Self::Emulated]);
        here
    }

    /// What of it matters, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "AMX",
            Self::Avx512 => "AVX-512 with bf16",
            Self::Avx512Vnni => "AVX-512",
            Self::AvxVnni => "AVX2 with VNNI",
            Self::Avx2 => "AVX2",
            Self::NeonBf16 => "NEON with bf16",
            Self::NeonDot => "NEON with dot products",
            Self::Neon => "NEON",
            Self::Portable => "plain code",
            Self::Emulated => "emulated tiles",
        }
    }

    /// Whether there is bf16.
    pub fn has_bf16(self) -> bool {
        match self {
            Self::Amx | Self::Avx512 | Self::NeonBf16 | Self::Portable | Self::Emulated => true,
            Self::Avx512Vnni | Self::AvxVnni | Self::Avx2 | Self::NeonDot | Self::Neon => false,
        }
    }
}
