//! Encryption at rest: a store around another, which sees sealed bytes only.
//!
//! Values and records are sealed with AES-256-GCM under a random nonce. Each name has a key of its own, derived from the
//! file's with HKDF-SHA-256, so the number of writes that is safe under random nonces (2^32) counts for each name alone. The
//! name, and what is said of a value beside its bytes, is associated data, too: bytes moved to another key, room or function do
//! not open. Names, sizes, times and versions stay readable; without them a store could not do its work.
//!
//! Sealed bytes: `MAGIC`, length and text of the key's id, nonce, ciphertext and tag.
//!
//! The first key of the file seals, all of them open. What was written before there were keys is read as it is until
//! [`SealedStore::rotate`] has sealed it.
//!
//! # Failure
//!
//! What does not open (a key that is missing, bytes that were changed) is [`StoreError::Corrupt`] and says which key.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use bytes::Bytes;

use super::{
    BoxFuture, Commit, Entity, Kind, Listed, Millis, Record, RecordChange, RecordId, RecordWrite, Room,
    StateStore, StoreError, Value, Versioned, Write,
};

/// What sealed bytes begin with.
const MAGIC: &[u8; 8] = b"\0sealed1";

const NONCE: usize = 12;

/// The most keys of a file, and the most bytes of a key's id.
const MAX_KEYS: usize = 64;

/// Things looked at in one step of a rotation.
const STEP: usize = 500;

/// Timers looked at by a rotation.
const MAX_TIMERS: usize = 1_000_000;

/// How often a rotation tries again with something that calls keep changing.
const RETRIES: u32 = 20;

/// The keys of a file: the first seals, all open.
#[derive(Clone)]
pub struct Keys(Arc<Vec<(String, Prk)>>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(id, _)| id)).finish()
    }
}

impl Keys {
    /// Reads lines `id base64-of-32-bytes`; empty ones and those that begin with `#` do not count.
    ///
    /// # Errors
    /// Which line is wrong and what would be right; never the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        use base64::Engine as _;
        let mut keys: Vec<(String, Prk)> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: &str| format!("line {number}: {why}; a line is `id base64-of-32-bytes`");
            let (id, key) =
                line.split_once(char::is_whitespace).ok_or_else(|| wrong("the key is missing"))?;
            let sane = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            if id.len() > MAX_KEYS || !id.bytes().all(sane) {
                return Err(wrong("an id has at most 64 letters, digits, `.`, `_` and `-`"));
            }
            if keys.iter().any(|(known, _)| known == id) {
                return Err(wrong(&format!("the id `{id}` is there twice")));
            }
            let key = base64::engine::general_purpose::STANDARD.decode(key.trim()).ok();
            let key = key
                .filter(|key| key.len() == 32)
                .ok_or_else(|| wrong("the key is not 32 bytes in base64"))?;
            keys.push((id.to_owned(), Salt::new(HKDF_SHA256, b"executor state").extract(&key)));
            if keys.len() > MAX_KEYS {
                return Err(wrong("there are more than 64 keys"));
            }
        }
        if keys.is_empty() {
            return Err(
                "there is no key in it; make one with `echo \"k1 $(openssl rand -base64 32)\"`".into()
            );
        }
        Ok(Self(Arc::new(keys)))
    }

    /// The id of the key that seals.
    fn first(&self) -> &str {
        &self.0[0].0
    }

    /// Bytes that sealing with the first key adds. What another key sealed is listed as if this one had.
    fn overhead(&self) -> u64 {
        (MAGIC.len() + 1 + self.first().len() + NONCE + AES_256_GCM.tag_len()) as u64
    }

    fn seal(&self, name: &[u8], plain: &[u8]) -> Result<Bytes, StoreError> {
        let (id, key) = &self.0[0];
        let failed = |_| StoreError::Corrupt { what: "a value cannot be sealed".into() };
        let mut text = plain.to_vec();
        let nonce = key_of(key, name)
            .and_then(|key| key.seal_in_place_append_tag(Aad::from(name), &mut text))
            .map_err(failed)?;
        let mut out = Vec::with_capacity(MAGIC.len() + 1 + id.len() + NONCE + text.len());
        out.extend_from_slice(MAGIC);
        out.push(id.len() as u8);
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(nonce.as_ref());
        out.extend_from_slice(&text);
        Ok(out.into())
    }

    /// What was sealed under `name`; what was never sealed, as it is.
    fn open(&self, name: &[u8], bytes: Bytes) -> Result<Bytes, StoreError> {
        let Some(id) = sealed_with(&bytes) else { return Ok(bytes) };
        let corrupt = |what: String| StoreError::Corrupt { what };
        let Some((_, key)) = self.0.iter().find(|(known, _)| known.as_bytes() == id) else {
            let id = String::from_utf8_lossy(id);
            return Err(corrupt(format!(
                "state is sealed with the key `{id}`, which --store-key-file does not have"
            )));
        };
        let id_text = String::from_utf8_lossy(id).into_owned();
        let damaged = || {
            corrupt(format!(
                "state does not open with the key `{id_text}`: the key or the bytes were changed"
            ))
        };
        let sealed = &bytes[MAGIC.len() + 1 + id.len()..];
        let (nonce, text) = sealed.split_at_checked(NONCE).ok_or_else(damaged)?;
        let nonce = <[u8; NONCE]>::try_from(nonce).map_err(|_| damaged())?;
        let mut text = text.to_vec();
        let plain = key_of(key, name)
            .and_then(|key| {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(name), &mut text).map(|plain| plain.len())
            })
            .map_err(|_| damaged())?;
        text.truncate(plain);
        Ok(text.into())
    }
}

