//! Each kernel with its arguments in order and its shapes checked, so that no safe call makes one go astray.

use super::words::TILE;
use super::{Argument, Array, Bucket, Device, DeviceError, Half, Kernel, Shape};
use crate::ops::{Gelu, Heads};
use Argument::{Address, Float, Word};

/// The widest row that the kernels hold.
pub const STRIDE_MAX: usize = 1_024;

/// Threads of a kernel that has a warp a row.
const THREADS: u32 = 256;
const WARP: u32 = 32;
/// As in `kernels/attention.cu`.
const ATTENTION_THREADS: u32 = 128;
/// Blocks of attention that fill a large GPU twice; more heads than that needs share a block, and its start.
const ATTENTION_BLOCKS: u32 = 1024;
/// As in `kernels/first_token.cu`: threads, heads of a block, and what a row has behind it in shared memory.
const FIRST_TOKEN_THREADS: u32 = 256;
const GROUP: u32 = 16;
const ASKED_PAD: u32 = 32;
/// As in `kernels/head.cu`: threads, and sequences of a block.
const POOL_THREADS: u32 = 256;
const POOLED: u32 = POOL_THREADS / WARP;

/// Which rows an operation has: all tokens, or a row a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// A row a token.
    Tokens,
    /// A row a sequence.
    Sequences,
}

/// Word, position and type tables in halves, `[rows, stride]` each.
pub struct Embeddings<D: Device> {
    /// `[vocabulary, stride]`.
    pub words: Array<D>,
    /// `[positions, stride]`.
    pub positions: Array<D>,
    /// `[types, stride]`.
    pub types: Array<D>,
    /// The row of a sequence's first token among the positions.
    pub position_offset: u32,
    /// Rows of each table: words, positions, types.
    pub rows: [usize; 3],
}

/// A layer norm, `[stride]` f32 each.
pub struct Norm<D: Device> {
    /// Factor.
    pub gain: Array<D>,
    /// Summand.
    pub bias: Array<D>,
    /// Added to the variance.
    pub epsilon: f32,
    /// Values of a row.
    pub hidden: usize,
    /// The same, with padding.
    pub stride: usize,
}

/// A classification head, in f32.
pub struct Head<D: Device> {
    /// `[stride, stride]`, inputs in rows.
    pub pooler: Array<D>,
    /// `[stride]`.
    pub pooler_bias: Array<D>,
    /// `[stride]`.
    pub classifier: Array<D>,
    /// To the logit.
    pub classifier_bias: f32,
    /// Values of a row, with padding.
    pub stride: usize,
}

/// Where an operation's results go as E4M3, `[rows, width]` bytes, and the factor that they are multiplied with first,
/// [1] f32.
pub struct Quantised<'a, D: Device> {
    /// To.
    pub to: &'a Array<D>,
    /// See [`super::Scales::factor`].
    pub factor: &'a Array<D>,
}

/// Launches kernels on batches of one bucket.
pub struct Launcher<'a, D: Device> {
    /// Where.
    pub device: &'a D,
    /// In what.
    pub half: Half,
    /// The largest batch.
    pub bucket: Bucket,
    /// A batch, by [`super::fill_words`] for the same bucket.
    pub batch: &'a Array<D>,
}

