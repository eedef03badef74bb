//! Commands beside the main process of a guest: how they run, and how they are ended.
//!
//! Docker starts commands but cannot end them. So each runs below a shell (`/bin/sh`, the one thing an image must have
//! for this) with a mark in its environment, and is ended by a second command, `end_command.sh`, that finds by
//! the mark, the session and the family tree all that it started, using nothing but what is built into shells.
//! A process escapes it only by all of: a new session, a new environment, and the death of its parent. Where the
//! second command fails (no free process in the guest, a shell that was removed) the whole guest is killed, because
//! a command must not outlive its limit.
//!
//! Invariant: a command whose caller has gone is ended or listed as a stray.

use std::sync::Arc;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::models::ContainerState;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::Shared;
use super::client::{ASK, Client, Fault, REMOVE, START};
use super::container::{Container, removed_by_others, runs};
use super::ledger::Stray;
use crate::adapter::AdapterError;
use crate::adapter::guest::{ExecError, Piece};
use crate::instance::Exit;

/// Looks at a state that Docker is about to know, and the pause between them.
const LOOKS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);
/// How the text begins that Docker gives in place of output when it could not start a command.
const REFUSAL: &[u8] = b"OCI runtime exec failed";
/// What a process ends with that is killed by signal 9: also the end of a container looks like this.
const KILLED: i64 = 137;

/// The shell stays as the parent, so that the mark is there even if the command clears its environment.
const WRAPPER: &str = "\"$@\"; exit $?";
const END: &str = include_str!("end_command.sh");
/// Variable with the mark.
const MARK: &str = "EXECUTOR_COMMAND";

/// A command that may be running, as much as is needed to end it.
#[derive(Debug, Clone)]
pub(super) struct Command {
    /// Id of its container.
    container: String,
    /// When the container was started; later ones do not have this command any more.
    started: Option<String>,
    mark: String,
}

/// See [`crate::adapter::guest::Guest::exec`].
pub(super) async fn run(
    container: &Container,
    words: &[String],
    limit: Duration,
    output: mpsc::Sender<Piece>,
) -> Result<i64, ExecError> {
    if words.is_empty() || words.iter().any(|word| word.contains('\0')) {
        let text = "a command is at least one word, and no word holds a zero byte";
        return Err(AdapterError::Failed(text.into()).into());
    }
    let mut guard = Guard { shared: &container.shared, command: None };
    if let Ok(result) = tokio::time::timeout(limit, follow(container, words, output, &mut guard)).await {
        return result;
    }
    if let Some(command) = guard.command.clone() {
        command.end(&container.shared.client).await;
        guard.command = None;
    }
    Err(ExecError::TimedOut(limit))
}

/// Lists the command as a stray when dropped with one: it may run.
struct Guard<'a> {
    shared: &'a Arc<Shared>,
    command: Option<Command>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(command) = self.command.take() {
            self.shared.ledger().strays.push(Stray::Command(command));
            self.shared.hurry();
        }
    }
}

async fn follow(
    container: &Container,
    words: &[String],
    output: mpsc::Sender<Piece>,
    guard: &mut Guard<'_>,
) -> Result<i64, ExecError> {
    let client = &container.shared.client;
    let mark = uuid::Uuid::new_v4().simple().to_string();
    let environment = vec![format!("{MARK}={mark}")];
    let command = Command { container: container.id().to_owned(), started: started(container).await?, mark };
    let shell = ["/bin/sh", "-c", WRAPPER, "sh"].map(str::to_owned);
    let words = shell.into_iter().chain(words.iter().cloned()).collect();
    let id = match create(client, container.id(), words, environment).await {
        Ok(id) => id,
        Err(fault) => return Err(lost(container, &command, fault).await),
    };
    guard.command = Some(command.clone());
    let result = attend(client, &id, Some(output)).await;
    if result.as_ref().map_or_else(Fault::is_answer, |_| true) {
        // It has ended or never began; after any other failure nobody knows.
        guard.command = None;
    }
    match result {
        Ok(End::Code(KILLED)) => {
            ended_meanwhile(container, &command).await.map_or(Ok(KILLED), |exit| Err(ExecError::Ended(exit)))
        }
        Ok(End::Code(code)) => Ok(code),
        Ok(End::Refused(text)) => Err(not_started(container.name(), &text).into()),
        Err(fault) => Err(lost(container, &command, fault).await),
    }
}

