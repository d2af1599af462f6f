"""Find texts and files that nothing in the log refers to, and delete those that nobody has used within the last day.

What an event refers to is named in it by a hash of 64 digits, wherever that stands: whatever looks like one keeps what it may name. Runs that went to files
have their texts in those. A process that is about to refer to a text or file puts it first, or did so within the last hour, see `blobs`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from crewlog.events.connections import Connections
from crewlog.events.store import EventStore
from crewlog.schemas.ids import Hash

PER_CALL: Final = 1_000
PAGE_EVENTS: Final = 1_000
_HASH: Final = re.compile(rb"(?<![0-9A-Za-z_])[0-9a-f]{64}(?![0-9A-Za-z_])")
_PERSONS: Final = "SELECT EXISTS (SELECT FROM es.person_keys)"
_MENTIONED: Final = "SELECT DISTINCT decode(m[1], 'hex') FROM es.events e, regexp_matches(e.data::text, '\\m([0-9a-f]{64})\\M', 'g') m"
_OLD: Final = "SELECT hash FROM es.blobs WHERE put_at < $1"
_PRUNE: Final = "SELECT blobs, bytes FROM es.prune_blobs($1::bytea[], $2)"


class Pruned(NamedTuple):
    """How many blobs went, and the bytes that they took as stored."""

    blobs: int
    bytes: int


async def mentioned(connections: Connections, store: EventStore) -> set[bytes]:
    """Return every hash that an event names. Reads the whole log; what is under keys of persons, in this process.

    Args:
        store: the log as it was written, see `personal_log`.

    Raises:
        ConfigError: persons have keys, and the key to those is missing or another one: nobody could tell what their events refer to.
    """
    used = {bytes(row[0]) for row in await connections.fetch("look what events refer to", _MENTIONED)}
    if (await connections.fetch("look for keys of persons", _PERSONS))[0][0]:
        after = 0
        while (page := await store.read_all(after, PAGE_EVENTS)).events:
            used.update(bytes.fromhex(hash_.decode()) for event in page.events for hash_ in _HASH.findall(event.data))
            after = page.events[-1].position
    return used


async def unused_blobs(connections: Connections, used: Collection[bytes], before: datetime) -> list[bytes]:
    """Return the hashes of blobs that nobody has put since `before` and that are not among those in use."""
    return [bytes(row[0]) for row in await connections.fetch("list blobs", _OLD, before) if bytes(row[0]) not in used]


async def prune_blobs(connections: Connections, hashes: Sequence[bytes], before: datetime) -> Pruned:
    """Delete blobs, but for those that somebody has put since `before`.

    Raises:
        ContractError: `before` is less than a day ago.
        NotAuthorised: this login may not.
    """
    blobs = size = 0
    for begin in range(0, len(hashes), PER_CALL):
        row = (await connections.fetch("delete blobs", _PRUNE, hashes[begin : begin + PER_CALL], before))[0]
        blobs, size = blobs + row[0], size + row[1]
    return Pruned(blobs, size)


def is_used(hash_: Hash, used: Collection[bytes]) -> bool:
    """Say whether an event names this hash."""
    return bytes.fromhex(hash_) in used
