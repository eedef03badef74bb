//! The images of languages, as hosts of Open Runtimes and people with compose use them. What they answer is in
//! `tests/conformance.rs`.
//!
//! These tests need Docker, `debian:trixie-slim` (docker/base-image.sh makes it) and compose, and fail without.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is a failed test")]

mod common;
#[path = "conformance/mod.rs"]
mod conformance;
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]
mod docker_common;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use common::{Home, eventually, signal};
use conformance::own;
use conformance::subject::{Language, Running, image};
use docker_common::{docker, output};
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn docker_an_image_has_what_hosts_expect() {
    for language in Language::all() {
        let image = image(&language);
        let facts: Value = serde_json::from_str(&docker(&["image", "inspect", &image])).unwrap();
        let config = &facts[0]["Config"];
        assert!(config["ExposedPorts"]["3000/tcp"].is_object(), "{config}");
        assert_eq!((&config["WorkingDir"], &config["User"]), (&"/usr/local/server".into(), &"root".into()));
        assert_eq!(config["Labels"]["executor.image"], language.name);
        let env: BTreeSet<_> =
            config["Env"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        for wanted in [
            "OPEN_RUNTIMES_SECRET=open_runtime_secret".to_owned(),
            format!("OPEN_RUNTIMES_ENTRYPOINT={}", language.entrypoint),
            format!("EXECUTOR_RUNTIME={}", language.name),
        ] {
            assert!(env.contains(&*wanted), "{wanted}: {env:?}");
        }
        let look = "cd /mnt && touch code/x logs/x telemetry/x resources/x /usr/local/build/x && \
                    ls -d /usr/local/server/src/function && test -x helpers/build.sh && test -x helpers/start.sh && \
                    command -v bash tar && ls /etc/ssl/certs/ca-certificates.crt && executor --version";
        let look = look.replacen("test -x", "cd /usr/local/server && test -x", 1);
        let said = docker(&["run", "--rm", &image, "bash", "-c", &look]);
        assert!(said.ends_with(concat!("executor ", env!("CARGO_PKG_VERSION"))), "{said}");
    }
}

#[test]
fn docker_without_code_the_image_says_so() {
    for language in Language::all() {
        let output = Command::new("docker").args(["run", "--rm", &image(&language)]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = [output.stdout, output.stderr].concat();
        assert!(String::from_utf8_lossy(&said).contains("Code archive not found."));
    }
}

/// The command lines of the two generations of hosts.
const COPIES: [&str; 2] = ["cp /tmp/code.tar.gz /mnt/code/code.tar.gz", "cp /tmp/code.* /mnt/code/"];

#[test]
fn docker_hosts_build_start_and_stop() {
    for (language, copy) in Language::all().iter().zip(COPIES.iter().cycle()) {
        let env =
            [("OPEN_RUNTIMES_ENTRYPOINT", language.entrypoint.as_str()), ("CUSTOM_ENV_VAR", "customValue")];
        let mut running = Running::as_hosts_do(language, "echo built > built.txt", copy, &env);
        let pid = running.server().pid();
        let subject = running.subject();
        let reply = subject.action("envVars").send();
        assert_eq!(reply.json()["var"], "customValue");
        let timings = subject.request("GET", "/__opr/timings").send();
        let keys: Vec<_> =
            timings.text().lines().filter_map(|l| Some(l.split_once('=')?.0.to_owned())).collect();
        assert_eq!(
            (timings.status, keys),
            (200, ["extract", "prepare", "startup"].map(str::to_owned).into())
        );
        own::finishes_what_runs(&subject, || signal(pid, Signal::TERM));
        assert_eq!(running.server().wait(), 0, "{}", language.name);
    }
}

#[test]
fn docker_a_folder_that_was_unpacked_is_linked() {
    for language in Language::all() {
        let running = Running::unpacked(&language, &[("OPEN_RUNTIMES_SECRET", "s")]);
        let subject = running.subject();
        let timings = subject.request("GET", "/__opr/timings").send().text();
        assert!(timings.starts_with("symlink="), "{timings}");
        own::load_failures(&subject);
    }
}

/// A copy of what compose needs of a language's folder.
struct Project {
    home: Home,
    name: String,
    address: String,
    image: String,
}

impl Project {
    fn new(language: &Language) -> Self {
        let home = Home::new();
        for part in ["docker-compose.yml", "example"] {
            output(Command::new("cp").arg("-r").arg(language.folder.join(part)).arg(home.path()));
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let name = format!("executorimage{}{}", language.name, std::process::id());
        Self { home, name, address: free.to_string(), image: image(language) }
    }

    /// `docker compose …`, or `docker-compose …` where only the older tool is there.
    fn compose(&self, arguments: &[&str]) -> Command {
        let newer = Command::new("docker").args(["compose", "version"]).output();
        let newer = newer.is_ok_and(|output| output.status.success());
        let mut command = Command::new(if newer { "docker" } else { "docker-compose" });
        if newer {
            command.arg("compose");
        }
        command.args(arguments).current_dir(self.folder()).env("PWD", self.folder());
        command
            .env("COMPOSE_PROJECT_NAME", &self.name)
            .env("PUBLISH", &self.address)
            .env("IMAGE", &self.image);
        command.env_remove("COMPOSE_FILE").env_remove("COMPOSE_PROFILES").env_remove("OPEN_RUNTIMES_SECRET");
        command
    }

    fn folder(&self) -> &Path {
        self.home.path()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _ = self.compose(&["down", "--volumes"]).output();
    }
}

#[test]
fn docker_compose_up_serves_the_example() {
    let site = Language::named("static");
    let about = std::fs::read_to_string(site.folder.join("example/public/about.html")).unwrap();
    let hello = "Hello, compose!\n".to_owned();
    let functions = Language::all().into_iter().map(|language| (language, "/?name=compose", hello.clone()));
    for (language, path, expected) in functions.chain([(site, "/about", about)]) {
        let project = Project::new(&language);
        output(&mut project.compose(&["up", "--detach"]));
        let container = output(&mut project.compose(&["ps", "-q"]));
        let url = format!("http://{}{path}", project.address);
        let text = eventually("it answers", || {
            let fetched = Command::new("curl").args(["--silent", "--fail", &url]).output().unwrap();
            fetched.status.success().then(|| String::from_utf8(fetched.stdout).unwrap())
        });
        assert_eq!(text, expected, "{}", language.name);
        output(&mut project.compose(&["stop"]));
        let ended = docker(&["inspect", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}", &container]);
        assert_eq!(ended, "0 false", "{}", language.name);
    }
}
