//! Routes, key, bodies and health, as far as they need no guest.

use futures_util::{StreamExt, stream};
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;

use super::params::Param;
use super::*;

fn found<'a>(method: &str, path: &'a str) -> Option<Route<'a>> {
    Route::find(&Method::from_bytes(method.as_bytes()).unwrap(), path)
}

fn header(name: header::HeaderName, value: &str) -> HeaderMap {
    [(name, HeaderValue::from_str(value).unwrap())].into_iter().collect()
}

#[test]
fn r_1_slashes_do_not_count() {
    for ours in ["/v1", "/v1/", "//v1", "/v1/runtimes", "//v1//x", "/v1//"] {
        assert!(is_ours(ours), "{ours}");
    }
    for theirs in ["/", "/v", "/v10", "/v1x/runtimes", "/V1", "/x/v1", "/_/v1", "*", ""] {
        assert!(!is_ours(theirs), "{theirs}");
    }
    for path in ["/v1/runtimes/a", "/v1/runtimes/a/", "//v1///runtimes//a//"] {
        assert_eq!(found("GET", path), Some(Route::Get("a")), "{path}");
    }
    assert_eq!(found("GET", "/v1/health/"), Some(Route::Health));
}

#[test]
fn r_6_r_7_routes_and_nothing_else() {
    for (path, routes) in [
        ("/v1/health", &[("GET", Route::Health)][..]),
        ("/v1/runtimes", &[("GET", Route::List), ("POST", Route::Create)]),
        ("/v1/runtimes/a", &[("GET", Route::Get("a")), ("DELETE", Route::Delete("a"))]),
        ("/v1/runtimes/a/executions", &[("POST", Route::Execute("a"))]),
        ("/v1/runtimes/a/execution", &[("POST", Route::Execute("a"))]),
        ("/v1/runtimes/a/commands", &[("POST", Route::Command("a"))]),
        ("/v1/runtimes/a/logs", &[("GET", Route::Logs("a"))]),
        ("/v1", &[]),
        ("/v1/", &[]),
        ("/v1/unknown", &[]),
        ("/v1/health/x", &[]),
        ("/v1/runtimes/a/unknown", &[]),
        ("/v1/runtimes/a/executions/b", &[]),
        ("/v1/runtimes/a/logs/b/c/d/e", &[]),
        ("/v2/health", &[]),
    ] {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "FOO", "get"] {
            let told = routes.iter().find(|(with, _)| *with == method).map(|(_, route)| route);
            assert_eq!(found(method, path).as_ref(), told, "{method} {path}");
        }
        assert_eq!(found("HEAD", path), found("GET", path), "HEAD {path}");
    }
}

#[test]
fn r_10_r_11_the_key() {
    let secret = Secret::new("k");
    for good in ["Bearer k", "Basic k", " k", "x k more", "Bearer k "] {
        assert!(authorized(&header(header::AUTHORIZATION, good), &secret), "{good}");
    }
    for bad in ["k", "Bearer", "Bearer  k", "Bearer K", "Bearer kk", "Bearer\tk", ""] {
        assert!(!authorized(&header(header::AUTHORIZATION, bad), &secret), "{bad}");
    }
    assert!(!authorized(&HeaderMap::new(), &secret));
    // Without a secret nobody comes in, not even with an empty key.
    for key in ["Bearer ", "Bearer  ", "Bearer x"] {
        assert!(!authorized(&header(header::AUTHORIZATION, key), &Secret::new("")), "{key:?}");
    }
}

#[test]
fn r_3_the_head_counts() {
    let raw = "GET /v1/runtimes?a=b HTTP/1.1\r\nhost: localhost\r\nx: \r\n\r\n";
    let request = Request::builder().uri("/v1/runtimes?a=b").header("host", "localhost").header("x", "");
    assert_eq!(head_size(&request.body(()).unwrap().into_parts().0), raw.len());
}

const IDLE: Duration = Duration::from_secs(1);

/// A body that comes in pieces of the given sizes, as chunks do.
fn chunks(sizes: &[usize]) -> impl Body<Data = Bytes, Error = std::convert::Infallible> + Unpin {
    let frames: Vec<_> = sizes.iter().map(|size| Ok(Frame::data(Bytes::from(vec![b'x'; *size])))).collect();
    StreamBody::new(stream::iter(frames))
}

#[tokio::test]
async fn r_3_a_body_is_read_up_to_its_bound_and_not_one_byte_more() {
    let reading = Semaphore::new(100);
    for sizes in [&[][..], &[10], &[4, 6], &[1; 10], &[0, 10, 0], &[3, 0, 7]] {
        let (body, held) = read(&reading, chunks(sizes), 10, IDLE).await.unwrap();
        let size = sizes.iter().sum::<usize>();
        assert_eq!(body, vec![b'x'; size], "{sizes:?}");
        assert_eq!(reading.available_permits(), 100 - size);
        drop(held);
        assert_eq!(reading.available_permits(), 100);
    }
    for sizes in [&[11][..], &[10, 1], &[1; 11], &[5, 5, 1]] {
        let problem = read(&reading, chunks(sizes), 10, IDLE).await.err().unwrap();
        assert_eq!(problem, Problem::too_large(MAX_REQUEST), "{sizes:?}");
        assert_eq!(reading.available_permits(), 100, "nothing stays held");
    }
}

