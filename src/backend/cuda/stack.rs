//! An encoder's weights on a device, the memory that a batch goes through, and its forward.

use crate::backend::layout::{Width, join, pad};
use crate::model::{Encoder, Layer, Norm as NormWeights, Weights};
use crate::ops::cuda::{
    Array, Bucket, Device, DeviceError, Embeddings, Half, Head, Launcher, Linear, Norm, Quantised, Rows,
    Scales, e4m3,
};
use crate::ops::{Dense, Gelu, Heads};
use std::f32::consts::LOG2_E;

/// An encoder on a device.
pub(super) struct Stack<D: Device> {
    shape: Widths,
    gelu: Gelu,
    embeddings: Embeddings<D>,
    embedding_norm: Norm<D>,
    /// All layers but the last.
    full: Vec<(Linear<D>, Rest<D>)>,
    last: Last<D>,
    head: Head<D>,
}

/// Widths of rows, with padding.
#[derive(Clone, Copy)]
struct Widths {
    hidden: usize,
    heads: Heads,
    inner: usize,
}

/// The last layer, for first tokens alone: keys absorbed into queries, values into contexts.
struct Last<D: Device> {
    query: Linear<D>,
    key: Linear<D>,
    value: Linear<D>,
    rest: Rest<D>,
}

/// What follows a layer's attention; maps without their biases, which the next operations add in f32.
struct Rest<D: Device> {
    out: Linear<D>,
    out_bias: Array<D>,
    attention_norm: Norm<D>,
    up: Linear<D>,
    up_bias: Array<D>,
    down: Linear<D>,
    down_bias: Array<D>,
    out_norm: Norm<D>,
}

/// The largest magnitude that each map of a layer is given, in the order in which they come: from states to queries,
/// keys and values; from contexts; from states up; from the inner layer down.
pub(super) type Largest = [f32; 4];

/// Hears of the input of each map of all layers but the last: `[tokens, width]` halves.
pub(super) type Hear<'a, D> = dyn FnMut(&Array<D>, usize) -> Result<(), DeviceError> + 'a;

/// What batches of any bucket up to the largest go through; never allocated again.
pub(super) struct Arena<D: Device> {
    /// `[tokens, hidden]`.
    states: Array<D>,
    /// `[tokens, 3 heads]`.
    qkv: Array<D>,
    /// `[tokens, heads]`.
    context: Array<D>,
    /// `[tokens, hidden]`: what a layer norm adds.
    update: Array<D>,
    /// `[tokens, inner]`.
    inner: Array<D>,
    /// The maps' inputs in E4M3, where they read those.
    eight: Option<Eight<D>>,
    /// `[sequences, hidden]`.
    firsts: Array<D>,
    /// `[sequences, heads, hidden]` f32.
    absorbed: Array<D>,
    /// `[sequences, heads, hidden]`.
    mixed: Array<D>,
    /// `[sequences, hidden / 32]` f32: what outputs of the pooler add to logits.
    parts: Array<D>,
    /// `[sequences]` f32.
    pub logits: Array<D>,
}

/// States, contexts and the inner layer in E4M3, shaped as in halves.
struct Eight<D: Device> {
    states: Array<D>,
    context: Array<D>,
    inner: Array<D>,
}

/// Puts a model's parts on a device.
struct Loader<'a, D> {
    device: &'a D,
    half: Half,
    encoder: &'a Encoder,
    hidden: Width,
    heads: Width,
    inner: Width,
}

