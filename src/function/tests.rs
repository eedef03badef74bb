//! What manifests may say, and what is said of those that are wrong.

use super::*;

fn read(manifest: &str) -> Result<Function, ManifestError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(MANIFEST), manifest).unwrap();
    std::fs::write(dir.path().join("index.js"), "").unwrap();
    let folder = dir.path().canonicalize().unwrap();
    let runtimes =
        Runtimes::open(Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join("runtimes")), &folder).unwrap();
    manifest::read_function(&folder, "f", 0, &runtimes, None)
}

#[test]
fn the_sample_of_the_documentation_reads() {
    let f = read(
        "runtime = \"python-3.13\"\nentrypoint = \"index.js\"\ntimeout = \"15s\"\nmemory = \"256MiB\"\n\
         cpus = 1.0\nconcurrency = 16\nmin-instances = 0\nmax-instances = 4\nkeep-warm = \"5m\"\n\
         access = \"public\"\n[env]\nGREETING = \"hello\"\n[state]\nkey = \"{query.id}\"\n",
    )
    .unwrap();
    assert_eq!(f.runtime.version.as_deref(), Some("3.13"));
    assert_eq!(f.access, Access::Public);
    assert_eq!(f.env["GREETING"], "hello");
}

#[test]
fn what_a_build_makes_need_not_be_there_before_it() {
    let f =
        read("runtime = \"node\"\nentrypoint = \"out.js\"\n[build]\ncommand = \"make\"\ntimeout = \"5m\"\n")
            .unwrap();
    let build = f.build.as_ref().unwrap();
    assert_eq!((&*build.command, build.timeout, build.cache), ("make", Some(Duration::from_mins(5)), false));
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().canonicalize().unwrap();
    let error = f.built(folder.clone()).unwrap_err();
    assert!(
        error.message.contains("after its build, entrypoint `out.js` does not exist in its result"),
        "{error}"
    );
    std::fs::write(folder.join("out.js"), "").unwrap();
    assert_eq!(f.built(folder.clone()).unwrap().folder, folder);
}

#[test]
fn a_manifest_has_a_bound() {
    let manifest = |size: usize| {
        let text = "runtime = \"node\"\n#";
        text.to_owned() + &"x".repeat(size - text.len())
    };
    assert!(read(&manifest(1 << 20)).is_ok());
    let error = read(&manifest((1 << 20) + 1)).unwrap_err();
    assert!(error.message.contains("more than 1048576 bytes"), "{error}");
}

#[test]
fn each_mistake_names_its_line() {
    for (manifest, line, part) in [
        ("runtime = \"node\"\nspeed = 3\n", 2, "unknown field `speed`"),
        ("runtime = \"node\"\n\ntimeout = \"fast\"\n", 3, "not a duration"),
        ("runtime = \"node\"\nentrypoint = \"gone.js\"\n", 2, "does not exist"),
        ("runtime = \"node\"\nentrypoint = \"../x\"\n", 2, "inside the function's folder"),
        ("runtime = \"no de\"\n", 1, "is not a runtime"),
        ("runtime = \"cobol\"\n", 1, "there is no runtime `cobol`; there are: node, python"),
        ("\nruntime = \"python\"\n", 2, "`main.py` does not exist"),
        ("runtime = \"node\"\nconcurrency = 0\n", 2, "from 1 to 1024"),
        ("runtime = \"node\"\nmemory = \"1MiB\"\n", 2, "at least 16MiB"),
        ("runtime = \"node\"\nmin-instances = 3\nmax-instances = 2\n", 3, "below min-instances"),
        ("runtime = \"node\"\ncpus = 0\n", 2, ""),
        ("image = \"a:1\"\nprofile = \"v2\"\n", 2, "profile v2 has no place for a request's method"),
        ("runtime = \"node\"\n[state]\nkey = \"{nope}\"\n", 3, "nope"),
        ("runtime = \"node\"\n[build]\ncommand = \" \"\n", 3, "needs a command"),
        (
            "runtime = \"node\"\n[build]\ncommand = \"make\"\noutput = \"../x\"\n",
            4,
            "inside the function's folder",
        ),
        ("runtime = \"node\"\n[build]\ncommand = \"make\"\nspeed = 3\n", 4, "unknown field `speed`"),
        ("runtime = \"node\"\n[build]\noutput = \"x\"\n", 2, "command"),
        ("image = \"a:1\"\n[build]\ncommand = \"make\"\n", 3, "build the image instead"),
        ("runtime = \n", 1, ""),
    ] {
        let error = read(manifest).unwrap_err();
        assert_eq!(error.line, Some(line), "{error}");
        assert!(error.message.contains(part), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn names() {
    for good in ["a", "hello-world", "v2", "A.b_c", &"x".repeat(64)] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    for bad in ["", "_", "_x", ".x", "v1", "a b", "ä", "a/b", &"x".repeat(65)] {
        assert!(check_name(bad).is_err(), "{bad}");
    }
}

#[test]
fn foreign_images_and_sites() {
    let f = read("image = \"nginx:1.28\"\nport = 80\n").unwrap();
    let ServedBy::Image(image) = f.served_by else { panic!("{:?}", f.served_by) };
    assert_eq!((image.name.as_str(), image.port, image.profile), ("nginx:1.28", 80, Profile::Port));
    for (manifest, part) in [
        ("image = \"a b\"\n", "is not an image"),
        ("image = \"a\"\nruntime = \"node\"\n", "not both"),
        ("image = \"a\"\nport = 0\n", "from 1 to 65535"),
        ("image = \"a\"\nprofile = \"v6\"\n", "unknown variant"),
        ("image = \"a\"\n[state]\nkey = \"x\"\n", "needs a worker of ours"),
        ("runtime = \"node\"\nport = 80\n", "belong to image"),
        ("runtime = \"static\"\n", "the folder to serve, `public`, does not exist"),
        ("runtime = \"static\"\nentrypoint = \"../x\"\n", "inside the function's folder"),
    ] {
        let error = read(manifest).unwrap_err();
        assert!(error.message.contains(part), "{manifest}: {error}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// Whatever stands in a manifest, it is read or refused on one line.
    #[test]
    fn any_text_is_read_or_refused(
        lines in proptest::collection::vec(
            "(runtime|image|port|entrypoint|timeout|memory|cpus|\\[env\\]|\\[state\\]|\\[build\\]|key|command|[a-z]{0,3})\
             (=| = )?(\"[^\"\n]{0,12}\"|[0-9.-]{0,6}|\\PC{0,8})",
            0..6,
        ),
    ) {
        if let Err(error) = read(&lines.join("\n")) {
            proptest::prop_assert!(!error.to_string().contains('\n'), "{}", error);
        }
    }
}
