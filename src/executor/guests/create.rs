//! From an order to a guest that can be called, and a build's archive to the storage (R-60 to R-73).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use uuid::Uuid;

use super::GuestHouse;
use super::entry::{Copy, Entry, Phase, unix_now};
use super::folder::Folder;
use super::output::{MAX_OUTPUT, Output};
use super::types::{Created, GuestError, GuestOptions, Order};
use crate::adapter::AdapterError;
use crate::adapter::guest::{ExecError, GuestLaunch, Piece};
use crate::storage::StorageError;
use crate::transport::Profile;

/// Sources and archives larger than this are a mistake.
const MAX_ARCHIVE: u64 = 4 << 30;
/// A dependency cache, bytes.
const MAX_CACHE: u64 = 4 << 30;
/// Docker refuses to start anything with less.
const LEAST_MEMORY: u64 = 6 << 20;
/// The file in which a build keeps its dependencies.
const CACHE_FILE: &str = "stores.sqfs";

type Archive = Option<(u64, String)>;

impl GuestHouse {
    /// R-60 to R-73. Goes on to its end also when the caller leaves.
    pub async fn create(self: &Arc<Self>, order: Order) -> Result<Created, GuestError> {
        check_cache_key(&order.cache_key)?;
        let entry = self.register(order)?;
        let house = Arc::clone(self);
        self.tasks.finish_always("create a guest", async move { house.carry_out(&entry).await }).await
    }

    /// R-61: takes the id, or says who has it.
    pub(super) fn register(&self, order: Order) -> Result<Arc<Entry>, GuestError> {
        if self.is_closing() {
            return Err(GuestError::CannotStart("the executor is shutting down".into()));
        }
        check_id(&order.id)?;
        let entry = Arc::new(Entry::new(order, &self.parts.options));
        let mut registry = self.lock();
        if let Some(there) = registry.get(&entry.order.id) {
            return Err(GuestError::Conflict { pending: there.is_pending() });
        }
        registry.insert(Arc::clone(&entry.order.id), Arc::clone(&entry));
        drop(registry);
        self.arrivals.notify_waiters();
        Ok(entry)
    }

