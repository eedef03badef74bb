//! Sections 5.1 to 5.5 but for builds: health, creation, listing, deletion.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::common::{at_once, eventually};
use crate::harness::{Api, docker, problem};
use crate::images;

const PENDING: &str =
    "409 runtime_conflict A runtime with the same ID is already being created. Attempt a execution soon.";
const EXISTS: &str = "409 runtime_conflict Runtime already exists ";

/// What the main process has.
fn environment(api: &Api, id: &str) -> BTreeMap<String, String> {
    // Those of the main process: shells drop names that they could not use.
    let text = api.printed(id, "base64 -w0 /proc/1/environ");
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    text.split_terminator('\0')
        .map(|line| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap())
        .collect()
}

/// Whether it is written as `3.0`, not `3`.
#[track_caller]
fn assert_float(text: &str, field: &str) {
    let at = text.find(&format!("\"{field}\":")).unwrap_or_else(|| panic!("no {field} in {text}"));
    let value = text[at + field.len() + 3..].split([',', '}']).next().unwrap();
    assert!(value.contains('.') && value.parse::<f64>().is_ok(), "{field} is {value}");
}

#[test]
fn r_50_health_needs_nothing() {
    let api = Api::start();
    for request in [
        api.anonymous("GET", "/v1/health"),
        api.request("GET", "/v1/health"),
        api.anonymous("GET", "/v1/health").header("authorization", "Bearer wrong"),
        api.anonymous("GET", "/v1/health").header("accept", "*/*"),
        api.anonymous("GET", "/v1/health").body("[]"),
    ] {
        let reply = request.send();
        assert_eq!((reply.status, reply.text().as_str()), (200, "OK"));
        assert_eq!(reply.header("content-type"), Some("text/plain; charset=UTF-8"));
    }
}

#[test]
fn r_51_health_as_json() {
    let api = Api::start();
    api.guest("a", "deaf");
    let reply = api.anonymous("GET", "/v1/health").header("accept", "application/json").send();
    let health = reply.json();
    assert_eq!(
        (health["status"].as_str(), health["runtimes"]["a"]["status"].as_str()),
        (Some("pass"), Some("pass"))
    );
    assert!(health["usage"].is_f64() && health["runtimes"]["a"]["usage"].is_f64(), "{health}");
    let api = Api::with(&[("OPR_EXECUTOR_HEALTH_JSON", "on")]);
    for accept in ["*/*", "application/json"] {
        let health = api.anonymous("GET", "/v1/health").header("accept", accept).send().json();
        assert_eq!(
            (health["status"].as_str(), health["runtimes"].to_string()),
            (Some("pass"), "{}".to_owned())
        );
    }
    let reply = api.anonymous("GET", "/v1/health").header("accept", "text/plain").send();
    assert_eq!(reply.text(), "OK");
}

#[test]
fn r_60_cache_keys() {
    let api = Api::start();
    let bad = "400 execution_bad_request Cache key must start with a letter or number and may only contain letters, \
               numbers, dots, underscores, and hyphens.";
    for key in ["-a", ".a", "_a", "a/b", "a b", "..", "a\n", "ä", "a\0"] {
        assert_eq!(problem(&api.create("a", json!({"cacheKey": key}))), bad, "{key:?}");
    }
    for key in ["", "a", "9", "a.B_c-9", &"k".repeat(128)] {
        api.created("a", json!({"cacheKey": key}));
        assert_eq!(api.delete("a").status, 200);
    }
}

#[test]
fn r_61_of_many_with_one_id_one_is_created() {
    let api = Api::start();
    let order = || json!({"command": "while [ ! -e /mnt/code/go ]; do sleep 0.05; done"});
    let replies = std::thread::scope(|scope| {
        let creating = scope.spawn(|| at_once(8, |_| api.create("a", order())));
        api.wait_pending("a");
        assert_eq!(problem(&api.create("a", order())), PENDING);
        eventually("the container runs", || {
            api.processes("a").iter().any(|p| p.contains("go")).then_some(())
        });
        std::fs::write(api.folder("a").join("builds/go"), "").unwrap();
        creating.join().unwrap()
    });
    let created = replies.iter().filter(|reply| reply.status == 201).count();
    assert_eq!(created, 1, "{:?}", replies.iter().map(|reply| reply.status).collect::<Vec<_>>());
    for reply in replies.iter().filter(|reply| reply.status != 201) {
        assert_eq!(problem(reply), PENDING);
    }
    assert_eq!(problem(&api.create("a", order())), EXISTS);
    assert_eq!(api.containers().len(), 1);
    // Different ids at the same time are all created.
    let replies = at_once(4, |i| api.create(&format!("b{i}"), json!({})).status);
    assert_eq!(replies, [201; 4]);
    assert_eq!(api.list().len(), 5);
}

