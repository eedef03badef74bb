//! The folder a build works in, and the blocking work on files: copying sources, the certificates in one
//! file, removing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{BuildError, doing};

/// Where a Linux host keeps the certificates that everybody trusts.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// More is no list of certificates.
const MOST_CERTIFICATES: u64 = 16 << 20;
/// Files, folders and links of one function's sources.
const MOST_ENTRIES: usize = 250_000;

/// A folder of one build. Removed when dropped.
pub(super) struct Staging(PathBuf);

impl Staging {
    pub(super) fn new(data: &Path) -> Result<Self, BuildError> {
        let folder = data.join("staging").join(uuid::Uuid::now_v7().simple().to_string());
        std::fs::create_dir_all(&folder).map_err(doing("make", &folder))?;
        Ok(Self(folder))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.0);
        // With its dependencies this may be a hundred thousand files.
        if tokio::runtime::Handle::try_current().is_ok() {
            tokio::task::spawn_blocking(move || remove(&folder));
        } else {
            remove(&folder);
        }
    }
}

/// Removes a file or folder; `false`: it is still there. What a killed build still writes may need a second look.
pub(super) fn remove(path: &Path) -> bool {
    for _ in 0..5 {
        let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        match removed {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
            Err(error) => {
                tracing::debug!(path = %path.display(), "cannot be removed yet: {error}");
                if error.kind() == io::ErrorKind::PermissionDenied {
                    open_folders(path);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    tracing::warn!(path = %path.display(), "could not be removed; the next start tries again");
    false
}

/// Lets us remove what is in folders that say nobody may: Go's cache of modules is made of such.
fn open_folders(path: &Path) {
    // A link leads to what is not ours.
    let mut folders: Vec<_> = Some(path.to_owned()).filter(|path| !path.is_symlink()).into_iter().collect();
    while let Some(folder) = folders.pop() {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let _ = std::fs::set_permissions(&folder, mode);
        let items = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        // The kind of a link is not that of what it leads to.
        let below = items.filter(|item| item.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(below.map(|item| item.path()));
    }
}

/// What a predecessor did not finish.
pub(super) fn remove_left_overs(data: &Path) {
    let items = |folder: &str| std::fs::read_dir(data.join(folder)).into_iter().flatten().flatten();
    let half_done = items("artifacts").filter(|item| item.file_name().as_encoded_bytes().starts_with(b"."));
    for item in items("staging").chain(half_done) {
        remove(&item.path());
    }
}

/// The system's certificates and those of `file` in one file: most tools take one list instead of another.
pub(super) fn bundle(file: &Path, to: &Path) -> Result<PathBuf, BuildError> {
    let size = std::fs::metadata(file).map_err(doing("read the certificates", file))?.len();
    if size > MOST_CERTIFICATES {
        let text =
            format!("{} has {size} bytes, which is too much for a list of certificates", file.display());
        return Err(BuildError::Refused(text));
    }
    let own = std::fs::read_to_string(file).map_err(doing("read the certificates", file))?;
    if !own.contains("-----BEGIN CERTIFICATE-----") {
        let text = format!("{} holds no certificate in PEM form", file.display());
        return Err(BuildError::Refused(text));
    }
    let mut all = SYSTEM.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    if !all.is_empty() && !all.ends_with('\n') {
        all.push('\n');
    }
    all.push_str(&own);
    std::fs::write(to, all).map_err(doing("write", to))?;
    // Whatever our umask: a build in a container may be another user.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(to, mode).map_err(doing("write", to))?;
    Ok(to.to_owned())
}

/// Copies sources. Version control is left out, and with `fresh` what a build command installs. Links stay
/// links.
pub(super) fn copy(from: &Path, to: &Path, fresh: bool, most: u64) -> Result<(), BuildError> {
    let (mut bytes, mut entries) = (0, 0);
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let source = from.join(&folder);
        for item in std::fs::read_dir(&source).map_err(doing("read", &source))? {
            let item = item.map_err(doing("read", &source))?;
            let name = item.file_name();
            if name == ".git" || name == "__pycache__" || (fresh && name == "node_modules") {
                continue;
            }
            let (path, target) = (item.path(), to.join(&folder).join(&name));
            let meta = item.metadata().map_err(doing("read", &path))?;
            entries += 1;
            if meta.is_dir() {
                std::fs::create_dir(&target).map_err(doing("make", &target))?;
                folders.push(folder.join(name));
            } else if meta.is_symlink() {
                let link = std::fs::read_link(&path).map_err(doing("read", &path))?;
                std::os::unix::fs::symlink(link, &target).map_err(doing("make", &target))?;
            } else if meta.is_file() {
                bytes += meta.len();
                if bytes <= most {
                    std::fs::copy(&path, &target).map_err(doing("copy", &path))?;
                }
            }
            if bytes > most || entries > MOST_ENTRIES {
                let text = format!("the sources are larger than {most} bytes or {MOST_ENTRIES} files");
                return Err(BuildError::Refused(text));
            }
        }
    }
    Ok(())
}

/// Bytes of all files below a folder.
pub(super) fn size(folder: &Path) -> u64 {
    let mut total = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for item in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match item.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(item.path()),
                Ok(meta) => total += meta.len(),
                Err(_) => {}
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_copied_up_to_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for folder in ["from/.git", "from/node_modules/x", "from/sub", "to"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for file in [".git/config", "node_modules/x/a", "sub/a", ".npmrc"] {
            std::fs::write(from.join(file), "12345").unwrap();
        }
        std::os::unix::fs::symlink("sub/a", from.join("link")).unwrap();
        copy(&from, &to, true, 10).unwrap();
        assert_eq!(size(&to), 10 + 5, "a link has the size of its target's name");
        assert!(to.join(".npmrc").is_file() && to.join("link").is_symlink() && !to.join(".git").exists());
        let again = dir.path().join("again");
        std::fs::create_dir(&again).unwrap();
        let error = copy(&from, &again, true, 9).unwrap_err();
        assert!(matches!(&error, BuildError::Refused(text) if text.contains("9 bytes")), "{error}");
    }

    #[test]
    fn folders_that_nobody_may_change_are_removed_and_links_out_of_them_are_left_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let dir = tempfile::tempdir().unwrap();
        let (folder, other) = (dir.path().join("a"), dir.path().join("other"));
        std::fs::create_dir_all(folder.join("b/c")).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&other, folder.join("b/link")).unwrap();
        for (path, mode) in [("a/b/c", 0o555), ("a/b", 0o555), ("a", 0o555), ("other", 0o755)] {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(dir.path().join(path), mode).unwrap();
        }
        // Root may do everything, so what is done for others is looked at.
        open_folders(&folder.join("b/link"));
        open_folders(&folder);
        assert_eq!([mode(&folder), mode(&folder.join("b")), mode(&folder.join("b/c"))], [0o700; 3]);
        assert_eq!(mode(&other), 0o755);
        assert!(remove(&folder) && !folder.exists() && other.exists());
        assert!(remove(&folder), "what is not there is removed");
    }

    #[test]
    fn certificates_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let (file, to) = (dir.path().join("ca.pem"), dir.path().join("all.pem"));
        std::fs::write(&file, "nothing").unwrap();
        assert!(bundle(&file, &to).unwrap_err().to_string().contains("no certificate"));
        assert!(bundle(&dir.path().join("gone"), &to).is_err());
        let text = "-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n";
        std::fs::write(&file, text).unwrap();
        bundle(&file, &to).unwrap();
        assert!(std::fs::read_to_string(&to).unwrap().ends_with(text));
    }
}
