"""Facts of a run, in its stream `run/<run_id>`. The orchestrator alone writes them.

The run stream is self-contained: whatever the orchestrator learns from a task stream it records here (`TaskReviewed`,
`TaskRetryScheduled`, `TaskSuspended`) together with what it decided, so folding this one stream rebuilds the run.
Times are microseconds since 1970 (`…_us`).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.effects import Rollback, RollbackPage
from crewlog.schemas.ids import ApprovalId, Hash, RunId, TaskId
from crewlog.schemas.payload import Payload
from crewlog.schemas.task_events import ApprovalDecision, Question
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import ArtifactRef, Citation, Failure, Issue, Outcome, Shortfall


class RunEvent(msgspec.Struct, frozen=True):
    """Base of all run events; carries the schema version of its subclass."""

    schema_version: ClassVar[int] = 1


class RunSubmitted(RunEvent, frozen=True, omit_defaults=True):
    """A task was accepted: `task` is the validated AgentTask as JSON, the rest are the terms on which it runs."""

    run_id: RunId
    tenant: str
    user: str
    goal: str
    task: msgspec.Raw
    source: Literal["subject", "api"]
    deadline_us: int = 0
    """When the run fails if it has no answer by then; 0 means never. It moves while the run waits for a person."""
    limits: tuple[ScopeLimit, ...] = ()
    """What the operator allows to be spent by work from this surface: `scope` is the kind of a scope, such as `run` or `tenant/day`, with the
    surface behind it (`tenant/day/batch`) when that has an account of its own."""
    tree: TaskId | None = None
    """The task that this one's tree of tasks began with; None when that is this one."""
    hold_s: int = 86_400
    """How long a budget may hold the run before it fails, in seconds."""
    caller: str = ""
    """The span in which the task was submitted, as a `traceparent` of W3C Trace Context; empty when the sender names none."""
    rollback: Rollback | None = None
    """The run takes back what another one did."""


class ForkedTask(msgspec.Struct, frozen=True):
    """A task that was under way where a run was forked: it goes on as `task_id` from the first `version` events of `parent`."""

    key: str
    task_id: TaskId
    parent: TaskId
    version: int


class RunForked(RunEvent, frozen=True, omit_defaults=True):
    """The first event of a run that goes on from the first `parent_version` events of another one, which it shares.

    Tasks that were finished there stay finished; those under way go on as `tasks`. Usage and cost count from here.
    """

    run_id: RunId
    tenant: str
    user: str
    type: str
    goal: str
    parent: RunId
    parent_version: int
    at: int
    """Index of the last event it shares, counted as `show --as events` does, and the position of that event in the log."""
    position: int
    tasks: tuple[ForkedTask, ...]
    changes: msgspec.Raw
    """What is different in the submitted task, as a JSON Merge Patch (RFC 7396); its id, and what the trial is, are always."""
    actor: str
    reason: str = ""
    deadline_us: int = 0
    limits: tuple[ScopeLimit, ...] = ()
    hold_s: int = 86_400


class Step(msgspec.Struct, frozen=True):
    """A plan step as recorded. `constraints` is the JSON of `Constraints`."""

    key: str
    type: str
    objective: str
    depends_on: tuple[str, ...]
    constraints: msgspec.Raw
    attachments: tuple[str, ...] | None = None
    timeout_seconds: int | None = None


class RunPlanned(RunEvent, frozen=True):
    """The plan is fixed. A later one (`revision` > 0) replaces the steps that are not finished."""

    steps: tuple[Step, ...]
    origin: Literal["given", "planner", "single", "router", "rollback"]
    revision: int = 0
    note: str = ""


class TaskDispatched(RunEvent, frozen=True):
    """A task may be worked on from now on: it is on its way to `work.<kind>.<lane>`."""

    task_id: TaskId
    key: str
    kind: str
    attempt: int
    revision: int
    deadline_us: int
    offered: tuple[str, ...] = ()
    """For a task that makes a plan: the agent kinds it was told about. Its plan is held to these."""


class TaskRetryScheduled(RunEvent, frozen=True):
    """An attempt failed in a way worth retrying; attempt `attempt` is due at `due_us`."""

    task_id: TaskId
    key: str
    attempt: int
    due_us: int
    error: Failure


class TaskSuspended(RunEvent, frozen=True):
    """A task waits for a person and holds no process meanwhile."""

    task_id: TaskId
    key: str
    approval_id: ApprovalId
    tool: str
    expires_us: int
    call_id: str = ""
    digest: Hash = Hash("")
    since_us: int = 0
    """Since when the person is asked: the run's deadline stands still from here."""
    question: Question | msgspec.UnsetType = msgspec.UNSET


class TaskResumed(RunEvent, frozen=True):
    """The approval was decided; the task is dispatched again."""

    task_id: TaskId
    key: str
    approval_id: ApprovalId
    decision: ApprovalDecision
    actor: str
    run_deadline_us: int = 0
    """The run's deadline from now on, moved by the time nobody but a person could act; 0 when it stays."""


class TaskReviewed(RunEvent, frozen=True):
    """A task ended and was judged. `revise` sends the work back with the issues, `flagged` accepts it although issues remain.

    `judging`: every rule is kept, and a model judges the rest; what it says follows in another event about the same task.
    """

    task_id: TaskId
    key: str
    verdict: Literal["accepted", "judging", "revise", "flagged", "failed"]
    issues: tuple[Issue, ...] = ()
    outcome: Outcome | None = None
    error: Failure | None = None
    usage: Usage = Usage()
    cost_micro_usd: int = 0


