"""Telemetry: tails the log, folds it into spans and metrics, and sends them to a collector. One process does it for the whole crew.

The log is the queue. While the collector is away nothing is read, so nothing piles up and nobody waits; once it is back, all of it
follows, for `BACKLOG_S`. The position up to which everything was taken is kept in the database and moves after the collector's answer:
what is sent twice after a crash has the same ids. On a log that was never traced it begins with the last hour: whoever turns tracing on
because something went wrong sees it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, Protocol
from uuid import UUID

import asyncpg

from crewlog.events.bus import Bus, Message
from crewlog.events.clock import Clock
from crewlog.events.shared_pages import PageReader
from crewlog.events.store import EventStore, Recorded
from crewlog.projections.meters import Meters
from crewlog.projections.span import Span
from crewlog.projections.span_content import with_content
from crewlog.projections.trace import TRACED_TYPES, RunTrace
from crewlog.schemas.errors import ContractError, OrchestrationError
from crewlog.schemas.ids import RunId
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.subjects import POKE
from crewlog.schemas.system_events import CallSettled
from crewlog.schemas.trace_context import is_traced

PAGE_EVENTS_MAX: Final = 1_000
"""Most events folded at a stretch: the views' turn comes again after some ten milliseconds."""
SPANS_PER_REQUEST_MAX: Final = 2_000
GATHER_S: Final = 0.1
"""How long after a poke the log is read, in seconds: as long as the views wait, so that both are given the same pages."""
SEND_EVERY_S: Final = 1.0
"""How long spans are gathered before they are sent, in seconds, unless they fill a request."""
POLL_S: Final = 5.0
METRICS_EVERY_S: Final = 60.0
"""How often metrics are sent, in seconds: OpenTelemetry's own default."""
RETRY_FIRST_S: Final = 1.0
RETRY_LONGEST_S: Final = 30.0
STOP_S: Final = 2.0
"""Longest time in which a stopping process still sends what there is, in seconds; the rest follows when one starts."""
BACKLOG_S: Final = 86_400
"""Spans that ended longer ago are not sent, in seconds: backends refuse them, and nobody waits for them."""
FIRST_S: Final = 3_600
"""How much of a log that was never traced is sent, in seconds."""
OPEN_RUNS_MAX: Final = 4_096
"""Runs remembered at once; the one idle longest is forgotten first, and folded again from the log when it goes on."""

log = logging.getLogger(__name__)


class Collector(Protocol):
    """Where telemetry goes; see `otlp.Otlp`."""

    def encode_spans(self, spans: Iterable[Span]) -> bytes: ...
    def encode_metrics(self, meters: Meters, now_us: int) -> bytes: ...
    async def send_spans(self, body: bytes) -> str: ...
    async def send_metrics(self, body: bytes) -> bool: ...


class Progress(Protocol):
    """Where the position is kept."""

    async def read(self, begin_us: int) -> int: ...
    async def save(self, position: int) -> None: ...