impl<D: Device> Launcher<'_, D> {
    /// Queues a trip whose words are a batch of the bucket: that to the device, what `launches` queues, and so many
    /// bytes of `result` back.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn travel(
        &self,
        trip: &mut D::Trip,
        (result, bytes): (&Array<D>, usize),
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let words = self.bucket.words();
        let (batch, result) = (self.batch.holding(4 * words), result.holding(bytes));
        // SAFETY: `holding` asserts both lengths.
        unsafe { self.device.travel(trip, (batch, words), (result, bytes), launches) }
    }

    /// states = norm(words + positions + types), `[tokens, stride]`, also quantised where that is asked for. That the
    /// batch's ids and places are in the tables is `fill_words`'s to check, by the vocabulary that it is given.
    ///
    /// # Errors
    /// [`DeviceError`], as for all that follow.
    pub fn embed(
        &self,
        tables: &Embeddings<D>,
        norm: &Norm<D>,
        states: &Array<D>,
        quantised: Option<&Quantised<'_, D>>,
    ) -> Result<(), DeviceError> {
        let table = |array: &Array<D>, rows: usize| Address(array.holding(2 * rows * norm.stride));
        let [words, positions, types] = tables.rows;
        let rows = self.rows(Rows::Tokens);
        let own = [
            table(&tables.words, words),
            table(&tables.positions, positions),
            table(&tables.types, types),
            Word(tables.position_offset),
            Word(types as u32),
        ];
        let states = [table(states, rows as usize)];
        let quantised = self.quantised(quantised, Rows::Tokens, norm.stride);
        let arguments = [&self.batch()[..], &own, &norm_arguments(norm), &states, &quantised].concat();
        self.launch(Kernel::Embed, [warps(rows), 1], THREADS, 0, &arguments)
    }

    /// firsts = states of the sequences' first tokens, `[sequences, stride]`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn first_rows(&self, states: &Array<D>, stride: usize, firsts: &Array<D>) -> Result<(), DeviceError> {
        let own = [
            self.halves(states, Rows::Tokens, stride),
            Word(stride as u32),
            self.halves(firsts, Rows::Sequences, stride),
        ];
        let rows = self.rows(Rows::Sequences);
        self.launch(Kernel::FirstRows, [warps(rows), 1], THREADS, 0, &[&self.batch()[..], &own].concat())
    }

    /// states = norm(states + update + bias), `[rows, stride]`, also quantised where that is asked for; `bias: [stride]`
    /// f32.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn add_layer_norm(
        &self,
        rows: Rows,
        (states, update): (&Array<D>, &Array<D>),
        bias: &Array<D>,
        norm: &Norm<D>,
        quantised: Option<&Quantised<'_, D>>,
    ) -> Result<(), DeviceError> {
        let own = [
            self.count(rows),
            self.halves(states, rows, norm.stride),
            self.halves(update, rows, norm.stride),
            Address(bias.holding(4 * norm.stride)),
        ];
        let quantised = self.quantised(quantised, rows, norm.stride);
        let arguments = [&own[..], &norm_arguments(norm), &quantised].concat();
        self.launch(Kernel::AddLayerNorm, [warps(self.rows(rows)), 1], THREADS, 0, &arguments)
    }

    /// x = gelu(x + bias), `[rows, width]`, or only quantised; `bias: [width]` f32.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn gelu(
        &self,
        rows: Rows,
        x: &Array<D>,
        (bias, width): (&Array<D>, usize),
        gelu: Gelu,
        quantised: Option<&Quantised<'_, D>>,
    ) -> Result<(), DeviceError> {
        assert!(width.is_multiple_of(8), "rows are read eight values at a time");
        let own = [
            self.count(rows),
            self.halves(x, rows, width),
            Address(bias.holding(4 * width)),
            Word(width as u32),
            Word(u32::from(gelu == Gelu::Tanh)),
        ];
        let threads = self.rows(rows) * (width / 8) as u32;
        let arguments = [&own[..], &self.quantised(quantised, rows, width)].concat();
        self.launch(Kernel::Gelu, [threads.div_ceil(THREADS), 1], THREADS, 0, &arguments)
    }

    /// `context: [tokens, heads]`, or only quantised, from `qkv: [tokens, 3 heads]`, queries scaled by log2(e) /
    /// sqrt(d).
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn attention(
        &self,
        qkv: &Array<D>,
        context: &Array<D>,
        heads: Heads,
        quantised: Option<&Quantised<'_, D>>,
    ) -> Result<(), DeviceError> {
        let kernel = match heads.size {
            32 => Kernel::Attention32,
            64 => Kernel::Attention64,
            size => panic!("heads of {size} have no kernel"),
        };
        let own = [
            self.halves(qkv, Rows::Tokens, 3 * heads.width()),
            self.halves(context, Rows::Tokens, heads.width()),
            Word(heads.count as u32),
        ];
        let (count, full) = (heads.count as u32, self.bucket.tokens.div_ceil(TILE));
        let share = count.div_ceil((ATTENTION_BLOCKS / full).clamp(1, count));
        // Sequences of 64 tokens have as many tiles, and longer ones fewer; blocks go on with those of shorter ones.
        let blocks = [self.bucket.tiles().min(2 * full), count.div_ceil(share)];
        let quantised = self.quantised(quantised, Rows::Tokens, heads.width());
        let arguments = [&self.batch()[..], &own, &quantised].concat();
        self.launch(kernel, blocks, ATTENTION_THREADS, 0, &arguments)
    }

    /// `mixed: [sequences, heads, stride]`, the states of a sequence weighted by softmax(absorbed state), from
    /// `absorbed: [sequences, heads, stride]` f32.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn first_token(
        &self,
        (absorbed, states): (&Array<D>, &Array<D>),
        mixed: &Array<D>,
        (heads, stride): (usize, usize),
    ) -> Result<(), DeviceError> {
        check(stride);
        let own = [
            Address(absorbed.holding(4 * self.bucket.sequences as usize * heads * stride)),
            self.halves(states, Rows::Tokens, stride),
            self.halves(mixed, Rows::Sequences, heads * stride),
            Word(heads as u32),
            Word(stride as u32),
        ];
        let blocks = [self.bucket.sequences, (heads as u32).div_ceil(GROUP)];
        let shared_bytes = 2 * GROUP * (stride as u32 + ASKED_PAD) * 2;
        let arguments = [&self.batch()[..], &own].concat();
        self.launch(Kernel::FirstToken, blocks, FIRST_TOKEN_THREADS, shared_bytes, &arguments)
    }

    /// `logits: [sequences]` f32 from `firsts: [sequences, stride]`; `parts` has room for `[sequences, stride / 32]`
    /// f32.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn head(
        &self,
        firsts: &Array<D>,
        head: &Head<D>,
        parts: &Array<D>,
        logits: &Array<D>,
    ) -> Result<(), DeviceError> {
        check(head.stride);
        let (sequences, count) = (self.bucket.sequences, head.stride as u32 / WARP);
        let parts = Address(parts.holding(4 * (sequences * count) as usize));
        let own = [
            self.halves(firsts, Rows::Sequences, head.stride),
            Address(head.pooler.holding(4 * head.stride * head.stride)),
            Address(head.pooler_bias.holding(4 * head.stride)),
            Address(head.classifier.holding(4 * head.stride)),
            Word(head.stride as u32),
            parts,
        ];
        let blocks = [sequences.div_ceil(POOLED), count];
        self.launch(Kernel::Pool, blocks, POOL_THREADS, 0, &[&self.batch()[..], &own].concat())?;
        let logits = Address(logits.holding(4 * sequences as usize));
        let own = [parts, Word(count), Float(head.classifier_bias), logits];
        let blocks = [sequences.div_ceil(THREADS), 1];
        self.launch(Kernel::Head, blocks, THREADS, 0, &[&self.batch()[..], &own].concat())
    }

    fn launch(
        &self,
        kernel: Kernel,
        blocks: [u32; 2],
        threads: u32,
        shared_bytes: u32,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        let shape = Shape { blocks, threads, shared_bytes };
        // SAFETY: each caller gives its kernel's arguments in order, and has asserted that arrays hold what the
        // kernel touches, which is bounded by the bucket; `fill_words` has put no more than that into the batch.
        unsafe { self.device.launch(kernel, self.half, shape, arguments) }
    }

    pub(super) fn rows(&self, rows: Rows) -> u32 {
        match rows {
            Rows::Tokens => self.bucket.tokens,
            Rows::Sequences => self.bucket.sequences,
        }
    }

    /// Where the batch says how many rows there are.
    fn count(&self, rows: Rows) -> Argument {
        let start = self.batch.holding(4 * self.bucket.words());
        match rows {
            Rows::Tokens => Address(start),
            Rows::Sequences => Address(start + 4),
        }
    }

    fn batch(&self) -> [Argument; 3] {
        let start = self.batch.holding(4 * self.bucket.words());
        [Address(start), Word(self.bucket.tokens), Word(self.bucket.sequences)]
    }

    /// Where rows of `width` values go as E4M3: to none, where null.
    fn quantised(&self, quantised: Option<&Quantised<'_, D>>, rows: Rows, width: usize) -> [Argument; 2] {
        quantised.map_or([Address(0); 2], |Quantised { to, factor }| {
            [Address(to.holding(self.rows(rows) as usize * width)), Address(factor.holding(4))]
        })
    }

    /// An array of as many rows of halves.
    fn halves(&self, array: &Array<D>, rows: Rows, width: usize) -> Argument {
        Address(array.holding(2 * self.rows(rows) as usize * width))
    }
}

