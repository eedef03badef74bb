//! Objects in an S3 bucket, of Amazon or of anyone who speaks its protocol.
//!
//! `object_store` signs and retries requests; what an operation may cost in time and memory is decided here. It gets
//! the address of the bucket as a whole ("virtual hosted"), so that it only ever appends the key, and neither the
//! environment nor the machine's cloud is asked for credentials. Servers' certificates are checked against the
//! system's trust store, or that of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
//!
//! Servers put access keys into their error documents. So an error's text is made of the document's code, or of the
//! innermost cause of a failed connection, and of nothing else that came from there.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::HttpError;
use object_store::path::Path as ObjectPath;
use object_store::{BackoffConfig, ClientOptions, Error, MultipartUpload, ObjectStoreExt, RetryConfig};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};

use super::partial::{Partial, blocking};
use super::url::Bucket;
use super::{BoxFuture, Storage, StorageError, segments};
use crate::task::Tasks;

/// Larger files go in parts of at least this size, in bytes. S3 wants 5 MiB or more.
const PART: u64 = 8 << 20;
/// S3 allows no more parts.
const MOST_PARTS: u64 = 10_000;
/// Parts on their way at once; each is held in memory.
const PARALLEL: usize = 2;
/// A transfer that is slower has failed, in bytes per second.
const SLOWEST: u64 = 256 << 10;
/// How often a failed request is tried again.
const RETRIES: usize = 3;

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For a connection.
    pub(super) connect: Duration,
    /// For an answer, or for more of it; what is transferred comes on top.
    pub(super) answer: Duration,
}

const LIMITS: Limits = Limits { connect: Duration::from_secs(5), answer: Duration::from_mins(1) };

/// An S3 bucket.
pub struct S3 {
    store: AmazonS3,
    shown: Arc<str>,
    limits: Limits,
    /// What tells the server to forget uploads that came to nothing.
    tasks: Tasks,
}

/// The library's own would show the access key.
impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3").field(&self.shown).finish()
    }
}

impl S3 {
    /// Makes a client for the bucket; contacts nobody.
    pub fn open(bucket: &Bucket) -> Result<Self, StorageError> {
        Self::with_limits(bucket, LIMITS)
    }

