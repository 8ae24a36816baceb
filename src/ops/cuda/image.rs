//! The compiled kernels: by nvcc in `build.rs` if it was found, else by NVRTC when a GPU is opened.

use super::DeviceError;
#[cfg(not(podium_fatbin))]
use super::kernels::SOURCES;
#[cfg(not(podium_fatbin))]
use super::nvidia::failed;
use cudarc::driver::CudaContext;
use cudarc::nvrtc::Ptx;

/// The kernels as compiled by `build.rs`.
#[cfg(podium_fatbin)]
static FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

#[cfg(podium_fatbin)]
pub(super) fn kernels(_context: &CudaContext) -> Result<Ptx, DeviceError> {
    Ok(Ptx::from_binary(FATBIN.to_vec()))
}

#[cfg(not(podium_fatbin))]
pub(super) fn kernels(context: &CudaContext) -> Result<Ptx, DeviceError> {
    let (major, minor) = context.compute_capability().map_err(failed)?;
    compile(&format!("compute_{major}{minor}"))
}

/// Compiles the kernels by NVRTC.
#[cfg(not(podium_fatbin))]
fn compile(architecture: &str) -> Result<Ptx, DeviceError> {
    use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
    // SAFETY: the call only looks for the library.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        let message =
            "libnvrtc.so was not found; it compiles the kernels, because this program was built without nvcc";
        return Err(DeviceError::Failed(message.to_owned()));
    }
    // The lambdas in the kernels carry no `__device__` annotation.
    let options = ["--std=c++17", "--device-as-default-execution-space"].map(str::to_owned).to_vec();
    let options = [vec![format!("--gpu-architecture={architecture}")], options].concat();
    compile_ptx_with_opts(SOURCES.concat(), CompileOptions { options, ..CompileOptions::default() })
        .map_err(|error| DeviceError::Failed(format!("NVRTC: {error}")))
}

#[cfg(test)]
mod tests {
    #[cfg(not(podium_fatbin))]
    #[test]
    fn nvrtc_compiles_the_kernels_too() {
        use super::{DeviceError, compile};
        use crate::ops::cuda::{Half, Kernel};
        for architecture in ["compute_80", "compute_90"] {
            match compile(architecture) {
                Ok(ptx) => {
                    let text = ptx.to_src();
                    for kernel in Kernel::ALL {
                        assert!(text.contains(&kernel.symbol(Half::Bf16)), "{kernel:?} is not there");
                    }
                }
                Err(DeviceError::Failed(why)) if why.contains("was not found") => eprintln!("SKIPPED: {why}"),
                Err(error) => panic!("{architecture}: {error}"),
            }
        }
    }
}
