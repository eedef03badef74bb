//! What every storage promises, kept by the disk and by a client of a real S3 server.
//!
//! It fails where that server is missing: `tests/s3/install` gets it.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "these are tests")]

#[allow(unreachable_pub, reason = "a part of this test")]
mod s3;

use std::any::Any;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use executor::storage::{Disk, Storage, StorageError};
use s3::{BUCKET, Server, assert_discreet, dsn, dsn_with_secret, relay_until, storage_at};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// A storage, where keys begin, a folder for local files, and what has to outlive all this.
struct Fixture {
    storage: Arc<dyn Storage>,
    prefix: String,
    folder: TempDir,
    _kept: Box<dyn Any + Send>,
}

impl Fixture {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("fetched")
    }

    async fn put(&self, key: &str, content: &[u8]) {
        let file = self.file("put", content);
        assert_eq!(self.storage.store(&file, key).await.unwrap(), content.len() as u64);
    }

    async fn get(&self, key: &str) -> Vec<u8> {
        let size = self.storage.fetch(key, &self.target(), u64::MAX).await.unwrap();
        let content = fs::read(self.target()).unwrap();
        assert_eq!(size, content.len() as u64);
        content
    }
}

fn disk() -> Fixture {
    let kept = tempfile::tempdir().unwrap();
    let prefix = kept.path().to_str().unwrap().to_owned();
    fixture(Arc::new(Disk::new()), prefix, kept)
}

fn disk_below() -> Fixture {
    let kept = tempfile::tempdir().unwrap();
    fixture(Arc::new(Disk::below(kept.path().join("not/yet/there"))), String::new(), kept)
}

fn bucket() -> Fixture {
    let server = Server::shared();
    fixture(server.storage(), format!("/{}", uuid::Uuid::new_v4()), server)
}

fn fixture(storage: Arc<dyn Storage>, prefix: String, kept: impl Any + Send) -> Fixture {
    Fixture { storage, prefix, folder: tempfile::tempdir().unwrap(), _kept: Box::new(kept) }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect()
}

/// Polls, bounded, until it holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Content that shows a misplaced part.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes.div_ceil(8) as u64)
        .flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
        .take(bytes)
        .collect()
}

macro_rules! contract {
    ($($module:ident: $open:expr;)+ => $tests:tt) => {
        $(contract!(@one $module $open, $tests);)+
    };
    (@one $module:ident $open:expr, { $($test:ident)+ }) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let fixture = tokio::task::spawn_blocking($open).await.unwrap();
                    super::$test(&fixture).await;
                }
            )+
        }
    };
}

contract! {
    on_disk: crate::disk;
    on_disk_below_a_folder: crate::disk_below;
    in_a_bucket: crate::bucket;
    => {
        what_is_stored_is_fetched_until_removed
        an_absent_object_is_not_found_and_leaves_no_file
        the_limit_is_the_largest_size
        sizes_around_a_part_come_back_whole
        odd_keys_are_distinct_objects
        keys_that_climb_or_break_lines_are_invalid
        a_missing_local_file_is_a_local_fault
        a_missing_local_folder_is_a_local_fault
        a_read_is_never_torn
        a_dropped_operation_leaves_nothing
    }
}

async fn what_is_stored_is_fetched_until_removed(f: &Fixture) {
    let key = f.key("builds/app-1/x.gz");
    assert_eq!(f.storage.size(&key).await.unwrap(), None);
    f.put(&key, b"first").await;
    assert_eq!(f.storage.size(&key).await.unwrap(), Some(5));
    f.put(&key, b"second one").await;
    fs::write(f.target(), "what was there").unwrap();
    assert_eq!(f.get(&key).await, b"second one");
    f.storage.remove(&key).await.unwrap();
    assert_eq!(f.storage.size(&key).await.unwrap(), None);
    f.storage.remove(&key).await.unwrap();
}

