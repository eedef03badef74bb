//! What the value must be, told from the history: which calls are in it, what each did, and what each had observed.
//!
//! It knows nothing of dots. A delete or remove takes what its call had observed, and the rest counts.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{CrdtType, Host};

/// Calls, by number.
pub(super) type Calls = BTreeSet<usize>;

/// One call, from its delta on.
pub(super) struct Call {
    pub(super) observed: Calls,
    pub(super) ops: Vec<Value>,
    /// The replica's name.
    pub(super) by: String,
    pub(super) now: u64,
    /// Of its writes, by what is written.
    stamps: BTreeMap<Slot, u64>,
}

/// An entry's name and type, and the voter.
type Slot = (String, CrdtType, String);

/// One change of one entry.
#[derive(Clone, Copy)]
enum Change<'a> {
    Delete,
    Do(CrdtType, &'a Value),
}

impl Call {
    pub(super) fn new(host: &Host, observed: Calls, ops: Vec<Value>, now: u64) -> Self {
        Self { observed, ops, by: host.replica.name().to_owned(), now, stamps: BTreeMap::new() }
    }

    /// What it did to `name`; in a state that is no map, all below the empty name.
    fn changes<'a>(&'a self, kind: CrdtType, name: &'a str) -> impl Iterator<Item = Change<'a>> {
        self.ops.iter().filter_map(move |op| match kind {
            CrdtType::OrMap if op["k"] != name => None,
            CrdtType::OrMap if op["op"] == "delete" => Some(Change::Delete),
            CrdtType::OrMap => Some(Change::Do(op["type"].as_str().unwrap().parse().unwrap(), &op["do"])),
            _ => Some(Change::Do(kind, op)),
        })
    }

    /// Its operations on `name` as an `inner`, those after its last deletion.
    fn effective<'a>(&'a self, kind: CrdtType, name: &'a str, inner: CrdtType) -> Vec<&'a Value> {
        let mut ops = Vec::new();
        for change in self.changes(kind, name) {
            match change {
                Change::Delete => ops.clear(),
                Change::Do(is, op) if is == inner => ops.push(op),
                Change::Do(..) => {}
            }
        }
        ops
    }

    fn deletes(&self, kind: CrdtType, name: &str) -> bool {
        self.changes(kind, name).any(|change| matches!(change, Change::Delete))
    }
}

/// All calls there ever were, whether they came through or not.
pub(super) struct Model {
    pub(super) kind: CrdtType,
    pub(super) calls: Vec<Call>,
}

impl Model {
    /// Adds a call and gives its number.
    pub(super) fn call(&mut self, mut call: Call) -> usize {
        let mut stamps = BTreeMap::new();
        for name in self.names() {
            for kind in CrdtType::ALL {
                for op in call.effective(self.kind, &name, kind) {
                    let voter = op["voter"].as_str().unwrap_or_default();
                    let seen = self.latest(&call.observed, &name, kind, voter).map(|(at, ..)| at + 1);
                    let slot = (name.clone(), kind, voter.to_owned());
                    stamps.insert(slot, call.now.max(seen.unwrap_or(0)));
                }
            }
        }
        call.stamps = stamps;
        self.calls.push(call);
        self.calls.len() - 1
    }

    fn names(&self) -> Vec<String> {
        let names: &[&str] = if self.kind == CrdtType::OrMap { &["x", "y"] } else { &[""] };
        names.iter().map(ToString::to_string).collect()
    }

