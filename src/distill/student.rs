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
use crate::model::{self, Activation, Bert, Block, Embed, Family, Head, Linear, Norm, Plan, Score};
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

impl Shape {
    /// The size of a model.
    pub fn of(plan: &Plan) -> Self {
        Self {
            layers: plan.blocks.len(),
            hidden: plan.hidden(),
            heads: plan.blocks.first().map_or(0, |block| block.attention.heads),
            intermediate: plan.intermediate(),
        }
    }
}

/// A named tensor of f32.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameter {
    pub dims: Vec<usize>,
    pub values: Vec<f32>,
}

/// The model's parameters by the names of the finished model's tensors. `words` is `[vocabulary, hidden]`: each word's own row, added to its projection.
#[derive(Clone)]
pub struct Student {
    shape: Bert,
    /// The finished model, without values.
    plan: Plan,
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
    ///
    /// # Errors
    /// The reason if nothing can be projected.
    pub fn new(shape: Shape, teacher: &Plan, seed: u64) -> std::result::Result<Self, &'static str> {
        let embed = &teacher.embed;
        let (Some(positions), Some(types)) = (&embed.positions, &embed.types) else {
            return Err(
                "a student begins with its teacher's positions and token types, which this teacher has not",
            );
        };
        let (h, wide) = (shape.hidden, teacher.hidden());
        let shape = Bert {
            family: Family::Bert,
            hidden: h,
            layers: shape.layers,
            heads: shape.heads,
            intermediate: shape.intermediate,
            vocabulary: teacher.vocabulary(),
            positions: teacher.tokens_max as usize,
            position_offset: 0,
            token_types: 2,
            layer_norm_eps: 1e-12,
            activation: Activation::Gelu(model::Gelu::Erf),
        };
        let mut random = Pcg64::seed_from_u64(seed);
        let source = Parameter { dims: embed.words.shape.clone(), values: embed.words.values().into_owned() };
        let projection = principal(&source, h, &mut random);
        let project = |rows: &[f32]| matmul(rows, wide, &projection, h);
        let mut plan = shape.plan();
        let mut values = BTreeMap::new();
        if let Embed { positions: Some(own), types: Some(own_types), .. } = &plan.embed {
            let first = positions.offset * wide;
            values.insert(own.table.name.clone(), project(&positions.table.values()[first..]));
            let mut types = project(&types.values());
            types.resize(2 * h, 0.0);
            values.insert(own_types.name.clone(), types);
        }
        for tensor in plan.tensors_mut().into_iter().skip(1) {
            tensor.values = match (values.remove(&tensor.name), &tensor.shape[..]) {
                (Some(projected), _) => projected,
                (None, &[outputs, inputs]) => normal(outputs * inputs, inputs, &mut random),
                (None, _) => vec![if tensor.name.ends_with(".bias") { 0.0 } else { 1.0 }; tensor.count()],
            };
        }
        // With equal query and key weights the first layer attends to other occurrences of the same word. A reranker needs
        // that and is slow to learn it (after Trockman and Kolter 2023).
        if let Some(Block { attention, .. }) = plan.blocks.first_mut() {
            attention.query.weight.values = attention.key.weight.values.clone();
        }
        Ok(Self::of((shape, plan), source, projection))
    }

    /// A student that continues from a trained model and begins with the same logits. Student and teacher must share a
    /// vocabulary.
    ///
    /// # Errors
    /// The reason if the model's shape cannot be trained.
    pub fn resume(model: &Plan, teacher: &Plan) -> std::result::Result<Self, &'static str> {
        let is_trainable = |shape: &Bert| {
            let Bert { family, activation, token_types, .. } = *shape;
            family == Family::Bert && activation == Activation::Gelu(model::Gelu::Erf) && token_types == 2
        };
        let shape = Bert::of(model).filter(is_trainable);
        let shape = shape.ok_or("only BERT's shape with erf GELU and two token types can be trained")?;
        let (h, taught) = (shape.hidden, teacher.hidden());
        let wide = taught + h;
        let (taught_words, own_words) = (teacher.embed.words.values(), model.embed.words.values());
        let rows = taught_words.chunks_exact(taught).zip(own_words.chunks_exact(h));
        let source = rows.flat_map(|(teacher, own)| teacher.iter().chain(own).copied()).collect();
        let source = Parameter { dims: vec![shape.vocabulary, wide], values: source };
        let mut projection = vec![0.0; wide * h];
        (0..h).for_each(|place| projection[(taught + place) * h + place] = 1.0);
        Ok(Self::of((shape, model.held()), source, projection))
    }

    /// A student with these values, whose words are projected from a table's rows.
    fn of((shape, mut plan): (Bert, Plan), source: Parameter, projection: Vec<f32>) -> Self {
        let (h, wide) = (shape.hidden, source.dims[1]);
        let words = Parameter { dims: vec![shape.vocabulary, h], values: vec![0.0; shape.vocabulary * h] };
        plan.embed.words.values.clear();
        let tensors = plan.tensors_mut().into_iter().skip(1);
        let parameter = |tensor: &mut model::Tensor| Parameter {
            dims: tensor.shape.clone(),
            values: std::mem::take(&mut tensor.values),
        };
        let mut dense: BTreeMap<String, Parameter> =
            tensors.map(|tensor| (tensor.name.clone(), parameter(tensor))).collect();
        dense.insert(PROJECTION.into(), Parameter { dims: vec![wide, h], values: projection });
        Self { shape, plan, dense, words, source: Arc::new(source) }
    }

    /// Its shape.
    pub fn shape(&self) -> &Bert {
        &self.shape
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

    /// The finished model.
    pub fn finished(&self) -> Plan {
        let (h, wide) = (self.shape.hidden, self.source.dims[1]);
        let mut words = matmul(&self.source.values, wide, &self.dense[PROJECTION].values, h);
        words.iter_mut().zip(&self.words.values).for_each(|(word, own)| *word += own);
        let mut plan = self.plan.clone();
        plan.embed.words.values = words;
        for tensor in plan.tensors_mut().into_iter().skip(1) {
            tensor.values.clone_from(&self.dense[&tensor.name].values);
        }
        plan
    }

    /// The loss of a list and its gradient.
    pub(super) fn gradients(
        &self,
        batch: &Packed,
        teacher: &[f32],
        weights: LossWeights,
    ) -> Result<Gradients> {
        let (mut ids, h) = (batch.ids().to_vec(), self.shape.hidden);
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
        let var = |tensor: &model::Tensor| &vars[tensor.name.as_str()];
        let bias = |bias: &Option<model::Tensor>| var(bias.as_ref().expect("every part of BERT has a bias"));
        let linear = |x: &Tensor, linear: &Linear| {
            x.matmul(&var(&linear.weight).t()?)?.apply_op2(bias(&linear.bias), AddBias)
        };
        let norm = |x: &Tensor, norm: &Norm| {
            let eps = norm.eps as f32;
            x.contiguous()?.apply_op3(var(&norm.gain), bias(&norm.bias), LayerNorm { eps })
        };
        let pick = |table: &Tensor, rows: Vec<u32>| table.index_select(&Tensor::new(rows, cpu)?, 0);
        let source = ids.iter().flat_map(|&id| &self.source.values[id as usize * wide..][..wide]).copied();
        let source = Tensor::from_vec(source.collect::<Vec<f32>>(), (ids.len(), wide), cpu)?;
        let table = (source.matmul(&vars[PROJECTION])? + own.as_tensor())?;
        let place = |id: &u32| ids.binary_search(id).expect("a word of the batch is among its words") as u32;
        let mut x = pick(&table, batch.ids().iter().map(place).collect())?;
        let Embed { positions, types, norm: embedding_norm, .. } = &self.plan.embed;
        if let Some(positions) = positions {
            x = (x + pick(var(&positions.table), batch.lengths().flat_map(|length| 0..length).collect())?)?;
        }
        if let Some(types) = types {
            x = (x + pick(var(types), batch.types().iter().map(|&kind| u32::from(kind)).collect())?)?;
        }
        if let Some(embedding_norm) = embedding_norm {
            x = norm(&x, embedding_norm)?;
        }
        let tokens: Arc<[usize]> = batch.starts().iter().map(|&start| start as usize).collect();
        for (layer, block) in self.plan.blocks.iter().enumerate() {
            let Block { attention, attention_norm, feed_forward, feed_forward_norm, .. } = block;
            let last = layer + 1 == self.plan.blocks.len();
            let (key, value) = (linear(&x, &attention.key)?, linear(&x, &attention.value)?);
            let mut queries = tokens.clone();
            if last {
                let firsts = &batch.starts()[..batch.len()];
                x = pick(&x, firsts.to_vec())?;
                queries = (0..=batch.len()).collect();
            }
            let op = Attention { heads: attention.heads, queries, tokens: tokens.clone() };
            let context = linear(&x, &attention.query)?.apply_op3(&key, &value, op)?;
            x = (linear(&context, &attention.out)? + x)?;
            x = norm(&x, attention_norm.as_ref().expect("a layer of BERT has both norms"))?;
            let inner = linear(&x, &feed_forward.up)?.apply_op1(Gelu)?;
            x = norm(&(linear(&inner, &feed_forward.down)? + x)?, feed_forward_norm)?;
        }
        let Head { dense, score, .. } = &self.plan.head;
        if let Some((dense, _)) = dense {
            x = linear(&x, dense)?.tanh()?;
        }
        let Score::Linear(classifier) = score else { unreachable!("BERT has a classifier") };
        linear(&x, classifier)?.squeeze(1)
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
        let mut student = Student::new(tiny(), &teacher(), 1).unwrap();
        let mut random = Pcg64::seed_from_u64(2);
        for (_, parameter) in student.parameters_mut() {
            parameter.values.iter_mut().for_each(|value| *value += random.random_range(-0.2..0.2));
        }
        student
    }

    #[test]
    fn the_trained_forward_equals_the_served_one() {
        let student = student();
        let served = Forward::new(&student.finished()).unwrap().logits(&batch()).unwrap();
        // The loss is smallest if the teacher's logits equal the student's.
        let at = |teacher: &[f32]| student.gradients(&batch(), teacher, LossWeights::default()).unwrap().loss;
        assert!(at(&served) < 1e-6, "{}", at(&served));
        assert!(at(&[served[0] + 1.0, served[1], served[2]]) > 0.01);
    }

    #[test]
    fn a_resumed_student_begins_with_the_same_logits() {
        let (first, teacher) = (student(), teacher());
        let again = Student::resume(&first.finished(), &teacher).unwrap();
        let names = |student: &Student| student.dense.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&first), names(&again));
        let served = |student: &Student| Forward::new(&student.finished()).unwrap();
        let (before, after) =
            (served(&first).logits(&batch()).unwrap(), served(&again).logits(&batch()).unwrap());
        for (before, after) in before.iter().zip(&after) {
            assert!((before - after).abs() < 1e-5, "{before} {after}");
        }
        let loss = again.gradients(&batch(), &before, LossWeights::default()).unwrap().loss;
        assert!(loss < 1e-6, "{loss}");
        let other = Bert { family: Family::Roberta, ..first.shape().clone() }.plan();
        assert!(Student::resume(&other, &teacher).is_err());
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
