//! State as operators see it: the API below `/_/state/`, the command line, and encryption at rest.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is a failed test")]

mod common;

use std::io::Write as _;
use std::process::Stdio;

use common::node::COUNT;
use common::{Home, Reply, Server, at_once, eventually};
use serde_json::{Value, json};

const BY_ID: &str = "[state]\nkey = \"{query.id}\"\n";

const LEDGER: &str = r"
export const initial = { n: 0 };
export const events = { added: (s, { n }) => ({ n: s.n + n }) };
export default ({ req, res, state }) => {
  for (let i = 0; i < Number(req.query.times ?? 0); i++) state.emit('added', { n: 1 });
  return res.json(state.get());
};";

const KEEP: &str = r"
export default ({ req, res, state }) => {
  if (req.query.timer) state.schedule(req.query.timer, { after: req.query.after ?? '1h' }, { secret: 'in a timer' });
  if (req.method === 'POST') state.set(req.headers['content-type'] === 'application/json' ? req.bodyJson : req.bodyBinary);
  return res.json(state.get() ?? null);
};";

struct Ask<'a> {
    server: &'a Server,
    method: &'a str,
    path: String,
    headers: Vec<(&'a str, String)>,
    body: Vec<u8>,
}

fn ask<'a>(server: &'a Server, method: &'a str, path: impl Into<String>) -> Ask<'a> {
    Ask { server, method, path: path.into(), headers: Vec::new(), body: Vec::new() }
}

