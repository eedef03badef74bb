//! The streamed format 0.12.0.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::answers::{
    FIELDS, assert_works, boundary, multipart, part_head, run_with, runs, streamed, text, whole,
};
use crate::common::{Conn, Reply, eventually};
use crate::harness::{Api, problem};

const STREAMED: (&str, &str) = ("x-executor-response-format", "0.12.0");

fn api() -> Api {
    let api = Api::start();
    api.guest("a", "v5");
    api
}

#[test]
fn r_120_only_who_asks_gets_it() {
    let api = api();
    for format in ["0.12.0", "0.12.1", "0.13", "1.0.0"] {
        let reply = run_with(&api, "a", "/text", &[("x-executor-response-format", format)]);
        assert_eq!(text(&whole(streamed(&reply)), "body"), "hello", "{format}");
    }
    for format in ["0.11.9", "0.12.0-rc1", "0.12.0-dev", "x"] {
        let reply = run_with(&api, "a", "/text", &[("x-executor-response-format", format)]);
        assert_eq!(text(&multipart(&reply), "body"), "hello", "{format}");
    }
    let json = run_with(&api, "a", "/text", &[STREAMED, ("accept", "application/json")]);
    assert_eq!(json.json()["body"], "hello");
    assert_eq!(json.header("x-executor-response-format"), None);
}

#[test]
fn r_121_runs_byte_for_byte() {
    let api = api();
    for (path, body) in [
        ("/text?body=hello", b"hello".to_vec()),
        ("/text?body=", Vec::new()),
        ("/text?body=0%0D%0A%0D%0A", b"0\r\n\r\n".to_vec()),
        ("/binary?times=3000", (0..=255u8).collect::<Vec<_>>().repeat(3000)),
        ("/status?code=204", Vec::new()),
    ] {
        let parts = streamed(&run_with(&api, "a", path, &[STREAMED]));
        assert!(parts.iter().all(|(_, runs)| runs.iter().all(|run| !run.is_empty())));
        assert!(parts[2].1.concat() == body, "{path}");
    }
    let head = api
        .request("POST", "/v1/runtimes/a/executions")
        .header("content-type", "application/json")
        .header(STREAMED.0, STREAMED.1)
        .body(json!({ "path": "/text", "method": "HEAD" }).to_string())
        .send();
    assert!(streamed(&head)[2].1.is_empty());
}

#[test]
fn r_121_the_whole_answer_byte_for_byte() {
    let api = api();
    let reply = run_with(&api, "a", "/logs?log=line&error=bad", &[STREAMED]);
    let fields = whole(streamed(&reply));
    let boundary = boundary(&reply);
    let mut expected = String::new();
    for (name, value) in fields.iter().map(|(name, value)| (name, String::from_utf8(value.clone()).unwrap()))
    {
        let run = if value.is_empty() { String::new() } else { format!("{:x}\r\n{value}\r\n", value.len()) };
        let _ = write!(
            expected,
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\
             Content-Transfer-Encoding: chunked\r\n\r\n{run}0\r\n\r\n"
        );
    }
    assert_eq!(reply.text(), format!("{expected}--{boundary}--"));
    assert_eq!((text(&fields, "logs"), text(&fields, "errors")), ("line".into(), "bad".into()));
    assert_eq!(text(&fields, "headers"), "{}");
    let lists = whole(streamed(&run_with(&api, "a", "/headers", &[STREAMED])));
    let headers: Value = serde_json::from_str(&text(&lists, "headers")).unwrap();
    assert_eq!(headers["set-cookie"], json!(["a=1; path=/", "b=2"]));
}

/// Sends an execution of `path` and reads until the head has come.
fn begin(api: &Api, path: &str) -> (Conn, Reply) {
    let body = json!({ "path": path, "timeout": 60 }).to_string();
    let request = api
        .request("POST", "/v1/runtimes/a/executions")
        .header("content-type", "application/json")
        .header(STREAMED.0, STREAMED.1)
        .body(body.clone());
    let mut conn = request.open();
    conn.write(body);
    let head = conn.head();
    assert_eq!((head.status, head.header("transfer-encoding")), (200, Some("chunked")));
    (conn, head)
}

