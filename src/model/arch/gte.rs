//! mGTE (Zhang et al. 2024): BERT's layers with rotary positions and gated feed-forward parts. Published with code of its own
//! it has model type `new`; saved by `transformers` 5, `gte`, and its tensors' names begin so.

use super::keys::Keys;
use super::post_norm::PostNorm;
use super::{Fault, Source};
use crate::model::plan::{
    Activation, Attention, Block, Embed, FeedForward, Head, Linear, Norm, Plan, Pool, Rope, Score, Tensor,
};

pub(super) fn describe(source: &Source) -> Result<Plan, Fault> {
    let keys = &source.keys;
    source.has_no_modules()?;
    keys.must_be("pack_qkv", true, true)?;
    keys.must_be("logn_attention_scale", false, false)?;
    let stem = stem(source);
    // `transformers` has rotary positions only.
    if stem == "new" || keys.get("position_embedding_type").is_some() {
        keys.one_of("position_embedding_type", &[("rope", ())])?;
    }
    keys.one_of("layer_norm_type", &[("layer_norm", ())])?;
    let shape = PostNorm::read(keys, 1e-12)?;
    let (h, eps, rope) = (shape.hidden, shape.eps, rope(keys, shape.hidden / shape.heads)?);
    let table = |name: &str, rows: usize| {
        Tensor::new(format!("{stem}.embeddings.{name}_embeddings.weight"), &[rows, h])
    };
    let types = match keys.get("type_vocab_size").and_then(serde_json::Value::as_u64) {
        Some(0) => None,
        _ => Some(table("token_type", keys.size_or("type_vocab_size", Some(1))?)),
    };
    let row = source.label_row()?;
    Ok(Plan {
        family: "new",
        embed: Embed {
            words: table("word", keys.size("vocab_size")?),
            positions: None,
            types,
            norm: Some(Norm::layer(&format!("{stem}.embeddings.LayerNorm"), h, eps)),
        },
        relative: None,
        blocks: (0..keys.size("num_hidden_layers")?)
            .map(|layer| block(&shape, rope, (stem, layer)))
            .collect(),
        final_norm: None,
        head: Head {
            at: Pool::First,
            dense: Some((Linear::new(&format!("{stem}.pooler.dense"), h, h), Activation::Tanh)),
            norm: None,
            score: Score::Linear(row.of(|labels| Linear::new("classifier", labels, h))),
        },
        tokens_max: source.tokens_max()?,
        unused: vec![format!("{stem}.embeddings.position_ids")],
    })
}

/// What the names of tensors begin with.
fn stem(source: &Source) -> &'static str {
    if source.architecture.starts_with("Gte") { "gte" } else { "new" }
}

/// The rotary positions; stretched for the NTK scaling with which long pairs were trained. As in vLLM, theta is
/// multiplied by the factor and every frequency divided by factor^(2 / head size).
fn rope(keys: &Keys, head_dim: usize) -> Result<Rope, String> {
    if let Some(own) = keys.below("rope_parameters")? {
        return own
            .one_of("rope_type", &[("default", ())])
            .and_then(|()| own.positive_or("rope_theta", 160_000.0))
            .map(Rope::new)
            .map_err(|reason| format!("rope_parameters.{reason}"));
    }
    let theta = keys.positive_or("rope_theta", 10_000.0)?;
    let Some(scaling) = keys.below("rope_scaling")? else { return Ok(Rope::new(theta)) };
    let below = |reason: String| format!("rope_scaling.{reason}");
    scaling.one_of("type", &[("ntk", ())]).map_err(below)?;
    let factor = scaling.positive_or("factor", 1.0).map_err(below)?;
    if scaling.get("mixed_b").is_some() {
        return Err("rope_scaling.mixed_b is not served; ntk with a factor alone is".to_owned());
    }
    Ok(Rope { theta: theta * factor, scale: factor.powf(-2.0 / head_dim as f64) })
}

fn block(shape: &PostNorm, rope: Rope, (stem, layer): (&str, usize)) -> Block {
    let (h, i) = (shape.hidden, shape.intermediate);
    let name = |part: &str| format!("{stem}.encoder.layer.{layer}.{part}");
    let packed = Linear::new(&name("attention.qkv_proj"), 3 * h, h);
    let gated = Linear::unbiased(&name("mlp.up_gate_proj"), 2 * i, h);
    let plain = shape.block(&name(""), [""; 3]);
    Block {
        attention_norm: Some(Norm::layer(&name("attn_ln"), h, shape.eps)),
        attention: Attention {
            query: packed.rows(0, h),
            key: packed.rows(h, h),
            value: packed.rows(2 * h, h),
            out: Linear::new(&name("attention.o_proj"), h, h),
            rope: Some(rope),
            ..plain.attention
        },
        feed_forward_norm: Norm::layer(&name("mlp_ln"), h, shape.eps),
        feed_forward: FeedForward {
            gate: Some(gated.rows(i, i)),
            up: gated.rows(0, i),
            down: Linear::new(&name("mlp.down_proj"), h, i),
            ..plain.feed_forward
        },
        ..plain
    }
}
