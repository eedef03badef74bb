"""The state of an entity as the function sees it: what every model offers, and the model `value`.

What   `context.state`: a copy here until the host commits it with the answer. No I/O. events.py and crdt.py hold the
       other models. The rules are in runtimes/README.md, “State in the worker” (normative).

Why    Imported when the function is stateful, so that others do not pay for it. A call that only reads, or only sets
       a value, is never looked at again: just a call whose `entity` is set is asked, in `finish`, for what RESULT says.

Holds  - What raises leaves the state as it was: everything is checked before anything is kept.
       - What is kept is JSON text, made when it was given: changing a value later changes nothing.
       - A read-only call sends nothing, whatever was migrated or folded for it.
"""

import json
import math
import re
import time

from .context import dumps, has

YEARS = 10 * 365 * 86_400_000  # ms; the longest duration
UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
DEPTH = 100  # of nested JSON; what the host reads has a bound near 128
PAYLOAD = 65_536  # bytes of a timer's payload that the host keeps
TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)T((?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d)?)(?:[.,](\d{1,9}))?(?:Z|([+-])([01]\d|2[0-3]):?([0-5]\d))",
    re.ASCII,
)
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)", re.ASCII)
STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
NAMES = frozenset(
    "get set delete emit value increment decrement values add has remove enable vote tally entry keys".split()
)


