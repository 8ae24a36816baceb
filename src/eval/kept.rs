//! A model whose scores are cached on disk, so that no pair is scored twice.

use super::{Candidate, Judged};
use crate::backend::{Precision, ScoreError, Scorer, Unsupported, open};
use crate::base::Tier;
use crate::model::{Model, fit};
use crate::rerank::{Truncation, TruncationDefaults};
use crate::token::{Cut, Fit, Packed, PairReader, ReadError, TokenizerError};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Tokens of a batch; few enough that little is lost on an interruption.
const BATCH_TOKENS: u64 = 16_384;
/// A record: half a sha256 of the pair, and the logit.
const RECORD: usize = 20;

/// A query and its candidates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The query.
    pub query: Arc<str>,
    /// The candidates.
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

/// A model with its score cache.
pub struct CachedScorer {
    /// The model.
    pub scorer: Box<dyn Scorer>,
    /// Tokenises its pairs.
    pub reader: PairReader,
    /// The data type of its linear maps.
    pub dtype: &'static str,
    cache: ScoreCache,
}

/// Why a model cannot be opened.
#[derive(Debug, Error)]
pub enum CachedScorerError {
    /// This machine lacks the precision.
    #[error("precision: {0}")]
    Precision(#[from] Unsupported),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The cache cannot be used.
    #[error("scores: {0}")]
    Cache(#[from] CacheError),
}

impl CachedScorer {
    /// Opens a tier's model on the best device of this machine. The cache is a file in `folder`, named by model, data type
    /// and truncation.
    ///
    /// # Errors
    /// [`CachedScorerError`].
    pub fn open(
        tier: Tier,
        model: &Model,
        (precision, threads): (Precision, usize),
        truncation: &Truncation,
        folder: &Path,
    ) -> Result<Self, CachedScorerError> {
        let (scorer, dtype) = open(tier, model, precision, threads)?;
        Self::with((scorer, dtype), model, truncation, folder)
    }

    /// Opens only the cache of scores in `dtype`. Scoring any other pair is an error.
    ///
    /// # Errors
    /// [`CachedScorerError`].
    pub fn from_cache(
        model: &Model,
        dtype: &'static str,
        truncation: &Truncation,
        folder: &Path,
    ) -> Result<Self, CachedScorerError> {
        Self::with((Box::new(NoDevice { dtype }), dtype), model, truncation, folder)
    }

    fn with(
        (scorer, dtype): (Box<dyn Scorer>, &'static str),
        model: &Model,
        truncation: &Truncation,
        folder: &Path,
    ) -> Result<Self, CachedScorerError> {
        let tokenizer = model.read_tokenizer()?;
        let fit = fit(truncation, &TruncationDefaults::default(), model.pair_tokens_max);
        let name = format!("scores-{}-{dtype}-{}.bin", model.identity, name_of(&fit));
        let cache = ScoreCache::open(&folder.join(name))?;
        let reader = PairReader { tokenizer, fit };
        Ok(Self { scorer, reader, dtype, cache })
    }

    /// The logits of lists; scores the pairs that are not in the cache. `progress` gets the number of pairs that are done.
    ///
    /// # Errors
    /// [`CacheError`]. Scores made before the error stay in the cache.
    pub fn logits(
        &mut self,
        lists: &[List],
        progress: impl FnMut(usize),
    ) -> Result<Vec<Vec<f32>>, CacheError> {
        self.cache.complete(lists, &mut *self.scorer, &self.reader, progress)?;
        Ok(self.cache.logits(lists))
    }
}

/// The part of the file name for the truncation, on which scores depend.
fn name_of(fit: &Fit) -> String {
    let Fit { limit, query_max, document_max, cut, side } = fit;
    let cut = match cut {
        Cut::Share { query_permille } => format!("truncate{query_permille}"),
        Cut::LongestFirst => "longest_first".to_owned(),
        Cut::DocumentOnly => "document_only".to_owned(),
        Cut::End => "end".to_owned(),
        Cut::Nothing => "whole".to_owned(),
    };
    let own = |letter: char, max: &Option<u32>| max.map_or(String::new(), |max| format!("-{letter}{max}"));
    format!("{cut}-{}-{limit}{}{}", side.name(), own('q', query_max), own('d', document_max))
}

/// Stands for a device that this machine lacks.
struct NoDevice {
    dtype: &'static str,
}

impl Scorer for NoDevice {
    fn score(&mut self, batch: &Packed, _: &mut [f32]) -> Result<(), ScoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let dtype = self.dtype;
        let why =
            format!("some pairs have no cached score, and no device of this machine computes in {dtype}");
        Err(ScoreError::Failed(why))
    }
}

/// Logits of one model in one precision.
struct ScoreCache {
    known: HashMap<[u8; 16], f32>,
    path: PathBuf,
    file: BufWriter<File>,
}

/// Why pairs have no scores.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The cache cannot be read or written.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The cache.
        path: PathBuf,
        /// The system's error.
        reason: std::io::Error,
    },
    /// The model failed.
    #[error("the model: {0}")]
    Score(#[from] ScoreError),
    /// A logit is not finite.
    #[error("the model gives {logit} for the query `{query}`")]
    NonFinite {
        /// NaN or an infinity.
        logit: f32,
        /// The query of the pair.
        query: Arc<str>,
    },
    /// A pair cannot be tokenised.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl ScoreCache {
    /// Opens or creates a cache. An incomplete last record is dropped.
    ///
    /// # Errors
    /// [`CacheError::File`].
    fn open(path: &Path) -> Result<Self, CacheError> {
        let failed = |reason| CacheError::File { path: path.to_owned(), reason };
        let open = || -> std::io::Result<_> {
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
            // Locked, because records of two runs that append would interleave.
            file.try_lock().map_err(|_| std::io::Error::other("another run uses this file"))?;
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
        // We never write a logit that is not finite; such a record is damaged.
        let known = known.filter(|(_, logit): &(_, f32)| logit.is_finite());
        Ok(Self { known: known.collect(), path: path.to_owned(), file: BufWriter::new(file) })
    }

    /// A pair's logit, if it has been scored.
    fn get(&self, query: &str, document: &str) -> Option<f32> {
        self.known.get(&key(query, document)).copied()
    }

    /// The logits of lists. All pairs must have been scored.
    fn logits(&self, lists: &[List]) -> Vec<Vec<f32>> {
        let logit =
            |query: &str, document: &str| self.get(query, document).expect("the list has been scored");
        let one = |list: &List| list.documents.iter().map(|document| logit(&list.query, document)).collect();
        lists.iter().map(one).collect()
    }

    /// Scores the pairs that are not in the cache. `progress` gets the number of pairs that are done.
    ///
    /// # Errors
    /// [`CacheError`]. Scores made before the error stay in the cache.
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
                // A pair that occurs twice within one batch is scored twice; that is rare.
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

/// The key of a pair.
fn key(query: &str, document: &str) -> [u8; 16] {
    let hash = Sha256::new().chain_update(query).chain_update([0]).chain_update(document).finalize();
    hash[..16].try_into().expect("a sha256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Side;
    use crate::token::Tokenizer;

    /// Scores a pair by its number of tokens, and counts pairs.
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
