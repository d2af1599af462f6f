"""Group commit: every caller awaits its own answer; whatever is waiting travels in one call and one commit.

Each lane has a connection and one call in flight. A second lane helps out only when many are waiting, because small calls cost more
than they save; requests of one run never travel in two lanes at once, so they keep their order. A call that fails is sent again with
the same event ids until its callers give up: what had been written is then answered as a duplicate. A call that Postgres refuses is
halved until the request at fault stands alone. A connection that no call has used for a while is closed: most processes wait most of the time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple

from crewlog.events import faults
from crewlog.events.append_call import call
from crewlog.events.append_request import Encoded, encode_request
from crewlog.events.clock import Clock
from crewlog.events.connections import CALL_TIMEOUT_S, SPARE_S, WAIT_S, Connect, explain, is_retryable
from crewlog.events.store import Appended, AppendRequest
from crewlog.schemas.errors import ContractError, OrchestrationError, Unavailable

REQUESTS_PER_CALL_MAX: Final = 256
BYTES_PER_CALL_MAX: Final = 4 * 1024 * 1024
WAITING_PER_LANE: Final = 48
"""How many must wait before one more lane is worth its calls."""
QUEUE_MAX: Final = 10_000

OnCommit = Callable[[int], None]
"""Called after a commit with the highest new position: the moment to poke readers. Must not block."""


class _Waiting(NamedTuple):
    encoded: Encoded
    future: asyncio.Future[Appended]
    deadline: float
    order: Hashable
    """Requests with the same value keep their order: the run, or the first stream of a request outside runs."""


class _Lane:
    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.connection: Any = None
        self.is_needed = False
        """Whether it had anything to do since idle connections were closed last."""
        self.in_flight: frozenset[Hashable] = frozenset()

    def hang_up(self) -> None:
        if self.connection is not None:
            self.connection.terminate()
            self.connection = None


class Appender:
    """The queue in front of `es.append`."""

    def __init__(
        self,
        connect: Connect,
        *,
        actor: str,
        clock: Clock,
        lanes: int = 2,
        queue_max: int = QUEUE_MAX,
        call_timeout_s: float = CALL_TIMEOUT_S,
        wait_s: float = WAIT_S,
        spare_s: float = SPARE_S,
        on_commit: OnCommit | None = None,
    ) -> None:
        self._connect, self._actor, self._clock, self._on_commit = connect, actor, clock, on_commit
        self._queue_max, self._call_timeout_s, self._wait_s, self._spare_s = queue_max, call_timeout_s, wait_s, spare_s
        self._queue: deque[_Waiting] = deque()
        self._closing = False
        self._lanes = [_Lane() for _ in range(lanes)]
        self._idle: list[_Lane] = []
        self._thinning: asyncio.TimerHandle | None = None
        self._tasks = [asyncio.create_task(self._serve(lane)) for lane in self._lanes]

    def submit(self, request: AppendRequest) -> asyncio.Future[Appended]:
        """Queue a request without waiting; the order of submission is the order in the log, within a run.

        Cancelling the future withdraws what is not sent yet. What is in flight may be written all the same: the same request again
        is answered with where it is.

        Raises:
            ContractError: the request is malformed.
            Unavailable: the queue is full, or the appender is closed.
        """
        encoded = encode_request(request)
        if self._closing:
            raise Unavailable(f"append to {request.writes[0].stream}: this process is closing its log")
        queue = self._queue
        if len(queue) >= self._queue_max:
            raise Unavailable(f"append to {request.writes[0].stream}: {self._queue_max} requests are waiting already", retry_after_s=1.0)
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        order = request.writes[0].stream if request.run_id is None else request.run_id.int  # hashes faster than an id
        queue.append(_Waiting(encoded, future, self._clock.monotonic() + self._wait_s, order))
        if self._idle and self._worth_a_lane(busy=len(self._lanes) - len(self._idle)):
            self._idle.pop().wake.set()
        return future

    async def close(self) -> None:
        """Send what is queued, then let go of the connections."""
        self._closing = True
        while self._idle:
            self._idle.pop().wake.set()
        await asyncio.gather(*self._tasks)
        if self._thinning is not None:
            self._thinning.cancel()

    def _thin(self) -> None:
        """Close the connections of lanes that had nothing to do since the last time."""
        for lane in self._idle:
            if not lane.is_needed:
                lane.hang_up()
        for lane in self._lanes:
            lane.is_needed = False
        is_any_left = any(lane.connection is not None for lane in self._lanes)
        self._thinning = None
        if is_any_left:
            self._thin_later()

    def _thin_later(self) -> None:
        if self._thinning is None:
            self._thinning = asyncio.get_running_loop().call_later(self._spare_s, self._thin)

    def _worth_a_lane(self, *, busy: int) -> bool:
        return len(self._queue) >= max(1, busy * WAITING_PER_LANE)

    async def _serve(self, lane: _Lane) -> None:
        try:
            while True:
                if batch := self._take(lane):
                    lane.is_needed = True
                    await self._send(lane, batch)
                    lane.in_flight = frozenset()
                    await asyncio.sleep(0)  # callers that were answered mostly have more to say: let it join the next call
                elif self._closing:
                    return  # what is left waits for a lane that is busy, and goes with that one
                else:
                    lane.wake.clear()
                    self._idle.append(lane)
                    await lane.wake.wait()
                    await asyncio.sleep(0)  # let callers that woke together join this call
        finally:
            lane.hang_up()

    def _take(self, lane: _Lane) -> list[_Waiting]:
        busy = len(self._lanes) - len(self._idle) - 1  # others that work, or have been woken to
        batch: list[_Waiting] = []
        if not self._worth_a_lane(busy=busy):
            return batch
        elsewhere = frozenset().union(*(other.in_flight for other in self._lanes))
        ready = sum(not other.in_flight for other in self._lanes)
        share = -(-len(self._queue) // min(ready, max(1, len(self._queue) // WAITING_PER_LANE)))  # rounded up
        kept_back: list[_Waiting] = []
        size = 0
        queue = self._queue
        while queue and len(batch) < min(share, REQUESTS_PER_CALL_MAX) and size < BYTES_PER_CALL_MAX:
            item = queue.popleft()
            if item.future.done():
                continue  # a caller that gave up before sending costs nothing
            if elsewhere and item.order in elsewhere:
                kept_back.append(item)
            else:
                batch.append(item)
                size += item.encoded.size
        queue.extendleft(reversed(kept_back))
        lane.in_flight = frozenset(item.order for item in batch)
        return batch

    async def _send(self, lane: _Lane, batch: list[_Waiting]) -> None:
        delay = 0.05
        while batch:
            try:
                if lane.connection is None or lane.connection.is_closed():
                    lane.connection = await self._connect()
                    self._thin_later()
                    batch = [item for item in batch if not item.future.done()]
                sent = [item.encoded for item in batch]
                if not sent:
                    return
                if faults.hook is not None:
                    faults.hook("before_log_commit")
                found = await call(lane.connection, sent, self._actor, timeout_s=self._call_timeout_s)
                if faults.hook is not None:
                    faults.hook("after_log_commit")
            except Exception as error:  # noqa: BLE001  (whatever it is, the callers get it)
                if not is_retryable(error, lane.connection):
                    await self._take_apart(lane, batch, error)
                    return
                lane.hang_up()
                batch = self._expire(batch, error)
                await asyncio.sleep(delay * (0.5 + self._clock.fraction() / 2))
                delay = min(delay * 2, 2.0)
            else:
                self._answer(batch, found)
                return

    async def _take_apart(self, lane: _Lane, batch: list[_Waiting], error: Exception) -> None:
        reason = explain(error, f"append to {batch[0].encoded.request.writes[0].stream}")
        if len(batch) > 1 and isinstance(reason, ContractError):
            await self._send(lane, batch[: len(batch) // 2])
            await self._send(lane, batch[len(batch) // 2 :])
            return
        for item in batch:
            if not item.future.done():
                item.future.set_exception(reason)

    def _expire(self, batch: list[_Waiting], error: Exception) -> list[_Waiting]:
        """Give up on whoever has waited long enough, in flight or queued; return what is left of the batch."""
        now = self._clock.monotonic()
        for item in (*batch, *self._queue):
            if item.deadline <= now and not item.future.done():
                stream, why = item.encoded.request.writes[0].stream, error or type(error).__name__
                text = f"append to {stream}: no answer from Postgres for {self._wait_s:g} s ({why}); it may be written, ask again with the same event ids"
                item.future.set_exception(Unavailable(text))
        return [item for item in batch if not item.future.done()]

    def _answer(self, batch: list[_Waiting], found: list[Appended | OrchestrationError]) -> None:
        position = 0
        for item, answer in zip(batch, found, strict=True):
            if isinstance(answer, Appended):
                position = max(position, answer.positions[-1])
            future = item.future
            if future.done():
                continue
            if isinstance(answer, OrchestrationError):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        if self._on_commit is not None and position:
            self._on_commit(position)