class TaskHeld(RunEvent, frozen=True, omit_defaults=True):
    """An attempt ended because a budget has no room for the next model call. Nothing more is dispatched until the run is released;
    then the task goes on where it was, with another attempt that does not count. Usage and cost are the task's so far."""

    task_id: TaskId
    key: str
    attempt: int
    error: Failure
    shortfall: Shortfall
    usage: Usage = Usage()
    cost_micro_usd: int = 0


class RunHeld(RunEvent, frozen=True, omit_defaults=True):
    """Everything that was under way is done and a budget lets nothing more be started: the run waits for a person and costs nothing.

    `partial` and `artifacts` are what it has, `needed_micro_usd` is what its next model call would take out of `scope`.
    The run's deadline stands still from `since_us`; at `expires_us` the run fails with what it has.
    """

    reason: Literal["budget"]
    scope: str
    limit_micro_usd: int
    used_micro_usd: int
    needed_micro_usd: int
    partial: Payload
    artifacts: tuple[ArtifactRef, ...] = ()
    since_us: int = 0
    expires_us: int = 0


class RunReleased(RunEvent, frozen=True, omit_defaults=True):
    """The scope that held the run has room again: its tasks are dispatched again. `limit_micro_usd` is the scope's hard limit now,
    None for no limit, and `used_micro_usd` what is spent or reserved of it, both as the orchestrator saw them."""

    scope: str
    limit_micro_usd: int | None
    used_micro_usd: int
    run_deadline_us: int = 0
    """The run's deadline from now on, moved by the time it was held; 0 when it still stands still or never ends."""


class RunCompleted(RunEvent, frozen=True):
    """The run has its answer. `flags` names open points: steps that failed or were accepted with issues, simulated models."""

    answer: Payload
    artifacts: tuple[ArtifactRef, ...] = ()
    citations: tuple[Citation, ...] = ()
    flags: tuple[str, ...] = ()
    usage: Usage = Usage()
    cost_micro_usd: int = 0
    """What its tasks said at their ends, as is `usage`. Bills that came later, and calls that were cut off, are only in the ledger: `crewlog.costs`."""


class RunFailed(RunEvent, frozen=True):
    """The run ended without an answer; `partial` holds what was finished."""

    error: Failure
    partial: Payload
    artifacts: tuple[ArtifactRef, ...] = ()
    usage: Usage = Usage()
    cost_micro_usd: int = 0


class RunCancelled(RunEvent, frozen=True):
    """Somebody stopped the run."""

    reason: str
    actor: str


class RunPaused(RunEvent, frozen=True, omit_defaults=True):
    """A person paused the run, its tenant, or a kind of agent that it needs: what is under way ends, nothing new starts, and the run's clocks
    stand still from `since_us` until the last such scope is resumed. A paused kind keeps only that kind's tasks from starting."""

    scope: str
    """`run/<run_id>`, `tenant/<tenant>` or `kind/<kind>`."""
    control: int
    """Number of the command: the version of the stream of controls."""
    actor: str
    reason: str = ""
    since_us: int = 0


class RunResumed(RunEvent, frozen=True, omit_defaults=True):
    """A scope that paused the run does so no more. Behind the last one, deadlines and expiries move by the time they stood still."""

    scope: str
    actor: str
    reason: str = ""
    at_us: int = 0
    run_deadline_us: int = 0
    """The run's deadline from now on; 0 when it stays or still stands still."""


class RunQuarantined(RunEvent, frozen=True, omit_defaults=True):
    """A person does not trust what may come of the run: it goes on, but its end is kept back until every such scope is released."""

    scope: str
    control: int
    actor: str
    reason: str = ""


class RollbackContinued(RunEvent, frozen=True):
    """What a rollback does next, once it is through with what it had: the page behind."""

    page: RollbackPage


class QuarantineLifted(RunEvent, frozen=True, omit_defaults=True):
    """A quarantine holds for this run no more: its scope was released, or this run was looked at and released alone."""

    scope: str
    control: int
    """The quarantine's, see `RunQuarantined`."""
    actor: str
    reason: str = ""


class ResultsHeld(RunEvent, frozen=True, omit_defaults=True):
    """All work is done and the run is in quarantine: its end, and with it its answer, follows once that is lifted. `error`: it will be a failure."""

    error: Failure | msgspec.UnsetType = msgspec.UNSET


class TaskReturned(RunEvent, frozen=True):
    """A worker gave the task back between two steps because of `scope`: see `TaskHandedBack`. It is dispatched again when nothing pauses the run."""

    task_id: TaskId
    key: str
    attempt: int
    scope: str
    number: int


RUN_EVENTS: tuple[type[RunEvent], ...] = (
    RunSubmitted,
    RunPlanned,
    TaskDispatched,
    TaskRetryScheduled,
    TaskSuspended,
    TaskResumed,
    TaskReviewed,
    RunCompleted,
    RunFailed,
    RunCancelled,
    TaskHeld,
    RunHeld,
    RunReleased,
    RunPaused,
    RunResumed,
    RunQuarantined,
    QuarantineLifted,
    ResultsHeld,
    TaskReturned,
    RunForked,
    RollbackContinued,
)
