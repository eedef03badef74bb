//! What of a name is kept on disk: for deployed functions the last versions and which of them serves, for
//! those of the functions folder the one result that fits their sources.
//!
//! One small JSON file per name, replaced as a whole and on the disk before its writer goes on. A file that is damaged
//! counts as absent and is named in the log; one that cannot be read just now is an error, because what nothing names
//! is removed.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Versions kept of each deployed function.
pub const KEPT: usize = 5;

/// One result of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Counts up within the name.
    pub version: u64,
    /// When it was made, UTC, RFC 3339.
    pub at: String,
    /// SHA-256 of the artifact.
    pub hash: String,
    /// Bytes of the artifact.
    pub size: u64,
    /// What it was made from: sources, command, runtime.
    pub key: String,
}

/// What is kept of a name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Versions {
    /// The number of the one that serves.
    pub serving: u64,
    /// Oldest first.
    pub versions: Vec<Version>,
}

impl Versions {
    /// The one that serves.
    pub fn current(&self) -> Option<&Version> {
        self.numbered(self.serving)
    }

    /// The one with that number.
    pub fn numbered(&self, version: u64) -> Option<&Version> {
        self.versions.iter().find(|v| v.version == version)
    }

    /// The newest one older than the one that serves.
    pub fn previous(&self) -> Option<&Version> {
        self.versions.iter().rfind(|v| v.version < self.serving)
    }

    /// Adds what `make` makes of its number, lets it serve, and forgets what is too old.
    #[must_use]
    pub fn with(mut self, make: impl FnOnce(u64) -> Version) -> Self {
        let number = self.versions.last().map_or(0, |v| v.version) + 1;
        self.versions.push(make(number));
        self.serving = number;
        let excess = self.versions.len().saturating_sub(KEPT);
        self.versions.drain(..excess);
        self
    }
}

/// The files of all names below one folder.
#[derive(Debug, Clone)]
pub struct Shelf {
    root: PathBuf,
}

impl Shelf {
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&root)?;
        Ok(Self { root })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.join(name).join("versions.json")
    }

    /// What is kept of `name`; none: nothing.
    pub fn read(&self, name: &str) -> io::Result<Option<Versions>> {
        let file = self.file(name);
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let read = serde_json::from_slice(&bytes);
        Ok(read
            .map_err(|error| tracing::error!(file = %file.display(), "is damaged: {error}; deploy again"))
            .ok())
    }

    /// Every name and what is kept of it, in order of name.
    pub fn all(&self) -> io::Result<Vec<(String, Versions)>> {
        let mut all = Vec::new();
        for item in std::fs::read_dir(&self.root)? {
            let Ok(name) = item?.file_name().into_string() else { continue };
            if let Some(versions) = self.read(&name)? {
                all.push((name, versions));
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    /// Replaces what is kept of `name`.
    pub fn write(&self, name: &str, versions: &Versions) -> io::Result<()> {
        let file = self.file(name);
        let folder = self.root.join(name);
        std::fs::create_dir_all(&folder)?;
        let temporary = file.with_extension("tmp");
        let mut out = File::create(&temporary)?;
        out.write_all(&serde_json::to_vec_pretty(versions)?)?;
        out.sync_all()?;
        std::fs::rename(temporary, file)?;
        sync(&folder)?;
        sync(&self.root)
    }

    /// Forgets `name`.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_dir_all(self.root.join(name))?;
        sync(&self.root)
    }

    pub(super) fn hashes(&self) -> io::Result<HashSet<String>> {
        Ok(self.all()?.into_iter().flat_map(|(_, all)| all.versions).map(|version| version.hash).collect())
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(version: u64) -> Version {
        Version { version, at: String::new(), hash: format!("h{version}"), size: 1, key: String::new() }
    }

    #[test]
    fn five_are_kept_and_numbers_go_on() {
        let mut versions = Versions::default();
        for _ in 0..=KEPT {
            versions = versions.with(version);
        }
        let numbers: Vec<_> = versions.versions.iter().map(|v| v.version).collect();
        assert_eq!((numbers, versions.serving), (vec![2, 3, 4, 5, 6], 6));
        versions.serving = 3;
        assert_eq!(versions.previous().unwrap().version, 2);
        let versions = versions.with(version);
        assert_eq!((versions.serving, versions.previous().unwrap().version), (7, 6));
    }

    #[test]
    fn files_are_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path().join("deployed")).unwrap();
        let one = Versions::default().with(version);
        shelf.write("a", &one).unwrap();
        shelf.write("b", &one.clone().with(version)).unwrap();
        assert_eq!(shelf.read("a").unwrap(), Some(one.clone()));
        assert_eq!(shelf.read("c").unwrap(), None);
        assert_eq!(shelf.hashes().unwrap(), HashSet::from(["h1".to_owned(), "h2".to_owned()]));
        std::fs::write(dir.path().join("deployed/b/versions.json"), "{").unwrap();
        assert_eq!(shelf.all().unwrap(), [("a".to_owned(), one)], "a damaged one counts as absent");
        // One that is there and cannot be read does not: a folder stands for any error of the disk.
        std::fs::remove_file(dir.path().join("deployed/b/versions.json")).unwrap();
        std::fs::create_dir(dir.path().join("deployed/b/versions.json")).unwrap();
        assert!(shelf.read("b").is_err() && shelf.hashes().is_err());
        shelf.remove("b").unwrap();
        shelf.remove("a").unwrap();
        assert!(shelf.all().unwrap().is_empty() && shelf.remove("a").is_err());
    }
}
