//! The adapter against the real Docker of this host.
//!
//! They fail where Docker does not answer or `debian:trixie-slim` is missing (docker/base-image.sh makes it); a host
//! without Docker leaves them out by name: `cargo test -- --skip docker_`. Their runtime is Perl, since the base
//! image already has it: the worker runs a script from the function's folder, and each test writes its own.

use std::fs;
use std::time::Duration;

use bollard::models::ContainerSummary;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;

use super::*;
use crate::function;
use crate::instance::{InstanceId, Secret};
use crate::runtime::Runtimes;

const RUNTIME: &str = r#"
entrypoint = "main.pl"
worker = "src/worker.pl"
command = ["{program}", "{worker}", "{memory-mib}"]
[process]
program = ["perl"]
locate = ["-e", "print qq($^X 5)"]
minimum = "5"
install = ""
[docker]
program = "perl"
version = "5.40"
"#;
const DOCKERFILE: &str =
    "ARG BASE=debian:trixie-slim\nFROM $BASE\nRUN echo hello from the build\nCOPY . /usr/local/server\n";
/// Connects, as every worker does, and gives the script the connection.
const WORKER: &str = r"use strict; use Socket;
socket(our $host, AF_UNIX, SOCK_STREAM, 0) or die $!;
connect($host, sockaddr_un($ENV{EXECUTOR_LINK})) or die qq(connect: $!\n);
$host->autoflush(1); $| = 1;
do './main.pl'; die $@ if $@;
";

/// Long enough for any step of a test on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// All tests use one image, but each has an adapter of its own; only within one adapter a build is done once.
static BUILDING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A data folder, a runtime and a function whose code is a Perl script.
struct Bench {
    dir: TempDir,
    runtime: Arc<Runtime>,
    function: Arc<function::Function>,
    adapter: DockerAdapter,
}

impl Bench {
    async fn new(script: &str) -> Self {
        Self::with(script, Network::None).await
    }

    async fn with(script: &str, network: Network) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("runtimes/perl/src")).unwrap();
        fs::create_dir_all(at("functions/test")).unwrap();
        fs::write(at("runtimes/perl/runtime.toml"), RUNTIME).unwrap();
        fs::write(at("runtimes/perl/Dockerfile"), DOCKERFILE).unwrap();
        fs::write(at("runtimes/perl/src/worker.pl"), WORKER).unwrap();
        fs::write(at("functions/test/main.pl"), format!("our $host;\n{script}\n;1;\n")).unwrap();
        fs::write(at("functions/test/function.toml"), "runtime = \"perl\"\nmemory = \"128MiB\"\n").unwrap();
        let runtimes = Runtimes::open(Some(&at("runtimes")), &at("data")).unwrap();
        let function = function::read_entry(&at("functions/test"), "test", &runtimes).function.unwrap();
        let adapter = DockerAdapter::connect(options(&dir, network)).await.unwrap();
        let runtime = runtimes.get("perl").unwrap();
        let building = BUILDING.lock().await;
        adapter.prepare(&runtime, None).await.unwrap();
        drop(building);
        Self { dir, runtime, function, adapter }
    }

    fn launch(&self) -> (Launch, UnixListener) {
        use std::os::unix::fs::PermissionsExt as _;
        let id = InstanceId::new();
        let folder = self.dir.path().join("run").join(id.to_string());
        fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("link.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        let (function, runtime) = (Arc::clone(&self.function), Arc::clone(&self.runtime));
        (Launch { id, function, runtime, folder, socket, token: Secret::generate() }, listener)
    }

    async fn start(&self) -> (Box<dyn Unit>, UnixListener) {
        let (launch, listener) = self.launch();
        (within(self.adapter.start(&launch)).await.unwrap(), listener)
    }

    /// Starts one instance and gives all that its script says over the link.
    async fn hear(&self) -> (Box<dyn Unit>, String) {
        let (mut unit, listener) = self.start().await;
        let listen = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            said
        };
        tokio::select! {
            said = within(listen) => (unit, said),
            exit = unit.ended() => panic!("it ended before it said all: {exit}"),
        }
    }

    /// The containers of this test's data folder.
    async fn containers(&self) -> Vec<ContainerSummary> {
        let label = format!("{OWNER}={}", self.adapter.shared.owner);
        ledger::list(&self.adapter.shared.client, vec![label]).await.unwrap()
    }
}

