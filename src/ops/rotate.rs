//! What queries and keys go through before attention: a norm over each head (RMS), and rotary positions (Su et al. 2021).
//!
//! A head lies in two halves, each padded by itself, so that the values that turn together stand in the same lanes of two
//! vectors.

use super::dtype::Float;
use super::simd::{Kernel, Simd};
use super::{Buffer, PAD};
use std::marker::PhantomData;

/// The angles of a model's rotary positions, and the norms before them.
pub struct Rotation {
    /// Values of a head, with their padding.
    size: usize,
    /// The same without it.
    head_dim: usize,
    /// Cosines and sines, `[positions, size / 2]`.
    cosines: Buffer,
    sines: Buffer,
    positions: usize,
    /// Gains of the queries' and of the keys' norm, `[size]`, and what is added to their mean squares.
    norms: Option<([Buffer; 2], f32)>,
}

impl Rotation {
    /// Rotates heads of `head_dim` values by angles place x theta^(-2i / head_dim).
    pub fn new(head_dim: usize, theta: f64, positions: usize) -> Self {
        let (half, size) = (head_dim / 2, head_dim.next_multiple_of(PAD));
        let (mut cosines, mut sines) =
            (Buffer::zeros(positions * size / 2), Buffer::zeros(positions * size / 2));
        for at in 0..half {
            // In f32, as in training.
            let frequency = (1.0 / theta.powf((2 * at) as f64 / head_dim as f64)) as f32;
            for place in 0..positions {
                let angle = f64::from(place as f32 * frequency);
                cosines.floats_mut()[place * size / 2 + at] = angle.cos() as f32;
                sines.floats_mut()[place * size / 2 + at] = angle.sin() as f32;
            }
        }
        Self { size, head_dim, cosines, sines, positions, norms: None }
    }

    /// The same after a norm over each head, whose gains are laid out as the heads are. The queries' gain includes what
    /// scales a softmax.
    pub fn with_norms(self, gains: [&[f32]; 2], epsilon: f64) -> Self {
        assert!(gains.iter().all(|gain| gain.len() == self.size), "a gain is as long as a head");
        Self { norms: Some((gains.map(Buffer::of), epsilon as f32)), ..self }
    }
}

/// Rotates the queries and keys of a sequence from its first token on: rows of `[queries, keys, ..]` heads in `A`,
/// `stride` words each.
pub fn rotate<S: Simd, A: Float<S>>(
    simd: S,
    rotation: &Rotation,
    (rows, stride): (&mut [u32], usize),
    [queries, keys]: [usize; 2],
) {
    let tokens = rows.len() / stride;
    assert!(tokens <= rotation.positions, "{tokens} tokens, and {} positions", rotation.positions);
    assert!((queries + keys) * rotation.size / A::GROUP <= stride, "a row has its heads");
    simd.launch(Rotate::<A> { rotation, rows, stride, queries, keys, _marker: PhantomData });
}

struct Rotate<'a, A> {
    rotation: &'a Rotation,
    rows: &'a mut [u32],
    stride: usize,
    queries: usize,
    keys: usize,
    _marker: PhantomData<A>,
}

impl<S: Simd, A: Float<S>> Kernel<S> for Rotate<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { rotation, rows, stride, queries, keys, .. } = self;
        let Rotation { size, head_dim, cosines, sines, norms, .. } = rotation;
        let half = size / 2;
        for (place, row) in rows.chunks_exact_mut(stride).enumerate() {
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
