//! Runs hooks and commands, one after the other, and passes signals on.
//!
//! A step is the leader of a process group. SIGTERM and SIGINT are sent to the whole group, so that they
//! reach a server behind any number of shells; then the group may take as long as it needs, because the
//! deadline is the host's. Between steps a signal ends this process at once.
//!
//! We adopt orphans of the group: only then can its end be waited for.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, getpid, kill_process_group, set_child_subreaper, waitid,
    waitpgid,
};

use super::{Environment, LifecycleError, script};

const SIGNALS: [Signal; 2] = [Signal::TERM, Signal::INT];

#[derive(Default)]
struct State {
    /// The running step.
    group: Option<Pid>,
    /// What we were told.
    told: Option<Signal>,
}

/// Runs steps. There is one in a process.
pub(super) struct Steps {
    state: Arc<Mutex<State>>,
}

/// What happens with processes that a step leaves behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leftover {
    /// They go on: a hook may start something.
    Keep,
    /// They end with it.
    Kill,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn exit_code_of(signal: Signal) -> u8 {
    128_u8.saturating_add(u8::try_from(signal.as_raw()).unwrap_or(u8::MAX))
}

/// Waits for signals, as long as the process lives.
fn listen(state: &Mutex<State>, ready: &mpsc::Sender<io::Result<()>>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let _ = ready.send(Ok(()));
        loop {
            let told = tokio::select! {
                _ = terminate.recv() => SIGNALS[0],
                _ = interrupt.recv() => SIGNALS[1],
            };
            let mut state = lock(state);
            state.told = Some(told);
            match state.group {
                // The group may have ended just now.
                Some(group) => drop(kill_process_group(group, told)),
                None => std::process::exit(i32::from(exit_code_of(told))),
            }
        }
    })
}

impl Steps {
    /// Signals are taken from here on.
    pub(super) fn new() -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let (ready, is_ready) = mpsc::channel();
        let shared = state.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            if let Err(error) = listen(&shared, &ready) {
                let _ = ready.send(Err(error));
            }
        })?;
        is_ready.recv().map_err(io::Error::other)??;
        set_child_subreaper(Some(getpid()))?;
        Ok(Self { state })
    }

    /// Runs a hook of the language if it has one.
    pub(super) fn hook(
        &self,
        helpers: &Path,
        name: &str,
        folder: &Path,
        environment: &Environment,
    ) -> Result<(), LifecycleError> {
        let path = helpers.join(name);
        if !path.is_file() || script::is_empty(&path) {
            return Ok(());
        }
        let mut command = Command::new("bash");
        command.arg(&path);
        self.required(&format!("hook {name}"), &mut command, folder, environment)
    }

    /// Runs a command line with a shell.
    pub(super) fn shell(
        &self,
        step: &str,
        line: &str,
        folder: &Path,
        environment: &Environment,
    ) -> Result<(), LifecycleError> {
        self.required(step, &mut shell(line), folder, environment)
    }

    fn required(
        &self,
        step: &str,
        command: &mut Command,
        folder: &Path,
        environment: &Environment,
    ) -> Result<(), LifecycleError> {
        let child = self.spawn(command, folder, environment)?;
        let code = self.wait(&child, Leftover::Keep).map_err(super::at(folder))?;
        // A step that takes no notice of a signal does not make us go on.
        let code = match lock(&self.state).told {
            Some(signal) if code == 0 => exit_code_of(signal),
            _ => code,
        };
        if code == 0 { Ok(()) } else { Err(LifecycleError::Step { step: step.to_owned(), code }) }
    }

    /// Starts a step. [`Steps::wait`] must follow.
    pub(super) fn spawn(
        &self,
        command: &mut Command,
        folder: &Path,
        environment: &Environment,
    ) -> Result<Child, LifecycleError> {
        command.current_dir(folder).env_clear().envs(environment).stdin(Stdio::null()).process_group(0);
        // Held until the group is known: a signal meanwhile is passed on right after.
        let mut state = lock(&self.state);
        let child = command.spawn().map_err(|source| {
            let path = Path::new(command.get_program()).to_owned();
            LifecycleError::Io { path, source }
        })?;
        state.group = Pid::from_raw(child.id().cast_signed());
        Ok(child)
    }

    /// Waits for the step's leader, and, after a signal or with [`Leftover::Kill`], for its whole group.
    /// Gives the leader's exit code.
    pub(super) fn wait(&self, child: &Child, leftover: Leftover) -> io::Result<u8> {
        let Some(group) = Pid::from_raw(child.id().cast_signed()) else { return Ok(1) };
        let mut code = None;
        loop {
            // First without taking it: while it is there its number cannot be another's, and signals may be
            // sent.
            let gone = match waitid(WaitId::Pgid(Some(group)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
            {
                Ok(_) => false,
                Err(Errno::INTR) => continue,
                Err(Errno::CHILD) => true,
                Err(error) => return Err(error.into()),
            };
            let mut state = lock(&self.state);
            if !gone
                && let Ok(Some((pid, status))) = waitpgid(group, WaitOptions::NOHANG)
                && pid == group
            {
                let signal = status.terminating_signal().and_then(Signal::from_named_raw);
                let exited = status.exit_status().map_or(1, |code| code as u8);
                code = Some(signal.map_or(exited, exit_code_of));
                if state.told.is_none() && leftover == Leftover::Kill {
                    let _ = kill_process_group(group, Signal::KILL);
                }
            }
            let finished = leftover == Leftover::Keep && state.told.is_none() && code.is_some();
            if gone || finished {
                state.group = None;
                return Ok(code.unwrap_or(1));
            }
        }
    }
}

/// A command line for a shell: bash as in the images, or what there is.
pub(super) fn shell(line: &str) -> Command {
    let bash =
        ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"].iter().any(|path| Path::new(path).exists());
    let mut command = Command::new(if bash { "bash" } else { "sh" });
    command.arg("-c").arg(line);
    command
}
