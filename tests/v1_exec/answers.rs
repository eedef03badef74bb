//! Reads answers as strictly as the specification is written: a byte that is not where it belongs is a failed test.

use crate::common::Reply;
use crate::harness::Api;
use serde_json::{Value, json};

///
pub(crate) const FIELDS: [&str; 7] =
    ["statusCode", "headers", "body", "logs", "errors", "duration", "startTime"];

/// Fields in order, as bytes.
pub(crate) type Fields = Vec<(String, Vec<u8>)>;

/// The boundary of a multipart answer, whose content type must be spelt as R-114 says.
#[track_caller]
pub(crate) fn boundary(reply: &Reply) -> String {
    let kind = reply.header("content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap_or_else(|| panic!("{kind}"));
    assert!(boundary.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{boundary}");
    assert!(boundary.len() <= 70, "{boundary}");
    boundary.to_owned()
}

/// Takes what must come next.
#[track_caller]
fn take<'a>(rest: &mut &'a [u8], expected: &str) -> &'a [u8] {
    let (begin, after) = rest.split_at_checked(expected.len()).unwrap_or_else(|| {
        panic!("the end came where {expected:?} should be: {:?}", String::from_utf8_lossy(rest))
    });
    assert_eq!(String::from_utf8_lossy(begin), expected);
    *rest = after;
    begin
}

fn take_until<'a>(rest: &mut &'a [u8], end: &str) -> &'a [u8] {
    let at = memchr::memmem::find(rest, end.as_bytes()).unwrap_or_else(|| panic!("no {end:?} comes"));
    let found = &rest[..at];
    *rest = &rest[at + end.len()..];
    found
}

/// R-114, byte for byte.
#[track_caller]
pub(crate) fn multipart(reply: &Reply) -> Fields {
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("x-executor-response-format"), None);
    let boundary = boundary(reply);
    let mut rest = &reply.body[..];
    let fields = FIELDS.map(|name| {
        take(&mut rest, &format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n"));
        if name == "headers" {
            take(&mut rest, "Content-Type: application/json\r\n");
        }
        take(&mut rest, "\r\n");
        let value = take_until(&mut rest, &format!("\r\n--{boundary}"));
        // Give the delimiter back.
        let used = reply.body.len() - rest.len() - boundary.len() - 2;
        rest = &reply.body[used..];
        (name.to_owned(), value.to_vec())
    });
    take(&mut rest, &format!("--{boundary}--\r\n"));
    assert!(rest.is_empty());
    fields.into()
}

/// R-121, byte for byte: the runs of each part, and whether the closing delimiter came. A break is only allowed where
/// `broken` says so.
#[track_caller]
pub(crate) fn streamed(reply: &Reply) -> Vec<(String, Vec<Vec<u8>>)> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(!reply.broken);
    assert_eq!(reply.header("x-executor-response-format"), Some("0.12.0"));
    let boundary = boundary(reply);
    let mut rest = &reply.body[..];
    let parts = FIELDS.map(|name| {
        part_head(&mut rest, &boundary, name);
        (name.to_owned(), runs(&mut rest))
    });
    take(&mut rest, &format!("--{boundary}--"));
    assert!(rest.is_empty(), "nothing follows the closing delimiter: {rest:?}");
    parts.into()
}

#[track_caller]
pub(crate) fn part_head(rest: &mut &[u8], boundary: &str, name: &str) {
    take(
        rest,
        &format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\
             Content-Transfer-Encoding: chunked\r\n\r\n"
        ),
    );
}

/// The runs of one part, its end included.
#[track_caller]
pub(crate) fn runs(rest: &mut &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let length = String::from_utf8(take_until(rest, "\r\n").to_vec()).unwrap();
        if length == "0" {
            take(rest, "\r\n");
            return all;
        }
        let lower = length.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        assert!(lower && !length.starts_with('0'), "{length}");
        let length = usize::from_str_radix(&length, 16).unwrap();
        let (run, after) = rest.split_at(length);
        all.push(run.to_vec());
        *rest = after;
        take(rest, "\r\n");
    }
}

/// Whole values of a streamed answer.
pub(crate) fn whole(parts: Vec<(String, Vec<Vec<u8>>)>) -> Fields {
    parts.into_iter().map(|(name, runs)| (name, runs.concat())).collect()
}

/// A field as text.
#[track_caller]
pub(crate) fn text(fields: &Fields, name: &str) -> String {
    let (_, value) = fields.iter().find(|(found, _)| found == name).unwrap();
    String::from_utf8(value.clone()).unwrap()
}

/// What the function saw: the body of `/echo`.
#[track_caller]
pub(crate) fn seen(document: &Value) -> Value {
    let body = document["body"].as_str().unwrap();
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

/// All values of a header that the function saw, in order.
pub(crate) fn seen_header(seen: &Value, name: &str) -> Vec<String> {
    let headers = seen["headers"].as_array().unwrap().iter();
    let named = headers.filter(|pair| pair[0].as_str().unwrap().eq_ignore_ascii_case(name));
    named.map(|pair| pair[1].as_str().unwrap().to_owned()).collect()
}

/// One execution that must be answered with 200.
#[track_caller]
pub(crate) fn run(api: &Api, id: &str, parameters: &Value) -> Value {
    let reply = api.execute(id, parameters);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/json"));
    reply.json()
}

/// An execution of the path with these headers of the caller's request.
pub(crate) fn run_with(api: &Api, id: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = api
        .request("POST", &format!("/v1/runtimes/{id}/executions"))
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.body(json!({ "path": path }).to_string()).send()
}

/// Whether the runtime answers as it should.
#[track_caller]
pub(crate) fn assert_works(api: &Api, id: &str) {
    let document = api.executed(id, "/text?body=fine");
    assert_eq!((&document["statusCode"], &document["body"]), (&json!(200), &json!("fine")), "{document}");
}

/// Every byte percent-encoded.
pub(crate) fn escaped(text: &str) -> String {
    percent_encoding::percent_encode(text.as_bytes(), percent_encoding::NON_ALPHANUMERIC).to_string()
}
