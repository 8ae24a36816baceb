//! What post-norm layers (Vaswani et al. 2017) of several architectures have in common.

use super::keys::{GELU_OR_SILU, Keys};
use crate::model::plan::{Activation, Attention, Block, FeedForward, Linear, Norm, Norms, Reach};

/// The shape of the layers.
pub(super) struct PostNorm {
    pub hidden: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub eps: f64,
    pub activation: Activation,
}

impl PostNorm {
    /// Reads it of a configuration that may leave out `layer_norm_eps`.
    pub fn read(keys: &Keys, eps: f64) -> Result<Self, String> {
        let hidden = keys.size("hidden_size")?;
        Ok(Self {
            hidden,
            heads: keys.heads(hidden)?,
            intermediate: keys.size("intermediate_size")?,
            eps: keys.positive_or("layer_norm_eps", eps)?,
            activation: keys.one_of("hidden_act", &GELU_OR_SILU)?,
        })
    }

    /// A layer with BERT's names of tensors, behind `layer`, and these of the maps to queries, keys and values.
    pub fn block(&self, layer: &str, to_heads: [&str; 3]) -> Block {
        let Self { hidden, heads, intermediate, eps, activation } = *self;
        let name = |part: &str| format!("{layer}.{part}");
        let [query, key, value] =
            to_heads.map(|part| Linear::new(&name(&format!("attention.self.{part}")), hidden, hidden));
        Block {
            norms: Norms::Post,
            attention_norm: Some(Norm::layer(&name("attention.output.LayerNorm"), hidden, eps)),
            attention: Attention {
                heads,
                kv_heads: heads,
                head_dim: hidden / heads,
                query,
                key,
                value,
                out: Linear::new(&name("attention.output.dense"), hidden, hidden),
                query_key_norms: None,
                rope: None,
                reach: Reach::All,
                relative: None,
            },
            feed_forward_norm: Norm::layer(&name("output.LayerNorm"), hidden, eps),
            feed_forward: FeedForward {
                activation,
                gate: None,
                up: Linear::new(&name("intermediate.dense"), intermediate, hidden),
                down: Linear::new(&name("output.dense"), hidden, intermediate),
            },
        }
    }
}
