//! The forward of an encoder in one dtype on one kind of processor, by the fused operations.

use crate::backend::layout::{Width, absorb, join, pad};
use crate::backend::lower::Encoder;
use crate::model;
use crate::ops::{
    AddTo, Buffer, Dense, Dtype, FirstScratch, FirstToken, Float, Gelu, Head, HeadScratch, Heads, Input,
    Keep, Linear, Norm, Operand, Projected, Rows, ScaleAndAddTo, Scratch, Simd, Table, attention, embed,
    first_token_attention, lay_together, layer_norm, layer_norm_into, linear,
};
use crate::token::Packed;
use std::any::TypeId;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Words between the rows of queries, keys and values beyond what they hold.
const GAP: usize = 16;
/// Rows of queries, keys and values beyond the last token's, which tiles read.
const BEYOND: usize = 32;

/// A model that runs chunk by chunk, in a workspace of the caller.
pub(super) trait Forward: Send + Sync {
    /// Runs sequences of a batch up to the last layer's attention, and leaves what their first tokens
    /// have become in the workspace.
    fn chunk(&self, batch: &Packed, sequences: Range<usize>, workspace: &mut Workspace);
    /// Tokens of a chunk, if its first sequence is not longer.
    fn chunk_tokens(&self) -> u32;
    /// Takes the first tokens that chunks have left through the rest; a logit for each, in that order.
    fn finish(&self, workspace: &mut Workspace) -> Vec<f32>;
}

/// What one thread works in; it grows to what it is used for.
#[derive(Default)]
pub(super) struct Workspace {
    /// Tokens' states, `[tokens, hidden]`.
    states: Buffer,
    /// The same, as a layer's linear maps read them.
    input: Operand,
    /// Queries, keys and values, `[tokens, stride]`.
    qkv: Buffer,
    /// `[tokens, heads]`, in what attention is computed in.
    context: Operand,
    attention: Scratch,
    block: Block,
    /// First tokens of the sequences so far: states `[sequences, hidden]`, contexts `[sequences, heads]`.
    firsts: Vec<f32>,
    first_contexts: Vec<f32>,
    first: FirstScratch,
    head: HeadScratch,
}

impl Workspace {
    /// Drops what a run that broke off has left.
    pub fn forget(&mut self) {
        self.firsts.clear();
        self.first_contexts.clear();
    }
}

/// The operands of a block's linear maps.
#[derive(Default)]
struct Block {
    context: Operand,
    input: Operand,
    staging: Operand,
    inner: Operand,
}

/// An encoder whose linear maps are in `L` and whose attention is in `A`.
pub(super) struct Stack<S, L, A> {
    simd: S,
    hidden: usize,
    heads: Heads,
    position_offset: usize,
    gelu: Gelu,
    words: Table,
    positions: Table,
    types: Table,
    embedding_norm: Norm,
    /// All layers but the last.
    full: Vec<(Linear<S, L>, Rest<S, L>)>,
    last: (FirstToken<S>, Rest<S, L>),
    head: Head<S>,
    _attention: std::marker::PhantomData<A>,
}

/// What follows a layer's attention. The first norm's gain and bias are in the maps that read it, and its gain in the
/// residual too: a few gains are large, and would leave bytes little for the other values (Wei et al. 2022, "gamma
/// migration"). The second norm's gains are small where its values are large, and stay.
struct Rest<S, L> {
    out: Linear<S, L>,
    attention_norm: Norm,
    gain: Buffer,
    up: Linear<S, L>,
    down: Linear<S, L>,
    out_norm: Norm,
}

impl<S: Simd, L: Dtype<S>, A: Float<S>> Stack<S, L, A> {
    /// Rows that go through the linear maps of a layer together: their activations stay in the second-level cache, and
    /// weights are read once for all of them. Tiles are so fast that weights from the third-level cache must serve more
    /// rows.
    const BLOCK: usize = if L::ON_TILES { 256 } else { 192 };
    /// Enough rows for the register tiles, few enough for the second-level cache.
    const CHUNK_TOKENS: u32 = if L::ON_TILES { 256 } else { 128 };

