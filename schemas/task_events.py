"""Facts of one task, in its stream `task/<task_id>`.

The agent that holds the task writes them; the orchestrator opens the stream, decides approvals and writes the failing ends.
The stream's version is the fence: whoever lost the task gets a conflict at the next append.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from crewlog.schemas.blocks import StopReason
from crewlog.schemas.effects import Compensation, Effect, EffectRef, ProbeVerdict
from crewlog.schemas.ids import ApprovalId, Hash, TaskId
from crewlog.schemas.payload import Payload
from crewlog.schemas.trial import Stub
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import ArtifactRef, Failure, Outcome, Shortfall, Trust

ApprovalDecision = Literal["approved", "denied", "expired", "happened", "did_not_happen", "give_up"]
"""The last three answer the question what became of a call: take it for done, run it again under the same key, or leave it unknown."""

Question = Literal["outcome"]
"""What a person is asked besides whether a call may run. `outcome`: whether it happened, since nobody recorded what became of it."""

CallPurpose = Literal["turn", "output"]
"""`turn`: the next turn of the conversation. `output`: the task's result as JSON that satisfies its `output_schema`; no tool may be called."""

SkipReason = Literal["breaker_open", "over_budget", "unpriced"]
"""`unpriced`: nobody knows what it costs, and the task may spend only so much."""


class TaskEvent(msgspec.Struct, frozen=True):
    """Base of all task events; carries the schema version of its subclass.

    Classes that got fields after their first release leave defaults out, so that what was stored before and what is stored now look alike.
    """

    schema_version: ClassVar[int] = 1


class TaskOpened(TaskEvent, frozen=True, omit_defaults=True):
    """By the orchestrator: the task exists. `task` is the AgentTask as sent to the agent, as JSON."""

    kind: str
    key: str
    revision: int
    task: msgspec.Raw


class EditedResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the call `call_id` is said to have returned, in place of what it did or as the end of one that was open."""

    call_id: str
    content: Payload
    is_error: bool = False


class TaskForked(TaskEvent, frozen=True, omit_defaults=True):
    """By the orchestrator: the first event of a task that goes on from the first `version` events of another one, which it shares.

    What was open there is open anew: calls begin again, questions are asked again. Usage and cost count from here.
    """

    parent: TaskId
    version: int
    kind: str
    key: str
    revision: int
    changes: msgspec.Raw
    """What is different in its `AgentTask`, as a JSON Merge Patch (RFC 7396)."""
    results: tuple[EditedResult, ...] = ()
    said: str = ""
    """What the model is told behind the last results."""
    setup: Payload | None = None
    """Another prompt for what is left; None: the one it began with."""
    opening: Payload | None = None
    """Another first message; None: the one it began with."""
    begins_anew: bool = False
    """Prompt, tools and first message are those of the worker that takes it."""


class Link(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model of a worker's chain."""

    wire: str
    provider: str
    model: str
    simulated: bool = False
    window: int = 0
    """Tokens that input and output may have together; 0: not known."""

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


class TaskStarted(TaskEvent, frozen=True, omit_defaults=True):
    """A worker took the task, for the first time or again.

    `setup` is the JSON of what is the same for all tasks of this agent version (system text, tools with their rules), `opening`
    is the first user message. A worker that takes over keeps both: a task finishes under the version it began with.
    """

    worker: str
    attempt: int
    agent_version: str
    model: str
    provider: str
    simulated: bool
    setup: Payload
    opening: Payload
    taken_over_from: str = ""
    chain: tuple[Link, ...] = ()
    """The models that may be asked, in order of preference. Left out for the offline model alone: a failed call ends the attempt then."""
    deadline_us: int = 0
    """When the attempt ends unfinished; a worker that takes over keeps it. Asking a person gives the time anew."""
    refusals_fall_through: bool = False
    """Setting of the worker: a model that refuses is followed by the next one of the chain instead of ending the task."""
    hedge_after_s: float | None = None
    """Setting of the worker: when a structured answer has not begun after so many seconds, a second model may be asked beside the first one."""


class ModelCallStarted(TaskEvent, frozen=True, omit_defaults=True):
    """A model is about to be asked. `request_hash` names the exact request; a replay rebuilds it and compares."""

    call_id: str
    turn: int
    provider: str
    model: str
    request_hash: Hash
    messages: int
    estimated_tokens: int = 0
    """What its input was estimated at before any correction; what the provider counts in the end corrects the next estimates."""
    wire: str = ""
    """The protocol it is asked over; empty for the offline model alone."""
    reserved_micro_usd: int = 0
    """The most it can cost: reserved in the append that holds this event."""
    purpose: CallPurpose = "turn"
    link: int = 0
    """Place of the model in the chain of the worker."""
    hedge: bool = False
    """It is made beside a call that is slow; the first good answer of the two counts."""


