//! Shell scripts that can be understood without a shell.
//!
//! Starting one takes longer than all else that a start does, most of all where a container's files come through a
//! file system in user space. A hook with nothing but comments has nothing to run, and a script whose one line is
//! `exec` with plain words is that program. Whatever is not surely so goes to the shell; what the words mean is never
//! guessed, so nothing the shell would expand, quote or look up in itself is plain.

use std::path::Path;
use std::process::Command;

/// Larger ones have something to say.
const MOST: u64 = 4096;

fn read(path: &Path) -> Option<String> {
    let small = path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= MOST);
    small.then(|| std::fs::read_to_string(path).ok()).flatten()
}

/// The lines that do something.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Whether the script there has nothing but comments.
pub(super) fn is_empty(path: &Path) -> bool {
    read(path).is_some_and(|text| lines(&text).next().is_none())
}

/// The program that `line` ends in, when it is `bash <script>` and the script in `folder` only hands over to it.
pub(super) fn without_shell(line: &str, folder: &Path) -> Option<Command> {
    let [bash, script] = words(line)?[..] else { return None };
    let text = read(&folder.join(script)).filter(|_| bash == "bash" && !script.starts_with('-'))?;
    let mut lines = lines(&text);
    let (only, None) = (lines.next()?, lines.next()) else { return None };
    let [exec, program, arguments @ ..] = &words(only)?[..] else { return None };
    if *exec != "exec" || program.starts_with('-') {
        return None;
    }
    let mut command = Command::new(program);
    command.args(arguments);
    Some(command)
}

/// Words that mean themselves.
fn words(line: &str) -> Option<Vec<&str>> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b" /._:@,+-".contains(&byte);
    line.bytes().all(plain).then(|| line.split(' ').filter(|word| !word.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understood(script: &str, line: &str) -> Option<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("s.sh"), script).unwrap();
        let command = without_shell(line, dir.path())?;
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        Some(words.map(|word| word.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn only_a_plain_exec_is_understood() {
        let script = "#!/usr/bin/env bash\n# Serves.\n\nexec executor run /a/b --port 3000\n";
        let wanted = ["executor", "run", "/a/b", "--port", "3000"].map(str::to_owned).to_vec();
        assert_eq!(understood(script, "bash s.sh"), Some(wanted));
        for line in [
            "bash s.sh x",
            "bash none.sh",
            "sh s.sh",
            "bash -c s.sh",
            "bash s.sh; true",
            "bash",
            "",
            "bash -s",
        ] {
            assert_eq!(understood(script, line), None, "{line}");
        }
        let lines = [
            "exec a $B",
            "exec a \"b\"",
            "exec a *",
            "exec -a x y",
            "exec a & ",
            "exec a > b",
            "exec",
            "a b",
            "exec a\nexec b",
            "exec ~/a",
            "cd x\nexec a",
            "exec {a,b}",
            "exec a # b",
            "exec a \\\nb",
            "exec a=b",
        ];
        for line in lines {
            assert_eq!(understood(line, "bash s.sh"), None, "{line}");
        }
    }

    #[test]
    fn comments_are_nothing_up_to_a_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sh");
        assert!(!is_empty(&path));
        let most = "#".repeat(MOST as usize);
        let more = most.clone() + "#";
        for (text, empty) in [
            ("", true),
            ("#!/bin/bash\n\n  # x\n", true),
            ("# x\ntrue", false),
            (&most, true),
            (&more, false),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(is_empty(&path), empty, "{} bytes", text.len());
        }
    }
}
