"""Plain functions: leader and followers.

What   One thread, the leader, reads the socket and runs the calls itself, one after the other, and sends their
       answers together. When a call turns out slow, the monitor makes another thread the leader; the slow call
       keeps the thread it has.

Why    A quick call costs no thread switch and shares two system calls with its neighbours; a slow one holds up
       nobody for longer than two steps of the monitor. After a slow call the next ones get their own thread
       at once, for as long as calls stay slow.

Holds  - There is one leader, but for the moment in which `promote` hands the lead on.
       - User code runs only inside `guard`: nowhere else can CANCEL break in.
       - Threads: one more than calls, and the monitor.

Fails  Code that waits in C does not see the interrupt. Then no `cancelled` is sent, and the host kills the process.
"""

import sys
import threading
import time
from _thread import allocate_lock, get_ident, start_new_thread

from .context import Answer, Context, current, has, octets, trace
from .link import BACKLOG, DATA, DONE, OUTSIDE, Interrupted, Worker, die, run_loop

STEP = 0.002  # of the monitor: a call that it sees twice is slow
WARY = 32  # calls given a thread of their own, at once, after a slow one


def interrupt(thread, exception):
    """Makes `thread` raise `exception` at the next bytecode that looks for it; None takes it back."""
    from ctypes import c_ulong, py_object, pythonapi

    pythonapi.PyThreadState_SetAsyncExc(c_ulong(thread), py_object(exception) if exception else py_object())


class Follower:
    """A thread. It leads, or still serves its call after another was promoted, or waits at its gate to lead."""

    def __init__(self):
        self.gate = allocate_lock()
        self.gate.acquire()


