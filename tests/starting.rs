//! What an executor that starts says, to people and to programs, and what keeps it from starting.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a helper that fails is a failed test")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::node::{COUNT, HELLO};
use common::shell::{Printed, bad, free_port, good, mode, paste, run};
use common::{Home, LONG, Server, eventually_within, signal};
use rustix::process::Signal;
use serde_json::Value;

/// Nine that work and, in the middle of the alphabet, one that does not.
fn ten_with_a_broken_one() -> Home {
    let home = Home::new();
    for n in 1..=4 {
        home.node(&format!("a{n}"), "", HELLO);
        home.node(&format!("z{n}"), "", HELLO);
    }
    home.node("hello", "", HELLO).node("middle", "timeout = \"fast\"", HELLO);
    home
}

#[test]
fn secrets_are_generated_once_and_private() {
    let home = Home::new();
    let mut server = home.node("f", "", HELLO).start(&[]);
    assert_eq!(mode(home.data()), 0o700);
    for file in ["secret", "admin-secret", "executor.json"] {
        assert_eq!(mode(home.data().join(file)), 0o600, "{file}");
    }
    let secret = server.secret.clone().unwrap();
    assert!(secret.len() >= 32 && secret != server.admin, "{secret}");
    assert_eq!(server.stop(), 0);
    let again = home.start(&[]);
    assert_eq!(again.secret, Some(secret));
    let other = Home::new();
    assert_ne!(other.start(&[]).secret, again.secret);
}

#[test]
fn the_printed_curl_line_works() {
    let home = Home::new();
    home.node("a", "", HELLO).node("hello", "", "export default ({ res }) => res.text('from hello');");
    let printed = Printed::start(&home, &[]);
    assert!(printed.lines[0].contains("serves 2 functions at http://127.0.0.1:"), "{:?}", printed.lines);
    assert_eq!(printed.after("adapter"), "process, as asked");
    assert!(printed.after("store").contains("sqlite"), "{:?}", printed.lines);
    let curl = printed.after("try");
    let secret = std::fs::read_to_string(home.data().join("secret")).unwrap();
    assert!(curl.starts_with("curl ") && curl.contains(secret.trim()), "{curl}");
    assert!(curl.contains(printed.url()));
    assert_eq!(paste(curl, &[]), "from hello");
}

#[test]
fn the_curl_line_of_other_folders() {
    // A public one needs no secret, one with state may need more than a path, a broken one is no example.
    let home = Home::new();
    home.node("a", "timeout = 1", HELLO).node("b", "[state]\nkey = \"{query.id}\"", COUNT).node(
        "c",
        "access = \"public\"",
        HELLO,
    );
    let printed = Printed::start(&home, &[]);
    assert_eq!(printed.after("try"), format!("curl {}/c", printed.url()));
    assert_eq!(paste(printed.after("try"), &[]), "hello");
    drop(printed);

    let printed = Printed::start(&home, &["--host", "0.0.0.0"]);
    assert!(printed.url().starts_with("http://localhost:"), "{}", printed.url());
    assert_eq!(paste(printed.after("try"), &[]), "hello");
    drop(printed);

    let empty = Home::new();
    let printed = Printed::start(&empty, &[]);
    assert!(printed.lines[0].contains("serves 0 functions"), "{:?}", printed.lines);
    assert_eq!(printed.after("try"), "executor new hello --runtime node");
}

#[test]
fn the_curl_line_in_json_logs_names_the_file_of_the_secret() {
    let home = Home::new();
    let server = home.node("hello", "", HELLO).start(&[]);
    let serving = server.logged("serving").remove(0);
    let curl = serving["curl"].as_str().unwrap();
    assert_eq!(paste(curl, &[]), "hello", "{curl}");
    for (name, value) in [("adapter", "process"), ("why", "as asked"), ("level", "INFO")] {
        assert_eq!(serving[name], value, "{serving}");
    }
    assert_eq!(serving["functions"], 1);
    assert!(serving["store"].as_str().unwrap().contains("sqlite"));
}

#[test]
fn the_curl_line_works_for_a_data_folder_with_a_space() {
    let home = Home::new();
    home.node("hello", "", HELLO);
    let odd = home.path().join("it's my $data");
    let server = home.start(&["--data", odd.to_str().unwrap()]);
    let serving = server.logged("serving").remove(0);
    let curl = serving["curl"].as_str().unwrap();
    assert_eq!(paste(curl, &[]), "hello", "{curl}");
}

