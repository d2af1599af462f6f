"""Operators steer runs, tenants and kinds over the API: real orchestrators on the memory log and bus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from support.crew import WITHIN_S, Crew, diligent
from support.decider import a_plan

from crewlog.events.bus import Message
from crewlog.events.controls import kind_scope, run_scope, tenant_scope
from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import ANY, Appended, AppendRequest, Recorded, Write
from crewlog.orchestrator.api_control import RUNS_MAX
from crewlog.orchestrator.commands import Tick
from crewlog.orchestrator.folds import RUN_TYPES
from crewlog.schemas.ids import CONTROL_STREAM, RunId, Stream, run_stream
from crewlog.schemas.subjects import NO_RUN, control_kind, events, outcome, wake
from crewlog.schemas.system_events import ScopePaused, ScopeResumed
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import TaskEvent, TaskHandedBack

BY = {"actor": "ada", "reason": "looking into it"}
SYSTEM = "system"


def lazy(task: AgentTask, attempt: int) -> TaskEvent | None:
    """Take tasks and never say anything again."""
    del task, attempt
    return None


async def steer(crew: Crew, verb: str, *runs: RunId, **fields: Any) -> list[dict[str, Any]]:
    answer = await crew.ask(f"runs.{verb}", {"run_ids": runs, **BY, **fields})
    assert answer["ok"], answer
    return list(answer["runs"])


async def report(crew: Crew, run_id: RunId) -> dict[str, Any]:
    return dict((await crew.ask("runs.get", {"run_id": run_id}))["run"])


def controls(crew: Crew) -> list[str]:
    stream = crew.log.streams.get(CONTROL_STREAM)
    return [recorded.type for recorded in stream.events] if stream else []


async def test_a_paused_run_takes_what_ends_and_starts_nothing_until_it_is_resumed() -> None:
    crew = Crew(lazy)
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(plan=a_plan(a="data", b="code a"))
        await crew.until_handed(1)

        (paused,) = await steer(crew, "pause", run_id)
        assert (paused["status"], paused["changed"], paused["error"]) == ("paused", True, "")
        assert (await steer(crew, "pause", run_id))[0]["changed"] is False
        crew.behaviour = diligent
        await crew.says(*_ended(crew, run_id))
        await crew.until(lambda: "TaskReviewed" in crew.types(run_id))
        assert len(crew.deliveries) == 1
        (noted,) = (await report(crew, run_id))["pauses"]
        assert (noted["scope"], noted["actor"], noted["reason"]) == (run_scope(run_id), "ada", "looking into it")

        (resumed,) = await steer(crew, "resume", run_id)
        assert (resumed["status"], resumed["changed"]) == ("running", True)
        assert (await crew.ended(run_id)).type == "RunCompleted"
    assert controls(crew) == ["ScopePaused", "ScopeResumed"]


def _ended(crew: Crew, run_id: RunId) -> tuple[AgentTask, TaskEvent]:
    (opened,) = [r for r in crew.log.events if r.type == "TaskOpened" and r.run_id == run_id]
    task = parse_task(json.loads(opened.data)["task"])
    return task, diligent(task, 1)


async def test_a_task_that_is_handed_back_is_dispatched_again_behind_the_resumption() -> None:
    crew = Crew(lambda task, attempt: TaskHandedBack(1, run_scope(RunId(task.run_id)), 1))
    async with crew.orchestrator():
        run_id = await crew.submit(type="data")
        await steer(crew, "pause", run_id)
        async with crew.agents():
            await crew.until(lambda: "TaskReturned" in crew.types(run_id))
            assert crew.broker.messages("WORK") == []
            crew.behaviour = diligent
            await steer(crew, "resume", run_id)
            await crew.ended(run_id)
    assert [headers["Attempt"] for _, headers in crew.deliveries] == ["1", "1"]


async def test_a_paused_tenant_concerns_all_its_runs_and_those_that_come_later() -> None:
    crew = Crew(lazy)
    async with crew.orchestrator(), crew.agents():
        mine, other = await crew.submit(type="data"), await crew.ask("tasks.submit", {"task_id": uuid4(), "type": "data", "objective": "x"}, tenant="acme")
        assert (await crew.ask("tenants.pause", BY))["changed"] is True
        await crew.until(lambda: "RunPaused" in crew.types(mine))
        later = await crew.submit(type="data")
        assert crew.types(later) == ["RunSubmitted", "RunPaused", "RunPlanned"]
        assert "RunPaused" not in crew.types(RunId(UUID(other["run_id"])))
        (refused,) = await steer(crew, "resume", mine)
        assert refused["error"] == f"run {mine} is paused with its tenant default: crewlog resume --tenant default"

        crew.behaviour = diligent
        assert (await crew.ask("tenants.resume", BY))["changed"] is True
        await crew.ended(later)


async def test_a_named_command_that_comes_again_late_changes_nothing_even_if_it_was_no_news_at_first() -> None:
    crew, named = Crew(), {**BY, "command_id": uuid4()}
    async with crew.orchestrator():
        assert (await crew.ask("tenants.pause", BY))["changed"] is True
        assert (await crew.ask("tenants.pause", named))["changed"] is False
        assert (await crew.ask("tenants.resume", BY))["changed"] is True
        await crew.ask("tenants.pause", named)
        assert controls(crew) == ["ScopePaused", "ScopePaused", "ScopeResumed"]


async def pause_without_a_word(crew: Crew, tenant: str) -> None:
    write = Write(CONTROL_STREAM, (ScopePaused(tenant_scope(tenant), "ada"),), ANY)
    await crew.store().append(AppendRequest((write,), [crew.clock.new_id()], crew.clock.now_us()))


async def test_an_orchestrator_that_was_not_told_finds_out_with_its_next_look_at_any_run() -> None:
    crew = Crew(lazy)
    async with crew.orchestrator():
        run_id, looked_at = [await crew.submit(type="data") for _ in range(2)]
        await pause_without_a_word(crew, "default")
        await crew.bus.publish(wake(looked_at))
        await crew.until(lambda: "RunPaused" in crew.types(run_id))


async def test_an_orchestrator_that_has_nothing_to_look_at_finds_out_when_it_sweeps() -> None:
    crew = Crew(lazy)
    async with crew.orchestrator(sweep_interval_s=0.05):
        run_id = await crew.submit(type="data")
        await pause_without_a_word(crew, "default")
        await crew.until(lambda: "RunPaused" in crew.types(run_id))


async def test_an_orchestrator_that_starts_later_reads_it_from_the_log() -> None:
    crew = Crew(lazy)
    await pause_without_a_word(crew, "default")
    async with crew.orchestrator():
        assert "RunPaused" in crew.types(await crew.submit(type="data"))


async def test_a_paused_kind_stops_the_clocks_of_runs_that_need_it() -> None:
    crew = Crew(lazy)
    async with crew.orchestrator(sweep_interval_s=0.05):
        run_id = await crew.submit(plan=a_plan(a="data", b="code"), timeout_seconds=100)
        assert (await crew.ask("kinds.pause", {"kind": "data", **BY}, tenant=SYSTEM))["scope"] == kind_scope("data")
        await crew.until(lambda: "RunPaused" in crew.types(run_id))
        crew.clock.ahead_s = 1000.0
        await crew.ask("kinds.resume", {"kind": "data", **BY}, tenant=SYSTEM)
        await crew.until(lambda: "RunResumed" in crew.types(run_id))
        assert (await report(crew, run_id))["status"] == "open"
        crew.clock.ahead_s = 1200.0
        assert (await crew.ended(run_id)).type == "RunFailed"


async def test_the_end_of_a_run_in_quarantine_is_told_when_it_is_released() -> None:
    crew, told = Crew(), asyncio.Queue[str]()

    async def hear(message: Message) -> None:
        told.put_nowait(json.loads(message.data)["type"])

    async with crew.orchestrator():
        run_id = await crew.submit(type="data")
        await crew.bus.subscribe(outcome("default", run_id), hear)
        await steer(crew, "quarantine", run_id)
        async with crew.agents():
            await crew.until(lambda: "ResultsHeld" in crew.types(run_id))
        held = await report(crew, run_id)
        assert (held["results_held"], held["text"], held["end"]) == (True, None, None)
        assert told.empty()

        (released,) = await steer(crew, "release", run_id)
        assert (released["status"], released["changed"]) == ("completed", True)
        async with asyncio.timeout(WITHIN_S):
            assert await told.get() == "RunCompleted"
        await crew.ended(run_id)


async def test_one_run_of_a_tenant_in_quarantine_can_be_released_alone() -> None:
    crew = Crew()
    async with crew.orchestrator(), crew.agents():
        await crew.ask("tenants.quarantine", BY)
        first, second = [await crew.submit(type="data") for _ in range(2)]
        for run_id in (first, second):
            await crew.until(lambda run_id=run_id: "ResultsHeld" in crew.types(run_id))  # type: ignore[misc]

        await steer(crew, "release", first)
        await crew.ended(first)
        assert (await report(crew, second))["results_held"] is True

        await crew.ask("tenants.release", BY)
        await crew.ended(second)


async def test_terminated_runs_end_with_actor_and_reason_and_what_was_in_force_for_them_is_taken_back() -> None:
    crew = Crew(lazy)
    async with crew.orchestrator(), crew.agents():
        runs = [await crew.submit(type="data") for _ in range(3)]
        await steer(crew, "pause", runs[0])
        unknown = RunId(uuid4())

        ended = await steer(crew, "terminate", *runs, unknown)

        assert [verdict["status"] for verdict in ended] == ["cancelled", "cancelled", "cancelled", "unknown"]
        for run_id in runs:
            end = await crew.ended(run_id)
            assert json.loads(end.data) == {"reason": "looking into it", "actor": "ada"}
        await crew.until(lambda: controls(crew) == ["ScopePaused", "ScopeResumed"])


@pytest.mark.parametrize("verb", ["pause", "resume", "quarantine", "release", "terminate"])
async def test_nothing_is_done_to_a_run_that_is_over(verb: str) -> None:
    crew = Crew()
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(type="data")
        await crew.ended(run_id)
        (verdict,) = await steer(crew, verb, run_id)
    assert (verdict["changed"], verdict["error"]) == (False, f"run {run_id} is over: it is completed")
    assert controls(crew) == []


@pytest.mark.parametrize("verb", ["pause", "quarantine", "terminate"])
async def test_a_run_that_ends_while_the_command_is_on_its_way_is_not_said_to_obey(verb: str) -> None:
    class EndsItBefore(MemoryStore):
        async def append(self, request: AppendRequest) -> Appended:
            if request.writes[0].stream == CONTROL_STREAM and not controls(crew):
                await crew.says(*_ended(crew, run_id))
                await service.driver.execute(run_id, Tick())
            return await super().append(request)

    crew = Crew(lazy)
    crew.wakes = False
    store = EndsItBefore(crew.log, role=ORCHESTRATOR, on_commit=crew._on_commit)
    async with crew.orchestrator(store=store) as service, crew.agents():
        run_id = await crew.submit(type="data")
        await crew.until_handed(1)
        if verb == "terminate":
            await crew.says(*_ended(crew, run_id))

        (verdict,) = await steer(crew, verb, run_id)

        assert verdict == {"run_id": str(run_id), "status": "completed", "changed": False, "error": f"run {run_id} is over: it is completed"}


async def test_open_runs_are_found_by_kind_status_and_age() -> None:
    crew = Crew(lazy)
    async with crew.orchestrator():
        old = await crew.submit(plan=a_plan(a="data"))
        crew.clock.ahead_s = 100.0
        new = await crew.submit(plan=a_plan(a="code"))
        await steer(crew, "pause", new)

        async def found(**conditions: Any) -> set[str]:
            answer = await crew.ask("runs.find", conditions)
            return {run["run_id"] for run in answer["runs"]}

        assert await found() == {str(old), str(new)}
        assert await found(kind="data") == await found(older_than_s=50) == await found(status=["running"]) == {str(old)}
        assert await found(status=["paused"]) == {str(new)}
        assert (await crew.ask("runs.find", {}, tenant="acme"))["runs"] == []
        first = await crew.ask("runs.find", {"limit": 1})
        rest = await crew.ask("runs.find", {"limit": 1, "after": first["next"]})
        assert {run["run_id"] for run in (*first["runs"], *rest["runs"])} == {str(old), str(new)}


class Asked(MemoryStore):
    """A log that notes of which streams it is asked what became of their runs."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.asked: set[str] = set()

    async def read_streams(self, after: Mapping[Stream, int], *, types: frozenset[str] | None = None) -> Sequence[Recorded]:
        if types == RUN_TYPES:
            self.asked |= after.keys()
        return await super().read_streams(after, types=types)


