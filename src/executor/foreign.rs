//! Calls of functions that are foreign images: the same call, over HTTP instead of the link.

use std::time::Instant;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout_at;

use super::call::{Answer, CallError, Execution, Stage};
use crate::execution::{Body, BodyStream, Level, LogLine, Request};
use crate::headers::FromFunction;
use crate::link::Logs;
use crate::link::message::ResultHead;
use crate::pool::Lease;
use crate::transport::{Client, Outgoing, Target, TransportError};

impl Execution {
    /// Sends the request to the container on which `lease` is.
    pub(super) async fn ask_guest(
        &mut self,
        request: &mut Request,
        lease: Lease,
        client: &Client,
        target: &Target,
    ) -> Result<Answer, CallError> {
        let begun = Instant::now();
        let outgoing = self.outgoing(request, begun);
        let sent = timeout_at(request.deadline.into(), client.send(target, outgoing)).await;
        self.timings.run += begun.elapsed();
        let incoming = match sent {
            Err(_) | Ok(Err(TransportError::TimedOut(_))) => return Err(self.late(Stage::Function)),
            Ok(Err(TransportError::Request(error))) => return Err(error.into()),
            Ok(Err(error)) => return Err(CallError::Died(error.to_string().into())),
            Ok(Ok(incoming)) => incoming,
        };
        let logs = Logs::default();
        let (lines, kept) = (incoming.lines, logs.clone());
        let gather = async move {
            let (out, err) = lines.await;
            push_lines(&kept, Level::Log, &out);
            push_lines(&kept, Level::Error, &err);
        };
        let body = match incoming.body {
            Body::Full(bytes) => {
                gather.await;
                Body::Full(bytes)
            }
            Body::Stream(stream) => Body::Stream(and_at_its_end(stream, incoming.length, gather)),
        };
        self.keep(&request.id, logs);
        let (headers, length) = (incoming.headers, incoming.length);
        let stream = matches!(body, Body::Stream(_));
        let head = ResultHead {
            status: incoming.status,
            headers: FromFunction(headers),
            state: None,
            stream,
            length,
        };
        Ok(Answer { head, state: Bytes::new(), body, lease: stream.then_some(lease) })
    }

    fn outgoing(&self, request: &mut Request, now: Instant) -> Outgoing {
        let mut path = request.path.clone();
        if !request.query.is_empty() {
            path.push('?');
            path.push_str(&request.query);
        }
        let env = &self.deployment.function.env;
        Outgoing {
            method: request.method.clone(),
            path,
            headers: request.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            body: std::mem::replace(&mut request.body, Body::Full(Bytes::new())),
            logging: true,
            limit: request.deadline.saturating_duration_since(now),
            basic: false,
            most: None,
            variables: env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        }
    }
}

/// Does `last` before the last byte goes on: where the length is known, nobody asks for more after it.
fn and_at_its_end(
    stream: BodyStream,
    length: Option<u64>,
    last: impl Future<Output = ()> + Send + 'static,
) -> BodyStream {
    let state = (stream, Some(last.boxed()), 0u64);
    futures_util::stream::unfold(state, move |(mut stream, mut last, seen)| async move {
        let piece = stream.next().await;
        let size = piece.as_ref().and_then(|piece| piece.as_ref().ok()).map_or(0, Bytes::len);
        let seen = seen + size as u64;
        let over = !matches!(piece, Some(Ok(_))) || length == Some(seen);
        if let Some(last) = last.take_if(|_| over) {
            last.await;
        }
        piece.map(|piece| (piece, (stream, last, seen)))
    })
    .boxed()
}

fn push_lines(logs: &Logs, level: Level, text: &[u8]) {
    for line in String::from_utf8_lossy(text).lines() {
        logs.push(LogLine::new(level, line.to_owned()));
    }
}
