//! Guests against the real Docker of this host.
//!
//! As in `tests`: they fail where Docker does not answer or `debian:trixie-slim` is missing. The images without most
//! or all tools are made from it, with one package from the distribution's mirror, under names used once.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use bollard::models::ContainerSummary;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::*;
use crate::adapter::guest::{ExecError, Guest, GuestLaunch, Guests, Mount, Piece, RestartPolicy};
use crate::instance::{Exit, InstanceId};

/// Long enough for any step of a test on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);
pub(super) const SLEEP: &str = "exec sleep 1000";

pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it took too long")
}

pub(super) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|word| (*word).to_owned()).collect()
}

pub(super) fn shell(script: &str) -> Vec<String> {
    words(&["sh", "-c", script])
}

/// An adapter with a data folder and a network of its own.
pub(super) struct House {
    pub(super) dir: TempDir,
    pub(super) adapter: DockerAdapter,
    pub(super) tag: String,
    names: AtomicU32,
}

impl House {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tag = format!("executor-guest-{}", &InstanceId::new().to_string()[20..]);
        let options = DockerOptions {
            data: dir.path().join("data"),
            host: None,
            network: Network::None,
            user: None,
            registry: None,
        };
        let adapter = DockerAdapter::connect(options).await.unwrap();
        Self { dir, adapter, tag, names: AtomicU32::new(0) }
    }

    pub(super) fn launch(&self, script: &str) -> GuestLaunch {
        let number = self.names.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        GuestLaunch {
            name: format!("{}-{number}", self.tag),
            image: BASE_IMAGE.to_owned(),
            command: Some(shell(script)),
            environment: Vec::new(),
            mounts: Vec::new(),
            working_directory: None,
            cpus: 1.0,
            memory: 128 << 20,
            restart: RestartPolicy::No,
            networks: vec![self.tag.clone()],
            label: "test".to_owned(),
            strict: false,
        }
    }

    pub(super) async fn start(&self, launch: &GuestLaunch) -> Arc<dyn Guest> {
        within(Guests::start(&self.adapter, launch)).await.unwrap()
    }

    pub(super) async fn refused(&self, launch: &GuestLaunch) -> String {
        within(Guests::start(&self.adapter, launch)).await.err().expect("it must be refused").to_string()
    }

    pub(super) async fn containers(&self) -> Vec<ContainerSummary> {
        let label = format!("{OWNER}={}", self.adapter.shared.owner);
        ledger::list(&self.adapter.shared.client, vec![label]).await.unwrap()
    }

    /// A folder for the guest.
    pub(super) fn folder(&self, name: &str) -> std::path::PathBuf {
        let folder = self.dir.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }
}

impl Drop for House {
    /// A failed test must not leave anything behind either.
    fn drop(&mut self) {
        let (owner, tag) = (&self.adapter.shared.owner, &self.tag);
        let script = format!(
            "docker ps -aq --filter 'label={OWNER}={owner}' | xargs -r docker rm -fv; docker network rm {tag} \
             {tag}-apart; docker images -q --filter 'label={tag}' | xargs -r docker rmi -f"
        );
        let _ = Command::new("sh").args(["-c", &script]).output();
    }
}

fn lines(file: &Path) -> usize {
    fs::read_to_string(file).unwrap_or_default().lines().count()
}

pub(super) fn mount(host: &Path, inside: &str, read_only: bool) -> Mount {
    Mount { host: host.to_owned(), inside: inside.to_owned(), read_only }
}

/// Runs a command and gives its code, output and errors.
pub(super) async fn ask(guest: &dyn Guest, command: &[String]) -> (Result<i64, ExecError>, String, String) {
    let (sender, mut receiver) = mpsc::channel(4);
    let read = async {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(piece) = receiver.recv().await {
            match piece {
                Piece::Out(bytes) => out.extend_from_slice(&bytes),
                Piece::Err(bytes) => err.extend_from_slice(&bytes),
            }
        }
        (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned())
    };
    let (code, (out, err)) =
        within(async { tokio::join!(guest.exec(command, PATIENCE, sender), read) }).await;
    (code, out, err)
}

