//! Scores of a model kept on disk: a pair is never scored twice.

use super::{Candidate, Judged};
use crate::backend::{NotHere, Precision, ScoreError, Scorer, open};
use crate::base::Tier;
use crate::model::{Model, fit};
use crate::rerank::{Truncation, TruncationDefaults};
use crate::token::{Cut, Fit, Packed, PairReader, ReadError, Tokenizer, TokenizerError};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Tokens that are scored at once; few enough that little is lost on an interruption.
const BATCH_TOKENS: u64 = 16_384;
/// A record: half a sha256 of the pair, and the logit.
const RECORD: usize = 20;

/// A query and its candidates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// What is asked.
    pub query: Arc<str>,
    /// What is to be ordered.
    pub documents: Vec<Arc<str>>,
}

impl List {
    /// The candidates of a judged set's queries, in the order of its run.
    pub fn of_set(set: &Judged) -> Vec<Self> {
        let text = |found: &Candidate| Arc::from(set.documents[&found.document].as_str());
        let list = |(query, candidates): (&String, &Vec<Candidate>)| Self {
            query: set.queries[query].as_str().into(),
            documents: candidates.iter().map(text).collect(),
        };
        set.run.iter().map(list).collect()
    }
}

/// A model that scores lists and keeps their scores.
pub struct Keeper {
    /// The model at work.
    pub scorer: Box<dyn Scorer>,
    /// Reads its pairs.
    pub reader: PairReader,
    /// What its linear maps are computed in.
    pub dtype: &'static str,
    cache: ScoreCache,
}

/// Why a model does not score lists.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// The processor lacks the precision.
    #[error("precision: {0}")]
    Precision(#[from] NotHere),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Its scores cannot be kept.
    #[error("scores: {0}")]
    Cache(#[from] CacheError),
}

impl Keeper {
    /// Opens a tier's model on the best device that is here for it; scores lie in `folder`, under a name by which
    /// whatever scores with the same model in the same precision and with the same truncation finds them.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn open(
        tier: Tier,
        model: &Model,
        (precision, threads): (Precision, usize),
        truncation: &Truncation,
        folder: &Path,
    ) -> Result<Self, KeeperError> {
        let (scorer, dtype) = open(tier, model, precision, threads)?;
        Self::with((scorer, dtype), model, truncation, folder)
    }

    /// The same without the device that scored in `dtype`: what it has scored is known, and any other pair an error.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn elsewhere(
        model: &Model,
        dtype: &'static str,
        truncation: &Truncation,
        folder: &Path,
    ) -> Result<Self, KeeperError> {
        Self::with((Box::new(Elsewhere { dtype }), dtype), model, truncation, folder)
    }

    fn with(
        (scorer, dtype): (Box<dyn Scorer>, &'static str),
        model: &Model,
        truncation: &Truncation,
        folder: &Path,
    ) -> Result<Self, KeeperError> {
        let tokenizer = Arc::new(Tokenizer::parse(&model.tokenizer)?);
        let fit = fit(truncation, &TruncationDefaults::default(), model.pair_tokens_max);
        let name = format!("scores-{}-{dtype}-{}.bin", model.identity, name_of(&fit));
        let cache = ScoreCache::open(&folder.join(name))?;
        let reader = PairReader { tokenizer, fit };
        Ok(Self { scorer, reader, dtype, cache })
    }

    /// The logits of lists; a pair that has been scored before is not scored again. `progress` hears how many pairs
    /// of all are known.
    ///
    /// # Errors
    /// [`CacheError`]; what was scored before stays.
    pub fn logits(
        &mut self,
        lists: &[List],
        progress: impl FnMut(usize),
    ) -> Result<Vec<Vec<f32>>, CacheError> {
        self.cache.complete(lists, &mut *self.scorer, &self.reader, progress)?;
        Ok(self.cache.logits(lists))
    }
}

/// A part of a file's name for what scores of pairs depend on.
fn name_of(fit: &Fit) -> String {
    let Fit { limit, query_max, document_max, cut, side } = fit;
    let cut = match cut {
        Cut::Share { query_permille } => format!("truncate{query_permille}"),
        Cut::LongestFirst => "longest_first".to_owned(),
        Cut::DocumentOnly => "document_only".to_owned(),
        Cut::Nothing => "whole".to_owned(),
    };
    let own = |letter: char, max: &Option<u32>| max.map_or(String::new(), |max| format!("-{letter}{max}"));
    format!("{cut}-{}-{limit}{}{}", side.name(), own('q', query_max), own('d', document_max))
}

