//! What the routes take, as pure functions from parameters to orders for the guest house.
//!
//! Each reads its table of section 5 from top to bottom, so that the first problem in that order is the answer.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};

use super::error::Problem;
use super::params::{Fields, Param, Params, check_text, required};
use crate::adapter::guest::RestartPolicy;
use crate::executor::guests::{GuestCall, GuestError, Order};
use crate::transport::Profile;

/// The largest body of a function's request, bytes.
const MAX_BODY: usize = 20_971_520;
const VERSION: &str = "v5";
const BUILD_TIMEOUT: i32 = 600;

const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"];
const POLICIES: [(&str, RestartPolicy); 4] = [
    ("no", RestartPolicy::No),
    ("always", RestartPolicy::Always),
    ("on-failure", RestartPolicy::OnFailure),
    ("unless-stopped", RestartPolicy::UnlessStopped),
];

/// As callers write it.
fn name_of(profile: Profile) -> &'static str {
    match profile {
        Profile::V2 => "v2",
        Profile::V3 => "v3",
        Profile::V4 => "v4",
        Profile::V5 => "v5",
        Profile::Port => "port",
    }
}

/// The id in a path: text(1,64).
pub(super) fn id(bytes: &[u8]) -> Result<Arc<str>, Problem> {
    check_text("runtimeId", bytes, 1, 64)?;
    // No runtime has a name that is no text; this one finds none.
    Ok(String::from_utf8_lossy(bytes).into())
}

fn version(params: &Params, versions: &[Profile]) -> Result<(String, Profile), Problem> {
    let names: Vec<_> = versions.iter().copied().map(name_of).collect();
    let given = params.one_of("version", &names, true)?;
    Ok(given.map_or((VERSION.into(), Profile::V5), |(name, at)| (name, versions[at])))
}

fn restart(params: &Params) -> Result<RestartPolicy, Problem> {
    let given = params.one_of("restartPolicy", &POLICIES.map(|(name, _)| name), false)?;
    Ok(given.map_or(RestartPolicy::No, |(_, at)| POLICIES[at].1))
}

/// Values as text, as R-62 says.
fn variables(fields: &Fields) -> Result<Vec<(String, String)>, Problem> {
    let text = |(name, value): (&String, &Param)| match value.to_text() {
        Some(text) => Ok((name.clone(), text)),
        None => Err(Params::unusable("variables", &format!("The value of `{}` is not UTF-8.", short(name)))),
    };
    fields.iter().map(text).collect()
}

/// A list is a header that repeats.
fn headers(fields: &Fields) -> Result<Vec<(HeaderName, HeaderValue)>, Problem> {
    let mut headers = Vec::new();
    for (name, value) in fields {
        let wrong = |what: &str| Params::unusable("headers", &format!("`{}` {what}.", short(name)));
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong("is not a header name"))?;
        let values = match value {
            Param::List(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            let value = match value {
                Param::Text(text) => HeaderValue::from_maybe_shared(text.clone()).ok(),
                other => other.to_text().and_then(|text| HeaderValue::from_str(&text).ok()),
            };
            headers.push((header.clone(), value.ok_or_else(|| wrong("has no header value"))?));
        }
    }
    Ok(headers)
}

fn short(name: &str) -> Cow<'_, str> {
    match name.char_indices().nth(64) {
        Some((cut, _)) => format!("{}…", &name[..cut]).into(),
        None => name.into(),
    }
}

fn cache_key(key: String) -> Result<String, Problem> {
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let first = key.bytes().next().is_none_or(|byte| byte.is_ascii_alphanumeric());
    if first && key.bytes().all(sane) {
        return Ok(key);
    }
    let message = "Cache key must start with a letter or number and may only contain letters, numbers, dots, \
                   underscores, and hyphens.";
    Err(GuestError::BadRequest(message.into()).into())
}

