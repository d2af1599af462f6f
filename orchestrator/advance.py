"""What a run does next once something has changed: dispatch what is ready, plan again, have the answer written, end.

How a run ends when steps failed: everything that does not depend on a failed step is finished first. Then, if the planner made the
plan, it may plan again from there, at most `REPLANS_MAX` times. After that the run completes with flags (`failed:<step>`,
`skipped:<step>`) when at least one end result is there, a step that no other step depends on; otherwise it fails, and its `partial`
holds every outcome that was finished. When a budget has no room for a task's next model call, nothing more is started: tasks under way
finish, then the run is held with what it has, until the budget is raised (`ReleaseRun`) or the time for that is over. Of a paused run
nothing is decided at all but what became of tasks under way. The end of a run in quarantine is kept back (`ResultsHeld`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from crewlog.orchestrator import answer, critic
from crewlog.orchestrator.dispatch import earlier_item, kinds_items, open_points_item, outcomes_of, planner_step, review_item, rubric_item
from crewlog.orchestrator.draft import ORCHESTRATOR, Draft
from crewlog.orchestrator.planning import offers
from crewlog.orchestrator.rollback import rollback_flags, rollback_text, wants_more
from crewlog.orchestrator.run import (
    PLAN,
    REPLAN_PREFIX,
    ROUTER,
    SYNTHESIS,
    RunState,
    TaskState,
    active_tasks,
    critic_key,
    is_finished,
    ready_steps,
    starving,
    unjudged,
    unrevised,
)
from crewlog.orchestrator.run_controls import is_at_rest
from crewlog.schemas.ids import TaskId
from crewlog.schemas.plan import read_constraints
from crewlog.schemas.run_events import ResultsHeld, RunCompleted, RunFailed, RunHeld, Step
from crewlog.schemas.values import ContextItem, Failure, Outcome

REPLANS_MAX: Final = 2


def advance(draft: Draft) -> None:
    """Decide everything that the state allows, until the run waits for something or is over."""
    if draft.state.status != "open" or is_at_rest(draft.state):
        return
    if draft.state.rollback is not None:
        _take_back_next(draft)
        return
    if held := starving(draft.state):
        _hold(draft, held[0])
        return
    for task in unrevised(draft.state):
        _open_revision(draft, task)
    for task in unjudged(draft.state):
        _ask_critic(draft, task)
    for step in ready_steps(draft.state):
        draft.open_task(step, outcomes_of(draft.state, step.depends_on))
    state = draft.state
    if next(active_tasks(state), None) is not None:
        return
    if not state.steps:
        _make_plan(draft)
        return
    missing = [step.key for step in state.steps if not is_finished(state, step.key)]
    if missing and _may_replan(state, missing):
        ask_planner(draft, f"{REPLAN_PREFIX}{_replans(state) + 1}")
    elif missing and not _has_end_result(state):
        fail(draft, _steps_failure(state, missing))
    elif _wants_synthesis(state):
        items = [*answer.finished_items(state), *open_points_item(state)]
        draft.open_task(planner_step(state, SYNTHESIS), items)
    else:
        _complete(draft)


def _take_back_next(draft: Draft) -> None:
    """Dispatch the next compensation once the one before it has ended, well or not: what could not be taken back keeps nothing else from it."""
    state = draft.state
    if next(active_tasks(state), None) is not None:
        return
    rollback = state.rollback
    assert rollback is not None
    begun = len(state.tasks)
    if begun < len(rollback.orders):
        draft.open_task(state.steps[begun], (), undo=rollback.orders[begun])
    elif not wants_more(state):
        _complete(draft)


def ask_planner(draft: Draft, key: str, extra: tuple[ContextItem, ...] = ()) -> None:
    """Open a task that makes a plan: it sees the kinds there are, what is finished, and what failed."""
    items = [*answer.finished_items(draft.state), *open_points_item(draft.state), *extra, *kinds_items(draft.kinds)]
    draft.open_task(planner_step(draft.state, key), items, offered=tuple(offers(draft.kinds)))


def fail(draft: Draft, error: Failure, *, ended: Collection[TaskId] = ()) -> None:
    """End the run without an answer; what was finished goes into `partial`, tasks under way are closed unless they have `ended`."""
    draft.close_tasks(f"the run failed: {error.message}", ORCHESTRATOR, ended=ended)
    if draft.state.quarantines:
        draft.emit(ResultsHeld(error))
        return
    state = draft.state
    partial = draft.pack(answer.collected(state))
    draft.emit(RunFailed(error, partial, answer.artifacts(state), state.usage, state.cost_micro_usd))


def _hold(draft: Draft, task: TaskState) -> None:
    """Hold the run once nothing of it is with an agent any more."""
    state, short = draft.state, task.shortfall
    if short is None or state.hold is not None or any(t.phase == "dispatched" for t in state.tasks.values()):
        return
    draft.emit(
        RunHeld(
            reason="budget",
            scope=short.scope,
            limit_micro_usd=short.limit_micro_usd,
            used_micro_usd=short.used_micro_usd,
            needed_micro_usd=short.needed_micro_usd,
            partial=draft.pack(answer.collected(state)),
            artifacts=answer.artifacts(state),
            since_us=draft.now_us,
            expires_us=draft.now_us + state.hold_s * 1_000_000,
        )
    )


def _open_revision(draft: Draft, task: TaskState) -> None:
    """Give work that the critic sent back to a new task, with the issues."""
    state = draft.state
    step = step_of(state, task)
    if is_plan(task.key):
        ask_planner(draft, task.key, (*earlier_item(task, step), review_item(task.issues)))
        return
    keys = [s.key for s in state.steps] if task.key == SYNTHESIS else step.depends_on
    draft.open_task(step, [*outcomes_of(state, keys), *earlier_item(task, step), review_item(task.issues)])


def _ask_critic(draft: Draft, task: TaskState) -> None:
    """Have a model judge by the step's rubric what kept every rule."""
    step = step_of(draft.state, task)
    asked = planner_step(draft.state, critic_key(draft.state, task))
    asked = msgspec.structs.replace(asked, objective=f"Judge the outcome of {task.key!r} by the rubric. Its objective was: {step.objective}")
    draft.open_task(asked, [*earlier_item(task, step), rubric_item(critic.rubric_of(step))])


