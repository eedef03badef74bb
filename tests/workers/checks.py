"""What does not fit into the table: loading, hooks, and calls that end otherwise."""

import time

from cases import crdt, model
from host import CANCEL, ERROR, RESULT, Host


def refused(way, state, env, *texts, info_only=False):
    language, entrypoint, more = way
    host = Host(language, entrypoint, state, {**env, **more}, info_only=info_only)
    assert host.failed, f"{env} was accepted: {host.ready}"
    assert host.failed["kind"] == "signature", host.failed
    for text in texts:
        assert text in host.failed["message"], host.failed
    host.stop()


def accepted(way, state, env, hooks, entrypoint=None, info_only=False):
    language, file, more = way
    host = Host(language, entrypoint or file, state, {**env, **more}, info_only=info_only)
    assert host.ready, host.failed
    assert sorted(host.ready["hooks"]) == sorted(hooks), host.ready
    return host


def events_must_be_functions(*way):
    events = model("events")
    refused(way, events, {"EVENTS": "none"}, 'model = "events"', "events")
    refused(way, events, {"EVENTS": "none"}, "events", info_only=True)
    refused(way, events, {"EVENTS": "list"}, "events is not a")
    refused(way, events, {"EVENTS": "unlike"}, 'events["added"]' if way[0] == "node" else "events['added']", "not a function")
    refused(way, events, {"INITIAL": '{"$":"function"}'}, "initial")


def a_version_above_one_needs_migrate(*way):
    refused(way, model("value", version=2), {}, "version = 2", "migrate(old, version)")
    refused(way, model("events", version=2), {}, "version = 2")
    accepted(way, model("value", version=1), {}, ["events"]).stop()
    accepted(way, model("value", version=2), {"MIGRATE": "sync"}, ["events", "migrate"]).stop()


def unknown_models_are_refused(*way):
    refused(way, model("other"), {}, 'model = "other"')
    refused(way, crdt("or-mapp"), {}, 'type = "or-mapp"')
    refused(way, crdt("toString"), {}, 'type = "toString"')


def ready_names_what_is_there(*way):
    accepted(way, None, {"EVENTS": "none"}, []).stop()
    accepted(way, None, {"EVENTS": "list"}, []).stop()
    accepted(way, None, {"START": "1", "MIGRATE": "sync"}, ["start", "migrate", "events"]).stop()
    accepted(way, model("events"), {}, ["events"], info_only=True).stop()


def each_style_of_module(*way):
    for entrypoint in {"node": ["named.mjs", "default.mjs", "common.cjs"], "python": ["main.py"]}[way[0]]:
        env = {"MIGRATE": "sync", "INITIAL": '{"list":[0]}'}
        host = accepted(way, model("events", version=2), env, ["events", "migrate"], entrypoint)
        kind, head, _, body = host.answer(host.call([["emit", "added", 1], ["get"]], {}))
        assert kind == RESULT and b'{"list":[0,1]}' in body and head["state"]["action"] == "emit", (entrypoint, head, body)
        host.stop()


def a_migration_that_waits_can_be_cancelled(*way):
    language, entrypoint, env = way
    host = Host(language, entrypoint, model("value", version=2), {"MIGRATE": "hangs", **env})
    call = host.call([["get"]], {"kind": "json", "schema": 1, "version": 1}, b"5")
    other = host.call([["get"]], {"kind": "json", "version": 1}, b"6")
    kind, _, _, body = host.answer(other)  # it holds up nobody
    assert kind == RESULT and b"6" in body, body
    time.sleep(0.05)
    host.send(CANCEL, call)
    kind, fault, _, _ = host.answer(call)
    assert kind == ERROR and fault["kind"] == "cancelled", fault
    host.close()


def a_wrong_answer_sends_no_events(*way):
    language, entrypoint, env = way
    host = Host(language, entrypoint, model("events"), env)
    kind, fault, _, _ = host.answer(host.call([], {}, path="/wrong"))
    assert kind == ERROR and fault["kind"] == "response", fault
    kind, head, _, body = host.answer(host.call([["get"]], {}))
    assert kind == RESULT and "state" not in head and b"{}" in body, (head, body)
    host.stop()


CHECKS = [
    events_must_be_functions,
    a_version_above_one_needs_migrate,
    unknown_models_are_refused,
    ready_names_what_is_there,
    each_style_of_module,
    a_migration_that_waits_can_be_cancelled,
    a_wrong_answer_sends_no_events,
]
