//! The executor API below `/v1`, as `spec-executor-api` has it: for hosts such as Appwrite, with the operator's key.
//!
//! A plain table of method and segments instead of a router, because unknown methods are 404, not 405, HEAD is GET,
//! slashes repeat, and the order is fixed: route, key, parameters, action. What a route takes is read in
//! [`orders`], what it answers is written in [`json`], [`execution`] and [`logs`]; errors are [`error`]'s.
//!
//! Every answer has `Server: Executor`. Bodies are read whole before anything else happens: strangers' never, others'
//! up to [`MAX_REQUEST`] each and [`MAX_READING`] together.

mod error;
mod execution;
mod form;
mod json;
mod logs;
mod multipart;
mod orders;
mod params;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use indexmap::IndexMap;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use self::error::Problem;
use self::execution::Wanted;
use self::params::Params;
use super::Front;
use super::body::AnswerBody;
use crate::executor::guests::{GuestHouse, GuestInfo};
use crate::instance::Secret;
use crate::transport::Profile;

/// one request, its head included, bytes.
const MAX_REQUEST: usize = 23_068_672;
/// All bodies that are in memory, bytes.
const MAX_READING: usize = 256 << 20;
/// How long a whole body may take.
const BODY_TIME: Duration = Duration::from_mins(5);
/// What a body may have that nobody reads, bytes.
const MAX_UNREAD: usize = 64 << 10;

/// The API, and what it works on.
pub struct V1 {
    house: Arc<GuestHouse>,
    options: V1Options,
    reading: Semaphore,
}

/// How the API shows itself.
#[derive(Debug, Clone)]
pub struct V1Options {
    /// Whether errors tell their causes.
    pub development: bool,
    /// `version` in error documents.
    pub version: String,
    /// Versions that callers may ask for.
    pub versions: Vec<Profile>,
    /// Whether `/v1/health` answers JSON to those who do not ask for text.
    pub health_json: bool,
    /// The largest body of an answer that is not streamed, bytes.
    pub max_answer: u64,
}

impl V1 {
    /// The API over `house`.
    pub fn new(house: Arc<GuestHouse>, options: V1Options) -> Self {
        Self { house, options, reading: Semaphore::new(MAX_READING) }
    }
}

type Answer = Response<AnswerBody>;

