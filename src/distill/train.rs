//! Trains a student on labelled lists: AdamW over random lists, with regular evaluations that select the best student.
//!
//! One thread computes the gradient of a list, and gradients are summed in order. So the same lists and seed give the same
//! student on one machine, for any number of threads.

use super::checkpoint::Checkpoint;
use super::loss::LossWeights;
use super::student::{Gradients, Parameter, Student};
use crate::token::Packed;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use std::path::PathBuf;
use thiserror::Error;

/// How a student is trained.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TrainPlan {
    /// Number of updates. The learning rate falls to 0 over them.
    pub steps: usize,
    /// Lists per update.
    pub lists: usize,
    /// The largest learning rate.
    pub rate: f64,
    /// Updates between evaluations.
    pub every: usize,
    /// Training ends after this many evaluations without improvement.
    pub patience: usize,
    /// The loss.
    pub loss: LossWeights,
    /// The seed of all random choices.
    pub seed: u64,
}

/// A tokenised list with the teacher's logits.
pub struct Example {
    /// The pairs.
    pub batch: Packed,
    /// `[pairs]`.
    pub teacher: Vec<f32>,
}

/// The progress of training.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Updates made.
    pub step: usize,
    /// Mean loss of the lists since the last evaluation.
    pub loss: f64,
}

/// Kingma and Ba 2015, with decoupled weight decay (Loshchilov and Hutter 2019).
const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.98;
const EPSILON: f64 = 1e-8;
const DECAY: f64 = 0.01;
/// Gradients are clipped to this norm.
const NORM_MAX: f64 = 1.0;
/// The share of updates over which the learning rate rises.
const WARM_UP: f64 = 0.05;
/// The learning rate of the words' own rows, relative to other parameters.
const WORDS_RATE: f64 = 0.5;

/// First and second moments of a tensor's gradient.
pub(super) struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

impl Moments {
    fn of(parameter: &Parameter) -> Self {
        let count = parameter.values.len();
        Self { first: vec![0.0; count], second: vec![0.0; count] }
    }

    /// Updates the values from `start` on by their gradient.
    fn update(&mut self, values: &mut [f32], start: usize, grad: &[f32], step: &Step) {
        let correct = |beta: f64| 1.0 - beta.powi(step.number.min(100_000) as i32);
        let size = (step.rate * correct(BETA_2).sqrt() / correct(BETA_1)) as f32;
        let epsilon = (EPSILON * correct(BETA_2).sqrt()) as f32;
        let shrink = 1.0 - (step.rate * step.decay) as f32;
        let range = start..start + grad.len();
        let moments = self.first[range.clone()].iter_mut().zip(&mut self.second[range.clone()]);
        for ((value, grad), (first, second)) in values[range].iter_mut().zip(grad).zip(moments) {
            *first = BETA_1 as f32 * *first + (1.0 - BETA_1) as f32 * grad;
            *second = BETA_2 as f32 * *second + (1.0 - BETA_2) as f32 * grad * grad;
            *value = *value * shrink - size * *first / (second.sqrt() + epsilon);
        }
    }
}

/// The rates of an update.
struct Step {
    /// From 1.
    number: usize,
    rate: f64,
    decay: f64,
}

/// The complete state of a training.
pub(super) struct State {
    /// Updates made.
    pub step: usize,
    pub student: Student,
    /// In the order of the student's dense parameters.
    pub dense: Vec<Moments>,
    pub words: Moments,
    /// The best student so far with its score.
    pub best: Option<(f64, Student)>,
    /// Evaluations since the best one.
    pub since: usize,
}

impl State {
    fn new(student: Student) -> Self {
        let dense = student.dense.values().map(Moments::of).collect();
        let words = Moments::of(&student.words);
        Self { step: 0, student, dense, words, best: None, since: 0 }
    }

    /// Applies the mean gradient of the lists.
    fn update(&mut self, grads: &[Gradients], word_sums: &mut WordSums, plan: &TrainPlan) {
        self.step += 1;
        let sums = add_up(grads, word_sums);
        let square = |values: &[f32]| values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        let norm = (sums.iter().map(|sum| square(sum)).sum::<f64>() + word_sums.square()).sqrt();
        let factor = (NORM_MAX / norm.max(NORM_MAX)) as f32;
        let rate = plan.rate * schedule(self.step, plan.steps);
        for ((parameter, moments), mut sum) in self.student.dense.values_mut().zip(&mut self.dense).zip(sums)
        {
            sum.iter_mut().for_each(|grad| *grad *= factor);
            let decay = if parameter.dims.len() > 1 { DECAY } else { 0.0 };
            moments.update(&mut parameter.values, 0, &sum, &Step { number: self.step, rate, decay });
        }
        let step = Step { number: self.step, rate: WORDS_RATE * rate, decay: DECAY };
        word_sums.drain(factor, |start, grad| {
            self.words.update(&mut self.student.words.values, start, grad, &step);
        });
    }

