"""The tables of one schema and how far they have come: takes pages of the log and writes what they change.

Each stretch of the log is one transaction: checkpoints move by compare-and-set, then every projection writes its rows. An event whose
rows the database refuses is found by halving the stretch, recorded in `problems`, and left out from then on; all others go through.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import Final, NamedTuple

import asyncpg

from crewlog.events import faults
from crewlog.events.store import Recorded
from crewlog.projections.projection import (
    Changes,
    Checkpoint,
    Problem,
    Projection,
    decode,
    move_checkpoints,
    problem,
    read_checkpoints,
    write_problems,
)
from crewlog.schemas.errors import ConfigError, ContractError
from crewlog.schemas.system_events import RunImported

log = logging.getLogger(__name__)

REFUSED: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError, ValueError, OverflowError, ContractError)
"""Errors that lie in the data: another try would end the same way."""

SLICE_EVENTS: Final = 500
"""Events that are folded without a break."""


class _Folded(NamedTuple):
    """What a stretch of the log does: the position it ends at, the checkpoints as they are before it, and what is to be written."""

    to: int
    moving: Sequence[Checkpoint]
    changes: Collection[Changes]
    problems: Collection[Problem]


class _Limit(NamedTuple):
    projection: str
    facts_max: int


class ReadModel:
    """Some projections and the connection that writes their tables. The connection's search path names the schema."""

    def __init__(self, connection: asyncpg.Connection, projections: Sequence[Projection]) -> None:
        self._connection, self._projections = connection, projections
        self._positions: dict[str, int] = {}
        self._skipped: dict[str, set[int]] = {p.name: set() for p in projections}
        self._takers = {type_: p for p in projections for type_ in p.types}
        self._limits = {type_.__name__: _Limit(p.name, p.facts_max) for p in projections if p.facts_max is not None for type_ in p.types}

    @property
    def position(self) -> int:
        """Position up to which every projection has folded the log."""
        return min(self._positions.values())

    async def open(self) -> None:
        """Read where each projection stands.

        Raises:
            ConfigError: the tables were made by a newer program.
        """
        checkpoints = await read_checkpoints(self._connection, self._projections)
        for projection in self._projections:
            stored = checkpoints[projection.name]
            if stored.version > projection.version:
                raise ConfigError(
                    f"projection {projection.name} is at version {stored.version} in the database, this program writes version {projection.version}",
                    hint="start the newer program, or rebuild with this one: crewlog db rebuild",
                )
            projection.forget()
            self._positions[projection.name] = stored.position
        for name, position in await self._connection.fetch("SELECT projection, position FROM problems WHERE projection = ANY ($1)", list(checkpoints)):
            self._skipped[name].add(position)

    async def outdated(self) -> list[str]:
        """Return the projections whose tables an older program made; they need a rebuild."""
        checkpoints = await read_checkpoints(self._connection, self._projections)
        return [p.name for p in self._projections if checkpoints[p.name].version < p.version]

    async def advance(self, events: Sequence[Recorded]) -> None:
        """Take in a page of the log, in position order.

        Raises:
            ConflictError: another process has moved a checkpoint: it writes, this one must stop.
        """
        for stretch in self._stretches(events):
            await self._advance(stretch)

    async def advance_through(self, pages: AsyncIterator[Sequence[Recorded]]) -> None:
        """Take in many pages, each being written while the next one is folded: for tables that nobody reads before the last page.

        Raises:
            ConflictError: another process has moved a checkpoint.
            REFUSED: the database refuses a row. `open` the model again, and go on with `advance`, which finds the event.
        """
        writing: asyncio.Task[None] | None = None
        try:
            async for events in pages:
                for stretch in self._stretches(events):
                    folded = await self._fold(stretch)
                    self._note(folded)
                    if writing is not None:
                        await writing
                    writing = asyncio.create_task(self._write(folded))
            if writing is not None:
                await writing
        except BaseException:
            if writing is not None:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
            self._forget()
            raise

    def _stretches(self, events: Sequence[Recorded]) -> Iterator[Sequence[Recorded]]:
        """Cut a page so that no projection gets more facts in one transaction than it can take, and before runs that come from a file: what was
        archived earlier in the page is deleted by then."""
        begin, used = 0, dict.fromkeys(self._limits.values(), 0)
        for at, recorded in enumerate(events):
            if recorded.type == RunImported.__name__ and at > begin:
                yield events[begin:at]
                begin, used = at, dict.fromkeys(used, 0)
            limit = self._limits.get(recorded.type)
            if limit is not None:
                if used[limit] == limit.facts_max:
                    yield events[begin:at]
                    begin, used = at, dict.fromkeys(used, 0)
                used[limit] += 1
        if begin < len(events):
            yield events[begin:]

    async def _advance(self, events: Sequence[Recorded]) -> None:
        try:
            await self._fold_and_write(events)
        except REFUSED as error:
            self._forget()
            if len(events) > 1:
                middle = len(events) // 2
                await self._advance(events[:middle])
                await self._advance(events[middle:])
                return
            log.exception("the read model skips position %s, whose rows the database refuses", events[0].position)
            taker = self._takers.get(type(decode(events[0]).event))
            skipped = self._folded(events[0].position, [], [problem(taker.name, events[0], error)] if taker else [])
            await self._write(skipped)
            self._note(skipped)
        except BaseException:
            self._forget()  # whether the transaction was committed is not known
            raise

    def _forget(self) -> None:
        for projection in self._projections:
            projection.forget()

    async def _fold_and_write(self, events: Sequence[Recorded]) -> None:
        folded = await self._fold(events)
        await self._write(folded)
        self._note(folded)

    async def _fold(self, events: Sequence[Recorded]) -> _Folded:
        for projection in self._projections:
            after = self._positions[projection.name]
            news = events if events[0].position > after else [recorded for recorded in events if recorded.position > after]
            await projection.load(news, after=after, skipped=self._skipped[projection.name])
        problems: list[Problem] = []
        for begin in range(0, len(events), SLICE_EVENTS):
            problems += self._fold_slice(events[begin : begin + SLICE_EVENTS])
            await asyncio.sleep(0)  # what was folded before is being written meanwhile
        return self._folded(events[-1].position, [projection.take() for projection in self._projections], problems)

    def _fold_slice(self, events: Sequence[Recorded]) -> list[Problem]:
        """Decode and fold one by one: what was decoded is gone before the next one comes, so a large page costs no garbage collection."""
        problems = []
        for recorded in events:
            fact = decode(recorded)
            taker = self._takers.get(type(fact.event))
            if taker is None or recorded.position <= self._positions[taker.name] or recorded.position in self._skipped[taker.name]:
                continue
            try:
                taker.fold(fact)
            except Exception as error:  # a fold is code of ours: its bug must not stop the others, and must be seen
                log.exception("projection %s skips position %s", taker.name, recorded.position)
                problems.append(problem(taker.name, recorded, error))
        return problems

    def _folded(self, to: int, changes: Collection[Changes], problems: Collection[Problem]) -> _Folded:
        moving = [Checkpoint(p.name, p.version, self._positions[p.name]) for p in self._projections if self._positions[p.name] < to]
        return _Folded(to, moving, changes, problems)

    async def _write(self, folded: _Folded) -> None:
        async with self._connection.transaction():
            await move_checkpoints(self._connection, folded.moving, folded.to)
            for change in folded.changes:
                await change.apply(self._connection)
            await write_problems(self._connection, folded.problems)
            if faults.hook is not None:
                faults.hook("before_view_commit")
        if faults.hook is not None:
            faults.hook("after_view_commit")

    def _note(self, folded: _Folded) -> None:
        for checkpoint in folded.moving:
            self._positions[checkpoint.name] = folded.to
        for skipped in folded.problems:
            self._skipped[skipped.projection].add(skipped.position)
