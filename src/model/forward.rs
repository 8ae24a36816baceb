//! The reference forward: interprets a plan by plain f32 operations of candle over packed pairs. All faster paths are tested
//! against it.

use super::FileChanged;
use super::plan::{
    Activation, Attention, BatchError, Block, FeedForward, Gelu, Linear, Norm, NormKind, Norms, Plan, Pool,
    Relative, Score, Tensor as Named,
};
use super::positions::{mask, relative_scores, repeat, rotate};
use crate::token::Packed;
use candle_core::{D, Device, Result, Tensor};
use thiserror::Error;

/// Tokens that go through the layers together; bounds the memory of a large batch.
const CHUNK_TOKENS: usize = 1_024;

/// A model, as candle tensors.
pub struct Forward {
    /// Without its tensors' values.
    plan: Plan,
    words: Tensor,
    positions: Option<Tensor>,
    types: Option<Tensor>,
    embedding_norm: Option<Gain>,
    /// The table of relative positions, normed.
    relative: Option<Tensor>,
    layers: Vec<Layer>,
    final_norm: Option<Gain>,
    dense: Option<Affine>,
    head_norm: Option<Gain>,
    score: Affine,
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
    /// The model's files were written to.
    #[error(transparent)]
    Changed(#[from] FileChanged),
}

/// A linear map, its weight transposed to `[in, out]`.
struct Affine {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// A norm.
struct Gain {
    kind: NormKind,
    gain: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

/// The tensors of a block.
struct Layer {
    attention_norm: Option<Gain>,
    query: Affine,
    key: Affine,
    value: Affine,
    query_key_norms: Option<[Gain; 2]>,
    /// Maps of relative positions to queries and keys, if they have their own.
    relative: Option<[Affine; 2]>,
    out: Affine,
    feed_forward_norm: Gain,
    gate: Option<Affine>,
    up: Affine,
    down: Affine,
}

impl Forward {
    /// Converts a plan's tensors.
    ///
    /// # Errors
    /// Those of candle, and [`ForwardError::Changed`].
    pub fn new(plan: &Plan) -> std::result::Result<Self, ForwardError> {
        let table = |table: &Named| Tensor::from_slice(&table.values(), &table.shape[..], &Device::Cpu);
        let score = match &plan.head.score {
            Score::Linear(linear) => Affine::new(linear)?,
            Score::Tokens { yes, no } => {
                let yes = table(yes)?;
                let weight = no.as_ref().map_or_else(|| Ok(yes.clone()), |no| &yes - table(no)?)?;
                Affine { weight: weight.t()?.contiguous()?, bias: None }
            }
        };
        let forward = Self {
            words: table(&plan.embed.words)?,
            positions: plan.embed.positions.as_ref().map(|positions| table(&positions.table)).transpose()?,
            types: plan.embed.types.as_ref().map(table).transpose()?,
            embedding_norm: plan.embed.norm.as_ref().map(Gain::new).transpose()?,
            relative: plan
                .relative
                .as_ref()
                .map(|relative| {
                    let norm = relative.norm.as_ref().map(Gain::new).transpose()?;
                    Gain::optional(norm.as_ref(), table(&relative.table)?)
                })
                .transpose()?,
            layers: plan.blocks.iter().map(Layer::new).collect::<Result<_>>()?,
            final_norm: plan.final_norm.as_ref().map(Gain::new).transpose()?,
            dense: plan.head.dense.as_ref().map(|(dense, _)| Affine::new(dense)).transpose()?,
            head_norm: plan.head.norm.as_ref().map(Gain::new).transpose()?,
            score,
            plan: plan.without_values(),
        };
        plan.check_files()?;
        Ok(forward)
    }

