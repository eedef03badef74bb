//! The build: source in, archive out.

use std::fs::File;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use super::steps::Steps;
use super::{
    ARCHIVES, EXTRACTED, Environment, Folders, LifecycleError, Output, at, cache, metadata, remove, set,
};
use crate::archive::{Compression, Kind, PackOptions, Packed, content_size, pack, walk};

/// Below this `auto` does not compress: reading it costs less than unpacking.
const AUTO: u64 = 5120 << 10;
/// An archive larger than this would not be accepted.
const MOST_BYTES: u64 = 2 << 30;

/// How the result is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Archive(Compression),
    /// As a tree.
    Skip,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Archive(Compression::None) => "none",
            Self::Archive(Compression::Gzip) => "gzip",
            Self::Archive(Compression::Zstd) => "zstd",
            Self::Archive(Compression::Squashfs) => "squashfs",
            Self::Skip => "skip",
        }
    }
}

/// Builds: copies the source, runs hooks and `command`, packs. The result is complete when this returns, and
/// absent or that of an earlier build when it fails.
pub fn build(
    environment: &Environment,
    folders: &Folders,
    command: &str,
    output: &mut Output,
) -> Result<(), LifecycleError> {
    let steps = Steps::new().map_err(at(&folders.build))?;
    let mut environment = environment.clone();
    output.say("Environment preparation started.");
    cache::restore(folders, &mut environment, output);
    if is_empty(&folders.input) {
        return Err(LifecycleError::NoSource);
    }
    std::fs::create_dir_all(&folders.build).map_err(at(&folders.build))?;
    copy_tree(&folders.input, &folders.build, &[], output)?;
    let hook = |name: &str| steps.hook(&folders.helpers, name, &folders.build, &environment);
    hook("before-build.sh")?;
    output.say("Environment preparation finished.");

    output.say("Build command execution started.");
    if !command.trim().is_empty() {
        steps.shell("the build command", command, &folders.build, &environment)?;
    }
    hook("compile.sh")?;
    output.say("Build command execution finished.");

    output.say("Build packaging started.");
    hook("after-build.sh")?;
    let tree = packaged_tree(&environment, folders)?;
    let form = form(&tree, &environment)?;
    metadata::write(&tree, &environment, form.name())?;
    keep(&tree, &folders.output, form, output)?;
    metadata::write_manifest(&tree, &environment, output);
    cache::save(folders, &environment, output);
    output.say("Build packaging finished.");
    output.say("Build finished.");
    Ok(())
}

/// Also when it is not there.
fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

/// The build folder, or the folder below it that is the result.
fn packaged_tree(environment: &Environment, folders: &Folders) -> Result<PathBuf, LifecycleError> {
    const NAME: &str = "OPEN_RUNTIMES_OUTPUT_DIRECTORY";
    let root = folders.build.canonicalize().map_err(at(&folders.build))?;
    let below = Path::new(set(environment, NAME).unwrap_or("."));
    let leads_out = || {
        let shown = below.display();
        LifecycleError::Invalid(format!("{NAME} `{shown}` is not inside the source; give a folder below it"))
    };
    if !below.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(leads_out());
    }
    let Ok(tree) = root.join(below).canonicalize() else { return Err(LifecycleError::NoOutput) };
    if !tree.starts_with(&root) {
        return Err(leads_out());
    }
    if is_empty(&tree) { Err(LifecycleError::NoOutput) } else { Ok(tree) }
}

fn form(tree: &Path, environment: &Environment) -> Result<Form, LifecycleError> {
    Ok(match set(environment, "OPEN_RUNTIMES_BUILD_COMPRESSION").unwrap_or("gzip") {
        "none" => Form::Archive(Compression::None),
        "zstd" => Form::Archive(Compression::Zstd),
        "squashfs" => Form::Archive(Compression::Squashfs),
        "skip" => Form::Skip,
        "auto" if content_size(tree, &PackOptions::default())? < AUTO => Form::Archive(Compression::None),
        _ => Form::Archive(Compression::Gzip),
    })
}

/// Puts the result into the output folder, where afterwards nothing is that readers would prefer to it.
fn keep(tree: &Path, into: &Path, form: Form, output: &mut Output) -> Result<(), LifecycleError> {
    std::fs::create_dir_all(into).map_err(at(into))?;
    let marker = into.join(EXTRACTED);
    let name = match form {
        Form::Skip => {
            // Last: a tree that is half there is not taken for one.
            remove(&marker)?;
            copy_tree(tree, into, &ARCHIVES, output)?;
            remove(&marker)?;
            File::create_new(&marker).map_err(at(&marker))?;
            None
        }
        Form::Archive(compression) => {
            let name = if compression == Compression::Squashfs { "code.sqfs" } else { "code.tar.gz" };
            let options = PackOptions { exclude: &ARCHIVES, most_bytes: MOST_BYTES, until: None };
            let Packed { left_out, .. } = pack(tree, &into.join(name), compression, &options)?;
            for path in left_out.iter().take(20) {
                left_out_warning(output, path, "it is a link that leads out of the output, or no file");
            }
            remove(&marker)?;
            Some(name)
        }
    };
    for other in ARCHIVES.iter().filter(|other| Some(**other) != name) {
        remove(&into.join(other))?;
    }
    Ok(())
}

/// Copies everything but `exclude` at the root into a folder that may have content; modes and links stay as
/// they are. Devices, pipes and sockets are left out.
fn copy_tree(from: &Path, into: &Path, exclude: &[&str], output: &mut Output) -> Result<(), LifecycleError> {
    if same(from, into) {
        return Ok(());
    }
    // Listed before anything is copied: the target may be inside the source.
    for (name, kind) in walk(from).map_err(at(from))? {
        let (source, target) = (from.join(&name), into.join(&name));
        if exclude.iter().any(|excluded| name.starts_with(excluded)) {
            continue;
        }
        // Never onto or through what an earlier build left.
        let is_folder = std::fs::symlink_metadata(&target).is_ok_and(|metadata| metadata.is_dir());
        if !(kind == Kind::Folder && is_folder) {
            remove(&target)?;
        }
        let done = match kind {
            Kind::Folder if is_folder => Ok(()),
            Kind::Folder => std::fs::create_dir(&target),
            Kind::Link { target: to } => symlink(to, &target),
            Kind::File { .. } => std::fs::copy(&source, &target).map(|_| ()),
            Kind::Special => {
                left_out_warning(output, &name, "it is not a file");
                Ok(())
            }
        };
        done.map_err(at(&target))?;
    }
    Ok(())
}

fn left_out_warning(output: &mut Output, path: &Path, why: &str) {
    // Names may hold anything; lines must stay lines.
    output.warn(&format!("`{}` is left out: {why}", path.to_string_lossy().escape_debug()));
}

fn same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| -> io::Result<PathBuf> { path.canonicalize() };
    matches!((real(one), real(other)), (Ok(one), Ok(other)) if one == other)
}
