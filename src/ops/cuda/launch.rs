//! Launches of the kernels. Each checks the lengths of its arrays, so that no safe call accesses memory out of bounds.

use super::kernels::{
    self, ASKED_PAD, ATTENTION_THREADS, E4m3s, FIRST_TOKEN_THREADS, Floats, GROUP, Halves, NormParameters,
    POOL_THREADS, POOLED, Parameters, STRIDE_MAX, TILE, Typed, WARP, Words,
};
use super::{Array, Bucket, Device, DeviceError, Half, Shape};
use crate::ops::{Gelu, Heads};

/// Threads of a block, for kernels that do not declare a number of their own.
const THREADS: u32 = 256;
/// Blocks of attention that fill a large GPU twice. If there would be more, a block handles several heads, which saves
/// its start-up cost.
const ATTENTION_BLOCKS: u32 = 1024;

/// The rows that an operation works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One row per token.
    Tokens,
    /// One row per sequence.
    Sequences,
}

/// Word, position and type tables in a half type, `[rows, stride]` each.
pub struct Embeddings<D: Device> {
    /// `[vocabulary, stride]`.
    pub words: Array<D>,
    /// `[positions, stride]`.
    pub positions: Array<D>,
    /// `[types, stride]`.
    pub types: Array<D>,
    /// The row of `positions` for a sequence's first token.
    pub position_offset: u32,
    /// Rows of the tables: words, positions, types.
    pub rows: [usize; 3],
}

/// The parameters of a layer norm.
pub struct Norm<D: Device> {
    /// `[stride]` f32.
    pub gain: Array<D>,
    /// `[stride]` f32.
    pub bias: Array<D>,
    /// Added to the variance.
    pub epsilon: f32,
    /// Values of a row, without padding.
    pub hidden: usize,
    /// Values of a row, with padding.
    pub stride: usize,
}

/// A classification head, in f32.
pub struct Head<D: Device> {
    /// `[inputs, outputs]`, both `stride`.
    pub pooler: Array<D>,
    /// `[stride]`.
    pub pooler_bias: Array<D>,
    /// `[stride]`.
    pub classifier: Array<D>,
    /// Added to each logit.
    pub classifier_bias: f32,
    /// Values of a row, with padding.
    pub stride: usize,
}

/// An E4M3 output of an operation.
pub struct Quantised<'a, D: Device> {
    /// `[rows, width]` bytes.
    pub to: &'a Array<D>,
    /// `[1]` f32: the factor applied before rounding, [`super::Scales::factor`].
    pub factor: &'a Array<D>,
}

/// Launches kernels on batches of one bucket.
pub struct Launcher<'a, D: Device> {
    /// The device.
    pub device: &'a D,
    /// The type of weights and states.
    pub half: Half,
    /// The upper bound of the batch.
    pub bucket: Bucket,
    /// The batch, written by [`super::fill_words`] for the same bucket.
    pub batch: &'a Array<D>,
}

