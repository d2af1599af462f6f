"""Pause, resume, quarantine, release, terminate: what follows for a run, that its clocks stand still, and that a replay finds the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.decider import SECOND_US, Spec, a_plan, breaks, broken, done, ends, plans, starved, submit
from support.runlog import RunLog
from unit.test_decide_approvals import FIRST, YES, asks

from crewlog.events.controls import Control, Controls, kind_scope, run_scope, tenant_scope
from crewlog.orchestrator.batch import decide_batch
from crewlog.orchestrator.commands import AbortRun, CancelRun, Command, HandedBack, LiftQuarantine, PauseRun, QuarantineRun, ReleaseRun, ResumeRun, Tick
from crewlog.orchestrator.interventions import due_interventions
from crewlog.orchestrator.rederive import verify_run
from crewlog.orchestrator.run import next_due_us
from crewlog.orchestrator.step_waits import waiting_reason
from crewlog.schemas.run_events import (
    QuarantineLifted,
    ResultsHeld,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunHeld,
    RunPaused,
    RunPlanned,
    RunQuarantined,
    RunReleased,
    RunResumed,
    RunSubmitted,
    TaskDispatched,
    TaskHeld,
    TaskResumed,
    TaskRetryScheduled,
    TaskReturned,
    TaskReviewed,
)
from crewlog.schemas.task_events import TaskCancelled, TaskHandedBack
from crewlog.schemas.values import Failure


def a_control(spec: Spec, scope: str = "", number: int = 1) -> Control:
    """Somebody's command about the run, given now."""
    return Control(scope or run_scope(spec.state.run_id), number, "ada", "looking into it", spec.now_us)


def paused(scope: str = "", number: int = 1) -> Callable[[Spec], Command]:
    return lambda spec: PauseRun(a_control(spec, scope, number))


def resumed(scope: str = "") -> Callable[[Spec], Command]:
    return lambda spec: ResumeRun(scope or run_scope(spec.state.run_id), "bob", "it is fine")


def quarantined(scope: str = "", number: int = 1) -> Callable[[Spec], Command]:
    return lambda spec: QuarantineRun(a_control(spec, scope, number))


def lifted(number: int = 1) -> Callable[[Spec], Command]:
    return lambda spec: LiftQuarantine(run_scope(spec.state.run_id), number, "bob")


def handed_back(key: str, number: int = 1) -> Callable[[Spec], Command]:
    return lambda spec: HandedBack(spec.task(key), TaskHandedBack(1, run_scope(spec.state.run_id), number))


def test_what_is_under_way_ends_and_nothing_new_starts() -> None:
    spec = Spec().given(submit(plan=a_plan(a="data", b="code a"))).when(paused()).then(RunPaused)

    spec.when(ends("a")).then(TaskReviewed)
    spec.when(resumed()).then(RunResumed, TaskDispatched)

    assert spec.event(TaskDispatched).key == "b"
    assert (spec.event(RunResumed).actor, spec.event(RunResumed).reason) == ("bob", "it is fine")


def test_a_task_that_was_handed_back_waits_for_the_resumption_with_its_attempt() -> None:
    spec = Spec().given(submit(type="data"), paused()).when(handed_back("task")).then(TaskReturned)

    spec.when(handed_back("task")).then()
    spec.when(resumed()).then(RunResumed, TaskDispatched)

    assert (spec.event(TaskDispatched).attempt, spec.last.dispatches[0].serial) == (1, 2)


def test_a_return_that_is_read_again_later_is_no_news() -> None:
    spec = Spec().given(submit(type="data"), handed_back("task"))

    spec.when(handed_back("task")).then()
    spec.when(handed_back("task", 2)).then(TaskReturned, TaskDispatched)


@pytest.mark.parametrize("scope", ["", kind_scope("data"), "worker/data-1"])
def test_a_task_that_comes_back_to_a_run_that_is_not_paused_is_dispatched_at_once(scope: str) -> None:
    spec = Spec().given(submit(type="data"), *([paused(scope)] if scope.startswith("kind") else []))

    spec.when(handed_back("task")).then(TaskReturned, TaskDispatched)


