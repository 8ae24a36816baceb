//! The operations on queries and keys before attention: a norm over each head (RMS), and rotary positions (Su et al. 2021).
//!
//! A head lies in two halves, each padded by itself, so that the values that turn together stand in the same lanes of two
//! vectors.

use super::dtype::Float;
use super::simd::{Kernel, Simd};
use super::{Buffer, PAD};
use std::marker::PhantomData;
use std::sync::Arc;

/// Cosines and sines of every place's angles.
pub struct Angles {
    /// Values of a head, with their padding.
    size: usize,
    /// The same without it.
    head_dim: usize,
    /// `[positions, size / 2]` each.
    cosines: Buffer,
    sines: Buffer,
    positions: usize,
}

/// The operations on a layer's queries and keys.
pub struct Rotation {
    angles: Arc<Angles>,
    /// Gains of the queries' and of the keys' norm, `[size]`, and what is added to their mean squares.
    norms: Option<([Buffer; 2], f32)>,
}

impl Angles {
    /// The angles place x frequency, `frequencies: [head_dim / 2]`.
    pub fn new(frequencies: &[f32], positions: usize) -> Self {
        let head_dim = 2 * frequencies.len();
        let size = head_dim.next_multiple_of(PAD);
        let [mut cosines, mut sines] = [(); 2].map(|()| Buffer::zeros(positions * size / 2));
        for place in 0..positions {
            for (at, frequency) in frequencies.iter().enumerate() {
                // The product is in f32, as in training.
                let (sine, cosine) = f64::from(place as f32 * frequency).sin_cos();
                cosines.floats_mut()[place * size / 2 + at] = cosine as f32;
                sines.floats_mut()[place * size / 2 + at] = sine as f32;
            }
        }
        Self { size, head_dim, cosines, sines, positions }
    }

    /// Cosines and sines, `[positions, size / 2]` each, where `size` is that of a padded head.
    pub fn values(&self) -> [&[f32]; 2] {
        [&self.cosines, &self.sines].map(|values| &values.floats()[..self.positions * self.size / 2])
    }
}

impl Rotation {
    /// Rotates by these angles.
    pub fn new(angles: Arc<Angles>) -> Self {
        Self { angles, norms: None }
    }

    /// The same after a norm over each head, whose gains are laid out as the heads are. The queries' gain includes what
    /// scales a softmax.
    pub fn with_norms(self, gains: [&[f32]; 2], epsilon: f64) -> Self {
        assert!(gains.iter().all(|gain| gain.len() == self.angles.size), "a gain is as long as a head");
        Self { norms: Some((gains.map(Buffer::of), epsilon as f32)), ..self }
    }
}

/// Rotates the queries and keys of a sequence's tokens from a place on: rows of `[queries, keys, ..]` heads in `A`, `stride`
/// words each.
pub fn rotate<S: Simd, A: Float<S>>(
    simd: S,
    rotation: &Rotation,
    (rows, stride): (&mut [u32], usize),
    place: usize,
    [queries, keys]: [usize; 2],
) {
    let tokens = place + rows.len() / stride;
    let Angles { size, positions, .. } = *rotation.angles;
    assert!(tokens <= positions, "{tokens} tokens, and {positions} positions");
    assert!((queries + keys) * size / A::GROUP <= stride, "a row has its heads");
    simd.launch(Rotate::<A> { rotation, rows, stride, place, queries, keys, _marker: PhantomData });
}

struct Rotate<'a, A> {
    rotation: &'a Rotation,
    rows: &'a mut [u32],
    stride: usize,
    /// Of the first row.
    place: usize,
    queries: usize,
    keys: usize,
    _marker: PhantomData<A>,
}

impl<S: Simd, A: Float<S>> Kernel<S> for Rotate<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { rotation, rows, stride, place, queries, keys, .. } = self;
        let Rotation { angles, norms } = rotation;
        let Angles { size, head_dim, cosines, sines, .. } = &**angles;
        let half = size / 2;
        for (place, row) in (place..).zip(rows.chunks_exact_mut(stride)) {
            let row = row.as_mut_ptr();
            let (cosines, sines) = (&cosines.floats()[place * half..], &sines.floats()[place * half..]);
            for head in 0..queries + keys {
                let start = head * size;
                // SAFETY: `rotate` asserted that a row has its heads, of `size` values each, a multiple of two vectors,
                // and that there are angles for its place; a gain has `size` values.
                unsafe {
                    let mut inverse = simd.splat(1.0);
                    if let Some((_, epsilon)) = norms {
                        let mut squares = simd.splat(0.0);
                        for at in (0..*size).step_by(S::LANES) {
                            let value = A::load(simd, row, start + at);
                            squares = simd.fma(value, value, squares);
                        }
                        inverse = simd.splat(1.0 / (simd.sum(squares) / *head_dim as f32 + epsilon).sqrt());
                    }
                    for at in (0..half).step_by(S::LANES) {
                        let mut first = A::load(simd, row, start + at);
                        let mut second = A::load(simd, row, start + half + at);
                        if let Some((gains, _)) = norms {
                            let gain = gains[usize::from(head >= queries)].floats().as_ptr();
                            first = simd.mul(simd.mul(first, inverse), simd.load(gain.add(at)));
                            second = simd.mul(simd.mul(second, inverse), simd.load(gain.add(half + at)));
                        }
                        let cosine = simd.load(cosines.as_ptr().add(at));
                        let sine = simd.load(sines.as_ptr().add(at));
                        let turned_first = simd.sub(simd.mul(first, cosine), simd.mul(second, sine));
                        let turned_second = simd.fma(second, cosine, simd.mul(first, sine));
                        A::store(simd, row, start + at, turned_first);
                        A::store(simd, row, start + half + at, turned_second);
                    }
                }
            }
        }
    }
}
