//! The types by example, by their laws, in a simulated cluster, and on hostile bytes.

mod examples;
mod hostile;
mod model;
mod simulation;

use super::{By, Crdt, CrdtType, DeltaError, Ops, Replica, Tickets};
use crate::state::Millis;

/// An executor.
struct Host {
    replica: Replica,
    tickets: Tickets,
}

impl Host {
    fn new(name: &str) -> Self {
        Self { replica: Replica::new(name).unwrap(), tickets: Tickets::default() }
    }

    /// What `ops` of a call that had observed `observed` change of `current`.
    fn try_delta(&self, current: &Crdt, observed: &Crdt, ops: &str, now: Millis) -> Result<Crdt, DeltaError> {
        let by = By { replica: &self.replica, tickets: &self.tickets, now };
        current.delta(observed, &Ops::parse(current.kind(), ops.as_bytes()).unwrap(), &by)
    }

    fn delta(&self, current: &Crdt, observed: &Crdt, ops: &str, now: Millis) -> Crdt {
        self.try_delta(current, observed, ops, now).unwrap()
    }

    /// `current` after `ops` of a call that saw it, and nobody between.
    fn after(&self, current: &Crdt, ops: &str) -> Crdt {
        join(current, &self.delta(current, current, ops, 1))
    }
}

fn join(a: &Crdt, b: &Crdt) -> Crdt {
    let mut joined = a.clone();
    joined.merge(b).unwrap();
    joined
}

/// What `json` means, whatever the order of elements.
fn value(json: &str) -> serde_json::Value {
    serde_json::from_str(json).unwrap()
}

fn empty(kind: &str) -> Crdt {
    Crdt::new(kind.parse::<CrdtType>().unwrap())
}
