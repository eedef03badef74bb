//! Build commands and what `/v1/runtimes/…/logs` shows of them (section 5.8).

use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Conn, Reply, eventually};
use crate::harness::{Api, problem};

/// Bytes of output that are kept.
const MOST: usize = 1_000_000;
const TRUNCATED: &str = "Logs truncated due to size exceeding 5.00MB.";
/// A command that goes on when the test makes `/mnt/code/go`.
const WAIT: &str = "while [ ! -e /mnt/code/go ]; do sleep 0.05; done";

fn go(api: &Api, id: &str) {
    std::fs::write(api.folder(id).join("builds/go"), "").unwrap();
}

/// All output as one text, its order and times checked.
#[track_caller]
fn output(created: &Value) -> String {
    let entries = created["output"].as_array().unwrap();
    let stamps: Vec<_> = entries.iter().map(|entry| entry["timestamp"].as_str().unwrap()).collect();
    assert!(stamps.is_sorted() && stamps.iter().all(|stamp| is_stamp(stamp)), "{stamps:?}");
    entries.iter().map(|entry| entry["content"].as_str().unwrap()).collect()
}

/// `2026-11-20T12:00:00.123+00:00`
fn is_stamp(text: &str) -> bool {
    let pattern = "dddd-dd-ddTdd:dd:dd.ddd+00:00";
    text.len() == pattern.len()
        && text.chars().zip(pattern.chars()).all(|(c, p)| if p == 'd' { c.is_ascii_digit() } else { c == p })
}

/// A creation in the background.
fn create_in<'scope>(
    scope: &'scope Scope<'scope, '_>,
    api: &'scope Api,
    id: &'scope str,
    parameters: Value,
) -> ScopedJoinHandle<'scope, Reply> {
    scope.spawn(move || api.create(id, parameters))
}

/// The stream of a build's lines, opened.
fn open_logs(api: &Api, id: &str, query: &str) -> Conn {
    api.request("GET", &format!("/v1/runtimes/{id}/logs{query}")).open()
}

/// Reads pieces until all of them together contain `text`.
#[track_caller]
fn read_until(conn: &mut Conn, seen: &mut String, text: &str) {
    while !seen.contains(text) {
        let piece = conn.chunk().unwrap_or_else(|| panic!("it broke off after {seen}"));
        assert!(!piece.is_empty(), "it ended before {text}: {seen}");
        seen.push_str(std::str::from_utf8(&piece).unwrap());
    }
}

/// Contents of the lines `time content`, with what is escaped put back.
#[track_caller]
fn contents(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap_or((line, ""))).collect();
    let stamps: Vec<_> = lines.iter().map(|line| line.0).collect();
    assert!(stamps.is_sorted() && stamps.iter().all(|stamp| is_stamp(stamp)), "{text}");
    lines.iter().map(|line| line.1.replace("\\n", "\n")).collect()
}

#[test]
fn r_66_both_outputs_in_the_order_they_were_written() {
    let api = Api::start();
    let command = "for i in $(seq 300); do echo out $i; echo err $i >&2; done";
    let created = api.created("a", json!({ "command": command }));
    let expected: String = (1..=300).map(|i| format!("out {i}\nerr {i}\n")).collect();
    assert_eq!(output(&created), expected);
    // While the main process runs, in the same container.
    let command = "until [ -e /mnt/code/main ]; do sleep 0.05; done; cat /mnt/code/main";
    let main = "echo main > /mnt/code/main; sleep 1000";
    let created = api.created("b", json!({ "runtimeEntrypoint": main, "command": command }));
    assert_eq!(output(&created), "main\n");
}

#[test]
fn r_66_a_failed_build_tells_its_output() {
    let api = Api::start();
    for (command, told) in [
        ("echo out; echo err >&2; exit 7", "out\nerr\nBuild command exited with code 7."),
        ("printf '\\n  x  \\n'; exit 1", "x  \nBuild command exited with code 1."),
        ("exit 255", "Build command exited with code 255."),
        ("printf unfinished; exit 2", "unfinished\nBuild command exited with code 2."),
        ("printf 'a\\xffb\\n'; false", "a\u{fffd}b\nBuild command exited with code 1."),
        (
            "no-such-program",
            "bash: line 1: no-such-program: command not found\nBuild command exited with code 127.",
        ),
        ("kill -9 $$", "Build command exited with code 137."),
        ("if", "Build command exited with code 2."),
    ] {
        let reply = api.create("a", json!({ "command": command }));
        let shown = problem(&reply);
        assert!(shown.starts_with("400 build_failed ") && shown.ends_with(told), "{command}: {shown}");
        // The others have a line of a shell in front.
        if !["no-such-program", "if", "kill -9 $$"].contains(&command) {
            assert_eq!(shown, format!("400 build_failed {told}"), "{command}");
        }
    }
}