struct KeyBytes;

impl KeyType for KeyBytes {
    fn len(&self) -> usize {
        32
    }
}

fn key_of(key: &Prk, name: &[u8]) -> Result<RandomizedNonceKey, aws_lc_rs::error::Unspecified> {
    let mut own = [0; 32];
    key.expand(&[name], KeyBytes)?.fill(&mut own)?;
    RandomizedNonceKey::new(&AES_256_GCM, &own)
}

/// The id of the key, if `bytes` are sealed.
pub fn sealed_with(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first()?;
    rest.get(..usize::from(*length))
}

/// Names of different things never meet: each part stands behind its length.
fn name(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

fn name_of_value(entity: &Entity, value: &Value) -> Vec<u8> {
    let kind = match value.kind {
        Kind::Json => 0,
        Kind::Binary => 1,
        Kind::Events => 2,
        Kind::Crdt => 3,
    };
    name(&[b"value", entity.function.as_bytes(), entity.key.as_bytes(), &[kind], &value.schema.to_be_bytes()])
}

fn name_of_record(function: &str, id: &RecordId) -> Vec<u8> {
    name(&[b"record", function.as_bytes(), &[id.room as u8], id.key.as_bytes(), &id.sub])
}

/// See the module.
pub struct SealedStore {
    inner: Arc<dyn StateStore>,
    keys: Keys,
}

impl SealedStore {
    /// Seals what goes into `inner`, and opens what comes out.
    pub fn new(inner: Arc<dyn StateStore>, keys: Keys) -> Self {
        Self { inner, keys }
    }

    fn open_value(&self, entity: &Entity, stored: Versioned) -> Result<Versioned, StoreError> {
        let name = name_of_value(entity, &stored.value);
        let Versioned { version, value } = stored;
        Ok(Versioned { version, value: Value { bytes: self.keys.open(&name, value.bytes)?, ..value } })
    }

    fn open_record(&self, function: &str, record: Record) -> Result<Record, StoreError> {
        let bytes = self.keys.open(&name_of_record(function, &record.id), record.bytes)?;
        Ok(Record { bytes, ..record })
    }

    fn seal(&self, entity: &Entity, mut commit: Commit) -> Result<Commit, StoreError> {
        if let Some((_, Write::Put(value))) = &mut commit.value {
            value.bytes = self.keys.seal(&name_of_value(entity, value), &value.bytes)?;
        }
        for RecordChange { id, write, .. } in &mut commit.records {
            if let RecordWrite::Put { bytes, .. } = write {
                *bytes = self.keys.seal(&name_of_record(&entity.function, id), bytes)?;
            }
        }
        Ok(commit)
    }

    /// Seals with the first key whatever is not sealed with it, and says how much that was: values, events and timers.
    /// Recorded answers expire by themselves; keep the old key until they have.
    ///
    /// # Errors
    /// Those of the store; what was done until then stays done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest as it was.
    async fn rotate_all(&self) -> Result<u64, StoreError> {
        let mut done = 0;
        for function in self.inner.functions().await? {
            let mut after: Option<Arc<str>> = None;
            loop {
                let page = self.inner.list(&function, "", after.as_deref(), STEP).await?;
                let Some(last) = page.last() else { break };
                after = Some(Arc::clone(&last.key));
                for Listed { key, .. } in page {
                    let entity = Entity { function: Arc::clone(&function), key };
                    done += self.rotate_value(&entity).await?;
                    for room in [Room::Event, Room::Timer] {
                        done += self.rotate_records(&entity, room).await?;
                    }
                }
            }
            // Timers of entities without a value.
            for (_, record) in self.inner.due(&[Arc::clone(&function)], MAX_TIMERS).await? {
                let entity = Entity { function: Arc::clone(&function), key: Arc::clone(&record.id.key) };
                done += self.rotate_record(&entity, record).await?;
            }
        }
        Ok(done)
    }

    fn is_current(&self, bytes: &[u8]) -> bool {
        sealed_with(bytes) == Some(self.keys.first().as_bytes())
    }

    async fn rotate_value(&self, entity: &Entity) -> Result<u64, StoreError> {
        for _ in 0..RETRIES {
            let Some(stored) = self.inner.get(entity).await? else { return Ok(0) };
            if self.is_current(&stored.value.bytes) {
                return Ok(0);
            }
            let Versioned { version, value } = self.open_value(entity, stored)?;
            match self.apply(entity, Commit::of(version, Write::Put(value))).await {
                Ok(_) => return Ok(1),
                // Whoever was faster sealed it with the first key.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }

    async fn rotate_records(&self, entity: &Entity, room: Room) -> Result<u64, StoreError> {
        let mut done = 0;
        let mut from = RecordId { room, key: Arc::clone(&entity.key), sub: Bytes::new() };
        loop {
            let page = self.inner.records(&entity.function, &from, STEP).await?;
            let Some(last) = page.last() else { return Ok(done) };
            let mut next = last.id.sub.to_vec();
            next.push(0);
            from.sub = next.into();
            for record in page {
                done += self.rotate_record(entity, record).await?;
            }
        }
    }

    async fn rotate_record(&self, entity: &Entity, record: Record) -> Result<u64, StoreError> {
        if self.is_current(&record.bytes) {
            return Ok(0);
        }
        let Record { id, version, bytes, due, expires } = self.open_record(&entity.function, record)?;
        let write = RecordWrite::Put { bytes, due, expires };
        let change = RecordChange { id, expected: Some(version), write };
        match self.apply(entity, Commit::of_records(vec![change])).await {
            Ok(_) => Ok(1),
            // Whoever was faster sealed it with the first key, or removed it.
            Err(StoreError::Stale { .. }) => Ok(0),
            Err(error) => Err(error),
        }
    }
}

impl StateStore for SealedStore {
    fn get<'a>(&'a self, entity: &'a Entity) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move {
            let stored = self.inner.get(entity).await?;
            stored.map(|stored| self.open_value(entity, stored)).transpose()
        })
    }

    fn apply<'a>(&'a self, entity: &'a Entity, commit: Commit) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move { self.inner.apply(entity, self.seal(entity, commit)?).await })
    }

    fn record<'a>(
        &'a self,
        function: &'a str,
        id: &'a RecordId,
    ) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(async move {
            let record = self.inner.record(function, id).await?;
            record.map(|record| self.open_record(function, record)).transpose()
        })
    }

    fn records<'a>(
        &'a self,
        function: &'a str,
        from: &'a RecordId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        Box::pin(async move {
            let page = self.inner.records(function, from, limit).await?;
            page.into_iter().map(|record| self.open_record(function, record)).collect()
        })
    }

    fn due<'a>(
        &'a self,
        functions: &'a [Arc<str>],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(Arc<str>, Record)>, StoreError>> {
        Box::pin(async move {
            let due = self.inner.due(functions, limit).await?;
            let open = |(function, record): (Arc<str>, Record)| {
                let record = self.open_record(&function, record)?;
                Ok((function, record))
            };
            due.into_iter().map(open).collect()
        })
    }

    fn list<'a>(
        &'a self,
        function: &'a str,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        Box::pin(async move {
            let mut listed = self.inner.list(function, prefix, after, limit).await?;
            for one in &mut listed {
                one.bytes = one.bytes.saturating_sub(self.keys.overhead());
            }
            Ok(listed)
        })
    }

    fn functions(&self) -> BoxFuture<'_, Result<Vec<Arc<str>>, StoreError>> {
        self.inner.functions()
    }

    fn count<'a>(&'a self, function: &'a str) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.inner.count(function)
    }

    fn sweep(&self, now: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        self.inner.sweep(now, limit)
    }

    fn rotate(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.rotate_all())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }

    fn describe(&self) -> String {
        format!("{} (sealed)", self.inner.describe())
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.health()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::contract::{Fixture, contract_suite, entity, json};
    use crate::state::contract_records::record_suite;
    use crate::state::{MAX_RECORD_BYTES, MemoryStore};

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
        let id = RecordId {
            room: Room::Event,
            key: "k".into(),
            sub: Bytes::copy_from_slice(&number.to_be_bytes()),
        };
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
}