#[test]
fn r_62_environment() {
    let api = Api::start();
    let variables = json!({"TEXT": "a b\nü\"'$x", "TRUE": true, "FALSE": false, "NULL": null, "INT": -5,
        "FLOAT": 1.5, "WHOLE": 2.0, "A B-C.D_E§=F": "name", "CI": "no", "OPEN_RUNTIMES_SECRET": "mine", "§": "x"});
    let parameters = json!({"variables": variables, "entrypoint": "index.js", "cpus": 1.5, "memory": 300,
        "outputDirectory": "./out", "version": "v5"});
    api.created("a", parameters);
    let seen = environment(&api, "a");
    let key = api.info("a").unwrap()["key"].as_str().unwrap().to_owned();
    assert!(
        key.len() == 32 && key.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()),
        "{key}"
    );
    for (name, value) in [
        ("TEXT", "a b\nü\"'$x"),
        ("TRUE", "1"),
        ("FALSE", ""),
        ("NULL", ""),
        ("INT", "-5"),
        ("FLOAT", "1.5"),
        ("WHOLE", "2"),
        ("AB-C.D_EF", "name"),
        ("CI", "true"),
        ("OPEN_RUNTIMES_SECRET", &key),
        ("OPEN_RUNTIMES_ENTRYPOINT", "index.js"),
        ("OPEN_RUNTIMES_HOSTNAME", &api.host),
        ("OPEN_RUNTIMES_CPUS", "1.5"),
        ("OPEN_RUNTIMES_MEMORY", "300"),
        ("OPEN_RUNTIMES_OUTPUT_DIRECTORY", "./out"),
    ] {
        assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(
        !seen.contains_key("INTERNAL_RUNTIME_KEY") && !seen.values().any(|value| value == "x"),
        "{seen:?}"
    );
    api.created("b", json!({"version": "v2", "entrypoint": "main.js"}));
    let seen = environment(&api, "b");
    let key = api.info("b").unwrap()["key"].as_str().unwrap().to_owned();
    for (name, value) in [
        ("INTERNAL_RUNTIME_KEY", key.as_str()),
        ("INTERNAL_RUNTIME_ENTRYPOINT", "main.js"),
        ("INERNAL_EXECUTOR_HOSTNAME", &api.host),
        ("CI", "true"),
    ] {
        assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!seen.keys().any(|name| name.starts_with("OPEN_RUNTIMES_")), "{seen:?}");
    api.created("c", json!({"version": "v4", "variables": []}));
    let seen = environment(&api, "c");
    assert_eq!((seen["OPEN_RUNTIMES_CPUS"].as_str(), seen["OPEN_RUNTIMES_MEMORY"].as_str()), ("1", "512"));
    assert!(!seen.contains_key("OPEN_RUNTIMES_OUTPUT_DIRECTORY"));
}

