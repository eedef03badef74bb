//! What the function is asked, and what happens to the connection: R-97 to R-101.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::answers::{assert_works, run, seen, seen_header};
use crate::common::{Reply, eventually};
use crate::harness::{Api, order, problem};

fn curl(number: u8) -> String {
    format!(
        "500 general_unknown Internal curl error has occurred within the executor! Error Number: {number}"
    )
}

/// A request of which the server died: its end comes as an end or as a reset.
#[track_caller]
fn assert_died(reply: &Reply) {
    let told = problem(reply);
    assert!(told == curl(52) || told == curl(56), "{told}");
}

/// An executor with one v5 runtime `a`.
fn api() -> Api {
    let api = Api::start();
    api.guest("a", "v5");
    api
}

#[test]
fn r_97_headers_in_order() {
    let api = api();
    let key = api.info("a").unwrap()["key"].as_str().unwrap().to_owned();
    // As text: the order of names counts.
    let parameters = r#"{
        "path": "/echo", "method": "POST", "body": "hi", "timeout": 9,
        "headers": {"x-one": "1", "X-Two": "zwei", "authorization": "Bearer mine", "x-three": 3, "x-empty": "",
                    "user-agent": "caller/1"}
    }"#;
    let reply = api
        .request("POST", "/v1/runtimes/a/executions")
        .header("content-type", "application/json")
        .header("accept", "application/json")
        .body(parameters)
        .send();
    let document = reply.json();
    let seen = seen(&document);
    assert_eq!(
        (&seen["method"], &seen["target"], &seen["text"]),
        (&json!("POST"), &json!("/echo"), &json!("hi"))
    );
    let headers: Vec<String> = seen["headers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| format!("{}: {}", pair[0].as_str().unwrap().to_lowercase(), pair[1].as_str().unwrap()))
        .collect();
    let host = headers[0].strip_prefix("host: ").unwrap();
    assert!(host.ends_with(":3000"), "{host}");
    let mut expected = vec![
        format!("host: {host}"),
        "x-one: 1".into(),
        "x-two: zwei".into(),
        "authorization: Bearer mine".into(),
        format!("authorization: Basic {}", STANDARD.encode(format!("opr:{key}"))),
        "x-three: 3".into(),
        "x-empty: ".into(),
        "user-agent: caller/1".into(),
        "x-open-runtimes-logging: enabled".into(),
        "x-open-runtimes-log-transport: head".into(),
        format!("x-open-runtimes-secret: {key}"),
        "x-open-runtimes-timeout: 8".into(),
        "content-type: application/x-www-form-urlencoded".into(),
        "accept: */*".into(),
        "content-length: 2".into(),
    ];
    // A warm runtime leaves the function all of its 9 s but a blink.
    let told = headers.iter().find(|line| line.starts_with("x-open-runtimes-timeout")).unwrap().clone();
    assert!(["x-open-runtimes-timeout: 8", "x-open-runtimes-timeout: 9"].contains(&told.as_str()), "{told}");
    expected[11] = told;
    assert_eq!(headers, expected);
}

#[test]
fn r_97_methods_paths_and_queries() {
    let api = api();
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let seen = seen(&run(&api, "a", &json!({ "path": "/echo", "method": method })));
        assert_eq!((&seen["method"], &seen["text"]), (&json!(method), &json!("")));
        assert_eq!(seen_header(&seen, "content-type").len(), 0, "{method} has no body");
    }
    for (path, target) in [
        ("/", "/"),
        ("echo", "/echo"),
        ("/echo/a/../b//c", "/echo/a/../b//c"),
        ("/echo?a=1&a=2&b=%20%2F&c", "/echo?a=1&a=2&b=%20%2F&c"),
        ("/echo?q=a+b;c=d#fragment", "/echo?q=a+b;c=d"),
        ("?x=1", "/?x=1"),
        ("/echo/ä b", "/echo/%C3%A4%20b"),
        ("//echo/double", "//echo/double"),
        ("/echo/\r\nx-smuggled: 1", "/echo/%0D%0Ax-smuggled:%201"),
    ] {
        let seen = seen(&run(&api, "a", &json!({ "path": path })));
        assert_eq!(seen["target"], target, "{path}");
        assert!(seen_header(&seen, "x-smuggled").is_empty());
    }
    assert_eq!(seen(&run(&api, "a", &json!({})))["target"], "/", "the default");
    let longest = format!("/echo?{}", "x".repeat(2048 - 6));
    assert_eq!(seen(&run(&api, "a", &json!({ "path": longest })))["target"], longest.as_str());
    let above = api.execute("a", &json!({ "path": format!("{longest}x") }));
    assert!(problem(&above).starts_with("400 general_unknown Invalid `path` param:"), "{}", above.text());
}

