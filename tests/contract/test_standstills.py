"""Runs that stand still although nothing is known that they wait for: what counts as one, and that each is recorded once."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace
from support.crew import Crew, diligent
from support.decider import SECOND_US, Spec, a_plan, a_task, starved

from crewlog.events.store import Recorded
from crewlog.orchestrator.commands import AttemptEnded, SubmitRun
from crewlog.orchestrator.run import RunState
from crewlog.orchestrator.service import OrchestratorService
from crewlog.orchestrator.standstill import SENT_AGAIN_MAX, Standstill, standstill_of
from crewlog.orchestrator.sweep import COUNT_ROUNDS
from crewlog.schemas.ids import RunId, alert_stream
from crewlog.schemas.subjects import telemetry
from crewlog.schemas.system_events import RunStoodStill
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import TaskEvent

LEASE_S = 60.0


def judged(state: RunState, *, after_s: float = 0.0, sent_again: int = 0) -> Standstill | None:
    now_us = state.deadline_us - 800 * SECOND_US + round(after_s * SECOND_US)
    return standstill_of(state, now_us, patience_us=60 * SECOND_US, sent_again=lambda *_: sent_again)


def submitted() -> Spec:
    return Spec().given(SubmitRun(a_task(plan=a_plan(a="data", b="data")), "api"))


def test_a_run_whose_tasks_are_with_agents_does_not_stand_still_until_its_time_is_over() -> None:
    state = submitted().state
    assert judged(state) is None
    assert judged(state, after_s=850) is None, "an orchestrator may be a little late"
    late = judged(state, after_s=870)
    assert late is not None
    assert late.since_us == state.deadline_us
    assert "what was due has not happened" in late.what


def test_a_run_that_a_budget_holds_waits_for_that() -> None:
    spec = submitted()
    for key in ("a", "b"):
        spec.when(AttemptEnded(spec.state.tasks[key].task_id, starved()))
    assert spec.state.hold is not None
    assert judged(spec.state, after_s=5000) is None


def test_a_run_of_which_nothing_is_under_way_stands_still() -> None:
    state = submitted().state
    idle = replace(state, deadline_us=0, tasks={key: replace(task, phase="accepted", due_us=0) for key, task in state.tasks.items()})
    found = standstill_of(idle, state.deadline_us, patience_us=0, sent_again=lambda *_: 0)
    assert found == Standstill("nothing of it is under way and nothing is due", 0)
    assert standstill_of(replace(idle, status="completed"), 0, patience_us=0, sent_again=lambda *_: 0) is None


def test_a_task_that_no_agent_begins_stands_still_when_it_was_sent_often_enough() -> None:
    state = submitted().state
    assert judged(state, sent_again=SENT_AGAIN_MAX - 1) is None
    found = judged(state, sent_again=SENT_AGAIN_MAX)
    assert found is not None
    assert found.task_id == state.tasks["a"].task_id
    assert "data agents answer, and none has begun it" in found.what


def alerts(crew: Crew, run_id: RunId) -> list[Recorded]:
    stream = crew.log.streams.get(alert_stream(run_id))
    return stream.events if stream else []


async def test_a_standstill_is_recorded_once_by_however_many_orchestrators_and_is_over_when_something_happens() -> None:
    answers = False

    def deaf(task: AgentTask, attempt: int) -> TaskEvent | None:
        return diligent(task, attempt) if answers else None

    async def round_of(*services: OrchestratorService) -> None:
        crew.clock.ahead_s += LEASE_S
        await crew.bus.publish(telemetry("data", "w1"), b'{"kind":"data","worker":"w1","slots":4}')
        for service in services:
            await service.sweep.sweep()
            async with asyncio.timeout(60):
                while crew.broker.messages("WORK"):  # noqa: ASYNC110  (the broker tells nobody that its queue is empty)
                    await asyncio.sleep(0.001)

    crew = Crew(deaf)
    async with crew.orchestrator(dispatch_lease_s=LEASE_S) as one, crew.orchestrator(dispatch_lease_s=LEASE_S) as other, crew.agents():
        run_id = await crew.submit(type="data", timeout_seconds=86_400)
        for _ in range(SENT_AGAIN_MAX + 1):
            await round_of(one, other)
        assert alerts(crew, run_id) == [], "it may be on its way"
        for _ in range(4):
            await round_of(one, other)
        (alert,) = alerts(crew, run_id)
        event = alert.event()
        assert isinstance(event, RunStoodStill)
        assert event.task_id is not None
        assert alert.run_id == run_id
        answers = True
        await round_of(one, other)
        await crew.ended(run_id)
        for _ in range(COUNT_ROUNDS + 1):
            await round_of(one, other)
        assert len(alerts(crew, run_id)) == 1
        assert not [service.sweep._standstills for service in (one, other) if service.sweep._standstills.suspects(run_id)], "it is over"
