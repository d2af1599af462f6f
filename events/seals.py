"""Seals: a chain of hashes over the log in its global order, so that nobody changes it behind the product's back without being found.

A seal covers the events behind the seal before it. Its hash is the sha-256 of the hash before, of its own four numbers, and of the hash
of each of its events; an event's hash is that of all its columns in binary form. Seals are made by `es.seal` in the database, well behind
the appends. They are checked here, by other code, from the rows alone. Whoever rewrites events and seals alike is found by a seal that
was kept elsewhere (`SealMark`).
"""

from __future__ import annotations

import hashlib
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from crewlog.schemas.errors import ContractError

EVENT_BYTES: Final = """record_send(ROW(
  e.position, e.stream_id, e.version, e.event_id, e.type, e.schema_version, e.occurred_us, e.recorded_at,
  e.run_id, e.task_id, e.causation_id, e.trace_id, e.actor, e.writer, e.data))"""
"""SQL: all columns of an event `e` in binary form, each with its type and length. The same list as in `es.seal` (sql/0008_seals.sql)."""

_MARK: Final = struct.Struct(">ii8s")
_NUMBERS: Final = struct.Struct(">qqqi")
_SEAL_MARK: Final = re.compile(r"([1-9]\d{0,18}):([0-9a-f]{64})")


class Seal(NamedTuple):
    """One seal, as the database holds it. `first` and `last` are positions; `first` is one behind the `last` of the seal before."""

    number: int
    first: int
    last: int
    events: int
    hash: bytes


class SealMark(NamedTuple):
    """A seal to be kept outside the database: its number and its hash in hex, written `41:9f86d0…`."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


class SealedEvent(NamedTuple):
    """What a seal says about an event: where it is and the sha-256 of its columns. `stream` is empty for one whose row is archived."""

    position: int
    stream: str
    version: int
    digest: bytes


class Gap(NamedTuple):
    """A version that a stream lacks, and the positions between which it must have been. `hint` is Postgres' own hash of the stream's name."""

    stream: str
    version: int
    after: int
    before: int
    hint: int


class Fault(NamedTuple):
    """A place at which the log is not what was sealed. `stream` is empty and `version` 0 where nobody knows them, or the place is a whole seal."""

    kind: Literal["changed", "removed", "added", "missing version", "broken seal", "other log"]
    position: int
    stream: str
    version: int
    detail: str
    hint: int = 0
    """Of a removed event: the hash of its stream's name, for `name_removed`."""

    def __str__(self) -> str:
        stream = f", {self.stream} version {self.version}" if self.stream else ""
        return f"{self.kind}: position {self.position}{stream}: {self.detail}"


def parse_mark(text: str) -> SealMark:
    """Read what `str(SealMark)` wrote.

    Raises:
        ContractError: it is no such text.
    """
    found = _SEAL_MARK.fullmatch(text.strip())
    if found is None:
        raise ContractError(f"{text.strip()[:80]!r} is no seal: expected its number and hash, such as 41:9f86d0…, as `crewlog seal` prints them")
    return SealMark(int(found[1]), found[2])


def seal_hash(before: bytes, seal: Seal, digests: Iterable[bytes]) -> bytes:
    """Return the hash that a seal over these events must have.

    Args:
        before: hash of the seal before; empty for the first one.
        digests: sha-256 of each event, in the order of their positions.
    """
    return hashlib.sha256(b"".join((before, _NUMBERS.pack(seal.number, seal.first, seal.last, seal.events), *digests))).digest()


def holds(before: Seal | None, seal: Seal, digests: Sequence[bytes]) -> bool:
    """Say whether a seal goes on from the one before and covers exactly the events with these hashes."""
    follows = (seal.number, seal.first) == ((before.number + 1, before.last + 1) if before else (1, 1))
    return follows and len(digests) == seal.events and seal_hash(before.hash if before else b"", seal, digests) == seal.hash


def split(seals: Sequence[Seal], positions: Sequence[int]) -> Iterable[tuple[Seal, slice]]:
    """Deal out events, by their ascending positions, to the seals that cover them."""
    begin = 0
    for seal in seals:
        end = bisect_right(positions, seal.last, begin)
        yield seal, slice(begin, end)
        begin = end


def faults(before: Seal | None, seal: Seal, marks: bytes, events: Sequence[SealedEvent]) -> list[Fault]:
    """Say what is wrong below a seal that does not hold.

    Args:
        marks: the seal's list of events: how far each is from the first position, a hash of its stream's name, and how its own hash begins.
        events: what the log has in its place.
    """
    lost = _lost(before, seal)
    events = [event for event in events if not lost or event.position >= seal.first]
    try:
        sealed = {seal.first + offset: (hint, begin) for offset, hint, begin in _MARK.iter_unpack(marks)}
    except struct.error:
        sealed = {}
    there = {event.position: event for event in events}
    found = [
        Fault("removed", position, "", 0, f"an event was sealed here (seal {seal.number}) and is not there", hint)
        for position, (hint, _) in sealed.items()
        if position not in there
    ]
    for position, event in there.items():
        if position not in sealed:
            found.append(Fault("added", position, event.stream, event.version, f"it was not there when seal {seal.number} was made"))
        elif sealed[position][1] != event.digest[:8]:
            found.append(Fault("changed", position, event.stream, event.version, f"it is not the event that seal {seal.number} covers"))
    if not found and not lost:
        follows = "" if before is None or seal.first == before.last + 1 else f", and begins at {seal.first}, not at {before.last + 1}"
        found.append(Fault("broken seal", seal.first, "", 0, f"seal {seal.number} (up to position {seal.last}) is not the one that was made{follows}"))
    return sorted([*lost, *found], key=lambda fault: fault.position)


def _lost(before: Seal | None, seal: Seal) -> list[Fault]:
    """Name the seals that are missing in front of one. Nothing says any more what stood below them, so no event there is told apart."""
    number, behind = (0, 0) if before is None else (before.number, before.last)
    if seal.number <= number + 1:
        return []
    which = f"seal {number + 1}" if seal.number == number + 2 else f"seals {number + 1} to {seal.number - 1}"
    return [Fault("broken seal", behind + 1, "", 0, f"{which} cannot be found: nothing covers what stands in front of position {seal.first}")]


def name_removed(found: Sequence[Fault], gaps: Sequence[Gap]) -> list[Fault]:
    """Name removed events by the versions that their streams lack, and report the lacking versions that no seal covers."""
    unused = sorted(gaps, key=lambda gap: (gap.stream, gap.version))
    named = []
    for fault in sorted(found, key=lambda fault: fault.position):
        at = next((gap for gap in unused if gap.hint == fault.hint and gap.after < fault.position < gap.before), None) if fault.kind == "removed" else None
        if at is None:
            named.append(fault)
            continue
        unused.remove(at)
        named.append(fault._replace(stream=at.stream, version=at.version))
    unsealed = [Fault("missing version", gap.after, gap.stream, gap.version, "the stream lacks it; it was not sealed yet") for gap in unused]
    return sorted([*named, *unsealed], key=lambda fault: fault.position)
