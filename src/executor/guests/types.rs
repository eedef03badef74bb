//! What goes in and out of the guest house, as plain data.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::adapter::guest::RestartPolicy;
use crate::execution::Body;
use crate::transport::Profile;

/// What a caller wants created; every value has been validated by the front.
#[derive(Debug, Clone)]
pub struct Order {
    /// Id, 1 to 64 characters.
    pub id: Arc<str>,
    /// Image.
    pub image: String,
    /// File with the function.
    pub entrypoint: String,
    /// Source archive on the storage; empty: none.
    pub source: String,
    /// Where the built archive goes on the storage; empty: nowhere.
    pub destination: String,
    /// Subfolder that is packed; empty: all.
    pub output_directory: String,
    /// Environment, values already as text, names as given.
    pub variables: Vec<(String, String)>,
    /// Shell line of the main process; empty.
    pub start_command: String,
    /// Build command; empty: none.
    pub command: String,
    /// Key of the dependency cache; empty: none.
    pub cache_key: String,
    /// How long the build command may run, seconds; as given, so possibly not positive.
    pub timeout: i32,
    /// Whether it goes away after the build.
    pub remove: bool,
    /// Cores.
    pub cpus: f64,
    /// Memory in MB of 1,000,000 bytes, as given.
    pub memory: i32,
    /// Profile.
    pub profile: Profile,
    /// As given by the caller (`v5`), for the listing.
    pub version: String,
    /// Restart policy.
    pub restart: RestartPolicy,
}

/// What came of a creation.
#[derive(Debug, Clone)]
pub struct Created {
    /// Bytes of the built archive, when there is a destination.
    pub size: Option<u64>,
    /// Where it is on the storage, when there is a destination.
    pub path: Option<String>,
    /// What the build wrote.
    pub output: Vec<OutputEntry>,
    /// When the request began, Unix seconds.
    pub start_time: f64,
    /// Seconds until it was ready or built.
    pub duration: f64,
}

/// A piece of a build's output.
#[derive(Debug, Clone)]
pub struct OutputEntry {
    /// When it was written; non-decreasing.
    pub at: SystemTime,
    /// Bytes as written.
    pub content: Bytes,
}

/// One guest in the listing.
#[derive(Debug, Clone)]
pub struct GuestInfo {
    /// `v5`
    pub version: String,
    /// Unix seconds.
    pub created: f64,
    /// Unix seconds.
    pub updated: f64,
    /// `<host>-<id>`
    pub name: String,
    /// Host name of this executor.
    pub hostname: String,
    /// `pending`, or `Up 1.23s`.
    pub status: String,
    /// The secret; it is part of the API.
    pub key: String,
    /// Whether it was seen listening.
    pub listening: bool,
    /// Image.
    pub image: String,
    /// Whether its creation succeeded.
    pub initialised: bool,
}

/// A call of a guest.
#[derive(Debug)]
pub struct GuestCall {
    /// Which one.
    pub id: Arc<str>,
    /// What to create if it is not there; none: the caller did not say.
    pub order: Option<Box<Order>>,
    /// Method.
    pub method: Method,
    /// Path and query as given.
    pub path: String,
    /// Headers in order.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Bytes,
    /// Seconds, as given.
    pub timeout: i32,
    /// Whether the function's lines are wanted.
    pub logging: bool,
    /// For v2.
    pub variables: Vec<(String, String)>,
}

/// A guest's answer.
pub struct Executed {
    /// Status.
    pub status: u16,
    /// Headers, repeats kept.
    pub headers: HeaderMap,
    /// Body, possibly still arriving.
    pub body: Body,
    /// Unix seconds.
    pub start_time: f64,
    /// Ask after the body has ended.
    pub rest: BoxFuture<'static, Rest>,
}

/// What is known only when the body has ended.
#[derive(Debug, Clone)]
pub struct Rest {
    /// What the function logged.
    pub logs: Bytes,
    /// What the function logged as errors.
    pub errors: Bytes,
    /// Seconds.
    pub duration: f64,
}

/// Why not. The front maps each to status, type and message of R-42.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GuestError {
    /// R-61; `pending`: it is still being created.
    #[error("a runtime with this id exists")]
    Conflict {
        /// Whether its creation is still going on.
        pending: bool,
    },
    /// No such guest: the default message.
    #[error("there is no such runtime")]
    NotFound,
    ///
    #[error("there is no such runtime, and nothing to create it from")]
    NotStarted,
    ///
    #[error("the runtime went away")]
    Vanished,
    /// R-60 and its like; the text is for the caller.
    #[error("{0}")]
    BadRequest(String),
    /// trimmed output, cut to its bound; may be empty.
    #[error("the build command failed")]
    BuildFailed(Vec<u8>),
    /// too long; other reasons why the runtime itself failed. For the caller.
    #[error("{0}")]
    RuntimeFailed(String),
    /// with the last cause if there is one.
    #[error("timed out waiting for the runtime")]
    RuntimeTimeout(Option<String>),
    /// the creation failed for good; the cause as its own error would read.
    #[error("the runtime could not be created: {0}")]
    CannotCreate(Box<GuestError>),
    /// curl's number and what happened.
    #[error("{cause} ({number})")]
    Transport {
        /// 28 timeout, 52 empty reply, 56 receive failure, 7 refused, 6 unresolvable.
        number: u8,
        /// For the log, and for the caller in development mode.
        cause: String,
    },
    ///
    #[error("the command failed")]
    CommandFailed,
    ///
    #[error("the command ran too long")]
    CommandTimeout,
    /// nothing to show in time.
    #[error("timed out waiting for logs")]
    LogsTimeout,
    /// it did not appear.
    #[error("Runtime not ready. Container not found.")]
    LogsNotFound,
    /// It could not be started: no such image, no such source, no room. For the caller.
    #[error("{0}")]
    CannotStart(String),
    /// As `CannotStart`, but it may work in a moment.
    #[error("{0}")]
    Unavailable(String),
    /// Everything else: for the log, and for the caller in development mode.
    #[error("{0}")]
    Internal(String),
}

/// How the guest house behaves; from `OPR_EXECUTOR_*`.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// This executor's host name.
    pub hostname: String,
    /// Networks for guests.
    pub networks: Vec<String>,
    /// Folder below which each guest has its temporary folder.
    pub temporary: std::path::PathBuf,
    ///
    pub maintenance_interval: Duration,
    ///
    pub inactive_threshold: Duration,
    ///
    pub retry_attempts: u32,
    ///
    pub retry_delay: Duration,
    /// recommended mode; none: compatible mode.
    pub ready_timeout: Option<Duration>,
    ///
    pub images: Vec<String>,
    /// Calls at once per container; none: no limit.
    pub concurrency: Option<u32>,
    /// Containers per guest at the most.
    pub instances: u32,
}