#[test]
fn the_curl_line_names_the_variable_of_a_given_secret() {
    let home = Home::new();
    home.node("hello", "", HELLO);
    let mut command = home.command();
    command.args(["--port", "0", "--log-format", "text"]).env("OPEN_RUNTIMES_SECRET", "s3cret");
    let printed = Printed::spawn(command);
    let curl = printed.after("try").to_owned();
    assert!(curl.contains("$OPEN_RUNTIMES_SECRET") && !printed.lines.join("\n").contains("s3cret"), "{curl}");
    assert_eq!(paste(&curl, &[("OPEN_RUNTIMES_SECRET", "s3cret")]), "hello");
    assert!(!home.data().join("secret").exists(), "what was given is not kept");
    drop(printed);

    let server = home.start(&["--secret", "s3cret"]);
    let curl = server.logged("serving")[0]["curl"].as_str().unwrap().to_owned();
    assert!(curl.contains("$OPEN_RUNTIMES_SECRET"), "{curl}");
    assert_eq!(paste(&curl, &[("OPEN_RUNTIMES_SECRET", "s3cret")]), "hello");
    // An empty one, as compose files give it, is none.
    drop(server);
    let mut command = home.command();
    command.args(["--port", "0"]).env("OPEN_RUNTIMES_SECRET", "").env("OPR_EXECUTOR_SECRET", "");
    let server = home.spawn(command);
    assert!(server.secret.as_ref().is_some_and(|secret| !secret.is_empty()) && !server.admin.is_empty());
    assert_eq!(server.ok("/hello").text(), "hello");
}

#[test]
fn secrets_never_appear_in_logs() {
    let home = Home::new();
    let code = "export default ({ req, res }) => { if (req.path === '/raise') throw new Error('x'); return res.text('hello'); };";
    home.node("f", "", code).node("broken", "timeout = 1", HELLO);
    let mut server = home.start(&["--log", "trace"]);
    assert_eq!(server.ok("/f").text(), "hello");
    assert_eq!(server.get("/f/raise").status, 500);
    assert_eq!(server.get("/broken").status, 503);
    assert_eq!(server.get("/none").status, 404);
    let wrong = server.request("GET", "/f").without_secret().header("x-open-runtimes-secret", "wr0ng").send();
    assert_eq!(wrong.status, 401);
    good(&home, &["invoke", "f"]);
    assert_eq!(server.stop(), 0);
    let log = server.log();
    for secret in [server.secret.as_deref().unwrap(), server.admin.as_str(), "wr0ng"] {
        assert!(!log.contains(secret), "{secret} in\n{log}");
    }
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "JSON lines only:\n{log}");

    let server = home.start(&["--secret", "g1ven", "--admin-secret", "g1ven-admin", "--log", "trace"]);
    let with = server.request("GET", "/f").header("x-open-runtimes-secret", "g1ven");
    let with = if server.secret.is_some() {
        with.without_secret().header("x-open-runtimes-secret", "g1ven")
    } else {
        with
    };
    assert_eq!(with.send().status, 200);
    assert!(!server.log().contains("g1ven"), "{}", server.log());
    // Nor can others read them from the list of processes of the instances.
    let command_line = common::processes(&home.data().join("run").to_string_lossy());
    for pid in command_line {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&environ).contains("g1ven"), "in the environment of an instance");
    }
}

#[test]
fn a_broken_function_among_ten_stops_no_other() {
    let home = ten_with_a_broken_one();
    let server = home.start(&[]);
    assert_eq!(server.logged("serving")[0]["functions"], 9);
    let errors: Vec<_> =
        server.logged("function.toml:3").into_iter().filter(|line| line["level"] == "ERROR").collect();
    assert_eq!(errors.len(), 1, "{}", server.log());
    assert_eq!(errors[0]["function"], "middle");
    for name in ["a1", "hello", "z4"] {
        assert_eq!(server.ok(&format!("/{name}")).text(), "hello");
    }
    let reply = server.get("/middle");
    assert_eq!(reply.problem(), "503 broken-function function");
    let detail = reply.detail();
    assert!(detail.contains("function.toml:3: ") && detail.contains("`fast` is not a duration"), "{detail}");
    let ran = run(&home, &["invoke", "middle"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("function.toml:3"), "{}", ran.out);
    let stranger = server.request("GET", "/middle").without_secret().send();
    assert_eq!(stranger.status, 401, "strangers learn nothing of it");
}

#[test]
fn ten_functions_are_served_at_once() {
    let home = ten_with_a_broken_one();
    let begun = Instant::now();
    let printed = Printed::start(&home, &[]);
    let taken = begun.elapsed();
    eprintln!("from launch to the address, ten functions: {taken:?}");
    assert!(printed.lines[0].contains("serves 9 functions"));
    assert_eq!(paste(printed.after("try"), &[]), "hello", "and the address answers");
}

#[test]
fn the_log_is_json_where_there_is_no_terminal() {
    let home = Home::new();
    home.node("f", "", HELLO);
    let mut command = home.command();
    command.env_remove("EXECUTOR_LOG_FORMAT").args(["--port", "0"]);
    let mut server = home.spawn(command);
    assert_eq!(server.ok("/f").text(), "hello");
    assert_eq!(server.stop(), 0);
    let log = server.log();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(
            line["timestamp"].is_string() && line["level"].is_string() && line["message"].is_string(),
            "{line}"
        );
    }
    assert!(log.lines().count() >= 3, "serving, an instance, stopped: {log}");
}

