//! The life of one instance: Starting, Ready, Draining, Stopping. (Stopped: its record is gone.)
//!
//! One enum with the data of each phase and one transition function, so that no combination of booleans can
//! describe an instance that does not exist. Pure: time is an argument.

use std::time::Instant;

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Being started; no call can use it yet.
    Starting,
    /// Takes calls.
    Ready {
        /// Calls it runs now.
        in_flight: u32,
        /// When it last became idle or ready.
        idle_since: Instant,
    },
    /// Finishes what it has and the calls that already wait, then stops.
    Draining {
        /// Calls it runs now.
        in_flight: u32,
    },
    /// Ends; nobody uses it any more.
    Stopping,
}

/// What happens to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its worker said READY.
    Started,
    /// A call was given to it.
    Leased,
    /// A call ended.
    Released,
    /// Its function was replaced or removed.
    Retired,
    /// It is to end now, whatever it does.
    Condemned,
}

impl Phase {
    /// The next phase. An event that makes no sense in a phase leaves it as it is: events cross on their way (an
    /// instance may get ready in the moment it is condemned), and the later phase wins.
    #[must_use]
    pub fn on(self, event: Event, now: Instant) -> Self {
        let next = match (self, event) {
            (Self::Stopping, _)
            | (_, Event::Condemned)
            | (Self::Starting | Self::Ready { in_flight: 0, .. }, Event::Retired)
            | (Self::Draining { in_flight: 0 | 1 }, Event::Released) => Self::Stopping,
            (Self::Starting, Event::Started) => Self::Ready { in_flight: 0, idle_since: now },
            (Self::Ready { in_flight, idle_since }, Event::Leased) => {
                Self::Ready { in_flight: in_flight + 1, idle_since }
            }
            (Self::Ready { in_flight, .. }, Event::Released) => {
                debug_assert!(in_flight > 0);
                Self::Ready { in_flight: in_flight.saturating_sub(1), idle_since: now }
            }
            (Self::Ready { in_flight, .. }, Event::Retired) => Self::Draining { in_flight },
            (Self::Draining { in_flight }, Event::Leased) => Self::Draining { in_flight: in_flight + 1 },
            (Self::Draining { in_flight }, Event::Released) => Self::Draining { in_flight: in_flight - 1 },
            (phase, _) => phase,
        };
        if std::mem::discriminant(&next) != std::mem::discriminant(&self) {
            tracing::debug!(from = ?self, to = ?next, "instance phase");
        }
        next
    }

    /// Whether it counts towards its function's `max-instances`.
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Stopping)
    }

    /// Whether it is ready and runs nothing, and since when.
    pub fn idle_since(self) -> Option<Instant> {
        match self {
            Self::Ready { in_flight: 0, idle_since } => Some(idle_since),
            _ => None,
        }
    }
}
