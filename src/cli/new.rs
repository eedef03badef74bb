//! `executor new`: a small working function, copied from the runtime's example. Never overwrites.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use crate::function;
use crate::runtime::Runtimes;

#[derive(Debug, Args)]
pub(super) struct NewArgs {
    /// Name of the function: its folder and the first part of its path
    name: String,
    /// Language: node, python
    #[arg(long, default_value = "node", value_name = "RUNTIME")]
    runtime: String,
    /// Folder of functions
    #[arg(long, env = "EXECUTOR_FUNCTIONS", default_value = "./functions", value_name = "FOLDER")]
    functions: PathBuf,
    /// Folder of runtimes [default: those inside this binary]
    #[arg(long, env = "EXECUTOR_RUNTIMES", value_name = "FOLDER")]
    runtimes: Option<PathBuf>,
}

pub(super) fn new(args: &NewArgs) -> anyhow::Result<ExitCode> {
    function::check_name(&args.name).map_err(anyhow::Error::msg)?;
    let scratch = super::list::Scratch::new()?;
    let runtimes = Runtimes::open(args.runtimes.as_deref(), scratch.path())?;
    let Some(runtime) = runtimes.get(&args.runtime) else {
        bail!("there is no runtime `{}`; there are: {}", args.runtime, runtimes.names());
    };
    let folder = args.functions.join(&args.name);
    if folder.exists() {
        bail!("{} exists already; choose another name or remove it first", folder.display());
    }
    let example = runtime.folder.join("example");
    let files = crate::runtime::files(&example)
        .with_context(|| format!("the runtime `{}` has no example to copy", args.runtime))?;
    for file in files {
        let target = folder.join(&file);
        std::fs::create_dir_all(target.parent().unwrap_or(&folder))
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let content = std::fs::read(example.join(&file))?;
        std::fs::write(&target, content).with_context(|| format!("cannot write {}", target.display()))?;
        println!("wrote {}", target.display());
    }
    println!("call it with: executor invoke {}", args.name);
    Ok(ExitCode::SUCCESS)
}
