//! The `podium` binary; `src/cli` has its commands.

/// A request makes and frees a few hundred small pieces, many on another thread than the one that
/// made them; this allocator takes half the time of the system's for that (`benches/overhead.rs`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    podium::cli::main()
}
