//! Copies a model's parts to a device.

use super::stack::{Absorbed, Inner, InputMaxima, Mixer, Reading, Rest, RestNorms, Rotated};
use crate::backend::layout::{Width, join, pad, projections, score_weights, softmax_scale, spread};
use crate::model::{self, Activation, NormKind, Norms, Plan, Score};
use crate::ops::cuda::{
    self, Array, Device, DeviceError, Embeddings, Half, Head, Linear, Mixing, Norm, STRIDE_MAX, Scales,
    Scoring, Table, e4m3,
};
use crate::ops::{Angles, Dense};

/// Copies a model's parts to a device.
pub(super) struct Loader<'a, D: Device> {
    device: &'a D,
    plan: &'a Plan,
    half: Half,
    hidden: Width,
    /// Angles that layers share: one pair for each base, with the frequencies by which they are known.
    angles: Vec<(Vec<f32>, [Array<D>; 2])>,
}

impl<'a, D: Device> Loader<'a, D> {
    pub fn new(device: &'a D, plan: &'a Plan, half: Half) -> Self {
        Self { device, plan, half, hidden: Width::plain(plan.hidden()), angles: Vec::new() }
    }

    /// The angles of the layers that were loaded.
    pub fn angles(self) -> Vec<[Array<D>; 2]> {
        self.angles.into_iter().map(|(_, angles)| angles).collect()
    }

    /// A layer that is computed for all tokens; in E4M3 if its input maxima are given.
    pub fn layer(
        &mut self,
        block: &model::Block,
        maxima: Option<InputMaxima>,
    ) -> Result<(Mixer<D>, Rest<D>), DeviceError> {
        let qkv = join(self.projections(block));
        let has_bias = qkv.bias.iter().any(|&bias| bias != 0.0);
        let bias = has_bias.then(|| self.halves(&qkv.bias)).transpose()?;
        let projection = Linear { bias, ..self.map(&qkv, maxima.map(|[qkv, ..]| qkv))? };
        let norm = block.attention_norm.as_ref().filter(|_| block.norms == Norms::Pre);
        let mixer = Mixer {
            norm: norm.map(|norm| self.norm(norm)).transpose()?,
            projection,
            rotation: self.rotation(&block.attention)?,
            mixing: mixing(&block.attention),
        };
        Ok((mixer, self.rest(block, maxima)?))
    }

    /// The last layer, computed for first tokens only.
    pub fn absorbed(&self, block: &model::Block) -> Result<Absorbed<D>, DeviceError> {
        let [query, key, value] = self.projections(block);
        let [key, value] = [self.map(&key, None)?, self.map(&value, None)?];
        let query = Linear { bias: Some(self.halves(&query.bias)?), ..self.map(&query, None)? };
        let rest = self.rest(block, None)?;
        Ok(Absorbed { query, key, value, mixing: mixing(&block.attention), rest })
    }

    /// The maps to queries, keys and values. The key bias is dropped where it adds the same to all scores of a query. The
    /// value bias is dropped here and folded into the output map (`rest`).
    fn projections(&self, block: &model::Block) -> [Dense; 3] {
        let [query, mut key, mut value] = projections(&block.attention);
        if block.attention.rope.is_none() {
            key.bias.fill(0.0);
        }
        value.bias.fill(0.0);
        [query, key, value]
    }

    fn rotation(&mut self, attention: &model::Attention) -> Result<Option<Rotated<D>>, DeviceError> {
        let Some(rope) = attention.rope else { return Ok(None) };
        let head_dim = attention.head_dim;
        let frequencies = rope.frequencies(head_dim);
        let known = self.angles.iter().position(|(known, _)| *known == frequencies);
        let angles = match known {
            Some(place) => place,
            None => {
                let angles = Angles::new(&frequencies, self.plan.tokens_max as usize);
                let [cosines, sines] = angles.values();
                let angles = [self.floats(cosines)?, self.floats(sines)?];
                self.angles.push((frequencies, angles));
                self.angles.len() - 1
            }
        };
        let norms = match &attention.query_key_norms {
            None => None,
            Some([query, key]) => {
                let gain = |norm: &model::Norm, factor: f32| {
                    self.floats(&spread(&norm.gain.values(), Width::rotated(1, head_dim), factor))
                };
                let gains = [gain(query, softmax_scale(attention))?, gain(key, 1.0)?];
                Some((gains, query.eps as f32))
            }
        };
        Ok(Some(Rotated { angles, norms, head_dim }))
    }