def test_the_last_of_several_pauses_counts() -> None:
    spec = Spec().given(submit(type="data"), paused(), paused(tenant_scope("default"), 2), handed_back("task"))

    spec.when(resumed()).then(RunResumed)
    spec.when(resumed(tenant_scope("default"))).then(RunResumed, TaskDispatched)


def test_deadlines_of_run_and_tasks_stand_still() -> None:
    spec = Spec().given(submit(plan=a_plan(a="data"), timeout_seconds=100)).when(paused(), after_s=10)
    run_us, task_us = spec.state.deadline_us, spec.state.tasks["a"].due_us

    spec.when(Tick(), after_s=1000).then()
    assert next_due_us(spec.state) is None
    spec.when(resumed(), after_s=0)

    assert (spec.state.deadline_us, spec.state.tasks["a"].due_us) == (run_us + 1000 * SECOND_US, task_us + 1000 * SECOND_US)
    spec.when(Tick(), after_s=89).then()
    spec.when(Tick(), after_s=2).then(RunFailed)


def test_a_paused_kind_stops_the_clocks_but_not_the_other_kinds() -> None:
    spec = Spec().given(submit(plan=a_plan(a="data", b="code", c="code b"), timeout_seconds=100), paused(kind_scope("data")))

    spec.when(ends("b"), after_s=500).then(TaskReviewed, TaskDispatched)
    spec.when(breaks("c", broken(retryable=True))).then(TaskRetryScheduled)
    spec.when(Tick(), after_s=200).then(TaskDispatched)


def test_an_attempt_that_fails_meanwhile_is_tried_again_behind_the_resumption() -> None:
    spec = Spec().given(submit(type="data", timeout_seconds=100), paused())

    spec.when(breaks("task", broken(retryable=True)), after_s=1000).then(TaskRetryScheduled)
    spec.when(Tick(), after_s=1000).then()
    spec.given(resumed())
    spec.when(Tick()).then(TaskDispatched)


def test_what_another_worker_did_behind_a_return_counts() -> None:
    spec = Spec().given(submit(type="data"), paused(), handed_back("task"))

    spec.when(breaks("task", broken(retryable=True))).then(TaskRetryScheduled)
    spec.when(breaks("task", broken(retryable=True))).then()


def test_a_question_can_be_answered_meanwhile_and_does_not_expire() -> None:
    spec = Spec().given(submit(type="communicate"), asks(ttl_s=10), paused())

    spec.when(Tick(), after_s=100).then()
    spec.when(YES).then(TaskResumed)
    spec.when(resumed()).then(RunResumed, TaskDispatched)


def test_a_question_that_nobody_answered_expires_later() -> None:
    spec = Spec().given(submit(type="communicate"), asks(ttl_s=10)).when(paused())
    spec.when(resumed(), after_s=100)

    assert next_due_us(spec.state) == spec.state.tasks["task"].pending[FIRST].expires_us
    spec.when(Tick(), after_s=1).then()
    spec.when(Tick(), after_s=10).then(TaskResumed, TaskDispatched)


def test_a_budget_that_runs_out_meanwhile_holds_the_run_behind_the_resumption() -> None:
    spec = Spec().given(submit(type="data"), paused())

    spec.when(breaks("task", starved())).then(TaskHeld)
    spec.when(resumed()).then(RunResumed, RunHeld)


def test_a_held_run_that_is_paused_is_released_and_still_waits() -> None:
    spec = Spec().given(submit(type="data"), breaks("task", starved()), paused())
    hold_us = spec.state.hold.expires_us  # type: ignore[union-attr]

    spec.when(Tick(), after_s=200_000).then()
    spec.when(ReleaseRun(run_scope(spec.state.run_id), None, 0)).then(RunReleased)
    spec.when(resumed()).then(RunResumed, TaskDispatched)
    assert spec.event(TaskDispatched).attempt == 2, "the budget ended the first one"

    assert spec.now_us > hold_us


