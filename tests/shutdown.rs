//! Shutdown at moments that are easy to forget: with nothing to do, and after a long time up.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is a failed test")]

mod common;

use std::time::{Duration, Instant};

use common::node::{COUNT, GATE};
use common::{Home, eventually};
use rustix::process::Signal;

#[test]
fn a_call_whose_client_left_still_has_the_whole_grace() {
    let home = Home::new();
    let counting = GATE
        .replace("({ req, res })", "({ req, res, state })")
        .replace("return res.text('done' + n);", "state.set({ n: 41 });\n  return res.text('done');");
    home.node("fun", "timeout = \"60s\"\n[state]\nkey = \"one\"", &counting);
    let begun = Instant::now();
    let mut server = home.start(&["--grace", "4s"]);
    let left = server.request("GET", "/fun").open();
    eventually("the call runs", || home.lines("fun").pop());
    drop(left);
    // Up for longer than the grace.
    eventually("up for 5 s", || (begun.elapsed() > Duration::from_secs(5)).then_some(()));
    server.signal(Signal::TERM);
    server.wait_log("shutting down");
    let asked = Instant::now();
    eventually("half of the grace", || (asked.elapsed() > Duration::from_secs(2)).then_some(()));
    std::fs::write(home.file("fun.go"), "").unwrap();
    assert_eq!(server.wait(), 0);
    assert_eq!(home.lines("fun"), ["begin", "end"], "the call came to its end");
    assert!(server.logged("calls were still running").is_empty());

    home.node("fun", "[state]\nkey = \"one\"", COUNT);
    let server = home.start(&[]);
    assert_eq!(server.ok("/fun").json()["n"], 42, "its state was committed");
}

#[test]
fn an_idle_executor_ends_well_every_time() {
    // What to look at first when the signal comes is left to chance, so once proves nothing.
    let home = Home::new();
    for round in 0..12 {
        let mut server = home.start(&[]);
        assert_eq!(server.stop(), 0, "round {round}: {}", server.log());
        assert_eq!(server.logged("stopped").len(), 1);
        assert!(!home.data().join("executor.json").exists(), "others must not look for it any more");
    }
}
