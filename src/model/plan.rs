//! One model as neutral data: its parts in the order in which they run, with their tensors. `arch` describes, `weights`
//! fills in the tensors' values, `forward` interprets, and the engines lower what they support.

pub use super::tensor::{Linear, Norm, NormKind, Part, Tensor};
pub use crate::ops::{Activation, Gelu, Reach};
use crate::token::Packed;
use thiserror::Error;

/// A transformer that scores a pair of texts. Matrices are `[out, in]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The name of the architecture's family, for example `bert`.
    pub family: &'static str,
    /// From token ids to states.
    pub embed: Embed,
    /// What layers with relative positions read besides states.
    pub relative: Option<Relative>,
    /// The layers, from first to last.
    pub blocks: Vec<Block>,
    /// Applied to the last layer's states, where layers norm their input.
    pub final_norm: Option<Norm>,
    /// From states to the logit.
    pub head: Head,
    /// Most tokens of a sequence.
    pub tokens_max: u32,
    /// Tensors that may be in the files and are not used: those with such a name, or whose name begins with it and a dot.
    pub unused: Vec<String>,
}

/// The sum of its tables' rows, normed.
#[derive(Clone, Debug, PartialEq)]
pub struct Embed {
    /// `[vocabulary, hidden]`.
    pub words: Tensor,
    /// One row for each place in a sequence, where positions are learned.
    pub positions: Option<Positions>,
    /// `[token types, hidden]`; with one row every token has type 0.
    pub types: Option<Tensor>,
    /// Applied to the sum.
    pub norm: Option<Norm>,
}

/// Learned positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Positions {
    /// `[positions, hidden]`.
    pub table: Tensor,
    /// The row of the first token.
    pub offset: usize,
}

/// A transformer layer: attention, then the feed-forward part, each added to its input.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Where the norms stand.
    pub norms: Norms,
    /// Attention's norm; an identity where there is none.
    pub attention_norm: Option<Norm>,
    /// Mixes the tokens of a sequence.
    pub attention: Attention,
    /// The feed-forward part's norm.
    pub feed_forward_norm: Norm,
    /// Transforms each token by itself.
    pub feed_forward: FeedForward,
}

/// Where a layer's norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// norm(x + f(x)) (Vaswani et al. 2017).
    Post,
    /// x + f(norm(x)) (Xiong et al. 2020).
    Pre,
}

/// softmax(Q K^T / sqrt(head_dim)) V within a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; they divide `heads` (Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// `[heads x head_dim, hidden]`.
    pub query: Linear,
    /// `[kv_heads x head_dim, hidden]`.
    pub key: Linear,
    /// `[kv_heads x head_dim, hidden]`.
    pub value: Linear,
    /// `[hidden, heads x head_dim]`.
    pub out: Linear,
    /// Applied to each head of the queries and of the keys, before positions.
    pub query_key_norms: Option<[Norm; 2]>,
    /// Rotates queries and keys by their places.
    pub rope: Option<Rope>,
    /// Which keys a query sees.
    pub reach: Reach,
    /// The maps of relative positions, for scores by content and position (He et al. 2021): q_i k_j + q_i K(r) + k_j Q(r),
    /// all divided by sqrt(3 head_dim), where r is the table's row for i - j.
    pub relative: Option<RelativeMaps>,
}

/// Maps of relative positions to queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct RelativeMaps {
    /// To queries and to keys, `[heads x head_dim, hidden]` each; without them the layer's own maps are used.
    pub own: Option<[Linear; 2]>,
}

/// The embeddings of relative positions, which all layers share.
#[derive(Clone, Debug, PartialEq)]
pub struct Relative {
    /// `[2 buckets, hidden]`: the distance 0 has row `buckets`.
    pub table: Tensor,
    /// Applied to the table.
    pub norm: Option<Norm>,
    /// Rows for distances to one side.
    pub buckets: usize,
    /// Distances from here on have the same row.
    pub distance_max: usize,
}

impl Relative {
    /// The row of a query at `query` and a key at `key`: near distances have rows of their own, farther ones share rows
    /// by their logarithm. In f32, as in training.
    pub fn row(&self, query: usize, key: usize) -> usize {
        let (distance, middle) = (query.abs_diff(key), self.buckets / 2);
        let bucket = match distance <= middle {
            true => distance,
            false => {
                let share = (distance as f32 / middle as f32).ln()
                    / ((self.distance_max - 1) as f32 / middle as f32).ln();
                middle + (share * (middle - 1) as f32).ceil() as usize
            }
        };
        match query >= key {
            true => (self.buckets + bucket).min(2 * self.buckets - 1),
            false => self.buckets.saturating_sub(bucket),
        }
    }
}

