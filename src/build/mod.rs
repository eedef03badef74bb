//! From sources to artifacts: copy or unpack, run the build command, pack, unpack once for all instances.
//!
//! [`Builds::begin`] makes a record with a log that can be followed; [`Builds::run`] does the work. Builds of
//! one name run one after another ([`Builds::turn`]), those of all names on a bounded number of workers, in
//! the order in which they came. What was made is an artifact: an archive `artifacts/<sha-256>.tar.zst` and,
//! next to it, its content in a folder, which is never written to again. A build whose sources, command and
//! runtime are those of a kept version is not run again.
//!
//! Invariants: the sources are never written to; a build that fails, is cancelled or is late leaves nothing
//! but its log; an artifact stays as long as a kept version names it or a function made of it is alive.

mod log;
mod pipeline;
mod records;
mod staging;
#[cfg(test)]
mod tests;
mod versions;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use crate::adapter::{Adapter, AdapterError};
use crate::function::{Function, ManifestError};
use crate::runtime::Runtimes;

pub use self::log::{BuildLog, End, Line, MOST_BYTES, now};
pub use self::records::{Build, read_log};
pub use self::versions::{KEPT, Shelf, Version, Versions};

use self::records::Records;

/// Builds that may wait or run; more are refused.
const WAITING: usize = 1024;
/// Archives that may be on the disk at the same time, received or waiting for their build.
const UPLOADS: usize = 16;
/// Memory of a build command: a bundler takes a gigabyte.
const MEMORY: u64 = 2 << 30;
/// Cores of a build command; the functions that serve meanwhile need the others.
const CPUS: f64 = 2.0;
/// A cache of downloads that has grown beyond this is thrown away.
const MOST_CACHE: u64 = 2 << 30;

/// How builds behave.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The data folder.
    pub data: PathBuf,
    /// Builds at the same time.
    pub workers: usize,
    /// How long one may take, if its function does not say less.
    pub timeout: Duration,
    /// Bytes of an artifact, and of the sources.
    pub max_artifact: u64,
    /// A company's certificates, PEM.
    pub certificates: Option<PathBuf>,
}

impl BuildOptions {
    /// The usual bound on artifacts.
    pub const MAX_ARTIFACT: u64 = 1 << 30;
}

/// Where the sources are.
pub enum Source {
    /// A folder, which is copied.
    Folder(PathBuf),
    /// An archive of any format, from a stranger.
    Archive(Upload),
}

/// What a build gave.
#[derive(Debug, Clone)]
pub struct Built {
    /// The function, whose folder is the artifact's content. The artifact stays while this is alive.
    pub function: Arc<Function>,
    /// SHA-256 of the artifact.
    pub hash: String,
    /// Bytes of the artifact.
    pub size: u64,
    /// Hash over sources, command and runtime.
    pub key: String,
}

/// Why there is no artifact.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Too many wait already.
    #[error("{0} builds wait already; try again later")]
    QueueFull(usize),
    /// Somebody stopped it, or a newer one of the same folder took its place.
    #[error("the build was cancelled")]
    Cancelled,
    /// It took too long.
    #[error("the build took longer than {0:?} and was ended; its last lines:\n{1}")]
    TimedOut(Duration, String),
    /// The command failed.
    #[error("the build command ended with code {code}; its last lines:\n{tail}")]
    Failed {
        /// The exit code.
        code: i32,
        /// The last lines it wrote.
        tail: String,
    },
    /// The sources, or the result, are not acceptable.
    #[error("{0}")]
    Refused(String),
    /// The manifest is wrong.
    #[error("{}", shown(.0))]
    Manifest(Arc<ManifestError>),
    /// No container or process could be had.
    #[error("{0}")]
    Adapter(#[from] AdapterError),
    /// The disk does not do what it should.
    #[error("{doing}: {source}")]
    Io {
        /// What we were about.
        doing: String,
        /// The cause.
        source: io::Error,
    },
}

impl BuildError {
    /// For programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::QueueFull(_) => "build-queue-full",
            Self::Cancelled => "build-cancelled",
            Self::TimedOut(..) => "build-timeout",
            Self::Failed { .. } => "build-failed",
            Self::Refused(_) => "source-refused",
            Self::Manifest(_) => "broken-function",
            Self::Adapter(_) => "build-unavailable",
            Self::Io { .. } => "build-storage",
        }
    }
}

