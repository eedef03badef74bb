//! Walks folders in one order, and hashes folders and files by content.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// More than this is no code; it bounds the memory of a walk.
const MOST_ENTRIES: usize = 1_000_000;

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A regular file.
    File {
        /// Somebody may execute it.
        executable: bool,
        /// Bytes.
        size: u64,
    },
    /// A symbolic link.
    Link {
        /// What it says.
        target: PathBuf,
    },
    /// Device, pipe, socket.
    Special,
}

/// Everything below `folder`, as relative names: each folder before its content, siblings by their bytes.
/// Follows no link.
pub fn walk(folder: &Path) -> io::Result<Vec<(PathBuf, Kind)>> {
    walk_within(folder, MOST_ENTRIES)
}

fn walk_within(folder: &Path, most: usize) -> io::Result<Vec<(PathBuf, Kind)>> {
    let mut found = Vec::new();
    // Last in, first out: a folder's content comes right after it.
    let mut open = vec![(PathBuf::new(), Kind::Folder)];
    while let Some((name, kind)) = open.pop() {
        if kind == Kind::Folder {
            let mut below = Vec::new();
            for entry in std::fs::read_dir(folder.join(&name))? {
                let entry = entry?;
                // What is read now is in none of them, and the root does not count.
                let own = usize::from(!name.as_os_str().is_empty());
                if found.len() + open.len() + below.len() + own >= most {
                    return Err(io::Error::other(format!("there are more than {most} files")));
                }
                below.push((name.join(entry.file_name()), kind_of(&entry)?));
            }
            below.sort_unstable_by(|a, b| b.0.as_os_str().as_bytes().cmp(a.0.as_os_str().as_bytes()));
            open.append(&mut below);
        }
        if !name.as_os_str().is_empty() {
            found.push((name, kind));
        }
    }
    Ok(found)
}

fn kind_of(entry: &std::fs::DirEntry) -> io::Result<Kind> {
    let metadata = entry.metadata()?;
    let kind = metadata.file_type();
    Ok(if kind.is_dir() {
        Kind::Folder
    } else if kind.is_file() {
        Kind::File { executable: metadata.permissions().mode() & 0o111 != 0, size: metadata.len() }
    } else if kind.is_symlink() {
        Kind::Link { target: std::fs::read_link(entry.path())? }
    } else {
        Kind::Special
    })
}

/// Opens a file that was a file when it was found, and is not a link, pipe or device now.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a file any more")) }
}

/// A digest as text.
pub(super) fn hex(hash: Sha256) -> String {
    use std::fmt::Write as _;
    hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of the rest of a file, in hex, and the number of its bytes.
pub fn hash_file(mut file: &File) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hex(hash), bytes)),
            Ok(count) => {
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A hash of what a folder holds: names, kinds, contents, links' targets, and whether files are executable.
/// Not of times, owners or other bits of the mode. Fails when the folder changes meanwhile.
pub fn hash_tree(folder: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    // Lengths before texts: no two trees give the same stream.
    let mut put = |kind: u8, name: &[u8], content: &[u8]| {
        hash.update([kind]);
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    };
    for (name, kind) in walk(folder)? {
        let bytes = name.as_os_str().as_bytes();
        match kind {
            Kind::Folder => put(b'd', bytes, b""),
            Kind::Link { target } => put(b'l', bytes, target.as_os_str().as_bytes()),
            Kind::Special => put(b's', bytes, b""),
            Kind::File { executable, .. } => {
                let (content, _) = hash_file(&open_file(&folder.join(&name))?)?;
                put(if executable { b'x' } else { b'f' }, bytes, content.as_bytes());
            }
        }
    }
    Ok(hex(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_has_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        for file in ["a/x", "a/y", "b", "c"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        assert_eq!(walk_within(dir.path(), 5).unwrap().len(), 5);
        for most in 0..5 {
            let error = walk_within(dir.path(), most).unwrap_err();
            assert_eq!(error.to_string(), format!("there are more than {most} files"));
        }
    }
}
