"""The driver on the memory log and bus: runs end to end, races, lost messages, a log that goes away."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import msgspec
import pytest
from support.crew import Crew, Moody, crash_once, diligent
from support.decider import a_plan, a_task

from crewlog.events.bus import Message
from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.memory_bus import MemoryBus
from crewlog.orchestrator import sweep
from crewlog.schemas.errors import ContractError, Unavailable
from crewlog.schemas.ids import RunId
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.run_events import RunCompleted, RunFailed
from crewlog.schemas.subjects import control_worker
from crewlog.schemas.task_events import TaskEvent, TaskStarted

FAN_OUT = a_plan(research="research", code="code", data="data", communicate="communicate")


def silent(*_: object) -> TaskEvent | None:
    """Take every message and never be heard of again."""
    return None


async def test_a_fan_out_runs_to_its_end() -> None:
    crew = Crew()
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(plan=FAN_OUT)
        end = (await crew.ended(run_id)).event()

    assert isinstance(end, RunCompleted)
    assert end.cost_micro_usd == 28
    assert Counter(crew.types(run_id)) == {"RunSubmitted": 1, "RunPlanned": 1, "TaskDispatched": 4, "TaskReviewed": 4, "RunCompleted": 1}
    assert sorted(key for key, _ in crew.deliveries) == ["code", "communicate", "data", "research"]


async def test_a_goal_is_planned_carried_out_and_written_up() -> None:
    crew = Crew()
    async with crew.orchestrator(), crew.agents():
        await crew.ended(await crew.submit())

    assert [key for key, _ in crew.deliveries] == ["@plan", "a", "@synthesis"]


async def test_messages_say_what_a_worker_needs_before_it_reads() -> None:
    crew = Crew(crash_once)
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(type="data")
        await crew.ended(run_id)

    first, second = (headers for _, headers in crew.deliveries)
    assert first == {"Run-Id": str(run_id), "Task-Id": str(run_id), "Attempt": "1", "Task-Version": "1", "Nats-Msg-Id": f"{run_id}:1:1"}
    assert (second["Attempt"], second["Task-Version"], second["Nats-Msg-Id"]) == ("2", "0", f"{run_id}:2:2")


async def test_appends_name_their_cause() -> None:
    crew = Crew()
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(type="data")
        end = await crew.ended(run_id)

    (done,) = [r for r in crew.log.events if r.type == "TaskCompleted"]
    assert end.causation_id == done.event_id


async def test_two_orchestrators_race_on_the_same_runs() -> None:
    crew = Crew()
    async with crew.orchestrator() as one, crew.orchestrator() as two, crew.agents():

        async def heard(message: Any) -> None:
            run_id = RunId(UUID(message.subject.removeprefix("wake.")))
            one.driver.wake(run_id)
            two.driver.wake(run_id)

        await crew.bus.subscribe("wake.*", heard)
        runs = [await crew.submit(plan=a_plan(a="research", b="data", c="code a b"), constraints={"words_max": 1}) for _ in range(20)]
        for run_id in runs:
            assert isinstance((await crew.ended(run_id)).event(), RunCompleted)

    assert Counter(key for key, _ in crew.deliveries) == {"a": 20, "b": 20, "c": 20}


async def test_both_orchestrators_may_be_asked_at_once() -> None:
    crew = Crew()
    task = a_task(type="data")
    async with crew.orchestrator() as one, crew.orchestrator() as two:
        answers = await asyncio.gather(*(driver.submit(task, "api") for driver in (one.driver, two.driver, one.driver)))

    assert sorted(answer.status for answer in answers) == ["accepted", "duplicate", "duplicate"]


async def test_ids_that_belong_to_another_task_are_refused() -> None:
    crew = Crew()
    async with crew.orchestrator() as service:
        first = a_task(type="data")
        await service.driver.submit(first, "api")
        with pytest.raises(ContractError, match="belongs to another task"):
            await service.driver.submit(a_task(type="data", task_id=str(UUID(int=7)), run_id=str(first.run_id)), "api")
        with pytest.raises(ContractError, match="is taken by a task of another run"):
            await service.driver.submit(a_task(type="data", run_id=str(UUID(int=8))), "api")


async def test_lost_wakes_are_repaired_by_the_sweep() -> None:
    crew = Crew()
    crew.wakes = False
    async with crew.orchestrator(sweep_interval_s=0.01), crew.agents():
        await crew.ended(await crew.submit(plan=a_plan(a="research", b="data a")))


class Leaky(MemoryBus):
    """A bus that loses the next messages to agents."""

    losing = 0

    async def publish(self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None) -> None:
        if subject.startswith("work.") and self.losing:
            self.losing -= 1
            return
        await super().publish(subject, data, headers=headers)


async def test_a_lost_dispatch_is_published_again_under_a_fresh_id() -> None:
    crew = Crew()
    bus = Leaky(crew.broker)
    bus.losing = 1
    async with crew.orchestrator(bus=bus, dispatch_lease_s=0) as service, crew.agents():
        run_id = await crew.submit(type="data")
        for _ in range(2):
            await service.sweep.sweep()
        await crew.ended(run_id)

    ((_, headers),) = crew.deliveries
    assert headers["Task-Version"] == "0"
    assert headers["Nats-Msg-Id"].startswith(f"{run_id}:1:1-")


async def test_a_task_that_may_just_be_waiting_in_its_queue_is_left_there_for_long() -> None:
    crew = Crew()
    async with crew.orchestrator(dispatch_lease_s=60) as service:
        await crew.submit(type="data")
        await service.sweep.sweep()
        for ahead_s, messages in ((61, 1), (590, 1), (601, 2), (650, 2)):
            crew.clock.ahead_s = ahead_s
            await service.sweep.sweep()
            assert len(crew.broker.messages("WORK")) == messages


async def test_a_task_that_a_worker_names_is_alive() -> None:
    crew = Crew(silent)
    async with crew.orchestrator(dispatch_lease_s=60) as service, crew.agents():
        run_id = await crew.submit(type="data")
        await service.sweep.sweep()
        for ahead_s in (50, 100, 150):
            crew.clock.ahead_s = ahead_s
            await crew.bus.publish("telemetry.data.w1", msgspec.json.encode({"kind": "data", "worker": "w1", "slots": 1, "busy": [run_id], "at_us": 0}))
            await service.sweep.sweep()
        assert len(crew.deliveries) == 1
        crew.clock.ahead_s = 220
        await service.sweep.sweep()
        await crew.until_handed(2)


async def test_a_worker_of_another_kind_says_nothing_about_a_task_nor_about_who_is_there() -> None:
    crew = Crew(silent)
    async with crew.orchestrator(dispatch_lease_s=60) as service, crew.agents():
        run_id = await crew.submit(type="data")
        await service.sweep.sweep()
        crew.clock.ahead_s = 50
        beat = {"kind": "data", "worker": "w1", "slots": 1, "busy": [run_id], "at_us": 0}
        await crew.bus.publish("telemetry.code.w2", msgspec.json.encode(beat))
        while not (heard := [(kind, worker) for kind in ("data", "code") for worker in service.dispatcher.workers(kind)]):  # noqa: ASYNC110  (one turn of the loop)
            await asyncio.sleep(0)
        assert heard == [("code", "w2")]
        await service.sweep.sweep()
        crew.clock.ahead_s = 70
        await service.sweep.sweep()
        await crew.until_handed(2)


async def test_a_run_goes_on_after_its_orchestrator_was_replaced() -> None:
    crew = Crew(silent)
    async with crew.orchestrator():
        run_id = await crew.submit(plan=a_plan(a="research", b="data a"))
    crew.behaviour = diligent
    async with crew.orchestrator(), crew.agents():
        await crew.ended(run_id)


async def test_what_a_queue_without_a_leader_lost_is_sent_again_when_it_has_one_and_nothing_else_comes_twice() -> None:
    crew = Crew(silent)
    bus = Leaky(crew.broker)
    bus.losing = 1
    async with crew.orchestrator(bus=bus) as service, crew.agents():
        lost = await crew.submit(type="data")
        arrived = await crew.submit(type="data")
        await crew.until_handed(1)
        service.sweep.doubt()
        await crew.until_handed(2)
        await service.sweep.sweep()
    assert [headers["Nats-Msg-Id"] for _, headers in crew.deliveries] == [f"{arrived}:1:1", f"{lost}:1:1"]


async def test_what_was_begun_when_a_queue_was_lost_is_sent_again_once_its_worker_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "RECONNECTED_S", 0.0)
    crew = Crew(silent)
    async with crew.orchestrator() as service, crew.agents():
        gone, there = [await crew.submit(type="data") for _ in range(2)]
        await crew.until_handed(2)

        async def answer(message: Message) -> None:
            await crew.bus.publish(message.reply, b"{}")

        await crew.bus.subscribe(control_worker("there"), answer)
        for run_id, worker in ((gone, "gone"), (there, "there")):
            await crew.says(a_task(run_id=run_id, task_id=run_id), TaskStarted(worker, 1, "1", "m", "offline", simulated=True, setup=EMPTY, opening=EMPTY))
        crew.broker.lose("WORK")
        service.sweep.doubt()
        await crew.until_handed(3)
        await service.sweep.sweep()
    assert [headers["Nats-Msg-Id"] for _, headers in crew.deliveries[2:]] == [f"{gone}:1:1"]


@pytest.mark.parametrize("mood", [Unavailable("the log is away"), "answer lost"])
async def test_a_step_is_taken_again_when_the_log_comes_back(mood: Exception | str) -> None:
    crew = Crew()
    store = Moody(crew.log, role=ORCHESTRATOR, on_commit=crew._on_commit)
    async with crew.orchestrator(store=store) as service:
        run_id = await crew.submit(type="data")
        store.failing = [mood]
        async with crew.agents():
            service.driver.wake(run_id)
            await crew.ended(run_id)


async def test_a_step_that_the_log_refuses_for_good_fails_the_run() -> None:
    crew = Crew()
    store = Moody(crew.log, role=ORCHESTRATOR, on_commit=crew._on_commit)
    async with crew.orchestrator(store=store):
        run_id = await crew.submit(type="data")
        store.failing = [ContractError("too large")]
        async with crew.agents():
            end = (await crew.ended(run_id)).event()

    assert isinstance(end, RunFailed)
    assert (end.error.code, end.error.message) == ("internal", "too large")


async def test_timers_outlive_the_process_that_set_them() -> None:
    crew = Crew(silent)
    async with crew.orchestrator():
        run_id = await crew.submit(type="data", timeout_seconds=60)
        deadline_us = msgspec.json.decode(crew.events(run_id)[0].data)["deadline_us"]

    assert crew.log.timers == {run_id: deadline_us}


async def test_stopping_twice_is_harmless_and_nothing_runs_after_it() -> None:
    crew = Crew()
    async with crew.orchestrator() as service:
        await service.stop()
        await service.stop()
        assert [loop.get_name() for loop in service._loops if not loop.done()] == []
        with pytest.raises(Unavailable):
            await crew.ask("runs.get", {"run_id": UUID(int=1)})


async def test_who_asks_something_of_an_imported_run_hears_that_it_is_one() -> None:
    crew = Crew(silent)
    async with crew.orchestrator():
        run_id = await crew.submit(type="data")
    for stream in crew.log.streams.values():  # what `es.import_run` leaves behind: no end, and nobody may append
        stream.closed = True
    async with crew.orchestrator():
        answer = await crew.ask("runs.cancel", {"run_id": str(run_id)})
    assert answer["error"]["code"] == "contract"
    assert "was imported" in answer["error"]["message"]
    assert crew.types(run_id)[-1] == "TaskDispatched"
