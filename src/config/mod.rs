//! Flags and environment, turned into one checked [`Config`]. The only code that reads either.
//!
//! Every flag is taken as text and checked here, so that all problems are reported at once, each with its flag.
//! Nothing else in the program has a default. What belongs to the executor API is in [`opr`].

mod opr;
mod run;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

pub use self::opr::ApiConfig;
pub use self::run::{RunArgs, RunConfig};
use crate::function::{MANIFEST, is_store_name};
use crate::instance::Secret;
use crate::state::{Keys, StoreUrl};
use crate::units;

/// What `executor serve` takes. `--help` is its reference.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Serving")]
pub struct ServeArgs {
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "EXECUTOR_PORT", default_value = "8080", value_name = "PORT")]
    pub port: String,
    /// Address to listen on
    #[arg(long, env = "EXECUTOR_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: String,
    /// Folder of functions
    #[arg(long, env = "EXECUTOR_FUNCTIONS", default_value = "./functions", value_name = "FOLDER")]
    pub functions: PathBuf,
    /// Folder for state, secrets and running instances [default: ./data; run: ./data/only-<name>]
    #[arg(long, env = "EXECUTOR_DATA", value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// What runs instances: docker, process, or auto: Docker if it can, else processes
    #[arg(long, env = "EXECUTOR_ADAPTER", default_value = "auto", value_name = "ADAPTER")]
    pub adapter: String,
    /// Where state is kept: sqlite:PATH, `postgres://USER:PASS@HOST/DB`, `redis://:PASS@HOST` or memory: [default: sqlite:<data>/state.db].
    /// Again as NAME=URL for functions that name it in their manifest; in the variable one per line
    #[arg(
        long,
        env = "EXECUTOR_STORE",
        value_name = "[NAME=]URL",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub store: Vec<String>,
    /// Seal state at rest with the first key of this file, open it with all: lines `ID BASE64-OF-32-BYTES`
    #[arg(long, env = "EXECUTOR_STORE_KEY_FILE", value_name = "FILE")]
    pub store_key_file: Option<PathBuf>,
    /// Secret that callers send as x-open-runtimes-secret [default: generated, kept in <data>/secret]
    #[arg(long, env = "OPEN_RUNTIMES_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub secret: Option<String>,
    /// Key for the operator's API [default: generated, kept in <data>/admin-secret]
    #[arg(long, env = "OPR_EXECUTOR_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub admin_secret: Option<String>,
    /// Reload a changed function without dropping a call: on, off, or auto: on in a terminal
    #[arg(long, env = "EXECUTOR_WATCH", default_value = "auto", value_name = "WHEN", num_args = 0..=1, default_missing_value = "on", require_equals = true)]
    pub watch: String,
    /// Folder of runtimes [default: those inside this binary]
    #[arg(long, env = "EXECUTOR_RUNTIMES", value_name = "FOLDER")]
    pub runtimes: Option<PathBuf>,
    /// Network of function containers: bridge reaches out, none does not
    #[arg(long, env = "EXECUTOR_NETWORK", default_value = "bridge", value_name = "NETWORK")]
    pub network: String,
    /// What is logged, for example info, debug, executor=debug,function=off
    #[arg(long, env = "EXECUTOR_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// How it is logged: text, json, or auto: text in a terminal, else JSON lines
    #[arg(long, env = "EXECUTOR_LOG_FORMAT", default_value = "auto", value_name = "FORMAT")]
    pub log_format: String,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    api: opr::ApiArgs,
    #[command(flatten)]
    builds: BuildArgs,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Builds")]
struct BuildArgs {
    /// Certificates, PEM, that build commands trust beside the system's, for example a company's
    #[arg(long, env = "EXECUTOR_CA_CERTIFICATES", value_name = "FILE")]
    ca_certificates: Option<PathBuf>,
    /// How long a build may take
    #[arg(long, env = "EXECUTOR_BUILD_TIMEOUT", default_value = "10m", value_name = "TIME")]
    build_timeout: String,
    /// Builds at the same time
    #[arg(long, env = "EXECUTOR_BUILD_WORKERS", default_value = "2", value_name = "N")]
    build_workers: String,
    /// Size of an archive that is deployed
    #[arg(long, env = "EXECUTOR_MAX_ARCHIVE", default_value = "256MiB", value_name = "SIZE")]
    max_archive: String,
}

