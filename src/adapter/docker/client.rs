//! The one door to the Docker daemon: the connection, the time limits, and what Docker's errors mean for us.
//!
//! No call leaves here without a limit, and no error of bollard leaves the adapter: [`Fault`] keeps what a caller
//! can act on (gone, conflict, no daemon), and its conversion to [`AdapterError`] is the only place that turns
//! it into text for people. Of what Docker answers, only its message is ever shown.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;

use crate::adapter::AdapterError;

/// Asking the daemon whether it is there. It answers in a millisecond; a socket whose daemon hangs must not hold up
/// the start of the executor.
pub(super) const HELLO: Duration = Duration::from_secs(2);
/// Inspecting and listing: milliseconds when idle, seconds while the daemon removes images or the host swaps.
pub(super) const ASK: Duration = Duration::from_secs(10);
/// Creating or starting a container: tenths of a second, many seconds on a slow disk or with many at once.
pub(super) const START: Duration = Duration::from_secs(30);
/// Removing: Docker itself gives the kernel 10 s to take a killed process away.
pub(super) const REMOVE: Duration = Duration::from_secs(20);
/// State and last words of a container that is about to be removed. They are a courtesy, so they get little.
pub(super) const WORDS: Duration = Duration::from_secs(2);
/// Numbers about the use of a container; Docker takes a second between the two looks it needs.
pub(super) const NUMBERS: Duration = Duration::from_secs(5);
/// One image pull.
pub(super) const PULL: Duration = Duration::from_mins(10);
/// One image build, with its downloads.
pub(super) const BUILD: Duration = Duration::from_mins(15);

/// bollard's own limit on the head of an answer. Only a net below the limits above, which are all shorter, and for
/// builds, where Docker stays silent while it takes in the context.
const NET_SECONDS: u64 = 120;

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// A connection to the daemon; every call opens its own socket, so it may be shared freely.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) docker: Docker,
    socket: String,
}

/// Why one call failed.
#[derive(Debug)]
pub(super) struct Fault {
    /// What we were about: "start the container".
    doing: &'static str,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// 404: what we named does not exist (any more).
    Gone(String),
    /// 409: it is busy, or the name is taken.
    Conflict(String),
    /// The daemon answered and said no.
    Refused(String),
    /// Nobody answered; the text says what to do.
    Unreachable(String),
    /// The limit passed.
    Silent(Duration),
}

impl Fault {
    /// Whether what we named does not exist.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.kind, Kind::Gone(_))
    }

    /// Whether Docker answered, and so whatever was asked for has not been done.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self.kind, Kind::Gone(_) | Kind::Conflict(_) | Kind::Refused(_))
    }

    /// What Docker said, if it did.
    pub(super) fn message(&self) -> Option<&str> {
        match &self.kind {
            Kind::Gone(text) | Kind::Conflict(text) | Kind::Refused(text) => Some(text.trim()),
            Kind::Unreachable(_) | Kind::Silent(_) => None,
        }
    }

    /// Whether Docker is already busy with it, it does not run, or its name is taken.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self.kind, Kind::Conflict(_))
    }
}

impl From<Fault> for AdapterError {
    fn from(Fault { doing, kind }: Fault) -> Self {
        match kind {
            Kind::Gone(message) | Kind::Conflict(message) | Kind::Refused(message) => {
                Self::Failed(format!("Docker could not {doing}: {}", message.trim()).into())
            }
            Kind::Unreachable(message) => Self::Unavailable(message.into()),
            Kind::Silent(limit) => Self::Unavailable(
                format!("Docker did not {doing} within {} s; does `docker ps` answer?", limit.as_secs())
                    .into(),
            ),
        }
    }
}

