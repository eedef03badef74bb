//! Requests as known clients write them, byte for byte where it matters: section 9.

use serde_json::{Value, json};

use crate::answers::{multipart, seen_header, text};
use crate::harness::{Api, problem};
use crate::images;

/// A request of Appwrite: a multipart body with JSON parts, numbers as text and booleans as `1` and `0`.
fn appwrite(api: &Api, id: &str, format: &str, more: &[(&str, &[u8])]) -> crate::common::Reply {
    let source = api.source("code.tar.gz", &[("x", "y")]);
    let boundary = "-----------------------------66a5f0c1d2e3f";
    let mut body = Vec::new();
    let runtime_entrypoint = "cp /tmp/code.tar.gz /mnt/code/code.tar.gz && nohup guest v5";
    let fields: Vec<(&str, &[u8])> = vec![
        ("runtimeId", id.as_bytes()),
        ("variables", br#"{"APPWRITE_FUNCTION_ID":"f","EMPTY":""}"#),
        ("timeout", b"15"),
        ("image", images::guest().as_bytes()),
        ("source", source.as_bytes()),
        ("entrypoint", b"src/index.js"),
        ("path", b"/echo?a=1"),
        ("method", b"POST"),
        ("headers", br#"{"content-type":"application/octet-stream","x-appwrite-trigger":"http"}"#),
        ("cpus", b"0.5"),
        ("memory", b"512"),
        ("version", b"v5"),
        ("runtimeEntrypoint", runtime_entrypoint.as_bytes()),
        ("logging", b"1"),
        ("restartPolicy", b"always"),
    ];
    let given = |name: &str| more.iter().any(|(other, _)| *other == name);
    for (name, value) in fields.iter().filter(|(name, _)| !given(name)).chain(more) {
        let kind = match *name {
            "variables" | "headers" => "Content-Type: application/json\r\n",
            _ => "",
        };
        let head = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n{kind}\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(value);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    api.request("POST", &format!("/v1/runtimes/{id}/executions"))
        .header("content-type", &format!("multipart/form-data; boundary={boundary}"))
        .header("accept", "multipart/form-data")
        .header("x-executor-response-format", format)
        .header("x-opr-runtime-id", id)
        .header("x-opr-addressing-method", "anycast-efficient")
        .header("x-edge-bypass-gateway", "1")
        .body(body)
        .send()
}

#[test]
fn appwrite_executions() {
    let api = Api::with(&[("OPR_EXECUTOR_ENV", "production"), ("OPR_EXECUTOR_RUNTIME_VERSIONS", "v5")]);
    let binary: Vec<u8> = (0..=255).collect();
    for format in ["0.10.0", "0.11.0"] {
        let fields = multipart(&appwrite(&api, "project-deployment", format, &[("body", &binary)]));
        assert_eq!(text(&fields, "statusCode"), "200");
        let seen: Value = serde_json::from_str(&text(&fields, "body")).unwrap();
        assert_eq!((&seen["method"], &seen["target"]), (&json!("POST"), &json!("/echo?a=1")));
        let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &binary);
        assert_eq!(seen["body"], encoded.as_str());
        assert_eq!(seen_header(&seen, "x-appwrite-trigger"), ["http"]);
        assert!(seen_header(&seen, "x-opr-runtime-id").is_empty(), "these are for balancers");
        let environment = &seen["environment"];
        assert_eq!((&environment["APPWRITE_FUNCTION_ID"], &environment["EMPTY"]), (&json!("f"), &json!("")));
        assert_eq!(
            (&environment["OPEN_RUNTIMES_CPUS"], &environment["OPEN_RUNTIMES_MEMORY"]),
            (&json!("0.5"), &json!("512"))
        );
        let headers: Value = serde_json::from_str(&text(&fields, "headers")).unwrap();
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(seen_header(&seen, "x-open-runtimes-logging"), ["enabled"]);
    }
    assert_eq!(api.printed("project-deployment", "ls /mnt/code"), "code.tar.gz\n");
    // No logging, no variables, no headers, no body; the newer way to copy.
    let line = "cp /tmp/code.* /mnt/code/ && nohup guest v5";
    let more: [(&str, &[u8]); 6] = [
        ("logging", b"0"),
        ("variables", b"[]"),
        ("headers", b"[]"),
        ("method", b"GET"),
        ("runtimeEntrypoint", line.as_bytes()),
        ("path", b"/logs?log=unwanted"),
    ];
    let fields = multipart(&appwrite(&api, "other", "0.11.0", &more));
    assert_eq!((text(&fields, "statusCode"), text(&fields, "logs")), ("200".into(), String::new()));
    // What it reads of an error.
    let failed = appwrite(&api, "third", "0.11.0", &[("source", b"/there/is/none.tar.gz")]);
    let document = failed.json();
    assert!(
        failed.status >= 400 && document["message"].is_string() && document["type"].is_string(),
        "{document}"
    );
    let timeout =
        appwrite(&api, "project-deployment", "0.11.0", &[("path", b"/sleep?s=60"), ("timeout", b"1")]);
    assert_eq!(problem(&timeout), "500 general_unknown Internal server error.");
    for id in ["project-deployment", "other"] {
        assert_eq!(api.delete(id).status, 200);
        assert_eq!(api.delete(id).status, 404, "which is fine for it");
    }
    api.assert_nothing_left();
}

/// A call of the official suite's client: `[]` as body of all that has no parameters.
fn suite(api: &Api, method: &str, path: &str, body: &str, headers: &[(&str, &str)]) -> crate::common::Reply {
    let mut request = api
        .request(method, &format!("/v1{path}"))
        .header("content-type", "application/json")
        .header("x-executor-response-format", "0.11.0");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.body(body).send()
}

#[test]
fn the_official_suite() {
    let api = Api::with(&[("OPR_EXECUTOR_RUNTIME_VERSIONS", "v2,v5")]);
    assert_eq!(suite(&api, "GET", "/health", "[]", &[]).text(), "OK");
    assert_eq!(suite(&api, "GET", "/runtimes", "[]", &[]).json(), json!([]));
    let unknown = "404 general_unknown Not Found";
    assert_eq!(problem(&suite(&api, "GET", "/unknown", "[]", &[])), unknown);
    assert_eq!(problem(&suite(&api, "PATCH", "/runtimes", "[]", &[])), unknown);
    let absent = problem(&suite(&api, "POST", "/runtimes/a/executions", "[]", &[]));
    assert!(absent.starts_with("404 runtime_not_found"), "{absent}");
    assert_eq!(
        problem(&suite(&api, "POST", "/runtimes", "[]", &[])),
        "400 general_unknown Param \"runtimeId\" is not optional."
    );
    api.guest("a", "v5");
    for accept in ["application/json", "application/*", "text/plain, application/json"] {
        let reply = suite(&api, "POST", "/runtimes/a/execution", "[]", &[("accept", accept)]);
        assert_eq!((reply.status, &reply.json()["statusCode"]), (200, &json!(200)), "{accept}");
    }
    for accept in ["*/*", "multipart/form-data", "text/plain"] {
        let fields = multipart(&suite(&api, "POST", "/runtimes/a/executions", "[]", &[("accept", accept)]));
        assert_eq!(text(&fields, "statusCode"), "200", "{accept}");
    }
    let loose =
        json!({ "timeout": "45", "memory": "256", "logging": "true", "path": "/text", "variables": "{}" });
    let reply =
        suite(&api, "POST", "/runtimes/a/executions", &loose.to_string(), &[("accept", "application/json")]);
    assert_eq!(reply.json()["body"], "hello", "{}", reply.text());
    for (name, bad) in [
        ("timeout", json!("4.5")),
        ("memory", json!(15.5)),
        ("logging", json!("yes")),
        ("headers", json!([1])),
    ] {
        let reply = suite(&api, "POST", "/runtimes/a/executions", &json!({ name: bad }).to_string(), &[]);
        assert!(
            problem(&reply).starts_with(&format!("400 general_unknown Invalid `{name}` param:")),
            "{}",
            reply.text()
        );
    }
    assert_eq!(suite(&api, "GET", "/runtimes/a", "[]", &[]).status, 200);
    let deleted = suite(&api, "DELETE", "/runtimes/a", "[]", &[]);
    assert_eq!((deleted.status, deleted.body.len()), (200, 0));
    assert_eq!(
        problem(&suite(&api, "DELETE", "/runtimes/a", "[]", &[])),
        "404 runtime_not_found Runtime not found"
    );
    api.assert_nothing_left();
}
