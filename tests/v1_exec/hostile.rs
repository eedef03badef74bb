//! Guests that misbehave, and ends at the wrong moment: each gets a clear error, the executor goes on, nothing is left.

use rustix::process::Signal;
use serde_json::json;

use crate::answers::{assert_works, escaped, run, run_with, streamed, text, whole};
use crate::common::{Reply, at_once, eventually};
use crate::harness::{Api, docker, order, problem};
use crate::images;

fn curl(number: u8) -> String {
    format!(
        "500 general_unknown Internal curl error has occurred within the executor! Error Number: {number}"
    )
}

/// No panic, the next runtime works, and nothing is left after both are deleted.
fn assert_unharmed(api: &Api) {
    api.guest("next", "v5");
    assert_works(api, "next");
    for runtime in api.list() {
        let id =
            runtime["name"].as_str().unwrap().strip_prefix(&format!("{}-", api.host)).unwrap().to_owned();
        assert_eq!(api.delete(&id).status, 200);
    }
    api.assert_nothing_left();
    assert!(!api.server().log().contains("panic"), "{}", api.server().log());
}

#[test]
fn images_without_a_shell() {
    let api = Api::start();
    for image in [images::shellless(), images::empty()] {
        // Docker starts its own first process in them; what that one cannot start is known when it is called.
        let reply = api.create("a", json!({ "image": image, "runtimeEntrypoint": "guest v5" }));
        let told = if reply.status == 201 {
            let reply = api.execute("a", &json!({ "timeout": 10 }));
            assert_eq!(problem(&reply), curl(7), "{image}");
            assert_eq!(api.delete("a").status, 200);
            reply.json()["trace"].to_string()
        } else {
            problem(&reply)
        };
        assert!(told.contains("bash"), "{image}: {told}");
    }
    assert_unharmed(&api);
}

#[test]
fn ids_that_lead_to_other_folders() {
    let api = Api::start();
    api.guest("a", "v5");
    let canary = api.home.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "x").unwrap();
    for id in ["a/../../canary", "a/logs", "a/..", "a/.", "/canary", "a+1", "a\u{0}", "ä"] {
        let reply = api.create(id, json!({}));
        assert!(problem(&reply).starts_with("400 execution_bad_request The id of a runtime is part"), "{id}");
        let escaped = escaped(id);
        let source = api.source("x.tar.gz", &[]);
        let reply = api.execute(&escaped, &json!({ "image": images::guest(), "source": source }));
        assert!(problem(&reply).starts_with("400 execution_bad_request The id of a runtime is part"), "{id}");
    }
    assert!(canary.join("file").exists());
    assert!(api.folder("a").join("logs").exists());
    assert_eq!(api.list().len(), 1);
    assert_works(&api, "a");
    assert_unharmed(&api);
}

#[test]
fn it_exits_at_once() {
    let api = Api::start();
    for code in [0, 3] {
        api.json(
            "POST",
            "/v1/runtimes",
            &order("a", json!({ "runtimeEntrypoint": format!("guest exit {code}") })),
        );
        let reply = api.execute("a", &json!({ "timeout": 30 }));
        let told = problem(&reply);
        assert!(told == curl(7) || told == curl(6), "{told}");
        assert!(reply.json()["trace"].to_string().contains(&format!("code {code}")), "{}", reply.text());
        assert_eq!(api.delete("a").status, 200);
    }
    assert_unharmed(&api);
}

#[test]
fn it_exits_again_and_again() {
    let api = Api::start();
    let crashing = json!({ "runtimeEntrypoint": "guest exit 1", "restartPolicy": "always" });
    api.json("POST", "/v1/runtimes", &order("a", crashing));
    assert!(problem(&api.execute("a", &json!({ "timeout": 2 }))).starts_with("400 runtime_timeout"));
    assert_unharmed(&api);
}

#[test]
fn it_listens_and_never_answers() {
    let api = Api::start();
    api.guest("a", "silent");
    assert_eq!(problem(&api.execute("a", &json!({ "timeout": 1 }))), curl(28));
    assert_unharmed(&api);
}

#[test]
fn it_closes_resets_and_answers_garbage() {
    let api = Api::start();
    for (kind, number) in [("close", 52), ("reset", 56), ("garbage", 56)] {
        api.guest(kind, kind);
        for _ in 0..2 {
            assert_eq!(problem(&api.execute(kind, &json!({ "timeout": 10 }))), curl(number), "{kind}");
        }
    }
    assert_unharmed(&api);
}

