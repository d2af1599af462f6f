"""The log of a crew that keeps what is personal under keys of persons: the one place where it is enciphered and deciphered.

`PersonalStore` stands in front of any store. A run that is submitted gets a data key of its user; from then on whatever is appended for it, and
every large text of it, is stored under that key. Whoever reads gets events as they were written, or, once the key is destroyed, what is left of
them: their public form with `erased_us`. Runs without a key are stored and read as ever.

Keys that were looked up are remembered for a minute, so that a process which was reading the tasks of a run may go on for so long; whoever reads a
whole run, to look at it or to fork it, looks its key up anew. Nothing is enciphered under a key that was destroyed, since that happens only to runs
that are over, whose streams are closed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from uuid import UUID

import msgspec

from crewlog.events.clock import Clock
from crewlog.events.envelope import DataKey, Enclosed, KeyEncryptionKey, enclosed, hollow, new_secret
from crewlog.events.kek import HINT, LoadKek, kek_source
from crewlog.events.person_keys import PersonBlob, PersonKey, PersonKeys
from crewlog.events.store import Appended, AppendRequest, ArchivedRun, BudgetState, Changes, EventStore, OpenReservation, Page, Recorded
from crewlog.schemas.codec import Event, Unknown
from crewlog.schemas.errors import ConfigError, ContractError, TerminalError
from crewlog.schemas.ids import Hash, RunId, Stream
from crewlog.schemas.payload import content_hash, is_hash
from crewlog.schemas.public_form import ERASED, PERSONAL
from crewlog.schemas.run_events import RunForked, RunSubmitted
from crewlog.schemas.system_events import BillCorrected, CallSettled, MemoryRemembered, RunArchived, ScheduleAdded
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import TaskCompleted, ToolFinished

if TYPE_CHECKING:
    from crewlog.events.config import Config

REMEMBERED_S: Final = 60.0
"""How long a key, or that a run has none, is taken for granted, in seconds."""
REMEMBERED_MAX: Final = 10_000


class KeepsKeys(EventStore, Protocol):
    """A store that has a place for persons' keys."""

    @property
    def person_keys(self) -> PersonKeys: ...


class Person(NamedTuple):
    """Whose data it is."""

    tenant: str
    name: str


class _Known(NamedTuple):
    """What is known of one key id: the key, or when it was destroyed, or that there is none."""

    key: DataKey | None
    erased_us: int
    until: float


async def personal(store: KeepsKeys, kek: LoadKek, clock: Clock, *, gives_keys: bool) -> EventStore:
    """Return the store as processes should use it: the same one while no person has a key and none is to get one.

    Args:
        kek: reads the key-encryption key when it is needed.
        gives_keys: runs that are submitted from now on get a key.
    """
    if gives_keys or await store.person_keys.exist():
        return PersonalStore(store, kek, clock, gives_keys=gives_keys)
    return store


async def personal_log(store: KeepsKeys, config: Config, clock: Clock, *, works: bool = False) -> EventStore:
    """Return the store as the configuration wants it used, see `personal`.

    Args:
        works: for a process of the crew, which must not find out in the middle of a run that it has no key.

    Raises:
        ConfigError: with `works`, the key-encryption key is missing or another one.
    """
    made = await personal(store, kek_source(config.person_kek, config.home), clock, gives_keys=config.person_keys == "on")
    if works and isinstance(made, PersonalStore):
        await made.check()
    return made


