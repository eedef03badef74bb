//! A site that stands alone, as a host of Open Runtimes finds it: `executor run` on a folder of files, section 13.1 of the
//! runtime protocol. How paths become files is tested in `src/http/site`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is a failed test")]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Home, Outgoing, Reply, Server};

const SECRET: &str = "the secret";
const CACHED: &str = "public, max-age=36000";

/// Files of a site in `site`; what is beside it must never be served.
fn site() -> Home {
    let home = Home::new();
    for (file, content) in [
        ("site/index.html", "<p>home</p>"),
        ("site/about.html", "about"),
        ("site/docs/index.html", "docs"),
        ("site/.well-known/security.txt", "contact"),
        ("site/.env.local", "A=1"),
        ("beside.html", "beside"),
        ("telemetry/timings.txt", "extract=0.1\n"),
    ] {
        let path = home.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    std::os::unix::fs::symlink("../beside.html", home.path().join("site/link.html")).unwrap();
    home
}

fn serve(home: &Home, env: &[(&str, &str)]) -> Server {
    let mut command = home.command();
    command.arg("run").arg(home.path().join("site")).args(["--runtime", "static", "--port", "0"]);
    command.arg("--telemetry").arg(home.path().join("telemetry"));
    command.envs(env.iter().copied());
    anonymous(home.spawn(command))
}

fn anonymous(mut server: Server) -> Server {
    server.secret = None;
    server
}

fn basic(credentials: &str) -> String {
    format!("Basic {}", STANDARD.encode(credentials))
}

/// As a host asks.
fn asked<'a>(server: &'a Server, method: &str, target: &str) -> Outgoing<'a> {
    server.request(method, target).header("authorization", &basic(&format!("opr:{SECRET}")))
}

fn told(reply: &Reply) -> (u16, String) {
    (reply.status, reply.text())
}

#[test]
fn a_site_asks_for_basic_authentication() {
    let home = site();
    let server = serve(&home, &[("OPEN_RUNTIMES_SECRET", SECRET)]);
    for target in ["/", "/about", "/nothing"] {
        for (name, value) in [
            ("x-none", String::new()),
            ("x-open-runtimes-secret", SECRET.to_owned()),
            ("authorization", format!("Bearer {SECRET}")),
            ("authorization", basic(&format!("opr:{SECRET}r"))),
            ("authorization", basic(&format!("root:{SECRET}"))),
            ("authorization", basic("opr:")),
            ("authorization", "Basic %".to_owned()),
        ] {
            let reply = server.request("GET", target).header(name, &value).send();
            assert_eq!(reply.status, 401, "{target} {name}: {value}");
            assert!(reply.header("www-authenticate").unwrap().starts_with("Basic "), "{reply:?}");
            assert_eq!(reply.header("cdn-cache-control"), None, "a shared cache would lock everybody out");
        }
    }
    assert_eq!(told(&asked(&server, "GET", "/").send()), (200, "<p>home</p>".into()));
    assert!(!server.log().contains(SECRET));
}

#[test]
fn without_a_secret_everybody_is_served() {
    let home = site();
    let server = serve(&home, &[("OPEN_RUNTIMES_SECRET", "")]);
    assert_eq!(told(&server.get("/")), (200, "<p>home</p>".into()));
    assert_eq!(told(&asked(&server, "GET", "/about").send()), (200, "about".into()));
}

#[test]
fn the_reserved_endpoints_are_open() {
    let home = site();
    // A fallback answers every path, but not these.
    let env = [("OPEN_RUNTIMES_SECRET", SECRET), ("OPEN_RUNTIMES_STATIC_FALLBACK", "index.html")];
    let server = serve(&home, &env);
    assert_eq!(told(&server.get("/__opr/health")), (200, "OK".into()));
    assert_eq!(told(&server.get("/__opr/timings")), (200, "extract=0.1\n".into()));
    assert_eq!(server.get("/__opr/other").status, 401);
    assert_eq!(told(&asked(&server, "GET", "/__opr/other").send()), (200, "<p>home</p>".into()));
}

#[test]
fn every_answer_has_the_cache_header() {
    let home = site();
    for (env, name, other) in [
        (&[("OPEN_RUNTIMES_SECRET", SECRET)][..], "cdn-cache-control", "x-edge"),
        (
            &[("OPEN_RUNTIMES_SECRET", SECRET), ("OPEN_RUNTIMES_CACHE_HEADER", "X-Edge")],
            "x-edge",
            "cdn-cache-control",
        ),
    ] {
        let server = serve(&home, env);
        for (method, target, status, body) in [
            ("GET", "/", 200, "<p>home</p>"),
            ("HEAD", "/", 200, ""),
            ("GET", "/about", 200, "about"),
            ("GET", "/docs?a=b", 308, ""),
            ("GET", "/docs/", 200, "docs"),
            ("GET", "/.well-known/security.txt", 200, "contact"),
            ("GET", "/nothing", 404, "Page not found"),
            ("GET", "/.env.local", 404, "Page not found"),
            ("GET", "/link", 404, "Page not found"),
            ("GET", "/link.html", 404, "Page not found"),
            ("GET", "/%2e%2e/beside", 404, "Page not found"),
            ("POST", "/", 405, ""),
        ] {
            let reply = asked(&server, method, target).send();
            assert_eq!(reply.status, status, "{method} {target}: {}", reply.text());
            assert!(reply.text().contains(body), "{method} {target}: {}", reply.text());
            assert_eq!(reply.header(name), Some(CACHED), "{method} {target}");
            assert_eq!(reply.header(other), None, "{method} {target}");
            let reserved = reply.headers.iter().find(|(name, _)| name.starts_with("x-open-runtimes-"));
            assert_eq!(reserved, None, "{method} {target}: a site has no log files");
        }
    }
}

#[test]
fn a_folder_with_a_manifest_is_the_same_site_as_among_functions() {
    let home = Home::new();
    home.write("site", "function.toml", "runtime = \"static\"\n").write("site", "public/index.html", "home");
    let mut command = home.command();
    command.arg("run").arg(home.functions().join("site")).args(["--port", "0"]);
    let server = anonymous(home.spawn(command));
    assert_eq!(told(&server.get("/")), (200, "home".into()));
    assert_eq!(server.get("/function.toml").status, 404);
}