async fn an_absent_object_is_not_found_and_leaves_no_file(f: &Fixture) {
    f.put(&f.key("file"), b"1").await;
    for key in ["absent", "absent/absent", "file/below-a-file"] {
        let error = f.storage.fetch(&f.key(key), &f.target(), 9).await.unwrap_err();
        assert!(matches!(error, StorageError::NotFound { .. }), "{key}: {error:?}");
        assert!(
            error.to_string().contains(key) && error.to_string().contains(&f.storage.describe()),
            "{error}"
        );
    }
    assert_eq!(names(f.folder.path()), ["put"]);
}

async fn the_limit_is_the_largest_size(f: &Fixture) {
    let key = f.key("x");
    f.put(&key, b"12345").await;
    assert_eq!(f.storage.fetch(&key, &f.target(), 5).await.unwrap(), 5);
    fs::remove_file(f.target()).unwrap();
    let error = f.storage.fetch(&key, &f.target(), 4).await.unwrap_err();
    assert!(matches!(error, StorageError::TooLarge { limit: 4, .. }), "{error:?}");
    assert_eq!(names(f.folder.path()), ["put"]);
    f.put(&key, b"").await;
    assert_eq!(f.storage.fetch(&key, &f.target(), 0).await.unwrap(), 0);
}

async fn sizes_around_a_part_come_back_whole(f: &Fixture) {
    for bytes in [0, 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 20 * MIB] {
        let (key, content) = (f.key(&bytes.to_string()), pattern(bytes));
        f.put(&key, &content).await;
        assert_eq!(f.storage.size(&key).await.unwrap(), Some(bytes as u64));
        assert!(f.get(&key).await == content, "{bytes} bytes came back as others");
    }
}

async fn odd_keys_are_distinct_objects(f: &Fixture) {
    let odd = [
        "a b",
        "a+b",
        "a%20b",
        "a%2Fb",
        "a%b",
        "ä/ö",
        "日本",
        "a?b",
        "a#b",
        "a&b=c",
        "a~b",
        "a'(b)!*",
        "a\"b",
        "a[b]",
        "..a",
        "a..b",
        "A B",
        "a@b:c,d;e",
        "a\\b",
        "{a}|^`<b>",
    ];
    for name in odd {
        f.put(&f.key(name), name.as_bytes()).await;
    }
    for name in odd {
        assert_eq!(String::from_utf8(f.get(&f.key(name)).await).unwrap(), name);
    }
    // Clients join paths carelessly.
    assert_eq!(f.get(&f.key("/.//a b")).await, b"a b");
}

async fn keys_that_climb_or_break_lines_are_invalid(f: &Fixture) {
    let file = f.file("file", b"1");
    let long = "k/".repeat(512) + "k";
    for key in ["../x", "a/../b", "a/..", "a/", "a\0b", "a\nb", &long] {
        let key = f.key(key);
        for error in [
            f.storage.fetch(&key, &f.target(), 9).await.unwrap_err(),
            f.storage.store(&file, &key).await.unwrap_err(),
            f.storage.remove(&key).await.unwrap_err(),
            f.storage.size(&key).await.unwrap_err(),
        ] {
            assert!(matches!(error, StorageError::Invalid { .. }), "{key:?}: {error:?}");
            assert!(!error.to_string().contains(['\n', '\0']), "{error:?}");
        }
    }
    assert_eq!(names(f.folder.path()), ["file"]);
}

async fn a_missing_local_file_is_a_local_fault(f: &Fixture) {
    let key = f.key("x");
    f.put(&key, b"old").await;
    for from in [f.folder.path().join("absent"), f.folder.path().to_owned(), PathBuf::from("/dev/null")] {
        let error = f.storage.store(&from, &key).await.unwrap_err();
        assert!(matches!(error, StorageError::Local(_)), "{error:?}");
        assert!(error.to_string().contains(from.to_str().unwrap()), "{error}");
    }
    assert_eq!(f.get(&key).await, b"old");
}

