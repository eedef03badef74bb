//! Section 7: where sources, builds and build caches are: disk and a real S3 server.

use std::path::Path;
use std::sync::Arc;

use executor::storage::{Storage, StorageUrl, open};
use serde_json::{Value, json};

use crate::harness::{Api, archive, problem};
use crate::s3;

/// Unpacks the source, adds a file, packs it.
const BUILD: &str = "tar -xzf /tmp/code.tar.gz -C /mnt/code && cd /mnt/code && echo built > built && tar -czf \
                     /tmp/out.tar.gz . && mv /tmp/out.tar.gz code.tar.gz";

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Puts bytes at a key.
fn put(storage: &Arc<dyn Storage>, folder: &Path, key: &str, bytes: &[u8]) {
    let file = folder.join("to-put");
    std::fs::write(&file, bytes).unwrap();
    block_on(storage.store(&file, key)).unwrap();
}

/// The bytes at a key, if it is there.
fn take(storage: &Arc<dyn Storage>, folder: &Path, key: &str) -> Option<Vec<u8>> {
    let file = folder.join("taken");
    block_on(storage.fetch(key, &file, 1 << 30)).ok()?;
    Some(std::fs::read(&file).unwrap())
}

fn first_output(created: &Value) -> &str {
    created["output"][0]["content"].as_str().unwrap()
}

#[test]
fn r_160_a_build_from_and_to_s3() {
    let server = s3::Server::shared();
    let dsn = s3::dsn(&server.address().to_string(), s3::BUCKET, "insecure=true");
    let api = Api::with(&[("OPR_EXECUTOR_CONNECTION_STORAGE", &dsn)]);
    let (storage, folder) = (server.storage(), api.home.path());
    put(&storage, folder, "/storage/sources/code.tar.gz", &archive(&[("index.js", "hello")]));
    let created = api.created(
        "a",
        json!({ "source": "/storage/sources/code.tar.gz", "destination": "/storage/builds/test", "command": BUILD,
            "remove": true }),
    );
    let path = created["path"].as_str().unwrap();
    assert!(path.starts_with("/storage/builds/test/"), "{path}");
    let stored = take(&storage, folder, path).expect("it is there");
    assert_eq!(created["size"], stored.len());
    // What was built can be run.
    api.created("b", json!({ "source": path, "runtimeEntrypoint": "guest v5" }));
    assert_eq!(api.printed("b", "tar -xzOf /tmp/code.tar.gz ./built ./index.js"), "built\nhello");
    let shown = problem(&api.create("c", json!({ "source": "/storage/sources/missing.tar.gz" })));
    assert!(shown.starts_with("500 general_unknown ") && shown.contains("missing.tar.gz"), "{shown}");
    assert!(!api.server().log().contains("s3cr"), "secrets are not logged");
}

#[test]
fn r_160_what_names_no_service_is_the_local_disk() {
    for url in ["", "local://localhost", "file://localhost", "ftp://user:password@host/x", "nonsense"] {
        let api = Api::with(&[("OPR_EXECUTOR_CONNECTION_STORAGE", url)]);
        let source = api.source("code.tar.gz", &[("index.js", "hello")]);
        let created = api.created(
            "a",
            json!({ "source": source, "destination": api.home.file("builds"), "command": BUILD }),
        );
        assert!(Path::new(created["path"].as_str().unwrap()).exists(), "{url}");
    }
}

#[test]
fn r_160_a_service_that_is_away() {
    let api = Api::with(&[(
        "OPR_EXECUTOR_CONNECTION_STORAGE",
        &s3::dsn("127.0.0.1:1", s3::BUCKET, "insecure=true"),
    )]);
    let reply = api.create("a", json!({ "source": "/code.tar.gz" }));
    assert!(problem(&reply).starts_with("500 general_unknown "), "{}", reply.text());
    assert!(!reply.text().contains("s3cr") && !api.server().log().contains("s3cr"), "{}", reply.text());
    api.assert_nothing_left();
    api.created("b", json!({}));
}

#[test]
fn r_161_a_cache_goes_round() {
    let api = Api::start();
    let key = format!("{}.cache-key_1", api.host);
    let object = format!("/build-cache/{key}/lz4-b1M/stores.sqfs");
    let disk = open(&StorageUrl::parse("").unwrap()).unwrap();
    let build = |id: &str, command: &str| {
        api.create(id, json!({ "cacheKey": key, "command": command, "remove": true }))
    };
    // Nothing there yet, and none is made.
    let reply = build("a", "ls -A /cache");
    assert_eq!((reply.status, reply.json()["output"].to_string().as_str()), (201, "[]"), "{}", reply.text());
    assert_eq!(take(&disk, api.home.path(), &object), None);
    // A failed build stores none.
    assert_eq!(build("a", "echo bad > /cache/stores.sqfs; exit 1").status, 400);
    assert_eq!(take(&disk, api.home.path(), &object), None);
    assert_eq!(build("a", "echo one > /cache/stores.sqfs").status, 201);
    let reply = build("a", "cat /cache/stores.sqfs; echo two >> /cache/stores.sqfs");
    assert_eq!(first_output(&reply.json()), "one\n");
    assert_eq!(take(&disk, api.home.path(), &object).as_deref(), Some(&b"one\ntwo\n"[..]));
    // One that is removed stays as it was, and so does another key's.
    assert_eq!(build("a", "rm /cache/stores.sqfs").status, 201);
    assert_eq!(take(&disk, api.home.path(), &object).as_deref(), Some(&b"one\ntwo\n"[..]));
    let other = json!({ "cacheKey": format!("{key}2"), "command": "ls -A /cache", "remove": true });
    assert_eq!(api.created("a", other)["output"].to_string(), "[]");
    std::fs::remove_dir_all(format!("/build-cache/{key}")).unwrap();
}

