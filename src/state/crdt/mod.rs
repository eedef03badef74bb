//! Conflict-free replicated data types: states that several hosts change at once and that merge into one.
//!
//! Delta-state CRDTs after Almeida, Shoker and Baquero, in the types that Cloudstate has. What a function does to a state
//! arrives as operations ([`Ops`]). [`Crdt::delta`] turns them into a delta, which is a small state, and [`Crdt::merge`]
//! joins that into the stored one. If another host commits in between, or nobody knows whether the commit happened, the
//! same delta is merged again into what is stored then: merging it twice is merging it once, in any order. Nothing here
//! does I/O or waits.
//!
//! # How
//!
//! Every change has a *dot*, the replica and a number it never uses again ([`Tickets`]). A state is what the dots wrote that
//! are still there, and the *context*: all dots it has ever seen. A dot in the context but not in the state was removed.
//! That is how a merge tells new from removed, without keeping what is gone.
//!
//! The context is kept short by ranges, and would still be full of holes, because numbers come from the clock. But the
//! versions of a stored entity follow one another, and a replica's deltas for it are made one at a time: when one is
//! in the store, none with a smaller number can come any more. So each delta declares the holes seen that it finds below the
//! last dot of its replica, and in a counter it adds up that replica's amounts.
//!
//! # Invariants
//!
//! - Merging is commutative, associative and idempotent, for states and deltas of one entity's life.
//! - No two executors have one [`Replica`] name. Deltas of one replica for one entity are made one after the other.
//! - Equal states have equal bytes.
//! - An entity that expired begins a new life. A delta from before must not be merged into it: make it again.
//!
//! # Failure
//!
//! Bytes from the store become [`CrdtError`], operations from a worker [`OpsError`], and what the state cannot take
//! [`DeltaError`]. Merging fails only for different types.

mod context;
mod counter;
mod delta;
mod encoding;
mod json;
mod keyed;
mod map;
mod ops;
mod store;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use context::{MAX_REPLICA, Replica, Tickets};
pub use counter::MAX_COUNT;
pub use delta::{By, DeltaError};
pub use json::MAX_DEPTH;
pub use ops::{MAX_OPS, Ops, OpsError};

use context::Context;
use store::Store;

/// The types there are. The numbers are stored, and their order decides between entries of one name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum CrdtType {
    /// A counter that only grows.
    GCounter = 1,
    /// A counter that goes both ways.
    PnCounter = 2,
    /// A set that only grows.
    GSet = 3,
    /// A set in which adding wins over removing at the same time.
    OrSet = 4,
    /// A value of which the last one set counts.
    LwwRegister = 5,
    /// False until somebody enables it.
    Flag = 6,
    /// A yes or no of each voter, of which the last counts.
    Vote = 7,
    /// Entries of the other types by name.
    OrMap = 8,
}

impl CrdtType {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::GCounter,
        Self::PnCounter,
        Self::GSet,
        Self::OrSet,
        Self::LwwRegister,
        Self::Flag,
        Self::Vote,
        Self::OrMap,
    ];

    /// As it is written in a `function.toml` and on the link.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GCounter => "g-counter",
            Self::PnCounter => "pn-counter",
            Self::GSet => "g-set",
            Self::OrSet => "or-set",
            Self::LwwRegister => "lww-register",
            Self::Flag => "flag",
            Self::Vote => "vote",
            Self::OrMap => "or-map",
        }
    }
}

impl fmt::Display for CrdtType {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

impl FromStr for CrdtType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let shown: String = name.chars().take(40).collect();
            let known = Self::ALL.map(Self::name).join("`, `");
            format!("`{shown}` is not a CRDT type; known are `{known}`")
        })
    }
}

/// Why bytes are no state, or two states do not go together.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CrdtError {
    /// The bytes are damaged.
    #[error("the CRDT is damaged: {what}")]
    Corrupt {
        /// What was found.
        what: String,
    },
    /// A later release of this program wrote it. Upgrade.
    #[error("the CRDT was written by a newer release (form {found}, this one knows up to {supported})")]
    TooNew {
        /// The version of the form found.
        found: u8,
        /// The newest that this program can read.
        supported: u8,
    },
    /// Two that should be of one type are not: the function's type was changed while it had state.
    #[error("expected a {expected} and found a {found}: delete the state, or give the function its old type")]
    Type {
        /// Of this one.
        expected: CrdtType,
        /// Of the other.
        found: CrdtType,
    },
}

/// A state, or a delta, which is nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Crdt {
    kind: CrdtType,
    /// Of a counter: empty. Its dots are in its shares.
    context: Context,
    store: Store,
}

impl Crdt {
    /// The empty state of a type.
    #[must_use]
    pub fn new(kind: CrdtType) -> Self {
        Self { kind, context: Context::default(), store: Store::new(kind) }
    }

    /// Its type.
    #[must_use]
    pub fn kind(&self) -> CrdtType {
        self.kind
    }

    /// Whether it was never changed. Merging such a delta changes nothing, so it need not be committed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.context.is_empty() && self.store.is_empty()
    }

    /// Joins `delta` into this state.
    ///
    /// # Errors
    /// `Type`; then nothing was changed.
    pub fn merge(&mut self, delta: &Self) -> Result<(), CrdtError> {
        if delta.kind != self.kind {
            return Err(CrdtError::Type { expected: self.kind, found: delta.kind });
        }
        self.store.join(&self.context, &delta.store, &delta.context);
        self.context.merge(&delta.context);
        Ok(())
    }

    /// The JSON text that a worker gets, see “CRDTs” in `runtimes/README.md`. The order of elements means nothing.
    #[must_use]
    pub fn view(&self) -> String {
        let mut out = String::new();
        self.store.view(&mut out);
        out
    }

    /// The JSON text of the value that a person wants to see, as `state.get()` gives it. A register never set is `null`.
    #[must_use]
    pub fn plain(&self) -> String {
        let mut out = String::new();
        self.store.plain(&mut out);
        out
    }
}