async fn a_missing_local_folder_is_a_local_fault(f: &Fixture) {
    let key = f.key("x");
    f.put(&key, b"1").await;
    let error = f.storage.fetch(&key, &f.folder.path().join("no/folder"), 9).await.unwrap_err();
    assert!(matches!(error, StorageError::Local(_)), "{error:?}");
}

async fn a_read_is_never_torn(f: &Fixture) {
    let key = f.key("x");
    let files: Vec<_> = (0..4u8).map(|n| f.file(&format!("in-{n}"), &vec![n; 9 * MIB])).collect();
    f.storage.store(&files[0], &key).await.unwrap();
    let write = |file| {
        let (storage, key) = (&f.storage, &key);
        async move {
            for _ in 0..4 {
                storage.store(file, key).await.unwrap();
            }
        }
    };
    let read = async {
        for _ in 0..8 {
            let content = f.get(&key).await;
            assert_eq!(content.len(), 9 * MIB);
            assert!(content.iter().all(|byte| *byte == content[0]), "parts of several writes");
        }
    };
    tokio::join!(write(&files[0]), write(&files[1]), write(&files[2]), write(&files[3]), read);
    assert!(f.get(&key).await[0] < 4);
}

async fn a_dropped_operation_leaves_nothing(f: &Fixture) {
    let key = f.key("folder/x");
    let content = pattern(40 * MIB);
    f.put(&key, &content).await;
    let file = f.folder.path().join("put");
    // Dropped after ever more polls, which is in ever later moments.
    for polls in (0..40).chain([100, 200, 400]) {
        let other = f.key("folder/other");
        let target = f.target();
        let mut fetch = f.storage.fetch(&key, &target, u64::MAX);
        let mut store = f.storage.store(&file, &other);
        for _ in 0..polls {
            if futures_util::poll!(&mut fetch).is_ready() {
                fetch = f.storage.fetch(&key, &target, u64::MAX);
            }
            if futures_util::poll!(&mut store).is_ready() {
                store = f.storage.store(&file, &other);
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    let only = |folder: &Path, allowed: &[&str]| {
        eventually("a temporary file stays", || {
            names(folder).iter().all(|name| allowed.contains(&name.as_str()))
        });
    };
    only(f.folder.path(), &["put", "fetched"]);
    if Path::new(&f.key("folder")).is_dir() {
        only(Path::new(&f.key("folder")), &["x", "other"]);
    }
    assert!(f.get(&key).await == content);
    let other = f.storage.size(&f.key("folder/other")).await.unwrap();
    assert!(other.is_none_or(|size| size == content.len() as u64), "{other:?}");
}

#[tokio::test]
async fn on_disk_a_key_is_a_path_of_the_host_and_no_relative_one() {
    let f = disk();
    let key = f.key("new/folders/x");
    f.put(&key, b"1").await;
    assert_eq!(fs::read(&key).unwrap(), b"1");
    let error = f.storage.size("relative").await.unwrap_err();
    assert!(matches!(error, StorageError::Invalid { .. }), "{error:?}");
    assert_eq!(f.storage.describe(), "local disk");
}

#[tokio::test]
async fn on_disk_only_regular_files_are_objects() {
    let f = disk();
    fs::create_dir(f.key("folder")).unwrap();
    assert!(Command::new("mkfifo").arg(f.key("pipe")).status().unwrap().success());
    let file = f.file("file", b"1");
    for key in [f.key("folder"), f.key("pipe"), "/dev/zero".to_owned()] {
        for result in [f.storage.fetch(&key, &f.target(), 9).await, f.storage.size(&key).await.map(|_| 0)] {
            assert!(matches!(result, Err(StorageError::Invalid { .. })), "{key}: {result:?}");
        }
    }
    let error = f.storage.store(&file, &f.key("folder")).await.unwrap_err();
    assert!(matches!(error, StorageError::Invalid { .. }), "{error:?}");
    let error = f.storage.store(&file, &f.key(&"n".repeat(256))).await.unwrap_err();
    assert!(matches!(error, StorageError::Invalid { .. }), "{error:?}");
    let longest = f.key(&"n".repeat(255));
    f.put(&longest, b"1").await;
    assert_eq!(f.get(&longest).await, b"1");
}

#[tokio::test]
async fn below_a_folder_keys_are_within_it() {
    let kept = tempfile::tempdir().unwrap();
    let f = fixture(Arc::new(Disk::below(kept.path())), String::new(), ());
    f.put("/a/b", b"1").await;
    assert_eq!(fs::read(kept.path().join("a/b")).unwrap(), b"1");
    assert!(f.storage.describe().contains(kept.path().to_str().unwrap()));
}

async fn refusals(storage: &Arc<dyn Storage>) -> Vec<StorageError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, vec![1; 9 * MIB]).unwrap();
    let errors = vec![
        storage.fetch("/x", &folder.path().join("to"), 9).await.unwrap_err(),
        storage.store(&file, "/x").await.unwrap_err(),
        storage.size("/x").await.unwrap_err(),
        storage.remove("/x").await.unwrap_err(),
    ];
    assert_eq!(names(folder.path()), ["file"]);
    errors.iter().for_each(assert_discreet);
    errors
}

async fn server() -> Arc<Server> {
    tokio::task::spawn_blocking(|| Arc::new(Server::start())).await.unwrap()
}

#[tokio::test]
async fn wrong_credentials_are_refused() {
    let server = tokio::task::spawn_blocking(Server::shared).await.unwrap();
    let host = server.address().to_string();
    for dsn in [dsn_with_secret(&host, None, "wrong"), dsn_with_secret(&host, Some("nobody"), "wrong")] {
        for error in refusals(&storage_at(&dsn)).await {
            assert!(matches!(error, StorageError::Refused(_)), "{error:?}");
            assert!(error.to_string().contains("check credentials"), "{error}");
        }
    }
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_unavailable() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for error in refusals(&storage_at(&dsn(&address, BUCKET, "insecure=true"))).await {
        assert!(matches!(error, StorageError::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains("refused"), "{error}");
    }
}

#[tokio::test]
async fn the_rest_of_the_path_begins_every_key() {
    let server = tokio::task::spawn_blocking(Server::shared).await.unwrap();
    let at = |bucket: &str, query: &str| storage_at(&dsn(&server.address().to_string(), bucket, query));
    let prefix = uuid::Uuid::new_v4().to_string();
    let inner = fixture(at(&format!("{BUCKET}/{prefix}/a%20b"), "insecure=true"), String::new(), ());
    inner.put("/x", b"1").await;
    let outer = fixture(at(BUCKET, "insecure=true"), String::new(), ());
    assert_eq!(outer.get(&format!("/{prefix}/a b/x")).await, b"1");
    let host = server.address().to_string();
    let overridden = storage_at(&dsn("elsewhere", BUCKET, &format!("url=http://{host}")));
    assert_eq!(overridden.size(&format!("/{prefix}/a b/x")).await.unwrap(), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_during_a_fetch_is_unavailable() {
    let server = server().await;
    let f = fixture(server.storage(), String::new(), ());
    f.put("/x", &pattern(20 * MIB)).await;
    fs::remove_file(f.folder.path().join("put")).unwrap();
    let address = relay_until(&server, 4 * MIB as u64);
    let storage = storage_at(&dsn(&address.to_string(), BUCKET, "insecure=true"));
    let error = storage.fetch("/x", &f.target(), u64::MAX).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable(_)), "{error:?}");
    assert_discreet(&error);
    assert!(names(f.folder.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_during_a_store_is_unavailable() {
    let server = server().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, pattern(20 * MIB)).unwrap();
    let address = relay_until(&server, 12 * MIB as u64);
    let storage = storage_at(&dsn(&address.to_string(), BUCKET, "insecure=true"));
    let error = storage.store(&file, "/x").await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable(_)), "{error:?}");
    assert_discreet(&error);
}
