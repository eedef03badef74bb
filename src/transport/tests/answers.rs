//! What a guest may answer, and what is made of it when it does not.

use super::*;

/// What `refused` gives for these bytes, the connection closed after them.
async fn error(bytes: impl Into<Vec<u8>>) -> TransportError {
    refused(&answering(bytes).await, get("/")).await
}

async fn answer(bytes: impl Into<Vec<u8>>) -> Incoming {
    Client::default().send(&answering(bytes).await, get("/")).await.unwrap()
}

#[tokio::test]
async fn every_way_not_to_answer_has_its_own_error() {
    let nobody = Target { address: nobody().await, ..answering("").await };
    assert!(matches!(refused(&nobody, get("/")).await, TransportError::Refused));
    assert!(matches!(error("").await, TransportError::Empty));
    for bytes in ["H", "HTTP/1.1 200 OK\r\na: b\r\n", "HTTP/1.1 100 Continue\r\n\r\n"] {
        let error = error(bytes).await;
        assert!(
            matches!(&error, TransportError::Broken(why) if why.contains("closed")),
            "{bytes}: {error:?}"
        );
    }
    for bytes in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "<html>secret</html>",
        "\0\0\0\0",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let error = error(bytes).await;
        assert!(
            matches!(&error, TransportError::Broken(why) if why.contains("not HTTP")),
            "{bytes}: {error:?}"
        );
        assert!(!error.to_string().contains("secret"), "what a guest sent is not for messages");
    }
    let error = error("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n").await;
    assert!(matches!(&error, TransportError::Broken(why) if why.contains("protocol")), "{error:?}");
}