#[test]
fn r_66_a_failed_build_tells_no_more_than_its_bound() {
    let api = Api::start();
    // Three bytes each, so that the bound is within one.
    let command = "yes € | head -n 400000 | tr -d '\\n'; exit 1";
    let reply = api.create("a", json!({ "command": command }));
    assert_eq!(reply.status, 400);
    let message = reply.json()["message"].as_str().unwrap().to_owned();
    assert!(message.len() <= MOST && message.len() > MOST - 4, "{}", message.len());
    assert!(message.chars().all(|c| c == '€'));
}

#[test]
fn r_66_a_build_that_takes_too_long_is_ended() {
    let api = Api::start();
    for command in
        ["sleep 4321", "trap '' TERM INT HUP; setsid nohup sleep 4321 & sleep 4321 & wait; sleep 4321"]
    {
        let reply = api.create("a", json!({ "command": command, "timeout": 1 }));
        let shown = problem(&reply);
        assert!(shown.starts_with("400 runtime_failed ") && shown.contains("timed out"), "{shown}");
        assert_eq!((api.containers(), api.folders(), api.list()), (Vec::new(), Vec::new(), Vec::new()));
    }
    // No time at all, and as much as there is.
    for timeout in [0, -1, i32::MIN] {
        let shown = problem(&api.create("a", json!({ "command": "sleep 10", "timeout": timeout })));
        assert!(
            shown.starts_with("400 runtime_failed ") && shown.contains("timed out"),
            "{timeout}: {shown}"
        );
    }
    api.created("a", json!({ "command": "true", "timeout": i32::MAX }));
}

#[test]
fn r_66_a_runtime_that_dies_during_its_build() {
    let api = Api::start();
    let reply = api.create("a", json!({ "runtimeEntrypoint": "sleep 1; exit 3", "command": "sleep 1000" }));
    let shown = problem(&reply);
    assert!(shown.starts_with("400 runtime_failed "), "{shown}");
    let reply = api.create("a", json!({ "runtimeEntrypoint": "exit 0", "command": "sleep 2" }));
    assert!([400, 500].contains(&reply.status), "{}", reply.text());
}

#[test]
fn r_67_the_archive_is_stored() {
    let api = Api::start();
    let source = api.source("code.tar.gz", &[("index.js", "hello")]);
    let destination = api.home.file("builds/deep");
    for given in [destination.clone(), format!("{destination}/")] {
        let created = api.created(
            "a",
            json!({ "source": source, "destination": given, "command": "cp /tmp/code.tar.gz /mnt/code/" }),
        );
        let path = created["path"].as_str().unwrap();
        let name = path.strip_prefix(&format!("{destination}/")).unwrap();
        let random = name.strip_suffix(".gz").unwrap();
        assert!(
            random.len() == 13 && random.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        );
        assert_eq!(std::fs::read(path).unwrap(), std::fs::read(&source).unwrap());
        assert_eq!(created["size"], std::fs::metadata(path).unwrap().len());
        assert_eq!(api.printed("a", "ls /mnt/code"), "code.tar.gz\n", "it stays where it was");
        assert_eq!(api.delete("a").status, 200);
    }
    assert_eq!(std::fs::read_dir(&destination).unwrap().count(), 2);
    // It is taken also without a command.
    let main = "touch /mnt/code/code.tar.gz; sleep 1000";
    let reply = api.create("b", json!({ "destination": destination, "runtimeEntrypoint": main }));
    assert!([201, 500].contains(&reply.status), "{}", reply.text());
}

