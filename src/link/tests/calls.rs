//! Calls and their replies, logs, faults, and the end of a connection.

use super::*;
use crate::execution::{Level, LogLine};
use crate::link::connection::{MAX_CALL_LOG, PROCESS_ENDED};
use crate::link::message::{StateAction, StateIn, StateKind};

#[tokio::test(start_paused = true)]
async fn a_request_arrives_whole() {
    let mut rig = Rig::new();
    let mut request = Request::for_test("/a/b", "n=2");
    request.headers.insert("x-name", "value".parse().unwrap());
    request.body = Body::Full("body".into());
    let state = StateIn {
        key: "k".into(),
        version: 12,
        kind: StateKind::Binary,
        bytes: "state".into(),
        snapshot: None,
        schema: None,
        readonly: false,
    };
    let _call = rig.connection.call(&mut request, Some(&state));
    let (id, head, rest) = rig.worker.take_call().await;
    assert_ne!(id, 0, "0 is the instance itself");
    assert_eq!(head["path"], "/a/b");
    assert_eq!(head["query"], "n=2");
    assert_eq!(head["headers"], json!({"x-name": "value"}));
    assert_eq!(head["state"], json!({"key": "k", "version": 12, "kind": "binary", "length": 5}));
    assert_eq!(head.get("stream"), None);
    assert_eq!(rest, "statebody");
}

