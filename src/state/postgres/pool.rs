//! Connections to the server: how one is made, lent, given back or thrown away.
//!
//! Each has its statements prepared and has seen that the tables are there and known, so also after the
//! server was replaced by an empty one. The pool itself is deadpool's; it only counts and keeps.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, RecycleError, RecycleResult};
use futures_util::future::try_join_all;
use tokio::sync::{Mutex, oneshot};
use tokio::time::timeout;
use tokio_postgres::{Client, Config, NoTls, Statement};

use super::super::remote::CONNECT;
use super::queries::{QUERIES, Query};
use super::{Address, StoreError, explain, schema};
use crate::task::Tasks;

/// How long the server may take to hear that a connection ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// What each connection is told first. Limits in the server are above our own, for what we gave up. The
/// isolation is the one that `schema::STEPS` needs, whatever is usual in this database.
const SESSION: &str = "
    SET statement_timeout = '30s';
    SET idle_in_transaction_session_timeout = '30s';
    SET default_transaction_isolation = 'read committed';
    SET client_min_messages = 'error'";

/// Dropped with the client: the task behind it then has [`GOODBYE`] to end.
type Alive = oneshot::Sender<()>;

/// One connection, ready for use.
pub(super) struct Connection {
    pub(super) client: Client,
    /// In the order of [`Query`].
    statements: Vec<Statement>,
    _alive: Alive,
}

impl Connection {
    pub(super) fn statement(&self, query: Query) -> &Statement {
        &self.statements[query as usize]
    }
}

/// Makes connections.
pub(super) struct Manager {
    name: String,
    config: Config,
    tasks: Tasks,
    /// Whether the server's settings were looked at.
    checked: AtomicBool,
    updating: Arc<Mutex<()>>,
}

impl Manager {
    pub(super) fn new(address: &Address) -> Self {
        let mut config = Config::new();
        config
            .host(&address.host)
            .port(address.port)
            .dbname(&address.database)
            .application_name("executor")
            .connect_timeout(CONNECT)
            .tcp_user_timeout(CONNECT * 2)
            .keepalives_idle(Duration::from_secs(30));
        if let Some(user) = &address.user {
            config.user(user);
        }
        if let Some(password) = &address.password {
            config.password(password);
        }
        let (tasks, checked) = (Tasks::default(), AtomicBool::new(false));
        Self { name: address.to_string(), config, tasks, checked, updating: Arc::default() }
    }

    /// Waits until all connections have ended.
    pub(super) async fn part(&self, limit: Duration) {
        self.tasks.drain(limit).await;
    }

    async fn connect(&self) -> Result<Connection, StoreError> {
        let failed = |error| explain(&self.name, "connecting to", error);
        let (mut client, mut driver) = self.config.connect(NoTls).await.map_err(failed)?;
        let (mut alive, gone) = oneshot::channel::<()>();
        self.tasks.spawn("postgres connection", async move {
            // Its error is told to whoever waits for an answer.
            tokio::select! {
                _ = &mut driver => {}
                _ = gone => { let _ = timeout(GOODBYE, driver).await; }
            }
        });
        client.batch_execute(SESSION).await.map_err(failed)?;
        if !schema::is_current(&self.name, &client).await? {
            (client, alive) = self.update(client, alive).await?;
        }
        if !self.checked.swap(true, Ordering::Relaxed) {
            schema::check_durability(&self.name, &client).await;
        }
        let statements = try_join_all(QUERIES.map(|query| client.prepare(query))).await.map_err(failed)?;
        Ok(Connection { client, statements, _alive: alive })
    }
}

impl Manager {
    /// Updates the schema, once at a time, and to its end even if that takes longer than anybody waits for a connection:
    /// it would else begin anew each time and never end.
    async fn update(&self, mut client: Client, alive: Alive) -> Result<(Client, Alive), StoreError> {
        let turn = Arc::clone(&self.updating).lock_owned().await;
        let name = self.name.clone();
        let update = async move {
            let updated = schema::update(&name, &mut client).await;
            drop(turn);
            updated.map(|()| (client, alive))
        };
        self.tasks.finish_always("postgres update", update).await
    }
}

impl managed::Manager for Manager {
    type Type = Connection;
    type Error = StoreError;

    async fn create(&self) -> Result<Connection, StoreError> {
        // Boxed, because it is rare and large, and the future of every operation would have room for it.
        Box::pin(self.connect()).await
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<StoreError> {
        if connection.client.is_closed() {
            return Err(RecycleError::message("the server has closed the connection"));
        }
        Ok(())
    }
}

/// A connection in use. Thrown away when dropped, unless [`Lent::give_back`] is called.
pub(super) struct Lent(Option<Object<Manager>>);

impl Lent {
    pub(super) fn new(object: Object<Manager>) -> Self {
        Self(Some(object))
    }

    /// To the pool: the last answer was complete.
    pub(super) fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Deref for Lent {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.as_ref().expect("only taken by what ends it")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}
