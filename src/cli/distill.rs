//! `podium distill`: distils a student that can be served, from text and a teacher.

use super::pool::open_given;
use super::{Failure, Shown, folder_name};
use crate::backend::Precision;
use crate::distill::{
    Card, DistillError, Figures, Inputs, LossWeights, MinePlan, Plan, Shape, TrainError, TrainPlan,
    run as distill,
};
use crate::eval::{CacheError, CachedScorerError};
use crate::model::Model;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Distils a small model from a large one, on your own text.
///
/// For each query, candidates are mined from the passages, the teacher scores them, and a student
/// of BERT's shape learns to order them as the teacher does. The student is written to --out with
/// a card, and can be served like any model. It is calibrated to the teacher's scale, so that it
/// can be the teacher's fallback.
///
/// Files *.jsonl have objects with `text` (BEIR's corpus and queries), or logged requests with
/// `query` and `documents`. Other files have lines with a text, or a source, a tab and a text.
///
/// An interrupted run continues from --work: labels are never made twice, and training resumes at
/// its last evaluation.
///
///     podium distill --teacher DIR --queries q.tsv --passages p.tsv --out student
///     podium distill --teacher DIR --student bundled --steps 2000 \
///         --queries log.jsonl --passages log.jsonl --out ours
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// The teacher: a directory in Hugging Face layout, or a hub id.
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    teacher: String,
    /// A trained small model to continue from: a directory, a hub id, or `bundled`. It must have the teacher's
    /// tokenizer. With --steps 0 it is only calibrated to the teacher's scale and reported on.
    #[arg(long, value_name = "DIR_OR_HUB_ID", conflicts_with_all = ["layers", "hidden", "heads", "intermediate"])]
    student: Option<String>,
    /// A student of the same shape, such as the one given by --student. The result is the mean of both weights, which
    /// generalises better to text unlike the training text.
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    blend: Option<String>,
    /// Files of queries.
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    queries: Vec<PathBuf>,
    /// Files of passages, from which candidates are mined.
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    passages: Vec<PathBuf>,
    /// Judged sets whose mean nDCG@10 selects the best student; without any the loss on held-out lists does. A set is a
    /// folder with corpus.jsonl, queries.jsonl, qrels.tsv and bm25.run.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    tune: Vec<PathBuf>,
    /// Judged sets that the card reports on.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    report: Vec<PathBuf>,
    /// The folder for the student.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The folder for labels and training state [default: OUT.work].
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// The student's name [default: the last part of --out].
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Transformer layers.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=48))]
    layers: u16,
    /// Hidden size.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(8..=4096))]
    hidden: u16,
    /// Attention heads; the hidden size must be a multiple.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    heads: u16,
    /// Inner size of the feed-forward part.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u16).range(8..=16384))]
    intermediate: u16,
    /// Number of lists, each a query with its candidates.
    #[arg(long, value_name = "N", default_value_t = 120_000, value_parser = clap::value_parser!(u32).range(1..))]
    lists: u32,
    /// Candidates per list.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(4..=1000))]
    candidates: u16,
    /// The share of lists whose query is made from a passage.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = share)]
    made_share: f64,
    /// The share of the made queries that are questions for a name or a number in a sentence.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    question_share: f64,
    /// The share of lists whose candidates are pieces of one to three sentences.
    #[arg(long, value_name = "SHARE", default_value_t = 0.55, value_parser = share)]
    pieces_share: f64,
    /// The precision of the teacher's labels: float (f16 on a GPU; else bf16 if measured faster than f32), auto (int8
    /// if it is faster and keeps a sample's order, else float), f32, bf16, int8, or f16. With f16, labels in --work that a
    /// GPU made can be used without a GPU.
    #[arg(long, value_name = "PRECISION", default_value = "float", value_parser = super::precision)]
    precision: Precision,
    /// Number of updates. The learning rate falls to 0 over them.
    #[arg(long, value_name = "N", default_value_t = 26_000)]
    steps: u32,
    /// Lists per update.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..))]
    batch_lists: u16,
    /// The largest learning rate.
    #[arg(long, value_name = "RATE", default_value_t = 1e-3, value_parser = rate)]
    rate: f64,
    /// Updates between evaluations.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,
    /// Training ends after this many evaluations without improvement.
    #[arg(long, value_name = "N", default_value_t = 10)]
    patience: u16,
    /// The seed of all random choices.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "a number from 0 to 1".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|&rate| rate > 0.0 && rate <= 1.0)
        .ok_or_else(|| "more than 0, up to 1".to_owned())
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    alone()?;
    if args.steps == 0 && args.student.is_none() {
        return Err(Failure::usage("--steps: 0 needs a trained --student"));
    }
    let given = [
        ("--teacher", Some(&args.teacher)),
        ("--student", args.student.as_ref()),
        ("--blend", args.blend.as_ref()),
    ];
    for (flag, spec) in given {
        let out = args.out.canonicalize();
        let same = |spec: &String| {
            Path::new(spec).canonicalize().is_ok_and(|given| out.as_ref().is_ok_and(|out| *out == given))
        };
        if spec.is_some_and(same) {
            return Err(Failure::usage(format!(
                "--out: is the directory of {flag}, which would be overwritten"
            )));
        }
    }
    let teacher = open_given("--teacher", &args.teacher)?;
    let student = args.student.as_deref().map(|spec| open_given("--student", spec)).transpose()?;
    let blend = args.blend.as_deref().map(|spec| open_given("--blend", spec)).transpose()?;
    let shape = match &student {
        Some(Model { plan, .. }) => Shape::of(plan),
        None => Shape {
            layers: args.layers.into(),
            hidden: args.hidden.into(),
            heads: args.heads.into(),
            intermediate: args.intermediate.into(),
        },
    };
    if !shape.hidden.is_multiple_of(shape.heads) {
        return Err(Failure::usage(format!(
            "--heads: {} does not divide --hidden {}",
            shape.heads, shape.hidden
        )));
    }
    if let Some(both) = args.tune.iter().find(|set| args.report.contains(set)) {
        return Err(Failure::usage(format!("--report: {} is in --tune too", both.display())));
    }
    let name = || folder_name(&args.out).unwrap_or_else(|| "student".to_owned());
    let plan = Plan {
        name: args.name.clone().unwrap_or_else(name),
        shape,
        mine: MinePlan {
            lists: args.lists as usize,
            candidates: args.candidates.into(),
            made_share: args.made_share,
            question_share: args.question_share,
            pieces_share: args.pieces_share,
            seed: args.seed,
        },
        precision: args.precision,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        train: TrainPlan {
            steps: args.steps as usize,
            lists: args.batch_lists.into(),
            rate: args.rate,
            every: args.every as usize,
            patience: args.patience.into(),
            loss: LossWeights::default(),
            seed: args.seed,
        },
    };
    let work = args.work.clone().unwrap_or_else(|| args.out.with_file_name(format!("{}.work", name())));
    let Args { queries, passages, tune, report, out, .. } = args;
    let inputs = Inputs { teacher, student, blend, queries, passages, tune, report };
    let mut shown = Shown::default();
    let card = distill(&inputs, &plan, &work, &out, &mut |stage| {
        shown.show(stage.name, stage.done, stage.of, &stage.note)
    })
    .map_err(failure)?;
    shown.end();
    super::print(&figures(&card))
}

