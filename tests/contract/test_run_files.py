"""Runs that come from files and go to files: the same state everywhere, nothing carried out, nothing deleted that was not proved, seals that hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from msgspec.structs import replace
from sim.forks import play as play_forks
from sim.plan import draw_plan
from support.played import histories, quiet_log, troubled_log
from support.postgres import Database
from support.views import PROJECTOR, follow, model_of

from crewlog.events.artifacts import ArtifactStore
from crewlog.events.clock import SystemClock
from crewlog.events.connections import Connections
from crewlog.events.grants import ARCHIVIST, OPERATOR, ORCHESTRATOR, READER
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.prune import mentioned, prune_blobs, unused_blobs
from crewlog.events.run_files import Announced, half_archived, run_digest, take_out, write_imported
from crewlog.events.store import AppendRequest, Write
from crewlog.events.verify import open_connections, seal, verify
from crewlog.orchestrator import run_archive
from crewlog.orchestrator.bundle import Bundle, collect, read_bundle
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.run_archive import Archived, archive_run, finished_before
from crewlog.orchestrator.run_import import Imported, family_of, import_run, marker_of
from crewlog.projections.digest import digest
from crewlog.projections.queries import Queries
from crewlog.projections.query_rows import RunView
from crewlog.projections.rebuild import rebuild
from crewlog.schemas.errors import ConflictError, ContractError, NotAuthorised, NotFound
from crewlog.schemas.ids import Hash, RunId, Stream, alert_stream, archive_stream, run_stream, spend_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.run_events import RunCancelled, RunForked
from crewlog.schemas.system_events import CallSettled, RunArchived, RunStoodStill
from crewlog.schemas.usage import WORST_CASE, Price, Usage

CLOCK = SystemClock()
ANY_HASH = Hash("0" * 64)


class Home:
    """A database with the logins that take part."""

    def __init__(self, database: Database, stack: AsyncExitStack) -> None:
        self.database, self._stack = database, stack

    async def store(self, role: str) -> PostgresStore:
        opened = await PostgresStore.open(self.database.url(role), actor=f"{role}@test", clock=CLOCK)
        self._stack.push_async_callback(opened.close)
        return opened

    def connections(self, role: str) -> Connections:
        opened = open_connections(self.database.url(role), CLOCK, name="test")
        self._stack.push_async_callback(opened.close)
        return opened

    async def takes_in(self, bundle: Bundle, *, check: bool = True) -> Imported:
        marker = marker_of(bundle, file="run.crewlog", sha256=ANY_HASH, actor="somebody")
        return await import_run(await self.store(OPERATOR), self.connections(OPERATOR), bundle, marker, CLOCK, verify=check)

    async def seal(self) -> None:
        while await seal(self.connections(PROJECTOR)):
            pass

    async def run(self, run_id: RunId) -> RunView:
        async with Queries(self.database.url(OPERATOR), CLOCK) as queries:
            return await queries.run(str(run_id))

    async def archive(self, run_id: RunId, folder: Path, artifacts: ArtifactStore | None = None) -> Archived:
        own = await self.store(ARCHIVIST), self.connections(ARCHIVIST), await self.run(run_id)
        return await archive_run(*own, folder, artifacts=artifacts, actor="somebody", clock=CLOCK)

    async def query(self, sql: str, *arguments: Any, role: str = OPERATOR) -> list[Any]:
        connection = await asyncpg.connect(self.database.url(role))
        try:
            rows: list[Any] = await connection.fetch(sql, *arguments)
            return rows
        finally:
            await connection.close()


@pytest_asyncio.fixture
async def home(database: Database) -> AsyncIterator[Home]:
    async with AsyncExitStack() as stack:
        yield Home(database, stack)


def bundles(*logs: MemoryLog) -> list[Bundle]:
    return [asyncio.run(collect(MemoryStore(log), history.run_id)) for log in logs for history in histories(log)]


@pytest.fixture(scope="module")
def quiet() -> list[Bundle]:
    """A single task, and a plan of three steps, as a crew recorded them."""
    return bundles(quiet_log())


def planned(runs: list[Bundle]) -> Bundle:
    return max(runs, key=lambda bundle: len(bundle.events))


@pytest.fixture(scope="module")
def several(quiet: list[Bundle]) -> list[Bundle]:
    """Those, and runs in which all sorts of things went wrong."""
    return [*quiet, *bundles(troubled_log(9), troubled_log(13))]


async def test_imported_runs_replay_here_as_they_did_there(home: Home, several: list[Bundle]) -> None:
    store = await home.store(ORCHESTRATOR)
    for bundle in several:
        there = await replay(bundle.store(), bundle.run_id)
        done = await home.takes_in(bundle)
        here = await replay(store, bundle.run_id)
        assert here == there == done.report
        again = await collect(store, bundle.run_id)
        assert again.blobs == bundle.blobs
        changed = [(replace(event, position=0, writer="")) for event in again.events]
        assert changed == [replace(event, position=0, writer="", run_id=bundle.run_id) for event in bundle.events]
        assert {event.writer for event in again.events} == {OPERATOR}, "who wrote it here is not a matter of what the file says"
    async with model_of(home.database, store) as model:
        await follow(model, store, page_max=37)
        live = await digest(home.database.url(PROJECTOR))
        await rebuild(home.database.url(PROJECTOR), store)
        assert await digest(home.database.url(PROJECTOR)) == live
    listed = await home.query("SELECT run_id, events, actor FROM crewlog.imports ORDER BY imported_at")
    assert [tuple(row) for row in listed] == [(bundle.run_id, len(bundle.events), "somebody") for bundle in several]
    assert await home.query("SELECT * FROM crewlog.problems") == []


@pytest.fixture(scope="module")
def forks() -> tuple[Bundle, Bundle, Bundle]:
    """A run, a fork of it, and a fork of that."""
    for seed in range(1, 60):  # whichever schedule forks a fork: what happens in one moves with the program
        log = play_forks(draw_plan(seed), forks=6).log
        parents = {e.run_id: e.parent for recorded in log.events if isinstance(e := recorded.event(), RunForked)}
        if (inner := next((run for run, parent in parents.items() if parent in parents and parents[parent] not in parents), None)) is not None:
            break
    assert inner is not None
    whole, fork, again = [asyncio.run(collect(MemoryStore(log), run)) for run in (parents[parents[inner]], parents[inner], inner)]
    return whole, fork, again


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
async def test_forks_replay_elsewhere_whether_their_parents_are_there_or_not(home: Home, forks: tuple[Bundle, ...], order: Sequence[int]) -> None:
    """What a fork shares comes with it; the file of the parent makes that whole; and whatever comes first, the log ends up the same."""
    store = await home.store(ORCHESTRATOR)
    had: dict[RunId, int] = {}
    for bundle in (forks[n] for n in order):
        there = await replay(bundle.store(), bundle.run_id)
        done = await home.takes_in(bundle)
        assert done.report == there
        of_file = {run: len(events) for run, events in family_of(bundle).items()}
        assert set(done.beginnings) == {run for run, events in of_file.items() if events > had.get(run, 0)} - {bundle.run_id}
        had = {run: max(of_file.get(run, 0), had.get(run, 0)) for run in (*had, *of_file)}
    for bundle in forks:
        assert await replay(store, bundle.run_id) == await replay(bundle.store(), bundle.run_id)
        again = await collect(store, bundle.run_id)
        assert [(e.stream, e.version, e.event_id, e.data) for e in again.events] == [(e.stream, e.version, e.event_id, e.data) for e in bundle.events]
        with pytest.raises(ContractError, match="in this log already"):
            await home.takes_in(bundle)
    async with model_of(home.database, store) as model:
        await follow(model, store, page_max=37)
        live = await digest(home.database.url(PROJECTOR))
        await rebuild(home.database.url(PROJECTOR), store)
        assert await digest(home.database.url(PROJECTOR)) == live
    runs = await home.query("SELECT run_id, status, source, parent_run_id FROM crewlog.runs")
    assert {row["run_id"] for row in runs} == {bundle.run_id for bundle in forks}
    assert "running" not in {row["status"] for row in runs}


async def test_a_fork_is_not_read_in_beside_another_parent(home: Home, forks: tuple[Bundle, ...]) -> None:
    whole, fork, _ = forks
    at = next(n for n, event in enumerate(fork.events) if event.run_id == whole.run_id and event.type == "TaskDispatched")
    other = replace(fork.events[at], event_id=CLOCK.new_id())
    await home.takes_in(whole)
    with pytest.raises(ContractError, match="with another event at run/"):
        await home.takes_in(fork._replace(events=[*fork.events[:at], other, *fork.events[at + 1 :]]))
    with pytest.raises(ContractError, match="has no events of run"):
        await home.takes_in(fork._replace(events=[event for event in fork.events if event.run_id != whole.run_id]))


async def test_an_archived_run_comes_back_from_its_file_and_may_go_again(home: Home, quiet: list[Bundle], tmp_path: Path) -> None:
    bundle = planned(quiet)
    await home.takes_in(bundle)
    store, url = await home.store(ORCHESTRATOR), home.database.url(PROJECTOR)
    async with model_of(home.database, store) as model:
        for _ in range(2):
            await follow(model, store)
            row = await home.run(bundle.run_id)
            await home.seal()
            done = await home.archive(bundle.run_id, tmp_path)
            with pytest.raises(NotFound):
                await replay(store, bundle.run_id)
            back = await home.takes_in(read_bundle(done.file))
            assert (back.report, back.events) == (await replay(bundle.store(), bundle.run_id), len(bundle.events))
            assert await half_archived(home.connections(ARCHIVIST)) == []
            await follow(model, store)  # what went and what came back, in one page
            assert await home.run(bundle.run_id) == row
            live = await digest(url)
            await rebuild(url, store)
            assert await digest(url) == live
    await home.seal()
    assert (await verify(home.connections(OPERATOR))).faults == []


@pytest.mark.hand_written("a bill and an alert that no crew wrote")
async def test_a_run_that_stood_still_or_was_billed_late_goes_to_a_file_and_comes_back(home: Home, quiet: list[Bundle], tmp_path: Path) -> None:
    """What stands beside a run and its tasks never ends, and goes with it all the same."""
    bundle, store = planned(quiet), await home.store(ORCHESTRATOR)
    await home.takes_in(bundle)
    task_id = next(recorded.task_id for recorded in bundle.events if recorded.task_id is not None)
    said = RunStoodStill(bundle.run_id, "nobody works on it", 1), CallSettled(task_id, bundle.run_id, "m9-1", "p", "m", Usage(), Price(0, WORST_CASE))
    for stream, event in zip((alert_stream(bundle.run_id), spend_stream(task_id)), said, strict=True):
        await store.append(AppendRequest([Write(stream, [event])], [CLOCK.new_id()], CLOCK.now_us(), bundle.run_id))
    whole = await collect(store, bundle.run_id)
    assert len(whole.events) == len(bundle.events) + len(said)
    async with model_of(home.database, store) as model:
        for _ in range(2):
            await follow(model, store)
            await home.seal()
            done = await home.archive(bundle.run_id, tmp_path)
            assert await store.read_run(bundle.run_id) == []
            assert (await home.takes_in(read_bundle(done.file))).events == done.events == len(whole.events)
            back = await collect(store, bundle.run_id)
            assert [(e.stream, e.version, e.event_id, e.data) for e in back.events] == [(e.stream, e.version, e.event_id, e.data) for e in whole.events]
    await home.seal()
    assert (await verify(home.connections(OPERATOR))).faults == []


async def test_an_answer_that_was_lost_is_given_when_it_is_asked_for_again(home: Home, quiet: list[Bundle], tmp_path: Path) -> None:
    """The connection may break behind the commit; the same statement goes out again on the next one."""
    bundle, connections = quiet[0], home.connections(OPERATOR)
    marker = marker_of(bundle, file="run.crewlog", sha256=ANY_HASH, actor="somebody")
    marker_id = CLOCK.new_id()
    await (await home.store(OPERATOR)).put_blobs(list(bundle.blobs.values()))
    first, again = [await write_imported(connections, marker, bundle.events, marker_id=marker_id, now_us=1) for _ in range(2)]
    assert first == again
    with pytest.raises(ContractError, match="all of run"):
        await write_imported(connections, marker, bundle.events, marker_id=CLOCK.new_id(), now_us=1)
    store = await home.store(ORCHESTRATOR)
    async with model_of(home.database, store) as model:
        await follow(model, store)
    await home.seal()
    archived = await home.archive(bundle.run_id, tmp_path)
    assert await take_out(home.connections(ARCHIVIST), bundle.run_id) == archived.events == len(bundle.events)
    with pytest.raises(ContractError):
        await take_out(home.connections(ARCHIVIST), RunId(CLOCK.new_id()))


async def test_texts_that_only_archives_have_are_pruned_and_come_back_with_them(home: Home, quiet: list[Bundle], tmp_path: Path) -> None:
    """What a run in the log refers to stays, what was put lately stays, and what went is in the files."""
    (shared,) = quiet[0].blobs.keys() & quiet[1].blobs.keys()
    admin, connections, store = await home.database.admin(), home.connections(ARCHIVIST), await home.store(ORCHESTRATOR)
    for bundle in quiet:
        await home.takes_in(bundle)
    async with model_of(home.database, store) as model:
        await follow(model, store)
    await home.seal()
    before = datetime.now(UTC) - timedelta(days=1, seconds=1)

    async def pruned() -> int:
        return (await prune_blobs(connections, await unused_blobs(connections, await mentioned(connections, store), before), before)).blobs

    async def a_day_goes_by() -> None:
        await admin.execute("UPDATE es.blobs SET put_at = put_at - interval '2 days'")

    first = await home.archive(quiet[0].run_id, tmp_path)
    await store.put_blobs([b"said by nobody"])
    assert await pruned() == 0, "all were put just now"
    with pytest.raises(ContractError, match="within the last day stay"):
        await prune_blobs(connections, [bytes.fromhex(shared)], before + timedelta(hours=2))
    await a_day_goes_by()
    found = await unused_blobs(connections, await mentioned(connections, store), before)
    assert found == [bytes.fromhex(content_hash(b"said by nobody"))], "the other run refers to the setup that both had"
    await (await home.store(ORCHESTRATOR)).put_blobs([b"said by nobody"])
    assert (await prune_blobs(connections, found, before)).blobs == 0, "somebody has just put it again"
    await a_day_goes_by()
    assert await pruned() == 1
    assert (await replay(store, quiet[1].run_id)).divergence is None

    await home.archive(quiet[1].run_id, tmp_path)
    await a_day_goes_by()
    assert await pruned() == 1
    assert await (await home.store(OPERATOR)).get_blobs([shared]) == {}
    await home.takes_in(read_bundle(first.file))
    assert (await collect(await home.store(OPERATOR), quiet[0].run_id)).blobs == quiet[0].blobs
    await admin.close()


async def test_nothing_of_an_imported_run_is_carried_out(home: Home, quiet: list[Bundle]) -> None:
    """Also when it had not ended: nobody can append to it, so nobody can decide about it or work on it."""
    whole = planned(quiet)
    half = whole._replace(events=whole.events[: len(whole.events) // 2])
    assert "RunCompleted" not in {event.type for event in half.events}
    await home.takes_in(half)
    store = await home.store(ORCHESTRATOR)
    assert await store.open_runs(after=None, limit=10) == []
    stream = run_stream(half.run_id)
    for expected in (-1, sum(event.stream == stream for event in half.events)):
        request = AppendRequest((Write(stream, (RunCancelled("enough", "somebody"),), expected),), (CLOCK.new_id(),), CLOCK.now_us(), half.run_id)
        with pytest.raises(ConflictError, match="closed"):
            await store.append(request)


@pytest.mark.hand_written("damaged files")
async def test_what_is_no_whole_new_run_is_refused_and_leaves_nothing(home: Home, quiet: list[Bundle]) -> None:
    bundle = planned(quiet)
    events = list(bundle.events)
    at = next(n for n, event in enumerate(events) if event.type == "TaskDispatched")
    altered = replace(events[at], data=events[at].data.replace(b'"attempt":1', b'"attempt":2'))
    assert altered != events[at]
    gap = bundle._replace(events=[event for event in events if (event.stream, event.version) != (run_stream(bundle.run_id), 2)])
    other = bundle._replace(events=[*events, replace(events[-1], stream=Stream("budget/tenant/x"), version=1, event_id=CLOCK.new_id())])
    for wrong, check in ((bundle._replace(events=[*events[:at], altered, *events[at + 1 :]]), True), (gap, True), (gap, False), (other, False)):
        with pytest.raises(ContractError):
            await home.takes_in(wrong, check=check)
    assert await home.query("SELECT count(*) FROM es.events") == [(0,)]
    assert await home.query("SELECT count(*) FROM es.streams") == [(0,)]
    await home.takes_in(bundle)
    before = await home.query("SELECT count(*) FROM es.events")
    with pytest.raises(ContractError, match="is in this log already"):
        await home.takes_in(bundle)
    assert await home.query("SELECT count(*) FROM es.events") == before


async def test_only_people_import_and_only_the_archivist_archives(home: Home, quiet: list[Bundle]) -> None:
    bundle = quiet[0]
    marker = marker_of(bundle, file="f", sha256=ANY_HASH, actor="x")
    for role in (ORCHESTRATOR, PROJECTOR, ARCHIVIST, "crewlog_research"):
        with pytest.raises(NotAuthorised):
            await import_run(await home.store(ORCHESTRATOR), home.connections(role), bundle, marker, CLOCK)
    for role in (ORCHESTRATOR, PROJECTOR, OPERATOR, READER, "crewlog_research"):
        with pytest.raises(NotAuthorised):
            await take_out(home.connections(role), bundle.run_id)


async def test_archived_runs_leave_files_that_replay_and_a_log_that_verifies(home: Home, quiet: list[Bundle], tmp_path: Path) -> None:
    for bundle in quiet:
        await home.takes_in(bundle)
    store, url = await home.store(ORCHESTRATOR), home.database.url(PROJECTOR)
    async with model_of(home.database, store) as model:
        await follow(model, store)
        async with Queries(home.database.url(OPERATOR), CLOCK) as queries:
            found = [run async for run in finished_before(queries, (await home.query("SELECT now()"))[0][0], tenant=None)]
        assert {run.run_id for run in found} == {bundle.run_id for bundle in quiet}
        gone, kept = RunId(found[0].run_id), RunId(found[1].run_id)
        before = await replay(store, gone)
        with pytest.raises(ContractError, match="not sealed yet"):
            await home.archive(gone, tmp_path)
        assert not list(tmp_path.iterdir())  # noqa: ASYNC240 - a folder of a test
        await home.seal()
        done = await home.archive(gone, tmp_path)
        assert done.file.stat().st_size == done.size

        assert await store.read_run(gone) == []
        archived = read_bundle(done.file)
        assert await replay(archived.store(), gone) == before
        assert await replay(store, kept) == await replay(next(b for b in quiet if b.run_id == kept).store(), kept)
        await follow(model, store)
        live = await digest(url)
        await rebuild(url, store)
        assert await digest(url) == live
    for view in ("runs", "tasks", "model_calls", "tool_calls"):
        assert (await home.query(f"SELECT count(*) FROM crewlog.{view} WHERE run_id = $1", gone)) == [(0,)]
    (row,) = await home.query("SELECT * FROM crewlog.archives")
    assert (row["run_id"], row["goal"], row["events"], row["file"]) == (gone, found[0].goal, done.events, done.file.name)

    await home.seal()
    checked = await verify(home.connections(OPERATOR))
    assert checked.faults == []
    assert [(run.run_id, run.events, run.file) for run in checked.archived] == [(str(gone), done.events, done.file.name)]
    assert await half_archived(home.connections(ARCHIVIST)) == []


async def test_a_run_that_is_not_what_was_proved_stays(home: Home, quiet: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = planned(quiet)
    await home.takes_in(bundle)
    store = await home.store(ORCHESTRATOR)
    async with model_of(home.database, store) as model:
        await follow(model, store)
    await home.seal()

    def spoil(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])

    monkeypatch.setattr(run_archive, "write_durably", spoil)
    with pytest.raises(ContractError, match="no exported run"):
        await home.archive(bundle.run_id, tmp_path)
    monkeypatch.undo()
    with pytest.raises(ContractError, match="RunArchived first"):
        await take_out(home.connections(ARCHIVIST), bundle.run_id)
    before = await run_digest(home.connections(ARCHIVIST), bundle.run_id)
    assert before.events == len(bundle.events)

    said = RunArchived(bundle.run_id, "t", "u", "run", "g", "completed", 0, 0, 0, before.events, ANY_HASH, "f", ANY_HASH, "somebody")
    await (await home.store(ARCHIVIST)).append(AppendRequest((Write(archive_stream(bundle.run_id), (said,)),), (CLOCK.new_id(),), 0))
    with pytest.raises(ContractError, match="not what RunArchived says"):
        await take_out(home.connections(ARCHIVIST), bundle.run_id)
    assert len(await store.read_run(bundle.run_id)) == before.events
    assert await half_archived(home.connections(ARCHIVIST)) == [Announced(bundle.run_id, "f", ANY_HASH)]


async def test_an_archive_that_was_interrupted_is_brought_to_its_end(home: Home, quiet: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = planned(quiet)
    await home.takes_in(bundle)
    store = await home.store(ORCHESTRATOR)
    async with model_of(home.database, store) as model:
        await follow(model, store)
    await home.seal()

    async def dies(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_archive, "take_out", dies)
    with pytest.raises(KeyboardInterrupt):
        await home.archive(bundle.run_id, tmp_path)
    assert (await replay(store, bundle.run_id)).divergence is None, "it is in both places"
    (left,) = await half_archived(home.connections(ARCHIVIST))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ContractError, match="name the folder that has it with --out"):
        await run_archive.finish_announced(home.connections(ARCHIVIST), left, tmp_path / "elsewhere")
    assert (await replay(store, bundle.run_id)).divergence is None, "nobody knows of a file that has it"
    monkeypatch.undo()
    assert await run_archive.finish_announced(home.connections(ARCHIVIST), left, tmp_path) == len(bundle.events)
    assert await half_archived(home.connections(ARCHIVIST)) == []
    assert await store.read_run(bundle.run_id) == []
    with pytest.raises(run_archive.LeftAlready):  # the views, which are behind, may name it a while longer
        await home.archive(bundle.run_id, tmp_path)
    await home.takes_in(read_bundle(tmp_path / f"{bundle.run_id}{run_archive.SUFFIX}"))


@pytest.mark.parametrize("at", ["read sealed events", "compare streams"])
async def test_a_run_that_is_archived_while_the_log_is_verified_is_no_fault(home: Home, quiet: list[Bundle], tmp_path: Path, at: str) -> None:
    for bundle in quiet:
        await home.takes_in(bundle)
    store, connections = await home.store(ORCHESTRATOR), home.connections(OPERATOR)
    async with model_of(home.database, store) as model:
        await follow(model, store)
    await home.seal()
    left, fetch = list(quiet), connections.fetch

    async def meanwhile(what: str, *more: Any) -> list[Any]:
        if what == at and left:
            await home.archive(left.pop().run_id, tmp_path)
        return await fetch(what, *more)

    connections.fetch = meanwhile  # type: ignore[method-assign]
    for _ in quiet:
        assert (await verify(connections)).faults == []
    assert left == []


@pytest.mark.hand_written("tries the triggers of the log")
async def test_nobody_deletes_events_without_their_tombstones(home: Home, quiet: list[Bundle]) -> None:
    bundle = planned(quiet)
    await home.takes_in(bundle)
    await home.seal()
    admin = await home.database.admin()
    for statement in (
        "DELETE FROM es.events WHERE position = 2",
        "INSERT INTO es.tombstones VALUES (2, sha256('wrong'), gen_random_uuid()); DELETE FROM es.events WHERE position = 2",
        "UPDATE es.events SET actor = 'x' WHERE position = 2",
    ):
        with pytest.raises(asyncpg.PostgresError, match="append-only"):
            await admin.execute(statement)
    await admin.execute("INSERT INTO es.tombstones SELECT e.position, es.event_digest(e), e.run_id FROM es.events e WHERE position = 2")
    await admin.execute("DELETE FROM es.events WHERE position = 2")
    await admin.close()
    (fault, *_) = (await verify(home.connections(OPERATOR))).faults
    assert (fault.kind, fault.position) == ("removed", 2)
    assert "no RunArchived says so" in fault.detail
