//! Talks HTTP to guests: Open Runtimes images of the profiles v5 to v2, and any image that listens on a port.
//!
//! Source: sections 3 to 10 and 14 of the runtime protocol, R-97 to R-103 of the executor API.
//!
//! A request and its connection are one future: no task stands behind them, so that who drops the future or the
//! answer's body has closed the connection, and shutdown has nothing to wait for. A connection whose answer was read
//! to its end is kept for a short while (`kept.rs`). Rules for fields are in `request.rs` and `answer.rs`, the log
//! files in `logs.rs`, the envelope of v2 in `envelope.rs`. Images of ours are asked to answer with their lines in the
//! head, where they cost no file.
//!
//! Invariants: the guest is hostile. Its head, the waiting for it, its log files and its envelope are bounded; what it
//! names never leaves its own folder. No proxy, no redirect, no name resolution.
//!
//! Failure: every way a request can fail is a [`TransportError`]; once the head has arrived it is the body's error.

mod answer;
mod connection;
mod envelope;
mod kept;
mod logs;
mod request;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout_at};

use self::answer::Answer;
use self::connection::{Connection, Upload};
use self::kept::Kept;
pub use self::logs::LogFolder;
use self::request::Prepared;
use crate::execution::{Body, BodyError};
pub use crate::function::Profile;
use crate::instance::Secret;

/// How much longer than its own limit a guest is given: it should be the one who says that time is up.
const GRACE: Duration = Duration::from_secs(5);

/// One attempt to connect while waiting for a guest to listen. Shorter than the kernel's first repeat of a lost SYN
/// (1 s): a network that has just come up is then asked again early.
const CONNECT_ATTEMPT: Duration = Duration::from_millis(250);

/// Pauses between attempts, first and longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(5));

/// Where a guest listens.
#[derive(Debug, Clone)]
pub struct Target {
    /// Address and port.
    pub address: SocketAddr,
    /// Its profile.
    pub profile: Profile,
    /// What it expects as its secret.
    pub secret: Secret,
    /// Where its log files are; none: it has none.
    pub logs: Option<LogFolder>,
    /// Whether it still runs.
    pub alive: Alive,
}

/// Asked before each request and again after a connection was made for it: the address of a guest that has ended may be
/// another one's by then, whom request and secret are none of its business; so may the connections kept for it.
#[derive(Clone)]
pub struct Alive(Arc<dyn Fn() -> bool + Send + Sync>);

impl Alive {
    /// `ask` must not wait.
    pub fn new(ask: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    fn holds(&self) -> bool {
        (self.0)()
    }
}

impl std::fmt::Debug for Alive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Alive").field(&self.holds()).finish()
    }
}

/// A request for a guest.
#[derive(Debug)]
pub struct Outgoing {
    /// The method, `CONNECT` excepted; ignored by v2.
    pub method: Method,
    /// Path and query; a missing leading `/` is added, what HTTP cannot carry is percent-encoded, a fragment is cut
    /// off; ignored by v2.
    pub path: String,
    /// The caller's headers in order; repeats allowed; `host` replaces the default one; ignored by v2. Those that
    /// frame the message, `expect` and the reserved ones are dropped.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body. A streamed one is sent with the caller's `content-length`, else in chunks, and never on a kept
    /// connection, because it could not be sent again.
    pub body: Body,
    /// Whether the function's lines are wanted.
    pub logging: bool,
    /// The function's own limit; it is told, and 5 s more are the hard limit.
    pub limit: Duration,
    /// Whether to add `Authorization: Basic`: R-97 always does; our own front only for sites.
    pub basic: bool,
    /// v2 only.
    pub variables: Vec<(String, String)>,
    /// How many bytes the answer's body may have; none: no bound but the hard limit.
    pub most: Option<u64>,
}

/// A guest's answer.
pub struct Incoming {
    /// Status, as the function set it.
    pub status: u16,
    /// Headers without the reserved ones and without those that frame the message; repeats kept in order.
    pub headers: HeaderMap,
    /// The length of the body in bytes, where the guest said it; for HEAD the one GET would have.
    pub length: Option<u64>,
    /// The body as it comes. Past the hard limit, which holds for it, too, it ends with [`BodyError::Late`] of that
    /// limit; past [`Outgoing::most`] with [`BodyError::TooLarge`]. [`TransportError`] can be made of both.
    pub body: Body,
    /// The function's lines; ask after the body has ended. (logs, errors), each bounded as R-102 says; the files are
    /// deleted. Dropping it also deletes the files.
    pub lines: BoxFuture<'static, (Bytes, Bytes)>,
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// Nobody listens there, or the way there is not up: worth another attempt.
    #[error("connection refused")]
    Refused,
    /// This host could not even try: another attempt will not help before the host's trouble is over.
    #[error("this host cannot open a connection: {0}")]
    Unable(String),
    /// It closed the connection without a byte.
    #[error("empty reply")]
    Empty,
    /// It went away in the middle, or sent what is not HTTP.
    #[error("the answer broke off: {0}")]
    Broken(String),
    /// The hard limit passed.
    #[error("no complete answer within {0:?}")]
    TimedOut(Duration),
    /// The request cannot be sent like this, or the answer is not what the profile promises.
    #[error("{0}")]
    Invalid(String),
    /// The caller's own body broke off while it was sent; the guest is not to blame.
    #[error("the request broke off: {0}")]
    Request(BodyError),
}

