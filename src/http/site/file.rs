//! One file, ready to be sent: whole in memory, or open and read in pieces as the client takes them.
//!
//! A piece is read on a thread that may block, one at a time: a client that reads slowly holds [`PIECE`] bytes and a
//! descriptor, whatever the file's size. A file that becomes shorter while it is sent breaks the answer off, as the
//! length is already promised.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::HeaderValue;
use mime_guess::Mime;
use mime_guess::mime::{APPLICATION_OCTET_STREAM, CHARSET, TEXT};

use super::conditions::{Validators, http_date};
use super::disk::{self, Version};
use crate::http::body::AnswerBody;

/// Bytes that are read at once. A file of at most this size is read when it is opened.
pub(super) const PIECE: usize = 128 << 10;

/// Seconds from 1970 to 1980: archives that are to be the same each time set the clock to something earlier.
const BELIEVABLE: i64 = 315_532_800;
/// The end of the year 9999, where the dates of HTTP end.
const LAST_DATE: i64 = 253_402_300_799;

/// See the module.
#[derive(Debug)]
pub(super) struct SiteFile {
    pub(super) validators: Validators,
    pub(super) last_modified: Option<HeaderValue>,
    pub(super) content_type: HeaderValue,
    version: Version,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Whole(Bytes),
    Open(Arc<File>),
}

impl SiteFile {
    /// Takes an open file of this name; reads it if it has at most `whole` bytes. Blocks.
    pub(super) fn load(file: File, version: Version, name: &[u8], whole: u64) -> io::Result<Self> {
        let content = if version.size <= whole {
            Content::Whole(disk::read(&file, 0, version.size as usize)?.into())
        } else {
            Content::Open(Arc::new(file))
        };
        let modified = believable(version.modified.0);
        Ok(Self {
            validators: Validators { etag: etag(&version), modified },
            last_modified: modified.map(http_date),
            content_type: content_type(name),
            version,
            content,
        })
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        self.version.size
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    pub(super) fn is_whole(&self) -> bool {
        matches!(self.content, Content::Whole(_))
    }

    /// A part of it, which must be within its size.
    pub(super) fn body(&self, part: Range<u64>) -> AnswerBody {
        match &self.content {
            Content::Whole(bytes) => AnswerBody::full(bytes.slice(part.start as usize..part.end as usize)),
            Content::Open(file) => AnswerBody::own(Body::from_stream(pieces(Arc::clone(file), part))),
        }
    }

    #[cfg(test)]
    pub(super) fn in_memory(bytes: &[u8]) -> Self {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let size = bytes.len() as u64;
        let version = Version { size, ..Version::default() };
        Self::load(file, version, b"x", u64::MAX).unwrap()
    }
}

/// The bytes of a part, read as they are asked for.
fn pieces(file: Arc<File>, part: Range<u64>) -> impl stream::Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(part, move |rest| {
        let file = Arc::clone(&file);
        async move {
            if rest.is_empty() {
                return Ok(None);
            }
            let length = (rest.end - rest.start).min(PIECE as u64) as usize;
            let read = tokio::task::spawn_blocking(move || disk::read(&file, rest.start, length));
            let bytes = read.await.map_err(io::Error::other)??;
            Ok(Some((bytes.into(), rest.start + length as u64..rest.end)))
        }
    })
}

/// Differs for each version on one host: unlike the file's own clock, the kernel's stamp cannot be set back.
fn etag(version: &Version) -> HeaderValue {
    let ((modified, modified_ns), (changed, changed_ns)) = (version.modified, version.changed);
    let tag = format!("\"{:x}-{modified:x}.{modified_ns:x}-{changed:x}.{changed_ns:x}\"", version.size);
    HeaderValue::try_from(tag).expect("hexadecimal digits are ASCII")
}

fn believable(seconds: i64) -> Option<u64> {
    (BELIEVABLE..=LAST_DATE).contains(&seconds).then_some(seconds as u64)
}

fn content_type(name: &[u8]) -> HeaderValue {
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    let mime: Mime = mime_guess::from_path(name).first().unwrap_or(APPLICATION_OCTET_STREAM);
    let text = mime.type_() == TEXT && mime.get_param(CHARSET).is_none();
    HeaderValue::try_from(format!("{mime}{}", if text { "; charset=utf-8" } else { "" }))
        .expect("the table of types is ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_come_from_the_extension() {
        for (name, expected) in [
            ("index.html", "text/html; charset=utf-8"),
            ("a/b.css", "text/css; charset=utf-8"),
            ("a.JS", "text/javascript; charset=utf-8"),
            ("a.mjs", "application/javascript"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("a.png", "image/png"),
            ("a.wasm", "application/wasm"),
            ("a.woff2", "font/woff2"),
            ("a.tar.gz", "application/gzip"),
            ("a", "application/octet-stream"),
            (".html", "application/octet-stream"),
            ("a.no-such-type", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name.as_bytes()), expected, "{name}");
        }
        assert_eq!(content_type(b"\xff.html"), "text/html; charset=utf-8");
    }

    #[test]
    fn only_believable_dates_are_told() {
        for (seconds, told) in [
            (i64::MIN, false),
            (-1, false),
            (0, false),
            (BELIEVABLE - 1, false),
            (BELIEVABLE, true),
            (LAST_DATE, true),
            (LAST_DATE + 1, false),
            (i64::MAX, false),
        ] {
            assert_eq!(believable(seconds).map(http_date).is_some(), told, "{seconds}");
        }
    }
}
