//! The log files of v4 and v5 guests: R-102 and section 10 of the runtime protocol.
//!
//! The guest owns the folder and is hostile: a name there may be a symlink out of it, a pipe that never ends, a device
//! that acts on being opened. So a name is first resolved without opening what it stands for (`O_PATH`, no symlink
//! followed), looked at, and only then opened, through the handle that was looked at.
//!
//! Invariants: an id cannot leave the folder; at most [`MOST`] bytes of a file are read; both files are gone when
//! [`LogFiles`] is. Failure: what cannot be read is empty, because lines are never worth an answer.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, open, openat, statat, unlinkat};

use crate::task::Lane;

/// The most bytes of one file.
pub(super) const MOST: u64 = 5 * 1024 * 1024;

/// The host's folder behind a guest's `/mnt/logs`, with the one thread that works in it: two would only wait for each
/// other at the folder's lock. Cheap to clone.
#[derive(Clone)]
pub struct LogFolder {
    path: Arc<Path>,
    lane: Lane,
}

impl LogFolder {
    /// Of a folder that is there.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), lane: Lane::default() }
    }
}

impl fmt::Debug for LogFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

/// The two files of one request. Dropping it deletes them.
pub(super) struct LogFiles {
    folder: LogFolder,
    logs: String,
    errors: String,
    deleted: bool,
}

impl LogFiles {
    /// `id` comes from [`log_id`].
    pub(super) fn new(folder: &LogFolder, id: &str) -> Self {
        let (logs, errors) = (format!("{id}_logs.log"), format!("{id}_errors.log"));
        Self { folder: folder.clone(), logs, errors, deleted: false }
    }

    /// Reads both, unless they are not `wanted`, and deletes them.
    pub(super) async fn lines(self, wanted: bool) -> (Bytes, Bytes) {
        let lane = self.folder.lane.clone();
        // Moved whole: dropped anywhere, even before it ran, it deletes.
        lane.run(move || self.take(wanted)).await.unwrap_or_default()
    }

    fn take(mut self, wanted: bool) -> (Bytes, Bytes) {
        let Ok(folder) = self.open() else { return (Bytes::new(), Bytes::new()) };
        let lines = if wanted { self.read(&folder) } else { (Bytes::new(), Bytes::new()) };
        self.delete(&folder);
        lines
    }

    fn read(&self, folder: &OwnedFd) -> (Bytes, Bytes) {
        let read = |name: &str, kind: &str| match read(folder, name, kind) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::debug!("a guest's log file could not be read, its lines are lost: {error}");
                }
                Bytes::new()
            }
        };
        (read(&self.logs, "Log"), read(&self.errors, "Error"))
    }

    fn delete(&mut self, folder: &OwnedFd) {
        self.deleted = true;
        for name in [&self.logs, &self.errors] {
            // Not there is as good; a directory of that name goes with the instance's folder.
            let _ = unlinkat(folder, name, AtFlags::empty());
        }
    }

    fn open(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        open(&*self.folder.path, flags, Mode::empty())
    }
}

impl Drop for LogFiles {
    fn drop(&mut self) {
        if !self.deleted
            && let Ok(folder) = self.open()
        {
            self.delete(&folder);
        }
    }
}

fn read(folder: &OwnedFd, name: &str, kind: &str) -> io::Result<Bytes> {
    // Most are empty, and then there is nothing to open.
    let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if found.st_size == 0 && FileType::from_raw_mode(found.st_mode) == FileType::RegularFile {
        return Ok(Bytes::new());
    }
    let handle = openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&handle)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is not a regular file"));
    }
    // The same file that was looked at, whatever its name stands for by now.
    let same = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(openat(CWD, same, flags, Mode::empty())?);
    let mut bytes = Vec::new();
    file.by_ref().take(MOST).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == MOST && file.read(&mut [0])? > 0 {
        bytes.extend_from_slice(format!("\n{kind} file has been truncated to 5.00MB.").as_bytes());
    }
    Ok(bytes.into())
}

/// The log id in a header: url-decoded, and only if it can be a part of a file name (section 10.4).
pub(super) fn log_id(header: &[u8]) -> Option<String> {
    let id = String::from_utf8(url_decode(header)).ok()?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    ((1..=128).contains(&id.len()) && id.bytes().all(fits) && !id.starts_with('.')).then_some(id)
}

/// As forms do it: `+` is a space, `%` and two digits a byte, anything else itself.
pub(super) fn url_decode(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        if let (b'%', Some(high), Some(low)) = (byte, digit(at + 1), digit(at + 2)) {
            decoded.push((high * 16 + low) as u8);
            at += 3;
        } else {
            decoded.push(if *byte == b'+' { b' ' } else { *byte });
            at += 1;
        }
    }
    decoded
}
