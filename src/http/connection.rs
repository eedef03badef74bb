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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::sleep;

    use super::*;
    use crate::http::body::AnswerBody;

    const HEAD_LIMIT: Duration = Duration::from_secs(10);
    const IDLE_LIMIT: Duration = Duration::from_mins(1);
    const MS: Duration = Duration::from_millis(1);
    const BUFFER: usize = 1000;

    /// A client, its connection, and what the service would do.
    fn connect() -> (DuplexStream, Timed<DuplexStream>, Phase) {
        let (client, server) = duplex(BUFFER);
        let phase = Phase::default();
        let limits = TimeLimits { head: HEAD_LIMIT, idle: IDLE_LIMIT };
        (client, Timed::new(server, limits, phase.clone()), phase)
    }

    /// Reads until there is an error; gives it and how long that took.
    async fn read_to_error(timed: &mut Timed<DuplexStream>) -> (io::ErrorKind, Duration) {
        let begun = Instant::now();
        loop {
            match timed.read(&mut [0; 100]).await {
                Ok(0) => panic!("the client left"),
                Ok(_) => {}
                Err(error) => return (error.kind(), begun.elapsed()),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_left_at_the_idle_limit() {
        let (_client, mut timed, _) = connect();
        assert_eq!(read_to_error(&mut timed).await, (io::ErrorKind::TimedOut, IDLE_LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_one_below_the_idle_limit_is_in_time() {
        let (mut client, mut timed, _) = connect();
        let writing = async {
            sleep(IDLE_LIMIT.saturating_sub(MS)).await;
            client.write_all(b"G").await.unwrap();
        };
        let mut byte = [0; 1];
        let (read, ()) = tokio::join!(timed.read(&mut byte), writing);
        assert_eq!(read.unwrap(), 1);
        // From here on it is a head that comes in.
        assert_eq!(read_to_error(&mut timed).await, (io::ErrorKind::TimedOut, HEAD_LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn dripping_a_head_gains_no_time() {
        let (mut client, mut timed, _) = connect();
        let dripping = async {
            for _ in 0..20 {
                client.write_all(b"x").await.unwrap();
                sleep(HEAD_LIMIT / 10).await;
            }
        };
        tokio::select! {
            () = dripping => panic!("the client was heard for twice the limit"),
            ended = read_to_error(&mut timed) => assert_eq!(ended, (io::ErrorKind::TimedOut, HEAD_LIMIT)),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_worked_on_has_all_the_time() {
        let (mut client, mut timed, phase) = connect();
        client.write_all(b"head").await.unwrap();
        timed.read_exact(&mut [0; 4]).await.unwrap();
        let busy = phase.busy();
        let waited = tokio::time::timeout(100 * IDLE_LIMIT, timed.read(&mut [0; 100])).await;
        assert!(waited.is_err(), "a busy connection was ended");
        // The client notices the end of its body before the answer's last byte is out.
        drop(busy);
        timed.write_all(b"answer").await.unwrap();
        let ended = read_to_error(&mut timed).await;
        assert_eq!(ended, (io::ErrorKind::TimedOut, IDLE_LIMIT), "idle counts from the answer");
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_has_its_own_limits() {
        let (mut client, mut timed, phase) = connect();
        for _ in 0..5 {
            sleep(IDLE_LIMIT.saturating_sub(MS)).await;
            for byte in [b"a", b"b"] {
                client.write_all(byte).await.unwrap();
                timed.read_exact(&mut [0; 1]).await.unwrap();
                sleep(HEAD_LIMIT.saturating_sub(MS)).await;
            }
            drop(phase.busy());
            timed.write_all(b"answer").await.unwrap();
            client.read_exact(&mut [0; 6]).await.unwrap();
        }
        client.write_all(b"a").await.unwrap();
        assert_eq!(read_to_error(&mut timed).await, (io::ErrorKind::TimedOut, HEAD_LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_left_at_the_idle_limit() {
        let (_client, mut timed, phase) = connect();
        let _busy = phase.busy();
        sleep(IDLE_LIMIT / 2).await;
        timed.write_all(&[0; BUFFER]).await.unwrap();
        let begun = Instant::now();
        let error = timed.write_all(b"more").await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, IDLE_LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_is_served() {
        let (mut client, mut timed, phase) = connect();
        let _busy = phase.busy();
        let reading = async {
            for _ in 0..20 {
                sleep(IDLE_LIMIT.saturating_sub(MS)).await;
                client.read_exact(&mut [0; 10]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(timed.write_all(&[0; BUFFER + 200]), reading);
        written.unwrap();
    }

    /// The whole way, with hyper: what counts is that it polls us when we need it.
    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_ends_at_the_idle_limit_after_its_last_answer() {
        let (mut client, timed, phase) = connect();
        let service = hyper::service::service_fn(move |_| {
            let busy = phase.busy();
            async move {
                sleep(5 * IDLE_LIMIT).await;
                let body = AnswerBody::full("answer".into()).guarded(busy);
                Ok::<_, Infallible>(http::Response::new(body))
            }
        });
        let server = hyper::server::conn::http1::Builder::new()
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(timed), service);
        let asking = async {
            for _ in 0..3 {
                client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
                let mut answer = [0; BUFFER];
                let read = client.read(&mut answer).await.unwrap();
                assert!(answer[..read].starts_with(b"HTTP/1.1 200 OK"));
                sleep(IDLE_LIMIT / 2).await;
            }
            let begun = Instant::now();
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
            begun.elapsed()
        };
        let (_, waited) = tokio::join!(server, asking);
        assert_eq!(waited, IDLE_LIMIT / 2);
    }
}
