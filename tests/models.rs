//! State models, exactly-once effects and time, through real calls of both languages.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is a failed test")]

mod common;
mod servers;

use std::time::Duration;

use common::{Home, Reply, Server, at_once, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use servers::{Postgres, Redis};

const LEDGER: &str = r"
export const initial = { total: 0, seen: 0 };
export const events = {
  added: (s, { n }) => ({ total: s.total + n, seen: s.seen + 1 }),
  reset: (s) => { s.total = 0; s.seen += 1; },
};
export default ({ req, res, state }) => {
  for (let i = 0; i < Number(req.query.times ?? 0); i++) state.emit('added', { n: Number(req.query.n ?? 1) });
  if (req.path === '/reset') state.emit('reset', null);
  if (req.path === '/unknown') state.emit('nonsense', null);
  if (req.path === '/raise') { state.emit('added', { n: 1 }); throw new Error('after emit'); }
  return res.json(state.get());
};";

const LEDGER_PYTHON: &str = r#"
initial = {"total": 0, "seen": 0}

def reset(state, data):
    state["total"] = 0
    state["seen"] += 1

events = {
    "added": lambda s, data: {"total": s["total"] + data["n"], "seen": s["seen"] + 1},
    "reset": reset,
}

def main(context):
    req, res, state = context.req, context.res, context.state
    for _ in range(int(req.query.get("times", 0))):
        state.emit("added", {"n": int(req.query.get("n", 1))})
    if req.path == "/reset":
        state.emit("reset", None)
    if req.path == "/unknown":
        state.emit("nonsense", None)
    if req.path == "/raise":
        state.emit("added", {"n": 1})
        raise ValueError("after emit")
    return res.json(state.get())
"#;

const EVENTS: &str = "[state]\nkey = \"{query.id}\"\nmodel = \"events\"\nsnapshot-every = 5\n";

fn operator(server: &Server, method: &str, path: &str) -> Reply {
    server.request(method, path).header("authorization", &format!("Bearer {}", server.admin)).send()
}

/// The log of an entity as lines of JSON, without the times.
fn history(server: &Server, function: &str, key: &str, from: u64) -> Vec<Value> {
    let reply = operator(server, "GET", &format!("/_/state/{function}/{key}/history?from={from}"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    let text = reply.text();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        assert!(line.as_object_mut().unwrap().remove("at").unwrap().as_u64().unwrap() > 1_700_000_000_000);
        line
    });
    lines.collect()
}

#[test]
fn events_fold_and_are_kept() {
    let home = Home::new();
    home.node("node", EVENTS, LEDGER).python("python", EVENTS, LEDGER_PYTHON);
    let mut server = home.start(&[]);
    for name in ["node", "python"] {
        let call = |target: &str| server.request("POST", &format!("/{name}{target}")).send();
        assert_eq!(call("?id=a").json(), json!({"total": 0, "seen": 0}), "{name}");
        assert_eq!(call("?id=a&times=3&n=2").json(), json!({"total": 6, "seen": 3}));
        // Across a snapshot, which five events make.
        assert_eq!(call("?id=a&times=3").json(), json!({"total": 9, "seen": 6}));
        assert_eq!(call("/reset?id=a").json(), json!({"total": 0, "seen": 7}));
        assert_eq!(call("?id=a").json(), json!({"total": 0, "seen": 7}));
        assert_eq!(call("?id=b&times=1").json(), json!({"total": 1, "seen": 1}), "another key");
        // What raised, in whichever way, changes nothing.
        assert_eq!(call("/raise?id=a").status, 500);
        assert_eq!(call("/unknown?id=a").status, 500);
        assert_eq!(call("?id=a").json(), json!({"total": 0, "seen": 7}));
        let log = history(&server, name, "a", 1);
        assert_eq!(log.len(), 7);
        assert_eq!(log[0], json!({"seq": 1, "type": "added", "data": {"n": 2}}));
        assert_eq!(log[6], json!({"seq": 7, "type": "reset", "data": null}));
        assert_eq!(history(&server, name, "a", 7), log[6..]);
        assert!(history(&server, name, "a", 8).is_empty());
    }
    // Also after a restart, and concurrently.
    assert_eq!(server.stop(), 0);
    let server = home.start(&[]);
    let totals = at_once(8, |_| {
        (0..25)
            .map(|_| server.request("POST", "/node?id=b&times=1").send().json()["seen"].as_u64().unwrap())
            .max()
    });
    assert_eq!(totals.into_iter().flatten().max(), Some(201));
    let numbers: Vec<_> =
        history(&server, "node", "b", 1).iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=201).collect::<Vec<_>>());
    // Deleted by an operator it begins anew, with nothing of the old log.
    assert_eq!(operator(&server, "DELETE", "/_/state/node/b").status, 204);
    assert_eq!(server.request("POST", "/node?id=b&times=1").send().json(), json!({"total": 1, "seen": 1}));
    assert_eq!(history(&server, "node", "b", 1).len(), 1);
}

