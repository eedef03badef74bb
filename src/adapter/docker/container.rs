//! One container, and as a [`Unit`]: how it starts, how its end is noticed and told, how it is removed.
//!
//! Everything after its creation goes by its id. All of it works by `&self`, so that guests, which many hold, are the
//! same thing; whoever ends it first decides what is told about its end.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerState};
use bollard::query_parameters::{
    CreateContainerOptions, LogsOptions, RemoveContainerOptions, WaitContainerOptions,
};
use futures_util::StreamExt as _;

use super::client::{ASK, Client, Fault, REMOVE, START, WORDS};
use super::ledger::{Mark, Stray};
use super::{INSTANCE, Shared, network, spec};
use crate::adapter::{AdapterError, BoxFuture, Unit};
use crate::instance::{Exit, Launch};

/// Bytes of output kept as last words: a stack trace, not a log.
const LAST_WORDS: usize = 4096;
/// Times Docker may fail to say whether the container still runs, and the pause after each. Together they outlast
/// a restart of the daemon.
const WAIT_FAILURES: u32 = 60;
const WAIT_PAUSE: Duration = Duration::from_millis(500);
/// Between an end that is followed by a restart and the wait for the next one. Docker restarts after 100 ms at the
/// earliest, and no end may go unseen.
const RESTART_PAUSE: Duration = Duration::from_millis(50);
/// How often, and how far apart, a start is tried while there are two networks of the same name.
const NETWORK_TRIES: u32 = 25;
const NETWORK_PAUSE: Duration = Duration::from_millis(200);

/// One container, from the moment before it is created until it is gone.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) shared: Arc<Shared>,
    mark: Mark,
    name: String,
    /// Known once it is created.
    id: OnceLock<String>,
    memory: u64,
    /// Known from its end on; the first one that is told stays.
    exit: Mutex<Option<Exit>>,
    /// See [`crate::adapter::guest::Guest::ends`].
    ends: AtomicU64,
    /// Removed for certain.
    gone: AtomicBool,
    /// Who ends it; others wait for that.
    ending: tokio::sync::Mutex<()>,
}

impl Container {
    /// Creates and starts the container of `launch`.
    pub(super) async fn start(shared: &Arc<Shared>, launch: &Launch) -> Result<Self, AdapterError> {
        check_readable(shared, &launch.function.folder)?;
        shared.remove_strays().await;
        let network = network::of_instances(shared).await?;
        if network.is_none() {
            write_hosts(&launch.folder)?;
        }
        let mark = Mark { label: INSTANCE, value: launch.id.to_string() };
        let body = spec::instance(shared, launch, network);
        Self::run(shared, mark, spec::name(launch), launch.function.memory, body).await
    }

