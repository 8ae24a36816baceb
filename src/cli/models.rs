//! `podium models`: what a model is, before it is served, and what was served.

use super::Failure;
use super::place::{check_memory, place};
use super::pool::find_model;
use super::tier::TierConfig;
use super::{deployments, repository};
use crate::backend::{check_for_gpu, has_fp8};
use crate::base::Tier;
use crate::model::{
    Attention, Block, Golden, Head, Model, ModelError, NormKind, Norms, Plan, Pool, Reach, Score,
};
use crate::token::{Cut, Tokenizer};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Shows and checks models before they are served, and the history of routes.
///
///     podium models inspect models/podium-student-L2-H128
///     podium models list /var/lib/podium/models
///     podium models verify /var/lib/podium/models/large/3
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Lists the models of a repository with their versions, and why some cannot be used.
    List {
        /// A folder of models: NAME/VERSION/...
        repository: PathBuf,
    },
    /// Reads a model and shows what it is: its parts, its prompt, and the engine that will run it.
    Inspect {
        /// A directory in Hugging Face layout, a hub id, or `bundled`.
        model: String,
    },
    /// Checks weights against the sha256 in podium.json, and scores the golden pairs on the engine that would serve.
    Verify {
        /// A folder of models, a model in it, or a version: DIR[/NAME[/VERSION]].
        path: PathBuf,
    },
    /// Shows what is live on the routes, and the swaps that made it so, newest first.
    History {
        /// Only this route.
        route: Option<String>,
        /// The file that `podium serve --deployments` writes.
        #[arg(long, env = "PODIUM_DEPLOYMENTS", value_name = "FILE")]
        deployments: PathBuf,
    },
    /// Makes live what was live before on a route, while no server runs: the next start serves it.
    Rollback {
        /// The route.
        route: String,
        /// The file that `podium serve --deployments` writes.
        #[arg(long, env = "PODIUM_DEPLOYMENTS", value_name = "FILE")]
        deployments: PathBuf,
        /// The reason, for the history.
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// The author, for the history [default: $USER].
        #[arg(long, value_name = "NAME")]
        who: Option<String>,
    },
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::List { repository } => repository::list(&repository),
        Command::Inspect { model } => inspect(model),
        Command::Verify { path } => repository::verify(&path),
        Command::History { route, deployments } => deployments::history(&deployments, route.as_deref()),
        Command::Rollback { route, deployments, why, who } => {
            deployments::roll_back(&deployments, &route, who, &why)
        }
    }
}

fn inspect(spec: String) -> Result<(), Failure> {
    let wrong = |error: ModelError| Failure::usage(error.to_string());
    let found = find_model(&spec).map_err(wrong)?;
    let golden = found.golden().map_err(wrong)?;
    let configured = TierConfig::new(spec.clone());
    let fits = check_memory(Tier::Primary, &configured, &found);
    // Gigabytes are not read to say that there is no room for them.
    let model = if fits.is_ok() { found.read() } else { found.unchecked() }.map_err(wrong)?;
    let tokenizer = model.read_tokenizer().map_err(|error| Failure::usage(format!("{spec}: {error}")))?;
    let mut text = String::new();
    describe(&mut text, &model, golden.as_ref(), &tokenizer);
    let on_gpu = match check_for_gpu(&model.plan, model.pair_tokens_max) {
        Ok(()) if has_fp8(&model.plan) => "runs in f16, bf16 or fp8".to_owned(),
        Ok(()) => "runs in f16 or bf16".to_owned(),
        Err(reason) => format!("does not run: {reason}"),
    };
    line(&mut text, "on a GPU", &on_gpu);
    let engine = match fits.and_then(|()| place(Tier::Primary, &configured, &Arc::new(model))) {
        Ok(placed) => format!("{} in {} ({})", placed.kind, placed.dtype, placed.dtype_reason),
        Err(why) => format!("none: {why}"),
    };
    line(&mut text, "engine", &engine);
    super::print(&text)
}

fn line(text: &mut String, name: &str, value: &str) {
    writeln!(text, "{name:<14}{value}").expect("a string takes all");
}

