//! What a build wrote: recorded with times, bounded, and followed live.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;

use super::types::OutputEntry;
use crate::units::timestamp;

/// Bytes that are recorded.
pub(super) const MAX_OUTPUT: usize = 1_000_000;
/// The wording is part of the API, the number in it is not ours.
const TRUNCATED: &str = "Logs truncated due to size exceeding 5.00MB.";
/// how long the end of a build waits for those who follow it.
const FOLLOWERS: Duration = Duration::from_secs(2);

/// See the module. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Output(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    book: Mutex<Book>,
    /// How many entries there are, and whether no more will come.
    state: watch::Sender<(usize, bool)>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { book: Mutex::default(), state: watch::Sender::new((0, false)) }
    }
}

#[derive(Debug, Default)]
struct Book {
    /// In front of the entries, and not for followers, who may be past the front.
    warnings: Vec<OutputEntry>,
    entries: Vec<OutputEntry>,
    bytes: usize,
    full: bool,
}

impl Output {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what was written just now; what is above the bound is dropped and one last entry says so.
    pub(super) fn push(&self, content: &Bytes) {
        if content.is_empty() {
            return;
        }
        let mut book = self.book();
        if book.full {
            return;
        }
        // The clock may be set back; the order may not.
        let at = book.entries.last().map_or(SystemTime::UNIX_EPOCH, |last| last.at).max(SystemTime::now());
        let room = MAX_OUTPUT - book.bytes;
        let fits = content.slice(..content.len().min(room));
        book.bytes += fits.len();
        let above = content.len() > room;
        if !fits.is_empty() {
            book.entries.push(OutputEntry { at, content: fits });
        }
        if above {
            book.full = true;
            book.entries.push(OutputEntry { at, content: Bytes::from_static(TRUNCATED.as_bytes()) });
        }
        let count = book.entries.len();
        drop(book);
        self.0.state.send_modify(|state| state.0 = count);
    }

    /// Puts an entry in front of all that the command wrote.
    pub(super) fn warn(&self, text: String) {
        let mut book = self.book();
        let at = book.entries.first().map_or_else(SystemTime::now, |first| first.at);
        book.warnings.push(OutputEntry { at, content: text.into() });
    }

    /// Nothing more will come: followers end.
    pub(super) fn close(&self) {
        self.0.state.send_modify(|state| state.1 = true);
    }

    /// Waits until every follower has had all of it, at most 2 s. After [`Output::close`].
    pub(super) async fn drained(&self) {
        let _ = tokio::time::timeout(FOLLOWERS, self.0.state.closed()).await;
    }

    /// Everything so far.
    pub(super) fn entries(&self) -> Vec<OutputEntry> {
        let book = self.book();
        book.warnings.iter().chain(&book.entries).cloned().collect()
    }

    /// All bytes so far, as one text.
    pub(super) fn text(&self) -> Vec<u8> {
        self.book().entries.iter().flat_map(|entry| entry.content.iter().copied()).collect()
    }

    /// From the beginning, then as it comes.
    pub(super) fn follow(&self) -> Follower {
        Follower { output: Arc::downgrade(&self.0), state: self.0.state.subscribe(), next: 0 }
    }
}

/// Reads an output while it is written.
pub(super) struct Follower {
    output: std::sync::Weak<Inner>,
    state: watch::Receiver<(usize, bool)>,
    next: usize,
}

impl Follower {
    /// The next entry as a line of the log stream; none: that was all. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let next = self.next;
        let _ = self.state.wait_for(|(count, closed)| *count > next || *closed).await;
        let output = Output(self.output.upgrade()?);
        let book = output.book();
        let entry = book.entries.get(next)?;
        self.next += 1;
        Some(line(entry))
    }
}

/// `<time> <content>\n`, with line feeds in the content as `\n` of two characters.
fn line(entry: &OutputEntry) -> Bytes {
    let content = String::from_utf8_lossy(&entry.content).replace('\n', "\\n");
    format!("{} {content}\n", timestamp(entry.at)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r_69_bound_and_one_above() {
        let output = Output::default();
        output.push(&Bytes::from(vec![b'x'; MAX_OUTPUT - 1]));
        output.push(&Bytes::from_static(b"y"));
        assert_eq!((output.entries().len(), output.text().len()), (2, MAX_OUTPUT));
        output.push(&Bytes::from_static(b"z"));
        output.push(&Bytes::from_static(b"z"));
        let entries = output.entries();
        assert_eq!((entries.len(), &entries[2].content[..]), (3, TRUNCATED.as_bytes()));
        assert!(entries.is_sorted_by_key(|entry| entry.at));
    }

    #[tokio::test]
    async fn r_141_followers_get_all_of_it_and_its_end() {
        let output = Output::default();
        output.push(&Bytes::from_static(b"a\nb"));
        let mut early = output.follow();
        let line = early.next().await.unwrap();
        assert!(line.ends_with(b"+00:00 a\\nb\n"), "{line:?}");
        let (next, ()) = tokio::join!(early.next(), async { output.push(&Bytes::from_static(b"c")) });
        assert!(next.unwrap().ends_with(b" c\n"));
        output.close();
        assert_eq!(early.next().await, None);
        let mut late = output.follow();
        assert!(
            late.next().await.unwrap().ends_with(b"b\n") && late.next().await.unwrap().ends_with(b" c\n")
        );
        assert_eq!(late.next().await, None);
        drop((early, late));
        tokio::time::timeout(Duration::from_millis(100), output.drained()).await.expect("nobody follows");
    }
}
