"""Orchestrators that hold messages back: in fair order, bounded, taken over when one is gone, refused when a tenant has too much."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from support.crew import Crew, diligent

from crewlog.events.memory_bus import MemoryBus
from crewlog.orchestrator.dispatcher import WORKER_SILENCE_S
from crewlog.orchestrator.peers import SILENCE_S
from crewlog.orchestrator.service import OrchestratorService
from crewlog.schemas.ids import RunId, TaskId
from crewlog.schemas.subjects import telemetry
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import TaskEvent

ONE: dict[str, Any] = {"in_flight_max": {"data": 1}}


def steps(count: int) -> dict[str, Any]:
    return {"plan": {"steps": [{"key": f"s{n}", "type": "data", "objective": "Count"} for n in range(count)]}}


async def submit(crew: Crew, tenant: str, count: int, **fields: Any) -> RunId:
    body = {"task_id": crew.clock.random_id(), "type": "run", "objective": "Do it", "tenant": tenant, **steps(count), **fields}
    answer = await crew.ask("tasks.submit", body, tenant=tenant)
    assert answer["ok"], answer
    return RunId(UUID(answer["run_id"]))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (what is waited for happens on this loop, without a log or a message that tells)
            await asyncio.sleep(0.005)


async def settled(service: OrchestratorService, waiting: int) -> None:
    await until(lambda: service.dispatcher.waiting == waiting)


async def test_a_quiet_tenant_is_served_before_the_hundreds_that_a_noisy_one_has_waiting() -> None:
    served: list[str] = []

    def note(task: AgentTask, attempt: int) -> TaskEvent:
        served.append(task.tenant)
        return diligent(task, attempt)

    crew = Crew(note)
    async with crew.orchestrator(**ONE) as service:
        noisy = await submit(crew, "noisy", 64)
        assert service.dispatcher.waiting == 63
        quiet = await submit(crew, "quiet", 3)
        async with crew.agents():
            await crew.ended(quiet)
            assert served[:8].count("quiet") == 3, "they take turns, behind what was out already"
            await crew.ended(noisy)
    assert Counter(served) == {"noisy": 64, "quiet": 3}


async def test_no_more_of_a_kind_is_out_than_its_limit_and_every_end_makes_room() -> None:
    most = 0

    def note(task: AgentTask, attempt: int) -> TaskEvent:
        nonlocal most
        unfinished = [m for m in crew.broker.messages("WORK") if not crew.is_closed(TaskId(UUID(m.headers["Task-Id"])))]
        most = max(most, len(unfinished))
        return diligent(task, attempt)

    crew = Crew(note)
    async with crew.orchestrator(in_flight_max={"data": 3}) as service, crew.agents():
        runs = [await submit(crew, "default", 8) for _ in range(4)]
        for run_id in runs:
            await crew.ended(run_id)
        assert service.dispatcher.waiting == 0
    assert most == 3


async def test_what_agents_can_take_is_learned_from_their_heartbeats() -> None:
    crew = Crew()
    async with crew.orchestrator() as service:
        service.dispatcher._all_heard_s = 0
        await crew.bus.publish(telemetry("data", "w1"), b'{"kind":"data","worker":"w1","slots":20}')
        await submit(crew, "default", 40)
        await settled(service, 20)
        assert len(crew.broker.messages("WORK")) == 20
        await crew.bus.publish(telemetry("data", "w2"), b'{"kind":"data","worker":"w2","slots":20}')
        await settled(service, 0)


async def test_messages_of_a_run_that_is_over_are_forgotten() -> None:
    crew = Crew()
    async with crew.orchestrator(**ONE) as service:
        run_id = await submit(crew, "default", 9)
        assert service.dispatcher.waiting == 8
        assert (await crew.ask("runs.cancel", {"run_id": run_id}))["ok"]
        assert service.dispatcher.waiting == 0


async def test_a_sweep_leaves_alone_what_waits_for_its_turn_with_any_orchestrator() -> None:
    crew = Crew()
    async with crew.orchestrator(**ONE) as one, crew.orchestrator(**ONE) as other:
        await submit(crew, "default", 9, timeout_seconds=86_400)
        holder, sweeper = (one, other) if one.dispatcher.waiting else (other, one)
        await holder.sweep.sweep()
        await sweeper.sweep.sweep()
        await until(lambda: sweeper.dispatcher._holders.holding)
        for ahead_s in (61.0, 1000.0, 5000.0):
            crew.clock.ahead_s += ahead_s
            await sweeper.sweep.sweep()
            assert sweeper.dispatcher.waiting == 0
        assert holder.dispatcher.waiting == 9, "only the one that was out all that time waits once more"


async def test_two_orchestrators_keep_one_queue_so_that_tenants_take_turns_across_them() -> None:
    served: list[str] = []

    def note(task: AgentTask, attempt: int) -> TaskEvent:
        served.append(task.tenant)
        return diligent(task, attempt)

    crew = Crew(note)
    async with crew.orchestrator(**ONE) as one, crew.orchestrator(**ONE) as other:
        noisy = [await submit(crew, "noisy", 30) for _ in range(4)]  # requests go to them in turn
        await until(lambda: not (one.dispatcher.waiting and other.dispatcher.waiting))
        keeper, giver = (one, other) if one.dispatcher.waiting else (other, one)
        await until(lambda: giver.dispatcher._holders.holding)
        quiet = [await submit(crew, "quiet", 2) for _ in range(2)]
        assert giver.dispatcher.waiting == 0
        assert keeper.dispatcher.waiting_of("quiet") == 4
        async with crew.agents():
            for run_id in quiet:
                await crew.ended(run_id)
            assert served[:12].count("quiet") == 4
            for run_id in noisy:
                await crew.ended(run_id)
    assert Counter(served) == {"noisy": 120, "quiet": 4}


async def test_what_a_killed_orchestrator_held_back_is_taken_over_by_the_others() -> None:
    crew = Crew()
    async with crew.orchestrator(**ONE) as one, crew.orchestrator(**ONE) as other:
        run_id = await submit(crew, "default", 9)
        holder, heir = (one, other) if one.dispatcher.waiting else (other, one)
        await until(lambda: heir.dispatcher._holders.holding)
        for loop in holder.dispatcher._loops:  # it dies without a word
            loop.cancel()
        for subscription in (holder.dispatcher._holders._answering, holder.dispatcher._holders._peers._hearing):
            assert subscription is not None
            await subscription.stop()
        crew.clock.ahead_s += SILENCE_S
        await settled(heir, 8)
        async with crew.agents():
            await crew.ended(run_id)
    assert sorted(key for key, _ in crew.deliveries) == sorted(f"s{n}" for n in range(9)), "what was sent before was not sent twice"


async def test_an_orchestrator_that_leaves_hands_over_at_once_and_one_that_starts_takes_what_is_left() -> None:
    crew = Crew()
    async with crew.orchestrator(**ONE) as first:
        run_id = await submit(crew, "default", 5)
        assert first.dispatcher.waiting == 4
    async with crew.orchestrator(**ONE) as second:
        await settled(second, 4)
        async with crew.orchestrator(**ONE) as third:
            await second.stop()
            await settled(third, 4)
            async with crew.agents():
                await crew.ended(run_id)


async def test_a_tenant_with_too_many_open_runs_is_refused_with_limit_count_and_what_to_do() -> None:
    crew = Crew()
    async with crew.orchestrator(open_runs_max=2) as service:
        first = await submit(crew, "noisy", 1)
        await submit(crew, "noisy", 1)
        body = {"task_id": crew.clock.random_id(), "type": "run", "objective": "Do it", **steps(1)}
        refused = await crew.ask("tasks.submit", body, tenant="noisy")
        assert refused["error"]["code"] == "tenant_full"
        said = refused["error"]["message"]
        assert said.startswith("the run was refused: tenant noisy has 2 open runs, and CREWLOG_OPEN_RUNS_MAX allows 2; submit it again when")
        await submit(crew, "quiet", 1)
        again = {"task_id": first, "type": "run", "objective": "Do it", **steps(1)}
        assert (await crew.ask("tasks.submit", again, tenant="noisy"))["status"] == "duplicate", "what was accepted stays accepted"
        assert (await crew.ask("runs.cancel", {"run_id": first}, tenant="noisy"))["ok"]
        assert (await crew.ask("tasks.submit", body, tenant="noisy"))["ok"]
        await service.sweep.sweep()
        assert not (await crew.ask("tasks.submit", {**body, "task_id": crew.clock.random_id()}, tenant="noisy"))["ok"], "a sweep counts what the log has"


async def test_a_tenant_with_too_much_waiting_is_refused_on_the_queue_as_well() -> None:
    crew = Crew()
    async with crew.orchestrator(**ONE, waiting_tasks_max=5):
        await submit(crew, "noisy", 9)
        await crew.bus.enqueue("tasks.noisy.data", b'{"objective":"Count"}', message_id="m1")
        await until(crew.rejected)
        (kept,) = crew.rejected()
        assert kept.headers["X-Reject-Code"] == "tenant_full"
        assert "8 tasks waiting for an agent, and CREWLOG_WAITING_TASKS_MAX allows 5" in kept.headers["X-Reject-Reason"]


async def test_workers_that_come_and_go_for_months_are_not_all_remembered() -> None:
    crew = Crew()
    async with crew.orchestrator() as service:
        for number in range(50):
            service.dispatcher.heard("data", f"w{number}", 4)
            crew.clock.ahead_s += WORKER_SILENCE_S
        assert service.dispatcher.workers("data") == {}
        service.dispatcher.heard("data", "last", 2)
        assert service.dispatcher.workers("data") == {"last": 2}
        assert len(service.dispatcher._workers["data"]) == 1


async def test_work_for_another_kind_that_begins_to_wait_while_one_is_sent_out_of_turn_breaks_nothing() -> None:
    entered, gate, is_slow = asyncio.Event(), asyncio.Event(), False

    class Slow(MemoryBus):
        async def publish(self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None) -> None:
            if is_slow and subject.startswith("work.data."):
                entered.set()
                await gate.wait()
            await super().publish(subject, data, headers=headers)

    crew = Crew()

    async def others_send_until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await crew.bus.publish("work.research.normal", b"of another orchestrator")
                await asyncio.sleep(0.005)

    async with crew.orchestrator(bus=Slow(crew.broker), in_flight_max={"code": 0}) as service:
        service.dispatcher._all_heard_s = 0
        await crew.bus.publish(telemetry("data", "w1"), b'{"kind":"data","worker":"w1","slots":1}')
        await submit(crew, "default", 3)
        await settled(service, 2)
        is_slow = True
        await others_send_until(entered.is_set)
        await crew.submit(type="code")
        gate.set()
        ended = asyncio.create_task(service.broken())
        await others_send_until(lambda: service.dispatcher.waiting == 1 or ended.done())
        assert not ended.done(), ended.exception()
        ended.cancel()
