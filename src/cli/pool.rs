//! Builds an engine's setup from the configuration: opens and checks models, and places them on lanes.

use super::Failure;
use super::config::{Config, TenantEntry};
use super::place::{Placed, check_memory, place};
use super::tier::TierConfig;
use crate::base::{DeviceNs, ModelRef, Ns, Tier};
use crate::engine::{BooksSetup, Clock, Engine, LaneSetup, ModelSetup, RouteSetup, SelfCheck, Setup};
use crate::model::{BUNDLED, Model, ModelError, Place, UnreadModel, locate};
use crate::sched::TenantConfig;
use crate::token::{Prompt, Tokenizer};
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

/// Tokenizers that were opened, with the files that they are made of.
pub(super) type Tokenizers = Vec<(Files, Arc<Tokenizer>)>;

/// Opens the models of `[primary]` and `[fallback]`.
pub(super) fn setup(config: &Config, clock: Clock, books: BooksSetup) -> Result<Setup, Failure> {
    let mut tokenizers = Tokenizers::new();
    let mut models: Vec<ModelSetup> = Vec::new();
    for (tier, configured) in [(Tier::Primary, &config.primary), (Tier::Fallback, &config.fallback)] {
        let Some(configured) = configured else { continue };
        let model = open(tier, configured, config.self_check, &mut tokenizers)
            .map_err(|error| Failure::usage(format!("{} model: {error}", tier.name())))?;
        config.check_price(tier.name(), &model.device)?;
        models.push(model);
    }
    if let [ModelSetup { name, .. }, fallback] = &models[..]
        && *name == fallback.name
    {
        let message = format!("fallback.name: the primary has the name `{name}` too; the names must differ");
        return Err(Failure::usage(message));
    }
    let named = |tier| {
        let of_tier = models.iter().filter(move |model| model.tier == tier);
        of_tier.map(|model| ModelRef { name: model.name.to_string(), version: None })
    };
    let route = RouteSetup {
        name: models.first().map_or_else(Arc::default, |model| model.name.clone()),
        primaries: named(Tier::Primary).collect(),
        fallback: named(Tier::Fallback).next(),
        ..RouteSetup::default()
    };
    assemble(config, clock, books, (models, vec![route]))
}

/// The setup of an engine with these models and routes.
pub(super) fn assemble(
    config: &Config,
    clock: Clock,
    books: BooksSetup,
    (models, routes): (Vec<ModelSetup>, Vec<RouteSetup>),
) -> Result<Setup, Failure> {
    let setup = Setup {
        clock,
        models,
        routes,
        tenants: tenants(&config.tenants),
        limits: config.limits.clone(),
        truncation: config.truncation.clone(),
        prepare: config.prepare.clone(),
        default_budget: config.latency_budget_ms.map(|budget| Ns((budget * 1e6) as u64)),
        any_model: config.any_model,
        books,
    };
    setup.check().map_err(|error| Failure::usage(error.to_string()))?;
    Ok(setup)
}

