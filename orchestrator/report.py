"""What `runs.get` says about a run: made from its state alone, so it is current to the last commit.

`usage` and `cost_micro_usd` are therefore what its tasks said when they ended, not the ledger: that has calls under way, those that were cut off and
bills that came late, too, and is read from the view `crewlog.costs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from crewlog.orchestrator.brief import GOAL_CHARS_MAX
from crewlog.orchestrator.rollback import rollback_report
from crewlog.orchestrator.run import SYNTHESIS, RunState, TaskState, answers_goal, blocked_steps
from crewlog.orchestrator.run_controls import is_paused
from crewlog.orchestrator.step_waits import waiting_reason
from crewlog.schemas.errors import ContractError
from crewlog.schemas.payload import Payload
from crewlog.schemas.run_events import RunCancelled, RunCompleted, RunFailed
from crewlog.schemas.text import shorten
from crewlog.schemas.values import Outcome

if TYPE_CHECKING:
    from crewlog.orchestrator.schedule import Schedule

OpenStatus = Literal["planning", "running", "paused", "held", "quarantined"]
"""Where a run stands that is not over."""


def run_report(state: RunState) -> dict[str, Any]:
    """Describe a run as JSON. The answer's text is not in it: it may have to be fetched (`text_of`)."""
    brief = state.brief
    return {
        "run_id": state.run_id,
        "task_id": brief.task_id,
        "status": state.status,
        "tenant": brief.tenant,
        "user_name": brief.user,
        "type": brief.type,
        "objective": brief.objective,
        "plan": state.origin,
        "steps": [_step(state, key, kind) for key, kind in _keys(state)],
        "usage": state.usage,
        "cost_micro_usd": state.cost_micro_usd,
        "deadline_us": state.deadline_us,
        "hold": _hold(state),
        "pauses": state.pauses if state.status == "open" else (),
        "quarantines": state.quarantines if state.status == "open" else (),
        "results_held": state.status == "open" and state.results_held is not None,
        "output": _output(state),
        "rollback": rollback_report(state),
        "end": _end(state),
    }


def status_of(state: RunState) -> str:
    """Say in one word where a run stands, as the views do."""
    if state.status != "open":
        return state.status
    return _open_status(state)


def _open_status(state: RunState) -> OpenStatus:
    if state.results_held is not None:
        return "quarantined"
    if is_paused(state):
        return "paused"
    if state.hold is not None:
        return "held"
    return "running" if state.origin is not None else "planning"


def text_of(state: RunState) -> Payload | None:
    """Return where the text of the answer, or of what was finished, is."""
    match state.end:
        case RunCompleted():
            return state.end.answer
        case RunFailed():
            return state.end.partial
        case _:
            return state.hold.partial if state.hold is not None else None


def _keys(state: RunState) -> list[tuple[str, str]]:
    own = [(key, task.kind) for key, task in state.tasks.items() if key.startswith("@") and key != SYNTHESIS]
    last = [(SYNTHESIS, state.tasks[SYNTHESIS].kind)] if SYNTHESIS in state.tasks else []
    return [*own, *((step.key, step.type) for step in state.steps), *last]


def _step(state: RunState, key: str, kind: str) -> dict[str, Any]:
    task = state.tasks.get(key)
    waiting = waiting_reason(state, key)
    return {
        "key": key,
        "type": kind,
        "status": _status(state, key, task),
        "task_id": None if task is None else task.task_id,
        "attempt": 0 if task is None else task.attempt,
        "revision": 0 if task is None else task.revision,
        "waiting": None if waiting is None else waiting._asdict(),
        "approvals": [] if task is None else [{"approval_id": key, "tool": p.tool, "expires_us": p.expires_us} for key, p in task.pending.items()],
        "issues": () if task is None else task.issues,
        "error": None if task is None else task.error,
    }


def _status(state: RunState, key: str, task: TaskState | None) -> str:
    if task is not None:
        return task.phase if state.status == "open" or not task.is_active else "cancelled"
    return "skipped" if state.status != "open" or key in blocked_steps(state) else "planned"


def _output(state: RunState) -> Any:
    """Return the JSON a program is after: of the synthesis, or of the one step that has the whole goal."""
    key = next((key for key in (SYNTHESIS, *(step.key for step in state.steps)) if key in state.tasks and answers_goal(state, key)), SYNTHESIS)
    task = state.tasks.get(key)
    outcome: Outcome | None = task.outcome if task is not None and task.is_finished else None
    return None if outcome is None else outcome.output


def _hold(state: RunState) -> dict[str, Any] | None:
    if state.hold is None or state.status != "open":
        return None
    names = ("reason", "scope", "limit_micro_usd", "used_micro_usd", "needed_micro_usd", "since_us", "expires_us", "artifacts")
    return {name: getattr(state.hold, name) for name in names}


def _end(state: RunState) -> dict[str, Any] | None:
    match state.end:
        case RunCompleted() as end:
            return {"artifacts": end.artifacts, "citations": end.citations, "flags": end.flags}
        case RunFailed() as end:
            return {"artifacts": end.artifacts, "error": end.error}
        case RunCancelled() as end:
            return {"reason": end.reason, "actor": end.actor}
        case None:
            return None


def schedule_report(state: Schedule, now_us: int) -> dict[str, Any]:
    """Describe a schedule for people. `next_us`: when it is due next, None while it is paused, or where its time zone is not known; times in
    microseconds since 1970."""
    from crewlog.orchestrator.schedule import next_due_us  # what explains a run does without the reader of cron lines

    last = state.last
    fired = None if last is None else {"due_us": last.due_us, "run_id": str(last.run_id), "missed": last.missed, "error": last.error}
    goal = shorten(msgspec.json.decode(bytes(state.task))["objective"], GOAL_CHARS_MAX)  # all of a tenant are told in one message
    try:
        next_us = next_due_us(state, now_us)
    except ContractError:  # another orchestrator's tables have its zone: that one fires it, and people must still see and stop it here
        next_us = None
    told = {name: getattr(state, name) for name in ("name", "status", "cron", "zone", "catch_up")}
    return {**told, "goal": goal, "next_us": next_us, "last": fired}
