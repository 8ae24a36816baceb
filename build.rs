//! With the feature `cuda` and nvcc: compiles `kernels/` for the GPUs in `KERNEL_ARCHS` (default 80, 86, 89 and 90a),
//! and to PTX for later ones. Without nvcc NVRTC compiles the kernels when a GPU is opened.

use std::path::{Path, PathBuf};
use std::process::Command;

const ARCHS: &str = "80,86,89,90a";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(podium_fatbin)");
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN", "KERNEL_ARCHS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let Some(nvcc) = nvcc() else {
        println!(
            "cargo::warning=nvcc was not found (set NVCC or CUDA_HOME): kernels are compiled at run time, by NVRTC"
        );
        return;
    };
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.fatbin");
    let archs = std::env::var("KERNEL_ARCHS").unwrap_or_else(|_| ARCHS.to_owned());
    let mut command = Command::new(nvcc);
    command.args(["-O3", "-std=c++17", "-fatbin", "kernels/kernels.cu", "-o"]).arg(out);
    command.args(archs.split(',').map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}")));
    // PTX for later GPUs, with and without E4M3.
    command.args(["80", "89"].map(|arch| format!("-gencode=arch=compute_{arch},code=compute_{arch}")));
    if let Some(compiler) = std::env::var_os("NVCC_CCBIN") {
        command.arg("-ccbin").arg(compiler);
    }
    let status = command.status().expect("nvcc has just said its version");
    assert!(status.success(), "nvcc does not compile kernels/kernels.cu: {command:?}");
    println!("cargo::rustc-cfg=podium_fatbin");
}

/// The first nvcc that can be run.
fn nvcc() -> Option<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let mut places: Vec<PathBuf> = std::env::var_os("NVCC").into_iter().map(PathBuf::from).collect();
    places.extend(homes.map(|home| Path::new(&home).join("bin/nvcc")));
    places.extend(["/usr/local/cuda/bin/nvcc", "nvcc"].map(PathBuf::from));
    let runs = |place: &PathBuf| {
        Command::new(place).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    places.into_iter().find(runs)
}
