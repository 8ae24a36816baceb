//! A model's tensors in f32, checked by name and shape; none may be missing or left over.

use super::directory::Shards;
use super::{Encoder, Family};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use std::collections::BTreeMap;
use thiserror::Error;

/// The tensors of a cross-encoder; matrices are `[out, in]`, row-major.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[vocabulary, hidden]`.
    pub words: Vec<f32>,
    /// `[positions, hidden]`.
    pub positions: Vec<f32>,
    /// `[token_types, hidden]`.
    pub token_types: Vec<f32>,
    /// Applied to the sum of the three embeddings.
    pub embedding_norm: Norm,
    /// The layers, from first to last.
    pub layers: Vec<Layer>,
    /// Applied to the first token's state, before tanh.
    pub pooler: Linear,
    /// From the pooled state to the logit.
    pub classifier: Linear,
}

/// One transformer layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// To queries.
    pub query: Linear,
    /// To keys.
    pub key: Linear,
    /// To values.
    pub value: Linear,
    /// From the heads' contexts, before the residual.
    pub attention_out: Linear,
    /// After the residual.
    pub attention_norm: Norm,
    /// Into the feed-forward part.
    pub up: Linear,
    /// Out of it, before the residual.
    pub down: Linear,
    /// After the residual.
    pub out_norm: Norm,
}

/// y = W x + b.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Vec<f32>,
    /// `[out]`.
    pub bias: Vec<f32>,
}

/// A layer norm, `[hidden]` each.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Factor.
    pub gain: Vec<f32>,
    /// Summand.
    pub bias: Vec<f32>,
}

/// Why weights do not fit the configuration.
#[derive(Debug, Error)]
pub enum WeightError {
    /// The file is truncated or not a safetensors file.
    #[error("the file is damaged or no safetensors: {0}")]
    Format(#[from] SafeTensorError),
    /// A shard is truncated or not a safetensors file.
    #[error("{file} is damaged or no safetensors: {reason}")]
    Shard {
        /// The file.
        file: String,
        /// The cause.
        reason: SafeTensorError,
    },
    /// A tensor is in two files.
    #[error("tensor `{name}` is in {} and in {}", .files[0], .files[1])]
    Twice {
        /// The tensor.
        name: String,
        /// Both files.
        files: [String; 2],
    },
    /// A tensor is missing.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// A tensor has another shape.
    #[error("tensor `{name}` has shape {found:?}, and the configuration says {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// Its shape by `config.json`.
        expected: Vec<usize>,
    },
    /// A tensor has an unsupported type.
    #[error("tensor `{name}` is {found:?}; F32, F16 and BF16 are read")]
    Type {
        /// The tensor.
        name: String,
        /// Its type.
        found: Dtype,
    },
    /// A tensor holds NaN or an infinity.
    #[error("tensor `{name}` holds {value} at {index}")]
    NonFinite {
        /// The tensor.
        name: String,
        /// The first such position.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Tensors that the model does not use.
    #[error("the configuration has no place for {}", .0.join(", "))]
    LeftOver(Vec<String>),
}

impl Weights {
    /// Reads a safetensors file.
    ///
    /// # Errors
    /// [`WeightError`], which names the tensor.
    pub fn parse(bytes: &[u8], encoder: &Encoder) -> Result<Self, WeightError> {
        let file = SafeTensors::deserialize(bytes)?;
        Self::take(Tensors(file.tensors().into_iter().collect()), encoder)
    }

    /// Reads the files of a model, one or several.
    pub(super) fn of_shards(shards: &Shards, encoder: &Encoder) -> Result<Self, WeightError> {
        let mut files: BTreeMap<String, &str> = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for shard in shards.iter() {
            let damaged = |reason| WeightError::Shard { file: shard.name.to_string(), reason };
            let mut found = SafeTensors::deserialize(&shard.bytes).map_err(damaged)?.tensors();
            // The same error for the same files.
            found.sort_by(|(one, _), (other, _)| one.cmp(other));
            for (name, tensor) in found {
                if let Some(first) = files.insert(name.clone(), &shard.name) {
                    let files = [first.to_owned(), shard.name.to_string()];
                    return Err(WeightError::Twice { name, files });
                }
                tensors.insert(name, tensor);
            }
        }
        Self::take(Tensors(tensors), encoder)
    }