#[test]
fn r_97_bodies() {
    let api = api();
    for body in ["0", "false", " ", "äöü\0\u{1f600}", "[]"] {
        let seen = seen(&run(&api, "a", &json!({ "path": "/echo", "method": "POST", "body": body })));
        assert_eq!(seen["text"], body);
        assert_eq!(seen_header(&seen, "content-length"), [body.len().to_string()]);
    }
    // The largest one, through multipart, which needs no more than its bytes.
    let all: Vec<u8> = (0..20_971_520u32).map(|n| (n % 251) as u8).collect();
    let fields: [(&str, &[u8]); 3] = [("path", b"/body"), ("method", b"PUT"), ("body", &all)];
    let target = "/v1/runtimes/a/executions";
    let reply = api.multipart(target, &[("accept", "multipart/form-data")], &fields);
    let document = crate::answers::multipart(&reply);
    assert!(document[2].1 == all, "the largest body comes back");
    let above = [all, vec![b'x']].concat();
    let fields: [(&str, &[u8]); 3] = [("path", b"/body"), ("method", b"PUT"), ("body", &above)];
    // Characters count, and bytes that form none as one each: these are all at least 20,971,521 of them.
    let ascii = vec![b'x'; above.len()];
    let ascii: [(&str, &[u8]); 2] = [("path", b"/body"), ("body", &ascii)];
    assert!(api.multipart(target, &[], &fields).status != 500);
    assert!(
        problem(&api.multipart(target, &[], &ascii)).starts_with("400 general_unknown Invalid `body` param:")
    );
}

#[test]
fn r_97_what_the_caller_may_replace() {
    let api = api();
    let with = |headers: Value| {
        seen(&run(&api, "a", &json!({ "path": "/echo", "method": "POST", "body": "x", "headers": headers })))
    };
    let plain = with(json!({}));
    assert_eq!(seen_header(&plain, "accept"), ["*/*"]);
    let given =
        with(json!({ "host": "shop.example:81", "Content-Type": "text/plain", "ACCEPT": "image/png" }));
    assert_eq!(seen_header(&given, "host"), ["shop.example:81"]);
    assert_eq!(seen_header(&given, "content-type"), ["text/plain"]);
    assert_eq!(seen_header(&given, "accept"), ["image/png"]);
    // What is between executor and runtime is not the caller's.
    let reserved = with(json!({
        "x-open-runtimes-secret": "guessed", "x-open-runtimes-timeout": "9999", "x-open-runtimes-logging": "no",
        "x-open-runtimes-mine": "1", "transfer-encoding": "chunked", "content-length": "100", "connection": "x-a",
        "x-a": "1",
    }));
    let key = api.info("a").unwrap()["key"].as_str().unwrap().to_owned();
    assert_eq!(seen_header(&reserved, "x-open-runtimes-secret"), [key]);
    assert_eq!(seen_header(&reserved, "x-open-runtimes-logging"), ["enabled"]);
    assert_eq!(seen_header(&reserved, "x-open-runtimes-timeout").len(), 1);
    assert_eq!(seen_header(&reserved, "content-length"), ["1"]);
    assert!(seen_header(&reserved, "transfer-encoding").is_empty());
    let off = json!({ "path": "/echo", "logging": false });
    assert_eq!(seen_header(&seen(&run(&api, "a", &off)), "x-open-runtimes-logging"), ["disabled"]);
    let short = json!({ "path": "/echo", "timeout": 1 });
    assert_eq!(seen_header(&seen(&run(&api, "a", &short)), "x-open-runtimes-timeout"), ["1"]);
    // A list is a header that repeats; text with JSON is a map, too.
    let repeated = with(json!({ "x-r": ["1", "2"] }));
    assert_eq!(seen_header(&repeated, "x-r"), ["1", "2"]);
    let as_text = with(json!("{\"x-t\":\"text\"}"));
    assert_eq!(seen_header(&as_text, "x-t"), ["text"]);
    for bad in [
        json!({ "x y": "1" }),
        json!({ "x-a": "a\r\nx-b: c" }),
        json!({ "": "1" }),
        json!("nonsense"),
        json!(5),
    ] {
        let problem = problem(&api.execute("a", &json!({ "headers": bad })));
        assert!(problem.starts_with("400 general_unknown Invalid `headers` param:"), "{bad}: {problem}");
    }
    assert_works(&api, "a");
}

