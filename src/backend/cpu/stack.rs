//! The forward of a model in one dtype on one kind of processor, by the fused operations.

use super::layer::{GAP, Mixer, NextInput, Operands, Places, Rest, norm, read_states};
use super::prefix::{End, Sharing, Span};
use super::size::{TOGETHER_BYTES_MAX, map_bytes};
use crate::backend::layout::{Width, pad, projections, score_weights};
use crate::backend::lower::LastLayer;
use crate::model::{self, Norms, Plan, Pool, Reach};
use crate::ops::{
    Buffer, Dtype, FirstScratch, FirstToken, Float, Head, HeadScratch, Heads, Keep, Norm, Operand, Projected,
    Scratch, Simd, Table, attention, embed, first_token_attention, lay_together, layer_norm, layer_norm_into,
    linear, rotate,
};
use crate::token::Packed;
use std::any::TypeId;

/// Rows of queries, keys and values beyond the last token's, which tiles read.
const BEYOND: usize = 32;

/// Tokens of a chunk where prefixes are shared. Behind a prefix documents are short: in chunks of 256 tokens each of 137
/// would be alone, and leave a seventh of its tiles empty. A decoder's activations exceed the second-level cache either way.
const SHARED_CHUNK_TOKENS: usize = 512;

/// A model that runs chunk by chunk, in a workspace of the caller.
pub(super) trait Forward: Send + Sync {
    /// Runs spans of a batch as far as all their tokens are needed, and leaves what the head reads of those that end a
    /// sequence in the workspace.
    fn chunk(&self, batch: &Packed, spans: &[Span], workspace: &mut Workspace);
    /// Tokens of a chunk, if its first span is not longer.
    fn chunk_tokens(&self) -> usize;
    /// What shared keys and values take, if all layers are causal and the head reads the last token.
    fn sharing(&self) -> Option<Sharing>;
    /// Takes what chunks have left through the rest; a logit for each sequence, in that order.
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
    operands: Operands,
    row: Buffer,
    /// Of the sequences that have ended what the head reads: states `[sequences, hidden]`, and where the last layer is not
    /// complete, contexts `[sequences, heads]`.
    pooled: Vec<f32>,
    pooled_contexts: Vec<f32>,
    first: FirstScratch,
    head: HeadScratch,
}

impl Workspace {
    /// Drops what a run that broke off has left.
    pub fn forget(&mut self) {
        self.pooled.clear();
        self.pooled_contexts.clear();
    }
}

/// A model whose linear maps are in `L` and whose attention is in `A`.
pub(super) struct Stack<S, L, A> {
    simd: S,
    hidden: usize,
    heads: Heads,
    /// Heads of keys and values in the layer that has most.
    kv_heads_max: usize,
    words: Table,
    positions: Option<Table>,
    position_offset: usize,
    types: Option<Table>,
    embedding_norm: Option<Norm>,
    norms: Norms,
    /// All layers whose attention is computed for all tokens.
    layers: Vec<(Mixer<S, L>, Rest<S, L>)>,
    /// The last layer, where it is computed for first tokens.
    absorbed: Option<(FirstToken<S>, Rest<S, L>)>,
    last: LastLayer,
    is_shared: bool,
    pool: Pool,
    final_norm: Option<Norm>,
    head: Head<S>,
    _attention: std::marker::PhantomData<A>,
}

impl<S: Simd, L: Dtype<S>, A: Float<S>> Stack<S, L, A> {
    /// Rows that go through the linear maps of a layer together: their activations stay in the second-level cache, and
    /// weights are read once for all of them. Tiles are so fast that weights from the third-level cache must serve more
    /// rows.
    const BLOCK: usize = if L::ON_TILES { 256 } else { 192 };
    /// Enough rows for the register tiles, few enough for the second-level cache.
    const CHUNK_TOKENS: usize = if L::ON_TILES { 256 } else { 128 };

