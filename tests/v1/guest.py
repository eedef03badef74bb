"""A guest of the tests: `guest KIND [NUMBER]` plays a well or badly behaved function server on port 3000.

Servers: v5 and v4 (log files), v3 (logs in headers), v2 (JSON envelope). What they answer is chosen by the first segment
of the path and the query of the request, see `respond`; v2 takes the same text as payload.
Others: silent (accepts, says nothing), close (closes without a byte), reset, garbage (no HTTP), half (dies in the middle
of its answer), exit N (ends at once with N), deaf (never listens), late N (v5 after N seconds).
"""
import base64
import json
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from urllib.parse import parse_qsl, quote, unquote

KIND = sys.argv[1]
NUMBER = sys.argv[2] if len(sys.argv) > 2 else "0"
STARTED = str(time.time_ns())
RUNNING = [0, 0]
LOCK = threading.Lock()


class Request:
    """One request as it came over the wire."""

    def __init__(self, head, body):
        lines = head.split("\r\n")
        self.method, self.target, self.version = lines[0].split(" ", 2)
        self.headers = [line.split(": ", 1) if ": " in line else [line.rstrip(":"), ""] for line in lines[1:]]
        self.body = body

    def header(self, name, default=""):
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return default


def read_request(stream):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return None
        head += line
    request = Request(head[:-4].decode("latin-1"), b"")
    if request.header("transfer-encoding").lower() == "chunked":
        while size := int(stream.readline().split(b";")[0], 16):
            request.body += stream.read(size)
            stream.readline()
        stream.readline()
    else:
        request.body = stream.read(int(request.header("content-length", "0")))
    return request


def echo(request):
    """What came in, for comparing."""
    return json.dumps({
        "method": request.method,
        "target": request.target,
        "headers": request.headers,
        "body": base64.b64encode(request.body).decode(),
        "text": request.body.decode("utf-8", "replace"),
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "pid": os.getpid(),
        "started": STARTED,
    }).encode()


def respond(target, query, request, connection):
    """Status, headers, body, logs and errors for this request; None: it was dealt with."""
    status, headers, body, logs, errors = 200, [], b"", b"", b""
    action = target.strip("/").split("/")[0]
    if action in ("", "echo"):
        body, headers = echo(request), [("content-type", "application/json")]
    elif action == "text":
        body, headers = query.get("body", "hello").encode(), [("content-type", "text/plain")]
    elif action == "status":
        status = int(query["code"])
        body = query.get("body", "").encode()
    elif action == "headers":
        headers = [("X-Key", "aValue"), ("Set-Cookie", "a=1; path=/"), ("set-cookie", "b=2"),
                   ("x-open-runtimes-mine", "reserved"), ("X-Empty", "")]
    elif action == "binary":
        body = bytes(range(256)) * int(query.get("times", "1"))
    elif action == "big":
        body = b"x" * int(query["n"])
    elif action == "body":
        body = request.body
    elif action == "logs":
        logs, errors = query.get("log", "").encode("latin-1"), query.get("error", "").encode("latin-1")
        logs += b"l" * int(query.get("logs", "0"))
        errors += b"e" * int(query.get("errors", "0"))
    elif action == "sleep":
        time.sleep(float(query["s"]))
        body = b"awake"
    elif action == "slow":
        # The head at once, the body in pieces.
        n, pause = int(query.get("n", "3")), float(query.get("pause", "0.2"))
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % n)
        for _ in range(n):
            connection.sendall(b"s")
            time.sleep(pause)
        return None
    elif action == "gate":
        # Until the test makes the file.
        while not os.path.exists("/mnt/code/" + query.get("file", "go")):
            time.sleep(0.01)
        body = b"passed"
    elif action == "concurrent":
        # How many of these were here at the same time.
        with LOCK:
            RUNNING[0] += 1
            RUNNING[1] = max(RUNNING)
        deadline = time.monotonic() + float(query.get("s", "10"))
        while RUNNING[1] < int(query["n"]) and time.monotonic() < deadline:
            time.sleep(0.01)
        with LOCK:
            RUNNING[0] -= 1
        body = str(RUNNING[1]).encode()
    elif action == "write":
        with open("/mnt/code/" + query["file"], "wb") as file:
            file.write(request.body)
    elif action == "read":
        with open(query["path"], "rb") as file:
            body = file.read()
    elif action == "redirect":
        status, headers = 302, [("location", "http://localhost:3000/text")]
    elif action == "garbage":
        connection.sendall(b"\x00\xff garbage \r\n\r\n" * 10)
        return None
    elif action == "close":
        return None
    elif action == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return None
    elif action == "half":
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
        return None
    elif action == "die":
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
        os._exit(int(query.get("code", "1")))
    elif action == "exit":
        os._exit(int(query.get("code", "0")))
    elif action == "hugehead":
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"x-a: " + b"a" * int(query["n"]) + b"\r\n\r\n")
        return None
    elif action == "raw":
        # The caller's body is the answer, byte for byte.
        connection.sendall(request.body)
        return None
    else:
        status, body = 404, b"no such action: " + action.encode()
    return status, headers, body, logs, errors


