//! Which containers of ours exist, and what is still to be cleared away.
//!
//! A container is known by its mark, a label whose value is never used twice, and not by its name: names of guests
//! come back, and the late removal of an old one must not hit its successor.
//!
//! Invariant: what was started is either live, or a stray, or gone. When this process dies, labels alone tell.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptions;

use super::client::{ASK, Client, Fault};
use super::exec::Command;
use super::{GUEST, INSTANCE, Shared, container};
use crate::adapter::AdapterError;

/// A label with a value that is never used twice.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    /// The label's name.
    pub(super) label: &'static str,
    /// Its value.
    pub(super) value: String,
}

impl Mark {
    /// The value of the mark among a container's labels.
    pub(super) fn find(labels: &HashMap<String, String>) -> Option<&str> {
        labels.get(INSTANCE).or_else(|| labels.get(GUEST)).map(String::as_str)
    }
}

/// What there is, and what is to go.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Values of the marks that have a unit or a guest in this process: a sweep leaves them alone.
    pub(super) live: HashSet<String>,
    /// What was dropped without an end of its own: the next `start`, `kill` or `sweep` clears it away.
    pub(super) strays: Vec<Stray>,
}

/// Something that runs and has nobody any more.
#[derive(Debug)]
pub(super) enum Stray {
    /// A container that may or may not have been made. Its id, if it was told.
    Container(Mark, Option<String>),
    /// A command inside a guest.
    Command(Command),
}

impl Stray {
    async fn remove(&self, client: &Client) -> Result<(), Fault> {
        match self {
            Self::Container(_, Some(id)) => container::remove(client, id).await,
            Self::Container(mark, None) => {
                for found in list(client, vec![format!("{}={}", mark.label, mark.value)]).await? {
                    container::remove(client, &found.id.unwrap_or_default()).await?;
                }
                Ok(())
            }
            Self::Command(command) => {
                command.end(client).await;
                Ok(())
            }
        }
    }
}

/// The containers with all of `labels` (`key` or `key=value`), also those that do not run.
pub(super) async fn list(client: &Client, labels: Vec<String>) -> Result<Vec<ContainerSummary>, Fault> {
    let options = ListContainersOptions {
        all: true,
        filters: Some(HashMap::from([("label".to_owned(), labels)])),
        ..Default::default()
    };
    client.call(ASK, "list containers", client.docker.list_containers(Some(options))).await
}

impl Shared {
    pub(super) fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what was dropped. What cannot be removed now is tried again the next time.
    pub(super) async fn remove_strays(&self) {
        let strays = std::mem::take(&mut self.ledger().strays);
        if strays.is_empty() {
            return;
        }
        // Whatever is not taken out of here stays listed, also when this future is dropped half way.
        let mut rest = Rest { shared: self, strays };
        let mut next = 0;
        while let Some(stray) = rest.strays.get(next) {
            match stray.remove(&self.client).await {
                Ok(()) => drop(rest.strays.swap_remove(next)),
                Err(fault) => {
                    let error = AdapterError::from(fault);
                    tracing::warn!(?stray, %error, "a stray container stays for now");
                    next += 1;
                }
            }
        }
    }

    /// Clears strays away soon rather than next time: a forgotten command may use all that its guest has. Without a
    /// tokio runtime (the process ends) nothing is done, and they stay listed.
    pub(super) fn hurry(self: &Arc<Self>) {
        if tokio::runtime::Handle::try_current().is_ok() {
            let shared = Arc::clone(self);
            self.tasks.spawn("docker-strays", async move { shared.remove_strays().await });
        }
    }
}

/// Gives strays back to the list when dropped.
struct Rest<'a> {
    shared: &'a Shared,
    strays: Vec<Stray>,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.shared.ledger().strays.append(&mut self.strays);
    }
}
