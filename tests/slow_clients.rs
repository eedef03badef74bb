//! Clients that are slow, stall, leave half-way, or do not speak HTTP: they are cut off, and the others notice nothing.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::client::{chunked, set_limit};
use common::node::{ECHO, HELLO};
use common::{Conn, Home, Server, eventually};

const LIMITS: [&str; 4] = ["--header-timeout", "1s", "--idle-timeout", "2s"];
/// What a limit of a second or two may take on a busy machine.
const SOON: Duration = Duration::from_secs(8);

/// Notes each call in `HOME_FILE`.
const NOTE: &str = r"
import fs from 'node:fs';
export default ({ req, res }) => {
  fs.appendFileSync(process.env.HOME_FILE, req.path + '\n');
  return res.text(req.path + ' ' + req.bodyText.length);
};";

/// 20 MiB at once, as a stream without an end, or a few bytes.
const LARGE: &str = r"
import fs from 'node:fs';
const piece = Buffer.alloc(64 << 10, 'x');
async function* endless() {
  try { for (;;) { yield piece; await new Promise(setImmediate); } }
  finally { fs.writeFileSync(process.env.HOME_FILE, 'closed'); }
}
export default ({ req, res }) => {
  if (req.path === '/endless') return res.stream(endless());
  return req.path === '/large' ? res.binary(Buffer.alloc(20 << 20, 'x')) : res.text('small');
};";

/// Whether the other side has closed; does not wait.
fn is_closed(conn: &Conn) -> bool {
    conn.stream.set_nonblocking(true).unwrap();
    let mut bytes = [0; 1024];
    let closed = loop {
        match (&conn.stream).read(&mut bytes) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(error) => break error.kind() != ErrorKind::WouldBlock,
        }
    };
    conn.stream.set_nonblocking(false).unwrap();
    closed
}

/// Sends raw bytes and reads until the other side closes. The server must have a short idle limit.
fn exchange(server: &Server, bytes: impl AsRef<[u8]>) -> String {
    let mut conn = server.connect();
    let _ = conn.try_write(bytes);
    rest(&mut conn)
}

fn rest(conn: &mut Conn) -> String {
    let mut all = Vec::new();
    // A reset ends it as well.
    if let Err(error) = conn.stream.read_to_end(&mut all) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the connection does not end");
    }
    all.iter().map(|b| char::from(*b)).collect()
}

/// The status of each answer in what came back.
fn statuses(text: &str) -> Vec<u16> {
    let lines = text.split("HTTP/1.").skip(1);
    lines.map(|line| line[2..5].parse().unwrap()).collect()
}

fn secret(server: &Server) -> String {
    format!("x-open-runtimes-secret: {}\r\n", server.secret.as_deref().unwrap())
}

#[test]
fn a_head_that_drips_is_cut_off_and_others_are_served() {
    let home = Home::new();
    let server = home.node("f", "", HELLO).start(&LIMITS);
    let mut conn = server.connect();
    let begun = Instant::now();
    conn.write("GET /f HTTP/1.1\r\nx-slow: ");
    while !is_closed(&conn) {
        assert!(begun.elapsed() < SOON, "it drips on");
        let _ = conn.try_write("a");
        assert_eq!(server.ok("/f").text(), "hello");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() >= Duration::from_millis(900), "cut off after {:?}", begun.elapsed());
}

