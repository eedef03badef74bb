//! The start: code into its place, then the server, whose output is passed on.

use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::steps::{Leftover, Steps, shell};
use super::{
    ARCHIVES, EXTRACTED, Environment, Folders, LifecycleError, Output, at, clear, metadata, remove, script,
};
use crate::archive::{Limits, unpack};

/// Lines that say that a server is ready.
const READY: [&str; 2] = ["HTTP server successfully started", "server started on http://"];
/// Of a line only so much is searched.
const MOST_LINE: usize = 8192;
/// Processes that left the server's group may keep its output open.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Puts the code in place and runs `command` until it ends. Gives its exit code.
pub fn start(
    environment: &Environment,
    folders: &Folders,
    command: &str,
    output: Output,
) -> Result<u8, LifecycleError> {
    let steps = Steps::new().map_err(at(&folders.server))?;
    let mut environment = environment.clone();
    metadata::forget_timings(&folders.telemetry);
    let begin = Instant::now();
    let how = put_in_place(folders)?;
    metadata::record(&folders.telemetry, how, begin.elapsed());

    let begin = Instant::now();
    metadata::apply(&folders.function, &mut environment);
    steps.hook(&folders.helpers, "before-start.sh", &folders.function, &environment)?;
    metadata::record(&folders.telemetry, "prepare", begin.elapsed());
    serve(&steps, folders, command, &environment, output)
}

/// Gives the timing's name.
fn put_in_place(folders: &Folders) -> Result<&'static str, LifecycleError> {
    clear(&folders.function)?;
    if folders.code.join(EXTRACTED).exists() {
        if link_all(&folders.code, &folders.function).is_ok() {
            return Ok("symlink");
        }
        clear(&folders.function)?;
    }
    let archive = ARCHIVES.iter().map(|name| folders.code.join(name)).find(|path| path.is_file());
    extract(&archive.ok_or(LifecycleError::NoArchive)?, &folders.function)?;
    Ok("extract")
}

fn link_all(code: &Path, function: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(code)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != EXTRACTED && !ARCHIVES.iter().any(|archive| name == *archive) {
            symlink(entry.path(), function.join(&name))?;
        }
    }
    Ok(())
}

/// Unpacks below the folder and moves up: the folder may be a mount, and the one above it not writable.
fn extract(archive: &Path, function: &Path) -> Result<(), LifecycleError> {
    let below: PathBuf = function.join(format!(".{}", uuid::Uuid::new_v4().simple()));
    unpack(archive, &below, &Limits::default())?;
    for entry in std::fs::read_dir(&below).map_err(at(&below))? {
        let entry = entry.map_err(at(&below))?;
        let target = function.join(entry.file_name());
        std::fs::rename(entry.path(), &target).map_err(at(&target))?;
    }
    remove(&below)
}

fn serve(
    steps: &Steps,
    folders: &Folders,
    command: &str,
    environment: &Environment,
    output: Output,
) -> Result<u8, LifecycleError> {
    let begin = Instant::now();
    let mut shell = script::without_shell(command, &folders.server).unwrap_or_else(|| shell(command));
    shell.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = steps.spawn(&mut shell, &folders.server, environment)?;
    let (ready, is_ready) = channel();
    let mut readers = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        readers.push(forward(stdout, output.out, ready.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        readers.push(forward(stderr, output.err, ready.clone()));
    }
    drop(ready);
    let telemetry = folders.telemetry.clone();
    std::thread::spawn(move || {
        if let Ok(at) = is_ready.recv() {
            metadata::record(&telemetry, "startup", at.saturating_duration_since(begin));
        }
    });
    let code = steps.wait(&child, Leftover::Kill).map_err(at(&folders.server))?;
    let end = Instant::now() + LAST_OUTPUT;
    for reader in readers {
        // An error is the end: the thread is done.
        let _ = reader.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
    Ok(code)
}

/// Copies in a thread; what is received at the end of it is only that end. Tells when a line says that the
/// server is ready.
fn forward(
    mut from: impl Read + Send + 'static,
    mut to: Box<dyn Write + Send>,
    ready: Sender<Instant>,
) -> Receiver<()> {
    let (done, is_done) = channel();
    std::thread::spawn(move || {
        let _done: Sender<()> = done;
        let mut buffer = [0; 8192];
        let mut watch = Some((Watch::default(), ready));
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            // Read on when nobody listens: the server must not stand still for it.
            let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
            if watch.as_mut().is_some_and(|(watch, _)| watch.sees(&buffer[..count]))
                && let Some((_, ready)) = watch.take()
            {
                let _ = ready.send(Instant::now());
            }
        }
    });
    is_done
}

/// Looks for [`READY`] in lines that come in pieces.
#[derive(Default)]
struct Watch {
    line: Vec<u8>,
}

impl Watch {
    fn sees(&mut self, bytes: &[u8]) -> bool {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MOST_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if READY.iter().any(|text| self.line.windows(text.len()).any(|part| part == text.as_bytes())) {
                return true;
            }
            if piece.ends_with(b"\n") {
                self.line.clear();
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_line_is_seen_in_pieces_and_not_across_lines() {
        let mut watch = Watch::default();
        assert!(!watch.sees(b"HTTP server success\nfully started\n"));
        assert!(!watch.sees(b"now: HTTP server succ"));
        assert!(watch.sees(b"essfully started"));
        assert!(Watch::default().sees(b"x\nserver started on http://0.0.0.0:3000\n"));
        let mut long = Watch::default();
        assert!(!long.sees(&vec![b'x'; MOST_LINE]));
        assert!(!long.sees(b"HTTP server successfully started"), "beyond what is searched");
        assert!(long.sees(b"\nHTTP server successfully started"));
    }
}
