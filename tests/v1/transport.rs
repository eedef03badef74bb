//! Sections 1 to 4: transport, key, where parameters come from and what they may be, error documents.

use serde_json::json;

use crate::common::client::chunked;
use crate::harness::{Api, BOUNDARY, KEY, MAX_REQUEST, VERSION, order, problem};
use crate::images;

const MISSING_ID: &str = "400 general_unknown Param \"runtimeId\" is not optional.";
const UNAUTHORIZED: &str = "401 general_unauthorized Missing executor key";
const NOT_FOUND: &str = "404 general_unknown Not Found";

/// Every route: method, path, and whether it takes parameters in its body.
const ROUTES: [(&str, &str); 9] = [
    ("GET", "/v1/health"),
    ("GET", "/v1/runtimes"),
    ("POST", "/v1/runtimes"),
    ("GET", "/v1/runtimes/nobody"),
    ("DELETE", "/v1/runtimes/nobody"),
    ("POST", "/v1/runtimes/nobody/executions"),
    ("POST", "/v1/runtimes/nobody/execution"),
    ("POST", "/v1/runtimes/nobody/commands"),
    ("GET", "/v1/runtimes/nobody/logs?timeout=0"),
];

#[test]
fn r_1_all_slashes_are_one_and_the_port_is_chosen() {
    let api = Api::start();
    for path in ["/v1/health", "/v1/health/", "//v1//health", "///v1/health///"] {
        assert_eq!(api.anonymous("GET", path).send().text(), "OK", "{path}");
    }
    for path in ["/v1/runtimes/", "//v1///runtimes//"] {
        assert_eq!(api.get(path).text(), "[]", "{path}");
    }
    for path in ["/v1/runtimes/a/", "//v1//runtimes//a//"] {
        assert_eq!(problem(&api.get(path)), "404 runtime_not_found Runtime not found", "{path}");
    }
    let other = Api::start();
    assert_ne!(api.server().address(), other.server().address());
}

#[test]
fn r_2_every_answer_says_executor() {
    let api = Api::start();
    for (method, path) in ROUTES {
        for reply in [api.request(method, path).body("[]").send(), api.anonymous(method, path).send()] {
            assert_eq!(reply.header("server"), Some("Executor"), "{method} {path}: {}", reply.status);
        }
    }
    api.guest("a", "deaf");
    for reply in [api.get("/v1/runtimes/a"), api.command("a", &json!({"command": "true"})), api.delete("a")] {
        assert_eq!((reply.status, reply.header("server")), (200, Some("Executor")), "{}", reply.text());
    }
    assert_eq!(api.get("/v1/nowhere").header("server"), Some("Executor"));
}

#[test]
fn r_3_a_request_of_the_bound_and_one_byte_more() {
    let api = Api::start();
    let target = "/v1/runtimes";
    // With the length of the body, the head gets longer; eight digits in all cases here.
    let sized = |total: usize| {
        let head = api
            .request("POST", target)
            .header("content-type", "application/json")
            .body(vec![b' '; 10_000_000]);
        let length = total - head.head().len();
        let mut body = b"{\"a\":\"".to_vec();
        body.resize(length - 2, b'a');
        body.extend_from_slice(b"\"}");
        api.raw_json("POST", target, body)
    };
    assert_eq!(problem(&sized(MAX_REQUEST)), MISSING_ID);
    assert!(problem(&sized(MAX_REQUEST + 1)).starts_with("413 general_unknown "));
    // Of a body in chunks nobody knows before how long it is.
    let piece = vec![b'a'; 1 << 20];
    let request = api.request("POST", target).header("content-type", "application/json");
    let body = chunked(std::iter::repeat_n(&piece[..], 23));
    let reply = request.header("transfer-encoding", "chunked").body(body).send();
    assert!(problem(&reply).starts_with("413 general_unknown "));
    // It is refused by its announced length, before a byte of it.
    let request = api.request("POST", target).header("content-length", &(1u64 << 40).to_string());
    let mut conn = request.open();
    assert_eq!(conn.reply("POST").status, 413);
    assert_eq!(api.get(target).status, 200);
}

#[test]
fn r_4_expect_100_continue() {
    let api = Api::start();
    let body = "{}";
    let request = |outgoing: crate::common::Outgoing<'_>| {
        let outgoing = outgoing.header("content-type", "application/json").header("expect", "100-continue");
        let mut conn = outgoing.header("content-length", &body.len().to_string()).open();
        (conn.head(), conn)
    };
    let (head, mut conn) = request(api.request("POST", "/v1/runtimes"));
    assert_eq!(head.status, 100);
    conn.write(body);
    assert_eq!(problem(&conn.reply("POST")), MISSING_ID);
    // Who has no key need not send it.
    let (head, _) = request(api.anonymous("POST", "/v1/runtimes"));
    assert_eq!(head.status, 401);
}