const MERGED: &str = "[state]\nkey = \"{query.id}\"\nmodel = \"crdt\"\ntype = \"or-map\"\n";

const TALLY: &str = r"
export default ({ req, res, state }) => {
  const count = state.entry('count', 'pn-counter'), names = state.entry('names', 'or-set');
  if (req.query.by) count.increment(Number(req.query.by));
  if (req.query.add) names.add(req.query.add);
  if (req.query.remove) names.remove(req.query.remove);
  return res.json({ count: count.value, names: [...names.values].sort() });
};";

const TALLY_PYTHON: &str = r#"
def main(context):
    req, res, state = context.req, context.res, context.state
    count, names = state.entry("count", "pn-counter"), state.entry("names", "or-set")
    if "by" in req.query:
        count.increment(int(req.query["by"]))
    if "add" in req.query:
        names.add(req.query["add"])
    if "remove" in req.query:
        names.remove(req.query["remove"])
    return res.json({"count": count.value, "names": sorted(names.values)})
"#;

#[test]
fn crdts_merge_what_calls_did_at_once() {
    let home = Home::new();
    home.node("node", MERGED, TALLY).python("python", MERGED, TALLY_PYTHON);
    let server = home.start(&[]);
    for name in ["node", "python"] {
        at_once(8, |task| {
            for n in 0..20 {
                let reply = server.request("POST", &format!("/{name}?id=x&by=3&add={task}.{n}")).send();
                assert_eq!(reply.status, 200, "{}", reply.text());
                let reply = server.request("POST", &format!("/{name}?id=x&by=-1")).send();
                assert_eq!(reply.status, 200, "{}", reply.text());
            }
        });
        let whole = server.request("GET", &format!("/{name}?id=x")).send().json();
        assert_eq!(whole["count"], 8 * 20 * 2);
        assert_eq!(whole["names"].as_array().unwrap().len(), 160);
        let less = server.request("POST", &format!("/{name}?id=x&remove=0.0")).send().json();
        assert_eq!(less["names"].as_array().unwrap().len(), 159);
        let shown = operator(&server, "GET", &format!("/_/state/{name}/x")).json();
        assert_eq!(shown["count"], 320, "{shown}");
    }
}

