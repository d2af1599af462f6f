"""Facts outside of runs and tasks: agents that register (`agent/<kind>`), documents that are ingested (`doc/<tenant>/<sha-256>`), limits
of budgets that are changed (`budget/<scope>`), model calls that were paid for when their task was over (`spend/<task_id>`), providers that
do not answer (`provider/<name>`), what agents remember (`memory/<tenant>/<user>/<sha-256>`), goals that recur
(`schedule/<tenant>/<name>`), what operators pause, quarantine and drain (`control/@all`),
runs that come from a file or go to one (`import/<run_id>`, `archive/<run_id>`), calls that ask for the same thing
(`claim/<tenant>/<fingerprint>`), and persons whose data was erased (`person/<tenant>/<user>`)."""

from __future__ import annotations

from typing import ClassVar, Literal
from uuid import UUID

import msgspec

from crewlog.schemas.effects import Effect, EffectRef
from crewlog.schemas.ids import Hash, RunId, TaskId
from crewlog.schemas.payload import Payload
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import Trust


class SystemEvent(msgspec.Struct, frozen=True):
    """Base of all system events; carries the schema version of its subclass."""

    schema_version: ClassVar[int] = 1


class ToolInfo(msgspec.Struct, frozen=True):
    """One tool of a kind, for people and planners."""

    name: str
    description: str
    effect: Effect
    needs_approval: bool
    version: str


class AgentRegistered(SystemEvent, frozen=True):
    """A worker of `kind` is up. `unavailable` is empty, or says what is missing and how to install it."""

    kind: str
    worker: str
    description: str
    version: str
    slots: int
    model: str
    simulated: bool
    tools: tuple[ToolInfo, ...]
    unavailable: str = ""
    lane: Literal["shadow"] | msgspec.UnsetType = msgspec.UNSET
    """The one lane that it takes work from, see `subjects.SHADOW_LANE`; unset: all others."""


class AgentStopped(SystemEvent, frozen=True):
    """A worker left: in good order, or without a word."""

    kind: str
    worker: str
    heard_us: int | msgspec.UnsetType = msgspec.UNSET
    """By an orchestrator, about a worker that said nothing and does not answer: when it was last heard as far as that one knows, which is when it
    registered if it does not. Unset: the worker said that it stops."""


BreakerState = Literal["closed", "open", "half_open"]


class ProviderStateChanged(SystemEvent, frozen=True, omit_defaults=True):
    """A worker asks a model no more, tries it with one call, or asks it as usual again."""

    worker: str
    wire: str
    provider: str
    model: str
    state: BreakerState
    until_us: int = 0
    """`open`: when one call will be tried; 0 when that is due."""
    reason: str = ""
    """Kind of the error that opened the breaker."""


class DocumentIngested(SystemEvent, frozen=True):
    """A document's text was extracted. `text` is the blob of its UTF-8 text, lines separated by LF; the index is a projection of it."""

    tenant: str
    content: Hash
    library: bool
    """True: every task of the tenant may search it. False: only tasks it is attached to."""
    name: str
    media_type: str
    size: int
    text: Hash
    lines: int
    title: str


class McpToolPinned(SystemEvent, frozen=True):
    """This is what a tool of an MCP server is from now on: at first sight, or because the operator accepted a change.

    Until the next such event, the tool is used only while the server describes it with exactly this definition.
    """

    server: str
    tool: str
    """Its name as the server says it."""
    digest: Hash
    """sha-256 of the definition."""
    definition: msgspec.Raw
    """JSON: name, description and parameters (a JSON Schema of an object)."""
    accepted: bool
    """False: at first sight. True: a change that the configuration accepts."""


class BudgetChanged(SystemEvent, frozen=True):
    """A person or a rule set the limits of a budget; None is no limit. They hold from this append on, whatever is spent already."""

    scope: str
    soft_micro_usd: int | None
    hard_micro_usd: int | None
    actor: str
    reason: str = ""


