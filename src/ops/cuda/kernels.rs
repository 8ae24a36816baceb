//! The kernels of `kernels/`: their symbols, parameters and constants.
//!
//! Symbol and parameters of a kernel are one row of the table below. A test compares each row with the kernel's source.
//! Constants are read from that source at compile time.

use super::{Argument, Half};
use std::marker::PhantomData;

const BASE: &str = include_str!("../../../kernels/base.cuh");
const LAYER_NORM_FILE: &str = include_str!("../../../kernels/layer_norm.cu");
const ROWS_FILE: &str = include_str!("../../../kernels/rows.cu");
const ATTENTION: &str = include_str!("../../../kernels/attention.cu");
const FIRST_TOKEN_FILE: &str = include_str!("../../../kernels/first_token.cu");
const HEAD_FILE: &str = include_str!("../../../kernels/head.cu");

/// The source of all kernels, in the order of `kernels/kernels.cu`.
#[cfg(any(test, all(feature = "cuda", not(podium_fatbin))))]
pub(super) const SOURCES: [&str; 10] = [
    BASE,
    LAYER_NORM_FILE,
    include_str!("../../../kernels/embed.cu"),
    ROWS_FILE,
    include_str!("../../../kernels/gelu.cu"),
    include_str!("../../../kernels/gate.cu"),
    include_str!("../../../kernels/rotate.cu"),
    ATTENTION,
    FIRST_TOKEN_FILE,
    HEAD_FILE,
];

/// Threads of a warp.
pub(super) const WARP: u32 = constant(BASE, "WARP");
/// Queries of a tile of attention.
pub(super) const TILE: u32 = constant(ATTENTION, "TILE");
/// Threads of a block of attention.
pub(super) const ATTENTION_THREADS: u32 = constant(ATTENTION, "ATTENTION_THREADS");
/// Threads of a block of `first_token`.
pub(super) const FIRST_TOKEN_THREADS: u32 = constant(FIRST_TOKEN_FILE, "FIRST_TOKEN_THREADS");
/// Heads of a block of `first_token`.
pub(super) const GROUP: u32 = constant(FIRST_TOKEN_FILE, "GROUP");
/// Padding of an absorbed query in shared memory, in values.
pub(super) const ASKED_PAD: u32 = constant(FIRST_TOKEN_FILE, "ASKED_PAD");
/// Threads of a block of `pool`.
pub(super) const POOL_THREADS: u32 = constant(HEAD_FILE, "POOL_THREADS");
/// Sequences of a block of `pool`.
pub(super) const POOLED: u32 = constant(HEAD_FILE, "POOLED");
/// Threads of a block of a kernel whose teams are warps or blocks (`layer_norm.cu`).
pub(super) const NORM_THREADS: u32 = constant(LAYER_NORM_FILE, "NORM_THREADS");
/// The widest row whose team is a warp, in values.
pub(super) const WARP_ROW_MAX: u32 = constant(LAYER_NORM_FILE, "WARP_ROW_MAX");
/// The widest head whose attention has its shared memory without asking for it.
pub(super) const STATIC_HEAD_MAX: usize = constant(ATTENTION, "STATIC_HEAD_MAX") as usize;
/// Threads of a block of `mean_rows`.
pub(super) const MEAN_THREADS: u32 = constant(ROWS_FILE, "MEAN_THREADS");
/// Columns of a block of `mean_rows`.
pub(super) const MEAN_COLUMNS: u32 = constant(ROWS_FILE, "MEAN_COLUMNS");
/// The widest row of states that the kernels read, in values.
pub const ROW_MAX: usize = constant(LAYER_NORM_FILE, "ROW_MAX") as usize;
/// The widest head that attention has kernels for, in values.
pub const HEAD_MAX: usize = 128;
/// The widest row that `first_token` and `pool` read, in values.
pub const STRIDE_MAX: usize = constant(FIRST_TOKEN_FILE, "STRIDE_MAX") as usize;

