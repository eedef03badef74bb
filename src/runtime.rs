//! A runtime: one language environment in `runtimes/<language>/`, described by its `runtime.toml`.
//!
//! The tree is embedded in the binary, so that the single binary works anywhere. It is written once per content
//! hash below the data folder, because interpreters and image builds want real files; the hash in the path makes
//! an upgrade write a new tree instead of changing one under running instances.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use include_dir::{Dir, DirEntry, include_dir};
use serde::Deserialize;
use sha2::{Digest, Sha256};

static EMBEDDED: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/runtimes");

/// One language environment, ready to be used by an adapter.
#[derive(Debug)]
pub struct Runtime {
    /// Name of its folder.
    pub name: String,
    /// Absolute path of its folder on disk.
    pub folder: PathBuf,
    /// What its `runtime.toml` says.
    pub manifest: RuntimeManifest,
    /// Hex hash over all its files; image tags carry it.
    pub hash: String,
}

/// The contents of `runtime.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RuntimeManifest {
    /// There is no language and no worker: the function's files are served as they are. Nothing else is set then.
    #[serde(default)]
    pub site: bool,
    /// Entrypoint of functions that name none.
    #[serde(default)]
    pub entrypoint: String,
    /// The worker program, relative to the runtime's folder.
    #[serde(default)]
    pub worker: String,
    /// Command line; `{program}`, `{worker}` and `{memory-mib}` are replaced.
    #[serde(default)]
    pub command: Vec<String>,
    /// How a process finds the language on this host.
    #[serde(default)]
    pub process: ProcessPart,
    /// What the image holds.
    #[serde(default)]
    pub docker: DockerPart,
}

/// The `[process]` table of `runtime.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProcessPart {
    /// Names looked up in `PATH`, in this order; `{version}` is the version a function asks for.
    pub program: Vec<String>,
    /// Arguments that make the program print its real path and version, separated by a space.
    pub locate: Vec<String>,
    /// The oldest version that works.
    pub minimum: String,
    /// What a person does to get it.
    pub install: String,
}

/// The `[docker]` table of `runtime.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DockerPart {
    /// The language's program inside the image.
    pub program: String,
    /// The version the image holds.
    pub version: String,
    /// Debian packages that build commands need on top, and that serving does not.
    #[serde(default)]
    pub build_packages: Vec<String>,
}

impl RuntimeManifest {
    /// What is missing for a worker to be started; none: nothing, or it needs none.
    fn missing(&self) -> Option<&'static str> {
        let needed = [
            (self.entrypoint.is_empty(), "entrypoint"),
            (self.worker.is_empty(), "worker"),
            (self.command.is_empty(), "command"),
            (self.process.program.is_empty(), "[process]"),
            (self.docker.program.is_empty(), "[docker]"),
        ];
        needed.into_iter().find(|(missing, _)| *missing && !self.site).map(|(_, name)| name)
    }

    /// The worker's command line for a program, a worker path and a memory limit in bytes.
    pub fn command_line(&self, program: &str, worker: &str, memory: u64) -> Vec<String> {
        let memory = (memory >> 20).to_string();
        let fill = |part: &String| {
            part.replace("{program}", program).replace("{worker}", worker).replace("{memory-mib}", &memory)
        };
        self.command.iter().map(fill).collect()
    }
}

/// All runtimes this executor knows.
#[derive(Debug)]
pub struct Runtimes(BTreeMap<String, Arc<Runtime>>);

