//! A model by the headers of its files: all that says how much memory it takes, before gigabytes of weights are read.

use super::arch::{Fault, Source};
use super::directory::{self, Files, Parts};
use super::manifest::Declared;
use super::prompt::{self, Found, PromptFiles};
use super::{
    BUNDLED, Golden, Manifest, Model, ModelError, Plan, Score, bundled, golden, plan, source, unusable,
    weights_error,
};
use crate::base::hex;
use crate::token::Tokenizer;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Reading weights of more bytes than this is a line in the log: hashing them takes more than a few seconds.
const LARGE_BYTES: u64 = 1_000_000_000;

/// A model whose files were read and checked, apart from the values of its tensors.
#[derive(Debug)]
pub struct UnreadModel {
    /// Its parts, with the shapes of their tensors.
    pub plan: Plan,
    /// Whether int8 keeps its order, where `podium.json` says it.
    pub int8: Option<bool>,
    /// Where its files are, or [`BUNDLED`].
    directory: PathBuf,
    /// The golden pairs of the bundled model; others have theirs in their directory.
    golden: Option<&'static [u8]>,
    parts: Parts,
    source: Source,
    tokenizer: Cow<'static, [u8]>,
    tokens_max: Option<u32>,
    prompt: Option<(Found, Arc<Tokenizer>)>,
}

impl UnreadModel {
    /// Reads the files of a directory, of the weights the headers only.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn find(directory: &Path) -> Result<Self, ModelError> {
        Self::parse(directory.to_owned(), directory::files(directory)?, None)
    }

    /// The bundled model.
    pub fn bundled() -> Self {
        let found = Self::parse(BUNDLED.into(), bundled::files(), Some(bundled::GOLDEN));
        found.expect("the bundled model is whole, or its test would fail")
    }

    fn parse(directory: PathBuf, files: Files, golden: Option<&'static [u8]>) -> Result<Self, ModelError> {
        let Files { parts, tokenizer, tokens_max, prompt } = files;
        let declared = Declared::parse(parts.papers.as_deref(), &directory)?;
        let mut source = source(&directory, &parts, &declared)?;
        let prompt = found_prompt(&source, &declared, &prompt, &tokenizer);
        let prompt = prompt.map_err(|fault| unusable(&directory, fault))?;
        source.answers = prompt.as_ref().and_then(|(found, _)| found.answers);
        let plan = plan(&directory, &parts, &source)?;
        let int8 = declared.int8;
        Ok(Self { plan, int8, directory, golden, parts, source, tokenizer, tokens_max, prompt })
    }

    /// Texts with the scores that the model must give them, if there is a `golden.json`.
    ///
    /// # Errors
    /// The file cannot be read, or is wrong.
    pub fn golden(&self) -> Result<Option<Golden>, ModelError> {
        let json: Option<Cow<[u8]>> = match self.golden {
            Some(bundled) => Some(bundled.into()),
            None => directory::optional(&self.directory, golden::GOLDEN)?.map(Cow::Owned),
        };
        let path = || self.directory.join(golden::GOLDEN);
        let parsed = json.map(|json| Golden::parse(&json)).transpose();
        parsed.map_err(|reason| ModelError::Unusable { path: path(), reason })
    }

    /// Reads the weights once, to check and to hash them. They stay in their files.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn read(self) -> Result<Model, ModelError> {
        let Self { plan, directory, parts, .. } = &self;
        let bytes: u64 = parts.weights.iter().map(|shard| shard.content.bytes()).sum();
        if bytes > LARGE_BYTES {
            let gigabytes = format!("{:.1}", bytes as f64 / 1e9);
            tracing::info!(model = %directory.display(), gigabytes, "the weights are read and hashed");
        }
        let sha256 = parts.weights.read(plan);
        let sha256 = sha256.map_err(|error| weights_error(directory, &parts.weights, error))?;
        self.model(Some(sha256))
    }

    /// The model to be shown and not to be run: its weights are neither checked nor hashed.
    ///
    /// # Errors
    /// An invalid `podium.json`.
    pub fn unchecked(self) -> Result<Model, ModelError> {
        self.model(None)
    }

    /// The longest pair that it reads, as [`Model::pair_tokens_max`].
    pub fn pair_tokens_max(&self) -> u32 {
        let by_prompt = self.prompt.as_ref().and_then(|(found, _)| found.tokens_max);
        self.tokens_max.into_iter().chain(by_prompt).fold(self.plan.tokens_max, u32::min)
    }

    fn model(self, sha256: Option<String>) -> Result<Model, ModelError> {
        let pair_tokens_max = self.pair_tokens_max();
        let Self { mut plan, directory, parts, source, tokenizer, prompt, .. } = self;
        let (found, prompted) = prompt.unzip();
        if let (Some(Found { scale, .. }), Score::Tokens { yes, no }) = (&found, &mut plan.head.score) {
            let rows = [yes].into_iter().chain(no);
            for row in rows {
                row.hold();
                row.values.iter_mut().for_each(|value| *value *= scale);
            }
            plan.check_files()?;
        }
        let manifest = Manifest::parse(parts.papers.as_deref(), &directory, sha256)?;
        let positions = plan.tokens_max;
        let prompt = found.map(|found| found.prompt);
        let mut hashed = Sha256::new()
            .chain_update(Sha256::digest(&parts.config))
            .chain_update(Sha256::digest(&tokenizer))
            .chain_update(&manifest.sha256);
        if pair_tokens_max < positions {
            hashed.update(pair_tokens_max.to_le_bytes());
        }
        // What only some models have changes no identity of others.
        if !parts.modules.is_empty() {
            hashed.update(Sha256::digest(&parts.modules_read));
        }
        if let Some(label) = &source.label {
            hashed.update(format!("{label:?}"));
        }
        if let Some(prompt) = &prompt {
            hashed.update(format!("{prompt:?} {:?}", source.answers));
        }
        let identity = hex(&hashed.finalize()[..8]);
        Ok(Model { plan, manifest, tokenizer, prompt, prompted, pair_tokens_max, identity })
    }
}

/// The prompt of a decoder, with the tokenizer for pairs in it.
fn found_prompt(
    source: &Source,
    declared: &Declared,
    files: &PromptFiles,
    tokenizer: &[u8],
) -> Result<Option<(Found, Arc<Tokenizer>)>, Fault> {
    let declared = declared.prompt.as_ref();
    if !source.is_decoder() {
        return prompt::refuse(declared, files, source).map(|()| None);
    }
    let fault = |error: crate::token::TokenizerError| Fault {
        file: "tokenizer.json".into(),
        reason: error.to_string(),
    };
    let tokenizer = Tokenizer::parse(tokenizer).map_err(fault)?;
    let found = prompt::find(declared, files, &tokenizer)?;
    let tokenizer = tokenizer.with_prompt(found.prompt.clone()).map_err(fault)?;
    Ok(Some((found, Arc::new(tokenizer))))
}
