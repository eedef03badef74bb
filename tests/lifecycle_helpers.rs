//! `executor lifecycle build` and `start`, as the helpers of an image call them: each rule of the runtime
//! protocol's section on packaging, with the real binary below a root of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails is a failed test")]

mod common;

#[allow(unreachable_pub, reason = "a harness")]
#[path = "lifecycle_helpers/image.rs"]
mod image;
#[path = "lifecycle_helpers/processes.rs"]
mod processes;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::at_once;
use image::{Image, STEPS, err, names, out};

#[test]
fn a_build_says_its_steps_in_order_and_runs_hooks_between_them() {
    let image = Image::new()
        .with("index.js", "1")
        .with(".hidden/file", "2")
        .hook("before-build.sh", "echo before in $(basename $PWD) $MINE; ls -A > seen")
        .hook("compile.sh", "echo compile")
        .hook("after-build.sh", "echo after")
        .set("MINE", "yes");
    let said = image.built("echo command; cat seen; echo made > made");
    let expected = [
        STEPS[0],
        "before in build yes",
        STEPS[1],
        STEPS[2],
        "command",
        ".hidden",
        "index.js",
        "seen",
        "compile",
        STEPS[3],
        STEPS[4],
        "after",
        STEPS[5],
        STEPS[6],
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    assert_eq!(image.started("cat src/function/made src/function/.hidden/file"), "made\n2");
}

#[test]
fn without_hooks_and_command_the_source_is_packed() {
    let image = Image::new().with("index.js", "1");
    assert_eq!(image.built("").lines().collect::<Vec<_>>(), STEPS);
    assert_eq!(names(&image.path("mnt/code")), ["code.tar.gz", "index.js"]);
}

/// First bytes, name of the file.
fn kept_as(compression: &str) -> (&'static [u8], &'static str) {
    match compression {
        "none" | "auto" => (b".open-runtimes\0", "code.tar.gz"),
        "zstd" => (&[0x28, 0xb5, 0x2f, 0xfd], "code.tar.gz"),
        "squashfs" => (b"hsqs", "code.sqfs"),
        _ => (&[0x1f, 0x8b], "code.tar.gz"),
    }
}

#[test]
fn all_compressions_come_back_the_same() {
    for compression in ["", "unknown", "gzip", "none", "zstd", "squashfs", "auto", "auto large"] {
        let set = compression.split(' ').next().unwrap();
        let image = Image::new()
            .with("run.sh", "#!/bin/sh\necho runs")
            .with("with space\nand newline/ü", "odd")
            .with("code.gz", "not packed")
            .with("deep/code.gz", "packed")
            .set("OPEN_RUNTIMES_BUILD_COMPRESSION", set);
        fs::set_permissions(image.code("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("run.sh", image.code("link")).unwrap();
        symlink("/etc/passwd", image.code("outside")).unwrap();
        if compression == "auto large" {
            fs::write(image.code("large"), vec![7; 5120 << 10]).unwrap();
        }
        let said = image.built("");
        assert!(said.contains("Warning: `outside` is left out"), "{said}");
        let (magic, name) = kept_as(compression);
        let archive = fs::read(image.code(name)).unwrap();
        assert!(archive.starts_with(magic), "{compression}: {:?}", &archive[..16]);
        let stale: Vec<_> =
            names(&image.path("mnt/code")).into_iter().filter(|n| n.starts_with("code.")).collect();
        assert_eq!(stale, [name], "{compression}: nothing that readers would prefer");
        let said = image.started("src/function/link && cat 'src/function/with space\nand newline/ü'");
        assert_eq!(said, "runs\nodd", "{compression}");
        assert!(image.function("deep/code.gz").exists() && !image.function("code.gz").exists());
        assert_eq!(image.timings(), ["extract", "prepare"]);
        let metadata = fs::read_to_string(image.function(".open-runtimes")).unwrap();
        let form = if compression == "auto" { "none" } else { set };
        let form = if ["none", "zstd", "squashfs"].contains(&form) { form } else { "gzip" };
        assert!(metadata.ends_with(&format!("OPEN_RUNTIMES_COMPRESSION={form}\n")), "{metadata}");
    }
}

#[test]
fn skip_keeps_a_tree_that_starts_by_links() {
    let image = Image::new()
        .with("src.txt", "source")
        .set("OPEN_RUNTIMES_BUILD_COMPRESSION", "skip")
        .set("OPEN_RUNTIMES_OUTPUT_DIRECTORY", "dist");
    image.built(
        "mkdir -p dist/sub; echo built > dist/a; echo b > dist/sub/b; echo x > dist/code.tar; ln -s a dist/l",
    );
    assert_eq!(fs::read(image.code(".extracted")).unwrap(), b"");
    assert_eq!(names(&image.path("mnt/code")), [".extracted", ".open-runtimes", "a", "l", "src.txt", "sub"]);
    assert_eq!(image.started("cat src/function/a src/function/sub/b src/function/l"), "built\nb\nbuilt\n");
    assert_eq!(fs::read_link(image.function("a")).unwrap(), image.code("a"));
    assert!(!image.function(".extracted").exists());
    assert_eq!(image.timings(), ["symlink", "prepare"]);
}

#[test]
fn a_tree_that_cannot_be_linked_falls_back_to_the_archive() {
    let image = Image::new().with("a", "archived");
    image.built("");
    fs::write(image.code(".extracted"), "").unwrap();
    fs::create_dir_all(image.function("")).unwrap();
    fs::write(image.function("old"), "from an earlier start").unwrap();
    assert_eq!(image.started("ls src/function"), "a\n", "what was there is cleared");
    assert_eq!(image.timings(), ["symlink", "prepare"]);

    // A path of more than 4,095 bytes cannot be a link's target; this root is so long that one name makes it
    // that.
    fs::write(image.code(&"n".repeat(250)), "").unwrap();
    let root = image.root.path().to_str().unwrap();
    let long = format!("{root}{}", "/.".repeat((3900 - root.len()) / 2));
    let output = image
        .command("start", "cat src/function/a; ls src/function")
        .env("EXECUTOR_LIFECYCLE_ROOT", long)
        .output()
        .unwrap();
    assert_eq!(out(&output), "archiveda\n", "{output:?}");
    assert!(!image.function("a").is_symlink(), "nothing is left of the links");
    assert_eq!(image.timings(), ["extract", "prepare"]);
}

#[test]
fn without_an_archive_there_is_no_start() {
    let image = Image::new();
    for marker in [false, true] {
        if marker {
            fs::remove_dir(image.path("mnt/code")).unwrap();
        }
        let output = image.start("echo never");
        assert_eq!((output.status.code(), &*err(&output)), (Some(1), "Code archive not found.\n"));
        assert_eq!(out(&output), "");
    }
}

#[test]
fn archives_are_looked_for_in_order_and_read_by_their_first_bytes() {
    let image = Image::new().with("a", "1");
    image.built("echo first > a");
    let take = |name: &str| fs::rename(image.code("code.tar.gz"), image.path(name)).unwrap();
    take("gzip-first");
    image.built("echo second > a");
    take("gzip-second");
    for (better, worse) in
        [("code.sqfs", "code.tar"), ("code.tar", "code.tar.gz"), ("code.tar.gz", "code.gz")]
    {
        fs::copy(image.path("gzip-first"), image.code(better)).unwrap();
        fs::copy(image.path("gzip-second"), image.code(worse)).unwrap();
        assert_eq!(image.started("cat src/function/a"), "first\n", "{better}");
        fs::remove_file(image.code(better)).unwrap();
        assert_eq!(image.started("cat src/function/a"), "second\n", "{worse}");
        fs::remove_file(image.code(worse)).unwrap();
    }
}

#[test]
fn an_archive_that_leads_out_starts_nothing() {
    let image = Image::new();
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..8].copy_from_slice(b"../evil\0");
    header.set_size(0);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(512 * 3, 0);
    fs::write(image.code("code.tar"), bytes).unwrap();
    let output = image.start("echo never");
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("`../evil`") && out(&output).is_empty(), "{output:?}");
    assert!(names(&image.path("usr/local/server/src")) == ["function"]);
    assert!(names(&image.path("usr/local/server/src/function")).is_empty());
}

#[test]
fn no_source_and_no_output_are_said() {
    let output = Image::new().build("echo never");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(err(&output), "Error: No source code found. Ensure your source isn't empty.\n");
    assert_eq!(out(&output), "Environment preparation started.\n");
    let elsewhere = Image::new().with("a", "1").set("OPEN_RUNTIMES_BUILD_INPUT_DIR", "/nowhere/at/all");
    assert_eq!(elsewhere.build("").status.code(), Some(1));

    for command in ["mkdir dist", "true", "touch dist"] {
        let image = Image::new().with("a", "1").set("OPEN_RUNTIMES_OUTPUT_DIRECTORY", "dist");
        let output = image.build(command);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(err(&output), "Error: No build output found. Ensure your output directory isn't empty.\n");
        assert!(!image.code("code.tar.gz").exists());
    }
}

#[test]
fn the_output_directory_is_inside_the_source() {
    for (folder, command) in
        [("../server", "true"), ("/etc", "true"), ("a/../../x", "true"), ("out", "ln -s /etc out")]
    {
        let image = Image::new().with("a", "1").set("OPEN_RUNTIMES_OUTPUT_DIRECTORY", folder);
        let output = image.build(command);
        assert_eq!(output.status.code(), Some(1), "{folder}");
        assert!(err(&output).contains("is not inside the source"), "{output:?}");
    }
    let image = Image::new().with("a", "1").set("OPEN_RUNTIMES_OUTPUT_DIRECTORY", "./d ir/");
    image.built("mkdir 'd ir'; echo 2 > 'd ir/b'");
    assert_eq!(image.started("ls src/function"), "b\n");
}

#[test]
fn input_and_output_can_be_elsewhere() {
    let image = Image::new();
    let (input, output) = (image.path("in"), image.path("made/out"));
    fs::create_dir(&input).unwrap();
    fs::write(input.join("a"), "1").unwrap();
    let image = image
        .set("OPEN_RUNTIMES_BUILD_INPUT_DIR", input.to_str().unwrap())
        .set("OPEN_RUNTIMES_BUILD_OUTPUT_DIR", output.to_str().unwrap());
    image.built("");
    assert_eq!(names(&output), ["code.tar.gz"]);
    assert_eq!(names(&input), ["a"]);
}

#[test]
fn a_failing_step_fails_the_build_with_its_exit_code() {
    let fresh = || Image::new().with("a", "1");
    for (image, command, code, step) in [
        (fresh(), "exit 7", 7, "the build command"),
        (fresh(), "kill -9 $$", 137, "the build command"),
        (fresh(), "no-such-program-here", 127, "the build command"),
        (fresh().hook("before-build.sh", "exit 3"), "true", 3, "hook before-build.sh"),
        (fresh().hook("compile.sh", "exit 4"), "true", 4, "hook compile.sh"),
        (fresh().hook("after-build.sh", "exit 5"), "true", 5, "hook after-build.sh"),
    ] {
        let output = image.build(command);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(
            err(&output).ends_with(&format!("Error: {step} failed with exit code {code}.\n")),
            "{output:?}"
        );
        assert!(!image.code("code.tar.gz").exists());
    }
    let image = fresh().hook("before-start.sh", "exit 6");
    image.built("");
    let output = image.start("echo never");
    assert_eq!((output.status.code(), &*out(&output)), (Some(6), ""));
}

#[test]
fn metadata_overrides_the_container_and_is_never_evaluated() {
    let evil = "$(touch evaluated)`touch evaluated`;x=y";
    let image =
        Image::new().with("a", "1").set("OPEN_RUNTIMES_ENTRYPOINT", evil).set("OPEN_RUNTIMES_CLEANUP", "nft");
    image.built("");
    let image =
        image.set("OPEN_RUNTIMES_ENTRYPOINT", "of the container").set("OPEN_RUNTIMES_CLEANUP", "modclean");
    let said = image.started(
        "printf '%s|%s|%s' \"$OPEN_RUNTIMES_ENTRYPOINT\" $OPEN_RUNTIMES_CLEANUP $OPEN_RUNTIMES_COMPRESSION",
    );
    assert_eq!(said, format!("{evil}|nft|gzip"));
    assert!(!image.path("usr/local/server/evaluated").exists() && !image.function("evaluated").exists());

    let archive = image.code("code.tar.gz");
    let text = "PATH=/evil\nOPEN_RUNTIMES_SECRET=known\nOPEN_RUNTIMES_ENTRYPOINT=$(touch x)\nno equals\n";
    fs::write(image.code(".open-runtimes"), text).unwrap();
    fs::remove_file(archive).unwrap();
    fs::write(image.code(".extracted"), "").unwrap();
    let said = image
        .started("echo \"$OPEN_RUNTIMES_ENTRYPOINT\" \"${OPEN_RUNTIMES_SECRET-unset}\"; ls src/function");
    assert!(said.starts_with("$(touch x) unset\n"), "{said}");

    let output = image.set("OPEN_RUNTIMES_ENTRYPOINT", "a\nOPEN_RUNTIMES_CLEANUP=x").build("");
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("has a line break"), "{output:?}");
}

