//! Section 6: idle collection, restart policies, leftovers, shutdown, temporary folders, images prepared at start.

use rustix::process::Signal;
use serde_json::json;

use crate::common::eventually;
use crate::harness::{Api, docker, problem};
use crate::images;

/// Collects what is idle for a second, every second.
const QUICK: [(&str, &str); 2] =
    [("OPR_EXECUTOR_MAINTENANCE_INTERVAL", "1"), ("OPR_EXECUTOR_INACTIVE_THRESHOLD", "1")];
const WAIT: &str = "while [ ! -e /mnt/code/go ]; do sleep 0.05; done";

fn go(api: &Api, id: &str) {
    std::fs::write(api.folder(id).join("builds/go"), "").unwrap();
}

#[test]
fn r_150_the_idle_are_collected() {
    let api = Api::with(&QUICK);
    api.guest("a", "v5");
    api.created("b", json!({}));
    eventually("nobody is left", || api.list().is_empty().then_some(()));
    api.assert_nothing_left();
    assert_eq!(api.server().logged("collected").len(), 2);
    // The id is free as soon as it is not in the list, also while the container is still on its way out.
    for _ in 0..3 {
        api.created("a", json!({}));
        eventually("it is collected", || api.info("a").is_none().then_some(()));
    }
    api.created("a", json!({}));
}

#[test]
fn r_150_the_busy_and_the_pending_are_not_collected() {
    let api = Api::with(&QUICK);
    std::thread::scope(|scope| {
        api.guest("busy", "v5");
        let calling = scope.spawn(|| api.executed("busy", "/gate"));
        let building = scope.spawn(|| api.created("pending", json!({ "command": WAIT })));
        api.wait_pending("pending");
        api.created("commanded", json!({}));
        let commanding = scope.spawn(|| api.printed("commanded", &format!("{WAIT}; echo done")));
        // An idle one that is collected says that the time has come, twice.
        for id in ["idle", "idle2"] {
            api.created(id, json!({}));
            eventually("the idle one is collected", || api.info(id).is_none().then_some(()));
        }
        for id in ["busy", "pending", "commanded"] {
            assert!(api.info(id).is_some() && api.containers().contains(&api.name(id)), "{id}");
            go(&api, id);
        }
        assert_eq!(calling.join().unwrap()["body"], "passed");
        building.join().unwrap();
        assert_eq!(commanding.join().unwrap(), "done\n");
    });
    eventually("nobody is left", || api.list().is_empty().then_some(()));
}

#[test]
fn r_150_calls_keep_a_runtime() {
    let api =
        Api::with(&[("OPR_EXECUTOR_MAINTENANCE_INTERVAL", "1"), ("OPR_EXECUTOR_INACTIVE_THRESHOLD", "4")]);
    let updated = |id: &str| api.info(id).unwrap()["updated"].as_f64().unwrap();
    api.guest("called", "v5");
    api.guest("idle", "v5");
    let first = updated("called");
    eventually("the idle one is collected", || {
        api.executed("called", "/text");
        api.info("idle").is_none().then_some(())
    });
    assert!(updated("called") > first);
}

#[test]
fn r_150_temporary_files_of_unknown_runtimes_go_and_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("shared");
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(root.join("not-ours")).unwrap();
    std::fs::write(root.join("file"), "precious").unwrap();
    let mut api = Api::with(&[QUICK[0], QUICK[1], ("OPR_EXECUTOR_TEMPORARY", root.to_str().unwrap())]);
    // Of another executor, the name of which begins as this one's; and of nobody knows whom.
    let foreign = format!("{}-2", api.host);
    let others = [api.folder("2-a"), api.folder("none")];
    for other in &others {
        std::fs::create_dir_all(other.join("builds")).unwrap();
    }
    std::fs::write(others[0].join("host"), foreign).unwrap();
    let stranger = api.folder("stranger");
    std::fs::create_dir_all(stranger.join("builds")).unwrap();
    std::fs::write(stranger.join("host"), &api.host).unwrap();
    eventually("the stranger's files are gone", || (!stranger.exists()).then_some(()));
    api.created("a", json!({ "remove": true }));
    api.stop();
    // The folder may be shared, as /tmp is.
    assert!(root.join("not-ours").exists() && root.join("file").exists());
    for other in others {
        std::fs::remove_dir_all(other).unwrap();
    }
    std::fs::remove_dir(root.join("not-ours")).unwrap();
    std::fs::remove_file(root.join("file")).unwrap();
}

/// How often the main process of the runtime has begun.
fn starts(api: &Api, id: &str) -> usize {
    std::fs::read_to_string(api.folder(id).join("builds/starts")).unwrap_or_default().lines().count()
}