#[test]
fn r_5_bodies_nobody_reads() {
    let api = Api::start();
    let mut conn = api.server().connect();
    for (method, path, status) in [
        ("GET", "/v1/health", 200),
        ("GET", "/v1/runtimes", 200),
        ("HEAD", "/v1/runtimes", 200),
        ("DELETE", "/v1/runtimes/a", 404),
        ("GET", "/v1/runtimes/a", 404),
        ("GET", "/v1/runtimes", 200),
    ] {
        for kind in ["application/json", "multipart/form-data; boundary=x", "text/plain"] {
            let request = api.request(method, path).keep_alive().header("content-type", kind).body("[]");
            assert_eq!(request.send_on(&mut conn).status, status, "{method} {path} {kind}");
        }
    }
}

#[test]
fn r_6_head_is_get_without_a_body() {
    let api = Api::start();
    api.guest("a", "deaf");
    for path in ["/v1/health", "/v1/runtimes", "/v1/runtimes/a", "/v1/runtimes/b", "/v1/nowhere"] {
        let mut conn = api.server().connect();
        let head = api.request("HEAD", path).send_on(&mut conn);
        assert!(conn.closes(), "{path}: a body after HEAD");
        let get = api.get(path);
        assert_eq!(head.status, get.status, "{path}");
        for name in ["content-type", "content-length", "server", "cache-control"] {
            assert_eq!(head.header(name), get.header(name), "{path}: {name}");
        }
    }
}

#[test]
fn r_7_what_is_no_route_is_not_found_in_every_mode() {
    for mode in ["production", "development"] {
        let api = Api::with(&[("OPR_EXECUTOR_ENV", mode)]);
        for (method, path) in [
            ("GET", "/v1"),
            ("GET", "/v1/"),
            ("GET", "/v1/unknown"),
            ("GET", "/v1/Health"),
            ("POST", "/v1/health"),
            ("PUT", "/v1/runtimes"),
            ("PATCH", "/v1/runtimes"),
            ("DELETE", "/v1/runtimes"),
            ("OPTIONS", "/v1/runtimes"),
            ("POST", "/v1/runtimes/a"),
            ("GET", "/v1/runtimes/a/commands"),
            ("GET", "/v1/runtimes/a/executions"),
            ("POST", "/v1/runtimes/a/logs"),
            ("GET", "/v1/runtimes/a/logs/b"),
            ("GET", "/v1/runtimes/a/b"),
            ("BREW", "/v1/runtimes"),
        ] {
            for request in [api.request(method, path), api.anonymous(method, path)] {
                assert_eq!(problem(&request.body("[]").send()), NOT_FOUND, "{method} {path}");
            }
        }
    }
}

#[test]
fn r_8_route_then_key_then_parameters_then_action() {
    let api = Api::start();
    let bad = json!({"command": 5});
    assert_eq!(problem(&api.anonymous("POST", "/v1/nowhere").body("{").send()), NOT_FOUND);
    let commands = "/v1/runtimes/nobody/commands";
    let unknown = api.anonymous("POST", commands).header("content-type", "application/json");
    assert_eq!(problem(&unknown.body(bad.to_string()).send()), UNAUTHORIZED);
    assert!(problem(&api.json("POST", commands, &bad)).starts_with("400 general_unknown Invalid `command`"));
    let good = json!({"command": "true"});
    assert_eq!(problem(&api.json("POST", commands, &good)), "404 runtime_not_found Runtime not found");
}

#[test]
fn r_10_the_second_piece_is_the_key() {
    let api = Api::start();
    let status =
        |value: &str| api.anonymous("GET", "/v1/runtimes").header("authorization", value).send().status;
    for scheme in ["Bearer", "bearer", "Basic", "x", ""] {
        assert_eq!(status(&format!("{scheme} {KEY}")), if scheme.is_empty() { 401 } else { 200 }, "{scheme}");
    }
    assert_eq!(status(&format!("Bearer {KEY} more")), 200);
    for wrong in [KEY, "Bearer", "Bearer ", "Bearer x", &format!("Bearer  {KEY}"), &format!("Bearer {KEY}x")]
    {
        assert_eq!(status(wrong), 401, "{wrong}");
    }
    assert_eq!(status(&format!("Bearer {}", &KEY[..KEY.len() - 1])), 401);
    assert_eq!(api.anonymous("GET", "/v1/health").send().status, 200);
}

