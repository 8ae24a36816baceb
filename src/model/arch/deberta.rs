//! DeBERTa-v2 (He et al. 2021): post-norm layers whose scores gain the products of queries and keys with learned relative
//! positions.

use super::keys::{GELU_OR_SILU, Keys};
use super::{Fault, Source};
use crate::model::plan::{
    Activation, Attention, Block, Embed, FeedForward, Head, Linear, Norm, Norms, Plan, Pool, Reach, Relative,
    RelativeMaps, Score, Tensor,
};

/// What the layers have in common.
struct Shape {
    hidden: usize,
    heads: usize,
    intermediate: usize,
    eps: f64,
    activation: Activation,
    /// Whether relative positions go through the maps of queries and keys.
    shares_maps: bool,
}

pub(super) fn describe(source: &Source) -> Result<Plan, Fault> {
    let keys = &source.keys;
    source.has_no_modules()?;
    let hidden = keys.size("hidden_size")?;
    let shape = Shape {
        hidden,
        heads: keys.heads(hidden)?,
        intermediate: keys.size("intermediate_size")?,
        eps: keys.positive_or("layer_norm_eps", 1e-7)?,
        activation: keys.one_of("hidden_act", &GELU_OR_SILU)?,
        shares_maps: keys.flag("share_att_key")?,
    };
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
        blocks: (0..keys.size("num_hidden_layers")?).map(|layer| shape.block(layer)).collect(),
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
fn relative(keys: &Keys, shape: &Shape, tokens_max: u32) -> Result<Relative, String> {
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

impl Shape {
    fn block(&self, layer: usize) -> Block {
        let (h, i) = (self.hidden, self.intermediate);
        let name = |part: &str| format!("deberta.encoder.layer.{layer}.{part}");
        let to_heads = |part: &str| Linear::new(&name(&format!("attention.self.{part}_proj")), h, h);
        Block {
            norms: Norms::Post,
            attention_norm: Some(Norm::layer(&name("attention.output.LayerNorm"), h, self.eps)),
            attention: Attention {
                heads: self.heads,
                kv_heads: self.heads,
                head_dim: h / self.heads,
                query: to_heads("query"),
                key: to_heads("key"),
                value: to_heads("value"),
                out: Linear::new(&name("attention.output.dense"), h, h),
                query_key_norms: None,
                rope: None,
                reach: Reach::All,
                relative: Some(RelativeMaps {
                    own: (!self.shares_maps).then(|| ["pos_query", "pos_key"].map(to_heads)),
                }),
            },
            feed_forward_norm: Norm::layer(&name("output.LayerNorm"), h, self.eps),
            feed_forward: FeedForward {
                activation: self.activation,
                gate: None,
                up: Linear::new(&name("intermediate.dense"), i, h),
                down: Linear::new(&name("output.dense"), h, i),
            },
        }
    }
}
