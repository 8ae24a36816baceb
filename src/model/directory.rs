//! A model's directory as it is found: whole or in shards, with a tokenizer or a vocabulary alone, or with what has to
//! be fetched or converted first.

use super::arch::{Keys, Module, listed};
use super::prompt::{CHAT_TEMPLATE, PromptFiles};
use super::stored::Content;
use super::{ModelError, vocabulary};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Says `model_max_length`, and how a `vocab.txt` is read.
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Says `max_seq_length`, in directories of sentence-transformers.
pub(super) const SENTENCE_CONFIG: &str = "sentence_bert_config.json";
/// Says which prompts there are, in directories of sentence-transformers.
pub(super) const CROSS_ENCODER_CONFIG: &str = "config_sentence_transformers.json";
/// Lists the modules of a directory of sentence-transformers.
pub(super) const MODULES: &str = "modules.json";
/// Weights that are programs: reading them runs what they say.
const PICKLED: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// Vocabularies of other tokenizers than BERT's.
const VOCABULARIES: [&str; 4] = ["sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "vocab.json"];
/// What a file begins with that Git LFS has not fetched (the pointer file's specification, version 1).
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/v1";

/// The contents of a model's files.
pub(super) struct Files {
    pub parts: Parts,
    /// A `tokenizer.json`.
    pub tokenizer: Cow<'static, [u8]>,
    /// The longest pair by the tokenizer's files, if they say.
    pub tokens_max: Option<u32>,
    /// What may say a decoder's prompt.
    pub prompt: PromptFiles,
}

/// The files that a plan is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub config: Cow<'static, [u8]>,
    /// `podium.json`, which may be missing.
    pub papers: Option<Cow<'static, [u8]>>,
    /// Those that follow the transformer.
    pub modules: Vec<Module>,
    /// The content of their configurations.
    pub modules_read: Vec<u8>,
    /// Of the transformer, then of its modules.
    pub weights: Shards,
}

/// The weights' files: those of the transformer in the order of their names, then those of its modules in their order.
#[derive(Debug)]
pub(super) struct Shards(Vec<Shard>);

/// A safetensors file.
#[derive(Debug)]
pub(super) struct Shard {
    pub name: Cow<'static, str>,
    pub content: Arc<Content>,
}

impl Shards {
    /// The only file.
    pub fn one(bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self(vec![Shard::new(WEIGHTS, Content::Memory(bytes.into()))])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Shard> {
        self.0.iter()
    }

    /// The file that says which tensors the transformer has.
    pub fn listed_in(&self) -> &'static str {
        if self.0[0].name == WEIGHTS { WEIGHTS } else { INDEX }
    }
}

impl Shard {
    fn new(name: impl Into<Cow<'static, str>>, content: Content) -> Self {
        Self { name: name.into(), content: Arc::new(content) }
    }

    /// The folder of a module's weights.
    pub fn folder(&self) -> Option<&str> {
        self.name.split_once('/').map(|(folder, _)| folder)
    }
}

/// Reads a directory's files.
///
/// # Errors
/// [`ModelError`], which names the file and says what to do.
pub(super) fn files(directory: &Path) -> Result<Files, ModelError> {
    let papers = optional(directory, "podium.json")?;
    let config = read(directory, "config.json")?;
    let (for_tokenizer, for_sentences) =
        (optional(directory, TOKENIZER_CONFIG)?, optional(directory, SENTENCE_CONFIG)?);
    let tokenizer = tokenizer(directory, for_tokenizer.as_deref())?.into();
    let tokens_max = tokens_max(directory, [for_tokenizer.as_deref(), for_sentences.as_deref()])?;
    let prompt = PromptFiles {
        chat_template: optional(directory, CHAT_TEMPLATE)?,
        tokenizer_config: for_tokenizer,
        sentence_config: for_sentences,
        cross_encoder_config: optional(directory, CROSS_ENCODER_CONFIG)?,
        card: optional(directory, "README.md")?,
    };
    Ok(Files { parts: parts(directory, papers, config)?, tokenizer, tokens_max, prompt })
}

/// Reads the files of a plan alone.
///
/// # Errors
/// As [`files`].
pub(super) fn plan_files(directory: &Path) -> Result<Parts, ModelError> {
    parts(directory, optional(directory, "podium.json")?, read(directory, "config.json")?)
}

