//! Tokenises requests: a bounded pool of threads, and a cache of texts.
//!
//! A request waits once and is then read in chunks; after each chunk it goes to the back of the queue, so that a
//! request of ten thousand documents does not block small ones.

use super::ModelSetup;
use super::pairs::{Pairs, Part, Prepared};
use super::reading::{CHUNK, Reading};
use super::served::{Candidates, Served};
use crate::base::Ns;
use crate::rerank::{PairTokens, Policy, Refusal, Request, TruncationDefaults};
use crate::token::{TokenCache, Tokenizer};
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

/// The limits of tokenisation, each with its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrepareLimits {
    /// Threads that tokenise. Few, because the lanes need the other cores.
    pub threads: usize,
    /// Most requests that wait for the threads. Bounds memory and the wait.
    pub queued_max: usize,
    /// Most bytes of cached texts, per tokenizer.
    pub cache_bytes_max: u64,
    /// Up to this many bytes of new text are tokenised by the calling thread: the pool would take as long.
    pub inline_bytes_max: usize,
}

impl Default for PrepareLimits {
    fn default() -> Self {
        Self { threads: 1, queued_max: 1_024, cache_bytes_max: 256 << 20, inline_bytes_max: 2_048 }
    }
}

/// A handle to the pool. Its threads end when it is dropped.
pub(super) struct Prepare {
    /// The tokenizers of the models that serve, each with its cache.
    encoders: Mutex<Vec<Weak<Encoder>>>,
    lookups: Arc<Lookups>,
    truncation: TruncationDefaults,
    /// The queue of requests; `None` ends a thread.
    line: Sender<Option<Weak<Reading>>>,
    waiting: AtomicUsize,
    limits: PrepareLimits,
}

/// How a model reads pairs.
#[derive(Clone)]
pub(super) struct Reader {
    pub encoder: Arc<Encoder>,
    pub pair_tokens_max: u32,
    pub shares_prefixes: bool,
}

impl PartialEq for Reader {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.encoder, &other.encoder)
            && (self.pair_tokens_max, self.shares_prefixes) == (other.pair_tokens_max, other.shares_prefixes)
    }
}

/// A tokenizer with its cache. Models with the same tokenizer share it.
pub(super) struct Encoder {
    pub tokenizer: Arc<Tokenizer>,
    pub cache: TokenCache,
    lookups: Arc<Lookups>,
}

impl Drop for Encoder {
    fn drop(&mut self) {
        let (hits, misses) = self.cache.lookups();
        self.lookups.hits.fetch_add(hits, Ordering::Relaxed);
        self.lookups.misses.fetch_add(misses, Ordering::Relaxed);
    }
}

/// Lookups in caches that are gone.
#[derive(Default)]
struct Lookups {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Prepare {
    /// Starts the threads.
    pub fn start(truncation: TruncationDefaults, limits: PrepareLimits) -> Self {
        let (line, receiver) = unbounded();
        for number in 0..limits.threads.max(1) {
            let (line, receiver) = (line.clone(), receiver.clone());
            thread::Builder::new()
                .name(format!("tokenise-{number}"))
                .spawn(move || read_in_turn(&receiver, &line))
                .expect("the system has room for one more thread");
        }
        let (encoders, lookups, waiting) = (Mutex::default(), Arc::default(), AtomicUsize::new(0));
        Self { encoders, lookups, truncation, line, waiting, limits }
    }

    /// How a model reads pairs. Models with one tokenizer share its cache.
    pub fn reader(&self, model: &ModelSetup) -> Reader {
        let ModelSetup { tokenizer, pair_tokens_max, shares_prefixes, .. } = model;
        let mut encoders = self.encoders.lock().unwrap_or_else(PoisonError::into_inner);
        encoders.retain(|encoder| encoder.strong_count() > 0);
        let known = encoders.iter().filter_map(Weak::upgrade);
        let known = { known }.find(|encoder| Arc::ptr_eq(&encoder.tokenizer, tokenizer));
        let encoder = known.unwrap_or_else(|| {
            let (tokenizer, lookups) = (tokenizer.clone(), self.lookups.clone());
            let cache = TokenCache::new(self.limits.cache_bytes_max);
            let encoder = Arc::new(Encoder { tokenizer, cache, lookups });
            encoders.push(Arc::downgrade(&encoder));
            encoder
        });
        Reader { encoder, pair_tokens_max: *pair_tokens_max, shares_prefixes: *shares_prefixes }
    }

