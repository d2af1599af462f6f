"""The tables of one schema and how far they have come: takes pages of the log and writes what they change.

Pages are folded as they come, small ones, so that an event is still in the processor's cache when it is folded; what several of them change is
written together. Each such stretch of the log is one transaction: checkpoints move by compare-and-set, then every projection writes its rows.
An event whose rows the database refuses is found by halving the stretch, recorded in `problems`, and left out from then on; all others go
through.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

import asyncpg

from crewlog.events import faults
from crewlog.events.store import Recorded
from crewlog.projections.folding import Folding
from crewlog.projections.projection import (
    Changes,
    Problem,
    Projection,
    begins,
    fact_of,
    facts_of,
    move_checkpoints,
    problem,
    read_checkpoints,
    write_problems,
)
from crewlog.schemas.errors import ConfigError, ContractError, TerminalError

log = logging.getLogger(__name__)

REFUSED: Final = (
    *(asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError),
    asyncpg.CardinalityViolationError,  # two rows with one key: agents write the ids that keys are made of
    *(ValueError, OverflowError, ContractError, TerminalError),  # TerminalError: a text is stored with other bytes than those of its hash
)
"""Errors that lie in the data: another try would end the same way."""


class _Limit(NamedTuple):
    projection: str
    facts_max: int


class ReadModel:
    """Some projections and the connection that writes their tables. The connection's search path names the schema."""

    def __init__(self, connection: asyncpg.Connection, projections: Sequence[Projection]) -> None:
        self._connection, self._projections = connection, projections
        self._folding = Folding(projections)
        self._limits = {type_.__name__: _Limit(p.name, p.facts_max) for p in projections if p.facts_max is not None for type_ in p.types}
        self._unwritten: list[Recorded] = []
        """What is folded and not written yet."""
        self._problems: list[Problem] = []
        """What of that makes no sense."""

    @property
    def position(self) -> int:
        """Position up to which the tables hold the log."""
        return self._folding.position

    @property
    def folded(self) -> int:
        """Position up to which the log is folded, be it written or not: what to go on behind."""
        return self._unwritten[-1].position if self._unwritten else self.position

    @property
    def unwritten(self) -> int:
        """How many events are folded and not written."""
        return len(self._unwritten)

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
        self._forget()
        skipped = await self._connection.fetch("SELECT projection, position FROM problems WHERE projection = ANY ($1)", list(checkpoints))
        self._folding.resume(checkpoints, skipped)

    async def outdated(self) -> list[str]:
        """Return the projections whose tables an older program made; they need a rebuild."""
        checkpoints = await read_checkpoints(self._connection, self._projections)
        return [p.name for p in self._projections if checkpoints[p.name].version < p.version]

    async def advance(self, events: Sequence[Recorded]) -> None:
        """Take in a page of the log, in position order, and write what it changes.

        Raises:
            ConflictError: another process has moved a checkpoint: it writes, this one must stop.
        """
        await self.take_in(events)
        await self.write()

    async def take_in(self, events: Sequence[Recorded]) -> None:
        """Fold a page of the log, in position order. What it changes waits for `write`, unless a projection can take no more at once.

        Raises:
            ConflictError: another process has moved a checkpoint: it writes, this one must stop.
        """
        if self._limits.keys().isdisjoint(recorded.type for recorded in events):
            await self._fold(events)
            return
        await self.write()
        for stretch in self._stretches(events):
            await self._fold(stretch)
            await self.write()

    async def write(self) -> None:
        """Write what was folded, in one transaction.

        Raises:
            ConflictError: another process has moved a checkpoint: it writes, this one must stop.
        """
        events, problems = self._unwritten, self._problems
        if not events:
            return
        self._unwritten, self._problems = [], []
        try:
            await self._write(events[-1].position, self._folding.take(), problems)
        except REFUSED as error:
            await self._write_halves(events, error)
        except BaseException:
            self._forget()  # whether the transaction was committed is not known
            raise

    def _stretches(self, events: Sequence[Recorded]) -> Iterator[Sequence[Recorded]]:
        """Cut a page so that no projection gets more facts in one transaction than it can take."""
        begin, used = 0, dict.fromkeys(self._limits.values(), 0)
        for at, recorded in enumerate(events):
            limit = self._limits.get(recorded.type)
            if limit is not None:
                if used[limit] == limit.facts_max:
                    yield events[begin:at]
                    begin, used = at, dict.fromkeys(used, 0)
                used[limit] += 1
        if begin < len(events):
            yield events[begin:]

    async def _fold(self, events: Sequence[Recorded]) -> None:
        if not events:
            return
        try:
            await self._folding.load(partial(begins, events))
            self._problems += self._folding.fold(facts_of(events))
        except BaseException:
            self._forget()
            raise
        self._unwritten += events

    async def _write_halves(self, events: Sequence[Recorded], error: Exception) -> None:
        self._forget()
        if len(events) > 1:
            middle = len(events) // 2
            for half in (events[:middle], events[middle:]):
                await self._fold(half)
                await self.write()
            return
        log.error("the read model skips position %s, whose rows the database refuses", events[0].position, exc_info=error)
        fact = fact_of(events[0])
        taker = self._folding.taker(fact)
        await self._write(fact.position, [], [problem(taker.name, fact, error)] if taker else [])

    def _forget(self) -> None:
        self._folding.forget()
        self._unwritten, self._problems = [], []

    async def _write(self, to: int, changes: Collection[Changes], problems: Collection[Problem]) -> None:
        async with self._connection.transaction():
            await move_checkpoints(self._connection, self._folding.behind(to), to)
            for change in changes:
                await change.apply(self._connection)
            await write_problems(self._connection, problems)
            if faults.hook is not None:
                faults.hook("before_view_commit")
        if faults.hook is not None:
            faults.hook("after_view_commit")
        self._folding.reach(to, problems)
