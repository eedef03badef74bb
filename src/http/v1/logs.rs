//! The stream of a build's lines. The guest house makes the bytes; here they become an answer.

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http::Response;
use http::header::{self, HeaderValue};

/// Pieces are sent as they come; the end of `lines` is the normal end of the answer.
pub(super) fn answer(lines: BoxStream<'static, Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from_stream(lines.map(Ok::<_, std::convert::Infallible>)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn r_141_headers_and_bytes_as_they_come() {
        let (sender, receiver) = mpsc::channel::<Bytes>(1);
        let lines = stream::unfold(receiver, |mut lines| async { lines.recv().await.map(|l| (l, lines)) });
        let response = answer(lines.boxed());
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        let mut body = response.into_body();
        for line in ["2026-11-20T12:00:00.123+00:00 a\\nb\n", "2026-11-20T12:00:00.124+00:00 \n"] {
            sender.send(line.into()).await.unwrap();
            // The next is sent only after this one has come out.
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), line);
        }
        drop(sender);
        assert!(body.frame().await.is_none());
    }
}
