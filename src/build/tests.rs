//! The pipeline with real processes: bounds, queue, keys, what is left behind.

use std::path::Path;

use super::*;
use crate::adapter::process::ProcessAdapter;

struct Bench {
    dir: tempfile::TempDir,
    builds: Builds,
}

impl Bench {
    fn new(workers: usize, max_artifact: u64) -> Self {
        Self::reopen(tempfile::tempdir().unwrap(), workers, max_artifact)
    }

    fn reopen(dir: tempfile::TempDir, workers: usize, max_artifact: u64) -> Self {
        let data = dir.path().join("data");
        let runtimes = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtimes");
        let runtimes = Arc::new(Runtimes::open(Some(&runtimes), dir.path()).unwrap());
        let adapter = Arc::new(ProcessAdapter::new(data.join("run"), crate::config::search_path()));
        let options =
            BuildOptions { data, workers, timeout: Duration::from_mins(1), max_artifact, certificates: None };
        Self { builds: Builds::open(options, adapter, runtimes).unwrap(), dir }
    }

    fn source(&self, name: &str, command: &str) -> PathBuf {
        let folder = self.dir.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("index.js"), "").unwrap();
        let toml = format!("runtime = \"node\"\n[build]\ncommand = '''{command}'''\n");
        std::fs::write(folder.join("function.toml"), toml).unwrap();
        folder
    }

    async fn build(&self, name: &str, command: &str) -> Result<Built, BuildError> {
        let source = self.source(name, command);
        let build = self.builds.begin(name).unwrap();
        let _turn = self.builds.turn(name).await;
        let result = self.builds.run(&build, Source::Folder(source)).await;
        build.log.end(End::Done { version: None });
        result
    }

    fn artifacts(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("data/artifacts")).unwrap().count()
    }
}

#[tokio::test]
async fn a_result_may_have_as_many_bytes_as_allowed_and_not_one_more() {
    let bench = Bench::new(1, 100_000);
    // With the manifest and an empty index.js.
    let command = "rm -f data; head -c $((SIZE - $(cat function.toml index.js | wc -c))) /dev/urandom > data";
    let command = |size: u64| command.replace("SIZE", &size.to_string());
    // The archive has to fit, too: random bytes do not get smaller, so there the manifest's size is the
    // difference.
    let error = bench.build("f", &command(100_001)).await.unwrap_err();
    assert_eq!(error.to_string(), "the result has 100001 bytes, more than the 100000 that are allowed");
    assert_eq!(bench.artifacts(), 0, "nothing is left");
    let command = command(100_000).replace("urandom", "zero");
    let built = bench.build("f", &command).await.unwrap();
    let size = staging::size(&built.function.folder);
    assert_eq!((size, bench.artifacts()), (100_000, 2));
}

#[tokio::test]
async fn one_worker_does_one_after_another() {
    let bench = Bench::new(1, 1 << 20);
    let turns = bench.dir.path().join("turns");
    let command = format!("echo begin >> {0}; sleep 0.1; echo end >> {0}", turns.display());
    let (a, b, c) =
        tokio::join!(bench.build("a", &command), bench.build("b", &command), bench.build("c", &command));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(std::fs::read_to_string(turns).unwrap(), "begin\nend\n".repeat(3));
}

#[tokio::test]
async fn a_result_is_used_again_until_something_changes() {
    let bench = Bench::new(2, 1 << 20);
    let runs = bench.dir.path().join("runs");
    let count = || std::fs::read_to_string(&runs).unwrap_or_default().lines().count();
    let command = format!("echo ran >> {}", runs.display());
    let first = bench.build("f", &command).await.unwrap();
    let again = bench.build("f", &command).await.unwrap();
    assert_eq!(
        (count(), &first.hash, first.function.source.clone()),
        (1, &again.hash, bench.dir.path().join("f"))
    );
    std::fs::write(bench.dir.path().join("f/index.js"), "changed").unwrap();
    let mut changed = command.clone();
    changed.push_str("; true");
    bench.build("f", &changed).await.unwrap();
    assert_eq!(count(), 2);
    let bench = Bench::reopen(bench.dir, 2, 1 << 20);
    let kept = bench.build("f", &changed).await.unwrap();
    assert_eq!(count(), 2, "also after a restart");
    // What nothing names and nobody uses goes.
    let old = first.function.folder.clone();
    drop((first, again));
    bench.builds.collect().await;
    assert!(!old.exists() && kept.function.folder.is_dir() && !bench.builds.has_leftovers());
    bench.builds.forget_all_but(&|_| false);
    bench.builds.collect().await;
    assert!(kept.function.folder.is_dir() && bench.builds.has_leftovers(), "somebody uses it");
    drop(kept);
    bench.builds.collect().await;
    assert_eq!(bench.artifacts(), 0);
}

