//! Serves a folder of files: the static sites of the runtime protocol, section 13.1.
//!
//! [`Site`] knows nothing of who may ask: the front of the big host calls it after its own check, that of a site which
//! stands alone uses [`authorized`] and [`challenge`]. A request's path becomes a [`path::SitePath`], which cannot hold
//! an escape; [`disk`] opens what it names so that nothing outside the root can be opened; [`file`] sends it;
//! [`conditions`] judges validators and ranges; [`cache`] keeps small files in memory.
//!
//! Rules: `/x` is the file `x`, else `x.html`, else, for a folder `x`, 308 to `/x/`; `/x/` is `x/index.html`. Hidden
//! files are served, names that begin with `.env` never: not as asked, not behind a link. Folders are not listed, and
//! pipes, sockets and devices are not there. Every answer but the two kinds that are not about the site's content, 401
//! and 503, tells shared caches to keep it; a cached 503 would outlive what went wrong by hours.
//!
//! Dropping [`Site::serve`] is safe at any time: a read that has begun ends on its own thread and is thrown away.

mod auth;
mod cache;
mod conditions;
mod disk;
mod file;
mod options;
mod path;
#[cfg(test)]
mod tests;

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, LOCATION,
    RETRY_AFTER,
};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use tokio::sync::Semaphore;

pub use self::auth::{authorized, challenge};
use self::cache::{Cache, Lookup};
use self::conditions::Verdict;
use self::disk::{Found, Root};
use self::file::{PIECE, SiteFile};
pub use self::options::{CacheOptions, SiteOptions};
use self::path::SitePath;
use super::body::AnswerBody;

const PUBLIC: HeaderValue = HeaderValue::from_static("public, max-age=36000");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

const MISSING: &str = "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>404</title>\n\
                       <h1>404</h1>\n<p>Page not found</p>\n</html>\n";
/// Bytes of the longest page for what is not there.
const MAX_MISSING: u64 = 1 << 20;

/// How many files larger than [`PIECE`] are read whole at a time; others are meanwhile sent from disk.
const FILLS: usize = 8;

/// A folder that is served.
pub struct Site {
    root: Arc<Root>,
    cache: Option<Cache>,
    fills: Arc<Semaphore>,
    cache_header: HeaderName,
    fallback: Option<SitePath>,
    missing: Bytes,
}

/// What there is at a path.
enum Target {
    File(Arc<SiteFile>),
    Folder,
    Nothing,
}

impl Site {
    /// Opens the folder and reads the page for what is not there. Blocks.
    ///
    /// # Errors
    ///
    /// The folder is not there or not a folder.
    pub fn open(root: &Path, options: SiteOptions) -> io::Result<Self> {
        Ok(Self::new(Root::open(root, options.follow_symlinks)?, options))
    }

    fn new(root: Root, options: SiteOptions) -> Self {
        let fallback = options.fallback.as_deref().and_then(SitePath::literal);
        if let (Some(name), None) = (&options.fallback, &fallback) {
            tracing::warn!(
                "the fallback {name:?} of the site cannot be a file below its root; there is none"
            );
        }
        Self {
            root: Arc::new(root),
            cache: options.memory_cache.map(Cache::new),
            fills: Arc::new(Semaphore::new(FILLS)),
            cache_header: options.cache_header,
            fallback,
            missing: options
                .not_found
                .as_deref()
                .and_then(missing_page)
                .unwrap_or(Bytes::from_static(MISSING.as_bytes())),
        }
    }

