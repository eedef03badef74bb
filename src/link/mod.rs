//! The link: the protocol between host and worker over one Unix stream socket.
//!
//! Workers dial the host, so readiness and death are events and no port is opened in an instance. One connection
//! carries everything, multiplexed by call id. The protocol is written down in `runtimes/README.md`, which is its
//! source; [`frame`] is the codec, [`message`] the JSON inside, [`handshake`] the way from a listening socket to a
//! ready worker, [`connection`] the calls.
//!
//! Invariants: a worker is hostile. No length it sends is trusted beyond the limits here, nothing it sends can reach
//! another call, and what it may make the host keep is bounded per call by credit and by [`connection::MAX_CALL_LOG`].
//! Failure: a protocol fault ends the connection; every call on it then learns why.

pub mod connection;
pub mod frame;
pub mod handshake;
pub mod logs;
pub mod message;
mod stream;

#[cfg(test)]
mod tests;

pub use connection::{Call, Connection, Logs, Reply};
pub use handshake::{HandshakeError, Init, Ready, StartWords, accept};
