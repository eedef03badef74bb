//! Images of languages for hosts of Open Runtimes: the worker's image, the executor itself, and the helper scripts.
//!
//! One Dockerfile serves every language (`runtimes/image.Dockerfile`). The build context is what it takes of the
//! language's folder and this binary, which is streamed: it is by far the largest part, and never whole in memory.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use bollard::query_parameters::BuildImageOptions;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::{DockerAdapter, image};
use crate::adapter::AdapterError;
use crate::runtime::{self, Runtime};

const DOCKERFILE: &str = include_str!("../../../runtimes/image.Dockerfile");
/// Label of these images; its value is the runtime's name.
const LABEL: &str = "executor.image";
/// A folder of scripts is small; more than this is a mistake, and it is held in memory. Bytes.
const MOST_FILES: usize = 16 << 20;
/// Bytes of the binary that are in memory at a time.
const PIECE: usize = 256 << 10;
/// Bytes of a block of a tar archive.
const BLOCK: u64 = 512;

impl DockerAdapter {
    /// Builds the image `tag` of `runtime`, with `binary` as its executor. The worker's image is built first if it is
    /// missing. Takes minutes the first time, at most a quarter of an hour for each of the two. When this future is
    /// dropped, Docker stops building.
    ///
    /// # Errors
    /// What Docker says, with the end of the build's output; a binary that is no Linux program.
    pub async fn build_runtime_image(
        &self,
        runtime: &Runtime,
        tag: &str,
        mut binary: File,
    ) -> Result<(), AdapterError> {
        let name = &runtime.name;
        let failed = |text: String| AdapterError::Failed(format!("runtime `{name}`: {text}").into());
        let size = check(&mut binary).await.map_err(|e| failed(format!("the executor's binary: {e}")))?;
        let files = files_of(runtime).map_err(|e| failed(format!("its folder: {e}")))?;
        let site = runtime.manifest.site;
        if !site {
            self.prepare(runtime, None).await?;
            // Hosts build in it, too.
            self.prepare_builds(runtime).await?;
        }
        let context = context(binary, size, files);
        let arguments = [
            ("WORKER", if site { image::BASE_IMAGE.to_owned() } else { image::tag_for_builds(runtime) }),
            ("LOCATE", if site { String::new() } else { locate_line(runtime) }),
            ("RUNTIME", name.clone()),
            ("ENTRYPOINT", runtime.manifest.entrypoint.clone()),
        ];
        let options = BuildImageOptions {
            t: Some(tag.to_owned()),
            rm: true,
            forcerm: true,
            buildargs: Some(arguments.map(|(name, value)| (name.to_owned(), value)).into()),
            labels: Some(HashMap::from([(LABEL.to_owned(), name.clone())])),
            ..Default::default()
        };
        let body = bollard::body_try_stream(context);
        let client = &self.shared.client;
        image::carry_out(client, runtime, client.docker.build_image(options, None, Some(body))).await
    }
}

/// The shell line that makes the language print its path and version.
fn locate_line(runtime: &Runtime) -> String {
    let quoted = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    let words = std::iter::once(&runtime.manifest.docker.program).chain(&runtime.manifest.process.locate);
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

/// The size of a Linux program in bytes; an error for any other file, which would only fail inside the image.
async fn check(binary: &mut File) -> io::Result<u64> {
    let mut magic = [0; 4];
    let is_elf = binary.read_exact(&mut magic).await.is_ok() && magic == *b"\x7fELF";
    if !is_elf {
        let text = "it is not a Linux program (ELF), so no image can run it; build the image on Linux";
        return Err(io::Error::other(text));
    }
    binary.rewind().await?;
    Ok(binary.metadata().await?.len())
}

/// A finished archive of the Dockerfile and of what it takes from the runtime's folder. The worker itself is in the
/// image below.
fn files_of(runtime: &Runtime) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8], executable: bool| {
        if archive.get_ref().len() + content.len() > MOST_FILES {
            let text = format!("runtime.toml and helpers have more than {} MiB", MOST_FILES >> 20);
            return Err(io::Error::other(text));
        }
        archive.append_data(&mut header(content.len() as u64, executable), path, content)
    };
    add("Dockerfile", DOCKERFILE.as_bytes(), false)?;
    add("runtime.toml", &std::fs::read(runtime.folder.join("runtime.toml"))?, false)?;
    let helpers = runtime.folder.join("helpers");
    let scripts: Vec<PathBuf> = runtime::files(&helpers).map_err(|error| {
        io::Error::new(error.kind(), format!("{}: {error}; an image needs start.sh there", helpers.display()))
    })?;
    for script in scripts {
        let content = std::fs::read(helpers.join(&script))?;
        // The embedded tree has no execute bits, and hosts call the scripts by their names.
        add(&format!("helpers/{}", script.display()), &content, true)?;
    }
    archive.into_inner()
}