#[test]
fn a_folder_named_as_the_metadata_is_replaced_only_if_it_is_darts() {
    let dart = Image::new().with(".open-runtimes/dart_defines.json", "{}");
    dart.built("");
    assert!(dart.started("cat src/function/.open-runtimes").starts_with("OPEN_RUNTIMES_CLEANUP=none\n"));
    let image = Image::new().with(".open-runtimes/dart_defines.json", "{}").with(".open-runtimes/mine", "1");
    let output = image.build("");
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("is a folder with files in it"), "{output:?}");
    // Never written through a link.
    let image = Image::new().with("a", "1");
    let target = image.path("target");
    fs::write(&target, "kept").unwrap();
    image.built(&format!("ln -s {} .open-runtimes", target.display()));
    assert_eq!(fs::read_to_string(target).unwrap(), "kept");
}

#[test]
fn the_manifest_lists_files_and_never_fails_a_build() {
    let image =
        Image::new().with("b", "1").with("a/c", "1").with("code.gz", "1").with("a/node_modules/x/y", "1");
    symlink("b", image.code("link")).unwrap();
    let manifest = image.path("new/folder/manifest.json");
    let image = image.set("OPEN_RUNTIMES_BUILD_MANIFEST", manifest.to_str().unwrap());
    image.built("");
    let read = || serde_json::from_slice::<serde_json::Value>(&fs::read(&manifest).unwrap()).unwrap();
    assert_eq!(read(), serde_json::json!({"version": 1, "files": [".open-runtimes", "a/c", "b"]}));
    assert_eq!(names(manifest.parent().unwrap()), ["manifest.json"]);
    let image = image.set("OPEN_RUNTIMES_BUILD_MANIFEST_MAX_FILES", "2");
    image.built("");
    assert_eq!(read()["files"], serde_json::json!([".open-runtimes", "a/c"]));
    let image = image.set("OPEN_RUNTIMES_BUILD_MANIFEST", "/dev/null/x/manifest.json");
    assert!(
        image.built("").contains("Warning: the build manifest /dev/null/x/manifest.json was not written")
    );
}