#[test]
fn r_63_files_inside() {
    let api = Api::start();
    let source = api.source("code.tar.gz", &[("index.js", "hello")]);
    api.created("a", json!({"source": source}));
    assert_eq!(api.printed("a", "tar -xzOf /tmp/code.tar.gz index.js"), "hello");
    assert_eq!(
        api.printed("a", "ls -A /mnt/code /mnt/logs /tmp/logging"),
        "/mnt/code:\n\n/mnt/logs:\n\n/tmp/logging:\n"
    );
    api.printed("a", "touch /mnt/code/a /mnt/logs/a /tmp/logging/a /tmp/a && chmod 600 /tmp/a");
    assert_eq!(api.command("a", &json!({"command": "ls /cache"})).status, 500);
    // Also for those that are not root.
    api.printed("a", "setpriv --reuid 1000 --regid 1000 --clear-groups touch /mnt/code/b /tmp/b /mnt/logs/b");
    for (name, inside) in [
        ("x.tar", "code.tar"),
        ("x.tar.gz", "code.tar.gz"),
        ("x.tgz", "code.tar.gz"),
        ("x.zip", "code.tar.gz"),
        ("x", "code.tar.gz"),
    ] {
        let bytes = format!("bytes of {name}");
        let source = api.file(name, &bytes);
        api.created("b", json!({"source": source}));
        assert_eq!(api.printed("b", "cd /tmp; ls code*; cat code*"), format!("{inside}\n{bytes}"), "{name}");
        api.delete("b");
    }
    let created = api.created("c", json!({"version": "v2", "command": "pwd; ls -A; touch /usr/code/x; pwd"}));
    assert_eq!(created["output"][0]["content"], "/usr/code\n/usr/code\n");
    assert_eq!(api.command("c", &json!({"command": "ls /mnt/logs"})).status, 500);
}

#[test]
fn r_63_the_cache_folder_comes_with_a_key_and_a_command() {
    let api = Api::start();
    api.created("a", json!({"cacheKey": "k", "command": "touch /cache/x"}));
    api.created("b", json!({"cacheKey": "k"}));
    assert_eq!(api.command("b", &json!({"command": "ls /cache"})).status, 500);
    let failed = problem(&api.create("c", json!({"command": "ls /cache"})));
    assert!(failed.starts_with("400 build_failed "), "{failed}");
}

#[test]
fn r_64_the_main_process() {
    let api = Api::start();
    let first = |id: &str| api.processes(id).first().cloned().unwrap_or_default();
    api.created("a", json!({"runtimeEntrypoint": "echo \"$0\" > /mnt/code/shell; sleep 12345 && true"}));
    eventually("it sleeps", || api.processes("a").iter().any(|line| line == "sleep 12345").then_some(()));
    assert_eq!(api.printed("a", "cat /mnt/code/shell"), "bash\n");
    let arguments = docker(&["inspect", "--format", "{{json .Path}} {{json .Args}}", &api.name("a")]);
    assert!(arguments.starts_with("\"bash\" [\"-c\","), "{arguments}");
    api.created("b", json!({}));
    assert!(!first("b").contains("guest"), "it only sleeps: {}", first("b"));
    api.created("c", json!({"version": "v2"}));
    assert!(first("c").contains("guest v2"), "the image's own command: {}", first("c"));
    api.created("d", json!({"version": "v2", "command": "true"}));
    assert!(!first("d").contains("guest"), "it only sleeps: {}", first("d"));
}

#[test]
fn r_65_each_runtime_has_its_own_resources() {
    let api = Api::start();
    let replies = at_once(4, |i| {
        let more = json!({"cpus": 0.25 * (i + 1) as f64, "memory": 100 + 50 * i});
        api.create(&format!("r{i}"), more).status
    });
    assert_eq!(replies, [201; 4]);
    for i in 0..4 {
        let name = api.name(&format!("r{i}"));
        let got = docker(&["inspect", "--format", "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}}", &name]);
        assert_eq!(got, format!("{} {}", 250_000_000 * (i + 1), (100 + 50 * i) * 1_000_000), "{name}");
    }
    // Nobody gets more than there is, or all of it, by a number that means nothing.
    for (at, wrong) in [json!({"memory": 0}), json!({"memory": -1}), json!({"memory": 1})].iter().enumerate()
    {
        let id = format!("w{at}");
        if api.create(&id, wrong.clone()).status == 201 {
            let memory = docker(&["inspect", "--format", "{{.HostConfig.Memory}}", &api.name(&id)]);
            assert!(memory.parse::<i64>().unwrap() > 0, "{wrong}: {memory}");
        }
    }
}

#[test]
fn r_71_what_failed_leaves_nothing() {
    let api = Api::start();
    for wrong in [
        json!({"command": "exit 1"}),
        json!({"source": "/nowhere/code.tar.gz"}),
        json!({"image": "executor-v1-tests/nowhere:none"}),
        json!({"image": images::empty(), "command": "true"}),
        json!({"image": images::shellless(), "command": "true"}),
        json!({"destination": "/somewhere", "command": "true"}),
    ] {
        for _ in 0..2 {
            let reply = api.create("a", wrong.clone());
            assert!([400, 500].contains(&reply.status), "{wrong}: {}", reply.text());
            assert_eq!(api.info("a"), None, "{wrong}");
            assert_eq!((api.containers(), api.folders()), (Vec::new(), Vec::new()), "{wrong}");
        }
    }
    api.created("a", json!({}));
}

