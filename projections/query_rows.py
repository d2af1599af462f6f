"""What the read functions return: one frozen struct per documented view, its fields named like the view's columns."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

import msgspec

from crewlog.schemas.effects import Compensation
from crewlog.schemas.payload import Payload
from crewlog.schemas.subjects import SHADOW_LANE, worker_group
from crewlog.schemas.values import ArtifactRef, Citation, Issue, Outcome


class HoldView(msgspec.Struct, frozen=True):
    """Why a run is held: `scope` has no room for the `needed_micro_usd` of its next model call. It fails at `expires_us`."""

    reason: str
    scope: str
    limit_micro_usd: int
    used_micro_usd: int
    needed_micro_usd: int
    since_us: int
    expires_us: int


class RunView(msgspec.Struct, frozen=True):
    """A run, with the totals of its tasks."""

    run_id: UUID
    tenant: str
    user_name: str
    type: str
    goal: str
    status: str
    submitted_at: datetime
    finished_at: datetime | None
    tasks_done: int
    tasks_total: int
    agents: int
    turns: int
    tool_calls: int
    input_tokens: int
    output_tokens: int
    cost_micro_usd: int
    unpriced_calls: int
    simulated: bool
    approvals_pending: int
    flags: tuple[str, ...]
    artifacts: tuple[ArtifactRef, ...]
    answer: str | None
    answer_ref: str | None
    """Hash of the blob that holds the answer when it is too long to stand in its event."""
    citations: tuple[Citation, ...] | None
    error_code: str | None
    error: str | None
    hold: HoldView | None
    """Set while a budget holds the run; `answer` and `artifacts` are then what it has so far."""
    warnings: tuple[str, ...]
    """Budget scopes that were over their soft limit when the run was charged."""
    source: str
    """`api`, `subject`, or what made it out of another run: `fork`, `trial`, `shadow`."""
    parent_run_id: UUID | None
    """The run that a fork goes on from, or that a trial or shadow repeats."""


class BudgetView(msgspec.Struct, frozen=True):
    """A budget scope as it is now. Its hard limit holds for the sum of what is spent and what is reserved for calls under way."""

    scope: str
    kind: str
    tenant: str | None
    run_id: UUID | None
    day: date | None
    soft_micro_usd: int | None
    hard_micro_usd: int | None
    spent_micro_usd: int
    reserved_micro_usd: int
    is_open: bool
    """False when its run has ended, or its day."""
    runs_held: int
    changed_at: datetime | None
    changed_by: str | None
    reason: str | None

    @property
    def is_over_soft(self) -> bool:
        """True when more than the soft limit is spent or reserved."""
        return self.soft_micro_usd is not None and self.spent_micro_usd + self.reserved_micro_usd > self.soft_micro_usd


class TaskView(msgspec.Struct, frozen=True):
    """A task; `waiting_reason` is None exactly when it is finished."""

    task_id: UUID
    run_id: UUID
    key: str
    kind: str
    revision: int
    objective: str
    depends_on: tuple[str, ...]
    status: str
    waiting_reason: str | None
    worker: str | None
    provider: str | None
    model: str | None
    simulated: bool
    attempt: int
    turns: int
    model_calls: int
    tool_calls: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_micro_usd: int
    unpriced_calls: int
    planned_at: datetime
    dispatched_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    verdict: str | None
    issues: tuple[Issue, ...]
    artifacts: tuple[ArtifactRef, ...]
    outcome: Outcome | None
    error_code: str | None
    error: str | None


class ApprovalView(msgspec.Struct, frozen=True):
    """A question to a person, and what became of it."""

    approval_id: UUID
    run_id: UUID
    task_id: UUID
    key: str | None
    kind: str | None
    call_id: str
    tool: str
    arguments: Payload
    reason: str
    status: str
    requested_at: datetime
    expires_at: datetime
    decided_at: datetime | None
    actor: str | None
    note: str | None
    question: str | None
    """What is asked besides whether the call may run: `outcome`, whether it happened."""


class EffectView(msgspec.Struct, frozen=True):
    """A tool call that does more than read. It is open while something is there to be taken back, or nobody knows what happened."""

    run_id: UUID
    task_id: UUID
    key: str | None
    kind: str | None
    call_id: str
    tool: str
    effect: str
    status: str
    starts: int
    idempotency_key: str
    started_at: datetime
    finished_at: datetime | None
    resource: str | None
    compensation: Compensation | None
    is_open: bool
    undone_in: UUID | None
    undone_at: datetime | None


class ToolCallView(msgspec.Struct, frozen=True):
    """A tool call. More than one start means that a worker died in the middle of it."""

    run_id: UUID
    task_id: UUID
    call_id: str
    turn: int
    tool: str
    effect: str | None
    status: str
    starts: int
    latency_ms: int | None
    requested_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    arguments: Payload | None
    result: Payload | None


Group = dict[str, str | UUID | date | None]
"""The values of the columns that costs are grouped by."""


class CostView(msgspec.Struct, frozen=True):
    """Model usage of one group. `cost_micro_usd` holds all money; what failed, was not used or is a worst case is part of it."""

    group: Group
    calls: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    """Read from the providers' caches; part of the input."""
    cost_micro_usd: int
    unpriced_calls: int
    simulated: bool
    cache_write_tokens: int
    reasoning_tokens: int
    saved_micro_usd: int
    """What prompt caching saved at the recorded prices; below zero when more was written to a cache than was read."""
    failed_calls: int
    failed_micro_usd: int
    unused_calls: int
    """Answered after their task had ended."""
    unused_micro_usd: int
    worst_case_calls: int
    """Charged with the most they can have cost, because nobody knows the bill."""
    worst_case_micro_usd: int
    open_calls: int
    """Without an outcome so far: nobody knows what they cost."""