/// Defines, for each set of parameters, a struct with its kernels; and the list of all kernels.
macro_rules! kernels {
    ($(
        $parameters:ident { $($field:ident: $type:ty),+ $(,)? }
        of { $($(#[$doc:meta])* $constant:ident: $kernel:ident = $stem:literal),+ $(,)? }
    )+) => {
        /// A kernel of `kernels/`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kernel {
            $($($(#[$doc])* $kernel,)+)+
        }

        impl Kernel {
            /// Every kernel.
            pub const ALL: &'static [Self] = &[$($(Self::$kernel,)+)+];

            /// The symbol without its suffix.
            fn stem(self) -> &'static str {
                match self {
                    $($(Self::$kernel => $stem,)+)+
                }
            }

            /// Its parameter list, without `const`.
            #[cfg(test)]
            fn declared(self) -> String {
                match self {
                    $($(Self::$kernel => $parameters::declared(),)+)+
                }
            }
        }

        $($(
            pub(super) const $constant: Typed<$parameters> =
                Typed { kernel: Kernel::$kernel, parameters: PhantomData };
        )+)+

        $(
            pub(super) struct $parameters {
                $(pub $field: $type,)+
            }

            impl Parameters for $parameters {
                fn arguments(&self) -> Vec<Argument> {
                    let mut arguments = Vec::new();
                    $(self.$field.push(&mut arguments);)+
                    arguments
                }
            }

            #[cfg(test)]
            impl $parameters {
                fn declared() -> String {
                    [$(<$type as Parameter>::declared(stringify!($field)),)+].join(", ")
                }
            }
        )+
    };
}

kernels! {
    Embed {
        batch: Batch, words: Halves, positions: Halves, types: Halves, position_offset: u32, type_count: u32,
        norm: NormParameters, states: Halves, quantised: E4m3s,
    } of {
        /// `embed.cu`.
        EMBED: Embed = "embed",
    }
    ReadRows { batch: Batch, rows: Halves, stride: u32, read: Halves } of {
        /// `rows.cu`.
        FIRST_ROWS: FirstRows = "first_rows",
        /// `rows.cu`.
        LAST_ROWS: LastRows = "last_rows",
        /// `rows.cu`.
        MEAN_ROWS: MeanRows = "mean_rows",
    }
    AddLayerNorm {
        count: Words, states: Halves, update: Halves, update_bias: Floats, norm: NormParameters, quantised: E4m3s,
    } of {
        /// `layer_norm.cu`.
        ADD_LAYER_NORM: AddLayerNorm = "add_layer_norm",
    }
    AddAndNorm {
        count: Words, states: Halves, update: Halves, update_bias: Floats, norm: NormParameters, normed: Halves,
    } of {
        /// `layer_norm.cu`.
        ADD_AND_NORM: AddAndNorm = "add_and_norm",
    }
    Gelu { count: Words, x: Halves, bias: Floats, width: u32, is_tanh: u32, quantised: E4m3s } of {
        /// `gelu.cu`.
        GELU: Gelu = "gelu",
    }
    Gate { count: Words, both: Halves, bias: Floats, width: u32, activation: u32, inner: Halves } of {
        /// `gate.cu`.
        GATE: Gate = "gate",
    }
    Rotate {
        batch: Batch, qkv: Halves, cosines: Floats, sines: Floats, query_gain: Floats, key_gain: Floats, epsilon: f32,
        head_dim: u32, heads: u32, kv_heads: u32,
    } of {
        /// `rotate.cu`, heads of 32.
        ROTATE_32: Rotate32 = "rotate_32",
        /// `rotate.cu`, heads of 64.
        ROTATE_64: Rotate64 = "rotate_64",
        /// `rotate.cu`, heads of 96.
        ROTATE_96: Rotate96 = "rotate_96",
        /// `rotate.cu`, heads of 128.
        ROTATE_128: Rotate128 = "rotate_128",
    }
    Attention { batch: Batch, qkv: Halves, context: Halves, heads: u32, kv_heads: u32, quantised: E4m3s } of {
        /// `attention.cu`, heads of 32.
        ATTENTION_32: Attention32 = "attention_32",
        /// `attention.cu`, heads of 64.
        ATTENTION_64: Attention64 = "attention_64",
        /// `attention.cu`, heads of 96.
        ATTENTION_96: Attention96 = "attention_96",
        /// `attention.cu`, heads of 128.
        ATTENTION_128: Attention128 = "attention_128",
    }
    BandedAttention {
        batch: Batch, qkv: Halves, context: Halves, heads: u32, kv_heads: u32, before: u32, after: u32,
    } of {
        /// `attention.cu`, heads of 32 that see a band of keys.
        BANDED_32: Banded32 = "attention_banded_32",
        /// `attention.cu`, heads of 64 that see a band of keys.
        BANDED_64: Banded64 = "attention_banded_64",
        /// `attention.cu`, heads of 96 that see a band of keys.
        BANDED_96: Banded96 = "attention_banded_96",
        /// `attention.cu`, heads of 128 that see a band of keys.
        BANDED_128: Banded128 = "attention_banded_128",
    }
    FirstToken { batch: Batch, absorbed: Floats, states: Halves, mixed: Halves, heads: u32, stride: u32 } of {
        /// `first_token.cu`.
        FIRST_TOKEN: FirstToken = "first_token",
    }
    Pool {
        batch: Batch, rows: Halves, pooler: Floats, pooler_bias: Floats, classifier: Floats, stride: u32,
        parts: Floats,
    } of {
        /// `head.cu`.
        POOL: Pool = "pool",
    }
    Head { batch: Batch, parts: Floats, count: u32, bias: f32, logits: Floats } of {
        /// `head.cu`.
        HEAD: Head = "head",
    }
    Dense {
        batch: Batch, rows: Halves, weights: Floats, dense_bias: Floats, activation: u32, stride: u32,
        mapped_rows: Floats,
    } of {
        /// `head.cu`.
        DENSE: Dense = "dense",
    }
    Score {
        batch: Batch, rows: Halves, mapped_rows: Floats, norm: NormParameters, weights: Floats, constant: f32,
        logits: Floats,
    } of {
        /// `head.cu`.
        SCORE: Score = "score",
    }
}

impl Kernel {
    /// Its symbol for a half type.
    pub fn symbol(self, half: Half) -> String {
        format!("{}_{}", self.stem(), half.name())
    }
}

/// A kernel with the type of its parameters.
pub(super) struct Typed<P> {
    pub kernel: Kernel,
    parameters: PhantomData<P>,
}

/// The parameters of a kernel.
pub(super) trait Parameters {
    /// The arguments in the order in which the kernel declares its parameters.
    fn arguments(&self) -> Vec<Argument>;
}

/// A field of a row: one parameter, or several that belong together.
trait Parameter {
    fn push(&self, arguments: &mut Vec<Argument>);

    /// As kernels declare it, without `const`.
    #[cfg(test)]
    fn declared(name: &str) -> String;
}

macro_rules! parameter {
    ($type:ty, $declared:literal, |$value:ident| [$($argument:expr),+]) => {
        impl Parameter for $type {
            fn push(&self, arguments: &mut Vec<Argument>) {
                let $value = self;
                arguments.extend([$($argument),+]);
            }

            #[cfg(test)]
            fn declared(name: &str) -> String {
                $declared.replace("NAME", name)
            }
        }
    };
}

/// The address of f16 or bf16 values; 0 for none.
#[derive(Clone, Copy, Default)]
pub(super) struct Halves(pub u64);
parameter!(Halves, "T* NAME", |address| [Argument::Address(address.0)]);

/// The address of f32 values; 0 for none.
#[derive(Clone, Copy, Default)]
pub(super) struct Floats(pub u64);
parameter!(Floats, "float* NAME", |address| [Argument::Address(address.0)]);

/// The address of 32-bit words.
#[derive(Clone, Copy)]
pub(super) struct Words(pub u64);
parameter!(Words, "u32* NAME", |address| [Argument::Address(address.0)]);

parameter!(u32, "u32 NAME", |word| [Argument::Word(*word)]);
parameter!(f32, "float NAME", |float| [Argument::Float(*float)]);

/// `Batch` of `base.cuh`: the address of a batch's words, and its bucket.
pub(super) struct Batch {
    pub words: u64,
    pub tokens_max: u32,
    pub sequences_max: u32,
}
parameter!(Batch, "u32* NAME, u32 tokens_max, u32 sequences_max", |batch| [
    Argument::Address(batch.words),
    Argument::Word(batch.tokens_max),
    Argument::Word(batch.sequences_max)
]);

/// `Norm` of `layer_norm.cu`.
pub(super) struct NormParameters {
    pub gain: Floats,
    pub bias: Floats,
    pub epsilon: f32,
    pub is_rms: u32,
    pub hidden: u32,
    pub stride: u32,
}
parameter!(
    NormParameters,
    "float* gain, float* bias, float epsilon, u32 is_rms, u32 hidden, u32 stride",
    |norm| [
        Argument::Address(norm.gain.0),
        Argument::Address(norm.bias.0),
        Argument::Float(norm.epsilon),
        Argument::Word(norm.is_rms),
        Argument::Word(norm.hidden),
        Argument::Word(norm.stride)
    ]
);

/// `Quantised` of `base.cuh`: the addresses of the E4M3 output and of its factor; null for no output.
#[derive(Default)]
pub(super) struct E4m3s {
    pub to: u64,
    pub factor: u64,
}
parameter!(E4m3s, "e4m3* NAME, float* factor", |quantised| [
    Argument::Address(quantised.to),
    Argument::Address(quantised.factor)
]);

/// The value of the constant `name` in a kernel's source: the number in ` NAME = NUMBER;` or ` NAME = NUMBER,`.
const fn constant(text: &str, name: &str) -> u32 {
    let (text, name) = (text.as_bytes(), name.as_bytes());
    let mut start = 1;
    while start + name.len() + 4 < text.len() {
        if text[start] == name[0] && text[start - 1] == b' ' && has(text, start, name) {
            let mut at = start + name.len();
            if has(text, at, b" = ") {
                at += 3;
                let mut value = 0;
                while text[at].is_ascii_digit() {
                    value = 10 * value + (text[at] - b'0') as u32;
                    at += 1;
                }
                assert!(value > 0 && (text[at] == b';' || text[at] == b','), "the constant is not a number");
                return value;
            }
        }
        start += 1;
    }
    panic!("the kernels have no such constant")
}

const fn has(text: &[u8], start: usize, part: &[u8]) -> bool {
    let mut at = 0;
    while at < part.len() {
        if start + at >= text.len() || text[start + at] != part[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Each kernel's stem with its parameters, as `KERNEL(stem_##T, (parameters))` declares them.
    fn declarations() -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for declaration in SOURCES[1..].concat().split(" KERNEL(").skip(1) {
            let (stem, rest) = declaration.split_once("##T, (").expect("a kernel is declared for each half");
            let (parameters, _) = rest.split_once(')').expect("parentheses are closed");
            let words: Vec<&str> =
                parameters.split_whitespace().filter(|word| *word != "\\" && *word != "const").collect();
            for size in ["32", "64", "96", "128"] {
                let stem = stem.replace("##D##", size).trim_end_matches('_').to_owned();
                found.insert(stem, words.join(" "));
            }
        }
        found
    }

    #[test]
    fn every_row_is_as_its_kernel_declares_it() {
        let rows: BTreeMap<String, String> =
            Kernel::ALL.iter().map(|kernel| (kernel.stem().to_owned(), kernel.declared())).collect();
        assert_eq!(rows, declarations());
    }

    #[test]
    fn arguments_come_in_the_order_of_the_parameters() {
        let gelu = Gelu {
            count: Words(1),
            x: Halves(2),
            bias: Floats(3),
            width: 4,
            is_tanh: 5,
            quantised: E4m3s { to: 6, factor: 7 },
        };
        let arguments = format!("{:?}", gelu.arguments());
        assert_eq!(
            arguments,
            "[Address(1), Address(2), Address(3), Word(4), Word(5), Address(6), Address(7)]"
        );
    }

    #[test]
    fn the_sources_are_those_that_kernels_cu_includes() {
        let all = include_str!("../../../kernels/kernels.cu");
        let files = all.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'));
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/");
        let texts = files.map(|file| std::fs::read_to_string(format!("{folder}{file}")).unwrap());
        assert_eq!(texts.collect::<Vec<_>>(), SOURCES);
    }

    #[test]
    fn a_constant_is_the_number_behind_its_name() {
        assert_eq!(constant("constexpr u32 A_LONG = 3, A = 12, B = 7;\n", "A"), 12);
        assert_eq!(constant("constexpr u32 A_LONG = 3, A = 12, B = 7;\n", "B"), 7);
    }

    #[test]
    #[should_panic(expected = "no such constant")]
    fn a_constant_that_is_missing_is_an_error() {
        constant("constexpr u32 AB = 1; // A\n", "A");
    }
}
