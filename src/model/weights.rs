//! The values of a plan's tensors, in safetensors: checked by name and shape; none may be missing or left over.

use super::directory::{Shard, Shards};
use super::plan::{Part, Plan, Tensor};
use super::stored::{FileChanged, Stored, Width};
use crate::base::hex;
use safetensors::{Dtype, SafeTensorError};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thiserror::Error;

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
    /// A file was written to while it was read.
    #[error(transparent)]
    Changed(#[from] FileChanged),
}

impl WeightError {
    /// The folder of the module whose weights these are, if they are not the model's own.
    pub(super) fn folder(&self) -> Option<&str> {
        let name = match self {
            Self::Format(_) | Self::Changed(_) => return None,
            Self::Shard { file, .. } => file,
            Self::Missing(name)
            | Self::Twice { name, .. }
            | Self::Shape { name, .. }
            | Self::Type { name, .. }
            | Self::NonFinite { name, .. } => name,
            Self::LeftOver(names) => names.first()?,
        };
        name.split_once('/').map(|(folder, _)| folder)
    }
}

impl Plan {
    /// Reads the tensors' values from a safetensors file.
    ///
    /// # Errors
    /// [`WeightError`], which names the tensor.
    pub fn fill(&mut self, bytes: &[u8]) -> Result<(), WeightError> {
        let shards = Shards::one(bytes.to_vec());
        self.find_in(&shards).and_then(|()| shards.read(self)).map_err(|error| match error {
            WeightError::Shard { reason, .. } => WeightError::Format(reason),
            error => error,
        })?;
        self.tensors_mut().into_iter().for_each(Tensor::hold);
        Ok(())
    }

    /// Finds the tensors by the headers of a model's files, one or several. Their values stay there, and are not read yet.
    pub(super) fn find_in(&mut self, shards: &Shards) -> Result<(), WeightError> {
        let mut tensors: BTreeMap<String, Entry> = BTreeMap::new();
        for shard in shards.iter() {
            let damaged = |reason| WeightError::Shard { file: shard.name.to_string(), reason };
            let (header, start) = shard.content.header().map_err(damaged)?;
            let mut found: Vec<_> = header.tensors().into_iter().collect();
            // The same error for the same files.
            found.sort_by(|(one, _), (other, _)| one.cmp(other));
            for (name, info) in found {
                let name = shard.folder().map_or(name.clone(), |folder| format!("{folder}/{name}"));
                let entry = Entry {
                    shard,
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    at: start + info.data_offsets.0 as u64,
                };
                if let Some(first) = tensors.insert(name.clone(), entry) {
                    let files = [first.shard.name.to_string(), shard.name.to_string()];
                    return Err(WeightError::Twice { name, files });
                }
            }
        }
        self.take(&Found(tensors))
    }

    /// Checks that the files of the weights are those that were opened and hashed. To be called after values were read,
    /// and before they are used.
    ///
    /// # Errors
    /// [`FileChanged`] for the first file that was written to.
    pub fn check_files(&self) -> Result<(), FileChanged> {
        let mut stored = self.tensors().into_iter().filter_map(|tensor| tensor.stored.as_ref());
        stored.try_for_each(Stored::check)
    }

    fn take(&mut self, found: &Found) -> Result<(), WeightError> {
        let mut used = BTreeSet::new();
        for tensor in self.tensors_mut() {
            let (name, entry) = found.entry(tensor)?;
            (tensor.values, tensor.stored) = (Vec::new(), Some(entry.stored(tensor)?));
            used.insert(name);
        }
        let is_unused = |name: &str| {
            let under = |stem: &String| {
                name.strip_prefix(stem.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            self.unused.iter().any(under)
        };
        let left = found.0.keys().filter(|name| !used.contains(*name) && !is_unused(name)).cloned();
        let left: Vec<String> = left.collect();
        if left.is_empty() { Ok(()) } else { Err(WeightError::LeftOver(left)) }
    }
}

/// The tensors of a model's files.
struct Found<'a>(BTreeMap<String, Entry<'a>>);

/// A tensor of a file.
struct Entry<'a> {
    shard: &'a Shard,
    dtype: Dtype,
    shape: Vec<usize>,
    /// The first byte.
    at: u64,
}

