"""Work that comes out the same again ends the round it goes in, and says so."""

from __future__ import annotations

from support.decider import Spec, breaks, broken, done, ends, plans, submit
from support.runlog import RunLog

from crewlog.orchestrator.rederive import verify_run
from crewlog.orchestrator.repeats import work_hash
from crewlog.schemas.run_events import RunCompleted, RunFailed, RunPlanned, TaskDispatched, TaskReviewed
from crewlog.schemas.values import ArtifactRef, Failure, Outcome


def test_the_same_work_is_not_sent_back_a_second_time() -> None:
    spec = Spec().given(submit(type="data", constraints={"words_max": 2}), ends("task", done("far too many words")))

    spec.when(ends("task", done("far too many words"))).then(TaskReviewed, RunCompleted)

    assert spec.event(TaskReviewed).verdict == "flagged"
    assert spec.event(RunCompleted).flags == ("review_failed", "no_progress")


def test_work_that_goes_back_and_forth_between_two_versions_is_noticed() -> None:
    rules = {"words_max": 2}
    spec = Spec().given(submit(type="data", constraints=rules), ends("task", done("far too many words")), ends("task", done("even more words still")))

    spec.when(ends("task", done("far too many words")))

    assert spec.event(RunCompleted).flags == ("review_failed", "no_progress")


def test_a_step_that_fails_the_same_way_after_a_new_plan_is_not_planned_again() -> None:
    spec = Spec().given(submit(), plans(a="research"), breaks("a")).when(plans("@replan-1", a="research"))
    spec.then(TaskReviewed, RunPlanned, TaskDispatched)

    spec.when(breaks("a")).then(TaskReviewed, RunFailed)

    assert "step 'a' failed in the same way as before the plan was changed: it broke" in spec.event(RunFailed).error.message


def test_what_was_finished_is_kept_and_flagged_when_the_rest_makes_no_progress() -> None:
    spec = Spec().given(submit(synthesis="collect"), plans(a="research", b="data"), ends("a"), breaks("b"), plans("@replan-1", b="data"))

    spec.when(breaks("b")).then(TaskReviewed, RunCompleted)

    assert spec.event(RunCompleted).flags == ("replanned", "failed:b", "no_progress:b")


def test_another_failure_is_worth_another_plan() -> None:
    spec = Spec().given(submit(), plans(a="research"), breaks("a"), plans("@replan-1", a="research"))

    spec.when(breaks("a", broken(code="other"))).then(TaskReviewed, TaskDispatched)

    assert spec.event(TaskDispatched).key == "@replan-2"


def test_the_decision_follows_from_the_log() -> None:
    log = RunLog()
    log.decides(submit(type="data", constraints={"words_max": 2}))
    log.says(log.state.tasks["task"].task_id, done("far too many words"))
    log.says(log.state.tasks["task"].task_id, done("far too many words"))
    assert log.state.status == "completed"

    assert verify_run(log.run_events, log.task_events) is None
    assert log.folded() == log.state


def test_results_are_compared_by_what_was_made_of_the_same_objective() -> None:
    spec = Spec().given(submit(), plans(a="research", b="data"))
    one, other = spec.state.steps
    outcome = Outcome("done", output={"b": 1, "a": 2})
    assert work_hash(one, outcome) == work_hash(one, Outcome("done", output={"a": 2, "b": 1}, flags=("simulated",), trust="untrusted"))
    assert work_hash(one, outcome) != work_hash(other, outcome)
    assert work_hash(one, outcome) != work_hash(one, Outcome("done", output=outcome.output, artifacts=(ArtifactRef("a", outcome.summary, 1),)))  # type: ignore[arg-type]
    assert work_hash(one, Failure("x", "y", retryable=True)) is None
