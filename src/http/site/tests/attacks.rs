//! Nothing outside the root, no `.env`, nothing that blocks: by table, by race and by chance.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Far more than an answer takes; a read of a pipe would never end.
const LIMIT: Duration = Duration::from_secs(20);

async fn raw(site: &Site, path: &str) -> Answer {
    let parts = parts("GET", "/", &[]);
    let answer = tokio::time::timeout(LIMIT, site.serve(&parts, path)).await;
    read(answer.unwrap_or_else(|_| panic!("{path} blocks"))).await
}

#[tokio::test]
async fn the_table_of_attacks() {
    let fixture = Fixture::new();
    let absolute = fixture.folder.path().join("canary.txt").display().to_string();
    for (how, site) in fixture.all() {
        for path in [
            "/../canary.txt",
            "/docs/../../canary.txt",
            "/docs/../about.html",
            "/%2e%2e/canary.txt",
            "/%2E%2E/canary.txt",
            "/.%2e/canary.txt",
            "/%252e%252e/canary.txt",
            "/..%2fcanary.txt",
            "/..%5ccanary.txt",
            "/..\\canary.txt",
            "\\..\\canary.txt",
            "/docs%2f..%2f..%2fcanary.txt",
            "/docs%2findex.html",
            "/../site-canary.txt",
            "../canary.txt",
            "..",
            "/..",
            "/.",
            "/./about.html",
            "/..;/canary.txt",
            "/..%00/canary.txt",
            "/about.html%00",
            "/%00",
            "/\0",
            "/%c0%ae%c0%ae/canary.txt",
            "/%ff",
            "/.env",
            "/.ENV",
            "/%2eenv",
            "/%2e%65%6e%76",
            "/.env/",
            "//.env",
            "/.env.html",
            "/.env.local",
            "/.environment",
            "/docs/.env",
            "/.env.d",
            "/.env.d/",
            "/out",
            "/absolute-out",
            "/up/canary.txt",
            "/up/site/about.html",
            "/loop",
            "/innocent",
            "/broken",
            "/magic/etc/passwd",
            "/magic",
            "/pipe",
            "/pipe/",
            "/socket",
            &absolute,
            &format!("/{absolute}"),
            &format!("/{}", "a/".repeat(100_000)),
            &format!("/{}", "a".repeat(256)),
            &format!("/{}", "%2e%2e/".repeat(50)),
        ] {
            let answer = raw(&site, path).await;
            assert_eq!((answer.status, &*answer.body), (404, MISSING), "{how}: {path:.80}");
        }
    }
}

#[tokio::test]
async fn links_are_followed_only_if_asked_and_only_inside() {
    let fixture = Fixture::new();
    for (how, site) in fixture.all() {
        let follows = how.contains("following");
        for (path, body) in [
            ("/link", "about"),
            ("/linked/", "docs"),
            ("/linked/guide", "guide"),
            ("/there-and-back", "about"),
            // Documented: links must be relative.
            ("/absolute-in", MISSING),
        ] {
            let expected = if follows { body } else { MISSING };
            assert_eq!(raw(&site, path).await.body, expected, "{how}: {path}");
        }
        assert_eq!(raw(&site, "/linked").await.status, if follows { 308 } else { 404 }, "{how}");
    }
}

#[tokio::test]
async fn a_file_that_may_not_be_read_is_not_there() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new();
    let path = fixture.root().join("about.html");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // Root may read everything.
    let expected = if fs::read(&path).is_ok() { 200 } else { 404 };
    for (how, site) in fixture.all() {
        assert_eq!(raw(&site, "/about").await.status, expected, "{how}");
    }
}

/// A folder and a link to the outside take turns under one name while files below it are asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_moment_between_check_and_open() {
    let fixture = Fixture::new();
    let (root, outside) = (fixture.root(), fixture.folder.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("x"), CANARY).unwrap();
    fs::create_dir(root.join("turn")).unwrap();
    fs::write(root.join("turn/x"), "inside").unwrap();
    symlink(&outside, root.join("other")).unwrap();
    symlink("../outside", root.join("relative")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let turner = {
        let (root, stop) = (root.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let at = fs::File::open(&root).unwrap();
            let exchange = |a, b| {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&at, a, &at, b, flags).unwrap();
            };
            while !stop.load(Ordering::Relaxed) {
                exchange("turn", "other");
                exchange("turn", "relative");
            }
        })
    };
    let mut served = 0;
    for (how, site) in fixture.all() {
        // Without the cache every request goes to the disk.
        let site = Site { cache: None, ..site };
        for _ in 0..1500 {
            let answer = raw(&site, "/turn/x").await;
            assert!(!answer.body.contains(CANARY), "{how}");
            served += usize::from(answer.status == 200);
        }
    }
    stop.store(true, Ordering::Relaxed);
    turner.join().unwrap();
    assert!(served > 0, "the folder had its turns too");
}

static CHANCE: LazyLock<(Fixture, tokio::runtime::Runtime)> = LazyLock::new(|| {
    (Fixture::new(), tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap())
});

/// Paths made of the pieces that matter, and paths of anything.
fn paths() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "/",
        "//",
        ".",
        "..",
        "%2e",
        "%2E%2e",
        "%2f",
        "%5c",
        "\\",
        "%00",
        "\0",
        "%",
        "%25",
        "%252e",
        "~",
        ";",
        ".env",
        "%2eenv",
        ".ENV",
        ".local",
        ".html",
        "canary.txt",
        "site",
        "site-canary.txt",
        "docs",
        "linked",
        "about",
        "out",
        "up",
        "absolute-out",
        "innocent",
        "magic",
        "proc",
        "self",
        "root",
        "pipe",
        "%ff",
        "ä",
    ]);
    prop_oneof![prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat()), ".*", "/.*"]
}

proptest! {
    #[test]
    fn nothing_outside_is_ever_served(path in paths()) {
        let (fixture, runtime) = &*CHANCE;
        for (how, site) in fixture.all() {
            let answer = runtime.block_on(raw(&site, &path));
            prop_assert!(matches!(answer.status, 200 | 308 | 404), "{how}: {path:?}");
            prop_assert!(!answer.body.contains(CANARY), "{how}: {path:?}");
        }
    }

    #[test]
    fn no_header_makes_it_fail(name in prop::sample::select(vec![
        "range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since",
    ]), value in prop_oneof!["bytes=[0-9]{0,21}-[0-9]{0,21}", "\"?[a-f0-9.-]*\"?", "[ -~]*"]) {
        let (fixture, runtime) = &*CHANCE;
        let site = fixture.site(SiteOptions::default());
        let answer = runtime.block_on(ask(&site, "GET", "/about", &[(name, &value)]));
        prop_assert!(matches!(answer.status, 200 | 206 | 304 | 412 | 416), "{name}: {value}");
        prop_assert!("about".contains(&*answer.body));
    }
}
