//! Log files in a folder that a hostile guest owns.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::logs::{MOST, log_id, url_decode};
use super::*;

/// A v5 guest that names this log id, and its folder.
async fn naming(id: &str) -> (Target, TempDir) {
    let folder = TempDir::new().unwrap();
    let bytes = format!(
        "HTTP/1.1 200 OK\r\nx-open-runtimes-log-id: {id}\r\nx-open-runtimes-log-id: other\r\n\
         content-length: 2\r\n\r\nok"
    );
    let target = Target { logs: Some(LogFolder::new(folder.path())), ..answering(bytes).await };
    (target, folder)
}

async fn lines(target: &Target) -> (Vec<u8>, Vec<u8>) {
    let answer = Client::default().send(target, get("/")).await.unwrap();
    assert_eq!(whole(answer.body).await.unwrap(), b"ok");
    let (logs, errors) = answer.lines.await;
    (logs.into(), errors.into())
}

fn left(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn both_files_are_read_and_deleted() {
    let (target, folder) = naming("my%2Did").await;
    fs::write(folder.path().join("my-id_logs.log"), "a\nb\n").unwrap();
    fs::write(folder.path().join("my-id_errors.log"), "e\n").unwrap();
    fs::write(folder.path().join("other_logs.log"), "of another request").unwrap();
    assert_eq!(lines(&target).await, (b"a\nb\n".to_vec(), b"e\n".to_vec()));
    assert_eq!(left(folder.path()), ["other_logs.log"]);
    assert_eq!(lines(&target).await, (vec![], vec![]), "missing files are empty");
}

#[tokio::test]
async fn files_are_also_deleted_when_nobody_reads_them() {
    let (target, folder) = naming("i").await;
    let fill = || {
        fs::write(folder.path().join("i_logs.log"), "a").unwrap();
        fs::write(folder.path().join("i_errors.log"), "b").unwrap();
    };
    fill();
    drop(Client::default().send(&target, get("/")).await.unwrap());
    assert!(left(folder.path()).is_empty());

    fill();
    let answer = Client::default().send(&target, get("/")).await.unwrap();
    drop(answer.body);
    drop(answer.lines);
    assert!(left(folder.path()).is_empty());

    fill();
    let unwanted = Outgoing { logging: false, ..get("/") };
    let (logs, errors) = Client::default().send(&target, unwanted).await.unwrap().lines.await;
    assert!(logs.is_empty() && errors.is_empty() && left(folder.path()).is_empty());

    // Only begun: the thread that reads goes on and deletes.
    fill();
    let mut answer = Client::default().send(&target, get("/")).await.unwrap();
    let _ = futures_util::poll!(&mut answer.lines);
    drop(answer);
    while !left(folder.path()).is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_id_cannot_leave_the_folder() {
    for id in ["../x", "%2e%2e", "%2e%2e%2fx", "..", ".x", "a/b", "a%00b", "", "a+b", "/etc/x", "%2E%2E%5Cx"]
    {
        let (mut target, folder) = naming(id).await;
        let inner = folder.path().join("inner");
        fs::create_dir_all(inner.join("a")).unwrap();
        target.logs = Some(LogFolder::new(&inner));
        let files = [
            folder.path().join("x_logs.log"),
            inner.join("a/b_logs.log"),
            inner.join("_logs.log"),
            inner.join(".x_logs.log"),
            inner.join("a b_logs.log"),
        ];
        for file in &files {
            fs::write(file, "not yours").unwrap();
        }
        assert_eq!(lines(&target).await, (vec![], vec![]), "{id}");
        assert!(files.iter().all(|file| file.exists()), "{id}");
    }
}

#[tokio::test]
async fn what_is_no_file_is_neither_followed_nor_waited_for() {
    let outside = TempDir::new().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();

    let (target, folder) = naming("i").await;
    let (logs, errors) = (folder.path().join("i_logs.log"), folder.path().join("i_errors.log"));
    symlink(&secret, &logs).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &errors, rustix::fs::Mode::RWXU).unwrap();
    assert_eq!(lines(&target).await, (vec![], vec![]));
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
    assert!(left(folder.path()).is_empty(), "the names are gone, what they stood for is not");

    // A fifo with a writer, which would be a file without an end, and a directory.
    rustix::fs::mkfifoat(rustix::fs::CWD, &logs, rustix::fs::Mode::RWXU).unwrap();
    let mut fifo = File::options().read(true).write(true).open(&logs).unwrap();
    std::io::Write::write_all(&mut fifo, b"from the fifo").unwrap();
    fs::create_dir(&errors).unwrap();
    assert_eq!(lines(&target).await, (vec![], vec![]));
    assert_eq!(left(folder.path()), ["i_errors.log"], "a directory goes with the whole folder");

    let socket = std::os::unix::net::UnixListener::bind(&logs).unwrap();
    assert_eq!(lines(&target).await, (vec![], vec![]));
    drop(socket);
}

#[tokio::test]
async fn a_folder_that_is_a_symlink_or_gone_is_not_used() {
    let (mut target, folder) = naming("i").await;
    let real = folder.path().join("real");
    fs::create_dir(&real).unwrap();
    fs::write(real.join("i_logs.log"), "a").unwrap();
    let link = folder.path().join("link");
    symlink(&real, &link).unwrap();
    target.logs = Some(LogFolder::new(&link));
    assert_eq!(lines(&target).await, (vec![], vec![]));
    assert_eq!(left(&real), ["i_logs.log"]);
    target.logs = Some(LogFolder::new(&folder.path().join("gone")));
    assert_eq!(lines(&target).await, (vec![], vec![]));
    target.logs = None;
    assert_eq!(lines(&target).await, (vec![], vec![]));
}

#[tokio::test]
async fn files_are_cut_one_above_the_bound() {
    let (target, folder) = naming("i").await;
    let most = usize::try_from(MOST).unwrap();
    for (length, cut) in [(most, false), (most + 1, true), (6 << 20, true), (1 << 30, true)] {
        for name in ["i_logs.log", "i_errors.log"] {
            let file = File::create(folder.path().join(name)).unwrap();
            // Sparse where it is long.
            file.set_len(length as u64).unwrap();
        }
        let (logs, errors) = lines(&target).await;
        for (bytes, note) in [
            (logs, "\nLog file has been truncated to 5.00MB."),
            (errors, "\nError file has been truncated to 5.00MB."),
        ] {
            assert!(bytes[..most].iter().all(|byte| *byte == 0));
            assert_eq!(&bytes[most..], if cut { note.as_bytes() } else { b"" }, "{length}");
        }
        assert!(left(folder.path()).is_empty());
    }
}

#[test]
fn ids_as_long_as_allowed() {
    assert!(log_id("a".repeat(128).as_bytes()).is_some());
    assert!(log_id("a".repeat(129).as_bytes()).is_none());
    assert_eq!(log_id(b"A.b-c_9").unwrap(), "A.b-c_9");
    assert!(log_id(b"\xff").is_none() && log_id(b"%ff").is_none() && log_id("ä".as_bytes()).is_none());
    assert!(log_id(b"a%2").is_none() && log_id(b"%").is_none(), "a broken escape stays, and does not fit");
}

proptest! {
    #[test]
    fn an_id_is_always_one_plain_file_name(header in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Some(id) = log_id(&header) {
            prop_assert!(!id.is_empty() && id.len() <= 128 && !id.starts_with('.'));
            prop_assert!(!id.contains(['/', '\\', '\0', ' ']));
            prop_assert_eq!(Path::new(&id).components().count(), 1);
        }
    }

    #[test]
    fn what_was_encoded_is_decoded(text in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut encoded = String::new();
        for byte in &text {
            write!(encoded, "%{byte:02x}").unwrap();
        }
        prop_assert_eq!(&url_decode(encoded.as_bytes()), &text);
        prop_assert!(url_decode(&text).len() <= text.len());
    }
}