    /// Creates and starts a container. `body` carries the label `mark`; `memory` (bytes) is for words about its end.
    pub(super) async fn run(
        shared: &Arc<Shared>,
        mark: Mark,
        name: String,
        memory: u64,
        body: ContainerCreateBody,
    ) -> Result<Self, AdapterError> {
        // It exists before its container does, so that dropping this future at any point leaves a stray to remove.
        shared.ledger().live.insert(mark.value.clone());
        let container = Self {
            shared: Arc::clone(shared),
            mark,
            name,
            id: OnceLock::new(),
            memory,
            exit: Mutex::default(),
            ends: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            ending: tokio::sync::Mutex::default(),
        };
        if let Err(fault) = container.create_and_start(body).await {
            if container.id.get().is_some() {
                container.remove().await;
            }
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

    async fn create_and_start(&self, body: ContainerCreateBody) -> Result<(), Fault> {
        let client = &self.shared.client;
        let options = CreateContainerOptions { name: Some(self.name.clone()), ..Default::default() };
        let create = client.docker.create_container(Some(options), body);
        let created = client.call(START, "create the container", create).await;
        // Refused: there is nothing to remove. Without an answer there may be.
        if created.as_ref().is_err_and(Fault::is_answer) {
            self.is_gone();
        }
        let id = self.id.get_or_init({
            let id = created?.id;
            || id
        });
        // While another executor makes a network of the same name, older versions of Docker start nothing in either.
        let twice = |fault: &Fault| fault.message().is_some_and(|message| message.contains("is ambiguous"));
        for _ in 0..NETWORK_TRIES {
            match client.call(START, "start the container", client.docker.start_container(id, None)).await {
                Err(fault) if twice(&fault) => tokio::time::sleep(NETWORK_PAUSE).await,
                other => return other,
            }
        }
        client.call(START, "start the container", client.docker.start_container(id, None)).await
    }

    /// Its id; never another container, which a name may come to mean.
    pub(super) fn id(&self) -> &str {
        self.id.get().map_or("", String::as_str)
    }

    /// Its name, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What Docker knows about it.
    pub(super) async fn inspect(&self, limit: Duration) -> Result<ContainerInspectResponse, Fault> {
        let client = &self.shared.client;
        client.call(limit, "inspect the container", client.docker.inspect_container(self.id(), None)).await
    }

    /// Waits until it does not run and Docker does not start it again, and tells about it. Nothing is lost when this
    /// is dropped: Docker keeps state and output until the container is removed, so the next call finds the same.
    pub(super) async fn end(&self) -> Exit {
        let mut failures = 0;
        loop {
            if let Some(exit) = self.exit() {
                return exit;
            }
            let found = if failures == 0 {
                match self.wait().await {
                    Ok(()) => {
                        // Before anything that takes time.
                        self.count_end();
                        self.inspect(ASK).await
                    }
                    Err(fault) => Err(fault),
                }
            } else {
                // Meanwhile it may have ended and been started again unseen.
                self.inspect(ASK).await.inspect(|_| self.count_end())
            };
            match found.map(|container| container.state.unwrap_or_default()) {
                Ok(state) if runs(&state) => {
                    failures = 0;
                    tokio::time::sleep(RESTART_PAUSE).await;
                    continue;
                }
                Ok(state) => return self.settle(self.tell(&state).await),
                Err(fault) if fault.is_gone() => return self.settle(removed_by_others()),
                Err(fault) if failures == WAIT_FAILURES => {
                    let reason = format!("was lost: {}", AdapterError::from(fault));
                    return self.settle(Exit { reason, last_words: String::new() });
                }
                Err(_) => failures += 1,
            }
            tokio::time::sleep(WAIT_PAUSE).await;
        }
    }

    /// How it ended, if it has.
    pub(super) fn exit(&self) -> Option<Exit> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// See [`crate::adapter::guest::Guest::ends`].
    pub(super) fn ends(&self) -> u64 {
        self.ends.load(Ordering::Acquire)
    }

    fn count_end(&self) {
        self.ends.fetch_add(1, Ordering::AcqRel);
    }

    fn settle(&self, exit: Exit) -> Exit {
        self.count_end();
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(exit).clone()
    }

    /// Returns when the container does not run any more. Waiting itself has no limit; that is its purpose.
    async fn wait(&self) -> Result<(), Fault> {
        let client = &self.shared.client;
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        let mut answer = std::pin::pin!(client.docker.wait_container(self.id(), Some(options)));
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

    /// The end that `state` shows, in words, and what the container wrote last.
    pub(super) async fn tell(&self, state: &ContainerState) -> Exit {
        Exit { reason: reason(state, self.memory), last_words: self.last_words().await }
    }

    async fn last_words(&self) -> String {
        // All of it, which the log driver bounds to 1 MiB: Docker does not keep the two streams in order, so a stack
        // trace may come long before the output that was written before it.
        let options = LogsOptions { stdout: true, stderr: true, ..Default::default() };
        let mut output = std::pin::pin!(self.shared.client.docker.logs(self.id(), Some(options)));
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

    /// Ends it at once; when this returns, it is gone. Callers that come together all hear the same.
    pub(super) async fn end_now(&self) -> Exit {
        let ending = self.ending.lock().await;
        if self.exit().is_none() {
            // First of all it stops; how it ended and its last words can then be read in peace. What fails here (most
            // likely because it has just ended by itself) is made good by the removal. A container that Docker is
            // about to restart is not started again either. From now on its address may be another one's.
            self.count_end();
            let client = &self.shared.client;
            let kill = client.docker.kill_container(self.id(), None);
            let _ = client.call(REMOVE, "kill the container", kill).await;
            let exit = match self.inspect(WORDS).await {
                Ok(container) => self.tell(&container.state.unwrap_or_default()).await,
                Err(fault) if fault.is_gone() => removed_by_others(),
                Err(_) => {
                    let reason = "ended, and Docker does not say how".to_owned();
                    Exit { reason, last_words: String::new() }
                }
            };
            self.settle(exit);
        }
        self.remove().await;
        drop(ending);
        self.shared.remove_strays().await;
        self.exit().unwrap_or_else(removed_by_others)
    }

    async fn remove(&self) {
        if self.gone.load(Ordering::Acquire) {
            return;
        }
        match remove(&self.shared.client, self.id()).await {
            Ok(()) => self.is_gone(),
            // Dropping it makes it a stray, which is tried again.
            Err(fault) => {
                let error = AdapterError::from(fault);
                tracing::error!(container = %self.name, %error, "the container could not be removed");
            }
        }
    }

    fn is_gone(&self) {
        self.gone.store(true, Ordering::Release);
        self.shared.ledger().live.remove(&self.mark.value);
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
        if !*self.gone.get_mut() {
            let mut ledger = self.shared.ledger();
            ledger.live.remove(&self.mark.value);
            ledger.strays.push(Stray::Container(self.mark.clone(), self.id.get().cloned()));
        }
    }
}

/// Whether it runs, or will again without anybody's doing.
pub(super) fn runs(state: &ContainerState) -> bool {
    state.running == Some(true) || state.restarting == Some(true)
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

pub(super) fn removed_by_others() -> Exit {
    Exit { reason: "was removed from Docker by someone else".to_owned(), last_words: String::new() }
}

/// How it ended, for a person. A container that still runs is one that we are about to kill.
fn reason(state: &ContainerState, memory: u64) -> String {
    let code = state.exit_code.unwrap_or_default();
    if state.running == Some(true) && state.restarting != Some(true) {
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
