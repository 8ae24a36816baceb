//! The reference forward: plain f32 operations of candle over packed pairs. All faster paths are tested against it.

use super::weights::{Layer, Linear, Norm};
use super::{BatchError, Encoder, Weights};
use crate::ops::Gelu;
use crate::token::Packed;
use candle_core::{D, Device, Tensor};
use thiserror::Error;

/// Tokens that go through the layers together; bounds the memory of a large batch.
const CHUNK_TOKENS: usize = 1_024;

/// An encoder with its head, as candle tensors.
pub struct Forward {
    encoder: Encoder,
    words: Tensor,
    positions: Tensor,
    token_types: Tensor,
    embedding_norm: (Tensor, Tensor),
    layers: Vec<Block>,
    pooler: Affine,
    classifier: Affine,
}

/// Why a batch has no logits.
#[derive(Debug, Error)]
pub enum ForwardError {
    /// The batch does not fit the model.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A linear map, its weight transposed to `[in, out]`.
struct Affine {
    weight: Tensor,
    bias: Tensor,
}

struct Block {
    query: Affine,
    key: Affine,
    value: Affine,
    attention_out: Affine,
    attention_norm: (Tensor, Tensor),
    up: Affine,
    down: Affine,
    out_norm: (Tensor, Tensor),
}

impl Forward {
    /// Converts weights to tensors.
    ///
    /// # Errors
    /// Those of candle.
    pub fn new(encoder: &Encoder, weights: &Weights) -> Result<Self, ForwardError> {
        let h = encoder.hidden;
        let table = |values: &[f32]| Tensor::from_slice(values, (values.len() / h, h), &Device::Cpu);
        let layers = weights.layers.iter().map(Block::new).collect::<Result<_, _>>()?;
        Ok(Self {
            encoder: encoder.clone(),
            words: table(&weights.words)?,
            positions: table(&weights.positions)?,
            token_types: table(&weights.token_types)?,
            embedding_norm: norm(&weights.embedding_norm)?,
            layers,
            pooler: Affine::new(&weights.pooler)?,
            classifier: Affine::new(&weights.classifier)?,
        })
    }

    /// A logit for each sequence.
    ///
    /// # Errors
    /// [`ForwardError::Batch`] for a batch of another model.
    pub fn logits(&self, batch: &Packed) -> Result<Vec<f32>, ForwardError> {
        self.encoder.check(batch)?;
        let mut logits = Vec::with_capacity(batch.len());
        let starts = batch.starts();
        let mut first = 0;
        while first < batch.len() {
            let mut end = first + 1;
            while end < batch.len() && (starts[end + 1] - starts[first]) as usize <= CHUNK_TOKENS {
                end += 1;
            }
            logits.extend(self.chunk(batch, first, end)?);
            first = end;
        }
        Ok(logits)
    }

    /// Logits of the sequences `first..end`.
    fn chunk(&self, batch: &Packed, first: usize, end: usize) -> Result<Vec<f32>, ForwardError> {
        let starts: Vec<usize> = batch.starts()[first..=end].iter().map(|&start| start as usize).collect();
        let tokens = starts[0]..starts[starts.len() - 1];
        let positions: Vec<u32> = starts
            .windows(2)
            .flat_map(|pair| {
                (0..pair[1] - pair[0]).map(|place| (self.encoder.position_offset + place) as u32)
            })
            .collect();
        // A model with one token type ignores the tokenizer's types.
        let last = (self.encoder.token_types - 1) as u32;
        let types: Vec<u32> = batch.types()[tokens.clone()].iter().map(|&t| u32::from(t).min(last)).collect();
        let pick = |table: &Tensor, rows: &[u32]| table.index_select(&Tensor::new(rows, &Device::Cpu)?, 0);
        let words = pick(&self.words, &batch.ids()[tokens])?;
        let x = ((words + pick(&self.positions, &positions)?)? + pick(&self.token_types, &types)?)?;
        let mut x = self.layer_norm(&x, &self.embedding_norm)?;
        let starts: Vec<usize> = starts.iter().map(|start| start - starts[0]).collect();
        for layer in &self.layers {
            x = self.layer(layer, &x, &starts)?;
        }
        let heads: Vec<u32> = starts[..starts.len() - 1].iter().map(|&start| start as u32).collect();
        let pooled = self.pooler.apply(&pick(&x, &heads)?)?.tanh()?;
        Ok(self.classifier.apply(&pooled)?.squeeze(D::Minus1)?.to_vec1()?)
    }

