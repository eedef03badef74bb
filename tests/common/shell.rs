//! What a person does at a shell: commands and what they print, lines that are pasted, an executor in a terminal.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Home, signal};

/// What a command left behind.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().expect("it ends by itself"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn run(home: &Home, args: &[&str]) -> Ran {
    ran(home.command().args(args))
}

/// Runs a command that must succeed; gives what it printed.
#[track_caller]
pub fn good(home: &Home, args: &[&str]) -> String {
    let ran = run(home, args);
    assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
    ran.out
}

/// Runs a command that must fail with code 1; gives the message.
#[track_caller]
pub fn bad(home: &Home, args: &[&str]) -> String {
    let ran = run(home, args);
    assert_eq!(ran.code, 1, "{args:?}: {}{}", ran.out, ran.err);
    ran.err
}

/// A port where nobody listens, below those that the kernel gives to other tests meanwhile.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 1000) as u16 * 20;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Runs a line in a shell as a user who pastes it, without a proxy in between.
#[track_caller]
pub fn paste(line: &str, env: &[(&str, &str)]) -> String {
    let ran = ran(Command::new("sh").args(["-c", line]).env("no_proxy", "*").envs(env.iter().copied()));
    assert_eq!(ran.code, 0, "{line}: {}", ran.err);
    ran.out
}

/// An executor that prints text; ended when dropped.
pub struct Printed {
    pub child: Child,
    pub lines: Vec<String>,
}

impl Printed {
    pub fn start(home: &Home, args: &[&str]) -> Self {
        let mut command = home.command();
        command.args(args).args(["--log-format", "text"]);
        if !args.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        Self::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut this = Self { child, lines: Vec::new() };
        for line in out.lines() {
            this.lines.push(line.unwrap());
            if this.lines.last().is_some_and(|line| line.starts_with("  try")) {
                return this;
            }
        }
        panic!("it ended after {:?}", this.lines);
    }

    /// What is printed after a word at the beginning of a line.
    #[track_caller]
    pub fn after(&self, word: &str) -> &str {
        let found = self.lines.iter().find_map(|line| line.trim_start().strip_prefix(word));
        found.unwrap_or_else(|| panic!("no {word} in {:?}", self.lines)).trim()
    }

    pub fn url(&self) -> &str {
        self.lines[0].rsplit_once(' ').unwrap().1
    }
}

impl Drop for Printed {
    fn drop(&mut self) {
        signal(self.child.id().cast_signed(), Signal::TERM);
        let end = Instant::now() + Duration::from_secs(15);
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn mode(path: impl AsRef<Path>) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
