"""Erase a person's data: destroy the keys it is stored under, say so in the log, and delete what crewlog keeps besides the log.

The log itself is not touched, so its seals hold. First everything is found and every hindrance named; then the keys of all runs that are over
are destroyed in one transaction; what follows (files, texts of documents, the fact) is taken up again by whoever asks for the same once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from crewlog.agents.memories import MEMORIES_MAX
from crewlog.events.artifacts import ArtifactStore
from crewlog.events.clock import Clock
from crewlog.events.person_keys import KeyUse, PersonKeys
from crewlog.events.personal_store import KeepsKeys, Person
from crewlog.events.store import ANY, AppendRequest, EventStore, Write
from crewlog.projections.queries import Queries
from crewlog.schemas.errors import ContractError, NotFound, Unavailable
from crewlog.schemas.ids import Hash, RunId, category, document_stream, erasure_event_id, memory_stream, person_stream
from crewlog.schemas.system_events import DocumentErased, DocumentIngested, MemoryForgotten, PersonErased, ScheduleAdded, ScheduleRemoved

if TYPE_CHECKING:
    from crewlog.orchestrator.client import Client

RUNS_PER_EVENT: Final = 2_000
"""Runs that one `PersonErased` names: it stays well below the largest event."""
NAMED_MAX: Final = 5
"""Runs that an error names before it only counts them."""


class Found(NamedTuple):
    """What there is of a person: keys that may go, keys that went before, open runs and schedules that are in the way, and runs without a key."""

    person: Person
    keys: Sequence[KeyUse]
    gone: Sequence[KeyUse]
    open_runs: Sequence[RunId]
    schedules: Sequence[str]
    in_clear: Sequence[RunId]


class Erased(NamedTuple):
    """What was done. `erased_us` is when, `position` where the log says so; `files` and `documents` were deleted; `in_clear` stays as it is."""

    person: Person
    keys: int
    runs: int
    blobs: int
    files: int
    documents: int
    memories: int
    erased_us: int
    position: int
    in_clear: Sequence[RunId]
    archived: Sequence[str]
    """Names of files that archived runs went to: they hold ciphertext that nothing opens any more, or, written without keys, the run itself."""


async def find(store: KeepsKeys, queries: Queries, person: Person) -> Found:
    """Look for everything of a person.

    Raises:
        NotFound: the crew has never heard of such a user.
    """
    uses = [use for use in await store.person_keys.of_person(*person) if use.stream is not None]
    known = {use.key.key_id for use in uses}
    runs = await _runs_of(queries, person)
    if not uses and not runs:
        raise NotFound(f"user (tenant {person.tenant})", person.name)
    schedules = [name for use in uses if use.key.erased_us is None and (name := await _recurs(store, use)) is not None]
    in_the_way = {use.key.key_id for use in uses if use.is_open or str(use.stream) in schedules}
    return Found(
        person,
        keys=[use for use in uses if use.key.erased_us is None and use.key.key_id not in in_the_way],
        gone=[use for use in uses if use.key.erased_us is not None],
        open_runs=[RunId(use.key.key_id) for use in uses if use.is_open],
        schedules=schedules,
        in_clear=[run_id for run_id in runs if run_id not in known],
    )


async def end_runs(client: Client, found: Found, *, actor: str) -> None:
    """Terminate what is under way of a person, and wait for the ends: a run that nobody terminated would be waited for until it ends by itself.

    Raises:
        Unavailable: some could not be terminated; asking again is safe.
    """
    told = await client.control.runs("terminate", found.open_runs, reason="erasure", actor=actor, tenant=found.person.tenant)
    left = [run for run in told if run.status == "unknown"]
    if left:
        count, named = f"{len(left)} {'run' if len(left) == 1 else 'runs'}", _named([run.run_id for run in left])
        raise Unavailable(
            f"{count} of {found.person.name} could not be ended, so nothing was erased: {named}: {left[0].error}\n"
            "give the same command again; crewlog doctor says what does not answer"
        )
    for run_id in found.open_runs:
        await client.wait(run_id)


def refuse_hindrances(found: Found) -> None:
    """Refuse to erase while something of the person goes on.

    Raises:
        ContractError: naming what is in the way and how to get it out of there.
    """
    name = found.person.name
    if found.schedules:
        named = ", ".join(stream.split("/", 2)[2] for stream in found.schedules)
        raise ContractError(f"{name} has schedules that recur: {named}\nremove them first: crewlog schedule remove NAME")
    if found.open_runs:
        raise ContractError(f"{name} has {len(found.open_runs)} runs that have not ended: {_named(found.open_runs)}\nwait for them, or end them: --terminate")


def _named(run_ids: Sequence[UUID]) -> str:
    more = f" and {len(run_ids) - NAMED_MAX} more" if len(run_ids) > NAMED_MAX else ""
    return f"{', '.join(map(str, run_ids[:NAMED_MAX]))}{more}"


class Eraser:
    """Erases what was found, with a login that may destroy keys."""

    def __init__(self, store: EventStore, keys: PersonKeys, artifacts: ArtifactStore, queries: Queries, clock: Clock) -> None:
        self._store, self._keys, self._artifacts, self._queries, self._clock = store, keys, artifacts, queries, clock

    async def erase(self, found: Found, *, actor: str, reason: str) -> Erased:
        """Erase the data of a person, or bring to its end what was begun before.

        Raises:
            ContractError: a run has begun meanwhile that is under one of the keys.
            NotAuthorised: this login may not destroy keys.
        """
        person, going = found.person, [use.key.key_id for use in found.keys]
        erased_us = self._clock.now_us()
        destroyed = await self._keys.destroy(*person, going, erased_us)
        told = {} if not going else {erased_us: [*going]}
        for use in found.gone:
            told.setdefault(use.key.erased_us or 0, []).append(use.key.key_id)
        every = [use.key.key_id for use in (*found.keys, *found.gone)]
        files = list(await self._keys.files_of(every))
        documents = await self._erase_documents(person, files, actor)
        deleted = sum([await self._artifacts.delete(hash_) for hash_ in files if hash_ not in documents.kept])
        await self._keys.drop_files(every)
        memories = await self._forget(person, every, actor)
        position, last_us = 0, max(told, default=0)
        for at_us, key_ids in told.items():
            counts = (destroyed.blobs, deleted) if at_us == last_us else (0, 0)  # the last one may have been interrupted before it deleted
            position = max(position, await self._tell(person, key_ids, at_us, actor, reason, *counts))
        runs = [use for use in found.keys if category(str(use.stream)) == "run"]
        archived = await self._queries.archive_files(every)
        return Erased(person, destroyed.keys, len(runs), destroyed.blobs, deleted, documents.erased, memories, last_us, position, found.in_clear, archived)

    async def _tell(self, person: Person, key_ids: Sequence[UUID], at_us: int, actor: str, reason: str, blobs: int, files: int) -> int:
        """Append the fact, in several events if need be, once."""
        stream, position = person_stream(*person), 0
        ordered = sorted(map(RunId, key_ids))
        for part, first in enumerate(range(0, len(ordered), RUNS_PER_EVENT)):
            counts = (blobs, files) if part == 0 else (0, 0)
            fact = PersonErased(*person, actor, at_us, tuple(ordered[first : first + RUNS_PER_EVENT]), reason, *counts)
            event_id = erasure_event_id(*person, erased_us=at_us, part=part)
            appended = await self._store.append(AppendRequest([Write(stream, [fact], ANY)], [event_id], self._clock.now_us()))
            position = appended.positions[0]
        return position

    async def _forget(self, person: Person, run_ids: Sequence[UUID], actor: str) -> int:
        """Have forgotten what these runs remembered, also for the whole tenant: its texts are gone."""
        own = frozenset(run_ids)
        remembered = [m for m in await self._queries.memories(person.tenant, user=person.name, limit=2 * MEMORIES_MAX) if m.run_id in own]
        for memory in remembered:
            fact = MemoryForgotten(memory.tenant, memory.user_name or "", Hash(memory.content), actor)
            stream = memory_stream(fact.tenant, fact.user, fact.content)
            await self._store.append(AppendRequest([Write(stream, [fact], ANY)], [self._clock.new_id()], self._clock.now_us()))
        return len(remembered)

    async def _erase_documents(self, person: Person, files: Sequence[Hash], actor: str) -> _Documents:
        """Take attached files out of the search index; those that are in the library are the tenant's, and stay."""
        kept: set[Hash] = set()
        erased = 0
        for content in files:
            history = await self._store.read_streams({document_stream(person.tenant, content): 0})
            last = history[-1].event() if history else None
            if isinstance(last, DocumentIngested) and last.library:
                kept.add(content)
                continue
            if isinstance(last, DocumentIngested):
                fact = DocumentErased(person.tenant, content, actor)
                await self._store.append(AppendRequest([Write(history[-1].stream, [fact], history[-1].version)], [self._clock.new_id()], self._clock.now_us()))
            if history:
                await self._keys.drop_text(person.tenant, content)
                erased += 1
        return _Documents(erased, frozenset(kept))


class _Documents(NamedTuple):
    erased: int
    kept: frozenset[Hash]


async def _runs_of(queries: Queries, person: Person) -> list[RunId]:
    return [RunId(run.run_id) async for run in queries.every_run(tenant=person.tenant, user=person.name)]


async def _recurs(store: EventStore, use: KeyUse) -> str | None:
    """Return the stream of a schedule that was added under this key and still recurs."""
    if use.stream is None or category(use.stream) != "schedule":
        return None
    live = None
    for recorded in await store.read_streams({use.stream: 0}, types=frozenset({ScheduleAdded.__name__, ScheduleRemoved.__name__})):
        live = recorded.event_id if recorded.type == ScheduleAdded.__name__ else None
    return use.stream if live == use.key.key_id else None
