//! Parses, runs, prints the error chain, returns the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    executor::cli::main()
}
