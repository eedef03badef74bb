//! What a function sees of a request, and what a client sees of its answer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is a failed test")]

mod common;

use common::client::chunked;
use common::node::{ECHO, GATE, HELLO};
use common::{Conn, Home, Reply};
use serde_json::{Value, json};

/// What the function saw of a GET.
#[track_caller]
fn seen(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[test]
fn paths_and_queries_reach_the_function_as_they_were_sent() {
    let home = Home::new();
    let server = home.node("echo", "", ECHO).start(&[]);
    for (target, path, query, map) in [
        ("/echo", "/", "", json!({})),
        ("/echo/", "/", "", json!({})),
        ("/echo?a=1", "/", "a=1", json!({"a": "1"})),
        ("/echo/a/b", "/a/b", "", json!({})),
        ("/echo/a/b/", "/a/b/", "", json!({})),
        ("/echo//a", "//a", "", json!({})),
        ("/echo/a%2Fb%20c%C3%A4", "/a%2Fb%20c%C3%A4", "", json!({})),
        ("/echo/./x/../y", "/./x/../y", "", json!({})),
        ("/echo/%2e%2e/x", "/%2e%2e/x", "", json!({})),
        ("/echo/x;v=1,2:3@4!$&'()*+", "/x;v=1,2:3@4!$&'()*+", "", json!({})),
        ("/echo/a?b=/c?d", "/a", "b=/c?d", json!({"b": "/c?d"})),
        ("/echo?", "/", "", json!({})),
        ("/echo?a=b&c==d&h&k=&=x&a=2", "/", "a=b&c==d&h&k=&=x&a=2", json!({"a":"2","c":"=d","h":"","k":""})),
        (
            "/echo?q=%20%2B+&__proto__=1",
            "/",
            "q=%20%2B+&__proto__=1",
            json!({"q": "%20%2B+", "__proto__": "1"}),
        ),
    ] {
        let echo = seen(&server.get(target));
        assert_eq!((&echo["path"], &echo["queryString"]), (&json!(path), &json!(query)), "{target}");
        assert_eq!(echo["query"], map, "{target}");
    }
}

#[test]
fn every_method_reaches_the_function() {
    let home = Home::new();
    let server = home.node("echo", "", ECHO).start(&[]);
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        assert_eq!(seen(&server.request(method, "/echo").send())["method"], method);
    }
    let whole = server.get("/echo");
    let head = server.request("HEAD", "/echo").send();
    assert_eq!((head.status, head.body.len()), (200, 0));
    // The method is one letter longer than in the answer to GET.
    let length: usize =
        head.header("content-length").expect("the length that GET would have").parse().unwrap();
    assert_eq!(length, whole.body.len() + 1);
    assert_eq!(head.header("content-type"), whole.header("content-type"));
}

#[test]
fn a_connection_stays_usable_after_each_kind_of_answer() {
    let code = r"
export default ({ req, res }) => {
  if (req.path === '/empty') return res.empty();
  if (req.path === '/raise') throw new Error('no');
  if (req.path === '/stream') return res.stream(['a', 'b']);
  if (req.path === '/moved') return res.redirect('/x');
  return res.text(req.path);
};";
    let home = Home::new();
    let server = home.node("f", "", code).start(&[]);
    let mut conn = server.connect();
    for (method, path, status, body) in [
        ("GET", "/f/1", 200, "/1"),
        ("HEAD", "/f/1", 200, ""),
        ("GET", "/f/empty", 204, ""),
        ("POST", "/f/raise", 500, ""),
        ("GET", "/f/stream", 200, "ab"),
        ("HEAD", "/f/stream", 200, ""),
        ("GET", "/f/moved", 301, ""),
        ("GET", "/f/2", 200, "/2"),
    ] {
        let reply = server.request(method, path).keep_alive().send_on(&mut conn);
        assert_eq!((reply.status, reply.text().as_str()), (status, body), "{method} {path}");
    }
    // Two requests in one write are answered in order.
    let request = |path| server.request("GET", path).keep_alive().head();
    conn.write([request("/f/3"), request("/f/4")].concat());
    assert_eq!((conn.reply("GET").text(), conn.reply("GET").text()), ("/3".into(), "/4".into()));
}

