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
        match plan.head.at {
            Pool::First if plan.blocks.last().is_some_and(can_be_absorbed) => Self::Absorbed,
            Pool::First | Pool::Last => Self::One,
            Pool::Mean => Self::Full,
        }
    }
}

/// Whether a last layer's keys and values can be absorbed into the first token's query: scores are products of states, of
/// which none is masked out.
fn can_be_absorbed(Block { norms, attention, .. }: &Block) -> bool {
    let Attention { heads, kv_heads, query_key_norms, rope, reach, relative, .. } = attention;
    let are_plain = query_key_norms.is_none() && rope.is_none() && relative.is_none();
    *norms == Norms::Post && heads == kv_heads && are_plain && *reach == Reach::All
}

/// Refuses a plan with a part that the CPU engine does not run.
///
/// # Errors
/// Says what it is.
pub(super) fn check(plan: &Plan) -> Result<(), &'static str> {
    let first = plan.blocks.first().ok_or("it has no layer")?;
    for Block { norms, attention_norm, attention, feed_forward, .. } in &plan.blocks {
        let shape = |attention: &Attention| (attention.heads, attention.head_dim);
        if shape(attention) != shape(&first.attention) {
            return Err("its layers have different numbers or sizes of heads");
        }
        if *norms != first.norms {
            return Err("some of its layers norm their input, and others their output");
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Model, Rope};

    fn bert() -> Plan {
        Model::bundled().plan
    }

    #[test]
    fn a_last_layer_is_absorbed_whatever_stands_around_it() {
        assert_eq!(LastLayer::of(&bert()), LastLayer::Absorbed);
        type Change = fn(&mut Plan);
        let rows: [(Change, LastLayer); 8] = [
            (|plan| (plan.embed.types, plan.embed.positions) = (None, None), LastLayer::Absorbed),
            (|plan| plan.head.dense = None, LastLayer::Absorbed),
            (|plan| plan.blocks[0].attention.rope = Some(Rope::new(100.0)), LastLayer::Absorbed),
            (|plan| plan.blocks[1].attention.rope = Some(Rope::new(100.0)), LastLayer::One),
            (|plan| plan.blocks[1].attention.reach = Reach::Window(9), LastLayer::One),
            (|plan| plan.blocks[1].norms = Norms::Pre, LastLayer::One),
            (|plan| plan.head.at = Pool::Last, LastLayer::One),
            (|plan| plan.head.at = Pool::Mean, LastLayer::Full),
        ];
        for (place, (change, expected)) in rows.into_iter().enumerate() {
            let mut plan = bert();
            change(&mut plan);
            assert_eq!(LastLayer::of(&plan), expected, "row {place}");
        }
    }

    #[test]
    fn layers_that_the_engine_takes_to_be_alike_are_alike() {
        assert_eq!(check(&bert()), Ok(()));
        let heads = Err("its layers have different numbers or sizes of heads");
        type Change = fn(&mut Plan);
        let rows: [(Change, _); 3] = [
            (|plan| plan.blocks[1].attention.heads *= 2, heads),
            (|plan| plan.blocks[1].attention.head_dim *= 2, heads),
            (
                |plan| plan.blocks[1].norms = Norms::Pre,
                Err("some of its layers norm their input, and others their output"),
            ),
        ];
        for (change, expected) in rows {
            let mut plan = bert();
            change(&mut plan);
            assert_eq!(check(&plan), expected);
        }
    }
}
