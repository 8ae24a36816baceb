//! A model's weights on a device, and its forward.

use super::arena::{Arena, Sizes};
use super::load::Loader;
use crate::backend::lower::LastLayer;
use crate::model::{Plan, Pool};
use crate::ops::cuda::{
    Array, Bucket, Device, DeviceError, Embeddings, Half, Head, Launcher, Linear, Mixing, Norm, Rotation,
    Rows, Scoring,
};
use crate::ops::{Activation, Gelu};

/// A model on a device.
pub(super) struct Stack<D: Device> {
    pub sizes: Sizes,
    pub embeddings: Embeddings<D>,
    pub embedding_norm: Option<Norm<D>>,
    /// Cosines and sines of places, one pair for each base of rotary positions: `[places, size / 2]` f32.
    pub angles: Vec<[Array<D>; 2]>,
    pub places: usize,
    /// All layers whose attention is computed for all tokens.
    pub layers: Vec<(Mixer<D>, Rest<D>)>,
    pub last: Last<D>,
    pub pool: Pool,
    pub final_norm: Option<Norm<D>>,
    pub head: Reading<D>,
}

/// What comes before a layer's attention.
pub(super) struct Mixer<D: Device> {
    /// Of the states, where the layer norms its input.
    pub norm: Option<Norm<D>>,
    /// To queries, keys and values.
    pub projection: Linear<D>,
    pub rotation: Option<Rotated<D>>,
    pub mixing: Mixing,
}

/// What is done to queries and keys.
pub(super) struct Rotated<D: Device> {
    /// The place of its angles in the stack.
    pub angles: usize,
    /// The gains of norms of queries and keys, and what is added to mean squares.
    pub norms: Option<([Array<D>; 2], f32)>,
    pub head_dim: usize,
}

/// What follows a layer's attention. The maps have no bias; the operation after each map adds it in f32.
pub(super) struct Rest<D: Device> {
    pub out: Linear<D>,
    pub out_bias: Option<Array<D>>,
    pub norms: RestNorms<D>,
    /// To the inner activations, or to those and before them to their gate.
    pub up: Linear<D>,
    pub up_bias: Option<Array<D>>,
    pub activation: Inner,
    /// Of the inner activations.
    pub width: usize,
    pub down: Linear<D>,
    pub down_bias: Option<Array<D>>,
}

/// The norms that follow a layer's attention.
pub(super) enum RestNorms<D: Device> {
    /// After attention, and after the feed-forward part.
    Post([Norm<D>; 2]),
    /// Of the feed-forward part's input.
    Pre(Norm<D>),
}

/// How a feed-forward part is activated.
#[derive(Clone, Copy)]
pub(super) enum Inner {
    Plain(Gelu),
    Gated(Activation),
}

/// The last layer.
pub(super) enum Last<D: Device> {
    Absorbed(Box<Absorbed<D>>),
    /// Among the others; what follows its attention is computed for the token that the head reads.
    One,
    /// Among the others.
    Full,
}

/// A last layer that is computed for first tokens only: keys are absorbed into queries, values applied to mixed states.
pub(super) struct Absorbed<D: Device> {
    pub query: Linear<D>,
    pub key: Linear<D>,
    pub value: Linear<D>,
    pub mixing: Mixing,
    pub rest: Rest<D>,
}

/// From the row that a head reads to the logit.
pub(super) enum Reading<D: Device> {
    Pooled(Head<D>),
    Scoring(Scoring<D>),
}

impl<D: Device> Rest<D> {
    /// Whether it norms the feed-forward part's input into a buffer of its own.
    pub fn is_pre(&self) -> bool {
        matches!(self.norms, RestNorms::Pre(_))
    }
}

/// What reads a layer's output.
struct Next<'a, D: Device> {
    map: Option<&'a Linear<D>>,
    norm: Option<&'a Norm<D>>,
}

/// The largest input magnitude of each map of a layer, in order: qkv, attention output, up, down.
pub(super) type InputMaxima = [f32; 4];

/// Called with the input of each map of all layers but the last: `[tokens, width]` in the half type, and the width.
pub(super) type Observe<'a, D> = dyn FnMut(&Array<D>, usize) -> Result<(), DeviceError> + 'a;

