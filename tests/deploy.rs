//! Builds and deployments, from outside: what is built when, what serves meanwhile, and what is left behind.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod common;
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]
mod docker_common;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use common::{Home, Reply, Server, at_once, eventually};
use serde_json::Value;

const HELLO: &str = "export default ({ res }) => res.text('VERSION');";

/// A function that is built: the command copies `src.mjs` to `index.mjs` and notes that it ran in `builds`, a
/// file of the test.
fn built(home: &Home, name: &str, code: &str, extra: &str) {
    home.write(name, "src.mjs", code);
    manifest(home, name, &format!("cp src.mjs index.mjs && echo built >> {}", home.file("builds")), extra);
}

fn manifest(home: &Home, name: &str, command: &str, extra: &str) {
    let toml = format!(
        "runtime = \"node\"\nentrypoint = \"index.mjs\"\naccess = \"public\"\n[build]\ncommand = '''{command}'''\n{extra}"
    );
    home.write(name, "function.toml", &toml);
}

/// A folder beside the functions folder with a function that says `text`.
fn source(home: &Home, name: &str, text: &str) -> PathBuf {
    let folder = home.path().join("sources").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("index.mjs"), HELLO.replace("VERSION", text)).unwrap();
    let toml = "runtime = \"node\"\nentrypoint = \"index.mjs\"\naccess = \"public\"\n";
    std::fs::write(folder.join("function.toml"), toml).unwrap();
    folder
}

fn command(folder: &Path, command: &str, extra: &str) {
    let path = folder.join("function.toml");
    let toml = "runtime = \"node\"\nentrypoint = \"index.mjs\"\naccess = \"public\"\n";
    std::fs::write(path, format!("{toml}[build]\ncommand = '''{command}'''\n{extra}")).unwrap();
}

