//! Every way a call can fail: its status, its stable type, the part at fault, and what stays hidden from the client.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is a failed test")]

mod common;

use std::time::{Duration, Instant};

use common::node::{COUNT, ECHO, GATE, HELLO};
use common::{Home, Outgoing, Reply, Server, eventually};
use rustix::process::Signal;

/// A request whose id is known, so that whole documents can be compared.
fn known<'a>(server: &'a Server, method: &str, target: &str) -> Outgoing<'a> {
    server.request(method, target).header("x-request-id", "given")
}

/// A problem as a person would file it: status, the headers that matter, the document.
fn filed(what: &str, reply: &Reply) -> String {
    let _ = reply.problem();
    let document = reply.text().replace(reply.header("x-request-id").unwrap(), "ID");
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{what}");
    let mut lines = vec![format!("# {what}"), reply.status.to_string()];
    for name in ["allow", "retry-after"] {
        lines.extend(reply.header(name).map(|value| format!("{name}: {value}")));
    }
    format!("{}\n{}\n", lines.join("\n"), serde_json::to_string_pretty(&document).unwrap())
}

#[test]
fn documents_of_requests_that_reach_no_function() {
    let home = Home::new();
    home.node("echo", "", ECHO)
        .node("count", "[state]\nkey = \"{query.id}-{header.x-user}-{path.2}\"", COUNT)
        .node("broken", "colour = \"red\"", HELLO);
    let server = home.start(&["--max-body", "1000", "--idle-timeout", "300ms"]);
    let long = "x".repeat(8 << 10);
    let wide = "x".repeat(33 << 10);
    let slow = |target: &str, headers: [&str; 2], begun: &str| {
        let mut conn = known(&server, "POST", target).header(headers[0], headers[1]).open();
        conn.write(begun);
        conn.reply("POST")
    };
    let key = "the operator's key";
    let all = [
        ("no name", known(&server, "GET", "/").send()),
        ("unknown function", known(&server, "GET", "/nobody/x").send()),
        ("no query parameter", known(&server, "GET", "/count/a/b").header("x-user", "u").send()),
        ("no header", known(&server, "GET", "/count/a/b?id=1").send()),
        ("no path segment", known(&server, "GET", "/count/a?id=1").header("x-user", "u").send()),
        ("method", known(&server, "BREW", "/echo").send()),
        ("path too long", known(&server, "GET", &format!("/echo/{long}")).send()),
        (
            "headers too large",
            known(&server, "GET", "/echo").header("host", "a").header("x-wide", &wide).send(),
        ),
        ("body too large", known(&server, "POST", "/echo").body(vec![0; 1001]).send()),
        ("body stops", slow("/echo", ["content-length", "10"], "12345")),
        ("body is no body", slow("/echo", ["transfer-encoding", "chunked"], "5\r\nabcde\r\nzz\r\n")),
        ("broken manifest", known(&server, "GET", "/broken").send()),
        ("own API, unknown path", server.request("GET", "/_/nothing").send()),
        ("own API, no key", server.request("GET", "/_/executions/x").send()),
        ("own API, wrong key", server.request("GET", "/_/executions/x").header("authorization", key).send()),
    ];
    let text: Vec<_> = all.iter().map(|(what, reply)| filed(what, reply)).collect();
    insta::assert_snapshot!("requests", text.join("\n"));
    assert_eq!(server.instances(), 0, "none of it was worth an instance");
}

#[test]
fn a_path_of_our_own_says_which_methods_it_knows() {
    let home = Home::new();
    let server = home.start(&[]);
    for path in ["/_/health", "/_/metrics", "/_/executions/x"] {
        let reply = server.request("DELETE", path).send();
        assert_eq!(reply.problem(), "405 method-not-allowed front");
        assert_eq!(reply.header("allow"), Some("GET,HEAD"), "{path}");
    }
}

/// Runs a [`GATE`] once, so that what follows is not about the time a start takes.
fn warm(home: &Home, server: &Server, name: &str) {
    let gate = home.file(&format!("{name}.go"));
    std::fs::write(&gate, "").unwrap();
    eventually("it is warm", || (server.get(&format!("/{name}")).status == 200).then_some(()));
    std::fs::remove_file(gate).unwrap();
    let _ = std::fs::remove_file(home.file(name));
}

