//! What a container may and may not: the request that creates it, as a pure function.
//!
//! Everything an instance or a guest gets is listed here and nowhere else, so this file is the one to read for security.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};

use super::{FUNCTION, GUEST, INSTANCE, OWNER, Shared, image};
use crate::adapter::guest::{self, GuestLaunch};
use crate::instance::Launch;

/// The user `function` of our images.
pub(super) const USER: &str = "10001:10001";

/// Where our images keep the runtime's folder.
const SERVER: &str = "/usr/local/server";
/// Where the function's folder is.
pub(super) const FUNCTION_FOLDER: &str = "/usr/local/server/src/function";
/// Where the folder with the link's socket is.
const LINK_FOLDER: &str = "/run/executor";

/// File in the link's folder that becomes `/etc/hosts` of a container without a network, where Docker provides none.
pub(super) const HOSTS_FILE: &str = "hosts";
/// Its contents.
pub(super) const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";

/// Processes and threads; a Node or Python instance has about 15, and a fork bomb ends here.
const PIDS: i64 = 256;
/// The same for guests, in which builds run: package managers and compilers start many.
const GUEST_PIDS: i64 = 2048;
/// Less memory than this (bytes) Docker refuses.
const LEAST_MEMORY: u64 = 6 << 20;
/// Open files. Well above what one instance needs, well below what hurts the host.
const FILES: i64 = 16_384;
/// `/tmp` and shared memory at the most; their pages count as the instance's memory.
const SCRATCH: u64 = 64 << 20;

/// The container's name: for people only, ownership is in the labels.
pub(super) fn name(launch: &Launch) -> String {
    // The front of the id is a time; its end is random.
    let id = launch.id.to_string();
    format!("executor-{}-{}", launch.function.name, &id[id.len() - 12..])
}

/// The request that creates the container. `network` is an id; none: no network.
pub(super) fn instance(shared: &Shared, launch: &Launch, network: Option<String>) -> ContainerCreateBody {
    let manifest = &launch.runtime.manifest;
    let worker = format!("{SERVER}/{}", manifest.worker);
    let mut command =
        manifest.command_line(&manifest.docker.program, &worker, launch.function.memory).into_iter();
    let socket = launch.socket.file_name().unwrap_or_default().to_string_lossy();
    ContainerCreateBody {
        image: Some(image::tag(&launch.runtime)),
        // Replaces the image's own entrypoint, and with it the image's command.
        entrypoint: command.next().map(|program| vec![program]),
        cmd: Some(command.collect()),
        user: Some(shared.user.clone().unwrap_or_else(|| USER.to_owned())),
        working_dir: Some(FUNCTION_FOLDER.to_owned()),
        // Shows in `docker inspect`, hence nothing here but the token, which is of no use after HELLO.
        env: Some(vec![
            format!("EXECUTOR_LINK={LINK_FOLDER}/{socket}"),
            format!("EXECUTOR_TOKEN={}", launch.token.expose()),
            "HOME=/tmp".to_owned(),
            "TMPDIR=/tmp".to_owned(),
            "LANG=C.UTF-8".to_owned(),
        ]),
        labels: Some(texts(&[
            (OWNER, &shared.owner),
            (INSTANCE, &launch.id.to_string()),
            (FUNCTION, &launch.function.name),
        ])),
        // Readiness and death come over the link; a health check of the image would only cost.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        stop_signal: Some("SIGTERM".to_owned()),
        // Without this flag Docker makes a network namespace of its own also for "none", which takes 65 ms; with it
        // the container runtime does, in no time. Either way the container is alone with its loopback.
        network_disabled: Some(network.is_none()),
        host_config: Some(host(shared, launch, network)),
        ..Default::default()
    }
}

fn host(shared: &Shared, launch: &Launch, network: Option<String>) -> HostConfig {
    let function = &launch.function;
    // A read-only mount does not keep anyone from connecting to a socket in it.
    let mut mounts =
        vec![mount(&launch.folder, LINK_FOLDER, true), mount(&function.folder, FUNCTION_FOLDER, true)];
    if network.is_none() {
        mounts.push(mount(&launch.folder.join(HOSTS_FILE), "/etc/hosts", true));
    }
    HostConfig {
        mounts: Some(mounts),
        network_mode: Some(network.unwrap_or_else(|| "none".to_owned())),
        pids_limit: Some(PIDS),
        ..closed(function.memory, bounds(shared, function.memory, function.cpus))
    }
}