class PersonalStore:
    """`EventStore` in front of another one."""

    def __init__(self, inner: KeepsKeys, kek: LoadKek, clock: Clock, *, gives_keys: bool = True) -> None:
        self.inner = inner
        self._keys, self._load, self._clock, self._gives_keys = inner.person_keys, kek, clock, gives_keys
        self._kek: KeyEncryptionKey | None = None
        self._known: OrderedDict[UUID, _Known] = OrderedDict()

    async def check(self) -> None:
        """Make sure that the key-encryption key is the one of this crew, if anything needs it: keys that were destroyed do not.

        Raises:
            ConfigError: it is missing or another one.
        """
        in_use = await self._keys.kek_in_use()
        if in_use is None and not self._gives_keys:
            return
        kek = self._key_encryption_key()
        if in_use not in (None, kek.kek_id):
            raise ConfigError(f"persons' keys were wrapped by key-encryption key {in_use}; this process has {kek.kek_id}", hint=HINT)

    async def append(self, request: AppendRequest) -> Appended:
        key = await self._key_for(request)
        if key is None:
            return await self.inner.append(request)
        if files := files_in(event for write in request.writes for event in write.events):
            await self._keys.add_files(key.key_id, files)
        return await self.inner.append(request._replace(key=key))

    async def read_streams(self, after: Mapping[Stream, int], *, types: frozenset[str] | None = None) -> Sequence[Recorded]:
        return await self.disclose(await self.inner.read_streams(after, types=types))

    async def read_last(self, streams: Collection[Stream], count: int) -> Sequence[Recorded]:
        return await self.disclose(await self.inner.read_last(streams, count))

    async def read_run(self, run_id: RunId) -> Sequence[Recorded]:
        self._known.pop(run_id, None)
        return await self.disclose(await self.inner.read_run(run_id))

    async def read_all(self, after: int, limit: int) -> Page:
        page = await self.inner.read_all(after, limit)
        return Page(await self.disclose(page.events), page.high_water)

    async def put_blobs(self, blobs: Sequence[bytes], *, run_id: RunId | None = None) -> Sequence[Hash]:
        known = None if run_id is None else (await self._look_up([run_id]))[run_id]
        if known is None or known.key is None:
            return await self.inner.put_blobs(blobs)
        hashes = [content_hash(blob) for blob in blobs]
        fresh = dict(zip(hashes, blobs, strict=True))
        await self._keys.put_blobs([PersonBlob(known.key.key_id, hash_, known.key.enclose_text(hash_, blob)) for hash_, blob in fresh.items()])
        return hashes

    async def get_blobs(self, hashes: Sequence[Hash]) -> Mapping[Hash, bytes]:
        found = dict(await self.inner.get_blobs(hashes))
        if missing := [hash_ for hash_ in hashes if hash_ not in found and is_hash(hash_)]:
            kept = await self._keys.get_blobs(missing)
            keys = await self._look_up([blob.key_id for blob in kept])
            for blob in kept:
                if blob.hash not in found and (key := keys[blob.key_id].key) is not None:
                    found[blob.hash] = key.disclose_text(blob.hash, blob.data)
        return found

    async def open_runs(self, *, after: RunId | None, limit: int) -> Sequence[RunId]:
        return await self.inner.open_runs(after=after, limit=limit)

    async def child_runs(self, run_ids: Sequence[RunId]) -> Sequence[RunId]:
        return await self.inner.child_runs(run_ids)

    async def archived_runs(self, *, came_from: Collection[RunId] = (), with_tasks: Collection[UUID] = ()) -> Sequence[ArchivedRun]:
        return await self.inner.archived_runs(came_from=came_from, with_tasks=with_tasks)

    async def count_open(self, *, after: RunId | None, limit: int) -> Mapping[RunId, int]:
        return await self.inner.count_open(after=after, limit=limit)

    async def changed_runs(self, after: int, *, positions_max: int) -> Changes:
        return await self.inner.changed_runs(after, positions_max=positions_max)

    async def set_timers(self, due: Mapping[RunId, int | None]) -> None:
        await self.inner.set_timers(due)

    async def take_due(self, now_us: int, limit: int) -> Sequence[RunId]:
        return await self.inner.take_due(now_us, limit)

    async def budgets(self, scopes: Sequence[str]) -> Mapping[str, BudgetState]:
        return await self.inner.budgets(scopes)

    async def budgets_with_room(self, needed: Mapping[str, int]) -> Collection[str]:
        return await self.inner.budgets_with_room(needed)

    async def budgets_of(self, stream: Stream) -> Mapping[str, BudgetState]:
        return await self.inner.budgets_of(stream)

    async def open_reservations(self, older_than_us: int, limit: int, *, left_over: bool = False) -> Sequence[OpenReservation]:
        return await self.inner.open_reservations(older_than_us, limit, left_over=left_over)

    async def close(self) -> None:
        await self.inner.close()

    # ── reading ──

    async def disclose(self, events: Sequence[Recorded]) -> Sequence[Recorded]:
        """Return events as they were written, or what is left of them.

        Raises:
            ConfigError: the key-encryption key is missing or another one.
            TerminalError: an event does not open with the key that it names.
        """
        closed = {at: part for at, recorded in enumerate(events) if (part := enclosed(recorded.data)) is not None}
        if not closed:
            return events
        keys = await self._look_up([part.key_id for part in closed.values()])
        opened = list(events)
        for at, part in closed.items():
            opened[at] = _disclosed(events[at], part, keys[part.key_id])
        return opened

    # ── runs from files ──

    async def adopt(self, run_id: RunId, events: Sequence[Recorded]) -> Sequence[Recorded]:
        """Return events of a run that comes from a file as they are to be stored: under its key, which it gets here if runs get keys.

        Of a run whose person's data was erased before, it stays erased.

        Raises:
            ContractError: the data of its person was erased here: its file must not bring it back.
        """
        begun = next((event for recorded in events if isinstance(event := recorded.event(), RunSubmitted | RunForked)), None)
        if begun is None:
            return events
        person = Person(begun.tenant, begun.user)
        if erased_us := max(recorded.erased_us for recorded in events):
            await self._keys.add(PersonKey(run_id, *person, None, "", erased_us, erased_us))
            self._known.pop(run_id, None)
            return [_hollow(recorded, run_id) if recorded.erased_us else recorded for recorded in events]
        known = (await self._look_up([run_id]))[run_id]
        if known.erased_us:
            raise ContractError(f"run {run_id}: its person's data was erased here; its file is not read in, and should be deleted")
        key = await self.key_of(person, run_id) if self._gives_keys else known.key
        if key is None:
            return events
        if files := files_in(event for recorded in events if not isinstance(event := recorded.event(), Unknown)):
            await self._keys.add_files(key.key_id, files)
        return [_enclosed(recorded, key) for recorded in events]

    # ── keys ──

    async def key_of(self, person: Person, key_id: UUID) -> DataKey:
        """Return the key of a person for one run, or for events outside of runs; it is made if there is none.

        Raises:
            ContractError: it was destroyed.
            ConfigError: the key-encryption key is missing or another one.
        """
        known = (await self._look_up([key_id]))[key_id]
        if known.key is None and not known.erased_us:
            kek = self._key_encryption_key()
            wrapped = kek.wrap(new_secret(), key_id, *person)
            await self._keys.add(PersonKey(key_id, *person, wrapped, kek.kek_id, self._clock.now_us()))
            self._known.pop(key_id, None)
            known = (await self._look_up([key_id]))[key_id]  # whoever came first has made it
        return _usable(key_id, known)

    async def _key_for(self, request: AppendRequest) -> DataKey | None:
        person, key_id = _whose(request)
        if key_id is None:
            return None
        if person is not None and self._gives_keys:
            return await self.key_of(person, key_id)
        known = (await self._look_up([key_id]))[key_id]
        if known.key is None and (not known.erased_us or _is_clear(request)):
            return None
        return _usable(key_id, known)

    async def _look_up(self, key_ids: Sequence[UUID]) -> Mapping[UUID, _Known]:
        now = self._clock.monotonic()
        wanted = dict.fromkeys(key_ids)
        found = {key_id: known for key_id in wanted if (known := self._known.get(key_id)) is not None and known.until >= now}
        if missing := [key_id for key_id in wanted if key_id not in found]:
            rows = await self._keys.get(missing)  # what is known may be forgotten meanwhile
            for key_id in missing:
                found[key_id] = self._known[key_id] = self._made(rows.get(key_id), now + REMEMBERED_S)
                self._known.move_to_end(key_id)
            while len(self._known) > REMEMBERED_MAX:
                self._known.popitem(last=False)
        return found

    def _made(self, row: PersonKey | None, until: float) -> _Known:
        if row is None or row.wrapped is None:
            return _Known(None, 0 if row is None else row.erased_us or 0, until)
        kek = self._key_encryption_key()
        secret = kek.unwrap(row.wrapped, row.key_id, row.tenant, row.person) if row.kek_id == kek.kek_id else None
        if secret is None:
            raise ConfigError(
                f"the key {row.key_id} of {row.person} (tenant {row.tenant}) was wrapped by key-encryption key {row.kek_id}; this process has {kek.kek_id}",
                hint=HINT,
            )
        return _Known(DataKey(row.key_id, secret), 0, until)

    def _key_encryption_key(self) -> KeyEncryptionKey:
        if self._kek is None:
            self._kek = self._load()
        return self._kek