def test_a_run_that_is_submitted_to_a_paused_tenant_is_accepted_and_waits() -> None:
    spec = Spec()
    control = Control(tenant_scope("default"), 7, "ada", "", 1)
    command = submit(timeout_seconds=100)

    spec.when(type(command)(command.task, "api", command.terms, (control,))).then(RunSubmitted, RunPaused)
    spec.when(Tick(), after_s=1000).then()
    spec.when(resumed(control.scope), after_s=0).then(RunResumed, TaskDispatched)

    assert spec.event(TaskDispatched).key == "@plan"
    assert spec.state.deadline_us == spec.now_us + 100 * SECOND_US


def test_a_paused_run_can_be_terminated() -> None:
    spec = Spec().given(submit(type="data"), paused()).when(CancelRun("enough", "eve")).then(RunCancelled)

    assert spec.written(TaskCancelled) == [TaskCancelled("enough", "eve")]
    spec.when(resumed()).then()


@pytest.mark.parametrize(("command", "end"), [(ends("a"), RunCompleted), (AbortRun(Failure("internal", "no")), RunFailed)])
def test_a_quarantine_keeps_the_end_back_until_it_is_lifted(command: Command, end: type) -> None:
    spec = Spec().given(submit(plan=a_plan(a="data"), timeout_seconds=100)).when(quarantined()).then(RunQuarantined)

    spec.when(command)
    assert isinstance(spec.last.events[-1], ResultsHeld)
    assert spec.state.status == "open"
    spec.when(Tick(), after_s=1000).then()
    spec.when(lifted()).then(QuarantineLifted, end)


def test_every_quarantine_must_be_lifted() -> None:
    spec = Spec().given(submit(type="data"), quarantined(), quarantined(tenant_scope("default"), 2), ends("task"))

    spec.when(lifted(1)).then(QuarantineLifted)
    spec.when(lifted(2)).then(QuarantineLifted, RunCompleted)


def test_a_release_before_the_end_lets_the_run_end_as_usual() -> None:
    Spec().given(submit(type="data"), quarantined(), lifted()).when(ends("task")).then(TaskReviewed, RunCompleted)


def test_results_that_are_held_can_be_done_away_with() -> None:
    Spec().given(submit(type="data"), quarantined(), ends("task")).when(CancelRun("wrong", "eve")).then(RunCancelled)


# ── what a run takes note of ──


def in_force(spec: Spec, *, pauses: tuple[str, ...] = (), quarantines: tuple[str, ...] = ()) -> Controls:
    numbers: Iterator[int] = iter(range(1, 100))
    made = [{scope: a_control(spec, scope, next(numbers)) for scope in scopes} for scopes in (pauses, quarantines)]
    return Controls(9, *made)


def test_a_run_takes_note_of_what_concerns_it_and_of_nothing_else() -> None:
    spec = Spec().given(submit(plan=a_plan(a="data", b="code a")))
    controls = in_force(spec, pauses=(tenant_scope("default"), tenant_scope("other"), kind_scope("code"), kind_scope("research")))

    noted = list(due_interventions(spec.state, controls))

    assert [type(command) for command in noted] == [PauseRun, PauseRun]
    spec.given(*noted)
    assert list(due_interventions(spec.state, controls)) == []
    assert [type(c) for c in due_interventions(spec.state, Controls(10))] == [ResumeRun, ResumeRun]


def test_a_kind_that_a_run_needs_no_more_does_not_stop_its_clocks() -> None:
    spec = Spec().given(submit(plan=a_plan(a="data", b="code a")))
    controls = in_force(spec, pauses=(kind_scope("data"),))
    spec.given(*due_interventions(spec.state, controls), ends("a"))

    (left,) = due_interventions(spec.state, controls)

    assert isinstance(left, ResumeRun)
    assert left.actor == "orchestrator"


def test_a_run_that_was_released_alone_is_not_put_into_the_same_quarantine_again() -> None:
    spec = Spec().given(submit(type="data"))
    controls = in_force(spec, quarantines=(tenant_scope("default"),))
    (noted,) = due_interventions(spec.state, controls)
    spec.given(noted, lambda s: LiftQuarantine(tenant_scope("default"), s.state.quarantines[0].control, "bob"))

    assert list(due_interventions(spec.state, controls)) == []


