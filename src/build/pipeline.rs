//! One build, step by step.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::records::Build;
use super::staging::{self, Staging};
use super::versions::{Version, Versions};
use super::{BuildError, Built, CPUS, Inner, MEMORY, MOST_CACHE, Source, doing, log};
use crate::adapter::job::Job;
use crate::archive::{self, ArchiveError, Compression, Limits, PackOptions};
use crate::function::{self, BuildSpec, Function, MANIFEST, ManifestError};
use crate::runtime::Runtime;

/// Pieces of output on their way.
const PIECES: usize = 64;
/// Left-out links named in the log.
const SHOWN: usize = 5;

/// Blocking work on its own thread. It goes on when this is dropped, so it owns what it needs.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(BuildError::Io {
            doing: "a step of the build ended early".to_owned(),
            source: std::io::Error::other(error.to_string()),
        }),
    }
}

pub(super) async fn run(inner: &Arc<Inner>, build: &Arc<Build>, source: Source) -> Result<Built, BuildError> {
    let staging = Arc::new(Staging::new(&inner.options.data)?);
    let original = match &source {
        Source::Folder(folder) => Some(folder.clone()),
        Source::Archive(_) => None,
    };
    let Staged { folder, manifest, function, key } = {
        let (inner, staging, name) = (Arc::clone(inner), Arc::clone(&staging), build.function.clone());
        // The source goes with it: an upload is not needed any more.
        blocking(move || inner.stage(&staging, &name, &source)).await?
    };
    if let Some(built) = inner.known(build, &function, &key, original.as_deref()).await? {
        build.log.say("nothing has changed since the last build; its result is used");
        return Ok(built);
    }
    if let Some(spec) = &function.build {
        let runtime = inner.runtimes.get(&function.runtime.name).ok_or_else(|| {
            BuildError::Refused(format!("there is no runtime `{}` any more", function.runtime.name))
        })?;
        inner.command(build, &function, runtime, spec, &folder).await?;
    }
    // With the work, which goes on when the build is cancelled: what it leaves then is found and removed after it.
    let shared = Arc::clone(&inner.artifacts_lock).read_owned().await;
    let (version, _shared) = {
        let (inner, staging, build) = (Arc::clone(inner), Arc::clone(&staging), Arc::clone(build));
        let spec = function.build.clone();
        blocking(move || {
            let version = inner.pack(&build, &folder, &manifest, spec.as_ref(), key)?;
            drop(staging);
            Ok((version, shared))
        })
        .await?
    };
    let built = inner.opened(&version, |folder| {
        let found = function.built(folder.to_owned())?;
        let source = original.clone().unwrap_or_else(|| folder.to_owned());
        Ok(Function { source, ..found })
    })?;
    if original.is_some() {
        let versions = Versions::default().with(|number| Version { version: number, ..version });
        let (inner, name) = (Arc::clone(inner), build.function.clone());
        blocking(move || {
            inner.built.write(&name, &versions).map_err(doing("keep the result of", Path::new(&name)))
        })
        .await?;
    }
    Ok(built)
}

pub(super) async fn open_version(
    inner: &Arc<Inner>,
    name: &str,
    version: &Version,
) -> Result<Built, BuildError> {
    let _shared = inner.artifacts_lock.read().await;
    let tree = inner.artifacts().join(&version.hash);
    if !tree.is_dir() {
        let (inner, hash) = (Arc::clone(inner), version.hash.clone());
        blocking(move || inner.unpack(&hash)).await?;
    }
    inner.opened(version, |folder| {
        let entry = function::read_entry(folder, name, &inner.runtimes);
        entry.function.map_err(Arc::unwrap_or_clone)?.built(folder.to_owned())
    })
}

/// Sources before their build.
struct Staged {
    folder: PathBuf,
    /// The manifest's text: the build command may put something else in its place.
    manifest: Vec<u8>,
    function: Function,
    key: String,
}