def json_text(value, what, most=DEPTH):
    """JSON text of what the host reads as JSON."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"{what}: bytes are not JSON; give them as text, say in base64")
    try:
        text = dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{what}: not JSON: {error}") from None
    if not well_formed(text):
        raise TypeError(f"{what}: text with half of a surrogate pair")
    if text.count("[") + text.count("{") > most and too_deep(text, most):
        raise TypeError(f"{what}: nested more than {most} deep")
    return text


def well_formed(text):
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def too_deep(text, most):
    depth = 0
    for mark in re.findall(r"[\[\]{}]", STRINGS.sub("", text)):
        depth += 1 if mark in "[{" else -1
        if depth > most:
            return True
    return False


def name_text(name, what):
    if not isinstance(name, str):
        raise TypeError(f"{what}: the name must be a str, not {name!r}")
    if not well_formed(name):
        raise TypeError(f"{what}: the name holds half of a surrogate pair")
    return name


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def duration(value, what):
    """→ ms"""
    hint = 'write seconds, or text like "500ms", "30s", "10m", "2h", "7d"'
    if is_number(value):
        ms = value * 1_000
    elif not isinstance(value, str):
        raise TypeError(f"{what}: {value!r} is not a duration; {hint}")
    elif not value or DURATION.sub("", value):
        raise ValueError(f"{what}: {value!r} is not a duration; {hint}")
    else:
        ms = sum(float(number) * UNITS[unit] for number, unit in DURATION.findall(value))
    if not ms >= 0:
        raise ValueError(f"{what}: {value!r} is not a duration; {hint}")
    if ms > YEARS:
        raise ValueError(f"{what}: {value!r} is longer than ten years")
    return math.floor(ms + 0.5)


def instant(value, what):
    """→ ms since 1970"""
    hint = 'write ISO 8601 with an offset or Z, as "2030-01-31T09:00:00Z", or milliseconds since 1970'
    ms = value
    if isinstance(value, str):
        ms = from_iso(value, what, hint)
    elif hasattr(value, "utcoffset") and has(value, "timestamp"):
        if value.utcoffset() is None:
            raise ValueError(f"{what}: {value!r} has no time zone: datetime.now(timezone.utc) has")
        ms = value.timestamp() * 1_000
    elif not is_number(value):
        raise TypeError(f"{what}: {value!r} is not a time; {hint}")
    if not ms >= 0:
        raise ValueError(f"{what}: {value!r} is not a time since 1970; {hint}")
    if ms > time.time() * 1_000 + YEARS:
        raise ValueError(f"{what}: {value!r} is more than ten years from now")
    return math.floor(ms + 0.5)


def from_iso(value, what, hint):
    from datetime import datetime

    parts = TIME.fullmatch(value)
    if not parts:
        raise ValueError(f"{what}: {value!r} is not a time; {hint}")
    day, clock, fraction, sign, hours, minutes = parts.groups()
    try:
        plain = datetime.fromisoformat(f"{day}T{clock}+00:00")
    except ValueError:
        raise ValueError(f"{what}: {value!r}: there is no such day") from None
    ms = round(plain.timestamp()) * 1_000 + int((fraction or "0")[:3].ljust(3, "0"))
    return ms - (-1 if sign == "-" else 1) * (int(hours or 0) * 60 + int(minutes or 0)) * 60_000


def timer_name(name, what):
    name_text(name, what)
    if not 1 <= len(name) <= 128 or any(c < " " or "\x7f" <= c <= "\x9f" for c in name):
        raise ValueError(f"{what}: a name has 1 to 128 characters and no control characters, not {name[:200]!r}")
    return name


def refuse_others(kind, subject):
    """Everything that another model has says what this one has. `kind` names it in `offers`."""

    def other(self, name):
        if name in NAMES:
            raise AttributeError(f"{subject}.{name}: {self._is()}, which offers {self._offers}")
        raise AttributeError(f"{subject} has no {name}; {self._is()}, which offers {self._offers}")

    kind.__getattr__ = other
    return kind


class State:
    """What every model offers. `model` is this worker's `Model`."""

    _offers = ""
    _expire = None  # ms, or -1
    _timers = None  # what RESULT says, by name; payloads as text
    _payloads = 0  # their bytes

    def __init__(self, call, model):
        head = call.head["state"]
        self._call = call
        self._model = model
        self.key = head["key"]
        self.version = head["version"]
        self._kind = head["kind"]
        self._data = call.stored

    def expire(self, after):
        """The state goes after so many seconds, or a text like "10m"; None: never."""
        self._open()
        self._expire = -1 if after is None else duration(after, "state.expire")
        self._call.entity = self

    def schedule(self, name, payload=None, *, after=None, at=None):
        """Sets the timer `name`, which calls this entity with `payload`; one that is there is replaced."""
        self._open()
        what = "state.schedule"
        timer_name(name, what)
        if (after is None) == (at is None):
            raise TypeError(f'{what}: say when: after="10m" or at="2030-01-31T09:00:00Z", one of the two')
        when = {"at": instant(at, what)} if after is None else {"after": duration(after, what)}
        text = json_text(payload, f"{what}: payload")
        size = len(text.encode())
        if size > PAYLOAD:
            raise ValueError(
                f"{what}: a payload has at most {PAYLOAD} bytes, this one has {size}; keep more in the state"
            )
        self._timer({"name": name, **when, "payload": text}, what)

    def cancel(self, name):
        """Takes the timer `name` away, if it is there."""
        self._open()
        self._timer({"name": timer_name(name, "state.cancel"), "cancel": True}, "state.cancel")

    def _timer(self, timer, what):
        timers, model = self._timers or {}, self._model
        old = timers.get(timer["name"])
        if old is None and len(timers) >= model.most_timers:
            raise ValueError(f"{what}: one call may set {model.most_timers} timers; let a timer set the next ones")
        size = self._payloads + sum(
            sign * len(item.get("payload", "").encode()) for sign, item in ((1, timer), (-1, old or {}))
        )
        if size > model.limit:
            raise ValueError(f"{what}: the payloads of this call have {size} bytes, the limit is {model.limit}")
        timers[timer["name"]] = timer
        self._timers, self._payloads = timers, size
        self._call.entity = self

    def _open(self):
        if self._call.settled:
            raise RuntimeError("the state was settled when the response began")
        if self._call.head["state"].get("readonly"):
            raise RuntimeError("this request is read-only: its method is listed in [state] shared")

    def _is(self):
        return f'this function has model = "{self._model.name}" in its [state]'

    def _extras(self, stored, more=None):
        """What goes with the change. `stored`: there is something that can expire."""
        call = self._call
        extra = more or {}
        if self._expire is not None and stored:
            extra["expire"] = self._expire
        if self._timers:
            extra["timers"] = [
                {**timer, "payload": json.loads(timer["payload"])} if "payload" in timer else timer
                for timer in self._timers.values()
            ]
        if extra:
            call.extra = extra
            call.change = call.change or ("keep", "none", b"")

    def _outdated(self):
        """Whether `migrate` has to run for this call."""
        head, version = self._call.head["state"], self._model.version
        schema = head.get("schema")
        if schema is None or not version or head["kind"] == "none" or head.get("snapshot") == 0:
            return False
        if schema > version:
            raise RuntimeError(
                f"the state was written with version {schema} in [state], and this deployment has version {version}: "
                "deploy the newer one again"
            )
        return schema < version and self._model.migrate is not None

    def _migrate(self, old, put):
        """Hands what `migrate` returned to `put`: now, or in the awaitable that is the answer."""
        schema = self._call.head["state"]["schema"]

        def check(value):
            if value is None:
                raise TypeError(f"migrate returned nothing for version {schema}: return the migrated state")
            put(value)

        async def later():
            check(await value)

        value = self._model.migrate(old, schema)
        return later() if has(value, "__await__") else check(value)


