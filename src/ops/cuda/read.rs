//! Launches of the kernels from states to logits: the rows that a head reads, and the head.

use super::kernels::{self, MEAN_COLUMNS, MEAN_THREADS, POOL_THREADS, POOLED, ReadRows, Typed, WARP};
use super::launch::{THREADS, check_narrow, floats, number, optional_norm, shape, teams, warps};
use super::{Array, Device, DeviceError, Launcher, Norm, Rows, Shape};
use crate::ops::Activation;

/// A classification head with a dense map and tanh, in f32, of rows of up to [`super::STRIDE_MAX`] values.
pub struct Head<D: Device> {
    /// `[inputs, outputs]`, both `stride`.
    pub pooler: Array<D>,
    /// `[stride]`.
    pub pooler_bias: Array<D>,
    /// `[stride]`.
    pub classifier: Array<D>,
    /// Added to each logit.
    pub classifier_bias: f32,
    /// Values of a row, with padding.
    pub stride: usize,
}

/// Any other head, in f32: a dense map, a norm, and a product with weights.
pub struct Scoring<D: Device> {
    /// Applied first.
    pub dense: Option<Dense<D>>,
    /// Applied next.
    pub norm: Option<Norm<D>>,
    /// `[stride]`.
    pub weights: Array<D>,
    /// Added to each logit.
    pub constant: f32,
    /// Values of a row, with padding.
    pub stride: usize,
}

/// act(W x + b).
pub struct Dense<D: Device> {
    /// `[inputs, outputs]`, both the head's `stride`.
    pub weights: Array<D>,
    /// `[stride]`.
    pub bias: Array<D>,
    /// The activation.
    pub activation: Activation,
}

impl<D: Device> Launcher<'_, D> {
    /// read = rows of the sequences' first tokens, `[sequences, stride]`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn first_rows(&self, rows: &Array<D>, stride: usize, read: &Array<D>) -> Result<(), DeviceError> {
        self.read_rows(kernels::FIRST_ROWS, warps(self.bucket.sequences), (rows, stride, read))
    }

    /// read = rows of the sequences' last tokens, `[sequences, stride]`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn last_rows(&self, rows: &Array<D>, stride: usize, read: &Array<D>) -> Result<(), DeviceError> {
        self.read_rows(kernels::LAST_ROWS, warps(self.bucket.sequences), (rows, stride, read))
    }

    /// read = the means of the sequences' rows, `[sequences, stride]`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn mean_rows(&self, rows: &Array<D>, stride: usize, read: &Array<D>) -> Result<(), DeviceError> {
        let blocks = [self.bucket.sequences, (stride as u32).div_ceil(MEAN_COLUMNS)];
        self.read_rows(kernels::MEAN_ROWS, shape(blocks, MEAN_THREADS), (rows, stride, read))
    }

    fn read_rows(
        &self,
        kernel: Typed<ReadRows>,
        shape: Shape,
        (rows, stride, read): (&Array<D>, usize, &Array<D>),
    ) -> Result<(), DeviceError> {
        assert!(stride.is_multiple_of(8), "rows are read eight values at a time");
        let parameters = ReadRows {
            batch: self.batch(),
            rows: self.halves(rows, Rows::Tokens, stride),
            stride: stride as u32,
            read: self.halves(read, Rows::Sequences, stride),
        };
        self.launch(kernel, shape, &parameters)
    }

    /// `logits: [sequences]` f32 from `rows: [sequences, stride]`; `parts: [sequences, stride / 32]` f32 is scratch.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn head(
        &self,
        rows: &Array<D>,
        head: &Head<D>,
        parts: &Array<D>,
        logits: &Array<D>,
    ) -> Result<(), DeviceError> {
        check_narrow(head.stride);
        let (sequences, count) = (self.bucket.sequences, head.stride as u32 / WARP);
        let parts = floats(parts, (sequences * count) as usize);
        let pool = kernels::Pool {
            batch: self.batch(),
            rows: self.halves(rows, Rows::Sequences, head.stride),
            pooler: floats(&head.pooler, head.stride * head.stride),
            pooler_bias: floats(&head.pooler_bias, head.stride),
            classifier: floats(&head.classifier, head.stride),
            stride: head.stride as u32,
            parts,
        };
        let blocks = [sequences.div_ceil(POOLED), count];
        self.launch(kernels::POOL, shape(blocks, POOL_THREADS), &pool)?;
        let head = kernels::Head {
            batch: self.batch(),
            parts,
            count,
            bias: head.classifier_bias,
            logits: floats(logits, sequences as usize),
        };
        self.launch(kernels::HEAD, shape([sequences.div_ceil(THREADS), 1], THREADS), &head)
    }

    /// `logits: [sequences]` f32 from `rows: [sequences, stride]`; `mapped: [sequences, stride]` f32 is scratch, which a
    /// head with a dense map needs.
    ///
    /// # Errors
    /// [`DeviceError`].
    ///
    /// # Panics
    /// If there is a dense map and no scratch.
    pub fn score(
        &self,
        rows: &Array<D>,
        head: &Scoring<D>,
        mapped: Option<&Array<D>>,
        logits: &Array<D>,
    ) -> Result<(), DeviceError> {
        let (stride, sequences) = (head.stride, self.bucket.sequences);
        let norm = optional_norm(head.norm.as_ref(), stride);
        let rows = self.halves(rows, Rows::Sequences, stride);
        let mut mapped_rows = kernels::Floats::default();
        if let Some(dense) = &head.dense {
            let mapped = mapped.expect("a head with a dense map has room for its outputs");
            mapped_rows = floats(mapped, sequences as usize * stride);
            let parameters = kernels::Dense {
                batch: self.batch(),
                rows,
                weights: floats(&dense.weights, stride * stride),
                dense_bias: floats(&dense.bias, stride),
                activation: number(dense.activation),
                stride: stride as u32,
                mapped_rows,
            };
            let blocks = [sequences.div_ceil(POOLED), stride as u32 / WARP];
            self.launch(kernels::DENSE, shape(blocks, POOL_THREADS), &parameters)?;
        }
        let parameters = kernels::Score {
            batch: self.batch(),
            rows,
            mapped_rows,
            norm,
            weights: floats(&head.weights, stride),
            constant: head.constant,
            logits: floats(logits, sequences as usize),
        };
        self.launch(kernels::SCORE, teams(sequences, stride), &parameters)
    }
}
