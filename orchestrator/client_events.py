"""Following the events of one run in the order of the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Final

from crewlog.events.store import EventStore, Recorded
from crewlog.schemas.errors import NotFound
from crewlog.schemas.ids import RunId, Stream, run_stream, task_stream
from crewlog.schemas.run_events import TaskDispatched
from crewlog.schemas.task_events import TERMINAL_TYPES

LOOK_AGAIN_S: Final = 5.0
"""How long whoever follows a run trusts that a hint would have come, in seconds."""


async def run_events(store: EventStore, run_id: RunId, hint: asyncio.Event | None) -> AsyncIterator[Recorded]:
    """Read the events of a run in the order of the log.

    Args:
        hint: set whenever something may have been recorded; go on until the run has ended. None reads what is there.

    Raises:
        NotFound: the log has no such run.
    """
    batch = await store.read_run(run_id)
    if not batch:
        raise NotFound("run", str(run_id))
    seen = {run_stream(run_id): 0, **_begun(batch)}
    ended = False
    while True:
        for recorded in batch:
            seen[recorded.stream] = recorded.version
            if recorded.type in TERMINAL_TYPES:
                ended = ended or recorded.stream == run_stream(run_id)
                del seen[recorded.stream]  # it is closed: of a run of a thousand tasks only those under way are asked about
            yield recorded
        if hint is None or (ended and not batch):
            return
        if not batch:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):  # `wait_for` would swallow a cancel that comes together with a hint
                    await hint.wait()
        hint.clear()
        batch = await _read_on(store, seen)


async def _read_on(store: EventStore, seen: dict[Stream, int]) -> Sequence[Recorded]:
    """Read what is new in the streams that were seen, and in those of tasks that it dispatches: their events stand among it, not behind it."""
    batch = await store.read_streams(seen)
    begun = {stream: version for stream, version in _begun(batch).items() if stream not in seen}
    if not begun:
        return batch
    last = batch[-1].position
    seen.update(begun)
    among = [recorded for recorded in await store.read_streams(begun) if recorded.position <= last]
    return sorted([*batch, *among], key=lambda recorded: recorded.position)


def _begun(batch: Sequence[Recorded]) -> dict[Stream, int]:
    return {task_stream(event.task_id): 0 for recorded in batch if isinstance(event := recorded.event(), TaskDispatched)}