fn parts(directory: &Path, papers: Option<Vec<u8>>, config: Vec<u8>) -> Result<Parts, ModelError> {
    let mut weights = weights(directory)?;
    let (mut modules, mut modules_read) = (Vec::new(), Vec::new());
    if let Some(json) = optional(directory, MODULES)? {
        let listed = listed(&json).map_err(|reason| unusable(directory, MODULES, reason))?;
        for (path, kind) in listed {
            let file = format!("{path}/config.json");
            let content = named_by(read(directory, &file), MODULES)?;
            let keys = Keys::parse(&content).map_err(|reason| unusable(directory, &file, reason))?;
            if Module::has_weights(&kind) {
                let name = format!("{path}/{WEIGHTS}");
                let content = module_weights(directory, &path, &name)?;
                weights.0.push(Shard::new(name, content));
            }
            modules_read.extend([kind.as_bytes(), &[0], &content, &[0]].concat());
            modules.push(Module { path, kind, keys });
        }
    }
    let papers = papers.map(Cow::Owned);
    Ok(Parts { config: config.into(), papers, modules, modules_read, weights })
}

fn module_weights(directory: &Path, folder: &str, name: &str) -> Result<Content, ModelError> {
    let missing = match named_by(open(directory, name), MODULES) {
        Err(error @ ModelError::MissingPart { .. }) => error,
        result => return result,
    };
    let pickle = format!("{folder}/{}", PICKLED[0]);
    if !directory.join(&pickle).exists() {
        return Err(missing);
    }
    let reason = format!(
        "loading a pickle runs the code in it, so it is not read; convert it: python -c \"from sentence_transformers \
         import CrossEncoder as C; C('{0}').save_pretrained('{0}')\"",
        directory.display()
    );
    Err(unusable(directory, &pickle, reason))
}

/// What a file holds that another one names.
fn named_by<T>(result: Result<T, ModelError>, by: &'static str) -> Result<T, ModelError> {
    match result {
        Err(ModelError::Missing { path }) => Err(ModelError::MissingPart { path, by }),
        result => result,
    }
}

/// The content of `tokenizer.json`, or what it would be for a `vocab.txt`.
fn tokenizer(directory: &Path, config: Option<&[u8]>) -> Result<Vec<u8>, ModelError> {
    let missing = match read(directory, "tokenizer.json") {
        Err(error @ ModelError::Missing { .. }) => error,
        result => return result,
    };
    if let Some(vocab) = optional(directory, "vocab.txt")? {
        let json = vocabulary::tokenizer_json(&vocab, config);
        return json.map_err(|reason| ModelError::Tokenizer { directory: directory.to_owned(), reason });
    }
    match VOCABULARIES.into_iter().find(|name| directory.join(name).exists()) {
        Some(found) => Err(ModelError::Tokenizer {
            directory: directory.to_owned(),
            reason: format!("tokenizer.json is missing, and of {found} alone no tokenizer is made"),
        }),
        None => Err(missing),
    }
}

fn weights(directory: &Path) -> Result<Shards, ModelError> {
    let missing = match open(directory, WEIGHTS) {
        Ok(content) => return Ok(Shards(vec![Shard::new(WEIGHTS, content)])),
        Err(error @ ModelError::Missing { .. }) => error,
        Err(error) => return Err(error),
    };
    if let Some(index) = optional(directory, INDEX)? {
        let names = shard_names(&index).map_err(|reason| unusable(directory, INDEX, reason))?;
        let shard = |name: String| -> Result<Shard, ModelError> {
            let content = named_by(open(directory, &name), INDEX)?;
            Ok(Shard::new(name, content))
        };
        return Ok(Shards(names.into_iter().map(shard).collect::<Result<_, ModelError>>()?));
    }
    match PICKLED.into_iter().find(|name| directory.join(name).exists()) {
        Some(found) => Err(ModelError::Pickled { directory: directory.to_owned(), found }),
        None => Err(missing),
    }
}