impl<'a> Found<'a> {
    /// The tensor of the files that a plan's tensor is, or is a part of.
    fn entry(&self, tensor: &Tensor) -> Result<(String, &Entry<'a>), WeightError> {
        let as_named = self.0.get_key_value(&tensor.name);
        let found = as_named.or_else(|| self.0.get_key_value(&older_name(&tensor.name)?));
        let Some((name, entry)) = found else {
            return Err(WeightError::Missing(tensor.name.clone()));
        };
        let mut expected = tensor.shape.clone();
        if let Some(Part { of, .. }) = tensor.part {
            expected[0] = of;
        }
        if entry.shape != expected {
            let found = entry.shape.clone();
            return Err(WeightError::Shape { name: tensor.name.clone(), found, expected });
        }
        Ok((name.clone(), entry))
    }
}

impl Entry<'_> {
    /// Where the values of a plan's tensor are.
    fn stored(&self, tensor: &Tensor) -> Result<Stored, WeightError> {
        let name = || tensor.name.clone();
        let dtype = Width::of(self.dtype).ok_or(WeightError::Type { name: name(), found: self.dtype })?;
        let at = self.at + first_value(tensor) as u64 * dtype.bytes();
        Ok(Stored { content: self.shard.content.clone(), dtype, at, count: tensor.count() })
    }
}

/// The place of a tensor's first value in the tensor of the files that it is a part of.
fn first_value(tensor: &Tensor) -> usize {
    tensor.part.map_or(0, |part| part.first * (tensor.count() / tensor.shape[0]))
}

impl Shards {
    /// Reads all files once, from their first byte to their last: checks that a plan's values are finite, and returns the
    /// sha256 of the files, one after the other, in hex.
    pub(super) fn read(&self, plan: &Plan) -> Result<String, WeightError> {
        let mut hashed = Sha256::new();
        for shard in self.iter() {
            let read = shard.read(plan, &mut hashed);
            // Of a file that was written to meanwhile that is the reason of whatever was found.
            shard.content.check()?;
            read?;
        }
        Ok(hex(&hashed.finalize()))
    }
}

impl Shard {
    fn read(&self, plan: &Plan, hashed: &mut Sha256) -> Result<(), WeightError> {
        let mut found: Vec<(&Tensor, &Stored)> = plan
            .tensors()
            .into_iter()
            .filter_map(|tensor| Some((tensor, tensor.stored.as_ref()?)))
            .filter(|(_, stored)| Arc::ptr_eq(&stored.content, &self.content))
            .collect();
        found.sort_by_key(|(_, stored)| stored.at);
        let failed = |error| WeightError::Shard {
            file: self.name.to_string(),
            reason: SafeTensorError::IoError(error),
        };
        let mut place = 0;
        for (tensor, stored) in found {
            let range = stored.range();
            // Tensors may be rows of one that was read.
            let from = range.start.max(place);
            self.content.each_chunk(place..from, |chunk| hashed.update(chunk)).map_err(failed)?;
            let mut index = first_value(tensor) + ((from - range.start) / stored.dtype.bytes()) as usize;
            let mut wrong = None;
            let check = |chunk: &[u8]| {
                hashed.update(chunk);
                stored.dtype.convert(chunk, |value| {
                    if !value.is_finite() && wrong.is_none() {
                        wrong = Some((index, value));
                    }
                    index += 1;
                });
            };
            self.content.each_chunk(from..range.end, check).map_err(failed)?;
            if let Some((index, value)) = wrong {
                return Err(WeightError::NonFinite { name: tensor.name.clone(), index, value });
            }
            place = place.max(range.end);
        }
        self.content.each_chunk(place..self.content.bytes(), |chunk| hashed.update(chunk)).map_err(failed)
    }
}

