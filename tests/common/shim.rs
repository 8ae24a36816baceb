//! The CPU as a CUDA device: the kernels' source, compiled by the system's C++ compiler.
#![expect(unsafe_code, reason = "kernels are called through a library built from kernels/shim.cpp")]

use libloading::Library;
use podium::base::DeviceNs;
use podium::ops::cuda::{Argument, Device, DeviceError, Half, Kernel, Product, Shape};
use std::cell::UnsafeCell;
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// A device whose memory is the process's. One kernel runs at a time, because the library has one set of fibers.
#[derive(Clone)]
pub struct Shim {
    library: Arc<Library>,
    /// Whether warps run last to first with copies at once, or first to last with copies as late as allowed.
    pub is_reversed: bool,
    /// Whether every launch fails.
    pub is_broken: Arc<AtomicBool>,
    /// The keys of all replays.
    pub replayed: Arc<Mutex<BTreeSet<usize>>>,
}

/// Aligned to 16 bytes, because kernels access eight 16-bit values at once.
pub struct Memory(Box<[UnsafeCell<u128>]>);

/// A batch's words, and its results while it is in flight.
pub struct Submission {
    words: Vec<u32>,
    results: Option<Vec<u8>>,
}

static LOADED: OnceLock<Option<Shim>> = OnceLock::new();
static RUNNING: Mutex<()> = Mutex::new(());

impl Shim {
    /// Compiles the kernels. Without a C++ compiler it says so on stderr and returns none.
    pub fn here() -> Option<Self> {
        LOADED.get_or_init(Self::build).clone()
    }

    fn build() -> Option<Self> {
        let root = crate::common::root();
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libkernels.so");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"];
        let built = Command::new(&compiler)
            .args(flags)
            .args(["-DPODIUM_SHIM", "-o"])
            .args([&library, &root.join("kernels/shim.cpp")])
            .output();
        match built {
            Err(error) => {
                eprintln!("skipped: no C++ compiler `{compiler}`: {error}");
                return None;
            }
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        }
        // SAFETY: the library is ours and has no initialisers.
        let loaded = unsafe { Library::new(&library) }.unwrap();
        Some(Self {
            library: Arc::new(loaded),
            is_reversed: false,
            is_broken: Arc::default(),
            replayed: Arc::default(),
        })
    }
}

impl Device for Shim {
    type Memory = Memory;
    type Submission = Submission;

    fn alloc(&self, bytes: usize) -> Result<Memory, DeviceError> {
        // Filled with NaN, so that a read before a write shows.
        Ok(Memory((0..bytes.div_ceil(16)).map(|_| UnsafeCell::new(u128::MAX)).collect()))
    }

    fn address(memory: &Memory) -> u64 {
        memory.0.as_ptr() as u64
    }

    unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller promises the bytes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }

    unsafe fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller promises the bytes.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        half: Half,
        shape: Shape,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        type Run = unsafe extern "C" fn(*const u32, *mut *const c_void);
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(DeviceError::Failed("the device is broken".to_owned()));
        }
        let _one = RUNNING.lock().unwrap();
        let name = format!("shim_{}", kernel.symbol(half));
        let shape = [shape.blocks[0], shape.blocks[1], shape.threads, shape.shared_bytes];
        let mut places: Vec<*const c_void> = arguments.iter().map(Argument::place).collect();
        // SAFETY: the library has an entry point of this signature for every kernel, and the caller promises the arguments.
        unsafe {
            let reverse = self.library.get::<unsafe extern "C" fn(u32)>("shim_reverse").unwrap();
            reverse(u32::from(self.is_reversed));
            let run = self.library.get::<Run>(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
            run(shape.as_ptr(), places.as_mut_ptr());
        }
        Ok(())
    }

    unsafe fn multiply(&self, half: Half, product: &Product) -> Result<(), DeviceError> {
        type Multiply = unsafe extern "C" fn(*const Product);
        let name = format!("shim_multiply_{}", half.name());
        // SAFETY: the library has this function for both half types, and the caller promises the memory.
        unsafe { self.library.get::<Multiply>(&name).unwrap()(product) };
        Ok(())
    }

    fn replay(
        &self,
        key: usize,
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.replayed.lock().unwrap().insert(key);
        launches()
    }

    fn submission(&self, words: usize, _bytes: usize) -> Result<Submission, DeviceError> {
        Ok(Submission { words: vec![u32::MAX; words], results: None })
    }

    fn words(submission: &mut Submission) -> Result<&mut [u32], DeviceError> {
        assert!(submission.results.is_none(), "the words of a submission in flight are not written");
        Ok(&mut submission.words)
    }

    unsafe fn submit(
        &self,
        submission: &mut Submission,
        (to, words): (u64, usize),
        (from, bytes): (u64, usize),
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let words: Vec<u8> =
            Self::words(submission)?[..words].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut results = vec![0; bytes];
        // SAFETY: the caller promises the memory.
        unsafe {
            self.write(to, &words)?;
            launches()?;
            self.read(from, &mut results)?;
        }
        submission.results = Some(results);
        Ok(())
    }

    fn collect(
        &self,
        submission: &mut Submission,
        bytes: &mut [u8],
    ) -> Result<Option<DeviceNs>, DeviceError> {
        bytes.copy_from_slice(&submission.results.take().expect("only a submission in flight is collected"));
        Ok(None)
    }
}
