//! What the documentation says, one case each.

use super::super::{CrdtError, DeltaError, MAX_COUNT, MAX_OPS, Ops, OpsError};
use super::{Crdt, CrdtType, Host, empty, join, value};

#[test]
fn types_have_one_name() {
    for kind in CrdtType::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    assert_eq!(
        "Counter".parse::<CrdtType>().unwrap_err(),
        "`Counter` is not a CRDT type; known are `g-counter`, `pn-counter`, `g-set`, `or-set`, `lww-register`, `flag`, \
         `vote`, `or-map`"
    );
}

/// Type, operations, view, plain value.
const VIEWS: [(&str, &str, &str, &str); 9] = [
    ("g-counter", r#"[{"op":"add","n":3},{"op":"add","n":2.0}]"#, r#"{"value":5}"#, "5"),
    ("pn-counter", r#"[{"op":"add","n":1},{"op":"add","n":-3}]"#, r#"{"value":-2}"#, "-2"),
    (
        "g-set",
        r#"[{"op":"add","v":{"b":1,"a":null}},{"op":"add","v":{"a":null,"b":1.0}}]"#,
        r#"{"values":[{"a":null,"b":1}]}"#,
        r#"[{"a":null,"b":1}]"#,
    ),
    (
        "or-set",
        r#"[{"op":"add","v":null},{"op":"add","v":"x"},{"op":"remove","v":"x"}]"#,
        r#"{"values":[null]}"#,
        "[null]",
    ),
    ("lww-register", r#"[{"op":"set","v":[1]},{"op":"set","v":null}]"#, r#"{"value":null}"#, "null"),
    ("flag", r#"[{"op":"enable"}]"#, r#"{"value":true}"#, "true"),
    (
        "vote",
        r#"[{"op":"vote","voter":"","v":true},{"op":"vote","voter":"ada","v":false}]"#,
        r#"{"votes":{"":true,"ada":false}}"#,
        r#"{"":true,"ada":false}"#,
    ),
    (
        "or-map",
        r#"[{"op":"entry","k":"f","type":"flag","do":{"op":"enable"}},
            {"op":"entry","k":"n","type":"pn-counter","do":{"op":"add","n":-1}},
            {"op":"entry","k":"x","type":"flag","do":{"op":"enable"}},{"op":"delete","k":"x"}]"#,
        r#"{"entries":{"f":{"type":"flag","view":{"value":true}},"n":{"type":"pn-counter","view":{"value":-1}}}}"#,
        r#"{"f":true,"n":-1}"#,
    ),
    ("or-map", r#"[{"op":"delete","k":"nothing"}]"#, r#"{"entries":{}}"#, "{}"),
];

#[test]
fn views_are_those_of_the_protocol() {
    for (kind, ops, view, plain) in VIEWS {
        let state = Host::new("a").after(&empty(kind), ops);
        assert_eq!((&*state.view(), &*state.plain()), (view, plain));
        assert_eq!(Crdt::decode(&state.encode()), Ok(state));
    }
    let empty_views = [
        ("g-counter", r#"{"value":0}"#, "0"),
        ("pn-counter", r#"{"value":0}"#, "0"),
        ("g-set", r#"{"values":[]}"#, "[]"),
        ("or-set", r#"{"values":[]}"#, "[]"),
        ("lww-register", "{}", "null"),
        ("flag", r#"{"value":false}"#, "false"),
        ("vote", r#"{"votes":{}}"#, "{}"),
        ("or-map", r#"{"entries":{}}"#, "{}"),
    ];
    for (kind, view, plain) in empty_views {
        assert_eq!((&*empty(kind).view(), &*empty(kind).plain()), (view, plain));
    }
}

#[test]
fn a_change_of_nothing_is_empty() {
    let host = Host::new("a");
    for (kind, ops) in [
        ("g-counter", r#"[{"op":"add","n":0}]"#),
        ("pn-counter", r#"[{"op":"add","n":1},{"op":"add","n":-1}]"#),
        ("or-set", r#"[{"op":"remove","v":1}]"#),
        ("or-map", r#"[{"op":"delete","k":"x"}]"#),
    ] {
        assert!(host.delta(&empty(kind), &empty(kind), ops, 1).is_empty(), "{kind}");
    }
    for (kind, ops) in [("flag", r#"[{"op":"enable"}]"#), ("g-set", r#"[{"op":"add","v":1}]"#)] {
        let once = host.after(&empty(kind), ops);
        assert!(host.delta(&once, &once, ops, 1).is_empty(), "{kind}");
    }
}

#[test]
fn counters_end_at_their_limit() {
    let host = Host::new("a");
    for (kind, sign) in [("g-counter", 1), ("pn-counter", 1), ("pn-counter", -1)] {
        let add = |n: i64| format!(r#"[{{"op":"add","n":{}}}]"#, n * sign);
        let full = host.after(&empty(kind), &add(MAX_COUNT));
        assert_eq!(full.plain(), (MAX_COUNT * sign).to_string());
        let error = host.try_delta(&full, &empty(kind), &add(1), 1).unwrap_err();
        assert_eq!(error, DeltaError::Overflow);
        assert!(error.to_string().contains("9007199254740991"));
        // Two hosts that both still had room.
        let almost = host.after(&empty(kind), &add(MAX_COUNT - 1));
        let one = Host::new("b").delta(&almost, &almost, &add(1), 1);
        let over = join(&host.after(&almost, &add(1)), &one);
        assert_eq!(over.plain(), ((MAX_COUNT + 1) * sign).to_string());
        assert_eq!(host.try_delta(&over, &over, &add(1), 1), Err(DeltaError::Overflow));
        if kind == "pn-counter" {
            assert_eq!(host.after(&over, &add(-1)).plain(), (MAX_COUNT * sign).to_string());
        }
    }
}

#[test]
fn a_given_up_commit_that_comes_through_late_is_not_lost() {
    let host = Host::new("a");
    for (kind, first, second, both) in [
        ("g-counter", r#"[{"op":"add","n":1}]"#, r#"[{"op":"add","n":2}]"#, "8"),
        ("or-set", r#"[{"op":"add","v":1}]"#, r#"[{"op":"add","v":2}]"#, "[1,2,5]"),
    ] {
        let start = match kind {
            "g-counter" => host.after(&empty(kind), r#"[{"op":"add","n":5}]"#),
            _ => host.after(&empty(kind), r#"[{"op":"add","v":5}]"#),
        };
        let given_up = host.delta(&start, &start, first, 1);
        let next = host.delta(&start, &start, second, 1);
        assert_eq!(join(&join(&start, &given_up), &next).plain(), both);
    }
}

#[test]
fn an_add_wins_over_a_remove_at_the_same_time() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let (add, remove) = (r#"[{"op":"add","v":1}]"#, r#"[{"op":"remove","v":1}]"#);
    let start = a.after(&empty("or-set"), add);
    let again = b.after(&start, add);
    // The remover saw only the first, though the second is in the store by now.
    assert_eq!(join(&again, &a.delta(&again, &start, remove, 1)).plain(), "[1]");
    assert_eq!(a.after(&again, remove).plain(), "[]");
}

#[test]
fn the_last_write_counts_and_a_seen_one_is_earlier() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let set = |v: u8| format!(r#"[{{"op":"set","v":{v}}}]"#);
    let none = empty("lww-register");
    let one = a.delta(&none, &none, &set(1), 10);
    // The clock of b is late, but it saw what it replaces.
    let two = join(&one, &b.delta(&one, &one, &set(2), 5));
    assert_eq!(two.plain(), "2");
    // It did not see this time: 9 is before 11.
    assert_eq!(join(&two, &b.delta(&two, &none, &set(3), 9)).plain(), "2");
    // At the same millisecond the name decides; of one executor, the order.
    let tie = [a.delta(&none, &none, &set(4), 7), b.delta(&none, &none, &set(5), 7)];
    assert_eq!(join(&tie[0], &tie[1]).plain(), "5");
    assert_eq!(join(&tie[1], &a.delta(&tie[1], &none, &set(4), 7)).plain(), "5");
    assert_eq!(join(&tie[1], &b.delta(&tie[1], &none, &set(1), 7)).plain(), "1");
}

fn entry(name: &str, kind: &str, op: &str) -> String {
    format!(r#"[{{"op":"entry","k":"{name}","type":"{kind}","do":{op}}}]"#)
}

#[test]
fn a_deleted_counter_keeps_what_was_added_at_the_same_time() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let add = |n: u8| entry("x", "g-counter", &format!(r#"{{"op":"add","n":{n}}}"#));
    let delete = r#"[{"op":"delete","k":"x"}]"#;
    let seen = a.after(&empty("or-map"), &add(1));
    let now = a.after(&a.after(&seen, &add(2)), &add(4));
    // Whatever was added up since: only the 1 was seen.
    let delta = b.delta(&now, &seen, delete, 1);
    let kept = join(&now, &delta);
    assert_eq!(kept.plain(), r#"{"x":6}"#);
    assert_eq!(join(&kept, &delta), kept);
    // One that was made before the deletion and arrives after it.
    let late = a.delta(&now, &now, &add(8), 1);
    let gone = b.after(&now, delete);
    assert_eq!(gone.plain(), "{}");
    let back = join(&gone, &late);
    assert_eq!(back.plain(), r#"{"x":8}"#);
    assert_eq!(join(&back, &delta).plain(), r#"{"x":8}"#);
    // Created anew, it begins at nothing, and an old deletion does not touch it.
    let anew = a.after(&a.after(&gone, &add(16)), &add(32));
    assert_eq!(join(&join(&anew, &delta), &now).plain(), r#"{"x":48}"#);
}

#[test]
fn a_deleted_entry_leaves_nothing_behind() {
    let host = Host::new("a");
    let mut state = empty("or-map");
    let mut sizes = Vec::new();
    for n in 0..50 {
        for (kind, op) in [
            ("pn-counter", r#"{"op":"add","n":-1}"#),
            ("or-set", r#"{"op":"add","v":1}"#),
            ("lww-register", r#"{"op":"set","v":1}"#),
            ("vote", r#"{"op":"vote","voter":"","v":true}"#),
        ] {
            state = host.after(&state, &entry(&format!("{n}"), kind, op));
            state = host.after(&state, &format!(r#"[{{"op":"delete","k":"{n}"}}]"#));
        }
        assert_eq!(state.plain(), "{}");
        sizes.push(state.encode().len());
    }
    assert_eq!(sizes[1], sizes[49]);
}

#[test]
fn entries_of_one_name_and_two_types_are_both_kept() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let none = empty("or-map");
    let count = a.delta(&none, &none, &entry("x", "g-counter", r#"{"op":"add","n":1}"#), 1);
    let enable = entry("x", "flag", r#"{"op":"enable"}"#);
    let flag = b.delta(&none, &none, &enable, 1);
    let both = join(&count, &flag);
    assert_eq!(both.plain(), r#"{"x":1}"#);
    let error = a.try_delta(&both, &both, &enable, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the entry `x` is a g-counter, not a flag; delete it first, or use another name"
    );
    let delete = r#"[{"op":"delete","k":"x"}]"#;
    assert_eq!(join(&both, &a.delta(&both, &count, delete, 1)).plain(), r#"{"x":true}"#);
    assert_eq!(a.after(&both, delete).plain(), "{}");
    let instead = format!("[{},{}]", &delete[1..delete.len() - 1], &enable[1..enable.len() - 1]);
    assert_eq!(a.after(&both, &instead).plain(), r#"{"x":true}"#);
}

#[test]
fn types_do_not_mix() {
    let (mut flag, set) = (empty("flag"), empty("or-set"));
    let error = CrdtError::Type { expected: CrdtType::Flag, found: CrdtType::OrSet };
    assert_eq!(flag.merge(&set), Err(error.clone()));
    let host = Host::new("a");
    assert_eq!(host.try_delta(&flag, &set, r#"[{"op":"enable"}]"#, 1), Err(DeltaError::Type(error)));
}

#[test]
fn a_clock_at_the_end_of_time_is_an_error() {
    let host = Host::new("a");
    let late = host.delta(&empty("or-set"), &empty("or-set"), r#"[{"op":"add","v":1}]"#, u64::MAX / 1025);
    assert_eq!(late.plain(), "[1]");
    let ops = r#"[{"op":"add","v":1}]"#;
    assert_eq!(host.try_delta(&late, &late, ops, u64::MAX), Err(DeltaError::Exhausted));
}

#[test]
fn wrong_operations_say_what_is_wrong() {
    for (kind, op, why) in [
        ("flag", r#"{"op":"add"}"#, "`flag` has no operation `add`, only `enable`"),
        ("or-set", r#"{"op":"set","v":1}"#, "`or-set` has no operation `set`, only `add` and `remove`"),
        ("g-set", r#"{"op":"add"}"#, "`add` needs a member `v`"),
        ("g-set", r#"{"op":"add","n":1}"#, "`add` of `g-set` takes no `n`"),
        (
            "g-counter",
            r#"{"op":"add","n":-1}"#,
            "`n` must be a whole number from 0 to 9007199254740991, not -1",
        ),
        (
            "pn-counter",
            r#"{"op":"add","n":9007199254740992}"#,
            "`n` must be a whole number from -9007199254740991 to 9007199254740991, not 9007199254740992",
        ),
        ("pn-counter", r#"{"op":"add","n":"1"}"#, "from -9007199254740991 to 9007199254740991, not \"1\""),
        ("pn-counter", r#"{"op":"add","n":0.5}"#, "not 0.5"),
        ("vote", r#"{"op":"vote","voter":"x","v":1}"#, "`v` of a vote must be true or false"),
        ("vote", r#"{"op":"vote","v":true}"#, "`vote` needs a member `voter`"),
        ("or-map", r#"{"op":"delete"}"#, "`delete` needs a member `k`"),
        ("or-map", r#"{"op":"entry","k":"x","do":{}}"#, "`entry` needs a member `type`"),
        ("or-map", r#"{"op":"entry","k":"x","type":"flag"}"#, "`entry` needs a member `do`"),
        ("or-map", r#"{"op":"entry","k":"x","type":"bag","do":{}}"#, "`bag` is not a CRDT type"),
        ("or-map", r#"{"op":"entry","k":"x","type":"or-map","do":{}}"#, "an or-map holds no or-map"),
        (
            "or-map",
            r#"{"op":"entry","k":"x","type":"flag","do":{"op":"entry"}}"#,
            "`flag` has no operation `entry`, only `enable`",
        ),
        ("flag", r#"{"op":"enable","x":1}"#, "unknown field `x`"),
        ("flag", "7", "invalid type"),
        (
            "lww-register",
            &format!(r#"{{"op":"set","v":{}1{}}}"#, "[".repeat(65), "]".repeat(65)),
            "deeper than 64",
        ),
    ] {
        match Ops::parse(kind.parse().unwrap(), format!("[{op}]").as_bytes()).unwrap_err() {
            OpsError::Op { index: 0, why: found } => assert!(found.contains(why), "{found}"),
            other => panic!("{other}"),
        }
    }
    let two = r#"[{"op":"entry","k":"x","type":"flag","do":{"op":"enable"}},
                  {"op":"entry","k":"x","type":"g-set","do":{"op":"add","v":1}}]"#;
    let error = Ops::parse(CrdtType::OrMap, two.as_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "operation 1: the entry `x` is a flag, not a g-set");
    assert_eq!(Ops::parse(CrdtType::Flag, b"[]"), Err(OpsError::None));
    for wrong in [&b"{}"[..], b"[", b"[]]", b"\xff", b""] {
        assert!(matches!(Ops::parse(CrdtType::Flag, wrong), Err(OpsError::Syntax(_))));
    }
}

#[test]
fn operations_are_bounded() {
    let many = |n: usize| format!("[{}]", vec![r#"{"op":"add","n":1}"#; n].join(","));
    let state = Host::new("a").after(&empty("g-counter"), &many(MAX_OPS));
    assert_eq!(value(&state.view()), serde_json::json!({"value": MAX_OPS}));
    assert_eq!(Ops::parse(CrdtType::GCounter, many(MAX_OPS + 1).as_bytes()), Err(OpsError::TooMany));
}