#[test]
fn r_11_without_the_key_nothing_but_health() {
    let api = Api::start();
    for (method, path) in &ROUTES[1..] {
        assert_eq!(problem(&api.anonymous(method, path).send()), UNAUTHORIZED, "{method} {path}");
        let wrong = api.anonymous(method, path).header("authorization", "Bearer wrong");
        assert_eq!(problem(&wrong.send()), UNAUTHORIZED, "{method} {path}");
    }
    // No secret configured: an own one is made, which nobody guesses.
    let api = Api::with(&[("OPR_EXECUTOR_SECRET", "")]);
    for value in ["", "Bearer", "Bearer ", &format!("Bearer {KEY}")] {
        let request = api.anonymous("GET", "/v1/runtimes").header("authorization", value);
        assert_eq!(problem(&request.send()), UNAUTHORIZED, "{value}");
    }
}

#[test]
fn r_12_commands_need_the_key() {
    let api = Api::start();
    api.guest("a", "deaf");
    let request = api.anonymous("POST", "/v1/runtimes/a/commands").header("content-type", "application/json");
    let reply = request.body(json!({"command": "touch /mnt/code/touched"}).to_string()).send();
    assert_eq!(problem(&reply), UNAUTHORIZED);
    assert_eq!(api.printed("a", "ls /mnt/code"), "");
}

