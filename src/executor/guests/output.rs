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
    /// The beginning of a character whose end has not come yet: each entry is shown as text of its own.
    begun: Bytes,
    bytes: usize,
    full: bool,
}

impl Book {
    /// Records what was written just now.
    fn record(&mut self, content: &Bytes) {
        if content.is_empty() || self.full {
            return;
        }
        // The clock may be set back; the order may not.
        let at = self.entries.last().map_or(SystemTime::UNIX_EPOCH, |last| last.at).max(SystemTime::now());
        let room = MAX_OUTPUT - self.bytes;
        let fits = content.slice(..content.len().min(room));
        self.bytes += fits.len();
        if !fits.is_empty() {
            self.entries.push(OutputEntry { at, content: fits });
        }
        if content.len() > room {
            self.full = true;
            self.entries.push(OutputEntry { at, content: Bytes::from_static(TRUNCATED.as_bytes()) });
        }
    }
}

impl Output {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what was written just now; what is above the bound is dropped and one last entry says so. A character of
    /// which only the beginning was written waits for the next piece.
    pub(super) fn push(&self, content: &Bytes) {
        self.change(|book| {
            let begun = std::mem::take(&mut book.begun);
            let mut content =
                if begun.is_empty() { content.clone() } else { Bytes::from([&begun[..], content].concat()) };
            book.begun = content.split_off(content.len() - unfinished(&content));
            book.record(&content);
        });
    }

    /// Records the beginning of a character whose end will not come.
    pub(super) fn flush(&self) {
        self.change(|book| {
            let begun = std::mem::take(&mut book.begun);
            book.record(&begun);
        });
    }

    /// Changes the book and tells the followers.
    fn change(&self, change: impl FnOnce(&mut Book)) {
        let mut book = self.book();
        change(&mut book);
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
        self.flush();
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

/// How many bytes at the end are the beginning of a character: 0 to 3.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let first = tail.iter().rposition(|byte| *byte & 0xc0 != 0x80);
    let last = first.map_or(&[][..], |first| &tail[first..]);
    // Without a length of the error, more bytes could make it right.
    if std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none()) { last.len() } else { 0 }
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

    /// What is shown of the bytes when they come in pieces that end at `cuts`.
    fn shown(bytes: &[u8], cuts: &[usize]) -> String {
        let output = Output::default();
        let mut from = 0;
        for to in cuts.iter().copied().chain([bytes.len()]) {
            output.push(&Bytes::copy_from_slice(&bytes[from..to]));
            from = to;
        }
        output.close();
        assert_eq!(output.text(), bytes, "nothing is lost or added");
        output.entries().iter().map(|entry| String::from_utf8_lossy(&entry.content).into_owned()).collect()
    }

    #[test]
    fn r_69_a_character_that_comes_in_pieces_is_whole() {
        let valid =
            ["aäb", "€", "😀", "ä€😀ä", "\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}"].map(str::as_bytes);
        // Nowhere in UTF-8, too long, a surrogate, above the last, in the middle of nothing, and without an end.
        let broken: [&[u8]; 8] = [
            b"\xff",
            b"\xc0\x80",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\x80\x80\x80\x80",
            b"\xe2\x82",
            b"\xf0\x9f\x98",
            b"a\xe2\x82\xc3\xa4\xf0\x9f",
        ];
        for bytes in valid.into_iter().chain(broken) {
            let whole = String::from_utf8_lossy(bytes);
            for first in 0..=bytes.len() {
                for second in first..=bytes.len() {
                    assert_eq!(shown(bytes, &[first, second]), whole, "{bytes:x?} at {first} and {second}");
                }
            }
            let each: Vec<_> = (1..bytes.len()).collect();
            assert_eq!(shown(bytes, &each), whole, "{bytes:x?} byte by byte");
        }
    }

    #[tokio::test]
    async fn r_141_a_character_without_an_end_comes_before_what_follows() {
        let output = Output::default();
        let mut follower = output.follow();
        output.push(&Bytes::from_static(b"x\xe2\x82"));
        assert_eq!(output.text(), b"x", "it waits");
        output.flush();
        output.push(&Bytes::from_static(b"told\n"));
        output.push(&Bytes::from_static(b"\xc3"));
        output.close();
        assert_eq!(output.text(), b"x\xe2\x82told\n\xc3");
        for wanted in ["x\n", "\u{fffd}\n", "told\\n\n", "\u{fffd}\n"] {
            let line = follower.next().await.unwrap();
            assert_eq!(std::str::from_utf8(&line).unwrap().split_once(' ').unwrap().1, wanted);
        }
        assert_eq!(follower.next().await, None);
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
