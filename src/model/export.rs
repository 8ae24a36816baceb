//! Writes a model's files, as [`Model::open`](super::Model::open) reads them.

use super::{Encoder, Family, Layer, Linear, Norm, Weights};
use crate::ops::Gelu;
use half::f16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError};
use serde_json::{Value, json};

impl Encoder {
    /// The `config.json` of a cross-encoder of this shape, with BERT's names.
    pub fn to_config(&self) -> Value {
        let architecture = match self.family {
            Family::Bert => "BertForSequenceClassification",
            Family::Roberta => "RobertaForSequenceClassification",
        };
        let model_type = match self.family {
            Family::Bert => "bert",
            Family::Roberta => "roberta",
        };
        json!({
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "type_vocab_size": self.token_types,
            "layer_norm_eps": self.layer_norm_eps,
            "pad_token_id": self.position_offset.saturating_sub(1),
            "hidden_act": match self.gelu { Gelu::Erf => "gelu", Gelu::Tanh => "gelu_new" },
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
        })
    }
}

impl Weights {
    /// Replaces each value by its mean with that of another model of the same shape.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn average_with(&mut self, other: &Self) {
        let Self { words, positions, token_types, embedding_norm, layers, pooler, classifier } = self;
        average(words, &other.words);
        average(positions, &other.positions);
        average(token_types, &other.token_types);
        embedding_norm.average_with(&other.embedding_norm);
        assert_eq!(layers.len(), other.layers.len(), "two models of one shape");
        for (own, other) in layers.iter_mut().zip(&other.layers) {
            let Layer { query, key, value, attention_out, attention_norm, up, down, out_norm } = own;
            query.average_with(&other.query);
            key.average_with(&other.key);
            value.average_with(&other.value);
            attention_out.average_with(&other.attention_out);
            attention_norm.average_with(&other.attention_norm);
            up.average_with(&other.up);
            down.average_with(&other.down);
            out_norm.average_with(&other.out_norm);
        }
        pooler.average_with(&other.pooler);
        classifier.average_with(&other.classifier);
    }

    /// A safetensors file of these weights in f16, with Hugging Face's names.
    ///
    /// # Errors
    /// [`SafeTensorError`] if a tensor's shape differs from that in `encoder`.
    pub fn to_safetensors(&self, encoder: &Encoder) -> Result<Vec<u8>, SafeTensorError> {
        let mut file = File::default();
        let (h, i) = (encoder.hidden, encoder.intermediate);
        let (stem, pooler, classifier) = match encoder.family {
            Family::Bert => ("bert", "bert.pooler.dense", "classifier"),
            Family::Roberta => ("roberta", "classifier.dense", "classifier.out_proj"),
        };
        let embeddings = format!("{stem}.embeddings");
        file.put(format!("{embeddings}.word_embeddings.weight"), &[encoder.vocabulary, h], &self.words);
        file.put(
            format!("{embeddings}.position_embeddings.weight"),
            &[encoder.positions, h],
            &self.positions,
        );
        file.put(
            format!("{embeddings}.token_type_embeddings.weight"),
            &[encoder.token_types, h],
            &self.token_types,
        );
        file.norm(format!("{embeddings}.LayerNorm"), &self.embedding_norm);
        for (number, layer) in self.layers.iter().enumerate() {
            let Layer { query, key, value, attention_out, attention_norm, up, down, out_norm } = layer;
            let name = |part: &str| format!("{stem}.encoder.layer.{number}.{part}");
            file.linear(name("attention.self.query"), h, query);
            file.linear(name("attention.self.key"), h, key);
            file.linear(name("attention.self.value"), h, value);
            file.linear(name("attention.output.dense"), h, attention_out);
            file.norm(name("attention.output.LayerNorm"), attention_norm);
            file.linear(name("intermediate.dense"), h, up);
            file.linear(name("output.dense"), i, down);
            file.norm(name("output.LayerNorm"), out_norm);
        }
        file.linear(pooler.to_owned(), h, &self.pooler);
        file.linear(classifier.to_owned(), h, &self.classifier);
        let views = file
            .0
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F16, shape.clone(), bytes)?)));
        safetensors::serialize(views.collect::<Result<Vec<_>, SafeTensorError>>()?, None)
    }
}

impl Linear {
    fn average_with(&mut self, other: &Self) {
        average(&mut self.weight, &other.weight);
        average(&mut self.bias, &other.bias);
    }
}

impl Norm {
    fn average_with(&mut self, other: &Self) {
        average(&mut self.gain, &other.gain);
        average(&mut self.bias, &other.bias);
    }
}

fn average(own: &mut [f32], other: &[f32]) {
    assert_eq!(own.len(), other.len(), "two models of one shape");
    own.iter_mut().zip(other).for_each(|(own, other)| *own = (*own + other) / 2.0);
}

/// Names, shapes and bytes of tensors.
#[derive(Default)]
struct File(Vec<(String, Vec<usize>, Vec<u8>)>);

impl File {
    fn put(&mut self, name: String, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        self.0.push((name, shape.to_vec(), bytes));
    }

    fn linear(&mut self, name: String, inputs: usize, linear: &Linear) {
        let outputs = linear.bias.len();
        self.put(format!("{name}.weight"), &[outputs, inputs], &linear.weight);
        self.put(format!("{name}.bias"), &[outputs], &linear.bias);
    }

    fn norm(&mut self, name: String, norm: &Norm) {
        self.put(format!("{name}.weight"), &[norm.gain.len()], &norm.gain);
        self.put(format!("{name}.bias"), &[norm.bias.len()], &norm.bias);
    }
}
