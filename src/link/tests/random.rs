//! A worker that says anything at any time: the host neither panics nor hangs, and no call gets another's frames.

use proptest::prelude::*;

use super::*;
use crate::link::frame::{MAX_DATA, WINDOW};

/// What the worker does. Calls are named by their order; some numbers name none.
#[derive(Debug, Clone)]
enum Say {
    Whole(u32),
    Stream(u32),
    BadResult(u32, Vec<u8>),
    Error(u32),
    Data(u32, usize),
    End(u32, bool),
    Log(u32, usize),
    Credit(u32, u32),
    Stopped,
    /// Any type of frame.
    Any(u8, u32, usize),
}

fn say() -> impl Strategy<Value = Say> {
    let call = || 0u32..7;
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        6 => call().prop_map(Say::Whole),
        8 => call().prop_map(Say::Stream),
        2 => (call(), bytes()).prop_map(|(call, bytes)| Say::BadResult(call, bytes)),
        3 => call().prop_map(Say::Error),
        12 => (call(), prop_oneof![0usize..10, 0usize..=MAX_DATA]).prop_map(|(call, size)| Say::Data(call, size)),
        4 => (call(), any::<bool>()).prop_map(|(call, broken)| Say::End(call, broken)),
        4 => (call(), 0usize..9000).prop_map(|(call, size)| Say::Log(call, size)),
        4 => (call(), prop_oneof![0u32..1000, Just(WINDOW as u32), any::<u32>()]).prop_map(|(c, n)| Say::Credit(c, n)),
        1 => Just(Say::Stopped),
        1 => (any::<u8>(), call(), 0usize..40).prop_map(|(kind, call, size)| Say::Any(kind, call, size)),
    ]
}

impl Say {
    /// Payloads of a call carry its number, so that a mix-up shows.
    fn encode(&self) -> Vec<u8> {
        let marked = |call: u32, size: usize| vec![call as u8; size];
        match self {
            Self::Whole(call) => {
                encoded(Kind::Result, *call, &headed(&json!({"status": 200}), &marked(*call, 3)))
            }
            Self::Stream(call) => {
                let head = json!({"status": 200, "stream": true});
                encoded(Kind::Result, *call, &headed(&head, &marked(*call, 3)))
            }
            Self::BadResult(call, bytes) => encoded(Kind::Result, *call, bytes),
            Self::Error(call) => {
                encoded(Kind::Error, *call, json!({"kind": call.to_string()}).to_string().as_bytes())
            }
            Self::Data(call, size) => encoded(Kind::Data, *call, &marked(*call, *size)),
            Self::End(call, false) => encoded(Kind::End, *call, b""),
            Self::End(call, true) => encoded(Kind::End, *call, br#"{"error":"broke"}"#),
            Self::Log(call, size) => encoded(Kind::Log, *call, &marked(*call, *size)),
            Self::Credit(call, more) => encoded(Kind::Credit, *call, &more.to_be_bytes()),
            Self::Stopped => encoded(Kind::Stopped, 0, b""),
            Self::Any(kind, call, size) => {
                let mut frame = encoded(Kind::Log, *call, &marked(*call, *size));
                frame[4] = *kind;
                frame
            }
        }
    }
}

/// How the caller of one call behaves.
#[derive(Debug, Clone, Copy)]
enum Caller {
    Reads,
    ReadsOnePiece,
    DropsTheStream,
    Uploads(usize),
    GivesUp,
    Cancels,
}

fn caller() -> impl Strategy<Value = Caller> {
    prop_oneof![
        4 => Just(Caller::Reads),
        1 => Just(Caller::ReadsOnePiece),
        1 => Just(Caller::DropsTheStream),
        2 => (0usize..2 * WINDOW).prop_map(Caller::Uploads),
        1 => Just(Caller::GivesUp),
        1 => Just(Caller::Cancels),
    ]
}

async fn behave(number: u32, how: Caller, mut call: Call) {
    match how {
        Caller::GivesUp => return,
        Caller::Cancels => call.cancel(),
        _ => {}
    }
    let (answer, logs) = reply(&mut call).await;
    let own = |bytes: &[u8]| assert!(bytes.iter().all(|b| u32::from(*b) == number), "bytes of another call");
    if let Some(logs) = logs {
        for line in logs.lines() {
            own(line.text.split('.').next().unwrap_or_default().as_bytes());
        }
    }
    match answer {
        Reply::Closed(_) => {}
        Reply::Error(fault) => {
            assert!(
                ["response", "", &number.to_string()].contains(&&*fault.kind),
                "the fault of another call"
            );
        }
        Reply::Result { body: Body::Full(body), .. } => own(&body),
        Reply::Result { body: Body::Stream(mut stream), .. } => match how {
            Caller::DropsTheStream => {}
            Caller::ReadsOnePiece => {
                if let Some(Ok(piece)) = soon("a piece", stream.next()).await {
                    own(&piece);
                }
            }
            _ => own(&collect(&mut stream).await.0),
        },
    }
}

async fn play(callers: Vec<Caller>, says: Vec<Say>, step: usize) {
    let Rig { connection, mut worker, running } = Rig::new();
    let mut tasks = Vec::new();
    for (number, how) in (1..).zip(callers) {
        let mut request = match how {
            Caller::Uploads(size) => upload(vec![Ok(pattern(size).into())]),
            _ => Request::for_test("/", ""),
        };
        let call = connection.call(&mut request, None);
        tasks.push(tokio::spawn(behave(number, how, call)));
    }
    let wire: Vec<u8> = says.iter().flat_map(Say::encode).collect();
    let (mut reader, mut writer) = worker.stream.split();
    let listening = async {
        let mut sink = vec![0; 64 << 10];
        while reader.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    };
    let talking = async {
        // Long texts in larger pieces, or a case would take seconds.
        for piece in wire.chunks(step.max(wire.len() / 1000)) {
            if writer.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Then it dies.
        writer.shutdown().await
    };
    let talked = async {
        tokio::select! {
            _ = talking => {}
            () = listening => {}
            // The host closed the connection; it is not read any more.
            () = tokio::time::sleep(PATIENCE) => {}
        }
    };
    soon("the worker's end", talked).await;
    drop(worker);
    soon("the connection's end", running).await.unwrap();
    for task in tasks {
        soon("every caller's end", task).await.unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_worker_says_every_caller_gets_an_end_and_nothing_of_another(
        callers in prop::collection::vec(caller(), 1..6),
        says in prop::collection::vec(say(), 0..60),
        step in prop_oneof![1usize..100, 1000usize..200_000],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(play(callers, says, step));
    }
}
