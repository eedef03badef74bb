"""The model `crdt`: types that the host can merge, whoever changes them where.

What   Reads the host's view of the whole, sends what the function does as operations, and applies each to the view
       here, so that the function reads what it wrote. Rules: runtimes/README.md, “CRDTs” (normative).

Why    A type is a mixin over two things it needs, its view (`_view`) and a way to change it (`_apply`): the state itself
       and an entry of an or-map give them, so that both offer the same.

Holds  A view is read when it is first used. An operation is checked, then kept, then applied; applying cannot fail.
"""

import json
import math
import re

from .context import dumps
from .state import State, json_text, name_text, refuse_others

SAFE = 2**53 - 1
DEPTH = 64  # of a value; the host keeps none that is deeper
MOST = 10_000  # operations of one call
LONG = re.compile(r"\d{309}", re.ASCII)  # in what may be beyond a double
dumps_sorted = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode


def number(text):
    """Equal numbers are one: JSON's 1.0 is 1, as in every other language."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) <= SAFE else value


def canonical(text):
    """The same text for values that are equal as JSON."""
    return dumps_sorted(json.loads(text, parse_float=number))


def value_text(value, what):
    """JSON text of a value that the host can keep."""

    def whole(digits):
        if math.isinf(float(digits)):
            raise ValueError(f"{what}: the number {digits[:40]}… is beyond what a double holds")

    text = json_text(value, what, DEPTH)
    if LONG.search(text):
        json.loads(text, parse_int=whole)
    return text


def member(value, what):
    """→ its text and its canonical text"""
    text = dumps(json.loads(value_text(value, what), parse_float=number))
    return text, canonical(text)


def copies(texts):
    return json.loads(f"[{','.join(texts)}]")


class Counter:
    _grows = False
    _read = staticmethod(lambda view: {"value": view.get("value", 0)})
    _plain = staticmethod(lambda view: view["value"])

    @property
    def value(self):
        return self._view()["value"]

    def increment(self, n=1):
        self._count("increment", n, 1)

    def _count(self, name, n, sign):
        what = f"{self._what()}.{name}"
        if not isinstance(n, int) or isinstance(n, bool):
            raise TypeError(f"{what}: n must be a whole number, not {n!r}")
        if abs(n) > SAFE:
            raise ValueError(f"{what}: n must be a whole number within ±(2^53 - 1), not {n}")
        if self._grows and n < 0:
            raise ValueError(f"{what}: a g-counter only grows, and n is {n}; a pn-counter can also shrink")
        value = self._view()["value"] + sign * n
        if abs(value) > SAFE:
            raise ValueError(f"{what}: the counter would leave ±(2^53 - 1)")
        self._apply(f'{{"op":"add","n":{sign * n}}}', lambda view: view.update(value=value))


class GCounter(Counter):
    _grows = True
    _offers = "increment(n), value, get()"


class PnCounter(Counter):
    _offers = "increment(n), decrement(n), value, get()"

    def decrement(self, n=1):
        self._count("decrement", n, -1)


class GSet:
    """Its view here is a dict of JSON text by canonical text."""

    _offers = "add(v), has(v), values, get()"
    _read = staticmethod(lambda view: {canonical(text): text for text in map(dumps, view.get("values", ()))})
    _plain = staticmethod(lambda view: copies(view.values()))

    @property
    def values(self):
        return copies(self._view().values())

    def has(self, value):
        return member(value, f"{self._what()}.has")[1] in self._view()

    def add(self, value):
        text, key = member(value, f"{self._what()}.add")
        self._apply(f'{{"op":"add","v":{text}}}', lambda view: view.setdefault(key, text))


class OrSet(GSet):
    _offers = "add(v), remove(v), has(v), values, get()"

    def remove(self, value):
        self._open()
        text, key = member(value, f"{self._what()}.remove")
        if key in self._view():
            self._apply(f'{{"op":"remove","v":{text}}}', lambda view: view.pop(key))


class LwwRegister:
    """Its view here is the value as JSON text, and empty if there is none."""

    _offers = "set(v), get()"
    _read = staticmethod(lambda view: {"text": dumps(view["value"])} if "value" in view else {})
    _plain = staticmethod(lambda view: json.loads(view["text"]) if view else None)

    def set(self, value):
        text = value_text(value, f"{self._what()}.set")
        self._apply(f'{{"op":"set","v":{text}}}', lambda view: view.update(text=text))


class Flag:
    _offers = "enable(), value, get()"
    _read = staticmethod(lambda view: {"value": view.get("value", False)})
    _plain = staticmethod(lambda view: view["value"])

    @property
    def value(self):
        return self._view()["value"]

    def enable(self):
        self._apply('{"op":"enable"}', lambda view: view.update(value=True))


class Vote:
    """Its view here is a dict of votes by voter."""

    _offers = "vote(yes, voter), tally(), get()"
    _read = staticmethod(lambda view: dict(view.get("votes", {})))
    _plain = staticmethod(dict)

    def vote(self, yes, voter=""):
        what = f"{self._what()}.vote"
        if not isinstance(yes, bool):
            raise TypeError(f"{what}: True or False, not {yes!r}")
        name_text(voter, what)
        operation = f'{{"op":"vote","voter":{dumps(voter)},"v":{dumps(yes)}}}'
        self._apply(operation, lambda view: view.update({voter: yes}))

    def tally(self):
        votes = self._view().values()
        yes = sum(votes)
        return {"for": yes, "against": len(votes) - yes, "total": len(votes)}


class OrMap:
    """Its view here is a dict of (type, view) by name."""

    _offers = "entry(name, type), delete(name), keys, has(name), get()"
    _read = staticmethod(
        lambda view: {
            name: (entry["type"], TYPES[entry["type"]]._read(entry["view"]))
            for name, entry in view.get("entries", {}).items()
        }
    )
    _plain = staticmethod(lambda view: {name: TYPES[type]._plain(inner) for name, (type, inner) in view.items()})

    @property
    def keys(self):
        return list(self._view())

    def has(self, name):
        return name_text(name, "state.has") in self._view()

    def entry(self, name, type):
        name_text(name, "state.entry")
        kind = ENTRIES.get(type) if isinstance(type, str) else None
        if kind is None:
            wrong = "an or-map holds no or-map" if type == "or-map" else f"there is no type {type!r}"
            raise TypeError(f"state.entry: {wrong}; the second argument is one of {', '.join(ENTRIES)}")
        entry = kind(self, name, type)
        entry._view()
        return entry

    def delete(self, name):
        self._open()
        name_text(name, "state.delete")
        if name in self._view():
            self._apply(f'{{"op":"delete","k":{dumps(name)}}}', lambda view: view.pop(name))


TYPES = {
    "g-counter": GCounter,
    "pn-counter": PnCounter,
    "g-set": GSet,
    "or-set": OrSet,
    "lww-register": LwwRegister,
    "flag": Flag,
    "vote": Vote,
    "or-map": OrMap,
}


class Whole(State):
    def __init__(self, call, model):
        super().__init__(call, model)
        self._seen = None  # the view
        self._operations = []
        self._bytes = 1  # of them, in a list

    def get(self):
        return self._plain(self._view())

    def _what(self):
        return "state"

    def _is(self):
        return f'this function has type = "{self._model.type}" in its [state]'

    def _view(self):
        if self._seen is None:
            self._seen = self._read({} if self._kind == "none" else json.loads(self._data))
        return self._seen

    def _apply(self, operation, change):
        self._open()
        view, size = self._view(), self._bytes + len(operation.encode()) + 1
        if len(self._operations) >= MOST:
            raise ValueError(f"one call may make {MOST} operations; leave the rest to the next")
        if size > self._model.limit:
            raise ValueError(f"the operations of this call have {size} bytes, the limit is {self._model.limit}")
        self._bytes = size
        self._operations.append(operation)
        change(view)
        self._call.entity = self

    def _prepare(self):
        return None  # the host keeps no version of what it merges

    def _finish(self):
        if self._operations:
            self._call.change = ("merge", "json", f"[{','.join(self._operations)}]".encode())
        self._extras(self._operations or self._kind != "none")


class Entry:
    """Holds the name only: the entry may be deleted, and made again, behind it."""

    def __init__(self, whole, name, type):
        self._map = whole
        self._name = name
        self._type = type

    def get(self):
        return self._plain(self._view())

    def _what(self):
        return f"entry({self._name!r}, {self._type!r})"

    def _is(self):
        return f"it is a {self._type}"

    def _open(self):
        self._map._open()

    def _view(self):
        type, view = self._map._view().get(self._name, (self._type, None))
        if type != self._type:
            raise TypeError(f"{self._what()}: the entry is a {type}; ask for that, or delete it first")
        return self._read({}) if view is None else view

    def _apply(self, operation, change):
        self._view()

        def inside(entries):
            change(entries.setdefault(self._name, (self._type, self._read({})))[1])

        name = dumps(self._name)
        self._map._apply(f'{{"op":"entry","k":{name},"type":"{self._type}","do":{operation}}}', inside)


ENTRIES = {
    name: refuse_others(type(f"{mixin.__name__}Entry", (mixin, Entry), {}), "entry")
    for name, mixin in TYPES.items()
    if name != "or-map"
}


def state_of(name):
    """The class of `state` for a type; None: there is no such type."""
    mixin = TYPES.get(name)
    return mixin and refuse_others(type(mixin.__name__, (mixin, Whole), {}), "state")
