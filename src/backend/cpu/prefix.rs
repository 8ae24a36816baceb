//! Prefixes that pairs share. With a causal mask a token's keys and values depend only on the tokens before it, so those
//! of the template, the instruction and the query are computed once for all documents of a request, and kept for the
//! next batches.

use crate::ops::{Before, Buffer};
use crate::token::Packed;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Keys and values that a lane keeps, and that one batch adds, in bytes: over a thousand tokens of a model with 28
/// layers and 8 heads of keys in bf16. A longer prefix is shared up to here.
const BYTES_MAX: usize = 128 << 20;
/// Prefixes that a lane keeps. Each pair is compared with each of them.
const KEPT_MAX: usize = 64;
/// Tokens from which on a prefix is worth its own keys and values. Documents share fewer by chance.
const TOKENS_MIN: usize = 4;

/// A prefix is not cut into shorter parts for more threads: each part reads all weights.
pub(super) const PART_TOKENS_MIN: usize = 32;

/// The keys and values of tokens that begin a sequence.
pub(super) struct Prefix {
    /// All tokens from the first of the sequence on, with their types.
    tokens: Vec<(u32, u8)>,
    /// Has the keys and values of the first tokens.
    before: Option<Shared>,
    /// Rows of the other tokens for each layer; the thread that computes them sets one after the other.
    layers: Vec<OnceLock<Rows>>,
}

/// Rows of keys and values.
#[derive(Default)]
struct Rows {
    words: Buffer,
    stride: usize,
}

/// The first tokens of a prefix.
#[derive(Clone)]
pub(super) struct Shared {
    prefix: Arc<Prefix>,
    pub tokens: usize,
}

impl Prefix {
    fn start(&self) -> usize {
        self.before.as_ref().map_or(0, |before| before.tokens)
    }

    fn own_tokens(&self) -> usize {
        self.tokens.len() - self.start()
    }

    /// Keeps the keys and values of a layer: `width` words from `first` on of rows of `stride` words.
    pub fn set(
        &self,
        layer: usize,
        (rows, stride): (&[u32], usize),
        (first, width): (usize, usize),
        gap: usize,
    ) {
        let own_stride = width + gap;
        let mut words = Buffer::zeros(self.own_tokens() * own_stride);
        let to = words.words_mut().chunks_exact_mut(own_stride);
        for (to, row) in to.zip(rows.chunks_exact(stride)) {
            to[..width].copy_from_slice(&row[first..first + width]);
        }
        let is_first = self.layers[layer].set(Rows { words, stride: own_stride }).is_ok();
        assert!(is_first, "one thread computes a prefix");
    }

    /// Lets threads that wait for layers go on after a panic: they find no rows, and panic too.
    pub fn give_up(&self) {
        self.layers.iter().for_each(|layer| drop(layer.set(Rows::default())));
    }
}

impl Shared {
    /// The first `tokens` of a prefix, by the prefix that has the last of them.
    fn of(prefix: &Arc<Prefix>, tokens: usize) -> Self {
        match &prefix.before {
            Some(before) if tokens <= before.tokens => Self::of(&before.prefix, tokens),
            _ => Self { prefix: prefix.clone(), tokens },
        }
    }

    /// Appends a layer's keys and values, and waits until they are computed.
    pub fn read<'a>(&'a self, layer: usize, parts: &mut Vec<Before<'a>>) {
        if let Some(before) = &self.prefix.before {
            before.read(layer, parts);
        }
        let Rows { words, stride } = self.prefix.layers[layer].wait();
        parts.push(Before {
            words: words.words(),
            stride: *stride,
            tokens: self.tokens - self.prefix.start(),
        });
    }
}

/// Tokens of one sequence that are computed together.
pub(super) struct Span {
    /// Which of the batch's.
    pub tokens: Range<usize>,
    /// What stands before them.
    pub before: Option<Shared>,
    pub end: End,
}

/// What follows a span.
pub(super) enum End {
    /// Other spans, which read its keys and values.
    Prefix(Arc<Prefix>),
    /// Nothing: it ends the batch's sequence with this number.
    Sequence(usize),
}

impl Span {
    /// The place of its first token in the sequence.
    pub fn place(&self) -> usize {
        self.before.as_ref().map_or(0, |before| before.tokens)
    }
}

/// What a model's keys and values of a token take, where its pairs may share them.
#[derive(Clone, Copy)]
pub(super) struct Sharing {
    pub layers: usize,
    pub token_bytes: usize,
}

/// The prefixes of a lane.
#[derive(Default)]
pub(super) struct Prefixes {
    /// Those used last stand last, and each behind all that read it: the first one is read by none.
    kept: Vec<Arc<Prefix>>,
    /// The last sequence of the last batch: what it shares with the next one is likely to come again.
    last: Vec<(u32, u8)>,
}

