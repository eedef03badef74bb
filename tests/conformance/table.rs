//! The rows.

use serde_json::{Value, json};

use super::{CONTRACT, Case, LogId, NATIVE, TIMED_OUT, action};

const UNAUTHORIZED: &str = "Unauthorized. Provide correct \"x-open-runtimes-secret\" header.";
const BAD_TIMEOUT: &str = "Header \"x-open-runtimes-timeout\" must be an integer greater than 0.";
const NOTHING: &str = "Return statement missing. return context.res.empty() if no response is expected.\n";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json; charset=utf-8";

const SECRET: &str = "x-open-runtimes-secret";
const TIMEOUT: &str = "x-open-runtimes-timeout";
const LOGGING: &str = "x-open-runtimes-logging";
const LOG_ID: &str = "x-open-runtimes-log-id";

/// Everything, for a server with a secret and enforced headers.
pub fn rows() -> Vec<Case> {
    let parts =
        [reserved(), secret(), timeouts(), log_ids(), requests(), bodies(), answers(), failures(), logs()];
    parts.into_iter().flatten().collect()
}

/// Sections 2 and 4: before everything else.
fn reserved() -> Vec<Case> {
    let health = |target: &str| {
        let case = action("no action").only(CONTRACT).target(target).without_secret().id(LogId::None);
        case.text("OK").gives("content-type", &["text/plain"])
    };
    vec![
        health("/__opr/health"),
        health("/__opr/health?x=/y"),
        health("/__opr/health").method("POST"),
        health("/__opr/health").with(SECRET, "wrong").with(TIMEOUT, "abcd"),
        health("/__opr/health").method("HEAD").text(""),
        action("no action")
            .only(CONTRACT)
            .target("/__opr/timings")
            .without_secret()
            .status(500)
            .text("")
            .id(LogId::None),
        // Only these paths, exactly.
        action("requestMethod").only(CONTRACT).target("/__opr/health/").text("GET"),
        action("requestMethod").only(CONTRACT).target("/__opr").text("GET"),
    ]
}

/// Section 5.
fn secret() -> Vec<Case> {
    let refused = |case: Case| {
        case.status(401).text(UNAUTHORIZED).gives("content-type", &["text/plain"]).id(LogId::None)
    };
    let without = || action("plaintextResponse").without_secret();
    let with = |value: &str| refused(without().only(CONTRACT).with(SECRET, value));
    vec![
        // Hosts of many functions say the same.
        refused(without()),
        with("wrong"),
        with(""),
        with("the shared secre"),
        with("THE SHARED SECRET"),
        with("the shared secret2"),
        with("wrong").with(TIMEOUT, "abcd").with(LOG_ID, "stranger"),
        with("wrong").post(vec![0; 21 << 20]).but("large body"),
        with("wrong").method("OPTIONS"),
    ]
}

/// Section 6.1; what happens when one passes is in `own`.
fn timeouts() -> Vec<Case> {
    let asked = |value: &str| action("plaintextResponse").only(CONTRACT).with(TIMEOUT, value);
    let refused = |value: &str| {
        let case = asked(value).with(LOG_ID, "never").status(500).text(BAD_TIMEOUT).id(LogId::None);
        case.gives("content-type", &["text/plain"])
    };
    let mut all: Vec<_> = ["0", "00", "abcd", "1.5", "-1", "+1", "1s", "0x10"].map(refused).into();
    all.extend(["", "1", "007", "900", "99999999999999999999999"].map(asked));
    all.push(
        action("timeout")
            .only(CONTRACT)
            .with(TIMEOUT, "9")
            .text("Successful response.")
            .logs("Timeout start.\nTimeout end.\n"),
    );
    all
}