/// The name that a norm's tensor has in files that were converted from TensorFlow.
fn older_name(name: &str) -> Option<String> {
    let (norm, part) = name.rsplit_once("LayerNorm.")?;
    let older = match part {
        "weight" => "gamma",
        "bias" => "beta",
        _ => return None,
    };
    Some(format!("{norm}LayerNorm.{older}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::{Activation, Gelu};
    use crate::model::{Bert, Family, Score};
    use safetensors::tensor::TensorView;

    fn bert() -> Bert {
        Bert {
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
            activation: Activation::Gelu(Gelu::Erf),
        }
    }

    fn read(bytes: &[u8]) -> Result<Plan, WeightError> {
        let mut plan = bert().plan();
        plan.fill(bytes).map(|()| plan)
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
        let plan = read(&file(&shapes())).unwrap();
        let expected: usize = shapes().values().map(|(shape, _)| shape.iter().product::<usize>()).sum();
        assert_eq!(plan.parameters(), expected);
        assert!(plan.tensors().into_iter().all(|tensor| tensor.values.len() == tensor.count()));
    }

    #[test]
    fn a_checksum_is_that_of_all_bytes_whatever_the_plan_uses_of_them() {
        let bytes = file(&shapes());
        let shards = Shards::one(bytes.clone());
        let whole = hex(&Sha256::digest(&bytes));
        let mut plan = bert().plan();
        // Before the tensors are found none is checked.
        assert_eq!(shards.read(&plan).unwrap(), whole);
        plan.find_in(&shards).unwrap();
        assert_eq!(shards.read(&plan).unwrap(), whole);
        // Parts that lie in each other, and one that is found twice.
        let words = &plan.embed.words;
        let stored = words.stored.clone().map(|whole| Stored { at: whole.at + 8, count: 4, ..whole });
        let rows = Tensor { stored, ..words.rows(1, 2) };
        plan.head.score = Score::Tokens { yes: rows.clone(), no: Some(rows) };
        assert_eq!(shards.read(&plan).unwrap(), whole);
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (family, position_offset) in [(Family::Bert, 0), (Family::Roberta, 2)] {
            let mut plan = Bert { family, position_offset, ..bert() }.plan();
            for (tensor, place) in plan.tensors_mut().into_iter().zip(0u8..) {
                tensor.values = (0..tensor.count()).map(|at| f32::from(place) + at as f32 / 4.0).collect();
            }
            let written = plan.to_safetensors().unwrap();
            let mut empty = plan.clone();
            empty.tensors_mut().into_iter().for_each(|tensor| tensor.values.clear());
            empty.fill(&written).unwrap();
            assert_eq!(empty, plan);
            plan.embed.words.values.pop();
            assert!(plan.to_safetensors().is_err(), "a value is missing");
        }
    }

    #[test]
    fn parts_of_a_tensor_are_read_each_by_itself() {
        let mut plan = bert().plan();
        let shapes = shapes();
        let whole = crate::model::plan::Linear::new("bert.encoder.layer.0.attention.self.query", 2, 2);
        let attention = &mut plan.blocks[0].attention;
        (attention.query, attention.key) = (whole.rows(1, 1), whole.rows(0, 1));
        let expected: Vec<f32> = vec![1.0, 2.0, 3.0, 4.0];
        let bytes: Vec<u8> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut file = BTreeMap::new();
        let query = "bert.encoder.layer.0.attention.self.query.weight";
        let zeros: BTreeMap<&String, Vec<u8>> = shapes
            .iter()
            .map(|(name, (shape, _))| (name, vec![0; 4 * shape.iter().product::<usize>()]))
            .collect();
        for (name, (shape, _)) in shapes.iter().filter(|(name, _)| !name.contains("self.key")) {
            let data = if name == query { &bytes } else { &zeros[name] };
            file.insert(name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap());
        }
        plan.fill(&safetensors::serialize(file, None).unwrap()).unwrap();
        assert_eq!(plan.blocks[0].attention.query.weight.values, expected[2..]);
        assert_eq!(plan.blocks[0].attention.key.weight.values, expected[..2]);
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
            let result = read(&file(&shapes));
            assert_eq!(result.map_or_else(|error| error.to_string(), |_| String::new()), expected);
        }
        let whole = file(&shapes());
        for length in [0, 7, 100, whole.len() - 1] {
            let error = read(&whole[..length]).unwrap_err();
            assert!(error.to_string().starts_with("the file is damaged"), "{word}: {error}");
        }
    }
}
