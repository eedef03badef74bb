//! The guest house: containers that callers of `/v1` create, build in, call and delete (the API calls them runtimes).
//!
//! Source: sections 5.2 to 6 of the executor API; the front in `http::v1` has its parameters and documents.
//!
//! A guest is registered as pending before anything of it exists, so that of several who create it at the same time
//! one does and the others wait; it is unregistered before it is destroyed, so that nobody is led to a dying one. Its
//! folder below the temporary root holds all that it shares with this host, and is gone with it.
//!
//! Invariants: a guest with calls in flight is never collected; whoever waits for a guest hears why it did not come;
//! every guest has an owner that ends it, at the latest [`GuestHouse::shutdown`] or the adapter's sweep.

mod create;
mod entry;
mod execute;
mod folder;
mod names;
mod output;
pub mod types;
mod usage;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::{Notify, mpsc};

pub use self::types::*;

use self::entry::{Entry, InFlight, Phase};
use self::names::Names;
use self::usage::Usage;
use crate::adapter::Adapter;
use crate::adapter::guest::{ExecError, Guests, Piece};
use crate::storage::Storage;
use crate::task::Tasks;
use crate::transport::{Client, Profile};

/// how long a log stream waits for its runtime to appear.
const APPEARANCE: Duration = Duration::from_secs(5);
/// What a command in a guest may write; more is thrown away.
const MAX_COMMAND_OUTPUT: usize = 16 << 20;
/// Guests that are destroyed at the same time.
const DESTROYERS: usize = 8;

/// What the guest house is made of.
pub struct Parts {
    /// How it behaves.
    pub options: GuestOptions,
    /// What runs guests.
    pub adapter: Arc<dyn Adapter>,
    /// Sources and built archives.
    pub storage: Arc<dyn Storage>,
    /// Dependency caches.
    pub cache: Arc<dyn Storage>,
    /// How guests are talked to.
    pub client: Client,
}

/// See the module.
pub struct GuestHouse {
    parts: Parts,
    registry: Mutex<HashMap<Arc<str>, Arc<Entry>>>,
    /// Somebody was registered.
    arrivals: Notify,
    names: Names,
    tasks: Tasks,
    closing: AtomicBool,
    usage: Usage,
}

impl GuestHouse {
    /// An empty house.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            registry: Mutex::default(),
            arrivals: Notify::new(),
            names: Names::default(),
            tasks: Tasks::default(),
            closing: AtomicBool::new(false),
            usage: Usage::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Entry>>> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Option<Arc<Entry>> {
        self.lock().get(id).cloned()
    }

    fn guests(&self) -> Result<&dyn Guests, GuestError> {
        self.parts.adapter.guests().ok_or_else(|| {
            let text =
                "runtimes are containers, and this executor runs processes: start it with --adapter docker";
            GuestError::CannotStart(text.into())
        })
    }

    /// all guests, in order of their creation.
    pub fn list(&self) -> Vec<GuestInfo> {
        let mut all: Vec<_> =
            self.lock().values().map(|entry| entry.info(&self.parts.options.hostname)).collect();
        all.sort_by(|a, b| a.created.total_cmp(&b.created));
        all
    }

    ///
    pub fn get(&self, id: &str) -> Option<GuestInfo> {
        self.find(id).map(|entry| entry.info(&self.parts.options.hostname))
    }

    /// Returns when nothing of it is left.
    pub async fn delete(self: &Arc<Self>, id: &str) -> Result<(), GuestError> {
        let entry = self.lock().remove(id).ok_or(GuestError::NotFound)?;
        let house = Arc::clone(self);
        self.tasks
            .finish_always("delete a guest", async move { house.destroy(&entry, Phase::Gone).await })
            .await;
        Ok(())
    }

    /// Takes it out of the listing, unless it was replaced already, and destroys it.
    async fn evict(&self, entry: &Arc<Entry>, phase: Phase) {
        {
            let mut registry = self.lock();
            if registry.get(&entry.order.id).is_some_and(|found| Arc::ptr_eq(found, entry)) {
                registry.remove(&entry.order.id);
            }
        }
        self.destroy(entry, phase).await;
    }

    async fn destroy(&self, entry: &Entry, phase: Phase) {
        entry.close(phase);
        for copy in entry.take_copies() {
            if let Some(address) = copy.lose_spot() {
                self.parts.client.forget(address);
            }
            copy.destroy().await;
        }
    }

