//! From nothing to a ready worker: socket, adapter, handshake; and if it fails, why, in words for the caller.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;

use crate::adapter::{Adapter, AdapterError, Unit};
use crate::function::Function;
use crate::instance::{InstanceId, Launch, Secret};
use crate::link::message::{Fault, Limits as WorkerLimits, ReadyMessage};
use crate::link::{self, HandshakeError, Init, Ready, StartWords};
use crate::pool::{Channel, StartFailure, StartPart};
use crate::runtime::Runtime;
use crate::transport::Client;

/// How long the reason of a death is looked for after the link ended. Calls learn it, so it is worth a moment; the
/// moment is bounded because they wait for it.
pub(super) const REASON_LIMIT: Duration = Duration::from_millis(500);

/// What an instance that has ended wrote last may still be on the link.
const WORDS_LIMIT: Duration = Duration::from_millis(100);

/// Starts instances.
#[derive(Clone)]
pub struct Starter {
    /// What runs them.
    pub adapter: Arc<dyn Adapter>,
    /// How long a start may take, from the launch to READY.
    pub limit: Duration,
    /// Folder for the instances' own folders.
    pub run_folder: PathBuf,
    /// Sizes the workers are told.
    pub worker_limits: WorkerLimits,
    /// How foreign images are talked to.
    pub client: Client,
}

/// A started instance.
pub(super) struct Started {
    pub(super) unit: Box<dyn Unit>,
    pub(super) channel: Channel,
    /// Of a worker: what has to be driven.
    pub(super) link: Option<Ready>,
}

impl Starter {
    /// Where the instance's own folder is.
    pub fn folder(&self, id: InstanceId) -> PathBuf {
        self.run_folder.join(id.to_string())
    }

    /// Loads the function without running its `init` hook, gives what it says of itself, and ends it.
    pub async fn info(
        &self,
        function: &Arc<Function>,
        runtime: &Arc<Runtime>,
    ) -> Result<ReadyMessage, StartFailure> {
        self.adapter
            .prepare(runtime, function.runtime.version.as_deref())
            .await
            .map_err(|e| adapter_failure(&e))?;
        let id = InstanceId::new();
        let started = self.start(id, function, runtime, true).await;
        let result = match started {
            Ok((mut unit, ready)) => {
                unit.kill().await;
                Ok(ready.message)
            }
            Err(failure) => Err(failure),
        };
        remove_folder(&self.folder(id)).await;
        result
    }

    /// Starts an instance of a prepared runtime and waits for READY. When it fails or is cancelled, what was
    /// started is killed; the instance's folder is the caller's to remove.
    pub(super) async fn start(
        &self,
        id: InstanceId,
        function: &Arc<Function>,
        runtime: &Arc<Runtime>,
        info_only: bool,
    ) -> Result<(Box<dyn Unit>, Ready), StartFailure> {
        let folder = self.folder(id);
        let launch = Launch {
            id,
            function: Arc::clone(function),
            runtime: Arc::clone(runtime),
            socket: folder.join("link.sock"),
            folder,
            token: Secret::generate(),
        };
        let listener = make_socket(&launch).map_err(|error| {
            failed(format!("cannot make the instance's socket {}: {error}", launch.socket.display()))
        })?;
        let deadline = tokio::time::Instant::now() + self.limit;
        let mut unit = self.adapter.start(&launch).await.map_err(|e| adapter_failure(&e))?;
        let directory = self.adapter.code_directory(function);
        let (limits, words) = (self.worker_limits, StartWords::default());
        let entrypoint = &function.entrypoint;
        let init = Init { function, directory: &directory, entrypoint, info_only, limits, words: &words };
        let outcome = {
            let accepted = link::accept(listener, &launch.socket, &launch.token, &init, deadline);
            let mut accepted = std::pin::pin!(accepted);
            tokio::select! {
                ready = &mut accepted => ready,
                exit = unit.ended() => match tokio::time::timeout(WORDS_LIMIT, accepted).await {
                    Ok(Err(error)) => Err(error),
                    _ => Err(HandshakeError::Broken(exit.reason.into())),
                },
            }
        };
        match outcome {
            Ok(ready) => Ok((unit, ready)),
            Err(error) => Err(self.explain(error, unit.as_mut(), function, &words).await),
        }
    }

    async fn explain(
        &self,
        error: HandshakeError,
        unit: &mut dyn Unit,
        function: &Function,
        words: &StartWords,
    ) -> StartFailure {
        let reason = match error {
            HandshakeError::Load(fault) => {
                unit.kill().await;
                let message = load_message(&fault, &function.entrypoint);
                return StartFailure { part: StartPart::Function, message, stack: fault.stack };
            }
            HandshakeError::TimedOut(text) => format!("{text} ({:?})", self.limit),
            HandshakeError::Broken(_) => match tokio::time::timeout(REASON_LIMIT, unit.ended()).await {
                Ok(exit) => format!("it {} while it was starting", exit.reason),
                Err(_) => error.to_string(),
            },
        };
        let killed = unit.kill().await;
        let words = format!("{}\n{}", words.text(), killed.last_words.trim());
        failed(match words.trim() {
            "" => reason,
            words => format!("{reason}; its last words: {words}"),
        })
    }
}

pub(super) fn failed(message: String) -> StartFailure {
    StartFailure { part: StartPart::Adapter, message, stack: String::new() }
}

pub(super) fn adapter_failure(error: &AdapterError) -> StartFailure {
    let part =
        if matches!(error, AdapterError::Missing(_)) { StartPart::Runtime } else { StartPart::Adapter };
    StartFailure { part, message: error.to_string(), stack: String::new() }
}

/// The texts of section 9.6 of the runtime protocol.
fn load_message(fault: &Fault, entrypoint: &str) -> String {
    let detail = &fault.message;
    match fault.kind.as_str() {
        "absent" => format!("Failed to load entrypoint, file {entrypoint} does not exist."),
        "syntax" => format!("Syntax error in {entrypoint}: {detail}"),
        // A worker says what else than its handler a function lacks.
        "signature" if !detail.is_empty() => detail.clone(),
        "signature" => "Function signature invalid. Did you forget to export a 'main' function?".to_owned(),
        "init" => format!("The function's init hook failed: {detail}"),
        _ => format!("Failed to load module: {detail}"),
    }
}

fn make_socket(launch: &Launch) -> std::io::Result<UnixListener> {
    std::fs::create_dir_all(&launch.folder)?;
    std::fs::set_permissions(&launch.folder, std::fs::Permissions::from_mode(0o755))?;
    let listener = UnixListener::bind(&launch.socket)?;
    // A container's user is not ours. The folder's parent keeps other users of this host out.
    std::fs::set_permissions(&launch.socket, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

pub(super) async fn remove_folder(folder: &Path) {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), "could not remove an instance's folder: {error}");
        }
        _ => {}
    }
}
