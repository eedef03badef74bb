//! Where the lines of a request go (section 10 of the runtime protocol): two files, or the head of its answer.
//!
//! The files are written once, when the request is over, because the host reads them only then; a request whose answer
//! is never taken has its files all the same, with the lines so far. Write failures are ignored, as the protocol says:
//! an answer is worth more. A host of ours asks for the lines in the head ([`LOG_TRANSPORT`]), which costs neither side
//! a file; where they do not fit there, or are not known yet, it gets files like any other host.
//!
//! Files are the host's to delete. Where no host does, the files of the last [`KEPT`] ids stay, and one id's file begins
//! anew when it has [`MOST`] bytes.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use rustix::fs::OFlags;
use uuid::Uuid;

use crate::execution::Level;
use crate::headers::{ERRORS, LINES_IN_HEAD, LOG_TRANSPORT, LOGS};
use crate::link::Logs;
use crate::task::Lane;

const NATIVE: &str = "Native logs detected. Use context.log() or context.error() for better experience.\n";

/// Ids whose files stay.
const KEPT: usize = 10_000;
/// Bytes after which the file of an id that comes again is begun anew; more a host would not read.
const MOST: u64 = 5 << 20;
/// Bytes of the head's fields up to which lines are put there, far below what our own host takes.
const MOST_HEAD: usize = 8 << 10;
/// What the head does not carry as it is, or the host reads as something else.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'+');

const SUFFIXES: [&str; 2] = ["_logs.log", "_errors.log"];

/// The folder of the log files. One thread writes: two would only wait for each other at the folder's lock.
pub(super) struct Journal {
    folder: PathBuf,
    development: bool,
    lane: Lane,
    written: Mutex<Written>,
}

/// The ids with files, the oldest first; a number tells whether an id came again later.
#[derive(Default)]
struct Written {
    order: VecDeque<(u64, Arc<str>)>,
    last: HashMap<Arc<str>, u64>,
    count: u64,
}

impl Journal {
    /// `development`: ids that the host does not give are `dev`.
    pub(super) fn new(folder: PathBuf, development: bool) -> Self {
        Self { folder, development, lane: Lane::default(), written: Mutex::default() }
    }

    fn write(&self, id: &str, texts: [&str; 2]) {
        for (suffix, text) in SUFFIXES.into_iter().zip(texts) {
            let path = self.path(id, suffix);
            let result = open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
            if let Err(error) = result {
                tracing::debug!(file = %path.display(), "a log file cannot be written: {error}");
            }
        }
        if let Some(old) = self.written.lock().unwrap_or_else(PoisonError::into_inner).add(id) {
            for suffix in SUFFIXES {
                // Usually the host was here before.
                let _ = std::fs::remove_file(self.path(&old, suffix));
            }
        }
    }

    fn path(&self, id: &str, suffix: &str) -> PathBuf {
        self.folder.join([id, suffix].concat())
    }
}

impl Written {
    /// Gives the id whose files are too many now.
    fn add(&mut self, id: &str) -> Option<Arc<str>> {
        let id: Arc<str> = id.into();
        self.count += 1;
        self.order.push_back((self.count, Arc::clone(&id)));
        self.last.insert(id, self.count);
        if self.order.len() <= KEPT {
            return None;
        }
        let (count, old) = self.order.pop_front()?;
        // It came again since.
        if self.last.get(&old) != Some(&count) {
            return None;
        }
        self.last.remove(&old);
        Some(old)
    }
}

/// Removes what earlier runs left in a folder that is nobody else's.
pub(crate) fn clean(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|name| SUFFIXES.iter().any(|end| name.ends_with(end))) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Where one request's lines go. Dropping it writes the lines so far, unless they are in the head.
pub(super) struct Sink {
    journal: Arc<Journal>,
    /// None: logging is off, or all is done.
    id: Option<String>,
    /// The host takes lines in the head.
    head: bool,
    logs: Option<Logs>,
    error: Option<String>,
}

impl Sink {
    /// Takes the request's own fields.
    pub(super) fn new(journal: &Arc<Journal>, logging: &[u8], id: &[u8], transport: &[u8]) -> Self {
        let id = match std::str::from_utf8(id) {
            _ if !logging.is_empty() && logging != b"enabled" => None,
            Ok(id) if is_log_id(id) => Some(id.to_owned()),
            _ if journal.development => Some("dev".to_owned()),
            _ => Some(generate()),
        };
        let head = transport == LINES_IN_HEAD.as_bytes();
        Self { journal: Arc::clone(journal), id, head, logs: None, error: None }
    }