#[test]
fn r_67_what_is_no_archive_is_an_error_and_nothing_of_the_host_leaks() {
    let api = Api::start();
    let destination = api.home.file("builds");
    for command in [
        "true",
        "ln -s /etc/hostname /mnt/code/code.tar.gz",
        "mkdir /mnt/code/code.tar.gz",
        "mkfifo /mnt/code/code.tar.gz",
        "echo x > /mnt/code/a; ln /mnt/code/a /mnt/code/code.tar.gz",
        "rm -rf /mnt/code/*; ln -s /etc /mnt/code/etc",
    ] {
        let reply = api.create("a", json!({ "destination": destination, "command": command }));
        assert!(problem(&reply).starts_with("500 general_unknown "), "{command}: {}", reply.text());
        assert!(std::fs::read_dir(&destination).is_err(), "{command}");
        assert!(api.list().is_empty());
    }
    // A destination that cannot be.
    for destination in ["relative", "/dev/null/x", "/proc/x"] {
        let command = "echo x > /mnt/code/code.tar.gz";
        let reply = api.create("a", json!({ "destination": destination, "command": command }));
        assert!(problem(&reply).starts_with("500 general_unknown "), "{destination}: {}", reply.text());
    }
}

#[test]
fn r_68_the_document() {
    let api = Api::start();
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let reply = api.create("a", json!({}));
    assert_eq!((reply.status, reply.header("content-type")), (201, Some("application/json; charset=UTF-8")));
    let text = reply.text();
    assert!(text.starts_with("{\"output\":[],\"startTime\":") && text.contains(",\"duration\":"), "{text}");
    let document = reply.json();
    assert!(
        document["startTime"].as_f64().unwrap() >= before - 1.0
            && document["duration"].as_f64().unwrap() > 0.0
    );
    assert_eq!(document.as_object().unwrap().len(), 3, "{text}");
    for field in ["startTime", "duration"] {
        let value = text.split(&format!("\"{field}\":")).nth(1).unwrap().split([',', '}']).next().unwrap();
        assert!(value.contains('.'), "{field}: {value}");
    }
    let destination = api.home.file("builds");
    let command = "echo '<\u{fc}>'; printf 'a\\xffb'; echo 12345 > /mnt/code/code.tar.gz";
    let reply = api.create("b", json!({ "command": command, "destination": destination }));
    let text = reply.text();
    assert!(text.starts_with("{\"size\":6,\"path\":\""), "{text}");
    assert_eq!(output(&reply.json()), "<ü>\na\u{fffd}b");
    let keys: Vec<usize> = ["size", "path", "output", "startTime", "duration"]
        .iter()
        .map(|k| text.find(&format!("\"{k}\":")).unwrap())
        .collect();
    assert!(keys.is_sorted(), "{text}");
}

#[test]
fn r_69_output_at_its_bound_and_one_byte_above() {
    let api = Api::start();
    for (id, bytes, last) in
        [("a", MOST, None), ("b", MOST + 1, Some(TRUNCATED)), ("c", 3 * MOST, Some(TRUNCATED))]
    {
        let created =
            api.created(id, json!({ "command": format!("head -c {bytes} /dev/zero | tr '\\0' x") }));
        let entries = created["output"].as_array().unwrap();
        let text = output(&created);
        assert_eq!(
            text.bytes().filter(|b| *b == b'x').count() - last.map_or(0, |l| l.matches('x').count()),
            MOST
        );
        match last {
            None => assert_eq!(text.len(), MOST),
            Some(last) => assert_eq!(entries.last().unwrap()["content"], last),
        }
    }
}

#[test]
fn r_69_output_comes_in_pieces_with_their_times() {
    let api = Api::start();
    let created = api.created("a", json!({ "command": "echo first; sleep 1.2; echo second" }));
    let entries = created["output"].as_array().unwrap();
    assert_eq!(entries.len(), 2, "{created}");
    assert_eq!(
        (entries[0]["content"].as_str(), entries[1]["content"].as_str()),
        (Some("first\n"), Some("second\n"))
    );
    assert!(entries[0]["timestamp"].as_str() < entries[1]["timestamp"].as_str());
}

#[test]
fn r_69_v2_has_one_entry() {
    let api = Api::start();
    let created = api.created("a", json!({ "version": "v2", "command": "echo a; sleep 0.2; echo b" }));
    assert_eq!(created["output"].as_array().unwrap().len(), 1);
    assert_eq!(output(&created), "a\nb\n");
    for (id, command) in [("b", "true"), ("c", "")] {
        let created = api.created(id, json!({ "version": "v2", "command": command }));
        assert_eq!(output(&created), "Runtime created successfully!");
    }
}

