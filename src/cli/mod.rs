//! The command line: one file per subcommand, and the only code that prints.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the room that prints")]

mod build;
mod client;
mod deploy;
mod doctor;
mod health;
mod image;
mod invoke;
mod lifecycle;
mod list;
mod new;
mod serve;
mod state;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{RunArgs, ServeArgs};

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
        #[command(flatten)]
        run: RunArgs,
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Write a small working function
    New(new::NewArgs),
    /// Call a function of a running executor and show answer, logs and timings
    Invoke(invoke::InvokeArgs),
    /// Build a function here and write the artifact to a file
    Build(build::BuildArgs),
    /// Send a function to a running executor, which builds, starts and then serves it
    Deploy(deploy::DeployArgs),
    /// Let an earlier version of a deployed function serve again
    Rollback(deploy::RollbackArgs),
    /// Take a deployed function away
    Remove(deploy::RemoveArgs),
    /// List the functions
    List(list::ListArgs),
    /// Look at the state of functions, change and move it
    #[command(subcommand)]
    State(state::StateCommand),
    /// Print what a function says of itself, without running its init hook
    Info(list::InfoArgs),
    /// Build the image of a language for hosts of Open Runtimes, with this binary inside
    Image(image::ImageArgs),
    /// Say what is usable here and what to do about what is missing
    Doctor(doctor::DoctorArgs),
    /// Ask a running executor whether it is healthy; exit code 0 if so
    Health(health::HealthArgs),
    /// What the helper scripts of an image call
    #[command(hide = true, subcommand)]
    Lifecycle(lifecycle::LifecycleCommand),
}

/// Parses the command line and runs what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => serve::serve(&cli.serve, None),
        Some(Command::Serve(args)) => serve::serve(&args, None),
        Some(Command::Run { run, serve }) => serve::serve(&serve, Some(&run)),
        Some(Command::New(args)) => new::new(&args),
        Some(Command::Invoke(args)) => invoke::invoke(&args),
        Some(Command::Build(args)) => build::build(&args),
        Some(Command::Deploy(args)) => deploy::deploy(&args),
        Some(Command::Rollback(args)) => deploy::rollback(&args),
        Some(Command::Remove(args)) => deploy::remove(&args),
        Some(Command::List(args)) => list::list(&args),
        Some(Command::State(command)) => state::state(&command),
        Some(Command::Info(args)) => list::info(&args),
        Some(Command::Image(args)) => image::image(&args),
        Some(Command::Doctor(args)) => doctor::doctor(&args),
        Some(Command::Health(args)) => health::health(&args),
        Some(Command::Lifecycle(command)) => Ok(lifecycle::lifecycle(&command)),
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(future);
    // A read of standard input that nobody needs any more cannot be ended, and must not hold up the result.
    runtime.shutdown_background();
    result
}
