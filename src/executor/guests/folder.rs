//! What a guest shares with this host: one folder below the temporary root, named as its container.
//!
//! The container's processes own what is in it and are not to be trusted: nothing in here is opened by a path that
//! they could have replaced by a link. What is to be kept is first renamed to where they cannot reach it.
//!
//! The root may be shared (it is `/tmp` for some), also by executors of which one's name begins with another's. So each
//! folder has a marker with the name of its host, and nothing without one is ever taken for a leftover.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::adapter::guest::Mount;
use crate::transport::Profile;

/// The file with the name of the executor's host, where no container sees it.
const MARKER: &str = "host";
/// Bytes of it that are read: more than any host's name has.
const LONGEST: u64 = 4096;

/// The folder of one container.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes it with all its parts, empty. Blocks for a short time.
    pub(super) fn make(root: &Path, host: &str, name: &str) -> io::Result<Self> {
        let folder = Self(root.join(name));
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        if owner(&folder.0).is_some_and(|owner| owner != host.as_bytes()) {
            let text = format!("{} is another executor's", folder.0.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        // Of an earlier guest of that name, which is gone.
        remove_blocking(&folder.0)?;
        // The parent is for us alone; a mount does not ask for the rights of its parents.
        DirBuilder::new().mode(0o700).create(&folder.0)?;
        std::fs::write(folder.0.join(MARKER), host)?;
        for part in [folder.source(), folder.code(), folder.logs(), folder.logging(), folder.cache()] {
            std::fs::create_dir(&part)?;
            std::fs::set_permissions(&part, Permissions::from_mode(0o1777))?;
        }
        DirBuilder::new().mode(0o700).create(folder.kept())?;
        Ok(folder)
    }

    /// `/tmp`
    pub(super) fn source(&self) -> PathBuf {
        self.0.join("src")
    }

    /// `/mnt/code`
    pub(super) fn code(&self) -> PathBuf {
        self.0.join("builds")
    }

    /// `/mnt/logs`
    pub(super) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    fn logging(&self) -> PathBuf {
        self.0.join("logging")
    }

    /// `/cache`
    pub(super) fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    fn kept(&self) -> PathBuf {
        self.0.join("kept")
    }

    ///
    pub(super) fn mounts(&self, profile: Profile, cache: bool) -> Vec<Mount> {
        let mount = |host, inside: &str| Mount { host, inside: inside.to_owned(), read_only: false };
        let code = if profile == Profile::V2 { "/usr/code" } else { "/mnt/code" };
        let mut mounts = vec![mount(self.source(), "/tmp"), mount(self.code(), code)];
        if matches!(profile, Profile::V4 | Profile::V5) {
            mounts.extend([mount(self.logs(), "/mnt/logs"), mount(self.logging(), "/tmp/logging")]);
        }
        if cache {
            mounts.push(mount(self.cache(), "/cache"));
        }
        mounts
    }

    /// Runs `work` on a file that the guest made, out of its reach, and puts it back. None: it is not there, or it is
    /// not a plain file.
    pub(super) async fn with_file<T>(&self, file: &Path, work: impl AsyncFnOnce(&Path) -> T) -> Option<T> {
        let kept = self.kept().join(file.file_name()?);
        tokio::fs::rename(file, &kept).await.ok()?;
        let result = match tokio::fs::symlink_metadata(&kept).await {
            // A second name would let the guest go on writing while we read.
            Ok(meta) if meta.is_file() && meta.nlink() == 1 => Some(work(&kept).await),
            _ => None,
        };
        let _ = tokio::fs::rename(&kept, file).await;
        result
    }

    /// Removes all of it. What a container's root made needs root here, too; that is said in the log.
    pub(super) async fn remove(&self) {
        remove(&self.0).await;
    }
}

async fn remove(path: &Path) {
    let folder = path.to_owned();
    let removed = tokio::task::spawn_blocking(move || remove_blocking(&folder)).await;
    if let Err(error) = removed.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
        tracing::warn!(folder = %path.display(), "could not remove a runtime's folder: {error}");
    }
}

/// The marker goes last: what is left half way is found again. One that is not there is removed.
fn remove_blocking(path: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    if let Ok(folder) = open(path, OFlags::DIRECTORY) {
        // Not by the path, which strangers could have replaced by a link where the root is shared.
        for part in std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))? {
            let part = part?;
            if part.file_type()?.is_dir() {
                gone(std::fs::remove_dir_all(part.path()))?;
            }
        }
    }
    gone(std::fs::remove_dir_all(path))
}

