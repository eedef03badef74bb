//! What is promised of sealed state.

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::state::contract::{Fixture, contract_suite, entity, json};
use crate::state::contract_records::record_suite;
use crate::state::{MAX_RECORD_BYTES, MemoryStore, SqliteStore};

const ONE: &str = "one AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const TWO: &str = "two AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

async fn open() -> Fixture {
    let keys = Keys::parse(ONE).unwrap();
    let store = SealedStore::new(Arc::new(MemoryStore::new()), keys);
    Fixture { store: Arc::new(store), _kept: Box::new(()) }
}

/// All but the largest value, which sealing makes larger.
mod contract {
    use super::*;
    contract_suite!(@tests open;
        absent_put_get_delete wrong_version_conflicts versions_never_repeat
        one_winner_per_version entities_do_not_disturb_each_other
        bytes_come_back_as_they_were odd_names_are_distinct kept_bytes_are_copies
        a_dropped_commit_leaks_nothing closed_means_closed);
    record_suite!(open);

    #[test]
    fn behaves_like_a_map() {
        crate::state::contract::behaves_like_a_map(open);
    }
}

#[tokio::test]
async fn the_largest_value_fits_and_no_larger() {
    let Fixture { store, .. } = open().await;
    let owner = entity("f", "large");
    let room = MAX_RECORD_BYTES - "flarge".len() - Keys::parse(ONE).unwrap().overhead() as usize;
    let put = |size| Write::Put(Value::new(Kind::Binary, vec![7; size]));
    let version = store.commit(&owner, 0, put(room)).await.unwrap();
    assert_eq!(store.get(&owner).await.unwrap().unwrap().value.bytes.len(), room);
    let refused = store.commit(&owner, version, put(room + 1)).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
}

fn event(number: u64, text: &'static str) -> RecordChange {
    let id =
        RecordId { room: Room::Event, key: "k".into(), sub: Bytes::copy_from_slice(&number.to_be_bytes()) };
    let write = RecordWrite::Put { bytes: text.into(), due: None, expires: None };
    RecordChange { id, expected: None, write }
}

