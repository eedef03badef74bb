#!/usr/bin/env python3
"""Measures the executor next to what it is compared with, in one run on one machine, and prints medians.

Needs: target/release/executor, node, python3 with venv, wrk, nginx; for the container part a Docker daemon.
On Debian: apt-get install wrk nginx-light nodejs python3-venv. Everything listens on 127.0.0.1, and each load is
bounded in time. Rounds alternate between the candidates, so that a noisy minute hits all of them.

    cargo build --release && python3 benches/run.py            # about eight minutes
    python3 benches/run.py --rounds 1 --seconds 1 warm state   # a quick look at two parts
"""

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.path.join(ROOT, "target", "release", "executor")
CONNECTIONS = 32

NODE_SERVER = """
import handler from './index.mjs';
import http from 'node:http';
const res = { text: (body, status = 200) => ({ body, status }) };
http.createServer((req, out) => {
  const at = req.url.indexOf('?');
  const query = Object.fromEntries(new URLSearchParams(at < 0 ? '' : req.url.slice(at + 1)));
  const answer = handler({ req: { query }, res });
  out.writeHead(answer.status, { 'content-type': 'text/plain; charset=utf-8' });
  out.end(answer.body);
}).listen(Number(process.env.PORT), '127.0.0.1');
"""

AIOHTTP_SERVER = """
import os
from aiohttp import web
async def hello(request):
    return web.Response(text="Hello, world!\\n")
app = web.Application()
app.router.add_get("/", hello)
web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None, print=None)
"""

NGINX = """
worker_processes auto; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.err;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  upstream node {{ server 127.0.0.1:{upstream}; keepalive 64; }}
  server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000;
    location / {{ proxy_pass http://node; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
}}
"""

STATEFUL = {
    "counter-node": (
        "node",
        "index.mjs",
        "export default ({ state, res }) => { const n = (state.get()?.n ?? 0) + 1; state.set({ n });"
        " return res.text(`${n}\\n`); };",
    ),
    "reader": (
        "node",
        "index.mjs",
        "export default ({ state, req, res }) => { if (req.method === 'POST') state.set('x'.repeat(1022));"
        " return res.text(`${state.version}\\n`); };",
    ),
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, limit=20):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"nothing listens on port {port}")


