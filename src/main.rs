//! The `podium` binary; `src/cli` has its commands.

/// A request makes a few hundred small allocations, and many are freed by another thread. This allocator takes half the
/// system allocator's time for them (`benches/overhead.rs`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    podium::cli::main()
}
