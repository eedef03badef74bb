"""Asynchronous functions: one asyncio loop, a task per call.

All that was posted in one turn of the loop is sent together. The loop's thread is also the one that reads: code
that computes for long without `await` holds up the other calls and CANCEL alike, and then the host kills the process.
"""

import os
import time
from _thread import get_ident

from .context import Context, current, has, trace
from .link import BACKLOG, MAX_FRAME, OUTSIDE, Worker, die, run_loop

PAUSE = 0.001  # while too much waits to be sent


class Loop(Worker):
    def __init__(self, wire, function, init):
        from asyncio import new_event_loop

        super().__init__(wire, function, init)
        self.loop = new_event_loop()
        self.thread = get_ident()
        self.unsent = b""
        self.scheduled = self.writing = False
        self.push = self.posted

    def run(self, ready):
        ready()
        self.socket.setblocking(False)
        self.wire.posted = self.posted
        self.loop.add_reader(self.socket.fileno(), self.readable)
        run_loop(self.loop)

    def readable(self):
        try:
            self.receive()
            while self.queue:
                call = self.queue.popleft()
                call.task = self.loop.create_task(self.serve(call))
            if self.stopping:
                self.finish_soon()
            if self.wire.out:
                self.posted()
        except BaseException as error:
            die(trace(error, whole=True))

    async def serve(self, call):
        current.set(call)
        number, context = call.number, Context(call, self)
        answer = error = None
        call.open = True
        try:
            if self.model and self.model.early(call) and not call.cancelled:
                waiting = self.model.prepare(call)
                if waiting is not None:
                    await waiting
            if self.start and not call.cancelled:
                await self.enter(call, context)
            if not call.cancelled:
                answer = await self.main(context)
        except BaseException as raised:
            error = raised
        chunks = self.conclude(call, answer, error)
        answer = error = None
        if chunks is not None:
            self.end_stream(call, await self.relay(call, chunks))
        call.open = False
        self.posted()
        current.set(None)
        if call.holds:  # cancelled
            call.task.uncancel()
            await self.discard(call.context)
        del self.calls[number]
        if self.stopping:
            self.finish_soon()

    async def enter(self, call, context):
        if self.contexts:
            call.context = context.context = self.contexts.pop()
        else:
            try:
                call.context = context.context = await self.hook(self.start)
            except BaseException as error:
                context.start_error = error
        call.holds = context.start_error is None

    async def discard(self, context):
        try:
            if self.stop:
                await self.hook(self.stop, context)
        except BaseException as error:
            self.wire.log(OUTSIDE, 2, trace(error))

    async def call_hook(self, hook, *arguments):
        value = hook(*arguments)
        return await value if has(value, "__await__") else value

    def hook(self, hook, *arguments):
        made = self.call_hook(hook, *arguments)
        return made if self.loop.is_running() else self.loop.run_until_complete(made)

    def break_in(self, call):
        if call.open:  # a task cancelled before its first step would never come to answer
            call.task.cancel()

    def finish_soon(self):
        if not self.calls and not self.finishing:
            self.finishing = True
            self.finisher = self.loop.create_task(self.finish())  # held: the loop does not hold its tasks

    async def finish(self):
        while self.contexts:
            await self.discard(self.contexts.pop())
        self.socket.setblocking(True)
        self.wire.out.insert(0, self.unsent)
        self.unsent = b""
        self.leave()

    def posted(self):
        """Sends once per turn of the loop what was posted in it."""
        here = get_ident() == self.thread
        if not self.scheduled:
            self.scheduled = True
            (self.loop.call_soon if here else self.loop.call_soon_threadsafe)(self.flush)
        while len(self.wire.out) > BACKLOG or len(self.unsent) > MAX_FRAME:
            time.sleep(PAUSE)
            if here:
                self.flush()

    def flush(self):
        self.scheduled = False
        self.unsent += self.wire.take()
        try:
            if self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            os._exit(1)
        if bool(self.unsent) != self.writing:
            self.writing = not self.writing
            if self.writing:
                self.loop.add_writer(self.socket.fileno(), self.flush)
            else:
                self.loop.remove_writer(self.socket.fileno())
