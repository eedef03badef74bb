//! `executor deploy`, `remove` and `rollback`: changes what a running executor serves.
//!
//! Of a folder everything is sent but `.git` and, where the manifest has a build command that installs them,
//! `node_modules`. What is going on goes to standard error, one line at a time, with times; in a terminal the
//! upload has a counter.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Buf, Bytes, BytesMut};
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::client::{Target, piece, upload};
use super::list::Scratch;
use crate::archive::{self, Compression, PackOptions};
use crate::function::MANIFEST;

/// Rolling back starts an instance.
const LIMIT: Duration = Duration::from_mins(5);
/// A line longer than this is not one of the executor's.
const MOST_LINE: usize = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct Where {
    /// URL of the executor
    #[arg(long = "to", visible_alias = "url", env = "EXECUTOR_URL", value_name = "URL")]
    url: Option<String>,
    /// Data folder of the executor, where URL and key are found
    #[arg(long, env = "EXECUTOR_DATA", default_value = "./data", value_name = "FOLDER")]
    data: PathBuf,
    /// Key of the operators
    #[arg(long, env = "OPR_EXECUTOR_SECRET", hide_env_values = true, value_name = "SECRET")]
    admin_secret: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct DeployArgs {
    /// The function's folder, or an archive of it (tar, tar.gz, tar.zst, zip, squashfs)
    source: PathBuf,
    /// Name of the function [default: that of the folder or archive]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    place: Where,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Name of the function
    name: String,
    #[command(flatten)]
    place: Where,
}

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// Name of the function
    name: String,
    /// The version that shall serve [default: the one before]
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    #[command(flatten)]
    place: Where,
}

impl Where {
    pub(super) fn find(&self) -> anyhow::Result<(Target, String)> {
        let target = Target::find(self.url.as_deref(), &self.data, None, self.admin_secret.as_deref())?;
        let Some(key) = &target.admin_secret else {
            bail!(
                "the operator's key is needed; give it as OPR_EXECUTOR_SECRET or --admin-secret, or name the data folder with --data"
            )
        };
        let key = format!("Bearer {}", key.expose());
        Ok((target, key))
    }
}

pub(super) fn deploy(args: &DeployArgs) -> anyhow::Result<ExitCode> {
    let source =
        args.source.canonicalize().with_context(|| format!("cannot read {}", args.source.display()))?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of(&source).context("the function needs a name; give it with --name")?,
    };
    crate::function::check_name(&name).map_err(anyhow::Error::msg)?;
    let (target, key) = args.place.find()?;
    let scratch = Scratch::new()?;
    let archive = if source.is_dir() { pack(&source, scratch.path())? } else { source };
    match super::block_on(send(&target, &key, &name, &archive))? {
        Ok(version) => {
            println!("deployed {name}, version {version}, at {}/{name}", target.url);
            Ok(ExitCode::SUCCESS)
        }
        Err(why) => bail!("{name} was not deployed: {why}\nwhat served before goes on serving"),
    }
}

/// `hello.tar.gz` is `hello`.
fn name_of(source: &Path) -> Option<String> {
    let name = source.file_name()?.to_str()?;
    let suffixes = [".tar.gz", ".tar.zst", ".tgz", ".tar", ".zip", ".sqfs"];
    let stem = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).filter(|_| source.is_file());
    Some(stem.unwrap_or(name).to_owned())
}

