//! Each bound of [`Limits`] holds at its value and not one above; bombs end early.

use super::*;

fn too_large(archive: &[u8], limits: &Limits) -> String {
    match Place::new().unpack(archive, limits) {
        Err(error @ ArchiveError::TooLarge { .. }) => error.to_string(),
        other => panic!("not too large: {other:?}"),
    }
}

fn fits(archive: &[u8], limits: &Limits) -> Unpacked {
    Place::new().unpack(archive, limits).unwrap()
}

#[test]
fn bytes() {
    let limits = Limits { bytes: 1000, ..Limits::default() };
    let of = |second: usize| vec![("a", vec![1; 600]), ("b", vec![1; second])];
    let both = |second| {
        let tar = tar(&of(second).iter().map(|(name, content)| file(name, content)).collect::<Vec<_>>());
        let entries = of(second);
        let entries: Vec<_> = entries.iter().map(|(name, content)| (*name, 0o644, &**content)).collect();
        [gzip(&tar), zstd(&tar), tar, zip_of(&entries)]
    };
    for archive in both(400) {
        assert_eq!(fits(&archive, &limits).bytes, 1000);
    }
    for archive in both(401) {
        assert_eq!(
            too_large(&archive, &limits),
            "the archive is too large at `b`: it has more than 1000 bytes"
        );
    }
    // A hard link is as large as its file: who copies the tree has both.
    let linked = |size: usize| tar(&[file("a", &vec![1; size]), entry(EntryType::Link, "b", "a", b"")]);
    assert_eq!(fits(&linked(500), &limits).bytes, 1000);
    too_large(&linked(501), &limits);
    let image = packed(Compression::Squashfs);
    let size = fits(&image, &Limits::default()).bytes;
    fits(&image, &Limits { bytes: size, ..Limits::default() });
    too_large(&image, &Limits { bytes: size - 1, ..Limits::default() });
}

#[test]
fn entries() {
    let limits = Limits { entries: 3, ..Limits::default() };
    let files = |count: usize| (0..count).map(|n| file(&n.to_string(), b"")).collect::<Vec<_>>();
    assert_eq!(fits(&tar(&files(3)), &limits).entries, 3);
    assert!(too_large(&tar(&files(4)), &limits).ends_with("it has more than 3 entries"));
    // Folders that only names mention are made too.
    assert_eq!(fits(&tar(&[file("a/b/c", b"")]), &limits).entries, 3);
    too_large(&tar(&[file("a/b/c/d", b"")]), &limits);
    let zip = |count: usize| {
        let names: Vec<_> = (0..count).map(|n| n.to_string()).collect();
        zip_of(&names.iter().map(|name| (&**name, 0o644, &b""[..])).collect::<Vec<_>>())
    };
    fits(&zip(3), &limits);
    too_large(&zip(4), &limits);
    let image = packed(Compression::Squashfs);
    let count = fits(&image, &Limits::default()).entries;
    fits(&image, &Limits { entries: count, ..Limits::default() });
    too_large(&image, &Limits { entries: count - 1, ..Limits::default() });
}

#[test]
fn depth_and_path() {
    let limits = Limits { depth: 3, path: 12, ..Limits::default() };
    fits(&tar(&[file("a/b/c", b"")]), &limits);
    assert!(too_large(&tar(&[file("a/b/c/d", b"")]), &limits).ends_with("more than 3 folders deep"));
    fits(&tar(&[file("123456789012", b"")]), &limits);
    assert!(too_large(&tar(&[file("1234567890123", b"")]), &limits).ends_with("more than 12 bytes"));
    fits(&tar(&[entry(EntryType::Symlink, "l", "123456789012", b"")]), &limits);
    too_large(&tar(&[entry(EntryType::Symlink, "l", "1234567890123", b"")]), &limits);
    too_large(&zip_of(&[("l", 0o120_777, b"1234567890123")]), &limits);
    let image = packed(Compression::Squashfs);
    too_large(&image, &Limits { depth: 3, ..Limits::default() });
    fits(&image, &Limits { depth: 4, ..Limits::default() });
    let long = tar(&[file(&"n".repeat(100), b"")]);
    fits(&long, &Limits::default());
    let longer = "n".repeat(256);
    let archive = tar(&[entry(EntryType::GNULongName, "l", "", longer.as_bytes()), file("x", b"")]);
    let error = Place::new().unpack(&archive, &Limits::default()).unwrap_err();
    assert!(error.to_string().ends_with("more than 255 bytes"), "{error}");
}

#[test]
fn ratio_above_its_floor_only() {
    let limits = Limits { ratio: 10, ratio_floor: 100_000, ..Limits::default() };
    // Header and end mark count: they come out of decompression too.
    fits(&gzip(&tar(&[file("a", &vec![0; 98_304])])), &limits);
    let why = too_large(&gzip(&tar(&[file("a", &vec![0; 120_000])])), &limits);
    assert!(why.ends_with("it unpacks to more than 10 times its size"), "{why}");
    fits(&gzip(&tar(&[file("a", &noise(120_000))])), &limits);
}