impl Inner {
    /// Puts the sources into the staging folder.
    fn stage(&self, staging: &Staging, name: &str, source: &Source) -> Result<Staged, BuildError> {
        let mut folder = staging.path().join("source");
        let most = self.options.max_artifact;
        match source {
            Source::Folder(from) => {
                std::fs::create_dir(&folder).map_err(doing("make", &folder))?;
                let fresh = function::read_entry(from, name, &self.runtimes)
                    .function
                    .is_ok_and(|f| f.build.is_some());
                staging::copy(from, &folder, fresh, most)?;
            }
            Source::Archive(upload) => {
                archive::unpack(&upload.file, &folder, &Limits { bytes: most, ..Limits::default() })
                    .map_err(refused)?;
                folder = inner_folder(folder);
            }
        }
        if !folder.join(MANIFEST).is_file() {
            return Err(BuildError::Refused(format!("there is no {MANIFEST} in the sources")));
        }
        let function =
            function::read_entry(&folder, name, &self.runtimes).function.map_err(BuildError::Manifest)?;
        let manifest = std::fs::read(folder.join(MANIFEST)).map_err(doing("read", &folder))?;
        let tree = archive::hash_tree(&folder).map_err(doing("read", &folder))?;
        let key = self.key(&tree, &function);
        Ok(Staged { folder, manifest, function: Function::clone(&function), key })
    }

