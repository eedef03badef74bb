//! A conformance function that is being served, in any way, and what the test gives it to talk to.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};

use super::{NATIVE, Way};
use crate::common::{Home, Outgoing, Reply, Server, eventually};
use crate::docker_common::{Host, docker, output, repository};

/// The function below its own name, where many are served.
pub const NAME: &str = "conformance";

/// A language: `runtimes/<name>` with a conformance function.
#[derive(Debug, Clone)]
pub struct Language {
    pub name: String,
    pub folder: PathBuf,
    pub entrypoint: String,
}

impl Language {
    /// Every one there is.
    pub fn all() -> Vec<Self> {
        let folders = std::fs::read_dir(repository().join("runtimes")).unwrap();
        let folders = folders.map(|item| item.unwrap().path()).filter(|folder| folder.join(NAME).is_dir());
        let mut all: Vec<_> = folders.map(|folder| Self::read(&folder)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(all.len() >= 2, "only {all:?}");
        all
    }

    /// The runtime of that name, with or without a conformance function.
    pub fn named(name: &str) -> Self {
        Self::read(&repository().join("runtimes").join(name))
    }

    fn read(folder: &Path) -> Self {
        let manifest: toml::Table =
            std::fs::read_to_string(folder.join("runtime.toml")).unwrap().parse().unwrap();
        Self {
            name: folder.file_name().unwrap().to_str().unwrap().to_owned(),
            folder: folder.to_owned(),
            entrypoint: manifest["entrypoint"].as_str().unwrap().to_owned(),
        }
    }

    /// Copies the function to `target`, which is made.
    pub fn copy_to(&self, target: &Path) {
        std::fs::create_dir_all(target).unwrap();
        output(Command::new("cp").arg("-r").arg(self.folder.join(NAME).join(".")).arg(target));
    }

    /// Breaks the entrypoint in `folder`: `syntax`, `signature` or `load`; none: as it should be.
    pub fn rewrite(&self, folder: &Path, how: Option<&str>) {
        let whole = self.folder.join(NAME);
        let source = how.map_or_else(|| whole.join(&self.entrypoint), |how| whole.join("broken").join(how));
        std::fs::write(folder.join(&self.entrypoint), std::fs::read(source).unwrap()).unwrap();
    }
}

enum Served {
    Alone { server: Server, _container: Option<Container> },
    Among(Server),
    AmongInDocker(Host),
}

/// A served function. What is dropped first is what serves it, last its folder.
pub struct Running {
    served: Served,
    home: Home,
    language: Language,
    way: Way,
}

/// A container's name; it is removed whatever happens.
pub struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "--force", "--volumes", &self.0]).output();
    }
}

const SECRET: &str = "the shared secret";

impl Running {
    /// Serves the function in any way, with what the table needs.
    pub fn start(language: &Language, way: Way) -> Self {
        let home = Home::new();
        match way {
            Way::Run | Way::Image => {
                let enforced =
                    r#"{"x-custom":"custom","X-Custom-Uppercase":"UPPER","x-open-runtimes-custom":248}"#;
                let env = [
                    ("OPEN_RUNTIMES_SECRET", SECRET),
                    ("OPEN_RUNTIMES_HEADERS", enforced),
                    ("CUSTOM_ENV_VAR", "customValue"),
                ];
                Self::alone(language, way, &env)
            }
            Way::HostProcess | Way::HostDocker => {
                language.copy_to(&home.functions().join(NAME));
                let manifest = format!(
                    "runtime = \"{}\"\ntimeout = \"60s\"\nmemory = \"1GiB\"\n[env]\nCUSTOM_ENV_VAR = \"customValue\"\n",
                    language.name
                );
                home.write(NAME, "function.toml", &manifest);
                if way == Way::HostProcess {
                    let served = Served::Among(home.start(&[]));
                    return Self { served, home, language: language.clone(), way };
                }
                // The host takes its own folder; what is left here is only needed for paths.
                let served = Served::AmongInDocker(Host::start(home, &["--start-timeout", "60s"]));
                Self { served, home: Home::new(), language: language.clone(), way }
            }
        }
    }

    /// Serves the function alone, on this host or in its image, with these variables.
    pub fn alone(language: &Language, way: Way, env: &[(&str, &str)]) -> Self {
        Self::alone_with(language, way, env, &[])
    }

    fn alone_with(language: &Language, way: Way, env: &[(&str, &str)], marks: &[&str]) -> Self {
        let home = Home::new();
        language.copy_to(&home.path().join("code"));
        for mark in marks {
            std::fs::write(home.path().join("code").join(mark), "").unwrap();
        }
        for folder in ["logs", "telemetry"] {
            std::fs::create_dir(home.path().join(folder)).unwrap();
        }
        let (mut server, container) = match way {
            Way::Run => (run_here(&home, language, env), None),
            _ => {
                let (server, container) = run_in_docker(&home, language, env);
                (server, Some(container))
            }
        };
        let secret = env.iter().find(|(name, value)| *name == "OPEN_RUNTIMES_SECRET" && !value.is_empty());
        server.secret = secret.map(|(_, value)| (*value).to_owned());
        let served = Served::Alone { server, _container: container };
        Self { served, home, language: language.clone(), way }
    }

