//! The executor API `/v1`, from outside: the real binary with containers, over plain TCP. `tests/v1/README.md` says which
//! test covers which requirement; the tests of executions are in `tests/v1_exec.rs`.

#![allow(clippy::unwrap_used, clippy::format_collect, reason = "a test that fails is a failed test")]

mod common;
#[allow(dead_code, unreachable_pub, clippy::print_stderr, reason = "the tests of the storage use more of it")]
mod s3;

#[path = "v1/builds.rs"]
mod builds;
#[path = "v1/commands.rs"]
mod commands;
#[path = "v1/configuration.rs"]
mod configuration;
#[path = "v1/harness.rs"]
mod harness;
#[path = "v1/hostile.rs"]
mod hostile;
#[path = "v1/images.rs"]
mod images;
#[path = "v1/lifecycle.rs"]
mod lifecycle;
#[path = "v1/runtimes.rs"]
mod runtimes;
#[path = "v1/storage.rs"]
mod storage;
#[path = "v1/table.rs"]
mod table;
#[path = "v1/transport.rs"]
mod transport;
