//! How a site is served, and where that stands in the environment (runtime protocol, sections 11 and 13.1).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};

use super::cache::LARGEST;
use super::path::SitePath;

const HEADER: &str = "OPEN_RUNTIMES_CACHE_HEADER";
const FALLBACK: &str = "OPEN_RUNTIMES_STATIC_FALLBACK";
const SYMLINKS: &str = "OPEN_RUNTIMES_STATIC_FOLLOW_SYMLINKS";
const CACHE: &str = "OPEN_RUNTIMES_STATIC_MEMORY_CACHE_ENABLED";
const CACHE_TTL: &str = "OPEN_RUNTIMES_STATIC_MEMORY_CACHE_TTL";
const CACHE_TTI: &str = "OPEN_RUNTIMES_STATIC_MEMORY_CACHE_TTI";
const CACHE_CAPACITY: &str = "OPEN_RUNTIMES_STATIC_MEMORY_CACHE_CAPACITY";
const CACHE_MAX_FILE: &str = "OPEN_RUNTIMES_STATIC_MEMORY_CACHE_MAX_FILE_KIB";

const CACHE_HEADER: HeaderName = HeaderName::from_static("cdn-cache-control");
const NOT_FOUND: &str = "/mnt/resources/404.html";
const DAY: u64 = 24 * 60 * 60;

/// Headers that say how an answer is cut, which nobody may name as the cache header.
const FRAMING: [HeaderName; 7] =
    [CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteOptions {
    /// Names the header that says how long shared caches may keep an answer.
    pub cache_header: HeaderName,
    /// The file, relative to the root, that is served with 200 where there is none. For pages that route themselves.
    pub fallback: Option<String>,
    /// The page for what is not there; a built-in one if this file is not there either.
    pub not_found: Option<PathBuf>,
    /// Whether symbolic links are followed. They must be relative and may not leave the root.
    pub follow_symlinks: bool,
    /// `None`: every file is read from disk each time.
    pub memory_cache: Option<CacheOptions>,
}

/// What is kept in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// A file is read again after this time.
    pub ttl: Duration,
    /// A file that nobody asks for is dropped after this time.
    pub tti: Duration,
    /// The largest number of files; together they never take more than 256 MiB.
    pub capacity: usize,
    /// Bytes of the largest file that is kept; larger than 32 MiB none is.
    pub max_file: u64,
}

impl Default for CacheOptions {
    fn default() -> Self {
        let day = Duration::from_secs(DAY);
        Self { ttl: day, tti: day, capacity: 4096, max_file: 8192 << 10 }
    }
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self {
            cache_header: CACHE_HEADER,
            fallback: None,
            not_found: Some(NOT_FOUND.into()),
            follow_symlinks: false,
            memory_cache: Some(CacheOptions::default()),
        }
    }
}

impl SiteOptions {
    /// What these variables say, and a warning for each that says nothing sensible; its default then holds.
    /// An empty variable is like none. No warning shows a value.
    pub fn from_environment(variables: &BTreeMap<String, String>) -> (Self, Vec<String>) {
        let mut reader = Reader { variables, warnings: Vec::new() };
        let default = CacheOptions::default();
        let seconds = 1..=365 * DAY;
        let ttl = reader.number(CACHE_TTL, "seconds", default.ttl.as_secs(), seconds.clone());
        let cache = CacheOptions {
            ttl: Duration::from_secs(ttl),
            tti: Duration::from_secs(reader.number(CACHE_TTI, "seconds", ttl, seconds)),
            capacity: reader.number(CACHE_CAPACITY, "files", default.capacity as u64, 1..=1 << 20) as usize,
            max_file: reader.number(CACHE_MAX_FILE, "KiB", default.max_file >> 10, 1..=LARGEST >> 10) << 10,
        };
        let options = Self {
            cache_header: reader.cache_header(),
            fallback: reader.fallback(),
            follow_symlinks: reader.flag(SYMLINKS, false),
            memory_cache: reader.flag(CACHE, true).then_some(cache),
            ..Self::default()
        };
        (options, reader.warnings)
    }
}

