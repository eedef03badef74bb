//! The command line as its users meet it: people at a terminal, and programs.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a helper that fails is a failed test")]

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::Home;
use common::node::{COUNT, ECHO, HELLO};
use common::shell::{Ran, bad, free_port, good, ran, run};
use serde_json::{Value, json};

#[test]
fn the_help_is_the_reference() {
    let home = Home::new();
    let help = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_executor"));
        // A clean environment: the values of variables that are set would be shown.
        let ran = ran(command.args(args).env_clear().env("COLUMNS", "100").current_dir(home.path()));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{args:?}");
        ran.out
    };
    insta::assert_snapshot!("help", help(&["--help"]));
    for command in
        ["run", "new", "invoke", "build", "deploy", "rollback", "remove", "list", "info", "doctor", "health"]
    {
        insta::assert_snapshot!(format!("help_{command}"), help(&[command, "-h"]));
    }
    // `serve` takes what `executor` alone takes.
    let flags = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with("--"));
        lines.map(|line| line.split([' ', '=', '[']).next().unwrap().to_owned()).collect()
    };
    assert_eq!(flags(&help(&["serve", "--help"])), flags(&help(&["--help"])));
    assert_eq!(help(&["--version"]), format!("executor {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_flag_has_a_variable_and_secrets_are_not_shown() {
    let home = Home::new();
    let mut command = home.command();
    command.args(["--help"]).env("OPEN_RUNTIMES_SECRET", "s3cret").env("OPR_EXECUTOR_SECRET", "s3cret");
    let help = ran(&mut command).out;
    assert!(!help.contains("s3cret"));
    let mut flags = 0;
    // What belongs to a flag goes up to the next one.
    for part in help.split("\n      --").skip(1) {
        let flag = part.split([' ', '=', '[', '\n']).next().unwrap();
        flags += 1;
        let variable = match flag {
            "secret" => "OPEN_RUNTIMES_SECRET".to_owned(),
            "admin-secret" => "OPR_EXECUTOR_SECRET".to_owned(),
            _ if flag.starts_with("api-") => {
                format!("OPR_EXECUTOR_{}", flag[4..].to_uppercase().replace('-', "_"))
            }
            _ => format!("EXECUTOR_{}", flag.to_uppercase().replace('-', "_")),
        };
        assert!(part.contains(&format!("[env: {variable}")), "--{flag}: {part}");
    }
    assert!(flags > 20, "{help}");
}

#[test]
fn all_problems_are_reported_at_once_each_with_its_flag() {
    let home = Home::new();
    let flags = [
        ("--port", "99999"),
        ("--host", "nowhere"),
        ("--functions", "missing"),
        ("--store", "postgres://x"),
        ("--log", "a=b=c"),
        ("--threads", "0"),
        ("--max-instances", "0"),
        ("--queue", "many"),
        ("--reap-interval", "soon"),
        ("--start-timeout", "0s"),
        ("--cancel-grace", "-1s"),
        ("--grace", "25h"),
        ("--max-body", "big"),
        ("--max-response", "2GiB"),
        ("--max-state", "17MiB"),
        ("--max-connections", "-1"),
        ("--header-timeout", "10"),
        ("--idle-timeout", ""),
    ];
    // With `=`, or `-1` would be a flag of its own.
    let args: Vec<_> = flags.iter().map(|(flag, value)| format!("{flag}={value}")).collect();
    let long = format!("--data=/tmp/{}", "x".repeat(100));
    let ran = ran(home.command().args(&args).arg(&long));
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{}", ran.err);
    for flag in flags.iter().map(|(flag, _)| *flag).chain(["--data"]) {
        let lines = ran.err.lines().filter(|line| line.starts_with(&format!("error: {flag}: "))).count();
        assert_eq!(lines, 1, "{flag} in\n{}", ran.err);
    }
    assert_eq!(ran.err.lines().count(), flags.len() + 2, "{}", ran.err);
    assert!(ran.err.ends_with("`executor --help` explains each flag.\n"));
    assert!(!Path::new(long.strip_prefix("--data=").unwrap()).exists(), "nothing was made");
}

#[test]
fn problems_of_choices_are_reported_with_the_others() {
    let home = Home::new();
    let args =
        ["--port", "x", "--adapter", "podman", "--log-format", "xml", "--network", "host", "--watch=maybe"];
    let ran = run(&home, &args);
    assert_eq!(ran.code, 2);
    for flag in ["--port", "--adapter", "--log-format", "--network", "--watch"] {
        assert!(ran.err.contains(flag), "{flag} in\n{}", ran.err);
    }
}

#[test]
fn bad_values_say_what_would_be_good() {
    let home = Home::new();
    for (flag, value, message) in [
        ("port", "65536", "`65536` must be a number from 0 to 65535"),
        ("port", "http", "`http` must be a number from 0 to 65535"),
        ("host", "example.org", "write for example 127.0.0.1 or 0.0.0.0"),
        (
            "functions",
            "gone",
            "`gone` is not a folder; make it, or start with `executor new hello --runtime node`",
        ),
        ("store", "mysql:x", "sqlite:"),
        ("threads", "0", "from 1 to 1024"),
        ("max-instances", "1.5", "`1.5` must be a number from 1 to 100000"),
        ("queue", "0", "from 1 to 1000000"),
        ("reap-interval", "5", "\"15s\""),
        ("grace", "30sec", "\"15s\""),
        ("cancel-grace", "0.5ms", "must be from 1ms to 24h"),
        ("header-timeout", "1d1s", "must be from 1ms to 24h"),
        ("idle-timeout", "0s", "must be from 1ms to 24h"),
        ("max-body", "0", "must be from 1 to 1073741824 bytes"),
        ("max-body", "20 parsecs", "\"64KiB\""),
        ("max-state", "8388609", "must be from 1 to 8388608 bytes"),
        ("max-connections", "", "from 1 to 1000000"),
    ] {
        let ran = run(&home, &[&format!("--{flag}={value}")]);
        assert_eq!(ran.code, 2, "--{flag} {value}");
        let first = ran.err.lines().next().unwrap();
        assert!(first.starts_with(&format!("error: --{flag}: ")) && first.contains(message), "{first}");
        // The same from the environment.
        let variable = format!("EXECUTOR_{}", flag.to_uppercase().replace('-', "_"));
        let mut command = home.command();
        command.env(variable, value);
        let again = self::ran(&mut command);
        // An empty variable may count as not set; then something else happens, so it is not tried.
        if !value.is_empty() {
            assert_eq!((again.code, again.err), (2, ran.err), "--{flag} {value}");
        }
    }
    let ran = run(&home, &["run", "gone"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.starts_with("error: FOLDER: `gone` is not a folder"), "{}", ran.err);
    let ran = run(&home, &["--colour", "red"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("--colour"), "{}", ran.err);
    for usage in [&["run"][..], &["new"], &["invoke"], &["info"], &["frobnicate"], &["--port", "1", "list"]] {
        assert_eq!(run(&home, usage).code, 2, "{usage:?}");
    }
}

#[test]
fn environment_variables_are_flags_and_flags_win() {
    let home = Home::new();
    home.node("f", "access = \"public\"", ECHO);
    let free = free_port().to_string();
    let mut command = home.command();
    command.env("EXECUTOR_PORT", &free).env("EXECUTOR_MAX_BODY", "10").env("EXECUTOR_STORE", "memory:");
    let mut server = home.spawn(command);
    assert_eq!(server.url, format!("http://127.0.0.1:{free}"));
    assert!(server.logged("serving")[0]["store"].as_str().unwrap().starts_with("memory:"));
    assert_eq!(server.post("/f", "0123456789").status, 200);
    assert_eq!(server.post("/f", "0123456789a").status, 413);
    assert_eq!(server.stop(), 0);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = home.command();
    command
        .env("EXECUTOR_PORT", taken.local_addr().unwrap().port().to_string())
        .env("EXECUTOR_MAX_BODY", "10");
    command.env("OPEN_RUNTIMES_SECRET", "of the environment").args(["--secret", "of the flag"]);
    command.args(["--port=0", "--max-body=11"]);
    let server = home.node("g", "", HELLO).spawn(command);
    assert_eq!(server.post("/f", "0123456789a").status, 200);
    assert_eq!(server.post("/f", "0123456789ab").status, 413);
    let with =
        |secret| server.request("GET", "/g").without_secret().header("x-open-runtimes-secret", secret).send();
    assert_eq!((with("of the flag").status, with("of the environment").status), (200, 401));
}

#[test]
fn new_functions_work_and_nothing_is_overwritten() {
    let home = Home::new();
    for (name, runtime, files) in [
        ("first", "node", ["function.toml", "index.mjs"]),
        ("second", "python", ["function.toml", "main.py"]),
    ] {
        let out = good(&home, &["new", name, "--runtime", runtime]);
        for file in files {
            let path = home.functions().join(name).join(file);
            assert!(path.is_file() && out.contains(&format!("wrote {}", path.display())), "{out}");
        }
        assert!(out.contains(&format!("executor invoke {name}")), "{out}");
        let code = home.functions().join(name).join(files[1]);
        std::fs::write(&code, [std::fs::read(&code).unwrap(), b"\n".to_vec()].concat()).unwrap();
        let before = std::fs::read(&code).unwrap();
        let message = bad(&home, &["new", name, "--runtime", "node"]);
        assert!(message.contains("exists already"), "{message}");
        assert_eq!(std::fs::read(&code).unwrap(), before);
    }
    // Without --runtime it is one in Node.
    good(&home, &["new", "third"]);
    assert!(home.functions().join("third/index.mjs").is_file());
    let server = home.start(&[]);
    for name in ["first", "second", "third"] {
        assert_eq!(server.ok(&format!("/{name}?name=you")).text(), "Hello, you!\n", "{name}");
        let posted = server.post(&format!("/{name}/a?b=c"), "text").json();
        assert_eq!(
            posted,
            json!({"method": "POST", "path": "/a", "query": {"b": "c"}, "body": "text"}),
            "{name}"
        );
    }
    assert!(good(&home, &["list"]).lines().count() == 4);
}

#[test]
fn new_refuses_bad_names_and_runtimes() {
    let home = Home::new();
    let long = "x".repeat(65);
    for name in ["", "_", "_x", ".x", "..", "a/b", "../up", "a b", "ä", "v1", "a?b", long.as_str()] {
        let message = bad(&home, &["new", name]);
        assert!(message.starts_with(&format!("error: `{name}` ")), "{message}");
    }
    let message = bad(&home, &["new", "f", "--runtime", "cobol"]);
    assert!(message.contains("there is no runtime `cobol`; there are: node, python"), "{message}");
    assert_eq!(std::fs::read_dir(home.functions()).unwrap().count(), 0, "nothing was written");
    assert!(!home.path().join("up").exists());
    // The folder of functions is made if need be.
    good(&home, &["new", "f", "--functions", "some/where"]);
    assert!(home.path().join("some/where/f/function.toml").is_file());
}

/// Says what it was given, writes to its log, fails when asked to.
const TALK: &str = r"
export default ({ req, res, log, error }) => {
  log('asked', req.path);
  error('oh');
  console.log('native');
  if (req.path === '/raise') throw new Error('on purpose');
  const status = Number(req.query.status ?? 200);
  return res.text(`${req.method} ${req.path} ${req.headers['x-a'] ?? '-'} ${req.bodyText}`, status, { 'x-b': ['1', '2'] });
};";

#[test]
fn invoke_for_a_person() {
    let home = Home::new();
    let _server = home.node("talk", "", TALK).start(&[]);
    let ran = run(&home, &["invoke", "talk"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "GET / - \n"), "{}", ran.err);
    let lines: Vec<_> = ran.err.lines().map(str::trim).collect();
    assert!(lines.contains(&"status  200 OK"), "{}", ran.err);
    let timings = lines.last().unwrap().strip_prefix("timings").expect("the last line");
    for part in ["queue", "cold", "state", "run", "(ms)"] {
        assert!(timings.contains(part), "{timings}");
    }
    for text in ["asked /", "oh", "native"] {
        assert!(lines.iter().any(|line| line.ends_with(text)), "{text} in\n{}", ran.err);
    }
    assert!(lines.iter().any(|line| line.starts_with("error") && line.ends_with("oh")), "{}", ran.err);
}

#[test]
fn invoke_for_a_program() {
    let home = Home::new();
    let _server = home.node("talk", "", TALK).start(&[]);
    let ran = run(
        &home,
        &["invoke", "talk", "--json", "--path", "/x?status=201", "-H", "X-A: value", "--body", "text"],
    );
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let document: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(document["status"], 201);
    assert_eq!(document["body"], "POST /x value text");
    assert_eq!(document["headers"]["x-b"], json!(["1", "2"]));
    assert_eq!(document["headers"]["content-type"], "text/plain; charset=utf-8");
    let logs: Vec<_> =
        document["logs"].as_array().unwrap().iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert!(logs.contains(&"asked /x") && logs.contains(&"oh"), "{logs:?}");
    let timings = document["timings_ms"].as_object().unwrap();
    let mut names: Vec<_> = timings.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["cold", "queue", "run", "state"]);
    assert!(timings["cold"].as_f64().unwrap() > 0.0 && timings["run"].as_f64().unwrap() > 0.0, "{timings:?}");
}

#[test]
fn what_invoke_sends() {
    let home = Home::new();
    let _server = home.node("echo", "", ECHO).node("talk", "", TALK).start(&[]);
    let call = |args: &[&str]| -> Value {
        serde_json::from_str(&good(&home, &[&["invoke", "echo"], args].concat())).unwrap()
    };
    std::fs::write(home.path().join("body.bin"), b"\0\xff\n").unwrap();
    assert_eq!(call(&["--body", "@body.bin"])["hex"], "00ff0a");
    assert_eq!(call(&["--body", "@body.bin"])["method"], "POST");
    assert_eq!(call(&["-b", ""])["method"], "POST");
    assert_eq!(call(&[])["method"], "GET");
    assert_eq!(call(&["-X", "delete"])["method"], "DELETE");
    assert_eq!(call(&["--method", "PUT", "--body", "x"])["text"], "x");
    assert_eq!(call(&["-p", "a/b?c=d"])["path"], "/a/b");
    assert_eq!(call(&["--path", "/a/b?c=d"])["queryString"], "c=d");
    assert_eq!(call(&["--path", "?c=d"])["query"], json!({"c": "d"}));
    let headers = call(&["-H", "x-a: 1", "-H", "X-A:2", "--header", "x-url: a:b"])["headers"].clone();
    assert_eq!((&headers["x-a"], &headers["x-url"]), (&json!("1, 2"), &json!("a:b")));
    assert_eq!(headers.get("x-open-runtimes-secret"), None);

    let mut command = home.command();
    command
        .args(["invoke", "echo", "--body", "@-"])
        .stdin(std::fs::File::open(home.path().join("body.bin")).unwrap());
    let ran = ran(&mut command);
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["hex"], "00ff0a");
}

#[test]
fn invoke_ends_with_1_when_the_call_did_not_succeed() {
    let home = Home::new();
    let _server = home.node("talk", "", TALK).start(&[]);
    for (args, status) in [
        (&["talk", "--path", "/?status=404"][..], 404),
        (&["talk", "--path", "/?status=302"], 302),
        (&["talk", "--path", "/raise"], 500),
        (&["none"], 404),
        (&["talk", "-X", "BREW"], 405),
    ] {
        let ran = run(&home, &[&["invoke", "--json"], args].concat());
        let document: Value =
            serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}{}", ran.out, ran.err));
        assert_eq!((ran.code, &document["status"]), (1, &json!(status)), "{args:?}");
    }
    // The stack is for the operator, who asks here.
    let ran = run(&home, &["invoke", "talk", "--path", "/raise"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("on purpose") && ran.err.contains("500"), "{}", ran.err);

    let gone = home.file("gone");
    for (args, message) in [
        (&["talk", "-H", "nonsense"][..], "must be `name: value`"),
        (&["talk", "-H", "sp ace: x"], "is not a header name"),
        (&["talk", "--body", &format!("@{gone}")], gone.as_str()),
        (&["talk", "--limit", "soon"], "is not a duration"),
        (&["talk", "--url", "https://127.0.0.1:1"], "only http://"),
        (&["talk", "--path", "/a b"], "cannot be sent"),
    ] {
        let text = bad(&home, &[&["invoke"], args].concat());
        assert!(text.starts_with("error: ") && text.contains(message), "{args:?}: {text}");
    }
}

#[test]
fn without_an_executor_the_message_says_what_to_do() {
    let home = Home::new();
    for command in [&["invoke", "f"][..], &["health"]] {
        let message = bad(&home, command);
        let data = home.data().display().to_string();
        assert!(
            message.contains("no executor runs with the data folder") && message.contains(&data),
            "{message}"
        );
        assert!(message.contains("--url") && message.contains("--data"), "{message}");
    }
    let closed = format!("127.0.0.1:{}", free_port());
    let message = bad(&home, &["invoke", "f", "--url", &format!("http://{closed}")]);
    assert!(message.contains(&format!("nothing answers at http://{closed}")), "{message}");

    let mut server = home.node("f", "", HELLO).start(&[]);
    assert_eq!(good(&home, &["invoke", "f"]), "hello\n");
    // One that could not tidy up.
    server.kill();
    let message = bad(&home, &["invoke", "f"]);
    assert!(message.contains(&format!("nothing answers at {}", server.url)), "{message}");
    // One that could.
    let mut server = home.start(&[]);
    assert_eq!(server.stop(), 0);
    let message = bad(&home, &["invoke", "f"]);
    assert!(message.contains("no executor runs"), "{message}");
}

#[test]
fn invoke_with_a_secret_that_was_given() {
    let home = Home::new();
    let server = home.node("f", "", HELLO).start(&["--secret", "s3cret"]);
    let ran = run(&home, &["invoke", "f"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("401") && ran.err.contains("OPEN_RUNTIMES_SECRET"), "{}", ran.err);
    assert_eq!(good(&home, &["invoke", "f", "--secret", "s3cret"]), "hello\n");
    let mut command = home.command();
    command.args(["invoke", "f"]).env("OPEN_RUNTIMES_SECRET", "s3cret");
    assert_eq!(self::ran(&mut command).out, "hello\n");
    // By its URL alone, from elsewhere.
    let ran = run(&home, &["invoke", "f", "--data", "elsewhere", "--url", &server.url, "--secret", "s3cret"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "hello\n"), "{}", ran.err);
}

#[test]
fn list_shows_what_serve_would_serve() {
    let home = Home::new();
    home.node(
        "b",
        "timeout = \"1m30s\"\nmin-instances = 1\nmax-instances = 3\n[state]\nkey = \"{query.id}\"",
        COUNT,
    );
    home.python("a-long-name", "access = \"public\"", "def main(context): pass\n");
    std::fs::create_dir_all(home.functions().join("no-function")).unwrap();
    std::fs::create_dir_all(home.functions().join(".hidden")).unwrap();
    std::fs::write(home.functions().join("README.md"), "").unwrap();
    let out = good(&home, &["list"]);
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows,
        [
            vec!["NAME", "RUNTIME", "ACCESS", "INSTANCES", "TIMEOUT", "STATE"],
            vec!["a-long-name", "python", "public", "0-4", "15s", "-"],
            vec!["b", "node", "secret", "1-3", "90s", "per", "{query.id}"],
        ]
    );
    // In columns.
    let at = |line: &str, word: &str| line.find(word).unwrap();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(at(lines[0], "RUNTIME"), at(lines[2], "node"));
    assert_eq!(at(lines[0], "STATE"), at(lines[2], "per"));

    home.write("c", "function.toml", "runtime = \"node\"\n\nspeed = 3\n");
    let ran = run(&home, &["list"]);
    assert_eq!(ran.code, 1, "a broken one is a failure");
    let manifest = home.functions().canonicalize().unwrap().join("c/function.toml");
    let row = ran.out.lines().last().unwrap();
    assert!(
        row.starts_with("c ") && row.contains(&format!("{}:3: unknown field `speed`", manifest.display())),
        "{row}"
    );
    assert_eq!(ran.out.lines().count(), 4, "the others are shown as well");

    let message = bad(&home, &["list", "--functions", "gone"]);
    assert!(message.contains("cannot read gone"), "{message}");
}

#[test]
fn info_asks_the_function_without_its_init() {
    let home = Home::new();
    let code = r"
import fs from 'node:fs';
export const info = { name: 'counter', version: '1.2.0', doc: 'counts' };
export function init() { fs.writeFileSync(process.env.HOME_FILE, 'init ran'); }
export function start() { return {}; }
export function stop() {}
export default ({ res }) => res.text('');";
    home.node("f", "", code).node("plain", "", HELLO).node("broken", "", "export default (");
    let python = "import os\ninfo = {'name': 'p'}\ndef init(): open(os.environ['HOME_FILE'], 'w').write('x')\ndef main(context): pass\n";
    home.python("p", &format!("[env]\nHOME_FILE = \"{}\"", home.file("p")), python);
    let ask = |name: &str| -> Value { serde_json::from_str(&good(&home, &["info", name])).unwrap() };
    let info = ask("f");
    assert_eq!(info["info"], json!({"name": "counter", "version": "1.2.0", "doc": "counts"}));
    assert_eq!((&info["function"], &info["runtime"]), (&json!("f"), &json!("node")));
    let mut hooks: Vec<_> =
        info["hooks"].as_array().unwrap().iter().map(|hook| hook.as_str().unwrap()).collect();
    hooks.sort_unstable();
    assert_eq!(hooks, ["init", "start", "stop"]);
    let info = ask("p");
    assert_eq!((&info["info"], &info["hooks"]), (&json!({"name": "p"}), &json!(["init"])));
    assert_eq!(ask("plain")["hooks"], json!([]));
    assert!(!Path::new(&home.file("f")).exists() && !Path::new(&home.file("p")).exists(), "init ran");

    assert!(bad(&home, &["info", "none"]).contains("there is no function `none`"));
    assert!(bad(&home, &["info", "broken"]).contains("index.mjs"));
    home.write("manifest", "function.toml", "runtime = \"node\"\nentrypoint = \"gone.js\"\n");
    assert!(bad(&home, &["info", "manifest"]).contains("function.toml:2: "));
    assert!(!home.data().exists(), "it changes nothing");
}

#[test]
fn health_ends_with_0_while_it_serves() {
    let home = Home::new();
    let mut server = home.node("f", "", HELLO).start(&[]);
    let document: Value = serde_json::from_str(&good(&home, &["health"])).unwrap();
    let parts = json!({"store": "pass"});
    assert_eq!(document, json!({"status": "pass", "instances": 0, "parts": parts}));
    good(&home, &["health", "--data", "elsewhere", "--url", &server.url]);
    let slash = format!("{}/", server.url);
    let mut command = home.command();
    command.args(["health", "--data", "elsewhere"]).env("EXECUTOR_URL", slash);
    assert_eq!(ran(&mut command).code, 0);
    assert_eq!(server.stop(), 0);
    bad(&home, &["health"]);
    bad(&home, &["health", "--url", &server.url]);
    // Something else that listens there, but says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let begun = Instant::now();
    let message = bad(&home, &["health", "--url", &format!("http://{}", silent.local_addr().unwrap())]);
    assert!(message.contains("did not answer within 3s"), "{message}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn doctor_looks_at_everything() {
    let home = Home::new();
    let free = free_port().to_string();
    // Without Docker, so that nothing is asked of the network.
    let doctor = |args: &[&str]| {
        let mut command = home.command();
        command.env("DOCKER_HOST", "unix:///nonexistent.sock").env("EXECUTOR_PORT", &free);
        ran(command.arg("doctor").args(args))
    };
    let line = |ran: &Ran, what: &str| {
        let found = ran.out.lines().find(|line| line.get(8..).is_some_and(|rest| rest.starts_with(what)));
        found.unwrap_or_else(|| panic!("no line for {what} in\n{}", ran.out)).to_owned()
    };
    let fine = doctor(&[]);
    assert_eq!((fine.code, fine.err.as_str()), (0, ""), "{}", fine.out);
    assert!(line(&fine, "docker").starts_with("missing "));
    for what in ["node", "python", "data folder", "port"] {
        assert!(line(&fine, what).starts_with("ok "), "{}", fine.out);
    }
    assert!(line(&fine, "node").contains("version ") && line(&fine, "python").contains("version 3."));
    assert!(fine.out.ends_with("`executor` can run here, with processes.\n"), "{}", fine.out);
    assert!(!home.data().exists(), "it changes nothing");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ran = doctor(&["--port", &port]);
    assert_eq!(ran.code, 1);
    let row = line(&ran, "port");
    assert!(row.starts_with("missing ") && row.contains(&port) && row.contains("--port"), "{row}");
    assert!(ran.out.contains("cannot run here"), "{}", ran.out);

    let ran = doctor(&["--data", "/proc/nothing/here"]);
    assert_eq!(ran.code, 1);
    let row = line(&ran, "data folder");
    assert!(row.starts_with("missing ") && row.contains("--data"), "{row}");
}

#[test]
fn doctor_without_any_language() {
    let home = Home::new();
    let mut command = home.command();
    command
        .args(["doctor", "--port", "0"])
        .env("DOCKER_HOST", "unix:///nonexistent.sock")
        .env("PATH", home.path());
    let ran = ran(&mut command);
    assert_eq!(ran.code, 1, "{}", ran.out);
    assert!(ran.out.lines().filter(|line| line.starts_with("missing ")).count() >= 3, "{}", ran.out);
    assert!(ran.out.contains("Nothing can run functions here"), "{}", ran.out);
}