/// Sections 10.1 to 10.4.
fn log_ids() -> Vec<Case> {
    let logged = || {
        let case = action("spreadOperatorLogs").only(CONTRACT).text("OK");
        case.logs("engine: open-runtimes\n").errors("engine: open-runtimes\n")
    };
    let is = |id: &str| logged().with(LOG_ID, id).id(LogId::Is(id.to_owned()));
    let generated = |id: &str| logged().with(LOG_ID, id);
    let off = |value: &str| logged().with(LOGGING, value).with(LOG_ID, "off").id(LogId::Is(String::new()));
    let long = "x".repeat(129);
    vec![
        logged(),
        logged().with(LOGGING, "enabled"),
        logged().with(LOGGING, ""),
        is("mine.1_-Z"),
        is(&long[..128]),
        generated(""),
        generated(&long),
        generated("../outside"),
        generated("a/b"),
        generated(".hidden"),
        generated("a b"),
        generated("a%2fb"),
        off("disabled"),
        off("Enabled"),
        off("anything"),
        // What fails says so in no file either.
        action("errorTest")
            .only(CONTRACT)
            .with(LOGGING, "disabled")
            .status(500)
            .text("")
            .id(LogId::Is(String::new())),
        action("logs").only(CONTRACT).with(LOGGING, "disabled").text("").id(LogId::Is(String::new())),
    ]
}

fn url(case: Case, url: &str, parts: Value) -> Case {
    let mut all = parts;
    all["url"] = url.into();
    case.has(all)
}

/// Section 7, but for bodies.
fn requests() -> Vec<Case> {
    let at = |host: &str, target: &str| action("requestUrl").target(target).with("host", host);
    let headers = || action("requestHeaders");
    let mut all: Vec<_> = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        .map(|method| action("requestMethod").method(method).text(method))
        .into();
    all.push(action("requestMethod").method("HEAD").text("").gives("content-type", &[TEXT]));
    all.extend([
        url(
            at("www.example.com:8000", "/a/b?x=1"),
            "http://www.example.com:8000/a/b?x=1",
            json!({"scheme": "http", "host": "www.example.com", "port": 8000, "path": "/a/b",
                "query": {"x": "1"}, "queryString": "x=1"}),
        ),
        url(
            at("example.com", "/"),
            "http://example.com/",
            json!({"port": 80, "query": {}, "queryString": ""}),
        ),
        url(at("example.com:80", "/"), "http://example.com/", json!({"host": "example.com", "port": 80})),
        url(
            at("example.com", "/p").with("x-forwarded-proto", "https"),
            "https://example.com/p",
            json!({"scheme": "https", "port": 443}),
        ),
        url(
            at("example.com:443", "/p").with("x-forwarded-proto", "https"),
            "https://example.com/p",
            json!({"port": 443}),
        ),
        url(at("example.com:443", "/"), "http://example.com:443/", json!({"scheme": "http", "port": 443})),
        url(
            at("[::1]:3000", "/v6"),
            "http://[::1]:3000/v6",
            json!({"host": "[::1]", "port": 3000, "path": "/v6"}),
        ),
        url(at("[2001:db8::7]", "/"), "http://[2001:db8::7]/", json!({"host": "[2001:db8::7]", "port": 80})),
        action("requestUrl").target("/?a=b&c==d&h&k").has(json!({
            "query": {"a": "b", "c": "=d", "h": "", "k": ""}, "queryString": "a=b&c==d&h&k"})),
        action("requestUrl").target("/x%20y/%2e%2e/z?q=%20%2B+&q=2&=v&&__proto__=p").has(json!({
            "path": "/x%20y/%2e%2e/z", "query": {"q": "2", "__proto__": "p"},
            "queryString": "q=%20%2B+&q=2&=v&&__proto__=p"})),
        action("requestUrl").target("/a?b=/c?d").has(json!({"path": "/a", "query": {"b": "/c?d"}})),
        headers()
            .with("X-First", "1")
            .with("x-first", "2")
            .with("X-FIRST", "3")
            .has(json!({"x-first": "1, 2, 3"})),
        headers().with("Cookie", "a=1").with("cookie", "b=2").has(json!({"cookie": "a=1; b=2"})),
        headers().with("X-Text", "grüße").with("x-empty", "").has(json!({"x-text": "grüße", "x-empty": ""})),
        // Hosts leave it to the function.
        headers().with("authorization", "Basic b3ByOnM=").has(json!({"authorization": "Basic b3ByOnM="})),
        headers().with("x-open-runtimes-mine", "1").with("X-Open-Runtimes-Secret-2", "2").has(json!({
            "x-action": "requestHeaders"})),
        action("headersResponse")
            .with("x-open-runtimes-custom-in-header", "in")
            .text("OK")
            .gives("second-header", &["missing"]),
        action("enforcedHeaders")
            .only(CONTRACT)
            .with("x-custom", "theirs")
            .with("x-open-runtimes-custom", "1")
            .json(
                json!({"x-custom": "custom", "x-custom-uppercase": "UPPER", "x-open-runtimes-custom": "248"}),
            ),
        action("envVars").json(json!({"var": "customValue", "emptyVar": null})),
    ]);
    all
}