#[test]
fn r_97_redirects_are_answers() {
    let api = api();
    let document = run(&api, "a", &json!({ "path": "/redirect" }));
    assert_eq!(document["statusCode"], 302);
    assert_eq!(document["headers"]["location"], "http://localhost:3000/text");
}

#[test]
fn r_97_the_hard_limit_is_five_seconds_later() {
    let api = api();
    assert_works(&api, "a");
    let late = run(&api, "a", &json!({ "path": "/sleep?s=2", "timeout": 1 }));
    assert_eq!(late["body"], "awake", "the function itself says when time is up");
    let reply = api.execute("a", &json!({ "path": "/sleep?s=60", "timeout": 1 }));
    assert_eq!(problem(&reply), curl(28));
    assert_works(&api, "a");
}

#[test]
fn r_98_head_has_no_body() {
    let api = api();
    for path in ["/text", "/big?n=100000", "/status?code=404&body=gone"] {
        let document = run(&api, "a", &json!({ "path": path, "method": "HEAD" }));
        assert_eq!(document["body"], "", "{path}");
    }
    let document = run(&api, "a", &json!({ "path": "/text", "method": "HEAD" }));
    assert_eq!(
        (&document["statusCode"], &document["headers"]["content-type"]),
        (&json!(200), &json!("text/plain"))
    );
    assert_works(&api, "a");
}

/// A v2 runtime `b`, started by the image's own command.
fn api_v2() -> Api {
    let api = Api::start();
    api.created("b", json!({ "version": "v2", "variables": { "CREATED": "with" } }));
    api
}

#[test]
fn r_99_the_envelope_of_v2() {
    let api = api_v2();
    let parameters = json!({
        "path": "/ignored", "method": "PUT", "body": "päyload", "headers": { "x-ignored": "1" },
        "variables": { "A": "1", "B": true },
    });
    let document = run(&api, "b", &parameters);
    assert_eq!((&document["statusCode"], &document["headers"]), (&json!(200), &json!({})));
    let seen = seen(&document);
    let envelope = &seen["envelope"];
    assert_eq!(envelope["variables"], json!({ "A": "1", "B": "1" }));
    assert_eq!((&envelope["payload"], &envelope["headers"]), (&json!("päyload"), &json!({})));
    assert_eq!((&seen["method"], &seen["target"]), (&json!("POST"), &json!("/")));
    let key = api.info("b").unwrap()["key"].as_str().unwrap().to_owned();
    assert_eq!(seen_header(&seen, "x-internal-challenge"), [key.as_str()]);
    assert_eq!(seen_header(&seen, "content-type"), ["application/json"]);
    assert_eq!(seen_header(&seen, "host"), ["null"]);
    assert!(seen_header(&seen, "x-ignored").is_empty() && seen_header(&seen, "authorization").is_empty());
    let environment = &seen["environment"];
    for (name, value) in [
        ("INTERNAL_RUNTIME_KEY", key.as_str()),
        ("INERNAL_EXECUTOR_HOSTNAME", &api.host),
        ("CREATED", "with"),
        ("CI", "true"),
    ] {
        assert_eq!(environment[name], value, "{environment}");
    }
    assert_eq!(environment["OPEN_RUNTIMES_SECRET"], Value::Null);
    assert_eq!(seen["directory"], "/usr/code");
}

#[test]
fn r_99_answers_of_v2() {
    let api = api_v2();
    let ask = |payload: &str| run(&api, "b", &json!({ "body": payload }));
    assert_eq!(ask("text?body=plain")["body"], "plain");
    let object = ask("object")["body"].as_str().unwrap().to_owned();
    assert_eq!(serde_json::from_str::<Value>(&object).unwrap(), json!({ "a": [1, "ü/"], "b": null }));
    assert_eq!(ask("list")["body"], "[1,2]");
    let lines = ask("logs?log=out&error=err");
    assert_eq!((&lines["logs"], &lines["errors"]), (&json!("out"), &json!("err")));
    assert_eq!(ask("status?code=500&body=bad")["statusCode"], 500);
    for (n, kept) in [(1_000_000, 1_000_000), (1_000_001, 1_000_000)] {
        let cut = ask(&format!("logs?logs={n}&errors={n}"));
        let lengths = ["logs", "errors"].map(|field| cut[field].as_str().unwrap().len());
        assert_eq!(lengths, [kept, kept]);
    }
    let reply = api.execute("b", &json!({ "body": "plain" }));
    assert_eq!(problem(&reply), curl(56), "an answer that is no envelope");
    assert_eq!(ask("text?body=after")["body"], "after");
}