/// Creates a command in a container; it does not run yet.
async fn create(
    client: &Client,
    container: &str,
    words: Vec<String>,
    environment: Vec<String>,
) -> Result<String, Fault> {
    let options = CreateExecOptions {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(words),
        env: Some(environment),
        ..Default::default()
    };
    let create = client.docker.create_exec(container, options);
    Ok(client.call(START, "prepare a command in the container", create).await?.id)
}

/// How a command ended.
enum End {
    Code(i64),
    /// Docker could not start it; its words.
    Refused(String),
}

/// Starts a command and passes on what it writes, at the reader's pace: what is not read stays in the pipe, and the
/// command waits. Docker's word that it could not be started comes as output, too, and is told apart here.
async fn attend(client: &Client, id: &str, mut output: Option<mpsc::Sender<Piece>>) -> Result<End, Fault> {
    let start = client.docker.start_exec(id, None);
    let started = client.call(START, "start a command in the container", start).await?;
    // The other direction is not used: the command has no input.
    let StartExecResults::Attached { output: mut stream, input: _input } = started else {
        return exit_code(client, id).await.map(|(code, _)| End::Code(code));
    };
    let mut held: Option<Bytes> = None;
    let mut first = true;
    while let Some(piece) = stream.next().await {
        let piece = match piece.map_err(|error| client.fault("read what the command writes", error))? {
            LogOutput::StdErr { message } => Piece::Err(message),
            LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
                Piece::Out(message)
            }
        };
        match piece {
            Piece::Out(text) if first && text.starts_with(REFUSAL) => held = Some(text),
            piece => {
                pass_on(&mut output, held.take().map(Piece::Out)).await;
                pass_on(&mut output, Some(piece)).await;
            }
        }
        first = false;
    }
    let (code, began) = exit_code(client, id).await?;
    match held {
        Some(text) if !began => Ok(End::Refused(String::from_utf8_lossy(&text).into_owned())),
        held => {
            pass_on(&mut output, held.map(Piece::Out)).await;
            Ok(End::Code(code))
        }
    }
}

/// Once nobody listens any more, the rest is thrown away.
async fn pass_on(output: &mut Option<mpsc::Sender<Piece>>, piece: Option<Piece>) {
    if let (Some(open), Some(piece)) = (&*output, piece)
        && open.send(piece).await.is_err()
    {
        *output = None;
    }
}

/// The exit code of a command whose output has ended, and whether it ever began. Docker may take a moment to know; a
/// command that closes its output and goes on is waited for.
async fn exit_code(client: &Client, id: &str) -> Result<(i64, bool), Fault> {
    let mut looks = 0;
    loop {
        let state = client.call(ASK, "inspect the command", client.docker.inspect_exec(id)).await?;
        if let (Some(code), Some(false) | None) = (state.exit_code, state.running) {
            return Ok((code, state.pid.unwrap_or_default() != 0));
        }
        tokio::time::sleep(if looks < LOOKS { PAUSE } else { PAUSE * 10 }).await;
        looks += 1;
    }
}

fn not_started(name: &str, text: &str) -> AdapterError {
    let text = text.trim();
    let text = if text.contains("/bin/sh") && text.contains("no such file") {
        format!(
            "{name}: its image has no /bin/sh, without which no command can be run in it; use another image"
        )
    } else if text.is_empty() {
        format!("{name}: Docker could not start the command and does not say why")
    } else {
        format!("{name}: Docker could not start the command: {text}")
    };
    AdapterError::Failed(text.into())
}

/// When the container was started, if it runs.
async fn started(container: &Container) -> Result<Option<String>, ExecError> {
    match container.inspect(ASK).await {
        Ok(found) => {
            let state = found.state.unwrap_or_default();
            if state.running == Some(true) && state.restarting != Some(true) {
                return Ok(state.started_at);
            }
            Err(ExecError::Ended(container.tell(&state).await))
        }
        Err(fault) if fault.is_gone() => {
            Err(ExecError::Ended(container.exit().unwrap_or_else(removed_by_others)))
        }
        Err(fault) => Err(AdapterError::from(fault).into()),
    }
}

