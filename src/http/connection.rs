//! What a client may do with time: one timer per connection over reading and writing.
//!
//! hyper has a limit for reading a head, but none for an idle connection of its own nor for a reader that stalls;
//! here are all three, with one timer that is armed only while the connection waits. The phases: `IDLE` between
//! requests, `HEAD` while a head is coming in, `BUSY` while a request is worked on (its body has a limit of its own).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;

/// Limits in time.
#[derive(Debug, Clone, Copy)]
pub struct TimeLimits {
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Without any byte, between requests or while the client does not read.
    pub idle: Duration,
}

/// Shared with the service, which knows when a request begins and ends.
#[derive(Debug, Clone, Default)]
pub struct Phase(Arc<AtomicU8>);

impl Phase {
    /// A request's head is complete. The guard's drop is the request's end.
    pub fn busy(&self) -> Busy {
        self.0.store(BUSY, Ordering::Relaxed);
        Busy(self.clone())
    }
}

/// See [`Phase::busy`].
#[derive(Debug)]
pub struct Busy(Phase);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.store(IDLE, Ordering::Relaxed);
    }
}

/// A stream whose client must keep moving.
pub struct Timed<S> {
    stream: S,
    limits: TimeLimits,
    phase: Phase,
    timer: Pin<Box<Sleep>>,
    /// Last byte in or out, or the beginning of a head.
    since: Instant,
}

impl<S> Timed<S> {
    /// Wraps a stream.
    pub fn new(stream: S, limits: TimeLimits, phase: Phase) -> Self {
        let since = Instant::now();
        Self { stream, limits, phase, timer: Box::pin(tokio::time::sleep(limits.idle)), since }
    }

    /// The other side makes us wait: how long may it?
    fn check(&mut self, limit: Duration, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let deadline = self.since + limit;
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                let phase = self.phase.0.load(Ordering::Relaxed);
                if buf.filled().len() > before && phase != HEAD {
                    self.since = Instant::now();
                    if phase == IDLE {
                        self.phase.0.store(HEAD, Ordering::Relaxed);
                    }
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => match self.phase.0.load(Ordering::Relaxed) {
                BUSY => Poll::Pending,
                HEAD => {
                    let limit = self.limits.head;
                    self.check(limit, cx)
                }
                _ => {
                    let limit = self.limits.idle;
                    self.check(limit, cx)
                }
            },
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> Timed<S> {
    fn wrote<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Pending => {
                let limit = self.limits.idle;
                std::task::ready!(self.check(limit, cx))?;
                Poll::Pending
            }
            ready => {
                self.since = Instant::now();
                ready
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(cx, result)
    }

    /// Whole answers are small (longer ones are streamed in pieces), and copying one next to its head and sending
    /// both with a plain write takes the kernel less time than a vectored write.
    fn is_write_vectored(&self) -> bool {
        false
    }

    /// After an answer hyper waits without reading again, because it knows that there was nothing to read; so the
    /// timer of the idle connection is armed here.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if self.phase.0.load(Ordering::Relaxed) == IDLE {
            let limit = self.limits.idle;
            if let Poll::Ready(late) = self.check(limit, cx) {
                return Poll::Ready(late);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
