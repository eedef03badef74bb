//! Functions of the functions folder come, change and go while the executor runs.
//!
//! A changed function is replaced without dropping a call: first it is built, if its manifest says so, then
//! an instance of the new version gets ready, then new calls go to it, then the old version finishes what it
//! has. If the new version cannot be read, is not built or does not start, the instances of the old one go on
//! serving and the log says why. Instances of a function without a build load what is in the folder when they
//! start: one that starts later meets the mistake, and callers are told it. What is built is an artifact that
//! nobody changes.
//!
//! A function whose first build runs is known at once; calls wait for it. A change during a build cancels
//! that build.

use std::collections::HashSet;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Deployed, Deployment, Executor, Origin};
use crate::build::{Build, BuildError, End, Source};
use crate::function::{self, Entry, Function, ManifestError, ServedBy};
use crate::pool::{FunctionKey, Refusal};

/// How often the functions folder is looked at, at the most; a large folder is looked at less often, so that
/// looking takes at most a twentieth of the time.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// A call on a function whose first build failed at least this long ago has it tried again: a registry may
/// have been down.
pub const BUILD_RETRY: Duration = Duration::from_secs(30);

/// What is known under a name.
pub(super) struct Known {
    pub(super) deployed: Deployed,
    pub(super) fingerprint: u64,
    pub(super) origin: Origin,
    /// The build whose result will take its place.
    pub(super) pending: Option<Arc<Build>>,
}

/// How far a deployment is.
pub(super) enum Stand {
    /// It can be called.
    Ready(FunctionKey),
    /// Its first build runs; calls wait for what becomes of it.
    Building(watch::Receiver<Option<FirstBuild>>),
}

/// What became of a function's first build; a failure with its time.
pub(super) type FirstBuild = Result<Arc<Deployment>, (Arc<BuildError>, Instant)>;

impl Deployment {
    /// Its place in the pool, once it can be called.
    pub(super) fn key(&self) -> Option<FunctionKey> {
        match self.stand {
            Stand::Ready(key) => Some(key),
            Stand::Building(_) => None,
        }
    }

    /// Whether its first build runs or failed.
    pub fn is_building(&self) -> bool {
        matches!(self.stand, Stand::Building(_))
    }

    /// Why its first build failed, if it did.
    pub fn failure(&self) -> Option<Arc<BuildError>> {
        match &self.stand {
            Stand::Ready(_) => None,
            Stand::Building(outcome) => {
                outcome.borrow().as_ref().and_then(|o| o.as_ref().err()).map(|e| Arc::clone(&e.0))
            }
        }
    }
}

impl Executor {
    /// Reads the functions folder for the first time and serves what is in it.
    ///
    /// # Errors
    /// The folder cannot be read. Mistakes in single functions are kept as [`Deployed::Broken`] and returned.
    pub fn load(self: &Arc<Self>) -> std::io::Result<Vec<Entry>> {
        let entries = self.read()?;
        self.builds.forget_all_but(&|name| entries.iter().any(|entry| &*entry.name == name));
        for entry in &entries {
            match &entry.function {
                Ok(function) if function.build.is_some() => self.build_first(entry, function),
                Ok(function) => drop(self.set(entry, Deployed::Serving(self.deploy(function)))),
                Err(error) => drop(self.set(entry, Deployed::Broken(Arc::clone(error)))),
            }
        }
        self.pool.tick();
        Ok(entries)
    }

    fn read(&self) -> std::io::Result<Vec<Entry>> {
        let folder = &self.options.functions;
        let Some(alone) = &self.options.alone else {
            let mut entries = function::read_folder(folder, &self.runtimes)?;
            for entry in &mut entries {
                self.check_store(entry);
            }
            return Ok(entries);
        };
        let folder = folder.canonicalize()?;
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or("function").to_owned();
        let mut entry = function::read_alone(&folder, &name, &self.runtimes, alone);
        self.check_store(&mut entry);
        Ok(vec![entry])
    }

    /// A function that names a store which is not there is broken.
    pub(super) fn check_store(&self, entry: &mut Entry) {
        let Ok(function) = &entry.function else { return };
        let Some(name) = function.state.as_ref().and_then(|spec| spec.store.as_deref()) else { return };
        if self.stores().get(Some(name)).is_none() {
            let known = self.stores().names();
            let message = format!(
                "[state] store = \"{name}\": this executor does not have it ({known}); start it with --store {name}=URL"
            );
            let file = function.source.join(function::MANIFEST);
            entry.function = Err(Arc::new(ManifestError { file, line: None, message }));
        }
    }