impl<D: Device> Stack<D> {
    /// Copies weights to a device. If the input maxima are given, the maps of all layers but the last are in E4M3; only
    /// plans with [`crate::backend::has_fp8`] may have them.
    pub fn load(
        device: &D,
        plan: &Plan,
        half: Half,
        maxima: Option<&[InputMaxima]>,
    ) -> Result<Self, DeviceError> {
        let mut loader = Loader::new(device, plan, half);
        let last_layer = LastLayer::on_gpu(plan);
        let (final_block, others) = plan.blocks.split_last().expect("a model has a layer");
        let is_absorbed = last_layer == LastLayer::Absorbed;
        let full = others.iter().chain((!is_absorbed).then_some(final_block)).enumerate();
        let layers = full.map(|(index, block)| loader.layer(block, maxima.map(|maxima| maxima[index])));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let last = match last_layer {
            LastLayer::Absorbed => Last::Absorbed(Box::new(loader.absorbed(final_block)?)),
            LastLayer::One => Last::One,
            LastLayer::Full => Last::Full,
        };
        let mut stack = Self {
            sizes: Sizes::default(),
            embeddings: loader.embeddings()?,
            embedding_norm: plan.embed.norm.as_ref().map(|norm| loader.norm(norm)).transpose()?,
            layers,
            last,
            pool: plan.head.at,
            final_norm: plan.final_norm.as_ref().map(|norm| loader.norm(norm)).transpose()?,
            head: loader.head()?,
            places: plan.tokens_max as usize,
            angles: loader.angles(),
        };
        stack.sizes = Sizes::of(&stack);
        Ok(stack)
    }

    /// Whether its maps are in E4M3.
    pub fn is_fp8(&self) -> bool {
        self.layers.first().is_some_and(|(mixer, _)| mixer.projection.scales.is_some())
    }

    /// Buffers for batches up to this bucket.
    pub fn arena(&self, device: &D, largest: Bucket) -> Result<Arena<D>, DeviceError> {
        Arena::new(device, self.sizes, self.is_fp8(), largest)
    }

    /// Queues the forward of the launcher's batch into the arena's logits. `observe` is called with each map's input once
    /// the operation that writes it is queued.
    pub fn forward(
        &self,
        launcher: &Launcher<'_, D>,
        arena: &Arena<D>,
        observe: &mut Observe<'_, D>,
    ) -> Result<(), DeviceError> {
        let Arena { states, qkv, context, read, .. } = arena;
        let hidden = self.sizes.hidden;
        let first = self.layers.first();
        let quantised = arena.quantised(first.map(|(mixer, _)| &mixer.projection), |fp8| &fp8.states);
        launcher.embed(&self.embeddings, self.embedding_norm.as_ref(), states, quantised.as_ref())?;
        if let Some(norm) = first.and_then(|(mixer, _)| mixer.norm.as_ref()) {
            launcher.add_and_norm(Rows::Tokens, (states, hidden), None, Some((norm, arena.normed())))?;
        }
        for (index, (mixer, rest)) in self.layers.iter().enumerate() {
            let Mixer { norm, projection, rotation, mixing } = mixer;
            let input = if norm.is_some() { arena.normed() } else { states };
            observe(input, hidden)?;
            let input = arena.input(projection, input, |fp8| &fp8.states);
            launcher.linear(Rows::Tokens, projection, input, qkv)?;
            if let Some(rotated) = rotation {
                launcher.rotate(qkv, *mixing, &self.rotation(rotated))?;
            }
            let quantised = arena.quantised(Some(&rest.out), |fp8| &fp8.context);
            launcher.attention(qkv, context, *mixing, quantised.as_ref())?;
            let width = mixing.heads.width();
            let is_last = index + 1 == self.layers.len();
            let next = self.next(index);
            if is_last && matches!(self.last, Last::One) {
                // The contexts that are read take the place of queries, keys and values.
                self.pick(launcher, context, width, qkv)?;
                self.pick(launcher, states, hidden, read)?;
                self.rest((launcher, Rows::Sequences), (rest, qkv), &next, arena, &mut |_, _| Ok(()))?;
            } else {
                observe(context, width)?;
                self.rest((launcher, Rows::Tokens), (rest, context), &next, arena, observe)?;
            }
        }
        if let Last::Absorbed(absorbed_layer) = &self.last {
            let Absorbed { query, key, value, mixing, rest } = &**absorbed_layer;
            // The queries of first tokens take the place of queries, keys and values.
            let [absorbed, mixed] = arena.absorbed();
            launcher.first_rows(states, hidden, read)?;
            launcher.linear(Rows::Sequences, query, read, qkv)?;
            launcher.absorb_keys(qkv, key, absorbed, mixing.heads)?;
            launcher.first_token((absorbed, states), mixed, (mixing.heads.count, hidden))?;
            launcher.apply_values(mixed, value, context, mixing.heads)?;
            let next = Next { map: None, norm: self.final_norm.as_ref() };
            self.rest((launcher, Rows::Sequences), (rest, context), &next, arena, &mut |_, _| Ok(()))?;
        }
        let is_normed = self.final_norm.is_some();
        let rows = match self.last {
            Last::Full => {
                launcher.mean_rows(if is_normed { arena.normed() } else { states }, hidden, read)?;
                read
            }
            Last::One | Last::Absorbed(_) if is_normed => arena.normed(),
            Last::One | Last::Absorbed(_) => read,
        };
        match &self.head {
            Reading::Pooled(head) => launcher.head(rows, head, arena.head(), &arena.logits),
            Reading::Scoring(head) => {
                let mapped = head.dense.as_ref().map(|_| arena.head());
                launcher.score(rows, head, mapped, &arena.logits)
            }
        }
    }

