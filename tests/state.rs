//! State through real calls: what is kept, when, for whom, and what no accident may lose.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is a failed test")]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

use common::node::COUNT;
use common::{Home, LONG, Reply, Server, at_once, eventually, signal};
use rustix::process::Signal;
use serde_json::{Value, json};

const BY_ID: &str = "timeout = \"60s\"\n[state]\nkey = \"{query.id}\"";

/// One operation per path; the answer is what the state then is.
const STORE: &str = r"
const show = (res, state, was) => {
  const value = state.get();
  const headers = { 'x-version': String(was) };
  if (value === undefined) return res.text('', 200, { ...headers, 'x-kind': 'absent' });
  if (value instanceof Uint8Array) return res.binary(value, 200, { ...headers, 'x-kind': 'binary' });
  return res.text(JSON.stringify(value), 200, { ...headers, 'x-kind': 'json' });
};
export default ({ req, res, state }) => {
  switch (req.path) {
    case '/json': state.set(req.bodyJson); break;
    case '/bytes': state.set(req.bodyBinary); break;
    case '/delete': state.delete(); break;
    case '/twice': state.delete(); state.set('first'); state.set('last'); break;
    case '/changed': state.get().n = 'only in memory'; break;
    case '/raise': state.set('never'); throw new Error('after set');
    case '/raise-delete': state.delete(); throw new Error('after delete');
    case '/nothing': state.set('never'); return;
    case '/careful': try { state.set(req.bodyBinary); } catch (e) { return res.text(e.message, 209); }
  }
  return show(res, state, state.version);
};";

const STORE_PYTHON: &str = r#"
import json

def main(context):
    req, res, state = context.req, context.res, context.state
    if req.path == "/json":
        state.set(req.body_json)
    elif req.path == "/bytes":
        state.set(req.body_binary)
    elif req.path == "/delete":
        state.delete()
    elif req.path == "/twice":
        state.delete()
        state.set("first")
        state.set("last")
    elif req.path == "/changed":
        state.get()["n"] = "only in memory"
    elif req.path == "/raise":
        state.set("never")
        raise ValueError("after set")
    elif req.path == "/raise-delete":
        state.delete()
        raise ValueError("after delete")
    elif req.path == "/nothing":
        state.set("never")
        return None
    elif req.path == "/careful":
        try:
            state.set(req.body_binary)
        except Exception as error:
            return res.text(str(error), 209)
    value = state.get()
    headers = {"x-version": str(state.version)}
    if value is None:
        return res.text("", 200, {**headers, "x-kind": "absent"})
    if isinstance(value, bytes):
        return res.binary(value, 200, {**headers, "x-kind": "binary"})
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return res.text(text, 200, {**headers, "x-kind": "json"})
"#;

fn with_store() -> Home {
    let home = Home::new();
    home.node("node", BY_ID, STORE).python("python", BY_ID, STORE_PYTHON);
    home
}

/// Kind and value that the state of `id` has.
#[track_caller]
fn stored(server: &Server, function: &str, id: &str) -> (String, Vec<u8>) {
    shown(&server.ok(&format!("/{function}?id={id}")))
}

#[track_caller]
fn shown(reply: &Reply) -> (String, Vec<u8>) {
    assert_eq!(reply.status, 200, "{}", reply.text());
    (reply.header("x-kind").unwrap().to_owned(), reply.body.clone())
}

fn version(reply: &Reply) -> u64 {
    reply.header("x-version").unwrap().parse().unwrap()
}

fn kept(kind: &str, value: impl AsRef<[u8]>) -> (String, Vec<u8>) {
    (kind.to_owned(), value.as_ref().to_vec())
}

#[track_caller]
fn count(server: &Server, target: &str) -> Value {
    server.ok(target).json()["n"].clone()
}

