"""Drives the workers over their socket, as the host does: `python3 tests/workers/run.py [WORD…]`, only groups with a WORD.

Ends with 1 and one line for each fault if there is any, and if fewer cases ran than there are in the table.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

from cases import GROUPS, Raises
from checks import CHECKS
from host import ERROR, Host

# Language, entrypoint, environment, and which groups: those with a WORD in their name.
# How calls run makes a difference to Python only where something waits, or comes before the handler.
WAYS = [
    ("node", "named.mjs", {}, ("",)),
    ("python", "main.py", {}, ("",)),
    ("python", "main.py", {"MAIN": "async"}, ("older", "migrat", "events", "snapshots", "or-map")),
]
AT_ONCE = 4  # workers


def brought(case):
    """What CALL says of the state, and its bytes."""
    if case.head.get("stateless"):
        return None, b""
    head, data = dict(case.head), case.data
    if case.value is not ...:
        head, data = {"kind": "json", "version": 1, **head}, json.dumps(case.value, ensure_ascii=False).encode()
    if case.events is not None:
        if case.value is not ...:
            head["snapshot"] = len(data)
        events = [{"type": type, "data": item} for type, item in case.events]
        data += json.dumps(events, ensure_ascii=False, separators=(",", ":")).encode()
        head.setdefault("version", 1)
    return head, data


def change_of(head, data):
    """`state` of RESULT, with what its bytes hold in place of their length."""
    state = head.get("state")
    if state is None:
        return None
    change = {name: value for name, value in state.items() if name != "length"}
    action = change["action"]
    if action in ("keep", "delete"):
        assert not data, data
        change.pop("kind", None)
    elif change["kind"] == "binary":
        change["bytes"] = data.decode()
    elif action == "set":
        change["value"] = json.loads(data)
    else:
        assert change.pop("kind") == "json"
        if "snapshot" in change:
            cut = change["snapshot"]
            change["snapshot"], data = json.loads(data[:cut]), data[cut:]
        change["events" if action == "emit" else "operations"] = json.loads(data)
    return change


def same(one, other):
    """As JSON: True is not 1, and 1.0 is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def outcomes(case, body):
    got = json.loads(body) if case.path == "/" else read_all(body.decode())
    wanted = case.gives if case.gives is not None else [None] * len(case.steps)
    assert len(got) == len(wanted) == len(case.steps), f"{len(got)} outcomes, {len(wanted)} wanted, {len(case.steps)} steps"
    for number, (step, outcome, want) in enumerate(zip(case.steps, got, wanted)):
        where = f"step {number} {step}: {outcome}"
        if isinstance(want, Raises):
            error = outcome.get("error")
            assert error is not None, f"{where} did not raise; wanted {want}"
            assert want.text in error, f"{where}, wanted {want.text!r}"
            assert not want.types or error.split(":")[0] in want.types, f"{where}, wanted one of {want.types}"
        else:
            assert "ok" in outcome and same(outcome["ok"], want), f"{where}, wanted {want!r}"


def read_all(text):
    """JSON values one after the other."""
    decoder, at, values = json.JSONDecoder(), 0, []
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        values.append(value)
    return values


def run_case(host, case):
    head, data = brought(case)
    host.logs = []
    kind, result, state, body = host.answer(host.call(case.steps, head, data, case.path))
    if case.fault is not None:
        assert kind == ERROR, f"{result} in place of an error"
        assert result["kind"] == "raised" and case.fault in result["message"], result
        assert "executor_worker" not in result["stack"] and "/src/" not in result["stack"], f"shows our frames: {result['stack']}"
        return
    assert kind != ERROR, result
    outcomes(case, body)
    change = change_of(result, state)
    assert same(change, case.change), f"state: {json.dumps(change)[:600]}, wanted {json.dumps(case.change)[:600]}"
    lines = [text for _, text in host.logs]
    at = 0
    for wanted in case.logs:
        found = [n for n, line in enumerate(lines) if n >= at and wanted in line]
        assert found, f"no line with {wanted!r} in {lines}"
        at = found[0] + 1


def guarded(faults, name, check, *arguments):
    try:
        check(*arguments)
    except (AssertionError, OSError, KeyError, TypeError, ValueError) as error:
        faults.append(f"{name}: {type(error).__name__}: {error}")


def run_group(way, group):
    """→ how many cases ran, and the faults"""
    language, entrypoint, env, _ = way
    name = f"{language}{' async' if env else ''}, {group.name}"
    ran, faults = 0, []
    try:
        host = Host(language, entrypoint, group.state, {**group.env, **env}, group.limits)
    except (AssertionError, OSError) as error:
        return 0, [f"{name}: {error}"]
    if host.failed:
        host.close()
        return 0, [f"{name}: {host.failed}"]
    for case in group.cases:
        if case.only in ("", language):
            before = len(faults)
            guarded(faults, f"{name}: {case.name}", run_case, host, case)
            ran += 1
            if len(faults) > before and host.process.poll() is not None:
                host.close()  # the rest of the group would say the same
                return ran, faults
    guarded(faults, f"{name}: STOP", host.stop)
    return ran, faults


def run_check(way, check):
    faults = []
    guarded(faults, f"{way[0]}: {check.__name__}", check, *way[:3])
    return 1, faults


def main(words):
    planned, jobs = 0, []
    for way in WAYS:
        for group in GROUPS:
            if chosen(group.name, words) and chosen(group.name, way[3]):
                planned += sum(case.only in ("", way[0]) for case in group.cases)
                jobs.append((run_group, way, group))
        for check in CHECKS:
            if chosen(check.__name__, words):
                planned += 1
                jobs.append((run_check, way, check))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = [job.result() for job in [pool.submit(*job) for job in jobs]]
    ran, faults = sum(ran for ran, _ in done), [fault for _, faults in done for fault in faults]
    for fault in faults:
        print(fault)
    print(f"{ran} of {planned} cases, {len(faults)} faults")
    return 1 if faults or ran < planned or not ran else 0


def chosen(name, words):
    return not words or any(word in name for word in words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