#[test]
fn documents_of_functions_that_do_not_answer() {
    let home = Home::new();
    let never =
        "export default ({ req, res }) => req.path === '/warm' ? res.empty() : new Promise(() => {});";
    home.node("exits", "", "export default () => process.exit(3);")
        .node("killed", "", "export default () => process.kill(process.pid, 'SIGKILL');")
        .node("late", "timeout = \"300ms\"", never)
        .node("throws", "", "throw new Error('no database');")
        .node(
            "init",
            "",
            "export async function init() { throw new Error('no key'); }\nexport default () => 1;",
        )
        .node("nothing", "", "export const greeting = 1;")
        .node("absent", "", HELLO)
        .node("future", "", HELLO)
        .write("future", "function.toml", "runtime = \"node-99\"\nentrypoint = \"index.mjs\"\n");
    let server = home.start(&[]);
    std::fs::remove_file(home.functions().join("absent/index.mjs")).unwrap();
    eventually("late is warm", || (server.get("/late/warm").status == 204).then_some(()));
    let ask = |name: &str| filed(name, &known(&server, "GET", &format!("/{name}")).send());
    let text: Vec<_> =
        ["exits", "killed", "late", "throws", "init", "nothing", "absent"].into_iter().map(ask).collect();
    insta::assert_snapshot!("functions", text.join("\n"));

    let future = server.get("/future");
    assert_eq!(future.problem(), "503 cannot-start runtime");
    assert!(future.detail().starts_with("node 99 is needed on this host"), "{}", future.detail());
}

#[test]
fn a_wrong_secret_gets_the_fixed_text_whatever_is_asked() {
    let home = Home::new();
    home.node("echo", "", ECHO).node("broken", "colour = \"red\"", HELLO);
    let server = home.start(&["--max-body", "10"]);
    for (method, target) in [
        ("GET", "/"),
        ("GET", "/echo"),
        ("BREW", "/echo"),
        ("GET", "/none"),
        ("GET", "/broken"),
        ("POST", "/echo"),
    ] {
        let reply = server.request(method, target).body("more than ten bytes").without_secret().send();
        assert_eq!(reply.status, 401, "{method} {target}");
        assert_eq!(reply.text(), "Unauthorized. Provide correct \"x-open-runtimes-secret\" header.");
        assert_eq!(reply.header("content-type"), Some("text/plain"));
    }
    assert_eq!(server.instances(), 0);
}

/// Calls each path, which must be answered with an empty 500, and looks for a text in the execution's log.
fn raises(server: &Server, function: &str, cases: &[(&str, &str)]) {
    for (path, logged) in cases {
        let id = format!("{function}{}", path.replace('/', "."));
        let reply = server.request("GET", &format!("/{function}{path}")).header("x-request-id", &id).send();
        assert_eq!((reply.status, reply.text().as_str()), (500, ""), "{path}");
        assert_eq!(reply.header("content-length"), Some("0"), "{path}");
        let lines = server.execution(&id);
        let found = lines.iter().any(|line| line.starts_with("error: ") && line.contains(logged));
        assert!(found, "{path}: no `{logged}` in {lines:#?}");
    }
}

#[test]
fn a_function_that_raises_tells_its_log_and_not_the_client() {
    let code = r"
const cases = {
  '/error': () => { throw new Error('secret detail'); },
  '/typed': () => null.x,
  '/text': () => { throw 'just text'; },
  '/object': () => { throw { code: 7 }; },
  '/undefined': () => { throw undefined; },
  '/rejected': () => Promise.reject(new Error('later')),
  '/cause': () => { throw new Error('outer', { cause: new Error('inner') }); },
  '/stray': () => new Promise(() => setTimeout(() => { throw new Error('from a timer'); })),
  '/unhandled': () => new Promise(() => { Promise.reject(new Error('unhandled one')); }),
  '/nothing': () => {},
  '/null': () => null,
  '/array': () => [1],
  '/number': () => 5,
  '/status': ({ res }) => res.text('', 99),
  '/status600': ({ res }) => res.text('', 600),
  '/name': ({ res }) => res.text('', 200, { 'a b': 'c' }),
  '/value': ({ res }) => res.text('', 200, { a: 'c\rd' }),
  '/json': ({ res }) => res.json(undefined),
  '/body': ({ res }) => res.text({}),
  '/state': ({ state }) => state.get(),
};
export default (context) => cases[context.req.path](context);";
    let home = Home::new();
    let server = home.node("f", "", code).start(&[]);
    let cases = [
        ("/error", "secret detail\n    at "),
        ("/error", "index.mjs:3:"),
        ("/typed", "TypeError"),
        ("/text", "just text"),
        ("/object", "{\"code\":7}"),
        ("/undefined", "undefined"),
        ("/rejected", "later"),
        ("/cause", "caused by: Error: inner"),
        ("/stray", "from a timer"),
        ("/unhandled", "unhandled one"),
        ("/nothing", "Return statement missing. return context.res.empty() if no response is expected."),
        ("/null", "Return statement missing."),
        ("/array", "an array"),
        ("/number", "a number"),
        ("/status", "99"),
        ("/status600", "status 600"),
        ("/name", "`a b` is not a header name"),
        ("/value", "control character"),
        ("/json", "undefined"),
        ("/body", "use res.json"),
        ("/state", "this function has no [state] in its function.toml"),
    ];
    raises(&server, "f", &cases);
    assert_eq!(server.starts("f"), 1, "the instance outlives all of them");
}

