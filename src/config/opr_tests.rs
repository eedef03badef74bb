//! Every variable: unset, empty, set, wrong, at its bound and one above.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    api: ApiArgs,
}

fn check_with(flags: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<ApiConfig, Vec<String>> {
    let flags = flags.iter().map(|(flag, value)| format!("--api-{flag}={value}"));
    let line = Line::try_parse_from(std::iter::once("x".to_owned()).chain(flags)).unwrap();
    let mut c = Checker(Vec::new());
    let config = {
        let environment = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        line.api.check(&mut c, Path::new("/data"), &environment)
    };
    assert_eq!(config.is_some(), c.0.is_empty());
    config.ok_or(c.0)
}

fn check(flags: &[(&str, &str)]) -> Result<ApiConfig, Vec<String>> {
    check_with(flags, &[])
}

const ALL: [&str; 20] = [
    "env",
    "version",
    "images",
    "network",
    "runtime-versions",
    "maintenance-interval",
    "inactive-threshold",
    "inactive-treshold",
    "connection-storage",
    "connection-build-cache-storage",
    "retry-attempts",
    "retry-delay-ms",
    "docker-hub-username",
    "docker-hub-password",
    "runtime-ready-timeout",
    "health-json",
    "concurrency",
    "instances",
    "hostname",
    "temporary",
];

#[test]
fn an_empty_value_means_unset() {
    for flags in [ALL.map(|flag| (flag, "")), ALL.map(|flag| (flag, " "))] {
        for config in [check(&flags).unwrap(), check(&[]).unwrap()] {
            assert!(!config.development && !config.health_json);
            assert_eq!((config.version.as_str(), &config.versions[..]), ("unknown", &[Profile::V5][..]));
            assert!(matches!(config.storage, StorageUrl::Disk { .. }) && config.cache_storage.is_none());
            assert!(config.docker_hub.is_none());
            let guests = config.guests;
            assert_eq!(guests.networks, ["openruntimes-runtimes"]);
            assert_eq!(guests.temporary, PathBuf::from("/data/guests"));
            assert_eq!(guests.maintenance_interval, Duration::from_hours(1));
            assert_eq!(guests.inactive_threshold, Duration::from_mins(1));
            assert_eq!((guests.retry_attempts, guests.retry_delay), (5, Duration::from_millis(500)));
            assert!(guests.ready_timeout.is_none() && guests.images.is_empty());
            assert_eq!((guests.concurrency, guests.instances), (None, 1));
            assert_eq!(guests.hostname, machine());
        }
    }
}

#[test]
fn all_values() {
    let config = check(&[
        ("env", "development"),
        ("version", "0.27.0"),
        ("images", "a:1, b/c:2,"),
        ("network", "n1,n2"),
        ("runtime-versions", "v2, v5"),
        ("maintenance-interval", "1h"),
        ("inactive-treshold", "30"),
        ("connection-storage", "s3://k:s@h/b"),
        ("connection-build-cache-storage", "local://x"),
        ("retry-attempts", "0"),
        ("retry-delay-ms", "1"),
        ("docker-hub-username", "me"),
        ("docker-hub-password", "pass"),
        ("runtime-ready-timeout", "5"),
        ("health-json", "on"),
        ("concurrency", "7"),
        ("instances", "3"),
        ("hostname", "h-1"),
        ("temporary", "/var/tmp"),
    ])
    .unwrap();
    assert!(config.development && config.health_json);
    assert_eq!((config.version.as_str(), config.versions), ("0.27.0", vec![Profile::V2, Profile::V5]));
    assert!(matches!(config.storage, StorageUrl::S3(_)));
    assert!(matches!(config.cache_storage, Some(StorageUrl::Disk { .. })));
    assert_eq!(config.docker_hub, Some(("me".into(), Secret::new("pass"))));
    let guests = config.guests;
    assert_eq!(
        (&guests.images[..], &guests.networks[..]),
        (&["a:1".to_owned(), "b/c:2".into()][..], &["n1".to_owned(), "n2".into()][..])
    );
    assert_eq!(guests.maintenance_interval, Duration::from_hours(1));
    assert_eq!(guests.inactive_threshold, Duration::from_secs(30));
    assert_eq!((guests.retry_attempts, guests.retry_delay), (0, Duration::from_millis(1)));
    assert_eq!(guests.ready_timeout, Some(Duration::from_secs(5)));
    assert_eq!((guests.concurrency, guests.instances, &*guests.hostname), (Some(7), 3, "h-1"));
    assert_eq!(guests.temporary, PathBuf::from("/var/tmp"));
    let both = check(&[("inactive-threshold", "90"), ("inactive-treshold", "30")]).unwrap();
    assert_eq!(both.guests.inactive_threshold, Duration::from_secs(90), "the right spelling counts");
}

#[test]
fn r_96_a_ready_timeout_that_is_not_positive_is_30_seconds() {
    for (text, seconds) in [("0", 30), ("-1", 30), ("-99999", 30), ("1", 1), ("86400", 86_400)] {
        let config = check(&[("runtime-ready-timeout", text)]).unwrap();
        assert_eq!(config.guests.ready_timeout, Some(Duration::from_secs(seconds)), "{text}");
    }
}

#[test]
fn all_problems_at_once_each_with_its_flag() {
    let bad = [
        ("env", "staging"),
        ("runtime-versions", "v5,v6"),
        ("health-json", "yes"),
        ("docker-hub-username", "me"),
        ("network", "a b"),
        ("images", ","),
        ("maintenance-interval", "0"),
        ("inactive-threshold", "soon"),
        ("retry-attempts", "1000001"),
        ("retry-delay-ms", "0"),
        ("runtime-ready-timeout", "86401"),
        ("concurrency", "0"),
        ("instances", "1001"),
        ("hostname", "-x"),
        ("temporary", "tmp"),
    ];
    let problems = check(&bad).unwrap_err();
    assert_eq!(problems.len(), bad.len(), "{problems:#?}");
    for (flag, _) in bad {
        let flag = if flag == "docker-hub-username" { "docker-hub-password" } else { flag };
        let start = format!("--api-{flag}: ");
        assert!(problems.iter().any(|problem| problem.starts_with(&start)), "{flag}: {problems:#?}");
    }
    for (flag, at, above) in [
        ("maintenance-interval", "31536000", "31536001"),
        ("inactive-threshold", "31536000", "31536001"),
        ("retry-attempts", "1000000", "1000001"),
        ("retry-delay-ms", "60000", "60001"),
        ("concurrency", "100000", "100001"),
        ("instances", "1000", "1001"),
    ] {
        assert!(check(&[(flag, at)]).is_ok() && check(&[(flag, above)]).is_err(), "{flag}");
    }
    assert!(check(&[("inactive-threshold", "0")]).is_ok());
    assert!(check(&[("docker-hub-password", "x")]).is_err());
    let many = |count: usize| vec!["a"; count].join(",");
    assert!(check(&[("images", &many(MOST_NAMES))]).is_ok());
    assert!(check(&[("images", &many(MOST_NAMES + 1))]).is_err());
}

#[test]
fn secrets_are_in_no_problem_and_no_debug_text() {
    let flags = [("connection-storage", "s3://k:s3cret@h"), ("docker-hub-password", "s3cret")];
    assert!(!format!("{:?}", check(&flags).unwrap_err()).contains("s3cret"));
    let flags = [flags[0], flags[1], ("docker-hub-username", "me")];
    assert!(!format!("{:?}", check(&flags).unwrap()).contains("s3cret"));
}

#[test]
fn r_162_older_variables_count_without_a_url_or_with_a_local_one() {
    let older = [
        ("OPR_EXECUTOR_STORAGE_DEVICE", "wasabi"),
        ("OPR_EXECUTOR_STORAGE_WASABI_ACCESS_KEY", "k"),
        ("OPR_EXECUTOR_STORAGE_WASABI_SECRET", "s"),
        ("OPR_EXECUTOR_STORAGE_WASABI_REGION", "eu-1"),
        ("OPR_EXECUTOR_STORAGE_WASABI_BUCKET", "b"),
    ];
    let storage = |flags: &[(&str, &str)], older: &[(&str, &str)]| check_with(flags, older).unwrap().storage;
    assert!(matches!(storage(&[], &older), StorageUrl::S3(_)));
    assert!(matches!(storage(&[("connection-storage", "local://localhost")], &older), StorageUrl::S3(_)));
    assert!(matches!(storage(&[("connection-storage", "nfs://x")], &older), StorageUrl::Disk { .. }));
    assert!(matches!(storage(&[], &older[1..]), StorageUrl::Disk { .. }), "no device was named");
    let problems = check_with(&[], &older[..1]).unwrap_err();
    assert!(problems[0].starts_with("--api-connection-storage: "), "{problems:?}");
}
