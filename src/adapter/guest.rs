//! Guests: containers of images that know nothing of our link.
//!
//! A guest is started from any image with any command, may listen on a port, and may be asked to run further commands
//! inside. Nothing here knows what it serves: talking to it is the work of `transport`.
//!
//! Invariants: whatever [`Guests::start`] left behind is found again by [`super::Adapter::sweep`]; a guest that is
//! killed leaves no process, no container and no volume.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{AdapterError, BoxFuture};
use crate::instance::Exit;

/// Starts guests. Only backends that have images can.
pub trait Guests: Send + Sync {
    /// Makes an image usable: looks for it here, else pulls it. Concurrent calls for one image do the work once.
    /// [`AdapterError::Missing`] says that it is neither here nor to be had, and what to do.
    fn prepare<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<(), AdapterError>>;

    /// Creates and starts one container. The image must have been prepared. A container of the same name that an earlier
    /// run of this executor left is removed first; any other one is an error. Cancel safety: when the future is dropped,
    /// what it started is removed, at the latest by the next sweep.
    fn start<'a>(&'a self, launch: &'a GuestLaunch) -> BoxFuture<'a, Result<Arc<dyn Guest>, AdapterError>>;

    /// How much of a core each running guest of this executor uses, as its label and percent: 100 is one core. Takes a
    /// second or two; guests about which nothing can be said in time are left out.
    fn usage(&self) -> BoxFuture<'_, Result<Vec<(String, f64)>, AdapterError>>;
}

/// One started guest. Dropping the last reference without [`Guest::kill`] must also end it, if need be later.
pub trait Guest: Send + Sync {
    /// Its address as this executor reaches it. Asked again after a restart, which may change it. While it does not
    /// run, it has none, which is [`AdapterError::Failed`].
    fn address(&self) -> BoxFuture<'_, Result<IpAddr, AdapterError>>;

    /// Runs a command inside, beside the main process, and returns its exit code. What it writes goes to `output` as it
    /// comes; a full channel makes the command wait, a closed one throws the rest away. When `limit` passes or the
    /// future is dropped, the command is killed with what it started; where that cannot be done inside, with the whole
    /// guest. What a command that ended by itself left running stays. The image must have `/bin/sh`.
    fn exec<'a>(
        &'a self,
        command: &'a [String],
        limit: Duration,
        output: mpsc::Sender<Piece>,
    ) -> BoxFuture<'a, Result<i64, ExecError>>;

    /// Resolves when the main process has ended and its restart policy does not start it again. Cancel safe; may be
    /// called again and by several at once.
    fn ended(&self) -> BoxFuture<'_, Exit>;

    /// Grows with every end of the main process, also one that is followed by a restart, as long as somebody waits in
    /// [`Guest::ended`]. An address is only good while this is what it was before that address was asked for: the next
    /// container may get it. It may grow by more than one, and where an end could have been missed.
    fn ends(&self) -> u64;

    /// Ends it at once and returns when all of it is gone. May be called again.
    fn kill(&self) -> BoxFuture<'_, Exit>;
}

/// A piece of what a command wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Standard output.
    Out(Bytes),
    /// Standard error.
    Err(Bytes),
}

/// Why a command has no exit code.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ExecError {
    /// It ran longer than allowed and was killed.
    #[error("it ran longer than {0:?}")]
    TimedOut(Duration),
    /// The guest ended, before or while it ran.
    #[error("the container {0}")]
    Ended(Exit),
    /// The backend failed.
    #[error("{0}")]
    Adapter(#[from] AdapterError),
}

/// Everything that is needed to start a guest.
#[derive(Debug, Clone)]
pub struct GuestLaunch {
    /// The container's name, unique on this host; also its host name in its networks where that is short enough.
    pub name: String,
    /// The image.
    pub image: String,
    /// The main process, in place of the image's entrypoint and command; none: the image's own.
    pub command: Option<Vec<String>>,
    /// Environment, in order; later ones win. Names are not empty and without `=`, nothing holds a zero byte.
    pub environment: Vec<(String, String)>,
    /// What of the host it sees.
    pub mounts: Vec<Mount>,
    /// Working directory; none: the image's own.
    pub working_directory: Option<String>,
    /// Cores it may use; not more than the host has.
    pub cpus: f64,
    /// Memory, bytes.
    pub memory: u64,
    /// What happens when its main process ends.
    pub restart: RestartPolicy,
    /// Networks it may join: one of them is chosen, made if it is not there. Empty: the executor's own.
    pub networks: Vec<String>,
    /// For labels: the function or runtime id it belongs to.
    pub label: String,
    /// Whether it is one of the operator's own (capabilities dropped, read-only root, non-root user as our images) or an
    /// image of unknown habits, which gets Docker's defaults minus what no function needs (see `spec`).
    pub strict: bool,
}

/// A folder or file of the host inside a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Path on this host.
    pub host: PathBuf,
    /// Path inside.
    pub inside: String,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// What happens when a main process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartPolicy {
    /// It stays dead.
    #[default]
    No,
    /// It is started again, whatever happened.
    Always,
    /// It is started again after an exit code other than 0.
    OnFailure,
    /// As `Always`, until somebody stops it.
    UnlessStopped,
}
