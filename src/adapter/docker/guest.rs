//! [`Guests`] on Docker: containers of foreign images.
//!
//! A guest is a [`Container`] that others than us may use by its address. Its name comes from the caller and comes back,
//! so it is freed first from what an earlier run left, but never from what is not ours.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{ContainerStatsResponse, ContainerSummary, ContainerSummaryStateEnum};
use bollard::query_parameters::StatsOptions;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::client::{ASK, Client, NUMBERS};
use super::container::{self, Container};
use super::ledger::{self, Mark};
use super::{DockerAdapter, FUNCTION, GUEST, OWNER, Shared, exec, network, pull, spec};
use crate::adapter::guest::{ExecError, Guest, GuestLaunch, Guests, Piece};
use crate::adapter::{AdapterError, BoxFuture};
use crate::instance::{Exit, InstanceId};

/// Questions for numbers at once. Docker spends most of each waiting.
const ASKERS: usize = 32;
/// All numbers together.
const ALL_NUMBERS: Duration = Duration::from_secs(10);
/// Bytes of a container's name; Docker has no bound of its own.
const NAME: usize = 255;

impl Guests for DockerAdapter {
    fn prepare<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(async move {
            let client = &self.shared.client;
            // Apart from the building of runtimes, whose names a caller could guess.
            let flight = format!("pull {image}");
            self.once(&flight, || pull::ensure(client, image, self.registry.as_ref())).await
        })
    }

    fn start<'a>(&'a self, launch: &'a GuestLaunch) -> BoxFuture<'a, Result<Arc<dyn Guest>, AdapterError>> {
        Box::pin(async { Ok(Arc::new(Foreign::start(&self.shared, launch).await?) as Arc<dyn Guest>) })
    }

    fn usage(&self) -> BoxFuture<'_, Result<Vec<(String, f64)>, AdapterError>> {
        Box::pin(usage(&self.shared))
    }
}

/// A container of a foreign image.
#[derive(Debug)]
struct Foreign {
    container: Container,
    /// Id of the network over which it is reached.
    network: String,
}

impl Foreign {
    async fn start(shared: &Arc<Shared>, launch: &GuestLaunch) -> Result<Self, AdapterError> {
        check(launch)?;
        shared.remove_strays().await;
        let network = network::of_guests(shared, &launch.networks);
        let ((), network) = tokio::try_join!(free_name(shared, &launch.name), network)?;
        let mark = Mark { label: GUEST, value: InstanceId::new().to_string() };
        let body = spec::guest(shared, launch, &mark.value, network.clone());
        let container = Container::run(shared, mark, launch.name.clone(), launch.memory, body).await?;
        Ok(Self { container, network })
    }

    async fn address(&self) -> Result<IpAddr, AdapterError> {
        let found = self.container.inspect(ASK).await?;
        let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let place = networks.into_values().find(|n| n.network_id.as_deref() == Some(&self.network));
        let address = place.and_then(|place| {
            [place.ip_address, place.global_ipv6_address].into_iter().flatten().find(|text| !text.is_empty())
        });
        address.and_then(|text| text.parse().ok()).ok_or_else(|| {
            let name = self.container.name();
            AdapterError::Failed(format!("{name}: it has no address now, as it does not run").into())
        })
    }
}

impl Guest for Foreign {
    fn address(&self) -> BoxFuture<'_, Result<IpAddr, AdapterError>> {
        Box::pin(self.address())
    }

    fn exec<'a>(
        &'a self,
        command: &'a [String],
        limit: Duration,
        output: mpsc::Sender<Piece>,
    ) -> BoxFuture<'a, Result<i64, ExecError>> {
        Box::pin(exec::run(&self.container, command, limit, output))
    }

    fn ended(&self) -> BoxFuture<'_, Exit> {
        Box::pin(self.container.end())
    }

    fn ends(&self) -> u64 {
        self.container.ends()
    }

    fn kill(&self) -> BoxFuture<'_, Exit> {
        Box::pin(self.container.end_now())
    }
}