    /// Serves the function in its image from a folder that was unpacked by its host.
    pub fn unpacked(language: &Language, env: &[(&str, &str)]) -> Self {
        Self::alone_with(language, Way::Image, env, &[".extracted"])
    }

    /// Builds the function and starts what was built, both with the command lines of hosts of Open Runtimes. `copy` is
    /// how the start brings the archive in. Their shell is bash, which becomes its last command, so that signals arrive.
    pub fn as_hosts_do(language: &Language, build: &str, copy: &str, env: &[(&str, &str)]) -> Self {
        let home = Home::new();
        for folder in ["code", "logs", "telemetry", "built"] {
            std::fs::create_dir(home.path().join(folder)).unwrap();
        }
        let source = home.path().join("source.tar.gz");
        output(
            Command::new("tar").arg("-czf").arg(&source).arg("-C").arg(language.folder.join(NAME)).arg("."),
        );
        let line = format!("tar -zxf /tmp/code.tar.gz -C /mnt/code && helpers/build.sh '{build}'");
        let built = home.path().join("built");
        let mounts = [(source.as_path(), "/tmp/code.tar.gz"), (built.as_path(), "/mnt/code")];
        let (mut command, container) = in_docker(language, &mounts, env);
        let said = output(command.args([&image(language), "bash", "-c", &line]));
        assert!(said.ends_with("Build finished."), "{said}");
        drop(container);

        let archive = built.join("code.tar.gz");
        let line = format!("{copy} && nohup helpers/start.sh \"bash helpers/server.sh\"");
        let (mut server, container) =
            serve_in_docker(&home, language, &[(&archive, "/tmp/code.tar.gz")], env, &["bash", "-c", &line]);
        server.secret = Some("open_runtime_secret".into());
        let served = Served::Alone { server, _container: Some(container) };
        Self { served, home, language: language.clone(), way: Way::Image }
    }

    pub fn server(&mut self) -> &mut Server {
        match &mut self.served {
            Served::Alone { server, .. } | Served::Among(server) => server,
            Served::AmongInDocker(host) => host,
        }
    }

    pub fn subject(&self) -> Subject<'_> {
        let server = match &self.served {
            Served::Alone { server, .. } | Served::Among(server) => server,
            Served::AmongInDocker(host) => host,
        };
        Subject { running: self, server, neighbour: Neighbour::new(self.way) }
    }
}

fn run_here(home: &Home, language: &Language, env: &[(&str, &str)]) -> Server {
    let mut command = home.command();
    command.arg("run").arg(home.path().join("code")).args(["--runtime", &language.name, "--port", "0"]);
    command.arg("--logs").arg(home.path().join("logs"));
    command.arg("--telemetry").arg(home.path().join("telemetry"));
    command.envs(env.iter().copied());
    home.spawn(command)
}

/// With the image's default command and the code as it is; what hosts of Open Runtimes do is in `tests/images.rs`.
fn run_in_docker(home: &Home, language: &Language, env: &[(&str, &str)]) -> (Server, Container) {
    serve_in_docker(home, language, &[(&home.path().join("code"), "/mnt/code")], env, &[])
}

fn serve_in_docker(
    home: &Home,
    language: &Language,
    mounts: &[(&Path, &str)],
    env: &[(&str, &str)],
    line: &[&str],
) -> (Server, Container) {
    let (logs, telemetry) = (home.path().join("logs"), home.path().join("telemetry"));
    let usual: [(&Path, &str); 2] = [(&logs, "/mnt/logs"), (&telemetry, "/mnt/telemetry")];
    let (mut command, container) = in_docker(language, &[mounts, &usual].concat(), env);
    command.arg(image(language)).args(line);
    let mut server = home.spawn(command);
    server.url = format!("http://{}", docker(&["port", &container.0, "3000"]));
    (server, container)
}

/// `docker run` up to the image's name.
fn in_docker(language: &Language, mounts: &[(&Path, &str)], env: &[(&str, &str)]) -> (Command, Container) {
    let name = format!("executor-conformance-{}-{}", language.name, uuid::Uuid::new_v4().simple());
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "--name", &name, "--publish", "127.0.0.1::3000"]);
    command.args(["--env", "EXECUTOR_LOG_FORMAT=json"]);
    for (name, value) in env {
        command.args(["--env", &format!("{name}={value}")]);
    }
    for (here, there) in mounts {
        command.args(["--volume", &format!("{}:{there}", here.display())]);
    }
    (command, Container(name))
}

