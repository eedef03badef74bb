//! Archives that mean harm. Each must be refused with the entry's name, and leave nothing behind.

use super::*;

/// The message of a refusal.
fn refusal(archive: &[u8]) -> String {
    match Place::new().unpack(archive, &Limits::default()) {
        Err(error @ ArchiveError::Refused { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn names_that_lead_out() {
    for name in ["../outside/x", "a/../../outside/x", "..", "a/.."] {
        let why = refusal(&tar(&[file("ok", b"1"), file(name, b"x")]));
        assert_eq!(
            why,
            format!("the archive is refused because of `{name}`: its name leads out of the folder with `..`")
        );
        assert!(refusal(&zip_of(&[(name, 0o644, b"x")])).contains("`..`"), "{name}");
    }
    assert!(refusal(&tar(&[file("/tmp/x", b"x")])).ends_with("its name is absolute"));
    assert!(refusal(&tar(&[entry(EntryType::Directory, "../outside/d", "", b"")])).contains("`..`"));
    assert!(refusal(&tar(&[file("./", b"x")])).contains("root"));
}

#[test]
fn long_names_and_pax_names_are_checked_too() {
    let name = format!("{}/../../../outside/x", "n".repeat(120));
    for build in [long_name, pax] {
        let archive = build(&[(EntryType::Regular, &name)]);
        assert!(refusal(&archive).contains("`..`"));
    }
}

fn long_name(entries: &[(EntryType, &str)]) -> Vec<u8> {
    let all: Vec<_> = entries
        .iter()
        .flat_map(|(kind, name)| {
            let mut name = name.as_bytes().to_vec();
            name.push(0);
            [entry(EntryType::GNULongName, "././@LongLink", "", &name), entry(*kind, "short", "", b"")]
        })
        .collect();
    tar(&all)
}

fn pax_record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n").into_bytes()
}

fn pax(entries: &[(EntryType, &str)]) -> Vec<u8> {
    let all: Vec<_> = entries
        .iter()
        .flat_map(|(kind, name)| {
            [entry(EntryType::XHeader, "pax", "", &pax_record("path", name)), entry(*kind, "short", "", b"")]
        })
        .collect();
    tar(&all)
}

#[test]
fn links_that_lead_out() {
    for target in ["/etc/passwd", "..", "../outside", "a/../../outside", "./../x", "a/..", ""] {
        if !target.is_empty() {
            let why = refusal(&tar(&[entry(EntryType::Symlink, "link", target, b"")]));
            assert!(why.contains("`link`") && why.contains("may lead out"), "{why}");
            let why = refusal(&zip_of(&[("link", 0o120_777, target.as_bytes())]));
            assert!(why.contains("may lead out"), "{why}");
        }
    }
    let why = refusal(&tar(&[entry(EntryType::Symlink, "a/b/link", "../../../outside", b"")]));
    assert!(why.contains("may lead out"));
    let fits = tar(&[entry(EntryType::Symlink, "a/b/link", "../../outside", b"")]);
    assert!(Place::new().unpack(&fits, &Limits::default()).is_ok());
}

/// Each link alone looks harmless to a check of the text; together they would lead to the folder above.
#[test]
fn chains_of_links_that_lead_out() {
    let chain = tar(&[
        entry(EntryType::Directory, "p/q", "", b""),
        entry(EntryType::Symlink, "p/q/r", "../..", b""),
        entry(EntryType::Symlink, "s", "p/q/r/../outside", b""),
    ]);
    assert!(refusal(&chain).contains("`s`"));
}

#[test]
fn nothing_is_written_through_a_link() {
    let through = |first: Vec<u8>, second: Vec<u8>| refusal(&tar(&[first, second]));
    let link = || entry(EntryType::Symlink, "a", "b", b"");
    assert!(through(link(), file("a/x", b"x")).contains("the name comes twice"));
    assert!(through(file("a/x", b"x"), link()).contains("the name comes twice"));
    assert!(through(link(), file("a", b"x")).contains("the name comes twice"));
    assert!(through(link(), entry(EntryType::Symlink, "a/b", "c", b"")).contains("the name comes twice"));
    assert!(through(file("a", b"1"), file("a/x", b"x")).contains("not a folder"));
    assert!(through(file("a", b"1"), file("a", b"2")).contains("twice"));
    assert!(through(file("a", b"1"), file("./a", b"2")).contains("twice"));
    assert!(refusal(&zip_of(&[("a", 0o120_777, b"b"), ("a/x", 0o644, b"x")])).contains("twice"));
    let folders = [entry(EntryType::Directory, "a", "", b""), entry(EntryType::Directory, "a/", "", b"")];
    assert!(Place::new().unpack(&tar(&folders), &Limits::default()).is_ok(), "folders may come twice");
}

#[test]
fn hard_links_only_name_files_before_them() {
    let link = |target: &str| entry(EntryType::Link, "hard", target, b"");
    for target in ["../outside/canary", "/etc/passwd", "later", "a/../../outside/canary", "folder", "."] {
        let archive =
            tar(&[entry(EntryType::Directory, "folder", "", b""), link(target), file("later", b"x")]);
        let why = refusal(&archive);
        assert!(why.contains("`hard`") && why.contains("not a file before it"), "{target}: {why}");
    }
    let over_link = tar(&[entry(EntryType::Symlink, "soft", "x", b""), link("soft"), file("x", b"1")]);
    assert!(refusal(&over_link).contains("not a file before it"));

    let place = Place::new();
    place.unpack(&tar(&[file("d/x", b"same"), link("d/x")]), &Limits::default()).unwrap();
    assert_eq!(std::fs::read(place.target().join("hard")).unwrap(), b"same");
}

#[test]
fn devices_pipes_sparse_files_and_unknown_entries() {
    for (kind, why) in [
        (EntryType::Char, "it is a device"),
        (EntryType::Block, "it is a device"),
        (EntryType::Fifo, "it is a pipe"),
        (EntryType::GNUSparse, "it is a sparse file; make the archive without --sparse"),
        (EntryType::new(b'?'), "`?` is a kind of entry that is not known here"),
    ] {
        assert!(refusal(&tar(&[entry(kind, "bad", "", b"")])).ends_with(why), "{why}");
    }
    let sparse = entry(EntryType::XHeader, "p", "", &pax_record("GNU.sparse.major", "1"));
    assert!(refusal(&tar(&[sparse, file("x", b"x")])).contains("sparse"));
    let size = entry(EntryType::XHeader, "p", "", &pax_record("size", "512"));
    assert!(refusal(&tar(&[size, file("x", b"x")])).contains("size is given twice"));
    assert!(refusal(&tar(&[entry(EntryType::Directory, "d", "", b"hidden")])).contains("has content"));
    // The crate that writes zips does not write pipes: the mode is in the directory, 40 bytes after its mark.
    let mut pipe = zip_of(&[("p", 0o644, b"")]);
    let at = pipe.windows(4).position(|w| w == b"PK\x01\x02").unwrap() + 40;
    pipe[at..at + 2].copy_from_slice(&0o010_644_u16.to_le_bytes());
    assert!(refusal(&pipe).contains("neither file, folder nor link"));
}

#[test]
fn of_the_mode_only_the_execute_bit_is_kept() {
    let place = Place::new();
    place.unpack(&tar(&[file("d/x", b"x")]), &Limits::default()).unwrap();
    assert_eq!(mode(&place.target().join("d/x")), 0o755, "was 6777");
    assert_eq!(mode(&place.target().join("d")), 0o755);
    assert_eq!(mode(&place.target()), 0o755);
    let place = Place::new();
    place.unpack(&zip_of(&[("x", 0o600, b"x")]), &Limits::default()).unwrap();
    assert_eq!(mode(&place.target().join("x")), 0o644);
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    for (content, why) in [
        (b"".to_vec(), "not an archive: it is empty"),
        (b"hello".to_vec(), "not an archive: it is shorter than any archive"),
        (noise(4096), "not an archive: its first bytes are those of no known format"),
        (gzip(b"just text"), "not an archive: it is shorter than any archive"),
        (gzip(b""), "not an archive: there is nothing in it"),
    ] {
        let error = Place::new().unpack(&content, &Limits::default()).unwrap_err();
        assert!(matches!(error, ArchiveError::NotAnArchive(_)), "{error:?}");
        assert_eq!(error.to_string(), format!("{why}; give a tar, tar.gz, tar.zst, zip or squashfs"));
    }
}

#[test]
fn cut_off_archives_are_damaged() {
    for compression in ALL {
        let whole = packed(compression);
        for keep in [whole.len() / 2, whole.len() * 9 / 10, 700] {
            let error = Place::new().unpack(&whole[..keep], &Limits::default()).unwrap_err();
            assert!(matches!(error, ArchiveError::Damaged(_)), "{compression:?} {keep}: {error:?}");
        }
    }
    // Where one entry ends and the next begins, only the missing end mark tells.
    let error = Place::new().unpack(&file("a", b"x"), &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("end mark"), "{error}");
    let zip = zip_of(&[("a", 0o644, b"x")]);
    let error = Place::new().unpack(&zip[..zip.len() - 4], &Limits::default()).unwrap_err();
    assert!(matches!(error, ArchiveError::Damaged(_)), "{error:?}");
}

#[test]
fn wrong_checksums_are_damage() {
    let content = tar(&[file("a", &noise(5000))]);
    let mut of_gzip = gzip(&content);
    let at = of_gzip.len() - 6;
    of_gzip[at] ^= 1;
    let mut of_zstd = zstd(&content);
    let at = of_zstd.len() - 1;
    of_zstd[at] ^= 1;
    let mut of_tar = tar(&[file("a", b"x"), file("b", b"x")]);
    of_tar[1024] ^= 1;
    let mut of_zip = zip_of(&[("a", 0o644, &noise(5000))]);
    of_zip[2000] ^= 1;
    for bad in [of_gzip, of_zstd, of_tar, of_zip] {
        let error = Place::new().unpack(&bad, &Limits::default()).unwrap_err();
        assert!(matches!(error, ArchiveError::Damaged(_)), "{error:?}");
    }
}

#[test]
fn names_in_messages_are_printable() {
    let why = refusal(&tar(&[file("../\u{1b}[31mred\n", b"x")]));
    assert!(why.contains("../\\u{1b}[31mred\\n"), "{why}");
}

#[test]
fn what_is_there_is_not_replaced() {
    let place = Place::new();
    std::fs::create_dir(place.target()).unwrap();
    std::fs::write(place.target().join("mine"), "1").unwrap();
    let error = place.unpack_unchecked(&tar(&[file("x", b"x")]));
    assert!(matches!(error, Err(ArchiveError::Exists(_))), "{error:?}");
    assert_eq!(names(&place.target()), ["mine"]);
    std::fs::remove_file(place.target().join("mine")).unwrap();
    place.unpack(&tar(&[file("x", b"x")]), &Limits::default()).unwrap();
    assert_eq!(names(&place.target()), ["x"], "an empty folder is taken over");
}

impl Place {
    fn unpack_unchecked(&self, archive: &[u8]) -> Result<Unpacked, ArchiveError> {
        std::fs::write(self.archive(), archive).unwrap();
        unpack(&self.archive(), &self.target(), &Limits::default())
    }
}