/// How functions are built, checked.
#[derive(Debug, Clone)]
pub struct BuildConfig {
    /// See `--help`.
    pub certificates: Option<PathBuf>,
    /// See `--help`.
    pub timeout: Duration,
    /// See `--help`.
    pub workers: usize,
    /// Bytes.
    pub max_archive: u64,
}

impl BuildArgs {
    fn check(&self, c: &mut Checker) -> Option<BuildConfig> {
        let certificates = self.ca_certificates.clone();
        if let Some(file) = certificates.as_ref().filter(|file| !file.is_file()) {
            c.0.push(format!("--ca-certificates: `{}` is not a file", file.display()));
        }
        let timeout = c.time("build-timeout", &self.build_timeout);
        let workers = c.number("build-workers", &self.build_workers, 1, 64);
        let max_archive = c.size("max-archive", &self.max_archive, 16 << 30);
        Some(BuildConfig {
            certificates,
            timeout: timeout?,
            workers: workers? as usize,
            max_archive: max_archive?,
        })
    }
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Instances over all functions
    #[arg(long, env = "EXECUTOR_MAX_INSTANCES", default_value = "100", value_name = "N")]
    max_instances: String,
    /// Waiting calls per function
    #[arg(long, env = "EXECUTOR_QUEUE", default_value = "1024", value_name = "N")]
    queue: String,
    /// How often idle instances are looked for
    #[arg(long, env = "EXECUTOR_REAP_INTERVAL", default_value = "5s", value_name = "TIME")]
    reap_interval: String,
    /// How long an instance may take to start
    #[arg(long, env = "EXECUTOR_START_TIMEOUT", default_value = "60s", value_name = "TIME")]
    start_timeout: String,
    /// How long code may run on after its deadline before its instance is killed
    #[arg(long, env = "EXECUTOR_CANCEL_GRACE", default_value = "200ms", value_name = "TIME")]
    cancel_grace: String,
    /// How long running calls may take at shutdown
    #[arg(long, env = "EXECUTOR_GRACE", default_value = "30s", value_name = "TIME")]
    grace: String,
    /// Size of a request body
    #[arg(long, env = "EXECUTOR_MAX_BODY", default_value = "20MiB", value_name = "SIZE")]
    max_body: String,
    /// Size of an answer that is not streamed
    #[arg(long, env = "EXECUTOR_MAX_RESPONSE", default_value = "20MiB", value_name = "SIZE")]
    max_response: String,
    /// Size of one entity's state
    #[arg(long, env = "EXECUTOR_MAX_STATE", default_value = "1MiB", value_name = "SIZE")]
    max_state: String,
    /// Client connections
    #[arg(long, env = "EXECUTOR_MAX_CONNECTIONS", default_value = "8192", value_name = "N")]
    max_connections: String,
    /// How long a client may take for the head of a request
    #[arg(long, env = "EXECUTOR_HEADER_TIMEOUT", default_value = "10s", value_name = "TIME")]
    header_timeout: String,
    /// How long a connection may be without a byte
    #[arg(long, env = "EXECUTOR_IDLE_TIMEOUT", default_value = "75s", value_name = "TIME")]
    idle_timeout: String,
    /// Threads that serve requests [default: half of the cores, at least one; instances need the others]
    #[arg(long, env = "EXECUTOR_THREADS", value_name = "N")]
    threads: Option<String>,
}

/// `--adapter`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AdapterChoice {
    /// Docker if its daemon answers and the images are there or can be built, else processes
    Auto,
    /// Containers, or fail
    Docker,
    /// Processes of this host
    Process,
}