def files_in(events: Iterable[Event]) -> list[Hash]:
    """List the artifacts that events say are attached to a run or were made in it, each once."""
    found: dict[Hash, None] = {}
    for event in events:
        match event:
            case RunSubmitted():
                found |= dict.fromkeys(Hash(file["hash"]) for file in msgspec.json.decode(event.task).get("attachments") or ())
            case ToolFinished():
                made = (*event.artifacts, *(event.outcome.artifacts if event.outcome is not None else ()))
                found |= dict.fromkeys(file.hash for file in made)
            case TaskCompleted():
                found |= dict.fromkeys(file.hash for file in event.outcome.artifacts)
    return list(found)


def _enclosed(recorded: Recorded, key: DataKey) -> Recorded:
    event = recorded.event()
    if isinstance(event, Unknown):
        return recorded  # nobody knows what in it is personal
    return msgspec.structs.replace(recorded, data=key.enclose(event, recorded.data, recorded.event_id, recorded.stream))


def _hollow(recorded: Recorded, key_id: UUID) -> Recorded:
    public = recorded.data.replace(f'"{ERASED}"'.encode(), f'"{PERSONAL}"'.encode())
    return msgspec.structs.replace(recorded, data=hollow(public, key_id))


def _usable(key_id: UUID, known: _Known) -> DataKey:
    if known.key is None:
        raise ContractError(f"the key {key_id} was destroyed together with its person's data: nothing more is recorded under it")
    return known.key


