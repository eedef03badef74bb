//! The networks of the containers: bridges with a way out.
//!
//! Instances need nobody to reach them, so nothing passes between them. Guests are reached by their address: from the
//! host that is always possible, but from a container only over a common network that lets containers talk. So where
//! the executor is itself a container of this daemon, it joins the guests' network, and that network does not keep
//! its members apart. Where guests must be kept apart from each other, run the executor on the host or with the
//! host's network.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bollard::models::{NetworkConnectRequest, NetworkCreateRequest};
use bollard::query_parameters::ListNetworksOptions;

use super::client::{ASK, Fault, START};
use super::{Network, OWNER, Shared};
use crate::adapter::AdapterError;

/// The bridge of all containers, unless another one is asked for.
pub(super) const DEFAULT: &str = "executor-functions";

/// Option of Docker's bridges: whether containers on it may talk to each other.
const TALK: &str = "com.docker.network.bridge.enable_icc";

/// How long two networks of one name are waited for to become one, and how often that is looked at.
const ONE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_millis(50));

/// What is known about networks and our place in them.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Held while a network is made, so that this executor makes it once.
    making: tokio::sync::Mutex<()>,
    /// The container this executor runs in; none: it reaches all bridges as they are.
    pub(super) own: tokio::sync::OnceCell<Option<String>>,
    /// Ids of networks that container is in. As long as it is, nobody can remove them.
    joined: tokio::sync::Mutex<HashSet<String>>,
}

struct Found {
    id: String,
    /// Its members cannot reach each other.
    apart: bool,
}

/// The id of the network for the next instance, which is made if it is not there; none: no network.
pub(super) async fn of_instances(shared: &Shared) -> Result<Option<String>, AdapterError> {
    let Network::Bridge(name) = &shared.network else { return Ok(None) };
    Ok(Some(ensure(shared, name, true).await?.id))
}

/// The id of a network for the next guest: one of `names`, else our own; made if it is not there, and in reach.
pub(super) async fn of_guests(shared: &Shared, names: &[String]) -> Result<String, AdapterError> {
    let own = shared.places.own.get_or_try_init(|| own_container(shared)).await?.as_deref();
    let random = uuid::Uuid::new_v4().as_u128() as usize;
    let name = match (names, &shared.network) {
        ([_, ..], _) => names[random % names.len()].clone(),
        ([], Network::Bridge(name)) => name.clone(),
        ([], Network::None) => DEFAULT.to_owned(),
    };
    // The instances' own network keeps all apart, so we could not reach anybody over it.
    let name = if own.is_some() && names.is_empty() { name + "-guests" } else { name };
    let network = ensure(shared, &name, own.is_none()).await?;
    if let Some(own) = own {
        join(shared, own, &name, &network).await?;
    }
    Ok(network.id)
}

/// Asked before every start (a millisecond) rather than remembered, because `docker network prune` takes a network
/// without containers away. Names of networks are not unique: executors that start together may each make one, and
/// older versions of Docker then refuse to start anything in any of them, also by id. So whoever made one and is not the
/// first removes it again, and the others wait for that.
async fn ensure(shared: &Shared, name: &str, apart: bool) -> Result<Found, AdapterError> {
    let mut found = find(shared, name).await?;
    if found.is_empty() {
        let _making = shared.places.making.lock().await;
        found = find(shared, name).await?;
        if found.is_empty() {
            let made = make(shared, name, apart).await?;
            found = find(shared, name).await?;
            if found.first().is_some_and(|first| first.id != made) {
                remove(shared, name, &made).await;
            }
        }
    }
    let end = Instant::now() + ONE.0;
    while found.len() != 1 && Instant::now() < end {
        tokio::time::sleep(ONE.1).await;
        found = find(shared, name).await?;
    }
    let text = || format!("the network `{name}` went away while it was asked for; try again");
    found.into_iter().next().ok_or_else(|| AdapterError::Failed(text().into()))
}

/// All networks of that name, the oldest first.
async fn find(shared: &Shared, name: &str) -> Result<Vec<Found>, AdapterError> {
    let options = ListNetworksOptions {
        // Matches parts of names, too; a name may hold what Docker reads as a pattern, so it is compared below.
        filters: Some(HashMap::from([("name".to_owned(), vec![name.to_owned()])])),
    };
    let client = &shared.client;
    let found = client.call(ASK, "list networks", client.docker.list_networks(Some(options))).await?;
    let mut same: Vec<_> = found.into_iter().filter(|n| n.name.as_deref() == Some(name)).collect();
    same.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    let told = same.into_iter().filter_map(|n| {
        let apart = n.options.is_some_and(|o| o.get(TALK).is_some_and(|talk| talk == "false"));
        n.id.map(|id| Found { id, apart })
    });
    Ok(told.collect())
}

