//! The state stores by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::state::StateStore;

/// The default store, and others that functions name.
pub struct Stores {
    default: Arc<dyn StateStore>,
    named: BTreeMap<String, Arc<dyn StateStore>>,
}

impl Stores {
    /// A default store alone.
    pub fn new(default: Arc<dyn StateStore>) -> Self {
        Self { default, named: BTreeMap::new() }
    }

    /// One more.
    #[must_use]
    pub fn with(mut self, name: String, store: Arc<dyn StateStore>) -> Self {
        self.named.insert(name, store);
        self
    }

    /// The store of this name; without one, the default.
    pub fn get(&self, name: Option<&str>) -> Option<&Arc<dyn StateStore>> {
        name.map_or(Some(&self.default), |name| self.named.get(name))
    }

    /// All of them, the default first.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn StateStore>> {
        std::iter::once(&self.default).chain(self.named.values())
    }

    /// Names for a person who wrote another.
    pub fn names(&self) -> String {
        match self.named.len() {
            0 => "there is only the default store, without a name".to_owned(),
            _ => format!("there are: {}", self.named.keys().cloned().collect::<Vec<_>>().join(", ")),
        }
    }

    /// All of them, for people.
    pub fn describe(&self) -> String {
        let named = self.named.iter().map(|(name, store)| format!("{name}={}", store.describe()));
        std::iter::once(self.default.describe()).chain(named).collect::<Vec<_>>().join(", ")
    }
}