    /// A logit for each sequence.
    ///
    /// # Errors
    /// [`ForwardError::Batch`] for a batch of another model.
    pub fn logits(&self, batch: &Packed) -> std::result::Result<Vec<f32>, ForwardError> {
        self.plan.check(batch)?;
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
    fn chunk(&self, batch: &Packed, first: usize, end: usize) -> Result<Vec<f32>> {
        let starts: Vec<usize> = batch.starts()[first..=end].iter().map(|&start| start as usize).collect();
        let mut x = self.embed(batch, &starts)?;
        let starts: Vec<usize> = starts.iter().map(|start| start - starts[0]).collect();
        for (block, layer) in self.plan.blocks.iter().zip(&self.layers) {
            let relative = self.relative.as_ref().zip(self.plan.relative.as_ref());
            x = layer.apply(block, &x, &starts, relative)?;
        }
        x = Gain::optional(self.final_norm.as_ref(), x)?;
        self.head(&self.pool(&x, &starts)?)
    }

    /// States of tokens, `[tokens, hidden]`.
    fn embed(&self, batch: &Packed, starts: &[usize]) -> Result<Tensor> {
        let tokens = starts[0]..starts[starts.len() - 1];
        let mut x = pick(&self.words, &batch.ids()[tokens.clone()])?;
        if let (Some(table), Some(positions)) = (&self.positions, &self.plan.embed.positions) {
            let places = starts.windows(2).flat_map(|pair| 0..pair[1] - pair[0]);
            let rows: Vec<u32> = places.map(|place| (positions.offset + place) as u32).collect();
            x = (x + pick(table, &rows)?)?;
        }
        if let Some(table) = &self.types {
            // A model with one token type ignores the tokenizer's types.
            let last = (table.dim(0)? - 1) as u32;
            let types: Vec<u32> = batch.types()[tokens].iter().map(|&t| u32::from(t).min(last)).collect();
            x = (x + pick(table, &types)?)?;
        }
        Gain::optional(self.embedding_norm.as_ref(), x)
    }

    /// What the head reads, `[sequences, hidden]`.
    fn pool(&self, x: &Tensor, starts: &[usize]) -> Result<Tensor> {
        let rows: Vec<u32> = match self.plan.head.at {
            Pool::First => starts[..starts.len() - 1].iter().map(|&start| start as u32).collect(),
            Pool::Last => starts[1..].iter().map(|&end| end as u32 - 1).collect(),
            Pool::Mean => {
                let mean = |pair: &[usize]| x.narrow(0, pair[0], pair[1] - pair[0])?.mean_keepdim(0);
                return Tensor::cat(&starts.windows(2).map(mean).collect::<Result<Vec<_>>>()?, 0);
            }
        };
        pick(x, &rows)
    }

    fn head(&self, pooled: &Tensor) -> Result<Vec<f32>> {
        let mut x = pooled.clone();
        if let (Some(dense), Some((_, activation))) = (&self.dense, &self.plan.head.dense) {
            x = activate(*activation, &dense.apply(&x)?)?;
        }
        x = Gain::optional(self.head_norm.as_ref(), x)?;
        self.score.apply(&x)?.squeeze(D::Minus1)?.to_vec1()
    }
}

impl Layer {
    fn new(block: &Block) -> Result<Self> {
        let Attention { query, key, value, out, query_key_norms, relative, .. } = &block.attention;
        let FeedForward { gate, up, down, .. } = &block.feed_forward;
        let maps = |[query, key]: &[Linear; 2]| -> Result<_> { Ok([Affine::new(query)?, Affine::new(key)?]) };
        let both = |[query, key]: &[Norm; 2]| -> Result<_> { Ok([Gain::new(query)?, Gain::new(key)?]) };
        Ok(Self {
            attention_norm: block.attention_norm.as_ref().map(Gain::new).transpose()?,
            query: Affine::new(query)?,
            key: Affine::new(key)?,
            value: Affine::new(value)?,
            query_key_norms: query_key_norms.as_ref().map(both).transpose()?,
            relative: relative.as_ref().and_then(|maps| maps.own.as_ref()).map(maps).transpose()?,
            out: Affine::new(out)?,
            feed_forward_norm: Gain::new(&block.feed_forward_norm)?,
            gate: gate.as_ref().map(Affine::new).transpose()?,
            up: Affine::new(up)?,
            down: Affine::new(down)?,
        })
    }

    fn apply(
        &self,
        block: &Block,
        x: &Tensor,
        starts: &[usize],
        relative: Option<(&Tensor, &Relative)>,
    ) -> Result<Tensor> {
        let attend = |x: &Tensor| self.out.apply(&self.attention(&block.attention, x, starts, relative)?);
        let feed = |x: &Tensor| self.feed_forward(block.feed_forward.activation, x);
        let attention_norm = |x| Gain::optional(self.attention_norm.as_ref(), x);
        match block.norms {
            Norms::Post => {
                let x = attention_norm((attend(x)? + x)?)?;
                self.feed_forward_norm.apply(&(feed(&x)? + x)?)
            }
            Norms::Pre => {
                let x = (attend(&attention_norm(x.clone())?)? + x)?;
                feed(&self.feed_forward_norm.apply(&x)?)? + x
            }
        }
    }

    fn feed_forward(&self, activation: Activation, x: &Tensor) -> Result<Tensor> {
        let up = self.up.apply(x)?;
        let inner = match &self.gate {
            None => activate(activation, &up)?,
            Some(gate) => (activate(activation, &gate.apply(x)?)? * up)?,
        };
        self.down.apply(&inner)
    }

