//! Writes the student's directory: the files that a server reads, and a card that documents its origin.

use super::run::{Inputs, Plan};
use crate::backend::keeps_order_in_int8;
use crate::base::hex;
use crate::model::{self, Bert, Calibration, Forward, ForwardError, Manifest, Model, ModelError};
use crate::token::{Cut, Fit, Packed, Pair};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Pairs whose logits are stored beside the model, to verify an installation.
const GOLDEN: [(&str, &str); 6] = [
    (
        "how many people live in berlin?",
        "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
    ),
    ("how many people live in berlin?", "Berlin is well known for its museums."),
    ("how many people live in berlin?", "New York City is famous for the Metropolitan Museum of Art."),
    ("what causes hiccups", "A hiccup is a sudden contraction of the diaphragm, often after a large meal."),
    ("what causes hiccups", "The diaphragm is a muscle below the lungs."),
    ("what causes hiccups", ""),
];

/// A finished student.
#[derive(Debug)]
pub struct Card {
    /// Its directory.
    pub directory: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its quality on each set.
    pub figures: Vec<Figures>,
}

/// Mean nDCG@10 on a judged set of the first-stage candidates, as ordered by each of these rankers.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// The set's name.
    pub set: String,
    /// Judged queries with candidates.
    pub queries: usize,
    /// The first stage.
    pub first_stage: f64,
    /// The teacher.
    pub teacher: f64,
    /// The student.
    pub student: f64,
    /// The teacher on the student's best 20, the student on the others.
    pub top_k: f64,
}

/// A golden pair.
#[derive(Debug, Serialize, Deserialize)]
pub struct Golden {
    /// The query.
    pub query: String,
    /// The document.
    pub document: String,
    /// The reference forward's logit, before calibration.
    pub logit: f32,
}

/// The inputs that the card describes.
pub(super) struct Ingredients<'a> {
    pub inputs: &'a Inputs,
    pub plan: &'a Plan,
    /// Lists that were trained on, and lists held out.
    pub lists: (usize, usize),
    /// Pairs of the lists that were trained on.
    pub pairs: usize,
}

/// Why a directory could not be written.
#[derive(Debug, Error)]
pub enum CardError {
    /// A file cannot be read or written.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        reason: String,
    },
    /// The written model cannot be loaded.
    #[error("the student cannot be served: {0}")]
    Model(#[from] ModelError),
    /// The golden pairs cannot be scored.
    #[error("the student cannot be served: {0}")]
    Forward(#[from] ForwardError),
}

impl Card {
    /// Writes the directory, and loads it as a server would.
    ///
    /// # Errors
    /// [`CardError`].
    pub(super) fn write(
        directory: &Path,
        (shape, finished): (&Bert, &model::Plan),
        calibration: Calibration,
        figures: Vec<Figures>,
        of: &Ingredients,
    ) -> Result<Self, CardError> {
        let put = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            std::fs::write(&path, bytes).map_err(|error| failed(path, &error))
        };
        let weights = finished.to_safetensors();
        let weights = weights.map_err(|error| failed(directory.join("model.safetensors"), &error))?;
        let manifest = Manifest {
            name: of.plan.name.clone(),
            sha256: sha256(&weights),
            licence: of.inputs.teacher.manifest.licence.clone(),
            calibration,
            int8: None,
        };
        put("config.json", json(&shape.to_config()).as_bytes())?;
        put("model.safetensors", &weights)?;
        put("tokenizer.json", &of.inputs.teacher.tokenizer)?;
        put("podium.json", json(&manifest).as_bytes())?;
        let model = Model::open(directory)?;
        let manifest = Manifest { int8: keeps_order_in_int8(&model, of.plan.threads), ..manifest };
        put("podium.json", json(&manifest).as_bytes())?;
        put("golden.json", json(&golden(&model, directory)?).as_bytes())?;
        put("README.md", text(&manifest, shape, &figures, of)?.as_bytes())?;
        Ok(Self { directory: directory.to_owned(), manifest, figures })
    }
}

fn failed(path: PathBuf, reason: &dyn std::fmt::Display) -> CardError {
    CardError::File { path, reason: reason.to_string() }
}