impl TransportError {
    /// The number libcurl has for this, which R-100 shows: 7 refused, 28 timeout, 52 empty reply, 56 all else.
    pub fn errno(&self) -> u8 {
        match self {
            Self::Refused | Self::Unable(_) => 7,
            Self::TimedOut(_) => 28,
            Self::Empty => 52,
            Self::Broken(_) | Self::Invalid(_) | Self::Request(_) => 56,
        }
    }
}

/// What the end of an [`Incoming::body`] means.
impl From<BodyError> for TransportError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge(most) => Self::Invalid(format!("the answer is larger than {most} bytes")),
            BodyError::Idle(limit) | BodyError::Late(limit) => Self::TimedOut(limit),
            BodyError::Broken(why) => Self::Broken(why),
        }
    }
}

/// See the module. Connections are kept alive and pooled per address. Cheap to clone.
#[derive(Clone, Default)]
pub struct Client {
    kept: Kept,
}

impl Client {
    /// One attempt. Only a kept connection that turns out to be closed is replaced by a new one: always before the
    /// request was on its way, and after that as RFC 9110, section 9.2.2, allows it: for idempotent methods, because the
    /// guest may have died of the request.
    ///
    /// # Errors
    /// All of [`TransportError`], until the head has arrived (v2: until everything has).
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; the guest may or may not have run the request.
    pub async fn send(&self, target: &Target, request: Outgoing) -> Result<Incoming, TransportError> {
        let hard = request.limit.saturating_add(GRACE);
        let mut limit = Limit { hard, passed: Box::pin(sleep(hard)) };
        let (wanted, most) = (request.logging, request.most);
        if target.profile == Profile::V2 {
            let prepared = limit.hold(envelope::prepare(target, request)).await?;
            let head = limit.hold(self.exchange(target, prepared)).await?;
            let answer = Answer::new(head, limit, Some(envelope::MOST), self.kept.clone(), target.address);
            return envelope::read(answer, wanted, most).await;
        }
        let prepared = request::prepare(target, request)?;
        let head_only = prepared.method == Method::HEAD;
        let head = limit.hold(self.exchange(target, prepared)).await?;
        let answer = Answer::new(head, limit, most, self.kept.clone(), target.address);
        Ok(answer.incoming(target, wanted, head_only))
    }

    /// Sends on a kept connection, and on a new one if the kept one was closed and it does no harm.
    async fn exchange(&self, target: &Target, prepared: Prepared) -> Result<Head, TransportError> {
        let address = target.address;
        if !target.alive.holds() {
            return Err(TransportError::Refused);
        }
        let Prepared { method, uri, headers, body, length } = prepared;
        let make = |headers: HeaderMap, upload: Upload| {
            let mut request = http::Request::new(upload);
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = headers;
            request
        };
        let mut first = None;
        let upload = match body {
            Body::Stream(stream) => Upload::stream(stream, length),
            Body::Full(bytes) => {
                if let Some(connection) = self.kept.take(address).await {
                    let request = make(headers.clone(), Upload::full(bytes.clone()));
                    match connection.exchange(request).await {
                        Err(failure) if failure.unsent => {}
                        Err(failure) if failure.unheard && method.is_idempotent() => {
                            first = Some(failure.error);
                        }
                        other => return other.map_err(|failure| failure.error),
                    }
                }
                Upload::full(bytes)
            }
        };
        let connection = Connection::open(address).await;
        // Nobody listens any more: it was the request that ended the guest, so whoever retries the refused must not.
        let connection = connection.map_err(|error| first.clone().unwrap_or(error))?;
        if !target.alive.holds() {
            return Err(first.unwrap_or(TransportError::Refused));
        }
        connection.exchange(make(headers, upload)).await.map_err(|failure| failure.error)
    }

    /// Waits until something accepts TCP connections there: first tries at once, then after 1 ms with growing pauses up
    /// to 5 ms. `false`: not until `deadline`. Whatever else goes wrong counts as "not yet".
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn listening(&self, address: SocketAddr, deadline: Instant) -> bool {
        let deadline = tokio::time::Instant::from_std(deadline);
        let mut pause = PAUSES.0;
        while tokio::time::Instant::now() < deadline {
            let bound = deadline.min(tokio::time::Instant::now() + CONNECT_ATTEMPT);
            if let Ok(Ok(_)) = timeout_at(bound, TcpStream::connect(address)).await {
                return true;
            }
            tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + pause)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        false
    }

    /// Forgets kept connections to a guest that is gone.
    pub fn forget(&self, address: SocketAddr) {
        self.kept.forget(address);
    }
}

/// A head that has arrived, and the connection its body will come on; none: that one has ended already.
type Head = (http::Response<hyper::body::Incoming>, Option<Connection>);

/// The hard limit of one request, over its head and its body.
struct Limit {
    hard: Duration,
    passed: Pin<Box<Sleep>>,
}

impl Limit {
    /// Gives `work` what is left of the time.
    async fn hold<T>(
        &mut self,
        work: impl Future<Output = Result<T, TransportError>>,
    ) -> Result<T, TransportError> {
        tokio::select! {
            biased;
            done = work => done,
            () = &mut self.passed => Err(TransportError::TimedOut(self.hard)),
        }
    }
}
