"""The run machine's state: a pure fold of the run stream, and the questions asked about it.

    state = initial_state();  for event in run_stream: state = evolve(state, event)

    a step:   (waits for dependencies) ──TaskDispatched──▶ dispatched ──TaskReviewed──▶ accepted | flagged | failed | revise
                                                           │   ▲  │ ▲  │ ▲                                      │
                                        TaskRetryScheduled ▼   │  ▼ │  ▼ │ RunReleased                          ▼
                                                         retrying  suspended  held                dispatched as a new task

Folding this one stream rebuilds the run; nothing here waits, reads a clock or knows a store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from crewlog.events.store import OCCURRED_US_END
from crewlog.orchestrator.brief import NIL, NO_BRIEF, Brief, changed_brief, decode_brief
from crewlog.orchestrator.critic import rubric_of
from crewlog.orchestrator.repeats import work_hash
from crewlog.orchestrator.run_controls import evolve_controls, is_at_rest
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.effects import Rollback, RollbackPage
from crewlog.schemas.ids import ApprovalId, Hash, RunId, TaskId
from crewlog.schemas.payload import content_hash
from crewlog.schemas.run_events import (
    QuarantineLifted,
    ResultsHeld,
    RollbackContinued,
    RunCancelled,
    RunCompleted,
    RunEvent,
    RunFailed,
    RunForked,
    RunHeld,
    RunPaused,
    RunPlanned,
    RunQuarantined,
    RunReleased,
    RunResumed,
    RunSubmitted,
    Step,
    TaskDispatched,
    TaskHeld,
    TaskResumed,
    TaskRetryScheduled,
    TaskReturned,
    TaskReviewed,
    TaskSuspended,
)
from crewlog.schemas.task_events import ApprovalDecision
from crewlog.schemas.undo_steps import undo_steps
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Failure, Issue, Outcome, Shortfall

PLAN: Final = "@plan"
SYNTHESIS: Final = "@synthesis"
REPLAN_PREFIX: Final = "@replan-"
ROUTER: Final = "@router"
CRITIC_PREFIX: Final = "@critic-"
CRITIC_KEY_CHARS_MAX: Final = 48
"""Of the judged step's key in the key of its critic: keys have a limit."""

Phase = Literal["dispatched", "retrying", "suspended", "held", "judging", "accepted", "flagged", "revise", "failed"]
Status = Literal["new", "open", "completed", "failed", "cancelled"]
Origin = Literal["given", "planner", "single", "router", "rollback"]

WHOLE_GOAL: Final = frozenset({"single", "router"})
"""Whose one step has the goal as it was submitted."""
ACTIVE: Final = frozenset({"dispatched", "retrying", "suspended", "held"})
FINISHED: Final = frozenset({"accepted", "flagged"})


class PendingApproval(msgspec.Struct, frozen=True):
    """A question to a person that nobody has answered yet."""

    call_id: str
    digest: Hash
    tool: str
    expires_us: int
    asks_outcome: bool = False
    """Whether the call happened is asked, not whether it may run."""


class DecidedApproval(msgspec.Struct, frozen=True):
    """An answer. The first one wins."""

    decision: ApprovalDecision
    actor: str


class TaskState(msgspec.Struct, frozen=True):
    """The current task of one step. A revision is a new task under the same key."""

    task_id: TaskId
    key: str
    kind: str
    revision: int
    attempt: int
    phase: Phase
    due_us: int
    """Deadline while dispatched, time of the next attempt while retrying, first expiry while suspended."""
    dispatches: int = 1
    """How often it was put on its queue."""
    holds: int = 0
    """Attempts that a budget ended: they do not count."""
    shortfall: Shortfall | None = None
    """The limit that has no room for its next model call, while it is held for that."""
    usage: Usage = Usage()
    """What it has used so far, known while it is held."""
    cost_micro_usd: int = 0
    failed: int = 0
    """The attempt that a budget ended, when that was dealt with: the next one is another."""
    returned: int = 0
    """How often a worker has given it back, as far as that was dealt with."""
    revised: int = 0
    """How often the critic has sent this step's work back since it was planned."""
    offered: tuple[str, ...] = ()
    pending: Mapping[ApprovalId, PendingApproval] = {}
    outcome: Outcome | None = None
    issues: tuple[Issue, ...] = ()
    error: Failure | None = None

    @property
    def is_active(self) -> bool:
        """True until it was reviewed: an agent, a queue, the clock, a person or a budget has it."""
        return self.phase in ACTIVE

    @property
    def is_finished(self) -> bool:
        """True when its outcome counts."""
        return self.phase in FINISHED


