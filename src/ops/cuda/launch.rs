//! Each kernel with its arguments in order and its shapes checked, so that no safe call makes one go astray.

use super::kernels::{
    self, ASKED_PAD, ATTENTION_THREADS, E4m3s, FIRST_TOKEN_THREADS, Floats, GROUP, Halves, NormParameters,
    POOL_THREADS, POOLED, Parameters, STRIDE_MAX, TILE, Typed, WARP, Words,
};
use super::{Array, Bucket, Device, DeviceError, Half, Shape};
use crate::ops::{Gelu, Heads};

/// Threads of a block, for kernels that do not declare a number of their own.
const THREADS: u32 = 256;
/// Blocks of attention that fill a large GPU twice; more heads than that needs share a block, and its start.
const ATTENTION_BLOCKS: u32 = 1024;

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
        // Sequences of 64 tokens have as many tiles, and longer ones fewer; blocks go on with those of shorter ones.
        let blocks = [self.bucket.tiles().min(2 * full), count.div_ceil(share)];
        self.launch(kernel, shape(blocks, ATTENTION_THREADS), &parameters)
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
        // SAFETY: `P` holds the kernel's parameters in order; each caller has asserted that arrays hold what the kernel
        // touches, which is bounded by the bucket; `fill_words` has put no more than that into the batch.
        unsafe { self.device.launch(kernel.kernel, self.half, shape, &parameters.arguments()) }
    }

    pub(super) fn rows(&self, rows: Rows) -> u32 {
        match rows {
            Rows::Tokens => self.bucket.tokens,
            Rows::Sequences => self.bucket.sequences,
        }
    }

    /// Where the batch says how many rows there are.
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

    /// Where rows of `width` values go as E4M3: to none, where null.
    fn quantised(&self, quantised: Option<&Quantised<'_, D>>, rows: Rows, width: usize) -> E4m3s {
        quantised.map_or_else(E4m3s::default, |Quantised { to, factor }| E4m3s {
            to: to.holding(self.rows(rows) as usize * width),
            factor: factor.holding(4),
        })
    }

    /// An array of as many rows of halves.
    fn halves(&self, array: &Array<D>, rows: Rows, width: usize) -> Halves {
        Halves(array.holding(2 * self.rows(rows) as usize * width))
    }
}

/// An array of `count` f32 values.
fn floats<D: Device>(array: &Array<D>, count: usize) -> Floats {
    Floats(array.holding(4 * count))
}

/// A shape without shared memory beyond what the kernel declares.
fn shape(blocks: [u32; 2], threads: u32) -> Shape {
    Shape { blocks, threads, shared_bytes: 0 }
}

/// Blocks of kernels that have a warp a row.
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