#[test]
fn a_person_at_a_terminal_gets_text() {
    let home = Home::new();
    home.node("hello", "", HELLO);
    // Python has a terminal at hand.
    let script = "import os, pty, sys\nsys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut command = Command::new("python3");
    let binary = env!("CARGO_BIN_EXE_executor");
    command.args(["-c", script, binary, "--port", "0", "--adapter", "process"]);
    command.arg("--functions").arg(home.functions()).arg("--data").arg(home.data()).current_dir(home.path());
    for name in [
        "EXECUTOR_LOG_FORMAT",
        "EXECUTOR_LOG",
        "OPEN_RUNTIMES_SECRET",
        "OPR_EXECUTOR_SECRET",
        "EXECUTOR_WATCH",
    ] {
        command.env_remove(name);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let curl = lines.find_map(|line| line.unwrap().trim().strip_prefix("try ").map(str::to_owned));
    let curl = curl.expect("a line to try");
    assert_eq!(paste(curl.trim(), &[]), "hello");
    // Watching is on at a terminal.
    home.node("hello", "", "export default ({ res }) => res.text('changed');");
    eventually_within(LONG, "it is reloaded", || (paste(curl.trim(), &[]) == "changed").then_some(()));
    let running: Value =
        serde_json::from_slice(&std::fs::read(home.data().join("executor.json")).unwrap()).unwrap();
    signal(i32::try_from(running["pid"].as_i64().unwrap()).unwrap(), Signal::INT);
    for line in lines {
        assert!(!line.unwrap().starts_with('{'), "text, not JSON");
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let home = Home::new();
    let port = free_port().to_string();
    home.node("f", "", HELLO);
    let start = || {
        let mut command = home.command();
        command.args(["--port", &port]);
        home.spawn(command)
    };
    let mut first = start();
    let message = bad(&home, &["--port", &port, "--data", "other"]);
    let last = message.lines().last().unwrap();
    assert!(last.starts_with("error: cannot listen on 127.0.0.1:") && last.contains(&port), "{message}");
    assert!(last.contains("--port"), "{message}");
    assert_eq!(first.ok("/f").text(), "hello");
    assert_eq!(first.stop(), 0);
    // It can be taken again at once.
    let again = start();
    assert_eq!(again.ok("/f").text(), "hello");
}

#[test]
fn one_executor_for_one_data_folder() {
    let home = Home::new();
    let first: Server = home.node("f", "", HELLO).start(&[]);
    assert_eq!(first.ok("/f").text(), "hello");
    let message = bad(&home, &["--port", "0"]);
    let data = home.data().display().to_string();
    assert!(message.contains("in use by another executor") && message.contains(&data), "{message}");
    assert!(message.contains("--data"), "{message}");
    assert_eq!(good(&home, &["invoke", "f"]), "hello\n", "the first goes on, and can be found");
    assert_eq!(first.starts("f"), 1, "with its instance");
    // Two data folders, two executors.
    let other = Home::new();
    let second = other.node("f", "", HELLO).start(&[]);
    assert_eq!(second.ok("/f").text(), "hello");
}

#[test]
fn data_folders_that_cannot_be_used() {
    let home = Home::new();
    let file = home.file("file");
    std::fs::write(&file, "").unwrap();
    for data in ["/proc/nothing", &file, &format!("{file}/below")] {
        let message = bad(&home, &["--port", "0", "--data", data]);
        assert!(message.contains("data folder") && message.contains("--data"), "{data}: {message}");
    }
}