    pub(super) async fn carry_out(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<Created, GuestError> {
        let (begun, start_time) = (Instant::now(), unix_now());
        let result = self.bring_up(entry).await;
        let took = begun.elapsed();
        entry.output.close();
        let archive = match result {
            Ok(archive) => archive,
            Err(error) => {
                tracing::info!(runtime = %entry.order.id, "a runtime was not created: {error}");
                entry.output.drained().await;
                self.evict(entry, Phase::Failed(Arc::new(error.clone()))).await;
                return Err(error);
            }
        };
        let output = entry.answered_output();
        if entry.order.remove {
            entry.output.drained().await;
            self.evict(entry, Phase::Gone).await;
        } else if !entry.up(took) {
            return Err(GuestError::CannotStart("the runtime was deleted while it was being created".into()));
        }
        tracing::info!(runtime = %entry.order.id, image = entry.order.image, ?took, "runtime created");
        let (size, path) = archive.unzip();
        Ok(Created { size, path, output, start_time, duration: took.as_secs_f64() })
    }

    async fn bring_up(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<Archive, GuestError> {
        let order = &entry.order;
        let copy = self.start_copy(entry).await?;
        if !order.command.is_empty() {
            build(entry, &copy).await?;
            self.store_cache(entry, &copy.folder).await;
        }
        if order.destination.is_empty() {
            return Ok(None);
        }
        self.store_archive(order, &copy.folder).await.map(Some)
    }

    /// Starts one container of the guest.
    pub(super) async fn start_copy(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<Arc<Copy>, GuestError> {
        let guests = self.guests()?;
        let (root, order) = (self.parts.options.temporary.clone(), &entry.order);
        let host = self.parts.options.hostname.clone();
        // No id has a `+`; the name of a container cannot have one, but must not be one of another guest either.
        let (folder_name, name) = match entry.next_number() {
            0 => (entry.name.clone(), entry.name.clone()),
            number => {
                let name = &entry.name;
                (format!("{name}+{number}"), format!("{name}.{number}.{}", Uuid::new_v4().simple()))
            }
        };
        let taken = self.names.take(&folder_name).await;
        let made = tokio::task::spawn_blocking(move || Folder::make(&root, &host, &folder_name)).await;
        let folder = made
            .map_err(|error| error.to_string())
            .and_then(|made| made.map_err(|error| error.to_string()))
            .map_err(|error| GuestError::Internal(format!("cannot make the runtime's folder: {error}")))?;
        let result = async {
            let (image, source, ()) = tokio::join!(
                guests.prepare(&order.image),
                self.fetch_source(order, &folder),
                self.fetch_cache(entry, &folder)
            );
            image.map_err(adapter_error)?;
            source?;
            let launch = launch(entry, &folder, name, &self.parts.options);
            guests.start(&launch).await.map_err(adapter_error)
        };
        let guest = match result.await {
            Ok(guest) => guest,
            Err(error) => {
                folder.remove().await;
                return Err(error);
            }
        };
        match entry.add(Arc::new(Copy::new(guest, folder, taken))) {
            Ok(copy) => {
                self.watch(entry, &copy);
                Ok(copy)
            }
            Err(copy) => {
                copy.destroy().await;
                Err(GuestError::CannotStart("the runtime was deleted while it was being created".into()))
            }
        }
    }

    async fn fetch_source(&self, order: &Order, folder: &Folder) -> Result<(), GuestError> {
        if order.source.is_empty() {
            return Ok(());
        }
        let plain = Path::new(&order.source).extension().is_some_and(|kind| kind == "tar");
        let to = folder.source().join(if plain { "code.tar" } else { "code.tar.gz" });
        self.parts.storage.fetch(&order.source, &to, MAX_ARCHIVE).await.map(drop).map_err(storage_error)
    }

    async fn store_archive(&self, order: &Order, folder: &Folder) -> Result<(u64, String), GuestError> {
        let random = Uuid::new_v4().simple().to_string();
        let key = format!("{}/{}.gz", order.destination.trim_end_matches('/'), &random[..13]);
        let storage = &self.parts.storage;
        let file = folder.code().join("code.tar.gz");
        let stored = folder.with_file(&file, async |file| storage.store(file, &key).await);
        match stored.await {
            Some(Ok(size)) => Ok((size, key)),
            Some(Err(error)) => Err(storage_error(error)),
            None => Err(GuestError::CannotStart(
                "the build left no archive: there is no plain file code.tar.gz in /mnt/code".into(),
            )),
        }
    }

    /// R-161: a fault of the cache never fails a build.
    async fn fetch_cache(&self, entry: &Entry, folder: &Folder) {
        let Some(key) = cache_object(&entry.order) else { return };
        match self.parts.cache.fetch(&key, &folder.cache().join(CACHE_FILE), MAX_CACHE).await {
            Ok(_) | Err(StorageError::NotFound { .. }) => {}
            Err(error) => warn(&entry.output, &error.to_string()),
        }
    }

    async fn store_cache(&self, entry: &Entry, folder: &Folder) {
        let Some(key) = cache_object(&entry.order) else { return };
        let file = folder.cache().join(CACHE_FILE);
        let cache = &self.parts.cache;
        let stored = folder.with_file(&file, async |file| match tokio::fs::metadata(file).await {
            Ok(meta) if meta.len() > MAX_CACHE => {
                Err(format!("it has {} bytes, more than {MAX_CACHE}", meta.len()))
            }
            _ => cache.store(file, &key).await.map_err(|error| error.to_string()),
        });
        if let Some(Err(error)) = stored.await {
            warn(&entry.output, &error);
        }
    }
}

fn warn(output: &Output, text: &str) {
    output.warn(format!("[build cache] Warning: {text}\n"));
}

fn cache_object(order: &Order) -> Option<String> {
    let wanted = !order.cache_key.is_empty() && !order.command.is_empty();
    wanted.then(|| format!("/build-cache/{}/lz4-b1M/{CACHE_FILE}", order.cache_key))
}

/// Before anything is made of it: the id becomes part of the names of a container and of a folder.
fn check_id(id: &str) -> Result<(), GuestError> {
    if !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return Ok(());
    }
    let text = "The id of a runtime is part of the name of its container: it may only contain letters, numbers, dots, \
                underscores, and hyphens.";
    Err(GuestError::BadRequest(text.into()))
}

/// R-60.
fn check_cache_key(key: &str) -> Result<(), GuestError> {
    let rest = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let first = key.bytes().next().is_none_or(|b| b.is_ascii_alphanumeric());
    if first && key.bytes().all(rest) && key.len() <= 128 {
        return Ok(());
    }
    let text = "Cache key must start with a letter or number and may only contain letters, numbers, dots, underscores, \
                and hyphens.";
    Err(GuestError::BadRequest(text.into()))
}

/// Runs the build command to its end and records what it writes.
async fn build(entry: &Entry, copy: &Copy) -> Result<(), GuestError> {
    let order = &entry.order;
    let limit = Duration::from_secs(u64::try_from(order.timeout).unwrap_or(0));
    // One pipe for both outputs: only then is the order in which they were written known.
    let line = ["bash", "-c", "exec bash -c \"$0\" 2>&1", &order.command].map(str::to_owned);
    let (sender, mut pieces) = mpsc::channel(64);
    let record = async {
        while let Some(Piece::Out(bytes) | Piece::Err(bytes)) = pieces.recv().await {
            entry.output.push(&bytes);
        }
    };
    let (code, ()) = tokio::join!(copy.guest.exec(&line, limit, sender), record);
    match code {
        Ok(0) => Ok(()),
        Ok(code) => {
            entry.output.flush();
            let text = entry.output.text();
            let start = if text.is_empty() || text.ends_with(b"\n") { "" } else { "\n" };
            entry.output.push(&format!("{start}Build command exited with code {code}.\n").into());
            Err(GuestError::BuildFailed(message(&entry.output.text())))
        }
        Err(ExecError::TimedOut(_)) => Err(GuestError::RuntimeFailed(format!(
            "Build command timed out after {} seconds.",
            limit.as_secs()
        ))),
        Err(ExecError::Ended(exit)) => {
            Err(GuestError::RuntimeFailed(format!("The runtime ended during the build: it {exit}")))
        }
        Err(ExecError::Adapter(error)) => Err(GuestError::RuntimeFailed(error.to_string())),
    }
}

/// R-66: trimmed, at most [`MAX_OUTPUT`] bytes, no character cut in two.
fn message(output: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(output.trim_ascii()).into_owned();
    let end = text.floor_char_boundary(MAX_OUTPUT);
    text.into_bytes()[..end].to_vec()
}

impl Entry {
    /// R-69: what the answer says of the output.
    fn answered_output(&self) -> Vec<super::types::OutputEntry> {
        let entries = self.output.entries();
        if self.order.profile != Profile::V2 {
            return entries;
        }
        let text = self.output.text();
        let text = String::from_utf8_lossy(&text);
        let start = text.char_indices().rev().nth(MAX_OUTPUT - 1).map_or(0, |(at, _)| at);
        let content = if text.is_empty() { "Runtime created successfully!" } else { &text[start..] };
        let at = entries.last().map_or_else(std::time::SystemTime::now, |entry| entry.at);
        vec![super::types::OutputEntry { at, content: content.to_owned().into() }]
    }
}

/// R-62 to R-65, as a pure function.
fn launch(entry: &Entry, folder: &Folder, name: String, options: &GuestOptions) -> GuestLaunch {
    let order = &entry.order;
    let shell = |line: &str| vec!["bash".to_owned(), "-c".to_owned(), line.to_owned()];
    let command = match order.start_command.as_str() {
        "" if order.profile == Profile::V2 && order.command.is_empty() => None,
        "" => Some(["tail", "-f", "/dev/null"].map(str::to_owned).to_vec()),
        line => Some(shell(line)),
    };
    let memory = u64::try_from(order.memory).unwrap_or(0).saturating_mul(1_000_000);
    GuestLaunch {
        name,
        image: order.image.clone(),
        command,
        environment: environment(order, entry.secret.expose(), &options.hostname),
        mounts: folder.mounts(order.profile, cache_object(order).is_some()),
        working_directory: (order.profile == Profile::V2).then(|| "/usr/code".to_owned()),
        cpus: order.cpus,
        memory: memory.max(LEAST_MEMORY),
        restart: order.restart,
        networks: options.networks.clone(),
        label: order.id.to_string(),
        strict: false,
    }
}

/// R-62.
fn environment(order: &Order, secret: &str, hostname: &str) -> Vec<(String, String)> {
    let clean =
        |name: &str| name.chars().filter(|c| c.is_ascii_alphanumeric() || "_.-".contains(*c)).collect();
    let given = order.variables.iter().map(|(name, value): &(String, String)| (clean(name), value.clone()));
    let mut all: Vec<(String, String)> =
        given.filter(|(name, _): &(String, String)| !name.is_empty()).collect();
    let mut set = |name: &str, value: &str| {
        all.retain(|(there, _)| there != name);
        all.push((name.to_owned(), value.to_owned()));
    };
    match order.profile {
        Profile::V2 => {
            set("INTERNAL_RUNTIME_KEY", secret);
            set("INTERNAL_RUNTIME_ENTRYPOINT", &order.entrypoint);
            set("INERNAL_EXECUTOR_HOSTNAME", hostname);
        }
        Profile::V3 | Profile::V4 | Profile::V5 | Profile::Port => {
            set("OPEN_RUNTIMES_SECRET", secret);
            set("OPEN_RUNTIMES_ENTRYPOINT", &order.entrypoint);
            set("OPEN_RUNTIMES_HOSTNAME", hostname);
            set("OPEN_RUNTIMES_CPUS", &order.cpus.to_string());
            set("OPEN_RUNTIMES_MEMORY", &order.memory.to_string());
        }
    }
    if !order.output_directory.is_empty() {
        set("OPEN_RUNTIMES_OUTPUT_DIRECTORY", &order.output_directory);
    }
    set("CI", "true");
    all
}

fn adapter_error(error: AdapterError) -> GuestError {
    match error {
        AdapterError::Unavailable(text) => GuestError::Unavailable(text.to_string()),
        AdapterError::Missing(text) | AdapterError::Failed(text) => GuestError::CannotStart(text.to_string()),
    }
}

fn storage_error(error: StorageError) -> GuestError {
    match error {
        StorageError::Unavailable(text) => GuestError::Unavailable(text.to_string()),
        other => GuestError::CannotStart(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::guest::RestartPolicy;

    pub(super) fn order(profile: Profile) -> Order {
        Order {
            id: "r".into(),
            image: "image".into(),
            entrypoint: "main.js".into(),
            source: String::new(),
            destination: String::new(),
            output_directory: String::new(),
            variables: vec![
                ("A B=C".into(), "1".into()),
                ("CI".into(), "no".into()),
                ("§".into(), "x".into()),
            ],
            start_command: String::new(),
            command: String::new(),
            cache_key: String::new(),
            timeout: 600,
            remove: false,
            cpus: 1.0,
            memory: 512,
            profile,
            version: "v5".into(),
            restart: RestartPolicy::No,
        }
    }

    #[test]
    fn r_60_cache_keys() {
        let most = "a".repeat(128);
        for good in ["", "a", "0.x_-", &most] {
            assert!(check_cache_key(good).is_ok(), "{good}");
        }
        for bad in [".a", "-a", "a/b", "a b", "ä", &format!("{most}a")] {
            assert!(matches!(check_cache_key(bad), Err(GuestError::BadRequest(_))), "{bad}");
        }
    }

    #[test]
    fn r_62_environment() {
        let all = environment(&order(Profile::V5), "key", "host");
        let text: Vec<_> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            text,
            [
                "ABC=1",
                "OPEN_RUNTIMES_SECRET=key",
                "OPEN_RUNTIMES_ENTRYPOINT=main.js",
                "OPEN_RUNTIMES_HOSTNAME=host",
                "OPEN_RUNTIMES_CPUS=1",
                "OPEN_RUNTIMES_MEMORY=512",
                "CI=true"
            ]
        );
        let mut old = order(Profile::V2);
        old.output_directory = "dist".into();
        let names: Vec<_> = environment(&old, "key", "host").into_iter().map(|(name, _)| name).collect();
        let wanted = [
            "ABC",
            "INTERNAL_RUNTIME_KEY",
            "INTERNAL_RUNTIME_ENTRYPOINT",
            "INERNAL_EXECUTOR_HOSTNAME",
            "OPEN_RUNTIMES_OUTPUT_DIRECTORY",
            "CI",
        ];
        assert_eq!(names, wanted);
    }

    #[test]
    fn r_66_the_message_is_cut_between_characters() {
        assert_eq!(message(b"  \n"), b"");
        assert_eq!(message(b" a \n"), b"a");
        let euros = "€".repeat(MAX_OUTPUT);
        assert_eq!(message(euros.as_bytes()).len(), MAX_OUTPUT - MAX_OUTPUT % 3);
        // Each byte is replaced by three.
        assert_eq!(message(&vec![0x80; MAX_OUTPUT + 1]).len(), MAX_OUTPUT - MAX_OUTPUT % 3);
        let cut_before = &euros.as_bytes()[..MAX_OUTPUT];
        assert_eq!(message(cut_before).len(), MAX_OUTPUT - MAX_OUTPUT % 3);
        assert_eq!(message(&vec![b'x'; MAX_OUTPUT]).len(), MAX_OUTPUT);
    }
}
