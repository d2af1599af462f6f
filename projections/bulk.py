"""The whole log folded into tables that are empty and that nobody reads before the end.

The fold is that of the live read model. Rows are written in bulk and most of them once, when nothing more is expected of their run; and
what was handed out is being written while further events are read and folded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Final, Self

import asyncpg

from crewlog.projections.folding import Folding
from crewlog.projections.log_scan import ScannedPage
from crewlog.projections.projection import Changes, Problem, Projection, move_checkpoints, read_checkpoints, write_problems
from crewlog.projections.run_projection import RunProjection

BATCH_EVENTS: Final = 20_000
"""Events that are folded before rows are written."""
ROWS_KEPT_MAX: Final = 200_000
"""Most rows of runs under way that wait in memory for their run to end."""

Progress = Callable[[int, int], None]
"""Called with the position reached and the position to reach."""


async def fold_all(connection: asyncpg.Connection, projections: Sequence[Projection], pages: AsyncIterator[ScannedPage], progress: Progress) -> int:
    """Fold pages of the log, from its beginning, and write rows, problems and checkpoints; returns how many events there were.

    Args:
        connection: its unqualified table names are those of the tables to fill.

    Raises:
        REFUSED: the database refuses a row. Of which event it is, the live read model finds out, when the tables are empty again.
    """
    begin = await read_checkpoints(connection, projections)
    folding = Folding(projections)
    folding.resume(begin, ())
    events = taken = high_water = 0
    problems: list[Problem] = []
    async with _Writer(connection) as writer:
        async for page in pages:
            await folding.load(page.begins)
            found = folding.fold(page.facts())
            folding.reach(page.end, found)
            problems += found
            events, high_water = events + len(page), page.high_water
            if events - taken >= BATCH_EVENTS:
                taken = events
                await writer.write(_take(folding, keep_max=ROWS_KEPT_MAX))
                progress(page.end, high_water)
        await writer.write(_take(folding, keep_max=0))
    async with connection.transaction():
        await write_problems(connection, problems)
        if events:
            await move_checkpoints(connection, begin.values(), folding.position)
            progress(folding.position, high_water)
    return events


def _take(folding: Folding, *, keep_max: int) -> list[Changes]:
    """Only rows of runs change over long stretches of the log: of all others there are few."""
    return [p.take_done(keep_max=keep_max) if isinstance(p, RunProjection) else p.take() for p in folding.projections]


class _Writer:
    """Writes one batch while the next one is made."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def write(self, changes: Collection[Changes]) -> None:
        """Begin to write. Waits for the batch before."""
        if self._writing is not None:
            await self._writing
        self._writing = asyncio.create_task(self._apply(changes))

    async def _apply(self, changes: Collection[Changes]) -> None:
        async with self._connection.transaction():
            for change in changes:
                await change.apply(self._connection)

    async def __aexit__(self, type_: type[BaseException] | None, *_: object) -> None:
        if self._writing is None:
            return
        if type_ is None:
            await self._writing
        else:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
