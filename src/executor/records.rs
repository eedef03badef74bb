//! What recent executions wrote, for `executor invoke` and for operators. Bounded; only executions with lines are kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::execution::LogLine;
use crate::link::Logs;

/// Executions kept.
const MAX_RECORDS: usize = 256;
/// Bytes of lines kept, as they were when their execution answered.
const MAX_BYTES: usize = 8 << 20;

/// The lines of one execution.
#[derive(Debug, serde::Serialize)]
pub struct Record {
    /// The function's name.
    pub function: Arc<str>,
    /// The request's id.
    pub request: Arc<str>,
    /// What it wrote, in order.
    pub lines: Vec<LogLine>,
}

struct Kept {
    function: Arc<str>,
    request: Arc<str>,
    logs: Logs,
    bytes: usize,
}

#[derive(Default)]
struct Shelf {
    all: VecDeque<Kept>,
    bytes: usize,
}

#[derive(Default)]
pub(super) struct Records(Mutex<Shelf>);

impl Records {
    pub(super) fn push(&self, function: &Arc<str>, request: &Arc<str>, logs: Logs) {
        let bytes = logs.bytes();
        let kept = Kept { function: Arc::clone(function), request: Arc::clone(request), logs, bytes };
        let mut shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.bytes += bytes;
        shelf.all.push_back(kept);
        while shelf.all.len() > MAX_RECORDS || (shelf.bytes > MAX_BYTES && shelf.all.len() > 1) {
            let gone = shelf.all.pop_front();
            shelf.bytes -= gone.map_or(0, |kept| kept.bytes);
        }
    }

    pub(super) fn get(&self, request: &str) -> Option<Record> {
        let shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = shelf.all.iter().rev().find(|kept| &*kept.request == request)?;
        let (function, request, logs) =
            (Arc::clone(&kept.function), Arc::clone(&kept.request), kept.logs.clone());
        drop(shelf);
        Some(Record { function, request, lines: logs.lines() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::Level;

    fn logs(bytes: usize) -> Logs {
        let logs = Logs::default();
        (0..bytes / 1000).for_each(|_| logs.push(LogLine { level: Level::Log, text: "x".repeat(1000) }));
        logs
    }

    #[test]
    fn bounds_on_number_and_size() {
        let records = Records::default();
        let push = |n: usize, size| records.push(&"f".into(), &n.to_string().into(), logs(size));
        (0..=MAX_RECORDS).for_each(|n| push(n, 0));
        assert!(records.get("0").is_none() && records.get("1").is_some());
        (1000..1020).for_each(|n| push(n, 900_000));
        assert!(records.get("1019").is_some() && records.get("1000").is_none());
        assert!(records.0.lock().unwrap().bytes <= MAX_BYTES);
    }
}
