//! The only code that writes what an archive says. Knows no format.
//!
//! Below the root there is no symbolic link until [`Tree::finish`], each component of a name is opened
//! without following links, and files are made with `O_EXCL`. So no entry can reach outside or change
//! another, in whatever order they come. Links are made last: the folder that holds one is then a real
//! folder, so `n` leading `..` lead exactly `n` real folders up, and what follows them only goes down or
//! through another link for which the same holds.
//!
//! Every bound is checked before the byte, file or folder that would break it is written.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fchmod, fstat, linkat, mkdirat, openat, statat, symlinkat};
use rustix::io::Errno;

use super::{ArchiveError, Limits, at};

/// Names and targets of symbolic links are in memory until the end; more than this is no code.
const MOST_LINK_BYTES: usize = 16 << 20;
/// Small files, that is most, are written with one call.
const PIECE: usize = 128 << 10;
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::PATH);
const NEW_FILE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A folder that is being filled.
pub(super) struct Tree<'a> {
    path: PathBuf,
    root: OwnedFd,
    /// Where the last entry was: the next is mostly there too.
    last: Option<(Vec<u8>, OwnedFd)>,
    limits: &'a Limits,
    /// The process masks bits that files shall have.
    masked: bool,
    packed: u64,
    bytes: u64,
    /// What came out of decompression, content or not.
    produced: u64,
    entries: u64,
    links: Vec<(Vec<u8>, Vec<u8>)>,
    link_bytes: usize,
    buffer: Vec<u8>,
}

/// A name for messages.
pub(super) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().take(200).collect()
}

pub(super) fn refused(name: &[u8], reason: impl Into<String>) -> ArchiveError {
    ArchiveError::Refused { entry: shown(name), reason: reason.into() }
}

fn too_large(name: &[u8], reason: String) -> ArchiveError {
    ArchiveError::TooLarge { entry: shown(name), reason }
}

/// An error while the archive was read: the disk's, or the archive's own.
pub(super) fn unreadable(name: &[u8], error: io::Error) -> ArchiveError {
    if error.raw_os_error().is_some() {
        return at(Path::new("the archive"))(error);
    }
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
        _ => error.to_string(),
    };
    ArchiveError::Damaged(if name.is_empty() { what } else { format!("at `{}`: {what}", shown(name)) })
}

/// The components of an entry's name; none for the root itself.
fn components<'n>(name: &'n [u8], limits: &Limits) -> Result<Vec<&'n [u8]>, ArchiveError> {
    if name.len() > limits.path {
        return Err(too_large(name, format!("its name has more than {} bytes", limits.path)));
    }
    if name.starts_with(b"/") {
        return Err(refused(name, "its name is absolute"));
    }
    if name.contains(&0) {
        return Err(refused(name, "its name has a zero byte"));
    }
    let parts: Vec<_> = name.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(refused(name, "its name leads out of the folder with `..`"));
    }
    if parts.len() > limits.depth {
        return Err(too_large(name, format!("it is more than {} folders deep", limits.depth)));
    }
    Ok(parts)
}

/// Whether a symbolic link in a real folder `depth` folders below the root cannot lead out of it.
pub(super) fn stays_inside(target: &[u8], depth: usize) -> bool {
    let mut parts = target.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")).peekable();
    let mut up = 0;
    while parts.next_if(|part| *part == b"..").is_some() {
        up += 1;
    }
    !target.is_empty() && !target.starts_with(b"/") && up <= depth && parts.all(|part| part != b"..")
}

impl<'a> Tree<'a> {
    /// Fills the empty folder `path` from an archive of `packed` bytes.
    pub(super) fn new(path: &Path, limits: &'a Limits, packed: u64) -> Result<Self, ArchiveError> {
        let io = |error: Errno| at(path)(error.into());
        let root = openat(CWD, path, FOLDER, Mode::empty()).map_err(io)?;
        let masked = fstat(&root).map_err(io)?.st_mode & 0o755 != 0o755;
        if masked {
            let readable = OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = openat(CWD, path, readable, Mode::empty()).map_err(io)?;
            fchmod(&root, Mode::from_raw_mode(0o755)).map_err(io)?;
        }
        Ok(Self {
            path: path.to_owned(),
            root,
            last: None,
            limits,
            masked,
            packed,
            bytes: 0,
            produced: 0,
            entries: 0,
            links: Vec::new(),
            link_bytes: 0,
            buffer: vec![0; PIECE],
        })
    }

