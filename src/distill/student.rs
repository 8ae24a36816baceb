//! The trainable model: an encoder of BERT's shape, as parameters with a differentiable forward.
//!
//! A word's embedding is a learned projection of the teacher's embedding of that word, plus a learned row of its own. The
//! projection carries what is learned from the words in the text to all other words. In the finished model the sum of both
//! is BERT's usual table. A trained student that continues to learn projects the concatenation of the teacher's table and
//! its own.
//!
//! In the last layer only the first token's row is computed, as in the engines.

use super::grad::{AddBias, Attention, Gelu, LayerNorm};
use super::loss::{LossWeights, loss};
use crate::model::{Encoder, Family, Layer, Linear, Norm, Weights};
use crate::ops;
use crate::token::Packed;
use candle_core::{Device, Result, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The size of a student.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Shape {
    /// Transformer layers.
    pub layers: usize,
    /// Width of a token's state.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Inner width of the feed-forward part.
    pub intermediate: usize,
}

/// A named tensor of f32.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameter {
    pub dims: Vec<usize>,
    pub values: Vec<f32>,
}

/// The model's parameters by name. `words` is `[vocabulary, hidden]`: each word's own row, added to its projection.
#[derive(Clone)]
pub struct Student {
    encoder: Encoder,
    pub(super) dense: BTreeMap<String, Parameter>,
    pub(super) words: Parameter,
    /// The table that is projected, `[vocabulary, wide]`.
    source: Arc<Parameter>,
}

/// The gradient of one list's loss.
pub(super) struct Gradients {
    pub loss: f64,
    /// In the order of [`Student::dense`].
    pub dense: Vec<Vec<f32>>,
    /// The distinct words of the list, and their gradients `[words, hidden]`.
    pub words: (Vec<u32>, Vec<f32>),
}

const PROJECTION: &str = "projection";

impl Student {
    /// A new student of this shape: embeddings are projected from the teacher's, all else is random.
    pub fn new(shape: Shape, teacher: &Encoder, weights: &Weights, seed: u64) -> Self {
        let encoder = Encoder {
            family: Family::Bert,
            hidden: shape.hidden,
            layers: shape.layers,
            heads: shape.heads,
            intermediate: shape.intermediate,
            vocabulary: teacher.vocabulary,
            positions: teacher.positions - teacher.position_offset,
            position_offset: 0,
            token_types: 2,
            layer_norm_eps: 1e-12,
            gelu: ops::Gelu::Erf,
        };
        let (h, i, wide) = (shape.hidden, shape.intermediate, teacher.hidden);
        let mut random = Pcg64::seed_from_u64(seed);
        let source = Parameter { dims: vec![teacher.vocabulary, wide], values: weights.words.clone() };
        let projection = principal(&source, h, &mut random);
        let project = |rows: &[f32]| matmul(rows, wide, &projection, h);
        let mut dense = BTreeMap::new();
        let mut put = |name: String, dims: &[usize], values: Vec<f32>| {
            assert_eq!(values.len(), dims.iter().product::<usize>(), "{name} has its shape");
            dense.insert(name, Parameter { dims: dims.to_vec(), values });
        };
        let first = teacher.position_offset * wide;
        put("positions".into(), &[encoder.positions, h], project(&weights.positions[first..]));
        let mut types = project(&weights.token_types);
        types.resize(2 * h, 0.0);
        put("token_types".into(), &[2, h], types);
        let mut norms = vec!["embedding_norm".to_owned()];
        for layer in 0..shape.layers {
            norms.extend([format!("{layer}.attention_norm"), format!("{layer}.out_norm")]);
            for (name, outputs, inputs) in [
                ("query", h, h),
                ("key", h, h),
                ("value", h, h),
                ("attention_out", h, h),
                ("up", i, h),
                ("down", h, i),
            ] {
                put(
                    format!("{layer}.{name}.weight"),
                    &[outputs, inputs],
                    normal(outputs * inputs, inputs, &mut random),
                );
                put(format!("{layer}.{name}.bias"), &[outputs], vec![0.0; outputs]);
            }
        }
        put("pooler.weight".into(), &[h, h], normal(h * h, h, &mut random));
        put("pooler.bias".into(), &[h], vec![0.0; h]);
        put("classifier.weight".into(), &[1, h], normal(h, h, &mut random));
        put("classifier.bias".into(), &[1], vec![0.0]);
        for norm in norms {
            put(format!("{norm}.gain"), &[h], vec![1.0; h]);
            put(format!("{norm}.bias"), &[h], vec![0.0; h]);
        }
        put(PROJECTION.into(), &[wide, h], projection);
        // With equal query and key weights the first layer attends to other occurrences of the same word. A reranker needs
        // that and is slow to learn it (after Trockman and Kolter 2023).
        let key = dense["0.key.weight"].clone();
        dense.insert("0.query.weight".into(), key);
        let words =
            Parameter { dims: vec![teacher.vocabulary, h], values: vec![0.0; teacher.vocabulary * h] };
        Self { encoder, dense, words, source: Arc::new(source) }
    }