    /// Packs a model's weights.
    pub fn new(simd: S, encoder: &Encoder) -> Self {
        let plan = encoder.plan;
        let hidden = Width::plain(plan.hidden());
        let heads = Width::heads(encoder.heads, encoder.head_dim);
        let (last, full) = plan.blocks.split_last().expect("a model has a layer");
        let qkv = |block: &model::Block| Linear::pack(&join(projections(block)), Input::Signed);
        let table = |table: &model::Tensor| Table::new(&table.values, plan.hidden());
        let classifier = encoder.classifier;
        let mut stack = Self {
            simd,
            hidden: hidden.padded(),
            heads: heads.as_heads(),
            position_offset: encoder.positions.offset,
            gelu: encoder.gelu,
            words: table(&plan.embed.words),
            positions: table(&encoder.positions.table),
            types: table(encoder.types),
            embedding_norm: norm(encoder.embedding_norm),
            full: full.iter().map(|block| (qkv(block), Rest::new(block))).collect(),
            last: (FirstToken::new(heads.as_heads(), &projections(last)), Rest::new(last)),
            head: Head::new(
                &pad(encoder.pooler, hidden, hidden, 1.0),
                &classifier.weight.values,
                classifier.bias_values()[0],
            ),
            _attention: std::marker::PhantomData,
        };
        let layers = stack.full.iter_mut().flat_map(|(qkv, rest)| std::iter::once(qkv).chain(rest.maps()));
        lay_together(&mut layers.chain(stack.last.1.maps()).collect::<Vec<_>>());
        stack
    }

    /// From contexts to the layer's output, `states: [rows, hidden]`, and into the next layer's input from a row on.
    fn rest(
        &self,
        rest: &Rest<S, L>,
        states: &mut [f32],
        context: Rows<'_>,
        (block, next): (&mut Block, Option<(&mut Operand, usize)>),
    ) {
        let (simd, hidden) = (self.simd, self.hidden);
        linear(simd, context, &rest.out, AddTo::new(states, hidden));
        block.input.shape::<S, L>(states.len() / hidden, hidden);
        layer_norm_into::<S, L>(simd, &rest.attention_norm, states, (&mut block.input, 0));
        let (staging, inner) = (&mut block.staging, &mut block.inner);
        L::activate::<A>(simd, block.input.all(), &rest.up, self.gelu, (staging, inner));
        let gain = &rest.gain.floats()[..hidden];
        linear(simd, block.inner.all(), &rest.down, ScaleAndAddTo::new(states, gain));
        match next {
            Some(place) => layer_norm_into::<S, L>(simd, &rest.out_norm, states, place),
            None => layer_norm(simd, &rest.out_norm, states),
        }
    }

    fn embed(&self, batch: &Packed, starts: &[u32], states: &mut [f32]) {
        let mut states = states;
        for bounds in starts.windows(2) {
            let tokens = bounds[0] as usize..bounds[1] as usize;
            let (rows, rest) = states.split_at_mut(tokens.len() * self.hidden);
            let (ids, types) = (&batch.ids()[tokens.clone()], &batch.types()[tokens]);
            let tables = (&self.words, &self.positions, &self.types);
            embed(self.simd, tables, (ids, types), self.position_offset, rows);
            states = rest;
        }
    }
}

impl<S: Simd, L: Dtype<S>, A: Float<S>> Forward for Stack<S, L, A> {
    fn chunk(&self, batch: &Packed, sequences: Range<usize>, workspace: &mut Workspace) {
        let (simd, hidden, width) = (self.simd, self.hidden, self.heads.width());
        let starts = &batch.starts()[sequences.start..=sequences.end];
        let tokens = (starts[starts.len() - 1] - starts[0]) as usize;
        let stride = 3 * width / A::GROUP + GAP;
        let Workspace {
            states,
            input,
            qkv,
            context,
            attention: scratch,
            block,
            firsts,
            first_contexts,
            first,
            ..
        } = workspace;
        states.grow(tokens * hidden);
        input.shape::<S, L>(tokens, hidden);
        qkv.grow((tokens + BEYOND) * stride);
        context.shape::<S, A>(tokens, width);
        let states = &mut states.floats_mut()[..tokens * hidden];
        let local: Vec<usize> = starts.iter().map(|start| (start - starts[0]) as usize).collect();
        let blocks = || (0..tokens).step_by(Self::BLOCK).map(move |row| row..tokens.min(row + Self::BLOCK));
        // Contexts are read as they are where the maps are in the same dtype.
        let is_same = TypeId::of::<L>() == TypeId::of::<A>();

        self.embed(batch, starts, states);
        layer_norm_into::<S, L>(simd, &self.embedding_norm, states, (input, 0));
        for (layer, (projection, rest)) in self.full.iter().enumerate() {
            for rows in blocks() {
                let to = &mut qkv.words_mut()[rows.start * stride..rows.end * stride];
                linear(simd, input.range(rows), projection, Keep::<A>::new(to, stride));
            }
            for rows in local.windows(2) {
                let words = &qkv.words()[rows[0] * stride..];
                let projected = Projected { words, stride, tokens: rows[1] - rows[0] };
                attention::<S, A>(simd, projected, self.heads, scratch, (context, rows[0]));
            }
            for rows in blocks() {
                let states = &mut states[rows.start * hidden..rows.end * hidden];
                let next = (layer + 1 < self.full.len()).then_some((&mut *input, rows.start));
                let mut own = std::mem::take(&mut block.context);
                let context = context.range(rows);
                let context = if is_same {
                    context
                } else {
                    own.fill_from::<S, L, A>(simd, context);
                    own.all()
                };
                self.rest(rest, states, context, (block, next));
                block.context = own;
            }
        }
        first_token_attention(simd, &self.last.0, (states, &local), first, first_contexts);
        for &row in &local[..local.len() - 1] {
            firsts.extend_from_slice(&states[row * hidden..][..hidden]);
        }
    }

