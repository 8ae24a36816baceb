//! Operations on a linear map's values before they leave the registers.

use super::dtype::Float;
use super::simd::Simd;
use std::marker::PhantomData;

/// Where the finished values of a tile go. It is copied into each tile's registers, and so holds
/// pointers where a reference would have to be read again after every store.
pub trait Epilogue<S: Simd>: Copy {
    /// Whether the destination has this number of rows and columns.
    fn fits(&self, rows: usize, columns: usize) -> bool;
    /// Receives the values of a row, starting at a column.
    ///
    /// # Safety
    /// Row and columns are among those that [`Epilogue::fits`] agreed to.
    unsafe fn put(self, simd: S, row: usize, column: usize, values: S::V);
}

/// Adds values to rows of f32: the residual.
#[derive(Clone, Copy)]
pub struct AddTo<'a> {
    rows: *mut f32,
    count: usize,
    stride: usize,
    _marker: PhantomData<&'a mut [f32]>,
}

impl<'a> AddTo<'a> {
    /// Adds them to rows of `stride` floats.
    pub fn new(rows: &'a mut [f32], stride: usize) -> Self {
        Self { rows: rows.as_mut_ptr(), count: rows.len() / stride, stride, _marker: PhantomData }
    }
}

impl<S: Simd> Epilogue<S> for AddTo<'_> {
    fn fits(&self, rows: usize, columns: usize) -> bool {
        columns <= self.stride && rows <= self.count
    }
    #[inline(always)]
    unsafe fn put(self, simd: S, row: usize, column: usize, values: S::V) {
        // SAFETY: `fits` agreed.
        unsafe {
            let place = self.rows.add(row * self.stride + column);
            simd.store(place, simd.add(simd.load(place), values));
        }
    }
}

/// Multiplies rows of f32 by a gain and adds values: the residual after a norm whose gain is folded into later maps.
#[derive(Clone, Copy)]
pub struct ScaleAndAddTo<'a> {
    to: AddTo<'a>,
    /// `[stride]`.
    gain: *const f32,
}

impl<'a> ScaleAndAddTo<'a> {
    /// Adds them to rows as long as the gain.
    pub fn new(rows: &'a mut [f32], gain: &'a [f32]) -> Self {
        Self { to: AddTo::new(rows, gain.len()), gain: gain.as_ptr() }
    }
}

impl<S: Simd> Epilogue<S> for ScaleAndAddTo<'_> {
    fn fits(&self, rows: usize, columns: usize) -> bool {
        Epilogue::<S>::fits(&self.to, rows, columns)
    }
    #[inline(always)]
    unsafe fn put(self, simd: S, row: usize, column: usize, values: S::V) {
        // SAFETY: `fits` agreed, and the gain is as long as a row.
        unsafe {
            let place = self.to.rows.add(row * self.to.stride + column);
            let gain = simd.load(self.gain.add(column));
            simd.store(place, simd.fma(gain, simd.load(place), values));
        }
    }
}

/// Stores values in a dtype, row by row.
pub struct Keep<'a, A> {
    rows: *mut u32,
    count: usize,
    /// Words from row to row.
    stride: usize,
    _marker: PhantomData<(&'a mut [u32], A)>,
}

impl<A> Clone for Keep<'_, A> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Keep<'_, A> {}

impl<'a, A> Keep<'a, A> {
    /// Stores them in rows of `stride` words.
    pub fn new(rows: &'a mut [u32], stride: usize) -> Self {
        Self { rows: rows.as_mut_ptr(), count: rows.len() / stride, stride, _marker: PhantomData }
    }
}

impl<S: Simd, A: Float<S>> Epilogue<S> for Keep<'_, A> {
    fn fits(&self, rows: usize, columns: usize) -> bool {
        columns / A::GROUP <= self.stride && rows <= self.count
    }
    #[inline(always)]
    unsafe fn put(self, simd: S, row: usize, column: usize, values: S::V) {
        // SAFETY: `fits` agreed.
        unsafe { A::store(simd, self.rows.add(row * self.stride), column, values) };
    }
}
