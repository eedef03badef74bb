//! The four versions side by side, and our own images with the command lines of real hosts.

use std::sync::Mutex;

use serde_json::{Value, json};

use crate::answers::{run, run_with, seen, streamed, text, whole};
use crate::common::{Home, at_once};
use crate::harness::{Api, problem};
use crate::images;

#[test]
fn four_versions_side_by_side() {
    let api = Api::start();
    let source = api.source("code.tar.gz", &[("x", "y")]);
    let documents = at_once(4, |n| {
        let version = ["v2", "v3", "v4", "v5"][n];
        let parameters = json!({
            "image": images::guest(), "source": source, "version": version, "timeout": 60,
            "runtimeEntrypoint": format!("guest {version}"), "entrypoint": "main.py",
            "path": "/logs?log=out&error=err", "body": "logs?log=out&error=err", "method": "POST",
        });
        run(&api, version, &parameters)
    });
    for (document, version) in documents.iter().zip(["v2", "v3", "v4", "v5"]) {
        assert_eq!(document["statusCode"], 200, "{version}");
        assert_eq!((&document["logs"], &document["errors"]), (&json!("out"), &json!("err")), "{version}");
        assert_eq!(api.info(version).unwrap()["version"], version);
        let headers = document["headers"].to_string();
        assert!(!headers.contains("x-open-runtimes"), "{headers}");
    }
    for (id, names) in [
        ("v2", ["INTERNAL_RUNTIME_KEY", "INTERNAL_RUNTIME_ENTRYPOINT"]),
        ("v4", ["OPEN_RUNTIMES_SECRET", "OPEN_RUNTIMES_ENTRYPOINT"]),
        ("v5", ["OPEN_RUNTIMES_SECRET", "OPEN_RUNTIMES_ENTRYPOINT"]),
    ] {
        let seen = seen(&run(&api, id, &json!({ "path": "/echo", "body": "echo", "method": "POST" })));
        assert_eq!(seen["environment"][names[0]], api.info(id).unwrap()["key"], "{id}");
        assert_eq!(seen["environment"][names[1]], "main.py", "{id}");
    }
    // v3: the lines are in headers, so nothing is shared.
    assert_eq!(api.printed("v3", "ls -d /mnt/logs 2>/dev/null | cat"), "");
    assert_eq!(api.printed("v4", "ls /mnt/logs"), "");
    for id in ["v2", "v3", "v4", "v5"] {
        let reply = run_with(&api, id, "/", &[("x-executor-response-format", "0.12.0")]);
        assert_eq!(text(&whole(streamed(&reply)), "statusCode"), "200", "{id}");
    }
}

#[test]
fn versions_are_the_operators_choice() {
    let api = Api::with(&[("OPR_EXECUTOR_RUNTIME_VERSIONS", "v2,v5")]);
    for (version, known) in
        [("v5", true), ("V5", true), ("v2", true), ("v3", false), ("v6", false), ("", false)]
    {
        let reply = api.execute("a", &json!({ "version": version }));
        let told = problem(&reply);
        if known {
            assert!(told.starts_with("404 runtime_not_found"), "{version}: {told}");
        } else {
            let expected = "400 general_unknown Invalid `version` param: Value must be one of (v2, v5)";
            assert_eq!(told, expected, "{version}");
        }
    }
}

