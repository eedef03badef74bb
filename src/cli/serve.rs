//! `executor serve` and `executor run`: puts the parts together and serves until a signal.

use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::adapter::Adapter;
use crate::adapter::docker::{DockerAdapter, DockerOptions, ImageState, Network};
use crate::adapter::process::ProcessAdapter;
use crate::build::{BuildOptions, Builds};
use crate::config::{
    AdapterChoice, ApiConfig, Config, NetworkChoice, RunArgs, RunConfig, SecretSource, ServeArgs,
};
use crate::data_folder::{DataFolder, Running};
use crate::executor::guests::{GuestHouse, Parts as GuestParts};
use crate::executor::{Executor, ExecutorOptions, Stores};
use crate::function::{Access, Entry};
use crate::http::admin::state::FOLLOWERS;
use crate::http::connection::TimeLimits;
use crate::http::contract::ContractOptions;
use crate::http::sites::Sites;
use crate::http::v1::{V1, V1Options};
use crate::http::{Front, FrontLimits, Service};
use crate::instance::Secret;
use crate::link::message::Limits as WorkerLimits;
use crate::pool::{Limits, Pool, PoolOptions, Starter};
use crate::runtime::Runtimes;
use crate::server::{Server, Signals};
use crate::state::crdt::Replica;
use crate::state::{SealedStore, StateStore};
use crate::task::Tasks;
use crate::transport::Client;
use crate::{state, storage, telemetry};