#[test]
fn request_headers() {
    let home = Home::new();
    let server = home.node("echo", "", ECHO).start(&[]);
    let reply = server
        .request("GET", "/echo")
        .header("X-MiXeD", "Kept As It Is")
        .header("x-list", "1")
        .header("x-list", "2, 3")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-empty", "")
        .header("x-utf8", "grün")
        .header("authorization", "Bearer of the client")
        .header("X-Open-Runtimes-Log-Id", "mine")
        .header("x-open-runtimes-timeout", "1")
        .send();
    let headers = &seen(&reply)["headers"];
    let expected = json!({
        "host": server.address(), "connection": "close", "x-mixed": "Kept As It Is", "x-list": "1, 2, 3",
        "cookie": "a=1; b=2", "x-empty": "", "x-utf8": "grün", "authorization": "Bearer of the client",
    });
    assert_eq!(*headers, expected);
}

#[test]
fn bytes_in_headers_that_are_not_text_are_read_as_latin_1() {
    let home = Home::new();
    let server = home.node("echo", "access = \"public\"", ECHO).start(&[]);
    let mut conn = server.connect();
    conn.write(b"GET /echo HTTP/1.1\r\nhost: a\r\nx: caf\xe9\r\nconnection: close\r\n\r\n");
    assert_eq!(seen(&conn.reply("GET"))["headers"]["x"], "café");
}

#[test]
fn scheme_host_and_port() {
    let home = Home::new();
    let server = home.node("echo", "", ECHO).start(&[]);
    for (host, proto, scheme, name, port, url) in [
        ("a.example", None, "http", "a.example", 80, "http://a.example/x?y"),
        ("a.example:81", None, "http", "a.example", 81, "http://a.example:81/x?y"),
        ("a.example", Some("https"), "https", "a.example", 443, "https://a.example/x?y"),
        ("a.example:8443", Some("https"), "https", "a.example", 8443, "https://a.example:8443/x?y"),
        ("[::1]:3000", None, "http", "[::1]", 3000, "http://[::1]:3000/x?y"),
        ("[::1]", None, "http", "[::1]", 80, "http://[::1]/x?y"),
    ] {
        let mut request = server.request("GET", "/echo/x?y").header("host", host);
        if let Some(proto) = proto {
            request = request.header("x-forwarded-proto", proto);
        }
        let echo = seen(&request.send());
        let expected = json!([scheme, name, port, url]);
        assert_eq!(json!([echo["scheme"], echo["host"], echo["port"], echo["url"]]), expected);
    }
    // The absolute form, as sent to proxies.
    let target = format!("http://{}/echo/abs?q", server.address());
    let echo = seen(&server.get(&target));
    assert_eq!(json!([echo["path"], echo["queryString"]]), json!(["/abs", "q"]));
}

#[test]
fn bodies_arrive_as_they_were_sent() {
    let home = Home::new();
    let server = home.node("echo", "", ECHO).start(&[]);
    let post = |body: &[u8]| seen(&server.post("/echo", body));
    assert_eq!(post(b"")["length"], 0);
    assert_eq!(post("grün".as_bytes())["text"], "grün");
    assert_eq!(post(b"\0\xff\r\n\x80")["hex"], "00ff0d0a80");
    assert_eq!(seen(&server.get("/echo"))["length"], 0);
    assert_eq!(seen(&server.request("GET", "/echo").body("with a GET").send())["text"], "with a GET");
    assert_eq!(seen(&server.request("DELETE", "/echo").body("x").send())["text"], "x");

    let chunks = |pieces: &[&[u8]]| {
        let request = server.request("POST", "/echo").header("transfer-encoding", "chunked");
        let mut conn = request.open();
        conn.write(chunked(pieces.iter().copied()));
        seen(&conn.reply("POST"))
    };
    assert_eq!(chunks(&[])["length"], 0);
    assert_eq!(chunks(&[b"a", b"bc", b"\0"])["hex"], "61626300");
    let large = vec![b'x'; 50_000];
    assert_eq!(chunks(&[&large, &large, &large])["length"], 150_000);
}

