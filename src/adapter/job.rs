//! Jobs: one shell command in a writable folder, with the tools of a runtime, to its end. Builds are made of
//! them.
//!
//! What a job sees is the same for every adapter but for the paths, so its environment is made here: what the
//! function says, a cache for the usual package managers, and a company's certificates under the names that
//! the usual tools look for.
//!
//! Invariants: a job has ended, with everything it started, when its future is ready or dropped; what a
//! crashed executor left behind is found by [`super::Adapter::sweep`].

use std::path::PathBuf;
use std::sync::Arc;

use crate::runtime::Runtime;

/// One command and what it may use.
#[derive(Debug, Clone)]
pub struct Job {
    /// Whose tools it uses.
    pub runtime: Arc<Runtime>,
    /// The version asked for, if any.
    pub version: Option<String>,
    /// Working directory: the only folder of the host, beside the cache, that it is meant to write to.
    pub folder: PathBuf,
    /// A line for `sh -c`.
    pub command: String,
    /// Environment, in order; later ones win, also over what the adapter sets.
    pub environment: Vec<(String, String)>,
    /// Memory, bytes.
    pub memory: u64,
    /// Cores it may use.
    pub cpus: f64,
    /// A file with all certificates that its tools shall trust.
    pub certificates: Option<PathBuf>,
    /// A folder that outlives it, for what package managers keep.
    pub cache: Option<PathBuf>,
}

/// Variables that name a file with all trusted certificates: OpenSSL and what is linked to it, Node, Python's
/// pip and requests, Cargo, git, curl, the AWS SDKs, Perl, Ruby's bundler, Deno, Nix.
const CERTIFICATES: [&str; 14] = [
    "SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "NPM_CONFIG_CAFILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "UV_SSL_CERT_FILE",
    "CARGO_HTTP_CAINFO",
    "GIT_SSL_CAINFO",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "PERL_LWP_SSL_CA_FILE",
    "BUNDLE_SSL_CA_CERT",
    "DENO_CERT",
    "NIX_SSL_CERT_FILE",
];

/// Variables that name a folder to keep downloads in, and the folder below the cache.
const CACHES: [(&str, &str); 8] = [
    ("npm_config_cache", "npm"),
    ("YARN_CACHE_FOLDER", "yarn"),
    ("PIP_CACHE_DIR", "pip"),
    ("UV_CACHE_DIR", "uv"),
    ("XDG_CACHE_HOME", "xdg"),
    ("CARGO_HOME", "cargo"),
    ("GOMODCACHE", "go-mod"),
    ("COMPOSER_CACHE_DIR", "composer"),
];

impl Job {
    /// The job's variables beyond `PATH` and `HOME`, with certificates and cache where the job sees them.
    pub(super) fn variables(&self, certificates: &str, cache: &str) -> Vec<(String, String)> {
        let mut all = vec![("LANG".to_owned(), "C.UTF-8".to_owned()), ("CI".to_owned(), "true".to_owned())];
        if self.certificates.is_some() {
            all.extend(CERTIFICATES.map(|name| (name.to_owned(), certificates.to_owned())));
        }
        if self.cache.is_some() {
            all.extend(CACHES.map(|(name, below)| (name.to_owned(), format!("{cache}/{below}"))));
        }
        all.extend_from_slice(&self.environment);
        all
    }
}
