"""The keys of persons: what is stored about them, and the port to it.

A person (a user of a tenant) has one data key per run, so that destroying those of runs that are over touches no run that has begun meanwhile.
Data keys are stored wrapped by the key-encryption key, which is in no database. Rows are no facts: destroying one leaves only who and when.
What a key enciphers beside events, the large texts, is kept here too and goes with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

from crewlog.events.connections import Connections
from crewlog.schemas.ids import Hash

_ADD: Final = """
INSERT INTO es.person_keys (key_id, tenant, person, wrapped, kek_id, made_us) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key_id) DO NOTHING
"""
_GET: Final = "SELECT key_id, tenant, person, wrapped, kek_id, made_us, erased_us FROM es.person_keys WHERE key_id = ANY ($1::uuid[])"
_ANY: Final = "SELECT EXISTS (SELECT FROM es.person_keys)"
_OF_PERSON: Final = """
SELECT key_id, tenant, person, wrapped, kek_id, made_us, erased_us FROM es.person_keys WHERE tenant = $1 AND person = $2 ORDER BY made_us, key_id
"""
_PUT_BLOBS: Final = """
INSERT INTO es.person_blobs (key_id, hash, data) SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bytea[]) b (key_id, hash, data)
 ORDER BY b.hash ON CONFLICT DO NOTHING
"""
_GET_BLOBS: Final = "SELECT key_id, hash, data FROM es.person_blobs WHERE hash = ANY ($1::bytea[])"
_DESTROY: Final = "SELECT keys, blobs FROM es.destroy_person_keys($1, $2, $3, $4)"


class PersonKey(NamedTuple):
    """One data key as stored: of a person of a tenant. `wrapped` is None once it is destroyed, at `erased_us`.

    `key_id` is the run it was made for, or the first event outside of runs. `kek_id` names the key-encryption key that wraps it.
    """

    key_id: UUID
    tenant: str
    person: str
    wrapped: bytes | None
    kek_id: str
    made_us: int
    erased_us: int | None = None


class PersonBlob(NamedTuple):
    """A large text under a person's key: `hash` is that of the text, `data` is the ciphertext."""

    key_id: UUID
    hash: Hash
    data: bytes


class Destroyed(NamedTuple):
    """How many keys were destroyed and how many enciphered texts were deleted."""

    keys: int
    blobs: int


class PersonKeys(Protocol):
    """Where data keys are kept. All methods raise `Unavailable` when the server stays away, and `NotAuthorised`."""

    async def add(self, key: PersonKey) -> None:
        """Store a new key; one that has the id already stays."""

    async def get(self, key_ids: Sequence[UUID]) -> Mapping[UUID, PersonKey]:
        """Look keys up; what does not exist is missing from the answer."""

    async def exist(self) -> bool:
        """Say whether there ever was a key."""

    async def of_person(self, tenant: str, person: str) -> Sequence[PersonKey]:
        """List the keys of a person, the oldest first, destroyed ones among them."""

    async def put_blobs(self, blobs: Sequence[PersonBlob]) -> None:
        """Store enciphered texts; what is there already stays."""

    async def get_blobs(self, hashes: Sequence[Hash]) -> Sequence[PersonBlob]:
        """Find the texts with these hashes, under whichever keys."""

    async def destroy(self, tenant: str, person: str, key_ids: Sequence[UUID], now_us: int) -> Destroyed:
        """Destroy keys of a person and delete the texts under them, at once or not at all. Doing it again destroys nothing more.

        Raises:
            ContractError: one of them belongs to a run that has not ended.
        """


class PostgresPersonKeys:
    """The port over the tables `es.person_keys` and `es.person_blobs`."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def add(self, key: PersonKey) -> None:
        await self._connections.fetch("store a person's key", _ADD, *key[:6])

    async def get(self, key_ids: Sequence[UUID]) -> Mapping[UUID, PersonKey]:
        return {row[0]: _key(row) for row in await self._connections.fetch("look up persons' keys", _GET, list(key_ids))}

    async def exist(self) -> bool:
        return bool((await self._connections.fetch("look for persons' keys", _ANY))[0][0])

    async def of_person(self, tenant: str, person: str) -> Sequence[PersonKey]:
        return [_key(row) for row in await self._connections.fetch(f"list the keys of {person}", _OF_PERSON, tenant, person)]

    async def put_blobs(self, blobs: Sequence[PersonBlob]) -> None:
        columns = [blob.key_id for blob in blobs], [bytes.fromhex(blob.hash) for blob in blobs], [blob.data for blob in blobs]
        await self._connections.fetch("store enciphered texts", _PUT_BLOBS, *columns)

    async def get_blobs(self, hashes: Sequence[Hash]) -> Sequence[PersonBlob]:
        rows = await self._connections.fetch("fetch enciphered texts", _GET_BLOBS, [bytes.fromhex(hash_) for hash_ in hashes])
        return [PersonBlob(row[0], Hash(row[1].hex()), row[2]) for row in rows]

    async def destroy(self, tenant: str, person: str, key_ids: Sequence[UUID], now_us: int) -> Destroyed:
        rows = await self._connections.fetch(f"destroy the keys of {person}", _DESTROY, tenant, person, list(key_ids), now_us)
        return Destroyed(*rows[0])


def _key(row: Any) -> PersonKey:
    return PersonKey(*row)
