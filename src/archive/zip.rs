//! Reads a zip, entry by entry as its directory at the end lists them; never the whole directory in memory.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use zip::read::{Config, ZipReadOptions};
use zip::result::ZipError;
// The only reader of this crate that does not collect the directory. Not under its promise of stability: a
// new version that changes it does not compile.
use zip::unstable::read::ZipIterable;

use super::ArchiveError;
use super::tree::{Tree, refused, shown, unreadable};

const KIND: u32 = 0o170_000;

/// A file with a position of its own: directory and content are read in turns.
struct Positioned<'f> {
    file: &'f File,
    at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The system takes it for a mistake of ours.
        if i64::try_from(self.at).is_err() {
            return Ok(0);
        }
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Positioned<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

fn zip_error(name: &[u8], error: ZipError) -> ArchiveError {
    match error {
        ZipError::Io(error) => unreadable(name, error),
        ZipError::UnsupportedArchive(what) => refused(name, what),
        other if name.is_empty() => ArchiveError::Damaged(other.to_string()),
        other => ArchiveError::Damaged(format!("at `{}`: {other}", shown(name))),
    }
}

/// Puts the zip into `tree`.
pub(super) fn read(file: &File, tree: &mut Tree<'_>) -> Result<(), ArchiveError> {
    let reader = || BufReader::with_capacity(64 << 10, Positioned { file, at: 0 });
    let mut archive = ZipIterable::try_new(reader(), Config::default()).map_err(|e| zip_error(b"", e))?;
    let most = tree.limits().entries;
    if archive.len() as u64 > most {
        let reason = format!("it has more than {most} entries");
        return Err(ArchiveError::TooLarge { entry: "its directory".into(), reason });
    }
    let mut contents = reader();
    for entry in archive.files().map_err(|e| zip_error(b"", e))? {
        let entry = entry.map_err(|e| zip_error(b"", e))?;
        let name = entry.name_raw().to_owned();
        if entry.encrypted() {
            return Err(refused(&name, "it is encrypted"));
        }
        // Without a Unix mode, a name with `/` at the end is a folder.
        let mode = entry.unix_mode().unwrap_or(0);
        let size = entry.size();
        let mut content =
            entry.with_reader(&mut contents, ZipReadOptions::new()).map_err(|e| zip_error(&name, e))?;
        match mode & KIND {
            0o040_000 => tree.folder(&name)?,
            0o120_000 => {
                let most = tree.limits().path as u64;
                let mut target = Vec::new();
                (&mut content).take(most + 1).read_to_end(&mut target).map_err(|e| unreadable(&name, e))?;
                tree.symbolic_link(&name, &target)?;
            }
            0 | 0o100_000 if name.ends_with(b"/") => tree.folder(&name)?,
            0 | 0o100_000 => tree.file(&name, mode & 0o111 != 0, Some(size), &mut content)?,
            _ => return Err(refused(&name, "it is neither file, folder nor link")),
        }
    }
    Ok(())
}