/// Starts the program again with environment variables that configure candle. Its own threads are switched off: they
/// would divide sums, and spin on cores that compute lists, for half of the time. The number of cores is given to it,
/// which it otherwise reads from /proc for each product, for a fifth of the time.
fn alone() -> Result<(), Failure> {
    const CANDLE: &str = "CANDLE_NUM_THREADS";
    const RAYON: &str = "RAYON_NUM_THREADS";
    if std::env::var_os(CANDLE).is_some() {
        return Ok(());
    }
    let failed =
        |error: std::io::Error| Failure::internal(format!("the program cannot start itself: {error}"));
    let program = std::env::current_exe().map_err(failed)?;
    let mut again = Command::new(program);
    again.args(std::env::args_os().skip(1)).env(CANDLE, "1");
    if std::env::var_os(RAYON).is_none() {
        again.env(RAYON, std::thread::available_parallelism().map_or(1, usize::from).to_string());
    }
    Err(failed(again.exec()))
}

fn failure(error: DistillError) -> Failure {
    let message = error.to_string();
    match error {
        DistillError::Student(_)
        | DistillError::Teacher(CachedScorerError::Precision(_) | CachedScorerError::Tokenizer(_)) => {
            Failure::usage(message)
        }
        DistillError::Text(error) => super::file_failure(&error),
        DistillError::Set(error) => super::set_failure(&error),
        DistillError::TooLittle(_) => Failure::data(message),
        DistillError::Label(CacheError::File { .. })
        | DistillError::Teacher(CachedScorerError::Cache(_))
        | DistillError::Train(TrainError::Checkpoint { .. })
        | DistillError::Card(_)
        | DistillError::Work { .. } => Failure::output(message),
        DistillError::Label(_) | DistillError::Train(_) => Failure::internal(message),
    }
}

fn figures(card: &Card) -> String {
    let Card { directory, manifest, figures } = card;
    let mut text = format!("{} {} is in {}\n", manifest.name, manifest.version(), directory.display());
    if !figures.is_empty() {
        text += "nDCG@10          queries first stage  teacher  student   top 20\n";
    }
    for Figures { set, queries, first_stage, teacher, student, top_k } in figures {
        text += &format!(
            "{set:<16} {queries:>7} {first_stage:>11.4} {teacher:>8.4} {student:>8.4} {top_k:>8.4}\n"
        );
    }
    text
}
