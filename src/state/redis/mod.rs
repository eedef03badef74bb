//! State in Redis (5 or later, not a cluster), for any number of executors at once.
//!
//! ```text
//!  get, record, functions, count, shelves ──► one command     one round trip each, over a few
//!  apply, records, due, list, sweep       ──► one script      connections that all calls share
//! ```
//!
//! A script runs alone, so there is no between: a commit checks all it expects and then writes all it changes.
//! `layout.rs` describes the keys, `scripts/` writes and reads what takes more than one of them, `links.rs` keeps
//! the connections, `durability.rs` says what the server's settings mean.
//!
//! # Versions
//!
//! Microseconds since 1970, or the last version plus one if that is more. A counter alone would go back with
//! the server when it lost its last writes, and a version would then name two values; so it goes back only if
//! the clock does.
//!
//! # Failure
//!
//! A connection that broke, or on which an answer did not come in time, is given up together with its
//! siblings, as they lead to the same server. A read that met a broken connection is repeated once on a new
//! one; a commit is not, because it may have been applied.
//!
//! Redis does not take back what a script did before it failed. So the scripts look before they write, and what a
//! user may not do is tried once on each new connection (`open.lua`), not in the middle of a commit.
//!
//! # Layouts
//!
//! A store of layout 1 is brought up to date by the first connection, in one script that comes to its end even if
//! nobody waits for it so long: up to three seconds for each 100,000 entities, in which the server does nothing else.
//! Executors of the older release cannot commit from then on; what they delete before they end stays in
//! [`StateStore::count`] until its key is used again. End them first.
//!
//! # Walks
//!
//! [`StateStore::shelves`] goes over the whole database, as SCAN does. A server that starts anew meanwhile goes over it in
//! another order: then something may have been left out.

mod durability;
mod layout;
mod links;
mod scripts;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, ErrorKind, RedisError, Script, ServerErrorKind, Value};

use self::layout::{ALL_RECORDS, FUNCTIONS_KEY, SCHEMA, SCHEMA_KEY};
use self::links::{Link, Links};
use self::scripts::{Scripts, call};
use super::remote::{CONNECT, READ, Remote, clamped, time_for};
use super::{
    Address, BoxFuture, Commit, Cursor, Entity, Listed, MAX_PAGE_BYTES, MAX_RECORDS, Millis, Record,
    RecordId, RecordWrite, Shelves, StateStore, StoreError, Versioned, Write,
};

const READING: &str = "reading from";

/// What `open.lua` tries.
const RIGHTS: &str = "the user lacks rights; it needs get, set, getrange, strlen, del, hget, hset, hdel, hincrby, hkeys, \
                      zadd, zrem, zcard, zrange, zrangebylex, zrangebyscore, scan, time, evalsha and script|load on \
                      the keys executor:*";

/// State in Redis. See the module.
pub struct RedisStore {
    remote: Remote,
    links: Links,
    scripts: Scripts,
}

impl RedisStore {
    /// Connects, and warns if the server keeps nothing on disk. If it cannot be reached, that is done later.
    ///
    /// # Errors
    /// `TooNew`, `Foreign`, `Refused`.
    pub async fn open(address: &Address) -> Result<Self, StoreError> {
        let remote = Remote::new(address.to_string());
        let store = Self { remote, links: Links::new(address), scripts: Scripts::new() };
        let first = store.ping().await;
        store.remote.started(first)?;
        Ok(store)
    }

    async fn link(&self) -> Result<Link, StoreError> {
        let slot = self.links.next();
        if let Some(link) = slot.ready() {
            return Ok(link);
        }
        // Boxed, because it is rare and large, and the future of every operation would have room for it.
        let link = Box::pin(self.links.make(slot, |connection| self.prepare(connection)));
        self.remote.within("connecting to", CONNECT, link).await
    }