/// Makes one more; its id.
async fn make(shared: &Shared, name: &str, apart: bool) -> Result<String, AdapterError> {
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let talk = if apart { "false" } else { "true" };
    let request = NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        options: Some(HashMap::from([text(TALK, talk)])),
        labels: Some(HashMap::from([text(OWNER, &shared.owner)])),
        ..Default::default()
    };
    let client = &shared.client;
    let made = client.call(START, "make the network", client.docker.create_network(request)).await?;
    tracing::info!(network = %name, "made a network for containers");
    Ok(made.id)
}

async fn remove(shared: &Shared, name: &str, id: &str) {
    let client = &shared.client;
    match client.call(START, "remove a network", client.docker.remove_network(id)).await {
        Ok(()) => tracing::info!(network = %name, "another executor made the network, too; its one is used"),
        Err(fault) => {
            let why = AdapterError::from(fault);
            tracing::warn!(network = %name, "there are two networks of this name; remove one: {why}");
        }
    }
}

/// Puts our own container into the network, once.
async fn join(shared: &Shared, own: &str, name: &str, network: &Found) -> Result<(), AdapterError> {
    let mut joined = shared.places.joined.lock().await;
    if joined.contains(&network.id) {
        return Ok(());
    }
    if network.apart {
        let text = format!(
            "the network `{name}` keeps its containers apart, so the executor, which runs in a container itself, \
             could not reach anything in it; remove it (docker network rm {name}) to have it made anew, name \
             another one, or run the executor with the host's network"
        );
        return Err(AdapterError::Failed(text.into()));
    }
    let client = &shared.client;
    let inspect = client.docker.inspect_container(own, None);
    let here = client.call(ASK, "inspect the executor's own container", inspect).await?;
    let networks = here.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    if !networks.values().any(|place| place.network_id.as_deref() == Some(&network.id)) {
        let request = NetworkConnectRequest { container: own.to_owned(), ..Default::default() };
        let connect = client.docker.connect_network(&network.id, request);
        client.call(START, "connect the executor's own container to the network", connect).await?;
        tracing::info!(network = %name, container = %own, "joined the network, to reach guests in it");
    }
    joined.insert(network.id.clone());
    Ok(())
}

/// The container of this daemon in which we run and whose network is not the host's.
async fn own_container(shared: &Shared) -> Result<Option<String>, AdapterError> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let inside = ["/.dockerenv", "/run/.containerenv"].iter().any(|file| std::path::Path::new(file).exists());
    let hostname = read("/proc/sys/kernel/hostname");
    let Some(candidate) = candidate(&read("/proc/self/mountinfo"), inside, hostname.trim()) else {
        return Ok(None);
    };
    let client = &shared.client;
    let inspect = client.docker.inspect_container(&candidate, None);
    let found = match client.call(ASK, "inspect the executor's own container", inspect).await {
        Ok(found) => found,
        // The daemon runs beside us in the same container.
        Err(fault) if fault.is_gone() => return Ok(None),
        Err(fault) => return Err(Fault::into(fault)),
    };
    // A container whose *name* is our host name is not us.
    let id = found.id.filter(|id| id.starts_with(&candidate));
    let mode = found.host_config.and_then(|config| config.network_mode);
    let own = id.filter(|_| mode.as_deref() != Some("host"));
    if let Some(id) = &own {
        tracing::info!(container = %id, "the executor runs in a container and will join the guests' networks");
    }
    Ok(own)
}

/// What may be the id of our own container: Docker mounts the files it makes for a container (their source has the id
/// in its path), and names the host after the id unless told otherwise.
fn candidate(mounts: &str, inside: bool, hostname: &str) -> Option<String> {
    let hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let from_mount = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        let (source, target) = (fields.next()?, fields.next()?);
        let ours = matches!(target, "/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf");
        let id = source.rsplit_once("/containers/").filter(|_| ours)?.1.split('/').next()?;
        (id.len() == 64 && hex(id)).then(|| id.to_owned())
    };
    let from_name = || (inside && hostname.len() == 12 && hex(hostname)).then(|| hostname.to_owned());
    mounts.lines().find_map(from_mount).or_else(from_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_container_is_found_by_what_docker_mounts() {
        let id = "0123456789abcdef".repeat(4);
        let line = |target: &str| {
            format!("36 35 8:1 /var/lib/docker/containers/{id}/hostname {target} rw - ext4 /dev/sda1 rw\n")
        };
        assert_eq!(candidate(&line("/etc/hostname"), false, "web1"), Some(id.clone()));
        // As it looks on a host that runs containers.
        let shm = format!("9 1 0:5 / /var/lib/docker/containers/{id}/mounts/shm rw - tmpfs shm rw\n");
        assert_eq!(candidate(&(shm + &line("/mnt/x")), false, "0123456789ab"), None);
        assert_eq!(candidate("", true, "0123456789ab").as_deref(), Some("0123456789ab"));
        for (inside, name) in [(false, "0123456789ab"), (true, "web1"), (true, "0123456789a"), (true, "")] {
            assert_eq!(candidate("garbage\n\n", inside, name), None);
        }
    }
}
