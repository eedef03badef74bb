//! Jobs as processes: a shell with a cleared environment, in a process group of its own, killed with its
//! tree.
//!
//! It has a folder among those of the instances, with the same record, so that a later executor finds and
//! ends it the same way.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::process::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::tree::{self, Leader, Marker, Orphans};
use super::{MARK, MEMORY_INTERVAL, ProcessAdapter, RECORD, set_limits};
use crate::adapter::AdapterError;
use crate::adapter::job::Job;
use crate::instance::InstanceId;

/// Bytes read at once.
const PIECE: usize = 8 << 10;
/// After everything of a job is dead its pipes are at their end; somebody else may yet hold one.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A started job. Dropping it ends it with everything it started.
struct Running {
    child: Child,
    pid: Pid,
    leader: Leader,
    marker: Marker,
    folder: PathBuf,
    orphans: Arc<Orphans>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Short, and better than a process left alone.
        tree::kill_all(&self.marker, Some(self.leader));
        self.orphans.release(self.pid);
        // What it left in the background is waited for when the next instance ends.
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), "could not remove a job's folder: {error}");
        }
    }
}

impl ProcessAdapter {
    /// See [`crate::adapter::Adapter::run_job`].
    pub(super) async fn job(&self, job: &Job, output: mpsc::Sender<Bytes>) -> Result<i32, AdapterError> {
        let mut running = self.start_job(job).await?;
        let (Some(mut out), Some(mut err)) = (running.child.stdout.take(), running.child.stderr.take())
        else {
            return Err(failed("its output", &"is not there"));
        };
        let mut gather =
            std::pin::pin!(async { tokio::join!(pass_on(&mut out, &output), pass_on(&mut err, &output)) });
        let mut outgrew = None;
        let mut interval = tokio::time::interval(MEMORY_INTERVAL);
        let mut gathered = false;
        let status = loop {
            tokio::select! {
                status = running.child.wait() => break status,
                _ = &mut gather, if !gathered => gathered = true,
                _ = interval.tick(), if outgrew.is_none() => {
                    let used = tree::memory(running.pid);
                    if used > job.memory {
                        let _ = running.child.start_kill();
                        outgrew = Some(used);
                    }
                }
            }
        };
        let (marker, leader) = (running.marker.clone(), running.leader);
        let _ = tokio::task::spawn_blocking(move || tree::kill_all(&marker, Some(leader))).await;
        if !gathered {
            let _ = tokio::time::timeout(LAST_WORDS, gather).await;
        }
        if let Some(used) = outgrew {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            let text =
                format!("\nused {} MiB of its {} MiB memory and was ended\n", mib(used), mib(job.memory));
            let _ = output.send(text.into()).await;
        }
        status.map(code).map_err(|error| failed("cannot tell how it ended", &error))
    }

