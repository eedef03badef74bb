//! The process: bind, serve until a signal, drain, leave.
//!
//! Order of shutdown: stop accepting; let connections finish their requests; let detached executions finish; stop
//! Contexts and instances; close the store. All of it within the grace; a second signal leaves at once.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::http::Service;
use crate::http::connection::{Phase, TimeLimits, Timed};
use crate::task::Tasks;

/// The largest head hyper buffers; our own, smaller limits answer with a reason first.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 256;
/// After `accept` failed for want of files, wait until some are closed.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// A bound listener and the bounds of its connections.
pub struct Server {
    listener: TcpListener,
    front: Service,
    time: TimeLimits,
    permits: Arc<Semaphore>,
    tasks: Tasks,
}

impl Server {
    /// Binds `address`.
    pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        allow_many_files();
        TcpListener::bind(address).await
    }

    /// Serves `front` on `listener` with at most `connections` at a time.
    pub fn new(listener: TcpListener, front: Service, time: TimeLimits, connections: usize) -> Self {
        let permits = Arc::new(Semaphore::new(connections));
        Self { listener, front, time, permits, tasks: Tasks::default() }
    }

    /// Accepts and serves until `stop`, then lets each connection finish its request, at most for `grace`.
    pub async fn run(self, stop: CancellationToken, grace: std::time::Duration) {
        loop {
            let next = async {
                let permit = Arc::clone(&self.permits).acquire_owned().await;
                (permit, self.listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                next = next => next,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection = serve(stream, self.front.clone(), self.time, stop.clone());
                    self.tasks.spawn("connection", async move {
                        connection.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        if !self.tasks.drain(grace).await {
            tracing::warn!(
                connections = self.tasks.len(),
                "connections were still busy at the end of the grace"
            );
        }
    }
}

async fn serve(stream: TcpStream, front: Service, time: TimeLimits, stop: CancellationToken) {
    // Answers are written whole; waiting for more to send with them only adds delay.
    let _ = stream.set_nodelay(true);
    let phase = Phase::default();
    let io = TokioIo::new(Timed::new(stream, time, phase.clone()));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let busy = phase.busy();
        let front = front.clone();
        async move { Ok::<_, Infallible>(front.serve(request).await.map(|body| body.guarded(busy))) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("connection ended: {error}");
    }
}

/// Each connection and each instance needs files; the usual soft limit of 1024 is for programs from another time.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!("cannot raise the limit on open files: {error}");
    }
}

/// The signals that end the executor. Made before the first is waited for, so that none is lost in between.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    /// From now on SIGTERM, SIGINT and SIGQUIT come here.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// Resolves at the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.quit.recv() => {}
        }
    }
}
