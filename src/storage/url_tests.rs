//! Connection texts: each form as a row of a table, and that no text whatsoever panics or shows a secret.

use proptest::prelude::*;

use super::*;

fn s3(dsn: &str) -> Bucket {
    match StorageUrl::parse(dsn) {
        Ok(StorageUrl::S3(bucket)) => bucket,
        other => panic!("{dsn}: {other:?}"),
    }
}

#[test]
fn every_form_has_its_address_and_region() {
    for (dsn, address, region) in [
        ("s3://k:s@host/bucket?region=eu-west-1", "https://host/bucket", "eu-west-1"),
        ("s3://k:s@host/bucket", "https://host/bucket", "us-east-1"),
        ("S3://k:s@host/bucket", "https://host/bucket", "us-east-1"),
        ("s3://k:s@host:9000/bucket?insecure=true&region=garage", "http://host:9000/bucket", "garage"),
        ("s3://k:s@host/bucket?insecure=1", "https://host/bucket", "us-east-1"),
        ("s3://k:s@host/bucket/a/b%20c", "https://host/bucket/a/b%20c", "us-east-1"),
        ("s3://k:s@host//bucket//a/", "https://host/bucket/a", "us-east-1"),
        ("s3://k:s@bucket.s3.amazonaws.com?region=us-west-2", "https://bucket.s3.amazonaws.com", "us-west-2"),
        (
            "s3://k:s@bucket.s3.amazonaws.com/?region=us-west-2",
            "https://bucket.s3.amazonaws.com",
            "us-west-2",
        ),
        ("s3://k:s@HOST/Bucket", "https://host/Bucket", "us-east-1"),
        ("s3://k:s@[::1]:9000/bucket?insecure=true", "http://[::1]:9000/bucket", "us-east-1"),
        (
            "s3://k:s@x/bucket?url=http%3A%2F%2Fminio%3A9000&insecure=false",
            "http://minio:9000/bucket",
            "us-east-1",
        ),
        ("s3://k:s@x/bucket?url=https://minio/base/&region=a&region=b", "https://minio/base/bucket", "b"),
        ("s3://k:s@x?url=https://minio/base/bucket", "https://minio/base/bucket", "us-east-1"),
        ("dospaces://k:s@x/b?region=fra1", "https://b.fra1.digitaloceanspaces.com", "fra1"),
        ("backblaze://k:s@x/b?region=us-west-004", "https://b.s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("linode://k:s@x/b?region=eu-central-1", "https://b.eu-central-1.linodeobjects.com", "eu-central-1"),
        (
            "wasabi://k:s@x/b/p?region=eu-central-1",
            "https://b.s3.eu-central-1.wasabisys.com/p",
            "eu-central-1",
        ),
    ] {
        let bucket = s3(dsn);
        assert_eq!((bucket.address.as_str(), bucket.region.as_str()), (address, region), "{dsn}");
        assert_eq!((bucket.access_key.expose(), bucket.secret_key.expose()), ("k", "s"), "{dsn}");
    }
}

#[test]
fn credentials_are_percent_decoded_and_a_plus_stays() {
    let bucket = s3("s3://AK%2FID:a%2Fb+c%3D%3D%40%3A%25@host/bucket");
    assert_eq!((bucket.access_key.expose(), bucket.secret_key.expose()), ("AK/ID", "a/b+c==@:%"));
}

#[test]
fn what_is_no_remote_storage_is_the_local_disk_and_says_so_if_it_was_meant_otherwise() {
    for (dsn, warned) in [
        ("", false),
        ("  ", false),
        ("local://localhost", false),
        ("file://localhost", false),
        ("file:///storage", false),
        ("LOCAL://x", false),
        ("gcs://k:s@host/bucket", true),
        ("s3", true),
        ("s3://", true),
        ("s3:bucket", true),
        ("s3:///bucket", true),
        ("s3://k:s@/bucket?region=garage", true),
        ("/storage", true),
        ("s3://k:s@host:port/bucket", true),
        ("not a url at all", true),
    ] {
        let url = StorageUrl::parse(dsn).unwrap_or_else(|error| panic!("{dsn}: {error}"));
        assert!(matches!(url, StorageUrl::Disk { .. }), "{dsn}: {url:?}");
        assert_eq!(url.warning().is_some(), warned, "{dsn}");
    }
    assert!(StorageUrl::parse(&format!("s3://k:s@h/{}", "b".repeat(MAX_BYTES))).unwrap().warning().is_some());
}

#[test]
fn a_remote_storage_that_cannot_work_is_an_error() {
    use StorageUrlError as E;
    for (dsn, error) in [
        ("s3://host/bucket", E::Credentials("s3")),
        ("s3://k@host/bucket", E::Credentials("s3")),
        ("s3://k:@host/bucket", E::Credentials("s3")),
        ("s3://:s@host/bucket", E::Credentials("s3")),
        ("s3://k:%ff@host/bucket", E::Credentials("s3")),
        ("s3://k:a%0ab@host/bucket", E::Credentials("s3")),
        ("s3://k:s@host/bu%2fcket", E::Bucket("s3")),
        ("s3://k:s@host/%ff", E::Bucket("s3")),
        ("s3://k:s@host/bucket?region=a%20b", E::Region("s3")),
        ("s3://k:s@host/bucket?url=ftp://x", E::Endpoint("s3")),
        ("s3://k:s@host/bucket?url=minio:9000", E::Endpoint("s3")),
        ("s3://k:s@host/bucket?url=http://u:p@minio", E::Endpoint("s3")),
        ("s3://k:s@host/bucket?url=http://minio?x", E::Endpoint("s3")),
        ("dospaces://k:s@x?region=fra1", E::Bucket("dospaces")),
        ("dospaces://k:s@x/b", E::Region("dospaces")),
        ("wasabi://k:s@x/b?region=evil.example/", E::Region("wasabi")),
        ("linode://k:s@x/.?region=a", E::Bucket("linode")),
        ("backblaze://x/b?region=a", E::Credentials("backblaze")),
    ] {
        assert_eq!(StorageUrl::parse(dsn), Err(error), "{dsn}");
    }
}

fn legacy(pairs: &[(&str, &str)]) -> Result<Option<StorageUrl>> {
    let vars =
        pairs.iter().map(|(name, value)| (format!("OPR_EXECUTOR_STORAGE_{name}"), (*value).to_owned()));
    StorageUrl::from_legacy(&vars.collect())
}

#[test]
fn the_older_variables_give_the_same_addresses() {
    let common = |name: &str| {
        [("ACCESS_KEY", "a%2Fb"), ("SECRET", "s+/"), ("REGION", "eu-1"), ("BUCKET", "b")]
            .map(|(what, value)| (format!("{name}_{what}"), value))
    };
    for (device, name, more, address) in [
        ("s3", "S3", None, "https://b.s3.eu-1.amazonaws.com"),
        ("S3", "S3", Some(("S3_HOST", "minio:9000")), "https://minio:9000/b"),
        ("s3", "S3", Some(("S3_HOST", "http://minio")), "http://minio/b"),
        ("s3", "S3", Some(("S3_ENDPOINT", "http://minio:9000/")), "http://minio:9000/b"),
        ("dospaces", "DO_SPACES", None, "https://b.eu-1.digitaloceanspaces.com"),
        ("backblaze", "BACKBLAZE", None, "https://b.s3.eu-1.backblazeb2.com"),
        ("linode", "LINODE", None, "https://b.eu-1.linodeobjects.com"),
        ("wasabi", "WASABI", None, "https://b.s3.eu-1.wasabisys.com"),
    ] {
        let common = common(name);
        let mut pairs: Vec<_> = common.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        pairs.push(("DEVICE", device));
        pairs.extend(more);
        let Ok(Some(StorageUrl::S3(bucket))) = legacy(&pairs) else { panic!("{device} {more:?}") };
        assert_eq!((bucket.address.as_str(), bucket.region.as_str()), (address, "eu-1"));
        assert_eq!((bucket.access_key.expose(), bucket.secret_key.expose()), ("a%2Fb", "s+/"));
    }
    let china = [("S3_ACCESS_KEY", "a"), ("S3_SECRET", "s"), ("S3_REGION", "cn-north-1"), ("S3_BUCKET", "b")];
    let Ok(Some(url)) = legacy(&[&[("DEVICE", "s3")][..], &china].concat()) else { panic!() };
    assert_eq!(url.to_string(), "S3 at https://b.s3.cn-north-1.amazonaws.com.cn (cn-north-1)");
}

#[test]
fn the_older_variables_may_ask_for_nothing_or_for_too_little() {
    for pairs in [&[][..], &[("DEVICE", "")], &[("DEVICE", "local")], &[("DEVICE", "other")]] {
        assert_eq!(legacy(pairs), Ok(None));
    }
    assert_eq!(legacy(&[("DEVICE", "s3")]), Err(StorageUrlError::Bucket("s3")));
    let keyless = [("DEVICE", "s3"), ("S3_HOST", "h"), ("S3_SECRET", "s")];
    assert_eq!(legacy(&keyless), Err(StorageUrlError::Credentials("s3")));
}

fn everything_shown(result: &Result<StorageUrl>) -> String {
    match result {
        Ok(url) => format!("{url:?} {url:#?} {url} {:?}", url.warning()),
        Err(error) => format!("{error:?} {error}"),
    }
}

proptest! {
    #[test]
    fn no_text_panics(dsn in ".*") {
        let _ = everything_shown(&StorageUrl::parse(&dsn));
    }

    #[test]
    fn no_text_that_looks_like_one_panics(
        scheme in "s3|dospaces|backblaze|linode|wasabi|local|x",
        rest in "[a-zA-Z0-9:/?&=@%+.~\\[\\]# -]{0,80}",
        url in "(&?url=.{0,20})?",
    ) {
        if let Ok(StorageUrl::S3(bucket)) = StorageUrl::parse(&format!("{scheme}://{rest}{url}")) {
            let address = Url::parse(&bucket.address).unwrap();
            prop_assert!(matches!(address.scheme(), "http" | "https") && address.query().is_none());
            prop_assert!(address.username().is_empty() && address.password().is_none());
        }
    }

    #[test]
    fn no_secret_is_shown(
        scheme in "s3|dospaces|wasabi|s4",
        key in "[!-~]{4,20}",
        secret in "[!-~]{4,20}",
        rest in "|/|host|host/bucket|host/bucket\\?region=r|host/bucket\\?url=nonsense|h:x/b",
    ) {
        let (key, secret) = (format!("QQ{key}QQ"), format!("ZZ{secret}ZZ"));
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        // Also as people forget to encode them.
        for (key, secret) in [(encoded(&key), encoded(&secret)), (key.clone(), secret.clone())] {
            let result = StorageUrl::parse(&format!("{scheme}://{key}:{secret}@{rest}"));
            let shown = everything_shown(&result);
            if matches!(result, Ok(StorageUrl::S3(_))) && [&key, &secret].iter().any(|text| text.contains(['/', '?', '#', '@', ':'])) {
                continue; // Then it is no secret to the grammar of URLs.
            }
            prop_assert!(!shown.contains("QQ") && !shown.contains("ZZ"), "{shown}");
        }
    }
}
