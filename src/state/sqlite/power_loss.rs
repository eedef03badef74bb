//! What was acknowledged outlives the loss of power, at any moment.
//!
//! A store works on a folder whose writes and syncs are recorded (`recorder.rs`). From the record a model of the
//! disk is made, and at random moments the power is cut: whatever was not synced by then is there, or not, or
//! torn at a sector's edge; names that were made or removed without a sync of the folder too. What is left is
//! written to another folder and opened. The seed is fixed; so are the moments, in relation to the steps.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, params};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::crash::{assert_events, counted};
use super::recorder::{self, Step};
use super::{SqliteStore, schema, writer};
use crate::state::StateStore;
use crate::state::contract::{entity, number};

const SECTOR: usize = 512;
const TASKS: u64 = 3;
const COMMITS: u64 = 40;
const CUTS: u64 = 120;

/// A recording is of the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// What becomes of changes that were not synced.
#[derive(Clone, Copy, Debug)]
enum Loss {
    All,
    Nothing,
    Some,
}

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
}

/// A file, whatever its name.
#[derive(Default)]
struct Inode {
    synced: Vec<u8>,
    pending: Vec<Change>,
}

/// Which file has a name: for whoever looks, and for certain after a loss of power.
#[derive(Default)]
struct Name {
    live: Option<usize>,
    synced: Option<usize>,
}

#[derive(Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, Name>,
    acknowledged: HashMap<u64, u64>,
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => {
                to.resize(to.len().max(at + bytes.len()), 0);
                to[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Truncate(size) => to.resize(*size, 0),
        }
    }

    /// Some of its sectors.
    fn apply_torn(&self, to: &mut Vec<u8>, random: &mut Random) {
        let Self::Write { at, bytes } = self else { return };
        let (mut from, end) = (*at, at + bytes.len());
        while from < end {
            let until = end.min((from / SECTOR + 1) * SECTOR);
            if random.below(2) == 0 {
                let piece = bytes[from - at..until - at].to_vec();
                Self::Write { at: from, bytes: piece }.apply(to);
            }
            from = until;
        }
    }
}

impl Inode {
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            change.apply(&mut self.synced);
        }
    }

    fn after(&self, loss: Loss, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        for change in &self.pending {
            match (loss, random.below(3)) {
                (Loss::All, _) | (Loss::Some, 0) => {}
                (Loss::Nothing, _) | (Loss::Some, 1) => change.apply(&mut bytes),
                (Loss::Some, _) => change.apply_torn(&mut bytes, random),
            }
        }
        bytes
    }
}

impl Disk {
    /// Everything that is in `folder`, as safe as can be.
    fn of(folder: &Path) -> Self {
        let mut disk = Self::default();
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path().canonicalize().unwrap();
            let index = disk.inodes.len();
            disk.inodes.push(Inode { synced: fs::read(&path).unwrap(), pending: Vec::new() });
            disk.names.insert(path, Name { live: Some(index), synced: Some(index) });
        }
        disk
    }

    fn file(&mut self, path: PathBuf) -> &mut Inode {
        let index = self.names.get(&path).and_then(|name| name.live);
        let index = index.unwrap_or_else(|| {
            self.inodes.push(Inode::default());
            let index = self.inodes.len() - 1;
            self.names.entry(path).or_default().live = Some(index);
            index
        });
        &mut self.inodes[index]
    }

    fn sync_folder(&mut self) {
        self.names.values_mut().for_each(|name| name.synced = name.live);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Opened(path) => drop(self.file(path)),
            Step::Wrote { file, at, bytes } => self.file(file).pending.push(Change::Write { at, bytes }),
            Step::Truncated { file, size } => self.file(file).pending.push(Change::Truncate(size)),
            Step::Synced(path) => {
                self.file(path.clone()).sync();
                let name = &self.names[&path];
                // SQLite syncs the folder together with a log or journal that it has made.
                let log = ["-wal", "-journal"].iter().any(|end| path.to_string_lossy().ends_with(end));
                if log && name.live != name.synced {
                    self.sync_folder();
                }
            }
            Step::Deleted { file, durable } => {
                self.names.entry(file).or_default().live = None;
                if durable {
                    self.sync_folder();
                }
            }
            Step::Acknowledged { task, n } => {
                self.acknowledged.insert(task, n);
            }
        }
    }

    /// Writes to `folder` what is left if power is lost now.
    fn cut(&self, folder: &Path, loss: Loss, random: &mut Random) {
        for (path, name) in &self.names {
            let found = match loss {
                Loss::All => name.synced,
                Loss::Some if random.below(2) == 0 => name.synced,
                Loss::Nothing | Loss::Some => name.live,
            };
            if let Some(index) = found {
                let bytes = self.inodes[index].after(loss, random);
                fs::write(folder.join(path.file_name().unwrap()), bytes).unwrap();
            }
        }
    }
}

fn checkpoint(store: &SqliteStore) -> writer::Command {
    assert!(store.path.is_absolute());
    let run = |connection: &Connection| {
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    };
    writer::Command::Run(Box::new(run))
}

