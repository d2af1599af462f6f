"""The tables of one schema and how far they have come: takes pages of the log and writes what they change.

Each stretch of the log is one transaction: checkpoints move by compare-and-set, then every projection writes its rows. An event whose
rows the database refuses is found by halving the stretch, recorded in `problems`, and left out from then on; all others go through.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import asyncpg

from crewlog.events.store import Recorded
from crewlog.projections.projection import (
    Changes,
    Checkpoint,
    Fact,
    Problem,
    Projection,
    decode,
    fold_all,
    move_checkpoints,
    problem,
    read_checkpoints,
    write_problems,
)
from crewlog.schemas.errors import ConfigError, ContractError

log = logging.getLogger(__name__)

_REFUSED: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError, ValueError, OverflowError, ContractError)
"""Errors that lie in the data: another try would end the same way."""


class ReadModel:
    """Some projections and the connection that writes their tables. The connection's search path names the schema."""

    def __init__(self, connection: asyncpg.Connection, projections: Sequence[Projection]) -> None:
        self._connection, self._projections = connection, projections
        self._positions: dict[str, int] = {}
        self._skipped: dict[str, set[int]] = {p.name: set() for p in projections}

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
        for facts in self._stretches([decode(recorded) for recorded in events]):
            await self._advance(facts)

    def _stretches(self, facts: list[Fact]) -> Iterator[list[Fact]]:
        """Cut a page so that no projection gets more facts in one transaction than it can take."""
        limits = {type_: (p.name, p.facts_max) for p in self._projections if p.facts_max is not None for type_ in p.types}
        begin, used = 0, dict.fromkeys((name for name, _ in limits.values()), 0)
        for at, fact in enumerate(facts):
            if (limit := limits.get(type(fact.event))) is not None:
                name, facts_max = limit
                if used[name] == facts_max:
                    yield facts[begin:at]
                    begin, used = at, dict.fromkeys(used, 0)
                used[name] += 1
        if begin < len(facts):
            yield facts[begin:]

    async def _advance(self, facts: list[Fact]) -> None:
        try:
            await self._fold_and_write(facts)
        except _REFUSED as error:
            for projection in self._projections:
                projection.forget()
            if len(facts) > 1:
                middle = len(facts) // 2
                await self._advance(facts[:middle])
                await self._advance(facts[middle:])
                return
            log.exception("the read model skips position %s, whose rows the database refuses", facts[0].recorded.position)
            refused = [problem(p.name, facts[0].recorded, error) for p in self._projections if type(facts[0].event) in p.types]
            await self._write(facts[-1].recorded.position, [], refused)
        except BaseException:
            for projection in self._projections:
                projection.forget()  # whether the transaction was committed is not known
            raise

    async def _fold_and_write(self, facts: list[Fact]) -> None:
        shares: dict[str, list[Fact]] = {p.name: [] for p in self._projections}
        takers = {type_: shares[p.name] for p in self._projections for type_ in p.types}
        for fact in facts:
            if (taker := takers.get(type(fact.event))) is not None:  # a rebuild of some projections has no taker for the others' events
                taker.append(fact)
        changes: list[Changes] = []
        problems: list[Problem] = []
        for projection in self._projections:
            after, skipped, mine = self._positions[projection.name], self._skipped[projection.name], shares[projection.name]
            if skipped or facts[0].recorded.position <= after:
                mine = [fact for fact in mine if fact.recorded.position > after and fact.recorded.position not in skipped]
            if mine:
                await projection.load(mine, after=after, skipped=skipped)
                problems += fold_all(projection, mine)
                changes.append(projection.take())
        await self._write(facts[-1].recorded.position, changes, problems)

    async def _write(self, to: int, changes: Collection[Changes], problems: Collection[Problem]) -> None:
        moving = [p for p in self._projections if self._positions[p.name] < to]
        async with self._connection.transaction():
            await move_checkpoints(self._connection, [Checkpoint(p.name, p.version, self._positions[p.name]) for p in moving], to)
            for change in changes:
                await change.apply(self._connection)
            await write_problems(self._connection, problems)
        for projection in moving:
            self._positions[projection.name] = to
        for skipped in problems:
            self._skipped[skipped.projection].add(skipped.position)