    /// Keeps the student if its score is the best so far.
    fn judge(&mut self, score: f64) {
        self.since += 1;
        if self.best.as_ref().is_none_or(|(before, _)| score > *before) {
            self.best = Some((score, self.student.clone()));
            self.since = 0;
        }
    }
}

/// Trains a student. `evaluate` returns a score, higher is better; `progress` is called after each update. With a checkpoint
/// training continues from the last evaluation of an earlier run of the same plan.
///
/// # Errors
/// [`TrainError`], and the errors of `evaluate`.
pub fn train<E: From<TrainError>>(
    student: Student,
    examples: &[Example],
    plan: &TrainPlan,
    checkpoint: Option<&Checkpoint>,
    mut evaluate: impl FnMut(&Student) -> Result<f64, E>,
    mut progress: impl FnMut(Progress),
) -> Result<Student, E> {
    let mut state = State::new(student);
    if let Some(checkpoint) = checkpoint {
        checkpoint.load(&mut state)?;
    }
    if state.best.is_none() {
        // A given student may be better than all that follow.
        let score = evaluate(&state.student)?;
        state.judge(score);
    }
    let mut word_sums = WordSums::new(&state.student.words);
    let mut order = Order::new(examples.len(), plan.seed);
    let lists = plan.lists.min(examples.len());
    // Skips the lists that were used before the checkpoint.
    (0..state.step).for_each(|_| drop(order.take(lists)));
    let mut losses = Vec::new();
    while state.step < plan.steps && state.since < plan.patience.max(1) {
        let grads = order.take(lists).into_par_iter().map(|list| {
            let Example { batch, teacher } = &examples[list];
            state.student.gradients(batch, teacher, plan.loss)
        });
        let grads: Vec<Gradients> = grads.collect::<candle_core::Result<_>>().map_err(TrainError::Tensor)?;
        losses.extend(grads.iter().map(|grad| grad.loss));
        let loss = losses.iter().sum::<f64>() / losses.len() as f64;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step: state.step }.into());
        }
        state.update(&grads, &mut word_sums, plan);
        if state.step.is_multiple_of(plan.every) || state.step == plan.steps {
            let score = evaluate(&state.student)?;
            state.judge(score);
            losses.clear();
            if let Some(checkpoint) = checkpoint {
                checkpoint.save(&state)?;
            }
        }
        progress(Progress { step: state.step, loss });
    }
    Ok(state.best.map_or(state.student, |(_, best)| best))
}

/// Why training failed.
#[derive(Debug, Error)]
pub enum TrainError {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The loss is not finite.
    #[error("the loss is not finite after {step} updates; try a smaller `--rate`")]
    Diverged {
        /// Updates made.
        step: usize,
    },
    /// The checkpoint cannot be read or written.
    #[error("{}: {reason}", .path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
}

/// The factor of the learning rate: rises linearly to 1, then falls linearly to 0.
fn schedule(step: usize, steps: usize) -> f64 {
    let (step, steps) = (step as f64, steps as f64);
    let warm = (steps * WARM_UP).max(1.0);
    (step / warm).min((steps - step + 1.0) / (steps - warm).max(1.0)).min(1.0)
}

/// The mean gradient of the lists. Returns the dense part and adds the words' rows to `words`.
fn add_up(grads: &[Gradients], words: &mut WordSums) -> Vec<Vec<f32>> {
    let share = 1.0 / grads.len() as f32;
    let mut sums: Vec<Vec<f32>> = grads[0].dense.iter().map(|grad| vec![0.0; grad.len()]).collect();
    for list in grads {
        for (sum, grad) in sums.iter_mut().zip(&list.dense) {
            sum.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += share * grad);
        }
        words.add(&list.words.0, &list.words.1, share);
    }
    sums
}

/// Sums of the words' gradients. Only the words of the lists are touched.
struct WordSums {
    hidden: usize,
    sums: Vec<f32>,
    seen: Vec<bool>,
    touched: Vec<u32>,
}

impl WordSums {
    fn new(words: &Parameter) -> Self {
        let hidden = words.dims[1];
        Self {
            hidden,
            sums: vec![0.0; words.values.len()],
            seen: vec![false; words.dims[0]],
            touched: Vec::new(),
        }
    }

    fn add(&mut self, ids: &[u32], rows: &[f32], share: f32) {
        for (&id, row) in ids.iter().zip(rows.chunks_exact(self.hidden)) {
            if !std::mem::replace(&mut self.seen[id as usize], true) {
                self.touched.push(id);
            }
            let sum = &mut self.sums[id as usize * self.hidden..][..self.hidden];
            sum.iter_mut().zip(row).for_each(|(sum, grad)| *sum += share * grad);
        }
    }

    fn square(&self) -> f64 {
        let row = |&id: &u32| self.sums[id as usize * self.hidden..][..self.hidden].iter();
        self.touched.iter().flat_map(row).map(|&x| f64::from(x) * f64::from(x)).sum()
    }

