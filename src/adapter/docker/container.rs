//! One container as a [`Unit`]: how it starts, how its end is noticed and told, how it is removed.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::ContainerState;
use bollard::query_parameters::{
    CreateContainerOptions, LogsOptions, RemoveContainerOptions, WaitContainerOptions,
};
use futures_util::StreamExt as _;

use super::client::{ASK, Client, Fault, REMOVE, START, WORDS};
use super::{Shared, network, spec};
use crate::adapter::{AdapterError, BoxFuture, Unit};
use crate::instance::{Exit, Launch};

/// Bytes of output kept as last words: a stack trace, not a log.
const LAST_WORDS: usize = 4096;
/// Times Docker may fail to say whether the container still runs, and the pause after each. Together they outlast
/// a restart of the daemon.
const WAIT_FAILURES: u32 = 60;
const WAIT_PAUSE: Duration = Duration::from_millis(500);

/// One container, from the moment before it is created until it is gone.
#[derive(Debug)]
pub(super) struct Container {
    shared: Arc<Shared>,
    name: String,
    memory: u64,
    /// Known from its end on.
    exit: Option<Exit>,
    /// Removed for certain.
    gone: bool,
}

impl Container {
    /// Creates and starts the container of `launch`.
    pub(super) async fn start(shared: &Arc<Shared>, launch: &Launch) -> Result<Self, AdapterError> {
        check_readable(shared, &launch.function.folder)?;
        shared.remove_strays().await;
        let network = network::ensure(shared).await?;
        if network.is_none() {
            write_hosts(&launch.folder)?;
        }
        let name = spec::name(launch);
        let body = spec::body(shared, launch, network);
        // It exists before its container does, so that dropping this future at any point leaves a stray to remove.
        shared.ledger().live.insert(name.clone());
        let memory = launch.function.memory;
        let mut container = Self { shared: Arc::clone(shared), name, memory, exit: None, gone: false };
        if let Err(fault) = container.run(body).await {
            container.remove().await;
            let error = match AdapterError::from(fault) {
                AdapterError::Failed(text) => {
                    AdapterError::Failed(format!("{}: {text}", container.name).into())
                }
                other => other,
            };
            return Err(error);
        }
        Ok(container)
    }

    async fn run(&self, body: bollard::models::ContainerCreateBody) -> Result<(), Fault> {
        let client = &self.shared.client;
        let options = CreateContainerOptions { name: Some(self.name.clone()), ..Default::default() };
        client
            .call(START, "create the container", client.docker.create_container(Some(options), body))
            .await?;
        client.call(START, "start the container", client.docker.start_container(&self.name, None)).await
    }

    /// Waits for the end and tells about it. Nothing is lost when this is dropped: Docker keeps state and output until
    /// the container is removed, so the next call finds the same.
    async fn end(&mut self) -> Exit {
        let mut failures = 0;
        while self.exit.is_none() {
            match self.wait().await {
                Ok(()) => self.exit = Some(self.autopsy(ASK).await),
                Err(fault) if fault.is_gone() => self.exit = Some(removed_by_others()),
                Err(fault) if failures == WAIT_FAILURES => {
                    let error = AdapterError::from(fault);
                    self.exit =
                        Some(Exit { reason: format!("was lost: {error}"), last_words: String::new() });
                }
                Err(_) => {
                    failures += 1;
                    tokio::time::sleep(WAIT_PAUSE).await;
                }
            }
        }
        self.exit.clone().unwrap_or_else(removed_by_others)
    }

    /// Returns when the container does not run any more. Waiting itself has no limit; that is its purpose.
    async fn wait(&self) -> Result<(), Fault> {
        let client = &self.shared.client;
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        let mut answer = std::pin::pin!(client.docker.wait_container(&self.name, Some(options)));
        match answer.next().await {
            // A code other than 0 is an error to bollard, not to us.
            Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(error)) => Err(client.fault("wait for the container", error)),
            None => {
                let cut = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                Err(client.fault("wait for the container", cut.into()))
            }
        }
    }

    /// What Docker knows about the end, and what the container wrote last.
    async fn autopsy(&self, limit: Duration) -> Exit {
        let client = &self.shared.client;
        let inspect =
            client.call(limit, "inspect the container", client.docker.inspect_container(&self.name, None));
        let (inspected, last_words) = tokio::join!(inspect, self.last_words());
        let reason = match inspected {
            Ok(container) => reason(&container.state.unwrap_or_default(), self.memory),
            Err(fault) if fault.is_gone() => return removed_by_others(),
            Err(_) => "ended, and Docker does not say how".to_owned(),
        };
        Exit { reason, last_words }
    }

    async fn last_words(&self) -> String {
        // All of it, which the log driver bounds to 1 MiB: Docker does not keep the two streams in order, so a stack
        // trace may come long before the output that was written before it.
        let options = LogsOptions { stdout: true, stderr: true, ..Default::default() };
        let mut output = std::pin::pin!(self.shared.client.docker.logs(&self.name, Some(options)));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let read = async {
            while let Some(Ok(piece)) = output.next().await {
                let tail = if matches!(piece, LogOutput::StdErr { .. }) { &mut err } else { &mut out };
                tail.extend_from_slice(piece.as_ref());
                tail.drain(..tail.len().saturating_sub(LAST_WORDS));
            }
        };
        // What came in time is better than nothing.
        let _ = tokio::time::timeout(WORDS, read).await;
        // The errors are worth more, so the rest gets the room they leave.
        out.drain(..out.len().saturating_sub(LAST_WORDS - err.len()));
        out.append(&mut err);
        String::from_utf8_lossy(&out).trim().to_owned()
    }

    async fn end_now(&mut self) -> Exit {
        if self.exit.is_none() && !self.gone {
            // First of all it stops; how it ended and its last words can then be read in peace. What fails here (most
            // likely because it has just ended by itself) is made good by the removal.
            let client = &self.shared.client;
            let kill = client.docker.kill_container(&self.name, None);
            let _ = client.call(REMOVE, "kill the container", kill).await;
            self.exit = Some(self.autopsy(WORDS).await);
        }
        self.remove().await;
        self.shared.remove_strays().await;
        self.exit.clone().unwrap_or_else(removed_by_others)
    }

    async fn remove(&mut self) {
        if self.gone {
            return;
        }
        match remove(&self.shared.client, &self.name).await {
            Ok(()) => {
                self.gone = true;
                self.shared.ledger().live.remove(&self.name);
            }
            // Dropping it makes it a stray, which is tried again.
            Err(fault) => {
                let error = AdapterError::from(fault);
                tracing::error!(container = %self.name, %error, "the container could not be removed");
            }
        }
    }
}