/// `--watch`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Depends on the terminal
    Auto,
    /// Yes
    On,
    /// No
    Off,
}

/// `--network`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NetworkChoice {
    /// Own bridge, without traffic between containers
    Bridge,
    /// No network at all; starts faster
    None,
}

/// `--log-format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Depends on the terminal
    Auto,
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

/// Where the callers' secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The user gave it.
    Given(Secret),
    /// Kept in the data folder, made if it is not there.
    Kept,
    /// Nobody is asked (`executor run` without a secret).
    Open,
}

/// Everything that can be set, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub address: SocketAddr,
    /// Folder of functions, or the one function.
    pub functions: PathBuf,
    /// Serve one function at every path.
    pub run: Option<RunConfig>,
    /// Data folder.
    pub data: PathBuf,
    /// What runs instances.
    pub adapter: AdapterChoice,
    /// Where state is kept unless a function names a store.
    pub store: StoreUrl,
    /// What seals state at rest.
    pub store_keys: Option<Keys>,
    /// The stores that functions can name.
    pub named_stores: BTreeMap<String, StoreUrl>,
    /// What callers send.
    pub secret: SecretSource,
    /// What operators send.
    pub admin_secret: SecretSource,
    /// Reload changed functions.
    pub watch: bool,
    /// Other runtimes than the embedded ones.
    pub runtimes: Option<PathBuf>,
    /// Network of function containers.
    pub network: NetworkChoice,
    /// The log filter.
    pub log: String,
    /// Whether logs are JSON.
    pub json_logs: bool,
    /// Instances over all functions.
    pub max_instances: usize,
    /// Waiting calls per function.
    pub queue: usize,
    /// See `--help`.
    pub reap_interval: Duration,
    /// See `--help`.
    pub start_timeout: Duration,
    /// See `--help`.
    pub cancel_grace: Duration,
    /// See `--help`.
    pub grace: Duration,
    /// Bytes.
    pub max_body: u64,
    /// Bytes.
    pub max_response: u64,
    /// Bytes.
    pub max_state: u64,
    /// Client connections.
    pub max_connections: usize,
    /// See `--help`.
    pub header_timeout: Duration,
    /// See `--help`.
    pub idle_timeout: Duration,
    /// Threads that serve requests.
    pub threads: usize,
    /// The executor API; none: one function is served at every path.
    pub api: Option<ApiConfig>,
    /// The executor's own `PATH`.
    pub path: String,
    /// Value of `DOCKER_HOST`.
    pub docker_host: Option<String>,
    /// Cores of this host.
    pub cores: usize,
    /// How functions are built.
    pub builds: BuildConfig,
}

/// The longest path a Unix socket can have is 107 bytes; this is what we append to the data folder.
const SOCKET_TAIL: usize = "/run/0123456789abcdef0123456789abcdef/link.sock".len();
const SOCKET_PATH: usize = 107;
/// A frame carries up to three of these: a snapshot, the events since, and those of the call.
const MOST_STATE: u64 = 8 << 20;

/// Collects problems instead of stopping at the first.
struct Checker(Vec<String>);

