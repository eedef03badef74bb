//! A function: user code in a folder with a `function.toml`, and what that file may say.
//!
//! Plain data and its validation; nothing here runs anything. A folder of functions is read into a
//! list in which each entry is either a [`Function`] or the precise reason why it is not one, so that
//! one mistake never takes the others down.

mod manifest;
mod state_spec;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::runtime::Runtimes;

pub use self::state_spec::{CRDT_TYPES, Model, OnConflict, StateSpec, is_store_name};

/// The manifest's file name, the mark of a function's folder.
pub const MANIFEST: &str = "function.toml";

/// The limit of a function that has none.
pub const NO_LIMIT: Duration = Duration::from_hours(24 * 365);

/// First path segments that the executor keeps for itself.
const RESERVED: [&str; 2] = ["_", "v1"];

/// A deployed function: validated, immutable, shared by reference.
#[derive(Debug, Clone)]
pub struct Function {
    /// The name of the folder and the first segment of its URL.
    pub name: Arc<str>,
    /// Absolute path of the folder that instances load: its source, or what was built from it.
    pub folder: PathBuf,
    /// Absolute path of the folder with its manifest.
    pub source: PathBuf,
    /// How `folder` is made from `source`; none: it is the same.
    pub build: Option<BuildSpec>,
    /// Which runtime it asks for; `image` for a foreign image.
    pub runtime: RuntimeRef,
    /// What serves it.
    pub served_by: ServedBy,
    /// The file with the handler, relative to the folder.
    pub entrypoint: String,
    /// How long one execution may take until it must have answered.
    pub timeout: Duration,
    /// Memory of one instance, bytes.
    pub memory: u64,
    /// Cores one instance may use.
    pub cpus: f64,
    /// Executions at once in one instance.
    pub concurrency: u32,
    /// Instances kept even when idle.
    pub min_instances: u32,
    /// Instances at the most.
    pub max_instances: u32,
    /// Idle time after which an instance is stopped.
    pub keep_warm: Duration,
    /// Who may call it.
    pub access: Access,
    /// Environment of the function.
    pub env: BTreeMap<String, String>,
    /// Where its state lives; none: stateless.
    pub state: Option<StateSpec>,
    /// Changes whenever a file in the folder does (names, sizes, modification times).
    pub fingerprint: u64,
}

/// What serves a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServedBy {
    /// A worker of its runtime, over the link.
    Worker,
    /// A container of a foreign image, over HTTP.
    Image(ImageSpec),
    /// Nobody: its files are the answer.
    Files,
}

/// A foreign image and how to talk to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSpec {
    /// Name of the image.
    pub name: String,
    /// Where it listens; it is told in `PORT`.
    pub port: u16,
    /// How it wants to be talked to.
    pub profile: Profile,
    /// Shell line of its main process; none: the image's own command.
    pub command: Option<String>,
}

/// The protocol of a foreign image: a version of the Open Runtimes contract, or plain HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// `POST /` with a JSON envelope.
    V2,
    /// Plain HTTP with control headers; logs in response headers.
    V3,
    /// As v5.
    V4,
    /// Plain HTTP with control headers; logs in files.
    V5,
    /// Plain HTTP without any control headers: an image that just listens on a port.
    #[default]
    Port,
}

/// Who may call a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Callers who send the secret.
    #[default]
    Secret,
    /// Everybody.
    Public,
}

/// `python` or `python-3.13`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RuntimeRef {
    /// Folder in `runtimes/`.
    pub name: String,
    /// Version asked for, if any.
    pub version: Option<String>,
}

impl RuntimeRef {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, version) = match text.split_once('-') {
            Some((name, version)) => (name, Some(version.to_owned())),
            None => (text, None),
        };
        let sane = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
        if sane(name) && version.as_deref().is_none_or(sane) {
            Ok(Self { name: name.to_owned(), version })
        } else {
            Err(format!("`{text}` is not a runtime; write for example \"node\" or \"python-3.13\""))
        }
    }
}