    fn take(mut tensors: Tensors, encoder: &Encoder) -> Result<Self, WeightError> {
        let (h, i) = (encoder.hidden, encoder.intermediate);
        let stem = match encoder.family {
            Family::Bert => "bert",
            Family::Roberta => "roberta",
        };
        let embeddings = format!("{stem}.embeddings");
        let words = tensors.take(format!("{embeddings}.word_embeddings.weight"), &[encoder.vocabulary, h])?;
        let positions =
            tensors.take(format!("{embeddings}.position_embeddings.weight"), &[encoder.positions, h])?;
        let token_types =
            tensors.take(format!("{embeddings}.token_type_embeddings.weight"), &[encoder.token_types, h])?;
        let embedding_norm = tensors.norm(&format!("{embeddings}.LayerNorm"), h)?;
        let layers = (0..encoder.layers)
            .map(|number| {
                let layer = format!("{stem}.encoder.layer.{number}");
                Ok(Layer {
                    query: tensors.linear(&format!("{layer}.attention.self.query"), h, h)?,
                    key: tensors.linear(&format!("{layer}.attention.self.key"), h, h)?,
                    value: tensors.linear(&format!("{layer}.attention.self.value"), h, h)?,
                    attention_out: tensors.linear(&format!("{layer}.attention.output.dense"), h, h)?,
                    attention_norm: tensors.norm(&format!("{layer}.attention.output.LayerNorm"), h)?,
                    up: tensors.linear(&format!("{layer}.intermediate.dense"), i, h)?,
                    down: tensors.linear(&format!("{layer}.output.dense"), h, i)?,
                    out_norm: tensors.norm(&format!("{layer}.output.LayerNorm"), h)?,
                })
            })
            .collect::<Result<Vec<_>, WeightError>>()?;
        let (pooler, classifier) = match encoder.family {
            Family::Bert => ("bert.pooler.dense", "classifier"),
            Family::Roberta => ("classifier.dense", "classifier.out_proj"),
        };
        let pooler = tensors.linear(pooler, h, h)?;
        let classifier = tensors.linear(classifier, 1, h)?;
        tensors.finish(stem)?;
        Ok(Self { words, positions, token_types, embedding_norm, layers, pooler, classifier })
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        let linear = |part: &Linear| part.weight.len() + part.bias.len();
        let norm = |part: &Norm| part.gain.len() + part.bias.len();
        let layer = |layer: &Layer| {
            let parts =
                [&layer.query, &layer.key, &layer.value, &layer.attention_out, &layer.up, &layer.down];
            parts.into_iter().map(linear).sum::<usize>() + norm(&layer.attention_norm) + norm(&layer.out_norm)
        };
        self.words.len()
            + self.positions.len()
            + self.token_types.len()
            + norm(&self.embedding_norm)
            + self.layers.iter().map(layer).sum::<usize>()
            + linear(&self.pooler)
            + linear(&self.classifier)
    }
}

/// The tensors of a file that have not been used.
struct Tensors<'a>(BTreeMap<String, safetensors::tensor::TensorView<'a>>);