async def test_who_looks_for_runs_of_a_tenant_does_not_have_those_of_others_read() -> None:
    crew = Crew(lazy)
    store = Asked(crew.log, role=ORCHESTRATOR)
    async with crew.orchestrator(store=store) as service:
        mine, others = await crew.submit(type="data"), await crew.ask("tasks.submit", {"type": "data", "objective": "Count"}, tenant="acme")
        await service.sweep.sweep()
        store.asked.clear()
        assert [run["run_id"] for run in (await crew.ask("runs.find", {}))["runs"]] == [str(mine)]
        assert run_stream(mine) in store.asked
        assert run_stream(RunId(UUID(others["run_id"]))) not in store.asked


async def test_as_many_runs_are_found_as_fit_into_an_answer_however_long_their_objectives_are() -> None:
    crew = Crew(lazy)
    async with crew.orchestrator():
        made = [str(await crew.submit(type="data", objective=f"{number} " + "and count " * 1900)) for number in range(RUNS_MAX)]
        answer = await crew.ask("runs.find", {})
    assert sorted(run["run_id"] for run in answer["runs"]) == sorted(made)
    assert all(run["objective"].partition(" ")[0].isdecimal() for run in answer["runs"])


async def test_what_is_in_force_can_be_listed() -> None:
    crew = Crew(lazy)
    async with crew.orchestrator():
        run_id = await crew.submit(type="data")
        await steer(crew, "quarantine", run_id)
        await crew.ask("kinds.pause", {"kind": "data", **BY}, tenant=SYSTEM)
        await crew.ask("tenants.pause", BY, tenant="acme")

        mine = await crew.ask("controls.list", {})

    assert ([c["scope"] for c in mine["pauses"]], [c["scope"] for c in mine["quarantines"]]) == ([kind_scope("data")], [run_scope(run_id)])


