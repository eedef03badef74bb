//! Functions come, change and go while the executor runs.
//!
//! A changed function is replaced without dropping a call: first an instance of the new version gets ready, then
//! new calls go to it, then the old version finishes what it has. If the new version cannot be read or does not
//! start, the instances of the old one go on serving and the log says why. Instances load what is in the folder when
//! they start: one that starts later meets the mistake, and callers are told it.

use std::collections::HashSet;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Deployed, Deployment, Executor, Known};
use crate::function::{self, Entry, Function};
use crate::pool::Refusal;

/// How often the functions folder is looked at, at the most; a large folder is looked at less often, so that
/// looking takes at most a twentieth of the time.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

impl Executor {
    /// Reads the functions folder for the first time and serves what is in it.
    ///
    /// # Errors
    /// The folder cannot be read. Mistakes in single functions are kept as [`Deployed::Broken`] and returned.
    pub fn load(&self) -> std::io::Result<Vec<Entry>> {
        let entries = self.read()?;
        for entry in &entries {
            let deployed = match &entry.function {
                Ok(function) => Deployed::Serving(self.deploy(function)),
                Err(error) => Deployed::Broken(Arc::clone(error)),
            };
            self.set(entry, deployed);
        }
        self.pool.tick();
        Ok(entries)
    }

    fn read(&self) -> std::io::Result<Vec<Entry>> {
        let folder = &self.options.functions;
        if !self.options.single {
            return function::read_folder(folder, &self.runtimes);
        }
        let folder = folder.canonicalize()?;
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or("function").to_owned();
        Ok(vec![function::read_entry(&folder, &name, &self.runtimes)])
    }

    /// Whether this executor serves one function at every path.
    pub fn single(&self) -> Option<Deployed> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().next().filter(|_| self.options.single).map(|known| known.deployed.clone())
    }

    fn deploy(&self, function: &Arc<Function>) -> Arc<Deployment> {
        let runtime = self
            .runtimes
            .get(&function.runtime.name)
            .expect("a function's runtime is checked when it is read");
        let key = self.pool.add(Arc::clone(function), runtime);
        Arc::new(Deployment { function: Arc::clone(function), key, entity_waiters: AtomicUsize::new(0) })
    }

    fn set(&self, entry: &Entry, deployed: Deployed) -> Option<Deployed> {
        let known = Known { deployed, fingerprint: entry.fingerprint };
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(Arc::clone(&entry.name), known).map(|known| known.deployed)
    }

    /// Makes every runtime that a function needs usable, so that first calls do not wait for it.
    pub async fn prepare_runtimes(&self) {
        let wanted: HashSet<_> = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let serving = known.values().filter_map(|known| match &known.deployed {
                Deployed::Serving(deployment) => Some(deployment.function.runtime.clone()),
                Deployed::Broken(_) => None,
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
        }
    }

    async fn apply(&self, entries: Vec<Entry>) {
        let names: HashSet<_> = entries.iter().map(|entry| Arc::clone(&entry.name)).collect();
        let removed: Vec<_> = {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.extract_if(|name, _| !names.contains(name)).collect()
        };
        for (name, known) in removed {
            tracing::info!(function = %name, "removed");
            if let Deployed::Serving(deployment) = known.deployed {
                self.pool.retire(deployment.key);
            }
        }
        let changed = entries.into_iter().filter(|entry| {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            known.get(&entry.name).is_none_or(|known| known.fingerprint != entry.fingerprint)
        });
        futures_util::future::join_all(changed.map(|entry| self.replace(entry))).await;
    }

    async fn replace(&self, entry: Entry) {
        let old = self.find(&entry.name);
        let name = &entry.name;
        match (&entry.function, old) {
            (Err(error), Some(Deployed::Serving(old))) => {
                tracing::error!(function = %name, "{error}; the previous version goes on serving where it runs");
                self.set(&entry, Deployed::Serving(old));
            }
            (Err(error), _) => {
                tracing::error!(function = %name, "{error}");
                self.set(&entry, Deployed::Broken(Arc::clone(error)));
            }
            (Ok(function), Some(Deployed::Serving(old))) => {
                let new = self.deploy(function);
                let warm = self.pool.counts(old.key).0 > 0;
                if warm && let Err(reason) = self.try_start(&new).await {
                    tracing::error!(function = %name, "the new version does not start, the previous one goes on serving where it runs: {reason}");
                    self.pool.retire(new.key);
                    self.set(&entry, Deployed::Serving(old));
                    return;
                }
                tracing::info!(function = %name, "reloaded");
                self.set(&entry, Deployed::Serving(new));
                self.pool.retire(old.key);
            }
            (Ok(function), _) => {
                tracing::info!(function = %name, "added");
                let new = self.deploy(function);
                self.set(&entry, Deployed::Serving(new));
            }
        }
    }

    /// Starts one instance and gives it back to the pool.
    async fn try_start(&self, deployment: &Deployment) -> Result<(), String> {
        match self.pool.acquire(deployment.key).await {
            Ok(_lease) => Ok(()),
            Err(Refusal::CannotStart(failure, _)) => Err(failure.message.clone()),
            Err(Refusal::QueueFull(_) | Refusal::Gone) => Err("the executor is shutting down".into()),
        }
    }
}