#[test]
fn values_come_back_as_they_were_set() {
    let home = with_store();
    let server = home.start(&[]);
    for function in ["node", "python"] {
        assert_eq!(stored(&server, function, "a"), kept("absent", ""), "{function}");
        for text in
            ["{\"n\":[1,-2.5,true,null],\"ü\":\"\\\"\"}", "[]", "0", "false", "\"\"", "\"text\"", "1e+21"]
        {
            let set = shown(&server.post(&format!("/{function}/json?id=a"), text));
            assert_eq!(set, kept("json", text), "{function}: within the call");
            assert_eq!(stored(&server, function, "a"), kept("json", text), "{function}");
        }
        for bytes in [&b""[..], b"\0\xff\r\n\x80", b"{\"not\":\"json\"}"] {
            server.post(&format!("/{function}/bytes?id=a"), bytes);
            assert_eq!(stored(&server, function, "a"), kept("binary", bytes), "{function}");
        }
        server.ok(&format!("/{function}/twice?id=a"));
        assert_eq!(stored(&server, function, "a"), kept("json", "\"last\""), "{function}");
        assert_eq!(shown(&server.ok(&format!("/{function}/delete?id=a"))), kept("absent", ""));
        assert_eq!(stored(&server, function, "a"), kept("absent", ""), "{function}");
        assert_eq!(shown(&server.ok(&format!("/{function}/delete?id=a"))), kept("absent", ""), "again");
    }
}

#[test]
fn a_value_that_was_got_is_a_copy() {
    let home = with_store();
    let server = home.start(&[]);
    for function in ["node", "python"] {
        server.post(&format!("/{function}/json?id=a"), "{\"n\":1}");
        assert_eq!(shown(&server.ok(&format!("/{function}/changed?id=a"))), kept("json", "{\"n\":1}"));
        assert_eq!(stored(&server, function, "a"), kept("json", "{\"n\":1}"), "{function}");
    }
}

#[test]
fn the_version_changes_with_each_commit() {
    let home = with_store();
    let server = home.start(&[]);
    for function in ["node", "python"] {
        let now = || version(&server.ok(&format!("/{function}?id=v")));
        assert_eq!(now(), 0, "absent");
        let first = server.post(&format!("/{function}/json?id=v"), "1");
        assert_eq!(version(&first), 0, "the version of what was there before");
        let one = now();
        assert_ne!(one, 0);
        assert_eq!(now(), one, "reading changes nothing");
        server.post(&format!("/{function}/json?id=v"), "1");
        let two = now();
        assert!(two > one, "also when the value is the same: {one} {two}");
        assert_eq!(server.get(&format!("/{function}/raise?id=v")).status, 500);
        assert_eq!(now(), two);
        server.ok(&format!("/{function}/delete?id=v"));
        assert_eq!(now(), 0, "absent again");
    }
}

#[test]
fn a_call_that_fails_leaves_the_state_untouched() {
    let home = with_store();
    let server = home.start(&[]);
    for function in ["node", "python"] {
        for id in ["new", "old"] {
            let before = match id {
                "old" => shown(&server.post(&format!("/{function}/json?id=old"), "{\"kept\":1}")),
                _ => kept("absent", ""),
            };
            for path in ["raise", "raise-delete", "nothing"] {
                let reply = server.get(&format!("/{function}/{path}?id={id}"));
                assert_eq!((reply.status, reply.body.len()), (500, 0), "{function} {path}");
                assert_eq!(stored(&server, function, id), before, "{function} {path}");
            }
        }
    }
}

#[test]
fn the_limit_on_a_value() {
    let home = with_store();
    let server = home.start(&["--max-state", "1000"]);
    for function in ["node", "python"] {
        let string = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
        let most = shown(&server.post(&format!("/{function}/json?id=j"), string(1000)));
        assert_eq!(stored(&server, function, "j"), most, "{function}: at the limit");
        let above =
            server.request("POST", &format!("/{function}/json?id=j")).header("x-request-id", function);
        let above = above.body(string(1001)).send();
        assert_eq!((above.status, above.body.len()), (500, 0), "{function}");
        let lines = server.execution(function).join("\n");
        assert!(lines.contains("1001") && lines.contains("limit is 1000"), "{function}: {lines}");
        assert_eq!(stored(&server, function, "j"), most, "{function}: the state stays");
        // Bytes count, not characters.
        let umlauts = format!("\"{}\"", "ä".repeat(500));
        assert_eq!(server.post(&format!("/{function}/json?id=j"), umlauts).status, 500, "{function}");

        assert_eq!(server.post(&format!("/{function}/bytes?id=b"), vec![7; 1000]).status, 200);
        let told = server.post(&format!("/{function}/careful?id=b"), vec![8; 1001]);
        assert_eq!(told.status, 209, "the function may catch it: {}", told.text());
        assert!(told.text().contains("1001") && told.text().contains("limit is 1000"), "{}", told.text());
        assert_eq!(stored(&server, function, "b"), kept("binary", vec![7; 1000]), "{function}");
    }
}

