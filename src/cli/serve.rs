//! `executor serve` and `executor run`: puts the parts together and serves until a signal.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::adapter::Adapter;
use crate::adapter::docker::{DockerAdapter, DockerOptions, ImageState, Network};
use crate::adapter::process::ProcessAdapter;
use crate::config::{AdapterChoice, Config, NetworkChoice, SecretSource, ServeArgs};
use crate::data_folder::{DataFolder, Running};
use crate::executor::{Executor, ExecutorOptions};
use crate::function::{Access, Entry};
use crate::http::connection::TimeLimits;
use crate::http::{Front, FrontLimits, Service};
use crate::instance::Secret;
use crate::link::message::Limits as WorkerLimits;
use crate::pool::{Limits, Pool, PoolOptions, Starter};
use crate::runtime::Runtimes;
use crate::server::{Server, Signals};
use crate::task::Tasks;
use crate::{state, telemetry};

pub(super) fn serve(args: &ServeArgs, single: Option<&Path>) -> anyhow::Result<ExitCode> {
    let terminal = std::io::stderr().is_terminal();
    let config = match Config::new(args, single, terminal) {
        Ok(config) => config,
        Err(problems) => {
            for problem in problems {
                eprintln!("error: {problem}");
            }
            eprintln!("`executor --help` explains each flag.");
            return Ok(ExitCode::from(2));
        }
    };
    telemetry::init(&config.log, config.json_logs);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(config.threads).enable_all().build()?;
    let result = runtime.block_on(run(config));
    // Whatever still runs has had its grace.
    runtime.shutdown_background();
    result
}

async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let data = DataFolder::open(&config.data)?;
    let listener = Server::bind(config.address).await.with_context(|| {
        format!("cannot listen on {}; is another program there? Try --port", config.address)
    })?;
    let address = listener.local_addr()?;
    let runtimes = Arc::new(Runtimes::open(config.runtimes.as_deref(), &config.data)?);
    let store = state::open(&config.store)?;
    let (adapter, why) = choose_adapter(&config, &data, &runtimes).await?;
    // The predecessor may have used the other adapter.
    let swept = adapter.sweep().await? + crate::adapter::process::sweep(&data.run_folder());
    if swept > 0 {
        tracing::warn!(instances = swept, "removed instances that an earlier executor left behind");
    }
    let secrets = Secrets::new(&config, &data)?;
    let executor = Executor::new(
        executor_options(&config),
        Pool::new(starter(&config, &data, Arc::clone(&adapter)), pool_options(&config)),
        Arc::clone(&runtimes),
        store,
    );
    let entries = executor
        .load()
        .with_context(|| format!("cannot read the functions folder {}", config.functions.display()))?;
    // Before anybody is told that we serve: from then on a signal must find its handler.
    let mut signals = Signals::new()?;
    data.write_running(&Running { url: url(address), pid: std::process::id(), single: config.single })?;
    announce(&config, address, &*adapter, &why, &executor, &entries, &secrets);
    let stop = CancellationToken::new();
    let background = Tasks::default();
    start_background(&background, &executor, config.watch, &stop);
    let front = Front {
        executor: Arc::clone(&executor),
        secret: secrets.callers.clone(),
        admin_secret: secrets.admin,
        limits: FrontLimits { max_body: config.max_body, body_idle: config.idle_timeout },
    };
    let time = TimeLimits { head: config.header_timeout, idle: config.idle_timeout };
    let server = Server::new(listener, Service::new(front), time, config.max_connections);
    let grace = config.grace;
    let signal = stop.clone();
    background.spawn("signals", async move {
        signals.next().await;
        tracing::info!(?grace, "shutting down; a second signal leaves at once");
        signal.cancel();
        signals.next().await;
        std::process::exit(130);
    });
    let serving = async {
        server.run(stop.clone(), grace).await;
        std::time::Instant::now()
    };
    let refusing = async {
        stop.cancelled().await;
        executor.refuse_new_calls();
        std::time::Instant::now()
    };
    let (_, begun) = tokio::join!(serving, refusing);
    executor.shutdown(grace.saturating_sub(begun.elapsed())).await;
    data.forget_running();
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

fn start_background(tasks: &Tasks, executor: &Arc<Executor>, watch: bool, stop: &CancellationToken) {
    let until = |stop: &CancellationToken, work: futures_util::future::BoxFuture<'static, ()>| {
        let stop = stop.clone();
        async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        }
    };
    let (reaper, watcher, preparer) = (Arc::clone(executor), Arc::clone(executor), Arc::clone(executor));
    tasks.spawn("reaper", until(stop, Box::pin(reaper.reap())));
    if watch {
        tasks.spawn("watch", until(stop, Box::pin(watcher.watch())));
    }
    tasks.spawn("prepare runtimes", until(stop, Box::pin(async move { preparer.prepare_runtimes().await })));
}

struct Secrets {
    callers: Option<Secret>,
    generated: Option<PathBuf>,
    admin: Secret,
}

impl Secrets {
    fn new(config: &Config, data: &DataFolder) -> anyhow::Result<Self> {
        let (callers, generated) = match &config.secret {
            SecretSource::Given(secret) => (Some(secret.clone()), None),
            SecretSource::Open => (None, None),
            SecretSource::Kept => (Some(data.secret()?), Some(data.secret_path())),
        };
        let admin = match &config.admin_secret {
            SecretSource::Given(secret) => secret.clone(),
            SecretSource::Kept | SecretSource::Open => data.admin_secret()?,
        };
        Ok(Self { callers, generated, admin })
    }
}

