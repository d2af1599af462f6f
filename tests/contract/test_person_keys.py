"""Persons' keys: what the memory log and Postgres keep, encipher, give back and destroy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from support.logs import CLOCK, InMemory, InPostgres, Log, asked, cancelled, dispatched, new_run, new_task, request, started, to_run, to_task

from crewlog.events.envelope import KeyEncryptionKey, new_secret
from crewlog.events.grants import ARCHIVIST, ORCHESTRATOR, PROJECTOR, kind_role
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.events.person_keys import PersonKey
from crewlog.events.person_keys_memory import MemoryPersonKeys
from crewlog.events.personal_store import Person, PersonalStore, personal
from crewlog.events.store import NO_STREAM, AppendRequest, BudgetState, Reservation, Write
from crewlog.orchestrator.left_over import settle_left_over
from crewlog.schemas.budget import ScopeLimit, run_scope
from crewlog.schemas.errors import ConfigError, ContractError, NotAuthorised, TerminalError
from crewlog.schemas.ids import RunId, TaskId, document_stream, memory_stream, reservation_id, run_stream, schedule_stream, spend_stream, task_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.public_form import ERASED, PERSONAL
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.system_events import BillCorrected, DocumentErased, DocumentIngested, MemoryRemembered, ScheduleAdded
from crewlog.schemas.task_events import Nudged, TaskCancelled, TaskOpened
from crewlog.schemas.usage import Price, Usage

pytestmark = pytest.mark.hand_written("tries the log with texts of a person in events of a few kinds")

MARKER = "Ada was born in 1815"
FILE = content_hash(b"a file")
RESEARCH = kind_role("research")
KEK = KeyEncryptionKey(new_secret())


async def opened(log: Log, role: str = ORCHESTRATOR, *, kek: KeyEncryptionKey = KEK) -> PersonalStore:
    inner = await log.open(role)
    return PersonalStore(inner, lambda: kek, CLOCK)


def submitted(run_id: RunId, user: str = "ada") -> RunSubmitted:
    return RunSubmitted(run_id, "default", user, MARKER, msgspec.Raw(msgspec.json.encode({"objective": MARKER, "user": user})), "api")


def opening(run_id: RunId, task_id: TaskId | None = None, user: str = "ada") -> AppendRequest:
    writes = [Write(run_stream(run_id), [submitted(run_id, user)], NO_STREAM)]
    if task_id is not None:
        opened_with = msgspec.Raw(msgspec.json.encode({"objective": MARKER}))
        writes.append(Write(task_stream(task_id), [TaskOpened("research", "step", 0, opened_with)], NO_STREAM, "research"))
    return request(*writes, run_id=run_id, task_id=task_id)


async def ended(store: PersonalStore, user: str = "ada") -> RunId:
    """Record a run that is over."""
    run_id = new_run()
    await store.append(opening(run_id, user=user))
    await store.append(to_run(run_id, cancelled(), expected=1))
    return run_id


async def test_events_come_back_as_written_and_are_stored_without_the_text(log: Log) -> None:
    store, run_id, task_id = await opened(log), new_run(), new_task()
    await store.append(opening(run_id, task_id))
    worker = await opened(log, RESEARCH)
    await worker.append(to_task(task_id, Nudged("loop", MARKER), expected=1, run_id=run_id))
    read = [recorded.event() for recorded in await (await opened(log, RESEARCH)).read_run(run_id)]
    assert read == [submitted(run_id), TaskOpened("research", "step", 0, read[1].task), Nudged("loop", MARKER)]  # type: ignore[union-attr]
    stored = await (await log.open()).read_run(run_id)
    assert all(MARKER.encode() not in recorded.data for recorded in stored)
    assert [recorded.event() for recorded in stored][2] == Nudged("loop", PERSONAL)
    page = await store.read_all(0, 10)
    assert [recorded.event() for recorded in page.events][:1] == [submitted(run_id)]


async def test_a_duplicate_is_answered_as_one(log: Log) -> None:
    store, request_ = await opened(log), opening(new_run())
    first, again = await store.append(request_), await (await opened(log)).append(request_)
    assert ([*again.versions], [*again.positions], again.duplicate) == ([*first.versions], [*first.positions], True)


async def test_what_is_not_personal_is_stored_as_ever(log: Log) -> None:
    store, run_id = await opened(log), new_run()
    await store.append(opening(run_id))
    await store.append(to_run(run_id, move := dispatched(new_task()), expected=1))
    assert [recorded.data for recorded in await (await log.open()).read_run(run_id)][1] == msgspec.json.encode(move)


async def test_a_run_without_a_key_stays_in_the_clear(log: Log) -> None:
    plain, run_id, task_id = await log.open(), new_run(), new_task()
    await plain.append(opening(run_id, task_id))
    await (await opened(log, RESEARCH)).append(to_task(task_id, Nudged("loop", MARKER), expected=1, run_id=run_id))
    assert [recorded.event() for recorded in await plain.read_run(run_id)][2] == Nudged("loop", MARKER)


async def test_a_store_is_left_alone_while_nobody_has_a_key(log: Log) -> None:
    inner = await log.open()
    assert await personal(inner, _no_kek, CLOCK, gives_keys=False) is inner
    await (await opened(log)).append(opening(new_run()))
    assert await personal(inner, _no_kek, CLOCK, gives_keys=False) is not inner


async def test_after_the_key_is_gone_the_public_form_is_left(log: Log) -> None:
    store, task_id = await opened(log), new_task()
    run_id = new_run()
    await store.append(opening(run_id, task_id))
    (large,) = await store.put_blobs([MARKER.encode() * 500], run_id=run_id)
    await store.append(request(Write(run_stream(run_id), [cancelled()], 1), Write(task_stream(task_id), [TaskCancelled("r", "a")], 1), run_id=run_id))
    other = await ended(store, "bob")
    keys = (await log.open(ARCHIVIST)).person_keys
    gone = await keys.destroy("default", "ada", [run_id], 1_700_000_000_000_000)
    assert gone == (1, 1)
    assert await keys.destroy("default", "ada", [run_id], 1_800_000_000_000_000) == (0, 0), "once is enough"
    fresh = await opened(log)
    first, *_ = await fresh.read_run(run_id)
    left = first.event()
    assert isinstance(left, RunSubmitted)
    assert (left.goal, left.user, first.erased_us) == (ERASED, "ada", 1_700_000_000_000_000)
    assert b"personal" not in first.data
    assert await fresh.get_blobs([large]) == {}
    assert next(recorded.event() for recorded in await fresh.read_run(other)) == submitted(other, "bob"), "others are not touched"
    with pytest.raises(ContractError, match="destroyed"):
        await fresh.append(to_run(run_id, dispatched(new_task())))


async def test_money_of_a_call_is_settled_also_when_the_key_is_gone(log: Log) -> None:
    """A run that is cancelled to be erased may leave a call under way, whose reservation the sweep finds a while later."""
    store, worker, run_id, task_id = await opened(log), await opened(log, RESEARCH), new_run(), new_task()
    scope = ScopeLimit(run_scope(run_id), None, 1_000)
    task = Write(task_stream(task_id), [TaskOpened("research", "step", 0, msgspec.Raw(b"{}"))], NO_STREAM, "research", (scope,))
    await store.append(request(Write(run_stream(run_id), [submitted(run_id)], NO_STREAM), task, run_id=run_id, task_id=task_id))
    began = to_task(task_id, started(), asked("m1-1"), expected=1, run_id=run_id)
    await worker.append(began._replace(reserve=Reservation(reservation_id(task_id, "m1-1"), 70)))
    await store.append(request(Write(run_stream(run_id), [cancelled()], 1), Write(task_stream(task_id), [TaskCancelled("r", "a")], 3), run_id=run_id))
    await (await log.open(ARCHIVIST)).person_keys.destroy("default", "ada", [run_id], 1)
    fresh = await opened(log)
    assert await settle_left_over(fresh, CLOCK, grace_s=-60) == 1
    assert (await fresh.budgets([scope.scope]))[scope.scope] == BudgetState(None, 1_000, spent=70, reserved=0)
    bill = BillCorrected(task_id, run_id, "m1-1", "offline", "offline", Usage(1, 1), Price(3, "config"), 70)
    await (await opened(log, RESEARCH)).append(request(Write(spend_stream(task_id), [bill]), run_id=run_id, task_id=task_id))
    assert (await fresh.budgets([scope.scope]))[scope.scope].spent == 3
    assert [recorded.event() for recorded in await fresh.read_streams({spend_stream(task_id): 1})] == [bill]


async def test_whoever_reads_a_whole_run_learns_at_once_that_its_key_is_gone(log: Log) -> None:
    store = await opened(log)
    run_id = await ended(store)
    assert not any(recorded.erased_us for recorded in await store.read_run(run_id))
    await (await log.open(ARCHIVIST)).person_keys.destroy("default", "ada", [run_id], 1)
    assert [recorded.erased_us for recorded in await store.read_run(run_id)] == [1, 1]


class SlowKeys(MemoryPersonKeys):
    """Answers a lookup when it is told to."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log.key_tables, log.first_stream, log.is_open, log.drop_erased_text)
        self.asked, self.answers = asyncio.Event(), asyncio.Event()

    async def get(self, key_ids: Sequence[UUID]) -> Mapping[UUID, PersonKey]:
        self.asked.set()
        await self.answers.wait()
        return await super().get(key_ids)


