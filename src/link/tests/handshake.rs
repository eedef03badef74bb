//! From a listening socket to a ready worker, with peers of every kind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tokio::time::Instant;

use super::*;
use crate::function::{Access, Function, RuntimeRef, ServedBy};
use crate::instance::Secret;
use crate::link::message::Limits;
use crate::link::{HandshakeError, Init, Ready, StartWords, accept};

const START: Duration = Duration::from_secs(30);
const HELLO_LIMIT: Duration = Duration::from_secs(2);
const MAX_HELLO: usize = 4096;

struct Door {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    token: Secret,
    opened: Instant,
}

impl Door {
    fn new() -> (Self, UnixListener) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("link.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        (Self { _folder: folder, socket, token: Secret::new("right"), opened: Instant::now() }, listener)
    }

    async fn accept(&self, listener: UnixListener) -> Result<Ready, HandshakeError> {
        let function = function();
        let limits = Limits::new(1000, 100);
        let init = Init {
            function: &function,
            directory: "/code",
            entrypoint: "index.js",
            info_only: false,
            limits,
            words: &StartWords::default(),
        };
        let outcome = accept(listener, &self.socket, &self.token, &init, self.opened + START).await;
        assert!(!self.socket.exists(), "the socket must be gone, whatever the outcome");
        outcome
    }

    async fn peer(&self) -> Worker {
        Worker::new(UnixStream::connect(&self.socket).await.unwrap())
    }

    async fn hello(&self, protocol: u32, token: &str) -> Worker {
        let mut peer = self.peer().await;
        peer.send_json(Kind::Hello, 0, &json!({"protocol": protocol, "token": token, "runtime": "node"}))
            .await;
        peer
    }

    /// The right worker, which was told what to load.
    async fn loading(&self) -> Worker {
        let mut worker = self.hello(1, "right").await;
        worker.expect(Kind::Init, 0).await;
        worker
    }
}

fn function() -> Function {
    Function {
        name: "greet".into(),
        folder: "/functions/greet".into(),
        source: "/functions/greet".into(),
        build: None,
        runtime: RuntimeRef { name: "node".into(), version: None },
        served_by: ServedBy::Worker,
        entrypoint: "index.js".into(),
        timeout: Duration::from_secs(15),
        memory: 256 << 20,
        cpus: 1.0,
        concurrency: 7,
        min_instances: 0,
        max_instances: 4,
        keep_warm: Duration::from_mins(5),
        access: Access::Public,
        env: BTreeMap::from([("A".into(), "b".into())]),
        state: None,
        fingerprint: 0,
    }
}

fn broken(outcome: Result<Ready, HandshakeError>) -> String {
    match outcome {
        Err(HandshakeError::Broken(reason)) => reason.to_string(),
        Err(other) => panic!("expected a broken start, got {other:?}"),
        Ok(_) => panic!("expected a broken start, got a ready worker"),
    }
}

fn timed_out(outcome: Result<Ready, HandshakeError>) -> &'static str {
    match outcome {
        Err(HandshakeError::TimedOut(text)) => text,
        Err(other) => panic!("expected a late start, got {other:?}"),
        Ok(_) => panic!("expected a late start, got a ready worker"),
    }
}

