//! The answer to an execution: JSON, multipart, or streamed multipart.
//!
//! JSON and multipart need the whole body first, because logs and duration are known only then, and because a failure
//! must be a status; so they are bounded. The streamed format sends the body as it arrives; when that breaks off, the
//! answer ends without the closing delimiter, and the connection with it.

use std::cmp::Ordering;
use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Response};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::error::Problem;
use super::json;
use crate::execution::{Body, BodyError, BodyStream};
use crate::executor::guests::{Executed, GuestError, Rest};
use crate::http::body::AnswerBody;

const FORMAT: HeaderName = HeaderName::from_static("x-executor-response-format");
const DEFAULT_FORMAT: &[u8] = b"0.10.0";
const STREAMED: &str = "0.12.0";
/// A longer version is cut.
const MAX_FORMAT: usize = 64;

/// How the caller wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Multipart,
    Streamed,
}

/// What the caller's headers ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    encoding: Encoding,
    /// Repeated headers as lists; else their last value.
    lists: bool,
}

impl Wanted {
    ///
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let format = headers.get(FORMAT).map_or(DEFAULT_FORMAT, HeaderValue::as_bytes);
        let format = String::from_utf8_lossy(&format[..format.len().min(MAX_FORMAT)]);
        let at_least = |version| compare_versions(&format, version) != Ordering::Less;
        let json = headers.get_all(header::ACCEPT).iter().any(|value| accepts_json(value.as_bytes()));
        let encoding = match json {
            true => Encoding::Json,
            false if at_least(STREAMED) => Encoding::Streamed,
            false => Encoding::Multipart,
        };
        Self { encoding, lists: at_least("0.11.0") }
    }
}

/// R-112, to the letter: clients rely on what it does not recognize.
fn accepts_json(accept: &[u8]) -> bool {
    let json = |piece: &[u8]| piece.starts_with(b"application/json") || piece.starts_with(b"application/*");
    let begins = std::iter::once(0).chain(memchr::memmem::find_iter(accept, b", ").map(|at| at + 2));
    begins.into_iter().any(|begin| json(&accept[begin..]))
}

/// Numbers by value, and before a number that is missing comes any word: `0.11.0-dev` < `0.11.0` < `0.11.0.1`.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (version_parts(a), version_parts(b));
    loop {
        let order = match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (Some(part), None) => part.weight().cmp(&1),
            (None, Some(part)) => 1.cmp(&part.weight()),
            (Some(a), Some(b)) => a.cmp(&b),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Word(&'a str),
    Number(u64),
}

impl Part<'_> {
    /// Beside a part that is missing, which has 1.
    fn weight(&self) -> u8 {
        if matches!(self, Self::Number(_)) { 2 } else { 0 }
    }
}

fn version_parts(text: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let number = rest.starts_with(|c: char| c.is_ascii_digit());
        let same = |c: char| if number { c.is_ascii_digit() } else { c.is_ascii_alphabetic() };
        let (part, after) = rest.split_at(rest.find(|c| !same(c)).unwrap_or(rest.len()));
        rest = after;
        match part {
            "" => None,
            _ if number => Some(Part::Number(part.parse().unwrap_or(u64::MAX))),
            word => Some(Part::Word(word)),
        }
    })
}

/// One answer; `most` is the largest body that is not streamed, bytes.
pub(super) async fn answer(
    executed: Executed,
    wanted: Wanted,
    most: u64,
) -> Result<Response<AnswerBody>, Problem> {
    if wanted.encoding == Encoding::Streamed {
        return Ok(streamed(executed, wanted.lists));
    }
    let Executed { status, headers, body, start_time, rest } = executed;
    let body = collect(body, most).await?;
    let rest = rest.await;
    let document = Document { status, headers, body, start_time, rest, lists: wanted.lists };
    match wanted.encoding {
        Encoding::Json => document.json(),
        _ => Ok(document.multipart()),
    }
}

