//! Tests of the link with a peer that speaks the protocol over a real socket.
//!
//! The clock is paused: where nothing can move any more, time jumps to the next limit, so a test that would hang
//! fails at once and nothing is synchronised by sleeping.

mod calls;
mod handshake;
mod random;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::execution::{Body, BodyError, BodyStream, Request};
use crate::link::connection::{Call, Connection, Logs, Reply};
use crate::link::frame::{self, Frame, Kind, MAX_FRAME};
use crate::link::message::Fault;

/// Longer than any limit in the link; on the paused clock it costs nothing.
const PATIENCE: Duration = Duration::from_hours(1);

/// How long silence must last to be believed.
const SILENCE: Duration = Duration::from_mins(1);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("nothing happens any more: {what}"))
}

/// The peer: what a worker is on the wire.
struct Worker {
    stream: UnixStream,
    buffer: BytesMut,
}

impl Worker {
    fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    async fn write(&mut self, bytes: &[u8]) {
        soon("the host reads", self.stream.write_all(bytes)).await.unwrap();
    }

    async fn send(&mut self, kind: Kind, call: u32, payload: &[u8]) {
        self.write(&encoded(kind, call, payload)).await;
    }

    async fn send_json(&mut self, kind: Kind, call: u32, payload: &Value) {
        self.send(kind, call, payload.to_string().as_bytes()).await;
    }

    async fn result(&mut self, call: u32, head: &Value, rest: &[u8]) {
        self.send(Kind::Result, call, &headed(head, rest)).await;
    }

    async fn log(&mut self, call: u32, level: u8, text: &str) {
        self.send(Kind::Log, call, &[&[level], text.as_bytes()].concat()).await;
    }

    async fn credit(&mut self, call: u32, bytes: usize) {
        self.send(Kind::Credit, call, &(bytes as u32).to_be_bytes()).await;
    }

    /// The next frame; `None`: the host closed the connection.
    async fn read(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = frame::decode(&mut self.buffer, MAX_FRAME).unwrap() {
                return Some(frame);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn next(&mut self) -> Frame {
        soon("a frame from the host", self.read()).await.expect("the host closed the connection")
    }

    async fn expect(&mut self, kind: Kind, call: u32) -> Bytes {
        let frame = self.next().await;
        assert_eq!((frame.kind, frame.call), (kind, call));
        frame.payload
    }

    /// A CALL: its id, head and the rest.
    async fn take_call(&mut self) -> (u32, Value, Bytes) {
        let frame = self.next().await;
        assert_eq!(frame.kind, Kind::Call);
        let (head, rest) = frame::split_head(frame.payload).unwrap();
        (frame.call, serde_json::from_slice(&head).unwrap(), rest)
    }

    async fn expect_nothing(&mut self) {
        if let Ok(frame) = timeout(SILENCE, self.read()).await {
            panic!("expected silence, got {frame:?}");
        }
    }

    async fn expect_end(&mut self) {
        let frame = soon("the host closes", self.read()).await;
        assert!(frame.is_none(), "expected the end, got {frame:?}");
    }
}

fn encoded(kind: Kind, call: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(&mut out, kind, call, |out| out.extend_from_slice(payload));
    out
}

fn headed(head: &Value, rest: &[u8]) -> Vec<u8> {
    let head = head.to_string();
    [&(head.len() as u32).to_be_bytes(), head.as_bytes(), rest].concat()
}

/// A connection that is driven and closed by its owner, and the worker at its other end.
struct Rig {
    connection: Connection,
    worker: Worker,
    running: JoinHandle<Arc<str>>,
}

impl Rig {
    fn new() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let connection = Connection::new(ours, "test".into());
        let driven = connection.clone();
        let running = tokio::spawn(async move {
            let reason = driven.run(BytesMut::new()).await;
            driven.close(&reason);
            reason
        });
        Self { connection, worker: Worker::new(theirs), running }
    }

    /// Sends a request without a body; the worker has taken its CALL.
    async fn call(&mut self) -> (u32, Call) {
        let call = self.connection.call(&mut Request::for_test("/", ""), None);
        let (id, ..) = self.worker.take_call().await;
        (id, call)
    }

    /// A call whose worker has begun to stream `first`.
    async fn streaming(&mut self, first: &[u8]) -> (u32, BodyStream) {
        let (id, mut call) = self.call().await;
        self.worker.result(id, &json!({"status": 200, "stream": true}), first).await;
        match reply(&mut call).await {
            (Reply::Result { body: Body::Stream(stream), .. }, _) => (id, stream),
            (other, _) => panic!("expected a stream, got {}", name(&other)),
        }
    }

    /// The connection works: a call is answered.
    async fn expect_alive(&mut self) {
        let (id, mut call) = self.call().await;
        self.worker.result(id, &json!({"status": 200}), b"alive").await;
        assert_eq!(full(reply(&mut call).await.0), "alive");
    }

    /// Why the connection ended.
    async fn reason(&mut self) -> String {
        soon("the connection ends", &mut self.running).await.unwrap().to_string()
    }
}

/// A request with a streamed body.
fn upload(pieces: Vec<Result<Bytes, BodyError>>) -> Request {
    let mut request = Request::for_test("/", "");
    request.body = Body::Stream(futures_util::stream::iter(pieces).boxed());
    request
}

async fn reply(call: &mut Call) -> (Reply, Option<Logs>) {
    soon("a reply", call.reply()).await.expect("the request's body is whole")
}

fn name(reply: &Reply) -> String {
    match reply {
        Reply::Result { head, body, .. } => format!("a result {} {body:?}", head.status),
        Reply::Error(fault) => format!("the error {} {}", fault.kind, fault.message),
        Reply::Closed(reason) => format!("closed: {reason}"),
    }
}

fn full(reply: Reply) -> Bytes {
    match reply {
        Reply::Result { body: Body::Full(body), .. } => body,
        other => panic!("expected a whole body, got {}", name(&other)),
    }
}

fn error(reply: Reply) -> Fault {
    match reply {
        Reply::Error(fault) => fault,
        other => panic!("expected an error, got {}", name(&other)),
    }
}

fn closed(reply: Reply) -> String {
    match reply {
        Reply::Closed(reason) => reason.to_string(),
        other => panic!("expected the end, got {}", name(&other)),
    }
}

/// All of a stream, and the error it ended with, if any.
async fn collect(stream: &mut BodyStream) -> (Vec<u8>, Option<String>) {
    let mut all = Vec::new();
    while let Some(piece) = soon("a piece or the end", stream.next()).await {
        match piece {
            Ok(piece) => all.extend_from_slice(&piece),
            Err(error) => return (all, Some(error.to_string())),
        }
    }
    (all, None)
}

/// Bytes in which each place can be told from the others.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}