#[test]
fn a_python_function_that_raises() {
    let code = r"
async def later():
    raise ValueError('async one')

def main(context):
    path = context.req.path
    if path == '/async':
        return later()
    if path == '/nothing':
        return None
    if path == '/value':
        return 5
    if path == '/exit':
        raise SystemExit(3)
    raise KeyError('secret detail')
";
    let home = Home::new();
    let server = home.python("p", "", code).start(&[]);
    let cases = [
        ("/raise", "KeyError: 'secret detail'"),
        ("/raise", "main.py\", line 15"),
        ("/async", "ValueError: async one"),
        ("/nothing", "Return statement missing."),
        ("/value", "int"),
    ];
    raises(&server, "p", &cases);
}

#[test]
fn logs_are_for_operators_only() {
    let home = Home::new();
    let code = "export default ({ res, log, error }) => { log('a', { b: 1 }); error('c'); console.log('d'); return res.empty(); };";
    let server = home.node("f", "", code).start(&["--admin-secret", "operator"]);
    let _ = server.request("GET", "/f").header("x-request-id", "one").send();
    for key in ["", "Bearer ", "Bearer wrong", "Bearer Operator", "operator", "Basic operator"] {
        let reply = server.request("GET", "/_/executions/one").header("authorization", key).send();
        assert_eq!(reply.problem(), "401 unauthorized front", "{key}");
    }
    let secret = format!("Bearer {}", server.secret.as_ref().unwrap());
    let callers = server.request("GET", "/_/executions/one").header("authorization", &secret).send();
    assert_eq!(callers.status, 401, "the callers' secret opens nothing here");
    let ask = |id: &str| {
        server
            .request("GET", &format!("/_/executions/{id}"))
            .header("authorization", "Bearer operator")
            .send()
    };
    assert_eq!(ask("two").problem(), "404 unknown-execution front");
    let record = ask("one").json();
    let expected = serde_json::json!([
        {"level": "log", "text": "a {\"b\":1}"}, {"level": "error", "text": "c"}, {"level": "native", "text": "d"},
    ]);
    assert_eq!(record["lines"], expected);
    assert_eq!(record["function"], "f");
}

#[test]
fn an_instance_killed_in_mid_call_ends_its_calls_and_no_others() {
    let home = Home::new();
    home.node("f", "max-instances = 1", &GATE.replace("'begin' + n", "'begin ' + process.pid"))
        .node("other", "", HELLO);
    let server = home.start(&[]);
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..3).map(|_| scope.spawn(|| server.get("/f"))).collect();
        eventually("three calls run", || (home.lines("f").len() == 3).then_some(()));
        let pid: i32 = home.lines("f")[0].strip_prefix("begin ").unwrap().parse().unwrap();
        common::signal(pid, Signal::KILL);
        for call in calls {
            let reply = call.join().unwrap();
            assert_eq!(reply.problem(), "502 instance-ended function");
            assert!(reply.detail().contains("was killed by signal 9"), "{}", reply.detail());
        }
    });
    std::fs::write(home.file("f.go"), "").unwrap();
    assert_eq!(server.ok("/f").text(), "done", "the next call gets a new instance");
    assert_eq!(server.ok("/other").text(), "hello");
}

