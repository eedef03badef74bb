"""The parts about state: throughput and latency, next to a function with its own Redis, many entities, events, timers."""

import http.client
import json
import os
import random
import re
import sqlite3
import statistics
import sys
import tempfile
import time

from common import CONNECTIONS, HELLO, ROOT, free_port, get, manifest, median, spread, status, table, wait_for

COUNTER = """
export default ({ state, res }) => {
  const n = (state.get()?.n ?? 0) + 1;
  state.set({ n });
  return res.text(`${n}\\n`);
};
"""

CRDT_COUNTER = "export default ({ state, res }) => { state.increment(); return res.text('counted\\n'); };"

# The same function with state and without.
READER = """
const KEPT = process.env.KEPT === 'yes';
export default ({ state, req, res }) => {
  if (req.method === 'POST') state.set('x'.repeat(1022));
  const size = KEPT ? state.get().length : 1022;
  return res.text(`${size}\\n`);
};
"""

LOG = """
export const initial = { count: 0, sum: 0 };
export const events = { added: ({ count, sum }, { by }) => ({ count: count + 1, sum: sum + by }) };
export default ({ state, req, res }) => {
  for (let n = Number(req.query.n ?? 0); n > 0; n--) state.emit('added', { by: n });
  return res.text(`${state.get().count}\\n`);
};
"""

ALARM = """
const late = [];
export default ({ state, req, res }) => {
  if (req.path.startsWith('/__timer/')) {
    late.push(Date.now() - req.bodyJson.due);
    return res.empty();
  }
  if (req.path === '/late') return res.json(late.splice(0));
  const at = Number(req.query.at);
  for (let n = Number(req.query.n); n > 0; n--) state.schedule(`timer${n}`, { at }, { due: at });
  return res.text('set\\n');
};
"""

KEYS = """
math.randomseed(os.time())
request = function() return wrk.format("GET", "{path}?id=" .. math.random(1, {keys})) end
"""


def node(code, *state, env=()):
    """A function in Node with one instance: its code and its manifest, with `state` in [state] if there is any."""
    lines = ["concurrency = 64", "max-instances = 1"]
    lines += ["[state]", *state] if state else []
    lines += ["[env]", *(f'{name} = "{value}"' for name, value in env)]
    return ("index.mjs", code), manifest("node", "index.mjs", *lines)


BY_ID = 'key = "{query.id}"'


def warmed(b, port, secret, script, seconds=2):
    b.wrk(port, "/", secret, script=script, seconds=seconds)


class Caller:
    """One connection that stays open, as one client has it."""

    def __init__(self, port, secret):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.headers = {"x-open-runtimes-secret": secret}

    def ask(self, path, method="GET"):
        """The answer's text, and the milliseconds that Server-Timing has for state and function together."""
        self.connection.request(method, path, headers=self.headers)
        answer = self.connection.getresponse()
        content = answer.read().decode(errors="replace")
        if answer.status != 200:
            sys.exit(f"{path}: {answer.status} {content}")
        parts = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.getheader("server-timing")))
        return content, float(parts["state"]) + float(parts["run"])


def state(b):
    """Number 4: state on SQLite, durable, next to the same without state."""
    copies = {
        "counter": node(COUNTER, BY_ID),
        "crdt": node(CRDT_COUNTER, BY_ID, 'model = "crdt"', 'type = "g-counter"'),
        "reader": node(READER, BY_ID, env=[("KEPT", "yes")]),
        "plain": node(READER),
        "hello": (os.path.join(ROOT, "functions", "hello"), HELLO),
    }
    _, port, secret = b.executor(b.functions("state", copies))
    scripts = {name: KEYS.format(path=f"/{name}", keys=10_000) for name in ("counter", "hello")}
    for script in scripts.values():
        warmed(b, port, secret, script)
    get(port, "/reader?id=k", secret, "POST", b"")
    for path in ("/plain?id=k", "/crdt?id=hot"):
        get(port, path, secret)
    many, hot, crdt = "value, 10,000 keys", "value, one hot key", "g-counter, one hot key"
    rates = {many: [], "stateless": [], hot: [], crdt: []}
    reads, plain = [], []
    for _ in range(b.args.rounds):
        rates[many].append(b.wrk(port, "/", secret, script=scripts["counter"])[0])
        rates["stateless"].append(b.wrk(port, "/", secret, script=scripts["hello"])[0])
        rates[hot].append(b.wrk(port, "/counter?id=hot", secret)[0])
        rates[crdt].append(b.wrk(port, "/crdt?id=hot", secret)[0])
        reads.append(b.wrk(port, "/reader?id=k", secret, connections=1, seconds=1)[1])
        plain.append(b.wrk(port, "/plain?id=k", secret, connections=1, seconds=1)[1])
    rows = [(name, f"{spread(values)} requests/s") for name, values in rates.items()]
    rows[2] = (hot, rows[2][1] + "   aim 3,000")
    ratios = [x / y for x, y in zip(rates[many], rates["stateless"])]
    rows.append(("value / stateless", f"{spread(ratios, 2)}x   aim 0.5x"))
    ratios = [x / y for x, y in zip(rates[crdt], rates[hot])]
    rows.append(("g-counter / value, hot", f"{spread(ratios, 2)}x"))
    added = [x - y for x, y in zip(reads, plain)]
    rows.append(("reading 1 KiB adds, one connection", f"{spread(added)} us to {median(plain):.0f} us   aim 40"))
    table(f"4. state on SQLite, {CONNECTIONS} connections", rows)


