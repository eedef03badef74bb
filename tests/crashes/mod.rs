//! What tests of crashes and of concurrency share: stores and executors that are killed and started again at the same
//! address, clients that live with lost answers, and random choices that a seed repeats.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a harness that fails is a failed test")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;

use crate::common::shell::free_port;
use crate::common::{Home, LONG, Server, eventually, processes, signal};
use crate::servers::{Postgres, Redis};

/// `SplitMix64`: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    /// One of several from the same `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xA076_1D64_78BD_642F));
        random.draw();
        random
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `n` - 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }

    /// In so many of 100 cases.
    pub fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }

    pub fn millis(&mut self, most: u64) -> Duration {
        Duration::from_micros(self.below(most * 1000))
    }
}

/// `EXECUTOR_TEST_SEED`, or a new one; told, so that a failure can be tried again.
pub fn seed(test: &str) -> u64 {
    let seed = number("EXECUTOR_TEST_SEED", || {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
    });
    eprintln!("{test}: EXECUTOR_TEST_SEED={seed}");
    seed
}

/// A number in the environment.
pub fn number(name: &str, default: impl FnOnce() -> u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")),
        Err(_) => default(),
    }
}

/// Where executors keep state, durably.
pub enum Store {
    Sqlite,
    Postgres(Box<Postgres>),
    Redis(Box<Redis>),
    /// Somebody else's.
    At(String),
}

impl Store {
    pub fn postgres() -> Self {
        Self::Postgres(Box::new(Postgres::start(&[])))
    }

    pub fn redis() -> Self {
        Self::Redis(Box::new(Redis::durable()))
    }

    /// The flags of an executor that uses it.
    pub fn flags(&self) -> Vec<String> {
        let url = match self {
            Self::Sqlite => return Vec::new(),
            Self::Postgres(server) => server.url("postgres"),
            Self::Redis(server) => server.url(),
            Self::At(url) => url.clone(),
        };
        vec!["--store".into(), url]
    }

    /// Kills the server and starts it again. False: there is none of ours.
    pub fn crash(&self) -> bool {
        match self {
            Self::Sqlite | Self::At(_) => return false,
            Self::Postgres(server) => {
                server.kill();
                server.run();
            }
            Self::Redis(server) => {
                server.kill();
                server.run();
            }
        }
        true
    }
}

/// An executor that keeps its address and its data when it is killed.
pub struct Host {
    // Before the home, which kills what is left of it.
    server: Mutex<Server>,
    pub home: Home,
    flags: Vec<String>,
    address: String,
    secret: String,
}

impl Host {
    pub fn start(home: Home, store: &Store) -> Self {
        let port = free_port();
        let mut flags = store.flags();
        flags.extend(["--port".into(), port.to_string()]);
        let server = spawn(&home, &flags);
        let (address, secret) = (server.address().to_owned(), server.secret.clone().unwrap());
        Self { server: Mutex::new(server), home, flags, address, secret }
    }

    pub fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SIGKILL, and a new start; `starts` more are killed within so long.
    pub fn crash(&self, starts: &[Duration]) {
        let mut server = self.server();
        server.kill();
        for after in starts {
            let mut command = self.home.command();
            command.args(&self.flags).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            std::thread::sleep(*after);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        *server = spawn(&self.home, &self.flags);
    }

    /// SIGKILL for one of the instances. False: there is none now.
    pub fn crash_instance(&self, random: &mut Random) -> bool {
        let all = processes(self.home.data().join("run").to_str().unwrap());
        if all.is_empty() {
            return false;
        }
        signal(all[random.below(all.len() as u64) as usize], Signal::KILL);
        true
    }

    pub fn client(&self) -> Client {
        Client { address: self.address.clone(), secret: self.secret.clone(), stream: None }
    }
}

fn spawn(home: &Home, flags: &[String]) -> Server {
    let mut command = home.command();
    command.args(flags);
    home.spawn(command)
}

/// One connection at a time, made anew when it breaks.
pub struct Client {
    address: String,
    secret: String,
    stream: Option<BufReader<TcpStream>>,
}

/// What a request was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Recorded for an earlier request of the same key.
    pub replayed: bool,
    pub body: Vec<u8>,
}

/// What a client knows about a request.
#[derive(Debug, Clone)]
pub enum Outcome {
    Done(Answer),
    /// It was answered with an error that promises that nothing was changed.
    Refused(String),
    /// It may have been done, or may yet be.
    Unknown(String),
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Client {
    /// Waits until it is connected. What is sent after that may have arrived, whatever happens.
    pub fn ready(&mut self) {
        if self.stream.as_ref().is_some_and(|stream| ended(stream.get_ref())) {
            self.stream = None;
        }
        if self.stream.is_none() {
            let stream =
                eventually("the executor takes connections", || TcpStream::connect(&self.address).ok());
            stream.set_nodelay(true).unwrap();
            stream.set_write_timeout(Some(LONG)).unwrap();
            self.stream = Some(BufReader::new(stream));
        }
    }

    /// Sends a request without a body and waits for so long.
    pub fn send(&mut self, method: &str, target: &str, key: Option<&str>, patience: Duration) -> Outcome {
        self.ready();
        match self.exchange(method, target, key, patience) {
            Ok(answer) => judge(answer),
            Err(error) => {
                self.stream = None;
                Outcome::Unknown(error.to_string())
            }
        }
    }

    fn exchange(
        &mut self,
        method: &str,
        target: &str,
        key: Option<&str>,
        patience: Duration,
    ) -> io::Result<Answer> {
        let key = key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\nx-open-runtimes-secret: {}\r\ncontent-length: 0\r\n{key}\r\n",
            self.address, self.secret
        );
        let stream = self.stream.as_mut().expect("it is ready");
        stream.get_ref().set_read_timeout(Some(patience))?;
        stream.get_mut().write_all(head.as_bytes())?;
        let mut line = || {
            let mut line = String::new();
            // Half a line is the end of a connection as well.
            match stream.read_line(&mut line)? {
                _ if line.ends_with("\r\n") => Ok(line.trim_end().to_ascii_lowercase()),
                _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            }
        };
        let status = line()?[9..12].parse().unwrap();
        let (mut length, mut replayed) = (None, false);
        loop {
            match line()?.split_once(": ") {
                None => break,
                Some(("content-length", value)) => length = Some(value.parse().unwrap()),
                Some(("idempotent-replayed", _)) => replayed = true,
                Some(_) => {}
            }
        }
        let mut body = vec![0; length.expect("all answers here have a length")];
        stream.read_exact(&mut body)?;
        Ok(Answer { status, replayed, body })
    }
}

/// Whether the other side has closed.
fn ended(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let open = stream.peek(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    !open
}

/// What an answer promises. One that nothing here can cause is a mistake of the executor.
fn judge(answer: Answer) -> Outcome {
    if answer.status == 200 {
        return Outcome::Done(answer);
    }
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let document: Value = serde_json::from_str(&text).unwrap_or_default();
    let kind =
        document["type"].as_str().and_then(|kind| kind.strip_prefix("urn:executor:")).unwrap_or_default();
    let told = format!("{} {kind} {}", answer.status, document["part"].as_str().unwrap_or_default());
    match (kind, document["part"].as_str()) {
        ("state-conflict" | "instance-ended" | "cannot-start", _)
        | ("deadline", Some("function" | "adapter")) => Outcome::Refused(told),
        ("deadline" | "store-unavailable", _) => Outcome::Unknown(told),
        _ => panic!("an answer that nothing explains: {} {text}", answer.status),
    }
}