    /// Hits and misses of the caches since the start.
    pub fn lookups(&self) -> (u64, u64) {
        let gone = (self.lookups.hits.load(Ordering::Relaxed), self.lookups.misses.load(Ordering::Relaxed));
        let encoders = self.encoders.lock().unwrap_or_else(PoisonError::into_inner);
        let each = encoders.iter().filter_map(Weak::upgrade).map(|encoder| encoder.cache.lookups());
        each.fold(gone, |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Tokenises a request's pairs for each model that its policy may use. A model that the policy can do without has no
    /// part if one of the pairs is too long for it.
    ///
    /// # Errors
    /// A text that does not fit, named by its field; or a full queue.
    pub async fn prepare(
        &self,
        request: &Arc<Request>,
        policy: Policy,
        mut candidates: Candidates,
    ) -> Result<Prepared, Refusal> {
        match policy {
            Policy::Fallback => candidates.primaries.clear(),
            Policy::Full if !candidates.primaries.is_empty() => candidates.fallback = None,
            Policy::Auto | Policy::TopK | Policy::Full => {}
        }
        check(request, &candidates)?;
        let reading = Arc::new(Reading::new(request.clone(), &candidates));
        if reading.look_up() <= self.limits.inline_bytes_max {
            reading.read(0..reading.texts());
        } else {
            let waiting = Waiting::enter(&self.waiting, self.limits.queued_max)?;
            // Each thread may take one of its chunks.
            for _ in 0..self.limits.threads.clamp(1, reading.texts().div_ceil(CHUNK)) {
                let _ = self.line.send(Some(Arc::downgrade(&reading)));
            }
            reading.done.notified().await;
            drop(waiting);
        }
        self.fit(&reading, policy, candidates)
    }

    fn fit(&self, reading: &Reading, policy: Policy, candidates: Candidates) -> Result<Prepared, Refusal> {
        if let Some((text, message)) = reading.failed.get() {
            return Err(Refusal::Invalid { field: reading.field(*text), message: message.clone() });
        }
        let mut known: Vec<(Reader, Result<Pairs, Refusal>)> = Vec::new();
        let mut part = |model: Arc<Served>| -> Result<Part, Refusal> {
            let reader = &model.reader;
            let pairs = match known.iter().find(|(other, _)| other == reader) {
                Some((_, pairs)) => pairs.clone(),
                None => {
                    let pairs = reading.pairs(reader, &self.truncation);
                    known.push((reader.clone(), pairs.clone()));
                    pairs
                }
            };
            Ok(Part { pairs: pairs?, model })
        };
        let Candidates { primaries, fallback } = candidates;
        let has_primary = !primaries.is_empty();
        let mut parts = SmallVec::new();
        for model in primaries {
            match part(model) {
                Ok(part) => parts.push(part),
                // No other model is a substitute for the preferred one that cannot read the request.
                Err(refusal) if parts.is_empty() => return Err(refusal),
                Err(_) => {}
            }
        }
        // The fallback is a help to `auto`, which does without it.
        let is_needed = !has_primary || policy == Policy::TopK;
        let fallback = match fallback.map(part) {
            Some(Err(refusal)) if is_needed => return Err(refusal),
            fallback => fallback.and_then(Result::ok),
        };
        let candidates = reading.request.documents.len();
        Ok(Prepared { candidates, primaries: parts, fallback })
    }
}

/// Checks a limit that the caller holds the model to: the preferred primary, or the fallback if there is none.
fn check(request: &Request, candidates: &Candidates) -> Result<(), Refusal> {
    let model = candidates.primaries.first().or(candidates.fallback.as_ref());
    let reads = model.map_or(u32::MAX, |model| model.setup.pair_tokens_max);
    match request.truncation.pair_tokens {
        PairTokens::Within(tokens) if tokens > reads => Err(Refusal::Invalid {
            field: "pair_tokens_max".to_owned(),
            message: format!("{tokens} is more than the {reads} tokens that the model reads"),
        }),
        PairTokens::Within(_) | PairTokens::AtMost(_) | PairTokens::Model => Ok(()),
    }
}

impl Drop for Prepare {
    fn drop(&mut self) {
        for _ in 0..self.limits.threads.max(1) {
            let _ = self.line.send(None);
        }
    }
}

/// A place in the queue for the pool.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, max: usize) -> Result<Self, Refusal> {
        let place = Self(count);
        if count.fetch_add(1, Ordering::Relaxed) >= max {
            return Err(Refusal::Overloaded { retry_after: Ns::from_millis(1_000) });
        }
        Ok(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn read_in_turn(line: &Receiver<Option<Weak<Reading>>>, back: &Sender<Option<Weak<Reading>>>) {
    while let Ok(Some(reading)) = line.recv() {
        let Some(reading) = reading.upgrade() else { continue };
        if reading.read_chunk() {
            let _ = back.send(Some(Arc::downgrade(&reading)));
        }
    }
}
