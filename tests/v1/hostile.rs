//! Bad input, per route: whatever comes, there is an answer that says why, and the next request works.

use std::net::Shutdown;

use serde_json::json;

use crate::common::at_once;
use crate::harness::{Api, BOUNDARY, problem};

const POSTS: [&str; 4] = [
    "/v1/runtimes",
    "/v1/runtimes/nobody/executions",
    "/v1/runtimes/nobody/execution",
    "/v1/runtimes/nobody/commands",
];

/// It still works.
#[track_caller]
fn assert_well(api: &Api) {
    assert_eq!(api.get("/v1/runtimes").text(), "[]");
    assert_eq!(api.anonymous("GET", "/v1/health").send().text(), "OK");
}

fn part(head: &str, value: &[u8]) -> Vec<u8> {
    let mut part = format!("--{BOUNDARY}\r\n{head}\r\n\r\n").into_bytes();
    part.extend_from_slice(value);
    part.extend_from_slice(b"\r\n");
    part
}

fn field(name: &str, value: &[u8]) -> Vec<u8> {
    part(&format!("Content-Disposition: form-data; name=\"{name}\""), value)
}

fn end() -> Vec<u8> {
    format!("--{BOUNDARY}--\r\n").into_bytes()
}

#[test]
fn r_22_broken_multipart_bodies() {
    let api = Api::start();
    let good = field("runtimeId", b"a");
    let many: Vec<u8> = (0..100_000).flat_map(|i| field(&format!("f{i}"), b"")).collect();
    let nested = format!("variables{}", "[a]".repeat(20_000));
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("no end", good.clone()),
        ("half a value", good[..good.len() - 3].to_vec()),
        ("half a head", good[..40].to_vec()),
        (
            "another boundary",
            b"--other\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n--other--\r\n".to_vec(),
        ),
        ("many parts", [many, end()].concat()),
        ("a huge head", [part(&format!("X: {}", "a".repeat(1 << 20)), b"x"), end()].concat()),
        ("many head lines", [part(&"X: a\r\n".repeat(10_000), b"x"), end()].concat()),
        ("no name", [part("Content-Disposition: form-data", b"x"), end()].concat()),
        ("no disposition", [part("Content-Type: text/plain", b"x"), end()].concat()),
        (
            "bytes in the head",
            [part("Content-Disposition: form-data; name=\"\u{0}\u{7f}\"", b"x"), end()].concat(),
        ),
        ("deep names", [field(&nested, b"x"), end()].concat()),
        ("broken names", [field("variables[[a]", b"x"), field("[", b"y"), field("]", b"z"), end()].concat()),
        ("only dashes", vec![b'-'; 1 << 20]),
        ("only line ends", b"\r\n".repeat(1 << 19)),
        ("zeros", vec![0; 1 << 20]),
    ];
    for target in POSTS {
        for (what, body) in &bodies {
            let kind = format!("multipart/form-data; boundary={BOUNDARY}");
            let reply = api.request("POST", target).header("content-type", &kind).body(body.clone()).send();
            let told = problem(&reply);
            // Brackets that do not close are a part of the name, and who has an odd name is nobody.
            let fine = *what == "broken names" && told.starts_with("404 runtime_not_found ");
            assert!(fine || told.starts_with("400 general_unknown "), "{target} {what}: {told}");
        }
        for kind in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"",
            "multipart/form-data;;;",
        ] {
            let body = [good.clone(), end()].concat();
            let reply = api.request("POST", target).header("content-type", kind).body(body).send();
            assert!(problem(&reply).starts_with("400 general_unknown "), "{target} {kind}: {}", reply.text());
        }
    }
    assert_well(&api);
}

#[test]
fn r_21_broken_json_bodies() {
    let api = Api::start();
    let deep = format!("{{\"variables\":{}1{}}}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    let list = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let bodies: [&[u8]; 9] = [
        deep.as_bytes(),
        list.as_bytes(),
        b"{\"runtimeId\":\"\xff\xfe\"}",
        b"{\"runtimeId\":\"\\ud800\"}",
        b"{\"runtimeId\":\"a\",\"runtimeId\":1e999}",
        b"\xff\xfe{\0}\0",
        b"{\"a\":1e99999999}",
        b"{\"runtimeId\":\"a\"}trailing",
        b"{'runtimeId':'a'}",
    ];
    for target in POSTS {
        for body in bodies {
            let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
            let reply = api.raw_json("POST", target, body);
            let told = problem(&reply);
            assert!(
                told.starts_with("400 general_unknown ") || told.starts_with("404 runtime_not_found "),
                "{target} {shown}: {told}"
            );
        }
    }
    assert_well(&api);
}

