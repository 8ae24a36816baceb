//! The stages of distilling. An interrupted run continues from disk: labels are kept, training resumes at its last
//! evaluation, and the other stages take seconds.

use super::card::{Card, CardError, Figures, Ingredients};
use super::checkpoint::Checkpoint;
use super::judge::{calibrate, mean_ndcg, score, top_k};
use super::loss::{LossWeights, loss};
use super::mine::{MinePlan, mine};
use super::student::{Shape, Student};
use super::text::{self, Kind};
use super::train::{Example, TrainError, TrainPlan, train};
use crate::backend::{Cpu, CpuModel, Precision, Unsupported};
use crate::base::{FileError, Tier, hex};
use crate::eval::{CacheError, CachedScorer, CachedScorerError, Judged, List, SetError};
use crate::model::{self, Bert, Model};
use crate::ops::cuda::Half;
use crate::rerank::{Overflow, Truncation};
use crate::token::{Packed, PairReader};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// One list in 50 is held out of training, for evaluation and calibration.
const HELD_OUT: usize = 50;
/// Candidates that the primary scores in the reported top-k.
const TOP_K: usize = 20;

/// Models and files to distil from.
#[derive(Debug)]
pub struct Inputs {
    /// The teacher.
    pub teacher: Model,
    /// A trained student to continue from. With 0 updates it is only calibrated and reported on.
    pub student: Option<Model>,
    /// A student of the same shape; the result is the mean of its weights and the trained ones.
    pub blend: Option<Model>,
    /// Files of queries.
    pub queries: Vec<PathBuf>,
    /// Files of passages.
    pub passages: Vec<PathBuf>,
    /// Judged sets that select the best student.
    pub tune: Vec<PathBuf>,
    /// Judged sets that are only reported on the card.
    pub report: Vec<PathBuf>,
}

/// How the student is made.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The student's name.
    pub name: String,
    /// Its size.
    pub shape: Shape,
    /// How lists are mined.
    pub mine: MinePlan,
    /// The precision of the teacher's labels. The report uses the best precision of this machine in floats.
    #[serde(serialize_with = "by_name")]
    pub precision: Precision,
    /// Threads of the teacher and of evaluation.
    #[serde(skip)]
    pub threads: usize,
    /// How the student is trained.
    pub train: TrainPlan,
}

fn by_name<S: serde::Serializer>(precision: &Precision, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(precision.name())
}

/// The progress of a stage. A stage begins with `done` 0.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The name of the stage.
    pub name: &'static str,
    /// Steps done.
    pub done: usize,
    /// Total steps.
    pub of: usize,
    /// A remark; may be empty.
    pub note: String,
}