impl<'a> Ask<'a> {
    fn with(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn send(self) -> Reply {
        let key = format!("Bearer {}", self.server.admin);
        let request = self.server.request(self.method, &self.path).header("authorization", &key);
        let request = self.headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        request.body(self.body).send()
    }
}

fn put(server: &Server, path: &str, json: &str) -> Reply {
    ask(server, "PUT", path).with("content-type", "application/json").body(json).send()
}

#[test]
fn values_are_read_and_changed_under_conditions() {
    let home = Home::new();
    home.node("f", BY_ID, COUNT);
    let server = home.start(&[]);
    assert_eq!(server.request("GET", "/_/state/f/k").send().problem(), "401 unauthorized front");
    assert_eq!(ask(&server, "GET", "/_/state/f/k").send().problem(), "404 unknown-key store");
    let created = put(&server, "/_/state/f/k", r#"{"n":41}"#);
    let tag = created.header("etag").unwrap().to_owned();
    assert_eq!(created.status, 201);
    let read = ask(&server, "GET", "/_/state/f/k").send();
    assert_eq!((read.status, read.header("etag"), read.json()), (200, Some(tag.as_str()), json!({"n": 41})));
    assert_eq!(read.header("content-type"), Some("application/json"));
    assert_eq!(ask(&server, "GET", "/_/state/f/k").with("if-none-match", &tag).send().status, 304);
    // The function goes on from there.
    assert_eq!(server.post("/f?id=k", "").json()["n"], 42);
    let stale = ask(&server, "PUT", "/_/state/f/k").with("if-match", &tag).body("x").send();
    assert_eq!(stale.problem(), "412 state-conflict store");
    let exists = ask(&server, "PUT", "/_/state/f/k").with("if-none-match", "*").body("x").send();
    assert_eq!(exists.problem(), "412 state-conflict store");
    let new = ask(&server, "GET", "/_/state/f/k").send().header("etag").unwrap().to_owned();
    let bytes = ask(&server, "PUT", "/_/state/f/k").with("if-match", &new).body([0, 255, 7]).send();
    assert_eq!(bytes.status, 204);
    let read = ask(&server, "GET", "/_/state/f/k").send();
    assert_eq!(
        (read.header("content-type"), &read.body[..]),
        (Some("application/octet-stream"), &[0, 255, 7][..])
    );
    assert_eq!(put(&server, "/_/state/f/k", "{").problem(), "400 not-json store");
    assert_eq!(
        ask(&server, "PUT", "/_/state/f/k").with("if-match", "w").send().problem(),
        "400 bad-query front"
    );
    let large = ask(&server, "PUT", "/_/state/f/large").body(vec![0; (1 << 20) + 1]).send();
    assert_eq!(large.problem(), "413 body-too-large store");
    assert_eq!(ask(&server, "PUT", "/_/state/f/large").body(vec![0; 1 << 20]).send().status, 201);
    let stale = ask(&server, "DELETE", "/_/state/f/k").with("if-match", &tag).send();
    assert_eq!(stale.problem(), "412 state-conflict store");
    assert_eq!(ask(&server, "DELETE", "/_/state/f/k").send().status, 204);
    assert_eq!(ask(&server, "DELETE", "/_/state/f/k").send().problem(), "404 unknown-key store");
}

#[test]
fn keys_are_any_text_and_never_anothers() {
    let home = Home::new();
    home.node("f", BY_ID, KEEP).node("g", BY_ID, KEEP);
    let server = home.start(&[]);
    let long = "k".repeat(512);
    let encoded = ["a%2Fb", "a", "a%00", "%2E%2E%2Fg%2Fa", "g:a", "%F0%9F%A6%80", "%25", "a%20b", &long];
    for (n, key) in encoded.iter().enumerate() {
        assert_eq!(put(&server, &format!("/_/state/f/{key}"), &n.to_string()).status, 201, "{key}");
    }
    for (n, key) in encoded.iter().enumerate() {
        assert_eq!(ask(&server, "GET", format!("/_/state/f/{key}")).send().json(), n, "{key}");
        assert_eq!(ask(&server, "GET", format!("/_/state/g/{key}")).send().status, 404, "{key}");
    }
    // The function finds them under the same text.
    assert_eq!(server.get("/f?id=a%2Fb").json(), 0);
    assert_eq!(put(&server, &format!("/_/state/f/{long}k"), "1").problem(), "400 bad-key store");
    assert_eq!(ask(&server, "GET", "/_/state/f/%FF").send().status, 400);
    // In pages, in the order of bytes.
    let mut all = Vec::new();
    let mut after = String::new();
    loop {
        let page = ask(&server, "GET", format!("/_/state/f?limit=3{after}")).send().json();
        let keys = page["keys"].as_array().unwrap();
        assert!(keys.len() <= 3);
        all.extend(keys.iter().map(|one| one["key"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        let next: String = next.bytes().fold(String::new(), |all, byte| format!("{all}%{byte:02X}"));
        after = format!("&after={next}");
    }
    assert_eq!(all.len(), encoded.len());
    assert!(all.is_sorted());
    let page = ask(&server, "GET", "/_/state/f?prefix=a").send().json();
    let keys: Vec<_> =
        page["keys"].as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["a", "a\0", "a b", "a/b"]);
    let one = &page["keys"][0];
    assert!(one["version"].as_u64().unwrap() > 0 && one["updated"].as_str().unwrap().ends_with('Z'));
    assert_eq!(one["bytes"], 1);
    for wrong in ["limit=0", "limit=1001", "limit=x", "prefix=%FF"] {
        assert_eq!(
            ask(&server, "GET", format!("/_/state/f?{wrong}")).send().problem(),
            "400 bad-query front"
        );
    }
}

#[test]
fn events_are_followed_and_changes_watched() {
    let home = Home::new();
    home.node("f", &format!("{BY_ID}model = \"events\"\n"), LEDGER);
    let server = home.start(&[]);
    assert_eq!(ask(&server, "GET", "/_/state/f/a/history").send().problem(), "404 unknown-key store");
    assert_eq!(server.post("/f?id=a&times=3", "").json()["n"], 3);
    let refused = put(&server, "/_/state/f/a", "1");
    assert_eq!(refused.problem(), "409 state-model store");
    let key = format!("Bearer {}", server.admin);
    let follow =
        server.request("GET", "/_/state/f/a/history?from=2&follow=true").header("authorization", &key);
    let mut stream = follow.open();
    let head = stream.head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    let watch = server.request("GET", "/_/state/f?watch=true").header("authorization", &key);
    let mut watched = watch.open();
    assert_eq!(watched.head().status, 200);
    let text = |conn: &mut common::Conn, until: &str| {
        let mut all = String::new();
        while !all.contains(until) {
            all.push_str(&String::from_utf8(conn.chunk().expect("the stream goes on")).unwrap());
        }
        all
    };
    let old = text(&mut stream, "id: 3\n");
    assert!(old.starts_with("id: 2\ndata: {\"seq\":2,\"at\":"), "{old}");
    server.post("/f?id=a&times=1", "");
    let new = text(&mut stream, "id: 4\n");
    assert!(new.contains(r#""type":"added","data":{"n":1}}"#), "{new}");
    assert!(text(&mut watched, "\n\n").contains(r#""key":"a""#));
    // A reader that comes back says what it has seen.
    let again = server.request("GET", "/_/state/f/a/history?follow=true").header("authorization", &key);
    let again = again.header("last-event-id", "3");
    let mut stream = again.open();
    assert_eq!(stream.head().status, 200);
    assert!(text(&mut stream, "\n\n").starts_with("id: 4\n"));
}

#[test]
fn streams_are_bounded_and_end_with_the_executor() {
    let home = Home::new();
    home.node("f", BY_ID, COUNT);
    let mut server = home.start(&[]);
    let key = format!("Bearer {}", server.admin);
    let open = || {
        let request = server.request("GET", "/_/state/f?watch=true").header("authorization", &key);
        let mut conn = request.open();
        (conn.head(), conn)
    };
    let streams: Vec<_> = (0..256).map(|_| open()).collect();
    assert!(streams.iter().all(|(head, _)| head.status == 200));
    assert_eq!(open().0.status, 429);
    drop(streams);
    eventually("places are given back", || (open().0.status == 200).then_some(()));
    assert_eq!(server.stop(), 0);
}

fn import(home: &Home, args: &[&str], lines: &[u8]) -> (bool, String, String) {
    let mut command = home.command();
    let mut child = command
        .args(["state", "import"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn everything_moves_with_the_command_line() {
    let home = Home::new();
    home.node("log", &format!("{BY_ID}model = \"events\"\n"), LEDGER)
        .node("sum", &format!("{BY_ID}model = \"crdt\"\ntype = \"g-counter\"\n"), SUM)
        .node("value", BY_ID, KEEP);
    let server = home.start(&[]);
    server.post("/log?id=a&times=250", "");
    // More events than one commit of an import holds.
    for _ in 0..3 {
        assert_eq!(server.post("/log?id=many&times=900", "").status, 200);
    }
    at_once(4, |_| server.post("/sum?id=s", ""));
    server
        .request("POST", "/value?id=json&timer=t")
        .header("content-type", "application/json")
        .body("[1,\"\u{e9}\"]")
        .send();
    server.request("POST", "/value?id=bytes").body([0, 1, 255]).send();
    let run = |args: &[&str]| {
        let output = home.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert_eq!(run(&["state", "get", "value", "json"]), "[1,\"\u{e9}\"]\n".as_bytes());
    run(&["state", "put", "value", "made", "{\"by\":\"hand\"}"]);
    assert_eq!(run(&["state", "get", "value", "made"]), b"{\"by\":\"hand\"}\n");
    let listed = String::from_utf8(run(&["state", "list", "value"])).unwrap();
    assert_eq!(listed.lines().count(), 3, "{listed}");
    let history = String::from_utf8(run(&["state", "history", "log", "a", "--from", "249"])).unwrap();
    assert_eq!(history.lines().count(), 2, "{history}");
    let exported = ["log", "sum", "value"].map(|name| (name, run(&["state", "export", name])));
    run(&["state", "delete", "value", "made"]);
    assert!(!home.run(&["state", "get", "value", "made"]).status.success());

    let other = Home::new();
    for name in ["log", "sum", "value"] {
        let from = home.functions().join(name);
        for file in ["index.mjs", "function.toml"] {
            other.write(name, file, &std::fs::read_to_string(from.join(file)).unwrap());
        }
    }
    let moved = other.start(&[]);
    for (name, lines) in &exported {
        let (well, told, errors) = import(&other, &[name], lines);
        assert!(well, "{told} {errors}");
    }
    assert_eq!(moved.post("/log?id=many&times=1", "").json()["n"], 2701);
    assert_eq!(moved.post("/log?id=a&times=1", "").json()["n"], 251);
    assert_eq!(moved.post("/sum?id=s", "").json(), 5);
    assert_eq!(moved.get("/value?id=bytes").json()["data"], json!([0, 1, 255]));
    for (name, lines) in &exported {
        let again = ask(&moved, "GET", format!("/_/state/{name}?export=true")).send();
        if *name == "value" {
            assert_eq!(again.text(), String::from_utf8_lossy(lines), "timers included");
        }
    }
    // What is there is refused and stays, unless it is to be replaced.
    let (well, told, errors) = import(&other, &["value"], &exported[2].1);
    assert!(
        !well && told.contains("imported 0") && errors.contains("there is state under this key"),
        "{told} {errors}"
    );
    assert!(import(&other, &["value", "--replace"], &exported[2].1).0);
    let wrong = [
        "{",
        "{\"key\":\"x\"}",
        r#"{"key":"x","kind":"odd","value":1}"#,
        r#"{"key":"x","kind":"events","value":"AAAA"}"#,
        r#"{"key":"x","kind":"crdt","value":"AAAA"}"#,
        r#"{"key":"x","kind":"binary","value":1}"#,
    ];
    let (well, told, errors) = import(&other, &["value"], wrong.join("\n").as_bytes());
    assert!(!well && told.contains("imported 0"), "{told}");
    assert_eq!(errors.lines().filter(|line| line.starts_with("line ")).count(), wrong.len(), "{errors}");
    assert_eq!(ask(&moved, "GET", "/_/state/value/x").send().status, 404);
}

const SUM: &str = "export default ({ req, res, state }) => { if (req.method === 'POST') state.increment(); return res.json(state.value); };";

const ONE: &str = "one AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n";
const TWO: &str = "two AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n";

#[test]
fn sealed_state_is_unreadable_without_its_key() {
    let home = Home::new();
    home.node("f", BY_ID, KEEP).node("log", &format!("{BY_ID}model = \"events\"\n"), LEDGER);
    let file = home.file("keys");
    let start = |text: &str| {
        std::fs::write(&file, text).unwrap();
        home.start(&["--store-key-file", &file])
    };
    let post = |server: &Server, target: &str| {
        let reply = server.request("POST", target).header("content-type", "application/json");
        reply.header("idempotency-key", "once").body("\"plain text\"").send()
    };
    let mut server = home.start(&[]);
    assert_eq!(
        server
            .request("POST", "/f?id=before")
            .header("content-type", "application/json")
            .body("\"old\"")
            .send()
            .status,
        200
    );
    assert_eq!(server.stop(), 0);
    let mut server = start(ONE);
    assert_eq!(post(&server, "/f?id=k&timer=t").json(), "plain text");
    assert_eq!(post(&server, "/f?id=k&timer=t").header("idempotent-replayed"), Some("true"));
    server.post("/log?id=k&times=3", "");
    assert_eq!(server.get("/f?id=before").json(), "old");
    assert_eq!(server.stop(), 0);
    let bytes = std::fs::read(home.data().join("state.db")).unwrap();
    for text in ["plain text", "in a timer", "added"] {
        assert!(!bytes.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
    }
    // A timer that comes due while the key is missing is kept.
    let mut server = start(ONE);
    let set = server
        .request("POST", "/f?id=late&timer=soon&after=1500ms")
        .header("content-type", "application/json");
    assert_eq!(set.body("1").send().status, 200);
    assert_eq!(server.stop(), 0);
    let mut server = home.start(&[]);
    server.wait_log("a timer cannot be read");
    assert_eq!(server.stop(), 0);
    let mut server = start(ONE);
    let kept = ask(&server, "GET", "/_/state/f?export=true").send().text();
    assert!(kept.contains("\"soon\""), "{kept}");
    assert_eq!(ask(&server, "DELETE", "/_/state/f/late").send().status, 204);
    assert_eq!(server.stop(), 0);
    // A new key first: everything opens, and rotation seals it anew.
    let mut server = start(&format!("{TWO}{ONE}"));
    assert_eq!(server.get("/f?id=k").json(), "plain text");
    let output = home.run(&["state", "rotate"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && told.contains("sealed 8 "),
        "two values, a timer, a log of three and its snapshot, a recorded answer: {told}"
    );
    assert_eq!(server.stop(), 0);
    let mut server = start(TWO);
    assert_eq!(post(&server, "/f?id=k&timer=t").header("idempotent-replayed"), Some("true"));
    assert_eq!(server.get("/f?id=k").json(), "plain text");
    assert_eq!(server.get("/f?id=before").json(), "old");
    assert_eq!(server.get("/log?id=k").json()["n"], 3);
    assert_eq!(server.stop(), 0);
    // The wrong key, or none: an error of the store, and nothing is overwritten.
    for flags in [vec!["--store-key-file", file.as_str()], vec![]] {
        std::fs::write(&file, ONE).unwrap();
        let mut server = home.start(&flags);
        assert_eq!(server.get("/f?id=k").problem(), "500 store-failed store", "{flags:?}");
        eventually("the log names the key that is missing", || server.log().contains("`two`").then_some(()));
        assert!(!server.log().contains("AQEB"));
        assert_eq!(ask(&server, "GET", "/_/state/f/k").send().problem(), "500 store-failed store");
        assert_eq!(server.stop(), 0);
    }
    let mut server = start(TWO);
    assert_eq!(server.get("/f?id=k").json(), "plain text");
    assert_eq!(server.stop(), 0);
    std::fs::write(&file, "one AQEB").unwrap();
    let output = home.run(&["--store-key-file", &file]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("line 1") && !told.contains("AQEB"), "{told}");
}

#[test]
fn a_crdt_is_shown_as_its_function_sees_it() {
    let home = Home::new();
    home.node("sum", &format!("{BY_ID}model = \"crdt\"\ntype = \"g-counter\"\n"), SUM);
    let server = home.start(&[]);
    server.post("/sum?id=s", "");
    assert_eq!(ask(&server, "GET", "/_/state/sum/s").send().json(), Value::from(1));
    assert_eq!(put(&server, "/_/state/sum/s", "1").problem(), "409 state-model store");
    assert_eq!(ask(&server, "GET", "/_/state/sum/s/history").send().problem(), "409 state-model store");
    assert_eq!(ask(&server, "DELETE", "/_/state/sum/s").send().status, 204);
}

#[test]
fn operators_see_what_was_counted() {
    let home = Home::new();
    home.node("keep", BY_ID, KEEP).node("raises", "", "export default () => { throw new Error('no'); };");
    let server = home.start(&["--watch"]);
    let scrape = || ask(&server, "GET", "/_/metrics").send();
    assert_eq!(server.request("GET", "/_/metrics").send().problem(), "401 unauthorized front");
    assert_eq!(server.post("/keep?id=a&timer=t&after=0s", "").status, 200);
    assert_eq!(server.post("/raises", "").status, 500);
    eventually("the timer is delivered and counted as a call", || {
        let text = scrape().text();
        let told = |line: &str| text.lines().any(|one| one == line);
        (told("executor_timers_total{function=\"keep\",outcome=\"delivered\"} 1")
            && told("executor_calls_total{function=\"keep\",outcome=\"2xx\"} 2"))
        .then_some(())
    });
    let all = scrape();
    assert_eq!(
        all.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    for line in [
        "executor_calls_total{function=\"raises\",outcome=\"failed\"} 1",
        "executor_cold_starts_total{function=\"raises\"} 1",
        "executor_call_duration_seconds_count{function=\"keep\"} 2",
        "executor_state_conflicts_total{function=\"keep\"} 0",
        "executor_instances{function=\"keep\"} 1",
    ] {
        assert!(all.text().lines().any(|one| one == line), "{line} is not in\n{}", all.text());
    }
    std::fs::remove_dir_all(home.functions().join("raises")).unwrap();
    eventually("what is gone is not told any more", || (!scrape().text().contains("raises")).then_some(()));
}
