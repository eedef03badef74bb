//! What a build writes: whole lines with the time of each, for those who follow it now and for a file.
//!
//! Bounded: of what a build writes, the first [`MOST_BYTES`] in at most so many lines are kept, then one line says that
//! more came; the last lines are kept apart, because they say why it failed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;

/// Bytes of lines kept, inclusive.
pub const MOST_BYTES: usize = 1_000_000;
/// Bytes of one line; what a tool writes without ever ending the line is cut there.
const MOST_LINE: usize = 4000;
/// Lines kept: an empty one, too, takes a hundred bytes of memory, and many logs are kept.
const MOST_LINES: usize = 20_000;
/// Lines that go into the message of a failed build.
const TAIL: usize = 12;

/// One line and when it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// UTC, as RFC 3339 with milliseconds.
    pub at: Arc<str>,
    /// Without its end.
    pub line: Arc<str>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Well; with the version that serves now if it was a deployment.
    Done {
        /// The version.
        version: Option<u64>,
    },
    /// Badly.
    Failed {
        /// For programs.
        kind: &'static str,
        /// For people.
        message: String,
    },
}

#[derive(Default)]
struct Inner {
    lines: Vec<Line>,
    bytes: usize,
    /// Bytes that were not kept.
    dropped: usize,
    /// A line that has not ended.
    open: Vec<u8>,
    tail: VecDeque<Arc<str>>,
    file: Option<File>,
    end: Option<End>,
}

/// See the module.
pub struct BuildLog {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

impl BuildLog {
    /// An empty log that is also written to `file`, where that can be made.
    pub fn new(file: Option<&Path>) -> Self {
        let file = file.and_then(|path| {
            let made = File::create_new(path);
            made.map_err(|error| tracing::warn!(file = %path.display(), "no log of this build: {error}")).ok()
        });
        Self { inner: Mutex::new(Inner { file, ..Inner::default() }), changed: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a piece of output.
    pub fn push(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let mut piece = piece;
            while !piece.is_empty() {
                let (now, later) = piece.split_at(piece.len().min(MOST_LINE - inner.open.len()));
                inner.open.extend_from_slice(now);
                piece = later;
                if now.ends_with(b"\n") || inner.open.len() == MOST_LINE {
                    inner.end_line();
                }
            }
        }
        drop(inner);
        self.changed.send_replace(());
    }

    /// A line of ours.
    pub fn say(&self, text: &str) {
        let mut inner = self.lock();
        inner.end_line();
        text.lines().for_each(|line| inner.line(line));
        drop(inner);
        self.changed.send_replace(());
    }

    /// Nothing follows; only the first end counts.
    pub fn end(&self, end: End) {
        let mut inner = self.lock();
        inner.end_line();
        if inner.dropped > 0 && inner.end.is_none() {
            let text = format!("{} more bytes of output were not kept", inner.dropped);
            inner.keep(text.into());
        }
        inner.end.get_or_insert(end);
        drop(inner);
        self.changed.send_replace(());
    }

    /// The last lines, for a message.
    pub fn tail(&self) -> Vec<Arc<str>> {
        let mut inner = self.lock();
        inner.end_line();
        inner.tail.iter().cloned().collect()
    }

    /// The lines from number `from` on, and how it ended if it has.
    pub fn lines(&self, from: usize) -> (Vec<Line>, Option<End>) {
        let inner = self.lock();
        (inner.lines.get(from..).unwrap_or_default().to_vec(), inner.end.clone())
    }

    /// As [`BuildLog::lines`], once there is a new line or the end. Cancel safe.
    pub async fn follow(&self, from: usize) -> (Vec<Line>, Option<End>) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let (lines, end) = self.lines(from);
            if !lines.is_empty() || end.is_some() || changed.changed().await.is_err() {
                return (lines, end);
            }
        }
    }
}

impl Inner {
    fn end_line(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let open = std::mem::take(&mut self.open);
        let text = String::from_utf8_lossy(&open);
        // A progress bar redraws its line; only its last picture counts.
        let text = text.trim_end_matches(['\n', '\r']);
        self.line(text.rsplit('\r').next().unwrap_or(text));
    }

