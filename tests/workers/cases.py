"""The table: what each step of a function gives, and what RESULT then says of the state. One table for all languages."""

import json
from dataclasses import dataclass, field

MS_YEARS = 10 * 365 * 86_400_000
SAFE = 2**53 - 1
STATE_LIMIT = 400  # bytes, where a group says LITTLE
MOST_OPERATIONS = 10_000
PAYLOAD = 65_536  # bytes
TYPE = 128  # bytes
LITTLE = {"response": 1_048_576, "state": STATE_LIMIT, "events": 3, "timers": 2}
READ_ONLY = "this request is read-only: its method is listed in [state] shared"
OK = None  # of a step that gives nothing


@dataclass
class Raises:
    """A step that raises an error of one of `types`, with `text` in its message."""

    text: str
    types: tuple = ()


def T(text):
    return Raises(text, ("TypeError",))


def R(text):
    return Raises(text, ("RangeError", "ValueError"))


def E(text):
    return Raises(text)


@dataclass
class Case:
    name: str
    steps: list
    gives: list = None  # outcomes; None: all steps give nothing
    change: dict = None  # `state` of RESULT, with what its bytes hold; None: RESULT has no `state`
    head: dict = field(default_factory=dict)  # more of CALL's `state`; {"stateless": True}: none
    value: object = ...  # JSON value, or snapshot, that CALL brings
    data: bytes = b""  # other bytes that it brings
    events: list = None  # events that it brings
    path: str = "/"
    fault: str = None  # in place of RESULT: in the message of ERROR `raised`
    logs: tuple = ()  # lines that must be among those of the call
    only: str = ""  # a language


@dataclass
class Group:
    """Cases for one worker, which is started with this INIT."""

    name: str
    state: dict | None
    cases: list
    env: dict = field(default_factory=dict)
    limits: dict = None


def model(name, version=0, type="", every=100):
    return {"model": name, "type": type, "version": version, "snapshot_every": every}


def crdt(type):
    return model("crdt", type=type)


def keep(**more):
    return {"action": "keep", **more}


def put(value, **more):
    return {"action": "set", "kind": "json", "value": value, **more}


def emit(*events, **more):
    return {"action": "emit", "events": [{"type": t, "data": d} for t, d in events], **more}


def merge(*operations, **more):
    return {"action": "merge", "operations": list(operations), **more}


def size(*events):
    """Bytes of the array."""
    data = [{"type": t, "data": d} for t, d in events]
    return len(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())


def deep(levels):
    return json.loads("[" * levels + "1" + "]" * levels)


def at(text, ms):
    return Case(f"at {text}", [["schedule", "t", {"at": text}]], change=keep(timers=[timer("t", at=ms)]))


def after(value, ms):
    return Case(f"after {value}", [["schedule", "t", {"after": value}]], change=keep(timers=[timer("t", after=ms)]))


def timer(name, payload=None, **when):
    return {"name": name, **when, "payload": payload}


def cancelled(name):
    return {"name": name, "cancel": True}


def never_at(value):
    return Case(f"not at {value}", [["schedule", "t", {"at": value}]], [R("is not a time")])


def never_after(value):
    return Case(f"not after {value}", [["schedule", "t", {"after": value}]], [R("is not a duration")])


VALUE = [
    Case("absent", [["get"], ["read", "key"], ["read", "version"]], [None, "k", 0]),
    Case("got", [["get"]], [{"a": 1}], value={"a": 1}, head={"version": 7}),
    Case("bytes", [["get"]], [{"bytes": "raw"}], data=b"raw", head={"kind": "binary", "version": 7}),
    Case("set", [["set", {"a": [1]}], ["get"]], [OK, {"a": [1]}], put({"a": [1]})),
    Case(
        "set bytes",
        [["set", {"$": "bytes"}]],
        change={"action": "set", "kind": "binary", "bytes": "bytes"},
    ),
    Case("deleted", [["delete"], ["get"]], change={"action": "delete"}, value=1),
    Case("a copy", [["changeGot"], ["get"]], [OK, {"list": []}], value={"list": []}),
    Case("no JSON", [["set", {"$": "circular"}], ["get"]], [E(""), 1], value=1),
    Case("no NaN", [["set", {"$": "nan"}], ["get"]], [E(""), 1], value=1),
    Case("no function", [["set", {"$": "function"}], ["get"]], [T(""), 1], value=1),
    Case("emit is of another model", [["emit", "added", 1]], [E("which offers get(), set(value), delete()")]),
    Case("so is increment", [["increment"]], [E("which offers get(), set(value), delete()")]),
    Case("raised", [["set", 1]], path="/raise", fault="after all"),
    Case("settled", [["set", 1], ["expire", 1], ["schedule", "t", {"after": 1}], ["get"]],
         [E("settled"), E("settled"), E("settled"), None], path="/stream"),
    Case("read-only", [["set", 1], ["delete"], ["expire", 1], ["schedule", "t", {"after": 1}], ["cancel", "t"], ["get"]],
         [*[E(READ_ONLY)] * 5, 5], value=5, head={"readonly": True}),
]