async fn collect(body: Body, most: u64) -> Result<Bytes, Problem> {
    let mut stream = match body {
        Body::Full(body) if body.len() as u64 <= most => return Ok(body),
        Body::Full(_) => return Err(Problem::answer_too_large(most)),
        Body::Stream(stream) => stream,
    };
    let mut whole = BytesMut::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| broke_off(&error))?;
        if (whole.len() + piece.len()) as u64 > most {
            return Err(Problem::answer_too_large(most));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// R-100, with curl's numbers.
fn broke_off(error: &BodyError) -> Problem {
    let number = match error {
        BodyError::Idle(_) | BodyError::Late(_) => 28,
        BodyError::TooLarge(_) | BodyError::Broken(_) => 56,
    };
    GuestError::Transport { number, cause: error.to_string() }.into()
}

struct Document {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    start_time: f64,
    rest: Rest,
    lists: bool,
}

/// one name after the other, with its last value or, as `lists`, with all that repeat. What is not UTF-8
/// is replaced.
struct Named<'a> {
    headers: &'a HeaderMap,
    lists: bool,
}

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.headers.keys_len()))?;
        for name in self.headers.keys() {
            let all = self.headers.get_all(name);
            let mut values = all.iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
            match values.next_back() {
                Some(_) if self.lists && values.next().is_some() => {
                    let values = all.iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
                    map.serialize_entry(name.as_str(), &values.collect::<Vec<_>>())?;
                }
                Some(last) => map.serialize_entry(name.as_str(), &last)?,
                None => {}
            }
        }
        map.end()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonDocument<'a> {
    status_code: u16,
    headers: Named<'a>,
    body: &'a str,
    logs: &'a str,
    errors: &'a str,
    duration: f64,
    start_time: f64,
}

impl Document {
    ///
    fn json(&self) -> Result<Response<AnswerBody>, Problem> {
        fn text(bytes: &[u8]) -> Result<&str, Problem> {
            std::str::from_utf8(bytes).map_err(|_| Problem::bad_json())
        }
        self.headers.values().try_for_each(|value| text(value.as_bytes()).map(drop))?;
        let document = json::write(&JsonDocument {
            status_code: self.status,
            headers: Named { headers: &self.headers, lists: self.lists },
            body: text(&self.body)?,
            logs: text(&self.rest.logs)?,
            errors: text(&self.rest.errors)?,
            duration: self.rest.duration,
            start_time: self.start_time,
        });
        let mut response = Response::new(AnswerBody::full(document));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        Ok(response)
    }

    ///
    fn multipart(&self) -> Response<AnswerBody> {
        let headers = json::write(&Named { headers: &self.headers, lists: self.lists });
        let [status, duration, start_time] =
            [json::write(&self.status), json::write(&self.rest.duration), json::write(&self.start_time)];
        let fields: [(&str, &str, &[u8]); 7] = [
            ("statusCode", "", &status),
            ("headers", "Content-Type: application/json\r\n", &headers),
            ("body", "", &self.body),
            ("logs", "", &self.rest.logs),
            ("errors", "", &self.rest.errors),
            ("duration", "", &duration),
            ("startTime", "", &start_time),
        ];
        let boundary = loop {
            let candidate = new_boundary();
            let finder = memchr::memmem::Finder::new(&candidate);
            if fields.iter().all(|(_, _, value)| finder.find(value).is_none()) {
                break candidate;
            }
        };
        let size: usize = fields.iter().map(|(_, _, value)| value.len() + 160).sum();
        let mut body = BytesMut::with_capacity(size);
        for (name, more, value) in fields {
            let _ =
                write!(body, "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n{more}\r\n");
            body.extend_from_slice(value);
            body.extend_from_slice(b"\r\n");
        }
        let _ = write!(body, "--{boundary}--\r\n");
        multipart_response(&boundary, AnswerBody::full(body.freeze()))
    }
}

fn new_boundary() -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{}{}", "-".repeat(29), &random[random.len() - 13..])
}