impl Checker {
    fn check<T>(&mut self, flag: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|why| self.0.push(format!("--{flag}: {why}"))).ok()
    }

    fn choice<T: ValueEnum>(&mut self, flag: &str, text: &str) -> Option<T> {
        let value = T::from_str(text, false).map_err(|_| {
            let names = T::value_variants().iter().filter_map(T::to_possible_value);
            let names: Vec<_> = names.map(|value| value.get_name().to_owned()).collect();
            format!("`{text}` must be one of {}", names.join(", "))
        });
        self.check(flag, value)
    }

    fn keys(&mut self, file: &Path) -> Option<Keys> {
        let text = std::fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()));
        self.check("store-key-file", text.and_then(|text| Keys::parse(&text)))
    }

    /// The default store, if one is given, and the named ones.
    fn stores(&mut self, given: &[String]) -> (Option<StoreUrl>, BTreeMap<String, StoreUrl>) {
        let (mut default, mut named) = (None, BTreeMap::new());
        for text in given.iter().filter(|text| !text.trim().is_empty()) {
            let (name, url) = match text.split_once('=').filter(|(name, _)| is_store_name(name)) {
                Some((name, url)) => (Some(name), url),
                None => (None, text.as_str()),
            };
            let Some(url) = self.check("store", StoreUrl::parse(url).map_err(|e| e.to_string())) else {
                continue;
            };
            let twice = match name {
                Some(name) => named.insert(name.to_owned(), url).is_some(),
                None => default.replace(url).is_some(),
            };
            if twice {
                let which = name.map_or("the default store".to_owned(), |name| format!("the store `{name}`"));
                self.0.push(format!("--store: {which} is given twice; others need a name, as in NAME=URL"));
            }
        }
        (default, named)
    }

    fn number(&mut self, flag: &str, text: &str, low: u64, high: u64) -> Option<u64> {
        let value = text.trim().parse::<u64>().ok().filter(|n| (low..=high).contains(n));
        self.check(flag, value.ok_or_else(|| format!("`{text}` must be a number from {low} to {high}")))
    }

    fn time(&mut self, flag: &str, text: &str) -> Option<Duration> {
        let value = units::duration(text).and_then(|time| {
            let sane = Duration::from_millis(1)..=Duration::from_hours(24);
            if sane.contains(&time) { Ok(time) } else { Err(format!("`{text}` must be from 1ms to 24h")) }
        });
        self.check(flag, value)
    }

    fn size(&mut self, flag: &str, text: &str, most: u64) -> Option<u64> {
        let value = units::bytes(text).and_then(|size| {
            if (1..=most).contains(&size) {
                Ok(size)
            } else {
                Err(format!("`{text}` must be from 1 to {most} bytes"))
            }
        });
        self.check(flag, value)
    }
}

/// A function without a manifest has no state, and a file that is never used would still cost each start.
fn usual_store(single: Option<&Path>, data: &Path) -> StoreUrl {
    if single.is_some_and(|folder| !folder.join(MANIFEST).exists()) {
        return StoreUrl::Memory;
    }
    StoreUrl::Sqlite(data.join("state.db"))
}

fn given(secret: Option<&String>) -> Option<SecretSource> {
    secret.filter(|secret| !secret.is_empty()).map(|secret| SecretSource::Given(Secret::new(secret.as_str())))
}

