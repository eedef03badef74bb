//! All instances and the rules that keep them warm.
//!
//! [`ledger`] decides, [`driver`] carries out: the books are behind one mutex that is held for well under a
//! microsecond and never across an await, so the warm path is one lock, one hash look-up and no task switch.
//!
//! Each instance has one task that owns it from start to end. A [`Lease`] is the right to run one call; dropping it
//! gives the place back, whatever happened.

pub mod driver;
mod guest;
pub mod ledger;
pub mod phase;
pub mod start;

pub use driver::{Channel, Instance, Lease, Pool, PoolOptions};
pub use guest::guest_alive;
pub use ledger::{FunctionKey, Limits, Refusal};
pub use start::Starter;

/// Which part of the system failed to start an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPart {
    /// The function's own code did not load.
    Function,
    /// The language or its worker.
    Runtime,
    /// Docker or the operating system.
    Adapter,
}

/// Why an instance could not be started, in words for the caller.
#[derive(Debug, Clone)]
pub struct StartFailure {
    /// Whose fault it is.
    pub part: StartPart,
    /// One line or a few.
    pub message: String,
    /// The function's stack, for its log; may be empty.
    pub stack: String,
}

impl StartFailure {
    /// Whether trying again at once would end the same way: the code does not load, the language is not there.
    pub fn is_final(&self) -> bool {
        self.part == StartPart::Function || self.part == StartPart::Runtime
    }
}
