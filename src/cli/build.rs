//! `executor build`: builds a function here, as a running executor would, and writes the artifact to a file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;

use super::list::Scratch;
use crate::adapter::Adapter;
use crate::adapter::docker::{DockerAdapter, DockerOptions, ImageState, Network};
use crate::adapter::process::ProcessAdapter;
use crate::build::{Build, BuildOptions, Builds, End, Source};
use crate::config::{docker_host, search_path};
use crate::function;
use crate::runtime::{Runtime, Runtimes};

#[derive(Debug, Args)]
pub(super) struct BuildArgs {
    /// The function's folder
    folder: PathBuf,
    /// The artifact [default: <name>.tar.zst]
    #[arg(long, short = 'o', value_name = "FILE")]
    out: Option<PathBuf>,
    /// What runs the build command: docker, process, or auto: Docker if it can, else a process
    #[arg(long, env = "EXECUTOR_ADAPTER", default_value = "auto", value_name = "ADAPTER")]
    adapter: String,
    /// Certificates, PEM, that the build command trusts beside the system's
    #[arg(long, env = "EXECUTOR_CA_CERTIFICATES", value_name = "FILE")]
    ca_certificates: Option<PathBuf>,
    /// How long it may take
    #[arg(long, env = "EXECUTOR_BUILD_TIMEOUT", default_value = "10m", value_name = "TIME")]
    build_timeout: String,
    /// Folder of runtimes [default: those inside this binary]
    #[arg(long, env = "EXECUTOR_RUNTIMES", value_name = "FOLDER")]
    runtimes: Option<PathBuf>,
}

pub(super) fn build(args: &BuildArgs) -> anyhow::Result<ExitCode> {
    let folder =
        args.folder.canonicalize().with_context(|| format!("cannot read {}", args.folder.display()))?;
    let name = folder.file_name().and_then(|name| name.to_str()).context("the folder has no name")?;
    let scratch = Scratch::new()?;
    let runtimes = Arc::new(Runtimes::open(args.runtimes.as_deref(), scratch.path())?);
    let function = function::read_entry(&folder, name, &runtimes).function?;
    let runtime = runtimes.get(&function.runtime.name).context("its runtime is gone")?;
    let timeout = crate::units::duration(&args.build_timeout).map_err(anyhow::Error::msg)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.zst")));
    let options = BuildOptions {
        data: scratch.path().to_owned(),
        workers: 1,
        timeout,
        max_artifact: BuildOptions::MAX_ARTIFACT,
        certificates: args.ca_certificates.clone(),
    };
    super::block_on(async {
        let adapter = adapter(&args.adapter, &runtime, scratch.path()).await?;
        eprintln!("building {name} with the adapter {}", adapter.name());
        let builds = Builds::open(options, Arc::clone(&adapter), Arc::clone(&runtimes))?;
        let build = builds.begin(name)?;
        let work = async {
            let built = builds.run(&build, Source::Folder(folder.clone())).await;
            build.log.end(End::Done { version: None });
            built
        };
        let interrupted = async {
            let _ = tokio::signal::ctrl_c().await;
            build.cancel();
            std::future::pending::<()>().await;
        };
        let work = async { tokio::join!(work, show(&build)).0 };
        let built = tokio::select! {
            built = work => built?,
            () = interrupted => bail!("interrupted"),
        };
        std::fs::copy(builds.archive(&built.hash), &out)
            .with_context(|| format!("cannot write {}", out.display()))?;
        println!("{}  {}  {} bytes", out.display(), built.hash, built.size);
        adapter.sweep().await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Its lines as they come.
async fn show(build: &Build) {
    let mut from = 0;
    loop {
        let (lines, end) = build.log.follow(from).await;
        from += lines.len();
        for line in lines {
            eprintln!("{}  {}", line.at.get(11..19).unwrap_or_default(), line.line);
        }
        if end.is_some() {
            return;
        }
    }
}

async fn adapter(choice: &str, runtime: &Runtime, data: &Path) -> anyhow::Result<Arc<dyn Adapter>> {
    let process = || Arc::new(ProcessAdapter::new(data.join("run"), search_path()));
    let options = DockerOptions {
        data: data.to_owned(),
        host: docker_host(),
        network: Network::default(),
        user: None,
        registry: None,
    };
    match choice {
        "process" => Ok(process()),
        "docker" => Ok(Arc::new(DockerAdapter::connect(options).await?)),
        "auto" => match DockerAdapter::connect(options).await {
            Ok(docker) => match docker.can_build(runtime).await {
                Ok(ImageState::Ready(_) | ImageState::Buildable) => Ok(Arc::new(docker)),
                Ok(ImageState::NoBase) | Err(_) => Ok(process()),
            },
            Err(_) => Ok(process()),
        },
        other => bail!("--adapter: `{other}` must be one of auto, docker, process"),
    }
}
