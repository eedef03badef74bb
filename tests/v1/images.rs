//! The images that the tests run as guests, built once per machine and then found by a tag that is a hash of what is in
//! them. Several test programs may ask at the same time: a lock on a file lets one build.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of this")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

const SCRIPT: &str = include_str!("guest.py");

/// Python and the script, as `guest`; its own command is a guest of v2.
const GUEST: &str = r#"FROM debian:trixie-slim
RUN apt-get update && apt-get install --yes --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
COPY guest.py /usr/local/bin/guest.py
RUN printf '#!/bin/sh\nexec python3 -u /usr/local/bin/guest.py "$@"\n' > /usr/local/bin/guest \
 && chmod 755 /usr/local/bin/guest
CMD ["guest", "v2"]
"#;

/// Two programs with their libraries, no shell.
const SHELLESS: &str = r#"FROM debian:trixie-slim AS debian
RUN mkdir /out && for file in /usr/bin/tail /usr/bin/sleep $(ldd /usr/bin/tail /usr/bin/sleep | grep -o '/[^ :]*' | sort -u); do \
  mkdir -p /out$(dirname $file) && cp -L $file /out$file; done
FROM scratch
COPY --from=debian /out/ /
CMD ["/usr/bin/sleep", "1000000"]
"#;

/// Not a single file that could be run.
const EMPTY: &str = "FROM scratch\nCOPY guest.py /guest.py\n";

/// The image with bash, python3 and `guest KIND` (see `guest.py`).
pub fn guest() -> &'static str {
    static TAG: OnceLock<String> = OnceLock::new();
    TAG.get_or_init(|| built("guest", GUEST))
}

/// An image `FROM scratch` that runs `tail` and `sleep`, and has no shell.
pub fn shellless() -> &'static str {
    static TAG: OnceLock<String> = OnceLock::new();
    TAG.get_or_init(|| built("shellless", SHELLESS))
}

/// An image `FROM scratch` in which nothing can run.
pub fn empty() -> &'static str {
    static TAG: OnceLock<String> = OnceLock::new();
    TAG.get_or_init(|| built("empty", EMPTY))
}

fn built(name: &str, dockerfile: &str) -> String {
    let hash = Sha256::digest(format!("{dockerfile}\n{SCRIPT}").as_bytes());
    let mut tag = format!("executor-v1-tests/{name}:");
    for byte in &hash[..8] {
        let _ = write!(tag, "{byte:02x}");
    }
    if exists(&tag) {
        return tag;
    }
    let _lock = lock();
    if !exists(&tag) {
        build(&tag, dockerfile);
    }
    tag
}

/// Makes the networks of the tests, once: executors that start at the same time would each make one of the same name.
pub fn networks(names: &[&str]) {
    let there = |name: &str| {
        let ask = ["network", "inspect", name];
        Command::new("docker").args(ask).output().expect("docker can be run").status.success()
    };
    for name in names {
        if there(name) {
            continue;
        }
        let _lock = lock();
        if !there(name) {
            let make = ["network", "create", "--opt", "com.docker.network.bridge.enable_icc=false", name];
            let made = Command::new("docker").args(make).output().expect("docker can be run");
            assert!(made.status.success(), "{made:?}");
        }
    }
}

/// Held by one test program at a time.
fn lock() -> File {
    let lock =
        File::create(std::env::temp_dir().join("executor-v1-tests.lock")).expect("a file for the lock");
    lock.lock().expect("the lock");
    lock
}

fn exists(tag: &str) -> bool {
    let ask = ["image", "inspect", tag];
    Command::new("docker").args(ask).output().expect("docker can be run").status.success()
}

fn build(tag: &str, dockerfile: &str) {
    let context = tempfile::tempdir().expect("a folder");
    let write =
        |name: &str, text: &str| fs::write(Path::join(context.path(), name), text).expect("it is ours");
    write("Dockerfile", dockerfile);
    write("guest.py", SCRIPT);
    let output = Command::new("docker")
        .args(["build", "--quiet", "--tag", tag])
        .arg(context.path())
        .stdin(Stdio::null())
        .output()
        .expect("docker can be run");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "cannot build {tag}: {said}");
}