class Threads(Worker):
    def __init__(self, wire, function, init):
        super().__init__(wire, function, init)
        self.leader = Follower()
        self.waiting = []  # followers at their gates
        self.running = None  # the call the leader runs
        self.wary = 0
        self.parked = False  # the monitor waits for `bell`
        self.bell = allocate_lock()
        self.bell.acquire()
        self.loop = None  # for what is asynchronous in a plain function
        self.loop_lock = threading.Lock()
        self.push = wire.flush

    def run(self, ready):
        # So long the monitor or a new leader waits for the GIL while a call computes. While all
        # calls are quick nobody waits for it, and nothing is switched.
        sys.setswitchinterval(0.001)
        ready()
        self.wire.posted = self.posted
        start_new_thread(self.or_die, (self.watch,))
        self.or_die(self.work, self.leader)

    def or_die(self, function, *arguments):
        try:
            function(*arguments)
        except BaseException as error:
            die(trace(error, whole=True))

    def work(self, me):
        """The life of a thread, which begins as the leader."""
        queue, flush = self.queue, self.wire.flush
        while True:
            leading = True
            while leading:
                if queue:
                    leading = self.serve(queue.popleft(), me)
                    continue
                flush()
                if self.stopping:
                    self.finish(me)
                self.receive()
            flush()
            if self.stopping:
                self.finish(me)
            with self.lock:
                self.waiting.append(me)
            me.gate.acquire()

    def promote(self):
        """Makes another thread the leader; the caller holds `lock`."""
        before = self.leader
        self.running = None
        if self.waiting:
            self.leader = self.waiting.pop()
            self.leader.gate.release()
            return
        self.leader = Follower()
        try:
            start_new_thread(self.or_die, (self.work, self.leader))
        except RuntimeError:  # no thread to be had: the others wait for this call
            self.leader = before

    def follow(self, me):
        with self.lock:
            if self.leader is me:
                self.promote()

    def serve(self, call, me):
        """Runs one call to its end: → whether this thread still leads."""
        began = 0
        if self.wary:  # calls were slow lately: do not wait for the monitor to find that this one is, too
            self.wary -= 1
            began = time.monotonic()
            self.follow(me)
        if self.leader is me:
            # Before the look at `parked`. The monitor sets `parked` before its last look at
            # `running`: so one of the two sees the other.
            self.running = call
            if self.parked:
                self.ring()
        current.set(call)
        number, context = call.number, Context(call, self)
        answer = error = None
        if self.model and self.model.early(call) and not call.cancelled:
            _, error = self.guard(call, self.model.prepare, call)
        if self.start and error is None and not call.cancelled:
            self.enter(call, context)
        if error is None and not call.cancelled:
            answer, error = self.guard(call, self.main, context)
        chunks = self.conclude(call, answer, error)
        answer = error = None  # a traceback holds this frame: together they would be a cycle
        if chunks is not None:
            self.follow(me)  # it is the leader who reads credit
            self.stream(call, chunks)
        current.set(None)
        if call.holds:  # cancelled
            self.wire.flush()
            self.discard(call.context)
        del self.calls[number]
        if began and time.monotonic() - began > STEP / 2:
            self.wary = WARY
        # The monitor promotes under this lock, and only the call that it finds in `running`. So
        # either it was first and this thread leads no longer, or it finds that the call is gone.
        with self.lock:
            leading = self.leader is me
            if leading:
                self.running = None
        return leading

    def enter(self, call, context):
        """Gives the call a Context: one from the pool or a new one."""
        error = None
        try:
            made = self.contexts.pop()
        except IndexError:
            made, error = self.guard(call, self.start)
            if call.cancelled and made is None:
                return
        call.context = context.context = made
        context.start_error = error
        call.holds = error is None

    def discard(self, context):
        try:
            if self.stop:
                self.hook(self.stop, context)
        except BaseException as error:
            self.wire.log(OUTSIDE, 2, trace(error))

    def hook(self, hook, *arguments):
        value = hook(*arguments)
        return self.wait_for(value) if has(value, "__await__") else value

    def guard(self, call, function, *arguments):
        """Runs user code so that CANCEL can break into it: → (value, error).

        The interrupt must hit neither our own code nor another call. Three things see to that:
        it is sent under `lock`, only to a call that is `open`, and once per call. So when `open`
        was put out under `lock`, it was never sent, or was raised already, or is on its way, and
        then it is taken back. Wherever in here it is raised, it is caught by the outer `except`
        at the latest, and there is no second one.
        """
        value = error = None
        try:
            try:
                call.thread = get_ident()
                call.open = True
                if not call.cancelled:  # after `open`; whoever cancels does it the other way round
                    value = function(*arguments)
            except BaseException as raised:
                error = raised
            with self.lock:
                call.open = False
            if call.interrupted:
                interrupt(call.thread, None)
        except Interrupted:
            call.open = False
        if type(value) is not Answer and has(value, "__await__"):
            try:  # not open: it is its task that is cancelled, and then this wait ends by itself
                value = self.wait_for(value, call)
            except BaseException as raised:
                value, error = None, raised
        return value, error

    def break_in(self, call):
        if call.open and not call.interrupted:
            call.interrupted = True
            interrupt(call.thread, Interrupted)
        if call.task:
            self.loop.call_soon_threadsafe(call.task.cancel)

    def stream(self, call, chunks):
        if has(chunks, "__aiter__"):
            self.end_stream(call, self.wait_for(self.relay(call, chunks), call))
            return
        error = None
        while error is None:
            chunk, error = self.guard(call, next, chunks, DONE)
            if chunk is DONE or call.cancelled:
                break
            if error is None:
                try:
                    self.send_chunk(call, chunk)
                except BaseException as raised:
                    error = raised
        try:
            if has(chunks, "close"):
                chunks.close()  # a generator's `finally` runs now, not when it is collected
        except BaseException as raised:
            error = error or raised
        self.end_stream(call, error)

    def send_chunk(self, call, chunk):
        data = memoryview(octets(chunk))
        while data:
            gate = allocate_lock()
            gate.acquire()
            amount = self.spend(call, len(data), gate.release)
            if amount:
                self.wire.post(DATA, call.number, data[:amount])
                self.wire.flush()
                data = data[amount:]
            else:
                gate.acquire()

    def wait_for(self, awaitable, call=OUTSIDE):
        """Runs an awaitable on the background loop and waits until it has really ended."""
        with self.loop_lock:
            if self.loop is None:
                from asyncio import new_event_loop

                self.loop = new_event_loop()
                start_new_thread(run_loop, (self.loop,))
        gate = allocate_lock()
        gate.acquire()
        outcome = []

        async def drive():
            try:
                outcome.append((await awaitable, None))
            except BaseException as error:
                outcome.append((None, error))
            gate.release()

        def launch():
            task = self.loop.create_task(drive())
            if call is not OUTSIDE:
                call.task = task
                if call.cancelled:  # after `task`; whoever cancels does it the other way round
                    self.loop.call_soon(task.cancel)  # not before it has begun, else `drive` never would

        self.loop.call_soon_threadsafe(launch)
        gate.acquire()
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    def finish(self, me):
        """At STOP, when no call is left. The new leader reads on: the link may end meanwhile."""
        with self.lock:
            if self.calls or self.finishing:
                return
            self.finishing = True
            if self.leader is me:
                self.promote()
        while self.contexts:
            self.discard(self.contexts.pop())
        self.leave()

    def posted(self):
        """A line was logged. Who runs user code never sends: an interrupt in the middle of that
        would tear a frame. The line leaves with the call's answer, or the monitor sends it."""
        if self.parked:
            self.ring()
        while len(self.wire.out) > BACKLOG:
            time.sleep(STEP / 2)
            self.ring()

    def ring(self):
        try:
            self.bell.release()  # one step in C: no interrupt comes in between
        except RuntimeError:
            pass  # rung already

    def watch(self):
        """The monitor: finds the slow call, promotes, and sends what waits behind a slow call.

        Answers of finished calls may lie in `out` while the leader runs the next one. They leave
        with the next step here, which is also the one that promotes if that call is slow.
        """
        seen = None
        idle = 0
        while True:
            time.sleep(STEP)
            call = self.running
            if call is not None and call is seen:
                with self.lock:
                    if self.running is call:  # not ended since; see `serve`
                        self.promote()
                        self.wary = WARY if self.concurrency > 1 else 0
                call = None
                import ctypes  # noqa: F401  early, for `interrupt`: an import takes long beside a call that computes
            seen = call
            idle = 0 if call or self.wire.out else idle + 1
            self.wire.flush()
            if idle > 25:
                idle = 0
                self.parked = True
                if self.running is None and not self.wire.out:
                    self.bell.acquire()
                self.parked = False
