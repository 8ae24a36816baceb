//! An NVIDIA GPU: memory, kernels, matrix products and CUDA graphs on one stream.
//!
//! The driver and cublasLt are loaded on first use, so that a program built with this feature also starts on machines
//! without them.

use super::blas::{Blas, WORKSPACE_BYTES};
use super::image;
use super::{Argument, Device, DeviceError, Half, Kernel, Product, Shape};
use crate::base::{DeviceNs, hex};
use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaSlice, CudaStream, DevicePtr, DriverError,
    PinnedHostSlice, result,
};
use nvml_wrapper::Nvml;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{OsStr, c_void};
use std::sync::{Arc, OnceLock};

/// Bytes of the pinned staging buffer for each direction; longer copies are split.
const STAGING_BYTES: usize = 4 << 20;
/// Shared memory that a block may use without opting in to more.
const SHARED_BYTES: u32 = 48 << 10;

/// A GPU with one stream, used by one thread at a time.
pub struct Nvidia {
    graphs: RefCell<HashMap<usize, Option<CudaGraph>>>,
    functions: HashMap<(Kernel, Half), Function>,
    blas: Blas,
    workspace: CudaSlice<u8>,
    /// Pinned, for copies to the device; and whether such a copy may be in flight.
    up: RefCell<(PinnedHostSlice<u8>, bool)>,
    /// Pinned, for copies from the device.
    down: RefCell<PinnedHostSlice<u8>>,
    /// Bytes allocated so far. Never decreases: the engine frees everything at once, when it ends.
    memory_bytes: Cell<u64>,
    /// The NVML handle, if NVML is present.
    monitor: Option<nvml_wrapper::Device<'static>>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

// SAFETY: no part is bound to a thread (each call makes the context current first). Graphs and cublasLt plans must be used
// by one thread at a time, which holds because the type is not `Sync`.
unsafe impl Send for Nvidia {}

struct Function {
    function: CudaFunction,
    /// Static shared memory.
    shared_bytes: u32,
    /// Dynamic shared memory that it may use at present.
    extra_bytes: Cell<u32>,
}

/// Pinned memory for a batch and its results, and the events at its start and end.
pub struct Submission {
    up: PinnedHostSlice<u32>,
    down: PinnedHostSlice<u8>,
    start: CudaEvent,
    end: CudaEvent,
    /// Whether copies may still access the buffers.
    is_in_flight: bool,
    stream: Arc<CudaStream>,
}

impl Submission {
    /// Waits for all queued work. A queue that has failed makes no more copies.
    fn wait(&mut self) {
        // SAFETY: the stream is alive. cudarc's own method is not used: it would return an earlier error without waiting.
        let _ = unsafe { result::stream::synchronize(self.stream.cu_stream()) };
        self.is_in_flight = false;
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if self.is_in_flight {
            // The buffers must outlive their copies.
            self.wait();
        }
    }
}

impl Nvidia {
    /// The number of GPUs, at least 1.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no GPU or no driver.
    pub fn count() -> Result<usize, DeviceError> {
        // SAFETY: the call only looks for the library. Without the library all other calls would panic.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::Failed("no NVIDIA driver was found (libcuda.so.1)".to_owned()));
        }
        let count = result::init().and_then(|()| result::device::get_count()).map_err(failed)?;
        match count {
            1.. => Ok(count as usize),
            _ => Err(DeviceError::Failed("the NVIDIA driver reports no GPU".to_owned())),
        }
    }