#[tokio::test]
async fn links_that_lead_out_are_left_out_and_what_is_cut_off_is_removed() {
    let bench = Bench::new(1, 1 << 20);
    let built = bench.build("f", "ln -s /etc/passwd out; ln -s index.js inside; mkfifo pipe").await.unwrap();
    let has = |name: &str| built.function.folder.join(name).symlink_metadata().is_ok();
    assert!(has("inside") && !has("out") && !has("pipe"));
    let staging = bench.dir.path().join("data/staging");
    std::fs::create_dir_all(staging.join("left/over")).unwrap();
    std::fs::create_dir_all(bench.dir.path().join("data/artifacts/.half.tmp")).unwrap();
    let bench = Bench::reopen(bench.dir, 1, 1 << 20);
    assert_eq!(std::fs::read_dir(&staging).unwrap().count(), 0);
    assert_eq!(bench.artifacts(), 2);
    bench.builds.close();
    let error = bench.build("g", "true").await.unwrap_err();
    assert!(matches!(error, BuildError::Cancelled), "{error}");
}

#[tokio::test]
async fn uploads_are_bounded() {
    let bench = Bench::new(1, 1 << 20);
    let mut all: Vec<_> = (0..UPLOADS).map(|_| bench.builds.upload().unwrap()).collect();
    assert!(matches!(bench.builds.upload(), Err(BuildError::QueueFull(UPLOADS))), "one above the bound");
    all.pop();
    assert!(bench.builds.upload().is_ok());
}

#[tokio::test]
async fn what_a_command_puts_in_the_place_of_the_manifest_is_not_opened() {
    let bench = Bench::new(1, 1 << 20);
    let secret = bench.dir.path().join("secret");
    std::fs::write(&secret, "of this host").unwrap();
    let link =
        format!("rm function.toml; ln -s {} function.toml; mkdir -p out; cp index.js out", secret.display());
    for (name, more) in
        [("f", "true"), ("g", "cp -d function.toml out"), ("h", "mkdir -p out/function.toml/x")]
    {
        for output in ["", "'''\noutput = '''out"] {
            let built = bench.build(name, &format!("{link}; {more}{output}")).await.unwrap();
            let read = |folder: &Path| std::fs::read_to_string(folder.join("function.toml")).unwrap();
            assert_eq!(read(&built.function.folder), read(&bench.dir.path().join(name)), "{more}{output}");
        }
    }
}

#[tokio::test]
async fn the_data_folder_may_be_behind_a_link() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", dir.path().join("data")).unwrap();
    let bench = Bench::reopen(dir, 1, 1 << 20);
    let built = bench.build("f", "mkdir out; cp index.js out'''\noutput = '''out").await.unwrap();
    assert!(built.function.folder.join("index.js").is_file());
}

#[tokio::test]
async fn a_cancelled_build_leaves_no_artifact_even_if_it_was_being_packed() {
    let bench = Bench::new(1, 64 << 20);
    let source = bench.source("f", "head -c 20000000 /dev/urandom > data");
    let artifacts = bench.dir.path().join("data/artifacts");
    let build = bench.builds.begin("f").unwrap();
    let packing = async {
        // The archive is begun under a name with a dot.
        while std::fs::read_dir(&artifacts).unwrap().next().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        build.cancel();
    };
    let (result, ()) = tokio::join!(bench.builds.run(&build, Source::Folder(source)), packing);
    assert!(matches!(result, Err(BuildError::Cancelled)));
    bench.builds.collect().await;
    assert_eq!((bench.artifacts(), bench.builds.has_leftovers()), (0, false));
}

#[tokio::test]
async fn nothing_is_removed_while_it_is_not_known_what_is_kept() {
    let bench = Bench::new(1, 1 << 20);
    drop(bench.build("f", "true").await.unwrap());
    let file = bench.dir.path().join("data/built/f/versions.json");
    let aside = file.with_extension("aside");
    std::fs::rename(&file, &aside).unwrap();
    std::fs::create_dir(&file).unwrap();
    bench.builds.collect().await;
    assert!(bench.artifacts() == 2 && bench.builds.has_leftovers(), "it is tried again");
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    bench.builds.collect().await;
    assert!(bench.artifacts() == 2 && !bench.builds.has_leftovers());
}