#[test]
fn r_151_restart_policies() {
    let api = Api::start();
    let main = |code: u8| format!("echo x >> /mnt/code/starts; sleep 0.1; exit {code}");
    for (id, policy, code, again) in [
        ("a", "no", 0, false),
        ("b", "no", 1, false),
        ("c", "on-failure", 0, false),
        ("d", "on-failure", 1, true),
        ("e", "always", 0, true),
        ("f", "always", 1, true),
        ("g", "unless-stopped", 0, true),
    ] {
        api.created(id, json!({ "restartPolicy": policy, "runtimeEntrypoint": main(code) }));
        if again {
            eventually(&format!("{policy} after {code}"), || (starts(&api, id) >= 3).then_some(()));
        } else {
            let state = ["inspect", "--format", "{{.State.Status}}", &api.name(id)];
            eventually("it ended", || (docker(&state) == "exited").then_some(()));
        }
    }
    // By now the others have been restarted often enough.
    for id in ["a", "b", "c"] {
        assert_eq!(starts(&api, id), 1, "{id}");
        assert!(api.info(id).is_some(), "the dead stay registered: {id}");
    }
}

#[test]
fn r_151_the_dead_stay_until_they_are_deleted() {
    let api = Api::start();
    api.guest("a", "exit 1");
    eventually("it ended", || api.processes("a").is_empty().then_some(()));
    assert!(api.info("a").unwrap()["status"].as_str().unwrap().starts_with("Up "));
    let reply = api.execute("a", &json!({ "timeout": 1 }));
    assert!([400, 500].contains(&reply.status), "{}", reply.text());
    assert_eq!(api.delete("a").status, 200);
    api.assert_nothing_left();
}

#[test]
fn r_151_a_restarted_runtime_is_the_same() {
    let api = Api::start();
    api.created("a", json!({ "restartPolicy": "always", "runtimeEntrypoint": "guest v5" }));
    api.printed("a", "echo kept > /mnt/code/kept");
    let before =
        (api.executed("a", "/")["body"].as_str().unwrap().to_owned(), api.info("a").unwrap()["key"].clone());
    let started = |body: &str| serde_json::from_str::<serde_json::Value>(body).unwrap()["started"].clone();
    // A call that kills it fails; a later one finds it again, wherever it is now.
    assert_eq!(api.execute("a", &json!({ "path": "/exit?code=1" })).status, 500);
    let after = eventually("it answers again", || {
        let reply = api.execute("a", &json!({}));
        (reply.status == 200).then(|| reply.json()["body"].as_str().unwrap().to_owned())
    });
    assert_ne!(started(&before.0), started(&after));
    assert_eq!(api.info("a").unwrap()["key"], before.1);
    assert_eq!(api.executed("a", "/read?path=/mnt/code/kept")["body"], "kept\n");
    assert_eq!(api.containers(), [api.name("a")]);
}

#[test]
fn r_152_leftovers_of_a_killed_executor_are_removed() {
    let mut api = Api::start();
    api.guest("a", "v5");
    api.created("b", json!({ "restartPolicy": "always", "runtimeEntrypoint": "guest v5" }));
    std::thread::scope(|scope| {
        let address = api.server().address().to_owned();
        // Its connection breaks when the executor dies.
        let order = crate::harness::order("c", json!({ "command": "sleep 1000" })).to_string();
        scope.spawn(move || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            let key = crate::harness::KEY;
            let head = format!(
                "POST /v1/runtimes HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
                 content-type: application/json\r\ncontent-length: {}\r\n\r\n{order}",
                order.len()
            );
            stream.write_all(head.as_bytes()).unwrap();
            let _ = stream.read(&mut [0; 100]);
        });
        eventually("the build runs", || api.processes("c").iter().any(|p| p.contains("sleep")).then_some(()));
        api.kill();
    });
    assert_eq!((api.containers().len(), api.folders().len()), (3, 3));
    api.start_again();
    assert!(api.list().is_empty());
    assert!(api.containers().is_empty(), "{:?}", api.containers());
    eventually("their folders are gone", || api.folders().is_empty().then_some(()));
    api.guest("a", "v5");
    assert_eq!(api.executed("a", "/text")["body"], "hello");
}

#[test]
fn r_152_at_a_signal_calls_finish_and_runtimes_go() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut api = Api::start();
        api.guest("a", "v5");
        api.created("b", json!({}));
        api.executed("a", "/text");
        let reply = std::thread::scope(|scope| {
            let target = "/v1/runtimes/a/executions";
            let request = api.request("POST", target).header("accept", "application/json");
            let request = request.header("content-type", "application/json").body(r#"{"path":"/gate"}"#);
            let mut conn = request.open();
            conn.write(r#"{"path":"/gate"}"#);
            let waiting = scope.spawn(move || conn.reply("POST"));
            eventually("the call is there", || {
                let (created, updated) =
                    (api.info("a")?["created"].as_f64()?, api.info("a")?["updated"].as_f64()?);
                (updated > created && !api.processes("a").is_empty()).then_some(())
            });
            api.printed("b", "sleep 0.2");
            api.server().signal(signal);
            api.server().wait_log("shutting down");
            go(&api, "a");
            waiting.join().unwrap()
        });
        assert_eq!((reply.status, reply.json()["body"].as_str()), (200, Some("passed")), "{signal:?}");
        assert_eq!(api.server_mut().wait(), 0, "{signal:?}");
        assert_eq!((api.containers(), api.folders()), (Vec::new(), Vec::new()), "{signal:?}");
    }
}