    /// What the result depends on.
    fn key(&self, tree: &str, function: &Function) -> String {
        use std::fmt::Write as _;
        let mut hash = Sha256::new();
        // The command is in the manifest and so in the tree.
        hash.update(tree);
        if function.build.is_some() {
            let runtime = self.runtimes.get(&function.runtime.name);
            hash.update(runtime.map_or(String::new(), |runtime| runtime.hash.clone()));
            hash.update(self.adapter.name());
        }
        hash.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// An earlier result that fits.
    async fn known(
        &self,
        build: &Build,
        function: &Function,
        key: &str,
        original: Option<&Path>,
    ) -> Result<Option<Built>, BuildError> {
        let _shared = self.artifacts_lock.read().await;
        let shelf = if original.is_some() { &self.built } else { &self.deployed };
        let fits = |v: &Version| v.key == key && self.artifacts().join(&v.hash).is_dir();
        let kept =
            shelf.read(&build.function).map_err(doing("read the versions of", Path::new(&build.function)))?;
        let versions = kept.unwrap_or_default().versions;
        let Some(version) = versions.into_iter().rfind(fits) else { return Ok(None) };
        let opened = self.opened(&version, |folder| {
            let found = function.built(folder.to_owned())?;
            Ok(Function { source: original.unwrap_or(folder).to_owned(), ..found })
        });
        opened.map(Some)
    }

    /// The function in an artifact's folder, which stays while that function is alive.
    fn opened(
        &self,
        version: &Version,
        read: impl FnOnce(&Path) -> Result<Function, ManifestError>,
    ) -> Result<Built, BuildError> {
        let folder = self.artifacts().join(&version.hash);
        let function = Arc::new(read(&folder).map_err(|error| BuildError::Manifest(error.into()))?);
        self.keep_alive(&function);
        let Version { hash, size, key, .. } = version.clone();
        Ok(Built { function, hash, size, key })
    }

    async fn command(
        &self,
        build: &Arc<Build>,
        function: &Function,
        runtime: Arc<Runtime>,
        spec: &BuildSpec,
        folder: &Path,
    ) -> Result<(), BuildError> {
        let version = function.runtime.version.clone();
        self.adapter.prepare(&runtime, version.as_deref()).await?;
        let cache = if spec.cache { Some(self.cache(function)?) } else { None };
        let job = Job {
            runtime,
            version,
            folder: folder.to_owned(),
            command: spec.command.clone(),
            environment: function.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            memory: MEMORY,
            cpus: CPUS,
            certificates: self.certificates.clone(),
            cache: cache.clone(),
        };
        build.log.say(&format!("$ {}", spec.command));
        let limit = spec.timeout.map_or(self.options.timeout, |timeout| timeout.min(self.options.timeout));
        let (sender, mut output) = mpsc::channel::<bytes::Bytes>(PIECES);
        let gather = async {
            while let Some(piece) = output.recv().await {
                build.log.push(&piece);
            }
        };
        let job = async { tokio::join!(self.adapter.run_job(&job, sender), gather).0 };
        let code = match tokio::time::timeout(limit, job).await {
            Ok(code) => code?,
            Err(_) => return Err(BuildError::TimedOut(limit, build.log.tail().join("\n"))),
        };
        if let Some(cache) = cache {
            blocking(move || {
                if staging::size(&cache) > MOST_CACHE {
                    tracing::info!(cache = %cache.display(), "larger than {MOST_CACHE} bytes, so removed");
                    staging::remove(&cache);
                }
                Ok(())
            })
            .await?;
        }
        if code == 0 { Ok(()) } else { Err(BuildError::Failed { code, tail: build.log.tail().join("\n") }) }
    }

    /// The folder for what package managers keep, by function and runtime: functions do not trust each other.
    fn cache(&self, function: &Function) -> Result<PathBuf, BuildError> {
        let folder =
            self.options.data.join("build-cache").join(format!("{}@{}", function.name, function.runtime));
        std::fs::create_dir_all(&folder).map_err(doing("make", &folder))?;
        Ok(folder)
    }

    /// Makes the artifact of what the command left in `folder`.
    fn pack(
        &self,
        build: &Build,
        folder: &Path,
        manifest: &[u8],
        spec: Option<&BuildSpec>,
        key: String,
    ) -> Result<Version, BuildError> {
        let mut result = folder.to_owned();
        if let Some(output) = spec.and_then(|spec| spec.output.as_ref()) {
            let real = folder.join(output).canonicalize().ok();
            let Some(real) = real.filter(|real| real.is_dir() && real.starts_with(folder)) else {
                return Err(BuildError::Refused(format!("the build did not make the folder `{output}`")));
            };
            result = real;
        }
        if spec.is_some() {
            // The function is read from its artifact after a restart. What the command has put there is not opened: it
            // may be a link to what the command itself was not allowed to read.
            let file = result.join(MANIFEST);
            staging::remove(&file);
            let mut out = File::create_new(&file).map_err(doing("write", &file))?;
            out.write_all(manifest).map_err(doing("write", &file))?;
        }
        let most = self.options.max_artifact;
        let options = PackOptions { exclude: &[], most_bytes: most, ..PackOptions::default() };
        let size = archive::content_size(&result, &options).map_err(refused)?;
        if size > most {
            let text = format!("the result has {size} bytes, more than the {most} that are allowed");
            return Err(BuildError::Refused(text));
        }
        let file = self.artifacts().join(format!(".{}.tar.zst", build.id));
        let packed = archive::pack(&result, &file, Compression::Zstd, &options).map_err(refused)?;
        for left_out in packed.left_out.iter().take(SHOWN) {
            let text =
                format!("left out, because it leads out of the function's folder: {}", left_out.display());
            build.log.say(&text);
        }
        let target = self.artifacts().join(format!("{}.tar.zst", packed.sha256));
        std::fs::rename(&file, &target).map_err(doing("name", &target))?;
        self.unpack(&packed.sha256)?;
        Ok(Version { version: 0, at: log::now(), hash: packed.sha256, size: packed.bytes, key })
    }

    /// The content of an artifact of ours, once for all instances.
    fn unpack(&self, hash: &str) -> Result<(), BuildError> {
        let file = self.artifacts().join(format!("{hash}.tar.zst"));
        // Our own work: how well it could be compressed is nothing to suspect.
        let limits = Limits {
            bytes: self.options.max_artifact,
            ratio: u64::MAX,
            entries: 1_000_000,
            ..Limits::default()
        };
        archive::unpack_once(&file, &self.artifacts(), &limits).map(drop).map_err(refused)
    }
}

/// Archives of hosted repositories have everything in one folder.
fn inner_folder(folder: PathBuf) -> PathBuf {
    if folder.join(MANIFEST).exists() {
        return folder;
    }
    let mut items = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    match (items.next(), items.next()) {
        (Some(only), None) if only.file_type().is_ok_and(|kind| kind.is_dir()) => only.path(),
        _ => folder,
    }
}

fn refused(error: ArchiveError) -> BuildError {
    match error {
        ArchiveError::Io { path, source } => doing("use", &path)(source),
        other => BuildError::Refused(other.to_string()),
    }
}