    /// What reads the output of a layer that is computed for all tokens.
    fn next(&self, index: usize) -> Next<'_, D> {
        match (self.layers.get(index + 1), &self.last) {
            (Some((mixer, _)), _) => Next { map: Some(&mixer.projection), norm: mixer.norm.as_ref() },
            (None, Last::Absorbed(_)) => Next { map: None, norm: None },
            (None, Last::One | Last::Full) => Next { map: None, norm: self.final_norm.as_ref() },
        }
    }

    fn rotation<'a>(&'a self, rotated: &'a Rotated<D>) -> Rotation<'a, D> {
        let Rotated { angles, norms, head_dim } = rotated;
        Rotation {
            angles: self.angles[*angles].each_ref(),
            places: self.places,
            norms: norms.as_ref().map(|(gains, epsilon)| (gains, *epsilon)),
            head_dim: *head_dim,
        }
    }

    /// Copies the rows of the tokens that the head reads.
    fn pick(
        &self,
        launcher: &Launcher<'_, D>,
        from: &Array<D>,
        width: usize,
        to: &Array<D>,
    ) -> Result<(), DeviceError> {
        match self.pool {
            Pool::First => launcher.first_rows(from, width, to),
            Pool::Last => launcher.last_rows(from, width, to),
            Pool::Mean => unreachable!("a head that reads the mean needs all rows"),
        }
    }

    /// From contexts to the layer's output, for all tokens or those that are read.
    fn rest(
        &self,
        (launcher, rows): (&Launcher<'_, D>, Rows),
        (rest, context): (&Rest<D>, &Array<D>),
        next: &Next<'_, D>,
        arena: &Arena<D>,
        observe: &mut Observe<'_, D>,
    ) -> Result<(), DeviceError> {
        let Arena { update, inner, .. } = arena;
        let Rest { out, norms, up, down, width, .. } = rest;
        let hidden = self.sizes.hidden;
        let states = if rows == Rows::Tokens { &arena.states } else { &arena.read };
        let out_bias = rest.out_bias.as_ref();
        launcher.linear(rows, out, arena.input(out, context, |fp8| &fp8.context), update)?;
        let input = match norms {
            RestNorms::Post([norm, _]) => {
                let quantised = arena.quantised(Some(up), |fp8| &fp8.states);
                launcher.add_layer_norm(rows, (states, update), out_bias, norm, quantised.as_ref())?;
                states
            }
            RestNorms::Pre(norm) => {
                let normed = arena.normed();
                let update = Some((update, out_bias));
                launcher.add_and_norm(rows, (states, hidden), update, Some((norm, normed)))?;
                normed
            }
        };
        observe(input, hidden)?;
        let input = arena.input(up, input, |fp8| &fp8.states);
        let up_bias = rest.up_bias.as_ref();
        match rest.activation {
            Inner::Plain(gelu) => {
                launcher.linear(rows, up, input, inner)?;
                let quantised = arena.quantised(Some(down), |fp8| &fp8.inner);
                launcher.gelu(rows, inner, (up_bias, *width), gelu, quantised.as_ref())?;
            }
            Inner::Gated(activation) => {
                launcher.linear(rows, up, input, arena.both())?;
                launcher.gate(rows, (arena.both(), up_bias), activation, (inner, *width))?;
            }
        }
        observe(inner, *width)?;
        launcher.linear(rows, down, arena.input(down, inner, |fp8| &fp8.inner), update)?;
        let down_bias = rest.down_bias.as_ref();
        let norm = next.norm.map(|norm| (norm, arena.normed()));
        match norms {
            RestNorms::Post([_, own]) => {
                let quantised = arena.quantised(next.map, |fp8| &fp8.states);
                launcher.add_layer_norm(rows, (states, update), down_bias, own, quantised.as_ref())?;
                match norm {
                    Some(norm) => launcher.add_and_norm(rows, (states, hidden), None, Some(norm)),
                    None => Ok(()),
                }
            }
            RestNorms::Pre(_) => {
                launcher.add_and_norm(rows, (states, hidden), Some((update, down_bias)), norm)
            }
        }
    }
}
