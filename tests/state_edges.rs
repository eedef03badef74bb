//! Calls with state where they meet a bound, another entity, or a new version of their function.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is a failed test")]

mod common;

use common::node::{COUNT, GATE};
use common::{Home, at_once, eventually};
use serde_json::json;

const BY_ID: &str = "[state]\nkey = \"{query.id}\"\n";

/// Tells how large the body was, and of whom it was the how manieth.
const WEIGH: &str = r"
export default async ({ req, res, state }) => {
  const n = (state?.get()?.n ?? 0) + 1;
  state?.set({ n });
  return res.json({ n, bytes: req.bodyBinary.length, last: req.bodyBinary.at(-1) ?? null });
};";

const WEIGH_PYTHON: &str = r#"
def main(context):
    body = context.req.body_binary
    n = (context.state.get() or {"n": 0})["n"] + 1
    context.state.set({"n": n})
    return context.res.json({"n": n, "bytes": len(body), "last": body[-1] if body else None})
"#;

#[test]
fn bodies_larger_than_a_frame_reach_functions_with_state() {
    const LARGE: usize = 40 << 20;
    let home = Home::new();
    home.node("node", BY_ID, WEIGH).python("python", BY_ID, WEIGH_PYTHON);
    let server = home.start(&["--max-body", "64MiB"]);
    for name in ["node", "python"] {
        for (n, size) in [0, 1 << 20, (1 << 20) + 1, LARGE].into_iter().enumerate() {
            let mut body = vec![0; size];
            let last = body.last_mut().map(|last| {
                *last = 7;
                7
            });
            let reply = server.request("POST", &format!("/{name}?id=a")).body(body).send();
            assert_eq!(reply.status, 200, "{name} {size}: {}", reply.text());
            assert_eq!(reply.json(), json!({ "n": n + 1, "bytes": size, "last": last }), "{name}");
        }
        assert_eq!(server.starts(name), 1, "no instance was lost to any of them");
    }
}

#[test]
fn a_log_of_large_events_never_outgrows_a_call() {
    const EVENTS: usize = 40;
    let node = r"
export const initial = { n: 0 };
export const events = { added: (s, text) => ({ n: s.n + 1, last: text.length }) };
export default ({ req, res, state }) => {
  if (req.method === 'POST') state.emit('added', 'x'.repeat(1_000_000));
  return res.json(state.get());
};";
    let python = r#"
initial = {"n": 0}
events = {"added": lambda s, text: {"n": s["n"] + 1, "last": len(text)}}
def main(context):
    if context.req.method == "POST":
        context.state.emit("added", "x" * 1_000_000)
    return context.res.json(context.state.get())
"#;
    let home = Home::new();
    let manifest = format!("{BY_ID}model = \"events\"\nsnapshot-every = 10000\n");
    home.node("node", &manifest, node).python("python", &manifest, python);
    let server = home.start(&[]);
    for name in ["node", "python"] {
        let target = format!("/{name}?id=a");
        for n in 1..=EVENTS {
            assert_eq!(server.post(&target, "").json(), json!({ "n": n, "last": 1_000_000 }), "{name}");
        }
        assert_eq!(server.ok(&target).json()["n"], EVENTS, "{name}");
        assert_eq!(server.starts(name), 1, "no instance was lost");
    }
}

#[test]
fn an_idempotency_key_is_no_way_to_anothers_answer() {
    let home = Home::new();
    home.node("count", "[state]\nkey = \"{header.x-user}\"\n", COUNT);
    let server = home.start(&[]);
    let send = |user: &str| {
        let request = server.request("POST", "/count").header("x-user", user);
        request.header("idempotency-key", "order-1").body("tea").send()
    };
    assert_eq!(send("ada").json()["n"], 1);
    assert_eq!(send("ada").header("idempotent-replayed"), Some("true"));
    let bob = send("bob");
    assert_eq!(bob.problem(), "422 idempotency-key-reused front");
    assert!(!bob.text().contains("\"n\""), "{}", bob.text());
}

