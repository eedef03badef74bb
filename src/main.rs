//! Parses, runs, prints the error chain, returns the exit code.

use std::process::ExitCode;

/// Requests are many small, short-lived allocations on few threads, which is where it beats the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    executor::cli::main()
}