def own_redis(b):
    """Number 9: next to the same function that does its own GET and SET, on the same Redis.

    Redis has its default settings for both (snapshots, no append-only file), so only SQLite's is durable.
    """
    redis, folder = free_port(), tempfile.mkdtemp(prefix="redis", dir=b.dir)
    b.start(["redis-server", "--bind", "127.0.0.1", "--port", str(redis), "--dir", folder])
    wait_for(redis)
    own = os.path.join(ROOT, "benches", "own-redis")
    _, text = node("", env=[("REDIS_PORT", redis)])
    copies = {
        "sqlite": node(COUNTER, BY_ID),
        "redis": node(COUNTER, BY_ID, 'store = "redis"'),
        "own": (own, text),
    }
    _, port, secret = b.executor(b.functions("redis", copies), "--store", f"redis=redis://127.0.0.1:{redis}")
    names = {"sqlite": "executor's state on SQLite", "redis": "executor's state on Redis", "own": "GET and SET in the function"}
    scripts = {name: KEYS.format(path=f"/{name}", keys=10_000) for name in names}
    for name, script in scripts.items():
        first = get(port, f"/{name}?id=check", secret)[1]
        if (first, get(port, f"/{name}?id=check", secret)[1]) != (b"1\n", b"2\n"):
            sys.exit(f"{name} does not count")
        warmed(b, port, secret, script)
    rates = {name: [] for name in names}
    for _ in range(b.args.rounds):
        for name, script in scripts.items():
            rates[name].append(b.wrk(port, "/", secret, script=script)[0])
    rows = [(names[name], f"{spread(values)} requests/s") for name, values in rates.items()]
    for name, aim in (("sqlite", "2x"), ("redis", "1.5x")):
        ratios = [x / y for x, y in zip(rates[name], rates["own"])]
        rows.append((f"{names[name]} / own GET and SET", f"{spread(ratios, 2)}x   aim {aim}"))
    table(f"9. state next to a function's own Redis, 10,000 keys, {CONNECTIONS} connections", rows)


def filled(b, functions, count):
    """A data folder whose function `counter` has `count` entities.

    They are written into the table (its columns: src/state/sqlite/schema.rs) while no executor runs: an import has a commit for
    each.
    """
    data = tempfile.mkdtemp(prefix="d", dir=b.dir)
    process, _, _ = b.executor(functions, data=data)
    b.stop(process)
    database = sqlite3.connect(os.path.join(data, "state.db"))
    now = int(time.time() * 1000)
    rows = ((n, 0, 1, now, b"counter", str(n).encode(), b'{"n":1}') for n in range(1, count + 1))
    with database:
        database.executemany(
            "INSERT INTO entity (version, kind, schema, updated, function, key, value) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
        )
        database.execute("UPDATE store SET sequence = ?", [count])
    database.close()
    return data


def entities(b):
    """Number 10: a million entities next to ten thousand."""
    functions = b.functions("entities", {"counter": node(COUNTER, BY_ID)})
    candidates = {}
    for count in (10_000, 1_000_000):
        process, port, secret = b.executor(functions, data=filled(b, functions, count))
        if get(port, f"/counter?id={count}", secret)[1] != b"2\n":
            sys.exit("what was written into the table is not there")
        candidates[count] = (process.pid, port, secret, KEYS.format(path="/counter", keys=count))
    idle = {count: status(pid, "VmRSS") for count, (pid, *_) in candidates.items()}
    for _, port, secret, script in candidates.values():
        warmed(b, port, secret, script)
    rates = {count: [] for count in candidates}
    memory = {count: [] for count in candidates}
    for _ in range(b.args.rounds):
        for count, (pid, port, secret, script) in candidates.items():
            rates[count].append(b.wrk(port, "/", secret, script=script)[0])
            memory[count].append(status(pid, "VmRSS"))
    few, many = candidates
    rows = [(f"{count:,} entities", f"{spread(values)} requests/s") for count, values in rates.items()]
    ratios = [x / y for x, y in zip(rates[many], rates[few])]
    rows.append((f"{many:,} / {few:,}", f"{spread(ratios, 2)}x   aim 0.7x"))
    for count, values in memory.items():
        text = f"{idle[count]:.1f} MiB at start, {values[0]:.1f} after the first round, {values[-1]:.1f} after the last"
        rows.append((f"memory, {count:,}", text))
    table(f"10. counting on all of many entities, SQLite, {CONNECTIONS} connections", rows)


