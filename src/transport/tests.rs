//! The client against real little servers that say exactly what a test gives them, byte for byte.

mod answers;
mod envelope;
mod kept;
mod logs;
mod python;
mod requests;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A server: `serve` gets the connection's number, from 0, and the connection. Ends with the test's runtime.
async fn guest<F>(serve: impl Fn(usize, TcpStream) -> F + Send + 'static) -> Target
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(number, stream));
        }
    });
    Target {
        address,
        profile: Profile::V5,
        secret: Secret::new("s3cret"),
        logs: None,
        alive: Alive::new(|| true),
    }
}

/// A server that answers every request with these bytes and then closes the connection.
async fn answering(bytes: impl Into<Vec<u8>>) -> Target {
    let bytes: Arc<[u8]> = bytes.into().into();
    guest(move |_, mut stream| {
        let bytes = bytes.clone();
        async move {
            heard(&mut stream).await;
            // Who refuses the answer closes before all of it is out.
            let _ = stream.write_all(&bytes).await;
        }
    })
    .await
}

/// A server that echoes requests as its answers' bodies and keeps connections; counts connections.
async fn echoing() -> (Target, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let target = guest(move |_, mut stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            while let Some(request) = heard(&mut stream).await {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.len());
                let body = if request.starts_with("HEAD ") { "" } else { request.as_str() };
                if stream.write_all(format!("{head}{body}").as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (target, count)
}

/// Reads one request, head and body, as it came; none at the end of the connection.
async fn heard(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let chunked = head.lines().any(|line| line == "transfer-encoding: chunked");
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            if body.len() >= length && (!chunked || body.ends_with("0\r\n\r\n")) {
                return Some(text.into_owned());
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn get(path: &str) -> Outgoing {
    Outgoing {
        method: Method::GET,
        path: path.into(),
        headers: Vec::new(),
        body: Body::Full(Bytes::new()),
        logging: true,
        limit: Duration::from_secs(30),
        basic: true,
        variables: Vec::new(),
        most: None,
    }
}

fn with(mut request: Outgoing, headers: &[(&str, &str)]) -> Outgoing {
    let header = |(name, value): &(&str, &str)| (name.parse().unwrap(), value.parse().unwrap());
    request.headers.extend(headers.iter().map(header));
    request
}

fn posting(method: Method, body: &str) -> Outgoing {
    Outgoing { method, body: Body::Full(Bytes::copy_from_slice(body.as_bytes())), ..get("/") }
}

/// A streamed body of these pieces.
fn pieces(pieces: &'static [&'static str]) -> Body {
    let pieces = pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes())));
    Body::Stream(futures_util::stream::iter(pieces).boxed())
}

/// All of a body.
async fn whole(body: Body) -> Result<Vec<u8>, BodyError> {
    match body {
        Body::Full(bytes) => Ok(bytes.into()),
        Body::Stream(mut stream) => {
            let mut all = Vec::new();
            while let Some(piece) = stream.next().await.transpose()? {
                all.extend_from_slice(&piece);
            }
            Ok(all)
        }
    }
}

async fn sent(target: &Target, request: Outgoing) -> String {
    let answer = Client::default().send(target, request).await.unwrap();
    String::from_utf8(whole(answer.body).await.unwrap()).unwrap()
}

async fn refused(target: &Target, request: Outgoing) -> TransportError {
    match Client::default().send(target, request).await {
        Ok(answer) => panic!("status {}", answer.status),
        Err(error) => error,
    }
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn listening_is_seen_at_once_and_also_later() {
    let (target, _) = echoing().await;
    let client = Client::default();
    let far = Instant::now() + Duration::from_secs(30);
    assert!(client.listening(target.address, far).await);

    let address = nobody().await;
    let waiting = client.listening(address, far);
    let starting = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let listener = TcpListener::bind(address).await.unwrap();
        listener.accept().await.unwrap();
    };
    let (listening, ()) = tokio::join!(waiting, starting);
    assert!(listening);
}

#[tokio::test]
async fn listening_ends_at_its_deadline_whoever_is_there() {
    let client = Client::default();
    // Nobody; an address without a route back; a deadline in the past.
    for address in [nobody().await, "192.0.2.1:9".parse().unwrap(), "255.255.255.255:9".parse().unwrap()] {
        let deadline = Instant::now() + Duration::from_millis(60);
        assert!(!client.listening(address, deadline).await, "{address}");
        assert!(Instant::now() >= deadline, "{address}: it tried until then");
    }
    let (target, _) = echoing().await;
    assert!(!client.listening(target.address, Instant::now()).await, "no time, no attempt");
}

#[tokio::test]
async fn an_attempt_that_nobody_answers_does_not_hold_up_the_next() {
    // With a full queue the kernel leaves attempts without any answer.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = || tokio::time::timeout(Duration::from_millis(50), TcpStream::connect(address));
    let mut queue = Vec::new();
    while let Ok(connected) = connect().await {
        queue.push(connected.unwrap());
    }
    let client = Client::default();
    let deadline = Instant::now() + Duration::from_millis(300);
    assert!(!client.listening(address, deadline).await);
    assert!(Instant::now() >= deadline);
    let accepting = async {
        loop {
            listener.accept().await.unwrap();
        }
    };
    tokio::select! {
        listening = client.listening(address, Instant::now() + Duration::from_secs(30)) => assert!(listening),
        () = accepting => {}
    }
}

#[test]
fn what_this_host_lacks_is_not_blamed_on_the_guest() {
    let not_connected = |errno: rustix::io::Errno| connection::not_connected(&errno.into());
    for errno in [rustix::io::Errno::MFILE, rustix::io::Errno::ADDRNOTAVAIL] {
        assert!(matches!(not_connected(errno), TransportError::Unable(_)));
    }
    for errno in [rustix::io::Errno::CONNREFUSED, rustix::io::Errno::HOSTDOWN, rustix::io::Errno::NETUNREACH]
    {
        assert!(matches!(not_connected(errno), TransportError::Refused));
    }
}

#[test]
fn errors_have_the_numbers_of_curl() {
    let hard = Duration::from_secs(20);
    for (error, number) in [
        (TransportError::Refused, 7),
        (TransportError::Unable("x".into()), 7),
        (TransportError::TimedOut(hard), 28),
        (BodyError::Idle(hard).into(), 28),
        (BodyError::Late(hard).into(), 28),
        (TransportError::Empty, 52),
        (TransportError::Broken("x".into()), 56),
        (BodyError::Broken("x".into()).into(), 56),
        (BodyError::TooLarge(1).into(), 56),
        (TransportError::Invalid("x".into()), 56),
        (TransportError::Request(BodyError::TooLarge(1)), 56),
    ] {
        assert_eq!(error.errno(), number, "{error}");
    }
}
