//! Instances as plain processes of this host, for machines without Docker.
//!
//! Each is the leader of its own process group, with a cleared environment, its own temporary folder, limits on
//! files and core dumps, and a watch on its memory. It runs as the executor's own user: that is isolation against
//! accidents, not against hostile code, and the README says so.
//!
//! Invariants: the first thing that is written about an instance is its `process.json`, so that a later executor can
//! find and end what this one left behind; every process it starts carries `EXECUTOR_INSTANCE` in its environment,
//! which is how descendants that left the group are found. Limits are set before any code of the function
//! runs, because the worker loads it only after INIT.

mod job;
mod locate;
mod tree;

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use self::locate::Programs;
use self::tree::{Leader, Marker, Orphans};
use super::job::Job;
use super::{Adapter, AdapterError, BoxFuture, Unit};
use crate::function::Function;
use crate::instance::{Exit, Launch};
use crate::runtime::Runtime;
use crate::task::Tasks;

/// The environment variable that marks every process of an instance.
const MARK: &str = "EXECUTOR_INSTANCE";
/// Bytes kept of what an instance writes outside calls.
const LAST_WORDS: usize = 4 << 10;
/// How often an instance's memory is looked at.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);
/// Open files of one instance.
const MAX_FILES: u64 = 4096;
/// A single file an instance writes may have this many bytes.
const MAX_FILE_SIZE: u64 = 1 << 30;
const RECORD: &str = "process.json";

/// Starts processes.
pub struct ProcessAdapter {
    run_folder: PathBuf,
    path: String,
    programs: Programs,
    tasks: Tasks,
    orphans: Arc<Orphans>,
}

impl ProcessAdapter {
    /// `run_folder`: where the instances' folders are; `path`: the `PATH` to look programs up in and to give to
    /// functions.
    pub fn new(run_folder: PathBuf, path: String) -> Self {
        // Orphans of instances become our children, so that none can hide from `kill` by changing its parent.
        if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            tracing::debug!("cannot become the reaper of orphaned processes: {error}");
        }
        let programs = Programs::new(path.clone());
        Self { run_folder, path, programs, tasks: Tasks::default(), orphans: Arc::default() }
    }

    /// Whether this host has the runtime; the path and version, or what to do about it.
    pub async fn locate(
        &self,
        runtime: &Runtime,
        version: Option<&str>,
    ) -> Result<(PathBuf, String), AdapterError> {
        self.programs.locate(runtime, version).await
    }

    async fn launch(&self, launch: &Launch) -> Result<ProcessUnit, AdapterError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            AdapterError::Failed(format!("{what}: {error}").into())
        };
        let function = &launch.function;
        let (program, _) = self.locate(&launch.runtime, function.runtime.version.as_deref()).await?;
        let worker = launch.runtime.folder.join(&launch.runtime.manifest.worker);
        let command = launch.runtime.manifest.command_line(
            &program.to_string_lossy(),
            &worker.to_string_lossy(),
            function.memory,
        );
        let Some((first, rest)) = command.split_first() else {
            return Err(AdapterError::Failed("runtime.toml has an empty command".into()));
        };
        let temporary = launch.folder.join("tmp");
        std::fs::create_dir_all(&temporary).map_err(|e| failed("cannot make the temporary folder", &e))?;
        let marker = Marker::new(&launch.id.to_string());
        let mut child = Command::new(first)
            .args(rest)
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", &temporary)
            .env("TMPDIR", &temporary)
            .env("LANG", "C.UTF-8")
            .env("EXECUTOR_LINK", &launch.socket)
            .env("EXECUTOR_TOKEN", launch.token.expose())
            .env(MARK, marker.value())
            .current_dir(&function.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(&format!("cannot start {first}"), &e))?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let Some(pid) = pid else { return Err(AdapterError::Failed("it ended at once".into())) };
        self.orphans.adopt(pid);
        set_limits(pid);
        let leader = Leader::of(pid);
        let json = serde_json::to_vec(&leader).unwrap_or_default();
        if let Err(error) = std::fs::write(launch.folder.join(RECORD), json) {
            let _ = child.start_kill();
            return Err(failed("cannot write the instance's record", &error));
        }
        let words = Words::default();
        if let Some(out) = child.stdout.take() {
            self.tasks.spawn("instance stdout", words.clone().gather(out, Arc::clone(&function.name)));
        }
        if let Some(err) = child.stderr.take() {
            self.tasks.spawn("instance stderr", words.clone().gather(err, Arc::clone(&function.name)));
        }
        let orphans = Arc::clone(&self.orphans);
        Ok(ProcessUnit {
            child,
            pid,
            leader,
            marker,
            words,
            memory: function.memory,
            exit: None,
            orphans,
            gone: false,
        })
    }
}

