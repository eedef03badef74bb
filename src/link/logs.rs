//! The lines that one call writes, bounded: what is above the bound is counted, not kept.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::execution::{Level, LogLine};

/// Bytes of log lines kept per call; later lines are counted, not kept.
pub const MAX_CALL_LOG: usize = 1 << 20;

/// The lines of one call. A stream may still add some after its reply.
#[derive(Debug, Clone, Default)]
pub struct Logs(Arc<Mutex<LogBook>>);

#[derive(Debug, Default)]
struct LogBook {
    lines: Vec<LogLine>,
    bytes: usize,
    dropped: usize,
}

impl Logs {
    fn lock(&self) -> MutexGuard<'_, LogBook> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines so far; the last one says so when some were dropped.
    pub fn lines(&self) -> Vec<LogLine> {
        let book = self.lock();
        let mut lines = book.lines.clone();
        if book.dropped > 0 {
            let text = format!("{} more lines were dropped: a call keeps 1 MiB of log.", book.dropped);
            lines.push(LogLine { level: Level::Error, text });
        }
        lines
    }

    /// A copy that gets no more lines.
    #[must_use]
    pub fn so_far(&self) -> Self {
        let book = self.lock();
        let LogBook { lines, bytes, dropped } = &*book;
        Self(Arc::new(Mutex::new(LogBook { lines: lines.clone(), bytes: *bytes, dropped: *dropped })))
    }

    /// What the lines take.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Adds a line, or counts it when the book is full.
    pub fn push(&self, line: LogLine) {
        let mut book = self.lock();
        // Each line costs its entry too, so that a million empty ones are bounded as well.
        let cost = line.text.len() + size_of::<LogLine>();
        if book.bytes + cost > MAX_CALL_LOG {
            book.dropped += 1;
        } else {
            book.bytes += cost;
            book.lines.push(line);
        }
    }
}
