//! One guest in the registry: what is known of it, who waits for it, who uses it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Semaphore, watch};

use super::folder::Folder;
use super::names::Name;
use super::output::Output;
use super::types::{GuestError, GuestInfo, GuestOptions, Order};
use crate::adapter::guest::Guest;
use crate::instance::Secret;
use crate::transport::LogFolder;

/// Seconds since 1970.
pub(super) fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Where a guest stands. Only `Pending` is ever left.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// It is being created or built.
    Pending,
    /// It can be called; how long that took.
    Up(Duration),
    /// It could not be created.
    Failed(Arc<GuestError>),
    /// It was deleted, collected, or removed after its build.
    Gone,
}

/// Where a copy listens, as long as it has not ended since that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) address: SocketAddr,
    /// [`Guest::ends`] before the address was asked for.
    pub(super) ends: u64,
}

/// One container of a guest.
pub(super) struct Copy {
    pub(super) guest: Arc<dyn Guest>,
    pub(super) folder: Folder,
    pub(super) logs: LogFolder,
    spot: Mutex<Option<Spot>>,
    /// Its container's and folder's, until both are gone.
    name: Mutex<Option<Name>>,
}

impl Copy {
    pub(super) fn new(guest: Arc<dyn Guest>, folder: Folder, name: Name) -> Self {
        let logs = LogFolder::new(&folder.logs());
        Self { guest, folder, logs, spot: Mutex::default(), name: Mutex::new(Some(name)) }
    }

