//! The device layout of a batch (`Batch` in `kernels/base.cuh`): one allocation, one copy.

use super::kernels::TILE;

/// The header: numbers of tokens, sequences and tiles, and an unused word.
const HEADER: usize = 4;

/// Most tokens of a sequence: a tile names its sequence's length in 16 bits.
pub const PLACES_MAX: u32 = u16::MAX as u32;

/// The upper bounds of a batch. All batches of a bucket have the same launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Most tokens.
    pub tokens: u32,
    /// Most sequences.
    pub sequences: u32,
}

impl Bucket {
    /// Most tiles of attention: each sequence has at most one tile that is not full.
    pub fn tiles(&self) -> u32 {
        self.tokens / TILE + self.sequences
    }

    /// The length of a batch in words.
    pub fn words(&self) -> usize {
        HEADER + self.sequences as usize + 1 + 2 * self.tokens as usize + 2 * self.tiles() as usize
    }
}

/// The bounds of a model's embedding tables.
#[derive(Clone, Copy, Debug)]
pub struct Vocabulary {
    /// Number of token ids.
    pub ids: u32,
    /// Most tokens of a sequence.
    pub places: u32,
}

/// Writes a batch into the first `bucket.words()` of `words`. `ids`, `types: [tokens]`; sequence `i` is
/// `starts[i]..starts[i + 1]`, relative to `starts[0]`. Words past the batch's own tokens, sequences and tiles are left
/// unchanged; kernels do not read them.
///
/// # Panics
/// If the batch exceeds its bucket or a token exceeds the vocabulary.
pub fn fill_words(
    bucket: Bucket,
    vocabulary: Vocabulary,
    starts: &[u32],
    (ids, types): (&[u32], &[u8]),
    words: &mut [u32],
) {
    let (first, sequences) = (starts[0], starts.len() - 1);
    assert!(ids.len() <= bucket.tokens as usize && types.len() == ids.len(), "tokens fit their bucket");
    assert!(sequences <= bucket.sequences as usize, "sequences fit their bucket");
    assert!(ids.iter().max().is_none_or(|&id| id < vocabulary.ids), "ids are the model's");
    assert_eq!((starts[sequences] - first) as usize, ids.len(), "sequences are the tokens");
    let (header, rest) = words[..bucket.words()].split_at_mut(HEADER);
    let (to_starts, rest) = rest.split_at_mut(bucket.sequences as usize + 1);
    let (to_ids, rest) = rest.split_at_mut(bucket.tokens as usize);
    let (to_places, to_tiles) = rest.split_at_mut(bucket.tokens as usize);
    to_ids[..ids.len()].copy_from_slice(ids);
    let mut tiles = to_tiles.chunks_exact_mut(2);
    let mut tile_count = 0;
    for (bounds, to_start) in starts.windows(2).zip(&mut *to_starts) {
        let (start, length) = (bounds[0] - first, bounds[1] - bounds[0]);
        assert!((1..=vocabulary.places).contains(&length), "a sequence has places");
        assert!(length <= PLACES_MAX, "a length has 16 bits");
        *to_start = start;
        let tokens = start as usize..(start + length) as usize;
        for ((to_place, &kind), place) in to_places[tokens.clone()].iter_mut().zip(&types[tokens]).zip(0..) {
            *to_place = place | u32::from(kind) << 24;
        }
        for row in (0..length).step_by(TILE as usize) {
            let tile = tiles.next().expect("a bucket has room for its tiles");
            tile.copy_from_slice(&[start, row | length << 16]);
            tile_count += 1;
        }
    }
    to_starts[sequences..].fill(ids.len() as u32);
    header.copy_from_slice(&[ids.len() as u32, sequences as u32, tile_count, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: Bucket = Bucket { tokens: 192, sequences: 3 };
    const VOCABULARY: Vocabulary = Vocabulary { ids: 10, places: 130 };

    #[test]
    fn tokens_know_their_places_and_tiles_their_sequences() {
        let mut words = vec![0; BUCKET.words()];
        let (ids, types) = (vec![7; 133], [vec![0; 131], vec![1; 2]].concat());
        fill_words(BUCKET, VOCABULARY, &[5, 8, 138], (&ids, &types), &mut words);
        let at = |from: usize, count: usize| words[from..from + count].to_vec();
        assert_eq!(at(0, 4), [133, 2, 4, 0]);
        assert_eq!(at(4, 4), [0, 3, 133, 133], "starts, to the end of the bucket");
        assert_eq!(at(8 + 192, 5), [0, 1, 2, 0, 1]);
        assert_eq!(at(8 + 192 + 132, 2), [129 | 1 << 24, 0]);
        let long = 130 << 16;
        assert_eq!(at(8 + 384, 8), [0, 3 << 16, 3, long, 3, 64 | long, 3, 128 | long]);
    }

    #[test]
    fn the_smallest_sequences_fill_a_bucket_s_tiles() {
        let bucket = Bucket { tokens: 195, sequences: 3 };
        let starts = [0, 65, 130, 195];
        fill_words(bucket, VOCABULARY, &starts, (&[1; 195], &[0; 195]), &mut vec![0; bucket.words()]);
    }

    #[test]
    #[should_panic(expected = "ids are the model's")]
    fn an_id_of_another_model_is_refused() {
        fill_words(BUCKET, VOCABULARY, &[0, 1], (&[10], &[0]), &mut vec![0; BUCKET.words()]);
    }
}