impl<D: Device> Launcher<'_, D> {
    /// Submits a batch: copies its words to the device, queues the work of `launches`, and copies the first `bytes` of
    /// `result` back.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn submit(
        &self,
        submission: &mut D::Submission,
        (result, bytes): (&Array<D>, usize),
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let words = self.bucket.words();
        let (batch, result) = (self.batch.holding(4 * words), result.holding(bytes));
        // SAFETY: `holding` asserts both lengths.
        unsafe { self.device.submit(submission, (batch, words), (result, bytes), launches) }
    }

    /// states = norm(words + positions + types), `[tokens, stride]`, with an E4M3 copy if `quantised` is given.
    /// [`super::fill_words`] has checked ids and positions against the vocabulary.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn embed(
        &self,
        tables: &Embeddings<D>,
        norm: &Norm<D>,
        states: &Array<D>,
        quantised: Option<&Quantised<'_, D>>,
    ) -> Result<(), DeviceError> {
        let table = |array: &Array<D>, rows: usize| Halves(array.holding(2 * rows * norm.stride));
        let [words, positions, types] = tables.rows;
        let rows = self.rows(Rows::Tokens);
        let parameters = kernels::Embed {
            batch: self.batch(),
            words: table(&tables.words, words),
            positions: table(&tables.positions, positions),
            types: table(&tables.types, types),
            position_offset: tables.position_offset,
            type_count: types as u32,
            norm: norm_parameters(norm),
            states: table(states, rows as usize),
            quantised: self.quantised(quantised, Rows::Tokens, norm.stride),
        };
        self.launch(kernels::EMBED, shape([warps(rows), 1], THREADS), &parameters)
    }

    /// firsts = states of the sequences' first tokens, `[sequences, stride]`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn first_rows(&self, states: &Array<D>, stride: usize, firsts: &Array<D>) -> Result<(), DeviceError> {
        let parameters = kernels::FirstRows {
            batch: self.batch(),
            states: self.halves(states, Rows::Tokens, stride),
            stride: stride as u32,
            firsts: self.halves(firsts, Rows::Sequences, stride),
        };
        let blocks = [warps(self.rows(Rows::Sequences)), 1];
        self.launch(kernels::FIRST_ROWS, shape(blocks, THREADS), &parameters)
    }

    /// states = norm(states + update + bias), `[rows, stride]`, with an E4M3 copy if `quantised` is given;
    /// `bias: [stride]` f32.
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
        let parameters = kernels::AddLayerNorm {
            count: self.count(rows),
            states: self.halves(states, rows, norm.stride),
            update: self.halves(update, rows, norm.stride),
            update_bias: floats(bias, norm.stride),
            norm: norm_parameters(norm),
            quantised: self.quantised(quantised, rows, norm.stride),
        };
        self.launch(kernels::ADD_LAYER_NORM, shape([warps(self.rows(rows)), 1], THREADS), &parameters)
    }

    /// x = gelu(x + bias), `[rows, width]`; if `quantised` is given only that is written. `bias: [width]` f32.
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
        let parameters = kernels::Gelu {
            count: self.count(rows),
            x: self.halves(x, rows, width),
            bias: floats(bias, width),
            width: width as u32,
            is_tanh: u32::from(gelu == Gelu::Tanh),
            quantised: self.quantised(quantised, rows, width),
        };
        let threads = self.rows(rows) * (width / 8) as u32;
        self.launch(kernels::GELU, shape([threads.div_ceil(THREADS), 1], THREADS), &parameters)
    }

    /// `context: [tokens, heads d]` from `qkv: [tokens, 3 heads d]`, queries scaled by log2(e) / sqrt(d). If `quantised` is
    /// given only that is written.
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
            32 => kernels::ATTENTION_32,
            64 => kernels::ATTENTION_64,
            size => panic!("heads of {size} have no kernel"),
        };
        let parameters = kernels::Attention {
            batch: self.batch(),
            qkv: self.halves(qkv, Rows::Tokens, 3 * heads.width()),
            context: self.halves(context, Rows::Tokens, heads.width()),
            heads: heads.count as u32,
            quantised: self.quantised(quantised, Rows::Tokens, heads.width()),
        };
        let (count, full) = (heads.count as u32, self.bucket.tokens.div_ceil(TILE));
        let share = count.div_ceil((ATTENTION_BLOCKS / full).clamp(1, count));
        // Enough for sequences of 64 tokens or more; blocks loop over the extra tiles of shorter ones.
        let blocks = [self.bucket.tiles().min(2 * full), count.div_ceil(share)];
        self.launch(kernel, shape(blocks, ATTENTION_THREADS), &parameters)
    }

    /// `mixed: [sequences, heads, stride]`: for each head the sum of a sequence's states, weighted by softmax(absorbed .
    /// state). `absorbed: [sequences, heads, stride]` f32.
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
        let parameters = kernels::FirstToken {
            batch: self.batch(),
            absorbed: floats(absorbed, self.bucket.sequences as usize * heads * stride),
            states: self.halves(states, Rows::Tokens, stride),
            mixed: self.halves(mixed, Rows::Sequences, heads * stride),
            heads: heads as u32,
            stride: stride as u32,
        };
        let blocks = [self.bucket.sequences, (heads as u32).div_ceil(GROUP)];
        let shared_bytes = 2 * GROUP * (stride as u32 + ASKED_PAD) * 2;
        let shape = Shape { shared_bytes, ..shape(blocks, FIRST_TOKEN_THREADS) };
        self.launch(kernels::FIRST_TOKEN, shape, &parameters)
    }

    /// `logits: [sequences]` f32 from `firsts: [sequences, stride]`; `parts: [sequences, stride / 32]` f32 is scratch.
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
        let parts = floats(parts, (sequences * count) as usize);
        let pool = kernels::Pool {
            batch: self.batch(),
            firsts: self.halves(firsts, Rows::Sequences, head.stride),
            pooler: floats(&head.pooler, head.stride * head.stride),
            pooler_bias: floats(&head.pooler_bias, head.stride),
            classifier: floats(&head.classifier, head.stride),
            stride: head.stride as u32,
            parts,
        };
        let blocks = [sequences.div_ceil(POOLED), count];
        self.launch(kernels::POOL, shape(blocks, POOL_THREADS), &pool)?;
        let head = kernels::Head {
            batch: self.batch(),
            parts,
            count,
            bias: head.classifier_bias,
            logits: floats(logits, sequences as usize),
        };
        self.launch(kernels::HEAD, shape([sequences.div_ceil(THREADS), 1], THREADS), &head)
    }

    fn launch<P: Parameters>(
        &self,
        kernel: Typed<P>,
        shape: Shape,
        parameters: &P,
    ) -> Result<(), DeviceError> {
        // SAFETY: `P` is the kernel's parameter list. Each caller has asserted (by `holding`) that the arrays are large
        // enough for the bucket, and `fill_words` keeps the batch within the bucket.
        unsafe { self.device.launch(kernel.kernel, self.half, shape, &parameters.arguments()) }
    }

    pub(super) fn rows(&self, rows: Rows) -> u32 {
        match rows {
            Rows::Tokens => self.bucket.tokens,
            Rows::Sequences => self.bucket.sequences,
        }
    }

    /// The address of the number of rows, which is in the batch's header.
    fn count(&self, rows: Rows) -> Words {
        let start = self.batch.holding(4 * self.bucket.words());
        match rows {
            Rows::Tokens => Words(start),
            Rows::Sequences => Words(start + 4),
        }
    }

    fn batch(&self) -> kernels::Batch {
        kernels::Batch {
            words: self.batch.holding(4 * self.bucket.words()),
            tokens_max: self.bucket.tokens,
            sequences_max: self.bucket.sequences,
        }
    }

    /// The E4M3 output for rows of `width` values; null if there is none.
    fn quantised(&self, quantised: Option<&Quantised<'_, D>>, rows: Rows, width: usize) -> E4m3s {
        quantised.map_or_else(E4m3s::default, |Quantised { to, factor }| E4m3s {
            to: to.holding(self.rows(rows) as usize * width),
            factor: factor.holding(4),
        })
    }

    /// An array of `rows` rows of `width` 16-bit values.
    fn halves(&self, array: &Array<D>, rows: Rows, width: usize) -> Halves {
        Halves(array.holding(2 * self.rows(rows) as usize * width))
    }
}

/// An array of `count` f32 values.
fn floats<D: Device>(array: &Array<D>, count: usize) -> Floats {
    Floats(array.holding(4 * count))
}

/// A shape without dynamic shared memory.
fn shape(blocks: [u32; 2], threads: u32) -> Shape {
    Shape { blocks, threads, shared_bytes: 0 }
}

/// Blocks of a kernel with one warp per row.
fn warps(rows: u32) -> u32 {
    rows.div_ceil(THREADS / WARP)
}

fn norm_parameters<D: Device>(norm: &Norm<D>) -> NormParameters {
    check(norm.stride);
    assert!(norm.hidden <= norm.stride, "a row lies within its stride");
    NormParameters {
        gain: floats(&norm.gain, norm.stride),
        bias: floats(&norm.bias, norm.stride),
        epsilon: norm.epsilon,
        hidden: norm.hidden as u32,
        stride: norm.stride as u32,
    }
}

fn check(stride: usize) {
    assert!(
        stride.is_multiple_of(WARP as usize) && stride <= STRIDE_MAX,
        "rows of {stride} values have no kernel"
    );
}