    /// Calls `update` with the start and gradient of each touched row, then clears it.
    fn drain(&mut self, factor: f32, mut update: impl FnMut(usize, &[f32])) {
        for id in self.touched.drain(..) {
            let start = id as usize * self.hidden;
            let row = &mut self.sums[start..start + self.hidden];
            row.iter_mut().for_each(|grad| *grad *= factor);
            update(start, row);
            row.fill(0.0);
            self.seen[id as usize] = false;
        }
    }
}

/// Lists in random order; each is used once before any is used again.
struct Order {
    places: Vec<usize>,
    next: usize,
    random: Pcg64,
}

impl Order {
    fn new(count: usize, seed: u64) -> Self {
        Self { places: (0..count).collect(), next: count, random: Pcg64::seed_from_u64(seed) }
    }

    fn take(&mut self, count: usize) -> Vec<usize> {
        let one = |_| {
            if self.next == self.places.len() {
                self.places.shuffle(&mut self.random);
                self.next = 0;
            }
            self.next += 1;
            self.places[self.next - 1]
        };
        (0..count).map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::tests::{teacher, tiny};

    /// Lists whose relevant document shares a word with the query.
    fn examples(count: usize, seed: u64) -> Vec<Example> {
        use rand::RngExt;
        let mut random = Pcg64::seed_from_u64(seed);
        let mut one = || {
            let (mut batch, mut scores) = (Packed::default(), Vec::new());
            let query = random.random_range(10..30);
            for place in 0..4 {
                let word = if place == 0 { query } else { random.random_range(10..30) };
                batch.push([(1, 0), (query, 0), (2, 0), (word, 1), (random.random_range(10..30), 1), (2, 1)]);
                scores.push(if word == query { 4.0 } else { -4.0 });
            }
            Example { batch, teacher: scores }
        };
        (0..count).map(|_| one()).collect()
    }

    fn plan(steps: usize) -> TrainPlan {
        TrainPlan {
            steps,
            lists: 4,
            rate: 3e-3,
            every: 20,
            patience: 100,
            loss: LossWeights::default(),
            seed: 3,
        }
    }

    /// A score that depends on the student only.
    fn evaluate(student: &Student) -> Result<f64, TrainError> {
        Ok(student.words.values.iter().map(|value| f64::from(value.abs())).sum())
    }

    fn train_to(
        steps: usize,
        checkpoint: Option<&Checkpoint>,
        mut progress: impl FnMut(Progress),
    ) -> Student {
        let student = Student::new(tiny(), &teacher(), 1).unwrap();
        train(student, &examples(200, 1), &plan(steps), checkpoint, evaluate, &mut progress).unwrap()
    }

    /// Compares students without printing thousands of numbers.
    fn assert_same(a: &Student, b: &Student) {
        assert!(a.dense == b.dense && a.words == b.words, "the students are not the same");
    }

    #[test]
    fn the_loss_falls_and_the_same_seed_gives_the_same_student() {
        let mut losses = Vec::new();
        let student = train_to(200, None, |at| losses.push(at.loss));
        assert!(losses[199] < 0.3 * losses[0], "from {} to {}", losses[0], losses[199]);
        assert!(student.words.values.iter().any(|&value| value != 0.0));
        assert_same(&student, &train_to(200, None, |_| ()));
    }

    #[test]
    fn an_interrupted_training_continues_to_the_same_student() {
        let place = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint { path: place.path().join("train"), plan: "one".to_owned() };
        // A panic in `progress` stands for an interruption.
        let stop = |at: Progress| assert!(at.step < 45, "the machine is lost");
        assert!(std::panic::catch_unwind(|| train_to(60, Some(&checkpoint), stop)).is_err());
        let mut steps = Vec::new();
        let resumed = train_to(60, Some(&checkpoint), |at| steps.push(at.step));
        assert_eq!(steps, (41..=60).collect::<Vec<_>>());
        assert_same(&resumed, &train_to(60, None, |_| ()));
        // A training of another plan does not use the state.
        let other = Checkpoint { plan: "other".to_owned(), ..checkpoint };
        steps.clear();
        train_to(60, Some(&other), |at| steps.push(at.step));
        assert_eq!(steps[0], 1);
    }

    #[test]
    fn a_loss_that_is_not_finite_ends_training() {
        let student = Student::new(tiny(), &teacher(), 1).unwrap();
        let mut examples = examples(4, 1);
        examples[2].teacher[0] = f32::NAN;
        let result = train(student, &examples, &plan(9), None, |_| Ok::<_, TrainError>(0.0), |_| ());
        assert!(matches!(result, Err(TrainError::Diverged { .. })));
    }

    #[test]
    fn a_full_disk_is_named() {
        let checkpoint = Checkpoint { path: "/nowhere/train".into(), plan: String::new() };
        let student = Student::new(tiny(), &teacher(), 1).unwrap();
        let every = TrainPlan { every: 1, ..plan(2) };
        let result =
            train(student, &examples(4, 1), &every, Some(&checkpoint), |_| Ok::<_, TrainError>(0.0), |_| ());
        assert!(result.err().unwrap().to_string().starts_with("/nowhere/train: "));
    }
}
