"""When things go wrong: retries, revisions, bad plans, planning again, budgets, deadlines, cancelling."""

from __future__ import annotations

from typing import Any

import pytest
from support.decider import SECOND_US, Spec, a_plan, breaks, broken, done, ends, plans, submit

from crewlog.orchestrator.commands import AbortRun, BuryTask, CancelRun, TaskEnded, Tick
from crewlog.orchestrator.run import next_due_us
from crewlog.orchestrator.step_waits import waiting_reason
from crewlog.schemas.run_events import (
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunPlanned,
    TaskDispatched,
    TaskRetryScheduled,
    TaskReviewed,
)
from crewlog.schemas.task_events import TaskCancelled, TaskFailed
from crewlog.schemas.values import Failure


def test_a_retryable_failure_is_tried_again_when_it_is_due() -> None:
    spec = Spec().given(submit(type="data")).when(breaks("task", broken(retryable=True))).then(TaskRetryScheduled)

    due_us = spec.event(TaskRetryScheduled).due_us
    assert 0.1 <= (due_us - spec.now_us) / SECOND_US <= 1.0
    assert next_due_us(spec.state) == due_us
    assert waiting_reason(spec.state, "task").reason == "retry"  # type: ignore[union-attr]
    spec.when(Tick(), after_s=0.05).then()
    spec.when(Tick()).then(TaskDispatched)
    assert (spec.event(TaskDispatched).attempt, spec.last.dispatches[0].message, spec.last.dispatches[0].serial) == (2, None, 2)


def test_a_provider_that_names_a_wait_is_given_it() -> None:
    spec = Spec().given(submit(type="data")).when(breaks("task", broken(retryable=True, retry_after_s=30)))

    assert spec.event(TaskRetryScheduled).due_us == spec.now_us + 30 * SECOND_US


def test_a_wait_beyond_the_deadline_is_not_waited_for() -> None:
    spec = Spec().given(submit(type="data", timeout_seconds=20)).when(breaks("task", broken(retryable=True, retry_after_s=30))).then(TaskReviewed, RunFailed)

    assert spec.event(RunFailed).error.code == "model_server"


def test_a_wait_that_is_no_time_ends_the_task_and_not_the_orchestrator() -> None:
    spec = Spec().given(submit(type="data")).when(breaks("task", broken(retryable=True, retry_after_s=1e308))).then(TaskReviewed, RunFailed)
    assert spec.event(RunFailed).error.code == "model_server"


def test_attempts_end() -> None:
    spec = Spec().given(submit(type="data", limits={"attempts_max": 2}), breaks("task", broken(retryable=True)), Tick())

    spec.when(breaks("task", broken(attempt=2, retryable=True))).then(TaskReviewed, RunFailed)

    assert [event.error.message for event in spec.written(TaskFailed)] == ["it broke"]
    assert spec.event(RunFailed).error.message == "it broke"


def test_a_failure_of_an_earlier_attempt_is_no_news() -> None:
    spec = Spec().given(submit(type="data"), breaks("task", broken(retryable=True)), Tick())

    spec.when(breaks("task", broken(attempt=1, retryable=True))).then()


def test_work_that_breaks_a_rule_goes_back_with_the_issues_twice() -> None:
    spec = Spec().given(submit(type="data", constraints={"words_max": 2}))

    for revision in (1, 2):
        spec.when(ends("task", done(f"still too many words{' ' * revision}"))).then(TaskReviewed, TaskDispatched)
        assert spec.event(TaskReviewed).verdict == "revise"
        assert spec.event(TaskDispatched).revision == revision
        earlier, review = spec.message("task").context
        assert earlier.outcome.summary.rstrip() == "still too many words"
        assert review.outcome.output == [{"rule": "words_max", "message": "the summary has 4 words, at most 2 are allowed; shorten it"}]
    spec.when(ends("task", done("far too many words"))).then(TaskReviewed, RunCompleted)

    assert spec.event(TaskReviewed).verdict == "flagged"
    assert spec.event(RunCompleted).flags == ("review_failed",)
    assert spec.event(RunCompleted).cost_micro_usd == 30


def test_revised_work_that_is_good_is_accepted() -> None:
    spec = Spec().given(submit(type="data", constraints={"words_max": 2}), ends("task", done("far too many words")))

    spec.when(ends("task", done("few words"))).then(TaskReviewed, RunCompleted)

    assert spec.event(RunCompleted).flags == ()