class RunState(msgspec.Struct, frozen=True):
    """Everything known about one run."""

    run_id: RunId = RunId(NIL)
    brief: Brief = NO_BRIEF
    status: Status = "new"
    submitted_us: int = 0
    deadline_us: int = 0
    paused_since_us: int = 0
    """Since when at least one question to a person is open; 0 when none is. The run's deadline stands still meanwhile."""
    limits: tuple[ScopeLimit, ...] = ()
    tree: TaskId = TaskId(NIL)
    """The task whose tree the run's tasks belong to."""
    hold_s: int = 0
    hold: RunHeld | None = None
    """Set while a budget holds the run: nothing of it is under way."""
    pauses: tuple[RunPaused, ...] = ()
    """What keeps anything new from starting, the oldest first; see `run_controls`."""
    stopped_since_us: int = 0
    """Since when all clocks stand still because of that; 0 when they run."""
    quarantines: tuple[RunQuarantined, ...] = ()
    lifted: frozenset[int] = frozenset()
    """Numbers of the quarantines that held once and do no more."""
    results_held: ResultsHeld | None = None
    """Set when all work is done and a quarantine keeps the run's end back."""
    rollback: Rollback | None = None
    """Set when the run takes back what another one did."""
    origin: Origin | None = None
    steps: tuple[Step, ...] = ()
    plans: int = 0
    """How many plans there were: the next one gets this revision."""
    tasks: Mapping[str, TaskState] = {}
    """Step key -> its current task; the orchestrator's own planner tasks have keys beginning with `@`."""
    keys: Mapping[TaskId, str] = {}
    """Every task ever dispatched -> its key."""
    revisions: Mapping[str, int] = {}
    """Step key -> revision of the next task that is opened for it."""
    approvals: Mapping[ApprovalId, DecidedApproval] = {}
    rejected: frozenset[Hash] = frozenset()
    """What came of work that was sent back or failed, see `repeats`."""
    repeated: frozenset[str] = frozenset()
    """Keys of steps that failed in the same way again after a new plan."""
    usage: Usage = Usage()
    cost_micro_usd: int = 0
    end: RunCompleted | RunFailed | RunCancelled | None = None


_ENDS: Final[Mapping[type[RunEvent], Status]] = {RunCompleted: "completed", RunFailed: "failed", RunCancelled: "cancelled"}


def initial_state() -> RunState:
    """Return the state of a run nobody submitted."""
    return RunState()


def evolve(state: RunState, event: RunEvent) -> RunState:  # noqa: C901  (one arm per event type)
    """Apply one fact."""
    match event:
        case RunSubmitted():
            return _submitted(state, event)
        case RunPlanned():
            return _planned(state, event)
        case TaskDispatched():
            return _dispatched(state, event)
        case TaskRetryScheduled():
            return _with_task(state, replace(state.tasks[event.key], phase="retrying", attempt=event.attempt, due_us=event.due_us, error=event.error))
        case TaskSuspended():
            return _suspended(state, event)
        case TaskResumed():
            return _resumed(state, event)
        case TaskReviewed():
            return _reviewed(state, event)
        case TaskHeld():
            held = replace(state.tasks[event.key], phase="held", shortfall=event.shortfall, error=event.error, usage=event.usage)
            return _with_task(state, replace(held, holds=held.holds + 1, failed=event.attempt, cost_micro_usd=event.cost_micro_usd, due_us=0))
        case RunHeld():
            return replace(state, hold=event, paused_since_us=state.paused_since_us or event.since_us)
        case RunReleased():
            tasks = {key: replace(task, shortfall=None) if task.shortfall else task for key, task in state.tasks.items()}
            return _settled(replace(state, hold=None, tasks=tasks, deadline_us=event.run_deadline_us or state.deadline_us))
        case RunPaused() | RunResumed() | RunQuarantined() | QuarantineLifted() | ResultsHeld() | TaskReturned():
            return _settled(evolve_controls(state, event))
        case RunCompleted() | RunFailed() | RunCancelled():
            return replace(state, status=_ENDS[type(event)], end=event)
        case RunForked():
            return _forked(state, event)
        case RollbackContinued():
            return _continued(state, event.page)
        case _:
            raise TypeError(f"{type(event).__name__} is not an event of a run stream")


def _submitted(state: RunState, event: RunSubmitted) -> RunState:
    brief = decode_brief(event.task)
    tree = event.tree or TaskId(brief.task_id)
    terms = replace(state, limits=event.limits, tree=tree, hold_s=event.hold_s, rollback=event.rollback)
    submitted_us = event.deadline_us - brief.timeout_seconds * 1_000_000
    return replace(terms, run_id=event.run_id, brief=brief, status="open", submitted_us=submitted_us, deadline_us=event.deadline_us)


