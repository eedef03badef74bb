"""The model `events`: the state is what folding its events gives.

What   Folds what the host handed over before the handler runs, takes new events, and makes a snapshot when enough
       have gathered. Rules: runtimes/README.md, “State in the worker” (normative).

Holds  - A fold gets its own copy of `data` and of `initial`, and `get` gives a copy: nobody else holds a part of the
         state.
       - A fold that raises in `emit` may have changed the state half; it is folded anew from what is kept as text.

Fails  An event that cannot be folded before the handler runs fails the call, with its type in the message.
"""

import json

from .context import dumps, has, trace
from .state import State, json_text, refuse_others, well_formed

TYPE = 128  # bytes of a type that the host keeps
HINT = 'write events = {"added": added}, with a function (state, data) for each type of event'


def declare(model, function):
    """Takes what the function has: → why it cannot be served, or None."""
    events = getattr(function, "events", None)
    if events is None:
        return f'[state] has model = "events", and the function has no events: {HINT}.'
    if not isinstance(events, dict):
        return f"events is not a dict: {HINT}."
    for name, fold in events.items():
        if not isinstance(name, str) or not callable(fold):
            return f"events[{name!r}] is not a function with a str as its name: {HINT}."
        wrong = wrong_type(name)
        if wrong:
            return f"events[{name!r}]: {wrong}: rename it."
    model.folds = dict(events)
    try:
        model.initial = json_text(getattr(function, "initial", {}), "initial")
    except TypeError as error:
        return f"{error}: initial is the state before the first event, as JSON can hold it."
    return None


def wrong_type(name):
    """Why nobody can emit it, or None."""
    if not well_formed(name):
        return "the type of an event must not hold half of a surrogate pair"
    size = len(name.encode())
    if 1 <= size <= TYPE:
        return None
    return f"the type of an event has 1 to {TYPE} bytes of UTF-8, this one has {size}"


def quoted(name):
    return json.dumps(name, ensure_ascii=False)


class Events(State):
    _offers = "get(), emit(type, data)"

    def __init__(self, call, model):
        super().__init__(call, model)
        cut = call.head["state"].get("snapshot", 0)
        self._base = self._data[:cut].decode() if cut else model.initial  # what the events are folded onto
        self._handed = self._data[cut:]  # events handed over, as text
        self._count = 0  # of them
        self._emitted = []  # events of this call, as text
        self._bytes = 1  # of them, in a list
        self._folded = None
        self._fresh = False  # `_folded` is made
        self._text = None  # of `_folded`
        self._migrated = False
        self._broken = None  # folding the same again did not give the same

    def _prepare(self):
        if not self._call.head["state"].get("snapshot") or not self._outdated():
            return self._fold()
        return self._migrate(json.loads(self._base), self._put)

    def _put(self, value):
        self._base = json_text(value, "migrate")
        self._migrated = True
        self._fold()

    def _fold(self):
        """With nothing to fold, the snapshot is not even read until somebody wants it."""
        if len(self._handed) > 2:
            self._rebuild()
        else:
            self._text = self._base

    def _rebuild(self):
        state = json.loads(self._base)
        events = json.loads(self._handed) if len(self._handed) > 2 else []
        self._count = len(events)
        for event in (*events, *map(json.loads, self._emitted)):
            state = self._step(state, event["type"], event.get("data"))
        self._folded, self._fresh, self._text = state, True, None

    def _step(self, state, name, data):
        fold = self._model.folds.get(name)
        if fold is None:
            raise RuntimeError(
                f"the stored event {quoted(name)} has no function in events: keep one for every type "
                "that was ever emitted"
            )
        try:
            value = fold(state, data)
        except Exception as error:
            summary = str(error) or type(error).__name__
            error.__traceback__ = error.__traceback__.tb_next  # without this frame
            raise RuntimeError(f"the event {quoted(name)} could not be folded: {summary}") from error
        if has(value, "__await__"):
            if has(value, "close"):
                value.close()
            raise TypeError(
                f"the event {quoted(name)} could not be folded: its function is asynchronous; "
                "do what waits in main, before state.emit"
            )
        return state if value is None else value

    def _json(self):
        if self._broken:
            raise self._broken
        if self._text is None:
            try:
                self._text = dumps(self._folded)
                self._text.encode()
            except (TypeError, ValueError, RecursionError) as error:
                self._text = None
                raise TypeError(f"the folded state is not JSON: {error}") from None
        return self._text

    def get(self):
        return json.loads(self._json())

    def emit(self, type, data=None):
        """Appends an event and folds it at once."""
        self._open()
        model = self._model
        if not isinstance(type, str):
            raise TypeError(f"state.emit: the type of an event is a str, not {type!r}")
        if type not in model.folds:
            known = ", ".join(model.folds) or "none"
            wrong = wrong_type(type) or f"events has no function {quoted(type)}; it has {known}"
            raise ValueError(f"state.emit: {wrong}")
        if len(self._emitted) >= model.most_events:
            raise ValueError(f"state.emit: one call may emit {model.most_events} events; put more into each")
        payload = json_text(data, "state.emit")
        text = f'{{"type":{json_text(type, "state.emit")},"data":{payload}}}'
        size = self._bytes + len(text.encode()) + 1
        if size > model.limit:
            raise ValueError(f"state.emit: the events of this call have {size} bytes, the limit is {model.limit}")
        if self._broken:
            raise self._broken
        if not self._fresh:
            self._rebuild()
        try:
            self._folded = self._step(self._folded, type, json.loads(payload))
        except Exception:
            try:
                self._rebuild()
            except Exception as again:
                self._broken = again
            raise
        self._text = None
        self._emitted.append(text)
        self._bytes = size
        self._call.entity = self

    def _finish(self):
        if self._call.head["state"].get("readonly"):
            return
        emitted, every = len(self._emitted), self._model.snapshot_every
        # A few large events are as long to hand over as many small ones.
        size = len(self._handed) + (self._bytes if emitted else 0)
        snapshot = b""
        if self._migrated or (every and self._count + emitted >= every) or size > self._model.limit:
            snapshot = self._snapshot(needed=emitted or self._migrated)
        more = None
        if emitted or snapshot:
            self._call.change = ("emit", "json", snapshot + f"[{','.join(self._emitted)}]".encode())
            more = {"snapshot": len(snapshot)} if snapshot else None
        self._extras(emitted or self._count or self._kind != "none", more)

    def _snapshot(self, needed):
        """Too large: a call that only reads can be answered without one."""
        try:
            data = self._json().encode()
            if len(data) > self._model.limit:
                raise ValueError(f"the folded state has {len(data)} bytes, the limit is {self._model.limit}")
            return data
        except Exception as error:
            if needed:
                raise
            self._model.report(self._call, trace(error))
            return b""


refuse_others(Events, "state")
