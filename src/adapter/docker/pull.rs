//! Foreign images: looked for here, else pulled.
//!
//! An image that is here is used as it is; newer ones are the operator's business (`docker pull`). Names come from
//! callers, so nothing but a plain image reference goes to the daemon, where it becomes part of a path.

use bollard::auth::DockerCredentials;
use bollard::query_parameters::CreateImageOptions;
use futures_util::StreamExt as _;

use super::client::{Client, PULL};
use super::image;
use crate::adapter::AdapterError;
use crate::instance::Secret;

/// Docker's own bound on a reference, with tag and digest.
const NAME: usize = 512;
/// Characters of one line of progress that are logged.
const LINE: usize = 200;
/// What Docker calls its own registry in credentials.
const HUB: &str = "https://index.docker.io/v1/";

/// Makes sure that the image is here. `registry`: user and password for Docker Hub.
pub(super) async fn ensure(
    client: &Client,
    name: &str,
    registry: Option<&(String, Secret)>,
) -> Result<(), AdapterError> {
    if !is_reference(name) {
        let text =
            format!("`{}` is not the name of an image", name.escape_default().take(LINE).collect::<String>());
        return Err(AdapterError::Missing(text.into()));
    }
    if image::exists(client, name).await? {
        return Ok(());
    }
    let hub = on_hub(name);
    tracing::info!(target: "build", image = %name, "the image is not here; pulling it");
    let why = match tokio::time::timeout(PULL, pull(client, name, registry.filter(|_| hub))).await {
        Ok(Ok(())) => {
            tracing::info!(target: "build", image = %name, "the image is pulled");
            return Ok(());
        }
        Ok(Err(error)) => match AdapterError::from(client.fault("pull it", error)) {
            AdapterError::Failed(text) => text.to_string(),
            other => return Err(other),
        },
        Err(_) => format!("pulling it took more than {} minutes", PULL.as_secs() / 60),
    };
    let access = if hub && registry.is_none() {
        "; for a private image of Docker Hub set OPR_EXECUTOR_DOCKER_HUB_USERNAME and _PASSWORD"
    } else {
        ""
    };
    let text = format!(
        "image `{name}` is not on this host and could not be pulled: {why}. Check its name and the way to its \
         registry{access}; or bring it here by hand with `docker pull`, `docker load` or `docker build`"
    );
    Err(AdapterError::Missing(text.into()))
}

/// When this future is dropped, Docker stops pulling.
async fn pull(
    client: &Client,
    name: &str,
    registry: Option<&(String, Secret)>,
) -> Result<(), bollard::errors::Error> {
    let credentials = registry.map(|(user, password)| DockerCredentials {
        username: Some(user.clone()),
        password: Some(password.expose().to_owned()),
        serveraddress: Some(HUB.to_owned()),
        ..Default::default()
    });
    let options = CreateImageOptions { from_image: Some(with_tag(name)), ..Default::default() };
    let mut progress = std::pin::pin!(client.docker.create_image(Some(options), None, credentials));
    while let Some(step) = progress.next().await {
        let step = step?;
        // One line per layer and step is enough, the progress bars are for terminals.
        if let (Some(status), None) = (step.status, step.progress_detail.and_then(|p| p.current)) {
            let layer = step.id.map(|id| format!("{id}: ")).unwrap_or_default();
            let line: String = (layer + &status).chars().filter(|c| !c.is_control()).take(LINE).collect();
            tracing::info!(target: "build", image = %name, "{line}");
        }
    }
    Ok(())
}

/// Without a tag Docker would pull all there are.
fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }
}

/// Whether Docker looks for it on its own registry: the part before the first slash is not a host.
fn on_hub(name: &str) -> bool {
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => {
            matches!(first, "docker.io" | "index.docker.io" | "registry-1.docker.io")
        }
        _ => true,
    }
}

/// A bit more than what Docker allows, which knows better, but nothing that means something in a URL.
fn is_reference(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    name.len() <= NAME
        && name.bytes().all(allowed)
        && name.split('/').all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric()))
        && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_references() {
        for good in ["debian:trixie-slim", "a/b-c/d_e:v1.2", "localhost:5000/x@sha256:0a", "A"] {
            assert!(is_reference(good), "{good}");
        }
        let long = "a".repeat(NAME);
        assert!(is_reference(&long) && !is_reference(&(long + "a")));
        for bad in ["", "/a", "a/", "a//b", "../x", "a/../b", "a?b", "a#b", "a b", "a%2f", "-a", "a\n", "é"]
        {
            assert!(!is_reference(bad), "{bad}");
        }
    }

    #[test]
    fn tags_and_registries_are_told_apart() {
        assert_eq!(with_tag("localhost:5000/x"), "localhost:5000/x:latest");
        assert_eq!(with_tag("x:1"), "x:1");
        assert_eq!(with_tag("x/y@sha256:0a"), "x/y@sha256:0a");
        for hub in ["x", "x:1.2", "x/y", "docker.io/x/y", "index.docker.io/x"] {
            assert!(on_hub(hub), "{hub}");
        }
        for other in ["localhost/x", "localhost:5000/x", "quay.io/x/y", "docker.io.example.com/x"] {
            assert!(!on_hub(other), "{other}");
        }
    }
}