/// The request that creates a guest. `id` is the value of its mark, `network` the id of its network.
pub(super) fn guest(shared: &Shared, launch: &GuestLaunch, id: &str, network: String) -> ContainerCreateBody {
    let mut command = launch.command.clone().filter(|words| !words.is_empty()).map(Vec::into_iter);
    // 64 is what the kernel takes.
    let hostname = Some(launch.name.clone()).filter(|name| name.len() <= 63);
    let bounds = bounds(shared, launch.memory, launch.cpus);
    let mut host = if launch.strict { closed(launch.memory, bounds) } else { open(bounds) };
    if launch.mounts.iter().any(|mount| mount.inside.trim_end_matches('/') == "/tmp") {
        host.tmpfs = None;
    }
    ContainerCreateBody {
        image: Some(launch.image.clone()),
        entrypoint: command.as_mut().and_then(Iterator::next).map(|program| vec![program]),
        cmd: command.map(Iterator::collect),
        hostname,
        user: launch.strict.then(|| shared.user.clone().unwrap_or_else(|| USER.to_owned())),
        working_dir: launch.working_directory.clone(),
        env: Some(environment(&launch.environment)),
        labels: Some(texts(&[(OWNER, &shared.owner), (GUEST, id), (FUNCTION, &launch.label)])),
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        stop_signal: Some("SIGTERM".to_owned()),
        host_config: Some(HostConfig {
            mounts: Some(launch.mounts.iter().map(|m| mount(&m.host, &m.inside, m.read_only)).collect()),
            network_mode: Some(network),
            pids_limit: Some(GUEST_PIDS),
            restart_policy: Some(restart(launch.restart)),
            ..host
        }),
        ..Default::default()
    }
}

/// Of several with one name the last counts, which Docker leaves to chance.
fn environment(pairs: &[(String, String)]) -> Vec<String> {
    let mut last = HashMap::new();
    for (place, (name, _)) in pairs.iter().enumerate() {
        last.insert(name.as_str(), place);
    }
    let counts = |(place, (name, _)): &(usize, &(String, String))| last.get(name.as_str()) == Some(place);
    pairs.iter().enumerate().filter(counts).map(|(_, (name, value))| format!("{name}={value}")).collect()
}

fn restart(policy: guest::RestartPolicy) -> RestartPolicy {
    let name = match policy {
        guest::RestartPolicy::No => RestartPolicyNameEnum::NO,
        guest::RestartPolicy::Always => RestartPolicyNameEnum::ALWAYS,
        guest::RestartPolicy::OnFailure => RestartPolicyNameEnum::ON_FAILURE,
        guest::RestartPolicy::UnlessStopped => RestartPolicyNameEnum::UNLESS_STOPPED,
    };
    RestartPolicy { name: Some(name), ..Default::default() }
}

/// No capability, and nothing to write to but a bounded `/tmp`.
fn closed(memory: u64, bounds: HostConfig) -> HostConfig {
    let scratch = SCRATCH.min(memory / 2);
    HostConfig {
        readonly_rootfs: Some(true),
        tmpfs: Some(texts(&[("/tmp", &format!("rw,nosuid,nodev,size={scratch},mode=1777"))])),
        shm_size: i64::try_from(scratch).ok(),
        cap_drop: Some(vec!["ALL".to_owned()]),
        ..bounds
    }
}

/// For images that expect to be root and to write everywhere: what package managers and servers that change their user
/// need, and no more. What they write to their root is not bounded but by the host's disk, as Docker has no such
/// bound for its usual storage.
fn open(bounds: HostConfig) -> HostConfig {
    let keep = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"];
    HostConfig {
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(keep.map(str::to_owned).to_vec()),
        privileged: Some(false),
        ..bounds
    }
}

/// What holds for every container. `memory` in bytes, `cpus` in cores.
fn bounds(shared: &Shared, memory: u64, cpus: f64) -> HostConfig {
    // Docker refuses less, and takes 0 as no limit at all; it is no limit for `cpus`, too.
    let memory = i64::try_from(memory.max(LEAST_MEMORY)).unwrap_or(i64::MAX);
    let cpus = cpus.max(0.01).min(shared.cores);
    HostConfig {
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        memory: Some(memory),
        // Memory and swap together: no swap on top.
        memory_swap: Some(memory),
        nano_cpus: Some((cpus * 1e9) as i64),
        ulimits: Some(vec![limit("nofile", FILES), limit("core", 0)]),
        // Process 1 that reaps orphans and passes signals on; neither Node nor Python does.
        init: Some(true),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(texts(&[("max-size", "1m"), ("max-file", "1")])),
        }),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), ..Default::default() }),
        ..Default::default()
    }
}

/// As a mount and not as a bind: Docker makes a missing source of a bind, as root, but refuses it in a mount.
fn mount(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Default::default()
    }
}

fn limit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

fn texts(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
