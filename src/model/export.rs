//! Writes a model's files, as [`Model::open`](super::Model::open) reads them.

use super::Plan;
use half::f16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError};

impl Plan {
    /// A safetensors file of the tensors in f16.
    ///
    /// # Errors
    /// [`SafeTensorError`] if a tensor has not as many values as its shape says.
    ///
    /// # Panics
    /// If a tensor is a part of a larger one: no such model is written.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, SafeTensorError> {
        let halves = self.tensors().into_iter().map(|tensor| {
            assert!(tensor.part.is_none(), "only models of whole tensors are written");
            let bytes: Vec<u8> =
                tensor.values().iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
            (tensor, bytes)
        });
        let halves: Vec<_> = halves.collect();
        let views = halves.iter().map(|(tensor, bytes)| {
            Ok((&tensor.name, TensorView::new(Dtype::F16, tensor.shape.clone(), bytes)?))
        });
        safetensors::serialize(views.collect::<Result<Vec<_>, SafeTensorError>>()?, None)
    }
}
