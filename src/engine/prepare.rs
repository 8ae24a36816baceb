//! Tokenises requests: a bounded pool of threads, and a cache of texts.
//!
//! A request waits once and is then read in chunks; after each chunk it goes to the back of the queue, so that a
//! request of ten thousand documents does not block small ones.

use super::TierSetup;
use super::pairs::{Pairs, Prepared};
use crate::base::{Ns, PerTier, Tier};
use crate::model::fit;
use crate::rerank::{PairTokens, Policy, Query, Refusal, Request, TruncationDefaults};
use crate::token::{FitError, Pair, TokenCache, Tokenizer};
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use tokio::sync::Notify;

/// Texts that a thread reads before it turns to another request: about 5 ms of work.
const CHUNK: usize = 32;

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
    encoders: Arc<[Encoder]>,
    tiers: PerTier<Option<Reader>>,
    truncation: TruncationDefaults,
    /// The queue of requests; `None` ends a thread.
    line: Sender<Option<Weak<Reading>>>,
    waiting: AtomicUsize,
    limits: PrepareLimits,
}

/// How a tier reads pairs.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Reader {
    /// The position of its encoder.
    encoder: usize,
    pair_tokens_max: u32,
    shares_prefixes: bool,
}

/// A tokenizer with its cache. Tiers with the same tokenizer share it.
struct Encoder {
    tokenizer: Arc<Tokenizer>,
    cache: TokenCache,
}

/// A request that is being read. The waiting caller owns it, so that the queue finds nothing after the client has left.
struct Reading {
    request: Arc<Request>,
    encoders: Arc<[Encoder]>,
    /// Ids of each text, by encoder; queries first, then documents, then the instruction.
    ids: Vec<Vec<OnceLock<Arc<[u32]>>>>,
    queries: usize,
    /// The next text that no thread has taken.
    next: AtomicUsize,
    /// The number of texts that are not read.
    left: AtomicUsize,
    failed: OnceLock<(usize, String)>,
    done: Notify,
}

/// What a text of a request is.
#[derive(Clone, Copy)]
enum Text {
    Query,
    /// With its place among the documents.
    Document(usize),
    Instruction,
}

impl Prepare {
    /// Starts the threads.
    pub fn start(
        tiers: &PerTier<Option<TierSetup>>,
        truncation: TruncationDefaults,
        limits: PrepareLimits,
    ) -> Self {
        let mut encoders: Vec<Encoder> = Vec::new();
        let tiers = PerTier::from_fn(|tier| {
            let TierSetup { tokenizer, pair_tokens_max, shares_prefixes, .. } = tiers[tier].as_ref()?;
            let known = encoders.iter().position(|encoder| Arc::ptr_eq(&encoder.tokenizer, tokenizer));
            let encoder = known.unwrap_or_else(|| {
                let cache = TokenCache::new(limits.cache_bytes_max);
                encoders.push(Encoder { tokenizer: tokenizer.clone(), cache });
                encoders.len() - 1
            });
            let (pair_tokens_max, shares_prefixes) = (*pair_tokens_max, *shares_prefixes);
            Some(Reader { encoder, pair_tokens_max, shares_prefixes })
        });
        let (line, receiver) = unbounded();
        for number in 0..limits.threads.max(1) {
            let (line, receiver) = (line.clone(), receiver.clone());
            thread::Builder::new()
                .name(format!("tokenise-{number}"))
                .spawn(move || read_in_turn(&receiver, &line))
                .expect("the system has room for one more thread");
        }
        Self { encoders: encoders.into(), tiers, truncation, line, waiting: AtomicUsize::new(0), limits }
    }

