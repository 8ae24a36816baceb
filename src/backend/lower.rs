//! What the fused engines run of a plan, or why they do not.
//!
//! The CPU engine runs all that [`check`] lets through, the GPU engine what [`check_for_gpu`] does.

use crate::model::{Activation, Attention, Block, FeedForward, Norms, Plan, Pool, Reach};
use crate::ops::PAD;
use crate::ops::cuda::{HEAD_MAX, PLACES_MAX, ROW_MAX, STRIDE_MAX};

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
    /// How the CPU engine computes the last layer of a plan.
    pub fn of(plan: &Plan) -> Self {
        match plan.head.at {
            Pool::First if plan.blocks.last().is_some_and(can_be_absorbed) => Self::Absorbed,
            Pool::First | Pool::Last => Self::One,
            Pool::Mean => Self::Full,
        }
    }

    /// The same of the GPU engine, which does not absorb keys of wide states.
    pub fn on_gpu(plan: &Plan) -> Self {
        match Self::of(plan) {
            Self::Absorbed if plan.hidden().next_multiple_of(PAD) > STRIDE_MAX => Self::One,
            last => last,
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
        if attention.relative.is_some() && (attention.rope.is_some() || attention.reach != Reach::All) {
            return Err("it has relative positions together with rotary ones or a mask");
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

/// Refuses a plan with a part that the GPU engine does not run; pairs have at most `tokens` tokens.
///
/// # Errors
/// Says what it is.
pub fn check_for_gpu(plan: &Plan, tokens: u32) -> Result<(), String> {
    check(plan)?;
    if plan.blocks.iter().any(|block| block.attention.relative.is_some()) {
        return Err("its attention has relative positions".to_owned());
    }
    let hidden = plan.hidden();
    let head_dim = plan.blocks.iter().map(|block| block.attention.head_dim).max().unwrap_or(0);
    if head_dim > HEAD_MAX {
        return Err(format!("its heads have {head_dim} values, and the GPU kernels read at most {HEAD_MAX}"));
    }
    if hidden > ROW_MAX {
        return Err(format!("its states have {hidden} values, and the GPU kernels read at most {ROW_MAX}"));
    }
    if tokens > PLACES_MAX {
        return Err(format!(
            "its pairs have up to {tokens} tokens, and the GPU kernels read at most {PLACES_MAX}"
        ));
    }
    Ok(())
}

/// Whether the GPU engine has a plan's linear maps in E4M3 too: those of layers that norm their output, whose tokens see all
/// others without rotary positions, and whose feed-forward part is not gated.
pub fn has_fp8(plan: &Plan) -> bool {
    let is_plain = |block: &Block| {
        let FeedForward { gate, .. } = &block.feed_forward;
        can_be_absorbed(block) && gate.is_none()
    };
    LastLayer::on_gpu(plan) == LastLayer::Absorbed && plan.blocks.iter().all(is_plain)
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
