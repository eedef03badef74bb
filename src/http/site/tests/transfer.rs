//! Large files in pieces, and what really goes over a connection.

use std::os::unix::fs::FileExt;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const LARGE: u64 = 200 << 20;

/// Whether this process has the file open.
fn is_open(path: &Path) -> bool {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    open.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|open| open == path))
}

fn large(fixture: &Fixture) -> PathBuf {
    let path = fixture.root().canonicalize().unwrap().join("large.bin");
    let file = fs::File::create(&path).unwrap();
    file.set_len(LARGE).unwrap();
    file.write_all_at(b"middle", LARGE / 2).unwrap();
    file.write_all_at(b"end", LARGE - 3).unwrap();
    path
}

#[tokio::test]
async fn a_large_file_is_sent_in_pieces_that_are_read_as_they_are_taken() {
    let fixture = Fixture::new();
    let path = large(&fixture);
    let site = fixture.site(SiteOptions::default());
    let response = site.serve(&parts("GET", "/large.bin", &[]), "/large.bin").await;
    assert_eq!(response.headers()[CONTENT_LENGTH], LARGE.to_string());
    assert_eq!(response.headers()[CONTENT_TYPE], "application/octet-stream");

    let mut body = response.into_body();
    for _ in 0..10 {
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(piece.len(), PIECE);
    }
    assert!(is_open(&path));
    drop(body);
    assert!(!is_open(&path), "who leaves early leaves nothing open");

    let mut body = site.serve(&parts("GET", "/large.bin", &[]), "/large.bin").await.into_body();
    let mut length = 0;
    while let Some(piece) = body.frame().await {
        let piece = piece.unwrap().into_data().unwrap();
        assert!(piece.len() <= PIECE);
        length += piece.len() as u64;
    }
    assert_eq!(length, LARGE);
}

#[tokio::test]
async fn parts_of_a_large_file() {
    let fixture = Fixture::new();
    large(&fixture);
    let site = fixture.site(SiteOptions::default());
    let middle = format!("bytes={}-{}", LARGE / 2, LARGE / 2 + 5);
    for (range, body) in [(&*middle, "middle"), ("bytes=-3", "end")] {
        let answer = ask(&site, "GET", "/large.bin", &[("range", range)]).await;
        assert_eq!((answer.status, &*answer.body), (206, body), "{range}");
    }
}

/// One byte below, at and above each bound where the way of sending changes.
#[tokio::test]
async fn every_size_arrives_whole() {
    let fixture = Fixture::new();
    let max_file = 3 * PIECE as u64;
    let cache = CacheOptions { max_file, ..CacheOptions::default() };
    let site = fixture.site(SiteOptions { memory_cache: Some(cache), ..SiteOptions::default() });
    for bound in [1, PIECE, 2 * PIECE, 3 * PIECE, 4 * PIECE] {
        for size in [bound - 1, bound, bound + 1] {
            let content: String = (0..size).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
            let name = format!("{size}.txt");
            fixture.write(&name, &content);
            for _ in 0..2 {
                let answer = get(&site, &format!("/{name}")).await;
                assert_eq!(answer.headers["content-length"], size.to_string());
                assert!(answer.body == content, "{size} bytes");
            }
            let kept = matches!(site.cache.as_ref().unwrap().get(name.as_bytes()), Lookup::Fresh(_));
            assert_eq!(kept, size as u64 <= max_file, "{size} bytes");
        }
    }
}

#[tokio::test]
async fn with_too_much_to_read_at_once_files_come_from_disk() {
    let fixture = Fixture::new();
    let content = "x".repeat(PIECE + 1);
    fixture.write("large.txt", &content);
    let site = fixture.site(SiteOptions::default());
    let all = Arc::clone(&site.fills).try_acquire_many_owned(FILLS as u32).unwrap();
    let path = SitePath::parse("/large.txt").unwrap();
    let is_whole = async || match site.find(&path).await.unwrap() {
        Target::File(file) => file.is_whole(),
        _ => panic!("a file"),
    };
    assert!(!is_whole().await);
    assert_eq!(get(&site, "/large.txt").await.body, content);
    drop(all);
    assert!(is_whole().await);
    assert_eq!(site.fills.available_permits(), FILLS, "given back");
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_sent_breaks_the_answer_off() {
    let fixture = Fixture::new();
    let path = large(&fixture);
    let site = fixture.site(SiteOptions::default());
    let mut body = site.serve(&parts("GET", "/large.bin", &[]), "/large.bin").await.into_body();
    body.frame().await.unwrap().unwrap();
    fs::File::options().write(true).open(path).unwrap().set_len(5).unwrap();
    assert!(body.frame().await.unwrap().is_err());
}

/// Sends a request and reads until the server closes.
async fn exchange(site: &Arc<Site>, request: &str) -> String {
    let (mut client, server) = tokio::io::duplex(64 << 10);
    let site = Arc::clone(site);
    let serving = tokio::spawn(async move {
        let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let site = Arc::clone(&site);
            async move {
                let (parts, _) = request.into_parts();
                Ok::<_, std::convert::Infallible>(site.serve(&parts, parts.uri.path()).await)
            }
        });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), answer).await
    });
    let request = format!("{request}\r\nhost: x\r\nconnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    serving.await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn on_the_wire() {
    let fixture = Fixture::new();
    let content = "y".repeat(3 * PIECE + 1);
    fixture.write("long.txt", &content);
    for options in [SiteOptions::default(), SiteOptions { memory_cache: None, ..SiteOptions::default() }] {
        let site = Arc::new(fixture.site(options));
        let length = format!("content-length: {}\r\n", content.len());
        let get = exchange(&site, "GET /long.txt HTTP/1.1").await;
        assert!(get.starts_with("HTTP/1.1 200 OK\r\n") && get.contains(&length), "{get:.500}");
        assert!(!get.contains("transfer-encoding"), "{get:.500}");
        assert!(get.ends_with(&format!("\r\n\r\n{content}")));

        let head = exchange(&site, "HEAD /long.txt HTTP/1.1").await;
        assert!(head.contains(&length) && head.ends_with("\r\n\r\n"), "{head}");
        let part = exchange(&site, "GET /long.txt HTTP/1.1\r\nrange: bytes=0-4").await;
        assert!(part.starts_with("HTTP/1.1 206 ") && part.ends_with("\r\n\r\nyyyyy"), "{part}");
        let missing = exchange(&site, "GET /../canary.txt HTTP/1.1").await;
        assert!(missing.starts_with("HTTP/1.1 404 ") && missing.ends_with(MISSING), "{missing}");
        let etag = get.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
        let same = exchange(&site, &format!("GET /long.txt HTTP/1.1\r\nif-none-match: {etag}")).await;
        assert!(same.starts_with("HTTP/1.1 304 ") && same.ends_with("\r\n\r\n"), "{same}");
        let moved = exchange(&site, "GET /docs?q HTTP/1.1").await;
        assert!(moved.starts_with("HTTP/1.1 308 ") && moved.contains("location: ./docs/?q\r\n"), "{moved}");
    }
}