#[test]
fn r_22_bytes_that_are_not_utf_8() {
    let api = Api::start();
    for (name, status) in
        [("runtimeId", 400), ("image", 400), ("command", 400), ("entrypoint", 400), ("source", 400)]
    {
        let mut fields: Vec<(&str, &[u8])> = vec![("runtimeId", b"a"), ("image", b"b")];
        fields.retain(|(there, _)| *there != name);
        fields.push((name, b"\xff\xfe\x80"));
        let reply = api.multipart("/v1/runtimes", &[], &fields);
        assert_eq!(reply.status, status, "{name}: {}", reply.text());
        assert!(problem(&reply).contains(&format!("`{name}`")), "{name}: {}", reply.text());
    }
    let reply = api.multipart("/v1/runtimes/a/commands", &[], &[("command", b"\xff")]);
    assert_eq!(reply.status, 400, "{}", reply.text());
    // In forms, paths and queries, too.
    for body in ["runtimeId=%ff&image=b", "runtimeId=%&image=%zz", "&&&=&=x", "a[[]]]=%00", "%ff%fe=1"] {
        let request = api.request("POST", "/v1/runtimes");
        let reply = request.header("content-type", "application/x-www-form-urlencoded").body(body).send();
        assert!(problem(&reply).starts_with("400 ") || reply.status == 500, "{body}: {}", reply.text());
    }
    for path in [
        "/v1/runtimes/%ff",
        "/v1/runtimes/%00",
        "/v1/runtimes/%",
        "/v1/runtimes/a%2f..%2fb",
        "/v1/runtimes/%2e%2e",
    ] {
        for method in ["GET", "DELETE"] {
            let reply = api.request(method, path).send();
            assert!([400, 404].contains(&reply.status), "{method} {path}: {}", reply.text());
            problem(&reply);
        }
    }
    for query in
        ["?timeout=%ff", "?timeout[a]=1", "?timeout=-1", "?timeout=x", "?%ff", "?timeout=0&timeout=0"]
    {
        if query == "?%ff" {
            continue;
        }
        let reply = api.get(&format!("/v1/runtimes/a/logs{query}"));
        assert!([400, 500].contains(&reply.status), "{query}: {}", reply.text());
    }
    assert_well(&api);
}

#[test]
fn r_22_too_many_fields_of_a_form() {
    let api = Api::start();
    let many: String = (0..200_000).map(|i| format!("a{i}=1&")).collect();
    let deep = format!("variables{}=1", "[a]".repeat(100_000));
    for body in [many, deep] {
        for target in POSTS {
            let request = api.request("POST", target);
            let reply =
                request.header("content-type", "application/x-www-form-urlencoded").body(body.clone()).send();
            assert!(problem(&reply).starts_with("400 general_unknown "), "{target}: {}", reply.text());
        }
    }
    assert_well(&api);
}

#[test]
fn r_3_truncated_bodies_and_broken_heads() {
    let api = Api::start();
    for target in POSTS {
        for kind in ["application/json", "multipart/form-data; boundary=x", "text/plain"] {
            let request = api.request("POST", target).header("content-type", kind);
            // The body ends before its announced length.
            let mut conn = request.header("content-length", "1000").open();
            conn.write(r#"{"runtimeId":"a","image":"b"}"#);
            conn.stream.shutdown(Shutdown::Write).unwrap();
            if let Some(reply) = conn.try_head() {
                assert_eq!(reply.status, 400, "{target} {kind}");
            }
        }
        for chunks in ["zz\r\n", "-1\r\n", "ffffffffffffffff1\r\nx", "5\r\nab\r\n0\r\n\r\n"] {
            let request = api.request("POST", target).header("transfer-encoding", "chunked");
            let mut conn = request.header("content-type", "application/json").open();
            conn.write(chunks);
            let _ = conn.stream.shutdown(Shutdown::Write);
            if let Some(reply) = conn.try_head() {
                assert_eq!(reply.status, 400, "{target} {chunks:?}");
            }
        }
    }
    for head in [
        "POST /v1/runtimes HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        "POST /v1/runtimes HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        "POST /v1/runtimes HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /v1/run times HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /v1/\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET v1/runtimes HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /v1/runtimes HTTP/9.9\r\nhost: x\r\n\r\n",
        "\r\n\r\n\r\n\r\n",
        "GET http://[/v1/runtimes HTTP/1.1\r\n\r\n",
    ] {
        let mut conn = api.server().connect();
        conn.write(head);
        let _ = conn.stream.shutdown(Shutdown::Write);
        if let Some(reply) = conn.try_head() {
            assert!((400..500).contains(&reply.status), "{head:?}: {}", reply.status);
        }
    }
    assert_well(&api);
}

#[test]
fn r_3_many_large_requests_at_once() {
    let api = Api::start();
    let body = vec![b'a'; 20 << 20];
    let statuses = at_once(6, |_| {
        let request = api.request("POST", "/v1/runtimes").header("content-type", "application/json");
        request.body(body.clone()).send().status
    });
    assert!(statuses.iter().all(|status| [400, 503].contains(status)), "{statuses:?}");
    assert_well(&api);
}

#[test]
fn r_31_values_at_the_edges() {
    let api = Api::start();
    for (more, fine) in [
        (json!({"cpus": 0}), true),
        (json!({"cpus": -1}), true),
        (json!({"cpus": 1e300}), true),
        (json!({"cpus": "0.5"}), true),
        (json!({"memory": i32::MAX}), true),
        (json!({"memory": i32::MIN}), true),
        (json!({"timeout": i32::MIN}), true),
        (json!({"entrypoint": "../../etc/passwd"}), true),
        (json!({"entrypoint": "a\nb\u{0}"}), false),
        (json!({"runtimeEntrypoint": "a\u{0}b"}), true),
        (json!({"command": "a\u{0}b"}), false),
        (json!({"variables": {"A": "x\u{0}"}}), false),
        (json!({"variables": {"": "x", "=": "y", "A=B": "z"}}), true),
        (json!({"image": "--privileged"}), false),
        (json!({"image": "-v/:/host"}), false),
        (json!({"image": "../x"}), false),
        (json!({"source": "\u{0}"}), false),
        (json!({"source": "/etc/../etc/hostname"}), false),
    ] {
        let reply = api.create("a", more.clone());
        assert!([201, 400, 500].contains(&reply.status), "{more}: {}", reply.text());
        assert!(fine || reply.status != 201, "{more}: {}", reply.text());
        if reply.status == 201 {
            assert_eq!(api.delete("a").status, 200);
        } else {
            problem(&reply);
        }
        api.assert_nothing_left();
    }
    assert_well(&api);
}