#[test]
fn r_72_what_is_missing_is_said() {
    for mode in ["production", "development"] {
        let api = Api::with(&[("OPR_EXECUTOR_ENV", mode)]);
        for (wrong, named) in [
            (json!({"source": "/nowhere/code.tar.gz"}), "/nowhere/code.tar.gz"),
            (json!({"source": "relative"}), "relative"),
            (json!({"source": "/tmp"}), "/tmp"),
            (json!({"source": "/dev/zero"}), "/dev/zero"),
            (json!({"source": "/../../etc/../nowhere"}), "/.."),
            (json!({"image": "executor-v1-tests/nowhere:none"}), "executor-v1-tests/nowhere:none"),
            (json!({"image": "no such image!"}), "no such image!"),
            (json!({"source": "/nowhere/code.zip", "image": images::empty()}), "/nowhere/code.zip"),
        ] {
            let reply = api.create("a", wrong.clone());
            let shown = problem(&reply);
            assert!(shown.starts_with("500 general_unknown "), "{wrong}: {shown}");
            assert!(shown.contains(named) && shown.len() > 30, "{wrong}: {shown}");
        }
        // A shell is needed only by what is run in it.
        api.created("b", json!({"image": images::shellless()}));
        assert_eq!(api.command("b", &json!({"command": "true"})).status, 500);
        // What cannot even begin is dead at once; that is seen by the one who needs it.
        for (id, image) in [("c", images::shellless()), ("d", images::empty())] {
            let reply = api.create(id, json!({"image": image, "runtimeEntrypoint": "true"}));
            assert!([201, 500].contains(&reply.status), "{image}: {}", reply.text());
            let reply = api.execute(id, &json!({"timeout": 1}));
            assert!([400, 404, 500].contains(&reply.status), "{image}: {}", reply.text());
        }
    }
}

#[test]
fn r_72_ids_that_cannot_be_names_of_containers() {
    let api = Api::start();
    for id in ["a b", "a/b", "../../etc", "a\0b", "ü", ".", "..", "-", "a\nb", "a+1", "💥", "%2e%2e"] {
        let reply = api.create(id, json!({}));
        if reply.status == 201 {
            let path = format!(
                "/v1/runtimes/{}",
                percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC)
            );
            assert_eq!(api.request("DELETE", &path).send().status, 200, "{id:?}");
        } else {
            assert!([400, 500].contains(&reply.status), "{id:?}: {}", reply.text());
        }
        api.assert_nothing_left();
    }
    assert!(Path::new("/etc/hostname").exists());
}

#[test]
fn r_73_status_after_success() {
    let api = Api::start();
    let created = api.created("a", json!({"command": "sleep 0.3"}));
    let info = api.info("a").unwrap();
    let duration = created["duration"].as_f64().unwrap();
    assert!(duration >= 0.3, "{created}");
    let status = info["status"].as_str().unwrap();
    let shown: f64 = status.strip_prefix("Up ").and_then(|s| s.strip_suffix('s')).unwrap().parse().unwrap();
    assert!((shown - duration).abs() <= 0.0051, "{status} of {duration}");
    assert_eq!((info["initialised"].clone(), info["listening"].clone()), (json!(1), json!(0)));
}

const FIELDS: [&str; 10] = [
    "version",
    "created",
    "updated",
    "name",
    "hostname",
    "status",
    "key",
    "listening",
    "image",
    "initialised",
];

