//! `function.toml`: read, checked, and every mistake told with its line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path};
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::state_spec::StateTable;
use super::{
    Access, Alone, BuildSpec, Function, ImageSpec, MANIFEST, ManifestError, NO_LIMIT, Profile, RuntimeRef,
    ServedBy, check_entrypoint, check_inside, check_name, check_root,
};
use crate::runtime::Runtimes;
use crate::units;

/// Bytes of a manifest.
const MOST_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Manifest {
    #[serde(default)]
    runtime: Option<Spanned<String>>,
    #[serde(default)]
    image: Option<Spanned<String>>,
    #[serde(default)]
    port: Option<Spanned<u16>>,
    #[serde(default)]
    profile: Option<Spanned<Profile>>,
    #[serde(default)]
    command: Option<Spanned<String>>,
    #[serde(default)]
    entrypoint: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    #[serde(default, deserialize_with = "bytes")]
    memory: Option<u64>,
    #[serde(default)]
    cpus: Option<Spanned<f64>>,
    #[serde(default)]
    concurrency: Option<Spanned<u32>>,
    #[serde(default)]
    min_instances: Option<Spanned<u32>>,
    #[serde(default)]
    max_instances: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "duration")]
    keep_warm: Option<Duration>,
    #[serde(default)]
    access: Access,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    state: Option<StateTable>,
    #[serde(default)]
    build: Option<BuildTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BuildTable {
    command: Spanned<String>,
    #[serde(default)]
    output: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    #[serde(default)]
    cache: bool,
}

fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(d)?;
    let value = units::duration(&text).map_err(de::Error::custom)?;
    if value.is_zero() || value > Duration::from_hours(24 * 365) {
        return Err(de::Error::custom(format!("`{text}` must be longer than nothing and at most 365d")));
    }
    Ok(Some(value))
}

fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(d)?;
    let value = units::bytes(&text).map_err(de::Error::custom)?;
    if value < 16 << 20 {
        return Err(de::Error::custom(format!("`{text}` is too little; an instance needs at least 16MiB")));
    }
    Ok(Some(value))
}

pub(super) fn read_function(
    folder: &Path,
    name: &str,
    fingerprint: u64,
    runtimes: &Runtimes,
    alone: Option<&Alone>,
) -> Result<Function, ManifestError> {
    let file = folder.join(MANIFEST);
    let fail = |line, message: String| Err(ManifestError { file: file.clone(), line, message });
    if let Err(message) = check_name(name)
        && alone.is_none()
    {
        return fail(None, message);
    }
    let text = match (read_text(&file), alone) {
        (Ok(text), _) => text,
        (Err(error), Some(alone)) if error.kind() == std::io::ErrorKind::NotFound => {
            match alone.manifest(folder) {
                Ok(text) => text,
                Err(message) => return fail(None, message),
            }
        }
        (Err(error), _) => return fail(None, format!("cannot be read: {error}")),
    };
    let line_at = |offset: usize| Some(text[..offset.min(text.len())].matches('\n').count() + 1);
    let manifest: Manifest = match toml::from_str(&text) {
        Ok(manifest) => manifest,
        Err(error) => {
            let line = error.span().and_then(|span| line_at(span.start));
            return fail(line, error.message().replace('\n', " ").trim().to_owned());
        }
    };
    validate(folder, name, fingerprint, manifest, runtimes, alone).or_else(|(offset, message)| {
        let line = offset.and_then(line_at);
        fail(line, message)
    })
}

/// An archive from a stranger may have a manifest of any size.
fn read_text(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = File::open(file)?.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > MOST_BYTES {
        return Err(std::io::Error::other(format!("it has more than {MOST_BYTES} bytes")));
    }
    Ok(text)
}

type Fault = (Option<usize>, String);