    pub(super) fn with_limits(bucket: &Bucket, limits: Limits) -> Result<Self, StorageError> {
        let shown: Arc<str> = format!("S3 at {} ({})", bucket.address, bucket.region).into();
        let options = ClientOptions::new()
            .with_allow_http(bucket.address.starts_with("http://"))
            .with_connect_timeout(limits.connect)
            // Ours depend on what is transferred.
            .with_timeout_disabled()
            .with_read_timeout_disabled();
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        };
        let retry = RetryConfig { backoff, max_retries: RETRIES, retry_timeout: limits.answer };
        let store = AmazonS3Builder::new()
            .with_virtual_hosted_style_request(true)
            .with_endpoint(&bucket.address)
            // Needed and never used: the address has it.
            .with_bucket_name("bucket")
            .with_region(&bucket.region)
            .with_access_key_id(bucket.access_key.expose())
            .with_secret_access_key(bucket.secret_key.expose())
            .with_disable_bulk_delete(true)
            .with_client_options(options)
            .with_retry(retry)
            .build()
            .map_err(|error| {
                StorageError::Refused(format!("{shown} cannot be used: {}", cause(&error)).into())
            })?;
        Ok(Self { store, shown, limits, tasks: Tasks::default() })
    }

    /// Gives `request` the time that an answer and the transfer of so many bytes may take.
    async fn within<T>(
        &self,
        bytes: u64,
        key: &str,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StorageError> {
        let limit = self.limits.answer + Duration::from_secs(bytes / SLOWEST);
        match tokio::time::timeout(limit, request).await {
            Ok(result) => result.map_err(|error| self.error(key, &error)),
            Err(_) => Err(self.too_slow(limit)),
        }
    }

    fn too_slow(&self, limit: Duration) -> StorageError {
        StorageError::Unavailable(
            format!("{} was not done within {} s; try again, check the network", self.shown, limit.as_secs())
                .into(),
        )
    }

    fn error(&self, key: &str, error: &Error) -> StorageError {
        let (status, code) = (status(error), code(error));
        let said = match (&code, status) {
            (Some(code), Some(status)) => format!("{status}, {code}"),
            (Some(code), None) => code.clone(),
            (None, Some(status)) => status.to_string(),
            (None, None) => String::new(),
        };
        let refused = |status: &str| {
            let text = format!(
                "{} refuses the request ({status}); check credentials, region, bucket and this host's clock",
                self.shown
            );
            StorageError::Refused(text.into())
        };
        match error {
            Error::NotFound { .. } if code.as_deref() == Some("NoSuchBucket") => refused("NoSuchBucket"),
            Error::NotFound { .. } => {
                StorageError::NotFound { key: key.into(), storage: Arc::clone(&self.shown) }
            }
            Error::PermissionDenied { .. } => refused(code.as_deref().unwrap_or("403")),
            Error::Unauthenticated { .. } => refused(code.as_deref().unwrap_or("401")),
            // Too much at once or too slow: it passes.
            _ if status.is_some_and(|s| (300..500).contains(&s) && s != 408 && s != 429) => refused(&said),
            _ if !said.is_empty() => {
                StorageError::Unavailable(format!("{} failed ({said}); try again", self.shown).into())
            }
            _ => StorageError::Unavailable(
                format!("{} cannot be reached: {}; check address and network", self.shown, cause(error))
                    .into(),
            ),
        }
    }

    async fn fetch_object(&self, key: &str, to: &Path, limit: u64) -> Result<u64, StorageError> {
        let path = object_path(key)?;
        let found = self.within(0, key, self.store.get(&path)).await?;
        let size = found.meta.size;
        if size > limit {
            return Err(StorageError::TooLarge { key: key.into(), limit });
        }
        let local = |error: std::io::Error| {
            StorageError::Local(format!("the local file {}: {error}", to.display()).into())
        };
        let target = to.to_owned();
        let partial = blocking(move |_| Partial::create(&target)).await.map_err(local)?;
        let file = File::from_std(partial.file().try_clone().map_err(local)?);
        let mut file = BufWriter::with_capacity(256 << 10, file);

        let mut chunks = found.into_stream();
        let whole = self.limits.answer + Duration::from_secs(size / SLOWEST);
        let received = tokio::time::timeout(whole, async {
            let mut received = 0;
            while let Some(chunk) = self.within(0, key, async { chunks.next().await.transpose() }).await? {
                received += chunk.len() as u64;
                if received > size {
                    break;
                }
                file.write_all(&chunk).await.map_err(local)?;
            }
            file.flush().await.map_err(local)?;
            Ok(received)
        })
        .await
        .map_err(|_| self.too_slow(whole))??;
        if received != size {
            return Err(StorageError::Unavailable(
                format!("{} announced {size} bytes and sent others; try again", self.shown).into(),
            ));
        }
        blocking(move |_| partial.commit()).await.map_err(local)?;
        Ok(size)
    }

    async fn store_file(&self, from: &Path, key: &str) -> Result<u64, StorageError> {
        let path = object_path(key)?;
        let local = |error: std::io::Error| {
            StorageError::Local(format!("the local file {}: {error}", from.display()).into())
        };
        // A pipe would block for ever when opened.
        let found = tokio::fs::metadata(from).await.map_err(local)?;
        if !found.is_file() {
            return Err(local(std::io::Error::other("is not a regular file")));
        }
        let mut file = File::open(from).await.map_err(local)?;
        let size = file.metadata().await.map_err(local)?.len();
        if size <= PART {
            let bytes = read_part(&mut file, size).await.map_err(local)?;
            self.within(size, key, self.store.put(&path, bytes.into())).await?;
            return Ok(size);
        }

        let opened = self.within(0, key, self.store.put_multipart(&path)).await?;
        let mut upload =
            Upload { opened: Some(opened), tasks: self.tasks.clone(), limit: self.limits.answer };
        let part = PART.max(size.div_ceil(MOST_PARTS));
        let (mut left, mut sending) = (size, FuturesUnordered::new());
        while left > 0 {
            let bytes = read_part(&mut file, part.min(left)).await.map_err(local)?;
            left -= bytes.len() as u64;
            // Parts share the line, so one may take as long as all of them.
            let time = bytes.len() as u64 * PARALLEL as u64;
            sending.push(self.within(time, key, upload.get().put_part(bytes.into())));
            if sending.len() >= PARALLEL
                && let Some(sent) = sending.next().await
            {
                sent?;
            }
        }
        while let Some(sent) = sending.next().await {
            sent?;
        }
        drop(sending);
        // The server may put the parts together before it answers.
        self.within(size, key, upload.get().complete()).await?;
        upload.opened = None;
        Ok(size)
    }
}