/// The path is one of ours and of no use to anybody.
fn shown(error: &ManifestError) -> String {
    let file = error.file.file_name().unwrap_or_default().to_string_lossy();
    match error.line {
        Some(line) => format!("{file}:{line}: {}", error.message),
        None => format!("{file}: {}", error.message),
    }
}

/// For `map_err`: says what we were about.
fn doing(what: &str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let doing = format!("cannot {what} {}", path.display());
    move |source| BuildError::Io { doing, source }
}

/// The build pipeline. Cheap to clone.
#[derive(Clone)]
pub struct Builds(Arc<Inner>);

struct Inner {
    options: BuildOptions,
    adapter: Arc<dyn Adapter>,
    runtimes: Arc<Runtimes>,
    /// System certificates and the company's in one file.
    certificates: Option<PathBuf>,
    workers: Semaphore,
    uploads: Arc<Semaphore>,
    records: Records,
    deployed: Shelf,
    built: Shelf,
    /// Functions whose folder is an artifact. Locked for reading by those who make or find artifacts, until
    /// the function is in the list, and for writing by those who remove them.
    alive: Mutex<Vec<Weak<Function>>>,
    artifacts_lock: Arc<tokio::sync::RwLock<()>>,
    leftovers: AtomicBool,
}

impl Builds {
    /// Builds below the data folder; what a predecessor left half done is removed.
    pub fn open(
        options: BuildOptions,
        adapter: Arc<dyn Adapter>,
        runtimes: Arc<Runtimes>,
    ) -> Result<Self, BuildError> {
        // Without links: what is in it is told by its path from what a link in it leads to.
        std::fs::create_dir_all(&options.data).map_err(doing("make", &options.data))?;
        let data = options.data.canonicalize().map_err(doing("open", &options.data))?;
        let options = BuildOptions { data, ..options };
        let data = &options.data;
        let make = |folder: &str| {
            let folder = data.join(folder);
            std::fs::create_dir_all(&folder).map_err(doing("make", &folder))
        };
        staging::remove_left_overs(data);
        ["builds", "build-cache", "artifacts", "staging"].into_iter().try_for_each(make)?;
        let certificates = match &options.certificates {
            Some(file) => Some(staging::bundle(file, &data.join("certificates.pem"))?),
            None => None,
        };
        let shelf = |name: &str| {
            let root = data.join(name);
            Shelf::open(root.clone()).map_err(doing("make", &root))
        };
        Ok(Self(Arc::new(Inner {
            workers: Semaphore::new(options.workers.max(1)),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            records: Records::open(data.join("builds")),
            deployed: shelf("deployed")?,
            built: shelf("built")?,
            alive: Mutex::default(),
            artifacts_lock: Arc::default(),
            leftovers: AtomicBool::new(false),
            certificates,
            adapter,
            runtimes,
            options,
        })))
    }

    /// The versions of deployed functions.
    pub fn deployed(&self) -> &Shelf {
        &self.0.deployed
    }

    /// The bounds.
    pub fn options(&self) -> &BuildOptions {
        &self.0.options
    }

    /// A file for an upload, which is removed with the staging folder that it is in.
    ///
    /// # Errors
    /// Too many are here, or the disk fails.
    pub fn upload(&self) -> Result<Upload, BuildError> {
        let place = Arc::clone(&self.0.uploads).try_acquire_owned();
        let place = place.map_err(|_| BuildError::QueueFull(UPLOADS))?;
        let staging = staging::Staging::new(&self.0.options.data)?;
        Ok(Upload { file: staging.path().join("upload"), _staging: staging, _place: place })
    }

    /// Waits for others that work on the same name, and keeps later ones waiting. Served in order.
    pub async fn turn(&self, name: &str) -> OwnedMutexGuard<()> {
        self.0.records.turn(name).lock_owned().await
    }

    /// A record of a build that is about to begin. Whoever asks for it ends its log.
    ///
    /// # Errors
    /// Too many have begun and not ended.
    pub fn begin(&self, name: &str) -> Result<Arc<Build>, BuildError> {
        self.0.records.begin(name, WAITING)
    }