/// Opens what is there itself, no link and nothing that waits for a writer.
fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// The name of the host whose folder this is; none: it has no marker, or the executor ended while it made it.
fn owner(folder: &Path) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    open(&folder.join(MARKER), OFlags::empty()).ok()?.take(LONGEST).read_to_end(&mut name).ok()?;
    Some(name).filter(|name| !name.is_empty())
}

/// Removes folders of this host's guests below `root` that `known` does not know, asked by the guest's name just before
/// each is removed.
pub(super) async fn remove_strangers(root: &Path, host: &str, known: impl Fn(&str) -> bool) {
    let Ok(mut items) = tokio::fs::read_dir(root).await else { return };
    let prefix = format!("{host}-");
    while let Ok(Some(item)) = items.next_entry().await {
        let name = item.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(&prefix)) else { continue };
        let guest = name.rsplit_once('+').map_or(name, |(guest, _)| guest);
        let (path, host) = (item.path(), host.as_bytes().to_vec());
        let ours = tokio::task::spawn_blocking(move || owner(&path) == Some(host)).await;
        if ours.unwrap_or(false) && !known(name) && !known(guest) {
            remove(&item.path()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_plain_files_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::make(root.path(), "h", "g").unwrap();
        let file = folder.code().join("code.tar.gz");
        let read = async |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!(folder.with_file(&file, read).await, None);
        std::fs::write(&file, "x").unwrap();
        assert_eq!(folder.with_file(&file, read).await.as_deref(), Some("x"));
        assert!(file.exists(), "it is put back");
        std::fs::hard_link(&file, folder.code().join("other")).unwrap();
        assert_eq!(folder.with_file(&file, read).await, None, "the guest could still write to it");
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &file).unwrap();
        assert_eq!(folder.with_file(&file, read).await, None);
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert_eq!(folder.with_file(&file, read).await, None);
    }

    #[tokio::test]
    async fn strangers_go_and_copies_stay() {
        let root = tempfile::tempdir().unwrap();
        for name in ["h-a", "h-a+1", "h-ab", "h-b", "h-b+1"] {
            Folder::make(root.path(), "h", name).unwrap();
        }
        // Of other executors, one of which has a name that begins as ours.
        for (host, name) in [("other", "other-a"), ("h-2", "h-2-b"), ("h-2", "h-2-b+1"), ("H", "h-c")] {
            Folder::make(root.path(), host, name).unwrap();
        }
        std::fs::write(root.path().join("file"), "").unwrap();
        // Without a marker of a plain file: nobody knows whose.
        for name in ["h-none", "h-empty", "h-folder", "h-link", "h-pipe"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let marker = |name: &str| root.path().join(name).join(MARKER);
        std::fs::write(marker("h-empty"), "").unwrap();
        std::fs::create_dir(marker("h-folder")).unwrap();
        std::os::unix::fs::symlink(marker("h-a"), marker("h-link")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(marker("h-pipe")).status().unwrap();
        assert!(made.success());
        remove_strangers(root.path(), "h", |name| name == "h-a").await;
        let mut left: Vec<_> = std::fs::read_dir(root.path())
            .unwrap()
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let unknown = ["h-empty", "h-folder", "h-link", "h-none", "h-pipe"];
        let mut wanted =
            [&["file", "h-2-b", "h-2-b+1", "h-a", "h-a+1", "h-c", "other-a"][..], &unknown].concat();
        wanted.sort_unstable();
        assert_eq!(left, wanted);
    }

    #[test]
    fn only_folders_of_the_same_host_are_made_anew() {
        let root = tempfile::tempdir().unwrap();
        let make = |host, name| Folder::make(root.path(), host, name);
        let first = make("h", "h-2-a").unwrap();
        std::fs::write(first.code().join("x"), "").unwrap();
        // Its guest would be called the same.
        let error = make("h-2", "h-2-a").unwrap_err();
        assert!(error.to_string().contains("is another executor's"), "{error}");
        assert!(first.code().join("x").exists());
        let again = make("h", "h-2-a").unwrap();
        assert!(!again.code().join("x").exists());
        assert_eq!(owner(&again.0).unwrap(), b"h");
        // An executor that ended in the middle of it.
        std::fs::write(again.0.join(MARKER), "").unwrap();
        make("h-2", "h-2-a").unwrap();
    }

    #[test]
    fn a_link_is_removed_and_not_what_it_leads_to() {
        let root = tempfile::tempdir().unwrap();
        let precious = Folder::make(root.path(), "h", "h-a").unwrap();
        let link = root.path().join("h-b");
        std::os::unix::fs::symlink(&precious.0, &link).unwrap();
        remove_blocking(&link).unwrap();
        assert!(!link.is_symlink() && precious.code().exists());
        remove_blocking(&link).unwrap();
        remove_blocking(&precious.0).unwrap();
        assert!(!precious.0.exists());
    }
}
