//! Packs a folder. The same content gives the same bytes: sorted, without times and owners, modes 644 and
//! 755.
//!
//! Links that may lead out of the folder, devices, pipes and sockets are left out and named in
//! [`Packed::left_out`]: no reader would accept them, and a build that made one must not fail for it.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use backhand::compression::{CompressionOptions, Compressor, Lz4};
use backhand::{FilesystemCompressor, FilesystemWriter, NodeHeader};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::hash::{Kind, hash_file, hex, open_file, walk};
use super::tree::stays_inside;
use super::{ArchiveError, Compression, Temporary, at};

/// What is packed.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions<'a> {
    /// Names directly in the folder that are left out.
    pub exclude: &'a [&'a str],
    /// Bytes the archive may have.
    pub most_bytes: u64,
    /// When to give up.
    pub until: Option<Instant>,
}

impl Default for PackOptions<'_> {
    /// Everything but archives of the folder itself, up to 2 GiB, however long it takes.
    fn default() -> Self {
        Self {
            exclude: &["code.sqfs", "code.tar", "code.tar.gz", "code.gz"],
            most_bytes: 2 << 30,
            until: None,
        }
    }
}

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of the archive.
    pub bytes: u64,
    /// Its SHA-256, in hex.
    pub sha256: String,
    /// Files, folders and links in it.
    pub entries: u64,
    /// What could not be packed.
    pub left_out: Vec<PathBuf>,
}

/// Bytes of all files that [`pack`] would take.
pub fn content_size(folder: &Path, options: &PackOptions<'_>) -> Result<u64, ArchiveError> {
    let (entries, _) = chosen(folder, options)?;
    Ok(entries.iter().map(|(_, kind)| if let Kind::File { size, .. } = kind { *size } else { 0 }).sum())
}

type Entries = Vec<(PathBuf, Kind)>;

/// What is packed, and what cannot be.
fn chosen(folder: &Path, options: &PackOptions<'_>) -> Result<(Entries, Vec<PathBuf>), ArchiveError> {
    let mut entries = walk(folder).map_err(at(folder))?;
    entries.retain(|(name, _)| !options.exclude.iter().any(|excluded| name.starts_with(excluded)));
    let fits = |(name, kind): &(PathBuf, Kind)| match kind {
        Kind::Link { target } => stays_inside(target.as_os_str().as_bytes(), name.components().count() - 1),
        Kind::Special => false,
        Kind::Folder | Kind::File { .. } => true,
    };
    let (fit, rest): (Vec<_>, Vec<_>) = entries.into_iter().partition(fits);
    Ok((fit, rest.into_iter().map(|(name, _)| name).collect()))
}

/// Writes the content of `folder` to the file `to`, all or nothing; replaces a file that is there.
pub fn pack(
    folder: &Path,
    to: &Path,
    compression: Compression,
    options: &PackOptions<'_>,
) -> Result<Packed, ArchiveError> {
    let (entries, left_out) = chosen(folder, options)?;
    let temporary = Temporary::beside(to)?;
    let file = File::create_new(&temporary.path).map_err(at(&temporary.path))?;
    let (sha256, bytes) = match compression {
        Compression::Squashfs => squashfs(folder, &entries, &temporary.path, file, options)?,
        _ => {
            let out = Measured { file, hash: Sha256::new(), bytes: 0, bounds: Bounds::of(options) };
            let out = compressed_tar(folder, &entries, compression, out)
                .map_err(|error| too_large_or(error, to, options.most_bytes))?;
            (hex(out.hash), out.bytes)
        }
    };
    temporary.move_to(to).map_err(at(to))?;
    Ok(Packed { bytes, sha256, entries: entries.len() as u64, left_out })
}

fn too_large_or(error: io::Error, to: &Path, most: u64) -> ArchiveError {
    if error.kind() == io::ErrorKind::FileTooLarge {
        let entry = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return ArchiveError::TooLarge { entry, reason: format!("it would have more than {most} bytes") };
    }
    at(to)(error)
}

/// Where writing stops.
#[derive(Clone, Copy)]
struct Bounds {
    bytes: u64,
    until: Option<Instant>,
}

impl Bounds {
    fn of(options: &PackOptions<'_>) -> Self {
        Self { bytes: options.most_bytes, until: options.until }
    }

    /// Whether `more` bytes may be written at `at`.
    fn check(&self, at: u64, more: usize) -> io::Result<()> {
        if more as u64 > self.bytes.saturating_sub(at) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if self.until.is_some_and(|until| Instant::now() > until) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "packing takes too long"));
        }
        Ok(())
    }
}

