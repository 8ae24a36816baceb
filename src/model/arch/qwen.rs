//! Qwen2 and Qwen3 decoders (Yang et al. 2024, 2025), scored by the logits of tokens or by a classifier at the last
//! token. Qwen3 norms its queries and keys; Qwen2 has biases in their maps.

use super::keys::Keys;
use super::{Fault, Source};
use crate::model::plan::{
    Activation, Attention, Block, Embed, FeedForward, Head, Linear, Norm, NormKind, Norms, Plan, Pool, Reach,
    Rope, Score, Tensor,
};

/// What the layers have in common.
struct Shape {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    eps: f64,
    rope: Rope,
    norms_query_and_key: bool,
    /// Of queries, keys and values.
    projection_bias: bool,
    out_bias: bool,
}

pub(super) fn describe(source: &Source) -> Result<Plan, Fault> {
    let keys = &source.keys;
    let shape = Shape::of(keys, source.architecture.starts_with("Qwen3"))?;
    let layers = keys.size("num_hidden_layers")?;
    keys.layer_types(layers, &["full_attention"])?;
    let h = shape.hidden;
    let vocabulary = keys.size("vocab_size")?;
    let words = Tensor::new("model.embed_tokens.weight".to_owned(), &[vocabulary, h]);
    let mut unused = Vec::new();
    let score = match source.architecture.ends_with("ForSequenceClassification") {
        true => {
            source.has_no_modules()?;
            let row = source.label_row()?;
            Score::Linear(row.of(|labels| Linear::unbiased("score", labels, h)))
        }
        false if keys.flag("tie_word_embeddings")? => {
            unused.push("lm_head".to_owned());
            source.token_score(&words)?
        }
        false => source.token_score(&Tensor::new("lm_head.weight".to_owned(), &[vocabulary, h]))?,
    };
    Ok(Plan {
        family: if shape.norms_query_and_key { "qwen3" } else { "qwen2" },
        embed: Embed { words, positions: None, types: None, norm: None },
        relative: None,
        blocks: (0..layers).map(|layer| shape.block(layer)).collect(),
        final_norm: Some(shape.norm("model.norm", h)),
        head: Head { at: Pool::Last, dense: None, norm: None, score },
        tokens_max: source.tokens_max()?,
        unused,
    })
}

impl Shape {
    fn of(keys: &Keys, is_qwen3: bool) -> Result<Self, String> {
        keys.must_be("use_sliding_window", false, false)?;
        keys.one_of("hidden_act", &[("silu", ())])?;
        let hidden = keys.size("hidden_size")?;
        let heads = if is_qwen3 { keys.size("num_attention_heads")? } else { keys.heads(hidden)? };
        let kv_heads = keys.size_or("num_key_value_heads", Some(heads))?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}"
            ));
        }
        let head_dim = if is_qwen3 { keys.size_or("head_dim", Some(128))? } else { hidden / heads };
        if !head_dim.is_multiple_of(2) {
            return Err(format!("head_dim: {head_dim} is odd, and rotary positions turn pairs of values"));
        }
        let attention_bias = is_qwen3 && keys.flag("attention_bias")?;
        Ok(Self {
            hidden,
            heads,
            kv_heads,
            head_dim,
            intermediate: keys.size("intermediate_size")?,
            eps: keys.positive_or("rms_norm_eps", 1e-6)?,
            rope: rope(keys)?,
            norms_query_and_key: is_qwen3,
            projection_bias: attention_bias || !is_qwen3,
            out_bias: attention_bias,
        })
    }

    fn norm(&self, name: &str, width: usize) -> Norm {
        Norm::unbiased(NormKind::Rms, name, width, self.eps)
    }

    fn block(&self, layer: usize) -> Block {
        let (h, i) = (self.hidden, self.intermediate);
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let linear = |part: &str, outputs: usize, inputs: usize, bias: bool| match bias {
            true => Linear::new(&name(part), outputs, inputs),
            false => Linear::unbiased(&name(part), outputs, inputs),
        };
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let head_norm = |part: &str| self.norm(&name(part), self.head_dim);
        Block {
            norms: Norms::Pre,
            attention_norm: Some(self.norm(&name("input_layernorm"), h)),
            attention: Attention {
                heads: self.heads,
                kv_heads: self.kv_heads,
                head_dim: self.head_dim,
                query: linear("self_attn.q_proj", queries, h, self.projection_bias),
                key: linear("self_attn.k_proj", keys, h, self.projection_bias),
                value: linear("self_attn.v_proj", keys, h, self.projection_bias),
                out: linear("self_attn.o_proj", h, queries, self.out_bias),
                query_key_norms: self
                    .norms_query_and_key
                    .then(|| ["self_attn.q_norm", "self_attn.k_norm"].map(head_norm)),
                rope: Some(self.rope),
                reach: Reach::Causal,
                relative: None,
            },
            feed_forward_norm: self.norm(&name("post_attention_layernorm"), h),
            feed_forward: FeedForward {
                activation: Activation::Silu,
                gate: Some(linear("mlp.gate_proj", i, h, false)),
                up: linear("mlp.up_proj", i, h, false),
                down: linear("mlp.down_proj", h, i, false),
            },
        }
    }
}

/// The rotary positions, as `transformers` 5 writes them or as earlier releases did.
fn rope(keys: &Keys) -> Result<Rope, String> {
    let theta = keys.positive_or("rope_theta", 10_000.0)?;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(below) = keys.below(key)? else { continue };
        let named = if below.get("rope_type").is_some() { "rope_type" } else { "type" };
        let theta =
            below.one_of(named, &[("default", ())]).and_then(|()| below.positive_or("rope_theta", theta));
        return theta.map(Rope::new).map_err(|reason| format!("{key}.{reason}"));
    }
    Ok(Rope::new(theta))
}