    /// A student that continues from a trained model and begins with the same logits. Student and teacher must share a
    /// vocabulary.
    ///
    /// # Errors
    /// The reason if the model's shape cannot be trained.
    pub fn resume(
        encoder: &Encoder,
        weights: &Weights,
        teacher: &Weights,
    ) -> std::result::Result<Self, &'static str> {
        if encoder.family != Family::Bert || encoder.gelu != ops::Gelu::Erf || encoder.token_types != 2 {
            return Err("only BERT's shape with erf GELU and two token types can be trained");
        }
        let h = encoder.hidden;
        let taught = teacher.words.len() / encoder.vocabulary;
        let wide = taught + h;
        let rows = teacher.words.chunks_exact(taught).zip(weights.words.chunks_exact(h));
        let source = rows.flat_map(|(teacher, own)| teacher.iter().chain(own).copied()).collect();
        let mut projection = vec![0.0; wide * h];
        (0..h).for_each(|place| projection[(taught + place) * h + place] = 1.0);
        let mut dense = BTreeMap::new();
        let mut put = |name: String, dims: &[usize], values: &[f32]| {
            dense.insert(name, Parameter { dims: dims.to_vec(), values: values.to_vec() });
        };
        put("positions".into(), &[encoder.positions, h], &weights.positions);
        put("token_types".into(), &[2, h], &weights.token_types);
        put(PROJECTION.into(), &[wide, h], &projection);
        let mut linears =
            vec![("pooler".to_owned(), &weights.pooler), ("classifier".to_owned(), &weights.classifier)];
        let mut norms = vec![("embedding_norm".to_owned(), &weights.embedding_norm)];
        for (place, layer) in weights.layers.iter().enumerate() {
            let named = [
                ("query", &layer.query),
                ("key", &layer.key),
                ("value", &layer.value),
                ("attention_out", &layer.attention_out),
                ("up", &layer.up),
                ("down", &layer.down),
            ];
            linears.extend(named.map(|(name, linear)| (format!("{place}.{name}"), linear)));
            norms.extend([
                (format!("{place}.attention_norm"), &layer.attention_norm),
                (format!("{place}.out_norm"), &layer.out_norm),
            ]);
        }
        for (name, Linear { weight, bias }) in linears {
            put(format!("{name}.weight"), &[bias.len(), weight.len() / bias.len()], weight);
            put(format!("{name}.bias"), &[bias.len()], bias);
        }
        for (name, Norm { gain, bias }) in norms {
            put(format!("{name}.gain"), &[h], gain);
            put(format!("{name}.bias"), &[h], bias);
        }
        let words = Parameter { dims: vec![encoder.vocabulary, h], values: vec![0.0; weights.words.len()] };
        let source = Arc::new(Parameter { dims: vec![encoder.vocabulary, wide], values: source });
        Ok(Self { encoder: encoder.clone(), dense, words, source })
    }

    /// Its shape.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// All parameters by name: the dense ones in order, then the words.
    pub(super) fn parameters(&self) -> impl Iterator<Item = (&str, &Parameter)> {
        self.dense.iter().map(|(name, parameter)| (name.as_str(), parameter)).chain([("words", &self.words)])
    }

    /// All parameters, mutable.
    pub(super) fn parameters_mut(&mut self) -> impl Iterator<Item = (&str, &mut Parameter)> {
        let dense = self.dense.iter_mut().map(|(name, parameter)| (name.as_str(), parameter));
        dense.chain([("words", &mut self.words)])
    }

    /// The weights of the finished model.
    pub fn weights(&self) -> Weights {
        let values = |name: &str| self.dense[name].values.clone();
        let linear = |name: &str| Linear {
            weight: values(&format!("{name}.weight")),
            bias: values(&format!("{name}.bias")),
        };
        let norm = |name: &str| Norm {
            gain: values(&format!("{name}.gain")),
            bias: values(&format!("{name}.bias")),
        };
        let (h, wide) = (self.encoder.hidden, self.source.dims[1]);
        let mut words = matmul(&self.source.values, wide, &self.dense[PROJECTION].values, h);
        words.iter_mut().zip(&self.words.values).for_each(|(word, own)| *word += own);
        let layer = |layer: usize| Layer {
            query: linear(&format!("{layer}.query")),
            key: linear(&format!("{layer}.key")),
            value: linear(&format!("{layer}.value")),
            attention_out: linear(&format!("{layer}.attention_out")),
            attention_norm: norm(&format!("{layer}.attention_norm")),
            up: linear(&format!("{layer}.up")),
            down: linear(&format!("{layer}.down")),
            out_norm: norm(&format!("{layer}.out_norm")),
        };
        Weights {
            words,
            positions: values("positions"),
            token_types: values("token_types"),
            embedding_norm: norm("embedding_norm"),
            layers: (0..self.encoder.layers).map(layer).collect(),
            pooler: linear("pooler"),
            classifier: linear("classifier"),
        }
    }

    /// The loss of a list and its gradient.
    pub(super) fn gradients(
        &self,
        batch: &Packed,
        teacher: &[f32],
        weights: LossWeights,
    ) -> Result<Gradients> {
        let (mut ids, h) = (batch.ids().to_vec(), self.encoder.hidden);
        ids.sort_unstable();
        ids.dedup();
        let own = ids.iter().flat_map(|&id| &self.words.values[id as usize * h..][..h]).copied().collect();
        let own = Var::from_tensor(&Tensor::from_vec(own, (ids.len(), h), &Device::Cpu)?)?;
        let var = |parameter: &Parameter| {
            Var::from_tensor(&Tensor::from_slice(&parameter.values, &parameter.dims[..], &Device::Cpu)?)
        };
        let vars: BTreeMap<&str, Var> = self
            .dense
            .iter()
            .map(|(name, parameter)| Ok((name.as_str(), var(parameter)?)))
            .collect::<Result<_>>()?;
        let logits = self.forward(&vars, &own, &ids, batch)?;
        let (loss, slopes) = loss(&logits.to_vec1()?, teacher, weights);
        let slopes = Tensor::from_vec(slopes, logits.shape(), &Device::Cpu)?;
        let grads = (logits * slopes)?.sum_all()?.backward()?;
        let grad = |var: &Var| match grads.get(var) {
            Some(grad) => grad.flatten_all()?.to_vec1(),
            None => Ok(vec![0.0; var.elem_count()]),
        };
        let dense = vars.values().map(grad).collect::<Result<_>>()?;
        Ok(Gradients { loss, dense, words: (ids, grad(&own)?) })
    }

    /// The logits of a batch; `ids` are its distinct words, sorted.
    fn forward(&self, vars: &BTreeMap<&str, Var>, own: &Var, ids: &[u32], batch: &Packed) -> Result<Tensor> {
        let wide = self.source.dims[1];
        let cpu = &Device::Cpu;
        let linear = |x: &Tensor, name: &str| {
            let weight = vars[format!("{name}.weight").as_str()].t()?;
            x.matmul(&weight)?.apply_op2(&vars[format!("{name}.bias").as_str()], AddBias)
        };
        let norm = |x: &Tensor, name: &str| {
            let (gain, bias) =
                (&vars[format!("{name}.gain").as_str()], &vars[format!("{name}.bias").as_str()]);
            x.contiguous()?.apply_op3(gain, bias, LayerNorm { eps: self.encoder.layer_norm_eps as f32 })
        };
        let pick = |table: &Tensor, rows: Vec<u32>| table.index_select(&Tensor::new(rows, cpu)?, 0);
        let source = ids.iter().flat_map(|&id| &self.source.values[id as usize * wide..][..wide]).copied();
        let source = Tensor::from_vec(source.collect::<Vec<f32>>(), (ids.len(), wide), cpu)?;
        let table = (source.matmul(&vars[PROJECTION])? + own.as_tensor())?;
        let place = |id: &u32| ids.binary_search(id).expect("a word of the batch is among its words") as u32;
        let words = pick(&table, batch.ids().iter().map(place).collect())?;
        let positions = pick(&vars["positions"], batch.lengths().flat_map(|length| 0..length).collect())?;
        let types = pick(&vars["token_types"], batch.types().iter().map(|&kind| u32::from(kind)).collect())?;
        let mut x = norm(&((words + positions)? + types)?, "embedding_norm")?;
        let tokens: Arc<[usize]> = batch.starts().iter().map(|&start| start as usize).collect();
        for layer in 0..self.encoder.layers {
            let part = |name: &str| format!("{layer}.{name}");
            let last = layer + 1 == self.encoder.layers;
            let (key, value) = (linear(&x, &part("key"))?, linear(&x, &part("value"))?);
            let mut queries = tokens.clone();
            if last {
                let firsts = &batch.starts()[..batch.len()];
                x = pick(&x, firsts.to_vec())?;
                queries = (0..=batch.len()).collect();
            }
            let op = Attention { heads: self.encoder.heads, queries, tokens: tokens.clone() };
            let context = linear(&x, &part("query"))?.apply_op3(&key, &value, op)?;
            x = norm(&(linear(&context, &part("attention_out"))? + x)?, &part("attention_norm"))?;
            let inner = linear(&x, &part("up"))?.apply_op1(Gelu)?;
            x = norm(&(linear(&inner, &part("down"))? + x)?, &part("out_norm"))?;
        }
        linear(&linear(&x, "pooler")?.tanh()?, "classifier")?.squeeze(1)
    }
}