#[test]
fn bombs_end_early() {
    let zeros = vec![0; 64 << 20];
    let bomb = tar(&[file("zeros", &zeros)]);
    for archive in [gzip(&bomb), zstd(&bomb), zip_of(&[("zeros", 0o644, &zeros)])] {
        assert!(archive.len() < 100_000);
        assert!(too_large(&archive, &Limits::default()).contains("200 times"));
    }
    let place = Place::new();
    let from = place.path("from");
    std::fs::create_dir(&from).unwrap();
    let sparse = std::fs::File::create(from.join("sparse")).unwrap();
    sparse.set_len(300 << 20).unwrap();
    pack(&from, &place.archive(), Compression::Squashfs, &PackOptions::default()).unwrap();
    too_large(&std::fs::read(place.archive()).unwrap(), &Limits { ratio: 20, ..Limits::default() });
}

#[test]
fn a_million_empty_entries() {
    let mut out = ::zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let folder = entry(EntryType::Directory, "again", "", b"");
    for _ in 0..1_000_000 {
        out.write_all(&folder).unwrap();
    }
    let archive = out.finish().unwrap();
    assert!(too_large(&archive, &Limits::default()).contains("200 times"));
    let limits = Limits { ratio: u64::MAX, ..Limits::default() };
    assert!(too_large(&archive, &limits).ends_with("it has more than 250000 entries"));
}

#[test]
fn long_names_are_not_held_in_memory() {
    let huge = vec![b'n'; (64 << 10) + 1];
    let archive = tar(&[entry(EntryType::GNULongName, "l", "", &huge), file("x", b"")]);
    let error = Place::new().unpack(&archive, &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("more than 65536 bytes"), "{error}");
    let many: Vec<_> =
        std::iter::repeat_with(|| entry(EntryType::GNULongName, "l", "", b"x")).take(5).collect();
    let error = Place::new().unpack(&tar(&many), &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("more such headers"), "{error}");
}

#[test]
fn sizes_that_are_only_declared() {
    let mut header = Header::new_gnu();
    header.set_path("huge").unwrap();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(1 << 50);
    header.set_cksum();
    assert!(too_large(&tar(&[header.as_bytes().to_vec()]), &Limits::default()).contains("bytes"));
    // The size in a zip's directory: 4 bytes, 24 after the directory entry's begin.
    let mut zip = zip_of(&[("a", 0o644, b"x")]);
    let at = zip.windows(4).position(|w| w == b"PK\x01\x02").unwrap() + 24;
    zip[at..at + 4].copy_from_slice(&0xffff_fff0_u32.to_le_bytes());
    assert!(too_large(&zip, &Limits::default()).contains("bytes"));
}

#[test]
fn the_archive_to_be_written_is_bounded() {
    let place = Place::new();
    let from = place.path("from");
    example(&from);
    for compression in ALL {
        let done = pack(&from, &place.archive(), compression, &PackOptions::default()).unwrap();
        let options = PackOptions { most_bytes: done.bytes, ..PackOptions::default() };
        assert_eq!(pack(&from, &place.archive(), compression, &options).unwrap(), done);
        let options = PackOptions { most_bytes: done.bytes - 1, ..PackOptions::default() };
        let error = pack(&from, &place.path("work/too-large"), compression, &options).unwrap_err();
        assert!(matches!(error, ArchiveError::TooLarge { .. }), "{compression:?}: {error:?}");
        assert_eq!(names(&place.path("work")), [""; 0]);
    }
}

/// The least work that is enough for an image, found by halving; one byte less is refused.
#[test]
fn the_work_for_a_squashfs_is_bounded() {
    let place = Place::new();
    std::fs::write(place.archive(), packed(Compression::Squashfs)).unwrap();
    let image = File::open(place.archive()).unwrap();
    let limits = Limits::default();
    let read = |most_work: u64| {
        let folder = tempfile::tempdir().unwrap();
        let mut tree = tree::Tree::new(folder.path(), &limits, 1 << 20).unwrap();
        squashfs::read_within(&image, &mut tree, most_work)
    };
    let (mut too_little, mut enough) = (0, 64 << 20);
    read(enough).unwrap();
    while enough - too_little > 1 {
        let middle = u64::midpoint(too_little, enough);
        if read(middle).is_ok() { enough = middle } else { too_little = middle }
    }
    assert!(enough > 3 << 20, "one file alone has so many bytes");
    let error = read(enough - 1).unwrap_err();
    assert!(error.to_string().contains("its blocks repeat"), "{error}");
}