EXPIRE = [
    Case("with keep", [["expire", 60]], change=keep(expire=60_000), value=1),
    Case("with set", [["expire", 60], ["set", 1]], change=put(1, expire=60_000)),
    Case("after set", [["set", 1], ["expire", "10m"]], change=put(1, expire=600_000)),
    Case("never", [["expire", None]], change=keep(expire=-1), value=1),
    Case("the last counts", [["expire", 1], ["expire", "1.5h"]], change=keep(expire=5_400_000), value=1),
    Case("a fraction", [["expire", 0.25]], change=keep(expire=250), value=1),
    Case("at once", [["expire", 0]], change=keep(expire=0), value=1),
    Case("ten years", [["expire", MS_YEARS // 1000]], change=keep(expire=MS_YEARS), value=1),
    Case("one ms more", [["expire", MS_YEARS / 1000 + 0.001]], [R("longer than ten years")], value=1),
    Case("nothing is there", [["expire", 60]]),
    Case("nothing is left", [["expire", 60], ["delete"]], change={"action": "delete"}, value=1),
    Case("wrong", [["expire", -1], ["expire", "soon"], ["expire", {"$": "nan"}], ["expire", {"$": "infinity"}], ["expire", True],
                   ["expire", []], ["expire", ""], ["expire", "10"]],
         [R("not a duration"), R("500ms"), R("not a duration"), R("ten years"), T("not a duration"), T("write seconds"),
          R("not a duration"), R("not a duration")], value=1),
]  # fmt: skip

TIMERS = [
    after("500ms", 500), after("30s", 30_000), after("10m", 600_000), after("2h", 7_200_000), after("7d", 604_800_000),
    after("1m30s", 90_000), after(10, 10_000), after(0.5, 500), after(0, 0), after("3650d", MS_YEARS),
    never_after("10"), never_after("1w"), never_after("-1s"), never_after(" 1s"), never_after("1s "), never_after(-0.001),
    never_after("1s-"), never_after("s"), never_after("1e3s"), never_after("١s"),
    Case("too late", [["schedule", "t", {"after": "3651d"}], ["schedule", "t", {"at": "9999-01-01T00:00:00Z"}],
                      ["schedule", "t", {"at": 1e15}]],
         [R("longer than ten years"), R("more than ten years"), R("more than ten years")]),
    at("2030-01-31T09:00:00Z", 1_896_080_400_000), at("2030-01-31T09:00Z", 1_896_080_400_000),
    at("2030-01-31T09:00:00+02:00", 1_896_073_200_000), at("2030-01-31T09:00:00-0130", 1_896_085_800_000),
    at("2030-01-31T09:00:00.25Z", 1_896_080_400_250), at("2030-01-31T09:00:00,1239Z", 1_896_080_400_123),
    at("2028-02-29T00:00:00Z", 1_835_395_200_000), at(1_896_080_400_000, 1_896_080_400_000),
    at(1_896_080_400_000.4, 1_896_080_400_000), at(0, 0), at("1970-01-01T00:00:00Z", 0),
    never_at("2030-01-31T09:00:00"), never_at("2030-01-31"), never_at("tomorrow"), never_at("2030-01-31T24:00:00Z"),
    never_at("2030-01-31T09:00:60Z"), never_at("2030-01-31 09:00:00Z"), never_at("20300131T090000Z"), never_at(""),
    never_at(-1), never_at("1969-12-31T23:59:59Z"), never_at({"$": "nan"}),
    Case("no such day", [["schedule", "t", {"at": "2030-02-29T00:00:00Z"}], ["schedule", "t", {"at": "2030-13-01T00:00:00Z"}],
                         ["schedule", "t", {"at": "2030-04-00T00:00:00Z"}]], [R("no such day")] * 3),
    Case("a time of the language", [["schedule", "t", {"at": {"$time": "2030-01-31T09:00:00+00:00"}}]],
         change=keep(timers=[timer("t", at=1_896_080_400_000)])),
    Case("one of its without a zone", [["schedule", "t", {"at": {"$time": "2030-01-31T09:00:00"}}]], [R("no time zone")], only="python"),
    Case("wrong kinds", [["schedule", "t", {"after": "1s", "at": 0}], ["schedule", "t", {}], ["schedule", "t", {"in": "1s"}],
                         ["schedule", "t", {"after": []}], ["schedule", "t", {"at": True}], ["schedule", 5, {"after": 1}],
                         ["cancel", None]],
         [T("one of the two"), T("one of the two"), T(""), T("not a duration"), T("not a time"), T("must be a str"),
          T("must be a str")]),
    Case("no options", [["schedule", "t", "1s"]], [T('say when: {after: "10m"}')], only="node"),
    Case("a name of one character and of 128", [["schedule", "a", {"after": 1}], ["schedule", "ü" * 127 + "😀", {"after": 1}]],
         change=keep(timers=[timer("a", after=1000), timer("ü" * 127 + "😀", after=1000)])),
    Case("other names", [["schedule", n, {"after": 1}] for n in ("", "ü" * 129, "a\nb", "\u0085", "\u007f")] + [["cancel", ""]],
         [R("1 to 128 characters")] * 6),
    Case("half of a character", [["schedule", {"$": "lone"}, {"after": 1}], ["schedule", "t", {"after": 1}, {"$": "lone"}]],
         [T("surrogate"), T("surrogate")]),
    Case("a payload", [["schedule", "t", {"after": 1}, {"a": [1, "ü", {"$": "slash"}]}]],
         change=keep(timers=[timer("t", {"a": [1, "ü", "a\\ud800"]}, after=1000)])),
    Case("kept as it was then", [["scheduleThenChange", "t", {"after": 1}, {"a": 1}]], change=keep(timers=[timer("t", {"a": 1}, after=1000)])),
    Case("no JSON", [["schedule", "t", {"after": 1}, {"$": name}] for name in ("nan", "circular", "function", "bytes")], [T("payload")] * 4),
    Case("100 deep", [["schedule", "t", {"after": 1}, {"$deep": 100}], ["read", "version"]], [OK, 0],
         change=keep(timers=[timer("t", deep(100), after=1000)])),
    Case("101 deep", [["schedule", "t", {"after": 1}, {"$deep": 101}]], [T("100 deep")]),
    Case("a payload at the limit", [["schedule", "t", {"after": 1}, {"$long": PAYLOAD // 2 - 1, "of": "ü"}]],
         change=keep(timers=[timer("t", "ü" * (PAYLOAD // 2 - 1), after=1000)])),
    Case("a payload above", [["schedule", "t", {"after": 1}, 1], ["schedule", "t", {"after": 2}, {"$long": PAYLOAD // 2 - 1, "of": "ü"}],
                             ["schedule", "t", {"after": 3}, {"$long": PAYLOAD - 1}]],
         [OK, OK, R("state.schedule: a payload has at most 65536 bytes, this one has 65537; keep more in the state")],
         keep(timers=[timer("t", "ü" * (PAYLOAD // 2 - 1), after=2000)])),
    Case("no payload", [["schedule", "t", {"after": 1}]], change=keep(timers=[timer("t", None, after=1000)])),
    Case("brackets in text", [["schedule", "t", {"after": 1}, "[\\\"" * 101]], change=keep(timers=[timer("t", "[\\\"" * 101, after=1000)])),
    Case("cancelled", [["cancel", "t"]], change=keep(timers=[cancelled("t")])),
    Case("the last counts", [["schedule", "a", {"after": 1}], ["schedule", "b", {"after": 1}], ["cancel", "a"], ["cancel", "c"],
                             ["schedule", "c", {"after": 2}, 1]],
         change=keep(timers=[cancelled("a"), timer("b", after=1000), timer("c", 1, after=2000)])),
    Case("with set", [["schedule", "t", {"after": 1}], ["set", 5]], change=put(5, timers=[timer("t", after=1000)])),
    Case("with delete", [["delete"], ["schedule", "t", {"after": 1}]], change={"action": "delete", "timers": [timer("t", after=1000)]}, value=1),
    Case("with expire", [["schedule", "t", {"after": 1}], ["expire", 5]], change=keep(expire=5000, timers=[timer("t", after=1000)]), value=1),
    Case("nothing when it raised", [["schedule", "t", {"after": 1}]], path="/raise", fault="after all"),
]  # fmt: skip

PLENTY = [
    Case("value at the limit", [["set", {"$long": STATE_LIMIT - 2}]], change=put("x" * (STATE_LIMIT - 2))),
    Case("value above", [["set", 1], ["set", {"$long": STATE_LIMIT - 1}], ["get"]], [OK, R("limit is 400"), 1], put(1)),
    Case("timers at the limit", [["schedule", "a", {"after": 1}], ["cancel", "b"], ["schedule", "a", {"after": 2}]],
         change=keep(timers=[timer("a", after=2000), cancelled("b")])),
    Case("timers above", [["schedule", "a", {"after": 1}], ["cancel", "b"], ["schedule", "c", {"after": 1}], ["cancel", "c"]],
         [OK, OK, R("may set 2 timers"), R("may set 2 timers")], keep(timers=[timer("a", after=1000), cancelled("b")])),
    Case("payloads at the limit", [["schedule", "a", {"after": 1}, {"$long": 98}], ["schedule", "b", {"after": 1}, {"$long": 298}]],
         change=keep(timers=[timer("a", "x" * 98, after=1000), timer("b", "x" * 298, after=1000)])),
    Case("payloads above", [["schedule", "a", {"after": 1}, {"$long": 98}], ["schedule", "b", {"after": 1}, {"$long": 299}],
                            ["schedule", "a", {"after": 1}, {"$long": 398}]],
         [OK, R("payloads of this call have 401 bytes"), OK], keep(timers=[timer("a", "x" * 398, after=1000)])),
]  # fmt: skip

ADDED = [("added", 1), ("added", 2)]
EVENTS = [
    Case("none", [["get"], ["read", "version"]], [{}, 0]),
    Case("emitted", [["emit", "added", 1], ["get"], ["emit", "counted"], ["get"]], [OK, {"list": [1]}, OK, {"list": [1], "n": 1}],
         emit(("added", 1), ("counted", None))),
    Case("handed over", [["get"]], [{"list": [1, 2]}], events=ADDED),
    Case("onto a snapshot", [["get"], ["emit", "added", 3], ["get"]], [{"list": [0, 1, 2], "ü": 1}, OK, {"list": [0, 1, 2, 3], "ü": 1}],
         emit(("added", 3)), value={"list": [0], "ü": 1}, events=ADDED),
    Case("a snapshot alone", [["get"]], [{"a": "ü"}], value={"a": "ü"}, events=[]),
    Case("emitted onto a snapshot alone", [["emit", "counted"], ["get"]], [OK, {"n": 5}], emit(("counted", None)), value={"n": 4}, events=[]),
    Case("a fold that returns", [["emit", "replaced", [5]], ["get"]], [OK, [5]], emit(("replaced", [5])), events=ADDED),
    Case("data is a copy", [["emitThenChange", "replaced", {"a": 1}], ["get"]], [OK, {"a": 1}], emit(("replaced", {"a": 1}))),
    Case("what get gave is a copy", [["changeGot"], ["get"], ["emit", "added", 3], ["changeGot"], ["get"]],
         [OK, {"list": [1, 2]}, OK, OK, {"list": [1, 2, 3]}], emit(("added", 3)), events=ADDED),
    Case("unknown to emit", [["emit", "gone", 1], ["emit", "toString", 1], ["emit", "__proto__", 1], ["get"]],
         [R('no function "gone"; it has added, replaced, counted'), R("toString"), R("__proto__"), {}]),
    Case("types at the limit and above", [["emit", "t" * TYPE], ["emit", "t" * (TYPE + 1)], ["emit", "ü" * (TYPE // 2)], ["emit", "ü" * (TYPE // 2) + "t"],
                                          ["emit", ""], ["get"]],
         [R("no function"), R("1 to 128 bytes of UTF-8, this one has 129"), R("no function"), R("this one has 129"), R("this one has 0"), {}]),
    Case("unknown and handed over", [["get"]], events=[("gone", 1)], fault='the stored event "gone" has no function in events'),
    Case("raises in emit", [["emit", "added", 3], ["emit", "broken", 1], ["get"], ["emit", "counted"], ["get"]],
         [OK, E('the event "broken" could not be folded: cannot'), {"list": [1, 2, 3]}, OK, {"list": [1, 2, 3], "n": 1}],
         emit(("added", 3), ("counted", None)), events=ADDED),
    Case("raises before the handler", [["get"]], events=[*ADDED, ("broken", 1)], fault='the event "broken" could not be folded: cannot'),
    Case("asynchronous", [["emit", "waits", 1], ["get"]], [E("its function is asynchronous"), {}]),
    Case("not JSON", [["emit", "added", {"$": name}] for name in ("nan", "circular", "function", "bytes", "lone")] + [["get"]],
         [*[T("state.emit")] * 5, {}]),
    Case("100 deep", [["emit", "counted", {"$deep": 100}]], change=emit(("counted", deep(100)))),
    Case("101 deep", [["emit", "counted", {"$deep": 101}]], [T("100 deep")]),
    Case("a type is text", [["emit", 5, 1]], [T("the type of an event is a str")]),
    Case("set and delete", [["set", 1], ["delete"], ["increment"]], [E("emit(type, data)")] * 3),
    Case("expire", [["emit", "counted"], ["expire", 1]], change=emit(("counted", None), expire=1000)),
    Case("expire without an event", [["expire", 1]], change=keep(expire=1000), events=ADDED),
    Case("expire of a snapshot", [["expire", None]], change=keep(expire=-1), value={}, events=[]),
    Case("expire of nothing", [["expire", 1]]),
    Case("timers", [["schedule", "t", {"after": 1}], ["emit", "counted"]], change=emit(("counted", None), timers=[timer("t", after=1000)])),
    Case("timers alone", [["cancel", "t"]], change=keep(timers=[cancelled("t")])),
    Case("raised", [["emit", "counted"]], path="/raise", fault="after all"),
    Case("settled", [["emit", "counted"], ["get"]], [E("settled"), {}], path="/stream"),
    Case("read-only", [["emit", "counted"], ["expire", 1], ["schedule", "t", {"after": 1}], ["cancel", "t"], ["get"]],
         [*[E(READ_ONLY)] * 4, {"list": [1, 2]}], events=ADDED, head={"readonly": True}),
]  # fmt: skip

FLAKY = [
    Case("folding again fails", [["emit", "flaky"], ["emit", "broken"], ["get"], ["emit", "counted"]],
         [OK, E("cannot"), E("only once"), E("only once")], emit(("flaky", None))),
]  # fmt: skip

SNAPSHOTS = [  # every 4
    Case("one below", [["emit", "added", 3]], change=emit(("added", 3)), events=ADDED),
    Case("at the bound", [["emit", "added", 3], ["emit", "added", 4]],
         change=emit(("added", 3), ("added", 4), snapshot={"list": [1, 2, 3, 4]}), events=ADDED),
    Case("only handed over, one below", [["get"]], [{"n": 3}], events=[("counted", None)] * 3),
    Case("only handed over, at the bound", [["get"]], [{"n": 4}], emit(snapshot={"n": 4}), events=[("counted", None)] * 4),
    Case("onto a snapshot", [["emit", "added", "ü"]], change=emit(("added", "ü"), snapshot={"list": ["é", "ü"], "n": 3}),
         value={"list": ["é"]}, events=[("counted", None)] * 3),
    Case("not what was changed outside", [["changeGot"]], change=emit(snapshot={"list": [1] * 4}), events=[("added", 1)] * 4),
    Case("with expire and timers", [["expire", 1], ["cancel", "t"]],
         change=emit(snapshot={"n": 4}, expire=1000, timers=[cancelled("t")]), events=[("counted", None)] * 4),
    Case("not in a read-only call", [["get"]], [{"n": 4}], events=[("counted", None)] * 4, head={"readonly": True}),
    Case("not when it raises", [], path="/raise", fault="after all", events=[("counted", None)] * 4),
]  # fmt: skip

LITTLE_EVENTS = [  # every 4
    Case("events at the limit", [["repeat", 3, "emit", "counted"]], change=emit(*[("counted", None)] * 3)),
    Case("events above", [["repeat", 3, "emit", "counted"], ["emit", "counted"], ["get"]], [OK, R("may emit 3 events"), {"n": 3}],
         emit(*[("counted", None)] * 3)),
    Case("bytes at the limit", [["emit", "counted", {"$long": STATE_LIMIT - 30}]], change=emit(("counted", "x" * (STATE_LIMIT - 30)))),
    Case("bytes above", [["emit", "counted", {"$long": STATE_LIMIT - 29}], ["get"]], [R("have 401 bytes, the limit is 400"), {}]),
    Case("a snapshot at the limit", [["emit", "replaced", {"$long": 300}], ["emit", "replaced", "x"]],
         change=emit(("replaced", "x" * 300), ("replaced", "x"), snapshot="x"), events=[("counted", None)] * 2),
    Case("a snapshot above", [["emit", "added", {"$long": 300}]], events=[("counted", None), ("counted", None), ("added", "x" * 100)],
         fault="the folded state has 422 bytes, the limit is 400"),
    Case("a snapshot above when only read", [["read", "version"]], [1], events=[("added", "x" * 100)] * 4,
         logs=("the folded state has 422 bytes, the limit is 400",)),
]  # fmt: skip

LONG, ROOM = ("counted", "ü" * 60), STATE_LIMIT - size(("counted", "ü" * 60)) - size(("counted", ""))
BIG_EVENTS = [  # every 100; what was handed over and is emitted has STATE_LIMIT bytes, or one more
    Case("bytes at the bound", [["emit", "counted", {"$long": ROOM}]], change=emit(("counted", "x" * ROOM)), events=[LONG]),
    Case("bytes above", [["emit", "counted", {"$long": ROOM + 1}]], change=emit(("counted", "x" * (ROOM + 1)), snapshot={"n": 2}), events=[LONG]),
    Case("at the bound, onto a snapshot", [["emit", "counted", {"$long": ROOM}]], change=emit(("counted", "x" * ROOM)),
         value={"n": 3, "pad": "ü" * 100}, events=[LONG]),
    Case("above, onto a snapshot", [["emit", "counted", {"$long": ROOM + 1}]],
         change=emit(("counted", "x" * (ROOM + 1)), snapshot={"n": 5, "pad": "ü" * 100}), value={"n": 3, "pad": "ü" * 100}, events=[LONG]),
    Case("emitted alone", [["emit", "counted", {"$long": STATE_LIMIT - size(("counted", ""))}]],
         change=emit(("counted", "x" * (STATE_LIMIT - size(("counted", "")))))),
    Case("only handed over, at the bound", [["get"]], [{"n": 1}], events=[("counted", "x" * (STATE_LIMIT - size(("counted", ""))))]),
    Case("only handed over, above", [["get"]], [{"n": 1}], emit(snapshot={"n": 1}),
         events=[("counted", "x" * (STATE_LIMIT - size(("counted", "")) + 1))]),
    Case("not in a read-only call", [["get"]], [{"n": 1}], events=[("counted", "x" * STATE_LIMIT)], head={"readonly": True}),
    Case("too large when only read", [["read", "version"]], [1], events=[("added", "x" * STATE_LIMIT)],
         logs=("the folded state has 413 bytes, the limit is 400",)),
    Case("too large when emitted", [["emit", "counted"]], events=[("added", "x" * STATE_LIMIT)],
         fault="the folded state has 419 bytes, the limit is 400"),
]  # fmt: skip

MIGRATED = [  # version 3
    Case("a value", [["get"]], [{"old": 5, "version": 1}], put({"old": 5, "version": 1}), value=5, head={"schema": 1}),
    Case("from no version", [["get"]], [{"old": 5, "version": 0}], put({"old": 5, "version": 0}), value=5, head={"schema": 0}),
    Case("set then", [["set", 1]], change=put(1), value=5, head={"schema": 1}),
    Case("deleted then", [["delete"]], change={"action": "delete"}, value=5, head={"schema": 1}),
    Case("expire then", [["expire", 1]], change=put({"old": 5, "version": 1}, expire=1000), value=5, head={"schema": 1}),
    Case("read-only", [["get"], ["set", 1]], [{"old": 5, "version": 1}, E(READ_ONLY)], value=5, head={"schema": 1, "readonly": True}),
    Case("absent", [["get"]], [None], head={"schema": 1}),
    Case("of this version", [["get"]], [5], value=5),
    Case("said to be of this version", [["get"]], [5], value=5, head={"schema": 3}),
    Case("newer", [["get"]], value=5, head={"schema": 4}, fault="written with version 4 in [state], and this deployment has version 3"),
    Case("raised", [["get"]], path="/raise", value=5, head={"schema": 1}, fault=""),
]  # fmt: skip

MIGRATED_EVENTS = [  # version 2, every 4
    Case("a snapshot", [["get"]], [{"old": {"a": 1}, "version": 1, "n": 1}], emit(snapshot={"old": {"a": 1}, "version": 1, "n": 1}),
         value={"a": 1}, events=[("counted", None)], head={"schema": 1}),
    Case("a snapshot alone", [["get"]], [{"old": 1, "version": 1}], emit(snapshot={"old": 1, "version": 1}), value=1, events=[], head={"schema": 1}),
    Case("and emitted", [["emit", "counted"]], change=emit(("counted", None), snapshot={"old": 1, "version": 1, "n": 1}), value=1, events=[],
         head={"schema": 1}),
    Case("read-only", [["get"]], [{"old": 1, "version": 1}], value=1, events=[], head={"schema": 1, "readonly": True}),
    Case("no snapshot", [["get"]], [{"n": 1}], events=[("counted", None)], head={"schema": 1}),
]  # fmt: skip


def fails(text):
    return [Case("fails", [["get"]], value=5, head={"schema": 1}, fault=text)]


def counters(grows):
    add = lambda n: {"op": "add", "n": n}  # noqa: E731
    cases = [
        Case("absent", [["get"], ["read", "value"]], [0, 0]),
        Case("read", [["get"], ["read", "value"]], [5, 5], value={"value": 5}),
        Case("added", [["increment"], ["increment", 3], ["increment", 0], ["read", "value"], ["get"]], [OK, OK, OK, 9, 9],
             merge(add(1), add(3), add(0)), value={"value": 5}),
        Case("at the bound", [["increment", SAFE], ["get"]], [OK, SAFE], merge(add(SAFE))),
        Case("above", [["increment", SAFE + 1], ["increment", 1.5], ["increment", "1"], ["increment", True], ["increment", None],
                       ["increment", {"$": "nan"}], ["get"]],
             [R("2^53"), E("whole number"), T("whole number"), T("whole number"), T("whole number"), E("whole number"), 0]),
        Case("sum above", [["increment", SAFE - 5], ["increment"], ["get"]], [OK, R("would leave"), SAFE], merge(add(SAFE - 5)),
             value={"value": 5}),
        Case("others", [["set", 1], ["delete"], ["emit", "a"], ["add", 1]], [E("which offers increment(n)")] * 4),
        Case("read-only", [["increment"], ["read", "value"]], [E(READ_ONLY), 0], head={"readonly": True}),
        Case("settled", [["increment"]], [E("settled")], path="/stream"),
        Case("raised", [["increment"]], path="/raise", fault="after all"),
        Case("expire and timers", [["increment"], ["expire", 1], ["cancel", "t"]], change=merge(add(1), expire=1000, timers=[cancelled("t")])),
        Case("expire of nothing", [["expire", 1]]),
        Case("expire alone", [["expire", 1]], change=keep(expire=1000), value={"value": 1}),
    ]  # fmt: skip
    if grows:
        return [*cases, Case("down", [["increment", -1], ["decrement"], ["get"]], [R("only grows"), E("which offers increment(n)"), 0])]
    return [
        *cases,
        Case("down", [["decrement"], ["decrement", 3], ["increment", -2], ["decrement", -1], ["get"]], [OK, OK, OK, OK, -5],
             merge(add(-1), add(-3), add(-2), add(1))),
        Case("at the lower bound", [["decrement", SAFE], ["decrement"], ["get"]], [OK, R("would leave"), -SAFE], merge(add(-SAFE))),
    ]  # fmt: skip


def sets(removes):
    add = lambda v: {"op": "add", "v": v}  # noqa: E731
    remove = lambda v: {"op": "remove", "v": v}  # noqa: E731
    cases = [
        Case("absent", [["get"], ["read", "values"], ["has", 1]], [[], [], False]),
        Case("read", [["get"], ["has", {"b": [2], "a": 1}], ["has", {"a": 1}], ["has", "1"], ["has", 1]],
             [[1, {"a": 1, "b": [2]}], True, False, False, True], value={"values": [1, {"a": 1, "b": [2]}]}),
        Case("added", [["add", "ü"], ["add", {"a": 1, "b": 2}], ["add", {"b": 2, "a": 1}], ["read", "values"]],
             [OK, OK, OK, ["ü", {"a": 1, "b": 2}]], merge(add("ü"), add({"a": 1, "b": 2}), add({"b": 2, "a": 1}))),
        Case("kinds are apart", [["add", 1], ["add", True], ["add", "1"], ["add", None], ["add", [1]], ["get"]],
             [*[OK] * 5, [1, True, "1", None, [1]]], merge(*map(add, (1, True, "1", None, [1])))),
        Case("1.0 is 1", [["add", {"$": "whole"}], ["has", 1], ["add", {"a": [1.0]}], ["get"]], [OK, True, OK, [1, {"a": [1]}]],
             merge(add(1), add({"a": [1]}))),
        Case("a copy", [["addThenChange", {"a": 1}], ["get"]], [OK, [{"a": 1}]], merge(add({"a": 1}))),
        Case("not JSON", [["add", {"$": name}] for name in ("nan", "circular", "function", "bytes", "lone", "nothing")] + [["get"]],
             [*[T("state.add")] * 6, []]),
        Case("64 deep", [["add", {"$deep": 64}], ["has", {"$deep": 64}], ["has", {"$deep": 63}]], [OK, True, False], merge(add(deep(64)))),
        Case("65 deep", [["add", {"$deep": 65}], ["add", {"a": {"$deep": 64}}], ["has", {"$deep": 65}], ["get"]], [*[T("64 deep")] * 3, []]),
        Case("numbers like a double", [["add", {"$": "large"}], ["add", "1" * 400]], change=merge(add(10**308), add("1" * 400)), only="python"),
        Case("numbers beyond", [["add", {"$": "huge"}], ["add", [{"a": {"$": "huge"}}]], ["get"]], [*[R("beyond what a double holds")] * 2, []],
             only="python"),
        Case("others", [["set", 1], ["delete"], ["emit", "a"], ["enable"]], [E("which offers add(v)")] * 4),
        Case("read-only", [["add", 1], ["get"]], [E(READ_ONLY), []], head={"readonly": True}),
    ]  # fmt: skip
    if not removes:
        return [*cases, Case("removed", [["remove", 1], ["get"]], [E("which offers add(v)"), [1]], value={"values": [1]})]
    return [
        *cases,
        Case("removed", [["remove", {"b": 2, "a": 1}], ["has", {"a": 1, "b": 2}], ["get"]], [OK, False, [1]], merge(remove({"b": 2, "a": 1})),
             value={"values": [1, {"a": 1, "b": 2}]}),
        Case("not there", [["remove", 5], ["get"]], [OK, [1]], value={"values": [1]}),
        Case("and again", [["add", 1], ["remove", 1], ["add", 1], ["get"]], [OK, OK, OK, [1]], merge(add(1), remove(1), add(1))),
        Case("remove in a read-only call", [["remove", 5]], [E(READ_ONLY)], head={"readonly": True}),
    ]  # fmt: skip


REGISTER = [
    Case("absent", [["get"]], [None]),
    Case("never set", [["get"]], [None], value={}),
    Case("read", [["get"]], [{"a": 1}], value={"value": {"a": 1}}),
    Case("set", [["set", {"a": 1}], ["get"], ["set", None], ["get"]], [OK, {"a": 1}, OK, None],
         merge({"op": "set", "v": {"a": 1}}, {"op": "set", "v": None})),
    Case("a copy", [["changeGot"], ["get"]], [OK, {"list": []}], value={"value": {"list": []}}),
    Case("not JSON", [["set", {"$": "nan"}], ["set", {"$": "nothing"}], ["get"]], [T("state.set"), T("state.set"), 1], value={"value": 1}),
    Case("64 deep", [["set", {"$deep": 64}], ["set", {"$deep": 65}]], [OK, T("state.set: nested more than 64 deep")],
         merge({"op": "set", "v": deep(64)})),
    Case("a number beyond a double", [["set", {"$": "huge"}]], [R("state.set: the number 1000")], only="python"),
    Case("others", [["delete"], ["emit", "a"], ["read", "value"]], [E("which offers set(v), get()")] * 3),
    Case("read-only", [["set", 1]], [E(READ_ONLY)], head={"readonly": True}),
]  # fmt: skip

FLAG = [
    Case("absent", [["get"], ["read", "value"]], [False, False]),
    Case("enabled", [["enable"], ["get"], ["read", "value"]], [OK, True, True], merge({"op": "enable"})),
    Case("read", [["read", "value"]], [True], value={"value": True}),
    Case("others", [["set", True], ["delete"], ["emit", "a"]], [E("which offers enable()")] * 3),
    Case("read-only", [["enable"]], [E(READ_ONLY)], head={"readonly": True}),
]

VOTE = [
    Case("absent", [["get"], ["tally"]], [{}, {"for": 0, "against": 0, "total": 0}]),
    Case("voted", [["vote", True], ["vote", False, "ü"], ["vote", False], ["tally"], ["get"]],
         [OK, OK, OK, {"for": 1, "against": 2, "total": 3}, {"a": True, "": False, "ü": False}],
         merge(*[{"op": "vote", "voter": n, "v": v} for n, v in (("", True), ("ü", False), ("", False))]), value={"votes": {"a": True}}),
    Case("names like others", [["vote", True, "__proto__"], ["get"]], [OK, {"__proto__": True}],
         merge({"op": "vote", "voter": "__proto__", "v": True})),
    Case("wrong", [["vote", 1], ["vote", "yes"], ["vote", True, 5], ["vote", True, {"$": "lone"}], ["tally"]],
         [T("not 1"), T("yes"), T("name"), T("surrogate"), {"for": 0, "against": 0, "total": 0}]),
    Case("others", [["set", True], ["delete"], ["emit", "a"]], [E("which offers vote(yes, voter)")] * 3),
    Case("read-only", [["vote", True]], [E(READ_ONLY)], head={"readonly": True}),
]  # fmt: skip


def do(name, type, **operation):
    return {"op": "entry", "k": name, "type": type, "do": operation}


MAP_VIEW = {
    "entries": {
        "up": {"type": "g-counter", "view": {"value": 2}},
        "tags": {"type": "or-set", "view": {"values": ["a"]}},
        "unset": {"type": "lww-register", "view": {}},
    }
}
MAP = [
    Case("absent", [["get"], ["read", "keys"], ["has", "a"]], [{}, [], False]),
    Case("read", [["get"], ["read", "keys"], ["has", "up"], ["on", "up", "g-counter", "read", "value"], ["on", "tags", "or-set", "has", "a"]],
         [{"up": 2, "tags": ["a"], "unset": None}, ["up", "tags", "unset"], True, 2, True], value=MAP_VIEW, only="python"),
    Case("read, where nothing is left out", [["get"], ["read", "keys"], ["on", "up", "g-counter", "read", "value"]],
         [{"up": 2, "tags": ["a"]}, ["up", "tags", "unset"], 2], value=MAP_VIEW, only="node"),
    Case("each type", [["on", "a", "g-counter", "increment", 2], ["on", "b", "pn-counter", "decrement"], ["on", "c", "g-set", "add", 1],
                       ["on", "d", "or-set", "add", 1], ["on", "e", "lww-register", "set", {"x": 1}], ["on", "f", "flag", "enable"],
                       ["on", "g", "vote", "vote", True], ["get"]],
         [*[OK] * 7, {"a": 2, "b": -1, "c": [1], "d": [1], "e": {"x": 1}, "f": True, "g": {"": True}}],
         merge(do("a", "g-counter", op="add", n=2), do("b", "pn-counter", op="add", n=-1), do("c", "g-set", op="add", v=1),
               do("d", "or-set", op="add", v=1), do("e", "lww-register", op="set", v={"x": 1}), do("f", "flag", op="enable"),
               do("g", "vote", op="vote", voter="", v=True))),
    Case("only looked at", [["on", "a", "flag", "read", "value"], ["on", "b", "or-set", "remove", 1], ["read", "keys"]], [False, OK, []]),
    Case("what it reads it wrote", [["on", "a", "pn-counter", "increment", 5], ["on", "a", "pn-counter", "decrement", 2],
                                    ["on", "a", "pn-counter", "get"], ["has", "a"]], [OK, OK, 3, True],
         merge(do("a", "pn-counter", op="add", n=5), do("a", "pn-counter", op="add", n=-2))),
    Case("of another type", [["on", "up", "flag", "enable"], ["on", "up", "g-counter", "get"]],
         [T("the entry is a g-counter"), 2], value=MAP_VIEW),
    Case("deleted", [["delete", "up"], ["has", "up"], ["on", "up", "flag", "enable"], ["delete", "none"], ["read", "keys"]],
         [OK, False, OK, OK, ["tags", "unset", "up"]], merge({"op": "delete", "k": "up"}, do("up", "flag", op="enable")), value=MAP_VIEW),
    Case("deleted behind an entry", [["kept", "up", "g-counter", "increment"], ["on", "up", "g-counter", "get"]], [OK, 1],
         merge({"op": "delete", "k": "up"}, do("up", "g-counter", op="add", n=1)), value=MAP_VIEW),
    Case("names like others", [["on", "__proto__", "flag", "enable"], ["on", "toString", "flag", "enable"], ["has", "constructor"],
                               ["get"]], [OK, OK, False, {"__proto__": True, "toString": True}],
         merge(do("__proto__", "flag", op="enable"), do("toString", "flag", op="enable"))),
    Case("wrong", [["entry", "a", "or-map"], ["entry", "a", "set"], ["entry", "a", 5], ["entry", 5, "flag"], ["delete", None], ["has", 1],
                   ["entry", {"$": "lone"}, "flag"], ["entry", "a", "toString"]],
         [T("holds no or-map"), T("one of g-counter"), T("one of g-counter"), T("name"), T("name"), T("name"), T("surrogate"), T("one of g-counter")]),
    Case("others", [["set", 1], ["emit", "a"], ["add", 1], ["on", "a", "flag", "add", 1], ["on", "a", "lww-register", "increment"]],
         [*[E("which offers entry(name, type)")] * 3, E("it is a flag, which offers enable()"), E("it is a lww-register")]),
    Case("wrong values", [["on", "a", "g-counter", "increment", -1], ["on", "a", "g-set", "add", {"$": "nan"}], ["read", "keys"]],
         [R("only grows"), T("entry("), []]),
    Case("65 deep", [["on", "a", "g-set", "add", {"$deep": 65}], ["on", "a", "g-set", "add", {"$deep": 64}]], [T("64 deep"), OK],
         merge(do("a", "g-set", op="add", v=deep(64)))),
    Case("read-only", [["on", "a", "flag", "enable"], ["delete", "none"], ["on", "a", "or-set", "remove", 1], ["read", "keys"]],
         [E(READ_ONLY), E(READ_ONLY), E(READ_ONLY), []], head={"readonly": True}),
]  # fmt: skip

MANY = [  # flag
    Case("operations at the limit", [["repeat", MOST_OPERATIONS, "enable"]], change=merge(*[{"op": "enable"}] * MOST_OPERATIONS)),
    Case("operations above", [["repeat", MOST_OPERATIONS, "enable"], ["enable"], ["get"]], [OK, R("one call may make 10000 operations"), True],
         merge(*[{"op": "enable"}] * MOST_OPERATIONS)),
]  # fmt: skip

LITTLE_CRDT = [  # or-set
    Case("bytes at the limit", [["add", {"$long": STATE_LIMIT - 22 - 2}]], change=merge({"op": "add", "v": "x" * (STATE_LIMIT - 24)})),
    Case("bytes above", [["add", 1], ["add", {"$long": STATE_LIMIT - 24}], ["get"]], [OK, R("the limit is 400"), [1]], merge({"op": "add", "v": 1})),
]  # fmt: skip

STATELESS = [
    Case("any use", [["get"], ["set", 1], ["delete"], ["expire", 1], ["schedule", "t", {"after": 1}], ["cancel", "t"], ["emit", "a", 1],
                     ["read", "key"], ["read", "version"], ["increment"], ["read", "value"], ["entry", "a", "flag"]],
         [E("this function has no [state] in its function.toml")] * 12, head={"stateless": True}),
]  # fmt: skip

# An older host sends neither `state` in INIT nor the limits that came with it.
OLD_LIMITS = {"response": 1_048_576, "state": STATE_LIMIT}
OLDER = [*VALUE, *STATELESS, *EXPIRE]

GROUPS = [
    Group("stateless", None, STATELESS),
    Group("older host", None, OLDER, limits=OLD_LIMITS),
    Group("value", model("value"), VALUE),
    Group("value without a version", model("value"), [
        Case("as it is", [["get"]], [5], value=5, head={"schema": 2}),
    ]),
    Group("value, version 1, no migrate", model("value", version=1), [
        Case("as it is", [["get"]], [5], value=5, head={"schema": 0}),
    ]),
    Group("expire", model("value"), EXPIRE),
    Group("timers", model("value"), TIMERS),
    Group("limits", model("value"), PLENTY, limits=LITTLE),
    Group("migrated", model("value", version=3), MIGRATED, {"MIGRATE": "sync"}),
    Group("migrated while it waits", model("value", version=3), MIGRATED, {"MIGRATE": "async"}),
    Group("migrate raises", model("value", version=2), fails("cannot migrate"), {"MIGRATE": "raise"}),
    Group("migrate raises later", model("value", version=2), fails("cannot migrate"), {"MIGRATE": "asyncRaise"}),
    Group("migrate returns nothing", model("value", version=2), fails("migrate returned nothing"), {"MIGRATE": "nothing"}),
    Group("migrate returns bytes", model("value", version=2), [
        Case("set", [["get"]], [{"bytes": "from 5"}], {"action": "set", "kind": "binary", "bytes": "from 5"}, value=5, head={"schema": 1}),
    ], {"MIGRATE": "bytes"}),
    Group("migrate returns too much", model("value", version=2), fails("limit is 100"), {"MIGRATE": "large"}, {**LITTLE, "state": 100}),
    Group("migrate comes before start", model("value", version=2), [
        Case("in order", [["get"]], [5], put(5), value=5, head={"schema": 1}, logs=("migrate", "start")),
    ], {"MIGRATE": "says", "START": "1"}),
    Group("events", model("events"), EVENTS),
    Group("flaky events", model("events"), FLAKY),
    Group("initial", model("events"), [
        Case("alone", [["get"]], [{"list": [0]}]),
        Case("copied", [["emit", "added", 1], ["get"], ["changeGot"]], [OK, {"list": [0, 1]}, OK], emit(("added", 1))),
        Case("copied for each", [["emit", "added", 2], ["get"]], [OK, {"list": [0, 2]}], emit(("added", 2))),
        Case("not below a snapshot", [["get"]], [{"a": 1}], value={"a": 1}, events=[]),
    ], {"INITIAL": '{"list":[0]}'}),
    Group("snapshots", model("events", every=4), SNAPSHOTS),
    Group("limits of events", model("events", every=4), LITTLE_EVENTS, limits=LITTLE),
    Group("snapshots of large events", model("events", every=100), BIG_EVENTS, limits=LITTLE),
    Group("migrated events", model("events", version=2, every=4), MIGRATED_EVENTS, {"MIGRATE": "sync"}),
    Group("events migrated while they wait", model("events", version=2, every=4), MIGRATED_EVENTS, {"MIGRATE": "async"}),
    Group("migrate raises for events", model("events", version=2), [
        Case("fails", [["get"]], value=5, events=[], head={"schema": 1}, fault="cannot migrate"),
    ], {"MIGRATE": "asyncRaise"}),
    Group("migrate returns bytes for events", model("events", version=2), [
        Case("fails", [["get"]], value=5, events=[], head={"schema": 1}, fault="bytes are not JSON"),
    ], {"MIGRATE": "bytes"}),
    Group("g-counter", crdt("g-counter"), counters(grows=True)),
    Group("pn-counter", crdt("pn-counter"), counters(grows=False)),
    Group("g-set", crdt("g-set"), sets(removes=False)),
    Group("or-set", crdt("or-set"), sets(removes=True)),
    Group("lww-register", crdt("lww-register"), REGISTER),
    Group("flag", crdt("flag"), FLAG),
    Group("vote", crdt("vote"), VOTE),
    Group("or-map", crdt("or-map"), MAP),
    Group("limits of crdt", crdt("or-set"), LITTLE_CRDT, limits=LITTLE),
    Group("many operations", crdt("flag"), MANY, limits={**LITTLE, "state": 1_000_000}),
]  # fmt: skip
