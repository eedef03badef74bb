//! The harness of the black-box tests: a folder of functions, the real binary on a port of its own, and a client.
//!
//! A [`Home`] is a temporary folder with functions and data; [`Home::start`] runs the executor on it. A [`Server`] is
//! asked to end when it is dropped, and killed if it does not; what it logged is shown when the test panicked.
//! Nothing here sleeps to wait for something to happen: [`eventually`] asks until it did, up to a deadline.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a harness that fails is a failed test")]

pub mod client;
pub mod node;
pub mod shell;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub use client::{Conn, Outgoing, Reply};

/// Longer than anything here takes, also on a busy machine with two cores.
pub const LONG: Duration = Duration::from_mins(1);

/// Asks until there is an answer; panics after `limit`.
pub fn eventually_within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks until there is an answer; panics after a long time.
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    eventually_within(LONG, what, ask)
}

/// Runs `work` once per number at the same time and gives the results in order of the numbers.
pub fn at_once<T: Send>(n: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..n).map(|i| scope.spawn(move || work(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A temporary folder: functions in `functions`, data in `d`.
pub struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("functions")).unwrap();
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn functions(&self) -> PathBuf {
        self.path().join("functions")
    }

    pub fn data(&self) -> PathBuf {
        self.path().join("d")
    }

    /// A file of the test itself, for functions to write to.
    pub fn file(&self, name: &str) -> String {
        self.path().join(name).to_str().unwrap().to_owned()
    }

    /// What functions wrote to [`Home::file`], by line.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Writes a file of a function.
    pub fn write(&self, function: &str, file: &str, content: &str) -> &Self {
        let path = self.functions().join(function).join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    /// A function in Node. `manifest` goes below the runtime; `HOME_FILE` names a file it may write to.
    pub fn node(&self, name: &str, manifest: &str, code: &str) -> &Self {
        let (first, tables) = manifest.split_at(manifest.find('[').unwrap_or(manifest.len()));
        let env = format!("[env]\nHOME_FILE = \"{}\"\n", self.file(name));
        let manifest = match tables.split_once("[env]\n") {
            Some((before, after)) => format!("{first}\n{before}{env}{after}"),
            None => format!("{first}\n{env}{tables}"),
        };
        self.write(name, "index.mjs", code);
        self.write(
            name,
            "function.toml",
            &format!("runtime = \"node\"\nentrypoint = \"index.mjs\"\n{manifest}"),
        )
    }

    /// A function in Python.
    pub fn python(&self, name: &str, manifest: &str, code: &str) -> &Self {
        self.write(name, "main.py", code);
        self.write(
            name,
            "function.toml",
            &format!("runtime = \"python\"\nentrypoint = \"main.py\"\n{manifest}"),
        )
    }

    /// The binary with a clean environment and defaults that suit tests. Flags win over these.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_executor"));
        for (name, _) in std::env::vars() {
            if name.starts_with("EXECUTOR_")
                || name == "OPEN_RUNTIMES_SECRET"
                || name == "OPR_EXECUTOR_SECRET"
            {
                command.env_remove(name);
            }
        }
        command
            .current_dir(self.path())
            .env("EXECUTOR_FUNCTIONS", self.functions())
            .env("EXECUTOR_DATA", self.data())
            .env("EXECUTOR_ADAPTER", "process")
            .env("EXECUTOR_LOG_FORMAT", "json")
            .env("EXECUTOR_GRACE", "10s")
            .stdin(Stdio::null());
        command
    }

    /// Runs a subcommand to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// Starts the executor and waits until it serves.
    pub fn start(&self, flags: &[&str]) -> Server {
        let mut command = self.command();
        command.args(["--port", "0"]).args(flags);
        self.spawn(command)
    }

    /// Starts the executor as `command` says and waits until it serves.
    pub fn spawn(&self, mut command: Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let readers = vec![gather(stdout, &log), gather(stderr, &log)];
        let mut server = Server {
            child,
            readers,
            log,
            data: self.data(),
            url: String::new(),
            secret: None,
            admin: String::new(),
        };
        let serving = eventually("the executor serves", || {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "the executor ended instead of serving: {ended:?}\n{}", server.log());
            server.logged("serving").into_iter().next()
        });
        serving["url"].as_str().unwrap().clone_into(&mut server.url);
        let kept =
            |name: &str| std::fs::read_to_string(self.data().join(name)).ok().map(|s| s.trim().to_owned());
        server.secret = kept("secret");
        server.admin = kept("admin-secret").unwrap_or_default();
        server
    }
}