#[test]
fn the_dependency_cache_is_kept_between_builds() {
    let without = Image::new().with("a", "1");
    assert_eq!(without.built("echo ${npm_config_cache-none}").lines().nth(3).unwrap(), "none");
    let image = Image::new().with("a", "1");
    fs::create_dir(image.path("cache")).unwrap();
    let fill = "mkdir -p $npm_config_cache $YARN_CACHE_FOLDER $npm_config_store_dir $BUN_INSTALL_CACHE_DIR \
                $PIP_CACHE_DIR $XDG_CACHE_HOME; echo cached > $npm_config_cache/package";
    image.built(fill);
    assert_eq!(names(&image.path("cache")), ["stores.sqfs"]);
    let artifact = fs::read(image.path("cache/stores.sqfs")).unwrap();
    assert!(artifact.starts_with(b"hsqs"));

    // Another machine: only the artifact is there.
    fs::remove_dir_all(image.path("usr/local/cache")).unwrap();
    let said = image.built("cat $npm_config_cache/package; ls $(dirname $npm_config_cache)");
    assert_eq!(
        said.lines().skip(3).take(7).collect::<Vec<_>>(),
        ["cached", "bun", "npm", "pip", "pnpm", "xdg", "yarn"]
    );

    let size = fs::metadata(image.path("cache/stores.sqfs")).unwrap().len();
    for (limit, warned) in [(size - 1, true), (size, false)] {
        let before = fs::read(image.path("cache/stores.sqfs")).unwrap();
        let mut command = image.command("build", "");
        let output =
            command.env("OPEN_RUNTIMES_BUILD_CACHE_MAX_SIZE_BYTES", limit.to_string()).output().unwrap();
        assert!(output.status.success());
        assert_eq!(
            out(&output).contains("Warning: the dependency cache was not saved"),
            warned,
            "{output:?}"
        );
        assert_eq!(fs::read(image.path("cache/stores.sqfs")).unwrap(), before);
        assert_eq!(names(&image.path("cache")), ["stores.sqfs"]);
    }
    let image = image.set("OPEN_RUNTIMES_BUILD_CACHE_SAVE_TIMEOUT_SECONDS", "0");
    assert!(image.built("").contains("packing takes too long"));
    assert_eq!(names(&image.path("cache")), ["stores.sqfs"]);
    fs::remove_dir_all(image.path("usr/local/cache")).unwrap();
    fs::write(image.path("cache/stores.sqfs"), "broken").unwrap();
    assert!(image.built("").contains("Warning: the dependency cache was not restored: not an archive"));
    assert_eq!(
        fs::read(image.path("cache/stores.sqfs")).unwrap(),
        b"broken",
        "an empty cache replaces nothing"
    );
}

