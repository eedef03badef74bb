//! What a build says about its result: `.open-runtimes`, the manifest, and the timings of a start.
//!
//! `.open-runtimes` is text. It comes with the code, so it is never evaluated, and only the three keys that
//! the protocol knows have an effect: it cannot set `PATH` or `LD_PRELOAD`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Component, Path};
use std::time::Duration;

use super::{ARCHIVES, Environment, LifecycleError, Output, at, remove, set};
use crate::archive::{Kind, walk};

const NAME: &str = ".open-runtimes";
const ENTRYPOINT: &str = "OPEN_RUNTIMES_ENTRYPOINT";
const CLEANUP: &str = "OPEN_RUNTIMES_CLEANUP";
const COMPRESSION: &str = "OPEN_RUNTIMES_COMPRESSION";
/// Three short lines; the rest is not for us.
const MOST_BYTES: u64 = 64 << 10;
const MOST_FILES: usize = 10_000;

/// Writes `.open-runtimes` into the packaged tree.
pub(super) fn write(tree: &Path, environment: &Environment, compression: &str) -> Result<(), LifecycleError> {
    let path = tree.join(NAME);
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(&path).map_err(at(&path))? {
            if entry.map_err(at(&path))?.file_name() != "dart_defines.json" {
                return Err(LifecycleError::Invalid(format!(
                    "{} is a folder with files in it; rename it, the name is needed for a file",
                    path.display()
                )));
            }
        }
    }
    let mut text = String::new();
    let values = [
        (ENTRYPOINT, set(environment, ENTRYPOINT)),
        (CLEANUP, Some(set(environment, CLEANUP).unwrap_or("none"))),
        (COMPRESSION, Some(compression)),
    ];
    for (key, value) in values {
        let Some(value) = value else { continue };
        if value.contains(['\n', '\r', '\0']) {
            return Err(LifecycleError::Invalid(format!("{key} has a line break; give one line")));
        }
        text.extend([key, "=", value, "\n"]);
    }
    remove(&path)?;
    // Never through a link that the build left here.
    let mut file = File::create_new(&path).map_err(at(&path))?;
    file.write_all(text.as_bytes()).map_err(at(&path))
}

/// Applies the tree's `.open-runtimes`, if it has one, to the environment.
pub(super) fn apply(tree: &Path, environment: &mut Environment) {
    let mut bytes = Vec::new();
    let path = tree.join(NAME);
    // A folder of that name is not ours, a pipe would keep us waiting.
    if !path.is_file()
        || File::open(&path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes)).is_err()
    {
        return;
    }
    for (key, value) in parse(&String::from_utf8_lossy(&bytes)) {
        environment.insert(key, value);
    }
}

fn parse(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, value)| [ENTRYPOINT, CLEANUP, COMPRESSION].contains(key) && !value.contains('\0'))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Writes the manifest if it is wanted. A fault is a warning.
pub(super) fn write_manifest(tree: &Path, environment: &Environment, output: &mut Output) {
    let Some(path) = set(environment, "OPEN_RUNTIMES_BUILD_MANIFEST") else { return };
    let most = number(environment, "OPEN_RUNTIMES_BUILD_MANIFEST_MAX_FILES", MOST_FILES as u64, output);
    if let Err(error) = manifest(tree, Path::new(path), most as usize) {
        output.warn(&format!("the build manifest {path} was not written: {error}"));
    }
}

fn manifest(tree: &Path, path: &Path, most: usize) -> io::Result<()> {
    let listed = |name: &Path| {
        !ARCHIVES.iter().any(|archive| name == Path::new(archive))
            && !name.components().any(|part| part == Component::Normal("node_modules".as_ref()))
    };
    let entries = walk(tree)?;
    let files: Vec<_> = entries
        .iter()
        .filter(|(name, kind)| matches!(kind, Kind::File { .. }) && listed(name))
        .filter_map(|(name, _)| name.to_str())
        .take(most)
        .collect();
    let text = serde_json::to_vec(&serde_json::json!({"version": 1, "files": files}))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let written = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// A number from a variable; what is none is a warning.
pub(super) fn number(environment: &Environment, name: &str, usual: u64, output: &mut Output) -> u64 {
    let Some(text) = set(environment, name) else { return usual };
    text.trim().parse().unwrap_or_else(|_| {
        output.warn(&format!("{name} is no number; {usual} is used"));
        usual
    })
}

/// The timings that a start writes.
const OURS: [&str; 4] = ["symlink", "extract", "prepare", "startup"];

/// Appends one timing. Without a folder for it there are no timings.
pub(super) fn record(telemetry: &Path, what: &str, took: Duration) {
    let file = OpenOptions::new().append(true).create(true).open(telemetry.join("timings.txt"));
    let _ = file.and_then(|mut file| writeln!(file, "{what}={:.3}", took.as_secs_f64()));
}

/// Our timings are those of one start; the host's, written before it, stay.
pub(super) fn forget_timings(telemetry: &Path) {
    let file = telemetry.join("timings.txt");
    let Ok(text) = std::fs::read_to_string(&file) else { return };
    let ours = |line: &&str| line.split_once('=').is_some_and(|(name, _)| OURS.contains(&name));
    let others = text.lines().filter(|line| !ours(line)).fold(String::new(), |all, line| all + line + "\n");
    let _ = std::fs::write(&file, others);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_timings_stay() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("timings.txt");
        forget_timings(folder.path());
        assert!(!file.exists());
        std::fs::write(&file, "local_download=0.1\nstartup=1\nextract=2\nremote_download=0.2").unwrap();
        forget_timings(folder.path());
        record(folder.path(), "extract", Duration::from_millis(5));
        let all = "local_download=0.1\nremote_download=0.2\nextract=0.005\n";
        assert_eq!(std::fs::read_to_string(&file).unwrap(), all);
    }

    #[test]
    fn only_known_keys_and_the_first_equals_sign_count() {
        let text = "OPEN_RUNTIMES_ENTRYPOINT=a=b $(touch x)\nPATH=/evil\n\nOPEN_RUNTIMES_CLEANUP\n\
                    OPEN_RUNTIMES_COMPRESSION=\n OPEN_RUNTIMES_CLEANUP=nft\n";
        let pairs = parse(text);
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(pairs, [(ENTRYPOINT, "a=b $(touch x)"), (COMPRESSION, "")]);
    }
}
