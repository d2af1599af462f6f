"""The end of a run: its answer, the files and citations behind it, and the flags a reader must know before relying on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import msgspec

from crewlog.orchestrator.dispatch import outcomes_of
from crewlog.orchestrator.repeats import NO_PROGRESS
from crewlog.orchestrator.run import SYNTHESIS, RunState, blocked_steps
from crewlog.schemas.values import ArtifactRef, Citation, ContextItem, Outcome

LIST_BYTES_MAX: Final = 64 * 1024
"""Artifacts, and citations, listed in the event that ends a run; the rest stays with the tasks."""

SIMULATED: Final = "simulated"
UNTRUSTED: Final = "untrusted"

_T = TypeVar("_T")


def collected(state: RunState) -> str:
    """Put the outcomes of all finished steps side by side, in the plan's order; a single one stands alone."""
    items = finished_items(state)
    if len(items) == 1:
        return items[0].outcome.summary
    return "\n\n".join(f"## {item.key}\n\n{item.outcome.summary}" for item in items)


def finished_items(state: RunState) -> list[ContextItem]:
    """Return the outcomes of all finished steps."""
    return outcomes_of(state, [step.key for step in state.steps])


def final_outcome(state: RunState) -> Outcome | None:
    """Return the outcome of the synthesis, if there is one that counts."""
    task = state.tasks.get(SYNTHESIS)
    return task.outcome if task is not None and task.is_finished else None


def _outcomes(state: RunState) -> list[tuple[str, Outcome]]:
    outcomes = [(item.key, item.outcome) for item in finished_items(state)]
    final = final_outcome(state)
    return [*outcomes, (SYNTHESIS, final)] if final is not None else outcomes


def artifacts(state: RunState) -> tuple[ArtifactRef, ...]:
    """Return the files of all finished tasks under unique names: a name that is taken gets its step's key in front."""
    named: dict[str, ArtifactRef] = {}
    for key, outcome in _outcomes(state):
        for ref in outcome.artifacts:
            taken = named.get(ref.name)
            if taken is None:
                named[ref.name] = ref
            elif taken.hash != ref.hash:
                name = f"{key.lstrip('@')}/{ref.name}"
                named[name] = replace(ref, name=name)
    return _bounded(named.values())


def citations(state: RunState) -> tuple[Citation, ...]:
    """Return the citations of all finished tasks, each once."""
    return _bounded(dict.fromkeys(citation for _, outcome in _outcomes(state) for citation in outcome.citations))


def _bounded(items: Iterable[_T]) -> tuple[_T, ...]:
    kept: list[_T] = []
    size = 0
    for item in items:
        size += len(msgspec.json.encode(item))
        if size > LIST_BYTES_MAX:
            break
        kept.append(item)
    return tuple(kept)


def flags(state: RunState, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """Return what to know about the answer: `simulated` and `untrusted` for all of it, the rest with the step it is about.

    A run of a single task shows the flags of its task as they are.
    """
    return tuple(dict.fromkeys((*_run_flags(state), *_step_flags(state), *extra)))


def _run_flags(state: RunState) -> Iterator[str]:
    outcomes = [task.outcome for task in state.tasks.values() if task.outcome is not None]
    if any(SIMULATED in outcome.flags for outcome in outcomes):
        yield SIMULATED
    if any(outcome.trust == "untrusted" for outcome in outcomes):
        yield UNTRUSTED
    if state.plans > 1:
        yield "replanned"


def _step_flags(state: RunState) -> Iterator[str]:
    for key, outcome in _outcomes(state):
        for flag in outcome.flags:
            if flag != SIMULATED:
                yield flag if state.origin == "single" else f"{flag}:{key}"
    blocked = blocked_steps(state)
    for step in state.steps:
        task = state.tasks.get(step.key)
        if step.key in blocked:
            yield f"skipped:{step.key}"
        elif task is not None and task.phase == "failed":
            yield f"failed:{step.key}"
            if step.key in state.repeated:
                yield f"{NO_PROGRESS}:{step.key}"
