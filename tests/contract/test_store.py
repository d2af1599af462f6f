"""The log contract: what the memory store and the Postgres store both keep."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import msgspec
import pytest
import pytest_asyncio
from support.logs import (
    CLOCK,
    Log,
    asked,
    cancelled,
    completed,
    dispatched,
    new_run,
    new_task,
    opening,
    request,
    started,
    submitted,
    to_run,
    to_task,
)

from crewlog.events.grants import ARCHIVIST, OPERATOR
from crewlog.events.store import EVENT_BYTES_MAX, NAME_CHARS_MAX, NO_STREAM, STREAMS_PER_APPEND_MAX, AppendRequest, ArchivedRun, Changes, EventStore, Write
from crewlog.schemas.errors import ConflictError, ContractError, Unavailable
from crewlog.schemas.ids import Hash, RunId, Stream, archive_stream, document_stream, run_stream, task_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.system_events import DocumentIngested, RunArchived
from crewlog.schemas.task_events import TaskCancelled, TaskCompleted, TaskOpened
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Outcome

pytestmark = pytest.mark.hand_written("tries the log with events of every kind")


@pytest_asyncio.fixture
async def store(log: Log) -> EventStore:
    """Return the orchestrator's store."""
    return await log.open()


# appending


async def test_versions_count_from_one_and_positions_rise(store: EventStore) -> None:
    run_id = new_run()
    first = await store.append(opening(run_id))
    second = await store.append(to_run(run_id, dispatched(new_task()), dispatched(new_task()), expected=1))
    assert (first.versions, second.versions) == ([1], [2, 3])
    assert first.positions[0] < second.positions[0] < second.positions[1]
    assert not first.duplicate


async def test_an_append_to_several_streams_is_one(store: EventStore) -> None:
    run_id, task_id = new_run(), new_task()
    await store.append(opening(run_id, task_id))
    with pytest.raises(ConflictError) as caught:
        await store.append(
            request(Write(run_stream(run_id), [dispatched(new_task())], 1), Write(task_stream(task_id), [TaskCancelled("late", "test")], 7), run_id=run_id)
        )
    assert (caught.value.stream, caught.value.expected, caught.value.actual, caught.value.closed) == (task_stream(task_id), 7, 1, False)
    assert [event.version for event in await store.read_run(run_id)] == [1, 1]


async def test_the_envelope_comes_back_as_written(store: EventStore) -> None:
    run_id, task_id, cause, trace = new_run(), new_task(), CLOCK.new_id(), CLOCK.new_id()
    event = RunSubmitted(run_id, "default", "anna", "größer 🎉 \t ½", msgspec.Raw(b'{"b": 1,  "a": "\\u00e9"}'), "api")
    asked_for = request(Write(run_stream(run_id), [event], NO_STREAM), run_id=run_id, task_id=task_id)._replace(causation_id=cause, trace_id=trace)
    written = await store.append(asked_for)
    (found,) = await store.read_run(run_id)
    assert found.event() == event
    assert found.data == msgspec.json.encode(event)
    assert (found.run_id, found.task_id, found.causation_id, found.trace_id) == (run_id, task_id, cause, trace)
    assert (found.position, found.version, found.event_id, found.type) == (written.positions[0], 1, asked_for.event_ids[0], "RunSubmitted")
    assert (found.occurred_us, found.schema_version, found.stream) == (asked_for.occurred_us, 1, run_stream(run_id))
    assert (found.actor, found.writer) == ("crewlog_orchestrator@test", "crewlog_orchestrator")


async def test_the_last_events_of_streams_are_read_in_the_order_of_the_log(store: EventStore) -> None:
    long, short = new_run(), new_run()
    await store.append(opening(long))
    await store.append(opening(short))
    for _ in range(3):
        await store.append(to_run(long, dispatched(new_task())))
    found = await store.read_last([run_stream(long), run_stream(short), run_stream(new_run())], 2)
    assert [(event.stream, event.version) for event in found] == [(run_stream(short), 1), (run_stream(long), 3), (run_stream(long), 4)]
    assert await store.read_last([run_stream(long)], 9) == await store.read_streams({run_stream(long): 0})
    assert list(await store.read_last([], 9)) == []


