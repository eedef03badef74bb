//! The life of instances: how many start, who is served, who makes room, and what ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::node::{GATE, HELLO, PID};
use common::{Home, Server, alive, at_once, eventually, processes, signal};
use rustix::process::Signal;

const LOOP: &str = r"
export default ({ req, res }) => {
  if (req.query.loop) for (;;);
  return res.text(String(process.pid));
};";

fn begun(home: &Home, name: &str, n: usize) {
    eventually(&format!("{n} calls of {name} have begun"), || {
        let lines = home.lines(name);
        (lines.iter().filter(|line| line.starts_with("begin")).count() >= n).then_some(())
    });
}

fn go(home: &Home, name: &str) {
    std::fs::write(home.file(&format!("{name}.go")), "").unwrap();
}

fn pid_of(server: &Server, target: &str) -> i32 {
    server.ok(target).text().parse().unwrap()
}

#[test]
fn a_thousand_cold_callers_start_no_more_than_max_instances() {
    let home = Home::new();
    let server = home.node("fun", "max-instances = 3\nconcurrency = 8\ntimeout = \"60s\"", PID).start(&[]);
    let replies = at_once(1000, |_| server.get("/fun"));
    let mut pids: Vec<_> = replies.iter().map(common::Reply::text).collect();
    assert!(
        replies.iter().all(|reply| reply.status == 200),
        "{:?}",
        replies.iter().find(|r| r.status != 200)
    );
    pids.sort();
    pids.dedup();
    assert!((1..=3).contains(&pids.len()), "{pids:?}");
    assert!((1..=3).contains(&server.starts("fun")));
}

#[test]
fn a_burst_starts_as_many_as_it_needs() {
    let home = Home::new();
    let server = home.node("fun", "max-instances = 10\nconcurrency = 2\ntimeout = \"60s\"", GATE).start(&[]);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..6).map(|_| scope.spawn(|| server.get("/fun").status)).collect();
        begun(&home, "fun", 6);
        assert_eq!(server.starts("fun"), 3, "six calls, two in each instance");
        go(&home, "fun");
        for caller in callers {
            assert_eq!(caller.join().unwrap(), 200);
        }
    });
}

#[test]
fn waiters_are_served_in_order() {
    let home = Home::new();
    let server = home.node("fun", "max-instances = 1\nconcurrency = 1\ntimeout = \"60s\"", GATE).start(&[]);
    std::thread::scope(|scope| {
        let mut callers = Vec::new();
        for n in 0..5 {
            let conn = server.request("GET", &format!("/fun?n={n}")).open();
            callers.push(scope.spawn(move || {
                let mut conn = conn;
                conn.reply("GET").status
            }));
            if n == 0 {
                begun(&home, "fun", 1);
            }
            // The next one is sent only after this one stands in the queue, which nothing shows from outside.
            std::thread::sleep(Duration::from_millis(100));
        }
        go(&home, "fun");
        for caller in callers {
            assert_eq!(caller.join().unwrap(), 200);
        }
    });
    let order: Vec<_> = home.lines("fun").into_iter().filter(|line| line.starts_with("begin")).collect();
    assert_eq!(order, ["begin0", "begin1", "begin2", "begin3", "begin4"]);
}

#[test]
fn no_more_calls_at_once_than_concurrency() {
    let home = Home::new();
    let code = r"
import fs from 'node:fs';
let now = 0;
export default async ({ res }) => {
  now += 1;
  fs.appendFileSync(process.env.HOME_FILE, now + '\n');
  await new Promise((done) => setTimeout(done, 20));
  now -= 1;
  return res.empty();
};";
    let server = home.node("fun", "max-instances = 1\nconcurrency = 3\ntimeout = \"60s\"", code).start(&[]);
    assert!(at_once(30, |_| server.get("/fun").status).into_iter().all(|status| status == 204));
    let most = home.lines("fun").iter().map(|line| line.parse::<u32>().unwrap()).max();
    assert_eq!(most, Some(3), "the bound is reached and kept");
}

