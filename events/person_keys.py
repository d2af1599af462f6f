"""The keys of persons: what is stored about them, and the port to it.

A person (a user of a tenant) has one data key per run, so that destroying those of runs that are over touches no run that has begun meanwhile.
Data keys are stored wrapped by the key-encryption key, which is in no database. Rows are no facts: destroying one leaves only who and when.
What a key enciphers beside events, the large texts, is kept here too and goes with it; and which files its run refers to, so that those that
nobody else has can be deleted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

from crewlog.events.connections import Connections
from crewlog.schemas.ids import Hash, Stream

_ADD: Final = """
INSERT INTO es.person_keys (key_id, tenant, person, wrapped, kek_id, made_us, erased_us) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (key_id) DO NOTHING
"""
_GET: Final = "SELECT key_id, tenant, person, wrapped, kek_id, made_us, erased_us FROM es.person_keys WHERE key_id = ANY ($1::uuid[])"
_ANY: Final = "SELECT EXISTS (SELECT FROM es.person_keys)"
_KEK_IN_USE: Final = "SELECT kek_id FROM es.person_keys WHERE wrapped IS NOT NULL LIMIT 1"
_OF_PERSON: Final = """
SELECT k.key_id, k.tenant, k.person, k.wrapped, k.kek_id, k.made_us, k.erased_us,
       coalesce((SELECT s.stream_id FROM es.streams s WHERE s.stream_id = 'run/' || k.key_id),
                (SELECT e.stream_id FROM es.events e WHERE e.event_id = k.key_id)),
       EXISTS (SELECT FROM es.streams s WHERE s.stream_id = 'run/' || k.key_id AND s.closed_at IS NULL)
  FROM es.person_keys k WHERE k.tenant = $1 AND k.person = $2 ORDER BY k.made_us, k.key_id
"""
_PUT_BLOBS: Final = """
INSERT INTO es.person_blobs (key_id, hash, data) SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bytea[]) b (key_id, hash, data)
 ORDER BY b.hash ON CONFLICT DO NOTHING
"""
_GET_BLOBS: Final = "SELECT key_id, hash, data FROM es.person_blobs WHERE hash = ANY ($1::bytea[])"
_ADD_FILES: Final = "INSERT INTO es.person_files (key_id, hash) SELECT $1, h FROM unnest($2::bytea[]) u (h) ORDER BY h ON CONFLICT DO NOTHING"
_FILES: Final = """
SELECT DISTINCT f.hash FROM es.person_files f WHERE f.key_id = ANY ($1::uuid[])
   AND NOT EXISTS (SELECT FROM es.person_files o WHERE o.hash = f.hash AND o.key_id <> ALL ($1::uuid[]))
"""
_DROP_FILES: Final = "DELETE FROM es.person_files WHERE key_id = ANY ($1::uuid[])"
_DROP_TEXT: Final = "SELECT es.drop_erased_text($1, $2)"
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


class KeyUse(NamedTuple):
    """A key, and where it was used first: the stream of its run, or one outside of runs; None when nothing was ever recorded under it.

    `is_open`: the run has not ended.
    """

    key: PersonKey
    stream: Stream | None
    is_open: bool


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

    async def kek_in_use(self) -> str | None:
        """Name the key-encryption key that wraps the keys there are; None without any."""

    async def of_person(self, tenant: str, person: str) -> Sequence[KeyUse]:
        """List the keys of a person, the oldest first, destroyed ones among them."""

    async def put_blobs(self, blobs: Sequence[PersonBlob]) -> None:
        """Store enciphered texts; what is there already stays."""

    async def get_blobs(self, hashes: Sequence[Hash]) -> Sequence[PersonBlob]:
        """Find the texts with these hashes, under whichever keys."""

    async def add_files(self, key_id: UUID, hashes: Sequence[Hash]) -> None:
        """Note that the run of a key refers to these artifacts."""

    async def files_of(self, key_ids: Sequence[UUID]) -> Sequence[Hash]:
        """List the artifacts that runs of these keys refer to, and runs of no other key."""

    async def drop_files(self, key_ids: Sequence[UUID]) -> None:
        """Forget which artifacts the runs of these keys refer to."""

    async def drop_text(self, tenant: str, content: Hash) -> bool:
        """Delete the text of a document whose stream says that it is erased; False when another document has the same text."""

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
        await self._connections.fetch("store a person's key", _ADD, *key)

    async def get(self, key_ids: Sequence[UUID]) -> Mapping[UUID, PersonKey]:
        return {row[0]: _key(row) for row in await self._connections.fetch("look up persons' keys", _GET, list(key_ids))}

    async def exist(self) -> bool:
        return bool((await self._connections.fetch("look for persons' keys", _ANY))[0][0])

    async def kek_in_use(self) -> str | None:
        rows = await self._connections.fetch("look for persons' keys", _KEK_IN_USE)
        return rows[0][0] if rows else None

    async def of_person(self, tenant: str, person: str) -> Sequence[KeyUse]:
        rows = await self._connections.fetch(f"list the keys of {person}", _OF_PERSON, tenant, person)
        return [KeyUse(PersonKey(*row[:7]), row[7] and Stream(row[7]), row[8]) for row in rows]

    async def put_blobs(self, blobs: Sequence[PersonBlob]) -> None:
        columns = [blob.key_id for blob in blobs], [bytes.fromhex(blob.hash) for blob in blobs], [blob.data for blob in blobs]
        await self._connections.fetch("store enciphered texts", _PUT_BLOBS, *columns)

    async def get_blobs(self, hashes: Sequence[Hash]) -> Sequence[PersonBlob]:
        rows = await self._connections.fetch("fetch enciphered texts", _GET_BLOBS, [bytes.fromhex(hash_) for hash_ in hashes])
        return [PersonBlob(row[0], Hash(row[1].hex()), row[2]) for row in rows]

    async def add_files(self, key_id: UUID, hashes: Sequence[Hash]) -> None:
        await self._connections.fetch("note the files of a run", _ADD_FILES, key_id, [bytes.fromhex(hash_) for hash_ in hashes])

    async def files_of(self, key_ids: Sequence[UUID]) -> Sequence[Hash]:
        return [Hash(row[0].hex()) for row in await self._connections.fetch("list the files of runs", _FILES, list(key_ids))]

    async def drop_files(self, key_ids: Sequence[UUID]) -> None:
        await self._connections.fetch("forget the files of runs", _DROP_FILES, list(key_ids))

    async def drop_text(self, tenant: str, content: Hash) -> bool:
        return bool((await self._connections.fetch(f"delete the text of document {content}", _DROP_TEXT, tenant, content))[0][0])

    async def destroy(self, tenant: str, person: str, key_ids: Sequence[UUID], now_us: int) -> Destroyed:
        rows = await self._connections.fetch(f"destroy the keys of {person}", _DESTROY, tenant, person, list(key_ids), now_us)
        return Destroyed(*rows[0])


def _key(row: Any) -> PersonKey:
    return PersonKey(*row)