    /// What each new connection does first: it may lead to another server than the last one.
    async fn prepare(&self, connection: Result<Link, RedisError>) -> Result<Link, StoreError> {
        let failed = |error| self.explain("connecting to", error);
        let mut link = connection.map_err(failed)?;
        // One by one: of a pipeline's failure the reason is hard to tell.
        for script in self.scripts.all() {
            script.load_async(&mut link.connection).await.map_err(failed)?;
        }
        let mut open = call(&self.scripts.open);
        let schema: Value = open.arg(SCHEMA).query_async(&mut link.connection).await.map_err(failed)?;
        let schema = match &schema {
            Value::BulkString(text) => str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        match schema {
            Some(SCHEMA) => {}
            Some(found) if found > SCHEMA => {
                let store = self.remote.name.clone();
                return Err(StoreError::TooNew { store, found, supported: SCHEMA });
            }
            _ => {
                let why = format!("its key `{SCHEMA_KEY}` holds something else; use another database");
                return Err(StoreError::Foreign { store: self.remote.name.clone(), why });
            }
        }
        if self.links.is_first_check() {
            durability::check(&self.remote.name, &mut link.connection).await;
        }
        Ok(link)
    }

    /// Sends one command over `link`; a link that fails is given up.
    async fn ask(
        &self,
        doing: &str,
        limit: std::time::Duration,
        link: &mut Link,
        command: &Cmd,
    ) -> Result<Result<Value, RedisError>, StoreError> {
        match tokio::time::timeout(limit, link.connection.send_packed_command(command)).await {
            Ok(result) => {
                let result = result.and_then(Value::extract_error);
                if result.as_ref().is_err_and(RedisError::is_unrecoverable_error) {
                    self.links.give_up(link);
                }
                Ok(result)
            }
            Err(late) => {
                self.links.give_up(link);
                Err(self.remote.failed(doing, late))
            }
        }
    }

    /// [`Self::ask`] for what changes nothing, once more if the connection was broken.
    async fn read(&self, doing: &str, limit: Duration, command: &Cmd) -> Result<Value, StoreError> {
        let mut link = self.link().await?;
        let mut answer = self.ask(doing, limit, &mut link, command).await?;
        if answer.as_ref().is_err_and(RedisError::is_unrecoverable_error) {
            link = self.link().await?;
            answer = self.ask(doing, limit, &mut link, command).await?;
        }
        if answer.as_ref().is_err_and(is_no_script) {
            self.load(doing, &mut link).await?;
            answer = self.ask(doing, limit, &mut link, command).await?;
        }
        answer.map_err(|error| self.explain(doing, error))
    }

    /// [`Self::ask`] for a script that writes.
    async fn write(&self, doing: &str, limit: Duration, command: &Cmd) -> Result<Value, StoreError> {
        let mut link = self.link().await?;
        let mut answer = self.ask(doing, limit, &mut link, command).await?;
        if answer.as_ref().is_err_and(is_no_script) {
            self.load(doing, &mut link).await?;
            answer = self.ask(doing, limit, &mut link, command).await?;
        }
        answer.map_err(|error| self.explain(doing, error))
    }

    /// Somebody flushed the scripts. Nothing was run.
    async fn load(&self, doing: &str, link: &mut Link) -> Result<(), StoreError> {
        for script in self.scripts.all() {
            let load = script.load_async(&mut link.connection);
            let loaded = async { load.await.map_err(|error| self.explain(doing, error)) };
            self.remote.within(doing, CONNECT, loaded).await?;
        }
        Ok(())
    }

    async fn read_value(&self, entity: &Entity) -> Result<Option<Versioned>, StoreError> {
        let mut get = redis::cmd("GET");
        match self.read(READING, READ, get.arg(layout::value_key(entity))).await? {
            Value::Nil => Ok(None),
            Value::BulkString(raw) => layout::value(raw).map(Some).ok_or_else(|| self.corrupt()),
            _ => Err(self.corrupt()),
        }
    }

    async fn commit_all(&self, entity: &Entity, commit: &Commit) -> Result<u64, StoreError> {
        commit.check(entity)?;
        let command = commit_call(&self.scripts.commit, entity, commit);
        let answer = match self.write("committing to", time_for(commit.bytes()), &command).await? {
            Value::BulkString(answer) => String::from_utf8(answer).map_err(|_| self.corrupt())?,
            _ => return Err(self.corrupt()),
        };
        let number = |text: &str| text.parse().map_err(|_| self.corrupt());
        if let Some(found) = answer.strip_prefix('-') {
            let expected = commit.value.as_ref().map_or(0, |(expected, _)| *expected);
            return Err(StoreError::Conflict { expected, found: number(found)? });
        }
        if let Some((index, found)) = answer.strip_prefix('!').and_then(|stale| stale.split_once(':')) {
            let index = index.parse().map_err(|_| self.corrupt())?;
            return Err(StoreError::Stale { index, found: number(found)? });
        }
        number(&answer)
    }

    async fn read_record(&self, function: &str, id: &RecordId) -> Result<Option<Record>, StoreError> {
        let mut get = redis::cmd("HGET");
        get.arg(layout::records_key(function, id)).arg(&id.sub[..]);
        match self.read(READING, READ, &get).await? {
            Value::Nil => Ok(None),
            Value::BulkString(raw) => layout::record(id.clone(), raw).map(Some).ok_or_else(|| self.corrupt()),
            _ => Err(self.corrupt()),
        }
    }

    async fn read_page(
        &self,
        function: &str,
        from: &RecordId,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut page = call(&self.scripts.page);
        page.arg(function).arg(from.room as u8).arg(&*from.key).arg(&from.sub[..]);
        page.arg(clamped(limit)).arg(MAX_PAGE_BYTES);
        self.groups(self.read(READING, READ, &page).await?, |[sub, raw]| {
            let id = RecordId { sub: Bytes::from(bytes(sub)?), ..from.clone() };
            layout::record(id, bytes(raw)?)
        })
    }

    async fn read_due(
        &self,
        functions: &[Arc<str>],
        limit: usize,
    ) -> Result<Vec<(Arc<str>, Record)>, StoreError> {
        let mut due = call(&self.scripts.due);
        due.arg(clamped(limit));
        for function in functions {
            due.arg(&**function);
        }
        self.groups(self.read(READING, READ, &due).await?, |[function, room, key, sub, raw]| {
            let (room, sub) = (layout::room(&bytes(room)?)?, Bytes::from(bytes(sub)?));
            let id = RecordId { room, key: text(key)?, sub };
            Some((text(function)?, layout::record(id, bytes(raw)?)?))
        })
    }

    async fn read_list(
        &self,
        function: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let (mut first, last) = layout::range(prefix, after);
        let most = usize::try_from(clamped(limit)).unwrap_or(usize::MAX);
        let mut listed = Vec::new();
        loop {
            let mut list = call(&self.scripts.list);
            list.arg(function).arg(&first).arg(&last).arg(most - listed.len());
            let Value::Array(mut found) = self.read(READING, READ, &list).await? else {
                return Err(self.corrupt());
            };
            let Some(more) = (!found.is_empty()).then(|| found.remove(0)) else { return Err(self.corrupt()) };
            listed.extend(self.groups(Value::Array(found), |[key, begin, length]| {
                let Value::Int(length) = length else { return None };
                layout::listed(&bytes(key)?, &bytes(begin)?, length)
            })?);
            match more {
                Value::BulkString(key) if listed.len() < most => first = [b"(", &key[..]].concat(),
                _ => return Ok(listed),
            }
        }
    }

    async fn read_shelves(&self, from: Option<Cursor>, limit: usize) -> Result<Shelves, StoreError> {
        let from = if let Some(Cursor::At(place)) = from { place } else { 0 };
        let mut scan = redis::cmd("SCAN");
        scan.arg(from).arg("MATCH").arg(ALL_RECORDS).arg("COUNT").arg(clamped(limit).max(1));
        let Value::Array(answer) = self.read(READING, READ, &scan).await? else {
            return Err(self.corrupt());
        };
        let Ok([next, names]) = <[Value; 2]>::try_from(answer) else { return Err(self.corrupt()) };
        let page = self.groups(names, |[name]| layout::shelf(&text(name)?))?;
        let next: u64 = text(next).and_then(|next| next.parse().ok()).ok_or_else(|| self.corrupt())?;
        Ok((page, (next != 0).then_some(Cursor::At(next))))
    }

    async fn read_functions(&self) -> Result<Vec<Arc<str>>, StoreError> {
        let mut get = redis::cmd("HKEYS");
        let names = self.read(READING, READ, get.arg(FUNCTIONS_KEY)).await?;
        let mut names = self.groups(names, |[name]| text(name))?;
        names.sort_unstable();
        Ok(names)
    }

    async fn read_count(&self, function: &str) -> Result<u64, StoreError> {
        let mut count = redis::cmd("ZCARD");
        self.number(&self.read(READING, READ, count.arg(layout::keys_key(function))).await?)
    }

    async fn sweep_all(&self, now: Millis, limit: usize) -> Result<usize, StoreError> {
        let mut sweep = call(&self.scripts.sweep);
        sweep.arg(now).arg(clamped(limit)).arg(MAX_RECORDS);
        self.number(&self.write("sweeping", READ, &sweep).await?)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        // Not PING, which a server answers that can do nothing else.
        let mut get = redis::cmd("GET");
        self.read("asking for the health of", CONNECT, get.arg(SCHEMA_KEY)).await.map(drop)
    }

    fn number<T: TryFrom<i64>>(&self, answer: &Value) -> Result<T, StoreError> {
        let number = if let Value::Int(number) = *answer { T::try_from(number).ok() } else { None };
        number.ok_or_else(|| self.corrupt())
    }

    /// What `read` makes of each N values of an answer.
    fn groups<const N: usize, T>(
        &self,
        answer: Value,
        read: impl Fn([Value; N]) -> Option<T>,
    ) -> Result<Vec<T>, StoreError> {
        let Value::Array(values) = answer else { return Err(self.corrupt()) };
        let mut all = Vec::with_capacity(values.len() / N);
        let mut values = values.into_iter();
        while values.len() > 0 {
            let group = std::array::from_fn(|_| values.next().unwrap_or(Value::Nil));
            all.push(read(group).ok_or_else(|| self.corrupt())?);
        }
        Ok(all)
    }

    fn corrupt(&self) -> StoreError {
        StoreError::Corrupt {
            what: format!("{}: something was not written by an executor", self.remote.name),
        }
    }

    /// What a caller can do about a failure of the server or of the way to it.
    ///
    /// What the server says when it lets nobody in is not repeated, because it may name the user.
    fn explain(&self, doing: &str, error: RedisError) -> StoreError {
        let code = error.code().unwrap_or_default();
        match (error.kind(), code) {
            (ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS") => {
                self.remote.refused("wrong or missing user or password")
            }
            (ErrorKind::Server(ServerErrorKind::NoPerm), _) => self.remote.refused(RIGHTS),
            // How Redis 6 says it of a script.
            _ if error.to_string().contains("user executing the script") => self.remote.refused(RIGHTS),
            (ErrorKind::Server(ServerErrorKind::ResponseError), _)
                if error.to_string().contains("switch database") =>
            {
                self.remote.refused("it has no database of this number")
            }
            (_, "CORRUPT" | "WRONGTYPE") => self.corrupt(),
            _ => self.remote.failed(doing, error),
        }
    }
}

impl StateStore for RedisStore {
    fn get<'a>(&'a self, entity: &'a Entity) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(self.remote.run(self.read_value(entity)))
    }