def test_an_answer_that_was_sent_back_cannot_come_again() -> None:
    spec = Spec().given(submit(type="data", constraints={"words_max": 2}))
    old = spec.task("task")
    spec.given(ends("task", done("far too many words")))

    spec.when(TaskEnded(old, done("fine now"))).then()


def test_the_output_schema_is_checked() -> None:
    schema = {"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]}
    spec = Spec().given(submit(type="data", output_schema=schema)).when(ends("task", done(output={"total": "many"})))

    assert [issue.message for issue in spec.event(TaskReviewed).issues] == ["$.total: 'many' is not of type 'integer'"]


def test_a_failed_step_takes_its_dependents_along_but_not_its_neighbours() -> None:
    spec = Spec().given(submit(plan=a_plan(a="research", b="data a", c="code")))

    spec.when(breaks("a")).then(TaskReviewed)
    assert waiting_reason(spec.state, "b") is None
    spec.when(ends("c")).then(TaskReviewed, RunCompleted)

    assert spec.event(RunCompleted).flags == ("failed:a", "skipped:b")
    assert spec.event(RunCompleted).answer.inline == "result of c"


def test_without_any_end_result_the_run_fails_and_keeps_what_was_finished() -> None:
    spec = Spec().given(submit(plan=a_plan(a="research", b="data", c="communicate a b")), ends("a"))

    spec.when(breaks("b")).then(TaskReviewed, RunFailed)

    end = spec.event(RunFailed)
    assert end.error.message == "step 'b' failed: it broke; 1 of 3 steps are finished"
    assert end.partial.inline == "result of a"


def test_a_bad_plan_is_corrected_once() -> None:
    spec = Spec().given(submit()).when(plans(a="research", b="reserch b")).then(TaskReviewed, TaskDispatched)

    review = spec.message("@plan").context[-2]
    assert review.key == "@review"
    assert "cycle" in review.outcome.summary
    assert [item.key for item in spec.message("@plan").context] == ["@plan", "@review", "@kinds"]
    spec.when(plans(a="research", b="reserch a")).then(TaskReviewed, RunFailed)
    assert "unknown kind 'reserch'; known kinds: code, communicate, data, research; name one of them, perhaps 'research'" in spec.event(RunFailed).error.message


def test_a_corrected_plan_is_carried_out() -> None:
    Spec().given(submit(), plans(a="reserch")).when(plans(a="research")).then(TaskReviewed, RunPlanned, TaskDispatched)


def test_an_outcome_without_a_plan_is_a_bad_plan() -> None:
    spec = Spec().given(submit()).when(ends("@plan", done("I would rather not"))).then(TaskReviewed, TaskDispatched)

    assert spec.event(TaskReviewed).verdict == "revise"


def test_a_plan_may_not_name_files_that_are_not_attached() -> None:
    output = {"steps": [{"key": "a", "type": "data", "objective": "Count", "attachments": ["x.csv"]}]}
    spec = Spec().given(submit()).when(ends("@plan", done(output=output)))

    assert spec.event(TaskReviewed).issues[0].message == "/a/attachments: unknown x.csv; attached: none"


def test_a_planner_that_fails_fails_the_run() -> None:
    spec = Spec().given(submit()).when(breaks("@plan")).then(TaskReviewed, RunFailed)

    assert spec.event(RunFailed).partial.size == 0


def test_a_failed_step_is_planned_again_when_everything_else_is_done() -> None:
    spec = Spec().given(submit(), plans(a="research", b="data", c="communicate a b")).when(breaks("b")).then(TaskReviewed)

    spec.when(ends("a")).then(TaskReviewed, TaskDispatched)
    context = {item.key: item for item in spec.message("@replan-1").context}
    assert list(context) == ["a", "@open", "@kinds"]
    assert [(point["key"], point["problem"]) for point in context["@open"].outcome.output] == [
        ("b", "failed: it broke"),
        ("c", "could not start because 'b' failed"),
    ]
    spec.when(plans("@replan-1", b="code a", c="communicate b")).then(TaskReviewed, RunPlanned, TaskDispatched)
    assert [step.key for step in spec.event(RunPlanned).steps] == ["a", "b", "c"]
    assert (spec.event(RunPlanned).revision, spec.event(TaskDispatched).revision) == (1, 1)
    spec.given(ends("b"), ends("c"), ends("@synthesis", done("finally")))
    assert spec.event(RunCompleted).flags == ("replanned",)


def test_planning_again_ends() -> None:
    spec = Spec().given(submit(), plans(a="research"), breaks("a"), plans("@replan-1", a="code"), breaks("a"), plans("@replan-2", a="data"))

    spec.when(breaks("a")).then(TaskReviewed, RunFailed)


def test_a_planner_that_fails_to_plan_again_leaves_what_was_finished() -> None:
    spec = Spec().given(submit(synthesis="collect"), plans(a="research", b="data"), ends("a"), breaks("b"))

    spec.when(breaks("@replan-1")).then(TaskReviewed, RunCompleted)

    assert spec.event(RunCompleted).flags == ("failed:b",)


def test_without_a_synthesis_the_outcomes_are_the_answer() -> None:
    spec = Spec().given(submit(), plans(a="research"), ends("a")).when(breaks("@synthesis")).then(TaskReviewed, RunCompleted)

    assert (spec.event(RunCompleted).answer.inline, spec.event(RunCompleted).flags) == ("result of a", ("synthesis_failed",))


def test_the_run_fails_at_its_deadline_and_closes_its_tasks() -> None:
    spec = Spec().given(submit(plan=a_plan(a="research", b="data"), timeout_seconds=60), ends("a"))
    assert next_due_us(spec.state) == spec.state.deadline_us

    spec.when(Tick(), after_s=60).then(RunFailed)

    assert spec.event(RunFailed).error.code == "deadline"
    assert spec.event(RunFailed).partial.inline == "result of a"
    assert len(spec.written(TaskCancelled)) == 1


def test_a_task_fails_at_its_own_deadline() -> None:
    plan = {"steps": [{"key": "a", "type": "data", "objective": "x", "timeout_seconds": 10}, {"key": "b", "type": "code", "objective": "y"}]}
    spec = Spec().given(submit(plan=plan)).when(Tick(), after_s=10).then(TaskReviewed)

    assert spec.event(TaskReviewed).error.code == "deadline"
    assert len(spec.written(TaskFailed)) == 1


def test_nothing_is_due_before_its_time() -> None:
    Spec().given(submit(type="data")).when(Tick()).then()


@pytest.mark.parametrize("command", [CancelRun("not needed", "eve"), AbortRun(Failure("internal", "the log refused"))])
def test_stopping_closes_all_open_tasks(command: CancelRun | AbortRun) -> None:
    spec = Spec().given(submit(plan=a_plan(a="research", b="data", c="code")), ends("a"))

    spec.when(command).then(RunCancelled if isinstance(command, CancelRun) else RunFailed)

    assert len(spec.written(TaskCancelled)) == 2
    spec.when(command).then()
    spec.when(ends("b")).then()
    assert next_due_us(spec.state) is None


def buried(spec: Spec, key: str = "a", *, kind: str = "data", attempt: int = 1, serial: int = 1) -> BuryTask:
    return BuryTask(spec.task(key), kind, attempt, serial, "its message was handed out 5 times; ValueError")


def test_a_task_whose_message_is_dead_fails_at_once_and_the_others_go_on() -> None:
    spec = Spec().given(submit(plan=a_plan(a="data", b="code")))

    spec.when(buried(spec)).then(TaskReviewed)

    assert spec.written(TaskFailed) == [TaskFailed(Failure("poison", "its message was handed out 5 times; ValueError"))]
    assert (spec.event(TaskReviewed).verdict, spec.event(TaskReviewed).error.retryable) == ("failed", False)
    assert spec.state.tasks["b"].phase == "dispatched"


def test_a_run_of_one_task_ends_with_its_poison() -> None:
    spec = Spec().given(submit(type="data", limits={"attempts_max": 5}))

    spec.when(buried(spec, "task")).then(TaskReviewed, RunFailed)

    assert spec.event(RunFailed).error.code == "poison"


@pytest.mark.parametrize("other", [{"kind": "code"}, {"attempt": 2}, {"serial": 2}])
def test_a_message_that_the_task_does_not_wait_for_is_no_news(other: dict[str, Any]) -> None:
    spec = Spec().given(submit(plan=a_plan(a="data", b="code")))

    spec.when(buried(spec, **other)).then()


def test_the_message_of_an_earlier_attempt_does_not_end_the_next() -> None:
    spec = Spec().given(submit(type="data"), breaks("task", broken(retryable=True)))

    spec.when(buried(spec, "task")).then()
    spec.when(Tick()).then(TaskDispatched)
    spec.when(buried(spec, "task")).then()
    spec.when(buried(spec, "task", attempt=2, serial=2)).then(TaskReviewed, RunFailed)


def test_a_dead_message_of_a_task_that_has_ended_is_no_news() -> None:
    spec = Spec().given(submit(type="data"))
    late = buried(spec, "task")

    spec.given(ends("task")).when(late).then()