    /// A recent build.
    pub fn find(&self, id: &str) -> Option<Arc<Build>> {
        self.0.records.find(id)
    }

    /// Where the log of build `id` is, if there is such a build.
    pub fn log_file(&self, id: &str) -> Option<PathBuf> {
        self.0.records.file(id).filter(|file| file.is_file())
    }

    /// Runs a build to its end. Dropping the future cancels it, and so does [`Build::cancel`]. Whoever calls
    /// it has the name's [`Builds::turn`].
    pub async fn run(&self, build: &Arc<Build>, source: Source) -> Result<Built, BuildError> {
        let work = async {
            let _worker = self.0.workers.acquire().await;
            pipeline::run(&self.0, build, source).await
        };
        tokio::select! {
            result = work => result,
            () = build.cancelled() => Err(BuildError::Cancelled),
        }
    }

    /// The function of a kept version, for a start without a build.
    pub async fn open_version(&self, name: &str, version: &Version) -> Result<Built, BuildError> {
        pipeline::open_version(&self.0, name, version).await
    }

    /// Forgets what was built for functions of the folder that are not there any more.
    pub fn forget_all_but(&self, names: &dyn Fn(&str) -> bool) {
        for (name, _) in self.0.built.all().unwrap_or_default() {
            if !names(&name) {
                let _ = self.0.built.remove(&name);
            }
        }
    }

    /// Whether there are artifacts that only functions use which end soon, or that could not be removed.
    pub fn has_leftovers(&self) -> bool {
        self.0.leftovers.load(Ordering::Relaxed)
    }

    /// Removes artifacts that no version names and no function uses.
    pub async fn collect(&self) {
        // Until it is done there may be some: whoever is stopped halfway is followed by another.
        self.0.leftovers.store(true, Ordering::Relaxed);
        let alone = Arc::clone(&self.0.artifacts_lock).write_owned().await;
        let inner = Arc::clone(&self.0);
        let work = move || {
            // With the work, which goes on when nobody waits for it any more.
            let _alone = alone;
            match inner.collect() {
                Ok(leftovers) => inner.leftovers.store(leftovers, Ordering::Relaxed),
                Err(error) => tracing::warn!("artifacts are not looked through: {error}"),
            }
        };
        let _ = tokio::task::spawn_blocking(work).await;
    }

    /// The archive of an artifact.
    pub fn archive(&self, hash: &str) -> PathBuf {
        self.0.artifacts().join(format!("{hash}.tar.zst"))
    }

    /// Cancels all builds; later ones are cancelled at once.
    pub fn close(&self) {
        self.0.records.close();
    }
}

/// A place for an archive that is being received.
pub struct Upload {
    /// The file, which does not exist yet.
    pub file: PathBuf,
    _staging: staging::Staging,
    _place: OwnedSemaphorePermit,
}

impl Inner {
    fn artifacts(&self) -> PathBuf {
        self.options.data.join("artifacts")
    }

    fn keep_alive(&self, function: &Arc<Function>) {
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive.retain(|function| function.strong_count() > 0);
        alive.push(Arc::downgrade(function));
    }

    /// Gives whether some are left.
    fn collect(&self) -> io::Result<bool> {
        let mut kept = self.deployed.hashes()?;
        kept.extend(self.built.hashes()?);
        let alive: Vec<_> = {
            let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
            alive.iter().filter_map(Weak::upgrade).collect()
        };
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let used: HashSet<_> = alive.iter().filter_map(|function| name(&function.folder)).collect();
        let mut leftovers = false;
        // All of them first: not every file system lists what is left while some of it is being removed.
        let all = std::fs::read_dir(self.artifacts())?.collect::<io::Result<Vec<_>>>()?;
        for item in all {
            let Some(file) = name(&item.path()) else { continue };
            let hash = file.split('.').next().unwrap_or_default();
            if hash.is_empty() || kept.contains(hash) {
                continue;
            }
            if used.contains(hash) {
                leftovers = true;
                continue;
            }
            tracing::debug!(artifact = %file, "removed, because nothing uses it");
            leftovers |= !staging::remove(&item.path());
        }
        Ok(leftovers)
    }
}
