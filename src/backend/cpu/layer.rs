//! The parts of a layer, packed for one kind of processor.

use super::relative::Embeddings;
use crate::backend::layout::{Width, absorb, join, pad, projections, softmax_scale, spread};
use crate::model::{self, NormKind, Norms, Plan};
use crate::ops::{
    Activation, AddTo, Angles, Buffer, Distances, Dtype, Float, Gelu, Input, Keep, Linear, Norm, Operand,
    Reach, Rotation, Rows, ScaleAndAddTo, Simd, gate, layer_norm, layer_norm_into, linear, norm_into,
};
use std::sync::Arc;

/// Words between the rows of what a map gives, beyond what they hold.
pub(super) const GAP: usize = 16;

/// What comes before a layer's attention.
pub(super) struct Mixer<S, L> {
    /// Of the states, where a layer norms its input.
    pub norm: Option<Norm>,
    /// To queries, keys and values; queries scaled for a softmax in powers of two.
    pub projection: Linear<S, L>,
    pub rotation: Option<Rotation>,
    pub kv_heads: usize,
    pub reach: Reach,
    /// What distances add to scores.
    pub distances: Option<Distances>,
}

/// What follows a layer's attention.
pub(super) struct Rest<S, L> {
    out: Linear<S, L>,
    norms: RestNorms,
    feed_forward: FeedForward<S, L>,
}

/// The norms of a layer that follow its attention.
enum RestNorms {
    /// The first norm's gain and bias are in the maps that read it, and its gain in the residual too: a few gains are
    /// large, and would leave bytes little for the other values (Wei et al. 2022, "gamma migration"). The second norm's
    /// gains are small where its values are large, and stay.
    Post { attention: Norm, gain: Buffer, feed_forward: Norm },
    /// Of the feed-forward part's input.
    Pre(Norm),
}

enum FeedForward<S, L> {
    Plain {
        up: Linear<S, L>,
        gelu: Gelu,
        down: Linear<S, L>,
    },
    /// The gate and what it multiplies come out of one map.
    Gated {
        both: Linear<S, L>,
        activation: Activation,
        down: Linear<S, L>,
    },
}

/// Where the next layer reads its input.
pub(super) struct NextInput<'a> {
    pub operand: &'a mut Operand,
    /// The operand's first row for these states.
    pub row: usize,
    /// Of the states, if that layer norms its input.
    pub norm: Option<&'a Norm>,
}

/// The operands of a layer's maps.
#[derive(Default)]
pub(super) struct Operands {
    pub context: Operand,
    input: Operand,
    staging: Operand,
    halves: Buffer,
    inner: Operand,
    row: Buffer,
}

/// What layers share of a model's positions.
pub(super) struct Places {
    tokens_max: usize,
    /// One table of angles for each base.
    angles: Vec<(Vec<f32>, Arc<Angles>)>,
    embeddings: Option<Embeddings>,
}

impl Places {
    pub fn of<S: Simd>(simd: S, plan: &Plan) -> Self {
        let tokens_max = plan.tokens_max as usize;
        Self { tokens_max, angles: Vec::new(), embeddings: Embeddings::of(simd, plan) }
    }

    fn angles(&mut self, frequencies: Vec<f32>) -> Arc<Angles> {
        if let Some((_, angles)) = self.angles.iter().find(|(known, _)| *known == frequencies) {
            return angles.clone();
        }
        let angles = Arc::new(Angles::new(&frequencies, self.tokens_max));
        self.angles.push((frequencies, angles.clone()));
        angles
    }
}

impl<S: Simd, L: Dtype<S>> Mixer<S, L> {
    /// Packs what comes before a layer's attention, which is in `A`.
    pub fn new<A: Float<S>>(simd: S, block: &model::Block, places: &mut Places) -> Self {
        let attention = &block.attention;
        let rotation = attention.rope.map(|rope| {
            let angles = places.angles(rope.frequencies(attention.head_dim));
            let rotation = Rotation::new(angles);
            let Some([query, key]) = &attention.query_key_norms else { return rotation };
            let head = Width::rotated(1, attention.head_dim);
            let gains = [(query, softmax_scale(attention)), (key, 1.0)];
            let [query_gain, key_gain] =
                gains.map(|(norm, factor)| spread(&norm.gain.values(), head, factor));
            rotation.with_norms([&query_gain, &key_gain], query.eps)
        });
        Self {
            norm: block.attention_norm.as_ref().filter(|_| block.norms == Norms::Pre).map(norm),
            projection: Linear::pack(&join(projections(attention)), Input::Signed),
            rotation,
            kv_heads: attention.kv_heads,
            reach: attention.reach,
            distances: places.embeddings.as_ref().and_then(|all| all.of_layer::<S, A>(simd, attention)),
        }
    }
}