#[test]
fn r_70_removed_after_its_build() {
    let api = Api::start();
    let created = api.created("a", json!({ "command": "echo x", "remove": true }));
    assert_eq!(output(&created), "x\n");
    assert_eq!((api.list(), api.containers(), api.folders()), (Vec::new(), Vec::new(), Vec::new()));
    let reply = api.create("a", json!({ "command": "echo y; exit 1", "remove": true }));
    assert_eq!(problem(&reply), "400 build_failed y\nBuild command exited with code 1.");
    assert_eq!((api.list(), api.containers(), api.folders()), (Vec::new(), Vec::new(), Vec::new()));
    api.created("a", json!({ "remove": true }));
    assert_eq!((api.list(), api.containers()), (Vec::new(), Vec::new()));
}

#[test]
fn r_70_those_who_read_its_logs_get_their_end() {
    let api = Api::start();
    for end in ["true", "exit 1"] {
        std::thread::scope(|scope| {
            let many = "for i in $(seq 2000); do echo line $i; done";
            let command = format!("echo begun; {WAIT}; {many}; echo last; {end}");
            let building = create_in(scope, &api, "a", json!({ "command": command, "remove": true }));
            let mut conn = open_logs(&api, "a", "");
            assert_eq!(conn.head().status, 200);
            let mut seen = String::new();
            read_until(&mut conn, &mut seen, "begun");
            go(&api, "a");
            assert!([201, 400].contains(&building.join().unwrap().status));
            assert!(api.list().is_empty() && api.containers().is_empty());
            // All of it, though the runtime is long gone.
            read_until(&mut conn, &mut seen, "last");
            let lines: String = (1..=2000).map(|i| format!("line {i}\n")).collect();
            assert!(contents(&seen).starts_with(&format!("begun\n{lines}last\n")));
        });
    }
}

#[test]
fn r_140_the_limit_of_the_stream() {
    let api = Api::start();
    let bad = api.get(&format!("/v1/runtimes/a/logs?timeout={}", "1".repeat(17)));
    let reason = "Value must be a valid string and at least 1 chars and no longer than 16 chars";
    assert_eq!(problem(&bad), format!("400 general_unknown Invalid `timeout` param: {reason}"));
    assert_eq!(api.get("/v1/runtimes/a/logs?timeout=").status, 400);
    std::thread::scope(|scope| {
        scope.spawn(|| api.created("a", json!({ "command": format!("echo begun; {WAIT}") })));
        api.wait_pending("a");
        // It ends normally when its time is over, with what there was.
        for query in ["?timeout=2", "?timeout=2s", "?timeout=%202"] {
            let reply = open_logs(&api, "a", query).reply("GET");
            assert_eq!((reply.status, reply.broken), (200, false), "{query}");
            assert_eq!(contents(&reply.text()), "begun\n", "{query}");
        }
        go(&api, "a");
    });
}

#[test]
fn r_141_lines_with_times() {
    let api = Api::start();
    std::thread::scope(|scope| {
        let command = format!("{WAIT}; printf 'a\\nb\\\\nc'; sleep 0.3; printf '\\r\\n\\xff\\tü'");
        let building = create_in(scope, &api, "a", json!({ "command": command }));
        eventually("the build runs", || api.processes("a").iter().any(|p| p.contains("go")).then_some(()));
        let mut conn = open_logs(&api, "a", "");
        go(&api, "a");
        let reply = conn.reply("GET");
        assert_eq!((reply.status, reply.broken), (200, false));
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        assert_eq!(reply.header("cache-control"), Some("no-cache"));
        let text = reply.text();
        assert!(text.ends_with('\n') && !text.contains("data:"), "{text}");
        let lines: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap()).collect();
        assert!(lines.iter().all(|line| is_stamp(line.0)), "{text}");
        let shown: String = lines.iter().map(|line| line.1).collect();
        assert_eq!(shown, "a\\nb\\nc\r\\n\u{fffd}\tü");
        assert_eq!(output(&building.join().unwrap().json()), "a\nb\\nc\r\n\u{fffd}\tü");
    });
}

#[test]
fn r_142_nobody_there() {
    let api = Api::start();
    let begun = std::time::Instant::now();
    let reply = api.get("/v1/runtimes/nobody/logs");
    assert_eq!(problem(&reply), "500 general_unknown Runtime not ready. Container not found.");
    assert!(begun.elapsed() >= Duration::from_secs(4), "it was given time to appear");
    let api = Api::with(&[("OPR_EXECUTOR_ENV", "production")]);
    let reply = api.get("/v1/runtimes/nobody/logs");
    assert_eq!(problem(&reply), "500 general_unknown Runtime not ready. Container not found.");
}

