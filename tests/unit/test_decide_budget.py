"""Budgets in the decider: what a task is charged to, a run that is held, released, raised too little, left alone, cancelled."""

from __future__ import annotations

from uuid import UUID

import pytest
from msgspec.structs import replace
from support.decider import RUN_UUID, SECOND_US, Spec, a_plan, breaks, broken, done, ends, starved, submit

from crewlog.orchestrator.commands import ApprovalAsked, CancelRun, DecideApproval, ReleaseRun, SubmitRun, Terms, Tick
from crewlog.orchestrator.run import next_due_us
from crewlog.orchestrator.scopes import scopes_of
from crewlog.orchestrator.step_waits import waiting_reason
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.ids import ApprovalId, Hash, TaskId
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.run_events import (
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunHeld,
    RunPlanned,
    RunReleased,
    RunSubmitted,
    TaskDispatched,
    TaskHeld,
    TaskResumed,
    TaskRetryScheduled,
    TaskReviewed,
    TaskSuspended,
)
from crewlog.schemas.task_events import ApprovalRequested, TaskCancelled, TaskFailed
from crewlog.schemas.values import Failure

SCOPE = f"run/{RUN_UUID}"
RAISED = ReleaseRun(SCOPE, 500, 90)
DAY = "1970-01-01"


def with_terms(*limits: ScopeLimit, tree: TaskId | None = None, **fields: object) -> SubmitRun:
    return SubmitRun(submit(**fields).task, "api", Terms(limits, tree))


def scopes(spec: Spec) -> list[ScopeLimit]:
    return list(scopes_of(spec.state, "data", spec.now_us))


def test_every_task_is_charged_to_five_scopes() -> None:
    spec = Spec().when(submit(type="data", tenant="acme", user="eve"))

    names = [SCOPE, f"tree/{RUN_UUID}", f"kind/acme/data/{DAY}", f"user/acme/eve/{DAY}", f"tenant/acme/{DAY}"]
    assert scopes(spec) == [ScopeLimit(name, None, None) for name in names]


def test_the_limits_of_the_operator_and_of_the_task_are_bound_and_the_tightest_counts() -> None:
    given = (ScopeLimit("run", 70, 100), ScopeLimit("tree", None, 500), ScopeLimit("user/day", 1, 2), ScopeLimit("tenant/day/batch", 7, 10))
    spec = Spec().when(with_terms(*given, type="data", surface="batch", budget={"hard_micro_usd": 40, "soft_micro_usd": 10}))

    assert spec.event(RunSubmitted).limits == given
    run, tree, kind, user, tenant = scopes(spec)
    assert run == ScopeLimit(SCOPE, 10, 40)
    assert (tree.hard_micro_usd, kind.hard_micro_usd, user.hard_micro_usd) == (500, None, 2)
    assert tenant == ScopeLimit(f"tenant/default/{DAY}/batch", 7, 10)


@pytest.mark.parametrize(
    ("budget", "soft", "hard"),
    [({"hard_micro_usd": 1000}, 70, 100), ({"hard_micro_usd": 50}, 35, 50), ({"soft_micro_usd": 5}, 5, 100), ({"hard_micro_usd": 0}, 0, 0), ({}, 70, 100)],
)
def test_a_task_can_tighten_the_limit_of_a_run_but_not_loosen_it(budget: dict[str, int], soft: int, hard: int) -> None:
    spec = Spec().when(with_terms(ScopeLimit("run", 70, 100), type="data", budget=budget))

    assert scopes(spec)[0] == ScopeLimit(SCOPE, soft, hard)


def test_a_task_with_a_parent_belongs_to_the_tree_of_its_parent() -> None:
    root = TaskId(UUID(int=5))
    spec = Spec().when(with_terms(type="data", tree=root, parent_task_id=str(UUID(int=6))))

    assert scopes(spec)[1].scope == f"tree/{root}"