pub(super) async fn hear(guest: &dyn Guest, script: &str) -> String {
    let (code, out, err) = ask(guest, &shell(script)).await;
    assert_eq!(code.unwrap(), 0, "{out}{err}");
    out
}

/// Numbers of processes inside whose command line holds `what`; the question's own does not.
async fn processes(guest: &dyn Guest, what: &str) -> usize {
    let (head, tail) = what.split_at(1);
    let script = format!(
        "w={head}; w=\"$w\"'{tail}'; n=0; for p in /proc/[0-9]*; do IFS= read -r line 2>/dev/null <$p/cmdline; \
         case $line in *\"$w\"*) n=$((n+1));; esac; done; echo $n"
    );
    hear(guest, &script).await.trim().parse().unwrap()
}

/// Images named after the house, with the stages of one Dockerfile.
pub(super) fn build(house: &House, stage: &str) -> String {
    let dockerfile = format!(
        "FROM {BASE_IMAGE} AS tools\n\
         RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends busybox-static\n\
         LABEL {tag}=1\n\
         FROM scratch AS bare\nCOPY --from=tools /bin/busybox /sleep\nLABEL {tag}=1\nENTRYPOINT [\"/sleep\", \"1000\"]\n\
         FROM scratch AS busybox\nCOPY --from=tools /bin/busybox /bin/sh\nLABEL {tag}=1\n\
         COPY --from=tools /bin/busybox /bin/busybox\nENTRYPOINT [\"/bin/busybox\", \"sleep\", \"1000\"]\n",
        tag = house.tag
    );
    let context = house.folder("context");
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let image = format!("{}:{stage}", house.tag);
    let mut docker = Command::new("docker");
    docker.args(["build", "-q", "--target", stage, "-t", &image]).arg(&context);
    let made = docker.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_images_are_looked_for_and_their_lack_is_told() {
    let house = House::new().await;
    let guests = Adapter::guests(&house.adapter).expect("Docker has guests");
    guests.prepare(BASE_IMAGE).await.unwrap();
    let unknown = format!("localhost:1/{}:v1", house.tag);
    let (one, two) = within(async { tokio::join!(guests.prepare(&unknown), guests.prepare(&unknown)) }).await;
    for result in [one, two] {
        let error = result.unwrap_err();
        assert!(matches!(error, AdapterError::Missing(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains(&unknown) && text.contains("not on this host"), "{text}");
        assert!(text.contains("docker load") && !text.contains("DOCKER_HUB"), "{text}");
    }
    for bad in ["", "../containers/json", "a b", "a?b"] {
        let error = guests.prepare(bad).await.unwrap_err();
        assert!(error.to_string().contains("is not the name of an image"), "{error}");
    }
    let text = house.refused(&GuestLaunch { image: unknown.clone(), ..house.launch(SLEEP) }).await;
    assert!(text.contains("No such image"), "{text}");
    assert!(house.containers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_work_for_an_image_is_done_once_and_its_failure_shared() {
    let house = House::new().await;
    let count = AtomicU32::new(0);
    let work = async || {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(AdapterError::Missing("reason".into()))
    };
    let all = (0..20).map(|_| house.adapter.once("x", work));
    for result in futures_util::future::join_all(all).await {
        assert_eq!(result.unwrap_err().to_string(), "reason");
    }
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 1);
    house.adapter.once("x", work).await.unwrap_err();
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 2, "a later call tries again");
    house.adapter.once("y", async || Ok(())).await.unwrap();
    assert_eq!(house.adapter.flights.lock().unwrap().len(), 1, "what is done is forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_end_is_told_to_all() {
    let house = House::new().await;
    let guest = house.start(&house.launch("echo the end is near; exit 3")).await;
    assert_eq!(guest.ends(), 0);
    let told =
        |exit: Exit| assert_eq!(exit.to_string(), "exited with code 3; its last words: the end is near");
    told(within(guest.ended()).await);
    assert!(guest.address().await.unwrap_err().to_string().contains("does not run"));
    let (code, ..) = ask(&*guest, &shell("true")).await;
    let error = code.unwrap_err();
    assert!(matches!(&error, ExecError::Ended(exit) if exit.reason == "exited with code 3"), "{error}");
    let all = async { tokio::join!(guest.kill(), guest.kill(), guest.ended(), guest.kill()) };
    let (a, b, c, d) = within(all).await;
    [a, b, c, d].into_iter().for_each(told);
    assert!(house.containers().await.is_empty());
    told(within(guest.kill()).await);
    assert!(matches!(ask(&*guest, &shell("true")).await.0, Err(ExecError::Ended(_))));

    // Process 1, which is ours, is there all the same.
    let guest = house.start(&GuestLaunch { command: Some(words(&["/nosuch"])), ..house.launch("") }).await;
    let exit = within(guest.ended()).await;
    assert!(exit.reason == "exited with code 127" && exit.last_words.contains("/nosuch"), "{exit}");
    within(guest.kill()).await;
    assert!(house.containers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_restarts_as_its_policy_says() {
    let house = House::new().await;
    let count = async |name: &str, restart: RestartPolicy, script: &str| {
        let folder = house.folder(name);
        let script = format!("echo x >>/x/runs; {script}");
        let mounts = vec![mount(&folder, "/x", false)];
        let guest = house.start(&GuestLaunch { mounts, restart, ..house.launch(&script) }).await;
        (guest, folder.join("runs"))
    };
    for (restart, code) in
        [(RestartPolicy::Always, 0), (RestartPolicy::UnlessStopped, 1), (RestartPolicy::OnFailure, 1)]
    {
        let (guest, runs) = count(&format!("{restart:?}"), restart, &format!("exit {code}")).await;
        let again = async {
            until("it runs again", async || lines(&runs) >= 3).await;
            until("its ends are counted", async || guest.ends() >= 2).await;
        };
        tokio::select! {
            () = again => {}
            exit = guest.ended() => panic!("{restart:?} was said to have ended: {exit}"),
        }
        // It is killed while it waits to be started again, or while it runs.
        within(guest.kill()).await;
        assert!(house.containers().await.is_empty());
    }
    for (restart, script, code, most) in [
        (RestartPolicy::No, "exit 1", 1, 1),
        (RestartPolicy::OnFailure, "exit 0", 0, 1),
        (RestartPolicy::OnFailure, "[ $(wc -l </x/runs) = 3 ]", 0, 3),
    ] {
        let (guest, runs) = count(&format!("ends-{most}-{code}"), restart, script).await;
        assert_eq!(within(guest.ended()).await.reason, format!("exited with code {code}"));
        assert_eq!(lines(&runs), most);
        assert!(guest.ends() >= most as u64);
        within(guest.kill()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_commands_give_code_and_both_outputs() {
    let house = House::new().await;
    let guest = house.start(&house.launch(SLEEP)).await;
    let (code, out, err) = ask(&*guest, &shell("echo out; echo err >&2; exit 5")).await;
    assert_eq!((code.unwrap(), out.as_str(), err.as_str()), (5, "out\n", "err\n"));
    let odd = ["printf", "%s|", "a b", "", "$(x)", "'\"", "line\nline", "-n", "ü"];
    let (code, out, _) = ask(&*guest, &words(&odd)).await;
    assert_eq!((code.unwrap(), out.as_str()), (0, "a b||$(x)|'\"|line\nline|-n|ü|"));
    let (code, _, err) = ask(&*guest, &words(&["/nosuch", "x"])).await;
    assert_eq!(code.unwrap(), 127);
    assert!(err.contains("/nosuch"), "{err}");
    // What only looks like Docker's refusal, and a death that only looks like the container's.
    let lie = "OCI runtime exec failed: lie";
    let (code, out, _) = ask(&*guest, &shell(&format!("printf '{lie}'"))).await;
    assert_eq!((code.unwrap(), out.as_str()), (0, lie));
    assert_eq!(ask(&*guest, &shell("kill -9 $$")).await.0.unwrap(), 137);
    for bad in [vec![], words(&["a\0b"])] {
        assert!(matches!(ask(&*guest, &bad).await.0, Err(ExecError::Adapter(_))));
    }
    // What it leaves behind does not keep it from ending, and stays.
    assert_eq!(hear(&*guest, "sleep 1007 & echo done").await, "done\n");
    assert_eq!(processes(&*guest, "sleep1007").await, 1);
    within(guest.kill()).await;
}

/// All ways to get away that need no program but the shell: a new session, a dead parent, a deaf one.
const FAMILY: &str = "trap '' TERM HUP INT; (sleep 1001 & sleep 1001 &); (trap '' TERM; sh -c 'sleep 1001 & wait') & \
                      if command -v setsid >/dev/null; then setsid sh -c 'sleep 1001 & sleep 1001' & fi; \
                      if command -v env >/dev/null; then env -i sleep 1001 & fi; echo started; sleep 1001";

/// Runs the family until its limit and gives how many of it there were. A busy machine may need longer than the limit to
/// start and count them; it then gets a longer one.
async fn started_before_the_limit(guest: &dyn Guest) -> usize {
    for limit in [2, 8, 32].map(Duration::from_secs) {
        let (sender, mut output) = mpsc::channel(8);
        let family = shell(FAMILY);
        let (result, count) = tokio::join!(guest.exec(&family, limit, sender), async {
            output.recv().await?;
            // `sleep` may be a part of the shell, which then does not show its name.
            let count = processes(guest, "1001").await;
            // Still open: the limit was not reached while they were counted.
            matches!(output.try_recv(), Err(TryRecvError::Empty)).then_some(count)
        });
        assert!(matches!(result, Err(ExecError::TimedOut(told)) if told == limit), "{result:?}");
        if let Some(count) = count {
            return count;
        }
    }
    panic!("the family could not be started and counted in half a minute");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_commands_end_at_their_limit_with_all_they_started() {
    let house = House::new().await;
    let debian = house.start(&house.launch(SLEEP)).await;
    let busybox = build(&house, "busybox");
    let busybox = house.start(&GuestLaunch { image: busybox, command: None, ..house.launch("") }).await;
    let strict = house.start(&GuestLaunch { strict: true, ..house.launch(SLEEP) }).await;
    for guest in [&debian, &busybox, &strict] {
        let other = shell("echo other; sleep 1005");
        let (sender, mut heard) = mpsc::channel(8);
        let bystander = guest.exec(&other, PATIENCE, sender);
        let test = async {
            heard.recv().await.unwrap();
            let count = started_before_the_limit(&**guest).await;
            assert!(count >= 4, "only {count} have been started");
            assert_eq!(processes(&**guest, "1001").await, 0);
            assert!(processes(&**guest, "1005").await >= 1, "what others run stays");
        };
        tokio::select! {
            () = within(test) => {}
            result = bystander => panic!("the other command ended: {result:?}"),
        }
        until("the other command is ended, too", async || processes(&**guest, "1005").await == 0).await;
        assert!(guest.address().await.is_ok(), "the guest itself goes on");
    }
    for guest in [debian, busybox, strict] {
        within(guest.kill()).await;
    }
    assert!(house.containers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_that_is_full_of_processes_is_killed_at_the_limit() {
    let house = House::new().await;
    let guest = house.start(&GuestLaunch { memory: 1 << 30, ..house.launch(SLEEP) }).await;
    // All places are taken, so that nothing can be started inside that would end it.
    let bomb =
        words(&["perl", "-e", "while (1) { my $p = fork(); if (defined $p && !$p) { sleep 1000; exit } }"]);
    let (sender, _receiver) = mpsc::channel(1);
    let result = within(guest.exec(&bomb, Duration::from_secs(8), sender)).await;
    assert!(matches!(result, Err(ExecError::TimedOut(_))), "{result:?}");
    // Either way the command is gone.
    if guest.address().await.is_ok() {
        until("the bomb is gone", async || processes(&*guest, "perl").await == 0).await;
    } else {
        assert_eq!(within(guest.ended()).await.reason, "was killed by signal 9");
    }
    within(guest.kill()).await;
    assert!(house.containers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_output_waits_for_its_reader() {
    let house = House::new().await;
    let guest = house.start(&house.launch(SLEEP)).await;
    let (sender, mut receiver) = mpsc::channel(1);
    // Counts what it got rid of.
    let script =
        "i=0; while [ $i -lt 256 ]; do head -c 1048576 /dev/zero; i=$((i+1)); echo $i >/tmp/sent; done";
    let command = shell(script);
    let run = guest.exec(&command, PATIENCE, sender);
    let read = async {
        let first = receiver.recv().await.unwrap();
        // It has come to a stand when it says the same ten times.
        let (mut before, mut same) = (String::new(), 0);
        while same < 10 {
            let now = hear(&*guest, "cat /tmp/sent 2>/dev/null || echo 0").await;
            same = if now == before { same + 1 } else { 0 };
            before = now;
        }
        let held: u32 = before.trim().parse().unwrap();
        assert!(held < 32, "{held} MiB went somewhere");
        let mut size = piece_size(&first);
        while let Some(piece) = receiver.recv().await {
            size += piece_size(&piece);
        }
        size
    };
    let (code, size) = within(async { tokio::join!(run, read) }).await;
    assert_eq!((code.unwrap(), size), (0, 256 << 20));

    // Nobody listens: it goes on to its end.
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let command = shell("head -c 20000000 /dev/zero; exit 3");
    assert_eq!(within(guest.exec(&command, PATIENCE, sender)).await.unwrap(), 3);
    within(guest.kill()).await;
}

fn piece_size(piece: &Piece) -> usize {
    let (Piece::Out(bytes) | Piece::Err(bytes)) = piece;
    bytes.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_command_whose_caller_left_is_ended() {
    let house = House::new().await;
    let guest = house.start(&house.launch(SLEEP)).await;
    let command = shell("echo begun; sleep 1003");
    let (sender, mut receiver) = mpsc::channel(1);
    tokio::select! {
        result = guest.exec(&command, PATIENCE, sender) => panic!("{result:?}"),
        piece = within(receiver.recv()) => assert_eq!(piece, Some(Piece::Out("begun\n".into()))),
    }
    until("it is gone", async || processes(&*guest, "sleep1003").await == 0).await;
    assert!(guest.address().await.is_ok());
    within(guest.kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_that_ends_takes_its_commands_along() {
    let house = House::new().await;
    for restart in [RestartPolicy::No, RestartPolicy::Always] {
        let launch = house.launch("while [ ! -e /tmp/go ]; do sleep 0.1; done; rm /tmp/go; exit 4");
        let guest = house.start(&GuestLaunch { restart, ..launch }).await;
        let (code, ..) = ask(&*guest, &shell("touch /tmp/go; sleep 1000")).await;
        let error = code.unwrap_err();
        let ExecError::Ended(exit) = error else { panic!("{restart:?}: {error}") };
        let told = ["exited with code 4", "ended and was started again"];
        assert!(told.contains(&exit.reason.as_str()), "{exit}");
        within(guest.kill()).await;
    }
    let guest = house.start(&house.launch(SLEEP)).await;
    let command = shell("echo begun; sleep 1000");
    let (sender, mut receiver) = mpsc::channel(1);
    let killed = async {
        receiver.recv().await.unwrap();
        guest.kill().await
    };
    let (result, _) = within(async { tokio::join!(guest.exec(&command, PATIENCE, sender), killed) }).await;
    assert!(matches!(result, Err(ExecError::Ended(_))), "{result:?}");
    assert!(house.containers().await.is_empty());
}
