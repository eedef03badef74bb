"""The Python worker: runs one function for the host, over one Unix socket.

What   Dials the host (EXECUTOR_LINK), says HELLO, loads the function that INIT names, says READY, and then answers
       CALL with RESULT or ERROR until STOP. The protocol is in ../../README.md. Only what must be Python is here:
       header rules, charsets, limits on time and on log length are the host's.

Where  executor_worker/context.py what the function sees; link.py frames and the life of a call;
       threads.py how a plain `def main` is run; loop.py how an `async def main` is;
       state.py the state of an entity, events.py and crdt.py its other models.
       A package beside this file, for its bytecode is kept, and that of a script is not: 5 ms at each start.

Why    Little is imported before it is needed, and `_socket` instead of `socket`: the first call waits for all of it.

Fails  A function that can not be loaded: FAILED, exit 1. The socket ends: exit at once. Anything wrong in here:
       a line on stderr, exit 1, and the host replaces the instance.
"""

import json
import os
import sys
import threading  # noqa: F401  here: whichever thread imports it first is taken for the main one
import time
from _socket import AF_UNIX, SOCK_STREAM, socket

from executor_worker.context import Output, dumps_loosely
from executor_worker.link import FAILED, HEADER, HELLO, INIT, MAX_FRAME, OUTSIDE, READY, Wire, die, failure, summary
from executor_worker.loop import Loop
from executor_worker.threads import Threads


class Refused(Exception):
    """The function can not be served: the arguments are those of `failure`."""


def load(directory, entrypoint):
    """The entrypoint as a module."""
    from importlib.util import module_from_spec, spec_from_file_location

    path = os.path.join(directory, entrypoint)
    if not os.path.isfile(path):
        raise Refused("absent", f"Failed to load entrypoint, file {entrypoint} does not exist.")
    folder, file = os.path.split(path)
    sys.path[0] = folder  # it was this file's
    if folder != directory.rstrip("/"):
        sys.path.insert(1, directory)
    name = file.removesuffix(".py")
    spec = spec_from_file_location(name, path)
    if spec is None:
        raise Refused("load", f"{entrypoint} is not a .py file")
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        place = f"{os.path.relpath(error.filename or path, directory)}, line {error.lineno}"
        raise Refused("syntax", f"{error.msg} ({place})", error) from None
    except BaseException as error:
        raise Refused("load", summary(error), error) from None
    if not callable(getattr(module, "main", None)):
        raise Refused("signature", "Function signature invalid. Did you forget to export a 'main' function?")
    return module


def describe(function):
    """The payload of READY."""
    info = getattr(function, "info", None)
    info = {"doc": info} if isinstance(info, str) else info if isinstance(info, dict) else None
    hooks = [name for name in ("init", "start", "stop", "migrate") if callable(getattr(function, name, None))]
    if isinstance(getattr(function, "events", None), dict):
        hooks.append("events")
    return json.dumps({"info": json.loads(dumps_loosely(info)), "hooks": hooks}).encode()


def read_init(connection):
    """The one frame that is read here; the host sends nothing more before READY."""

    def exactly(count):
        data = b""
        while len(data) < count:
            piece = connection.recv(count - len(data))
            if not piece:
                os._exit(1)  # refused
            data += piece
        return data

    length, kind, _ = HEADER.unpack(exactly(9))
    if kind != INIT or not 5 <= length <= MAX_FRAME:
        die(f"a frame of type {kind} in place of INIT")
    return json.loads(exactly(length - 5))


def isolate(wire):
    """Processes that the function makes have no part in the link, and do not run this file again."""

    def forked():
        Output.forked = True
        wire.posted = wire.out.clear
        wire.socket.close()  # else the host would not see this process end

    os.register_at_fork(after_in_child=forked)
    global __file__
    del __file__  # multiprocessing would import it in each child that it spawns


def main():
    link, token = os.environ.pop("EXECUTOR_LINK", None), os.environ.pop("EXECUTOR_TOKEN", "")
    if not link:
        die("EXECUTOR_LINK is not set: the executor starts this program")
    connection = socket(AF_UNIX, SOCK_STREAM)
    try:
        connection.connect(link)
    except OSError as error:
        die(f"{link}: {error}")
    wire = Wire(connection)
    version = ".".join(map(str, sys.version_info[:3]))
    hello = {"protocol": 1, "token": token, "runtime": "python", "version": version, "pid": os.getpid()}
    wire.post(HELLO, 0, json.dumps(hello).encode())
    wire.flush()
    init = read_init(connection)
    directory = os.path.abspath(init["directory"])
    os.environ.update(init["env"])
    if "TZ" in init["env"]:
        time.tzset()
    try:
        os.chdir(directory)
    except OSError:
        pass  # its files can still be opened by their whole path
    sys.argv = [init["entrypoint"]]
    sys.dont_write_bytecode = True  # the function's folder is not ours, and may be watched for changes
    isolate(wire)
    sys.stdout, sys.stderr = Output(wire, OUTSIDE, sys.__stdout__), Output(wire, OUTSIDE, sys.__stderr__)
    try:
        function = load(directory, init["entrypoint"])
        code = getattr(function.main, "__code__", None)
        asynchronous = code is not None and code.co_flags & 0x80  # inspect.CO_COROUTINE; inspect itself costs 8 ms
        worker = (Loop if asynchronous and not init["info_only"] else Threads)(wire, function, init)
        if worker.model and worker.model.refused:
            raise Refused("signature", worker.model.refused)
        if callable(getattr(function, "init", None)) and not init["info_only"]:
            try:
                worker.hook(function.init)
            except BaseException as error:
                raise Refused("init", summary(error), error) from None
    except Refused as refused:
        wire.end_lines(OUTSIDE)
        wire.post(FAILED, 0, failure(*refused.args))
        wire.flush()
        os._exit(1)

    def ready():
        wire.post(READY, 0, describe(function))
        wire.flush()

    worker.run(ready)


if __name__ == "__main__":
    main()
