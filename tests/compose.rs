//! `docker-compose up` as a user does it, with an image around the binary of this build.
//!
//! It fails where Docker, compose or `debian:trixie-slim` (docker/base-image.sh makes it) is missing.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests")]

mod common;
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]
mod docker_common;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use common::{eventually, eventually_within};
use docker_common::{BUILD, containers_of, docker, output, remove_containers_of, repository};
use serde_json::Value;
use tempfile::TempDir;

const SECRET: &str = "choose-your-own";

/// Where `.dockerignore` lets a binary through.
const BINARY: &str = "target/release/executor";

/// A clone of the repository as far as compose needs it, with a binary that was built on this host.
struct Clone {
    dir: TempDir,
    project: String,
    address: String,
}

impl Clone {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("executor-compose-").tempdir().unwrap();
        for name in ["docker", "functions", "docker-compose.yml", ".dockerignore"] {
            let copy = Command::new("cp").arg("-r").arg(repository().join(name)).arg(dir.path()).status();
            assert!(copy.unwrap().success(), "{name}");
        }
        fs::create_dir_all(dir.path().join("target/release")).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_executor"), dir.path().join(BINARY)).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let project = format!("executortest{}", std::process::id());
        Self { dir, project, address: free.to_string() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `docker compose …` in the clone, or `docker-compose …` where only the older tool is there.
    fn compose(&self, arguments: &[&str]) -> Command {
        let newer = Command::new("docker").args(["compose", "version"]).output();
        let newer = newer.is_ok_and(|output| output.status.success());
        let mut command = Command::new(if newer { "docker" } else { "docker-compose" });
        if newer {
            command.arg("compose");
        }
        command.args(arguments).current_dir(self.path()).env("PWD", self.path());
        command.env("COMPOSE_PROJECT_NAME", &self.project).env("EXECUTOR_PUBLISH", &self.address);
        command.env("EXECUTOR_BINARY", BINARY).env("OPEN_RUNTIMES_SECRET", SECRET);
        command.env_remove("COMPOSE_FILE").env_remove("COMPOSE_PROFILES").env_remove("EXECUTOR_RUST_IMAGE");
        command
    }

    /// The executor's own container.
    fn container(&self) -> String {
        output(&mut self.compose(&["ps", "-q", "executor"]))
    }

    fn until_healthy(&self) {
        let container = self.container();
        eventually("healthy", || {
            let health = docker(&["inspect", "--format", "{{.State.Health.Status}}", &container]);
            Some(()).filter(|()| health == "healthy")
        });
    }

    /// Calls a function: status and body. `None`: nobody answers.
    fn call(&self, function: &str, path: &str, secret: &str) -> Option<(u64, String)> {
        let mut invoke = Command::new(env!("CARGO_BIN_EXE_executor"));
        invoke.args(["invoke", function, "--path", path, "--json", "--secret", secret]);
        invoke.args(["--url", &format!("http://{}", self.address)]).current_dir(self.path());
        let output = invoke.output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        Some((answer["status"].as_u64()?, answer["body"].as_str()?.to_owned()))
    }

    /// Calls a function that must answer, also while the image of its runtime is still being built.
    fn good(&self, function: &str, path: &str) -> String {
        let (status, body) = eventually_within(BUILD, "an answer", || {
            self.call(function, path, SECRET).filter(|(status, _)| *status != 504)
        });
        assert_eq!(status, 200, "{function}{path}: {body}");
        body
    }

    fn functions(&self) -> Vec<String> {
        containers_of(&self.path().join("data"))
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.compose(&["logs", "--no-color"]).output();
            println!("{}", logs.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default());
        }
        let _ = self.compose(&["down", "--volumes", "--rmi", "local"]).output();
        remove_containers_of(&self.path().join("data"));
        // The stage that only carried the binary over.
        let stages = ["image", "prune", "--force", "--filter", "label=executor.stage=build"];
        let _ = Command::new("docker").args(stages).output();
    }
}

#[test]
fn docker_compose_up_serves_the_examples() {
    let clone = Clone::new();
    output(&mut clone.compose(&["up", "--detach", "--build"]));
    clone.until_healthy();

    assert_eq!(clone.call("hello", "/", "wrong").unwrap().0, 401);
    for name in ["hello", "hello-python"] {
        assert_eq!(clone.good(name, "/"), "Hello, world!\n");
    }
    for n in 1..=2 {
        assert_eq!(clone.good("counter", "/?id=a"), format!("{{\"id\":\"a\",\"n\":{n}}}"));
    }
    let functions = clone.functions();
    assert_eq!(functions.len(), 3, "{functions:?}");
    for name in &functions {
        let mounts = docker(&["inspect", "--format", "{{range .Mounts}}{{.Source}} {{end}}", name]);
        assert!(!mounts.contains("docker.sock"), "{mounts}");
    }

    // The executor itself dies; what it left is removed by the next one, and the state is still there.
    let container = clone.container();
    docker(&["kill", &container]);
    assert_eq!(clone.functions().len(), 3);
    docker(&["start", &container]);
    clone.until_healthy();
    assert_eq!(clone.functions(), Vec::<String>::new());
    assert_eq!(clone.good("counter", "/?id=a"), "{\"id\":\"a\",\"n\":3}");
    assert_eq!(clone.functions().len(), 1);

    let facts = output(&mut clone.compose(&[
        "exec",
        "-T",
        "executor",
        "sh",
        "-c",
        "grep CapEff /proc/1/status; touch /x 2>&1; executor invoke hello",
    ]));
    assert!(facts.contains("CapEff:\t0000000000000002"), "only DAC_OVERRIDE: {facts}");
    assert!(facts.contains("Read-only file system") && facts.contains("Hello, world!"), "{facts}");

    output(&mut clone.compose(&["down", "--volumes"]));
    assert_eq!(clone.functions(), Vec::<String>::new());
    assert!(clone.path().join("data/state.db").exists(), "the state outlives the containers");
    assert!(clone.call("hello", "/", SECRET).is_none());
}
