//! What a guest shares with this host: one folder below the temporary root, named as its container.
//!
//! The container's processes own what is in it and are not to be trusted: nothing in here is opened by a path that
//! they could have replaced by a link. What is to be kept is first renamed to where they cannot reach it.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::adapter::guest::Mount;
use crate::transport::Profile;

/// The folder of one container.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes it with all its parts, empty. Blocks for a short time.
    pub(super) fn make(root: &Path, name: &str) -> io::Result<Self> {
        let folder = Self(root.join(name));
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        // Of an earlier guest of that name, which is gone.
        match std::fs::remove_dir_all(&folder.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The parent is for us alone; a mount does not ask for the rights of its parents.
        DirBuilder::new().mode(0o700).create(&folder.0)?;
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
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %path.display(), "could not remove a runtime's folder: {error}");
        }
        _ => {}
    }
}

/// Removes folders of guests below `root` that `known` does not know, asked by the guest's name just before each is
/// removed. The root may be shared (it is `/tmp` for some): only names of this host's guests count.
pub(super) async fn remove_strangers(root: &Path, host: &str, known: impl Fn(&str) -> bool) {
    let Ok(mut items) = tokio::fs::read_dir(root).await else { return };
    let prefix = format!("{host}-");
    while let Ok(Some(item)) = items.next_entry().await {
        let name = item.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(&prefix)) else { continue };
        let guest = name.rsplit_once('+').map_or(name, |(guest, _)| guest);
        if !known(name) && !known(guest) {
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
        let folder = Folder::make(root.path(), "g").unwrap();
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
        for name in ["h-a", "h-a+1", "h-ab", "h-b", "h-b+1", "other", "other-a"] {
            Folder::make(root.path(), name).unwrap();
        }
        std::fs::write(root.path().join("file"), "").unwrap();
        remove_strangers(root.path(), "h", |name| name == "h-a").await;
        let mut left: Vec<_> = std::fs::read_dir(root.path())
            .unwrap()
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["file", "h-a", "h-a+1", "other", "other-a"]);
    }
}