/// Starts the lanes, which score golden pairs first, and ends them.
pub(super) fn check_golden(config: &Config, setup: Setup) -> Result<(), Failure> {
    if !config.self_check {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime needs nothing");
    let mut engine = Engine::start(setup).map_err(|error| Failure::usage(error.to_string()))?;
    runtime.block_on(engine.ready()).map_err(Failure::not_ready)
}

/// The tenants as the scheduler wants them; without any, everybody is one.
fn tenants(configured: &[TenantEntry]) -> Vec<(Arc<str>, TenantConfig)> {
    if configured.is_empty() {
        return vec![("anonymous".into(), TenantConfig::default())];
    }
    let quota = |tenant: &TenantEntry| tenant.quota_ms_per_s.map(|quota| DeviceNs(quota * 1_000_000));
    let config = |tenant: &TenantEntry| TenantConfig { weight: tenant.weight, quota: quota(tenant) };
    configured.iter().map(|tenant| (tenant.name.as_str().into(), config(tenant))).collect()
}

/// What a tokenizer is made of: its file, and a decoder's prompt.
pub(super) type Files = (Cow<'static, [u8]>, Option<Prompt>);

/// Opens a model and places it on lanes.
///
/// # Errors
/// Why it cannot be served.
pub(super) fn open(
    tier: Tier,
    configured: &TierConfig,
    self_check: bool,
    tokenizers: &mut Tokenizers,
) -> Result<ModelSetup, String> {
    let found = find_model(&configured.model).map_err(|error| error.to_string())?;
    let in_model = |error: &dyn std::fmt::Display| format!("{}: {error}", configured.model);
    check_memory(tier, configured, &found).map_err(|error| in_model(&error))?;
    // What needs no weights is told before gigabytes are read.
    let golden = if self_check { found.golden().map_err(|error| error.to_string())? } else { None };
    let mut model = found.read().map_err(|error| error.to_string())?;
    // Tiers with the same tokenizer share it, and so what it has read.
    let files = (model.tokenizer.clone(), model.prompt.clone());
    let tokenizer = match tokenizers.iter().find(|(known, _)| *known == files) {
        Some((_, tokenizer)) => tokenizer.clone(),
        None => {
            let tokenizer = model.read_tokenizer().map_err(|error| in_model(&error))?;
            tokenizers.push((files, tokenizer.clone()));
            tokenizer
        }
    };
    if tokenizer.vocabulary() as usize > model.plan.vocabulary() {
        let (ids, rows) = (tokenizer.vocabulary(), model.plan.vocabulary());
        return Err(format!("tokenizer.json has {ids} token ids, but the model has {rows} word embeddings"));
    }
    let (least, positions) = (tokenizer.template().specials() + 2, model.plan.tokens_max);
    let pair_tokens_max = configured.max_tokens.unwrap_or(model.pair_tokens_max);
    if !(least..=positions).contains(&pair_tokens_max) {
        let stated = match configured.max_tokens {
            Some(max) => format!("{}.max_tokens: {max} is", tier.name()),
            None => format!("its files say {pair_tokens_max} tokens a pair; that is"),
        };
        return Err(format!(
            "{stated} not between {least}, which are two tokens beside the special ones, and the model's {positions} positions"
        ));
    }
    // Engines prepare for the pairs that are served, and not for all that the model could read.
    (model.plan.tokens_max, model.pair_tokens_max) = (pair_tokens_max, pair_tokens_max);
    let model = Arc::new(model);
    let placed = place(tier, configured, &model).map_err(|error| in_model(&error))?;
    let self_check = golden.map(|golden| {
        let limits = (pair_tokens_max, placed.batch_tokens_max);
        let check =
            SelfCheck::new(&golden, (tier, &configured.model), tokenizer.clone(), limits, placed.dtype);
        check.map_err(|error| format!("{}: golden.json: {error}", configured.model))
    });
    let Placed { batch_tokens_max, depth, lanes, .. } = placed;
    let lane = |(device, make)| LaneSetup { device, batch_tokens_max, depth, make };
    Ok(ModelSetup {
        name: configured.name.as_deref().unwrap_or(&model.manifest.name).into(),
        version: model.manifest.version().into(),
        tier,
        licence: model.manifest.licence.as_str().into(),
        dtype: placed.dtype,
        dtype_reason: placed.dtype_reason.clone(),
        tokenizer,
        pair_tokens_max,
        shares_prefixes: placed.shares_prefixes,
        device: placed.kind.as_str().into(),
        calibration: model.manifest.calibration,
        self_check: self_check.transpose()?.map(Arc::new),
        lanes: lanes.into_iter().map(lane).collect(),
    })
}

/// The bundled model, or that of a directory or a hub id, of whose weights only the headers are read.
pub(super) fn find_model(spec: &str) -> Result<UnreadModel, ModelError> {
    match spec {
        BUNDLED => Ok(UnreadModel::bundled()),
        spec => UnreadModel::find(&locate_here(spec)?),
    }
}

/// The model that a flag names.
pub(super) fn open_given(flag: &str, spec: &str) -> Result<Model, Failure> {
    let opened = find_model(spec).and_then(UnreadModel::read);
    opened.map_err(|error| Failure::usage(format!("{flag}: {error}")))
}

/// The directory of a model, from the hub where `HF_HUB_OFFLINE` does not forbid it.
pub(super) fn locate_here(spec: &str) -> Result<PathBuf, ModelError> {
    locate(spec, &Place { cache: None, offline: std::env::var_os("HF_HUB_OFFLINE").is_some() })
}
