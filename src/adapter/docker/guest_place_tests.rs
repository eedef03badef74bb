//! What guests are given and where they are: names, sweeps, mounts, limits, networks. Against the real Docker.

use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::guest_tests::{House, SLEEP, ask, build, hear, mount, shell, until, within};
use super::*;
use crate::adapter::guest::{ExecError, GuestLaunch, Guests, RestartPolicy};

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_names_are_freed_but_not_taken() {
    let house = House::new().await;
    let launch = house.launch(SLEEP);
    let first = house.start(&launch).await;
    let text = house.refused(&launch).await;
    assert!(text.contains("is in use"), "{text}");
    assert_eq!(house.containers().await.len(), 1);
    // What a crash leaves.
    house.adapter.shared.ledger().live.clear();
    let second = house.start(&launch).await;
    assert_eq!(house.containers().await.len(), 1);
    // The one that is gone does not take its successor along, in whatever way it goes.
    within(first.kill()).await;
    drop(first);
    within(Adapter::sweep(&house.adapter)).await.unwrap();
    assert!(second.address().await.is_ok());
    drop(second);
    let third = house.start(&launch).await;
    within(Adapter::sweep(&house.adapter)).await.unwrap();
    assert!(third.address().await.is_ok());
    within(third.kill()).await;
    assert!(house.containers().await.is_empty());

    let docker = |words: &[&str]| Command::new("docker").args(words).output().unwrap();
    let made = docker(&["create", "--name", &launch.name, BASE_IMAGE, "true"]);
    let text = house.refused(&launch).await;
    let removed = docker(&["rm", &launch.name]);
    assert!(made.status.success() && removed.status.success(), "the foreign one must stay");
    assert!(text.contains("not this executor's") && text.contains("docker rm -f"), "{text}");
    for bad in ["", "a", "-ab", "a/b", "a b", "ü1", &"a".repeat(256)] {
        let text = house.refused(&GuestLaunch { name: bad.to_owned(), ..launch.clone() }).await;
        assert!(text.contains("cannot be the name"), "{text}");
    }
    assert!(house.containers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_sweep_takes_only_what_nobody_holds() {
    let (mine, other) = (House::new().await, House::new().await);
    let foreign = other.start(&other.launch(SLEEP)).await;
    let live = mine.start(&mine.launch(SLEEP)).await;
    drop(mine.start(&mine.launch(SLEEP)).await);
    let restart = RestartPolicy::Always;
    let crashed = mine.start(&GuestLaunch { restart, ..mine.launch("exit 1") }).await;
    let labels = |c: bollard::models::ContainerSummary| c.labels.unwrap()[GUEST].clone();
    let newest = mine.containers().await.into_iter().map(labels).max().unwrap();
    assert!(mine.adapter.shared.ledger().live.remove(&newest));
    within(Adapter::sweep(&mine.adapter)).await.unwrap();
    assert_eq!((mine.containers().await.len(), other.containers().await.len()), (1, 1));
    for millis in [1, 20, 60, 150] {
        let launch = mine.launch(SLEEP);
        let start = Guests::start(&mine.adapter, &launch);
        drop(tokio::time::timeout(Duration::from_millis(millis), start).await);
    }
    until("what was given up is gone", async || {
        within(Adapter::sweep(&mine.adapter)).await.unwrap();
        mine.containers().await.len() == 1
    })
    .await;
    drop(crashed);
    within(live.kill()).await;
    within(foreign.kill()).await;
    assert!(mine.containers().await.is_empty() && other.containers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_sees_its_mounts_and_environment() {
    let house = House::new().await;
    let (read, write) = (house.folder("read"), house.folder("write"));
    fs::write(read.join("f"), "content").unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let odd = "a=b\nc $HOME \"'ü\t ";
    let perl = "open my $f, '>', 'env'; print $f map { qq($_=$ENV{$_}\\0) } sort keys %ENV; close $f; \
                open $f, '>', 'done'; sleep 1000";
    let launch = GuestLaunch {
        mounts: vec![
            mount(&read, "/r", true),
            mount(&write, "/mnt/w", false),
            mount(&read.join("f"), "/tmp/f", true),
        ],
        environment: vec![
            pair("TWICE", "1"),
            pair("ODD", odd),
            pair("with.dot-and-dash", "x"),
            pair("EMPTY", ""),
            pair("TWICE", "2"),
        ],
        working_directory: Some("/mnt/w".to_owned()),
        // Not below a shell, which leaves out what it cannot name.
        command: Some(["perl", "-e", perl].map(str::to_owned).to_vec()),
        ..house.launch("")
    };
    let guest = house.start(&launch).await;
    until("it has written", async || write.join("done").exists()).await;
    let told = fs::read_to_string(write.join("env")).unwrap();
    let told: Vec<&str> = told.split('\0').collect();
    for expected in [&format!("ODD={odd}"), "TWICE=2", "with.dot-and-dash=x", "EMPTY="] {
        assert!(told.contains(&expected), "{expected}: {told:?}");
    }
    let script =
        "cat /r/f /tmp/f; touch /r/x 2>/dev/null && echo WROTE; touch /x /tmp/x && echo ' root'; hostname";
    assert_eq!(hear(&*guest, script).await, format!("contentcontent root\n{}\n", launch.name));
    within(guest.kill()).await;

    let nowhere = house.dir.path().join("nowhere");
    let text =
        house.refused(&GuestLaunch { mounts: vec![mount(&nowhere, "/n", false)], ..launch.clone() }).await;
    assert!(text.contains("nowhere") && !nowhere.exists(), "{text}");
    for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0y")] {
        let environment = vec![pair(name, value)];
        let text = house.refused(&GuestLaunch { environment, ..launch.clone() }).await;
        assert!(text.contains("cannot be set"), "{text}");
    }
    assert!(house.containers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_is_bounded() {
    let house = House::new().await;
    let eater = GuestLaunch {
        memory: 32 << 20,
        ..house.launch("exec perl -e 'my $x = q(x) x (200 << 20); sleep 1000'")
    };
    let guest = house.start(&eater).await;
    assert_eq!(within(guest.ended()).await.reason, "ran out of its 32 MiB memory");
    within(guest.kill()).await;

    let look = "grep -E '^(Uid|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; ulimit -n; ulimit -c; \
                touch /x 2>/dev/null && echo root; touch /tmp/x && echo tmp; cat /sys/fs/cgroup/pids.max \
                /sys/fs/cgroup/pids/pids.max 2>/dev/null; true";
    // CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID, NET_BIND_SERVICE.
    let open = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10;
    for (strict, user, capabilities) in [(false, 0, open), (true, 10_001, 0)] {
        // Numbers that mean "no bound" to Docker.
        let launch =
            GuestLaunch { strict, cpus: f64::NAN, memory: 0, ..house.launch("echo x; exec sleep 1000") };
        let body = spec::guest(&house.adapter.shared, &launch, "x", "x".to_owned()).host_config.unwrap();
        assert_eq!(
            (body.memory, body.memory_swap, body.nano_cpus),
            (Some(6 << 20), Some(6 << 20), Some(10_000_000))
        );
        let guest = house.start(&GuestLaunch { strict, ..house.launch(SLEEP) }).await;
        let said = hear(&*guest, look).await;
        let expected = [
            format!("Uid:\t{user}\t{user}\t{user}\t{user}\n"),
            format!("CapBnd:\t{capabilities:016x}\n"),
            "NoNewPrivs:\t1\nSeccomp:\t2\n16384\n0\n".to_owned(),
            if strict { "16384\n0\ntmp\n2048\n" } else { "16384\n0\nroot\ntmp\n2048\n" }.to_owned(),
        ];
        for line in expected {
            assert!(said.contains(&line), "strict {strict}: {line:?} in {said}");
        }
        within(guest.kill()).await;
    }
}

/// Answers everybody with one word.
const SERVER: &str = "exec perl -e 'use IO::Socket::INET; my $l = IO::Socket::INET->new(Listen => 5, LocalPort => 3000) \
                      or die $@; while (my $c = $l->accept) { print $c q(hello); close $c }'";

async fn greeted(address: IpAddr) -> bool {
    let Ok(mut stream) = tokio::net::TcpStream::connect((address, 3000)).await else { return false };
    let mut text = String::new();
    stream.read_to_string(&mut text).await.is_ok() && text == "hello"
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_is_reached_by_its_address_also_when_it_changes() {
    let house = House::new().await;
    let launch = house.launch(SERVER);
    let guest = house.start(&launch).await;
    let before = guest.address().await.unwrap();
    until("it answers", async || greeted(before).await).await;
    // Guests do not reach each other, as the network was made for an executor on the host.
    let other = house.start(&house.launch(SLEEP)).await;
    let script = format!(
        "perl -e 'use IO::Socket::INET; exit(IO::Socket::INET->new(PeerAddr => q({before}:3000), Timeout => 2) ? 0 : 9)'"
    );
    assert_eq!(ask(&*other, &shell(&script)).await.0.unwrap(), 9);
    within(other.kill()).await;

    let docker = &house.adapter.shared.client.docker;
    docker.kill_container(&launch.name, None).await.unwrap();
    assert_eq!(within(guest.ended()).await.reason, "was killed by signal 9");
    assert!(guest.address().await.is_err());
    // Somebody takes its address.
    let thief = house.start(&house.launch(SLEEP)).await;
    assert_eq!(thief.address().await.unwrap(), before);
    docker.start_container(&launch.name, None).await.unwrap();
    let after = guest.address().await.unwrap();
    assert_ne!(before, after);
    until("it answers again", async || greeted(after).await).await;
    within(guest.kill()).await;
    within(thief.kill()).await;
    assert!(house.containers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_network_is_joined_by_an_executor_in_a_container() {
    let house = House::new().await;
    // It stands for the container of the executor.
    let own = house
        .start(&GuestLaunch { networks: vec![format!("{}-apart", house.tag)], ..house.launch(SLEEP) })
        .await;
    let id = house.containers().await[0].id.clone().unwrap();
    let inside = House::new().await;
    inside.adapter.shared.places.own.set(Some(id)).unwrap();
    let launch = GuestLaunch { networks: vec![house.tag.clone()], ..inside.launch(SERVER) };
    let guest = inside.start(&launch).await;
    let address = guest.address().await.unwrap();
    let script = format!(
        "perl -e 'use IO::Socket::INET; my $c; for (1..100) {{ last if $c = IO::Socket::INET->new(PeerAddr => \
         q({address}:3000), Timeout => 5); select undef, undef, undef, 0.1 }} print <$c>'"
    );
    assert_eq!(hear(&*own, &script).await, "hello");
    let again =
        inside.start(&GuestLaunch { networks: launch.networks.clone(), ..inside.launch(SLEEP) }).await;
    let apart = GuestLaunch { networks: vec![format!("{}-apart", house.tag)], ..inside.launch(SLEEP) };
    let text = inside.refused(&apart).await;
    assert!(text.contains("keeps its containers apart") && text.contains("docker network rm"), "{text}");
    for guest in [guest, again, own] {
        within(guest.kill()).await;
    }
    assert!(house.containers().await.is_empty() && inside.containers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_without_a_shell_runs_and_says_what_it_cannot() {
    let house = House::new().await;
    let image = build(&house, "bare");
    let guest = house.start(&GuestLaunch { image, command: None, ..house.launch("") }).await;
    let (code, out, err) = ask(&*guest, &shell("true")).await;
    let error = code.unwrap_err();
    assert!(
        matches!(error, ExecError::Adapter(_)) && error.to_string().contains("has no /bin/sh"),
        "{error}"
    );
    assert_eq!((out.as_str(), err.as_str()), ("", ""));
    assert!(guest.address().await.is_ok(), "it goes on");
    within(guest.kill()).await;
    assert!(house.containers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_guest_use_of_the_processor_is_told() {
    let house = House::new().await;
    let named = |label: &str, script: &str| GuestLaunch { label: label.to_owned(), ..house.launch(script) };
    let busy = house.start(&named("busy", "while :; do :; done")).await;
    let idle = house.start(&named("idle", SLEEP)).await;
    let dead = house.start(&named("dead", "exit 0")).await;
    within(dead.ended()).await;
    let told = within(Guests::usage(&house.adapter)).await.unwrap();
    let [(one, high), (two, low)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((one.as_str(), two.as_str()), ("busy", "idle"));
    assert!(*high > *low && *low < 20.0, "{told:?}");
    for guest in [busy, idle, dead] {
        within(guest.kill()).await;
    }
    assert!(Guests::usage(&house.adapter).await.unwrap().is_empty());
}