/// Rotary position embedding (Su et al. 2021) over the whole head: value i of the first half turns with value i of the
/// second, by the angle place x scale x theta^(-2i / head_dim).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// Factor of every frequency; 1 unless positions are stretched.
    pub scale: f64,
}

impl Rope {
    /// Rotary positions that are not stretched.
    pub fn new(theta: f64) -> Self {
        Self { theta, scale: 1.0 }
    }

    /// The angle between two places for each pair of a head's values, `[head_dim / 2]`; in f32, as in training.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let frequency = |at: usize| self.scale / self.theta.powf((2 * at) as f64 / head_dim as f64);
        (0..head_dim / 2).map(|at| frequency(at) as f32).collect()
    }
}

/// down(act(up x)), or down(act(gate x) * up x) (Shazeer 2020).
#[derive(Clone, Debug, PartialEq)]
pub struct FeedForward {
    /// The activation.
    pub activation: Activation,
    /// `[intermediate, hidden]`, where the part is gated.
    pub gate: Option<Linear>,
    /// `[intermediate, hidden]`.
    pub up: Linear,
    /// `[hidden, intermediate]`.
    pub down: Linear,
}

/// From the states of a sequence to its logit.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// What is read of the states.
    pub at: Pool,
    /// Applied first.
    pub dense: Option<(Linear, Activation)>,
    /// Applied next.
    pub norm: Option<Norm>,
    /// The logit.
    pub score: Score,
}

/// What a head reads of a sequence's states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The first token's.
    First,
    /// The last token's.
    Last,
    /// The mean of all.
    Mean,
}

/// How a pooled state becomes a logit.
#[derive(Clone, Debug, PartialEq)]
pub enum Score {
    /// `[1, hidden]`.
    Linear(Linear),
    /// The logit of one token, less that of another: rows `[1, hidden]` of the output embeddings.
    Tokens {
        /// The token that says that the document answers the query.
        yes: Tensor,
        /// The token that says that it does not.
        no: Option<Tensor>,
    },
}

/// Why a batch does not fit the model.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BatchError {
    /// A token id is not in the vocabulary: the tokenizer belongs to another model.
    #[error("token id {id} is not among the model's {vocabulary}")]
    Token {
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        vocabulary: usize,
    },
    /// A sequence is longer than the model reads.
    #[error("a sequence has {tokens} tokens, and the model reads {limit}")]
    Length {
        /// Its tokens.
        tokens: u32,
        /// The limit.
        limit: u32,
    },
}

/// The tensors of each part, shared and mutable. Fields are matched in full, so that a new one cannot be forgotten.
macro_rules! visit {
    ($tensors:ident $(, $mut:ident)?) => {
        impl Plan {
            /// All tensors, in the order in which they are used.
            pub fn $tensors(&$($mut)? self) -> Vec<&$($mut)? Tensor> {
                let Self { family: _, embed, relative, blocks, final_norm, head, tokens_max: _, unused: _ } = self;
                let Embed { words, positions, types, norm } = embed;
                let mut all = vec![words];
                all.extend(positions.into_iter().map(|Positions { table, offset: _ }| table));
                all.extend(types);
                all.extend(norm.into_iter().flat_map(Norm::$tensors));
                if let Some(Relative { table, norm, .. }) = relative {
                    all.push(table);
                    all.extend(norm.into_iter().flat_map(Norm::$tensors));
                }
                all.extend(blocks.into_iter().flat_map(Block::$tensors));
                all.extend(final_norm.into_iter().flat_map(Norm::$tensors));
                let Head { at: _, dense, norm, score } = head;
                all.extend(dense.into_iter().flat_map(|(linear, _)| linear.$tensors()));
                all.extend(norm.into_iter().flat_map(Norm::$tensors));
                match score {
                    Score::Linear(linear) => all.extend(linear.$tensors()),
                    Score::Tokens { yes, no } => all.extend([yes].into_iter().chain(no)),
                }
                all
            }
        }

        impl Block {
            fn $tensors(&$($mut)? self) -> Vec<&$($mut)? Tensor> {
                let Self { norms: _, attention_norm, attention, feed_forward_norm, feed_forward } = self;
                let Attention { query, key, value, out, query_key_norms, relative, .. } = attention;
                let FeedForward { activation: _, gate, up, down } = feed_forward;
                let mut all: Vec<_> = attention_norm.into_iter().flat_map(Norm::$tensors).collect();
                all.extend([query, key, value].into_iter().flat_map(Linear::$tensors));
                all.extend(query_key_norms.into_iter().flatten().flat_map(Norm::$tensors));
                let own = relative.into_iter().flat_map(|RelativeMaps { own }| own).flatten();
                all.extend(own.flat_map(Linear::$tensors));
                all.extend(out.$tensors());
                all.extend(feed_forward_norm.$tensors());
                all.extend(gate.into_iter().flat_map(Linear::$tensors));
                all.extend([up, down].into_iter().flat_map(Linear::$tensors));
                all
            }
        }

        impl Linear {
            fn $tensors(&$($mut)? self) -> Vec<&$($mut)? Tensor> {
                let Self { weight, bias } = self;
                [weight].into_iter().chain(bias).collect()
            }
        }

        impl Norm {
            fn $tensors(&$($mut)? self) -> Vec<&$($mut)? Tensor> {
                let Self { kind: _, gain, bias, eps: _ } = self;
                [gain].into_iter().chain(bias).collect()
            }
        }
    };
}

