//! What launches of kernels have in common. Each launch checks the lengths of its arrays, so that no safe call accesses
//! memory out of bounds.

use super::kernels::{
    self, E4m3s, Floats, Halves, NORM_THREADS, NormParameters, Parameters, ROW_MAX, STRIDE_MAX, Typed, WARP,
    WARP_ROW_MAX, Words,
};
use super::{Array, Bucket, Device, DeviceError, Half, Shape};
use crate::ops::{Activation, Gelu};

/// Threads of a block, for kernels that do not declare a number of their own.
pub(super) const THREADS: u32 = 256;

/// The rows that an operation works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One row per token.
    Tokens,
    /// One row per sequence.
    Sequences,
}

/// The parameters of a norm.
pub struct Norm<D: Device> {
    /// `[stride]` f32.
    pub gain: Array<D>,
    /// `[stride]` f32.
    pub bias: Option<Array<D>>,
    /// Added to the variance, or to the mean square.
    pub epsilon: f32,
    /// Whether it divides by the root of the mean square, and does not subtract the mean.
    pub is_rms: bool,
    /// Values of a row, without padding.
    pub hidden: usize,
    /// Values of a row, with padding.
    pub stride: usize,
}

/// An E4M3 output of an operation.
pub struct Quantised<'a, D: Device> {
    /// `[rows, width]` bytes.
    pub to: &'a Array<D>,
    /// `[1]` f32: the factor applied before rounding, [`super::Scales::factor`].
    pub factor: &'a Array<D>,
}

/// Launches kernels on batches of one bucket.
pub struct Launcher<'a, D: Device> {
    /// The device.
    pub device: &'a D,
    /// The type of weights and states.
    pub half: Half,
    /// The upper bound of the batch.
    pub bucket: Bucket,
    /// The batch, written by [`super::fill_words`] for the same bucket.
    pub batch: &'a Array<D>,
}

impl<D: Device> Launcher<'_, D> {
    /// Submits a batch: copies its words to the device, queues the work of `launches`, and copies the first `bytes` of
    /// `result` back.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn submit(
        &self,
        submission: &mut D::Submission,
        (result, bytes): (&Array<D>, usize),
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let words = self.bucket.words();
        let (batch, result) = (self.batch.holding(4 * words), result.holding(bytes));
        // SAFETY: `holding` asserts both lengths.
        unsafe { self.device.submit(submission, (batch, words), (result, bytes), launches) }
    }

    pub(super) fn launch<P: Parameters>(
        &self,
        kernel: Typed<P>,
        shape: Shape,
        parameters: &P,
    ) -> Result<(), DeviceError> {
        // SAFETY: `P` is the kernel's parameter list. Each caller has asserted (by `holding`) that the arrays are large
        // enough for the bucket, and `fill_words` keeps the batch within the bucket.
        unsafe { self.device.launch(kernel.kernel, self.half, shape, &parameters.arguments()) }
    }

    pub(super) fn rows(&self, rows: Rows) -> u32 {
        match rows {
            Rows::Tokens => self.bucket.tokens,
            Rows::Sequences => self.bucket.sequences,
        }
    }

    /// The address of the number of rows, which is in the batch's header.
    pub(super) fn count(&self, rows: Rows) -> Words {
        let start = self.batch.holding(4 * self.bucket.words());
        match rows {
            Rows::Tokens => Words(start),
            Rows::Sequences => Words(start + 4),
        }
    }

    pub(super) fn batch(&self) -> kernels::Batch {
        kernels::Batch {
            words: self.batch.holding(4 * self.bucket.words()),
            tokens_max: self.bucket.tokens,
            sequences_max: self.bucket.sequences,
        }
    }

    /// The E4M3 output for rows of `width` values; null if there is none.
    pub(super) fn quantised(&self, quantised: Option<&Quantised<'_, D>>, rows: Rows, width: usize) -> E4m3s {
        quantised.map_or_else(E4m3s::default, |Quantised { to, factor }| E4m3s {
            to: to.holding(self.rows(rows) as usize * width),
            factor: factor.holding(4),
        })
    }

    /// An array of `rows` rows of `width` 16-bit values.
    pub(super) fn halves(&self, array: &Array<D>, rows: Rows, width: usize) -> Halves {
        Halves(array.holding(2 * self.rows(rows) as usize * width))
    }
}

/// An array of `count` f32 values.
pub(super) fn floats<D: Device>(array: &Array<D>, count: usize) -> Floats {
    Floats(array.holding(4 * count))
}

/// The same; null if there is none.
pub(super) fn optional_floats<D: Device>(array: Option<&Array<D>>, count: usize) -> Floats {
    array.map_or_else(Floats::default, |array| floats(array, count))
}

/// A shape without dynamic shared memory.
pub(super) fn shape(blocks: [u32; 2], threads: u32) -> Shape {
    Shape { blocks, threads, shared_bytes: 0 }
}

/// The shape of a kernel with one warp per row.
pub(super) fn warps(rows: u32) -> Shape {
    shape([rows.div_ceil(THREADS / WARP), 1], THREADS)
}

/// The shape of a kernel with one team per row of `stride` values (`layer_norm.cu`).
pub(super) fn teams(rows: u32, stride: usize) -> Shape {
    let rows_of_a_block = if stride <= WARP_ROW_MAX as usize { NORM_THREADS / WARP } else { 1 };
    shape([rows.div_ceil(rows_of_a_block), 1], NORM_THREADS)
}

pub(super) fn norm_parameters<D: Device>(norm: &Norm<D>) -> NormParameters {
    assert!(norm.hidden <= norm.stride, "a row lies within its stride");
    NormParameters {
        gain: floats(&norm.gain, norm.stride),
        bias: optional_floats(norm.bias.as_ref(), norm.stride),
        epsilon: norm.epsilon,
        is_rms: u32::from(norm.is_rms),
        hidden: norm.hidden as u32,
        ..no_norm(norm.stride)
    }
}

/// The parameters of a norm; null if there is none, for rows of `stride` values.
pub(super) fn optional_norm<D: Device>(norm: Option<&Norm<D>>, stride: usize) -> NormParameters {
    let given = norm.map(norm_parameters);
    assert!(norm.is_none_or(|norm| norm.stride == stride), "a norm of rows of {stride} values");
    given.unwrap_or_else(|| no_norm(stride))
}

fn no_norm(stride: usize) -> NormParameters {
    assert!(
        stride.is_multiple_of(WARP as usize) && stride <= ROW_MAX,
        "rows of {stride} values have no kernel"
    );
    NormParameters {
        gain: Floats::default(),
        bias: Floats::default(),
        epsilon: 0.0,
        is_rms: 0,
        hidden: stride as u32,
        stride: stride as u32,
    }
}

/// Asserts that `first_token` and `pool` read rows of `stride` values.
pub(super) fn check_narrow(stride: usize) {
    assert!(
        stride.is_multiple_of(WARP as usize) && stride <= STRIDE_MAX,
        "rows of {stride} values have no kernel"
    );
}

/// The number of an activation in the kernels.
pub(super) fn number(activation: Activation) -> u32 {
    match activation {
        Activation::Gelu(Gelu::Erf) => 0,
        Activation::Gelu(Gelu::Tanh) => 1,
        Activation::Silu => 2,
        Activation::Tanh => 3,
    }
}
