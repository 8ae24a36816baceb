//! DeBERTa-v2 (He et al. 2021): post-norm layers whose scores gain the products of queries and keys with learned relative
//! positions.

use super::keys::{GELU_OR_SILU, Keys};
use super::post_norm::PostNorm;
use super::{Fault, Source};
use crate::model::plan::{
    Activation, Block, Embed, Head, Linear, Norm, Plan, Pool, Relative, RelativeMaps, Score, Tensor,
};

pub(super) fn describe(source: &Source) -> Result<Plan, Fault> {
    let keys = &source.keys;
    source.has_no_modules()?;
    let shape = PostNorm::read(keys, 1e-7)?;
    let (hidden, shares_maps) = (shape.hidden, keys.flag("share_att_key")?);
    keys.must_be("relative_attention", true, false)?;
    keys.must_be("position_biased_input", false, true)?;
    if keys.size_or("embedding_size", Some(hidden))? != hidden {
        return Err("embedding_size: another than hidden_size is not served".to_owned().into());
    }
    if keys.get("conv_kernel_size").and_then(|size| size.as_u64()).is_some_and(|size| size > 0) {
        return Err("conv_kernel_size: a convolution is not served; 0 is".to_owned().into());
    }
    has_both_terms(keys)?;
    let tokens_max = source.tokens_max()?;
    let row = source.label_row()?;
    let table =
        |name: &str, rows: usize| Tensor::new(format!("deberta.embeddings.{name}.weight"), &[rows, hidden]);
    let types = keys.get("type_vocab_size").and_then(|size| size.as_u64()).unwrap_or(0) as usize;
    Ok(Plan {
        family: "deberta-v2",
        embed: Embed {
            words: table("word_embeddings", keys.size("vocab_size")?),
            positions: None,
            types: (types > 0).then(|| table("token_type_embeddings", types)),
            norm: Some(Norm::layer("deberta.embeddings.LayerNorm", hidden, shape.eps)),
        },
        relative: Some(relative(keys, &shape, tokens_max)?),
        blocks: (0..keys.size("num_hidden_layers")?).map(|layer| block(&shape, shares_maps, layer)).collect(),
        final_norm: None,
        head: Head {
            at: Pool::First,
            dense: Some((Linear::new("pooler.dense", hidden, hidden), pooler_activation(keys)?)),
            norm: None,
            score: Score::Linear(row.of(|labels| Linear::new("classifier", labels, hidden))),
        },
        tokens_max,
        unused: vec!["deberta.embeddings.position_ids".to_owned()],
    })
}

fn pooler_activation(keys: &Keys) -> Result<Activation, String> {
    let [first, others @ ..] = GELU_OR_SILU;
    let served: Vec<(&str, Activation)> =
        [first, ("tanh", Activation::Tanh)].into_iter().chain(others).collect();
    keys.one_of("pooler_hidden_act", &served)
}

/// Refuses a model without one of the two terms; a file lists them, or writes them as one word.
fn has_both_terms(keys: &Keys) -> Result<(), String> {
    let Some(value) = keys.get("pos_att_type") else { return Err("pos_att_type is missing".to_owned()) };
    let has = |term: &str| match value {
        serde_json::Value::String(terms) => terms.split('|').any(|other| other == term),
        serde_json::Value::Array(terms) => terms.iter().any(|other| other == term),
        _ => false,
    };
    match has("c2p") && has("p2c") {
        true => Ok(()),
        false => Err(format!("pos_att_type: {value} is not served; c2p and p2c together are")),
    }
}

/// The table of relative positions, which all layers read.
fn relative(keys: &Keys, shape: &PostNorm, tokens_max: u32) -> Result<Relative, String> {
    let buckets = keys.size("position_buckets")?;
    if buckets < 2 {
        return Err(format!("position_buckets: {buckets} is not served; 2 and more are"));
    }
    let stated = keys.get("max_relative_positions").and_then(|most| most.as_i64()).filter(|&most| most > 0);
    let norm = match keys.get("norm_rel_ebd").and_then(|norm| norm.as_str()) {
        Some(words) => words.split('|').any(|word| word.trim() == "layer_norm"),
        None => false,
    };
    Ok(Relative {
        table: Tensor::new("deberta.encoder.rel_embeddings.weight".to_owned(), &[2 * buckets, shape.hidden]),
        norm: norm.then(|| Norm::layer("deberta.encoder.LayerNorm", shape.hidden, shape.eps)),
        buckets,
        distance_max: stated.map_or(tokens_max as usize, |most| most as usize),
    })
}

/// A layer; where it shares maps, relative positions go through its own of queries and keys.
fn block(shape: &PostNorm, shares_maps: bool, layer: usize) -> Block {
    let layer = format!("deberta.encoder.layer.{layer}");
    let to_heads =
        |part: &str| Linear::new(&format!("{layer}.attention.self.{part}_proj"), shape.hidden, shape.hidden);
    let own = (!shares_maps).then(|| ["pos_query", "pos_key"].map(to_heads));
    let mut block = shape.block(&layer, ["query_proj", "key_proj", "value_proj"]);
    block.attention.relative = Some(RelativeMaps { own });
    block
}