    /// Opens a GPU by its number and loads the kernels.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(DeviceError::Failed(format!(
                "there is no GPU {ordinal}; the driver reports {count}, numbered from 0"
            )));
        }
        let context = CudaContext::new(ordinal).map_err(failed)?;
        // SAFETY: all memory of this value is used on one stream, so that no event is needed to order accesses; and events
        // would break the recording of graphs.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed)?;
        let module = context.load_module(image::kernels(&context)?).map_err(failed)?;
        let mut functions = HashMap::new();
        for (kernel, half) in
            Kernel::ALL.iter().flat_map(|&kernel| [(kernel, Half::F16), (kernel, Half::Bf16)])
        {
            let function = module.load_function(&kernel.symbol(half)).map_err(failed)?;
            let declared = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            let shared_bytes = function.get_attribute(declared).map_err(failed)? as u32;
            let extra_bytes = Cell::new(SHARED_BYTES.saturating_sub(shared_bytes));
            functions.insert((kernel, half), Function { function, shared_bytes, extra_bytes });
        }
        // SAFETY: pinned and device memory are written before they are read.
        let (up, down, workspace) = unsafe {
            let pinned = || context.alloc_pinned_with_flags::<u8>(STAGING_BYTES, 0);
            (
                pinned().map_err(failed)?,
                pinned().map_err(failed)?,
                stream.alloc(WORKSPACE_BYTES).map_err(failed)?,
            )
        };
        Ok(Self {
            graphs: RefCell::default(),
            functions,
            blas: Blas::new()?,
            workspace,
            up: RefCell::new((up, false)),
            down: RefCell::new(down),
            memory_bytes: Cell::new(WORKSPACE_BYTES as u64),
            monitor: monitor(&context.uuid().map_err(failed)?.bytes.map(|byte| byte.to_ne_bytes()[0])),
            stream,
            context,
        })
    }

    /// How many graphs are recorded, and how many recordings failed.
    pub fn recorded(&self) -> (usize, usize) {
        let graphs = self.graphs.borrow();
        let recorded = graphs.values().filter(|graph| graph.is_some()).count();
        (recorded, graphs.len() - recorded)
    }

    /// The device's name as the driver gives it.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn name(&self) -> Result<String, DeviceError> {
        self.context.name().map_err(failed)
    }

    /// Opts in to more dynamic shared memory than the default, if the device has that much.
    fn extend_shared(
        &self,
        kernel: Kernel,
        function: &Function,
        extra_bytes: u32,
    ) -> Result<(), DeviceError> {
        let limit = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let limit = self.context.attribute(limit).map_err(failed)? as u32;
        let wanted = function.shared_bytes + extra_bytes;
        if wanted > limit {
            return Err(DeviceError::Failed(format!(
                "kernel {kernel:?} needs {wanted} bytes of shared memory per block; the GPU has {limit}"
            )));
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.function.set_attribute(attribute, extra_bytes as i32).map_err(failed)?;
        function.extra_bytes.set(extra_bytes);
        Ok(())
    }

    /// Records the work of `launches` as a graph.
    fn record(
        &self,
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Option<CudaGraph>, DeviceError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed)?;
        let queued = launches();
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(failed);
        queued?;
        let graph = graph?;
        if let Some(graph) = &graph {
            graph.upload().map_err(failed)?;
        }
        Ok(graph)
    }
}

impl Device for Nvidia {
    type Memory = CudaSlice<u8>;
    type Submission = Submission;

    fn alloc(&self, bytes: usize) -> Result<CudaSlice<u8>, DeviceError> {
        // SAFETY: callers must treat the contents as uninitialised, as the trait says.
        let memory = unsafe { self.stream.alloc(bytes.max(1)) }.map_err(failed)?;
        self.memory_bytes.set(self.memory_bytes.get() + bytes as u64);
        Ok(memory)
    }

    fn address(memory: &CudaSlice<u8>) -> u64 {
        memory.device_ptr(memory.stream()).0
    }

    unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(failed)?;
        let (pinned, is_in_flight) = &mut *self.up.borrow_mut();
        let pinned = pinned.as_mut_slice().map_err(failed)?;
        for (piece, address) in bytes.chunks(STAGING_BYTES).zip((address..).step_by(STAGING_BYTES)) {
            if *is_in_flight {
                self.stream.synchronize().map_err(failed)?;
            }
            *is_in_flight = true;
            let pinned = &mut pinned[..piece.len()];
            pinned.copy_from_slice(piece);
            // SAFETY: the caller promises the memory; the pinned bytes are not written again while the copy may be in flight.
            unsafe { result::memcpy_htod_async(address, pinned, self.stream.cu_stream()) }.map_err(failed)?;
        }
        Ok(())
    }

    unsafe fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(failed)?;
        let pinned = &mut *self.down.borrow_mut();
        for (piece, address) in bytes.chunks_mut(STAGING_BYTES).zip((address..).step_by(STAGING_BYTES)) {
            let pinned = &mut pinned.as_mut_slice().map_err(failed)?[..piece.len()];
            // SAFETY: the caller promises the memory; the copy has ended before the bytes are read.
            unsafe { result::memcpy_dtoh_async(pinned, address, self.stream.cu_stream()) }.map_err(failed)?;
            self.stream.synchronize().map_err(failed)?;
            piece.copy_from_slice(pinned);
        }
        self.up.borrow_mut().1 = false;
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        half: Half,
        shape: Shape,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(failed)?;
        let function = &self.functions[&(kernel, half)];
        if shape.shared_bytes > function.extra_bytes.get() {
            self.extend_shared(kernel, function, shape.shared_bytes)?;
        }
        let mut places: Vec<*mut c_void> =
            arguments.iter().map(|argument| argument.place().cast_mut()).collect();
        // SAFETY: the function belongs to a loaded module; the caller promises the arguments, which the driver copies.
        unsafe {
            result::launch_kernel(
                function.function.cu_function(),
                (shape.blocks[0], shape.blocks[1], 1),
                (shape.threads, 1, 1),
                shape.shared_bytes,
                self.stream.cu_stream(),
                &mut places,
            )
        }
        .map_err(failed)
    }

    unsafe fn multiply(&self, half: Half, product: &Product) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(failed)?;
        // SAFETY: the caller promises the addresses; the workspace has WORKSPACE_BYTES, and products on a stream do not
        // overlap.
        unsafe { self.blas.multiply(half, product, Self::address(&self.workspace), self.stream.cu_stream()) }
    }

    /// The first call for a key runs the launches directly, which loads kernels and makes plans, then records them.
    fn replay(
        &self,
        key: usize,
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if let Some(graph) = self.graphs.borrow().get(&key) {
            return match graph {
                Some(graph) => graph.launch().map_err(failed),
                None => launches(),
            };
        }
        launches()?;
        let recorded = self.record(launches).unwrap_or_else(|error| {
            tracing::warn!(%error, "a forward could not be recorded as a CUDA graph; its kernels are launched one by one");
            None
        });
        self.graphs.borrow_mut().insert(key, recorded);
        Ok(())
    }

    fn submission(&self, words: usize, bytes: usize) -> Result<Submission, DeviceError> {
        let mark = || self.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed);
        // SAFETY: words are set below, and bytes are written before they are read.
        let (mut up, down) = unsafe {
            let up = self.context.alloc_pinned_with_flags(words, 0).map_err(failed)?;
            (up, self.context.alloc_pinned_with_flags(bytes, 0).map_err(failed)?)
        };
        up.as_mut_slice().map_err(failed)?.fill(0);
        let stream = self.stream.clone();
        Ok(Submission { up, down, start: mark()?, end: mark()?, is_in_flight: false, stream })
    }

    fn words(submission: &mut Submission) -> Result<&mut [u32], DeviceError> {
        assert!(!submission.is_in_flight, "the words of a submission in flight are not written");
        submission.up.as_mut_slice().map_err(failed)
    }

    unsafe fn submit(
        &self,
        submission: &mut Submission,
        (to, words): (u64, usize),
        (from, bytes): (u64, usize),
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(failed)?;
        assert!(!submission.is_in_flight, "a submission is collected before it is reused");
        let stream = self.stream.cu_stream();
        let up = &submission.up.as_slice().map_err(failed)?[..words];
        let down = &mut submission.down.as_mut_slice().map_err(failed)?[..bytes];
        // SAFETY: the caller promises the device memory. Host buffers are neither written nor read before the copies have
        // ended: `is_in_flight` guards them, and after an error the wait below.
        let there = || unsafe { result::memcpy_htod_async(to, up, stream) };
        // SAFETY: as above.
        let mut back = || unsafe { result::memcpy_dtoh_async(down, from, stream) };
        // Set before anything is queued, so that the buffers stay guarded whichever call fails.
        submission.is_in_flight = true;
        let queued = (submission.start.record(&self.stream).and_then(|()| there()).map_err(failed))
            .and_then(|()| launches())
            .and_then(|()| back().and_then(|()| submission.end.record(&self.stream)).map_err(failed));
        if queued.is_err() {
            submission.wait();
        }
        queued
    }

    fn is_done(&self, submission: &Submission) -> bool {
        // An error counts as done: a device that has failed never completes the event.
        submission.end.try_is_complete().unwrap_or(true)
    }

    fn collect(
        &self,
        submission: &mut Submission,
        bytes: &mut [u8],
    ) -> Result<Option<DeviceNs>, DeviceError> {
        // SAFETY: the event is alive. cudarc's own method is not used: it would return an earlier error without waiting.
        let ended = unsafe { result::event::synchronize(submission.end.cu_event()) };
        submission.is_in_flight = false;
        ended.map_err(failed)?;
        bytes.copy_from_slice(&submission.down.as_slice().map_err(failed)?[..bytes.len()]);
        let spent = submission.start.elapsed_ms(&submission.end).ok();
        Ok(spent.map(|spent| DeviceNs((f64::from(spent) * 1e6) as u64)))
    }

    fn memory_bytes(&self) -> Option<u64> {
        Some(self.memory_bytes.get())
    }

    fn watts(&self) -> Option<f64> {
        self.monitor.as_ref()?.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3)
    }
}

/// The NVML handle of the device, if NVML is present.
fn monitor(bytes: &[u8; 16]) -> Option<nvml_wrapper::Device<'static>> {
    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    let open = || Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init().ok();
    NVML.get_or_init(open).as_ref()?.device_by_uuid(uuid(bytes)).ok()
}

/// The device's UUID in NVML's form, `GPU-8a6e...`.
fn uuid(bytes: &[u8; 16]) -> String {
    let text = hex(bytes);
    format!("GPU-{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

pub(super) fn failed(error: DriverError) -> DeviceError {
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => DeviceError::OutOfMemory,
        _ => DeviceError::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_nvml_writes_it() {
        let bytes: [u8; 16] = std::array::from_fn(|place| 16 * place as u8 + 1);
        assert_eq!(uuid(&bytes), "GPU-01112131-4151-6171-8191-a1b1c1d1e1f1");
    }
}
