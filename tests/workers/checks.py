"""What does not fit into the table: loading, hooks, and calls that end otherwise."""

import json
import time

from cases import TYPE, crdt, model
from host import CANCEL, ERROR, RESULT, ROOT, Host


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


def types_of_events_are_bounded(*way):
    events, bound = model("events"), "the type of an event has 1 to 128 bytes of UTF-8"
    for type in ("", "t" * (TYPE + 1), "ü" * (TYPE // 2) + "t"):
        refused(way, events, {"EVENTS": "named", "TYPE": type}, "events[", bound, f"this one has {len(type.encode())}")
    refused(way, events, {"EVENTS": "named", "TYPE": ""}, bound, info_only=True)
    refused(way, events, {"EVENTS": "lone"}, "half of a surrogate pair")
    for type in ("t", "t" * TYPE, "ü" * (TYPE // 2)):
        host = accepted(way, events, {"EVENTS": "named", "TYPE": type}, ["events"])
        kind, head, data, body = host.answer(host.call([["emit", type]], {}))
        assert kind == RESULT and json.loads(data) == [{"type": type, "data": None}], (head, body)
        host.stop()


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


def an_answer_owns_its_headers(*way):
    host = accepted(way, None, {}, ["events"])
    shared = {"$": "shared"}
    made = [["json", [1]], ["json", [1, 200, shared]], ["text", ["x"]], ["text", ["x", 200, shared]], ["send", ["x"]], ["empty", []],
            ["binary", [{"$": "bytes"}]], ["binary", [{"$": "bytes"}, 200, shared]], ["redirect", ["/x"]], ["redirect", ["/x", 301, shared]],
            ["stream", [["x"]]], ["stream", [["x"], 200, shared]], ["text", [{"$long": 100_000}]], ["json", [1, 200, {}]], ["text", ["x", 200, {}]]]  # fmt: skip
    for name, values in made:

        def headers(written):
            kind, head, _, _ = host.answer(host.call([name, values, written], path="/answer"))
            assert kind == RESULT, (name, head)
            return head.get("headers", {})

        untouched = headers({})
        cookies = {"set-cookie": ["a=1", "b=2"], "x-n": 5}
        assert headers(cookies) == {**untouched, "set-cookie": ["a=1", "b=2"], "x-n": "5"}, (name, values)
        assert headers({"content-type": "text/x"}) == {**untouched, "content-type": "text/x"}, (name, values)
        assert headers({}) == untouched, (name, values)
    assert untouched == {}, untouched
    kind, fault, _, _ = host.answer(host.call(["json", [1], {"x-n": {"$": "untold"}}], path="/answer"))
    assert kind == ERROR and fault["kind"] == "response" and "untold" in fault["message"], fault
    kind, head, _, _ = host.answer(host.call(["json", [1], {}], path="/answer"))
    assert head == {"status": 200, "headers": {"content-type": "application/json"}}, head
    host.stop()


def a_status_may_be_of_an_enum(*way):
    host = accepted(way, None, {}, ["events"])
    for name in ("json", "text"):
        _, head, _, _ = host.answer(host.call([name, ["x", {"$": "created"}], {}], path="/answer"))
        assert head["status"] == 201, head
        for wrong in (True, 199, 1000, "200", 200.5):
            kind, fault, _, _ = host.answer(host.call([name, ["x", wrong], {}], path="/answer"))
            assert kind == ERROR and "status" in fault["message"] and "200 to 999" in fault["message"], (wrong, fault)
    host.stop()


def a_timer_without_a_payload_gives_null(*way):
    host = accepted(way, model("value"), {}, ["events"])
    json_body = {"content-type": "application/json"}
    kind, _, _, body = host.answer(host.call(None, {}, path="/body", headers=json_body))
    assert kind == RESULT and body == b"[null]", body
    host.stop()


def the_cart_refuses_a_wrong_reminder(*way):
    if way[0] != "node":
        return
    host = Host("node", "index.mjs", model("value"), source=ROOT / "functions" / "cart")
    assert host.ready, host.failed
    cart, meta = b'{"items":{"milk":1,"tea":2}}', {"kind": "json", "version": 1}
    for method, path in (("POST", "/"), ("DELETE", "/milk")):

        def answer(query):
            call = host.call({"item": "tea"}, meta, cart, path, method=method, query=query)
            kind, head, data, body = host.answer(call)
            assert kind == RESULT, (method, query, head)
            return head, data, body

        for wrong in ("soon", "", "-1s", "11y"):
            head, _, body = answer(f"remind={wrong}")
            assert head["status"] == 422 and "state" not in head and b"is not a duration" in body, (method, wrong, head, body)
        head, _, body = answer("remind=3651d")
        assert head["status"] == 422 and "state" not in head and b"longer than ten years" in body, (method, head, body)
        for query, after in (("remind=5s", 5_000), ("", 86_400_000)):
            head, data, body = answer(query)
            assert head["status"] < 300 and head["state"]["action"] == "set" and json.loads(data)["items"], (method, head, body)
            assert head["state"]["timers"] == [{"name": "remind", "after": after, "payload": None}], head
    host.stop()


CHECKS = [
    events_must_be_functions,
    types_of_events_are_bounded,
    a_version_above_one_needs_migrate,
    unknown_models_are_refused,
    ready_names_what_is_there,
    each_style_of_module,
    a_migration_that_waits_can_be_cancelled,
    a_wrong_answer_sends_no_events,
    an_answer_owns_its_headers,
    a_status_may_be_of_an_enum,
    a_timer_without_a_payload_gives_null,
    the_cart_refuses_a_wrong_reminder,
]
