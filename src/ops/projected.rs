//! The rows that attention reads: a sequence's queries, and keys and values that may lie in several places.

use super::Reach;
use super::attention::Heads;
use super::distances::Distances;
use std::ops::Range;
use std::ptr::copy_nonoverlapping;

/// Queries, keys and values of a sequence, for every head, in the dtype that attention is computed in.
#[derive(Clone, Copy)]
pub struct Projected<'a> {
    /// Rows of `[heads + 2 kv_heads, size]` values, queries scaled by log2(e) / sqrt(d). On tiles up to 31 rows beyond the
    /// sequence are read and not used.
    pub words: &'a [u32],
    /// Words from row to row.
    pub stride: usize,
    /// Rows whose contexts are computed: the last ones of the sequence.
    pub tokens: usize,
    /// The sequence's tokens before those, in order.
    pub before: &'a [Before<'a>],
    /// Heads of keys and values; they divide the heads, and as many heads of queries in a row read each.
    pub kv_heads: usize,
    /// Which keys a query sees.
    pub reach: Reach,
    /// What the distances of keys from queries add to scores, where all tokens see each other.
    pub distances: Option<&'a Distances>,
}

/// Keys and values of tokens without their queries.
#[derive(Clone, Copy)]
pub struct Before<'a> {
    /// Rows of `[2 kv_heads, size]` values.
    pub words: &'a [u32],
    /// Words from row to row.
    pub stride: usize,
    /// Number of rows.
    pub tokens: usize,
}

impl<'a> Projected<'a> {
    /// Tokens before the first row.
    pub(super) fn place(&self) -> usize {
        self.before.iter().map(|part| part.tokens).sum()
    }

    /// Tokens of the whole sequence.
    pub(super) fn sequence(&self) -> usize {
        self.place() + self.tokens
    }

    /// A head's queries, and the keys and values that it reads.
    pub(super) fn parts(&self, heads: Heads, head: usize, groups: usize) -> (*const u32, [OneHead<'a>; 2]) {
        let kv_head = head / (heads.count / self.kv_heads);
        let own =
            Before { words: &self.words[heads.count * groups..], stride: self.stride, tokens: self.tokens };
        let one = |column| OneHead { before: self.before, own, first: column * groups, groups };
        (self.words[head * groups..].as_ptr(), [one(kv_head), one(self.kv_heads + kv_head)])
    }

    /// Whether a head reads other keys and values than the one before it.
    pub(super) fn begins_group(&self, heads: Heads, head: usize) -> bool {
        head.is_multiple_of(heads.count / self.kv_heads)
    }

    /// The keys that the query of a row sees.
    pub(super) fn seen(&self, row: usize) -> Range<usize> {
        self.reach.keys(self.place() + row, self.sequence())
    }

    /// The keys that rows of a tile see: from a multiple of `block` on.
    pub(super) fn keys(&self, row: usize, rows: usize, block: usize) -> Range<usize> {
        self.seen(row).start / block * block..self.seen(row + rows - 1).end
    }

    /// Whether all rows are there; `groups` words hold a head's values.
    pub(super) fn is_whole(&self, heads: Heads, groups: usize, rows: usize) -> bool {
        let is_whole = |part: &Before<'_>| {
            let width = 2 * self.kv_heads * groups;
            part.tokens > 0
                && width <= part.stride
                && part.words.len() >= (part.tokens - 1) * part.stride + width
        };
        (heads.count + 2 * self.kv_heads) * groups <= self.stride
            && self.words.len() >= rows * self.stride
            && self.before.iter().all(is_whole)
    }
}

/// The keys, or the values, of one head.
#[derive(Clone, Copy)]
pub(super) struct OneHead<'a> {
    before: &'a [Before<'a>],
    own: Before<'a>,
    /// The first word of a row.
    first: usize,
    /// Words of a row.
    groups: usize,
}

impl OneHead<'_> {
    /// Where these rows begin, and words from row to row: where they lie, or behind `aside` if they lie in several places.
    ///
    /// # Safety
    /// [`Projected::is_whole`] said that all rows are there, the sequence has these, and they have room behind `aside`.
    #[inline(always)]
    pub unsafe fn rows(&self, rows: Range<usize>, aside: *mut u32) -> (*const u32, usize) {
        let (mut start, mut row) = (0, rows.start);
        for part in self.before.iter().chain([&self.own]) {
            let end = start + part.tokens;
            if row < end && row < rows.end {
                let from = part.words.as_ptr().wrapping_add((row - start) * part.stride + self.first);
                if rows.end <= end && row == rows.start {
                    return (from, part.stride);
                }
                for taken in row..rows.end.min(end) {
                    // SAFETY: the part has the row, and the caller promises the room.
                    unsafe {
                        let to = aside.add((taken - rows.start) * self.groups);
                        copy_nonoverlapping(from.add((taken - row) * part.stride), to, self.groups);
                    }
                }
                row = rows.end.min(end);
            }
            start = end;
        }
        (aside, self.groups)
    }
}
