//! What the fused engines run of a plan, or why they do not.
//!
//! The CPU engine runs all that [`check`] lets through; the GPU engine runs an [`Encoder`].

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
        if plan.final_norm.is_some() {
            return Err("it norms its last states");
        }
        for Block { norms, attention_norm, attention, feed_forward_norm, feed_forward } in &plan.blocks {
            let is_layer_norm = |norm: &Norm| norm.kind == NormKind::Layer;
            let has_norms =
                attention_norm.as_ref().is_some_and(is_layer_norm) && is_layer_norm(feed_forward_norm);
            if *norms != Norms::Post || !has_norms {
                return Err("its layers norm their input");
            }
            let is_plain = attention.kv_heads == heads && attention.query_key_norms.is_none();
            if !is_plain || (attention.heads, attention.head_dim) != (heads, head_dim) {
                return Err("its heads of queries and keys differ");
            }
            if attention.relative.is_some() {
                return Err("its attention has relative positions");
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

/// How a model's last layer is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastLayer {
    /// For the first token only, with keys and values absorbed into its query: exact without rotary positions.
    Absorbed,
    /// Its attention for all tokens, the rest for the one that the head reads.
    One,
    /// For all tokens, because the head reads all.
    Full,
}

impl LastLayer {
    /// How the last layer of a plan is computed.
    pub fn of(plan: &Plan) -> Self {
        let is_absorbed = Encoder::of(plan).is_ok();
        match plan.head.at {
            Pool::First if is_absorbed => Self::Absorbed,
            Pool::First | Pool::Last => Self::One,
            Pool::Mean => Self::Full,
        }
    }
}

/// Refuses a plan with a part that the CPU engine does not run.
///
/// # Errors
/// Says what it is.
pub(super) fn check(plan: &Plan) -> Result<(), &'static str> {
    if plan.blocks.is_empty() {
        return Err("it has no layer");
    }
    for Block { norms, attention_norm, attention, feed_forward, .. } in &plan.blocks {
        if *norms == Norms::Post && attention_norm.is_none() {
            return Err("it has a layer without a norm after its attention");
        }
        if attention.relative.is_some() {
            return Err("its attention has relative positions");
        }
        if attention.query_key_norms.is_some() && attention.rope.is_none() {
            return Err("it norms queries and keys without rotary positions");
        }
        if attention.rope.is_some() && attention.head_dim % 2 != 0 {
            return Err("its heads have an odd size, and rotary positions turn pairs of values");
        }
        if attention.heads % attention.kv_heads != 0 {
            return Err("its heads of keys do not divide those of queries");
        }
        if feed_forward.gate.is_none() && !matches!(feed_forward.activation, Activation::Gelu(_)) {
            return Err("its feed-forward part is neither gated nor has GELU");
        }
    }
    Ok(())
}
