//! A real S3 server (`SeaweedFS`), started for the tests on free ports, and a relay that cuts a transfer short.
//!
//! `tests/s3/install` gets the program. Tests that run at the same time share a server; the last one ends it.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use executor::storage::{Storage, StorageError, StorageUrl, open};
use tempfile::TempDir;

pub const BUCKET: &str = "bucket";
/// What a URL has to encode.
const KEY: &str = "AK+test";
const SECRET: &str = "s3cr+t/x@:%";

pub struct Server {
    child: Mutex<Child>,
    folder: TempDir,
    ports: Vec<u16>,
}

fn program() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map_or_else(
        || Path::new(&std::env::var_os("HOME").expect("HOME is set")).join(".cache"),
        PathBuf::from,
    );
    let program = cache.join("executor-ci/bin/weed");
    assert!(program.exists(), "there is no S3 server at {}: run tests/s3/install", program.display());
    program
}

fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

impl Server {
    /// The server of all tests that run now.
    pub fn shared() -> Arc<Self> {
        static RUNNING: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = running.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start());
        *running = Arc::downgrade(&server);
        server
    }

    /// A server of one's own.
    pub fn start() -> Self {
        // Somebody may take a port between our look and the server's start: then it does not come up.
        (0..3).find_map(|_| Self::try_start()).expect("the S3 server starts; its log is above")
    }

    fn try_start() -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("executor-s3-").tempdir().unwrap();
        let config = serde_json::json!({"identities": [{
            "name": "test",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }]});
        fs::write(folder.path().join("s3.json"), config.to_string()).unwrap();
        let ports = free_ports(8);
        let names = [
            "s3.port",
            "filer.port",
            "s3.port.grpc",
            "filer.port.grpc",
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
        ];
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(program())
            .args(["server", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.config=s3.json"])
            .args(["-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"])
            .args(["-master.volumeSizeLimitMB=64", "-volume.max=50"])
            .args(names.iter().zip(&ports).map(|(name, port)| format!("-{name}={port}")))
            .current_dir(folder.path())
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { child: Mutex::new(child), folder, ports };
        let deadline = Instant::now() + Duration::from_mins(1);
        while Instant::now() < deadline && server.child().try_wait().unwrap().is_none() {
            // The bucket is made through the server's back door; it is there when a signed request finds it.
            if server
                .filer("POST", &format!("/buckets/{BUCKET}/"))
                .is_some_and(|answer| answer.contains(" 201 ") || answer.contains(" 409 "))
                && server.accepts()
            {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("{}", fs::read_to_string(server.folder.path().join("log")).unwrap());
        None
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an object can be stored.
    fn accepts(&self) -> bool {
        let file = self.folder.path().join("probe");
        fs::write(&file, "probe").unwrap();
        let storage = self.storage();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| runtime.block_on(storage.store(&file, "/probe")).is_ok()).join().unwrap()
        })
    }

    /// One request to what lies below S3.
    pub fn filer(&self, method: &str, path: &str) -> Option<String> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.ports[1])).ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let head = "Host: filer\r\nConnection: close\r\nContent-Length: 0\r\nAccept: application/json";
        connection.write_all(format!("{method} {path} HTTP/1.1\r\n{head}\r\n\r\n").as_bytes()).ok()?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer).into_owned())
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[0]))
    }

    pub fn storage(&self) -> Arc<dyn Storage> {
        storage_at(&dsn(&self.address().to_string(), BUCKET, "insecure=true"))
    }

    pub fn kill(&self) {
        let mut child = self.child();
        let _ = child.kill();
        child.wait().unwrap();
        // It puts them there whatever TMPDIR says, and has no time to remove them.
        for (kind, port) in ["filer", "s3", "filer-grpc", "s3-grpc", "master-grpc", "volume-grpc"]
            .iter()
            .flat_map(|kind| self.ports.iter().map(move |port| (kind, port)))
        {
            let _ = fs::remove_file(format!("/tmp/seaweedfs-{kind}-{port}.sock"));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn dsn(host: &str, bucket: &str, query: &str) -> String {
    format!("s3://{}:{}@{host}/{bucket}?region=here&{query}", encoded(KEY), encoded(SECRET))
}

pub fn dsn_with_secret(host: &str, key: Option<&str>, secret: &str) -> String {
    format!("s3://{}:{}@{host}/{BUCKET}?insecure=true", encoded(key.unwrap_or(KEY)), encoded(secret))
}

pub fn storage_at(dsn: &str) -> Arc<dyn Storage> {
    let url = StorageUrl::parse(dsn).unwrap();
    assert!(matches!(url, StorageUrl::S3(_)), "{url:?}");
    open(&url).unwrap()
}

/// Says nothing of the credentials.
pub fn assert_discreet(error: &StorageError) {
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains(SECRET) && !shown.contains(KEY), "{shown}");
}

/// Passes `bytes` to and from `server`, then kills it and accepts nobody any more. Gives its own address.
pub fn relay_until(server: &Arc<Server>, bytes: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (server, passed) = (Arc::clone(server), Arc::new(AtomicU64::new(0)));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let Ok(upstream) = TcpStream::connect(server.address()) else { return };
            for (mut from, mut to) in
                [(client.try_clone().unwrap(), upstream.try_clone().unwrap()), (upstream, client)]
            {
                let (server, passed) = (Arc::clone(&server), Arc::clone(&passed));
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(count @ 1..) = from.read(&mut buffer) {
                        if passed.fetch_add(count as u64, Ordering::SeqCst) + count as u64 > bytes {
                            server.kill();
                            break;
                        }
                        if to.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = from.shutdown(std::net::Shutdown::Both);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    address
}
