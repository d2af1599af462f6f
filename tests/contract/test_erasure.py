"""What erasing a person finds, refuses and does, on a real log with views: schedules, memories, documents, files, runs without a key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from support.logs import CLOCK, cancelled, new_run, new_task, request, to_run
from support.postgres import Database
from support.toolbox import MemoryArtifacts
from support.views import follow, log_of, model_of

from crewlog.events.envelope import KeyEncryptionKey, new_secret
from crewlog.events.grants import ARCHIVIST, PROJECTOR
from crewlog.events.personal_store import Person, PersonalStore
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.prune import is_used, mentioned
from crewlog.events.store import NO_STREAM, Write
from crewlog.events.verify import open_connections
from crewlog.orchestrator import cli_erase
from crewlog.orchestrator.erasure import Eraser, Found, find, refuse_hindrances
from crewlog.projections.digest import digest
from crewlog.projections.queries import Queries
from crewlog.projections.read_model import ReadModel
from crewlog.projections.rebuild import rebuild
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import RunId, archive_stream, document_stream, memory_stream, person_stream, schedule_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.public_form import ERASED, PERSONAL
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.system_events import DocumentIngested, MemoryRemembered, PersonErased, RunArchived, ScheduleAdded, ScheduleRemoved

pytestmark = pytest.mark.hand_written("runs that were recorded by nobody, with everything a person may leave behind")

ADA = Person("default", "ada")
WORDS = "Ada was born in 1815"


class Desk:
    """A log whose runs have keys, its views, and an archivist."""

    def __init__(self, database: Database, log: PostgresStore, archivist: PostgresStore, model: ReadModel, queries: Queries) -> None:
        self.database, self.log, self.archivist, self.model, self.queries = database, log, archivist, model, queries
        kek = KeyEncryptionKey(new_secret())
        self.kek = lambda: kek
        self.store = PersonalStore(log, self.kek, CLOCK)
        self.artifacts = MemoryArtifacts()

    async def run(self, user: str = "ada", *, attached: tuple[str, ...] = (), store: Any = None, is_over: bool = True) -> RunId:
        """Record a run with attached files."""
        run_id, store = new_run(), store or self.store
        files = [{"name": hash_, "hash": hash_, "size": 1} for hash_ in attached]
        task = msgspec.Raw(msgspec.json.encode({"task_id": run_id, "type": "run", "user": user, "objective": WORDS, "attachments": files}))
        await store.append(to_run(run_id, RunSubmitted(run_id, "default", user, WORDS, task, "api"), expected=NO_STREAM))
        if is_over:
            await store.append(to_run(run_id, cancelled(), expected=1))
        return run_id

    async def ingest(self, data: bytes, *, library: bool = False) -> str:
        """Index a document whose file is an artifact."""
        content = content_hash(data)
        await self.artifacts.put("a.txt", data)
        (text,) = await self.log.put_blobs([data + b" in words"])
        document = DocumentIngested("default", content, library, "a.txt", "text/plain", len(data), text, 1, "a")
        await self.log.append(request(Write(document_stream("default", content), [document], NO_STREAM)))
        return content

    async def found(self) -> Found:
        await follow(self.model, self.log)
        return await find(self.archivist, self.queries, ADA)

    async def erase(self) -> Any:
        done = await Eraser(self.archivist, self.archivist.person_keys, self.artifacts, self.queries, CLOCK).erase(await self.found(), actor="ops", reason="")
        await follow(self.model, self.log)
        return done


@pytest_asyncio.fixture
async def desk(database: Database) -> AsyncIterator[Desk]:
    archivist = await PostgresStore.open(database.url(ARCHIVIST), actor="archivist@test", clock=CLOCK)
    try:
        async with log_of(database) as log, model_of(database, log) as model, Queries(database.url("crewlog_operator"), CLOCK) as queries:
            yield Desk(database, log, archivist, model, queries)
    finally:
        await archivist.close()


async def test_a_user_nobody_has_heard_of_is_not_found(desk: Desk) -> None:
    await desk.run("bob")
    with pytest.raises(NotFound, match="user \\(tenant default\\) 'ada'"):
        await desk.found()


async def test_what_goes_on_is_in_the_way_and_named(desk: Desk) -> None:
    open_run, stream = await desk.run(is_over=False), schedule_stream("default", "daily")
    added = ScheduleAdded("default", "daily", "0 7 * * *", "UTC", "one", msgspec.Raw(msgspec.json.encode({"objective": WORDS, "user": "ada"})), 0, "ada")
    await desk.store.append(request(Write(stream, [added], NO_STREAM)))
    with pytest.raises(ContractError, match="schedules that recur: daily"):
        refuse_hindrances(await desk.found())
    await desk.store.append(request(Write(stream, [ScheduleRemoved("ada")], 1)))
    with pytest.raises(ContractError, match=f"1 runs that have not ended: {open_run}"):
        refuse_hindrances(await desk.found())
    await desk.store.append(to_run(open_run, cancelled(), expected=1))
    refuse_hindrances(found := await desk.found())
    assert len(found.keys) == 2, "the schedule that was removed goes, too"


async def test_everything_a_person_left_behind_goes_and_what_others_need_stays(desk: Desk) -> None:
    own, library, shared = [await desk.ingest(data, library=data == b"library") for data in (b"own", b"library", b"shared")]
    ada, _ = await desk.run(attached=(own, library, shared)), await desk.run("bob", attached=(shared,))
    memory = MemoryRemembered("default", "ada", content_hash(b"m"), WORDS, "birth", "trusted", "research", ada, new_task())
    await desk.store.append(request(Write(memory_stream("default", "ada", memory.content), [memory], NO_STREAM)))
    await follow(desk.model, desk.log)
    assert [row.memory for row in await desk.queries.memories("default")] == [PERSONAL]

    done = await desk.erase()
    assert (done.keys, done.runs, done.files, done.documents, done.memories, done.in_clear) == (1, 1, 1, 1, 1, [])
    assert set(desk.artifacts.files) == {library, shared}
    assert {row.content for row in await desk.queries.documents("default", library_only=False)} == {library, shared}
    assert await desk.queries.memories("default") == []
    assert {run.user_name: run.goal for run in await desk.queries.runs()} == {"ada": ERASED, "bob": PERSONAL}
    live = await digest(desk.database.url(PROJECTOR))
    await rebuild(desk.database.url(PROJECTOR), desk.log)
    assert await digest(desk.database.url(PROJECTOR)) == live
    assert await desk.queries.problems() == []


async def test_what_runs_refer_to_under_their_key_is_not_pruned_until_the_key_is_gone(desk: Desk) -> None:
    file, connections = content_hash(b"own"), open_connections(desk.database.url(ARCHIVIST), CLOCK, name="prune")
    await desk.run(attached=(file,))
    reads = PersonalStore(desk.archivist, desk.kek, CLOCK, gives_keys=False)
    assert is_used(file, await mentioned(connections, reads))
    assert not is_used(file, await mentioned(connections, desk.archivist)), "the public form does not say it"
    await desk.erase()
    assert not is_used(file, await mentioned(connections, PersonalStore(desk.archivist, desk.kek, CLOCK, gives_keys=False)))
    await connections.close()


async def test_what_was_interrupted_is_brought_to_its_end(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = await desk.run(attached=(file := await desk.ingest(b"own"),))
    await desk.archivist.person_keys.destroy(*ADA, [run_id], 1_700_000_000_000_000)
    done = await desk.erase()
    assert (done.keys, done.files, done.erased_us) == (0, 1, 1_700_000_000_000_000)
    (recorded,) = await desk.log.read_streams({person_stream(*ADA): 0})
    fact = recorded.event()
    assert isinstance(fact, PersonErased)
    assert (fact.runs, fact.artifacts) == ((run_id,), 1), "what went in the end is told, whoever brought it to its end"
    assert file not in desk.artifacts.files
    assert [run.goal for run in await desk.queries.runs()] == [ERASED]
    cli_erase._print(done, 0)
    assert "what an interrupted command had left went now: 1 file, 1 document, 0 memories, 0 dead letters" in capsys.readouterr().err
    again = await desk.erase()
    assert (again.keys, again.files, again.documents) == (0, 0, 0)
    cli_erase._print(again, 0)
    assert "nothing else was left to erase" in capsys.readouterr().err


async def test_files_of_archived_runs_are_named_as_often_as_it_is_asked_for(desk: Desk) -> None:
    run_id = await desk.run()
    gone = RunArchived(run_id, *ADA, "run", WORDS, "cancelled", 0, 0, 0, 2, content_hash(b"d"), "ada.crewlog", content_hash(b"f"), "ops")
    await desk.archivist.append(request(Write(archive_stream(run_id), [gone], NO_STREAM)))
    await desk.archivist.person_keys.destroy(*ADA, [run_id], 1_700_000_000_000_000)
    assert [list((await desk.erase()).archived) for _ in range(2)] == [["ada.crewlog"]] * 2


async def test_runs_without_a_key_are_named_and_stay(desk: Desk) -> None:
    clear, _ = await desk.run(store=desk.log), await desk.run()
    done = await desk.erase()
    assert (done.runs, done.in_clear) == (1, [clear])
    assert {run.run_id: run.goal for run in await desk.queries.runs()}[clear] == WORDS
