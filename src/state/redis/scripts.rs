//! The scripts that run in the server, where each runs alone. Files in `scripts/`.

use redis::{Cmd, Script};

/// One of them, after what they share.
macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("scripts/common.lua"), include_str!($file)))
    };
}

/// All of them.
pub(super) struct Scripts {
    pub(super) open: Script,
    pub(super) commit: Script,
    pub(super) page: Script,
    pub(super) due: Script,
    pub(super) list: Script,
    pub(super) sweep: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            open: script!("scripts/open.lua"),
            commit: script!("scripts/commit.lua"),
            page: script!("scripts/page.lua"),
            due: script!("scripts/due.lua"),
            list: script!("scripts/list.lua"),
            sweep: script!("scripts/sweep.lua"),
        }
    }

    pub(super) fn all(&self) -> [&Script; 6] {
        [&self.open, &self.commit, &self.page, &self.due, &self.list, &self.sweep]
    }
}

/// The begin of a command that runs `script`. It takes no keys, because the names of some are only known to it; that
/// matters to a cluster only.
pub(super) fn call(script: &Script) -> Cmd {
    let mut call = redis::cmd("EVALSHA");
    call.arg(script.get_hash()).arg(0);
    call
}
