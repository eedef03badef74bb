//! The real binary with the real Docker of this host, from outside.
//!
//! These tests fail where Docker does not answer or `debian:trixie-slim` is missing (docker/base-image.sh makes it); a
//! host without Docker leaves them out by name: `cargo test -- --skip docker_`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests")]

mod common;
#[allow(unreachable_pub, reason = "each test file uses a part of this")]
mod docker_common;

use std::collections::HashSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Conn, Home, Reply, at_once, eventually};
use docker_common::{Host, docker, repository};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Says in which container it is, sleeps, hangs, eats memory; `/busy` counts the calls that sleep.
const PROBE: &str = "
import { hostname } from 'node:os';
import { setTimeout } from 'node:timers/promises';
let busy = 0;
export default async function ({ req, res }) {
  switch (req.path) {
    case '/busy': return res.json({ busy });
    case '/sleep':
      busy += 1;
      await setTimeout(Number(req.query.ms));
      busy -= 1;
      return res.text(hostname());
    case '/loop': for (;;);
    case '/eat': {
      const hoard = [];
      for (;;) hoard.push(Buffer.alloc(8 << 20, 1));
    }
    default: return res.text(hostname());
  }
}
";

/// Milliseconds of one part in `Server-Timing`.
#[track_caller]
fn timing(reply: &Reply, part: &str) -> f64 {
    let header = reply.header("server-timing").unwrap_or_default();
    let parts = header.split(", ").filter_map(|item| item.split_once(";dur="));
    let found = parts.filter(|(name, _)| *name == part).find_map(|(_, value)| value.parse().ok());
    found.unwrap_or_else(|| panic!("no {part} in {header}"))
}

/// Begins a call that goes on until something happens to it.
fn call_that_sleeps(host: &Host, ms: u32) -> Conn {
    let call = host.request("GET", &format!("/probe/sleep?ms={ms}")).open();
    eventually("the call is under way", || Some(()).filter(|()| host.ok("/probe/busy").json()["busy"] == 1));
    call
}

fn until(what: &str, so: impl Fn() -> bool) {
    eventually(what, || so().then_some(()));
}

fn probe(manifest: &str) -> Home {
    let home = Home::new();
    home.node("probe", manifest, PROBE);
    home
}

const NONE: [String; 0] = [];

#[test]
fn docker_serves_the_examples_cold_then_warm() {
    let host = Host::examples(&[]);
    for name in ["hello", "hello-python"] {
        let cold = host.ok(&format!("/{name}"));
        assert!(timing(&cold, "cold") > 0.0, "{cold:?}");
        assert_eq!(cold.text(), "Hello, world!\n");
        let warm = host.ok(&format!("/{name}?name=Ada+L"));
        assert!(timing(&warm, "cold") == 0.0, "{warm:?}");
        assert_eq!(warm.text(), "Hello, Ada L!\n");
    }
    assert_eq!(host.request("GET", "/hello").without_secret().send().status, 401);
    let names = host.containers();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("executor-hello-python-")), "{names:?}");
}

#[test]
fn docker_bodies_and_streams_go_through() {
    let host = Host::examples(&[]);
    let words = host.post("/pool", "word ".repeat(400_000)).text();
    assert!(words.contains("400000"), "{words}");
    let events = host.ok("/events?n=3&ms=10").text();
    assert_eq!(events.matches("data:").count(), 3, "{events}");
    let html = host.post("/markdown", "# Title\n").text();
    assert!(html.contains("<h1>Title</h1>"), "{html}");
}