class StoredProgress:
    """The position in the database, on a connection whose search path is the read model's."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def read(self, begin_us: int) -> int:
        """Return the position. A log that was never traced is traced from `begin_us` on, microseconds since 1970."""
        known = await self._connection.fetchval("SELECT position FROM telemetry")
        if known is None:
            known = await self._before(begin_us)
            await self._connection.execute("INSERT INTO telemetry (position) VALUES ($1)", known)
        return int(known)

    async def _before(self, begin_us: int) -> int:
        """Halve the log until the last event before a time is found, by when each was recorded: those of a run from a file are older than their place."""
        low, high = 0, await self._connection.fetchval("SELECT coalesce(max(position), 0) FROM es.events")
        while low < high:
            middle = (low + high) // 2
            first = await self._connection.fetchval("SELECT recorded_at FROM es.events WHERE position > $1 ORDER BY position LIMIT 1", middle)
            low, high = (middle + 1, high) if first is not None and first.timestamp() * 1e6 < begin_us else (low, middle)
        return int(low)

    async def save(self, position: int) -> None:
        """Move it, never backwards."""
        await self._connection.execute("UPDATE telemetry SET position = $1 WHERE position < $1", position)


class Telemetry:
    """Follows the log for one collector. Whoever runs it must be the only one."""

    def __init__(
        self,
        pages: PageReader,
        store: EventStore,
        bus: Bus,
        clock: Clock,
        collector: Collector,
        progress: Progress,
        *,
        share: float = 1.0,
        content: bool = False,
        gather_s: float = GATHER_S,
        send_every_s: float = SEND_EVERY_S,
        retry_first_s: float = RETRY_FIRST_S,
    ) -> None:
        """Prepare; `run` does the work.

        Args:
            share: which part of the runs is traced, from 0 to 1. Metrics count all of them.
            content: spans say what models and tools were told and said.
        """
        self._pages, self._store, self._bus, self._clock = pages, store, bus, clock
        self._collector, self._progress, self._share, self._content = collector, progress, share, content
        self._gather_s, self._send_every_s, self._retry_first_s = gather_s, send_every_s, retry_first_s
        self._open: OrderedDict[UUID, RunTrace] = OrderedDict()
        self._meters = Meters(clock.now_us())
        self._metrics_due_s = clock.monotonic() + METRICS_EVERY_S
        self._takes_metrics = True
        self._ended: list[Span] = []
        """Spans that are gathered for the next request; behind them in line: requests that are written."""
        self._unsent: list[bytes] = []
        self._send_due_s = 0.0
        self._position = self._saved = 0
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Follow the log until cancelled; then send what there is, within `STOP_S`."""
        self._position = self._saved = await self._progress.read(self._clock.now_us() - FIRST_S * 1_000_000)
        subscription = await self._bus.subscribe(POKE, self._wake)
        try:
            while True:
                self._woken.clear()
                await self.catch_up()
                await self._wait()
        finally:
            await subscription.stop()
            await self._finish()

    async def catch_up(self) -> None:
        """Take in everything that the log has now, and send what is due; returns when the collector has taken that."""
        while True:
            page = await self._pages.read_all(self._position, PAGE_EVENTS_MAX)
            await self._take(page.events)
            if self._clock.monotonic() >= self._send_due_s or len(self._ended) >= SPANS_PER_REQUEST_MAX:
                await self._write()
                await self._send_until_taken()
                self._send_due_s = self._clock.monotonic() + self._send_every_s
            if len(page.events) < PAGE_EVENTS_MAX:
                await self._send_metrics()
                return

    async def _take(self, events: Sequence[Recorded]) -> None:
        """Fold a page and gather the spans that it ends."""
        ended: list[Span] = []
        try:
            for recorded in events:
                if recorded.run_id is not None and recorded.type in TRACED_TYPES:
                    ended += await self._fold(recorded, recorded.run_id)
        except BaseException:
            self._open.clear()  # the page is read again, and must not be folded twice into what is remembered
            raise
        for span in ended:
            self._meters.measure(span)
        oldest_us = self._clock.now_us() - BACKLOG_S * 1_000_000
        self._ended += [span for span in ended if span.end_us >= oldest_us and (self._share >= 1 or is_traced(UUID(bytes=span.trace_id), self._share))]
        if events:
            self._position = events[-1].position

    async def _write(self) -> None:
        """Write what was gathered as requests."""
        wanted = await with_content(self._ended, self._store) if self._content else self._ended
        self._ended = []
        for first in range(0, len(wanted), SPANS_PER_REQUEST_MAX):
            self._unsent.append(self._collector.encode_spans(wanted[first : first + SPANS_PER_REQUEST_MAX]))

    async def _fold(self, recorded: Recorded, run_id: RunId) -> list[Span]:
        trace = self._open.pop(run_id, None)
        if trace is None and recorded.type == CallSettled.__name__:
            trace = RunTrace(run_id)  # a span of its own, whatever else there is
        elif trace is None:
            trace = await self._fold_again(run_id, recorded)
        spans = _folded(trace, recorded)
        if not trace.has_ended and recorded.type != CallSettled.__name__:
            self._open[run_id] = trace
            if len(self._open) > OPEN_RUNS_MAX:
                self._open.popitem(last=False)
        return spans

    async def _fold_again(self, run_id: RunId, before: Recorded) -> RunTrace:
        """Fold what a run that is not remembered did before an event; the spans that ended then were sent then."""
        trace = RunTrace(run_id, with_content=self._content)
        if before.type != RunSubmitted.__name__:
            for recorded in await self._store.read_run(run_id):
                if recorded.position < before.position and recorded.type in TRACED_TYPES:
                    _folded(trace, recorded)
        return trace

    async def _send_until_taken(self) -> None:
        retry_s, is_away = self._retry_first_s, False
        while True:
            try:
                await self._send()
            except OrchestrationError as error:
                if not is_away:
                    log.warning("spans wait in the log until they are taken: %s", error)
                is_away = True
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_LONGEST_S)
            else:
                if is_away:
                    log.info("spans are taken again")
                return

    async def _send(self) -> None:
        """Send what was written, and note how far everything is taken.

        Raises:
            Unavailable: the collector is away, or does not want anything now.
        """
        while self._unsent:
            try:
                said = await self._collector.send_spans(self._unsent[0])
            except ContractError as error:
                said = str(error)
            if said:
                log.warning("spans are lost: %s", said)
            del self._unsent[0]
        if self._saved < self._position:
            await self._progress.save(self._position)
            self._saved = self._position

    async def _send_metrics(self) -> None:
        """Send metrics when it is time. What does not arrive is in the next ones."""
        now_s = self._clock.monotonic()
        if not self._takes_metrics or not self._meters.series or now_s < self._metrics_due_s:
            return
        self._metrics_due_s = now_s + METRICS_EVERY_S
        try:
            self._takes_metrics = await self._collector.send_metrics(self._collector.encode_metrics(self._meters, self._clock.now_us()))
            if not self._takes_metrics:
                log.info("the collector takes no metrics: none are sent to it any more")
        except OrchestrationError as error:
            log.warning("metrics were not taken: %s", error)

    async def _finish(self) -> None:
        self._metrics_due_s = 0.0
        with suppress(TimeoutError, OrchestrationError):
            async with asyncio.timeout(STOP_S):
                page = await self._pages.read_all(self._position, PAGE_EVENTS_MAX)
                await self._take(page.events)
                await self._write()
                await self._send()
                await self._send_metrics()

    async def _wait(self) -> None:
        due_s = max(self._send_due_s - self._clock.monotonic(), 0.0)
        try:
            async with asyncio.timeout(due_s if self._saved < self._position else POLL_S):
                await self._woken.wait()
        except TimeoutError:
            return  # a poke may have been lost, and metrics may be due
        await asyncio.sleep(self._gather_s)

    async def _wake(self, _: Message) -> None:
        self._woken.set()


def trace_of(run_id: UUID, events: Iterable[Recorded], *, replay: UUID | None = None, with_content: bool = False) -> list[Span]:
    """Return all spans of a run that its events end.

    Args:
        events: those of the run, in the order of the log.
        replay: given, they form another trace with this id, linked to the original.
        with_content: they name what was said, too.
    """
    trace = RunTrace(run_id, replay=replay, with_content=with_content)
    return [span for recorded in events if recorded.type in TRACED_TYPES for span in _folded(trace, recorded)]


def _folded(trace: RunTrace, recorded: Recorded) -> list[Span]:
    try:
        return trace.fold(recorded, recorded.event())
    except ContractError:
        return []  # written by a newer program: the views name it
    except Exception:  # a fold is code of ours: its bug must cost spans, never the views, and must be seen
        log.exception("run %s: position %s is missing in its trace", trace.run_id, recorded.position)
        return []
