//! Real `PostgreSQL` and Redis servers, on free ports and in temporary folders, that can be killed and
//! started again.
//!
//! They come from Debian's packages `postgresql` and `redis-server`; a test fails where they are missing and
//! says so. Servers do not run as root (`PostgreSQL` refuses to): who is root runs them as `nobody`.

#![allow(unreachable_pub, dead_code, reason = "a part of the tests that take it in")]
#![allow(clippy::unwrap_used, reason = "a harness that fails is a failed test")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

/// What URLs have to encode.
pub const PASSWORD: &str = "s3cr+t/x@:%";
const NOBODY: u32 = 65_534;
const LONG: Duration = Duration::from_mins(1);

pub fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A folder that the server may write to.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    if getuid().is_root() {
        chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    folder
}

/// `program` as a user who is not root.
fn unprivileged(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(home).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).stdin(Stdio::null());
    if getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn spawned(command: &mut Command) -> Child {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    child.unwrap_or_else(|error| {
        panic!("{command:?}: {error}; can the user nobody enter TMPDIR ({})?", std::env::temp_dir().display())
    })
}

fn found(package: &str, program: &str, folders: impl IntoIterator<Item = PathBuf>) -> PathBuf {
    let mut candidates = folders.into_iter().map(|folder| folder.join(program));
    candidates
        .find(|candidate| candidate.exists())
        .unwrap_or_else(|| panic!("there is no {program}: apt-get install {package}"))
}

/// A program of `PostgreSQL`; the newest version wins.
fn postgres_program(program: &str) -> PathBuf {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort_unstable();
    found("postgresql", program, versions.into_iter().rev().map(|(_, folder)| folder))
}

fn redis_program(program: &str) -> PathBuf {
    found("redis-server", program, ["/usr/bin", "/usr/local/bin"].map(PathBuf::from))
}

