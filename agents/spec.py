"""What an agent is: a kind, instructions, and tools. The four built-in specialists and a user's own are made the same way.

from pydantic import BaseModel
from crewlog.agents import AgentSpec, ToolContext, ToolOutput, ToolSpec

class Shout(BaseModel):
    text: str

async def shout(context: ToolContext, args: Shout) -> ToolOutput:
    return ToolOutput(args.text.upper())

AGENT = AgentSpec(kind="shouter", description="Writes text in capitals.", instructions="Use shout on the text you are given.",
                  tools=(ToolSpec("shout", "Return the text in capitals.", Shout, shout, effect="read"),))
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

from crewlog.events.artifacts import ArtifactStore
from crewlog.schemas.blocks import ToolDef
from crewlog.schemas.effects import Effect, ProbeVerdict
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.task import AgentTask
from crewlog.schemas.trace_context import span_id, traceparent
from crewlog.schemas.values import ArtifactRef, Outcome, Trust

TOOL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


MemoryAccess = Literal["recall", "remember"]
"""`recall`: look up what is remembered. `remember`: also note more."""


async def nothing_to_recall(call_id: str) -> ToolOutput | None:  # noqa: ARG001  (what every `recall` takes)
    """Recall for tools that run outside a task."""
    return None


async def nothing_to_check() -> None:
    """Nobody else can have the task."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may use besides its arguments."""

    task: AgentTask
    call_id: str
    idempotency_key: str
    """The same for every try of this call: pass it on to whatever can refuse a second time."""
    artifacts: ArtifactStore
    workspace: Path
    """A folder of this task on this machine. It may be empty again after a crash: rebuild from artifacts."""
    earlier_artifacts: tuple[ArtifactRef, ...] = ()
    """Artifacts that earlier tool calls of this task made, in order."""
    recall: Callable[[str], Awaitable[ToolOutput | None]] = nothing_to_recall
    """Given a call id, returns the whole result of that call of this task with its label; None when there is none."""
    trust: Trust = "trusted"
    """Label of what the task had seen when the call was asked for."""
    version: int = 0
    """Version of the call's `ToolStarted` in the stream of the task."""
    check_hold: Callable[[], Awaitable[None]] = nothing_to_check
    """Make sure that no other worker has the task, right before an effect that must not happen twice. It is done before each try; a tool whose way
    to the effect is long does it once more at the end of that way. Raises what must not be caught."""

    @property
    def traceparent(self) -> str:
        """Return the call's span as the header of W3C Trace Context: requests that carry it appear below the call in the run's trace.

        Nothing passes it on by itself, since it names the run to whoever reads it.
        """
        return traceparent(self.task.run_id, span_id(self.task.task_id, f"tool/{self.version}"))


@dataclass(frozen=True, slots=True)
class Undo:
    """How an effect is taken back: a tool of the same agent and its arguments, and for people the id or address of what was made.

    That tool must be `idempotent`, and must do no harm when there is nothing to take back. A call that is taken back because its outcome is not
    known may still be on its way from a worker that only stands still: a receiver that keeps the key of what was taken back refuses it then.
    """

    tool: str
    arguments: Mapping[str, Any]
    resource: str = ""


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool returns. `content` goes to the model; `artifacts` are files it made; `outcome` ends the task."""

    content: str
    artifacts: tuple[ArtifactRef, ...] = ()
    outcome: Outcome | None = None
    trust: Trust | None = None
    """Label of this result, where it is another than the tool's."""
    undo: Undo | None = None
    """How to take back what was done, when that was not known before: an id that the receiver chose."""


class ToolFailed(Exception):
    """Raise inside a tool to tell the model what went wrong in words it can act on. Not a crash: it is recorded as an error result."""


class ToolOutcomeUnknown(ToolFailed):
    """Raise inside a tool when the effect may or may not have happened: no answer came, or the connection broke in the middle.

    When the effect can be repeated, the model is told that the call failed. Otherwise the call is in doubt: its probe or a person says what
    became of it, and the model is told that.
    """