fn executor_options(config: &Config) -> ExecutorOptions {
    ExecutorOptions {
        functions: config.functions.clone(),
        single: config.single,
        cancel_grace: config.cancel_grace,
        queue: config.queue,
        max_response: config.max_response,
        max_state: config.max_state,
    }
}

fn pool_options(config: &Config) -> PoolOptions {
    PoolOptions {
        limits: Limits { instances: config.max_instances, queue: config.queue },
        reap_interval: config.reap_interval,
        starts_at_once: (config.cores * 2).max(4),
    }
}

pub(super) fn starter(config: &Config, data: &DataFolder, adapter: Arc<dyn Adapter>) -> Starter {
    Starter {
        adapter,
        limit: config.start_timeout,
        run_folder: data.run_folder(),
        worker_limits: WorkerLimits { response: config.max_response, state: config.max_state },
    }
}

/// The adapter, and why it was chosen.
async fn choose_adapter(
    config: &Config,
    data: &DataFolder,
    runtimes: &Runtimes,
) -> anyhow::Result<(Arc<dyn Adapter>, String)> {
    let process = || Arc::new(ProcessAdapter::new(data.run_folder(), config.path.clone()));
    let docker = || DockerAdapter::connect(docker_options(config));
    match config.adapter {
        AdapterChoice::Process => Ok((process(), "as asked".into())),
        AdapterChoice::Docker => {
            let docker = docker().await.map_err(|e| anyhow::anyhow!("--adapter docker: {e}"))?;
            Ok((Arc::new(docker), "as asked".into()))
        }
        AdapterChoice::Auto => match docker().await {
            Err(error) => Ok((process(), format!("because Docker is not usable: {error}"))),
            Ok(docker) => match why_not_docker(&docker, runtimes).await {
                None => Ok((Arc::new(docker), "because Docker answers and can run every runtime".into())),
                Some(why) => {
                    docker.sweep().await?;
                    Ok((process(), why))
                }
            },
        },
    }
}

fn docker_options(config: &Config) -> DockerOptions {
    let network = match config.network {
        NetworkChoice::Bridge => Network::default(),
        NetworkChoice::None => Network::None,
    };
    DockerOptions { data: config.data.clone(), host: config.docker_host.clone(), network, user: None }
}

async fn why_not_docker(docker: &DockerAdapter, runtimes: &Runtimes) -> Option<String> {
    for runtime in runtimes.iter() {
        match docker.can_build(runtime).await {
            Ok(ImageState::Ready(_) | ImageState::Buildable) => {}
            Ok(ImageState::NoBase) => {
                return Some(format!(
                    "because Docker answers, but for {}: {}",
                    runtime.name,
                    ImageState::NoBase
                ));
            }
            Err(error) => return Some(format!("because Docker answers, but not well: {error}")),
        }
    }
    None
}

fn url(address: SocketAddr) -> String {
    let host = if address.ip().is_unspecified() { "localhost".to_owned() } else { address.ip().to_string() };
    let host = if address.is_ipv6() && host != "localhost" { format!("[{host}]") } else { host };
    format!("http://{host}:{}", address.port())
}

/// As one word for a shell; a plain path stays as it is.
fn shell_quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
    if text.bytes().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A `curl` line for one of the functions that works when it is pasted.
fn curl(
    config: &Config,
    address: SocketAddr,
    entries: &[Entry],
    secrets: &Secrets,
    show: bool,
) -> Option<String> {
    let usable = |entry: &&Entry| entry.function.is_ok();
    let stateless = |entry: &&Entry| entry.function.as_ref().is_ok_and(|f| f.state.is_none());
    let greeting = entries.iter().find(|entry| &*entry.name == "hello").filter(usable);
    let entry =
        greeting.or_else(|| entries.iter().find(stateless)).or_else(|| entries.iter().find(usable))?;
    let function = entry.function.as_ref().ok()?;
    let path = if config.single { String::new() } else { entry.name.to_string() };
    let url = url(address);
    let secret = match (&secrets.callers, &secrets.generated) {
        _ if function.access == Access::Public => None,
        (None, _) => None,
        (Some(_), None) => Some("$OPEN_RUNTIMES_SECRET".to_owned()),
        (Some(secret), Some(_)) if show => Some(secret.expose().to_owned()),
        // Logs are collected and kept; the file is for those who may read it.
        (Some(_), Some(path)) => Some(format!("$(cat {})", shell_quoted(&path.to_string_lossy()))),
    };
    Some(match secret {
        Some(secret) => format!("curl -H \"x-open-runtimes-secret: {secret}\" {url}/{path}"),
        None => format!("curl {url}/{path}"),
    })
}

fn announce(
    config: &Config,
    address: SocketAddr,
    adapter: &dyn Adapter,
    why: &str,
    executor: &Executor,
    entries: &[Entry],
    secrets: &Secrets,
) {
    let good = entries.iter().filter(|entry| entry.function.is_ok()).count();
    let curl = curl(config, address, entries, secrets, !config.json_logs);
    for entry in entries {
        if let Err(error) = &entry.function {
            tracing::error!(function = %entry.name, "{error}");
        }
    }
    if config.json_logs {
        let (url, store, adapter) = (url(address), executor.store_name(), adapter.name());
        tracing::info!(url, adapter, why, store, functions = good, curl, "serving");
        return;
    }
    let functions = if good == 1 { "function" } else { "functions" };
    println!("executor {} serves {good} {functions} at {}", env!("CARGO_PKG_VERSION"), url(address));
    println!("  adapter   {}, {why}", adapter.name());
    println!("  store     {}", executor.store_name());
    match curl {
        Some(curl) => println!("  try       {curl}"),
        None => println!("  try       executor new hello --runtime node"),
    }
}
