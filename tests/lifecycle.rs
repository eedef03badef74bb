//! The executor's own life: shutting down, being killed, starting again, and functions that change meanwhile.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is a failed test")]

mod common;

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::node::{GATE, HELLO};
use common::{Conn, Home, Server, alive, at_once, eventually, eventually_within, processes, signal};
use rustix::process::Signal;

/// Everything that carries the mark of an instance of `home`.
fn instances(home: &Home) -> Vec<i32> {
    processes(home.data().join("run").to_str().unwrap())
}

/// A call that has begun and waits until there is a file `<name>.go`.
fn begun(home: &Home, server: &Server, name: &str, target: &str) -> Conn {
    let before = home.lines(name).len();
    let conn = server.request("GET", target).open();
    eventually("the call begins", || (home.lines(name).len() > before).then_some(()));
    conn
}

fn go(home: &Home, name: &str) {
    std::fs::write(home.file(&format!("{name}.go")), "").unwrap();
}

const CONTEXTS: &str = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
const write = (text) => fs.appendFileSync(process.env.HOME_FILE, text + '\n');
let n = 0;
export const start = () => { const id = `${process.pid}.${++n}`; write('start ' + id); return { id }; };
export const stop = async ({ id }) => { await sleep(10); write('stop ' + id); };
export default async ({ res, context }) => {
  write('begin ' + context.id);
  while (!fs.existsSync(process.env.HOME_FILE + '.go')) await sleep(5);
  return res.text('done');
};";

const CONTEXTS_PYTHON: &str = r#"
import itertools, os, time

numbers = itertools.count()
file = os.environ["FILE"]

def write(text):
    with open(file, "a") as out:
        out.write(text + "\n")

def start():
    id = f"{os.getpid()}.{next(numbers)}"
    write("start " + id)
    return {"id": id}

def stop(context):
    time.sleep(0.01)
    write("stop " + context["id"])

def main(context):
    write("begin " + context.context["id"])
    while not os.path.exists(file + ".go"):
        time.sleep(0.005)
    return context.res.text("done")
"#;

#[test]
fn sigterm_lets_running_calls_finish_and_stops_every_context() {
    let home = Home::new();
    let limits = "concurrency = 3\nmax-instances = 2\ntimeout = \"60s\"";
    home.node("node", limits, CONTEXTS);
    home.python("python", &format!("{limits}\n[env]\nFILE = \"{}\"", home.file("python")), CONTEXTS_PYTHON);
    let mut server = home.start(&["--grace", "60s"]);
    let mut conns = Vec::new();
    for name in ["node", "python"] {
        for _ in 0..6 {
            conns.push(server.request("GET", &format!("/{name}")).open());
        }
    }
    let with = |name: &str, word: &str| -> Vec<String> {
        let lines = home.lines(name);
        let mut ids: Vec<_> = lines.iter().filter_map(|l| l.strip_prefix(word)).map(str::to_owned).collect();
        ids.sort();
        ids
    };
    for name in ["node", "python"] {
        eventually("all calls run", || (with(name, "begin ").len() == 6).then_some(()));
    }
    assert!(instances(&home).len() >= 4, "{:?}", instances(&home));
    server.signal(Signal::TERM);
    server.wait_log("shutting down");
    for name in ["node", "python"] {
        assert_eq!(with(name, "stop "), Vec::<String>::new(), "not while they run");
        go(&home, name);
    }
    for conn in &mut conns {
        let reply = conn.reply("GET");
        assert_eq!((reply.status, reply.text().as_str()), (200, "done"));
    }
    assert_eq!(server.wait(), 0);
    for name in ["node", "python"] {
        assert_eq!(with(name, "start ").len(), 6, "{name}");
        assert_eq!(with(name, "start "), with(name, "stop "), "{name}");
    }
    assert_eq!(instances(&home), [] as [i32; 0]);
    assert_eq!(std::fs::read_dir(home.data().join("run")).unwrap().count(), 0, "no folders are left");
    assert!(!home.data().join("executor.json").exists());
}