#[test]
fn sizes_around_the_edges_of_frames() {
    let code = r"
import { createHash } from 'node:crypto';
const hash = (bytes) => createHash('sha256').update(bytes).digest('hex');
export default ({ req, res }) => req.path === '/hash' ? res.text(hash(req.bodyBinary)) : res.binary(req.bodyBinary);";
    let home = Home::new();
    let server = home.node("f", "", code).start(&[]);
    for size in [1, 21_845, 21_846, 65_535, 65_536, 65_537, 262_143, 262_144, 262_145, 1 << 20, 19 << 20] {
        let body: Vec<u8> = (0..size).map(|i: usize| (i % 251) as u8).collect();
        let reply = server.request("POST", "/f").header("content-type", "image/x").body(body.clone()).send();
        assert_eq!(reply.status, 200);
        assert!(reply.body == body, "{size} bytes came back as {}", reply.body.len());
        assert_eq!(reply.header("content-length"), Some(size.to_string().as_str()), "{size}");
    }
}

#[test]
fn the_limit_on_bodies() {
    let home = Home::new();
    let server = home.node("echo", "", ECHO).start(&["--max-body", "100KiB"]);
    let (most, above) = (vec![b'a'; 102_400], vec![b'a'; 102_401]);
    assert_eq!(seen(&server.post("/echo", most.clone()))["length"], 102_400);
    assert_eq!(server.post("/echo", above.clone()).problem(), "413 body-too-large front");
    let chunks = |body: &[u8]| {
        let mut conn = server.request("POST", "/echo").header("transfer-encoding", "chunked").open();
        let _ = conn.try_write(chunked(body.chunks(1000)));
        conn.reply("POST")
    };
    assert_eq!(seen(&chunks(&most))["length"], 102_400);
    assert_eq!(chunks(&above).problem(), "413 body-too-large front");
    // With a length that is announced, the answer does not wait for the body.
    let mut conn = server.request("POST", "/echo").header("content-length", "999999999").open();
    assert_eq!(conn.reply("POST").problem(), "413 body-too-large front");
    assert_eq!(seen(&server.post("/echo", "x"))["length"], 1, "the next one is served");
}

#[test]
fn expect_100_continue() {
    let home = Home::new();
    let server = home.node("echo", "", ECHO).start(&["--max-body", "1000"]);
    let ask = |length: &str| {
        server.request("POST", "/echo").header("expect", "100-continue").header("content-length", length)
    };
    let mut conn = ask("5").open();
    assert_eq!(conn.head().status, 100, "it asks for the body");
    conn.write("hello");
    assert_eq!(seen(&conn.reply("POST"))["text"], "hello");

    let mut conn = ask("1001").open();
    assert_eq!(conn.reply("POST").status, 413, "refused without the body");
    let mut conn = ask("5").without_secret().open();
    assert_eq!(conn.reply("POST").status, 401, "refused without the body");
}

#[test]
fn every_answer_has_an_id_and_its_timings() {
    let home = Home::new();
    let server = home
        .node(
            "f",
            "",
            "export default ({ req, res }) => { if (req.path === '/r') throw 1; return res.empty(); };",
        )
        .start(&[]);
    let taken = |id: &str| {
        server
            .request("GET", "/f")
            .header("x-request-id", id)
            .send()
            .header("x-request-id")
            .unwrap()
            .to_owned()
    };
    let longest = "x".repeat(128);
    for id in ["a", "abc-1._X", longest.as_str()] {
        assert_eq!(taken(id), id);
    }
    let too_long = "x".repeat(129);
    for id in ["", "a b", "a/b", "é", too_long.as_str()] {
        let made = taken(id);
        assert!(made.len() == 32 && made.bytes().all(|b| b.is_ascii_hexdigit()), "{id}: {made}");
    }
    assert_ne!(taken(""), taken(""));

    let answers = [
        (204, server.get("/f")),
        (500, server.get("/f/r")),
        (404, server.get("/none")),
        (401, server.request("GET", "/f").without_secret().send()),
        (405, server.request("BREW", "/f").send()),
    ];
    for (status, reply) in answers {
        assert_eq!(reply.status, status);
        assert!(reply.header("x-request-id").is_some_and(|id| id.len() == 32), "{status}");
        let timing = reply.header("server-timing").unwrap_or_else(|| panic!("{status} has no server-timing"));
        let names: Vec<_> = timing.split(", ").map(|part| part.split_once(";dur=").unwrap()).collect();
        assert_eq!(
            names.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["queue", "cold", "state", "run"]
        );
        assert!(names.iter().all(|(_, ms)| ms.parse::<f64>().is_ok_and(|ms| ms >= 0.0)), "{timing}");
    }
}