#[test]
fn r_152_no_call_holds_up_the_end_for_longer_than_the_grace() {
    let mut api = Api::with(&[("EXECUTOR_GRACE", "1s")]);
    api.guest("a", "v5");
    std::thread::scope(|scope| {
        let body = r#"{"path":"/sleep?s=600","timeout":600}"#;
        let request =
            api.request("POST", "/v1/runtimes/a/executions").header("content-type", "application/json");
        let mut calling = request.body(body).open();
        calling.write(body);
        let order = crate::harness::order("b", json!({ "command": "sleep 600" })).to_string();
        let request = api.request("POST", "/v1/runtimes").header("content-type", "application/json");
        let mut building = request.body(order.clone()).open();
        building.write(order);
        scope.spawn(move || {
            let _ = (calling.try_head(), building.try_head());
        });
        eventually("the build runs", || {
            api.processes("b").iter().any(|p| p.contains("sleep 600")).then_some(())
        });
        api.server().signal(Signal::TERM);
        api.server().wait_log("stopped");
    });
    assert_eq!(api.server_mut().wait(), 0);
    assert_eq!((api.containers(), api.folders()), (Vec::new(), Vec::new()));
}

#[test]
fn r_153_the_temporary_folder_is_there_and_goes() {
    let api = Api::start();
    std::thread::scope(|scope| {
        let building = scope.spawn(|| api.created("a", json!({ "command": WAIT, "remove": true })));
        eventually("the build runs", || api.processes("a").iter().any(|p| p.contains("go")).then_some(()));
        assert_eq!(api.folders(), [api.name("a")]);
        go(&api, "a");
        building.join().unwrap();
    });
    assert!(!api.folder("a").exists());
    // Whatever the build did to it.
    let nasty = "mkdir -p /mnt/code/a/b /tmp/c; chmod 000 /mnt/code/a /tmp/c; touch /mnt/code/-rf; \
                 ln -s /etc /mnt/code/etc; chmod 000 /mnt/code";
    api.created("b", json!({ "command": nasty, "remove": true }));
    assert!(!api.folder("b").exists());
    assert!(std::path::Path::new("/etc/hostname").exists());
}

#[test]
fn r_153_a_link_in_place_of_the_folder_leads_nowhere() {
    let api = Api::start();
    let precious = api.home.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("file"), "").unwrap();
    std::fs::create_dir_all(&api.temporary).unwrap();
    std::os::unix::fs::symlink(&precious, api.folder("a")).unwrap();
    let _ = api.create("a", json!({ "remove": true }));
    assert!(precious.join("file").exists());
    let _ = std::fs::remove_file(api.folder("a"));
}

#[test]
fn r_154_images_prepared_at_start() {
    let missing = "executor-v1-tests/nowhere:none";
    let api = Api::with(&[("OPR_EXECUTOR_IMAGES", &format!("{missing}, {}", images::guest()))]);
    let warning = api.server().wait_log("cannot prepare an image");
    assert_eq!(warning["image"], missing);
    assert_eq!(api.get("/v1/health").text(), "OK");
    // What was missing is looked for again when it is needed.
    let shown = problem(&api.create("a", json!({ "image": missing })));
    assert!(shown.contains(missing), "{shown}");
    let tag = format!("executor-v1-tests/later:{}", api.host);
    docker(&["tag", images::guest(), &tag]);
    let reply = api.create("a", json!({ "image": tag }));
    docker(&["rmi", &tag]);
    assert_eq!(reply.status, 201, "{}", reply.text());
}

#[test]
fn r_150_r_154_an_image_that_takes_long_holds_up_no_collection() {
    // A registry that takes connections and never says a word.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/never:1", registry.local_addr().unwrap());
    let api = Api::with(&[
        ("OPR_EXECUTOR_IMAGES", &image),
        ("OPR_EXECUTOR_MAINTENANCE_INTERVAL", "1"),
        ("OPR_EXECUTOR_INACTIVE_THRESHOLD", "1"),
    ]);
    api.created("a", json!({}));
    crate::common::eventually("it is collected", || api.info("a").is_none().then_some(()));
    let given_up = api.server().logged("cannot prepare an image");
    assert!(given_up.is_empty(), "it was still waiting for the image: {given_up:?}");
    drop(registry);
}
