//! What a guest is sent: R-97, and sections 3 and 12.9 of the runtime protocol.
//!
//! Pure. Invariants: reserved, hop-by-hop and framing fields of the caller never reach a guest, and there is exactly
//! one `host`. A kept order is the order of first appearance; repeats of one name stand together, in order.
//!
//! Failure: [`TransportError::Invalid`] for what HTTP/1.1 cannot carry.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};

use super::{Outgoing, Profile, Target, TransportError};
use crate::execution::Body;
use crate::headers::{LINES_IN_HEAD, LOG_TRANSPORT, RESERVED_PREFIX};
use crate::instance::Secret;

/// The most headers of a caller.
const MOST_FIELDS: usize = 1024;

/// A request, ready for the wire.
pub(super) struct Prepared {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// Of a streamed body, where it is known.
    pub(super) length: Option<u64>,
}

/// Prepares a request for any profile but v2.
pub(super) fn prepare(target: &Target, request: Outgoing) -> Result<Prepared, TransportError> {
    let Outgoing { method, path, headers: given, body, .. } = &request;
    if method == Method::CONNECT {
        return Err(TransportError::Invalid("the method CONNECT is for proxies only".into()));
    }
    let uri = origin_form(path)?;
    let find = |name: HeaderName| given.iter().find(|(given, _)| *given == name).map(|(_, value)| value);
    if given.len() > MOST_FIELDS {
        return Err(TransportError::Invalid(format!("the request has more than {MOST_FIELDS} headers")));
    }
    let mut headers = HeaderMap::with_capacity(given.len() + 8);
    let host = match find(header::HOST) {
        Some(host) => host.clone(),
        None => value(&target.address.to_string())?,
    };
    headers.append(header::HOST, host);
    let connection: Vec<&HeaderValue> =
        given.iter().filter(|(name, _)| *name == header::CONNECTION).map(|(_, value)| value).collect();
    for (name, value) in given {
        if !stays_here(name, &connection) && *name != header::HOST && *name != header::EXPECT {
            headers.append(name.clone(), value.clone());
        }
    }
    let empty = matches!(body, Body::Full(bytes) if bytes.is_empty());
    if target.profile != Profile::Port {
        control(&mut headers, target, &request)?;
        if !empty && find(header::CONTENT_TYPE).is_none() {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.append(header::CONTENT_TYPE, form);
        }
        if find(header::ACCEPT).is_none() {
            headers.append(header::ACCEPT, HeaderValue::from_static("*/*"));
        }
    }
    let mut length = None;
    if let Body::Stream(_) = body {
        length = find(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok())
            .filter(|length| length.bytes().all(|digit| digit.is_ascii_digit()))
            .and_then(|length| length.parse().ok());
        if length.is_none() {
            // hyper sends GET and HEAD without the body otherwise.
            headers.append(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    } else if empty && matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
        headers.append(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    Ok(Prepared { method: request.method, uri, headers, body: request.body, length })
}

/// What the host says to the runtime.
fn control(headers: &mut HeaderMap, target: &Target, request: &Outgoing) -> Result<(), TransportError> {
    let logging = HeaderValue::from_static(if request.logging { "enabled" } else { "disabled" });
    headers.append("x-open-runtimes-logging", logging);
    if request.logging && target.profile == Profile::V5 {
        headers.append(LOG_TRANSPORT, HeaderValue::from_static(LINES_IN_HEAD));
    }
    if request.basic {
        let credentials = STANDARD.encode(format!("opr:{}", target.secret.expose()));
        headers.append(header::AUTHORIZATION, secret(&format!("Basic {credentials}"))?);
    }
    let own = secret(target.secret.expose())?;
    headers.append("x-open-runtimes-secret", own);
    let seconds = HeaderValue::from(request.limit.as_secs().max(1));
    headers.append("x-open-runtimes-timeout", seconds);
    Ok(())
}

/// The secret's header for v2.
pub(super) fn challenge(own: &Secret) -> Result<HeaderValue, TransportError> {
    secret(own.expose())
}

fn secret(text: &str) -> Result<HeaderValue, TransportError> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| TransportError::Invalid("the guest's secret does not fit into a header".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn value(text: &str) -> Result<HeaderValue, TransportError> {
    HeaderValue::from_str(text)
        .map_err(|_| TransportError::Invalid(format!("`{text}` does not fit into a header")))
}

/// Whether a field is about one connection, frames the message, or is between host and runtime: it crosses in neither
/// direction. `connection` are the message's own fields of that name, which may name more.
pub(super) fn stays_here(name: &HeaderName, connection: &[&HeaderValue]) -> bool {
    let name = name.as_str();
    matches!(
        name,
        "connection"
            | "content-length"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    ) || name.starts_with(RESERVED_PREFIX)
        || connection
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .any(|named| named.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

/// The request target of a path.
fn origin_form(path: &str) -> Result<Uri, TransportError> {
    let path = path.split_once('#').map_or(path, |(path, _fragment)| path);
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    for character in path.chars() {
        if matches!(character, '!'..='~') && !matches!(character, '<' | '>' | '`' | '"') {
            target.push(character);
        } else {
            for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                write!(target, "%{byte:02X}").expect("a string takes everything");
            }
        }
    }
    let parsed = http::uri::PathAndQuery::try_from(target);
    Ok(parsed.map_err(|error| TransportError::Invalid(format!("the path cannot be sent: {error}")))?.into())
}