/// `rows: [.., inner]` times `matrix: [inner, outer]`.
fn matmul(rows: &[f32], inner: usize, matrix: &[f32], outer: usize) -> Vec<f32> {
    let product = || {
        let rows = Tensor::from_slice(rows, (rows.len() / inner, inner), &Device::Cpu)?;
        let matrix = Tensor::from_slice(matrix, (inner, outer), &Device::Cpu)?;
        rows.matmul(&matrix)?.flatten_all()?.to_vec1()
    };
    product().expect("the shapes of a product fit")
}

/// Normal values with variance 1 / inputs.
fn normal(count: usize, inputs: usize, random: &mut Pcg64) -> Vec<f32> {
    let deviation = 1.0 / (inputs as f32).sqrt();
    (0..count)
        .map(|_| {
            let z: f32 = StandardNormal.sample(random);
            z * deviation
        })
        .collect()
}

/// The `width` principal directions of a table's rows, `[wide, width]`, by orthogonal iteration.
fn principal(table: &Parameter, width: usize, random: &mut Pcg64) -> Vec<f32> {
    let wide = table.dims[1];
    let covariance = || {
        let rows = Tensor::from_slice(&table.values, &table.dims[..], &Device::Cpu)?;
        rows.t()?.matmul(&rows)?.flatten_all()?.to_vec1()
    };
    let covariance: Vec<f32> = covariance().expect("the shapes of a product fit");
    let mut directions: Vec<f32> = (0..wide * width).map(|_| random.random_range(-1.0..1.0)).collect();
    for _ in 0..30 {
        directions = matmul(&covariance, wide, &directions, width);
        orthonormalise(&mut directions, width);
    }
    directions
}

