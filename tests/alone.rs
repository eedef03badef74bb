//! One function alone, `executor run`, on this host: paths, secret, state, mistakes, and the commands beside it. The whole
//! contract is in `tests/conformance.rs`; sites are in `tests/site.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is a failed test")]

mod common;

use std::path::Path;

use common::node::{ECHO, HELLO};
use common::shell::{Printed, good, mode, paste};
use common::{Home, Server, processes};
use serde_json::Value;

fn run_alone(home: &Home, folder: &Path, flags: &[&str]) -> Server {
    let mut command = home.command();
    command.arg("run").arg(folder).args(["--port", "0"]).args(flags);
    home.spawn(command)
}

#[test]
fn one_function_alone_serves_every_path_without_a_secret() {
    let home = Home::new();
    home.node("echo", "", ECHO).node("other", "", HELLO);
    let mut server = run_alone(&home, &home.functions().join("echo"), &[]);
    assert_eq!(server.secret, None);
    for path in ["/", "/echo", "/other", "/a/b%20c", "/v1/x", "//"] {
        let seen = server.ok(&format!("{path}?q=1")).json();
        assert_eq!((seen["path"].as_str(), seen["queryString"].as_str()), (Some(path), Some("q=1")));
    }
    assert_eq!(server.post("/x", "body").json()["text"], "body");
    assert_eq!(server.stop(), 0);
    assert_eq!(processes(&home.data().join("run").to_string_lossy()), [] as [i32; 0]);
}

/// The status of an empty answer, and what its error log says.
fn refused(home: &Home, server: &Server, path: &str) -> (u16, String) {
    let reply = server.get(path);
    assert_eq!(reply.text(), "", "no detail is in the answer");
    let id = reply.header("x-open-runtimes-log-id").expect("a log id").to_owned();
    let file = home.data().join(format!("logs/{id}_errors.log"));
    (reply.status, std::fs::read_to_string(file).unwrap())
}

#[test]
fn one_function_alone_with_state_and_in_python() {
    let code = r#"
def main(context):
    n = (context.state.get() or 0) + 1
    context.state.set(n)
    return context.res.text(f"{context.state.key} {n}")
"#;
    let home = Home::new();
    home.python("count", "[state]\nkey = \"{path.1}\"", code);
    let folder = home.functions().join("count");
    let mut server = run_alone(&home, &folder, &[]);
    assert_eq!((server.ok("/a").text(), server.ok("/a/x").text()), ("a 1".into(), "a 2".into()));
    let (status, errors) = refused(&home, &server, "/");
    assert_eq!(status, 400);
    assert!(errors.contains("path segment 1"), "{errors}");
    server.kill();
    let server = run_alone(&home, &folder, &["--watch=on"]);
    assert_eq!(server.ok("/a").text(), "a 3");
    home.write("count", "main.py", &code.replace("{n}", "{n} changed"));
    server.wait_log("reloaded");
    assert_eq!(server.ok("/a").text(), "a 4 changed");
}

#[test]
fn a_given_secret_is_asked_for() {
    let home = Home::new();
    home.node("hello", "", HELLO);
    let given = ["--secret", "given"];
    for (server, path) in [
        (run_alone(&home, &home.functions().join("hello"), &given), "/"),
        (home.start(&["--secret", "given", "--data", &home.file("e")]), "/hello"),
    ] {
        let with = |secret: &str| {
            server.request("GET", path).without_secret().header("x-open-runtimes-secret", secret)
        };
        let without = server.request("GET", path).without_secret().send();
        assert_eq!(without.status, 401);
        assert_eq!(without.text(), "Unauthorized. Provide correct \"x-open-runtimes-secret\" header.");
        assert_eq!(with("wrong").send().status, 401);
        assert_eq!(with("given").send().text(), "hello");
        assert!(!server.log().contains("given"), "it is not logged: {}", server.log());
    }
}

#[test]
fn one_function_alone_that_is_broken_says_so() {
    let home = Home::new();
    home.write("bad", "function.toml", "runtime = \"node\"\nno-such-key = 1\n");
    let server = run_alone(&home, &home.functions().join("bad"), &[]);
    let (status, errors) = refused(&home, &server, "/any");
    assert_eq!(status, 503);
    assert!(errors.contains("function.toml:2:"), "{errors}");
    drop(server);
    let none = home.run(&["run", &home.file("nowhere"), "--port", "0"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("is not a folder"));
}

#[test]
fn run_serves_one_function_at_every_path() {
    let home = Home::new();
    home.node("echo", "", ECHO);
    let folder = home.functions().join("echo");
    let mut command = home.command();
    command.env_remove("EXECUTOR_FUNCTIONS").env_remove("EXECUTOR_DATA");
    command.args(["run", folder.to_str().unwrap(), "--port", "0", "--log-format", "text"]);
    let printed = Printed::spawn(command);
    assert!(
        printed.lines[0].contains("serves 1 functions") || printed.lines[0].contains("serves 1 function ")
    );
    let seen = |path: &str| -> Value {
        serde_json::from_str(&paste(&format!("curl -s '{}{path}'", printed.url()), &[])).unwrap()
    };
    assert_eq!(seen("/")["path"], "/");
    assert_eq!(seen("/a/b?c=d")["path"], "/a/b");
    assert_eq!(seen("/echo")["path"], "/echo", "its name is not part of the path");
    let first: Value = serde_json::from_str(&paste(printed.after("try"), &[])).unwrap();
    assert_eq!(first["path"], "/", "nobody is asked for a secret");
    let data = home.path().join("data/only-echo");
    assert_eq!(mode(&data), 0o700);
    // Next to it, the whole folder can be served from the same place.
    let server = home.start(&["--data", "data"]);
    assert_eq!(server.logged("serving").len(), 1);
}

#[test]
fn the_commands_find_a_function_that_runs_alone() {
    let home = Home::new();
    home.node("echo", "", ECHO);
    let folder = home.functions().join("echo");
    let _printed = Printed::start(&home, &["run", folder.to_str().unwrap()]);
    good(&home, &["health"]);
    let seen: Value = serde_json::from_str(&good(&home, &["invoke", "echo", "--path", "/x"])).unwrap();
    assert_eq!(seen["path"], "/x", "as it would be in a folder");
}