/// A device that is not here.
struct Elsewhere {
    dtype: &'static str,
}

impl Scorer for Elsewhere {
    fn score(&mut self, batch: &Packed, _: &mut [f32]) -> Result<(), ScoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let dtype = self.dtype;
        let why =
            format!("nothing here computes in {dtype}, and not all pairs were scored where something does");
        Err(ScoreError::Failed(why))
    }
}

/// Logits of one model in one precision.
struct ScoreCache {
    known: HashMap<[u8; 16], f32>,
    path: PathBuf,
    file: BufWriter<File>,
}

/// Pairs that have no scores.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The cache cannot be read or written.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The cache.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The model failed.
    #[error("the model: {0}")]
    Score(#[from] ScoreError),
    /// A logit is no number.
    #[error("the model gives {logit} for the query `{query}`")]
    NonFinite {
        /// NaN or an infinity.
        logit: f32,
        /// The query of the pair.
        query: Arc<str>,
    },
    /// A pair cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl ScoreCache {
    /// Opens a cache, or begins one. A record that was cut short is forgotten.
    ///
    /// # Errors
    /// [`CacheError::File`].
    fn open(path: &Path) -> Result<Self, CacheError> {
        let failed = |reason| CacheError::File { path: path.to_owned(), reason };
        let open = || -> std::io::Result<_> {
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
            // Two runs that append would tear each other's records.
            file.try_lock().map_err(|_| std::io::Error::other("is in use by another run"))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            file.set_len((bytes.len() - bytes.len() % RECORD) as u64)?;
            Ok((file, bytes))
        };
        let (file, bytes) = open().map_err(failed)?;
        let known = bytes.as_chunks::<RECORD>().0.iter().map(|record| {
            let (key, logit) = record.split_at(16);
            let key = key.try_into().expect("the first half is 16 bytes");
            (key, f32::from_le_bytes(logit.try_into().expect("the rest is 4 bytes")))
        });
        // A logit that is no number was never written by us.
        let known = known.filter(|(_, logit): &(_, f32)| logit.is_finite());
        Ok(Self { known: known.collect(), path: path.to_owned(), file: BufWriter::new(file) })
    }

    /// A pair's logit, if it has been scored.
    fn get(&self, query: &str, document: &str) -> Option<f32> {
        self.known.get(&key(query, document)).copied()
    }

    /// The logits of lists, all of which have been scored.
    fn logits(&self, lists: &[List]) -> Vec<Vec<f32>> {
        let logit =
            |query: &str, document: &str| self.get(query, document).expect("the list has been scored");
        let one = |list: &List| list.documents.iter().map(|document| logit(&list.query, document)).collect();
        lists.iter().map(one).collect()
    }

    /// Scores every pair of `lists` that is not known yet; `progress` hears how many pairs of all are.
    ///
    /// # Errors
    /// [`CacheError`]; what was scored before stays.
    fn complete(
        &mut self,
        lists: &[List],
        scorer: &mut dyn Scorer,
        reader: &PairReader,
        mut progress: impl FnMut(usize),
    ) -> Result<(), CacheError> {
        let mut batch = Packed::default();
        let mut waiting: Vec<([u8; 16], &List)> = Vec::new();
        let mut done = 0;
        for list in lists {
            for document in &list.documents {
                done += 1;
                let key = key(&list.query, document);
                // A pair that comes twice within one batch is rare, and only scored twice.
                if !self.known.contains_key(&key) {
                    reader.push(&list.query, document, &mut batch)?;
                    waiting.push((key, list));
                }
                if batch.tokens().0 >= BATCH_TOKENS {
                    self.score(&mut batch, &mut waiting, scorer)?;
                    progress(done);
                }
            }
        }
        self.score(&mut batch, &mut waiting, scorer)?;
        progress(done);
        Ok(())
    }

    fn score(
        &mut self,
        batch: &mut Packed,
        waiting: &mut Vec<([u8; 16], &List)>,
        scorer: &mut dyn Scorer,
    ) -> Result<(), CacheError> {
        let mut logits = vec![0.0; batch.len()];
        scorer.score(batch, &mut logits)?;
        for ((key, list), logit) in waiting.drain(..).zip(logits) {
            if !logit.is_finite() {
                return Err(CacheError::NonFinite { logit, query: list.query.clone() });
            }
            let write = self.file.write_all(&key).and_then(|()| self.file.write_all(&logit.to_le_bytes()));
            write.map_err(|reason| CacheError::File { path: self.path.clone(), reason })?;
            self.known.insert(key, logit);
        }
        batch.clear();
        self.file.flush().map_err(|reason| CacheError::File { path: self.path.clone(), reason })
    }
}