class CallSettled(SystemEvent, frozen=True):
    """A model call was billed although its task's stream had no place for the outcome: the task ended meanwhile, or its worker died.

    A price with source `worst case` is what was reserved for a call whose real price nobody can know. Its event id is
    `settled_event_id(task_id, call_id)`, so that a call is settled here once.
    """

    task_id: TaskId
    run_id: RunId
    call_id: str
    provider: str
    model: str
    usage: Usage
    price: Price


class BillCorrected(SystemEvent, frozen=True):
    """The bill of a model call that was settled as a worst case came after all: its worker had only stood still.

    From here on `usage` and `price` are what the call cost. A call is corrected once: its event id is `corrected_event_id(task_id, call_id)`.
    """

    task_id: TaskId
    run_id: RunId
    call_id: str
    provider: str
    model: str
    usage: Usage
    price: Price
    settled_micro_usd: int
    """What the call was settled at before; the budgets of its task are changed by the difference."""


class MemoryRemembered(SystemEvent, frozen=True):
    """An agent noted something for later: for one user, or for the whole tenant when `user` is empty."""

    tenant: str
    user: str
    content: Hash
    """Hash of `text`: the same text is the same memory."""
    text: str
    about: str
    """What it is about, in a few words; may be empty."""
    trust: Trust
    """`untrusted` when whoever noted it had read text from outside before: it stays so whenever it is recalled."""
    kind: str
    run_id: RunId
    task_id: TaskId


class MemoryForgotten(SystemEvent, frozen=True):
    """A person had something forgotten: it is recalled no more. The log keeps what it was."""

    tenant: str
    user: str
    content: Hash
    actor: str
    reason: str = ""


class RunStoodStill(SystemEvent, frozen=True, omit_defaults=True):
    """An open run, or one of its tasks, waits for nothing that anybody knows of: somebody should look. Recorded once for each standstill."""

    run_id: RunId
    what: str
    """What is odd about it, in words."""
    since_us: int
    """Since when, as far as the orchestrator that noticed it knows."""
    task_id: TaskId | None = None


CatchUp = Literal["none", "one", "all"]


class ScheduleAdded(SystemEvent, frozen=True):
    """A goal recurs from now on. Also in `schedule/@all`, by which schedules are found."""

    tenant: str
    name: str
    cron: str
    """Five fields: minute, hour, day of the month, month, day of the week."""
    zone: str
    """The IANA time zone in which they are meant."""
    catch_up: CatchUp
    """What happens to due times that passed while nobody was there: nothing, the last of them, all of them (a bounded number)."""
    task: msgspec.Raw
    """The `AgentTask` as JSON; its ids are replaced by those of each run."""
    since_us: int
    """Due times count from here on."""
    actor: str


class SchedulePaused(SystemEvent, frozen=True):
    """Nothing is due until it is resumed."""

    actor: str
    reason: str = ""


class ScheduleResumed(SystemEvent, frozen=True):
    """Due times count again, from `since_us` on; those that passed meanwhile are not made up for."""

    since_us: int
    actor: str
    reason: str = ""


class ScheduleRemoved(SystemEvent, frozen=True):
    """It recurs no more. A schedule of the same name may be added later."""

    actor: str
    reason: str = ""


class ScheduleFired(SystemEvent, frozen=True, omit_defaults=True):
    """The run of one due time was submitted. Its id follows from the schedule and the due time, so that it is submitted once."""

    due_us: int
    run_id: RunId
    missed: int = 0
    """Due times since the one before that have no run; no more than a hundred are counted."""
    actor: str = ""
    """Who wanted it now; empty when it was due."""
    error: str = ""
    """Why the task was refused; then there is no such run."""


class ScopePaused(SystemEvent, frozen=True):
    """Nothing new of a scope starts: of a run, a tenant's runs, or the tasks of an agent kind, also of those that come later."""

    scope: str
    """`run/<run_id>`, `tenant/<tenant>` or `kind/<kind>`."""
    actor: str
    reason: str = ""


class ScopeResumed(SystemEvent, frozen=True):
    """What was paused goes on."""

    scope: str
    actor: str
    reason: str = ""