impl Drop for Bench {
    /// A failed test must not leave containers behind either.
    fn drop(&mut self) {
        let filter = format!("label={OWNER}={}", self.adapter.shared.owner);
        let script = format!("docker ps -aq --filter '{filter}' | xargs -r docker rm -f");
        let _ = std::process::Command::new("sh").args(["-c", &script]).output();
    }
}

fn options(dir: &TempDir, network: Network) -> DockerOptions {
    DockerOptions { data: dir.path().join("data"), host: None, network, user: None, registry: None }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it took too long")
}

const SAY_AND_WAIT: &str = "syswrite($host, qq(token $ENV{EXECUTOR_TOKEN})); shutdown($host, 1); sleep 1000";

#[tokio::test(flavor = "multi_thread")]
async fn docker_worker_dials_and_kill_leaves_nothing() {
    let bench = Bench::new(SAY_AND_WAIT).await;
    let (mut unit, said) = bench.hear().await;
    assert_eq!(said.len(), "token ".len() + 32, "{said}");
    let containers = bench.containers().await;
    assert_eq!(containers.len(), 1);
    let labels = containers[0].labels.as_ref().unwrap();
    assert_eq!(labels[FUNCTION], "test");
    assert!(containers[0].names.as_ref().unwrap()[0].starts_with("/executor-test-"));
    // Waiting can be given up and taken up again.
    assert!(tokio::time::timeout(Duration::from_millis(50), unit.ended()).await.is_err());
    assert_eq!(within(unit.kill()).await.reason, "was killed by signal 9");
    assert!(bench.containers().await.is_empty());
    assert_eq!(within(unit.kill()).await.reason, "was killed by signal 9");
    assert_eq!(within(unit.ended()).await.reason, "was killed by signal 9");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_end_tells_code_and_last_words() {
    let bench = Bench::new("print qq(lost\\n) x 5000; warn qq(it is over\\n); exit 7").await;
    let (mut unit, _listener) = bench.start().await;
    for _ in 0..2 {
        let exit = within(unit.ended()).await;
        assert_eq!(exit.reason, "exited with code 7");
        assert!(exit.last_words.contains("it is over"), "{exit}");
        assert!(exit.last_words.len() <= 4096);
    }
    assert_eq!(within(unit.kill()).await.reason, "exited with code 7");
    assert!(bench.containers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_signal_and_foreign_removal_are_told() {
    let bench = Bench::new("kill 'SEGV', $$; sleep 1000").await;
    let (mut unit, _listener) = bench.start().await;
    assert_eq!(within(unit.ended()).await.reason, "was killed by signal 11");
    within(unit.kill()).await;

    let bench = Bench::new(SAY_AND_WAIT).await;
    let (mut unit, _) = bench.hear().await;
    let name = bench.containers().await[0].names.as_ref().unwrap()[0].trim_start_matches('/').to_owned();
    let remove = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        container::remove(&bench.adapter.shared.client, &name).await.unwrap();
    };
    let (exit, ()) = within(async { tokio::join!(unit.ended(), remove) }).await;
    assert!(exit.reason.contains("killed by signal 9") || exit.reason.contains("by someone else"), "{exit}");
    within(unit.kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_out_of_memory_is_told() {
    let bench = Bench::new("my $x = 'x' x (300 << 20); sleep 1000").await;
    let (mut unit, _listener) = bench.start().await;
    assert_eq!(within(unit.ended()).await.reason, "ran out of its 128 MiB memory");
    within(unit.kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_sweep_takes_only_what_is_left_of_the_same_owner() {
    let (mine, other) = (Bench::new(SAY_AND_WAIT).await, Bench::new(SAY_AND_WAIT).await);
    let (_foreign, _) = other.hear().await;
    let (live, _) = mine.hear().await;
    // What a crash leaves: a container that this process knows nothing of.
    let (crashed, _) = mine.hear().await;
    let id = mine.containers().await[0].labels.as_ref().unwrap()[INSTANCE].clone();
    assert!(mine.adapter.shared.ledger().live.remove(&id));
    assert_eq!(within(mine.adapter.sweep()).await.unwrap(), 1);
    assert_eq!((mine.containers().await.len(), other.containers().await.len()), (1, 1));
    // Dropped units are removed by the next sweep as well.
    drop((live, crashed));
    within(mine.adapter.sweep()).await.unwrap();
    assert_eq!((mine.containers().await.len(), other.containers().await.len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_dropped_start_leaves_nothing_running() {
    let bench = Bench::new(SAY_AND_WAIT).await;
    for millis in [1, 15, 60, 100] {
        let (launch, _listener) = bench.launch();
        let start = bench.adapter.start(&launch);
        drop(tokio::time::timeout(Duration::from_millis(millis), start).await);
    }
    let (mut unit, _) = bench.hear().await;
    let running = bench.containers().await.into_iter().filter(|c| c.state != Some(created())).count();
    assert_eq!(running, 1);
    within(unit.kill()).await;
    within(bench.adapter.sweep()).await.unwrap();
    assert!(bench.containers().await.is_empty());
}

fn created() -> bollard::models::ContainerSummaryStateEnum {
    bollard::models::ContainerSummaryStateEnum::CREATED
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_instances_are_locked_in() {
    let bench = Bench::new(
        r"sub tries { my ($name, $ok) = @_; syswrite($host, qq($name=) . ($ok ? 1 : 0) . qq(\n)); }
        sub slurp { local $/; open(my $f, '<', shift) or return ''; <$f> }
        my $status = slurp('/proc/self/status');
        syswrite($host, qq{uid=$> gid=$)\n}); syswrite($host, qq($1\n)) while $status =~ /^((?:CapEff|CapBnd|NoNewPrivs|Seccomp):.*)$/mg;
        tries('write root', open(my $a, '>', '/x')); tries('write server', open(my $b, '>', '/usr/local/server/x'));
        tries('write function', open(my $c, '>', 'x')); tries('write link', open(my $d, '>', '/run/executor/x'));
        tries('write tmp', open(my $e, '>', '/tmp/x')); tries('docker', -e '/var/run/docker.sock'); tries('localhost', gethostbyname('localhost'));
        my $size = 0; $size += syswrite($e, 'x' x 65536) || last for 1..4096; syswrite($host, qq(tmp=$size\n)); truncate($e, 0);
        syswrite($host, 'net=' . readlink('/proc/self/ns/net') . qq(\n)); syswrite($host, qq(dev=) . join(' ', slurp('/proc/net/dev') =~ /^\s*(\w+):/mg) . qq(\n));
        my @files; while (open(my $f, '<', '/dev/null')) { push @files, $f } syswrite($host, 'files=' . @files . qq(\n)); @files = ();
        my $n = 0; while (1) { my $p = fork(); last unless defined $p; if (!$p) { sleep 1000; exit } $n++ } syswrite($host, qq(forks=$n\n));
        shutdown($host, 1); sleep 1000",
    )
    .await;
    let (mut unit, said) = bench.hear().await;
    within(unit.kill()).await;
    assert!(bench.containers().await.is_empty());
    for line in ["uid=10001 gid=10001 10001\n", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    for line in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "write root=0",
        "write server=0",
        "write function=0",
        "write link=0",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    for line in ["write tmp=1", "docker=0", "localhost=1", "dev=lo\n"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let number = |key: &str| -> u64 {
        let line = said.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("no {key} in {said}")).parse().unwrap()
    };
    assert!(number("tmp=") <= 64 << 20, "{said}");
    assert!(number("files=") < 16_384, "{said}");
    assert!(number("forks=") < 256, "{said}");
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert!(!said.contains(own.to_str().unwrap()), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_bridge_keeps_instances_apart() {
    let name = format!("executor-test-{}", InstanceId::new());
    // Listens, tells its address, then tries the address it gets.
    let script = r"use IO::Socket::INET; my $l = IO::Socket::INET->new(Listen => 1, LocalPort => 7000) or die $@;
        my ($ip) = map { join '.', unpack 'C4', pack 'H8', $_ } (); open(my $f, '<', '/proc/net/fib_trie'); my @l = <$f>;
        for my $i (1..$#l) { $ip = $1 if $l[$i] =~ /host LOCAL/ && $l[$i-1] =~ /-- ((?!127)[\d.]+)/ }
        syswrite($host, qq($ip\n)); my $peer = <$host>; chomp $peer;
        my $own = IO::Socket::INET->new(PeerAddr => $ip, PeerPort => 7000, Timeout => 2) ? 1 : 0;
        my $other = IO::Socket::INET->new(PeerAddr => $peer, PeerPort => 7000, Timeout => 2) ? 1 : 0;
        syswrite($host, qq(own=$own other=$other\n)); sleep 1000";
    let bench = Bench::with(script, Network::Bridge(name.clone())).await;
    let (one, two) = tokio::join!(bench.start(), bench.start());
    let talk = async {
        use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
        let (a, b) = (one.1.accept().await.unwrap().0, two.1.accept().await.unwrap().0);
        let (mut a, mut b) = (BufReader::new(a), BufReader::new(b));
        let (mut at_a, mut at_b, mut answer) = (String::new(), String::new(), String::new());
        a.read_line(&mut at_a).await.unwrap();
        b.read_line(&mut at_b).await.unwrap();
        assert_ne!(at_a, at_b);
        a.write_all(at_b.as_bytes()).await.unwrap();
        a.read_line(&mut answer).await.unwrap();
        answer
    };
    let answer = within(talk).await;
    for (mut unit, _) in [one, two] {
        within(unit.kill()).await;
    }
    let client = &bench.adapter.shared.client;
    let networks = client.docker.list_networks(None).await.unwrap();
    let same: Vec<_> = networks.into_iter().filter(|n| n.name.as_deref() == Some(&name)).collect();
    for network in &same {
        client.docker.remove_network(network.id.as_deref().unwrap()).await.unwrap();
    }
    assert_eq!(same.len(), 1, "concurrent starts must make one network");
    assert_eq!(answer, "own=1 other=0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_images_are_built_once_and_failures_are_told() {
    let bench = Bench::new("").await;
    let Ok(ImageState::Ready(tag)) = bench.adapter.can_build(&bench.runtime).await else { panic!() };
    assert!(tag.starts_with("executor-runtime-perl:"));
    for good in ["5", "5.40"] {
        bench.adapter.prepare(&bench.runtime, Some(good)).await.unwrap();
    }
    for bad in ["5.4", "6", "5.40.1"] {
        let error = bench.adapter.prepare(&bench.runtime, Some(bad)).await.unwrap_err();
        assert!(matches!(&error, AdapterError::Missing(text) if text.contains("perl-5.40")), "{error}");
    }
    let runtime = |hash: &str, dockerfile: &str| {
        let folder = bench.dir.path().join(hash);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("Dockerfile"), dockerfile).unwrap();
        let manifest = bench.runtime.manifest.clone();
        Runtime { name: "perl".to_owned(), folder, manifest, hash: format!("{hash}-{}", InstanceId::new()) }
    };
    let broken = runtime("broken", "FROM debian:trixie-slim\nRUN echo first the reason >&2; exit 3\n");
    assert_eq!(bench.adapter.can_build(&broken).await.unwrap(), ImageState::Buildable);
    let error = within(bench.adapter.prepare(&broken, None)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, AdapterError::Failed(_)), "{text}");
    assert!(text.contains("first the reason") && text.contains("code: 3"), "{text}");

    let slow = runtime("slow", &format!("FROM {BASE_IMAGE}\nRUN sleep 1; date +%N > /when\n"));
    let both = async { tokio::join!(bench.adapter.prepare(&slow, None), bench.adapter.prepare(&slow, None)) };
    let (one, two) = within(both).await;
    one.and(two).unwrap();
    let tag = image::tag(&slow);
    let no_options = None::<bollard::query_parameters::RemoveImageOptions>;
    bench.adapter.shared.client.docker.remove_image(&tag, no_options, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_missing_folders_are_refused_and_leave_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new(SAY_AND_WAIT).await;
    let (mut launch, _listener) = bench.launch();
    let nowhere = bench.dir.path().join("nowhere");
    launch.function = Arc::new(function::Function { folder: nowhere.clone(), ..(*launch.function).clone() });
    let error = bench.adapter.start(&launch).await.err().unwrap();
    assert!(matches!(&error, AdapterError::Failed(text) if text.contains("nowhere")), "{error}");
    assert!(!nowhere.exists(), "Docker must not make folders of its own");
    assert!(bench.containers().await.is_empty());

    let (launch, _listener) = bench.launch();
    fs::set_permissions(&bench.function.folder, fs::Permissions::from_mode(0o700)).unwrap();
    let error = bench.adapter.start(&launch).await.err().unwrap();
    assert!(error.to_string().contains("chmod -R o+rX"), "{error}");
}
