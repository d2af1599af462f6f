"""What the orchestrator is asked to do to a run. Commands are values: made from a message, a task event or the clock, decided by `decide`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from crewlog.events.controls import Control
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.effects import Rollback, RollbackPage
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import ApprovalId, RunId, TaskId
from crewlog.schemas.payload import Payload
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import ApprovalRequested, AttemptFailed, EditedResult, TaskCompleted, TaskHandedBack
from crewlog.schemas.values import Failure

CLOCK: Final = "clock"
"""The actor of what no person decided: a deadline, an expiry."""


Answer = Literal["approved", "denied", "happened", "did_not_happen", "give_up"]
"""What a person may say: whether a call may run, or what became of one."""


class Terms(msgspec.Struct, frozen=True):
    """On what terms a run is accepted: from the configuration, and from the run its task belongs to. Recorded in `RunSubmitted`."""

    limits: tuple[ScopeLimit, ...] = ()
    tree: TaskId | None = None
    hold_s: int = 86_400
    caller: str = ""
    """The `traceparent` that came with the submission, when it is one."""


class SubmitRun(msgspec.Struct, frozen=True):
    """Start a run for a validated task."""

    task: AgentTask
    source: Literal["subject", "api"]
    terms: Terms = Terms()
    pauses: tuple[Control, ...] = ()
    """What is in force for it already: it is accepted, and waits."""
    quarantines: tuple[Control, ...] = ()
    rollback: Rollback | None = None
    """What the run is to take back; then it has no other plan."""


class TaskEnded(msgspec.Struct, frozen=True):
    """An agent finished a task."""

    task_id: TaskId
    event: TaskCompleted


class AttemptEnded(msgspec.Struct, frozen=True):
    """An agent's attempt at a task failed."""

    task_id: TaskId
    event: AttemptFailed


class BuryTask(msgspec.Struct, frozen=True):
    """The message of a dispatched task was given up: whoever got it failed or died, every time."""

    task_id: TaskId
    kind: str
    attempt: int
    serial: int
    """Which of the task's dispatches the message was."""
    history: str
    """How often it was handed out and what was met, for people."""


class ApprovalAsked(msgspec.Struct, frozen=True):
    """An agent needs a person's permission."""

    task_id: TaskId
    event: ApprovalRequested


class DecideApproval(msgspec.Struct, frozen=True):
    """A person answers."""

    approval_id: ApprovalId
    decision: Answer
    actor: str
    note: str = ""


class ReleaseRun(msgspec.Struct, frozen=True):
    """A budget that holds the run was looked at and has room for what the run needs of it: `used_micro_usd` of `limit_micro_usd` (None: no limit)."""

    scope: str
    limit_micro_usd: int | None
    used_micro_usd: int


class HandedBack(msgspec.Struct, frozen=True):
    """A worker stopped between two steps of a task."""

    task_id: TaskId
    event: TaskHandedBack


class PauseRun(msgspec.Struct, frozen=True):
    """Something that concerns the run is paused: the run itself, its tenant, or a kind that it needs."""

    control: Control


class ResumeRun(msgspec.Struct, frozen=True):
    """What paused the run does so no more."""

    scope: str
    actor: str
    reason: str = ""


class QuarantineRun(msgspec.Struct, frozen=True):
    """The run's end is to be kept back."""

    control: Control


class LiftQuarantine(msgspec.Struct, frozen=True):
    """A quarantine holds for the run no more. `control` is its number."""

    scope: str
    control: int
    actor: str
    reason: str = ""


class TaskFork(msgspec.Struct, frozen=True):
    """How a task that is under way goes on in a fork: from which of its events, and what is different. See `TaskForked`."""

    parent: TaskId
    version: int
    results: tuple[EditedResult, ...] = ()
    said: str = ""
    setup: Payload | None = None
    opening: Payload | None = None
    begins_anew: bool = False


class ForkRun(msgspec.Struct, frozen=True):
    """Go on from an earlier place of another run as a run of its own. The state it is decided on is that of the parent at this place."""

    run_id: RunId
    parent: RunId
    parent_version: int
    at: int
    position: int
    changes: msgspec.Raw
    """JSON Merge Patch of the submitted task; holds at least the new ids and the trial."""
    tasks: tuple[TaskFork, ...]
    """All tasks that are under way there."""
    actor: str
    reason: str = ""
    terms: Terms = Terms()


class ContinueRollback(msgspec.Struct, frozen=True):
    """A rollback is through with what it had: this is the next page, read off the log when it had `behind` orders."""

    page: RollbackPage
    behind: int


class CancelRun(msgspec.Struct, frozen=True):
    """Somebody terminates the run: it ends as cancelled."""

    reason: str
    actor: str


class AbortRun(msgspec.Struct, frozen=True):
    """The run cannot go on, because the log refuses its next step for good; it fails visibly instead of standing still."""

    error: Failure
    ended: tuple[TaskId, ...] = ()
    """Tasks that have their end already, although the run could not take note of it."""


class Tick(msgspec.Struct, frozen=True):
    """Time has passed: do what is due."""


Command = (
    SubmitRun
    | ForkRun
    | TaskEnded
    | AttemptEnded
    | BuryTask
    | HandedBack
    | ApprovalAsked
    | DecideApproval
    | ReleaseRun
    | PauseRun
    | ResumeRun
    | QuarantineRun
    | LiftQuarantine
    | ContinueRollback
    | CancelRun
    | AbortRun
    | Tick
)


class TooLate(ContractError):
    """The run has moved on: what was asked for cannot happen any more."""

    code = "conflict"


class AlreadyDecided(TooLate):
    """Somebody else's answer to the same question came first."""

    def __init__(self, what: str, *, decision: str, actor: str) -> None:
        super().__init__(f"{what} was already {decision} by {actor}; the first decision stands")
        self.decision, self.actor = decision, actor
