#!/usr/bin/env python3
"""Measures the executor next to what it is compared with, in one run on one machine, and prints medians.

Needs: target/release/executor, node, python3 with venv, wrk, nginx, redis-server; for the container parts a Docker
daemon. On Debian: apt-get install wrk nginx-light nodejs python3-venv redis-server. Everything listens on 127.0.0.1, and each load is
bounded in time. Rounds alternate between the candidates, so that a noisy minute hits all of them.

    cargo build --release && python3 benches/run.py            # about thirteen minutes
    python3 benches/run.py --rounds 1 --seconds 1 warm state   # a quick look at two parts
"""

import argparse
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import state
from common import BINARY, CONNECTIONS, HELLO, HELLO_PY, ROOT, Bench, free_port, get, manifest, median, spread, status, table
from common import timed, wait_for

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
    program, mode = SAYS[language], "executor-functions" if network == "bridge" else network
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


JSON_CALL = """
wrk.method = "POST"
wrk.body = '{body}'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Accept"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
"""
START = 'cp /tmp/code.tar.gz /mnt/code/code.tar.gz && nohup helpers/start.sh "bash helpers/server.sh"'
IMAGE = "executor/node:bench"


def ask(port, method, path, key, document=None):
    """A request of the executor API with JSON in and out."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"authorization": f"Bearer {key}", "accept": "application/json", "content-type": "application/json"}
    connection.request(method, path, json.dumps(document or {}), headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status >= 300:
        sys.exit(f"{method} {path}: {answer.status} {content.decode(errors='replace')}")
    return json.loads(content) if content else None


def address(container):
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return subprocess.check_output(["docker", "inspect", "-f", template, container], text=True).strip()


def api(b):
    """Numbers 6 and 7: the executor API, warm, and from nothing to the first answer."""
    if not docker_answers():
        sys.exit("the executor API needs Docker")
    subprocess.run([BINARY, "image", "node", "--tag", IMAGE], check=True, capture_output=True)
    hello = os.path.join(ROOT, "functions", "hello")
    source = os.path.join(b.dir, "hello.tar.gz")
    subprocess.run(["tar", "-C", hello, "-czf", source, "index.mjs"], check=True)
    functions = b.functions("api", {"hello": (hello, HELLO)})
    key, host = "bench", f"bench{os.getpid()}"
    _, port, secret = b.executor(functions, "--admin-secret", key, "--api-hostname", host, adapter="docker")
    order = {
        "image": IMAGE,
        "source": source,
        "entrypoint": "index.mjs",
        "variables": {"GREETING": "Hello"},
        "runtimeEntrypoint": START,
        "timeout": 30,
    }
    path = "/v1/runtimes/warm/executions"
    answer = ask(port, "POST", path, key, order)
    if "Hello" not in answer["body"]:
        sys.exit(f"the function answered {answer}")
    own = ask(port, "GET", "/v1/runtimes/warm", key)["key"]
    container = address(f"{host}-warm")
    get(port, "/hello", secret)
    bodies = {"logging on": "{}", "logging off": '{"logging":false}'}
    scripts = {name: JSON_CALL.format(body=body, key=key) for name, body in bodies.items()}
    quiet = 'wrk.headers["x-open-runtimes-logging"] = "disabled"'
    direct = "its own port 3000, logging off"
    rates = {name: [] for name in ["plain call", "API, logging on", "API, logging off", direct]}
    for _ in range(b.args.rounds):
        rates["plain call"].append(b.wrk(port, "/hello", secret)[0])
        for name, script in scripts.items():
            rates[f"API, {name}"].append(b.wrk(port, path, script=script)[0])
        rates[direct].append(b.wrk(3000, "/", own, script=quiet, host=container)[0])

    def ratio(name, to):
        return f"{median(x / y for x, y in zip(rates[name], rates[to])):.2f}x"

    rows = [(name, f"{spread(values)} requests/s") for name, values in rates.items()]
    rows += [
        ("API, logging off / plain call", ratio("API, logging off", "plain call") + "   aim 0.6x"),
        ("API, logging on / plain call", ratio("API, logging on", "plain call") + "   aim 0.6x"),
        ("API, logging off / its own port", ratio("API, logging off", direct)),
    ]
    table(f"6. the executor API, JSON, {CONNECTIONS} connections", rows)
    ask(port, "DELETE", "/v1/runtimes/warm", key)
    floor, ours = [], []
    for n in range(max(b.args.rounds, 7)):
        floor.append(docker_floor(IMAGE, "node", "openruntimes-runtimes"))
        ours.append(timed(lambda: ask(port, "POST", f"/v1/runtimes/cold{n}/executions", key, order)))
        ask(port, "DELETE", f"/v1/runtimes/cold{n}", key)
    added = f"{median(ours) - median(floor):+.0f}"
    what = "create and start a container whose language connects to a socket"
    text = f"{spread(ours)} ms; floor {spread(floor)} ms ({what}); added {added} ms   aim +40"
    table("7. create and first execution through the API", [("node", text)])


def unpack(b):
    """Number 8: unpacking an artifact of 5,000 files, next to tar."""
    tree = os.path.join(b.dir, "tree")
    for n in range(5000):
        folder = os.path.join(tree, f"node_modules/p{n // 50}")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f"f{n}.js"), "w") as file:
            file.write(f"// {n}\n" + "module.exports = 1;\n" * (n % 200))
    archive = os.path.join(b.dir, "tree.tar.gz")
    subprocess.run(["tar", "-C", tree, "-czf", archive, "."], check=True)
    ours, tar = [], []
    for n in range(max(b.args.rounds, 7)):
        folder = os.path.join(b.dir, f"tar{n}")
        os.makedirs(folder)
        tar.append(timed(lambda: subprocess.run(["tar", "-C", folder, "-xzf", archive], check=True)))
        shutil.rmtree(folder)
        root = os.path.join(b.dir, f"ours{n}")
        for part in ("mnt/code", "mnt/telemetry", "usr/local/server/src/function"):
            os.makedirs(os.path.join(root, part))
        shutil.copy(archive, os.path.join(root, "mnt/code/code.tar.gz"))
        environment = {**os.environ, "EXECUTOR_LIFECYCLE_ROOT": root}
        subprocess.run([BINARY, "lifecycle", "start", "true"], check=True, env=environment, capture_output=True)
        with open(os.path.join(root, "mnt/telemetry/timings.txt")) as file:
            ours.append(float(re.search(r"extract=([\d.]+)", file.read()).group(1)) * 1e3)
        if len(os.listdir(os.path.join(root, "usr/local/server/src/function/node_modules"))) != 100:
            sys.exit("not everything was unpacked")
        shutil.rmtree(root)
    ratio = median(x / y for x, y in zip(ours, tar))
    rows = [("executor", f"{spread(ours)} ms"), ("tar -xzf", f"{spread(tar)} ms"), ("ratio", f"{ratio:.2f}x   aim 1.2x")]
    table("8. unpacking 5,000 files", rows)


PARTS = {"warm": warm, "cold": cold, **state.PARTS, "memory": memory, "api": api, "unpack": unpack}


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