#[test]
fn an_idle_instance_stops_after_keep_warm_and_its_process_is_gone() {
    let home = Home::new();
    let server = home.node("fun", "keep-warm = \"300ms\"", PID).start(&["--reap-interval", "50ms"]);
    let first = pid_of(&server, "/fun");
    eventually("the instance is gone", || (!alive(first)).then_some(()));
    eventually("nothing is counted any more", || (server.instances() == 0).then_some(()));
    assert_ne!(pid_of(&server, "/fun"), first, "the next call starts a new one");
}

#[test]
fn min_instances_are_there_before_the_first_call_and_come_back() {
    let home = Home::new();
    let manifest = "min-instances = 2\nkeep-warm = \"100ms\"";
    let server = home.node("fun", manifest, PID).start(&["--reap-interval", "50ms"]);
    eventually("two are ready", || (server.starts("fun") == 2).then_some(()));
    let pid = pid_of(&server, "/fun");
    signal(pid, Signal::KILL);
    eventually("a third one replaces it", || (server.starts("fun") == 3).then_some(()));
    eventually("two are left", || (server.instances() == 2).then_some(()));
}

#[test]
fn the_one_idle_longest_makes_room() {
    let home = Home::new();
    home.node("a", "", PID).node("b", "", PID).node("c", "", PID);
    let server = home.start(&["--max-instances", "2"]);
    let (a, b) = (pid_of(&server, "/a"), pid_of(&server, "/b"));
    pid_of(&server, "/a");
    pid_of(&server, "/c");
    assert!(alive(a), "it was used last");
    eventually("the other one is gone", || (!alive(b)).then_some(()));
    assert_eq!(pid_of(&server, "/a"), a);
}

#[test]
fn a_busy_machine_makes_newcomers_wait_for_the_deadline_at_most() {
    let home = Home::new();
    home.node("busy", "timeout = \"60s\"", GATE).node("new", "timeout = \"500ms\"", HELLO);
    let server = home.start(&["--max-instances", "1"]);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| server.get("/busy").status);
        begun(&home, "busy", 1);
        assert_eq!(server.get("/new").problem(), "504 deadline adapter");
        go(&home, "busy");
        assert_eq!(busy.join().unwrap(), 200);
    });
    eventually("there is room now", || (server.get("/new").status == 200).then_some(()));
}

#[test]
fn an_endless_loop_is_killed_and_only_its_instance_suffers() {
    let home = Home::new();
    let server =
        home.node("fun", "timeout = \"2s\"\nmax-instances = 2", LOOP).start(&["--cancel-grace", "50ms"]);
    let pid = pid_of(&server, "/fun");
    std::thread::scope(|scope| {
        let looping = scope.spawn(|| server.get("/fun?loop=1"));
        // A second call on the blocked instance, long enough after the first that its own deadline comes after
        // the end of the instance.
        let before = cpu(pid);
        eventually("it has looped for half a second", || (cpu(pid) > before + 50).then_some(()));
        let beside = scope.spawn(|| server.get("/fun"));
        assert_eq!(looping.join().unwrap().problem(), "504 deadline function");
        let beside = beside.join().unwrap();
        assert_eq!(beside.problem(), "502 instance-ended function");
        assert!(beside.detail().contains("did not end at its deadline"), "{}", beside.detail());
    });
    eventually("the looping process is gone", || (!alive(pid)).then_some(()));
    assert_ne!(pid_of(&server, "/fun"), pid, "new calls are served by another one");
}