impl Prefixes {
    /// The spans of a batch: prefixes of at least [`TOKENS_MIN`] tokens that follow each other in a sequence and its
    /// neighbour become spans of at most `tokens_max` tokens, unless they are kept. A span stands after those that it reads.
    pub fn spans(&mut self, batch: &Packed, sharing: Sharing, tokens_max: usize) -> Vec<Span> {
        let sequences: Vec<Vec<(u32, u8)>> = batch
            .starts()
            .windows(2)
            .map(|bounds| bounds[0] as usize..bounds[1] as usize)
            .map(|tokens| {
                batch.ids()[tokens.clone()]
                    .iter()
                    .copied()
                    .zip(batch.types()[tokens].iter().copied())
                    .collect()
            })
            .collect();
        let mut room = BYTES_MAX / sharing.token_bytes;
        let mut spans = Vec::new();
        for (number, tokens) in sequences.iter().enumerate() {
            let first = batch.starts()[number] as usize;
            // The head reads the last token, which is computed for every sequence.
            let own = &tokens[..tokens.len() - 1];
            let mut before = self.longest(own);
            let mut done = before.as_ref().map_or(0, |before| before.tokens);
            let next = sequences.get(number + 1).map_or(0, |next| common(own, next));
            let last = if number == 0 { common(own, &self.last) } else { 0 };
            let shared = next.max(last).saturating_sub(done).min(room);
            if shared >= TOKENS_MIN {
                room -= shared;
                let (end, parts) = (done + shared, shared.div_ceil(tokens_max));
                for part in (1..=parts).rev() {
                    let until = done + (end - done).div_ceil(part);
                    let prefix = Arc::new(Prefix {
                        tokens: own[..until].to_vec(),
                        before: before.take(),
                        layers: (0..sharing.layers).map(|_| OnceLock::new()).collect(),
                    });
                    self.kept.push(prefix.clone());
                    spans.push(Span {
                        tokens: first + done..first + until,
                        before: prefix.before.clone(),
                        end: End::Prefix(prefix.clone()),
                    });
                    before = Some(Shared { prefix, tokens: until });
                    done = until;
                }
            }
            self.touch(before.as_ref());
            spans.push(Span {
                tokens: first + done..first + tokens.len(),
                before,
                end: End::Sequence(number),
            });
        }
        if let Some(last) = sequences.into_iter().next_back() {
            self.last = last;
        }
        spans
    }

    /// Drops the prefixes that were not used for longest, until the rest stays within its bounds.
    pub fn trim(&mut self, sharing: Sharing) {
        let mut tokens: usize = self.kept.iter().map(|prefix| prefix.own_tokens()).sum();
        while tokens * sharing.token_bytes > BYTES_MAX || self.kept.len() > KEPT_MAX {
            tokens -= self.kept.remove(0).own_tokens();
        }
    }

    /// The longest prefix of a sequence that is kept, in whole or in part.
    fn longest(&self, tokens: &[(u32, u8)]) -> Option<Shared> {
        let lengths = self.kept.iter().map(|prefix| (common(&prefix.tokens, tokens), prefix));
        let (length, prefix) = lengths.max_by_key(|&(length, _)| length)?;
        (length >= TOKENS_MIN).then(|| Shared::of(prefix, length))
    }

    /// Moves a prefix and all that it reads behind the others.
    fn touch(&mut self, mut shared: Option<&Shared>) {
        while let Some(Shared { prefix, .. }) = shared {
            if let Some(place) = self.kept.iter().position(|kept| Arc::ptr_eq(kept, prefix)) {
                let kept = self.kept.remove(place);
                self.kept.push(kept);
            }
            shared = prefix.before.as_ref();
        }
    }
}

