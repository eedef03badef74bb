//! `executor lifecycle build|start`: what the scripts in a language's `helpers` folder call. Not for people.

use std::process::ExitCode;

use clap::Subcommand;

use crate::lifecycle::{self, Folders, Output};

/// The steps of an image's life.
#[derive(Debug, Subcommand)]
pub(super) enum LifecycleCommand {
    /// Build the source in /mnt/code
    Build {
        /// Command line of the build
        #[arg(default_value = "", allow_hyphen_values = true)]
        command: String,
    },
    /// Put the code in place and start the server
    Start {
        /// Command line of the server
        #[arg(allow_hyphen_values = true)]
        command: String,
    },
}

/// Runs one of them; its exit code is that of the step that failed, or of the server.
pub(super) fn lifecycle(command: &LifecycleCommand) -> ExitCode {
    let environment = crate::config::environment();
    let folders = Folders::new(&environment);
    let mut output = Output { out: Box::new(std::io::stdout()), err: Box::new(std::io::stderr()) };
    let result = match command {
        LifecycleCommand::Build { command } => {
            lifecycle::build(&environment, &folders, command, &mut output).map(|()| 0)
        }
        LifecycleCommand::Start { command } => lifecycle::start(&environment, &folders, command, output),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
