"""The read model on a real Postgres: once is enough, a rebuild gives the same rows, nobody writes twice, readers never notice."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any, get_type_hints

import asyncpg
import msgspec
import pytest
from support.histories import BEGIN_US, store_history, write_history
from support.postgres import Database
from support.views import PROJECTOR, follow, log_of, model_of

from crewlog.events.clock import SystemClock
from crewlog.events.memory_bus import MemoryBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import AppendRequest, Write
from crewlog.projections import bulk, log_scan
from crewlog.projections.agents_view import AGENTS
from crewlog.projections.digest import digest
from crewlog.projections.knowledge import DOCUMENTS, PASSAGES
from crewlog.projections.memories import MEMORIES
from crewlog.projections.projection import Begins, Fact
from crewlog.projections.projector import Projector
from crewlog.projections.read_model import ReadModel
from crewlog.projections.rebuild import rebuild
from crewlog.projections.rows import AgentRow, ApprovalRow, DocumentRow, Json, MemoryRow, ModelCallRow, PassageRow, RunRow, TaskRow, ToolCallRow
from crewlog.projections.run_projection import APPROVALS, MODEL_CALLS, RUNS, TASKS, TOOL_CALLS
from crewlog.projections.table import Table
from crewlog.projections.view_connection import connect_views, lead
from crewlog.schemas.codec import Event
from crewlog.schemas.errors import ConfigError, ConflictError
from crewlog.schemas.ids import RunId, Stream, TaskId, category, document_stream, person_stream, run_stream, spend_stream, task_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.public_form import ERASED, PERSONAL
from crewlog.schemas.run_events import RunCancelled, RunPlanned, RunSubmitted, Step, TaskDispatched, TaskRetryScheduled
from crewlog.schemas.subjects import POKE
from crewlog.schemas.system_events import CallSettled, DocumentIngested, PersonErased
from crewlog.schemas.task_events import TaskOpened
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import Failure

pytestmark = pytest.mark.hand_written("the views are tried on histories of every shape")


async def ingest(store: PostgresStore, name: str, body: str, *, tenant: str = "default", library: bool = True) -> str:
    content = content_hash(f"{name}\n{body}".encode())
    (text_hash,) = await store.put_blobs([body.encode()])
    event = DocumentIngested(tenant, content, library, name, "text/markdown", len(body), text_hash, body.count("\n") + 1, name)
    await store.append(AppendRequest([Write(document_stream(tenant, content), [event])], [SystemClock().new_id()], BEGIN_US))
    return content


async def fill(store: PostgresStore, seed: int, *, runs: int = 8, moves: int = 300) -> None:
    await store_history(store, write_history(Random(seed), runs=runs, moves=moves))


async def query(url: str, sql: str, *arguments: Any) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        rows: list[Any] = await connection.fetch(sql, *arguments)
        return rows
    finally:
        await connection.close()


async def test_rows_and_tables_agree(database: Database) -> None:
    kinds = {str: "text", int: "bigint", bool: "boolean", Json: "jsonb"}
    pairs: list[tuple[Table[Any], type[msgspec.Struct]]] = [
        (RUNS, RunRow),
        (TASKS, TaskRow),
        (MODEL_CALLS, ModelCallRow),
        (TOOL_CALLS, ToolCallRow),
        (APPROVALS, ApprovalRow),
        (AGENTS, AgentRow),
        (DOCUMENTS, DocumentRow),
        (PASSAGES, PassageRow),
        (MEMORIES, MemoryRow),
    ]
    for table, row in pairs:
        columns = await query(
            database.admin_url,
            """SELECT column_name, data_type FROM information_schema.columns
               WHERE table_schema = 'rm' AND table_name = $1 AND is_generated = 'NEVER' ORDER BY ordinal_position""",
            table.name,
        )
        assert [column["column_name"] for column in columns] == list(table.columns), table.name
        hints = get_type_hints(row)
        for name, data_type in columns:
            assert data_type == kinds.get(hints[name], data_type), (table.name, name)


def in_small_batches(monkeypatch: pytest.MonkeyPatch, random: Random) -> None:
    """Make rebuilds read, write and keep little at a time, so that a small log goes through all of it."""
    monkeypatch.setattr(log_scan, "PAGE_EVENTS", random.randrange(1, 60))
    monkeypatch.setattr(bulk, "BATCH_EVENTS", random.randrange(1, 200))
    monkeypatch.setattr(bulk, "ROWS_KEPT_MAX", random.choice([0, 30, 200_000]))


async def interrupt_rebuild(url: str, store: PostgresStore, *, after: int) -> bool:
    """Cancel a rebuild when it has told its progress some times; says whether that was before its end."""
    told = 0

    def tell(_at: int, _of: int) -> None:
        nonlocal told
        told += 1
        if told > after:
            rebuilding.cancel()

    rebuilding = asyncio.create_task(rebuild(url, store, progress=tell))
    await asyncio.wait([rebuilding])
    return rebuilding.cancelled()


@pytest.mark.parametrize("seed", range(2))
async def test_a_rebuild_that_is_interrupted_changes_nothing_and_can_be_started_again(database: Database, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random, url = Random(seed), database.url(PROJECTOR)
    in_small_batches(monkeypatch, random)
    async with log_of(database) as store, model_of(database, store) as model:
        await fill(store, seed + 20)
        run_id, of_nobody = RunId(SystemClock().random_id()), TaskId(SystemClock().random_id())
        events = [submitted(run_id), TaskRetryScheduled(of_nobody, "a", 2, BEGIN_US, Failure("timeout", "late"))]
        await store.append(AppendRequest([Write(run_stream(run_id), events)], [SystemClock().new_id() for _ in events], BEGIN_US, run_id))
        await fill(store, seed + 30, moves=60)
        await follow(model, store)
        live = await digest(url)
        assert (await query(database.admin_url, "SELECT count(*) FROM crewlog.problems"))[0][0] == 1
        await query(database.admin_url, "UPDATE rm.tasks SET objective = 'damaged'")
        await query(database.admin_url, "DELETE FROM rm.tool_calls")
        damaged = await digest(url)
        for _ in range(3):
            was_interrupted = await interrupt_rebuild(url, store, after=random.randrange(6))
            assert await digest(url) == (damaged if was_interrupted else live)
        assert (await rebuild(url, store)).position == model.position
        assert await digest(url) == live


@pytest.mark.parametrize("seed", range(4))
async def test_live_and_rebuilt_are_byte_identical(database: Database, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    url = database.url(PROJECTOR)
    in_small_batches(monkeypatch, Random(seed))
    async with log_of(database) as store, model_of(database, store) as model:
        await ingest(store, "guide.md", "# Guide\n\nPenguins huddle.\n")
        appends = write_history(Random(seed), runs=12, moves=600)
        await store_history(store, appends[:300])
        await follow(model, store, page_max=Random(seed).randrange(1, 40))
        await store_history(store, appends[300:])
        await follow(model, store, page_max=1000)
        live = await digest(url)
        seen: list[tuple[int, int]] = []
        done = await rebuild(url, store, progress=lambda at, of: seen.append((at, of)))
        assert await digest(url) == live
        assert done.position == model.position == seen[-1][0]
        assert done.events == (await query(database.admin_url, "SELECT count(*) FROM es.events"))[0][0]

        # the live projector never noticed, and a second rebuild of one part changes nothing either
        await fill(store, seed + 100)
        await follow(model, store)
        live = await digest(url)
        await rebuild(url, store, names=["runs"])
        assert await digest(url) == live
        assert (await query(database.admin_url, "SELECT count(*) FROM crewlog.problems"))[0][0] == 0


async def test_applying_twice_is_applying_once(database: Database) -> None:
    async with log_of(database) as store, model_of(database, store) as model:
        await fill(store, 1)
        await ingest(store, "guide.md", "Penguins huddle.\n")
        await follow(model, store)
        once = await digest(database.url(PROJECTOR))
        await query(database.admin_url, "UPDATE rm.checkpoints SET position = 0 WHERE name <> 'unreadable'")
        await model.open()
        await follow(model, store, page_max=50)
        assert await digest(database.url(PROJECTOR)) == once


async def test_a_zombie_is_fenced(database: Database) -> None:
    async with log_of(database) as store, model_of(database, store) as zombie, model_of(database, store) as successor:
        await fill(store, 2)
        events = (await store.read_all(0, 10_000)).events
        await successor.advance(events[:100])
        before = await digest(database.url(PROJECTOR))
        with pytest.raises(ConflictError, match="checkpoint"):
            await zombie.advance(events[:50])
        assert await digest(database.url(PROJECTOR)) == before
        await zombie.open()
        assert zombie.position == successor.position == events[99].position


async def test_one_leads_and_a_standby_follows_its_death(database: Database) -> None:
    first, second = [await connect_views(database.url(PROJECTOR), "rm") for _ in range(2)]
    try:
        await lead(first)
        waiting = asyncio.create_task(lead(second, poll_s=0.01))
        assert not await second_holds(database)
        first.terminate()
        async with asyncio.timeout(60):
            await waiting
    finally:
        first.terminate()
        await second.close()


async def second_holds(database: Database) -> bool:
    rows = await query(database.admin_url, "SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")
    return bool(rows[0][0] > 1)


async def test_readers_never_notice_a_rebuild_that_repairs_everything(database: Database) -> None:
    url = database.url("crewlog_operator")
    stop = asyncio.Event()
    reads = 0

    async def read() -> None:
        nonlocal reads
        connection = await asyncpg.connect(url)
        prepared = await connection.prepare("SELECT count(*) FROM crewlog.tasks t JOIN crewlog.runs r USING (run_id)")
        try:
            while not stop.is_set():
                assert await prepared.fetchval() == tasks
                assert await connection.fetchval("SELECT count(*) FROM crewlog.tasks") == tasks
                found = await connection.fetch("SELECT * FROM crewlog.search_documents('default', 'penguins huddle', NULL, 5)")
                assert [row["name"] for row in found] == ["guide.md"]
                reads += 1
        finally:
            await connection.close()

    async with log_of(database) as store, model_of(database, store) as model:
        await fill(store, 3)
        await ingest(store, "guide.md", "Penguins huddle.\n")
        await follow(model, store)
        good = await digest(database.url(PROJECTOR))
        tasks = (await query(database.admin_url, "SELECT count(*) FROM rm.tasks"))[0][0]
        assert tasks > 10
        readers = [asyncio.create_task(read()) for _ in range(2)]
        try:
            for _ in range(3):
                await query(database.admin_url, "UPDATE rm.tasks SET objective = 'damaged'")
                await query(database.admin_url, "UPDATE rm.passages SET line = 99")
                done = await rebuild(database.url(PROJECTOR), store)
                assert done.corrected == {"tasks": tasks, "passages": 1}
                assert await digest(database.url(PROJECTOR)) == good
        finally:
            stop.set()
            await asyncio.gather(*readers)
        assert reads > 5


async def test_a_rebuild_repairs_missing_and_surplus_rows_and_leaves_nothing_behind(database: Database) -> None:
    async with log_of(database) as store, model_of(database, store) as model:
        await fill(store, 10)
        await follow(model, store)
        good = await digest(database.url(PROJECTOR))
        await query(database.admin_url, "DELETE FROM rm.runs WHERE run_id = (SELECT run_id FROM rm.runs LIMIT 1)")
        await query(database.admin_url, "UPDATE rm.tool_calls SET call_id = call_id || '-moved'")
        done = await rebuild(database.url(PROJECTOR), store)
        assert done.corrected.keys() == {"runs", "tool_calls"}
        assert await digest(database.url(PROJECTOR)) == good
        assert (await rebuild(database.url(PROJECTOR), store)).corrected == {}
        assert await query(database.admin_url, "SELECT FROM pg_class WHERE relnamespace = 'rm_build'::regnamespace") == []


async def test_a_rebuild_overtaking_the_projector_makes_it_look_again(database: Database) -> None:
    async with log_of(database) as store, model_of(database, store) as model:
        await fill(store, 4)
        await rebuild(database.url(PROJECTOR), store)
        events = (await store.read_all(0, 10_000)).events
        with pytest.raises(ConflictError):
            await model.advance(events)
        await model.open()
        assert model.position == events[-1].position


async def test_only_one_rebuild_and_known_names(database: Database) -> None:
    async with log_of(database) as store:
        with pytest.raises(ConfigError, match="no projection is called nonsense"):
            await rebuild(database.url(PROJECTOR), store, names=["nonsense"])
        holder = await connect_views(database.url(PROJECTOR), "rm_build")
        try:
            await holder.execute("SELECT pg_try_advisory_lock($1)", 0x63726577_7265626C)
            with pytest.raises(ConfigError, match="another process is rebuilding"):
                await rebuild(database.url(PROJECTOR), store)
        finally:
            await holder.close()


async def test_poison_is_recorded_and_the_rest_goes_on(database: Database) -> None:
    run_id = RunId(SystemClock().random_id())
    poison = RunPlanned((Step("task", "data", "an objective with a NUL \u0000 in it", (), msgspec.Raw(b"{}")),), "single")
    async with log_of(database) as store, model_of(database, store) as model:
        await fill(store, 5, moves=60)
        await store.append(AppendRequest([Write(run_stream(run_id), [submitted(run_id)])], [SystemClock().new_id()], BEGIN_US, run_id))
        admin = await database.admin()
        try:  # as a log may have it from before the gate refused such a text
            await admin.execute("ALTER TABLE es.events DROP CONSTRAINT events_are_text")
            position = await admin.fetchval("SELECT nextval('es.event_position')")
            await admin.execute("UPDATE es.streams SET version = 2 WHERE stream_id = $1", run_stream(run_id))
            await admin.execute(
                """INSERT INTO es.events (position, version, occurred_us, event_id, run_id, schema_version, stream_id, type, actor, writer, data)
                   VALUES ($1, 2, 1, $2, $3, 1, $4, 'RunPlanned', 'test', 'test', $5)""",
                position,
                SystemClock().new_id(),
                run_id,
                run_stream(run_id),
                msgspec.json.encode(poison).decode(),
            )
        finally:
            await admin.close()
        await fill(store, 6, moves=60)
        await store.append(AppendRequest([Write(run_stream(run_id), [RunCancelled("odd", "ann")])], [SystemClock().new_id()], BEGIN_US, run_id))
        await follow(model, store)
        problems = await query(database.url("crewlog_operator"), "SELECT projection, position, type, error FROM crewlog.problems")
        assert [(row["projection"], row["position"], row["type"]) for row in problems] == [("runs", position, "RunPlanned")]
        assert "unsupported Unicode escape sequence" in problems[0]["error"]
        assert model.position == (await store.read_all(0, 10_000)).events[-1].position
        live = await digest(database.url(PROJECTOR))
        await rebuild(database.url(PROJECTOR), store)
        assert await digest(database.url(PROJECTOR)) == live


async def test_what_is_settled_after_an_erasure_brings_back_no_text(database: Database) -> None:
    """Whatever comes in one page with it, live or in a rebuild."""
    run_id, clock = RunId(SystemClock().random_id()), SystemClock()
    task_id, url = TaskId(run_id), database.url(PROJECTOR)
    plan = RunPlanned((Step("task", "data", PERSONAL, (), msgspec.Raw(b"{}")),), "single")
    facts: list[tuple[Stream, list[Event]]] = [
        (run_stream(run_id), [submitted(run_id), plan, TaskDispatched(task_id, "task", "data", 1, 0, 0), RunCancelled("enough", "ann")]),
        (task_stream(task_id), [TaskOpened("data", "task", 0, msgspec.Raw(b"{}"))]),
        (person_stream("default", "ann"), [PersonErased("default", "ann", "bob", BEGIN_US, (run_id,))]),
        (spend_stream(task_id), [CallSettled(task_id, run_id, "m1-1", "p", "m", Usage(), Price(9, "config"))]),
    ]
    digests = []
    async with log_of(database) as store, model_of(database, store) as model:
        for stream, events in facts:
            of_run = None if category(stream) == "person" else run_id
            await store.append(AppendRequest([Write(stream, events)], [clock.new_id() for _ in events], BEGIN_US, of_run))
        for page_max in (1, 100):
            await query(database.admin_url, "TRUNCATE rm.runs, rm.tasks, rm.model_calls, rm.erasures")
            await query(database.admin_url, "UPDATE rm.checkpoints SET position = 0")
            await model.open()
            await follow(model, store, page_max)
            digests.append(await digest(url))
        assert (await rebuild(url, store)).corrected == {}
    assert digests[0] == digests[1]
    assert [tuple(row) for row in await query(database.admin_url, "SELECT objective, cost_micro_usd FROM rm.tasks")] == [(ERASED, 9)]


async def test_unknown_and_broken_events_are_counted(database: Database) -> None:
    async with log_of(database) as store, model_of(database, store) as model:
        await fill(store, 7, moves=20)
        events = list((await store.read_all(0, 10_000)).events)
        odd = [msgspec.structs.replace(events[2], type="FromTheFuture"), msgspec.structs.replace(events[3], data=b'{"run_id": 7}')]
        await model.advance([*events[:2], *odd, *events[4:]])
        rows = await query(
            database.url("crewlog_operator"), "SELECT type, events, position, error FROM crewlog.problems WHERE projection = 'unreadable' ORDER BY position"
        )
        assert [(row["type"], row["events"], row["position"]) for row in rows] == [(odd[0].type, 1, odd[0].position), (odd[1].type, 1, odd[1].position)]
        assert "not known to this program" in rows[0]["error"]
        assert "does not decode" in rows[1]["error"]


class Clumsy:
    """A projection with a bug."""

    name = "clumsy"
    version = 1
    types: frozenset[type] = frozenset((RunSubmitted,))
    tables = ()
    facts_max = 1

    def __init__(self) -> None:
        self.folded: list[int] = []

    async def load(self, begins: Begins, *, after: int, skipped: object) -> None: ...

    def fold(self, fact: Fact) -> None:
        if not self.folded:
            self.folded.append(0)
            raise ZeroDivisionError("a bug")
        self.folded.append(fact.position)

    def take(self) -> Clumsy:
        return self

    async def apply(self, connection: object) -> None: ...

    def forget(self) -> None: ...


async def test_a_bug_in_a_fold_is_recorded_and_stops_nothing(database: Database) -> None:
    connection = await connect_views(database.url(PROJECTOR), "rm")
    try:
        async with log_of(database) as store:
            await fill(store, 8)
            clumsy = Clumsy()
            model = ReadModel(connection, [clumsy])
            await model.open()
            await follow(model, store)
            submitted = [event.position for event in (await store.read_all(0, 10_000)).events if event.type == "RunSubmitted"]
            assert clumsy.folded[1:] == submitted[1:]
            rows = await query(database.admin_url, "SELECT position, error FROM rm.problems")
            assert [tuple(row) for row in rows] == [(submitted[0], "ZeroDivisionError: a bug")]
    finally:
        await connection.close()


async def test_a_newer_database_is_refused(database: Database) -> None:
    await query(database.admin_url, "INSERT INTO rm.checkpoints (name, version) VALUES ('runs', 99)")
    async with log_of(database) as store:
        with pytest.raises(ConfigError, match="version 99"):
            async with model_of(database, store):
                pass


async def test_an_older_one_is_named_as_outdated(database: Database) -> None:
    await query(database.admin_url, "INSERT INTO rm.checkpoints (name, version) VALUES ('runs', 0)")
    async with log_of(database) as store, model_of(database, store) as model:
        assert await model.outdated() == ["runs"]
        await rebuild(database.url(PROJECTOR), store, names=["runs"])
        assert await model.outdated() == []


async def test_the_projector_follows_pokes(database: Database) -> None:
    bus = MemoryBus()
    async with log_of(database) as store, model_of(database, store) as model:
        await fill(store, 9)
        head = (await store.read_all(0, 10_000)).events[-1].position
        running = asyncio.create_task(Projector(store, bus, model, gather_s=0, poll_s=60).run())
        try:
            await position_reached(database, head)
            run_id = RunId(SystemClock().random_id())
            request = AppendRequest([Write(run_stream(run_id), [submitted(run_id)])], [SystemClock().new_id()], BEGIN_US, run_id)
            (head,) = (await store.append(request)).positions
            await bus.publish(POKE)
            await position_reached(database, head)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    await bus.close()


async def position_reached(database: Database, position: int) -> None:
    async with asyncio.timeout(60):
        while await query(database.url("crewlog_operator"), "SELECT FROM crewlog.checkpoints WHERE position < $1", position):  # noqa: ASYNC110 - another connection sees it
            await asyncio.sleep(0.005)


def submitted(run_id: RunId) -> RunSubmitted:
    task = msgspec.Raw(msgspec.json.encode({"task_id": run_id, "type": "run", "objective": "x"}))
    return RunSubmitted(run_id, "default", "ann", "x", task, "api")
