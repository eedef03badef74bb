//! Names of containers in use: who wants one waits until its last owner is gone for good.
//!
//! A guest's id is free as soon as it is unregistered, but its container and its folder, which have names made of that
//! id, take longer to go.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// See the module. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Names(Arc<Inner>);

#[derive(Default)]
struct Inner {
    taken: Mutex<HashSet<String>>,
    freed: Notify,
}

/// A name of one's own until this is dropped.
pub(super) struct Name {
    names: Names,
    text: String,
}

impl Names {
    fn taken(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the name. Cancel safe.
    pub(super) async fn take(&self, text: &str) -> Name {
        loop {
            let freed = self.0.freed.notified();
            if self.taken().insert(text.to_owned()) {
                return Name { names: self.clone(), text: text.to_owned() };
            }
            freed.await;
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.names.taken().remove(&self.text);
        self.names.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_free_when_its_owner_is_gone() {
        let names = Names::default();
        let first = names.take("a").await;
        let other = names.take("b").await;
        let (mut second, mut third) = (Box::pin(names.take("a")), Box::pin(names.take("a")));
        assert!(
            futures_util::poll!(&mut second).is_pending() && futures_util::poll!(&mut third).is_pending()
        );
        drop(other);
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        let owner = second.await;
        assert!(futures_util::poll!(&mut third).is_pending());
        drop(owner);
        drop(third.await);
        assert!(names.taken().is_empty());
    }
}