    fn rest(&self, block: &model::Block, maxima: Option<InputMaxima>) -> Result<Rest<D>, DeviceError> {
        let model::Block { attention, feed_forward, attention_norm, feed_forward_norm, .. } = block;
        let model::FeedForward { activation, gate, up, down } = feed_forward;
        let inner = Width::plain(up.outputs());
        let mut out = pad(&attention.out, self.hidden, heads(attention.heads, attention), 1.0);
        // Softmax weights sum to one, so the value bias passes through attention unchanged.
        let value = pad(&attention.value, heads(attention.kv_heads, attention), self.hidden, 1.0).bias;
        let size = mixing(attention).heads.size;
        let read = |input: usize| value[input / size / attention.group() * size + input % size];
        for (bias, row) in out.bias.iter_mut().zip(out.weight.chunks_exact(out.inputs)) {
            *bias += row.iter().enumerate().map(|(input, weight)| weight * read(input)).sum::<f32>();
        }
        let out_map = self.map(&out, maxima.map(|[_, out, _, _]| out))?;
        let (out_bias, norms) = (self.bias(&out)?, self.norm(feed_forward_norm)?);
        let norms = match (block.norms, attention_norm) {
            (Norms::Pre, _) => RestNorms::Pre(norms),
            (Norms::Post, Some(first)) => RestNorms::Post([self.norm(first)?, norms]),
            (Norms::Post, None) => unreachable!("`lower::check` refuses it"),
        };
        drop(out);
        let wide = |map: &model::Linear| pad(map, inner, self.hidden, 1.0);
        let (up, activation) = match (gate, *activation) {
            (Some(gate), activation) => (join([wide(gate), wide(up)]), Inner::Gated(activation)),
            (None, Activation::Gelu(gelu)) => (wide(up), Inner::Plain(gelu)),
            (None, Activation::Silu | Activation::Tanh) => unreachable!("`lower::check` refuses it"),
        };
        let up_map = self.map(&up, maxima.map(|[_, _, up, _]| up))?;
        let up_bias = self.bias(&up)?;
        drop(up);
        let down = pad(down, self.hidden, inner, 1.0);
        Ok(Rest {
            out: out_map,
            out_bias,
            norms,
            up: up_map,
            up_bias,
            activation,
            width: inner.padded(),
            down: self.map(&down, maxima.map(|[.., down]| down))?,
            down_bias: self.bias(&down)?,
        })
    }

    pub fn embeddings(&self) -> Result<Embeddings<D>, DeviceError> {
        let model::Embed { words, positions, types, norm: _ } = &self.plan.embed;
        let (hidden, stride) = (self.plan.hidden(), self.hidden.padded());
        let table = |table: &model::Tensor| {
            let rows = table.shape[0];
            let values = table.values();
            if hidden == stride {
                return Ok(Table { values: self.halves(&values)?, rows });
            }
            let mut padded = vec![0.0; rows * stride];
            for (to, from) in padded.chunks_exact_mut(stride).zip(values.chunks_exact(hidden)) {
                to[..hidden].copy_from_slice(from);
            }
            Ok(Table { values: self.halves(&padded)?, rows })
        };
        Ok(Embeddings {
            words: table(words)?,
            positions: positions.as_ref().map(|positions| table(&positions.table)).transpose()?,
            position_offset: positions.as_ref().map_or(0, |positions| positions.offset as u32),
            types: types.as_ref().map(table).transpose()?,
            stride,
        })
    }

    pub fn head(&self) -> Result<Reading<D>, DeviceError> {
        let model::Head { at: _, dense, norm, score } = &self.plan.head;
        let (weights, constant) = score_weights(score);
        let (weights, stride) = (self.padded(&weights)?, self.hidden.padded());
        let dense = dense.as_ref().map(|(map, activation)| -> Result<_, DeviceError> {
            let map = pad(map, self.hidden, self.hidden, 1.0);
            let turned =
                (0..stride * stride).map(|place| map.weight[place % stride * stride + place / stride]);
            let weights = self.floats(&turned.collect::<Vec<f32>>())?;
            Ok(cuda::Dense { weights, bias: self.floats(&map.bias)?, activation: *activation })
        });
        let dense = dense.transpose()?;
        Ok(match (dense, norm, score) {
            (Some(dense), None, Score::Linear(_))
                if dense.activation == Activation::Tanh && stride <= STRIDE_MAX =>
            {
                let (pooler, pooler_bias) = (dense.weights, dense.bias);
                let (classifier, classifier_bias) = (weights, constant);
                Reading::Pooled(Head { pooler, pooler_bias, classifier, classifier_bias, stride })
            }
            (dense, norm, _) => {
                let norm = norm.as_ref().map(|norm| self.norm(norm)).transpose()?;
                Reading::Scoring(Scoring { dense, norm, weights, constant, stride })
            }
        })
    }

    pub fn norm(&self, norm: &model::Norm) -> Result<Norm<D>, DeviceError> {
        Ok(Norm {
            gain: self.padded(&norm.gain.values())?,
            bias: norm.bias.as_ref().map(|bias| self.padded(&bias.values())).transpose()?,
            epsilon: norm.eps as f32,
            is_rms: norm.kind == NormKind::Rms,
            hidden: self.plan.hidden(),
            stride: self.hidden.padded(),
        })
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

    /// The bias of a map in f32, if it has one.
    fn bias(&self, map: &Dense) -> Result<Option<Array<D>>, DeviceError> {
        map.bias.iter().any(|&bias| bias != 0.0).then(|| self.floats(&map.bias)).transpose()
    }

    /// `[hidden]` values, padded with zeros.
    fn padded(&self, values: &[f32]) -> Result<Array<D>, DeviceError> {
        self.floats(&spread(values, self.hidden, 1.0))
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

/// The layout of so many of a layer's heads.
fn heads(count: usize, attention: &model::Attention) -> Width {
    Width::heads(count, attention.head_dim)
}

fn mixing(attention: &model::Attention) -> Mixing {
    let model::Attention { kv_heads, reach, .. } = *attention;
    Mixing { heads: heads(attention.heads, attention).as_heads(), kv_heads, reach }
}