class SlowStore(MemoryStore):
    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log)
        self.keys = SlowKeys(log)

    @property
    def person_keys(self) -> MemoryPersonKeys:
        return self.keys


async def test_a_key_that_is_looked_up_anew_meanwhile_is_missed_by_nobody() -> None:
    log = InMemory()
    first, second = [await ended(await opened(log)) for _ in range(2)]
    inner = SlowStore(log.log)
    store = PersonalStore(inner, lambda: KEK, CLOCK)
    inner.keys.answers.set()
    await store.read_run(first)
    inner.keys.answers.clear()
    inner.keys.asked.clear()
    of_both = asyncio.create_task(store.read_streams({run_stream(run_id): 0 for run_id in (first, second)}))
    await inner.keys.asked.wait()  # it knows the key of the first one and asks for that of the second
    anew = asyncio.create_task(store.read_run(first))  # which forgets the first one's
    inner.keys.asked.clear()
    await inner.keys.asked.wait()
    inner.keys.answers.set()
    assert MARKER.encode() in (await of_both)[0].data
    assert MARKER.encode() in (await anew)[0].data


async def test_files_go_with_the_last_key_that_refers_to_them(log: Log) -> None:
    store, shared, own = await opened(log), content_hash(b"shared"), content_hash(b"own")
    runs = []
    for user, files in (("ada", (shared, own)), ("bob", (shared,))):
        runs.append(run_id := new_run())
        attached = [{"name": "a", "hash": hash_, "size": 1} for hash_ in files]
        task = msgspec.Raw(msgspec.json.encode({"objective": MARKER, "user": user, "attachments": attached}))
        await store.append(to_run(run_id, RunSubmitted(run_id, "default", user, MARKER, task, "api"), expected=NO_STREAM))
    keys = (await log.open(ARCHIVIST)).person_keys
    assert await keys.files_of([runs[0]]) == [own]
    assert sorted(await keys.files_of(runs)) == sorted([own, shared])
    await keys.drop_files([runs[1]])
    assert sorted(await keys.files_of([runs[0]])) == sorted([own, shared])