visit!(tensors);
visit!(tensors_mut, mut);

impl Plan {
    /// Width of a token's state.
    pub fn hidden(&self) -> usize {
        self.embed.words.shape[1]
    }

    /// The largest inner width of the feed-forward parts.
    pub fn intermediate(&self) -> usize {
        self.blocks.iter().map(|block| block.feed_forward.up.outputs()).max().unwrap_or(0)
    }

    /// Number of token ids.
    pub fn vocabulary(&self) -> usize {
        self.embed.words.shape[0]
    }

    /// Number of values; a value that serves two parts counts for each.
    pub fn parameters(&self) -> usize {
        self.tensors().into_iter().map(Tensor::count).sum()
    }

    /// The same parts, their tensors without values.
    pub fn without_values(&self) -> Self {
        let mut plan = self.clone();
        for tensor in plan.tensors_mut() {
            (tensor.values, tensor.stored) = (Vec::new(), None);
        }
        plan
    }

    /// The same plan with all values in memory.
    ///
    /// # Panics
    /// If a file was written to since the model was opened.
    pub fn held(&self) -> Self {
        let mut plan = self.clone();
        plan.tensors_mut().into_iter().for_each(Tensor::hold);
        self.check_files().unwrap_or_else(|changed| panic!("{changed}"));
        plan
    }

    /// Checks that every token and position of a batch has an embedding.
    ///
    /// # Errors
    /// [`BatchError`] for the first token or sequence without one.
    pub fn check(&self, batch: &Packed) -> Result<(), BatchError> {
        let limit = self.tokens_max;
        if let Some(tokens) = batch.lengths().find(|&tokens| tokens > limit) {
            return Err(BatchError::Length { tokens, limit });
        }
        let vocabulary = self.vocabulary();
        match batch.ids().iter().copied().max().filter(|&id| id as usize >= vocabulary) {
            Some(id) => Err(BatchError::Token { id, vocabulary }),
            None => Ok(()),
        }
    }

    /// Replaces each value by its mean with that of another model of the same shape.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn average_with(&mut self, other: &Self) {
        let (own, other) = (self.tensors_mut(), other.tensors());
        assert_eq!(own.len(), other.len(), "two models of one shape");
        for (own, other) in own.into_iter().zip(other) {
            assert_eq!(own.shape, other.shape, "two models of one shape");
            own.hold();
            own.values.iter_mut().zip(&*other.values()).for_each(|(own, other)| *own = (*own + other) / 2.0);
        }
    }
}

impl Block {
    /// Its maps of states.
    pub fn maps(&self) -> impl Iterator<Item = &Linear> {
        let Attention { query, key, value, out, .. } = &self.attention;
        let FeedForward { gate, up, down, .. } = &self.feed_forward;
        [query, key, value, out, up, down].into_iter().chain(gate)
    }
}

impl Attention {
    /// How many heads of queries read each head of keys and values.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}