/// Counts up in a few tasks at once, in two lives of a store, and moves the log into the
/// database more often than the store does by itself.
async fn work(path: &Path, settings: &'static str) {
    for life in 0..2 {
        let store = Arc::new(SqliteStore::open(path, 0).unwrap());
        let run = move |connection: &Connection| connection.execute_batch(settings).unwrap();
        store.commits.send(writer::Command::Run(Box::new(run))).await.ok().unwrap();
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                let owner = entity("power", &task.to_string());
                let mut version = store.get(&owner).await.unwrap().map_or(0, |value| value.version);
                for n in life * COMMITS + 1..=(life + 1) * COMMITS {
                    version = store.apply(&owner, counted(&owner, version, n)).await.unwrap();
                    recorder::note(Step::Acknowledged { task, n });
                    if n % 17 == task {
                        store.commits.send(checkpoint(&store)).await.ok().unwrap();
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        store.close().await;
    }
}

/// The steps that `work` takes, and the disk they begin with.
async fn record(folder: &Path, settings: &'static str) -> (Disk, Vec<Step>) {
    let disk = Disk::of(folder);
    recorder::begin(folder);
    work(&folder.canonicalize().unwrap().join("state.db"), settings).await;
    (disk, recorder::end())
}

/// Opens what is left; what is wrong with it, if something is missing.
async fn examine(folder: &Path, acknowledged: &HashMap<u64, u64>) -> Result<(), String> {
    let path = folder.join("state.db");
    let store = SqliteStore::open(&path, 0).map_err(|error| format!("{error:?}"))?;
    for task in 0..TASKS {
        let owner = entity("power", &task.to_string());
        let value = store.get(&owner).await.map_err(|error| format!("{error:?}"))?;
        let (n, version) = value.map_or((0, 0), |value| (number(&value), value.version));
        let known = acknowledged.get(&task).copied().unwrap_or(0);
        if n != known && n != known + 1 {
            return Err(format!("task {task}: {known} acknowledged, {n} found"));
        }
        assert_events(&store, &owner, n).await;
        let next = store.apply(&owner, counted(&owner, version, n + 1)).await.unwrap();
        assert!(next > version, "{next} after {version}");
    }
    store.close().await;
    let check = |connection: Connection| -> rusqlite::Result<String> {
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))
    };
    match check(Connection::open(&path).unwrap()) {
        Ok(fine) if fine == "ok" => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Cuts the power at [`CUTS`] moments; what `check` says to each is the caller's.
async fn cut_at_random(
    (mut disk, steps): (Disk, Vec<Step>),
    seed: u64,
    mut check: impl AsyncFnMut(&Path, &Disk, Loss, u64),
) {
    let mut random = Random(seed);
    let (total, mut cuts) = (steps.len() as u64, 0);
    for (index, step) in steps.into_iter().enumerate() {
        disk.step(step);
        // Each step has the same chance, and the last is always one.
        if random.below(total) >= CUTS && index as u64 + 1 < total {
            continue;
        }
        cuts += 1;
        let loss = [Loss::Some, Loss::All, Loss::Some, Loss::Nothing][random.below(4) as usize];
        let left = tempfile::tempdir().unwrap();
        disk.cut(left.path(), loss, &mut random);
        check(left.path(), &disk, loss, index as u64).await;
    }
    println!("{cuts} cuts in {total} steps, seed {seed}");
    assert!(cuts > CUTS / 2, "{cuts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_commits_survive_the_loss_of_power() {
    let _one = ONE_AT_A_TIME.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let recorded = record(folder.path(), "").await;
    cut_at_random(recorded, 1, async |left, disk, loss, step| {
        let result = examine(left, &disk.acknowledged).await;
        assert_eq!(result, Ok(()), "step {step}, {loss:?} lost");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_survives_the_loss_of_power() {
    let _one = ONE_AT_A_TIME.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let old = schema::create_at_step(&folder.path().join("state.db"), 1);
    old.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    for key in 1..=50_u64 {
        let (name, value) = (key.to_string().into_bytes(), vec![b'x'; key as usize * 40]);
        old.execute("INSERT INTO entity VALUES (?1, ?2, ?3, 1, ?4)", params![b"kept", name, key, value])
            .unwrap();
    }
    old.execute("UPDATE store SET sequence = 50", []).unwrap();
    old.close().unwrap();
    let recorded = record(folder.path(), "").await;
    cut_at_random(recorded, 2, async |left, disk, loss, step| {
        let result = examine(left, &disk.acknowledged).await;
        assert_eq!(result, Ok(()), "step {step}, {loss:?} lost");
        let store = SqliteStore::open(&left.join("state.db"), 0).unwrap();
        for key in 1..=50_u64 {
            let value = store.get(&entity("kept", &key.to_string())).await.unwrap().expect("kept");
            assert_eq!((value.version, value.value.bytes.len() as u64), (key, key * 40));
        }
        store.close().await;
    })
    .await;
}

/// The two above would say so if a commit were acknowledged before it was synced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_syncs_the_loss_is_seen() {
    let _one = ONE_AT_A_TIME.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let recorded = record(folder.path(), "PRAGMA synchronous = OFF").await;
    let mut lost = 0;
    cut_at_random(recorded, 3, async |left, disk, loss, _| {
        // Torn, it may be anything; as it last was synced, it is only old.
        if matches!(loss, Loss::All) && examine(left, &disk.acknowledged).await.is_err() {
            lost += 1;
        }
    })
    .await;
    assert!(lost > 0, "nothing was lost");
}