#[test]
fn the_usual_limit_is_a_mebibyte() {
    let home = with_store();
    let server = home.start(&[]);
    for function in ["node", "python"] {
        let most: Vec<u8> = (0..1 << 20).map(|i: usize| (i % 251) as u8).collect();
        assert_eq!(server.post(&format!("/{function}/bytes?id=b"), most.clone()).status, 200);
        assert!(stored(&server, function, "b").1 == most, "{function}");
        let above = vec![1; (1 << 20) + 1];
        assert_eq!(server.post(&format!("/{function}/bytes?id=b"), above).status, 500, "{function}");
        assert!(stored(&server, function, "b").1 == most, "{function}");
    }
}

#[test]
fn calls_on_one_entity_run_one_after_the_other() {
    let node = r"
import { setTimeout as sleep } from 'node:timers/promises';
export default async ({ res, state }) => {
  const n = state.get() ?? 0;
  await sleep(2);
  state.set(n + 1);
  return res.json({ n: n + 1 });
};";
    let asynchronous = r#"
import asyncio
async def main(context):
    n = context.state.get() or 0
    await asyncio.sleep(0.002)
    context.state.set(n + 1)
    return context.res.json({"n": n + 1})
"#;
    let threaded = r#"
import time
def main(context):
    n = context.state.get() or 0
    time.sleep(0.002)
    context.state.set(n + 1)
    return context.res.json({"n": n + 1})
"#;
    let manifest = format!("concurrency = 16\nmax-instances = 2\n{BY_ID}");
    let home = Home::new();
    home.node("node", &manifest, node)
        .python("async", &manifest, asynchronous)
        .python("plain", &manifest, threaded);
    let server = home.start(&[]);
    for function in ["node", "async", "plain"] {
        let mut seen = at_once(50, |_| count(&server, &format!("/{function}?id=x")).as_u64().unwrap());
        seen.sort_unstable();
        assert_eq!(seen, (1..=50).collect::<Vec<_>>(), "{function}");
        assert_eq!(count(&server, &format!("/{function}?id=x")), 51, "{function}");
    }
}

#[test]
fn different_entities_run_at_the_same_time() {
    let code = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
export default async ({ req, res, state }) => {
  fs.writeFileSync(process.env.HOME_FILE + state.key, '');
  while (!fs.existsSync(process.env.HOME_FILE + req.query.other)) await sleep(5);
  state.set(state.key);
  return res.text('both');
};";
    let python = r#"
import os, time
def main(context):
    file = os.environ["FILE"]
    open(file + context.state.key, "w").close()
    while not os.path.exists(file + context.req.query["other"]):
        time.sleep(0.005)
    return context.res.text("both")
"#;
    let home = Home::new();
    let env = format!("{BY_ID}\n[env]\nFILE = \"{}\"", home.file("python"));
    home.node("node", BY_ID, code).python("python", &env, python);
    // In one instance, and in two.
    home.node("apart", &format!("concurrency = 1\nmax-instances = 2\n{BY_ID}"), code);
    let server = home.start(&[]);
    for function in ["node", "python", "apart"] {
        let answers = at_once(2, |i| server.ok(&format!("/{function}?id=e{i}&other=e{}", 1 - i)).text());
        assert_eq!(answers, ["both", "both"], "{function}");
    }
}

