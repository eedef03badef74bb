//! What no well-behaved server does: silence, a body that stops, documents that show keys.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::instance::Secret;

/// A server that answers every request with `answer` and then keeps the connection open without a word.
async fn server(answer: String) -> Bucket {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/bucket", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                if connection.read_buf(&mut request).await.unwrap() == 0 {
                    break;
                }
            }
            connection.write_all(answer.as_bytes()).await.unwrap();
            kept.push(connection);
        }
    });
    Bucket {
        address,
        region: "us-east-1".into(),
        access_key: Secret::new("AKIAQQQQ"),
        secret_key: Secret::new("ZZZZ"),
    }
}

fn open(bucket: &Bucket, answer: Duration) -> S3 {
    S3::with_limits(bucket, Limits { connect: Duration::from_secs(5), answer }).unwrap()
}

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_silent_server_is_unavailable_after_the_limit() {
    let storage = open(&server(String::new()).await, SHORT);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "1").unwrap();
    let results = [
        storage.fetch("/a", &folder.path().join("to"), 9).await.map(drop),
        storage.store(&file, "/a").await.map(drop),
        storage.remove("/a").await,
        storage.size("/a").await.map(drop),
    ];
    for result in results {
        assert!(matches!(result, Err(StorageError::Unavailable(_))), "{result:?}");
    }
}

#[tokio::test]
async fn a_body_that_stops_is_unavailable_and_leaves_no_file() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n";
    let storage = open(&server(format!("{head}ETag: \"1\"\r\n\r\n12345")).await, SHORT);
    let folder = tempfile::tempdir().unwrap();
    let result = storage.fetch("/a", &folder.path().join("to"), 10).await;
    assert!(matches!(result, Err(StorageError::Unavailable(_))), "{result:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_document_that_shows_the_key_does_not_get_into_the_error() {
    let body = "<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIAQQQQ</AWSAccessKeyId>\
                <Message>ZZZZ</Message></Error>";
    for (status, refused) in [("403 Forbidden", true), ("400 Bad Request", true), ("503 Busy", false)] {
        let answer =
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let storage = open(&server(answer).await, LONG);
        let folder = tempfile::tempdir().unwrap();
        let error = storage.fetch("/a", &folder.path().join("to"), 10).await.unwrap_err();
        assert_eq!(matches!(error, StorageError::Refused(_)), refused, "{status}: {error}");
        assert_eq!(matches!(error, StorageError::Unavailable(_)), !refused, "{status}: {error}");
        let shown = format!("{error} {error:?} {storage:?}");
        assert!(shown.contains("SignatureDoesNotMatch"), "{shown}");
        assert!(!shown.contains("AKIAQQQQ") && !shown.contains("ZZZZ"), "{shown}");
    }
}
