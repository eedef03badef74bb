//! Jobs as containers of the runtime's image: the job's folder is writable, and there is a network.
//!
//! It runs as the owner of the folder, so that what it makes belongs to whoever will read and remove it;
//! without any capability. The root file system can be written to as far as that user may: tools expect that,
//! and it is gone with the container.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits,
};
use bollard::query_parameters::{AttachContainerOptions, CreateContainerOptions, WaitContainerOptions};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::client::{ASK, REMOVE, START};
use super::ledger::{Mark, Stray};
use super::{FUNCTION, INSTANCE, OWNER, Shared, container, image, network};
use crate::adapter::AdapterError;
use crate::adapter::job::Job;
use crate::instance::InstanceId;

const FOLDER: &str = "/usr/local/build";
const CACHE: &str = "/usr/local/cache";
const CERTIFICATES: &str = "/usr/local/share/executor/certificates.pem";

/// Processes and threads; package managers and compilers start many.
const PIDS: i64 = 1024;
/// Open files, as for instances.
const FILES: i64 = 16_384;
/// Shared memory, counted as the job's memory.
const SHARED_MEMORY: i64 = 64 << 20;

/// A container that is removed whatever happens.
struct Guard {
    shared: Arc<Shared>,
    name: String,
    mark: Mark,
    gone: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        {
            let mut ledger = self.shared.ledger();
            ledger.live.remove(&self.mark.value);
            ledger.strays.push(Stray::Container(self.mark.clone(), None));
        }
        // A build that was cancelled must not go on until the next start happens to look for strays.
        self.shared.hurry();
    }
}

/// See [`crate::adapter::Adapter::run_job`]. The image must be there.
pub(super) async fn run(
    shared: &Arc<Shared>,
    job: &Job,
    output: mpsc::Sender<Bytes>,
) -> Result<i32, AdapterError> {
    let id = InstanceId::new().to_string();
    // The front of the id is a time; its end is random.
    let name = format!("executor-build-{}", &id[id.len() - 12..]);
    // A build needs a network also where functions have none.
    let network = network::of_instances(shared).await?.unwrap_or_else(|| "bridge".to_owned());
    let body = body(shared, job, &id, network)?;
    let mark = Mark { label: INSTANCE, value: id };
    shared.ledger().live.insert(mark.value.clone());
    let mut guard = Guard { shared: Arc::clone(shared), name, mark, gone: false };
    let client = &shared.client;
    let options = CreateContainerOptions { name: Some(guard.name.clone()), ..Default::default() };
    client.call(START, "create the container", client.docker.create_container(Some(options), body)).await?;
    let options = AttachContainerOptions { stream: true, stdout: true, stderr: true, ..Default::default() };
    let attach = client.docker.attach_container(&guard.name, Some(options));
    let mut attached = client.call(START, "attach to the container", attach).await?;
    client.call(START, "start the container", client.docker.start_container(&guard.name, None)).await?;
    while let Some(Ok(piece)) = attached.output.next().await {
        if let LogOutput::StdOut { message }
        | LogOutput::StdErr { message }
        | LogOutput::Console { message } = piece
        {
            let _ = output.send(message).await;
        }
    }
    let code = exit_code(shared, &guard.name).await?;
    if code != 0 && out_of_memory(shared, &guard.name).await {
        let text = format!("\nran out of its {} MiB memory\n", job.memory >> 20);
        let _ = output.send(text.into()).await;
    }
    container::remove(client, &guard.name).await?;
    shared.ledger().live.remove(&guard.mark.value);
    guard.gone = true;
    Ok(code)
}

/// Its output may end before it does. Waiting itself has no limit; whoever asked for the job sets one.
async fn exit_code(shared: &Shared, name: &str) -> Result<i32, AdapterError> {
    let client = &shared.client;
    let options = WaitContainerOptions { condition: "not-running".to_owned() };
    let mut answer = std::pin::pin!(client.docker.wait_container(name, Some(options)));
    let code = match answer.next().await {
        Some(Ok(ended)) => ended.status_code,
        // A code other than 0 is an error to bollard, not to us.
        Some(Err(Error::DockerContainerWaitError { code, .. })) => code,
        Some(Err(error)) => return Err(client.fault("wait for the container", error).into()),
        None => return Err(AdapterError::Failed("Docker does not say how the build ended".into())),
    };
    Ok(i32::try_from(code).unwrap_or(i32::MAX))
}

async fn out_of_memory(shared: &Shared, name: &str) -> bool {
    let client = &shared.client;
    let inspect = client.docker.inspect_container(name, None);
    let inspected = client.call(ASK.min(REMOVE), "inspect the container", inspect).await;
    inspected.is_ok_and(|c| c.state.and_then(|state| state.oom_killed) == Some(true))
}