#[test]
fn docker_state_arrives_before_the_call_and_outlives_the_container() {
    let host = Host::examples(&[]);
    for n in 1..=3 {
        assert_eq!(host.ok("/counter?id=a").json()["n"], n);
        assert_eq!(host.ok("/visits/ada").json()["visits"], n);
    }
    assert_eq!(host.ok("/counter?id=b").json()["n"], 1);
    for name in host.containers() {
        docker(&["rm", "--force", &name]);
    }
    // A call that comes before the executor has noticed is told so.
    until("a call to a new container", || host.get("/counter?id=other").status == 200);
    assert_eq!(host.ok("/counter?id=a").json()["n"], 4);
    until("a call to a new container", || host.get("/visits/other").status == 200);
    assert_eq!(host.ok("/visits/ada").json()["visits"], 4);
}

#[test]
fn docker_lines_of_a_call_are_kept() {
    let home = Home::new();
    let node = "export default ({ res, log, error }) => {
        log('one'); error('two'); console.log('three'); return res.text('ok'); }";
    let python = "def main(context):\n    context.log('one')\n    context.error('two')\n    print('three')\n    \
                  return context.res.text('ok')\n";
    home.node("node", "", node).python("python", "", python);
    let host = Host::start(home, &[]);
    for name in ["node", "python"] {
        let reply = host.ok(&format!("/{name}"));
        let id = reply.header("x-request-id").unwrap();
        let mut lines = host.execution(id);
        lines.sort();
        assert_eq!(lines, ["error: two", "log: one", "native: three"], "{name}");
        let caller = host.get(&format!("/_/executions/{id}"));
        assert_eq!(caller.status, 401, "the callers' secret is not the operators'");
    }
}

#[test]
fn docker_killed_container_is_told_and_replaced() {
    let host = Host::start(probe("timeout = \"50s\""), &[]);
    let first = host.ok("/probe").text();
    let mut call = call_that_sleeps(&host, 40_000);
    docker(&["kill", &host.containers()[0]]);
    let reply = call.reply("GET");
    assert_eq!(reply.problem(), "502 instance-ended function");
    assert!(reply.detail().contains("was killed by signal 9"), "{}", reply.detail());
    let next = host.ok("/probe");
    assert!(timing(&next, "cold") > 0.0, "{next:?}");
    assert_ne!(next.text(), first);
    until("one container again", || host.containers().len() == 1);
}

#[test]
fn docker_endless_loop_is_ended_at_its_deadline_and_replaced() {
    let host = Host::start(probe("timeout = \"5s\""), &[]);
    let first = host.ok("/probe").text();
    let begun = Instant::now();
    assert_eq!(host.get("/probe/loop").problem(), "504 deadline function");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // A call within the grace may still meet the hanging instance.
    let next = eventually("a call to a new instance", || {
        let reply = host.get("/probe");
        assert!(reply.status == 200 || reply.problem() == "502 instance-ended function", "{}", reply.text());
        Some(reply).filter(|reply| reply.status == 200)
    });
    assert_ne!(next.text(), first);
    until("the old container is gone", || !host.containers().iter().any(|name| id(name).starts_with(&first)));
}

