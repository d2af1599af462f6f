"""What the orchestrator decided, on what command, and what it could have decided instead. Pure: every decision is derived again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from crewlog.events.store import Recorded
from crewlog.orchestrator.advance import step_of
from crewlog.orchestrator.commands import ApprovalAsked, AttemptEnded, Command, DecideApproval, ReleaseRun, SubmitRun, TaskEnded
from crewlog.orchestrator.critic import rubric_of
from crewlog.orchestrator.decide import REVISIONS_MAX
from crewlog.orchestrator.event_text import describe
from crewlog.orchestrator.moments import plain
from crewlog.orchestrator.rederive import Decided, decisions
from crewlog.orchestrator.run import RunState
from crewlog.orchestrator.run_history import RunHistory
from crewlog.schemas.codec import type_name
from crewlog.schemas.divergence import Divergence
from crewlog.schemas.retry import RetryPolicy
from crewlog.schemas.run_events import TaskHeld, TaskResumed, TaskRetryScheduled, TaskReviewed
from crewlog.schemas.usage import format_usd
from crewlog.schemas.values import Shortfall


def decision_of(history: RunHistory, recorded: Recorded) -> dict[str, Any] | None:
    """Describe the decision that an event of the orchestrator is part of; None when nothing in this run led to it.

    Returns:
        The command, everything that was decided together, and the alternatives with what spoke for and against each.
        Of a log that does not follow from itself, `problem` says where that begins.
    """
    task_events = [r for stream in history.task_streams for r in history.streams[stream]]
    run_events = history.run_events
    for decided in decisions(run_events, task_events):
        if isinstance(decided, Divergence):
            return {"command": None, "decided": [], "alternatives": [], "problem": str(decided)}
        behind = run_events[decided.at]
        together = run_events[decided.at : decided.at + len(decided.decision.events)]
        writes_it = any(w.stream == recorded.stream and any(type_name(e) == recorded.type for e in w.events) for w in decided.decision.writes)
        if recorded in together or (writes_it and behind.occurred_us == recorded.occurred_us):
            return {
                "command": _command(decided.command),
                "decided": [f"{type_name(event)} {describe(event)}".rstrip() for event in decided.decision.events],
                "alternatives": list(_alternatives(decided)),
                "problem": "",
            }
    return None


def _command(command: Command) -> dict[str, Any]:
    name = type(command).__name__
    if isinstance(command, SubmitRun):
        task = command.task
        return {"command": name, "source": command.source, "type": task.type, "tenant": task.tenant, "user": task.user, "terms": plain(command.terms)}
    fields = {field: plain(getattr(command, field)) for field in command.__struct_fields__ if field != "event"}
    if isinstance(command, TaskEnded | AttemptEnded | ApprovalAsked):
        fields["event"] = f"{type_name(command.event)} {describe(command.event)}".rstrip()
    return {"command": name, **fields}


def _alternatives(decided: Decided) -> Iterator[dict[str, Any]]:
    match decided.command:
        case AttemptEnded():
            yield from _retry(decided, decided.command)
        case TaskEnded():
            for event in decided.decision.events:
                if isinstance(event, TaskReviewed):
                    yield from _verdicts(decided.before, event)
        case DecideApproval():
            resumed = next((e for e in decided.decision.events if isinstance(e, TaskResumed)), None)
            permit = decided.command.decision in ("approved", "denied")
            for choice in ("approved", "denied", "expired") if permit else ("happened", "did_not_happen", "give_up", "expired"):
                why = "a person decides; silence until it expires " + ("is no" if permit else "leaves it unknown")
                yield _choice(choice, taken=resumed is not None and resumed.decision == choice, why=why)
        case ReleaseRun():
            limit, used = decided.command.limit_micro_usd, decided.command.used_micro_usd
            yield _choice(
                "released", taken=True, why=f"{decided.command.scope}: {format_usd(used)} used of {'no limit' if limit is None else format_usd(limit)}"
            )
        case _:
            return


def _choice(choice: str, *, taken: bool, why: str) -> dict[str, Any]:
    return {"choice": choice, "taken": taken, "why": why}


def _retry(decided: Decided, command: AttemptEnded) -> Iterator[dict[str, Any]]:
    """Say what the retry policy made of a failed attempt."""
    failed, events = command.event, decided.decision.events
    task = next((t for t in decided.before.tasks.values() if t.task_id == command.task_id), None)
    policy = RetryPolicy(attempts_max=decided.before.brief.attempts_max)
    counted = failed.attempt - (task.holds if task is not None else 0)
    retry = next((e for e in events if isinstance(e, TaskRetryScheduled)), None)
    held = any(isinstance(e, TaskHeld) for e in events)
    worth = "worth another try" if failed.error.retryable else "the same way again"
    yield _choice("retry", taken=retry is not None, why=f"{failed.error.code} would end {worth}; attempt {counted} of at most {policy.attempts_max}")
    short = failed.shortfall if isinstance(failed.shortfall, Shortfall) else None
    why = f"{short.scope} has no room for {format_usd(short.needed_micro_usd)}" if short is not None else "no budget stood in the way"
    yield _choice("hold", taken=held, why=why)
    fails = retry is None and not held
    why = (
        "no attempt is left, it is not worth one, or it would come too late"
        if fails
        else "the task goes on: with the next attempt, or once its budget is raised"
    )
    yield _choice("fail", taken=fails, why=why)


def _verdicts(before: RunState, event: TaskReviewed) -> Iterator[dict[str, Any]]:
    """Say what spoke for and against each verdict of the critic."""
    task = before.tasks.get(event.key)
    revised = task.revised if task is not None else 0
    broken = "; ".join(f"{issue.rule}: {issue.message}" for issue in event.issues)
    rubric = rubric_of(step_of(before, task)) if task is not None else ""
    yield _choice("accepted", taken=event.verdict == "accepted", why=broken or "every rule is kept")
    yield _choice("judging", taken=event.verdict == "judging", why="a model judges by the rubric" if rubric else "there is no rubric")
    yield _choice(
        "revise", taken=event.verdict == "revise", why=f"sent back {revised} times of at most {REVISIONS_MAX}" if broken else "there is nothing to mend"
    )
    flagged = "accepted although issues remain: sent back too often, or the same work came again"
    yield _choice(
        "flagged", taken=event.verdict == "flagged", why=flagged if event.verdict == "flagged" else "it is for work whose issues cannot be mended any more"
    )
    failed = msgspec.json.encode(event.error).decode() if event.error is not None else "the task has an outcome"
    yield _choice("failed", taken=event.verdict == "failed", why=failed)
