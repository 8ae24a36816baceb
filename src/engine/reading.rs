//! A request that is being tokenised, by one or more threads.

use super::pairs::Pairs;
use super::prepare::{Encoder, Reader};
use super::served::Candidates;
use crate::model::fit;
use crate::rerank::{Query, Refusal, Request, TruncationDefaults};
use crate::token::{FitError, Pair};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::Notify;

/// Texts that a thread reads before it turns to another request: about 5 ms of work.
pub(super) const CHUNK: usize = 32;

/// A request that is being read. The waiting caller owns it, so that the queue finds nothing after the client has left.
pub(super) struct Reading {
    pub request: Arc<Request>,
    encoders: Vec<Arc<Encoder>>,
    /// Ids of each text, by encoder; queries first, then documents, then the instruction.
    ids: Vec<Vec<OnceLock<Arc<[u32]>>>>,
    queries: usize,
    /// The next text that no thread has taken.
    next: AtomicUsize,
    /// The number of texts that are not read.
    left: AtomicUsize,
    pub failed: OnceLock<(usize, String)>,
    pub done: Notify,
}

/// What a text of a request is.
#[derive(Clone, Copy)]
enum Text {
    Query,
    /// With its place among the documents.
    Document(usize),
    Instruction,
}

impl Reading {
    pub fn new(request: Arc<Request>, candidates: &Candidates) -> Self {
        let mut encoders: Vec<Arc<Encoder>> = Vec::new();
        for model in candidates.primaries.iter().chain(&candidates.fallback) {
            let encoder = &model.reader.encoder;
            if !encoders.iter().any(|known| Arc::ptr_eq(known, encoder)) {
                encoders.push(encoder.clone());
            }
        }
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

    pub fn texts(&self) -> usize {
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

    pub fn field(&self, place: usize) -> String {
        match (self.text(place).0, &self.request.query) {
            (Text::Document(document), _) => format!("documents[{document}]"),
            (Text::Query, Query::Shared(_)) => "query".to_owned(),
            (Text::Query, Query::PerDocument(_)) => format!("queries[{place}]"),
            (Text::Instruction, _) => "instruction".to_owned(),
        }
    }

    /// Takes texts from the caches. Returns the number of bytes that remain to be read.
    pub fn look_up(&self) -> usize {
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
    pub fn read_chunk(&self) -> bool {
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

    pub fn read(&self, places: Range<usize>) {
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

    pub fn pairs(
        &self,
        Reader { encoder, pair_tokens_max, shares_prefixes }: &Reader,
        defaults: &TruncationDefaults,
    ) -> Result<Pairs, Refusal> {
        let request = &*self.request;
        let tokenizer = &encoder.tokenizer;
        let encoder = self.encoders.iter().position(|known| Arc::ptr_eq(known, encoder));
        let encoder = encoder.expect("a request is read by the tokenizers of its models");
        let template = tokenizer.template();
        let fit = fit(&request.truncation, defaults, *pair_tokens_max);
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
        pairs.map(|pairs| if *shares_prefixes { Pairs::shared(pairs, template) } else { Pairs::new(pairs) })
    }
}