/// A container's id, of which its host name is the front; empty when it is gone.
fn id(container: &str) -> String {
    let output = Command::new("docker").args(["inspect", "--format", "{{.Id}}", container]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn docker_out_of_memory_is_told() {
    let host = Host::start(probe("memory = \"96MiB\"\ntimeout = \"50s\""), &[]);
    host.ok("/probe");
    let reply = host.get("/probe/eat");
    assert_eq!(reply.problem(), "502 instance-ended function");
    assert!(reply.detail().contains("ran out of its 96 MiB memory"), "{}", reply.detail());
    host.ok("/probe");
}

#[test]
fn docker_failed_start_is_told() {
    let home = Home::new();
    home.node("leaves", "", "process.exit(3);")
        .python("raises", "", "raise RuntimeError('no such table')\n")
        .write("old", "index.js", PROBE)
        .write("old", "function.toml", "runtime = \"node-18\"\n");
    let host = Host::start(home, &[]);
    for (name, problem, expected) in [
        ("leaves", "503 cannot-start adapter", ["exited with code 3", "while it was starting"]),
        ("raises", "503 cannot-start function", ["Failed to load module", "no such table"]),
        ("old", "503 cannot-start runtime", ["the function asks for node-18", "write runtime = \"node-20\""]),
    ] {
        let reply = host.get(&format!("/{name}"));
        assert_eq!(reply.problem(), problem, "{}", reply.text());
        assert!(expected.iter().all(|part| reply.detail().contains(part)), "{}", reply.detail());
        assert!(reply.header("retry-after").is_some());
    }
    until("nothing is left of it", || host.containers().is_empty());
}

#[test]
fn docker_restart_after_a_crash_removes_what_was_left() {
    let counter = "export default ({ res, state }) => {
        const n = (state.get() ?? 0) + 1; state.set(n); return res.json(n); }";
    let home = probe("timeout = \"50s\"");
    home.node("counter", "[state]\nkey = \"one\"\n", counter);
    let mut host = Host::start(home, &[]);
    assert_eq!(host.ok("/counter").json(), 1);
    let mut call = call_that_sleeps(&host, 40_000);
    host.kill();
    assert!(call.try_head().is_none());
    let left = host.containers();
    assert_eq!(left.len(), 2, "{left:?}");
    host.start_again();
    assert_eq!(host.containers(), NONE);
    assert_eq!(host.wait_log("that an earlier executor left behind")["instances"], 2);
    assert_eq!(host.folders_of_instances(), NONE);
    assert_eq!(host.ok("/counter").json(), 2);
}

#[test]
fn docker_sigterm_lets_calls_finish_and_removes_all() {
    let stop = "export async function start() { return 1 }
        export async function stop() { console.log('context stopped') }
        export default ({ res }) => res.text('ok')";
    let home = probe("");
    home.node("stops", "", stop);
    let mut host = Host::start(home, &[]);
    host.ok("/stops");
    host.ok("/probe");
    let mut call = call_that_sleeps(&host, 1_500);
    assert_eq!(host.containers().len(), 2);
    host.signal(Signal::TERM);
    assert_eq!(call.reply("GET").status, 200, "the call that was under way is answered");
    assert_eq!(host.wait(), 0);
    assert_eq!(host.containers(), NONE);
    assert_eq!(host.folders_of_instances(), NONE);
    assert_eq!(host.logged("context stopped").len(), 1);
}

#[test]
fn docker_sigterm_during_a_start_leaves_nothing() {
    let slow = "await new Promise((resolve) => setTimeout(resolve, 60_000)); export default ({ res }) => res.empty();";
    let home = Home::new();
    home.node("slow", "timeout = \"50s\"", slow);
    let mut host = Host::start(home, &["--grace", "1s"]);
    let call = host.request("GET", "/slow").open();
    until("its container", || host.containers().len() == 1);
    assert_eq!(host.stop(), 0);
    assert_eq!(host.containers(), NONE);
    drop(call);
}

#[test]
fn docker_burst_on_a_cold_function_starts_no_more_than_allowed() {
    let host = Host::start(probe("concurrency = 1\nmax-instances = 2\ntimeout = \"50s\""), &[]);
    let most = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let places: HashSet<String> = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(host.containers().len(), Ordering::Relaxed);
            }
        });
        let places = at_once(100, |_| host.get("/probe/sleep?ms=10"));
        over.store(true, Ordering::Relaxed);
        assert!(places.iter().all(|reply| reply.status == 200), "{places:?}");
        places.iter().map(Reply::text).collect()
    });
    assert!((1..=2).contains(&places.len()), "{places:?}");
    let most = most.into_inner();
    assert!(most <= 2, "{most} containers at once");
    assert!(host.starts("probe") <= 2);
}

/// What the code of a function can see and do, from inside.
const FACTS: &str = r"
import os, socket

def status():
    with open('/proc/self/status') as file:
        return dict(line.rstrip('\n').split(':\t', 1) for line in file if ':\t' in line)

