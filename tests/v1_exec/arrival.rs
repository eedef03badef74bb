//! Until the function is asked: R-90 to R-96, and R-51.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::answers::{assert_works, run, seen, seen_header};
use crate::common::{at_once, eventually};
use crate::harness::{Api, problem};
use crate::images;

const NOT_STARTED: &str =
    "404 runtime_not_found Runtime not found. Please start it first or provide runtime-related parameters.";
const TIMEOUT: &str = "400 runtime_timeout Timed out waiting for runtime.";
/// The command of a build that ends when the test makes the file.
const GATE: &str = "while [ ! -e /mnt/code/go ]; do sleep 0.05; done";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn code(api: &Api) -> String {
    api.source("code.tar.gz", &[("main.txt", "hello from the source\n")])
}

/// What an execution needs to create its runtime.
fn from_nothing(api: &Api, more: &Value) -> Value {
    let mut all = json!({
        "image": images::guest(),
        "source": code(api),
        "runtimeEntrypoint": "guest v5",
        "path": "/echo",
    });
    for (name, value) in more.as_object().unwrap() {
        all[name] = value.clone();
    }
    all
}

/// Opens the gate of a creation with [`GATE`].
fn open_gate(api: &Api, id: &str) {
    let folder = api.folder(id).join("builds");
    eventually("the runtime's folder", || folder.exists().then_some(()));
    fs::write(folder.join("go"), "").unwrap();
}

/// Runs `work` while the creation of `id` waits at the gate.
fn while_pending<T: Send>(api: &Api, id: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let creation = scope.spawn(|| {
            api.create(id, json!({ "command": GATE, "runtimeEntrypoint": "guest v5" }));
        });
        api.wait_pending(id);
        let done = work();
        creation.join().unwrap();
        done
    })
}

#[test]
fn r_51_health_for_load_balancers() {
    let api = Api::with(&[("OPR_EXECUTOR_HEALTH_JSON", "on")]);
    api.guest("a", "v5");
    assert_works(&api, "a");
    let health = |accept: &str| api.anonymous("GET", "/v1/health").header("accept", accept).send();
    for accept in ["*/*", "application/json", "text/html, application/json;q=0.5"] {
        let reply = health(accept);
        assert_eq!(reply.header("content-type"), Some("application/json; charset=UTF-8"));
        let health = reply.json();
        assert_eq!(health["status"], "pass");
        assert!(health["usage"].is_f64(), "{health}");
        assert_eq!(health["runtimes"]["a"]["status"], "pass", "{health}");
        assert!(health["runtimes"]["a"]["usage"].is_f64(), "{health}");
    }
    assert_eq!(health("text/plain").text(), "OK");
    let api = Api::start();
    for (accept, text) in [("*/*", true), ("text/plain", true), ("application/json", false)] {
        let reply = api.anonymous("GET", "/v1/health").header("accept", accept).send();
        assert_eq!(reply.text() == "OK", text, "{accept}");
    }
}

#[test]
fn r_90_unknown_without_image_or_source() {
    let api = Api::start();
    for parameters in [
        json!({}),
        json!({ "image": images::guest() }),
        json!({ "source": "/a.tar.gz" }),
        json!({ "image": null, "source": null, "entrypoint": "x" }),
    ] {
        assert_eq!(problem(&api.execute("a", &parameters)), NOT_STARTED, "{parameters}");
        let reply = api.json("POST", "/v1/runtimes/a/execution", &parameters);
        assert_eq!(problem(&reply), NOT_STARTED, "the alias, {parameters}");
    }
    assert!(api.list().is_empty());
    api.assert_nothing_left();
}

#[test]
fn r_91_created_by_its_first_execution() {
    let api = Api::start();
    let parameters = from_nothing(
        &api,
        &json!({
            "entrypoint": "src/index.js", "cpus": 0.5, "memory": "300",
            "variables": { "MINE": "it", "NUMBER": 2, "YES": true },
        }),
    );
    let first = seen(&run(&api, "a", &parameters));
    let environment = &first["environment"];
    for (name, value) in [
        ("MINE", "it"),
        ("NUMBER", "2"),
        ("YES", "1"),
        ("OPEN_RUNTIMES_ENTRYPOINT", "src/index.js"),
        ("OPEN_RUNTIMES_HOSTNAME", &api.host),
        ("INERNAL_EXECUTOR_HOSTNAME", &api.host),
        ("OPEN_RUNTIMES_CPUS", "0.5"),
        ("OPEN_RUNTIMES_MEMORY", "300"),
        ("CI", "true"),
    ] {
        assert_eq!(environment[name], value, "{name} in {environment}");
    }
    assert_eq!(environment["OPEN_RUNTIMES_OUTPUT_DIRECTORY"], Value::Null);
    assert_eq!(api.printed("a", "tar -xzOf /tmp/code.tar.gz main.txt"), "hello from the source\n");
    assert_eq!(
        api.printed("a", "ls /mnt/code /cache 2>/dev/null | cat"),
        "/mnt/code:\n",
        "no cache, no build"
    );
    let info = api.info("a").unwrap();
    assert_eq!(info["key"], environment["OPEN_RUNTIMES_SECRET"]);
    assert_eq!(
        (&info["version"], &info["initialised"], &info["listening"]),
        (&json!("v5"), &json!(1), &json!(1))
    );
    assert!(info["status"].as_str().unwrap().starts_with("Up "), "{info}");
    let again = seen(&run(&api, "a", &parameters));
    assert_eq!(again["started"], first["started"], "it was not created again");
    assert_eq!(api.delete("a").status, 200);
    api.assert_nothing_left();
    let other = seen(&run(&api, "a", &parameters));
    assert_ne!(other["started"], first["started"], "after its deletion the id is free");
}