struct Reader<'a> {
    variables: &'a BTreeMap<String, String>,
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    fn number(&mut self, name: &str, unit: &str, default: u64, allowed: RangeInclusive<u64>) -> u64 {
        let Some(text) = self.get(name) else { return default };
        if let Some(number) = text.parse().ok().filter(|number| allowed.contains(number)) {
            return number;
        }
        let (least, most) = allowed.into_inner();
        self.warnings.push(format!("{name} must be {least} to {most} {unit}; {default} is used"));
        default
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            None => default,
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(_) => {
                self.warnings.push(format!("{name} must be true or false; {default} is used"));
                default
            }
        }
    }

    fn cache_header(&mut self) -> HeaderName {
        let Some(text) = self.get(HEADER) else { return CACHE_HEADER };
        match text.parse() {
            Ok(name) if !FRAMING.contains(&name) => name,
            _ => {
                self.warnings.push(format!(
                    "{HEADER} must be the name of a header that only caches read; {CACHE_HEADER} is used"
                ));
                CACHE_HEADER
            }
        }
    }

    fn fallback(&mut self) -> Option<String> {
        let text = self.get(FALLBACK)?;
        if SitePath::literal(text).is_some() {
            return Some(text.to_owned());
        }
        self.warnings.push(format!(
            "{FALLBACK} must be the path of a file below the site's root, and not of a .env file; none is used"
        ));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> (SiteOptions, Vec<String>) {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        SiteOptions::from_environment(&variables.collect())
    }

    #[test]
    fn nothing_set_means_the_defaults() {
        let (options, warnings) = read(&[]);
        assert_eq!((&options, warnings.len()), (&SiteOptions::default(), 0));
        assert_eq!(options.cache_header, "CDN-Cache-Control");
        let empty = [HEADER, FALLBACK, SYMLINKS, CACHE, CACHE_TTL, CACHE_TTI, CACHE_CAPACITY, CACHE_MAX_FILE];
        assert_eq!(read(&empty.map(|name| (name, ""))), (SiteOptions::default(), vec![]));
    }

    #[test]
    fn all_that_is_set_is_used() {
        let (options, warnings) = read(&[
            (HEADER, "X-Edge"),
            (FALLBACK, "app/index.html"),
            (SYMLINKS, "true"),
            (CACHE_TTL, "60"),
            (CACHE_CAPACITY, "7"),
            (CACHE_MAX_FILE, "3"),
        ]);
        assert_eq!(warnings, Vec::<String>::new());
        let minute = Duration::from_mins(1);
        assert_eq!(
            options,
            SiteOptions {
                cache_header: "x-edge".parse().unwrap(),
                fallback: Some("app/index.html".into()),
                follow_symlinks: true,
                memory_cache: Some(CacheOptions { ttl: minute, tti: minute, capacity: 7, max_file: 3072 }),
                ..SiteOptions::default()
            }
        );
        assert_eq!(read(&[(CACHE_TTI, "5")]).0.memory_cache.unwrap().tti, Duration::from_secs(5));
        assert_eq!(read(&[(CACHE, "false")]).0.memory_cache, None);
    }

    #[test]
    fn what_makes_no_sense_is_warned_of_and_not_used() {
        for (name, value) in [
            (HEADER, "two words"),
            (HEADER, "a\nb: c"),
            (HEADER, "Content-Length"),
            (HEADER, "transfer-encoding"),
            (FALLBACK, "../secret"),
            (FALLBACK, "/.env"),
            (FALLBACK, "/"),
            (FALLBACK, "a/"),
            (SYMLINKS, "yes please"),
            (CACHE, "2"),
            (CACHE_TTL, "0"),
            (CACHE_TTL, "-1"),
            (CACHE_TTL, "1.5"),
            (CACHE_TTL, "31536001"),
            (CACHE_TTI, "99999999999999999999999999"),
            (CACHE_CAPACITY, "0"),
            (CACHE_CAPACITY, "1048577"),
            (CACHE_MAX_FILE, "32769"),
        ] {
            let (options, warnings) = read(&[(name, value)]);
            assert_eq!(options, SiteOptions::default(), "{name}={value}");
            assert!(warnings.len() == 1 && warnings[0].contains(name), "{name}={value}: {warnings:?}");
            assert!(!warnings[0].contains("please") && !warnings[0].contains("secret"));
        }
        for (name, value) in [(CACHE_TTL, "31536000"), (CACHE_CAPACITY, "1048576"), (CACHE_MAX_FILE, "32768")]
        {
            assert!(read(&[(name, value)]).1.is_empty(), "{name}={value}");
        }
    }
}
