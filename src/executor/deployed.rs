//! Functions that operators send: deployed, rolled back, removed; kept in the data folder, so that they
//! survive a restart.
//!
//! A deployment builds, starts one instance, and only then lets it serve; whatever fails before leaves the
//! version that serves untouched. What is on disk changes before what is served, under the name's turn, so
//! that both tell the same after a crash. A deployed function wins over one of the same name in the functions
//! folder.

use std::sync::{Arc, PoisonError};

use serde::Serialize;

use super::deploy::Known;
use super::{Deployed, Deployment, Executor};
use crate::build::{Build, BuildError, Built, End, Source, Upload, Version, Versions, now};
use crate::function::{self, ManifestError};
use crate::task::FinishAlways;

/// Where a function comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The functions folder.
    Folder,
    /// An operator sent it.
    Deployed,
}

/// Why a function was not deployed, rolled back or removed. What served goes on serving.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// It cannot be a name.
    #[error("{0}")]
    Name(String),
    /// This executor serves one function alone.
    #[error("this executor serves one function alone (`executor run`); deploy to one that serves a folder")]
    Single,
    /// It was not built.
    #[error("{0}")]
    Build(#[from] BuildError),
    /// The new version does not start.
    #[error("the new version does not start: {0}")]
    Start(String),
    /// Nothing of that name was deployed.
    #[error("no function `{0}` was deployed; `executor deploy` does that")]
    Unknown(String),
    /// It is one of the folder.
    #[error("`{0}` is in the functions folder; change it there")]
    InFolder(String),
    /// There is no such version.
    #[error("`{0}` has no {1} to go back to")]
    NoVersion(String, String),
    /// The executor is going down.
    #[error("the executor is shutting down")]
    Closing,
}

impl DeployError {
    /// For programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Name(_) => "bad-name",
            Self::Single => "single-function",
            Self::Build(error) => error.kind(),
            Self::Start(_) => "cannot-start",
            Self::Unknown(_) => "not-deployed",
            Self::InFolder(_) => "in-functions-folder",
            Self::NoVersion(..) => "no-such-version",
            Self::Closing => "shutting-down",
        }
    }
}

/// What operators are told of a function.
#[derive(Debug, Serialize)]
pub struct About {
    name: Arc<str>,
    origin: Origin,
    /// `serving`, `building` or `broken`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<String>,
    instances: usize,
    waiting: usize,
    /// The id of the build whose result will take its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<String>,
    /// The number of the version that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    versions: Vec<Version>,
}

impl Executor {
    /// Serves what was deployed before; gives how many. What cannot be opened is named in the log and to
    /// callers.
    pub async fn load_deployed(self: &Arc<Self>) -> usize {
        let mut served = 0;
        let all = if self.options.alone.is_some() { Ok(Vec::new()) } else { self.builds.deployed().all() };
        let all = all.unwrap_or_else(|error| {
            tracing::error!(
                "deployed functions are not served, because what is kept of them cannot be read: {error}"
            );
            Vec::new()
        });
        for (name, versions) in all {
            let Some(version) = versions.current() else { continue };
            match self.builds.open_version(&name, version).await {
                Ok(built) => {
                    if self.find(&name).is_some() {
                        tracing::warn!(function = %name, "is in the functions folder, too; the deployed one serves");
                    }
                    let new = self.deploy(&built.function);
                    self.serve_deployed(&new);
                    served += 1;
                }
                Err(error) => {
                    tracing::error!(function = %name, "cannot serve what was deployed: {error}");
                    self.serve_broken(&name.into(), &error);
                }
            }
        }
        self.builds.collect().await;
        served
    }

    /// Deploys what is in `upload`: builds it, starts an instance, lets it serve. The log of the build that
    /// is returned tells how it goes and ends; whoever does not want it any more cancels it.
    ///
    /// # Errors
    /// It cannot even begin.
    pub fn deploy_archive(self: &Arc<Self>, name: &str, upload: Upload) -> Result<Arc<Build>, DeployError> {
        self.check(name)?;
        let build = self.builds.begin(name)?;
        let (this, begun) = (Arc::clone(self), Arc::clone(&build));
        self.tasks.spawn("deploy", async move {
            let name = build.function.clone();
            tracing::info!(function = %name, build = %build.id, "deploying");
            let _turn = tokio::select! {
                turn = this.builds.turn(&name) => turn,
                () = build.cancelled() => {
                    build.log.end(failed(&BuildError::Cancelled.into()));
                    return;
                }
            };
            match this.deploy_now(&build, &name, upload).await {
                Ok(version) => {
                    tracing::info!(function = %name, version, "deployed");
                    build.log.end(End::Done { version: Some(version) });
                }
                Err(error) => {
                    tracing::error!(function = %name, build = %build.id, "not deployed: {error}");
                    build.log.end(failed(&error));
                }
            }
            this.builds.collect().await;
        });
        Ok(begun)
    }