#[test]
fn sigint_is_as_good() {
    let home = Home::new();
    let mut server = home.node("hello", "", HELLO).start(&[]);
    server.ok("/hello");
    server.signal(Signal::INT);
    assert_eq!(server.wait(), 0);
    assert_eq!(instances(&home), [] as [i32; 0]);
}

#[test]
fn a_call_longer_than_the_grace_does_not_keep_the_executor() {
    let code = r"
import fs from 'node:fs';
export default async ({ req }) => {
  fs.appendFileSync(process.env.HOME_FILE, 'begin\n');
  while (req.path === '/loop');
  await new Promise((done) => setTimeout(done, 1e6));
};";
    for path in ["wait", "loop"] {
        let home = Home::new();
        let mut server = home.node("f", "timeout = \"1h\"", code).start(&["--grace", "1s"]);
        let mut conn = begun(&home, &server, "f", &format!("/f/{path}"));
        let since = Instant::now();
        assert_eq!(server.stop(), 0, "{path}");
        let took = since.elapsed();
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(15), "{path}: {took:?}");
        assert!(server.log().contains("at the end of the grace"), "{path}");
        assert!(conn.try_head().is_none_or(|head| head.status >= 500), "{path}");
        assert_eq!(instances(&home), [] as [i32; 0], "{path}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let home = Home::new();
    let mut server = home.node("gate", "timeout = \"1h\"", GATE).start(&["--grace", "1h"]);
    let _conn = begun(&home, &server, "gate", "/gate");
    let pid = server.pid();
    server.signal(Signal::TERM);
    server.wait_log("shutting down");
    assert!(alive(pid), "one signal waits for the call");
    let since = Instant::now();
    eventually("it ends", || {
        server.signal(Signal::TERM);
        (!alive(pid)).then_some(())
    });
    assert_eq!(server.wait(), 130);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    eventually("its instances end by themselves", || instances(&home).is_empty().then_some(()));
}

#[test]
fn new_calls_are_refused_while_it_drains() {
    let home = Home::new();
    home.node("gate", "timeout = \"60s\"", GATE).node("hello", "", HELLO);
    let mut server = home.start(&["--grace", "60s"]);
    let hello = server.request("GET", "/hello").keep_alive();
    let mut idle = server.connect();
    assert_eq!(hello.send_on(&mut idle).status, 200);
    let mut fresh = server.connect();
    let mut half = server.connect();
    let (first, rest) = (&hello.head()[..20], &hello.head()[20..]);
    half.write(first);
    // The half has arrived when a later request is answered.
    assert_eq!(hello.send_on(&mut idle).status, 200);
    // On a connection that may be used again: its next request comes while the executor drains.
    let mut running = server.connect();
    let request = server.request("GET", "/gate").keep_alive();
    running.write(request.head());
    eventually("the call begins", || (!home.lines("gate").is_empty()).then_some(()));

    server.signal(Signal::TERM);
    server.wait_log("shutting down");
    eventually("new connections are refused", || TcpStream::connect(server.address()).err());
    half.write(rest);
    let refused = half.reply("GET");
    assert_eq!(refused.problem(), "503 shutting-down front");
    let after: u64 = refused.header("retry-after").expect("when to come again").parse().unwrap();
    assert!((1..=60).contains(&after), "{after}");
    assert!(idle.closes() && fresh.closes(), "idle connections are closed");
    let _ = running.try_write(hello.head());
    go(&home, "gate");
    let reply = running.reply("GET");
    assert_eq!((reply.status, reply.text().as_str()), (200, "done"));
    if let Some(next) = running.try_head() {
        assert_eq!(next.status, 503);
    }
    assert_eq!(server.wait(), 0);
}

#[test]
fn a_call_that_waits_for_its_entity_is_served_before_the_end() {
    let code = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
export default async ({ res, state }) => {
  const n = (state.get() ?? 0) + 1;
  state.set(n);
  fs.appendFileSync(process.env.HOME_FILE, 'begin\n');
  while (!fs.existsSync(process.env.HOME_FILE + '.go')) await sleep(5);
  return res.text(String(n));
};";
    let home = Home::new();
    home.node("f", "timeout = \"60s\"\n[state]\nkey = \"all\"", code);
    let mut server = home.start(&["--grace", "60s"]);
    let mut first = begun(&home, &server, "f", "/f");
    // Expecting 100 shows that the second one has been taken in.
    let second = server.request("POST", "/f").header("expect", "100-continue").header("content-length", "1");
    let mut second = second.open();
    assert_eq!(second.head().status, 100);
    second.write("x");
    std::thread::sleep(Duration::from_millis(100));
    server.signal(Signal::TERM);
    server.wait_log("shutting down");
    go(&home, "f");
    assert_eq!(first.reply("GET").text(), "1");
    let reply = second.reply("POST");
    assert_eq!((reply.status, reply.text().as_str()), (200, "2"));
    assert_eq!(server.wait(), 0);
}

#[test]
fn after_kill_9_nothing_of_the_instances_stays() {
    let node = r"
import fs from 'node:fs';
import { execSync } from 'node:child_process';
export default async ({ req }) => {
  const sleeper = Number(execSync('setsid sleep 1000 > /dev/null 2>&1 & echo $!'));
  fs.appendFileSync(process.env.HOME_FILE, `${process.pid}\n${sleeper}\n`);
  while (req.path === '/loop');
  await new Promise((done) => setTimeout(done, 1e6));
};";
    let python = r#"
import os, subprocess, time
def main(context):
    sleeper = subprocess.check_output(["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & echo $!"], text=True)
    with open(os.environ["FILE"], "a") as file:
        file.write(f"{os.getpid()}\n{sleeper}")
    while context.req.path == "/loop":
        pass
    time.sleep(1000)
"#;
    let home = Home::new();
    home.node("node", "concurrency = 1", node).node("loop", "", node);
    home.python("python", &format!("[env]\nFILE = \"{}\"", home.file("python")), python);
    home.python("python-loop", &format!("[env]\nFILE = \"{}\"", home.file("python-loop")), python);
    let mut server = home.start(&[]);
    let cases = [
        ("node", "/node"),
        ("python", "/python"),
        ("loop", "/loop/loop"),
        ("python-loop", "/python-loop/loop"),
    ];
    let _conns: Vec<_> = cases.iter().map(|(_, target)| server.request("GET", target).open()).collect();
    let started = cases.map(|(name, _)| {
        eventually("it runs", || {
            let pids: Vec<i32> = home.lines(name).iter().map(|line| line.parse().unwrap()).collect();
            <[i32; 2]>::try_from(pids).ok()
        })
    });
    server.kill();
    for ((name, _), [worker, sleeper]) in cases.iter().zip(started) {
        // A Node that never returns to its loop cannot see that its host is gone.
        if *name != "loop" {
            eventually_within(Duration::from_secs(20), &format!("the worker of {name} ends"), || {
                (!alive(worker)).then_some(())
            });
        }
        assert!(alive(sleeper), "{name}: nobody has told it to end");
    }
    let server = home.start(&[]);
    for ((name, _), pids) in cases.iter().zip(started) {
        assert_eq!(pids.map(alive), [false, false], "{name}: removed before it serves again");
    }
    assert_eq!(instances(&home), [] as [i32; 0]);
    let told = server.wait_log("left behind");
    assert_eq!(told["instances"], 4, "{told}");
    assert_eq!(std::fs::read_dir(home.data().join("run")).unwrap().count(), 0);
}

#[test]
fn what_a_function_detached_ends_with_its_instance() {
    let code = r"
import { execSync } from 'node:child_process';
export default ({ res }) => {
  const sleeper = Number(execSync('setsid sleep 1000 > /dev/null 2>&1 & echo $!'));
  return res.text(String(sleeper));
};";
    let home = Home::new();
    let mut server = home.node("f", "", code).start(&[]);
    let sleeper: i32 = server.ok("/f").text().parse().unwrap();
    assert!(alive(sleeper));
    assert_eq!(server.stop(), 0);
    assert!(!alive(sleeper));
}

#[test]
fn one_executor_per_data_folder() {
    let home = Home::new();
    let mut server = home.node("hello", "", HELLO).start(&[]);
    server.ok("/hello");
    let second = home.run(&["--port", "0"]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("in use by another executor") && said.contains("--data"), "{said}");
    assert!(said.contains(home.data().to_str().unwrap()), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    server.ok("/hello");
    let other = Home::new();
    let third = other.run(&["--port", "0", "--data", home.data().to_str().unwrap()]);
    assert_eq!(third.status.code(), Some(1));
    assert_eq!(server.starts("hello"), 1, "the first one keeps its instance");
    server.ok("/hello");
    server.kill();
    home.start(&[]).ok("/hello");
}

#[test]
fn a_call_goes_on_when_its_client_leaves() {
    let code = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
export default async ({ req, res, state }) => {
  if (req.path === '/get') return res.text(String(state.get() ?? 0));
  state.set((state.get() ?? 0) + 1);
  fs.appendFileSync(process.env.HOME_FILE, 'begin\n');
  while (!fs.existsSync(process.env.HOME_FILE + '.go')) await sleep(5);
  fs.appendFileSync(process.env.HOME_FILE, 'end\n');
  return res.text('done');
};";
    let home = Home::new();
    home.node("kept", "[state]\nkey = \"all\"", code).node("gate", "", GATE);
    let mut server = home.start(&[]);
    for name in ["kept", "gate"] {
        drop(begun(&home, &server, name, &format!("/{name}")));
    }
    let waiting = server.request("GET", "/kept/get");
    let mut waiting = waiting.open();
    for name in ["kept", "gate"] {
        go(&home, name);
        eventually("it goes on", || (home.lines(name) == ["begin", "end"]).then_some(()));
    }
    assert_eq!(waiting.reply("GET").text(), "1", "and its state is kept");
    assert_eq!(server.starts("kept"), 1, "the instance stays");

    // Also when the executor is asked to leave right then.
    for name in ["kept", "gate"] {
        std::fs::remove_file(home.file(&format!("{name}.go"))).unwrap();
        drop(begun(&home, &server, name, &format!("/{name}")));
    }
    server.signal(Signal::TERM);
    server.wait_log("shutting down");
    go(&home, "kept");
    go(&home, "gate");
    assert_eq!(server.wait(), 0);
    for name in ["kept", "gate"] {
        assert_eq!(home.lines(name), ["begin", "end", "begin", "end"], "{name}");
    }
    assert_eq!(home.start(&[]).ok("/kept/get").text(), "2");
}

/// A version that takes a moment for each call.
fn versioned(n: usize) -> String {
    format!(
        "import {{ setTimeout as sleep }} from 'node:timers/promises';
export default async ({{ res }}) => {{ await sleep(3); return res.text('{n}'); }};"
    )
}

fn versioned_python(n: usize) -> String {
    format!("import time\ndef main(context):\n    time.sleep(0.003)\n    return context.res.text('{n}')\n")
}

#[track_caller]
fn until(server: &Server, target: &str, body: &str) {
    eventually(&format!("{target} answers {body}"), || (server.ok(target).text() == body).then_some(()));
}

#[test]
fn a_reload_under_load_drops_no_call() {
    const LAST: usize = 3;
    let home = Home::new();
    // One instance per version: a further one of the old version would load the new code from the same folder.
    home.node("node", "max-instances = 1", &versioned(1));
    home.python("python", "max-instances = 1", &versioned_python(1));
    let server = home.start(&["--watch=on"]);
    let stop = AtomicBool::new(false);
    let calls = [const { AtomicUsize::new(0) }; 4];
    let seen = at_once(5, |i| {
        let name = ["node", "python"][i % 2];
        if i == 4 {
            for n in 2..=LAST {
                eventually("everybody calls", || {
                    let busy = calls.iter().all(|calls| calls.load(Ordering::Relaxed) >= 10 * n);
                    (busy || stop.load(Ordering::Relaxed)).then_some(())
                });
                home.write("node", "index.mjs", &versioned(n));
                home.write("python", "main.py", &versioned_python(n));
                until(&server, "/node", &n.to_string());
                until(&server, "/python", &n.to_string());
            }
            stop.store(true, Ordering::Relaxed);
            return Vec::new();
        }
        let mut seen = Vec::new();
        let mut conn = server.connect();
        while !stop.load(Ordering::Relaxed) && !std::thread::panicking() {
            let reply = server.request("GET", &format!("/{name}")).keep_alive().send_on(&mut conn);
            if reply.status != 200 {
                stop.store(true, Ordering::Relaxed);
                panic!("{name}: {} {}", reply.status, reply.text());
            }
            seen.push(reply.text().parse::<usize>().unwrap());
            calls[i].store(seen.len(), Ordering::Relaxed);
        }
        seen
    });
    for seen in &seen[..4] {
        assert!(seen.is_sorted(), "nobody sees an older version after a newer one: {seen:?}");
        assert_eq!((seen.first(), seen.last()), (Some(&1), Some(&LAST)), "of {}", seen.len());
    }
    eventually("the old versions' instances end", || (server.instances() == 2).then_some(()));
}

#[test]
fn a_running_call_finishes_on_the_version_it_began_on() {
    let home = Home::new();
    let server = home.node("gate", "timeout = \"60s\"", GATE).start(&["--watch=on"]);
    let mut old = begun(&home, &server, "gate", "/gate");
    home.write("gate", "index.mjs", HELLO);
    until_hello(&server, "/gate");
    go(&home, "gate");
    let reply = old.reply("GET");
    assert_eq!((reply.status, reply.text().as_str()), (200, "done"));
    eventually("the old instance ends", || (server.instances() == 1).then_some(()));
}

/// Each call that is not answered by the new version hangs, so it is left alone.
fn until_hello(server: &Server, target: &str) {
    server.wait_log("reloaded");
    assert_eq!(server.ok(target).text(), "hello");
}

#[test]
fn a_broken_new_version_leaves_the_old_one_serving() {
    let home = Home::new();
    home.node("node", "", &versioned(1)).python("python", "", &versioned_python(1));
    let server = home.start(&["--watch=on"]);
    let check = |n: &str| {
        for target in ["/node", "/python"] {
            assert_eq!(server.ok(target).text(), n, "{target}");
        }
    };
    check("1");
    let complaints = |text: &str, function: &str| {
        server.logged(text).into_iter().filter(|line| line["function"] == function).collect::<Vec<_>>()
    };
    home.write("node", "index.mjs", "export default ({ res }) => {{{ syntax");
    home.write("python", "main.py", "def main(context:\n");
    for function in ["node", "python"] {
        eventually("it is refused", || {
            (!complaints("the new version does not start", function).is_empty()).then_some(())
        });
    }
    check("1");
    home.write("node", "index.mjs", &versioned(2)).write("python", "main.py", &versioned_python(2));
    until(&server, "/node", "2");
    until(&server, "/python", "2");

    let good =
        |name: &str| std::fs::read_to_string(home.functions().join(name).join("function.toml")).unwrap();
    let manifests = ["node", "python"].map(good);
    home.write("node", "function.toml", "runtime = \"node\"\nno-such-key = 1\n");
    home.write("python", "function.toml", "runtime = \"python\"\ntimeout = \"soon\"\n");
    for function in ["node", "python"] {
        let told = eventually("it is refused", || complaints("the previous version goes on", function).pop());
        assert!(told["message"].as_str().unwrap().contains("function.toml:2:"), "{told}");
    }
    check("2");
    home.write("node", "index.mjs", &versioned(3)).write("node", "function.toml", &manifests[0]);
    home.write("python", "main.py", &versioned_python(3)).write("python", "function.toml", &manifests[1]);
    until(&server, "/node", "3");
    until(&server, "/python", "3");
}

#[test]
fn a_broken_version_is_told_once_the_old_one_runs_nowhere_any_more() {
    let home = Home::new();
    let code = "export default ({ res }) => res.text(String(process.pid));";
    let server = home.node("f", "", code).start(&["--watch=on"]);
    let pid: i32 = server.ok("/f").text().parse().unwrap();
    home.write("f", "index.mjs", "export default ({ res }) => {{{ syntax");
    server.wait_log("the new version does not start");
    assert_eq!(server.ok("/f").text(), pid.to_string());
    signal(pid, Signal::KILL);
    eventually("the instance is gone", || (server.instances() == 0).then_some(()));
    let reply = server.get("/f");
    assert_eq!(reply.problem(), "503 cannot-start function");
    assert!(reply.detail().contains("Syntax error in index.mjs"), "{}", reply.detail());
}

#[test]
fn a_changed_manifest_is_a_new_version() {
    let code = "export default ({ res }) => res.text(process.env.GREETING ?? 'none');";
    let home = Home::new();
    let server = home.node("f", "", code).start(&["--watch=on"]);
    assert_eq!(server.ok("/f").text(), "none");
    home.node("f", "[env]\nGREETING = \"hi\"", code);
    until(&server, "/f", "hi");
    assert_eq!(server.request("GET", "/f").without_secret().send().status, 401);
    home.node("f", "access = \"public\"", code);
    until(&server, "/f", "none");
    assert_eq!(server.request("GET", "/f").without_secret().send().status, 200);
}

#[test]
fn functions_come_and_go() {
    let home = Home::new();
    home.node("gate", "timeout = \"60s\"", GATE);
    let server = home.start(&["--watch=on"]);
    assert_eq!(server.get("/new").problem(), "404 unknown-function front");
    home.node("new", "", HELLO);
    let reply = eventually("it is served", || Some(server.get("/new")).filter(|reply| reply.status == 200));
    assert_eq!(reply.text(), "hello");

    let mut running = begun(&home, &server, "gate", "/gate");
    for name in ["gate", "new"] {
        std::fs::remove_dir_all(home.functions().join(name)).unwrap();
        eventually("it is gone", || {
            let removed = server.logged("removed");
            removed.iter().any(|line| line["function"] == name).then_some(())
        });
        assert_eq!(server.get(&format!("/{name}")).problem(), "404 unknown-function front");
    }
    go(&home, "gate");
    let reply = running.reply("GET");
    assert_eq!((reply.status, reply.text().as_str()), (200, "done"), "a call in progress is not harmed");
    eventually("their instances end", || (server.instances() == 0).then_some(()));

    home.node("new", "", "export default ({ res }) => res.text('again');");
    let reply = eventually("it is served", || Some(server.get("/new")).filter(|reply| reply.status == 200));
    assert_eq!(reply.text(), "again");
}

#[test]
fn without_watching_nothing_changes() {
    let home = Home::new();
    let mut server = home.node("f", "", &versioned(1)).start(&["--watch=off"]);
    server.ok("/f");
    home.node("f", "", &versioned(2)).node("new", "", HELLO);
    // Longer than the watcher's interval.
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(server.ok("/f").text(), "1");
    assert_eq!(server.get("/new").status, 404);
    assert_eq!(server.stop(), 0);
    let server = home.start(&[]);
    assert_eq!((server.ok("/f").text().as_str(), server.get("/new").status), ("2", 200));
}
