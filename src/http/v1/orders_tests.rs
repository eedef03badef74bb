//! Every parameter of every route: missing, null, wrong, at its bound, one above, and not UTF-8.

use super::*;
use crate::http::v1::{form, json};

const VERSIONS: [Profile; 2] = [Profile::V2, Profile::V5];
const INT: &str = "Value must be a valid signed 32-bit integer between -2,147,483,648 and 2,147,483,647";
const OBJECT: &str = "Value must be a valid object.";

fn json(body: &str) -> Params {
    Params(json::fields(body.as_bytes()))
}

fn form(body: &[u8]) -> Params {
    Params(form::fields(body).unwrap())
}

/// The parameters with one more or another.
fn params_with(base: &str, name: &str, value: Param) -> Params {
    let mut params = json(base);
    params.0.insert(name.into(), value);
    params
}

fn value(json: &str) -> Param {
    json::read(json.as_bytes()).unwrap()
}

fn long(length: usize) -> Param {
    Param::Text("x".repeat(length).into())
}

fn text_reason(min: usize, max: usize) -> String {
    let least = if min > 0 { format!(" and at least {min} chars") } else { String::new() };
    let most = if max > 0 { format!(" and no longer than {max} chars") } else { String::new() };
    format!("Value must be a valid string{least}{most}")
}

#[track_caller]
fn refused<T>(result: Result<T, Problem>, name: &str, reason: &str) {
    let problem = result.err().unwrap_or_else(|| panic!("{name} was accepted"));
    assert_eq!((problem.status.as_u16(), problem.kind), (400, "general_unknown"));
    assert_eq!(problem.message, format!("Invalid `{name}` param: {reason}"));
}

const CREATE: &str = r#"{"runtimeId":"a","image":"i"}"#;

fn create_with(name: &str, value: Param) -> Result<Order, Problem> {
    create(&params_with(CREATE, name, value), &VERSIONS)
}

fn execute_with(name: &str, value: Param) -> Result<GuestCall, Problem> {
    execute("a".into(), &params_with("{}", name, value), &VERSIONS)
}

