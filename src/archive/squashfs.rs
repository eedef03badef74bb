//! Reads a squashfs 4.0 image: gzip, lz4 or zstd.
//!
//! No table is read as a whole and nothing recurses: an inode or folder is read where it is needed, through a
//! small cache of metadata blocks (8 KiB each). What an image declares is never allocated. Loops between
//! folders end at the bound of depth, repeated files at that of bytes.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use super::ArchiveError;
use super::tree::{Tree, refused, shown};

const METADATA: usize = 8192;
/// 2 MiB of metadata at most.
const CACHED: usize = 256;
const UNCOMPRESSED_METADATA: u16 = 1 << 15;
const UNCOMPRESSED_BLOCK: u32 = 1 << 24;
const NO_FRAGMENT: u32 = u32::MAX;
const FRAGMENT_ENTRY: u64 = 16;

#[derive(Clone, Copy)]
enum Method {
    Gzip,
    Lz4,
    Zstd,
}

/// Blocks of fragments that are kept, 16 MiB at most: files with the same content share one, wherever they are.
const FRAGMENTS: usize = 16;
/// So many times the bound of bytes may be read from blocks, and 64 MiB for tables: blocks that files share may come
/// more than once, but not with each of many files.
const MOST_WORK: u64 = 8;
const WORK_FLOOR: u64 = 64 << 20;

/// A metadata block and where the next one begins.
type Block = (Rc<Vec<u8>>, u64);

struct Image<'f> {
    file: &'f File,
    method: Method,
    block_size: usize,
    inode_table: u64,
    folder_table: u64,
    fragment_table: u64,
    cache: HashMap<u64, Block>,
    fragments: VecDeque<(u64, Rc<Vec<u8>>)>,
    /// Bytes that may still be read from blocks.
    work: u64,
}

/// A place in a table.
#[derive(Clone, Copy)]
struct Place {
    block: u64,
    offset: usize,
}

/// Where the content of a file is.
struct Content {
    size: u64,
    start: u64,
    fragment: u32,
    fragment_offset: usize,
    /// The sizes of the blocks begin here.
    sizes: Place,
}

enum Inode {
    Folder { list: Place, size: u64 },
    File { executable: bool, content: Content },
    Link { target: Vec<u8> },
    Special,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("squashfs: {what}"))
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

fn decompress(method: Method, data: &[u8], most: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    match method {
        Method::Gzip => {
            flate2::read::ZlibDecoder::new(data).take(most as u64 + 1).read_to_end(&mut out)?;
            if out.len() > most {
                return Err(damaged("a block is larger than it may be"));
            }
        }
        Method::Lz4 => {
            out.resize(most, 0);
            let size =
                lz4_flex::block::decompress_into(data, &mut out).map_err(|e| damaged(&e.to_string()))?;
            out.truncate(size);
        }
        Method::Zstd => out = zstd::bulk::decompress(data, most).map_err(|e| damaged(&e.to_string()))?,
    }
    Ok(out)
}

/// Reads on from a place in a table, from block to block.
struct Cursor {
    place: Place,
}

impl Cursor {
    fn read<const N: usize>(&mut self, image: &mut Image<'_>) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(image, &mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, image: &mut Image<'_>, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            let (block, next) = image.metadata(self.place.block)?;
            let rest = block.get(self.place.offset..).unwrap_or_default();
            if rest.is_empty() {
                // A block without content would be a way to read on for ever.
                if block.is_empty() || self.place.offset > block.len() {
                    return Err(damaged("a table ends too early"));
                }
                self.place = Place { block: next, offset: 0 };
                continue;
            }
            let count = rest.len().min(into.len());
            into[..count].copy_from_slice(&rest[..count]);
            into = &mut into[count..];
            self.place.offset += count;
        }
        Ok(())
    }
}

impl<'f> Image<'f> {
    /// The image and the inode of its root.
    fn open(file: &'f File, most_work: u64) -> Result<(Self, u64), ArchiveError> {
        let mut head = [0; 96];
        file.read_exact_at(&mut head, 0).map_err(|error| super::tree::unreadable(b"", error))?;
        let block_size = u32_at(&head, 12);
        if u16_at(&head, 28) != 4 || u16_at(&head, 30) != 0 {
            return Err(ArchiveError::NotAnArchive("squashfs of another version than 4.0".into()));
        }
        if !block_size.is_power_of_two() || !(4096..=1 << 20).contains(&block_size) {
            return Err(ArchiveError::Damaged("squashfs: its block size is not possible".into()));
        }
        let method = match u16_at(&head, 20) {
            1 => Method::Gzip,
            5 => Method::Lz4,
            6 => Method::Zstd,
            _ => {
                let why = "squashfs with a compression other than gzip, lz4 and zstd";
                return Err(ArchiveError::NotAnArchive(why.into()));
            }
        };
        let image = Self {
            file,
            method,
            block_size: block_size as usize,
            inode_table: u64_at(&head, 64),
            folder_table: u64_at(&head, 72),
            fragment_table: u64_at(&head, 80),
            cache: HashMap::new(),
            fragments: VecDeque::with_capacity(FRAGMENTS),
            work: most_work,
        };
        Ok((image, u64_at(&head, 32)))
    }

