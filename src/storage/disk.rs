//! Objects as files of this host.
//!
//! A key is the file's absolute path, which is what clients of an executor with local storage send: they mount the same
//! volume. Our own artifacts live [`Disk::below`] a folder instead. Symbolic links are followed, since operators place
//! volumes with them; anything but a regular file is refused before it is read, or a pipe would block for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::partial::{Partial, Wanted, blocking};
use super::{BoxFuture, Storage, StorageError, segments};

/// How much is copied before it is asked again whether somebody waits, in bytes.
const STRIDE: u64 = 8 << 20;

/// The local disk.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
}

/// A failure, and whose: the object's or the local file's.
enum Fault {
    Object(io::Error),
    NoFile,
    TooLarge,
    Local(io::Error),
}

impl Disk {
    /// Keys are absolute paths of this host.
    #[expect(clippy::new_without_default, reason = "the whole disk should be asked for by name")]
    pub fn new() -> Self {
        Self { root: PathBuf::from("/") }
    }

    /// Keys are paths below `root`, which is made when first needed.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, key: &str) -> Result<PathBuf, StorageError> {
        let parts = segments(key)?;
        if !key.starts_with('/') {
            return Err(StorageError::invalid(key, "on local disk it has to be an absolute path"));
        }
        let mut path = self.root.clone();
        path.extend(parts);
        Ok(path)
    }

    /// Runs `work` for the file of `key` and names what went wrong.
    async fn run<T: Send + 'static>(
        &self,
        key: &str,
        local: &Path,
        limit: u64,
        work: impl FnOnce(&Path, &Wanted) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StorageError> {
        let path = self.path(key)?;
        let shown: Arc<str> = path.display().to_string().into();
        let fault = match blocking(move |wanted| Ok(work(&path, wanted))).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(fault)) => fault,
            Err(error) => Fault::Object(error),
        };
        Err(match fault {
            Fault::TooLarge => StorageError::TooLarge { key: key.into(), limit },
            Fault::NoFile => StorageError::invalid(key, "what is there is not a regular file"),
            Fault::Local(error) => {
                StorageError::Local(format!("the local file {}: {error}", local.display()).into())
            }
            Fault::Object(error) => self.object_error(key, &shown, &error),
        })
    }

    fn object_error(&self, key: &str, path: &str, error: &io::Error) -> StorageError {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::NotFound => StorageError::NotFound { key: key.into(), storage: self.describe().into() },
            Kind::InvalidFilename => StorageError::invalid(key, "a part of it is too long for a file's name"),
            Kind::NotADirectory => StorageError::invalid(key, "a folder in it is a file on this disk"),
            Kind::IsADirectory => StorageError::invalid(key, "it names a folder"),
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => StorageError::Refused(
                format!("the executor may not use {path}: {error}; give its user the right to").into(),
            ),
            _ => StorageError::Unavailable(format!("the disk failed at {path}: {error}").into()),
        }
    }
}

impl Storage for Disk {
    fn fetch<'a>(
        &'a self,
        key: &'a str,
        to: &'a Path,
        limit: u64,
    ) -> BoxFuture<'a, Result<u64, StorageError>> {
        let target = to.to_owned();
        Box::pin(self.run(key, to, limit, move |path, wanted| {
            let (mut source, size) = open_file(path).map_err(or_no_object)?;
            if size > limit {
                return Err(Fault::TooLarge);
            }
            let partial = Partial::create(&target).map_err(Fault::Local)?;
            let copied =
                copy(&mut source, &partial, limit.saturating_add(1), wanted).map_err(Fault::Local)?;
            if copied > limit {
                return Err(Fault::TooLarge);
            }
            partial.commit().map_err(Fault::Local)?;
            Ok(copied)
        }))
    }

    fn store<'a>(&'a self, from: &'a Path, key: &'a str) -> BoxFuture<'a, Result<u64, StorageError>> {
        let source = from.to_owned();
        Box::pin(self.run(key, from, 0, move |path, wanted| {
            let (mut source, _) = open_file(&source).map_err(|fault| match fault {
                Fault::NoFile => Fault::Local(io::Error::other("is not a regular file")),
                Fault::Object(error) => Fault::Local(error),
                other => other,
            })?;
            if path.is_dir() {
                return Err(Fault::NoFile);
            }
            let partial = create_with_folder(path).map_err(Fault::Object)?;
            let copied = copy(&mut source, &partial, u64::MAX, wanted).map_err(Fault::Object)?;
            partial.file().sync_all().map_err(Fault::Object)?;
            partial.commit().map_err(Fault::Object)?;
            sync_folder(path).map_err(Fault::Object)?;
            Ok(copied)
        }))
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StorageError>> {
        Box::pin(self.run(key, Path::new(""), 0, |path, _| match std::fs::remove_file(path) {
            Err(error) if is_absent(&error) => Ok(()),
            result => result.map_err(Fault::Object),
        }))
    }

    fn size<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<u64>, StorageError>> {
        Box::pin(self.run(key, Path::new(""), 0, |path, _| match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Err(Fault::NoFile),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Fault::Object(error)),
        }))
    }

    fn describe(&self) -> String {
        if self.root == Path::new("/") {
            return "local disk".to_owned();
        }
        format!("local disk below {}", self.root.display())
    }
}

/// Whether there can be no such file: it is not there, or its folder is a file.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn or_no_object(fault: Fault) -> Fault {
    match fault {
        Fault::Object(error) if is_absent(&error) => Fault::Object(io::ErrorKind::NotFound.into()),
        other => other,
    }
}

/// Opens a regular file for reading and gives its size.
fn open_file(path: &Path) -> Result<(File, u64), Fault> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(Fault::Object)?;
    let metadata = file.metadata().map_err(Fault::Object)?;
    if !metadata.is_file() {
        return Err(Fault::NoFile);
    }
    Ok((file, metadata.len()))
}

fn create_with_folder(path: &Path) -> io::Result<Partial> {
    match Partial::create(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            Partial::create(path)
        }
        result => result,
    }
}

/// A rename outlives a power cut only when its folder does.
fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Copies at most `most` bytes, in the kernel where it can, and gives how many.
fn copy(source: &mut File, partial: &Partial, most: u64, wanted: &Wanted) -> io::Result<u64> {
    let mut copied = 0;
    while copied < most {
        wanted.check()?;
        let now = io::copy(&mut source.take(STRIDE.min(most - copied)), &mut partial.file())?;
        if now == 0 {
            break;
        }
        copied += now;
    }
    Ok(copied)
}