def test_what_is_under_way_finishes_and_nothing_more_is_dispatched_then_the_run_is_held() -> None:
    spec = Spec().given(submit(plan=a_plan(a="research", b="data", c="code b", d="code a")))

    spec.when(breaks("a", starved())).then(TaskHeld)
    assert spec.state.hold is None
    spec.when(ends("b")).then(TaskReviewed, RunHeld)

    held = spec.event(RunHeld)
    assert (held.reason, held.scope, held.limit_micro_usd, held.used_micro_usd, held.needed_micro_usd) == ("budget", SCOPE, 100, 90, 20)
    assert held.partial.inline == "result of b"
    assert held.expires_us == spec.now_us + 86_400 * SECOND_US
    assert {waiting_reason(spec.state, key).reason for key in "acd"} == {"budget", "dependency"}  # type: ignore[union-attr]
    assert waiting_reason(spec.state, "c").reason == "budget"  # type: ignore[union-attr]
    assert next_due_us(spec.state) == held.expires_us


def test_a_raise_releases_it_and_the_task_goes_on_without_losing_an_attempt() -> None:
    spec = Spec().given(submit(type="data", limits={"attempts_max": 2}), breaks("task", starved()))

    spec.when(RAISED, after_s=500).then(RunReleased, TaskDispatched)
    again = spec.event(TaskDispatched)
    assert (again.attempt, spec.last.dispatches[0].message) == (2, None)
    assert spec.event(RunReleased).run_deadline_us == spec.state.deadline_us
    spec.when(breaks("task", starved(attempt=1))).then()
    spec.when(breaks("task", broken(attempt=2, retryable=True))).then(TaskRetryScheduled)
    spec.given(Tick())
    spec.when(breaks("task", broken(attempt=3, retryable=True))).then(TaskReviewed, RunFailed)


def test_a_task_whose_affordable_model_stays_away_is_held_for_the_other_one_and_not_failed() -> None:
    down = replace(starved(), error=Failure("model_unavailable", "a is down, b does not fit", retryable=True))
    spec = Spec().given(submit(type="data", limits={"attempts_max": 2}))

    spec.when(breaks("task", down)).then(TaskRetryScheduled)
    spec.when(Tick(), after_s=60).then(TaskDispatched)
    spec.when(breaks("task", replace(down, attempt=2))).then(TaskHeld, RunHeld)
    assert spec.event(RunHeld).needed_micro_usd == 20
    spec.when(RAISED).then(RunReleased, TaskDispatched)


def test_the_deadline_stands_still_while_the_run_is_held() -> None:
    spec = Spec().given(submit(type="data", timeout_seconds=60), breaks("task", starved()))
    deadline_us, held_us = spec.state.deadline_us, spec.now_us

    spec.when(Tick(), after_s=1000).then()
    spec.when(RAISED).then(RunReleased, TaskDispatched)

    assert spec.state.deadline_us == deadline_us + spec.now_us - held_us
    assert spec.event(TaskDispatched).deadline_us == spec.state.deadline_us


def test_room_elsewhere_releases_nothing_and_a_second_look_neither() -> None:
    spec = Spec().given(submit(type="data"), breaks("task", starved()))

    spec.when(ReleaseRun("tenant/default/1970-01-01", None, 0)).then()
    spec.given(RAISED)
    spec.when(RAISED).then()


def test_a_run_that_two_budgets_hold_is_held_by_the_next_one() -> None:
    spec = Spec().given(submit(plan=a_plan(a="research", b="data")), breaks("a", starved()), breaks("b", starved(scope="tree/1")))

    spec.when(RAISED).then(RunReleased, TaskDispatched, TaskDispatched)
    spec.given(ends("a"))
    spec.when(breaks("b", starved(attempt=2, scope="tree/1"))).then(TaskHeld, RunHeld)

    assert spec.event(RunHeld).scope == "tree/1"
    assert spec.event(RunHeld).partial.inline == "result of a"


def test_nothing_is_tried_again_or_sent_back_while_a_budget_has_no_room() -> None:
    spec = Spec().given(submit(plan=a_plan(a="research", b="data", c="code"), synthesis="collect"))
    spec.given(breaks("a", starved()), breaks("b", broken(retryable=True)))

    spec.when(Tick(), after_s=5).then()
    spec.when(ends("c")).then(TaskReviewed, RunHeld)
    spec.when(Tick(), after_s=5).then()
    assert waiting_reason(spec.state, "b").reason == "budget"  # type: ignore[union-attr]
    spec.when(RAISED).then(RunReleased, TaskDispatched)
    spec.when(Tick()).then(TaskDispatched)
    assert spec.event(TaskDispatched).key == "b"