    /// what the command wrote to standard output followed by standard error.
    pub async fn command(&self, id: &str, command: &str, limit: Duration) -> Result<Vec<u8>, GuestError> {
        let call = self.lock().get(id).map(InFlight::new).ok_or(GuestError::NotFound)?;
        let entry = Arc::clone(&call.0);
        let begun = Instant::now();
        let phase =
            tokio::time::timeout(limit, entry.settled()).await.map_err(|_| GuestError::CommandTimeout)?;
        let copy = match phase {
            Phase::Up(_) => entry.first_copy().ok_or(GuestError::NotFound)?,
            _ => return Err(GuestError::NotFound),
        };
        let (sender, mut pieces) = mpsc::channel(16);
        let line = ["bash".to_owned(), "-c".to_owned(), command.to_owned()];
        let run = copy.guest.exec(&line, limit.saturating_sub(begun.elapsed()), sender);
        let gather = async {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            while let Some(piece) = pieces.recv().await {
                let room = MAX_COMMAND_OUTPUT.saturating_sub(out.len() + err.len());
                let (to, bytes) = match &piece {
                    Piece::Out(bytes) => (&mut out, bytes),
                    Piece::Err(bytes) => (&mut err, bytes),
                };
                to.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            out.append(&mut err);
            out
        };
        let (code, output) = tokio::join!(run, gather);
        drop(call);
        match code {
            Ok(0) => Ok(output),
            Ok(code) => {
                tracing::info!(runtime = %id, code, "a command failed");
                Err(GuestError::CommandFailed)
            }
            Err(ExecError::TimedOut(_)) => Err(GuestError::CommandTimeout),
            Err(ExecError::Ended(exit)) => {
                tracing::info!(runtime = %id, "a command failed: the container {exit}");
                Err(GuestError::CommandFailed)
            }
            Err(ExecError::Adapter(error)) => Err(GuestError::Internal(error.to_string())),
        }
    }

    /// lines as they are to be sent, from the beginning. An error comes before the first byte; later the
    /// stream just ends, within a second of the build's end.
    pub async fn logs(&self, id: &str, limit: Duration) -> Result<BoxStream<'static, Bytes>, GuestError> {
        let begun = Instant::now();
        let appeared = tokio::time::timeout(APPEARANCE.min(limit), self.appeared(id)).await;
        let entry = appeared.map_err(|_| GuestError::LogsNotFound)?;
        if entry.order.profile == Profile::V2 {
            return Ok(futures_util::stream::empty().boxed());
        }
        let deadline = tokio::time::Instant::from_std(begun + limit);
        let mut follower = entry.output.follow();
        drop(entry);
        let first = tokio::time::timeout_at(deadline, follower.next()).await;
        let first = first.map_err(|_| GuestError::LogsTimeout)?;
        let rest = futures_util::stream::unfold(follower, move |mut follower| async move {
            let next = tokio::time::timeout_at(deadline, follower.next()).await;
            next.ok().flatten().map(|line| (line, follower))
        });
        Ok(futures_util::stream::iter(first).chain(rest).boxed())
    }

    /// how busy this host and each guest is, percent.
    pub async fn usage(&self) -> (f64, Vec<(String, f64)>) {
        let host = self.usage.percent().await;
        let all = match self.guests() {
            Ok(guests) => guests.usage().await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        (host, all)
    }

    async fn appeared(&self, id: &str) -> Arc<Entry> {
        loop {
            let arrival = self.arrivals.notified();
            if let Some(entry) = self.find(id) {
                return entry;
            }
            arrival.await;
        }
    }

    /// until the executor closes: removes what an earlier run left, then collects idle guests
    /// while it makes the wanted images usable, which may take long.
    pub async fn keep(self: Arc<Self>) {
        self.remove_strangers().await;
        tokio::join!(self.prepare_images(), self.maintain());
    }

    async fn maintain(self: &Arc<Self>) {
        let mut interval = tokio::time::interval(self.parts.options.maintenance_interval);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        interval.tick().await;
        while !self.is_closing() {
            interval.tick().await;
            self.collect().await;
        }
    }

    async fn prepare_images(&self) {
        let Ok(guests) = self.guests() else { return };
        for image in &self.parts.options.images {
            if let Err(error) = guests.prepare(image).await {
                tracing::warn!(image, "cannot prepare an image: {error}");
            }
        }
    }

    async fn collect(self: &Arc<Self>) {
        let house = Arc::clone(self);
        // Who is out of the registry is nobody else's to end, also when the executor is told to stop meanwhile.
        self.tasks.finish_always("collect idle guests", async move { house.destroy_idle().await }).await;
        self.remove_strangers().await;
    }

    async fn destroy_idle(&self) {
        let threshold = self.parts.options.inactive_threshold;
        let idle: Vec<_> = self.lock().extract_if(|_, entry| entry.is_idle(threshold)).collect();
        futures_util::stream::iter(idle)
            .for_each_concurrent(DESTROYERS, |(id, entry)| async move {
                tracing::info!(runtime = %id, "collected: nobody called it for {threshold:?}");
                self.destroy(&entry, Phase::Gone).await;
            })
            .await;
    }

    /// Folders of runtimes that are not registered: of an earlier run, or left by a failure.
    async fn remove_strangers(&self) {
        let options = &self.parts.options;
        let known = |name: &str| self.lock().values().any(|entry| entry.name == name);
        folder::remove_strangers(&options.temporary, &options.hostname, known).await;
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// refuses new work, lets running work finish within `grace`, then destroys every guest.
    pub async fn shutdown(&self, grace: Duration) {
        self.closing.store(true, Ordering::Relaxed);
        let busy = || self.lock().values().any(|entry| entry.is_busy());
        let deadline = Instant::now() + grace;
        while busy() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let all: Vec<_> = self.lock().drain().map(|(_, entry)| entry).collect();
        futures_util::stream::iter(all)
            .for_each_concurrent(DESTROYERS, |entry| async move { self.destroy(&entry, Phase::Gone).await })
            .await;
        if !self.tasks.drain(Duration::from_secs(5)).await {
            tracing::warn!(
                tasks = self.tasks.len(),
                "work on runtimes was still going on at the end of the grace"
            );
        }
        self.remove_strangers().await;
    }
}
