//! Images of runtimes: named by what is in them, and built here when they are missing.
//!
//! The tag carries the hash over the runtime's folder, so an image with the right tag is the right image, a changed
//! worker makes a new one, and nothing is ever rebuilt in place under running instances. The base image is the
//! one thing that comes from outside; where no registry answers, `docker/base-image.sh` makes it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bollard::models::BuildInfo;
use bollard::query_parameters::BuildImageOptions;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use super::client::{ASK, BUILD, Client};
use crate::adapter::AdapterError;
use crate::runtime::{self, Runtime};

/// What the Dockerfiles of our runtimes start from.
pub const BASE_IMAGE: &str = "debian:trixie-slim";

/// Label of the images built here; its value is the runtime's name.
const LABEL: &str = "executor.runtime";

/// A runtime's folder is a worker and a Dockerfile; more than this is a mistake, and it is all held in memory.
const CONTEXT_LIMIT: usize = 64 << 20;

/// Lines of the build's output that go into the error when it fails.
const TAIL: usize = 12;

/// Whether an instance of a runtime could be started in Docker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageState {
    /// Its image is here.
    Ready(String),
    /// It would be built from the base image, which is here.
    Buildable,
    /// Not even the base image is here; a build would have to pull it from a registry.
    NoBase,
}

impl fmt::Display for ImageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(tag) => write!(f, "image {tag} is here"),
            Self::Buildable => write!(f, "its image can be built from {BASE_IMAGE}"),
            Self::NoBase => write!(
                f,
                "neither its image nor {BASE_IMAGE} is here; docker/base-image.sh makes the latter without a registry"
            ),
        }
    }
}

/// The image's name.
pub(super) fn tag(runtime: &Runtime) -> String {
    format!("executor-runtime-{}:{}", runtime.name.to_lowercase(), runtime.hash)
}

/// Looks what is there; two short questions at the most.
pub(super) async fn state(client: &Client, runtime: &Runtime) -> Result<ImageState, AdapterError> {
    let tag = tag(runtime);
    if exists(client, &tag).await? {
        return Ok(ImageState::Ready(tag));
    }
    Ok(if exists(client, BASE_IMAGE).await? { ImageState::Buildable } else { ImageState::NoBase })
}

/// Whether an image of that name is here.
pub(super) async fn exists(client: &Client, name: &str) -> Result<bool, AdapterError> {
    match client.call(ASK, "inspect an image", client.docker.inspect_image(name)).await {
        Ok(_) => Ok(true),
        Err(fault) if fault.is_gone() => Ok(false),
        Err(fault) => Err(fault.into()),
    }
}

/// The image holds one version; a function that asks for another one gets told so.
pub(super) fn check_version(runtime: &Runtime, asked: Option<&str>) -> Result<(), AdapterError> {
    let has = &runtime.manifest.docker.version;
    let same =
        |asked: &str| has.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    match asked {
        Some(asked) if !same(asked) => {
            let name = &runtime.name;
            let text = format!(
                "the function asks for {name}-{asked}, but the image of runtime `{name}` has {has}; write \
                 runtime = \"{name}-{has}\" or \"{name}\""
            );
            Err(AdapterError::Missing(text.into()))
        }
        _ => Ok(()),
    }
}

/// Builds the image of workers. When this future is dropped, Docker stops building.
pub(super) async fn build(client: &Client, runtime: &Runtime) -> Result<(), AdapterError> {
    let name = &runtime.name;
    // A few small files, read rarely and just before minutes of building, so not worth another thread.
    let context = context(&runtime.folder).map_err(|error| {
        AdapterError::Failed(format!("runtime `{name}`: its image cannot be built: {error}").into())
    })?;
    let tag = tag(runtime);
    tracing::info!(target: "build", runtime = %name, image = %tag, "building the image; this is done once");
    let options = BuildImageOptions {
        t: Some(tag),
        rm: true,
        forcerm: true,
        labels: Some(HashMap::from([(LABEL.to_owned(), name.clone())])),
        ..Default::default()
    };
    let build = client.docker.build_image(options, None, Some(bollard::body_full(Bytes::from(context))));
    carry_out(client, runtime, build).await
}

/// The image in which build commands run: that of workers, and what builds need on top.
pub(super) fn tag_for_builds(runtime: &Runtime) -> String {
    if runtime.manifest.docker.build_packages.is_empty() {
        return tag(runtime);
    }
    format!("executor-build-{}:{}", runtime.name.to_lowercase(), runtime.hash)
}

/// Makes [`tag_for_builds`] out of the workers' image, which must be there.
pub(super) async fn build_for_builds(client: &Client, runtime: &Runtime) -> Result<(), AdapterError> {
    let dockerfile = format!(
        "FROM {}\nUSER root\nRUN apt-get update && apt-get install --yes --no-install-recommends {} && rm -rf \
         /var/lib/apt/lists/* /var/cache/apt/archives/*.deb\nUSER function\n",
        tag(runtime),
        runtime.manifest.docker.build_packages.join(" ")
    );
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(dockerfile.len() as u64);
    header.set_mode(0o644);
    let context = archive
        .append_data(&mut header, "Dockerfile", dockerfile.as_bytes())
        .and_then(|()| archive.into_inner())
        .map_err(|error| AdapterError::Failed(format!("runtime `{}`: {error}", runtime.name).into()))?;
    let tag = tag_for_builds(runtime);
    tracing::info!(target: "build", runtime = %runtime.name, image = %tag, "adding what builds need; this is done once");
    let options = BuildImageOptions {
        t: Some(tag),
        rm: true,
        forcerm: true,
        labels: Some(HashMap::from([(LABEL.to_owned(), runtime.name.clone())])),
        ..Default::default()
    };
    let build = client.docker.build_image(options, None, Some(bollard::body_full(Bytes::from(context))));
    carry_out(client, runtime, build).await
}