class ScopeQuarantined(SystemEvent, frozen=True):
    """The ends of a scope's runs are kept back: of one run, of a tenant's runs, or of runs that an agent kind works for."""

    scope: str
    actor: str
    reason: str = ""


class ScopeReleased(SystemEvent, frozen=True):
    """Ends are kept back no more; those that were are told now."""

    scope: str
    actor: str
    reason: str = ""


class WorkerDrained(SystemEvent, frozen=True):
    """A worker is to take no further task, to end or hand back what it has, and to leave."""

    worker: str
    actor: str
    reason: str = ""


class RunImported(SystemEvent, frozen=True, omit_defaults=True):
    """A run that happened elsewhere was read from a file: it is kept to be looked at, and nothing of it is ever carried out."""

    run_id: RunId
    file: str
    """Name of the file, without its folder."""
    sha256: Hash
    """Of the file."""
    events: int
    blobs: int
    actor: str
    made_by: str = ""
    """Version of the program that wrote the file; empty when it does not say."""
    is_beginning: bool = False
    """Only as much of it was read as a fork in the same file shares."""


class RunArchived(SystemEvent, frozen=True, omit_defaults=True):
    """A run that is over went to a file that was proved to replay; its events leave the log, and tombstones keep their place in the seals."""

    run_id: RunId
    tenant: str
    user: str
    type: str
    goal: str
    status: str
    submitted_us: int
    finished_us: int
    cost_micro_usd: int
    events: int
    digest: Hash
    """Of the hashes under which the events are sealed, in the order of their positions: only exactly these are deleted."""
    file: str
    """Name of the file, without its folder."""
    sha256: Hash
    """Of the file."""
    actor: str
    parent_task_id: UUID | None = None
    """The task or run that it came from: whoever rolls that one back must know that this one is missing."""


class ClaimsOpened(SystemEvent, frozen=True):
    """A call asks for something that must not be done twice within a window, for the first time: calls that ask for the same find each other in
    this stream."""

    tenant: str
    kind: str
    tool: str
    fingerprint: Hash


class EffectClaimed(SystemEvent, frozen=True):
    """A call is about to do what the stream stands for. Until `until_us` no other one does it, unless this one certainly did not."""

    call: EffectRef
    until_us: int


class EffectSettled(SystemEvent, frozen=True):
    """What became of the call with `key`, for those that ask for the same: `error` had no effect, `undone` has none any more, and of `unknown`
    nobody knows."""

    key: str
    status: Literal["ok", "error", "unknown", "undone"]
    result: Payload
    trust: Trust


class PersonErased(SystemEvent, frozen=True, omit_defaults=True):
    """The keys of a person were destroyed: what was personal in these runs, and in schedules, is gone for good. Many runs are told in several events.

    `runs` are those that the keys were for, `blobs` counts the large texts, `artifacts` the files, that were deleted with them.
    """

    tenant: str
    user: str
    actor: str
    erased_us: int
    runs: tuple[RunId, ...]
    reason: str = ""
    blobs: int = 0
    artifacts: int = 0


class DocumentErased(SystemEvent, frozen=True):
    """A document that only runs of an erased person had attached is searched no more, and its text is gone."""

    tenant: str
    content: Hash
    actor: str


SYSTEM_EVENTS: tuple[type[SystemEvent], ...] = (
    AgentRegistered,
    AgentStopped,
    DocumentIngested,
    McpToolPinned,
    BudgetChanged,
    CallSettled,
    BillCorrected,
    ProviderStateChanged,
    MemoryRemembered,
    MemoryForgotten,
    ScheduleAdded,
    SchedulePaused,
    ScheduleResumed,
    ScheduleRemoved,
    ScheduleFired,
    RunStoodStill,
    ScopePaused,
    ScopeResumed,
    ScopeQuarantined,
    ScopeReleased,
    WorkerDrained,
    RunImported,
    RunArchived,
    ClaimsOpened,
    EffectClaimed,
    EffectSettled,
    PersonErased,
    DocumentErased,
)
