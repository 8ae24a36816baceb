//! Tensors by their names in a model's files, and the maps and norms that are made of them.

use super::stored::Stored;
use std::borrow::Cow;

/// y = W x + b.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

/// A norm over a row of values.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// What it divides by.
    pub kind: NormKind,
    /// Factor, `[width]`.
    pub gain: Tensor,
    /// Summand, `[width]`.
    pub bias: Option<Tensor>,
    /// Added to the mean square.
    pub eps: f64,
}

/// Kinds of norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Subtracts the mean and divides by the standard deviation (Ba et al. 2016).
    Layer,
    /// Divides by the root of the mean square (Zhang and Sennrich 2019).
    Rms,
}

/// A tensor in f32, by its name in the model's files. An opened model's tensors are in the files, and in memory only while
/// they are used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensor {
    /// The name of the tensor that it is, or is a part of.
    pub name: String,
    /// Its own shape.
    pub shape: Vec<usize>,
    /// The rows that it is of a larger tensor.
    pub part: Option<Part>,
    /// Row-major; empty where they are in a file.
    pub values: Vec<f32>,
    /// Where they are in a file.
    pub stored: Option<Stored>,
}

/// Rows of a larger tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first one.
    pub first: usize,
    /// How many the larger tensor has.
    pub of: usize,
}

impl Linear {
    /// A map without values, with a bias.
    pub fn new(name: &str, outputs: usize, inputs: usize) -> Self {
        let bias = Some(Tensor::new(format!("{name}.bias"), &[outputs]));
        Self { bias, ..Self::unbiased(name, outputs, inputs) }
    }

    /// A map without values and without a bias.
    pub fn unbiased(name: &str, outputs: usize, inputs: usize) -> Self {
        Self { weight: Tensor::new(format!("{name}.weight"), &[outputs, inputs]), bias: None }
    }

    /// This map's outputs from `first` on, of which a tensor in the files has more.
    pub fn rows(&self, first: usize, count: usize) -> Self {
        let bias = self.bias.as_ref().map(|bias| bias.rows(first, count));
        Self { weight: self.weight.rows(first, count), bias }
    }

    /// Width of what it gives.
    pub fn outputs(&self) -> usize {
        self.weight.shape[0]
    }

    /// Width of what it reads.
    pub fn inputs(&self) -> usize {
        self.weight.shape[1]
    }

    /// Its bias; zeros where it has none.
    pub fn bias_values(&self) -> Vec<f32> {
        self.bias.as_ref().map_or_else(|| vec![0.0; self.outputs()], |bias| bias.values().into_owned())
    }
}

impl Norm {
    /// A layer norm without values.
    pub fn layer(name: &str, width: usize, eps: f64) -> Self {
        let bias = Some(Tensor::new(format!("{name}.bias"), &[width]));
        Self { bias, ..Self::unbiased(NormKind::Layer, name, width, eps) }
    }

    /// A norm without values and without a bias.
    pub fn unbiased(kind: NormKind, name: &str, width: usize, eps: f64) -> Self {
        Self { kind, gain: Tensor::new(format!("{name}.weight"), &[width]), bias: None, eps }
    }

    /// Its bias; zeros where it has none.
    pub fn bias_values(&self) -> Vec<f32> {
        self.bias.as_ref().map_or_else(|| vec![0.0; self.gain.count()], |bias| bias.values().into_owned())
    }
}

impl Tensor {
    /// A tensor of the files, without values.
    pub fn new(name: String, shape: &[usize]) -> Self {
        Self { name, shape: shape.to_vec(), ..Self::default() }
    }

    /// Rows of this tensor, without values.
    ///
    /// # Panics
    /// If it has not so many, or is itself a part.
    pub fn rows(&self, first: usize, count: usize) -> Self {
        let of = self.shape[0];
        assert!(self.part.is_none() && first + count <= of, "rows of a whole tensor");
        let mut shape = self.shape.clone();
        shape[0] = count;
        Self { name: self.name.clone(), shape, part: Some(Part { first, of }), ..Self::default() }
    }

    /// Its values, read from their file where they are in one. [`Plan::check_files`](super::Plan::check_files) then says
    /// whether that is still the file that was opened.
    pub fn values(&self) -> Cow<'_, [f32]> {
        self.stored.as_ref().map_or(Cow::Borrowed(&self.values), |stored| Cow::Owned(stored.values()))
    }

    /// Reads its values into memory, where they can be changed. As for [`Tensor::values`], the file is to be checked then.
    pub fn hold(&mut self) {
        if let Some(stored) = self.stored.take() {
            self.values = stored.values();
        }
    }

    /// Number of its values, read or not.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}
