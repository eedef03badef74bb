//! Small files in memory, so that a hot one costs neither a system call nor another thread.
//!
//! Bounded twice with one weight: by the number of files, and by [`MEMORY`] bytes in all. A file that has just been
//! evicted lives on in the answers that still send it. An entry ends when it is too old (TTL) or unused for too long
//! (TTI). At most every [`RECHECK`] one request, and only one, is told to look whether the file has changed on disk:
//! a change is seen that soon at the next request or the one after, and everybody else is served from memory meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use quick_cache::sync::{Cache as Store, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use tokio::time::Instant;

use super::file::SiteFile;
use super::options::CacheOptions;

/// All contents together, bytes.
const MEMORY: u64 = 256 << 20;

/// How long a file is trusted to be unchanged.
pub(super) const RECHECK: Duration = Duration::from_secs(1);

/// Fewer shards than cores: each must have room for the largest file.
const SHARDS: usize = 4;

/// The largest file that is kept, bytes. Each shard has room for it and more.
pub(super) const LARGEST: u64 = MEMORY / SHARDS as u64 / 2;

/// See the module.
pub(super) struct Cache {
    store: Store<Box<[u8]>, Arc<Entry>, Weight, std::hash::RandomState>,
    options: CacheOptions,
    start: Instant,
}

struct Entry {
    file: Arc<SiteFile>,
    // Milliseconds since `Cache::start`.
    loaded: u64,
    used: AtomicU64,
    checked: AtomicU64,
}

/// A file weighs its size, but at least its share of the memory: so the weights bound the number too.
#[derive(Clone)]
struct Weight {
    least: u64,
}

impl Weighter<Box<[u8]>, Arc<Entry>> for Weight {
    fn weight(&self, key: &Box<[u8]>, entry: &Arc<Entry>) -> u64 {
        self.least.max(entry.file.size() + key.len() as u64)
    }
}

/// What the cache knows of a path.
pub(super) enum Lookup {
    /// Serve it.
    Fresh(Arc<SiteFile>),
    /// Look whether it has changed; the caller is the only one who was told.
    Check(Arc<SiteFile>),
    /// Nothing.
    Absent,
}

impl Cache {
    pub(super) fn new(options: CacheOptions) -> Self {
        let files = options.capacity.max(1) as u64;
        let least = (MEMORY / files).max(1);
        let shape = OptionsBuilder::new()
            .shards(SHARDS)
            .estimated_items_capacity(options.capacity.max(1))
            .weight_capacity(least * files)
            // No part is reserved for newcomers: with a capacity of one file it would be smaller than a file.
            .hot_allocation(1.0)
            .build()
            .expect("both capacities are given");
        let store = Store::with_options(
            shape,
            Weight { least },
            std::hash::RandomState::new(),
            DefaultLifecycle::default(),
        );
        Self { store, options, start: Instant::now() }
    }

    /// Bytes of the largest file to keep.
    pub(super) fn largest(&self) -> u64 {
        self.options.max_file.min(LARGEST)
    }

    pub(super) fn get(&self, path: &[u8]) -> Lookup {
        let Some(entry) = self.store.get(path) else { return Lookup::Absent };
        let now = self.now();
        let since = |then: u64| Duration::from_millis(now.saturating_sub(then));
        if since(entry.loaded) >= self.options.ttl || since(entry.used.load(Relaxed)) >= self.options.tti {
            self.store.remove_if(path, |other| Arc::ptr_eq(other, &entry));
            return Lookup::Absent;
        }
        entry.used.store(now, Relaxed);
        let checked = entry.checked.load(Relaxed);
        let file = Arc::clone(&entry.file);
        if since(checked) < RECHECK {
            return Lookup::Fresh(file);
        }
        match entry.checked.compare_exchange(checked, now, Relaxed, Relaxed) {
            Ok(_) => Lookup::Check(file),
            Err(_) => Lookup::Fresh(file),
        }
    }

    pub(super) fn put(&self, path: &[u8], file: Arc<SiteFile>) {
        let now = self.now();
        let entry = Entry { file, loaded: now, used: AtomicU64::new(now), checked: AtomicU64::new(now) };
        self.store.insert(path.into(), Arc::new(entry));
    }

    pub(super) fn remove(&self, path: &[u8]) {
        self.store.remove(path);
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(capacity: usize) -> Cache {
        let (ttl, tti) = (Duration::from_secs(100), Duration::from_secs(10));
        Cache::new(CacheOptions { ttl, tti, capacity, max_file: u64::MAX })
    }

    fn put(cache: &Cache, path: &str, size: usize) {
        cache.put(path.as_bytes(), Arc::new(SiteFile::in_memory(&vec![0; size])));
    }

    fn state(cache: &Cache, path: &str) -> &'static str {
        match cache.get(path.as_bytes()) {
            Lookup::Fresh(_) => "fresh",
            Lookup::Check(_) => "check",
            Lookup::Absent => "absent",
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_a_second_looks_again() {
        let cache = cache(10);
        assert_eq!(state(&cache, "a"), "absent");
        put(&cache, "a", 1);
        assert_eq!(state(&cache, "a"), "fresh");
        tokio::time::advance(RECHECK.checked_sub(Duration::from_millis(1)).unwrap()).await;
        assert_eq!(state(&cache, "a"), "fresh");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(state(&cache, "a"), "check");
        assert_eq!(state(&cache, "a"), "fresh", "only one is told");
        tokio::time::advance(RECHECK).await;
        assert_eq!(state(&cache, "a"), "check");
        cache.remove(b"a");
        assert_eq!(state(&cache, "a"), "absent");
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_ends_when_it_is_idle_and_when_it_is_old() {
        let cache = cache(10);
        put(&cache, "idle", 1);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(state(&cache, "idle"), "absent");
        assert!(cache.store.is_empty());

        put(&cache, "busy", 1);
        for _ in 0..11 {
            tokio::time::advance(Duration::from_secs(9)).await;
            assert_ne!(state(&cache, "busy"), "absent");
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(state(&cache, "busy"), "absent", "100 seconds after it was loaded");
    }

    #[tokio::test]
    async fn it_holds_no_more_files_and_no_more_bytes_than_it_may() {
        for capacity in [1, 2, 3, 64, 65, 1000] {
            let cache = cache(capacity);
            for n in 0..3 * capacity {
                put(&cache, &n.to_string(), 1);
                assert_eq!(state(&cache, &n.to_string()), "fresh", "{n} of {capacity}");
                assert!(cache.store.len() <= capacity);
            }
            assert!(cache.store.len() >= capacity - capacity / 8, "{} of {capacity}", cache.store.len());
        }
        let large = cache(4096);
        assert_eq!(large.largest(), LARGEST);
        for n in 0..12 {
            put(&large, &n.to_string(), LARGEST as usize);
            assert_eq!(state(&large, &n.to_string()), "fresh", "{n}");
            assert!(large.store.weight() <= MEMORY);
        }
        assert!(!large.store.is_empty() && large.store.len() < 8, "{}", large.store.len());
    }
}
