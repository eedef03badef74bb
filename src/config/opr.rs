//! What hosts of the executor API set: `OPR_EXECUTOR_*`, section 8 of `spec-executor-api`.
//!
//! Every variable has a flag `--api-…` of the same name. An empty value means unset, because compose files pass
//! variables on that nobody set; so no flag has a default that clap knows. Variables that the reference reads and we
//! have no use for (`…_IMAGE_PULL`, `…_RUNTIMES`, `…_LOGGING_*` and others) may be set and are not read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::Checker;
use crate::executor::guests::GuestOptions;
use crate::instance::Secret;
use crate::storage::StorageUrl;
use crate::transport::Profile;
use crate::units;

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Executor API (/v1)")]
#[expect(clippy::struct_field_names, reason = "the fields are named as their flags")]
pub(super) struct ApiArgs {
    /// What errors tell: production, or development: their causes, too [default: production]
    #[arg(long, env = "OPR_EXECUTOR_ENV", value_name = "MODE")]
    api_env: Option<String>,
    /// Version in error documents [default: unknown]
    #[arg(long, env = "OPR_EXECUTOR_VERSION", value_name = "VERSION")]
    api_version: Option<String>,
    /// Images to prepare at start, separated by commas
    #[arg(long, env = "OPR_EXECUTOR_IMAGES", value_name = "IMAGES")]
    api_images: Option<String>,
    /// Networks, separated by commas; each runtime joins one of them [default: openruntimes-runtimes]
    #[arg(long, env = "OPR_EXECUTOR_NETWORK", value_name = "NAMES")]
    api_network: Option<String>,
    /// Versions of runtimes that may be asked for: v2, v3, v4, v5, separated by commas [default: v5]
    #[arg(long, env = "OPR_EXECUTOR_RUNTIME_VERSIONS", value_name = "VERSIONS")]
    api_runtime_versions: Option<String>,
    /// How often idle runtimes are looked for, seconds [default: 3600]
    #[arg(long, env = "OPR_EXECUTOR_MAINTENANCE_INTERVAL", value_name = "SECONDS")]
    api_maintenance_interval: Option<String>,
    /// How long a runtime may be idle, seconds [default: 60]
    #[arg(long, env = "OPR_EXECUTOR_INACTIVE_THRESHOLD", value_name = "SECONDS")]
    api_inactive_threshold: Option<String>,
    /// The old spelling
    #[arg(long, env = "OPR_EXECUTOR_INACTIVE_TRESHOLD", value_name = "SECONDS", hide = true)]
    api_inactive_treshold: Option<String>,
    #[arg(
        long,
        env = "OPR_EXECUTOR_CONNECTION_STORAGE",
        value_name = "URL",
        hide_env_values = true,
        help = "\
        Where sources and builds are, for example s3://KEY:SECRET@HOST/BUCKET?region=REGION [default: local disk]"
    )]
    api_connection_storage: Option<String>,
    /// Where caches of builds are [default: where builds are]
    #[arg(
        long,
        env = "OPR_EXECUTOR_CONNECTION_BUILD_CACHE_STORAGE",
        value_name = "URL",
        hide_env_values = true
    )]
    api_connection_build_cache_storage: Option<String>,
    /// How often a connection to a runtime is tried at least [default: 5]
    #[arg(long, env = "OPR_EXECUTOR_RETRY_ATTEMPTS", value_name = "N")]
    api_retry_attempts: Option<String>,
    /// Pause between two tries, milliseconds [default: 500]
    #[arg(long, env = "OPR_EXECUTOR_RETRY_DELAY_MS", value_name = "MS")]
    api_retry_delay_ms: Option<String>,
    /// Who pulls images from Docker Hub
    #[arg(long, env = "OPR_EXECUTOR_DOCKER_HUB_USERNAME", value_name = "NAME")]
    api_docker_hub_username: Option<String>,
    /// Password or token of that user
    #[arg(long, env = "OPR_EXECUTOR_DOCKER_HUB_PASSWORD", value_name = "SECRET", hide_env_values = true)]
    api_docker_hub_password: Option<String>,
    /// How long a runtime may take until it can be called, seconds; 0 is 30 [default: as long as the call may
    /// take, which then has that much less]
    #[arg(
        long,
        env = "OPR_EXECUTOR_RUNTIME_READY_TIMEOUT",
        value_name = "SECONDS",
        allow_hyphen_values = true
    )]
    api_runtime_ready_timeout: Option<String>,
    /// Whether /v1/health answers JSON to those who do not ask for text: on or off [default: off]
    #[arg(long, env = "OPR_EXECUTOR_HEALTH_JSON", value_name = "WHEN")]
    api_health_json: Option<String>,
    /// Calls at once in one container [default: no limit]
    #[arg(long, env = "OPR_EXECUTOR_CONCURRENCY", value_name = "N")]
    api_concurrency: Option<String>,
    /// Containers of one runtime at the most [default: 1]
    #[arg(long, env = "OPR_EXECUTOR_INSTANCES", value_name = "N")]
    api_instances: Option<String>,
    /// First part of the names of containers [default: this host's name]
    #[arg(long, env = "OPR_EXECUTOR_HOSTNAME", value_name = "NAME")]
    api_hostname: Option<String>,
    /// Folder below which each runtime has its temporary folder [default: <data>/guests]
    #[arg(long, env = "OPR_EXECUTOR_TEMPORARY", value_name = "FOLDER")]
    api_temporary: Option<String>,
}

