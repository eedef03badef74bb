//! `executor doctor`: what is usable here, and what to do about what is missing. Changes nothing.

use std::net::{IpAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::list::Scratch;
use crate::adapter::docker::{DockerAdapter, DockerOptions, ImageState, Network};
use crate::adapter::process::ProcessAdapter;
use crate::runtime::Runtimes;

/// Where base images come from when they are not on this machine.
const REGISTRY: &str = "registry-1.docker.io:443";
const REGISTRY_LIMIT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Data folder to check
    #[arg(long, env = "EXECUTOR_DATA", default_value = "./data", value_name = "FOLDER")]
    data: PathBuf,
    /// Port to check
    #[arg(long, env = "EXECUTOR_PORT", default_value_t = 8080, value_name = "PORT")]
    port: u16,
    /// Address to check
    #[arg(long, env = "EXECUTOR_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: IpAddr,
}

fn say(good: bool, what: &str, text: &str) {
    println!("{} {what:16} {text}", if good { "ok     " } else { "missing" });
}

pub(super) fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let scratch = Scratch::new()?;
    let runtimes = Runtimes::open(None, scratch.path())?;
    let (docker, process) = super::block_on(async { Ok(adapters(args, &runtimes, &scratch).await) })?;
    let data = check_data(&args.data);
    let port = check_port(args.host, args.port);
    let usable = (docker || process) && data && port;
    println!();
    match (usable, docker, process) {
        (true, true, _) => println!("`executor` can run here, with containers."),
        (true, false, _) => println!("`executor` can run here, with processes."),
        (false, false, false) => println!("Nothing can run functions here: see what is missing above."),
        (false, ..) => println!("`executor` cannot run here as it is: see what is missing above."),
    }
    Ok(if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether containers, and whether at least one language as a process, can run.
async fn adapters(args: &DoctorArgs, runtimes: &Runtimes, scratch: &Scratch) -> (bool, bool) {
    let mut docker_runs = false;
    let options = DockerOptions {
        data: args.data.clone(),
        host: crate::config::docker_host(),
        network: Network::default(),
        user: None,
        registry: None,
    };
    match DockerAdapter::connect(options).await {
        Err(error) => say(false, "docker", &error.to_string()),
        Ok(docker) => {
            say(true, "docker", "its daemon answers");
            docker_runs = true;
            for runtime in runtimes.with_workers() {
                let (possible, text) = match docker.can_build(runtime).await {
                    Ok(state) => (state != ImageState::NoBase, state.to_string()),
                    Err(error) => (false, error.to_string()),
                };
                docker_runs &= possible;
                say(possible, &format!("image {}", runtime.name), &text);
            }
            check_registry(docker_runs);
        }
    }
    let process = ProcessAdapter::new(scratch.path().join("run"), crate::config::search_path());
    let mut process_runs = false;
    for runtime in runtimes.with_workers() {
        match process.locate(runtime, None).await {
            Ok((path, version)) => {
                process_runs = true;
                say(true, &runtime.name, &format!("version {version} at {}", path.display()));
            }
            Err(error) => say(false, &runtime.name, &error.to_string()),
        }
    }
    (docker_runs, process_runs)
}

fn check_registry(needless: bool) {
    let reachable = REGISTRY.to_socket_addrs().is_ok_and(|mut addresses| {
        addresses.any(|address| std::net::TcpStream::connect_timeout(&address, REGISTRY_LIMIT).is_ok())
    });
    let text = match (reachable, needless) {
        (true, _) => "the image registry can be reached",
        (false, true) => "the image registry cannot be reached; not needed, the base image is here",
        (false, false) => {
            "the image registry cannot be reached; make the base image with docker/base-image.sh"
        }
    };
    say(reachable || needless, "image registry", text);
}

fn check_data(data: &std::path::Path) -> bool {
    let probe = || -> std::io::Result<()> {
        let existing = data.ancestors().find(|folder| folder.is_dir()).unwrap_or(data);
        let existing = if existing.as_os_str().is_empty() { std::path::Path::new(".") } else { existing };
        let file = existing.join(format!(".executor-{}", uuid::Uuid::new_v4().simple()));
        std::fs::write(&file, b"")?;
        std::fs::remove_file(&file)
    };
    match probe() {
        Ok(()) => {
            say(true, "data folder", &format!("{} can be written", data.display()));
            true
        }
        Err(error) => {
            say(false, "data folder", &format!("{}: {error}; choose another with --data", data.display()));
            false
        }
    }
}

fn check_port(host: IpAddr, port: u16) -> bool {
    match TcpListener::bind((host, port)) {
        Ok(_) => {
            say(true, "port", &format!("{port} is free on {host}"));
            true
        }
        Err(error) => {
            say(false, "port", &format!("{port} on {host}: {error}; choose another with --port"));
            false
        }
    }
}