#[test]
fn timings_tell_cold_from_warm() {
    let home = Home::new();
    let server = home.node("hello", "", HELLO).start(&[]);
    let cold = || {
        let reply = server.ok("/hello");
        let timing = reply.header("server-timing").unwrap().to_owned();
        let cold = timing.split(", ").find_map(|part| part.strip_prefix("cold;dur=")).unwrap();
        cold.parse::<f64>().unwrap()
    };
    assert!(cold() > 1.0, "the first call starts an instance");
    assert!(cold() < f64::EPSILON, "the second finds it");
}

#[test]
fn what_a_function_may_say_in_its_answer() {
    let code = r"
const cases = {
  '/default': ({ res }) => res.text('x'),
  '/json': ({ res }) => res.json({ a: [1] }),
  '/html': ({ res }) => res.text('<p>', 200, { 'Content-Type': 'TEXT/HTML' }),
  '/latin': ({ res }) => res.text('x', 200, { 'content-type': 'text/plain; charset=iso-8859-1' }),
  '/image': ({ res }) => res.binary(Buffer.from([0, 255]), 200, { 'content-type': 'image/png' }),
  '/form': ({ res }) => res.text('x', 200, { 'content-type': 'multipart/form-data; boundary=aBc' }),
  '/status': ({ res }) => res.text('teapot', 418),
  '/moved': ({ res }) => res.redirect('/a?b', 308),
  '/plain': () => ({ body: 'plain', statusCode: 201, headers: { 'x-a': 1 } }),
  '/headers': ({ res }) => res.text('x', 200, {
    'set-cookie': ['a=1; Path=/', 'b=2'], 'X-Upper': 'V', 'x-many': ['1', '2'],
    'x-open-runtimes-log-id': 'leak', 'X-Open-Runtimes-Secret': 'leak', 'content-length': '999',
    'transfer-encoding': 'gzip', connection: 'upgrade', 'x-request-id': 'forged', 'keep-alive': 'x', 'x-null': null,
  }),
};
export default (context) => cases[context.req.path](context);";
    let home = Home::new();
    let server = home.node("f", "", code).start(&[]);
    for (path, status, kind, body) in [
        ("/default", 200, "text/plain; charset=utf-8", &b"x"[..]),
        ("/json", 200, "application/json; charset=utf-8", b"{\"a\":[1]}"),
        ("/html", 200, "text/html; charset=utf-8", b"<p>"),
        ("/latin", 200, "text/plain; charset=iso-8859-1", b"x"),
        ("/image", 200, "image/png", b"\0\xff"),
        ("/form", 200, "multipart/form-data; boundary=aBc", b"x"),
        ("/status", 418, "text/plain; charset=utf-8", b"teapot"),
        ("/moved", 308, "text/plain; charset=utf-8", b""),
        ("/plain", 201, "text/plain; charset=utf-8", b"plain"),
    ] {
        let reply = server.get(&format!("/f{path}"));
        let got = (reply.status, reply.header("content-type"), &reply.body[..]);
        assert_eq!(got, (status, Some(kind), body), "{path}");
        assert!(reply.header("date").is_some());
    }
    assert_eq!(server.get("/f/moved").header("location"), Some("/a?b"));
    assert_eq!(server.get("/f/plain").header("x-a"), Some("1"));

    let reply = server.request("GET", "/f/headers").header("x-request-id", "given").send();
    assert_eq!((reply.status, reply.text().as_str()), (200, "x"));
    assert_eq!(reply.all("set-cookie"), ["a=1; Path=/", "b=2"]);
    assert_eq!((reply.header("x-upper"), reply.all("x-many")), (Some("V"), vec!["1", "2"]));
    assert_eq!((reply.header("content-length"), reply.header("x-request-id")), (Some("1"), Some("given")));
    for name in
        ["x-open-runtimes-log-id", "x-open-runtimes-secret", "transfer-encoding", "keep-alive", "x-null"]
    {
        assert_eq!(reply.header(name), None, "{name}");
    }
}

