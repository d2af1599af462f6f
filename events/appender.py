"""Group commit: every caller awaits its own answer; whatever is waiting travels in one call and one commit.

Each lane has a connection and one call in flight. Requests of one run share a lane and keep their order. A call that fails is sent
again with the same event ids until its callers give up: what had been written is then answered as a duplicate. A call that Postgres
refuses is halved until the request at fault stands alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from crewlog.events.append_call import SQL, Encoded, answers, arguments
from crewlog.events.append_request import encode_request
from crewlog.events.clock import Clock
from crewlog.events.connections import CALL_TIMEOUT_S, WAIT_S, Connect, explain, fetch, is_retryable
from crewlog.events.store import Appended, AppendRequest
from crewlog.schemas.errors import ContractError, OrchestrationError, Unavailable

REQUESTS_PER_CALL_MAX: Final = 256
BYTES_PER_CALL_MAX: Final = 4 * 1024 * 1024
QUEUE_MAX: Final = 10_000

OnCommit = Callable[[int], None]
"""Called after a commit with the highest new position: the moment to poke readers. Must not block."""


class _Waiting(NamedTuple):
    encoded: Encoded
    future: asyncio.Future[Appended]
    deadline: float


class _Lane:
    def __init__(self) -> None:
        self.queue: deque[_Waiting] = deque()
        self.wake = asyncio.Event()
        self.connection: Any = None

    def take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self.queue and len(batch) < REQUESTS_PER_CALL_MAX and size < BYTES_PER_CALL_MAX:
            item = self.queue.popleft()
            if not item.future.done():  # a caller that gave up before sending costs nothing
                batch.append(item)
                size += sum(map(len, item.encoded.documents))
        return batch

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
        on_commit: OnCommit | None = None,
    ) -> None:
        self._connect, self._actor, self._clock, self._on_commit = connect, actor, clock, on_commit
        self._queue_max, self._call_timeout_s, self._wait_s = queue_max, call_timeout_s, wait_s
        self._closing = False
        self._lanes = [_Lane() for _ in range(lanes)]
        self._tasks = [asyncio.create_task(self._serve(lane)) for lane in self._lanes]

    def submit(self, request: AppendRequest) -> asyncio.Future[Appended]:
        """Queue a request without waiting; the order of submission is the order in the log, within a run.

        Cancelling the future withdraws what is not sent yet. What is in flight may be written all the same: the same request again
        is answered with where it is.

        Raises:
            ContractError: the request is malformed.
            Unavailable: the queue is full, or the appender is closed.
        """
        encoded = Encoded(request, encode_request(request))
        if self._closing:
            raise Unavailable(f"append to {request.writes[0].stream}: this process is closing its log")
        lane = self._lanes[(request.run_id.int if request.run_id is not None else hash(request.writes[0].stream)) % len(self._lanes)]
        if len(lane.queue) >= self._queue_max:
            raise Unavailable(f"append to {request.writes[0].stream}: {self._queue_max} requests are waiting already", retry_after_s=1.0)
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        lane.queue.append(_Waiting(encoded, future, self._clock.monotonic() + self._wait_s))
        lane.wake.set()
        return future

    async def close(self) -> None:
        """Send what is queued, then let go of the connections."""
        self._closing = True
        for lane in self._lanes:
            lane.wake.set()
        await asyncio.gather(*self._tasks)

    async def _serve(self, lane: _Lane) -> None:
        try:
            while lane.queue or not self._closing:
                if not lane.queue:
                    lane.wake.clear()
                    await lane.wake.wait()
                    await asyncio.sleep(0)  # let callers that woke together join this call
                if batch := lane.take():
                    await self._send(lane, batch)
        finally:
            lane.hang_up()

    async def _send(self, lane: _Lane, batch: list[_Waiting]) -> None:
        delay = 0.05
        while batch:
            try:
                if lane.connection is None or lane.connection.is_closed():
                    lane.connection = await self._connect()
                sent = [item.encoded for item in batch]
                (row,) = await fetch(lane.connection, SQL, arguments(sent, self._actor), timeout_s=self._call_timeout_s)
            except Exception as error:  # noqa: BLE001  (whatever it is, the callers get it)
                if not is_retryable(error, lane.connection):
                    await self._take_apart(lane, batch, error)
                    return
                lane.hang_up()
                batch = self._expire(lane, batch, error)
                await asyncio.sleep(delay * (0.5 + self._clock.fraction() / 2))
                delay = min(delay * 2, 2.0)
            else:
                self._answer(batch, answers(sent, row, self._actor), max(row[1]))
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

    def _expire(self, lane: _Lane, batch: list[_Waiting], error: Exception) -> list[_Waiting]:
        """Give up on whoever has waited long enough, in flight or queued; return what is left of the batch."""
        now = self._clock.monotonic()
        for item in (*batch, *lane.queue):
            if item.deadline <= now and not item.future.done():
                stream, why = item.encoded.request.writes[0].stream, error or type(error).__name__
                text = f"append to {stream}: no answer from Postgres for {self._wait_s:g} s ({why}); it may be written, ask again with the same event ids"
                item.future.set_exception(Unavailable(text))
        return [item for item in batch if not item.future.done()]

    def _answer(self, batch: list[_Waiting], found: list[Appended | OrchestrationError], position: int) -> None:
        for item, answer in zip(batch, found, strict=True):
            if item.future.done():
                continue
            if isinstance(answer, OrchestrationError):
                item.future.set_exception(answer)
            else:
                item.future.set_result(answer)
        if self._on_commit is not None:
            self._on_commit(position)
