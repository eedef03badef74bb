//! Functions that are foreign images, and sites, among the others of one executor.
//!
//! These tests need Docker and `debian:trixie-slim`, and fail without.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is a failed test")]

mod common;
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]
mod docker_common;
#[path = "v1/images.rs"]
mod images;

use std::collections::BTreeSet;

use common::{Home, Reply, Server, at_once, eventually, eventually_within};
use docker_common::{BUILD, containers_of, docker, output, remove_containers_of};
use serde_json::{Value, json};

/// An HTTP server on `$PORT` that says who it is.
const SERVER: &str = "
import http.server, json, os, socket, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        if self.path == '/die': os._exit(4)
        if self.path.startswith('/sleep'): time.sleep(float(self.path.split('=')[1]))
        body = self.rfile.read(int(self.headers.get('content-length', '0')))
        answer = json.dumps({'host': socket.gethostname(), 'path': self.path, 'method': self.command,
            'body': body.decode(), 'headers': {k.lower(): v for k, v in self.headers.items()},
            'env': dict(os.environ)}).encode()
        self.send_response(203)
        self.send_header('content-length', str(len(answer)))
        self.send_header('x-mine', 'yes')
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(answer)
    do_POST = do_PUT = do_HEAD = do_GET
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(('0.0.0.0', int(os.environ['PORT'])), Handler).serve_forever()
";

const PATIENT: &[&str] = &["--start-timeout", "60s"];

/// An executor with the functions in a home; its containers go with it.
struct Host {
    server: Server,
    home: Home,
}

impl Host {
    fn start(home: Home, flags: &[&str]) -> Self {
        let server = home.start(&[&["--adapter", "docker"], flags].concat());
        Self { server, home }
    }

    fn containers(&self) -> Vec<String> {
        containers_of(&self.home.data())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            remove_containers_of(&self.home.data());
            return;
        }
        assert_eq!(self.server.stop(), 0);
        let left = self.containers();
        remove_containers_of(&self.home.data());
        assert!(left.is_empty(), "it left {left:?}");
    }
}

/// A function from the image of the tests with that server. `more` goes into its manifest.
fn port_function(home: &Home, name: &str, more: &str) {
    // TOML takes the program in a literal string, the shell in single quotes of its own.
    let manifest = format!(
        "image = \"{}\"\ncommand = '''printf '%s' \"$SERVER\" > /tmp/server.py; exec python3 /tmp/server.py'''\n{more}\n\
         [env]\nGREETING = \"hello\"\nSERVER = '''{SERVER}'''\n",
        images::guest()
    );
    home.write(name, "function.toml", &manifest);
}

#[track_caller]
fn told(reply: &Reply) -> Value {
    assert_eq!(reply.status, 203, "{}", reply.text());
    reply.json()
}

#[test]
fn an_image_that_listens_on_a_port() {
    let home = Home::new();
    port_function(&home, "web", "port = 8123");
    let host = Host::start(home, PATIENT);
    let server = &host.server;
    let cold = server.get("/web");
    let first = told(&cold);
    assert_eq!((&first["path"], &first["method"]), (&json!("/"), &json!("GET")));
    assert_eq!((&first["env"]["PORT"], &first["env"]["GREETING"]), (&json!("8123"), &json!("hello")));
    assert_eq!(first["env"]["OPEN_RUNTIMES_SECRET"], Value::Null);
    assert!(!cold.header("server-timing").unwrap().contains("cold;dur=0.000"), "{cold:?}");
    let warm = server.request("POST", "/web/a%20b/c?x=1&y=%2F").header("x-given", "yes").body("body").send();
    assert!(warm.header("server-timing").unwrap().contains("cold;dur=0.000"), "{warm:?}");
    assert_eq!(warm.header("x-mine"), Some("yes"));
    let warm = told(&warm);
    assert_eq!((&warm["path"], &warm["body"]), (&json!("/a%20b/c?x=1&y=%2F"), &json!("body")));
    assert_eq!((&warm["host"], &warm["headers"]["x-given"]), (&first["host"], &json!("yes")));
    for (name, _) in warm["headers"].as_object().unwrap() {
        assert!(!name.starts_with("x-open-runtimes") && name != "authorization", "{name} is ours");
    }
    let head = server.request("HEAD", "/web/x").send();
    assert_eq!((head.status, head.body.len()), (203, 0));
    assert_eq!(server.request("GET", "/web").without_secret().send().status, 401);
    // Large bodies are streamed.
    let large = server.post("/web", "x".repeat(3 << 20));
    assert_eq!(told(&large)["body"].as_str().unwrap().len(), 3 << 20);
    assert_eq!(host.containers().len(), 1);
    assert_eq!(server.starts("web"), 1);
}