def _is_clear(request: AppendRequest) -> bool:
    """Say whether an append is one that may follow when a person's data is erased: the run goes to a file, or a call is billed that was under way."""
    events = (event for write in request.writes for event in write.events)
    return all(isinstance(event, CallSettled | BillCorrected) or (isinstance(event, RunArchived) and event.goal == ERASED) for event in events)


def _whose(request: AppendRequest) -> tuple[Person | None, UUID | None]:
    """Say which key an append belongs to, and whose it is if it may be the first under it."""
    events = (event for write in request.writes for event in write.events)
    for event, event_id in zip(events, request.event_ids, strict=False):  # whether there is an id for each is looked at later
        match event:
            case RunSubmitted() | RunForked():
                return Person(event.tenant, event.user), event.run_id
            case MemoryRemembered() | RunArchived():
                return None, event.run_id
            case ScheduleAdded():
                task = msgspec.json.decode(event.task)
                return Person(event.tenant, task.get("user", AgentTask.user)), event_id
    return None, request.run_id


def _disclosed(recorded: Recorded, part: Enclosed, known: _Known) -> Recorded:
    if known.key is not None:
        data = known.key.disclose(part.data, recorded.event_id, recorded.stream, recorded.type)
        return msgspec.structs.replace(recorded, data=data)
    if not known.erased_us:
        raise TerminalError(
            f"event {recorded.event_id} of {recorded.stream} is enciphered with key {part.key_id}, which this database does not have: "
            "it comes from another crew, or the table es.person_keys was not restored"
        )
    return msgspec.structs.replace(recorded, data=_left(recorded.data), erased_us=known.erased_us)


def _left(data: bytes) -> bytes:
    """Return what is left of the stored form of an event: its public form, which says that it is one."""
    public, _, _ = data.rpartition(b',"personal":"')
    return public.replace(f'"{PERSONAL}"'.encode(), f'"{ERASED}"'.encode()) + b"}"
