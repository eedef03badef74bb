//! Archives with random damage: any answer but a panic or a file outside.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;

/// Small: many cases in little time.
fn seeds() -> &'static [Vec<u8>] {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let place = Place::new();
        let from = place.path("from");
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::write(from.join("a/b/file"), noise(5000)).unwrap();
        std::fs::write(from.join("a/text"), "text".repeat(500)).unwrap();
        std::fs::write(from.join("n".repeat(150)), "1").unwrap();
        symlink("a/text", from.join("link")).unwrap();
        let mut seeds: Vec<_> = ALL
            .iter()
            .map(|compression| {
                pack(&from, &place.archive(), *compression, &PackOptions::default()).unwrap();
                std::fs::read(place.archive()).unwrap()
            })
            .collect();
        seeds.push(zip_of(&[
            ("a/", 0o040_755, b""),
            ("a/text", 0o755, b"text"),
            ("a/link", 0o120_777, b"text"),
            ("more", 0o644, &noise(3000)),
        ]));
        seeds.push(tar(&[
            entry(EntryType::Symlink, "l", "a/b", b""),
            file("a/b/x", b"1"),
            entry(EntryType::Link, "h", "a/b/x", b""),
            file("l/x", b"2"),
        ]));
        seeds
    })
}

#[derive(Debug, Clone)]
enum Damage {
    Set(usize, u8),
    /// Words: sizes, offsets, counts.
    Word(usize, u32),
    Remove(usize, usize),
    Repeat(usize, usize),
    Cut(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = 0..1_000_000_usize;
    prop_oneof![
        4 => (at.clone(), any::<u8>()).prop_map(|(at, to)| Damage::Set(at, to)),
        // Where heads are.
        4 => (0..128_usize, any::<u8>()).prop_map(|(at, to)| Damage::Set(at, to)),
        2 => (at.clone(), prop_oneof![any::<u32>(), Just(0), Just(u32::MAX), 0..64_u32])
            .prop_map(|(at, to)| Damage::Word(at, to)),
        1 => (at.clone(), 1..600_usize).prop_map(|(at, n)| Damage::Remove(at, n)),
        1 => (at.clone(), 1..600_usize).prop_map(|(at, n)| Damage::Repeat(at, n)),
        1 => at.prop_map(Damage::Cut),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.len() < 8 {
        return;
    }
    let length = bytes.len();
    match *damage {
        Damage::Set(at, to) => bytes[at % length] = to,
        Damage::Word(at, to) => {
            let at = at % (length - 4);
            bytes[at..at + 4].copy_from_slice(&to.to_le_bytes());
        }
        Damage::Remove(at, n) => drop(bytes.drain(at % length..(at % length + n).min(length))),
        Damage::Repeat(at, n) => {
            let piece = bytes[at % length..(at % length + n).min(length)].to_vec();
            bytes.splice(at % length..at % length, piece);
        }
        Damage::Cut(at) => bytes.truncate(at % length),
    }
}

/// Makes the checksums of a tar right again, so that damage reaches what is behind them.
fn mend_tar(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            let mut header = Header::from_byte_slice(block).clone();
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn damage_never_panics_nor_escapes(
        seed in 0..6_usize,
        damages in prop::collection::vec(damage(), 1..5),
        mend in any::<bool>(),
    ) {
        let mut bytes = seeds()[seed].clone();
        for damage in &damages {
            apply(&mut bytes, damage);
        }
        if mend {
            mend_tar(&mut bytes);
        }
        let limits = Limits { bytes: 1 << 20, entries: 200, ..Limits::default() };
        // Fails the test itself if anything outside changed.
        let _ = Place::new().unpack(&bytes, &limits);
    }

    #[test]
    fn names_and_targets_of_all_kinds_stay_inside(
        entries in prop::collection::vec(("[ab./]{1,8}", "[ab./]{1,8}", 0..4_u8), 1..8),
    ) {
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, target, kind)| match kind {
                0 => file(name, b"x"),
                1 => entry(EntryType::Symlink, name, target, b""),
                2 => entry(EntryType::Link, name, target, b""),
                _ => entry(EntryType::Directory, name, "", b""),
            })
            .collect();
        let place = Place::new();
        if place.unpack(&tar(&entries), &Limits::default()).is_ok() {
            let root = place.target().canonicalize().unwrap();
            for (name, _) in hash::walk(&root).unwrap() {
                if let Ok(real) = root.join(&name).canonicalize() {
                    prop_assert!(real.starts_with(&root), "{} is {}", name.display(), real.display());
                }
            }
        }
    }
}