    /// Packs a model's weights.
    pub fn new(simd: S, plan: &Plan) -> Self {
        let hidden = Width::plain(plan.hidden());
        let last = LastLayer::of(plan);
        let mut places = Places::of(simd, plan);
        let is_together = map_bytes(plan, L::GROUP) <= TOGETHER_BYTES_MAX;
        let mut layer = |block: &model::Block| {
            let (mut mixer, mut rest) = (Mixer::new::<A>(simd, block, &mut places), Rest::new(block));
            if !is_together {
                let [out, first, down] = rest.maps();
                lay_together(&mut [&mut mixer.projection, out, first, down]);
            }
            (mixer, rest)
        };
        let (final_block, others) = plan.blocks.split_last().expect("a model has a layer");
        let heads = Width::heads(final_block.attention.heads, final_block.attention.head_dim).as_heads();
        let is_absorbed = last == LastLayer::Absorbed;
        let table = |table: &model::Tensor| Table::new(&table.values(), plan.hidden());
        let model::Embed { words, positions, types, norm: embedding_norm } = &plan.embed;
        let mut stack = Self {
            simd,
            hidden: hidden.padded(),
            heads,
            kv_heads_max: plan.blocks.iter().map(|block| block.attention.kv_heads).max().unwrap_or(0),
            words: table(words),
            positions: positions.as_ref().map(|positions| table(&positions.table)),
            position_offset: positions.as_ref().map_or(0, |positions| positions.offset),
            types: types.as_ref().map(table),
            embedding_norm: embedding_norm.as_ref().map(norm),
            norms: final_block.norms,
            layers: others.iter().chain((!is_absorbed).then_some(final_block)).map(&mut layer).collect(),
            absorbed: is_absorbed.then(|| {
                (FirstToken::new(heads, &projections(&final_block.attention)), Rest::new(final_block))
            }),
            last,
            is_shared: plan.head.at == Pool::Last
                && plan.blocks.iter().all(|block| block.attention.reach == Reach::Causal),
            pool: plan.head.at,
            final_norm: plan.final_norm.as_ref().map(norm),
            head: head(&plan.head, hidden),
            _attention: std::marker::PhantomData,
        };
        if is_together {
            let layers = stack
                .layers
                .iter_mut()
                .flat_map(|(mixer, rest)| std::iter::once(&mut mixer.projection).chain(rest.maps()));
            let last = stack.absorbed.iter_mut().flat_map(|(_, rest)| rest.maps());
            lay_together(&mut layers.chain(last).collect::<Vec<_>>());
        }
        stack
    }

    fn embed(&self, batch: &Packed, spans: &[Span], states: &mut [f32]) {
        let mut states = states;
        for span in spans {
            let (rows, rest) = states.split_at_mut(span.tokens.len() * self.hidden);
            let (ids, types) = (&batch.ids()[span.tokens.clone()], &batch.types()[span.tokens.clone()]);
            let tables = (&self.words, self.positions.as_ref(), self.types.as_ref());
            embed(self.simd, tables, (ids, types), self.position_offset + span.place(), rows);
            states = rest;
        }
    }

    /// Writes the embeddings as the first layer's maps read them.
    fn begin(&self, states: &mut [f32], input: &mut Operand, row: &mut Buffer) {
        let simd = self.simd;
        match (&self.embedding_norm, self.norms) {
            (Some(norm), Norms::Post) => layer_norm_into::<S, L>(simd, norm, states, (input, 0)),
            (norm, Norms::Pre) => {
                if let Some(norm) = norm {
                    layer_norm(simd, norm, states);
                }
                read_states::<S, L>(simd, self.input_norm(0), states, (input, 0), row);
            }
            (None, Norms::Post) => read_states::<S, L>(simd, None, states, (input, 0), row),
        }
    }

    /// Words of a row of queries, keys and values.
    fn stride(&self) -> usize {
        (self.heads.width() + 2 * self.kv_heads_max * self.heads.size) / A::GROUP + GAP
    }

