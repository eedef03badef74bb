//! One request run by a function, as the core sees it: what goes in and what comes out.
//!
//! `http::HeaderMap` and friends are used as plain data; nothing here knows a server or a client.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::{HeaderMap, Method};

/// How long a body may take in all where no call's deadline bounds it.
pub const BODY_TIME: Duration = Duration::from_mins(5);

/// A request for a function.
#[derive(Debug)]
pub struct Request {
    /// Request id, `[A-Za-z0-9._-]{1,128}`.
    pub id: Arc<str>,
    /// The HTTP method.
    pub method: Method,
    /// `http` or `https`, as the client saw it.
    pub scheme: String,
    /// Host part of the `Host` header.
    pub host: String,
    /// Port of the `Host` header, or the scheme's default.
    pub port: u16,
    /// What the function sees as its path; starts with `/`.
    pub path: String,
    /// Raw text after `?`.
    pub query: String,
    /// Headers without the reserved ones.
    pub headers: HeaderMap,
    /// The body.
    pub body: Body,
    /// The instant by which it must have answered.
    pub deadline: Instant,
    /// Time for the function alone, counted from the moment it gets the request, when the caller's limit is about that
    /// (section 6.2 of the runtime protocol); `deadline` then holds only for what comes before.
    pub limit: Option<Duration>,
}

/// A body on its way in or out.
pub enum Body {
    /// All of it.
    Full(Bytes),
    /// Pieces, or an error that says why it broke off.
    Stream(BodyStream),
}

/// Pieces of a body as they come.
pub type BodyStream = BoxStream<'static, Result<Bytes, BodyError>>;

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// Why a streamed body broke off.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BodyError {
    /// More than the limit, in bytes.
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    /// No byte arrived for too long.
    #[error("no byte of the body arrived for {0:?}")]
    Idle(Duration),
    /// Not all of it arrived within the hard limit of the call that it answers.
    #[error("the body was not complete within {0:?}")]
    Late(Duration),
    /// The other side went away or sent nonsense.
    #[error("the body ended early: {0}")]
    Broken(String),
}

/// What a function answered.
#[derive(Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Headers, already cleaned.
    pub headers: HeaderMap,
    /// The body.
    pub body: Body,
    /// Length of a streamed body, when the function knows it.
    pub length: Option<u64>,
}

/// Where the time of an execution went. All zero when the part did not happen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Waiting for the entity and for a free place in an instance.
    pub queue: Duration,
    /// The part of the wait that was spent starting an instance; zero when warm.
    pub cold: Duration,
    /// Reading and committing state.
    pub state: Duration,
    /// The function itself.
    pub run: Duration,
    /// How often it was run again, or its change merged again, because another host had changed the state.
    pub retries: u32,
}

/// How loud a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// `context.log`
    Log,
    /// `context.error`
    Error,
    /// Native output: console, print.
    Native,
}

/// One line a function wrote.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LogLine {
    /// Which log it belongs to.
    pub level: Level,
    /// The text, at most [`MAX_LOG_LINE`] characters and a note.
    pub text: String,
}

/// A longer line keeps this many characters.
pub const MAX_LOG_LINE: usize = 8000;

impl LogLine {
    /// Makes a line, cut where it is too long.
    pub fn new(level: Level, mut text: String) -> Self {
        if text.len() > MAX_LOG_LINE
            && let Some((cut, _)) = text.char_indices().nth(MAX_LOG_LINE)
        {
            text.truncate(cut);
            text.push_str("... Log truncated due to size limit (8000 characters)");
        }
        Self { level, text }
    }
}

#[cfg(test)]
impl Request {
    pub(crate) fn for_test(path: &str, query: &str) -> Self {
        Self {
            id: "test".into(),
            method: Method::GET,
            scheme: "http".into(),
            host: "localhost".into(),
            port: 8080,
            path: path.into(),
            query: query.into(),
            headers: HeaderMap::new(),
            body: Body::Full(Bytes::new()),
            deadline: Instant::now() + Duration::from_secs(5),
            limit: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_one_above_the_bound() {
        let at = LogLine::new(Level::Log, "ä".repeat(MAX_LOG_LINE));
        assert_eq!(at.text.chars().count(), MAX_LOG_LINE);
        let above = LogLine::new(Level::Log, "ä".repeat(MAX_LOG_LINE + 1));
        assert!(above.text.ends_with("ä... Log truncated due to size limit (8000 characters)"));
    }
}