    pub(super) fn limits(&self) -> &'a Limits {
        self.limits
    }

    /// Counts bytes that decompression gave.
    pub(super) fn produced(&mut self, name: &[u8], bytes: u64) -> Result<(), ArchiveError> {
        self.produced = self.produced.saturating_add(bytes);
        let Limits { ratio, ratio_floor, .. } = *self.limits;
        if self.produced > ratio_floor && self.produced > self.packed.saturating_mul(ratio) {
            return Err(too_large(name, format!("it unpacks to more than {ratio} times its size")));
        }
        Ok(())
    }

    fn count_entry(&mut self, name: &[u8]) -> Result<(), ArchiveError> {
        if self.entries >= self.limits.entries {
            return Err(too_large(name, format!("it has more than {} entries", self.limits.entries)));
        }
        self.entries += 1;
        Ok(())
    }

    fn cannot_make(&self, name: &[u8], error: Errno) -> ArchiveError {
        match error {
            Errno::EXIST => refused(name, "the name comes twice"),
            Errno::NOTDIR | Errno::LOOP => refused(name, "a part of its name is not a folder"),
            Errno::NAMETOOLONG => refused(name, "a part of its name has more than 255 bytes"),
            _ => at(&self.path.join(OsStr::from_bytes(name)))(error.into()),
        }
    }

    /// Opens the folder of these components, and makes what is missing of it. `counted`: the last one is an
    /// entry.
    fn descend(&mut self, name: &[u8], parts: &[&[u8]], counted: bool) -> Result<(), ArchiveError> {
        let key = parts.join(&b'/');
        if self.last.as_ref().is_some_and(|(last, _)| *last == key) {
            return Ok(());
        }
        let mut folder: Option<OwnedFd> = None;
        for (at, part) in parts.iter().enumerate() {
            let above = folder.as_ref().unwrap_or(&self.root).as_fd();
            let next = match openat(above, *part, FOLDER, Mode::empty()) {
                Err(Errno::NOENT) => {
                    let above = above.try_clone_to_owned().map_err(super::at(&self.path))?;
                    if !(counted && at + 1 == parts.len()) {
                        self.count_entry(name)?;
                    }
                    self.make_folder(name, &above, part)?
                }
                opened => opened.map_err(|error| self.cannot_make(name, error))?,
            };
            folder = Some(next);
        }
        self.last = folder.map(|folder| (key, folder));
        Ok(())
    }

    fn make_folder(&self, name: &[u8], above: &OwnedFd, part: &[u8]) -> Result<OwnedFd, ArchiveError> {
        let fail = |error| self.cannot_make(name, error);
        mkdirat(above, part, Mode::from_raw_mode(0o755)).map_err(fail)?;
        if self.masked {
            rustix::fs::chmodat(above, part, Mode::from_raw_mode(0o755), AtFlags::empty()).map_err(fail)?;
        }
        openat(above, part, FOLDER, Mode::empty()).map_err(fail)
    }

    /// Opens the folder that shall hold `name`, and gives `name`'s last component and the depth of that
    /// folder.
    fn enter<'n>(&mut self, name: &'n [u8]) -> Result<(&'n [u8], usize), ArchiveError> {
        let parts = components(name, self.limits)?;
        let Some((own, above)) = parts.split_last() else {
            return Err(refused(name, "it is the archive's root, but not a folder"));
        };
        self.count_entry(name)?;
        self.descend(name, above, false)?;
        Ok((own, above.len()))
    }

    /// After [`Tree::enter`].
    fn here(&self) -> &OwnedFd {
        self.last.as_ref().map_or(&self.root, |(_, folder)| folder)
    }

    /// A folder; may be there.
    pub(super) fn folder(&mut self, name: &[u8]) -> Result<(), ArchiveError> {
        let parts = components(name, self.limits)?;
        self.count_entry(name)?;
        self.descend(name, &parts, true)
    }

    /// A file with the rest of `content`, which must have `size` bytes if that is given.
    pub(super) fn file(
        &mut self,
        name: &[u8],
        executable: bool,
        size: Option<u64>,
        content: &mut dyn Read,
    ) -> Result<(), ArchiveError> {
        // Before anything is made: the archive says itself that it is too large.
        self.check_room(name, size.unwrap_or(0))?;
        let (own, _) = self.enter(name)?;
        let mode = Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
        let made = openat(self.here(), own, NEW_FILE, mode);
        let file = made.map_err(|error| self.cannot_make(name, error))?;
        if self.masked {
            fchmod(&file, mode).map_err(|error| self.cannot_make(name, error))?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.copy(name, content, &file, &mut buffer);
        self.buffer = buffer;
        let written = result?;
        match size {
            Some(size) if size != written => {
                Err(ArchiveError::Damaged(format!("`{}` is shorter than it says", shown(name))))
            }
            _ => Ok(()),
        }
    }

    fn check_room(&self, name: &[u8], more: u64) -> Result<(), ArchiveError> {
        if more > self.limits.bytes.saturating_sub(self.bytes) {
            return Err(too_large(name, format!("it has more than {} bytes", self.limits.bytes)));
        }
        Ok(())
    }

    fn copy(
        &mut self,
        name: &[u8],
        content: &mut dyn Read,
        file: &OwnedFd,
        buffer: &mut [u8],
    ) -> Result<u64, ArchiveError> {
        let mut written = 0;
        loop {
            let mut filled = 0;
            while filled < buffer.len() {
                match content.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(more) => filled += more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(unreadable(name, error)),
                }
            }
            self.check_room(name, filled as u64)?;
            self.produced(name, filled as u64)?;
            self.bytes += filled as u64;
            written += filled as u64;
            let mut rest = &buffer[..filled];
            while !rest.is_empty() {
                match rustix::io::write(file, rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(self.cannot_make(name, error)),
                }
            }
            if filled < buffer.len() {
                return Ok(written);
            }
        }
    }

    /// A symbolic link, made by [`Tree::finish`].
    pub(super) fn symbolic_link(&mut self, name: &[u8], target: &[u8]) -> Result<(), ArchiveError> {
        let (_, depth) = self.enter(name)?;
        if target.len() > self.limits.path {
            return Err(too_large(name, format!("its target has more than {} bytes", self.limits.path)));
        }
        if target.contains(&0) || !stays_inside(target, depth) {
            return Err(refused(
                name,
                format!("it is a link to `{}`, which may lead out of the folder", shown(target)),
            ));
        }
        self.link_bytes += name.len() + target.len();
        if self.link_bytes > MOST_LINK_BYTES {
            return Err(too_large(name, format!("its links have more than {MOST_LINK_BYTES} bytes")));
        }
        self.links.push((name.to_owned(), target.to_owned()));
        Ok(())
    }

    /// Another name for a file that came before.
    pub(super) fn hard_link(&mut self, name: &[u8], target: &[u8]) -> Result<(), ArchiveError> {
        let why = || format!("it is a hard link to `{}`, which is not a file before it", shown(target));
        let parts = components(target, self.limits).map_err(|_| refused(name, why()))?;
        let Some((of, above)) = parts.split_last() else { return Err(refused(name, why())) };
        let mut folder = self.root.try_clone().map_err(at(&self.path))?;
        for part in above {
            folder = openat(&folder, *part, FOLDER, Mode::empty()).map_err(|_| refused(name, why()))?;
        }
        let Ok(linked) = statat(&folder, *of, AtFlags::SYMLINK_NOFOLLOW) else {
            return Err(refused(name, why()));
        };
        // Whoever copies the tree has it twice.
        let bytes = linked.st_size.cast_unsigned();
        self.check_room(name, bytes)?;
        self.bytes += bytes;
        let (own, _) = self.enter(name)?;
        linkat(&folder, *of, self.here(), own, AtFlags::empty()).map_err(|error| match error {
            // A folder cannot be linked to.
            Errno::PERM => refused(name, why()),
            error => self.cannot_make(name, error),
        })
    }

    /// Makes the links. Gives the bytes of all files and the number of entries.
    pub(super) fn finish(mut self) -> Result<(u64, u64), ArchiveError> {
        for (name, target) in std::mem::take(&mut self.links) {
            let parts = components(&name, self.limits)?;
            let Some((own, above)) = parts.split_last() else { continue };
            // They are there: this opens them, and finds no link among them.
            self.descend(&name, above, false)?;
            symlinkat(&*target, self.here(), *own).map_err(|error| self.cannot_make(&name, error))?;
        }
        Ok((self.bytes, self.entries))
    }
}