async def test_the_text_of_a_document_goes_when_the_log_says_so_and_nobody_else_has_it(log: Log) -> None:
    research, archivist = await log.open(RESEARCH), await log.open(ARCHIVIST)
    (text,) = await research.put_blobs([MARKER.encode() * 50])
    one, two = content_hash(b"one"), content_hash(b"two")
    for content in (one, two):
        document = DocumentIngested("default", content, library=False, name="a", media_type="text/plain", size=1, text=text, lines=1, title="a")
        await research.append(request(Write(document_stream("default", content), [document], NO_STREAM)))
    with pytest.raises(ContractError, match="does not say that it is erased"):
        await archivist.person_keys.drop_text("default", one)
    for content, dropped in ((one, False), (two, True)):
        await archivist.append(request(Write(document_stream("default", content), [DocumentErased("default", content, "ops")], 1)))
        assert await archivist.person_keys.drop_text("default", content) is dropped
    assert await (await log.open(RESEARCH)).get_blobs([text]) == {}


async def test_a_run_from_a_file_gets_a_key_and_one_that_was_erased_stays_so(log: Log) -> None:
    elsewhere, store, run_id = await opened(InMemory()), await opened(log), new_run()
    begun = msgspec.structs.replace(submitted(run_id), task=msgspec.Raw(b'{"attachments":[{"hash":"%b"}]}' % FILE.encode()))
    await elsewhere.append(to_run(run_id, begun, expected=NO_STREAM))
    here = await store.adopt(run_id, await elsewhere.read_run(run_id))
    assert MARKER.encode() not in b"".join(recorded.data for recorded in here)
    assert [recorded.event() for recorded in await store.disclose(here)] == [begun]
    assert list(await store.inner.person_keys.files_of([run_id])) == [FILE], "its files go with the key"
    gone = await ended(elsewhere)
    await elsewhere.inner.person_keys.destroy("default", "ada", [gone], 7)
    left = await elsewhere.read_run(gone)
    adopted = await store.adopt(gone, left)
    assert list(await store.disclose(adopted)) == list(left)
    with pytest.raises(ContractError, match="erased here"):
        await store.adopt(gone, [msgspec.structs.replace(recorded, erased_us=0) for recorded in left])