fn executor(home: &Home, args: &[&str]) -> Output {
    home.run(args)
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn deploy(home: &Home, folder: &Path) -> String {
    let output = executor(home, &["deploy", folder.to_str().unwrap()]);
    assert!(output.status.success(), "{}", err(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(home: &Home, folder: &Path) -> String {
    let output = executor(home, &["deploy", folder.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    err(&output)
}

fn admin(server: &Server, method: &str, path: &str, body: Vec<u8>) -> Reply {
    let key = format!("Bearer {}", server.admin);
    server.request(method, path).header("authorization", &key).body(body).send()
}

fn about(server: &Server, name: &str) -> Value {
    admin(server, "GET", &format!("/_/functions/{name}"), vec![]).json()
}

/// The last line of a deployment's answer.
fn outcome(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_str(reply.text().lines().last().unwrap()).unwrap()
}

/// Names in a folder of the data folder.
fn names(home: &Home, folder: &str) -> Vec<String> {
    let items = std::fs::read_dir(home.data().join(folder)).unwrap();
    let mut names: Vec<_> = items.map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn says(server: &Server, target: &str, text: &str) {
    eventually(&format!("{target} says {text}"), || (server.get(target).text() == text).then_some(()));
}

#[test]
fn the_first_call_waits_for_the_build_and_an_unchanged_function_is_not_built_again() {
    let home = Home::new();
    built(&home, "f", &HELLO.replace("VERSION", "one"), "");
    let mut server = home.start(&["--watch", "--reap-interval", "200ms"]);
    assert_eq!(server.ok("/f").text(), "one");
    assert!(!home.functions().join("f/index.mjs").exists(), "the sources are not written to");
    assert_eq!(server.stop(), 0);
    let mut server = home.start(&["--watch", "--reap-interval", "200ms"]);
    assert_eq!(server.ok("/f").text(), "one");
    assert_eq!(home.lines("builds").len(), 1, "also across restarts");
    built(&home, "f", &HELLO.replace("VERSION", "two!"), "");
    says(&server, "/f", "two!");
    assert_eq!(home.lines("builds").len(), 2);
    let artifacts =
        eventually("the old artifact is gone", || Some(names(&home, "artifacts")).filter(|n| n.len() == 2));
    assert!(artifacts[1].ends_with(".tar.zst"), "{artifacts:?}");
    assert!(names(&home, "staging").is_empty());
    assert_eq!(server.stop(), 0);
}

#[test]
fn a_changed_function_is_built_while_the_old_one_serves_and_a_newer_change_cancels_that() {
    let home = Home::new();
    built(&home, "f", &HELLO.replace("VERSION", "one"), "");
    let server = home.start(&["--watch", "--reap-interval", "200ms"]);
    assert_eq!(server.ok("/f").text(), "one");
    let gate = home.file("gate");
    home.write("f", "src.mjs", &HELLO.replace("VERSION", "never"));
    let wait = format!("echo $$ > {gate}.pid; sleep 1000; cp src.mjs index.mjs");
    manifest(&home, "f", &wait, "");
    let pid = eventually("the second build runs", || {
        std::fs::read_to_string(format!("{gate}.pid")).ok()?.trim().parse().ok()
    });
    assert_eq!(server.ok("/f").text(), "one", "the old one serves meanwhile");
    built(&home, "f", &HELLO.replace("VERSION", "three"), "");
    says(&server, "/f", "three");
    eventually("the cancelled build is gone", || (!common::alive(pid)).then_some(()));
    // Broken: the last good one serves.
    manifest(&home, "f", "echo oh no; exit 7", "");
    server.wait_log("ended with code 7");
    assert_eq!(server.ok("/f").text(), "three");
}

#[test]
fn calls_are_told_of_a_build_that_runs_or_failed() {
    let home = Home::new();
    manifest(&home, "fails", "echo the reason; exit 3", "");
    manifest(&home, "late", "echo begun; sleep 1000", "timeout = \"100ms\"");
    manifest(&home, "nothing", "true", "");
    manifest(
        &home,
        "output",
        "mkdir dist && echo \"export default ({res}) => res.text('dist')\" > dist/index.mjs",
        "output = \"dist\"",
    );
    home.write("slow", "function.toml", "runtime = \"node\"\nentrypoint = \"index.mjs\"\naccess = \"public\"\ntimeout = \"300ms\"\n[build]\ncommand = \"sleep 1000\"\n");
    let mut server = home.start(&["--build-workers", "5"]);
    let reply = server.get("/fails");
    assert_eq!(reply.problem(), "503 build-failed function");
    assert!(reply.detail().contains("code 3") && reply.detail().contains("the reason"), "{}", reply.text());
    assert_eq!(reply.header("retry-after"), Some("30"));
    let reply = server.get("/late");
    assert_eq!(reply.problem(), "503 build-failed function");
    assert!(
        reply.detail().contains("longer than 100ms") && reply.detail().contains("begun"),
        "{}",
        reply.text()
    );
    let reply = server.get("/nothing");
    assert!(
        reply.detail().contains("after its build, entrypoint `index.mjs` does not exist"),
        "{}",
        reply.text()
    );
    assert_eq!(server.ok("/output").text(), "dist");
    let reply = server.get("/slow");
    assert_eq!(reply.problem(), "504 deadline function");
    assert!(reply.detail().contains("still being built"), "{}", reply.text());
    assert_eq!(about(&server, "slow")["state"], "building");
    // Its log can be read, and it can be cancelled.
    let build = about(&server, "slow")["build"].as_str().unwrap().to_owned();
    let log = admin(&server, "GET", &format!("/_/builds/{build}/log"), vec![]);
    assert!(log.text().contains("\"line\":\"$ sleep 1000\""), "{}", log.text());
    assert_eq!(server.get(&format!("/_/builds/{build}/log")).problem(), "401 unauthorized front");
    assert_eq!(admin(&server, "DELETE", &format!("/_/builds/{build}"), vec![]).status, 204);
    let log = admin(&server, "GET", &format!("/_/builds/{build}/log?follow=true"), vec![]);
    assert_eq!(outcome(&log)["error"]["type"], "build-cancelled");
    assert_eq!(admin(&server, "GET", "/_/builds/00000000000000000000000000000000/log", vec![]).status, 404);
    assert_eq!(server.stop(), 0);
    assert!(names(&home, "run").is_empty() && names(&home, "staging").is_empty());
}

#[test]
fn deploy_call_deploy_broken_roll_back_remove() {
    let home = Home::new();
    let mut server = home.start(&[]);
    let folder = source(&home, "f", "one");
    assert!(deploy(&home, &folder).contains("deployed f, version 1"));
    assert_eq!(server.ok("/f").text(), "one");
    assert!(deploy(&home, &folder).contains("version 1"), "nothing has changed");
    source(&home, "f", "two");
    assert!(deploy(&home, &folder).contains("version 2"));
    assert_eq!(server.ok("/f").text(), "two");

    std::fs::write(folder.join("index.mjs"), "export default (").unwrap();
    let told = refused(&home, &folder);
    assert!(told.contains("does not start") && told.contains("Syntax error"), "{told}");
    command(&folder, "echo first; echo the reason; exit 9", "");
    let told = refused(&home, &folder);
    assert!(told.contains("ended with code 9") && told.contains("the reason"), "{told}");
    std::fs::remove_file(folder.join("function.toml")).unwrap();
    assert!(refused(&home, &folder).contains("is no function"));
    assert_eq!(server.ok("/f").text(), "two", "a failed deployment leaves the old version serving");

    let output = executor(&home, &["rollback", "f"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "f serves version 1 again\n", "{}", err(&output));
    assert_eq!(server.ok("/f").text(), "one");
    let output = executor(&home, &["rollback", "f"]);
    assert!(err(&output).contains("no earlier version"), "{}", err(&output));
    assert_eq!(executor(&home, &["rollback", "f", "--version", "2"]).status.code(), Some(0));
    assert_eq!(server.ok("/f").text(), "two");
    let output = executor(&home, &["rollback", "f", "--version", "7"]);
    assert!(err(&output).contains("no version 7"), "{}", err(&output));

    // Also after a crash.
    server.kill();
    let server = home.start(&[]);
    assert_eq!(server.ok("/f").text(), "two");
    let f = about(&server, "f");
    assert_eq!(
        (&f["version"], &f["origin"], &f["state"]),
        (&2.into(), &"deployed".into(), &"serving".into())
    );

    // An artifact that somebody took away is a reason, not a riddle, and there is a way back.
    let hash = f["versions"][1]["hash"].as_str().unwrap().to_owned();
    drop(server);
    std::fs::remove_dir_all(home.data().join("artifacts").join(&hash)).unwrap();
    let archive = home.data().join(format!("artifacts/{hash}.tar.zst"));
    let mut server = home.start(&[]);
    assert_eq!(server.ok("/f").text(), "two", "unpacked again");
    assert_eq!(server.stop(), 0);
    std::fs::remove_dir_all(home.data().join("artifacts").join(&hash)).unwrap();
    std::fs::remove_file(archive).unwrap();
    let server = home.start(&["--reap-interval", "200ms"]);
    assert_eq!(server.request("GET", "/f").send().problem(), "503 broken-function function");
    let output = executor(&home, &["rollback", "f", "--version", "2"]);
    assert_eq!(output.status.code(), Some(1), "it is not there: {}", err(&output));
    assert_eq!(executor(&home, &["rollback", "f"]).status.code(), Some(0));
    assert_eq!(server.ok("/f").text(), "one");

    let output = executor(&home, &["remove", "f"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "removed f\n", "{}", err(&output));
    assert_eq!(server.get("/f").status, 404);
    let output = executor(&home, &["remove", "f"]);
    assert!(err(&output).contains("no function `f` was deployed"), "{}", err(&output));
    eventually("artifacts are gone", || names(&home, "artifacts").is_empty().then_some(()));
}

#[test]
fn five_versions_are_kept_and_the_deployed_one_wins_over_the_folder() {
    let home = Home::new();
    home.node("f", "access = \"public\"\n", &HELLO.replace("VERSION", "folder"));
    let server = home.start(&["--watch", "--reap-interval", "200ms"]);
    assert_eq!(server.ok("/f").text(), "folder");
    for n in 1..=6 {
        let told = deploy(&home, &source(&home, "f", &format!("v{n}")));
        assert!(told.contains(&format!("version {n}")), "{told}");
    }
    assert_eq!(server.ok("/f").text(), "v6");
    assert_eq!(server.logged("is in the functions folder, too").len(), 1);
    let versions = about(&server, "f")["versions"].as_array().unwrap().clone();
    let numbers: Vec<_> = versions.iter().map(|v| v["version"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [2, 3, 4, 5, 6]);
    for version in &versions {
        let hash = version["hash"].as_str().unwrap();
        assert!(
            home.data().join(format!("artifacts/{hash}.tar.zst")).metadata().unwrap().len()
                == version["size"].as_u64().unwrap()
        );
    }
    deploy(&home, &source(&home, "g", "x"));
    let most = 2 * (5 + 1);
    eventually("the first artifact is gone", || (names(&home, "artifacts").len() == most).then_some(()));
    assert_eq!(
        admin(&server, "POST", "/_/functions/f/rollback?to=x", vec![]).problem(),
        "400 bad-query front"
    );
    assert_eq!(admin(&server, "DELETE", "/_/functions/f", vec![]).status, 204);
    assert_eq!(server.ok("/f").text(), "folder", "what is in the folder serves again");
    assert_eq!(admin(&server, "DELETE", "/_/functions/f", vec![]).problem(), "409 in-functions-folder front");
    let all = admin(&server, "GET", "/_/functions", vec![]).json();
    let all: Vec<_> =
        all["functions"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert_eq!(all, ["f", "g"]);
}

/// A tar with one entry of that name.
fn tar(name: &str, kind: tar::EntryType, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    if !link.is_empty() {
        header.as_ustar_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    }
    header.set_cksum();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append(&header, content).unwrap();
    archive.into_inner().unwrap()
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    use tar::EntryType as E;
    let home = Home::new();
    let server = home.start(&["--max-archive", "100KiB"]);
    for (archive, kind, part) in [
        (tar("../evil", E::Regular, "", b"x"), "source-refused", "leads out"),
        (tar("/evil", E::Regular, "", b"x"), "source-refused", "absolute"),
        (tar("link", E::Symlink, "../../etc", b""), "source-refused", "link"),
        (tar("pipe", E::Fifo, "", b""), "source-refused", "pipe"),
        (tar("index.mjs", E::Regular, "", b"x"), "source-refused", "no function.toml"),
        (tar("function.toml", E::Regular, "", b"runtime = 7"), "broken-function", "function.toml:1"),
        (b"no archive".to_vec(), "source-refused", "archive"),
        (Vec::new(), "source-refused", "empty"),
    ] {
        let outcome = outcome(&admin(&server, "PUT", "/_/functions/evil", archive));
        assert_eq!(outcome["error"]["type"], kind, "{outcome}");
        assert!(outcome["error"]["message"].as_str().unwrap().contains(part), "{part}: {outcome}");
    }
    let at = tar("index.mjs", E::Regular, "", &vec![0; (100 << 10) - 3 * 512]);
    assert_eq!(at.len(), 100 << 10);
    assert_eq!(
        outcome(&admin(&server, "PUT", "/_/functions/evil", at.clone()))["error"]["type"],
        "source-refused",
        "at the bound"
    );
    let above = [at, vec![0]].concat();
    assert_eq!(admin(&server, "PUT", "/_/functions/evil", above).problem(), "413 body-too-large front");
    assert_eq!(admin(&server, "PUT", "/_/functions/v1", vec![]).problem(), "400 bad-name front");
    let stranger = server.request("PUT", "/_/functions/evil").body(vec![1]).send();
    assert_eq!(stranger.problem(), "401 unauthorized front");
    assert_eq!(server.get("/evil").status, 404);
    eventually("nothing is left", || names(&home, "staging").is_empty().then_some(()));
    assert!(names(&home, "artifacts").is_empty() && names(&home, "deployed").is_empty());
}

#[test]
fn concurrent_deployments_of_one_name_take_turns() {
    let home = Home::new();
    let server = home.start(&[]);
    let folders: Vec<_> = (0..4)
        .map(|n| {
            let folder = source(&home, &format!("s{n}"), &format!("v{n}"));
            let log = home.file("turns");
            command(&folder, &format!("echo begin >> {log}; sleep 0.1; echo end >> {log}"), "");
            folder
        })
        .collect();
    let told = at_once(4, |n| {
        let output = executor(&home, &["deploy", folders[n].to_str().unwrap(), "--name", "f"]);
        assert!(output.status.success(), "{}", err(&output));
        String::from_utf8(output.stdout).unwrap()
    });
    assert_eq!(home.lines("turns"), ["begin", "end"].repeat(4));
    let last = (0..4).find(|n| told[*n].contains("version 4")).unwrap();
    assert_eq!(server.ok("/f").text(), format!("v{last}"));
    assert_eq!(about(&server, "f")["versions"].as_array().unwrap().len(), 4);
}

#[test]
fn a_client_that_leaves_cancels_its_deployment() {
    let home = Home::new();
    let server = home.start(&[]);
    let folder = source(&home, "f", "one");
    command(&folder, &format!("echo $$ > {}; sleep 1000", home.file("pid")), "");
    let mut client = home.command().args(["deploy", folder.to_str().unwrap()]).spawn().unwrap();
    let pid =
        eventually("the build runs", || std::fs::read_to_string(home.file("pid")).ok()?.trim().parse().ok());
    client.kill().unwrap();
    client.wait().unwrap();
    eventually("the build is gone", || (!common::alive(pid)).then_some(()));
    server.wait_log("not deployed: the build was cancelled");
    eventually("nothing is left", || names(&home, "staging").is_empty().then_some(()));
}

#[test]
fn lines_come_while_the_build_runs() {
    let home = Home::new();
    let _server = home.start(&[]);
    let folder = source(&home, "f", "one");
    let gate = home.file("gate");
    command(&folder, &format!("echo first; while ! test -e {gate}; do sleep 0.02; done; echo last"), "");
    let mut client = home.command();
    client.args(["deploy", folder.to_str().unwrap()]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = client.spawn().unwrap();
    let mut lines = BufReader::new(client.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("  first")), "it ended without the line");
    std::fs::write(&gate, "").unwrap();
    assert!(lines.any(|line| line.ends_with("  last")));
    assert!(client.wait().unwrap().success());
}

#[test]
fn a_shutdown_does_not_wait_for_builds() {
    let home = Home::new();
    let mut server = home.start(&["--grace", "10m"]);
    let folder = source(&home, "f", "one");
    command(&folder, &format!("echo $$ > {}; sleep 1000", home.file("pid")), "");
    let client =
        home.command().args(["deploy", folder.to_str().unwrap()]).stderr(Stdio::piped()).spawn().unwrap();
    let pid =
        eventually("the build runs", || std::fs::read_to_string(home.file("pid")).ok()?.trim().parse().ok());
    assert_eq!(server.stop(), 0);
    assert!(!common::alive(pid));
    let told = client.wait_with_output().unwrap();
    assert!(told.status.code() == Some(1) && err(&told).contains("is shutting down"), "{}", err(&told));
    assert!(names(&home, "deployed").is_empty());
}

#[test]
fn build_commands_trust_the_companys_certificates_and_keep_downloads() {
    let home = Home::new();
    let certificate = "-----BEGIN CERTIFICATE-----\nTESTTESTTEST\n-----END CERTIFICATE-----\n";
    std::fs::write(home.path().join("ca.pem"), certificate).unwrap();
    let server = home.start(&["--ca-certificates", &home.file("ca.pem")]);
    let folder = source(&home, "f", "one");
    let test = "for file in $SSL_CERT_FILE $PIP_CERT $REQUESTS_CA_BUNDLE $CARGO_HTTP_CAINFO $GIT_SSL_CAINFO \
                $CURL_CA_BUNDLE; do grep -q TESTTESTTEST $file || exit 1; done; mkdir -p $npm_config_cache; \
                ls $npm_config_cache; touch $npm_config_cache/kept";
    command(&folder, test, "cache = true");
    deploy(&home, &folder);
    std::fs::write(folder.join("more"), "").unwrap();
    let output = executor(&home, &["deploy", folder.to_str().unwrap()]);
    assert!(output.status.success() && err(&output).contains("  kept\n"), "{}", err(&output));
    assert_eq!(server.ok("/f").text(), "one");
    std::fs::write(home.path().join("ca.pem"), "no").unwrap();
    let output = home.run(&["build", folder.to_str().unwrap(), "--ca-certificates", &home.file("ca.pem")]);
    assert!(err(&output).contains("no certificate in PEM form"), "{}", err(&output));
}

#[test]
fn output_is_kept_to_a_bound() {
    let home = Home::new();
    let _server = home.start(&[]);
    let folder = source(&home, "f", "one");
    command(
        &folder,
        "head -c 1100000 /dev/zero | tr '\\0' x | fold -w 999; echo; echo the reason; exit 1",
        "",
    );
    let told = refused(&home, &folder);
    assert!(told.contains("more bytes of output were not kept"), "it says so");
    assert!(told.contains("the reason"), "the end is kept for the message");
    let logs = names(&home, "builds");
    let size = home.data().join("builds").join(&logs[0]).metadata().unwrap().len();
    assert!((1_000_000..1_100_000).contains(&size), "with times: {size}");
}

#[test]
fn build_writes_an_artifact_that_can_be_deployed() {
    let home = Home::new();
    let folder = source(&home, "f", "one");
    command(&folder, "sed -i s/one/built/ index.mjs && echo works", "");
    let out = home.file("f.tar.zst");
    let output = home.run(&["build", folder.to_str().unwrap(), "--out", &out]);
    assert!(output.status.success() && err(&output).contains("  works\n"), "{}", err(&output));
    let server = home.start(&[]);
    command(&folder, "exit 4", "");
    let output = home.run(&["build", folder.to_str().unwrap(), "--out", &home.file("no")]);
    assert!(
        output.status.code() == Some(1) && err(&output).contains("ended with code 4"),
        "{}",
        err(&output)
    );
    assert!(!Path::new(&home.file("no")).exists());
    let told = deploy(&home, Path::new(&out));
    assert!(told.contains("deployed f,"), "{told}");
    assert_eq!(server.ok("/f").text(), "built");
}

#[test]
fn docker_builds_in_a_container_of_the_runtime() {
    let home = Home::new();
    let certificate = "-----BEGIN CERTIFICATE-----\nTESTTESTTEST\n-----END CERTIFICATE-----\n";
    std::fs::write(home.path().join("ca.pem"), certificate).unwrap();
    let command = "grep -q TESTTESTTEST $SSL_CERT_FILE && node -e \"require('fs').writeFileSync('index.mjs', \
                   'export default ({res}) => res.text(process.cwd())')\" && pwd > where";
    manifest(&home, "f", command, "cache = true");
    let ca = home.file("ca.pem");
    let host = docker_common::Host::start(home, &["--ca-certificates", &ca]);
    let reply = host.first("/f");
    assert_eq!((reply.status, &*reply.text()), (200, "/usr/local/server/src/function"), "{}", reply.text());
    let artifacts = std::fs::read_dir(host.data().join("artifacts")).unwrap();
    let tree = artifacts.map(|item| item.unwrap().path()).find(|path| path.is_dir()).unwrap();
    assert_eq!(std::fs::read_to_string(tree.join("where")).unwrap(), "/usr/local/build\n");
    assert!(host.containers().iter().all(|name| !name.contains("build")), "{:?}", host.containers());
}

#[test]
fn a_site_is_deployed_as_functions_are() {
    let home = Home::new();
    let server = home.start(&[]);
    let folder = home.path().join("site");
    std::fs::create_dir_all(folder.join("public")).unwrap();
    std::fs::write(folder.join("function.toml"), "runtime = \"static\"\naccess = \"public\"\n").unwrap();
    for text in ["one", "two"] {
        std::fs::write(folder.join("public/index.html"), text).unwrap();
        deploy(&home, &folder);
        says(&server, "/site/", text);
    }
    assert_eq!(executor(&home, &["rollback", "site"]).status.code(), Some(0));
    says(&server, "/site/", "one");
    std::fs::remove_dir_all(folder.join("public")).unwrap();
    assert!(refused(&home, &folder).contains("the folder to serve, `public`, does not exist"));
    says(&server, "/site/", "one");
    drop(server);
    let server = home.start(&[]);
    says(&server, "/site/", "one");
}
