//! The builds that run, wait or have ended lately, by their ids.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio_util::sync::CancellationToken;

use super::log::{BuildLog, End, Line};
use super::{BuildError, MOST_BYTES};

/// Builds whose logs are kept, in memory and on disk.
const KEPT: usize = 100;

/// One build.
pub struct Build {
    /// Its id, which is ordered by time.
    pub id: String,
    /// Whose build it is.
    pub function: String,
    /// What it writes.
    pub log: BuildLog,
    cancel: CancellationToken,
}

impl Build {
    /// Ends it as soon as possible, with everything it started.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Resolves when somebody wants it to end.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    fn has_ended(&self) -> bool {
        self.log.lines(usize::MAX).1.is_some()
    }
}

/// All of them.
pub(super) struct Records {
    folder: PathBuf,
    all: Mutex<VecDeque<Arc<Build>>>,
    /// One per name that somebody works on.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    close: CancellationToken,
}

impl Records {
    pub(super) fn open(folder: PathBuf) -> Self {
        remove_oldest(&folder, KEPT);
        Self { folder, all: Mutex::default(), turns: Mutex::default(), close: CancellationToken::new() }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Build>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock of a name, which serves those who wait in order.
    pub(super) fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = turns.get(name).and_then(Weak::upgrade).unwrap_or_default();
        turns.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }

    pub(super) fn begin(&self, name: &str, most: usize) -> Result<Arc<Build>, BuildError> {
        let mut all = self.lock();
        let open = all.iter().filter(|build| !build.has_ended()).count();
        if open >= most {
            return Err(BuildError::QueueFull(open));
        }
        // One that still runs is found as long as it does.
        while all.len() >= KEPT
            && let Some(oldest) = all.iter().position(|build| build.has_ended())
        {
            all.remove(oldest);
        }
        remove_oldest(&self.folder, KEPT - 1);
        let id = uuid::Uuid::now_v7().simple().to_string();
        let log = BuildLog::new(Some(&self.folder.join(format!("{id}.log"))));
        let build = Build { id, function: name.to_owned(), log, cancel: self.close.child_token() };
        let build = Arc::new(build);
        all.push_back(Arc::clone(&build));
        Ok(build)
    }

    pub(super) fn find(&self, id: &str) -> Option<Arc<Build>> {
        self.lock().iter().find(|build| build.id == id).cloned()
    }

    /// Where a build of that id has its log; none: no build has such an id.
    pub(super) fn file(&self, id: &str) -> Option<PathBuf> {
        let sane = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        sane.then(|| self.folder.join(format!("{id}.log")))
    }

    pub(super) fn close(&self) {
        self.close.cancel();
        for build in self.lock().iter() {
            build.log.end(End::Failed {
                kind: "shutting-down",
                message: "the executor is shutting down".to_owned(),
            });
        }
    }
}

/// Ids are ordered by time, so names of files are.
fn remove_oldest(folder: &Path, most: usize) {
    let items = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut logs: Vec<_> =
        items.map(|item| item.path()).filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    logs.sort();
    logs.truncate(logs.len().saturating_sub(most));
    for log in logs {
        let _ = std::fs::remove_file(log);
    }
}

/// The lines of a log of an earlier executor.
pub fn read_log(file: &Path) -> std::io::Result<Vec<Line>> {
    use std::io::Read as _;
    let mut text = String::new();
    // Times are in the file and not in the bound.
    std::fs::File::open(file)?.take(MOST_BYTES as u64 * 40).read_to_string(&mut text)?;
    let line = |line: &str| {
        let (at, line) = line.split_once(' ')?;
        Some(Line { at: at.into(), line: line.into() })
    };
    Ok(text.lines().filter_map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bounds_and_turns() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().to_owned());
        let turn = records.turn("f").lock_owned().await;
        assert!(records.turn("f").try_lock().is_err() && records.turn("g").try_lock().is_ok());
        drop(turn);
        assert!(records.turn("f").try_lock().is_ok());
        let begin = || records.begin("f", KEPT).unwrap();
        let (one, two) = (begin(), begin());
        (2..KEPT).for_each(|_| drop(begin()));
        assert!(matches!(records.begin("f", KEPT), Err(BuildError::QueueFull(KEPT))), "one above the bound");
        two.log.end(End::Done { version: None });
        begin();
        assert!(
            records.find(&two.id).is_none() && records.find(&one.id).is_some(),
            "the oldest that has ended"
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), KEPT);
        records.close();
        records.begin("late", KEPT).unwrap().cancelled().await;
    }

    #[test]
    fn after_a_rush_no_more_are_kept_than_before() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().to_owned());
        let rush: Vec<_> = (0..KEPT + 10).map(|_| records.begin("f", usize::MAX).unwrap()).collect();
        assert_eq!(records.lock().len(), KEPT + 10, "all of them run");
        for build in &rush {
            build.log.end(End::Done { version: None });
        }
        records.begin("f", usize::MAX).unwrap();
        assert_eq!(records.lock().len(), KEPT);
    }

    #[test]
    fn logs_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().to_owned());
        let build = records.begin("f", 1).unwrap();
        build.log.push(b"a b\n\nc\n");
        let lines = read_log(&records.file(&build.id).unwrap()).unwrap();
        assert_eq!(lines, build.log.lines(0).0);
        assert!(records.file("../../secret").is_none());
    }
}