#[test]
fn it_dies_in_the_middle_of_an_answer() {
    let api = Api::start();
    for accept in ["application/json", "multipart/form-data"] {
        api.guest("a", "v5");
        let reply = run_with(&api, "a", "/die?code=9", &[("accept", accept)]);
        assert_eq!(problem(&reply), curl(56), "{accept}");
        eventually("it has ended", || api.processes("a").is_empty().then_some(()));
        assert_eq!(api.delete("a").status, 200);
    }
    api.guest("half", "half");
    assert_eq!(problem(&api.execute("half", &json!({}))), curl(56));
    assert_unharmed(&api);
}

#[test]
fn heads_that_are_too_large() {
    let api = Api::start();
    api.guest("a", "v5");
    let reply = api.execute("a", &json!({ "path": "/hugehead?n=1048576" }));
    assert_eq!(problem(&reply), curl(56));
    assert!(reply.json()["trace"].to_string().contains("its head is larger than"), "{}", reply.text());
    let fits = run(&api, "a", &json!({ "path": "/hugehead?n=60000" }));
    assert_eq!(fits["statusCode"], 200);
    assert_unharmed(&api);
}

#[test]
fn answers_of_any_shape() {
    let api = Api::start();
    api.guest("a", "v5");
    for (raw, result) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!", None),
        ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", None),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n", None),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", None),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", None),
        ("HTTP/3 200 OK\r\n\r\n", None),
        ("HTTP/1.1 abc\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", None),
        (
            "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Some("hello"),
        ),
        ("HTTP/1.1 200\r\n\r\nuntil the end", Some("until the end")),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
            Some("ok"),
        ),
        ("HTTP/1.0 200 OK\r\n\r\nold", Some("old")),
    ] {
        let parameters = json!({ "path": "/raw", "method": "POST", "body": raw, "timeout": 10 });
        let reply = api.execute("a", &parameters);
        match result {
            None => assert_eq!(problem(&reply), curl(56), "{raw:?}"),
            Some(body) => assert_eq!(reply.json()["body"], body, "{raw:?}: {}", reply.text()),
        }
    }
    assert_unharmed(&api);
}

/// Listens on the port and answers every connection with a body that never ends.
const ENDLESS: &str = "\
import socket, threading
def work(c):
    try:
        c.recv(65536)
        c.sendall(b'HTTP/1.1 200 OK\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n')
        while True: c.sendall(b'10000\\r\\n' + b'x' * 65536 + b'\\r\\n')
    except OSError: pass
    c.close()
s = socket.create_server(('0.0.0.0', 3000))
while True: threading.Thread(target=work, args=(s.accept()[0],), daemon=True).start()
";

fn endless(api: &Api, id: &str) {
    let source = api.source("endless.tar.gz", &[("endless.py", ENDLESS)]);
    let line = "tar -xzf /tmp/code.tar.gz -C /mnt/code && exec python3 /mnt/code/endless.py";
    api.created(id, json!({ "source": source, "runtimeEntrypoint": line }));
}

#[test]
fn an_infinite_body_ends_at_the_limit() {
    let api = Api::with(&[("EXECUTOR_MAX_RESPONSE", "1MiB")]);
    endless(&api, "a");
    for accept in ["application/json", "multipart/form-data"] {
        let told = problem(&run_with(&api, "a", "/", &[("accept", accept)]));
        assert!(
            told.starts_with("500 general_unknown The function's answer is larger than 1048576 bytes."),
            "{told}"
        );
        assert!(told.contains("x-executor-response-format: 0.12.0"), "it says what to do: {told}");
    }
    api.guest("b", "v5");
    let whole_one = run(&api, "b", &json!({ "path": "/big?n=1048576" }));
    assert_eq!(whole_one["body"].as_str().unwrap().len(), 1_048_576);
    let above = problem(&api.execute("b", &json!({ "path": "/big?n=1048577" })));
    assert!(above.contains("larger than 1048576 bytes"), "{above}");
    // Streamed, it has no bound but the time.
    let reply = run_with(&api, "b", "/big?n=3000000", &[("x-executor-response-format", "0.12.0")]);
    assert_eq!(text(&whole(streamed(&reply)), "body").len(), 3_000_000);
    assert_eq!(api.delete("b").status, 200);
    assert_unharmed(&api);
}

#[test]
fn an_infinite_body_that_is_streamed_ends_at_the_hard_limit() {
    let api = Api::start();
    endless(&api, "a");
    let body = json!({ "timeout": 1 }).to_string();
    let request = api
        .request("POST", "/v1/runtimes/a/executions")
        .header("content-type", "application/json")
        .header("x-executor-response-format", "0.12.0")
        .body(body.clone());
    let mut conn = request.open();
    conn.write(body);
    assert_eq!(conn.head().status, 200);
    while let Some(piece) = conn.chunk() {
        assert!(!piece.is_empty(), "it does not end well");
    }
    assert_unharmed(&api);
}

