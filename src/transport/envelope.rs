//! The JSON envelope of v2 guests: R-99 and section 14 of the runtime protocol.
//!
//! The first v2 images call the variables `env`, so they are sent under both names; images ignore what they do not
//! know. Invariants: both envelopes are read whole and bounded by [`MOST`], logs are cut to [`MOST_LINES`] bytes.
//!
//! Failure: [`TransportError::Invalid`] for a payload that is no text and an answer that is no envelope. It never
//! quotes either.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use futures_util::future::{FutureExt, ready};
use futures_util::{Stream, StreamExt};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::answer::Answer;
use super::request::{Prepared, challenge};
use super::{Incoming, Outgoing, Target, TransportError};
use crate::execution::{Body, BodyError};

/// The most bytes of an envelope, and of the payload of one.
pub(super) const MOST: u64 = 64 * 1024 * 1024;
/// The most bytes of `stdout` and of `stderr`.
pub(super) const MOST_LINES: usize = 1_000_000;

#[derive(Serialize)]
struct Request<'a> {
    variables: &'a BTreeMap<String, String>,
    env: &'a BTreeMap<String, String>,
    payload: &'a str,
    /// Always empty: R-99.
    headers: BTreeMap<&'a str, &'a str>,
}

#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow, default)]
    response: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stdout: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stderr: Option<&'a RawValue>,
}

/// What an envelope holds, each as text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) response: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Puts a request into an envelope.
pub(super) async fn prepare(target: &Target, request: Outgoing) -> Result<Prepared, TransportError> {
    let payload = match request.body {
        Body::Full(bytes) => bytes,
        Body::Stream(stream) => collect(stream, MOST).await.map_err(TransportError::Request)?,
    };
    let payload = str::from_utf8(&payload).map_err(|_| {
        TransportError::Invalid("a v2 runtime takes text only, and the request's body is not UTF-8".into())
    })?;
    // Of repeats the last one counts, as in an environment.
    let variables: BTreeMap<String, String> = request.variables.into_iter().collect();
    let envelope = Request { variables: &variables, env: &variables, payload, headers: BTreeMap::new() };
    let envelope = serde_json::to_vec(&envelope).expect("maps of strings are always JSON");
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(header::HOST, HeaderValue::from_static("null"));
    headers.insert(HeaderName::from_static("x-internal-challenge"), challenge(&target.secret)?);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let body = Body::Full(envelope.into());
    Ok(Prepared { method: Method::POST, uri: Uri::from_static("/"), headers, body, length: None })
}

/// Reads the answer's envelope. `most`: how many bytes the response in it may have.
pub(super) async fn read(
    answer: Answer,
    wanted: bool,
    most: Option<u64>,
) -> Result<Incoming, TransportError> {
    let status = answer.status;
    let opened = open(&collect(answer.body, MOST).await?)?;
    if let Some(most) = most.filter(|most| opened.response.len() as u64 > *most) {
        return Err(BodyError::TooLarge(most).into());
    }
    let lines = |text: String| if wanted { Bytes::from(text) } else { Bytes::new() };
    Ok(Incoming {
        status,
        headers: HeaderMap::new(),
        length: Some(opened.response.len() as u64),
        body: Body::Full(opened.response.into()),
        lines: ready((lines(opened.stdout), lines(opened.stderr))).boxed(),
    })
}

/// Opens an envelope.
pub(super) fn open(bytes: &[u8]) -> Result<Opened, TransportError> {
    let invalid = |why: String| {
        TransportError::Invalid(format!("the guest's answer is not the JSON object that v2 promises: {why}"))
    };
    // A struct may also be read from a list.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(invalid("it does not begin with `{`".into()));
    }
    let at = |error: &serde_json::Error| format!("see line {}, column {}", error.line(), error.column());
    let reply: Reply<'_> = serde_json::from_slice(bytes).map_err(|error| invalid(at(&error)))?;
    let text = |value: Option<&RawValue>| match value.map(RawValue::get) {
        None | Some("null") => Ok(String::new()),
        Some(text) if text.starts_with('"') => {
            serde_json::from_str(text).map_err(|_| invalid("it has a text that is not Unicode".into()))
        }
        Some(other) => Ok(compact(other)),
    };
    let (mut stdout, mut stderr) = (text(reply.stdout)?, text(reply.stderr)?);
    for lines in [&mut stdout, &mut stderr] {
        lines.truncate(lines.floor_char_boundary(MOST_LINES));
    }
    Ok(Opened { response: text(reply.response)?, stdout, stderr })
}

/// JSON without blanks between its parts; order and numbers stay as they were written.
fn compact(json: &str) -> String {
    let (mut inside, mut escaped) = (false, false);
    json.chars()
        .filter(|character| {
            let keep = inside || !character.is_ascii_whitespace();
            if escaped {
                escaped = false;
            } else if *character == '"' {
                inside = !inside;
            } else {
                escaped = inside && *character == '\\';
            }
            keep
        })
        .collect()
}

/// All of a body of at most `most` bytes.
async fn collect(
    mut stream: impl Stream<Item = Result<Bytes, BodyError>> + Unpin,
    most: u64,
) -> Result<Bytes, BodyError> {
    let mut all = BytesMut::new();
    while let Some(piece) = stream.next().await.transpose()? {
        if (all.len() + piece.len()) as u64 > most {
            return Err(BodyError::TooLarge(most));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}
