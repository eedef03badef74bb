//! The connection to one worker: calls go out, replies come back, multiplexed.
//!
//! Callers append frames to one buffer. With a single call in flight the frame is written at once, for latency;
//! with more, [`Connection::run`] writes what has gathered since its last turn with one system call, for throughput.
//! The buffer is bounded by construction: calls by the instance's concurrency, DATA by credit.
//!
//! Invariant: no lock is held across an await; the table of calls and the buffer have a lock each, never nested.
//! Failure: whatever ends the connection (end of file, a protocol fault, [`Connection::close`]) is kept as the
//! reason, and every open call gets it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::execution::{Body, BodyError, BodyStream, Level, LogLine, Request};
use crate::link::frame::{self, Frame, Kind, MAX_DATA, MAX_FRAME, WINDOW};
pub use crate::link::logs::{Logs, MAX_CALL_LOG};
use crate::link::message::{self, Fault, ResultHead, StateIn};
use crate::link::stream::{Incoming, ResponseStream};

/// What [`Connection::run`] gives when the other side is simply gone.
pub const PROCESS_ENDED: &str = "its process ended";

/// A ready worker.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    stream: UnixStream,
    function: Arc<str>,
    out: Mutex<Outgoing>,
    flush: Notify,
    calls: Mutex<Calls>,
    closing: Notify,
    closed: OnceLock<Arc<str>>,
    stopped: Notify,
}

struct Outgoing {
    buffer: Vec<u8>,
    /// Somebody has the duty to write what is in `buffer`.
    claimed: bool,
}

struct Calls {
    open: HashMap<u32, Slot>,
    last: u32,
}

struct Slot {
    request: Arc<str>,
    reply: Option<oneshot::Sender<(Reply, Option<Logs>)>>,
    incoming: Option<Arc<Incoming>>,
    logs: Option<Logs>,
    credit: Option<Arc<Semaphore>>,
}

/// What became of a call.
pub enum Reply {
    /// The function answered.
    Result {
        /// Status, headers and state change.
        head: ResultHead,
        /// The new state's bytes.
        state: Bytes,
        /// The body.
        body: Body,
    },
    /// The function did not answer properly; `kind` as in `runtimes/README.md`.
    Error(Fault),
    /// The connection ended first.
    Closed(Arc<str>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    /// Wraps a stream whose worker is ready.
    pub(super) fn new(stream: UnixStream, function: Arc<str>) -> Self {
        Self {
            shared: Arc::new(Shared {
                stream,
                function,
                out: Mutex::new(Outgoing { buffer: Vec::with_capacity(16 << 10), claimed: false }),
                flush: Notify::new(),
                calls: Mutex::new(Calls { open: HashMap::new(), last: 0 }),
                closing: Notify::new(),
                closed: OnceLock::new(),
                stopped: Notify::new(),
            }),
        }
    }

    /// Reads and writes until the connection ends; gives the reason. Must be driven for calls to move.
    ///
    /// Open calls wait until [`Connection::close`] tells them: the owner may know better than the end of a file why
    /// the instance ended.
    pub async fn run(&self, buffered: BytesMut) -> Arc<str> {
        tokio::select! {
            error = self.read(buffered) => error.into(),
            error = self.write() => error.into(),
            () = self.shared.closing.notified() => self.shared.closed.get().cloned().unwrap_or_default(),
        }
    }

    async fn read(&self, mut buffer: BytesMut) -> String {
        let shared = &self.shared;
        loop {
            loop {
                match frame::decode(&mut buffer, MAX_FRAME) {
                    Ok(Some(frame)) => {
                        if let Err(fault) = shared.handle(frame) {
                            return fault;
                        }
                    }
                    Ok(None) => break,
                    Err(fault) => return format!("the worker broke the link's protocol: {fault}"),
                }
            }
            buffer.reserve(16 << 10);
            if let Err(error) = shared.stream.readable().await {
                return error.to_string();
            }
            match shared.stream.try_read_buf(&mut buffer) {
                Ok(0) => return PROCESS_ENDED.to_owned(),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return PROCESS_ENDED.to_owned();
                }
                Err(error) => return error.to_string(),
            }
        }
    }