fn validate(
    folder: &Path,
    name: &str,
    fingerprint: u64,
    mut m: Manifest,
    runtimes: &Runtimes,
    alone: Option<&Alone>,
) -> Result<Function, Fault> {
    let build_at = m.build.as_ref().map(|build| build.command.span().start);
    let build = m.build.take().map(build_spec).transpose()?;
    let (runtime, served_by, entrypoint) = serving(folder, &mut m, runtimes, alone, build.is_some())?;
    if let (ServedBy::Image(_), Some(at)) = (&served_by, build_at) {
        let text = "[build] runs with a language's tools, and image = \"…\" has no language; build the image instead";
        return Err((Some(at), text.to_owned()));
    }
    m.env.extend(alone.into_iter().flat_map(|alone| alone.env.clone()));
    let ranged = |value: Option<Spanned<u32>>, what: &str, default: u32, low: u32, high: u32| match value {
        None => Ok(default),
        Some(v) if (low..=high).contains(v.get_ref()) => Ok(*v.get_ref()),
        Some(v) => {
            Err((Some(v.span().start), format!("{what} must be from {low} to {high}, not {}", v.get_ref())))
        }
    };
    let max_at = m.max_instances.as_ref().map(|v| v.span().start);
    let concurrency = ranged(m.concurrency, "concurrency", 16, 1, 1024)?;
    let min_instances = ranged(m.min_instances, "min-instances", 0, 0, 1000)?;
    let max_instances = ranged(m.max_instances, "max-instances", 4.max(min_instances), 1, 1000)?;
    if min_instances > max_instances {
        return Err((
            max_at,
            format!("max-instances ({max_instances}) is below min-instances ({min_instances})"),
        ));
    }
    let cpus = match m.cpus {
        None => 1.0,
        Some(v) if (0.01..=1024.0).contains(v.get_ref()) => *v.get_ref(),
        Some(v) => {
            return Err((
                Some(v.span().start),
                format!("cpus must be from 0.01 to 1024, not {}", v.get_ref()),
            ));
        }
    };
    if let Some(bad) = m.env.iter().find(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0'))
    {
        return Err((
            None,
            format!("[env] has the name {:?}, which cannot be an environment variable", bad.0),
        ));
    }
    let state = match m.state {
        None => None,
        Some(table) if served_by != ServedBy::Worker => {
            let text = "[state] needs a worker of ours to bring it to the function; a foreign image or a site has none";
            return Err((Some(table.key.span().start), text.to_owned()));
        }
        Some(table) => Some(table.check()?),
    };
    Ok(Function {
        name: name.into(),
        folder: folder.to_owned(),
        source: folder.to_owned(),
        build,
        runtime,
        served_by,
        entrypoint,
        timeout: m.timeout.unwrap_or(if alone.is_some() { NO_LIMIT } else { Duration::from_secs(15) }),
        memory: m.memory.unwrap_or(256 << 20),
        cpus,
        concurrency,
        min_instances,
        max_instances,
        keep_warm: m.keep_warm.unwrap_or(Duration::from_mins(5)),
        access: m.access,
        env: m.env,
        state,
        fingerprint,
    })
}

/// What serves the function: its runtime or its image, and where it begins.
fn serving(
    folder: &Path,
    m: &mut Manifest,
    runtimes: &Runtimes,
    alone: Option<&Alone>,
    built: bool,
) -> Result<(RuntimeRef, ServedBy, String), Fault> {
    let asked = match (m.runtime.take(), m.image.take()) {
        (Some(runtime), None) => runtime,
        (None, Some(image)) => return foreign(folder, m, &image),
        (Some(_), Some(image)) => {
            return Err((Some(image.span().start), "write either runtime or image, not both".into()));
        }
        (None, None) => {
            return Err((None, "runtime is missing; write for example runtime = \"node\"".into()));
        }
    };
    let at = Some(asked.span().start);
    let ports = m.port.as_ref().map(|port| port.span().start);
    let only =
        ports.or(m.profile.as_ref().map(|p| p.span().start)).or(m.command.as_ref().map(|c| c.span().start));
    if only.is_some() {
        return Err((only, "port, profile and command belong to image = \"…\", not to a runtime".into()));
    }
    let runtime = RuntimeRef::parse(asked.get_ref()).map_err(|e| (at, e))?;
    let known = runtimes.get(&runtime.name).ok_or_else(|| {
        (at, format!("there is no runtime `{}`; there are: {}", runtime.name, runtimes.names()))
    })?;
    if known.manifest.site {
        let root = match &m.entrypoint {
            Some(entrypoint) => entrypoint.get_ref().as_str(),
            // What hosts package are the files themselves.
            None if alone.is_some() && !folder.join(MANIFEST).is_file() => ".",
            None => &known.manifest.entrypoint,
        };
        let checked = if built { check_inside(root) } else { check_root(folder, root) };
        checked.map_err(|e| (at, e))?;
        return Ok((runtime, ServedBy::Files, root.to_owned()));
    }
    let over = alone.and_then(|alone| alone.entrypoint.clone());
    let (entrypoint, entrypoint_at) = match (over, &m.entrypoint) {
        (Some(over), _) => (over, None),
        (None, Some(entrypoint)) => (entrypoint.get_ref().clone(), Some(entrypoint.span().start)),
        (None, None) => (known.manifest.entrypoint.clone(), at),
    };
    // What a build makes cannot be there before it, and alone the worker reports it.
    let checked = match alone {
        None if !built => check_entrypoint(folder, &entrypoint),
        _ => check_inside(&entrypoint),
    };
    checked.map_err(|e| (entrypoint_at, e))?;
    Ok((runtime, ServedBy::Worker, entrypoint))
}

fn foreign(
    folder: &Path,
    m: &Manifest,
    image: &Spanned<String>,
) -> Result<(RuntimeRef, ServedBy, String), Fault> {
    let sane = |b: u8| b.is_ascii_alphanumeric() || b"/:@._-".contains(&b);
    let name = image.get_ref();
    if name.is_empty() || name.len() > 255 || !name.bytes().all(sane) {
        let text = format!("`{name}` is not an image; write for example \"nginx:1.28\"");
        return Err((Some(image.span().start), text));
    }
    let profile = m.profile.as_ref().map_or(Profile::Port, |profile| *profile.get_ref());
    if let Some(asked) = m.profile.as_ref().filter(|_| profile == Profile::V2) {
        let text = "profile v2 has no place for a request's method, path and headers, so such an image is no function; \
                    v3, v4 and v5 are, and /v1 runs images of v2";
        return Err((Some(asked.span().start), text.into()));
    }
    if let Some(port) = m.port.as_ref().filter(|port| *port.get_ref() == 0) {
        return Err((Some(port.span().start), "port must be from 1 to 65535".into()));
    }
    let entrypoint = m.entrypoint.as_ref().map_or("", |entrypoint| entrypoint.get_ref());
    if let Some(given) = &m.entrypoint {
        check_entrypoint(folder, entrypoint).map_err(|e| (Some(given.span().start), e))?;
    }
    let spec = ImageSpec {
        name: name.clone(),
        port: m.port.as_ref().map_or(3000, |port| *port.get_ref()),
        profile,
        command: m.command.as_ref().map(|command| command.get_ref().clone()),
    };
    let runtime = RuntimeRef { name: "image".into(), version: None };
    Ok((runtime, ServedBy::Image(spec), entrypoint.to_owned()))
}

fn build_spec(table: BuildTable) -> Result<BuildSpec, Fault> {
    let command = table.command.get_ref().trim();
    if command.is_empty() || command.contains('\0') {
        return Err((Some(table.command.span().start), "[build] needs a command".to_owned()));
    }
    if let Some(output) = &table.output {
        let path = Path::new(output.get_ref());
        let inside = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !inside || output.get_ref().is_empty() {
            let text = format!("output `{}` must be a path inside the function's folder", output.get_ref());
            return Err((Some(output.span().start), text));
        }
    }
    Ok(BuildSpec {
        command: command.to_owned(),
        output: table.output.map(Spanned::into_inner),
        timeout: table.timeout,
        cache: table.cache,
    })
}