#[test]
fn a_second_head_that_drips_is_cut_off_too() {
    let home = Home::new();
    let server = home.node("f", "", HELLO).start(&LIMITS);
    let mut conn = server.connect();
    let request = server.request("GET", "/f").keep_alive();
    assert_eq!(request.send_on(&mut conn).status, 200);
    let begun = Instant::now();
    for byte in request.head() {
        if is_closed(&conn) {
            assert!(begun.elapsed() >= Duration::from_millis(900), "cut off after {:?}", begun.elapsed());
            return;
        }
        assert!(begun.elapsed() < SOON, "it drips on");
        let _ = conn.try_write([byte]);
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the whole head was taken after {:?}", begun.elapsed());
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let home = Home::new();
    let server = home.node("f", "", HELLO).start(&LIMITS);
    let conn = server.connect();
    let begun = Instant::now();
    eventually("it is closed", || is_closed(&conn).then_some(()));
    let taken = begun.elapsed();
    assert!((Duration::from_millis(900)..SOON).contains(&taken), "closed after {taken:?}");
}

#[test]
fn a_kept_connection_is_closed_after_the_idle_time_and_not_before() {
    let home = Home::new();
    let server = home.node("f", "", HELLO).start(&LIMITS);
    let request = server.request("GET", "/f").keep_alive();
    let mut conn = server.connect();
    assert_eq!(request.send_on(&mut conn).status, 200);
    for _ in 0..3 {
        // Together longer than the limit, which each request begins anew.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(request.send_on(&mut conn).text(), "hello");
    }
    let begun = Instant::now();
    assert!(conn.closes());
    let taken = begun.elapsed();
    assert!((Duration::from_millis(1800)..SOON).contains(&taken), "closed after {taken:?}");
}

#[test]
fn a_function_may_take_longer_than_the_idle_time() {
    let code = "export default async ({ res }) => { await new Promise((r) => setTimeout(r, 1500)); return res.text('late'); };";
    let home = Home::new();
    let server = home.node("f", "", code).start(&["--header-timeout", "300ms", "--idle-timeout", "500ms"]);
    assert_eq!(server.ok("/f").text(), "late");
    let code = r"
async function* slow() { for (let i = 0; i < 3; i++) { yield 'x'; await new Promise((r) => setTimeout(r, 900)); } }
export default ({ res }) => res.stream(slow());";
    let home = Home::new();
    let server = home.node("f", "", code).start(&["--header-timeout", "300ms", "--idle-timeout", "500ms"]);
    let reply = server.ok("/f");
    assert_eq!((reply.text().as_str(), reply.broken), ("xxx", false), "a quiet stream is not a slow client");
}

#[test]
fn a_body_that_stalls_is_refused_and_the_function_not_called() {
    let home = Home::new();
    let server = home.node("f", "", NOTE).start(&["--idle-timeout", "500ms"]);
    let by_length = server.request("POST", "/f/length").keep_alive().header("content-length", "10");
    let by_chunks = server.request("POST", "/f/chunks").keep_alive().header("transfer-encoding", "chunked");
    for (request, begin, drip) in [(by_length, "", "x"), (by_chunks, "5\r\n", "x")] {
        let mut conn = request.open();
        conn.write(begin);
        conn.write(drip);
        let begun = Instant::now();
        let reply = conn.reply("POST");
        assert_eq!(reply.problem(), "408 body-idle front");
        let taken = begun.elapsed();
        assert!((Duration::from_millis(400)..SOON).contains(&taken), "after {taken:?}");
        eventually("what is left of the body cannot be told from a request, so it closes", || {
            is_closed(&conn).then_some(())
        });
    }
    // Not even a byte of it.
    let conn = &mut server.request("POST", "/f/none").header("content-length", "1").open();
    assert_eq!(conn.reply("POST").problem(), "408 body-idle front");
    assert_eq!(server.post("/f/next", "abc").text(), "/next 3");
    assert_eq!(home.lines("f"), ["/next"], "the only one that was called");
}

#[test]
fn a_long_body_that_stalls_frees_its_instance() {
    let home = Home::new();
    let server =
        home.node("f", "concurrency = 1\nmax-instances = 1", NOTE).start(&["--idle-timeout", "500ms"]);
    // Long enough that it is streamed, and so the instance is taken.
    let mut conn = server.request("POST", "/f/stalled").header("content-length", "1000000").open();
    conn.write(vec![b'x'; 200_000]);
    let begun = Instant::now();
    let reply = conn.reply("POST");
    assert_eq!(reply.problem(), "408 body-idle front");
    for _ in 0..3 {
        assert_eq!(server.post("/f/next", "abc").text(), "/next 3");
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(home.lines("f"), ["/next"; 3]);
}

#[test]
fn a_body_that_drips_fast_enough_is_taken() {
    let home = Home::new();
    let server = home.node("f", "", NOTE).start(&LIMITS);
    let mut conn = server.request("POST", "/f/drip").header("content-length", "12").open();
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(250));
        conn.write("x");
    }
    assert_eq!(conn.reply("POST").text(), "/drip 12");
    let mut conn = server.request("POST", "/f/chunks").header("transfer-encoding", "chunked").open();
    for byte in chunked([&b"ab"[..], &b"c"[..]]) {
        std::thread::sleep(Duration::from_millis(180));
        conn.write([byte]);
    }
    assert_eq!(conn.reply("POST").text(), "/chunks 3");
}