/// Two executors on one store: what both merge converges, what both write is never lost, and a request is done once.
fn two_hosts(url: &str) {
    let homes = [Home::new(), Home::new()];
    let value = "[state]\nkey = \"{query.id}\"\n";
    for home in &homes {
        home.node("merged", MERGED, TALLY).node("value", value, common::node::COUNT);
        home.node("failing", &format!("{value}on-conflict = \"fail\"\n"), SLOW_COUNT);
        home.node("ledger", EVENTS, LEDGER);
    }
    let servers = homes.each_ref().map(|home| home.start(&["--store", url]));
    let retried = at_once(8, |task| {
        let server = &servers[task % 2];
        let mut retried = 0;
        for n in 0..15 {
            for target in [
                format!("/merged?id=x&by=1&add={task}.{n}"),
                "/value?id=x".to_owned(),
                "/ledger?id=x&times=1".to_owned(),
            ] {
                // With bad luck a call loses five times; its client may then simply repeat it.
                let reply = eventually("a call that wins", || {
                    let reply = server.request("POST", &target).send();
                    (reply.status != 409).then_some(reply)
                });
                assert_eq!(reply.status, 200, "{}", reply.text());
                retried += usize::from(reply.header("server-timing").unwrap().contains("retries;desc="));
            }
        }
        retried
    });
    assert!(retried.into_iter().sum::<usize>() > 0, "eight clients on two hosts never met");
    for server in &servers {
        let merged = server.request("GET", "/merged?id=x").send().json();
        assert_eq!((&merged["count"], merged["names"].as_array().unwrap().len()), (&json!(120), 120));
        assert_eq!(server.request("POST", "/ledger?id=x").send().json(), json!({"total": 120, "seen": 120}));
    }
    assert_eq!(servers[0].request("POST", "/value?id=x").send().json()["n"], 121);
    // The same request to both at once.
    for round in 0..5 {
        let replies = at_once(4, |task| {
            let key = format!("order-{round}");
            let call = servers[task % 2].request("POST", "/ledger?id=once&times=1&n=7");
            call.header("idempotency-key", &key).send()
        });
        let first = replies[0].json();
        assert!(replies.iter().all(|reply| reply.status == 200 && reply.json() == first), "{replies:?}");
        let new = replies.iter().filter(|reply| reply.header("idempotent-replayed").is_none()).count();
        assert_eq!(new, 1);
    }
    assert_eq!(servers[1].request("GET", "/ledger?id=once").send().json(), json!({"total": 35, "seen": 5}));
    // A function that wants its callers to hear of a conflict.
    let statuses = at_once(2, |task| servers[task].request("POST", "/failing?id=x").send().status);
    let told = statuses.iter().filter(|status| **status == 409).count();
    let counted = servers[0].request("POST", "/failing?id=x").send().json()["n"].as_u64().unwrap();
    assert_eq!(counted as usize + told, 3, "each of three calls counted or was told: {statuses:?}");
}

const SLOW_COUNT: &str = r"
import { setTimeout as sleep } from 'node:timers/promises';
export default async ({ res, state }) => {
  const n = (state.get()?.n ?? 0) + 1;
  await sleep(300);
  state.set({ n });
  return res.json({ n });
};";

#[test]
fn two_hosts_on_postgres() {
    let database = Postgres::shared().database();
    two_hosts(&database.url());
}

#[test]
fn two_hosts_on_redis() {
    let server = Redis::start(&[]);
    two_hosts(&server.url());
}

const ONCE: &str = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
export default async ({ req, res, state }) => {
  fs.appendFileSync(process.env.HOME_FILE, 'ran\n');
  if (req.path === '/raise' && !fs.existsSync(process.env.HOME_FILE + '.mended')) throw new Error('not yet');
  if (req.path === '/slow') await sleep(300);
  const n = (state.get()?.n ?? 0) + 1;
  state.set({ n });
  if (req.path === '/stream') return res.stream((function* () { yield 'n is '; yield String(n); })());
  if (req.path === '/large') return res.text('x'.repeat(200000) + n);
  return res.json({ n }, 201, { 'x-n': String(n), 'set-cookie': ['a=1', 'b=2'] });
};";