impl Storage for S3 {
    fn fetch<'a>(
        &'a self,
        key: &'a str,
        to: &'a Path,
        limit: u64,
    ) -> BoxFuture<'a, Result<u64, StorageError>> {
        Box::pin(self.fetch_object(key, to, limit))
    }

    fn store<'a>(&'a self, from: &'a Path, key: &'a str) -> BoxFuture<'a, Result<u64, StorageError>> {
        Box::pin(self.store_file(from, key))
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StorageError>> {
        Box::pin(async move {
            let path = object_path(key)?;
            match self.within(0, key, self.store.delete(&path)).await {
                Err(StorageError::NotFound { .. }) => Ok(()),
                result => result,
            }
        })
    }

    fn size<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<u64>, StorageError>> {
        Box::pin(async move {
            let path = object_path(key)?;
            match self.within(0, key, self.store.head(&path)).await {
                Ok(found) => Ok(Some(found.size)),
                Err(StorageError::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn describe(&self) -> String {
        self.shown.as_ref().to_owned()
    }
}

/// An upload in parts, which costs space at the server until it is complete or aborted. Dropped before that, it is
/// aborted as a task.
struct Upload {
    opened: Option<Box<dyn MultipartUpload>>,
    tasks: Tasks,
    limit: Duration,
}

impl Upload {
    fn get(&mut self) -> &mut dyn MultipartUpload {
        self.opened.as_deref_mut().expect("it is taken only at the end")
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut upload) = self.opened.take() else { return };
        // At the runtime's own end there is nobody left to do it.
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let limit = self.limit;
        self.tasks.spawn("abort of an upload", async move {
            let aborted = tokio::time::timeout(limit, upload.abort()).await;
            if !matches!(aborted, Ok(Ok(()))) {
                tracing::warn!(
                    "an incomplete upload could not be removed from S3; a lifecycle rule of the bucket can"
                );
            }
        });
    }
}

fn object_path(key: &str) -> Result<ObjectPath, StorageError> {
    ObjectPath::parse(segments(key)?.join("/")).map_err(|error| StorageError::invalid(key, cause(&error)))
}

/// Exactly so many bytes, or an error.
async fn read_part(file: &mut File, bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut part = vec![0; usize::try_from(bytes).map_err(std::io::Error::other)?];
    file.read_exact(&mut part).await?;
    Ok(part)
}

fn chain<'a>(error: &'a Error) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> + use<'a> {
    std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source())
}

/// The status of the answer, if there was one. The library keeps it to itself, but for its text.
fn status(error: &Error) -> Option<u16> {
    if chain(error).any(<dyn std::error::Error>::is::<HttpError>) {
        return None;
    }
    let text = error.to_string();
    let after = text.split("status code: ").nth(1)?;
    after.get(..3)?.parse().ok()
}

/// The code in S3's error document: `NoSuchKey`, `SignatureDoesNotMatch`.
fn code(error: &Error) -> Option<String> {
    let text = error.to_string();
    let code = text.split("<Code>").nth(1)?.split("</Code>").next()?;
    (code.len() <= 64 && code.chars().all(|c| c.is_ascii_alphanumeric())).then(|| code.to_owned())
}

/// The innermost cause, which is what a person can act on: `Connection refused (os error 111)`.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string().chars().take(300).collect()
}

#[cfg(test)]
#[path = "s3_tests.rs"]
mod tests;