async def test_a_run_that_nobody_in_particular_cancels_says_so() -> None:
    crew = Crew(lazy)
    async with crew.orchestrator():
        run_id = await crew.submit(type="data")
        assert (await crew.ask("runs.cancel", {"run_id": run_id, "actor": " "}))["status"] == "cancelled"
    assert json.loads(crew.events(run_id)[-1].data)["actor"] == "anonymous"


@pytest.mark.parametrize(
    ("what", "tenant", "body", "text"),
    [
        ("runs.pause", "default", {"run_ids": [uuid4()], "actor": " "}, "must say who did it"),
        ("runs.pause", "default", {"run_ids": [], "actor": "ada"}, "not a valid RunsRequest"),
        ("kinds.pause", SYSTEM, {"kind": "a.b", "actor": "ada"}, "must match"),
        ("runs.find", "default", {"status": ["runing"]}, "runing"),
        ("runs.find", "default", {"older_than_s": 1e308}, "older_than_s"),
        ("workers.drain", SYSTEM, {"worker": "nobody", "actor": "ada"}, "nobody"),
        ("workers.drain", SYSTEM, {"worker": "a.>", "actor": "ada"}, "a.>"),
    ],
)
async def test_what_cannot_be_asked(what: str, tenant: str, body: dict[str, Any], text: str) -> None:
    crew = Crew()
    async with crew.orchestrator():
        answer = await crew.ask(what, body, tenant=tenant)
    assert answer["ok"] is False
    assert text in answer["error"]["message"] + str(answer["error"]["problems"])