    /// Attends from a span's rows of queries, keys and values, which begin `words`; its contexts go into an operand from a
    /// row on. Of a prefix the last layer needs keys and values only.
    fn attend(
        &self,
        layer: usize,
        span: &Span,
        words: &mut [u32],
        scratch: &mut Scratch,
        context: (&mut Operand, usize),
    ) {
        let (mixer, stride) = (&self.layers[layer].0, self.stride());
        let (tokens, kv_heads, reach) = (span.tokens.len(), mixer.kv_heads, mixer.reach);
        let own = &mut words[..tokens * stride];
        if let Some(rotation) = &mixer.rotation {
            rotate::<S, A>(self.simd, rotation, (own, stride), span.place(), [self.heads.count, kv_heads]);
        }
        if let End::Prefix(prefix) = &span.end {
            let [queries, keys] =
                [self.heads.count, 2 * kv_heads].map(|heads| heads * self.heads.size / A::GROUP);
            prefix.set(layer, (own, stride), (queries, keys), GAP);
            if layer + 1 == self.layers.len() {
                return;
            }
        }
        let mut before = Vec::new();
        if let Some(shared) = &span.before {
            shared.read(layer, &mut before);
        }
        let distances = mixer.distances.as_ref();
        let projected = Projected { words, stride, tokens, before: &before, kv_heads, reach, distances };
        attention::<S, A>(self.simd, projected, self.heads, scratch, context);
    }

    /// The norm of a layer's input, where layers norm their input.
    fn input_norm(&self, layer: usize) -> Option<&Norm> {
        self.layers.get(layer).and_then(|(mixer, _)| mixer.norm.as_ref())
    }

    /// Appends what the head reads of complete states.
    fn pool(&self, states: &[f32], starts: &[usize], pooled: &mut Vec<f32>) {
        let hidden = self.hidden;
        for bounds in starts.windows(2) {
            let rows = &states[bounds[0] * hidden..bounds[1] * hidden];
            let start = pooled.len();
            pooled.resize(start + hidden, 0.0);
            let to = &mut pooled[start..];
            for row in rows.chunks_exact(hidden) {
                to.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            let count = (bounds[1] - bounds[0]) as f32;
            to.iter_mut().for_each(|sum| *sum /= count);
        }
    }
}

impl<S: Simd, L: Dtype<S>, A: Float<S>> Forward for Stack<S, L, A> {
    fn chunk(&self, batch: &Packed, spans: &[Span], workspace: &mut Workspace) {
        let (simd, hidden, width, stride) = (self.simd, self.hidden, self.heads.width(), self.stride());
        let mut local = vec![0];
        for span in spans {
            local.push(local[local.len() - 1] + span.tokens.len());
        }
        let tokens = local[spans.len()];
        let Workspace {
            states,
            input,
            qkv,
            context,
            attention: scratch,
            operands,
            row,
            pooled,
            pooled_contexts,
            first,
            ..
        } = workspace;
        states.grow(tokens * hidden);
        input.shape::<S, L>(tokens, hidden);
        qkv.grow((tokens + BEYOND) * stride);
        context.shape::<S, A>(tokens, width);
        let states = &mut states.floats_mut()[..tokens * hidden];
        let blocks = || (0..tokens).step_by(Self::BLOCK).map(move |row| row..tokens.min(row + Self::BLOCK));
        // Contexts are read as they are where the maps are in the same dtype.
        let is_same = TypeId::of::<L>() == TypeId::of::<A>();

        self.embed(batch, spans, states);
        self.begin(states, input, row);
        for (layer, (mixer, rest)) in self.layers.iter().enumerate() {
            for rows in blocks() {
                let to = &mut qkv.words_mut()[rows.start * stride..rows.end * stride];
                linear(simd, input.range(rows), &mixer.projection, Keep::<A>::new(to, stride));
            }
            for (span, &row) in spans.iter().zip(&local) {
                self.attend(layer, span, &mut qkv.words_mut()[row * stride..], scratch, (context, row));
            }
            let is_last = layer + 1 == self.layers.len();
            if is_last && self.last == LastLayer::One {
                for (span, bounds) in spans.iter().zip(local.windows(2)) {
                    if matches!(span.end, End::Prefix(_)) {
                        continue;
                    }
                    let row = if self.pool == Pool::First { bounds[0] } else { bounds[1] - 1 };
                    context.read_row::<S, A>(simd, row, pooled_contexts);
                    pooled.extend_from_slice(&states[row * hidden..][..hidden]);
                }
                return;
            }
            for rows in blocks() {
                let states = &mut states[rows.start * hidden..rows.end * hidden];
                let (row, norm) = (rows.start, self.input_norm(layer + 1));
                let next = (!is_last).then_some(NextInput { operand: &mut *input, row, norm });
                let mut own = std::mem::take(&mut operands.context);
                let context = context.range(rows);
                let context = if is_same {
                    context
                } else {
                    own.fill_from::<S, L, A>(simd, context);
                    own.all()
                };
                rest.run::<A>(simd, states, context, (operands, next));
                operands.context = own;
            }
        }
        match &self.absorbed {
            Some((attention, _)) => {
                first_token_attention(simd, attention, (states, &local), first, pooled_contexts);
                for &row in &local[..local.len() - 1] {
                    pooled.extend_from_slice(&states[row * hidden..][..hidden]);
                }
            }
            None => {
                if let Some(norm) = &self.final_norm {
                    layer_norm(simd, norm, states);
                }
                self.pool(states, &local, pooled);
            }
        }
    }

