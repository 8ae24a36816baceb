//! BERT, RoBERTa and XLM-R: post-norm layers with learned positions (Devlin et al. 2019, Liu et al. 2019, Conneau et al.
//! 2020). They differ in the names of tensors, in the first position, and in token types.

use super::architecture;
use crate::model::plan::{
    Activation, Attention, Block, Embed, FeedForward, Gelu, Head, Linear, Norm, Norms, Plan, Pool, Positions,
    Reach, Score, Tensor,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A cross-encoder's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Bert {
    /// Decides the names of tensors.
    pub family: Family,
    /// Hidden size.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; they divide `hidden`.
    pub heads: usize,
    /// Inner size of the feed-forward part.
    pub intermediate: usize,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// The row of the first token.
    pub position_offset: usize,
    /// Rows of the token type table; with one row every token has type 0.
    pub token_types: usize,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// The activation of the feed-forward part.
    pub activation: Activation,
}

/// Whose names the tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `BertForSequenceClassification`.
    Bert,
    /// `RobertaForSequenceClassification` and `XLMRobertaForSequenceClassification`.
    Roberta,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
        }
    }
}

/// The keys of `config.json` that are read.
#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "one")]
    type_vocab_size: usize,
    #[serde(default = "eps")]
    layer_norm_eps: f64,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default)]
    pad_token_id: Option<usize>,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    num_labels: Option<usize>,
    #[serde(default)]
    id2label: Option<BTreeMap<String, Value>>,
}

fn one() -> usize {
    1
}

fn eps() -> f64 {
    1e-12
}

fn gelu() -> String {
    "gelu".to_owned()
}

pub(super) fn describe(config: &[u8]) -> Result<Plan, String> {
    Bert::parse(config).map(|bert| bert.plan())
}

impl Bert {
    /// The shape in a `config.json`.
    fn parse(config: &[u8]) -> Result<Self, String> {
        let family = match architecture(config)?.as_str() {
            "BertForSequenceClassification" => Family::Bert,
            _ => Family::Roberta,
        };
        let raw: Raw = serde_json::from_slice(config).map_err(|error| error.to_string())?;
        let activation = match raw.hidden_act.as_str() {
            "gelu" => Activation::Gelu(Gelu::Erf),
            "gelu_new" | "gelu_pytorch_tanh" => Activation::Gelu(Gelu::Tanh),
            other => {
                return Err(format!(
                    "hidden_act: `{other}` is not served; gelu, gelu_new and gelu_pytorch_tanh are"
                ));
            }
        };
        // `transformers` writes the names of labels, and their number only if there are no names.
        let labels = raw.id2label.as_ref().map(BTreeMap::len).or(raw.num_labels).unwrap_or(2);
        if labels != 1 {
            return Err(format!("id2label: the model has {labels} labels, and a cross-encoder has 1"));
        }
        if let Some(kind) = raw.position_embedding_type.as_deref().filter(|&kind| kind != "absolute") {
            return Err(format!("position_embedding_type: `{kind}` is not served; absolute is"));
        }
        if raw.num_hidden_layers == 0 {
            return Err("num_hidden_layers: 0 is no encoder".to_owned());
        }
        if raw.num_attention_heads == 0 || !raw.hidden_size.is_multiple_of(raw.num_attention_heads) {
            return Err(format!(
                "num_attention_heads: {} does not divide hidden_size {}",
                raw.num_attention_heads, raw.hidden_size
            ));
        }
        // RoBERTa's positions start after the padding id, as in fairseq.
        let position_offset = match family {
            Family::Bert => 0,
            Family::Roberta => raw.pad_token_id.unwrap_or(1) + 1,
        };
        if raw.max_position_embeddings <= position_offset {
            return Err(format!(
                "max_position_embeddings: {} leaves no position",
                raw.max_position_embeddings
            ));
        }
        Ok(Self {
            family,
            hidden: raw.hidden_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            intermediate: raw.intermediate_size,
            vocabulary: raw.vocab_size,
            positions: raw.max_position_embeddings,
            position_offset,
            token_types: raw.type_vocab_size,
            layer_norm_eps: raw.layer_norm_eps,
            activation,
        })
    }

    /// The plan of a model of this shape, without values.
    pub fn plan(&self) -> Plan {
        let (h, eps, stem) = (self.hidden, self.layer_norm_eps, self.family.name());
        let table = |name: &str, rows: usize| {
            Tensor::new(format!("{stem}.embeddings.{name}_embeddings.weight"), &[rows, h])
        };
        let (dense, classifier) = match self.family {
            Family::Bert => ("bert.pooler.dense", "classifier"),
            Family::Roberta => ("classifier.dense", "classifier.out_proj"),
        };
        // Older checkpoints contain the constant 0, 1, 2, ... and, for RoBERTa, a pooler that its classification head
        // does not use.
        let mut unused = vec![format!("{stem}.embeddings.position_ids")];
        if self.family == Family::Roberta {
            unused.push("roberta.pooler".to_owned());
        }
        Plan {
            family: stem,
            embed: Embed {
                words: table("word", self.vocabulary),
                positions: Some(Positions {
                    table: table("position", self.positions),
                    offset: self.position_offset,
                }),
                types: Some(table("token_type", self.token_types)),
                norm: Some(Norm::layer(&format!("{stem}.embeddings.LayerNorm"), h, eps)),
            },
            blocks: (0..self.layers).map(|layer| self.block(layer)).collect(),
            final_norm: None,
            head: Head {
                at: Pool::First,
                dense: Some((Linear::new(dense, h, h), Activation::Tanh)),
                norm: None,
                score: Score::Linear(Linear::new(classifier, 1, h)),
            },
            tokens_max: (self.positions - self.position_offset) as u32,
            unused,
        }
    }