impl<D: Device> Stack<D> {
    /// Copies weights to a device; the maps of all layers but the last in E4M3, where the largest inputs of each are
    /// known.
    pub fn load(
        device: &D,
        (encoder, weights): (&Encoder, &Weights),
        half: Half,
        largest: Option<&[Largest]>,
    ) -> Result<Self, DeviceError> {
        let loader = Loader {
            device,
            half,
            encoder,
            hidden: Width::plain(encoder.hidden),
            heads: Width::heads(encoder.heads, encoder.hidden),
            inner: Width::plain(encoder.intermediate),
        };
        let (last, full) = weights.layers.split_last().expect("a model has a layer");
        let [query, key, value] = loader.projections(last);
        let full = full.iter().enumerate().map(|(index, layer)| {
            let largest = largest.map(|largest| largest[index]);
            let qkv = join(loader.projections(layer));
            let bias = Some(loader.halves(&qkv.bias)?);
            let qkv = Linear { bias, ..loader.map(&qkv, largest.map(|[qkv, ..]| qkv))? };
            Ok((qkv, loader.rest(layer, largest)?))
        });
        Ok(Self {
            shape: Widths {
                hidden: loader.hidden.padded(),
                heads: loader.heads.as_heads(),
                inner: loader.inner.padded(),
            },
            gelu: encoder.gelu,
            embeddings: loader.embeddings(weights)?,
            embedding_norm: loader.norm(&weights.embedding_norm)?,
            full: full.collect::<Result<_, DeviceError>>()?,
            last: Last {
                query: loader.biased(&query)?,
                key: loader.unbiased(&key)?,
                value: loader.unbiased(&value)?,
                rest: loader.rest(last, None)?,
            },
            head: loader.head(weights)?,
        })
    }

    /// Whether maps read E4M3.
    pub fn is_eight(&self) -> bool {
        self.full.first().is_some_and(|(qkv, _)| qkv.scales.is_some())
    }

    /// Memory for batches up to this bucket.
    pub fn arena(&self, device: &D, largest: Bucket) -> Result<Arena<D>, DeviceError> {
        let (tokens, sequences) = (largest.tokens as usize, largest.sequences as usize);
        let Widths { hidden, heads, inner, .. } = self.shape;
        let halves = |count: usize| Array::new(device, 2 * count);
        let eight = || -> Result<Eight<D>, DeviceError> {
            Ok(Eight {
                states: Array::new(device, tokens * hidden)?,
                context: Array::new(device, tokens * heads.width())?,
                inner: Array::new(device, tokens * inner)?,
            })
        };
        Ok(Arena {
            eight: self.is_eight().then(eight).transpose()?,
            states: halves(tokens * hidden)?,
            qkv: halves(tokens * 3 * heads.width())?,
            context: halves(tokens * heads.width())?,
            update: halves(tokens * hidden)?,
            inner: halves(tokens * inner)?,
            firsts: halves(sequences * hidden)?,
            absorbed: Array::new(device, 4 * sequences * heads.count * hidden)?,
            mixed: halves(sequences * heads.count * hidden)?,
            parts: Array::new(device, sequences * hidden / 8)?,
            logits: Array::new(device, 4 * sequences)?,
        })
    }

    /// Queues the forward of the launcher's batch, to the arena's logits; `hear` is told of inputs once they are queued.
    pub fn forward(
        &self,
        launcher: &Launcher<'_, D>,
        arena: &Arena<D>,
        hear: &mut Hear<'_, D>,
    ) -> Result<(), DeviceError> {
        let Arena { states, qkv, context, firsts, absorbed, mixed, parts, logits, .. } = arena;
        let Widths { hidden, heads, .. } = self.shape;
        let first =
            arena.quantised(self.full.first().map(|(projection, _)| projection), |eight| &eight.states);
        launcher.embed(&self.embeddings, &self.embedding_norm, states, first.as_ref())?;
        for (index, (projection, rest)) in self.full.iter().enumerate() {
            hear(states, hidden)?;
            launcher.linear(
                Rows::Tokens,
                projection,
                arena.input(projection, states, |eight| &eight.states),
                qkv,
            )?;
            let quantised = arena.quantised(Some(&rest.out), |eight| &eight.context);
            launcher.attention(qkv, context, heads, quantised.as_ref())?;
            hear(context, heads.width())?;
            let next = self.full.get(index + 1).map(|(projection, _)| projection);
            self.rest((launcher, Rows::Tokens), (rest, next), arena, hear)?;
        }
        let Last { query, key, value, rest } = &self.last;
        // Queries lie where those of all tokens did, and are read before contexts are written.
        launcher.first_rows(states, hidden, firsts)?;
        launcher.linear(Rows::Sequences, query, firsts, qkv)?;
        launcher.absorb(qkv, key, absorbed, heads)?;
        launcher.first_token((absorbed, states), mixed, (heads.count, hidden))?;
        launcher.release(mixed, value, context, heads)?;
        self.rest((launcher, Rows::Sequences), (rest, None), arena, &mut |_, _| Ok(()))?;
        launcher.head(firsts, &self.head, parts, logits)
    }

