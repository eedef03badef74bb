//! Connection texts: which storage, where, with which credentials.
//!
//! The forms are those of Open Runtimes' executor, so that its deployments keep working, its leniency included: what
//! is no connection text at all means the local disk ([`StorageUrl::warning`] says so). But a text that asks for a
//! remote storage and cannot work is an error: to go on with the disk would put artifacts where nobody looks.
//!
//! All remote storages are S3. An object's address is always `<address of the bucket>/<key>`, so the address is
//! composed here once, whether the bucket is in the host's name or in the path.

use std::collections::BTreeMap;
use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

use crate::instance::Secret;

/// What S3 wants to see encoded in a path.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The longest connection text, in bytes.
const MAX_BYTES: usize = 8192;

/// A storage, not yet opened. Neither `Debug` nor `Display` shows credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageUrl {
    /// The disk of this host.
    Disk {
        /// Why, if the text asked for something else; see [`StorageUrl::warning`].
        instead_of: Option<&'static str>,
    },
    /// A bucket.
    S3(Bucket),
}

/// An S3 bucket and the right to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// `https://host[:port][/bucket][/prefix]`, encoded, without a slash at the end.
    pub address: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The access key's id.
    pub access_key: Secret,
    /// The access key's secret.
    pub secret_key: Secret,
}

/// Why a connection text asks for a remote storage and cannot work. Shows nothing of the text but host and scheme.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageUrlError {
    /// Key, secret or both are missing or are not UTF-8 once decoded.
    #[error(
        "the storage connection {0} needs an access key and its secret: {0}://KEY:SECRET@…, percent-encoded"
    )]
    Credentials(&'static str),
    /// A provider's host name needs a bucket.
    #[error("the storage connection {0} needs a bucket made of letters, digits, `-`, `_` and `.`")]
    Bucket(&'static str),
    /// A provider's host name needs a region.
    #[error("the storage connection {0} needs a region made of letters, digits and `-`")]
    Region(&'static str),
    /// The address of the server is none.
    #[error(
        "the storage connection {0} needs an http:// or https:// address of a server, without credentials or query"
    )]
    Endpoint(&'static str),
}

type Result<T> = std::result::Result<T, StorageUrlError>;

impl StorageUrl {
    /// Reads `scheme://key:secret@host/path?query`.
    ///
    /// - `s3`: `https://host` (`http` with `insecure=true`), or what `url` says, in whole. The path is appended: its
    ///   first segment is the bucket (path style), others begin every key. Without a path the host has to be that of
    ///   the bucket (host style). `region` is `us-east-1` if missing.
    /// - `dospaces`, `backblaze`, `linode`, `wasabi`: the provider's host for the bucket and `region`, both needed;
    ///   host and port are ignored. More segments of the path begin every key.
    /// - `local`, `file`, another scheme, a text without host or that is no URL, an empty text: the local disk.
    pub fn parse(dsn: &str) -> Result<Self> {
        let dsn = dsn.trim();
        if dsn.is_empty() {
            return Ok(Self::Disk { instead_of: None });
        }
        let disk = |reason| Ok(Self::Disk { instead_of: Some(reason) });
        if dsn.len() > MAX_BYTES {
            return disk("it is too long");
        }
        let Ok(url) = Url::parse(dsn) else { return disk("it is not a URL") };
        let scheme = match url.scheme() {
            "local" | "file" => return Ok(Self::Disk { instead_of: None }),
            "s3" => "s3",
            "dospaces" => "dospaces",
            "backblaze" => "backblaze",
            "linode" => "linode",
            "wasabi" => "wasabi",
            _ => return disk("its scheme is unknown"),
        };
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return disk("it has no host");
        };
        let region = parameter(&url, "region");
        let prefix = path(scheme, url.path())?;
        let address = if scheme == "s3" {
            match parameter(&url, "url") {
                Some(endpoint) => join(&endpoint_address(scheme, &endpoint)?, &prefix),
                None => {
                    let protocol = if parameter(&url, "insecure").is_some_and(|v| v == "true") {
                        "http"
                    } else {
                        "https"
                    };
                    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                    join(&endpoint_address(scheme, &format!("{protocol}://{host}{port}"))?, &prefix)
                }
            }
        } else {
            provider_address(scheme, &prefix, region.as_deref())?
        };
        let decoded =
            |text: &str| percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned);
        let credentials = (decoded(url.username()), url.password().and_then(decoded));
        bucket(scheme, address, region, credentials)
    }

    /// Reads the variables that came before connection texts: `OPR_EXECUTOR_STORAGE_DEVICE` and those of its provider.
    /// `None`: they ask for no remote storage.
    pub fn from_legacy(vars: &BTreeMap<String, String>) -> Result<Option<Self>> {
        let var = |name: &str| {
            let value = vars.get(&format!("OPR_EXECUTOR_STORAGE_{name}")).map(|value| value.trim());
            value.filter(|value| !value.is_empty()).map(str::to_owned)
        };
        let device = var("DEVICE").unwrap_or_default().to_lowercase();
        let (scheme, name) = match device.as_str() {
            "s3" => ("s3", "S3"),
            "dospaces" => ("dospaces", "DO_SPACES"),
            "backblaze" => ("backblaze", "BACKBLAZE"),
            "linode" => ("linode", "LINODE"),
            "wasabi" => ("wasabi", "WASABI"),
            _ => return Ok(None),
        };
        let own = |what: &str| var(&format!("{name}_{what}"));
        let region = own("REGION");
        // Not decoded: these were never part of a URL.
        let prefix: Vec<String> = own("BUCKET")
            .map(|bucket| bucket.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect())
            .unwrap_or_default();
        let server = if scheme == "s3" { own("ENDPOINT").or_else(|| own("HOST")) } else { None };
        let address = match server {
            Some(server) if server.contains("://") => join(&endpoint_address(scheme, &server)?, &prefix),
            Some(host) => join(&endpoint_address(scheme, &format!("https://{host}"))?, &prefix),
            None => provider_address(scheme, &prefix, region.as_deref())?,
        };
        bucket(scheme, address, region, (own("ACCESS_KEY"), own("SECRET"))).map(Some)
    }

    /// What to tell the operator whose connection text meant something else than the local disk it gave.
    pub fn warning(&self) -> Option<String> {
        match self {
            Self::Disk { instead_of: Some(reason) } => {
                Some(format!("the storage connection is ignored because {reason}; the local disk is used"))
            }
            _ => None,
        }
    }
}

