//! The command line: one file per subcommand, and the only code that prints.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the room that prints")]

mod client;
mod doctor;
mod health;
mod invoke;
mod list;
mod new;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ServeArgs;

/// Turns a folder of functions into HTTP endpoints, warm, with their state.
///
/// Without a subcommand it serves: every function in ./functions answers at /<name>.
#[derive(Debug, Parser)]
#[command(name = "executor", version, args_conflicts_with_subcommands = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a folder of functions (what happens without a subcommand)
    Serve(ServeArgs),
    /// Serve one function alone, at every path, in processes of this host
    Run {
        /// The function's folder
        folder: PathBuf,
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Write a small working function
    New(new::NewArgs),
    /// Call a function of a running executor and show answer, logs and timings
    Invoke(invoke::InvokeArgs),
    /// List the functions
    List(list::ListArgs),
    /// Print what a function says of itself, without running its init hook
    Info(list::InfoArgs),
    /// Say what is usable here and what to do about what is missing
    Doctor(doctor::DoctorArgs),
    /// Ask a running executor whether it is healthy; exit code 0 if so
    Health(health::HealthArgs),
}

/// Parses the command line and runs what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => serve::serve(&cli.serve, None),
        Some(Command::Serve(args)) => serve::serve(&args, None),
        Some(Command::Run { folder, serve }) => serve::serve(&serve, Some(&folder)),
        Some(Command::New(args)) => new::new(&args),
        Some(Command::Invoke(args)) => invoke::invoke(&args),
        Some(Command::List(args)) => list::list(&args),
        Some(Command::Info(args)) => list::info(&args),
        Some(Command::Doctor(args)) => doctor::doctor(&args),
        Some(Command::Health(args)) => health::health(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A runtime for commands that do one thing.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
