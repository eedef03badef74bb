//! Reads and writes archives of code: functions, sources, artifacts. Blocking; callers bring their own
//! thread.
//!
//! What an archive is, its first bytes say, never its name. Every archive is taken for hostile:
//!
//! - Nothing is written outside the target, and nothing through a link. Files are made one component at a
//!   time (`openat`, no links followed) and never replace anything; symbolic links are made last, when
//!   nothing is written any more. Their targets may have `..` only in front and no more of them than there
//!   are folders above the link, so they stay inside however links are chained ([`tree`]).
//! - A name that comes twice is refused, but for folders: what two readers would read differently is an
//!   attack.
//! - Devices, pipes, sockets and sparse files are refused. Of the mode only "executable" is kept; owners,
//!   times and extended attributes are not.
//! - Memory is bounded by the formats' own windows (zstd: 128 MiB, squashfs: 1 MiB blocks) whatever an
//!   archive declares, and [`Limits`] bound what is written.
//!
//! All or nothing: work happens in a folder next to the target, which is renamed at the end or removed. A
//! killed process leaves that folder behind; its name begins with `.` and ends in `.tmp`.
//!
//! Squashfs is read by our own bounded reader rather than by `unsquashfs`, which is not everywhere, is C, and
//! writes without limits, or by a crate that reads all tables into memory and recurses. It is written by
//! `backhand`: what is packed is ours, and the images are read by the kernel and squashfs-tools.

mod hash;
mod pack;
mod squashfs;
mod tar;
#[cfg(test)]
mod tests;
mod tree;
mod zip;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

pub use hash::{Kind, hash_file, hash_tree, walk};
pub use pack::{PackOptions, Packed, content_size, pack};

/// How far an archive may go. Each bound is inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Files, folders and links, those folders included that are only part of another entry's name.
    pub entries: u64,
    /// How many times larger than the archive its content may be...
    pub ratio: u64,
    /// ...once it has more than these bytes.
    pub ratio_floor: u64,
    /// Components of a name.
    pub depth: usize,
    /// Bytes of a name or of a link's target.
    pub path: usize,
}

impl Default for Limits {
    /// Generous for code with its dependencies, small for a host.
    fn default() -> Self {
        Self { bytes: 2 << 30, entries: 250_000, ratio: 200, ratio_floor: 16 << 20, depth: 64, path: 1024 }
    }
}

/// What an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `tar`
    Tar,
    /// `tar` in `gzip`
    Gzip,
    /// `tar` in `zstd`
    Zstd,
    /// `zip`, stored or deflated
    Zip,
    /// `squashfs` 4.0 with gzip, lz4 or zstd
    Squashfs,
}

/// How to pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `tar`
    None,
    /// `tar` in `gzip`
    Gzip,
    /// `tar` in `zstd`
    Zstd,
    /// `squashfs`: lz4, blocks of 1 MiB
    Squashfs,
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// What it was.
    pub format: Format,
    /// Bytes of all files together.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
}

/// Why there is no result. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Something else.
    #[error("not an archive: {0}; give a tar, tar.gz, tar.zst, zip or squashfs")]
    NotAnArchive(String),
    /// Truncated, or its checksums are wrong.
    #[error("the archive is damaged: {0}; make or send it again")]
    Damaged(String),
    /// One of its entries is not acceptable.
    #[error("the archive is refused because of `{entry}`: {reason}")]
    Refused {
        /// Its name, made printable.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It goes beyond a limit.
    #[error("the archive is too large at `{entry}`: {reason}")]
    TooLarge {
        /// Where that was noticed.
        entry: String,
        /// Which limit.
        reason: String,
    },
    /// There is something where it should go.
    #[error("{0} is there already and not empty; remove it or choose another folder")]
    Exists(PathBuf),
    /// It was written to while it was read.
    #[error("{0} changed while it was read; try again when it is complete")]
    Changed(PathBuf),
    /// The disk does not do what it should.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// For `map_err`: names the path.
fn at(path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    let path = path.to_owned();
    move |source| ArchiveError::Io { path, source }
}

/// A folder or file next to its final place. Removed when dropped, unless it was moved there.
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    fn beside(target: &Path) -> Result<Self, ArchiveError> {
        let full = std::path::absolute(target).map_err(at(target))?;
        let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else {
            return Err(at(target)(io::Error::new(io::ErrorKind::InvalidInput, "has no name")));
        };
        let mut hidden = std::ffi::OsString::from(".");
        // A name may have 255 bytes.
        hidden.push(std::ffi::OsStr::new(&*name.to_string_lossy().chars().take(50).collect::<String>()));
        hidden.push(format!(".{}.tmp", uuid::Uuid::new_v4().simple()));
        Ok(Self { path: parent.join(hidden), kept: false })
    }

    fn folder_beside(target: &Path) -> Result<Self, ArchiveError> {
        let temporary = Self::beside(target)?;
        std::fs::DirBuilder::new().mode(0o755).create(&temporary.path).map_err(at(&temporary.path))?;
        Ok(temporary)
    }

    fn move_to(mut self, target: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, target)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Neither follows links.
        if !self.kept && std::fs::remove_file(&self.path).is_err() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Unpacks `archive` to the folder `into`, which must be absent or empty and whose parent must be writable.
pub fn unpack(archive: &Path, into: &Path, limits: &Limits) -> Result<Unpacked, ArchiveError> {
    let file = File::open(archive).map_err(at(archive))?;
    let (temporary, unpacked) = unpack_beside(&file, archive, into, limits)?;
    move_unpacked(temporary, into)?;
    Ok(unpacked)
}

fn move_unpacked(temporary: Temporary, into: &Path) -> Result<(), ArchiveError> {
    temporary.move_to(into).map_err(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            ArchiveError::Exists(into.to_owned())
        }
        _ => at(into)(error),
    })
}

