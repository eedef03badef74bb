//! What is served, as what, and when it is looked at again.

use std::time::{Duration, SystemTime};

use futures_util::FutureExt;

use super::*;

#[tokio::test]
async fn every_kind_of_path() {
    let fixture = Fixture::new();
    for (how, site) in fixture.all() {
        for (uri, status, body) in [
            ("/", 200, "home"),
            ("//", 200, "home"),
            ("/index.html", 200, "home"),
            ("/index", 200, "home"),
            ("/about", 200, "about"),
            ("/about.html", 200, "about"),
            ("/about?a=b", 200, "about"),
            ("/%61bout", 200, "about"),
            ("/file", 200, "file"),
            ("/both", 200, "both as a page"),
            ("/both/", 200, "both as a folder"),
            ("/docs/", 200, "docs"),
            ("//docs//", 200, "docs"),
            ("/docs/guide", 200, "guide"),
            ("/docs", 308, ""),
            ("/bare", 308, ""),
            ("/bare/x.txt", 200, "x"),
            ("/.hidden", 200, "hidden"),
            ("/.well-known/acme", 200, "acme"),
            ("/.env.d/x", 200, "inside a folder"),
            ("/a%20b.txt", 200, "space"),
            ("/100%.txt", 200, "percent"),
            ("/100%25.txt", 200, "percent"),
            ("/a%5Cb.txt", 200, "backslash"),
            ("/%252e.txt", 200, "a percent sign in the name"),
            ("/%c3%a4.txt", 200, "umlaut"),
            ("/%ff.txt", 200, "no UTF-8"),
            ("/bare/", 404, MISSING),
            ("/nothing", 404, MISSING),
            ("/about/", 404, MISSING),
            ("/style.css/", 404, MISSING),
            ("/style.css/x", 404, MISSING),
            ("/About", 404, MISSING),
        ] {
            // Twice: the second answer may come from memory.
            for _ in 0..2 {
                let answer = get(&site, uri).await;
                assert_eq!((answer.status, &*answer.body), (status, body), "{how}: {uri}");
                assert_eq!(answer.headers["cdn-cache-control"], "public, max-age=36000", "{how}: {uri}");
                assert_eq!(answer.headers["content-length"], body.len().to_string(), "{how}: {uri}");
            }
        }
    }
}

