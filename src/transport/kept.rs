//! Connections that wait for the next request to the same guest.
//!
//! Nobody watches them while they wait: a connection is looked at when it is taken, and what the guest closed
//! meanwhile is thrown away then. Old ones go at the next use of the pool; whoever stops a guest says `forget`.
//!
//! Invariants: at most [`MOST_EACH`] per guest and [`MOST`] in all wait; none is used again that waited for [`IDLE`]
//! or longer. Failure: none; a connection that is not kept is closed.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;

/// Most idle connections to one guest.
pub(super) const MOST_EACH: usize = 64;
/// Most idle connections in all.
const MOST: usize = 1024;
/// How long one may wait. Less than the 5 s after which Node's and Python's common servers close theirs: a connection
/// that is closed at the very moment it is used cannot be told from a guest that died of the request.
pub(super) const IDLE: Duration = Duration::from_secs(4);

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    /// Per guest, the one that waits longest first.
    guests: HashMap<SocketAddr, VecDeque<(Instant, Connection)>>,
    total: usize,
    swept: Option<Instant>,
}

impl Kept {
    /// The connection that was used last and is still open.
    pub(super) async fn take(&self, address: SocketAddr) -> Option<Connection> {
        loop {
            let mut connection = self.lock().newest(address)?;
            if poll_fn(|cx| Poll::Ready(connection.is_open(cx))).await {
                return Some(connection);
            }
        }
    }

    /// Keeps one that is idle.
    pub(super) fn put(&self, address: SocketAddr, connection: Connection) {
        let now = Instant::now();
        let mut waiting = self.lock();
        waiting.sweep(now);
        if waiting.total >= MOST {
            return;
        }
        let guest = waiting.guests.entry(address).or_default();
        guest.push_back((now, connection));
        if guest.len() > MOST_EACH {
            guest.pop_front();
        } else {
            waiting.total += 1;
        }
    }

    /// Closes all that wait for this guest.
    pub(super) fn forget(&self, address: SocketAddr) {
        let mut waiting = self.lock();
        let gone = waiting.guests.remove(&address).unwrap_or_default();
        waiting.total -= gone.len();
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let waiting = self.lock();
        assert_eq!(waiting.total, waiting.guests.values().map(VecDeque::len).sum::<usize>());
        waiting.total
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn newest(&mut self, address: SocketAddr) -> Option<Connection> {
        self.sweep(Instant::now());
        let guest = self.guests.get_mut(&address)?;
        let (since, connection) = guest.pop_back()?;
        self.total -= 1;
        if guest.is_empty() || since.elapsed() >= IDLE {
            // If the newest is too old, so are the others.
            self.total -= guest.len();
            self.guests.remove(&address);
        }
        (since.elapsed() < IDLE).then_some(connection)
    }

    /// Closes what waited too long, everywhere, at most once per [`IDLE`].
    fn sweep(&mut self, now: Instant) {
        if *self.swept.get_or_insert(now) + IDLE > now {
            return;
        }
        self.swept = Some(now);
        self.guests.retain(|_, guest| {
            guest.retain(|(since, _)| *since + IDLE > now);
            !guest.is_empty()
        });
        self.total = self.guests.values().map(VecDeque::len).sum();
    }
}
