//! Launches of the kernels that mix the tokens of a sequence: attention, and what comes right before it.

use super::kernels::{self, ASKED_PAD, ATTENTION_THREADS, FIRST_TOKEN_THREADS, GROUP, STATIC_HEAD_MAX, TILE};
use super::launch::{THREADS, check_narrow, floats, optional_floats, shape};
use super::{Array, Device, DeviceError, Launcher, PLACES_MAX, Quantised, Rows, Shape};
use crate::ops::{Heads, Reach};

/// Blocks of attention that fill a large GPU twice. If there would be more, a block handles several heads, which saves
/// its start-up cost.
const ATTENTION_BLOCKS: u32 = 1024;

/// The heads of a layer and what they see.
#[derive(Clone, Copy, Debug)]
pub struct Mixing {
    /// Heads of queries.
    pub heads: Heads,
    /// Heads of keys and values, of the same size; they divide `heads`.
    pub kv_heads: usize,
    /// The keys that a query sees.
    pub reach: Reach,
}

/// What is done to queries and keys before attention.
pub struct Rotation<'a, D: Device> {
    /// Of the angles of places, `[places, size / 2]` f32 each: cosines, sines.
    pub angles: [&'a Array<D>; 2],
    /// The number of places.
    pub places: usize,
    /// Gains of the norms of queries and of keys, `[size]` f32 each, and what is added to their mean squares. The queries'
    /// gain includes what scales a softmax.
    pub norms: Option<(&'a [Array<D>; 2], f32)>,
    /// Values of a head, without padding.
    pub head_dim: usize,
}

impl Mixing {
    /// Values of a row of queries, keys and values.
    pub fn row(&self) -> usize {
        self.heads.width() + 2 * self.kv_heads * self.heads.size
    }

    /// Asserts that heads of keys divide those of queries.
    fn check(&self) {
        let divides = self.kv_heads > 0 && self.heads.count.is_multiple_of(self.kv_heads);
        assert!(divides, "{} heads of keys do not divide {}", self.kv_heads, self.heads.count);
    }
}

impl<D: Device> Launcher<'_, D> {
    /// Norms and rotates queries and keys in `qkv: [tokens, mixing.row()]`. [`super::fill_words`] has checked places against
    /// the vocabulary, which has no more than `rotation.places`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn rotate(
        &self,
        qkv: &Array<D>,
        mixing: Mixing,
        rotation: &Rotation<'_, D>,
    ) -> Result<(), DeviceError> {
        let Mixing { heads, kv_heads, .. } = mixing;
        let (kernel, lanes) = match heads.size {
            32 => (kernels::ROTATE_32, 2),
            64 => (kernels::ROTATE_64, 4),
            96 => (kernels::ROTATE_96, 8),
            128 => (kernels::ROTATE_128, 8),
            size => panic!("heads of {size} have no kernel"),
        };
        mixing.check();
        let angles = |array: &Array<D>| floats(array, rotation.places * heads.size / 2);
        let gain = |which: usize| optional_floats(rotation.norms.map(|(gains, _)| &gains[which]), heads.size);
        let parameters = kernels::Rotate {
            batch: self.batch(),
            qkv: self.halves(qkv, Rows::Tokens, mixing.row()),
            cosines: angles(rotation.angles[0]),
            sines: angles(rotation.angles[1]),
            query_gain: gain(0),
            key_gain: gain(1),
            epsilon: rotation.norms.map_or(0.0, |(_, epsilon)| epsilon),
            head_dim: rotation.head_dim as u32,
            heads: heads.count as u32,
            kv_heads: kv_heads as u32,
        };
        let threads = self.bucket.tokens * (heads.count + kv_heads) as u32 * lanes;
        self.launch(kernel, shape([threads.div_ceil(THREADS), 1], THREADS), &parameters)
    }

    /// `context: [tokens, heads d]` from `qkv: [tokens, mixing.row()]`, queries scaled by log2(e) / sqrt(d). If `quantised`
    /// is given only that is written.
    ///
    /// # Errors
    /// [`DeviceError`].
    ///
    /// # Panics
    /// If `quantised` is given where queries do not see all keys.
    pub fn attention(
        &self,
        qkv: &Array<D>,
        context: &Array<D>,
        mixing: Mixing,
        quantised: Option<&Quantised<'_, D>>,
    ) -> Result<(), DeviceError> {
        let Mixing { heads, kv_heads, reach } = mixing;
        mixing.check();
        let (count, full) = (heads.count as u32, self.bucket.tokens.div_ceil(TILE));
        let share = count.div_ceil((ATTENTION_BLOCKS / full).clamp(1, count));
        // Enough for sequences of 64 tokens or more; blocks loop over the extra tiles of shorter ones.
        let blocks = [self.bucket.tiles().min(2 * full), count.div_ceil(share)];
        // Tiles of queries, and of keys and values of two steps, with padding.
        let memory = if heads.size > STATIC_HEAD_MAX { 5 * TILE * (heads.size as u32 + 8) * 2 } else { 0 };
        let shape = Shape { shared_bytes: memory, ..shape(blocks, ATTENTION_THREADS) };
        let batch = self.batch();
        let qkv = self.halves(qkv, Rows::Tokens, mixing.row());
        let context = self.halves(context, Rows::Tokens, heads.width());
        let (heads_given, kv_heads) = (heads.count as u32, kv_heads as u32);
        let up_to = |places: usize| u32::try_from(places).unwrap_or(PLACES_MAX).min(PLACES_MAX);
        let band = match reach {
            Reach::All => None,
            Reach::Causal => Some((PLACES_MAX, 0)),
            Reach::Window(places) => Some((up_to(places), up_to(places))),
        };
        let Some((before, after)) = band else {
            let kernel = match heads.size {
                32 => kernels::ATTENTION_32,
                64 => kernels::ATTENTION_64,
                96 => kernels::ATTENTION_96,
                128 => kernels::ATTENTION_128,
                size => panic!("heads of {size} have no kernel"),
            };
            let quantised = self.quantised(quantised, Rows::Tokens, heads.width());
            let parameters =
                kernels::Attention { batch, qkv, context, heads: heads_given, kv_heads, quantised };
            return self.launch(kernel, shape, &parameters);
        };
        assert!(quantised.is_none(), "attention within a band has no E4M3 output");
        let kernel = match heads.size {
            32 => kernels::BANDED_32,
            64 => kernels::BANDED_64,
            96 => kernels::BANDED_96,
            128 => kernels::BANDED_128,
            size => panic!("heads of {size} have no kernel"),
        };
        let parameters =
            kernels::BandedAttention { batch, qkv, context, heads: heads_given, kv_heads, before, after };
        self.launch(kernel, shape, &parameters)
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
        check_narrow(stride);
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
}
