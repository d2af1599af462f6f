"""Waiting reasons: what they say, and that every state has one or is finished."""

from __future__ import annotations

from typing import get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crewlog.projections.rows import FINISHED, ApprovalRow, ModelCallRow, RunRow, TaskRow, TaskStatus, ToolCallRow
from crewlog.projections.run_state import RunState, TaskState
from crewlog.projections.waiting import format_time, waiting_reason
from crewlog.schemas.values import Shortfall

RUN, TASK = UUID(int=1), UUID(int=2)
AT_US = 1_763_720_000_000_000
AT = "2025-11-21T10:13:20Z"


def make(status: TaskStatus, **fields: object) -> tuple[RunState, TaskState]:
    run = RunState(RunRow(RUN))
    task = run.add(TaskRow(RUN, "report", 0, TASK, "research", status=status, attempt=1))
    for name, value in fields.items():
        setattr(task if hasattr(task, name) else task.row, name, value)
    return run, task


def reason(status: TaskStatus, **fields: object) -> str | None:
    return waiting_reason(*make(status, **fields))


def approval(tool: str, expires_us: int, number: int, question: str | None = None) -> tuple[UUID, ApprovalRow]:
    key = UUID(int=number)
    return key, ApprovalRow(key, RUN, TASK, f"t1-{number}", tool, "", "", "pending", 0, expires_us, 1, question=question)


def tool_call(tool: str, status: str) -> ToolCallRow:
    return ToolCallRow(TASK, tool, RUN, 1, tool, status, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "fields", "expected"),
    [
        ("planned", {}, "ready: the orchestrator has yet to dispatch it"),
        ("queued", {}, "queued for research (attempt 1)"),
        ("queued", {"decision": "approval of send_email was denied"}, "queued for research (attempt 1) after approval of send_email was denied"),
        ("running", {}, "working: turn 1, preparing"),
        (
            "running",
            {"model_call": ModelCallRow(TASK, 1, RUN, "m3-1", 3, "offline", "rules-1", "running", 0)},
            "working: turn 3, model call to offline/rules-1",
        ),
        ("running", {"tool_calls": {"a": tool_call("run_sql", "running")}}, "working: tool run_sql"),
        ("running", {"tool_calls": {"a": tool_call("run_sql", "running"), "b": tool_call("make_chart", "running")}}, "working: tools make_chart, run_sql"),
        ("running", {"turns": 2, "tool_calls": {"a": tool_call("run_sql", "requested")}}, "working: turn 2, about to run run_sql"),
        ("suspended", {"approvals": dict([approval("send_email", AT_US, 7)])}, f"approval of send_email by a person until {AT}"),
        (
            "suspended",
            {"approvals": dict([approval("send_email", AT_US + 10**9, 7), approval("post_webhook", AT_US, 8)])},
            f"approval of post_webhook, send_email by a person until {AT}",
        ),
        (
            "suspended",  # only the answer to the question that is named may be given: a yes to another one is refused
            {"approvals": dict([approval("post_webhook", AT_US, 7, "outcome"), approval("send_email", AT_US + 1, 8)])},
            f"a person's word on whether post_webhook happened, until {AT}",
        ),
        ("suspended", {}, "approval was decided: the orchestrator resumes it"),
        ("retrying", {"attempt": 2, "retry_due_us": AT_US, "error_code": "model_timeout"}, f"retry: attempt 2 due at {AT} after model_timeout"),
        ("deciding", {"error_code": "internal"}, "attempt 1 failed after internal: the orchestrator decides what follows"),
        ("reviewing", {}, "the outcome waits for review by the orchestrator"),
        ("completed", {}, None),
    ],
)
def test_reasons(status: TaskStatus, fields: dict[str, object], expected: str | None) -> None:
    assert reason(status, **fields) == expected


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ({"facts": "running"}, "waiting for step facts"),
        ({"facts": "running", "numbers": "planned"}, "waiting for steps facts, numbers"),
        ({"facts": "completed", "numbers": "revised"}, "waiting for step numbers"),
        ({"facts": "completed"}, "ready: the orchestrator has yet to dispatch it"),
        ({"facts": "failed", "numbers": "running"}, "step facts did not succeed: the orchestrator decides what follows"),
    ],
)
def test_steps_waited_for(before: dict[str, TaskStatus], expected: str) -> None:
    run, task = make("planned", depends_on=tuple(before))
    for number, (key, status) in enumerate(before.items(), 10):
        run.add(TaskRow(RUN, key, 0, UUID(int=number), "data", status=status))
    assert waiting_reason(run, task) == expected


def test_what_a_budget_holds_says_which_one_and_what_to_do() -> None:
    run, task = make("held", shortfall=Shortfall("run/1", 1_000_000, 900_000, 200_000))
    others = {status: run.add(TaskRow(RUN, status, 0, UUID(int=n), "data", status=status)) for n, status in enumerate(("planned", "retrying", "held"), 10)}

    said = "budget run/1: $0.9000 of $1.0000 used, $0.2000 needed; go on with: crewlog budget raise run/1 --hard USD"
    assert {waiting_reason(run, held) for held in (task, *others.values())} == {said}
    task.row.status, task.shortfall = "queued", None
    assert waiting_reason(run, others["planned"]) == "ready: the orchestrator has yet to dispatch it"
    assert waiting_reason(run, others["held"]) == "the orchestrator has yet to dispatch it again"


def test_a_step_nobody_knows_is_waited_for() -> None:
    run, task = make("planned", depends_on=("ghost",))
    assert waiting_reason(run, task) == "waiting for step ghost"


@given(
    st.sampled_from(get_args(TaskStatus)),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2),
    st.sampled_from(["requested", "running", "interrupted"]),
    st.booleans(),
    st.text(),
)
def test_every_state_has_exactly_one_reason(status: TaskStatus, at_us: int, approvals: int, tool_status: str, has_call: bool, word: str) -> None:
    run, task = make(status, retry_due_us=at_us, error_code=word, decision=word)
    task.depends_on = (word,)
    task.approvals = dict(approval(word, at_us, n + 5) for n in range(approvals))
    if has_call:
        task.tool_calls = {"a": tool_call(word, tool_status)}
    found = waiting_reason(run, task)
    assert (found is None) == (status in FINISHED)
    assert found is None or found


@pytest.mark.parametrize(("at_us", "expected"), [(0, "1970-01-01T00:00:00Z"), (AT_US + 999_999, AT), (-1, "-1 microseconds"), (2**62, f"{2**62} microseconds")])
def test_times(at_us: int, expected: str) -> None:
    assert format_time(at_us) == expected