/// Refuses what would mean something else to Docker than to the caller.
fn check(launch: &GuestLaunch) -> Result<(), AdapterError> {
    let refuse = |text: String| Err(AdapterError::Failed(text.into()));
    let name = launch.name.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    if !(2..=NAME).contains(&name.len()) || !name[0].is_ascii_alphanumeric() || !name.iter().all(plain) {
        let shown: String = launch.name.escape_default().take(NAME).collect();
        return refuse(format!(
            "`{shown}` cannot be the name of a container: letters, digits, `_`, `.` and `-`, 2 to {NAME} of them, \
             the first a letter or digit"
        ));
    }
    for (variable, value) in &launch.environment {
        if variable.is_empty() || variable.contains(['=', '\0']) || value.contains('\0') {
            let shown: String = variable.escape_default().take(NAME).collect();
            return refuse(format!(
                "{}: the variable `{shown}` cannot be set: names are not empty and without `=`, and neither they nor \
                 values hold a zero byte",
                launch.name
            ));
        }
    }
    Ok(())
}

/// Removes the container of that name if an earlier run of ours left it; an error if it is anybody else's.
async fn free_name(shared: &Shared, name: &str) -> Result<(), AdapterError> {
    let client = &shared.client;
    let inspect = client.docker.inspect_container(name, None);
    let found = match client.call(ASK, "inspect the container", inspect).await {
        Ok(found) => found,
        Err(fault) if fault.is_gone() => return Ok(()),
        Err(fault) => return Err(fault.into()),
    };
    // Docker also finds by the beginning of an id.
    if found.name.as_deref().is_none_or(|full| full.trim_start_matches('/') != name) {
        return Ok(());
    }
    let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
    if labels.get(OWNER) != Some(&shared.owner) {
        let text = format!(
            "a container named `{name}` is here and is not this executor's; remove it (docker rm -f {name}) or use \
             another name"
        );
        return Err(AdapterError::Failed(text.into()));
    }
    if Mark::find(&labels).is_some_and(|mark| shared.ledger().live.contains(mark)) {
        let text = format!("the container `{name}` is in use; kill it before another one takes its name");
        return Err(AdapterError::Failed(text.into()));
    }
    tracing::info!(container = %name, "removing what an earlier run left");
    Ok(container::remove(client, &found.id.unwrap_or_default()).await?)
}

async fn usage(shared: &Shared) -> Result<Vec<(String, f64)>, AdapterError> {
    let client = &shared.client;
    let labels = vec![format!("{OWNER}={}", shared.owner), GUEST.to_owned()];
    let found = ledger::list(client, labels).await?;
    let running = found.into_iter().filter(|c| c.state == Some(ContainerSummaryStateEnum::RUNNING));
    let numbers = futures_util::stream::iter(running)
        .map(|container| percent_of(client, container))
        .buffer_unordered(ASKERS)
        .take_until(tokio::time::sleep(ALL_NUMBERS));
    let mut told: Vec<_> = numbers.filter_map(std::future::ready).collect().await;
    told.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(told)
}

async fn percent_of(client: &Client, container: ContainerSummary) -> Option<(String, f64)> {
    let label = container.labels?.remove(FUNCTION)?;
    // Not "one-shot", which leaves out the first of the two looks that a use in percent takes.
    let options = StatsOptions { stream: false, one_shot: false };
    let id = container.id?;
    let mut stats = std::pin::pin!(client.docker.stats(&id, Some(options)));
    let first = tokio::time::timeout(NUMBERS, stats.next()).await.ok()??.ok()?;
    Some((label, percent(&first)?))
}

/// As `docker stats` shows it; none where there are no two looks, as for a container that has just ended.
fn percent(stats: &ContainerStatsResponse) -> Option<f64> {
    let (now, before) = (stats.cpu_stats.as_ref()?, stats.precpu_stats.as_ref()?);
    let used = |cpu: &bollard::models::ContainerCpuStats| cpu.cpu_usage.as_ref()?.total_usage;
    let used = used(now)?.saturating_sub(used(before)?);
    let passed = now.system_cpu_usage?.checked_sub(before.system_cpu_usage?).filter(|passed| *passed > 0)?;
    let cores = f64::from(now.online_cpus.filter(|cores| *cores > 0).unwrap_or(1));
    Some(used as f64 / passed as f64 * cores * 100.0)
}
