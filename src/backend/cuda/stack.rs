//! An encoder's weights on a device, its activation buffers, and its forward.

use crate::backend::layout::{Width, join, pad};
use crate::backend::lower::Encoder;
use crate::model;
use crate::ops::cuda::{
    Array, Bucket, Device, DeviceError, Embeddings, Half, Head, Launcher, Linear, Norm, Quantised, Rows,
    Scales, e4m3,
};
use crate::ops::{Dense, Gelu, Heads};
use std::f32::consts::LOG2_E;

/// An encoder on a device.
pub(super) struct Stack<D: Device> {
    widths: Widths,
    gelu: Gelu,
    embeddings: Embeddings<D>,
    embedding_norm: Norm<D>,
    /// All layers but the last.
    full: Vec<(Linear<D>, AfterAttention<D>)>,
    last: LastLayer<D>,
    head: Head<D>,
}

/// Row widths, with padding.
#[derive(Clone, Copy)]
struct Widths {
    hidden: usize,
    heads: Heads,
    inner: usize,
}

/// The last layer, computed for first tokens only: keys are absorbed into queries, values applied to mixed states.
struct LastLayer<D: Device> {
    query: Linear<D>,
    key: Linear<D>,
    value: Linear<D>,
    rest: AfterAttention<D>,
}

/// The part of a layer after its attention. The maps have no bias; the operation after each map adds it in f32.
struct AfterAttention<D: Device> {
    out: Linear<D>,
    out_bias: Array<D>,
    attention_norm: Norm<D>,
    up: Linear<D>,
    up_bias: Array<D>,
    down: Linear<D>,
    down_bias: Array<D>,
    out_norm: Norm<D>,
}

/// The largest input magnitude of each map of a layer, in order: qkv, attention output, up, down.
pub(super) type InputMaxima = [f32; 4];

/// Called with the input of each map of all layers but the last: `[tokens, width]` in the half type, and the width.
pub(super) type Observe<'a, D> = dyn FnMut(&Array<D>, usize) -> Result<(), DeviceError> + 'a;

/// The activation buffers, sized for the largest bucket and allocated once.
pub(super) struct Arena<D: Device> {
    /// `[tokens, hidden]`.
    states: Array<D>,
    /// `[tokens, 3 heads]`.
    qkv: Array<D>,
    /// `[tokens, heads]`.
    context: Array<D>,
    /// `[tokens, hidden]`: the residual branch, added by a layer norm.
    update: Array<D>,
    /// `[tokens, inner]`.
    inner: Array<D>,
    /// Inputs of the maps that read E4M3.
    fp8: Option<Fp8Inputs<D>>,
    /// `[sequences, hidden]`.
    firsts: Array<D>,
    /// `[sequences, heads, hidden]` f32.
    absorbed: Array<D>,
    /// `[sequences, heads, hidden]`.
    mixed: Array<D>,
    /// `[sequences, hidden / 32]` f32: contributions to the logits by 32 pooler outputs each.
    parts: Array<D>,
    /// `[sequences]` f32.
    pub logits: Array<D>,
}

/// States, contexts and inner activations in E4M3, shaped as in [`Arena`].
struct Fp8Inputs<D: Device> {
    states: Array<D>,
    context: Array<D>,
    inner: Array<D>,
}

/// Copies a model's parts to a device.
struct Loader<'a, D> {
    device: &'a D,
    half: Half,
    encoder: &'a Encoder<'a>,
    hidden: Width,
    heads: Width,
    inner: Width,
}

impl<D: Device> Stack<D> {
    /// Copies weights to a device. If the input maxima are given, the maps of all layers but the last are in E4M3.
    pub fn load(
        device: &D,
        encoder: &Encoder<'_>,
        half: Half,
        maxima: Option<&[InputMaxima]>,
    ) -> Result<Self, DeviceError> {
        let loader = Loader {
            device,
            half,
            encoder,
            hidden: Width::plain(encoder.plan.hidden()),
            heads: Width::heads(encoder.heads, encoder.head_dim),
            inner: Width::plain(encoder.plan.intermediate()),
        };
        let (last, full) = encoder.plan.blocks.split_last().expect("a model has a layer");
        let [query, key, value] = loader.projections(last);
        let full = full.iter().enumerate().map(|(index, layer)| {
            let maxima = maxima.map(|maxima| maxima[index]);
            let qkv = join(loader.projections(layer));
            let bias = Some(loader.halves(&qkv.bias)?);
            let qkv = Linear { bias, ..loader.map(&qkv, maxima.map(|[qkv, ..]| qkv))? };
            Ok((qkv, loader.after_attention(layer, maxima)?))
        });
        Ok(Self {
            widths: Widths {
                hidden: loader.hidden.padded(),
                heads: loader.heads.as_heads(),
                inner: loader.inner.padded(),
            },
            gelu: encoder.gelu,
            embeddings: loader.embeddings()?,
            embedding_norm: loader.norm(encoder.embedding_norm)?,
            full: full.collect::<Result<_, DeviceError>>()?,
            last: LastLayer {
                query: loader.biased(&query)?,
                key: loader.unbiased(&key)?,
                value: loader.unbiased(&value)?,
                rest: loader.after_attention(last, None)?,
            },
            head: loader.head()?,
        })
    }