#[tokio::test(start_paused = true)]
async fn replies_out_of_order_reach_their_calls() {
    let mut rig = Rig::new();
    let mut calls = Vec::new();
    for _ in 0..5 {
        calls.push(rig.call().await);
    }
    for at in [3, 0, 4, 2, 1] {
        let id = calls[at].0;
        rig.worker.result(id, &json!({"status": 200}), &id.to_be_bytes()).await;
    }
    for (id, mut call) in calls {
        assert_eq!(full(reply(&mut call).await.0)[..], id.to_be_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn interleaved_lines_go_to_their_own_calls() {
    let mut rig = Rig::new();
    let (first, mut first_call) = rig.call().await;
    let (second, mut second_call) = rig.call().await;
    let (third, mut third_call) = rig.call().await;
    rig.worker.log(first, 1, "one").await;
    rig.worker.log(second, 2, "other").await;
    rig.worker.log(0, 3, "of the instance").await;
    rig.worker.log(999, 1, "of nobody").await;
    rig.worker.send(Kind::Log, first, b"").await;
    rig.worker.log(first, 3, "two").await;
    for id in [second, first, third] {
        rig.worker.result(id, &json!({"status": 200}), b"").await;
    }
    let lines = |logs: Option<Logs>| -> Vec<_> {
        logs.map(|logs| logs.lines()).unwrap_or_default().into_iter().map(|l| (l.level, l.text)).collect()
    };
    let of_first = lines(reply(&mut first_call).await.1);
    assert_eq!(of_first, [(Level::Log, "one".into()), (Level::Native, "two".into())]);
    assert_eq!(lines(reply(&mut second_call).await.1), [(Level::Error, "other".into())]);
    assert!(lines(reply(&mut third_call).await.1).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_error_ends_its_call() {
    let mut rig = Rig::new();
    let (id, mut call) = rig.call().await;
    rig.worker.log(id, 1, "before").await;
    rig.worker.send_json(Kind::Error, id, &json!({"kind": "raised", "message": "m", "stack": "s"})).await;
    let (answer, logs) = reply(&mut call).await;
    let fault = error(answer);
    assert_eq!((&*fault.kind, &*fault.message, &*fault.stack), ("raised", "m", "s"));
    assert_eq!(logs.unwrap().lines().len(), 1);

    let (id, mut call) = rig.call().await;
    rig.worker.send(Kind::Error, id, b"nonsense").await;
    assert_eq!(error(reply(&mut call).await.0).kind, "");
}

#[tokio::test(start_paused = true)]
async fn a_result_brings_status_headers_state_and_body() {
    let mut rig = Rig::new();
    let (id, mut call) = rig.call().await;
    let head = json!({
        "status": 201,
        "headers": {"x-a": "b", "set-cookie": ["x=1", "y=2"]},
        "state": {"action": "set", "kind": "binary", "length": 5},
    });
    rig.worker.result(id, &head, b"statebody").await;
    let (Reply::Result { head, state, body: Body::Full(body) }, None) = reply(&mut call).await else {
        panic!("expected a result without lines");
    };
    assert_eq!(head.status, 201);
    assert_eq!(head.headers.0["x-a"], "b");
    assert_eq!(head.headers.0.get_all("set-cookie").iter().count(), 2);
    let change = head.state.unwrap();
    assert_eq!((change.action, change.kind), (StateAction::Set, StateKind::Binary));
    assert_eq!((&state[..], &body[..]), (&b"state"[..], &b"body"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_malformed_result_is_an_error_of_its_call_alone() {
    let state = |length: u64| json!({"status": 200, "state": {"action": "set", "length": length}});
    let malformed = [
        b"".to_vec(),
        b"\0\0\0".to_vec(),
        b"\0\0\0\x03{}".to_vec(),
        b"\xff\xff\xff\xff{}".to_vec(),
        headed(&json!({}), b""),
        headed(&json!([]), b""),
        headed(&json!({"status": "200"}), b""),
        headed(&json!({"status": 70000}), b""),
        headed(&json!({"status": -1}), b""),
        headed(&json!({"status": 200, "headers": {"a b": "c"}}), b""),
        headed(&json!({"status": 200, "state": {"action": "eat"}}), b""),
        headed(&state(6), b"state"),
        headed(&state(u64::MAX), b"state"),
    ];
    let mut rig = Rig::new();
    let (other, mut other_call) = rig.call().await;
    for payload in malformed {
        let (id, mut call) = rig.call().await;
        rig.worker.send(Kind::Result, id, &payload).await;
        let fault = error(reply(&mut call).await.0);
        assert_eq!(fault.kind, "response", "for {payload:?}");
        assert!(!fault.message.is_empty());
    }
    rig.worker.result(other, &state(5), b"state").await;
    assert_eq!(full(reply(&mut other_call).await.0), "");
}

#[tokio::test(start_paused = true)]
async fn a_breach_of_the_protocol_ends_the_connection_and_every_call_learns_why() {
    let wrong_time = |kind| (encoded(kind, 1, b"{}"), format!("{kind:?} at the wrong time"));
    let oversized = (MAX_FRAME as u32 + 1).to_be_bytes().to_vec();
    let cases = [
        (vec![0, 0, 0, 5, 15, 0, 0, 0, 1], "a frame of the unknown type 15".to_owned()),
        (vec![0, 0, 0, 5, 0, 0, 0, 0, 1], "a frame of the unknown type 0".to_owned()),
        (oversized, format!("a frame of {} bytes", MAX_FRAME + 1)),
        (vec![0, 0, 0, 4], "a frame of 4 bytes".to_owned()),
        wrong_time(Kind::Hello),
        wrong_time(Kind::Init),
        wrong_time(Kind::Ready),
        wrong_time(Kind::Failed),
        wrong_time(Kind::Call),
        wrong_time(Kind::Cancel),
        wrong_time(Kind::Stop),
    ];
    for (bytes, expected) in cases {
        let mut rig = Rig::new();
        let (_, mut first) = rig.call().await;
        let (_, mut second) = rig.call().await;
        rig.worker.write(&bytes).await;
        let reason = rig.reason().await;
        assert!(reason.starts_with("the worker broke the link's protocol: "), "{reason}");
        assert!(reason.contains(&expected), "{reason} / {expected}");
        assert_eq!(closed(reply(&mut first).await.0), reason);
        assert_eq!(closed(reply(&mut second).await.0), reason);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_worker_ends_its_calls() {
    let mut rig = Rig::new();
    let (id, mut call) = rig.call().await;
    rig.worker.log(id, 2, "last words").await;
    // In the middle of a frame.
    rig.worker.write(&[0, 0, 1]).await;
    let Rig { connection, worker, running } = rig;
    drop(worker);
    assert_eq!(&*soon("the end", running).await.unwrap(), PROCESS_ENDED);
    let (answer, logs) = reply(&mut call).await;
    assert_eq!(closed(answer), PROCESS_ENDED);
    assert_eq!(logs.unwrap().lines()[0].text, "last words");
    let mut late = connection.call(&mut Request::for_test("/", ""), None);
    assert_eq!(closed(reply(&mut late).await.0), PROCESS_ENDED);
}

#[tokio::test(start_paused = true)]
async fn closing_wakes_everyone() {
    let mut rig = Rig::new();
    let (_, mut waiting) = rig.call().await;
    let (_, mut stream) = rig.streaming(b"").await;
    let mut uploading = rig.connection.call(&mut upload(vec![Ok(pattern(1 << 20).into())]), None);
    let waiting = tokio::spawn(async move { closed(reply(&mut waiting).await.0) });
    let streaming = tokio::spawn(async move { collect(&mut stream).await });
    let uploading = tokio::spawn(async move { closed(reply(&mut uploading).await.0) });
    tokio::task::yield_now().await;
    rig.connection.close("enough");
    rig.connection.close("a second reason changes nothing");
    assert_eq!(rig.reason().await, "enough");
    assert_eq!(soon("the caller", waiting).await.unwrap(), "enough");
    assert_eq!(soon("the uploader", uploading).await.unwrap(), "enough");
    let (read, why) = soon("the reader", streaming).await.unwrap();
    assert_eq!((read.len(), &*why.unwrap()), (0, "the body ended early: the instance ended: enough"));
    let mut late = rig.connection.call(&mut Request::for_test("/", ""), None);
    assert_eq!(closed(reply(&mut late).await.0), "enough");
}

#[tokio::test(start_paused = true)]
async fn closing_before_it_is_driven_is_not_forgotten() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let connection = Connection::new(ours, "test".into());
    connection.close("early");
    assert_eq!(&*soon("the end", connection.run(BytesMut::new())).await, "early");
}

#[tokio::test(start_paused = true)]
async fn the_owner_may_know_better_why_it_ended() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let connection = Connection::new(ours, "test".into());
    let mut call = connection.call(&mut Request::for_test("/", ""), None);
    drop(theirs);
    assert_eq!(&*soon("the end", connection.run(BytesMut::new())).await, PROCESS_ENDED);
    assert!(timeout(SILENCE, call.reply()).await.is_err(), "nobody said yet why");
    connection.close("exited with code 1");
    assert_eq!(closed(reply(&mut call).await.0), "exited with code 1");
}

#[tokio::test(start_paused = true)]
async fn stop_waits_for_stopped() {
    let mut rig = Rig::new();
    let connection = rig.connection.clone();
    let stopping = tokio::spawn(async move { connection.stop().await });
    rig.worker.expect(Kind::Stop, 0).await;
    rig.expect_alive().await;
    assert!(!stopping.is_finished());
    rig.worker.send(Kind::Stopped, 0, b"").await;
    soon("it stopped", stopping).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_is_cancelled_and_its_late_frames_are_ignored() {
    let mut rig = Rig::new();
    let (id, call) = rig.call().await;
    drop(call);
    rig.worker.expect(Kind::Cancel, id).await;
    rig.worker.log(id, 1, "late").await;
    rig.worker.credit(id, 10).await;
    rig.worker.result(id, &json!({"status": 200, "stream": true}), b"late").await;
    rig.worker.send(Kind::Data, id, b"late").await;
    rig.worker.send(Kind::End, id, b"").await;
    rig.worker.send_json(Kind::Error, id, &json!({"kind": "cancelled"})).await;
    rig.expect_alive().await;
}

#[tokio::test(start_paused = true)]
async fn an_answered_call_is_not_cancelled() {
    let mut rig = Rig::new();
    let (id, mut call) = rig.call().await;
    rig.worker.result(id, &json!({"status": 200}), b"").await;
    reply(&mut call).await;
    drop(call);
    rig.worker.expect_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_still_gets_its_reply() {
    let mut rig = Rig::new();
    let (id, mut call) = rig.call().await;
    call.cancel();
    rig.worker.expect(Kind::Cancel, id).await;
    rig.worker.send_json(Kind::Error, id, &json!({"kind": "cancelled"})).await;
    assert_eq!(error(reply(&mut call).await.0).kind, "cancelled");
    drop(call);
    rig.worker.expect_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_result_for_a_whole_answer_is_ignored() {
    let mut rig = Rig::new();
    let (id, mut call) = rig.call().await;
    rig.worker.result(id, &json!({"status": 200}), b"first").await;
    rig.worker.result(id, &json!({"status": 200}), b"second").await;
    assert_eq!(full(reply(&mut call).await.0), "first");
    rig.expect_alive().await;
}

#[test]
fn the_log_of_a_call_at_its_bound_and_one_above() {
    let entry = size_of::<LogLine>();
    let line = |length: usize| LogLine { level: Level::Log, text: "x".repeat(length) };
    let fill = |last: usize| {
        let logs = Logs::default();
        logs.push(line(MAX_CALL_LOG / 2));
        logs.push(line(MAX_CALL_LOG / 2 - 2 * entry - 1000));
        logs.push(line(last));
        logs
    };
    let at = fill(1000 - entry);
    assert_eq!(at.lines()[2].level, Level::Log, "kept");
    let above = fill(1000 - entry + 1);
    assert_eq!(above.lines().len(), 3);
    above.push(line(MAX_CALL_LOG));
    let last = above.lines().pop().unwrap();
    assert_eq!(last.level, Level::Error);
    assert_eq!(last.text, "2 more lines were dropped: a call keeps 1 MiB of log.");
    at.push(line(0));
    assert_eq!(at.lines().len(), 4, "an empty line costs its entry");
    assert!(at.lines()[3].text.starts_with("1 more lines"));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_writes_without_end_is_bounded() {
    let mut rig = Rig::new();
    let (id, mut call) = rig.call().await;
    let text = "x".repeat(8000);
    for _ in 0..300 {
        rig.worker.log(id, 1, &text).await;
    }
    rig.worker.result(id, &json!({"status": 200}), b"").await;
    let lines = reply(&mut call).await.1.unwrap().lines();
    assert!(lines.iter().map(|line| line.text.len()).sum::<usize>() <= MAX_CALL_LOG + 100);
    assert!(lines.last().unwrap().text.contains("more lines were dropped"));
}

/// With a real clock and threads of its own: the host must not spend all its turns on one worker.
#[test]
fn a_worker_that_talks_without_pause_does_not_hold_up_other_tasks() {
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let talking = std::thread::spawn(move || {
        let frames = encoded(Kind::Log, 0, b"\x01x").repeat(1000);
        while std::io::Write::write_all(&mut theirs, &frames).is_ok() {}
    });
    let (done, others) = std::sync::mpsc::channel();
    let host = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let connection = Connection::new(UnixStream::from_std(ours).unwrap(), "test".into());
            let driven = connection.clone();
            tokio::spawn(async move { driven.run(BytesMut::new()).await });
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            done.send(()).unwrap();
        });
    });
    assert_eq!(others.recv_timeout(Duration::from_secs(30)), Ok(()), "another task never got a turn");
    host.join().unwrap();
    talking.join().unwrap();
}