class Bench:
    def __init__(self, args):
        self.args = args
        self.dir = tempfile.mkdtemp(prefix="executor-bench-")
        self.processes = []

    def start(self, command, **env):
        out = open(os.path.join(self.dir, "output"), "ab")
        process = subprocess.Popen(command, env={**os.environ, **env}, stdout=out, stderr=out, cwd=self.dir)
        self.processes.append(process)
        return process

    def stop(self, process):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.processes.remove(process)

    def close(self):
        for process in list(self.processes):
            self.stop(process)
        shutil.rmtree(self.dir, ignore_errors=True)

    def functions(self, name, copies):
        """A folder of functions; `copies` maps a name to (source folder or code, manifest)."""
        folder = os.path.join(self.dir, name)
        for function, (code, manifest) in copies.items():
            target = os.path.join(folder, function)
            if isinstance(code, str):
                shutil.copytree(code, target)
            else:
                os.makedirs(target)
                with open(os.path.join(target, code[0]), "w") as file:
                    file.write(code[1])
            with open(os.path.join(target, "function.toml"), "w") as file:
                file.write(manifest)
        return folder

    def executor(self, functions, *flags, adapter="process"):
        data = tempfile.mkdtemp(prefix="d", dir=self.dir)
        port = free_port()
        command = [BINARY, "--port", str(port), "--functions", functions, "--data", data, "--adapter", adapter]
        process = self.start(command + list(flags))
        end = time.monotonic() + 20
        while not os.path.exists(os.path.join(data, "executor.json")):
            if time.monotonic() > end or process.poll() is not None:
                sys.exit(open(os.path.join(self.dir, "output")).read()[-2000:])
            time.sleep(0.005)
        with open(os.path.join(data, "secret")) as file:
            return process, port, file.read().strip()

    def wrk(self, port, path="/", secret=None, connections=CONNECTIONS, script=None, seconds=None):
        """Requests per second and median latency in microseconds."""
        seconds = seconds or self.args.seconds
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
        if secret:
            command += ["-H", f"x-open-runtimes-secret: {secret}"]
        if script:
            file = os.path.join(self.dir, f"{abs(hash(script))}.lua")
            with open(file, "w") as out:
                out.write(script)
            command += ["-s", file]
        text = subprocess.run(command + [f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True).stdout
        bad = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors", text)
        if bad:
            print(f"  ! {path}: {bad.group(0)}")
        rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))
        value, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", text).groups()
        return rate, float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def get(port, path, secret=None, method="GET", body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {"x-open-runtimes-secret": secret} if secret else {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status != 200:
        sys.exit(f"{path}: {answer.status} {content.decode(errors='replace')}")
    return answer, content


def manifest(runtime, entrypoint, *more):
    return "\n".join([f'runtime = "{runtime}"', f'entrypoint = "{entrypoint}"', *more]) + "\n"


def table(title, rows):
    print(f"\n{title}")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:{width}}  {value}")


def median(values):
    return statistics.median(values)


def spread(values, digits=0):
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


HELLO = manifest("node", "index.mjs", "concurrency = 64", "max-instances = 1", "[env]", 'GREETING = "Hello"')
HELLO_PY = manifest("python", "main.py", "concurrency = 64", "max-instances = 1", "[env]", 'GREETING = "Hello"')


def warm(b):
    """Numbers 1 and 2: throughput and added latency of a warm hello."""
    hello, hello_py = (os.path.join(ROOT, "functions", name) for name in ("hello", "hello-python"))
    functions = b.functions("warm", {"node": (hello, HELLO), "python": (hello_py, HELLO_PY)})
    _, port, secret = b.executor(functions)
    with open(os.path.join(functions, "node", "server.mjs"), "w") as file:
        file.write(NODE_SERVER)
    direct, proxied, aio = free_port(), free_port(), free_port()
    b.start(["node", os.path.join(functions, "node", "server.mjs")], PORT=str(direct), GREETING="Hello")
    with open(os.path.join(b.dir, "nginx.conf"), "w") as file:
        file.write(NGINX.format(dir=b.dir, port=proxied, upstream=direct))
    b.start(["nginx", "-c", os.path.join(b.dir, "nginx.conf")])
    venv = os.path.join(b.dir, "venv")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([f"{venv}/bin/pip", "install", "-q", "aiohttp"], check=True)
    with open(os.path.join(b.dir, "aio.py"), "w") as file:
        file.write(AIOHTTP_SERVER)
    b.start([f"{venv}/bin/python", os.path.join(b.dir, "aio.py")], PORT=str(aio))
    for p in (direct, proxied, aio):
        wait_for(p)
    candidates = {
        "executor, Node": (port, "/node", secret),
        "Node's own server": (direct, "/", None),
        "nginx before it": (proxied, "/", None),
        "executor, Python": (port, "/python", secret),
        "aiohttp": (aio, "/", None),
    }
    for p, path, key in candidates.values():
        get(p, path, key)
        b.wrk(p, path, key, seconds=1)
    rates = {name: [] for name in candidates}
    latencies = {name: [] for name in candidates}
    for _ in range(b.args.rounds):
        for name, (p, path, key) in candidates.items():
            rates[name].append(b.wrk(p, path, key)[0])
        for name, (p, path, key) in candidates.items():
            latencies[name].append(b.wrk(p, path, key, connections=1, seconds=max(1, b.args.seconds // 2))[1])

    def ratio(a, b):
        return f"{median(x / y for x, y in zip(rates[a], rates[b])):.2f}x"

    rows = [(name, f"{spread(values)} requests/s") for name, values in rates.items()]
    rows += [
        ("Node: executor / own server", ratio("executor, Node", "Node's own server") + "   aim 1.0x"),
        ("Node: executor / nginx + server", ratio("executor, Node", "nginx before it") + "   aim 1.5x"),
        ("Python: executor / aiohttp", ratio("executor, Python", "aiohttp") + "   aim 3x"),
    ]
    table(f"1. warm hello, {CONNECTIONS} connections", rows)
    added = [x - y for x, y in zip(latencies["executor, Node"], latencies["Node's own server"])]
    rows = [(name, f"{spread(values)} us") for name, values in latencies.items()]
    rows.append(("Node: added by the executor", f"{spread(added)} us   aim 60"))
    table("2. median latency, one connection", rows)


def timed(action):
    begun = time.perf_counter()
    action()
    return (time.perf_counter() - begun) * 1e3


def cold(b):
    """Number 3: from a call to a cold function to its first byte."""
    rounds = max(b.args.rounds, 7)
    code = {"node": os.path.join(ROOT, "functions", "hello"), "python": os.path.join(ROOT, "functions", "hello-python")}
    entry = {"node": "index.mjs", "python": "main.py"}
    copies = {
        f"{language}{n}": (code[language], manifest(language, entry[language]))
        for language in code
        for n in range(rounds + 1)
    }
    functions = b.functions("cold", copies)
    python = subprocess.run(["python3", "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
    floors = {"node": ["node", "-e", "0"], "python": [python.stdout.strip(), "-c", "0"]}
    process, port, secret = b.executor(functions)
    results = {}
    for language in code:
        get(port, f"/{language}{rounds}", secret)
        floor, ours = [], []
        for n in range(rounds):
            floor.append(timed(lambda: subprocess.run(floors[language])))
            ours.append(timed(lambda: get(port, f"/{language}{n}", secret)))
        results[f"{language}, process"] = (floor, ours, "start the language and exit")
    b.stop(process)
    if docker_answers():
        for network in ("bridge", "none"):
            process, port, secret = b.executor(functions, "--network", network, adapter="docker")
            for language in code:
                get(port, f"/{language}{rounds}", secret)
                image = runtime_image(language)
                floor, ours = [], []
                for n in range(rounds):
                    floor.append(docker_floor(image, language, network))
                    ours.append(timed(lambda: get(port, f"/{language}{n}", secret)))
                name = f"{language}, docker, network {network}"
                results[name] = (floor, ours, "create and start a container whose language connects to a socket")
            b.stop(process)
    rows = []
    for name, (floor, ours, what) in results.items():
        added = median(ours) - median(floor)
        rows.append((name, f"{spread(ours)} ms; floor {spread(floor)} ms ({what}); added {added:+.0f} ms   aim +30"))
    table("3. cold start to first byte", rows)


def docker_answers():
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def runtime_image(language):
    listing = ["docker", "images", "--format", "{{.Repository}}:{{.Tag}}", f"executor-runtime-{language}"]
    return subprocess.run(listing, capture_output=True, text=True).stdout.split()[0]


class Engine(http.client.HTTPConnection):
    """Docker's API, so that the floor does not hold the start of the docker command."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/run/docker.sock")

    def ask(self, method, path, body=None):
        data = json.dumps(body) if body is not None else None
        self.request(method, path, data, {"content-type": "application/json"})
        answer = self.getresponse()
        content = answer.read()
        if answer.status >= 400:
            sys.exit(f"docker {method} {path}: {content.decode()}")
        return json.loads(content) if content else None


SAYS = {
    "node": ["node", "-e", "require('net').connect('/floor/socket')"],
    "python": ["python3", "-c", "import socket; socket.socket(socket.AF_UNIX).connect('/floor/socket')"],
}


def docker_floor(image, language, network):
    """Milliseconds from asking Docker for a container to the first sign of life of the language in it."""
    engine = Engine("docker")
    folder = tempfile.mkdtemp(prefix="floor-")
    os.chmod(folder, 0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(folder, "socket"))
    os.chmod(os.path.join(folder, "socket"), 0o666)
    listener.listen()
    listener.settimeout(30)
    program, mode = SAYS[language], "executor-functions" if network == "bridge" else "none"
    host = {"NetworkMode": mode, "Binds": [f"{folder}:/floor:ro"]}
    body = {"Image": image, "Entrypoint": program[:1], "Cmd": program[1:], "HostConfig": host}
    begun = time.perf_counter()
    identity = engine.ask("POST", "/v1.41/containers/create", body)["Id"]
    engine.ask("POST", f"/v1.41/containers/{identity}/start")
    listener.accept()
    spent = (time.perf_counter() - begun) * 1e3
    engine.ask("DELETE", f"/v1.41/containers/{identity}?force=1")
    shutil.rmtree(folder)
    return spent


KEYS = """
math.randomseed(os.time())
request = function() return wrk.format("GET", "{path}?id=" .. math.random(1, {keys})) end
"""


def state(b):
    """Number 4: state on SQLite, durable, next to the same without state."""
    copies = {
        name: ((entry, code), manifest(runtime, entry, "concurrency = 64", "max-instances = 1", "[state]", 'key = "{query.id}"'))
        for name, (runtime, entry, code) in STATEFUL.items()
    }
    copies["hello"] = (os.path.join(ROOT, "functions", "hello"), HELLO)
    _, port, secret = b.executor(b.functions("state", copies))
    scripts = {name: KEYS.format(path=f"/{name}", keys=10_000) for name in ("counter-node", "hello")}
    for name, script in scripts.items():
        b.wrk(port, "/", secret, script=script, seconds=2)
    get(port, "/reader?id=k", secret, "POST", b"")
    rates = {"state, 10,000 keys": [], "stateless": [], "state, one hot key": []}
    reads, plain = [], []
    for _ in range(b.args.rounds):
        rates["state, 10,000 keys"].append(b.wrk(port, "/", secret, script=scripts["counter-node"])[0])
        rates["stateless"].append(b.wrk(port, "/", secret, script=scripts["hello"])[0])
        rates["state, one hot key"].append(b.wrk(port, "/counter-node?id=hot", secret)[0])
        reads.append(b.wrk(port, "/reader?id=k", secret, connections=1, seconds=1)[1])
        plain.append(b.wrk(port, "/hello", secret, connections=1, seconds=1)[1])
    rows = [(name, f"{spread(values)} requests/s") for name, values in rates.items()]
    ratios = [x / y for x, y in zip(rates["state, 10,000 keys"], rates["stateless"])]
    rows.append(("state / stateless", f"{spread(ratios, 2)}x   aim 0.5x"))
    rows.append(("reading 1 KiB adds, one connection", f"{median(reads) - median(plain):+.0f} us to {median(plain):.0f} us"))
    table(f"4. state, {CONNECTIONS} connections", rows)


def status(pid, field, file="status"):
    with open(f"/proc/{pid}/{file}") as text:
        return int(re.search(rf"^{field}:\s+(\d+) kB", text.read(), re.M).group(1)) / 1024


def memory(b):
    """Number 5."""
    hello, hello_py = (os.path.join(ROOT, "functions", name) for name in ("hello", "hello-python"))
    rows = []
    for count in (10, 1000):
        copies = {f"f{n}": (hello, manifest("node", "index.mjs")) for n in range(count - 1)}
        copies["py"] = (hello_py, manifest("python", "main.py"))
        process, port, secret = b.executor(b.functions(f"memory{count}", copies))
        time.sleep(1)
        rows.append((f"executor, {count} functions, idle", f"{status(process.pid, 'VmRSS'):.1f} MiB   aim 40"))
        if count == 10:
            for path, language in (("/f0", "Node"), ("/py", "Python")):
                get(port, path, secret)
            listing = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            for pid, language in zip(listing, ("Node", "Python")):
                rss, pss = status(pid, "VmRSS"), status(pid, "Pss", "smaps_rollup")
                rows.append((f"idle {language} instance", f"{rss:.1f} MiB resident, {pss:.1f} MiB with shared pages divided"))
        b.stop(process)
    table("5. memory", rows)


PARTS = {"warm": warm, "cold": cold, "state": state, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to measure: {', '.join(PARTS)}; all without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each load")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    if not os.path.exists(BINARY):
        sys.exit("build it first: cargo build --release")
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    print(f"{os.cpu_count()} cores of {model.group(1) if model else 'unknown'}; {args.rounds} rounds of {args.seconds} s;")
    print("median (lowest-highest); ratios are medians of the rounds' ratios")
    for name in args.parts or PARTS:
        b = Bench(args)
        try:
            PARTS[name](b)
        finally:
            b.close()


if __name__ == "__main__":
    main()