    /// Whether its maps are in E4M3.
    pub fn is_fp8(&self) -> bool {
        self.full.first().is_some_and(|(qkv, _)| qkv.scales.is_some())
    }

    /// Buffers for batches up to this bucket.
    pub fn arena(&self, device: &D, largest: Bucket) -> Result<Arena<D>, DeviceError> {
        let (tokens, sequences) = (largest.tokens as usize, largest.sequences as usize);
        let Widths { hidden, heads, inner, .. } = self.widths;
        let halves = |count: usize| Array::new(device, 2 * count);
        let fp8_inputs = || -> Result<Fp8Inputs<D>, DeviceError> {
            Ok(Fp8Inputs {
                states: Array::new(device, tokens * hidden)?,
                context: Array::new(device, tokens * heads.width())?,
                inner: Array::new(device, tokens * inner)?,
            })
        };
        Ok(Arena {
            fp8: self.is_fp8().then(fp8_inputs).transpose()?,
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

    /// Queues the forward of the launcher's batch into the arena's logits. `observe` is called with each map's input once
    /// the operation that writes it is queued.
    pub fn forward(
        &self,
        launcher: &Launcher<'_, D>,
        arena: &Arena<D>,
        observe: &mut Observe<'_, D>,
    ) -> Result<(), DeviceError> {
        let Arena { states, qkv, context, firsts, absorbed, mixed, parts, logits, .. } = arena;
        let Widths { hidden, heads, .. } = self.widths;
        let first = arena.quantised(self.full.first().map(|(projection, _)| projection), |fp8| &fp8.states);
        launcher.embed(&self.embeddings, &self.embedding_norm, states, first.as_ref())?;
        for (index, (projection, rest)) in self.full.iter().enumerate() {
            observe(states, hidden)?;
            launcher.linear(
                Rows::Tokens,
                projection,
                arena.input(projection, states, |fp8| &fp8.states),
                qkv,
            )?;
            let quantised = arena.quantised(Some(&rest.out), |fp8| &fp8.context);
            launcher.attention(qkv, context, heads, quantised.as_ref())?;
            observe(context, heads.width())?;
            let next = self.full.get(index + 1).map(|(projection, _)| projection);
            self.after_attention((launcher, Rows::Tokens), (rest, next), arena, observe)?;
        }
        let LastLayer { query, key, value, rest } = &self.last;
        // The queries of first tokens reuse the qkv buffer.
        launcher.first_rows(states, hidden, firsts)?;
        launcher.linear(Rows::Sequences, query, firsts, qkv)?;
        launcher.absorb_keys(qkv, key, absorbed, heads)?;
        launcher.first_token((absorbed, states), mixed, (heads.count, hidden))?;
        launcher.apply_values(mixed, value, context, heads)?;
        self.after_attention((launcher, Rows::Sequences), (rest, None), arena, &mut |_, _| Ok(()))?;
        launcher.head(firsts, &self.head, parts, logits)
    }

    /// From contexts to the layer's output, for all tokens or the first ones. `next` is the map that reads the output.
    fn after_attention(
        &self,
        (launcher, rows): (&Launcher<'_, D>, Rows),
        (rest, next): (&AfterAttention<D>, Option<&Linear<D>>),
        arena: &Arena<D>,
        observe: &mut Observe<'_, D>,
    ) -> Result<(), DeviceError> {
        let Arena { context, update, inner, .. } = arena;
        let AfterAttention { out, up, down, .. } = rest;
        let states = if rows == Rows::Tokens { &arena.states } else { &arena.firsts };
        launcher.linear(rows, out, arena.input(out, context, |fp8| &fp8.context), update)?;
        let quantised = arena.quantised(Some(up), |fp8| &fp8.states);
        let norm = &rest.attention_norm;
        launcher.add_layer_norm(rows, (states, update), &rest.out_bias, norm, quantised.as_ref())?;
        observe(states, self.widths.hidden)?;
        launcher.linear(rows, up, arena.input(up, states, |fp8| &fp8.states), inner)?;
        let quantised = arena.quantised(Some(down), |fp8| &fp8.inner);
        let width = self.widths.inner;
        launcher.gelu(rows, inner, (&rest.up_bias, width), self.gelu, quantised.as_ref())?;
        observe(inner, width)?;
        launcher.linear(rows, down, arena.input(down, inner, |fp8| &fp8.inner), update)?;
        let quantised = arena.quantised(next, |fp8| &fp8.states);
        let norm = &rest.out_norm;
        launcher.add_layer_norm(rows, (states, update), &rest.down_bias, norm, quantised.as_ref())
    }
}

impl<D: Device> Arena<D> {
    /// The buffer that a map reads: its input in the half type or in E4M3.
    fn input<'a>(
        &'a self,
        map: &Linear<D>,
        halves: &'a Array<D>,
        select: impl Fn(&'a Fp8Inputs<D>) -> &'a Array<D>,
    ) -> &'a Array<D> {
        self.fp8.as_ref().filter(|_| map.scales.is_some()).map_or(halves, select)
    }

    /// The E4M3 output for a map's input, if the map reads E4M3.
    fn quantised<'a>(
        &'a self,
        map: Option<&'a Linear<D>>,
        select: impl Fn(&'a Fp8Inputs<D>) -> &'a Array<D>,
    ) -> Option<Quantised<'a, D>> {
        let factor = &map?.scales.as_ref()?.factor;
        Some(Quantised { to: select(self.fp8.as_ref()?), factor })
    }
}

impl<D: Device> Loader<'_, D> {
    /// The maps to queries, keys and values. Queries are scaled for a softmax in powers of two. The key bias is dropped: it
    /// adds the same to all scores of a query. The value bias is dropped here and folded into the output map
    /// (`after_attention`).
    fn projections(&self, block: &model::Block) -> [Dense; 3] {
        let model::Attention { head_dim, query, key, value, .. } = &block.attention;
        let scale = LOG2_E / (*head_dim as f32).sqrt();
        [(query, scale, 1.0), (key, 1.0, 0.0), (value, 1.0, 0.0)].map(|(map, factor, keep)| {
            let mut map = pad(map, self.heads, self.hidden, factor);
            map.bias.iter_mut().for_each(|bias| *bias *= keep);
            map
        })
    }

    fn after_attention(
        &self,
        block: &model::Block,
        maxima: Option<InputMaxima>,
    ) -> Result<AfterAttention<D>, DeviceError> {
        let model::Block { attention, feed_forward, attention_norm, feed_forward_norm, .. } = block;
        let attention_norm = attention_norm.as_ref().expect("a post-norm layer has both norms");
        let mut out = pad(&attention.out, self.hidden, self.heads, 1.0);
        // Softmax weights sum to one, so the value bias passes through attention unchanged.
        let value = pad(&attention.value, self.heads, self.hidden, 1.0).bias;
        for (bias, row) in out.bias.iter_mut().zip(out.weight.chunks_exact(out.inputs)) {
            *bias += row.iter().zip(&value).map(|(weight, value)| weight * value).sum::<f32>();
        }
        let up = pad(&feed_forward.up, self.inner, self.hidden, 1.0);
        let down = pad(&feed_forward.down, self.hidden, self.inner, 1.0);
        Ok(AfterAttention {
            out: self.map(&out, maxima.map(|[_, out, _, _]| out))?,
            out_bias: self.floats(&out.bias)?,
            attention_norm: self.norm(attention_norm)?,
            up: self.map(&up, maxima.map(|[_, _, up, _]| up))?,
            up_bias: self.floats(&up.bias)?,
            down: self.map(&down, maxima.map(|[.., down]| down))?,
            down_bias: self.floats(&down.bias)?,
            out_norm: self.norm(feed_forward_norm)?,
        })
    }

    fn embeddings(&self) -> Result<Embeddings<D>, DeviceError> {
        let Encoder { plan, positions, types, .. } = *self.encoder;
        let (hidden, stride) = (plan.hidden(), self.hidden.padded());
        let table = |table: &model::Tensor| {
            let mut padded = vec![0.0; table.shape[0] * stride];
            for (to, from) in padded.chunks_exact_mut(stride).zip(table.values().chunks_exact(hidden)) {
                to[..hidden].copy_from_slice(from);
            }
            self.halves(&padded)
        };
        Ok(Embeddings {
            words: table(&plan.embed.words)?,
            positions: table(&positions.table)?,
            types: table(types)?,
            position_offset: positions.offset as u32,
            rows: [plan.vocabulary(), positions.table.shape[0], types.shape[0]],
        })
    }

    fn head(&self) -> Result<Head<D>, DeviceError> {
        let Encoder { pooler, classifier, .. } = *self.encoder;
        let pooler = pad(pooler, self.hidden, self.hidden, 1.0);
        let stride = pooler.inputs;
        let turned: Vec<f32> = (0..stride * stride)
            .map(|place| pooler.weight[place % stride * stride + place / stride])
            .collect();
        Ok(Head {
            pooler: self.floats(&turned)?,
            pooler_bias: self.floats(&pooler.bias)?,
            classifier: self.padded(&classifier.weight.values())?,
            classifier_bias: classifier.bias_values()[0],
            stride: self.hidden.padded(),
        })
    }

    fn norm(&self, norm: &model::Norm) -> Result<Norm<D>, DeviceError> {
        Ok(Norm {
            gain: self.padded(&norm.gain.values())?,
            bias: self.padded(&norm.bias_values())?,
            epsilon: norm.eps as f32,
            hidden: self.encoder.plan.hidden(),
            stride: self.hidden.padded(),
        })
    }

    fn biased(&self, map: &Dense) -> Result<Linear<D>, DeviceError> {
        Ok(Linear { bias: Some(self.halves(&map.bias)?), ..self.unbiased(map)? })
    }

    fn unbiased(&self, map: &Dense) -> Result<Linear<D>, DeviceError> {
        self.map(map, None)
    }

    /// A map without its bias; in E4M3 if the largest input magnitude is given.
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

    /// `[hidden]` values, padded with zeros.
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
