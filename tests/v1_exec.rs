//! Executions of `/v1` from outside (sections 5.6 and 9, R-51): the real binary, real containers, plain TCP. The number in
//! the name of a test is that of the requirement. The other sections are in `tests/v1.rs`, whose harness this uses.
//!
//! These tests need Docker and `debian:trixie-slim`, and fail without.

#![allow(clippy::unwrap_used, reason = "a test that fails is a failed test")]

mod common;

#[path = "v1/harness.rs"]
mod harness;
#[path = "v1/images.rs"]
mod images;

#[path = "v1_exec/answers.rs"]
mod answers;
#[path = "v1_exec/arrival.rs"]
mod arrival;
#[path = "v1_exec/clients.rs"]
mod clients;
#[path = "v1_exec/formats.rs"]
mod formats;
#[path = "v1_exec/hostile.rs"]
mod hostile;
#[path = "v1_exec/lines.rs"]
mod lines;
#[path = "v1_exec/profiles.rs"]
mod profiles;
#[path = "v1_exec/requests.rs"]
mod requests;
#[path = "v1_exec/scale.rs"]
mod scale;
#[path = "v1_exec/streamed.rs"]
mod streamed;
