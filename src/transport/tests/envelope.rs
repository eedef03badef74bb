//! v2: what goes into the envelope and what comes out of it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::envelope::{MOST_LINES, open};
use super::*;

/// What a v2 guest answers with this body.
async fn answered(body: &str, request: Outgoing) -> Result<Incoming, TransportError> {
    let bytes = format!("HTTP/1.1 201 x\r\nsecret: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let target = Target { profile: Profile::V2, ..answering(bytes).await };
    Client::default().send(&target, request).await
}

#[tokio::test]
async fn a_request_is_one_json_object() {
    let heard = Arc::new(std::sync::Mutex::new(String::new()));
    let hearing = heard.clone();
    let target = guest(move |_, mut stream| {
        let heard = hearing.clone();
        async move {
            let request = super::heard(&mut stream).await.unwrap();
            *heard.lock().unwrap() = request;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
        }
    })
    .await;
    let target = Target { profile: Profile::V2, ..target };
    for body in [Body::Full("zwölf \"0\"".into()), pieces(&["zw", "ölf \"0\""])] {
        let mut request = with(get("/ignored"), &[("x", "y"), ("host", "z")]);
        request.body = body;
        request.variables =
            vec![("A".into(), "1".into()), ("B".into(), "\n".into()), ("A".into(), "2".into())];
        Client::default().send(&target, request).await.unwrap();
        let heard = std::mem::take(&mut *heard.lock().unwrap());
        let (head, body) = heard.split_once("\r\n\r\n").unwrap();
        let expected = [
            "POST / HTTP/1.1",
            "host: null",
            "x-internal-challenge: s3cret",
            "content-type: application/json",
            &format!("content-length: {}", body.len()),
        ];
        assert_eq!(head.lines().collect::<Vec<_>>(), expected);
        let variables = json!({"A": "2", "B": "\n"});
        let wanted =
            json!({"variables": variables, "env": variables, "payload": "zwölf \"0\"", "headers": {}});
        assert_eq!(serde_json::from_str::<Value>(body).unwrap(), wanted);
    }
    let error =
        refused(&target, Outgoing { body: Body::Full(Bytes::from_static(b"\xff")), ..get("/") }).await;
    assert!(matches!(&error, TransportError::Invalid(why) if why.contains("UTF-8")), "{error:?}");
}

#[tokio::test]
async fn an_answer_is_unpacked() {
    for (response, body) in [
        (r#""te\"xt\u00e4""#, "te\"xtä"),
        (r#"{ "b": [1, 2.50 ], "a b": "x \" y" }"#, r#"{"b":[1,2.50],"a b":"x \" y"}"#),
        ("[ ]", "[]"),
        ("null", ""),
        ("true", "true"),
        ("1e400", "1e400"),
    ] {
        let envelope = format!(r#" {{"response":{response},"stdout":"o","stderr":"e"}}"#);
        let answer = answered(&envelope, get("/")).await.unwrap();
        assert_eq!((answer.status, answer.headers.len()), (201, 0));
        assert_eq!(answer.length, Some(body.len() as u64));
        assert_eq!(whole(answer.body).await.unwrap(), body.as_bytes());
        let (logs, errors) = answer.lines.await;
        assert_eq!((&logs[..], &errors[..]), (&b"o"[..], &b"e"[..]));
    }
    let refused = answered(r#"{"stderr":"Unauthorized"}"#, get("/")).await.unwrap();
    assert_eq!(
        (whole(refused.body).await.unwrap(), &refused.lines.await.1[..]),
        (vec![], &b"Unauthorized"[..])
    );
    let unwanted = Outgoing { logging: false, ..get("/") };
    let lines = answered(r#"{"stdout":"o","stderr":"e"}"#, unwanted).await.unwrap().lines.await;
    assert!(lines.0.is_empty() && lines.1.is_empty());
}

#[tokio::test]
async fn garbage_is_refused_and_not_quoted() {
    for body in [
        "",
        "hidden",
        "[]",
        r#"["hidden","o","e"]"#,
        r#""hidden""#,
        r#"{"response":"hidden""#,
        r#"{"response":"hidden"} more"#,
        r#"{"response":"a","response":"hidden"}"#,
        r#"{"response":"hidden\ud800"}"#,
    ] {
        let error = answered(body, get("/")).await.err().unwrap();
        assert!(matches!(&error, TransportError::Invalid(_)), "{body}: {error:?}");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
    let target =
        Target { profile: Profile::V2, ..answering("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{").await };
    let error = super::refused(&target, get("/")).await;
    assert!(matches!(error, TransportError::Broken(_)), "{error:?}");
}

#[tokio::test]
async fn a_response_is_bounded_where_that_is_asked_for() {
    for (most, fits) in [(3, true), (2, false)] {
        let request = Outgoing { most: Some(most), ..get("/") };
        assert_eq!(answered(r#"{"response":"abc"}"#, request).await.is_ok(), fits);
    }
}

#[tokio::test]
async fn an_envelope_without_an_end_is_given_up() {
    let target = guest(|_, mut stream| async move {
        heard(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"stdout\":\"").await.unwrap();
        let piece = vec![b'x'; 1 << 20];
        while stream.write_all(&piece).await.is_ok() {}
    })
    .await;
    let error = refused(&Target { profile: Profile::V2, ..target }, get("/")).await;
    assert!(matches!(&error, TransportError::Invalid(why) if why.contains("67108864")), "{error:?}");
}

#[test]
fn lines_are_cut_one_above_the_bound_between_characters() {
    for (text, cut) in [
        ("x".repeat(MOST_LINES), MOST_LINES),
        ("x".repeat(MOST_LINES + 1), MOST_LINES),
        (format!("x{}", "ä".repeat(MOST_LINES)), MOST_LINES - 1),
    ] {
        let opened = open(json!({"stdout": text, "stderr": text, "response": text}).to_string().as_bytes());
        let opened = opened.unwrap();
        assert_eq!((opened.stdout.len(), opened.stderr.len()), (cut, cut));
        assert_eq!(opened.response, text, "only the lines");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        "[\\\\\" {}:,]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(".{0,4}", inner, 0..4)
                .prop_map(|map| Value::from(map.into_iter().collect::<serde_json::Map<_, _>>())),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = open(&bytes);
    }

    #[test]
    fn whatever_a_function_responds_comes_out_compact(value in any_json(), pretty: bool) {
        let envelope = json!({"response": value, "unknown": value});
        let text = if pretty { serde_json::to_string_pretty(&envelope) } else { serde_json::to_string(&envelope) };
        let opened = open(text.unwrap().as_bytes()).unwrap();
        let expected = match &value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        prop_assert_eq!(opened.response, expected);
    }
}