    async fn write(&self) -> String {
        let shared = &self.shared;
        let mut batch = Vec::with_capacity(16 << 10);
        loop {
            shared.flush.notified().await;
            // A woken task runs next; waiting one turn lets the other ready callers add their frames.
            tokio::task::yield_now().await;
            loop {
                {
                    let mut out = lock(&shared.out);
                    if out.buffer.is_empty() {
                        out.claimed = false;
                        break;
                    }
                    std::mem::swap(&mut out.buffer, &mut batch);
                }
                let mut rest = &batch[..];
                while !rest.is_empty() {
                    match shared.stream.try_write(rest) {
                        Ok(written) => rest = &rest[written..],
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            if let Err(error) = shared.stream.writable().await {
                                return error.to_string();
                            }
                        }
                        // The reader sees the end of file and knows more.
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                            return std::future::pending().await;
                        }
                        Err(error) => return error.to_string(),
                    }
                }
                batch.clear();
                // One large state or body must not be paid for ever.
                batch.shrink_to(256 << 10);
            }
        }
    }

    /// Sends a request. The reply comes through the returned [`Call`].
    pub fn call(&self, request: &mut Request, state: Option<&StateIn>) -> Call {
        let (sender, reply) = oneshot::channel();
        let upload = message::inline(&request.body).is_none().then(|| Arc::new(Semaphore::new(WINDOW)));
        let (id, alone) = {
            let mut calls = lock(&self.shared.calls);
            let id = calls.next_id();
            let slot = Slot {
                request: Arc::clone(&request.id),
                reply: Some(sender),
                incoming: None,
                logs: None,
                credit: upload.clone(),
            };
            calls.open.insert(id, slot);
            (id, calls.open.len() == 1)
        };
        if self.shared.closed.get().is_some() {
            // The connection ended between the lease and now: its closing may have missed this slot.
            self.shared.fail_all();
        } else {
            let now = Instant::now();
            self.shared.send(alone, |out| message::encode_call(out, id, request, state, now));
        }
        let upload = upload.map(|credit| {
            let (body, rest) = match std::mem::replace(&mut request.body, Body::Full(Bytes::new())) {
                Body::Stream(stream) => (stream, Bytes::new()),
                Body::Full(all) => {
                    // The request may be sent again.
                    request.body = Body::Full(all.clone());
                    (futures_util::stream::empty().boxed(), all)
                }
            };
            Upload { body: Some(body), rest, credit }
        });
        Call { shared: Arc::clone(&self.shared), id, reply, upload, finished: false }
    }

    /// Asks the worker to stop its Contexts and leave. Resolves when it says STOPPED; never, if it does not.
    pub async fn stop(&self) {
        let stopped = self.shared.stopped.notified();
        self.shared.send(true, |out| frame::encode(out, Kind::Stop, 0, |_| ()));
        stopped.await;
    }

    /// Ends the connection; open calls get `reason`.
    pub fn close(&self, reason: &str) {
        self.shared.close(reason);
    }
}

impl Calls {
    fn next_id(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1).max(1);
            if !self.open.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

impl Shared {
    fn close(&self, reason: &str) {
        if self.closed.set(reason.into()).is_ok() {
            self.closing.notify_one();
        }
        self.fail_all();
    }

    fn fail_all(&self) {
        let reason = self.closed.get().cloned().unwrap_or_default();
        let open = std::mem::take(&mut lock(&self.calls).open);
        for slot in open.into_values() {
            if let Some(reply) = slot.reply {
                let _ = reply.send((Reply::Closed(Arc::clone(&reason)), slot.logs));
            }
            if let Some(incoming) = slot.incoming {
                incoming.end(Err(format!("the instance ended: {reason}")));
            }
            if let Some(credit) = slot.credit {
                credit.close();
            }
        }
    }

    /// Appends a frame; writes it at once if asked and nobody else is writing.
    fn send(&self, now: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let mut out = lock(&self.out);
        write(&mut out.buffer);
        if out.claimed {
            return;
        }
        if now {
            match self.stream.try_write(&out.buffer) {
                Ok(written) if written == out.buffer.len() => {
                    out.buffer.clear();
                    return;
                }
                Ok(written) => {
                    out.buffer.drain(..written);
                }
                // The writer task meets the same error and deals with it.
                Err(_) => {}
            }
        }
        out.claimed = true;
        drop(out);
        self.flush.notify_one();
    }

    pub(super) fn send_credit(&self, call: u32, bytes: u32) {
        self.send(false, |out| {
            frame::encode(out, Kind::Credit, call, |out| out.extend_from_slice(&bytes.to_be_bytes()));
        });
    }