/// Why the runtimes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A `runtime.toml` is wrong.
    #[error("{path}: {message}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl Runtimes {
    /// Reads `folder`, or writes the embedded tree below `data` and reads that.
    pub fn open(folder: Option<&Path>, data: &Path) -> Result<Self, RuntimeError> {
        let root = match folder {
            Some(folder) => folder.to_owned(),
            None => materialize(data)?,
        };
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| RuntimeError::Io { path, source }
        };
        let root = root.canonicalize().map_err(at(&root))?;
        let mut all = BTreeMap::new();
        for item in std::fs::read_dir(&root).map_err(at(&root))? {
            let folder = item.map_err(at(&root))?.path();
            let path = folder.join("runtime.toml");
            let Some(name) = folder.file_name().and_then(|n| n.to_str()).filter(|_| path.is_file()) else {
                continue;
            };
            let text = std::fs::read_to_string(&path).map_err(at(&path))?;
            let wrong = |message: String| RuntimeError::Manifest { path: path.clone(), message };
            let manifest: RuntimeManifest =
                toml::from_str(&text).map_err(|e| wrong(e.to_string().trim().to_owned()))?;
            if let Some(missing) = manifest.missing() {
                return Err(wrong(format!("{missing} is missing, and it is not a site")));
            }
            let hash = hash_folder(&folder).map_err(at(&folder))?;
            let runtime = Runtime { name: name.to_owned(), folder: folder.clone(), manifest, hash };
            all.insert(name.to_owned(), Arc::new(runtime));
        }
        Ok(Self(all))
    }

    /// The runtime of that name.
    pub fn get(&self, name: &str) -> Option<Arc<Runtime>> {
        self.0.get(name).cloned()
    }

    /// All of them, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Runtime>> {
        self.0.values()
    }

    /// Those with a worker, in order of name.
    pub fn with_workers(&self) -> impl Iterator<Item = &Arc<Runtime>> {
        self.iter().filter(|runtime| !runtime.manifest.site)
    }

    /// Their names, for messages.
    pub fn names(&self) -> String {
        self.0.keys().cloned().collect::<Vec<_>>().join(", ")
    }
}

/// Files of a runtime relative to its folder, in a fixed order.
pub fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for item in std::fs::read_dir(&next)? {
            let item = item?;
            if item.file_name() == "__pycache__" {
                continue;
            }
            if item.file_type()?.is_dir() {
                folders.push(item.path());
            } else if let Ok(relative) = item.path().strip_prefix(folder) {
                found.push(relative.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn hash_folder(folder: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    for file in files(folder)? {
        feed(&mut hash, &file, &std::fs::read(folder.join(&file))?);
    }
    Ok(hex(&hash.finalize()[..8]))
}

fn feed(hash: &mut Sha256, path: &Path, content: &[u8]) {
    let path = path.as_os_str().as_encoded_bytes();
    hash.update((path.len() as u64).to_be_bytes());
    hash.update(path);
    hash.update((content.len() as u64).to_be_bytes());
    hash.update(content);
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn embedded_files(dir: &'static Dir<'static>, out: &mut Vec<&'static include_dir::File<'static>>) {
    for entry in dir.entries() {
        match entry {
            DirEntry::Dir(dir) => embedded_files(dir, out),
            // A worker that was run from the source tree leaves these behind.
            DirEntry::File(file) if file.path().extension().is_some_and(|kind| kind == "pyc") => {}
            DirEntry::File(file) => out.push(file),
        }
    }
}

/// Writes the embedded tree to `data/runtimes/<hash>` unless it is there. Renaming makes it all or nothing.
fn materialize(data: &Path) -> Result<PathBuf, RuntimeError> {
    let mut list = Vec::new();
    embedded_files(&EMBEDDED, &mut list);
    let mut hash = Sha256::new();
    for file in &list {
        feed(&mut hash, file.path(), file.contents());
    }
    let root = data.join("runtimes");
    let target = root.join(hex(&hash.finalize()[..8]));
    if target.is_dir() {
        return Ok(target);
    }
    let temporary = root.join(format!(".{}.tmp", uuid::Uuid::new_v4().simple()));
    let write = || -> io::Result<()> {
        for file in &list {
            let path = temporary.join(file.path());
            std::fs::create_dir_all(path.parent().unwrap_or(&temporary))?;
            std::fs::write(path, file.contents())?;
        }
        match std::fs::rename(&temporary, &target) {
            // Another executor on this data folder was quicker; its tree has the same content.
            Err(_) if target.is_dir() => std::fs::remove_dir_all(&temporary),
            other => other,
        }
    };
    write().map_err(|source| RuntimeError::Io { path: target.clone(), source })?;
    Ok(target)
}