    /// From contexts to the layer's output, for all tokens or the first ones; `next` reads it.
    fn rest(
        &self,
        (launcher, rows): (&Launcher<'_, D>, Rows),
        (rest, next): (&Rest<D>, Option<&Linear<D>>),
        arena: &Arena<D>,
        hear: &mut Hear<'_, D>,
    ) -> Result<(), DeviceError> {
        let Arena { context, update, inner, .. } = arena;
        let Rest { out, up, down, .. } = rest;
        let states = if rows == Rows::Tokens { &arena.states } else { &arena.firsts };
        launcher.linear(rows, out, arena.input(out, context, |eight| &eight.context), update)?;
        let quantised = arena.quantised(Some(up), |eight| &eight.states);
        let norm = &rest.attention_norm;
        launcher.add_layer_norm(rows, (states, update), &rest.out_bias, norm, quantised.as_ref())?;
        hear(states, self.shape.hidden)?;
        launcher.linear(rows, up, arena.input(up, states, |eight| &eight.states), inner)?;
        let quantised = arena.quantised(Some(down), |eight| &eight.inner);
        let width = self.shape.inner;
        launcher.gelu(rows, inner, (&rest.up_bias, width), self.gelu, quantised.as_ref())?;
        hear(inner, width)?;
        launcher.linear(rows, down, arena.input(down, inner, |eight| &eight.inner), update)?;
        let quantised = arena.quantised(next, |eight| &eight.states);
        let norm = &rest.out_norm;
        launcher.add_layer_norm(rows, (states, update), &rest.down_bias, norm, quantised.as_ref())
    }
}

impl<D: Device> Arena<D> {
    /// What a map reads: its input in halves, or that in E4M3.
    fn input<'a>(
        &'a self,
        map: &Linear<D>,
        halves: &'a Array<D>,
        eight: impl Fn(&'a Eight<D>) -> &'a Array<D>,
    ) -> &'a Array<D> {
        self.eight.as_ref().filter(|_| map.scales.is_some()).map_or(halves, eight)
    }

    /// Where a map's input goes, if that reads E4M3.
    fn quantised<'a>(
        &'a self,
        map: Option<&'a Linear<D>>,
        eight: impl Fn(&'a Eight<D>) -> &'a Array<D>,
    ) -> Option<Quantised<'a, D>> {
        let factor = &map?.scales.as_ref()?.factor;
        Some(Quantised { to: eight(self.eight.as_ref()?), factor })
    }
}

