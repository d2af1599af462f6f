"""Decide what follows when people pause, resume, quarantine and release: plain functions on a draft, like the rest of `decide`.

What is in force stands in the stream of controls; a run takes note of what concerns it before anything else is decided about it
(`due_interventions`), so that its own stream holds all that its decisions depend on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, assert_never

import msgspec

from crewlog.events.controls import Control, Controls, Measure, is_kind, kind_scope, run_scope, tenant_scope
from crewlog.orchestrator.advance import advance, end_held
from crewlog.orchestrator.commands import HandedBack, LiftQuarantine, PauseRun, QuarantineRun, ResumeRun
from crewlog.orchestrator.draft import ORCHESTRATOR, Draft
from crewlog.orchestrator.run import RunState, active_tasks, current_task, starving
from crewlog.orchestrator.run_controls import is_paused
from crewlog.schemas.run_events import QuarantineLifted, RunPaused, RunQuarantined, RunResumed, TaskReturned

NOT_NEEDED: Final = "nothing of the run is for this kind any more"

Intervention = PauseRun | ResumeRun | QuarantineRun | LiftQuarantine


def in_force(state: RunState, controls: Controls) -> tuple[list[Control], list[Control]]:
    """Return the pauses and the quarantines that concern a run, oldest first: its own, its tenant's, those of kinds it needs or had."""
    own = [run_scope(state.run_id), tenant_scope(state.brief.tenant)]
    pauses = _of(controls.pauses, [*own, *map(kind_scope, needed_kinds(state))])
    return pauses, [c for c in _of(controls.quarantines, [*own, *map(kind_scope, all_kinds(state))]) if c.number not in state.lifted]


def at_submission(tenant: str, controls: Controls) -> tuple[tuple[Control, ...], tuple[Control, ...]]:
    """Return the pauses and the quarantines of a tenant: under these a run begins. Those of kinds it takes note of when it has a plan."""
    return tuple(_of(controls.pauses, [tenant_scope(tenant)])), tuple(_of(controls.quarantines, [tenant_scope(tenant)]))


def needed_kinds(state: RunState) -> set[str]:
    """Return the agent kinds that have something to do for a run, or will have under its plan."""
    return {task.kind for task in active_tasks(state)} | {step.type for step in state.steps if step.key not in state.tasks}


def all_kinds(state: RunState) -> set[str]:
    """Return the agent kinds that a run has or had tasks for, or will have under its plan."""
    return {task.kind for task in state.tasks.values()} | {step.type for step in state.steps}


def due_interventions(state: RunState, controls: Controls) -> Iterator[Intervention]:
    """Yield what a run has to take note of; nothing when it has, or is over."""
    if state.status != "open" or not (controls.pauses or controls.quarantines or state.pauses or state.quarantines):
        return
    pauses, quarantines = in_force(state, controls)
    # what begins comes first: an end must not slip out between two quarantines of the same scope
    noted = {p.scope for p in state.pauses}
    # no clock of a run can stand still since before it began: a kind may have been paused long ago
    began = ((control, max(control.since_us, state.submitted_us)) for control in pauses if control.scope not in noted)
    yield from (PauseRun(msgspec.structs.replace(control, since_us=since_us)) for control, since_us in began)
    numbers = {q.control for q in state.quarantines}
    yield from (QuarantineRun(control) for control in quarantines if control.number not in numbers)
    wanted, held = {c.scope for c in pauses}, {c.number for c in quarantines}
    for paused in state.pauses:
        if paused.scope not in wanted:
            yield ResumeRun(paused.scope, *_who_ended("pause", paused.scope, paused.control, controls))
    for kept in state.quarantines:
        if kept.control not in held:
            yield LiftQuarantine(kept.scope, kept.control, *_who_ended("quarantine", kept.scope, kept.control, controls))


def intervene(draft: Draft, command: Intervention | HandedBack) -> None:
    """Decide one command of this module."""
    match command:
        case PauseRun():
            _pause(draft, command.control)
        case ResumeRun():
            _resume(draft, command)
        case QuarantineRun():
            _quarantine(draft, command.control)
        case LiftQuarantine():
            _lift(draft, command)
        case HandedBack():
            _returned(draft, command)
        case _:
            assert_never(command)


def note_at_submission(draft: Draft, pauses: Iterable[Control], quarantines: Iterable[Control]) -> None:
    """Let a run that is being submitted begin under what is in force: its clocks stand still from its first moment."""
    for control in pauses:
        _pause(draft, msgspec.structs.replace(control, since_us=draft.now_us))
    for control in quarantines:
        _quarantine(draft, control)


def _pause(draft: Draft, control: Control) -> None:
    state = draft.state
    if state.status == "open" and all(p.scope != control.scope for p in state.pauses):
        draft.emit(RunPaused(control.scope, control.number, control.actor, control.reason, control.since_us))


def _resume(draft: Draft, command: ResumeRun) -> None:
    """Let go of one pause; behind the last one of the whole run, everything that waited goes on."""
    state = draft.state
    if state.status != "open" or all(p.scope != command.scope for p in state.pauses):
        return
    is_last = len(state.pauses) == 1 and state.hold is None and not any(task.pending for task in state.tasks.values())
    run_deadline_us = state.deadline_us + draft.now_us - state.paused_since_us if is_last else 0
    draft.emit(RunResumed(command.scope, command.actor, command.reason, draft.now_us, run_deadline_us))
    _go_on(draft)


def _quarantine(draft: Draft, control: Control) -> None:
    state = draft.state
    if state.status == "open" and all(q.control != control.number for q in state.quarantines):
        draft.emit(RunQuarantined(control.scope, control.number, control.actor, control.reason))


def _lift(draft: Draft, command: LiftQuarantine) -> None:
    """Let go of one quarantine; behind the last one, an end that was kept back follows."""
    state = draft.state
    if state.status != "open" or all(q.control != command.control for q in state.quarantines):
        return
    draft.emit(QuarantineLifted(command.scope, command.control, command.actor, command.reason))
    if not draft.state.quarantines and draft.state.results_held is not None:
        end_held(draft, draft.state.results_held)


def _returned(draft: Draft, command: HandedBack) -> None:
    """Take a task back that a worker gave up between two steps."""
    task = current_task(draft.state, command.task_id)
    if task is None or task.phase != "dispatched" or command.event.number <= task.returned:
        return
    draft.emit(TaskReturned(task.task_id, task.key, task.attempt, command.event.scope, command.event.number))
    _go_on(draft)


def _go_on(draft: Draft) -> None:
    if is_paused(draft.state):
        return
    if not starving(draft.state):
        for task in list(draft.state.tasks.values()):
            if task.phase == "held":
                draft.dispatch_again(task, task.attempt + 1 if task.failed == task.attempt else task.attempt)
    advance(draft)


def _of(controls: Mapping[str, Control], scopes: Iterable[str]) -> list[Control]:
    if not controls:
        return []
    return sorted((controls[scope] for scope in set(scopes) if scope in controls), key=lambda control: control.number)


def _who_ended(measure: Measure, scope: str, number: int, controls: Controls) -> tuple[str, str]:
    ended = controls.ended.get((measure, scope))
    if ended is not None and ended.number > number:
        return ended.actor, ended.reason
    return ORCHESTRATOR, NOT_NEEDED if is_kind(scope) else ""
