//! What the function logged, and its headers.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::answers::{assert_works, escaped, run};
use crate::common::eventually;
use crate::harness::Api;

/// R-102, bytes.
const BOUND: usize = 5_242_880;

fn api() -> Api {
    let api = Api::start();
    api.guest("a", "v5");
    api
}

fn get(api: &Api, path: &str) -> Value {
    run(api, "a", &json!({ "path": path }))
}

/// Names in the log folder.
fn left(api: &Api) -> Vec<String> {
    let items = fs::read_dir(api.folder("a").join("logs")).unwrap();
    items.map(|item| item.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn r_102_lines_come_and_their_files_go() {
    let api = api();
    let both = get(&api, "/logs?log=out%0Amore&error=e1");
    assert_eq!((&both["logs"], &both["errors"]), (&json!("out\nmore"), &json!("e1")));
    let one = get(&api, "/logs?error=only");
    assert_eq!((&one["logs"], &one["errors"]), (&json!(""), &json!("only")));
    let none = get(&api, "/logs");
    assert_eq!((&none["logs"], &none["errors"]), (&json!(""), &json!("")));
    let off = run(&api, "a", &json!({ "path": "/logs?log=secret&error=secret", "logging": false }));
    assert_eq!((&off["logs"], &off["errors"]), (&json!(""), &json!("")));
    // The runtime wrote the last ones although it was told not to; only it could know.
    assert!(left(&api).len() <= 2, "{:?}", left(&api));
    for kind in ["false", "0", "true", "1"] {
        let document = run(&api, "a", &json!({ "path": "/logs?log=l", "logging": kind }));
        let wanted = matches!(kind, "true" | "1");
        assert_eq!(document["logs"], if wanted { "l" } else { "" }, "{kind}");
    }
}

#[test]
fn r_102_bound_and_one_above() {
    let api = api();
    let at = get(&api, &format!("/logs?logs={BOUND}&errors={BOUND}"));
    for (field, letter) in [("logs", "l"), ("errors", "e")] {
        assert!(at[field] == letter.repeat(BOUND), "{field} is whole");
    }
    let above = get(&api, &format!("/logs?logs={}&errors={}", BOUND + 1, BOUND + 1));
    for (field, letter, kind) in [("logs", "l", "Log"), ("errors", "e", "Error")] {
        let expected = letter.repeat(BOUND) + "\n" + kind + " file has been truncated to 5.00MB.";
        assert!(
            above[field] == expected.as_str(),
            "{field} is cut: {}",
            above[field].as_str().unwrap().len()
        );
    }
    assert!(left(&api).is_empty(), "{:?}", left(&api));
}

#[test]
fn r_102_gigabytes_of_log_file() {
    let api = api();
    api.printed("a", "for kind in logs errors; do truncate -s 40G /mnt/logs/huge_$kind.log; done");
    let document = get(&api, "/text?id=huge");
    for field in ["logs", "errors"] {
        let text = document[field].as_str().unwrap();
        assert!(text.ends_with("file has been truncated to 5.00MB.") && text.starts_with("\0\0"), "{field}");
        assert!(text.len() < BOUND + 100);
    }
    assert!(left(&api).is_empty(), "{:?}", left(&api));
}

#[test]
fn r_102_the_id_is_url_decoded_and_the_first_counts() {
    let api = api();
    api.printed("a", "cd /mnt/logs && echo -n one > a.b-c_d_logs.log && echo -n two > second_logs.log");
    let document = get(&api, "/text?twice=1&id=a%252Eb%252dc_d");
    assert_eq!(document["logs"], "one");
    assert_eq!(left(&api), ["second_logs.log"]);
}

#[test]
fn r_102_ids_cannot_leave_the_folder() {
    let api = api();
    let folder = api.folder("a");
    fs::write(folder.join("outside_logs.log"), "outside").unwrap();
    fs::create_dir(folder.join("logs/sub")).unwrap();
    fs::write(folder.join("logs/sub/x_logs.log"), "inside a folder").unwrap();
    let absolute = folder.join("outside").to_str().unwrap().to_owned();
    for id in [
        "../outside",
        "%2e%2e%2Foutside",
        "..%2Foutside",
        "....//outside",
        "sub/x",
        "./sub/x",
        "sub%2Fx",
        &absolute,
        "%00",
        "a%00b",
        "",
        ".",
        "..",
        "~",
        &"x".repeat(10_000),
    ] {
        let path = format!("/text?id={}", escaped(id));
        if path.len() > 2048 {
            continue;
        }
        let document = get(&api, &path);
        assert_eq!((&document["logs"], &document["errors"]), (&json!(""), &json!("")), "{id}");
    }
    assert_eq!(fs::read_to_string(folder.join("outside_logs.log")).unwrap(), "outside");
    assert!(folder.join("logs/sub/x_logs.log").exists());
    fs::remove_file(folder.join("outside_logs.log")).unwrap();
}

#[test]
fn r_102_what_is_no_plain_file_is_not_read() {
    let api = api();
    let folder = api.folder("a");
    let secret = api.file("secret", "of the host");
    symlink(&secret, folder.join("logs/host_logs.log")).unwrap();
    for (path, why) in [
        ("/text?id=host", "a link to a file of the host"),
        ("/text?id=own&trick=own_logs.log:/proc/self/environ", "a link"),
        ("/text?id=pipe&fifo=pipe_logs.log", "a pipe nobody writes to"),
        ("/text?id=dir&folder=dir_logs.log", "a folder"),
        ("/text?id=loop&trick=loop_logs.log:loop_logs.log", "a link to itself"),
        ("/text?id=zero&trick=zero_errors.log:/dev/zero", "an endless device"),
    ] {
        let document = get(&api, path);
        assert_eq!((&document["logs"], &document["errors"]), (&json!(""), &json!("")), "{why}");
        assert_eq!(document["body"], "hello", "{why}");
    }
    assert_eq!(fs::read_to_string(secret).unwrap(), "of the host", "the link went, not the file");
    assert_eq!(left(&api), ["dir_logs.log"]);
    assert_works(&api, "a");
}

#[test]
fn r_102_the_log_folder_is_replaced() {
    let api = api();
    api.created("b", json!({ "runtimeEntrypoint": "guest v5" }));
    // It cannot be removed, it is a mount; but what is in it can be made unreadable.
    api.printed("b", "cd /mnt/logs && echo x > l_logs.log && chmod 000 l_logs.log . ; chmod 000 /mnt/logs");
    let document = run(&api, "b", &json!({ "path": "/text?id=l" }));
    assert_eq!(document["body"], "hello");
    assert_works(&api, "a");
    assert_eq!(api.delete("b").status, 200);
    eventually("its folder goes", || (!api.folder("b").exists()).then_some(()));
}

#[test]
fn r_103_result_headers() {
    let api = api();
    let reply = crate::answers::run_with(
        &api,
        "a",
        "/headers",
        &[("accept", "application/json"), ("x-executor-response-format", "0.11.0")],
    );
    let headers = &reply.json()["headers"];
    let expected = json!({
        "x-key": "aValue", "set-cookie": ["a=1; path=/", "b=2"], "x-empty": "",
    });
    assert_eq!(
        *headers, expected,
        "names are lower case, reserved ones and those that frame the message are gone"
    );
    let order: Vec<_> =
        ["x-key", "set-cookie", "x-empty"].iter().map(|name| reply.text().find(name)).collect();
    assert!(order.is_sorted() && order[0].is_some(), "{order:?}");
}