def is_plan(key: str) -> bool:
    """Say whether a task makes a plan."""
    return key == PLAN or key.startswith(REPLAN_PREFIX)


def step_of(state: RunState, task: TaskState) -> Step:
    """Return the plan's step that a task carries out, or what stands for one of the orchestrator's own."""
    return next((step for step in state.steps if step.key == task.key), None) or planner_step(state, task.key)


def _make_plan(draft: Draft) -> None:
    state = draft.state
    task = state.tasks.get(PLAN)
    if task is None and state.brief.routing == "router" and ROUTER not in state.tasks:
        draft.open_task(planner_step(state, ROUTER), kinds_items(draft.kinds), offered=tuple(offers(draft.kinds)))
    elif task is None:
        ask_planner(draft, PLAN)
    else:
        fail(draft, task.error or Failure("internal", f"task {task.task_id} made no plan"))


def end_held(draft: Draft, held: ResultsHeld) -> None:
    """Let the end follow that a quarantine kept back."""
    if isinstance(held.error, Failure):
        fail(draft, held.error)
    else:
        _complete(draft)


def _complete(draft: Draft) -> None:
    state = draft.state
    if state.quarantines:
        draft.emit(ResultsHeld())
        return
    if state.rollback is not None:
        draft.emit(RunCompleted(draft.pack(rollback_text(state)), flags=rollback_flags(state), usage=state.usage, cost_micro_usd=state.cost_micro_usd))
        return
    final = answer.final_outcome(state)
    text = answer.collected(state) if final is None else final.summary
    artifacts, citations = answer.artifacts(state), answer.citations(state)
    extra: list[str] = []
    if final is None and state.origin != "single":
        if _is_synthesised(state):
            extra.append("synthesis_failed")
        if bytes(state.brief.constraints) != b"{}":
            rules = read_constraints(state.brief.constraints)
            if critic.review(Outcome(text, artifacts=artifacts, citations=citations), rules):
                extra.append("review_failed")
    draft.emit(RunCompleted(draft.pack(text), artifacts, citations, answer.flags(state, extra), state.usage, state.cost_micro_usd))


def _replans(state: RunState) -> int:
    return sum(key.startswith(REPLAN_PREFIX) for key in state.tasks)


def _may_replan(state: RunState, missing: list[str]) -> bool:
    if state.origin not in ("planner", "router") or _replans(state) >= REPLANS_MAX:
        return False
    failed = {key for key in missing if key in state.tasks}
    if failed and failed <= state.repeated:  # a new plan led to the same failures again
        return False
    return all(task.phase != "failed" for key, task in state.tasks.items() if key.startswith(REPLAN_PREFIX))


def _has_end_result(state: RunState) -> bool:
    needed = {key for step in state.steps for key in step.depends_on}
    return any(step.key not in needed and is_finished(state, step.key) for step in state.steps)


def _is_synthesised(state: RunState) -> bool:
    return (state.brief.synthesis or ("planner" if state.origin == "planner" else "collect")) == "planner"


def _wants_synthesis(state: RunState) -> bool:
    return _is_synthesised(state) and SYNTHESIS not in state.tasks


def _steps_failure(state: RunState, missing: list[str]) -> Failure:
    failed = [(key, error) for key in missing if (task := state.tasks.get(key)) is not None and (error := task.error) is not None]
    done = f"{len(state.steps) - len(missing)} of {len(state.steps)} steps are finished"
    if not failed:
        return Failure("internal", f"steps {', '.join(missing)} cannot run; {done}")
    key, error = failed[0]
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    if key in state.repeated:
        more += " in the same way as before the plan was changed"
    return Failure(error.code, error.message if state.origin == "single" else f"step {key!r} failed{more}: {error.message}; {done}")
