//! The dependency cache: caches of package managers, kept from build to build as one squashfs.
//!
//! Opt-in by mounting: without the artifact's folder nothing happens. Every fault is a warning, and an older
//! artifact is kept; builds at the same time each write a file of their own, and the last one to finish wins.

use std::time::{Duration, Instant};

use super::metadata::number;
use super::{Environment, Folders, Output};
use crate::archive::{Compression, Limits, PackOptions, pack, unpack};

const SAVE_SECONDS: u64 = 300;
const MOST_BYTES: u64 = 2 << 30;

/// Which variable sends whose cache below the root.
const CACHES: [(&str, &str); 6] = [
    ("npm_config_cache", "npm"),
    ("YARN_CACHE_FOLDER", "yarn"),
    ("npm_config_store_dir", "pnpm"),
    ("BUN_INSTALL_CACHE_DIR", "bun"),
    ("PIP_CACHE_DIR", "pip"),
    ("XDG_CACHE_HOME", "xdg"),
];

fn is_enabled(folders: &Folders) -> bool {
    folders.cache_artifact.parent().is_some_and(std::path::Path::is_dir)
}

/// Unpacks the cache and points package managers to it.
pub(super) fn restore(folders: &Folders, environment: &mut Environment, output: &mut Output) {
    if !is_enabled(folders) {
        return;
    }
    let root = &folders.cache;
    if let Err(error) = std::fs::create_dir_all(root) {
        output.warn(&format!("the dependency cache {} cannot be used: {error}", root.display()));
        return;
    }
    for (variable, name) in CACHES {
        environment.insert(variable.into(), root.join(name).to_string_lossy().into_owned());
    }
    // What is there already is newer.
    let is_empty = std::fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty && folders.cache_artifact.is_file() {
        // Caches hold what compresses well, and come from an earlier build, not from a stranger.
        let limits = Limits { entries: 1_000_000, bytes: 8 << 30, ratio: 1000, ..Limits::default() };
        if let Err(error) = unpack(&folders.cache_artifact, root, &limits) {
            output.warn(&format!("the dependency cache was not restored: {error}"));
        }
    }
}

/// Packs the cache for the next build.
pub(super) fn save(folders: &Folders, environment: &Environment, output: &mut Output) {
    let is_empty = std::fs::read_dir(&folders.cache).map_or(true, |mut entries| entries.next().is_none());
    if !is_enabled(folders) || is_empty {
        return;
    }
    let seconds = number(environment, "OPEN_RUNTIMES_BUILD_CACHE_SAVE_TIMEOUT_SECONDS", SAVE_SECONDS, output);
    let most_bytes = number(environment, "OPEN_RUNTIMES_BUILD_CACHE_MAX_SIZE_BYTES", MOST_BYTES, output);
    let until = Instant::now().checked_add(Duration::from_secs(seconds));
    let options = PackOptions { exclude: &[], most_bytes, until };
    if let Err(error) = pack(&folders.cache, &folders.cache_artifact, Compression::Squashfs, &options) {
        output.warn(&format!("the dependency cache was not saved: {error}"));
    }
}