/// Gram-Schmidt on the columns of `[rows, width]`, twice for precision. A column that depends on the earlier ones becomes
/// zero.
fn orthonormalise(matrix: &mut [f32], width: usize) {
    let rows = matrix.len() / width;
    let mut columns: Vec<Vec<f64>> = (0..width)
        .map(|column| (0..rows).map(|row| f64::from(matrix[row * width + column])).collect())
        .collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for place in 0..width {
        let (before, rest) = columns.split_at_mut(place);
        let column = &mut rest[0];
        let size = dot(column, column).sqrt();
        for _ in 0..2 {
            for other in before.iter() {
                let along = dot(other, column);
                column.iter_mut().zip(other).for_each(|(value, other)| *value -= along * other);
            }
        }
        let norm = dot(column, column).sqrt();
        let factor = if norm > 1e-9 * size { 1.0 / norm } else { 0.0 };
        column.iter_mut().for_each(|value| *value *= factor);
    }
    for (column, values) in columns.iter().enumerate() {
        for (row, value) in values.iter().enumerate() {
            matrix[row * width + column] = *value as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::tests::{teacher, tiny};
    use crate::model::Forward;

    fn batch() -> Packed {
        let mut batch = Packed::default();
        batch.push([(1, 0), (7, 0), (2, 0), (9, 1), (7, 1), (2, 1)]);
        batch.push([(1, 0), (2, 1)]);
        batch.push((0..18).map(|place| (3 + place, u8::from(place > 4))));
        batch
    }

    fn student() -> Student {
        let (encoder, weights) = teacher();
        let mut student = Student::new(tiny(), &encoder, &weights, 1);
        let mut random = Pcg64::seed_from_u64(2);
        for (_, parameter) in student.parameters_mut() {
            parameter.values.iter_mut().for_each(|value| *value += random.random_range(-0.2..0.2));
        }
        student
    }

    #[test]
    fn the_trained_forward_equals_the_served_one() {
        let student = student();
        let served = Forward::new(student.encoder(), &student.weights()).unwrap().logits(&batch()).unwrap();
        // The loss is smallest if the teacher's logits equal the student's.
        let at = |teacher: &[f32]| student.gradients(&batch(), teacher, LossWeights::default()).unwrap().loss;
        assert!(at(&served) < 1e-6, "{}", at(&served));
        assert!(at(&[served[0] + 1.0, served[1], served[2]]) > 0.01);
    }

    #[test]
    fn a_resumed_student_begins_with_the_same_logits() {
        let (first, (_, teacher)) = (student(), teacher());
        let again = Student::resume(first.encoder(), &first.weights(), &teacher).unwrap();
        let names = |student: &Student| student.dense.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&first), names(&again));
        let served = |student: &Student| Forward::new(student.encoder(), &student.weights()).unwrap();
        let (before, after) =
            (served(&first).logits(&batch()).unwrap(), served(&again).logits(&batch()).unwrap());
        for (before, after) in before.iter().zip(&after) {
            assert!((before - after).abs() < 1e-5, "{before} {after}");
        }
        let loss = again.gradients(&batch(), &before, LossWeights::default()).unwrap().loss;
        assert!(loss < 1e-6, "{loss}");
        let other = Encoder { family: Family::Roberta, ..first.encoder().clone() };
        assert!(Student::resume(&other, &first.weights(), &teacher).is_err());
    }

    #[test]
    fn every_derivative_matches_finite_differences() {
        let (mut student, teacher) = (student(), [1.0, -2.0, 0.5]);
        let weights = LossWeights::default();
        let grads = student.gradients(&batch(), &teacher, weights).unwrap();
        let names: Vec<String> = student.dense.keys().cloned().collect();
        let mut checked = 0;
        for (name, grad) in names.iter().zip(&grads.dense) {
            // The largest derivative has the smallest relative rounding error.
            let place = (0..grad.len()).max_by(|&a, &b| grad[a].abs().total_cmp(&grad[b].abs())).unwrap();
            let mut at = |step: f32| {
                student.dense.get_mut(name).unwrap().values[place] += step;
                let loss = student.gradients(&batch(), &teacher, weights).unwrap().loss;
                student.dense.get_mut(name).unwrap().values[place] -= step;
                loss
            };
            let slope = (at(5e-3) - at(-5e-3)) / 1e-2;
            let expected = f64::from(grad[place]);
            assert!((slope - expected).abs() < 2e-3 + 0.03 * expected.abs(), "{name}: {slope}, {expected}");
            checked += usize::from(expected.abs() > 1e-3);
        }
        // A key bias shifts all scores of a query equally, so its derivative is zero.
        assert!(checked >= names.len() - 2, "{checked} of {}", names.len());
        assert_eq!(grads.words.0[..4], [1, 2, 3, 4]);
    }

    #[test]
    fn a_table_of_low_rank_is_recovered() {
        let mut random = Pcg64::seed_from_u64(9);
        let (rows, inner, wide) = (50, 3, 12);
        let (left, right) = (normal(rows * inner, 1, &mut random), normal(inner * wide, 1, &mut random));
        let table = Parameter { dims: vec![rows, wide], values: matmul(&left, inner, &right, wide) };
        let directions = principal(&table, inner, &mut random);
        let projected = matmul(&table.values, wide, &directions, inner);
        let square = |values: &[f32]| values.iter().map(|x| x * x).sum::<f32>();
        assert!((square(&projected) / square(&table.values) - 1.0).abs() < 1e-4);
    }
}