    /// Contexts of `x: [tokens, hidden]`, `[tokens, heads x head_dim]`.
    fn attention(
        &self,
        attention: &Attention,
        x: &Tensor,
        starts: &[usize],
        relative: Option<(&Tensor, &Relative)>,
    ) -> Result<Tensor> {
        let (query, key, value) = (self.query.apply(x)?, self.key.apply(x)?, self.value.apply(x)?);
        let relative = relative.filter(|_| attention.relative.is_some());
        let terms = if relative.is_some() { 3.0 } else { 1.0 };
        let scale = 1.0 / (terms * attention.head_dim as f64).sqrt();
        let [query_norm, key_norm] = match &self.query_key_norms {
            Some([query, key]) => [Some(query), Some(key)],
            None => [None, None],
        };
        let context = |pair: &[usize]| {
            let length = pair[1] - pair[0];
            // `[heads, length, head_dim]`
            let split = |states: &Tensor, heads: usize| {
                let states = states.narrow(0, pair[0], length)?;
                states.reshape((length, heads, attention.head_dim))?.transpose(0, 1)?.contiguous()
            };
            let prepare = |states: &Tensor, heads: usize, norm: Option<&Gain>| {
                let states = Gain::optional(norm, split(states, heads)?)?;
                attention.rope.map_or_else(|| Ok(states.clone()), |rope| rotate(&states, rope))
            };
            let query = prepare(&query, attention.heads, query_norm)?;
            let key = repeat(&prepare(&key, attention.kv_heads, key_norm)?, attention.group())?;
            let value = repeat(&split(&value, attention.kv_heads)?, attention.group())?;
            let mut scores = query.matmul(&key.transpose(1, 2)?)?;
            if let Some((table, shape)) = relative {
                let [to_query, to_key] = match &self.relative {
                    Some([query, key]) => [query, key],
                    None => [&self.query, &self.key],
                };
                let rows = [to_query.apply(table)?, to_key.apply(table)?];
                scores = (scores + relative_scores([&query, &key], &rows, shape)?)?;
            }
            let scores = (scores * scale)?;
            let scores = match mask(attention.reach, length)? {
                Some(mask) => scores.broadcast_add(&mask)?,
                None => scores,
            };
            let weights = candle_nn::ops::softmax_last_dim(&scores)?;
            let width = attention.heads * attention.head_dim;
            weights.matmul(&value)?.transpose(0, 1)?.reshape((length, width))
        };
        Tensor::cat(&starts.windows(2).map(context).collect::<Result<Vec<_>>>()?, 0)
    }
}

impl Affine {
    fn new(linear: &Linear) -> Result<Self> {
        let Linear { weight, bias } = linear;
        let weight =
            Tensor::from_slice(&weight.values(), &weight.shape[..], &Device::Cpu)?.t()?.contiguous()?;
        Ok(Self { weight, bias: bias.as_ref().map(vector).transpose()? })
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let product = x.matmul(&self.weight)?;
        self.bias.as_ref().map_or_else(|| Ok(product.clone()), |bias| product.broadcast_add(bias))
    }
}

impl Gain {
    fn new(norm: &Norm) -> Result<Self> {
        let Norm { kind, gain, bias, eps } = norm;
        let bias = bias.as_ref().map(vector).transpose()?;
        Ok(Self { kind: *kind, gain: vector(gain)?, bias, eps: *eps })
    }

    /// In two passes, mean first: E[x^2] - E[x]^2 cancels if the mean is large.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let centred = match self.kind {
            NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            NormKind::Rms => x.clone(),
        };
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let normed = centred.broadcast_div(&deviation)?.broadcast_mul(&self.gain)?;
        self.bias.as_ref().map_or_else(|| Ok(normed.clone()), |bias| normed.broadcast_add(bias))
    }

    /// The same where there is a norm.
    fn optional(norm: Option<&Self>, x: Tensor) -> Result<Tensor> {
        match norm {
            Some(norm) => norm.apply(&x),
            None => Ok(x),
        }
    }
}

fn vector(tensor: &Named) -> Result<Tensor> {
    Tensor::from_slice(&tensor.values(), tensor.count(), &Device::Cpu)
}

fn pick(table: &Tensor, rows: &[u32]) -> Result<Tensor> {
    table.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)
}

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Gelu(Gelu::Erf) => x.gelu_erf(),
        Activation::Gelu(Gelu::Tanh) => x.gelu(),
        Activation::Silu => x.silu(),
        Activation::Tanh => x.tanh(),
    }
}