    async fn start_job(&self, job: &Job) -> Result<Running, AdapterError> {
        let (program, _) = self.locate(&job.runtime, job.version.as_deref()).await?;
        let id = InstanceId::new().to_string();
        let folder = self.run_folder.join(&id);
        let temporary = folder.join("tmp");
        std::fs::create_dir_all(&temporary).map_err(|e| failed("cannot make its temporary folder", &e))?;
        let marker = Marker::new(&id);
        // The version that the function will run with comes first.
        let path = match program.parent() {
            Some(parent) => format!("{}:{}", parent.display(), self.path),
            None => self.path.clone(),
        };
        let shown =
            |path: Option<&PathBuf>| path.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        let child = Command::new("/bin/sh")
            .args(["-c", &job.command])
            .env_clear()
            .env("PATH", path)
            .env("HOME", &temporary)
            .env("TMPDIR", &temporary)
            .envs(job.variables(&shown(job.certificates.as_ref()), &shown(job.cache.as_ref())))
            .env(MARK, marker.value())
            .current_dir(&job.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let pid = child.as_ref().ok().and_then(|child| Pid::from_raw(child.id()?.cast_signed()));
        let (child, pid) = match (child, pid) {
            (Ok(child), Some(pid)) => (child, pid),
            (child, _) => {
                let _ = std::fs::remove_dir_all(&folder);
                let why = child.err().map_or_else(|| "it ended at once".to_owned(), |e| e.to_string());
                return Err(failed("cannot start a shell", &why));
            }
        };
        self.orphans.adopt(pid);
        let (leader, orphans) = (Leader::of(pid), Arc::clone(&self.orphans));
        let running = Running { child, pid, leader, marker, folder, orphans };
        set_limits(pid);
        let json = serde_json::to_vec(&leader).unwrap_or_default();
        std::fs::write(running.folder.join(RECORD), json)
            .map_err(|e| failed("cannot write its record", &e))?;
        Ok(running)
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> AdapterError {
    AdapterError::Failed(format!("the build: {what}: {error}").into())
}

/// As shells tell it.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

async fn pass_on(from: &mut (impl AsyncRead + Unpin), to: &mpsc::Sender<Bytes>) {
    let mut buffer = BytesMut::with_capacity(PIECE);
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        // Nobody may listen any more; what is written must be read all the same, or the job would stop.
        let _ = to.send(buffer.split().freeze()).await;
        buffer.reserve(PIECE);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::adapter::Adapter;
    use crate::runtime::Runtimes;

    fn job(folder: &Path, command: &str) -> Job {
        let runtimes = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtimes");
        let runtime = Runtimes::open(Some(&runtimes), folder).unwrap().get("node").unwrap();
        Job {
            runtime,
            version: None,
            folder: folder.to_owned(),
            command: command.to_owned(),
            environment: vec![("GIVEN".into(), "yes".into())],
            memory: 256 << 20,
            cpus: 1.0,
            certificates: Some(folder.join("ca.pem")),
            cache: Some(folder.join("cache")),
        }
    }

    fn adapter(dir: &Path) -> ProcessAdapter {
        ProcessAdapter::new(dir.join("run"), crate::config::search_path())
    }

    async fn run(dir: &Path, command: &str) -> (i32, String) {
        let job = job(dir, command);
        let adapter = adapter(dir);
        let (sender, mut output) = mpsc::channel::<Bytes>(4);
        let gather = async {
            let mut all = Vec::new();
            while let Some(piece) = output.recv().await {
                all.extend_from_slice(&piece);
            }
            String::from_utf8(all).unwrap()
        };
        let (code, text) = tokio::join!(adapter.run_job(&job, sender), gather);
        let left = std::fs::read_dir(dir.join("run")).unwrap().count();
        assert_eq!(left, 0, "its own folder is gone");
        (code.unwrap(), text)
    }

    #[tokio::test]
    async fn output_exit_code_and_environment() {
        let dir = tempfile::tempdir().unwrap();
        let command = "pwd; node -p 1+1 2>/dev/null; echo $GIVEN $HOME $npm_config_cache $NODE_EXTRA_CA_CERTS $CARGO_PKG_NAME; \
                       echo bad >&2; echo made > made; exit 3";
        let (code, text) = run(dir.path(), command).await;
        let here = dir.path().display();
        assert_eq!(code, 3);
        // Two pipes: what came on the other one may stand anywhere.
        let text = text.replace("bad\n", "[bad]");
        assert!(text.contains("[bad]"), "{text}");
        let text = text.replace("[bad]", "");
        assert!(text.starts_with(&format!("{here}\n2\nyes {here}/run/")), "{text}");
        assert!(
            text.ends_with(&format!("/tmp {here}/cache/npm {here}/ca.pem\n")),
            "no variable of ours: {text}"
        );
        assert_eq!(std::fs::read_to_string(dir.path().join("made")).unwrap(), "made\n");
        assert_eq!(run(dir.path(), "kill -9 $$").await.0, 128 + 9);
    }

    #[tokio::test]
    async fn what_stays_in_the_background_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (code, text) = run(dir.path(), "setsid sleep 1000 & echo $! > pid; echo done").await;
        assert_eq!((code, &*text), (0, "done\n"));
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        assert!(!alive(&pid));
    }

    #[tokio::test]
    async fn too_much_memory_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let (code, text) =
            run(dir.path(), "node -e 'const a=[]; setInterval(() => a.push(Buffer.alloc(64<<20, 1)), 20)'")
                .await;
        assert_eq!(code, 137, "{text}");
        assert!(text.contains("of its 256 MiB memory and was ended"), "{text}");
    }

    #[tokio::test]
    async fn dropping_kills_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let job = job(dir.path(), "sleep 1000 & setsid sleep 1001 & echo $! > pid; echo up; wait");
        let adapter = adapter(dir.path());
        let (sender, mut output) = mpsc::channel::<Bytes>(4);
        tokio::select! {
            code = adapter.run_job(&job, sender) => panic!("it ended: {code:?}"),
            piece = output.recv() => assert_eq!(piece.unwrap(), "up\n"),
        }
        assert!(!alive(&std::fs::read_to_string(dir.path().join("pid")).unwrap()));
        assert_eq!(std::fs::read_dir(dir.path().join("run")).unwrap().count(), 0);
    }

    fn alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rfind(')').is_some_and(|at| !stat[at..].starts_with(") Z"))
    }
}
