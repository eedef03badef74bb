//! Commands in a running runtime (section 5.7).

use serde_json::json;

use crate::common::{at_once, eventually};
use crate::harness::{Api, problem};
use crate::images;

const FAILED: &str = "500 command_failed Failed to execute command.";
const LATE: &str = "500 command_timeout Operation timed out.";

#[test]
fn r_130_what_it_takes() {
    let api = Api::start();
    api.guest("a", "deaf");
    let text = "Value must be a valid string and at least 1 chars and no longer than 1024 chars";
    let int = "Value must be a valid signed 32-bit integer between -2,147,483,648 and 2,147,483,647";
    for (parameters, told) in [
        (json!({}), "Param \"command\" is not optional.".to_owned()),
        (json!({"command": null}), "Param \"command\" is not optional.".to_owned()),
        (json!({"command": ""}), format!("Invalid `command` param: {text}")),
        (json!({"command": "a".repeat(1025)}), format!("Invalid `command` param: {text}")),
        (json!({"command": ["true"]}), format!("Invalid `command` param: {text}")),
        (json!({"command": "true", "timeout": "1"}), format!("Invalid `timeout` param: {int}")),
        (json!({"command": "true", "timeout": 1.0}), format!("Invalid `timeout` param: {int}")),
    ] {
        assert_eq!(
            problem(&api.command("a", &parameters)),
            format!("400 general_unknown {told}"),
            "{parameters}"
        );
    }
    // It is a line for bash, of up to 1,024 characters.
    let long = format!("echo {}", "ü".repeat(1019));
    assert_eq!(api.printed("a", &long), format!("{}\n", "ü".repeat(1019)));
    assert_eq!(api.printed("a", "x=(1 2 3); echo ${x[1]} $0 \"$#\" '$HOME'"), "2 bash 0 $HOME\n");
    let reply = api.multipart("/v1/runtimes/a/commands", &[], &[("command", b"echo form")]);
    assert_eq!(reply.json(), json!({"output": "form\n"}));
}

#[test]
fn r_131_output_and_codes() {
    let api = Api::start();
    api.guest("a", "deaf");
    let reply =
        api.command("a", &json!({"command": "echo err >&2; echo out; echo more >&2; printf '\\xff'"}));
    assert_eq!(reply.text(), "{\"output\":\"out\\n\u{fffd}err\\nmore\\n\"}");
    assert_eq!(reply.header("content-type"), Some("application/json; charset=UTF-8"));
    assert_eq!(api.command("a", &json!({"command": "true"})).text(), "{\"output\":\"\"}");
    assert_eq!(api.printed("a", "cat"), "", "it has no input");
    for command in ["exit 1", "false", "echo x; exit 255", "no-such-program", "kill -9 $$", "if"] {
        assert_eq!(problem(&api.command("a", &json!({ "command": command }))), FAILED, "{command}");
    }
    assert_eq!(
        problem(&api.command("b", &json!({"command": "true"}))),
        "404 runtime_not_found Runtime not found"
    );
    // A file it writes is there for the next one.
    api.printed("a", "echo kept > /mnt/code/kept");
    assert_eq!(api.printed("a", "cat /mnt/code/kept"), "kept\n");
    let big = api.printed("a", "head -c 3000000 /dev/zero | tr '\\0' x");
    assert_eq!(big.len(), 3_000_000);
}

#[test]
fn r_131_what_takes_too_long_is_killed_with_its_children() {
    let api = Api::start();
    api.guest("a", "v5");
    for command in [
        "sleep 7771",
        "sleep 7772 & sleep 7772 & wait",
        "trap '' TERM INT; (trap '' TERM; sleep 7773; sleep 7774)",
        "setsid sleep 7775 & nohup sleep 7776 >/dev/null & sleep 7777",
    ] {
        assert_eq!(problem(&api.command("a", &json!({"command": command, "timeout": 1}))), LATE, "{command}");
        api.wait_no_process("a", "sleep 777");
    }
    for timeout in [0, -5] {
        let reply = api.command("a", &json!({"command": "sleep 7778", "timeout": timeout}));
        assert_eq!(problem(&reply), LATE, "{timeout}");
    }
    // The runtime is none the worse.
    assert_eq!(api.executed("a", "/text")["body"], "hello");
    assert_eq!(api.printed("a", "echo x"), "x\n");
}

#[test]
fn r_131_commands_at_the_same_time() {
    let api = Api::start();
    api.guest("a", "deaf");
    // Each waits for all the others.
    let printed = at_once(6, |i| {
        let wait = "while [ $(ls /mnt/code | wc -l) -lt 6 ]; do sleep 0.05; done";
        api.printed("a", &format!("touch /mnt/code/{i}; {wait}; echo {i}"))
    });
    assert_eq!(printed, (0..6).map(|i| format!("{i}\n")).collect::<Vec<_>>());
}

#[test]
fn r_131_a_runtime_that_goes_away_and_one_that_is_built() {
    let api = Api::start();
    api.guest("a", "deaf");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| api.command("a", &json!({"command": "sleep 1000"})));
        eventually("it runs", || api.processes("a").iter().any(|p| p.contains("sleep 1000")).then_some(()));
        assert_eq!(api.delete("a").status, 200);
        let reply = waiting.join().unwrap();
        assert!([404, 500].contains(&reply.status), "{}", reply.text());
    });
    api.guest("b", "exit 0");
    eventually("it ended", || api.processes("b").is_empty().then_some(()));
    let reply = api.command("b", &json!({"command": "true"}));
    assert!(problem(&reply).starts_with("500 "), "{}", reply.text());
    // One that is being built: it waits, for no longer than its own limit.
    std::thread::scope(|scope| {
        let command = "while [ ! -e /mnt/code/go ]; do sleep 0.05; done";
        let parameters = json!({ "command": command });
        let api = &api;
        scope.spawn(move || api.created("c", parameters));
        eventually("the build runs", || api.processes("c").iter().any(|p| p.contains("go")).then_some(()));
        assert_eq!(problem(&api.command("c", &json!({"command": "true", "timeout": 1}))), LATE);
        std::fs::write(api.folder("c").join("builds/go"), "").unwrap();
        assert_eq!(api.printed("c", "echo built"), "built\n");
    });
}

#[test]
fn r_131_an_image_without_a_shell() {
    let api = Api::start();
    api.created("a", json!({"image": images::shellless()}));
    let reply = api.command("a", &json!({"command": "true"}));
    assert!(problem(&reply).starts_with("500 "), "{}", reply.text());
}