    fn chunk_tokens(&self) -> usize {
        if self.is_shared { SHARED_CHUNK_TOKENS } else { Self::CHUNK_TOKENS }
    }

    fn sharing(&self) -> Option<Sharing> {
        let words = |kv_heads: usize| 2 * kv_heads * self.heads.size / A::GROUP + GAP;
        let words: usize = self.layers.iter().map(|(mixer, _)| words(mixer.kv_heads)).sum();
        self.is_shared.then_some(Sharing { layers: self.layers.len(), token_bytes: words * size_of::<u32>() })
    }

    fn finish(&self, workspace: &mut Workspace) -> Vec<f32> {
        let Workspace { operands, pooled, pooled_contexts, head, .. } = workspace;
        let mut logits = vec![0.0; pooled.len() / self.hidden];
        let rest = match self.last {
            LastLayer::Absorbed => self.absorbed.as_ref().map(|(_, rest)| rest),
            LastLayer::One => self.layers.last().map(|(_, rest)| rest),
            LastLayer::Full => None,
        };
        let blocks = pooled.chunks_mut(Self::BLOCK * self.hidden).zip(logits.chunks_mut(Self::BLOCK));
        for (block, (states, logits)) in blocks.enumerate() {
            if let Some(rest) = rest {
                let width = self.heads.width();
                let mut own = std::mem::take(&mut operands.context);
                let contexts = &pooled_contexts[block * Self::BLOCK * width..][..logits.len() * width];
                own.fill::<S, L>(self.simd, contexts, width);
                rest.run::<A>(self.simd, states, own.all(), (operands, None));
                operands.context = own;
                if let Some(norm) = &self.final_norm {
                    layer_norm(self.simd, norm, states);
                }
            }
            self.head.logits(self.simd, states, head, logits);
        }
        workspace.forget();
        logits
    }
}

/// Packs a model's head.
fn head<S: Simd>(head: &model::Head, hidden: Width) -> Head<S> {
    let dense = head.dense.as_ref().map(|(map, activation)| (pad(map, hidden, hidden, 1.0), *activation));
    let dense = dense.as_ref().map(|(map, activation)| (map, *activation));
    let (weight, bias) = score_weights(&head.score);
    Head::new(dense, head.norm.as_ref().map(norm), &weight, bias)
}