fn multipart_response(boundary: &str, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    let content_type = HeaderValue::try_from(format!("multipart/form-data; boundary={boundary}"));
    response.headers_mut().insert(header::CONTENT_TYPE, content_type.expect("a boundary is header text"));
    response
}

///
fn streamed(executed: Executed, lists: bool) -> Response<AnswerBody> {
    let boundary = new_boundary();
    let pieces = pieces(executed, lists, boundary.clone());
    let mut response = multipart_response(&boundary, AnswerBody::stream(pieces));
    response.headers_mut().insert(FORMAT, HeaderValue::from_static(STREAMED));
    response
}

fn part_head(boundary: &str, name: &str, to: &mut BytesMut) {
    let _ = write!(
        to,
        "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\
         Content-Transfer-Encoding: chunked\r\n\r\n"
    );
}

/// No run has length zero: that is the end of a part.
fn run(bytes: &[u8], to: &mut BytesMut) {
    if !bytes.is_empty() {
        let _ = write!(to, "{:x}\r\n", bytes.len());
        to.extend_from_slice(bytes);
        to.extend_from_slice(b"\r\n");
    }
}

fn part(boundary: &str, name: &str, value: &[u8], to: &mut BytesMut) {
    part_head(boundary, name, to);
    run(value, to);
    to.extend_from_slice(b"0\r\n\r\n");
}

/// What is still to be sent.
enum Stage {
    Head(Executed),
    Body(BodyStream, Tail),
    Done,
}

struct Tail {
    start_time: f64,
    rest: futures_util::future::BoxFuture<'static, Rest>,
}

impl Tail {
    async fn bytes(self, boundary: &str) -> Bytes {
        let rest = self.rest.await;
        let mut to = BytesMut::from(&b"0\r\n\r\n"[..]);
        part(boundary, "logs", &rest.logs, &mut to);
        part(boundary, "errors", &rest.errors, &mut to);
        part(boundary, "duration", &json::write(&rest.duration), &mut to);
        part(boundary, "startTime", &json::write(&self.start_time), &mut to);
        let _ = write!(to, "--{boundary}--");
        to.freeze()
    }
}

fn pieces(executed: Executed, lists: bool, boundary: String) -> BodyStream {
    stream::unfold((Stage::Head(executed), boundary), move |(stage, boundary)| async move {
        let (piece, stage) = step(stage, lists, &boundary).await?;
        Some((piece, (stage, boundary)))
    })
    // An empty frame would end a body that is sent in chunks.
    .filter(|piece| std::future::ready(!matches!(piece, Ok(bytes) if bytes.is_empty())))
    .boxed()
}

async fn step(stage: Stage, lists: bool, boundary: &str) -> Option<(Result<Bytes, BodyError>, Stage)> {
    let mut to = BytesMut::new();
    match stage {
        Stage::Head(Executed { status, headers, body, start_time, rest }) => {
            part(boundary, "statusCode", &json::write(&status), &mut to);
            part(boundary, "headers", &json::write(&Named { headers: &headers, lists }), &mut to);
            part_head(boundary, "body", &mut to);
            let body = match body {
                Body::Full(body) => stream::once(std::future::ready(Ok(body))).boxed(),
                Body::Stream(body) => body,
            };
            Some((Ok(to.freeze()), Stage::Body(body, Tail { start_time, rest })))
        }
        Stage::Body(mut body, tail) => match body.next().await {
            Some(Ok(piece)) => {
                to.reserve(piece.len() + 20);
                run(&piece, &mut to);
                Some((Ok(to.freeze()), Stage::Body(body, tail)))
            }
            Some(Err(error)) => {
                tracing::warn!("/v1: an answer that was being streamed broke off: {error}");
                // hyper throws away what it has not written yet when it learns of an error, so it gets a turn.
                tokio::task::yield_now().await;
                Some((Err(error), Stage::Done))
            }
            None => Some((Ok(tail.bytes(boundary).await), Stage::Done)),
        },
        Stage::Done => None,
    }
}

#[cfg(test)]
#[path = "execution_tests.rs"]
mod tests;