async def test_a_later_run_of_the_person_has_a_key_of_its_own(log: Log) -> None:
    store = await opened(log)
    run_id = await ended(store)
    keys = (await log.open(ARCHIVIST)).person_keys
    await keys.destroy("default", "ada", [run_id], 1)
    later = await ended(store)
    assert next(recorded.event() for recorded in await (await opened(log)).read_run(later)) == submitted(later)
    assert [(use.key.erased_us, use.stream, use.is_open) for use in await keys.of_person("default", "ada")] == [
        (1, run_stream(run_id), False),
        (None, run_stream(later), False),
    ]


async def test_the_key_of_an_open_run_stays_and_so_do_the_others(log: Log) -> None:
    store, run_id = await opened(log), new_run()
    over = await ended(store)
    await store.append(opening(run_id))
    keys = (await log.open(ARCHIVIST)).person_keys
    with pytest.raises(ContractError, match=f"run {run_id} has not ended"):
        await keys.destroy("default", "ada", [over, run_id], 1)
    assert [(use.key.wrapped is None, use.is_open) for use in await keys.of_person("default", "ada")] == [(False, False), (False, True)]


async def test_keys_of_others_are_not_destroyed_by_mistake(log: Log) -> None:
    store = await opened(log)
    run_id = await ended(store, "bob")
    keys = (await log.open(ARCHIVIST)).person_keys
    assert await keys.destroy("default", "ada", [run_id], 1) == (0, 0)
    assert await keys.destroy("elsewhere", "bob", [run_id], 1) == (0, 0)


async def test_large_texts_are_kept_under_each_key_and_found_by_their_hash(log: Log) -> None:
    store, text = await opened(log), MARKER.encode() * 500
    one, two = await ended(store), await ended(store, "bob")
    for run_id in (one, two, one):
        assert await store.put_blobs([text, b"more"], run_id=run_id) == [content_hash(text), content_hash(b"more")]
    assert await (await log.open()).get_blobs([content_hash(text)]) == {}, "not in the clear"
    keys = (await log.open(ARCHIVIST)).person_keys
    assert await keys.destroy("default", "ada", [one], 1) == (1, 2)
    assert await (await opened(log)).get_blobs([content_hash(text)]) == {content_hash(text): text}, "it is bob's, too"