#[test]
fn a_body_that_drips_for_ever_ends_at_the_deadline() {
    let home = Home::new();
    let server = home.node("f", "timeout = \"1s\"", NOTE).start(&["--idle-timeout", "5s"]);
    let mut conn = server.request("POST", "/f/drip").header("content-length", "1000").open();
    let begun = Instant::now();
    set_limit(&conn, Duration::from_millis(100));
    let mut answer = [0; 12];
    loop {
        let _ = conn.try_write("x");
        match conn.stream.read(&mut answer) {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        assert!(begun.elapsed() < SOON, "it drips on");
    }
    let status = String::from_utf8_lossy(&answer[9..12]).into_owned();
    assert!(["400", "408", "504"].contains(&status.as_str()), "{status}");
    assert_eq!(home.lines("f"), Vec::<String>::new());
}

#[test]
fn a_client_that_stops_reading_is_cut_off_and_the_instance_is_free() {
    let home = Home::new();
    let server = home.node("f", "concurrency = 1\nmax-instances = 1", LARGE).start(&LIMITS);
    assert_eq!(server.ok("/f").text(), "small");
    for path in ["/f/large", "/f/endless"] {
        let mut conn = server.request("GET", path).open();
        assert_eq!(conn.head().status, 200);
        let begun = Instant::now();
        for _ in 0..3 {
            assert_eq!(server.ok("/f").text(), "small");
        }
        assert!(begun.elapsed() < SOON, "{path}: {:?}", begun.elapsed());
        // The rest of what the kernels hold, then the end.
        let mut seen = 0;
        loop {
            let n = conn.fill();
            seen += n;
            if n == 0 {
                break;
            }
            assert!(begun.elapsed() < SOON * 2 && seen < 60 << 20, "{path} goes on: {seen} bytes");
        }
        if path == "/f/large" {
            assert!(seen < 20 << 20, "it is incomplete: {seen}");
        }
    }
    eventually("the generator is closed", || home.lines("f").pop());
}

#[test]
fn a_client_that_reads_slowly_but_steadily_gets_everything() {
    let home = Home::new();
    let server = home.node("f", "", LARGE).start(&["--idle-timeout", "1s"]);
    let mut conn = server.request("GET", "/f/large").open();
    let length: usize = conn.head().header("content-length").unwrap().parse().unwrap();
    assert_eq!(length, 20 << 20);
    let mut piece = vec![0; 2 << 20];
    let mut seen = 0;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let mut got = 0;
        while got < piece.len() {
            match conn.stream.read(&mut piece[got..]).unwrap() {
                0 => break,
                n => got += n,
            }
        }
        seen += got;
        if got < piece.len() {
            break;
        }
    }
    // What came with the head is not counted.
    assert!(seen + (64 << 10) >= length, "{seen} of {length}");
}