/// The pair's name in the cache.
fn key(query: &str, document: &str) -> [u8; 16] {
    let hash = Sha256::new().chain_update(query).chain_update([0]).chain_update(document).finalize();
    hash[..16].try_into().expect("a sha256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Side;

    /// Gives a pair its number of tokens, and counts pairs.
    struct Length {
        scored: usize,
        nan: bool,
    }

    impl Scorer for Length {
        fn score(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), ScoreError> {
            self.scored += batch.len();
            for (logit, length) in logits.iter_mut().zip(batch.lengths()) {
                *logit = if self.nan { f32::NAN } else { length as f32 };
            }
            Ok(())
        }
    }

    fn reader() -> PairReader {
        let tokenizer =
            Tokenizer::parse(include_bytes!("../../models/podium-student-L2-H128/tokenizer.json"));
        PairReader::new(Arc::new(tokenizer.unwrap()), 512)
    }

    fn list(query: &str, documents: &[&str]) -> List {
        List { query: query.into(), documents: documents.iter().map(|&text| text.into()).collect() }
    }

    #[test]
    fn a_pair_is_never_scored_twice_and_a_torn_record_is_scored_again() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("labels");
        let lists = [list("a", &["b", "c d"]), list("b", &["a"])];
        let complete = |lists: &[List]| {
            let mut labels = ScoreCache::open(&path).unwrap();
            let (mut scorer, mut told) = (Length { scored: 0, nan: false }, 0);
            labels.complete(lists, &mut scorer, &reader(), |done| told = done).unwrap();
            assert_eq!(told, lists.iter().map(|list| list.documents.len()).sum::<usize>());
            (scorer.scored, labels.get("a", "c d"))
        };
        assert_eq!(complete(&lists), (3, Some(6.0)));
        assert_eq!(complete(&lists), (0, Some(6.0)));
        assert_eq!(complete(&[list("a", &["b", "e"])]), (1, Some(6.0)));
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 4 * RECORD);
        std::fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
        assert_eq!(complete(&[list("a", &["b", "e"])]), (1, Some(6.0)));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn scores_of_pairs_that_are_cut_otherwise_lie_in_another_file() {
        let rows = [
            (Fit::new(512, Cut::LongestFirst), "longest_first-right-512"),
            (Fit::new(128, Cut::Share { query_permille: 750 }), "truncate750-right-128"),
            (Fit { side: Side::Left, ..Fit::new(512, Cut::DocumentOnly) }, "document_only-left-512"),
            (Fit { query_max: Some(7), ..Fit::new(9, Cut::Nothing) }, "whole-right-9-q7"),
            (Fit { document_max: Some(7), ..Fit::new(9, Cut::Nothing) }, "whole-right-9-d7"),
        ];
        for (fit, expected) in rows {
            assert_eq!(name_of(&fit), expected);
        }
    }

    #[test]
    fn a_model_that_gives_no_number_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        let mut labels = ScoreCache::open(&place.path().join("labels")).unwrap();
        let mut scorer = Length { scored: 0, nan: true };
        let error = labels.complete(&[list("why", &["b"])], &mut scorer, &reader(), |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "the model gives NaN for the query `why`");
        assert!(labels.get("why", "b").is_none());
        let error = ScoreCache::open(&place.path().join("nowhere/labels")).err().unwrap().to_string();
        assert!(error.contains("nowhere/labels: "), "{error}");
    }
}