def can_write(path):
    try:
        with open(path, 'w') as file:
            file.write('x')
        return True
    except OSError:
        return False

def room(path):
    size = 0
    try:
        with open(path, 'wb') as file:
            while size < 1 << 30:
                size += file.write(b'x' * (1 << 20))
                file.flush()
    except OSError:
        pass
    os.unlink(path)
    return size

def lines(path):
    with open(path) as file:
        return file.read().splitlines()

def main(context):
    return context.res.json({
        'user': [os.getuid(), os.geteuid(), os.getgid(), *os.getgroups()],
        'status': {key: value for key, value in status().items() if key.startswith(('Cap', 'NoNew', 'Seccomp'))},
        'written': [path for path in (
            '/x', '/etc/x', '/usr/local/server/x', '/usr/local/server/src/function/x', 'x', '/run/executor/x',
            '/var/tmp/x', '/proc/sys/kernel/hostname',
        ) if can_write(path)],
        'tmp': can_write('/tmp/x'),
        'room': room('/tmp/room'),
        'sockets': [path for path in ('/var/run/docker.sock', '/run/docker.sock') if os.path.exists(path)],
        'link': os.listdir('/run/executor'),
        'function': sorted(os.listdir('/usr/local/server/src/function')),
        'interfaces': [line.split(':')[0].strip() for line in lines('/proc/net/dev')[2:]],
        'routes': len(lines('/proc/net/route')) - 1,
        'localhost': socket.gethostbyname('localhost'),
        'environment': sorted(os.environ),
        'processes': sum(name.isdigit() for name in os.listdir('/proc')),
        'host': os.path.exists(context.req.body_text),
    })
";

/// Asks [`FACTS`] in a container of that network.
fn facts(network: &str) -> (Host, Value) {
    let home = Home::new();
    home.python("facts", "", FACTS);
    let host = Host::start(home, &["--network", network]);
    let reply = host.post("/facts", host.data().to_str().unwrap());
    println!("{}", reply.text());
    assert_eq!(reply.status, 200);
    let facts = reply.json();
    (host, facts)
}

#[test]
fn docker_functions_are_locked_in() {
    let (host, facts) = facts("none");
    let user = facts["user"].as_array().unwrap();
    assert!(!user.is_empty() && user.iter().all(|id| id.as_i64() > Some(999)), "{user:?}");
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(facts["status"][name], "0000000000000000", "{name}");
    }
    assert_eq!(facts["status"]["NoNewPrivs"], "1");
    assert_eq!(facts["status"]["Seccomp"], "2");
    assert_eq!(facts["written"], json!([]));
    assert_eq!(facts["tmp"], true);
    let room = facts["room"].as_u64().unwrap();
    assert!((1 << 20..=64 << 20).contains(&room), "/tmp takes {room} bytes");
    assert_eq!(facts["sockets"], json!([]));
    assert_eq!(facts["function"], json!(["function.toml", "main.py"]));
    assert_eq!(facts["host"], false, "the data folder of the host can be seen");
    assert!(facts["processes"].as_u64() < Some(5), "{facts}");
    for name in facts["environment"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        assert!(!name.starts_with("EXECUTOR_") && !name.starts_with("CARGO"), "{facts}");
    }
    assert_eq!(facts["interfaces"], json!(["lo"]));
    assert_eq!(facts["routes"], 0);
    assert_eq!(facts["localhost"], "127.0.0.1");

    // What cannot be seen from inside.
    let inspected: Value = serde_json::from_str(&docker(&["inspect", &host.containers()[0]])).unwrap();
    let limits = &inspected[0]["HostConfig"];
    assert_eq!((&limits["Memory"], &limits["MemorySwap"]), (&json!(256 << 20), &json!(256 << 20)));
    assert_eq!(limits["NanoCpus"], 1_000_000_000);
    assert!(limits["PidsLimit"].as_i64().is_some_and(|n| (1..=1024).contains(&n)), "{limits}");
    assert_eq!(limits["Privileged"], false);
    assert_eq!(limits["LogConfig"]["Config"]["max-size"], "1m");
}