#[test]
fn calls_on_one_entity_run_in_the_order_they_came() {
    let code = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
export default async ({ req, res, state }) => {
  fs.appendFileSync(process.env.HOME_FILE, req.query.n + '\n');
  while (!fs.existsSync(process.env.HOME_FILE + '.go')) await sleep(5);
  await sleep(Math.random() * 5);
  state.set([...(state.get() ?? []), req.query.n]);
  return res.json(state.get());
};";
    let home = Home::new();
    let server = home.node("f", BY_ID, code).start(&[]);
    let mut conns = Vec::new();
    for n in 0..10 {
        let request = server.request("GET", &format!("/f?id=a&n={n}"));
        conns.push(request.open());
        eventually("the first one runs", || (!home.lines("f").is_empty()).then_some(()));
        // Nobody outside can see a call arrive in the queue of its entity.
        std::thread::sleep(Duration::from_millis(40));
    }
    assert_eq!(home.lines("f"), ["0"], "the others wait");
    std::fs::write(home.file("f.go"), "").unwrap();
    let last = conns.iter_mut().map(|conn| conn.reply("GET").json()).next_back().unwrap();
    assert_eq!(last, json!(["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]));
}

#[test]
fn a_waiting_client_that_leaves_does_not_block_the_entity() {
    let home = Home::new();
    let code = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
export default async ({ req, res, state }) => {
  fs.appendFileSync(process.env.HOME_FILE, req.query.n + '\n');
  while (!fs.existsSync(process.env.HOME_FILE + '.go')) await sleep(5);
  state.set((state.get() ?? 0) + 1);
  return res.json({ n: state.get() });
};";
    let server = home.node("f", BY_ID, code).start(&[]);
    let mut first = server.request("GET", "/f?id=a&n=0").open();
    eventually("the first one runs", || (!home.lines("f").is_empty()).then_some(()));
    let gone = server.request("GET", "/f?id=a&n=gone").open();
    let mut last = server.request("GET", "/f?id=a&n=last").open();
    drop(gone);
    std::fs::write(home.file("f.go"), "").unwrap();
    assert_eq!(first.reply("GET").json()["n"], 1);
    assert_eq!(last.reply("GET").status, 200);
    // The one whose client left ran as well, or never began: either way nothing is in the way of the next.
    let total = count(&server, "/f?id=a&n=end").as_u64().unwrap();
    assert_eq!(total, home.lines("f").len() as u64);
}

#[test]
fn state_survives_a_restart() {
    let home = with_store();
    let mut server = home.start(&[]);
    let blob = [0, 255, 10, 13];
    for function in ["node", "python"] {
        server.post(&format!("/{function}/json?id=j"), "{\"a\":\"ü\"}");
        server.post(&format!("/{function}/bytes?id=b"), blob);
        server.post(&format!("/{function}/json?id=gone"), "1");
        server.ok(&format!("/{function}/delete?id=gone"));
    }
    let check = |server: &Server| {
        for function in ["node", "python"] {
            assert_eq!(stored(server, function, "j"), kept("json", "{\"a\":\"ü\"}"), "{function}");
            assert_eq!(stored(server, function, "b"), kept("binary", blob), "{function}");
            assert_eq!(stored(server, function, "gone"), kept("absent", ""), "{function}");
        }
    };
    let before = version(&server.ok("/node?id=j"));
    assert_eq!(server.stop(), 0);
    let mut server = home.start(&[]);
    check(&server);
    assert_eq!(version(&server.ok("/node?id=j")), before);
    server.kill();
    check(&home.start(&[]));
}

#[test]
fn memory_forgets_at_the_end() {
    let home = Home::new();
    home.node("count", BY_ID, COUNT);
    let mut server = home.start(&["--store", "memory:"]);
    let mut seen = at_once(20, |_| count(&server, "/count?id=a").as_u64().unwrap());
    seen.sort_unstable();
    assert_eq!(seen, (1..=20).collect::<Vec<_>>());
    assert_eq!(server.stop(), 0);
    let server = home.start(&["--store", "memory:"]);
    assert_eq!(count(&server, "/count?id=a"), 1);
}

#[test]
fn a_store_may_be_elsewhere() {
    let home = Home::new();
    home.node("count", BY_ID, COUNT);
    let store = format!("sqlite:{}", home.file("other.db"));
    let mut server = home.start(&["--store", &store]);
    assert_eq!(count(&server, "/count?id=a"), 1);
    assert_eq!(server.stop(), 0);
    let mut server = home.start(&["--store", &store]);
    assert_eq!(count(&server, "/count?id=a"), 2);
    assert_eq!(server.stop(), 0);
    let server = home.start(&[]);
    assert_eq!(count(&server, "/count?id=a"), 1, "the usual one knows nothing of it");
}

/// One request on a connection that may break at any moment; the answer only if it is whole.
fn attempt(server: &Server, target: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(server.address()).ok()?;
    stream.set_read_timeout(Some(LONG)).ok()?;
    let head = server.request("GET", target).head();
    stream.write_all(&head).ok()?;
    let mut answer = String::new();
    // A reset after a part of the answer is what the test is about.
    let _ = stream.read_to_string(&mut answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).ok()
}

#[test]
fn no_acknowledged_write_is_lost_when_the_executor_is_killed() {
    const CLIENTS: usize = 8;
    let home = Home::new();
    home.node("count", BY_ID, COUNT);
    // What clients were told: all numbers of an entity.
    let told: Mutex<BTreeMap<usize, Vec<u64>>> = Mutex::default();
    for round in 1..=3 {
        let mut server = home.start(&[]);
        let pid = server.pid();
        let goal = told.lock().unwrap().values().map(Vec::len).sum::<usize>() + 150;
        let shared = &server;
        at_once(CLIENTS, |client| {
            let entity = client % 4;
            loop {
                let Some(answer) = attempt(shared, &format!("/count?id=e{entity}")) else { return };
                let mut told = told.lock().unwrap();
                told.entry(entity).or_default().push(answer["n"].as_u64().unwrap());
                if told.values().map(Vec::len).sum::<usize>() >= goal {
                    signal(pid, Signal::KILL);
                }
            }
        });
        assert_eq!(server.wait(), -9, "round {round}");
    }
    let server = home.start(&[]);
    for (entity, mut numbers) in told.into_inner().unwrap() {
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all, "no number was given twice");
        let most = *numbers.last().unwrap();
        let next = count(&server, &format!("/count?id=e{entity}")).as_u64().unwrap();
        // In each of three rounds at most one call of each of two clients may have been done but not told.
        assert!(next > most && next <= most + 1 + 2, "e{entity}: told {most}, now {next}");
        assert!(all as u64 + 6 >= most, "e{entity}: {all} told, highest {most}");
    }
}

#[test]
fn an_instance_killed_in_mid_call_leaves_the_state_untouched() {
    let node = r"
import fs from 'node:fs';
export default async ({ req, res, state }) => {
  const n = (state.get() ?? 0) + 1;
  state.set(n);
  if (req.path === '/hang') {
    fs.writeFileSync(process.env.HOME_FILE, process.pid + '\n');
    await new Promise((done) => setTimeout(done, 1e6));
  }
  return res.json({ n });
};";
    let python = r#"
import os, time
def main(context):
    n = (context.state.get() or 0) + 1
    context.state.set(n)
    if context.req.path == "/hang":
        with open(os.environ["FILE"], "w") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(1000)
    return context.res.json({"n": n})
"#;
    let home = Home::new();
    let env = format!("{BY_ID}\n[env]\nFILE = \"{}\"", home.file("python"));
    let server = home.node("node", BY_ID, node).python("python", &env, python).start(&[]);
    for function in ["node", "python"] {
        assert_eq!(count(&server, &format!("/{function}?id=a")), 1);
        let mut hanging = server.request("GET", &format!("/{function}/hang?id=a")).open();
        let pid = eventually("the call runs", || home.lines(function).first()?.parse().ok());
        let mut waiting = server.request("GET", &format!("/{function}?id=a")).open();
        signal(pid, Signal::KILL);
        assert_eq!(hanging.reply("GET").problem(), "502 instance-ended function", "{function}");
        assert_eq!(waiting.reply("GET").json()["n"], 2, "{function}: one that waited for the entity goes on");
        assert_eq!(count(&server, &format!("/{function}?id=a")), 3, "{function}");
    }
}

#[test]
fn a_call_that_is_late_leaves_the_state_untouched() {
    let code = r"
export default async ({ req, res, state }) => {
  const n = (state.get() ?? 0) + 1;
  state.set(n);
  if (req.path === '/late') await new Promise((done) => setTimeout(done, 1e6));
  if (req.path === '/loop') while (true);
  return res.json({ n });
};";
    let home = Home::new();
    let server = home.node("f", "timeout = \"3s\"\n[state]\nkey = \"{query.id}\"", code).start(&[]);
    let warm =
        eventually("an instance in time", || Some(server.get("/f?id=warm")).filter(|r| r.status == 200));
    assert_eq!(warm.json()["n"], 1);
    for path in ["late", "loop"] {
        let begun = server.get(&format!("/f/{path}?id={path}"));
        assert_eq!(begun.problem(), "504 deadline function", "{path}");
        let next = eventually("a call in time", || {
            Some(server.get(&format!("/f?id={path}"))).filter(|reply| reply.status == 200)
        });
        assert_eq!(next.json()["n"], 1, "{path}");
    }
}

#[test]
fn an_instance_that_does_not_obey_its_deadline_gets_no_new_calls() {
    let code = "export default ({ req, res }) => { if (req.path === '/loop') while (true); return res.text('fine'); };";
    let home = Home::new();
    let server = home.node("f", "timeout = \"3s\"", code).start(&["--cancel-grace", "1s"]);
    eventually("an instance in time", || (server.get("/f").status == 200).then_some(()));
    assert_eq!(server.get("/f/loop").problem(), "504 deadline function");
    // In the grace nobody knows yet whether it will obey; whoever comes now had no part in that.
    assert_eq!(server.get("/f").status, 200);
}

const KEY: &str =
    "export default ({ res, state }) => { state.set(1); return res.text(JSON.stringify(state.key)); };";

#[track_caller]
fn key_of(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

#[test]
fn keys_from_every_part_of_a_request() {
    let home = Home::new();
    let function = |name: &str, key: &str| {
        home.node(name, &format!("[state]\nkey = \"{key}\""), KEY);
    };
    function("query", "{query.id}");
    function("header", "{header.X-User}");
    function("path", "{path.1}");
    function("second", "{path.2}");
    function("constant", "everybody");
    function("mix", "u:{header.x-user}/{path.1}?{query.a}!");
    function("encoded", "{query.a b}");
    let server = home.start(&[]);
    for (target, key) in [
        ("/query?id=1", "1"),
        ("/query/any/path?x=y&id=1&z", "1"),
        ("/query?id=1&id=2", "2"),
        ("/query?id=a%20b+c%2Bd", "a b c+d"),
        ("/query?id=%C3%A4%F0%9F%98%80", "ä😀"),
        ("/query?id=%e4%b8%ad", "中"),
        ("/query?%69d=x", "x"),
        ("/query?id=a=b", "a=b"),
        ("/query?id=%25", "%"),
        ("/query?id=%", "%"),
        ("/query?id=%zz", "%zz"),
        ("/query?id=a%00b", "a\0b"),
        ("/query?id=a%0Ab", "a\nb"),
        ("/query?id='%22%3B--", "'\";--"),
        ("/path/one", "one"),
        ("/path/one/two", "one"),
        ("/path//one", "one"),
        ("/path/a%2Fb%20c", "a/b c"),
        ("/path/%C3%A4+?id=no", "ä+"),
        ("/second/one/two", "two"),
        ("/constant", "everybody"),
        ("/constant/x?id=1", "everybody"),
        ("/encoded?a%20b=1", "1"),
    ] {
        assert_eq!(key_of(&server.get(target)), key, "{target}");
    }
    let headed =
        |target: &str, user: &str| key_of(&server.request("GET", target).header("x-user", user).send());
    assert_eq!(headed("/header", "ann"), "ann");
    assert_eq!(headed("/header", "Ann %20 b,c"), "Ann %20 b,c");
    assert_eq!(headed("/header", "grün"), "grün");
    assert_eq!(headed("/mix/p%2F?a=1%202", "ann"), "u:ann/p/?1 2!");
}

#[test]
fn a_plus_in_a_name_is_a_space_as_it_is_in_a_value() {
    let home = Home::new();
    let server = home.node("encoded", "[state]\nkey = \"{query.a b}\"", KEY).start(&[]);
    assert_eq!(key_of(&server.get("/encoded?a+b=1+2")), "1 2");
}

#[test]
fn keys_that_look_alike_are_different_entities() {
    let home = Home::new();
    home.node("count", BY_ID, COUNT);
    let mut server = home.start(&[]);
    let keys = [
        "a", "A", "%C3%A4", "a%CC%88", "a%20", "%20a", "a%00", "a%00b", "%00", "0", "00", "0.0", "%25", "_",
        "a%0A",
    ];
    for key in keys {
        assert_eq!(count(&server, &format!("/count?id={key}")), 1, "{key}");
    }
    assert_eq!(server.stop(), 0);
    let server = home.start(&[]);
    for key in keys {
        assert_eq!(count(&server, &format!("/count?id={key}")), 2, "{key}");
    }
}

#[test]
fn the_bound_on_keys() {
    let home = Home::new();
    home.node("query", "[state]\nkey = \"{query.id}\"", KEY).node(
        "mix",
        "[state]\nkey = \"ab{query.id}\"",
        KEY,
    );
    let server = home.start(&[]);
    let long = |n: usize| "k".repeat(n);
    assert_eq!(key_of(&server.get(&format!("/query?id={}", long(512)))), long(512));
    let above = server.get(&format!("/query?id={}", long(513)));
    assert_eq!(above.problem(), "400 no-state-key front");
    assert!(above.detail().contains("513") && above.detail().contains("512"), "{}", above.detail());
    // The whole key counts, and its bytes after decoding.
    assert_eq!(key_of(&server.get(&format!("/mix?id={}", long(510)))).len(), 512);
    assert_eq!(server.get(&format!("/mix?id={}", long(511))).status, 400);
    assert_eq!(key_of(&server.get(&format!("/query?id={}", "%C3%A4".repeat(256)))), "ä".repeat(256));
    assert_eq!(server.get(&format!("/query?id={}", "%C3%A4".repeat(257))).status, 400);
}

#[test]
fn a_request_without_its_key_is_told_what_is_missing() {
    let home = Home::new();
    let code = "
import fs from 'node:fs';
fs.writeFileSync(process.env.HOME_FILE, 'started');
export default ({ res }) => res.text('x');";
    let function = |name: &str, key: &str| {
        home.node(name, &format!("[state]\nkey = \"{key}\""), code);
    };
    function("query", "{query.user}");
    function("header", "{header.X-User}");
    function("path", "{path.2}");
    function("mix", "{query.a}/{query.b}");
    let server = home.start(&[]);
    for (target, missing) in [
        ("/query", "query parameter `user`"),
        ("/query?user", "query parameter `user`"),
        ("/query?user=", "query parameter `user`"),
        ("/query?User=1", "query parameter `user`"),
        ("/header", "header `x-user`"),
        ("/path", "path segment 2"),
        ("/path/one", "path segment 2"),
        ("/path/one//", "path segment 2"),
        ("/mix?a=1", "query parameter `b`"),
        ("/mix?b=1", "query parameter `a`"),
    ] {
        let reply = server.get(target);
        assert_eq!(reply.problem(), "400 no-state-key front", "{target}");
        assert!(reply.detail().contains(missing), "{target}: {}", reply.detail());
    }
    let empty = server.request("GET", "/header").header("x-user", "").send();
    assert_eq!(empty.problem(), "400 no-state-key front");
    for function in ["query", "header", "path", "mix"] {
        assert_eq!(server.starts(function), 0, "no instance is started for nothing");
    }
}

#[test]
fn functions_do_not_see_each_others_state() {
    let home = Home::new();
    home.node("one", BY_ID, COUNT).node("two", BY_ID, COUNT).python("three", BY_ID, STORE_PYTHON);
    let server = home.start(&[]);
    assert_eq!((count(&server, "/one?id=a"), count(&server, "/one?id=a")), (json!(1), json!(2)));
    assert_eq!(count(&server, "/two?id=a"), 1);
    assert_eq!(stored(&server, "three", "a"), kept("absent", ""));
    assert_eq!(count(&server, "/one?id=a"), 3);
}

#[test]
fn a_streamed_answer_is_committed_before_its_first_byte() {
    let node = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
async function* pieces(state, late) {
  yield 'first';
  while (!fs.existsSync(process.env.HOME_FILE)) await sleep(5);
  if (late) state.set('too late');
  yield 'second';
}
export default ({ req, res, state }) => {
  if (req.path === '/get') return res.json({ n: state.get() ?? null });
  state.set('streamed');
  return res.stream(pieces(state, req.path === '/late'));
};";
    let python = r#"
import os, time
def pieces(state, late):
    yield "first"
    while not os.path.exists(os.environ["FILE"]):
        time.sleep(0.005)
    if late:
        state.set("too late")
    yield "second"

def main(context):
    if context.req.path == "/get":
        return context.res.json({"n": context.state.get()})
    context.state.set("streamed")
    return context.res.stream(pieces(context.state, context.req.path == "/late"))
"#;
    let home = Home::new();
    let env = format!("{BY_ID}\n[env]\nFILE = \"{}\"", home.file("python"));
    let server = home.node("node", BY_ID, node).python("python", &env, python).start(&[]);
    for function in ["node", "python"] {
        let mut whole = server.request("GET", &format!("/{function}?id=a")).open();
        let mut late = server.request("GET", &format!("/{function}/late?id=b")).open();
        for conn in [&mut whole, &mut late] {
            assert_eq!(conn.head().status, 200, "{function}");
            assert_eq!(conn.chunk().as_deref(), Some(&b"first"[..]), "{function}");
        }
        // Both streams are still open; their entities are free.
        assert_eq!(count(&server, &format!("/{function}/get?id=a")), "streamed", "{function}");
        std::fs::write(home.file(function), "").unwrap();
        assert_eq!(whole.chunk().as_deref(), Some(&b"second"[..]), "{function}");
        assert_eq!(whole.chunk(), Some(vec![]), "{function}");
        assert_eq!(late.chunk(), None, "{function}: setting it now raises, which breaks the stream");
        assert_eq!(count(&server, &format!("/{function}/get?id=b")), "streamed", "{function}");
    }
}

#[test]
fn a_stateless_function_is_told_that_it_is_one() {
    let node = r"
export default ({ req, res, state }) => {
  try {
    if (req.path === '/key') return res.text(String(state.key));
    if (req.path === '/set') state.set(1);
    if (req.path === '/delete') state.delete();
    if (req.path === '/get') state.get();
  } catch (e) { return res.text(e.message, 209); }
  return res.text('fine');
};";
    let python = r#"
def main(context):
    try:
        if context.req.path == "/key":
            return context.res.text(str(context.state.key))
        if context.req.path == "/set":
            context.state.set(1)
        if context.req.path == "/delete":
            context.state.delete()
        if context.req.path == "/get":
            context.state.get()
    except Exception as error:
        return context.res.text(str(error), 209)
    return context.res.text("fine")
"#;
    let home = Home::new();
    let server = home.node("node", "", node).python("python", "", python).start(&[]);
    for function in ["node", "python"] {
        for path in ["get", "set", "delete", "key"] {
            let reply = server.get(&format!("/{function}/{path}"));
            let told = (reply.status, reply.text());
            assert_eq!(
                told,
                (209, "this function has no [state] in its function.toml".into()),
                "{function} {path}"
            );
        }
        assert_eq!(server.ok(&format!("/{function}")).text(), "fine");
    }
}