/// Packs what is sent of a function's folder.
fn pack(folder: &Path, scratch: &Path) -> anyhow::Result<PathBuf> {
    let manifest = folder.join(MANIFEST);
    let text = std::fs::read_to_string(&manifest)
        .with_context(|| format!("{} is no function: cannot read its {MANIFEST}", folder.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("{} is wrong", manifest.display()))?;
    let exclude: &[&str] = if table.contains_key("build") { &[".git", "node_modules"] } else { &[".git"] };
    let file = scratch.join("source.tar.zst");
    let options = PackOptions { exclude, most_bytes: u64::MAX, ..PackOptions::default() };
    let packed = archive::pack(folder, &file, Compression::Zstd, &options)?;
    for left_out in &packed.left_out {
        eprintln!("left out, because it leads out of the folder: {}", left_out.display());
    }
    eprintln!("packed {} files and folders, {} KiB", packed.entries, packed.bytes.div_ceil(1024));
    Ok(file)
}

/// Sends the archive and shows what the executor says; the version, or why there is none.
async fn send(target: &Target, key: &str, name: &str, archive: &Path) -> anyhow::Result<Result<u64, String>> {
    let file =
        tokio::fs::File::open(archive).await.with_context(|| format!("cannot read {}", archive.display()))?;
    let size = file.metadata().await?.len();
    let request = http::Request::put("/").header(CONTENT_LENGTH, size).header(AUTHORIZATION, key);
    let path = format!("/_/functions/{name}");
    target.exchange(request, &path, upload(file, move |sent| progress(sent, size)), outcome).await
}

/// Shows what the executor says until it says how it went.
async fn outcome(answer: http::Response<Incoming>) -> anyhow::Result<Result<u64, String>> {
    if !answer.status().is_success() {
        let body = answer.into_body().collect().await?.to_bytes();
        return Ok(Err(detail(&body)));
    }
    let mut body = answer.into_body();
    let mut open = BytesMut::new();
    loop {
        let Some(data) = piece(&mut body).await? else {
            bail!("the executor ended before it said how it went")
        };
        open.extend_from_slice(&data);
        while let Some(end) = open.iter().position(|b| *b == b'\n') {
            let line = open.split_to(end);
            open.advance(1);
            if let Some(outcome) = tell(&line) {
                return Ok(outcome);
            }
        }
        if open.len() > MOST_LINE {
            bail!("the executor's answer is not what this program understands");
        }
    }
}

/// Shows one line of the answer; the outcome, if it is that.
fn tell(line: &[u8]) -> Option<Result<u64, String>> {
    let value: Value = serde_json::from_slice(line).ok()?;
    if let Some(error) = value.get("error") {
        return Some(Err(error["message"].as_str().unwrap_or_default().to_owned()));
    }
    if value["done"] == true {
        return Some(Ok(value["version"].as_u64().unwrap_or_default()));
    }
    // Date and fractions are for programs.
    let time = value["at"].as_str().and_then(|at| at.get(11..19)).unwrap_or_default();
    eprintln!("{time}  {}", value["line"].as_str().unwrap_or_default());
    None
}

fn progress(sent: u64, size: u64) {
    let mut out = std::io::stderr().lock();
    if out.is_terminal() {
        let percent = sent * 100 / size.max(1);
        let _ = write!(out, "\rsent {} KiB, {percent} %", sent.div_ceil(1024));
        if sent == size {
            let _ = writeln!(out);
        }
        let _ = out.flush();
    } else if sent == size {
        let _ = writeln!(out, "sent {} KiB", size.div_ceil(1024));
    }
}

pub(super) fn detail(problem: &[u8]) -> String {
    let value: Value = serde_json::from_slice(problem).unwrap_or_default();
    value["detail"].as_str().map_or_else(|| String::from_utf8_lossy(problem).into_owned(), str::to_owned)
}

pub(super) fn remove(args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    let (target, key) = args.place.find()?;
    let request = http::Request::delete("/").header(AUTHORIZATION, key);
    let path = format!("/_/functions/{}", args.name);
    let answer = super::block_on(target.send(request, &path, Bytes::new(), LIMIT))?;
    if !answer.status().is_success() {
        bail!("{} was not removed: {}", args.name, detail(answer.body()));
    }
    println!("removed {}", args.name);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn rollback(args: &RollbackArgs) -> anyhow::Result<ExitCode> {
    let (target, key) = args.place.find()?;
    let request = http::Request::post("/").header(AUTHORIZATION, key);
    let query = args.version.map_or(String::new(), |version| format!("?to={version}"));
    let path = format!("/_/functions/{}/rollback{query}", args.name);
    let answer = super::block_on(target.send(request, &path, Bytes::new(), LIMIT))?;
    if !answer.status().is_success() {
        bail!("{} was not rolled back: {}", args.name, detail(answer.body()));
    }
    let value: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    println!("{} serves version {} again", args.name, value["version"]);
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let dir = tempfile::tempdir().unwrap();
        for (file, name) in [("a.tar.gz", "a"), ("b.zip", "b"), ("c.tar", "c"), ("d", "d")] {
            let path = dir.path().join(file);
            std::fs::write(&path, "").unwrap();
            assert_eq!(name_of(&path).unwrap(), name);
        }
        let folder = dir.path().join("v2.tar");
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(name_of(&folder).unwrap(), "v2.tar", "a folder's name is whole");
    }
}
