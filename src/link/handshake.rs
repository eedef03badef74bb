//! From a listening socket to a ready worker.
//!
//! The instance's folder can only be reached by this executor and by the instance, and still the first thing a
//! peer must do is to prove that it is the worker we started, with a token that works once: the listener is gone
//! after the first right one. A wrong token is refused and logged; it does not end the wait, so that a neighbour
//! cannot spoil a start.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use crate::function::Function;
use crate::instance::Secret;
use crate::link::connection::Connection;
use crate::link::frame::{self, Frame, Kind, MAX_FRAME};
use crate::link::message::{Fault, Hello, InitMessage, InitState, Limits, PROTOCOL, ReadyMessage};

/// A HELLO is small, and a peer has not proven anything before it.
const MAX_HELLO: usize = 4 << 10;
/// How long one peer may take to say HELLO before the next one is heard.
const HELLO_LIMIT: Duration = Duration::from_secs(2);

/// What a worker is told at the start.
pub struct Init<'a> {
    /// The function to load.
    pub function: &'a Function,
    /// Its folder as the worker sees it.
    pub directory: &'a str,
    /// The file with the handler.
    pub entrypoint: &'a str,
    /// Only load, run no hook.
    pub info_only: bool,
    /// Sizes.
    pub limits: Limits,
    /// Gets what the function writes until it is ready.
    pub words: &'a StartWords,
}

/// The end of what a function wrote while it was starting.
#[derive(Default)]
pub struct StartWords(Mutex<String>);

/// Bytes kept of it.
const MAX_WORDS: usize = 4 << 10;

impl StartWords {
    fn add(&self, line: &str) {
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        words.push_str(line);
        words.push('\n');
        let excess = words.len().saturating_sub(MAX_WORDS);
        let cut = (excess..words.len()).find(|at| words.is_char_boundary(*at)).unwrap_or(0);
        words.drain(..cut);
    }

    /// What was kept.
    pub fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).trim().to_owned()
    }
}

/// A worker that answered READY.
pub struct Ready {
    /// The connection; [`Connection::run`] must be driven with `buffered`.
    pub connection: Connection,
    /// Bytes that came after READY.
    pub buffered: BytesMut,
    /// What the function says of itself.
    pub message: ReadyMessage,
}

/// Why there is no ready worker.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HandshakeError {
    /// Nobody with the right token came, or it did not get ready in time.
    #[error("{0}")]
    TimedOut(&'static str),
    /// The worker could not load the function.
    #[error("{}", .0.message)]
    Load(Fault),
    /// The connection broke.
    #[error("the worker went away while it was starting: {0}")]
    Broken(Arc<str>),
}

fn broken(reason: impl std::fmt::Display) -> HandshakeError {
    HandshakeError::Broken(reason.to_string().into())
}

/// Waits on `socket` for the worker that knows `token`, has it load the function, and gives it when it is ready.
///
/// `listener` and the socket's path are gone afterwards, whatever the outcome. Cancel safe in that sense too.
pub async fn accept(
    listener: UnixListener,
    socket: &Path,
    token: &Secret,
    init: &Init<'_>,
    deadline: Instant,
) -> Result<Ready, HandshakeError> {
    let _unlink = Unlink(socket);
    let mut stream = timeout_at(deadline, first_with_token(&listener, token))
        .await
        .map_err(|_| HandshakeError::TimedOut("its worker did not report in time"))??;
    drop(listener);
    timeout_at(deadline, load(&mut stream, init))
        .await
        .map_err(|_| HandshakeError::TimedOut("it did not finish loading in time"))?
        .map(|(message, buffered)| {
            let connection = Connection::new(stream, Arc::clone(&init.function.name));
            Ready { connection, buffered, message }
        })
}

struct Unlink<'a>(&'a Path);

impl Drop for Unlink<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

async fn first_with_token(listener: &UnixListener, token: &Secret) -> Result<UnixStream, HandshakeError> {
    loop {
        let (mut stream, _) = listener.accept().await.map_err(broken)?;
        let mut buffer = BytesMut::new();
        let hello = match timeout(HELLO_LIMIT, next(&mut stream, &mut buffer, MAX_HELLO)).await {
            Ok(Ok(frame)) if frame.kind == Kind::Hello => {
                serde_json::from_slice::<Hello>(&frame.payload).ok()
            }
            _ => None,
        };
        match hello {
            // Only who has the token can end the wait, be it with a version that does not fit.
            Some(hello) if token.matches(hello.token.as_bytes()) => {
                if hello.protocol != PROTOCOL {
                    let theirs = hello.protocol;
                    return Err(broken(format!(
                        "it speaks version {theirs} of the link, this executor {PROTOCOL}"
                    )));
                }
                tracing::debug!(runtime = hello.runtime, version = hello.version, "worker connected");
                return Ok(stream);
            }
            _ => tracing::warn!("refused a connection to an instance's link: wrong or missing token"),
        }
    }
}

async fn load(stream: &mut UnixStream, init: &Init<'_>) -> Result<(ReadyMessage, BytesMut), HandshakeError> {
    let mut out = Vec::new();
    let message = InitMessage {
        name: &init.function.name,
        directory: init.directory,
        entrypoint: init.entrypoint,
        env: &init.function.env,
        concurrency: init.function.concurrency,
        info_only: init.info_only,
        limits: init.limits,
        state: init.function.state.as_ref().map(|spec| InitState {
            model: spec.model.name(),
            r#type: spec.model.crdt().unwrap_or_default(),
            version: spec.version,
            snapshot_every: spec.model.snapshot_every(),
        }),
    };
    crate::link::message::encode_json(&mut out, Kind::Init, &message);
    tokio::io::AsyncWriteExt::write_all(stream, &out).await.map_err(broken)?;
    let mut buffer = BytesMut::new();
    loop {
        let frame = next(stream, &mut buffer, MAX_FRAME).await?;
        match frame.kind {
            Kind::Ready => {
                let message = serde_json::from_slice(&frame.payload).map_err(broken)?;
                return Ok((message, buffer));
            }
            Kind::Failed => {
                let fault = serde_json::from_slice(&frame.payload).map_err(broken)?;
                return Err(HandshakeError::Load(fault));
            }
            Kind::Log => {
                let text = String::from_utf8_lossy(frame.payload.get(1..).unwrap_or_default());
                tracing::info!(target: "function", function = %init.function.name, request = "-", "{text}");
                init.words.add(&text);
            }
            other => return Err(broken(format!("{other:?} before READY"))),
        }
    }
}

async fn next(stream: &mut UnixStream, buffer: &mut BytesMut, max: usize) -> Result<Frame, HandshakeError> {
    loop {
        if let Some(frame) = frame::decode(buffer, max).map_err(broken)? {
            return Ok(frame);
        }
        if stream.read_buf(buffer).await.map_err(broken)? == 0 {
            return Err(broken("its process ended"));
        }
    }
}
