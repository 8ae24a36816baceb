//! BERT, RoBERTa and XLM-R: post-norm layers with learned positions (Devlin et al. 2019, Liu et al. 2019, Conneau et al.
//! 2020). They differ in the names of tensors, in the first position, and in token types.

use super::keys::Keys;
use super::post_norm::PostNorm;
use super::{Fault, Source};
use crate::model::plan::{
    Activation, Block, Embed, Gelu, Head, Linear, Norm, Plan, Pool, Positions, Score, Tensor,
};
use serde::Deserialize;
use serde_json::{Value, json};

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

/// The keys of `config.json` that are read, besides the labels.
#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architectures: Vec<String>,
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

pub(super) fn describe(source: &Source) -> Result<Plan, Fault> {
    source.has_no_modules()?;
    let bert = Bert::parse(&source.keys)?;
    let row = source.label_row()?;
    let mut plan = bert.plan();
    plan.head.score = Score::Linear(row.of(|labels| bert.classifier(labels)));
    Ok(plan)
}

impl Bert {
    /// The shape in a `config.json`.
    fn parse(keys: &Keys) -> Result<Self, String> {
        let raw: Raw = keys.read()?;
        let family = match raw.architectures.first().map(String::as_str) {
            Some("BertForSequenceClassification") => Family::Bert,
            _ => Family::Roberta,
        };
        let activation = match raw.hidden_act.as_str() {
            "gelu" => Activation::Gelu(Gelu::Erf),
            "gelu_new" | "gelu_pytorch_tanh" => Activation::Gelu(Gelu::Tanh),
            other => {
                return Err(format!(
                    "hidden_act: `{other}` is not served; gelu, gelu_new and gelu_pytorch_tanh are"
                ));
            }
        };
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
        let dense = match self.family {
            Family::Bert => "bert.pooler.dense",
            Family::Roberta => "classifier.dense",
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
            relative: None,
            blocks: (0..self.layers).map(|layer| self.block(layer)).collect(),
            final_norm: None,
            head: Head {
                at: Pool::First,
                dense: Some((Linear::new(dense, h, h), Activation::Tanh)),
                norm: None,
                score: Score::Linear(self.classifier(1)),
            },
            tokens_max: (self.positions - self.position_offset) as u32,
            unused,
        }
    }

    /// The classifier of a model with so many labels.
    fn classifier(&self, labels: usize) -> Linear {
        let name = match self.family {
            Family::Bert => "classifier",
            Family::Roberta => "classifier.out_proj",
        };
        Linear::new(name, labels, self.hidden)
    }

    fn block(&self, layer: usize) -> Block {
        let Self { hidden, heads, intermediate, layer_norm_eps: eps, activation, .. } = *self;
        let layer = format!("{}.encoder.layer.{layer}", self.family.name());
        PostNorm { hidden, heads, intermediate, eps, activation }.block(&layer, ["query", "key", "value"])
    }

    /// The shape of a plan, if it is one of these families' and has one label.
    pub fn of(plan: &Plan) -> Option<Self> {
        if plan.tensors().into_iter().any(|tensor| tensor.part.is_some()) {
            return None;
        }
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
    use crate::model::arch::Label;

    fn parse(change: &[(&str, Value)]) -> Result<Plan, String> {
        let mut config = json!({
            "architectures": ["RobertaForSequenceClassification"], "hidden_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10,
            "max_position_embeddings": 514, "pad_token_id": 1, "id2label": {"0": "LABEL_0"},
        });
        for (key, value) in change {
            config[*key] = value.clone();
        }
        describe(&config, None)
    }

    fn describe(config: &Value, label: Option<Label>) -> Result<Plan, String> {
        let source = Source { label, ..Source::new(config.to_string().as_bytes()).unwrap() };
        source.describe().map_err(|Fault { file, reason }| format!("{file}: {reason}"))
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
            let config = Keys::parse(bert.to_config().to_string().as_bytes()).unwrap();
            assert_eq!(Bert::parse(&config), Ok(bert));
        }
    }
    #[test]
    fn of_several_labels_the_declared_one_is_the_score() {
        let mut config = json!({
            "architectures": ["BertForSequenceClassification"], "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10, "max_position_embeddings": 16,
            "id2label": {"0": "contradiction", "1": "entailment", "2": "neutral"},
        });
        for label in [Label::Name("entailment".into()), Label::Index(1)] {
            let Score::Linear(score) = describe(&config, Some(label)).unwrap().head.score else { panic!() };
            assert_eq!(score, Linear::new("classifier", 3, 8).rows(1, 1));
        }
        let rows = [
            (
                None,
                "config.json: id2label: the model has 3 labels (contradiction, entailment, neutral), and a score is \
                    one of them; name it in podium.json, for example \"label\": \"neutral\"",
            ),
            (
                Some(Label::Name("yes".into())),
                "podium.json: label: `yes` is not a label; these are: contradiction, \
                                               entailment, neutral",
            ),
            (
                Some(Label::Index(3)),
                "podium.json: label: 3 is not below 3, the number of labels (contradiction, \
                                     entailment, neutral)",
            ),
        ];
        for (label, expected) in rows {
            assert_eq!(describe(&config, label).unwrap_err(), expected);
        }
        config["id2label"] = json!({"0": "a", "2": "b"});
        assert_eq!(describe(&config, None).unwrap_err(), "config.json: id2label: label 1 has no name");
    }
}