#[test]
fn r_100_transport_failures_have_curls_numbers() {
    let api = api();
    for (path, number) in [("/close", 52), ("/reset", 56), ("/garbage", 56), ("/half", 56)] {
        assert_eq!(problem(&api.execute("a", &json!({ "path": path }))), curl(number), "{path}");
        assert_works(&api, "a");
    }
    let production = Api::with(&[("OPR_EXECUTOR_ENV", "production")]);
    production.guest("a", "v5");
    let reply = production.execute("a", &json!({ "path": "/close" }));
    assert_eq!(problem(&reply), "500 general_unknown Internal server error.");
    assert_eq!(reply.json()["trace"], Value::Null);
    assert_works(&production, "a");
}

/// A main process that goes on when the server in it has ended.
const SURVIVOR: &str = "guest v5; tail -f /dev/null";

#[test]
fn r_100_a_refused_connection_is_tried_again() {
    let api = Api::with(&[("OPR_EXECUTOR_RETRY_DELAY_MS", "50")]);
    api.created("a", json!({ "runtimeEntrypoint": SURVIVOR }));
    assert_works(&api, "a");
    assert_died(&api.execute("a", &json!({ "path": "/exit" })));
    // Nobody listens any more. First for ever, then until somebody does.
    let reply = api.execute("a", &json!({ "timeout": 1 }));
    let told = problem(&reply);
    assert!(told == curl(7) || told.starts_with("400 runtime_timeout"), "{told}");
    std::thread::scope(|scope| {
        let call = scope.spawn(|| run(&api, "a", &json!({ "path": "/text", "timeout": 60 })));
        api.printed("a", "(guest v5 >/dev/null 2>&1 &)");
        assert_eq!(call.join().unwrap()["body"], "hello");
    });
}

#[test]
fn r_100_a_dead_runtime_stays_and_says_so() {
    let api = api();
    assert_works(&api, "a");
    assert_died(&api.execute("a", &json!({ "path": "/exit?code=3" })));
    eventually("it has ended", || api.processes("a").is_empty().then_some(()));
    let reply = api.execute("a", &json!({ "timeout": 60 }));
    let told = problem(&reply);
    assert!(told == curl(6) || told == curl(7), "{told}");
    let trace = reply.json()["trace"].to_string();
    assert!(trace.contains("code 3"), "{trace}");
    assert!(api.info("a").is_some(), "R-151: it stays until it is deleted");
    assert_eq!(problem(&api.create("a", json!({}))), "409 runtime_conflict Runtime already exists ");
    assert_eq!(api.delete("a").status, 200);
    api.guest("a", "v5");
    assert_works(&api, "a");
}

#[test]
fn r_100_a_runtime_that_restarts_is_waited_for() {
    let api = Api::start();
    api.json(
        "POST",
        "/v1/runtimes",
        &order("a", json!({ "runtimeEntrypoint": "guest v5", "restartPolicy": "always" })),
    );
    let first = seen(&api.executed("a", "/echo"))["started"].clone();
    for _ in 0..2 {
        assert_died(&api.execute("a", &json!({ "path": "/exit" })));
        let document = run(&api, "a", &json!({ "path": "/echo", "timeout": 60 }));
        assert_ne!(seen(&document)["started"], first);
    }
}

#[test]
fn r_101_every_status_is_a_success() {
    let api = api();
    for code in [200, 201, 204, 301, 304, 400, 401, 404, 413, 429, 500, 502, 503, 504, 599, 999] {
        let document = run(&api, "a", &json!({ "path": format!("/status?code={code}&body=b") }));
        assert_eq!(document["statusCode"], code);
        assert_eq!(document["body"], if [204, 304].contains(&code) { "" } else { "b" }, "{code}");
    }
}
