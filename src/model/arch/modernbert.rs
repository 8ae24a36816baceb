//! ModernBERT (Warner et al. 2024): pre-norm layers without a norm in the first, gated feed-forward parts, and rotary
//! positions; most layers see a window only.

use super::keys::{GELU_OR_SILU, Keys};
use super::{Fault, Source};
use crate::model::plan::{
    Attention, Block, Embed, FeedForward, Head, Linear, Norm, NormKind, Norms, Plan, Pool, Reach, Rope,
    Score, Tensor,
};

/// The kinds of layers, as `layer_types` names them.
const GLOBAL: &str = "full_attention";
const LOCAL: &str = "sliding_attention";

/// What the layers have in common.
struct Shape {
    stem: &'static str,
    hidden: usize,
    heads: usize,
    intermediate: usize,
    eps: f64,
    norm_bias: bool,
    attention_bias: bool,
    feed_forward_bias: bool,
}

pub(super) fn describe(source: &Source) -> Result<Plan, Fault> {
    let keys = &source.keys;
    let hidden = keys.size("hidden_size")?;
    let has_classifier = source.architecture == "ModernBertForSequenceClassification";
    let shape = Shape {
        stem: if has_classifier { "model." } else { "" },
        hidden,
        heads: keys.heads(hidden)?,
        intermediate: keys.size("intermediate_size")?,
        eps: keys.positive_or("norm_eps", 1e-5)?,
        norm_bias: keys.flag("norm_bias")?,
        attention_bias: keys.flag("attention_bias")?,
        feed_forward_bias: keys.flag("mlp_bias")?,
    };
    let activation = keys.one_of("hidden_activation", &GELU_OR_SILU)?;
    let layers = layers(keys)?;
    let head = match has_classifier {
        true => classifier(source, &shape)?,
        false => source.module_head(hidden)?,
    };
    let name = |part: &str| format!("{}{part}", shape.stem);
    let block = |(layer, (rope, reach)): (usize, (Rope, Reach))| shape.block(layer, rope, reach);
    let mut blocks: Vec<Block> = layers.into_iter().enumerate().map(block).collect();
    blocks.iter_mut().for_each(|block| block.feed_forward.activation = activation);
    Ok(Plan {
        family: "modernbert",
        embed: Embed {
            words: Tensor::new(name("embeddings.tok_embeddings.weight"), &[keys.size("vocab_size")?, hidden]),
            positions: None,
            types: None,
            norm: Some(shape.norm(&name("embeddings.norm"))),
        },
        relative: None,
        blocks,
        final_norm: Some(shape.norm(&name("final_norm"))),
        head,
        tokens_max: source.tokens_max()?,
        unused: Vec::new(),
    })
}

/// The rotary positions and the reach of each layer, as `transformers` 5 writes them or as earlier releases did.
fn layers(keys: &Keys) -> Result<Vec<(Rope, Reach)>, String> {
    let layers = keys.size("num_hidden_layers")?;
    let every = keys.size_or("global_attn_every_n_layers", Some(3))?;
    let listed = keys.layer_types(layers, &[GLOBAL, LOCAL])?;
    let is_global =
        |layer: usize| listed.as_ref().map_or(layer.is_multiple_of(every), |types| types[layer] == GLOBAL);
    let parameters = keys.below("rope_parameters")?.unwrap_or_default();
    let rope = |kind: &str, older: &str, default: f64| -> Result<Rope, String> {
        let theta = keys.positive_or(older, default)?;
        let Some(own) = parameters.below(kind)? else { return Ok(Rope::new(theta)) };
        own.one_of("rope_type", &[("default", ())])
            .and_then(|()| own.positive_or("rope_theta", theta))
            .map(Rope::new)
            .map_err(|reason| format!("rope_parameters.{kind}.{reason}"))
    };
    let global = rope(GLOBAL, "global_rope_theta", 160_000.0)?;
    let local = rope(LOCAL, "local_rope_theta", 10_000.0)?;
    // A token sees as many others to either side, the last of them included.
    let window = Reach::Window(keys.size_or("local_attention", Some(128))? / 2);
    let kind = |layer| if is_global(layer) { (global, Reach::All) } else { (local, window) };
    Ok((0..layers).map(kind).collect())
}

/// The head of `ModernBertForSequenceClassification`.
fn classifier(source: &Source, shape: &Shape) -> Result<Head, Fault> {
    let (keys, h) = (&source.keys, shape.hidden);
    source.has_no_modules()?;
    let at = keys.one_of("classifier_pooling", &[("cls", Pool::First), ("mean", Pool::Mean)])?;
    let activation = keys.one_of("classifier_activation", &GELU_OR_SILU)?;
    let dense = linear("head.dense", h, h, keys.flag("classifier_bias")?);
    let row = source.label_row()?;
    Ok(Head {
        at,
        dense: Some((dense, activation)),
        norm: Some(shape.norm("head.norm")),
        score: Score::Linear(row.of(|labels| Linear::new("classifier", labels, h))),
    })
}

fn linear(name: &str, outputs: usize, inputs: usize, bias: bool) -> Linear {
    if bias { Linear::new(name, outputs, inputs) } else { Linear::unbiased(name, outputs, inputs) }
}

impl Shape {
    fn norm(&self, name: &str) -> Norm {
        match self.norm_bias {
            true => Norm::layer(name, self.hidden, self.eps),
            false => Norm::unbiased(NormKind::Layer, name, self.hidden, self.eps),
        }
    }

    fn block(&self, layer: usize, rope: Rope, reach: Reach) -> Block {
        let (h, i) = (self.hidden, self.intermediate);
        let name = |part: &str| format!("{}layers.{layer}.{part}", self.stem);
        let packed = linear(&name("attn.Wqkv"), 3 * h, h, self.attention_bias);
        let gated = linear(&name("mlp.Wi"), 2 * i, h, self.feed_forward_bias);
        Block {
            norms: Norms::Pre,
            // The embeddings are normed already.
            attention_norm: (layer > 0).then(|| self.norm(&name("attn_norm"))),
            attention: Attention {
                heads: self.heads,
                kv_heads: self.heads,
                head_dim: h / self.heads,
                query: packed.rows(0, h),
                key: packed.rows(h, h),
                value: packed.rows(2 * h, h),
                out: linear(&name("attn.Wo"), h, h, self.attention_bias),
                query_key_norms: None,
                rope: Some(rope),
                reach,
                relative: None,
            },
            feed_forward_norm: self.norm(&name("mlp_norm")),
            feed_forward: FeedForward {
                activation: GELU_OR_SILU[0].1,
                gate: Some(gated.rows(0, i)),
                up: gated.rows(i, i),
                down: linear(&name("mlp.Wo"), h, i, self.feed_forward_bias),
            },
        }
    }
}