/// The files that an index of shards names, in the order of their names.
///
/// # Errors
/// Says what is wrong with the index.
pub(super) fn shard_names(index: &[u8]) -> Result<BTreeSet<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if names.is_empty() {
        return Err("weight_map: names no file".to_owned());
    }
    // A name is no path: nothing outside the directory is read.
    let is_plain =
        |name: &&String| Path::new(name).file_name().is_some_and(|file| file.to_str() == Some(name.as_str()));
    match names.iter().find(|name| !is_plain(name)) {
        Some(name) => Err(format!("weight_map: `{name}` is not a file's name")),
        None => Ok(names),
    }
}

/// The longest pair by the files that say: the lesser of both.
fn tokens_max(
    directory: &Path,
    [tokenizer, sentence]: [Option<&[u8]>; 2],
) -> Result<Option<u32>, ModelError> {
    let tokenizer = limit(directory, TOKENIZER_CONFIG, "model_max_length", tokenizer)?;
    let sentence = limit(directory, SENTENCE_CONFIG, "max_seq_length", sentence)?;
    Ok(tokenizer.into_iter().chain(sentence).min())
}

/// A limit that a file states; `transformers` writes 10^30 for none.
fn limit(directory: &Path, file: &str, key: &str, content: Option<&[u8]>) -> Result<Option<u32>, ModelError> {
    let Some(content) = content else { return Ok(None) };
    let keys: Map<String, Value> =
        serde_json::from_slice(content).map_err(|error| unusable(directory, file, error.to_string()))?;
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(stated) => match stated.as_f64().filter(|tokens| *tokens >= 1.0 && tokens.fract() == 0.0) {
            Some(tokens) => Ok(Some(tokens as u32).filter(|&tokens| tokens < u32::MAX)),
            None => {
                Err(unusable(directory, file, format!("{key}: {stated} is not a whole number of tokens")))
            }
        },
    }
}

fn unusable(directory: &Path, file: &str, reason: String) -> ModelError {
    ModelError::Unusable { path: directory.join(file), reason }
}

/// The content of a file, if it is there.
pub(super) fn optional(directory: &Path, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
    match read(directory, name) {
        Err(ModelError::Missing { .. }) => Ok(None),
        result => result.map(Some),
    }
}

fn read(directory: &Path, name: &str) -> Result<Vec<u8>, ModelError> {
    let path = directory.join(name);
    match std::fs::read(&path) {
        Ok(bytes) if bytes.starts_with(LFS) => Err(ModelError::LfsPointer { path }),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(unread(path, &error)),
    }
}

/// Opens a file of weights, which are read later.
fn open(directory: &Path, name: &str) -> Result<Content, ModelError> {
    let path = directory.join(name);
    let opened = Content::open(&path).and_then(|content| Ok((content.begins_with(LFS)?, content)));
    match opened {
        Ok((true, _)) => Err(ModelError::LfsPointer { path }),
        Ok((false, content)) => Ok(content),
        Err(error) => Err(unread(path, &error)),
    }
}