fn json(value: &impl Serialize) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).expect("papers are plain data"))
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The golden pairs with the logits of the reference forward.
fn golden(model: &Model, directory: &Path) -> Result<Vec<Golden>, CardError> {
    let read = |error: &dyn std::fmt::Display| failed(directory.join("tokenizer.json"), error);
    let tokenizer = model.read_tokenizer().map_err(|error| read(&error))?;
    let forward = Forward::new(&model.plan)?;
    let limit = model.pair_tokens_max;
    let fit = Fit::new(limit, Cut::LongestFirst);
    let mut batch = Packed::default();
    for (query, document) in GOLDEN {
        let ids = |text: &str| tokenizer.encode(text).map_err(|error| read(&error));
        let pair = Pair::fit(ids(query)?, ids(document)?, tokenizer.template(), &fit);
        pair.map_err(|error| read(&error))?.push_into(&mut batch, tokenizer.template());
    }
    let golden = |((query, document), logit): ((&str, &str), f32)| Golden {
        query: query.to_owned(),
        document: document.to_owned(),
        logit,
    };
    Ok(GOLDEN.into_iter().zip(forward.logits(&batch)?).map(golden).collect())
}

/// The text of the card.
fn text(
    manifest: &Manifest,
    shape: &Bert,
    figures: &[Figures],
    of: &Ingredients,
) -> Result<String, CardError> {
    let mut card = format!("---\nlicense: {}\n---\n# {}\n\n", manifest.licence.to_lowercase(), manifest.name);
    let mut line = |text: String| writeln!(card, "{text}").expect("a string takes all that is written");
    let learned = of.plan.train.steps > 0;
    let made = if learned {
        "distilled by `podium distill` from"
    } else {
        "calibrated by `podium distill` to the scale of"
    };
    line(format!(
        "A cross-encoder with {} layers, hidden size {}, {} heads and feed-forward size {}, {made}\n\
         `{}` (sha256 {}, {}).\n\
         It scores pairs of a query and a document, has the vocabulary of its teacher, and is stored in f16.\n",
        shape.layers,
        shape.hidden,
        shape.heads,
        shape.intermediate,
        of.inputs.teacher.manifest.name,
        of.inputs.teacher.manifest.sha256,
        of.inputs.teacher.manifest.licence,
    ));
    line(format!(
        "Version {}. Calibration to the teacher's scale: {} x + {}.\n",
        manifest.version(),
        manifest.calibration.scale,
        manifest.calibration.offset
    ));
    if !figures.is_empty() {
        line("## Figures\nMean nDCG@10 of the first stage's candidates in the order of each ranker. *Top 20* is the teacher on\nthe student's best 20 and the student on the others.\n".to_owned());
        line(
            "| set | queries | first stage | teacher | student | top 20 |\n|---|---|---|---|---|---|"
                .to_owned(),
        );
        let row = |set: &str, queries: usize, values: [f64; 4]| {
            let values = values.map(|value| format!("{value:.4}")).join(" | ");
            format!("| {set} | {queries} | {values} |")
        };
        let values = |f: &Figures| [f.first_stage, f.teacher, f.student, f.top_k];
        figures.iter().for_each(|figures| line(row(&figures.set, figures.queries, values(figures))));
        let mean =
            |place: usize| figures.iter().map(|f| values(f)[place]).sum::<f64>() / figures.len() as f64;
        let queries = figures.iter().map(|figures| figures.queries).sum();
        line(format!("{}\n", row("mean of the sets", queries, [mean(0), mean(1), mean(2), mean(3)])));
    }
    line("## How it was made".to_owned());
    let (trained, held) = of.lists;
    if let Some(Model { manifest, .. }) = &of.inputs.student {
        let Manifest { name, sha256, .. } = manifest;
        line(format!("It began as `{name}` (sha256 {sha256}).\n"));
    }
    if let Some(Model { manifest, .. }) = &of.inputs.blend {
        let Manifest { name, sha256, .. } = manifest;
        line(format!(
            "Its weights are the mean of the resulting weights and those of `{name}` (sha256 {sha256}).\n\
             Such a mean generalises better to text unlike the training text (Wortsman et al. 2022, \"Robust\n\
             fine-tuning of zero-shot models\").\n"
        ));
    }
    if learned {
        let pairs = of.pairs;
        line(format!(
            "{trained} lists with {pairs} pairs were labelled and trained on, {held} lists were held out. The plan:\n"
        ));
        line(format!("```json\n{}```\n", json(of.plan)));
    } else {
        line(format!("It was calibrated on {held} labelled lists.\n"));
    }
    line("| file | for | sha256 |\n|---|---|---|".to_owned());
    for (paths, purpose) in [(&of.inputs.queries, "queries"), (&of.inputs.passages, "passages")] {
        for path in paths {
            let bytes = std::fs::read(path).map_err(|error| failed(path.clone(), &error))?;
            let name = super::text::name_of(path);
            line(format!("| {name} | {purpose} | {} |", sha256(&bytes)));
        }
    }
    Ok(card)
}
