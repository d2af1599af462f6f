"""The keys of persons in memory: the same behaviour as in Postgres, for tests and simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from crewlog.events.person_keys import Destroyed, KeyUse, PersonBlob, PersonKey
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash, Stream


@dataclass(slots=True)
class KeyTables:
    """What the tables of a database would hold."""

    keys: dict[UUID, PersonKey] = field(default_factory=dict)
    blobs: dict[tuple[Hash, UUID], bytes] = field(default_factory=dict)
    files: set[tuple[Hash, UUID]] = field(default_factory=set)


class MemoryPersonKeys:
    """The `PersonKeys` port over the tables of a `MemoryLog`.

    Args:
        tables: shared by all stores of the log.
        first_stream: says where a key was used first.
        is_open: says whether a run, or a task of it, has not ended.
        drop_text: deletes the text of an erased document.
    """

    def __init__(
        self,
        tables: KeyTables,
        first_stream: Callable[[UUID], Stream | None],
        is_open: Callable[[UUID], bool],
        drop_text: Callable[[str, Hash], bool],
    ) -> None:
        self._tables, self._first_stream, self._is_open, self._drop_text = tables, first_stream, is_open, drop_text

    async def add(self, key: PersonKey) -> None:
        self._tables.keys.setdefault(key.key_id, key)

    async def get(self, key_ids: Sequence[UUID]) -> Mapping[UUID, PersonKey]:
        return {key_id: self._tables.keys[key_id] for key_id in key_ids if key_id in self._tables.keys}

    async def exist(self) -> bool:
        return bool(self._tables.keys)

    async def kek_in_use(self) -> str | None:
        return next((key.kek_id for key in self._tables.keys.values() if key.wrapped is not None), None)

    async def of_person(self, tenant: str, person: str) -> Sequence[KeyUse]:
        own = [key for key in self._tables.keys.values() if (key.tenant, key.person) == (tenant, person)]
        return [KeyUse(k, self._first_stream(k.key_id), self._is_open(k.key_id)) for k in sorted(own, key=lambda key: (key.made_us, key.key_id))]

    async def put_blobs(self, blobs: Sequence[PersonBlob]) -> None:
        for blob in blobs:
            self._tables.blobs.setdefault((blob.hash, blob.key_id), blob.data)

    async def get_blobs(self, hashes: Sequence[Hash]) -> Sequence[PersonBlob]:
        wanted = frozenset(hashes)
        return [PersonBlob(key_id, hash_, data) for (hash_, key_id), data in self._tables.blobs.items() if hash_ in wanted]

    async def add_files(self, key_id: UUID, hashes: Sequence[Hash]) -> None:
        self._tables.files.update((hash_, key_id) for hash_ in hashes)

    async def files_of(self, key_ids: Sequence[UUID]) -> Sequence[Hash]:
        others = {hash_ for hash_, key_id in self._tables.files if key_id not in key_ids}
        return sorted({hash_ for hash_, key_id in self._tables.files if key_id in key_ids} - others)

    async def drop_files(self, key_ids: Sequence[UUID]) -> None:
        self._tables.files.difference_update([place for place in self._tables.files if place[1] in key_ids])

    async def drop_text(self, tenant: str, content: Hash) -> bool:
        return self._drop_text(tenant, content)

    async def destroy(self, tenant: str, person: str, key_ids: Sequence[UUID], now_us: int) -> Destroyed:
        still_open = next((key_id for key_id in key_ids if self._is_open(key_id)), None)
        if still_open is not None:
            raise ContractError(f"destroy the keys of {person}: the keys of {person} of tenant {tenant} stay: run {still_open} has not ended")
        own = {key.key_id: key for key_id in key_ids if (key := self._tables.keys.get(key_id)) and (key.tenant, key.person) == (tenant, person)}
        going = [key for key in own.values() if key.wrapped is not None]
        for key in going:
            self._tables.keys[key.key_id] = key._replace(wrapped=None, erased_us=now_us)
        texts = [place for place in self._tables.blobs if place[1] in own]
        for place in texts:
            del self._tables.blobs[place]
        return Destroyed(len(going), len(texts))
