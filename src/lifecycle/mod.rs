//! Builds and starts code inside an image: what a language's `helpers/build.sh` and `helpers/start.sh` do,
//! written once.
//!
//! A language adds hooks, scripts in its `helpers` folder: `before-build.sh`, `compile.sh` and
//! `after-build.sh` run in the build folder, `before-start.sh` in the function's. All files, names, messages
//! and their order are those of the runtime protocol, so that images of other makers and ours can read each
//! other's archives.
//!
//! Blocking: this is the whole program while it runs. Every step is a process group of its own; SIGTERM and
//! SIGINT reach all of it ([`steps`]). User code runs here with the rights it will have anyway, so archives
//! and files it leaves behind are checked where they are read, and nothing is evaluated that is only text.

mod build;
mod cache;
mod metadata;
mod script;
mod start;
mod steps;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use build::build;
pub use start::start;

use crate::archive::ArchiveError;

/// Variables, as the steps get them.
pub type Environment = BTreeMap<String, String>;

/// Archives at the root of a tree, in the order in which readers look for them.
const ARCHIVES: [&str; 4] = ["code.sqfs", "code.tar", "code.tar.gz", "code.gz"];
/// In a folder of code that is not packed.
const EXTRACTED: &str = ".extracted";

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// Run: archive, or tree.
    pub code: PathBuf,
    /// Build: source in.
    pub input: PathBuf,
    /// Build: archive out.
    pub output: PathBuf,
    /// Working copy of a build.
    pub build: PathBuf,
    /// The runtime.
    pub server: PathBuf,
    /// Its hooks.
    pub helpers: PathBuf,
    /// Code at run time.
    pub function: PathBuf,
    /// Timings.
    pub telemetry: PathBuf,
    /// Caches of package managers.
    pub cache: PathBuf,
    /// Those caches, packed.
    pub cache_artifact: PathBuf,
}

impl Folders {
    /// The protocol's folders. `EXECUTOR_LIFECYCLE_ROOT` goes in front of those that no variable gives.
    pub fn new(environment: &Environment) -> Self {
        let root = environment.get("EXECUTOR_LIFECYCLE_ROOT").map(String::as_str).unwrap_or_default();
        let usual = |path: &str| PathBuf::from(format!("{root}{path}"));
        let or = |name: &str, path: &str| set(environment, name).map_or_else(|| usual(path), PathBuf::from);
        Self {
            code: usual("/mnt/code"),
            input: or("OPEN_RUNTIMES_BUILD_INPUT_DIR", "/mnt/code"),
            output: or("OPEN_RUNTIMES_BUILD_OUTPUT_DIR", "/mnt/code"),
            build: usual("/usr/local/build"),
            server: usual("/usr/local/server"),
            helpers: usual("/usr/local/server/helpers"),
            function: usual("/usr/local/server/src/function"),
            telemetry: usual("/mnt/telemetry"),
            cache: or("OPEN_RUNTIMES_BUILD_CACHE_ROOT", "/usr/local/cache/build"),
            cache_artifact: or("OPEN_RUNTIMES_BUILD_CACHE_ARTIFACT", "/cache/stores.sqfs"),
        }
    }
}

/// A variable that is set and not empty.
fn set<'e>(environment: &'e Environment, name: &str) -> Option<&'e str> {
    environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// Where lines go: progress and warnings to `out`, and what the server writes to both.
pub struct Output {
    /// Standard output.
    pub out: Box<dyn Write + Send>,
    /// Standard error.
    pub err: Box<dyn Write + Send>,
}

impl Output {
    /// Progress. A reader that is gone is no reason to fail.
    fn say(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
    }

    fn warn(&mut self, what: &str) {
        self.say(&format!("Warning: {what}"));
    }
}

/// Why a build or start ended.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// Nothing to build.
    #[error("Error: No source code found. Ensure your source isn't empty.")]
    NoSource,
    /// Nothing was built.
    #[error("Error: No build output found. Ensure your output directory isn't empty.")]
    NoOutput,
    /// Nothing to start.
    #[error("Code archive not found.")]
    NoArchive,
    /// A hook or command failed, and has said why.
    #[error("Error: {step} failed with exit code {code}.")]
    Step {
        /// Which.
        step: String,
        /// Its exit code; 128 more than the signal that ended it.
        code: u8,
    },
    /// A variable or file has a value that cannot be used.
    #[error("Error: {0}")]
    Invalid(String),
    /// The code's archive cannot be read or written.
    #[error("Error: {0}")]
    Archive(#[from] ArchiveError),
    /// The disk does not do what it should.
    #[error("Error: {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl LifecycleError {
    /// What the process shall exit with: that of the failed step, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Step { code, .. } => *code,
            _ => 1,
        }
    }
}

/// For `map_err`: names the path.
fn at(path: &Path) -> impl FnOnce(io::Error) -> LifecycleError {
    let path = path.to_owned();
    move |source| LifecycleError::Io { path, source }
}

/// Removes what is in a folder, and makes it if it is not there. The folder itself may be a mount.
fn clear(folder: &Path) -> Result<(), LifecycleError> {
    std::fs::create_dir_all(folder).map_err(at(folder))?;
    for entry in std::fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        remove(&path)?;
    }
    Ok(())
}

/// Removes a file, link or folder, if there is one.
fn remove(path: &Path) -> Result<(), LifecycleError> {
    let result = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}
