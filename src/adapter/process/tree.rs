//! Process trees through `/proc`: what belongs to an instance, how much memory it uses, and the end of all of it.
//!
//! A process belongs to an instance if it descends from its leader, is in its group, or carries its marker in the
//! environment. The marker finds those whose parent is gone. All functions here block for a short time only.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde::{Deserialize, Serialize};

/// Rounds of killing. A process that forks faster than this many rounds is beyond what `/proc` can show.
const ROUNDS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(4);

/// What every process of one instance has in its environment.
#[derive(Debug, Clone)]
pub(super) struct Marker {
    value: String,
    entry: Vec<u8>,
}

impl Marker {
    pub(super) fn new(instance: &str) -> Self {
        Self { value: instance.to_owned(), entry: format!("{}={instance}", super::MARK).into_bytes() }
    }

    pub(super) fn value(&self) -> &str {
        &self.value
    }

    fn is_on(&self, pid: Pid) -> bool {
        std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()))
            .is_ok_and(|environ| environ.split(|b| *b == 0).any(|entry| entry == self.entry))
    }
}

/// The first process of an instance, told apart from a later process of the same number by when it started.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Leader {
    pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/PID/stat`.
    start_time: u64,
}

impl Leader {
    /// The leader behind a process that has not been waited for yet.
    pub(super) fn of(pid: Pid) -> Self {
        let pid = pid.as_raw_nonzero().get();
        Self { pid, start_time: stat(pid).map_or(0, |s| s.start_time) }
    }

    /// Whether its number still means it, or at least nobody else: a group keeps its leader's number from being
    /// given away, so that its members can be found by it after the leader is gone.
    fn holds(self, all: &HashMap<i32, Stat>) -> bool {
        all.get(&self.pid).is_none_or(|stat| stat.start_time == self.start_time)
    }
}

struct Stat {
    zombie: bool,
    parent: i32,
    group: i32,
    start_time: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

fn all() -> HashMap<i32, Stat> {
    let Ok(items) = std::fs::read_dir("/proc") else { return HashMap::new() };
    let pids = items.flatten().filter_map(|item| item.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

/// Living processes of an instance.
fn members(marker: &Marker, leader: Option<Leader>) -> Vec<Pid> {
    let all = all();
    let leader = leader.filter(|leader| leader.holds(&all)).map(|leader| leader.pid);
    let descends = |pid: i32| {
        let mut at = pid;
        for _ in 0..64 {
            match all.get(&at) {
                _ if Some(at) == leader => return true,
                Some(stat) => at = stat.parent,
                None => return false,
            }
        }
        false
    };
    let mine = |pid: i32, stat: &Stat| {
        let related = leader.is_some_and(|leader| stat.group == leader) || descends(pid);
        related || Pid::from_raw(pid).is_some_and(|pid| marker.is_on(pid))
    };
    all.iter()
        .filter(|(pid, stat)| !stat.zombie && mine(**pid, stat))
        .filter_map(|(pid, _)| Pid::from_raw(*pid))
        .collect()
}

/// Kills every process of an instance and waits until none lives; gives how many there were in the first round.
pub(super) fn kill_all(marker: &Marker, leader: Option<Leader>) -> usize {
    let mut first = 0;
    for round in 0..ROUNDS {
        let members = members(marker, leader);
        if round == 0 {
            first = members.len();
        }
        if members.is_empty() {
            return first;
        }
        for pid in members {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(PAUSE);
    }
    tracing::error!(instance = marker.value(), "processes of an instance could not be killed");
    first
}

/// Resident memory of a process and its children, bytes.
pub(super) fn memory(pid: Pid) -> u64 {
    fn add(pid: i32, depth: u32, total: &mut u64) {
        let page = rustix::param::page_size() as u64;
        if let Ok(statm) = std::fs::read_to_string(format!("/proc/{pid}/statm")) {
            let resident = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
            *total += resident.unwrap_or(0) * page;
        }
        if depth < 8
            && let Ok(children) = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        {
            for child in children.split_ascii_whitespace().filter_map(|child| child.parse().ok()) {
                add(child, depth + 1, total);
            }
        }
    }
    let mut total = 0;
    add(pid.as_raw_nonzero().get(), 0, &mut total);
    total
}

/// Processes whose parent died become children of the executor and must be waited for, or they stay as zombies.
#[derive(Default)]
pub(super) struct Orphans {
    /// Leaders, which their owners wait for.
    leaders: Mutex<HashSet<i32>>,
}

impl Orphans {
    pub(super) fn adopt(&self, leader: Pid) {
        self.leaders.lock().unwrap_or_else(PoisonError::into_inner).insert(leader.as_raw_nonzero().get());
    }

    pub(super) fn release(&self, leader: Pid) {
        self.leaders.lock().unwrap_or_else(PoisonError::into_inner).remove(&leader.as_raw_nonzero().get());
    }

    /// Waits for every dead orphan.
    pub(super) fn reap(&self) {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        for (pid, stat) in all() {
            let orphan = stat.zombie && stat.parent == own;
            let leader = self.leaders.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid);
            if orphan
                && !leader
                && let Some(pid) = Pid::from_raw(pid)
            {
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }
}