/// The executor API, checked.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Whether errors tell their causes.
    pub development: bool,
    /// `version` in error documents.
    pub version: String,
    /// Versions that callers may ask for; at least one.
    pub versions: Vec<Profile>,
    /// Whether `/v1/health` answers JSON by default.
    pub health_json: bool,
    /// How guests are run.
    pub guests: GuestOptions,
    /// Where sources and builds are.
    pub storage: StorageUrl,
    /// Where caches of builds are; none: as `storage`.
    pub cache_storage: Option<StorageUrl>,
    /// User and password for Docker Hub.
    pub docker_hub: Option<(String, Secret)>,
}

const YEAR: u64 = 365 * 24 * 3600;
/// Images and networks; more is a mistake.
const MOST_NAMES: usize = 1000;
const READY_TIMEOUT: u64 = 30;

/// What is not empty.
fn set(value: Option<&String>) -> Option<&str> {
    value.map(|value| value.trim()).filter(|value| !value.is_empty())
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(ToOwned::to_owned).collect()
}

/// As Docker wants the names of containers and networks.
fn docker_name(name: &str) -> Result<String, String> {
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && name.len() <= 128 && name.bytes().all(sane) {
        return Ok(name.to_owned());
    }
    Err(format!("`{name}` must begin with a letter or digit and have only letters, digits, `.`, `_` and `-`"))
}

/// Plain seconds, as the reference has it, or with a unit.
fn seconds(text: &str, low: u64, high: u64) -> Result<Duration, String> {
    let time = text.parse().map(Duration::from_secs).or_else(|_| units::duration(text));
    let range = Duration::from_secs(low)..=Duration::from_secs(high);
    time.ok()
        .filter(|time| range.contains(time))
        .ok_or_else(|| format!("`{text}` must be a number of seconds from {low} to {high}"))
}

fn versions(text: &str) -> Result<Vec<Profile>, String> {
    let profile = |name: String| match name.as_str() {
        "v2" => Ok(Profile::V2),
        "v3" => Ok(Profile::V3),
        "v4" => Ok(Profile::V4),
        "v5" => Ok(Profile::V5),
        _ => Err(format!("`{name}` must be one of v2, v3, v4, v5")),
    };
    let versions: Vec<_> = list(text).into_iter().map(profile).collect::<Result<_, _>>()?;
    if versions.is_empty() { Err(format!("`{text}` names no version")) } else { Ok(versions) }
}

fn names(text: &str) -> Result<Vec<String>, String> {
    let names = list(text);
    if names.is_empty() || names.len() > MOST_NAMES {
        return Err(format!("it has {} names; it must have from 1 to {MOST_NAMES}", names.len()));
    }
    Ok(names)
}

/// One of two words.
fn choice(text: &str, no: &str, yes: &str) -> Result<bool, String> {
    match text {
        _ if text == yes => Ok(true),
        _ if text == no => Ok(false),
        _ => Err(format!("`{text}` must be one of {no}, {yes}")),
    }
}

fn ready_timeout(text: &str) -> Result<Duration, String> {
    match text.parse::<i64>() {
        Ok(number) if number <= 0 => Ok(Duration::from_secs(READY_TIMEOUT)),
        _ => seconds(text, 1, 24 * 3600),
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("`{text}` must be an absolute path")) }
}

/// What this machine calls itself.
fn machine() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    docker_name(&name).unwrap_or_else(|_| "executor".into())
}