    /// Whether this executor serves one function at every path.
    pub fn single(&self) -> Option<Deployed> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().next().filter(|_| self.options.alone.is_some()).map(|known| known.deployed.clone())
    }

    pub(super) fn deploy(&self, function: &Arc<Function>) -> Arc<Deployment> {
        let key = match &function.served_by {
            ServedBy::Worker => {
                let runtime = self.runtimes.get(&function.runtime.name);
                let runtime = runtime.expect("a function's runtime is checked when it is read");
                self.pool.add(Arc::clone(function), Some(runtime))
            }
            ServedBy::Image(_) => self.pool.add(Arc::clone(function), None),
            // Files need no instance; the pool knows no function of this key.
            ServedBy::Files => 0,
        };
        let (stand, entity_waiters) = (Stand::Ready(key), AtomicUsize::new(0));
        let meter = self.meters.of(&function.name);
        Arc::new(Deployment { function: Arc::clone(function), stand, entity_waiters, meter })
    }

    fn set(&self, entry: &Entry, deployed: Deployed) -> Option<Deployed> {
        let known = Known { deployed, fingerprint: entry.fingerprint, origin: Origin::Folder, pending: None };
        self.put(&entry.name, known)
    }

    /// Replaces what is known under a name; a build that was to do so is cancelled.
    pub(super) fn put(&self, name: &Arc<str>, known: Known) -> Option<Deployed> {
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let old = all.insert(Arc::clone(name), known)?;
        if let Some(pending) = &old.pending {
            pending.cancel();
        }
        Some(old.deployed)
    }

    /// Stops the instances of what was replaced, when they have done what they have.
    pub(super) fn retire(&self, old: Option<Deployed>) {
        if let Some(Deployed::Serving(old)) = old
            && let Some(key) = old.key()
        {
            self.pool.retire(key);
        }
    }

    fn begin(&self, name: &str) -> Option<Arc<Build>> {
        let build = self.builds.begin(name);
        build.map_err(|error| tracing::error!(function = %name, "cannot be built: {error}")).ok()
    }

    /// Builds a function that nothing serves yet. Calls wait.
    fn build_first(self: &Arc<Self>, entry: &Entry, function: &Arc<Function>) {
        self.build_as_first(&entry.name, entry.fingerprint, function);
    }

    fn build_as_first(
        self: &Arc<Self>,
        name: &Arc<str>,
        fingerprint: u64,
        function: &Arc<Function>,
    ) -> Option<Arc<Deployment>> {
        let build = self.begin(name)?;
        let (outcome, receiver) = watch::channel(None);
        let (stand, entity_waiters) = (Stand::Building(receiver), AtomicUsize::new(0));
        let meter = self.meters.of(name);
        let waiting = Arc::new(Deployment { function: Arc::clone(function), stand, entity_waiters, meter });
        let (deployed, pending) = (Deployed::Serving(Arc::clone(&waiting)), Some(Arc::clone(&build)));
        self.put(name, Known { deployed, fingerprint, origin: Origin::Folder, pending });
        let (this, function) = (Arc::clone(self), Arc::clone(function));
        self.tasks.spawn("first build", async move {
            match this.build(&build, &function).await {
                Ok(built) => {
                    let new = this.deploy(&built);
                    this.switch(&build, &new, None);
                    outcome.send_replace(Some(Ok(new)));
                    this.pool.tick();
                }
                // Whoever waits looks what took its place.
                Err(BuildError::Cancelled) => {}
                Err(error) => {
                    tracing::error!(function = %function.name, build = %build.id, "{error}");
                    outcome.send_replace(Some(Err((Arc::new(error), Instant::now()))));
                }
            }
            this.builds.collect().await;
        });
        Some(waiting)
    }

    /// Builds a function once more whose first build failed at `failed`, if that is long ago; gives what to
    /// wait for.
    pub(super) fn try_again(
        self: &Arc<Self>,
        old: &Arc<Deployment>,
        failed: Instant,
    ) -> Option<Arc<Deployment>> {
        let name = &old.function.name;
        let fingerprint = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let known = known.get(name)?;
            match &known.deployed {
                Deployed::Serving(now) if !Arc::ptr_eq(now, old) => return Some(Arc::clone(now)),
                Deployed::Serving(_) => known.fingerprint,
                Deployed::Broken(_) => return None,
            }
        };
        if failed.elapsed() < BUILD_RETRY || self.is_closing() {
            return None;
        }
        self.build_as_first(name, fingerprint, &old.function)
    }

    /// Builds the new version of a function that serves, and lets it serve if it starts.
    fn build_next(self: &Arc<Self>, entry: &Entry, function: &Arc<Function>, old: Arc<Deployment>) {
        let Some(build) = self.begin(&entry.name) else { return };
        let (deployed, pending) = (Deployed::Serving(Arc::clone(&old)), Some(Arc::clone(&build)));
        let known = Known { deployed, fingerprint: entry.fingerprint, origin: Origin::Folder, pending };
        self.put(&entry.name, known);
        let (this, function) = (Arc::clone(self), Arc::clone(function));
        self.tasks.spawn("build", async move {
            let name = &function.name;
            match this.build(&build, &function).await {
                Ok(built) => {
                    let new = this.deploy(&built);
                    if let Err(reason) = this.warm_up(&new, &old).await {
                        tracing::error!(function = %name, "the new version does not start, the previous one goes on serving: {reason}");
                        this.retire(Some(Deployed::Serving(new)));
                    } else {
                        tracing::info!(function = %name, "reloaded");
                        this.switch(&build, &new, Some(old));
                    }
                }
                Err(BuildError::Cancelled) => {}
                Err(error) => {
                    tracing::error!(function = %name, build = %build.id, "{error}\nthe previous version goes on serving");
                }
            }
            this.builds.collect().await;
        });
    }

    async fn build(&self, build: &Arc<Build>, function: &Function) -> Result<Arc<Function>, BuildError> {
        tracing::info!(function = %function.name, build = %build.id, "building");
        let result = tokio::select! {
            // In this order: a cancelled build must not wait for its turn.
            biased;
            () = build.cancelled() => Err(BuildError::Cancelled),
            result = async {
                let _turn = self.builds.turn(&function.name).await;
                self.builds.run(build, Source::Folder(function.source.clone())).await
            } => result,
        };
        build.log.end(match &result {
            Ok(_) => End::Done { version: None },
            Err(error) => End::Failed { kind: error.kind(), message: error.to_string() },
        });
        if result.is_ok() {
            tracing::info!(function = %function.name, build = %build.id, "built");
        }
        result.map(|built| built.function)
    }

    /// Lets `new` serve, unless something newer came while it was built.
    fn switch(&self, build: &Arc<Build>, new: &Arc<Deployment>, old: Option<Arc<Deployment>>) {
        let current = {
            let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
            let known = all.get_mut(&new.function.name);
            let known = known.filter(|known| known.pending.as_ref().is_some_and(|p| Arc::ptr_eq(p, build)));
            known.map(|known| {
                known.pending = None;
                known.deployed = Deployed::Serving(Arc::clone(new));
            })
        };
        let unused = if current.is_some() { old } else { Some(Arc::clone(new)) };
        self.retire(unused.map(Deployed::Serving));
    }

    /// Makes every runtime that a function needs usable, so that first calls do not wait for it.
    pub async fn prepare_runtimes(&self) {
        let wanted: HashSet<_> = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let serving = known.values().filter_map(|known| match &known.deployed {
                Deployed::Serving(deployment) if deployment.function.served_by == ServedBy::Worker => {
                    Some(deployment.function.runtime.clone())
                }
                _ => None,
            });
            serving.collect()
        };
        for wanted in wanted {
            let Some(runtime) = self.runtimes.get(&wanted.name) else { continue };
            if let Err(error) = self.pool.adapter().prepare(&runtime, wanted.version.as_deref()).await {
                tracing::error!(runtime = %wanted, "{error}");
            }
        }
    }

    /// Looks for changes in the functions folder until the executor closes.
    pub async fn watch(self: Arc<Self>) {
        let mut pause = WATCH_INTERVAL;
        while !self.is_closing() {
            tokio::time::sleep(pause).await;
            let begun = Instant::now();
            let this = Arc::clone(&self);
            let entries = tokio::task::spawn_blocking(move || this.read()).await;
            pause = WATCH_INTERVAL.max(begun.elapsed() * 20);
            match entries {
                Ok(Ok(entries)) => self.apply(entries).await,
                Ok(Err(error)) => {
                    tracing::error!(folder = %self.options.functions.display(), "cannot read the functions folder: {error}");
                }
                Err(_) => return,
            }
        }
    }

    /// Stops idle instances and starts the wanted ones until the executor closes.
    pub async fn reap(self: Arc<Self>) {
        let mut interval = tokio::time::interval(self.pool.reap_interval());
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.is_closing() {
            interval.tick().await;
            self.pool.tick();
            if self.builds.has_leftovers() {
                self.builds.collect().await;
            }
        }
    }

    async fn apply(self: &Arc<Self>, entries: Vec<Entry>) {
        let names: HashSet<_> = entries.iter().map(|entry| Arc::clone(&entry.name)).collect();
        let removed: Vec<_> = {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.extract_if(|name, known| known.origin == Origin::Folder && !names.contains(name)).collect()
        };
        for (name, known) in removed {
            tracing::info!(function = %name, "removed");
            if let Some(pending) = known.pending {
                pending.cancel();
            }
            self.retire(Some(known.deployed));
        }
        let changed = entries.into_iter().filter(|entry| {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            known
                .get(&entry.name)
                .is_none_or(|known| known.origin == Origin::Folder && known.fingerprint != entry.fingerprint)
        });
        futures_util::future::join_all(changed.map(|entry| self.replace(entry))).await;
    }

    /// Lets a function of the folder serve what is in the folder now.
    pub(super) async fn replace(self: &Arc<Self>, mut entry: Entry) {
        self.check_store(&mut entry);
        let old = self.find(&entry.name);
        let name = &entry.name;
        match (&entry.function, old) {
            (Err(error), Some(Deployed::Serving(old))) if !old.is_building() => {
                tracing::error!(function = %name, "{error}; the previous version goes on serving where it runs");
                self.set(&entry, Deployed::Serving(old));
            }
            (Err(error), _) => {
                tracing::error!(function = %name, "{error}");
                self.set(&entry, Deployed::Broken(Arc::clone(error)));
            }
            (Ok(function), Some(Deployed::Serving(old))) if !old.is_building() => {
                if function.build.is_some() {
                    self.build_next(&entry, function, old);
                    return;
                }
                let new = self.deploy(function);
                if let Err(reason) = self.warm_up(&new, &old).await {
                    tracing::error!(function = %name, "the new version does not start, the previous one goes on serving where it runs: {reason}");
                    self.retire(Some(Deployed::Serving(new)));
                    self.set(&entry, Deployed::Serving(old));
                    return;
                }
                tracing::info!(function = %name, "reloaded");
                self.set(&entry, Deployed::Serving(new));
                self.retire(Some(Deployed::Serving(old)));
            }
            (Ok(function), _) => {
                tracing::info!(function = %name, "added");
                if function.build.is_some() {
                    self.build_first(&entry, function);
                } else {
                    let new = self.deploy(function);
                    self.set(&entry, Deployed::Serving(new));
                }
            }
        }
    }

    /// Starts an instance of the new version if the old one has any.
    async fn warm_up(&self, new: &Deployment, old: &Deployment) -> Result<(), String> {
        if self.counts(old).0 == 0 { Ok(()) } else { self.try_start(new).await }
    }

    /// Starts an instance of the function that is served alone, so that its first call finds it ready. What fails is told
    /// to that call.
    pub async fn start_early(self: Arc<Self>) {
        if let Some(Deployed::Serving(deployment)) = self.single()
            && let Err(reason) = self.try_start(&deployment).await
        {
            tracing::debug!("no instance was started before the first call: {reason}");
        }
    }

    /// Starts one instance and gives it back to the pool. A site has none.
    pub(super) async fn try_start(&self, deployment: &Deployment) -> Result<(), String> {
        if deployment.function.served_by == ServedBy::Files {
            return Ok(());
        }
        let Some(key) = deployment.key() else { return Err("it is not built".into()) };
        match self.pool.acquire(key).await {
            Ok(_lease) => Ok(()),
            Err(Refusal::CannotStart(failure, _)) => Err(failure.message.clone()),
            Err(Refusal::QueueFull(_) | Refusal::Gone) => Err("the executor is shutting down".into()),
        }
    }
}
