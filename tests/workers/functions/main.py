"""The function of tests/workers in Python; behaviour.cjs is the same in Node. The body is a list of steps, the answer a
list of outcomes."""

import asyncio
import json
import os
from datetime import datetime
from http import HTTPStatus

flaky_calls = 0


def added(state, data):
    state.setdefault("list", []).append(data)


def counted(state, data):
    state["n"] = state.get("n", 0) + 1


def broken(state, data):
    state["list"] = "half"
    raise ValueError("cannot")


async def waits(state, data):
    pass


def flaky(state, data):
    global flaky_calls
    flaky_calls += 1
    if flaky_calls > 1:
        raise ValueError("only once")


def replaced(state, data):
    return data


folds = {f.__name__: f for f in (added, replaced, counted, broken, waits, flaky)}
chosen = os.environ.get("EVENTS", "good")
if chosen != "none":
    named = {os.environ.get("TYPE"): counted}
    events = {"good": folds, "list": [], "unlike": {"added": 1}, "named": named, "lone": {"a\ud800": counted}}[chosen]


async def migrate_async(old, version):
    await asyncio.sleep(0.005)
    return {"old": old, "version": version}


async def migrate_async_raise(old, version):
    await asyncio.sleep(0.005)
    raise ValueError("cannot migrate")


async def migrate_hangs(old, version):
    await asyncio.sleep(60)


def migrate_raise(old, version):
    raise ValueError("cannot migrate")


def migrate_says(old, version):
    print("migrate")
    return old


migrations = {
    "sync": lambda old, version: {"old": old, "version": version},
    "async": migrate_async,
    "raise": migrate_raise,
    "asyncRaise": migrate_async_raise,
    "nothing": lambda old, version: None,
    "bytes": lambda old, version: b"from " + str(old).encode(),
    "large": lambda old, version: "x" * 200,
    "hangs": migrate_hangs,
    "says": migrate_says,
}
if os.environ.get("MIGRATE"):
    migrate = migrations[os.environ["MIGRATE"]]
if os.environ.get("START"):

    def start():
        print("start")
        return {}


class Untold:
    def __str__(self):
        raise ValueError("untold")


circular = []
circular.append(circular)
special = {
    "nan": float("nan"),
    "infinity": float("inf"),
    "circular": circular,
    "function": lambda: 1,
    "bytes": b"bytes",
    "nothing": object(),  # JSON has it as little as undefined
    "lone": "a\ud800",
    "slash": "a\\ud800",
    "whole": 1.0,
    "large": 10**308,
    "huge": 10**309,
    "created": HTTPStatus.CREATED,
    "shared": {"x-shared": "always"},
    "untold": Untold(),
}


def real(value):
    if isinstance(value, list):
        return [real(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$deep" in value:
        deep = 1
        for _ in range(value["$deep"]):
            deep = [deep]
        return deep
    if "$long" in value:
        return value.get("of", "x") * value["$long"]
    if "$time" in value:
        return datetime.fromisoformat(value["$time"])
    if "$" in value:
        return special[value["$"]]
    return {name: real(item) for name, item in value.items()}


if os.environ.get("INITIAL"):
    initial = real(json.loads(os.environ["INITIAL"]))


def change_got(state):
    got = state.get()
    got.get("list", []).append("changed")
    got["x"] = "changed"


def emit_then_change(state, type, data):
    state.emit(type, data)
    data["x"] = "changed"


def schedule(state, name, when, payload=None):
    if not isinstance(when, dict):
        return state.schedule(name, payload, after=when)
    state.schedule(name, payload, **when)


def schedule_then_change(state, name, when, payload):
    state.schedule(name, payload, **when)
    payload["x"] = "changed"


def add_then_change(state, value):
    state.add(value)
    value["x"] = "changed"


def repeat(state, times, *step):
    for n in range(times):
        perform(state, [f"n{n}" if part == "#" else part for part in step])


def kept(state, name, type, *step):
    entry = state.entry(name, type)
    state.delete(name)
    return perform(entry, step)


steps = {
    "read": getattr,
    "on": lambda state, name, type, *step: perform(state.entry(name, type), step),
    "changeGot": change_got,
    "emitThenChange": emit_then_change,
    "schedule": schedule,
    "scheduleThenChange": schedule_then_change,
    "addThenChange": add_then_change,
    "repeat": repeat,
    "kept": kept,
}


def perform(target, step):
    name, *values = step
    return steps[name](target, *values) if name in steps else getattr(target, name)(*values)


def outcome(state, step):
    try:
        value = perform(state, [real(part) for part in step])
        return {"ok": {"bytes": value.decode()} if isinstance(value, bytes) else value}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def serve(context):
    req, res, state = context.req, context.res, context.state
    if req.path == "/raise":
        for step in req.body_json:
            perform(state, step)
        raise ValueError("after all")
    if req.path == "/stream":
        return res.stream(json.dumps(outcome(state, step)) for step in req.body_json)
    if req.path == "/wrong":
        state.emit("added", 1)
        return 5
    if req.path == "/body":
        return res.json([req.body])
    if req.path == "/answer":
        name, values, headers = real(req.body_json)
        answer = getattr(res, name)(*values)
        for key, value in headers.items():
            answer.headers[key] = value
        return answer
    return res.json([outcome(state, step) for step in req.body_json])


if os.environ.get("MAIN") == "async":

    async def main(context):
        return serve(context)

else:
    main = serve