    fn bytes(&self, at: u64, size: usize) -> io::Result<Vec<u8>> {
        // The system takes it for a mistake of ours.
        if i64::try_from(at).is_err() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; size];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Counts what was read from a block.
    fn worked(&mut self, block: Vec<u8>) -> io::Result<Vec<u8>> {
        self.work = self.work.checked_sub(block.len() as u64).ok_or_else(|| damaged("its blocks repeat"))?;
        Ok(block)
    }

    fn metadata(&mut self, at: u64) -> io::Result<Block> {
        if let Some(block) = self.cache.get(&at) {
            return Ok(block.clone());
        }
        let head = u16_at(&self.bytes(at, 2)?, 0);
        let size = usize::from(head & !UNCOMPRESSED_METADATA);
        if size > METADATA {
            return Err(damaged("a metadata block is too large"));
        }
        let data = self.bytes(at.saturating_add(2), size)?;
        let data = match head & UNCOMPRESSED_METADATA {
            0 => decompress(self.method, &data, METADATA)?,
            _ => data,
        };
        let block = (Rc::new(self.worked(data)?), at.saturating_add(2 + size as u64));
        if self.cache.len() >= CACHED {
            self.cache.clear();
        }
        self.cache.insert(at, block.clone());
        Ok(block)
    }

    /// A block of data: `size` as tables give it, with the mark of uncompressed ones.
    fn data(&mut self, at: u64, size: u32) -> io::Result<Vec<u8>> {
        let length = (size & !UNCOMPRESSED_BLOCK) as usize;
        if length > self.block_size {
            return Err(damaged("a block is too large"));
        }
        let data = self.bytes(at, length)?;
        let data = match size & UNCOMPRESSED_BLOCK {
            0 => decompress(self.method, &data, self.block_size)?,
            _ => data,
        };
        self.worked(data)
    }

    fn fragment(&mut self, index: u32) -> io::Result<Rc<Vec<u8>>> {
        let per_block = METADATA as u64 / FRAGMENT_ENTRY;
        let (block, within) = (u64::from(index) / per_block, u64::from(index) % per_block);
        let pointer = self.fragment_table.saturating_add(block * 8);
        let block = u64_at(&self.bytes(pointer, 8)?, 0);
        let mut cursor = Cursor { place: Place { block, offset: (within * FRAGMENT_ENTRY) as usize } };
        let entry: [u8; 16] = cursor.read(self)?;
        let (start, size) = (u64_at(&entry, 0), u32_at(&entry, 8));
        if let Some((_, data)) = self.fragments.iter().find(|(at, _)| *at == start) {
            return Ok(data.clone());
        }
        let data = Rc::new(self.data(start, size)?);
        if self.fragments.len() == FRAGMENTS {
            self.fragments.pop_front();
        }
        self.fragments.push_back((start, data.clone()));
        Ok(data)
    }

    fn inode(&mut self, reference: u64) -> io::Result<Inode> {
        let place = Place {
            block: self.inode_table.saturating_add(reference >> 16),
            offset: (reference & 0xffff) as usize,
        };
        let mut cursor = Cursor { place };
        let head: [u8; 16] = cursor.read(self)?;
        let executable = u16_at(&head, 2) & 0o111 != 0;
        Ok(match u16_at(&head, 0) {
            1 => {
                let b: [u8; 16] = cursor.read(self)?;
                self.folder(u32_at(&b, 0), u16_at(&b, 10), u32::from(u16_at(&b, 8)))
            }
            8 => {
                let b: [u8; 24] = cursor.read(self)?;
                self.folder(u32_at(&b, 8), u16_at(&b, 18), u32_at(&b, 4))
            }
            2 => {
                let b: [u8; 16] = cursor.read(self)?;
                let content = Content {
                    start: u64::from(u32_at(&b, 0)),
                    fragment: u32_at(&b, 4),
                    fragment_offset: u32_at(&b, 8) as usize,
                    size: u64::from(u32_at(&b, 12)),
                    sizes: cursor.place,
                };
                Inode::File { executable, content }
            }
            9 => {
                let b: [u8; 40] = cursor.read(self)?;
                let content = Content {
                    start: u64_at(&b, 0),
                    size: u64_at(&b, 8),
                    fragment: u32_at(&b, 28),
                    fragment_offset: u32_at(&b, 32) as usize,
                    sizes: cursor.place,
                };
                Inode::File { executable, content }
            }
            3 | 10 => {
                let b: [u8; 8] = cursor.read(self)?;
                let size = u32_at(&b, 4) as usize;
                if size > 65_536 {
                    return Err(damaged("a link's target is too long"));
                }
                let mut target = vec![0; size];
                cursor.fill(self, &mut target)?;
                Inode::Link { target }
            }
            4..=7 | 11..=14 => Inode::Special,
            _ => return Err(damaged("an inode of no known kind")),
        })
    }