#[tokio::test]
async fn all_bodies_together_are_bounded() {
    let reading = Semaphore::new(10);
    let (_, first) = read(&reading, chunks(&[6]), 100, IDLE).await.unwrap();
    let problem = read(&reading, chunks(&[4, 1]), 100, IDLE).await.err().unwrap();
    assert_eq!(problem, Problem::overloaded());
    assert!(read(&reading, chunks(&[4]), 100, IDLE).await.is_ok());
    drop(first);
    assert!(read(&reading, chunks(&[10]), 100, IDLE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_given_up() {
    let reading = Semaphore::new(1000);
    let slow = |pause: Duration| {
        let drips = stream::unfold((), move |()| async move {
            tokio::time::sleep(pause).await;
            Some((Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"x"))), ()))
        });
        StreamBody::new(drips.boxed())
    };
    let begun = Instant::now();
    let problem = read(&reading, slow(IDLE * 2), 10_000, IDLE).await.err().unwrap();
    assert_eq!((problem, begun.elapsed()), (Problem::body_too_slow(), IDLE));
    let begun = Instant::now();
    let problem = read(&reading, slow(IDLE / 2), 10_000, IDLE).await.err().unwrap();
    assert_eq!((problem, begun.elapsed()), (Problem::body_too_slow(), BODY_TIME));
    assert_eq!(reading.available_permits(), 1000);
    // What nobody reads ends the same way, in all, and at its size.
    let begun = Instant::now();
    drain(slow(IDLE / 2), IDLE).await;
    assert_eq!(begun.elapsed(), IDLE);
    let mut pieces = 0;
    let endless = stream::repeat_with(|| {
        pieces += 1;
        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(&[0; 1024])))
    });
    drain(StreamBody::new(endless), IDLE).await;
    assert_eq!(pieces, MAX_UNREAD / 1024 + 1);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_400() {
    let reading = Semaphore::new(1000);
    let frames = [Ok(Frame::data(Bytes::from_static(b"x"))), Err("reset")];
    let problem = read(&reading, StreamBody::new(stream::iter(frames)), 10, IDLE).await.err().unwrap();
    assert_eq!((problem.status.as_u16(), &*problem.message), (400, "The request's body broke off: reset."));
    assert_eq!(read(&reading, Full::new(Bytes::new()), 0, IDLE).await.unwrap().0, Bytes::new());
}

#[test]
fn r_21_r_22_the_content_type_decides() {
    let read = |content_type: Option<&str>, body: &'static str| {
        let headers = content_type.map_or_else(HeaderMap::new, |value| header(header::CONTENT_TYPE, value));
        Param::Map(params_of(&headers, body.into()).unwrap().0).to_text().unwrap()
    };
    let json = r#"{"a":"1"}"#;
    for kind in
        ["application/json", "application/json; charset=utf-8", "Application/JSON ;x", " application/json"]
    {
        assert_eq!(read(Some(kind), json), json, "{kind}");
        assert_eq!(read(Some(kind), "[]"), "{}");
    }
    let form = "application/x-www-form-urlencoded";
    assert_eq!(read(Some(form), "a=1"), json);
    let part = "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--B--\r\n";
    assert_eq!(read(Some("Multipart/Form-Data; boundary=B"), part), json);
    for none in
        [None, Some("text/plain"), Some(""), Some("application/jsonx"), Some("multipart/mixed; boundary=B")]
    {
        assert_eq!(read(none, json), "{}", "{none:?}");
    }
    let broken = params_of(&header(header::CONTENT_TYPE, "multipart/form-data"), Bytes::new());
    assert_eq!(broken.unwrap_err().status, 400);
}

#[test]
fn r_51_who_gets_json() {
    for (accept, by_default, otherwise) in [
        (None, true, false),
        (Some("*/*"), true, false),
        (Some("application/json"), true, true),
        (Some("text/html,application/json;q=0.9"), true, true),
        (Some("Application/JSON"), true, true),
        (Some("text/plain"), false, false),
        (Some("text/plain, application/json"), true, true),
        (Some("application/jsonx"), true, false),
    ] {
        let headers = accept.map_or_else(HeaderMap::new, |value| header(header::ACCEPT, value));
        assert_eq!(
            (wants_json(&headers, true), wants_json(&headers, false)),
            (by_default, otherwise),
            "{accept:?}"
        );
    }
    assert_eq!(
        health_document(12.0, vec![("b".into(), 0.5), ("a".into(), 3.0)]),
        r#"{"status":"pass","usage":12.0,"runtimes":{"b":{"status":"pass","usage":0.5},"a":{"status":"pass","usage":3.0}}}"#
    );
    assert_eq!(health_document(0.0, Vec::new()), r#"{"status":"pass","usage":0.0,"runtimes":{}}"#);
}

#[test]
fn r_81_ids_are_percent_decoded() {
    assert_eq!(&*id_of("a%20b+c").unwrap(), "a b+c");
    assert!(id_of(&"a".repeat(65)).is_err());
    assert!(id_of(&"%61".repeat(64)).is_ok());
}