fn header(size: u64, executable: bool) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(if executable { 0o755 } else { 0o644 });
    header.set_mtime(0);
    header
}

/// Bytes to the end of the last block.
fn padding(size: u64) -> usize {
    (BLOCK - 1 - (size + BLOCK - 1) % BLOCK) as usize
}

/// The binary, piece by piece, as the first entry of the archive that `files` goes on with.
fn context(
    binary: File,
    size: u64,
    mut files: Vec<u8>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let pieces = futures_util::stream::unfold((binary, size), |(mut binary, left)| async move {
        if left == 0 {
            return None;
        }
        let mut piece = BytesMut::with_capacity(PIECE);
        let result = match (&mut binary).take(left).read_buf(&mut piece).await {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the binary became shorter")),
            Ok(_) => Ok(piece.freeze()),
            Err(error) => Err(error),
        };
        let left = result.as_ref().map_or(0, |piece| left - piece.len() as u64);
        Some((result, (binary, left)))
    });
    files.splice(..0, std::iter::repeat_n(0, padding(size)));
    let mut head = header(size, true);
    head.set_path("executor").expect("it is short");
    head.set_cksum();
    let once = |bytes: Vec<u8>| futures_util::stream::once(std::future::ready(Ok(Bytes::from(bytes))));
    once(head.as_bytes().to_vec()).chain(pieces).chain(once(files))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn file(content: &[u8]) -> File {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        File::open(file.path()).await.unwrap()
    }

    #[tokio::test]
    async fn the_context_is_one_archive_whatever_the_binary_s_size() {
        for size in [4, 511, 512, 513, PIECE, PIECE + 1] {
            let mut content = b"\x7fELF".to_vec();
            content.resize(size, b'x');
            let mut binary = file(&content).await;
            let checked = check(&mut binary).await.unwrap();
            assert_eq!(checked, size as u64);
            let mut files = tar::Builder::new(Vec::new());
            files.append_data(&mut header(1, false), "Dockerfile", &b"D"[..]).unwrap();
            let stream = context(binary, checked, files.into_inner().unwrap());
            let pieces: Vec<_> = stream.map(|piece| piece.unwrap()).collect().await;
            assert!(pieces.iter().all(|piece| piece.len() <= PIECE));
            let whole = pieces.concat();
            let mut archive = tar::Archive::new(&whole[..]);
            let mut seen = Vec::new();
            for entry in archive.entries().unwrap() {
                let mut entry = entry.unwrap();
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
                seen.push((
                    entry.path().unwrap().display().to_string(),
                    entry.header().mode().unwrap(),
                    bytes,
                ));
            }
            let wanted =
                [("executor".to_owned(), 0o755, content), ("Dockerfile".to_owned(), 0o644, vec![b'D'])];
            assert_eq!(seen, wanted, "{size}");
        }
    }

    #[tokio::test]
    async fn only_linux_programs() {
        for content in [&b"MZ\x90\0"[..], b"#!/bin/sh", b"\x7fEL", b""] {
            let error = check(&mut file(content).await).await.unwrap_err();
            assert!(error.to_string().contains("build the image on Linux"), "{error}");
        }
    }
}