class Value(State):
    """The model `value`."""

    _offers = "get(), set(value), delete()"

    def get(self):
        if self._kind == "json":
            return json.loads(self._data)
        return self._data if self._kind == "binary" else None

    def set(self, value):
        self._open()
        self._put(value)

    def delete(self):
        self._open()
        self._change("delete", "none", b"")

    def _put(self, value):
        binary = isinstance(value, (bytes, bytearray, memoryview))
        data = bytes(value) if binary else dumps(value).encode()
        if len(data) > self._model.limit:
            raise ValueError(f"the state would be {len(data)} bytes, the limit is {self._model.limit}")
        self._change("set", "binary" if binary else "json", data)

    def _change(self, action, kind, data):
        self._kind, self._data = kind, data
        self._call.change = (action, kind, data)

    def _prepare(self):
        return self._migrate(self.get(), self._migrated) if self._outdated() else None

    def _migrated(self, value):
        self._put(value)
        if self._call.head["state"].get("readonly"):
            self._call.change = None

    def _finish(self):
        self._extras(self._kind != "none")


refuse_others(Value, "state")


class Model:
    """The state of this worker's one function: what INIT and the function say of it."""

    def __init__(self, init, function):
        declared = init.get("state") or {}  # an older host says nothing: values without a version
        limits = init["limits"]
        self.limit = limits["state"]
        self.most_events = limits.get("events", 1_000)
        self.most_timers = limits.get("timers", 100)
        self.name = declared.get("model", "value")
        self.type = declared.get("type", "")
        self.version = declared.get("version", 0)
        self.snapshot_every = declared.get("snapshot_every", 0)
        migrate = getattr(function, "migrate", None)
        self.migrate = migrate if callable(migrate) else None
        self.kind = Value
        self.refused = self._declare(function)  # why the function cannot be served, or None

    def _declare(self, function):
        if self.version > 1 and self.migrate is None:
            return (
                f"[state] has version = {self.version}, and the function has no migrate: "
                f"def migrate(old, version), which returns the state as version {self.version} has it."
            )
        if self.name == "events":
            from . import events

            self.kind = events.Events
            return events.declare(self, function)
        if self.name == "crdt":
            from . import crdt

            self.kind = crdt.state_of(self.type)
        if self.name not in ("value", "crdt") or self.kind is None:
            return (
                f'this worker knows no state with model = "{self.name}" and type = "{self.type}": '
                "run one of the executor's own version."
            )
        return None

    def make(self, call):
        return self.kind(call, self)

    def early(self, call):
        """Whether there is something to do before `start` and the handler."""
        head = call.head.get("state")
        return head is not None and (self.name == "events" or "schema" in head)

    def prepare(self, call):
        """Does it: → None, or an awaitable."""
        call.entity = self.make(call)
        return call.entity._prepare()
