//! What a guest hears.

use futures_util::stream;

use super::*;

/// The lines of the head that an echoing guest heard.
async fn head(target: &Target, request: Outgoing) -> Vec<String> {
    let heard = sent(target, request).await;
    heard.split("\r\n\r\n").next().unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn the_control_headers_follow_the_callers() {
    let (target, _) = echoing().await;
    let mut request = with(
        posting(Method::PUT, "0"),
        &[
            ("x-b", "1"),
            ("x-a", "2"),
            ("authorization", "Bearer own"),
            ("x-b", "3"),
            ("x-open-runtimes-secret", "guess"),
            ("x-open-runtimes-log-id", "../x"),
            ("expect", "100-continue"),
            ("te", "trailers"),
            ("transfer-encoding", "gzip"),
            ("content-length", "77"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
        ],
    );
    request.path = "a b/ä?q=1&r=%20#part".into();
    let expected = [
        "PUT /a%20b/%C3%A4?q=1&r=%20 HTTP/1.1",
        &format!("host: {}", target.address),
        "x-b: 1",
        "x-b: 3",
        "x-a: 2",
        "authorization: Bearer own",
        "authorization: Basic b3ByOnMzY3JldA==",
        "x-open-runtimes-logging: enabled",
        "x-open-runtimes-log-transport: head",
        "x-open-runtimes-secret: s3cret",
        "x-open-runtimes-timeout: 30",
        "content-type: application/x-www-form-urlencoded",
        "accept: */*",
        "content-length: 1",
    ];
    assert_eq!(head(&target, request).await, expected);
}

#[tokio::test]
async fn what_the_caller_says_replaces_the_defaults() {
    let (target, _) = echoing().await;
    let mut request = posting(Method::POST, "");
    request.logging = false;
    request.basic = false;
    request.limit = Duration::from_millis(10);
    let request =
        with(request, &[("accept", "a/b"), ("content-type", "c/d"), ("host", "x:1"), ("host", "y")]);
    let expected = [
        "POST / HTTP/1.1",
        "host: x:1",
        "accept: a/b",
        "content-type: c/d",
        "x-open-runtimes-logging: disabled",
        "x-open-runtimes-secret: s3cret",
        "x-open-runtimes-timeout: 1",
        "content-length: 0",
    ];
    assert_eq!(head(&target, request).await, expected);
}

#[tokio::test]
async fn a_guest_that_just_listens_hears_nothing_added() {
    let (mut target, _) = echoing().await;
    target.profile = Profile::Port;
    let host = format!("host: {}", target.address);
    assert_eq!(head(&target, get("")).await, ["GET / HTTP/1.1", &host]);
    let heard = head(&target, with(get("?x"), &[("x-open-runtimes-x", "1"), ("a", "b")])).await;
    assert_eq!(heard, ["GET /?x HTTP/1.1", &host, "a: b"]);
    assert!(sent(&target, posting(Method::POST, "0")).await.ends_with("content-length: 1\r\n\r\n0"));
}

#[tokio::test]
async fn streams_go_with_their_length_or_in_chunks_whatever_the_method() {
    let (target, _) = echoing().await;
    for method in [Method::GET, Method::POST, Method::DELETE] {
        let request = Outgoing { method, body: pieces(&["ab", "c"]), ..get("/") };
        let heard = sent(&target, with(request, &[("content-length", "3")])).await;
        assert!(heard.contains("\r\ncontent-length: 3\r\n") && heard.ends_with("\r\n\r\nabc"), "{heard}");
    }
    for length in [None, Some("x"), Some("+3")] {
        for method in [Method::GET, Method::POST] {
            let request = Outgoing { method, body: pieces(&["ab", "c"]), ..get("/") };
            let length = length.map(|length| ("content-length", length));
            let heard = sent(&target, with(request, length.as_slice())).await;
            assert!(heard.ends_with("\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"), "{heard}");
            assert!(!heard.contains("content-length"), "{heard}");
        }
    }
}

#[tokio::test]
async fn a_callers_body_that_breaks_off_is_not_the_guests_fault() {
    let (target, _) = echoing().await;
    let broken = [Ok(Bytes::from_static(b"a")), Err(BodyError::Idle(Duration::from_secs(3)))];
    let request = Outgoing { body: Body::Stream(stream::iter(broken).boxed()), ..posting(Method::POST, "") };
    let error = refused(&target, request).await;
    assert!(matches!(error, TransportError::Request(BodyError::Idle(_))), "{error:?}");

    let request = Outgoing { body: pieces(&["ab", "c"]), ..posting(Method::POST, "") };
    let error = refused(&target, with(request, &[("content-length", "4")])).await;
    assert!(matches!(error, TransportError::Request(_)), "{error:?}");
    assert!(error.to_string().contains("shorter"), "{error}");
}

#[tokio::test]
async fn a_guest_gets_no_more_than_it_was_promised() {
    let (target, _) = echoing().await;
    let client = Client::default();
    for body in [pieces(&["ab", "GET /"]), pieces(&["abGET /"])] {
        let request = with(Outgoing { body, ..posting(Method::POST, "") }, &[("content-length", "2")]);
        let heard = whole(client.send(&target, request).await.unwrap().body).await.unwrap();
        assert!(heard.ends_with(b"\r\n\r\nab"), "{}", String::from_utf8_lossy(&heard));
    }
}

#[tokio::test]
async fn what_http_cannot_carry_is_refused_before_anything_is_sent() {
    let (mut target, count) = echoing().await;
    let error = refused(&target, Outgoing { method: Method::CONNECT, ..get("/") }).await;
    assert!(matches!(error, TransportError::Invalid(_)), "{error:?}");
    let many = vec![("a", "b"); 1025];
    let error = refused(&target, with(get("/"), &many)).await;
    assert!(matches!(error, TransportError::Invalid(_)), "{error:?}");
    target.secret = Secret::new("hidden\n");
    let error = refused(&target, get("/")).await;
    assert!(matches!(&error, TransportError::Invalid(why) if !why.contains("hidden")), "{error:?}");
    assert_eq!(count.load(Ordering::SeqCst), 0);
    target.secret = Secret::new("s3cret");
    assert!(sent(&target, with(get("/"), &many[1..])).await.contains("a: b"), "at the bound");
}

mod any {
    use proptest::prelude::*;

    use super::super::super::request::prepare;
    use super::*;

    fn target() -> Target {
        let address = "127.0.0.1:3000".parse().unwrap();
        Target {
            address,
            profile: Profile::V5,
            secret: Secret::new("s"),
            logs: None,
            alive: Alive::new(|| true),
        }
    }

    proptest! {
        #[test]
        fn path_is_sent_as_one_clean_target(path in "\\PC{0,40}|[\\x00-\\x7f]{0,20}") {
            let prepared = prepare(&target(), get(&path)).unwrap();
            let uri = prepared.uri.to_string();
            prop_assert!(uri.starts_with('/'), "{}", uri);
            prop_assert!(uri.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'#'), "{}", uri);
            let kept: String = path.chars().filter(char::is_ascii_alphanumeric).collect();
            if !path.contains('#') && path.is_ascii() && path.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                prop_assert_eq!(uri, format!("/{kept}"));
            }
        }

        #[test]
        fn headers_keep_their_order_and_nothing_reserved_crosses(
            names in proptest::collection::vec("a|b|c|host|Keep-Alive|x-open-runtimes-a|connection|upgrade", 0..20),
        ) {
            let numbered: Vec<_> =
                names.iter().enumerate().map(|(at, name)| (name.as_str(), at.to_string())).collect();
            let given: Vec<_> = numbered.iter().map(|(name, at)| (*name, at.as_str())).collect();
            let headers = prepare(&target(), with(get("/"), &given)).unwrap().headers;
            for name in ["a", "b", "c"] {
                let sent: Vec<_> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
                let wanted: Vec<_> = given.iter().filter(|(given, _)| *given == name).map(|(_, at)| *at).collect();
                prop_assert_eq!(sent, wanted);
            }
            prop_assert_eq!(headers.get_all("host").iter().count(), 1);
            for name in ["keep-alive", "x-open-runtimes-a", "connection", "upgrade"] {
                prop_assert!(!headers.contains_key(name));
            }
        }
    }
}
