"""The link: frames in and out, and the life of a call as far as both ways of running one share it.

Holds  - One thread reads the socket and touches the queue: the leader, or the loop's.
       - Frames enter `Wire.out` whole and in order; one thread at a time takes all there are and sends them.
       - A call's Context is back in the pool before its answer is on the wire, so that there are never more
         Contexts than calls the host may have open.
       - The host has at most `concurrency` calls open, which bounds calls, queue and Contexts. Bodies are bounded
         by credit and by the host; log lines by BACKLOG: who logs faster than the host reads waits.

Fails  The socket ends: the process exits at once. A frame breaks the protocol: a line on stderr, and exit.
"""

import json
import os
import sys
import threading
from _thread import allocate_lock
from collections import deque
from struct import Struct

from .context import JSON_TYPE, MAX_TEXT, Answer, dumps, has, lowered, octets, trace

HELLO, INIT, READY, FAILED, CALL, RESULT, ERROR = range(1, 8)
DATA, END, CREDIT, LOG, CANCEL, STOP, STOPPED = range(8, 15)
HEADER, RESULT_HEADER, U32 = Struct(">IBI"), Struct(">IBII"), Struct(">I")
MAX_FRAME = 33_554_432
PIECE = 65_536  # of a streamed body
WINDOW = 262_144  # bytes of DATA before credit is needed; also the size of one read
BACKLOG = 512  # frames waiting to be sent

JSON_HEADERS = {"content-type": JSON_TYPE}  # of most answers
NOTHING = "Return statement missing. return context.res.empty() if no response is expected."

# Reads one value at an index: json.loads without its checks, which cost more than a small head.
scan = json.JSONDecoder().scan_once
DONE = object()  # an iterator's end


class Interrupted(BaseException):
    """Raised where a cancelled call runs or waits."""


def failure(kind, message, error=None):
    """The payload of ERROR and FAILED."""
    stack = trace(error) if error else ""
    return dumps({"kind": kind, "message": message[:MAX_TEXT], "stack": stack[:MAX_TEXT]}).encode("utf-8", "replace")


def summary(error):
    try:
        text = str(error)
    except Exception:  # its own `__str__` is wrong, and this here is not user code any more
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Call:
    """One call, from CALL to what ends it. The defaults stand here: most calls need no other."""

    body = stored = b""
    pieces = None  # of a streamed request body, while it comes
    owed = 0  # credit for it not given yet
    context = None  # what `start` returned
    holds = False  # ... and it is neither back in the pool nor thrown away
    partial = None  # unfinished lines of native output
    entity = None  # its state, if RESULT must ask it what to say
    change = None  # of the state: action, kind, bytes
    extra = None  # ... and what else RESULT says of it
    settled = False  # its RESULT is made
    cancelled = False
    open = False  # user code runs for it and may be interrupted
    interrupted = False  # ... and was; once only
    thread = 0  # where it runs, or
    task = None  # what runs it on an asyncio loop
    credit = WINDOW
    wake = None  # called once, when credit or CANCEL comes for a stream that waits

    def __init__(self, number, head):
        self.number = number  # 0 after the end: later output belongs to no call
        self.head = head


OUTSIDE = Call(0, {})


class Wire:
    """The sending half of the link."""

    def __init__(self, connection):
        self.socket = connection
        self.out = []
        self.sending = allocate_lock()
        self.posted = self.flush  # what makes a log line leave; each kind of worker has its own

    def post(self, kind, number, payload=b""):
        self.out.append(HEADER.pack(len(payload) + 5, kind, number) + payload)

    def log(self, call, level, text):
        self.post(LOG, call.number, bytes((level,)) + text[:MAX_TEXT].encode("utf-8", "replace"))
        self.posted()

    def end_lines(self, call):
        """Native output without a newline ends with its call."""
        partial, call.partial = call.partial, None
        for text in (partial or {}).values():
            if text:
                self.log(call, 3, text)

    def take(self):
        """All frames that wait. One taker at a time; others may append at any moment."""
        frames = self.out[:]
        del self.out[: len(frames)]
        return b"".join(frames)

    def flush(self):
        if self.out:
            with self.sending:
                try:
                    self.socket.sendall(self.take())
                except OSError:
                    os._exit(1)


def die(reason):
    os.write(2, f"executor worker: {reason}\n".encode("utf-8", "replace"))
    os._exit(1)