fn unread(path: PathBuf, error: &std::io::Error) -> ModelError {
    match error.kind() {
        std::io::ErrorKind::NotFound => ModelError::Missing { path },
        _ => ModelError::Unreadable { path, reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use crate::model::Model;
    use safetensors::SafeTensors;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders/bert")
    }

    const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n";

    /// A small BERT's directory: `model.safetensors`, and a vocabulary without `tokenizer.json`.
    fn directory() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(fixture().join(file), place.path().join(file)).unwrap();
        }
        fs::write(place.path().join("vocab.txt"), VOCAB).unwrap();
        place
    }

    /// Replaces the weights by shards of which each has every other tensor, listed in an index.
    fn shard(place: &Path) {
        let whole = fs::read(place.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&whole).unwrap();
        let mut names: Vec<&str> = file.names();
        names.sort_unstable();
        let mut map = serde_json::Map::new();
        for number in 0..2 {
            let shard = format!("model-0000{}-of-00002.safetensors", number + 1);
            let mine: Vec<&str> = names.iter().copied().skip(number).step_by(2).collect();
            let views = mine.iter().map(|name| (*name, file.tensor(name).unwrap()));
            fs::write(place.join(&shard), safetensors::serialize(views, None).unwrap()).unwrap();
            map.extend(mine.iter().map(|name| ((*name).to_owned(), shard.clone().into())));
        }
        let index = serde_json::json!({"metadata": {"total_size": whole.len()}, "weight_map": map});
        fs::write(place.join("model.safetensors.index.json"), index.to_string()).unwrap();
        fs::remove_file(place.join("model.safetensors")).unwrap();
    }

    /// What opening a directory fails with, without the path before each file.
    fn complaint(place: &Path) -> String {
        Model::open(place).unwrap_err().to_string().replace(&place.display().to_string(), "DIR")
    }

    #[test]
    fn shards_are_the_same_model_as_one_file() {
        let (whole, sharded) = (directory(), directory());
        shard(sharded.path());
        let (whole, sharded) = (Model::open(whole.path()).unwrap(), Model::open(sharded.path()).unwrap());
        assert_eq!(whole.plan.held(), sharded.plan.held());
        // Versions are of bytes: those of the files, one after the other.
        assert_ne!(whole.manifest.version(), sharded.manifest.version());
    }

    #[test]
    fn one_file_goes_before_shards() {
        let place = directory();
        fs::write(place.path().join("model.safetensors.index.json"), "{}").unwrap();
        assert!(Model::open(place.path()).is_ok());
    }

    #[test]
    fn shards_that_do_not_make_a_model_are_named() {
        let first = "model-00001-of-00002.safetensors";
        let second = "model-00002-of-00002.safetensors";
        type Damage = fn(&Path);
        let cases: [(Damage, String); 8] = [
            (
                |place| fs::remove_file(place.join("model-00002-of-00002.safetensors")).unwrap(),
                format!(
                    "DIR/{second} is missing, and model.safetensors.index.json names it; copy or fetch it too"
                ),
            ),
            (
                |place| {
                    let first = place.join("model-00001-of-00002.safetensors");
                    fs::copy(first, place.join("model-00002-of-00002.safetensors")).unwrap();
                },
                format!(
                    "DIR/model.safetensors.index.json: tensor `bert.embeddings.LayerNorm.bias` is in {first} and in {second}"
                ),
            ),
            (
                |place| fs::write(place.join("model-00002-of-00002.safetensors"), "short").unwrap(),
                format!("DIR/model.safetensors.index.json: {second} is damaged or no safetensors"),
            ),
            (
                |place| {
                    let text = fs::read_to_string(place.join("model.safetensors.index.json")).unwrap();
                    let text = text.replace("model-00002-of-00002", "model-00001-of-00002");
                    fs::write(place.join("model.safetensors.index.json"), text).unwrap();
                },
                "DIR/model.safetensors.index.json: tensor `bert.embeddings.".to_owned(),
            ),
            (
                |place| fs::write(place.join("model.safetensors.index.json"), "{}").unwrap(),
                "DIR/model.safetensors.index.json: missing field `weight_map`".to_owned(),
            ),
            (
                |place| {
                    fs::write(place.join("model.safetensors.index.json"), r#"{"weight_map": {}}"#).unwrap();
                },
                "DIR/model.safetensors.index.json: weight_map: names no file".to_owned(),
            ),
            (
                |place| {
                    let text = r#"{"weight_map": {"a": "../model.safetensors"}}"#;
                    fs::write(place.join("model.safetensors.index.json"), text).unwrap();
                },
                "DIR/model.safetensors.index.json: weight_map: `../model.safetensors` is not a file's name"
                    .to_owned(),
            ),
            (
                |place| {
                    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
                    fs::write(place.join("model-00001-of-00002.safetensors"), pointer).unwrap();
                },
                format!(
                    "DIR/{first} is a pointer of Git LFS, not the file itself; run `git lfs pull` in DIR"
                ),
            ),
        ];
        for (damage, expected) in cases {
            let place = directory();
            shard(place.path());
            damage(place.path());
            let complaint = complaint(place.path());
            assert!(complaint.starts_with(&expected), "{complaint}");
        }
    }

    #[test]
    fn what_lacks_or_cannot_be_read_is_named_with_the_next_step() {
        type Damage = fn(&Path);
        let holds = "copy or fetch it: a model directory holds config.json, tokenizer.json (or BERT's vocab.txt) and \
                     model.safetensors (or its shards with model.safetensors.index.json)";
        let cases: [(Damage, String); 10] = [
            (
                |place| fs::remove_file(place.join("config.json")).unwrap(),
                format!("DIR/config.json is missing; {holds}"),
            ),
            (
                |place| fs::remove_file(place.join("vocab.txt")).unwrap(),
                format!("DIR/tokenizer.json is missing; {holds}"),
            ),
            (
                |place| fs::remove_file(place.join("model.safetensors")).unwrap(),
                format!("DIR/model.safetensors is missing; {holds}"),
            ),
            (
                |place| {
                    fs::rename(place.join("model.safetensors"), place.join("pytorch_model.bin")).unwrap();
                },
                "DIR has pytorch_model.bin and no model.safetensors; loading a pickle runs the code in it, so it is not \
                 read; convert it: python -c \"from transformers import AutoModelForSequenceClassification as M; \
                 M.from_pretrained('DIR').save_pretrained('DIR')\""
                    .to_owned(),
            ),
            (
                |place| {
                    let index = place.join("pytorch_model.bin.index.json");
                    fs::rename(place.join("model.safetensors"), index).unwrap();
                },
                "DIR has pytorch_model.bin.index.json and no model.safetensors".to_owned(),
            ),
            (
                |place| {
                    fs::rename(place.join("vocab.txt"), place.join("sentencepiece.bpe.model")).unwrap();
                },
                "DIR: tokenizer.json is missing, and of sentencepiece.bpe.model alone no tokenizer is made; write \
                 tokenizer.json: python -c \"from transformers import AutoTokenizer as T; \
                 T.from_pretrained('DIR').save_pretrained('DIR')\""
                    .to_owned(),
            ),
            (
                |place| fs::write(place.join("vocab.txt"), "a\n").unwrap(),
                "DIR: vocab.txt has no special token `[UNK]`; write tokenizer.json: python".to_owned(),
            ),
            (
                |place| {
                    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
                    fs::write(place.join("model.safetensors"), pointer).unwrap();
                },
                "DIR/model.safetensors is a pointer of Git LFS, not the file itself; run `git lfs pull` in DIR"
                    .to_owned(),
            ),
            (
                |place| {
                    fs::remove_file(place.join("config.json")).unwrap();
                    fs::create_dir(place.join("config.json")).unwrap();
                },
                "DIR/config.json cannot be read: Is a directory".to_owned(),
            ),
            (
                |place| fs::write(place.join("model.safetensors"), "").unwrap(),
                "DIR/model.safetensors: model.safetensors is damaged or no safetensors".to_owned(),
            ),
        ];
        for (damage, expected) in cases {
            let place = directory();
            damage(place.path());
            let complaint = complaint(place.path());
            assert!(complaint.starts_with(&expected), "{complaint}");
        }
    }

    #[test]
    fn the_longest_pair_is_the_least_that_any_file_says() {
        let rows = [
            ("{}", None, 64),
            (r#"{"model_max_length": 48}"#, None, 48),
            (r#"{"model_max_length": 1000000000000000019884624838656}"#, None, 64),
            (r#"{"model_max_length": 65}"#, None, 64),
            ("{}", Some(r#"{"max_seq_length": 32, "do_lower_case": false}"#), 32),
            (r#"{"model_max_length": 48}"#, Some(r#"{"max_seq_length": 32}"#), 32),
            (r#"{"model_max_length": 24}"#, Some(r#"{"max_seq_length": null}"#), 24),
        ];
        let mut identities = std::collections::BTreeMap::new();
        for (tokenizer, sentence, expected) in rows {
            let place = directory();
            fs::write(place.path().join("tokenizer_config.json"), tokenizer).unwrap();
            if let Some(sentence) = sentence {
                fs::write(place.path().join("sentence_bert_config.json"), sentence).unwrap();
            }
            let model = Model::open(place.path()).unwrap();
            assert_eq!(model.pair_tokens_max, expected, "{tokenizer} {sentence:?}");
            // Kept scores are of one longest pair.
            assert_eq!(*identities.entry(expected).or_insert(model.identity.clone()), model.identity);
        }
        assert_eq!(identities.values().collect::<std::collections::BTreeSet<_>>().len(), 4);
        for (file, content, expected) in [
            (
                "tokenizer_config.json",
                r#"{"model_max_length": 0}"#,
                "model_max_length: 0 is not a whole number",
            ),
            ("tokenizer_config.json", r#"{"model_max_length": "many"}"#, "model_max_length: \"many\" is not"),
            ("sentence_bert_config.json", r#"{"max_seq_length": 1.5}"#, "max_seq_length: 1.5 is not"),
            ("sentence_bert_config.json", "[]", "invalid type: sequence"),
        ] {
            let place = directory();
            fs::write(place.path().join(file), content).unwrap();
            let complaint = complaint(place.path());
            assert!(complaint.starts_with(&format!("DIR/{file}: {expected}")), "{complaint}");
        }
    }
    /// The small Ettin's directory, in the modular layout of sentence-transformers.
    fn modular() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        let from = fixture().with_file_name("ettin");
        let copy = |folder: &str| {
            fs::create_dir_all(place.path().join(folder)).unwrap();
            for entry in fs::read_dir(from.join(folder)).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() {
                    fs::copy(entry.path(), place.path().join(folder).join(entry.file_name())).unwrap();
                }
            }
        };
        ["", "1_Pooling", "2_Dense", "3_LayerNorm", "4_Dense"].into_iter().for_each(copy);
        fs::write(place.path().join("vocab.txt"), VOCAB).unwrap();
        place
    }

    #[test]
    fn a_module_s_files_are_part_of_the_model() {
        let whole = Model::open(modular().path()).unwrap();
        let changed = |file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
            let place = modular();
            let path = place.path().join(file);
            fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
            Model::open(place.path()).unwrap()
        };
        assert_eq!(changed("1_Pooling/config.json", &|bytes| bytes).identity, whole.identity);
        let pooling = changed("1_Pooling/config.json", &|bytes| {
            String::from_utf8(bytes).unwrap().replace("\"cls\"", "\"mean\"").into_bytes()
        });
        assert_ne!(pooling.identity, whole.identity);
        assert_eq!(pooling.manifest.sha256, whole.manifest.sha256);
        let dense = changed("4_Dense/model.safetensors", &|mut bytes| {
            *bytes.last_mut().unwrap() ^= 0x80;
            bytes
        });
        assert_ne!((dense.manifest.sha256, dense.identity), (whole.manifest.sha256, whole.identity));
    }

    #[test]
    fn a_module_s_files_are_read_with_the_same_care() {
        type Damage = fn(&Path);
        let cases: [(Damage, &str); 7] = [
            (
                |place| fs::remove_file(place.join("2_Dense/model.safetensors")).unwrap(),
                "DIR/2_Dense/model.safetensors is missing, and modules.json names it; copy or fetch it too",
            ),
            (
                |place| {
                    let weights = place.join("2_Dense/model.safetensors");
                    fs::rename(weights, place.join("2_Dense/pytorch_model.bin")).unwrap();
                },
                "DIR/2_Dense/pytorch_model.bin: loading a pickle runs the code in it, so it is not read; convert it: python",
            ),
            (
                |place| fs::remove_file(place.join("1_Pooling/config.json")).unwrap(),
                "DIR/1_Pooling/config.json is missing, and modules.json names it; copy or fetch it too",
            ),
            (
                |place| {
                    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
                    fs::write(place.join("4_Dense/model.safetensors"), pointer).unwrap();
                },
                "DIR/4_Dense/model.safetensors is a pointer of Git LFS, not the file itself; run `git lfs pull` in \
                 DIR/4_Dense",
            ),
            (
                |place| fs::write(place.join("4_Dense/model.safetensors"), "short").unwrap(),
                "DIR/4_Dense/model.safetensors: 4_Dense/model.safetensors is damaged or no safetensors",
            ),
            (
                |place| {
                    let (from, to) =
                        (place.join("4_Dense/model.safetensors"), place.join("2_Dense/model.safetensors"));
                    fs::copy(from, to).unwrap();
                },
                "DIR/2_Dense/model.safetensors: tensor `2_Dense/linear.weight` has shape [1, 32], and the \
                 configuration says [32, 32]",
            ),
            (
                |place| fs::write(place.join("modules.json"), "[]").unwrap(),
                "DIR/modules.json: lists no module",
            ),
        ];
        for (damage, expected) in cases {
            let place = modular();
            damage(place.path());
            let complaint = complaint(place.path());
            assert!(complaint.starts_with(expected), "{complaint}");
        }
    }
}
