//! A folder with everything in it that may be asked for, and things beside it that must never be served.

mod attacks;
mod rules;
mod transfer;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use http_body_util::BodyExt;
use tempfile::TempDir;

use super::*;

/// What stands in every file that must not be served.
const CANARY: &str = "CANARY";

/// `site/` inside a folder of secrets.
struct Fixture {
    folder: TempDir,
}

/// An answer that was read to its end.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Fixture {
    fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap() };
        let canary = this.folder.path().join("canary.txt");
        fs::write(&canary, CANARY).unwrap();
        fs::write(this.folder.path().join("site-canary.txt"), CANARY).unwrap();
        for (name, content) in [
            ("index.html", "home"),
            ("about.html", "about"),
            ("style.css", "css"),
            ("both.html", "both as a page"),
            ("both/index.html", "both as a folder"),
            ("file", "file"),
            ("file.html", "file as a page"),
            ("docs/index.html", "docs"),
            ("docs/guide.html", "guide"),
            ("bare/x.txt", "x"),
            (".hidden", "hidden"),
            (".well-known/acme", "acme"),
            (".env.d/x", "inside a folder"),
            (".env", CANARY),
            (".env.html", CANARY),
            (".env.local", CANARY),
            ("docs/.env", CANARY),
            (".env.d/index.html", CANARY),
            ("a b.txt", "space"),
            ("100%.txt", "percent"),
            ("a\\b.txt", "backslash"),
            ("%2e.txt", "a percent sign in the name"),
            ("ä.txt", "umlaut"),
        ] {
            this.write(name, content);
        }
        let bytes = this.root().join(std::ffi::OsStr::from_bytes(b"\xff.txt"));
        fs::write(bytes, "no UTF-8").unwrap();
        for (target, link) in [
            ("about.html", "link.html"),
            ("docs", "linked"),
            ("docs/../about.html", "there-and-back"),
            ("../canary.txt", "out"),
            ("..", "up"),
            ("loop", "loop"),
            (".env", "innocent"),
            ("/proc/self/root", "magic"),
            ("nowhere", "broken"),
        ] {
            symlink(target, this.root().join(link)).unwrap();
        }
        symlink(&canary, this.root().join("absolute-out")).unwrap();
        symlink(this.root().join("about.html"), this.root().join("absolute-in")).unwrap();
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from(0o666));
        rustix::fs::mknodat(rustix::fs::CWD, this.root().join("pipe"), kind, mode, 0).unwrap();
        UnixListener::bind(this.root().join("socket")).unwrap();
        this
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("site")
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn site(&self, options: SiteOptions) -> Site {
        Site::open(&self.root(), options).unwrap()
    }

    /// One site for each way to open files, with and without the cache.
    fn all(&self) -> Vec<(&'static str, Site)> {
        let options = SiteOptions { not_found: None, ..SiteOptions::default() };
        let uncached = SiteOptions { memory_cache: None, ..options.clone() };
        let following = SiteOptions { follow_symlinks: true, ..options.clone() };
        let stepwise = Root::stepwise(&self.root()).unwrap();
        vec![
            ("openat2", self.site(options.clone())),
            ("openat2 without a cache", self.site(uncached)),
            ("openat2 following links", self.site(following)),
            ("folder by folder", Site::new(stepwise, options)),
        ]
    }
}

fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut builder = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

async fn read(response: Response<AnswerBody>) -> Answer {
    let (parts, body) = response.into_parts();
    let headers = parts.headers.iter();
    Answer {
        status: parts.status.as_u16(),
        headers: headers.map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect(),
        body: String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
    }
}

async fn ask(site: &Site, method: &str, uri: &str, headers: &[(&str, &str)]) -> Answer {
    let parts = parts(method, uri, headers);
    read(site.serve(&parts, parts.uri.path()).await).await
}

async fn get(site: &Site, uri: &str) -> Answer {
    ask(site, "GET", uri, &[]).await
}