class ToolUnavailable(Exception):
    """Raise inside a tool when this way of doing it does not work now and nothing has happened: another try, or another implementation, is
    safe whatever the effect.

    Args:
        retry_after_s: how long the other side asks to wait, in seconds; None when it does not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


RunTool = Callable[[ToolContext, Any], Awaitable[ToolOutput]]


class Probed(NamedTuple):
    """What a probe found, and what there is to say about it: with `happened`, `content` is the result of the call that the model is told."""

    verdict: ProbeVerdict
    content: str = ""
    undo: Undo | None = None
    """How to take back what it found, when the intent did not say."""


ProbeTool = Callable[[ToolContext, Any], Awaitable[Probed]]
"""Looks whether the call with these arguments and this idempotency key had its effect. It changes nothing; that it fails is no verdict."""


class Implementation(NamedTuple):
    """One more way to do what a tool does. `name` is what a model and the log call it."""

    name: str
    run: RunTool


class Rate(NamedTuple):
    """Most calls of a tool in any `per_s` seconds, by all tasks of one worker."""

    calls: int
    per_s: float


class ArgsModel(Protocol):
    """What describes and checks a tool's arguments: a class of pydantic, or `JsonSchemaArgs` for a schema that came from elsewhere."""

    def model_json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of an object that a model is shown."""

    def model_validate_json(self, text: str, /) -> Any:
        """Return the arguments as the tool takes them.

        Raises:
            ValidationError, ContractError: they do not fit.
        """


@dataclass(frozen=True, slots=True, eq=False)  # each is only like itself, which is asked for with every task
class ToolSpec:
    """One tool: what the model sees, what runs, and what it does to the world.

    Defaults are the cautious ones: an effect nobody described cannot be repeated, and what came from outside is not trusted.
    """

    name: str
    description: str
    args: ArgsModel
    run: RunTool
    effect: Effect = "irreversible"
    trust: Trust = "untrusted"
    """Trust label of its results."""
    needs_approval: bool = False
    """A person must agree to each call, unless the run was submitted with `auto_approve`."""
    timeout_s: float = 60.0
    version: str = "1"
    ends_task: bool = False
    """Its output carries the outcome and the task is over."""
    calls_max: int | None = None
    """Most calls in one task."""
    refusals_max: int | None = None
    """Calls of it that may be refused or end in an error before the task fails; None leaves that to the task's limits."""
    implementation: str = "own"
    """Name of what `run` is, beside its fallbacks."""
    fallbacks: tuple[Implementation, ...] = ()
    """Other ways to do the same, in order: for when `run` is unavailable or, if the effect can be repeated, fails."""
    retries: int = 0
    """Further tries of each implementation that is unavailable, with growing waits, within `timeout_s`."""
    rate: Rate | None = None
    asks_person: bool = False
    """Nothing runs: a person is asked, always, and what they say is the result."""
    serves: tuple[str, ...] = ()
    """Older versions whose calls this one carries out as well, for tasks that began with them."""
    is_contained: bool = False
    """All that it does is in its output, artifacts included: nothing outside of the task knows of it. Such a tool runs also in a trial, where
    other effects are stubbed."""
    retired: bool = False
    """Kept for tasks that began with this version, offered to no new one."""
    probe: ProbeTool | None = None
    """Finds out whether a call whose outcome nobody recorded had its effect."""
    how_to_look: Callable[[Any, str], str] | None = None
    """From arguments and idempotency key, how a person finds out the same, for a tool without a probe or whose probe does not know."""
    undo: Callable[[Any, str], Undo] | None = None
    """From arguments and idempotency key, how to take the effect back, as far as that can be said before it happens. `ToolFailed` refuses the call."""
    nonces: tuple[str, ...] = ()
    """Arguments that differ although the same is asked for: times, random ids. They have no part in the fingerprint of a call."""
    dedupe_window_s: float | None = None
    """Of calls that ask for the same within so many seconds, in whichever runs of the tenant, only the first one runs; the others get its outcome.
    None: each call counts for itself."""
    server: str = ""
    """Name of the MCP server that carries it out; empty for the agent's own."""
    undoes: bool = False
    """It takes back what other tools did, and is offered to no model: called by a rollback, or when a call was interrupted."""

    def __post_init__(self) -> None:
        """Refuse what would only show in the middle of a task.

        Raises:
            ConfigError: a name that does not match `TOOL_NAME`, so that some model provider would refuse it, or an effect that cannot be what it is for.
        """
        if not TOOL_NAME.fullmatch(self.name):
            raise ConfigError(f"a tool cannot be called {self.name!r}", hint=f"its name must match {TOOL_NAME.pattern}: every model provider accepts that")
        if self.undoes and self.effect != "idempotent":
            raise ConfigError(f"tool {self.name!r} takes back what others did and is {self.effect}", hint="it may run several times: make it idempotent")
        if self.dedupe_window_s is not None and (self.effect == "read" or self.ends_task or self.dedupe_window_s < self.timeout_s):
            raise ConfigError(
                f"tool {self.name!r} has an effect {self.effect}, a timeout of {self.timeout_s:g} s and a window of {self.dedupe_window_s:g} s",
                hint="dedupe_window_s is for effects that do not end their task, and may not be shorter than timeout_s",
            )

    def definition(self) -> ToolDef:
        """Return the tool as the model sees it."""
        schema = self.args.model_json_schema()
        schema.pop("title", None)
        schema.pop("description", None)
        return ToolDef(self.name, self.description, schema)


