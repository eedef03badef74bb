//! Finds a language's program on this host, once per runtime and version.
//!
//! What `PATH` names may be a shim that takes longer to start than the language itself, so the program is asked for
//! its own real path and that is what instances run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Mutex;

use crate::adapter::AdapterError;
use crate::runtime::Runtime;

/// A program that does not print its version within this time is not usable.
const LOCATE_LIMIT: Duration = Duration::from_secs(10);

/// File in a runtime's folder with what the language said of itself. An image writes it once, so that no start there
/// pays for asking.
const NOTE: &str = "located";

type Found = Result<(PathBuf, String), AdapterError>;
/// A runtime and the version asked for.
type Wanted = (String, Option<String>);

pub(super) struct Programs {
    path: String,
    /// The lock is held while one is looked for: others who want the same wait for the same answer.
    known: Mutex<HashMap<Wanted, (PathBuf, String)>>,
}

impl Programs {
    pub(super) fn new(path: String) -> Self {
        Self { path, known: Mutex::default() }
    }

    pub(super) async fn locate(&self, runtime: &Runtime, version: Option<&str>) -> Found {
        let key = (runtime.name.clone(), version.map(str::to_owned));
        let mut known = self.known.lock().await;
        if let Some(found) = known.get(&key) {
            return Ok(found.clone());
        }
        let found = self.search(runtime, version).await?;
        known.insert(key, found.clone());
        Ok(found)
    }

    async fn search(&self, runtime: &Runtime, version: Option<&str>) -> Found {
        let part = &runtime.manifest.process;
        if let Some((path, found)) = noted(&runtime.folder.join(NOTE)).await
            && fits(&found, &part.minimum, version)
        {
            return Ok((path, found));
        }
        let mut seen = Vec::new();
        for name in &part.program {
            let name = name.replace("{version}", version.unwrap_or_default());
            let Some(program) = find_in_path(&self.path, &name) else { continue };
            match ask(&program, &part.locate).await {
                Ok((path, found)) if fits(&found, &part.minimum, version) => return Ok((path, found)),
                Ok((path, found)) => seen.push(format!("{} is version {found}", path.display())),
                Err(why) => seen.push(format!("{} {why}", program.display())),
            }
        }
        let wanted = match version {
            Some(version) => format!("{} {version}", runtime.name),
            None => format!("{} {} or later", runtime.name, part.minimum),
        };
        let found = if seen.is_empty() { "none is in PATH".to_owned() } else { seen.join("; ") };
        let message = format!(
            "{wanted} is needed on this host, but {found}. Install it ({}), or use --adapter docker",
            part.install
        );
        Err(AdapterError::Missing(message.into()))
    }
}

fn find_in_path(path: &str, name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let executable =
        |file: &Path| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    std::env::split_paths(path).map(|folder| folder.join(name)).find(|file| executable(file))
}

/// What an image noted when it was built, if the program is still there.
async fn noted(file: &Path) -> Option<(PathBuf, String)> {
    let found = parse(&tokio::fs::read_to_string(file).await.ok()?)?;
    found.0.is_file().then_some(found)
}

/// `/path/to/program version`
fn parse(text: &str) -> Option<(PathBuf, String)> {
    let (path, version) = text.trim().rsplit_once(' ')?;
    Path::new(path).is_absolute().then(|| (path.into(), version.to_owned()))
}

async fn ask(program: &Path, arguments: &[String]) -> Result<(PathBuf, String), String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(LOCATE_LIMIT, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("does not start: {error}")),
        Err(_) => return Err(format!("did not answer within {LOCATE_LIMIT:?}")),
    };
    match parse(&String::from_utf8_lossy(&output.stdout)) {
        Some(found) if output.status.success() => Ok(found),
        _ => Err(format!("does not say its version: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// At least `minimum`, and of the line asked for: `3.13` asks for 3.13.x.
fn fits(found: &str, minimum: &str, asked: Option<&str>) -> bool {
    let numbers = |text: &str| -> Vec<u32> { text.split('.').map_while(|part| part.parse().ok()).collect() };
    let found = numbers(found);
    found >= numbers(minimum) && asked.is_none_or(|asked| found.starts_with(&numbers(asked)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_note_counts_as_long_as_its_program_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join(NOTE);
        assert_eq!(noted(&note).await, None);
        std::fs::write(&note, "/bin/sh 3.13.5\n").unwrap();
        assert_eq!(noted(&note).await, Some(("/bin/sh".into(), "3.13.5".into())));
        for bad in ["/nowhere/python 3.13.5", "sh 3.13", "/bin/sh", ""] {
            std::fs::write(&note, bad).unwrap();
            assert_eq!(noted(&note).await, None, "{bad}");
        }
    }

    #[test]
    fn versions() {
        assert!(fits("20.20.2", "20", None));
        assert!(fits("3.13.5", "3.11", Some("3.13")));
        assert!(!fits("3.9.1", "3.11", None));
        assert!(!fits("3.11.7", "3.11", Some("3.13")));
        assert!(!fits("3.130.1", "3.11", Some("3.13")));
        assert!(!fits("nonsense", "3.11", None));
    }
}
