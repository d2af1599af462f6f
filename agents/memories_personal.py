"""Memories under keys of persons: the index in the database knows that they are there, and only who has the keys knows what they say.

So the words are looked for here, among all that a user may be reminded of, which is bounded (`MEMORIES_MAX` for each of the two owners).
"""

from __future__ import annotations

from crewlog.agents.memories import MEMORIES_MAX, TENANT, Memories, Memory
from crewlog.agents.memories_local import ranked
from crewlog.events.store import EventStore
from crewlog.schemas.ids import memory_stream
from crewlog.schemas.public_form import PERSONAL
from crewlog.schemas.system_events import MemoryRemembered


class PersonalMemories:
    """The `Memories` port over an index whose texts may be under keys, and the log that has them."""

    def __init__(self, index: Memories, store: EventStore) -> None:
        self._index, self._store = index, store

    async def search(self, tenant: str, user: str, query: str, limit: int, *, trusted_only: bool = False) -> list[Memory]:
        everything = await self._index.search(tenant, user, "", 2 * MEMORIES_MAX, trusted_only=trusted_only)
        hidden = [memory for memory in everything if memory.text == PERSONAL]
        if not hidden:
            return await self._index.search(tenant, user, query, limit, trusted_only=trusted_only)
        texts = await self._texts(tenant, hidden)
        known = [texts.get((memory.user, memory.content), memory) for memory in everything]
        return ranked(query, ((memory.remembered_us, memory) for memory in known if memory.text != PERSONAL))[:limit]

    async def count(self, tenant: str, user: str) -> int:
        return await self._index.count(tenant, user)

    async def _texts(self, tenant: str, hidden: list[Memory]) -> dict[tuple[str, str], Memory]:
        """Read what hidden memories say; those whose key was destroyed are left out."""
        streams = {memory_stream(tenant, memory.user, memory.content): 0 for memory in hidden}
        said: dict[tuple[str, str], MemoryRemembered] = {}
        for recorded in await self._store.read_streams(streams):
            event = recorded.event()
            if isinstance(event, MemoryRemembered) and not recorded.erased_us:
                said[event.user or TENANT, event.content] = event
        return {key: memory._replace(text=said[key].text, about=said[key].about) for memory in hidden if (key := (memory.user, memory.content)) in said}
