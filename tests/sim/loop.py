"""An asyncio event loop in virtual time whose schedule is a pure function of a seed.

Code runs unchanged in it: timers fire in order of their time without anybody waiting, and there is no outside world (sockets, threads,
children and signals raise `RealIO`). Every callback belongs to an *actor*, which stands for a process: a context variable that tasks
and timers inherit. Inside an actor callbacks keep their order, as asyncio promises; between actors the seed decides who goes next.
An actor can be killed (all that belongs to it vanishes) and frozen (it stands still while timers expire, and wakes up later).
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from typing import Any, Final, NoReturn

import msgspec

ACTOR: Final[contextvars.ContextVar[int]] = contextvars.ContextVar("actor", default=0)
"""Actor 0 is the world itself: the network and the servers. It is never killed."""


class SimError(BaseException):
    """The simulation itself has come to an end; no code under test may swallow it."""


class Killed(SimError):
    """The calling actor is dead: nothing it does from here on counts."""


class Deadlock(SimError):
    """Nothing can run any more."""


class StepLimit(SimError):
    """The schedule does not come to an end."""


class RealIO(SimError):
    """Something asked for the outside world."""


class _Task(asyncio.Task[Any]):
    """Sets of tasks iterate by hash: a counter instead of an address keeps their order the same in every process."""

    _number = 0

    def __hash__(self) -> int:
        # counted when it is first asked for, which is a moment of the schedule like any other, and never for most futures
        if not self._number:
            self._number = _loop_of(self).number()
        return self._number


class _Future(asyncio.Future[Any]):
    """The same of futures."""

    _number = 0

    def __hash__(self) -> int:
        if not self._number:
            self._number = _loop_of(self).number()
        return self._number


def _loop_of(future: asyncio.Future[Any]) -> SimLoop:
    loop = future.get_loop()
    assert isinstance(loop, SimLoop)
    return loop


class _Handle(msgspec.Struct, eq=False):
    """A callback that waits for its turn: what asyncio asks of a handle, without what it keeps for debugging."""

    callback: Callable[..., object]
    args: tuple[Any, ...]
    context: contextvars.Context
    actor: int
    when_s: float
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.when_s


class SimLoop(asyncio.BaseEventLoop):
    """The loop. `digest` sums up everything that happened: two runs of one seed must agree in it."""

    def __init__(self, rng: random.Random, *, steps_max: int = 200_000, time_max_s: float = 100_000.0) -> None:
        super().__init__()
        self._rng, self._steps_max, self._time_max_s = rng, steps_max, time_max_s
        self._now, self._now_us = 0.0, 0
        self._count = 0
        self._tasks: list[asyncio.Task[Any]] = []
        """All of them: what is collected early runs its `finally` blocks at a moment nobody chose."""
        self.steps = 0
        self.digest = 0
        self.dead: set[int] = set()
        self.frozen: set[int] = set()
        self.failures: list[dict[str, Any]] = []
        self._world = contextvars.copy_context()
        self._queues: defaultdict[int, deque[_Handle]] = defaultdict(deque)
        self._ready_actors: list[int] = []
        self._timers: list[tuple[float, int, _Handle]] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    def number(self) -> int:
        """Count up: for hashes and for the order of timers of one instant."""
        self._count += 1
        return self._count

    def note(self, text: str) -> None:
        """Let a fact count in the digest."""
        self.digest = zlib.crc32(text.encode(), self.digest)

    def time(self) -> float:
        return self._now

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:  # type: ignore[override]  # of coroutines alone
        task = _Task(coro, loop=self, **options)
        self._tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    # the next three run for every step, so each does the whole of it by itself

    def call_soon(self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> Any:
        if context is None:
            context = contextvars.copy_context()
        actor = context.get(ACTOR, 0)
        handle = _Handle(callback, args, context, actor, self._now)
        if actor not in self.dead:
            queue = self._queues[actor]
            if not queue and actor not in self.frozen:
                self._ready_actors.append(actor)
            queue.append(handle)
        return handle

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> Any:
        if context is None:
            context = contextvars.copy_context()
        handle = _Handle(callback, args, context, context.get(ACTOR, 0), when)
        self._count += 1
        heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> Any:
        if context is None:
            context = contextvars.copy_context()
        when = self._now + delay if delay > 0 else self._now
        handle = _Handle(callback, args, context, context.get(ACTOR, 0), when)
        self._count += 1
        heappush(self._timers, (when, self._count, handle))
        return handle

    def expire_at(self, when: float, actor: int, callback: Callable[..., object], *args: Any) -> None:
        """Have a timer of another actor expire: if it stands still then, it hears of that when it wakes up."""
        self._count += 1
        heappush(self._timers, (when, self._count, _Handle(callback, args, self._world, actor, when)))

    def kill(self, actor: int) -> None:
        """Let an actor vanish between two of its callbacks."""
        self.dead.add(actor)
        self.frozen.discard(actor)
        self._queues.pop(actor, None)
        if actor in self._ready_actors:
            self._ready_actors.remove(actor)

    def freeze(self, actor: int) -> None:
        """Let an actor stand still, as SIGSTOP does."""
        if actor not in self.dead:
            self.frozen.add(actor)
            if actor in self._ready_actors:
                self._ready_actors.remove(actor)

    def thaw(self, actor: int) -> None:
        """Let a frozen actor go on; whatever came meanwhile is there at once."""
        if actor in self.frozen:
            self.frozen.discard(actor)
            if self._queues.get(actor):
                self._ready_actors.append(actor)

    def unnoticed(self) -> list[BaseException]:
        """Return what ended tasks and nobody has looked at. They are all kept, so nothing else would report it."""
        ended = [task for task in self._tasks if task.done() and task._log_traceback]  # set by `stop`
        return [error for task in ended if (error := task.exception()) is not None and not isinstance(error, SimError)]

    def forget(self) -> None:
        """Drop what is left after the checks, without noise, and close."""
        asyncio.set_event_loop(self)  # `finally` blocks ask for one: asyncio would make a real one for them, which nobody closes
        for task in self._tasks:
            if task.done():
                continue
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine: Any = task.get_coro()
            try:
                coroutine.close()
            except (SimError, RuntimeError):
                continue  # a `finally` block that wanted to wait, or to use a port of a dead actor
        asyncio.set_event_loop(None)
        self._queues.clear()
        self._timers.clear()
        self._ready_actors.clear()
        self.close()

    def _run_once(self) -> None:
        """Run callbacks until somebody stops the loop; asyncio would ask after each of them."""
        ready, queues, draw = self._ready_actors, self._queues, self._rng.random
        while not self._stopping:  # set by `stop`
            if not ready:
                self._advance()
            actor = ready[0] if len(ready) == 1 else ready[int(draw() * len(ready))]
            queue = queues[actor]
            handle = queue.popleft()
            if not queue:
                ready.remove(actor)
            if handle.is_cancelled:
                continue
            self.steps += 1
            if self.steps > self._steps_max:
                raise StepLimit(f"{self._steps_max} steps and no end, at {self._now:.3f} s")
            self.digest = (self.digest * 1_000_003 + actor * 7919 + self._now_us) & 0xFFFFFFFF
            try:
                handle.context.run(handle.callback, *handle.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001  (as asyncio does: it is reported, and the loop goes on)
                self.call_exception_handler({"message": f"exception in callback {handle.callback}", "exception": error})

    def _advance(self) -> None:
        """Move the time to the next timer that still means something."""
        timers, queues, ready = self._timers, self._queues, self._ready_actors
        while timers and (not ready or timers[0][0] <= self._now):
            when, _, handle = heappop(timers)
            actor = handle.actor
            if handle.is_cancelled:
                continue
            if when > self._now:
                self._now, self._now_us = when, int(when * 1e6)
            if actor in self.dead:
                continue
            queue = queues[actor]
            if not queue and actor not in self.frozen:
                ready.append(actor)
            queue.append(handle)
        if not ready:
            raise Deadlock(f"nothing can run any more at {self._now:.3f} s, step {self.steps}")
        if self._now > self._time_max_s:
            raise StepLimit(f"no end after {self._time_max_s:g} s of virtual time")

    def _process_events(self, event_list: object) -> None:
        """There is no selector."""

    def _write_to_self(self) -> None:
        """There is no selector to wake."""


def _no_outside_world(*_: object, **__: object) -> NoReturn:
    raise RealIO("real I/O, a thread or a signal was asked for inside the simulation")


for _name in (
    *("call_soon_threadsafe", "run_in_executor", "getaddrinfo", "getnameinfo", "create_connection", "create_server", "create_datagram_endpoint"),
    *("create_unix_connection", "create_unix_server", "subprocess_exec", "subprocess_shell", "connect_read_pipe", "connect_write_pipe"),
    *("add_reader", "add_writer", "sock_recv", "sock_sendall", "sock_connect", "sock_accept", "add_signal_handler"),
):
    setattr(SimLoop, _name, _no_outside_world)
