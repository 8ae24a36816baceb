//! The operations of an encoder on a GPU: what they need of a device, and the launches.
//!
//! | file | what it does |
//! |---|---|
//! | `words` | a batch as the kernels read it |
//! | `kernels` | the kernels of `kernels/`: symbols, parameters, constants |
//! | `launch` | launches of those kernels, shapes checked |
//! | `product` | matrix products, likewise |
//! | `halves` | f16 and bf16 |
//! | `eight` | E4M3, and what a product in it is scaled with |
//! | `nvidia` | a GPU (feature `cuda`) |
//! | `image` | the kernels, compiled for it (feature `cuda`) |
//! | `blas` | matrix products by cublasLt, planned once (feature `cuda`) |
//!
//! A [`Device`] has two implementations: a GPU, and in tests the CPU, which runs the same kernels from the same
//! text (`kernels/shim.h`).

#[cfg(feature = "cuda")]
mod blas;
mod eight;
mod halves;
#[cfg(feature = "cuda")]
mod image;
mod kernels;
mod launch;
#[cfg(feature = "cuda")]
mod nvidia;
mod product;
mod words;

pub use eight::{E4M3_MAX, Scales, e4m3};
pub use halves::Half;
pub use kernels::{Kernel, STRIDE_MAX};
pub use launch::{Embeddings, Head, Launcher, Norm, Quantised, Rows};
#[cfg(feature = "cuda")]
pub use nvidia::Nvidia;
pub use product::Linear;
pub use words::{Bucket, Vocabulary, fill_words};

use crate::base::DeviceNs;
use std::ffi::c_void;
use thiserror::Error;

/// How many blocks and threads run a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks, in x and y.
    pub blocks: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory beyond what the kernel declares.
    pub shared_bytes: u32,
}

/// What a kernel is given.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A place in the device's memory.
    Address(u64),
    /// A number.
    Word(u32),
    /// A number.
    Float(f32),
}

impl Argument {
    /// Where the value is, as launches take it.
    pub fn place(&self) -> *const c_void {
        match self {
            Self::Address(value) => (&raw const *value).cast(),
            Self::Word(value) => (&raw const *value).cast(),
            Self::Float(value) => (&raw const *value).cast(),
        }
    }
}

/// `count` matrix products y = x W^T + bias, row by row, in halves or from E4M3 to halves, and summed in f32; strides
/// and steps from one product to the next are in values.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Product {
    /// Addresses of `x: [rows, inputs]`, of W, of `y: [rows, outputs]`, and of `bias: [outputs]` or 0.
    pub x: u64,
    /// See `x`.
    pub w: u64,
    /// See `x`.
    pub y: u64,
    /// See `x`.
    pub bias: u64,
    /// Where x and W are E4M3, the addresses of what their values are multiplied with, f32 each; else 0.
    pub x_scale: u64,
    /// See `x_scale`.
    pub w_scale: u64,
    /// Rows of x and y.
    pub rows: u64,
    /// Columns of y.
    pub outputs: u64,
    /// Columns of x.
    pub inputs: u64,
    /// From row to row.
    pub x_stride: u64,
    /// From row to row.
    pub w_stride: u64,
    /// From row to row.
    pub y_stride: u64,
    /// Products.
    pub count: u64,
    /// From product to product.
    pub x_step: u64,
    /// From product to product.
    pub w_step: u64,
    /// From product to product.
    pub y_step: u64,
    /// Whether W lies as `[inputs, outputs]` and not as `[outputs, inputs]`.
    pub is_input_major: u32,
    /// Whether y is f32.
    pub is_output_f32: u32,
}

/// What the CUDA engine needs of a device: memory, kernels and matrix products, all in one queue; and
/// trips through it, of which several may be under way.
pub trait Device: Send {
    /// A piece of memory, freed when it is dropped.
    type Memory: Send;
    /// A batch's way to the device and back; dropping one that is under way waits for it.
    type Trip: Send;

    /// Memory, with whatever is in it.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn alloc(&self, bytes: usize) -> Result<Self::Memory, DeviceError>;

