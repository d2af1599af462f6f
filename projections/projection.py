"""What a projection is: a fold of the log into tables, checkpointed in the transaction that writes them.

A page of the log goes through a projection in four steps: `load` what the fold needs and does not remember, `fold` one fact after the
other, `take` what changed, and `apply` that to the database. Only `fold` knows what events mean, and it waits for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

import asyncpg
import msgspec

from crewlog.events.store import Recorded
from crewlog.schemas.codec import Event, Unknown, decode
from crewlog.schemas.errors import ConflictError, ContractError
from crewlog.schemas.ids import Stream


class Fact(msgspec.Struct, frozen=True, gc=False):
    """One event of the log as folds take it: where it stands, when it happened, whose it is, and what it says."""

    position: int
    stream: Stream
    version: int
    type: str
    schema_version: int
    occurred_us: int
    run_id: UUID | None
    event: Event | Unknown | ContractError
    """The error if it does not decode."""


Begins = Mapping[UUID | None, str]
"""The runs that a page of the log is about, each with the type of its first event there; None for events of no run."""


class Changes(Protocol):
    """What a page of the log does to the tables of one projection."""

    async def apply(self, connection: asyncpg.Connection) -> None:
        """Write everything, set by set. Writing it twice is writing it once."""


class Projection(Protocol):
    """A fold of the log into some tables."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int:
        """Raised when the same events give other rows; the projector then rebuilds."""

    @property
    def tables(self) -> tuple[str, ...]: ...

    @property
    def types(self) -> frozenset[type]:
        """Classes of the facts it folds."""

    @property
    def facts_max(self) -> int | None:
        """Most facts of these types in one transaction; None when they are cheap."""

    async def load(self, begins: Begins, *, after: int, skipped: Collection[int]) -> None:
        """Read what folding the next page needs and is not remembered.

        Args:
            begins: what the page is about.
            after: the position folded last.
            skipped: positions up to there that could not be folded and had to be left out.
        """

    def fold(self, fact: Fact) -> None:
        """Apply one fact.

        Raises:
            Exception: the fact makes no sense; it is recorded as a problem and skipped. Nothing of it may have been applied before that: whoever folds
                again does not look at it.
        """

    def take(self) -> Changes:
        """Return what has changed since the last call."""

    def forget(self) -> None:
        """Drop everything remembered: the last changes may not have been written."""


class Checkpoint(NamedTuple):
    """How far a projection has come."""

    name: str
    version: int
    position: int


class Problem(NamedTuple):
    """A fact that one projection could not take in. It went on without it."""

    projection: str
    position: int
    stream: str
    type: str
    error: str


def facts_of(events: Iterable[Recorded]) -> Iterator[Fact]:
    """Yield what events of the log say to folds, decoding one after the other; never raises."""
    event: Event | Unknown | ContractError
    for recorded in events:
        type_, version = recorded.type, recorded.schema_version
        try:
            event = decode(type_, version, recorded.data)
        except ContractError as error:
            event = error
        yield Fact(recorded.position, recorded.stream, recorded.version, type_, version, recorded.occurred_us, recorded.run_id, event)


def fact_of(recorded: Recorded) -> Fact:
    """Return what one event says."""
    return next(facts_of((recorded,)))


def begins(events: Sequence[Recorded], after: int) -> Begins:
    """Return what those events of a page are about that stand behind a position."""
    return {recorded.run_id: recorded.type for recorded in reversed(events) if recorded.position > after}


def problem(projection: str, fact: Fact, error: Exception) -> Problem:
    """Describe a fact that could not be taken in."""
    return Problem(projection, fact.position, fact.stream, fact.type, f"{type(error).__name__}: {error}")


async def read_checkpoints(connection: asyncpg.Connection, projections: Collection[Projection]) -> dict[str, Checkpoint]:
    """Return where each projection stands, and create the checkpoints of new ones at the beginning of the log."""
    names, versions = [p.name for p in projections], [p.version for p in projections]
    await connection.execute("INSERT INTO checkpoints (name, version) SELECT * FROM unnest($1::text[], $2::int[]) ON CONFLICT DO NOTHING", names, versions)
    rows = await connection.fetch("SELECT name, version, position FROM checkpoints WHERE name = ANY ($1)", names)
    return {row["name"]: Checkpoint(*row) for row in rows}


async def move_checkpoints(connection: asyncpg.Connection, checkpoints: Collection[Checkpoint], to: int) -> None:
    """Compare and set: move checkpoints in the transaction that writes what lies between.

    Raises:
        ConflictError: somebody else has moved one; this process is no longer the one that may write.
    """
    if not checkpoints:
        return
    names, versions, positions = zip(*checkpoints, strict=True)
    moved = await connection.fetch(
        """UPDATE checkpoints c SET position = $4 FROM unnest($1::text[], $2::int[], $3::bigint[]) e (name, version, position)
           WHERE c.name = e.name AND c.version = e.version AND c.position = e.position RETURNING c.name""",
        names,
        versions,
        positions,
        to,
    )
    if len(moved) < len(names):
        lost = sorted(set(names) - {row["name"] for row in moved})
        now = await connection.fetchval("SELECT position FROM checkpoints WHERE name = $1", lost[0])
        expected = next(c.position for c in checkpoints if c.name == lost[0])
        raise ConflictError(f"checkpoint {', '.join(lost)}", expected=expected, actual=now if now is not None else -1)


async def write_problems(connection: asyncpg.Connection, problems: Collection[Problem]) -> None:
    """Record facts that were skipped."""
    if problems:
        await connection.execute(
            """INSERT INTO problems (projection, position, stream, type, error)
               SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[])
               ON CONFLICT (projection, position) DO UPDATE SET error = excluded.error""",
            *zip(*problems, strict=True),
        )
