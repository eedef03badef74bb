"""What the function sees: its Context, `req`, `res`, and its output; `state` is in state.py.

Nothing here waits, sends or knows a frame. Values are made when they are first asked for: a greeting
pays for no body, no query and no state.
"""

import io
import json
import os
import threading
from contextvars import ContextVar

MAX_TEXT = 8_001  # one more than the host keeps, so that it knows that it cuts
PACKAGE = os.path.dirname(__file__)
# Not all beside this package: in a container the function's folder is there as well.
OWN = (PACKAGE + "/", os.path.dirname(PACKAGE) + "/worker.py")
NOT_THEIRS = (*OWN, os.path.dirname(os.__file__) + "/asyncio/", "<frozen importlib")

dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
dumps_loosely = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode

current = ContextVar("call", default=None)  # whose output is it


def show(value):
    """A value as text in a log line."""
    if isinstance(value, str):
        return value
    if isinstance(value, BaseException):
        return trace(value)
    if value is None or isinstance(value, (bool, dict, list, tuple)):
        try:
            return dumps_loosely(value)
        except (TypeError, ValueError, RecursionError):
            pass  # circular, or keys that JSON has not
    return str(value)


def trace(error, whole=False):
    """The traceback, from the first frame that is the function's own."""
    import traceback

    frames = error.__traceback__
    while not whole and frames and frames.tb_frame.f_code.co_filename.startswith(NOT_THEIRS):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip("\n")


def has(value, method):
    """Asks the type: to ask a value of the user's may run code of theirs."""
    return hasattr(type(value), method)


def octets(body):
    """A body as bytes."""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    raise TypeError(f"a body is str or bytes, not {type(body).__name__}")


class lazy:
    """A property computed once, at its first use."""

    def __init__(self, compute):
        self.compute = compute
        self.name = compute.__name__

    def __get__(self, owner, kind=None):
        value = owner.__dict__[self.name] = self.compute(owner)
        return value


class Request:
    def __init__(self, head, body):
        self.method = head["method"]
        self.scheme = head["scheme"]
        self.host = head["host"]
        self.port = head["port"]
        self.path = head["path"]
        self.query_string = head["query"]
        self.headers = head["headers"]
        self.body_binary = body

    @lazy
    def query(self):
        items = (item.partition("=") for item in self.query_string.split("&"))
        return {name: value for name, _, value in items if name}

    @lazy
    def url(self):
        port = "" if self.port == (443 if self.scheme == "https" else 80) else f":{self.port}"
        query = f"?{self.query_string}" if self.query_string else ""
        return f"{self.scheme}://{self.host}{port}{self.path}{query}"

    @lazy
    def body_text(self):
        return self.body_binary.decode("utf-8", "replace")

    body_raw = property(lambda self: self.body_text)

    @lazy
    def body_json(self):
        return json.loads(self.body_text)

    @lazy
    def body(self):
        if not self.headers.get("content-type", "").lower().startswith("application/json"):
            return self.body_text
        return self.body_json if self.body_binary else {}


class Answer:
    __slots__ = ("body", "chunks", "headers", "status")

    def __init__(self, status, headers, body, chunks=None):
        if type(status) is not int and isinstance(status, int) and not isinstance(status, bool):
            status = int(status)  # of an enum, say http.HTTPStatus
        if type(status) is not int or not 200 <= status <= 999:
            raise ValueError(f"a status is a number from 200 to 999, not {status!r}")
        self.status = status
        self.headers = headers
        self.body = body
        self.chunks = chunks


JSON_TYPE = "application/json"


def lowered(headers):
    """The headers as the host takes them: lower-case names, text or lists of text."""
    return {
        str(name).lower(): [str(item) for item in value] if isinstance(value, (list, tuple)) else str(value)
        for name, value in headers.items()
        if value is not None
    }


class Responses:
    """`context.res`. It holds nothing: only what the handler returns is sent. Each answer has a dict of headers of its own:
    what the function writes there must go out with no other answer."""

    def text(self, body, status=200, headers=None):
        return Answer(status, lowered(headers) if headers else {}, octets(body))

    binary = text

    def json(self, value, status=200, headers=None):
        own = {"content-type": JSON_TYPE}
        if headers:
            own.update(lowered(headers))
        return Answer(status, own, dumps(value).encode())

    def empty(self):
        return Answer(204, {}, b"")

    def redirect(self, url, status=301, headers=None):
        return Answer(status, {**lowered(headers or {}), "location": str(url)}, b"")

    def send(self, body="", status=200, headers=None):
        if not isinstance(body, (str, bytes, bytearray, memoryview)):
            body = "" if body is None else show(body)
        return self.text(body, status, headers)

    def stream(self, chunks, status=200, headers=None):
        if not has(chunks, "__aiter__"):
            chunks = iter(chunks)
        return Answer(status, lowered(headers) if headers else {}, b"", chunks)


class NoState:
    def __getattr__(self, name):
        raise RuntimeError("this function has no [state] in its function.toml")


class Context:
    """What the handler gets."""

    __slots__ = ("_call", "_worker", "_req", "_state", "context", "start_error")
    res = Responses()

    def __init__(self, call, worker):
        self._call = call
        self._worker = worker
        self._req = self._state = self.context = self.start_error = None

    @property
    def req(self):
        if self._req is None:
            self._req = Request(self._call.head, self._call.body)
        return self._req

    @property
    def state(self):
        if self._state is None:
            call = self._call
            self._state = call.entity or (self._worker.state(call) if call.head.get("state") else NoState())
        return self._state

    def log(self, *values):
        self._worker.wire.log(self._call, 1, " ".join(map(show, values)))

    def error(self, *values):
        self._worker.wire.log(self._call, 2, " ".join(map(show, values)))


class Output(io.TextIOBase):
    """sys.stdout and sys.stderr: whole lines become LOG frames of the call that runs here."""

    encoding, errors = "utf-8", "replace"
    lock = threading.RLock()  # re-entered when a finalizer prints in the middle of a print
    forked = False  # in a child process: the link is not its own

    def __init__(self, wire, outside, real):
        self.wire = wire
        self.outside = outside  # holds what is printed outside every call
        self.real = real

    buffer = property(lambda self: self)

    def write(self, text):
        size = len(text)
        if not isinstance(text, str):
            text = bytes(text).decode("utf-8", "replace")
        if self.forked:
            self.real.write(text)
            return size
        call = current.get() or self.outside
        with self.lock:
            if call.partial is None:
                call.partial = {}
            *lines, rest = (call.partial.get(self, "") + text).split("\n")
            call.partial[self] = rest[:MAX_TEXT]
        for line in lines:
            self.wire.log(call, 3, line)
        return size

    def fileno(self):
        return self.real.fileno()  # for subprocesses: their output is the instance's

    def writable(self):
        return True

    def reconfigure(self, **_):
        pass  # scripts set the encoding here; it is UTF-8 already
