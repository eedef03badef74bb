//! What takes more than one request, or bytes that a client would not send: one function each.

use serde_json::json;

use super::subject::Subject;
use super::{ALL, CONTRACT, NATIVE, TIMED_OUT, Way};
use crate::common::client::chunked;
use crate::common::{Reply, at_once, eventually};

/// A check of its own, for a server like that of the table.
pub type Check = (&'static str, &'static [Way], fn(&Subject<'_>));

pub const CHECKS: &[Check] = &[
    ("timings", CONTRACT, timings),
    ("chunked", ALL, chunked_bodies),
    ("chunked, too large", CONTRACT, chunked_and_too_large),
    ("expect", ALL, expects),
    ("head", ALL, head),
    ("reserved request headers", ALL, no_reserved_header_reaches_the_function),
    ("library", ALL, outgoing),
    ("appended", CONTRACT, files_are_appended_to),
    ("lines in the head", CONTRACT, lines_in_the_head_need_no_file),
    ("late lines", CONTRACT, lines_after_expiry_are_missing),
    ("concurrency", ALL, lines_of_concurrent_requests_do_not_mix),
];

/// The log id of an answer.
#[track_caller]
fn id(reply: &Reply) -> &str {
    reply.header("x-open-runtimes-log-id").expect("a log id")
}

fn timings(subject: &Subject<'_>) {
    let file = subject.telemetry().join("timings.txt");
    std::fs::write(&file, "local_download=0.1\nstartup=1.25\n").unwrap();
    let reply = subject.request("GET", "/__opr/timings?x").without_secret().send();
    assert_eq!((reply.status, reply.text().as_str()), (200, "local_download=0.1\nstartup=1.25\n"));
    assert!(reply.header("content-type").unwrap().starts_with("text/plain"));
    assert_eq!(reply.header("x-open-runtimes-log-id"), None);
    std::fs::remove_file(file).unwrap();
}

fn chunked_bodies(subject: &Subject<'_>) {
    let long = vec![b'x'; 100_000];
    let pieces = ["grü".as_bytes(), b"\0", &long];
    let request = subject.action("requestBodyBinary").header("transfer-encoding", "chunked");
    let reply = request.body(chunked(pieces)).send();
    assert_eq!((reply.status, reply.body), (200, pieces.concat()));
}

fn chunked_and_too_large(subject: &Subject<'_>) {
    let piece = vec![b'x'; 1 << 20];
    let mut pieces = vec![&piece[..]; 20];
    let request = || subject.action("binaryResponseLarge").header("transfer-encoding", "chunked");
    assert_eq!(request().body(chunked(pieces.clone())).send().status, 200);
    pieces.push(b"x");
    // If it were called it would raise, and log before.
    let request = subject.action("errorTest").header("transfer-encoding", "chunked");
    let reply = request.body(chunked(pieces)).send();
    assert_eq!((reply.status, reply.body.len()), (413, 0));
    assert_eq!(subject.files_of(id(&reply)).0, "");
}

fn expects(subject: &Subject<'_>) {
    let request = subject.action("requestBodyText").header("expect", "100-continue");
    let mut conn = request.header("content-length", "5").open();
    assert_eq!(conn.head().status, 100);
    conn.write("hello");
    let reply = conn.reply("POST");
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));

    // One that does not wait for it.
    let request = subject.action("requestBodyText").header("expect", "100-continue").body("hello");
    let mut conn = subject.server.connect();
    let mut reply = request.send_on(&mut conn);
    if reply.status == 100 {
        reply = conn.reply("POST");
    }
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));
}

fn head(subject: &Subject<'_>) {
    // On a connection that goes on: a body would be taken for the next answer.
    let ask =
        |method: &str| subject.request(method, "/").header("x-action", "plaintextResponse").keep_alive();
    let mut conn = subject.server.connect();
    let head = ask("HEAD").send_on(&mut conn);
    assert_eq!((head.status, head.body.len()), (200, 0));
    let get = ask("GET").send_on(&mut conn);
    assert_eq!((get.status, get.text().as_str()), (200, "Hello World 👋"));
    assert_eq!(head.header("content-type"), get.header("content-type"));
}

fn no_reserved_header_reaches_the_function(subject: &Subject<'_>) {
    let request = subject.action("requestHeaders").header("x-open-runtimes-timeout", "30");
    let request = request.header("X-Open-Runtimes-Log-Id", "theirs").header("x-open-runtimes-other", "x");
    let seen = request.send().json();
    let reserved = seen.as_object().unwrap().keys().filter(|name| name.starts_with("x-open-runtimes-"));
    // The one that this server enforces.
    let enforced = if subject.keeps_contract() { vec!["x-open-runtimes-custom"] } else { Vec::new() };
    assert_eq!(reserved.collect::<Vec<_>>(), enforced);
}

fn outgoing(subject: &Subject<'_>) {
    let reply = subject.action("library").header("x-url", &subject.neighbour.free()).send();
    assert_eq!(reply.json(), json!({"status": 200, "text": "free"}));
}

fn files_are_appended_to(subject: &Subject<'_>) {
    for n in 1..=2 {
        let reply = subject.action("spreadOperatorLogs").header("x-open-runtimes-log-id", "twice").send();
        assert_eq!(id(&reply), "twice");
        let lines = "engine: open-runtimes\n".repeat(n);
        assert_eq!(subject.files_of("twice"), (lines.clone(), lines));
    }
}