impl ApiArgs {
    /// Checks all; `None` if there is a problem, which `c` then has. `environment` is for what has no flag; `data` is the
    /// data folder.
    pub(super) fn check(
        &self,
        c: &mut Checker,
        data: &Path,
        environment: &BTreeMap<String, String>,
    ) -> Option<ApiConfig> {
        let or = |value: &Option<String>, default: &str| set(value.as_ref()).unwrap_or(default).to_owned();
        let development =
            c.check("api-env", choice(&or(&self.api_env, "production"), "production", "development"));
        let versions = c.check("api-runtime-versions", versions(&or(&self.api_runtime_versions, "v5")));
        let health_json = c.check("api-health-json", choice(&or(&self.api_health_json, "off"), "off", "on"));
        let docker_hub = c.check("api-docker-hub-password", self.docker_hub());
        let guests = self.guests(c, data);
        let storage_url = set(self.api_connection_storage.as_ref());
        let storage_url = c.check("api-connection-storage", storage(storage_url, environment));
        let cache = set(self.api_connection_build_cache_storage.as_ref());
        let cache = cache.map(StorageUrl::parse).transpose().map_err(|error| error.to_string());
        let cache = c.check("api-connection-build-cache-storage", cache);
        Some(ApiConfig {
            development: development?,
            version: or(&self.api_version, "unknown"),
            versions: versions?,
            health_json: health_json?,
            guests: guests?,
            storage: storage_url?,
            cache_storage: cache?,
            docker_hub: docker_hub?,
        })
    }

    fn guests(&self, c: &mut Checker, data: &Path) -> Option<GuestOptions> {
        let networks = set(self.api_network.as_ref()).unwrap_or("openruntimes-runtimes");
        let networks = names(networks).and_then(|all| all.iter().map(|name| docker_name(name)).collect());
        let networks = c.check("api-network", networks);
        let images = set(self.api_images.as_ref()).map_or_else(|| Ok(Vec::new()), names);
        let images = c.check("api-images", images);
        let interval = set(self.api_maintenance_interval.as_ref()).unwrap_or("3600");
        let interval = c.check("api-maintenance-interval", seconds(interval, 1, YEAR));
        let threshold = set(self.api_inactive_threshold.as_ref())
            .or_else(|| set(self.api_inactive_treshold.as_ref()))
            .unwrap_or("60");
        let threshold = c.check("api-inactive-threshold", seconds(threshold, 0, YEAR));
        let attempts = set(self.api_retry_attempts.as_ref()).unwrap_or("5");
        let attempts = c.number("api-retry-attempts", attempts, 0, 1_000_000);
        let delay = set(self.api_retry_delay_ms.as_ref()).unwrap_or("500");
        let delay = c.number("api-retry-delay-ms", delay, 1, 60_000);
        let ready = set(self.api_runtime_ready_timeout.as_ref()).map(ready_timeout).transpose();
        let ready = c.check("api-runtime-ready-timeout", ready);
        let concurrency = match set(self.api_concurrency.as_ref()) {
            None => Some(None),
            Some(text) => c.number("api-concurrency", text, 1, 100_000).map(Some),
        };
        let instances = set(self.api_instances.as_ref()).unwrap_or("1");
        let instances = c.number("api-instances", instances, 1, 1000);
        let hostname = set(self.api_hostname.as_ref()).map_or_else(|| Ok(machine()), docker_name);
        let hostname = c.check("api-hostname", hostname);
        let temporary = set(self.api_temporary.as_ref()).map_or_else(|| Ok(data.join("guests")), absolute);
        let temporary = c.check("api-temporary", temporary);
        Some(GuestOptions {
            hostname: hostname?,
            networks: networks?,
            temporary: temporary?,
            maintenance_interval: interval?,
            inactive_threshold: threshold?,
            retry_attempts: attempts? as u32,
            retry_delay: Duration::from_millis(delay?),
            ready_timeout: ready?,
            images: images?,
            concurrency: concurrency?.map(|number| number as u32),
            instances: instances? as u32,
        })
    }

    fn docker_hub(&self) -> Result<Option<(String, Secret)>, String> {
        let password = set(self.api_docker_hub_password.as_ref());
        match (set(self.api_docker_hub_username.as_ref()), password) {
            (Some(name), Some(password)) => Ok(Some((name.to_owned(), Secret::new(password)))),
            (None, None) => Ok(None),
            (Some(_), None) => Err("it is missing; --api-docker-hub-username needs it".into()),
            (None, Some(_)) => Err("it is of use only with --api-docker-hub-username".into()),
        }
    }
}

/// the older variables count when there is no URL, or one that only says that it is not S3, as
/// deployments send that were never cleaned up.
fn storage(url: Option<&str>, environment: &BTreeMap<String, String>) -> Result<StorageUrl, String> {
    let local =
        |url: &str| ["local:", "file:"].iter().any(|scheme| url.to_ascii_lowercase().starts_with(scheme));
    match url {
        Some(url) if !local(url) => StorageUrl::parse(url).map_err(|error| error.to_string()),
        _ => match StorageUrl::from_legacy(environment).map_err(|error| error.to_string())? {
            Some(older) => Ok(older),
            None => StorageUrl::parse("").map_err(|error| error.to_string()),
        },
    }
}

#[cfg(test)]
#[path = "opr_tests.rs"]
mod tests;
