//! Instances as Docker containers.
//!
//! One container is one instance. It gets the function's folder and the folder with its link socket, both
//! read-only, and nothing else of the host: no Docker socket, no capabilities, no root, no writable file system
//! but a bounded `/tmp`, bounds on memory, cores, processes, files and log. Ownership is the label `executor.owner`
//! and nothing else; its value is the data folder's path, so executors with different data folders never
//! touch each other's containers.
//!
//! The executor may itself run in a container. Then its folders must have the same paths inside and outside, and
//! that is why no path is resolved here: what was configured is what Docker gets.
//!
//! Where the time of a cold start goes (engine 20.10, two cores, an idle host): create 11 ms, start 72 ms, of which
//! nothing we ask for costs more than 9 ms (seccomp) and most options cost nothing that can be measured; a network
//! namespace made by Docker adds 65 ms (its own helper process in the start path), an endpoint on our bridge 70 ms
//! more. [`Network::None`] therefore leaves the namespace to the container runtime.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bollard::query_parameters::ListContainersOptions;
use futures_util::StreamExt as _;

use self::client::{ASK, Client, HELLO};
use self::container::Container;
use super::{Adapter, AdapterError, BoxFuture, Unit};
use crate::function::Function;
use crate::instance::Launch;
use crate::runtime::Runtime;

pub use self::image::{BASE_IMAGE, ImageState};

mod client;
mod container;
mod image;
mod network;
mod spec;

#[cfg(test)]
mod tests;

/// Label: the data folder of the executor that owns the container. The only proof of ownership.
const OWNER: &str = "executor.owner";
/// Label: the instance's id.
const INSTANCE: &str = "executor.instance";
/// Label: the function's name.
const FUNCTION: &str = "executor.function";

/// Removals at once in a sweep; more only queue up inside the daemon.
const SWEEPERS: usize = 8;

/// What the adapter is told once.
#[derive(Debug, Clone)]
pub struct DockerOptions {
    /// The data folder. Its absolute path is the mark of ownership.
    pub data: PathBuf,
    /// Value of `DOCKER_HOST`, if set; only `unix://` works.
    pub host: Option<String>,
    /// The network of the containers.
    pub network: Network,
    /// `uid:gid` instead of the images' own `10001:10001`, for hosts whose function files only one user can read.
    pub user: Option<String>,
}

/// The network of all containers of this executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// A bridge of this name, made on demand, with a way out and with the traffic between containers off.
    Bridge(String),
    /// No network but the container's own loopback. The link needs none, and a cold start is 130 ms faster.
    None,
}

impl Default for Network {
    fn default() -> Self {
        Self::Bridge("executor-functions".to_owned())
    }
}

/// Runs instances as containers of the local Docker daemon.
#[derive(Debug)]
pub struct DockerAdapter {
    shared: Arc<Shared>,
    /// One lock per image, so that concurrent calls build it once. Bounded by the number of runtimes.
    builds: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// What the adapter and its containers have in common.
#[derive(Debug)]
struct Shared {
    client: Client,
    owner: String,
    network: Network,
    network_lock: tokio::sync::Mutex<()>,
    user: Option<String>,
    /// Cores of the host; Docker refuses a limit above them.
    cores: f64,
    ledger: Mutex<Ledger>,
}

/// Which containers of ours exist, by name.
#[derive(Debug, Default)]
struct Ledger {
    /// Those with a [`Unit`] in this process: a sweep leaves them alone.
    live: HashSet<String>,
    /// Those whose unit was dropped without `kill`: nobody may spawn a task here, so the next `start`, `kill`
    /// or `sweep` removes them.
    strays: Vec<String>,
}

impl Shared {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what dropped units left. What cannot be removed now is tried again the next time.
    async fn remove_strays(&self) {
        let strays = std::mem::take(&mut self.ledger().strays);
        if strays.is_empty() {
            return;
        }
        // Whatever is not taken out of here stays listed, also when this future is dropped half way.
        let mut rest = Rest { shared: self, names: strays };
        let mut next = 0;
        while let Some(name) = rest.names.get(next) {
            match container::remove(&self.client, name).await {
                Ok(()) => drop(rest.names.swap_remove(next)),
                Err(fault) => {
                    let error = AdapterError::from(fault);
                    tracing::warn!(container = %name, %error, "a stray container stays for now");
                    next += 1;
                }
            }
        }
    }
}

/// Gives names back to the list of strays when dropped.
struct Rest<'a> {
    shared: &'a Shared,
    names: Vec<String>,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.shared.ledger().strays.append(&mut self.names);
    }
}