    /// Those of `calls` that changed `name` and were not deleted by one that had observed them, with their operations.
    fn alive<'a>(&'a self, calls: &'a Calls, name: &'a str, kind: CrdtType) -> Vec<(usize, Vec<&'a Value>)> {
        let all = calls.iter().map(|call| (*call, self.calls[*call].effective(self.kind, name, kind)));
        all.filter(|(call, ops)| {
            let deleted = |by: &usize| {
                self.calls[*by].observed.contains(call) && self.calls[*by].deletes(self.kind, name)
            };
            !ops.is_empty() && !calls.iter().any(deleted)
        })
        .collect()
    }

    /// Time, replica and order of the last write that is alive, and what it wrote.
    fn latest<'a>(
        &'a self,
        calls: &'a Calls,
        name: &'a str,
        kind: CrdtType,
        voter: &str,
    ) -> Option<(u64, &'a str, usize, &'a Value)> {
        let writes = self.alive(calls, name, kind).into_iter().filter_map(|(call, ops)| {
            let op = ops.into_iter().rfind(|op| op["voter"].as_str().unwrap_or_default() == voter)?;
            let stamp = self.calls[call].stamps[&(name.to_owned(), kind, voter.to_owned())];
            Some((stamp, &*self.calls[call].by, call, &op["v"]))
        });
        writes.max_by_key(|(at, by, call, _)| (*at, *by, *call))
    }

    /// The plain value of `name`, and none if it is not there.
    fn plain_of(&self, calls: &Calls, name: &str, kind: CrdtType) -> Option<Value> {
        let alive = self.alive(calls, name, kind);
        let ops = || alive.iter().flat_map(|(_, ops)| ops);
        (!alive.is_empty()).then_some(())?;
        Some(match kind {
            CrdtType::GCounter | CrdtType::PnCounter => {
                json!(ops().map(|op| op["n"].as_i64().unwrap()).sum::<i64>())
            }
            CrdtType::GSet | CrdtType::OrSet => {
                let values: BTreeMap<String, &Value> =
                    ops().map(|op| (op["v"].to_string(), &op["v"])).collect();
                let mut there =
                    values.into_values().filter(|v| self.has(calls, name, kind, &alive, v)).peekable();
                there.peek()?;
                there.cloned().collect()
            }
            CrdtType::LwwRegister => self.latest(calls, name, kind, "")?.3.clone(),
            CrdtType::Flag => json!(true),
            CrdtType::Vote => {
                let voters: BTreeSet<&str> = ops().map(|op| op["voter"].as_str().unwrap()).collect();
                let vote =
                    |voter: &str| Some((voter.to_owned(), self.latest(calls, name, kind, voter)?.3.clone()));
                Value::Object(voters.into_iter().filter_map(vote).collect())
            }
            CrdtType::OrMap => panic!("a map in a map"),
        })
    }

    /// Whether one of those `alive` added `v` in the end and nobody who had observed it removed it.
    fn has(
        &self,
        calls: &Calls,
        name: &str,
        kind: CrdtType,
        alive: &[(usize, Vec<&Value>)],
        v: &Value,
    ) -> bool {
        let added =
            |ops: &Vec<&Value>| ops.iter().rfind(|op| op["v"] == *v).is_some_and(|op| op["op"] == "add");
        let removes = |by: usize| {
            let ops = self.calls[by].effective(self.kind, name, kind);
            ops.iter().any(|op| op["op"] == "remove" && op["v"] == *v)
        };
        let removed = |call| calls.iter().any(|by| self.calls[*by].observed.contains(&call) && removes(*by));
        alive.iter().any(|(call, ops)| added(ops) && !removed(*call))
    }

    /// The plain value of a state with exactly `calls` in it.
    pub(super) fn plain(&self, calls: &Calls) -> Value {
        if self.kind != CrdtType::OrMap {
            let empty = match self.kind {
                CrdtType::GCounter | CrdtType::PnCounter => json!(0),
                CrdtType::GSet | CrdtType::OrSet => json!([]),
                CrdtType::Flag => json!(false),
                CrdtType::Vote => json!({}),
                _ => Value::Null,
            };
            return self.plain_of(calls, "", self.kind).unwrap_or(empty);
        }
        let kinds = CrdtType::ALL.into_iter().take(7);
        let entry = |name: String| {
            let value = kinds.clone().find_map(|kind| self.plain_of(calls, &name, kind))?;
            Some((name, value))
        };
        Value::Object(self.names().into_iter().filter_map(entry).collect())
    }
}