#[test]
fn r_142_it_may_come_later_and_say_nothing() {
    let api = Api::start();
    let mut early = open_logs(&api, "a", "");
    std::thread::scope(|scope| {
        scope.spawn(|| api.created("a", json!({ "command": WAIT })));
        api.wait_pending("a");
        let late = api.get("/v1/runtimes/a/logs?timeout=1");
        assert_eq!(problem(&late), "504 logs_timeout Timed out waiting for logs.");
        go(&api, "a");
    });
    let reply = early.reply("GET");
    assert_eq!((reply.status, reply.text().as_str(), reply.broken), (200, "", false));
    // After its end: what there was, and the end. For a guest without a build, the end at once.
    api.created("b", json!({ "command": "echo x" }));
    assert_eq!(contents(&api.get("/v1/runtimes/b/logs").text()), "x\n");
    api.created("c", json!({}));
    let reply = api.get("/v1/runtimes/c/logs");
    assert_eq!((reply.status, reply.text().as_str()), (200, ""));
}

#[test]
fn r_143_the_stream_ends_with_the_build() {
    let api = Api::start();
    for (id, end, status) in [("a", "true", 201), ("b", "exit 1", 400)] {
        std::thread::scope(|scope| {
            let command = format!("echo begun; {WAIT}; echo last; {end}");
            let building = create_in(scope, &api, id, json!({ "command": command }));
            let mut conn = open_logs(&api, id, "");
            let head = conn.head();
            assert_eq!(head.status, 200);
            let mut seen = String::new();
            read_until(&mut conn, &mut seen, "begun");
            go(&api, id);
            while let Some(piece) = conn.chunk() {
                if piece.is_empty() {
                    break;
                }
                seen.push_str(&String::from_utf8(piece).unwrap());
            }
            let expected = if status == 201 {
                "begun\nlast\n".into()
            } else {
                "begun\nlast\nBuild command exited with code 1.\n".to_owned()
            };
            assert_eq!(contents(&seen), expected);
            assert_eq!(building.join().unwrap().status, status);
        });
    }
}

#[test]
fn r_143_the_stream_ends_when_the_runtime_is_deleted_or_the_client_leaves() {
    let api = Api::start();
    std::thread::scope(|scope| {
        let command = format!("echo begun; {WAIT}");
        let building = create_in(scope, &api, "a", json!({ "command": command, "remove": true }));
        let (mut stays, mut leaves) = (open_logs(&api, "a", ""), open_logs(&api, "a", ""));
        for conn in [&mut stays, &mut leaves] {
            assert_eq!(conn.head().status, 200);
            read_until(conn, &mut String::new(), "begun");
        }
        drop(leaves);
        assert_eq!(api.delete("a").status, 200);
        assert_eq!(stays.chunk().as_deref(), Some(&[][..]), "the normal end");
        assert!([400, 500].contains(&building.join().unwrap().status));
    });
    api.assert_nothing_left();
}

#[test]
fn r_144_v2_has_no_stream() {
    let api = Api::start();
    std::thread::scope(|scope| {
        scope.spawn(|| api.created("a", json!({ "version": "v2", "command": WAIT.replace("/mnt", "/usr") })));
        api.wait_pending("a");
        let reply = api.get("/v1/runtimes/a/logs");
        assert_eq!((reply.status, reply.text().as_str()), (200, ""));
        eventually("the build runs", || api.processes("a").iter().any(|p| p.contains("go")).then_some(()));
        go(&api, "a");
    });
}

#[test]
fn r_145_lines_come_while_it_is_built() {
    let api = Api::start();
    std::thread::scope(|scope| {
        let command = format!("echo first; {WAIT}; echo second; sleep 0.1; echo third");
        let building = create_in(scope, &api, "a", json!({ "command": command, "remove": true }));
        let mut readers: Vec<_> = (0..3).map(|_| open_logs(&api, "a", "")).collect();
        let mut seen = vec![String::new(); 3];
        for (conn, seen) in readers.iter_mut().zip(&mut seen) {
            assert_eq!(conn.head().status, 200);
            read_until(conn, seen, "first");
        }
        assert_eq!(api.info("a").unwrap()["status"], "pending");
        go(&api, "a");
        for (conn, seen) in readers.iter_mut().zip(&mut seen) {
            read_until(conn, seen, "third");
            assert_eq!(contents(seen), "first\nsecond\nthird\n");
            assert_eq!(conn.chunk().as_deref(), Some(&[][..]));
        }
        assert_eq!(output(&building.join().unwrap().json()), "first\nsecond\nthird\n");
    });
}