#[test]
fn calls_at_once_share_containers_as_the_manifest_says() {
    let home = Home::new();
    port_function(&home, "wide", "concurrency = 8\nmax-instances = 1");
    port_function(&home, "narrow", "concurrency = 1\nmax-instances = 2\ntimeout = \"60s\"");
    let host = Host::start(home, PATIENT);
    told(&host.server.get("/wide"));
    let hosts = |name: &str, n: usize| -> BTreeSet<String> {
        at_once(n, |_| told(&host.server.get(&format!("/{name}/sleep=1")))["host"].to_string())
            .into_iter()
            .collect()
    };
    assert_eq!(hosts("wide", 8).len(), 1);
    assert_eq!(hosts("narrow", 4).len(), 2);
    assert_eq!(host.containers().len(), 3);
}

#[test]
fn a_container_dies_and_the_next_call_works() {
    let home = Home::new();
    port_function(&home, "web", "");
    let host = Host::start(home, PATIENT);
    let first = told(&host.server.get("/web"));
    assert_eq!(first["env"]["PORT"], "3000", "the default");
    // From inside, by a request.
    let died = host.server.get("/web/die");
    assert_eq!(died.problem(), "502 instance-ended function", "{}", died.text());
    let second =
        eventually("a new one", || Some(host.server.get("/web")).filter(|reply| reply.status == 203));
    assert_ne!(told(&second)["host"], first["host"]);
    // From outside.
    docker(&["rm", "--force", &host.containers()[0]]);
    let third = eventually("a new one", || Some(host.server.get("/web")).filter(|reply| reply.status == 203));
    assert_ne!(told(&third)["host"], told(&second)["host"]);
    eventually("one container is left", || (host.containers().len() == 1).then_some(()));
}

#[test]
fn what_cannot_start_says_why() {
    let home = Home::new();
    let image = images::guest();
    home.write(
        "absent",
        "function.toml",
        "image = \"executor-v1-tests/there-is-none:1\"\ntimeout = \"60s\"\n",
    );
    let deaf = format!(
        "image = \"{image}\"\ncommand = \"echo these are my last words; sleep 1000\"\ntimeout = \"60s\"\n"
    );
    home.write("deaf", "function.toml", &deaf);
    let dead =
        format!("image = \"{image}\"\ncommand = \"echo no database >&2; exit 7\"\ntimeout = \"60s\"\n");
    home.write("dead", "function.toml", &dead);
    let shellless = format!("image = \"{}\"\ncommand = \"serve\"\ntimeout = \"60s\"\n", images::shellless());
    home.write("shellless", "function.toml", &shellless);
    port_function(&home, "good", "");
    let host = Host::start(home, &["--start-timeout", "3s"]);
    for (name, words) in [
        ("absent", &["executor-v1-tests/there-is-none:1", "docker pull"][..]),
        ("deaf", &["nothing listens on its port 3000", "these are my last words"]),
        ("dead", &["code 7", "no database"]),
        ("shellless", &["sh"]),
    ] {
        let reply = host.server.get(&format!("/{name}"));
        assert_eq!(reply.status, 503, "{name}: {}", reply.text());
        assert!(reply.problem().starts_with("503 cannot-start "), "{name}: {}", reply.text());
        for word in words {
            assert!(reply.detail().contains(word), "{name}: {word} is not in {}", reply.detail());
        }
        assert!(reply.header("retry-after").is_some(), "{name}");
    }
    told(&host.server.get("/good"));
    eventually("only the good one is left", || (host.containers().len() == 1).then_some(()));
}

