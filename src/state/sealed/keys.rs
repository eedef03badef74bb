//! The keys of a file, and what they make of bytes.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use bytes::Bytes;

use crate::state::StoreError;

/// What sealed bytes begin with.
const MAGIC: &[u8; 8] = b"\0sealed1";

const NONCE: usize = 12;

const TAG: usize = 16;

/// The most keys of a file, and the most bytes of a key's id.
const MAX_KEYS: usize = 64;

/// By how many bytes sealing makes something larger, at the most.
pub const SEAL_BYTES: usize = MAGIC.len() + 1 + MAX_KEYS + NONCE + TAG;

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
    pub(super) fn first(&self) -> &str {
        &self.0[0].0
    }

    /// Bytes that sealing with the first key adds. What another key sealed is listed as if this one had.
    pub(super) fn overhead(&self) -> u64 {
        (MAGIC.len() + 1 + self.first().len() + NONCE + TAG) as u64
    }

    pub(super) fn seal(&self, name: &[u8], plain: &[u8]) -> Result<Bytes, StoreError> {
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
    pub(super) fn open(&self, name: &[u8], bytes: Bytes) -> Result<Bytes, StoreError> {
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

/// Whether `bytes` begin as only sealed ones may. What a user hands in must not: it would be taken for sealed.
pub fn is_reserved(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}