class CallView(msgspec.Struct, frozen=True):
    """What one model call used and cost; `group` holds the values of the columns it was asked for."""

    group: Group
    task_id: UUID
    number: int
    provider: str
    model: str
    part: str
    started_at: datetime
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_micro_usd: int | None


class EventView(msgspec.Struct, frozen=True):
    """A fact of the log."""

    position: int
    occurred_at: datetime
    stream: str
    version: int
    type: str
    schema_version: int
    run_id: UUID | None
    task_id: UUID | None
    actor: str
    event_id: UUID
    causation_id: UUID | None
    data: Any


class ProviderView(msgspec.Struct, frozen=True):
    """What a running worker saw last of a model that failed it: `closed` (asked as usual), `open` (not asked) or `half_open` (one call tries)."""

    kind: str
    worker: str
    wire: str
    provider: str
    model: str
    state: str
    reason: str
    until_at: datetime | None
    changed_at: datetime


class StandstillView(msgspec.Struct, frozen=True):
    """An open run that waits for nothing anybody knows of, and to which nothing has happened since that was noticed."""

    run_id: UUID
    tenant: str
    task_id: UUID | None
    what: str
    since_at: datetime
    noticed_at: datetime


class AgentView(msgspec.Struct, frozen=True):
    """A worker as it registered last."""

    kind: str
    worker: str
    description: str
    version: str
    slots: int
    model: str
    simulated: bool
    tools: list[dict[str, Any]]
    unavailable: str
    started_at: datetime
    stopped_at: datetime | None
    is_shadow: bool
    """It takes the work of shadows and no other."""

    @property
    def group(self) -> str:
        """Name what scales it: its kind, or the group that works for shadows."""
        return worker_group(self.kind, SHADOW_LANE if self.is_shadow else "")


class ControlView(msgspec.Struct, frozen=True):
    """A pause or a quarantine: `run/<run_id>`, `tenant/<tenant>` or `kind/<kind>`, by whom since when."""

    measure: str
    scope: str
    actor: str
    reason: str
    since_at: datetime


class DocumentView(msgspec.Struct, frozen=True):
    """An indexed document."""

    tenant: str
    content: str
    name: str
    title: str
    media_type: str
    size: int
    lines: int
    library: bool
    position: int


class MemoryView(msgspec.Struct, frozen=True):
    """What is remembered for a user, or for the whole tenant when `user_name` is None. `content` names it."""

    tenant: str
    user_name: str | None
    content: str
    memory: str
    about: str
    trust: str
    kind: str
    """Kind of the agent that remembered it."""
    run_id: UUID
    task_id: UUID
    remembered_at: datetime
    position: int


class Lag(msgspec.Struct, frozen=True):
    """How far one projection is behind the log. `waiting_since` is None when it is not."""

    name: str
    position: int
    head: int
    waiting_since: datetime | None


class ProblemView(msgspec.Struct, frozen=True):
    """Events that a projection had to leave out."""

    projection: str
    position: int
    events: int
    stream: str | None
    type: str
    error: str