fn body(shared: &Shared, job: &Job, id: &str, network: String) -> Result<ContainerCreateBody, AdapterError> {
    let owner = std::fs::metadata(&job.folder)
        .map_err(|error| AdapterError::Failed(format!("{}: {error}", job.folder.display()).into()))?;
    let mut environment = vec!["HOME=/tmp".to_owned(), "TMPDIR=/tmp".to_owned()];
    environment.extend(
        job.variables(CERTIFICATES, CACHE).into_iter().map(|(name, value)| format!("{name}={value}")),
    );
    let mut mounts = vec![mount(&job.folder, FOLDER, false)];
    mounts.extend(job.cache.as_deref().map(|cache| mount(cache, CACHE, false)));
    mounts.extend(job.certificates.as_deref().map(|file| mount(file, CERTIFICATES, true)));
    let memory = i64::try_from(job.memory).unwrap_or(i64::MAX);
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let limit = |name: &str, value| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(value),
        hard: Some(value),
    };
    let host = HostConfig {
        mounts: Some(mounts),
        shm_size: Some(SHARED_MEMORY),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        memory: Some(memory),
        // Memory and swap together: no swap on top.
        memory_swap: Some(memory),
        nano_cpus: Some((job.cpus.clamp(0.01, shared.cores) * 1e9) as i64),
        pids_limit: Some(PIDS),
        ulimits: Some(vec![limit("nofile", FILES), limit("core", 0)]),
        network_mode: Some(network),
        // Its end ends everything, also what was left in the background.
        init: Some(true),
        // We are attached; nobody reads a log.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        ..Default::default()
    };
    Ok(ContainerCreateBody {
        image: Some(image::tag_for_builds(&job.runtime)),
        entrypoint: Some(vec!["/bin/sh".to_owned(), "-c".to_owned()]),
        cmd: Some(vec![job.command.clone()]),
        user: Some(format!("{}:{}", owner.uid(), owner.gid())),
        working_dir: Some(FOLDER.to_owned()),
        env: Some(environment),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        labels: Some(HashMap::from([
            text(OWNER, &shared.owner),
            text(INSTANCE, id),
            text(FUNCTION, "build"),
        ])),
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        host_config: Some(host),
        ..Default::default()
    })
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

#[cfg(test)]
mod docker_tests {
    use super::*;
    use crate::adapter::Adapter;
    use crate::adapter::docker::{DockerAdapter, DockerOptions, Network};
    use crate::runtime::Runtimes;

    async fn containers(adapter: &DockerAdapter) -> usize {
        let label = vec![format!("{OWNER}={}", adapter.shared.owner)];
        let options = bollard::query_parameters::ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), label)])),
            ..Default::default()
        };
        adapter.shared.client.docker.list_containers(Some(options)).await.unwrap().len()
    }

    /// One test, because the image takes long if it is not there.
    #[tokio::test]
    async fn docker_jobs() {
        let dir = tempfile::tempdir().unwrap();
        let options = DockerOptions {
            data: dir.path().to_owned(),
            host: None,
            network: Network::None,
            user: None,
            registry: None,
        };
        let adapter = DockerAdapter::connect(options).await.expect("these tests need Docker");
        let runtimes = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtimes");
        let runtime = Runtimes::open(Some(&runtimes), dir.path()).unwrap().get("node").unwrap();
        Adapter::prepare(&adapter, &runtime, None).await.unwrap();
        let folder = dir.path().join("build");
        std::fs::create_dir(&folder).unwrap();
        std::fs::create_dir(dir.path().join("cache")).unwrap();
        std::fs::write(dir.path().join("ca.pem"), "trusted\n").unwrap();
        let job = |command: &str| Job {
            runtime: Arc::clone(&runtime),
            version: None,
            folder: folder.clone(),
            command: command.to_owned(),
            environment: vec![("GIVEN".into(), "yes".into())],
            memory: 128 << 20,
            cpus: 1.0,
            certificates: Some(dir.path().join("ca.pem")),
            cache: Some(dir.path().join("cache")),
        };
        let run = async |command: &str| {
            let (sender, mut output) = mpsc::channel::<Bytes>(4);
            let gather = async {
                let mut all = Vec::new();
                while let Some(piece) = output.recv().await {
                    all.extend_from_slice(&piece);
                }
                String::from_utf8(all).unwrap()
            };
            let job = job(command);
            let (code, text) = tokio::join!(adapter.run_job(&job, sender), gather);
            (code.unwrap(), text)
        };
        let command = "pwd; node -p 1+1 2>/dev/null; echo $GIVEN $npm_config_cache; cat $NODE_EXTRA_CA_CERTS; echo kept > \
                       $npm_config_cache-x; echo made > made; echo bad >&2; ls /sys/class/net; exit 3";
        let (code, text) = run(command).await;
        assert_eq!(code, 3, "{text}");
        assert!(
            text.contains("/usr/local/build\n") && text.contains("2\nyes /usr/local/cache/npm\ntrusted\n"),
            "{text}"
        );
        assert!(text.contains("bad\n") && text.contains("eth0"), "with a network: {text}");
        assert_eq!(std::fs::read_to_string(folder.join("made")).unwrap(), "made\n");
        assert!(dir.path().join("cache/npm-x").is_file());
        let owner = |path: &Path| std::fs::metadata(path).unwrap().uid();
        assert_eq!(owner(&folder.join("made")), owner(&folder));
        let (code, text) = run("node -e 'const a=[]; for(;;) a.push(Buffer.alloc(8<<20, 1))'").await;
        assert!(code != 0 && text.contains("ran out of its 128 MiB memory"), "{code} {text}");
        assert_eq!(containers(&adapter).await, 0);
        // Cancelled: gone without anybody asking for it.
        let (sender, mut output) = mpsc::channel::<Bytes>(4);
        let endless = job("echo up; sleep 1000");
        tokio::select! {
            code = adapter.run_job(&endless, sender) => panic!("it ended: {code:?}"),
            piece = output.recv() => assert_eq!(piece.unwrap(), "up\n"),
        }
        for _ in 0..600 {
            if containers(&adapter).await == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("the container of a cancelled job stays");
    }
}
