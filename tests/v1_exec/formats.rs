//! The document of an answer.

use serde_json::{Value, json};

use crate::answers::{FIELDS, Fields, assert_works, boundary, multipart, run_with, text};
use crate::harness::{Api, problem};

fn api() -> Api {
    let api = Api::start();
    api.guest("a", "v5");
    api
}

#[test]
fn r_110_fields_and_their_order() {
    let api = api();
    let reply = run_with(&api, "a", "/logs?log=l&error=e", &[("accept", "application/json")]);
    let raw = reply.text();
    let places: Vec<_> = FIELDS.iter().map(|name| raw.find(&format!("\"{name}\":")).unwrap()).collect();
    assert!(places.is_sorted(), "{raw}");
    let document = reply.json();
    assert_eq!(document.as_object().unwrap().len(), FIELDS.len());
    assert!(
        document["statusCode"].is_u64() && document["duration"].is_f64() && document["startTime"].is_f64()
    );
    let fields = multipart(&run_with(&api, "a", "/logs?log=l&error=e", &[]));
    assert_eq!(text(&fields, "statusCode"), "200");
    assert_eq!((text(&fields, "logs"), text(&fields, "errors")), ("l".into(), "e".into()));
    for name in ["duration", "startTime"] {
        assert!(text(&fields, name).contains('.') && text(&fields, name).parse::<f64>().is_ok());
    }
}

#[test]
fn r_111_lists_from_0_11_0_on() {
    let api = api();
    let cookies = |format: Option<&str>, accept: &str| -> Value {
        let format = format.map(|format| ("x-executor-response-format", format));
        let headers: Vec<_> = [("accept", accept)].into_iter().chain(format).collect();
        let reply = run_with(&api, "a", "/headers", &headers);
        let document = match accept {
            "application/json" => reply.json()["headers"].clone(),
            _ => serde_json::from_str(&text(&multipart(&reply), "headers")).unwrap(),
        };
        document["set-cookie"].clone()
    };
    let (last, list) = (json!("b=2"), json!(["a=1; path=/", "b=2"]));
    for accept in ["application/json", "multipart/form-data"] {
        for format in [
            None,
            Some("0.10.0"),
            Some("0.9.0"),
            Some("0.2"),
            Some("0.10.99"),
            Some("0.11.0-dev"),
            Some("junk"),
            Some(""),
        ] {
            assert_eq!(cookies(format, accept), last, "{format:?} {accept}");
        }
        assert_eq!(cookies(Some("0.11.0"), accept), list, "{accept}");
        assert_eq!(cookies(Some("0.11.5"), accept), list, "{accept}");
    }
    // JSON is not streamed, whatever the version.
    for format in ["0.12.0", "1.0.0", "99999999999999999999.1"] {
        assert_eq!(cookies(Some(format), "application/json"), list, "{format}");
    }
}

#[test]
fn r_112_who_gets_json() {
    let api = api();
    for (accept, json) in [
        ("application/json", true),
        ("application/*", true),
        ("application/json;q=0.9", true),
        ("text/html, application/json", true),
        ("application/jsonish", true),
        ("text/html,application/json", false),
        ("Application/JSON", false),
        ("*/*", false),
        ("multipart/form-data", false),
        ("text/plain", false),
        ("", false),
    ] {
        let reply = run_with(&api, "a", "/text", &[("accept", accept)]);
        if json {
            assert_eq!(reply.header("content-type"), Some("application/json"), "{accept}");
            assert_eq!(reply.json()["body"], "hello");
        } else {
            assert_eq!(text(&multipart(&reply), "body"), "hello", "{accept}");
        }
    }
    assert_eq!(text(&multipart(&run_with(&api, "a", "/text", &[])), "body"), "hello", "no header at all");
    // errors are JSON anyway.
    let unknown = run_with(&api, "b", "/text", &[("accept", "multipart/form-data")]);
    assert!(problem(&unknown).starts_with("404 runtime_not_found"));
}

#[test]
fn r_113_json_is_not_escaped() {
    let api = api();
    let reply = run_with(&api, "a", "/text?body=%C3%A4%2F%F0%9F%98%80%22", &[("accept", "application/json")]);
    // The guest decodes its query as Latin-1, so every byte comes back as one character.
    let body = reply.json()["body"].as_str().unwrap().to_owned();
    assert!(!body.is_ascii());
    assert!(reply.text().contains('/') && !reply.text().contains("\\u") && !reply.text().contains("\\/"));
    assert_eq!(reply.header("server"), Some("Executor"));
    let none = run_with(&api, "a", "/status?code=200", &[("accept", "application/json")]);
    assert!([json!({}), json!([])].contains(&none.json()["headers"]), "{}", none.text());
}

#[test]
fn r_113_binary_in_json_is_refused() {
    let api = api();
    let refused = "400 execution_bad_json Execution resulted in binary response, but JSON response does not allow \
                   binaries. Use \"Accept: multipart/form-data\" header to support binaries.";
    for path in ["/binary", "/logs?log=%FF", "/logs?error=%C3%28"] {
        let reply = run_with(&api, "a", path, &[("accept", "application/json")]);
        assert_eq!(problem(&reply), refused, "{path}");
        assert_works(&api, "a");
    }
    let all: Vec<u8> = (0..=255).collect();
    let fields = multipart(&run_with(&api, "a", "/binary", &[("accept", "multipart/form-data")]));
    assert_eq!(fields[2].1, all);
    let fields = multipart(&run_with(&api, "a", "/logs?log=%FF", &[]));
    assert_eq!(fields[3].1, b"\xff");
}

#[test]
fn r_114_multipart_byte_for_byte() {
    let api = api();
    let mut boundaries = Vec::new();
    for (path, body) in [
        ("/text?body=", &b""[..]),
        ("/text?body=%0D%0A", b"\r\n"),
        ("/text?body=%0D%0A--%0D%0A", b"\r\n--\r\n"),
        (
            "/text?body=Content-Disposition:%20form-data;%20name=%22statusCode%22",
            b"Content-Disposition: form-data; name=\"statusCode\"",
        ),
    ] {
        let reply = run_with(&api, "a", path, &[("accept", "multipart/form-data")]);
        let fields = multipart(&reply);
        assert_eq!(fields[2].1, body, "{path}");
        let headers: Value = serde_json::from_str(&text(&fields, "headers")).unwrap();
        assert_eq!(headers, json!({ "content-type": "text/plain" }));
        assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
        boundaries.push(boundary(&reply));
    }
    boundaries.sort();
    boundaries.dedup();
    assert_eq!(boundaries.len(), 4, "nobody can guess the next one");
    let big: Fields = multipart(&run_with(&api, "a", "/binary?times=40000", &[]));
    assert_eq!(big[2].1.len(), 10_240_000);
}