    fn apply<'a>(&'a self, entity: &'a Entity, commit: Commit) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move { self.remote.run(self.commit_all(entity, &commit)).await })
    }

    fn record<'a>(
        &'a self,
        function: &'a str,
        id: &'a RecordId,
    ) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(self.remote.run(self.read_record(function, id)))
    }

    fn records<'a>(
        &'a self,
        function: &'a str,
        from: &'a RecordId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        Box::pin(self.remote.run(self.read_page(function, from, limit)))
    }

    fn due<'a>(
        &'a self,
        functions: &'a [Arc<str>],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(Arc<str>, Record)>, StoreError>> {
        Box::pin(self.remote.run(self.read_due(functions, limit)))
    }

    fn list<'a>(
        &'a self,
        function: &'a str,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        Box::pin(self.remote.run(self.read_list(function, prefix, after, limit)))
    }

    fn shelves(&self, from: Option<Cursor>, limit: usize) -> BoxFuture<'_, Result<Shelves, StoreError>> {
        Box::pin(self.remote.run(self.read_shelves(from, limit)))
    }

    fn functions(&self) -> BoxFuture<'_, Result<Vec<Arc<str>>, StoreError>> {
        Box::pin(self.remote.run(self.read_functions()))
    }

    fn count<'a>(&'a self, function: &'a str) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(self.remote.run(self.read_count(function)))
    }

    fn sweep(&self, now: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        Box::pin(self.remote.run(self.sweep_all(now, limit)))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.remote.close().await;
            self.links.clear();
        })
    }

    fn describe(&self) -> String {
        self.remote.name.clone()
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.remote.health(self.ping()))
    }
}