impl Unit for Container {
    fn ended(&mut self) -> BoxFuture<'_, Exit> {
        Box::pin(self.end())
    }

    fn kill(&mut self) -> BoxFuture<'_, Exit> {
        Box::pin(self.end_now())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.gone {
            let mut ledger = self.shared.ledger();
            ledger.live.remove(&self.name);
            ledger.strays.push(std::mem::take(&mut self.name));
        }
    }
}

/// Kills and removes a container with its volumes, and returns when it is gone. One that is not there is gone.
pub(super) async fn remove(client: &Client, name: &str) -> Result<(), Fault> {
    let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
    let removal = client.docker.remove_container(name, Some(options));
    match client.call(REMOVE, "remove the container", removal).await {
        Err(fault) if fault.is_gone() => Ok(()),
        Err(fault) if fault.is_conflict() => until_removed(client, name).await,
        other => other,
    }
}

/// Somebody else is removing it already.
async fn until_removed(client: &Client, name: &str) -> Result<(), Fault> {
    let options = WaitContainerOptions { condition: "removed".to_owned() };
    let wait = async {
        let mut answer = std::pin::pin!(client.docker.wait_container(name, Some(options)));
        match answer.next().await {
            Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) | None => Ok(()),
            Some(Err(error)) => Err(error),
        }
    };
    match client.call(REMOVE, "remove the container", wait).await {
        Err(fault) if fault.is_gone() => Ok(()),
        other => other,
    }
}

/// The instance's user is not ours, and "permission denied" from inside a container is hard to understand.
fn check_readable(shared: &Shared, folder: &Path) -> Result<(), AdapterError> {
    let closed = std::fs::metadata(folder).is_ok_and(|meta| meta.mode() & 0o005 != 0o005);
    if closed && shared.user.is_none() {
        let folder = folder.display();
        let text =
            format!("user {} of the container cannot read {folder}; run: chmod -R o+rX {folder}", spec::USER);
        return Err(AdapterError::Failed(text.into()));
    }
    Ok(())
}

fn write_hosts(folder: &Path) -> Result<(), AdapterError> {
    let file = folder.join(spec::HOSTS_FILE);
    let write = || {
        std::fs::write(&file, spec::HOSTS)?;
        // Whatever our umask: the reader is another user.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))
    };
    write().map_err(|error| AdapterError::Failed(format!("{}: {error}", file.display()).into()))
}

fn removed_by_others() -> Exit {
    Exit { reason: "was removed from Docker by someone else".to_owned(), last_words: String::new() }
}

/// How it ended, for a person. A container that still runs is one that we are about to kill.
fn reason(state: &ContainerState, memory: u64) -> String {
    let code = state.exit_code.unwrap_or_default();
    if state.running == Some(true) {
        return "was killed by signal 9".to_owned();
    }
    // Docker also notes that a child ran out of memory which the main process survived.
    if state.oom_killed == Some(true) && code != 0 {
        return format!("ran out of its {} MiB memory", memory >> 20);
    }
    match code {
        // Process 1 passes on the end of its child in the way of shells.
        129..=192 => format!("was killed by signal {}", code - 128),
        code => format!("exited with code {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_in_plain_words() {
        let state =
            |code, oom| ContainerState { exit_code: Some(code), oom_killed: Some(oom), ..Default::default() };
        let told = |state: ContainerState| reason(&state, 64 << 20);
        assert_eq!(told(state(0, false)), "exited with code 0");
        assert_eq!(told(state(1, false)), "exited with code 1");
        assert_eq!(told(state(139, false)), "was killed by signal 11");
        assert_eq!(told(state(137, true)), "ran out of its 64 MiB memory");
        assert_eq!(told(state(0, true)), "exited with code 0");
        assert_eq!(told(state(255, false)), "exited with code 255");
        assert_eq!(told(ContainerState { running: Some(true), ..state(0, false) }), "was killed by signal 9");
    }
}