#[test]
fn a_slow_body_ends_at_the_hard_limit() {
    let api = Api::start();
    api.guest("a", "v5");
    for accept in ["application/json", "multipart/form-data"] {
        let body = json!({ "path": "/slow?n=600&pause=0.1", "timeout": 1 }).to_string();
        let reply = api
            .request("POST", "/v1/runtimes/a/executions")
            .header("content-type", "application/json")
            .header("accept", accept)
            .body(body)
            .send();
        assert_eq!(problem(&reply), curl(28), "{accept}");
    }
    let fine = run(&api, "a", &json!({ "path": "/slow?n=5&pause=0.1" }));
    assert_eq!(fine["body"], "sssss");
    assert_unharmed(&api);
}

/// Runs `work` while an execution waits in the function, and gives its answer.
fn during(api: &Api, timeout: u32, work: impl FnOnce()) -> Reply {
    let updated = || api.info("a").unwrap()["updated"].clone();
    let before = updated();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| api.execute("a", &json!({ "path": "/gate", "timeout": timeout })));
        eventually("the execution has begun", || (updated() != before).then_some(()));
        work();
        call.join().unwrap()
    })
}

#[test]
fn the_runtime_is_deleted_during_an_execution() {
    let api = Api::start();
    api.guest("a", "v5");
    assert_works(&api, "a");
    let reply = std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            api.execute("a", &json!({ "path": "/write?file=seen", "method": "POST", "body": "x" }))
        });
        assert_eq!(call.join().unwrap().status, 200);
        let call =
            scope.spawn(|| api.execute("a", &json!({ "path": "/concurrent?n=2&s=600", "timeout": 900 })));
        let connected = || api.printed("a", "cat /proc/net/tcp | awk '$4==\"01\"' | wc -l").trim() != "0";
        eventually("the function works on it", || connected().then_some(()));
        assert_eq!(api.delete("a").status, 200);
        call.join().unwrap()
    });
    let told = problem(&reply);
    assert!(
        told.starts_with("500 general_unknown Internal curl error") || told.starts_with("404 "),
        "{told}"
    );
    assert!(problem(&api.execute("a", &json!({}))).starts_with("404 runtime_not_found"));
    assert_unharmed(&api);
}

#[test]
fn sigterm_lets_an_execution_finish() {
    let mut api = Api::start();
    api.guest("a", "v5");
    assert_works(&api, "a");
    let pid = api.server().pid();
    let gate = api.folder("a").join("builds/go");
    let reply = during(&api, 60, || {
        crate::common::signal(pid, Signal::TERM);
        api.server().wait_log("shutting down");
        std::fs::write(&gate, "").unwrap();
    });
    assert_eq!((reply.status, reply.json()["body"].as_str()), (200, Some("passed")), "{}", reply.text());
    assert_eq!(api.server_mut().wait(), 0);
    api.assert_nothing_left();
}

#[test]
fn sigterm_ends_what_does_not_finish() {
    let mut api = Api::with(&[("EXECUTOR_GRACE", "1s")]);
    api.guest("a", "v5");
    assert_works(&api, "a");
    let pid = api.server().pid();
    let before = api.info("a").unwrap()["updated"].clone();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            let body = json!({ "path": "/gate", "timeout": 600 }).to_string();
            let request = api
                .request("POST", "/v1/runtimes/a/executions")
                .header("content-type", "application/json")
                .header("accept", "application/json")
                .body(body.clone());
            let mut conn = request.open();
            conn.write(body);
            // An error or the end of the connection.
            conn.try_head().map(|head| head.status)
        });
        eventually("the execution has begun", || (api.info("a").unwrap()["updated"] != before).then_some(()));
        crate::common::signal(pid, Signal::TERM);
        let status = call.join().unwrap();
        assert!(status.is_none_or(|status| status >= 400), "{status:?}");
    });
    assert_eq!(api.server_mut().wait(), 0);
    api.assert_nothing_left();
}

/// Names of networks are not unique, and older versions of Docker start nothing in one of several. While two are there, a
/// start may still fail; but they must become one.
#[test]
fn executors_that_make_the_same_network_at_the_same_time() {
    let network = format!("executor-v1-exec-{}", std::process::id());
    let apis: Vec<Api> = (0..4).map(|_| Api::with(&[("OPR_EXECUTOR_NETWORK", &network)])).collect();
    let parameters = json!({ "runtimeEntrypoint": "guest v5" });
    at_once(apis.len(), |n| {
        eventually("it is created", || (apis[n].create("a", parameters.clone()).status == 201).then_some(()));
    });
    let list = ["network", "ls", "--quiet", "--no-trunc", "--filter", &format!("name=^{network}$")];
    let made = docker(&list);
    for api in &apis {
        assert_works(api, "a");
    }
    drop(apis);
    for id in docker(&list).lines() {
        docker(&["network", "rm", id]);
    }
    assert_eq!(made.lines().count(), 1, "{made}");
}
