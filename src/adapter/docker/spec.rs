//! What a container may and may not: the request that creates it, as a pure function.
//!
//! Everything an instance gets is listed here and nowhere else, so this file is the one to read for security.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};

use super::{FUNCTION, INSTANCE, OWNER, Shared, image};
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
pub(super) fn body(shared: &Shared, launch: &Launch, network: Option<String>) -> ContainerCreateBody {
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
    let memory = i64::try_from(function.memory).unwrap_or(i64::MAX);
    let scratch = SCRATCH.min(function.memory / 2);
    // A read-only mount does not keep anyone from connecting to a socket in it.
    let mut mounts = vec![mount(&launch.folder, LINK_FOLDER), mount(&function.folder, FUNCTION_FOLDER)];
    if network.is_none() {
        mounts.push(mount(&launch.folder.join(HOSTS_FILE), "/etc/hosts"));
    }
    HostConfig {
        mounts: Some(mounts),
        readonly_rootfs: Some(true),
        tmpfs: Some(texts(&[("/tmp", &format!("rw,nosuid,nodev,size={scratch},mode=1777"))])),
        shm_size: i64::try_from(scratch).ok(),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        memory: Some(memory),
        // Memory and swap together: no swap on top.
        memory_swap: Some(memory),
        nano_cpus: Some((function.cpus.clamp(0.01, shared.cores) * 1e9) as i64),
        pids_limit: Some(PIDS),
        ulimits: Some(vec![limit("nofile", FILES), limit("core", 0)]),
        network_mode: Some(network.unwrap_or_else(|| "none".to_owned())),
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
fn mount(source: &Path, target: &str) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(true),
        ..Default::default()
    }
}

fn limit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

fn texts(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