/// Beyond the protocol, between a host and an image of this executor.
fn lines_in_the_head_need_no_file(subject: &Subject<'_>) {
    let ask = |action: &str, transport: &str| {
        subject.action(action).header("x-open-runtimes-log-transport", transport).send()
    };
    let before = subject.files();
    let reply = ask("spreadOperatorLogs", "head");
    assert_eq!(reply.text(), "OK");
    assert_eq!(reply.header("x-open-runtimes-log-transport"), Some("head"));
    for name in ["x-open-runtimes-logs", "x-open-runtimes-errors"] {
        assert_eq!(reply.header(name), Some("engine:%20open-runtimes%0A"));
    }
    let failed = ask("errorTest", "head");
    assert_eq!((failed.status, failed.header("x-open-runtimes-logs")), (500, Some("Before%20error...%0A")));
    assert_eq!(subject.files(), before);
    // Two lines of 8,000 characters each are too much for it.
    for (action, transport) in [("logs", "head"), ("spreadOperatorLogs", "pigeon")] {
        let reply = ask(action, transport);
        assert_eq!(reply.header("x-open-runtimes-log-transport"), None, "{action}");
        assert!(!subject.files_of(id(&reply)).1.is_empty(), "{action}");
    }
}

fn lines_after_expiry_are_missing(subject: &Subject<'_>) {
    let late = subject.action("timeout").header("x-open-runtimes-timeout", "1").send();
    assert_eq!((late.status, late.body.len()), (500, 0));
    assert_eq!(late.header("content-type"), Some("text/plain; charset=utf-8"));
    let written = || subject.files_of(id(&late));
    assert_eq!(written(), ("Timeout start.\n".to_owned(), TIMED_OUT.to_owned()));
    // This one begins later and takes as long, so the first one would have come to its end as well.
    let whole = subject.action("timeout").send();
    assert_eq!((whole.status, whole.text().as_str()), (200, "Successful response."));
    assert_eq!(subject.files_of(id(&whole)).0, "Timeout start.\nTimeout end.\n");
    assert_eq!(written(), ("Timeout start.\n".to_owned(), TIMED_OUT.to_owned()));
}

fn lines_of_concurrent_requests_do_not_mix(subject: &Subject<'_>) {
    const CALLS: usize = 8;
    let url = subject.neighbour.held();
    let ask = |n: usize| {
        if n == CALLS {
            subject.neighbour.until_held(CALLS);
            if subject.keeps_contract() {
                // While calls run.
                assert_eq!(subject.request("GET", "/__opr/health").send().text(), "OK");
            }
            subject.neighbour.release();
            return None;
        }
        Some(
            subject
                .request("GET", &format!("/?name=n{n}"))
                .header("x-action", "held")
                .header("x-url", &url)
                .send(),
        )
    };
    for (n, reply) in at_once(CALLS + 1, ask).iter().flatten().enumerate() {
        assert_eq!((reply.status, reply.text()), (200, format!("n{n}")));
        let logs = format!("log before n{n}\n{NATIVE}native before n{n}\nnative after n{n}\n");
        assert_eq!(subject.written(reply, false), (logs, format!("error after n{n}\n")));
    }
}

/// Section 9.6: none is remembered when it is repaired on the disk.
pub fn load_failures(subject: &Subject<'_>) {
    let (language, code) = (subject.language(), subject.code());
    let entrypoint = subject.entrypoint();
    let ask = || subject.action("plaintextResponse").send();
    let refused = |logged: &str| {
        let reply = ask();
        assert_eq!((reply.status, reply.body.len()), (503, 0), "{logged}");
        let (logs, errors) = subject.files_of(id(&reply));
        assert!(errors.starts_with(logged), "{logged}: {errors}");
        assert_eq!(logs, "");
        errors
    };
    let good = || {
        language.rewrite(&code, None);
        let reply = ask();
        assert_eq!((reply.status, reply.text().as_str()), (200, "Hello World 👋"));
    };
    std::fs::remove_file(code.join(entrypoint)).unwrap();
    refused(&format!("Failed to load entrypoint, file {entrypoint} does not exist.\n"));
    refused(&format!("Failed to load entrypoint, file {entrypoint} does not exist.\n"));
    language.rewrite(&code, Some("syntax"));
    refused(&format!("Syntax error in {entrypoint}: "));
    language.rewrite(&code, Some("signature"));
    refused("Function signature invalid. Did you forget to export a 'main' function?\n");
    language.rewrite(&code, Some("load"));
    let errors = refused("Failed to load module: ");
    assert!(errors.contains("The database is gone.") && errors.contains(entrypoint), "{errors}");
    good();
}

/// Section 12.8, up to the point where the process ends.
pub fn finishes_what_runs(subject: &Subject<'_>, terminate: impl FnOnce()) {
    let url = subject.neighbour.held();
    let mut conn =
        subject.request("GET", "/?name=last").header("x-action", "held").header("x-url", &url).open();
    subject.neighbour.until_held(1);
    terminate();
    eventually("it stops", || {
        // Docker's own proxy still accepts.
        let log = subject.server.log();
        log.contains("shutting down").then_some(())
    });
    subject.neighbour.release();
    let reply = conn.reply("GET");
    assert_eq!((reply.status, reply.text().as_str()), (200, "last"));
    let logs = format!("log before last\n{NATIVE}native before last\nnative after last\n");
    assert_eq!(subject.files_of(id(&reply)), (logs, "error after last\n".to_owned()));
}
