"""Memories folded from any log on demand: for tests, and for programs without Postgres. Answers the same contract as the index in Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from crewlog.agents.knowledge_memory import terms
from crewlog.agents.memories import QUERY_CHARS_MAX, TENANT, Memory
from crewlog.events.store import EventStore
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash
from crewlog.schemas.system_events import MemoryForgotten, MemoryRemembered

_PAGE_EVENTS = 1_000


def ranked(query: str, memories: Iterable[tuple[int, Memory]]) -> list[Memory]:
    """Order memories by how many of the words asked for they have, then the newest first; without any word, all of them.

    Args:
        memories: each with a number that is higher for a newer one.
    """
    asked = set(terms(query))
    found = [(len(asked.intersection(terms(f"{memory.about} {memory.text}"))), age, memory) for age, memory in memories]
    return [memory for _, _, memory in sorted((hit for hit in found if hit[0] or not asked), key=lambda hit: (-hit[0], -hit[1]))]


class LocalMemories:
    """The `Memories` port over an `EventStore`. Every call first folds what the log has got since the last one."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._position = 0
        self._known: dict[tuple[str, str, Hash], tuple[int, Memory]] = {}
        self._folding = asyncio.Lock()

    async def search(self, tenant: str, user: str, query: str, limit: int, *, trusted_only: bool = False) -> list[Memory]:
        if "\0" in query or len(query) > QUERY_CHARS_MAX:
            raise ContractError(f"a query has at most {QUERY_CHARS_MAX} characters and no NUL; got {len(query)} characters")
        await self._catch_up()
        return ranked(
            query,
            [
                (position, memory)
                for (owner, whose, _), (position, memory) in self._known.items()
                if owner == tenant and whose in (user, TENANT) and (memory.trust == "trusted" or not trusted_only)
            ],
        )[:limit]

    async def count(self, tenant: str, user: str) -> int:
        await self._catch_up()
        return sum((owner, whose) == (tenant, user) for owner, whose, _ in self._known)

    async def _catch_up(self) -> None:
        async with self._folding:
            while (page := await self._store.read_all(self._position, _PAGE_EVENTS)).events:
                for recorded in page.events:
                    event = recorded.event()
                    if isinstance(event, MemoryRemembered):
                        memory = Memory(event.content, event.user, event.text, event.about, event.trust, event.kind, recorded.occurred_us)
                        self._known[event.tenant, event.user, event.content] = recorded.position, memory
                    elif isinstance(event, MemoryForgotten):
                        self._known.pop((event.tenant, event.user, event.content), None)
                self._position = page.events[-1].position
