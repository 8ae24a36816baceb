//! What the fused engines run of a plan, or why they do not.

use crate::model::{
    Activation, Attention, Block, Head, Linear, Norm, NormKind, Norms, Plan, Pool, Positions, Reach, Score,
    Tensor,
};
use crate::ops::Gelu;

/// A plan of BERT's kind: post-norm layers with biases over learned positions, all tokens seeing all, read at the first
/// token through a dense map with tanh.
pub(super) struct Encoder<'a> {
    pub plan: &'a Plan,
    pub heads: usize,
    pub head_dim: usize,
    pub positions: &'a Positions,
    pub types: &'a Tensor,
    pub embedding_norm: &'a Norm,
    pub gelu: Gelu,
    pub pooler: &'a Linear,
    pub classifier: &'a Linear,
}

impl<'a> Encoder<'a> {
    /// The parts of a plan, if it is of this kind; else what in it is not.
    pub fn of(plan: &'a Plan) -> Result<Self, &'static str> {
        let first = plan.blocks.first().ok_or("it has no layer")?;
        let Attention { heads, head_dim, .. } = first.attention;
        let Head { at: Pool::First, dense: Some((pooler, Activation::Tanh)), norm: None, score } = &plan.head
        else {
            return Err("its head is not a dense map with tanh at the first token");
        };
        let Score::Linear(classifier) = score else { return Err("its score is that of tokens") };
        let activation = first.feed_forward.activation;
        let Activation::Gelu(gelu) = activation else { return Err("its activation is not GELU") };
        for Block { norms, attention_norm, attention, feed_forward_norm, feed_forward } in &plan.blocks {
            let is_layer_norm = |norm: &Norm| norm.kind == NormKind::Layer;
            let has_norms =
                attention_norm.as_ref().is_some_and(is_layer_norm) && is_layer_norm(feed_forward_norm);
            if *norms != Norms::Post || !has_norms || plan.final_norm.is_some() {
                return Err("its layers norm their input");
            }
            let is_plain = attention.kv_heads == heads && attention.query_key_norms.is_none();
            if !is_plain || (attention.heads, attention.head_dim) != (heads, head_dim) {
                return Err("its heads of queries and keys differ");
            }
            if attention.rope.is_some() || attention.reach != Reach::All {
                return Err("its attention has rotary positions or a mask");
            }
            if feed_forward.gate.is_some() || feed_forward.activation != activation {
                return Err("its feed-forward part is gated");
            }
        }
        Ok(Self {
            plan,
            heads,
            head_dim,
            positions: plan.embed.positions.as_ref().ok_or("it has no learned positions")?,
            types: plan.embed.types.as_ref().ok_or("it has no token types")?,
            embedding_norm: plan.embed.norm.as_ref().ok_or("its embeddings are not normed")?,
            gelu,
            pooler,
            classifier,
        })
    }
}