#[test]
fn r_91_many_first_executions_create_once() {
    let api = Api::start();
    let parameters = from_nothing(&api, &json!({}));
    let started = at_once(12, |_| seen(&run(&api, "a", &parameters))["started"].clone());
    assert!(started.iter().all(|one| *one == started[0]), "{started:?}");
    assert_eq!(api.containers().len(), 1);
    assert_eq!(api.list().len(), 1);
    assert_eq!(api.server().logged("runtime created").len(), 1);
}

#[test]
fn r_91_many_first_executions_hear_why_not() {
    let api = Api::start();
    let parameters = from_nothing(&api, &json!({ "source": "/there/is/none.tar.gz" }));
    for reply in at_once(6, |_| api.execute("a", &parameters)) {
        let problem = problem(&reply);
        assert!(problem.starts_with("500 general_unknown An internal curl error has occurred"), "{problem}");
    }
    api.assert_nothing_left();
}

/// What cannot be created, and what the answer says of it.
const HOPELESS: [(&str, &str, &str); 3] = [
    (r#"{"image": "executor-v1-tests/there-is-none:1"}"#, "executor-v1-tests/there-is-none:1", "docker pull"),
    (r#"{"image": "Not An Image"}"#, "`Not An Image` is not the name of an image", ""),
    (r#"{"source": "/there/is/none.tar.gz"}"#, "/there/is/none.tar.gz", ""),
];

#[test]
fn r_92_what_cannot_be_created_says_why() {
    for mode in ["development", "production"] {
        let api = Api::with(&[("OPR_EXECUTOR_ENV", mode)]);
        for (bad, told, more) in HOPELESS {
            let parameters = from_nothing(&api, &serde_json::from_str(bad).unwrap());
            let problem = problem(&api.execute("a", &parameters));
            let start =
                "500 general_unknown An internal curl error has occurred while starting runtime! Error Msg: ";
            assert!(problem.starts_with(start), "{mode} {bad}: {problem}");
            assert!(problem.contains(told) && problem.contains(more), "{mode} {bad}: {problem}");
            assert_eq!(api.info("a"), None);
            api.assert_nothing_left();
        }
        assert_eq!(seen(&run(&api, "a", &from_nothing(&api, &json!({}))))["method"], "GET");
    }
}

#[test]
fn r_92_a_transient_failure_is_tried_again_until_the_timeout() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let storage = format!("s3://key:secret@127.0.0.1:{port}/bucket?region=r&insecure=true");
    let api = Api::with(&[("OPR_EXECUTOR_CONNECTION_STORAGE", &storage)]);
    let parameters = from_nothing(&api, &json!({ "timeout": 4 }));
    let reply = api.execute("a", &parameters);
    assert_eq!(problem(&reply), TIMEOUT);
    api.server().wait_log("a runtime was not created");
    api.assert_nothing_left();
}

#[test]
fn r_93_waits_for_a_creation_of_others() {
    let api = Api::start();
    let (body, began, opened) = while_pending(&api, "a", || {
        std::thread::scope(|scope| {
            let began = now();
            let call = scope.spawn(|| run(&api, "a", &json!({ "path": "/text?body=waited", "timeout": 60 })));
            // It waits by now, or will: both are right.
            eventually("somebody waits", || (now() > began + 1.0).then_some(()));
            let opened = now();
            open_gate(&api, "a");
            (call.join().unwrap(), began, opened)
        })
    });
    assert_eq!(body["body"], "waited");
    // R-94: what it waited for is not billed.
    let (start, duration) = (body["startTime"].as_f64().unwrap(), body["duration"].as_f64().unwrap());
    assert!(start >= opened && opened > began, "{start} {opened} {began}");
    assert!(start + duration <= now() + 0.01 && duration > 0.0, "{start} {duration}");
}

#[test]
fn r_93_gives_up_at_the_timeout() {
    let api = Api::start();
    while_pending(&api, "a", || {
        for timeout in [json!(1), json!("1"), json!(0), json!(-5)] {
            let reply = api.execute("a", &json!({ "timeout": timeout }));
            assert_eq!(problem(&reply), TIMEOUT, "{timeout}");
        }
        open_gate(&api, "a");
    });
    eventually("it is up", || (api.info("a")?["initialised"] == 1).then_some(()));
    assert_works(&api, "a");
}

#[test]
fn r_93_the_runtime_vanishes() {
    let api = Api::start();
    let reply = while_pending(&api, "a", || {
        std::thread::scope(|scope| {
            let call = scope.spawn(|| api.execute("a", &json!({ "timeout": 60 })));
            let began = now();
            eventually("somebody waits", || (now() > began + 0.5).then_some(()));
            assert_eq!(api.delete("a").status, 200);
            call.join().unwrap()
        })
    });
    assert_eq!(problem(&reply), "404 runtime_not_found Runtime no longer exists.");
    api.assert_nothing_left();
}

#[test]
fn r_94_start_time_and_duration_are_of_the_execution() {
    let api = Api::start();
    api.guest("a", "v5");
    assert_works(&api, "a");
    let before = now();
    let document = run(&api, "a", &json!({ "path": "/sleep?s=0.3" }));
    let (start, duration) = (document["startTime"].as_f64().unwrap(), document["duration"].as_f64().unwrap());
    assert!(start >= before - 0.001 && start + duration <= now() + 0.01, "{before} {start} {duration}");
    assert!(duration >= 0.3, "{duration}");
}

#[test]
fn r_95_waits_until_it_listens() {
    let api = Api::start();
    api.created("a", json!({ "runtimeEntrypoint": "guest late 1.5" }));
    assert_eq!(api.info("a").unwrap()["listening"], 0);
    assert_works(&api, "a");
    assert_eq!(api.info("a").unwrap()["listening"], 1);
}

#[test]
fn r_95_it_never_listens() {
    let api = Api::start();
    api.guest("deaf", "deaf");
    api.guest("other", "v5");
    let reply = api.execute("deaf", &json!({ "timeout": 1 }));
    assert_eq!(problem(&reply), TIMEOUT);
    let trace = reply.json()["trace"].to_string();
    assert!(trace.contains("it runs, but nothing listens on its port 3000"), "{trace}");
    assert_eq!(api.info("deaf").unwrap()["listening"], 0);
    assert_works(&api, "other");
}

/// What the function was told of its limit.
#[track_caller]
fn limit_told(document: &Value) -> u64 {
    let told = seen_header(&seen(document), "x-open-runtimes-timeout");
    assert_eq!(told.len(), 1);
    told[0].parse().unwrap()
}

/// Starts an execution while its runtime is being created, which goes on for 2 s, and gives the answer.
fn after_two_seconds(api: &Api, timeout: u32) -> crate::common::Reply {
    while_pending(api, "a", || {
        std::thread::scope(|scope| {
            let began = now();
            let call = scope.spawn(|| api.execute("a", &json!({ "path": "/echo", "timeout": timeout })));
            eventually("2 s pass", || (now() > began + 2.0).then_some(()));
            open_gate(api, "a");
            call.join().unwrap()
        })
    })
}

#[test]
fn r_96_compatible_mode_subtracts_the_waiting() {
    let api = Api::start();
    let reply = after_two_seconds(&api, 30);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let told = limit_told(&reply.json());
    assert!((1..=28).contains(&told), "{told}");
    assert_eq!(
        limit_told(&run(&api, "a", &json!({ "path": "/echo", "timeout": 30 }))),
        29,
        "30 s less a little"
    );
    assert_eq!(api.delete("a").status, 200);
    assert_eq!(problem(&after_two_seconds(&api, 1)), TIMEOUT);
}

#[test]
fn r_96_recommended_mode_gives_the_function_all_of_it() {
    let api = Api::with(&[("OPR_EXECUTOR_RUNTIME_READY_TIMEOUT", "0")]);
    let reply = after_two_seconds(&api, 1);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(limit_told(&reply.json()), 1);
    // Not listening counts as getting ready.
    api.created("late", json!({ "runtimeEntrypoint": "guest late 2" }));
    assert_eq!(limit_told(&run(&api, "late", &json!({ "path": "/echo", "timeout": 1 }))), 1);
    assert_eq!(limit_told(&run(&api, "late", &json!({ "path": "/echo", "timeout": 600 }))), 600);
    let api = Api::with(&[("OPR_EXECUTOR_RUNTIME_READY_TIMEOUT", "1")]);
    api.guest("deaf", "deaf");
    assert_eq!(problem(&api.execute("deaf", &json!({ "timeout": 600 }))), TIMEOUT);
}
