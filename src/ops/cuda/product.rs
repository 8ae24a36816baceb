//! Matrix products with checked shapes: linear maps, and the per-head products of the last layer.

use super::{Array, Device, DeviceError, Launcher, Product, Rows, Scales};
use crate::ops::Heads;

/// A linear map y = W x + bias. Without scales x, W and y are in the half type; with scales x and W are E4M3.
pub struct Linear<D: Device> {
    /// `[outputs, inputs]`, of the same type as x.
    pub weight: Array<D>,
    /// The scales of x and W if they are E4M3.
    pub scales: Option<Scales<D>>,
    /// `[outputs]` in the half type; none if the next operation adds the bias.
    pub bias: Option<Array<D>>,
    /// Rows of W.
    pub outputs: usize,
    /// Columns of W.
    pub inputs: usize,
}

impl<D: Device> Launcher<'_, D> {
    /// y = W x + bias, `y: [rows, outputs]`, for all rows of the bucket.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn linear(&self, rows: Rows, map: &Linear<D>, x: &Array<D>, y: &Array<D>) -> Result<(), DeviceError> {
        let (inputs, outputs) = (map.inputs as u64, map.outputs as u64);
        self.multiply(
            (x, map, y),
            Product {
                rows: self.rows(rows).into(),
                outputs,
                inputs,
                x_stride: inputs,
                w_stride: inputs,
                y_stride: outputs,
                count: 1,
                ..Product::default()
            },
        )
    }

    /// Absorbs keys into queries: for each head, `absorbed` is the query times the head's rows of the key map `map`.
    /// `queries: [sequences, heads, d]`, `absorbed: [sequences, heads, inputs]` f32.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn absorb_keys(
        &self,
        queries: &Array<D>,
        map: &Linear<D>,
        absorbed: &Array<D>,
        heads: Heads,
    ) -> Result<(), DeviceError> {
        assert_eq!(map.outputs, heads.width(), "a map to heads");
        let (stride, size) = (map.inputs as u64, heads.size as u64);
        self.multiply(
            (queries, map, absorbed),
            Product {
                rows: self.bucket.sequences.into(),
                outputs: stride,
                inputs: size,
                x_stride: heads.width() as u64,
                w_stride: stride,
                y_stride: heads.count as u64 * stride,
                count: heads.count as u64,
                x_step: size,
                w_step: size * stride,
                y_step: stride,
                is_input_major: 1,
                is_output_f32: 1,
                ..Product::default()
            },
        )
    }

    /// Applies the value map to mixed states: for each head, `context` is the head's rows of the value map `map` times
    /// `mixed`. `mixed: [sequences, heads, inputs]`, `context: [sequences, heads, d]`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn apply_values(
        &self,
        mixed: &Array<D>,
        map: &Linear<D>,
        context: &Array<D>,
        heads: Heads,
    ) -> Result<(), DeviceError> {
        assert_eq!(map.outputs, heads.width(), "a map to heads");
        let (stride, size) = (map.inputs as u64, heads.size as u64);
        self.multiply(
            (mixed, map, context),
            Product {
                rows: self.bucket.sequences.into(),
                outputs: size,
                inputs: stride,
                x_stride: heads.count as u64 * stride,
                w_stride: stride,
                y_stride: heads.width() as u64,
                count: heads.count as u64,
                x_step: stride,
                w_step: size * stride,
                y_step: size,
                ..Product::default()
            },
        )
    }

    fn multiply(
        &self,
        (x, map, y): (&Array<D>, &Linear<D>, &Array<D>),
        product: Product,
    ) -> Result<(), DeviceError> {
        let end = |rows: u64, columns: u64, stride: u64, step: u64| {
            ((product.count - 1) * step + (rows - 1) * stride + columns) as usize
        };
        let Product { rows, outputs, inputs, .. } = product;
        let (w_rows, w_columns) =
            if product.is_input_major == 1 { (inputs, outputs) } else { (outputs, inputs) };
        let y_bytes = if product.is_output_f32 == 1 { 4 } else { 2 };
        let bytes = if map.scales.is_some() { 1 } else { 2 };
        let product = Product {
            x: x.holding(bytes * end(rows, inputs, product.x_stride, product.x_step)),
            w: map.weight.holding(bytes * end(w_rows, w_columns, product.w_stride, product.w_step)),
            y: y.holding(y_bytes * end(rows, outputs, product.y_stride, product.y_step)),
            bias: map.bias.as_ref().map_or(0, |bias| bias.holding(2 * outputs as usize)),
            x_scale: map.scales.as_ref().map_or(0, |scales| scales.input.holding(4)),
            w_scale: map.scales.as_ref().map_or(0, |scales| scales.weight.holding(4)),
            ..product
        };
        // SAFETY: `holding` has asserted that each array contains its last value.
        unsafe { self.device.multiply(self.half, &product) }
    }
}