/// Whether the API answers at this path.
pub(super) fn is_ours(path: &str) -> bool {
    let rest = path.trim_start_matches('/').strip_prefix("v1");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Health,
    List,
    Create,
    Get(&'a str),
    Delete(&'a str),
    Execute(&'a str),
    Command(&'a str),
    Logs(&'a str),
}

impl<'a> Route<'a> {
    fn find(method: &Method, path: &'a str) -> Option<Self> {
        let mut segments = path.split('/').filter(|segment| !segment.is_empty());
        let found: [_; 5] = std::array::from_fn(|_| segments.next());
        let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
        Some(match (method, found) {
            ("GET", [Some("v1"), Some("health"), None, ..]) => Self::Health,
            ("GET", [Some("v1"), Some("runtimes"), None, ..]) => Self::List,
            ("POST", [Some("v1"), Some("runtimes"), None, ..]) => Self::Create,
            ("GET", [Some("v1"), Some("runtimes"), Some(id), None, _]) => Self::Get(id),
            ("DELETE", [Some("v1"), Some("runtimes"), Some(id), None, _]) => Self::Delete(id),
            ("POST", [Some("v1"), Some("runtimes"), Some(id), Some("executions" | "execution"), None]) => {
                Self::Execute(id)
            }
            ("POST", [Some("v1"), Some("runtimes"), Some(id), Some("commands"), None]) => Self::Command(id),
            ("GET", [Some("v1"), Some("runtimes"), Some(id), Some("logs"), None]) => Self::Logs(id),
            _ => return None,
        })
    }
}

/// Answers one request whose path [`is_ours`]; a panic becomes a 500.
pub(super) async fn answer(front: &Front, v1: &V1, request: Request<Incoming>) -> Answer {
    let served = AssertUnwindSafe(serve(front, v1, request)).catch_unwind().await;
    let served = served.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        tracing::error!("a request to /v1 panicked: {text}");
        Err(Problem::internal(format!("a panic: {text}")))
    });
    let V1Options { version, development, .. } = &v1.options;
    let mut response =
        served.unwrap_or_else(|problem| problem.respond(version, *development).map(AnswerBody::own));
    response.headers_mut().insert(header::SERVER, HeaderValue::from_static("Executor"));
    response
}

async fn serve(front: &Front, v1: &V1, request: Request<Incoming>) -> Result<Answer, Problem> {
    let (parts, body) = request.into_parts();
    let route = Route::find(&parts.method, parts.uri.path()).ok_or_else(Problem::no_such_route)?;
    if route != Route::Health && !authorized(&parts.headers, &front.admin_secret) {
        return Err(Problem::unauthorized());
    }
    let idle = front.limits.body_idle;
    let read_by_nobody = parts.method == Method::GET || parts.method == Method::HEAD;
    let room =
        MAX_REQUEST.checked_sub(head_size(&parts)).filter(|room| body.size_hint().lower() <= *room as u64);
    let room = room.ok_or_else(|| Problem::too_large(MAX_REQUEST))?;
    if read_by_nobody {
        drain(body, idle).await;
        return read_only(v1, route, &parts).await;
    }
    let (body, _held) = read(&v1.reading, body, room, idle).await?;
    let params = match route {
        // It has none, so nothing about its body can be wrong.
        Route::Delete(_) => Params::default(),
        _ => params_of(&parts.headers, body)?,
    };
    match route {
        Route::Create => {
            let created = v1.house.create(orders::create(&params, &v1.options.versions)?).await?;
            Ok(document(StatusCode::CREATED, json::created(created)))
        }
        Route::Delete(id) => {
            v1.house.delete(&id_of(id)?).await?;
            Ok(Response::new(AnswerBody::full(Bytes::new())))
        }
        Route::Execute(id) => {
            let call = orders::execute(id_of(id)?, &params, &v1.options.versions)?;
            let executed = v1.house.execute(call).await?;
            execution::answer(executed, Wanted::of(&parts.headers), v1.options.max_answer).await
        }
        Route::Command(id) => {
            let id = id_of(id)?;
            let (command, limit) = orders::command(&params)?;
            let output = v1.house.command(&id, &command, limit).await?;
            let output = serde_json::json!({ "output": String::from_utf8_lossy(&output) });
            Ok(document(StatusCode::OK, json::write(&output)))
        }
        Route::Health | Route::List | Route::Get(_) | Route::Logs(_) => Err(Problem::no_such_route()),
    }
}

async fn read_only(v1: &V1, route: Route<'_>, parts: &Parts) -> Result<Answer, Problem> {
    match route {
        Route::Health => Ok(health(v1, &parts.headers).await),
        Route::List => {
            let list: Vec<_> = v1.house.list().into_iter().map(json::InfoDocument::from).collect();
            Ok(document(StatusCode::OK, json::write(&list)))
        }
        Route::Get(id) => {
            let found: Option<GuestInfo> = v1.house.get(&id_of(id)?);
            let info = found.ok_or(crate::executor::guests::GuestError::NotFound)?;
            Ok(document(StatusCode::OK, json::write(&json::InfoDocument::from(info))))
        }
        Route::Logs(id) => {
            let id = id_of(id)?;
            let query = Params(form::fields(parts.uri.query().unwrap_or_default().as_bytes())?);
            let lines = v1.house.logs(&id, orders::logs(&query)?).await?;
            Ok(logs::answer(lines).map(AnswerBody::own))
        }
        Route::Create | Route::Delete(_) | Route::Execute(_) | Route::Command(_) => {
            Err(Problem::no_such_route())
        }
    }
}

fn id_of(segment: &str) -> Result<Arc<str>, Problem> {
    orders::id(&form::percent_decoded(segment.as_bytes(), false))
}

///
fn authorized(headers: &HeaderMap, secret: &Secret) -> bool {
    let header = headers.get(header::AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
    let key = header.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    !key.is_empty() && secret.matches(key)
}

/// What the head had on the wire, for R-3.
fn head_size(parts: &Parts) -> usize {
    let target = parts.uri.path_and_query().map_or(1, |target| target.as_str().len());
    let line = parts.method.as_str().len() + target + "  HTTP/1.1\r\n".len();
    let headers =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    line + headers.sum::<usize>() + "\r\n".len()
}

/// Reads what a client sends along, so that the connection can go on; more than a little, or later than `limit`, ends
/// it instead.
async fn drain(mut body: impl Body<Data = Bytes> + Unpin, limit: Duration) {
    let reading = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > MAX_UNREAD {
                return;
            }
        }
    };
    // Late or not, the answer is the same.
    let _ = timeout(limit, reading).await;
}

/// A whole body of at most `room` bytes, and its place among [`MAX_READING`].
async fn read<E: std::fmt::Display>(
    reading: &Semaphore,
    mut body: impl Body<Data = Bytes, Error = E> + Unpin,
    room: usize,
    idle: Duration,
) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Problem> {
    let (mut held, mut first, mut whole) = (None::<SemaphorePermit<'_>>, Bytes::new(), BytesMut::new());
    let end = Instant::now() + BODY_TIME;
    loop {
        let until = end.min(Instant::now() + idle);
        let frame = timeout_at(until, body.frame()).await.map_err(|_| Problem::body_too_slow())?;
        let Some(frame) = frame else { break };
        let frame = frame
            .map_err(|error| Problem::bad_parameter(format!("The request's body broke off: {error}.")))?;
        let Ok(piece) = frame.into_data() else { continue };
        if first.len() + whole.len() + piece.len() > room {
            return Err(Problem::too_large(MAX_REQUEST));
        }
        let size = u32::try_from(piece.len()).map_err(|_| Problem::too_large(MAX_REQUEST))?;
        let more = reading.try_acquire_many(size).map_err(|_| Problem::overloaded())?;
        match &mut held {
            Some(held) => held.merge(more),
            none => *none = Some(more),
        }
        // Most bodies come in one piece, which need not be copied.
        if first.is_empty() && whole.is_empty() {
            first = piece;
        } else {
            if whole.is_empty() {
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&piece);
        }
    }
    Ok((if whole.is_empty() { first } else { whole.freeze() }, held))
}

/// other types have no parameters.
fn params_of(headers: &HeaderMap, body: Bytes) -> Result<Params, Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    Ok(Params(match kind.as_str() {
        "application/json" => json::fields(&body),
        "multipart/form-data" => multipart::fields(content_type, body)?,
        "application/x-www-form-urlencoded" => form::fields(&body)?,
        _ => params::Fields::new(),
    }))
}

fn document(status: StatusCode, json: Bytes) -> Answer {
    let mut response = Response::new(AnswerBody::full(json));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=UTF-8");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    usage: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtimes: Option<IndexMap<String, Health>>,
}

///
async fn health(v1: &V1, headers: &HeaderMap) -> Answer {
    if !wants_json(headers, v1.options.health_json) {
        let mut response = Response::new(AnswerBody::full(Bytes::from_static(b"OK")));
        let text = HeaderValue::from_static("text/plain; charset=UTF-8");
        response.headers_mut().insert(header::CONTENT_TYPE, text);
        return response;
    }
    let (usage, guests) = v1.house.usage().await;
    document(StatusCode::OK, health_document(usage, guests))
}

fn health_document(usage: f64, guests: Vec<(String, f64)>) -> Bytes {
    let pass = |usage, runtimes| Health { status: "pass", usage, runtimes };
    let runtimes = guests.into_iter().map(|(id, usage)| (id, pass(usage, None))).collect();
    json::write(&pass(usage, Some(runtimes)))
}

/// Who names a type gets it, JSON first; for the others it is the operator's choice.
fn wants_json(headers: &HeaderMap, default: bool) -> bool {
    let names = |wanted: &str| {
        let all = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut pieces = all.flat_map(|value| value.split(','));
        pieces.any(|piece| piece.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted))
    };
    names("application/json") || (default && !names("text/plain"))
}

#[cfg(test)]
#[path = "v1_tests.rs"]
mod tests;
