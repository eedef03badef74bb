//! What the tests with Docker share: an executor whose instances are containers, and the `docker` command.
//!
//! A test with Docker fails where there is none; `cargo test -- --skip docker_` leaves them out. Whatever happens, the
//! containers of a test are gone at its end: each has a data folder of its own, which is its mark of ownership.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::common::{Home, Reply, Server, eventually_within};

/// Long enough for building the images of the runtimes, with their downloads.
pub const BUILD: Duration = Duration::from_mins(15);

/// The label whose value is the data folder.
const OWNER: &str = "executor.owner";

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `docker` and gives what it prints; fails with what it says.
pub fn docker(arguments: &[&str]) -> String {
    output(Command::new("docker").args(arguments))
}

/// Runs a command that must succeed and gives its standard output.
pub fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.trim().to_owned()
}

/// Names of the containers whose data folder is `data`, ended ones included.
pub fn containers_of(data: &Path) -> Vec<String> {
    let label = format!("label={OWNER}={}", data.display());
    let names = docker(&["ps", "--all", "--filter", &label, "--format", "{{.Names}}"]);
    names.lines().map(str::to_owned).collect()
}

/// Removes the containers whose data folder is `data`. Says nothing: it also clears up after failures.
pub fn remove_containers_of(data: &Path) {
    let script =
        format!("docker ps -aq --filter 'label={OWNER}={}' | xargs -r docker rm -fv", data.display());
    let _ = Command::new("sh").args(["-c", &script]).output();
}

/// An executor with `--adapter docker`. Dropping it kills it and removes its containers.
pub struct Host {
    server: Server,
    home: Home,
    flags: Vec<String>,
}

impl Host {
    /// Serves the functions in `home`, with the images of the runtimes at hand.
    pub fn start(home: Home, flags: &[&str]) -> Self {
        build_images();
        Self::start_as_it_is(home, flags)
    }

    /// Serves the functions of the repository.
    pub fn examples(flags: &[&str]) -> Self {
        build_images();
        Self::start_examples(flags)
    }

    fn start_examples(flags: &[&str]) -> Self {
        let functions = repository().join("functions");
        Self::start_as_it_is(Home::new(), &[&["--functions", functions.to_str().unwrap()], flags].concat())
    }

    fn start_as_it_is(home: Home, flags: &[&str]) -> Self {
        let adapter: &[&str] = if flags.contains(&"--adapter") { &[] } else { &["--adapter", "docker"] };
        let flags = [adapter, flags].concat();
        let server = home.start(&flags);
        Self { server, home, flags: flags.into_iter().map(str::to_owned).collect() }
    }

    /// Once more, with the same data folder.
    pub fn start_again(&mut self) {
        let flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        self.server = self.home.start(&flags);
    }

    pub fn data(&self) -> std::path::PathBuf {
        self.home.data()
    }

    pub fn containers(&self) -> Vec<String> {
        containers_of(&self.home.data())
    }

    /// Folders of instances below the data folder.
    pub fn folders_of_instances(&self) -> Vec<String> {
        let folders = std::fs::read_dir(self.home.data().join("run")).unwrap();
        folders.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// Calls until the image of the runtime is built, and gives the first answer.
    pub fn first(&self, target: &str) -> Reply {
        eventually_within(BUILD, "building the image", || {
            Some(self.get(target)).filter(|reply| reply.status != 504)
        })
    }
}

impl Deref for Host {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Host {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.server.child.kill();
        let _ = self.server.child.wait();
        remove_containers_of(&self.home.data());
    }
}

/// Has the images of the examples' runtimes built once, so that tests that run at the same time do not all do it, and
/// that no test's own limits include minutes of downloads.
fn build_images() {
    static BUILT: Mutex<bool> = Mutex::new(false);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !*built {
        let host = Host::start_examples(&[]);
        for target in ["/hello", "/hello-python"] {
            let reply = host.first(target);
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
        *built = true;
    }
}