def log_files(request, logs, errors, query, headers):
    """Log files of v5 and v4, and tricks with their names."""
    if request.header("x-open-runtimes-logging", "enabled") == "disabled":
        headers.append(("x-open-runtimes-log-id", ""))
        return
    own = "".join(random.choices("0123456789abcdef", k=20))
    for kind, text in (("logs", logs), ("errors", errors)):
        if text:
            with open(f"/mnt/logs/{own}_{kind}.log", "wb") as file:
                file.write(text)
    # Links in the log folder: `trick=NAME:TARGET` makes /mnt/logs/NAME a symbolic link, `hard=` a hard one.
    for kind, make in (("trick", os.symlink), ("hard", os.link)):
        if kind in query:
            name, target = query[kind].split(":", 1)
            if not os.path.lexists("/mnt/logs/" + name):
                make(target, "/mnt/logs/" + name)
    if "fifo" in query:
        os.mkfifo("/mnt/logs/" + query["fifo"])
    if "folder" in query:
        os.mkdir("/mnt/logs/" + query["folder"])
    # `id=` names another log id, as it is to stand in the header; `twice=1` sends a second one.
    headers.append(("x-open-runtimes-log-id", query.get("id", own)))
    if "twice" in query:
        headers.append(("x-open-runtimes-log-id", "second"))


def answer(connection, request, status, headers, body):
    head = f"HTTP/1.1 {status} Status\r\n"
    if status not in (204, 304) and status >= 200:
        headers = headers + [("content-length", str(len(body)))]
    for name, value in headers:
        head += f"{name}: {value}\r\n"
    connection.sendall(head.encode("latin-1") + b"\r\n" + (b"" if request.method == "HEAD" else body))


def serve_v2(connection, request):
    if request.header("x-internal-challenge") != os.environ.get("INTERNAL_RUNTIME_KEY"):
        return answer(connection, request, 500, [], b'{"stderr":"Unauthorized"}')
    envelope = json.loads(request.body)
    payload = envelope["payload"]
    target, _, text = payload.partition("?")
    query = dict(parse_qsl(text, keep_blank_values=True, encoding="latin-1"))
    action = target.strip("/")
    status, response, out, err = 200, "", "", ""
    if action == "object":
        response = {"a": [1, "ü/"], "b": None}
    elif action == "list":
        response = [1, 2]
    elif action == "plain":
        return answer(connection, request, 200, [], b"this is no JSON")
    elif action in ("status", "logs", "exit", "sleep", "close", "half", "big", "gate", "text"):
        done = respond(target, query, request, connection)
        if done is None:
            return None
        status, _, body, logs, errors = done
        response, out, err = body.decode("latin-1"), logs.decode("latin-1"), errors.decode("latin-1")
    else:
        response = {"envelope": envelope, **json.loads(echo(request))}
    document = {"response": response, "stdout": out, "stderr": err}
    answer(connection, request, status, [("x-v2", "header")], json.dumps(document).encode())
    return None


def serve(connection, request):
    if KIND == "v2":
        return serve_v2(connection, request)
    if request.header("x-open-runtimes-secret") != os.environ.get("OPEN_RUNTIMES_SECRET", ""):
        body = b'Unauthorized. Provide correct "x-open-runtimes-secret" header.'
        return answer(connection, request, 500 if KIND == "v3" else 401, [], body)
    target, _, text = request.target.partition("?")
    query = dict(parse_qsl(text, keep_blank_values=True, encoding="latin-1"))
    try:
        done = respond(target, query, request, connection)
    except Exception as error:  # pylint: disable=broad-except
        done = 500, [], repr(error).encode(), b"", b""
    if done is None:
        return None
    status, headers, body, logs, errors = done
    if KIND == "v3":
        headers += [("x-open-runtimes-logs", quote(logs)), ("x-open-runtimes-errors", quote(errors))]
    else:
        log_files(request, logs, errors, query, headers)
    answer(connection, request, status, headers, body)
    return request.target


def converse(connection):
    stream = connection.makefile("rb")
    try:
        while request := read_request(stream):
            if request.header("expect").lower() == "100-continue":
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            before = unquote(request.target).strip("/").split("?")[0].split("/")[0]
            serve(connection, request)
            if before in ("garbage", "close", "reset", "half", "hugehead", "raw", "slow"):
                return
            if KIND == "v2" and request.body.find(b'"payload":"close') >= 0:
                return
    except OSError:
        pass
    finally:
        # The stream holds the socket open, too.
        stream.close()
        connection.close()


def misbehave(connection):
    if not connection.recv(65536):
        # Somebody who only looked whether we listen.
        connection.close()
        return
    if KIND == "silent":
        while connection.recv(65536):
            pass
    elif KIND == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif KIND == "garbage":
        connection.sendall(b"\x16\x03\x01\x00garbage\r\n\r\n")
    elif KIND == "half":
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
        os._exit(1)
    connection.close()


def main():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if KIND == "exit":
        os._exit(int(NUMBER))
    if KIND == "deaf":
        while True:
            time.sleep(1000)
    if KIND == "late":
        time.sleep(float(NUMBER))
    listener = socket.create_server(("0.0.0.0", 3000), backlog=512)
    work = misbehave if KIND in ("silent", "close", "reset", "garbage", "half") else converse
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=work, args=(connection,), daemon=True).start()


main()