def _forked(state: RunState, event: RunForked) -> RunState:
    """Go on with the plan and the work of another run: what was under way there is ready to be dispatched as tasks of this one."""
    brief = changed_brief(state.brief, event.changes)
    tasks = dict(state.tasks)
    for fork in event.tasks:
        before = tasks[fork.key]
        tasks[fork.key] = replace(
            TaskState(fork.task_id, fork.key, before.kind, before.revision, 1, "held", 0, dispatches=0), revised=before.revised, offered=before.offered
        )
    steps = state.steps
    if state.origin in WHOLE_GOAL and steps:
        steps = (replace(steps[0], objective=brief.objective, constraints=brief.constraints),)
    return RunState(
        run_id=event.run_id,
        brief=brief,
        status="open",
        submitted_us=event.deadline_us - brief.timeout_seconds * 1_000_000,
        deadline_us=event.deadline_us,
        limits=event.limits,
        tree=TaskId(brief.task_id),
        hold_s=event.hold_s,
        rollback=state.rollback,
        tasks=tasks,
        keys={**state.keys, **{fork.task_id: fork.key for fork in event.tasks}},
        steps=steps,
        origin=state.origin,
        plans=state.plans,
        revisions=state.revisions,
        approvals=state.approvals,
        rejected=state.rejected,
        repeated=state.repeated,
    )


def _continued(state: RunState, page: RollbackPage) -> RunState:
    before = state.rollback
    assert before is not None
    orders, kinds, left = (*before.orders, *page.orders), (*before.kinds, *page.kinds), (*before.left, *page.left)
    steps = (*state.steps, *undo_steps(page.orders, page.kinds, behind=len(before.orders)))
    return replace(state, rollback=replace(before, orders=orders, kinds=kinds, left=left, more=page.more), steps=steps)


def _planned(state: RunState, event: RunPlanned) -> RunState:
    # a later plan forgets the steps that did not succeed: under the same key they may be dispatched again
    tasks = {key: task for key, task in state.tasks.items() if key.startswith("@") or task.phase != "failed"}
    return replace(state, steps=event.steps, origin=event.origin, plans=state.plans + 1, tasks=tasks)


def _dispatched(state: RunState, event: TaskDispatched) -> RunState:
    before = state.tasks.get(event.key)
    if before is not None and before.task_id == event.task_id:
        again = replace(before, phase="dispatched", attempt=event.attempt, due_us=event.deadline_us, dispatches=before.dispatches + 1)
        return _with_task(state, again)
    task = TaskState(
        task_id=event.task_id,
        key=event.key,
        kind=event.kind,
        revision=event.revision,
        attempt=event.attempt,
        phase="dispatched",
        due_us=event.deadline_us,
        revised=before.revised + 1 if before is not None and before.phase == "revise" else 0,
        offered=event.offered,
    )
    return replace(
        state,
        tasks={**state.tasks, event.key: task},
        keys={**state.keys, event.task_id: event.key},
        revisions={**state.revisions, event.key: event.revision + 1},
    )


def _suspended(state: RunState, event: TaskSuspended) -> RunState:
    task = state.tasks[event.key]
    pending = {**task.pending, event.approval_id: PendingApproval(event.call_id, event.digest, event.tool, event.expires_us, event.question == "outcome")}
    task = replace(task, phase="suspended", pending=pending, due_us=min(p.expires_us for p in pending.values()))
    return replace(_with_task(state, task), paused_since_us=state.paused_since_us or event.since_us)


def _resumed(state: RunState, event: TaskResumed) -> RunState:
    task = state.tasks[event.key]
    pending = {key: value for key, value in task.pending.items() if key != event.approval_id}
    # with its last question answered it is ready to go on: it is dispatched at once, unless a budget holds everything
    phase: Phase = "suspended" if pending else "held"
    due_us = min((p.expires_us for p in pending.values()), default=0)
    return _settled(
        replace(
            _with_task(state, replace(task, phase=phase, pending=pending, due_us=due_us)),
            approvals={**state.approvals, event.approval_id: DecidedApproval(event.decision, event.actor)},
            deadline_us=event.run_deadline_us or state.deadline_us,
        )
    )


def _reviewed(state: RunState, event: TaskReviewed) -> RunState:
    task = replace(state.tasks[event.key], phase=event.verdict, outcome=event.outcome, issues=event.issues, error=event.error, due_us=0, pending={})
    state = _with_task(state, replace(task, shortfall=None))
    if event.verdict in ("revise", "failed"):
        state = _rejected(state, event)
    return _settled(replace(state, usage=state.usage + event.usage, cost_micro_usd=state.cost_micro_usd + event.cost_micro_usd))


def _settled(state: RunState) -> RunState:
    """Let the run's clock go on unless something still waits for a person."""
    return state if waits_for_person(state) else replace(state, paused_since_us=0)