    /// Where it is; a multiple of 16.
    fn address(memory: &Self::Memory) -> u64;

    /// Copies to the device.
    ///
    /// # Safety
    /// So many bytes of the device's memory lie at `address`.
    ///
    /// # Errors
    /// [`DeviceError`].
    unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Waits for all that is in the queue, and copies from the device.
    ///
    /// # Safety
    /// So many bytes of the device's memory lie at `address`.
    ///
    /// # Errors
    /// [`DeviceError`], that of anything in the queue.
    unsafe fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Queues a kernel.
    ///
    /// # Safety
    /// The arguments are the kernel's, and it reads and writes within the device's memory.
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
    /// They read and write within the device's memory.
    ///
    /// # Errors
    /// [`DeviceError`].
    unsafe fn multiply(&self, half: Half, product: &Product) -> Result<(), DeviceError>;

    /// Queues what `launches` queues, which is the same whenever `key` is: a device may record it once.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn replay(
        &self,
        key: usize,
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError>;

    /// Host memory for a batch of so many words, and for so many bytes of what it gives.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn trip(&self, words: usize, bytes: usize) -> Result<Self::Trip, DeviceError>;

    /// The words that a trip takes along.
    ///
    /// # Panics
    /// Where it is under way.
    ///
    /// # Errors
    /// [`DeviceError`], that of a device that has failed.
    fn words(trip: &mut Self::Trip) -> Result<&mut [u32], DeviceError>;

    /// Queues a trip: its first `words` to the device, what `launches` queues, and so many bytes back. It is under way
    /// until [`Device::take`]; where it could not be queued as a whole, it is not, and nothing of it is left in the
    /// queue.
    ///
    /// # Safety
    /// So many words and bytes of the device's memory lie at the addresses.
    ///
    /// # Errors
    /// [`DeviceError`].
    unsafe fn travel(
        &self,
        trip: &mut Self::Trip,
        words: (u64, usize),
        bytes: (u64, usize),
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError>;

    /// Whether a trip is back, or will never be; [`Device::take`] then does not wait.
    fn is_back(&self, _trip: &Self::Trip) -> bool {
        true
    }

    /// Waits for a trip and gives what it brought; and what the device spent on it, if that tells.
    ///
    /// # Errors
    /// [`DeviceError`], that of anything in the queue up to it. It is not under way any more.
    fn take(&self, trip: &mut Self::Trip, bytes: &mut [u8]) -> Result<Option<DeviceNs>, DeviceError>;

    /// Bytes of its memory that were taken through this; none where it does not tell.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// What it draws, by whomever; none where it does not tell.
    fn watts(&self) -> Option<f64> {
        None
    }
}

/// Why a device did not do something.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// It has no memory left.
    #[error("the device is out of memory")]
    OutOfMemory,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Memory of a device that knows its length.
pub struct Array<D: Device> {
    memory: D::Memory,
    bytes: usize,
}

impl<D: Device> Array<D> {
    /// So many bytes, of whatever is there.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(device: &D, bytes: usize) -> Result<Self, DeviceError> {
        Ok(Self { memory: device.alloc(bytes)?, bytes })
    }

    /// These bytes.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn of_bytes(device: &D, bytes: &[u8]) -> Result<Self, DeviceError> {
        let array = Self::new(device, bytes.len())?;
        array.write(device, bytes)?;
        Ok(array)
    }

    /// These floats.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn of_floats(device: &D, values: &[f32]) -> Result<Self, DeviceError> {
        Self::of_bytes(device, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// These floats, in a half.
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

    /// Waits for the queue and reads its first bytes.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn read(&self, device: &D, bytes: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: `holding` asserts the length.
        unsafe { device.read(self.holding(bytes.len()), bytes) }
    }

    /// Its address, where it has so many bytes.
    fn holding(&self, bytes: usize) -> u64 {
        assert!(bytes <= self.bytes, "an array of {} bytes holds {bytes}", self.bytes);
        D::address(&self.memory)
    }
}