/// Counts and hashes what is written, and stops at the bounds.
struct Measured {
    file: File,
    hash: Sha256,
    bytes: u64,
    bounds: Bounds,
}

impl Write for Measured {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.bounds.check(self.bytes, data.len())?;
        let count = self.file.write(data)?;
        self.hash.update(&data[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn compressed_tar(
    folder: &Path,
    entries: &Entries,
    compression: Compression,
    out: Measured,
) -> io::Result<Measured> {
    let out = BufWriter::with_capacity(128 << 10, out);
    let out = match compression {
        Compression::Gzip => {
            let mut gzip = flate2::GzBuilder::new().mtime(0).write(out, flate2::Compression::new(6));
            write_tar(folder, entries, &mut gzip)?;
            gzip.finish()?
        }
        Compression::Zstd => {
            let mut zstd = zstd::stream::write::Encoder::new(out, 3)?;
            zstd.include_checksum(true)?;
            write_tar(folder, entries, &mut zstd)?;
            zstd.finish()?
        }
        Compression::None | Compression::Squashfs => {
            let mut out = out;
            write_tar(folder, entries, &mut out)?;
            out
        }
    };
    out.into_inner().map_err(io::IntoInnerError::into_error)
}

fn write_tar(folder: &Path, entries: &Entries, out: &mut impl Write) -> io::Result<()> {
    let mut tar = Builder::new(out);
    for (name, kind) in entries {
        let naming = |error: io::Error| {
            // The kinds are told apart above.
            io::Error::new(error.kind(), format!("{}: {error}", name.display()))
        };
        let mut header = Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        match kind {
            Kind::Folder => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                tar.append_data(&mut header, name, io::empty()).map_err(naming)?;
            }
            Kind::Link { target } => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                tar.append_link(&mut header, name, target).map_err(naming)?;
            }
            Kind::File { executable, size } => {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(if *executable { 0o755 } else { 0o644 });
                header.set_size(*size);
                let file = open_file(&folder.join(name)).map_err(naming)?;
                let mut content = Exactly { file, left: *size };
                tar.append_data(&mut header, name, &mut content).map_err(naming)?;
            }
            Kind::Special => {}
        }
    }
    tar.finish()
}

/// A file that must not shrink while it is read; what it grows by is left out.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buffer.len() as u64) as usize;
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::other("it changed while it was packed"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn squashfs(
    folder: &Path,
    entries: &Entries,
    path: &Path,
    file: File,
    options: &PackOptions<'_>,
) -> Result<(String, u64), ArchiveError> {
    let failed = |error: backhand::BackhandError| match error {
        backhand::BackhandError::StdIo(error) => too_large_or(error, path, options.most_bytes),
        other => at(path)(io::Error::other(other.to_string())),
    };
    let mut image = FilesystemWriter::default();
    // What mksquashfs writes for -comp lz4; the kernel wants it.
    let lz4 = CompressionOptions::Lz4(Lz4 { version: 1, flags: 0 });
    image.set_compressor(FilesystemCompressor::new(Compressor::Lz4, Some(lz4)).map_err(failed)?);
    image.set_block_size(1 << 20);
    image.set_time(0);
    image.set_only_root_id();
    image.set_root_mode(0o755);
    let header = |mode| NodeHeader { permissions: mode, uid: 0, gid: 0, mtime: 0 };
    for (name, kind) in entries {
        match kind {
            Kind::Folder => image.push_dir(name, header(0o755)),
            Kind::Link { target } => image.push_symlink(target, name, header(0o777)),
            Kind::File { executable, .. } => {
                let mode = if *executable { 0o755 } else { 0o644 };
                image.push_file_from_path(folder.join(name), name, header(mode))
            }
            Kind::Special => Ok(()),
        }
        .map_err(failed)?;
    }
    let mut out = Bounded { file: BufWriter::new(file), at: 0, bounds: Bounds::of(options) };
    image.write(&mut out).map_err(failed)?;
    out.flush().map_err(at(path))?;
    let done = File::open(path).map_err(at(path))?;
    hash_file(&done).map_err(at(path))
}

/// A file whose size is bounded, for a writer that seeks.
struct Bounded {
    file: BufWriter<File>,
    at: u64,
    bounds: Bounds,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.bounds.check(self.at, data.len())?;
        let count = self.file.write(data)?;
        self.at += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl io::Seek for Bounded {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.at = self.file.seek(to)?;
        Ok(self.at)
    }
}