class ModelCallSkipped(TaskEvent, frozen=True, omit_defaults=True):
    """A model of the chain was not asked, and why."""

    call_id: str
    turn: int
    wire: str
    provider: str
    model: str
    reason: SkipReason
    link: int = 0
    until_us: int = 0
    """`breaker_open`: when it may be asked again; 0 when nobody can say."""
    retry_after_s: float = 0.0
    """The same as a span from now, in seconds."""
    detail: str = ""
    """The reason in words."""
    shortfall: Shortfall | msgspec.UnsetType = msgspec.UNSET
    """`over_budget`: the limit that left no room."""
    hedge: bool = False
    """It would have been made beside a call that is slow, which goes on alone."""


class ToolCall(msgspec.Struct, frozen=True):
    """One tool call as the model asked for it; `arguments` is its JSON text, unchecked."""

    call_id: str
    tool: str
    arguments: Payload


class ModelCallFinished(TaskEvent, frozen=True, omit_defaults=True):
    """The model answered."""

    call_id: str
    turn: int
    stop: StopReason
    text: Payload
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    price: Price
    provider: str
    model: str
    simulated: bool
    latency_ms: int
    raw: Hash | None = None
    wire: str = ""
    """The protocol the model was asked over."""
    native: Payload | None = None
    """The assistant message as the provider wrote it: JSON of its items, see `blocks.Native`."""
    thinking: Payload | None = None
    """Readable reasoning: kept apart from `text`, never part of an outcome."""
    request_id: str = ""
    """The provider's name for the call."""
    purpose: CallPurpose = "turn"
    problems: tuple[str, ...] = ()
    """Of an `output` call: what keeps the answer from satisfying the schema, as the model is told."""


class ModelCallFailed(TaskEvent, frozen=True, omit_defaults=True):
    """One call to one provider failed; the price covers what was billed all the same."""

    call_id: str
    turn: int
    provider: str
    model: str
    error: Failure
    latency_ms: int
    price: Price = Price(0, "offline")
    wire: str = ""
    link: int = 0
    """Place of the model in the chain; -1: it was in the chain of a former worker."""
    status: int | None = None
    """HTTP status of the answer; None when there was none."""
    request_id: str = ""
    """The provider's name for the call."""
    usage: Usage = Usage()
    """What was used, and is billed, although the call failed."""


class ToolStarted(TaskEvent, frozen=True, omit_defaults=True):
    """Intent: this tool call was validated and authorised and is about to run. Durable before the effect."""

    call_id: str
    tool: str
    tool_version: str
    effect: Effect
    idempotency_key: str
    approval_id: ApprovalId | None = None
    stub: Stub | Literal[""] = ""
    """Set in a trial: the call is not carried out, and how it is answered instead."""
    fingerprint: Hash = Hash("")
    """What it asks for, whoever asks, see `effects`; empty for a call that only reads."""
    compensation: Compensation | None = None
    """How to take it back, as far as that can be said before it happens."""
    undoes: str = ""
    """Key of the effect that it takes back."""


class ToolWays(msgspec.Struct, frozen=True):
    """How a call was carried out that needed more than one try, or had a choice: by which implementation, after how many tries of all
    together, and which ones did not do it, as `<implementation>: <why>`."""

    implementation: str
    tries: int
    degraded: tuple[str, ...] = ()


class ToolFinished(TaskEvent, frozen=True):
    """Outcome of a tool call. `refused` ran nothing (bad arguments, unknown tool, limit, denied approval);
    `unknown` means a crash left an irreversible call without an outcome and nobody may blindly repeat it."""

    call_id: str
    tool: str
    status: Literal["ok", "error", "refused", "unknown"]
    result: Payload
    latency_ms: int
    trust: Trust = "trusted"
    artifacts: tuple[ArtifactRef, ...] = ()
    outcome: Outcome | None = None
    """Set by a tool that ends the task: its result is the task's outcome."""
    ways: ToolWays | msgspec.UnsetType = msgspec.UNSET
    compensation: Compensation | msgspec.UnsetType = msgspec.UNSET
    """How to take it back, when the outcome says more about that than the intent did."""
    reused: EffectRef | msgspec.UnsetType = msgspec.UNSET
    """Nothing ran: another call had asked for the same thing within the tool's window, and this is its outcome."""


class ToolInDoubt(TaskEvent, frozen=True):
    """The call ran and nobody knows whether it had its effect: no answer came in time, or the connection broke."""

    call_id: str
    tool: str
    reason: str


class ToolProbed(TaskEvent, frozen=True, omit_defaults=True):
    """The tool's probe looked whether a call whose outcome was not recorded had its effect."""

    call_id: str
    tool: str
    verdict: ProbeVerdict
    result: Payload
    """What the probe has to say: with `happened`, it is the result of the call."""
    compensation: Compensation | None = None
    """How to take back what it found."""


class CompensationStarted(TaskEvent, frozen=True):
    """Intent: a call whose outcome is not known is about to be taken back. `key` is derived from the key of the call."""

    call_id: str
    tool: str
    tool_version: str
    key: str


class CompensationFinished(TaskEvent, frozen=True):
    """Outcome: `ok` means that the call has no effect any more, whether it had one or not."""

    call_id: str
    tool: str
    status: Literal["ok", "error"]
    result: Payload
    latency_ms: int


