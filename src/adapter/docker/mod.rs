//! Instances and guests as Docker containers.
//!
//! One container is one instance or one guest; guests, which run foreign images, are in `guest` and `exec`, and what
//! is different for them is in `spec`. An instance gets the function's folder and the folder with its link socket, both
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

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use self::client::{Client, HELLO};
use self::container::Container;
use self::ledger::{Ledger, Mark};
use super::job::Job;
use super::{Adapter, AdapterError, BoxFuture, Unit};
use crate::function::Function;
use crate::instance::{Launch, Secret};
use crate::runtime::Runtime;
use crate::task::Tasks;

pub use self::image::{BASE_IMAGE, ImageState};

mod client;
mod container;
mod exec;
mod guest;
mod image;
mod job;
mod ledger;
mod network;
mod pull;
mod runtime_image;
mod spec;

#[cfg(test)]
mod guest_place_tests;
#[cfg(test)]
mod guest_tests;
#[cfg(test)]
mod tests;

/// Label: the data folder of the executor that owns the container. The only proof of ownership.
const OWNER: &str = "executor.owner";
/// Label: the instance's id.
const INSTANCE: &str = "executor.instance";
/// Label: a guest's mark, never used twice.
const GUEST: &str = "executor.guest";
/// Label: the function's name, or what a guest belongs to.
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
    /// User and password for images of Docker Hub that have to be pulled.
    pub registry: Option<(String, Secret)>,
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
        Self::Bridge(network::DEFAULT.to_owned())
    }
}

/// Runs instances as containers of the local Docker daemon.
#[derive(Debug)]
pub struct DockerAdapter {
    shared: Arc<Shared>,
    registry: Option<(String, Secret)>,
    /// Images that are being made or fetched, so that concurrent calls do it once and all hear how it went. Bounded by
    /// the calls that wait.
    flights: Mutex<HashMap<String, Weak<Flight>>>,
}

/// One building or fetching of an image.
type Flight = tokio::sync::OnceCell<Result<(), AdapterError>>;

/// What the adapter and its containers have in common.
#[derive(Debug)]
struct Shared {
    client: Client,
    owner: String,
    network: Network,
    places: network::Places,
    user: Option<String>,
    /// Cores of the host; Docker refuses a limit above them.
    cores: f64,
    ledger: Mutex<Ledger>,
    /// Bounded work that goes on when its caller has left; whoever ends the process need not wait for it.
    tasks: Tasks,
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
            places: network::Places::default(),
            user: options.user,
            cores: cores.max(1) as f64,
            ledger: Mutex::default(),
            tasks: Tasks::default(),
        };
        let registry = options.registry;
        Ok(Self { shared: Arc::new(shared), registry, flights: Mutex::default() })
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
        let build = async || {
            // Whoever was at it a moment ago has probably built it.
            if image::exists(client, &tag).await? { Ok(()) } else { image::build(client, runtime).await }
        };
        // Rare and large.
        Box::pin(self.once(&tag, build)).await
    }

    /// Makes the image in which builds of a prepared runtime run.
    async fn prepare_builds(&self, runtime: &Runtime) -> Result<(), AdapterError> {
        let (tag, client) = (image::tag_for_builds(runtime), &self.shared.client);
        if image::exists(client, &tag).await? {
            return Ok(());
        }
        self.once(&tag, || image::build_for_builds(client, runtime)).await
    }

    /// Does `work` for the image unless somebody is at it; then their result is ours.
    async fn once<F>(&self, image: &str, work: impl FnOnce() -> F) -> Result<(), AdapterError>
    where
        F: Future<Output = Result<(), AdapterError>>,
    {
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.retain(|_, flight| flight.strong_count() > 0);
            let running = flights.get(image).and_then(Weak::upgrade);
            running.unwrap_or_else(|| {
                let flight = Arc::new(Flight::new());
                flights.insert(image.to_owned(), Arc::downgrade(&flight));
                flight
            })
        };
        flight.get_or_init(work).await.clone()
    }

    async fn sweep(&self) -> Result<usize, AdapterError> {
        let shared = &*self.shared;
        shared.remove_strays().await;
        let client = &shared.client;
        let found = ledger::list(client, vec![format!("{OWNER}={}", shared.owner)]).await?;
        let left: Vec<String> = {
            let ledger = shared.ledger();
            let left = |container: bollard::models::ContainerSummary| {
                let labels = container.labels?;
                let dead = Mark::find(&labels).is_some_and(|mark| !ledger.live.contains(mark));
                container.id.filter(|_| dead)
            };
            found.into_iter().filter_map(left).collect()
        };
        let mut removals = futures_util::stream::iter(left)
            .map(|id| async move { container::remove(client, &id).await })
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

    fn run_job<'a>(
        &'a self,
        job: &'a Job,
        output: mpsc::Sender<Bytes>,
    ) -> BoxFuture<'a, Result<i32, AdapterError>> {
        Box::pin(async move {
            self.prepare_builds(&job.runtime).await?;
            job::run(&self.shared, job, output).await
        })
    }

    fn code_directory(&self, _function: &Function) -> String {
        spec::FUNCTION_FOLDER.to_owned()
    }

    fn guests(&self) -> Option<&dyn super::guest::Guests> {
        Some(self)
    }

    fn sweep(&self) -> BoxFuture<'_, Result<usize, AdapterError>> {
        Box::pin(self.sweep())
    }
}