impl Config {
    /// Checks `args`. The error has every problem, one per line.
    pub fn new(args: &ServeArgs, run: Option<&RunArgs>, terminal: bool) -> Result<Self, Vec<String>> {
        let mut c = Checker(Vec::new());
        let l = &args.limits;
        let single = run.map(|run| run.folder.as_path());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let port = c.number("port", &args.port, 0, 65_535);
        let host = c.check("host", parse_host(&args.host));
        let functions = single.unwrap_or(&args.functions).to_owned();
        if !functions.is_dir() {
            let hint = match single {
                Some(_) => "name the folder of one function",
                None => "make it, or start with `executor new hello --runtime node`",
            };
            let flag = if single.is_some() { "FOLDER" } else { "--functions" };
            c.0.push(format!("{flag}: `{}` is not a folder; {hint}", functions.display()));
        }
        let data = args.data.clone().unwrap_or_else(|| default_data(single));
        let data = std::path::absolute(&data).unwrap_or(data);
        let room = SOCKET_PATH - SOCKET_TAIL;
        if data.as_os_str().len() > room {
            let length = data.as_os_str().len();
            c.0.push(format!(
                "--data: the path has {length} bytes; at most {room} fit, because sockets are below it"
            ));
        }
        let (given_store, named_stores) = c.stores(&args.store);
        let store_keys = args.store_key_file.as_deref().and_then(|file| c.keys(file));
        let store = given_store.unwrap_or_else(|| usual_store(single, &data));
        let threads = match &l.threads {
            Some(text) => c.number("threads", text, 1, 1024).map(|n| n as usize),
            None => Some((cores / 2).max(1)),
        };
        let log = c.check(
            "log",
            args.log
                .parse::<tracing_subscriber::EnvFilter>()
                .map(|_| args.log.clone())
                .map_err(|e| e.to_string()),
        );
        let adapter: Option<AdapterChoice> = c.choice("adapter", &args.adapter);
        let watch: Option<Switch> = c.choice("watch", &args.watch);
        let network = c.choice("network", &args.network);
        let log_format: Option<LogFormat> = c.choice("log-format", &args.log_format);
        let reap_interval = c.time("reap-interval", &l.reap_interval);
        let start_timeout = c.time("start-timeout", &l.start_timeout);
        let cancel_grace = c.time("cancel-grace", &l.cancel_grace);
        let grace = c.time("grace", &l.grace);
        let header_timeout = c.time("header-timeout", &l.header_timeout);
        let idle_timeout = c.time("idle-timeout", &l.idle_timeout);
        let max_instances = c.number("max-instances", &l.max_instances, 1, 100_000);
        let queue = c.number("queue", &l.queue, 1, 1_000_000);
        let max_connections = c.number("max-connections", &l.max_connections, 1, 1_000_000);
        let max_body = c.size("max-body", &l.max_body, 1 << 30);
        let max_response = c.size("max-response", &l.max_response, 1 << 30);
        let max_state = c.size("max-state", &l.max_state, MOST_STATE);
        let api = match single {
            Some(_) => Some(None),
            None => args.api.check(&mut c, &data, &environment()).map(Some),
        };
        let builds = args.builds.check(&mut c);
        let make = || {
            Some(Self {
                builds: builds?,
                address: SocketAddr::new(host?, port? as u16),
                functions,
                run: run.map(|run| RunConfig::new(run, &data, environment())),
                data,
                adapter: if single.is_some() { AdapterChoice::Process } else { adapter? },
                store,
                named_stores,
                store_keys,
                secret: given(args.secret.as_ref()).unwrap_or(match single {
                    Some(_) => SecretSource::Open,
                    None => SecretSource::Kept,
                }),
                admin_secret: given(args.admin_secret.as_ref()).unwrap_or(SecretSource::Kept),
                watch: watch? == Switch::On || (watch? == Switch::Auto && terminal),
                runtimes: args.runtimes.clone(),
                network: network?,
                log: log?,
                json_logs: log_format? == LogFormat::Json || (log_format? == LogFormat::Auto && !terminal),
                max_instances: max_instances? as usize,
                queue: queue? as usize,
                reap_interval: reap_interval?,
                start_timeout: start_timeout?,
                cancel_grace: cancel_grace?,
                grace: grace?,
                max_body: max_body?,
                max_response: max_response?,
                max_state: max_state?,
                max_connections: max_connections? as usize,
                header_timeout: header_timeout?,
                idle_timeout: idle_timeout?,
                threads: threads?,
                api: api?,
                path: search_path(),
                docker_host: docker_host(),
                cores,
            })
        };
        make().filter(|_| c.0.is_empty()).ok_or(c.0)
    }
}

/// One function alone keeps apart from an executor that serves the whole folder next to it.
fn default_data(single: Option<&Path>) -> PathBuf {
    let name = single.and_then(|folder| folder.canonicalize().ok());
    match name.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()) {
        Some(name) => Path::new("data").join(format!("only-{name}")),
        None => PathBuf::from("data"),
    }
}

/// Where the Docker daemon is, if not in the usual place.
pub fn docker_host() -> Option<String> {
    std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty())
}

/// Where programs are looked for.
pub fn search_path() -> String {
    std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into())
}

/// All variables that are text, for programs that are started with them.
pub fn environment() -> std::collections::BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn parse_host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        _ => text
            .trim_matches(['[', ']'])
            .parse()
            .map_err(|_| format!("`{text}` is not an IP address; write for example 127.0.0.1 or 0.0.0.0")),
    }
}