/// Why there is no command any more: the container's end, if it has ended, is the better reason.
async fn lost(container: &Container, command: &Command, fault: Fault) -> ExecError {
    if (fault.is_gone() || fault.is_conflict())
        && let Some(exit) = ended_meanwhile(container, command).await
    {
        return ExecError::Ended(exit);
    }
    match fault.message() {
        // Newer engines answer so, older ones in the output.
        Some(text) if text.as_bytes().starts_with(REFUSAL) => not_started(container.name(), text).into(),
        _ => AdapterError::from(fault).into(),
    }
}

/// The end of the run of the container in which `command` was started. Looks for a while, for Docker reports the end of
/// a command before that of its container.
async fn ended_meanwhile(container: &Container, command: &Command) -> Option<Exit> {
    for _ in 0..LOOKS / 2 {
        let state = match container.inspect(ASK).await {
            Ok(found) => found.state.unwrap_or_default(),
            Err(fault) if fault.is_gone() => {
                return Some(container.exit().unwrap_or_else(removed_by_others));
            }
            Err(_) => return None,
        };
        if !command.runs_in(&state) {
            if state.running == Some(true) && state.restarting != Some(true) {
                let reason = "ended and was started again".to_owned();
                return Some(Exit { reason, last_words: String::new() });
            }
            return Some(container.tell(&state).await);
        }
        tokio::time::sleep(PAUSE).await;
    }
    None
}

impl Command {
    /// Whether this is still the run of the container in which the command was started.
    fn runs_in(&self, state: &ContainerState) -> bool {
        runs(state) && state.restarting != Some(true) && state.started_at == self.started
    }

    /// Ends it with all that it started, if need be with its container.
    pub(super) async fn end(&self, client: &Client) {
        let inspect = client.docker.inspect_container(&self.container, None);
        match client.call(ASK, "inspect the container", inspect).await {
            Ok(found) if found.state.as_ref().is_some_and(|state| !self.runs_in(state)) => return,
            Err(fault) if fault.is_gone() => return,
            // If that does not answer, the next ones may.
            _ => {}
        }
        let why = match tokio::time::timeout(REMOVE, self.end_inside(client)).await {
            Ok(Ok(0)) => return,
            Ok(Ok(code)) => format!("what should end it ended with code {code}"),
            Ok(Err(fault)) => AdapterError::from(fault).to_string(),
            Err(_) => format!("it took more than {} s", REMOVE.as_secs()),
        };
        tracing::warn!(container = %self.container, %why, "a command could not be ended; its container is killed");
        let kill = client.docker.kill_container(&self.container, None);
        match client.call(REMOVE, "kill the container", kill).await {
            Err(fault) if !fault.is_gone() && !fault.is_conflict() => {
                let error = AdapterError::from(fault);
                tracing::error!(container = %self.container, %error, "the container of a command stays");
            }
            _ => {}
        }
    }

    async fn end_inside(&self, client: &Client) -> Result<i64, Fault> {
        let words = ["/bin/sh", "-c", END, "sh", &self.mark].map(str::to_owned).to_vec();
        let id = create(client, &self.container, words, Vec::new()).await?;
        // What it says about processes that go away while it looks is of no use.
        match attend(client, &id, None).await? {
            End::Code(code) => Ok(code),
            End::Refused(_) => Ok(126),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_shell_is_told_in_plain_words() {
        let docker = "OCI runtime exec failed: exec failed: unable to start container process: exec: \"/bin/sh\": \
                      stat /bin/sh: no such file or directory: unknown";
        assert!(not_started("g", docker).to_string().contains("its image has no /bin/sh"));
        assert!(not_started("g", "OCI runtime exec failed: x\r\n").to_string().ends_with("exec failed: x"));
        assert!(not_started("g", "").to_string().contains("does not say why"));
    }
}
