//! The path of a request, decoded once into the bytes that names on disk are made of.
//!
//! What this type cannot hold cannot be asked of the disk: it has no `.` or `..`, no NUL, no slash that came from
//! `%2F`, and no last segment that begins with `.env`. A backslash is an ordinary character here, as it is on Linux.
//! Names need not be UTF-8. Percent signs are decoded once, so `%252e` stays `%2e`.

use percent_encoding::percent_decode_str;

/// Longer paths cannot be opened (the kernel's `PATH_MAX`), with room for `index.html` behind them.
const MAX_PATH: usize = 4096 - 16;

/// A path below the root: segments joined by single slashes, one at the end if a directory is asked for.
///
/// Empty: the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SitePath(Vec<u8>);

impl SitePath {
    /// `None`: nothing can have this path.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(path.len());
        for raw in path.split('/').filter(|segment| !segment.is_empty()) {
            let start = bytes.len();
            bytes.extend(percent_decode_str(raw));
            let segment = &bytes[start..];
            if matches!(segment, b"." | b"..") || segment.iter().any(|byte| matches!(byte, 0 | b'/')) {
                return None;
            }
            bytes.push(b'/');
        }
        if is_private(bytes.strip_suffix(b"/").unwrap_or(&bytes)) || bytes.len() > MAX_PATH {
            return None;
        }
        if !path.ends_with('/') {
            bytes.pop();
        }
        Some(Self(bytes))
    }

    /// A name from the configuration, which is not percent-encoded. `None`: it cannot be that of a file.
    pub(super) fn literal(name: &str) -> Option<Self> {
        Self::parse(&name.replace('%', "%25")).filter(|path| !path.is_directory())
    }

    /// The bytes; no two different questions to the disk have the same.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether only a directory may answer.
    pub(super) fn is_directory(&self) -> bool {
        self.0.is_empty() || self.0.ends_with(b"/")
    }

    /// The same with more at its end.
    pub(super) fn with(&self, more: &str) -> Vec<u8> {
        [&self.0, more.as_bytes()].concat()
    }
}

/// Whether the last segment begins with `.env`, in any case: some file systems do not tell cases apart.
pub(super) fn is_private(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b".env"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_paths_become() {
        for (path, bytes) in [
            ("", Some(&b""[..])),
            ("/", Some(b"")),
            ("///", Some(b"")),
            ("/a", Some(b"a")),
            ("//a//b//", Some(b"a/b/")),
            ("/a%20b", Some(b"a b")),
            ("/%ff", Some(b"\xff")),
            ("/ä", Some("ä".as_bytes())),
            ("/100%", Some(b"100%")),
            ("/%zz", Some(b"%zz")),
            ("/%252e%252e/x", Some(b"%2e%2e/x")),
            ("/%2500", Some(b"%00")),
            ("/a\\..\\b", Some(b"a\\..\\b")),
            ("/%5c..%5cb", Some(b"\\..\\b")),
            ("/...", Some(b"...")),
            ("/..a/b..", Some(b"..a/b..")),
            ("/.env.d/x", Some(b".env.d/x")),
            ("/.en", Some(b".en")),
            ("/x.env", Some(b"x.env")),
            ("/..", None),
            ("/.", None),
            ("/a/../b", None),
            ("/a/./b", None),
            ("/%2e%2e/b", None),
            ("/%2E./b", None),
            ("/.%2e", None),
            ("/%2e", None),
            ("/a%2fb", None),
            ("/..%2f..%2fetc", None),
            ("/%2f", None),
            ("/a%00", None),
            ("/%00", None),
            ("/.env", None),
            ("/.env/", None),
            ("/.env//", None),
            ("/a/.env", None),
            ("/.env.production", None),
            ("/.environment", None),
            ("/%2eenv", None),
            ("/.%65nv", None),
            ("/.ENV", None),
        ] {
            assert_eq!(SitePath::parse(path).as_ref().map(SitePath::as_bytes), bytes, "{path}");
        }
    }

    #[test]
    fn only_a_slash_at_the_end_asks_for_a_directory() {
        for (path, directory) in [("", true), ("/", true), ("/a/", true), ("/a", false), ("/a/b", false)] {
            assert_eq!(SitePath::parse(path).unwrap().is_directory(), directory, "{path}");
        }
    }

    #[test]
    fn a_path_has_a_longest_length() {
        let of = |length: usize| SitePath::parse(&format!("/{}", "a".repeat(length)));
        assert!(of(MAX_PATH - 1).is_some());
        assert!(of(MAX_PATH).is_none());
    }
}