/// How many tokens two sequences have in common from the first on.
fn common(one: &[(u32, u8)], other: &[(u32, u8)]) -> usize {
    std::iter::zip(one, other).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARING: Sharing = Sharing { layers: 1, token_bytes: 1024 };

    /// A batch of texts, a token for each byte.
    fn batch(texts: &[String]) -> Packed {
        let mut batch = Packed::default();
        texts.iter().for_each(|text| batch.push(text.bytes().map(|byte| (byte.into(), 0))));
        batch
    }

    /// The spans of texts: each with its place, its text, and `+` behind a prefix. What they read is checked.
    fn spans(prefixes: &mut Prefixes, texts: &[&str], tokens_max: usize) -> Vec<String> {
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        let batch = batch(&texts);
        let spans = prefixes.spans(&batch, SHARING, tokens_max);
        let mut sequence = 0;
        let mut said = Vec::new();
        for span in &spans {
            let text: String =
                batch.ids()[span.tokens.clone()].iter().map(|&id| char::from(id as u8)).collect();
            let place = span.place();
            assert_eq!(texts[sequence][place..][..text.len()], text);
            let mut read = span.before.as_ref();
            while let Some(Shared { prefix, tokens }) = read {
                let known: String = prefix.tokens.iter().map(|&(id, _)| char::from(id as u8)).collect();
                assert_eq!(known[..*tokens], texts[sequence][..*tokens]);
                assert!(*tokens > prefix.start(), "rows are read of each part");
                read = prefix.before.as_ref();
            }
            match span.end {
                End::Prefix(_) => said.push(format!("{place}:{text}+")),
                End::Sequence(number) => {
                    assert_eq!((number, place + text.len()), (sequence, texts[sequence].len()));
                    said.push(format!("{place}:{text}"));
                    sequence += 1;
                }
            }
        }
        assert_eq!(sequence, texts.len());
        drop(spans);
        prefixes.trim(SHARING);
        said
    }

    #[test]
    fn what_neighbours_share_is_computed_once() {
        let mut prefixes = Prefixes::default();
        let first = ["template query-1 ab", "template query-1 c", "template query-1 a"];
        let found = spans(&mut prefixes, &first, 100);
        assert_eq!(found, ["0:template query-1 +", "17:ab", "17:c", "17:a"]);
        assert_eq!(spans(&mut prefixes, &first[..1], 100), ["17:ab"], "the next batch reads it");
        // Another request reads the part that it shares, and one that is alone too.
        let found = spans(&mut prefixes, &["template query-2 is long a", "template query-2 is long b"], 100);
        assert_eq!(found, ["15:2 is long +", "25:a", "25:b"]);
        assert_eq!(spans(&mut prefixes, &["template query-3"], 100), ["15:3"]);
        // Of equal pairs the last token is computed; few tokens are not kept.
        assert_eq!(spans(&mut prefixes, &["few"; 2], 100), ["0:few", "0:few"]);
        let equal = ["another text; "; 3];
        assert_eq!(spans(&mut prefixes, &equal, 100), ["0:another text;+", "13: ", "13: ", "13: "]);
        assert_eq!(spans(&mut prefixes, &[], 100), [""; 0]);
    }

    #[test]
    fn what_single_pairs_share_is_kept_from_the_second_on() {
        let mut prefixes = Prefixes::default();
        assert_eq!(spans(&mut prefixes, &["template one"], 100), ["0:template one"]);
        assert_eq!(spans(&mut prefixes, &["template two"], 100), ["0:template +", "9:two"]);
        assert_eq!(spans(&mut prefixes, &["template three"], 100), ["9:three"]);
    }

    #[test]
    fn a_long_prefix_is_cut_into_even_parts() {
        let mut prefixes = Prefixes::default();
        let found = spans(&mut prefixes, &["0123456789abcdefghij-1", "0123456789abcdefghij-2"], 10);
        assert_eq!(found, ["0:0123456+", "7:789abcd+", "14:efghij-+", "21:1", "21:2"]);
        assert_eq!(spans(&mut prefixes, &["0123456789abc"], 10), ["12:c"]);
    }

    #[test]
    fn the_prefixes_used_last_are_kept_within_bounds() {
        let mut prefixes = Prefixes::default();
        let mut pairs =
            |text: &str| spans(&mut prefixes, &[&format!("{text}1"), &format!("{text}2")], 8).len();
        assert_eq!(pairs("the template "), 2 + 2);
        for number in 0..1000 {
            assert_eq!(pairs(&format!("{number:07} request")), 2 + 2);
            assert_eq!(pairs("the template "), 2, "it is in use");
        }
        assert_eq!(prefixes.kept.len(), KEPT_MAX);
        // A prefix is dropped before those that it reads.
        for (place, prefix) in prefixes.kept.iter().enumerate() {
            let Some(before) = &prefix.before else { continue };
            assert!(prefixes.kept[place..].iter().any(|kept| Arc::ptr_eq(kept, &before.prefix)));
        }
    }

    #[test]
    fn a_prefix_is_shared_as_far_as_there_is_memory() {
        let mut prefixes = Prefixes::default();
        let text = "x".repeat(BYTES_MAX / SHARING.token_bytes + 10);
        let found = spans(&mut prefixes, &[&format!("{text}1"), &format!("{text}2")], usize::MAX);
        assert_eq!(
            (found.len(), &found[1][..], &found[2][..]),
            (3, "131072:xxxxxxxxxx1", "131072:xxxxxxxxxx2")
        );
        assert_eq!(spans(&mut prefixes, &["y2345678+1", "y2345678+2"], 100).len(), 3);
        assert_eq!(prefixes.kept.len(), 1, "the older one is dropped");
    }
}