class Worker:
    """The receiving half, and what both ways of running a function share."""

    def __init__(self, wire, function, init):
        self.wire = wire
        self.socket = wire.socket
        self.main = function.main
        self.start = getattr(function, "start", None)
        self.stop = getattr(function, "stop", None)
        self.concurrency = init["concurrency"]
        self.response_limit = init["limits"]["response"]
        self.init = init
        self.function = function
        self.model = None  # of the state; imported for those who have one
        if init.get("state"):
            self.declare()
        self.lock = threading.Lock()  # over who leads, whether a call is open, and credit
        self.calls = {}
        self.queue = deque()
        self.contexts = []  # free ones
        self.rest = b""  # of a read: the beginning of a frame
        self.large = None  # a large frame that is being filled
        self.filled = 0
        self.stopping = self.finishing = False

    def declare(self):
        from .state import Model

        self.model = Model(self.init, self.function)
        self.model.report = lambda call, text: self.wire.log(call, 2, text)

    def state(self, call):
        """`context.state`. An older host says nothing in INIT: then the first call with state declares it."""
        if self.model is None:
            self.declare()
        return self.model.make(call)

    def receive(self):
        """One read; takes every frame that is complete with it."""
        data = self.read()
        if data is None:
            return
        position, end = 0, len(data)
        while end - position >= 9:
            length, kind, number = HEADER.unpack_from(data, position)
            if not 5 <= length <= MAX_FRAME:
                die(f"a frame of {length} bytes")
            after = position + 4 + length
            if after > end:
                if length > PIECE:  # filled in place: to join it read by read would copy it each time
                    self.large = bytearray(4 + length)
                    self.filled = end - position
                    self.large[: self.filled] = data[position:]
                    position = end
                break
            if kind == CALL:
                self.take_call(number, data, position + 9, after)
            else:
                self.take_frame(kind, number, bytes(data[position + 9 : after]))
            position = after
        self.rest = bytes(data[position:])

    def read(self):
        """→ bytes that begin with a frame; None: nothing that is of use yet."""
        large = self.large
        try:
            got = self.socket.recv_into(memoryview(large)[self.filled :]) if large else self.socket.recv(WINDOW)
        except BlockingIOError:
            return None
        except OSError:
            got = None
        if not got:
            os._exit(0 if self.finishing else 1)
        if not large:
            return self.rest + got if self.rest else got
        self.filled += got
        if self.filled < len(large):
            return None
        self.large = None
        return memoryview(large)

    def take_call(self, number, data, position, end):
        if number in self.calls:
            die(f"call {number} came twice")
        start = position + 4
        position = start + U32.unpack_from(data, position)[0]
        head, _ = scan(str(data[start:position], "utf-8"), 0)
        call = self.calls[number] = Call(number, head)
        state = head.get("state")
        if state:
            start, position = position, position + state["length"]
            call.stored = bytes(data[start:position])
        call.body = bytes(data[position:end])
        if head.get("stream"):
            call.pieces = [call.body]
        else:
            self.queue.append(call)

    def take_frame(self, kind, number, payload):
        if kind == STOP:
            self.stopping = True
            return
        if kind not in (DATA, END, CREDIT, CANCEL):
            die(f"a frame of type {kind}")
        call = self.calls.get(number)
        if call is None:
            return  # it crossed the end of its call
        if kind == CANCEL:
            if call.pieces is not None:
                self.collected(call, broken=True)
            self.cancel(call)
        elif kind == CREDIT:
            self.allow(call, U32.unpack(payload)[0])
        elif call.pieces is None:
            return
        elif kind == DATA:
            call.pieces.append(payload)
            call.owed += len(payload)
            if call.owed >= PIECE:
                self.wire.post(CREDIT, number, U32.pack(call.owed))
                call.owed = 0
        else:
            self.collected(call, broken=bool(payload))

    def collected(self, call, broken):
        """A streamed request body has ended. If it broke off, the call is served without running anything."""
        call.cancelled = broken
        call.body = b"" if broken else b"".join(call.pieces)
        call.pieces = None
        self.queue.append(call)

    def cancel(self, call):
        with self.lock:
            call.cancelled = True
            self.break_in(call)
            wake, call.wake = call.wake, None
        if wake:
            wake()

    def allow(self, call, amount):
        with self.lock:
            call.credit += amount
            wake, call.wake = call.wake, None
        if wake:
            wake()

    def spend(self, call, wanted, wake):
        """Takes credit: → for how many bytes. At 0, `wake` is called when it is time to ask again."""
        with self.lock:
            if call.cancelled:
                raise Interrupted
            amount = min(wanted, PIECE, call.credit)
            call.credit -= amount
            if not amount:
                call.wake = wake
            return amount

    def conclude(self, call, answer, error):
        """Posts what ends the call, or begins its body: → an iterator over what is still to be sent, or None."""
        call.settled = True
        cancelled = call.cancelled  # looked at once: a CANCEL from here on came too late
        body = chunks = None
        if call.entity is not None and type(answer) is Answer and not cancelled:
            try:
                call.entity._finish()
            except Exception as raised:
                error = raised
        if cancelled:
            fault = failure("cancelled", "cancelled")
        elif error is not None:
            fault = failure("raised", summary(error), error)
        elif answer is None:
            fault = failure("nothing", NOTHING)
        elif type(answer) is not Answer:
            fault = failure("response", f"the function returned {type(answer).__name__}, not a response of context.res")
        elif len(answer.body) > self.response_limit:
            fault = failure("response", f"{len(answer.body)} bytes are over the limit of {self.response_limit}")
        else:
            body, chunks = answer.body, answer.chunks
            large = chunks is None and len(body) > PIECE
            try:
                head = result_head(answer, call, large or chunks is not None, len(body) if large else None)
            except Exception as raised:  # the function may have written anything into the answer
                body = chunks = None
                fault = failure("response", summary(raised), raised)
        if call.partial:
            self.wire.end_lines(call)
        if call.holds and not cancelled and chunks is None:
            self.release(call)
        if body is None:
            self.wire.post(ERROR, call.number, fault)
            call.number = 0
            return None
        if large:
            chunks, body = iter((body,)), b""
        if call.change:
            body = call.change[2] + body
        header = RESULT_HEADER.pack(9 + len(head) + len(body), RESULT, call.number, len(head))
        self.wire.out.append(header + head + body)
        if chunks is None:
            call.number = 0
        return chunks

    def end_stream(self, call, error):
        """Posts what ends a streamed body."""
        reason = None
        cancelled = call.cancelled
        if cancelled:
            reason = "cancelled"
        elif error is not None:
            reason = summary(error)[:MAX_TEXT]
            self.wire.log(call, 2, trace(error))
        if call.partial:
            self.wire.end_lines(call)
        if call.holds and not cancelled:
            self.release(call)
        self.wire.post(END, call.number, dumps({"error": reason}).encode("utf-8", "replace") if reason else b"")
        call.number = 0

    def release(self, call):
        """Before the answer is posted: the host may send the next call as soon as it has it."""
        call.holds = False
        self.contexts.append(call.context)

    async def relay(self, call, chunks):
        """Sends what an iterator yields, on a loop: → what it raised."""
        from asyncio import get_running_loop, sleep

        loop = get_running_loop()
        plain = not has(chunks, "__aiter__")
        error = None
        try:
            chunks = chunks if plain else aiter(chunks)
            while (chunk := next(chunks, DONE) if plain else await anext(chunks, DONE)) is not DONE:
                data = memoryview(octets(chunk))
                while data:
                    more = loop.create_future()
                    amount = self.spend(call, len(data), lambda: loop.call_soon_threadsafe(settle, more))
                    if amount:
                        self.wire.post(DATA, call.number, data[:amount])
                        self.push()
                        data = data[amount:]
                    else:
                        await more
                if plain:
                    await sleep(0)  # its code does not give way to others by itself
        except BaseException as raised:
            error = raised
        try:  # a generator's `finally` runs now, not when it is collected
            if has(chunks, "aclose"):
                await chunks.aclose()
            elif has(chunks, "close"):
                chunks.close()
        except BaseException as raised:
            error = error or raised
        return error

    def leave(self):
        """After STOP, when every Context is stopped: whatever threads the function still has."""
        self.wire.end_lines(OUTSIDE)
        self.wire.post(STOPPED, 0)
        self.wire.flush()
        for real in (sys.__stdout__, sys.__stderr__):
            try:
                real.flush()
            except (AttributeError, OSError, ValueError):
                pass
        os._exit(0)


def result_head(answer, call, stream, length):
    """The head JSON of RESULT."""
    change, headers = call.change, answer.headers
    if not stream and not change:
        if not headers:
            return b'{"status":%d}' % answer.status
        if headers == JSON_HEADERS:
            return b'{"status":%d,"headers":{"content-type":"application/json"}}' % answer.status
    head = {"status": answer.status, "headers": lowered(headers) if headers else {}}
    if stream:
        head["stream"] = True
    if length is not None:
        head["length"] = length
    if change:
        head["state"] = {"action": change[0], "kind": change[1], "length": len(change[2])}
        if call.extra:
            head["state"].update(call.extra)
    return dumps(head).encode("utf-8", "replace")


def settle(future):
    if not future.done():
        future.set_result(None)


def run_loop(loop):
    from asyncio import set_event_loop

    set_event_loop(loop)
    while True:
        try:
            loop.run_forever()
        except BaseException as error:  # SystemExit, in a task or callback of the function's own
            sys.stderr.write(trace(error) + "\n")