/// Sections 7.2 and 7.6.
fn bodies() -> Vec<Case> {
    let typed = |name: &str, kind: &str, body: &str| action(name).with("content-type", kind).post(body);
    let sample = |size: usize| (0..size).map(|i| (i % 251) as u8).collect::<Vec<_>>();
    let large = |size: usize| action("binaryResponseLarge").post(sample(size)).but(&format!("{size} bytes"));
    let too_large = |case: Case| case.only(CONTRACT).post(sample((20 << 20) + 1)).status(413).text("");
    let most = sample(17_000_000);
    vec![
        action("requestBodyText").post("hello 👋").text("hello 👋"),
        action("requestBodyText").text(""),
        action("requestBodyText").with("content-length", "0").method("POST").text(""),
        action("requestBodyText").method("POST").but("no length").text(""),
        action("requestBodyText").method("DELETE").but("no length").text(""),
        typed("requestBodyJson", "text/plain", r#"{"a":[1,"ü"]}"#).json(json!({"a": [1, "ü"]})),
        typed("requestBodyJson", "text/plain", "{not json")
            .status(500)
            .text("")
            .errors_contain(&["{entrypoint}"]),
        action("requestBodyBinary").post([0, 255, 13, 10, 128]).bytes(&[0, 255, 13, 10, 128]),
        typed("requestBodyTextAuto", "text/plain", "{\"a\":1}").text("{\"a\":1}"),
        typed("requestBodyTextAuto", "application/octet-stream", "plain").text("plain"),
        action("requestBodyTextAuto").post("no type").text("no type"),
        typed("requestBodyJsonAuto", "application/json", r#"{"key":"value"}"#).json(json!({"key": "value"})),
        typed("requestBodyJsonAuto", "Application/JSON; charset=utf-8", "[1]").json(json!([1])),
        typed("requestBodyJsonAuto", "application/json", "").json(json!({})),
        large(100_000).text(&md5(&sample(100_000))).gives("x-method", &["POST"]),
        large(17_000_000).text("0e3bec1f6db524d7cd02b4ffb7ec8509"),
        action("requestBodyBinary").post(most.clone()).but("17 MB").bytes(&most),
        // The limit itself, and one byte more.
        large(20 << 20).text("e70bc48cb097f4e3363c57c40f66a732"),
        // Its line would be in the log if it had been called.
        too_large(action("errorTest")).errors_contain(&["20971520"]).but("20 MiB and one byte"),
    ]
}

fn md5(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let output = std::process::Command::new("md5sum").arg(file.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..32].to_owned()
}

/// Sections 8 and 9.
fn answers() -> Vec<Case> {
    let kind = |name: &str, kind: &str| action(name).gives("content-type", &[kind]);
    let cookies = |name: &str| {
        let case = action(name).text("OK").gives("some-header", &["some-value"]);
        case.gives("set-cookie", &["cookie=value; path=/", "cookie2=value2; path=/"])
    };
    let mut all = vec![
        kind("plaintextResponse", TEXT).text("Hello World 👋"),
        kind("jsonResponse", JSON).json(json!({"json": true, "message": "Developers are awesome."})),
        action("jsonResponse").text(r#"{"json":true,"message":"Developers are awesome."}"#).but("compact"),
        kind("customCharsetResponse", "text/plain; charset=iso-8859-1").text("ÅÆ"),
        kind("uppercaseCharsetResponse", TEXT).text("ÅÆ"),
        kind("multipartResponse", "multipart/form-data; boundary=12345").text(
            "--12345\r\nContent-Disposition: form-data; name=\"partOne\"\r\n\r\n\
             Why just have one part?\r\n--12345--\r\n",
        ),
        action("redirectResponse").status(301).text("").gives("location", &["https://github.com/"]),
        action("emptyResponse").status(204).text(""),
        action("doubleResponse").text("This should be returned."),
        action("statusResponse").status(404).text("FAIL"),
        action("headersResponse")
            .with("cookie", "cookieName=cookieValue; second=1")
            .text("OK")
            .gives("first-header", &["first-value"])
            .gives("second-header", &["missing"])
            .gives("cookie", &["cookieName=cookieValue; second=1"])
            .gives("x-open-runtimes-custom-out-header", &[]),
        cookies("setCookie"),
        cookies("setCookie2"),
        action("deprecatedMethods").post("raw").text("raw"),
        action("deprecatedMethodsUntypedBody").text("50"),
        kind("deprecatedMethodsBytesBody", "image/png").bytes(b"\x89PNG\r\n\x1a\n"),
    ];
    all.extend((1..=5).map(|n| action(&format!("binaryResponse{n}")).bytes(&[0, n * 10, 255])));
    all
}

/// Section 9.6, but for what fails before the function is there.
fn failures() -> Vec<Case> {
    let failed = |name: &str| action(name).status(500).text("").gives("content-length", &["0"]);
    vec![
        failed("noResponse").errors(NOTHING),
        failed("errorTest").logs("Before error...\n").errors_contain(&["Error!", "{entrypoint}"]),
        failed("no such action").errors_contain(&["Unknown action", "{entrypoint}"]),
        failed("loop").only(CONTRACT).with(TIMEOUT, "1").logs("Loop start.\n").errors(TIMED_OUT),
        // Whatever that took with it is there again.
        action("plaintextResponse").but("after the loop").text("Hello World 👋"),
    ]
}

/// Section 10.
fn logs() -> Vec<Case> {
    let cut = |letter: &str| {
        format!("{}... Log truncated due to size limit (8000 characters)\n", letter.repeat(8000))
    };
    let logs = format!(
        "{NATIVE}Native log\nDebug log\nLog+With+Plus+Symbol\n42\n4.2\ntrue\n{{\"objectKey\":\"objectValue\"}}\n\
         [\"arrayValue\"]\n{}",
        cut("A")
    );
    vec![
        action("logs").text("").logs(&logs).errors(&format!("Error log\n{}", cut("B"))),
        action("spreadOperatorLogs")
            .text("OK")
            .logs("engine: open-runtimes\n")
            .errors("engine: open-runtimes\n"),
    ]
}

/// For a server without a secret, in development, whose enforced headers are no JSON.
pub fn open_rows() -> Vec<Case> {
    let dev =
        || action("plaintextResponse").without_secret().text("Hello World 👋").id(LogId::Is("dev".into()));
    vec![
        dev(),
        dev().with(SECRET, "whatever"),
        dev().with(LOG_ID, "../bad"),
        dev().with(LOG_ID, "mine").id(LogId::Is("mine".into())),
        dev().with(LOGGING, "disabled").id(LogId::Is(String::new())),
        dev().with(TIMEOUT, "0").status(500).text(BAD_TIMEOUT).id(LogId::None),
        action("requestHeaders")
            .without_secret()
            .id(LogId::Is("dev".into()))
            .has(json!({"x-action": "requestHeaders"})),
    ]
}