/// Reads all there is; `true`: it ended as HTTP says.
fn to_the_end(conn: &mut Conn, mut so_far: Vec<u8>) -> (Vec<u8>, bool) {
    loop {
        match conn.chunk() {
            None => return (so_far, false),
            Some(piece) if piece.is_empty() => return (so_far, true),
            Some(piece) => so_far.extend(piece),
        }
    }
}

#[test]
fn r_122_the_body_comes_while_the_function_goes_on() {
    let api = api();
    // 3 bytes, with seconds between them.
    let (mut conn, head) = begin(&api, "/slow?n=3&pause=1.5");
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"1\r\ns\r\n") {
        bytes.extend(conn.chunk().filter(|piece| !piece.is_empty()).expect("the first byte"));
    }
    // The first byte is here; the function still works on the others.
    assert!(memchr::memmem::find(&bytes, b"name=\"logs\"").is_none());
    let mut rest = &bytes[..];
    let boundary = boundary(&head);
    for (name, value) in [("statusCode", "200"), ("headers", "{}")] {
        part_head(&mut rest, &boundary, name);
        assert_eq!(
            runs(&mut rest).concat(),
            value.as_bytes(),
            "both are complete before any byte of the body"
        );
    }
    part_head(&mut rest, &boundary, "body");
    let (all, whole) = to_the_end(&mut conn, bytes);
    assert!(whole);
    let reply = Reply { body: all, ..head };
    let fields = streamed(&reply);
    assert_eq!(fields[2].1.concat(), b"sss");
    let duration = String::from_utf8(fields[5].1.concat()).unwrap().parse::<f64>().unwrap();
    assert!(duration >= 3.0, "{duration}");
    assert_eq!(fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), FIELDS);
}

#[test]
fn r_123_failures_before_the_first_part_are_documents() {
    let api = api();
    for (path, number) in [("/close", 52), ("/garbage", 56)] {
        let told = problem(&run_with(&api, "a", path, &[STREAMED]));
        assert!(told.starts_with("500 general_unknown") && told.ends_with(&format!(": {number}")), "{told}");
    }
    assert!(problem(&run_with(&api, "b", "/", &[STREAMED])).starts_with("404 runtime_not_found"));
    assert_works(&api, "a");
}

#[test]
fn r_123_a_guest_that_dies_in_the_middle() {
    let api = api();
    for path in ["/half", "/die?code=7"] {
        let (mut conn, head) = begin(&api, path);
        let (bytes, whole) = to_the_end(&mut conn, Vec::new());
        assert!(!whole, "{path}: HTTP says so, too");
        let text = String::from_utf8(bytes).unwrap();
        let boundary = boundary(&head);
        assert!(!text.contains(&format!("--{boundary}--")), "{text}");
        let body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"body\"\r\nContent-Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
        );
        assert!(text.ends_with(&body), "{text}");
        if path == "/half" {
            assert_works(&api, "a");
        }
    }
    eventually("it has ended", || api.processes("a").is_empty().then_some(()));
    let told = problem(&run_with(&api, "a", "/text", &[STREAMED]));
    assert!(told.starts_with("500 general_unknown Internal curl error"), "{told}");
    assert_eq!(api.delete("a").status, 200);
    api.guest("a", "v5");
    assert_works(&api, "a");
}

#[test]
fn r_123_a_client_that_leaves_frees_the_runtime() {
    let api = Api::with(&[("OPR_EXECUTOR_CONCURRENCY", "1")]);
    api.guest("a", "v5");
    let (mut conn, _) = begin(&api, "/slow?n=1000&pause=0.05");
    assert!(conn.chunk().is_some());
    drop(conn);
    // The one place is free long before the function would have ended.
    assert_works(&api, "a");
}
