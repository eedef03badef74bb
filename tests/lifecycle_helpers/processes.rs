//! What runs: the server's readiness and output, signals, and the end of everything a step started.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::common::eventually;
use crate::image::{Image, err, out};

#[test]
fn start_records_when_the_server_is_ready_once_and_forwards_both_outputs() {
    for ready in ["HTTP server successfully started!", "x server started on http://0.0.0.0:3000"] {
        let image = Image::new().with("a", "1").hook("before-start.sh", "echo hook in $(basename $PWD)");
        image.built("");
        let output = image
            .start(&format!("echo '{ready}'; echo '{ready}' >&2; echo '{ready}'; basename $PWD; exit 9"));
        assert_eq!(output.status.code(), Some(9));
        assert_eq!(out(&output), format!("hook in function\n{ready}\n{ready}\nserver\n"));
        assert_eq!(err(&output), format!("{ready}\n"));
        eventually("startup is recorded", || (image.timings().len() == 3).then_some(()));
        assert_eq!(image.timings(), ["extract", "prepare", "startup"]);
        image.started("true");
        assert_eq!(image.timings(), ["extract", "prepare"], "those of the last start");
    }
}

/// A started server and the lines it wrote.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn new(image: &Image, what: &str, line: &str) -> Self {
        let mut child = image.command(what, line).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn line(&mut self, wanted: &str) -> String {
        loop {
            let line = self.lines.next().expect("the server says it").unwrap();
            if line.contains(wanted) {
                return line;
            }
        }
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SERVER: &str =
    "trap 'sleep 0.3; echo drained; exit 0' TERM INT; echo ready $$; while :; do sleep 0.05; done";

#[test]
fn signals_reach_the_server_through_shells_and_it_may_finish() {
    for (signal, command, codes) in [
        (Signal::TERM, "exec bash server.sh", vec![0]),
        (Signal::INT, "exec bash server.sh", vec![0]),
        // The outer shell does not wait; the server still may.
        (Signal::TERM, "bash server.sh; true", vec![0, 143]),
        (Signal::TERM, "bash -c 'bash server.sh; true' | cat; true", vec![0, 143]),
    ] {
        let image = Image::new().with("a", "1");
        image.built("");
        fs::write(image.path("usr/local/server/server.sh"), SERVER).unwrap();
        let mut running = Running::new(&image, "start", command);
        running.line("ready");
        running.send(signal);
        if !command.contains('|') {
            running.line("drained");
        }
        let status = running.child.wait().unwrap();
        assert!(codes.contains(&status.code().expect("it exits itself")), "{command}: {status:?}");
    }
}

#[test]
fn nothing_of_a_server_that_ended_goes_on() {
    let image = Image::new().with("a", "1");
    image.built("");
    let said = image.started("sleep 1000 >/dev/null 2>&1 & echo $!");
    let pid = Pid::from_raw(said.trim().parse().unwrap()).unwrap();
    eventually("the leftover is gone", || test_kill_process(pid).is_err().then_some(()));
}

#[test]
fn a_signal_ends_a_build() {
    let image = Image::new().with("a", "1");
    let mut running =
        Running::new(&image, "build", "echo started; trap 'exit 0' TERM; while :; do sleep 0.05; done");
    running.line("started");
    running.send(Signal::TERM);
    let status = running.child.wait().unwrap();
    assert_eq!(
        (status.code(), status.signal()),
        (Some(143), None),
        "also if the command says that all is well"
    );
    assert!(!image.code("code.tar.gz").exists());
}