    fn block(&self, layer: usize) -> Block {
        let (h, i, eps) = (self.hidden, self.intermediate, self.layer_norm_eps);
        let name = |part: &str| format!("{}.encoder.layer.{layer}.{part}", self.family.name());
        let to_heads = |part: &str| Linear::new(&name(&format!("attention.self.{part}")), h, h);
        Block {
            norms: Norms::Post,
            attention_norm: Some(Norm::layer(&name("attention.output.LayerNorm"), h, eps)),
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
            },
            feed_forward_norm: Norm::layer(&name("output.LayerNorm"), h, eps),
            feed_forward: FeedForward {
                activation: self.activation,
                gate: None,
                up: Linear::new(&name("intermediate.dense"), i, h),
                down: Linear::new(&name("output.dense"), h, i),
            },
        }
    }

    /// The shape of a plan, if it is one of these families'.
    pub fn of(plan: &Plan) -> Option<Self> {
        let family =
            [Family::Bert, Family::Roberta].into_iter().find(|family| family.name() == plan.family)?;
        let Block { attention, feed_forward, .. } = plan.blocks.first()?;
        let positions = plan.embed.positions.as_ref()?;
        Some(Self {
            family,
            hidden: plan.hidden(),
            layers: plan.blocks.len(),
            heads: attention.heads,
            intermediate: feed_forward.up.outputs(),
            vocabulary: plan.vocabulary(),
            positions: positions.table.shape[0],
            position_offset: positions.offset,
            token_types: plan.embed.types.as_ref()?.shape[0],
            layer_norm_eps: plan.embed.norm.as_ref()?.eps,
            activation: feed_forward.activation,
        })
    }

    /// The `config.json` of a cross-encoder of this shape.
    pub fn to_config(&self) -> Value {
        let architecture = match self.family {
            Family::Bert => "BertForSequenceClassification",
            Family::Roberta => "RobertaForSequenceClassification",
        };
        let hidden_act = if self.activation == Activation::Gelu(Gelu::Tanh) { "gelu_new" } else { "gelu" };
        json!({
            "architectures": [architecture],
            "model_type": self.family.name(),
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "type_vocab_size": self.token_types,
            "layer_norm_eps": self.layer_norm_eps,
            "pad_token_id": self.position_offset.saturating_sub(1),
            "hidden_act": hidden_act,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parse(change: &[(&str, Value)]) -> Result<Plan, String> {
        let mut config = json!({
            "architectures": ["RobertaForSequenceClassification"], "hidden_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10,
            "max_position_embeddings": 514, "pad_token_id": 1, "id2label": {"0": "LABEL_0"},
        });
        for (key, value) in change {
            config[*key] = value.clone();
        }
        let config = serde_json::to_vec(&config).unwrap();
        crate::model::arch::describe(&config, Path::new("config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn roberta_s_positions_start_after_its_padding_id() {
        let plan = parse(&[]).unwrap();
        assert_eq!((plan.embed.positions.unwrap().offset, plan.tokens_max), (2, 512));
    }

    #[test]
    fn what_is_not_served_is_named_with_what_is() {
        let rows = [
            ("architectures", json!(["BertModel"]), "architectures: `BertModel` is not served"),
            ("architectures", json!([]), "architectures: `none` is not served"),
            ("hidden_act", json!("silu"), "hidden_act: `silu`"),
            ("id2label", json!({"0": "no", "1": "yes"}), "id2label: the model has 2 labels"),
            ("position_embedding_type", json!("relative_key"), "position_embedding_type: `relative_key`"),
            ("num_attention_heads", json!(3), "num_attention_heads: 3 does not divide hidden_size 8"),
            ("num_attention_heads", json!(0), "num_attention_heads: 0"),
            ("num_hidden_layers", json!(0), "num_hidden_layers: 0"),
            ("max_position_embeddings", json!(2), "max_position_embeddings: 2"),
        ];
        for (key, value, expected) in rows {
            let error = parse(&[(key, value)]).unwrap_err();
            assert!(error.starts_with(&format!("config.json: {expected}")), "{error}");
        }
    }

    #[test]
    fn a_shape_is_found_again_in_its_plan_and_in_its_configuration() {
        for (family, position_offset) in [(Family::Bert, 0), (Family::Roberta, 2)] {
            let bert = Bert {
                family,
                hidden: 8,
                layers: 2,
                heads: 4,
                intermediate: 12,
                vocabulary: 30,
                positions: 20,
                position_offset,
                token_types: 2,
                layer_norm_eps: 1e-5,
                activation: Activation::Gelu(Gelu::Tanh),
            };
            assert_eq!(Bert::of(&bert.plan()), Some(bert.clone()));
            let config = serde_json::to_vec(&bert.to_config()).unwrap();
            assert_eq!(Bert::parse(&config), Ok(bert));
        }
    }
}