async def test_what_is_remembered_belongs_to_the_run_that_remembered_it(log: Log) -> None:
    store, run_id = await opened(log), new_run()
    await store.append(opening(run_id))
    memory = MemoryRemembered("default", "ada", content_hash(MARKER.encode()), MARKER, "birth", "trusted", "research", run_id, new_task())
    stream = memory_stream("default", "ada", memory.content)
    await (await opened(log, RESEARCH)).append(request(Write(stream, [memory], NO_STREAM)))
    assert [recorded.event() for recorded in await store.read_streams({stream: 0})] == [memory]
    (stored,) = await (await log.open()).read_streams({stream: 0})
    assert MARKER.encode() not in stored.data


async def test_a_schedule_has_a_key_of_its_own(log: Log) -> None:
    store, stream = await opened(log), schedule_stream("default", "daily")
    added = ScheduleAdded("default", "daily", "0 7 * * *", "UTC", "one", msgspec.Raw(msgspec.json.encode({"objective": MARKER, "user": "ada"})), 0, "ada")
    append = request(Write(stream, [added], NO_STREAM))
    await store.append(append)
    assert [recorded.event() for recorded in await (await opened(log)).read_streams({stream: 0})] == [added]
    keys = (await log.open(ARCHIVIST)).person_keys
    assert [(use.key.key_id, use.stream, use.is_open) for use in await keys.of_person("default", "ada")] == [(append.event_ids[0], stream, False)]


async def test_another_key_encryption_key_is_named_and_opens_nothing(log: Log) -> None:
    run_id = await ended(await opened(log))
    wrong = await opened(log, kek=(other := KeyEncryptionKey(new_secret())))
    with pytest.raises(ConfigError, match=f"wrapped by key-encryption key {KEK.kek_id}; this process has {other.kek_id}") as caught:
        await wrong.read_run(run_id)
    assert "CREWLOG_PERSON_KEK" in str(caught.value.hint)


async def test_a_process_that_begins_with_another_key_encryption_key_is_told_so(log: Log) -> None:
    store = await opened(log)
    await store.check()
    await ended(store)
    await store.check()
    with pytest.raises(ConfigError, match=f"wrapped by key-encryption key {KEK.kek_id}"):
        await (await opened(log, RESEARCH, kek=KeyEncryptionKey(new_secret()))).check()


async def test_a_missing_key_encryption_key_is_an_error_only_where_it_is_needed(log: Log) -> None:
    plain, run_id = await log.open(), new_run()
    await plain.append(opening(run_id))
    personal_run = await ended(await opened(log))
    store = PersonalStore(await log.open(), _no_kek, CLOCK)
    assert len(await store.read_run(run_id)) == 1
    with pytest.raises(ConfigError, match="no kek"):
        await store.read_run(personal_run)


async def test_an_event_of_another_crew_is_no_event_that_was_erased(log: Log) -> None:
    plain, run_id = await log.open(), new_run()
    foreign = await (await opened(InMemory())).key_of(Person("default", "ada"), uuid4())
    await plain.append(opening(run_id)._replace(key=foreign))
    with pytest.raises(TerminalError, match="comes from another crew"):
        await (await opened(log)).read_run(run_id)


async def test_only_the_archivist_destroys_and_only_orchestrator_and_operator_add(database: Any) -> None:
    log = InPostgres(database)
    run_id = await ended(await opened(log))
    row = PersonKey(uuid4(), "default", "ada", b"x", "k", 0)
    try:
        for role in (ORCHESTRATOR, RESEARCH, PROJECTOR):
            with pytest.raises(NotAuthorised):
                await (await log.open(role)).person_keys.destroy("default", "ada", [run_id], 1)
        for role in (RESEARCH, PROJECTOR, ARCHIVIST):
            with pytest.raises(NotAuthorised):
                await (await log.open(role)).person_keys.add(row)
        with pytest.raises(NotAuthorised):
            await (await log.open(PROJECTOR)).person_keys.get([run_id])
        reader = await asyncpg.connect(database.url("crewlog_reader"))
        try:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await reader.fetch("SELECT * FROM es.person_keys")
        finally:
            await reader.close()
    finally:
        await log.close()


def _no_kek() -> KeyEncryptionKey:
    raise ConfigError("no kek")