#[test]
fn a_request_with_a_key_is_done_once() {
    let home = Home::new();
    home.node("once", "[state]\nkey = \"all\"\nidempotency = \"1h\"\n", ONCE);
    let mut server = home.start(&[]);
    let send = |server: &Server, target: &str, key: &str, body: &str| {
        server.request("POST", target).header("idempotency-key", key).body(body).send()
    };
    let first = send(&server, "/once", "k1", "body");
    assert_eq!((first.status, first.header("idempotent-replayed")), (201, None));
    let again = send(&server, "/once", "k1", "body");
    assert_eq!((again.status, again.header("idempotent-replayed")), (201, Some("true")));
    assert_eq!((again.json(), again.header("x-n")), (json!({"n": 1}), Some("1")));
    assert_eq!(again.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(again.header("content-type"), first.header("content-type"));
    // Another method, path, query or body is another request.
    for reply in [
        send(&server, "/once", "k1", "other"),
        send(&server, "/once/path", "k1", "body"),
        send(&server, "/once?q=1", "k1", "body"),
        server.request("PUT", "/once").header("idempotency-key", "k1").body("body").send(),
    ] {
        assert_eq!(reply.problem(), "422 idempotency-key-reused front");
    }
    for key in ["", &"k".repeat(256)] {
        assert_eq!(send(&server, "/once", key, "").problem(), "400 bad-idempotency-key front");
    }
    assert_eq!(send(&server, "/once", &"k".repeat(255), "").json(), json!({"n": 2}));
    // Who comes while the first runs waits for it.
    let replies = at_once(6, |_| send(&server, "/once/slow", "k2", "").json());
    assert_eq!(replies, vec![json!({"n": 3}); 6]);
    // Answers that were streamed.
    for _ in 0..2 {
        assert_eq!(send(&server, "/once/stream", "k3", "").text(), "n is 4");
        assert_eq!(send(&server, "/once/large", "k4", "").body.len(), 200_001);
    }
    // A call that raised records nothing.
    let ran = home.lines("once").len();
    assert_eq!(send(&server, "/once/raise", "k5", "").status, 500);
    assert_eq!(send(&server, "/once/raise", "k5", "").status, 500);
    assert_eq!(home.lines("once").len(), ran + 2);
    std::fs::write(home.file("once") + ".mended", "").unwrap();
    assert_eq!(send(&server, "/once/raise", "k5", "").json(), json!({"n": 6}));
    // It is on the disk, with the state.
    server.kill();
    let server = home.start(&[]);
    assert_eq!(send(&server, "/once", "k1", "body").json(), json!({"n": 1}));
    assert_eq!(send(&server, "/once/raise", "k5", "").json(), json!({"n": 6}));
    assert_eq!(server.request("POST", "/once").send().json(), json!({"n": 7}));
}

#[test]
fn shared_methods_run_at_once_and_cannot_write() {
    let home = Home::new();
    let code = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
export default async ({ req, res, state }) => {
  if (req.path === '/write') state.set({ n: 0 });
  if (req.path === '/wait') {
    fs.appendFileSync(process.env.HOME_FILE, 'in\n');
    while (fs.readFileSync(process.env.HOME_FILE, 'utf8').split('\n').length < 4) await sleep(5);
  }
  if (req.method === 'POST') state.set({ n: (state.get()?.n ?? 0) + 1 });
  return res.json(state.get() ?? null);
};";
    home.node("f", "[state]\nkey = \"all\"\nshared = [\"GET\", \"HEAD\"]\n", code);
    let server = home.start(&[]);
    assert_eq!(server.request("POST", "/f").send().json(), json!({"n": 1}));
    // Each waits until three are in: one after the other they would wait for ever.
    let replies = at_once(3, |_| server.request("GET", "/f/wait").send().json());
    assert_eq!(replies, vec![json!({"n": 1}); 3]);
    let refused = server.request("GET", "/f/write").send();
    assert_eq!(refused.status, 500);
    let lines = server.execution(refused.header("x-request-id").unwrap()).join("\n");
    assert!(lines.contains("read-only"), "{lines}");
    assert_eq!(server.request("GET", "/f").send().json(), json!({"n": 1}));
}

#[test]
fn what_expired_is_absent_and_swept() {
    let home = Home::new();
    let code = r"
export default ({ req, res, state }) => {
  const was = state.get() ?? null;
  if (req.method === 'POST') state.set(req.bodyJson);
  if (req.query.expire) state.expire(Number(req.query.expire));
  return res.json({ was, version: state.version });
};";
    home.node("f", "[state]\nkey = \"{query.id}\"\nttl = \"1s\"\n", code);
    let server = home.start(&[]);
    let post = |target: &str| {
        server.request("POST", target).body("1").header("content-type", "application/json").send().json()
    };
    let was = |target: &str| server.request("GET", target).send().json()["was"].clone();
    post("/f?id=ttl");
    post("/f?id=long&expire=3600");
    assert_eq!((was("/f?id=ttl"), was("/f?id=long")), (json!(1), json!(1)));
    eventually("the value is gone", || was("/f?id=ttl").is_null().then_some(()));
    assert_eq!(was("/f?id=long"), 1);
    assert_eq!(operator(&server, "GET", "/_/state/f/ttl").problem(), "404 unknown-key store");
    let listed = operator(&server, "GET", "/_/state/f").json();
    assert_eq!(listed["keys"].as_array().unwrap().len(), 1, "{listed}");
    // Written anew before or after it is swept.
    assert_eq!(post("/f?id=ttl")["was"], Value::Null);
    assert_eq!(was("/f?id=ttl"), 1);
}

const TIMERS: &str = r"
import fs from 'node:fs';
const write = (text) => fs.appendFileSync(process.env.HOME_FILE, text + '\n');
export default ({ req, res, state }) => {
  const s = state.get() ?? { fired: [] };
  if (req.path.startsWith('/__timer/')) {
    const attempt = req.headers['x-executor-timer-attempt'];
    write([req.method, req.path, req.bodyText, state.key, attempt].join(' '));
    if (req.path.includes('fails') && attempt === '1') throw new Error('the first time');
    s.fired.push(req.path);
    if (req.path.endsWith('/again') && s.fired.length < 3) state.schedule('again', { after: 0.05 });
    state.set(s);
    return res.empty();
  }
  if (req.path === '/set') state.schedule(req.query.name, { after: req.query.after }, { n: 1 });
  if (req.path === '/raise') { state.schedule('never', { after: 0 }); throw new Error('after schedule'); }
  if (req.path === '/cancel') state.cancel(req.query.name);
  return res.json(s);
};";

#[test]
fn timers_come_with_their_state() {
    let home = Home::new();
    home.node("f", "[state]\nkey = \"{query.id}\"\n", TIMERS);
    let mut server = home.start(&[]);
    let call = |server: &Server, target: &str| server.request("POST", target).send();
    assert_eq!(call(&server, "/f/set?id=a&name=soon&after=100ms").status, 200);
    assert_eq!(call(&server, "/f/set?id=a&name=late&after=1h").status, 200);
    assert_eq!(call(&server, "/f/set?id=a&name=gone&after=1500ms").status, 200);
    assert_eq!(call(&server, "/f/cancel?id=a&name=gone").status, 200);
    assert_eq!(call(&server, "/f/raise?id=a").status, 500);
    let fired = |server: &Server, id: &str| call(server, &format!("/f?id={id}")).json()["fired"].clone();
    eventually("the timer came", || (fired(&server, "a") == json!(["/__timer/soon"])).then_some(()));
    assert_eq!(home.lines("f"), [r#"POST /__timer/soon {"n":1} a 1"#]);
    // One that sets itself anew, and one that fails at first.
    call(&server, "/f/set?id=b&name=again&after=10ms");
    eventually("three times", || (fired(&server, "b").as_array().unwrap().len() == 3).then_some(()));
    call(&server, "/f/set?id=c&name=fails&after=10ms");
    eventually("the second time", || (fired(&server, "c") == json!(["/__timer/fails"])).then_some(()));
    assert_eq!(home.lines("f").iter().filter(|line| line.contains("fails")).count(), 2);
    // Callers cannot pretend to be one.
    assert_eq!(call(&server, "/f/__timer/soon?id=a").problem(), "404 timer-path front");
    // They survive, and those that came due meanwhile come at once.
    call(&server, "/f/set?id=d&name=kept&after=400ms");
    server.signal(Signal::KILL);
    server.wait();
    std::thread::sleep(Duration::from_millis(500));
    let server = home.start(&[]);
    eventually("after the restart", || (fired(&server, "d") == json!(["/__timer/kept"])).then_some(()));
    assert_eq!(fired(&server, "a"), json!(["/__timer/soon"]), "nothing was cancelled, raised or not due");
}

#[test]
fn a_timer_is_run_by_one_host() {
    let server = Redis::start(&[]);
    let homes = [Home::new(), Home::new()];
    for home in &homes {
        home.node("f", "[state]\nkey = \"{query.id}\"\n", TIMERS);
    }
    let hosts = homes.each_ref().map(|home| home.start(&["--store", &server.url()]));
    for id in 0..40 {
        let reply = hosts[id % 2].request("POST", &format!("/f/set?id={id}&name=t&after=200ms")).send();
        assert_eq!(reply.status, 200);
    }
    let lines = || homes.iter().map(|home| home.lines("f").len()).sum::<usize>();
    eventually("all came", || (lines() >= 40).then_some(()));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(lines(), 40, "none came twice");
}

#[test]
fn older_state_is_migrated_and_newer_refused() {
    let home = Home::new();
    let plain = "[state]\nkey = \"all\"\n";
    home.node("f", plain, "export default ({ req, res, state }) => { if (req.method === 'POST') state.set(req.bodyJson); return res.json(state.get() ?? null); };");
    let mut server = home.start(&[]);
    let post = |server: &Server, body: &str| {
        server.request("POST", "/f").header("content-type", "application/json").body(body).send()
    };
    assert_eq!(post(&server, r#"{"name":"ada lovelace"}"#).status, 200);
    assert_eq!(server.stop(), 0);
    let code = r"
export function migrate(old, version) {
  if (version === 1) { const [first, last] = old.name.split(' '); old = { first, last, from: version }; }
  return old;
}
export default ({ req, res, state }) => { if (req.method === 'POST') state.set(req.bodyJson); return res.json(state.get() ?? null); };";
    home.node("f", &format!("{plain}version = 2\n"), code);
    let mut server = home.start(&[]);
    let migrated = json!({"first": "ada", "last": "lovelace", "from": 1});
    assert_eq!(server.request("GET", "/f").send().json(), migrated);
    // It was stored with that call.
    assert_eq!(operator(&server, "GET", "/_/state/f/all").json(), migrated);
    assert_eq!(server.request("GET", "/f").send().json(), migrated);
    assert_eq!(server.stop(), 0);
    home.node("f", plain, "export default ({ res, state }) => res.json(state.get());");
    let server = home.start(&[]);
    let refused = server.request("GET", "/f").send();
    assert_eq!(refused.problem(), "503 state-too-new function");
    assert!(
        refused.detail().contains("version 2") && refused.detail().contains("up to 1"),
        "{}",
        refused.detail()
    );
}

#[test]
fn another_model_is_refused_and_entities_are_bounded() {
    let home = Home::new();
    home.node("f", EVENTS, LEDGER).node(
        "few",
        "[state]\nkey = \"{query.id}\"\nmax-entities = 3\n",
        common::node::COUNT,
    );
    let mut server = home.start(&[]);
    assert_eq!(server.request("POST", "/f?id=a&times=1").send().status, 200);
    for id in 0..3 {
        assert_eq!(server.request("POST", &format!("/few?id={id}")).send().status, 200);
    }
    let full = server.request("POST", "/few?id=3").send();
    assert_eq!(full.problem(), "507 too-many-entities function");
    assert_eq!(server.request("POST", "/few?id=0").send().json()["n"], 2, "those that are there go on");
    assert_eq!(operator(&server, "DELETE", "/_/state/few/1").status, 204);
    assert_eq!(server.request("POST", "/few?id=3").send().status, 200);
    assert_eq!(server.stop(), 0);
    home.node("f", "[state]\nkey = \"{query.id}\"\n", common::node::COUNT);
    let server = home.start(&[]);
    let refused = server.request("POST", "/f?id=a").send();
    assert_eq!(refused.problem(), "503 state-model function");
    assert!(refused.detail().contains("`events`") && refused.detail().contains("`value`"));
}

#[test]
fn functions_choose_their_store() {
    let home = Home::new();
    let redis = Redis::start(&[]);
    home.node("here", "[state]\nkey = \"all\"\n", common::node::COUNT);
    home.node("there", "[state]\nkey = \"all\"\nstore = \"fast\"\n", common::node::COUNT);
    home.node("nowhere", "[state]\nkey = \"all\"\nstore = \"slow\"\n", common::node::COUNT);
    let server = home.start(&["--store", &format!("fast={}", redis.url())]);
    assert_eq!(server.request("POST", "/here").send().json()["n"], 1);
    assert_eq!(server.request("POST", "/there").send().json()["n"], 1);
    assert!(redis.cli(&["keys", "*"]).contains("there"));
    assert!(!redis.cli(&["keys", "*"]).contains(":here:"), "{}", redis.cli(&["keys", "*"]));
    let broken = server.request("POST", "/nowhere").send();
    assert_eq!(broken.problem(), "503 broken-function function");
    assert!(broken.detail().contains("--store slow=URL"), "{}", broken.detail());
    assert_eq!(operator(&server, "GET", "/_/state/there/all").json()["n"], 1);
    redis.kill();
    assert_eq!(server.request("POST", "/there").send().problem(), "503 store-unavailable store");
    assert_eq!(server.request("POST", "/here").send().json()["n"], 2);
    assert_eq!(server.request("GET", "/_/health").send().json()["status"], "degraded");
}

#[test]
fn slow_timers_of_one_function_hold_up_no_other() {
    const AT_ONCE: usize = 32;
    let home = Home::new();
    let slow = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
export default async ({ req, res, state }) => {
  if (!req.path.startsWith('/__timer/')) {
    state.schedule('slow', { after: 0 });
    return res.empty();
  }
  fs.appendFileSync(process.env.HOME_FILE, 'in\n');
  while (!fs.existsSync(process.env.HOME_FILE + '.go')) await sleep(10);
  return res.empty();
};";
    home.node("slow", "timeout = \"60s\"\n[state]\nkey = \"{query.id}\"\n", slow);
    home.node("f", "[state]\nkey = \"{query.id}\"\n", TIMERS);
    let server = home.start(&[]);
    for id in 0..=AT_ONCE {
        assert_eq!(server.request("POST", &format!("/slow?id={id}")).send().status, 204);
    }
    eventually("as many as allowed run", || (home.lines("slow").len() >= AT_ONCE).then_some(()));
    assert_eq!(server.request("POST", "/f/set?id=a&name=quick&after=1ms").send().status, 200);
    eventually("the other's timer came", || (home.lines("f").len() == 1).then_some(()));
    assert_eq!(home.lines("slow").len(), AT_ONCE, "one above the bound waits");
    std::fs::write(home.file("slow") + ".go", "").unwrap();
    eventually("then it comes", || (home.lines("slow").len() == AT_ONCE + 1).then_some(()));
}

#[test]
fn timers_wait_for_a_function_that_went() {
    let redis = Redis::start(&[]);
    let begin = "if (req.path.startsWith('/__timer/')) {";
    let slow = format!("{begin} await new Promise((done) => setTimeout(done, 1000));");
    let code = TIMERS.replace("export default (", "export default async (").replace(begin, &slow);
    let home = Home::new();
    let add = || home.node("f", "[state]\nkey = \"{query.id}\"\n", &code);
    add();
    let server = home.start(&["--watch", "--store", &redis.url()]);
    for id in 0..300 {
        let reply = server.request("POST", &format!("/f/set?id={id}&name=t&after=1s")).send();
        assert_eq!(reply.status, 200);
    }
    eventually("the first came", || (!home.lines("f").is_empty()).then_some(()));
    std::fs::remove_dir_all(home.functions().join("f")).unwrap();
    server.wait_log("removed");
    let scripts = || {
        let stats = redis.cli(&["info", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
        line.split(',').next().unwrap().parse::<u64>().unwrap()
    };
    std::thread::sleep(Duration::from_millis(500));
    let before = scripts();
    std::thread::sleep(Duration::from_secs(2));
    // A look each second, and a sweep.
    assert!(scripts() - before < 50, "{} calls in two seconds", scripts() - before);
    add();
    let fired = |id| server.request("POST", &format!("/f?id={id}")).send();
    for id in 0..300 {
        eventually("after it came back", || {
            let reply = fired(id);
            (reply.status == 200 && reply.json()["fired"] == json!(["/__timer/t"])).then_some(())
        });
    }
}
