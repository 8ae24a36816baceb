//! The inputs of linear maps: rows of words in a dtype, each with a scale.

use super::dtype::{Dtype, F32, Float};
use super::simd::tiles::BLOCK;
use super::simd::{Kernel, Simd};
use super::{Buffer, PAD};
use std::marker::PhantomData;
use std::ops::Range;

/// Unused words after each row: rows at distances of a power of two would share few cache sets.
const GAP: usize = 16;

/// Rows of words in a dtype, each with a scale.
#[derive(Default)]
pub struct Operand {
    pub(super) words: Buffer,
    pub(super) scales: Vec<f32>,
    pub(super) rows: usize,
    groups: usize,
}

/// Some of an operand's rows.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// From the first row's first word to the end of the buffer, because a tile reads beyond the last row.
    pub(super) words: &'a [u32],
    pub(super) stride: usize,
    /// Words that a row holds.
    pub(super) groups: usize,
    pub(super) scales: &'a [f32],
    pub(super) count: usize,
}

impl Rows<'_> {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The words `at..at + groups` of each row.
    pub(super) fn part(self, at: usize, groups: usize) -> Self {
        assert!(at + groups <= self.groups, "a row has these words");
        Self { words: &self.words[at..], groups, ..self }
    }
}

/// Some of an operand's rows, to be written.
pub(super) struct RowsMut<'a> {
    /// Whole rows, with their gaps.
    pub words: &'a mut [u32],
    pub stride: usize,
    pub scales: &'a mut [f32],
}

impl Operand {
    /// Makes room for a number of rows and of values per row.
    pub fn shape<S: Simd, D: Dtype<S>>(&mut self, rows: usize, values: usize) {
        assert!(values.is_multiple_of(PAD), "rows are padded");
        (self.rows, self.groups) = (rows, values / D::GROUP);
        // A tile reads a whole block of rows.
        self.words.grow(rows.next_multiple_of(BLOCK) * self.stride());
        if self.scales.len() < rows {
            self.scales.resize(rows, 1.0);
        }
    }

    pub(super) fn stride(&self) -> usize {
        self.groups + GAP
    }

    /// All rows.
    pub fn all(&self) -> Rows<'_> {
        self.range(0..self.rows)
    }

    /// Some rows; the first is a multiple of 32, so that tiles stay within the operand.
    pub fn range(&self, rows: Range<usize>) -> Rows<'_> {
        assert!(rows.start.is_multiple_of(BLOCK) && rows.end <= self.rows, "the operand has the rows");
        Rows {
            words: &self.words.words()[rows.start * self.stride()..],
            stride: self.stride(),
            groups: self.groups,
            scales: &self.scales[rows.clone()],
            count: rows.len(),
        }
    }

    /// Some rows, with the number of values that each has room for.
    pub(super) fn range_mut<S: Simd, D: Dtype<S>>(
        &mut self,
        rows: Range<usize>,
        values: usize,
    ) -> RowsMut<'_> {
        assert!(values / D::GROUP <= self.groups && rows.end <= self.rows, "the operand has the rows");
        let stride = self.stride();
        RowsMut {
            words: &mut self.words.words_mut()[rows.start * stride..rows.end * stride],
            stride,
            scales: &mut self.scales[rows],
        }
    }

    /// Takes rows of f32, `values` each, which follow one another.
    pub fn fill<S: Simd, D: Dtype<S>>(&mut self, simd: S, from: &[f32], values: usize) {
        assert!(from.len().is_multiple_of(values), "rows are whole");
        self.shape::<S, D>(from.len() / values, values);
        // SAFETY: every float is a word.
        let words = unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), from.len()) };
        self.encode::<S, D, F32>(simd, (words, values), values);
    }

    /// Takes rows of f32, as wide as its own, from one of its rows on.
    pub fn fill_at<S: Simd, D: Dtype<S>>(&mut self, simd: S, from: &[f32], first: usize) {
        let values = self.groups * D::GROUP;
        assert!(from.len().is_multiple_of(values), "rows are whole");
        // SAFETY: every float is a word.
        let words: &[u32] = unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), from.len()) };
        let RowsMut { words: to, stride, scales } =
            self.range_mut::<S, D>(first..first + from.len() / values, values);
        let (from, from_stride) = (words, values);
        simd.launch(Encode::<D, F32> { from, from_stride, values, to, stride, scales, _marker: PhantomData });
    }

    /// Takes rows of another dtype.
    pub fn fill_from<S: Simd, D: Dtype<S>, A: Float<S>>(&mut self, simd: S, from: Rows<'_>) {
        let values = from.groups * A::GROUP;
        self.shape::<S, D>(from.count, values);
        self.encode::<S, D, A>(simd, (from.words, from.stride), values);
    }

    /// Appends a row's values, which are in `A`.
    pub fn read_row<S: Simd, A: Float<S>>(&self, simd: S, row: usize, to: &mut Vec<f32>) {
        assert!(row < self.rows, "the operand has the row");
        let (start, values) = (to.len(), self.groups * A::GROUP);
        to.resize(start + values, 0.0);
        let from = &self.words.words()[row * self.stride()..][..self.groups];
        simd.launch(Read::<A> { from, to: &mut to[start..], _marker: PhantomData });
    }

    /// Encodes all rows from those in `A`, with the given number of words between rows.
    fn encode<S: Simd, D: Dtype<S>, A: Float<S>>(
        &mut self,
        simd: S,
        (from, from_stride): (&[u32], usize),
        values: usize,
    ) {
        let (rows, stride) = (self.rows, self.stride());
        let to = &mut self.words.words_mut()[..rows * stride];
        let scales = &mut self.scales[..rows];
        simd.launch(Encode::<D, A> { from, from_stride, values, to, stride, scales, _marker: PhantomData });
    }
}

struct Read<'a, A> {
    from: &'a [u32],
    to: &'a mut [f32],
    _marker: PhantomData<A>,
}

impl<S: Simd, A: Float<S>> Kernel<S> for Read<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        for at in (0..self.to.len()).step_by(S::LANES) {
            // SAFETY: `read_row` took a whole row, a multiple of `LANES` values, and made room for as many.
            unsafe { simd.store(self.to.as_mut_ptr().add(at), A::load(simd, self.from.as_ptr(), at)) };
        }
    }
}

struct Encode<'a, D, A> {
    from: &'a [u32],
    from_stride: usize,
    values: usize,
    to: &'a mut [u32],
    stride: usize,
    scales: &'a mut [f32],
    _marker: PhantomData<(D, A)>,
}

impl<S: Simd, D: Dtype<S>, A: Float<S>> Kernel<S> for Encode<'_, D, A> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let rows = self.from.chunks(self.from_stride).zip(self.to.chunks_exact_mut(self.stride));
        for ((from, to), scale) in rows.zip(self.scales) {
            assert!(from.len() * A::GROUP >= self.values, "rows are whole");
            // SAFETY: a row holds the values, and `shape` made room for them in words.
            *scale = unsafe { D::encode::<A>(simd, from.as_ptr(), self.values, to.as_mut_ptr()) };
        }
    }
}
