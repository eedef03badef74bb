//! Blobs: sources that come in, artifacts that go out, on this host's disk or in an S3 bucket.
//!
//! Whoever needs a blob wants it as a local file, and whoever has one has it as a local file. So [`Storage`] moves
//! whole objects between a key and a path, and never hands out bytes: nothing here holds an object in memory.
//!
//! Invariants, the same for every kind of storage: a key has its old or its new content, never a part of either; a
//! failed or dropped operation leaves no file behind; keys cannot climb (`..`) and hold no control characters; no
//! error, log or description shows a credential.
//!
//! Failure: [`StorageError`] says whether the object, the key, the right, the storage or the local file is at fault.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

pub use disk::Disk;
pub use s3::S3;
pub use url::{StorageUrl, StorageUrlError};

mod disk;
mod partial;
mod s3;
mod url;

/// A boxed future, as trait objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The longest key in bytes; S3 takes no longer ones.
pub const MAX_KEY_BYTES: usize = 1024;

/// A place for blobs. Keys look like absolute paths: `/storage/builds/app-1/x.gz`.
///
/// Cancel safety, for all: a dropped future leaves no temporary file, at the latest a moment later, and the target
/// (the key, or the local file) is either as it was or complete. What reached a server cannot be called back: a
/// dropped `store` or `remove` may still take effect.
///
/// Time: every operation over a network ends. No answer within a minute, or a transfer slower than 256 KiB a second,
/// is [`StorageError::Unavailable`]; a failed request is tried again at most three times.
pub trait Storage: Send + Sync {
    /// Writes the object into the local file `to`, whose folder must exist, and gives its size in bytes. `to` appears
    /// when it is complete, in place of what was there. An object of more than `limit` bytes is refused.
    fn fetch<'a>(
        &'a self,
        key: &'a str,
        to: &'a Path,
        limit: u64,
    ) -> BoxFuture<'a, Result<u64, StorageError>>;

    /// Makes the object out of the local file `from`, in place of what was there, and gives its size in bytes. It is
    /// durable when this returns. `from` must not change meanwhile.
    fn store<'a>(&'a self, from: &'a Path, key: &'a str) -> BoxFuture<'a, Result<u64, StorageError>>;

    /// Removes the object; one that is not there is fine.
    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StorageError>>;

    /// The object's size in bytes; `None`: there is none.
    fn size<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<u64>, StorageError>>;

    /// Where this is, for people: `local disk`, `S3 at https://…`. Never with credentials.
    fn describe(&self) -> String;
}

/// Why an object could not be moved.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// There is no such object.
    #[error("there is no object {key:?} in the storage ({storage})")]
    NotFound {
        /// The key.
        key: Arc<str>,
        /// [`Storage::describe`].
        storage: Arc<str>,
    },
    /// The object is larger than the caller wants it.
    #[error("the object {key:?} has more than the {limit} bytes that are allowed")]
    TooLarge {
        /// The key.
        key: Arc<str>,
        /// In bytes.
        limit: u64,
    },
    /// The key can name no object of this storage.
    #[error("the key {key:?} is invalid: {why}")]
    Invalid {
        /// The key, its beginning if it is long.
        key: Arc<str>,
        /// What is wrong with it.
        why: Arc<str>,
    },
    /// The storage is there and says no: wrong credentials, no permission, no such bucket. Trying again is useless.
    #[error("{0}")]
    Refused(Arc<str>),
    /// The storage does not answer, answers too slowly, is full or defective. May pass.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// The local file, not the storage, is at fault.
    #[error("{0}")]
    Local(Arc<str>),
}

impl StorageError {
    fn invalid(key: &str, why: impl Into<Arc<str>>) -> Self {
        // Whoever sent a key of megabytes does not need it back.
        Self::Invalid { key: key.chars().take(100).collect::<String>().into(), why: why.into() }
    }
}

/// Opens the storage of a connection text. Nothing is contacted yet: an unreachable server shows when it is used.
pub fn open(url: &StorageUrl) -> Result<Arc<dyn Storage>, StorageError> {
    match url {
        StorageUrl::Disk { .. } => Ok(Arc::new(Disk::new())),
        StorageUrl::S3(bucket) => Ok(Arc::new(S3::open(bucket)?)),
    }
}

/// The parts of a key, without empty ones and `.`, as its clients take paths. Never empty.
fn segments(key: &str) -> Result<Vec<&str>, StorageError> {
    if key.len() > MAX_KEY_BYTES {
        return Err(StorageError::invalid(key, format!("it has more than {MAX_KEY_BYTES} bytes")));
    }
    if key.chars().any(|c| c.is_ascii_control()) {
        return Err(StorageError::invalid(key, "it has control characters"));
    }
    if key.ends_with('/') || key.ends_with("/.") {
        return Err(StorageError::invalid(key, "it names a folder"));
    }
    let parts: Vec<_> = key.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(StorageError::invalid(key, "`..` is not allowed"));
    }
    if parts.is_empty() {
        return Err(StorageError::invalid(key, "it is empty"));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_paths_that_cannot_climb() {
        assert_eq!(segments("/a/b.gz").unwrap(), ["a", "b.gz"]);
        assert_eq!(segments("//a/./b").unwrap(), ["a", "b"]);
        assert_eq!(segments("/a/..b/c..").unwrap(), ["a", "..b", "c.."]);
        for key in ["", "/", ".", "..", "/..", "/a/..", "/a/../b", "/a/", "/a/.", "/a\0b", "/a\nb", "/\u{7f}"]
        {
            assert!(matches!(segments(key), Err(StorageError::Invalid { .. })), "{key:?}");
        }
    }

    #[test]
    fn a_key_of_the_greatest_length_is_one_and_no_longer_one() {
        let key = format!("/{}", "k".repeat(MAX_KEY_BYTES - 1));
        assert!(segments(&key).is_ok());
        let error = segments(&format!("{key}k")).unwrap_err().to_string();
        assert!(error.contains("more than 1024 bytes") && error.len() < 200, "{error}");
    }
}
