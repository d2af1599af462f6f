"""What is remembered for a user or a tenant: the port to look it up, and how it gets into the log.

A memory is a short text in a stream of its own, named by the hash of the text; the index behind the port is a projection of those streams,
so it follows a moment later. Everything is limited to one tenant, and to what one user may be reminded of: their own and the tenant's.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from crewlog.events.clock import Clock
from crewlog.events.store import NO_STREAM, AppendRequest, EventStore, Write
from crewlog.schemas.errors import ConflictError
from crewlog.schemas.ids import Hash, memory_stream, remembered_event_id
from crewlog.schemas.payload import content_hash
from crewlog.schemas.system_events import MemoryRemembered
from crewlog.schemas.values import Trust

TEXT_CHARS_MAX: Final = 2_000
ABOUT_CHARS_MAX: Final = 200
MEMORIES_MAX: Final = 1_000
"""Most memories of one user, and of one tenant. Calls at the same moment may pass it by one each: the index follows the log."""
RECALLED_MAX: Final = 20
"""Most memories one look-up returns."""
QUERY_CHARS_MAX: Final = 500
TRIES_MAX: Final = 5
"""Appends tried before giving up: each lost one means that another writer won."""
TENANT: Final = ""
"""In place of a user: what the whole tenant shares."""


class Memory(NamedTuple):
    """One thing remembered. `user` is empty for what the whole tenant shares."""

    content: Hash
    user: str
    text: str
    about: str
    trust: Trust
    kind: str
    remembered_us: int


class Memories(Protocol):
    """Search in what is remembered."""

    async def search(self, tenant: str, user: str, query: str, limit: int, *, trusted_only: bool = False) -> list[Memory]:
        """Find what `user` may be reminded of by words and their stems, the best fit first; the newest when the query has no words.

        Args:
            query: at most `QUERY_CHARS_MAX` characters, no NUL.
            limit: most memories to return.
            trusted_only: leave out what came from untrusted content.
        """

    async def count(self, tenant: str, user: str) -> int:
        """Return how many memories a user has of their own; of the tenant, when `user` is empty."""


def memory_content(text: str) -> Hash:
    """Return the hash that names a memory: of its text, whatever its white space."""
    return content_hash(normalised(text).encode())


def normalised(text: str) -> str:
    """Return a text with single blanks between its words."""
    return " ".join(text.split())


async def record_memory(store: EventStore, clock: Clock, memory: MemoryRemembered, *, idempotency_key: str) -> bool:
    """Put a memory into the log unless it is there already, as trusted as this or more.

    Args:
        idempotency_key: of the tool call: a call that runs again after somebody had its memory forgotten does not bring it back.

    Returns:
        Whether this call remembered it, now or when it ran before.

    Raises:
        NotAuthorised: this login may not write memories.
        ConflictError: other writers won every try.
    """
    stream = memory_stream(memory.tenant, memory.user, memory.content)
    event_id = remembered_event_id(idempotency_key)
    conflict: ConflictError | None = None
    for _ in range(TRIES_MAX):
        history = await store.read_streams({stream: 0})
        if any(recorded.event_id == event_id for recorded in history):
            return True
        latest = history[-1].event() if history else None
        if isinstance(latest, MemoryRemembered) and not history[-1].erased_us and (latest.trust == "trusted" or memory.trust == "untrusted"):
            return False
        write = Write(stream, [memory], expected=history[-1].version if history else NO_STREAM)
        try:
            await store.append(AppendRequest([write], [event_id], clock.now_us()))
        except ConflictError as error:
            conflict = error  # somebody else wrote about the same text meanwhile: read what, and decide again
        else:
            return True
    assert conflict is not None
    raise conflict
