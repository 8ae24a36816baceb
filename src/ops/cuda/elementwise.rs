//! Launches of the kernels that work on each token by itself: embeddings, norms, activations.

use super::kernels::{self, Halves};
use super::launch::{THREADS, norm_parameters, number, optional_floats, optional_norm, shape, teams};
use super::{Array, Device, DeviceError, Launcher, Norm, Quantised, Rows};
use crate::ops::{Activation, Gelu};

/// Tables of embeddings in a half type, of `stride` values a row.
pub struct Embeddings<D: Device> {
    /// A row for each token id.
    pub words: Table<D>,
    /// A row for each place.
    pub positions: Option<Table<D>>,
    /// The row of `positions` for a sequence's first token.
    pub position_offset: u32,
    /// A row for each token type.
    pub types: Option<Table<D>>,
    /// Values of a row, with padding.
    pub stride: usize,
}

/// A table in a half type.
pub struct Table<D: Device> {
    /// `[rows, stride]`.
    pub values: Array<D>,
    /// Its number of rows.
    pub rows: usize,
}

impl<D: Device> Launcher<'_, D> {
    /// states = norm(words + positions + types), `[tokens, stride]`, with an E4M3 copy if `quantised` is given.
    /// [`super::fill_words`] has checked ids and positions against the vocabulary.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn embed(
        &self,
        tables: &Embeddings<D>,
        norm: Option<&Norm<D>>,
        states: &Array<D>,
        quantised: Option<&Quantised<'_, D>>,
    ) -> Result<(), DeviceError> {
        let Embeddings { words, positions, position_offset, types, stride } = tables;
        let table = |table: &Table<D>| Halves(table.values.holding(2 * table.rows * stride));
        let optional = |given: &Option<Table<D>>| given.as_ref().map_or_else(Halves::default, table);
        let parameters = kernels::Embed {
            batch: self.batch(),
            words: table(words),
            positions: optional(positions),
            types: optional(types),
            position_offset: *position_offset,
            type_count: types.as_ref().map_or(0, |types| types.rows as u32),
            norm: optional_norm(norm, *stride),
            states: self.halves(states, Rows::Tokens, *stride),
            quantised: self.quantised(quantised, Rows::Tokens, *stride),
        };
        self.launch(kernels::EMBED, teams(self.rows(Rows::Tokens), *stride), &parameters)
    }

    /// states = norm(states + update + bias), `[rows, stride]`, with an E4M3 copy if `quantised` is given;
    /// `bias: [stride]` f32.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn add_layer_norm(
        &self,
        rows: Rows,
        (states, update): (&Array<D>, &Array<D>),
        bias: Option<&Array<D>>,
        norm: &Norm<D>,
        quantised: Option<&Quantised<'_, D>>,
    ) -> Result<(), DeviceError> {
        let parameters = kernels::AddLayerNorm {
            count: self.count(rows),
            states: self.halves(states, rows, norm.stride),
            update: self.halves(update, rows, norm.stride),
            update_bias: optional_floats(bias, norm.stride),
            norm: norm_parameters(norm),
            quantised: self.quantised(quantised, rows, norm.stride),
        };
        self.launch(kernels::ADD_LAYER_NORM, teams(self.rows(rows), norm.stride), &parameters)
    }

    /// states += update + bias, `[rows, stride]`, where an update with its bias (`[stride]` f32) is given; then the norm's
    /// array = norm(states), `[rows, stride]`, where one is given.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn add_and_norm(
        &self,
        rows: Rows,
        (states, stride): (&Array<D>, usize),
        update: Option<(&Array<D>, Option<&Array<D>>)>,
        norm: Option<(&Norm<D>, &Array<D>)>,
    ) -> Result<(), DeviceError> {
        let halves = |array: &Array<D>| self.halves(array, rows, stride);
        let parameters = kernels::AddAndNorm {
            count: self.count(rows),
            states: halves(states),
            update: update.map_or_else(Halves::default, |(update, _)| halves(update)),
            update_bias: optional_floats(update.and_then(|(_, bias)| bias), stride),
            norm: optional_norm(norm.map(|(norm, _)| norm), stride),
            normed: norm.map_or_else(Halves::default, |(_, normed)| halves(normed)),
        };
        self.launch(kernels::ADD_AND_NORM, teams(self.rows(rows), stride), &parameters)
    }

    /// x = gelu(x + bias), `[rows, width]`; if `quantised` is given only that is written. `bias: [width]` f32.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn gelu(
        &self,
        rows: Rows,
        x: &Array<D>,
        (bias, width): (Option<&Array<D>>, usize),
        gelu: Gelu,
        quantised: Option<&Quantised<'_, D>>,
    ) -> Result<(), DeviceError> {
        assert!(width.is_multiple_of(8), "rows are read eight values at a time");
        let parameters = kernels::Gelu {
            count: self.count(rows),
            x: self.halves(x, rows, width),
            bias: optional_floats(bias, width),
            width: width as u32,
            is_tanh: u32::from(gelu == Gelu::Tanh),
            quantised: self.quantised(quantised, rows, width),
        };
        let threads = self.rows(rows) * (width / 8) as u32;
        self.launch(kernels::GELU, shape([threads.div_ceil(THREADS), 1], THREADS), &parameters)
    }

    /// inner = act(gate + bias) * (up + bias), `[rows, width]`, from `both: [rows, 2 width]`, the gate first;
    /// `bias: [2 width]` f32.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn gate(
        &self,
        rows: Rows,
        (both, bias): (&Array<D>, Option<&Array<D>>),
        activation: Activation,
        (inner, width): (&Array<D>, usize),
    ) -> Result<(), DeviceError> {
        assert!(width.is_multiple_of(8), "rows are read eight values at a time");
        let parameters = kernels::Gate {
            count: self.count(rows),
            both: self.halves(both, rows, 2 * width),
            bias: optional_floats(bias, 2 * width),
            width: width as u32,
            activation: number(activation),
            inner: self.halves(inner, rows, width),
        };
        let threads = self.rows(rows) * (width / 8) as u32;
        self.launch(kernels::GATE, shape([threads.div_ceil(THREADS), 1], THREADS), &parameters)
    }
}
