//! Many at once, and how long a runtime lives.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;

use crate::answers::{assert_works, run, seen};
use crate::common::{at_once, eventually};
use crate::harness::{Api, problem};

fn open_gate(api: &Api, id: &str) {
    fs::write(api.folder(id).join("builds/go"), "").unwrap();
}

#[test]
fn r_104_an_execution_refreshes_at_its_start_and_its_end() {
    let api = Api::start();
    api.guest("a", "v5");
    let updated = || api.info("a").unwrap()["updated"].as_f64().unwrap();
    let created = updated();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| run(&api, "a", &json!({ "path": "/gate", "timeout": 60 })));
        let begun = eventually("the start counts", || Some(updated()).filter(|now| *now > created));
        assert!(updated() >= begun);
        let before_end = updated();
        open_gate(&api, "a");
        assert_eq!(call.join().unwrap()["body"], "passed");
        eventually("the end counts", || (updated() > before_end).then_some(()));
    });
}

#[test]
fn r_104_it_is_not_collected_while_it_works() {
    let api =
        Api::with(&[("OPR_EXECUTOR_MAINTENANCE_INTERVAL", "1"), ("OPR_EXECUTOR_INACTIVE_THRESHOLD", "3")]);
    api.guest("idle", "v5");
    api.guest("a", "v5");
    std::thread::scope(|scope| {
        let call = scope.spawn(|| run(&api, "a", &json!({ "path": "/gate", "timeout": 60 })));
        eventually("the idle one is collected", || api.info("idle").is_none().then_some(()));
        // Two more rounds of the collector.
        for n in 0..2 {
            let id = format!("idle{n}");
            api.guest(&id, "deaf");
            eventually("the next one is collected", || api.info(&id).is_none().then_some(()));
        }
        assert!(api.info("a").is_some(), "it has an execution in flight");
        open_gate(&api, "a");
        assert_eq!(call.join().unwrap()["body"], "passed");
    });
    eventually("it is collected when idle", || api.info("a").is_none().then_some(()));
    api.assert_nothing_left();
}

#[test]
fn r_105_without_a_limit_all_run_at_once() {
    let api = Api::start();
    api.guest("a", "v5");
    let counts = at_once(24, |_| {
        run(&api, "a", &json!({ "path": "/concurrent?n=24&s=30", "timeout": 60 }))["body"].clone()
    });
    assert!(counts.iter().all(|count| count == "24"), "{counts:?}");
    assert_eq!(api.containers().len(), 1);
}

#[test]
fn r_105_with_a_limit_the_others_wait() {
    let api = Api::with(&[("OPR_EXECUTOR_CONCURRENCY", "2")]);
    api.guest("a", "v5");
    assert_works(&api, "a");
    let counts = at_once(6, |_| {
        run(&api, "a", &json!({ "path": "/concurrent?n=3&s=0.3", "timeout": 60 }))["body"].clone()
    });
    assert!(counts.iter().all(|count| count == "1" || count == "2"), "{counts:?}");
    assert!(counts.iter().any(|count| count == "2"), "{counts:?}");
    assert_eq!(api.containers().len(), 1);
    // Who waits too long is told so.
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| run(&api, "a", &json!({ "path": "/gate", "timeout": 60 }))))
            .collect();
        let reply = eventually("both places are taken", || {
            let reply = api.execute("a", &json!({ "path": "/text", "timeout": 1 }));
            (reply.status != 200).then_some(reply)
        });
        assert_eq!(problem(&reply), "400 runtime_timeout Timed out waiting for runtime.");
        assert!(reply.json()["trace"].to_string().contains("busy"), "{}", reply.text());
        open_gate(&api, "a");
        for call in calls {
            assert_eq!(call.join().unwrap()["body"], "passed");
        }
    });
    assert_works(&api, "a");
}

#[test]
fn r_105_more_containers_when_all_are_busy() {
    let api = Api::with(&[("OPR_EXECUTOR_CONCURRENCY", "1"), ("OPR_EXECUTOR_INSTANCES", "3")]);
    let source = api.source("code.tar.gz", &[("x", "y")]);
    let parameters = json!({
        "image": crate::images::guest(), "source": source, "runtimeEntrypoint": "guest v5", "timeout": 120,
        "path": "/sleep?s=4",
    });
    // Each holds its container; so the three need three.
    let bodies = at_once(3, |_| run(&api, "a", &parameters)["body"].clone());
    assert!(bodies.iter().all(|body| body == "awake"), "{bodies:?}");
    let containers = api.containers();
    assert!((2..=3).contains(&containers.len()), "{containers:?}");
    let started: BTreeSet<_> = at_once(6, |_| {
        let path = json!({ "path": "/echo", "timeout": 60 });
        seen(&run(&api, "a", &path))["environment"]["HOSTNAME"].to_string()
    })
    .into_iter()
    .collect();
    assert!(started.len() <= 3, "{started:?}");
    assert!(api.containers().len() <= 3);
    assert_eq!(api.list().len(), 1, "one runtime, however many containers");
    assert_eq!(api.delete("a").status, 200);
    api.assert_nothing_left();
}

#[test]
fn r_105_a_container_that_dies_is_no_choice_any_more() {
    let api = Api::with(&[("OPR_EXECUTOR_CONCURRENCY", "1"), ("OPR_EXECUTOR_INSTANCES", "2")]);
    let source = api.source("code.tar.gz", &[("x", "y")]);
    let parameters = json!({
        "image": crate::images::guest(), "source": source, "runtimeEntrypoint": "guest v5", "timeout": 120,
        "path": "/concurrent?n=1&s=2",
    });
    // While one is busy the other one is started.
    let two = || {
        eventually("there are two", || {
            at_once(2, |_| run(&api, "a", &parameters));
            Some(api.containers()).filter(|containers| containers.len() == 2)
        })
    };
    let first = two();
    for victim in 0..2 {
        crate::harness::docker(&["kill", &two()[victim]]);
        eventually("its rest is removed", || (api.containers().len() == 1).then_some(()));
        for _ in 0..4 {
            assert_works(&api, "a");
        }
    }
    let last = two();
    assert!(last.iter().all(|container| !first.contains(container)), "{first:?} {last:?}");
    // All of them: the runtime is there, and dead.
    for container in &last {
        crate::harness::docker(&["kill", container]);
    }
    eventually("one is left", || (api.containers().len() <= 1).then_some(()));
    let reply = api.execute("a", &json!({ "path": "/text", "timeout": 20 }));
    assert_eq!(reply.status, 500, "{}", reply.text());
    assert_eq!(api.list().len(), 1);
    assert_eq!(api.delete("a").status, 200);
    api.assert_nothing_left();
}