impl Tensors<'_> {
    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Linear, WeightError> {
        let weight = self.take(format!("{name}.weight"), &[outputs, inputs])?;
        Ok(Linear { weight, bias: self.take(format!("{name}.bias"), &[outputs])? })
    }

    fn norm(&mut self, name: &str, hidden: usize) -> Result<Norm, WeightError> {
        let gain = self.take(format!("{name}.weight"), &[hidden])?;
        Ok(Norm { gain, bias: self.take(format!("{name}.bias"), &[hidden])? })
    }

    fn take(&mut self, name: String, expected: &[usize]) -> Result<Vec<f32>, WeightError> {
        let Some(view) = self.0.remove(&name) else { return Err(WeightError::Missing(name)) };
        if view.shape() != expected {
            let (found, expected) = (view.shape().to_vec(), expected.to_vec());
            return Err(WeightError::Shape { name, found, expected });
        }
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => view.data().as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => {
                view.data().as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
            }
            found => return Err(WeightError::Type { name, found }),
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(WeightError::NonFinite { name, index, value: values[index] }),
            None => Ok(values),
        }
    }

    fn finish(self, stem: &str) -> Result<(), WeightError> {
        // Older checkpoints contain the constant 0, 1, 2, ... and, for RoBERTa, a pooler that its classification head
        // does not use.
        let harmless = |name: &String| {
            *name == format!("{stem}.embeddings.position_ids") || name.starts_with("roberta.pooler.")
        };
        let left: Vec<String> = self.0.into_keys().filter(|name| !harmless(name)).collect();
        if left.is_empty() { Ok(()) } else { Err(WeightError::LeftOver(left)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Gelu;
    use safetensors::tensor::TensorView;

    fn encoder() -> Encoder {
        Encoder {
            family: Family::Bert,
            hidden: 2,
            layers: 1,
            heads: 1,
            intermediate: 3,
            vocabulary: 5,
            positions: 4,
            position_offset: 0,
            token_types: 2,
            layer_norm_eps: 1e-12,
            gelu: Gelu::Erf,
        }
    }

    type Shapes = BTreeMap<String, (Vec<usize>, f32)>;

    fn shapes() -> Shapes {
        let mut shapes = Shapes::new();
        let mut put = |name: &str, shape: &[usize]| shapes.insert(name.to_owned(), (shape.to_vec(), 0.5));
        put("bert.embeddings.word_embeddings.weight", &[5, 2]);
        put("bert.embeddings.position_embeddings.weight", &[4, 2]);
        put("bert.embeddings.token_type_embeddings.weight", &[2, 2]);
        put("bert.pooler.dense.weight", &[2, 2]);
        put("bert.pooler.dense.bias", &[2]);
        put("classifier.weight", &[1, 2]);
        put("classifier.bias", &[1]);
        for norm in ["embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"] {
            put(&format!("bert.{norm}.LayerNorm.weight"), &[2]);
            put(&format!("bert.{norm}.LayerNorm.bias"), &[2]);
        }
        for (linear, outputs, inputs) in [
            ("attention.self.query", 2, 2),
            ("attention.self.key", 2, 2),
            ("attention.self.value", 2, 2),
            ("attention.output.dense", 2, 2),
            ("intermediate.dense", 3, 2),
            ("output.dense", 2, 3),
        ] {
            put(&format!("bert.encoder.layer.0.{linear}.weight"), &[outputs, inputs]);
            put(&format!("bert.encoder.layer.0.{linear}.bias"), &[outputs]);
        }
        shapes
    }

    fn file(shapes: &Shapes) -> Vec<u8> {
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
            .iter()
            .map(|(name, (shape, value))| {
                let count = shape.iter().product();
                (name.clone(), shape.clone(), value.to_le_bytes().repeat(count))
            })
            .collect();
        let views = data
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn a_whole_file_is_read() {
        let weights = Weights::parse(&file(&shapes()), &encoder()).unwrap();
        let expected: usize = shapes().values().map(|(shape, _)| shape.iter().product::<usize>()).sum();
        assert_eq!(weights.parameters(), expected);
    }

    #[test]
    fn what_is_written_is_read_again() {
        for family in [Family::Bert, Family::Roberta] {
            let encoder =
                Encoder { family, position_offset: if family == Family::Bert { 0 } else { 2 }, ..encoder() };
            let mut weights = Weights::parse(&file(&shapes()), &self::encoder()).unwrap();
            weights.words.iter_mut().zip(0u8..).for_each(|(word, place)| *word = f32::from(place) / 4.0);
            let written = weights.to_safetensors(&encoder).unwrap();
            let config = serde_json::to_vec(&encoder.to_config()).unwrap();
            let read = Encoder::parse(&config, std::path::Path::new("config.json")).unwrap();
            assert_eq!(read, encoder);
            let read = Weights::parse(&written, &read).unwrap();
            assert_eq!((&read.words, read.parameters()), (&weights.words, weights.parameters()));
            let small = Encoder { hidden: 1, ..encoder };
            assert!(weights.to_safetensors(&small).is_err(), "the shape is another");
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_the_tensor() {
        let word = "bert.embeddings.word_embeddings.weight";
        type Damage = fn(&mut Shapes);
        let cases: [(Damage, &str); 5] = [
            (|s| drop(s.remove("classifier.bias")), "tensor `classifier.bias` is missing"),
            (
                |s| s.get_mut("classifier.weight").unwrap().0 = vec![2, 2],
                "tensor `classifier.weight` has shape [2, 2], and the configuration says [1, 2]",
            ),
            (
                |s| s.get_mut("bert.pooler.dense.bias").unwrap().1 = f32::NAN,
                "tensor `bert.pooler.dense.bias` holds NaN at 0",
            ),
            (
                |s| drop(s.insert("cls.predictions.bias".into(), (vec![1], 0.0))),
                "the configuration has no place for cls.predictions.bias",
            ),
            (|s| drop(s.insert("bert.embeddings.position_ids".into(), (vec![1, 4], 0.0))), ""),
        ];
        for (damage, expected) in cases {
            let mut shapes = shapes();
            damage(&mut shapes);
            let result = Weights::parse(&file(&shapes), &encoder());
            assert_eq!(result.map_or_else(|error| error.to_string(), |_| String::new()), expected);
        }
        let whole = file(&shapes());
        for length in [0, 7, 100, whole.len() - 1] {
            let error = Weights::parse(&whole[..length], &encoder()).unwrap_err();
            assert!(error.to_string().starts_with("the file is damaged"), "{word}: {error}");
        }
    }
}