def test_what_is_in_force_is_noted_before_anything_else_is_decided() -> None:
    spec = Spec().given(submit(plan=a_plan(a="data"), timeout_seconds=100))
    controls = in_force(spec, pauses=(tenant_scope("default"),))

    batch = decide_batch(spec.state, (), (), spec.now_us + 1000 * SECOND_US, spec.kinds, controls)

    assert [type(event) for event in batch.events] == [RunPaused]


# ── a replay ──


def a_life(*commands: Command | Callable[[Spec], Command]) -> RunLog:
    log = RunLog()
    for command in commands:
        made = command(log.spec) if callable(command) else command
        if isinstance(made, HandedBack) or type(made).__name__ in ("TaskEnded", "AttemptEnded", "ApprovalAsked"):
            log.says(made.task_id, made.event)
        else:
            log.decides(made)
    return log


@pytest.mark.parametrize(
    "log",
    [
        a_life(submit(plan=a_plan(a="data", b="code a")), paused(), handed_back("a"), resumed(), ends("a"), ends("b")),
        a_life(submit(), paused(kind_scope("planner")), handed_back("@plan"), plans(a="data"), quarantined(), ends("a"), ends("@synthesis"), lifted()),
        a_life(submit(type="data", timeout_seconds=10), quarantined(), Tick(), lambda s: Tick(), paused(), resumed(), CancelRun("x", "y")),
        a_life(submit(plan=a_plan(a="data"), timeout_seconds=2), quarantined(), Tick(), lifted()),
        a_life(submit(type="communicate"), asks(), paused(), YES, resumed(), ends("task", done())),
        a_life(submit(plan=a_plan(a="data")), quarantined(), AbortRun(Failure("internal", "no")), lifted()),
    ],
)
def test_every_decision_follows_from_the_log(log: RunLog) -> None:
    assert verify_run(log.run_events, log.task_events) is None
    assert log.folded() == log.state


def test_a_run_that_was_paused_when_it_was_submitted_follows_from_itself() -> None:
    control = Control(tenant_scope("default"), 7, "ada", "", 1)
    command = submit()
    log = a_life(type(command)(command.task, "api", command.terms, (control,), (control,)), resumed(control.scope))

    assert [r.type for r in log.run_events] == [t.__name__ for t in (RunSubmitted, RunPaused, RunQuarantined, RunResumed, TaskDispatched)]
    assert verify_run(log.run_events, log.task_events) is None
    assert RunPlanned.__name__ not in {r.type for r in log.run_events}


def test_a_kind_that_was_paused_long_ago_gives_a_run_no_time_from_before_it_began() -> None:
    spec = Spec().given(submit(plan=a_plan(a="data")))
    deadline_us, due_us = spec.state.deadline_us, spec.state.tasks["a"].due_us
    long_ago = Control(kind_scope("data"), 1, "ada", "", spec.now_us - 3 * 86_400 * SECOND_US)

    (note,) = due_interventions(spec.state, Controls(version=1, pauses={long_ago.scope: long_ago}))
    spec.when(note, after_s=0).then(RunPaused).when(ResumeRun(long_ago.scope, "ada"), after_s=10).then(RunResumed)
    assert spec.state.deadline_us == deadline_us + 10 * SECOND_US
    assert spec.state.tasks["a"].due_us == due_us + 10 * SECOND_US


def test_each_step_of_a_paused_run_says_what_keeps_it_and_who_paused_it() -> None:
    spec = Spec().given(submit(plan=a_plan(a="data", b="code", c="research b", d="data")))
    spec.given(asks("a"), paused(), breaks("b", broken(retryable=True)), handed_back("d"))
    waits = {key: waiting_reason(spec.state, key) for key in "abcd"}

    assert {key: found.reason for key, found in waits.items() if found} == {"a": "approval", "b": "pause", "c": "dependency", "d": "pause"}
    assert waits["d"] == ("pause", f"{run_scope(spec.state.run_id)} is paused by ada", None)


def test_a_task_of_a_paused_kind_is_with_agents_that_take_none() -> None:
    spec = Spec().given(submit(plan=a_plan(a="data", b="code")), paused(kind_scope("data")))

    assert waiting_reason(spec.state, "a") == ("pause", "attempt 1 is with the data agents; kind/data is paused by ada", None)
    assert waiting_reason(spec.state, "b").reason == "worker"  # type: ignore[union-attr]