/// What `commit.lua` takes.
fn commit_call(script: &Script, entity: &Entity, commit: &Commit) -> Cmd {
    let mut command = call(script);
    command.arg(&*entity.function).arg(&*entity.key);
    let (action, value) = match &commit.value {
        Some((_, Write::Put(value))) => (layout::letter(value.kind), Some(value)),
        Some((_, Write::Delete)) => ("-", None),
        Some((_, Write::Keep)) | None => ("=", None),
    };
    command.arg(optional(commit.value.as_ref().map(|(expected, _)| *expected))).arg(action);
    command.arg(value.map_or(&[][..], |value| &value.bytes)).arg(value.map_or(0, |value| value.schema));
    command.arg(optional(value.and_then(|value| value.expires))).arg(commit.at);
    for change in &commit.records {
        let id = &change.id;
        command.arg(id.room as u8).arg(&*id.key).arg(&id.sub[..]).arg(optional(change.expected));
        match &change.write {
            RecordWrite::Put { bytes, due, expires } => {
                command.arg("p").arg(&bytes[..]).arg(optional(*due)).arg(optional(*expires))
            }
            RecordWrite::Delete => command.arg("-").arg("").arg("").arg(""),
            RecordWrite::Clear => command.arg("c").arg("").arg("").arg(""),
        };
    }
    command
}

fn optional(number: Option<u64>) -> String {
    number.map(|number| number.to_string()).unwrap_or_default()
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    if let Value::BulkString(bytes) = value { Some(bytes) } else { None }
}

fn text(value: Value) -> Option<Arc<str>> {
    String::from_utf8(bytes(value)?).ok().map(Into::into)
}

fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}