    /// Whether a function of that name could be deployed.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, name: &str) -> Result<(), DeployError> {
        if self.options.alone.is_some() {
            return Err(DeployError::Single);
        }
        if self.is_closing() {
            return Err(DeployError::Closing);
        }
        function::check_name(name).map_err(DeployError::Name)
    }

    async fn deploy_now(
        self: &Arc<Self>,
        build: &Arc<Build>,
        name: &str,
        upload: Upload,
    ) -> Result<u64, DeployError> {
        let built = self.builds.run(build, Source::Archive(upload)).await?;
        let versions = self.kept(name)?.unwrap_or_default();
        if let Some(current) = versions.current()
            && current.key == built.key
            && self.is_served(name)
        {
            build.log.say(&format!("version {} serves exactly this already", current.version));
            return Ok(current.version);
        }
        build.log.say("starting an instance");
        let new = self.started(build, &built).await?;
        let versions = versions.with(|version| {
            let Built { hash, size, key, .. } = built;
            Version { version, at: now(), hash, size, key }
        });
        self.keep(name, &versions, &new).await?;
        Ok(versions.serving)
    }

    /// The version `to`, or the one before that which serves, serves again; gives its number. Runs to its end
    /// also when the future is dropped.
    pub fn rollback(self: &Arc<Self>, name: &str, to: Option<u64>) -> FinishAlways<Result<u64, DeployError>> {
        let (this, name) = (Arc::clone(self), name.to_owned());
        self.tasks.finish_always("rollback", async move { this.rollback_now(&name, to).await })
    }

    async fn rollback_now(&self, name: &str, to: Option<u64>) -> Result<u64, DeployError> {
        self.check(name)?;
        let _turn = self.builds.turn(name).await;
        let mut versions = self.deployed_versions(name)?;
        let (found, wanted) = match to {
            Some(number) => (versions.numbered(number), format!("version {number}")),
            None => (versions.previous(), "earlier version".to_owned()),
        };
        let version = found.cloned().ok_or_else(|| DeployError::NoVersion(name.to_owned(), wanted))?;
        if version.version != versions.serving || !self.is_served(name) {
            let built = self.builds.open_version(name, &version).await?;
            let new = self.deploy(&built.function);
            if let Err(reason) = self.try_start(&new).await {
                self.retire(Some(Deployed::Serving(new)));
                return Err(DeployError::Start(reason));
            }
            versions.serving = version.version;
            self.keep(name, &versions, &new).await?;
            tracing::info!(function = %name, version = version.version, "rolled back");
        }
        Ok(version.version)
    }

    /// Takes a deployed function away, with all its versions. If the functions folder has one of that name,
    /// it serves now. Runs to its end also when the future is dropped.
    pub fn remove(self: &Arc<Self>, name: &str) -> FinishAlways<Result<(), DeployError>> {
        let (this, name) = (Arc::clone(self), name.to_owned());
        self.tasks.finish_always("remove", async move { this.remove_now(&name).await })
    }

    async fn remove_now(self: &Arc<Self>, name: &str) -> Result<(), DeployError> {
        self.check(name)?;
        let _turn = self.builds.turn(name).await;
        self.deployed_versions(name)?;
        let (shelf, owned) = (self.builds.deployed().clone(), name.to_owned());
        on_disk(name, move || shelf.remove(&owned)).await?;
        let old = {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.remove(name).map(|known| known.deployed)
        };
        tracing::info!(function = %name, "removed");
        let folder = self.options.functions.join(name);
        if folder.join(function::MANIFEST).is_file() {
            self.replace(function::read_entry(&folder, name, &self.runtimes)).await;
        }
        self.retire(old);
        self.builds.collect().await;
        Ok(())
    }

    /// All functions, in order of name.
    pub fn functions(&self) -> Vec<About> {
        let mut names: Vec<_> = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            known.keys().cloned().collect()
        };
        names.sort();
        names.iter().filter_map(|name| self.about(name)).collect()
    }

    /// One function.
    pub fn about(&self, name: &str) -> Option<About> {
        let (name, deployed, origin, build) = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let (name, known) = known.get_key_value(name)?;
            let build = known.pending.as_ref().map(|build| build.id.clone());
            (Arc::clone(name), known.deployed.clone(), known.origin, build)
        };
        let kept = match origin {
            Origin::Deployed => self.builds.deployed().read(&name).ok().flatten().unwrap_or_default(),
            Origin::Folder => Versions::default(),
        };
        let version = kept.current().map(|version| version.version);
        let mut about = About {
            name,
            origin,
            state: "broken",
            error: None,
            runtime: None,
            instances: 0,
            waiting: 0,
            build,
            version,
            versions: kept.versions,
        };
        match deployed {
            Deployed::Broken(error) => about.error = Some(error.to_string()),
            Deployed::Serving(deployment) => {
                about.error = deployment.failure().map(|error| error.to_string());
                about.state = match (deployment.is_building(), &about.error) {
                    (false, _) => "serving",
                    (true, None) => "building",
                    (true, Some(_)) => "broken",
                };
                about.runtime = Some(deployment.function.runtime.to_string());
                (about.instances, about.waiting) = self.counts(&deployment);
            }
        }
        Some(about)
    }

    fn origin(&self, name: &str) -> Option<Origin> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(name).map(|known| known.origin)
    }

    /// Whether a deployed version serves; it does not if its artifact was lost.
    fn is_served(&self, name: &str) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known
            .get(name)
            .is_some_and(|k| k.origin == Origin::Deployed && matches!(k.deployed, Deployed::Serving(_)))
    }

    fn kept(&self, name: &str) -> Result<Option<Versions>, BuildError> {
        self.builds.deployed().read(name).map_err(|source| {
            let doing = format!("cannot read the versions of {name}");
            BuildError::Io { doing, source }
        })
    }

    fn deployed_versions(&self, name: &str) -> Result<Versions, DeployError> {
        match self.kept(name)? {
            Some(versions) => Ok(versions),
            None if self.find(name).is_some() => Err(DeployError::InFolder(name.to_owned())),
            None => Err(DeployError::Unknown(name.to_owned())),
        }
    }

    /// A new version with a ready instance.
    async fn started(&self, build: &Build, built: &Built) -> Result<Arc<Deployment>, DeployError> {
        let new = self.deploy(&built.function);
        let started = tokio::select! {
            started = self.try_start(&new) => started.map_err(DeployError::Start),
            () = build.cancelled() => Err(BuildError::Cancelled.into()),
        };
        match started {
            Ok(()) => Ok(new),
            Err(error) => {
                self.retire(Some(Deployed::Serving(new)));
                Err(error)
            }
        }
    }

    /// First on disk, then for callers.
    async fn keep(&self, name: &str, versions: &Versions, new: &Arc<Deployment>) -> Result<(), DeployError> {
        let (shelf, owned, versions) = (self.builds.deployed().clone(), name.to_owned(), versions.clone());
        if let Err(error) = on_disk(name, move || shelf.write(&owned, &versions)).await {
            self.retire(Some(Deployed::Serving(Arc::clone(new))));
            return Err(error);
        }
        if self.origin(name) == Some(Origin::Folder) {
            tracing::warn!(function = %name, "is in the functions folder, too; the deployed one serves from now on");
        }
        self.serve_deployed(new);
        Ok(())
    }

    /// Better than to let callers believe that it does not exist, or to serve one of the folder in its place.
    fn serve_broken(&self, name: &Arc<str>, error: &BuildError) {
        let error = ManifestError { file: function::MANIFEST.into(), line: None, message: error.to_string() };
        let deployed = Deployed::Broken(Arc::new(error));
        let old = self.put(name, Known { deployed, fingerprint: 0, origin: Origin::Deployed, pending: None });
        self.retire(old);
    }

    fn serve_deployed(&self, new: &Arc<Deployment>) {
        let deployed = Deployed::Serving(Arc::clone(new));
        let known = Known { deployed, fingerprint: 0, origin: Origin::Deployed, pending: None };
        let old = self.put(&new.function.name, known);
        self.retire(old);
    }
}

fn failed(error: &DeployError) -> End {
    End::Failed { kind: error.kind(), message: error.to_string() }
}

async fn on_disk(
    name: &str,
    work: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> Result<(), DeployError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(std::io::Error::other).flatten().map_err(|source| {
        BuildError::Io { doing: format!("cannot keep the versions of {name}"), source }.into()
    })
}