def events(b):
    """Number 11: what folding events costs, and that snapshots make it independent of history."""
    copies = {
        "fold": node(LOG, BY_ID, 'model = "events"', "snapshot-every = 10000"),
        "account": node(LOG, BY_ID, 'model = "events"', "snapshot-every = 100"),
    }
    _, port, secret = b.executor(b.functions("events", copies))
    caller = Caller(port, secret)

    def emit(path, times):
        for _ in range(times):
            content, _ = caller.ask(f"{path}&n=1000", "POST")
        return int(content)

    # The call that makes it 10,000 leaves a snapshot.
    if (emit("/fold?id=none", 10), emit("/fold?id=1000", 11)) != (10_000, 11_000):
        sys.exit("events are missing")
    folds = {"none": [], "1000": []}
    for _ in range(60 * b.args.rounds):
        for key, values in folds.items():
            values.append(caller.ask(f"/fold?id={key}")[1])
    folds = {key: values[len(values) // 10 :] for key, values in folds.items()}
    histories = {"1000": [], "20000": []}
    for key in histories:
        emit(f"/account?id={key}", int(key) // 1000)
    # Three times from snapshot to snapshot, in step.
    for _ in range(300):
        for key, values in histories.items():
            values.append(caller.ask(f"/account?id={key}&n=1", "POST")[1])
    difference = median(folds["1000"]) - median(folds["none"])
    rows = [
        ("reading, no event after the snapshot", f"{median(folds['none']):.2f} ms"),
        ("reading, 1,000 events after it", f"{median(folds['1000']):.2f} ms"),
        ("folding 1,000 events", f"{difference:.2f} ms   aim 5"),
    ]
    for key, values in histories.items():
        rows.append((f"emitting one after {int(key):,}, snapshot-every 100", f"{median(values):.2f} ms"))
    rows.append(("20,000 / 1,000", f"{median(histories['20000']) / median(histories['1000']):.2f}x"))
    table("11. events, SQLite, one connection, state and run of Server-Timing", rows)


PENDING = 100_000
ALARMS = 200


def timers(b):
    """Number 12: how late timers are, as the function sees it, with and without many that are not yet due."""
    _, port, secret = b.executor(b.functions("timers", {"alarm": node(ALARM, BY_ID)}))
    caller = Caller(port, secret)

    def lateness():
        begin = time.time() * 1000 + 2000
        for n in range(ALARMS):
            at = int(begin + (n + random.random()) * 25)
            caller.ask(f"/alarm?id=due{n}&n=1&at={at}", "POST")
        if time.time() * 1000 > begin:
            sys.exit("the timers were not set in time")
        time.sleep(2 + ALARMS * 0.025)
        late, end = [], time.monotonic() + 30
        while len(late) < ALARMS:
            if time.monotonic() > end:
                sys.exit(f"{ALARMS - len(late)} of {ALARMS} timers did not come")
            late += json.loads(caller.ask("/alarm/late?id=late")[0])
            time.sleep(0.2)
        cuts = statistics.quantiles(late, n=100, method="inclusive")
        return f"p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms, max {max(late)} ms"

    rows = [("0 others pending", lateness())]
    far = int((time.time() + 300 * 86_400) * 1000)
    begun = time.monotonic()
    for n in range(PENDING // 100):
        caller.ask(f"/alarm?id=far{n}&n=100&at={far + n * 1000}", "POST")
    spent = time.monotonic() - begun
    rows.append((f"{PENDING:,} others pending", lateness() + "   aim 100"))
    rows.append(("setting them, 100 in each call", f"{spent:.1f} s"))
    table(f"12. lateness of {ALARMS} timers that come due one by one, SQLite", rows)


PARTS = {"state": state, "own-redis": own_redis, "entities": entities, "events": events, "timers": timers}