def test_work_that_was_sent_back_is_opened_again_after_the_raise() -> None:
    plan = a_plan(a="research", b="data")
    plan["steps"][1]["constraints"] = {"words_max": 1}
    spec = Spec().given(submit(plan=plan), breaks("a", starved()))

    spec.when(ends("b", done("two words"))).then(TaskReviewed, RunHeld)
    assert waiting_reason(spec.state, "b").reason == "budget"  # type: ignore[union-attr]
    spec.when(RAISED).then(RunReleased, TaskDispatched, TaskDispatched)

    assert [item.key for item in spec.message("b").context] == ["b", "@review"]


def test_a_plan_that_was_sent_back_is_asked_for_again_after_the_raise() -> None:
    spec = Spec().given(submit()).when(breaks("@plan", starved())).then(TaskHeld, RunHeld)

    spec.when(RAISED).then(RunReleased, TaskDispatched)
    spec.when(ends("@plan", done(output={"steps": a_plan(a="data")["steps"]}))).then(TaskReviewed, RunPlanned, TaskDispatched)


def asks(spec: Spec, key: str) -> ApprovalAsked:
    asked = ApprovalRequested(ApprovalId(UUID(int=9)), "t1", "send_email", EMPTY, Hash("d" * 64), "sends", spec.now_us + 600 * SECOND_US)
    return ApprovalAsked(spec.task(key), asked)


def test_an_answer_of_a_person_counts_while_the_run_is_held_and_its_task_goes_on_after_the_raise() -> None:
    spec = Spec().given(submit(plan=a_plan(a="communicate", b="data")), breaks("b", starved()))

    spec.when(lambda s: asks(s, "a")).then(TaskSuspended, RunHeld)
    spec.when(DecideApproval(ApprovalId(UUID(int=9)), "approved", "eve")).then(TaskResumed)
    assert spec.event(TaskResumed).run_deadline_us == 0
    assert not spec.last.dispatches
    spec.when(RAISED).then(RunReleased, TaskDispatched, TaskDispatched)

    assert {event.key: event.attempt for event in spec.events(TaskDispatched)} == {"a": 1, "b": 2}
    assert spec.event(RunReleased).run_deadline_us


def test_a_question_that_is_still_open_keeps_the_clock_standing_after_the_raise() -> None:
    spec = Spec().given(submit(plan=a_plan(a="communicate", b="data")), breaks("b", starved()), lambda s: asks(s, "a"))

    spec.when(RAISED).then(RunReleased, TaskDispatched)
    assert spec.event(RunReleased).run_deadline_us == 0
    assert spec.state.paused_since_us
    spec.when(DecideApproval(ApprovalId(UUID(int=9)), "approved", "eve")).then(TaskResumed, TaskDispatched)
    assert spec.event(TaskResumed).run_deadline_us


def test_a_run_that_nobody_helps_fails_with_what_it_has() -> None:
    spec = Spec().given(submit(plan=a_plan(a="research", b="data", c="code b")), ends("a"), breaks("b", starved(cost=30)))

    spec.when(Tick(), after_s=86_400).then(TaskReviewed, RunFailed)

    end = spec.event(RunFailed)
    assert (end.error.code, end.partial.inline, end.cost_micro_usd) == ("budget", "result of a", 40)
    assert f"budget {SCOPE} had no room for $0.0000" in end.error.message
    assert len(spec.written(TaskFailed)) == 1


def test_a_held_run_can_be_cancelled() -> None:
    spec = Spec().given(submit(type="data"), breaks("task", starved())).when(CancelRun("too dear", "eve")).then(RunCancelled)

    assert len(spec.written(TaskCancelled)) == 1
    spec.when(RAISED).then()


def test_without_a_shortfall_it_is_a_failure_like_any_other() -> None:
    Spec().given(submit(type="data")).when(breaks("task", broken(code="budget"))).then(TaskReviewed, RunFailed)


def test_a_run_that_ends_is_not_held() -> None:
    spec = Spec().given(submit(plan=a_plan(a="research", b="data")), breaks("a", starved()), ends("b"), RAISED, ends("a"))

    assert isinstance(spec.state.end, RunCompleted)
    assert spec.state.hold is None