#[test]
fn mistakes_in_the_manifest_are_told_with_their_line() {
    let home = Home::new();
    home.write("folder", "index.mjs", "export default () => {};");
    let mut names = Vec::new();
    for (name, manifest, message) in [
        (
            "state",
            "image = \"a:1\"\n\n[state]\nkey = \"x\"\n",
            "function.toml:4: [state] needs a worker of ours",
        ),
        (
            "both",
            "runtime = \"node\"\nimage = \"a:1\"\n",
            "function.toml:2: write either runtime or image, not both",
        ),
        ("port0", "image = \"a:1\"\nport = 0\n", "function.toml:2: port must be from 1 to 65535"),
        ("port65536", "image = \"a:1\"\nport = 65536\n", "function.toml:2:"),
        ("portminus", "image = \"a:1\"\nport = -1\n", "function.toml:2:"),
        ("porttext", "image = \"a:1\"\nport = \"80\"\n", "function.toml:2:"),
        (
            "noport",
            "runtime = \"node\"\nport = 80\n",
            "function.toml:2: port, profile and command belong to image",
        ),
        ("profile", "image = \"a:1\"\nprofile = \"v6\"\n", "function.toml:2:"),
        ("badname", "image = \"a b\"\n", "function.toml:1: `a b` is not an image"),
        ("neither", "timeout = \"1s\"\n", "function.toml: runtime is missing"),
    ] {
        home.write(name, "function.toml", manifest);
        names.push((name, message));
    }
    let host = Host::start(home, PATIENT);
    for (name, message) in names {
        let reply = host.server.get(&format!("/{name}"));
        assert_eq!(reply.problem(), "503 broken-function function", "{name}");
        assert!(reply.detail().starts_with(message), "{name}: {}", reply.detail());
    }
    assert!(host.containers().is_empty());
}

const NODE: &str = "
export default async ({ req, res, log, error }) => {
  log('a line of', req.path);
  error('an error');
  if (req.path === '/throw') throw new Error('on purpose');
  return res.json({ path: req.path, query: req.query, body: req.bodyText, mine: process.env.MINE });
};
";

#[test]
fn our_own_image_as_a_function_of_profile_v5() {
    let home = Home::new();
    let tag = "executor-v1-exec/function-node:v5";
    output(home.command().args(["image", "node", "--tag", tag]));
    let manifest = format!(
        "image = \"{tag}\"\nprofile = \"v5\"\nentrypoint = \"src/main.mjs\"\ntimeout = \"60s\"\n[env]\nMINE = \"value\"\n"
    );
    home.write("own", "src/main.mjs", NODE);
    home.write("own", "function.toml", &manifest);
    let host = Host::start(home, PATIENT);
    let reply = eventually_within(BUILD, "it starts", || {
        Some(host.server.post("/own/a/b?x=1", "text")).filter(|reply| reply.status != 504)
    });
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(
        reply.json(),
        json!({ "path": "/a/b", "query": { "x": "1" }, "body": "text", "mine": "value" })
    );
    assert!(reply.headers.iter().all(|(name, _)| !name.starts_with("x-open-runtimes")), "{reply:?}");
    let lines = host.server.execution(reply.header("x-request-id").unwrap());
    assert!(lines.iter().any(|line| line.contains("a line of /a/b")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("an error")), "{lines:?}");
    let failed = host.server.get("/own/throw");
    assert_eq!(failed.status, 500, "{}", failed.text());
    let lines = host.server.execution(failed.header("x-request-id").unwrap());
    assert!(lines.iter().any(|line| line.contains("on purpose")), "{lines:?}");
    // Nothing of the lines stays on disk.
    let run = host.home.data().join("run");
    let instance = std::fs::read_dir(&run).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::read_dir(instance.join("logs")).unwrap().count(), 0);
}

#[test]
fn every_profile_of_the_contract_as_a_function() {
    let home = Home::new();
    for profile in ["v3", "v4", "v5"] {
        let manifest = format!(
            "image = \"{}\"\nprofile = \"{profile}\"\ncommand = \"guest {profile}\"\ntimeout = \"60s\"\n",
            images::guest()
        );
        home.write(profile, "function.toml", &manifest);
    }
    let host = Host::start(home, PATIENT);
    for profile in ["v3", "v4", "v5"] {
        let reply = host.server.post(&format!("/{profile}/echo?a=1"), "body");
        assert_eq!(reply.status, 200, "{profile}: {}", reply.text());
        let seen = reply.json();
        assert_eq!((&seen["target"], &seen["text"]), (&json!("/echo?a=1"), &json!("body")), "{profile}");
        let lines = host.server.get(&format!("/{profile}/logs?log=out&error=err"));
        let lines = host.server.execution(lines.header("x-request-id").unwrap());
        assert_eq!(lines, ["log: out", "error: err"], "{profile}");
        assert_eq!(host.server.get(&format!("/{profile}/status?code=418")).status, 418);
        let gone = host.server.get(&format!("/{profile}/close"));
        assert_eq!(gone.problem(), "502 instance-ended function", "{}", gone.text());
        assert_eq!(host.server.get(&format!("/{profile}/text")).text(), "hello");
    }
}