impl Client {
    /// Opens the daemon at `host` (the form of `DOCKER_HOST`) and agrees on a version of the API.
    pub(super) async fn open(host: Option<&str>) -> Result<Self, AdapterError> {
        let host = host.unwrap_or(DEFAULT_HOST);
        let Some(socket) = host.strip_prefix("unix://") else {
            let text = format!(
                "DOCKER_HOST is `{host}`; only a daemon on this host will do (unix://…), because instances share \
                 folders and sockets with the executor"
            );
            return Err(AdapterError::Unavailable(text.into()));
        };
        let docker = Docker::connect_with_unix(socket, NET_SECONDS, bollard::API_DEFAULT_VERSION)
            .map_err(|error| AdapterError::from(fault("reach the daemon", error, socket)))?;
        let client = Self { docker, socket: socket.to_owned() };
        let docker =
            client.call(HELLO, "tell its version", client.docker.clone().negotiate_version()).await?;
        Ok(Self { docker, ..client })
    }

    /// Runs one call within `limit`. `doing` completes "Docker could not …".
    pub(super) async fn call<T>(
        &self,
        limit: Duration,
        doing: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Fault> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.fault(doing, error)),
            Err(_) => Err(Fault { doing, kind: Kind::Silent(limit) }),
        }
    }

    /// What an error of bollard means.
    pub(super) fn fault(&self, doing: &'static str, error: Error) -> Fault {
        fault(doing, error, &self.socket)
    }
}

fn fault(doing: &'static str, error: Error, socket: &str) -> Fault {
    let kind = match error {
        Error::DockerResponseServerError { status_code: 404, message } => Kind::Gone(message),
        Error::DockerResponseServerError { status_code: 409, message } => Kind::Conflict(message),
        Error::DockerResponseServerError { message, .. } => Kind::Refused(message),
        Error::DockerStreamError { error } => Kind::Refused(error),
        Error::RequestTimeoutError => Kind::Silent(Duration::from_secs(NET_SECONDS)),
        Error::SocketNotFoundError(_) => Kind::Unreachable(advice(socket, io::ErrorKind::NotFound)),
        other => match io_cause(&other) {
            Some(cause) => Kind::Unreachable(advice(socket, cause)),
            None => Kind::Refused(other.to_string()),
        },
    };
    Fault { doing, kind }
}

/// The input/output error at the bottom of `error`, if that is what it is.
fn io_cause(error: &Error) -> Option<io::ErrorKind> {
    // This variant hides itself from its own chain of sources.
    if let Error::IOError { err } = error {
        return Some(err.kind());
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = inner.source();
    }
    None
}

fn advice(socket: &str, cause: io::ErrorKind) -> String {
    match cause {
        io::ErrorKind::NotFound => format!(
            "there is no Docker socket at {socket}; install and start Docker (Debian: apt-get install docker.io, \
             then systemctl start docker), or use --adapter process"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "no permission to use the Docker socket {socket}; join its group (sudo usermod -aG docker $USER, then \
             log in again), or use --adapter process"
        ),
        other => format!(
            "the Docker daemon at {socket} does not answer ({other}); start it (systemctl start docker), or use \
             --adapter process"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_names_the_remedy() {
        let text = |error| AdapterError::from(fault("x", error, "/s")).to_string();
        assert!(text(Error::SocketNotFoundError("/s".into())).contains("systemctl start docker"));
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(text(Error::IOError { err: denied }).contains("usermod"));
        let refused = Error::DockerResponseServerError { status_code: 500, message: "no\n".into() };
        assert_eq!(text(refused), "Docker could not x: no");
    }

    #[tokio::test]
    async fn only_local_daemons() {
        let error = Client::open(Some("tcp://10.0.0.1:2375")).await.unwrap_err();
        assert!(
            matches!(error, AdapterError::Unavailable(_)) && error.to_string().contains("unix://"),
            "{error}"
        );
        let error = Client::open(Some("unix:///nonexistent/docker.sock")).await.unwrap_err();
        assert!(error.to_string().contains("there is no Docker socket at /nonexistent"), "{error}");
    }
}
