//! What is packed comes back, the same way each time, and other programs read and write the same.

use std::process::Command;

use super::*;

#[test]
fn all_compressions_give_back_the_same_tree() {
    let place = Place::new();
    let from = place.path("from");
    example(&from);
    let hash = hash_tree(&from).unwrap();
    for compression in ALL {
        let done = pack(&from, &place.archive(), compression, &PackOptions::default()).unwrap();
        let file = File::open(place.archive()).unwrap();
        assert_eq!(hash_file(&file).unwrap(), (done.sha256.clone(), done.bytes));
        assert_eq!(done.left_out, [""; 0].map(PathBuf::from));
        let again = pack(&from, &place.path("again"), compression, &PackOptions::default()).unwrap();
        assert_eq!(again, done, "{compression:?} is deterministic");
        assert_eq!(std::fs::read(place.path("again")).unwrap(), std::fs::read(place.archive()).unwrap());
        let into = place.path(&format!("{compression:?}"));
        let unpacked = unpack(&place.archive(), &into, &Limits::default()).unwrap();
        assert_eq!(unpacked.entries, done.entries);
        assert_eq!(hash_tree(&into).unwrap(), hash, "{compression:?}");
        assert_eq!(std::fs::read_link(into.join("src/link")).unwrap(), Path::new("../index.js"));
        assert_eq!(mode(&into.join("run")), 0o755);
        assert_eq!(mode(&into.join("index.js")), 0o644);
    }
}