#[test]
fn r_20_where_parameters_come_from() {
    let api = Api::start();
    // Not from the query of a POST, not from the body of a GET.
    let reply = api.raw_json("POST", "/v1/runtimes?runtimeId=a&image=b", "{}");
    assert_eq!(problem(&reply), MISSING_ID);
    let request =
        api.request("GET", "/v1/runtimes/a/logs?timeout=0").header("content-type", "application/json");
    assert_eq!(request.body(r#"{"timeout":"600"}"#).send().status, 500);
    // The path wins over the body.
    api.guest("a", "deaf");
    let reply = api.command("a", &json!({"runtimeId": "nobody", "command": "echo here"}));
    assert_eq!(reply.json(), json!({"output": "here\n"}));
    assert_eq!(api.get("/v1/runtimes/a?runtimeId=nobody").status, 200);
    let request = api.request("DELETE", "/v1/runtimes/a").header("content-type", "application/json");
    assert_eq!(request.body(r#"{"runtimeId":"nobody"}"#).send().status, 200);
}

#[test]
fn r_21_only_json_objects_give_parameters() {
    let api = Api::start();
    let good = order("a", json!({"image": "x".repeat(129)}));
    for body in ["[]", "[1]", "5", "\"a\"", "null", "", "{", "{\"runtimeId\":\"a\"", "\u{feff}{}", "nonsense"]
    {
        assert_eq!(problem(&api.raw_json("POST", "/v1/runtimes", body)), MISSING_ID, "{body}");
    }
    for kind in ["application/json", "application/json; charset=utf-8", "application/json;x"] {
        let reply =
            api.request("POST", "/v1/runtimes").header("content-type", kind).body(good.to_string()).send();
        assert!(
            problem(&reply).starts_with("400 general_unknown Invalid `image`"),
            "{kind}: {}",
            reply.text()
        );
    }
    for kind in ["text/plain", "application/xml", ""] {
        let reply =
            api.request("POST", "/v1/runtimes").header("content-type", kind).body(good.to_string()).send();
        assert_eq!(problem(&reply), MISSING_ID, "{kind}");
    }
}

#[test]
fn r_22_forms_of_both_kinds() {
    let api = Api::start();
    let reply = api.multipart(
        "/v1/runtimes",
        &[],
        &[
            ("runtimeId", b"a"),
            ("image", images::guest().as_bytes()),
            ("variables[ONE]", b"1 \xc3\xbc"),
            ("variables[TWO]", b"b=c&d"),
        ],
    );
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(api.printed("a", "echo \"$ONE,$TWO\""), "1 ü,b=c&d\n");
    let form = format!("runtimeId=b&image={}&variables[ONE]=1+%C3%BC", images::guest().replace(':', "%3A"));
    let request = api.request("POST", "/v1/runtimes");
    let reply = request.header("content-type", "application/x-www-form-urlencoded").body(form).send();
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(api.printed("b", "echo \"$ONE\""), "1 ü\n");
    // A part's own type does not matter; one with a file name is no parameter.
    let part = |head: &str, value: &str| {
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n{value}\r\n")
    };
    for (head, told) in [
        ("name=\"command\"\r\nContent-Type: application/octet-stream", "{\"output\":\"typed\\n\"}"),
        ("name=\"command\"; filename=\"x\"", "Param \\\"command\\\" is not optional."),
    ] {
        let body = part(head, "echo typed") + &format!("--{BOUNDARY}--\r\n");
        let request = api.request("POST", "/v1/runtimes/a/commands");
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        let reply = request.header("content-type", &kind).body(body).send();
        assert!(reply.text().contains(told), "{head}: {}", reply.text());
    }
}

#[test]
fn r_23_unknown_parameters_are_ignored() {
    let api = Api::start();
    api.created("a", json!({"unknown": {"deep": [1]}, "": "", "variables[": 1, "Image": "x"}));
    let reply = api.command("a", &json!({"command": "echo x", "body": [1], "workdir": 5}));
    assert_eq!(reply.json(), json!({"output": "x\n"}));
}

#[test]
fn r_24_null_is_absent() {
    let api = Api::start();
    let nothing = json!({"entrypoint": null, "source": null, "destination": null, "outputDirectory": null,
        "variables": null, "runtimeEntrypoint": null, "command": null, "cacheKey": null, "timeout": null,
        "remove": null, "cpus": null, "memory": null, "version": null, "restartPolicy": null});
    api.created("a", nothing);
    assert_eq!(api.info("a").unwrap()["version"], "v5");
    let reply = api.command("a", &json!({"command": "echo x", "timeout": null}));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(problem(&api.raw_json("POST", "/v1/runtimes", r#"{"runtimeId":null}"#)), MISSING_ID);
}

#[test]
fn r_30_missing_parameters() {
    let api = Api::start();
    assert_eq!(problem(&api.raw_json("POST", "/v1/runtimes", "{}")), MISSING_ID);
    let reply = api.raw_json("POST", "/v1/runtimes", r#"{"runtimeId":"a"}"#);
    assert_eq!(problem(&reply), "400 general_unknown Param \"image\" is not optional.");
    let reply = api.raw_json("POST", "/v1/runtimes/a/commands", "{}");
    assert_eq!(problem(&reply), "400 general_unknown Param \"command\" is not optional.");
}

#[test]
fn r_31_wrong_parameters_of_a_creation() {
    let api = Api::start();
    let text = |least: usize, most: usize| match (least, most) {
        (0, 0) => "Value must be a valid string".to_owned(),
        (0, most) => format!("Value must be a valid string and no longer than {most} chars"),
        (least, most) => {
            format!("Value must be a valid string and at least {least} chars and no longer than {most} chars")
        }
    };
    let (int, object) = (
        "Value must be a valid signed 32-bit integer between -2,147,483,648 and 2,147,483,647".to_owned(),
        "Value must be a valid object.".to_owned(),
    );
    let boolean = "Value must be a valid boolean".to_owned();
    let float = "Value must be a valid float".to_owned();
    let wrong = [
        ("runtimeId", json!(""), text(1, 64)),
        ("runtimeId", json!("ü".repeat(65)), text(1, 64)),
        ("runtimeId", json!(5), text(1, 64)),
        ("image", json!("a".repeat(129)), text(1, 128)),
        ("entrypoint", json!("a".repeat(257)), text(0, 256)),
        ("source", json!(5), text(0, 0)),
        ("destination", json!({}), text(0, 0)),
        ("outputDirectory", json!(true), text(0, 0)),
        ("variables", json!([1]), object.clone()),
        ("variables", json!("{}"), object.clone()),
        ("variables", json!({"a": "a".repeat(65_535)}), object),
        ("runtimeEntrypoint", json!("a".repeat(1025)), text(0, 1024)),
        ("command", json!("a".repeat(1025)), text(0, 1024)),
        ("cacheKey", json!("a".repeat(129)), text(0, 128)),
        ("timeout", json!("600"), int.clone()),
        ("timeout", json!(2_147_483_648_u64), int.clone()),
        ("timeout", json!(1.5), int.clone()),
        ("remove", json!("true"), boolean.clone()),
        ("remove", json!(1), boolean),
        ("cpus", json!("many"), float.clone()),
        ("cpus", json!({}), float),
        ("memory", json!("512"), int.clone()),
        ("memory", json!(-2_147_483_649_i64), int),
        ("version", json!("v6"), "Value must be one of (v2, v3, v4, v5)".to_owned()),
        (
            "restartPolicy",
            json!("No"),
            "Value must be one of (no, always, on-failure, unless-stopped)".to_owned(),
        ),
    ];
    for (name, value, reason) in wrong {
        let reply = api.create("a", json!({ name: value }));
        let expected = format!("400 general_unknown Invalid `{name}` param: {reason}");
        assert_eq!(problem(&reply), expected, "{name}: {value}");
    }
    assert!(api.list().is_empty());
}

#[test]
fn r_32_400_also_in_production() {
    let api = Api::with(&[("OPR_EXECUTOR_ENV", "production")]);
    assert_eq!(problem(&api.raw_json("POST", "/v1/runtimes", "[]")), MISSING_ID);
    let reply = api.create("a", json!({"timeout": "x"}));
    let reason = "Value must be a valid signed 32-bit integer between -2,147,483,648 and 2,147,483,647";
    assert_eq!(problem(&reply), format!("400 general_unknown Invalid `timeout` param: {reason}"));
}

#[test]
fn r_40_the_error_document_byte_for_byte() {
    let api = Api::with(&[("OPR_EXECUTOR_ENV", "production")]);
    let not_found = "{\"type\":\"runtime_not_found\",\"message\":\"Runtime not found\",\"code\":404,\
                     \"version\":\"0.27.0\"}";
    assert_eq!(api.get("/v1/runtimes/a").text(), not_found);
    let api = Api::with(&[("OPR_EXECUTOR_ENV", "production"), ("OPR_EXECUTOR_VERSION", "")]);
    assert_eq!(api.get("/v1/runtimes/a").text(), not_found.replace(VERSION, "unknown"));
}

#[test]
fn r_41_errors_are_not_kept() {
    let api = Api::start();
    let reply = api.get("/v1/runtimes/a");
    let names = ["content-type", "cache-control", "expires", "pragma"];
    assert_eq!(
        names.map(|name| reply.header(name).unwrap()),
        ["application/json; charset=UTF-8", "no-cache, no-store, must-revalidate", "0", "no-cache"]
    );
}

/// Those that need no execution; the others are among the tests of executions.
#[test]
fn r_42_types_and_messages() {
    let api = Api::with(&[("OPR_EXECUTOR_ENV", "production")]);
    api.guest("a", "deaf");
    assert_eq!(problem(&api.get("/v1/runtimes/b")), "404 runtime_not_found Runtime not found");
    assert_eq!(problem(&api.create("a", json!({}))), "409 runtime_conflict Runtime already exists ");
    let failed = problem(&api.command("a", &json!({"command": "exit 1"})));
    assert_eq!(failed, "500 command_failed Failed to execute command.");
    let late = problem(&api.command("a", &json!({"command": "sleep 100", "timeout": 1})));
    assert_eq!(late, "500 command_timeout Operation timed out.");
    let failed = problem(&api.create("b", json!({"command": "exit 3"})));
    assert_eq!(failed, "400 build_failed Build command exited with code 3.");
    let late = problem(&api.create("b", json!({"command": "sleep 100", "timeout": 1})));
    assert!(late.starts_with("400 runtime_failed ") && late.contains("timed out"), "{late}");
}

#[test]
fn r_43_causes_only_in_development() {
    for (mode, told) in
        [("production", "Internal server error."), ("development", "cannot make the runtime's folder")]
    {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        let file = file.to_str().unwrap();
        let api = Api::with(&[("OPR_EXECUTOR_ENV", mode), ("OPR_EXECUTOR_TEMPORARY", file)]);
        let reply = api.create("a", json!({}));
        let shown = problem(&reply);
        assert!(shown.starts_with(&format!("500 general_unknown {told}")), "{shown}");
        assert_eq!(mode == "production", !reply.text().contains("folder"), "{}", reply.text());
        assert!(
            api.server().wait_log("Internal server error.")["cause"].as_str().unwrap().contains("folder")
        );
        assert!(api.list().is_empty());
    }
}

#[test]
fn r_44_errors_are_json_whatever_is_accepted() {
    let api = Api::start();
    for accept in ["text/html", "multipart/form-data", "image/png;q=0", "nonsense", "*/*"] {
        let reply = api.request("GET", "/v1/runtimes/a").header("accept", accept).send();
        assert_eq!(problem(&reply), "404 runtime_not_found Runtime not found", "{accept}");
        let request = api.request("POST", "/v1/runtimes/a/executions").header("accept", accept);
        let reply = request.header("content-type", "multipart/form-data; boundary=x");
        assert_eq!(reply.body("--x--\r\n").send().status, 404, "{accept}");
    }
    assert_eq!(problem(&api.multipart("/v1/runtimes", &[], &[("image", b"x")])), MISSING_ID);
}
