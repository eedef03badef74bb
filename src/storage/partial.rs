//! A local file in the making: invisible under its own name until complete, gone if that never happens.
//!
//! The work on files runs on threads that block, which goes on when the future that waits for it is dropped.
//! Therefore whatever such work has made belongs to a value ([`Partial`]) that cleans up when *it* is dropped, on
//! whatever thread; and long work asks [`Wanted`] now and then. After `kill -9` a file `.executor-….partial` may stay.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A new file beside its final place. Removed when dropped before [`Partial::commit`].
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Partial {
    /// Creates the file in the folder of `target`, which must exist.
    pub(super) fn create(target: &Path) -> io::Result<Self> {
        // Not made of the target's name, which may have the greatest length already.
        let path = target.with_file_name(format!(".executor-{}.partial", uuid::Uuid::new_v4().simple()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path, target: target.to_owned() })
    }

    /// The file, to write into.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, in one step in the place of what has it.
    pub(super) fn commit(mut self) -> io::Result<()> {
        std::fs::rename(&self.path, &self.target)?;
        self.path = PathBuf::new();
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty()
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), "a temporary file could not be removed, remove it: {error}");
        }
    }
}

/// Whether somebody still waits for the work.
#[derive(Clone, Default)]
pub(super) struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// Fails once nobody waits any more.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for this any more"));
        }
        Ok(())
    }
}

/// Sets the flag of [`Wanted`] when the future that holds it is dropped.
struct Waiter(Wanted);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Runs work on files on a thread that may block. When the future is dropped, the work goes on until it asks
/// [`Wanted::check`], and what it gives is dropped.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Wanted) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let wanted = Wanted::default();
    let _waiter = Waiter(wanted.clone());
    match tokio::task::spawn_blocking(move || work(&wanted)).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(io::Error::other("the executor is shutting down")),
        },
    }
}
