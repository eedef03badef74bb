//! The harness of the tests of `/v1`: the real binary with the Docker adapter, on a port and with a host name of its own.
//!
//! Every [`Api`] has its own temporary folder and its own `OPR_EXECUTOR_HOSTNAME`, which is the first part of the names
//! of all its containers; so runtime ids need to be unique only within one test. When an [`Api`] is dropped and the test
//! has not failed, the executor is asked to end and must leave nothing: no container of that name, no temporary folder.
//! After a failure the containers are removed all the same.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a harness that fails is a failed test"
)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Home, Outgoing, Reply, Server, eventually, eventually_within};
use crate::images;

/// The operator's key in all tests.
pub const KEY: &str = "executor-secret-key";
/// What errors say is the version.
pub const VERSION: &str = "0.27.0";
/// One network for all tests: Docker has few.
pub const NETWORK: &str = "executor-v1-tests";
/// For tests of networks.
pub const OTHER_NETWORK: &str = "executor-v1-tests-2";
/// The bytes of R-3.
pub const MAX_REQUEST: usize = 23_068_672;
/// The boundary of [`multipart`].
pub const BOUNDARY: &str = "----executor-test-boundary";

/// An executor and its API. Dropping it asserts that it leaves nothing.
pub struct Api {
    server: Option<Server>,
    /// Its folder; sources go here.
    pub home: Home,
    /// First part of the names of its containers.
    pub host: String,
    environment: Vec<(String, String)>,
    /// Where temporary folders of runtimes are.
    pub temporary: PathBuf,
}

impl Api {
    /// In development mode, with all versions.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With more or other variables. An empty value wins, too, and means unset to the executor.
    pub fn with(variables: &[(&str, &str)]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        static MADE: Once = Once::new();
        MADE.call_once(|| images::networks(&[NETWORK, OTHER_NETWORK, "openruntimes-runtimes"]));
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let host = format!("v1t{}x{number}", std::process::id());
        let home = Home::new();
        let temporary = home.path().join("tmp");
        let temporary_text = temporary.to_str().unwrap().to_owned();
        let mut environment: Vec<(String, String)> = Vec::new();
        for (name, value) in [
            ("OPR_EXECUTOR_ENV", "development"),
            ("OPR_EXECUTOR_SECRET", KEY),
            ("OPR_EXECUTOR_VERSION", VERSION),
            ("OPR_EXECUTOR_NETWORK", NETWORK),
            ("OPR_EXECUTOR_RUNTIME_VERSIONS", "v2,v3,v4,v5"),
            ("OPR_EXECUTOR_HOSTNAME", &host),
            ("OPR_EXECUTOR_TEMPORARY", &temporary_text),
        ]
        .iter()
        .chain(variables)
        {
            environment.retain(|(there, _)| there != name);
            environment.push(((*name).to_owned(), (*value).to_owned()));
        }
        let temporary = environment
            .iter()
            .find(|(name, value)| name == "OPR_EXECUTOR_TEMPORARY" && !value.is_empty())
            .map_or_else(|| home.data().join("guests"), |(_, value)| PathBuf::from(value));
        let mut api = Self { server: None, home, host, environment, temporary };
        api.start_again();
        api
    }

    /// The command that would run the executor, to be changed.
    pub fn command_line(&self) -> Command {
        let mut command = self.home.command();
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OPR_EXECUTOR_")) {
            command.env_remove(name);
        }
        command.args(["--port", "0", "--adapter", "docker"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it once more on the same folders, after [`Api::stop`] or [`Api::kill`].
    pub fn start_again(&mut self) {
        self.server = Some(self.home.spawn(self.command_line()));
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("it was not stopped")
    }

    pub fn server_mut(&mut self) -> &mut Server {
        self.server.as_mut().expect("it was not stopped")
    }

    /// SIGTERM, and waits for its end, which must be a good one.
    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("it was not stopped");
        assert_eq!(server.stop(), 0, "{}", server.log());
    }

    /// SIGKILL; containers and folders stay.
    pub fn kill(&mut self) {
        self.server.take().expect("it was not stopped").kill();
    }

    /// The name of the container of a runtime.
    pub fn name(&self, id: &str) -> String {
        format!("{}-{id}", self.host)
    }

    /// The temporary folder of a runtime.
    pub fn folder(&self, id: &str) -> PathBuf {
        self.temporary.join(self.name(id))
    }

    /// A request with the key.
    pub fn request(&self, method: &str, target: &str) -> Outgoing<'_> {
        self.anonymous(method, target).header("authorization", &format!("Bearer {KEY}"))
    }