#[test]
fn key_files() {
    assert!(Keys::parse(&format!("# a comment\n\n{ONE}\n {TWO} \n")).is_ok());
    for (text, told) in [
        ("", "no key"),
        ("one", "line 1: the key is missing"),
        ("one !", "line 1: the key is not 32 bytes"),
        ("one AQEB", "line 1: the key is not 32 bytes"),
        ("a/b AQEB", "line 1: an id"),
        (&format!("{ONE}\n{ONE}"), "line 2: the id `one` is there twice"),
    ] {
        let error = Keys::parse(text).unwrap_err();
        assert!(error.contains(told), "{error}");
        assert!(!error.contains("AQEB"), "{error}");
    }
    let shown = format!("{:?}", Keys::parse(ONE).unwrap());
    assert_eq!(shown, r#"["one"]"#);
}

#[tokio::test]
async fn nothing_readable_reaches_the_store_and_nothing_moved_opens() {
    let inner: Arc<dyn StateStore> = Arc::new(MemoryStore::new());
    let store = SealedStore::new(Arc::clone(&inner), Keys::parse(ONE).unwrap());
    let owner = entity("f", "k");
    let commit = Commit { records: vec![event(1, "secret event")], ..Commit::of(0, json("secret")) };
    store.apply(&owner, commit).await.unwrap();
    let raw = inner.get(&owner).await.unwrap().unwrap().value;
    let record = inner.record("f", &event(1, "").id).await.unwrap().unwrap();
    for bytes in [&raw.bytes, &record.bytes] {
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
        assert_eq!(sealed_with(bytes), Some(&b"one"[..]));
    }
    // The same bytes under another name, with another kind, or changed in one bit.
    let moved = entity("f", "other");
    inner.commit(&moved, 0, Write::Put(raw.clone())).await.unwrap();
    let kind = entity("f", "kind");
    inner.commit(&kind, 0, Write::Put(Value { kind: Kind::Binary, ..raw.clone() })).await.unwrap();
    let mut bytes = raw.bytes.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let version = inner.get(&owner).await.unwrap().unwrap().version;
    inner.commit(&owner, version, Write::Put(Value { bytes: bytes.into(), ..raw })).await.unwrap();
    for owner in [&moved, &kind, &owner] {
        assert!(matches!(store.get(owner).await, Err(StoreError::Corrupt { .. })), "{owner:?}");
    }
}

#[tokio::test]
async fn rotation_seals_everything_with_the_first_key() {
    let inner: Arc<dyn StateStore> = Arc::new(MemoryStore::new());
    let owner = entity("f", "k");
    inner.commit(&entity("f", "plain"), 0, json("plain")).await.unwrap();
    let old = SealedStore::new(Arc::clone(&inner), Keys::parse(ONE).unwrap());
    let commit = Commit { records: vec![event(1, "e1"), event(2, "e2")], ..Commit::of(0, json("v")) };
    old.apply(&owner, commit).await.unwrap();
    let both = SealedStore::new(Arc::clone(&inner), Keys::parse(&format!("{TWO}\n{ONE}")).unwrap());
    assert_eq!(both.get(&owner).await.unwrap().unwrap().value.bytes, "v", "read with the old key");
    assert_eq!(both.rotate().await.unwrap(), 4);
    assert_eq!(both.rotate().await.unwrap(), 0);
    let new = SealedStore::new(inner, Keys::parse(TWO).unwrap());
    assert_eq!(new.get(&owner).await.unwrap().unwrap().value.bytes, "v");
    assert_eq!(new.get(&entity("f", "plain")).await.unwrap().unwrap().value.bytes, "plain");
    assert_eq!(new.record("f", &event(2, "").id).await.unwrap().unwrap().bytes, "e2");
    let error = old.get(&owner).await.unwrap_err().to_string();
    assert!(error.contains("`two`"), "{error}");
}

fn timer(key: &str, name: &str, due: Millis, bytes: impl Into<Bytes>, expected: Option<u64>) -> RecordChange {
    let id = RecordId { room: Room::Timer, key: key.into(), sub: Bytes::copy_from_slice(name.as_bytes()) };
    let write = RecordWrite::Put { bytes: bytes.into(), due: Some(due), expires: None };
    RecordChange { id, expected, write }
}

fn answer(key: &str) -> RecordChange {
    let id = RecordId { room: Room::Answer, key: key.into(), sub: Bytes::new() };
    let write = RecordWrite::Put { bytes: "answer".into(), due: None, expires: Some(99) };
    RecordChange { id, expected: None, write }
}

fn sealed(inner: &Arc<dyn StateStore>, keys: &str) -> SealedStore {
    SealedStore::new(Arc::clone(inner), Keys::parse(keys).unwrap())
}

#[tokio::test]
async fn a_timer_that_does_not_open_holds_up_no_other_and_opens_again_with_its_key() {
    let inner: Arc<dyn StateStore> = Arc::new(MemoryStore::new());
    let owner = entity("f", "k");
    let set = async |store: &SealedStore, change| {
        store.apply(&owner, Commit::of_records(vec![change])).await.unwrap();
    };
    set(&sealed(&inner, ONE), timer("k", "shut", 5, "{}", None)).await;
    let store = sealed(&inner, TWO);
    set(&store, timer("k", "open", 6, "[]", None)).await;
    let due = store.due(&["f".into()], 10).await.unwrap();
    let [(_, shut), (_, opened)] = &due[..] else { panic!("{due:?}") };
    assert_eq!(opened.bytes, "[]");
    assert_eq!(sealed_with(&shut.bytes), Some(&b"one"[..]), "nobody reads it");
    // As `clock.rs` puts it off.
    set(&store, timer("k", "shut", 100, shut.bytes.clone(), Some(shut.version))).await;
    let late = sealed(&inner, &format!("{TWO}\n{ONE}")).record("f", &shut.id).await.unwrap().unwrap();
    assert_eq!((&late.bytes[..], late.due), (&b"{}"[..], Some(100)), "sealed once, not twice");
}

/// More timers at one time than one answer holds, none of which has a value; and a recorded answer.
#[tokio::test]
async fn rotation_reaches_what_has_no_value() {
    const AT_ONCE: usize = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let inner: Arc<dyn StateStore> = Arc::new(SqliteStore::open(&folder.path().join("state.db"), 0).unwrap());
    let owner = entity("f", "k");
    let timers: Vec<_> = (0..AT_ONCE).map(|n| timer("k", &n.to_string(), 7, "{}", None)).collect();
    for some in timers.chunks(4000) {
        sealed(&inner, TWO).apply(&owner, Commit::of_records(some.to_vec())).await.unwrap();
    }
    assert_eq!(inner.due(&["f".into()], usize::MAX).await.unwrap().len(), AT_ONCE);
    let records = vec![timer("late", "t", 7, "{}", None), answer("once")];
    sealed(&inner, ONE).apply(&owner, Commit::of_records(records.clone())).await.unwrap();
    let both = sealed(&inner, &format!("{TWO}\n{ONE}"));
    assert_eq!(both.rotate().await.unwrap(), 2);
    assert_eq!(both.rotate().await.unwrap(), 0);
    for RecordChange { id, write, .. } in records {
        let RecordWrite::Put { bytes, due, expires } = write else { unreachable!("all are puts") };
        let read = sealed(&inner, TWO).record("f", &id).await.unwrap().unwrap();
        assert_eq!((read.bytes, read.due, read.expires), (bytes, due, expires));
    }
    inner.close().await;
}

#[tokio::test]
async fn rotation_leaves_what_does_not_open_and_does_the_rest() {
    let inner: Arc<dyn StateStore> = Arc::new(MemoryStore::new());
    let shut = entity("f", "a");
    let commit = Commit { records: vec![event(1, "e")], ..Commit::of(0, json("v")) };
    sealed(&inner, ONE).apply(&shut, commit).await.unwrap();
    inner.commit(&entity("f", "b"), 0, json("plain")).await.unwrap();
    // A user's bytes, from a release that did not refuse them.
    let odd = Write::Put(Value::new(Kind::Binary, "\0sealed1\0x"));
    let version = inner.commit(&entity("f", "odd"), 0, odd).await.unwrap();
    let told = sealed(&inner, TWO).rotate().await.unwrap_err().to_string();
    assert!(told.contains("3 things") && told.contains("1 were sealed"), "{told}");
    let value = inner.get(&entity("f", "b")).await.unwrap().unwrap().value;
    assert_eq!(sealed_with(&value.bytes), Some(&b"two"[..]));
    inner.commit(&entity("f", "odd"), version, Write::Delete).await.unwrap();
    assert_eq!(sealed(&inner, &format!("{TWO}\n{ONE}")).rotate().await.unwrap(), 2);
}

#[test]
fn sealing_adds_no_more_than_is_said() {
    let id = "i".repeat(64);
    let keys = Keys::parse(&ONE.replace("one", &id)).unwrap();
    assert_eq!(keys.overhead(), SEAL_BYTES as u64);
    assert_eq!(keys.seal(b"name", b"").unwrap().len(), SEAL_BYTES);
}