async def test_the_same_request_again_is_answered_with_the_original(store: EventStore) -> None:
    run_id, task_id = new_run(), new_task()
    first = opening(run_id, task_id)
    original = await store.append(first)
    await store.append(to_run(run_id, dispatched(new_task()), expected=1))
    again = await store.append(first)
    assert again.duplicate
    assert (list(again.versions), list(again.positions)) == (list(original.versions), list(original.positions))
    assert len(await store.read_run(run_id)) == 3


async def test_a_duplicate_without_expected_version_is_noticed(store: EventStore) -> None:
    run_id = new_run()
    await store.append(opening(run_id))
    blind = to_run(run_id, dispatched(new_task()))
    original = await store.append(blind)
    again = await store.append(blind)
    assert (again.duplicate, list(again.versions)) == (True, list(original.versions))


async def test_an_id_known_on_another_stream_is_refused(store: EventStore) -> None:
    first, other = new_run(), new_run()
    known = opening(first)
    await store.append(known)
    with pytest.raises(ContractError, match="event ids"):
        await store.append(opening(other)._replace(event_ids=known.event_ids))
    assert await store.read_run(other) == []


async def test_half_known_ids_are_refused(store: EventStore) -> None:
    run_id = new_run()
    known = opening(run_id)
    await store.append(known)
    for expected in (1, -1):
        partly = to_run(run_id, submitted(run_id), dispatched(new_task()), expected=expected)
        with pytest.raises(ContractError, match="event ids"):
            await store.append(partly._replace(event_ids=[known.event_ids[0], CLOCK.new_id()]))
    assert len(await store.read_run(run_id)) == 1


@pytest.mark.parametrize("expected", [0, 2, 1_000_000])
async def test_a_wrong_expected_version_is_a_conflict(store: EventStore, expected: int) -> None:
    run_id = new_run()
    await store.append(opening(run_id))
    with pytest.raises(ConflictError) as caught:
        await store.append(to_run(run_id, dispatched(new_task()), expected=expected))
    assert (caught.value.expected, caught.value.actual) == (expected, 1)


async def test_a_refused_opening_leaves_no_stream(store: EventStore) -> None:
    run_id = new_run()
    with pytest.raises(ConflictError) as caught:
        await store.append(to_run(run_id, submitted(run_id), expected=3))
    assert caught.value.actual == 0
    assert await store.open_runs(after=None, limit=10) == []
    assert (await store.append(opening(run_id))).versions == [1]


