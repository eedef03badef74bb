//! A function: user code in a folder with a `function.toml`, and what that file may say.
//!
//! Plain data and its validation; nothing here runs anything. A folder of functions is read into a
//! list in which each entry is either a [`Function`] or the precise reason why it is not one, so that
//! one mistake never takes the others down.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use crate::runtime::Runtimes;
use crate::state_key::KeyTemplate;
use crate::units;

/// The manifest's file name, the mark of a function's folder.
pub const MANIFEST: &str = "function.toml";

/// First path segments that the executor keeps for itself.
const RESERVED: [&str; 2] = ["_", "v1"];

/// A deployed function: validated, immutable, shared by reference.
#[derive(Debug, Clone)]
pub struct Function {
    /// The name of the folder and the first segment of its URL.
    pub name: Arc<str>,
    /// Absolute path of the folder.
    pub folder: PathBuf,
    /// Which runtime it asks for.
    pub runtime: RuntimeRef,
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

/// The `[state]` table.
#[derive(Debug, Clone)]
pub struct StateSpec {
    /// How a request names its entity.
    pub key: KeyTemplate,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Manifest {
    runtime: Spanned<String>,
    #[serde(default)]
    entrypoint: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    #[serde(default, deserialize_with = "bytes")]
    memory: Option<u64>,
    #[serde(default)]
    cpus: Option<Spanned<f64>>,
    #[serde(default)]
    concurrency: Option<Spanned<u32>>,
    #[serde(default)]
    min_instances: Option<Spanned<u32>>,
    #[serde(default)]
    max_instances: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "duration")]
    keep_warm: Option<Duration>,
    #[serde(default)]
    access: Access,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    state: Option<StateTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct StateTable {
    key: Spanned<String>,
}

fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(d)?;
    let value = units::duration(&text).map_err(de::Error::custom)?;
    if value.is_zero() || value > Duration::from_hours(24 * 365) {
        return Err(de::Error::custom(format!("`{text}` must be longer than nothing and at most 365d")));
    }
    Ok(Some(value))
}

fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(d)?;
    let value = units::bytes(&text).map_err(de::Error::custom)?;
    if value < 16 << 20 {
        return Err(de::Error::custom(format!("`{text}` is too little; an instance needs at least 16MiB")));
    }
    Ok(Some(value))
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

/// Reads one function's folder.
pub fn read_entry(folder: &Path, name: &str, runtimes: &Runtimes) -> Entry {
    let fingerprint = fingerprint(folder);
    let function = match folder.canonicalize() {
        Ok(folder) => read_function(&folder, name, fingerprint, runtimes),
        Err(error) => Err(ManifestError { file: folder.to_owned(), line: None, message: error.to_string() }),
    };
    Entry { name: name.into(), function: function.map(Arc::new).map_err(Arc::new), fingerprint }
}

fn read_function(
    folder: &Path,
    name: &str,
    fingerprint: u64,
    runtimes: &Runtimes,
) -> Result<Function, ManifestError> {
    let file = folder.join(MANIFEST);
    let fail = |line, message: String| Err(ManifestError { file: file.clone(), line, message });
    if let Err(message) = check_name(name) {
        return fail(None, message);
    }
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) => return fail(None, format!("cannot be read: {error}")),
    };
    let line_at = |offset: usize| Some(text[..offset.min(text.len())].matches('\n').count() + 1);
    let manifest: Manifest = match toml::from_str(&text) {
        Ok(manifest) => manifest,
        Err(error) => {
            let line = error.span().and_then(|span| line_at(span.start));
            return fail(line, error.message().replace('\n', " ").trim().to_owned());
        }
    };
    validate(folder, name, fingerprint, manifest, runtimes).or_else(|(offset, message)| {
        let line = offset.and_then(line_at);
        fail(line, message)
    })
}

type Fault = (Option<usize>, String);