class ApprovalRequested(TaskEvent, frozen=True):
    """A person must decide before this call runs. `digest` binds the permit to tool, arguments, agent kind and run."""

    approval_id: ApprovalId
    call_id: str
    tool: str
    arguments: Payload
    digest: Hash
    reason: str
    expires_us: int
    question: Question | msgspec.UnsetType = msgspec.UNSET


class ApprovalDecided(TaskEvent, frozen=True):
    """By the orchestrator: a person (or the clock) decided. A permit is used up by the next `ToolStarted` of its call."""

    approval_id: ApprovalId
    call_id: str
    digest: Hash
    decision: ApprovalDecision
    actor: str
    note: str = ""


class Nudged(TaskEvent, frozen=True):
    """The agent goes round in circles and is told so: `text` is what the model reads behind the results of its last turn."""

    reason: Literal["loop"]
    text: str


class Replaced(msgspec.Struct, frozen=True, omit_defaults=True):
    """One text that later requests no longer hold: `by` stands in its place."""

    turn: int
    """Place of its turn in the conversation, from 1."""
    what: Literal["result", "text"]
    """The result of the call `call_id`, or what the model said."""
    size: int
    """UTF-8 bytes of what was left out."""
    by: str
    call_id: str = ""


class ContextCompacted(TaskEvent, frozen=True):
    """Texts of finished turns were left out of the conversation, so that the next request fits. Nothing is lost: their events hold them."""

    turn: int
    """The turn that is about to be asked for."""
    reason: Literal["room", "refused"]
    """`room`: by estimate. `refused`: a provider found the request too long."""
    provider: str
    model: str
    tokens_before: int
    """Estimates of the whole request; `tokens_max` is what it should have stayed below."""
    tokens_after: int
    tokens_max: int
    replaced: tuple[Replaced, ...]


class AttemptFailed(TaskEvent, frozen=True):
    """This attempt is over; the orchestrator decides between another one and `TaskFailed`. Usage and cost are the task's so far."""

    attempt: int
    error: Failure
    usage: Usage = Usage()
    cost_micro_usd: int = 0
    shortfall: Shortfall | msgspec.UnsetType = msgspec.UNSET
    """With error code `budget`: the limit that left no room for the next model call. The task goes on once that is raised."""


class BudgetWarned(TaskEvent, frozen=True, omit_defaults=True):
    """A budget that the task is charged to is over its soft limit; written once per task and scope."""

    scope: str
    call_id: str = ""
    """The model call that was reserved or settled when this was noticed."""
    first_link: int = 0
    """Where the chain begins from now on: at its cheapest model, when the worker is set up to save money then."""


class TaskMoved(TaskEvent, frozen=True):
    """The task goes on under the version of its agent that `worker` has: from here on that one's prompt and tools count. The operator wants
    that for tasks that began under another version; without that wish, and while a call is under way, a task keeps its own."""

    worker: str
    from_version: str
    agent_version: str
    setup: Payload
    """As in `TaskStarted`; the opening stays."""


class TaskHandedBack(TaskEvent, frozen=True):
    """The worker stopped between two steps and has the task no more: its run, tenant or kind is paused, or the worker is being drained.

    Nothing is under way. Whoever takes the task next goes on from here, and has the time of an attempt anew.
    """

    attempt: int
    scope: str
    """`run/<run_id>`, `tenant/<tenant>`, `kind/<kind>` or `worker/<worker>`."""
    number: int
    """How often the task was handed back, this time included: whoever reads of it twice knows."""


class TaskCompleted(TaskEvent, frozen=True):
    """The one good end of a task."""

    outcome: Outcome
    usage: Usage
    cost_micro_usd: int
    turns: int
    tool_calls: int
    unpriced_calls: int = 0


class TaskFailed(TaskEvent, frozen=True):
    """By the orchestrator: no attempt is left, or the failure cannot be retried."""

    error: Failure


class TaskCancelled(TaskEvent, frozen=True):
    """By the orchestrator: the run was stopped."""

    reason: str
    actor: str


TASK_EVENTS: tuple[type[TaskEvent], ...] = (
    TaskOpened,
    TaskStarted,
    ModelCallStarted,
    ModelCallFinished,
    ModelCallFailed,
    ModelCallSkipped,
    ToolStarted,
    ToolFinished,
    ApprovalRequested,
    ApprovalDecided,
    Nudged,
    ContextCompacted,
    AttemptFailed,
    TaskCompleted,
    TaskFailed,
    TaskCancelled,
    BudgetWarned,
    TaskMoved,
    TaskHandedBack,
    TaskForked,
    ToolInDoubt,
    ToolProbed,
    CompensationStarted,
    CompensationFinished,
)

TERMINAL_TYPES: frozenset[str] = frozenset({"TaskCompleted", "TaskFailed", "TaskCancelled", "RunCompleted", "RunFailed", "RunCancelled"})
"""The event that closes its stream: exactly one per run and per task, enforced by the log."""

NOTICED_TYPES: frozenset[str] = frozenset({"TaskCompleted", "AttemptFailed", "ApprovalRequested", "TaskHandedBack"})
"""What the orchestrator must react to in a task stream; whoever appends one of these wakes it."""
