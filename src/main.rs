//! The `podium` binary; `src/cli` has its commands.

fn main() -> std::process::ExitCode {
    podium::cli::main()
}
