//! Lets a test see what `SQLite` does to the files of one folder: every write, and every sync.
//!
//! `SQLite` asks the operating system for everything through a table of functions (a VFS). This one is put
//! in front of the usual one, for the whole process: it passes everything on, and for files in the folder
//! that is recorded it notes what changed them. All others (those of tests that run beside) it leaves
//! exactly as they were opened.

#![allow(unsafe_code, reason = "a VFS is a table of C functions; only for tests")]

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use rusqlite::{Connection, ffi};

/// What was done, in this order.
#[derive(Debug)]
pub(super) enum Step {
    /// The file was opened, and created if it was not there.
    Opened(PathBuf),
    Wrote {
        file: PathBuf,
        at: usize,
        bytes: Vec<u8>,
    },
    Truncated {
        file: PathBuf,
        size: usize,
    },
    Synced(PathBuf),
    /// `durable`: and the folder was synced.
    Deleted {
        file: PathBuf,
        durable: bool,
    },
    /// The test says that something was acknowledged.
    Acknowledged {
        task: u64,
        n: u64,
    },
}

#[derive(Default)]
struct Shared {
    folder: Option<PathBuf>,
    steps: Vec<Step>,
    /// The open files of the folder, by `SQLite`'s handle.
    files: HashMap<usize, (PathBuf, &'static ffi::sqlite3_io_methods)>,
}

static SHARED: Mutex<Option<Shared>> = Mutex::new(None);
static SYSTEM: AtomicPtr<ffi::sqlite3_vfs> = AtomicPtr::new(ptr::null_mut());

/// Notes what happens in `folder` from now on. One recording at a time in a process.
pub(super) fn begin(folder: &Path) {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(register);
    with(|shared| {
        assert!(shared.folder.is_none(), "one recording at a time");
        *shared = Shared { folder: Some(folder.canonicalize().unwrap()), ..Shared::default() };
    });
}

pub(super) fn note(step: Step) {
    with(|shared| shared.steps.push(step));
}

/// The steps so far, and from now on none.
pub(super) fn end() -> Vec<Step> {
    with(|shared| {
        assert!(shared.files.is_empty(), "still open: {:?}", shared.files.values());
        shared.folder = None;
        std::mem::take(&mut shared.steps)
    })
}

fn with<T>(act: impl FnOnce(&mut Shared) -> T) -> T {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    act(shared.get_or_insert_default())
}

fn register() {
    // SAFETY: null asks for the default VFS, which lives for ever, as does its copy.
    unsafe {
        let system = ffi::sqlite3_vfs_find(ptr::null());
        assert!(!system.is_null());
        SYSTEM.store(system, Ordering::SeqCst);
        let ours = Box::leak(Box::new(*system));
        ours.zName = c"recorder".as_ptr();
        ours.pNext = ptr::null_mut();
        ours.xOpen = Some(open);
        ours.xDelete = Some(delete);
        assert_eq!(ffi::sqlite3_vfs_register(ours, 1), ffi::SQLITE_OK);
    }
}

/// The path, if it is in the recorded folder.
///
/// # Safety
/// `name` is null or a C string.
unsafe fn recorded(name: *const c_char) -> Option<PathBuf> {
    if name.is_null() {
        return None;
    }
    // SAFETY: as promised by the caller.
    let name = unsafe { CStr::from_ptr(name) };
    let path = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
    with(|shared| shared.folder.as_ref().is_some_and(|folder| path.starts_with(folder))).then_some(path)
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: the arguments are SQLite's, for the system's function of the same kind. After that has
    // succeeded `pMethods` is one of its tables, which are constants.
    unsafe {
        let system = SYSTEM.load(Ordering::SeqCst);
        let result = (*system).xOpen.unwrap()(system, name, file, flags, out_flags);
        if let (ffi::SQLITE_OK, Some(path)) = (result, recorded(name)) {
            let methods: &'static ffi::sqlite3_io_methods = &*(*file).pMethods;
            let mut ours = *methods;
            ours.xClose = Some(close);
            ours.xWrite = Some(write);
            ours.xTruncate = Some(truncate);
            ours.xSync = Some(sync);
            (*file).pMethods = Box::leak(Box::new(ours));
            with(|shared| {
                shared.files.insert(file as usize, (path.clone(), methods));
                shared.steps.push(Step::Opened(path));
            });
        }
        result
    }
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: as in `open`.
    unsafe {
        let system = SYSTEM.load(Ordering::SeqCst);
        let result = (*system).xDelete.unwrap()(system, name, sync);
        if let (ffi::SQLITE_OK, Some(file)) = (result, recorded(name)) {
            note(Step::Deleted { file, durable: sync != 0 });
        }
        result
    }
}

fn opened(file: *mut ffi::sqlite3_file) -> (PathBuf, &'static ffi::sqlite3_io_methods) {
    with(|shared| shared.files[&(file as usize)].clone())
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let (_, system) = opened(file);
    with(|shared| shared.files.remove(&(file as usize)));
    // SAFETY: as in `open`, here and below; `file` was opened by it.
    unsafe { system.xClose.unwrap()(file) }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    bytes: *const c_void,
    count: c_int,
    at: ffi::sqlite3_int64,
) -> c_int {
    let (path, system) = opened(file);
    // SAFETY: `bytes` are `count` bytes.
    let (result, written) = unsafe {
        let written = std::slice::from_raw_parts(bytes.cast::<u8>(), count as usize).to_vec();
        (system.xWrite.unwrap()(file, bytes, count, at), written)
    };
    if result == ffi::SQLITE_OK {
        note(Step::Wrote { file: path, at: at as usize, bytes: written });
    }
    result
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    let (path, system) = opened(file);
    // SAFETY: see `close`.
    let result = unsafe { system.xTruncate.unwrap()(file, size) };
    if result == ffi::SQLITE_OK {
        note(Step::Truncated { file: path, size: size as usize });
    }
    result
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    let (path, system) = opened(file);
    // SAFETY: see `close`.
    let result = unsafe { system.xSync.unwrap()(file, flags) };
    if result == ffi::SQLITE_OK {
        note(Step::Synced(path));
    }
    result
}

/// `SQLite`'s own way to copy a database that others use, in one go.
pub(super) fn online_backup(from: &Path, to: &Path) -> rusqlite::Result<()> {
    let (from, to) = (Connection::open(from)?, Connection::open(to)?);
    let main = c"main".as_ptr();
    // SAFETY: both connections are open until after the backup is finished.
    let result = unsafe {
        let backup = ffi::sqlite3_backup_init(to.handle(), main, from.handle(), main);
        assert!(!backup.is_null());
        ffi::sqlite3_backup_step(backup, -1);
        ffi::sqlite3_backup_finish(backup)
    };
    if result == ffi::SQLITE_OK {
        Ok(())
    } else {
        Err(rusqlite::Error::SqliteFailure(ffi::Error::new(result), None))
    }
}
