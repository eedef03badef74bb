//! Reads a tar as a stream: ustar, GNU and pax names; the crate reads the headers, we walk them.
//!
//! The crate's own walk holds long names and pax records in memory whatever their size. Here they are
//! bounded. An archive without its end mark is taken for cut off, because a plain tar has no other way to
//! tell.

use std::io::{self, Read};

use tar::{EntryType, Header, PaxExtensions};

use super::ArchiveError;
use super::tree::{Tree, refused, shown, unreadable};

const BLOCK: usize = 512;
/// Bytes of one long name or set of pax records.
const MOST_EXTENSION: u64 = 64 << 10;
/// Extensions before one entry: long name, long link, and pax records of the entry and of what follows.
const MOST_EXTENSIONS: usize = 4;
/// Padding after the end mark.
const MOST_TAIL: u64 = 1 << 20;

/// What extensions say about the next entry.
#[derive(Default)]
struct Extensions {
    count: usize,
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

/// Puts the tar that `input` gives into `tree`, and reads `input` to its end, where checksums are.
pub(super) fn read(mut input: impl Read, tree: &mut Tree<'_>) -> Result<(), ArchiveError> {
    let mut extensions = Extensions::default();
    let mut first = true;
    loop {
        let Some(block) = read_block(&mut input, first)? else {
            return Err(if first {
                ArchiveError::NotAnArchive("there is nothing in it".into())
            } else {
                ArchiveError::Damaged("it ends too early, without a tar's end mark".into())
            });
        };
        tree.produced(b"", BLOCK as u64)?;
        if block.iter().all(|byte| *byte == 0) {
            return skip_tail(input, tree);
        }
        let header = Header::from_byte_slice(&block);
        if !is_sound(header) {
            return Err(if first {
                ArchiveError::NotAnArchive("its first bytes are those of no known format".into())
            } else {
                ArchiveError::Damaged("a header of the tar has a wrong checksum".into())
            });
        }
        first = false;
        entry(header, &mut input, &mut extensions, tree)?;
    }
}

fn is_sound(header: &Header) -> bool {
    let bytes = header.as_bytes();
    // The checksum itself counts as spaces.
    let outside = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte));
    header.cksum().is_ok_and(|said| said == outside.sum::<u32>() + 8 * u32::from(b' '))
}

/// `None` at the end.
fn read_block(input: &mut impl Read, first: bool) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
    let mut block = [0; BLOCK];
    let mut filled = 0;
    while filled < BLOCK {
        match input.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(b"", error)),
        }
    }
    match filled {
        0 => Ok(None),
        BLOCK => Ok(Some(block)),
        _ if first => Err(ArchiveError::NotAnArchive("it is shorter than any archive".into())),
        _ => Err(ArchiveError::Damaged("it ends too early, within a header".into())),
    }
}

/// What follows the end mark is padding; reading it makes decompressors compare their checksums.
fn skip_tail(input: impl Read, tree: &mut Tree<'_>) -> Result<(), ArchiveError> {
    let mut tail = input.take(MOST_TAIL + 1);
    let length = io::copy(&mut tail, &mut io::sink()).map_err(|error| unreadable(b"", error))?;
    tree.produced(b"", length)?;
    if length > MOST_TAIL {
        return Err(ArchiveError::Damaged(format!("more than {MOST_TAIL} bytes follow its end")));
    }
    Ok(())
}

