//! The operations of an encoder on a GPU: the [`Device`] trait, kernel launches and matrix products.
//!
//! | file | what it does |
//! |---|---|
//! | `words` | the device layout of a batch |
//! | `kernels` | the kernels of `kernels/`: symbols, parameters, constants |
//! | `launch` | what launches of those kernels have in common |
//! | `elementwise` | launches: embeddings, norms, activations |
//! | `mix` | launches: attention, rotary positions |
//! | `read` | launches: from states to logits |
//! | `product` | matrix products, shapes checked |
//! | `halves` | f16 and bf16 |
//! | `fp8` | E4M3 and its scales |
//! | `nvidia` | an NVIDIA GPU (feature `cuda`) |
//! | `image` | the compiled kernels (feature `cuda`) |
//! | `blas` | matrix products by cublasLt, with cached plans (feature `cuda`) |
//!
//! [`Device`] has two implementations: `Nvidia`, and in tests the CPU, which compiles the same kernel source
//! (`kernels/shim.h`).

#[cfg(feature = "cuda")]
mod blas;
mod elementwise;
mod fp8;
mod halves;
#[cfg(feature = "cuda")]
mod image;
mod kernels;
mod launch;
mod mix;
#[cfg(feature = "cuda")]
mod nvidia;
mod product;
mod read;
mod words;

pub use elementwise::{Embeddings, Table};
pub use fp8::{E4M3_MAX, Scales, e4m3};
pub use halves::Half;
pub use kernels::{HEAD_MAX, Kernel, ROW_MAX, STRIDE_MAX};
pub use launch::{Launcher, Norm, Quantised, Rows};
pub use mix::{Mixing, Rotation};
#[cfg(feature = "cuda")]
pub use nvidia::Nvidia;
pub use product::Linear;
pub use read::{Dense, Head, Scoring};
pub use words::{Bucket, PLACES_MAX, Vocabulary, fill_words};

use crate::base::DeviceNs;
use std::ffi::c_void;
use thiserror::Error;

/// The launch configuration of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks in x and y.
    pub blocks: [u32; 2],
    /// Threads per block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// An address in device memory.
    Address(u64),
    /// `u32`.
    Word(u32),
    /// `float`.
    Float(f32),
}

impl Argument {
    /// A pointer to the value, as launch functions want it.
    pub fn place(&self) -> *const c_void {
        match self {
            Self::Address(value) => (&raw const *value).cast(),
            Self::Word(value) => (&raw const *value).cast(),
            Self::Float(value) => (&raw const *value).cast(),
        }
    }
}

/// `count` matrix products y = x W^T + bias, row-major, accumulated in f32. x and W are both f16, both bf16 or both E4M3; y
/// is in the half type or f32. Strides (between rows) and steps (between products) are in values.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Product {
    /// Address of `x: [rows, inputs]`.
    pub x: u64,
    /// Address of W, `[outputs, inputs]` or, if `is_input_major`, `[inputs, outputs]`.
    pub w: u64,
    /// Address of `y: [rows, outputs]`.
    pub y: u64,
    /// Address of `bias: [outputs]`, or 0 for none.
    pub bias: u64,
    /// Address of the f32 scale of x if x is E4M3, else 0.
    pub x_scale: u64,
    /// Address of the f32 scale of W if W is E4M3, else 0.
    pub w_scale: u64,
    /// Rows of x and y.
    pub rows: u64,
    /// Columns of y.
    pub outputs: u64,
    /// Columns of x.
    pub inputs: u64,
    /// Values between rows of x.
    pub x_stride: u64,
    /// Values between rows of W.
    pub w_stride: u64,
    /// Values between rows of y.
    pub y_stride: u64,
    /// Number of products.
    pub count: u64,
    /// Values between the x of two products.
    pub x_step: u64,
    /// Values between the W of two products.
    pub w_step: u64,
    /// Values between the y of two products.
    pub y_step: u64,
    /// 1 if W is `[inputs, outputs]`, 0 if it is `[outputs, inputs]`.
    pub is_input_major: u32,
    /// 1 if y is f32.
    pub is_output_f32: u32,
}

/// A device with one queue (in CUDA a stream) for copies, kernels and matrix products. Several submissions may be in flight.
pub trait Device: Send {
    /// An allocation, freed on drop.
    type Memory: Send;
    /// Host buffers for a batch and its results. Dropping one in flight waits until its copies have ended.
    type Submission: Send;

    /// Allocates memory. Callers must treat the contents as uninitialised.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn alloc(&self, bytes: usize) -> Result<Self::Memory, DeviceError>;

    /// The address of an allocation, a multiple of 16.
    fn address(memory: &Self::Memory) -> u64;

