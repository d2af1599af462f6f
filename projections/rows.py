"""Rows of the read-model tables, one struct per table: its fields are the columns, in order.

A row is written without the fields that have their defaults, and these are added where it arrives: `table`.
Rows are changed in place while a page of the log is folded and belong to the fold alone; identity, not content, tells them apart.
Times are microseconds since 1970. What is big stays in the log: rows hold the position of the event that has it.
"""

from __future__ import annotations

from typing import Literal, NewType
from uuid import UUID

import msgspec

Json = NewType("Json", str)
"""JSON text of a `jsonb` column."""

RunStatus = Literal["planning", "running", "paused", "held", "quarantined", "completed", "failed", "cancelled"]
"""`quarantined`: all work is done, the end is kept back."""
TaskStatus = Literal[
    "planned", "queued", "running", "suspended", "retrying", "deciding", "held", "reviewing", "completed", "revised", "failed", "cancelled", "skipped"
]  # fmt: skip
FINISHED: frozenset[TaskStatus] = frozenset({"completed", "revised", "failed", "cancelled", "skipped"})
"""Task states that nothing follows. `revised`: a further revision takes its place; `skipped`: the run went on without it."""

ModelCallStatus = Literal["running", "ok", "failed", "abandoned", "unused"]
ToolCallStatus = Literal["requested", "running", "interrupted", "ok", "error", "refused", "unknown", "not_run", "abandoned"]
ApprovalStatus = Literal["pending", "approved", "denied", "expired", "withdrawn", "happened", "did_not_happen", "give_up"]


class RunRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """One run."""

    run_id: UUID
    tenant: str = ""
    user_name: str = ""
    type: str = ""
    goal: str = ""
    source: str = ""
    status: RunStatus = "planning"
    plan_origin: str | None = None
    plan_revision: int | None = None
    submitted_us: int = 0
    finished_us: int | None = None
    end_position: int | None = None
    flags: Json = Json("[]")
    artifacts: Json = Json("[]")
    error_code: str | None = None
    error: str | None = None
    hold: Json | None = None
    hold_position: int | None = None
    warnings: Json = Json("[]")
    controls: Json = Json("[]")
    parent_run_id: UUID | None = None


class TaskRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """One revision of one step of a run."""

    run_id: UUID
    key: str
    revision: int
    task_id: UUID
    kind: str
    objective: str = ""
    depends_on: Json = Json("[]")
    status: TaskStatus = "planned"
    waiting_reason: str | None = None
    worker: str | None = None
    provider: str | None = None
    model: str | None = None
    simulated: bool = False
    attempt: int = 0
    turns: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_micro_usd: int = 0
    unpriced_calls: int = 0
    planned_us: int = 0
    dispatched_us: int | None = None
    started_us: int | None = None
    finished_us: int | None = None
    deadline_us: int | None = None
    verdict: str | None = None
    issues: Json = Json("[]")
    artifacts: Json = Json("[]")
    outcome_position: int | None = None
    error_code: str | None = None
    error: str | None = None


class ModelCallRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """One call to one model; `number` counts the calls of a task from 1."""

    task_id: UUID
    number: int
    run_id: UUID
    call_id: str
    turn: int
    provider: str
    model: str
    status: ModelCallStatus
    started_us: int
    finished_us: int | None = None
    latency_ms: int | None = None
    stop: str | None = None
    simulated: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_micro_usd: int | None = None
    price_source: str | None = None
    outcome_position: int | None = None
    error_code: str | None = None
    error: str | None = None
    uncached_micro_usd: int | None = None
    wire: str | None = None
    request_id: str | None = None


class ToolCallRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """One tool call. `starts` counts how often it was begun: more than once only after a crash."""

    task_id: UUID
    call_id: str
    run_id: UUID
    turn: int
    tool: str
    status: ToolCallStatus
    requested_us: int
    tool_version: str | None = None
    effect: str | None = None
    idempotency_key: str | None = None
    approval_id: UUID | None = None
    starts: int = 0
    trust: str | None = None
    started_us: int | None = None
    finished_us: int | None = None
    latency_ms: int | None = None
    requested_position: int | None = None
    outcome_position: int | None = None
    fingerprint: str | None = None
    compensation: Json | None = None
    reused: Json | None = None
    stub: str | None = None


class ApprovalRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """One question to a person."""

    approval_id: UUID
    run_id: UUID
    task_id: UUID
    call_id: str
    tool: str
    reason: str
    digest: str
    status: ApprovalStatus
    requested_us: int
    expires_us: int
    requested_position: int
    decided_us: int | None = None
    actor: str | None = None
    note: str | None = None
    question: str | None = None


class AgentRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """One worker of one agent kind, as it registered last."""

    kind: str
    worker: str
    description: str
    version: str
    slots: int
    model: str
    simulated: bool
    tools: Json
    unavailable: str
    started_us: int
    stopped_us: int | None = None
    is_shadow: bool = False


class ProviderRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """What one worker saw last of one model that failed it."""

    worker: str
    wire: str
    provider: str
    model: str
    state: str
    until_us: int | None
    reason: str
    changed_us: int


class ControlRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """A pause or a quarantine that is in force."""

    measure: str
    scope: str
    actor: str
    reason: str
    since_us: int


class DocumentRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """One document of one tenant."""

    tenant: str
    content: str
    name: str
    title: str
    media_type: str
    size: int
    lines: int
    library: bool
    text_hash: str
    position: int


class MemoryRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """One thing remembered for a user, or for a whole tenant when `user_name` is empty."""

    tenant: str
    user_name: str
    content: str
    memory: str
    about: str
    trust: str
    kind: str
    run_id: UUID
    task_id: UUID
    remembered_us: int
    position: int


class PassageRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """A stretch of a document, verbatim, that begins at `line` and stands below `heading`."""

    tenant: str
    content: str
    number: int
    line: int
    heading: str
    passage: str


class ImportRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """A run that was read from a file."""

    run_id: UUID
    file: str
    sha256: str
    events: int
    blobs: int
    actor: str
    made_by: str
    imported_us: int


class ErasureRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """A run whose person's data was erased."""

    run_id: UUID
    tenant: str
    user_name: str
    actor: str
    reason: str
    erased_us: int


class ArchiveRow(msgspec.Struct, eq=False, gc=False, omit_defaults=True):
    """A run that went to a file and is no longer in the log."""

    run_id: UUID
    tenant: str
    user_name: str
    type: str
    goal: str
    status: str
    submitted_us: int
    finished_us: int
    cost_micro_usd: int
    events: int
    file: str
    sha256: str
    actor: str
    archived_us: int