async def test_a_schedule_of_a_paused_tenant_makes_up_for_what_it_missed_as_its_policy_says() -> None:
    crew = Crew()
    async with crew.orchestrator() as service:
        task = {"type": "data", "objective": "Count the rows"}
        await crew.ask("schedules.add", {"name": "hourly", "cron": "0 * * * *", "task": task, "actor": "ann", "catch_up": "one"})
        await crew.ask("tenants.pause", BY)
        crew.clock.ahead_s = 3 * 3600
        await service.schedules.look()
        assert [r.type for r in crew.log.events if r.type == "RunSubmitted"] == []

        await crew.ask("tenants.resume", BY)
        await crew.until(lambda: any(r.type == "ScheduleFired" for r in crew.log.events))

    (fired,) = [json.loads(r.data) for r in crew.log.events if r.type == "ScheduleFired"]
    assert fired["missed"] == 2


async def test_a_plan_that_needs_a_paused_kind_takes_note_of_it_at_once() -> None:
    crew = Crew(lazy)
    async with crew.orchestrator():
        await crew.ask("kinds.pause", {"kind": "code", **BY}, tenant=SYSTEM)
        run_id = await crew.submit(plan=a_plan(a="data", b="code a"))
        await crew.until(lambda: "RunPaused" in crew.types(run_id))
        assert (await report(crew, run_id))["pauses"][0]["scope"] == kind_scope("code")


@pytest.mark.parametrize("word", [events(NO_RUN, NO_RUN, "ScopeResumed"), control_kind("orchestrator")])
async def test_a_command_whose_first_word_is_lost_takes_effect_with_the_second_one(word: str) -> None:
    crew = Crew(diligent)
    async with crew.orchestrator(), crew.agents():  # a sweep is far away
        assert (await crew.ask("tenants.pause", BY))["changed"] is True
        run_id = await crew.submit(type="data")
        assert "RunPaused" in crew.types(run_id)
        told: asyncio.Queue[Message] = asyncio.Queue()

        async def hear(message: Message) -> None:
            told.put_nowait(message)

        await crew.bus.subscribe(control_kind("data"), hear)
        write = Write(CONTROL_STREAM, (ScopeResumed(tenant_scope("default"), "ada"),), ANY)
        await crew.store().append(AppendRequest((write,), [crew.clock.new_id()], crew.clock.now_us()))
        await crew.bus.publish(word)
        await crew.ended(run_id)
        assert told.empty() == (word == control_kind("orchestrator")), "the second word is passed on to workers; before the first they were told"
