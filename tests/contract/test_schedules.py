"""Schedules among orchestrators: fired once by however many there are, also when one dies between the run and its record."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from support.crew import Crew, Moody

from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import ANY, AppendRequest, Recorded, Write
from crewlog.orchestrator.schedule import AddSchedule, ChangeSchedule
from crewlog.orchestrator.schedules import DIRECTORY, IDS_MAX
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import Stream, schedule_stream, scheduled_run_id
from crewlog.schemas.system_events import ScheduleAdded
from crewlog.schemas.task import parse_task

TASK = {"type": "data", "objective": "Count the rows"}
STREAM = schedule_stream("default", "hourly")


def a_crew() -> Crew:
    """At half past: no test runs over the hour at which its schedule is due."""
    crew = Crew()
    crew.clock.ahead_s = 1_800 - crew.clock.now_us() / 1e6 % 3_600
    return crew


def fired(crew: Crew) -> list[dict[str, Any]]:
    stream = crew.log.streams.get(STREAM)
    return [msgspec.json.decode(r.data) for r in (stream.events if stream else ()) if r.type == "ScheduleFired"]


def json_of(recorded: Recorded) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.json.decode(recorded.data)
    return fields


def submitted(crew: Crew) -> list[str]:
    return [msgspec.json.decode(r.data)["run_id"] for r in crew.log.events if r.type == "RunSubmitted"]


async def add(crew: Crew, **fields: Any) -> dict[str, Any]:
    answer = await crew.ask("schedules.add", {"name": "hourly", "cron": "0 * * * *", "task": TASK, "actor": "ann", **fields})
    assert answer["ok"], answer
    schedule: dict[str, Any] = answer["schedule"]
    return schedule


def leap_to_next(crew: Crew, schedule: dict[str, Any]) -> None:
    leap(crew, schedule, +1)


def leap(crew: Crew, schedule: dict[str, Any], behind_s: float) -> None:
    crew.clock.ahead_s += (schedule["next_us"] - crew.clock.now_us()) / 1e6 + behind_s


async def test_two_orchestrators_fire_once() -> None:
    crew = a_crew()
    async with crew.orchestrator() as one, crew.orchestrator() as other, crew.agents():
        schedule = await add(crew)
        await asyncio.gather(one.schedules.look(), other.schedules.look())
        assert submitted(crew) == []
        leap_to_next(crew, schedule)
        await asyncio.gather(*(service.schedules.look() for service in (one, other) * 5))
        [run] = submitted(crew)
        await crew.ended(next(r.run_id for r in crew.log.events if r.type == "RunSubmitted"))  # type: ignore[arg-type]  # it is there
        [firing] = fired(crew)

        leap_to_next(crew, (await crew.ask("schedules.list", {}))["schedules"][0])
        await other.schedules.look()
        await one.schedules.look()

    assert (firing["run_id"], firing["due_us"]) == (run, schedule["next_us"])
    assert len(submitted(crew)) == len(fired(crew)) == 2
    assert datetime.fromtimestamp(firing["due_us"] / 1e6, UTC).minute == 0


async def test_a_schedule_that_is_due_wakes_its_orchestrator_by_itself() -> None:
    crew = a_crew()
    async with crew.orchestrator() as service:
        leap(crew, await add(crew), -0.1)
        service.schedules.soon()
        await crew.until(lambda: len(fired(crew)) == 1)

    assert submitted(crew) == [fired(crew)[0]["run_id"]]


async def test_a_run_whose_record_was_lost_is_recorded_by_the_next_and_not_submitted_again() -> None:
    crew = a_crew()
    store = Moody(crew.log, role=ORCHESTRATOR)
    async with crew.orchestrator(store=store) as one:
        schedule = await add(crew)
        leap_to_next(crew, schedule)
        # the first of the two appends is the run's
        append, appends = store.append, 0

        async def dies_behind_the_run(request: Any) -> Any:
            nonlocal appends
            appends += 1
            if appends > 1:
                raise Unavailable("the log went away")
            return await append(request)

        store.append = dies_behind_the_run  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            await one.schedules.look()
        assert (len(submitted(crew)), fired(crew)) == (1, [])
        async with crew.orchestrator() as other:
            await other.schedules.look()

    assert [firing["run_id"] for firing in fired(crew)] == submitted(crew)


@pytest.mark.parametrize("as_a_task_of", [None, "another run"])
async def test_whoever_takes_the_id_of_a_due_time_for_a_run_of_their_own_keeps_no_schedule_from_running(as_a_task_of: str | None) -> None:
    """The id follows from what every client may read: name, generation and due time."""
    crew = a_crew()
    async with crew.orchestrator() as one, crew.orchestrator() as other:
        schedule = await add(crew)
        taken = str(scheduled_run_id("default", "hourly", generation=1, due_us=schedule["next_us"]))
        fields = {"run_id": str(uuid4())} if as_a_task_of else {}
        assert (await crew.ask("tasks.submit", {**TASK, "task_id": taken, "objective": "Do what I want", **fields}))["ok"]
        before = submitted(crew)
        leap_to_next(crew, schedule)
        await asyncio.gather(one.schedules.look(), other.schedules.look())

    [run], [firing] = submitted(crew)[1:], fired(crew)
    assert (firing["run_id"], firing.get("error", "")) == (run, "")
    assert run not in (taken, *before)
    assert [json_of(r)["goal"] for r in crew.log.events if r.type == "RunSubmitted"] == ["Do what I want", TASK["objective"]]


async def test_a_due_time_whose_ids_are_all_taken_says_so() -> None:
    crew = a_crew()
    async with crew.orchestrator() as one:
        schedule = await add(crew)
        for number in range(1, IDS_MAX + 1):
            taken = scheduled_run_id("default", "hourly", generation=1, due_us=schedule["next_us"], number=number)
            assert (await crew.ask("tasks.submit", {**TASK, "task_id": str(taken), "objective": "Do what I want"}))["ok"]
        leap_to_next(crew, schedule)
        await one.schedules.look()

    [firing] = fired(crew)
    assert "taken by other tasks" in firing["error"]
    assert len(submitted(crew)) == IDS_MAX


async def test_an_orchestrator_that_was_away_makes_up_for_the_last_time() -> None:
    crew = a_crew()
    async with crew.orchestrator():
        schedule = await add(crew)
    crew.clock.ahead_s += 5 * 3600

    async with crew.orchestrator():
        await crew.until(lambda: len(fired(crew)) == 1)

    [firing] = fired(crew)
    assert firing["missed"] == 4
    assert firing["due_us"] == schedule["next_us"] + 4 * 3_600_000_000


async def test_people_pause_resume_run_and_remove() -> None:
    crew = a_crew()
    async with crew.orchestrator() as service, crew.agents():
        schedule = await add(crew)
        paused = (await crew.ask("schedules.change", {"name": "hourly", "verb": "pause", "reason": "enough"}))["schedule"]
        leap_to_next(crew, schedule)
        await service.schedules.look()
        assert (paused["status"], paused["next_us"], submitted(crew)) == ("paused", None, [])

        ran = await crew.ask("schedules.run", {"name": "hourly", "actor": "eve"})
        await crew.until(lambda: submitted(crew) == [ran["run_id"]])
        assert [(firing["actor"], firing["run_id"]) for firing in fired(crew)] == [("eve", ran["run_id"])]

        resumed = (await crew.ask("schedules.change", {"name": "hourly", "verb": "resume"}))["schedule"]
        assert resumed["next_us"] > schedule["next_us"]
        foreign = await crew.ask("schedules.change", {"name": "hourly", "verb": "remove"}, tenant="acme")
        assert (await crew.ask("schedules.list", {}, tenant="acme"))["schedules"] == []
        await crew.ask("schedules.change", {"name": "hourly", "verb": "remove"})
        assert (await crew.ask("schedules.list", {}))["schedules"] == []
        missing = await crew.ask("schedules.run", {"name": "hourly"})
        await crew.ended(next(r.run_id for r in crew.log.events if r.type == "RunSubmitted"))  # type: ignore[arg-type]  # it is there

    assert foreign["error"]["code"] == missing["error"]["code"] == "not_found"


async def test_a_zone_that_only_another_orchestrator_knows_keeps_nobody_from_the_other_schedules() -> None:
    crew = Crew()
    async with crew.orchestrator():
        await add(crew)
        task = msgspec.Raw(msgspec.json.encode({**TASK, "task_id": str(uuid4())}))
        event = ScheduleAdded("default", "far", "0 * * * *", "Mars/Base", "one", task, crew.clock.now_us(), "ann")
        writes = [Write(stream, (event,), ANY) for stream in (schedule_stream("default", "far"), DIRECTORY)]
        await crew.store().append(AppendRequest(writes, [crew.clock.new_id() for _ in writes], crew.clock.now_us()))

        listed = await crew.ask("schedules.list", {})
        assert [(one["name"], one["next_us"] is None) for one in listed["schedules"]] == [("far", True), ("hourly", False)]
        for verb in ("pause", "resume", "remove"):
            assert (await crew.ask("schedules.change", {"name": "far", "verb": verb, "actor": "ann"}))["ok"], verb


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"cron": "every day"}, "five fields"),
        ({"zone": "Moon/Sea"}, "no time zone"),
        ({"catch_up": "some"}, "catch_up"),
        ({"task": {"type": "sorcery", "objective": "x"}}, "unknown kind 'sorcery'"),
        ({"task": {"type": "data"}}, "objective"),
        ({"task": {**TASK, "tenant": "acme"}}, "wrong subject"),
        ({"name": "../x"}, "must match"),
        ({"name": ""}, "must match"),
    ],
)
async def test_what_cannot_recur_is_refused_and_nothing_is_written(fields: dict[str, Any], text: str) -> None:
    crew = a_crew()
    async with crew.orchestrator():
        answer = await crew.ask("schedules.add", {"name": "hourly", "cron": "0 * * * *", "task": TASK, **fields})

    assert text in answer["error"]["message"] or text in str(answer["error"]["problems"])
    assert not [r for r in crew.log.events if r.stream.startswith("schedule/")]


async def test_a_task_that_is_refused_when_it_is_due_is_recorded_and_does_not_come_again() -> None:
    crew = a_crew()
    async with crew.orchestrator() as service:
        schedule = await add(crew)
        leap_to_next(crew, schedule)
        service.kinds._offers.pop("data")
        await service.schedules.look()
        await service.schedules.look()
        [state] = await service.schedules.of("default")

    [firing] = fired(crew)
    assert "unknown kind 'data'" in firing["error"]
    assert submitted(crew) == []
    assert state.status == "active"


async def test_a_removed_schedule_is_not_read_any_more_until_somebody_adds_another_of_its_name() -> None:
    crew = a_crew()
    asked: list[int] = []

    class Counting(MemoryStore):
        async def read_streams(self, after: Mapping[Stream, int], *, types: frozenset[str] | None = None) -> Sequence[Recorded]:
            asked.append(STREAM in after)
            return await super().read_streams(after, types=types)

    async with crew.orchestrator(store=Counting(crew.log, role=ORCHESTRATOR)) as one, crew.orchestrator() as other:
        await add(crew)
        await one.schedules.look()
        await other.schedules.change("default", "hourly", ChangeSchedule("remove", "ann"))
        assert await one.schedules.of("default") == []
        asked.clear()
        await one.schedules.look()
        assert not any(asked)

        command = AddSchedule("default", "hourly", "30 * * * *", "UTC", "one", parse_task({**TASK, "task_id": UUID(int=1)}), "bob")
        await other.schedules.add(command)
        assert [schedule.cron for schedule in await one.schedules.of("default")] == ["30 * * * *"]


async def test_schedules_are_listed_however_long_their_goals_are() -> None:
    crew = a_crew()
    async with crew.orchestrator():
        for number in range(60):
            await add(crew, name=f"s{number}", task={"type": "data", "objective": f"{number} " + "and count " * 1900})
        listed = (await crew.ask("schedules.list", {}))["schedules"]
    assert sorted(schedule["goal"].partition(" ")[0] for schedule in listed) == sorted(map(str, range(60)))
