//! A few connections to the server that all calls share.
//!
//! Commands of many calls travel over one connection without waiting for each other's answers; there are
//! [`LINKS`] so that a large value does not hold up everybody. A link is made when it is needed, by one call
//! at a time, and the others wait for that attempt.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, RedisConnectionInfo, RedisError};

use super::{Address, StoreError};
use crate::state::remote::CONNECT;

/// How many connections there are.
const LINKS: usize = 4;

/// One connection in use.
#[derive(Clone)]
pub(super) struct Link {
    /// Those made before a failure have a lower one than those made after.
    generation: usize,
    pub(super) connection: MultiplexedConnection,
}

/// See the module.
pub(super) struct Links {
    client: Result<Client, RedisError>,
    slots: [Slot; LINKS],
    next: AtomicUsize,
    generation: AtomicUsize,
    checked: AtomicBool,
}

#[derive(Default)]
pub(super) struct Slot {
    link: Mutex<Option<Link>>,
    making: tokio::sync::Mutex<()>,
}

impl Slot {
    pub(super) fn ready(&self) -> Option<Link> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Link>> {
        // Only whole values are put in.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Links {
    pub(super) fn new(address: &Address) -> Self {
        let mut login = RedisConnectionInfo::default().set_db(address.database.parse().unwrap_or_default());
        if let Some(user) = &address.user {
            login = login.set_username(user);
        }
        if let Some(password) = &address.password {
            login = login.set_password(password);
        }
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(CONNECT * 2);
        let client = (&*address.host, address.port)
            .into_connection_info()
            .and_then(|info| Client::open(info.set_redis_settings(login).set_tcp_settings(tcp)));
        Self {
            client,
            slots: Default::default(),
            next: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            checked: AtomicBool::new(false),
        }
    }

    /// The place whose turn it is.
    pub(super) fn next(&self) -> &Slot {
        &self.slots[self.next.fetch_add(1, Ordering::Relaxed) % LINKS]
    }

    /// A connection, made and then seen by `prepare` if `slot` has none.
    pub(super) async fn make<F>(
        &self,
        slot: &Slot,
        prepare: impl FnOnce(Result<Link, RedisError>) -> F,
    ) -> Result<Link, StoreError>
    where
        F: Future<Output = Result<Link, StoreError>>,
    {
        let _turn = slot.making.lock().await;
        if let Some(link) = slot.ready() {
            return Ok(link);
        }
        let generation = self.generation.load(Ordering::Acquire);
        let link = self.connect().await.map(|connection| Link { generation, connection });
        let link = prepare(link).await?;
        *slot.lock() = Some(link.clone());
        Ok(link)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        // The time limits are those of the caller.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let client = self.client.as_ref().map_err(Clone::clone)?;
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// `link` is broken, and so are all that are not younger. Who uses one finds out for himself.
    pub(super) fn give_up(&self, link: &Link) {
        self.generation.fetch_max(link.generation + 1, Ordering::AcqRel);
        for slot in &self.slots {
            let mut kept = slot.lock();
            if kept.as_ref().is_some_and(|kept| kept.generation <= link.generation) {
                *kept = None;
            }
        }
    }

    /// Lets go of all.
    pub(super) fn clear(&self) {
        for slot in &self.slots {
            *slot.lock() = None;
        }
    }

    /// `true` once.
    pub(super) fn is_first_check(&self) -> bool {
        !self.checked.swap(true, Ordering::Relaxed)
    }
}