    /// Copies to the device.
    ///
    /// # Safety
    /// `address` must point to at least `bytes.len()` bytes of device memory.
    ///
    /// # Errors
    /// [`DeviceError`].
    unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Copies from the device after all queued work has ended.
    ///
    /// # Safety
    /// `address` must point to at least `bytes.len()` bytes of device memory.
    ///
    /// # Errors
    /// [`DeviceError`], also of earlier work in the queue.
    unsafe fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Queues a kernel.
    ///
    /// # Safety
    /// The arguments must match the kernel's parameters, and with them it must read and write only device memory.
    ///
    /// # Errors
    /// [`DeviceError`].
    unsafe fn launch(
        &self,
        kernel: Kernel,
        half: Half,
        shape: Shape,
        arguments: &[Argument],
    ) -> Result<(), DeviceError>;

    /// Queues matrix products.
    ///
    /// # Safety
    /// The products must read and write only device memory.
    ///
    /// # Errors
    /// [`DeviceError`].
    unsafe fn multiply(&self, half: Half, product: &Product) -> Result<(), DeviceError>;

    /// Queues the work of `launches`. The work must be the same for equal keys, so that a device may record and replay it.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn replay(
        &self,
        key: usize,
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError>;

    /// Allocates host buffers for a batch of `words` and for results of `bytes`.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn submission(&self, words: usize, bytes: usize) -> Result<Self::Submission, DeviceError>;

    /// The host buffer for a batch.
    ///
    /// # Panics
    /// If the submission is in flight.
    ///
    /// # Errors
    /// [`DeviceError`] of a device that has failed.
    fn words(submission: &mut Self::Submission) -> Result<&mut [u32], DeviceError>;

    /// Queues a batch: a copy of the submission's first words to the device, the work of `launches`, and a copy of the
    /// results back. `words` and `bytes` are device address and length. The submission is in flight until
    /// [`Device::collect`]. After an error it is not in flight, and nothing of it is left in the queue.
    ///
    /// # Safety
    /// Both addresses must point to at least the given length of device memory.
    ///
    /// # Errors
    /// [`DeviceError`].
    unsafe fn submit(
        &self,
        submission: &mut Self::Submission,
        words: (u64, usize),
        bytes: (u64, usize),
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError>;

    /// Whether [`Device::collect`] returns without waiting: the submission has ended or the device has failed.
    fn is_done(&self, _submission: &Self::Submission) -> bool {
        true
    }

    /// Waits for a submission and copies its results to `bytes`. Returns the device time that it took, if the device
    /// measures that. In every case the submission is no longer in flight.
    ///
    /// # Errors
    /// [`DeviceError`], also of earlier work in the queue.
    fn collect(
        &self,
        submission: &mut Self::Submission,
        bytes: &mut [u8],
    ) -> Result<Option<DeviceNs>, DeviceError>;

    /// Bytes of device memory allocated through this value, if the device counts them.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// The power that the whole device draws, if it is measured.
    fn watts(&self) -> Option<f64> {
        None
    }
}

/// An error of a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// An allocation failed.
    #[error("the device is out of memory")]
    OutOfMemory,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Device memory with its length.
pub struct Array<D: Device> {
    memory: D::Memory,
    bytes: usize,
}

impl<D: Device> Array<D> {
    /// Allocates `bytes`, uninitialised.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(device: &D, bytes: usize) -> Result<Self, DeviceError> {
        Ok(Self { memory: device.alloc(bytes)?, bytes })
    }

    /// Allocates and copies bytes.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn of_bytes(device: &D, bytes: &[u8]) -> Result<Self, DeviceError> {
        let array = Self::new(device, bytes.len())?;
        array.write(device, bytes)?;
        Ok(array)
    }

    /// Allocates and copies f32 values.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn of_floats(device: &D, values: &[f32]) -> Result<Self, DeviceError> {
        Self::of_bytes(device, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// Allocates and copies values, rounded to a half type.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn of_halves(device: &D, half: Half, values: &[f32]) -> Result<Self, DeviceError> {
        Self::of_bytes(device, &half.bytes(values))
    }

    /// Overwrites its first bytes.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn write(&self, device: &D, bytes: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: `holding` asserts the length.
        unsafe { device.write(self.holding(bytes.len()), bytes) }
    }

    /// Waits for all queued work, then reads its first bytes.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn read(&self, device: &D, bytes: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: `holding` asserts the length.
        unsafe { device.read(self.holding(bytes.len()), bytes) }
    }

    /// Its address; asserts that it has at least `bytes`.
    fn holding(&self, bytes: usize) -> u64 {
        assert!(bytes <= self.bytes, "an array of {} bytes holds {bytes}", self.bytes);
        D::address(&self.memory)
    }
}
