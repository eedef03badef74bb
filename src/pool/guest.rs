//! From nothing to a listening container of a foreign image.
//!
//! Images of the Open Runtimes contract get the function's folder as an archive, the way their own host gives it; any
//! other image gets only its environment, with `PORT`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::start::{Started, Starter, adapter_failure, failed};
use super::{Channel, StartFailure, StartPart};
use crate::adapter::guest::{Guest, GuestLaunch, Guests, Mount, RestartPolicy};
use crate::adapter::{AdapterError, BoxFuture, Unit};
use crate::archive::{self, Compression, PackOptions};
use crate::function::{Function, ImageSpec, MANIFEST, Profile, ServedBy};
use crate::instance::{Exit, InstanceId, Secret};
use crate::transport::{Alive, LogFolder, Target};

/// What starts an image of the contract when the function does not say.
const START: &str = "helpers/start.sh \"bash helpers/server.sh\"";
/// A moment between two looks for the address.
const PAUSE: Duration = Duration::from_millis(20);

/// A guest as the pool's unit.
struct GuestUnit(Arc<dyn Guest>);

impl Unit for GuestUnit {
    fn ended(&mut self) -> BoxFuture<'_, Exit> {
        self.0.ended()
    }

    fn kill(&mut self) -> BoxFuture<'_, Exit> {
        self.0.kill()
    }
}

/// For the transport: alive as long as its main process has not ended since `ends` was asked for, whether or not it was
/// started again. Does not keep the guest.
pub fn guest_alive(guest: &Arc<dyn Guest>, ends: u64) -> Alive {
    let guest = Arc::downgrade(guest);
    Alive::new(move || guest.upgrade().is_some_and(|guest| guest.ends() == ends))
}

impl Starter {
    fn guests(&self) -> Result<&dyn Guests, StartFailure> {
        self.adapter.guests().ok_or_else(|| {
            let text =
                "image = \"…\" needs containers, and this executor runs processes: use --adapter docker";
            adapter_failure(&AdapterError::Missing(text.into()))
        })
    }

    /// Makes the function's image usable.
    pub(super) async fn prepare_guest(&self, function: &Function) -> Result<(), StartFailure> {
        let ServedBy::Image(image) = &function.served_by else { return Ok(()) };
        self.guests()?.prepare(&image.name).await.map_err(|error| adapter_failure(&error))
    }

    /// Starts a container of a prepared image and waits until it listens. When it fails or is cancelled, what was
    /// started is killed; the instance's folder is the caller's to remove.
    pub(super) async fn start_guest(
        &self,
        id: InstanceId,
        function: &Arc<Function>,
    ) -> Result<Started, StartFailure> {
        let ServedBy::Image(image) = &function.served_by else {
            return Err(failed("it has neither a runtime nor an image".into()));
        };
        let deadline = Instant::now() + self.limit;
        let folder = self.folder(id);
        let (source, secret) = (function.folder.clone(), Secret::generate());
        let (contract, to) = (image.profile != Profile::Port, folder.clone());
        let made = tokio::task::spawn_blocking(move || make_folders(&to, contract.then_some(&*source))).await;
        made.unwrap_or_else(|panic| Err(panic.to_string())).map_err(failed)?;
        let launch = launch(id, function, image, &folder, &secret);
        let guest = self.guests()?.start(&launch).await.map_err(|error| adapter_failure(&error))?;
        let listening = async {
            while Instant::now() < deadline {
                let ends = guest.ends();
                if let Ok(ip) = guest.address().await {
                    let address = SocketAddr::new(ip, image.port);
                    if self.client.listening(address, deadline).await {
                        return Some((address, ends));
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
            None
        };
        let outcome = tokio::select! {
            found = listening => found.ok_or_else(|| {
                format!("it runs, but nothing listens on its port {} after {:?}", image.port, self.limit)
            }),
            exit = guest.ended() => Err(format!("it {exit} before it listened on port {}", image.port)),
        };
        let (address, ends) = match outcome {
            Ok(found) => found,
            Err(reason) => {
                let words = guest.kill().await.last_words;
                let words = words.trim();
                let words = if words.is_empty() || reason.contains(words) {
                    String::new()
                } else {
                    format!("; its last words: {words}")
                };
                return Err(StartFailure {
                    part: StartPart::Adapter,
                    message: format!("{reason}{words}"),
                    stack: String::new(),
                });
            }
        };
        let logs = contract.then(|| LogFolder::new(&folder.join("logs")));
        let target =
            Target { address, profile: image.profile, secret, logs, alive: guest_alive(&guest, ends) };
        let channel = Channel::Http(self.client.clone(), target);
        Ok(Started { unit: Box::new(GuestUnit(guest)), channel, link: None })
    }
}

/// What the container sees of this host: for the contract an archive of the code and a folder for logs.
fn make_folders(folder: &Path, source: Option<&Path>) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |error: &dyn std::fmt::Display| format!("cannot make the instance's folder: {error}");
    std::fs::create_dir_all(folder).map_err(|e| failed(&e))?;
    let Some(source) = source else { return Ok(()) };
    for part in ["code", "logs", "telemetry"] {
        let part = folder.join(part);
        std::fs::create_dir(&part).map_err(|e| failed(&e))?;
        // The image's user is not ours.
        std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o777)).map_err(|e| failed(&e))?;
    }
    let archive = folder.join("code/code.tar.gz");
    // Our own images would read the manifest, which is for this executor.
    let exclude = [PackOptions::default().exclude, &[MANIFEST]].concat();
    let options = PackOptions { exclude: &exclude, ..PackOptions::default() };
    archive::pack(source, &archive, Compression::Gzip, &options).map_err(|e| failed(&e))?;
    Ok(())
}

/// Pure.
fn launch(
    id: InstanceId,
    function: &Function,
    image: &ImageSpec,
    folder: &Path,
    secret: &Secret,
) -> GuestLaunch {
    let contract = image.profile != Profile::Port;
    let mount =
        |part: &str, inside: &str| Mount { host: folder.join(part), inside: inside.into(), read_only: false };
    let line = image.command.clone().or_else(|| contract.then(|| START.to_owned()));
    let shell = if contract { "bash" } else { "sh" };
    let mut environment: Vec<_> = function.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut set = |name: &str, value: &str| environment.push((name.to_owned(), value.to_owned()));
    if contract {
        set("OPEN_RUNTIMES_SECRET", secret.expose());
        set("OPEN_RUNTIMES_ENTRYPOINT", &function.entrypoint);
        set("OPEN_RUNTIMES_CPUS", &function.cpus.to_string());
        set("OPEN_RUNTIMES_MEMORY", &(function.memory / 1_000_000).to_string());
    } else {
        set("PORT", &image.port.to_string());
    }
    let id = id.to_string();
    GuestLaunch {
        name: format!("executor-{}-{}", function.name, &id[id.len() - 12..]),
        image: image.name.clone(),
        command: line.map(|line| vec![shell.to_owned(), "-c".to_owned(), line]),
        environment,
        mounts: if contract {
            vec![mount("code", "/mnt/code"), mount("logs", "/mnt/logs"), mount("telemetry", "/mnt/telemetry")]
        } else {
            Vec::new()
        },
        working_directory: None,
        cpus: function.cpus,
        memory: function.memory,
        // The pool starts a new one, and knows when to stop trying.
        restart: RestartPolicy::No,
        networks: Vec::new(),
        label: function.name.to_string(),
        strict: false,
    }
}