pub(super) fn serve(args: &ServeArgs, run: Option<&RunArgs>) -> anyhow::Result<ExitCode> {
    let terminal = std::io::stderr().is_terminal();
    let config = match Config::new(args, run, terminal) {
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
    let result = runtime.block_on(run_until_stopped(config));
    // Whatever still runs has had its grace.
    runtime.shutdown_background();
    result
}

async fn run_until_stopped(config: Config) -> anyhow::Result<ExitCode> {
    let data = DataFolder::open(&config.data)?;
    let listener = Server::bind(config.address).await.with_context(|| {
        format!("cannot listen on {}; is another program there? Try --port", config.address)
    })?;
    let address = listener.local_addr()?;
    let runtimes = Arc::new(Runtimes::open(config.runtimes.as_deref(), &config.data)?);
    let stores = open_stores(&config).await?;
    let (adapter, why) = choose_adapter(&config, &data, &runtimes).await?;
    // The predecessor may have used the other adapter.
    let swept = adapter.sweep().await? + crate::adapter::process::sweep(&data.run_folder());
    if swept > 0 {
        tracing::warn!(instances = swept, "removed instances that an earlier executor left behind");
    }
    let client = Client::default();
    let secrets = Secrets::new(&config, &data)?;
    let builds = Builds::open(build_options(&config), Arc::clone(&adapter), Arc::clone(&runtimes))?;
    let executor = Executor::new(
        executor_options(&config, replica(&data)?),
        Pool::new(starter(&config, &data, Arc::clone(&adapter), client.clone()), pool_options(&config)),
        builds,
        Arc::clone(&runtimes),
        stores,
    );
    let entries = executor
        .load()
        .with_context(|| format!("cannot read the functions folder {}", config.functions.display()))?;
    let deployed = executor.load_deployed().await;
    if deployed > 0 {
        tracing::info!(functions = deployed, "deployed functions were opened");
    }
    // Before anybody is told that we serve: from then on a signal must find its handler.
    let mut signals = Signals::new()?;
    data.write_running(&Running {
        url: url(address),
        pid: std::process::id(),
        single: config.run.is_some(),
    })?;
    announce(&config, address, &*adapter, &why, &executor, &entries, &secrets);
    if config.run.is_some() {
        // What hosts of Open Runtimes look for. Whoever has read enough may have closed the pipe.
        let _ = writeln!(std::io::stdout(), "HTTP server successfully started!");
    }
    let stop = CancellationToken::new();
    let background = Tasks::default();
    start_background(&background, &executor, config.watch, &stop);
    if config.run.is_some() {
        background.spawn("early start", until(&stop, Box::pin(Arc::clone(&executor).start_early())));
    }
    let house = config.api.as_ref().map(|api| guest_house(api, &adapter, client)).transpose()?;
    if let Some(house) = &house {
        background.spawn("runtimes", until(&stop, Box::pin(Arc::clone(house).keep())));
    }
    let front = Front {
        executor: Arc::clone(&executor),
        secret: secrets.callers.clone(),
        admin_secret: secrets.admin,
        sites: Sites::default(),
        followers: Arc::new(tokio::sync::Semaphore::new(FOLLOWERS)),
        v1: house
            .clone()
            .zip(config.api.as_ref())
            .map(|(house, api)| V1::new(house, v1_options(api, &config))),
        limits: FrontLimits {
            max_body: config.max_body,
            max_archive: config.builds.max_archive,
            body_idle: config.idle_timeout,
        },
    };
    let time = TimeLimits { head: config.header_timeout, idle: config.idle_timeout };
    let service = match &config.run {
        None => Service::new(front),
        Some(run) => Service::alone(front, contract_options(run, &config)),
    };
    let server = Server::new(listener, service, time, config.max_connections);
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
    let left = || grace.saturating_sub(begun.elapsed());
    if let Some(house) = &house {
        house.shutdown(left()).await;
    }
    executor.shutdown(left()).await;
    data.forget_running();
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

fn replica(data: &DataFolder) -> anyhow::Result<Replica> {
    let name = data.replica()?;
    Replica::new(&name).with_context(|| format!("`{name}` in the data folder cannot be a replica's name"))
}

async fn open_stores(config: &Config) -> anyhow::Result<Stores> {
    let keys = config.store_keys.as_ref();
    let sealed = |store: Arc<dyn StateStore>| match keys {
        Some(keys) => Arc::new(SealedStore::new(store, keys.clone())),
        None => store,
    };
    let mut stores = Stores::new(sealed(state::open(&config.store).await?));
    for (name, url) in &config.named_stores {
        let store = state::open(url).await.with_context(|| format!("--store {name}=…"))?;
        stores = stores.with(name.clone(), sealed(store));
    }
    Ok(stores)
}

/// `work`, but no longer than until `stop`.
fn until(
    stop: &CancellationToken,
    work: futures_util::future::BoxFuture<'static, ()>,
) -> impl Future<Output = ()> + use<> {
    let stop = stop.clone();
    async move {
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }
}

fn guest_house(
    api: &ApiConfig,
    adapter: &Arc<dyn Adapter>,
    client: Client,
) -> anyhow::Result<Arc<GuestHouse>> {
    if let Some(warning) = api.storage.warning() {
        tracing::warn!("{warning}");
    }
    let storage = storage::open(&api.storage)?;
    let cache = match &api.cache_storage {
        Some(url) => storage::open(url)?,
        None => Arc::clone(&storage),
    };
    let (options, adapter) = (api.guests.clone(), Arc::clone(adapter));
    Ok(GuestHouse::new(GuestParts { options, adapter, storage, cache, client }))
}

fn v1_options(api: &ApiConfig, config: &Config) -> V1Options {
    V1Options {
        development: api.development,
        version: api.version.clone(),
        versions: api.versions.clone(),
        health_json: api.health_json,
        max_answer: config.max_response,
    }
}

fn start_background(tasks: &Tasks, executor: &Arc<Executor>, watch: bool, stop: &CancellationToken) {
    let (reaper, watcher, preparer) = (Arc::clone(executor), Arc::clone(executor), Arc::clone(executor));
    tasks.spawn("reaper", until(stop, Box::pin(reaper.reap())));
    tasks.spawn("timers", until(stop, Box::pin(Arc::clone(executor).deliver_timers())));
    tasks.spawn("sweeper", until(stop, Box::pin(Arc::clone(executor).sweep_state())));
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

fn executor_options(config: &Config, replica: Replica) -> ExecutorOptions {
    ExecutorOptions {
        replica,
        functions: config.functions.clone(),
        alone: config.run.as_ref().map(|run| run.alone.clone()),
        whole_bodies: config.run.is_some(),
        cancel_grace: config.cancel_grace,
        queue: config.queue,
        max_response: config.max_response,
        max_state: config.max_state,
    }
}

fn contract_options(run: &RunConfig, config: &Config) -> ContractOptions {
    ContractOptions {
        logs: run.logs.clone(),
        own_logs: run.own_logs,
        timings: run.timings.clone(),
        development: run.development,
        enforced: run.enforced.clone(),
        // The pool's own limit is to speak first, for it knows the reason.
        start: config.start_timeout + std::time::Duration::from_secs(5),
    }
}

fn build_options(config: &Config) -> BuildOptions {
    BuildOptions {
        data: config.data.clone(),
        workers: config.builds.workers,
        timeout: config.builds.timeout,
        max_artifact: BuildOptions::MAX_ARTIFACT,
        certificates: config.builds.certificates.clone(),
    }
}

fn pool_options(config: &Config) -> PoolOptions {
    PoolOptions {
        limits: Limits {
            instances: config.max_instances,
            queue: config.queue,
            // A host of the contract retries by itself, and each of its requests is owed one attempt.
            back_off: config.run.is_none(),
        },
        reap_interval: config.reap_interval,
        starts_at_once: (config.cores * 2).max(4),
    }
}

pub(super) fn starter(
    config: &Config,
    data: &DataFolder,
    adapter: Arc<dyn Adapter>,
    client: Client,
) -> Starter {
    Starter {
        adapter,
        limit: config.start_timeout,
        run_folder: data.run_folder(),
        client,
        worker_limits: WorkerLimits::new(config.max_response, config.max_state),
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
    DockerOptions {
        data: config.data.clone(),
        host: config.docker_host.clone(),
        network,
        user: None,
        registry: config.api.as_ref().and_then(|api| api.docker_hub.clone()),
    }
}

async fn why_not_docker(docker: &DockerAdapter, runtimes: &Runtimes) -> Option<String> {
    for runtime in runtimes.with_workers() {
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
    let path = if config.run.is_some() { String::new() } else { entry.name.to_string() };
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
        let (url, store, adapter) = (url(address), executor.stores().describe(), adapter.name());
        tracing::info!(url, adapter, why, store, functions = good, curl, "serving");
        return;
    }
    let functions = if good == 1 { "function" } else { "functions" };
    println!("executor {} serves {good} {functions} at {}", env!("CARGO_PKG_VERSION"), url(address));
    println!("  adapter   {}, {why}", adapter.name());
    println!("  store     {}", executor.stores().describe());
    match curl {
        Some(curl) => println!("  try       {curl}"),
        None => println!("  try       executor new hello --runtime node"),
    }
}
