"""What the parts share: servers on free ports in one temporary folder, loads, and how numbers are printed."""

import http.client
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

    def executor(self, functions, *flags, adapter="process", data=None):
        data = data or tempfile.mkdtemp(prefix="d", dir=self.dir)
        ready = os.path.join(data, "executor.json")
        if os.path.exists(ready):  # of an executor that was there before
            os.remove(ready)
        port = free_port()
        command = [BINARY, "--port", str(port), "--functions", functions, "--data", data, "--adapter", adapter]
        process = self.start(command + list(flags))
        end = time.monotonic() + 20
        while not os.path.exists(ready):
            if time.monotonic() > end or process.poll() is not None:
                sys.exit(open(os.path.join(self.dir, "output")).read()[-2000:])
            time.sleep(0.005)
        with open(os.path.join(data, "secret")) as file:
            return process, port, file.read().strip()

    def wrk(self, port, path="/", secret=None, connections=CONNECTIONS, script=None, seconds=None, host="127.0.0.1"):
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
        text = subprocess.run(command + [f"http://{host}:{port}{path}"], capture_output=True, text=True).stdout
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


def timed(action):
    begun = time.perf_counter()
    action()
    return (time.perf_counter() - begun) * 1e3


def status(pid, field, file="status"):
    with open(f"/proc/{pid}/{file}") as text:
        return int(re.search(rf"^{field}:\s+(\d+) kB", text.read(), re.M).group(1)) / 1024


HELLO = manifest("node", "index.mjs", "concurrency = 64", "max-instances = 1", "[env]", 'GREETING = "Hello"')
HELLO_PY = manifest("python", "main.py", "concurrency = 64", "max-instances = 1", "[env]", 'GREETING = "Hello"')
