//! The shape of an encoder: one description for BERT, RoBERTa and XLM-R.

use super::ModelError;
use crate::ops::Gelu;
use crate::token::Packed;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use thiserror::Error;

/// A cross-encoder's shape. All three families are stacks of post-norm transformer layers (Devlin et al. 2019, Liu et
/// al. 2019, Conneau et al. 2020). They differ in the names of tensors, in the first position, and in token types.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoder {
    /// The family, which decides the names of tensors.
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
    pub gelu: Gelu,
}

/// A supported architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `BertForSequenceClassification`.
    Bert,
    /// `RobertaForSequenceClassification` and `XLMRobertaForSequenceClassification`.
    Roberta,
}

/// Why a batch does not fit the model.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BatchError {
    /// A token id is not in the vocabulary: the tokenizer belongs to another model.
    #[error("token id {id} is not among the model's {vocabulary}")]
    Token {
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        vocabulary: usize,
    },
    /// A sequence is longer than the model reads.
    #[error("a sequence has {tokens} tokens, and the model reads {limit}")]
    Length {
        /// Its tokens.
        tokens: u32,
        /// The limit.
        limit: u32,
    },
}

/// The keys of `config.json` that we read.
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
    #[serde(default)]
    num_labels: Option<usize>,
    #[serde(default)]
    id2label: Option<BTreeMap<String, serde_json::Value>>,
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

impl Encoder {
    /// Parses `config.json`; `path` is for error messages.
    ///
    /// # Errors
    /// [`ModelError`], which names the key and the supported values.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, ModelError> {
        let unusable = |reason: String| ModelError::Unusable { path: path.to_owned(), reason };
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| unusable(error.to_string()))?;
        Self::from_raw(&raw).map_err(unusable)
    }

    fn from_raw(raw: &Raw) -> Result<Self, String> {
        let family = match raw.architectures.first().map(String::as_str) {
            Some("BertForSequenceClassification") => Family::Bert,
            Some("RobertaForSequenceClassification" | "XLMRobertaForSequenceClassification") => {
                Family::Roberta
            }
            other => {
                return Err(format!(
                    "architectures: `{}` is not served; BertForSequenceClassification, \
                     RobertaForSequenceClassification and XLMRobertaForSequenceClassification are",
                    other.unwrap_or("none")
                ));
            }
        };
        let gelu = match raw.hidden_act.as_str() {
            "gelu" => Gelu::Erf,
            "gelu_new" | "gelu_pytorch_tanh" => Gelu::Tanh,
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
            gelu,
        })
    }

    /// Checks that every token and position of a batch has an embedding.
    ///
    /// # Errors
    /// [`BatchError`] for the first token or sequence without one.
    pub fn check(&self, batch: &Packed) -> Result<(), BatchError> {
        let limit = self.pair_tokens_max();
        if let Some(tokens) = batch.lengths().find(|&tokens| tokens > limit) {
            return Err(BatchError::Length { tokens, limit });
        }
        let vocabulary = self.vocabulary;
        match batch.ids().iter().copied().max().filter(|&id| id as usize >= vocabulary) {
            Some(id) => Err(BatchError::Token { id, vocabulary }),
            None => Ok(()),
        }
    }

    /// The longest sequence for which there are positions.
    pub fn pair_tokens_max(&self) -> u32 {
        (self.positions - self.position_offset) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(change: &[(&str, serde_json::Value)]) -> Result<Encoder, String> {
        let mut config = json!({
            "architectures": ["RobertaForSequenceClassification"], "hidden_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10,
            "max_position_embeddings": 514, "pad_token_id": 1, "id2label": {"0": "LABEL_0"},
        });
        for (key, value) in change {
            config[*key] = value.clone();
        }
        Encoder::from_raw(&serde_json::from_value(config).unwrap())
    }

    #[test]
    fn roberta_s_positions_start_after_its_padding_id() {
        let encoder = parse(&[]).unwrap();
        assert_eq!((encoder.position_offset, encoder.pair_tokens_max()), (2, 512));
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
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