fn describe(text: &mut String, model: &Model, golden: Option<&Golden>, tokenizer: &Tokenizer) {
    let Plan { family, blocks, final_norm, head, .. } = &model.plan;
    let manifest = &model.manifest;
    let version = manifest.version();
    line(text, "model", &format!("{} (version {version}, licence {})", manifest.name, manifest.licence));
    let parameters = model.plan.parameters();
    line(
        text,
        "architecture",
        &format!("{family}, {parameters} parameters, {} token ids", model.plan.vocabulary()),
    );
    // Layers of one kind are shown once, with their number.
    let mut kinds: Vec<(String, usize)> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for block in blocks {
        let kind = layer(block);
        let place = *places.entry(kind.clone()).or_insert(kinds.len());
        if place == kinds.len() {
            kinds.push((kind, 0));
        }
        kinds[place].1 += 1;
    }
    for (kind, count) in kinds {
        line(text, "layers", &format!("{count} x {}, {kind}", model.plan.hidden()));
    }
    if final_norm.is_some() {
        line(text, "final norm", "yes");
    }
    line(text, "score", &score(head));
    let (prompt, ids) = prompt(model, tokenizer);
    line(text, "prompt", &prompt);
    line(text, "prompt's ids", &ids);
    let golden = match golden {
        Some(golden) => {
            format!("{} in golden.json, which are scored before it is served", golden.pairs().len())
        }
        None => "none: its scores are not checked before it is served".to_owned(),
    };
    line(text, "golden pairs", &golden);
    let instruction = match tokenizer.takes_instruction() {
        true => "a request's `instruction` has a place before the query",
        false => "a request's `instruction` is ignored: the prompt has no place for one",
    };
    line(text, "instruction", instruction);
    let cut = match tokenizer.template().cut {
        Some(Cut::End) => "a longer one loses the end of its document, then of its query",
        _ => "a longer one is cut as the server is configured",
    };
    line(text, "longest pair", &format!("{} tokens; {cut}", model.pair_tokens_max));
}

fn layer(block: &Block) -> String {
    let Block { norms, attention, feed_forward, feed_forward_norm, .. } = block;
    let Attention { heads, kv_heads, head_dim, rope, reach, query_key_norms, relative, .. } = attention;
    let mut parts = vec![match heads == kv_heads {
        true => format!("{heads} heads of {head_dim}"),
        false => format!("{heads} heads of {head_dim} on {kv_heads} of keys"),
    }];
    parts.push(match reach {
        Reach::All => "all tokens see all".to_owned(),
        Reach::Causal => "tokens see those before them".to_owned(),
        Reach::Window(places) => format!("tokens see {places} to either side"),
    });
    parts.extend(rope.map(|rope| format!("rotary positions to the base {}", rope.theta)));
    parts.extend(relative.is_some().then(|| "relative positions".to_owned()));
    parts.extend(query_key_norms.is_some().then(|| "normed queries and keys".to_owned()));
    let gated = if feed_forward.gate.is_some() { "gated " } else { "" };
    parts.push(format!("{gated}feed-forward of {}", feed_forward.up.outputs()));
    let place = match norms {
        Norms::Pre => "before",
        Norms::Post => "after",
    };
    let kind = match feed_forward_norm.kind {
        NormKind::Layer => "layer norm",
        NormKind::Rms => "RMS norm",
    };
    parts.push(format!("{kind} {place} each part"));
    parts.join(", ")
}

fn score(head: &Head) -> String {
    let at = match head.at {
        Pool::First => "the first token",
        Pool::Last => "the last token",
        Pool::Mean => "the mean of all tokens",
    };
    let dense = if head.dense.is_some() { "a dense map and " } else { "" };
    let by = match &head.score {
        Score::Linear(linear) => match linear.weight.part {
            Some(part) => format!("{dense}row {} of a classifier with {} labels", part.first, part.of),
            None => format!("{dense}a classifier with one label"),
        },
        Score::Tokens { yes, no } => {
            let id = |row: &crate::model::Tensor| row.part.map_or(0, |part| part.first);
            let less = no.as_ref().map_or_else(String::new, |no| format!(" less that of token {}", id(no)));
            format!("the logit of token {}{less}", id(yes))
        }
    };
    format!("{by}, at {at}")
}

/// The prompt as text, and as ids with places for the query and the document.
fn prompt(model: &Model, tokenizer: &Tokenizer) -> (String, String) {
    let template = tokenizer.template();
    let ids = |tokens: &[(u32, u8)]| tokens.iter().map(|&(id, _)| id).collect::<Vec<u32>>();
    let [before, between, after] =
        [&template.before, &template.between, &template.after].map(|part| ids(part));
    let shown = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let pieces = [tokenizer.query_piece("{query}"), tokenizer.document_piece("{document}")];
    let quoted =
        pieces.map(|piece| if model.prompt.is_some() { format!("{piece:?}") } else { piece.into_owned() });
    let all = [shown(&before), quoted[0].clone(), shown(&between), quoted[1].clone(), shown(&after)];
    let all: Vec<String> = all.into_iter().filter(|part| !part.is_empty()).collect();
    let text = match &model.prompt {
        Some(prompt) => format!("{:?}", prompt.text("{query}", "{document}")),
        None => {
            let part = |ids: &[u32]| tokenizer.decode(ids, false).unwrap_or_default();
            format!("{} {{query}} {} {{document}} {}", part(&before), part(&between), part(&after))
        }
    };
    (text, all.join(" "))
}
