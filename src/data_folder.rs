//! The data folder: secrets, state, running instances, and the mark that says who uses it.
//!
//! It has mode 0700, because what is below it is only for the executor. One executor at a time: a lock that the kernel
//! drops when the process ends, however it ends, so that no stale lock needs a person.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::instance::Secret;

/// An open data folder. The lock is held until it is dropped.
#[derive(Debug)]
pub struct DataFolder {
    root: PathBuf,
    _lock: File,
}

/// What a running executor tells the other subcommands.
#[derive(Debug, Serialize, Deserialize)]
pub struct Running {
    /// Where it listens.
    pub url: String,
    /// Its process.
    pub pid: u32,
    /// It serves one function at every path.
    #[serde(default)]
    pub single: bool,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Another executor uses it.
    #[error("the data folder {0} is in use by another executor; stop it or choose another --data")]
    InUse(PathBuf),
    /// It cannot be read or written.
    #[error("the data folder: {path}: {source}; choose a writable --data")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DataError {
    let path = path.to_owned();
    move |source| DataError::Io { path, source }
}

impl DataFolder {
    /// Makes the folder if need be and takes its lock.
    pub fn open(root: &Path) -> Result<Self, DataError> {
        let existed = root.is_dir();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(at(root))?;
        let path = root.join("lock");
        let mut options = OpenOptions::new();
        let lock =
            options.write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(at(&path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DataError::InUse(root.to_owned())),
            Err(error) => return Err(at(&path)(error.into())),
        }
        if !existed {
            std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700)).map_err(at(root))?;
        }
        let run = root.join("run");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&run).map_err(at(&run))?;
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).map_err(at(&run))?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Where instances have their folders.
    pub fn run_folder(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Where the callers' secret is kept.
    pub fn secret_path(&self) -> PathBuf {
        self.root.join("secret")
    }

    /// The callers' secret; made when it is not there.
    pub fn secret(&self) -> Result<Secret, DataError> {
        kept_secret(&self.secret_path())
    }

    /// What names this executor among those on a shared store, for as long as it has this folder; made when it is not there.
    pub fn replica(&self) -> Result<String, DataError> {
        let path = self.root.join("replica");
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        if uuid::Uuid::try_parse(known.trim()).is_ok() {
            return Ok(known.trim().to_owned());
        }
        let replica = uuid::Uuid::new_v4().simple().to_string();
        write_private(&path, format!("{replica}\n").as_bytes()).map_err(at(&path))?;
        Ok(replica)
    }

    /// The operators' secret; made when it is not there.
    pub fn admin_secret(&self) -> Result<Secret, DataError> {
        kept_secret(&self.root.join("admin-secret"))
    }

    /// Tells other subcommands where this executor is.
    pub fn write_running(&self, running: &Running) -> Result<(), DataError> {
        let path = running_path(&self.root);
        let json = serde_json::to_vec(running).unwrap_or_default();
        write_private(&path, &json).map_err(at(&path))
    }

    /// The opposite of [`DataFolder::write_running`].
    pub fn forget_running(&self) {
        let _ = std::fs::remove_file(running_path(&self.root));
    }
}

fn running_path(root: &Path) -> PathBuf {
    root.join("executor.json")
}

/// Whether an executor's data folder is there that this user may not read.
pub fn is_anothers(root: &Path) -> bool {
    std::fs::File::open(running_path(root))
        .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Where an executor that uses `root` listens, and the secrets kept there. For the other subcommands.
pub fn find_running(root: &Path) -> Option<(Running, Option<Secret>, Option<Secret>)> {
    let running = serde_json::from_slice(&std::fs::read(running_path(root)).ok()?).ok()?;
    let secret = |name: &str| {
        let text = std::fs::read_to_string(root.join(name)).ok()?;
        Some(Secret::new(text.trim())).filter(|secret| !secret.expose().is_empty())
    };
    Some((running, secret("secret"), secret("admin-secret")))
}

fn kept_secret(path: &Path) -> Result<Secret, DataError> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(Secret::new(text.trim())),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(path)(error)),
        _ => {}
    }
    let secret = Secret::generate();
    write_private(path, format!("{}\n", secret.expose()).as_bytes()).map_err(at(path))?;
    Ok(secret)
}

/// Writes a file of mode 0600, all or nothing. Not synced: after a power loss it may be old, gone or empty, and is then
/// made anew; start-up need not wait for the disk.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let _ = std::fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    std::fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_private_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        let data = DataFolder::open(&root).unwrap();
        let first = data.secret().unwrap();
        assert_eq!(first, data.secret().unwrap());
        assert_ne!(first, data.admin_secret().unwrap());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&data.secret_path()), 0o600);
        assert_eq!(mode(&root), 0o700);
    }

    #[test]
    fn one_executor_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataFolder::open(dir.path()).unwrap();
        assert!(matches!(DataFolder::open(dir.path()), Err(DataError::InUse(_))));
        drop(first);
        assert!(DataFolder::open(dir.path()).is_ok());
    }
}
