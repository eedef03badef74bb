//! Bytes from anywhere: a state or an error, never a panic, and never a state that panics later.

use proptest::prelude::*;

use super::super::{CrdtError, Ops};
use super::simulation::{histories, ops};
use super::{Crdt, CrdtType, Host, join};

/// Does everything there is to do with a state.
fn exercise(state: &Crdt) {
    assert_eq!(Crdt::decode(&state.encode()).as_ref(), Ok(state));
    let parsed: serde_json::Value = serde_json::from_str(&state.view()).unwrap();
    assert!(parsed.is_object());
    serde_json::from_str::<serde_json::Value>(&state.plain()).unwrap();
    assert_eq!(join(state, state).view(), join(&Crdt::new(state.kind()), state).view());
    for name in ["a", "b"] {
        for op in ops(state.kind()) {
            if let Ok(delta) = Host::new(name).try_delta(state, state, &format!("[{op}]"), 1) {
                let after = join(state, &delta);
                assert_eq!(Crdt::decode(&after.encode()), Ok(after));
            }
        }
    }
}

#[test]
fn damaged_states_are_refused() {
    for (bytes, what) in [
        (&b""[..], "cut off"),
        (b"\0", "no version"),
        (b"\x01", "cut off"),
        (b"\x01\x09\0\0\0", "unknown type"),
        (b"\x01\x06\0\0\0x", "more follows"),
        (b"\x01\x06\x01\0\0\0", "a replica's name"),
        // A flag whose dot the context lacks.
        (b"\x01\x06\x01\x01a\0\x01\x01\0\x05", "contradict"),
        (b"\x01\x06\x01\x01a\x01\0\x00\0", "without ranges"),
        (b"\x01\x06\x01\x01a\x01\0\x01\0\0\0", "not in order"),
        (b"\x01\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "too long"),
        (b"\x01\x06\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut off"),
    ] {
        match Crdt::decode(bytes) {
            Err(CrdtError::Corrupt { what: found }) => assert!(found.contains(what), "{found}, not {what}"),
            other => panic!("{bytes:?}: {other:?}"),
        }
    }
    assert_eq!(Crdt::decode(b"\x02"), Err(CrdtError::TooNew { found: 2, supported: 1 }));
}

/// Overwrites, removes or inserts a few bytes.
fn mutate(bytes: &mut Vec<u8>, changes: &[(prop::sample::Index, u8, u8)]) {
    for (at, how, byte) in changes {
        let at = at.index(bytes.len() + 1);
        match how % 3 {
            0 => bytes.insert(at, *byte),
            1 if at < bytes.len() => bytes[at] = *byte,
            _ if at < bytes.len() => _ = bytes.remove(at),
            _ => bytes.push(*byte),
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), prop_oneof![0..8u8, any::<u8>()]), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes(mut bytes in prop::collection::vec(prop_oneof![0..4u8, any::<u8>()], 0..60), kind in 0usize..8) {
        _ = Ops::parse(CrdtType::ALL[kind], &bytes);
        _ = Crdt::decode(&bytes).map(|state| exercise(&state));
        bytes.splice(0..0, [1, kind as u8 + 1, 1, 1, b'a']);
        _ = Crdt::decode(&bytes).map(|state| exercise(&state));
    }

    #[test]
    fn mutated_states((states, _) in histories(), changes in changes()) {
        for state in states.iter().rev().take(3) {
            let mut bytes = state.encode();
            mutate(&mut bytes, &changes);
            _ = Crdt::decode(&bytes).map(|state| exercise(&state));
        }
    }

    #[test]
    fn mutated_operations(kind in 0usize..8, which in any::<prop::sample::Index>(), changes in changes()) {
        let kind = CrdtType::ALL[kind];
        let ops = ops(kind);
        let mut bytes = format!("[{},{}]", which.get(&ops), ops[0]).into_bytes();
        mutate(&mut bytes, &changes);
        if let Ok(parsed) = Ops::parse(kind, &bytes) {
            let text = String::from_utf8(bytes).unwrap();
            if Host::new("a").try_delta(&Crdt::new(kind), &Crdt::new(kind), &text, 1).is_ok() {
                exercise(&Host::new("a").after(&Crdt::new(kind), &text));
            }
            prop_assert_eq!(Ops::parse(kind, text.as_bytes()), Ok(parsed));
        }
    }
}