fn entry(
    header: &Header,
    input: &mut impl Read,
    extensions: &mut Extensions,
    tree: &mut Tree<'_>,
) -> Result<(), ArchiveError> {
    let size = header.entry_size().map_err(|error| unreadable(b"", error))?;
    let kind = header.entry_type();
    if kind.is_gnu_longname()
        || kind.is_gnu_longlink()
        || kind.is_pax_local_extensions()
        || kind.is_pax_global_extensions()
    {
        return extension(kind, size, input, extensions, tree);
    }
    let said = std::mem::take(extensions);
    let name = said.name.unwrap_or_else(|| header.path_bytes().into_owned());
    let target = said.target.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
    if said.size.is_some_and(|other| other != size) {
        return Err(refused(&name, "its size is given twice, and differently"));
    }
    let has_content = matches!(kind, EntryType::Regular | EntryType::Continuous);
    if size > 0 && !has_content && !kind.is_gnu_sparse() {
        return Err(refused(&name, "it has content, but is not a file"));
    }
    match (kind, target) {
        // Before POSIX a folder was a name with `/` at the end.
        (EntryType::Regular, _) if name.ends_with(b"/") && size == 0 => tree.folder(&name),
        (EntryType::Regular | EntryType::Continuous, _) => {
            let mode = header.mode().map_err(|error| unreadable(&name, error))?;
            tree.file(&name, mode & 0o111 != 0, Some(size), &mut input.by_ref().take(size))?;
            skip_padding(size, input, &name, tree)
        }
        (EntryType::Directory, _) => tree.folder(&name),
        (EntryType::Symlink, Some(target)) => tree.symbolic_link(&name, &target),
        (EntryType::Link, Some(target)) => tree.hard_link(&name, &target),
        (EntryType::Symlink | EntryType::Link, None) => Err(refused(&name, "it is a link to nothing")),
        (EntryType::Char | EntryType::Block, _) => Err(refused(&name, "it is a device")),
        (EntryType::Fifo, _) => Err(refused(&name, "it is a pipe")),
        (EntryType::GNUSparse, _) => {
            Err(refused(&name, "it is a sparse file; make the archive without --sparse"))
        }
        (other, _) => {
            let letter = shown(&[other.as_byte()]);
            Err(refused(&name, format!("`{letter}` is a kind of entry that is not known here")))
        }
    }
}

fn skip_padding(
    size: u64,
    input: &mut impl Read,
    name: &[u8],
    tree: &mut Tree<'_>,
) -> Result<(), ArchiveError> {
    let padding = size.next_multiple_of(BLOCK as u64) - size;
    let mut rest = [0; BLOCK];
    input.read_exact(&mut rest[..padding as usize]).map_err(|error| unreadable(name, error))?;
    tree.produced(name, padding)
}

fn extension(
    kind: EntryType,
    size: u64,
    input: &mut impl Read,
    extensions: &mut Extensions,
    tree: &mut Tree<'_>,
) -> Result<(), ArchiveError> {
    const WHAT: &[u8] = b"(long name or pax header)";
    extensions.count += 1;
    if extensions.count > MOST_EXTENSIONS {
        return Err(refused(WHAT, "more such headers than one entry can need"));
    }
    if size > MOST_EXTENSION {
        return Err(refused(WHAT, format!("it has more than {MOST_EXTENSION} bytes")));
    }
    let mut data = vec![0; size as usize];
    input.read_exact(&mut data).map_err(|error| unreadable(WHAT, error))?;
    tree.produced(WHAT, size)?;
    skip_padding(size, input, WHAT, tree)?;
    if kind.is_pax_global_extensions() {
        // Comments, in practice: `git archive` puts its commit there.
        return Ok(());
    }
    if !kind.is_pax_local_extensions() {
        while data.last() == Some(&0) {
            data.pop();
        }
        let place = if kind.is_gnu_longname() { &mut extensions.name } else { &mut extensions.target };
        *place = Some(data);
        return Ok(());
    }
    for record in PaxExtensions::new(&data) {
        let record = record.map_err(|error| unreadable(WHAT, error))?;
        let value = record.value_bytes();
        match record.key_bytes() {
            b"path" => extensions.name = Some(value.to_owned()),
            b"linkpath" => extensions.target = Some(value.to_owned()),
            b"size" => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                extensions.size = Some(number.ok_or_else(|| refused(WHAT, "its size is no number"))?);
            }
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(refused(WHAT, "the file is sparse; make the archive without --sparse"));
            }
            _ => {}
        }
    }
    Ok(())
}