impl Adapter for ProcessAdapter {
    fn name(&self) -> &'static str {
        "process"
    }

    fn prepare<'a>(
        &'a self,
        runtime: &'a Runtime,
        version: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(async move { self.locate(runtime, version).await.map(drop) })
    }

    fn start<'a>(&'a self, launch: &'a Launch) -> BoxFuture<'a, Result<Box<dyn Unit>, AdapterError>> {
        Box::pin(async move { Ok(Box::new(self.launch(launch).await?) as Box<dyn Unit>) })
    }

    fn run_job<'a>(
        &'a self,
        job: &'a Job,
        output: mpsc::Sender<Bytes>,
    ) -> BoxFuture<'a, Result<i32, AdapterError>> {
        Box::pin(self.job(job, output))
    }

    fn code_directory(&self, function: &Function) -> String {
        function.folder.to_string_lossy().into_owned()
    }

    fn sweep(&self) -> BoxFuture<'_, Result<usize, AdapterError>> {
        let run_folder = self.run_folder.clone();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || sweep(&run_folder))
                .await
                .map_err(|e| AdapterError::Failed(format!("cannot look for left-over processes: {e}").into()))
        })
    }
}

/// Ends what a predecessor recorded in `run_folder`, and removes the folders; gives how many instances it ended.
/// Blocks for a short time.
pub fn sweep(run_folder: &std::path::Path) -> usize {
    let Ok(items) = std::fs::read_dir(run_folder) else { return 0 };
    let mut found = 0;
    for item in items.flatten() {
        let folder = item.path();
        let Some(id) = item.file_name().to_str().map(str::to_owned) else { continue };
        let marker = Marker::new(&id);
        let leader = std::fs::read(folder.join(RECORD)).ok();
        let leader = leader.and_then(|json| serde_json::from_slice(&json).ok());
        if tree::kill_all(&marker, leader) > 0 {
            found += 1;
        }
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            tracing::warn!(folder = %folder.display(), "could not remove a left-over folder: {error}");
        }
    }
    found
}

fn set_limits(pid: Pid) {
    let both = |n| Rlimit { current: Some(n), maximum: Some(n) };
    let limits = [(Resource::Nofile, MAX_FILES), (Resource::Core, 0), (Resource::Fsize, MAX_FILE_SIZE)];
    for (resource, limit) in limits {
        if let Err(error) = prlimit(Some(pid), resource, both(limit)) {
            tracing::debug!(?resource, "cannot limit an instance: {error}");
        }
    }
}

/// The end of what an instance wrote outside calls.
#[derive(Clone, Default)]
struct Words(Arc<Mutex<VecDeque<u8>>>);

impl Words {
    async fn gather(self, mut from: impl AsyncRead + Unpin, function: Arc<str>) {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..n]);
            tracing::debug!(target: "instance", %function, "{}", text.trim_end());
            let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            words.extend(&buffer[..n]);
            let excess = words.len().saturating_sub(LAST_WORDS);
            words.drain(..excess);
        }
    }

    fn text(&self) -> String {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = words.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

struct ProcessUnit {
    child: Child,
    pid: Pid,
    leader: Leader,
    marker: Marker,
    words: Words,
    memory: u64,
    exit: Option<String>,
    orphans: Arc<Orphans>,
    gone: bool,
}

impl ProcessUnit {
    fn told(&self) -> Exit {
        Exit { reason: self.exit.clone().unwrap_or_else(|| "ended".into()), last_words: self.words.text() }
    }

    async fn wait_or_outgrow(&mut self) {
        let mut interval = tokio::time::interval(MEMORY_INTERVAL);
        while self.exit.is_none() {
            tokio::select! {
                status = self.child.wait() => self.exit = Some(describe(status.ok())),
                _ = interval.tick() => {
                    let used = tree::memory(self.pid);
                    if used > self.memory {
                        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
                        let text = format!("used {} MiB of its {} MiB memory and was ended", mib(used), mib(self.memory));
                        let _ = self.child.start_kill();
                        self.exit = Some(text);
                    }
                }
            }
        }
        // What it wrote last may still be in the pipe.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn describe(status: Option<ExitStatus>) -> String {
    match status.map(|s| (s.code(), s.signal())) {
        Some((Some(code), _)) => format!("exited with code {code}"),
        Some((_, Some(signal))) => format!("was killed by signal {signal}"),
        _ => "ended".to_owned(),
    }
}

impl Unit for ProcessUnit {
    fn ended(&mut self) -> BoxFuture<'_, Exit> {
        Box::pin(async move {
            if self.exit.is_none() {
                self.wait_or_outgrow().await;
            }
            self.told()
        })
    }

    fn kill(&mut self) -> BoxFuture<'_, Exit> {
        Box::pin(async move {
            if !self.gone {
                let (marker, leader, orphans) = (self.marker.clone(), self.leader, Arc::clone(&self.orphans));
                let _ = tokio::task::spawn_blocking(move || {
                    tree::kill_all(&marker, Some(leader));
                    orphans.reap();
                })
                .await;
                let status = self.child.wait().await;
                self.exit.get_or_insert_with(|| describe(status.ok()));
                self.orphans.release(self.pid);
                self.gone = true;
            }
            self.told()
        })
    }
}

impl Drop for ProcessUnit {
    fn drop(&mut self) {
        if !self.gone {
            // Only on a cancelled start or a panic: short, and better than a process left alone.
            tree::kill_all(&self.marker, Some(self.leader));
            self.orphans.release(self.pid);
        }
    }
}
