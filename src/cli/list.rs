//! `executor list` and `executor info`: what is in the functions folder, read as `serve` would read it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::adapter::process::ProcessAdapter;
use crate::function::{self, Access, Function, Model, ServedBy};
use crate::link::message::Limits;
use crate::pool::Starter;
use crate::runtime::Runtimes;
use crate::transport::Client;

/// A function that does not load within this time has no info to show.
const INFO_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Folder of functions
    #[arg(long, env = "EXECUTOR_FUNCTIONS", default_value = "./functions", value_name = "FOLDER")]
    functions: PathBuf,
    /// Folder of runtimes [default: those inside this binary]
    #[arg(long, env = "EXECUTOR_RUNTIMES", value_name = "FOLDER")]
    runtimes: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    /// Name of the function
    name: String,
    #[command(flatten)]
    folders: ListArgs,
}

/// A temporary folder that is removed at the end.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("executor-{}", uuid::Uuid::new_v4().simple()));
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let scratch = Scratch::new()?;
    let runtimes = Runtimes::open(args.runtimes.as_deref(), scratch.path())?;
    let entries = function::read_folder(&args.functions, &runtimes)
        .with_context(|| format!("cannot read {}", args.functions.display()))?;
    let width = entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0).max(4);
    println!("{:width$}  {:14} {:8} {:9} {:8} STATE", "NAME", "RUNTIME", "ACCESS", "INSTANCES", "TIMEOUT");
    let mut broken = false;
    for entry in &entries {
        match &entry.function {
            Ok(f) => println!("{:width$}  {}", entry.name, row(f)),
            Err(error) => {
                broken = true;
                println!("{:width$}  broken: {error}", entry.name);
            }
        }
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn row(f: &Function) -> String {
    let access = if f.access == Access::Public { "public" } else { "secret" };
    let instances = format!("{}-{}", f.min_instances, f.max_instances);
    let state = f.state.as_ref().map_or("-".to_owned(), |state| match state.model {
        Model::Value => format!("per {}", state.key),
        _ => format!("{} per {}", state.model, state.key),
    });
    let timeout = format!("{:?}", f.timeout);
    format!("{:14} {access:8} {instances:9} {timeout:8} {state}", f.runtime.to_string())
}

pub(super) fn info(args: &InfoArgs) -> anyhow::Result<ExitCode> {
    let scratch = Scratch::new()?;
    let runtimes = Runtimes::open(args.folders.runtimes.as_deref(), scratch.path())?;
    let folder = args.folders.functions.join(&args.name);
    if !folder.join(function::MANIFEST).is_file() {
        bail!("there is no function `{}` in {}", args.name, args.folders.functions.display());
    }
    let function = function::read_entry(&folder, &args.name, &runtimes).function?;
    if function.served_by != ServedBy::Worker {
        bail!(
            "`{}` is served by {}, which says nothing of itself",
            args.name,
            served_by(&function.served_by)
        );
    }
    let info = super::block_on(ask(&function, &runtimes, scratch.path()))?;
    println!("{}", serde_json::to_string_pretty(&info)?);
    Ok(ExitCode::SUCCESS)
}

fn served_by(what: &ServedBy) -> String {
    match what {
        ServedBy::Worker => "a worker".into(),
        ServedBy::Image(image) => format!("the image {}", image.name),
        ServedBy::Files => "its files".into(),
    }
}

async fn ask(
    function: &Arc<Function>,
    runtimes: &Runtimes,
    scratch: &Path,
) -> anyhow::Result<serde_json::Value> {
    let run_folder = scratch.join("run");
    let path = crate::config::search_path();
    let adapter = Arc::new(ProcessAdapter::new(run_folder.clone(), path));
    let worker_limits = Limits::new(20 << 20, 1 << 20);
    let starter =
        Starter { adapter, limit: INFO_LIMIT, run_folder, worker_limits, client: Client::default() };
    let runtime = runtimes.get(&function.runtime.name).context("its runtime is gone")?;
    let ready = starter.info(function, &runtime).await.map_err(|failure| anyhow::anyhow!(failure.message))?;
    Ok(serde_json::json!({
        "function": &*function.name,
        "runtime": function.runtime.to_string(),
        "info": ready.info,
        "hooks": ready.hooks,
    }))
}