impl DockerAdapter {
    /// Connects to the local daemon and agrees with it on a version of its API.
    pub async fn connect(options: DockerOptions) -> Result<Self, AdapterError> {
        let client = Client::open(options.host.as_deref()).await?;
        let cores = match client.call(HELLO, "describe the host", client.docker.info()).await {
            Ok(info) => info.ncpu.and_then(|n| usize::try_from(n).ok()),
            // Slow where there are thousands of containers. Our own count is right unless we are limited ourselves.
            Err(_) => None,
        };
        let cores = cores.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
        let data = std::path::absolute(&options.data).unwrap_or(options.data);
        let shared = Shared {
            client,
            owner: data.to_string_lossy().into_owned(),
            network: options.network,
            network_lock: tokio::sync::Mutex::default(),
            user: options.user,
            cores: cores.max(1) as f64,
            ledger: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), builds: Mutex::default() })
    }

    /// Whether an instance of `runtime` could be started: a look at the images here, a few milliseconds.
    pub async fn can_build(&self, runtime: &Runtime) -> Result<ImageState, AdapterError> {
        image::state(&self.shared.client, runtime).await
    }

    async fn prepare(&self, runtime: &Runtime, version: Option<&str>) -> Result<(), AdapterError> {
        image::check_version(runtime, version)?;
        let tag = image::tag(runtime);
        let client = &self.shared.client;
        if image::exists(client, &tag).await? {
            return Ok(());
        }
        let lock = {
            let mut builds = self.builds.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(builds.entry(tag.clone()).or_default())
        };
        let _building = lock.lock().await;
        // Whoever held the lock has probably built it.
        if image::exists(client, &tag).await? {
            return Ok(());
        }
        image::build(client, runtime).await
    }

    async fn sweep(&self) -> Result<usize, AdapterError> {
        let shared = &*self.shared;
        shared.remove_strays().await;
        let labels = vec![format!("{OWNER}={}", shared.owner), INSTANCE.to_owned()];
        let options = ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), labels)])),
            ..Default::default()
        };
        let client = &shared.client;
        let found = client.call(ASK, "list containers", client.docker.list_containers(Some(options))).await?;
        let names: Vec<String> = {
            let ledger = shared.ledger();
            let name = |c: bollard::models::ContainerSummary| {
                c.names?.first().map(|name| name.trim_start_matches('/').to_owned())
            };
            found.into_iter().filter_map(name).filter(|name| !ledger.live.contains(name)).collect()
        };
        let mut removals = futures_util::stream::iter(names)
            .map(|name| async move { container::remove(client, &name).await })
            .buffer_unordered(SWEEPERS);
        let (mut removed, mut failure) = (0, None);
        while let Some(result) = removals.next().await {
            match result {
                Ok(()) => removed += 1,
                Err(fault) => failure = Some(fault),
            }
        }
        failure.map_or(Ok(removed), |fault| Err(fault.into()))
    }
}

impl Adapter for DockerAdapter {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn prepare<'a>(
        &'a self,
        runtime: &'a Runtime,
        version: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(self.prepare(runtime, version))
    }

    fn start<'a>(&'a self, launch: &'a Launch) -> BoxFuture<'a, Result<Box<dyn Unit>, AdapterError>> {
        Box::pin(async {
            let container = Container::start(&self.shared, launch).await?;
            Ok(Box::new(container) as Box<dyn Unit>)
        })
    }

    fn code_directory(&self, _function: &Function) -> String {
        spec::FUNCTION_FOLDER.to_owned()
    }

    fn sweep(&self) -> BoxFuture<'_, Result<usize, AdapterError>> {
        Box::pin(self.sweep())
    }
}