/// Follows the build of an image of `runtime`; its output goes to the log, the end of it into the error.
pub(super) async fn carry_out(
    client: &Client,
    runtime: &Runtime,
    build: impl Stream<Item = Result<BuildInfo, bollard::errors::Error>>,
) -> Result<(), AdapterError> {
    let name = &runtime.name;
    let mut output = Output { runtime: name, open: String::new(), tail: VecDeque::new() };
    let mut text = match tokio::time::timeout(BUILD, follow(build, &mut output)).await {
        Ok(Ok(())) => {
            tracing::info!(target: "build", runtime = %name, "the image is ready");
            return Ok(());
        }
        Ok(Err(error)) => match AdapterError::from(client.fault("build its image", error)) {
            AdapterError::Failed(message) => message.to_string(),
            other => return Err(other),
        },
        Err(_) => format!("building its image took more than {} minutes", BUILD.as_secs() / 60),
    };
    for line in &output.tail {
        text = text + "\n  " + line;
    }
    if base_is_missing(client, runtime).await {
        let text = format!(
            "runtime `{name}`: {text}\nThe base image {BASE_IMAGE} is not here and could not be pulled; run \
             docker/base-image.sh, which makes it without a registry"
        );
        return Err(AdapterError::Missing(text.into()));
    }
    Err(AdapterError::Failed(format!("runtime `{name}`: {text}").into()))
}

/// Asked only after a failure: whether the lack of the base image explains it.
async fn base_is_missing(client: &Client, runtime: &Runtime) -> bool {
    let dockerfile = std::fs::read_to_string(runtime.folder.join("Dockerfile"));
    let uses_it = runtime.manifest.site || dockerfile.is_ok_and(|text| text.contains(BASE_IMAGE));
    uses_it && matches!(exists(client, BASE_IMAGE).await, Ok(false))
}

async fn follow(
    stream: impl Stream<Item = Result<BuildInfo, bollard::errors::Error>>,
    output: &mut Output<'_>,
) -> Result<(), bollard::errors::Error> {
    let mut stream = std::pin::pin!(stream);
    while let Some(info) = stream.next().await {
        let info = info?;
        if let Some(text) = info.stream {
            output.push(&text);
        }
        // Pulling the base: one line per layer and step is enough, the progress bars are for terminals.
        if let (Some(status), None) = (info.status, info.progress_detail.and_then(|p| p.current)) {
            output.push(&format!("{status}\n"));
        }
    }
    Ok(())
}

/// The build's output, put together to whole lines.
struct Output<'a> {
    runtime: &'a str,
    open: String,
    tail: VecDeque<String>,
}

impl Output<'_> {
    /// No line is longer; what a tool draws without ever ending the line is cut there.
    const LINE: usize = 1000;

    fn push(&mut self, text: &str) {
        for piece in text.split_inclusive('\n') {
            self.open.push_str(piece);
            if piece.ends_with('\n') || self.open.len() > Self::LINE {
                let line = std::mem::take(&mut self.open);
                self.line(line.trim_end());
            }
        }
    }

    fn line(&mut self, line: &str) {
        // A progress bar redraws its line; only its last picture counts.
        let line = line.rsplit('\r').next().unwrap_or(line);
        let noise = [" --->", "---> ", "Removing intermediate container "];
        if line.trim().is_empty() || noise.iter().any(|start| line.starts_with(start)) {
            return;
        }
        tracing::info!(target: "build", runtime = %self.runtime, "{line}");
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line.chars().take(Self::LINE).collect());
    }
}

/// The build context: the runtime's folder as a tar archive that depends on nothing but names, contents and the
/// execute bit, so that Docker's own cache works across hosts and checkouts.
fn context(folder: &Path) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in runtime::files(folder)? {
        let path = folder.join(&file);
        let content = std::fs::read(&path)?;
        if archive.get_ref().len() + content.len() > CONTEXT_LIMIT {
            return Err(io::Error::other(format!("its folder holds more than {} MiB", CONTEXT_LIMIT >> 20)));
        }
        let executable = std::fs::metadata(&path)?.permissions().mode() & 0o111 != 0;
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(if executable { 0o755 } else { 0o644 });
        header.set_mtime(0);
        archive.append_data(&mut header, &file, content.as_slice())?;
    }
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_is_deterministic() {
        let make = |order: [&str; 2]| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("src")).unwrap();
            for name in order {
                std::fs::write(dir.path().join(name), name).unwrap();
            }
            context(dir.path()).unwrap()
        };
        assert_eq!(make(["Dockerfile", "src/w"]), make(["src/w", "Dockerfile"]));
    }

    #[test]
    fn output_becomes_lines() {
        let mut output = Output { runtime: "x", open: String::new(), tail: VecDeque::new() };
        for piece in ["Step 1", "/2 : FROM\n", "\n", " ---> 0a1b\n", " 10%\r 90%\r100%\nlast", "\n"] {
            output.push(piece);
        }
        assert_eq!(Vec::from(output.tail), ["Step 1/2 : FROM", "100%", "last"]);
        let mut output = Output { runtime: "x", open: String::new(), tail: VecDeque::new() };
        for n in 0..100 {
            output.push(&format!("{n} {}", "x".repeat(5000)));
        }
        assert!(output.tail.len() == TAIL && output.tail.iter().all(|l| l.len() <= Output::LINE));
    }
}
