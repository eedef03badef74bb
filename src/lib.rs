//! `executor`: turns a folder of functions into HTTP endpoints, warm, with their state.
//!
//! # Words
//!
//! A *function* is user code in a folder with `function.toml`; a *runtime* a language environment in `runtimes/`; an
//! *instance* one running copy of a function, started by an *adapter* as a container or a process; the *worker* the
//! small program inside it that talks to the host over the *link*; the *pool* all instances and the rules that keep
//! them warm, a *lease* the right to run one call on one; an *entity* the owner of one piece of *state*.
//!
//! # Layers
//!
//! A line knows only lines below it; modules on one line do not know each other, but for plain data: within the last
//! line `tests/tidy.rs`, which holds the table, has a finer order.
//!
//! ```text
//! main
//! cli                              prints; puts the parts together
//! server                           accepts connections, drains them
//! config · http · data_folder      flags and environment · our HTTP front · the data folder
//! executor                         the facade: one method per use case
//! pool · build                     who may use which instance · from sources to artifacts
//! adapter · link · transport · state · storage   what runs instances · to workers · to foreign images · stores · blobs
//! function · runtime · instance · lifecycle · execution · headers · state_key · archive · task · telemetry · units
//! ```
//!
//! # One request from end to end
//!
//! `POST /counter/add?n=2` arrives in [`http::call`]: request id, secret (in constant time), limits, body. Its first
//! segment names a [`executor::Deployment`]; [`executor::Executor::call`] takes the entity's turn and its state from
//! the [`state::StateStore`], gets a [`pool::Lease`] (starting an instance if none is free), and sends the request with
//! the state in front over the [`link::Connection`]. The answer comes back with what becomes of the state: a value,
//! events, or operations on a CRDT, and timers. `executor/stateful` makes one [`state::Commit`] of it, together
//! with the answer if the request has an idempotency key, and that is durable before the first byte of the answer
//! leaves. The call's future finishes even if the client has left.
//!
//! Timers take the same way without a client: `executor/clock.rs` claims what is due and makes a request of it.

pub mod adapter;
pub mod archive;
pub mod build;
pub mod cli;
pub mod config;
pub mod data_folder;
pub mod execution;
pub mod executor;
pub mod function;
pub mod headers;
pub mod http;
pub mod instance;
pub mod lifecycle;
pub mod link;
pub mod pool;
pub mod runtime;
pub mod server;
pub mod state;
pub mod state_key;
pub mod storage;
pub mod task;
pub mod telemetry;
pub mod transport;
pub mod units;