async def test_concurrent_appends_with_one_version_have_one_winner(log: Log) -> None:
    stores = [await log.open() for _ in range(3)]
    run_id = new_run()
    await stores[0].append(opening(run_id))
    answers = await asyncio.gather(*(store.append(to_run(run_id, dispatched(new_task()), expected=1)) for store in stores * 8), return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
    assert {type(answer) for answer in answers if isinstance(answer, BaseException)} == {ConflictError}
    assert [event.version for event in await stores[0].read_run(run_id)] == [1, 2]


async def test_requests_submitted_together_keep_their_order(store: EventStore) -> None:
    run_id = new_run()
    tasks = [new_task() for _ in range(40)]
    requests = [opening(run_id), *(to_run(run_id, dispatched(task), expected=index) for index, task in enumerate(tasks, 1))]
    answers = await asyncio.gather(*map(store.append, requests))
    assert [answer.versions[0] for answer in answers] == list(range(1, 42))


async def test_a_refused_request_does_not_touch_its_neighbours(store: EventStore) -> None:
    runs = [new_run() for _ in range(6)]
    await store.append(opening(runs[0]))
    requests = [opening(run_id) for run_id in runs]
    answers = await asyncio.gather(*(store.append(r) for r in [*requests, requests[2]]), return_exceptions=True)
    assert isinstance(answers[0], ConflictError)
    assert [a.versions for a in answers[1:6] if not isinstance(a, BaseException)] == [[1]] * 5
    again = answers[6]
    assert not isinstance(again, BaseException)
    assert again.duplicate


async def test_the_opener_decides_run_and_kind_even_behind_a_refused_one(store: EventStore, log: Log) -> None:
    wrong, right, task_id = new_run(), new_run(), new_task()
    opened = TaskOpened("research", "step", 0, msgspec.Raw(b"{}"))
    refused = request(Write(task_stream(task_id), [opened], 5, "data"), run_id=wrong)
    accepted = request(Write(task_stream(task_id), [opened], 0, "research"), run_id=right)
    answers = await asyncio.gather(store.append(refused), store.append(accepted), return_exceptions=True)
    assert isinstance(answers[0], ConflictError)
    assert [event.stream for event in await store.read_run(right)] == [task_stream(task_id)]
    assert await store.read_run(wrong) == []
    worker = await log.open("crewlog_research")
    assert (await worker.append(to_task(task_id, started(), expected=1))).versions == [2]


# closing


async def test_a_terminal_event_closes_its_stream(store: EventStore, log: Log) -> None:
    run_id, task_id = new_run(), new_task()
    await store.append(opening(run_id, task_id))
    worker = await log.open("crewlog_research")
    end = to_task(task_id, started(), completed(), expected=1, run_id=run_id)
    original = await worker.append(end)
    for expected in (3, -1):
        with pytest.raises(ConflictError) as caught:
            await store.append(to_task(task_id, TaskCancelled("late", "test"), expected=expected))
        assert (caught.value.actual, caught.value.closed) == (3, True)
    again = await worker.append(end)
    assert (again.duplicate, list(again.positions)) == (True, list(original.positions))
    assert len(await store.read_streams({task_stream(task_id): 0})) == 3


async def test_only_one_of_two_ends_sent_together_is_written(store: EventStore) -> None:
    run_id = new_run()
    await store.append(opening(run_id))
    answers = await asyncio.gather(*(store.append(to_run(run_id, cancelled())) for _ in range(5)), return_exceptions=True)
    assert [isinstance(answer, ConflictError) and answer.closed for answer in answers] == [False, True, True, True, True]
    assert [event.type for event in await store.read_run(run_id)] == ["RunSubmitted", "RunCancelled"]


async def test_a_refused_end_leaves_the_stream_open(store: EventStore) -> None:
    run_id = new_run()
    await store.append(opening(run_id))
    with pytest.raises(ConflictError):
        await store.append(to_run(run_id, cancelled(), expected=4))
    assert (await store.append(to_run(run_id, dispatched(new_task()), expected=1))).versions == [2]


async def test_nothing_stands_behind_the_end_in_one_append(store: EventStore) -> None:
    run_id = new_run()
    await store.append(opening(run_id))
    with pytest.raises(ContractError, match="last"):
        await store.append(to_run(run_id, cancelled(), dispatched(new_task())))


# malformed requests


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


LONGEST = Stream("run/" + "".join(chr(0x20000 + n * 7919 % 0xA000) for n in range(NAME_CHARS_MAX - 4)))
"""As many bytes as a name may have, and of a kind that cannot be compressed."""


async def test_malformed_requests_are_refused_in_the_caller(store: EventStore) -> None:
    run_id = new_run()
    good = opening(run_id)
    write = good.writes[0]
    bad = {
        "no writes": good._replace(writes=[]),
        "no events": good._replace(writes=[write._replace(events=[])], event_ids=[]),
        "id missing": good._replace(event_ids=[]),
        "id too many": good._replace(event_ids=[CLOCK.new_id(), CLOCK.new_id()]),
        "id is text": good._replace(event_ids=["x"]),  # type: ignore[list-item]
        "version": good._replace(writes=[write._replace(expected=-2)]),
        "stream twice": good._replace(writes=[write, write], event_ids=[CLOCK.new_id(), CLOCK.new_id()]),
        "id twice": to_run(run_id, submitted(run_id), submitted(run_id))._replace(event_ids=[good.event_ids[0]] * 2),
        "NUL in name": good._replace(writes=[write._replace(stream=Stream("run/\0"))]),
        "surrogate in name": good._replace(writes=[write._replace(stream=Stream("run/\ud800"))]),
        "long name": good._replace(writes=[write._replace(stream=Stream(LONGEST + "𠀀"))]),
        "NUL in kind": good._replace(writes=[write._replace(kind="\0")]),
        "surrogate in kind": good._replace(writes=[write._replace(kind="\ud800")]),
        "too many streams": request(*(Write(run_stream(new_run()), [submitted(run_id)]) for _ in range(STREAMS_PER_APPEND_MAX + 1)), run_id=run_id),
        "too large": to_run(run_id, RunSubmitted(run_id, "t", "u", "x" * EVENT_BYTES_MAX, msgspec.Raw(b"{}"), "api")),
        "NUL": to_run(run_id, RunSubmitted(run_id, "t", "u", "a\0b", msgspec.Raw(b"{}"), "api")),
        "escaped NUL": to_run(run_id, RunSubmitted(run_id, "t", "u", "g", msgspec.Raw(b'{"a":"\\u0000"}'), "api")),
        "surrogate": to_run(run_id, RunSubmitted(run_id, "t", "u", "\ud800", msgspec.Raw(b"{}"), "api")),
        "escaped surrogate": to_run(run_id, RunSubmitted(run_id, "t", "u", "g", msgspec.Raw(b'{"a":"\\ud800"}'), "api")),
        "run without its id": to_run(run_id, submitted(run_id))._replace(run_id=None),
        "nested without end": to_task(new_task(), TaskCompleted(Outcome("done", nested(10_000)), Usage(), 0, 1, 0), run_id=run_id),
        "before 1970": good._replace(occurred_us=-1),
        "after the last year": good._replace(occurred_us=2**62),
    }
    for name, wrong in bad.items():
        with pytest.raises(ContractError):
            pytest.fail(f"{name}: {await store.append(wrong)}")
    assert await store.read_run(run_id) == []


async def test_the_longest_name_is_stored(store: EventStore) -> None:
    run_id = new_run()
    write = opening(run_id).writes[0]._replace(stream=LONGEST, kind="𠀀" * NAME_CHARS_MAX)
    assert (await store.append(request(write, run_id=run_id))).versions == [1]
    assert len(await store.read_streams({LONGEST: 0})) == 1


async def test_text_that_only_looks_dangerous_is_fine(store: EventStore) -> None:
    run_id = new_run()
    event = RunSubmitted(run_id, "t", "u", "backslash \\u0000 and \\ud800 as text", msgspec.Raw(b'{"a":"\\ud83c\\udf89 \\\\u0000"}'), "api")
    await store.append(to_run(run_id, event))
    assert (await store.read_run(run_id))[0].event() == event


# reading


async def test_streams_are_read_from_behind_a_version_and_by_type(store: EventStore, log: Log) -> None:
    run_id, tasks = new_run(), [new_task() for _ in range(3)]
    await store.append(opening(run_id))
    worker = await log.open("crewlog_research")
    for task_id in tasks:
        await store.append(
            request(Write(task_stream(task_id), [TaskOpened("research", "k", 0, msgspec.Raw(b"{}"))], 0, "research"), run_id=run_id, task_id=task_id)
        )
    for task_id in tasks:
        await worker.append(to_task(task_id, started(), asked(), expected=1, run_id=run_id))
    found = await store.read_streams({task_stream(tasks[0]): 1, task_stream(tasks[1]): 2, task_stream(tasks[2]): 3, task_stream(new_task()): 0})
    assert [(event.stream, event.version) for event in found] == [(task_stream(tasks[0]), 2), (task_stream(tasks[0]), 3), (task_stream(tasks[1]), 3)]
    only = await store.read_streams({task_stream(task_id): 0 for task_id in tasks}, types=frozenset({"TaskStarted"}))
    assert [event.type for event in only] == ["TaskStarted"] * 3
    assert await store.read_streams({}) == []
    assert await store.read_streams({task_stream(tasks[0]): 0}, types=frozenset()) == []


async def test_a_run_is_read_through_all_its_streams(store: EventStore, log: Log) -> None:
    run_id, other, task_id = new_run(), new_run(), new_task()
    await store.append(opening(run_id, task_id))
    await store.append(opening(other, new_task()))
    worker = await log.open("crewlog_research")
    await worker.append(to_task(task_id, started(), expected=1))
    found = await store.read_run(run_id)
    assert [(event.stream, event.version) for event in found] == [(run_stream(run_id), 1), (task_stream(task_id), 1), (task_stream(task_id), 2)]
    assert [event.position for event in found] == sorted(event.position for event in found)
    assert await store.read_run(new_run()) == []


async def test_the_whole_log_is_read_in_pages(store: EventStore) -> None:
    empty = await store.read_all(0, 10)
    assert empty.events == []
    runs = [new_run() for _ in range(7)]
    positions = [(await store.append(opening(run_id))).positions[0] for run_id in runs]
    seen: list[int] = []
    after = 0
    while (page := await store.read_all(after, 3)).events:
        assert len(page.events) <= 3
        assert page.high_water >= page.events[-1].position
        seen += [event.position for event in page.events]
        after = seen[-1]
    assert seen == positions
    assert page.high_water >= positions[-1]


async def test_open_runs_are_listed_with_how_many_events_they_have_in_all_of_their_streams(store: EventStore) -> None:
    runs = sorted(new_run() for _ in range(3))
    task_id = new_task()
    await asyncio.gather(*map(store.append, (opening(runs[0]), opening(runs[1], task_id), opening(runs[2]))))
    assert list((await store.count_open(after=None, limit=2)).items()) == [(runs[0], 1), (runs[1], 2)]
    await store.append(to_run(runs[1], dispatched(task_id), expected=1))
    assert await store.count_open(after=runs[0], limit=10) == {runs[1]: 3, runs[2]: 1}
    await store.append(to_run(runs[1], cancelled(), expected=2))
    assert await store.count_open(after=None, limit=10) == {runs[0]: 1, runs[2]: 1}


async def test_the_log_tells_which_runs_something_happened_to(store: EventStore) -> None:
    start = (await store.changed_runs(0, positions_max=0)).high_water
    first, second, third = (new_run() for _ in range(3))
    await store.append(opening(first))
    known = (await store.append(opening(second, task_id := new_task()))).positions[-1]
    assert await store.changed_runs(start, positions_max=100) == Changes(known, {first: 1, second: 2}, [])
    assert await store.changed_runs(known, positions_max=100) == Changes(known, {}, [])

    await store.append(opening(third))
    await store.append(to_run(first, cancelled(), expected=1))
    last = (await store.append(to_run(second, dispatched(task_id), expected=1))).positions[0]
    assert await store.changed_runs(known, positions_max=100) == Changes(last, {second: 3, third: 1}, [first])
    assert await store.changed_runs(known, positions_max=2) == Changes(last, {}, [], is_complete=False)


async def test_open_runs_are_listed_in_id_order(store: EventStore) -> None:
    runs = sorted(new_run() for _ in range(6))
    for run_id in reversed(runs):
        await store.append(opening(run_id, new_task()))
    await store.append(to_run(runs[2], cancelled()))
    left = [*runs[:2], *runs[3:]]
    assert list(await store.open_runs(after=None, limit=100)) == left
    assert list(await store.open_runs(after=None, limit=2)) == left[:2]
    assert list(await store.open_runs(after=left[1], limit=100)) == left[2:]


async def test_runs_that_came_from_a_run_are_those_that_name_it_or_a_task_of_it(store: EventStore) -> None:
    def submitted(run_id: RunId, parent: UUID | None) -> RunSubmitted:
        task = {"task_id": run_id} | ({} if parent is None else {"parent_task_id": parent})
        return RunSubmitted(run_id, "default", "anna", "goal", msgspec.Raw(msgspec.json.encode(task)), "api")

    parent, other, task = new_run(), new_run(), new_task()
    await store.append(opening(parent, task))
    named = {new_run(): origin for origin in (parent, task, other, None)}
    for run_id, origin in named.items():
        await store.append(request(Write(run_stream(run_id), [submitted(run_id, origin)], NO_STREAM), run_id=run_id))
    first, second, *_ = named
    assert list(await store.child_runs([parent])) == [first, second]
    assert list(await store.child_runs([parent, other])) == list(named)[:3]
    assert list(await store.child_runs([new_run()])) == []


async def test_archived_runs_are_found_by_what_they_came_from_and_by_their_tasks(log: Log) -> None:
    def went(run_id: RunId, file: str, parent: UUID | None) -> AppendRequest:
        fact = RunArchived(run_id, "default", "anna", "data", "goal", "completed", 1, 2, 0, 9, Hash("0" * 64), file, Hash("0" * 64), "anna", parent)
        return request(Write(archive_stream(run_id), [fact]))

    store, archivist = await log.open(), await log.open(ARCHIVIST)
    parent, task, here = new_run(), new_task(), new_run()
    await store.append(opening(parent, task))
    await store.append(opening(here))
    gone = {new_run(): origin for origin in (parent, task, new_run(), None)}
    for run_id, origin in (gone | {here: parent}).items():
        await archivist.append(went(run_id, "first", origin))
        await archivist.append(went(run_id, "last", origin))
    first, second, third, fourth = gone
    assert set(await store.archived_runs(came_from=[parent])) == {ArchivedRun(first, "last"), ArchivedRun(second, "last")}, "one is here: it came back"
    assert await store.archived_runs(came_from=[third, fourth]) == []
    assert await store.archived_runs(with_tasks=[parent, task, here]) == []
    assert await store.archived_runs() == []


async def test_streams_outside_runs_have_no_run(log: Log) -> None:
    operator = await log.open(OPERATOR)
    content = content_hash(b"text")
    stream = document_stream("default", content)
    event = DocumentIngested("default", content, library=True, name="a.md", media_type="text/markdown", size=4, text=content, lines=1, title="A")
    await operator.append(request(Write(stream, [event], NO_STREAM)))
    (found,) = await operator.read_streams({stream: 0})
    assert (found.event(), found.run_id) == (event, None)
    assert await operator.open_runs(after=None, limit=10) == []


# blobs


async def test_blobs_come_back_by_hash(store: EventStore, log: Log) -> None:
    blobs = [b"", b"small", b"x" * 100_000, bytes(range(256)) * 40, b"small"]
    hashes = await store.put_blobs(blobs)
    assert hashes == [content_hash(blob) for blob in blobs]
    await store.put_blobs(blobs[:2])
    reader = await log.open("crewlog_projector")
    for _ in range(2):
        assert await reader.get_blobs([*hashes, Hash("0" * 64)]) == dict(zip(hashes, blobs, strict=True))
    assert await reader.get_blobs([]) == {}


async def test_blobs_stored_by_several_at_once_do_not_deadlock(log: Log) -> None:
    blobs = [bytes([number]) * 500 for number in range(60)]
    stores = [await log.open() for _ in range(4)]
    orders = [blobs, blobs[::-1], blobs[30:] + blobs[:30], blobs[::-2] + blobs[::2]]
    await asyncio.gather(*(store.put_blobs(order) for store, order in zip(stores, orders, strict=True)))
    reader = await log.open("crewlog_data")
    assert len(await reader.get_blobs([content_hash(blob) for blob in blobs])) == 60


# timers


async def test_timers_are_taken_once_when_due(store: EventStore) -> None:
    early, late, never = new_run(), new_run(), new_run()
    await store.set_timers({early: 10, late: 20, never: 5})
    await store.set_timers({early: 15, never: None})
    assert list(await store.take_due(14, 10)) == []
    assert list(await store.take_due(15, 10)) == [early]
    assert list(await store.take_due(15, 10)) == []
    assert list(await store.take_due(99, 10)) == [late]
    await store.set_timers({})


async def test_the_earliest_timers_go_first_and_to_one_taker_each(log: Log) -> None:
    stores = [await log.open() for _ in range(3)]
    runs = [new_run() for _ in range(30)]
    await stores[0].set_timers({run_id: due for due, run_id in enumerate(runs)})
    assert set(await stores[0].take_due(100, 4)) == set(runs[:4])
    taken = await asyncio.gather(*(store.take_due(100, 7) for store in stores * 4))
    flat: list[RunId] = [run_id for some in taken for run_id in some]
    assert len(flat) == len(set(flat)) == 26


# closing the store


async def test_closing_twice_is_fine_and_appends_then_fail(log: Log) -> None:
    store = await log.open()
    await store.close()
    await store.close()
    with pytest.raises(Unavailable):
        await store.append(opening(new_run()))


async def test_event_ids_are_uuids_after_reading(store: EventStore) -> None:
    run_id = new_run()
    await store.append(opening(run_id))
    (found,) = await store.read_run(run_id)
    assert isinstance(found.event_id, UUID)
    assert msgspec.json.encode(found.event_id) == f'"{found.event_id}"'.encode()
