//! What `executor run` takes besides the flags of `serve`: section 11 of the runtime protocol.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use http::{HeaderName, HeaderValue};

use crate::function::Alone;
use crate::units;

/// What `executor run` takes. `--help` is its reference.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "The function")]
pub struct RunArgs {
    /// The function's folder
    pub folder: PathBuf,
    /// Its language, when the folder has no function.toml
    #[arg(long, env = "EXECUTOR_RUNTIME", value_name = "RUNTIME")]
    pub runtime: Option<String>,
    /// The file with the function [default: function.toml's, else the language's]
    #[arg(long, env = "OPEN_RUNTIMES_ENTRYPOINT", value_name = "FILE")]
    pub entrypoint: Option<String>,
    /// Folder for the log files of each request [default: /mnt/logs if it is there, else <data>/logs]
    #[arg(long, env = "EXECUTOR_LOGS", value_name = "FOLDER")]
    pub logs: Option<PathBuf>,
    /// Folder with timings.txt [default: /mnt/telemetry]
    #[arg(long, env = "EXECUTOR_TELEMETRY", default_value = "/mnt/telemetry", value_name = "FOLDER")]
    pub telemetry: PathBuf,
}

/// A function that is served alone, checked.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// What stands in for a manifest or wins over it.
    pub alone: Alone,
    /// Folder for log files.
    pub logs: PathBuf,
    /// That folder is in the data folder, and so nobody else's.
    pub own_logs: bool,
    /// `timings.txt`
    pub timings: PathBuf,
    /// Log ids are `dev`.
    pub development: bool,
    /// Headers that every request has, whatever its sender says.
    pub enforced: Vec<(HeaderName, HeaderValue)>,
    /// The environment, for a site's own settings.
    pub environment: BTreeMap<String, String>,
}

/// Names that are about this process and not about the function.
const OURS: [&str; 7] = ["HOME", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_", "OPEN_RUNTIMES_SECRET"];

impl RunConfig {
    /// Reads `environment` and `args`; `data` is the data folder.
    pub(super) fn new(args: &RunArgs, data: &Path, environment: BTreeMap<String, String>) -> Self {
        let set = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        // What an image brings is only a default, and must not win over the manifest.
        let default = set("EXECUTOR_IMAGE_ENTRYPOINT");
        let usual = Path::new("/mnt/logs");
        let (logs, own_logs) = match &args.logs {
            Some(folder) => (folder.clone(), false),
            None if usual.is_dir() => (usual.to_owned(), false),
            None => (data.join("logs"), true),
        };
        let cpus = set("OPEN_RUNTIMES_CPUS").and_then(|n| n.parse::<f64>().ok()).filter(|n| n.is_finite());
        // Megabytes, as hosts set it.
        let memory = set("OPEN_RUNTIMES_MEMORY").and_then(|n| units::bytes(&format!("{n}MB")).ok());
        let ours = |name: &str| {
            OURS.contains(&name) || name.starts_with("EXECUTOR_") || name.starts_with("OPR_EXECUTOR_")
        };
        let env = environment.iter().filter(|(name, _)| !ours(name));
        Self {
            alone: Alone {
                runtime: given(&args.runtime),
                entrypoint: given(&args.entrypoint).filter(|entrypoint| Some(entrypoint) != default),
                env: env.map(|(name, value)| (name.clone(), value.clone())).collect(),
                instances: cpus.map_or(1, |n| n.ceil().clamp(1.0, 1000.0) as u32),
                memory,
            },
            logs,
            own_logs,
            timings: args.telemetry.join("timings.txt"),
            development: set("OPEN_RUNTIMES_ENV").is_some_and(|env| env == "development"),
            enforced: enforced(set("OPEN_RUNTIMES_HEADERS").map_or("", String::as_str)),
            environment,
        }
    }
}

/// `OPEN_RUNTIMES_HEADERS`: empty or invalid JSON means none; values become strings.
fn enforced(json: &str) -> Vec<(HeaderName, HeaderValue)> {
    let Ok(map) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json) else {
        return Vec::new();
    };
    let header = |(name, value): (String, serde_json::Value)| {
        let value = match value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Null => String::new(),
            other => other.to_string(),
        };
        let name = HeaderName::from_bytes(name.to_lowercase().as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?))
    };
    map.into_iter().filter_map(header).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(environment: &[(&str, &str)]) -> RunConfig {
        let args = RunArgs {
            folder: "f".into(),
            runtime: None,
            entrypoint: Some(String::new()),
            logs: Some("/l".into()),
            telemetry: "/t".into(),
        };
        let map = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        RunConfig::new(&args, Path::new("/d"), map)
    }

    #[test]
    fn the_environment_reaches_the_function_without_what_is_ours() {
        let config =
            config(&[("A", "1"), ("OPEN_RUNTIMES_SECRET", "s"), ("EXECUTOR_X", "x"), ("HOME", "/root")]);
        assert_eq!(config.alone.env.keys().collect::<Vec<_>>(), ["A"]);
        assert_eq!(config.alone.entrypoint, None);
    }

    #[test]
    fn the_entrypoint_of_an_image_is_only_a_default() {
        let args = |entrypoint: &str| RunArgs {
            folder: "f".into(),
            runtime: None,
            entrypoint: Some(entrypoint.into()),
            logs: Some("/l".into()),
            telemetry: "/t".into(),
        };
        let image = BTreeMap::from([("EXECUTOR_IMAGE_ENTRYPOINT".to_owned(), "index.js".to_owned())]);
        let entrypoint =
            |given| RunConfig::new(&args(given), Path::new("/d"), image.clone()).alone.entrypoint;
        assert_eq!(entrypoint("index.js"), None);
        assert_eq!(entrypoint("src/index.js"), Some("src/index.js".into()));
    }

    #[test]
    fn enforced_headers() {
        let text = |json| {
            enforced(json).iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(text(r#"{"X-Custom":"v","n":1,"t":true}"#), ["x-custom=v", "n=1", "t=true"]);
        assert_eq!(text(""), Vec::<String>::new());
        assert_eq!(text("[1"), Vec::<String>::new());
        assert_eq!(text(r#"{"bad name":"v","ok":"a\nb"}"#), Vec::<String>::new());
    }

    #[test]
    fn sizes() {
        assert_eq!(
            config(&[("OPEN_RUNTIMES_CPUS", "1.5"), ("OPEN_RUNTIMES_MEMORY", "512")]).alone.instances,
            2
        );
        assert_eq!(config(&[("OPEN_RUNTIMES_MEMORY", "512")]).alone.memory, Some(512_000_000));
        assert_eq!(config(&[("OPEN_RUNTIMES_CPUS", "x")]).alone.instances, 1);
    }
}
