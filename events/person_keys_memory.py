"""The keys of persons in memory: the same behaviour as in Postgres, for tests and simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from crewlog.events.person_keys import Destroyed, PersonBlob, PersonKey
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash


class MemoryPersonKeys:
    """The `PersonKeys` port over two dictionaries of a `MemoryLog`."""

    def __init__(self, keys: dict[UUID, PersonKey], blobs: dict[tuple[Hash, UUID], bytes], is_open: Callable[[UUID], bool]) -> None:
        self._keys, self._blobs, self._is_open = keys, blobs, is_open

    async def add(self, key: PersonKey) -> None:
        self._keys.setdefault(key.key_id, key)

    async def get(self, key_ids: Sequence[UUID]) -> Mapping[UUID, PersonKey]:
        return {key_id: self._keys[key_id] for key_id in key_ids if key_id in self._keys}

    async def exist(self) -> bool:
        return bool(self._keys)

    async def of_person(self, tenant: str, person: str) -> Sequence[PersonKey]:
        own = [key for key in self._keys.values() if (key.tenant, key.person) == (tenant, person)]
        return sorted(own, key=lambda key: (key.made_us, key.key_id))

    async def put_blobs(self, blobs: Sequence[PersonBlob]) -> None:
        for blob in blobs:
            self._blobs.setdefault((blob.hash, blob.key_id), blob.data)

    async def get_blobs(self, hashes: Sequence[Hash]) -> Sequence[PersonBlob]:
        wanted = frozenset(hashes)
        return [PersonBlob(key_id, hash_, data) for (hash_, key_id), data in self._blobs.items() if hash_ in wanted]

    async def destroy(self, tenant: str, person: str, key_ids: Sequence[UUID], now_us: int) -> Destroyed:
        still_open = next((key_id for key_id in key_ids if self._is_open(key_id)), None)
        if still_open is not None:
            raise ContractError(f"destroy the keys of {person}: the keys of {person} of tenant {tenant} stay: run {still_open} has not ended")
        going = [key for key_id in key_ids if (key := self._keys.get(key_id)) and (key.tenant, key.person) == (tenant, person) and key.wrapped is not None]
        for key in going:
            self._keys[key.key_id] = key._replace(wrapped=None, erased_us=now_us)
        destroyed = {key_id for key_id in key_ids if (key := self._keys.get(key_id)) is not None and key.erased_us is not None}
        texts = [place for place in self._blobs if place[1] in destroyed]
        for place in texts:
            del self._blobs[place]
        return Destroyed(len(going), len(texts))
