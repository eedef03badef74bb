//! What all stores behind a network have in common: they come and go, and nobody may wait for them for long.
//!
//! - A gate: what was accepted before [`Remote::close`] finishes, what comes later gets
//!   [`StoreError::Closed`].
//! - Time limits: [`CONNECT`] to get a connection, [`READ`] and [`time_for`] to use it. No answer holds more than
//!   [`MOST`] things.
//! - News: that the store went away, and that it came back, is logged once each, not for every call.
//! - Health: one question at a time, its answer kept for [`FRESH`], so that an open health endpoint is no
//!   lever.
//!
//! What a server says when it refuses us at run time (a password was changed) may be put right without a
//! restart of the executor, so it is then [`StoreError::Unavailable`]; at start it is
//! [`StoreError::Refused`], a mistake in the configuration.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, RwLock};
use tokio::time::timeout;

use super::StoreError;

/// How long an operation waits for a connection, the making of one included.
pub(super) const CONNECT: Duration = Duration::from_secs(2);

/// How long an operation of a few bytes may take once it has a connection.
const OPERATION: Duration = Duration::from_secs(3);

/// How long a read may take, whose size nobody knows before.
pub(super) const READ: Duration = Duration::from_secs(5);

/// What a slow network brings, in bytes per second (4 MiB).
const SLOW: usize = 4 << 20;

/// How long health may be asked for.
const HEALTH: Duration = Duration::from_secs(1);

/// How long an answer about health is believed.
const FRESH: Duration = Duration::from_millis(500);

/// How many things one answer may hold, or one sweep take, whatever was asked for.
const MOST: i64 = 10_000;

/// No answer came in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
pub(super) struct Late(Duration);

/// See the module.
#[derive(Debug)]
pub(super) struct Remote {
    /// Without credentials.
    pub(super) name: String,
    open: RwLock<bool>,
    away: AtomicBool,
    health: Mutex<Option<(Instant, Result<(), StoreError>)>>,
}

impl Remote {
    pub(super) fn new(name: String) -> Self {
        Self { name, open: RwLock::new(true), away: AtomicBool::new(false), health: Mutex::default() }
    }

    /// Runs an operation that has its own limits, if the store is open.
    pub(super) async fn run<T>(
        &self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let open = self.open.read().await;
        if !*open {
            return Err(StoreError::Closed);
        }
        let result = operation.await.map_err(refused_later);
        self.note(result.as_ref().err());
        result
    }

    /// `operation`, but no longer than `limit`.
    pub(super) async fn within<T>(
        &self,
        doing: &str,
        limit: Duration,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match timeout(limit, operation).await {
            Ok(result) => result,
            Err(_) => Err(self.failed(doing, Late(limit))),
        }
    }

    pub(super) fn failed(&self, doing: &str, cause: impl Error + Send + Sync + 'static) -> StoreError {
        StoreError::unavailable(format!("{doing} {}", self.name), cause)
    }

    pub(super) fn refused(&self, why: impl Into<String>) -> StoreError {
        StoreError::Refused { store: self.name.clone(), why: why.into() }
    }

    /// Asks with `ping`, unless the last answer is fresh.
    pub(super) async fn health(
        &self,
        ping: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        let mut health = self.health.lock().await;
        if let Some((at, result)) = &*health
            && at.elapsed() < FRESH
        {
            return result.clone();
        }
        let result = self.run(self.within("asking for the health of", HEALTH, ping)).await;
        *health = Some((Instant::now(), result.clone()));
        result
    }

    /// What the first attempt to reach the store means for the start: that it is away is a warning, anything
    /// else a mistake that only a person can put right.
    pub(super) fn started(&self, first: Result<(), StoreError>) -> Result<(), StoreError> {
        match first {
            Err(StoreError::Unavailable(_)) | Ok(()) => {
                self.note(first.as_ref().err());
                Ok(())
            }
            Err(mistake) => Err(mistake),
        }
    }

    /// Waits for what runs and refuses what comes.
    pub(super) async fn close(&self) {
        *self.open.write().await = false;
    }

    fn note(&self, error: Option<&StoreError>) {
        match error {
            Some(error @ StoreError::Unavailable(_)) => {
                if !self.away.swap(true, Ordering::Relaxed) {
                    let (store, error) = (&self.name, told(error));
                    tracing::warn!(
                        store,
                        error,
                        "the state store is away: calls with state are refused until it is back"
                    );
                }
            }
            _ if !self.away.load(Ordering::Relaxed) => {}
            None | Some(StoreError::Conflict { .. } | StoreError::Stale { .. }) => {
                if self.away.swap(false, Ordering::Relaxed) {
                    tracing::info!(store = self.name, "the state store is back");
                }
            }
            Some(_) => {}
        }
    }
}

/// How long an operation with a value of `bytes` may take.
pub(super) fn time_for(bytes: usize) -> Duration {
    OPERATION + Duration::from_secs((bytes / SLOW) as u64)
}

/// `limit`, but no more than one answer may hold.
pub(super) fn clamped(limit: usize) -> i64 {
    i64::try_from(limit).map_or(MOST, |limit| limit.min(MOST))
}

fn refused_later(error: StoreError) -> StoreError {
    match error {
        StoreError::Refused { ref store, .. } => {
            let doing = format!("using {store}");
            StoreError::Unavailable(super::Failure { doing, cause: Arc::new(error) })
        }
        other => other,
    }
}

/// An error and all its causes, each once.
fn told(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            let _ = write!(text, ": {next_text}");
        }
        cause = next.source();
    }
    text
}