    /// Nobody waits for this call any more.
    pub(super) fn abandon(&self, call: u32) {
        if lock(&self.calls).open.remove(&call).is_some() {
            self.send(true, |out| frame::encode(out, Kind::Cancel, call, |_| ()));
        }
    }

    fn handle(self: &Arc<Self>, frame: Frame) -> Result<(), String> {
        match frame.kind {
            Kind::Result => self.handle_result(frame.call, frame.payload),
            Kind::Error => {
                let fault = serde_json::from_slice(&frame.payload).unwrap_or_default();
                self.finish(frame.call, Reply::Error(fault));
                Ok(())
            }
            Kind::Data => {
                let incoming = lock(&self.calls).open.get(&frame.call).and_then(|slot| slot.incoming.clone());
                match incoming {
                    Some(incoming) if !incoming.push(frame.payload) => {
                        Err("the worker broke the link's protocol: DATA beyond its credit".to_owned())
                    }
                    _ => Ok(()),
                }
            }
            Kind::End => {
                let Some(slot) = lock(&self.calls).open.remove(&frame.call) else { return Ok(()) };
                if let Some(reply) = slot.reply {
                    let message = "a stream ended that had not begun".to_owned();
                    let fault = Fault { kind: "response".into(), message, stack: String::new() };
                    let _ = reply.send((Reply::Error(fault), slot.logs));
                } else if let Some(incoming) = slot.incoming {
                    incoming.end(end_of(&frame.payload));
                }
                Ok(())
            }
            Kind::Credit => {
                let credit = lock(&self.calls).open.get(&frame.call).and_then(|slot| slot.credit.clone());
                if let (Some(credit), true) = (credit, frame.payload.len() >= 4) {
                    let more = (&frame.payload[..]).get_u32() as usize;
                    if credit.available_permits() + more > WINDOW {
                        return Err(
                            "the worker broke the link's protocol: CREDIT beyond the window".to_owned()
                        );
                    }
                    credit.add_permits(more);
                }
                Ok(())
            }
            Kind::Log => {
                self.log(frame.call, &frame.payload);
                Ok(())
            }
            Kind::Stopped => {
                self.stopped.notify_waiters();
                self.stopped.notify_one();
                Ok(())
            }
            Kind::Hello
            | Kind::Init
            | Kind::Ready
            | Kind::Failed
            | Kind::Call
            | Kind::Cancel
            | Kind::Stop => {
                Err(format!("the worker broke the link's protocol: {:?} at the wrong time", frame.kind))
            }
        }
    }

    fn handle_result(self: &Arc<Self>, call: u32, payload: Bytes) -> Result<(), String> {
        let parsed = frame::split_head(payload).ok_or_else(|| "a RESULT without a head".to_owned()).and_then(
            |(head, mut rest)| {
                let head: ResultHead = serde_json::from_slice(&head).map_err(|e| e.to_string())?;
                let length = head.state.as_ref().map_or(0, |s| s.length);
                if length > rest.len() {
                    return Err("a RESULT shorter than its state".to_owned());
                }
                let state = rest.split_to(length);
                Ok((head, state, rest))
            },
        );
        match parsed {
            Err(message) => {
                let fault = Fault { kind: "response".into(), message, stack: String::new() };
                self.finish(call, Reply::Error(fault));
            }
            Ok((head, state, body)) if !head.stream => {
                self.finish(call, Reply::Result { head, state, body: Body::Full(body) });
            }
            Ok((head, state, first)) => {
                let (free, incoming) = (first.len(), Incoming::new(first));
                let (reply, logs) = {
                    let mut calls = lock(&self.calls);
                    let Some(slot) = calls.open.get_mut(&call) else { return Ok(()) };
                    let Some(reply) = slot.reply.take() else {
                        return Err(
                            "the worker broke the link's protocol: two RESULTs for one call".to_owned()
                        );
                    };
                    slot.incoming = Some(Arc::clone(&incoming));
                    // Lines of a stream come after its RESULT: both sides must hold the book.
                    (reply, slot.logs.get_or_insert_default().clone())
                };
                let shared = Arc::clone(self);
                let stream = ResponseStream {
                    incoming,
                    shared,
                    call,
                    owed: 0,
                    first: free,
                    done: false,
                    paused: false,
                };
                let body = Body::Stream(Box::pin(stream));
                let _ = reply.send((Reply::Result { head, state, body }, Some(logs)));
            }
        }
        Ok(())
    }

