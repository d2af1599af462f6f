"""Why a task is not finished: exactly one reason for every unfinished task, made from its events alone.

A reason names what is waited for. It holds no "since" and no "now", so a rebuild gives the same text.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, assert_never

from crewlog.events.store import OCCURRED_US_END
from crewlog.projections.run_state import Intervention, RunState, TaskState
from crewlog.schemas.usage import format_usd

_PAUSABLE: Final = frozenset({"planned", "queued", "suspended", "retrying", "deciding", "held"})
"""What is not with an agent: a running step ends by itself."""


def waiting_reason(run: RunState, task: TaskState) -> str | None:
    """Say in one phrase what an unfinished task waits for; None when it is finished. Total: every state has an answer."""
    row = task.row
    if (pause := run.pause_of(row.kind)) is not None and row.status in _PAUSABLE:
        asked = f"{_approval(task)}; besides, " if task.approvals else ""
        return f"{asked}{describe_pause(pause)}"
    match row.status:
        case "planned":
            return _planned(run, task)
        case "queued":
            return f"queued for {row.kind} (attempt {row.attempt})" + (f" after {task.decision}" if task.decision else "")
        case "running":
            return f"working: {_activity(task)}"
        case "suspended":
            return _approval(task)
        case "retrying" if run.starved:
            return _held(run, run.starved)
        case "retrying":
            return f"retry: attempt {row.attempt} due at {format_time(task.retry_due_us)}" + _cause(task)
        case "deciding":
            return f"attempt {row.attempt} failed{_cause(task)}: the orchestrator decides what follows"
        case "held":
            return _held(run, task)
        case "reviewing":
            return "the outcome waits for review by the orchestrator"
        case "completed" | "revised" | "failed" | "cancelled" | "skipped":
            return None
        case _:
            assert_never(row.status)


def describe_pause(pause: Intervention) -> str:
    """Say who paused what since when, and which command lets it go on."""
    noun, _, name = pause.scope.partition("/")
    what, named = ("paused", name[:8]) if noun == "run" else (f"{noun} {name} is paused", f"--{noun} {name}")
    because = f" ({pause.reason})" if pause.reason else ""
    return f"{what} by {pause.actor} since {format_time(pause.since_us)}{because}; go on with: crewlog resume {named}"


def format_time(at_us: int) -> str:
    """Show a time in UTC, to the second."""
    if not 0 <= at_us < OCCURRED_US_END:
        return f"{at_us} microseconds"
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _planned(run: RunState, task: TaskState) -> str:
    before = [(key, run.latest[key].row.status if key in run.latest else "unknown") for key in task.depends_on]
    if failed := [key for key, status in before if status in ("failed", "cancelled", "skipped")]:
        return f"{_named('step', failed)} did not succeed: the orchestrator decides what follows"
    if unfinished := [key for key, status in before if status != "completed"]:
        return f"waiting for {_named('step', unfinished)}"
    if run.row.plan_origin == "rollback":
        return "waiting for the steps before it: effects are taken back one after the other, the last one first"
    return _held(run, run.starved) if run.starved else "ready: the orchestrator has yet to dispatch it"


def _activity(task: TaskState) -> str:
    if (call := task.model_call) is not None:
        beside = f", and beside it to {task.hedge.provider}/{task.hedge.model}" if task.hedge is not None else ""
        return f"turn {call.turn}, model call to {call.provider}/{call.model}{beside}"
    if running := sorted(call.tool for call in task.tool_calls.values() if call.status == "running"):
        return _named("tool", running)
    if requested := sorted(call.tool for call in task.tool_calls.values()):
        return f"turn {task.row.turns}, about to run {', '.join(requested)}"
    return f"turn {task.row.turns + 1}, preparing"


def _approval(task: TaskState) -> str:
    if not task.approvals:
        return "approval was decided: the orchestrator resumes it"
    first = min(task.approvals.values(), key=lambda approval: (approval.expires_us, approval.approval_id))
    alike = [approval for approval in task.approvals.values() if approval.question == first.question]
    tools = ", ".join(sorted({approval.tool for approval in alike}))
    asked = f"approval of {tools} by a person" if first.question is None else f"a person's word on whether {tools} happened,"
    return f"{asked} until {format_time(first.expires_us)}"


def _held(run: RunState, task: TaskState) -> str:
    short = task.shortfall or (run.starved.shortfall if run.starved else None)
    if short is None:
        return "the orchestrator has yet to dispatch it again"
    used, limit, needed = map(format_usd, (short.used_micro_usd, short.limit_micro_usd, short.needed_micro_usd))
    return f"budget {short.scope}: {used} of {limit} used, {needed} needed; go on with: crewlog budget raise {short.scope} --hard USD"


def _cause(task: TaskState) -> str:
    return f" after {task.row.error_code}" if task.row.error_code else ""


def _named(noun: str, names: list[str]) -> str:
    return f"{noun}{'' if len(names) == 1 else 's'} {', '.join(names)}"
