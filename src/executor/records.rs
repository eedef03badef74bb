//! What recent executions wrote, for `executor invoke` and for operators. Bounded; only executions with lines are kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::execution::LogLine;
use crate::link::Logs;

/// Executions kept.
const MAX_RECORDS: usize = 256;

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

/// Function, request id, lines.
type Kept = (Arc<str>, Arc<str>, Logs);

#[derive(Default)]
pub(super) struct Records(Mutex<VecDeque<Kept>>);

impl Records {
    pub(super) fn push(&self, function: &Arc<str>, request: &Arc<str>, logs: Logs) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == MAX_RECORDS {
            all.pop_front();
        }
        all.push_back((Arc::clone(function), Arc::clone(request), logs));
    }

    pub(super) fn get(&self, request: &str) -> Option<Record> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (function, request, logs) = all.iter().rev().find(|(_, id, _)| &**id == request)?.clone();
        drop(all);
        Some(Record { function, request, lines: logs.lines() })
    }
}