#[test]
fn r_30_required_parameters_of_each_route() {
    for (body, name) in [
        ("{}", "runtimeId"),
        ("[]", "runtimeId"),
        ("", "runtimeId"),
        (r#"{"image":"i"}"#, "runtimeId"),
        (r#"{"runtimeId":null,"image":"i"}"#, "runtimeId"),
        (r#"{"runtimeId":"a"}"#, "image"),
        (r#"{"runtimeId":"a","image":null}"#, "image"),
        // The first problem in the order of the table.
        (r#"{"runtimeId":"a","entrypoint":1}"#, "image"),
    ] {
        let problem = create(&json(body), &VERSIONS).unwrap_err();
        assert_eq!(problem.message, format!("Param \"{name}\" is not optional."), "{body}");
    }
    for body in ["{}", r#"{"command":null}"#] {
        assert_eq!(command(&json(body)).unwrap_err().message, "Param \"command\" is not optional.");
    }
}

#[test]
fn r_52_defaults_of_a_creation() {
    let nulls = r#"{"runtimeId":"a","image":"i","entrypoint":null,"source":null,"destination":null,
        "outputDirectory":null,"variables":null,"runtimeEntrypoint":null,"command":null,"cacheKey":null,"timeout":null,
        "remove":null,"cpus":null,"memory":null,"version":null,"restartPolicy":null,"unknown":[1]}"#;
    for body in [CREATE, nulls] {
        let order = create(&json(body), &VERSIONS).unwrap();
        assert_eq!((&*order.id, &*order.image), ("a", "i"));
        let texts = [
            &order.entrypoint,
            &order.source,
            &order.destination,
            &order.output_directory,
            &order.start_command,
            &order.command,
            &order.cache_key,
        ];
        assert!(texts.iter().all(|text| text.is_empty()));
        assert!(order.variables.is_empty() && !order.remove);
        assert_eq!((order.timeout, order.cpus, order.memory), (600, 1.0, 512));
        assert_eq!((order.profile, &*order.version, order.restart), (Profile::V5, "v5", RestartPolicy::No));
    }
}

#[test]
fn r_52_everything_of_a_creation() {
    let body = r#"{"runtimeId":"p-d-build","image":"node","entrypoint":"index.js","source":"/s/code.tar.gz",
        "destination":"/d","outputDirectory":"./dist","variables":{"B":1,"A":true,"C":"x"},"runtimeEntrypoint":"start",
        "command":"build","cacheKey":"k","timeout":-3,"remove":true,"cpus":"0.5","memory":256,"version":"V2",
        "restartPolicy":"on-failure"}"#;
    let order = create(&json(body), &VERSIONS).unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(order.variables, [pair("B", "1"), pair("A", "1"), pair("C", "x")]);
    assert_eq!((&*order.id, &*order.image, &*order.entrypoint), ("p-d-build", "node", "index.js"));
    assert_eq!(
        (&*order.source, &*order.destination, &*order.output_directory),
        ("/s/code.tar.gz", "/d", "./dist")
    );
    assert_eq!((&*order.start_command, &*order.command, &*order.cache_key), ("start", "build", "k"));
    assert_eq!((order.timeout, order.remove, order.cpus, order.memory), (-3, true, 0.5, 256));
    assert_eq!(
        (order.profile, &*order.version, order.restart),
        (Profile::V2, "V2", RestartPolicy::OnFailure)
    );
}

#[test]
fn r_52_each_text_of_a_creation_has_its_bounds() {
    for (name, min, max) in [
        ("runtimeId", 1, 64),
        ("image", 1, 128),
        ("entrypoint", 0, 256),
        ("source", 0, 0),
        ("destination", 0, 0),
        ("outputDirectory", 0, 0),
        ("runtimeEntrypoint", 0, 1024),
        ("command", 0, 1024),
        ("cacheKey", 0, 128),
    ] {
        let reason = text_reason(min, max);
        for bad in ["1", "true", "1.5", "[]", "{}", "[\"a\"]"] {
            refused(create_with(name, value(bad)), name, &reason);
        }
        refused(create_with(name, Param::Text(Bytes::from_static(b"a\xff"))), name, &reason);
        if min > 0 {
            refused(create_with(name, long(min - 1)), name, &reason);
        }
        assert!(create_with(name, long(min)).is_ok(), "{name}");
        let most = if max == 0 { 100_000 } else { max };
        assert!(create_with(name, long(most)).is_ok(), "{name}");
        if max > 0 {
            refused(create_with(name, long(max + 1)), name, &reason);
            let wide = |count: usize| Param::Text("ä".repeat(count).into());
            assert!(name == "cacheKey" || create_with(name, wide(max)).is_ok(), "{name}");
            refused(create_with(name, wide(max + 1)), name, &reason);
        }
    }
}

#[test]
fn r_52_each_other_parameter_of_a_creation_has_its_type() {
    let policies = "Value must be one of (no, always, on-failure, unless-stopped)";
    for (name, bad, reason) in [
        ("variables", &["1", "\"{}\"", "[1]", "true"][..], OBJECT),
        ("timeout", &["\"600\"", "1.5", "600.0", "true", "[]", "2147483648"], INT),
        ("remove", &["1", "\"true\"", "0", "[]", "\"\""], "Value must be a valid boolean"),
        ("cpus", &["\"x\"", "true", "[]", "\"\""], "Value must be a valid float"),
        ("memory", &["\"512\"", "512.0", "true", "{}", "-2147483649"], INT),
        ("version", &["\"v3\"", "\"\"", "5", "[]"], "Value must be one of (v2, v5)"),
        ("restartPolicy", &["\"No\"", "\"\"", "1", "{}"], policies),
    ] {
        for bad in bad {
            refused(create_with(name, value(bad)), name, reason);
        }
        refused(create_with(name, Param::Text(Bytes::from_static(b"\xff"))), name, reason);
    }
    for (name, good) in [
        ("variables", &["{}", "[]", "{\"a\":{}}"][..]),
        ("timeout", &["0", "-2147483648", "2147483647"]),
        ("cpus", &["0", "0.25", "\"4\"", "-1"]),
        ("memory", &["0", "2147483647"]),
        ("version", &["\"v2\"", "\"V5\""]),
        ("restartPolicy", &["\"no\"", "\"always\"", "\"on-failure\"", "\"unless-stopped\""]),
    ] {
        for good in good {
            assert!(create_with(name, value(good)).is_ok(), "{name} {good}");
        }
    }
}

#[test]
fn r_60_cache_keys() {
    for good in ["", "a", "0", "A.b_c-d", &"k".repeat(128)] {
        assert_eq!(create_with("cacheKey", Param::Text(good.to_owned().into())).unwrap().cache_key, good);
    }
    for bad in [".a", "-a", "_a", "a/b", "a b", "ä", "a\n", "a\0", "../x"] {
        let problem = create_with("cacheKey", Param::Text(bad.to_owned().into())).unwrap_err();
        assert_eq!((problem.status.as_u16(), problem.kind), (400, "execution_bad_request"), "{bad}");
        assert_eq!(
            problem.message,
            "Cache key must start with a letter or number and may only contain letters, numbers, dots, underscores, \
             and hyphens."
        );
    }
}

#[test]
fn r_81_ids_in_paths() {
    let reason = text_reason(1, 64);
    assert_eq!(&*id(b"a").unwrap(), "a");
    assert_eq!(&*id("ä".repeat(64).as_bytes()).unwrap(), "ä".repeat(64));
    for bad in [&b""[..], &[b'a'; 65], &[0xff; 65]] {
        refused(id(bad), "runtimeId", &reason);
    }
    assert_eq!(&*id(b"\xff").unwrap(), "\u{fffd}");
}

#[test]
fn r_90_defaults_of_an_execution() {
    let nulls = r#"{"body":null,"path":null,"method":null,"headers":null,"timeout":null,"image":null,"source":null,
        "entrypoint":null,"variables":null,"cpus":null,"memory":null,"version":null,"runtimeEntrypoint":null,
        "logging":null,"restartPolicy":null,"runtimeId":"another"}"#;
    for body in ["{}", "[]", nulls] {
        let call = execute("a".into(), &json(body), &VERSIONS).unwrap();
        assert_eq!((&*call.id, &*call.path, &call.method), ("a", "/", &Method::GET));
        assert!(call.order.is_none() && call.body.is_empty() && call.logging);
        assert!(call.headers.is_empty() && call.variables.is_empty());
        assert_eq!(call.timeout, 15);
    }
}

#[test]
fn r_91_an_order_only_with_image_and_source() {
    for (body, ordered) in
        [(r#"{"image":"i"}"#, false), (r#"{"source":"s"}"#, false), (r#"{"image":"i","source":"s"}"#, true)]
    {
        let call = execute("a".into(), &json(body), &VERSIONS).unwrap();
        assert_eq!(call.order.is_some(), ordered, "{body}");
    }
    let body = r#"{"image":"i","source":"s","entrypoint":"e","variables":{"A":1},"cpus":2,"memory":"64","version":"v2",
        "runtimeEntrypoint":"go","restartPolicy":"always"}"#;
    let order = execute("a".into(), &json(body), &VERSIONS).unwrap().order.unwrap();
    assert_eq!((&*order.id, &*order.image, &*order.source, &*order.entrypoint), ("a", "i", "s", "e"));
    assert_eq!(order.variables, [("A".to_owned(), "1".to_owned())]);
    assert_eq!((order.cpus, order.memory, order.profile, &*order.version), (2.0, 64, Profile::V2, "v2"));
    assert_eq!((&*order.start_command, order.restart), ("go", RestartPolicy::Always));
    assert_eq!((&*order.command, &*order.destination, order.remove), ("", "", false));
}

/// As Appwrite sends it: every value as text.
#[test]
fn r_22_an_execution_from_a_multipart_form() {
    let body =
        b"body=%ff%00&path=/a?b=c&method=POST&headers=%7B%22X-A%22%3A%22b%22%7D&timeout=45&image=i&source=s\
        &variables=%5B%5D&cpus=0.5&memory=256&version=v5&logging=0&restartPolicy=no";
    let call = execute("a".into(), &form(body), &VERSIONS).unwrap();
    assert_eq!((&call.body[..], &*call.path, &call.method), (&b"\xff\0"[..], "/a?b=c", &Method::POST));
    let order = call.order.unwrap();
    assert_eq!((call.timeout, call.logging, order.cpus, order.memory), (45, false, 0.5, 256));
    assert_eq!(call.headers, [(HeaderName::from_static("x-a"), HeaderValue::from_static("b"))]);
    let brackets = form(b"headers[host]=x&headers[X-B]=%ff&variables[A]=1");
    let call = execute("a".into(), &brackets, &VERSIONS).unwrap();
    assert_eq!(call.headers[0], (http::header::HOST, HeaderValue::from_static("x")));
    assert_eq!(call.headers[1].1.as_bytes(), b"\xff");
    assert_eq!(call.variables, [("A".to_owned(), "1".to_owned())]);
}

#[test]
fn r_90_each_text_of_an_execution_has_its_bounds() {
    for (name, min, max) in [
        ("body", 1, 20_971_520),
        ("path", 1, 2048),
        ("image", 1, 128),
        ("source", 1, 0),
        ("entrypoint", 0, 256),
        ("runtimeEntrypoint", 0, 1024),
    ] {
        let reason = text_reason(min, max);
        for bad in ["1", "true", "[]", "{}", "[\"a\"]"] {
            refused(execute_with(name, value(bad)), name, &reason);
        }
        if min > 0 {
            refused(execute_with(name, long(0)), name, &reason);
        }
        assert!(execute_with(name, long(min)).is_ok(), "{name}");
        assert!(execute_with(name, long(if max == 0 { 100_000 } else { max })).is_ok(), "{name}");
        if max > 0 {
            refused(execute_with(name, long(max + 1)), name, &reason);
        }
        let stray = execute_with(name, Param::Text(Bytes::from_static(b"\xff")));
        if name == "body" {
            assert_eq!(stray.unwrap().body, &b"\xff"[..]);
        } else {
            refused(stray, name, &reason);
        }
    }
}

#[test]
fn r_90_each_other_parameter_of_an_execution_has_its_type() {
    let methods = "Value must be one of (GET, POST, PUT, PATCH, DELETE, OPTIONS, HEAD)";
    let policies = "Value must be one of (no, always, on-failure, unless-stopped)";
    for (name, bad, reason) in [
        ("method", &["\"get\"", "\"TRACE\"", "\"\"", "1", "[]"][..], methods),
        ("headers", &["1", "\"\"", "\"x\"", "\"[1]\"", "[1]", "true"], OBJECT),
        (
            "timeout",
            &["\"x\"", "\"45.0\"", "15.0", "true", "\"\"", "[]", "2147483648", "\"2147483648\""],
            INT,
        ),
        ("variables", &["1", "\"\"", "\"1\"", "[1]"], OBJECT),
        ("cpus", &["\"x\"", "\"\"", "true", "[]"], "Value must be a valid float"),
        ("memory", &["\"1.5\"", "512.0", "{}", "false"], INT),
        ("version", &["\"v4\"", "\"port\"", "2"], "Value must be one of (v2, v5)"),
        ("logging", &["2", "\"yes\"", "\"\"", "[]", "1.0"], "Value must be a valid boolean"),
        ("restartPolicy", &["\"never\"", "\"\"", "1"], policies),
    ] {
        for bad in bad {
            refused(execute_with(name, value(bad)), name, reason);
        }
        refused(execute_with(name, Param::Text(Bytes::from_static(b"\xff"))), name, reason);
    }
    for method in METHODS {
        let call = execute_with("method", Param::Text(method.into())).unwrap();
        assert_eq!(call.method.as_str(), method);
    }
}

#[test]
fn r_97_headers_in_order_repeated_and_clean() {
    let all = value(r#"{"X-B":"1","accept":["a","b"],"n":5,"t":true,"e":"","u":"ä"}"#);
    let call = execute_with("headers", all).unwrap();
    let told: Vec<_> =
        call.headers.iter().map(|(n, v)| format!("{n}={}", String::from_utf8_lossy(v.as_bytes()))).collect();
    assert_eq!(told, ["x-b=1", "accept=a", "accept=b", "n=5", "t=1", "e=", "u=ä"]);
    for (bad, reason) in [
        (r#"{"a b":"1"}"#, "`a b` is not a header name."),
        (r#"{"":"1"}"#, "`` is not a header name."),
        (r#"{"a":"x\r\nb: c"}"#, "`a` has no header value."),
        (r#"{"a":["b","\u0000"]}"#, "`a` has no header value."),
    ] {
        refused(execute_with("headers", value(bad)), "headers", reason);
    }
    let name = "ä".repeat(1000);
    let short = format!("`{}…` is not a header name.", "ä".repeat(64));
    refused(execute_with("headers", value(&format!("{{\"{name}\":1}}"))), "headers", &short);
}

#[test]
fn r_62_variables_that_are_not_utf_8_are_refused() {
    let params = form(b"variables[A]=%ff");
    refused(execute("a".into(), &params, &VERSIONS), "variables", "The value of `A` is not UTF-8.");
}

#[test]
fn r_130_commands() {
    let reason = text_reason(1, 1024);
    let with = |name: &str, value: Param| command(&params_with(r#"{"command":"ls"}"#, name, value));
    assert_eq!(command(&json(r#"{"command":"ls"}"#)).unwrap(), ("ls".into(), Duration::from_mins(10)));
    for bad in ["\"\"", "1", "[]", "{}", "true"] {
        refused(with("command", value(bad)), "command", &reason);
    }
    assert!(with("command", long(1024)).is_ok());
    refused(with("command", long(1025)), "command", &reason);
    refused(with("command", Param::Text(Bytes::from_static(b"\xff"))), "command", &reason);
    for (given, seconds) in [("null", 600), ("0", 0), ("-5", 0), ("7", 7), ("2147483647", 2_147_483_647)] {
        assert_eq!(with("timeout", value(given)).unwrap().1, Duration::from_secs(seconds));
    }
    for bad in ["\"7\"", "7.0", "2147483648", "true", "[]"] {
        refused(with("timeout", value(bad)), "timeout", INT);
    }
}

#[test]
fn r_140_timeout_of_logs() {
    for (query, seconds) in [
        ("", 600),
        ("timeout=5", 5),
        ("timeout=0", 0),
        ("timeout=-5", 0),
        ("timeout=abc", 0),
        ("timeout=12abc", 12),
        ("timeout=%20+7", 7),
        ("timeout=%2B7", 7),
        ("timeout=9999999999999999", 2_147_483_647),
        ("timeout=%ff", 0),
        ("timeout=1&timeout=2", 2),
        ("other=1", 600),
    ] {
        assert_eq!(logs(&form(query.as_bytes())).unwrap(), Duration::from_secs(seconds), "{query}");
    }
    for bad in ["timeout=", "timeout", "timeout=12345678901234567", "timeout[]=1", "timeout[a]=1"] {
        refused(logs(&form(bad.as_bytes())), "timeout", &text_reason(1, 16));
    }
}
