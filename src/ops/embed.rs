//! The sum of a token's embeddings, in f32.

use super::simd::{Kernel, Simd};
use super::{Buffer, PAD};

/// A table of rows, padded with zeros to a multiple of [`PAD`].
pub struct Table {
    rows: Buffer,
    count: usize,
    stride: usize,
}

impl Table {
    /// `rows: [count, hidden]`.
    pub fn new(rows: &[f32], hidden: usize) -> Self {
        let stride = hidden.next_multiple_of(PAD);
        let count = rows.len() / hidden;
        let mut padded = Buffer::zeros(count * stride);
        for (to, from) in padded.floats_mut().chunks_exact_mut(stride).zip(rows.chunks_exact(hidden)) {
            to[..hidden].copy_from_slice(from);
        }
        Self { rows: padded, count, stride }
    }

    fn row(&self, index: usize) -> &[f32] {
        assert!(index < self.count, "row {index} of {}", self.count);
        &self.rows.floats()[index * self.stride..][..self.stride]
    }
}

/// Writes `words[ids] + positions[first_position ..] + types[types]`, `[tokens, stride]`; positions and types where there
/// are such tables. A model with one token type gives it to all tokens, whatever the tokenizer says.
///
/// # Panics
/// For an id or a position beyond its table.
pub fn embed<S: Simd>(
    simd: S,
    (words, positions, types): (&Table, Option<&Table>, Option<&Table>),
    tokens: (&[u32], &[u8]),
    first_position: usize,
    to: &mut [f32],
) {
    let is_like = |table: &Table| table.stride == words.stride;
    assert!([positions, types].into_iter().flatten().all(is_like), "tables are alike");
    assert_eq!(to.len(), tokens.0.len() * words.stride, "each token has a row");
    let rows =
        std::iter::zip(tokens.0, tokens.1).zip(to.chunks_exact_mut(words.stride)).zip(first_position..);
    for (((&id, &kind), to), position) in rows {
        to.copy_from_slice(words.row(id as usize));
        let kind = types.map(|types| types.row(usize::from(kind).min(types.count - 1)));
        match (positions.map(|positions| positions.row(position)), kind) {
            (Some(position), Some(kind)) => simd.launch(Sum { position, kind, to }),
            (Some(row), None) | (None, Some(row)) => {
                to.iter_mut().zip(row).for_each(|(to, value)| *to += value);
            }
            (None, None) => {}
        }
    }
}

struct Sum<'a> {
    position: &'a [f32],
    kind: &'a [f32],
    to: &'a mut [f32],
}

impl<S: Simd> Kernel<S> for Sum<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        for at in (0..self.to.len()).step_by(S::LANES) {
            // SAFETY: all rows have the same length, a multiple of `LANES`.
            unsafe {
                let place = simd
                    .add(simd.load(self.position.as_ptr().add(at)), simd.load(self.kind.as_ptr().add(at)));
                let sum = simd.add(simd.load(self.to.as_ptr().add(at)), place);
                simd.store(self.to.as_mut_ptr().add(at), sum);
            }
        }
    }
}