    fn folder(&self, block: u32, offset: u16, size: u32) -> Inode {
        let block = self.folder_table.saturating_add(u64::from(block));
        // Three bytes are for `.` and `..`, which are not stored.
        let size = u64::from(size).saturating_sub(3);
        Inode::Folder { list: Place { block, offset: usize::from(offset) }, size }
    }
}

/// The content of one file.
struct ContentReader<'i, 'f> {
    image: &'i mut Image<'f>,
    cursor: Cursor,
    at: u64,
    left: u64,
    fragment: Option<(u32, usize)>,
    block: Rc<Vec<u8>>,
    used: usize,
}

impl<'i, 'f> ContentReader<'i, 'f> {
    fn new(image: &'i mut Image<'f>, content: &Content) -> Self {
        let fragment =
            (content.fragment != NO_FRAGMENT).then_some((content.fragment, content.fragment_offset));
        let cursor = Cursor { place: content.sizes };
        Self { image, cursor, at: content.start, left: content.size, fragment, block: Rc::default(), used: 0 }
    }

    fn next_block(&mut self) -> io::Result<()> {
        let length = self.left.min(self.image.block_size as u64) as usize;
        self.used = 0;
        if let (Some((index, offset)), true) = (self.fragment, length < self.image.block_size) {
            self.block = self.image.fragment(index)?;
            self.used = offset;
            if self.block.len() < offset.saturating_add(length) {
                return Err(damaged("a fragment is too short"));
            }
            return Ok(());
        }
        let size = u32::from_le_bytes(self.cursor.read(self.image)?);
        if size == 0 {
            self.block = Rc::new(vec![0; length]);
            return Ok(());
        }
        self.block = Rc::new(self.image.data(self.at, size)?);
        self.at = self.at.saturating_add(u64::from(size & !UNCOMPRESSED_BLOCK));
        if self.block.len() == length { Ok(()) } else { Err(damaged("a block has a wrong size")) }
    }
}

impl Read for ContentReader<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        if self.used == self.block.len() {
            self.next_block()?;
        }
        let most = self.left.min(buffer.len() as u64) as usize;
        let rest = &self.block[self.used..];
        let count = rest.len().min(most);
        buffer[..count].copy_from_slice(&rest[..count]);
        self.used += count;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Puts the image into `tree`.
pub(super) fn read(file: &File, tree: &mut Tree<'_>) -> Result<(), ArchiveError> {
    let most_work = tree.limits().bytes.saturating_mul(MOST_WORK).saturating_add(WORK_FLOOR);
    read_within(file, tree, most_work)
}

/// The same, reading at most so many bytes from blocks.
pub(super) fn read_within(file: &File, tree: &mut Tree<'_>, most_work: u64) -> Result<(), ArchiveError> {
    let (mut image, root) = Image::open(file, most_work)?;
    // Each folder here is an entry that was counted, so this is bounded too.
    let mut folders = vec![(Vec::new(), root)];
    while let Some((path, reference)) = folders.pop() {
        let broken = |error| super::tree::unreadable(&path, error);
        let Inode::Folder { list, size } = image.inode(reference).map_err(broken)? else {
            return Err(ArchiveError::Damaged(format!("squashfs: `{}` is no folder", shown(&path))));
        };
        let mut cursor = Cursor { place: list };
        let mut left = size;
        while left > 0 {
            let head: [u8; 12] = cursor.read(&mut image).map_err(broken)?;
            left = left.saturating_sub(12);
            for _ in 0..=u32_at(&head, 0).min(256) {
                let entry: [u8; 8] = cursor.read(&mut image).map_err(broken)?;
                let mut own = vec![0; usize::from(u16_at(&entry, 6)) + 1];
                cursor.fill(&mut image, &mut own).map_err(broken)?;
                left = left.saturating_sub(8 + own.len() as u64);
                if own.contains(&b'/') || own == b"." || own.is_empty() {
                    return Err(refused(&own, "it is no name of a single file"));
                }
                let name = if path.is_empty() { own } else { [&*path, b"/", &*own].concat() };
                let reference = u64::from(u32_at(&head, 4)) << 16 | u64::from(u16_at(&entry, 0));
                if let Some(folder) = put(&mut image, tree, name, reference)? {
                    folders.push((folder, reference));
                }
            }
        }
    }
    Ok(())
}

/// Puts one entry into `tree`; gives the name of a folder back, which is read later.
fn put(
    image: &mut Image<'_>,
    tree: &mut Tree<'_>,
    name: Vec<u8>,
    reference: u64,
) -> Result<Option<Vec<u8>>, ArchiveError> {
    match image.inode(reference).map_err(|error| super::tree::unreadable(&name, error))? {
        Inode::Folder { .. } => {
            tree.folder(&name)?;
            return Ok(Some(name));
        }
        Inode::File { executable, content } => {
            let mut reader = ContentReader::new(image, &content);
            tree.file(&name, executable, Some(content.size), &mut reader)?;
        }
        Inode::Link { target } => tree.symbolic_link(&name, &target)?,
        Inode::Special => return Err(refused(&name, "it is a device, pipe or socket")),
    }
    Ok(None)
}