#[test]
fn docker_bridge_gives_functions_a_way_out() {
    let (_host, facts) = facts("bridge");
    assert_eq!(facts["interfaces"].as_array().map(Vec::len), Some(2), "{facts}");
    assert!(facts["routes"].as_u64() > Some(0), "{facts}");
    let apart = "{{index .Options \"com.docker.network.bridge.enable_icc\"}}";
    assert_eq!(docker(&["network", "inspect", "--format", apart, "executor-functions"]), "false");
}

#[test]
fn docker_is_what_auto_takes() {
    let host = Host::examples(&["--adapter", "auto"]);
    let serving = host.wait_log("serving");
    assert_eq!(serving["adapter"], "docker", "{serving}");
    assert!(serving["why"].as_str().unwrap().contains("Docker answers"), "{serving}");
    host.ok("/hello");
    assert_eq!(host.containers().len(), 1);
}

#[test]
fn docker_that_does_not_answer_is_told() {
    for (address, advice) in [
        ("unix:///nonexistent/docker.sock", "there is no Docker socket at /nonexistent/docker.sock"),
        ("tcp://127.0.0.1:1", "only a daemon on this host will do"),
    ] {
        let home = Home::new();
        let command = |adapter: &str| {
            let mut command = home.command();
            command.env("DOCKER_HOST", address).args(["--port", "0", "--adapter", adapter]);
            command
        };
        let refused = command("docker").output().unwrap();
        let text = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(text.contains("--adapter docker: ") && text.contains(advice), "{text}");
        let server = home.spawn(command("auto"));
        let serving = server.wait_log("serving");
        assert_eq!(serving["adapter"], "process", "{serving}");
        assert!(serving["why"].as_str().unwrap().contains(advice), "{serving}");
    }
}

/// The images of one runtime; dropping it removes them.
struct Images(String);

impl Drop for Images {
    fn drop(&mut self) {
        let script = format!("docker images -q executor-runtime-{} | xargs -r docker rmi -f", self.0);
        let _ = Command::new("sh").args(["-c", &script]).output();
    }
}

#[test]
fn docker_missing_image_is_built_with_progress() {
    let name = format!("node{}", std::process::id());
    let images = Images(name.clone());
    let home = probe("");
    home.write("probe", "function.toml", &format!("runtime = \"{name}\"\nentrypoint = \"index.mjs\"\n"));
    let runtimes = home.path().join("runtimes");
    fs::create_dir(&runtimes).unwrap();
    let copy = runtimes.join(&name);
    let copied =
        Command::new("cp").arg("-r").arg(repository().join("runtimes/node")).arg(&copy).status().unwrap();
    assert!(copied.success());
    let worker = copy.join("src/worker.cjs");
    fs::write(&worker, fs::read_to_string(&worker).unwrap() + "// changed\n").unwrap();
    let mut host = Host::start(home, &["--runtimes", runtimes.to_str().unwrap()]);
    let told = |host: &Host| -> Vec<String> {
        let lines = host.logged("");
        let lines = lines.iter().filter(|line| line["target"] == "build" && line["runtime"] == *name);
        lines.map(|line| line["message"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(host.first("/probe").status, 200);
    let lines = told(&host);
    assert_eq!(lines.first().map(String::as_str), Some("building the image; this is done once"), "{lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some("the image is ready"), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("Step 1/")), "{lines:?}");
    let there = docker(&["images", "--format", "{{.Repository}}", &format!("executor-runtime-{name}")]);
    assert_eq!(there, format!("executor-runtime-{name}"));
    host.kill();
    host.start_again();
    host.ok("/probe");
    assert_eq!(told(&host), NONE, "it is built once");
    drop((host, images));
}
