//! A batch without padding: the pairs of many requests, packed end to end.

use crate::base::Tokens;

/// Token ids of several sequences, end to end; sequence `i` is `ids[starts[i]..starts[i + 1]]`.
///
/// Positions are not stored: they count from zero in each sequence, and the encoder adds its offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    ids: Vec<u32>,
    types: Vec<u8>,
    starts: Vec<u32>,
}

impl Default for Packed {
    fn default() -> Self {
        Self { ids: Vec::new(), types: Vec::new(), starts: vec![0] }
    }
}

impl Packed {
    /// Appends a sequence of `(token id, token type)`, which must not be empty.
    pub fn push(&mut self, sequence: impl IntoIterator<Item = (u32, u8)>) {
        for (id, kind) in sequence {
            self.extend(&[id], kind);
        }
        self.finish();
    }

    /// Appends a sequence of `length` tokens for a measurement of time: its first tokens are a number in base 20, so that
    /// sequences of different numbers have no prefix in common that a scorer would compute once.
    pub fn push_numbered(&mut self, number: u64, length: u32) {
        self.push((0..length).map(|place| (1 + (number / 20_u64.pow(place.min(9)) % 20) as u32, 0)));
    }

    /// Appends tokens of one type to the sequence that [`Packed::finish`] will end.
    pub fn extend(&mut self, ids: &[u32], kind: u8) {
        self.ids.extend_from_slice(ids);
        self.types.resize(self.ids.len(), kind);
    }

    /// Ends a sequence, which must not be empty.
    pub fn finish(&mut self) {
        let end = u32::try_from(self.ids.len()).expect("a batch has fewer than 2^32 tokens");
        assert!(self.starts.last().is_some_and(|&start| start < end), "a sequence has at least one token");
        self.starts.push(end);
    }

    /// Empties the batch but keeps its allocation.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.types.clear();
        self.starts.truncate(1);
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens over all sequences.
    pub fn tokens(&self) -> Tokens {
        Tokens(self.ids.len() as u64)
    }

    /// Token ids, `[tokens]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Token types (segments), `[tokens]`.
    pub fn types(&self) -> &[u8] {
        &self.types
    }

    /// The start of each sequence, and at the end the number of tokens: `[sequences + 1]`.
    pub fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Lengths of the sequences, in order.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.starts.windows(2).map(|pair| pair[1] - pair[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_lie_end_to_end() {
        let mut batch = Packed::default();
        batch.push([(101, 0), (102, 1)]);
        batch.push([(7, 0)]);
        assert_eq!(batch.starts(), [0, 2, 3]);
        assert_eq!(batch.lengths().collect::<Vec<_>>(), [2, 1]);
        assert_eq!((batch.ids(), batch.types()), (&[101, 102, 7][..], &[0, 1, 0][..]));
        assert_eq!((batch.len(), batch.tokens(), batch.is_empty()), (2, Tokens(3), false));
        batch.clear();
        assert_eq!(batch, Packed::default());
        assert_eq!((batch.len(), batch.tokens(), batch.is_empty()), (0, Tokens(0), true));
    }

    #[test]
    fn numbered_sequences_begin_differently() {
        let mut batch = Packed::default();
        (0..8_000).for_each(|number| batch.push_numbered(number, 12));
        let begun: std::collections::BTreeSet<&[u32]> = batch.ids().chunks(12).map(|ids| &ids[..3]).collect();
        assert_eq!(begun.len(), 8_000);
        assert!(batch.lengths().all(|length| length == 12));
        assert!(batch.ids().iter().all(|id| (1..21).contains(id)));
    }

    #[test]
    #[should_panic(expected = "a sequence has at least one token")]
    fn an_empty_sequence_is_a_bug() {
        Packed::default().push([]);
    }
}
