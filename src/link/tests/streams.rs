//! Streamed bodies in both directions, and the credit that bounds them.

use proptest::prelude::*;

use super::*;
use crate::link::frame::{MAX_DATA, WINDOW};

#[tokio::test(start_paused = true)]
async fn a_stream_arrives_in_order_and_credit_is_given_back() {
    let mut rig = Rig::new();
    let body = pattern(1 << 20);
    let (id, mut stream) = rig.streaming(&body[..1000]).await;
    let expected = body.clone();
    let worker = async {
        let (mut sent, mut credit) = (1000, WINDOW);
        while sent < body.len() {
            let size = credit.min(MAX_DATA).min(body.len() - sent);
            if size == 0 {
                let payload = rig.worker.expect(Kind::Credit, id).await;
                credit += u32::from_be_bytes(payload[..].try_into().unwrap()) as usize;
                continue;
            }
            rig.worker.send(Kind::Data, id, &body[sent..sent + size]).await;
            sent += size;
            credit -= size;
        }
        rig.worker.send(Kind::End, id, b"").await;
    };
    let ((), (read, error)) = tokio::join!(worker, collect(&mut stream));
    assert_eq!(error, None);
    assert!(read == expected, "the bytes differ");
}

#[tokio::test(start_paused = true)]
async fn credit_is_what_was_read_and_no_more() {
    let mut rig = Rig::new();
    let (id, mut stream) = rig.streaming(&pattern(WINDOW)).await;
    rig.worker.send(Kind::Data, id, &pattern(MAX_DATA)).await;
    soon("the first piece", stream.next()).await.unwrap().unwrap();
    rig.worker.expect_nothing().await;
    assert_eq!(soon("DATA", stream.next()).await.unwrap().unwrap().len(), MAX_DATA);
    let payload = rig.worker.expect(Kind::Credit, id).await;
    assert_eq!(payload[..], (MAX_DATA as u32).to_be_bytes(), "what came inside RESULT is not paid back");
    rig.worker.expect_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_may_use_all_its_credit_but_not_a_byte_more() {
    for above in [0, 1] {
        let mut rig = Rig::new();
        let (_, mut other) = rig.call().await;
        let (id, mut stream) = rig.streaming(b"first").await;
        for piece in pattern(WINDOW).chunks(MAX_DATA) {
            rig.worker.send(Kind::Data, id, piece).await;
        }
        rig.worker.send(Kind::Data, id, &vec![0; above]).await;
        if above == 0 {
            rig.worker.send(Kind::End, id, b"").await;
            let (read, error) = collect(&mut stream).await;
            assert_eq!((read.len(), error), (WINDOW + 5, None));
        } else {
            let reason = rig.reason().await;
            assert_eq!(reason, "the worker broke the link's protocol: DATA beyond its credit");
            assert_eq!(closed(reply(&mut other).await.0), reason);
            assert!(collect(&mut stream).await.1.unwrap().contains(&reason));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_small_pieces_stay_in_order() {
    let mut rig = Rig::new();
    let body = pattern(3000);
    let (id, mut stream) = rig.streaming(b"").await;
    for (at, piece) in body.chunks(10).enumerate() {
        rig.worker.send(Kind::Data, id, piece).await;
        // More than are kept as they came, with a reader that takes one now and then.
        if at == 200 {
            assert_eq!(soon("a piece", stream.next()).await.unwrap().unwrap()[..], body[..10]);
        }
    }
    rig.worker.send(Kind::End, id, b"").await;
    let (read, error) = collect(&mut stream).await;
    assert_eq!(error, None);
    assert!(read == body[10..], "the bytes differ");
}

#[tokio::test(start_paused = true)]
async fn an_empty_piece_does_not_hide_those_behind_it() {
    let mut rig = Rig::new();
    let (id, mut stream) = rig.streaming(b"").await;
    for piece in ["", "one ", "", "", "two"] {
        rig.worker.send(Kind::Data, id, piece.as_bytes()).await;
    }
    rig.worker.send(Kind::End, id, b"").await;
    rig.expect_alive().await;
    assert_eq!(collect(&mut stream).await, (b"one two".to_vec(), None));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_waits_is_woken_by_a_piece_and_by_the_end() {
    let mut rig = Rig::new();
    let (id, mut stream) = rig.streaming(b"").await;
    let reading = tokio::spawn(async move { collect(&mut stream).await });
    rig.expect_alive().await;
    rig.worker.send(Kind::Data, id, b"piece").await;
    rig.expect_alive().await;
    assert!(!reading.is_finished());
    rig.worker.send(Kind::End, id, b"").await;
    assert_eq!(soon("the reader", reading).await.unwrap(), (b"piece".to_vec(), None));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_off_says_why() {
    for (kind, payload, expected) in [
        (Kind::End, r#"{"error":"the file is gone"}"#, "the file is gone"),
        (Kind::End, "nonsense", "the function's stream broke off"),
        (Kind::Error, r#"{"kind":"raised"}"#, "the function ended its stream with an error"),
        (Kind::Result, "", "the function ended its stream with an error"),
    ] {
        let mut rig = Rig::new();
        let (id, mut stream) = rig.streaming(b"some").await;
        rig.worker.send(kind, id, payload.as_bytes()).await;
        let (read, error) = collect(&mut stream).await;
        assert_eq!(read, b"some");
        assert_eq!(error.unwrap(), format!("the body ended early: {expected}"));
        rig.expect_alive().await;
    }
}

#[tokio::test(start_paused = true)]
async fn lines_of_a_stream_join_its_book() {
    let mut rig = Rig::new();
    let (id, mut call) = rig.call().await;
    rig.worker.result(id, &json!({"status": 200, "stream": true}), b"").await;
    let (Reply::Result { body: Body::Stream(mut stream), .. }, logs) = reply(&mut call).await else {
        panic!("expected a stream");
    };
    rig.worker.log(id, 1, "late").await;
    rig.worker.send(Kind::End, id, b"").await;
    collect(&mut stream).await;
    assert_eq!(logs.unwrap().lines()[0].text, "late");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_cancels_its_call() {
    let mut rig = Rig::new();
    let (id, stream) = rig.streaming(b"first").await;
    drop(stream);
    rig.worker.expect(Kind::Cancel, id).await;
    rig.worker.send(Kind::Data, id, &vec![0; WINDOW + 1]).await;
    rig.worker.send_json(Kind::End, id, &json!({"error": "cancelled"})).await;
    rig.expect_alive().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_read_to_its_end_is_not_cancelled() {
    let mut rig = Rig::new();
    let (id, mut stream) = rig.streaming(b"all").await;
    rig.worker.send(Kind::End, id, b"").await;
    assert_eq!(collect(&mut stream).await.0, b"all");
    drop(stream);
    rig.worker.expect_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_result_for_a_stream_ends_the_connection_and_its_reader() {
    let mut rig = Rig::new();
    let (id, mut stream) = rig.streaming(b"").await;
    rig.worker.result(id, &json!({"status": 200, "stream": true}), b"second").await;
    assert_eq!(rig.reason().await, "the worker broke the link's protocol: two RESULTs for one call");
    let (read, error) = collect(&mut stream).await;
    assert_eq!(read, b"");
    assert!(error.unwrap().contains("two RESULTs for one call"));
}

#[tokio::test(start_paused = true)]
async fn an_upload_sends_a_window_and_then_waits_for_credit() {
    let mut rig = Rig::new();
    let body = pattern(WINDOW + 100_000);
    let pieces = body.chunks(70_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let mut call = rig.connection.call(&mut upload(pieces), None);
    let caller = tokio::spawn(async move { full(reply(&mut call).await.0) });
    let (id, head, rest) = rig.worker.take_call().await;
    assert_eq!((&head["stream"], rest.len()), (&json!(true), 0));
    let mut read = Vec::new();
    while let Ok(Some(frame)) = timeout(SILENCE, rig.worker.read()).await {
        assert_eq!((frame.kind, frame.call), (Kind::Data, id));
        assert!((1..=MAX_DATA).contains(&frame.payload.len()));
        read.extend_from_slice(&frame.payload);
    }
    assert!(read.len() <= WINDOW, "{} bytes without credit", read.len());
    assert!(read.len() > WINDOW - MAX_DATA, "only {} bytes of the window", read.len());
    // In small portions: a piece is sent when there is credit for all of it.
    let mut given = 0;
    loop {
        if given < read.len() {
            rig.worker.credit(id, (read.len() - given).min(10_000)).await;
            given += (read.len() - given).min(10_000);
        }
        match timeout(Duration::from_secs(1), rig.worker.read()).await {
            Ok(None) => panic!("the host closed the connection"),
            Ok(Some(frame)) if frame.kind == Kind::End => break,
            Ok(Some(frame)) => read.extend_from_slice(&frame.payload),
            Err(_) => assert!(given < read.len(), "waits although it has all its credit"),
        }
        assert!(read.len() <= WINDOW + given, "more than credit allows");
    }
    assert!(read == body, "the bytes differ");
    rig.worker.result(id, &json!({"status": 200}), b"thanks").await;
    assert_eq!(soon("the reply", caller).await.unwrap(), "thanks");
}

#[tokio::test(start_paused = true)]
async fn an_early_reply_ends_the_upload() {
    let mut rig = Rig::new();
    let mut call = rig.connection.call(&mut upload(vec![Ok(pattern(1 << 20).into())]), None);
    let (id, ..) = rig.worker.take_call().await;
    let worker = async {
        rig.worker.expect(Kind::Data, id).await;
        rig.worker.result(id, &json!({"status": 413}), b"too much").await;
    };
    let (answer, ()) = tokio::join!(reply(&mut call), worker);
    assert_eq!(full(answer.0), "too much");
    drop(call);
    rig.worker.credit(id, MAX_DATA).await;
    while let Ok(Some(frame)) = timeout(SILENCE, rig.worker.read()).await {
        // What was under way; the window was full before the reply.
        assert_eq!(frame.kind, Kind::Data);
    }
    rig.expect_alive().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_body_that_breaks_off_cancels_the_call() {
    let mut rig = Rig::new();
    let pieces = vec![Ok(Bytes::from("begin")), Err(BodyError::TooLarge(7))];
    let mut call = rig.connection.call(&mut upload(pieces), None);
    let (id, ..) = rig.worker.take_call().await;
    let result = soon("the error", call.reply()).await;
    assert!(matches!(result, Err(BodyError::TooLarge(7))));
    drop(call);
    assert_eq!(rig.worker.expect(Kind::Data, id).await, "begin");
    rig.worker.expect(Kind::Cancel, id).await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_upload_is_an_end() {
    let mut rig = Rig::new();
    let mut call = rig.connection.call(&mut upload(vec![Ok(Bytes::new())]), None);
    let (id, ..) = rig.worker.take_call().await;
    let worker = async {
        rig.worker.expect(Kind::End, id).await;
        rig.worker.result(id, &json!({"status": 200}), b"").await;
    };
    let (answer, ()) = tokio::join!(reply(&mut call), worker);
    assert_eq!(full(answer.0), "");
}

#[tokio::test(start_paused = true)]
async fn credit_beyond_the_window_ends_the_connection() {
    for (more, fine) in [(0, true), (1, false), (u32::MAX as usize, false)] {
        let mut rig = Rig::new();
        let mut call = rig.connection.call(&mut upload(Vec::new()), None);
        let (id, ..) = rig.worker.take_call().await;
        rig.worker.credit(id, more).await;
        rig.worker.send(Kind::Credit, id, b"abc").await;
        if fine {
            rig.worker.result(id, &json!({"status": 200}), b"").await;
            full(reply(&mut call).await.0);
        } else {
            let reason = rig.reason().await;
            assert_eq!(reason, "the worker broke the link's protocol: CREDIT beyond the window");
            assert_eq!(closed(reply(&mut call).await.0), reason);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_does_not_hold_up_other_calls() {
    let mut rig = Rig::new();
    let (id, mut stream) = rig.streaming(b"").await;
    for piece in pattern(WINDOW).chunks(MAX_DATA) {
        rig.worker.send(Kind::Data, id, piece).await;
    }
    rig.expect_alive().await;
    rig.worker.send(Kind::End, id, b"").await;
    assert_eq!(collect(&mut stream).await.0.len(), WINDOW);
}

/// Moves `sizes` of bytes through a stream with a worker that keeps to its credit.
async fn move_all(first: usize, sizes: Vec<usize>) {
    let mut rig = Rig::new();
    let body = pattern(first + sizes.iter().sum::<usize>());
    let (id, mut stream) = rig.streaming(&body[..first]).await;
    let expected = body.clone();
    let worker = async {
        let (mut sent, mut credit) = (first, WINDOW);
        for size in sizes {
            while credit < size {
                let payload = rig.worker.expect(Kind::Credit, id).await;
                credit += u32::from_be_bytes(payload[..].try_into().unwrap()) as usize;
            }
            rig.worker.send(Kind::Data, id, &body[sent..sent + size]).await;
            sent += size;
            credit -= size;
        }
        rig.worker.send(Kind::End, id, b"").await;
    };
    let ((), (read, error)) = tokio::join!(worker, collect(&mut stream));
    assert_eq!(error, None);
    assert!(read == expected, "the bytes differ");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_worker_that_keeps_to_its_credit_never_gets_stuck(
        first in 0usize..100_000,
        sizes in prop::collection::vec(prop_oneof![0usize..100, 1usize..=MAX_DATA, Just(MAX_DATA)], 0..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(move_all(first, sizes));
    }
}
