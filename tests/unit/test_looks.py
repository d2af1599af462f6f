"""Which open runs the sweep looks at, and what it remembers of the others."""

from __future__ import annotations

from support.decider import SECOND_US, START_US, Spec, a_plan, breaks, broken, starved, submit

from crewlog.orchestrator.holds import needed_of
from crewlog.orchestrator.looks import Looks
from crewlog.orchestrator.run import RunState
from crewlog.schemas.ids import RunId

SOON_US = START_US + 10 * SECOND_US


def looked_at(state: RunState, events: int = 5) -> Looks:
    looks = Looks()
    looks.note(state, events)
    return looks


def one_task() -> Spec:
    return Spec().given(submit(plan=a_plan(a="research", b="data a")))


def test_a_run_is_looked_at_when_it_is_not_known_and_when_anything_happened_to_it() -> None:
    state = one_task().state
    looks = looked_at(state)
    assert not looks.is_due(state.run_id, 5, SOON_US)
    assert looks.is_due(state.run_id, 6, SOON_US), "one event more, in any of its streams"
    looks.forget(state.run_id)
    assert looks.is_due(state.run_id, 5, SOON_US)


def test_a_run_is_looked_at_when_its_time_has_come() -> None:
    state = one_task().given(breaks("a", broken(retryable=True, retry_after_s=60.0))).state
    due_us = state.tasks["a"].due_us
    looks = looked_at(state)
    assert not looks.is_due(state.run_id, 5, due_us - 1)
    assert looks.is_due(state.run_id, 5, due_us)
    assert not list(looks.timed(due_us - 1))
    assert list(looks.timed(due_us)) == [(state.run_id, 5)]


def test_a_run_that_stands_still_is_looked_at_every_time_until_it_does_not() -> None:
    state = one_task().state
    looks = looked_at(state)
    looks.mark(state.run_id, restless=True)
    assert looks.is_due(state.run_id, 5, SOON_US)
    assert list(looks.timed(SOON_US)) == [(state.run_id, 5)]
    looks.mark(state.run_id, restless=False)
    assert not looks.is_due(state.run_id, 5, SOON_US)
    assert not list(looks.timed(SOON_US))


def test_dispatched_tasks_and_tenants_are_known_without_a_look() -> None:
    spec = one_task()
    looks = looked_at(spec.state)
    assert [(run_id, task.task_id, task.kind) for run_id, task in looks.dispatched()] == [(spec.state.run_id, spec.task("a"), "research")]
    assert list(looks.tenants()) == [(spec.state.run_id, "default")]
    looks.keep(set())
    assert not list(looks.dispatched())
    assert not list(looks.tenants())


def test_a_run_that_a_budget_holds_is_known_with_what_it_needs() -> None:
    spec = one_task().given(breaks("a", starved(scope="tenant/x", needed=20)))
    looks = looked_at(spec.state)
    assert looks.held() == {spec.state.run_id: (("tenant/x", 20),)}
    other = RunId(spec.task("a"))
    assert needed_of({**looks.held(), other: (("tenant/x", 7), ("run/y", 9))}) == {"tenant/x": 7, "run/y": 9}
