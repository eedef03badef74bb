//! Each attack, each bound and one above it, and that what is packed comes back.
//!
//! Every test works below a folder that also holds a canary, which must be the only thing beside the target
//! at the end.

mod attacks;
mod bounds;
mod random;
mod round_trip;

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};

use ::tar::{EntryType, Header};
use tempfile::TempDir;

use super::*;

/// A folder with `outside/canary`, a place for an archive and one for what it holds.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/canary"), "alive").unwrap();
        std::fs::create_dir(dir.path().join("work")).unwrap();
        Self(dir)
    }

    fn archive(&self) -> PathBuf {
        self.0.path().join("archive")
    }

    fn target(&self) -> PathBuf {
        self.0.path().join("work/into")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Unpacks, and fails the test if anything but the target was touched.
    fn unpack(&self, archive: &[u8], limits: &Limits) -> Result<Unpacked, ArchiveError> {
        std::fs::write(self.archive(), archive).unwrap();
        let result = unpack(&self.archive(), &self.target(), limits);
        self.check(result.is_ok());
        result
    }

    fn check(&self, unpacked: bool) {
        assert_eq!(std::fs::read_to_string(self.path("outside/canary")).unwrap(), "alive");
        assert_eq!(names(&self.path("outside")), ["canary"]);
        assert_eq!(names(&self.path("work")), if unpacked { vec!["into"] } else { vec![] });
        assert_eq!(names(self.0.path()).iter().filter(|name| name.starts_with('.')).count(), 0);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// One entry of a tar, with its name and target written as they are.
fn entry(kind: EntryType, name: &str, target: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o6777);
    header.set_size(content.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    entry(EntryType::Regular, name, "", content)
}

fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    let mut out = ::zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    out.include_checksum(true).unwrap();
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

/// A zip: name, Unix mode, content.
fn zip_of(entries: &[(&str, u32, &[u8])]) -> Vec<u8> {
    use ::zip::write::{SimpleFileOptions, ZipWriter};
    let mut out = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, mode, content) in entries {
        let options = SimpleFileOptions::default().unix_permissions(*mode);
        match mode & 0o170_000 {
            0o120_000 => out
                .add_symlink(*name, std::str::from_utf8(content).unwrap(), SimpleFileOptions::default())
                .unwrap(),
            0o040_000 => out.add_directory(*name, options).unwrap(),
            _ => {
                out.start_file(*name, options).unwrap();
                out.write_all(content).unwrap();
            }
        }
    }
    out.finish().unwrap().into_inner()
}

/// A folder with everything that is packed.
fn example(folder: &Path) {
    std::fs::create_dir_all(folder.join("src/deep/er")).unwrap();
    std::fs::create_dir(folder.join("empty")).unwrap();
    std::fs::write(folder.join("index.js"), "one").unwrap();
    std::fs::write(folder.join(".hidden"), "two").unwrap();
    std::fs::write(folder.join("src/with space\nand newline"), "three").unwrap();
    std::fs::write(folder.join("src/deep/er/big"), noise(3 << 20)).unwrap();
    std::fs::write(folder.join("zeros"), vec![0; 2 << 20]).unwrap();
    std::fs::write(folder.join("nothing"), "").unwrap();
    std::fs::write(folder.join("ü".repeat(100)), "long").unwrap();
    std::fs::write(folder.join("run"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(folder.join("run"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("../index.js", folder.join("src/link")).unwrap();
    symlink("nowhere", folder.join("dangling")).unwrap();
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut seed = 88_172_645_463_325_252_u64;
    let next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Packs [`example`] in each way.
fn packed(compression: Compression) -> Vec<u8> {
    let place = Place::new();
    let from = place.path("from");
    example(&from);
    pack(&from, &place.archive(), compression, &PackOptions::default()).unwrap();
    std::fs::read(place.archive()).unwrap()
}

const ALL: [Compression; 4] =
    [Compression::None, Compression::Gzip, Compression::Zstd, Compression::Squashfs];