/// A server's process: started, killed, stopped, and ended with its owner.
struct Process {
    child: Mutex<Option<Child>>,
    start: Box<dyn Fn() -> Child + Send + Sync>,
    ready: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Process {
    fn start(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let end = Instant::now() + LONG;
        while !(self.ready)() {
            assert!(Instant::now() < end, "the server does not start");
            // What a killed server left behind (memory, a port) may be in the way for a moment.
            let running = child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none());
            if !running {
                *child = Some((self.start)());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, what: Signal) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = Pid::from_child(child.as_ref().expect("it runs"));
        kill_process(pid, what).unwrap();
    }

    fn children(&self) -> Vec<Pid> {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(child) = &*child else { return Vec::new() };
        let path = format!("/proc/{0}/task/{0}/children", child.id());
        let pids = fs::read_to_string(path).unwrap_or_default();
        pids.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    }

    fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct Redis {
    process: Process,
    pub port: u16,
    password: Option<String>,
    _folder: TempDir,
}

impl Redis {
    /// A server with `flags` in its command line, that runs.
    pub fn start(flags: &[&str]) -> Self {
        let redis = Self::prepare(flags);
        redis.process.start();
        redis
    }

    /// A server that keeps every commit.
    pub fn durable() -> Self {
        Self::start(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// A server that does not run yet.
    pub fn prepare(flags: &[&str]) -> Self {
        let (program, folder, port) = (redis_program("redis-server"), folder(), free_port());
        let password =
            flags.iter().position(|flag| *flag == "--requirepass").map(|at| flags[at + 1].to_owned());
        let mut all: Vec<String> = ["--bind", "127.0.0.1", "--save", "", "--dir"].map(str::to_owned).into();
        all.push(folder.path().to_str().unwrap().to_owned());
        all.extend(["--port".to_owned(), port.to_string()]);
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let home = folder.path().to_owned();
        let start = move || {
            let mut command = unprivileged(&program, &home);
            spawned(command.args(&all))
        };
        let (own, secret) = (folder.path().to_owned(), password.clone());
        let ready = move || {
            let output = cli(port, secret.as_deref(), &own, &["ping"]);
            String::from_utf8_lossy(&output.stdout).contains("PONG")
        };
        let process = Process { child: Mutex::new(None), start: Box::new(start), ready: Box::new(ready) };
        Self { process, port, password, _folder: folder }
    }

    pub fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{}@127.0.0.1:{}/0", encoded(password), self.port),
            None => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Starts it and waits until it answers.
    pub fn run(&self) {
        self.process.start();
    }

    /// It takes connections but answers nothing, or goes on.
    pub fn freeze(&self, freeze: bool) {
        self.process.signal(if freeze { Signal::STOP } else { Signal::CONT });
    }

    /// One command; what it says.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = cli(self.port, self.password.as_deref(), Path::new("/"), arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn cli(port: u16, password: Option<&str>, home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(redis_program("redis-cli"));
    command.current_dir(home).args(["-p", &port.to_string()]).args(arguments).stdin(Stdio::null());
    if let Some(password) = password {
        command.env("REDISCLI_AUTH", password);
    }
    command.output().unwrap()
}

pub struct Postgres {
    process: Process,
    pub port: u16,
    _folder: TempDir,
    databases: AtomicU64,
    /// Empty ones: making a database is slow, and dropping one slower.
    free: Mutex<Vec<String>>,
}

impl Postgres {
    /// The server of all tests that run now.
    pub fn shared() -> Arc<Self> {
        static RUNNING: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = running.upgrade() {
            return server;
        }
        // It is never killed, so what it did need not be on the disk.
        let server = Arc::new(Self::start(&["fsync=off", "max_connections=300"]));
        *running = Arc::downgrade(&server);
        server
    }

    /// A server of one's own with `settings`, that runs.
    pub fn start(settings: &[&str]) -> Self {
        let server = Self::prepare(settings);
        server.process.start();
        server
    }

    /// A server that does not run yet.
    pub fn prepare(settings: &[&str]) -> Self {
        let (folder, port) = (folder(), free_port());
        let (data, secret) = (folder.path().join("data"), folder.path().join("password"));
        fs::write(&secret, PASSWORD).unwrap();
        let made = unprivileged(&postgres_program("initdb"), folder.path())
            .args(["--username", "ada", "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"])
            .args(["--no-sync", "--pgdata"])
            .arg(&data)
            .arg("--pwfile")
            .arg(&secret)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let program = postgres_program("postgres");
        let home = folder.path().to_owned();
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let start = move || {
            let mut command = unprivileged(&program, &home);
            command.arg("-D").arg(&data).args(["-p", &port.to_string()]).arg("-k").arg(&home);
            command.args(["-c", "listen_addresses=127.0.0.1"]);
            for setting in &settings {
                command.args(["-c", setting]);
            }
            spawned(&mut command)
        };
        let ready = move || psql(port, "postgres", "SELECT 1").status.success();
        let process = Process { child: Mutex::new(None), start: Box::new(start), ready: Box::new(ready) };
        Self { process, port, _folder: folder, databases: AtomicU64::new(0), free: Mutex::default() }
    }

    /// An empty database.
    pub fn database(self: &Arc<Self>) -> Database {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(name) = free {
            return Database { server: Arc::clone(self), name };
        }
        let name = format!("d{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        Database { server: Arc::clone(self), name }
    }

    /// The URL of a database, as the user who owns everything.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://ada:{}@127.0.0.1:{}/{database}", encoded(PASSWORD), self.port)
    }

    /// SIGKILL, its other processes included.
    pub fn kill(&self) {
        let children = self.process.children();
        self.process.kill();
        for child in children {
            let _ = kill_process(child, Signal::KILL);
        }
    }

    /// Starts it and waits until it answers.
    pub fn run(&self) {
        self.process.start();
    }

    /// What a statement answers, without decoration.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        let output = psql(self.port, database, statement);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Postgres {
    /// SIGQUIT, after which nothing of it stays in shared memory.
    fn drop(&mut self) {
        let mut child = self.process.child.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(child) = child.as_mut() else { return };
        let _ = kill_process(Pid::from_child(child), Signal::QUIT);
        let end = Instant::now() + Duration::from_secs(10);
        while child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn psql(port: u16, database: &str, statement: &str) -> Output {
    Command::new(postgres_program("psql"))
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "ada", "-d", database])
        .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement])
        .env("PGPASSWORD", PASSWORD)
        .env("PGCONNECT_TIMEOUT", "5")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// A database of one's own; what is in it is gone when dropped.
pub struct Database {
    pub server: Arc<Postgres>,
    pub name: String,
}

impl Database {
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    pub fn sql(&self, statement: &str) -> String {
        self.server.sql(&self.name, statement)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let clear = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE datname = current_database() AND pid <> pg_backend_pid();
                     DROP SCHEMA IF EXISTS executor CASCADE";
        if psql(self.server.port, &self.name, clear).status.success() {
            self.server.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.name.clone());
        }
    }
}
