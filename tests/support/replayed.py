"""Every run that a test leaves in a log is replayed with verification when the test is over: in memory, in Postgres, or of a live crew.

A mismatch fails the test that left it. Tests that write events by hand, which no orchestrator and no agent would have recorded, say so
with `@pytest.mark.hand_written("why")`. The schedules of `tests/sim` are not looked at here: `sim.invariants` replays each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from crewlog.agents.rederive import replay_task
from crewlog.events.clock import SystemClock
from crewlog.events.kek import kek_source
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.events.personal_store import personal
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.rederive import verify_run
from crewlog.orchestrator.replay import fold_streams
from crewlog.orchestrator.run_history import RunHistory, all_payloads, load_history, with_texts
from crewlog.schemas.ids import RunId
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.task_events import TaskStarted

SIM = Path(__file__).parents[1] / "sim"


def is_hand_written(request: pytest.FixtureRequest) -> bool:
    """Say whether a test writes events that follow from nothing."""
    return request.node.get_closest_marker("hand_written") is not None or SIM in request.node.path.parents


@pytest.fixture(autouse=True)
def every_run_replays(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Note every log in memory that is opened, and replay its runs in the end."""
    if is_hand_written(request):
        yield
        return
    logs: dict[int, MemoryLog] = {}
    opened = MemoryStore.__init__

    def noted(store: MemoryStore, *args: Any, **named: Any) -> None:
        opened(store, *args, **named)
        logs[id(store.log)] = store.log

    monkeypatch.setattr(MemoryStore, "__init__", noted)
    yield
    found = [violation for log in list(logs.values()) for violation in log_violations(log)]
    assert not found, "\n".join(found)


def log_violations(log: MemoryLog) -> list[str]:
    """Replay every run of a log in memory."""
    runs = {stream.run_id for stream in log.streams.values() if stream.run_id is not None}
    return asyncio.run(_violations(MemoryStore(log), sorted(runs))) if runs else []


async def _violations(store: EventStore, runs: Iterable[RunId]) -> list[str]:
    found: list[str] = []
    for run_id in runs:
        history = await load_history(store, run_id)
        if history.erased_us:
            continue  # there is nothing left that it could be derived from
        found += run_violations(await with_texts(store, history, all_payloads(history.events)))
    return found


def run_violations(history: RunHistory) -> Iterator[str]:
    """Replay a run. Of tasks whose agent a test played itself, only what the orchestrator made of them; of tasks without a run, each alone."""
    own = [stream for stream in history.task_streams if not _is_played(history.streams[stream])]
    if history.run_events and len(own) == len(history.streams) - 1:
        found = [fold_streams(history.run_id, history.streams, history.texts, verify=True).divergence]
    else:
        task_events = [recorded for stream in history.task_streams for recorded in history.streams[stream]]
        found = [verify_run(history.run_events, task_events) if history.run_events else None]
        found += [replay_task(history.streams[stream], history.read).divergence for stream in own]
    yield from (f"replay of run {history.run_id}: {divergence}" for divergence in found if divergence is not None)


def _is_played(events: Sequence[Recorded]) -> bool:
    """Say whether no worker wrote this stream: a worker records its agent's prompt and rules first of all."""
    started = next((event for recorded in events if isinstance(event := recorded.event(), TaskStarted)), None)
    return started is None or started.setup == EMPTY


class Replayed:
    """How far a log in Postgres has been replayed: each look takes the runs that anything happened in since the one before."""

    def __init__(self) -> None:
        self._position = 0

    async def violations(self, url: str, home: Path | None = None) -> list[str]:
        """Replay the runs that have grown.

        Args:
            url: a login that may read the log.
            home: of a crew, where the key to persons' keys is; None for a log without any.
        """
        connection = await asyncpg.connect(url)
        try:
            rows = await connection.fetch("SELECT run_id, max(position) FROM es.events WHERE position > $1 AND run_id IS NOT NULL GROUP BY 1", self._position)
        finally:
            await connection.close()
        if not rows:
            return []
        self._position = max(position for _, position in rows)
        store = await PostgresStore.open(url, actor="replay", clock=SystemClock())
        try:
            disclosed = store if home is None else await personal(store, kek_source(None, home), SystemClock(), gives_keys=False)
            return await _violations(disclosed, [RunId(run_id) for run_id, _ in rows])
        finally:
            await store.close()