/// The image of a language, built by this very binary once per run.
fn own_image(language: &str) -> String {
    static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let tag = format!("executor-v1-exec/{language}:v5");
    let mut built = BUILT.lock().unwrap();
    if !built.contains(&tag) {
        let output = Home::new().command().args(["image", language, "--tag", &tag]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        built.push(tag.clone());
    }
    tag
}

const FUNCTION: &str = "
export default async function ({ req, res, log, error }) {
  log('called', req.method, req.path);
  error('not really');
  if (req.path === '/throw') throw new Error('on purpose');
  if (req.path === '/binary') return res.binary(Buffer.from([0, 255, 1, 254]));
  if (req.path === '/slow') await new Promise((done) => setTimeout(done, 60000));
  return res.json(
    { path: req.path, query: req.query, method: req.method, body: req.bodyText, mine: process.env.MINE, header: req.headers['x-mine'] },
    201,
    { 'x-key': 'aValue' },
  );
}
";

/// Start command lines of section 9.
const COPIES: [&str; 2] = ["cp /tmp/code.tar.gz /mnt/code/code.tar.gz", "cp /tmp/code.* /mnt/code/"];

fn start_line(copy: &str) -> String {
    format!("{copy} && nohup helpers/start.sh \"bash helpers/server.sh\"")
}

#[test]
fn our_image_of_node_end_to_end() {
    let api = Api::start();
    let image = own_image("node");
    let source = api
        .source("source.tar.gz", &[("src/index.mjs", FUNCTION), ("package.json", "{\"type\":\"module\"}")]);
    let built = api.home.file("builds");
    // As Appwrite builds: with everything in one call, removed afterwards.
    let build = api.created(
        "project-deployment-build",
        json!({
            "image": image, "source": source, "destination": built, "entrypoint": "src/index.mjs", "remove": true,
            "command": "tar -zxf /tmp/code.tar.gz -C /mnt/code && helpers/build.sh 'echo built here > made.txt'",
            "memory": 1024, "cpus": 1, "version": "v5", "timeout": 300,
        }),
    );
    let built = build["path"].as_str().unwrap().to_owned();
    api.assert_nothing_left();
    for (number, copy) in COPIES.iter().enumerate() {
        let id = format!("run{number}");
        let parameters = json!({
            "image": image, "source": built, "entrypoint": "src/index.mjs", "variables": { "MINE": "value" },
            "runtimeEntrypoint": start_line(copy), "timeout": 60, "path": "/a/b?x=1&y=z", "method": "POST",
            "body": "höllo", "headers": { "x-mine": "header", "content-type": "text/plain" },
        });
        let document = run(&api, &id, &parameters);
        assert_eq!(document["statusCode"], 201, "{document}");
        let body: Value = serde_json::from_str(document["body"].as_str().unwrap()).unwrap();
        let expected = json!({
            "path": "/a/b", "query": { "x": "1", "y": "z" }, "method": "POST", "body": "höllo", "mine": "value",
            "header": "header",
        });
        assert_eq!(body, expected);
        assert_eq!(document["headers"]["x-key"], "aValue");
        assert!(document["logs"].as_str().unwrap().contains("called POST /a/b"), "{document}");
        assert!(document["errors"].as_str().unwrap().contains("not really"), "{document}");
        let failed = run(&api, &id, &json!({ "path": "/throw" }));
        assert_eq!(failed["statusCode"], 500);
        assert!(failed["errors"].as_str().unwrap().contains("on purpose"), "{failed}");
        // the function says itself that its time is up.
        let late = run(&api, &id, &json!({ "path": "/slow", "timeout": 1 }));
        assert_eq!(late["statusCode"], 500, "{late}");
        assert!(late["errors"].as_str().unwrap().contains("Execution timed out."), "{late}");
        let quiet = run(&api, &id, &json!({ "path": "/", "logging": false }));
        assert_eq!((&quiet["logs"], &quiet["errors"]), (&json!(""), &json!("")), "{quiet}");
        let binary = run_with(&api, &id, "/binary", &[("accept", "multipart/form-data")]);
        assert_eq!(crate::answers::multipart(&binary)[2].1, [0, 255, 1, 254]);
        let stream = run_with(&api, &id, "/binary", &[("x-executor-response-format", "0.12.0")]);
        assert_eq!(streamed(&stream)[2].1.concat(), [0, 255, 1, 254]);
        assert_eq!(api.printed(&id, "ls /mnt/logs"), "", "all files of lines were taken");
        let last = run(&api, &id, &json!({ "path": "/", "method": "HEAD" }));
        assert_eq!((&last["statusCode"], &last["body"]), (&json!(201), &json!("")));
    }
}

#[test]
fn our_image_of_sites_end_to_end() {
    let api = Api::start();
    let image = own_image("static");
    let source = api.source(
        "site.tar.gz",
        &[
            ("index.html", "<h1>home</h1>"),
            ("about.html", "about"),
            ("docs/index.html", "docs"),
            ("a.css", "b{}"),
        ],
    );
    let parameters = |path: &str, method: &str| {
        json!({
            "image": image, "source": source, "runtimeEntrypoint": start_line(COPIES[0]), "timeout": 60,
            "path": path, "method": method,
        })
    };
    for (path, status, kind, body) in [
        ("/", 200, "text/html", "<h1>home</h1>"),
        ("/about", 200, "text/html", "about"),
        ("/docs/", 200, "text/html", "docs"),
        ("/a.css", 200, "text/css", "b{}"),
    ] {
        let document = run(&api, "site", &parameters(path, "GET"));
        assert_eq!(
            (&document["statusCode"], &document["body"]),
            (&json!(status), &json!(body)),
            "{path}: {document}"
        );
        assert!(document["headers"]["content-type"].as_str().unwrap().starts_with(kind), "{document}");
    }
    let moved = run(&api, "site", &parameters("/docs?a=b", "GET"));
    assert_eq!(moved["statusCode"], 308);
    assert!(moved["headers"]["location"].as_str().unwrap().ends_with("/docs/?a=b"), "{moved}");
    assert_eq!(run(&api, "site", &parameters("/nothing", "GET"))["statusCode"], 404);
    assert_eq!(run(&api, "site", &parameters("/", "POST"))["statusCode"], 405);
    let head = run(&api, "site", &parameters("/about", "HEAD"));
    assert_eq!((&head["statusCode"], &head["body"]), (&json!(200), &json!("")));
    for escape in ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc/passwd"] {
        assert_eq!(run(&api, "site", &parameters(escape, "GET"))["statusCode"], 404, "{escape}");
    }
}
