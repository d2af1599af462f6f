"""Approvals: one answer each, the first one counts; waiting for a person costs the run no time."""

from __future__ import annotations

from uuid import UUID

import pytest
from support.decider import SECOND_US, Spec, a_plan, breaks, broken, ends, submit

from crewlog.orchestrator.commands import AlreadyDecided, ApprovalAsked, CancelRun, DecideApproval, Tick, TooLate
from crewlog.orchestrator.run import next_due_us
from crewlog.orchestrator.step_waits import waiting_reason
from crewlog.schemas.errors import NotFound
from crewlog.schemas.ids import ApprovalId, Hash
from crewlog.schemas.payload import pack
from crewlog.schemas.run_events import RunCancelled, RunFailed, TaskDispatched, TaskResumed, TaskRetryScheduled, TaskReviewed, TaskSuspended
from crewlog.schemas.task_events import ApprovalDecided, ApprovalRequested

FIRST, SECOND = ApprovalId(UUID(int=1)), ApprovalId(UUID(int=2))
DIGEST = Hash("d" * 64)
YES = DecideApproval(FIRST, "approved", "eve", "go on")


def asks(key: str = "task", approval_id: ApprovalId = FIRST, *, ttl_s: float = 3600):  # type: ignore[no-untyped-def]
    """An agent needs a permit."""

    def command(spec: Spec) -> ApprovalAsked:
        expires_us = spec.now_us + round(ttl_s * SECOND_US)
        return ApprovalAsked(spec.task(key), ApprovalRequested(approval_id, f"t1-{approval_id.int}", "send_email", pack("{}")[0], DIGEST, "sends", expires_us))

    return command


def test_a_task_waits_for_a_person_without_a_process() -> None:
    spec = Spec().given(submit(type="communicate")).when(asks()).then(TaskSuspended)

    assert waiting_reason(spec.state, "task").reason == "approval"  # type: ignore[union-attr]
    assert next_due_us(spec.state) == spec.state.tasks["task"].pending[FIRST].expires_us
    spec.when(asks()).then()


def test_an_answer_is_written_to_the_task_and_dispatches_it() -> None:
    spec = Spec().given(submit(type="communicate"), asks()).when(YES).then(TaskResumed, TaskDispatched)

    assert spec.written(ApprovalDecided) == [ApprovalDecided(FIRST, "t1-1", DIGEST, "approved", "eve", "go on")]
    assert (spec.event(TaskDispatched).attempt, spec.last.dispatches[0].serial) == (1, 2)


def test_the_first_answer_wins() -> None:
    spec = Spec().given(submit(type="communicate"), asks(), YES)

    spec.when(YES).then()
    with pytest.raises(AlreadyDecided, match="already approved by eve"):
        spec.when(DecideApproval(FIRST, "denied", "bob"))


def test_several_questions_are_all_answered_before_the_task_goes_on() -> None:
    spec = Spec().given(submit(type="communicate"), asks(), asks(approval_id=SECOND))

    spec.when(YES).then(TaskResumed)
    spec.when(DecideApproval(SECOND, "denied", "eve")).then(TaskResumed, TaskDispatched)


def test_a_question_nobody_answers_expires() -> None:
    spec = Spec().given(submit(type="communicate"), asks(ttl_s=10)).when(Tick(), after_s=10).then(TaskResumed, TaskDispatched)

    assert spec.event(TaskResumed).decision == "expired"
    assert spec.written(ApprovalDecided)[0].actor == "clock"


def test_an_answer_after_the_expiry_does_not_count() -> None:
    with pytest.raises(AlreadyDecided, match="expired by clock"):
        Spec().given(submit(type="communicate"), asks(ttl_s=10)).when(YES, after_s=10)


def test_the_deadline_stands_still_while_a_person_is_asked() -> None:
    spec = Spec().given(submit(plan=a_plan(a="communicate", b="data a"), timeout_seconds=100))
    deadline_us = spec.state.deadline_us

    spec.given(asks("a")).when(Tick(), after_s=1000).then()
    spec.when(YES, after_s=0)

    assert spec.state.deadline_us == deadline_us + 1000 * SECOND_US
    spec.when(Tick(), after_s=100).then(RunFailed)


def test_another_branch_may_go_on_meanwhile() -> None:
    spec = Spec().given(submit(plan=a_plan(a="communicate", b="data", c="code b"), timeout_seconds=100), asks("a"))

    spec.when(ends("b"), after_s=99).then(TaskReviewed, TaskDispatched)

    assert spec.event(TaskDispatched).deadline_us == spec.now_us + 100 * SECOND_US


def test_an_unknown_question_cannot_be_answered() -> None:
    with pytest.raises(NotFound, match="approval"):
        Spec().given(submit(type="communicate")).when(YES)


def test_a_question_of_a_cancelled_run_cannot_be_answered() -> None:
    spec = Spec().given(submit(type="communicate"), asks()).when(CancelRun("enough", "eve")).then(RunCancelled)

    with pytest.raises(TooLate, match="is over"):
        spec.when(YES)


def test_an_attempt_that_fails_while_the_deadline_stands_still_is_tried_again() -> None:
    spec = Spec().given(submit(plan=a_plan(a="communicate", b="data", c="code b"), timeout_seconds=100), asks("a"))
    spec.when(ends("b"), after_s=90).then(TaskReviewed, TaskDispatched)

    spec.when(breaks("c", broken(retryable=True)), after_s=20).then(TaskRetryScheduled)
