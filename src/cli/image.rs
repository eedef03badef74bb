//! `executor image`: builds the image of a language for hosts of Open Runtimes, with this very binary inside.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::list::Scratch;
use crate::adapter::docker::{DockerAdapter, DockerOptions, Network};
use crate::runtime::Runtimes;
use crate::telemetry;

/// This program's own file, also when it was replaced or removed since it started.
const SELF: &str = "/proc/self/exe";

#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    /// Language: node, python
    runtime: String,
    /// Name of the image [default: executor/<RUNTIME>:v5]
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// Folder of runtimes [default: those inside this binary]
    #[arg(long, env = "EXECUTOR_RUNTIMES", value_name = "FOLDER")]
    runtimes: Option<PathBuf>,
}

pub(super) fn image(args: &ImageArgs) -> anyhow::Result<ExitCode> {
    telemetry::init("info", false);
    let scratch = Scratch::new()?;
    let runtimes = Runtimes::open(args.runtimes.as_deref(), scratch.path())?;
    let Some(runtime) = runtimes.get(&args.runtime) else {
        bail!("there is no runtime `{}`; there are: {}", args.runtime, runtimes.names());
    };
    let tag = args.tag.clone().unwrap_or_else(|| format!("executor/{}:v5", runtime.name.to_lowercase()));
    let options = DockerOptions {
        data: scratch.path().to_owned(),
        host: crate::config::docker_host(),
        network: Network::default(),
        user: None,
        registry: None,
    };
    super::block_on(async {
        let binary = tokio::fs::File::open(SELF)
            .await
            .with_context(|| format!("cannot read {SELF}; only Linux has it"))?;
        let docker = DockerAdapter::connect(options).await?;
        docker.build_runtime_image(&runtime, &tag, binary).await?;
        Ok(())
    })?;
    println!("{tag}");
    Ok(ExitCode::SUCCESS)
}