async fn expect_gone(socket: &Path) {
    let late = UnixStream::connect(socket).await;
    assert!(late.is_err(), "a late peer found the door open");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_token_is_refused_the_right_one_accepted_and_a_late_one_finds_no_door() {
    let (door, listener) = Door::new();
    let peers = async {
        let mut stranger = door.hello(1, "wrong").await;
        stranger.expect_end().await;
        let mut worker = door.hello(1, "right").await;
        let init: Value = serde_json::from_slice(&worker.expect(Kind::Init, 0).await).unwrap();
        worker.send_json(Kind::Ready, 0, &json!({"info": {"a": 1}, "hooks": ["init"]})).await;
        (worker, init)
    };
    let (outcome, (_worker, init)) = tokio::join!(door.accept(listener), peers);
    let expected = json!({
        "name": "greet", "directory": "/code", "entrypoint": "index.js", "env": {"A": "b"},
        "concurrency": 7, "info_only": false, "limits": {"response": 1000, "state": 100, "events": 1000, "timers": 100},
    });
    assert_eq!(init, expected);
    let ready = outcome.unwrap();
    assert_eq!(ready.message.info, Some(json!({"a": 1})));
    assert_eq!(ready.message.hooks, ["init"]);
    expect_gone(&door.socket).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_works_once() {
    let (door, listener) = Door::new();
    let peers = async {
        let mut worker = door.loading().await;
        // The door is gone before the first one is ready.
        expect_gone(&door.socket).await;
        worker.send_json(Kind::Ready, 0, &json!({})).await;
        worker
    };
    // The path is unlinked at the end; what refuses the second one until then is that nobody listens.
    let (outcome, _worker) = tokio::join!(door.accept(listener), peers);
    outcome.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_holds_the_worker_up_for_a_moment_only() {
    let (door, listener) = Door::new();
    let peers = async {
        let silent = door.peer().await;
        let mut worker = door.loading().await;
        worker.send_json(Kind::Ready, 0, &json!({})).await;
        (silent, worker)
    };
    let (outcome, (mut silent, _worker)) = tokio::join!(door.accept(listener), peers);
    outcome.unwrap();
    assert_eq!(door.opened.elapsed().as_secs(), HELLO_LIMIT.as_secs());
    silent.expect_end().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_comes() {
    let (door, listener) = Door::new();
    let silent = door.peer().await;
    assert_eq!(timed_out(door.accept(listener).await), "its worker did not report in time");
    assert_eq!(door.opened.elapsed().as_secs(), START.as_secs());
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn another_version_of_the_protocol_is_named() {
    let (door, listener) = Door::new();
    let (outcome, _worker) = tokio::join!(door.accept(listener), door.hello(2, "right"));
    assert_eq!(broken(outcome), "it speaks version 2 of the link, this executor 1");
}

#[tokio::test(start_paused = true)]
async fn a_stranger_with_another_version_cannot_spoil_the_start() {
    let (door, listener) = Door::new();
    let peers = async {
        let mut stranger = door.hello(2, "wrong").await;
        stranger.expect_end().await;
        let mut worker = door.loading().await;
        worker.send_json(Kind::Ready, 0, &json!({})).await;
        worker
    };
    let (outcome, _worker) = tokio::join!(door.accept(listener), peers);
    outcome.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_function_failed_with_is_told() {
    let (door, listener) = Door::new();
    let peers = async {
        let mut worker = door.loading().await;
        worker.send_json(Kind::Failed, 0, &json!({"kind": "syntax", "message": "no", "stack": "at 1"})).await;
        worker
    };
    let (outcome, _worker) = tokio::join!(door.accept(listener), peers);
    match outcome {
        Err(HandshakeError::Load(fault)) => {
            assert_eq!((&*fault.kind, &*fault.message, &*fault.stack), ("syntax", "no", "at 1"));
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("ready although it failed"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_writes_but_does_not_get_ready_is_late() {
    let (door, listener) = Door::new();
    let peers = async {
        let mut worker = door.loading().await;
        worker.log(0, 3, "still loading").await;
        worker
    };
    let (outcome, _worker) = tokio::join!(door.accept(listener), peers);
    assert_eq!(timed_out(outcome), "it did not finish loading in time");
    assert_eq!(door.opened.elapsed().as_secs(), START.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_while_loading_breaks_the_start() {
    let (door, listener) = Door::new();
    let (outcome, ()) = tokio::join!(door.accept(listener), async { drop(door.loading().await) });
    assert_eq!(broken(outcome), "its process ended");
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_makes_no_sense_breaks_the_start() {
    for (kind, payload, reason) in [
        (Kind::Result, "", "Result before READY"),
        (Kind::Hello, "{}", "Hello before READY"),
        (Kind::Ready, "nonsense", "expected ident at line 1 column 2"),
    ] {
        let (door, listener) = Door::new();
        let peers = async {
            let mut worker = door.loading().await;
            worker.send(kind, 0, payload.as_bytes()).await;
            worker
        };
        let (outcome, _worker) = tokio::join!(door.accept(listener), peers);
        assert_eq!(broken(outcome), reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_at_its_bound_and_one_above() {
    let hello = |length: usize| {
        let empty = json!({"protocol": 1, "token": "right", "runtime": ""}).to_string();
        let padding = "x".repeat(length - 5 - empty.len());
        json!({"protocol": 1, "token": "right", "runtime": padding})
    };
    let (door, listener) = Door::new();
    let peers = async {
        let mut above = door.peer().await;
        above.send_json(Kind::Hello, 0, &hello(MAX_HELLO + 1)).await;
        above.expect_end().await;
        let mut at = door.peer().await;
        at.send_json(Kind::Hello, 0, &hello(MAX_HELLO)).await;
        at.expect(Kind::Init, 0).await;
        at.send_json(Kind::Ready, 0, &json!({})).await;
        at
    };
    let (outcome, _worker) = tokio::join!(door.accept(listener), peers);
    outcome.unwrap();
    assert!(door.opened.elapsed() < HELLO_LIMIT, "what is too long is refused without waiting");
}

#[tokio::test(start_paused = true)]
async fn nonsense_instead_of_hello_is_refused() {
    let (door, listener) = Door::new();
    let peers = async {
        let mut other = door.peer().await;
        other.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        other.expect_end().await;
        let mut other = door.peer().await;
        other.send_json(Kind::Ready, 0, &json!({"protocol": 1, "token": "right"})).await;
        other.expect_end().await;
        let mut other = door.peer().await;
        other.send(Kind::Hello, 0, b"{").await;
        other.expect_end().await;
        drop(door.peer().await);
        let mut worker = door.loading().await;
        worker.send_json(Kind::Ready, 0, &json!({})).await;
        worker
    };
    let (outcome, _worker) = tokio::join!(door.accept(listener), peers);
    outcome.unwrap();
}

#[tokio::test(start_paused = true)]
async fn bytes_after_ready_are_kept_for_the_connection() {
    let (door, listener) = Door::new();
    let peers = async {
        let mut worker = door.loading().await;
        let mut bytes = encoded(Kind::Ready, 0, b"{}");
        bytes.extend(encoded(Kind::Stopped, 0, b""));
        worker.write(&bytes).await;
        worker
    };
    let (outcome, _worker) = tokio::join!(door.accept(listener), peers);
    let ready = outcome.unwrap();
    assert_eq!(&ready.buffered[..], &encoded(Kind::Stopped, 0, b"")[..]);
    let connection = ready.connection.clone();
    tokio::spawn(async move { ready.connection.run(ready.buffered).await });
    soon("STOPPED was heard", connection.stop()).await;
}