@dataclass(frozen=True, slots=True)
class Requirement:
    """A module that must be importable, and the extra that brings it."""

    module: str
    extra: str


@dataclass(frozen=True, slots=True, eq=False)
class AgentSpec:
    """A kind of agent."""

    kind: str
    description: str
    """One sentence for the planner: what this kind is good for."""
    instructions: str
    """System text for the model."""
    tools: tuple[ToolSpec, ...] | Callable[[AgentTask], tuple[ToolSpec, ...]] = ()
    """The tools, or a function that picks those a task needs."""
    requires: tuple[Requirement, ...] = field(default=())
    version: str = "1"
    context: Literal["inject", "retrieve"] | None = None
    """Whether outcomes of earlier tasks are told at the start or fetched with `read_context`; None: as the crew is configured."""
    memory: MemoryAccess | Callable[[AgentTask], MemoryAccess | None] | None = None
    """What it may do with what is remembered for its user and tenant, or a function that says it for a task; None: nothing."""
    recalls_untrusted: bool = True
    """Off for an agent whose words others follow: what came from untrusted content must not shape what the crew sets out to do."""
    may_escalate: bool = True
    """It may put a question to a person in the middle of a task."""
    more_tools: Callable[[], tuple[ToolSpec, ...]] | None = None
    """Tools that come from outside and change while the worker runs, such as those of MCP servers. A tool of the agent's own goes before one
    of the same name."""
    lacking: Callable[[], tuple[str, ...]] | None = None
    """What of these tools is not even known yet, a sentence each: a task that begins now is told."""

    def tools_for(self, task: AgentTask) -> tuple[ToolSpec, ...]:
        """Return the tools this task gets."""
        return self._with_more(self.tools(task) if callable(self.tools) else self.tools)

    def known_tools(self) -> tuple[ToolSpec, ...]:
        """Return the tools that do not depend on a task."""
        return self._with_more(() if callable(self.tools) else self.tools)

    def _with_more(self, own: tuple[ToolSpec, ...]) -> tuple[ToolSpec, ...]:
        if self.more_tools is None:
            return own
        names = {tool.name for tool in own}
        return (*own, *(tool for tool in self.more_tools() if tool.name not in names))
