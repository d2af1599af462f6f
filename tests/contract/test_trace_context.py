"""Trace context on its way: from whoever submits a task into the log, and with every dispatched task to its worker."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from support.crew import WITHIN_S, Crew, crash_once
from support.decider import a_plan
from support.histories import BEGIN_US, store_history, write_history
from support.postgres import Database
from support.scripted import Recorder, Say, calls
from support.views import PROJECTOR, log_of
from support.worker_bench import RUN_ID, worker_bench

from crewlog.agents.spec import AgentSpec, ToolContext, ToolOutput, ToolSpec
from crewlog.projections.telemetry import StoredProgress, trace_of
from crewlog.projections.view_connection import connect_views
from crewlog.schemas.ids import RunId, run_stream
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.trace_context import SpanRef, parse_traceparent, span_id

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NO_CALLERS = ["", "garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5_000]


async def submitted(crew: Crew, run_id: RunId) -> RunSubmitted:
    event = crew.events(run_id)[0].event()
    assert isinstance(event, RunSubmitted)
    return event


@pytest.mark.parametrize(("header", "expected"), [(CALLER, CALLER), *((header, "") for header in NO_CALLERS)])
async def test_who_submits_a_task_by_request_or_by_message_is_remembered(header: str, expected: str) -> None:
    crew = Crew()
    task = {"type": "data", "objective": "Count"}
    async with crew.orchestrator():
        data = json.dumps({**task, "task_id": str(crew.clock.random_id())}).encode()
        answer = json.loads((await crew.bus.request("api.default.tasks.submit", data, timeout_s=WITHIN_S, headers={"traceparent": header})).data)
        await crew.bus.publish("tasks.default.data", json.dumps(task).encode(), headers={"traceparent": header})
        await crew.until(lambda: sum(name.startswith("run/") for name in crew.log.streams) == 2)
    for run_id in {stream.run_id for name, stream in crew.log.streams.items() if name.startswith("run/") and stream.run_id is not None}:
        assert (await submitted(crew, run_id)).caller == expected
    assert run_stream(RunId(answer["run_id"])) in crew.log.streams


@pytest.mark.parametrize("share", [1.0, 0.0])
async def test_a_worker_is_told_the_span_that_sent_it_each_attempt(share: float) -> None:
    crew = Crew(crash_once)
    async with crew.orchestrator(trace_share=share), crew.agents():
        run_id = await crew.submit(plan=a_plan(a="data"))
        await crew.ended(run_id)
    events = sorted((r for stream in crew.log.streams.values() for r in stream.events if r.run_id == run_id), key=lambda r: r.position)
    spans = {span.span_id: span for span in trace_of(run_id, events)}
    told = [headers["traceparent"] for _, headers in crew.deliveries]
    assert len(told) == 2
    for number, header in enumerate(told, 1):
        ref = parse_traceparent(header)
        assert ref is not None
        assert ref.trace_id == run_id.bytes
        assert (spans[ref.span_id].name, spans[ref.span_id].parent_id) == ("send work.data.normal", span_id(run_id, "workflow"))
        assert spans[ref.span_id].attributes["messaging.message.id"].endswith(f":{number}:{number}")  # type: ignore[union-attr]
        assert header.endswith("-01" if share else "-00")


async def test_messages_of_a_crew_that_is_not_traced_name_no_trace() -> None:
    crew = Crew()
    async with crew.orchestrator(), crew.agents():
        await crew.ended(await crew.submit(plan=a_plan(a="data")))
    assert not [headers for _, headers in crew.deliveries if "traceparent" in headers]


async def test_a_tool_knows_the_span_that_its_call_will_have(tmp_path: Path) -> None:
    told: list[str] = []

    async def look(context: ToolContext, _: Say) -> ToolOutput:
        told.append(context.traceparent)
        return ToolOutput("seen")

    tools = (ToolSpec("look", "look", Say, look, effect="read", trust="trusted"), Recorder().tool("submit", ends_task=True))
    spec = AgentSpec("data", "test agent", "Look.", tools)
    async with worker_bench(tmp_path) as bench:
        await bench.worker(spec, calls(("look", '{"text":"a"}'), ("look", '{"text":"b"}')), calls(("submit", '{"text":"done"}')))
        task = await bench.open()
        await bench.dispatch(task)
        await bench.rest(task)
        events = await bench.recorded(task)
    at = [event.version for event in events if event.type == "ToolStarted"][:2]
    assert [parse_traceparent(header) for header in sorted(told)] == sorted(SpanRef(RUN_ID.bytes, span_id(task.task_id, f"tool/{version}")) for version in at)


@pytest.mark.hand_written("a history of any shape")
async def test_a_log_that_was_never_traced_begins_with_its_newest_part_and_goes_on_where_it_was(database: Database) -> None:
    async with log_of(database) as store:
        await store_history(store, write_history(Random(1), runs=4, moves=120))
        events = (await store.read_all(0, 100_000)).events
    begin_us, part = events[len(events) // 4].occurred_us, len(events) // 8
    admin = await database.admin()
    await admin.execute("SET session_replication_role = replica")  # the log's own triggers let nobody do what follows
    await admin.execute("UPDATE es.events SET recorded_at = to_timestamp(occurred_us / 1e6)")
    # a run from a file: its events are as old as ever, and as new in this log as they can be
    await admin.execute("UPDATE es.events SET occurred_us = 1 WHERE position BETWEEN $1 AND $2", events[3 * part].position, events[5 * part].position)
    await admin.close()
    connection = await connect_views(database.url(PROJECTOR), "rm")
    try:
        progress = StoredProgress(connection)
        begin = await progress.read(begin_us)
        assert next(r.position for r in events if r.occurred_us >= begin_us) == next(r.position for r in events if r.position > begin)
        await progress.save(begin + 5)
        await progress.save(begin + 2)
        assert await progress.read(BEGIN_US) == begin + 5
        await connection.execute("DELETE FROM telemetry")
        assert await progress.read(BEGIN_US * 2) == events[-1].position
    finally:
        await connection.close()