#[test]
fn who_waits_for_one_key_keeps_nobody_from_another() {
    let home = Home::new();
    home.node("gate", &format!("timeout = \"60s\"\nconcurrency = 8\n{BY_ID}"), GATE);
    let server = home.start(&["--queue", "1"]);
    std::thread::scope(|scope| {
        let (told, statuses) = std::sync::mpsc::channel();
        let call = |_| {
            let (told, server) = (told.clone(), &server);
            scope.spawn(move || told.send(server.get("/gate?id=a").status).unwrap());
        };
        (0..8).for_each(call);
        let refused: Vec<_> = statuses.iter().take(6).collect();
        assert_eq!(refused, [429; 6], "one runs, one waits, more are too many");
        let begun = || home.lines("gate").iter().filter(|line| line.starts_with("begin")).count();
        eventually("the instance is there", || (begun() == 1).then_some(()));
        let other = scope.spawn(|| server.get("/gate?id=b"));
        eventually("the call for another key runs", || (begun() == 2 || other.is_finished()).then_some(()));
        std::fs::write(home.file("gate.go"), "").unwrap();
        let other = other.join().unwrap();
        assert_eq!(other.status, 200, "{}", other.text());
        assert_eq!(statuses.iter().take(2).collect::<Vec<_>>(), [200, 200]);
    });
}

#[test]
fn a_call_that_meets_a_new_version_brings_it_migrated_state() {
    let first = r"
export default ({ req, res, state }) => {
  if (req.method === 'POST') state.set({ name: req.bodyText });
  return res.json(state.get() ?? null);
};";
    let second = r"
export const migrate = (old) => ({ names: [old.name] });
export default ({ req, res, state }) => {
  const { names } = state.get() ?? { names: [] };
  if (req.method === 'POST') state.set({ names: [...names, req.bodyText] });
  return res.json(state.get() ?? null);
};";
    let home = Home::new();
    home.node("f", &format!("timeout = \"60s\"\n{BY_ID}version = 1\n"), first);
    let server = home.start(&["--watch", "--reap-interval", "200ms"]);
    assert_eq!(server.post("/f?id=a", "ada").json(), json!({ "name": "ada" }));
    let mut slow = server.request("POST", "/f?id=a").header("content-length", "3").open();
    slow.write("bo");
    home.node("f", &format!("timeout = \"60s\"\n{BY_ID}version = 2\n"), second);
    eventually("the new version answers", || {
        (server.post("/f?id=b", "x").json() == json!({ "names": ["x"] })).then_some(()).or_else(|| {
            server
                .request("DELETE", "/_/state/f/b")
                .header("authorization", &format!("Bearer {}", server.admin))
                .send();
            None
        })
    });
    eventually("the old one is gone", || (server.instances() == 1).then_some(()));
    slow.write("b");
    assert_eq!(slow.reply("POST").json(), json!({ "names": ["ada", "bob"] }));
    assert_eq!(server.ok("/f?id=a").json(), json!({ "names": ["ada", "bob"] }));
}

#[test]
fn a_timer_without_a_payload_brings_null() {
    let code = r"
export default ({ req, res, state }) => {
  if (req.path.startsWith('/__timer/')) state.set({ got: req.bodyJson, type: req.headers['content-type'] });
  else if (req.method === 'POST') state.schedule('t', { after: 0 });
  return res.json(state.get() ?? null);
};";
    let home = Home::new();
    let server = home.node("f", BY_ID, code).start(&[]);
    server.post("/f?id=a", "");
    let got = eventually("the timer came", || Some(server.ok("/f?id=a").json()).filter(|got| !got.is_null()));
    assert_eq!(got, json!({ "got": null, "type": "application/json" }));
}

#[test]
fn what_a_function_with_state_lacks_is_told() {
    let home = Home::new();
    let plain = "export default ({ res }) => res.empty();";
    home.node("events", &format!("{BY_ID}model = \"events\"\n"), plain).node(
        "version",
        &format!("{BY_ID}version = 2\n"),
        plain,
    );
    let server = home.start(&[]);
    let replies = at_once(2, |n| server.get(["/events?id=a", "/version?id=a"][n]));
    for (reply, told) in replies.iter().zip(["exports no events", "exports no migrate"]) {
        assert_eq!(reply.status, 503);
        assert!(reply.detail().contains(told), "{}", reply.detail());
    }
}
