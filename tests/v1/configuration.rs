//! Section 8: the variables, their defaults, and what is refused.

use serde_json::json;

use crate::common::Home;
use crate::harness::{Api, KEY, docker, problem};

/// Exit code and all output of an executor that is expected not to start.
fn refused(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let home = Home::new();
    let mut command = home.command();
    command.args(["--port", "0", "--adapter", "docker"]).envs(variables.iter().copied());
    let mut child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let ended = crate::common::eventually("it ends or serves", || {
        child
            .try_wait()
            .unwrap()
            .map(|_| true)
            .or_else(|| home.data().join("running.json").exists().then_some(false))
    });
    if !ended {
        let _ = child.kill();
    }
    let output = child.wait_with_output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

const ALL: [&str; 20] = [
    "OPR_EXECUTOR_ENV",
    "OPR_EXECUTOR_VERSION",
    "OPR_EXECUTOR_IMAGES",
    "OPR_EXECUTOR_NETWORK",
    "OPR_EXECUTOR_RUNTIME_VERSIONS",
    "OPR_EXECUTOR_MAINTENANCE_INTERVAL",
    "OPR_EXECUTOR_INACTIVE_THRESHOLD",
    "OPR_EXECUTOR_INACTIVE_TRESHOLD",
    "OPR_EXECUTOR_CONNECTION_STORAGE",
    "OPR_EXECUTOR_CONNECTION_BUILD_CACHE_STORAGE",
    "OPR_EXECUTOR_RETRY_ATTEMPTS",
    "OPR_EXECUTOR_RETRY_DELAY_MS",
    "OPR_EXECUTOR_DOCKER_HUB_USERNAME",
    "OPR_EXECUTOR_DOCKER_HUB_PASSWORD",
    "OPR_EXECUTOR_RUNTIME_READY_TIMEOUT",
    "OPR_EXECUTOR_HEALTH_JSON",
    "OPR_EXECUTOR_CONCURRENCY",
    "OPR_EXECUTOR_INSTANCES",
    "OPR_EXECUTOR_TEMPORARY",
    "OPR_EXECUTOR_STORAGE_DEVICE",
];

#[test]
fn section_8_an_empty_value_is_unset() {
    let empty: Vec<_> = ALL.iter().map(|name| (*name, "")).collect();
    let api = Api::with(&empty);
    // Production, the version `unknown`, only v5, and the default network.
    let reply = api.create("a", json!({ "version": "v4" }));
    assert_eq!(
        reply.text(),
        "{\"type\":\"general_unknown\",\"message\":\"Invalid `version` param: Value must be one of (v5)\",\
         \"code\":400,\"version\":\"unknown\"}"
    );
    api.guest("a", "v5");
    assert_eq!(api.executed("a", "/text")["body"], "hello");
    let networks = docker(&["inspect", "--format", "{{json .NetworkSettings.Networks}}", &api.name("a")]);
    assert!(networks.contains("\"openruntimes-runtimes\""), "{networks}");
}

#[test]
fn section_8_wrong_values_are_refused_with_their_names() {
    for (name, value, said) in [
        ("OPR_EXECUTOR_ENV", "prod", "--api-env"),
        ("OPR_EXECUTOR_NETWORK", "a b", "--api-network"),
        ("OPR_EXECUTOR_RUNTIME_VERSIONS", "v1", "--api-runtime-versions"),
        ("OPR_EXECUTOR_RUNTIME_VERSIONS", ",", "--api-runtime-versions"),
        ("OPR_EXECUTOR_MAINTENANCE_INTERVAL", "0", "--api-maintenance-interval"),
        ("OPR_EXECUTOR_INACTIVE_THRESHOLD", "soon", "--api-inactive-threshold"),
        ("OPR_EXECUTOR_RETRY_ATTEMPTS", "-1", "--api-retry-attempts"),
        ("OPR_EXECUTOR_RETRY_DELAY_MS", "fast", "--api-retry-delay-ms"),
        ("OPR_EXECUTOR_RUNTIME_READY_TIMEOUT", "x", "--api-runtime-ready-timeout"),
        ("OPR_EXECUTOR_CONCURRENCY", "0", "--api-concurrency"),
        ("OPR_EXECUTOR_INSTANCES", "0", "--api-instances"),
        ("OPR_EXECUTOR_HOSTNAME", "-a", "--api-hostname"),
        ("OPR_EXECUTOR_TEMPORARY", "relative", "--api-temporary"),
        ("OPR_EXECUTOR_DOCKER_HUB_USERNAME", "me", "--api-docker-hub-password"),
    ] {
        let (code, text) = refused(&[(name, value)]);
        assert_eq!(code, Some(2), "{name}={value}: {text}");
        assert!(text.contains(said), "{name}={value}: {text}");
    }
}

#[test]
fn section_8_what_has_no_use_is_ignored() {
    let api = Api::with(&[
        ("OPR_EXECUTOR_IMAGE_PULL", "disabled"),
        ("OPR_EXECUTOR_IMAGE", "x"),
        ("OPR_EXECUTOR_RUNTIMES", "node-18.0"),
        ("OPR_EXECUTOR_LOGGING_PROVIDER", "sentry"),
        ("OPR_EXECUTOR_LOGGING_CONFIG", "?"),
        ("OPR_EXECUTOR_LOGGING_IDENTIFIER", "!"),
    ]);
    assert_eq!(api.get("/v1/runtimes").text(), "[]");
}

#[test]
fn section_8_versions_that_may_be_asked_for() {
    let api = Api::with(&[("OPR_EXECUTOR_RUNTIME_VERSIONS", "v2, v5")]);
    for (version, told) in [("v4", "v2, v5"), ("v3", "v2, v5"), ("", "v2, v5"), ("v55", "v2, v5")] {
        let shown = problem(&api.create("a", json!({ "version": version })));
        assert_eq!(
            shown,
            format!("400 general_unknown Invalid `version` param: Value must be one of ({told})")
        );
    }
    for version in ["v2", "V5", "v5"] {
        api.created("a", json!({ "version": version }));
        assert_eq!(api.delete("a").status, 200);
    }
}

#[test]
fn section_8_the_old_spelling_of_the_threshold() {
    let quick = ("OPR_EXECUTOR_MAINTENANCE_INTERVAL", "1");
    let api = Api::with(&[quick, ("OPR_EXECUTOR_INACTIVE_TRESHOLD", "1")]);
    api.created("a", json!({}));
    crate::common::eventually("it is collected", || api.info("a").is_none().then_some(()));
    // The right one wins.
    let api = Api::with(&[
        quick,
        ("OPR_EXECUTOR_INACTIVE_TRESHOLD", "1"),
        ("OPR_EXECUTOR_INACTIVE_THRESHOLD", "1000"),
    ]);
    api.created("a", json!({}));
    let other = Api::with(&[quick, ("OPR_EXECUTOR_INACTIVE_THRESHOLD", "1")]);
    other.created("a", json!({}));
    crate::common::eventually("it is collected", || other.info("a").is_none().then_some(()));
    other.created("a", json!({}));
    crate::common::eventually("it is collected", || other.info("a").is_none().then_some(()));
    assert!(api.info("a").is_some());
}

#[test]
fn section_8_one_of_several_networks() {
    let api = Api::with(&[("OPR_EXECUTOR_NETWORK", " executor-v1-tests , executor-v1-tests-2 ")]);
    for id in ["a", "b", "c"] {
        api.guest(id, "v5");
        assert_eq!(api.executed(id, "/text")["body"], "hello");
        let networks = docker(&["inspect", "--format", "{{json .NetworkSettings.Networks}}", &api.name(id)]);
        assert!(networks.contains("executor-v1-tests"), "{networks}");
        assert_eq!(networks.matches("NetworkID").count(), 1, "{networks}");
    }
}

#[test]
fn section_8_executors_that_start_together_share_a_network() {
    let name = format!("executor-v1-tests-{}", std::process::id());
    let apis: Vec<_> = (0..4).map(|_| Api::with(&[("OPR_EXECUTOR_NETWORK", &name)])).collect();
    let statuses = crate::common::at_once(apis.len(), |i| {
        let reply = apis[i].create("a", json!({ "runtimeEntrypoint": "guest v5" }));
        if reply.status != 201 {
            return problem(&reply);
        }
        apis[i].executed("a", "/text")["body"].as_str().unwrap().to_owned()
    });
    let networks = docker(&["network", "ls", "--quiet", "--filter", &format!("name=^{name}$")]);
    drop(apis);
    for id in networks.lines() {
        docker(&["network", "rm", id]);
    }
    assert_eq!((networks.lines().count(), statuses), (1, vec!["hello".to_owned(); 4]));
}

#[test]
fn section_8_the_secret() {
    let api = Api::with(&[("OPR_EXECUTOR_SECRET", "another-executor-key")]);
    assert_eq!(api.get("/v1/runtimes").status, 401, "{KEY} is not the key now");
    let request = api.anonymous("GET", "/v1/runtimes").header("authorization", "Bearer another-executor-key");
    assert_eq!(request.send().status, 200);
    assert!(!api.server().log().contains("another-executor-key"));
}