impl fmt::Display for RuntimeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}-{version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The `[build]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildSpec {
    /// A line for `sh -c`, in a copy of the source.
    pub command: String,
    /// The folder with the result, relative to the source; none: all of it.
    pub output: Option<String>,
    /// How long it may take; none: as long as this executor allows.
    pub timeout: Option<Duration>,
    /// Whether downloads of package managers are kept for the next build.
    pub cache: bool,
}

impl Function {
    /// The same function, with what was built from it in `folder`.
    ///
    /// # Errors
    /// The entrypoint, or the folder of a site, is not there.
    pub fn built(&self, folder: PathBuf) -> Result<Self, ManifestError> {
        let built = Self { folder, ..self.clone() };
        let checked = match built.served_by {
            ServedBy::Files => check_root(&built.folder, &built.entrypoint),
            ServedBy::Image(_) if built.entrypoint.is_empty() => Ok(()),
            ServedBy::Worker | ServedBy::Image(_) => check_entrypoint(&built.folder, &built.entrypoint),
        };
        match checked {
            Ok(()) => Ok(built),
            Err(why) => {
                let message = format!(
                    "after its build, {}",
                    why.replace(&*built.folder.to_string_lossy(), "its result")
                );
                Err(ManifestError { file: self.source.join(MANIFEST), line: None, message })
            }
        }
    }
}

/// Why a folder is not a function. Prints as `file:line: message`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}{}: {message}", .file.display(), .line.map(|l| format!(":{l}")).unwrap_or_default())]
pub struct ManifestError {
    /// The manifest.
    pub file: PathBuf,
    /// The line at fault, where there is one.
    pub line: Option<usize>,
    /// What is wrong and what would be right.
    pub message: String,
}

/// One folder below the functions folder.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The folder's name.
    pub name: Arc<str>,
    /// The function, or why it is none.
    pub function: Result<Arc<Function>, Arc<ManifestError>>,
    /// As [`Function::fingerprint`], also for broken ones.
    pub fingerprint: u64,
}

/// Reads every function below `root`, in order of name. Hidden folders and plain files are no functions.
///
/// # Errors
/// Only when `root` itself cannot be read; what is wrong with one function is in its entry.
pub fn read_folder(root: &Path, runtimes: &Runtimes) -> Result<Vec<Entry>, std::io::Error> {
    let mut entries = Vec::new();
    for item in std::fs::read_dir(root)? {
        let item = item?;
        let Ok(name) = item.file_name().into_string() else { continue };
        let path = item.path();
        if name.starts_with('.') || !path.is_dir() {
            continue;
        }
        if !path.join(MANIFEST).exists() {
            tracing::debug!(folder = %path.display(), "no {MANIFEST}, so not a function");
            continue;
        }
        entries.push(read_entry(&path, &name, runtimes));
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// What is known of a function that is served alone besides its folder. Without a manifest it is all there is.
#[derive(Debug, Clone, Default)]
pub struct Alone {
    /// Its runtime, when there is no manifest.
    pub runtime: Option<String>,
    /// Its entrypoint; wins over the manifest's.
    pub entrypoint: Option<String>,
    /// Environment on top of the manifest's.
    pub env: BTreeMap<String, String>,
    /// Instances at the most, when there is no manifest.
    pub instances: u32,
    /// Memory of an instance, bytes, when there is no manifest; none: as much as the host has.
    pub memory: Option<u64>,
}

impl Alone {
    /// Stands in for the manifest.
    fn manifest(&self, folder: &Path) -> Result<String, String> {
        let Some(runtime) = &self.runtime else {
            return Err(format!(
                "there is no {MANIFEST} in {}, so the language must be named: --runtime node",
                folder.display()
            ));
        };
        let runtime = toml::Value::from(runtime.as_str());
        let (memory, instances) =
            (self.memory.unwrap_or(1 << 40).max(16 << 20), self.instances.clamp(1, 1000));
        Ok(format!(
            "runtime = {runtime}\nmemory = \"{memory}B\"\nmax-instances = {instances}\nconcurrency = 64\n"
        ))
    }
}

/// Reads one function's folder.
pub fn read_entry(folder: &Path, name: &str, runtimes: &Runtimes) -> Entry {
    read_one(folder, name, runtimes, None)
}

/// Reads the folder of a function that is served alone: what hosts of its image say of it counts, an entrypoint that
/// is not there is the worker's to report, and only a manifest that says so limits its time.
pub fn read_alone(folder: &Path, name: &str, runtimes: &Runtimes, alone: &Alone) -> Entry {
    read_one(folder, name, runtimes, Some(alone))
}

fn read_one(folder: &Path, name: &str, runtimes: &Runtimes, alone: Option<&Alone>) -> Entry {
    let fingerprint = fingerprint(folder);
    let function = match folder.canonicalize() {
        Ok(folder) => manifest::read_function(&folder, name, fingerprint, runtimes, alone),
        Err(error) => Err(ManifestError { file: folder.to_owned(), line: None, message: error.to_string() }),
    };
    Entry { name: name.into(), function: function.map(Arc::new).map_err(Arc::new), fingerprint }
}

/// Whether `name` can be a function: it must be a URL segment that needs no escapes and that we do not keep.
pub fn check_name(name: &str) -> Result<(), String> {
    let sane = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        || !name.bytes().all(sane)
        || name.len() > 64
    {
        return Err(format!(
            "`{name}` cannot be a function's name: use at most 64 letters, digits, `-`, `_`, `.`, a letter or digit first"
        ));
    }
    if RESERVED.contains(&name) {
        return Err(format!("`{name}` is kept for the executor's own API; rename the folder"));
    }
    Ok(())
}

fn check_inside(entrypoint: &str) -> Result<(), String> {
    let mut components = Path::new(entrypoint).components();
    if components.all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Ok(());
    }
    Err(format!("entrypoint `{entrypoint}` must be a path inside the function's folder"))
}

/// The entrypoint must be a file inside the folder, also after links are followed.
pub fn check_entrypoint(folder: &Path, entrypoint: &str) -> Result<(), String> {
    check_inside(entrypoint)?;
    match folder.join(entrypoint).canonicalize() {
        Ok(real) if !real.starts_with(folder) => {
            Err(format!("entrypoint `{entrypoint}` is a link that leaves the function's folder"))
        }
        Ok(real) if real.is_file() => Ok(()),
        Ok(_) => Err(format!("entrypoint `{entrypoint}` is not a file")),
        Err(_) => Err(format!("entrypoint `{entrypoint}` does not exist in {}", folder.display())),
    }
}

fn check_root(folder: &Path, root: &str) -> Result<(), String> {
    check_inside(root)?;
    if folder.join(root).is_dir() {
        return Ok(());
    }
    Err(format!("the folder to serve, `{root}`, does not exist in {}", folder.display()))
}

/// Bounds of the walk below; a folder with more is watched only as far as this.
const FINGERPRINT_FILES: usize = 10_000;

fn fingerprint(folder: &Path) -> u64 {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let Ok(items) = std::fs::read_dir(next) else { continue };
        for item in items.flatten() {
            let Ok(meta) = item.metadata() else { continue };
            let name = item.file_name();
            // Caches that running the function writes must not look like an edit.
            if name == "__pycache__" || name == "node_modules" || name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if meta.is_dir() {
                folders.push(item.path());
            } else {
                files.push((item.path(), meta.len(), meta.modified().ok()));
            }
        }
        if files.len() > FINGERPRINT_FILES {
            break;
        }
    }
    files.sort();
    let mut hasher = std::hash::DefaultHasher::new();
    files.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
