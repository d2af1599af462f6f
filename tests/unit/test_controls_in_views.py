"""Views of what operators do: a run's status and reasons while it is paused or in quarantine, and what is in force at all."""

from __future__ import annotations

from uuid import UUID

from crewlog.events.store import Recorded
from crewlog.projections.controls_view import ControlProjection
from crewlog.projections.projection import fact_of
from crewlog.projections.rows import ApprovalRow, RunRow, TaskRow, TaskStatus
from crewlog.projections.run_state import Changed, RunState
from crewlog.projections.runs import RUN_FOLDS
from crewlog.projections.waiting import waiting_reason
from crewlog.schemas.codec import Event, encode, type_name
from crewlog.schemas.ids import CONTROL_STREAM, Stream, TaskId
from crewlog.schemas.run_events import QuarantineLifted, ResultsHeld, RunEvent, RunPaused, RunQuarantined, RunResumed, TaskReturned
from crewlog.schemas.system_events import ScopePaused, ScopeQuarantined, ScopeReleased, ScopeResumed
from crewlog.schemas.values import Failure

RUN, TASK = UUID(int=1), TaskId(UUID(int=2))
SCOPE = f"run/{RUN}"
AT_US = 1_763_720_000_000_000
AT = "2025-11-21T10:13:20Z"


def recorded(event: Event, at_us: int = AT_US, stream: str = f"run/{RUN}") -> Recorded:
    return Recorded(1, Stream(stream), 1, UUID(int=9), type_name(event), 1, encode(event), at_us)


def a_run(status: TaskStatus = "queued") -> RunState:
    run = RunState(RunRow(RUN, status="running", plan_origin="given"))
    run.add(TaskRow(RUN, "report", 0, TASK, "research", status=status, attempt=1))
    return run


def fold(run: RunState, *events: RunEvent) -> RunState:
    for event in events:
        RUN_FOLDS[type(event)](run, fact_of(recorded(event)), event, Changed())
    return run


def reason(run: RunState) -> str | None:
    return waiting_reason(run, run.latest["report"])


def test_a_paused_run_says_by_whom_and_how_it_goes_on() -> None:
    run = fold(a_run(), RunPaused(SCOPE, 1, "ada", "incident 7", AT_US))

    assert run.row.status == "paused"
    assert reason(run) == f"paused by ada since {AT} (incident 7); go on with: crewlog resume {str(RUN)[:8]}"
    assert fold(run, RunResumed(SCOPE, "bob", at_us=AT_US + 5)).row.status == "running"
    assert run.row.controls == "[]"


def test_a_step_under_way_and_another_kind_are_not_said_to_wait_for_it() -> None:
    assert reason(fold(a_run("running"), RunPaused(SCOPE, 1, "ada"))) == "working: turn 1, preparing"
    run = fold(a_run(), RunPaused("kind/code", 1, "ada"))
    assert (run.row.status, reason(run)) == ("running", "queued for research (attempt 1)")
    assert "kind research is paused by ada" in str(reason(fold(run, RunPaused("kind/research", 2, "ada"))))


def test_a_task_that_was_handed_back_waits_for_the_resumption() -> None:
    run = fold(a_run("running"), RunPaused("tenant/acme", 1, "ada", "", AT_US), TaskReturned(TASK, "report", 1, "tenant/acme", 1))

    assert run.latest["report"].row.status == "held"
    assert reason(run) == f"tenant acme is paused by ada since {AT}; go on with: crewlog resume --tenant acme"


def test_what_people_are_asked_expires_later_by_the_time_that_stood_still() -> None:
    run = a_run("suspended")
    approval = ApprovalRow(UUID(int=7), RUN, TASK, "t1-1", "send_email", "", "", "pending", 0, AT_US + 10, 1)
    run.latest["report"].approvals[approval.approval_id] = approval
    fold(run, RunPaused(SCOPE, 1, "ada", "", AT_US), RunPaused("tenant/acme", 2, "ada", "", AT_US + 5))

    assert str(reason(run)).startswith("approval of send_email by a person until ")
    assert "; besides, paused by ada" in str(reason(run))
    fold(run, RunResumed(SCOPE, "ada", at_us=AT_US + 500), RunResumed("tenant/acme", "ada", at_us=AT_US + 1000))
    assert approval.expires_us == AT_US + 10 + 1000


def test_results_that_are_held_end_no_run_and_leave_no_task_waiting() -> None:
    for error, status in ((None, "skipped"), (Failure("deadline", "late"), "cancelled")):
        run = fold(a_run(), RunQuarantined(SCOPE, 3, "ada"), ResultsHeld() if error is None else ResultsHeld(error))
        assert (run.row.status, run.row.finished_us, run.latest["report"].row.status, reason(run)) == ("quarantined", None, status, None)
        assert '"measure":"quarantine"' in run.row.controls
        assert fold(run, QuarantineLifted(SCOPE, 3, "bob")).row.controls == "[]"


def test_the_last_word_about_a_scope_counts() -> None:
    projection = ControlProjection()
    for event in (
        ScopePaused("kind/data", "ada"),
        ScopeQuarantined("tenant/acme", "ada", "why"),
        ScopeResumed("kind/data", "bob"),
        ScopePaused("tenant/acme", "eve"),
        ScopeReleased("tenant/other", "eve"),
    ):
        projection.fold(fact_of(recorded(event, stream=CONTROL_STREAM)))

    changed = projection.take().changed

    assert {key: None if row is None else row.actor for key, row in changed.items()} == {
        ("pause", "kind/data"): None,
        ("quarantine", "tenant/acme"): "ada",
        ("pause", "tenant/acme"): "eve",
        ("quarantine", "tenant/other"): None,
    }
    assert projection.take().changed == {}