impl<D: Device> Loader<'_, D> {
    /// To queries, keys and values; queries scaled for a softmax in powers of two. A key's bias adds the same to all
    /// scores of a query, and a value's goes into what follows (`rest`): both are left out.
    fn projections(&self, layer: &Layer) -> [Dense; 3] {
        let scale = LOG2_E / ((self.encoder.hidden / self.encoder.heads) as f32).sqrt();
        [(&layer.query, scale, 1.0), (&layer.key, 1.0, 0.0), (&layer.value, 1.0, 0.0)].map(
            |(map, factor, keep)| {
                let mut map = pad(map, self.heads, self.hidden, factor);
                map.bias.iter_mut().for_each(|bias| *bias *= keep);
                map
            },
        )
    }

    fn rest(&self, layer: &Layer, largest: Option<Largest>) -> Result<Rest<D>, DeviceError> {
        let mut out = pad(&layer.attention_out, self.hidden, self.heads, 1.0);
        // Weights of a softmax sum to one, so that a value's bias comes through it as it is.
        let value = pad(&layer.value, self.heads, self.hidden, 1.0).bias;
        for (bias, row) in out.bias.iter_mut().zip(out.weight.chunks_exact(out.inputs)) {
            *bias += row.iter().zip(&value).map(|(weight, value)| weight * value).sum::<f32>();
        }
        let up = pad(&layer.up, self.inner, self.hidden, 1.0);
        let down = pad(&layer.down, self.hidden, self.inner, 1.0);
        Ok(Rest {
            out: self.map(&out, largest.map(|[_, out, _, _]| out))?,
            out_bias: self.floats(&out.bias)?,
            attention_norm: self.norm(&layer.attention_norm)?,
            up: self.map(&up, largest.map(|[_, _, up, _]| up))?,
            up_bias: self.floats(&up.bias)?,
            down: self.map(&down, largest.map(|[.., down]| down))?,
            down_bias: self.floats(&down.bias)?,
            out_norm: self.norm(&layer.out_norm)?,
        })
    }

    fn embeddings(&self, weights: &Weights) -> Result<Embeddings<D>, DeviceError> {
        let (hidden, stride) = (self.encoder.hidden, self.hidden.padded());
        let table = |rows: &[f32]| {
            let mut padded = vec![0.0; rows.len() / hidden * stride];
            for (to, from) in padded.chunks_exact_mut(stride).zip(rows.chunks_exact(hidden)) {
                to[..hidden].copy_from_slice(from);
            }
            self.halves(&padded)
        };
        Ok(Embeddings {
            words: table(&weights.words)?,
            positions: table(&weights.positions)?,
            types: table(&weights.token_types)?,
            position_offset: self.encoder.position_offset as u32,
            rows: [self.encoder.vocabulary, self.encoder.positions, self.encoder.token_types],
        })
    }

    fn head(&self, weights: &Weights) -> Result<Head<D>, DeviceError> {
        let pooler = pad(&weights.pooler, self.hidden, self.hidden, 1.0);
        let stride = pooler.inputs;
        let turned: Vec<f32> = (0..stride * stride)
            .map(|place| pooler.weight[place % stride * stride + place / stride])
            .collect();
        Ok(Head {
            pooler: self.floats(&turned)?,
            pooler_bias: self.floats(&pooler.bias)?,
            classifier: self.padded(&weights.classifier.weight)?,
            classifier_bias: weights.classifier.bias[0],
            stride: self.hidden.padded(),
        })
    }

    fn norm(&self, norm: &NormWeights) -> Result<Norm<D>, DeviceError> {
        Ok(Norm {
            gain: self.padded(&norm.gain)?,
            bias: self.padded(&norm.bias)?,
            epsilon: self.encoder.layer_norm_eps as f32,
            hidden: self.encoder.hidden,
            stride: self.hidden.padded(),
        })
    }

    fn biased(&self, map: &Dense) -> Result<Linear<D>, DeviceError> {
        Ok(Linear { bias: Some(self.halves(&map.bias)?), ..self.unbiased(map)? })
    }

    fn unbiased(&self, map: &Dense) -> Result<Linear<D>, DeviceError> {
        self.map(map, None)
    }

    /// A map without its bias, in E4M3 where its largest input is known.
    fn map(&self, map: &Dense, largest: Option<f32>) -> Result<Linear<D>, DeviceError> {
        let (weight, scales) = match largest {
            None => (self.halves(&map.weight)?, None),
            Some(largest_input) => {
                let (bytes, largest_weight) = e4m3(&map.weight);
                let scales = Scales::new(self.device, largest_input, largest_weight)?;
                (Array::of_bytes(self.device, &bytes)?, Some(scales))
            }
        };
        Ok(Linear { weight, scales, bias: None, outputs: map.outputs, inputs: map.inputs })
    }

    /// `[hidden]` with padding.
    fn padded(&self, values: &[f32]) -> Result<Array<D>, DeviceError> {
        let mut padded = values.to_vec();
        padded.resize(self.hidden.padded(), 0.0);
        self.floats(&padded)
    }

    fn floats(&self, values: &[f32]) -> Result<Array<D>, DeviceError> {
        Array::of_floats(self.device, values)
    }

    fn halves(&self, values: &[f32]) -> Result<Array<D>, DeviceError> {
        let max = self.half.max();
        if let Some(value) = values.iter().find(|value| value.abs() > max) {
            let half = self.half.name();
            return Err(DeviceError::Failed(format!("a weight of {value} is too large for {half}")));
        }
        Array::of_halves(self.device, self.half, values)
    }
}
