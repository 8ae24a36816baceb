//! Memory for vectors: words of 32 bits, aligned to a cache line.

use super::pages::ask_for_huge_pages;
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// Words in a cache line.
const LINE: usize = 16;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE]);

/// Zeroed words of 32 bits, read as bits or as floats, aligned to a cache line.
#[derive(Clone, Default)]
pub struct Buffer(Vec<Line>);

impl Buffer {
    /// `words` zeros and one more cache line, so that a whole vector can be read or written at the last word.
    pub fn zeros(words: usize) -> Self {
        let mut buffer = Self::default();
        buffer.grow(words);
        buffer
    }

    /// The same for large data that is read often, in huge pages if the system provides them.
    pub fn in_huge_pages(words: usize) -> Self {
        let lines = words.div_ceil(LINE) + 1;
        let mut memory: Vec<Line> = Vec::with_capacity(lines);
        ask_for_huge_pages(memory.as_ptr().cast(), lines * size_of::<Line>());
        memory.resize(lines, Line([0; LINE]));
        Self(memory)
    }

    /// These floats, followed by zeros.
    pub fn of(floats: &[f32]) -> Self {
        let mut buffer = Self::zeros(floats.len());
        buffer.floats_mut()[..floats.len()].copy_from_slice(floats);
        buffer
    }

    /// Grows it to the size of [`Buffer::zeros`] and keeps its contents.
    pub fn grow(&mut self, words: usize) {
        let lines = words.div_ceil(LINE) + 1;
        if lines > self.0.len() {
            self.0.resize(lines, Line([0; LINE]));
        }
    }

    /// Its words as bits.
    pub fn words(&self) -> &[u32] {
        // SAFETY: a `Line` is sixteen words without padding.
        unsafe { from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }

    /// Its words as bits.
    pub fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: a `Line` is sixteen words without padding.
        unsafe { from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }

    /// Its words as floats.
    pub fn floats(&self) -> &[f32] {
        // SAFETY: every word is a float too.
        unsafe { from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }

    /// Its words as floats.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: every word is a float too, and every float a word.
        unsafe { from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_cache_line_and_reads_both_ways() {
        let mut buffer = Buffer::of(&[1.0, -2.0]);
        buffer.grow(100);
        assert!(buffer.words().len() >= 100 && buffer.words().as_ptr().addr().is_multiple_of(64));
        assert_eq!(
            (buffer.words()[0], buffer.floats()[1], buffer.floats()[99]),
            (1.0_f32.to_bits(), -2.0, 0.0)
        );
    }

    #[test]
    fn memory_in_huge_pages_is_zeros_like_any_other() {
        for words in [1, 16, 5_000_000] {
            let buffer = Buffer::in_huge_pages(words);
            assert_eq!(buffer.words().len(), Buffer::zeros(words).words().len());
            assert!(buffer.words().iter().all(|&word| word == 0));
        }
    }
}
