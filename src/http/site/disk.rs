//! The files below one folder, opened so that nothing outside it can be.
//!
//! There is no check that something could change before the open: the kernel resolves each path below an open
//! descriptor of the root (`openat2`, `RESOLVE_BENEATH`), without symbolic links unless they are asked for. Where the
//! kernel or a container's seccomp profile has no `openat2`, each folder on the way is opened by itself with
//! `O_NOFOLLOW`; links are then never followed. What was opened is judged by its descriptor: only a regular file is
//! read, and `O_NONBLOCK` keeps a pipe or a device from holding the thread.
//!
//! All of this blocks: call it where that is allowed. The root stays the folder it was when it was opened, even if
//! another takes its name.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::path::{SitePath, is_private};

const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A rename of a folder during the resolution makes the kernel ask for another try.
const TRIES: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Root {
    folder: OwnedFd,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// `openat2` without links.
    Strict,
    /// `openat2` with links that stay below the root.
    Following,
    /// Folder by folder.
    Stepwise,
}

/// Which version of which file; equal as long as nobody has written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Default))]
pub(super) struct Version {
    /// Device and inode.
    pub(super) file: (u64, u64),
    /// Bytes.
    pub(super) size: u64,
    /// Seconds since 1970, and nanoseconds.
    pub(super) modified: (i64, i64),
    /// The same for the kernel's own stamp, which moves even where an archive has set the other one back.
    pub(super) changed: (i64, i64),
}

/// What a path leads to.
#[derive(Debug)]
pub(super) enum Found {
    /// A regular file, and what was added to the path to find it.
    File { file: File, version: Version, added: &'static str },
    /// A folder, asked for without its slash.
    Folder,
    /// Nothing that may be served.
    Nothing,
}

enum Opened {
    File(File, Version),
    Folder,
    Nothing,
}

impl Root {
    /// Opens the folder. Says so in the log if links were asked for but cannot be followed safely.
    ///
    /// # Errors
    ///
    /// It is not there, or not a folder.
    pub(super) fn open(folder: &Path, follow: bool) -> io::Result<Self> {
        let folder_fd = rustix::fs::open(folder, FOLDER, Mode::empty())?;
        let has_openat2 = beneath(&folder_fd, b".", FOLDER, ResolveFlags::NO_SYMLINKS).is_ok();
        let how = match (has_openat2, follow) {
            (true, false) => How::Strict,
            (true, true) if real_name_is_private(&folder_fd).is_ok() => How::Following,
            (true, true) => {
                tracing::warn!("symbolic links of the site are not followed: /proc is not mounted");
                How::Strict
            }
            (false, _) => {
                if follow {
                    tracing::warn!("symbolic links of the site are not followed: the kernel has no openat2");
                }
                How::Stepwise
            }
        };
        Ok(Self { folder: folder_fd, how })
    }

    /// As if the kernel had no `openat2`.
    #[cfg(test)]
    pub(super) fn stepwise(folder: &Path) -> io::Result<Self> {
        Ok(Self { how: How::Stepwise, ..Self::open(folder, false)? })
    }

    /// What to serve: `x`, else `x.html`, else that there is a folder `x`; `index.html` for `x/`.
    ///
    /// # Errors
    ///
    /// The machine is to blame, not the path: no more descriptors, a failing disk.
    pub(super) fn find(&self, path: &SitePath) -> io::Result<Found> {
        let candidates: &[&str] = if path.is_directory() { &["index.html"] } else { &["", ".html"] };
        let mut folder = false;
        for added in candidates {
            match self.open_file(&path.with(added))? {
                Opened::File(file, version) => return Ok(Found::File { file, version, added }),
                Opened::Folder => folder |= added.is_empty(),
                Opened::Nothing => {}
            }
        }
        Ok(if folder { Found::Folder } else { Found::Nothing })
    }

    fn open_file(&self, path: &[u8]) -> io::Result<Opened> {
        let opened = match self.how {
            How::Strict => beneath(&self.folder, path, READ, ResolveFlags::NO_SYMLINKS),
            How::Following => beneath(&self.folder, path, READ, ResolveFlags::empty()),
            How::Stepwise => stepwise(&self.folder, path),
        };
        let fd = match opened {
            Ok(fd) => fd,
            Err(errno) if is_miss(errno) => return Ok(Opened::Nothing),
            Err(errno) => return Err(errno.into()),
        };
        if is_private(path) || (self.how == How::Following && real_name_is_private(&fd).unwrap_or(true)) {
            return Ok(Opened::Nothing);
        }
        let file = File::from(fd);
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Ok(Opened::Folder);
        }
        if !metadata.is_file() {
            return Ok(Opened::Nothing);
        }
        let version = Version {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        Ok(Opened::File(file, version))
    }
}

/// Reads exactly these bytes.
///
/// # Errors
///
/// The file has become shorter, or the disk fails.
pub(super) fn read(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn beneath(
    folder: impl AsFd,
    path: &[u8],
    flags: OFlags,
    links: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | links;
    let mut opened = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        opened = openat2(&folder, path, flags, Mode::empty(), resolve);
        if !matches!(opened, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    opened
}

fn stepwise(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let mut segments = path.split(|byte| *byte == b'/').peekable();
    let mut folder: Option<OwnedFd> = None;
    while let Some(segment) = segments.next() {
        // A path of a `SitePath` has neither; this function does not depend on that.
        if matches!(segment, b"" | b"." | b"..") {
            return Err(Errno::NOENT);
        }
        let at = folder.as_ref().unwrap_or(root);
        if segments.peek().is_none() {
            return openat(at, segment, READ | OFlags::NOFOLLOW, Mode::empty());
        }
        folder = Some(openat(at, segment, FOLDER | OFlags::NOFOLLOW, Mode::empty())?);
    }
    Err(Errno::NOENT)
}

/// Whether the file behind this descriptor is called `.env…`, whatever the link to it is called.
fn real_name_is_private(fd: &impl AsRawFd) -> io::Result<bool> {
    let real = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(is_private(real.as_os_str().as_bytes()))
}

/// Whether the path is to blame: nothing there, a link, outside, not ours to read, a socket or a device.
fn is_miss(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOENT
            | Errno::NOTDIR
            | Errno::LOOP
            | Errno::XDEV
            | Errno::NAMETOOLONG
            | Errno::ACCESS
            | Errno::PERM
            | Errno::NXIO
            | Errno::NODEV
            | Errno::INVAL
            | Errno::ILSEQ
    )
}
