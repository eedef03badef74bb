//! How busy this host is, for load balancers.

use std::sync::{Mutex, PoisonError};

/// The last look at the processors' counters.
#[derive(Default)]
pub(super) struct Usage(Mutex<Counters>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counters {
    all: u64,
    idle: u64,
}

impl Usage {
    /// Percent of all cores since the last call, or since the host's start.
    pub(super) async fn percent(&self) -> f64 {
        let text = tokio::fs::read_to_string("/proc/stat").await.unwrap_or_default();
        let now = parse(&text);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *last, now);
        busy(before, now)
    }
}

/// The first line: user, nice, system, idle, waiting for disks, and others.
fn parse(text: &str) -> Counters {
    let fields = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).unwrap_or("");
    let numbers: Vec<u64> = fields.split_whitespace().take(8).filter_map(|n| n.parse().ok()).collect();
    Counters { all: numbers.iter().sum(), idle: numbers.iter().skip(3).take(2).sum() }
}

fn busy(before: Counters, now: Counters) -> f64 {
    let all = now.all.saturating_sub(before.all);
    let idle = now.idle.saturating_sub(before.idle);
    if all == 0 { 0.0 } else { 100.0 * (all.saturating_sub(idle)) as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_between_two_looks() {
        let first = parse("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1 2 3\n");
        assert_eq!(first, Counters { all: 100, idle: 80 });
        assert!((busy(Counters::default(), first) - 20.0).abs() < 1e-9);
        let second = parse("cpu  60 0 10 120 10 0 0 0 0 0\n");
        assert!((busy(first, second) - 50.0).abs() < 1e-9);
        assert!(busy(second, second).abs() < 1e-9 && busy(second, parse("")).abs() < 1e-9);
    }
}