    /// The value of the answer's log id header.
    pub(super) fn header(&self) -> HeaderValue {
        let id = self.id.as_deref().unwrap_or_default();
        HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// These lines are the request's, also those that are still to come.
    pub(super) fn hold(&mut self, logs: Option<Logs>) {
        self.logs = logs;
    }

    /// Nothing more comes but `error`, if there is one. Puts the lines in the head where that is asked for and has
    /// room; else returns when the files are complete.
    pub(super) async fn finish(mut self, error: Option<String>, head: &mut HeaderMap) {
        self.error = error;
        if self.id.is_some() && !(self.head && self.put(head)) {
            self.close().await;
        }
    }

    /// As [`Sink::finish`], when the head has left already.
    pub(super) async fn close(self) {
        if self.id.is_some() {
            let lane = self.journal.lane.clone();
            // Moved whole: dropped anywhere, it writes.
            lane.run(move || drop(self)).await;
        }
    }

    fn put(&mut self, head: &mut HeaderMap) -> bool {
        let texts = self.texts();
        let fields: usize = head.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if fields + texts.iter().map(String::len).sum::<usize>() > MOST_HEAD {
            return false;
        }
        let encoded = texts.map(|text| percent_encode(text.as_bytes(), ENCODED).to_string());
        if fields + encoded.iter().map(String::len).sum::<usize>() > MOST_HEAD {
            return false;
        }
        for (name, text) in [LOGS, ERRORS].into_iter().zip(encoded) {
            if !text.is_empty() {
                head.insert(name, HeaderValue::try_from(text).expect("it is encoded"));
            }
        }
        head.insert(LOG_TRANSPORT, HeaderValue::from_static(LINES_IN_HEAD));
        self.id = None;
        true
    }

    /// For the two files.
    fn texts(&self) -> [String; 2] {
        let (mut out, mut err) = (String::new(), String::new());
        let mut noticed = false;
        for line in self.logs.as_ref().map(Logs::lines).unwrap_or_default() {
            if line.level == Level::Native && !noticed {
                noticed = true;
                out.push_str(NATIVE);
            }
            let to = if line.level == Level::Error { &mut err } else { &mut out };
            to.push_str(&line.text);
            to.push('\n');
        }
        if let Some(error) = &self.error {
            err.push_str(error);
            err.push('\n');
        }
        [out, err]
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let [out, err] = self.texts();
            self.journal.write(&id, [&out, &err]);
        }
    }
}

