//! Floor 1: the operations of an encoder on the CPU, each beside its plain reference.
//!
//! | file | what it does |
//! |---|---|
//! | `simd` | what an operation needs of a processor: AVX-512 with or without AMX tiles, AVX2, NEON, or plain Rust |
//! | `operand` | rows of words, as linear maps read them |
//! | `dtype` | f32, bf16 and bytes: how numbers lie in words |
//! | `linear`, `on_tiles` | matrix products: on vectors, and on AMX tiles |
//! | `epilogue`, `activate` | what follows them, fused in: residual, dtype, GELU |
//! | `gate` | act(a) * b as the next map's input |
//! | `rotate` | norms and rotary positions of queries and keys |
//! | `projected` | the queries, keys and values that attention reads |
//! | `attention`, `attention_on_tiles` | within each sequence |
//! | `distances` | what relative positions add to its scores |
//! | `first_token` | the same, for the last layer's first tokens alone |
//! | `layer_norm`, `embed`, `head` | what is left of an encoder |
//! | `buffer`, `pages` | memory for vectors, in huge pages where it is large |
//! | `math` | 2^x, tanh, GELU |
//! | `cuda` | the same on a GPU: the launches of `kernels/` |
//!
//! The only module with `unsafe`: it reads and writes vectors through pointers. Every public function
//! checks shapes first, so that safe code cannot cause an access out of bounds. Widths are padded to
//! multiples of [`PAD`] with zeros, which stay zeros.

#![expect(
    unsafe_code,
    reason = "vectors are read and written through pointers; every function checks shapes"
)]

mod activate;
mod attention;
mod attention_on_tiles;
mod buffer;
pub mod cuda;
mod distances;
mod dtype;
mod embed;
mod epilogue;
mod first_token;
mod gate;
mod head;
mod layer_norm;
mod linear;
mod math;
mod on_tiles;
mod operand;
mod pages;
mod projected;
mod rotate;
mod simd;
#[cfg(test)]
mod tests;

pub use attention::{Heads, Scratch, attention, attention_reference};
pub use buffer::Buffer;
pub use distances::{Distances, attention_by_distance_reference};
pub use dtype::{Bf16, Dtype, F32, Float, Input, Int8};
pub use embed::{Table, embed};
pub use epilogue::{AddTo, Epilogue, Keep, ScaleAndAddTo};
pub use first_token::{FirstScratch, FirstToken, first_token_attention};
pub use gate::gate;
pub use head::{Head, HeadScratch};
pub use layer_norm::{Norm, layer_norm, layer_norm_into, layer_norm_reference, norm_into};
pub use linear::{Dense, Linear, lay_together, linear, linear_reference};
pub use math::{ERF, ERF_P, EXP2, gelu_reference};
pub use on_tiles::multiply_on_tiles;
pub use operand::{Operand, Rows};
pub use projected::{Before, Projected};
pub use rotate::{Angles, Rotation, rotate};
#[cfg(target_arch = "x86_64")]
pub use simd::{Amx, Avx2, Avx512, Avx512Vnni, AvxVnni, TilesMissing, tiles_permission};
pub use simd::{Emulated, Kernel, Portable, Simd, SimdBf16, Tiles};
#[cfg(target_arch = "aarch64")]
pub use simd::{Neon, NeonBf16, NeonDot};

/// Widths are multiples of this: two vectors of the widest processor.
pub const PAD: usize = 32;

/// Which keys of its sequence a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All.
    All,
    /// Its own and those before it.
    Causal,
    /// Those that stand at most so many places away, on either side.
    Window(usize),
}

impl Reach {
    /// The keys that a query of a sequence sees.
    pub fn keys(self, query: usize, tokens: usize) -> std::ops::Range<usize> {
        match self {
            Self::All => 0..tokens,
            Self::Causal => 0..query + 1,
            Self::Window(places) => query.saturating_sub(places)..tokens.min(query + places + 1),
        }
    }
}

/// A function of single values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// A Gaussian error linear unit.
    Gelu(Gelu),
    /// x / (1 + exp(-x)).
    Silu,
    /// tanh x.
    Tanh,
}

/// Which Gaussian error linear unit (Hendrycks and Gimpel 2016).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// x/2 (1 + erf(x / sqrt 2)).
    Erf,
    /// Its tanh approximation.
    Tanh,
}