    fn layer(&self, layer: &Block, x: &Tensor, starts: &[usize]) -> candle_core::Result<Tensor> {
        let context = self.attention(layer, x, starts)?;
        let x = (layer.attention_out.apply(&context)? + x)?;
        let x = self.layer_norm(&x, &layer.attention_norm)?;
        let inner = layer.up.apply(&x)?;
        let inner = match self.encoder.gelu {
            Gelu::Erf => inner.gelu_erf()?,
            Gelu::Tanh => inner.gelu()?,
        };
        let x = (layer.down.apply(&inner)? + x)?;
        self.layer_norm(&x, &layer.out_norm)
    }

    /// Softmax(Q K^T / sqrt(d)) V within each sequence; `x: [tokens, hidden]`.
    fn attention(&self, layer: &Block, x: &Tensor, starts: &[usize]) -> candle_core::Result<Tensor> {
        let (heads, size) = (self.encoder.heads, self.encoder.hidden / self.encoder.heads);
        let (query, key, value) = (layer.query.apply(x)?, layer.key.apply(x)?, layer.value.apply(x)?);
        let scale = 1.0 / (size as f64).sqrt();
        let contexts = starts
            .windows(2)
            .map(|pair| {
                let length = pair[1] - pair[0];
                // `[heads, length, size]`
                let split = |states: &Tensor| {
                    states
                        .narrow(0, pair[0], length)?
                        .reshape((length, heads, size))?
                        .transpose(0, 1)?
                        .contiguous()
                };
                let scores = (split(&query)?.matmul(&split(&key)?.transpose(1, 2)?)? * scale)?;
                let weights = candle_nn::ops::softmax_last_dim(&scores)?;
                weights.matmul(&split(&value)?)?.transpose(0, 1)?.reshape((length, heads * size))
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::cat(&contexts, 0)
    }

    /// In two passes, mean first: E[x^2] - E[x]^2 cancels if the mean is large.
    fn layer_norm(&self, x: &Tensor, (gain, bias): &(Tensor, Tensor)) -> candle_core::Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let deviation = (variance + self.encoder.layer_norm_eps)?.sqrt()?;
        centred.broadcast_div(&deviation)?.broadcast_mul(gain)?.broadcast_add(bias)
    }
}

impl Affine {
    fn new(linear: &Linear) -> candle_core::Result<Self> {
        let outputs = linear.bias.len();
        let shape = (outputs, linear.weight.len() / outputs);
        let weight = Tensor::from_slice(&linear.weight, shape, &Device::Cpu)?.t()?.contiguous()?;
        Ok(Self { weight, bias: vector(&linear.bias)? })
    }

    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

impl Block {
    fn new(layer: &Layer) -> candle_core::Result<Self> {
        Ok(Self {
            query: Affine::new(&layer.query)?,
            key: Affine::new(&layer.key)?,
            value: Affine::new(&layer.value)?,
            attention_out: Affine::new(&layer.attention_out)?,
            attention_norm: norm(&layer.attention_norm)?,
            up: Affine::new(&layer.up)?,
            down: Affine::new(&layer.down)?,
            out_norm: norm(&layer.out_norm)?,
        })
    }
}

fn vector(values: &[f32]) -> candle_core::Result<Tensor> {
    Tensor::from_slice(values, values.len(), &Device::Cpu)
}

fn norm(norm: &Norm) -> candle_core::Result<(Tensor, Tensor)> {
    Ok((vector(&norm.gain)?, vector(&norm.bias)?))
}
