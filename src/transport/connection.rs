//! One HTTP/1.1 connection to a guest, driven by whoever waits for its answer.
//!
//! hyper's connection is a future of its own that is usually given to a task. Here it is polled together with the
//! answer: one wake-up less per request, and dropping it is closing it.
//!
//! hyper does not tell a connection that closed without a byte from one that closed within the head. curl does, and
//! so must the retry on kept connections; hence [`Watched`] notes whether anything was heard.
//!
//! Invariant: a connection is used for one request at a time. Failure: [`Failure`]; the connection is gone then.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body::{Frame, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{Head, TransportError};
use crate::execution::{BodyError, BodyStream};

/// The most bytes of a head: status line and fields.
const MOST_HEAD: usize = 64 * 1024;
/// The most fields of a head. hyper's own bound of 100 may be too few; but above that it fills two arrays of this many
/// fields, 64 bytes each, for every answer.
const MOST_FIELDS: usize = 256;

/// See the module.
pub(super) struct Connection {
    driver: http1::Connection<TokioIo<Watched>, Upload>,
    sender: http1::SendRequest<Upload>,
    heard: Arc<AtomicBool>,
    /// The same socket once more, to ask the kernel itself.
    socket: std::net::TcpStream,
}

/// Why a request on a connection has no answer.
pub(super) struct Failure {
    /// For the caller.
    pub(super) error: TransportError,
    /// The connection ended before a byte of the answer.
    pub(super) unheard: bool,
    /// It ended before a byte of the request.
    pub(super) unsent: bool,
}

impl Connection {
    /// Connects.
    pub(super) async fn open(address: SocketAddr) -> Result<Self, TransportError> {
        let stream = TcpStream::connect(address).await.map_err(|error| not_connected(&error))?;
        // Only latency is at stake.
        let _ = stream.set_nodelay(true);
        let heard = Arc::new(AtomicBool::new(false));
        let socket = stream.as_fd().try_clone_to_owned().map_err(|error| not_connected(&error))?.into();
        let (sender, driver) = http1::Builder::new()
            .max_header_size(MOST_HEAD)
            .max_headers(MOST_FIELDS)
            .handshake(TokioIo::new(Watched { stream, heard: heard.clone() }))
            .await
            .map_err(|error| TransportError::Broken(error.to_string()))?;
        Ok(Self { driver, sender, heard, socket })
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn exchange(mut self, request: http::Request<Upload>) -> Result<Head, Failure> {
        self.heard.store(false, Ordering::Relaxed);
        let heard = self.heard.clone();
        let mut answer = pin!(self.sender.try_send_request(request));
        let mut this = Some(self);
        let answered = poll_fn(|cx| {
            // An ended driver must go before the answer is asked for: it holds the other end of its channel.
            if this.as_mut().is_some_and(|connection| connection.poll(cx).is_ready()) {
                this = None;
            }
            answer.as_mut().poll(cx)
        });
        match answered.await {
            Ok(response) if response.status().as_u16() == 101 => Err(Failure {
                error: TransportError::Broken("it switched to another protocol without being asked".into()),
                unheard: false,
                unsent: false,
            }),
            Ok(response) => Ok((response, this)),
            Err(error) => {
                let unsent = error.message().is_some();
                Err(Failure { unsent, ..failure(error.error(), heard.load(Ordering::Relaxed)) })
            }
        }
    }

    /// Moves bytes both ways; ready: the connection has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.driver).poll(cx).map(drop)
    }

    /// Whether it is idle, so that it can wait for another request.
    pub(super) fn is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        self.poll(cx).is_pending() && self.sender.is_ready()
    }

    /// Whether it is idle and open, so that another request can be sent. The kernel may know of its end before tokio
    /// does; and what is sent on a closed one may not be sent again.
    pub(super) fn is_open(&mut self, cx: &mut Context<'_>) -> bool {
        let silent = |socket: &std::net::TcpStream| {
            socket.peek(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        self.is_idle(cx) && silent(&self.socket)
    }
}

/// A connection that could not be made: the other side's fault, or this host's.
pub(super) fn not_connected(error: &io::Error) -> TransportError {
    match Errno::from_io_error(error) {
        Some(
            Errno::MFILE
            | Errno::NFILE
            | Errno::NOBUFS
            | Errno::NOMEM
            | Errno::ADDRNOTAVAIL
            | Errno::ACCESS
            | Errno::PERM,
        )
        | None => TransportError::Unable(error.to_string()),
        Some(_) => TransportError::Refused,
    }
}

fn failure(error: &hyper::Error, heard: bool) -> Failure {
    if let Some(own) = source::<BodyError>(error) {
        return Failure { error: TransportError::Request(own.clone()), unheard: false, unsent: false };
    }
    if error.is_body_write_aborted() {
        let short = BodyError::Broken("it is shorter than its content-length".into());
        return Failure { error: TransportError::Request(short), unheard: false, unsent: false };
    }
    let closed = source::<io::Error>(error).is_none();
    let error = if !heard && closed { TransportError::Empty } else { TransportError::Broken(why(error)) };
    Failure { error, unheard: !heard, unsent: false }
}

/// What hyper found, for a person; nothing of what the guest sent is in it.
pub(super) fn why(error: &hyper::Error) -> String {
    if error.is_parse_too_large() {
        return format!("its head is larger than {MOST_HEAD} bytes or {MOST_FIELDS} fields");
    }
    if error.is_parse() {
        return format!("it is not HTTP/1.1: {error}");
    }
    match source::<io::Error>(error) {
        Some(io) => io.to_string(),
        None => "the connection was closed in the middle".into(),
    }
}

fn source<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut at = std::error::Error::source(error);
    while let Some(error) = at {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        at = error.source();
    }
    None
}

/// A socket that notes whether a byte came in.
struct Watched {
    stream: TcpStream,
    heard: Arc<AtomicBool>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.heard.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A request's body, as hyper wants it.
pub(super) enum Upload {
    /// All of it; none: sent.
    Full(Option<Bytes>),
    /// Pieces, and how many bytes they have together, where that is known.
    Stream(BodyStream, Option<u64>),
}

impl Upload {
    /// A body that is there.
    pub(super) fn full(bytes: Bytes) -> Self {
        Self::Full(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    /// A body that comes in pieces. Shorter than its `length`, it breaks the request off; longer, it is cut there, as
    /// what follows is by HTTP's rules no part of it.
    pub(super) fn stream(stream: BodyStream, length: Option<u64>) -> Self {
        Self::Stream(stream, length)
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream, _) => {
                stream.poll_next_unpin(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(_, Some(length)) => SizeHint::with_exact(*length),
            Self::Stream(_, None) => SizeHint::default(),
        }
    }
}