fn unpack_beside(
    file: &File,
    archive: &Path,
    into: &Path,
    limits: &Limits,
) -> Result<(Temporary, Unpacked), ArchiveError> {
    let metadata = file.metadata().map_err(at(archive))?;
    if !metadata.is_file() {
        return Err(ArchiveError::NotAnArchive("it is not a file".into()));
    }
    let temporary = Temporary::folder_beside(into)?;
    let mut tree = tree::Tree::new(&temporary.path, limits, metadata.len())?;
    let format = read(file, &mut tree)?;
    let (bytes, entries) = tree.finish()?;
    Ok((temporary, Unpacked { format, bytes, entries }))
}

/// Puts the content of `file` into `tree`.
fn read(mut file: &File, tree: &mut tree::Tree<'_>) -> Result<Format, ArchiveError> {
    let io = |source| at(Path::new("the archive"))(source);
    let mut magic = Vec::with_capacity(4);
    file.rewind().map_err(io)?;
    file.take(4).read_to_end(&mut magic).map_err(io)?;
    file.rewind().map_err(io)?;
    let buffered = BufReader::with_capacity(128 << 10, file);
    match *magic {
        [] => Err(ArchiveError::NotAnArchive("it is empty".into())),
        [0x1f, 0x8b, ..] => {
            tar::read(flate2::bufread::MultiGzDecoder::new(buffered), tree)?;
            Ok(Format::Gzip)
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            tar::read(zstd::stream::read::Decoder::with_buffer(buffered).map_err(io)?, tree)?;
            Ok(Format::Zstd)
        }
        [0x50, 0x4b, 0x03, 0x04] | [0x50, 0x4b, 0x05, 0x06] => {
            zip::read(file, tree)?;
            Ok(Format::Zip)
        }
        [0x68, 0x73, 0x71, 0x73] => {
            squashfs::read(file, tree)?;
            Ok(Format::Squashfs)
        }
        _ => {
            tar::read(buffered, tree)?;
            Ok(Format::Tar)
        }
    }
}

/// Unpacks `archive` to `store/<sha-256 of the file>` unless that is there, and gives that folder.
///
/// Any number of threads and processes may do so at once: who is first wins, and all get the same folder.
/// Others than its owner can only read it. It is on the disk before it has its name, so that a folder found
/// after a power loss is whole.
pub fn unpack_once(archive: &Path, store: &Path, limits: &Limits) -> Result<PathBuf, ArchiveError> {
    let file = File::open(archive).map_err(at(archive))?;
    let before = file.metadata().map_err(at(archive))?;
    let (hash, _) = hash_file(&file).map_err(at(archive))?;
    let into = store.join(hash);
    if into.is_dir() {
        return Ok(into);
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(store).map_err(at(store))?;
    let (temporary, _) = unpack_beside(&file, archive, &into, limits)?;
    let after = file.metadata().map_err(at(archive))?;
    let version = |m: &std::fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    if version(&before) != version(&after) {
        return Err(ArchiveError::Changed(archive.to_owned()));
    }
    // One sync of the file system is cheaper than one for each of thousands of files.
    rustix::fs::syncfs(&File::open(&temporary.path).map_err(at(&temporary.path))?)
        .map_err(|error| at(&temporary.path)(error.into()))?;
    match move_unpacked(temporary, &into) {
        Ok(()) | Err(ArchiveError::Exists(_)) => Ok(into),
        Err(error) => Err(error),
    }
}
