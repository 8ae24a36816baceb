//! From the configuration to an engine's setup: models opened, checked and laid out on lanes.

use super::Failure;
use super::config::{Config, EngineKind, TenantEntry, TierConfig};
use crate::backend::{Cpu, CpuModel, Reference};
use crate::base::{DeviceNs, Ns, PerTier, Tier};
use crate::engine::{BooksSetup, Clock, LaneSetup, MakeScorer, Setup, TierSetup};
use crate::model::{BUNDLED, Forward, Model, ModelError, Place, locate};
use crate::sched::TenantConfig;
use crate::token::Tokenizer;
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

/// Opens the configured models.
pub(super) fn setup(config: &Config, clock: Clock, books: BooksSetup) -> Result<Setup, Failure> {
    let mut tokenizers = Vec::new();
    let mut tiers = PerTier::default();
    let mut lanes = Vec::new();
    for (tier, configured) in [(Tier::Primary, &config.primary), (Tier::Fallback, &config.fallback)] {
        let Some(configured) = configured else { continue };
        let (setup, make) = open(configured, &mut tokenizers)
            .map_err(|error| Failure::usage(format!("{} model: {error}", tier.name())))?;
        tiers[tier] = Some(setup);
        lanes.extend((0..configured.lanes).map(|_| LaneSetup {
            tier,
            batch_tokens_max: configured.batch_tokens_max,
            depth: configured.depth,
            make: make.clone(),
        }));
    }
    Ok(Setup {
        clock,
        tiers,
        lanes,
        tenants: tenants(&config.tenants),
        limits: config.limits.clone(),
        prepare: config.prepare.clone(),
        default_budget: config.latency_budget_ms.map(|budget| Ns((budget * 1e6) as u64)),
        any_model: config.any_model,
        books,
    })
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

fn open(
    configured: &TierConfig,
    tokenizers: &mut Vec<(Cow<'static, [u8]>, Arc<Tokenizer>)>,
) -> Result<(TierSetup, MakeScorer), String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let model = open_model(&configured.model).map_err(|error| said(&error))?;
    // Tiers with the same tokenizer share it, and so what it has read.
    let tokenizer = match tokenizers.iter().find(|(known, _)| *known == model.tokenizer) {
        Some((_, tokenizer)) => tokenizer.clone(),
        None => {
            let tokenizer = Tokenizer::parse(&model.tokenizer)
                .map_err(|error| format!("{}: {error}", configured.model))?;
            let tokenizer = Arc::new(tokenizer);
            tokenizers.push((model.tokenizer.clone(), tokenizer.clone()));
            tokenizer
        }
    };
    if tokenizer.vocabulary() as usize > model.encoder.vocabulary {
        let (ids, rows) = (tokenizer.vocabulary(), model.encoder.vocabulary);
        return Err(format!("tokenizer.json gives {ids} ids, and the model has {rows} words"));
    }
    let (make, dtype) =
        make_scorer(configured, &model).map_err(|error| format!("{}: {error}", configured.model))?;
    let setup = TierSetup {
        name: configured.name.as_deref().unwrap_or(&model.manifest.name).into(),
        version: model.manifest.version().into(),
        licence: model.manifest.licence.as_str().into(),
        dtype,
        tokenizer,
        pair_tokens_max: model.encoder.pair_tokens_max(),
        device: configured.device.as_str().into(),
        calibration: model.manifest.calibration,
    };
    Ok((setup, make))
}

/// The bundled model, or that of a directory or a hub id.
pub(super) fn open_model(spec: &str) -> Result<Model, ModelError> {
    match spec {
        BUNDLED => Ok(Model::bundled()),
        spec => Model::open(&locate_here(spec)?),
    }
}

/// The directory of a model, from the hub where `HF_HUB_OFFLINE` does not forbid it.
pub(super) fn locate_here(spec: &str) -> Result<PathBuf, ModelError> {
    locate(spec, &Place { cache: None, offline: std::env::var_os("HF_HUB_OFFLINE").is_some() })
}

/// What makes a lane's scorer, and what that computes in; lanes share the packed model.
fn make_scorer(configured: &TierConfig, model: &Model) -> Result<(MakeScorer, &'static str), String> {
    let (encoder, weights) = (&model.encoder, &model.weights);
    match configured.engine {
        EngineKind::Cpu => {
            let packed = CpuModel::new(encoder, weights, configured.precision);
            let (packed, threads) = (packed.map_err(|error| error.to_string())?, configured.threads);
            let dtype = packed.dtype();
            Ok((Arc::new(move || Ok(Box::new(Cpu::new(packed.clone(), threads)))), dtype))
        }
        EngineKind::Reference => {
            let forward = Arc::new(Forward::new(encoder, weights).map_err(|error| error.to_string())?);
            Ok((Arc::new(move || Ok(Box::new(Reference::new(forward.clone())))), "float32"))
        }
    }
}