#[test]
fn the_secret_and_public_functions() {
    let home = Home::new();
    home.node("closed", "", HELLO).node("open", "access = \"public\"", ECHO);
    let server = home.start(&["--secret", "s3cret"]);
    let with = |path: &str, secret: &str| {
        server.request("GET", path).without_secret().header("X-Open-Runtimes-Secret", secret).send()
    };
    assert_eq!(with("/closed", "s3cret").status, 200);
    for wrong in ["", "s3cre", "s3crett", "S3CRET", "s3cret,s3cret"] {
        let reply = with("/closed", wrong);
        assert_eq!(reply.status, 401, "{wrong}");
        assert_eq!(reply.text(), "Unauthorized. Provide correct \"x-open-runtimes-secret\" header.");
        assert_eq!(reply.header("content-type"), Some("text/plain"));
    }
    assert_eq!(with("/open", "wrong").status, 200);
    let echo = seen(&server.request("GET", "/open").without_secret().send());
    assert_eq!(echo["headers"].get("x-open-runtimes-secret"), None);
    assert_eq!(with("/unknown", "wrong").status, 401, "strangers do not learn which functions there are");
}

#[test]
fn server_sent_events_arrive_one_by_one() {
    let code = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
async function* events() {
  for (let n = 1; n <= 3; n++) {
    yield `data: ${n}\n\n`;
    while (!fs.existsSync(process.env.HOME_FILE + n)) await sleep(5);
  }
}
export default ({ res }) => res.stream(events(), 200, { 'content-type': 'text/event-stream' });";
    let home = Home::new();
    let server = home.node("events", "", code).start(&[]);
    let mut conn: Conn = server.request("GET", "/events").open();
    let head = conn.head();
    assert_eq!(head.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(head.header("content-length"), None);
    for n in 1..=3 {
        // Each piece is here before the function may go on.
        assert_eq!(conn.chunk().unwrap(), format!("data: {n}\n\n").as_bytes());
        std::fs::write(home.file(&format!("events{n}")), "").unwrap();
    }
    assert_eq!(conn.chunk(), Some(vec![]), "the proper end");
}

#[test]
fn a_stream_may_be_larger_than_the_limit_on_answers_and_a_broken_one_shows() {
    let code = r"
const piece = Buffer.alloc(300_000, 'p');
function* many() { for (let i = 0; i < 10; i++) yield piece; }
async function* broken() { yield 'begun'; throw new Error('in the middle'); }
export default ({ req, res }) => {
  if (req.path === '/whole') return res.binary(Buffer.concat([...many()]));
  return res.stream(req.path === '/many' ? many() : broken());
};";
    let home = Home::new();
    let server = home.node("f", "", code).start(&["--max-response", "1MiB"]);
    assert_eq!(server.ok("/f/many").body.len(), 3_000_000);
    let whole = server.request("GET", "/f/whole").header("x-request-id", "whole").send();
    assert_eq!((whole.status, whole.body.len()), (500, 0));
    assert!(server.execution("whole")[0].contains("the limit is 1048576"), "{:?}", server.execution("whole"));
    // What came before the error must arrive, also when both come together.
    for _ in 0..20 {
        let broken = server.request("GET", "/f/broken").header("x-request-id", "broken").send();
        assert_eq!((broken.status, broken.text().as_str()), (200, "begun"));
        assert!(broken.broken, "the client can tell that the end is missing");
    }
    assert!(server.execution("broken").iter().any(|line| line.contains("in the middle")));
}

#[test]
fn a_streamed_answer_whose_reader_leaves_ends_in_the_function() {
    let code = r"
import fs from 'node:fs';
async function* endless() {
  try { for (;;) { yield 'x'.repeat(1000); await new Promise(setImmediate); } }
  finally { fs.writeFileSync(process.env.HOME_FILE, 'closed'); }
}
export default ({ res }) => res.stream(endless());";
    let home = Home::new();
    let server = home.node("f", "", code).start(&[]);
    let mut conn = server.request("GET", "/f").open();
    assert_eq!(conn.head().status, 200);
    assert!(!conn.chunk().unwrap().is_empty());
    drop(conn);
    common::eventually("the generator is closed", || home.lines("f").pop());
}

#[test]
fn calls_of_one_instance_run_at_the_same_time() {
    let home = Home::new();
    let server = home.node("f", "max-instances = 1\nconcurrency = 4", GATE).start(&[]);
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| server.ok("/f").text())).collect();
        common::eventually("all four run", || (home.lines("f").len() == 4).then_some(()));
        std::fs::write(home.file("f.go"), "").unwrap();
        for call in calls {
            assert_eq!(call.join().unwrap(), "done");
        }
    });
    assert_eq!(server.starts("f"), 1);
}