    fn finish(&self, call: u32, reply: Reply) {
        let slot = lock(&self.calls).open.remove(&call);
        let Some(slot) = slot else { return };
        match (slot.reply, slot.incoming) {
            (Some(sender), _) => drop(sender.send((reply, slot.logs))),
            (None, Some(incoming)) => {
                incoming.end(Err("the function ended its stream with an error".to_owned()));
            }
            (None, None) => {}
        }
    }

    fn log(&self, call: u32, payload: &[u8]) {
        let Some((level, text)) = payload.split_first() else { return };
        let level = match level {
            1 => Level::Log,
            2 => Level::Error,
            _ => Level::Native,
        };
        let line = LogLine::new(level, String::from_utf8_lossy(text).into_owned());
        let (request, logs) = {
            let mut calls = lock(&self.calls);
            match calls.open.get_mut(&call) {
                Some(slot) => {
                    (Some(Arc::clone(&slot.request)), Some(slot.logs.get_or_insert_default().clone()))
                }
                None => (None, None),
            }
        };
        let request = request.as_deref().unwrap_or("-");
        if level == Level::Error {
            tracing::warn!(target: "function", function = %self.function, request, "{}", line.text);
        } else {
            tracing::info!(target: "function", function = %self.function, request, "{}", line.text);
        }
        if let Some(logs) = logs {
            logs.push(line);
        }
    }
}

fn end_of(payload: &[u8]) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct End {
        error: String,
    }
    if payload.is_empty() {
        return Ok(());
    }
    Err(serde_json::from_slice::<End>(payload)
        .map_or_else(|_| "the function's stream broke off".into(), |e| e.error))
}

/// One call in flight. Dropping it before its reply cancels it in the worker.
pub struct Call {
    shared: Arc<Shared>,
    id: u32,
    reply: oneshot::Receiver<(Reply, Option<Logs>)>,
    upload: Option<Upload>,
    finished: bool,
}

struct Upload {
    /// None: all of it was sent.
    body: Option<BodyStream>,
    /// Of the piece that is being sent.
    rest: Bytes,
    credit: Arc<Semaphore>,
}

impl Call {
    /// Waits for the reply, feeding a streamed request body meanwhile. Cancel safe: may be called again after
    /// it was dropped, until it has given a reply.
    ///
    /// # Errors
    /// The request's body broke off; the call is cancelled in the worker.
    pub async fn reply(&mut self) -> Result<(Reply, Option<Logs>), BodyError> {
        let closed = || (Reply::Closed("the instance was stopped".into()), None);
        let reply = match &mut self.upload {
            None => (&mut self.reply).await.unwrap_or_else(|_| closed()),
            Some(upload) => {
                // A reply may come before all of the body was read: then the rest is not wanted.
                tokio::select! {
                    biased;
                    reply = &mut self.reply => reply.unwrap_or_else(|_| closed()),
                    error = upload.pump(&self.shared, self.id) => return Err(error),
                }
            }
        };
        self.finished = true;
        Ok(reply)
    }

    /// What the call has written so far, and what it still writes.
    pub fn logs(&self) -> Logs {
        let mut calls = lock(&self.shared.calls);
        calls.open.get_mut(&self.id).map(|slot| slot.logs.get_or_insert_default().clone()).unwrap_or_default()
    }

    /// Tells the worker that the deadline has passed. [`Call::reply`] still gives what it says.
    pub fn cancel(&mut self) {
        self.upload = None;
        self.shared.send(true, |out| frame::encode(out, Kind::Cancel, self.id, |_| ()));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.abandon(self.id);
        }
    }
}

impl Upload {
    /// Sends the body in pieces as credit allows. Never returns but for a broken body.
    async fn pump(&mut self, shared: &Shared, call: u32) -> BodyError {
        while let Some(body) = &mut self.body {
            while !self.rest.is_empty() {
                let size = self.rest.len().min(MAX_DATA);
                let Ok(permit) = self.credit.acquire_many(size as u32).await else {
                    return std::future::pending().await;
                };
                permit.forget();
                let part = self.rest.split_to(size);
                shared.send(false, |out| {
                    frame::encode(out, Kind::Data, call, |out| out.extend_from_slice(&part));
                });
            }
            match body.next().await {
                Some(Ok(piece)) => self.rest = piece,
                Some(Err(error)) => return error,
                None => {
                    shared.send(true, |out| frame::encode(out, Kind::End, call, |_| ()));
                    self.body = None;
                }
            }
        }
        std::future::pending().await
    }
}