/// Blocks of kernels that have a warp a row.
fn warps(rows: u32) -> u32 {
    rows.div_ceil(THREADS / WARP)
}

fn norm_arguments<D: Device>(norm: &Norm<D>) -> [Argument; 5] {
    check(norm.stride);
    assert!(norm.hidden <= norm.stride, "a row lies within its stride");
    [
        Address(norm.gain.holding(4 * norm.stride)),
        Address(norm.bias.holding(4 * norm.stride)),
        Float(norm.epsilon),
        Word(norm.hidden as u32),
        Word(norm.stride as u32),
    ]
}

fn check(stride: usize) {
    assert!(
        stride.is_multiple_of(WARP as usize) && stride <= STRIDE_MAX,
        "rows of {stride} values have no kernel"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_those_of_the_kernels() {
        let base = include_str!("../../../kernels/base.cuh");
        let attention = include_str!("../../../kernels/attention.cu");
        let first_token = include_str!("../../../kernels/first_token.cu");
        let head = include_str!("../../../kernels/head.cu");
        for (kernel, name, value) in [
            (base, "WARP", WARP.to_string()),
            (attention, "TILE", TILE.to_string()),
            (attention, "ATTENTION_THREADS", ATTENTION_THREADS.to_string()),
            (first_token, "FIRST_TOKEN_THREADS", FIRST_TOKEN_THREADS.to_string()),
            (first_token, "GROUP", GROUP.to_string()),
            (first_token, "ASKED_PAD", ASKED_PAD.to_string()),
            (first_token, "STRIDE_MAX", STRIDE_MAX.to_string()),
            (head, "POOL_THREADS", POOL_THREADS.to_string()),
            (head, "POOLED", "POOL_THREADS / WARP".to_owned()),
        ] {
            let declared = [';', ','].map(|end| format!(" {name} = {value}{end}"));
            let is_declared = |line: &str| declared.iter().any(|declared| line.contains(declared));
            let mut constants = kernel.lines().filter(|line| line.starts_with("constexpr u32"));
            assert!(constants.any(is_declared), "no kernel declares {name} = {value}");
        }
    }
}