    /// Answers a request. `path` is what is left of the request's path for this site, still percent-encoded: `/` and
    /// more, or nothing if the site's own name ended it (`/name` for the site `name`), which is redirected to
    /// `/name/` so that relative links work.
    pub async fn serve(&self, request: &Parts, path: &str) -> Response<AnswerBody> {
        let mut response = match self.answer(request, path).await {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(%error, path, "a file of a site could not be read; the client is asked to come back");
                let mut response =
                    page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "The file cannot be read now.\n".into());
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                response
            }
        };
        if !response.status().is_server_error() {
            response.headers_mut().insert(&self.cache_header, PUBLIC);
        }
        if request.method == Method::HEAD {
            *response.body_mut() = AnswerBody::full(Bytes::new());
        }
        response
    }

    async fn answer(&self, request: &Parts, path: &str) -> io::Result<Response<AnswerBody>> {
        if request.method != Method::GET && request.method != Method::HEAD {
            let text = "Files are only read: use GET or HEAD.\n".into();
            let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Ok(response);
        }
        let target = match SitePath::parse(path) {
            Some(_) if path.is_empty() && !request.uri.path().ends_with('/') => Target::Folder,
            Some(path) => self.find(&path).await?,
            None => Target::Nothing,
        };
        match target {
            Target::File(file) => Ok(send(request, &file)),
            Target::Folder => Ok(to_folder(request)),
            Target::Nothing => self.miss(request).await,
        }
    }

    async fn miss(&self, request: &Parts) -> io::Result<Response<AnswerBody>> {
        if let Some(fallback) = &self.fallback
            && let Target::File(file) = self.find(fallback).await?
        {
            return Ok(send(request, &file));
        }
        Ok(page(StatusCode::NOT_FOUND, HTML, self.missing.clone()))
    }

    /// From memory if it is there, else from disk and into memory.
    async fn find(&self, path: &SitePath) -> io::Result<Target> {
        let Some(cache) = &self.cache else { return self.load(path.clone(), None, PIECE as u64).await };
        let known = match cache.get(path.as_bytes()) {
            Lookup::Fresh(file) => return Ok(Target::File(file)),
            Lookup::Check(file) => Some(file),
            Lookup::Absent => None,
        };
        let target = self.load(path.clone(), known.clone(), cache.largest()).await?;
        match (&target, known) {
            (Target::File(file), Some(known)) if Arc::ptr_eq(file, &known) => {}
            (Target::File(file), _) if file.is_whole() && file.size() <= cache.largest() => {
                cache.put(path.as_bytes(), Arc::clone(file));
            }
            (_, Some(_)) => cache.remove(path.as_bytes()),
            (_, None) => {}
        }
        Ok(target)
    }

    /// Looks on disk; gives back `known` if that is still what is there. Reads files up to `whole` bytes if not too
    /// many are being read, and those of one [`PIECE`] always.
    async fn load(&self, path: SitePath, known: Option<Arc<SiteFile>>, whole: u64) -> io::Result<Target> {
        let (root, fills) = (Arc::clone(&self.root), Arc::clone(&self.fills));
        let look = move || {
            let (file, version, name) = match root.find(&path)? {
                Found::File { file, version, added } => (file, version, path.with(added)),
                Found::Folder => return Ok(Target::Folder),
                Found::Nothing => return Ok(Target::Nothing),
            };
            if let Some(known) = known.filter(|known| known.version() == version) {
                return Ok(Target::File(known));
            }
            let piece = PIECE as u64;
            let permit = (version.size > piece).then(|| fills.try_acquire());
            let whole = if matches!(permit, Some(Ok(_))) { whole.max(piece) } else { piece };
            Ok(Target::File(Arc::new(SiteFile::load(file, version, &name, whole)?)))
        };
        tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?
    }
}

fn page(status: StatusCode, kind: HeaderValue, text: Bytes) -> Response<AnswerBody> {
    let length = text.len();
    let mut response = Response::new(AnswerBody::full(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// A file, or what the request's conditions leave of it.
fn send(request: &Parts, file: &SiteFile) -> Response<AnswerBody> {
    let size = file.size();
    let verdict = conditions::judge(&request.headers, &file.validators, size, request.method == Method::GET);
    let (status, part) = match verdict {
        Verdict::Full => (StatusCode::OK, Some(0..size)),
        Verdict::Part(part) => (StatusCode::PARTIAL_CONTENT, Some(part)),
        Verdict::NotModified => (StatusCode::NOT_MODIFIED, None),
        Verdict::Failed => (StatusCode::PRECONDITION_FAILED, None),
        Verdict::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, None),
    };
    let mut response = Response::new(AnswerBody::full(Bytes::new()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(ETAG, file.validators.etag.clone());
    if let Some(date) = &file.last_modified {
        headers.insert(LAST_MODIFIED, date.clone());
    }
    let range = match (status, &part) {
        (StatusCode::PARTIAL_CONTENT, Some(part)) => {
            Some(format!("bytes {}-{}/{size}", part.start, part.end - 1))
        }
        (StatusCode::RANGE_NOT_SATISFIABLE, _) => Some(format!("bytes */{size}")),
        _ => None,
    };
    if let Some(range) = range {
        headers.insert(CONTENT_RANGE, HeaderValue::try_from(range).expect("numbers are ASCII"));
    }
    if let Some(part) = part {
        headers.insert(CONTENT_TYPE, file.content_type.clone());
        headers.insert(CONTENT_LENGTH, HeaderValue::from(part.end - part.start));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        *response.body_mut() = file.body(part);
    }
    response
}

/// The same path with a slash at its end. Relative to what the client asked, so that it is right below a function's
/// name too, and cannot lead to another host.
fn to_folder(request: &Parts) -> Response<AnswerBody> {
    let last = request.uri.path().rsplit('/').next().unwrap_or_default();
    let query = request.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = page(StatusCode::PERMANENT_REDIRECT, TEXT, Bytes::new());
    if let Ok(location) = HeaderValue::try_from(format!("./{last}/{query}")) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// The page for what is not there, from outside the root. `None`: there is none that can be used.
fn missing_page(path: &Path) -> Option<Bytes> {
    let read = || {
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_MISSING + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_MISSING {
            return Err(io::Error::other(format!("it has more than {MAX_MISSING} bytes")));
        }
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Some(bytes.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(%error, "the built-in 404 page is used instead of {}", path.display());
            None
        }
    }
}
