//! The workers alone, driven over their socket as the host does: state models, CRDTs, timers, migrations.
//!
//! The link's other end is `workers/host.py`, and `workers/cases.py` the one table for all languages. `python3
//! tests/workers/run.py or-map` runs only the groups with that word in their name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is a failed test")]

use std::path::Path;
use std::process::Command;

#[test]
fn the_workers_keep_the_rules_of_state() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workers/run.py");
    let output = Command::new("python3").arg("-B").arg(script).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(" cases, 0 faults"), "nothing ran: {said}");
}