def _rejected(state: RunState, event: TaskReviewed) -> RunState:
    step = next((step for step in state.steps if step.key == event.key), None)
    result = event.error if event.verdict == "failed" else event.outcome
    found = work_hash(step, result) if step is not None and result is not None else None
    if found is None:
        return state
    repeated = state.repeated | {event.key} if event.verdict == "failed" and found in state.rejected else state.repeated
    return replace(state, rejected=state.rejected | {found}, repeated=repeated)


def _with_task(state: RunState, task: TaskState) -> RunState:
    return replace(state, tasks={**state.tasks, task.key: task})


def current_task(state: RunState, task_id: TaskId) -> TaskState | None:
    """Return the task if it is the current one of its step and not reviewed yet, otherwise None."""
    task = state.tasks.get(state.keys.get(task_id, ""))
    return task if task is not None and task.task_id == task_id and task.is_active and state.status == "open" else None


def active_tasks(state: RunState) -> Iterator[TaskState]:
    """Yield the tasks that an agent, a queue, the clock or a person has."""
    return (task for task in state.tasks.values() if task.is_active)


def is_finished(state: RunState, key: str) -> bool:
    """Say whether the step's outcome counts."""
    task = state.tasks.get(key)
    return task is not None and task.is_finished


def answers_goal(state: RunState, key: str) -> bool:
    """Say whether a task's outcome is what the run was asked for: the synthesis, or the one step that has the whole goal."""
    return key == SYNTHESIS or (state.origin in WHOLE_GOAL and not key.startswith("@"))


def waits_for_person(state: RunState) -> bool:
    """Say whether the run's deadline stands still: a question is open, a budget holds the run, or somebody paused it or something it needs."""
    return state.hold is not None or bool(state.pauses) or any(task.pending for task in state.tasks.values())


def starving(state: RunState) -> list[TaskState]:
    """Return the tasks for whose next model call a budget has no room; while there are any, nothing is dispatched."""
    return [task for task in state.tasks.values() if task.shortfall is not None]


def unrevised(state: RunState) -> list[TaskState]:
    """Return the tasks that the critic sent back and that were not opened again yet."""
    return [task for task in state.tasks.values() if task.phase == "revise"]


def unjudged(state: RunState) -> list[TaskState]:
    """Return the tasks whose outcome a model must judge and that no critic was given yet."""
    return [task for task in state.tasks.values() if task.phase == "judging" and critic_key(state, task) not in state.tasks]


def critic_key(state: RunState, task: TaskState) -> str:
    """Name the task that judges this one's outcome; a revision is judged by another."""
    name = _critic_name(task.key)
    if any(step.key != task.key and _critic_name(step.key) == name and rubric_of(step) for step in state.steps):  # two are called so when cut
        name = f"{name[: CRITIC_KEY_CHARS_MAX // 2]}.{content_hash(task.key.encode())[:16]}"
    return f"{CRITIC_PREFIX}{name}-{task.revision}"


def _critic_name(key: str) -> str:
    return key.lstrip("@")[:CRITIC_KEY_CHARS_MAX]


def judged_by(state: RunState, critic: TaskState) -> TaskState | None:
    """Return the task that waits for this critic."""
    return next((task for task in state.tasks.values() if task.phase == "judging" and critic_key(state, task) == critic.key), None)


def ready_steps(state: RunState) -> list[Step]:
    """Return the steps whose dependencies are finished and that nobody was given yet, in the plan's order."""
    return [s for s in state.steps if s.key not in state.tasks and all(is_finished(state, key) for key in s.depends_on)]


def blocked_steps(state: RunState) -> dict[str, str]:
    """Return the steps that cannot run under this plan -> the failed step that is in their way."""
    blocked: dict[str, str] = {}
    cause = {key: key for key, task in state.tasks.items() if task.phase == "failed"}
    found = bool(cause)
    while found:
        found = False
        for step in state.steps:
            by = next((cause[key] for key in step.depends_on if key in cause), None)
            if by is not None and step.key not in cause:
                cause[step.key] = blocked[step.key] = by
                found = True
    return blocked


def next_due_us(state: RunState) -> int | None:
    """Return when the clock must be asked about this run again, in microseconds since 1970; None when never.

    No later than a clock goes: when a question expires is its agent's word.
    """
    if state.status != "open" or is_at_rest(state):
        return None
    waiting = ("held", "retrying") if starving(state) else ("held",)
    dues = [task.due_us for task in active_tasks(state) if task.phase not in waiting and has_clock(state, task)]
    if state.deadline_us and not state.paused_since_us:
        dues.append(state.deadline_us)
    if state.hold is not None and not state.pauses:
        dues.append(state.hold.expires_us)
    return min(*dues, OCCURRED_US_END) if dues else None


def has_clock(state: RunState, task: TaskState) -> bool:
    """Say whether time runs for a task: while anything pauses the run, only a wait before another attempt ends."""
    return not state.pauses or task.phase == "retrying"