/// 5.2
pub(super) fn create(params: &Params, versions: &[Profile]) -> Result<Order, Problem> {
    let id = required("runtimeId", params.text("runtimeId", 1, 64)?)?.into();
    let image = required("image", params.text("image", 1, 128)?)?;
    let entrypoint = params.text("entrypoint", 0, 256)?.unwrap_or_default();
    let source = params.text("source", 0, 0)?.unwrap_or_default();
    let destination = params.text("destination", 0, 0)?.unwrap_or_default();
    let output_directory = params.text("outputDirectory", 0, 0)?.unwrap_or_default();
    let map = params.map("variables")?.unwrap_or_default();
    let start_command = params.text("runtimeEntrypoint", 0, 1024)?.unwrap_or_default();
    let command = params.text("command", 0, 1024)?.unwrap_or_default();
    let key = params.text("cacheKey", 0, 128)?.unwrap_or_default();
    let timeout = params.int("timeout")?.unwrap_or(BUILD_TIMEOUT);
    let remove = params.bool("remove")?.unwrap_or(false);
    let cpus = params.float("cpus")?.unwrap_or(1.0);
    let memory = params.int("memory")?.unwrap_or(512);
    let (version, profile) = version(params, versions)?;
    let restart = restart(params)?;
    Ok(Order {
        id,
        image,
        entrypoint,
        source,
        destination,
        output_directory,
        variables: variables(&map)?,
        start_command,
        command,
        cache_key: cache_key(key)?,
        timeout,
        remove,
        cpus,
        memory,
        profile,
        version,
        restart,
    })
}

/// 5.6
pub(super) fn execute(id: Arc<str>, params: &Params, versions: &[Profile]) -> Result<GuestCall, Problem> {
    let body = params.bytes("body", 1, MAX_BODY)?.unwrap_or_else(Bytes::new);
    let path = params.text("path", 1, 2048)?.unwrap_or_else(|| "/".into());
    let method = params
        .one_of("method", &METHODS, false)?
        .map_or(Method::GET, |(name, _)| Method::from_bytes(name.as_bytes()).expect("it is one of METHODS"));
    let header_map = params.map_loose("headers")?.unwrap_or_default();
    let timeout = params.int_loose("timeout")?.unwrap_or(15);
    let image = params.text("image", 1, 128)?;
    let source = params.text("source", 1, 0)?;
    let entrypoint = params.text("entrypoint", 0, 256)?.unwrap_or_default();
    let map = params.map_loose("variables")?.unwrap_or_default();
    let cpus = params.float("cpus")?.unwrap_or(1.0);
    let memory = params.int_loose("memory")?.unwrap_or(512);
    let (version, profile) = version(params, versions)?;
    let start_command = params.text("runtimeEntrypoint", 0, 1024)?.unwrap_or_default();
    let logging = params.bool_loose("logging")?.unwrap_or(true);
    let restart = restart(params)?;
    let variables = variables(&map)?;
    let order = image.zip(source).map(|(image, source)| {
        Box::new(Order {
            id: Arc::clone(&id),
            image,
            entrypoint,
            source,
            destination: String::new(),
            output_directory: String::new(),
            variables: variables.clone(),
            start_command,
            command: String::new(),
            cache_key: String::new(),
            timeout: BUILD_TIMEOUT,
            remove: false,
            cpus,
            memory,
            profile,
            version,
            restart,
        })
    });
    let headers = headers(&header_map)?;
    Ok(GuestCall { id, order, method, path, headers, body, timeout, logging, variables })
}

/// 5.7: the command and its limit.
pub(super) fn command(params: &Params) -> Result<(String, Duration), Problem> {
    let command = required("command", params.text("command", 1, 1024)?)?;
    let timeout = params.int("timeout")?.unwrap_or(BUILD_TIMEOUT);
    Ok((command, Duration::from_secs(timeout.max(0).unsigned_abs().into())))
}

/// 5.8: the limit. Read as an integer as PHP does: what follows the digits does not count, no digits are 0.
pub(super) fn logs(query: &Params) -> Result<Duration, Problem> {
    let Some(text) = query.bytes("timeout", 1, 16)? else { return Ok(Duration::from_mins(10)) };
    let text = text.trim_ascii_start();
    let digits = text.strip_prefix(b"+").unwrap_or(text);
    let seconds = digits
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0u64, |seconds, byte| seconds * 10 + u64::from(byte - b'0'));
    // More is for ever, and stays far from the end of the clock.
    Ok(Duration::from_secs(seconds.min(i32::MAX.unsigned_abs().into())))
}

#[cfg(test)]
#[path = "orders_tests.rs"]
mod tests;
