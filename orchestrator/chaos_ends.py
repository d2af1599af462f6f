"""How a run of the chaos load must end, whatever was struck: completed, with the answer of all of its steps, each of which made every call of its script.

Nothing that a chaos run does may cost more than time: each strike is one that the crew promises to survive. An end that is missing is no business
of this module (`invariants`), nor is whether a call that is recorded as done was (`chaos_audit.Calls`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from crewlog.events.store import Recorded
from crewlog.orchestrator.chaos_agent import FINISHED
from crewlog.schemas.ids import Stream
from crewlog.schemas.run_events import RunCancelled, RunCompleted, RunFailed
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import TaskOpened, ToolFinished

MADE: Final = frozenset({"ok", "unknown"})
"""What became of a call that was made. Unknown is what a person said of one that nobody may repeat, see `invariants.run_violations`."""


def end_violations(task: AgentTask, events: Iterable[Recorded]) -> Iterator[str]:
    """Hold the end of a run to what was handed in.

    Args:
        task: what was handed in: a run with a plan whose steps are scripts, see `chaos_agent`.
        events: all of the run.
    """
    assert task.plan is not None
    scripts = {step.key: Counter(step.objective.replace("+", " ").split()) for step in task.plan.steps}
    keys: dict[Stream, str] = {}
    made: defaultdict[Stream, Counter[str]] = defaultdict(Counter)
    for recorded in events:
        match event := recorded.event():
            case TaskOpened():
                keys[recorded.stream] = event.key
            case ToolFinished() if event.status in MADE:
                made[recorded.stream][event.tool] += 1
            case RunCompleted() if event.answer.inline != (expected := _answer(scripts)):
                flags = f", flagged {', '.join(event.flags)}" if event.flags else ""
                yield f"run {task.run_id} completed with the answer {event.answer.inline!r}{flags}, not with {expected!r}"
            case RunFailed():
                yield f"run {task.run_id} ended as RunFailed, not as RunCompleted: {event.error.code}: {event.error.message}"
            case RunCancelled():
                yield f"run {task.run_id} ended as RunCancelled, not as RunCompleted: {event.reason}, by {event.actor}"
            case _:
                continue
    for stream, key in keys.items():
        if missing := scripts[key] - made[stream]:
            yield f"step {key} of run {task.run_id} ({stream}) did not make all calls of its script, but for {', '.join(sorted(missing.elements()))}"


def _answer(keys: Iterable[str]) -> str:
    """Return what an orchestrator collects from steps that all say the same, see `answer.collected`."""
    sections = [f"## {key}\n\n{FINISHED}" for key in keys]
    return "\n\n".join(sections) if len(sections) > 1 else FINISHED