impl Drop for Home {
    /// Instances of a test that went wrong must not stay.
    fn drop(&mut self) {
        let mark = self.data().join("run").to_string_lossy().into_owned();
        for pid in processes(&mark) {
            signal(pid, Signal::KILL);
        }
    }
}

fn gather(from: impl Read + Send + 'static, log: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            let _ = writeln!(log.lock().unwrap(), "{line}");
        }
    })
}

/// A running executor.
pub struct Server {
    pub child: Child,
    readers: Vec<JoinHandle<()>>,
    log: Arc<Mutex<String>>,
    data: PathBuf,
    pub url: String,
    pub secret: Option<String>,
    pub admin: String,
}

impl Server {
    /// Host and port.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Everything it wrote so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Log lines whose message contains `text`.
    pub fn logged(&self, text: &str) -> Vec<Value> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"].as_str().is_some_and(|message| message.contains(text))).collect()
    }

    /// Waits for a log line.
    pub fn wait_log(&self, text: &str) -> Value {
        eventually(&format!("logged: {text}"), || self.logged(text).into_iter().next())
    }

    /// How many instances got ready so far.
    pub fn starts(&self, function: &str) -> usize {
        self.logged("instance ready").iter().filter(|line| line["function"] == function).count()
    }

    /// The number that `GET /_/health` gives.
    pub fn instances(&self) -> u64 {
        self.request("GET", "/_/health").send().json()["instances"].as_u64().unwrap()
    }

    /// What an execution wrote, as operators see it: `level: text`.
    pub fn execution(&self, id: &str) -> Vec<String> {
        eventually(&format!("the record of {id}"), || {
            let key = format!("Bearer {}", self.admin);
            let path = format!("/_/executions/{id}");
            let reply = self.request("GET", &path).header("authorization", &key).send();
            if reply.status == 404 {
                return None;
            }
            assert_eq!(reply.status, 200, "{}", reply.text());
            let record = reply.json();
            let lines = record["lines"].as_array().unwrap().iter();
            let show =
                |l: &Value| format!("{}: {}", l["level"].as_str().unwrap(), l["text"].as_str().unwrap());
            Some(lines.map(show).collect())
        })
    }

    /// Sends a signal to the executor.
    pub fn signal(&self, what: Signal) {
        signal(self.pid(), what);
    }

    /// Waits for its end; gives the exit code, or minus the signal.
    pub fn wait(&mut self) -> i32 {
        let status = eventually("the executor ends", || self.child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        status.code().unwrap_or_else(|| -status.signal().unwrap())
    }

    /// SIGTERM, and its exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            signal(self.pid(), if std::thread::panicking() { Signal::KILL } else { Signal::TERM });
            let end = Instant::now() + Duration::from_secs(15);
            while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- what the executor at {} wrote:\n{}----", self.url, self.log());
        }
    }
}

pub fn signal(pid: i32, what: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, what);
    }
}

/// Whether a process lives; a zombie does not.
pub fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rfind(')').is_some_and(|at| !matches!(stat[at + 1..].trim_start().chars().next(), Some('Z' | 'X')))
}

/// Living processes with `mark` in their command line or environment, the tests themselves excluded.
pub fn processes(mark: &str) -> Vec<i32> {
    let own = std::process::id().cast_signed();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|item| item.file_name().to_str()?.parse().ok());
    let has = |pid: i32, file: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.windows(mark.len()).any(|window| window == mark.as_bytes())
    };
    pids.filter(|pid| *pid != own && alive(*pid) && (has(*pid, "cmdline") || has(*pid, "environ"))).collect()
}
