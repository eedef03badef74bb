//! One running copy of a function, as plain data: what an adapter needs to start it, and how it ended.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::function::Function;
use crate::runtime::Runtime;

/// Names one instance, for ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(uuid::Uuid);

impl InstanceId {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "a default id would suggest that there is a special one")]
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that never shows itself in logs or messages.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// 122 random bits as 32 hexadecimal characters.
    pub fn generate() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string().into())
    }

    /// The text itself. For the wire and the environment, never for a message.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares in time that depends only on the lengths.
    pub fn matches(&self, other: &[u8]) -> bool {
        use subtle::ConstantTimeEq;
        self.0.as_bytes().ct_eq(other).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Everything an adapter needs to start one instance.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The instance.
    pub id: InstanceId,
    /// Its function.
    pub function: Arc<Function>,
    /// The function's runtime.
    pub runtime: Arc<Runtime>,
    /// The instance's own folder on this host, mode 0755 below a 0700 parent. Holds the socket, and is removed by
    /// the pool after the instance ended.
    pub folder: PathBuf,
    /// The link's listening socket, in `folder`; the worker finds its path in `EXECUTOR_LINK`.
    pub socket: PathBuf,
    /// What the worker must say in HELLO; it finds it in `EXECUTOR_TOKEN`.
    pub token: Secret,
}

/// How an instance ended.
#[derive(Debug, Clone)]
pub struct Exit {
    /// For a person: `exited with code 1`, `was killed by signal 9`, `used 300 MiB of 256 MiB memory`.
    pub reason: String,
    /// The end of what it wrote outside any call; may be empty.
    pub last_words: String,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        let words = self.last_words.trim();
        if !words.is_empty() {
            write!(f, "; its last words: {words}")?;
        }
        Ok(())
    }
}
