//! The runtime protocol as a table: what is asked of the conformance function of a language, and what must come back.
//!
//! Each row says in which [`Way`]s of serving the function it holds. A row is one request, its answer and what it leaves
//! in the logs; what takes more than one request is a function in [`own`]. Languages are not named here: the
//! tests find every `runtimes/*/conformance`.

#![allow(dead_code, unreachable_pub, reason = "a harness")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on is a failed test")]

pub mod own;
pub mod subject;
pub mod table;

use serde_json::Value;

use self::subject::Subject;
use crate::common::Reply;

/// How the function is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `executor run` on this host.
    Run,
    /// The image of the language, in Docker.
    Image,
    /// One of many functions, with `--adapter process`.
    HostProcess,
    /// One of many functions, with `--adapter docker`.
    HostDocker,
}

/// What is about the function object and its answers.
pub const ALL: &[Way] = &[Way::Run, Way::Image, Way::HostProcess, Way::HostDocker];
/// What is about the contract between a host of Open Runtimes and an image.
pub const CONTRACT: &[Way] = &[Way::Run, Way::Image];

pub const NATIVE: &str =
    "Native logs detected. Use context.log() or context.error() for better experience.\n";
pub const TIMED_OUT: &str = "Execution timed out.\n";

/// What a log must hold; `{entrypoint}` stands for the name of the entrypoint.
#[derive(Debug)]
pub enum Lines {
    Are(String),
    Contain(Vec<&'static str>),
}

impl Lines {
    fn fit(&self, text: &str, entrypoint: &str) -> bool {
        let fill = |text: &str| text.replace("{entrypoint}", entrypoint);
        match self {
            Self::Are(lines) => text == fill(lines),
            Self::Contain(parts) => parts.iter().all(|part| text.contains(&fill(part))),
        }
    }
}

#[derive(Debug)]
pub enum Body {
    Bytes(Vec<u8>),
    Json(Value),
    /// An object that has at least these members.
    Has(Value),
}

impl Body {
    fn fits(&self, reply: &Reply) -> bool {
        let json = || serde_json::from_slice::<Value>(&reply.body).unwrap_or_default();
        match self {
            Self::Bytes(bytes) => reply.body == *bytes,
            Self::Json(value) => json() == *value,
            Self::Has(part) => {
                let whole = json();
                part.as_object().unwrap().iter().all(|(name, value)| whole.get(name) == Some(value))
            }
        }
    }
}

/// Which log id an answer carries, where a contract is kept.
#[derive(Debug)]
pub enum LogId {
    None,
    Is(String),
    /// 20 hexadecimal characters.
    Generated,
}

/// A row.
#[derive(Debug)]
pub struct Case {
    name: String,
    pub ways: &'static [Way],
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    secret: bool,
    body: Option<Vec<u8>>,
    status: u16,
    gives: Vec<(&'static str, Vec<String>)>,
    answer: Option<Body>,
    id: LogId,
    logs: Lines,
    errors: Lines,
}

/// A GET with `x-action`, to be answered with 200, with nothing in the logs.
pub fn action(name: &str) -> Case {
    Case {
        name: name.to_owned(),
        ways: ALL,
        method: "GET".into(),
        target: "/".into(),
        headers: vec![("x-action".into(), name.into())],
        secret: true,
        body: None,
        status: 200,
        gives: Vec::new(),
        answer: None,
        id: LogId::Generated,
        logs: Lines::Are(String::new()),
        errors: Lines::Are(String::new()),
    }
}

impl Case {
    pub fn but(mut self, what: &str) -> Self {
        self.name = format!("{}, {what}", self.name);
        self
    }

    pub fn only(mut self, ways: &'static [Way]) -> Self {
        self.ways = ways;
        self
    }

    pub fn method(mut self, method: &str) -> Self {
        self.method = method.into();
        self.but(method)
    }

    pub fn target(mut self, target: &str) -> Self {
        self.target = target.into();
        self.but(target)
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        let shown: String = value.chars().take(40).collect();
        self.but(&format!("{name}: {shown}"))
    }