#[test]
fn archives_links_that_lead_out_and_specials_are_left_out() {
    let place = Place::new();
    let from = place.path("from");
    std::fs::create_dir_all(from.join("sub")).unwrap();
    for name in ["code.sqfs", "code.tar", "code.tar.gz", "code.gz", "sub/code.gz", "kept"] {
        std::fs::write(from.join(name), "x").unwrap();
    }
    symlink("/etc/passwd", from.join("absolute")).unwrap();
    symlink("../outside", from.join("out")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    assert_eq!(content_size(&from, &PackOptions::default()).unwrap(), 2);
    for compression in ALL {
        let done = pack(&from, &place.archive(), compression, &PackOptions::default()).unwrap();
        assert_eq!(done.left_out, ["absolute", "out", "socket"].map(PathBuf::from));
        let into = place.path(&format!("{compression:?}"));
        unpack(&place.archive(), &into, &Limits::default()).unwrap();
        assert_eq!(names(&into), ["kept", "sub"]);
        assert_eq!(names(&into.join("sub")), ["code.gz"]);
    }
}

#[test]
fn an_empty_folder_and_an_empty_zip() {
    let place = Place::new();
    let from = place.path("from");
    std::fs::create_dir(&from).unwrap();
    for compression in ALL {
        pack(&from, &place.archive(), compression, &PackOptions::default()).unwrap();
        let into = place.path(&format!("{compression:?}"));
        assert_eq!(unpack(&place.archive(), &into, &Limits::default()).unwrap().entries, 0);
        assert_eq!(names(&into), [""; 0]);
    }
    assert_eq!(Place::new().unpack(&zip_of(&[]), &Limits::default()).unwrap().format, Format::Zip);
}

/// Runs a program of the Debian package `package`.
fn run(package: &str, program: &str, args: &[&str], folder: &Path) {
    let output = Command::new(program).args(args).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| {
        panic!("this test needs `{program}` ({error}): apt-get install {package}");
    });
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn tar_program(args: &[&str], folder: &Path) {
    run("tar", "tar", args, folder);
}

#[test]
fn tar_reads_what_we_write_and_the_other_way_round() {
    let place = Place::new();
    let from = place.path("from");
    example(&from);
    let hash = hash_tree(&from).unwrap();
    for (compression, read) in [(Compression::None, "-xf"), (Compression::Gzip, "-xzf")] {
        pack(&from, &place.archive(), compression, &PackOptions::default()).unwrap();
        let into = place.path(&format!("{compression:?}"));
        std::fs::create_dir(&into).unwrap();
        tar_program(&[read, "../archive"], &into);
        assert_eq!(hash_tree(&into).unwrap(), hash, "{compression:?}");
    }
    for (n, format) in ["--format=gnu", "--format=posix", "--format=ustar"].iter().enumerate() {
        if *format == "--format=ustar" {
            std::fs::remove_file(from.join("ü".repeat(100))).unwrap();
        }
        let hash = hash_tree(&from).unwrap();
        tar_program(&["-czf", "../archive", format, "."], &from);
        let into = place.path(&format!("their-{n}"));
        unpack(&place.archive(), &into, &Limits::default()).unwrap();
        assert_eq!(hash_tree(&into).unwrap(), hash, "{format}");
    }
}

#[test]
fn squashfs_tools_read_what_we_write_and_the_other_way_round() {
    let place = Place::new();
    let from = place.path("from");
    example(&from);
    let hash = hash_tree(&from).unwrap();
    pack(&from, &place.archive(), Compression::Squashfs, &PackOptions::default()).unwrap();
    let squashfs = |program: &str, args: &[&str]| run("squashfs-tools", program, args, place.0.path());
    squashfs("unsquashfs", &["-quiet", "-no-progress", "-d", "tools", "archive"]);
    assert_eq!(hash_tree(&place.path("tools")).unwrap(), hash);
    for (n, more) in [
        &["-comp", "gzip"][..],
        &["-comp", "lz4", "-b", "1M", "-no-xattrs"],
        &["-comp", "zstd", "-b", "4K"],
        &["-comp", "gzip", "-noI", "-noD", "-noF", "-no-fragments"],
    ]
    .iter()
    .enumerate()
    {
        let image = format!("image-{n}");
        let args = [&["from", &image, "-quiet", "-no-progress"], *more].concat();
        squashfs("mksquashfs", &args);
        let into = place.path(&format!("their-{n}"));
        unpack(&place.path(&image), &into, &Limits::default()).unwrap();
        assert_eq!(hash_tree(&into).unwrap(), hash, "{more:?}");
    }
    squashfs("mksquashfs", &["from", "xz", "-quiet", "-no-progress", "-comp", "xz"]);
    let error = unpack(&place.path("xz"), &place.path("never"), &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("other than gzip, lz4 and zstd"), "{error}");
}

#[test]
fn the_hash_of_a_tree_says_what_counts() {
    let place = Place::new();
    let (a, b) = (place.path("a"), place.path("b"));
    example(&a);
    example(&b);
    let hash = hash_tree(&a).unwrap();
    assert_eq!(hash_tree(&b).unwrap(), hash);
    let differs = |change: &dyn Fn()| {
        let before = hash_tree(&b).unwrap();
        change();
        assert_ne!(hash_tree(&b).unwrap(), before);
    };
    differs(&|| std::fs::write(b.join("index.js"), "two").unwrap());
    differs(&|| std::fs::rename(b.join("nothing"), b.join("something")).unwrap());
    differs(&|| std::fs::set_permissions(b.join("run"), std::fs::Permissions::from_mode(0o644)).unwrap());
    differs(&|| std::fs::remove_dir(b.join("empty")).unwrap());
    differs(&|| {
        std::fs::remove_file(b.join("dangling")).unwrap();
        symlink("elsewhere", b.join("dangling")).unwrap();
    });
}

#[test]
fn once_per_content_whoever_comes() {
    let place = Place::new();
    let from = place.path("from");
    example(&from);
    let hash = hash_tree(&from).unwrap();
    pack(&from, &place.archive(), Compression::Gzip, &PackOptions::default()).unwrap();
    let store = place.path("work/store");
    let folders: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| unpack_once(&place.archive(), &store, &Limits::default()).unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (name, _) = hash_file(&File::open(place.archive()).unwrap()).unwrap();
    assert!(folders.iter().all(|folder| *folder == store.join(&name)));
    assert_eq!(names(&store), [name]);
    assert_eq!(hash_tree(&folders[0]).unwrap(), hash);
    std::fs::write(folders[0].join("mark"), "").unwrap();
    unpack_once(&place.archive(), &store, &Limits::default()).unwrap();
    assert!(folders[0].join("mark").exists(), "it was not unpacked again");
    std::fs::write(place.archive(), tar(&[file("../x", b"")])).unwrap();
    assert!(unpack_once(&place.archive(), &store, &Limits::default()).is_err());
    assert_eq!(names(&store).len(), 1);
}
