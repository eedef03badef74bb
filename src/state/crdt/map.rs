//! Maps: entries of the other types by name, under one context.
//!
//! An entry is there as long as something is in it. Deleting it removes from it what was observed, and so it is gone
//! unless somebody changed it meanwhile; then it holds that change.
//!
//! Two executors may create one name with different types at the same time. Both entries are kept and
//! the first in the order of [`CrdtType`] is the one that is shown; deleting a name deletes all that was observed of both.

use std::collections::BTreeMap;

use super::context::Context;
use super::delta::{Author, DeltaError};
use super::ops::{Effect, Effects};
use super::store::Store;
use super::{CrdtType, json};

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Map(pub(super) BTreeMap<Box<str>, BTreeMap<CrdtType, Store>>);

impl Map {
    /// What is shown below `name`.
    fn shown(&self, name: &str) -> Option<(CrdtType, &Store)> {
        self.0.get(name)?.iter().find(|(_, store)| store.lives()).map(|(kind, store)| (*kind, store))
    }

    fn entry(&self, name: &str, kind: CrdtType) -> Option<&Store> {
        self.0.get(name)?.get(&kind)
    }

    fn put(&mut self, name: &str, kind: CrdtType, store: Store) {
        if !store.is_empty() {
            self.0.entry(name.into()).or_default().insert(kind, store);
        }
    }

    pub(super) fn join(&mut self, context: &Context, other: &Self, others: &Context) {
        for (name, kinds) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            for kind in kinds.keys() {
                mine.entry(*kind).or_insert_with(|| Store::new(*kind));
            }
        }
        for (name, kinds) in &mut self.0 {
            kinds.retain(|kind, store| {
                match other.entry(name, *kind) {
                    Some(theirs) => store.join(context, theirs, others),
                    None => store.join(context, &Store::new(*kind), others),
                }
                !store.is_empty()
            });
        }
        self.0.retain(|_, kinds| !kinds.is_empty());
    }

    pub(super) fn delta(
        &self,
        observed: &Self,
        effects: &Effects,
        author: &mut Author<'_>,
    ) -> Result<Self, DeltaError> {
        let mut delta = Self::default();
        for name in &effects.deleted {
            for (kind, seen) in observed.0.get(name).into_iter().flatten() {
                if let Some(mine) = self.entry(name, *kind) {
                    delta.put(name, *kind, mine.clear(seen, author));
                }
            }
        }
        for (name, (kind, effect)) in &effects.entries {
            match observed.shown(name) {
                Some((is, _)) if is != *kind && !effects.deleted.contains(name) => {
                    return Err(DeltaError::EntryType { name: name.to_string(), is, named: *kind });
                }
                _ => delta.change(name, *kind, self, observed, effect, author)?,
            }
        }
        Ok(delta)
    }

    /// Adds to this delta the `effect` on one entry of `current`.
    fn change(
        &mut self,
        name: &str,
        kind: CrdtType,
        current: &Self,
        observed: &Self,
        effect: &Effect,
        author: &mut Author<'_>,
    ) -> Result<(), DeltaError> {
        let empty = Store::new(kind);
        let mine = current.entry(name, kind).unwrap_or(&empty);
        let seen = observed.entry(name, kind).unwrap_or(&empty);
        let mut store = self.entry(name, kind).unwrap_or(&empty).clone();
        mine.delta(seen, effect, author, &mut store)?;
        self.put(name, kind, store);
        Ok(())
    }

    pub(super) fn view(&self, out: &mut String) {
        let shown = self.0.keys().filter_map(|name| Some((&**name, self.shown(name)?)));
        json::object(shown, out, |(kind, store), out| {
            out.push_str("{\"type\":\"");
            out.push_str(kind.name());
            out.push_str("\",\"view\":");
            store.view(out);
            out.push('}');
        });
    }

    pub(super) fn plain(&self, out: &mut String) {
        let shown = self.0.keys().filter_map(|name| Some((&**name, self.shown(name)?.1)));
        json::object(shown, out, Store::plain);
    }
}