/// The image of a language, built by this very binary.
pub fn image(language: &Language) -> String {
    static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let tag = format!("executor-conformance/{}:v5", language.name);
    let mut built = BUILT.lock().unwrap();
    if !built.contains(&tag) {
        let home = Home::new();
        output(home.command().args(["image", &language.name, "--tag", &tag]));
        // The one of an earlier binary.
        docker(&["image", "prune", "--force", "--filter", "label=executor.image"]);
        built.push(tag.clone());
    }
    tag
}

/// What the rows and the functions in `own` are about.
pub struct Subject<'a> {
    running: &'a Running,
    pub server: &'a Server,
    pub neighbour: Neighbour,
}

impl Subject<'_> {
    pub fn keeps_contract(&self) -> bool {
        super::CONTRACT.contains(&self.running.way)
    }

    pub fn language(&self) -> &Language {
        &self.running.language
    }

    pub fn entrypoint(&self) -> &str {
        &self.running.language.entrypoint
    }

    /// The folder with the function.
    pub fn code(&self) -> PathBuf {
        self.running.home.path().join("code")
    }

    pub fn telemetry(&self) -> PathBuf {
        self.running.home.path().join("telemetry")
    }

    /// A request for the function's own path `target`.
    pub fn request(&self, method: &str, target: &str) -> Outgoing<'_> {
        if self.keeps_contract() {
            return self.server.request(method, target);
        }
        self.server.request(method, &format!("/{NAME}{target}"))
    }

    pub fn action(&self, name: &str) -> Outgoing<'_> {
        self.request("POST", "/").header("x-action", name)
    }

    /// Names of all log files.
    pub fn files(&self) -> Vec<String> {
        let Ok(folder) = std::fs::read_dir(self.running.home.path().join("logs")) else { return Vec::new() };
        let mut names: Vec<_> = folder.map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What the files of a log id hold. They must be there when the answer is.
    pub fn files_of(&self, id: &str) -> (String, String) {
        let read = |what: &str| {
            let path = self.running.home.path().join("logs").join(format!("{id}_{what}.log"));
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        (read("logs"), read("errors"))
    }

    /// What the execution behind `reply` wrote, as the log files have it. With `nothing` it is not waited for.
    pub fn written(&self, reply: &Reply, nothing: bool) -> (String, String) {
        if self.keeps_contract() {
            return self.files_of(reply.header("x-open-runtimes-log-id").unwrap());
        }
        let id = reply.header("x-request-id").unwrap();
        let key = format!("Bearer {}", self.server.admin);
        let kept = || {
            self.server.request("GET", &format!("/_/executions/{id}")).header("authorization", &key).send()
        };
        let none = nothing && kept().status == 404;
        let lines = if none { Vec::new() } else { self.server.execution(id) };
        let (mut logs, mut errors) = (String::new(), String::new());
        let mut noticed = false;
        for line in lines {
            let (level, text) = line.split_once(": ").unwrap();
            // That the function printed is told by the level here.
            if level == "native" && !std::mem::replace(&mut noticed, true) {
                logs.push_str(NATIVE);
            }
            let to = if level == "error" { &mut errors } else { &mut logs };
            to.push_str(text);
            to.push('\n');
        }
        (logs, errors)
    }
}

/// An HTTP server of the test's own, for functions to talk to: `/held/…` is answered when the test says so.
pub struct Neighbour {
    address: String,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    held: usize,
    released: bool,
}

impl Neighbour {
    fn new(way: Way) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = match way {
            Way::Run | Way::HostProcess => "127.0.0.1".to_owned(),
            Way::Image | Way::HostDocker => own_address(),
        };
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let shared = Arc::clone(&state);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || answer(&stream, &shared));
            }
        });
        Self { address: format!("http://{host}:{port}"), state }
    }

    /// An address that answers `free` at once.
    pub fn free(&self) -> String {
        format!("{}/free", self.address)
    }

    /// An address that answers after [`Neighbour::release`].
    pub fn held(&self) -> String {
        format!("{}/held", self.address)
    }

    /// Waits until so many ask for [`Neighbour::held`].
    pub fn until_held(&self, n: usize) {
        eventually("the function asks its neighbour", || {
            (self.state.0.lock().unwrap().held >= n).then_some(())
        });
    }

    pub fn release(&self) {
        self.state.0.lock().unwrap().released = true;
        self.state.1.notify_all();
    }
}

/// An address of this host that containers can reach: that of the way out. Nothing is sent.
fn own_address() -> String {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect("198.51.100.1:9").expect("a route out, as containers have");
    socket.local_addr().unwrap().ip().to_string()
}

fn answer(mut stream: &TcpStream, shared: &(Mutex<State>, Condvar)) {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    let _ = reader.read_line(&mut first);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        line.clear();
    }
    if first.contains("/held") {
        let mut state = shared.0.lock().unwrap();
        state.held += 1;
        let _released = shared.1.wait_while(state, |state| !state.released).unwrap();
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfree");
}