    /// A request without the key.
    pub fn anonymous(&self, method: &str, target: &str) -> Outgoing<'_> {
        self.server().request(method, target).without_secret()
    }

    /// GET with the key and without a body.
    #[track_caller]
    pub fn get(&self, target: &str) -> Reply {
        self.request("GET", target).send()
    }

    /// A request with a JSON body.
    #[track_caller]
    pub fn json(&self, method: &str, target: &str, body: &Value) -> Reply {
        self.raw_json(method, target, body.to_string())
    }

    /// A request with a body that claims to be JSON.
    #[track_caller]
    pub fn raw_json(&self, method: &str, target: &str, body: impl Into<Vec<u8>>) -> Reply {
        self.request(method, target).header("content-type", "application/json").body(body).send()
    }

    /// A POST with fields in a multipart body.
    #[track_caller]
    pub fn multipart(&self, target: &str, headers: &[(&str, &str)], fields: &[(&str, &[u8])]) -> Reply {
        let mut request = self
            .request("POST", target)
            .header("content-type", &format!("multipart/form-data; boundary={BOUNDARY}"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.body(multipart(fields)).send()
    }

    /// `POST /v1/runtimes` with the image of `guest` unless `parameters` name another.
    #[track_caller]
    pub fn create(&self, id: &str, parameters: Value) -> Reply {
        self.json("POST", "/v1/runtimes", &order(id, parameters))
    }

    /// The same, and it must be created.
    #[track_caller]
    pub fn created(&self, id: &str, parameters: Value) -> Value {
        let reply = self.create(id, parameters);
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()
    }

    /// Creates a runtime that runs `guest KIND`: a server for the version of that name, else for v5.
    #[track_caller]
    pub fn guest(&self, id: &str, kind: &str) -> Value {
        let version = if ["v2", "v3", "v4"].contains(&kind) { kind } else { "v5" };
        self.created(id, json!({ "runtimeEntrypoint": format!("guest {kind}"), "version": version }))
    }

    /// `POST …/executions` with a JSON body, asking for JSON.
    #[track_caller]
    pub fn execute(&self, id: &str, parameters: &Value) -> Reply {
        self.request("POST", &format!("/v1/runtimes/{id}/executions"))
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(parameters.to_string())
            .send()
    }

    /// The same for a path; it must be answered with 200. Gives the document of R-110.
    #[track_caller]
    pub fn executed(&self, id: &str, path: &str) -> Value {
        let reply = self.execute(id, &json!({ "path": path }));
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// `POST …/commands`
    #[track_caller]
    pub fn command(&self, id: &str, parameters: &Value) -> Reply {
        self.json("POST", &format!("/v1/runtimes/{id}/commands"), parameters)
    }

    /// What a command prints; it must succeed.
    #[track_caller]
    pub fn printed(&self, id: &str, command: &str) -> String {
        let reply = self.command(id, &json!({ "command": command }));
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["output"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn delete(&self, id: &str) -> Reply {
        self.request("DELETE", &format!("/v1/runtimes/{id}")).send()
    }

    /// `GET /v1/runtimes/{id}`, if it is there.
    #[track_caller]
    pub fn info(&self, id: &str) -> Option<Value> {
        let reply = self.get(&format!("/v1/runtimes/{id}"));
        assert!([200, 404].contains(&reply.status), "{}", reply.text());
        (reply.status == 200).then(|| reply.json())
    }

    /// `GET /v1/runtimes`
    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        let reply = self.get("/v1/runtimes");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json().as_array().unwrap().clone()
    }

    /// Waits until the runtime is in the list and pending.
    pub fn wait_pending(&self, id: &str) {
        eventually(&format!("{id} is pending"), || self.info(id).filter(|info| info["status"] == "pending"));
    }

    /// A file of the test with these bytes; its absolute path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.home.file(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A source archive with these files; its absolute path.
    pub fn source(&self, name: &str, files: &[(&str, &str)]) -> String {
        self.file(name, archive(files))
    }

    /// Names of this executor's containers, ended ones included.
    pub fn containers(&self) -> Vec<String> {
        containers(&self.host)
    }

    /// Names of temporary folders of runtimes.
    pub fn folders(&self) -> Vec<String> {
        let Ok(items) = std::fs::read_dir(&self.temporary) else { return Vec::new() };
        items.map(|item| item.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// Command lines of the processes in the container of a runtime; empty when it does not run.
    pub fn processes(&self, id: &str) -> Vec<String> {
        let output = Command::new("docker").args(["top", &self.name(id), "-o", "pid,args"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().skip(1).filter_map(|line| line.trim().split_once(' '));
        lines.map(|(_, line)| line.trim().to_owned()).collect()
    }

    /// Waits until no process in the container has `mark` in its command line.
    pub fn wait_no_process(&self, id: &str, mark: &str) {
        let there = || self.processes(id).into_iter().filter(|line| line.contains(mark)).collect::<Vec<_>>();
        eventually(&format!("no process with {mark} in {id}"), || there().is_empty().then_some(()));
    }

    /// Asserts that it runs nothing and holds nothing, while it goes on running. Waits a little: some work, such as the
    /// end of a removal, is done behind the answer's back.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let limit = Duration::from_secs(20);
        let mut last = String::new();
        eventually_within(limit, &format!("nothing of {} is left", self.host), || {
            last = format!("containers {:?}, folders {:?}", self.containers(), self.folders());
            (self.containers().is_empty() && self.folders().is_empty()).then_some(())
        });
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.server = None;
            remove_containers(&self.host);
            return;
        }
        let code = self.server.as_mut().map(Server::stop);
        let left = (self.containers(), self.folders());
        remove_containers(&self.host);
        assert!(code.is_none_or(|code| code == 0), "it ended with {code:?}");
        assert!(left.0.is_empty() && left.1.is_empty(), "it left behind: {left:?}");
    }
}

/// Names of containers of that host, ended ones included.
pub fn containers(host: &str) -> Vec<String> {
    let filter = format!("name=^{host}-");
    let arguments = ["ps", "--all", "--filter", &filter, "--format", "{{.Names}}"];
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn remove_containers(host: &str) {
    for name in containers(host) {
        let _ = Command::new("docker").args(["rm", "--force", "--volumes", &name]).output();
    }
}

/// Runs `docker` and gives what it prints.
#[track_caller]
pub fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The parameters of a creation: id, image and `more`, which wins.
pub fn order(id: &str, more: Value) -> Value {
    let mut all = json!({ "runtimeId": id, "image": images::guest() });
    for (name, value) in more.as_object().expect("parameters are an object").clone() {
        all[name] = value;
    }
    all
}

/// A multipart body with [`BOUNDARY`].
pub fn multipart(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in fields {
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(value);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

/// A `tar.gz` with these files, runnable.
pub fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(packer);
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

/// What all errors share; gives `status type message`.
#[track_caller]
pub fn problem(reply: &Reply) -> String {
    let text = reply.text();
    assert_eq!(reply.header("content-type"), Some("application/json; charset=UTF-8"), "{text}");
    assert_eq!(reply.header("cache-control"), Some("no-cache, no-store, must-revalidate"), "{text}");
    assert_eq!(reply.header("expires"), Some("0"), "{text}");
    assert_eq!(reply.header("pragma"), Some("no-cache"), "{text}");
    assert_eq!(reply.header("server"), Some("Executor"), "{text}");
    let document = reply.json();
    assert_eq!(document["code"], reply.status, "{text}");
    assert_eq!(document["version"], VERSION, "{text}");
    format!(
        "{} {} {}",
        reply.status,
        document["type"].as_str().unwrap(),
        document["message"].as_str().unwrap()
    )
}