impl fmt::Display for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk { .. } => f.write_str("local disk"),
            Self::S3(bucket) => write!(f, "S3 at {} ({})", bucket.address, bucket.region),
        }
    }
}

fn parameter(url: &Url, name: &str) -> Option<String> {
    // The last one counts, as in PHP.
    let value = url.query_pairs().filter(|(key, _)| key == name).last().map(|(_, value)| value.into_owned());
    value.filter(|value| !value.is_empty())
}

/// The decoded segments of a path.
fn path(scheme: &'static str, path: &str) -> Result<Vec<String>> {
    path.split('/')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let part = percent_decode_str(part).decode_utf8().map_err(|_| StorageUrlError::Bucket(scheme))?;
            Ok(part.into_owned())
        })
        .collect::<Result<Vec<_>>>()
        .and_then(|parts| match parts.first() {
            Some(first) if !is_bucket(first) => Err(StorageUrlError::Bucket(scheme)),
            _ => Ok(parts),
        })
}

fn is_bucket(text: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= 255 && text != "." && text != ".." && text.chars().all(known)
}

fn is_region(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// `address/part/part`, the parts encoded. `.` and `..` cannot come: [`Url`] has resolved them, and encoded ones are
/// no names in S3.
fn join(address: &str, parts: &[String]) -> String {
    let mut joined = address.to_owned();
    for part in parts.iter().filter(|part| *part != "." && *part != "..") {
        joined.push('/');
        joined.extend(utf8_percent_encode(part, ENCODED));
    }
    joined
}

/// A server's address in its normal form, its path kept.
fn endpoint_address(scheme: &'static str, text: &str) -> Result<String> {
    let error = StorageUrlError::Endpoint(scheme);
    let Ok(url) = Url::parse(text) else { return Err(error) };
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !matches!(url.scheme(), "http" | "https") || !plain || url.fragment().is_some() || !url.has_host() {
        return Err(error);
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// A provider's address of the bucket that is first in `prefix`.
fn provider_address(scheme: &'static str, prefix: &[String], region: Option<&str>) -> Result<String> {
    let (bucket, rest) = prefix.split_first().ok_or(StorageUrlError::Bucket(scheme))?;
    // It becomes a part of a host's name.
    if !is_bucket(bucket) || bucket.len() > 63 || bucket.starts_with('.') || bucket.ends_with('.') {
        return Err(StorageUrlError::Bucket(scheme));
    }
    let region = region.filter(|region| is_region(region)).ok_or(StorageUrlError::Region(scheme))?;
    let address = match scheme {
        "dospaces" => format!("https://{bucket}.{region}.digitaloceanspaces.com"),
        "backblaze" => format!("https://{bucket}.s3.{region}.backblazeb2.com"),
        "linode" => format!("https://{bucket}.{region}.linodeobjects.com"),
        "wasabi" => format!("https://{bucket}.s3.{region}.wasabisys.com"),
        _ if region.starts_with("cn-") => format!("https://{bucket}.s3.{region}.amazonaws.com.cn"),
        _ => format!("https://{bucket}.s3.{region}.amazonaws.com"),
    };
    Ok(join(&endpoint_address(scheme, &address).map_err(|_| StorageUrlError::Bucket(scheme))?, rest))
}

fn bucket(
    scheme: &'static str,
    address: String,
    region: Option<String>,
    credentials: (Option<String>, Option<String>),
) -> Result<StorageUrl> {
    let usable = |text: &String| !text.is_empty() && !text.chars().any(char::is_control);
    let (Some(access_key), Some(secret_key)) = (credentials.0.filter(usable), credentials.1.filter(usable))
    else {
        return Err(StorageUrlError::Credentials(scheme));
    };
    let region = region.unwrap_or_else(|| "us-east-1".to_owned());
    if !is_region(&region) {
        return Err(StorageUrlError::Region(scheme));
    }
    let (access_key, secret_key) = (Secret::new(access_key), Secret::new(secret_key));
    Ok(StorageUrl::S3(Bucket { address, region, access_key, secret_key }))
}

#[cfg(test)]
#[path = "url_tests.rs"]
mod tests;