#[test]
fn five_hundred_idle_connections_do_not_stop_a_call() {
    let home = Home::new();
    let server = home.node("f", "", HELLO).start(&[]);
    let mut idle: Vec<_> = (0..500).map(|_| server.connect()).collect();
    for conn in idle.iter_mut().step_by(2) {
        conn.write("GET /f HTTP/1.1\r\nhost");
    }
    let begun = Instant::now();
    for _ in 0..5 {
        assert_eq!(server.ok("/f").text(), "hello");
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let last = idle.last_mut().unwrap();
    assert_eq!(server.request("GET", "/f").send_on(last).text(), "hello", "and they can still be used");
}

#[test]
fn above_the_most_connections_one_waits_until_another_closes() {
    let home = Home::new();
    let server = home.node("f", "", HELLO).start(&["--max-connections", "3"]);
    let request = server.request("GET", "/f").keep_alive();
    // The harness itself has none open.
    let mut conns: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for conn in &mut conns {
        assert_eq!(request.send_on(conn).text(), "hello");
    }
    let mut waiting = request.open();
    set_limit(&waiting, Duration::from_millis(300));
    let early = waiting.stream.read(&mut [0; 1]);
    assert!(early.is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "one above the bound must wait");
    for conn in &mut conns {
        assert_eq!(request.send_on(conn).text(), "hello", "those at the bound are served on");
    }
    drop(conns.pop());
    set_limit(&waiting, SOON);
    assert_eq!(waiting.reply("GET").text(), "hello");
}

#[test]
fn idle_connections_at_the_bound_give_way_after_the_idle_time() {
    let home = Home::new();
    let server = home.node("f", "", HELLO).start(&["--max-connections", "2", "--idle-timeout", "500ms"]);
    let _idle = [server.connect(), server.connect()];
    assert_eq!(server.ok("/f").text(), "hello");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    // The earlier, the slower.
    let code = r"
export default async ({ req, res }) => {
  await new Promise((r) => setTimeout(r, 100 - 20 * Number(req.query.n)));
  return res.text(req.method + req.query.n + req.bodyText);
};";
    let home = Home::new();
    let server = home.node("f", "", code).start(&[]);
    let mut all = Vec::new();
    for n in 0..5 {
        let target = format!("/f?n={n}");
        let request = server.request(if n % 2 == 0 { "GET" } else { "POST" }, &target);
        let request = if n % 2 == 0 { request } else { request.body("body") };
        let request = if n == 4 { request } else { request.keep_alive() };
        all.extend(request.head());
        all.extend_from_slice(if n % 2 == 0 { b"" } else { b"body" });
    }
    let mut conn = server.connect();
    conn.write(&all);
    let texts: Vec<_> = (0..5).map(|_| conn.reply("GET").text()).collect();
    assert_eq!(texts, ["GET0", "POST1body", "GET2", "POST3body", "GET4"]);
    assert!(conn.closes());

    // Split at every place, also in the middle of a head.
    let two = [server.request("GET", "/f?n=3").keep_alive().head(), server.request("GET", "/f?n=4").head()]
        .concat();
    for at in (1..two.len()).step_by(29) {
        let mut conn = server.connect();
        conn.write(&two[..at]);
        std::thread::sleep(Duration::from_millis(2));
        conn.write(&two[at..]);
        assert_eq!(
            (conn.reply("GET").text().as_str(), conn.reply("GET").text().as_str()),
            ("GET3", "GET4"),
            "{at}"
        );
    }
}

#[test]
fn heads_and_targets_that_are_too_long() {
    let home = Home::new();
    let server = home.node("f", "", NOTE).start(&["--idle-timeout", "2s"]);
    let with = |name: &str, size: usize| server.request("GET", "/f").header(name, &"x".repeat(size)).send();
    assert_eq!(with("x-fits", 30 << 10).status, 200);
    assert_eq!(with("x-long", 33 << 10).problem(), "431 headers-too-large front");
    let target = |size: usize| format!("/f/{}", "a".repeat(size - 3));
    assert_eq!(server.get(&target(8192)).status, 200);
    assert_eq!(server.get(&target(8193)).problem(), "414 target-too-long front");
    assert_eq!(server.get(&format!("/f?{}", "q".repeat(9000))).problem(), "414 target-too-long front");
    let called = home.lines("f").len();

    // Larger than what is ever kept in memory: hyper itself refuses.
    for (line, accepted) in [
        (format!("GET /f HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(200 << 10)), [431, 431]),
        (format!("GET /f HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(300)), [431, 431]),
        (format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(200 << 10)), [414, 431]),
    ] {
        let mut conn = server.connect();
        let _ = conn.try_write(line);
        let mut start = [0; 12];
        conn.stream.read_exact(&mut start).unwrap();
        let status: u16 = std::str::from_utf8(&start[9..]).unwrap().parse().unwrap();
        assert!(accepted.contains(&status), "{status}");
    }
    assert_eq!(server.ok("/f/after").text(), "/after 0");
    assert_eq!(home.lines("f").len(), called + 1, "none of these was called");
}

#[test]
fn garbage_is_refused_and_the_next_connection_works() {
    let home = Home::new();
    let server = home.node("f", "access = \"public\"", NOTE).start(&["--idle-timeout", "500ms"]);
    for garbage in [
        &b"garbage\r\n\r\n"[..],
        b"\0\x01\x02\x03\r\n\r\n",
        // The beginning of TLS.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /f\r\n\r\n",
        b"GET /f HTTP/9.9\r\nhost: a\r\n\r\n",
        b"GET /f HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n",
        b"GET /f HTTP/1.1\r\nhost: a\r\nsp ace: x\r\n\r\n",
        b"GET /f HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n",
        b"GET /f HTTP/1.1\r\nhost: a\r\n: y\r\n\r\n",
        b"GET /f HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n",
        b"GET /f HTTP/1.1\r\nhost: a\r\nx: a\r\n folded\r\n\r\n",
        b"G\xc3\x84T /f HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /f\x01 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /f HTTP/1.1\r\nhost: a\r\ncontent-length: abc\r\n\r\n",
        b"GET /f HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"GET /f HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nx",
        b"GET /f HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    ] {
        let text = exchange(&server, garbage);
        assert_eq!(statuses(&text), [400], "{}: {text}", garbage.escape_ascii());
    }
    // HTTP/2 without being asked: anything but an HTTP/1 call.
    let text = exchange(&server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert!(statuses(&text).iter().all(|status| *status >= 400), "{text}");
    assert_eq!(home.lines("f"), Vec::<String>::new());
    assert_eq!(server.ok("/f/after").text(), "/after 0");
}

/// The end of what a client sends cannot be told from its leaving, which ends a call: so either is right, an answer or
/// a closed connection, but at once and without anything left behind.
#[test]
fn a_sender_that_closes_its_half_after_the_request() {
    let home = Home::new();
    let manifest = "concurrency = 1\nmax-instances = 1";
    let server = home.node("f", manifest, NOTE).start(&["--idle-timeout", "30s", "--header-timeout", "30s"]);
    assert_eq!(server.ok("/f/warm").status, 200);
    let begun = Instant::now();
    for (method, body) in [("GET", ""), ("POST", "abc")] {
        let length = body.len().to_string();
        let mut conn = server.request(method, "/f/half").header("content-length", &length).open();
        conn.write(body);
        conn.stream.shutdown(Shutdown::Write).unwrap();
        let text = rest(&mut conn);
        assert!(statuses(&text).iter().all(|status| *status == 200), "{method}: {text}");
        assert_eq!(server.ok("/f/after").text(), "/after 0");
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[test]
fn a_sender_that_leaves_in_the_middle() {
    let home = Home::new();
    let server = home.node("f", "", NOTE).start(&["--idle-timeout", "30s", "--header-timeout", "30s"]);
    // In the head.
    let mut conn = server.connect();
    conn.write("GET /f/head HTTP/1.1\r\nho");
    conn.stream.shutdown(Shutdown::Write).unwrap();
    let begun = Instant::now();
    let text = rest(&mut conn);
    assert!(statuses(&text).iter().all(|status| *status == 400), "{text}");
    // In the body, whose length was given, and in a chunk.
    for (name, value, part) in [("content-length", "100", "abc"), ("transfer-encoding", "chunked", "5\r\nab")]
    {
        let mut conn = server.request("POST", "/f/body").header(name, value).open();
        conn.write(part);
        conn.stream.shutdown(Shutdown::Write).unwrap();
        let text = rest(&mut conn);
        assert!(statuses(&text).iter().all(|status| *status == 400), "{text}");
    }
    assert!(begun.elapsed() < SOON, "at once, not at a limit: {:?}", begun.elapsed());
    assert_eq!(server.ok("/f/after").text(), "/after 0");
    assert_eq!(home.lines("f"), ["/after"]);
}

#[test]
fn http_1_0() {
    let home = Home::new();
    home.node("f", "", NOTE).node("large", "", LARGE);
    let server = home.start(&["--idle-timeout", "20s"]);
    let secret = secret(&server);
    let begun = Instant::now();
    let text = exchange(&server, format!("GET /f/old HTTP/1.0\r\n{secret}\r\n"));
    assert!(begun.elapsed() < Duration::from_secs(19), "it closes by itself");
    assert_eq!(statuses(&text), [200], "no host is needed: {text}");
    assert!(text.ends_with("\r\n\r\n/old 0"), "{text}");

    let keep =
        format!("POST /f/old HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 2\r\n{secret}\r\nab");
    let text = exchange(&server, [keep.as_str(), keep.as_str()].concat());
    assert_eq!(statuses(&text), [200, 200], "{text}");
    assert!(text.to_ascii_lowercase().contains("connection: keep-alive"), "{text}");

    // No chunks for those who do not know them: the end of the connection is the end.
    let code =
        "export default ({ res }) => res.stream((async function* () { yield 'one '; yield 'two'; })());";
    let home = Home::new();
    let server = home.node("f", "access = \"public\"", code).start(&["--idle-timeout", "2s"]);
    let text = exchange(&server, "GET /f HTTP/1.0\r\nhost: a\r\n\r\n");
    assert!(!text.to_ascii_lowercase().contains("transfer-encoding"), "{text}");
    assert!(text.ends_with("\r\n\r\none two"), "{text}");
    let text = exchange(&server, "GET /f HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(statuses(&text), [400], "{text}");
}

#[test]
fn one_host_is_needed() {
    let home = Home::new();
    let server = home.node("f", "access = \"public\"", NOTE).start(&["--idle-timeout", "500ms"]);
    // RFC 9112, section 3.2: MUST respond with 400.
    let text = exchange(&server, "GET /f/none HTTP/1.1\r\n\r\n");
    assert_eq!(statuses(&text), [400], "none: {text}");
    let text = exchange(&server, "GET /f/two HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n");
    assert_eq!(statuses(&text), [400], "two: {text}");
    assert_eq!(home.lines("f"), Vec::<String>::new());
}

#[test]
fn requests_that_two_servers_could_read_differently_are_refused() {
    let home = Home::new();
    let server = home.node("f", "access = \"public\"", NOTE).start(&["--idle-timeout", "500ms"]);
    let inner = "GET /f/smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    for (headers, body) in [
        ("content-length: 4\r\ncontent-length: 5", "abcde"),
        ("content-length: 4, 5", "abcde"),
        ("content-length: 0x4", "abcd"),
        ("content-length: 4 4", "abcd"),
        ("transfer-encoding: gzip", ""),
        ("transfer-encoding: chunked, identity", "0\r\n\r\n"),
        ("transfer-encoding: xchunked", "0\r\n\r\n"),
        ("transfer-encoding : chunked", "0\r\n\r\n"),
        ("transfer-encoding:\r\n chunked", "0\r\n\r\n"),
        ("transfer-encoding: chunked", "zz\r\n"),
        ("transfer-encoding: chunked", "-1\r\n"),
        ("transfer-encoding: chunked", "0x5\r\nabcde\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked", "ffffffffffffffffff\r\nabc"),
        ("transfer-encoding: chunked", "3\r\nabcde\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked", "\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked", "3 3\r\nabc\r\n0\r\n\r\n"),
    ] {
        let text =
            exchange(&server, format!("POST /f/outer HTTP/1.1\r\nhost: a\r\n{headers}\r\n\r\n{body}{inner}"));
        assert_eq!(statuses(&text), [400], "{headers} {body:?}: {text}");
    }
    assert_eq!(home.lines("f"), Vec::<String>::new(), "neither the request nor the one inside was called");
}

#[test]
fn a_length_next_to_chunks_is_refused_or_at_least_the_last_request() {
    let home = Home::new();
    let server = home.node("f", "access = \"public\"", NOTE).start(&["--idle-timeout", "500ms"]);
    let inner = "GET /f/smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    for headers in
        ["content-length: 6\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 6"]
    {
        let text = exchange(
            &server,
            format!("POST /f/outer HTTP/1.1\r\nhost: a\r\n{headers}\r\n\r\n0\r\n\r\n{inner}"),
        );
        // RFC 9112, section 6.1: to be refused, or read by its chunks and the connection closed after it.
        assert_eq!(statuses(&text).len(), 1, "{headers}: {text}");
    }
    assert!(!home.lines("f").contains(&"/smuggled".to_owned()));
}

#[test]
fn lengths_that_agree_and_odd_chunks_are_taken() {
    let home = Home::new();
    let server = home.node("f", "access = \"public\"", NOTE).start(&["--idle-timeout", "500ms"]);
    for (headers, body) in [
        ("transfer-encoding: chunked", "3;name=value\r\nabc\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked", "0003\r\nabc\r\n000\r\n\r\n"),
        ("transfer-encoding: chunked", "1\r\na\r\n2\r\nbc\r\n0\r\nx-trailer: y\r\n\r\n"),
        ("Transfer-Encoding: Chunked", "3\r\nabc\r\n0\r\n\r\n"),
        ("content-length: 003", "abc"),
    ] {
        let text = exchange(&server, format!("POST /f/odd HTTP/1.1\r\nhost: a\r\n{headers}\r\n\r\n{body}"));
        assert_eq!(statuses(&text), [200], "{headers} {body:?}: {text}");
        assert!(text.ends_with("/odd 3"), "{headers} {body:?}: {text}");
    }
    // Empty lines before a request are skipped.
    let text = exchange(&server, "\r\n\r\nGET /f/lines HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(statuses(&text), [200], "{text}");
}

#[test]
fn an_unread_body_does_not_become_the_next_request() {
    let home = Home::new();
    let server = home.node("f", "", NOTE).start(&["--idle-timeout", "500ms"]);
    let inner = String::from_utf8(server.request("GET", "/f/smuggled").head()).unwrap();
    // Refused before the body is read: for want of the secret, an unknown name, a method.
    for line in ["POST /f HTTP/1.1", "POST /none HTTP/1.1", "BREW /f HTTP/1.1"] {
        for secret in ["", &secret(&server)] {
            let length = inner.len();
            let head = format!("{line}\r\nhost: a\r\n{secret}content-length: {length}\r\n\r\n");
            let mut conn = server.connect();
            conn.write(head);
            conn.stream.flush().unwrap();
            // The body comes after the answer may have been sent.
            std::thread::sleep(Duration::from_millis(30));
            let _ = conn.try_write(&inner);
            let text = rest(&mut conn);
            assert!(statuses(&text).len() <= 1, "{line}: {text}");
        }
    }
    assert!(!home.lines("f").contains(&"/smuggled".to_owned()));
}

#[test]
fn a_slow_client_does_not_hold_up_shutdown() {
    let home = Home::new();
    let mut server = home.node("f", "", ECHO).start(&["--grace", "10s"]);
    let mut idle = server.connect();
    let mut kept = server.connect();
    assert_eq!(server.request("GET", "/f").keep_alive().send_on(&mut kept).status, 200);
    let begun = Instant::now();
    assert_eq!(server.stop(), 0);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert!(idle.closes() && kept.closes());
}