#[test]
fn an_instance_that_dies_in_a_streamed_answer_breaks_it_off() {
    let code = r"
async function* dies() { yield 'begun'; await new Promise((r) => setTimeout(r, 50)); process.exit(1); }
export default ({ res }) => res.stream(dies());";
    let home = Home::new();
    let server = home.node("f", "", code).start(&[]);
    let reply = server.get("/f");
    assert_eq!((reply.status, reply.text().as_str(), reply.broken), (200, "begun", true));
}

#[test]
fn a_mistake_in_a_manifest_names_file_and_line_and_hurts_no_other() {
    let home = Home::new();
    let node = "runtime = \"node\"\nentrypoint = \"index.mjs\"\n";
    let cases = [
        ("unknown-key", format!("{node}colour = 1\n"), "function.toml:3: unknown field `colour`"),
        (
            "duration",
            format!("{node}timeout = \"15 parsecs\"\n"),
            "function.toml:3: `15 parsecs` is not a duration",
        ),
        ("size", format!("{node}\nmemory = \"1MiB\"\n"), "function.toml:4: `1MiB` is too little"),
        ("syntax", format!("{node}timeout = \n"), "function.toml:3: "),
        ("type", format!("{node}concurrency = \"many\"\n"), "function.toml:3: invalid type"),
        (
            "range",
            format!("{node}concurrency = 0\n"),
            "function.toml:3: concurrency must be from 1 to 1024, not 0",
        ),
        (
            "runtime",
            "\nruntime = \"cobol\"\n".to_owned(),
            "function.toml:2: there is no runtime `cobol`; there are: ",
        ),
        (
            "no-runtime",
            "entrypoint = \"index.mjs\"\n".to_owned(),
            "runtime is missing; write for example runtime = \"node\"",
        ),
        (
            "entrypoint",
            "runtime = \"node\"\nentrypoint = \"x.js\"\n".to_owned(),
            "function.toml:2: entrypoint `x.js` does not exist",
        ),
        (
            "outside",
            "runtime = \"node\"\nentrypoint = \"../good/index.mjs\"\n".to_owned(),
            "must be a path inside",
        ),
        (
            "instances",
            format!("{node}min-instances = 5\nmax-instances = 2\n"),
            "max-instances (2) is below min-instances (5)",
        ),
        ("access", format!("{node}access = \"all\"\n"), "function.toml:3: unknown variant `all`"),
        (
            "state",
            format!("{node}[state]\nkey = \"{{cookie.a}}\"\n"),
            "function.toml:4: the key has the unknown part `{cookie.a}`",
        ),
        ("empty", String::new(), "runtime is missing; write for example runtime = \"node\""),
        ("binary", "\u{0}\u{1}".to_owned(), "function.toml:1: "),
    ];
    home.node("good", "", HELLO);
    for (name, manifest, _) in &cases {
        home.write(name, "index.mjs", HELLO).write(name, "function.toml", manifest);
    }
    let server = home.start(&[]);
    for (name, _, expected) in &cases {
        let reply = server.get(&format!("/{name}"));
        assert_eq!(reply.problem(), "503 broken-function function", "{name}");
        assert!(reply.detail().contains(expected), "{name}: {}", reply.detail());
        assert!(
            !reply.detail().contains(home.path().to_str().unwrap()) || *name == "entrypoint",
            "no paths of ours: {}",
            reply.detail()
        );
    }
    assert_eq!(server.ok("/good").text(), "hello");
}

#[test]
fn functions_that_do_not_load() {
    let home = Home::new();
    home.node("syntax", "", "export default () => {\n  const = 1;\n};")
        .node("import", "", "import './missing.mjs';\nexport default () => 1;")
        .python("syntax-py", "", "def main(context)\n    pass\n")
        .python("raises-py", "", "raise RuntimeError('no database')\n")
        .python("none-py", "", "x = 1\n");
    let server = home.start(&[]);
    for (name, part, expected) in [
        ("syntax", "function", "Syntax error in index.mjs: Unexpected token '=' (index.mjs:2)"),
        ("import", "function", "Failed to load module: Cannot find module"),
        ("syntax-py", "function", "Syntax error in main.py: "),
        ("raises-py", "function", "Failed to load module: "),
        ("none-py", "function", "Function signature invalid."),
    ] {
        let reply = server.get(&format!("/{name}"));
        assert_eq!(reply.problem(), format!("503 cannot-start {part}"), "{name}: {}", reply.text());
        assert!(reply.detail().contains(expected), "{name}: {}", reply.detail());
        assert!(reply.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok_and(|s| s >= 1)));
    }
}

