//! Kept connections: when they are used again, and the one retry they allow.

use super::super::kept::{IDLE, MOST_EACH};
use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn ok(client: &Client, target: &Target) {
    let answer = client.send(target, posting(Method::PUT, "x")).await.unwrap();
    assert_eq!(whole(answer.body).await.unwrap(), b"ok");
}

/// A server that answers the first request of each connection and hands the second to `second`.
async fn once_then<F>(second: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> (Target, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let second = Arc::new(second);
    let target = guest(move |_, mut stream| {
        let (second, counted) = (second.clone(), counted.clone());
        async move {
            heard(&mut stream).await;
            counted.fetch_add(1, Ordering::SeqCst);
            stream.write_all(OK).await.unwrap();
            if heard(&mut stream).await.is_some() {
                counted.fetch_add(1, Ordering::SeqCst);
                second(stream).await;
            }
        }
    })
    .await;
    (target, requests)
}

#[tokio::test]
async fn one_connection_serves_one_request_after_the_other() {
    let (target, count) = echoing().await;
    let client = Client::default();
    for method in [Method::GET, Method::HEAD, Method::POST, Method::GET] {
        let answer = client.send(&target, posting(method, "")).await.unwrap();
        whole(answer.body).await.unwrap();
        assert_eq!(client.kept.len(), 1);
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    // A stream cannot be sent twice, so it gets a connection of its own, which is then kept as well.
    let answer = client.send(&target, Outgoing { body: pieces(&["x"]), ..get("/") }).await.unwrap();
    whole(answer.body).await.unwrap();
    assert_eq!((count.load(Ordering::SeqCst), client.kept.len()), (2, 2));
}

#[tokio::test]
async fn requests_at_the_same_time_do_not_share_one() {
    let (target, count) = echoing().await;
    let client = Client::default();
    let sending = (0..20).map(|number| {
        let (client, target) = (&client, &target);
        async move {
            let answer = client.send(target, get(&format!("/{number}"))).await.unwrap();
            let heard = String::from_utf8(whole(answer.body).await.unwrap()).unwrap();
            assert!(heard.starts_with(&format!("GET /{number} HTTP")), "{heard}");
        }
    });
    futures_util::future::join_all(sending).await;
    let made = count.load(Ordering::SeqCst);
    assert!((1..=20).contains(&made), "{made}");
    assert_eq!(client.kept.len(), made);
}

#[tokio::test]
async fn a_kept_connection_that_closes_without_a_byte_is_retried_once() {
    for reset in [false, true] {
        let (target, requests) = once_then(move |stream| async move {
            if reset {
                stream.set_zero_linger().unwrap();
            }
        })
        .await;
        let client = Client::default();
        ok(&client, &target).await;
        ok(&client, &target).await;
        assert_eq!(requests.load(Ordering::SeqCst), 3, "the second, and the second again");
    }
}

#[tokio::test]
async fn what_is_not_idempotent_is_not_sent_twice() {
    for method in [Method::POST, Method::PATCH] {
        let (target, requests) = once_then(|_| async {}).await;
        let client = Client::default();
        ok(&client, &target).await;
        let error = client.send(&target, posting(method, "x")).await.err().unwrap();
        assert!(matches!(error, TransportError::Empty), "{error:?}");
        assert_eq!(requests.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn a_guest_that_dies_of_a_request_did_not_refuse_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (target, _) = echoing().await;
    let target = Target { address: listener.local_addr().unwrap(), ..target };
    let dying = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        heard(&mut stream).await;
        stream.write_all(OK).await.unwrap();
        heard(&mut stream).await;
        drop((listener, stream));
    };
    let client = Client::default();
    let calls = async {
        ok(&client, &target).await;
        let error = client.send(&target, get("/")).await.err().unwrap();
        assert!(matches!(error, TransportError::Empty), "{error:?}");
        let error = client.send(&target, get("/")).await.err().unwrap();
        assert!(matches!(error, TransportError::Refused), "{error:?}");
    };
    tokio::join!(dying, calls);
}

#[tokio::test]
async fn what_listens_where_the_guest_was_hears_nothing() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let stranger = guest(move |_, mut stream| {
        let tell = tell.clone();
        async move { tell.send(heard(&mut stream).await).unwrap() }
    });
    // It ends while the connection is made.
    let asked = AtomicUsize::new(0);
    let alive = Alive::new(move || asked.fetch_add(1, Ordering::SeqCst) == 0);
    let target = Target { alive, ..stranger.await };
    let error = Client::default().send(&target, posting(Method::POST, "x")).await.err().unwrap();
    assert!(matches!(error, TransportError::Refused), "{error:?}");
    assert_eq!(told.recv().await, Some(None), "a connection without a byte");
}

#[tokio::test]
async fn the_kept_connections_of_what_listens_where_the_guest_was_are_not_used() {
    let (stranger, requests) = once_then(|_| async {}).await;
    let client = Client::default();
    ok(&client, &stranger).await;
    let target = Target { alive: Alive::new(|| false), ..stranger.clone() };
    let error = client.send(&target, posting(Method::PUT, "x")).await.err().unwrap();
    assert!(matches!(error, TransportError::Refused), "{error:?}");
    assert_eq!(
        (requests.load(Ordering::SeqCst), client.kept.len()),
        (1, 1),
        "it heard nothing and keeps its own"
    );
}

#[tokio::test]
async fn the_retry_is_not_retried() {
    // Every connection but the first dies at once.
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let target = guest(move |number, mut stream| {
        let counted = counted.clone();
        async move {
            while heard(&mut stream).await.is_some() {
                if counted.fetch_add(1, Ordering::SeqCst) > 0 || number > 0 {
                    return;
                }
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    let client = Client::default();
    ok(&client, &target).await;
    let error = client.send(&target, get("/")).await.err().unwrap();
    assert!(matches!(error, TransportError::Empty), "{error:?}");
    assert_eq!(requests.load(Ordering::SeqCst), 3, "first, second, its one retry");
}

#[tokio::test]
async fn after_one_byte_nothing_is_retried() {
    let (target, requests) = once_then(|mut stream| async move {
        stream.write_all(b"H").await.unwrap();
    })
    .await;
    let client = Client::default();
    ok(&client, &target).await;
    let error = client.send(&target, get("/")).await.err().unwrap();
    assert!(matches!(error, TransportError::Broken(_)), "{error:?}");
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_that_stays_silent_is_not_retried() {
    let (target, requests) = once_then(|stream| async move {
        tokio::time::sleep(Duration::from_secs(1000)).await;
        drop(stream);
    })
    .await;
    let client = Client::default();
    ok(&client, &target).await;
    let error = client.send(&target, get("/")).await.err().unwrap();
    assert!(matches!(error, TransportError::TimedOut(_)), "{error:?}");
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_the_guest_closed_meanwhile_is_not_used() {
    let (target, closed) = {
        let closed = Arc::new(tokio::sync::Semaphore::new(0));
        let shut = closed.clone();
        let target = guest(move |_, mut stream| {
            let shut = shut.clone();
            async move {
                heard(&mut stream).await;
                stream.write_all(OK).await.unwrap();
                drop(stream);
                shut.add_permits(1);
            }
        })
        .await;
        (target, closed)
    };
    let client = Client::default();
    for _ in 0..3 {
        // Seen when the connection is taken, or, if the news is late, by the retry.
        ok(&client, &target).await;
        closed.acquire().await.unwrap().forget();
    }
}

#[tokio::test]
async fn an_answer_nobody_asked_for_is_no_answer() {
    // It sends a second answer right behind the first; the next caller must not get it.
    let target = guest(|number, mut stream| async move {
        heard(&mut stream).await;
        let body = if number == 0 { "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil" } else { "" };
        stream.write_all(&[OK, body.as_bytes()].concat()).await.unwrap();
        heard(&mut stream).await;
    })
    .await;
    let client = Client::default();
    ok(&client, &target).await;
    assert_eq!(client.kept.len(), 0, "a connection with something left on it is not kept");
    ok(&client, &target).await;
}

#[tokio::test]
async fn who_does_not_read_to_the_end_loses_the_connection() {
    let (closed, wait) = tokio::sync::oneshot::channel();
    let closed = std::sync::Mutex::new(Some(closed));
    let target = guest(move |_, mut stream| {
        let closed = closed.lock().unwrap().take();
        async move {
            heard(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab").await.unwrap();
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0);
            closed.unwrap().send(()).unwrap();
        }
    })
    .await;
    let client = Client::default();
    let answer = client.send(&target, get("/")).await.unwrap();
    drop(answer);
    wait.await.unwrap();
    assert_eq!(client.kept.len(), 0);
}

#[tokio::test]
async fn connection_close_is_obeyed() {
    for head in ["HTTP/1.1 200 OK\r\nconnection: close\r\n", "HTTP/1.0 200 OK\r\n"] {
        let target = guest(move |_, mut stream| async move {
            heard(&mut stream).await;
            stream.write_all(format!("{head}content-length: 2\r\n\r\nok").as_bytes()).await.unwrap();
            heard(&mut stream).await;
        })
        .await;
        let client = Client::default();
        ok(&client, &target).await;
        assert_eq!(client.kept.len(), 0);
    }
}

#[tokio::test]
async fn a_guest_that_is_gone_is_forgotten() {
    let (target, count) = echoing().await;
    let (other, _) = echoing().await;
    let client = Client::default();
    for target in [&target, &other] {
        whole(client.send(target, get("/")).await.unwrap().body).await.unwrap();
    }
    client.forget(target.address);
    assert_eq!(client.kept.len(), 1);
    client.forget(target.address);
    whole(client.send(&target, get("/")).await.unwrap().body).await.unwrap();
    assert_eq!((client.kept.len(), count.load(Ordering::SeqCst)), (2, 2));
}

#[tokio::test]
async fn not_too_many_are_kept_and_not_for_long() {
    let (target, count) = echoing().await;
    let client = Client::default();
    let mut answers = Vec::new();
    for _ in 0..=MOST_EACH {
        answers.push(client.send(&target, get("/")).await.unwrap());
    }
    for (done, answer) in answers.into_iter().enumerate() {
        assert_eq!(client.kept.len(), done);
        whole(answer.body).await.unwrap();
    }
    assert_eq!(client.kept.len(), MOST_EACH, "one above the bound");
    assert_eq!(count.load(Ordering::SeqCst), MOST_EACH + 1);

    tokio::time::pause();
    tokio::time::advance(IDLE.checked_sub(Duration::from_millis(1)).unwrap()).await;
    assert!(client.kept.take(target.address).await.is_some());
    assert_eq!(client.kept.len(), MOST_EACH - 1);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(client.kept.take(target.address).await.is_none());
    assert_eq!(client.kept.len(), 0);
}