    fn chunk_tokens(&self) -> u32 {
        Self::CHUNK_TOKENS
    }

    fn finish(&self, workspace: &mut Workspace) -> Vec<f32> {
        let Workspace { block, firsts, first_contexts, head, .. } = workspace;
        let mut logits = vec![0.0; firsts.len() / self.hidden];
        let width = self.heads.width();
        let mut own = std::mem::take(&mut block.context);
        let blocks =
            firsts.chunks_mut(Self::BLOCK * self.hidden).zip(first_contexts.chunks(Self::BLOCK * width));
        for ((states, context), logits) in blocks.zip(logits.chunks_mut(Self::BLOCK)) {
            own.fill::<S, L>(self.simd, context, width);
            self.rest(&self.last.1, states, own.all(), (block, None));
            self.head.logits(self.simd, states, head, logits);
        }
        block.context = own;
        workspace.forget();
        logits
    }
}

impl<S: Simd, L: Dtype<S>> Rest<S, L> {
    /// Its maps, in the order in which they are read.
    fn maps(&mut self) -> [&mut Linear<S, L>; 3] {
        [&mut self.out, &mut self.up, &mut self.down]
    }

    fn new(block: &model::Block) -> Self {
        let model::FeedForward { up, down, .. } = &block.feed_forward;
        let (hidden, inner) = (Width::plain(up.inputs()), Width::plain(up.outputs()));
        let heads = Width::heads(block.attention.heads, block.attention.head_dim);
        let attention_norm = block.attention_norm.as_ref().expect("a post-norm layer has both norms");
        let (first_gain, first_bias) = (&attention_norm.gain.values, attention_norm.bias_values());
        let (ones, zeros) = (vec![1.0; first_gain.len()], vec![0.0; first_gain.len()]);
        let mut gain = Buffer::zeros(hidden.padded());
        gain.floats_mut()[..first_gain.len()].copy_from_slice(first_gain);
        let mut down = pad(down, hidden, inner, 1.0);
        down.bias.iter_mut().zip(first_bias).for_each(|(bias, first)| *bias += first);
        Self {
            out: Linear::pack(&pad(&block.attention.out, hidden, heads, 1.0), Input::Signed),
            attention_norm: Norm::new(&ones, &zeros, attention_norm.eps),
            gain,
            up: Linear::pack(&pad(&absorb(attention_norm, up), inner, hidden, 1.0), Input::Signed),
            down: Linear::pack(&down, Input::Activated),
            out_norm: norm(&block.feed_forward_norm),
        }
    }
}

/// To queries, keys and values; queries scaled for a softmax in powers of two.
fn projections(block: &model::Block) -> [Dense; 3] {
    let model::Attention { heads, head_dim, query, key, value, .. } = &block.attention;
    let (hidden, heads) = (Width::plain(query.inputs()), Width::heads(*heads, *head_dim));
    let scale = LOG2_E / (*head_dim as f32).sqrt();
    [(query, scale), (key, 1.0), (value, 1.0)].map(|(map, factor)| pad(map, heads, hidden, factor))
}

fn norm(norm: &model::Norm) -> Norm {
    Norm::new(&norm.gain.values, &norm.bias_values(), norm.eps)
}