fn cpu(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    fields.get(11).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

#[test]
fn an_endless_loop_in_python_ends_without_hurting_the_calls_beside_it() {
    let home = Home::new();
    let code = "
import os
def main(context):
    while context.req.query.get('loop'):
        pass
    return context.res.text(str(os.getpid()))
";
    let server = home.python("fun", "timeout = \"3s\"\nmax-instances = 1", code).start(&[]);
    let pid = pid_of(&server, "/fun");
    assert_eq!(server.get("/fun?loop=1").problem(), "504 deadline function");
    assert_eq!(pid_of(&server, "/fun"), pid, "the loop was interrupted, the instance lives");
}

#[test]
fn everything_an_instance_started_ends_with_it() {
    let home = Home::new();
    let code = r"
import { spawn } from 'node:child_process';
const sleep = (seconds, options) => spawn('sleep', [seconds], { stdio: 'ignore', ...options }).pid;
export default ({ req, res }) => {
  if (req.query.loop) for (;;);
  return res.json([
    sleep('7101', {}), sleep('7102', { detached: true }), sleep('7103', { env: { PATH: process.env.PATH } }),
    process.pid,
  ]);
};";
    let server = home.node("fun", "timeout = \"3s\"", code).start(&[]);
    let pids: Vec<i32> = serde_json::from_slice(&server.ok("/fun").body).unwrap();
    assert!(pids.iter().all(|pid| alive(*pid)));
    assert_eq!(server.get("/fun?loop=1").status, 504);
    for pid in pids {
        eventually(&format!("process {pid} is gone"), || (!alive(pid)).then_some(()));
    }
}

#[test]
fn contexts_live_from_start_to_stop() {
    let home = Home::new();
    let code = r"
import fs from 'node:fs';
const write = (text) => fs.appendFileSync(process.env.HOME_FILE, text + '\n');
let made = 0;
export const init = () => write('init');
export const start = async () => {
  if (fs.existsSync(process.env.HOME_FILE + '.bad')) throw new Error('no database');
  made += 1; write('start ' + made); return { n: made };
};
export const stop = async (context) => write('stop ' + context.n);
export default ({ res, context, startError }) => res.json({ n: context?.n, startError: startError?.message });
";
    let mut server = home.node("fun", "concurrency = 1", code).start(&[]);
    assert_eq!(server.ok("/fun").text(), r#"{"n":1}"#);
    assert_eq!(server.ok("/fun").text(), r#"{"n":1}"#, "the Context is used again");
    assert_eq!(server.stop(), 0);
    assert_eq!(home.lines("fun"), ["init", "start 1", "stop 1"]);
    std::fs::write(home.file("fun.bad"), "").unwrap();
    let server = home.start(&[]);
    assert_eq!(server.ok("/fun").text(), r#"{"startError":"no database"}"#);
    std::fs::remove_file(home.file("fun.bad")).unwrap();
    assert_eq!(server.ok("/fun").text(), r#"{"n":1}"#, "what failed is not kept");
}

#[test]
fn a_function_that_crashes_at_start_is_left_alone_for_a_while() {
    let home = Home::new();
    let code = r"
import fs from 'node:fs';
fs.appendFileSync(process.env.HOME_FILE, 'tried\n');
process.stderr.write('the disk is on fire\n');
fs.writeSync(2, 'last words\n');
process.exit(7);
";
    let server = home.node("fun", "", code).start(&[]);
    let reply = server.get("/fun");
    assert_eq!(reply.problem(), "503 cannot-start adapter");
    assert!(reply.detail().contains("exited with code 7"), "{}", reply.detail());
    assert!(reply.detail().contains("last words"), "{}", reply.detail());
    assert_eq!(home.lines("fun").len(), 3, "three tries");
    let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&after));
    let again = Instant::now();
    let refused = server.get("/fun");
    assert_eq!(refused.problem(), "503 cannot-start adapter");
    if again.elapsed() < Duration::from_millis(500) {
        assert_eq!(home.lines("fun").len(), 3, "told at once, without another try");
    }
    home.node("fun", "", HELLO);
    eventually("it is tried again by itself and serves", || (server.get("/fun").status == 200).then_some(()));
}

#[test]
fn more_memory_than_allowed_ends_an_instance_with_the_reason() {
    let home = Home::new();
    let code = r"
const kept = [];
export default async ({ req, res }) => {
  if (!req.query.eat) return res.text('fine');
  for (;;) { kept.push(Buffer.alloc(16 << 20, 1)); await new Promise((done) => setTimeout(done, 20)); }
};";
    let server = home.node("fun", "memory = \"128MiB\"\ntimeout = \"30s\"", code).start(&[]);
    let reply = server.get("/fun?eat=1");
    assert_eq!(reply.problem(), "502 instance-ended function");
    assert!(reply.detail().contains("128 MiB memory"), "{}", reply.detail());
    assert_eq!(server.ok("/fun").text(), "fine");
}

#[test]
fn a_stranger_on_the_link_is_refused() {
    let home = Home::new();
    // The socket is there until the worker has said HELLO: a program that never does keeps it open.
    let code = "export default ({ res }) => res.text('hello');";
    home.node("fun", "timeout = \"60s\"", code);
    let server = home.start(&[]);
    let run = home.data().join("run");
    let socket = || {
        std::fs::read_dir(&run).unwrap().flatten().map(|i| i.path().join("link.sock")).find(|p| p.exists())
    };
    std::thread::scope(|scope| {
        let call = scope.spawn(|| server.get("/fun").text());
        let stranger = eventually("the socket is there, or the call is done", || match socket() {
            Some(path) => Some(UnixStream::connect(path).ok()),
            None => call.is_finished().then_some(None),
        });
        if let Some(mut stranger) = stranger {
            use std::io::{Read, Write};
            let hello = br#"{"protocol":1,"token":"wrong","runtime":"x"}"#;
            let mut frame = (hello.len() as u32 + 5).to_be_bytes().to_vec();
            frame.extend([1, 0, 0, 0, 0]);
            frame.extend(hello);
            let _ = stranger.write_all(&frame);
            let mut answer = Vec::new();
            let _ = stranger.read_to_end(&mut answer);
            assert!(answer.is_empty(), "a stranger learns nothing");
        }
        assert_eq!(call.join().unwrap(), "hello");
    });
    assert!(socket().is_none(), "nobody can come late");
}

#[test]
fn an_instance_killed_between_calls_is_replaced() {
    let home = Home::new();
    let server = home.node("fun", "", PID).start(&[]);
    let first = pid_of(&server, "/fun");
    signal(first, Signal::KILL);
    eventually("its end is noticed", || (server.instances() == 0).then_some(()));
    assert_ne!(pid_of(&server, "/fun"), first);
}

#[test]
fn functions_get_an_environment_of_their_own() {
    let home = Home::new();
    let code = "export default ({ res }) => res.json(process.env);";
    home.node("fun", "[env]\nGREETING = \"hello\"", code);
    let mut command = home.command();
    command.args(["--port", "0"]).env("SECRET_OF_THE_HOST", "x").env("AWS_SECRET_ACCESS_KEY", "y");
    let server = home.spawn(command);
    let env = server.ok("/fun").json();
    assert_eq!(env["GREETING"], "hello");
    for hidden in
        ["SECRET_OF_THE_HOST", "AWS_SECRET_ACCESS_KEY", "EXECUTOR_TOKEN", "EXECUTOR_LINK", "EXECUTOR_DATA"]
    {
        assert!(env.get(hidden).is_none(), "{hidden}");
    }
    assert!(env["TMPDIR"].as_str().unwrap().contains("/run/"));
}

#[test]
fn nothing_is_left_after_a_stop() {
    let home = Home::new();
    let mut server = home.node("fun", "", PID).node("g", "", PID).start(&[]);
    let pids = [pid_of(&server, "/fun"), pid_of(&server, "/g")];
    assert_eq!(server.stop(), 0);
    assert!(pids.iter().all(|pid| !alive(*pid)));
    assert_eq!(processes(home.data().join("run").to_str().unwrap()), Vec::<i32>::new());
    assert_eq!(std::fs::read_dir(home.data().join("run")).unwrap().count(), 0);
}

#[test]
fn what_a_late_call_wrote_before_its_deadline_is_kept() {
    let home = Home::new();
    let code = "export default async ({ log }) => { log('before'); await new Promise(() => {}); };";
    let server = home.node("fun", "timeout = \"1s\"", code).start(&[]);
    let reply = server.request("GET", "/fun").header("x-request-id", "late").send();
    assert_eq!(reply.problem(), "504 deadline function");
    assert_eq!(server.execution("late")[..2], ["log: before", "error: Execution timed out."]);
}