#[test]
fn a_function_that_exits_while_it_loads_is_quoted() {
    let home = Home::new();
    home.node("fun", "", "console.log('reading it'); console.error('no license'); process.exit(4);").python(
        "pun",
        "",
        "import os, sys\nprint('no license', file=sys.stderr)\nos._exit(4)\n",
    );
    let server = home.start(&[]);
    for name in ["fun", "pun"] {
        let reply = server.get(&format!("/{name}"));
        assert_eq!(reply.problem(), "503 cannot-start adapter");
        assert!(
            reply.detail().starts_with("it exited with code 4 while it was starting"),
            "{}",
            reply.detail()
        );
        assert!(reply.detail().contains("no license"), "its last words: {}", reply.detail());
    }
}

#[test]
fn a_function_that_takes_too_long_to_load() {
    let home = Home::new();
    home.node("fun", "", "await new Promise((r) => setTimeout(r, 60_000));\nexport default () => 1;");
    let server = home.start(&["--start-timeout", "1s"]);
    let reply = server.get("/fun");
    assert_eq!(reply.problem(), "503 cannot-start adapter");
    assert!(reply.detail().contains("in time (1s)"), "{}", reply.detail());
}

#[test]
fn a_function_that_did_not_load_is_tried_again() {
    let code = "import fs from 'node:fs';\nif (!fs.existsSync(process.env.HOME_FILE)) throw new Error('not yet');\nexport default ({ res }) => res.text('up');";
    let home = Home::new();
    let server = home.node("f", "", code).start(&[]);
    assert_eq!(server.get("/f").problem(), "503 cannot-start function");
    std::fs::write(home.file("f"), "").unwrap();
    let reply =
        eventually("it is started again", || Some(server.get("/f")).filter(|reply| reply.status == 200));
    assert_eq!(reply.text(), "up");
}

#[test]
fn deadlines_say_what_was_waited_for() {
    let home = Home::new();
    let manifest = "timeout = \"2s\"\nmax-instances = 1\nconcurrency = 1";
    home.node("busy", manifest, GATE)
        .node("entity", "timeout = \"2s\"\n[state]\nkey = \"one\"", GATE)
        .node("yields", "timeout = \"300ms\"\nmax-instances = 1", "export default ({ req, res }) => req.path === '/pid' ? res.text(String(process.pid)) : new Promise(() => {});");
    let server = home.start(&[]);
    for (name, part, text) in [
        ("busy", "adapter", "no instance was ready; all are busy or starting"),
        ("entity", "function", "it was still waiting for earlier calls on the same state"),
    ] {
        let target = format!("/{name}");
        warm(&home, &server, name);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| server.get(&target));
            eventually("the first call runs", || home.lines(name).pop());
            let begun = Instant::now();
            let late = server.get(&target);
            // The second may also get its turn in the moment after the first one's deadline, and then be late itself.
            assert_eq!(late.status, 504);
            assert!(begun.elapsed() < Duration::from_secs(20), "an answer at about the deadline");
            let first = first.join().unwrap();
            assert_eq!(first.problem(), "504 deadline function");
            assert_eq!(
                first.detail(),
                "The function's timeout of 2s passed while the function had not answered."
            );
            // Or its turn, but no instance, for the first one's is not given away before its call has ended.
            let turn = name == "entity" && late.problem() == "504 deadline adapter";
            if home.lines(name).len() == 1 && !turn {
                assert_eq!(late.problem(), format!("504 deadline {part}"));
                assert!(late.detail().contains(text), "{}", late.detail());
            }
        });
    }
    let pid =
        || Some(server.get("/yields/pid")).filter(|reply| reply.status == 200).map(|reply| reply.text());
    let first = eventually("it is warm", pid);
    let id = "late-one";
    let late = server.request("GET", "/yields").header("x-request-id", id).send();
    assert_eq!(late.problem(), "504 deadline function");
    assert_eq!(server.execution(id), ["error: Execution timed out."]);
    assert_eq!(pid(), Some(first), "code that yields does not cost its instance");
}

