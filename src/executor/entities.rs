//! Executions of one entity run one after the other, in the order they came; entities do not block each other.
//!
//! A queue exists only while somebody holds its entity. A turn is handed over as a value, so that a waiter who has
//! gone away passes it on instead of losing it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::state::Entity;

/// All entities that somebody works on now.
#[derive(Default)]
pub(super) struct Entities(Mutex<HashMap<Entity, VecDeque<oneshot::Sender<Turn>>>>);

/// The right to work on one entity. Dropping it gives the entity to the next.
pub(super) struct Turn {
    entities: Arc<Entities>,
    entity: Option<Entity>,
}

impl Entities {
    fn lock(&self) -> MutexGuard<'_, HashMap<Entity, VecDeque<oneshot::Sender<Turn>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entity, if nobody has it.
    pub(super) fn free(self: &Arc<Self>, entity: &Entity) -> Option<Turn> {
        match self.lock().entry(entity.clone()) {
            Entry::Vacant(free) => {
                free.insert(VecDeque::new());
                Some(Turn { entities: Arc::clone(self), entity: Some(entity.clone()) })
            }
            Entry::Occupied(_) => None,
        }
    }

    /// Waits for the entity; `None`: `most` others wait for it already. Cancel safe.
    pub(super) async fn turn(self: &Arc<Self>, entity: &Entity, most: usize) -> Option<Turn> {
        let receiver = match self.lock().entry(entity.clone()) {
            Entry::Vacant(free) => {
                free.insert(VecDeque::new());
                return Some(Turn { entities: Arc::clone(self), entity: Some(entity.clone()) });
            }
            Entry::Occupied(mut queue) => {
                let queue = queue.get_mut();
                queue.retain(|waiter| !waiter.is_closed());
                if queue.len() >= most {
                    return None;
                }
                let (sender, receiver) = oneshot::channel();
                queue.push_back(sender);
                receiver
            }
        };
        receiver.await.ok()
    }

    fn pass_on(self: &Arc<Self>, entity: Entity) {
        let mut turn = Turn { entities: Arc::clone(self), entity: Some(entity) };
        while let Some(entity) = turn.entity.take() {
            let next = match self.lock().entry(entity.clone()) {
                Entry::Vacant(_) => return,
                Entry::Occupied(mut queue) => {
                    let next = queue.get_mut().pop_front();
                    if next.is_none() {
                        queue.remove();
                    }
                    next
                }
            };
            let Some(next) = next else { return };
            turn.entity = Some(entity);
            match next.send(turn) {
                Ok(()) => return,
                // It went away; the turn came back.
                Err(back) => turn = back,
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(entity) = self.entity.take() {
            self.entities.pass_on(entity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn entity(key: &str) -> Entity {
        Entity { function: "f".into(), key: key.into() }
    }

    #[tokio::test]
    async fn first_come_first_served_and_the_gone_are_skipped() {
        let all = Arc::new(Entities::default());
        let e = entity("a");
        let first = all.turn(&e, 10).await.unwrap();
        let mut second = Box::pin(all.turn(&e, 10));
        let mut third = Box::pin(all.turn(&e, 10));
        let mut fourth = Box::pin(all.turn(&e, 10));
        for waiter in [&mut second, &mut third, &mut fourth] {
            assert!(waiter.as_mut().now_or_never().is_none());
        }
        drop(second);
        drop(first);
        assert!(fourth.as_mut().now_or_never().is_none());
        let turn = third.await.unwrap();
        assert!(all.turn(&entity("b"), 10).now_or_never().is_some(), "another entity is free");
        drop(turn);
        drop(fourth.await.unwrap());
        assert!(all.lock().is_empty());
    }

    #[tokio::test]
    async fn a_turn_given_to_somebody_who_never_looked_is_passed_on() {
        let all = Arc::new(Entities::default());
        let e = entity("a");
        let first = all.turn(&e, 10).await.unwrap();
        let mut second = Box::pin(all.turn(&e, 10));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        drop(second);
        assert!(all.turn(&e, 10).now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn bound_on_waiters() {
        let all = Arc::new(Entities::default());
        let e = entity("a");
        let _first = all.turn(&e, 1).await.unwrap();
        let mut second = Box::pin(all.turn(&e, 1));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(all.turn(&e, 1).await.is_none(), "one above the bound");
    }
}
