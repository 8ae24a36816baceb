//! An NVIDIA GPU: memory, kernels and products on a stream of its own, recorded as graphs.
//!
//! The driver and cublasLt are loaded when they are asked for, so that a program with this feature starts where there
//! are none.

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

/// Bytes of pinned memory for copies in each direction; longer ones go piece by piece.
const STAGING_BYTES: usize = 4 << 20;
/// Shared memory that a block has without being asked for more.
const SHARED_BYTES: u32 = 48 << 10;

/// A GPU and a stream on it, used by one thread at a time.
pub struct Nvidia {
    graphs: RefCell<HashMap<usize, Option<CudaGraph>>>,
    functions: HashMap<(Kernel, Half), Function>,
    blas: Blas,
    workspace: CudaSlice<u8>,
    /// Pinned, for copies to the device; whether one may be under way.
    up: RefCell<(PinnedHostSlice<u8>, bool)>,
    /// Pinned, for copies from it.
    down: RefCell<PinnedHostSlice<u8>>,
    /// Bytes that were allocated; all are freed together, at the end.
    memory_bytes: Cell<u64>,
    /// As NVML knows it.
    monitor: Option<nvml_wrapper::Device<'static>>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

// SAFETY: no part is bound to a thread (every call that needs it makes the context current), and without `Sync` it is
// used by one at a time, as graphs and cublasLt's plans must be.
unsafe impl Send for Nvidia {}

struct Function {
    function: CudaFunction,
    /// Shared memory that it declares.
    shared_bytes: u32,
    /// What it may have beyond that.
    extra_bytes: Cell<u32>,
}

/// Pinned memory for a batch and its logits, with events at its start and its end.
pub struct Trip {
    up: PinnedHostSlice<u32>,
    down: PinnedHostSlice<u8>,
    start: CudaEvent,
    end: CudaEvent,
    /// Whether copies may be at work on both.
    is_under_way: bool,
    stream: Arc<CudaStream>,
}

impl Trip {
    /// Waits for all that is in the queue; one that has failed copies nothing any more.
    fn wait(&mut self) {
        // SAFETY: the stream is there. Not by the context, which would tell of an earlier error instead of waiting.
        let _ = unsafe { result::stream::synchronize(self.stream.cu_stream()) };
        self.is_under_way = false;
    }
}

impl Drop for Trip {
    fn drop(&mut self) {
        if self.is_under_way {
            // The memory must outlive its copies.
            self.wait();
        }
    }
}

impl Nvidia {
    /// How many GPUs there are, at least one.
    ///
    /// # Errors
    /// [`DeviceError`], where there is none or no driver.
    pub fn count() -> Result<usize, DeviceError> {
        // SAFETY: it only looks for the library, without which all other calls panic.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::Failed("no NVIDIA driver (libcuda.so.1) is here".to_owned()));
        }
        let count = result::init().and_then(|()| result::device::get_count()).map_err(failed)?;
        match count {
            1.. => Ok(count as usize),
            _ => Err(DeviceError::Failed("the driver knows no GPU".to_owned())),
        }
    }