#[test]
fn a_full_queue_is_told_at_once() {
    let home = Home::new();
    let one = "max-instances = 1\nconcurrency = 1\ntimeout = \"60s\"";
    home.node("f", one, GATE)
        .node("s", &format!("{one}\n[state]\nkey = \"{{query.id}}\""), GATE)
        .node("other", "", HELLO);
    let server = home.start(&["--queue", "2"]);
    for target in ["/f", "/s?id=1"] {
        let name = &target[1..2];
        std::thread::scope(|scope| {
            let first = scope.spawn(|| server.get(target));
            eventually("the first call runs", || home.lines(name).pop());
            // Two may wait; of five more at the same time three are refused, and the refused are answered first.
            let calls: Vec<_> = (0..5).map(|_| scope.spawn(|| server.get(target))).collect();
            eventually("three are refused", || {
                (calls.iter().filter(|call| call.is_finished()).count() == 3).then_some(())
            });
            assert_eq!(server.ok("/other").text(), "hello", "others are served");
            std::fs::write(home.file(&format!("{name}.go")), "").unwrap();
            let replies: Vec<_> = calls.into_iter().chain([first]).map(|call| call.join().unwrap()).collect();
            let (served, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 200);
            assert_eq!((served.len(), refused.len()), (3, 3), "{target}");
            for reply in refused {
                assert_eq!(reply.problem(), "429 queue-full front");
                assert_eq!(reply.header("retry-after"), Some("1"));
                assert_eq!(reply.detail(), "2 calls wait for this function already");
            }
        });
    }
}

#[test]
fn what_is_not_http_is_answered_and_ends_the_connection() {
    let home = Home::new();
    let server = home.node("echo", "access = \"public\"", ECHO).start(&[]);
    let many = (0..300).map(|n| format!("x-{n}: 1")).collect::<Vec<_>>().join("\r\n") + "\r\n";
    let huge = "x".repeat(100 << 10);
    for (what, bytes, status) in [
        ("no request", "hello\r\n\r\n".to_owned(), 400),
        ("a version of tomorrow", "GET /echo HTTP/3.7\r\n\r\n".to_owned(), 400),
        ("a space in a header name", "GET /echo HTTP/1.1\r\nhost: a\r\na b: c\r\n\r\n".to_owned(), 400),
        (
            "a length that is none",
            "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n".to_owned(),
            400,
        ),
        (
            "two lengths",
            "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab".to_owned(),
            400,
        ),
        ("too many headers", format!("GET /echo HTTP/1.1\r\nhost: a\r\n{many}\r\n"), 431),
        ("a huge header", format!("GET /echo HTTP/1.1\r\nhost: a\r\nx: {huge}\r\n\r\n"), 431),
        ("a huge target", format!("GET /echo/{huge} HTTP/1.1\r\nhost: a\r\n\r\n"), 414),
    ] {
        let mut conn = server.connect();
        let _ = conn.try_write(bytes);
        let reply = conn.try_head().unwrap_or_else(|| panic!("{what}: no answer"));
        assert!(reply.status == status || (status == 414 && reply.status == 431), "{what}: {}", reply.status);
        assert_eq!(server.ok("/echo").status, 200, "the next connection is served");
    }
}

/// The front of runtimes needs containers. That is for the operator to change, so it is told in production, too.
#[test]
fn callers_of_the_executor_api_hear_that_there_are_no_containers() {
    let home = Home::new();
    let mut command = home.command();
    command.args(["--port", "0", "--adapter", "process"]).env("OPR_EXECUTOR_SECRET", "key");
    let server = home.spawn(command);
    let post = |path: &str, body: &'static str| {
        let request = server.request("POST", path).header("authorization", "Bearer key");
        let reply = request.header("content-type", "application/json").body(body).send();
        assert_eq!(reply.status, 500, "{}", reply.text());
        reply.json()["message"].as_str().unwrap().to_owned()
    };
    let why = "runtimes are containers, and this executor runs processes: start it with --adapter docker";
    assert_eq!(post("/v1/runtimes", r#"{ "runtimeId": "a", "image": "debian" }"#), why);
    let called = post("/v1/runtimes/b/executions", r#"{ "image": "debian", "source": "/x" }"#);
    assert!(called.ends_with(why), "{called}");
}