fn validate(
    folder: &Path,
    name: &str,
    fingerprint: u64,
    m: Manifest,
    runtimes: &Runtimes,
) -> Result<Function, Fault> {
    let runtime = RuntimeRef::parse(m.runtime.get_ref()).map_err(|e| (Some(m.runtime.span().start), e))?;
    let runtime_at = Some(m.runtime.span().start);
    let known = runtimes.get(&runtime.name).ok_or_else(|| {
        (runtime_at, format!("there is no runtime `{}`; there are: {}", runtime.name, runtimes.names()))
    })?;
    let (entrypoint, entrypoint_at) = match m.entrypoint {
        Some(entrypoint) => (entrypoint.get_ref().clone(), Some(entrypoint.span().start)),
        None => (known.manifest.entrypoint.clone(), runtime_at),
    };
    check_entrypoint(folder, &entrypoint).map_err(|e| (entrypoint_at, e))?;
    let ranged = |value: Option<Spanned<u32>>, what: &str, default: u32, low: u32, high: u32| match value {
        None => Ok(default),
        Some(v) if (low..=high).contains(v.get_ref()) => Ok(*v.get_ref()),
        Some(v) => {
            Err((Some(v.span().start), format!("{what} must be from {low} to {high}, not {}", v.get_ref())))
        }
    };
    let max_at = m.max_instances.as_ref().map(|v| v.span().start);
    let concurrency = ranged(m.concurrency, "concurrency", 16, 1, 1024)?;
    let min_instances = ranged(m.min_instances, "min-instances", 0, 0, 1000)?;
    let max_instances = ranged(m.max_instances, "max-instances", 4.max(min_instances), 1, 1000)?;
    if min_instances > max_instances {
        return Err((
            max_at,
            format!("max-instances ({max_instances}) is below min-instances ({min_instances})"),
        ));
    }
    let cpus = match m.cpus {
        None => 1.0,
        Some(v) if (0.01..=1024.0).contains(v.get_ref()) => *v.get_ref(),
        Some(v) => {
            return Err((
                Some(v.span().start),
                format!("cpus must be from 0.01 to 1024, not {}", v.get_ref()),
            ));
        }
    };
    if let Some(bad) = m.env.iter().find(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0'))
    {
        return Err((
            None,
            format!("[env] has the name {:?}, which cannot be an environment variable", bad.0),
        ));
    }
    let state = match m.state {
        None => None,
        Some(table) => {
            let at = table.key.span().start;
            Some(StateSpec { key: KeyTemplate::parse(table.key.get_ref()).map_err(|e| (Some(at), e))? })
        }
    };
    Ok(Function {
        name: name.into(),
        folder: folder.to_owned(),
        runtime,
        entrypoint,
        timeout: m.timeout.unwrap_or(Duration::from_secs(15)),
        memory: m.memory.unwrap_or(256 << 20),
        cpus,
        concurrency,
        min_instances,
        max_instances,
        keep_warm: m.keep_warm.unwrap_or(Duration::from_mins(5)),
        access: m.access,
        env: m.env,
        state,
        fingerprint,
    })
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

/// The entrypoint must be a file inside the folder, also after links are followed.
pub fn check_entrypoint(folder: &Path, entrypoint: &str) -> Result<(), String> {
    let path = Path::new(entrypoint);
    let inside = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !inside {
        return Err(format!("entrypoint `{entrypoint}` must be a path inside the function's folder"));
    }
    match folder.join(path).canonicalize() {
        Ok(real) if !real.starts_with(folder) => {
            Err(format!("entrypoint `{entrypoint}` is a link that leaves the function's folder"))
        }
        Ok(real) if real.is_file() => Ok(()),
        Ok(_) => Err(format!("entrypoint `{entrypoint}` is not a file")),
        Err(_) => Err(format!("entrypoint `{entrypoint}` does not exist in {}", folder.display())),
    }
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
mod tests {
    use super::*;

    fn read(manifest: &str) -> Result<Function, ManifestError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MANIFEST), manifest).unwrap();
        std::fs::write(dir.path().join("index.js"), "").unwrap();
        let folder = dir.path().canonicalize().unwrap();
        let runtimes =
            Runtimes::open(Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join("runtimes")), &folder).unwrap();
        read_function(&folder, "f", 0, &runtimes)
    }

    #[test]
    fn the_sample_of_the_documentation_reads() {
        let f = read(
            "runtime = \"python-3.13\"\nentrypoint = \"index.js\"\ntimeout = \"15s\"\nmemory = \"256MiB\"\n\
             cpus = 1.0\nconcurrency = 16\nmin-instances = 0\nmax-instances = 4\nkeep-warm = \"5m\"\n\
             access = \"public\"\n[env]\nGREETING = \"hello\"\n[state]\nkey = \"{query.id}\"\n",
        )
        .unwrap();
        assert_eq!(f.runtime.version.as_deref(), Some("3.13"));
        assert_eq!(f.access, Access::Public);
        assert_eq!(f.env["GREETING"], "hello");
    }

    #[test]
    fn each_mistake_names_its_line() {
        for (manifest, line, part) in [
            ("runtime = \"node\"\nspeed = 3\n", 2, "unknown field `speed`"),
            ("runtime = \"node\"\n\ntimeout = \"fast\"\n", 3, "not a duration"),
            ("runtime = \"node\"\nentrypoint = \"gone.js\"\n", 2, "does not exist"),
            ("runtime = \"node\"\nentrypoint = \"../x\"\n", 2, "inside the function's folder"),
            ("runtime = \"no de\"\n", 1, "is not a runtime"),
            ("runtime = \"cobol\"\n", 1, "there is no runtime `cobol`; there are: node, python"),
            ("\nruntime = \"python\"\n", 2, "`main.py` does not exist"),
            ("runtime = \"node\"\nconcurrency = 0\n", 2, "from 1 to 1024"),
            ("runtime = \"node\"\nmemory = \"1MiB\"\n", 2, "at least 16MiB"),
            ("runtime = \"node\"\nmin-instances = 3\nmax-instances = 2\n", 3, "below min-instances"),
            ("runtime = \"node\"\ncpus = 0\n", 2, ""),
            ("runtime = \"node\"\n[state]\nkey = \"{nope}\"\n", 3, "nope"),
            ("runtime = \n", 1, ""),
        ] {
            let error = read(manifest).unwrap_err();
            assert_eq!(error.line, Some(line), "{error}");
            assert!(error.message.contains(part), "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn names() {
        for good in ["a", "hello-world", "v2", "A.b_c", &"x".repeat(64)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "_", "_x", ".x", "v1", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
