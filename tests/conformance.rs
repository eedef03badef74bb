//! The runtime protocol, kept by every language in every way of serving it: see `conformance/mod.rs`.
//!
//! The tests with images and containers need Docker and fail without; `cargo test -- --skip docker_` leaves them out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is a failed test")]

mod common;
#[path = "conformance/mod.rs"]
mod conformance;
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]
mod docker_common;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Stdio;

use common::{Home, eventually, signal};
use conformance::subject::{Language, Running};
use conformance::{Case, Way, own, table};
use rustix::process::Signal;

/// Runs all rows and checks that hold for `way`, and fails with all that do not.
fn conforms(language: &Language, way: Way) {
    let running = Running::start(language, way);
    let subject = running.subject();
    let mut faults: Vec<_> =
        rows(table::rows(), way).iter().filter_map(|case| case.fault(&subject)).collect();
    for (name, ways, check) in own::CHECKS {
        if ways.contains(&way) && catch_unwind(AssertUnwindSafe(|| check(&running.subject()))).is_err() {
            faults.push(format!("{name}: see above"));
        }
    }
    assert!(faults.is_empty(), "{} {way:?}: {} faults\n{}", language.name, faults.len(), faults.join("\n"));
}

fn rows(mut all: Vec<Case>, way: Way) -> Vec<Case> {
    all.retain(|case| case.ways.contains(&way));
    assert!(all.len() > 40, "only {} rows", all.len());
    all
}

/// Without a secret, in development, with enforced headers that are no JSON.
fn conforms_when_open(language: &Language, way: Way) {
    let env = [
        ("OPEN_RUNTIMES_SECRET", ""),
        ("OPEN_RUNTIMES_ENV", "development"),
        ("OPEN_RUNTIMES_HEADERS", "[not json"),
    ];
    let running = Running::alone(language, way, &env);
    let subject = running.subject();
    let faults: Vec<_> = table::open_rows().iter().filter_map(|case| case.fault(&subject)).collect();
    assert!(faults.is_empty(), "{} {way:?}\n{}", language.name, faults.join("\n"));
}

fn load_failures_are_not_remembered(language: &Language, way: Way) {
    own::load_failures(&Running::alone(language, way, &[("OPEN_RUNTIMES_SECRET", "s")]).subject());
}

fn a_signal_lets_requests_finish(language: &Language, way: Way) {
    let mut running = Running::alone(language, way, &[("OPEN_RUNTIMES_SECRET", "s")]);
    let pid = running.server().pid();
    own::finishes_what_runs(&running.subject(), || signal(pid, Signal::TERM));
    assert_eq!(running.server().wait(), 0);
}

fn for_every_language(check: impl Fn(&Language)) {
    Language::all().iter().for_each(check);
}

#[test]
fn run_conforms() {
    for_every_language(|language| conforms(language, Way::Run));
}

#[test]
fn run_conforms_without_a_secret_and_in_development() {
    for_every_language(|language| conforms_when_open(language, Way::Run));
}

#[test]
fn run_tries_again_what_did_not_load() {
    for_every_language(|language| load_failures_are_not_remembered(language, Way::Run));
}

#[test]
fn run_ends_well() {
    for_every_language(|language| a_signal_lets_requests_finish(language, Way::Run));
}

#[test]
fn among_many_functions_it_conforms() {
    for_every_language(|language| conforms(language, Way::HostProcess));
}

#[test]
fn docker_among_many_functions_it_conforms() {
    for_every_language(|language| conforms(language, Way::HostDocker));
}

#[test]
fn docker_image_conforms() {
    for_every_language(|language| conforms(language, Way::Image));
}

#[test]
fn docker_image_conforms_without_a_secret_and_in_development() {
    for_every_language(|language| conforms_when_open(language, Way::Image));
}

#[test]
fn docker_image_tries_again_what_did_not_load() {
    for_every_language(|language| load_failures_are_not_remembered(language, Way::Image));
}

#[test]
fn docker_image_ends_well() {
    for_every_language(|language| a_signal_lets_requests_finish(language, Way::Image));
}

#[test]
fn hosts_read_on_stdout_that_it_serves() {
    for_every_language(|language| {
        let home = Home::new();
        language.copy_to(&home.path().join("code"));
        let out = home.path().join("out");
        let mut command = home.command();
        command.arg("run").arg(home.path().join("code")).args(["--runtime", &language.name, "--port", "0"]);
        command.stdout(File::create(&out).unwrap()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let marked = || {
            std::fs::read_to_string(&out).unwrap().lines().any(|l| l == "HTTP server successfully started!")
        };
        eventually("the marker", || marked().then_some(()));
        signal(child.id().cast_signed(), Signal::TERM);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    });
}