    pub fn without_secret(mut self) -> Self {
        self.secret = false;
        self.but("without the secret")
    }

    /// Makes it a POST.
    pub fn post(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self.method = "POST".into();
        self
    }

    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Every value of one header of the answer, in order; none: it must not be there.
    pub fn gives(mut self, name: &'static str, values: &[&str]) -> Self {
        self.gives.push((name, values.iter().map(|value| (*value).to_owned()).collect()));
        self
    }

    pub fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.answer = Some(Body::Bytes(bytes.to_owned()));
        self
    }

    pub fn json(mut self, value: Value) -> Self {
        self.answer = Some(Body::Json(value));
        self
    }

    pub fn has(mut self, value: Value) -> Self {
        self.answer = Some(Body::Has(value));
        self
    }

    pub fn id(mut self, id: LogId) -> Self {
        self.id = id;
        self
    }

    pub fn logs(mut self, text: &str) -> Self {
        self.logs = Lines::Are(text.into());
        self
    }

    pub fn errors(mut self, text: &str) -> Self {
        self.errors = Lines::Are(text.into());
        self
    }

    pub fn errors_contain(mut self, parts: &[&'static str]) -> Self {
        self.errors = Lines::Contain(parts.to_owned());
        self
    }

    /// What is wrong, in one text; none: it holds.
    pub fn fault(&self, subject: &Subject<'_>) -> Option<String> {
        let mut request = subject.request(&self.method, &self.target);
        if !self.secret {
            request = request.without_secret();
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(body) = &self.body {
            request = request.body(body.clone());
        }
        let before = subject.files();
        let reply = request.send();
        let mut wrong = Vec::new();
        if reply.status != self.status {
            wrong.push(format!("status {} instead of {}", reply.status, self.status));
        }
        for (name, values) in &self.gives {
            if reply.all(name) != *values {
                wrong.push(format!("{name}: {:?} instead of {values:?}", reply.all(name)));
            }
        }
        if self.answer.as_ref().is_some_and(|answer| !answer.fits(&reply)) {
            let shown = |text: String| text.chars().take(500).collect::<String>();
            wrong.push(format!(
                "body {:?} instead of {}",
                shown(reply.text()),
                shown(format!("{:?}", self.answer))
            ));
        }
        wrong.extend(self.fault_in_logs(subject, &reply, &before));
        let text = || format!("{}:\n  {}", self.name, wrong.join("\n  "));
        (!wrong.is_empty()).then(text)
    }

    fn fault_in_logs(&self, subject: &Subject<'_>, reply: &Reply, before: &[String]) -> Vec<String> {
        let mut wrong = Vec::new();
        let reserved = reply.headers.iter().filter(|(name, _)| name.starts_with("x-open-runtimes-"));
        let reserved: Vec<_> = reserved.map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let generated = |id: &str| id.len() == 20 && id.bytes().all(|b| b"0123456789abcdef".contains(&b));
        let right = match (&self.id, &reserved[..]) {
            _ if !subject.keeps_contract() => reserved.is_empty(),
            (LogId::None, []) => true,
            (LogId::Is(wanted), [("x-open-runtimes-log-id", id)]) => id == wanted,
            (LogId::Generated, [("x-open-runtimes-log-id", id)]) => generated(id),
            _ => false,
        };
        if !right {
            wrong.push(format!("reserved headers {reserved:?}, wanted the log id {:?}", self.id));
        }
        if subject.keeps_contract() && reply.all("x-open-runtimes-log-id").iter().all(|id| id.is_empty()) {
            if subject.files() != before {
                wrong.push("files were written".into());
            }
            return wrong;
        }
        let nothing = |lines: &Lines| matches!(lines, Lines::Are(text) if text.is_empty());
        let (logs, errors) = subject.written(reply, nothing(&self.logs) && nothing(&self.errors));
        for (what, text, lines) in [("logs", logs, &self.logs), ("errors", errors, &self.errors)] {
            if !lines.fit(&text, subject.entrypoint()) {
                wrong.push(format!("{what} {text:?} instead of {lines:?}"));
            }
        }
        wrong
    }
}