#[tokio::test]
async fn a_file_has_its_type_and_its_validators_and_is_not_compressed() {
    let fixture = Fixture::new();
    let site = fixture.site(SiteOptions::default());
    let answer = ask(&site, "GET", "/style.css", &[("accept-encoding", "gzip, br, zstd")]).await;
    assert_eq!(answer.headers["content-type"], "text/css; charset=utf-8");
    assert_eq!(answer.headers["accept-ranges"], "bytes");
    assert!(answer.headers["etag"].starts_with("\"3-"), "{answer:?}");
    assert!(answer.headers["last-modified"].ends_with(" GMT"));
    assert!(!answer.headers.contains_key("content-encoding"));
    assert_eq!(get(&site, "/about").await.headers["content-type"], "text/html; charset=utf-8");
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_other_methods_are_refused() {
    let fixture = Fixture::new();
    for (how, site) in fixture.all() {
        for uri in ["/", "/docs", "/nothing"] {
            let get = get(&site, uri).await;
            let head = ask(&site, "HEAD", uri, &[]).await;
            assert_eq!(
                (head.status, &head.headers, &*head.body),
                (get.status, &get.headers, ""),
                "{how}: {uri}"
            );
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "BREW"] {
            for uri in ["/", "/nothing", "/.env"] {
                let answer = ask(&site, method, uri, &[]).await;
                assert_eq!((answer.status, &*answer.headers["allow"]), (405, "GET, HEAD"), "{method} {uri}");
                assert_eq!(answer.headers["cdn-cache-control"], "public, max-age=36000");
            }
        }
    }
}

#[tokio::test]
async fn a_folder_is_redirected_relative_to_what_was_asked() {
    let fixture = Fixture::new();
    let site = fixture.site(SiteOptions::default());
    for (uri, path, location) in [
        ("/docs", "/docs", "./docs/"),
        ("/docs?a=b&c=/x", "/docs", "./docs/?a=b&c=/x"),
        ("/docs?", "/docs", "./docs/?"),
        ("/%64ocs", "/%64ocs", "./%64ocs/"),
        // Never `//docs/`, which would be the host `docs`.
        ("//docs", "//docs", "./docs/"),
        // Below a function's name.
        ("/site/docs", "/docs", "./docs/"),
        ("/site", "", "./site/"),
        ("/site?a", "", "./site/?a"),
    ] {
        let answer = read(site.serve(&parts("GET", uri, &[]), path).await).await;
        assert_eq!((answer.status, &*answer.headers["location"]), (308, location), "{uri}");
    }
    assert_eq!(read(site.serve(&parts("GET", "/", &[]), "").await).await.body, "home");
}

#[tokio::test]
async fn the_fallback_answers_what_is_not_there() {
    let fixture = Fixture::new();
    for name in ["style.css", "/style.css"] {
        let site = fixture.site(SiteOptions { fallback: Some(name.into()), ..SiteOptions::default() });
        for uri in ["/nothing", "/deep/route", "/.env", "/bare/", "/%00", "/../canary.txt", "/out"] {
            let answer = get(&site, uri).await;
            assert_eq!((answer.status, &*answer.body), (200, "css"), "{uri}");
            assert_eq!(answer.headers["content-type"], "text/css; charset=utf-8");
            assert_eq!(answer.headers["cdn-cache-control"], "public, max-age=36000");
        }
        assert_eq!(get(&site, "/docs").await.status, 308);
        assert_eq!(get(&site, "/about").await.body, "about");
    }
    for name in ["nothing", ".env", "docs/.env", "../canary.txt", "out", "innocent", "docs", "docs/", ""] {
        let site = fixture.site(SiteOptions { fallback: Some(name.into()), ..SiteOptions::default() });
        assert_eq!(get(&site, "/x").await.status, 404, "{name}");
    }
}

#[tokio::test]
async fn the_page_for_what_is_not_there_can_be_given() {
    let fixture = Fixture::new();
    let page = fixture.folder.path().join("404.html");
    let site = |page: &PathBuf| {
        fixture.site(SiteOptions { not_found: Some(page.clone()), ..SiteOptions::default() })
    };
    let built_in = get(&site(&page), "/x").await;
    assert!(built_in.body.contains("404") && built_in.body.contains("Page not found"));
    assert_eq!(built_in.headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(get(&site(&fixture.root()), "/x").await, built_in, "a folder");
    assert_eq!(get(&site(&fixture.root().join("pipe")), "/x").await, built_in, "a pipe");

    fs::write(&page, "lost").unwrap();
    let answer = get(&site(&page), "/x").await;
    assert_eq!((answer.status, &*answer.body), (404, "lost"));
    fs::write(&page, "x".repeat(MAX_MISSING as usize)).unwrap();
    assert_eq!(get(&site(&page), "/x").await.body.len(), MAX_MISSING as usize);
    fs::write(&page, "x".repeat(MAX_MISSING as usize + 1)).unwrap();
    assert_eq!(get(&site(&page), "/x").await, built_in);
}

#[tokio::test]
async fn the_cache_header_can_have_another_name() {
    let options = SiteOptions { cache_header: "x-edge".parse().unwrap(), ..SiteOptions::default() };
    let fixture = Fixture::new();
    let site = fixture.site(options);
    for uri in ["/", "/docs", "/nothing"] {
        let answer = get(&site, uri).await;
        assert_eq!(answer.headers["x-edge"], "public, max-age=36000", "{uri}");
        assert!(!answer.headers.contains_key("cdn-cache-control"), "{uri}");
    }
}

#[tokio::test]
async fn conditions_and_ranges_hold_for_files_in_memory_and_on_disk() {
    let fixture = Fixture::new();
    fixture.write("digits.txt", "0123456789");
    for (how, site) in fixture.all() {
        let full = get(&site, "/digits.txt").await;
        let (etag, date) = (&*full.headers["etag"], &*full.headers["last-modified"]);
        for (headers, status, body, range) in [
            (&[("if-none-match", etag)][..], 304, "", None),
            (&[("if-none-match", "\"x\"")], 200, "0123456789", None),
            (&[("if-modified-since", date)], 304, "", None),
            (&[("if-match", "\"x\"")], 412, "", None),
            (&[("range", "bytes=2-4")], 206, "234", Some("bytes 2-4/10")),
            (&[("range", "bytes=-2")], 206, "89", Some("bytes 8-9/10")),
            (&[("range", "bytes=7-")], 206, "789", Some("bytes 7-9/10")),
            (&[("range", "bytes=10-")], 416, "", Some("bytes */10")),
            (&[("range", "bytes=0-1,4-5")], 200, "0123456789", None),
            (&[("range", "bytes=2-4"), ("if-range", etag)], 206, "234", Some("bytes 2-4/10")),
            (&[("range", "bytes=2-4"), ("if-range", "\"x\"")], 200, "0123456789", None),
        ] {
            let answer = ask(&site, "GET", "/digits.txt", headers).await;
            assert_eq!((answer.status, &*answer.body), (status, body), "{how}: {headers:?}");
            assert_eq!(answer.headers.get("content-range").map(String::as_str), range, "{headers:?}");
            assert_eq!(answer.headers["etag"], etag);
            assert_eq!(answer.headers["cdn-cache-control"], "public, max-age=36000");
            if status == 206 {
                assert_eq!(answer.headers["content-length"], body.len().to_string());
            }
        }
        let head = ask(&site, "HEAD", "/digits.txt", &[("range", "bytes=2-4")]).await;
        assert_eq!((head.status, &*head.headers["content-length"]), (200, "10"), "{how}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_on_disk_is_seen_after_a_second() {
    let fixture = Fixture::new();
    let site = fixture.site(SiteOptions::default());
    let before = get(&site, "/about").await;
    fixture.write("about.html", "changed");
    assert_eq!(get(&site, "/about").await, before, "from memory");
    tokio::time::advance(cache::RECHECK).await;
    let after = get(&site, "/about").await;
    assert_eq!(after.body, "changed");
    assert_ne!(after.headers["etag"], before.headers["etag"]);

    // What an archive does: same size, same clock, other content.
    let path = fixture.root().join("about.html");
    let clock = fs::metadata(&path).unwrap().modified().unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "CHANGED").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(clock).unwrap();
    tokio::time::advance(cache::RECHECK).await;
    let again = get(&site, "/about").await;
    assert_eq!(again.body, "CHANGED");
    assert_ne!(again.headers["etag"], after.headers["etag"]);

    // A file that takes precedence appears; then all are gone.
    fixture.write("about", "the file itself");
    tokio::time::advance(cache::RECHECK).await;
    assert_eq!(get(&site, "/about").await.body, "the file itself");
    fs::remove_file(fixture.root().join("about")).unwrap();
    fs::remove_file(&path).unwrap();
    tokio::time::advance(cache::RECHECK).await;
    assert_eq!(get(&site, "/about").await.status, 404);
    assert_eq!(get(&site, "/about").await.status, 404, "and not from memory either");
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_file_is_not_read_again() {
    let fixture = Fixture::new();
    let site = fixture.site(SiteOptions::default());
    let path = SitePath::parse("/about").unwrap();
    let Target::File(first) = site.find(&path).await.unwrap() else { panic!("a file") };
    for _ in 0..3 {
        tokio::time::advance(cache::RECHECK).await;
        let Target::File(again) = site.find(&path).await.unwrap() else { panic!("a file") };
        assert!(Arc::ptr_eq(&first, &again));
    }
    tokio::time::advance(Duration::from_hours(24)).await;
    let Target::File(old) = site.find(&path).await.unwrap() else { panic!("a file") };
    assert!(!Arc::ptr_eq(&first, &old), "older than its TTL");
}

#[tokio::test(start_paused = true)]
async fn a_hot_file_is_answered_without_waiting_for_anything() {
    let fixture = Fixture::new();
    let site = fixture.site(SiteOptions::default());
    get(&site, "/about").await;
    fs::remove_file(fixture.root().join("about.html")).unwrap();
    let response = site.serve(&parts("GET", "/about", &[]), "/about").now_or_never();
    assert_eq!(read(response.expect("from memory")).await.body, "about");
}

#[tokio::test]
async fn a_clock_that_says_nothing_is_not_told() {
    let fixture = Fixture::new();
    let file = fs::File::options().write(true).open(fixture.root().join("about.html")).unwrap();
    for seconds in [0, 1] {
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        let answer = get(&fixture.site(SiteOptions::default()), "/about").await;
        assert!(!answer.headers.contains_key("last-modified"));
        assert!(answer.headers.contains_key("etag"));
    }
    let day = "Sat, 01 Jan 2022 00:00:00 GMT";
    file.set_modified(httpdate::parse_http_date(day).unwrap()).unwrap();
    let answer = get(&fixture.site(SiteOptions::default()), "/about").await;
    assert_eq!(answer.headers["last-modified"], day);
}

#[test]
fn what_is_no_folder_cannot_be_opened() {
    let fixture = Fixture::new();
    for name in ["nothing", "about.html", "pipe"] {
        assert!(Site::open(&fixture.root().join(name), SiteOptions::default()).is_err(), "{name}");
    }
}