    fn line(&mut self, text: &str) {
        let text: Arc<str> = text.into();
        if !text.trim().is_empty() {
            if self.tail.len() == TAIL {
                self.tail.pop_front();
            }
            self.tail.push_back(Arc::clone(&text));
        }
        let size = text.len() + 1;
        if self.dropped > 0 || self.bytes + size > MOST_BYTES || self.lines.len() >= MOST_LINES {
            self.dropped += size;
            return;
        }
        self.bytes += size;
        self.keep(text);
    }

    fn keep(&mut self, text: Arc<str>) {
        let line = Line { at: now().into(), line: text };
        // A short line into the page cache; not worth another thread.
        if let Some(file) = &mut self.file
            && writeln!(file, "{} {}", line.at, line.line).is_err()
        {
            self.file = None;
        }
        self.lines.push(line);
    }
}

/// The time, UTC, as RFC 3339 with milliseconds.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    written(since.as_secs(), since.subsec_millis())
}

fn written(seconds: u64, millis: u32) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, in eras of 400: the leap day is then the last of its year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(log: &BuildLog) -> Vec<String> {
        log.lines(0).0.iter().map(|line| line.line.to_string()).collect()
    }

    #[test]
    fn output_becomes_lines_with_times() {
        let log = BuildLog::new(None);
        for piece in ["one\ntw", "o\n\n10%\r 50%\r100%\nlas", "t"] {
            log.push(piece.as_bytes());
        }
        log.say("ours");
        assert_eq!(texts(&log), ["one", "two", "", "100%", "last", "ours"]);
        assert!(log.lines(0).0.iter().all(|l| l.at.len() == 24 && l.at.ends_with('Z')));
    }

    #[test]
    fn kept_to_the_bound_and_not_above() {
        let line = format!("{}\n", "x".repeat(999));
        let log = BuildLog::new(None);
        (0..1000).for_each(|_| log.push(line.as_bytes()));
        log.end(End::Done { version: None });
        assert_eq!(texts(&log).len(), 1000, "exactly at the bound");
        let log = BuildLog::new(None);
        (0..1000).for_each(|_| log.push(line.as_bytes()));
        log.push(b"why it failed\n");
        log.end(End::Done { version: None });
        let all = texts(&log);
        assert_eq!((all.len(), &*all[1000]), (1001, "14 more bytes of output were not kept"));
        assert_eq!(&**log.tail().last().unwrap(), "why it failed");
    }

    #[test]
    fn as_many_lines_are_kept_as_allowed_and_not_one_more() {
        let log = BuildLog::new(None);
        log.push(&b"\n".repeat(MOST_LINES));
        assert_eq!(texts(&log).len(), MOST_LINES);
        log.push(b"one\n\n");
        log.end(End::Done { version: None });
        let all = texts(&log);
        assert_eq!((all.len(), &*all[MOST_LINES]), (MOST_LINES + 1, "5 more bytes of output were not kept"));
        assert_eq!(log.tail().iter().map(|line| &**line).collect::<Vec<_>>(), ["one"]);
    }

    #[test]
    fn a_line_that_never_ends_is_cut() {
        let log = BuildLog::new(None);
        log.push("y".repeat(MOST_LINE + 1).as_bytes());
        log.end(End::Done { version: None });
        assert_eq!(texts(&log).iter().map(String::len).collect::<Vec<_>>(), [MOST_LINE, 1]);
    }

    #[tokio::test]
    async fn it_can_be_followed() {
        let log = Arc::new(BuildLog::new(None));
        log.push(b"a\n");
        assert_eq!(log.follow(0).await.0.len(), 1);
        let (more, ()) = tokio::join!(log.follow(1), async { log.push(b"b\n") });
        assert_eq!((&*more.0[0].line, more.1), ("b", None));
        let (more, ()) = tokio::join!(log.follow(2), async { log.end(End::Done { version: Some(3) }) });
        assert_eq!(more, (vec![], Some(End::Done { version: Some(3) })));
    }

    #[test]
    fn times() {
        assert_eq!(written(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(written(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(written(1_735_689_599, 999), "2024-12-31T23:59:59.999Z");
        assert_eq!(written(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
    }
}