#[tokio::test]
async fn a_reset_is_no_empty_reply() {
    let target = guest(|_, mut stream| async move {
        heard(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let error = refused(&target, get("/")).await;
    assert!(matches!(&error, TransportError::Broken(why) if why.contains("reset")), "{error:?}");
    assert_eq!(error.errno(), 56);
}

#[tokio::test(start_paused = true)]
async fn the_hard_limit_holds_for_the_head() {
    let target = guest(|_, mut stream| async move {
        heard(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let request = Outgoing { limit: Duration::from_secs(3), ..get("/") };
    let begun = tokio::time::Instant::now();
    let error = refused(&target, request).await;
    assert!(matches!(error, TransportError::TimedOut(hard) if hard.as_secs() == 8), "{error:?}");
    assert_eq!(begun.elapsed().as_secs(), 8);
    // No limit at all is one that cannot be reached.
    let request = Outgoing { limit: Duration::MAX, ..get("/") };
    let client = Client::default();
    assert!(tokio::time::timeout(Duration::from_hours(1), client.send(&target, request)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_hard_limit_holds_for_a_slow_body_and_for_an_endless_one() {
    for pause in [Duration::from_secs(1), Duration::ZERO] {
        let target = guest(move |_, mut stream| async move {
            heard(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            while stream.write_all(b"more").await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        })
        .await;
        let request = Outgoing { limit: Duration::from_secs(3), ..get("/") };
        let answer = Client::default().send(&target, request).await.unwrap();
        let Body::Stream(mut body) = answer.body else { panic!("a stream") };
        let mut pieces = 0;
        let error = loop {
            match body.next().await.unwrap() {
                Ok(_) => pieces += 1,
                Err(error) => break error,
            }
            if pause.is_zero() {
                tokio::time::advance(Duration::from_millis(10)).await;
            }
        };
        assert!(pieces > 0);
        assert!(matches!(error, BodyError::Late(hard) if hard.as_secs() == 8), "{error:?}");
        assert_eq!(error.to_string(), "the body was not complete within 8s");
        assert!(matches!(TransportError::from(error), TransportError::TimedOut(_)));
        assert!(body.next().await.is_none(), "nothing follows an error");
    }
}

#[tokio::test]
async fn a_head_is_bounded() {
    let head = |length: usize| {
        let rest = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\na: \r\n\r\n".len();
        format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\na: {}\r\n\r\n", "x".repeat(length - rest))
    };
    assert_eq!(answer(head(64 * 1024)).await.headers["a"].len(), 64 * 1024 - 43);
    for length in [64 * 1024 + 1, 1 << 20] {
        let error = error(head(length)).await;
        assert!(
            matches!(&error, TransportError::Broken(why) if why.contains("larger than 65536")),
            "{error:?}"
        );
    }
    let fields = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a:b\r\n".repeat(count));
    assert_eq!(answer(fields(256)).await.headers.len(), 256);
    assert!(matches!(error(fields(257)).await, TransportError::Broken(_)));
}

#[tokio::test]
async fn heads_are_cleaned_and_repeats_kept_in_order() {
    let answer = answer(
        "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
         HTTP/1.1 418 Custom\r\nZ: 1\r\nSet-Cookie: a=1\r\nX-Open-Runtimes-Log-Id: i\r\nConnection: x-hop\r\n\
         Content-Type: Text/HTML\r\nset-cookie: b=2\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTransfer-Encoding: chunked\r\n\
         X-Open-Runtimes-Other: 1\r\nLocation: /else\r\nB: caf\u{e9}\r\n\r\n\
         3;x=y\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n",
    )
    .await;
    assert_eq!(answer.status, 418);
    let headers: Vec<_> =
        answer.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let expected: [(&str, &[u8]); 6] = [
        ("z", b"1"),
        ("set-cookie", b"a=1"),
        ("set-cookie", b"b=2"),
        ("content-type", b"Text/HTML"),
        ("location", b"/else"),
        ("b", "caf\u{e9}".as_bytes()),
    ];
    assert_eq!(headers, expected);
    assert_eq!(answer.length, None);
    assert_eq!(whole(answer.body).await.unwrap(), b"abc");
}

#[tokio::test]
async fn a_redirect_is_an_answer() {
    let target =
        answering("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(Client::default().send(&target, get("/")).await.unwrap().status, 302);
}

#[tokio::test]
async fn bodies_end_by_length_by_chunk_or_with_the_connection() {
    for (head, body, length) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", "abc and more", Some(3)),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\n\r\n", "abc", None),
        ("HTTP/1.0 200 OK\r\n\r\n", "abc", None),
    ] {
        let answer = answer(format!("{head}{body}")).await;
        assert_eq!(answer.length, length);
        assert_eq!(whole(answer.body).await.unwrap(), b"abc", "{head}");
    }
    for (status, length) in [(204, Some(0)), (304, Some(0))] {
        let answer = answer(format!("HTTP/1.1 {status} x\r\n\r\n")).await;
        assert_eq!(answer.length, length);
        assert!(matches!(answer.body, Body::Full(bytes) if bytes.is_empty()));
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_says_so() {
    for body in [
        "content-length: 4\r\n\r\nabc",
        "transfer-encoding: chunked\r\n\r\n4\r\nabc",
        "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "transfer-encoding: chunked\r\n\r\nnonsense\r\n",
        "transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc",
    ] {
        let answer = answer(format!("HTTP/1.1 200 OK\r\n{body}")).await;
        let error = whole(answer.body).await.unwrap_err();
        assert!(matches!(error, BodyError::Broken(_)), "{body}: {error:?}");
    }
}

#[tokio::test]
async fn head_has_a_length_and_no_body() {
    let (target, count) = echoing().await;
    let client = Client::default();
    for _ in 0..2 {
        let answer = client.send(&target, posting(Method::HEAD, "")).await.unwrap();
        assert!(answer.length.unwrap() > 10);
        assert!(!answer.headers.contains_key("content-length"));
        assert!(matches!(answer.body, Body::Full(bytes) if bytes.is_empty()));
    }
    assert_eq!(count.load(Ordering::SeqCst), 1, "nothing follows on the connection");
}

#[tokio::test]
async fn a_body_is_bounded_where_that_is_asked_for() {
    for (most, fits) in [(None, true), (Some(3), true), (Some(2), false), (Some(0), false)] {
        let target = answering("HTTP/1.1 200 OK\r\n\r\nabc").await;
        let answer = Client::default().send(&target, Outgoing { most, ..get("/") }).await.unwrap();
        let got = whole(answer.body).await;
        assert_eq!(got.is_ok(), fits, "{most:?}: {got:?}");
        if let Err(error) = got {
            assert!(matches!(error, BodyError::TooLarge(bound) if Some(bound) == most));
        }
    }
}

#[tokio::test]
async fn an_answer_before_the_request_is_complete_counts_and_its_connection_is_not_used_again() {
    let target = guest(|number, mut stream| async move {
        let mut some = [0; 64];
        stream.read_exact(&mut some).await.unwrap();
        let head = format!("HTTP/1.1 413 x\r\nn: {number}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // Open until the other side has had enough.
        while stream.read(&mut some).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let client = Client::default();
    for number in ["0", "1"] {
        let endless = futures_util::stream::once(async { Ok(Bytes::from_static(b"a")) })
            .chain(futures_util::stream::pending());
        let request = Outgoing { body: Body::Stream(endless.boxed()), ..posting(Method::POST, "") };
        let answer = client.send(&target, request).await.unwrap();
        assert_eq!((answer.status, answer.headers["n"].to_str().unwrap()), (413, number));
        assert_eq!(client.kept.len(), 0);
    }
}

#[tokio::test]
async fn logs_of_v3_are_in_its_headers() {
    let bytes = "HTTP/1.1 200 OK\r\nx-open-runtimes-logs: a%0Ab+c%2B%C3%A4%zz\r\nx-open-runtimes-logs: no\r\n\
                 x-open-runtimes-errors: e\r\ncontent-length: 0\r\n\r\n";
    for (profile, logging, expected) in [
        (Profile::V3, true, ("a\nb c+ä%zz", "e")),
        (Profile::V3, false, ("", "")),
        (Profile::Port, true, ("", "")),
        (Profile::V5, true, ("", "")),
    ] {
        let target = Target { profile, ..answering(bytes).await };
        let answer = Client::default().send(&target, Outgoing { logging, ..get("/") }).await.unwrap();
        assert!(answer.headers.is_empty());
        let (logs, errors) = answer.lines.await;
        assert_eq!((str::from_utf8(&logs).unwrap(), str::from_utf8(&errors).unwrap()), expected);
    }
}

#[tokio::test]
async fn a_v5_guest_may_have_its_lines_in_the_head() {
    let bytes = "HTTP/1.1 200 OK\r\nx-open-runtimes-log-transport: head\r\nx-open-runtimes-log-id: i\r\n\
                 x-open-runtimes-logs: a%20%2B%0A\r\ncontent-length: 0\r\n\r\n";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("i_logs.log"), "not asked for").unwrap();
    let heard = async |profile, logging| {
        let logs = Some(LogFolder::new(folder.path()));
        let target = Target { profile, logs, ..answering(bytes).await };
        let answer = Client::default().send(&target, Outgoing { logging, ..get("/") }).await.unwrap();
        assert!(answer.headers.is_empty());
        let (logs, errors) = answer.lines.await;
        [logs, errors].map(|lines| String::from_utf8(lines.into()).unwrap())
    };
    assert_eq!(heard(Profile::V5, true).await, ["a +\n", ""]);
    assert_eq!(heard(Profile::V4, true).await, ["not asked for", ""], "it was not asked");
    assert_eq!(heard(Profile::V5, false).await, ["", ""]);
}

mod any {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever a guest says and wherever it is cut: an answer or an error, no panic, no reserved header.
        #[test]
        fn bytes_from_a_guest_are_survived(
            start in "|HTTP/1\\.[01] [0-9]{3} x\r\n|HTTP/1.1 200 OK\r\n",
            fields in proptest::collection::vec(
                "[a-z]{1,3}: [ -~]{0,9}\r\n|X-Open-Runtimes-A: b\r\n|content-length: [0-9]{1,2}\r\n|\
                 transfer-encoding: chunked\r\n|connection: [a-z]{1,3}\r\n",
                0..6,
            ),
            rest in "|\r\n|\r\n[0-9a-f]{1,2}\r\n[a-z]{0,9}\r\n0\r\n\r\n",
            noise in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut bytes = format!("{start}{}{rest}", fields.concat()).into_bytes();
            bytes.extend_from_slice(&noise);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let request = get("/");
                if let Ok(answer) = Client::default().send(&answering(bytes).await, request).await {
                    for name in ["x-open-runtimes-a", "connection", "content-length", "transfer-encoding"] {
                        assert!(!answer.headers.contains_key(name));
                    }
                    let _ = whole(answer.body).await;
                }
            });
        }
    }
}
