"""What came of a run, as far as it can be expected again: decisions, tools in their order, results; and how it differs from what is expected. Pure.

What is another one each time is normalised: ids, times, folders, hashes of files that hold one of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from crewlog.orchestrator.folds import folded
from crewlog.orchestrator.run import TaskState
from crewlog.orchestrator.run_history import RunHistory
from crewlog.orchestrator.run_tree import TaskNode, build_tree
from crewlog.schemas.payload import Payload
from crewlog.schemas.values import Outcome

if TYPE_CHECKING:
    from crewlog.orchestrator.golden import Expectation

SHOWN_CHARS_MAX: Final = 300
_VARIABLE: Final = (
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<hash>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"\bin \d+(\.\d+)? ?(ms|s|seconds)\b"), "in <time>"),
    (re.compile(r"(?<![\w.])(/[\w.@+-]+)*/(tmp|workspaces|T)/[\w./@+-]+"), "<path>"),
)
"""Patterns of what is another one in each run -> what stands in its place."""


class Observed(msgspec.Struct, frozen=True):
    """What came of a run."""

    status: str
    plan: tuple[str, ...]
    tasks: dict[str, dict[str, Any]]
    answer: str
    artifacts: tuple[str, ...]
    flags: tuple[str, ...]
    cost_micro_usd: int
    steps: int
    seconds: float


class Difference(msgspec.Struct, frozen=True):
    """Something that is not as expected. `where` is the path of the field."""

    where: str
    expected: Any
    got: Any

    def __str__(self) -> str:
        return f"{self.where}: expected {_shown(self.expected)}, got {_shown(self.got)}"


def normalised(value: Any) -> Any:
    """Return a value of JSON with everything variable in its texts replaced."""
    if isinstance(value, str):
        for pattern, stands in _VARIABLE:
            value = pattern.sub(stands, value)
        return value
    if isinstance(value, dict):
        return {normalised(name): normalised(item) for name, item in value.items()}
    return [normalised(item) for item in value] if isinstance(value, list | tuple) else value


def observe(history: RunHistory) -> Observed:
    """Say what came of a run, or of the part of it that there is."""
    state, tree = folded(history.run_events), build_tree(history)
    steps = (f"{s.key}: {s.type}" + (f" after {'+'.join(s.depends_on)}" if s.depends_on else "") for s in state.steps)
    outcomes = {str(task.task_id): task for task in state.tasks.values()}
    answer = getattr(state.end, "answer", None) or getattr(state.end, "partial", None)
    took_us = (tree.finished_us or history.events[-1].occurred_us) - tree.submitted_us
    return Observed(
        status=state.status,
        plan=tuple(steps),
        tasks={_name(node): _task(node, outcomes.get(node.task_id)) for node in tree.tasks},
        answer=normalised(history.read(answer)) if isinstance(answer, Payload) else "",
        artifacts=tuple(sorted(ref.name for ref in getattr(state.end, "artifacts", ()))),
        flags=tuple(getattr(state.end, "flags", ())),
        cost_micro_usd=tree.cost_micro_usd,
        steps=sum(call.what == "model" and call.status == "ok" for node in tree.tasks for call in node.calls()),
        seconds=took_us / 1e6,
    )


def _name(node: TaskNode) -> str:
    return f"{node.key}/{node.revision}" if node.revision else node.key


def _task(node: TaskNode, state: TaskState | None) -> dict[str, Any]:
    outcome: Outcome | None = node.outcome
    seen: dict[str, Any] = {
        "kind": node.kind,
        "verdict": node.verdict,
        "tools": [call.name + ("" if call.status == "ok" else f" ({call.status})") for call in node.calls() if call.what == "tool"],
    }
    if state is not None and state.issues:
        seen["issues"] = [issue.rule for issue in state.issues]
    if outcome is not None:
        found = {
            "summary": normalised(outcome.summary),
            "output": normalised(msgspec.to_builtins(outcome.output)),
            "citations": [f"{citation.source}:{citation.line}" for citation in outcome.citations],
            "artifacts": sorted({ref.name for ref in outcome.artifacts}),
            "flags": list(outcome.flags),
        }
        seen |= {name: value for name, value in found.items() if value not in (None, [], "")}
    if state is not None and state.error is not None:
        seen["error"] = state.error.code
    return seen


def differences(expected: Expectation, seen: Observed, *, is_exact: bool) -> list[Difference]:
    """List what is not as expected.

    Args:
        is_exact: also compare what a model says in its own words, and what it calls tools with; not for models that answer anew.
    """
    found: list[Difference] = []
    for name in ("status", "plan", "artifacts", "flags"):
        wanted, got = getattr(expected, name), getattr(seen, name)
        if wanted is not None:
            found += compare_values(name, _plain(wanted), _plain(got))
    if expected.tasks is not None:
        found += _tasks(_plain(expected.tasks), seen.tasks, is_exact=is_exact)
    if expected.answer is not None and is_exact:
        found += compare_values("answer", expected.answer, seen.answer)
    limits = (("max_cost_micro_usd", seen.cost_micro_usd), ("max_steps", seen.steps), ("max_seconds", round(seen.seconds, 3)))
    for name, got in limits:
        most = getattr(expected, name)
        if most is not None and got > most:
            found.append(Difference(name, f"at most {most}", got))
    return found


IN_WORDS: Final = ("summary", "citations")
"""Fields of a task that a model says in its own words."""


def _tasks(expected: dict[str, Any], seen: dict[str, dict[str, Any]], *, is_exact: bool) -> Iterator[Difference]:
    yield from compare_values("tasks", sorted(expected), sorted(seen))
    for key, wanted in expected.items():
        for name, value in wanted.items():
            if key in seen and (is_exact or name not in IN_WORDS):
                yield from compare_values(f"tasks.{key}.{name}", value, _plain(seen[key].get(name)))


def compare_values(where: str, expected: Any, got: Any) -> Iterator[Difference]:
    """Find the places in which two values of JSON differ."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for name in {**expected, **got}:
            yield from compare_values(f"{where}.{name}", expected.get(name), got.get(name))
    elif expected != got:
        yield Difference(where, expected, got)


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN_CHARS_MAX else f"{text[:SHOWN_CHARS_MAX]}…"