    /// Hits and misses of the caches since the start.
    pub fn lookups(&self) -> (u64, u64) {
        let each = self.encoders.iter().map(|encoder| encoder.cache.lookups());
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Tokenises a request's pairs for every tier. A tier that the policy can do without gets no pairs if one is too long
    /// for its model, and then has no part in the answer.
    ///
    /// # Errors
    /// A text that does not fit, named by its field; or a full queue.
    pub async fn prepare(&self, request: &Arc<Request>, policy: Policy) -> Result<Prepared, Refusal> {
        self.check(request, policy)?;
        let reading = Arc::new(Reading::new(request.clone(), self.encoders.clone()));
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
        self.fit(&reading, policy)
    }

    /// Checks a limit that the caller holds the model to: the fallback by that policy, else the primary if there is one.
    fn check(&self, request: &Request, policy: Policy) -> Result<(), Refusal> {
        let primary = self.tiers.primary.filter(|_| policy != Policy::Fallback);
        let reads = primary.or(self.tiers.fallback).map_or(u32::MAX, |reader| reader.pair_tokens_max);
        match request.truncation.pair_tokens {
            PairTokens::Within(tokens) if tokens > reads => Err(Refusal::Invalid {
                field: "pair_tokens_max".to_owned(),
                message: format!("{tokens} is more than the {reads} tokens that the model reads"),
            }),
            PairTokens::Within(_) | PairTokens::AtMost(_) | PairTokens::Model => Ok(()),
        }
    }

    fn fit(&self, reading: &Reading, policy: Policy) -> Result<Prepared, Refusal> {
        if let Some((text, message)) = reading.failed.get() {
            return Err(Refusal::Invalid { field: reading.field(*text), message: message.clone() });
        }
        let pairs = |tier: Tier| {
            let none = || Ok(Pairs::new(Vec::new()));
            self.tiers[tier].map_or_else(none, |reader| reading.pairs(reader, &self.truncation))
        };
        let primary = pairs(Tier::Primary);
        let is_same = self.tiers.primary == self.tiers.fallback;
        let fallback = if is_same { primary.clone() } else { pairs(Tier::Fallback) };
        let needed = |tier: Tier, pairs: Result<Pairs, Refusal>| match self.is_needed(tier, policy) {
            true => pairs,
            false => Ok(pairs.unwrap_or_else(|_| Pairs::new(Vec::new()))),
        };
        Ok(PerTier { primary: needed(Tier::Primary, primary)?, fallback: needed(Tier::Fallback, fallback)? })
    }

    /// Whether a tier must be able to read a request for it to be answered. The fallback is a help to `auto`, and no
    /// substitute for a primary that cannot read the request.
    fn is_needed(&self, tier: Tier, policy: Policy) -> bool {
        match (policy, tier) {
            (Policy::Auto | Policy::Full, Tier::Primary) | (Policy::TopK, _) => true,
            (Policy::Auto | Policy::Full, Tier::Fallback) => self.tiers.primary.is_none(),
            (Policy::Fallback, _) => tier == Tier::Fallback,
        }
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

impl Reading {
    fn new(request: Arc<Request>, encoders: Arc<[Encoder]>) -> Self {
        let queries = match &request.query {
            Query::Shared(_) => 1,
            Query::PerDocument(queries) => queries.len(),
        };
        let texts = queries + request.documents.len() + usize::from(request.instruction.is_some());
        let ids = encoders.iter().map(|_| (0..texts).map(|_| OnceLock::new()).collect()).collect();
        let (next, left) = (AtomicUsize::new(0), AtomicUsize::new(texts));
        let (failed, done) = (OnceLock::new(), Notify::new());
        Self { request, encoders, ids, queries, next, left, failed, done }
    }

    fn texts(&self) -> usize {
        self.queries + self.request.documents.len() + usize::from(self.request.instruction.is_some())
    }

    fn text(&self, place: usize) -> (Text, &str) {
        let Request { query, documents, instruction, .. } = &*self.request;
        match (query, place.checked_sub(self.queries)) {
            (_, Some(document)) => match documents.get(document) {
                Some(text) => (Text::Document(document), text),
                None => {
                    (Text::Instruction, instruction.as_deref().expect("the last text is the instruction"))
                }
            },
            (Query::Shared(query), None) => (Text::Query, query),
            (Query::PerDocument(queries), None) => (Text::Query, &queries[place]),
        }
    }

    /// Whether the cache may have a text: it has the ids of documents, which may not be those of a query.
    fn is_cached(encoder: &Encoder, text: Text) -> bool {
        match text {
            Text::Document(_) => true,
            Text::Query => encoder.tokenizer.reads_both_alike(),
            Text::Instruction => false,
        }
    }

    fn field(&self, place: usize) -> String {
        match (self.text(place).0, &self.request.query) {
            (Text::Document(document), _) => format!("documents[{document}]"),
            (Text::Query, Query::Shared(_)) => "query".to_owned(),
            (Text::Query, Query::PerDocument(_)) => format!("queries[{place}]"),
            (Text::Instruction, _) => "instruction".to_owned(),
        }
    }

    /// Takes texts from the caches. Returns the number of bytes that remain to be read.
    fn look_up(&self) -> usize {
        let mut bytes = 0;
        for (encoder, ids) in self.encoders.iter().zip(&self.ids) {
            for (place, slot) in ids.iter().enumerate() {
                let (kind, text) = self.text(place);
                match Self::is_cached(encoder, kind).then(|| encoder.cache.get(text)).flatten() {
                    Some(found) => slot.set(found).expect("no other thread reads yet"),
                    None => bytes += text.len().max(1),
                }
            }
        }
        bytes
    }

    /// Reads the next chunk. Returns whether another one remains.
    fn read_chunk(&self) -> bool {
        let start = self.next.fetch_add(CHUNK, Ordering::Relaxed);
        let end = (start + CHUNK).min(self.texts());
        if start >= end {
            return false;
        }
        self.read(start..end);
        // The thread that reads the last chunk wakes the caller; the release pairs with the acquire of the others.
        if self.left.fetch_sub(end - start, Ordering::AcqRel) == end - start {
            self.done.notify_one();
        }
        end < self.texts()
    }

    fn read(&self, places: Range<usize>) {
        for (encoder, ids) in self.encoders.iter().zip(&self.ids) {
            for place in places.clone().filter(|&place| ids[place].get().is_none()) {
                if self.failed.get().is_some() {
                    return;
                }
                let (kind, text) = self.text(place);
                // A panic in the library fails only this request, not the thread.
                let encode = || match kind {
                    Text::Query => encoder.tokenizer.encode_query(text),
                    Text::Document(_) => encoder.tokenizer.encode_document(text),
                    // A model without a place for it does not read it.
                    Text::Instruction => Ok(encoder.tokenizer.encode_instruction(text)?.unwrap_or_default()),
                };
                let encoded = catch_unwind(AssertUnwindSafe(encode));
                match encoded {
                    Ok(Ok(encoded)) => {
                        if Self::is_cached(encoder, kind) {
                            let key = match kind {
                                Text::Document(document) => self.request.documents[document].clone(),
                                Text::Query | Text::Instruction => text.into(),
                            };
                            encoder.cache.insert(key, encoded.clone());
                        }
                        ids[place].set(encoded).expect("each place is read by one thread");
                    }
                    Ok(Err(error)) => drop(self.failed.set((place, error.to_string()))),
                    Err(_) => {
                        drop(self.failed.set((place, "the tokenizer panicked on this text".to_owned())))
                    }
                }
            }
        }
    }

    fn pairs(
        &self,
        Reader { encoder, pair_tokens_max, shares_prefixes }: Reader,
        defaults: &TruncationDefaults,
    ) -> Result<Pairs, Refusal> {
        let request = &*self.request;
        let tokenizer = &self.encoders[encoder].tokenizer;
        let template = tokenizer.template();
        let fit = fit(&request.truncation, defaults, pair_tokens_max);
        let ids = |place: usize| self.ids[encoder][place].get().expect("every text was read").clone();
        let is_instructed = request.instruction.is_some() && tokenizer.takes_instruction();
        let instruction = is_instructed.then(|| ids(self.texts() - 1));
        let pair = |document: usize| {
            let place = if self.queries == 1 { 0 } else { document };
            let texts = [ids(place), ids(self.queries + document)];
            let fitted = Pair::instructed(instruction.clone(), texts, template, &fit);
            fitted.map_err(|error| {
                let message = error.to_string();
                match error {
                    FitError::QueryTooLong { .. } => Refusal::TooLong { field: self.field(place), message },
                    FitError::InstructionTooLong { .. } => {
                        Refusal::TooLong { field: "instruction".to_owned(), message }
                    }
                    FitError::PairTooLong { .. } => {
                        Refusal::TooLong { field: self.field(self.queries + document), message }
                    }
                    FitError::LimitTooShort { .. } => {
                        Refusal::Invalid { field: "pair_tokens_max".to_owned(), message }
                    }
                }
            })
        };
        let pairs: Result<Vec<Pair>, Refusal> = (0..request.documents.len()).map(pair).collect();
        pairs.map(|pairs| if shares_prefixes { Pairs::shared(pairs, template) } else { Pairs::new(pairs) })
    }
}
