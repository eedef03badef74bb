//! The folders of an image below a root of a test's own, and the real binary that works in them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

pub const STEPS: [&str; 7] = [
    "Environment preparation started.",
    "Environment preparation finished.",
    "Build command execution started.",
    "Build command execution finished.",
    "Build packaging started.",
    "Build packaging finished.",
    "Build finished.",
];

/// The folders of an image below a temporary root.
pub struct Image {
    pub root: TempDir,
    pub variables: BTreeMap<String, String>,
}

impl Image {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["mnt/code", "mnt/telemetry", "usr/local/build", "usr/local/server/helpers"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        Self { root, variables: BTreeMap::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn code(&self, name: &str) -> PathBuf {
        self.path("mnt/code").join(name)
    }

    pub fn function(&self, name: &str) -> PathBuf {
        self.path("usr/local/server/src/function").join(name)
    }

    pub fn set(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.variables.insert(name.to_owned(), value.as_ref().to_owned());
        self
    }

    pub fn with(self, name: &str, content: &str) -> Self {
        let path = self.code(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub fn hook(self, name: &str, script: &str) -> Self {
        fs::write(self.path("usr/local/server/helpers").join(name), script).unwrap();
        self
    }

    pub fn command(&self, what: &str, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_executor"));
        command.args(["lifecycle", what, line]).env("EXECUTOR_LIFECYCLE_ROOT", self.root.path());
        command.envs(&self.variables).stdin(Stdio::null());
        command
    }

    pub fn build(&self, line: &str) -> Output {
        self.command("build", line).output().unwrap()
    }

    pub fn start(&self, line: &str) -> Output {
        self.command("start", line).output().unwrap()
    }

    pub fn built(&self, line: &str) -> String {
        let output = self.build(line);
        assert!(output.status.success(), "{output:?}");
        out(&output)
    }

    pub fn started(&self, line: &str) -> String {
        let output = self.start(line);
        assert!(output.status.success(), "{output:?}");
        out(&output)
    }

    pub fn timings(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("mnt/telemetry/timings.txt")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let (name, seconds) = line.split_once('=').expect("a timing is name=seconds");
                assert!(seconds.parse::<f64>().unwrap() >= 0.0);
                name.to_owned()
            })
            .collect()
    }
}

pub fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