/// Why distilling failed.
#[derive(Debug, Error)]
pub enum DistillError {
    /// The given student cannot be used.
    #[error("student: {0}")]
    Student(String),
    /// The teacher cannot be loaded.
    #[error("teacher: {0}")]
    Teacher(#[from] CachedScorerError),
    /// The text cannot be read.
    #[error(transparent)]
    Text(#[from] FileError),
    /// There is too little text.
    #[error("{0}")]
    TooLittle(String),
    /// A judged set cannot be used.
    #[error(transparent)]
    Set(#[from] SetError),
    /// Labels cannot be made or stored.
    #[error("labels: {0}")]
    Label(#[from] CacheError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The model cannot be written.
    #[error(transparent)]
    Card(#[from] CardError),
    /// A folder cannot be created.
    #[error("{}: {reason}", .path.display())]
    Work {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        reason: std::io::Error,
    },
}

/// Labels lists by the teacher, except pairs that were labelled before.
fn label(
    teacher: &mut CachedScorer,
    name: &'static str,
    lists: &[List],
    tell: &mut dyn FnMut(Stage),
) -> Result<Vec<Vec<f32>>, CacheError> {
    let of = lists.iter().map(|list| list.documents.len()).sum();
    teacher.logits(lists, |done| tell(Stage { name, done, of, note: String::new() }))
}

/// Distils a student and writes its directory `out`. The folder `work` holds labels and training state, from which an
/// interrupted run continues. The same inputs and plan give the same model on one machine.
///
/// # Errors
/// [`DistillError`], which names the file or the setting.
pub fn run(
    inputs: &Inputs,
    plan: &Plan,
    work: &Path,
    out: &Path,
    tell: &mut dyn FnMut(Stage),
) -> Result<Card, DistillError> {
    let folder = |path: &Path| {
        let failed = |reason| DistillError::Work { path: path.to_owned(), reason };
        std::fs::create_dir_all(path).map_err(failed)
    };
    // All inputs are checked first, because labelling can take hours.
    let tune = sets(&inputs.tune)?;
    let report = sets(&inputs.report)?;
    let student = begin(inputs, plan)?;
    let queries = text::read(&inputs.queries, Kind::Queries)?;
    let passages = text::read(&inputs.passages, Kind::Passages)?;
    for (texts, what) in [(&queries, "query"), (&passages, "passage")] {
        if texts.is_empty() {
            return Err(DistillError::TooLittle(format!("the files contain no {what}")));
        }
    }
    let note = format!("{} queries, {} passages", queries.len(), passages.len());
    tell(Stage { name: "mine", done: 0, of: 1, note });
    let mut mined = mine(&queries, &passages, &plan.mine);
    let least = 2 * plan.train.lists.max(2);
    if mined.len() < least {
        let lists = mined.len();
        let message = format!(
            "the text gives {lists} lists; at least {least} are needed (twice the lists of an update)"
        );
        return Err(DistillError::TooLittle(message));
    }
    tell(Stage { name: "mine", done: 1, of: 1, note: format!("{} lists", mined.len()) });
    folder(work)?;
    folder(out)?;
    // As cross-encoders are trained.
    let truncation = Truncation::by(Overflow::LongestFirst);
    let keeper = |precision: Precision| {
        match CachedScorer::open(Tier::Primary, &inputs.teacher, (precision, plan.threads), &truncation, work)
        {
            // Cached labels from a GPU can be used without one.
            Err(CachedScorerError::Precision(Unsupported::Gpu(_))) if precision == Precision::F16 => {
                CachedScorer::from_cache(&inputs.teacher, Half::F16.dtype(), &truncation, work)
            }
            opened => opened,
        }
    };
    let mut teacher = keeper(plan.precision)?;
    let mut labels = label(&mut teacher, "label", &mined, tell)?;
    let trained_on = mined.len() - (mined.len() / HELD_OUT).max(1);
    let held = HeldOut { lists: mined.split_off(trained_on), teacher: labels.split_off(trained_on) };
    let mut finished = match student {
        Some(student) => {
            let taught = (&mined[..], labels);
            let learner = (student, &teacher.reader);
            let student = learn(learner, (inputs, plan), work, taught, (&held, &tune), tell)?;
            student.finished()
        }
        None => {
            let given = inputs.student.as_ref().expect("without training there is a given student");
            given.plan.held()
        }
    };
    if let Some(blend) = &inputs.blend {
        finished.average_with(&blend.plan);
    }
    let shape = Bert::of(&finished).expect("`begin` has refused other kinds");
    let mut scorer = engine(&finished, plan.threads);
    let calibration = calibrate(&score(&held.lists, &mut scorer, &teacher.reader)?, &held.teacher);
    // The report may use another precision than the labels. The label cache is dropped first, because it is locked.
    drop(teacher);
    let best = if plan.precision.is_for_gpus() { plan.precision } else { Precision::Float };
    let mut teacher = keeper(best)?;
    let mut figures = Vec::new();
    for (name, set) in &report {
        let lists = List::of_set(set);
        let primary = label(&mut teacher, "report", &lists, tell)?;
        let own = score(&lists, &mut scorer, &teacher.reader)?;
        let mixed = own.iter().zip(&primary).map(|(own, primary)| top_k(primary, own, calibration, TOP_K));
        figures.push(Figures {
            set: name.clone(),
            queries: set.run.len(),
            first_stage: mean_ndcg(
                set,
                &lists.iter().map(|list| vec![0.0; list.documents.len()]).collect::<Vec<_>>(),
            ),
            teacher: mean_ndcg(set, &primary),
            student: mean_ndcg(set, &own),
            top_k: mean_ndcg(set, &mixed.collect::<Vec<_>>()),
        });
    }
    let (lists, pairs) =
        ((mined.len(), held.lists.len()), mined.iter().map(|list| list.documents.len()).sum());
    let ingredients = Ingredients { inputs, plan, lists, pairs };
    Ok(Card::write(out, (&shape, &finished), calibration, figures, &ingredients)?)
}

/// The student to train: a new one, or the given one, which must tokenise as the teacher does. None if the given student is
/// not trained any further.
fn begin(inputs: &Inputs, plan: &Plan) -> Result<Option<Student>, DistillError> {
    let teacher = &inputs.teacher;
    let fails = |why| Err(DistillError::Student(why));
    let fits = |shape: &Bert| {
        let blended = inputs.blend.as_ref();
        blended.is_none_or(|blend| {
            Bert::of(&blend.plan).as_ref() == Some(shape) && blend.tokenizer == teacher.tokenizer
        })
    };
    let other_shape = || fails("the model to blend with has another shape or tokenizer".to_owned());
    let Some(student) = &inputs.student else {
        let student = Student::new(plan.shape, &teacher.plan, plan.train.seed);
        let student = student.map_err(|why| DistillError::Student(why.to_owned()))?;
        return if fits(student.shape()) { Ok(Some(student)) } else { other_shape() };
    };
    let Some(shape) = Bert::of(&student.plan) else {
        return fails(format!(
            "it is of the kind {}, and only models of BERT's are written",
            student.plan.family
        ));
    };
    if !fits(&shape) {
        return other_shape();
    }
    let (reads, needed) = (student.pair_tokens_max, teacher.pair_tokens_max);
    if student.tokenizer != teacher.tokenizer {
        return fails("its tokenizer is not the teacher's".to_owned());
    }
    if reads < needed {
        return fails(format!("it reads {reads} tokens per pair, the teacher {needed}"));
    }
    let resumed = || Student::resume(&student.plan, &teacher.plan);
    let learns = (plan.train.steps > 0).then(resumed).transpose();
    learns.map_err(|why| DistillError::Student(why.to_owned()))
}

fn sets(folders: &[PathBuf]) -> Result<Vec<(String, Judged)>, SetError> {
    let name = |folder: &Path| {
        folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    folders.iter().map(|folder| Ok((name(folder), Judged::read(folder)?))).collect()
}

/// The CPU engine with these weights, in f32.
fn engine(plan: &model::Plan, threads: usize) -> Cpu {
    let packed = CpuModel::new(plan, Precision::F32);
    Cpu::new(packed.expect("every processor has f32"), threads)
}

/// Lists held out of training, with their labels.
struct HeldOut {
    lists: Vec<List>,
    teacher: Vec<Vec<f32>>,
}

impl HeldOut {
    /// The mean loss.
    fn loss(&self, student: &[Vec<f32>], weights: LossWeights) -> f64 {
        let one = |(student, teacher): (&Vec<f32>, &Vec<f32>)| loss(student, teacher, weights).0;
        student.iter().zip(&self.teacher).map(one).sum::<f64>() / student.len() as f64
    }
}

/// Trains a student on labelled lists and returns the best one: by mean nDCG@10 on the tuning sets, or without any by the
/// loss on the held-out lists.
fn learn(
    (student, reader): (Student, &PairReader),
    (inputs, plan): (&Inputs, &Plan),
    work: &Path,
    (mined, labels): (&[List], Vec<Vec<f32>>),
    (held, tune): (&HeldOut, &[(String, Judged)]),
    tell: &mut dyn FnMut(Stage),
) -> Result<Student, DistillError> {
    let tune: Vec<(&Judged, Vec<List>)> = tune.iter().map(|(_, set)| (set, List::of_set(set))).collect();
    let mut named = Sha256::new();
    // The digest covers everything that the trained student depends on, and nothing else.
    let settings = TrainPlan { patience: 0, ..plan.train.clone() };
    named.update(serde_json::to_vec(&(plan.shape, settings)).expect("a plan is plain data"));
    named.update(&inputs.teacher.identity);
    inputs.student.iter().for_each(|student| named.update(&student.identity));
    let examples = mined.iter().zip(labels).map(|(list, teacher)| {
        let mut batch = Packed::default();
        for document in &list.documents {
            reader.push(&list.query, document, &mut batch)?;
        }
        Ok(Example { batch, teacher })
    });
    let examples: Vec<Example> = examples.collect::<Result<_, CacheError>>()?;
    for Example { batch, teacher } in &examples {
        batch.ids().iter().for_each(|id| named.update(id.to_le_bytes()));
        teacher.iter().for_each(|logit| named.update(logit.to_le_bytes()));
    }
    for list in held.lists.iter().chain(tune.iter().flat_map(|(_, lists)| lists)) {
        list.documents.iter().chain([&list.query]).for_each(|text| named.update(&**text));
    }
    for (set, _) in &tune {
        let mut grades: Vec<_> =
            set.grades.iter().flat_map(|(query, of)| of.iter().map(move |grade| (query, grade))).collect();
        grades.sort();
        named.update(format!("{grades:?}"));
    }
    let named = hex(&named.finalize());
    // The digest is in the name, so that a training on other labels does not overwrite this state.
    let path = work.join(format!("training-{}.safetensors", &named[..12]));
    let checkpoint = Checkpoint { path, plan: named };
    let said = std::cell::RefCell::new(String::new());
    let evaluate = |student: &Student| {
        let mut scorer = engine(&student.finished(), plan.threads);
        let loss = held.loss(&score(&held.lists, &mut scorer, reader)?, plan.train.loss);
        let ndcg = tune
            .iter()
            .map(|(set, lists)| Ok(mean_ndcg(set, &score(lists, &mut scorer, reader)?)))
            .collect::<Result<Vec<f64>, CacheError>>()?;
        let mean = ndcg.iter().sum::<f64>() / ndcg.len().max(1) as f64;
        let tuned = if ndcg.is_empty() { String::new() } else { format!(", nDCG@10 {mean:.4}") };
        *said.borrow_mut() = format!(", held out {loss:.4}{tuned}");
        Ok::<f64, DistillError>(if ndcg.is_empty() { -loss } else { mean })
    };
    train(student, &examples, &plan.train, Some(&checkpoint), evaluate, |at| {
        let note = format!("loss {:.4}{}", at.loss, said.borrow());
        tell(Stage { name: "train", done: at.step, of: plan.train.steps, note });
    })
}