#[test]
fn r_80_the_list() {
    let api = Api::start();
    let empty = api.get("/v1/runtimes");
    assert_eq!((empty.status, empty.text().as_str()), (200, "[]"));
    assert_eq!(empty.header("content-type"), Some("application/json; charset=UTF-8"));
    let pending = std::thread::scope(|scope| {
        scope.spawn(|| {
            api.created("a", json!({"command": "while [ ! -e /mnt/code/go ]; do sleep 0.05; done"}))
        });
        api.wait_pending("a");
        eventually("the build runs", || api.processes("a").iter().any(|p| p.contains("go")).then_some(()));
        let pending = api.list().remove(0);
        std::fs::write(api.folder("a").join("builds/go"), "").unwrap();
        pending
    });
    assert_eq!(
        (pending["status"].clone(), pending["initialised"].clone(), pending["listening"].clone()),
        (json!("pending"), json!(0), json!(0))
    );
    api.created("b", json!({"version": "V4"}));
    let text = api.get("/v1/runtimes").text();
    let list = api.list();
    assert_eq!(list.len(), 2);
    for (info, id) in list.iter().zip(["a", "b"]) {
        let mut names: Vec<_> = info.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        let mut expected = FIELDS.to_vec();
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!(
            (info["name"].as_str(), info["hostname"].as_str()),
            (Some(&*api.name(id)), Some(&*api.host))
        );
        assert_eq!(info["image"], images::guest());
        assert!(
            info["created"].as_f64().unwrap() > 1.7e9 && info["updated"].as_f64() >= info["created"].as_f64()
        );
    }
    assert!(list[1]["version"].as_str().unwrap().eq_ignore_ascii_case("v4"));
    assert_ne!(list[0]["key"], list[1]["key"]);
    for field in ["created", "updated"] {
        assert_float(&text, field);
    }
}

#[test]
fn r_81_one_runtime() {
    let api = Api::start();
    let long = "i".repeat(64);
    for id in ["a", &long] {
        api.created(id, json!({}));
        let reply = api.get(&format!("/v1/runtimes/{id}"));
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (200, Some("application/json; charset=UTF-8"))
        );
        let listed = api.list().into_iter().find(|info| info["name"] == api.name(id).as_str()).unwrap();
        assert_eq!(reply.json(), listed);
    }
    assert_eq!(problem(&api.get("/v1/runtimes/b")), "404 runtime_not_found Runtime not found");
    let reason = "Value must be a valid string and at least 1 chars and no longer than 64 chars";
    for method in ["GET", "DELETE"] {
        let reply = api.request(method, &format!("/v1/runtimes/{}", "i".repeat(65))).send();
        assert_eq!(problem(&reply), format!("400 general_unknown Invalid `runtimeId` param: {reason}"));
    }
}

#[test]
fn r_82_deletion() {
    let api = Api::start();
    assert_eq!(problem(&api.delete("a")), "404 runtime_not_found Runtime not found");
    for _ in 0..2 {
        api.guest("a", "v5");
        let reply = api.delete("a");
        assert_eq!((reply.status, reply.text().as_str()), (200, ""));
        assert_eq!((api.containers(), api.folders()), (Vec::new(), Vec::new()));
        assert!(api.list().is_empty());
    }
    // Of many who delete it one does.
    api.guest("a", "v5");
    let statuses = at_once(6, |_| api.delete("a").status);
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 404).count(), 5, "{statuses:?}");
    // The id is free at once, over and over.
    for _ in 0..3 {
        api.created("a", json!({}));
        assert_eq!(api.delete("a").status, 200);
    }
}

#[test]
fn r_82_deletion_while_it_is_built() {
    let api = Api::start();
    let built = std::thread::scope(|scope| {
        let building = scope.spawn(|| api.create("a", json!({"command": "echo begun; sleep 1000"})));
        eventually("the build runs", || {
            api.processes("a").iter().any(|p| p.contains("sleep 1000")).then_some(())
        });
        assert_eq!(api.delete("a").status, 200);
        building.join().unwrap()
    });
    let shown = problem(&built);
    assert!(shown.starts_with("400 runtime_failed ") || shown.starts_with("500 general_unknown "), "{shown}");
    assert_eq!((api.info("a"), api.containers(), api.folders()), (None, Vec::new(), Vec::new()));
    // While its image is looked for, its source fetched, or its container started.
    for _ in 0..5 {
        std::thread::scope(|scope| {
            let building = scope.spawn(|| api.create("a", json!({})));
            api.wait_pending("a");
            let _ = api.delete("a");
            building.join().unwrap();
        });
        let _ = api.delete("a");
        api.assert_nothing_left();
    }
}