/// A link in its place would let a function write elsewhere with our rights.
fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    options.append(true).create(true).mode(0o644).custom_flags(flags);
    let file = match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            options.open(path)
        }
        other => other,
    }?;
    if file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() >= MOST) {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Section 10.4: nothing that could leave the folder.
fn is_log_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && !id.starts_with('.')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// 20 hexadecimal characters: 8 of the seconds, 5 of their fraction, 7 random.
fn generate() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let random = Uuid::new_v4().as_u128() & 0x0fff_ffff;
    format!("{:08x}{:05x}{random:07x}", now.as_secs() & 0xffff_ffff, now.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::LogLine;

    fn journal(folder: &Path, development: bool) -> Arc<Journal> {
        Arc::new(Journal::new(folder.into(), development))
    }

    fn id(development: bool, logging: &str, id: &str) -> String {
        let journal = journal(Path::new("/l"), development);
        let mut sink = Sink::new(&journal, logging.as_bytes(), id.as_bytes(), b"");
        let header = sink.header().to_str().unwrap().to_owned();
        sink.id = None;
        header
    }

    fn sink(journal: &Arc<Journal>, id: &str) -> Sink {
        Sink::new(journal, b"", id.as_bytes(), b"")
    }

    fn logs(lines: &[(Level, &str)]) -> Logs {
        let logs = Logs::default();
        for (level, text) in lines {
            logs.push(LogLine { level: *level, text: (*text).into() });
        }
        logs
    }

    fn names(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn ids() {
        assert_eq!(id(false, "", "mine.1_-"), "mine.1_-");
        assert_eq!(id(true, "enabled", "mine"), "mine");
        assert_eq!(id(true, "", ""), "dev");
        assert_eq!(id(false, "disabled", "mine"), "");
        let long = "x".repeat(129);
        for bad in ["", "../x", ".x", "a/b", "a b", "ä", &long] {
            let id = id(false, "", bad);
            assert!(id.len() == 20 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{bad}: {id}");
        }
        assert_eq!(id(false, "", &long[..128]), long[..128]);
    }

    #[tokio::test]
    async fn lines_go_to_their_files_with_one_notice() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = sink(&journal(dir.path(), false), "one");
        sink.hold(Some(logs(&[
            (Level::Log, "a"),
            (Level::Native, "n"),
            (Level::Error, "e"),
            (Level::Native, "m"),
        ])));
        sink.finish(Some("why".into()), &mut HeaderMap::new()).await;
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("one_logs.log"), format!("a\n{NATIVE}n\nm\n"));
        assert_eq!(read("one_errors.log"), "e\nwhy\n");
    }

    #[tokio::test]
    async fn files_are_made_even_if_nothing_is_written_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep/logs");
        let journal = journal(&folder, false);
        sink(&journal, "one").finish(None, &mut HeaderMap::new()).await;
        drop(sink(&journal, "two"));
        for name in ["one_logs.log", "one_errors.log", "two_logs.log", "two_errors.log"] {
            assert_eq!(std::fs::read(folder.join(name)).unwrap(), b"", "{name}");
        }
        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&target, folder.join("three_errors.log")).unwrap();
        sink(&journal, "three").finish(Some("x".into()), &mut HeaderMap::new()).await;
        assert!(!target.exists());
    }

    #[tokio::test]
    async fn who_leaves_loses_no_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = sink(&journal(dir.path(), false), "one");
        let lines = logs(&[(Level::Log, "first")]);
        sink.hold(Some(lines.clone()));
        lines.push(LogLine { level: Level::Log, text: "second".into() });
        drop(sink);
        assert_eq!(std::fs::read(dir.path().join("one_logs.log")).unwrap(), b"first\nsecond\n");
    }

    #[tokio::test]
    async fn the_head_takes_lines_up_to_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path(), false);
        let sink = |text: &str| {
            let mut sink = Sink::new(&journal, b"", b"one", LINES_IN_HEAD.as_bytes());
            sink.hold(Some(logs(&[(Level::Log, text)])));
            sink
        };
        let mut head = HeaderMap::new();
        sink("a +%\u{e4}\u{7f}").finish(Some("e".into()), &mut head).await;
        assert_eq!(head[LOGS], "a%20%2B%25%C3%A4%7F%0A");
        assert_eq!(
            (&head[ERRORS], &head[LOG_TRANSPORT]),
            (&"e%0A".parse().unwrap(), &LINES_IN_HEAD.parse().unwrap())
        );
        let mut head = HeaderMap::new();
        let mut nothing = sink("");
        nothing.hold(None);
        nothing.finish(None, &mut head).await;
        assert_eq!(head.len(), 1, "no line is no field");
        // The field that is there, its name, and the line's end.
        let room = MOST_HEAD - "x".len() - "name".len() - "%0A".len();
        let mut head = HeaderMap::from_iter([("name".parse().unwrap(), "x".parse().unwrap())]);
        sink(&"a".repeat(room)).finish(None, &mut head).await;
        assert_eq!(head[LOGS].len(), room + "%0A".len());
        assert!(!dir.path().join("one_logs.log").exists());
        head.remove(LOGS);
        head.remove(LOG_TRANSPORT);
        sink(&"a".repeat(room + 1)).finish(None, &mut head).await;
        assert_eq!(head.len(), 1);
        assert_eq!(std::fs::read(dir.path().join("one_logs.log")).unwrap().len(), room + 2);
    }

    #[test]
    fn only_the_files_of_the_last_ids_stay() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path(), false);
        for number in 0..KEPT {
            drop(sink(&journal, &format!("i{number}")));
        }
        assert_eq!(names(dir.path()), 2 * KEPT, "at the bound all are there");
        // It comes again, so the next one that goes is the second.
        drop(sink(&journal, "i0"));
        assert_eq!(names(dir.path()), 2 * KEPT);
        drop(sink(&journal, "more"));
        assert_eq!(names(dir.path()), 2 * KEPT, "one above, and the oldest are gone");
        let there = |id: &str| SUFFIXES.map(|suffix| dir.path().join([id, suffix].concat()).exists());
        assert_eq!((there("i0"), there("i1"), there("i2")), ([true; 2], [false; 2], [true; 2]));
        clean(dir.path());
        assert_eq!(names(dir.path()), 0);
    }

    #[test]
    fn a_file_begins_anew_at_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path(), false);
        let file = dir.path().join("dev_logs.log");
        for (size, after) in [(MOST - 1, MOST + 1), (MOST, 2)] {
            File::create(&file).unwrap().set_len(size).unwrap();
            let mut sink = sink(&journal, "dev");
            sink.hold(Some(logs(&[(Level::Log, "x")])));
            drop(sink);
            assert_eq!(file.metadata().unwrap().len(), after);
        }
    }
}
