//! The three encodings byte for byte, and how they are chosen.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use http_body_util::BodyExt;
use proptest::prelude::*;

use super::*;

const JSON: Wanted = Wanted { encoding: Encoding::Json, lists: false };
const MULTIPART: Wanted = Wanted { encoding: Encoding::Multipart, lists: false };
const STREAM: Wanted = Wanted { encoding: Encoding::Streamed, lists: true };

fn executed(body: Body) -> Executed {
    let mut headers = HeaderMap::new();
    headers.insert("x-key", HeaderValue::from_static("aValue"));
    headers.append("set-cookie", HeaderValue::from_static("a=1"));
    headers.append("set-cookie", HeaderValue::from_static("b=2"));
    let rest = Rest {
        logs: Bytes::from_static("lögs/\n".as_bytes()),
        errors: Bytes::from_static(b"\"errors\""),
        duration: 3.0,
    };
    Executed {
        status: 200,
        headers,
        body,
        start_time: 1_795_176_000.12,
        rest: std::future::ready(rest).boxed(),
    }
}

fn full(body: &'static [u8]) -> Body {
    Body::Full(Bytes::from_static(body))
}

fn streaming(pieces: &[Result<&'static [u8], &str>]) -> Body {
    let pieces: Vec<_> = pieces
        .iter()
        .map(|piece| piece.map(Bytes::from_static).map_err(|why| BodyError::Broken(why.into())))
        .collect();
    Body::Stream(stream::iter(pieces).boxed())
}

async fn bytes(response: Response<AnswerBody>) -> Vec<u8> {
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap().to_bytes().to_vec()
}

fn boundary_of(response: &Response<AnswerBody>) -> String {
    let content_type = response.headers()["content-type"].to_str().unwrap();
    let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
    let (hyphens, hex) = boundary.split_at(29);
    assert_eq!(hyphens, "-".repeat(29));
    assert!(hex.len() == 13 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    boundary.to_owned()
}

fn with(name: &'static str, value: &[u8]) -> HeaderMap {
    [(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())].into_iter().collect()
}

#[tokio::test]
async fn r_110_r_113_json_byte_for_byte() {
    for (lists, cookies) in [(false, r#""b=2""#), (true, r#"["a=1","b=2"]"#)] {
        let wanted = Wanted { lists, ..JSON };
        let response = answer(executed(full("bödy".as_bytes())), wanted, 100).await.unwrap();
        assert_eq!(response.headers().len(), 1);
        assert_eq!(response.headers()["content-type"], "application/json");
        let told = format!(
            "{{\"statusCode\":200,\"headers\":{{\"x-key\":\"aValue\",\"set-cookie\":{cookies}}},\"body\":\"bödy\",\
             \"logs\":\"lögs/\\n\",\"errors\":\"\\\"errors\\\"\",\"duration\":3.0,\"startTime\":1795176000.12}}"
        );
        assert_eq!(String::from_utf8(bytes(response).await).unwrap(), told);
    }
    let mut empty = executed(full(b""));
    empty.headers.clear();
    let response = answer(empty, JSON, 100).await.unwrap();
    assert!(bytes(response).await.starts_with(br#"{"statusCode":200,"headers":{},"body":"","#));
}

#[tokio::test]
async fn r_113_what_is_not_utf_8_is_no_json() {
    let binary = Bytes::from_static(b"\xff");
    let body = executed(full(b"a\xff"));
    let mut header = executed(full(b""));
    header.headers.insert("x", HeaderValue::from_bytes(b"\xff").unwrap());
    let rest = |logs: &Bytes, errors: &Bytes| {
        let rest = Rest { logs: logs.clone(), errors: errors.clone(), duration: 0.0 };
        Executed { rest: std::future::ready(rest).boxed(), ..executed(full(b"")) }
    };
    let (logs, errors) = (rest(&binary, &Bytes::new()), rest(&Bytes::new(), &binary));
    for executed in [body, header, logs, errors] {
        assert_eq!(answer(executed, JSON, 100).await.err().unwrap(), Problem::bad_json());
    }
}

#[tokio::test]
async fn r_114_multipart_byte_for_byte() {
    for body in [full(b"\xff\0\r\n--"), streaming(&[Ok(b"\xff\0"), Ok(b""), Ok(b"\r\n--")])] {
        let response = answer(executed(body), MULTIPART, 100).await.unwrap();
        assert_eq!(response.headers().len(), 1);
        let boundary = boundary_of(&response);
        let mut told = Vec::new();
        for (name, more, value) in [
            ("statusCode", "", &b"200"[..]),
            ("headers", "Content-Type: application/json\r\n", br#"{"x-key":"aValue","set-cookie":"b=2"}"#),
            ("body", "", b"\xff\0\r\n--"),
            ("logs", "", "lögs/\n".as_bytes()),
            ("errors", "", b"\"errors\""),
            ("duration", "", b"3.0"),
            ("startTime", "", b"1795176000.12"),
        ] {
            let head =
                format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n{more}\r\n");
            told.extend_from_slice(head.as_bytes());
            told.extend_from_slice(value);
            told.extend_from_slice(b"\r\n");
        }
        told.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        assert_eq!(bytes(response).await, told);
    }
}

#[tokio::test]
async fn r_114_header_bytes_are_replaced_in_their_json() {
    let mut strange = executed(full(b""));
    strange.headers.insert("x-key", HeaderValue::from_bytes(b"a\xff").unwrap());
    let text = String::from_utf8(bytes(answer(strange, MULTIPART, 0).await.unwrap()).await).unwrap();
    assert!(text.contains("{\"x-key\":\"a\u{fffd}\",\"set-cookie\":\"b=2\"}"), "{text}");
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_is_bounded() {
    for wanted in [JSON, MULTIPART] {
        for body in [full(b"12345"), streaming(&[Ok(b"123"), Ok(b"45")])] {
            assert!(answer(executed(body), wanted, 5).await.is_ok());
        }
        for body in [full(b"123456"), streaming(&[Ok(b"123"), Ok(b"456")])] {
            let problem = answer(executed(body), wanted, 5).await.err().unwrap();
            assert_eq!(problem, Problem::answer_too_large(5));
        }
    }
    let streamed = answer(executed(full(b"123456")), STREAM, 5).await.unwrap();
    assert!(!bytes(streamed).await.is_empty());
}

#[tokio::test]
async fn r_100_a_body_that_breaks_off_is_a_failed_execution() {
    for (error, number) in [
        (BodyError::Broken("reset".into()), 56),
        (BodyError::Idle(Duration::from_secs(1)), 28),
        (BodyError::Late(Duration::from_secs(1)), 28),
        (BodyError::TooLarge(1), 56),
    ] {
        let body = Body::Stream(stream::iter([Ok(Bytes::from_static(b"a")), Err(error)]).boxed());
        let problem = answer(executed(body), MULTIPART, 100).await.err().unwrap();
        assert_eq!((problem.status.as_u16(), problem.kind), (500, "general_unknown"));
        let told = format!("Internal curl error has occurred within the executor! Error Number: {number}");
        assert_eq!(problem.development.unwrap(), told);
    }
}

fn chunked(boundary: &str, name: &str, runs: &str) -> String {
    format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\
         Content-Transfer-Encoding: chunked\r\n\r\n{runs}0\r\n\r\n"
    )
}

#[tokio::test]
async fn r_121_r_122_streamed_byte_for_byte() {
    let body = streaming(&[Ok(b"hello"), Ok(b""), Ok(b"0123456789abcdef")]);
    let response = answer(executed(body), STREAM, 0).await.unwrap();
    let boundary = boundary_of(&response);
    assert_eq!(response.headers()["x-executor-response-format"], "0.12.0");
    let headers = r#"{"x-key":"aValue","set-cookie":["a=1","b=2"]}"#;
    let told = [
        chunked(&boundary, "statusCode", "3\r\n200\r\n"),
        chunked(&boundary, "headers", &format!("{:x}\r\n{headers}\r\n", headers.len())),
        chunked(&boundary, "body", "5\r\nhello\r\n10\r\n0123456789abcdef\r\n"),
        chunked(&boundary, "logs", "7\r\nlögs/\n\r\n"),
        chunked(&boundary, "errors", "8\r\n\"errors\"\r\n"),
        chunked(&boundary, "duration", "3\r\n3.0\r\n"),
        chunked(&boundary, "startTime", "d\r\n1795176000.12\r\n"),
        format!("--{boundary}--"),
    ];
    assert_eq!(String::from_utf8(bytes(response).await).unwrap(), told.concat());
}

#[tokio::test]
async fn r_121_an_empty_part_has_no_run() {
    let empty = Rest { logs: Bytes::new(), errors: Bytes::new(), duration: 0.0 };
    let executed = Executed { rest: std::future::ready(empty).boxed(), ..executed(full(b"")) };
    let response = answer(executed, STREAM, 0).await.unwrap();
    let boundary = boundary_of(&response);
    let text = String::from_utf8(bytes(response).await).unwrap();
    for name in ["body", "logs", "errors"] {
        assert!(text.contains(&chunked(&boundary, name, "")), "{name} in {text}");
    }
}

#[tokio::test]
async fn r_122_the_body_goes_on_as_it_arrives_and_the_rest_is_asked_for_at_its_end() {
    let (sender, receiver) = tokio::sync::mpsc::channel::<&'static [u8]>(1);
    let body = stream::unfold(receiver, |mut body| async {
        body.recv().await.map(|piece| (Ok(Bytes::from_static(piece)), body))
    });
    let asked = Arc::new(Mutex::new(false));
    let noted = Arc::clone(&asked);
    let rest = async move {
        *noted.lock().unwrap() = true;
        Rest { logs: Bytes::from_static(b"done"), errors: Bytes::new(), duration: 1.0 }
    };
    let executed = Executed { rest: rest.boxed(), ..executed(Body::Stream(body.boxed())) };
    let mut body = answer(executed, STREAM, 0).await.unwrap().into_body();
    let mut next = async move || Some(body.frame().await?.unwrap().into_data().unwrap());
    let head = String::from_utf8(next().await.unwrap().to_vec()).unwrap();
    assert!(head.contains("name=\"statusCode\"") && head.contains("name=\"headers\""));
    assert!(head.ends_with("name=\"body\"\r\nContent-Transfer-Encoding: chunked\r\n\r\n"));
    for piece in ["one", "three"] {
        sender.send(piece.as_bytes()).await.unwrap();
        assert_eq!(next().await.unwrap(), format!("{}\r\n{piece}\r\n", piece.len()));
        assert!(!*asked.lock().unwrap());
    }
    drop(sender);
    let tail = String::from_utf8(next().await.unwrap().to_vec()).unwrap();
    assert!(tail.starts_with("0\r\n\r\n--") && tail.contains("\r\n4\r\ndone\r\n") && tail.ends_with("--"));
    assert!(*asked.lock().unwrap());
    assert!(next().await.is_none());
}

#[tokio::test]
async fn r_123_a_broken_body_ends_without_the_closing_delimiter() {
    let body = streaming(&[Ok(b"part"), Err("reset"), Ok(b"more")]);
    let mut body = answer(executed(body), STREAM, 0).await.unwrap().into_body();
    let mut text = Vec::new();
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(frame) => text.extend_from_slice(&frame.into_data().unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.to_string(), "the body ended early: reset");
    assert!(body.frame().await.is_none());
    assert!(text.ends_with(b"\r\n4\r\npart\r\n"));
}

#[test]
fn r_111_versions_are_compared_as_versions() {
    use Ordering::{Equal, Greater, Less};
    for (a, order, b) in [
        ("0.11.0", Equal, "0.11.0"),
        ("0.10.0", Less, "0.11.0"),
        ("0.9.0", Less, "0.11.0"),
        ("0.2.0", Less, "0.11.0"),
        ("0.100.0", Greater, "0.11.0"),
        ("1", Greater, "0.11.0"),
        ("0.011.0", Equal, "0.11.0"),
        ("0.11", Less, "0.11.0"),
        ("0.11.0.1", Greater, "0.11.0"),
        ("0.11.0-dev", Less, "0.11.0"),
        ("0.11.0dev", Less, "0.11.0"),
        ("v0.11.0", Less, "0.11.0"),
        ("", Less, "0.11.0"),
        ("latest", Less, "0.11.0"),
        ("99999999999999999999999.0", Greater, "0.11.0"),
    ] {
        assert_eq!(compare_versions(a, b), order, "{a} and {b}");
        assert_eq!(compare_versions(b, a), order.reverse(), "{b} and {a}");
    }
}

#[test]
fn r_111_r_120_what_a_format_gives() {
    let wanted = |encoding, lists| Wanted { encoding, lists };
    assert_eq!(Wanted::of(&HeaderMap::new()), wanted(Encoding::Multipart, false));
    for (format, told) in [
        (&b"0.10.0"[..], wanted(Encoding::Multipart, false)),
        (b"0.11.0", wanted(Encoding::Multipart, true)),
        (b"0.11.9", wanted(Encoding::Multipart, true)),
        (b"0.12.0", wanted(Encoding::Streamed, true)),
        (b"1.0", wanted(Encoding::Streamed, true)),
        (b"", wanted(Encoding::Multipart, false)),
        (b"\xff", wanted(Encoding::Multipart, false)),
    ] {
        let mut headers = with("x-executor-response-format", format);
        assert_eq!(Wanted::of(&headers), told);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        assert_eq!(Wanted::of(&headers), Wanted { encoding: Encoding::Json, ..told });
    }
}

#[test]
fn r_112_accept() {
    for (accept, json) in [
        (&b"application/json"[..], true),
        (b"application/json; charset=utf-8", true),
        (b"application/jsonx", true),
        (b"application/*", true),
        (b"text/html, application/json", true),
        (b"multipart/form-data, application/*;q=0.1", true),
        (b"*/*", false),
        (b"", false),
        (b"multipart/form-data", false),
        (b"text/html,application/json", false),
        (b"text/html,  application/json", false),
        (b"Application/JSON", false),
        (b"\xff, application/json", true),
        (b", ", false),
    ] {
        assert_eq!(Wanted::of(&with("accept", accept)).encoding == Encoding::Json, json, "{accept:?}");
    }
    let mut twice = with("accept", b"text/html");
    twice.append(header::ACCEPT, HeaderValue::from_static("application/json"));
    assert_eq!(Wanted::of(&twice).encoding, Encoding::Json);
}

proptest! {
    #[test]
    fn any_accept_and_format_are_understood(accept in "[ -~]{0,60}", format in "[ -~]{0,100}", a in "\\PC{0,20}") {
        let mut headers = with("accept", accept.as_bytes());
        headers.insert(FORMAT, HeaderValue::from_str(&format).unwrap());
        let splits = accept.split(", ").any(|p| p.starts_with("application/json") || p.starts_with("application/*"));
        prop_assert_eq!(Wanted::of(&headers).encoding == Encoding::Json, splits);
        prop_assert_eq!(compare_versions(&a, &format), compare_versions(&format, &a).reverse());
        prop_assert_eq!(compare_versions(&a, &a), Ordering::Equal);
    }
}
