//! Starts and stops instances.
//!
//! An [`Adapter`] knows containers or processes and nothing about requests: what it starts dials the host over the
//! link by itself, so there is no probing here. Its verbs are few, because all that is the same for every kind of
//! instance (readiness, calls, limits in time) lives above.
//!
//! Invariants: whatever [`Adapter::start`] left behind is found again by [`Adapter::sweep`], also after `kill -9`
//! of the executor; [`Unit::kill`] leaves no descendant.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use self::job::Job;
use crate::function::Function;
use crate::instance::{Exit, Launch};
use crate::runtime::Runtime;

pub mod docker;
pub mod guest;
pub mod job;
pub mod process;

/// A boxed future, as trait objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A backend that runs instances.
pub trait Adapter: Send + Sync {
    /// `docker` or `process`.
    fn name(&self) -> &'static str;

    /// Makes the runtime usable (builds its image, finds its program) unless it already is. `version` is what the
    /// function asked for. Called before `start`; concurrent calls for the same runtime do the work once.
    fn prepare<'a>(
        &'a self,
        runtime: &'a Runtime,
        version: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), AdapterError>>;

    /// Starts one instance. Cancel safety: when the future is dropped, what it started is killed, at the latest by
    /// the next `sweep`.
    fn start<'a>(&'a self, launch: &'a Launch) -> BoxFuture<'a, Result<Box<dyn Unit>, AdapterError>>;

    /// Runs a job to its end with the tools of its runtime, which must have been prepared, and gives the exit code (128
    /// and the signal if one killed it). What it writes, of both kinds, goes to `output` as it comes; a full channel
    /// makes it wait. Cancel safety: when the future is dropped, everything it started is killed.
    fn run_job<'a>(
        &'a self,
        job: &'a Job,
        output: mpsc::Sender<Bytes>,
    ) -> BoxFuture<'a, Result<i32, AdapterError>>;

    /// The function's folder as its worker sees it.
    fn code_directory(&self, function: &Function) -> String;

    /// Whether, and how, it runs containers of foreign images.
    fn guests(&self) -> Option<&dyn guest::Guests> {
        None
    }

    /// Removes what a crashed predecessor with the same data folder left behind; gives how many instances.
    fn sweep(&self) -> BoxFuture<'_, Result<usize, AdapterError>>;
}

/// One started instance. Dropping it without [`Unit::kill`] must also end it, if need be later.
pub trait Unit: Send {
    /// Resolves when its main process has ended. Cancel safe; may be called again.
    fn ended(&mut self) -> BoxFuture<'_, Exit>;

    /// Ends it at once with everything it started and returns when all is gone. May be called again.
    fn kill(&mut self) -> BoxFuture<'_, Exit>;
}

/// Why an adapter could not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AdapterError {
    /// The backend itself does not answer or refuses: the daemon is down, no permission.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// This host lacks what the runtime needs; the text says how to get it.
    #[error("{0}")]
    Missing(Arc<str>),
    /// This one instance could not be started.
    #[error("{0}")]
    Failed(Arc<str>),
}