    /// Opens one of them and loads the kernels.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(DeviceError::Failed(format!("GPU {ordinal} is not among the {count} that are here")));
        }
        let context = CudaContext::new(ordinal).map_err(failed)?;
        // SAFETY: there is one stream for all memory of this device, so that nothing has to be waited for; and events
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
            monitor: monitor(&context.uuid().map_err(failed)?.bytes.map(|byte| byte as u8)),
            stream,
            context,
        })
    }

    /// How many forwards are recorded, and how many could not be.
    pub fn recorded(&self) -> (usize, usize) {
        let graphs = self.graphs.borrow();
        let recorded = graphs.values().filter(|graph| graph.is_some()).count();
        (recorded, graphs.len() - recorded)
    }

    /// What the driver calls it.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn name(&self) -> Result<String, DeviceError> {
        self.context.name().map_err(failed)
    }

    /// Lets a function have more shared memory than it has by default, where the device has that.
    fn extend(&self, kernel: Kernel, function: &Function, extra_bytes: u32) -> Result<(), DeviceError> {
        let limit = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let limit = self.context.attribute(limit).map_err(failed)? as u32;
        let wanted = function.shared_bytes + extra_bytes;
        if wanted > limit {
            return Err(DeviceError::Failed(format!(
                "{kernel:?} needs {wanted} bytes of shared memory for the longest pair, and the device has {limit}"
            )));
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.function.set_attribute(attribute, extra_bytes as i32).map_err(failed)?;
        function.extra_bytes.set(extra_bytes);
        Ok(())
    }

    /// Records what `launches` queues.
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
    type Trip = Trip;

    fn alloc(&self, bytes: usize) -> Result<CudaSlice<u8>, DeviceError> {
        // SAFETY: whoever allocates knows that anything is in it.
        let memory = unsafe { self.stream.alloc(bytes.max(1)) }.map_err(failed)?;
        self.memory_bytes.set(self.memory_bytes.get() + bytes as u64);
        Ok(memory)
    }

    fn address(memory: &CudaSlice<u8>) -> u64 {
        memory.device_ptr(memory.stream()).0
    }

    unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(failed)?;
        let (pinned, is_under_way) = &mut *self.up.borrow_mut();
        let pinned = pinned.as_mut_slice().map_err(failed)?;
        for (piece, address) in bytes.chunks(STAGING_BYTES).zip((address..).step_by(STAGING_BYTES)) {
            if *is_under_way {
                self.stream.synchronize().map_err(failed)?;
            }
            *is_under_way = true;
            let pinned = &mut pinned[..piece.len()];
            pinned.copy_from_slice(piece);
            // SAFETY: the caller promises the memory; pinned bytes are not written again while the copy may be under way.
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
            self.extend(kernel, function, shape.shared_bytes)?;
        }
        let mut places: Vec<*mut c_void> =
            arguments.iter().map(|argument| argument.place().cast_mut()).collect();
        // SAFETY: the function is of a module that is loaded; the caller promises its arguments, which the driver
        // copies.
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
        // SAFETY: the caller promises the addresses; the workspace has its length, and products run one by one.
        unsafe { self.blas.multiply(half, product, Self::address(&self.workspace), self.stream.cu_stream()) }
    }

    /// The first time all is queued as it is, which loads and plans what has to be; then it is recorded.
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
            tracing::warn!(%error, "a forward cannot be recorded and is launched kernel by kernel");
            None
        });
        self.graphs.borrow_mut().insert(key, recorded);
        Ok(())
    }

    fn trip(&self, words: usize, bytes: usize) -> Result<Trip, DeviceError> {
        let mark = || self.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed);
        // SAFETY: words are set below, and bytes are written before they are read.
        let (mut up, down) = unsafe {
            let up = self.context.alloc_pinned_with_flags(words, 0).map_err(failed)?;
            (up, self.context.alloc_pinned_with_flags(bytes, 0).map_err(failed)?)
        };
        up.as_mut_slice().map_err(failed)?.fill(0);
        let stream = self.stream.clone();
        Ok(Trip { up, down, start: mark()?, end: mark()?, is_under_way: false, stream })
    }

    fn words(trip: &mut Trip) -> Result<&mut [u32], DeviceError> {
        assert!(!trip.is_under_way, "words on their way are not written");
        trip.up.as_mut_slice().map_err(failed)
    }

    unsafe fn travel(
        &self,
        trip: &mut Trip,
        (to, words): (u64, usize),
        (from, bytes): (u64, usize),
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(failed)?;
        assert!(!trip.is_under_way, "a trip is taken before its next one");
        let stream = self.stream.cu_stream();
        let up = &trip.up.as_slice().map_err(failed)?[..words];
        let down = &mut trip.down.as_mut_slice().map_err(failed)?[..bytes];
        // SAFETY: the caller promises the device's memory; that of the host is neither written nor read before the copies
        // have ended, by `is_under_way` or by the wait below.
        let there = || unsafe { result::memcpy_htod_async(to, up, stream) };
        // SAFETY: as above.
        let mut back = || unsafe { result::memcpy_dtoh_async(down, from, stream) };
        // From here on, whatever becomes of the rest.
        trip.is_under_way = true;
        let queued = (trip.start.record(&self.stream).and_then(|()| there()).map_err(failed))
            .and_then(|()| launches())
            .and_then(|()| back().and_then(|()| trip.end.record(&self.stream)).map_err(failed));
        if queued.is_err() {
            trip.wait();
        }
        queued
    }

    fn is_back(&self, trip: &Trip) -> bool {
        // A device that has failed brings nothing.
        trip.end.try_is_complete().unwrap_or(true)
    }

    fn take(&self, trip: &mut Trip, bytes: &mut [u8]) -> Result<Option<DeviceNs>, DeviceError> {
        // SAFETY: the event is the trip's. Not by the context, which would tell of another error instead of waiting.
        let ended = unsafe { result::event::synchronize(trip.end.cu_event()) };
        trip.is_under_way = false;
        ended.map_err(failed)?;
        bytes.copy_from_slice(&trip.down.as_slice().map_err(failed)?[..bytes.len()]);
        let spent = trip.start.elapsed_ms(&trip.end).ok();
        Ok(spent.map(|spent| DeviceNs((f64::from(spent) * 1e6) as u64)))
    }

    fn memory_bytes(&self) -> Option<u64> {
        Some(self.memory_bytes.get())
    }

    fn watts(&self) -> Option<f64> {
        self.monitor.as_ref()?.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3)
    }
}

/// The device as NVML knows it, where that is there.
fn monitor(bytes: &[u8; 16]) -> Option<nvml_wrapper::Device<'static>> {
    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    let open = || Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init().ok();
    NVML.get_or_init(open).as_ref()?.device_by_uuid(uuid(bytes)).ok()
}

/// `GPU-8a6e...`, as NVML names what the driver numbers.
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