#[test]
fn r_161_a_cache_of_its_own_on_s3() {
    let server = s3::Server::shared();
    let dsn = s3::dsn(&server.address().to_string(), s3::BUCKET, "insecure=true");
    let api = Api::with(&[("OPR_EXECUTOR_CONNECTION_BUILD_CACHE_STORAGE", &dsn)]);
    let key = format!("{}.s3", api.host);
    let object = format!("/build-cache/{key}/lz4-b1M/stores.sqfs");
    put(&server.storage(), api.home.path(), &object, b"from s3\n");
    let source = api.source("code.tar.gz", &[("index.js", "hello")]);
    let command = "cat /cache/stores.sqfs; echo changed > /cache/stores.sqfs";
    let created =
        api.created("a", json!({ "cacheKey": key, "command": command, "source": source, "remove": true }));
    assert_eq!(first_output(&created), "from s3\n");
    assert_eq!(take(&server.storage(), api.home.path(), &object).as_deref(), Some(&b"changed\n"[..]));
}

#[test]
fn r_161_a_broken_cache_does_not_break_the_build() {
    let away = s3::dsn("127.0.0.1:1", s3::BUCKET, "insecure=true");
    let api = Api::with(&[("OPR_EXECUTOR_CONNECTION_BUILD_CACHE_STORAGE", &away)]);
    let command = "echo built; echo x > /cache/stores.sqfs";
    let created = api.created("a", json!({ "cacheKey": "k", "command": command, "remove": true }));
    let entries: Vec<_> =
        created["output"].as_array().unwrap().iter().map(|e| e["content"].as_str().unwrap()).collect();
    let (warnings, rest): (Vec<&str>, Vec<&str>) =
        entries.iter().partition(|text| text.starts_with("[build cache] Warning: "));
    assert!(!warnings.is_empty() && warnings.iter().all(|text| text.ends_with('\n')), "{entries:?}");
    assert!(!warnings.concat().contains("s3cr"), "{entries:?}");
    assert_eq!(rest.concat(), "built\n");
    assert!(entries[0].starts_with("[build cache] Warning: "), "in front: {entries:?}");
    // What is no plain file is no cache, and nothing of the host.
    let api = Api::start();
    let key = format!("{}.link", api.host);
    for command in
        ["ln -s /etc/hostname /cache/stores.sqfs", "mkdir /cache/stores.sqfs", "mkfifo /cache/stores.sqfs"]
    {
        api.created("b", json!({ "cacheKey": key, "command": command, "remove": true }));
        assert!(!Path::new(&format!("/build-cache/{key}")).exists(), "{command}");
    }
}

#[test]
fn r_162_older_variables() {
    let server = s3::Server::shared();
    let endpoint = format!("http://{}", server.address());
    let api = Api::with(&[
        ("OPR_EXECUTOR_STORAGE_DEVICE", "s3"),
        ("OPR_EXECUTOR_STORAGE_S3_ACCESS_KEY", "AK+test"),
        ("OPR_EXECUTOR_STORAGE_S3_SECRET", "s3cr+t/x@:%"),
        ("OPR_EXECUTOR_STORAGE_S3_REGION", "here"),
        ("OPR_EXECUTOR_STORAGE_S3_BUCKET", s3::BUCKET),
        ("OPR_EXECUTOR_STORAGE_S3_ENDPOINT", &endpoint),
    ]);
    put(&server.storage(), api.home.path(), "/older/code.tar.gz", &archive(&[("index.js", "older")]));
    api.created("a", json!({ "source": "/older/code.tar.gz" }));
    assert_eq!(api.printed("a", "tar -xzOf /tmp/code.tar.gz index.js"), "older");
    // A URL wins.
    let other = s3::dsn("127.0.0.1:1", s3::BUCKET, "insecure=true");
    let api =
        Api::with(&[("OPR_EXECUTOR_STORAGE_DEVICE", "local"), ("OPR_EXECUTOR_CONNECTION_STORAGE", &other)]);
    let source = api.file("code.tar.gz", "local");
    assert_eq!(api.create("a", json!({ "source": source })).status, 500);
    let api = Api::with(&[("OPR_EXECUTOR_STORAGE_DEVICE", "local")]);
    let source = api.file("code.tar.gz", "local");
    api.created("a", json!({ "source": source }));
}
