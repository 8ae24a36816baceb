//! A cache of tokenised texts, bounded in bytes.

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A bounded, concurrent map from texts to token ids, with S3-FIFO eviction.
pub struct TokenCache {
    entries: Cache<Arc<str>, Arc<[u32]>, Bytes>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Arc<str>, Arc<[u32]>> for Bytes {
    fn weight(&self, text: &Arc<str>, ids: &Arc<[u32]>) -> u64 {
        // Both allocations with their reference counts, and about 64 bytes of the map.
        (text.len() + 4 * ids.len() + 2 * 16 + 64) as u64
    }
}

impl TokenCache {
    /// Makes a cache of at most this many bytes, texts included; 0 caches nothing.
    pub fn new(bytes_max: u64) -> Self {
        // Sizes the map for typical passages of 500 bytes and 100 tokens.
        let entries = (bytes_max / 1000) as usize;
        Self {
            entries: Cache::with_weighter(entries.max(1), bytes_max, Bytes),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The ids of a cached text.
    pub fn get(&self, text: &str) -> Option<Arc<[u32]>> {
        let found = self.entries.get(text);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Caches a text's ids if there is room.
    pub fn insert(&self, text: Arc<str>, ids: Arc<[u32]>) {
        self.entries.insert(text, ids);
    }

    /// Hits and misses since the start.
    pub fn lookups(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    /// Bytes in the cache.
    pub fn bytes(&self) -> u64 {
        self.entries.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bytes() {
        let cache = TokenCache::new(100_000);
        for number in 0..10_000 {
            cache.insert(format!("document {number}").into(), vec![number; 50].into());
            assert!(cache.bytes() <= 100_000);
        }
        assert!(cache.bytes() > 50_000);
    }

    #[test]
    fn what_was_kept_is_found_and_counted() {
        let cache = TokenCache::new(10_000);
        assert_eq!(cache.get("a"), None);
        cache.insert("a".into(), vec![1, 2].into());
        assert_eq!(cache.get("a").as_deref(), Some(&[1, 2][..]));
        assert_eq!(cache.get("b"), None);
        assert_eq!(cache.get("c"), None);
        assert_eq!(cache.lookups(), (1, 3));
    }

    #[test]
    fn an_entry_weighs_its_text_its_ids_and_what_holds_them() {
        let cache = TokenCache::new(10_000);
        cache.insert("seven b".into(), vec![1, 2, 3].into());
        assert_eq!(cache.bytes(), 7 + 4 * 3 + 2 * 16 + 64);
        cache.insert("a".into(), vec![].into());
        assert_eq!(cache.bytes(), 115 + 97);
    }

    #[test]
    fn a_cache_of_no_bytes_keeps_nothing() {
        let cache = TokenCache::new(0);
        cache.insert("a".into(), vec![1].into());
        assert_eq!(cache.get("a"), None);
    }
}