impl<S: Simd, L: Dtype<S>> Rest<S, L> {
    /// Packs what follows a layer's attention.
    pub fn new(block: &model::Block) -> Self {
        let model::FeedForward { activation, gate, up, down } = &block.feed_forward;
        let (hidden, inner) = (Width::plain(up.inputs()), Width::plain(up.outputs()));
        let heads = Width::heads(block.attention.heads, block.attention.head_dim);
        let post_norm = block.attention_norm.as_ref().filter(|_| block.norms == Norms::Post);
        let norms = match post_norm {
            None => RestNorms::Pre(norm(&block.feed_forward_norm)),
            Some(first) => {
                let gain = Buffer::of(&spread(&first.gain.values(), hidden, 1.0));
                let feed_forward = norm(&block.feed_forward_norm);
                RestNorms::Post { attention: without_gain(first), gain, feed_forward }
            }
        };
        // One map after the other is read and packed, so that no two are in memory in f32.
        let pack_down = |input: Input| {
            let mut down = pad(down, hidden, inner, 1.0);
            let biases = post_norm.map_or_else(Vec::new, model::Norm::bias_values);
            down.bias.iter_mut().zip(biases).for_each(|(bias, first)| *bias += first);
            Linear::pack(&down, input)
        };
        let map = |map: &model::Linear| match post_norm {
            Some(first) => pad(&absorb(first, map), inner, hidden, 1.0),
            None => pad(map, inner, hidden, 1.0),
        };
        let feed_forward = match (gate, activation) {
            (Some(gate), &activation) => FeedForward::Gated {
                both: Linear::pack(&join([map(gate), map(up)]), Input::Signed),
                activation,
                down: pack_down(Input::Signed),
            },
            (None, &Activation::Gelu(gelu)) => FeedForward::Plain {
                up: Linear::pack(&map(up), Input::Signed),
                gelu,
                down: pack_down(Input::Activated),
            },
            (None, Activation::Silu | Activation::Tanh) => unreachable!("`lower::check` refuses it"),
        };
        Self {
            out: Linear::pack(&pad(&block.attention.out, hidden, heads, 1.0), Input::Signed),
            norms,
            feed_forward,
        }
    }

    /// Its maps, in the order in which they are read.
    pub fn maps(&mut self) -> [&mut Linear<S, L>; 3] {
        match &mut self.feed_forward {
            FeedForward::Plain { up: first, down, .. } | FeedForward::Gated { both: first, down, .. } => {
                [&mut self.out, first, down]
            }
        }
    }

    /// From contexts to the layer's output, `states: [rows, hidden]`, and into the next layer's input from a row on,
    /// normed where that layer norms its input.
    pub fn run<A: Float<S>>(
        &self,
        simd: S,
        states: &mut [f32],
        context: Rows<'_>,
        (operands, next): (&mut Operands, Option<NextInput<'_>>),
    ) {
        let hidden = states.len() / context.count();
        linear(simd, context, &self.out, AddTo::new(states, hidden));
        operands.input.shape::<S, L>(states.len() / hidden, hidden);
        let place = (&mut operands.input, 0);
        match &self.norms {
            RestNorms::Post { attention, gain, feed_forward } => {
                layer_norm_into::<S, L>(simd, attention, states, place);
                let down = self.feed_forward.run::<A>(simd, operands);
                let gain = &gain.floats()[..hidden];
                linear(simd, operands.inner.all(), down, ScaleAndAddTo::new(states, gain));
                match next {
                    Some(NextInput { operand, row, .. }) => {
                        layer_norm_into::<S, L>(simd, feed_forward, states, (operand, row));
                    }
                    None => layer_norm(simd, feed_forward, states),
                }
            }
            RestNorms::Pre(norm) => {
                norm_into::<S, L>(simd, norm, states, place, &mut operands.row);
                let down = self.feed_forward.run::<A>(simd, operands);
                linear(simd, operands.inner.all(), down, AddTo::new(states, hidden));
                if let Some(NextInput { operand, row, norm }) = next {
                    read_states::<S, L>(simd, norm, states, (operand, row), &mut operands.row);
                }
            }
        }
    }
}

impl<S: Simd, L: Dtype<S>> FeedForward<S, L> {
    /// From the input to the inner activations; the map that reads them.
    fn run<A: Float<S>>(&self, simd: S, operands: &mut Operands) -> &Linear<S, L> {
        let Operands { input, staging, halves, inner, row, .. } = operands;
        match self {
            Self::Plain { up, gelu, down } => {
                L::activate::<A>(simd, input.all(), up, *gelu, (staging, inner));
                down
            }
            Self::Gated { both, activation, down } => {
                let (rows, width) = (input.all().count(), both.outputs() / 2);
                let stride = both.outputs() / A::GROUP + GAP;
                halves.grow(rows * stride);
                let words = &mut halves.words_mut()[..rows * stride];
                linear(simd, input.all(), both, Keep::<A>::new(words, stride));
                gate::<S, L, A>(simd, (words, stride), (rows, width), *activation, (row, inner));
                down
            }
        }
    }
}

/// Writes states as the next layer's maps read them: normed, or as they are.
pub(super) fn read_states<S: Simd, L: Dtype<S>>(
    simd: S,
    norm: Option<&Norm>,
    states: &[f32],
    (operand, row): (&mut Operand, usize),
    scratch: &mut Buffer,
) {
    match norm {
        Some(norm) => norm_into::<S, L>(simd, norm, states, (operand, row), scratch),
        None => operand.fill_at::<S, L>(simd, states, row),
    }
}

/// A norm with its gain and bias.
pub(super) fn norm(norm: &model::Norm) -> Norm {
    match norm.kind {
        NormKind::Layer => Norm::new(&norm.gain.values(), &norm.bias_values(), norm.eps),
        NormKind::Rms => Norm::root_mean_square(&norm.gain.values(), norm.eps),
    }
}

/// The same norm, for maps that have taken over its gain and bias.
fn without_gain(norm: &model::Norm) -> Norm {
    let ones = vec![1.0; norm.gain.count()];
    match norm.kind {
        NormKind::Layer => Norm::new(&ones, &vec![0.0; ones.len()], norm.eps),
        NormKind::Rms => Norm::root_mean_square(&ones, norm.eps),
    }
}