#[test]
fn builds_at_the_same_time_do_each_other_no_harm() {
    let image = Image::new();
    fs::create_dir(image.path("cache")).unwrap();
    let results = at_once(6, |n| {
        let own = Image::new().with("mine", &n.to_string());
        let own = own
            .set("OPEN_RUNTIMES_BUILD_OUTPUT_DIR", image.path("mnt/code").to_str().unwrap())
            .set("OPEN_RUNTIMES_BUILD_CACHE_ARTIFACT", image.path("cache/stores.sqfs").to_str().unwrap());
        own.build("mkdir -p $npm_config_cache; cat mine > $npm_config_cache/x")
    });
    for output in &results {
        assert!(output.status.success(), "{output:?}");
        assert!(!out(output).contains("Warning"), "{output:?}");
    }
    assert_eq!(names(&image.path("mnt/code")), ["code.tar.gz"]);
    assert_eq!(names(&image.path("cache")), ["stores.sqfs"]);
    let winner: usize = image.started("cat src/function/mine").trim().parse().unwrap();
    assert!(winner < 6);
}

#[test]
fn the_scripts_of_the_languages_are_small_and_executable() {
    let thin = ["build.sh", "server.sh", "start.sh"];
    let hooks = ["after-build.sh", "before-build.sh", "before-start.sh"];
    // A site needs nothing around its build and its start.
    for (language, hooks) in [("node", &hooks[..]), ("python", &hooks), ("static", &[])] {
        let scripts = [hooks, &thin].concat();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtimes").join(language).join("helpers");
        assert_eq!(names(&folder), scripts);
        for script in scripts {
            let path = folder.join(script);
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o111,
                0o111,
                "{}",
                path.display()
            );
        }
        // The real scripts, with the real binary in their PATH.
        let image = Image::new().with("a", "1");
        let binary = Path::new(env!("CARGO_BIN_EXE_executor")).parent().unwrap();
        let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
        let run = |script: &str, line: &str| {
            let mut command = Command::new("bash");
            command.arg(folder.join(script)).arg(line).env("PATH", &path);
            command.env("EXECUTOR_LIFECYCLE_ROOT", image.root.path()).output().unwrap()
        };
        assert!(out(&run("build.sh", "echo 'two words' > b")).ends_with("Build finished.\n"));
        assert_eq!(out(&run("start.sh", "cat src/function/b")), "two words\n");
    }
}
