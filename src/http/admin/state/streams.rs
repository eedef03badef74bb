//! Histories and changes as they happen, as server-sent events.
//!
//! Commits of this executor are told at once; what others append to a history is looked for every [`POLL`]. At most
//! [`FOLLOWERS`] streams are open at the same time; they end with the executor.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Answer;
use crate::executor::{Change, Desk, DeskError, Executor};
use crate::http::Front;
use crate::http::error::Problem;

/// Streams of events at the same time.
pub const FOLLOWERS: usize = 256;

/// How long a history that is followed may lag behind what another executor appended, and a stream behind the end of this one.
const POLL: Duration = Duration::from_millis(500);

/// Sent when nothing else was for a while.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// An event as it is shown: what is stored, with its number in front.
pub(super) fn numbered(number: u64, stored: &[u8]) -> Vec<u8> {
    let mut line = format!("{{\"seq\":{number},").into_bytes();
    line.extend_from_slice(stored.strip_prefix(b"{").unwrap_or(stored));
    line
}

pub(super) fn events(
    desk: Desk,
    key: String,
    from: u64,
) -> impl Stream<Item = Result<(u64, Bytes), DeskError>> {
    stream::try_unfold((desk, key, from, VecDeque::new()), |(desk, key, from, mut page)| async move {
        if page.is_empty() {
            page.extend(desk.history(&key, from).await?);
        }
        let Some((number, bytes)) = page.pop_front() else { return Ok(None) };
        Ok(Some(((number, bytes), (desk, key, number + 1, page))))
    })
}

pub(super) fn place(front: &Front) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(&front.followers).try_acquire_owned().map_err(|_| {
        let detail = format!("{FOLLOWERS} streams of events are open; close one and try again.");
        let mut problem = Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-streams",
            "Too many streams",
            "front",
            detail,
        );
        problem.retry_after = Some(Duration::from_secs(1));
        problem
    })
}

pub(super) fn follow(
    executor: Arc<Executor>,
    desk: Desk,
    key: String,
    from: u64,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Bytes> {
    let changes = executor.changes();
    let begin = (executor, desk, key, from, VecDeque::<(u64, Bytes)>::new(), changes, place);
    stream::unfold(begin, |(executor, desk, key, from, mut page, mut changes, place)| async move {
        let mut idle = Duration::ZERO;
        while page.is_empty() {
            page.extend(desk.history(&key, from).await.unwrap_or_default());
            if !page.is_empty() {
                break;
            }
            if executor.is_closing() {
                return None;
            }
            if idle >= HEARTBEAT {
                return Some((
                    Bytes::from_static(b":\n\n"),
                    (executor, desk, key, from, page, changes, place),
                ));
            }
            // Ours are told, those of other executors are looked for.
            let told = async {
                loop {
                    match changes.recv().await {
                        Ok(change) if !desk.is_about(&change, &key) => {}
                        Err(RecvError::Closed) => return false,
                        Ok(_) | Err(RecvError::Lagged(_)) => return true,
                    }
                }
            };
            match tokio::time::timeout(POLL, told).await {
                Ok(false) => return None,
                Ok(true) => {}
                Err(_) => idle += POLL,
            }
        }
        let (number, bytes) = page.pop_front()?;
        let mut sent = format!("id: {number}\ndata: ").into_bytes();
        sent.extend_from_slice(&numbered(number, &bytes));
        sent.extend_from_slice(b"\n\n");
        Some((sent.into(), (executor, desk, key, number + 1, page, changes, place)))
    })
}

pub(super) fn watch(front: &Front, function: &str) -> Answer {
    let place = place(front)?;
    let executor = Arc::clone(&front.executor);
    let changes = executor.changes();
    Ok(server_sent(news(move || executor.is_closing(), changes, function.to_owned(), place)))
}

/// What is told of the changes of a function, until `is_closing`. Holds its `place` as long as it lasts.
fn news<P>(
    is_closing: impl Fn() -> bool,
    changes: Receiver<Change>,
    function: String,
    place: P,
) -> impl Stream<Item = Bytes> {
    let begin = (is_closing, changes, function, place);
    stream::unfold(begin, |(is_closing, mut changes, function, place)| async move {
        let mut idle = Duration::ZERO;
        let sent = loop {
            if is_closing() {
                return None;
            }
            match tokio::time::timeout(POLL, changes.recv()).await {
                Err(_) => idle += POLL,
                Ok(Err(RecvError::Closed)) => return None,
                // Its reader is too slow; it has to read the list again.
                Ok(Err(RecvError::Lagged(missed))) => {
                    break Bytes::from(format!("event: missed\ndata: {{\"changes\":{missed}}}\n\n"));
                }
                Ok(Ok(change)) if *change.entity.function == *function => {
                    let told = json!({ "key": change.entity.key, "version": change.version });
                    break Bytes::from(format!("id: {}\ndata: {told}\n\n", change.version));
                }
                Ok(Ok(_)) => {}
            }
            if idle >= HEARTBEAT {
                break Bytes::from_static(b":\n\n");
            }
        };
        Some((sent, (is_closing, changes, function, place)))
    })
}

pub(super) fn server_sent(sent: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let body = Body::from_stream(sent.map(Ok::<_, Infallible>));
    let kind = HeaderValue::from_static("text/event-stream");
    let cache = HeaderValue::from_static("no-store");
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, cache)], body).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::broadcast::Sender;
    use tokio::time::Instant;

    use super::*;
    use crate::state::Entity;

    #[tokio::test(start_paused = true)]
    async fn an_idle_watch_ends_soon_after_the_executor_and_else_beats() {
        let (changes, closing) = (Sender::new(4), AtomicBool::new(false));
        let is_closing = || closing.load(Ordering::Relaxed);
        let mut sent = Box::pin(news(is_closing, changes.subscribe(), "f".into(), ()));
        let begun = Instant::now();
        assert_eq!(sent.next().await.unwrap(), ":\n\n");
        assert_eq!(begun.elapsed(), HEARTBEAT);
        let change = |function: &str, version| Change {
            entity: Entity { function: function.into(), key: "k".into() },
            version,
        };
        changes.send(change("g", 1)).unwrap();
        changes.send(change("f", 2)).unwrap();
        let told = sent.next().await.unwrap();
        assert_eq!(told, "id: 2\ndata: {\"key\":\"k\",\"version\":2}\n\n");
        let begun = Instant::now();
        let ended = async {
            tokio::time::sleep(POLL / 2).await;
            closing.store(true, Ordering::Relaxed);
        };
        let (told, ()) = tokio::join!(sent.next(), ended);
        assert_eq!((told, begun.elapsed()), (None, POLL));
    }
}
