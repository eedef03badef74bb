"""A host of the link, as small as a test needs it: starts one worker, and speaks frames with it.

Every wait ends: a worker that says nothing for WAIT seconds fails the test with what it wrote on stderr.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FUNCTIONS = Path(__file__).resolve().parent / "functions"
WAIT = 30  # seconds

HELLO, INIT, READY, FAILED, CALL, RESULT, ERROR, DATA, END, CREDIT, LOG, CANCEL, STOP, STOPPED = range(1, 15)
LIMITS = {"response": 1_048_576, "state": 100_000, "events": 1_000, "timers": 100}


class Host:
    """One worker with one function. `ready` or `failed` holds what it answered to INIT."""

    def __init__(self, language, entrypoint, state, env=None, limits=None, info_only=False, source=FUNCTIONS):
        self.folder = Path(tempfile.mkdtemp(prefix="workers-"))
        for file in source.iterdir():
            if file.is_file():
                shutil.copy(file, self.folder)
        self.pending = b""
        self.calls = 0
        self.logs = []
        link = str(self.folder / "link")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(link)
        listener.listen(1)
        listener.settimeout(WAIT)
        self.errors = tempfile.TemporaryFile()
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        environment |= {"EXECUTOR_LINK": link, "EXECUTOR_TOKEN": "token", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(command(language), env=environment, stdout=self.errors, stderr=self.errors)
        try:
            self.socket, _ = listener.accept()
        except TimeoutError:
            raise AssertionError(f"the worker did not dial: {self.said()}") from None
        finally:
            listener.close()
        self.socket.settimeout(WAIT)
        hello = json.loads(self.expect(HELLO)[1])
        assert hello["token"] == "token" and hello["runtime"] == language, hello
        init = {
            "name": "tested",
            "directory": str(self.folder),
            "entrypoint": entrypoint,
            "env": env or {},
            "concurrency": 4,
            "info_only": info_only,
            "limits": limits or LIMITS,
        }
        if state is not None:
            init["state"] = state
        self.send(INIT, 0, json.dumps(init).encode())
        kind, _, payload = self.read(0)
        answer = json.loads(payload)
        self.ready = answer if kind == READY else None
        self.failed = answer if kind == FAILED else None
        assert kind in (READY, FAILED), kind

    def call(self, steps, state=None, data=b"", path="/", **more):
        """Sends a CALL with `steps` as its JSON body: → its number. `more` of its head."""
        self.calls += 1
        head = {
            "id": f"request-{self.calls}",
            "method": "POST",
            "scheme": "http",
            "host": "test",
            "port": 80,
            "path": path,
            "query": "",
            "headers": {},
            "timeout": 15_000,
            **more,
        }
        if state is not None:
            head["state"] = {"key": "k", "version": 0, "kind": "none", **state, "length": len(data)}
        head = json.dumps(head).encode()
        self.send(CALL, self.calls, len(head).to_bytes(4) + head + data + json.dumps(steps).encode())
        return self.calls

    def answer(self, call):
        """→ (RESULT, head, state bytes, body) or (ERROR, fault, b"", b""); a streamed body is collected."""
        kind, _, payload = self.read(call)
        if kind == ERROR:
            return ERROR, json.loads(payload), b"", b""
        assert kind == RESULT, f"a frame of type {kind} for a call"
        at = 4 + int.from_bytes(payload[:4])
        head = json.loads(payload[4:at])
        length = head.get("state", {}).get("length", 0)
        data, body = payload[at : at + length], payload[at + length :]
        assert len(data) == length, f"{len(data)} bytes of state in place of {length}"
        while head.get("stream"):
            kind, _, payload = self.read(call)
            if kind == END:
                assert not payload, payload
                break
            assert kind == DATA, kind
            body += payload
        return RESULT, head, data, body

    def send(self, kind, call, payload=b""):
        self.socket.sendall((len(payload) + 5).to_bytes(4) + bytes((kind,)) + call.to_bytes(4) + payload)

    def read(self, call):
        """The next frame for `call`; lines of logs go to `logs`."""
        while True:
            size = int.from_bytes(self.exactly(4))
            frame = self.exactly(size)
            kind, number, payload = frame[0], int.from_bytes(frame[1:5]), frame[5:]
            if kind == LOG:
                self.logs.append((payload[0], payload[1:].decode()))
                continue
            assert number == call, f"a frame of type {kind} for call {number} in place of {call}: {payload!r}"
            return kind, number, payload

    def expect(self, kind, call=0):
        got, _, payload = self.read(call)
        assert got == kind, f"a frame of type {got} in place of {kind}: {payload!r}"
        return got, payload

    def exactly(self, count):
        while len(self.pending) < count:
            try:
                piece = self.socket.recv(262_144)
            except TimeoutError:
                raise AssertionError(f"nothing came from the worker for {WAIT} s: {self.said()}") from None
            assert piece, f"the worker ended the link: {self.said()}"
            self.pending += piece
        data, self.pending = self.pending[:count], self.pending[count:]
        return data

    def said(self):
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def stop(self):
        """Ends it as the host does, or after FAILED: it must then leave by itself."""
        try:
            if self.ready:
                self.send(STOP, 0)
                self.expect(STOPPED)
            code = self.process.wait(WAIT)
            assert code == (0 if self.ready else 1), f"exit code {code}: {self.said()}"
        finally:
            self.close()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.socket.close()
        self.errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def command(language):
    """As the process adapter builds it from runtime.toml."""
    folder = ROOT / "runtimes" / language
    manifest = tomllib.loads((folder / "runtime.toml").read_text())
    program = sys.executable if language == "python" else "node"
    values = {"{program}": program, "{worker}": str(folder / manifest["worker"])}
    return [values.get(part, part) for part in manifest["command"]]