    /// Ends it, and returns when nothing of it is left: a successor may take its name.
    pub(super) async fn destroy(&self) {
        self.guest.kill().await;
        self.folder.remove().await;
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn spot(&self) -> MutexGuard<'_, Option<Spot>> {
        self.spot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it was seen listening; none also when it has ended since: what listens there may be another one.
    pub(super) fn known_spot(&self) -> Option<Spot> {
        self.spot().filter(|spot| spot.ends == self.guest.ends())
    }

    /// Remembers where it listens.
    pub(super) fn set_spot(&self, spot: Spot) {
        *self.spot() = Some(spot);
    }

    /// It has to be found again. Gives the address where it was, ended or not, so that connections to it can be
    /// forgotten.
    pub(super) fn lose_spot(&self) -> Option<SocketAddr> {
        self.spot().take().map(|spot| spot.address)
    }

    /// Where it is now, asked for anew; none while it does not run.
    pub(super) async fn look(&self, port: u16) -> Option<Spot> {
        // In this order: an end in between makes the answer void.
        let ends = self.guest.ends();
        let ip = self.guest.address().await.ok()?;
        Some(Spot { address: SocketAddr::new(ip, port), ends })
    }
}

/// See the module.
pub(super) struct Entry {
    pub(super) order: Order,
    pub(super) name: String,
    pub(super) secret: Secret,
    pub(super) output: Output,
    created: f64,
    phase: watch::Sender<Phase>,
    listening: AtomicBool,
    life: Mutex<Life>,
    copies: Mutex<Copies>,
    /// Calls at once over all copies; none: no limit.
    pub(super) slots: Option<Arc<Semaphore>>,
    /// Held by whoever starts one more copy.
    pub(super) growing: Arc<tokio::sync::Mutex<()>>,
}

struct Life {
    updated: f64,
    used: Instant,
    in_flight: usize,
}

#[derive(Default)]
struct Copies {
    all: Vec<(Arc<Copy>, u32)>,
    /// How many there ever were, for their names.
    numbered: usize,
    closed: bool,
}

impl Entry {
    pub(super) fn new(order: Order, options: &GuestOptions) -> Self {
        let slots = options.concurrency.map(|each| {
            let copies = if order.command.is_empty() { options.instances } else { 1 };
            Arc::new(Semaphore::new(each as usize * copies as usize))
        });
        Self {
            name: format!("{}-{}", options.hostname, order.id),
            order,
            secret: Secret::generate(),
            output: Output::default(),
            created: unix_now(),
            phase: watch::Sender::new(Phase::Pending),
            listening: AtomicBool::new(false),
            life: Mutex::new(Life { updated: unix_now(), used: Instant::now(), in_flight: 0 }),
            copies: Mutex::default(),
            slots,
            growing: Arc::default(),
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copies(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_pending(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Pending)
    }

    /// Waits until it is not pending any more. Cancel safe.
    pub(super) async fn settled(&self) -> Phase {
        let mut phase = self.phase.subscribe();
        match phase.wait_for(|phase| !matches!(phase, Phase::Pending)).await {
            Ok(phase) => phase.clone(),
            Err(_) => Phase::Gone,
        }
    }

    /// From now on it can be called; `false`: it was deleted meanwhile.
    pub(super) fn up(&self, took: Duration) -> bool {
        self.phase.send_if_modified(|phase| {
            let pending = matches!(phase, Phase::Pending);
            if pending {
                *phase = Phase::Up(took);
            }
            pending
        })
    }

    /// It is on its way out: nobody starts a copy any more, followers of its output end.
    pub(super) fn close(&self, phase: Phase) {
        self.copies().closed = true;
        self.output.close();
        self.phase.send_replace(phase);
    }

    /// Adds a started copy. Given back when the guest is on its way out.
    pub(super) fn add(&self, copy: Arc<Copy>) -> Result<Arc<Copy>, Arc<Copy>> {
        let mut copies = self.copies();
        if copies.closed {
            return Err(copy);
        }
        copies.all.push((Arc::clone(&copy), 0));
        Ok(copy)
    }

    /// The number of the next copy, from 0.
    pub(super) fn next_number(&self) -> usize {
        let mut copies = self.copies();
        copies.numbered += 1;
        copies.numbered - 1
    }

    /// Takes a copy that has ended out of the choice. `false`: it is out already, or it is the last one, which stays,
    /// because a runtime that is dead is there and fails.
    pub(super) fn discard(&self, copy: &Arc<Copy>) -> bool {
        let mut copies = self.copies();
        let place = copies.all.iter().position(|(there, _)| Arc::ptr_eq(there, copy));
        let Some(place) = place.filter(|_| copies.all.len() > 1) else { return false };
        copies.all.remove(place);
        true
    }

    pub(super) fn first_copy(&self) -> Option<Arc<Copy>> {
        self.copies().all.first().map(|(copy, _)| Arc::clone(copy))
    }

    /// Takes a place in the copy with the fewest calls, if it has fewer than `most`.
    pub(super) fn place(self: &Arc<Self>, most: u32) -> Result<Place, usize> {
        let mut copies = self.copies();
        let count = copies.all.len();
        let freest = copies.all.iter_mut().min_by_key(|(_, calls)| *calls).filter(|(_, calls)| *calls < most);
        let (copy, calls) = freest.ok_or(count)?;
        *calls += 1;
        Ok(Place { entry: Arc::clone(self), copy: Arc::clone(copy) })
    }

    pub(super) fn take_copies(&self) -> Vec<Arc<Copy>> {
        std::mem::take(&mut self.copies().all).into_iter().map(|(copy, _)| copy).collect()
    }

    pub(super) fn heard(&self) {
        self.listening.store(true, Ordering::Relaxed);
    }

    fn touch(&self, change: isize) {
        let mut life = self.life();
        life.updated = unix_now();
        life.used = Instant::now();
        life.in_flight = life.in_flight.saturating_add_signed(change);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.is_pending() || self.life().in_flight > 0
    }

    ///
    pub(super) fn is_idle(&self, threshold: Duration) -> bool {
        !self.is_busy() && self.life().used.elapsed() >= threshold
    }

    pub(super) fn info(&self, hostname: &str) -> GuestInfo {
        let (status, initialised) = match &*self.phase.borrow() {
            Phase::Up(took) => (format!("Up {}s", (took.as_secs_f64() * 100.0).round() / 100.0), true),
            _ => ("pending".to_owned(), false),
        };
        GuestInfo {
            version: self.order.version.clone(),
            created: self.created,
            updated: self.life().updated,
            name: self.name.clone(),
            hostname: hostname.to_owned(),
            status,
            key: self.secret.expose().to_owned(),
            listening: self.listening.load(Ordering::Relaxed),
            image: self.order.image.clone(),
            initialised,
        }
    }
}

/// A call that keeps its guest from being collected.
pub(super) struct InFlight(pub(super) Arc<Entry>);

impl InFlight {
    /// Made under the registry's lock, so that the guest is not collected in between.
    pub(super) fn new(entry: &Arc<Entry>) -> Self {
        entry.touch(1);
        Self(Arc::clone(entry))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.touch(-1);
    }
}

/// A place in one copy, given back when dropped.
pub(super) struct Place {
    entry: Arc<Entry>,
    pub(super) copy: Arc<Copy>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut copies = self.entry.copies();
        if let Some((_, calls)) = copies.all.iter_mut().find(|(copy, _)| Arc::ptr_eq(copy, &self.copy)) {
            *calls -= 1;
        }
    }
}