#[test]
fn a_site_among_functions() {
    let home = Home::new();
    home.write("public", "function.toml", "runtime = \"static\"\naccess = \"public\"\n");
    home.write(
        "private",
        "function.toml",
        "runtime = \"static\"\nentrypoint = \"www\"\n[env]\nOPEN_RUNTIMES_STATIC_FALLBACK = \"index.html\"\n",
    );
    for (site, root) in [("public", "public"), ("private", "www")] {
        home.write(site, &format!("{root}/index.html"), &format!("<p>{site}</p>"));
        home.write(site, &format!("{root}/docs/index.html"), "docs");
        home.write(site, &format!("{root}/about.html"), "about");
        home.write(site, &format!("{root}/.env"), "SECRET=1");
    }
    home.write("broken", "function.toml", "runtime = \"static\"\n[state]\nkey = \"x\"\n");
    home.write("broken", "public/index.html", "x");
    home.write("empty", "function.toml", "runtime = \"static\"\n");
    let host = Host::start(home, PATIENT);
    let stranger = |target: &str| host.server.request("GET", target).without_secret().send();
    for (target, body) in [
        ("/public/", "<p>public</p>"),
        ("/public/about", "about"),
        ("/public/docs/", "docs"),
        ("/public//about", "about"),
    ] {
        let reply = stranger(target);
        assert_eq!((reply.status, reply.text().as_str()), (200, body), "{target}");
        assert!(reply.header("etag").is_some() && reply.header("x-request-id").is_some());
    }
    // The name alone is a folder.
    for (target, to) in [
        ("/public", "/public/"),
        ("/public?a=b&c", "/public/?a=b&c"),
        ("/public/docs", "/public/docs/"),
        ("/public/docs?q=1", "/public/docs/?q=1"),
    ] {
        let reply = stranger(target);
        assert_eq!(reply.status, 308, "{target}: {}", reply.text());
        let location = reply.header("location").unwrap();
        // Relative or absolute, a browser must come to `to`.
        let base = target.split('?').next().unwrap();
        let at = if location.starts_with('/') {
            location.to_owned()
        } else {
            format!("{}{}", &base[..=base.rfind('/').unwrap()], location.trim_start_matches("./"))
        };
        assert_eq!(at, to, "{target} → {location}");
    }
    let etag = stranger("/public/").header("etag").unwrap().to_owned();
    let same = host.server.request("GET", "/public/").header("if-none-match", &etag).send();
    assert_eq!((same.status, same.body.len()), (304, 0));
    let part = host.server.request("GET", "/public/about").header("range", "bytes=1-2").send();
    assert_eq!((part.status, part.text().as_str()), (206, "bo"));
    assert_eq!(stranger("/public/nothing").status, 404);
    assert_eq!(host.server.post("/public/", "x").status, 405);
    for escape in [
        "/public/.env",
        "/public/../function.toml",
        "/public/%2e%2e/function.toml",
        "/public/..%2ffunction.toml",
    ] {
        let reply = stranger(escape);
        assert!([401, 404].contains(&reply.status), "{escape}: {} {}", reply.status, reply.text());
    }
    // The secret is for sites, too.
    for target in ["/private", "/private/", "/private/about", "/private/nothing"] {
        assert_eq!(stranger(target).status, 401, "{target}");
    }
    assert_eq!(host.server.ok("/private/").text(), "<p>private</p>");
    assert_eq!(host.server.ok("/private/nothing").text(), "<p>private</p>", "the fallback");
    assert_eq!(host.server.get("/private").status, 308);
    assert_eq!(host.server.get("/broken/").problem(), "503 broken-function function");
    assert!(
        host.server.get("/empty/").detail().contains("`public`"),
        "{}",
        host.server.get("/empty/").detail()
    );
    // A change is seen.
    host.home.write("public", "public/index.html", "<p>changed</p>");
    eventually("the change is served", || (stranger("/public/").text() == "<p>changed</p>").then_some(()));
    assert!(host.containers().is_empty(), "nobody serves it but the executor");
}
